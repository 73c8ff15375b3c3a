//! One conversation with a peer, over one link, both ways at once.
//!
//! A session knows what was said and what may be said next. It decides and touches nothing: the
//! replica reads, applies and sends. Each side sends in *rounds*: `Clock`, then records of one
//! snapshot, then `Claim`; and it takes in the other side's rounds at the same time.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::address::Address;
use crate::clock::{Clock, Dot, Known, Now, ReplicaId, WriterId, micros};
use crate::codec::DecodeError;
use crate::config::Config;
use crate::delta::{Delta, Piece};
use crate::frame::{FrameError, FrameReader, FrameWriter, WIRE_VERSION};
use crate::heal::{Follower, Leader, OutOfOrder, Plan, Purpose, Start};
use crate::limits::{
    CLOCK_RANGES_MAX, CLOCK_WRITERS_MAX, HEADS_PER_MESSAGE, MEMBERS_MAX, REACHED_PER_COMMIT,
    RELIEVE_BYTES,
};
use crate::members::{Epoch, Members, digest, epoch_digest};
use crate::message::{Applied, ClusterNews, Heads, Hello, Message, encode_records};
use crate::mistake::{Mistake, is_planted};
use crate::packing::decode_records;
use crate::record::{Key, Record};
use crate::storage::Snapshot;
use crate::writers::{Descriptor, Writers};

/// Names a link between two processes, as this side counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Why a conversation failed. None of these changes what is stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// Nobody answers at the address. It is tried again, ever more rarely, at least every few seconds.
    #[error("cannot be reached: {reason}")]
    Unreachable {
        /// What the operating system says.
        reason: String,
    },
    /// The encrypted handshake failed: most often a different secret, or without one a different cluster.
    #[error("handshake failed: {reason}")]
    Handshake {
        /// What went wrong.
        reason: String,
    },
    /// The peer belongs to another cluster.
    #[error("peer belongs to cluster '{theirs}', not to '{ours}'")]
    WrongCluster {
        /// The peer's cluster.
        theirs: String,
        /// This replica's cluster.
        ours: String,
    },
    /// The peer speaks another version of the protocol. Upgrade the older side.
    #[error(
        "peer speaks versions {min} to {max} of the protocol, this replica speaks {WIRE_VERSION}"
    )]
    Incompatible {
        /// The least version that the peer speaks.
        min: u8,
        /// The greatest version that the peer speaks.
        max: u8,
    },
    /// The bytes are no frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame is no message.
    #[error("malformed message: {0}")]
    Malformed(#[from] DecodeError),
    /// The peer said something that the protocol does not allow at that point.
    #[error("peer broke the protocol: {0}")]
    Misbehaved(Misbehavior),
    /// The peer owed an answer and was silent.
    #[error("peer was silent for {ms} ms")]
    Stalled {
        /// For how long, in milliseconds.
        ms: u64,
    },
    /// The peer has no room for a conversation now.
    #[error("peer is busy and asks to try again in {retry_ms} ms")]
    Busy {
        /// When it may have, in milliseconds.
        retry_ms: u64,
    },
    /// The link broke.
    #[error("link broke: {reason}")]
    Broken {
        /// What the operating system says.
        reason: String,
    },
    /// Our own storage failed or is damaged; the conversation cannot go on.
    #[error("own storage: {reason}")]
    Storage {
        /// What the storage says.
        reason: String,
    },
    /// A source of peers failed; what it said last still holds.
    #[error("source of peers: {reason}")]
    Source {
        /// What went wrong.
        reason: String,
    },
    /// The announcements on the local network do not work.
    #[error("multicast: {reason}")]
    Multicast {
        /// What the operating system says.
        reason: String,
    },
}

/// What a peer may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misbehavior {
    /// Something came before the peer had said hello.
    #[error("it spoke before it said hello")]
    NoHello,
    /// A second hello.
    #[error("it said hello twice")]
    SecondHello,
    /// Records or the end of a round outside a round.
    #[error("it sent records outside a round")]
    NoRound,
    /// A record holds a write that the round's clock does not.
    #[error("a record holds a write that its sender's clock does not know")]
    UnknownDot,
    /// It sent records though its floor is not known here, or begins where nothing may begin.
    #[error("it skipped the comparison that its floor asks for")]
    SkippedHeal,
    /// Its floor holds a writer without what that writer's parents imply.
    #[error("its floor has a gap below a writer")]
    OpenFloor,
    /// A comparison was led or answered out of order.
    #[error("it broke the order of a comparison")]
    OutOfOrder,
    /// One write is live under two keys.
    #[error("it sent one write under two keys")]
    DotUnderTwoKeys,
    /// A writer is named that was not described.
    #[error("it named a writer that it had not described")]
    UnknownWriter,
    /// A writer is described that contradicts what is known.
    #[error("it described a writer that is known with another origin")]
    ContradictingWriter,
    /// A record is larger than a record may be.
    #[error("a record exceeds the limit")]
    OversizedRecord,
    /// Its clock names more writers, or has more gaps, than a clock may.
    #[error("its clock exceeds the limit")]
    OversizedClock,
    /// It knows writes of this process that this process has not made: a twin of it runs somewhere.
    #[error(
        "it knows writes of this process that were not made here: does a twin of it run elsewhere?"
    )]
    UnwrittenDots,
    /// An end of a round is confirmed that was not sent.
    #[error("it confirmed a round that was not sent")]
    NothingToConfirm,
}

impl From<OutOfOrder> for PeerError {
    fn from(_: OutOfOrder) -> Self {
        PeerError::Misbehaved(Misbehavior::OutOfOrder)
    }
}

impl From<Misbehavior> for PeerError {
    fn from(misbehavior: Misbehavior) -> Self {
        PeerError::Misbehaved(misbehavior)
    }
}

/// What the replica has to do about a message.
#[derive(Debug)]
pub enum Step {
    /// Nothing but to see what may be sent next.
    Nothing,
    /// The peer said who it is.
    Greet,
    /// The peer described writers.
    Describe(Vec<Descriptor>),
    /// The peer asked what is known here.
    Answer,
    /// Records are to be applied; with an end, the round is over.
    Apply(Vec<(Key, Record)>, Option<End>),
    /// The peer told addresses.
    Learn(Vec<Address>),
    /// The peer has no room.
    Busy(u64),
    /// The peer leaves.
    Bye,
    /// The peer told what it knows of members and the epoch.
    Merge(Box<ClusterNews>),
    /// The peer told its floor.
    Adopt,
    /// The peer begins a comparison.
    Follow(Plan),
    /// Ranges of the comparison wait to be looked at.
    Look,
    /// Values that differ in a scrub: what the peer holds of these keys.
    Differ(Vec<(Key, Record)>),
    /// The peer wants records, whatever it knows.
    Want(Vec<Key>),
    /// The peer wants our clock without anything left out.
    TellAll,
}

/// How a round ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Everything of the snapshot was sent, by somebody who may hold half a batch of these writers.
    Claim(Vec<WriterId>),
    /// Something of the snapshot was not sent, but all that one writer wrote, if one is named.
    Yield(Option<WriterId>),
    /// Nothing was sent, because what the peer holds is not whole.
    Unserved,
}

/// Our round, as far as it has come.
pub enum Outgoing {
    /// No round.
    Idle,
    /// The clock was sent; the peer's is awaited.
    Asked(Round),
    /// Records are being sent.
    Streaming(Round, Box<Delta>),
    /// Both sides' data is being compared.
    Comparing(Round, Box<Leader>),
    /// The end was sent; its confirmation is awaited.
    Ended,
}

/// One round of ours: a snapshot and the clock that belongs to it.
pub struct Round {
    /// The tables.
    pub snapshot: Arc<dyn Snapshot>,
    /// What they know.
    pub clock: Arc<Clock>,
    /// What is stripped in them.
    pub floor: Arc<Clock>,
    /// What must be known to whoever is served from them.
    pub wanted: Arc<Clock>,
    /// The writers named in them.
    pub writers: Arc<Writers>,
    /// The writers of whom half a batch may be in them.
    pub unclaimed: Vec<WriterId>,
    /// Whether the peer still owes an answer before anything is sent.
    pub asks: bool,
    /// Only the writes of this writer are sent: our own news.
    pub only: Option<WriterId>,
    /// When the round began, in steady microseconds.
    pub started_us: u64,
}

/// Records that were taken in, and the clock of the snapshot that they are from.
pub type CutRound = (Vec<(Key, Record)>, Arc<Clock>);

impl Round {
    /// Whether the snapshot has been held for as long as it may be.
    pub fn is_over(&self, now: Now, config: &Config) -> bool {
        now.steady_us.saturating_sub(self.started_us) >= micros(config.round_time)
    }
}

/// The peer's round, as far as it has come.
struct Incoming {
    /// The clock of the peer's snapshot.
    context: Arc<Clock>,
    records: Vec<(Key, Record)>,
    bytes: usize,
    /// The round outgrew the atomic budget: its records are applied as they come.
    in_parts: bool,
    /// A record of the round was passed over, because ours is damaged.
    passed_over: bool,
    /// The round came while somebody else heals us: nothing of it is taken.
    refused: bool,
    /// The clock of the round could not be understood: all of it passes by, and comes again.
    is_mute: bool,
    /// The peer compares instead of sending by dots.
    follower: Option<Box<Follower>>,
    /// Before which key everything was compared, and what came of it applied or about to be.
    reached: Option<Key>,
    /// How often the peer has told so since something was applied.
    reached_since: usize,
    /// Bytes at which the storage is relieved again.
    relieved_at: usize,
    fragments: Vec<u8>,
}

/// Something both sides are to know: what each knew at one moment.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// When it was asked for, in steady microseconds.
    pub since_us: u64,
    /// What was known here.
    pub mine: Arc<Clock>,
    /// What was known there; `None` until it was heard.
    pub theirs: Option<Arc<Clock>>,
    /// Where that must come from.
    pub source: Source,
}

/// From where an exchange takes what the peer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From whatever it says first.
    Anything,
    /// From the answer to a question that is still to be asked: all else may have been said before
    /// the exchange was wanted.
    Question,
    /// From the answer to the question that was asked.
    Answer,
}

/// What was said first, and what was known then.
pub struct Greeting {
    /// The message.
    pub hello: Hello,
    /// The clock.
    pub clock: Arc<Clock>,
    /// The floor.
    pub floor: Arc<Clock>,
}

/// One conversation.
pub struct Session {
    /// The link it runs over.
    pub link: LinkId,
    /// The address that was dialed; `None` if the peer reached us.
    pub dialed: Option<Address>,
    /// Where the other end is.
    pub remote: Address,
    /// The address at which the peer can be dialed, as far as it is known.
    pub home: Option<Address>,
    /// Frames to send.
    pub out: FrameWriter,
    /// What the peer said first.
    pub hello: Option<Hello>,
    /// What we said first, and what was known then.
    pub greeting: Option<Greeting>,
    /// What we told the peer that we know.
    pub told: Clock,
    /// What the peer told us that it knows.
    pub theirs: Arc<Clock>,
    /// Whether the peer told anything yet.
    pub heard: bool,
    /// Our round.
    pub outgoing: Outgoing,
    /// Whether own writes wait to be pushed.
    pub push: bool,
    /// When writes of others are to be offered, in steady microseconds; `None` without such news.
    pub offer_us: Option<u64>,
    /// Whether a round of ours ended without a claim since the last claim.
    pub owes_claim: bool,
    /// Whether another exchange is to begin as soon as none runs.
    pub wants_exchange: bool,
    /// What is to become known on both sides.
    pub exchange: Option<Exchange>,
    /// How many of our writers the peer was told of.
    pub writers_told: usize,
    /// Records sent and received since the last `Synced`.
    pub moved: (u64, u64),
    /// Whether this link already reported a clock far ahead.
    pub skew_told: bool,
    /// Whether damage here keeps this conversation from coming to an end.
    pub damaged: bool,
    /// The clock of the last round that we claimed.
    pub claimed: Arc<Clock>,
    /// What we told the peer of our floor.
    pub floor_told: Arc<Clock>,
    /// What the peer told us of its floor.
    pub their_floor: Arc<Clock>,
    /// Fingerprint of members and epoch as both sides know them, as far as that is known.
    pub cluster_told: u64,
    /// Fingerprint of what we told last of members and epoch.
    cluster_said: u64,
    /// Fingerprint of the epoch whose cut both sides know.
    pub cut_told: u64,
    /// The peer is being healed by somebody else, and takes no records.
    pub peer_heals: bool,
    /// We are being healed over another link, and take no records over this one.
    pub heals_elsewhere: bool,
    /// The peer will tell what it knows of members and the epoch.
    pub awaits_cluster: bool,
    /// The peer will tell its floor.
    pub awaits_floor: bool,
    /// Keys whose records we have asked for on this link: what did not help is not asked for again.
    pub asked_keys: BTreeSet<Key>,
    /// Keys whose records the peer wants.
    pub wanted_keys: Vec<Key>,
    /// Where the next scrub begins, if one is to be made, and where it ends.
    pub scrub: Option<(Key, Option<Key>)>,
    /// All that the peer told of its floor is part of ours, so it may send by dots.
    pub floor_is_adopted: bool,
    /// The peer has asked for our clock without anything left out.
    tells_all: bool,
    /// What we have left out of our clock and our floor.
    chains_told: Vec<(WriterId, Dot)>,
    /// The peer has asked for our clock.
    has_asked_all: bool,
    /// What the peer leaves out of the clock or the floor that comes next.
    chains: Vec<(WriterId, Dot)>,
    cluster_news: Option<Box<ClusterNews>>,
    /// How many ranges ahead of a base the peer's clock has, over all writers.
    theirs_ranges: usize,
    incoming: Option<Incoming>,
    reader: FrameReader,
    sent: u64,
    granted: u64,
    consumed: u64,
    consumed_told: u64,
    granted_us: u64,
    started_us: u64,
    heard_us: u64,
    awaiting_us: Option<u64>,
    news_us: u64,
}

impl Session {
    /// A session of the process `instance` on a link that was just made.
    pub fn new(
        link: LinkId,
        instance: u64,
        dialed: Option<Address>,
        remote: Address,
        now: Now,
    ) -> Session {
        Session {
            link,
            home: dialed.clone(),
            dialed,
            remote,
            out: FrameWriter::default(),
            hello: None,
            greeting: None,
            told: Clock::default(),
            theirs: Arc::default(),
            heard: false,
            outgoing: Outgoing::Idle,
            push: false,
            offer_us: None,
            owes_claim: false,
            wants_exchange: false,
            exchange: None,
            writers_told: 0,
            moved: (0, 0),
            skew_told: false,
            damaged: false,
            claimed: Arc::default(),
            floor_told: Arc::default(),
            their_floor: Arc::default(),
            cluster_told: 0,
            cluster_said: 0,
            cut_told: 0,
            peer_heals: false,
            heals_elsewhere: false,
            awaits_cluster: false,
            awaits_floor: false,
            asked_keys: BTreeSet::new(),
            wanted_keys: Vec::new(),
            scrub: None,
            floor_is_adopted: true,
            tells_all: false,
            chains_told: Vec::new(),
            has_asked_all: false,
            chains: Vec::new(),
            cluster_news: None,
            theirs_ranges: 0,
            incoming: None,
            reader: FrameReader::new(instance),
            sent: 0,
            granted: 0,
            consumed: 0,
            consumed_told: 0,
            granted_us: now.steady_us,
            started_us: now.steady_us,
            heard_us: now.steady_us,
            awaiting_us: None,
            news_us: now.steady_us,
        }
    }

    /// The peer's name, once it has said hello.
    pub fn replica(&self) -> Option<ReplicaId> {
        self.hello.as_ref().map(|hello| hello.replica)
    }

    /// Appends a message to what is sent.
    pub fn say(&mut self, message: &Message) {
        message.encode(&mut self.out);
    }

    /// Tells what is known here in a `Clock` that begins a round.
    ///
    /// The first time what chains of parents imply is left out, unless the peer has asked for all.
    pub fn say_clock(&mut self, clock: &Arc<Clock>, asks: bool, writers: &Writers) {
        let is_first = self.told.is_empty() && !self.tells_all;
        let folded = is_first.then(|| self.say_chains(clock, writers));
        let pieces = Heads::changed(folded.as_ref().unwrap_or(clock), &self.told);
        let last = pieces.len() - 1;
        for (index, heads) in pieces.into_iter().enumerate() {
            let more = index < last;
            self.say(&Message::Clock { heads, asks, more });
        }
        self.told = Clock::clone(clock);
    }

    /// Tells the chains of parents that a clock holds whole; answers what is left to be told of it.
    fn say_chains(&mut self, clock: &Clock, writers: &Writers) -> Clock {
        let (rest, chains) = writers.fold(clock);
        self.chains_told.extend_from_slice(&chains);
        for part in chains.chunks(HEADS_PER_MESSAGE) {
            self.say(&Message::Chains(part.to_vec()));
        }
        rest
    }

    /// Whether the peer's clock shows that it does not know parents that we have named to it.
    pub fn names_unknown_parents(&self) -> bool {
        let is_known = |writer| self.theirs.get(writer).is_some();
        let mut chains = self.chains_told.iter();
        !self.tells_all && chains.any(|(writer, dot)| !is_known(*writer) && !is_known(dot.writer))
    }

    /// From now on nothing is left out of our clock; answers whether something was before.
    pub fn tell_all_next(&mut self) -> bool {
        let is_news = !std::mem::replace(&mut self.tells_all, true);
        if is_news {
            self.told = Clock::default();
        }
        is_news
    }

    /// Tells what is known here, as an answer or after something was applied.
    pub fn say_applied(&mut self, clock: &Clock, answers: bool, ends: bool) {
        let pieces = Heads::changed(clock, &self.told);
        let last = pieces.len() - 1;
        for (index, heads) in pieces.into_iter().enumerate() {
            let more = index < last;
            self.say(&Message::Applied(Applied {
                consumed: self.consumed,
                answers: answers && !more,
                ends: ends && !more,
                heals: self.heals_elsewhere,
                more,
                heads,
            }));
        }
        self.told = Clock::clone(clock);
        self.consumed_told = self.consumed;
    }

    /// Grants the peer more bytes once a good part of the window is used up, or the peer has been
    /// sending for so long that it might take us for dead.
    pub fn grant(&mut self, now: Now, config: &Config) {
        let taken = self.consumed - self.consumed_told;
        let since = now.steady_us.saturating_sub(self.granted_us);
        let much = taken >= (config.window as u64 / 4).max(1);
        let long = taken > 0 && since >= micros(config.stall_timeout) / 4;
        if much || long {
            self.say_state();
            self.granted_us = now.steady_us;
        }
    }

    /// Tells how much was taken in, and whether more is.
    pub fn say_state(&mut self) {
        self.say(&Message::Applied(Applied {
            consumed: self.consumed,
            heals: self.heals_elsewhere,
            ..Applied::default()
        }));
        self.consumed_told = self.consumed;
    }

    /// Tells our floor as far as it differs from what we told last.
    pub fn say_floor(&mut self, floor: &Arc<Clock>, writers: &Writers) {
        if self.floor_told != *floor {
            self.say_floor_anyway(floor, writers);
        }
    }

    /// Tells our floor even if nothing of it is news.
    pub fn say_floor_anyway(&mut self, floor: &Arc<Clock>, writers: &Writers) {
        let is_first = self.floor_told.is_empty();
        let folded = is_first.then(|| self.say_chains(floor, writers));
        let pieces = Heads::changed(folded.as_ref().unwrap_or(floor), &self.floor_told);
        let last = pieces.len() - 1;
        for (index, heads) in pieces.into_iter().enumerate() {
            let more = index < last;
            self.say(&Message::Floor { heads, more });
        }
        self.floor_told = Arc::clone(floor);
    }

    /// Whether the peer lacks something of what we know of members and the epoch. What was said once
    /// is not said again, though the peer goes on to tell something else: it may have no room for it.
    pub fn lacks_cluster(&self, digest: u64) -> bool {
        self.hello.is_some() && self.cluster_told != digest && self.cluster_said != digest
    }

    /// Tells what is known of members and the epoch.
    pub fn say_cluster(&mut self, members: &Members, epoch: &Epoch) {
        let has_cut = epoch_digest(epoch) != self.cut_told;
        for piece in ClusterNews::pieces(members, epoch, has_cut) {
            self.say(&Message::Cluster(piece));
        }
        self.cut_told = epoch_digest(epoch);
        self.cluster_told = digest(members, epoch);
        self.cluster_said = self.cluster_told;
    }

    /// We begin to be healed over another link, or that has ended.
    pub fn set_heals_elsewhere(&mut self, heals: bool) {
        if self.heals_elsewhere == heals {
            return;
        }
        self.heals_elsewhere = heals;
        if heals {
            self.refuse_incoming();
        }
        if self.hello.is_some() {
            self.say_state();
        }
    }

    /// The follower of the comparison that the peer leads.
    pub fn follower(&mut self) -> Option<&mut Follower> {
        let round = self.incoming.as_mut()?;
        round.follower.as_deref_mut()
    }

    /// Takes part in the comparison that the peer leads. In parts: what comes is applied at once,
    /// because readers may see half of a batch anyway.
    pub fn follow(&mut self, follower: Follower, in_parts: bool) {
        if let Some(round) = &mut self.incoming {
            round.in_parts |= in_parts;
            round.follower = Some(Box::new(follower));
        }
    }

    /// Whether the peer has room for more records.
    pub fn has_window(&self, config: &Config) -> bool {
        self.sent - self.granted < config.window as u64
    }

    /// Appends packed records to what is sent.
    pub fn say_records(&mut self, now: Now, piece: Piece) {
        self.sent += piece.payload.len() as u64;
        self.moved.0 += piece.records;
        self.news_us = now.steady_us;
        encode_records(piece.payload, &mut self.out);
    }

    /// Takes bytes as they came from the link.
    pub fn push_bytes(&mut self, now: Now, bytes: &[u8]) {
        self.heard_us = now.steady_us;
        self.reader.push(bytes);
    }

    /// The next message, and what to do about it; `None` until more bytes have come.
    ///
    /// # Errors
    ///
    /// After an error the conversation has no meaning any more and the link is to be closed.
    pub fn next_step(
        &mut self,
        now: Now,
        config: &Config,
        writers: &Writers,
    ) -> Result<Option<Step>, PeerError> {
        let Some(frame) = self.reader.next_frame()? else {
            return Ok(None);
        };
        let size = frame.payload.len();
        let message = Message::decode(frame)?;
        self.receive(now, config, writers, message, size).map(Some)
    }

    fn receive(
        &mut self,
        now: Now,
        config: &Config,
        writers: &Writers,
        message: Message,
        size: usize,
    ) -> Result<Step, PeerError> {
        if self.incoming.as_ref().is_some_and(|round| round.is_mute) && message.is_of_round() {
            self.consumed += match &message {
                Message::Records(_) => size as u64,
                Message::Fragment { bytes, .. } => bytes.len() as u64,
                _ => 0,
            };
            return Ok(Step::Nothing);
        }
        match message {
            Message::Hello(_) if self.hello.is_some() => Err(Misbehavior::SecondHello.into()),
            Message::Hello(hello) => {
                check_hello(&hello, config)?;
                self.out.bind(hello.instance);
                self.hello = Some(hello);
                Ok(Step::Greet)
            }
            Message::Busy { retry_ms } => Ok(Step::Busy(retry_ms)),
            Message::Bye => Ok(Step::Bye),
            _ if self.hello.is_none() => Err(Misbehavior::NoHello.into()),

            Message::Writers(descriptors) => Ok(Step::Describe(descriptors)),
            Message::Addresses(addresses) => Ok(Step::Learn(addresses)),
            Message::Clock { heads, asks, more } => {
                self.update_theirs(&heads)?;
                if more {
                    return Ok(Step::Nothing);
                }
                self.news_us = now.steady_us;
                let chains = std::mem::take(&mut self.chains);
                if !chains.is_empty() && !writers.unfold(Arc::make_mut(&mut self.theirs), &chains) {
                    // Nothing of this round can be taken: what its sender knows is not known.
                    let mut round = Incoming::new(Arc::default());
                    round.is_mute = true;
                    self.incoming = Some(round);
                    self.say(&Message::TellAll);
                    return Ok(Step::Nothing);
                }
                let mut round = Incoming::new(Arc::clone(&self.theirs));
                round.refused = self.heals_elsewhere && !is_planted(Mistake::HealBesideOthers);
                self.incoming = Some(round);
                self.hear();
                Ok(if asks { Step::Answer } else { Step::Nothing })
            }
            Message::Applied(applied) => self.confirm(applied),
            Message::Records(records) => {
                self.consumed += size as u64;
                self.take_records(now, config, records, size)
            }
            Message::Fragment { bytes, last } => self.take_fragment(now, config, &bytes, last),
            Message::Claim { unclaimed } => self.end_incoming(now, End::Claim(unclaimed)),
            Message::Yield { unserved: true, .. } => self.end_incoming(now, End::Unserved),
            Message::Yield { whole, .. } => self.end_incoming(now, End::Yield(whole)),

            Message::Chains(chains) => {
                self.chains.extend(chains);
                if self.chains.len() > CLOCK_WRITERS_MAX {
                    return Err(Misbehavior::OversizedClock.into());
                }
                Ok(Step::Nothing)
            }
            Message::TellAll if self.has_asked_all => Err(Misbehavior::OutOfOrder.into()),
            Message::TellAll => {
                self.has_asked_all = true;
                Ok(if self.tell_all_next() {
                    Step::TellAll
                } else {
                    Step::Nothing
                })
            }
            Message::Cluster(news) => self.take_cluster(news),
            Message::Floor { heads, more } => {
                let floor = Arc::make_mut(&mut self.their_floor);
                heads.update(floor);
                if !more && !writers.unfold(floor, &std::mem::take(&mut self.chains)) {
                    return Err(Misbehavior::OpenFloor.into());
                }
                self.floor_is_adopted = false;
                check_size(floor)?;
                self.awaits_floor &= more;
                Ok(if more { Step::Nothing } else { Step::Adopt })
            }
            Message::Want(keys) => Ok(Step::Want(keys)),
            Message::Plan(plan) => {
                let round = self.incoming.as_ref().ok_or(Misbehavior::NoRound)?;
                if round.follower.is_some() || !round.records.is_empty() || round.in_parts {
                    return Err(Misbehavior::OutOfOrder.into());
                }
                Ok(Step::Follow(plan))
            }
            Message::Range(range) => {
                let follower = self.follower().ok_or(Misbehavior::OutOfOrder)?;
                follower.take_range(range)?;
                self.news_us = now.steady_us;
                Ok(Step::Look)
            }
            Message::Absent(places) => self.take_absent(now, config, &places),
            Message::Reached(key) => self.take_reached(now, key),
            Message::Start(start) => {
                match (&mut self.outgoing, start) {
                    (Outgoing::Comparing(_, leader), Start::From { start, direct }) => {
                        leader.begin(&start, direct)?;
                    }
                    (Outgoing::Comparing(_, leader), Start::Refused) => leader.refuse(),
                    // An answer to what was given up meanwhile.
                    _ => {}
                }
                Ok(Step::Nothing)
            }
            Message::List(list) => {
                if let Outgoing::Comparing(_, leader) = &mut self.outgoing {
                    leader.take_list(list)?;
                    self.news_us = now.steady_us;
                }
                Ok(Step::Nothing)
            }
        }
    }

    fn take_cluster(&mut self, piece: ClusterNews) -> Result<Step, PeerError> {
        let more = piece.more;
        self.awaits_cluster &= more;
        match &mut self.cluster_news {
            None => self.cluster_news = Some(Box::new(piece)),
            Some(news) => {
                let room = MEMBERS_MAX.saturating_sub(news.members.len());
                news.members.extend(piece.members.into_iter().take(room));
                news.epoch.cut.union(&piece.epoch.cut);
                check_size(&news.epoch.cut)?;
            }
        }
        match self.cluster_news.take_if(|_| !more) {
            Some(news) => Ok(Step::Merge(news)),
            None => Ok(Step::Nothing),
        }
    }

    fn take_absent(
        &mut self,
        now: Now,
        config: &Config,
        places: &[u64],
    ) -> Result<Step, PeerError> {
        let follower = self.follower().ok_or(Misbehavior::OutOfOrder)?;
        let keys = follower.take_absent(places)?;
        // They come as a few bytes each; what counts against the budget is what they take here.
        let bytes = keys.len() * size_of::<(Key, Record)>();
        let records = keys
            .into_iter()
            .map(|key| (key, Record::default()))
            .collect();
        self.take_records(now, config, records, bytes)
            .map(|step| match step {
                Step::Nothing => Step::Look,
                step => step,
            })
    }

    /// The leader tells how far everything has been compared. What has come and is not applied yet must
    /// not be passed by: it would be lost with this process.
    fn take_reached(&mut self, now: Now, key: Key) -> Result<Step, PeerError> {
        self.news_us = now.steady_us;
        let round = self.incoming.as_mut().ok_or(Misbehavior::NoRound)?;
        let heals = (round.follower.as_ref()).is_some_and(|it| it.purpose() == Purpose::Heal);
        let follows = (round.reached.as_ref()).map_or(!key.is_empty(), |before| key > *before);
        if (!heals && !round.refused) || !follows {
            return Err(Misbehavior::OutOfOrder.into());
        }
        if !round.records.is_empty() {
            return Ok(Step::Nothing);
        }
        round.reached = Some(key);
        round.reached_since += 1;
        if round.reached_since < REACHED_PER_COMMIT || round.refused {
            return Ok(Step::Nothing);
        }
        Ok(Step::Apply(round.take(), None))
    }

    fn update_theirs(&mut self, heads: &Heads) -> Result<(), Misbehavior> {
        if heads.0.is_empty() {
            return Ok(());
        }
        let ranges = |clock: &Clock| -> usize {
            let known = heads.0.iter().filter_map(|head| clock.get(head.writer));
            known.map(Known::ahead_len).sum()
        };
        let before = ranges(&self.theirs);
        let theirs = Arc::make_mut(&mut self.theirs);
        heads.update(theirs);
        self.theirs_ranges = (self.theirs_ranges + ranges(theirs)).saturating_sub(before);
        if self.theirs_ranges > CLOCK_RANGES_MAX || theirs.len() > CLOCK_WRITERS_MAX {
            return Err(Misbehavior::OversizedClock);
        }
        Ok(())
    }

    /// Notes what the peer knows without its having to tell.
    pub fn know(&mut self, theirs: Arc<Clock>) {
        self.theirs_ranges = theirs.iter().map(|(_, known)| known.ahead_len()).sum();
        self.theirs = theirs;
        self.hear();
    }

    /// The peer told its clock, so a round that waited for it can go on.
    fn hear(&mut self) {
        self.heard = true;
        if let Some(exchange) = &mut self.exchange
            && exchange.source == Source::Anything
        {
            let theirs = &self.theirs;
            exchange.theirs.get_or_insert_with(|| Arc::clone(theirs));
        }
    }

    fn confirm(&mut self, applied: Applied) -> Result<Step, PeerError> {
        self.update_theirs(&applied.heads)?;
        if applied.consumed < self.granted || applied.consumed > self.sent {
            return Err(Misbehavior::NothingToConfirm.into());
        }
        self.granted = applied.consumed;
        if applied.answers {
            if let Outgoing::Asked(round) = &mut self.outgoing {
                round.asks = false;
            }
            if let Some(exchange) = &mut self.exchange
                && exchange.source == Source::Answer
            {
                let theirs = &self.theirs;
                exchange.theirs.get_or_insert_with(|| Arc::clone(theirs));
            }
            self.hear();
        }
        let did_heal = std::mem::replace(&mut self.peer_heals, applied.heals);
        if did_heal && !applied.heals {
            self.offer_us = Some(0);
            self.owes_claim = true;
        }
        if applied.heals {
            // What ends now was not taken.
            self.claimed = Arc::default();
            self.owes_claim = true;
        }
        if applied.ends {
            if !matches!(self.outgoing, Outgoing::Ended) {
                return Err(Misbehavior::NothingToConfirm.into());
            }
            self.outgoing = Outgoing::Idle;
        }
        Ok(Step::Nothing)
    }

    fn take_records(
        &mut self,
        now: Now,
        config: &Config,
        records: Vec<(Key, Record)>,
        bytes: usize,
    ) -> Result<Step, PeerError> {
        self.news_us = now.steady_us;
        self.moved.1 += records.len() as u64;
        let round = self.incoming.as_mut().ok_or(Misbehavior::NoRound)?;
        let mut dots = records.iter().flat_map(|(_, record)| &record.live);
        if dots.any(|version| !round.context.contains(version.dot)) {
            return Err(Misbehavior::UnknownDot.into());
        }
        if round.refused {
            return Ok(Step::Nothing);
        }
        if let Some(follower) = &mut round.follower {
            follower.note_records(&records);
            if follower.purpose() == Purpose::Scrub {
                return Ok(Step::Differ(records));
            }
        }
        round.bytes += records.iter().map(|(key, _)| key.len() / 8).sum::<usize>();
        round.records.extend(records);
        round.bytes += bytes;
        round.in_parts |= round.bytes > config.atomic_budget;
        if round.in_parts || is_planted(Mistake::BatchInParts) {
            return Ok(Step::Apply(round.take(), None));
        }
        Ok(Step::Nothing)
    }

    fn take_fragment(
        &mut self,
        now: Now,
        config: &Config,
        bytes: &[u8],
        last: bool,
    ) -> Result<Step, PeerError> {
        let round = self.incoming.as_mut().ok_or(Misbehavior::NoRound)?;
        if round.fragments.len() + bytes.len() > config.record_bytes_max() {
            return Err(Misbehavior::OversizedRecord.into());
        }
        self.consumed += bytes.len() as u64;
        round.fragments.extend_from_slice(bytes);
        if !last {
            return Ok(Step::Nothing);
        }
        let payload = std::mem::take(&mut round.fragments);
        let size = payload.len();
        let records = decode_records(payload.into())?;
        self.take_records(now, config, records, size)
    }

    fn end_incoming(&mut self, now: Now, end: End) -> Result<Step, PeerError> {
        self.news_us = now.steady_us;
        let round = self.incoming.as_mut().ok_or(Misbehavior::NoRound)?;
        if !round.fragments.is_empty() {
            return Err(Misbehavior::NoRound.into());
        }
        // What was applied in parts was not whole while it came, and what was passed over is missing.
        if round.refused {
            return Ok(Step::Apply(Vec::new(), Some(End::Yield(None))));
        }
        if let Some(follower) = &round.follower
            && !follower.is_settled()
            && matches!(end, End::Claim(_))
        {
            return Err(Misbehavior::OutOfOrder.into());
        }
        let end = match end {
            End::Claim(_) if round.passed_over && !is_planted(Mistake::ClaimOverDamage) => {
                End::Yield(None)
            }
            End::Yield(_) if round.in_parts => End::Yield(None),
            end => end,
        };
        Ok(Step::Apply(round.take(), Some(end)))
    }

    /// The clock of the peer's round, if nothing has come of it yet.
    pub fn untaken_context(&self) -> Option<Arc<Clock>> {
        let round = self.incoming.as_ref()?;
        let is_untaken = !round.refused && round.follower.is_none() && !round.in_parts;
        is_untaken.then(|| Arc::clone(&round.context))
    }

    /// Nothing of the peer's round is taken.
    pub fn refuse_incoming(&mut self) {
        if let Some(round) = &mut self.incoming {
            round.refused = true;
            round.take();
        }
    }

    /// The clock of the peer's round.
    pub fn context(&self) -> Option<Arc<Clock>> {
        if is_planted(Mistake::ClaimOfNow) && self.incoming.is_some() {
            return Some(Arc::clone(&self.theirs));
        }
        self.incoming
            .as_ref()
            .map(|round| Arc::clone(&round.context))
    }

    /// A record of the peer's round could not be taken.
    pub fn pass_over(&mut self) {
        if let Some(round) = &mut self.incoming {
            round.passed_over = true;
        }
    }

    /// Whether the peer's round is a heal, with the floor that it makes known.
    pub fn healing_floor(&self) -> Option<Arc<Clock>> {
        let follower = self.incoming.as_ref()?.follower.as_ref()?;
        (follower.purpose() == Purpose::Heal).then(|| follower.floor())
    }

    /// Before which key everything of the peer's heal is here, as far as it has told.
    pub fn reached(&self) -> Option<Key> {
        let round = self.incoming.as_ref()?;
        round.reached.clone().filter(|_| !round.passed_over)
    }

    /// Whether so much of the peer's round was applied that the storage should let go of some.
    pub fn is_relief_due(&mut self) -> bool {
        let Some(round) = &mut self.incoming else {
            return false;
        };
        let is_due = round.bytes >= round.relieved_at;
        if is_due {
            round.relieved_at = round.bytes + RELIEVE_BYTES;
        }
        is_due
    }

    /// Whether the peer's round is a heal that goes on where an earlier one was cut.
    pub fn is_resumed(&self) -> bool {
        let follower = (self.incoming.as_ref()).and_then(|round| round.follower.as_ref());
        follower.is_some_and(|follower| follower.is_resumed())
    }

    /// The peer's round is over; answers whether a record of it was passed over.
    pub fn close_incoming(&mut self) -> bool {
        self.incoming.take().is_some_and(|round| round.passed_over)
    }

    /// What came of a round that was cut and is worth keeping.
    ///
    /// Less than a frame is cheaper to fetch again than to show half a batch to readers.
    pub fn take_cut_round(&mut self, least_bytes: usize) -> Option<CutRound> {
        let mut round = self.incoming.take()?;
        let worth = round.in_parts || round.bytes >= least_bytes;
        let records = round.take();
        (worth && !records.is_empty()).then_some((records, round.context))
    }

    /// Whether a round of ours may begin now, or from when on it may, in steady microseconds.
    pub fn due(&self) -> Option<u64> {
        if !self.heard || !matches!(self.outgoing, Outgoing::Idle) || self.peer_heals {
            return None;
        }
        let wanted = self.wants_exchange && self.exchange.is_none() && !self.heals_elsewhere;
        let asked = !self.wanted_keys.is_empty() || self.scrub.is_some();
        if self.push || wanted || asked {
            Some(0)
        } else {
            self.offer_us
        }
    }

    /// When something must happen on this link though nothing comes, in steady microseconds.
    pub fn deadline(&self, config: &Config) -> u64 {
        if let Outgoing::Streaming(..) = self.outgoing
            && self.has_window(config)
        {
            return 0;
        }
        if let Outgoing::Comparing(_, leader) = &self.outgoing
            && leader.is_ready()
            && self.has_window(config)
        {
            return 0;
        }
        if self.hello.is_none() {
            return self.started_us.saturating_add(micros(config.hello_timeout));
        }
        if let Some(due) = self.due() {
            return due;
        }
        if self.awaits_peer() {
            let stalled = self
                .silent_since()
                .saturating_add(micros(config.stall_timeout));
            stalled.min(self.round_ends_us(config))
        } else {
            self.news_us.saturating_add(micros(config.linger))
        }
    }

    /// When the snapshot of our round must be let go, in steady microseconds.
    pub fn round_ends_us(&self, config: &Config) -> u64 {
        match &self.outgoing {
            Outgoing::Streaming(round, _) => {
                round.started_us.saturating_add(micros(config.round_time))
            }
            _ => u64::MAX,
        }
    }

    /// Makes an offer due at a time, or earlier if it was.
    pub fn offer_by(&mut self, due_us: u64) {
        self.offer_us = Some(self.offer_us.map_or(due_us, |before| before.min(due_us)));
    }

    /// The error of a peer that has owed something for too long.
    pub fn stall(&self, now: Now, config: &Config) -> Option<PeerError> {
        let (since, limit) = if self.hello.is_none() {
            (self.started_us, config.hello_timeout)
        } else if self.awaits_peer() {
            (self.silent_since(), config.stall_timeout)
        } else {
            return None;
        };
        let silent = now.steady_us.saturating_sub(since);
        (silent >= micros(limit)).then_some(PeerError::Stalled { ms: silent / 1_000 })
    }

    /// Whether there was no news for so long that the link may close.
    pub fn has_lingered(&self, now: Now, config: &Config) -> bool {
        self.hello.is_some()
            && !self.awaits_peer()
            && self.due().is_none()
            && now.steady_us.saturating_sub(self.news_us) >= micros(config.linger)
    }

    /// When the link was made, in steady microseconds.
    pub fn started_us(&self) -> u64 {
        self.started_us
    }

    /// Whether nothing is half said: the link can be left without loss.
    pub fn is_quiet(&self) -> bool {
        self.hello.is_some() && !self.awaits_peer()
    }

    /// Notes since when the peer owes us something, if it does.
    pub fn note_awaiting(&mut self, now: Now) {
        if !self.awaits_peer() {
            self.awaiting_us = None;
        } else if self.awaiting_us.is_none() {
            self.awaiting_us = Some(now.steady_us);
        }
    }

    /// Since when a peer that owes us something has been silent, in steady microseconds. What it did
    /// not say before it owed anything is no silence.
    fn silent_since(&self) -> u64 {
        self.heard_us.max(self.awaiting_us.unwrap_or(0))
    }

    /// Whether the peer owes us something.
    fn awaits_peer(&self) -> bool {
        let is_put_off = self.peer_heals || self.heals_elsewhere;
        !self.heard
            || self.incoming.is_some()
            || (self.exchange.is_some() && !is_put_off)
            || self.awaits_cluster
            || self.awaits_floor
            || !matches!(self.outgoing, Outgoing::Idle)
    }
}

impl Incoming {
    fn new(context: Arc<Clock>) -> Incoming {
        Incoming {
            context,
            records: Vec::new(),
            bytes: 0,
            in_parts: false,
            passed_over: false,
            refused: false,
            is_mute: false,
            follower: None,
            reached: None,
            reached_since: 0,
            relieved_at: RELIEVE_BYTES,
            fragments: Vec::new(),
        }
    }

    fn take(&mut self) -> Vec<(Key, Record)> {
        self.reached_since = 0;
        std::mem::take(&mut self.records)
    }
}

/// Checks that a clock which a peer has told is no larger than a clock may be.
fn check_size(clock: &Clock) -> Result<(), Misbehavior> {
    let ranges: usize = clock.iter().map(|(_, known)| known.ahead_len()).sum();
    if ranges > CLOCK_RANGES_MAX || clock.len() > CLOCK_WRITERS_MAX {
        return Err(Misbehavior::OversizedClock);
    }
    Ok(())
}

fn check_hello(hello: &Hello, config: &Config) -> Result<(), PeerError> {
    let (min, max) = (hello.version_min, hello.version_max);
    if !(min..=max).contains(&WIRE_VERSION) {
        return Err(PeerError::Incompatible { min, max });
    }
    if hello.cluster != config.cluster {
        return Err(PeerError::WrongCluster {
            theirs: hello.cluster.clone(),
            ours: config.cluster.clone(),
        });
    }
    Ok(())
}
