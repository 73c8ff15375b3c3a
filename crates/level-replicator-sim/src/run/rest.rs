//! The end of a run: nothing disturbs any more, so all must come to agree, and then fall silent.

use std::collections::BTreeSet;
use std::ops::Bound;

use level_replicator_core::clock::{Clock, micros};
use level_replicator_core::record::Tally;
use level_replicator_core::replica::SyncId;
use level_replicator_core::state::{State, scan_tally};
use level_replicator_core::storage::{Storage, Table};

use super::{BEYOND, DIVERGED, Later, Run, broken};
use crate::cluster::{Weather, address};
use crate::oracle::{Broken, check_expired, check_reclaimed};
use crate::plan::Plan;

/// How long replicas may take to agree once nothing disturbs them, in virtual microseconds.
const REST_MAX_US: u64 = 400_000_000;

/// How long a sync may take once nothing disturbs.
const SYNC_MAX_US: u64 = 5_000_000;

/// What expires within this time is waited for before silence is asked for.
const EXPIRY_SOON_US: u64 = 200_000_000;

/// Most bytes that one side says in a conversation without news.
const QUIET_BYTES_MAX: u64 = 300;

impl Run {
    /// Nothing disturbs any more: now all must come to agree, and then fall silent.
    pub(super) fn rest(&mut self, plan: &Plan) -> Result<(), Broken> {
        for look in &mut self.looks {
            look.crash_again.clear();
        }
        self.come_to_rest()?;
        let states = self.cluster.running().into_iter();
        let states: Vec<&State> = states.filter_map(|node| self.cluster.state(node)).collect();
        let mut known = self.oracle.known_to_any(states);
        let can_claim = |node: &usize| {
            let state = self.cluster.state(*node);
            state.is_some_and(|state| !state.is_catching_up() && state.clock().covers(&known))
        };
        let running = self.cluster.running();
        self.settled_at_rest = running.into_iter().filter(can_claim).collect();
        self.cluster
            .trace
            .tell(self.cluster.now_us, || "* rest".to_owned());

        let until_us = self.cluster.now_us + REST_MAX_US;
        while !self.agrees() {
            if self.cluster.now_us >= until_us {
                return broken("C1", self.disagreement());
            }
            self.run_until(self.cluster.now_us + 50_000)?;
        }
        self.know_expired(&mut known);
        self.check_agreement(&known)?;
        self.check_silence(plan)?;
        self.know_expired(&mut known);
        self.check_agreement(&known)?;
        self.digest_disks();
        Ok(())
    }

    fn come_to_rest(&mut self) -> Result<(), Broken> {
        // What was to end ends now.
        while let Some((_, later)) = self.later.pop_first() {
            if let Later::AbandonSync(..) = later {
                self.do_later(later)?;
            }
        }
        self.cluster.weather = Weather {
            delay_max_us: 1_000,
            garble_permille: 0,
            ..self.cluster.weather
        };
        self.cluster.heal();
        for node in 0..self.cluster.nodes.len() {
            let stopped = self.cluster.nodes[node].replica.is_none();
            if !stopped {
                self.cluster.nodes[node].disk.release(0);
            }
            self.repair(node)?;
            self.start(node)?;
            self.cluster.scan(node, 0);
            self.do_later(Later::EmptyDisk(node))?;
            self.do_later(Later::Resume(node))?;
        }
        // A disk that still had errors left may have refused the start.
        while let Some((_, later)) = self.later.pop_first() {
            self.do_later(later)?;
        }
        let running = self.cluster.running();
        for (place, &node) in running.iter().enumerate() {
            let next = running[(place + 1) % running.len()];
            if next != node {
                self.cluster.add_peer(node, next);
            }
        }
        self.cluster.break_all_links();
        self.run_until(self.cluster.now_us + 10_000)?;
        self.is_quiet = true;
        Ok(())
    }

    fn agrees(&self) -> bool {
        let mut states = self.cluster.running().into_iter();
        let Some(first) = states.next().and_then(|node| self.cluster.state(node)) else {
            return true;
        };
        let settled =
            |state: &State| !state.is_catching_up() && state.is_whole() && state.tally().is_some();
        let running = self.cluster.running();
        let mut all = running.iter().filter_map(|node| self.cluster.state(*node));
        let is_done = |state: &State| {
            !state.is_reclaiming() && !state.is_epoch_open() && check_reclaimed(state).is_ok()
        };
        if !all.all(is_done) || running.iter().any(|node| self.expires(*node)) {
            return false;
        }
        settled(first)
            && states
                .filter_map(|node| self.cluster.state(node))
                .all(|state| state.clock() == first.clock() && settled(state))
    }

    /// Whether a value of a replica expires, or has expired, so soon that it would disturb the silence.
    fn expires(&self, node: usize) -> bool {
        let Some(state) = self.cluster.state(node) else {
            return false;
        };
        let now = self.cluster.now_at(node);
        let next = state.next_own_expiry();
        let is_soon = next.is_some_and(|next| next.as_micros() <= now.wall_us + EXPIRY_SOON_US);
        is_soon || check_expired(state, now, micros(self.cluster.config.expiry_grace)).is_err()
    }

    fn disagreement(&self) -> String {
        let mut how = "they do not agree though nothing disturbs:".to_owned();
        for node in self.cluster.running() {
            if let Some(state) = self.cluster.state(node) {
                let dots: u64 = state.clock().count_missing_in(&Clock::default());
                if !state.is_whole() || state.is_reclaiming() {
                    let (ghosts, wants) = (state.ghosts(), state.wanted().len());
                    how.push_str(&format!(
                        " {node} has {ghosts} ghosts, wants {wants}, reclaims {};",
                        state.is_reclaiming()
                    ));
                }
                if let Err(broken) = check_reclaimed(state) {
                    let missing: Vec<_> = state.missing_acks().collect();
                    let open = state.is_epoch_open();
                    how.push_str(&format!(
                        " {node} has not reclaimed: {}; epoch {} open {open} without {missing:?};",
                        broken.how,
                        state.epoch().number,
                    ));
                }
                how.push_str(&format!(
                    " {node} knows {dots} writes{}{};",
                    if state.is_catching_up() {
                        ", catching up"
                    } else {
                        ""
                    },
                    if state.tally().is_none() {
                        ", tally unknown"
                    } else {
                        ""
                    },
                ));
            }
        }
        how
    }

    /// C1, C2 and C6 at rest.
    fn check_agreement(&self, known: &Clock) -> Result<(), Broken> {
        let mut tallies: BTreeSet<Option<[u8; 48]>> = BTreeSet::new();
        for node in self.cluster.running() {
            let Some(state) = self.cluster.state(node) else {
                continue;
            };
            let now = self.cluster.now_at(node);
            check_expired(state, now, micros(self.cluster.config.expiry_grace))?;
            let shown = self.oracle.check(state, now, |_| false)?;
            self.oracle.check_batches(state, &shown)?;
            self.oracle.check_nothing_is_lost(state, known)?;
            // Who had to go on with what it had forgets what is not live.
            if !state.clock().covers(known) && !self.oracle.is_lenient() {
                return broken("C2", format!("{node} does not know what somebody knew"));
            }
            let scanned = scan_tally(&*state.storage().snapshot(), state.writers(), || true);
            if scanned.ok().flatten() != state.tally() {
                return broken("C1", format!("the tally of {node} is wrong"));
            }
            let tally = state.tally().map(Tally::to_bytes);
            tallies.insert(tally.and_then(|tally| tally[..].try_into().ok()));
        }
        if tallies.len() > 1 && self.oracle.is_lenient() {
            return broken(BEYOND, DIVERGED.to_owned());
        }
        if tallies.len() > 1 {
            return broken("C1", "equal clocks and unequal digests".to_owned());
        }
        Ok(())
    }

    /// What has expired meanwhile was deleted, which nobody knew before.
    fn know_expired(&self, known: &mut Clock) {
        let states = self.cluster.running().into_iter();
        let states: Vec<&State> = states.filter_map(|node| self.cluster.state(node)).collect();
        known.union(&self.oracle.known_to_any(states));
    }

    /// C5: nobody writes, nobody sends a record, and conversations cost next to nothing.
    fn check_silence(&mut self, plan: &Plan) -> Result<(), Broken> {
        let running = self.cluster.running();
        let writes = self.oracle.writes();
        let interval_us = micros(plan.config.idle_interval);
        let settle_us = micros(plan.config.linger) + 2 * micros(plan.config.stall_timeout);
        // The first sync may still tidy up behind what went before; after that nothing is left to do.
        self.sync_all(&running)?;
        self.run_until(self.cluster.now_us + settle_us)?;
        let before = self.sums(&running);
        let rows = self.expiry_rows(&running);
        self.sync_all(&running)?;
        self.run_until(self.cluster.now_us + settle_us)?;
        let synced = self.sums(&running);
        self.run_until(self.cluster.now_us + 3 * interval_us)?;
        let after = self.sums(&running);

        let (commits, records) = (after.0 - before.0, after.1 - before.1);
        if self.oracle.writes() > writes {
            // Somebody has deleted what one who is gone had left to expire.
            self.cluster.trace.count("silences disturbed by an expiry");
            return Ok(());
        }
        // A row that leads to a value which is gone is removed when it is due.
        let removed = rows.saturating_sub(self.expiry_rows(&running));
        if commits > removed || records > 0 {
            let how = format!("{commits} commits and {records} records though nobody writes");
            return broken("C5", how);
        }
        let (talks, bytes) = (after.2 - synced.2, after.3 - synced.3);
        // One conversation may just have begun.
        let allowed = (talks + 2 * running.len() as u64) * QUIET_BYTES_MAX;
        if bytes > allowed {
            return broken(
                "C5",
                format!("{talks} conversations without news took {bytes} bytes"),
            );
        }
        self.cluster
            .trace
            .count_times("conversations without news", talks);
        self.cluster
            .trace
            .count_times("bytes in conversations without news", bytes);
        Ok(())
    }

    /// How many rows lead to values that expire, over all replicas.
    fn expiry_rows(&self, running: &[usize]) -> u64 {
        let count = |node: &usize| {
            let snapshot = self.cluster.nodes[*node].disk.snapshot();
            let rows = snapshot.range(Table::Expiry, Bound::Unbounded, Bound::Unbounded);
            rows.count() as u64
        };
        running.iter().map(count).sum()
    }

    /// Everybody asks for a sync, and gets it in time.
    fn sync_all(&mut self, running: &[usize]) -> Result<(), Broken> {
        let mut syncs = Vec::new();
        for &node in running {
            let now = self.cluster.now_at(node);
            if let Some(replica) = &mut self.cluster.nodes[node].replica {
                syncs.push((node, replica.request_sync(now)));
            }
            self.cluster.poke(node);
        }
        self.run_until(self.cluster.now_us + SYNC_MAX_US)?;
        for (node, sync) in syncs {
            self.check_sync(node, sync)?;
        }
        Ok(())
    }

    /// Commits, records sent, conversations, and bytes sent, over all replicas.
    fn sums(&self, running: &[usize]) -> (u64, u64, u64, u64) {
        let (mut commits, mut records, mut talks, mut bytes) = (0, 0, 0, 0);
        let nodes = running.iter().map(|node| &self.cluster.nodes[*node]);
        for replica in nodes.filter_map(|node| node.replica.as_ref()) {
            let traffic = replica.traffic();
            commits += replica.state().commits();
            records += traffic.sent_records;
            talks += traffic.conversations;
            bytes += traffic.sent_bytes;
        }
        (commits, records, talks, bytes)
    }

    /// A sync that was asked for at rest has reached everybody who runs.
    fn check_sync(&mut self, node: usize, sync: SyncId) -> Result<(), Broken> {
        let replica = self.cluster.nodes[node].replica.as_mut();
        let Some(replica) = replica else {
            return Ok(());
        };
        let Some(missed) = replica.sync_result(sync) else {
            let left = replica.abandon_sync(sync);
            let how = format!("the sync of {node} comes to no end: {left:?}");
            return broken("P3 sync", how);
        };
        for other in self.cluster.running() {
            if missed.contains(&address(other)) {
                let how = format!("the sync of {node} has not reached {other}");
                return broken("P3 sync", how);
            }
        }
        Ok(())
    }

    fn digest_disks(&mut self) {
        for node in 0..self.cluster.nodes.len() {
            let snapshot = self.cluster.nodes[node].disk.snapshot();
            for table in Table::ALL {
                let rows = snapshot.range(table, Bound::Unbounded, Bound::Unbounded);
                for (key, value) in rows.flatten() {
                    self.cluster.trace.digest_bytes(&key);
                    self.cluster.trace.digest_bytes(&value);
                }
            }
        }
    }
}
