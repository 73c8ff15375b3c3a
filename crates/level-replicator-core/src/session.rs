//! One conversation with a peer, over one link, both ways at once.
//!
//! A session knows what was said and what may be said next. It decides and touches nothing: the
//! replica reads, applies and sends. Each side sends in *rounds*: `Clock`, then records of one
//! snapshot, then `Claim`; and it takes in the other side's rounds at the same time.

use std::sync::Arc;

use crate::address::Address;
use crate::clock::{Clock, Known, Now, ReplicaId, WriterId, micros};
use crate::codec::DecodeError;
use crate::config::Config;
use crate::delta::{Delta, Piece};
use crate::frame::{FrameError, FrameReader, FrameWriter, WIRE_VERSION};
use crate::limits::{CLOCK_RANGES_MAX, CLOCK_WRITERS_MAX};
use crate::message::{Applied, Heads, Hello, Message, encode_records};
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
}

/// How a round ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Everything of the snapshot was sent, by somebody who may hold half a batch of these writers.
    Claim(Vec<WriterId>),
    /// Something of the snapshot was not sent, but all that one writer wrote, if one is named.
    Yield(Option<WriterId>),
}

/// Our round, as far as it has come.
pub enum Outgoing {
    /// No round.
    Idle,
    /// The clock was sent; the peer's is awaited.
    Asked(Round),
    /// Records are being sent.
    Streaming(Round, Box<Delta>),
    /// The end was sent; its confirmation is awaited.
    Ended,
}

/// One round of ours: a snapshot and the clock that belongs to it.
pub struct Round {
    /// The tables.
    pub snapshot: Arc<dyn Snapshot>,
    /// What they know.
    pub clock: Arc<Clock>,
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
    /// What we said first, and the clock at that time.
    pub greeting: Option<(Hello, Arc<Clock>)>,
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
    pub fn say_clock(&mut self, clock: &Arc<Clock>, asks: bool) {
        let pieces = Heads::changed(clock, &self.told);
        let last = pieces.len() - 1;
        for (index, heads) in pieces.into_iter().enumerate() {
            let more = index < last;
            self.say(&Message::Clock { heads, asks, more });
        }
        self.told = Clock::clone(clock);
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
            self.say(&Message::Applied(Applied {
                consumed: self.consumed,
                ..Applied::default()
            }));
            self.consumed_told = self.consumed;
            self.granted_us = now.steady_us;
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
    pub fn next_step(&mut self, now: Now, config: &Config) -> Result<Option<Step>, PeerError> {
        let Some(frame) = self.reader.next_frame()? else {
            return Ok(None);
        };
        let size = frame.payload.len();
        let message = Message::decode(frame)?;
        self.receive(now, config, message, size).map(Some)
    }

    fn receive(
        &mut self,
        now: Now,
        config: &Config,
        message: Message,
        size: usize,
    ) -> Result<Step, PeerError> {
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
                self.incoming = Some(Incoming::new(Arc::clone(&self.theirs)));
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
            Message::Yield { whole } => self.end_incoming(now, End::Yield(whole)),
        }
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
        let end = match end {
            End::Claim(_) if round.passed_over && !is_planted(Mistake::ClaimOverDamage) => {
                End::Yield(None)
            }
            End::Yield(_) if round.in_parts => End::Yield(None),
            end => end,
        };
        Ok(Step::Apply(round.take(), Some(end)))
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

    /// The peer's round is over.
    pub fn close_incoming(&mut self) {
        self.incoming = None;
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
        if !self.heard || !matches!(self.outgoing, Outgoing::Idle) {
            return None;
        }
        let wanted = self.wants_exchange && self.exchange.is_none();
        if self.push || wanted {
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
        !self.heard
            || self.incoming.is_some()
            || self.exchange.is_some()
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
            fragments: Vec::new(),
        }
    }

    fn take(&mut self) -> Vec<(Key, Record)> {
        std::mem::take(&mut self.records)
    }
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
