//! The replica: one state machine that is told what happened and answers with what to do.
//!
//! It is given the time with every call and asks for nothing, so a run can be repeated from its
//! inputs. Whoever drives it calls [`Replica::handle_input`], takes every [`Output`] from
//! [`Replica::poll_output`], and calls again at [`Replica::next_timeout`] at the latest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::address::Address;
use crate::clock::{Clock, Dot, Now, ReplicaId, WriterId, micros};
use crate::config::Config;
use crate::delta::Delta;
use crate::event::{Discovery, Event, Origin, Peer};
use crate::frame::WIRE_VERSION;
use crate::limits::{
    ADDRESSES_PER_MESSAGE, DESCRIPTORS_PER_MESSAGE, RECORDS_FRAME_TARGET, SKEW_NOTICE_US,
    UNCLAIMED_PER_MESSAGE,
};
use crate::message::{Hello, Message};
use crate::peers::{PeerTable, digest};
use crate::record::{Key, Op, Record};
use crate::scheduler::WriteVelocity;
use crate::session::{
    End, Exchange, LinkId, Misbehavior, Outgoing, PeerError, Round, Session, Step,
};
use crate::state::{Changed, Reach, State, StateError, Written};
use crate::storage::Storage;
use crate::writers::{Descriptor, DescriptorError, Writers};

/// Clusters up to this size talk to all their peers at once.
const SMALL_CLUSTER: usize = 8;

/// Longest time for which a busy peer may put us off.
const BUSY_MAX: Duration = Duration::from_secs(60);

/// What happened outside.
#[derive(Debug)]
pub enum Input {
    /// The link that [`Output::Connect`] asked for is made.
    Connected(LinkId),
    /// It could not be made.
    ConnectFailed(LinkId, PeerError),
    /// Bytes came over a link.
    Received(LinkId, Bytes),
    /// A link was closed by the other side, or broke.
    Closed(LinkId, Option<PeerError>),
    /// An address was found.
    Discovered(Address, Discovery),
    /// Time has passed.
    Timeout,
}

/// What is to be done outside.
#[derive(Debug)]
pub enum Output {
    /// Make a link to an address, and say how it went.
    Connect(LinkId, Address),
    /// Send bytes over a link.
    Send(LinkId, Bytes),
    /// Send what is left for a link, and close it. No word about it is needed.
    Close(LinkId),
    /// Tell the program.
    Event(Event),
}

/// How far the attempt to meet somebody before the first write has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstSync {
    /// It goes on.
    Waiting,
    /// It is over: somebody was met, or nobody can be.
    Settled,
}

/// Names a call of [`Replica::request_sync`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SyncId(u64);

struct SyncRequest {
    since_us: u64,
    waiting: BTreeSet<Address>,
    failed: BTreeSet<Address>,
}

/// What was said and heard since the open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Conversations in which both sides said hello.
    pub conversations: u64,
    /// Bytes sent, before encryption.
    pub sent_bytes: u64,
    /// Bytes received, after decryption.
    pub received_bytes: u64,
    /// Records sent.
    pub sent_records: u64,
    /// Records received.
    pub received_records: u64,
}

/// A replica.
pub struct Replica {
    state: State,
    config: Config,
    random: fastrand::Rng,
    instance: u64,
    peers: PeerTable,
    dialing: BTreeMap<LinkId, Address>,
    sessions: BTreeMap<LinkId, Session>,
    velocity: WriteVelocity,
    outputs: VecDeque<Output>,
    next_link: u64,
    next_sync: u64,
    syncs: BTreeMap<SyncId, SyncRequest>,
    traffic: Traffic,
    paused: bool,
    met_somebody: bool,
    /// When something was last applied, in steady microseconds.
    progress_us: u64,
}

impl Replica {
    /// Opens the replica that a storage holds. `seed` is the source of all chance, names included.
    pub fn open(
        storage: Arc<dyn Storage>,
        config: Config,
        seed: u64,
        now: Now,
    ) -> Result<Replica, StateError> {
        let mut random = fastrand::Rng::with_seed(seed);
        let state = State::open(storage, random.u128(..).to_be_bytes())?;
        Ok(Replica {
            state,
            config,
            instance: random.u64(..),
            random,
            peers: PeerTable::default(),
            dialing: BTreeMap::new(),
            sessions: BTreeMap::new(),
            velocity: WriteVelocity::default(),
            outputs: VecDeque::new(),
            next_link: 1,
            next_sync: 1,
            syncs: BTreeMap::new(),
            traffic: Traffic::default(),
            paused: false,
            met_somebody: false,
            progress_us: now.steady_us,
        })
    }

    /// What the replica holds.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What the replica holds, for closing it and for its tally.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tells where peers can reach this replica, once that is known.
    pub fn set_advertised(&mut self, address: Option<Address>) {
        self.config.advertised = address;
    }

    /// The addresses known.
    pub fn peers(&self) -> &PeerTable {
        &self.peers
    }

    /// The conversations that run.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> + '_ {
        self.sessions.values()
    }

    /// What was said and heard since the open.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// A random number of this process.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// Local writes per second, recent ones weighing more.
    pub fn writes_per_second(&self, now: Now) -> f64 {
        self.velocity.per_second(now)
    }

    /// Whether anybody is there who would want to hear of a write.
    pub fn has_company(&self) -> bool {
        !self.sessions.is_empty() || self.peers.iter().next().is_some()
    }

    /// Writes operations as one; see [`State::write`]. Conversations learn of it at the next
    /// [`Input::Timeout`], which is then due at once.
    pub fn write(&mut self, now: Now, ops: &[Op]) -> Result<Written, StateError> {
        let writer = self.random.u64(..);
        let mut written = self.state.write(now, ops, writer)?;
        if written.last.is_none() {
            return Ok(written);
        }
        self.velocity.record_writes(now, ops.len() as u64);
        self.tell_changes(std::mem::take(&mut written.changed), Origin::Local);
        for session in self.sessions.values_mut() {
            session.push = true;
        }
        let spacing = micros(self.config.min_interval);
        for (_, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.failures == 0) {
            let soonest = now.steady_us.max(peer.ended_us + spacing);
            peer.due_us = peer.due_us.min(soonest);
        }
        Ok(written)
    }

    /// A peer reached us: names the link, or refuses it.
    pub fn accept(&mut self, now: Now, remote: Address) -> Option<LinkId> {
        if self.paused {
            return None;
        }
        let link = self.new_link();
        let full = self.sessions.len() >= self.config.links_max;
        let mut session = Session::new(link, None, remote, now);
        if full {
            session.say(&Message::Busy { retry_ms: 1_000 });
            self.flush(&mut session);
            self.outputs.push_back(Output::Close(link));
            return Some(link);
        }
        self.greet(&mut session);
        self.flush(&mut session);
        self.sessions.insert(link, session);
        Some(link)
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        match input {
            Input::Connected(link) => self.connected(now, link),
            Input::ConnectFailed(link, error) => {
                if let Some(address) = self.dialing.remove(&link) {
                    self.peer_failed(now, link, &address, error);
                }
            }
            Input::Received(link, bytes) => self.received(now, link, &bytes),
            Input::Closed(link, error) => self.link_closed(now, link, error),
            Input::Discovered(address, by) => self.discovered(now, address, by),
            Input::Timeout => self.advance_all(now),
        }
        self.dial_due_peers(now);
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether something is to be done.
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// When [`Input::Timeout`] is due at the latest, in steady microseconds; it may be past.
    pub fn next_timeout(&self) -> Option<u64> {
        let sessions = self
            .sessions
            .values()
            .map(|session| session.deadline(&self.config));
        let peers = self.peers.iter().filter(|(_, peer)| peer.link.is_none());
        let dials = (!self.paused && self.has_room_to_dial())
            .then(|| peers.map(|(_, peer)| peer.due_us).min())
            .flatten();
        let claims = self.state.is_catching_up();
        let claims = claims.then(|| self.progress_us + micros(self.config.promote_timeout));
        sessions.chain(dials).chain(claims).min()
    }

    /// Adds an address to dial.
    pub fn add_peer(&mut self, now: Now, address: Address) {
        self.discovered(now, address, Discovery::Named);
    }

    /// Removes an address, and ends the conversation with it.
    pub fn remove_peer(&mut self, now: Now, address: &Address) {
        let at_address = |session: &&Session| session.home.as_ref() == Some(address);
        let links: Vec<LinkId> = self
            .sessions
            .values()
            .filter(at_address)
            .map(|session| session.link)
            .collect();
        for link in links {
            self.leave(now, link);
        }
        let outputs = &mut self.outputs;
        self.dialing.retain(|&link, dialed| {
            let stays = dialed != address;
            if !stays {
                outputs.push_back(Output::Close(link));
            }
            stays
        });
        self.peers.forget(address);
        for sync in self.syncs.values_mut() {
            sync.waiting.remove(address);
        }
    }

    /// Ends every conversation and accepts and begins none, until [`Replica::resume`].
    pub fn pause(&mut self, now: Now) {
        self.paused = true;
        let links: Vec<LinkId> = self.sessions.keys().copied().collect();
        for link in links {
            self.leave(now, link);
        }
        for (link, address) in std::mem::take(&mut self.dialing) {
            self.outputs.push_back(Output::Close(link));
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.link = None;
            }
        }
    }

    /// Talks again.
    pub fn resume(&mut self, now: Now) {
        self.paused = false;
        self.call_everybody(now);
    }

    /// Whether conversations are off.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether the first write should still wait for a conversation.
    ///
    /// Settled once an exchange is complete; and as soon as that cannot be expected: conversations
    /// are off or nobody is known, or everybody who is known has refused.
    pub fn first_sync(&self) -> FirstSync {
        let hopeful = self.peers.iter().any(|(_, peer)| peer.failures == 0);
        let waiting = !self.met_somebody
            && !self.paused
            && !self.config.first_sync_timeout.is_zero()
            && (hopeful || !self.sessions.is_empty());
        if waiting {
            FirstSync::Waiting
        } else {
            FirstSync::Settled
        }
    }

    /// Asks for one complete exchange with every known peer; see [`Replica::sync_result`].
    pub fn request_sync(&mut self, now: Now) -> SyncId {
        let id = SyncId(self.next_sync);
        self.next_sync += 1;
        let mut request = SyncRequest {
            since_us: now.steady_us,
            waiting: BTreeSet::new(),
            failed: BTreeSet::new(),
        };
        for (address, _) in self.peers.iter() {
            request.waiting.insert(address.clone());
        }
        if self.paused {
            request.failed.append(&mut request.waiting);
        }
        self.syncs.insert(id, request);
        for session in self.sessions.values_mut() {
            session.wants_exchange = true;
        }
        self.call_everybody(now);
        id
    }

    /// The addresses that a finished request did not reach; `None` while it runs. It is told once.
    pub fn sync_result(&mut self, id: SyncId) -> Option<Vec<Address>> {
        let request = self.syncs.get(&id)?;
        if !request.waiting.is_empty() {
            return None;
        }
        let request = self.syncs.remove(&id)?;
        Some(request.failed.into_iter().collect())
    }

    /// Gives up a request: the addresses that it has not reached so far.
    pub fn abandon_sync(&mut self, id: SyncId) -> Vec<Address> {
        let request = self.syncs.remove(&id);
        let request = request.into_iter();
        request
            .flat_map(|request| request.waiting.into_iter().chain(request.failed))
            .collect()
    }

    /// How many other replicas know a write and all before it of its writer, as last heard on the
    /// links that are open.
    pub fn replicated(&self, dot: Dot) -> usize {
        let knows = self.sessions.values().filter(|session| {
            let known = session.theirs.get(dot.writer);
            known.is_some_and(|known| known.base() >= dot.seq)
        });
        let others = knows.filter_map(Session::replica);
        let mut others: BTreeSet<ReplicaId> = others.collect();
        others.remove(&self.state.replica());
        others.len()
    }

    /// Makes every peer that has not failed due now.
    pub fn call_reachable(&mut self, now: Now) {
        for (_, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.failures == 0) {
            peer.due_us = peer.due_us.min(now.steady_us);
        }
    }

    /// Makes every peer due now.
    pub fn call_everybody(&mut self, now: Now) {
        for (_, peer) in self.peers.iter_mut() {
            peer.due_us = peer.due_us.min(now.steady_us);
        }
    }

    fn new_link(&mut self) -> LinkId {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        link
    }

    fn connected(&mut self, now: Now, link: LinkId) {
        let Some(address) = self.dialing.remove(&link) else {
            self.outputs.push_back(Output::Close(link));
            return;
        };
        let mut session = Session::new(link, Some(address.clone()), address, now);
        self.greet(&mut session);
        self.flush(&mut session);
        self.sessions.insert(link, session);
    }

    fn received(&mut self, now: Now, link: LinkId, bytes: &[u8]) {
        let Some(mut session) = self.sessions.remove(&link) else {
            return;
        };
        self.traffic.received_bytes += bytes.len() as u64;
        session.push_bytes(now, bytes);
        match self.converse(now, &mut session) {
            Ok(true) => {
                self.flush(&mut session);
                self.sessions.insert(link, session);
            }
            Ok(false) => self.end_session(now, session, None),
            Err(error) => self.end_session(now, session, Some(error)),
        }
    }

    /// Does what the peer's messages ask for; answers whether the conversation goes on.
    fn converse(&mut self, now: Now, session: &mut Session) -> Result<bool, PeerError> {
        while let Some(step) = session.next_step(now, &self.config)? {
            match step {
                Step::Nothing => {}
                Step::Greet => {
                    if !self.meet(now, session) {
                        return Ok(false);
                    }
                }
                Step::Describe(descriptors) => self.describe(&descriptors)?,
                Step::Answer => session.say_applied(self.state.clock(), true, false),
                Step::Apply(records, end) => self.apply(now, session, records, end)?,
                Step::Learn(addresses) => {
                    for address in addresses {
                        self.discovered(now, address, Discovery::Peer);
                    }
                }
                Step::Busy(retry_ms) => return Err(PeerError::Busy { retry_ms }),
                Step::Bye => return Ok(false),
            }
        }
        session.grant(&self.config);
        self.advance(now, session)?;
        Ok(true)
    }

    fn greet(&mut self, session: &mut Session) {
        let clock = Arc::clone(self.state.clock());
        let hello = Hello {
            version_min: WIRE_VERSION,
            version_max: WIRE_VERSION,
            cluster: self.config.cluster.clone(),
            replica: self.state.replica(),
            instance: self.instance,
            clock_digest: clock.digest(),
            state_digest: self.state.tally().map(|tally| tally.digest),
            whole: self.state.ghosts() == 0,
            settled: !self.state.is_catching_up(),
            epoch: 0,
            addresses_digest: self.addresses_digest(),
            advertised: self.config.advertised.clone(),
        };
        session.say(&Message::Hello(hello.clone()));
        session.greeting = Some((hello, clock));
    }

    /// The peer has said who it is; answers whether the conversation goes on.
    fn meet(&mut self, now: Now, session: &mut Session) -> bool {
        let Some(hello) = session.hello.clone() else {
            return false;
        };
        if hello.instance == self.instance && hello.replica == self.state.replica() {
            if let Some(dialed) = &session.dialed
                && let Some(peer) = self.peers.get_mut(dialed)
            {
                peer.is_self = true;
                for request in self.syncs.values_mut() {
                    request.waiting.remove(dialed);
                }
            }
            session.say(&Message::Bye);
            return false;
        }
        self.remember(now, session, &hello);
        if !self.keep_one_link(now, session, &hello) {
            session.say(&Message::Bye);
            return false;
        }

        let peer = Peer {
            replica: hello.replica,
            address: session.remote.clone(),
        };
        let event = match session.dialed {
            Some(_) => Event::Connect { peer: peer.clone() },
            None => Event::Connection { peer: peer.clone() },
        };
        self.outputs.push_back(Output::Event(event));
        self.traffic.conversations += 1;
        if hello.addresses_digest != self.addresses_digest() {
            let mut addresses = self.known_addresses();
            addresses.truncate(ADDRESSES_PER_MESSAGE);
            session.say(&Message::Addresses(addresses));
        }

        session.exchange = Some(Exchange {
            since_us: now.steady_us,
            mine: Arc::clone(self.state.clock()),
            theirs: None,
        });
        // Both sides compare the same two hellos, so both come to the same end.
        let Some((ours, clock)) = session.greeting.clone() else {
            return false;
        };
        let equal = ours.clock_digest == hello.clock_digest;
        if equal && ours.settled && hello.settled {
            let digests = ours.state_digest.zip(hello.state_digest);
            if ours.whole && hello.whole && digests.is_some_and(|(ours, theirs)| ours != theirs) {
                self.outputs
                    .push_back(Output::Event(Event::Divergence { peer }));
            }
            session.told = Clock::clone(&clock);
            session.know(clock);
            session.push = true;
        } else {
            self.begin_round(now, session, false, None);
        }
        true
    }

    /// Notes who lives at which address.
    fn remember(&mut self, now: Now, session: &mut Session, hello: &Hello) {
        if session.dialed.is_none()
            && let Some(advertised) = &hello.advertised
        {
            let home = if advertised.is_unspecified() {
                advertised.with_host_of(&session.remote)
            } else {
                advertised.clone()
            };
            self.discovered(now, home.clone(), Discovery::Peer);
            session.home = Some(home);
        }
        let home = session.home.as_ref();
        if let Some(peer) = home.and_then(|home| self.peers.get_mut(home)) {
            peer.replica = Some(hello.replica);
            peer.failures = 0;
        }
    }

    /// Lets go of all links but one to the same process; answers whether this one stays.
    ///
    /// When both sides dialed, both keep the link that the one with the lesser name made; names are
    /// compared with the processes' random numbers, for twins of one name. When one
    /// side dialed twice, that side lets go of the later link.
    fn keep_one_link(&mut self, now: Now, session: &Session, hello: &Hello) -> bool {
        let we_dialed = session.dialed.is_some();
        let ours_stays = (self.state.replica(), self.instance) < (hello.replica, hello.instance);
        let same_process = |other: &&Session| {
            other.hello.as_ref().is_some_and(|theirs| {
                theirs.replica == hello.replica && theirs.instance == hello.instance
            })
        };
        let others = self.sessions.values().filter(same_process);
        let others: Vec<_> = others
            .map(|other| (other.link, other.dialed.is_some()))
            .collect();
        for (other, other_dialed) in others {
            if we_dialed == other_dialed {
                if we_dialed {
                    return false;
                }
            } else if we_dialed == ours_stays {
                self.leave(now, other);
            } else {
                return false;
            }
        }
        true
    }

    fn describe(&mut self, descriptors: &[Descriptor]) -> Result<(), PeerError> {
        match self.state.describe(descriptors) {
            Ok(()) => Ok(()),
            Err(StateError::Descriptor(DescriptorError::UnknownParent { .. })) => {
                Err(Misbehavior::UnknownWriter.into())
            }
            Err(StateError::Descriptor(_)) => Err(Misbehavior::ContradictingWriter.into()),
            Err(error) => Err(storage_error(&error)),
        }
    }

    fn apply(
        &mut self,
        now: Now,
        session: &mut Session,
        records: Vec<(Key, Record)>,
        end: Option<End>,
    ) -> Result<(), PeerError> {
        let Some(context) = session.context() else {
            return Err(Misbehavior::NoRound.into());
        };
        let reach = match &end {
            None | Some(End::Yield(None)) => Reach::Part,
            Some(End::Yield(Some(writer))) => Reach::Writer(*writer),
            Some(End::Claim(unclaimed)) => Reach::Snapshot(unclaimed),
        };
        let claim = matches!(reach, Reach::Snapshot(_));
        self.traffic.received_records += records.len() as u64;
        let news = !records.is_empty() || (claim && !self.state.clock().covers(&context));
        if news {
            self.check_own_writes(&context)?;
            check_writers(self.state.writers(), &records, claim.then_some(&context))?;
            self.notice_skew(now, session, &records);
        }
        let changed = self
            .state
            .apply(records, &context, reach)
            .map_err(|error| storage_error(&error))?;
        if let Some(replica) = session.replica() {
            self.tell_changes(changed, Origin::Peer(replica));
        }
        if end.is_some() {
            session.close_incoming();
            session.say_applied(self.state.clock(), false, true);
        }
        if news {
            self.progress_us = now.steady_us;
            self.offer_on(now);
        }
        Ok(())
    }

    /// Refuses a clock that knows writes of this process that it has not made. That takes two
    /// processes resumed from one memory image, and mending it is not built yet.
    fn check_own_writes(&self, context: &Clock) -> Result<(), Misbehavior> {
        let Some(writer) = self.state.current_writer() else {
            return Ok(());
        };
        let theirs = context.get(writer);
        if theirs.is_some_and(|known| !self.state.clock().covers_writer(writer, known)) {
            return Err(Misbehavior::UnwrittenDots);
        }
        Ok(())
    }

    /// Lets every other peer hear, a little later, of writes that came from somewhere else.
    fn offer_on(&mut self, now: Now) {
        let due = now.plus(self.config.relay_delay);
        for session in self.sessions.values_mut() {
            session.offer_us = Some(session.offer_us.map_or(due, |before| before.min(due)));
        }
        let clock = self.state.clock();
        for (_, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.failures == 0) {
            if peer.due_us > due && !peer.heard.as_ref().is_some_and(|heard| heard.covers(clock)) {
                peer.due_us = due;
            }
        }
    }

    fn notice_skew(&mut self, now: Now, session: &mut Session, records: &[(Key, Record)]) {
        let stamps = records.iter().filter_map(|(_, record)| record.last_stamp());
        let latest = stamps.max().map_or(0, |stamp| stamp.as_micros());
        let ahead = latest.saturating_sub(now.wall_us);
        if ahead <= SKEW_NOTICE_US || session.skew_told {
            return;
        }
        if let Some(replica) = session.replica() {
            session.skew_told = true;
            let peer = Peer {
                replica,
                address: session.remote.clone(),
            };
            let ahead_ms = ahead / 1_000;
            let event = Event::ClockSkew { peer, ahead_ms };
            self.outputs.push_back(Output::Event(event));
        }
    }

    fn tell_changes(&mut self, changed: Vec<Changed>, origin: Origin) {
        for change in changed {
            let key = change.key;
            if change.visible {
                let key = key.clone();
                let event = Event::Change { key, origin };
                self.outputs.push_back(Output::Event(event));
            }
            if change.conflict {
                let event = Event::Conflict { key };
                self.outputs.push_back(Output::Event(event));
            }
        }
    }

    fn advance_all(&mut self, now: Now) {
        let links: Vec<LinkId> = self.sessions.keys().copied().collect();
        for link in links {
            let Some(mut session) = self.sessions.remove(&link) else {
                continue;
            };
            if let Some(stalled) = session.stall(now, &self.config) {
                self.end_session(now, session, Some(stalled));
                continue;
            }
            if let Err(error) = self.advance(now, &mut session) {
                self.end_session(now, session, Some(error));
                continue;
            }
            if session.has_lingered(now, &self.config) {
                session.say(&Message::Bye);
                self.flush(&mut session);
                self.end_session(now, session, None);
                continue;
            }
            self.flush(&mut session);
            self.sessions.insert(link, session);
        }
        let silent = now.steady_us.saturating_sub(self.progress_us);
        if self.state.is_catching_up() && silent >= micros(self.config.promote_timeout) {
            // Nobody makes the claim. What fails here shows at the next commit.
            let _ = self.state.give_up_claims();
            self.progress_us = now.steady_us;
        }
    }

    /// Sends what may be sent now, at most about one frame of records.
    fn advance(&mut self, now: Now, session: &mut Session) -> Result<(), PeerError> {
        self.begin_wanted_exchange(now, session);
        loop {
            match std::mem::replace(&mut session.outgoing, Outgoing::Idle) {
                Outgoing::Asked(round) if session.heard && !round.asks => {
                    self.begin_streaming(session, round);
                }
                Outgoing::Streaming(round, delta) if session.has_window(&self.config) => {
                    if self.stream(now, session, round, delta)? {
                        break;
                    }
                }
                Outgoing::Idle if session.due().is_some_and(|due| due <= now.steady_us) => {
                    self.begin_due_round(now, session);
                }
                waiting => {
                    session.outgoing = waiting;
                    break;
                }
            }
        }
        self.finish_exchange(now, session);
        self.begin_wanted_exchange(now, session);
        Ok(())
    }

    /// Begins the exchange that a call of [`Replica::request_sync`] waits for.
    fn begin_wanted_exchange(&self, now: Now, session: &mut Session) {
        if session.wants_exchange && session.heard && session.exchange.is_none() {
            session.wants_exchange = false;
            session.offer_us = Some(0);
            session.exchange = Some(Exchange {
                since_us: now.steady_us,
                mine: Arc::clone(self.state.clock()),
                theirs: None,
            });
        }
    }

    /// Begins the round that is due: a push of our own writes if there are any, else an offer.
    fn begin_due_round(&mut self, now: Now, session: &mut Session) {
        let clock = self.state.clock();
        let own = self.state.current_writer();
        let own_news = own.filter(|&writer| {
            let known = clock.get(writer);
            known.is_some_and(|known| !session.theirs.covers_writer(writer, known))
        });
        if std::mem::take(&mut session.push) && own_news.is_some() {
            self.begin_round(now, session, false, own_news);
            return;
        }
        let asked = session
            .exchange
            .as_ref()
            .is_some_and(|exchange| exchange.theirs.is_none());
        let due = session.offer_us.is_some_and(|due| due <= now.steady_us);
        if due {
            session.offer_us = None;
            if asked || session.owes_claim || !session.theirs.covers(clock) {
                self.begin_round(now, session, true, None);
            }
        }
    }

    fn begin_round(&mut self, now: Now, session: &mut Session, asks: bool, only: Option<WriterId>) {
        let clock = Arc::clone(self.state.clock());
        session.say_clock(&clock, asks);
        session.outgoing = Outgoing::Asked(Round {
            snapshot: self.state.storage().snapshot(),
            clock,
            writers: Arc::clone(self.state.writers()),
            unclaimed: self.state.unclaimed().take(UNCLAIMED_PER_MESSAGE).collect(),
            asks,
            only,
            started_us: now.steady_us,
        });
    }

    fn begin_streaming(&mut self, session: &mut Session, round: Round) {
        if !round.clock.is_empty() {
            self.say_writers(session, &round.writers);
        }
        let delta = Delta::new(
            Arc::clone(&round.snapshot),
            Arc::clone(&round.writers),
            &round.clock,
            Arc::clone(&session.theirs),
            round.only,
        );
        session.outgoing = Outgoing::Streaming(round, Box::new(delta));
    }

    /// Describes the writers that the peer has not mentioned and was not told of.
    fn say_writers(&mut self, session: &mut Session, writers: &Writers) {
        let untold = writers.iter().skip(session.writers_told);
        let unknown: Vec<Descriptor> = untold
            .filter(|descriptor| session.theirs.get(descriptor.writer).is_none())
            .copied()
            .collect();
        for part in unknown.chunks(DESCRIPTORS_PER_MESSAGE) {
            session.say(&Message::Writers(part.to_vec()));
        }
        session.writers_told = writers.len();
    }

    /// Sends one piece of a round, or its end; answers whether that is enough for now.
    fn stream(
        &mut self,
        now: Now,
        session: &mut Session,
        round: Round,
        mut delta: Box<Delta>,
    ) -> Result<bool, PeerError> {
        let held = now.steady_us.saturating_sub(round.started_us);
        let too_long = held >= micros(self.config.round_time);
        let piece = if too_long {
            None
        } else {
            delta.next_piece().map_err(|error| storage_error(&error))?
        };
        if let Some(piece) = piece {
            session.out.extend_from_slice(&piece.frames);
            session.count_sent(now, piece.bytes, piece.records);
            self.traffic.sent_records += piece.records;
            session.outgoing = Outgoing::Streaming(round, delta);
            return Ok(piece.bytes >= RECORDS_FRAME_TARGET / 2);
        }

        let damage = delta.take_damage();
        let rest_is_known = match round.only {
            None => true,
            Some(only) => (round.clock.iter())
                .filter(|(writer, _)| *writer != only)
                .all(|(writer, known)| session.theirs.covers_writer(writer, known)),
        };
        let complete = damage.is_none() && !too_long;
        session.owes_claim = !(complete && rest_is_known);
        if session.owes_claim {
            let whole = round.only.filter(|_| complete && delta.is_gapless());
            session.say(&Message::Yield { whole });
            let due = now.plus(self.config.relay_delay);
            session.offer_us = Some(session.offer_us.map_or(due, |before| before.min(due)));
        } else {
            let unclaimed = round.unclaimed.clone();
            session.say(&Message::Claim { unclaimed });
        }
        session.outgoing = Outgoing::Ended;
        if let Some(damage) = damage {
            let error = storage_error(&damage);
            self.tell_error(Some(session.remote.clone()), error);
        }
        if too_long {
            session.offer_us = Some(now.steady_us);
        }
        Ok(false)
    }

    /// Sees whether both sides now know what either knew when the exchange began.
    fn finish_exchange(&mut self, now: Now, session: &mut Session) {
        let Some(exchange) = &session.exchange else {
            return;
        };
        let Some(theirs) = &exchange.theirs else {
            return;
        };
        if !session.theirs.covers(&exchange.mine) || !self.state.clock().covers(theirs) {
            return;
        }
        session.exchanged_us = Some(exchange.since_us);
        session.exchange = None;
        self.met_somebody = true;
        self.tell_synced(session);
        if let Some(home) = &session.home
            && let Some(peer) = self.peers.get_mut(home)
        {
            peer.synced_us = Some(now.steady_us);
        }
        let reached = self.addresses_of(session);
        let since = session.exchanged_us;
        for request in self.syncs.values_mut() {
            if since >= Some(request.since_us) {
                request.waiting.retain(|address| !reached.contains(address));
                request.failed.retain(|address| !reached.contains(address));
            }
        }
    }

    fn tell_synced(&mut self, session: &mut Session) {
        if let Some(replica) = session.replica() {
            let (sent, received) = std::mem::take(&mut session.moved);
            let peer = Peer {
                replica,
                address: session.remote.clone(),
            };
            let event = Event::Synced {
                peer,
                sent,
                received,
            };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// All addresses that lead to the peer of a session.
    fn addresses_of(&self, session: &Session) -> BTreeSet<Address> {
        let same = |replica: Option<ReplicaId>| replica.is_some() && replica == session.replica();
        let known = self.peers.iter().filter(|(_, peer)| same(peer.replica));
        let known = known.map(|(address, _)| address.clone());
        known.chain(session.home.clone()).collect()
    }

    fn link_closed(&mut self, now: Now, link: LinkId, error: Option<PeerError>) {
        if let Some(address) = self.dialing.remove(&link) {
            let error = error.unwrap_or(PeerError::Broken {
                reason: "closed before it was made".to_owned(),
            });
            self.peer_failed(now, link, &address, error);
            return;
        }
        let Some(mut session) = self.sessions.remove(&link) else {
            return;
        };
        // What came of a round that was cut can be kept: its dots become holes.
        if let Some((records, context)) = session.take_cut_round(RECORDS_FRAME_TARGET) {
            let known = check_writers(self.state.writers(), &records, None);
            if known.is_ok() && self.state.apply(records, &context, Reach::Part).is_ok() {
                self.offer_on(now);
            }
        }
        let error = error.or_else(|| {
            let cut = session.hello.is_none() || session.exchange.is_some();
            cut.then(|| PeerError::Broken {
                reason: "closed by the peer in the middle".to_owned(),
            })
        });
        self.end_session(now, session, error);
    }

    /// Says goodbye and ends a conversation.
    fn leave(&mut self, now: Now, link: LinkId) {
        if let Some(mut session) = self.sessions.remove(&link) {
            session.say(&Message::Bye);
            self.flush(&mut session);
            self.end_session(now, session, None);
        }
    }

    /// The end of a conversation that was taken out of the table.
    fn end_session(&mut self, now: Now, mut session: Session, error: Option<PeerError>) {
        self.flush(&mut session);
        self.outputs.push_back(Output::Close(session.link));
        if session.moved != (0, 0) && error.is_none() {
            self.tell_synced(&mut session);
        }
        if let Some(error) = error {
            match session.home.clone() {
                Some(home) => self.peer_failed(now, session.link, &home, error),
                None => self.tell_error(Some(session.remote.clone()), error),
            }
            return;
        }
        let jitter = 0.9 + 0.2 * self.random.f64();
        let interval = self.velocity.interval_us(now, &self.config) as f64 * jitter;
        let spacing = micros(self.config.min_interval);
        let clock = self.state.clock();
        let addresses = self.addresses_of(&session);
        for address in addresses {
            if let Some(peer) = self.peers.get_mut(&address) {
                if peer.link == Some(session.link) {
                    peer.link = None;
                }
                let behind = session.heard && !session.theirs.covers(clock);
                let wanted = self
                    .syncs
                    .values()
                    .any(|sync| sync.waiting.contains(&address));
                peer.heard = Some(Arc::clone(&session.theirs));
                peer.ended_us = now.steady_us;
                let pause = if behind || wanted {
                    spacing
                } else {
                    interval as u64
                };
                peer.due_us = now.steady_us + pause;
            }
        }
        // An address that leads to ourselves, or to a peer that left before it said who it is.
        let dialed = session.dialed.as_ref();
        if let Some(peer) = dialed.and_then(|dialed| self.peers.get_mut(dialed))
            && peer.link == Some(session.link)
        {
            peer.link = None;
            peer.due_us = now.steady_us + interval as u64;
        }
    }

    fn peer_failed(&mut self, now: Now, link: LinkId, address: &Address, error: PeerError) {
        let chance = self.random.f64();
        if let Some(peer) = self.peers.get_mut(address)
            && peer.link == Some(link)
        {
            peer.link = None;
        }
        let lost = self.peers.fail(now, address, &self.config, chance);
        if let PeerError::Busy { retry_ms } = error
            && let Some(peer) = self.peers.get_mut(address)
        {
            let retry = Duration::from_millis(retry_ms).min(BUSY_MAX);
            peer.due_us = peer.due_us.max(now.plus(retry));
        }
        for request in self.syncs.values_mut() {
            if request.waiting.remove(address) {
                request.failed.insert(address.clone());
            }
        }
        self.tell_error(Some(address.clone()), error);
        if lost {
            let address = address.clone();
            let event = Event::PeerLost { address };
            self.outputs.push_back(Output::Event(event));
        }
    }

    fn tell_error(&mut self, address: Option<Address>, error: PeerError) {
        let event = Event::Error { address, error };
        self.outputs.push_back(Output::Event(event));
    }

    fn discovered(&mut self, now: Now, address: Address, by: Discovery) {
        if self.config.advertised.as_ref() == Some(&address) {
            return;
        }
        if self.peers.learn(now, address.clone(), by) {
            let event = Event::PeerDiscovered { address, by };
            self.outputs.push_back(Output::Event(event));
        }
    }

    fn known_addresses(&self) -> Vec<Address> {
        let own = self.config.advertised.iter();
        let own = own.filter(|address| address.is_reachable());
        own.chain(self.peers.seen()).cloned().collect()
    }

    fn addresses_digest(&self) -> u64 {
        digest(&self.known_addresses())
    }

    fn has_room_to_dial(&self) -> bool {
        if self.dialing.len() + self.sessions.len() >= self.config.links_max {
            return false;
        }
        if self.peers.iter().count() <= SMALL_CLUSTER {
            return true;
        }
        let dialed = self
            .sessions
            .values()
            .filter(|session| session.dialed.is_some());
        self.dialing.len() + dialed.count() < self.config.fanout
    }

    /// Dials the peers whose time has come: the one synced longest ago first, one in five by chance.
    fn dial_due_peers(&mut self, now: Now) {
        if self.paused {
            return;
        }
        let met: BTreeSet<ReplicaId> = self
            .sessions
            .values()
            .filter_map(Session::replica)
            .collect();
        let interval = self.velocity.interval_us(now, &self.config);
        let mut due: Vec<(Option<u64>, Address)> = Vec::new();
        for (address, peer) in self.peers.iter_mut() {
            if peer.link.is_some() || peer.due_us > now.steady_us {
                continue;
            }
            if peer.replica.is_some_and(|replica| met.contains(&replica)) {
                peer.due_us = now.steady_us + interval;
                continue;
            }
            due.push((peer.synced_us, address.clone()));
        }
        due.sort();
        while !due.is_empty() && self.has_room_to_dial() {
            let by_chance = self.random.usize(..5) == 0;
            let place = if by_chance {
                self.random.usize(..due.len())
            } else {
                0
            };
            let (_, address) = due.remove(place);
            let link = self.new_link();
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.link = Some(link);
            }
            self.dialing.insert(link, address.clone());
            self.outputs.push_back(Output::Connect(link, address));
        }
    }

    fn flush(&mut self, session: &mut Session) {
        if !session.out.is_empty() {
            self.traffic.sent_bytes += session.out.len() as u64;
            let bytes = Bytes::from(std::mem::take(&mut session.out));
            self.outputs.push_back(Output::Send(session.link, bytes));
        }
    }
}

fn storage_error(error: &StateError) -> PeerError {
    PeerError::Storage {
        reason: error.to_string(),
    }
}

/// Checks that every writer that records or a clock name was described.
fn check_writers(
    writers: &Writers,
    records: &[(Key, Record)],
    clock: Option<&Clock>,
) -> Result<(), PeerError> {
    let live = records
        .iter()
        .flat_map(|(_, record)| &record.live)
        .map(|version| version.dot.writer);
    let seen = records
        .iter()
        .flat_map(|(_, record)| record.seen.iter())
        .map(|dot| dot.writer);
    let known = clock
        .into_iter()
        .flat_map(|clock| clock.iter())
        .map(|(writer, _)| writer);
    let mut last = None;
    for writer in live.chain(seen).chain(known) {
        if last != Some(writer) && writers.ord(writer).is_none() {
            return Err(Misbehavior::UnknownWriter.into());
        }
        last = Some(writer);
    }
    Ok(())
}
