//! Heals and scrubs: what a replica does when data is compared range by range.

use std::ops::Bound;
use std::sync::Arc;

use super::conversation::storage_error;
use super::{Output, Replica};
use crate::clock::{Clock, Dot, Now, micros};
use crate::event::{Event, Origin, Peer};
use crate::heal::{Follower, Leader, Next, Plan, Purpose, Start, View};
use crate::limits::{DAMAGED_KEYS_MAX, RANGE_KEYS, RECORDS_FRAME_TARGET, WANTED_KEYS_MAX};
use crate::message::Message;
use crate::mistake::{Mistake, is_planted};
use crate::record::{Key, Record};
use crate::session::{Misbehavior, Outgoing, PeerError, Round, Session};
use crate::state::{Reach, StateError};
use crate::storage::Table;

/// Bytes of conversation for each byte of scrubbing.
const TRAFFIC_PER_SCRUB: u64 = 100;

/// About what it costs to compare one range.
const SLICE_BYTES: u64 = 200;

/// How far the rotating scrub has come.
#[derive(Default)]
pub(super) struct Slices {
    next: Key,
    /// Bytes of conversation that were there at the last slice.
    traffic: u64,
    pub(super) verified_us: Option<u64>,
}

impl Replica {
    /// The peer told its floor. All of it becomes ours if we know it; if not, the peer has to compare.
    pub(super) fn adopt_floor(&mut self, session: &mut Session) -> Result<(), PeerError> {
        let floor = Arc::clone(&session.their_floor);
        if session.floor_is_adopted || !self.state.clock().covers(&floor) {
            return Ok(());
        }
        self.check_floor(&floor)?;
        session.floor_is_adopted = true;
        if is_planted(Mistake::FloorNotAdopted) {
            return Ok(());
        }
        let adopted = self.state.adopt_floor(&floor);
        adopted.map_err(|error| storage_error(&error))
    }

    fn check_floor(&self, floor: &Clock) -> Result<(), Misbehavior> {
        let is_closed = self.state.writers().closed_part(floor) == *floor;
        if is_closed || is_planted(Mistake::CutNotClosed) {
            Ok(())
        } else {
            Err(Misbehavior::OpenFloor)
        }
    }

    /// Instead of sending by dots, compares.
    pub(super) fn begin_comparing(&mut self, session: &mut Session, mut round: Round) {
        round.only = None;
        let plan = Plan {
            purpose: Purpose::Heal,
            seed: self.random.u64(..),
            start: Key::new(),
            end: None,
        };
        self.begin_plan(session, round, plan);
    }

    fn begin_plan(&mut self, session: &mut Session, round: Round, plan: Plan) {
        let view = View {
            snapshot: Arc::clone(&round.snapshot),
            writers: Arc::clone(&round.writers),
        };
        let leader = Leader::new(&plan, Arc::clone(&round.floor), view, &self.config);
        session.say(&Message::Plan(plan));
        session.outgoing = Outgoing::Comparing(round, Box::new(leader));
    }

    /// Does the next thing in a comparison that we lead; answers whether that is enough for now.
    pub(super) fn lead(
        &mut self,
        now: Now,
        session: &mut Session,
        round: Round,
        mut leader: Box<Leader>,
    ) -> Result<bool, PeerError> {
        let next = leader.advance().map_err(|error| storage_error(&error))?;
        let enough = match next {
            Next::Records(piece) => {
                let fills_frame = piece.payload.len() >= RECORDS_FRAME_TARGET / 2;
                self.traffic.sent_records += piece.records;
                session.say_records(now, piece);
                fills_frame
            }
            Next::Range(range) => {
                session.say(&Message::Range(range));
                true
            }
            Next::Absent(places) => {
                session.say(&Message::Absent(places));
                false
            }
            Next::Reached(key) => {
                session.say(&Message::Reached(key));
                false
            }
            Next::Wait => true,
            Next::Done => {
                self.end_comparing(now, session, &round, &mut leader);
                return Ok(false);
            }
        };
        session.outgoing = Outgoing::Comparing(round, leader);
        Ok(enough)
    }

    fn end_comparing(
        &mut self,
        now: Now,
        session: &mut Session,
        round: &Round,
        leader: &mut Leader,
    ) {
        session.outgoing = Outgoing::Ended;
        let damage = leader.take_damage();
        if leader.purpose() == Purpose::Scrub {
            let unserved = false;
            session.say(&Message::Yield {
                whole: None,
                unserved,
            });
        } else if damage.is_none() && !leader.is_refused() {
            let unclaimed = round.unclaimed.clone();
            session.say(&Message::Claim { unclaimed });
            session.owes_claim = leader.is_resumed();
            if session.owes_claim {
                // What it takes from this is what the heal that it resumed began with.
                session.offer_by(now.steady_us);
            } else {
                session.claimed = Arc::clone(&round.clock);
            }
        } else {
            let unserved = damage.is_some();
            session.say(&Message::Yield {
                whole: None,
                unserved,
            });
            session.owes_claim = true;
            session.offer_by(now.plus(self.config.idle_interval));
        }
        if let Some(damage) = damage {
            self.report_damage(now, session, &damage);
        }
    }

    /// Ends a round without having sent anything: the peer takes nothing now, or cannot be served.
    pub(super) fn end_unserved(&mut self, now: Now, session: &mut Session, unserved: bool) {
        session.say(&Message::Yield {
            whole: None,
            unserved,
        });
        session.outgoing = Outgoing::Ended;
        session.owes_claim = true;
        session.exchange = None;
        if unserved {
            session.offer_by(now.plus(self.config.idle_interval));
        }
    }

    /// The peer begins a comparison.
    pub(super) fn follow(
        &mut self,
        now: Now,
        session: &mut Session,
        plan: &Plan,
    ) -> Result<(), PeerError> {
        let context = session.context().ok_or(Misbehavior::NoRound)?;
        let floor = Arc::clone(&session.their_floor);
        let may = match plan.purpose {
            Purpose::Heal if !plan.is_of_all() => return Err(Misbehavior::OutOfOrder.into()),
            Purpose::Heal => self.begin_heal(now, session, &context, &floor)?,
            Purpose::Scrub => {
                let is_whole = self.state.is_whole() || is_planted(Mistake::ScrubHalfHealed);
                is_whole && *self.state.clock() == context
            }
        };
        if !may {
            session.say(&Message::Start(Start::Refused));
            return Ok(());
        }
        let resume = self.state.healed_to();
        let resume = resume.filter(|_| plan.purpose == Purpose::Heal).cloned();
        let mut follower = Follower::new(plan, resume, floor);
        let start = follower.start(&self.view());
        let start = start.map_err(|error| storage_error(&error.into()))?;
        let in_parts = follower.is_resumed() || self.state.is_catching_up();
        session.follow(follower, in_parts && plan.purpose == Purpose::Heal);
        session.say(&Message::Start(start));
        Ok(())
    }

    /// What is here now. It is not kept: an engine may keep in memory all that was written since.
    fn view(&self) -> View {
        View {
            snapshot: self.state.storage().snapshot(),
            writers: Arc::clone(self.state.writers()),
        }
    }

    /// Lets a peer heal us, unless another does.
    fn begin_heal(
        &mut self,
        now: Now,
        session: &mut Session,
        context: &Clock,
        floor: &Clock,
    ) -> Result<bool, PeerError> {
        if !context.covers(floor) {
            return Err(Misbehavior::SkippedHeal.into());
        }
        self.check_floor(floor)?;
        let beside_others = is_planted(Mistake::HealBesideOthers);
        if self.healing.is_some() && !beside_others || !self.state.may_take_from(context) {
            return Ok(false);
        }
        // What is wanted of our own writer would count as written at the next open.
        if self.check_own_writes(context).is_err() {
            self.end_collided_writer(now)?;
        }
        let begun = self.state.begin_heal(floor, context);
        begun.map_err(|error| storage_error(&error))?;
        self.healing = Some(session.link);
        for other in self.sessions.values_mut() {
            other.set_heals_elsewhere(true);
            if other.exchange.take().is_some() {
                other.wants_exchange = !self.syncs.is_empty();
            }
        }
        self.flush_all();
        Ok(true)
    }

    /// The heal over this link, if there was one, is over: others may send again.
    pub(super) fn end_heal(&mut self, session: &Session) {
        if self.healing != Some(session.link) {
            return;
        }
        self.healing = None;
        for other in self.sessions.values_mut() {
            other.set_heals_elsewhere(false);
        }
        self.flush_all();
    }

    fn flush_all(&mut self) {
        let links: Vec<_> = self.sessions.keys().copied().collect();
        for link in links {
            if let Some(mut session) = self.sessions.remove(&link) {
                self.flush(&mut session);
                self.sessions.insert(link, session);
            }
        }
    }

    /// Says what is here of the ranges that the peer has announced.
    pub(super) fn look(&mut self, session: &mut Session) -> Result<(), PeerError> {
        let view = self.view();
        while let Some(follower) = session.follower() {
            let list = follower
                .next_list(&view)
                .map_err(|error| storage_error(&error))?;
            let Some(list) = list else {
                break;
            };
            session.say(&Message::List(list));
        }
        Ok(())
    }

    /// Begins to compare a slice of the data with a peer that should hold the same.
    pub(super) fn begin_scrub(
        &mut self,
        now: Now,
        session: &mut Session,
        slice: (Key, Option<Key>),
    ) {
        let is_whole = self.state.is_whole() || is_planted(Mistake::ScrubHalfHealed);
        if !is_whole || *session.theirs != **self.state.clock() || self.healing.is_some() {
            return;
        }
        self.begin_round(now, session, false, None);
        let Outgoing::Asked(round) = std::mem::replace(&mut session.outgoing, Outgoing::Idle)
        else {
            return;
        };
        let (start, end) = slice;
        let plan = Plan {
            purpose: Purpose::Scrub,
            seed: self.random.u64(..),
            start,
            end,
        };
        self.begin_plan(session, round, plan);
    }

    /// Whether it is on us, of the two sides of a link, to begin a scrub.
    fn leads_scrub(&self, session: &Session) -> bool {
        let tokens = session.greeting.as_ref().zip(session.hello.as_ref());
        tokens.is_some_and(|(ours, theirs)| ours.hello.token < theirs.token)
    }

    /// Equal clocks, unequal contents: compares everything at once.
    pub(super) fn notice_divergence(&mut self, session: &mut Session, peer: Peer) {
        self.outputs.push_back(Output::Event(Event::Divergence {
            peer,
            key: None,
            ours: Vec::new(),
            theirs: Vec::new(),
        }));
        self.log_is_damaged = true;
        if self.leads_scrub(session) {
            session.scrub = Some((Key::new(), None));
        }
    }

    /// After an exchange a small part of the data is compared, as far as the traffic allows.
    pub(super) fn plan_slice(&mut self, now: Now, session: &mut Session) {
        let bytes = self.traffic.sent_bytes + self.traffic.received_bytes;
        let due = bytes.saturating_sub(self.slices.traffic) >= SLICE_BYTES * TRAFFIC_PER_SCRUB;
        let is_equal = *session.theirs == **self.state.clock() && self.state.is_whole();
        let peer_is_whole = session.hello.as_ref().is_some_and(|hello| hello.whole);
        if !due || !is_equal || !peer_is_whole || session.scrub.is_some() {
            return;
        }
        let start = self.slices.next.clone();
        let snapshot = self.state.storage().snapshot();
        let rest = snapshot.range(Table::Data, Bound::Included(&start), Bound::Unbounded);
        let end = match rest.take(RANGE_KEYS + 1).nth(RANGE_KEYS) {
            Some(Ok((key, _))) => Some(key),
            Some(Err(_)) => return,
            None => None,
        };
        self.slices.traffic = bytes;
        self.slices.next = end.clone().unwrap_or_default();
        if end.is_none() {
            self.slices.verified_us = Some(now.wall_us);
        }
        session.scrub = Some((start, end));
    }

    /// A scrub found keys under which the peer holds something else. We write again what either side
    /// lacks; what we cannot read the peer's record stands for.
    pub(super) fn report_differing(
        &mut self,
        now: Now,
        session: &mut Session,
        records: Vec<(Key, Record)>,
    ) -> Result<(), PeerError> {
        let Some(context) = session.context() else {
            return Err(Misbehavior::NoRound.into());
        };
        let is_comparable = *self.state.clock() == context;
        for (key, theirs) in records {
            match self.state.record(&key) {
                // What has been written since would look like a difference.
                Ok(ours) => {
                    let same = ours.puts().eq(theirs.puts());
                    if is_comparable && !same {
                        self.write_again(now, session, &key, &theirs);
                    }
                }
                Err(damage @ StateError::Corrupt { .. }) => {
                    self.report_damage(now, session, &damage);
                    // A scrub deletes nothing, not even what cannot be read.
                    if theirs.is_empty() {
                        continue;
                    }
                    super::conversation::check_writers(
                        self.state.writers(),
                        &[(key.clone(), theirs.clone())],
                        None,
                    )?;
                    let joined = self
                        .join(now, vec![(key, theirs)], &context, Reach::Part)
                        .map_err(|error| storage_error(&error))?;
                    if joined.mended > 0 {
                        self.note_mended();
                    }
                    if let Some(replica) = session.replica() {
                        self.tell_changes(joined.changed, Origin::Peer(replica));
                    }
                }
                Err(error) => return Err(storage_error(&error)),
            }
        }
        self.look(session)
    }

    /// Tells of a key under which a peer holds something else, and writes again what either side lacks.
    fn write_again(&mut self, now: Now, session: &Session, key: &Key, theirs: &Record) {
        let Ok(ours) = self.state.record(key) else {
            return;
        };
        let dots = |record: &Record| -> Vec<Dot> { record.puts().map(|put| put.dot).collect() };
        if let Some(replica) = session.replica() {
            let peer = Peer {
                replica,
                address: session.remote.clone(),
            };
            self.outputs.push_back(Output::Event(Event::Divergence {
                peer,
                key: Some(key.clone()),
                ours: dots(&ours),
                theirs: dots(theirs),
            }));
        }
        let names = &mut self.names;
        let again = self
            .state
            .reissue_differing(now, key, theirs, &mut || names.u64(..));
        match again {
            Ok(None) => {}
            Ok(Some(changed)) => {
                self.tell_changes(vec![changed], Origin::Local);
                self.note_own_news(now);
            }
            Err(error) => self.tell_storage_error(now, &error),
        }
    }

    /// Remembers a record of ours that cannot be read, to ask peers for it.
    pub fn note_damage(&mut self, damage: &StateError) {
        let StateError::Corrupt { table, key, .. } = damage else {
            self.log_is_damaged |= matches!(damage, StateError::LogMismatch { .. });
            return;
        };
        match table {
            Table::Data if self.damaged_keys.len() < DAMAGED_KEYS_MAX => {
                self.damaged_keys.insert(key.clone());
            }
            Table::Log => self.log_is_damaged = true,
            _ => {}
        }
    }

    /// Asks a peer for records that cannot be read here.
    pub(super) fn ask_for_damaged(&mut self, session: &mut Session) {
        let state = &self.state;
        self.damaged_keys.retain(|key| state.record(key).is_err());
        // Once on a link: a peer that cannot help now will not be able to at once.
        let unasked = |key: &&Key| !session.asked_keys.contains(*key);
        let keys = self.damaged_keys.iter().filter(unasked);
        let keys: Vec<Key> = keys.take(WANTED_KEYS_MAX).cloned().collect();
        session.asked_keys.extend(keys.iter().cloned());
        if !keys.is_empty() {
            session.say(&Message::Want(keys));
        }
    }

    /// Records that could not be read have been replaced.
    pub(super) fn note_mended(&mut self) {
        let state = &self.state;
        self.damaged_keys.retain(|key| state.record(key).is_err());
        self.wants_scan = true;
    }

    /// Removes a little of what is superfluous.
    pub(super) fn tend_reclaiming(&mut self, now: Now) -> Result<(), StateError> {
        if !self.state.is_reclaiming() || self.reclaim_us > now.steady_us {
            return Ok(());
        }
        self.reclaim_us = now.plus(self.config.reclaim_pause);
        if let Some(damage) = self.state.reclaim_step()? {
            // It is looked at again as long as it cannot be read, so not at once.
            self.reclaim_us = now.plus(self.config.idle_interval);
            self.note_damage(&damage);
            self.tell_storage_error(now, &damage);
        }
        Ok(())
    }

    /// Whether the sums are to be asked for now: a heal that is not finished needs the disk more, and
    /// nothing is compared with them before its end.
    pub(super) fn may_scan(&self) -> bool {
        self.wants_scan && self.state.wanted().is_empty()
    }

    /// Finishes what failed half-way, mends the log, gives up a heal that nobody can finish.
    pub(super) fn tend_health(&mut self, now: Now) -> Result<(), StateError> {
        if self.state.members().is_retired(self.state.replica()) {
            self.take_new_name(now)?;
        }
        if self.state.has_collided() && self.mend_us <= now.steady_us {
            self.reissue_collided(now)?;
        }
        if self.log_is_damaged && self.mend_us <= now.steady_us {
            // All of the data is read for it, and what it cannot mend may be noticed at every hello.
            self.mend_us = now.plus(self.config.idle_interval);
            self.state.mend_log()?;
            self.log_is_damaged = false;
            self.wants_scan = true;
        }
        let wanted = self.state.unfinished();
        if wanted.is_empty() {
            self.healer_us = now.steady_us;
            self.helpless.clear();
            return Ok(());
        }
        // Who could not help before does not count, though it tries again: else both would wait for ever.
        let is_healer = |peer: &Session| {
            let helps = !(peer.replica()).is_some_and(|peer| self.helpless.contains(&peer));
            helps && (self.healing == Some(peer.link) || peer.heard && peer.theirs.covers(&wanted))
        };
        if self.sessions.values().any(is_healer) {
            self.healer_us = now.steady_us;
        }
        let alone = now.steady_us.saturating_sub(self.healer_us);
        if alone < micros(self.config.promote_timeout) || self.healing.is_some() {
            return Ok(());
        }
        self.state.promote()?;
        self.wants_scan = true;
        self.healer_us = now.steady_us;
        // What is waited for has changed.
        self.progress_us = now.steady_us;
        self.helpless.clear();
        let links: Vec<_> = self.sessions.keys().copied().collect();
        for link in links {
            self.leave(now, link);
        }
        self.outputs.push_back(Output::Event(Event::Promoted));
        Ok(())
    }
}
