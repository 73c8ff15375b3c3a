//! The replica: one state machine that is told what happened and answers with what to do.
//!
//! It is given the time with every call and asks for nothing, so a run can be repeated from its
//! inputs. Whoever drives it calls [`Replica::handle_input`], takes every [`Output`] from
//! [`Replica::poll_output`], and calls again at [`Replica::next_timeout`] at the latest.

mod conversation;
mod expiry;
mod healing;
mod membership;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::conversation::{check_dots, check_writers};
use self::expiry::ExpiryTimes;
use self::healing::Slices;
use self::membership::EpochTimes;
use crate::address::Address;
use crate::clock::{Clock, Dot, Now, ReplicaId, micros};
use crate::config::{ChangeFeed, Config};
use crate::event::{Discovery, Event, Origin, Peer};
use crate::limits::RECORDS_FRAME_TARGET;
use crate::message::Message;
use crate::mistake::{Mistake, is_planted};
use crate::peers::{PeerTable, digest};
use crate::record::{Key, Op, Record};
use crate::scheduler::WriteVelocity;
use crate::session::{LinkId, PeerError, Session};
use crate::state::{Changed, Joined, Reach, State, StateError, Written};
use crate::storage::Storage;

/// Clusters up to this size talk to all their peers at once.
const SMALL_CLUSTER: usize = 8;

/// How long a dialed link stays at least while others wait for their turn.
const TURN_MIN: Duration = Duration::from_millis(100);

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
    /// Everything committed before [`Output::Sync`] would survive a loss of power.
    Synced,
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
    /// Make everything committed so far survive a loss of power, and say [`Input::Synced`].
    Sync,
    /// Sum up all records in the background, for [`State::end_scan`].
    Scan,
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
    /// Links from this one on were begun for it: an older one that fails is tried again.
    since_link: LinkId,
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
    /// Names writers, and nothing else: how often chance decides elsewhere changes no name.
    names: fastrand::Rng,
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
    /// When a catch-up last went on, in steady microseconds.
    progress_us: u64,
    /// The damage that was told last, and until when it is not told again.
    damage_told: Option<(String, u64)>,
    /// Over which link this replica is being healed. Meanwhile it takes records from nobody else.
    healing: Option<LinkId>,
    /// When somebody was last heard of who could make known what is wanted, in steady microseconds.
    healer_us: u64,
    /// Who knows all that is wanted, and yet cannot help: a record here that cannot be read may hold what
    /// they do not know.
    helpless: BTreeSet<ReplicaId>,
    epochs: EpochTimes,
    /// What the ends of our links were called lately, to know a link to ourselves.
    tokens: VecDeque<u64>,
    damaged_keys: BTreeSet<Key>,
    log_is_damaged: bool,
    /// When what is damaged or half done may be mended, in steady microseconds.
    mend_us: u64,
    wants_scan: bool,
    /// When a reclaiming step is due, in steady microseconds.
    reclaim_us: u64,
    expiry: ExpiryTimes,
    /// When a peer last proved that it held the same, in microseconds since 1970.
    agreed_us: Option<u64>,
    slices: Slices,
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
        let mut state = State::open(storage, random.u128(..).to_be_bytes())?;
        if state.members().is_retired(state.replica()) {
            state.rename(random.u128(..).to_be_bytes())?;
        }
        match config.change_feed {
            ChangeFeed::Keep(keep) => state.keep_changes(keep, random.u64(..))?,
            ChangeFeed::Off => state.drop_changes()?,
            ChangeFeed::AsItWas => state.go_on_with_changes(|| random.u64(..))?,
        }
        let rebuilt = state.rebuilt().map(str::to_owned);
        let mut replica = Replica {
            state,
            config,
            instance: random.u64(..),
            names: random.fork(),
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
            damage_told: None,
            healing: None,
            healer_us: now.steady_us,
            helpless: BTreeSet::new(),
            epochs: EpochTimes::new(now),
            tokens: VecDeque::new(),
            damaged_keys: BTreeSet::new(),
            log_is_damaged: false,
            mend_us: now.steady_us,
            wants_scan: false,
            reclaim_us: now.steady_us,
            expiry: ExpiryTimes::new(now),
            agreed_us: None,
            slices: Slices::default(),
        };
        if let Some(damage) = rebuilt {
            let event = Event::Rebuilt { damage };
            replica.outputs.push_back(Output::Event(event));
        }
        replica.wants_scan = replica.state.tally().is_none();
        replica.note_commit(now);
        Ok(replica)
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
        let writer = self.names.u64(..);
        let had_tally = self.state.tally().is_some();
        let mut written = self.state.write(now, ops, writer)?;
        self.wants_scan |= had_tally && self.state.tally().is_none();
        if written.last.is_none() {
            return Ok(written);
        }
        self.note_commit(now);
        if ops.iter().any(|op| self.damaged_keys.contains(op.key())) {
            self.note_mended();
        }
        self.velocity.record_writes(now, ops.len() as u64);
        self.tell_changes(std::mem::take(&mut written.changed), Origin::Local);
        self.note_own_news(now);
        self.plan_expiry(now);
        Ok(written)
    }

    /// Lets everybody hear of own writes at once.
    fn note_own_news(&mut self, now: Now) {
        for session in self.sessions.values_mut() {
            session.push = true;
        }
        let spacing = micros(self.config.min_interval);
        for (_, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.failures == 0) {
            let soonest = now.steady_us.max(peer.ended_us.saturating_add(spacing));
            peer.due_us = peer.due_us.min(soonest);
        }
    }

    /// A peer reached us: names the link, or refuses it.
    pub fn accept(&mut self, now: Now, remote: Address) -> Option<LinkId> {
        if self.paused {
            return None;
        }
        let link = self.new_link();
        let full = self.sessions.len() >= self.config.links_max;
        let mut session = Session::new(link, self.instance, None, remote, now);
        if full {
            session.say(&Message::Busy { retry_ms: 1_000 });
            self.flush(&mut session);
            self.outputs.push_back(Output::Close(link));
            return Some(link);
        }
        self.greet(now, &mut session);
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
            Input::Synced => self.synced(now),
            Input::Timeout => self.advance_all(now),
        }
        self.tend(now);
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
        let claims = self.waits_for_claims().then(|| {
            self.progress_us
                .saturating_add(micros(self.config.promote_timeout))
        });
        let tending = self.next_tending();
        sessions.chain(dials).chain(claims).chain(tending).min()
    }

    /// Adds an address to dial.
    pub fn add_peer(&mut self, now: Now, address: Address) {
        self.discovered(now, address, Discovery::Named);
    }

    /// Removes an address that no source names any more, unless it was named otherwise.
    pub fn remove_source_peer(&mut self, now: Now, address: &Address) {
        let peer = self.peers.get(address);
        if peer.is_some_and(|peer| peer.discovery == Discovery::Source) {
            self.remove_peer(now, address);
        }
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
        for request in self.syncs.values_mut() {
            request.failed.append(&mut request.waiting);
        }
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
            since_link: LinkId(self.next_link),
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

    /// The other replicas that know a write and all before it of its writer, as last heard on the
    /// links that are open.
    pub fn replicated(&self, dot: Dot) -> BTreeSet<ReplicaId> {
        let knows = self.sessions.values().filter(|session| {
            let known = session.theirs.get(dot.writer);
            known.is_some_and(|known| known.base() >= dot.seq)
        });
        let mut others: BTreeSet<ReplicaId> = knows.filter_map(Session::replica).collect();
        others.remove(&self.state.replica());
        others
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
        let mut session = Session::new(link, self.instance, Some(address.clone()), address, now);
        self.greet(now, &mut session);
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

    /// Joins records with what is held here, and notes whether a catch-up went on.
    fn join(
        &mut self,
        now: Now,
        records: Vec<(Key, Record)>,
        context: &Clock,
        reach: Reach<'_>,
    ) -> Result<Joined, StateError> {
        let waiting = self.state.unclaimed_known();
        let joined = self.state.apply(records, context, reach)?;
        self.note_commit(now);
        let has_gone_on = self.state.unclaimed_known() != waiting;
        if has_gone_on {
            self.progress_us = now.steady_us;
        }
        Ok(joined)
    }

    /// Lets every other peer hear, a little later, of writes that came from somewhere else.
    ///
    /// Chance says when exactly, between half the delay and one and a half: who heard of a write at
    /// the same moment would else offer it to a third at the same moment, and send it twice.
    fn offer_on(&mut self, now: Now) {
        let delay = self.config.relay_delay;
        let random = &mut self.random;
        let mut due = || now.plus(delay.mul_f64(0.5 + random.f64()));
        for session in self.sessions.values_mut() {
            session.offer_by(due());
        }
        let clock = self.state.clock();
        for (_, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.failures == 0) {
            let due = due();
            if peer.due_us > due && !peer.heard.as_ref().is_some_and(|heard| heard.covers(clock)) {
                peer.due_us = due;
            }
        }
    }

    fn tell_changes(&mut self, changed: Vec<Changed>, origin: Origin) {
        for change in changed {
            let key = change.key;
            if change.visible {
                let (key, kind) = (key.clone(), change.kind);
                let event = Event::Change { key, origin, kind };
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
        if self.waits_for_claims() && silent >= micros(self.config.promote_timeout) {
            // Nobody makes the claim. What fails here shows at the next commit.
            let _ = self.state.give_up_claims();
            self.progress_us = now.steady_us;
        }
    }

    /// Whether only claims are missing, which may never be made. A heal of which something is not known is missing more.
    fn waits_for_claims(&self) -> bool {
        self.state.is_catching_up() && self.state.clock().covers(self.state.wanted())
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
        let is_refused = session.heals_elsewhere && !is_planted(Mistake::HealBesideOthers);
        let heals = session.healing_floor().is_some();
        let reached = session.reached();
        let reach = match heals {
            true => Reach::Heal {
                to: reached.as_ref(),
            },
            false => Reach::Part,
        };
        let may_come =
            heals || (self.adopt_floor(&mut session).is_ok() && session.floor_is_adopted);
        if !is_refused
            && may_come
            && let Some((records, context)) = session.take_cut_round(RECORDS_FRAME_TARGET)
        {
            let claimed = reached.is_some().then_some(&*context);
            let known = check_writers(self.state.writers(), &records, claimed);
            let own = self.check_own_writes(&context);
            self.traffic.received_records += records.len() as u64;
            if known.is_ok()
                && check_dots(&records).is_ok()
                && own.is_ok()
                && let Ok(joined) = self.join(now, records, &context, reach)
            {
                if let Some(replica) = session.replica()
                    && !is_planted(Mistake::CutRoundUntold)
                {
                    self.tell_changes(joined.changed, Origin::Peer(replica));
                }
                if let Some(damage) = joined.damage {
                    self.report_damage(now, &mut session, &damage);
                }
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
            if session.hello.is_some() {
                session.say(&Message::Bye);
            }
            self.end_session(now, session, None);
        }
    }

    /// The end of a conversation that was taken out of the table.
    fn end_session(&mut self, now: Now, mut session: Session, error: Option<PeerError>) {
        self.end_heal(&session);
        self.flush(&mut session);
        self.outputs.push_back(Output::Close(session.link));
        if session.moved != (0, 0) && error.is_none() {
            self.tell_synced(&mut session);
        }
        if let Some(error) = error {
            // Other addresses of the same peer were put off because this link was there.
            let spacing = micros(self.config.min_interval);
            for address in self.addresses_of(&session) {
                if let Some(peer) = self.peers.get_mut(&address) {
                    peer.due_us = peer.due_us.min(now.steady_us.saturating_add(spacing));
                }
            }
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
                // A peer that was told everything and still lacks something has a reason.
                let behind = session.heard
                    && !session.damaged
                    && !session.peer_heals
                    && !session.theirs.covers(clock)
                    && !session.claimed.covers(clock);
                let wanted = self
                    .syncs
                    .values()
                    .any(|sync| sync.waiting.contains(&address));
                peer.heard = Some(Arc::clone(&session.theirs));
                peer.cluster_told = session.cluster_told;
                peer.ended_us = now.steady_us;
                let pause = if behind || wanted {
                    spacing
                } else {
                    interval as u64
                };
                peer.due_us = now.steady_us.saturating_add(pause);
            }
        }
        // An address that leads to ourselves, or to a peer that left before it said who it is.
        let dialed = session.dialed.as_ref();
        if let Some(peer) = dialed.and_then(|dialed| self.peers.get_mut(dialed))
            && peer.link == Some(session.link)
        {
            peer.link = None;
            peer.due_us = now.steady_us.saturating_add(interval as u64);
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
        let mut again = false;
        for request in self.syncs.values_mut() {
            if link < request.since_link && !lost {
                again |= request.waiting.contains(address);
            } else if request.waiting.remove(address) {
                request.failed.insert(address.clone());
            }
        }
        if again && let Some(peer) = self.peers.get_mut(address) {
            peer.due_us = now.steady_us;
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
        if self.peers.iter().count() <= SMALL_CLUSTER || !self.syncs.is_empty() {
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
        self.peers.forgive_selves(now);
        let mut due: Vec<(Option<u64>, Address)> = Vec::new();
        for (address, peer) in self.peers.iter_mut() {
            if peer.link.is_some() || peer.due_us > now.steady_us {
                continue;
            }
            if peer.replica.is_some_and(|replica| met.contains(&replica)) {
                peer.due_us = now.steady_us.saturating_add(interval);
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
        if !due.is_empty() {
            self.make_room_to_dial(now);
        }
    }

    /// Lets go of the link that was dialed longest ago, if it has had its time and is quiet: others
    /// wait, and under constant writes no link would close by itself.
    fn make_room_to_dial(&mut self, now: Now) {
        let turn = self.config.linger.max(TURN_MIN);
        let dialed = self.sessions.values().filter(|session| {
            let age = now.steady_us.saturating_sub(session.started_us());
            session.dialed.is_some() && session.is_quiet() && age >= micros(turn)
        });
        let oldest = dialed.min_by_key(|session| session.started_us());
        if let Some(link) = oldest.map(|session| session.link) {
            self.leave(now, link);
        }
    }

    fn flush(&mut self, session: &mut Session) {
        if !session.out.is_empty() {
            let bytes = Bytes::from(session.out.take());
            self.traffic.sent_bytes += bytes.len() as u64;
            self.outputs.push_back(Output::Send(session.link, bytes));
        }
    }
}
