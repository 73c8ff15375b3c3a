//! Members, epochs and names: what a replica does about them as time passes.

use std::time::Duration;

use super::conversation::storage_error;
use super::{Output, Replica};
use crate::clock::{Now, ReplicaId, micros};
use crate::event::Event;
use crate::limits::LINK_TOKENS_MAX;
use crate::members::epoch_digest;
use crate::message::{ClusterNews, Message};
use crate::session::{PeerError, Session};
use crate::state::StateError;

/// A member is not given up before an epoch has waited for it so long: it may be there for others.
const EXCLUDE_GRACE: Duration = Duration::from_secs(60);

/// How often an open epoch is looked at though nothing happens.
const EPOCH_LOOK: Duration = Duration::from_secs(1);

/// When what about the epoch was done, or is due.
pub(super) struct EpochTimes {
    opened_us: u64,
    /// When to see whether a cut would make anything superfluous; `None` if nothing has happened.
    propose_us: Option<u64>,
    /// The epoch that was seen last, and since when.
    seen: u64,
    since_us: u64,
    look_us: u64,
    /// The epoch for whose sake everything is being made durable.
    syncing: Option<u64>,
    /// What was told to everybody last.
    spread: u64,
}

impl EpochTimes {
    pub(super) fn new(now: Now) -> EpochTimes {
        EpochTimes {
            opened_us: now.steady_us,
            propose_us: None,
            seen: 0,
            since_us: now.steady_us,
            look_us: now.steady_us,
            syncing: None,
            spread: 0,
        }
    }
}

impl Replica {
    /// Something may be superfluous soon: a cut is thought of after a while. The members take turns,
    /// so that they do not all propose at once.
    pub(super) fn note_commit(&mut self, now: Now) {
        if self.epochs.propose_us.is_some() {
            return;
        }
        let me = self.state.replica();
        let before_me = self.state.members().active().filter(|other| *other < me);
        let rank = before_me.take(8).count() as u32;
        let pause = self.config.reclaim_interval;
        self.epochs.propose_us = Some(now.plus(pause + pause / 2 * rank));
    }

    /// Does what is due: reclaims, agrees, proposes, gives up, mends.
    pub(super) fn tend(&mut self, now: Now) {
        if self.may_scan() {
            self.wants_scan = false;
            self.outputs.push_back(Output::Scan);
        }
        let outcome = self
            .tend_epoch(now)
            .and_then(|()| self.tend_reclaiming(now))
            .and_then(|()| self.tend_expiry(now))
            .and_then(|()| self.tend_health(now));
        if let Err(error) = outcome {
            // It is tried again; meanwhile nothing is wrong but that nothing is reclaimed.
            self.epochs.look_us = now.plus(EPOCH_LOOK);
            self.reclaim_us = now.plus(EPOCH_LOOK);
            self.expiry.wait_until(now.plus(EPOCH_LOOK));
            let again_us = now.plus(EPOCH_LOOK);
            let promote_us = micros(self.config.promote_timeout);
            self.mend_us = self.mend_us.max(again_us);
            self.healer_us = self.healer_us.max(again_us.saturating_sub(promote_us));
            self.tell_storage_error(now, &error);
        }
        self.plan_expiry(now);
        self.spread_cluster(now);
    }

    /// When [`Replica::tend`] has something to do at the latest, in steady microseconds.
    pub(super) fn next_tending(&self) -> Option<u64> {
        let reclaim = self.state.is_reclaiming().then_some(self.reclaim_us);
        let open = self.state.is_epoch_open();
        let look = open.then_some(self.epochs.look_us);
        let propose = self.epochs.propose_us.filter(|_| !open);
        let promotes = !self.state.wanted().is_empty() && self.healing.is_none();
        let promote = promotes.then(|| {
            self.healer_us
                .saturating_add(micros(self.config.promote_timeout))
        });
        let scan = self.may_scan().then_some(0);
        let mends = self.log_is_damaged || self.state.has_collided();
        let mend = mends.then_some(self.mend_us);
        let expiry = self.expiry.due_us();
        let times = [reclaim, look, propose, promote, scan, mend, expiry];
        times.into_iter().flatten().min()
    }

    fn tend_epoch(&mut self, now: Now) -> Result<(), StateError> {
        let id = epoch_digest(self.state.epoch());
        if self.epochs.seen != id {
            self.epochs.seen = id;
            self.epochs.since_us = now.steady_us;
            self.epochs.look_us = now.steady_us;
        }
        if self.state.is_epoch_open() {
            if self.state.may_ack() && self.epochs.syncing != Some(id) {
                self.epochs.syncing = Some(id);
                self.outputs.push_back(Output::Sync);
            }
            if self.epochs.look_us <= now.steady_us {
                self.epochs.look_us = now.plus(EPOCH_LOOK);
                // A disk that could not be synced is asked again.
                self.epochs.syncing = None;
                self.give_up_silent(now)?;
                self.supersede_overdue(now)?;
            }
            if self.state.complete()? {
                self.epochs.propose_us = None;
                self.note_commit(now);
            }
            return Ok(());
        }
        let due = self
            .epochs
            .propose_us
            .is_some_and(|due| due <= now.steady_us);
        if due {
            // It is thought of again if the storage fails.
            self.epochs.propose_us = Some(now.plus(self.config.reclaim_interval));
        }
        if due && self.may_propose() {
            let has_reclaimable = self.state.has_reclaimable()?;
            if has_reclaimable {
                self.state.propose()?;
            }
            self.epochs.propose_us = None;
            if has_reclaimable {
                return self.tend_epoch(now);
            }
        }
        Ok(())
    }

    fn may_propose(&self) -> bool {
        !self.state.is_catching_up() && self.state.wanted().is_empty() && self.healing.is_none()
    }

    /// Everything is durable that was committed when it was asked for.
    pub(super) fn synced(&mut self, now: Now) {
        let id = epoch_digest(self.state.epoch());
        if self.epochs.syncing.take() != Some(id) || !self.state.may_ack() {
            return;
        }
        if let Err(error) = self.state.ack() {
            // It is tried again at the next look.
            self.epochs.syncing = Some(id);
            self.tell_storage_error(now, &error);
        }
    }

    /// Waits no longer for members that have shown no sign of life for the horizon.
    fn give_up_silent(&mut self, now: Now) -> Result<(), StateError> {
        let horizon = micros(self.config.horizon);
        let waited = now.steady_us.saturating_sub(self.epochs.since_us);
        if waited < horizon.min(micros(EXCLUDE_GRACE)) {
            return Ok(());
        }
        let met = self.sessions.values().filter_map(Session::replica);
        for replica in met.collect::<Vec<_>>() {
            self.state.note_life(now, replica)?;
        }
        let me = self.state.replica();
        let missing: Vec<ReplicaId> = self.state.missing_acks().filter(|id| *id != me).collect();
        for replica in missing {
            let silent = self.silent_us(now, replica);
            if silent >= horizon {
                self.state.exclude(replica)?;
                let event = Event::Excluded { replica };
                self.outputs.push_back(Output::Event(event));
            }
        }
        Ok(())
    }

    /// Proposes again if nobody may know all of the open epoch's cut any more. Each time it takes
    /// twice as long.
    fn supersede_overdue(&mut self, now: Now) -> Result<(), StateError> {
        let epoch = self.state.epoch();
        let patience = micros(self.config.overdue) << epoch.superseded.min(16);
        let waited = now.steady_us.saturating_sub(self.epochs.since_us);
        let is_stuck = !self.state.is_cut_closed() || !self.state.clock().covers(&epoch.cut);
        if is_stuck && waited >= patience && self.may_propose() {
            self.state.propose()?;
        }
        Ok(())
    }

    /// Tells everybody what is new about members and the epoch.
    fn spread_cluster(&mut self, now: Now) {
        let digest = self.state.cluster_digest();
        let open: Vec<_> = self
            .sessions
            .values()
            .filter(|session| session.lacks_cluster(digest))
            .map(|session| session.link)
            .collect();
        for link in open {
            if let Some(mut session) = self.sessions.remove(&link) {
                session.say_cluster(self.state.members(), self.state.epoch());
                self.flush(&mut session);
                self.sessions.insert(link, session);
            }
        }
        if self.epochs.spread == digest {
            return;
        }
        self.epochs.spread = digest;
        let delay = self.config.relay_delay;
        for (_, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.failures == 0) {
            if peer.cluster_told != digest {
                peer.due_us = peer
                    .due_us
                    .min(now.plus(delay.mul_f64(0.5 + self.random.f64())));
            }
        }
    }

    /// Takes in what a peer knows of members and the epoch.
    pub(super) fn merge_cluster(
        &mut self,
        now: Now,
        session: &mut Session,
        news: &ClusterNews,
    ) -> Result<(), PeerError> {
        let acks_before = self.state.epoch().acks.clone();
        let theirs = crate::members::digest_of(&news.members, &news.epoch);
        let merged = self
            .state
            .merge_cluster(&news.members, news.epoch.clone(), news.has_cut);
        merged.map_err(|error| storage_error(&error))?;
        session.cluster_told = theirs;
        if news.has_cut {
            session.cut_told = epoch_digest(&news.epoch);
        }
        let new_acks: Vec<ReplicaId> = news.epoch.acks.difference(&acks_before).copied().collect();
        for replica in new_acks {
            let noted = self.state.note_life(now, replica);
            noted.map_err(|error| storage_error(&error))?;
        }
        if self.state.members().is_retired(self.state.replica()) {
            self.take_new_name(now)
                .map_err(|error| storage_error(&error))?;
        }
        Ok(())
    }

    /// Sends a replica away for good. If it comes back it takes a new name.
    ///
    /// # Errors
    ///
    /// Nothing was changed if the storage fails.
    pub fn retire(&mut self, now: Now, replica: ReplicaId) -> Result<bool, StateError> {
        let news = self.state.retire(replica)?;
        self.epochs.look_us = now.steady_us;
        self.tend(now);
        Ok(news)
    }

    /// Takes a new name, because this one was retired or is used by somebody else. All conversations
    /// end: they were begun under the old one.
    pub(super) fn take_new_name(&mut self, now: Now) -> Result<(), StateError> {
        let before = self.state.replica();
        self.state.rename(self.random.u128(..).to_be_bytes())?;
        self.instance = self.random.u64(..);
        let links: Vec<_> = self.sessions.keys().copied().collect();
        for link in links {
            self.leave(now, link);
        }
        let event = Event::Renamed {
            before,
            now: self.state.replica(),
        };
        self.outputs.push_back(Output::Event(event));
        Ok(())
    }

    /// Names this end of a link, so that a link to ourselves is known from one to a copy of us.
    pub(super) fn new_token(&mut self, now: Now, session: &Session) -> u64 {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&self.instance.to_be_bytes());
        bytes.extend_from_slice(&session.link.0.to_be_bytes());
        bytes.extend_from_slice(&now.steady_us.to_be_bytes());
        bytes.extend_from_slice(&now.wall_us.to_be_bytes());
        bytes.extend_from_slice(session.remote.as_str().as_bytes());
        let token = xxhash_rust::xxh3::xxh3_64(&bytes);
        if self.tokens.len() >= LINK_TOKENS_MAX {
            self.tokens.pop_front();
        }
        self.tokens.push_back(token);
        token
    }

    /// Whether the peer of a session uses our name, and it is on us to take a new one.
    pub(super) fn has_twin(&self, session: &Session) -> bool {
        let (Some(hello), Some(greeting)) = (&session.hello, &session.greeting) else {
            return false;
        };
        hello.replica == self.state.replica() && greeting.hello.token > hello.token
    }

    /// Leaves our name to a process that has the same.
    pub(super) fn leave_name_to_twin(
        &mut self,
        now: Now,
        session: &mut Session,
    ) -> Result<(), PeerError> {
        session.say(&Message::Bye);
        self.take_new_name(now)
            .map_err(|error| storage_error(&error))
    }

    /// Our writer is used by somebody else too: from now on we use another, and say with it again
    /// what is still live of ours.
    pub(super) fn end_collided_writer(&mut self, now: Now) -> Result<(), PeerError> {
        if self.state.current_writer().is_none() {
            return Ok(());
        }
        // A copy of our memory has our source of names too; what its links are called differs.
        let own = self.tokens.back().copied().unwrap_or(0);
        let seed = self.names.u64(..) ^ own ^ now.steady_us.rotate_left(32) ^ now.wall_us;
        self.names = fastrand::Rng::with_seed(seed);
        self.state.rename_feed(seed.rotate_left(16));
        let ended = self.state.end_collided_writer();
        let reissued = ended.and_then(|()| self.reissue_collided(now));
        reissued.map_err(|error| storage_error(&error))
    }

    /// Writes again what is left of writers that somebody else uses too.
    pub(super) fn reissue_collided(&mut self, now: Now) -> Result<(), StateError> {
        let names = &mut self.names;
        let finished = self.state.reissue_collided(now, &mut || names.u64(..))?;
        for (writer, keys) in finished {
            let event = Event::WriterCollision { writer, keys };
            self.outputs.push_back(Output::Event(event));
        }
        self.note_own_news(now);
        Ok(())
    }

    /// Says once in a while that the storage fails.
    pub(super) fn tell_storage_error(&mut self, now: Now, error: &StateError) {
        let reason = error.to_string();
        let again = now.plus(self.config.idle_interval);
        let told = self.damage_told.as_ref();
        if told.is_none_or(|(before, until)| *before != reason || *until <= now.steady_us) {
            self.damage_told = Some((reason, again));
            self.tell_error(None, storage_error(error));
        }
    }

    /// Who holds back the open epoch, with how long nothing was heard of each, in microseconds.
    pub fn held_back_by(&self, now: Now) -> Vec<(ReplicaId, u64)> {
        if !self.state.is_epoch_open() {
            return Vec::new();
        }
        let missing = self.state.missing_acks();
        missing
            .map(|replica| (replica, self.silent_us(now, replica)))
            .collect()
    }

    /// How long a member has shown no sign of life, in microseconds. Before the open the wall clock
    /// tells, since then the steady one.
    fn silent_us(&self, now: Now, replica: ReplicaId) -> u64 {
        let life = self.state.life(replica);
        let since_open = now.steady_us.saturating_sub(self.epochs.opened_us);
        match life.seen_us {
            Some(seen_us) => now.steady_us.saturating_sub(seen_us),
            None if life.seen_wall_us == 0 => since_open,
            None => since_open.max(now.wall_us.saturating_sub(life.seen_wall_us)),
        }
    }

    /// For how long the latest epoch has been known here, in microseconds.
    pub fn epoch_age_us(&self, now: Now) -> u64 {
        now.steady_us.saturating_sub(self.epochs.since_us)
    }

    /// When a peer last proved that it holds the same, in microseconds since 1970 by our clock.
    pub fn agreed_us(&self) -> Option<u64> {
        self.agreed_us
    }

    /// When the data was last compared with a peer's from the first key to the last, in microseconds
    /// since 1970 by our clock.
    pub fn verified_us(&self) -> Option<u64> {
        self.slices.verified_us
    }
}
