//! One run: a plan is carried out, and after every step everybody must hold what the oracle says.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, micros};
use level_replicator_core::event::Event;
use level_replicator_core::record::{Op, Tally};
use level_replicator_core::replica::SyncId;
use level_replicator_core::session::PeerError;
use level_replicator_core::state::{State, scan_tally};
use level_replicator_core::storage::{Storage, Table};

use crate::chance::chance;
use crate::cluster::{Cluster, Weather, address};
use crate::disk::Disk;
use crate::oracle::{Broken, Oracle, Shown, check_grown};
use crate::plan::{Action, Change, Plan, Topology};
use crate::trace::{Counts, Trace};

/// How long replicas may take to agree once nothing disturbs them, in virtual microseconds.
const REST_MAX_US: u64 = 400_000_000;

/// How long a program waits for a sync that it asked for.
const SYNC_TIMEOUT_US: u64 = 1_000_000;

/// How long a sync may take once nothing disturbs.
const SYNC_MAX_US: u64 = 5_000_000;

/// Replicas added to those of the plan by joins and clones, at most.
const ADDED_MAX: usize = 4;

/// Most bytes that one side says in a conversation without news.
const QUIET_BYTES_MAX: u64 = 300;

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What broke, and when in virtual microseconds; `None` if nothing did.
    pub failure: Option<(u64, Broken)>,
    /// What happened, and how often.
    pub counts: Counts,
    /// Two runs are the same, byte for byte, if this is.
    pub digest: u128,
    /// The story, if it was wanted.
    pub lines: Vec<String>,
}

/// Carries out a plan.
pub fn run(plan: &Plan, traced: bool) -> Outcome {
    let mut run = Run::new(plan, traced);
    // A replica that panics is a failure like any other, with its story.
    let outcome = catch_unwind(AssertUnwindSafe(|| run.carry_out(plan)));
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(broken)) => Some(broken),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(Broken {
                invariant: "panic",
                how: text.unwrap_or_else(|| "without a text".to_owned()),
            })
        }
    };
    let failed = run.cluster.nodes.iter().map(|node| node.disk.failed());
    let failed: u64 = failed.sum();
    let trace = &mut run.cluster.trace;
    trace.count_times("disk errors", failed);
    trace.count_times(
        "writes with the stamp of another",
        run.oracle.equal_stamps(),
    );
    Outcome {
        failure: failure.map(|broken| (run.cluster.now_us, broken)),
        counts: trace.counts().clone(),
        digest: trace.digest(),
        lines: trace.take_lines(),
    }
}

/// What is to be done later, whatever happens until then.
#[derive(Debug, Clone, Copy)]
enum Later {
    Start(usize),
    Resume(usize),
    EmptyDisk(usize),
    Repair(usize),
    AbandonSync(usize, u64, SyncId),
}

struct Run {
    cluster: Cluster,
    oracle: Oracle,
    backups: Vec<(usize, Disk)>,
    later: BTreeMap<(u64, u64), Later>,
    laters: u64,
    /// What each replica looked like when it was last checked.
    looks: Vec<Look>,
    /// Whether only honest bytes cross the links.
    is_honest: bool,
    /// Nothing disturbs any more.
    is_quiet: bool,
    /// Replicas that knew all and waited for no claim when rest began: they can make any.
    settled_at_rest: Vec<usize>,
    replicas_max: usize,
}

#[derive(Default)]
struct Look {
    life: u64,
    commits: u64,
    failed: u64,
    clock: Arc<Clock>,
    is_catching_up: bool,
    shown: Shown,
    /// How many commits are lost when the process dies at one.
    lost_at_crash: usize,
    /// After how many commits of the next process it dies.
    crash_again: Option<u32>,
}

impl Run {
    fn new(plan: &Plan, traced: bool) -> Run {
        let mut cluster = Cluster::new(plan.seed, plan.config.clone(), Trace::new(traced));
        cluster.weather = plan.weather;
        let replays = |(_, action): &(u64, Action)| matches!(action, Action::Replay { .. });
        let mut run = Run {
            cluster,
            oracle: Oracle::default(),
            backups: Vec::new(),
            later: BTreeMap::new(),
            laters: 0,
            looks: Vec::new(),
            is_honest: plan.weather.garble_permille == 0 && !plan.actions.iter().any(replays),
            is_quiet: false,
            settled_at_rest: Vec::new(),
            replicas_max: plan.replicas + ADDED_MAX,
        };
        for _ in 0..plan.replicas {
            run.add_node(Disk::new());
        }
        for (from, to) in introductions(plan) {
            run.cluster.nodes[from].peers.insert(to);
        }
        run
    }

    fn add_node(&mut self, disk: Disk) -> usize {
        self.looks.push(Look::default());
        self.cluster.add_node(disk)
    }

    fn carry_out(&mut self, plan: &Plan) -> Result<(), Broken> {
        for node in 0..plan.replicas {
            self.start(node)?;
        }
        for (at, action) in &plan.actions {
            self.run_until(*at)?;
            self.cluster.trace.tell(*at, || format!("* {action}"));
            self.act(action)?;
        }
        self.rest(plan)
    }

    fn run_until(&mut self, until_us: u64) -> Result<(), Broken> {
        loop {
            let later = self.later.first_key_value().map(|((at, _), _)| *at);
            let next = later.map_or(until_us, |later| later.min(until_us));
            while let Some(touched) = self.cluster.step(next) {
                if let Some(touched) = touched {
                    self.look(touched.node, touched.by_time, false)?;
                }
                if let Some(node) = self.cluster.loops {
                    return broken("C5", format!("{node} wants to be called for ever"));
                }
            }
            if later.is_none_or(|later| later > until_us) {
                return Ok(());
            }
            if let Some((_, later)) = self.later.pop_first() {
                self.do_later(later)?;
            }
        }
    }

    fn plan_later(&mut self, after_us: u64, later: Later) {
        self.laters += 1;
        let at = self.cluster.now_us + after_us;
        self.later.insert((at, self.laters), later);
    }

    fn do_later(&mut self, later: Later) -> Result<(), Broken> {
        match later {
            Later::Start(node) => self.start(node),
            Later::EmptyDisk(node) => {
                self.cluster.nodes[node].disk.set_full(false);
                Ok(())
            }
            Later::Repair(node) => {
                self.cluster.nodes[node].disk.repair();
                self.look(node, false, true)
            }
            Later::AbandonSync(node, life, sync) => {
                let running = &mut self.cluster.nodes[node];
                if running.life == life
                    && let Some(replica) = &mut running.replica
                {
                    replica.abandon_sync(sync);
                }
                Ok(())
            }
            Later::Resume(node) => {
                let now = self.cluster.now_at(node);
                if let Some(replica) = &mut self.cluster.nodes[node].replica {
                    replica.resume(now);
                }
                self.cluster.poke(node);
                Ok(())
            }
        }
    }

    fn start(&mut self, node: usize) -> Result<(), Broken> {
        let stopped = &self.cluster.nodes[node];
        if stopped.replica.is_some() || stopped.is_dead {
            return Ok(());
        }
        if self.cluster.open(node).is_err() {
            self.cluster.trace.count("opens refused by the disk");
            self.plan_later(5_000, Later::Start(node));
            return Ok(());
        }
        if let Some(commits) = self.looks[node].crash_again.take() {
            self.cluster.nodes[node]
                .disk
                .crash_at_commit(commits - 1, true);
        }
        let purpose = [5, node as u64, self.cluster.nodes[node].life];
        let delay = chance(self.cluster.seed, &purpose).u64(..50_000);
        self.cluster.scan(node, delay);
        self.look(node, false, true)
    }

    /// Checks a replica that may have changed.
    fn look(&mut self, node: usize, by_time: bool, forced: bool) -> Result<(), Broken> {
        let events = std::mem::take(&mut self.cluster.nodes[node].events);
        self.check_events(node, &events)?;
        if self.cluster.nodes[node].disk.has_crashed() {
            let lost = self.looks[node].lost_at_crash;
            self.release_disk(node, lost);
            self.plan_later(10_000, Later::Start(node));
        }
        let disk = self.cluster.nodes[node].disk.clone();
        let life = self.cluster.nodes[node].life;
        let Some(state) = self.cluster.state(node) else {
            return Ok(());
        };
        let look = &self.looks[node];
        let (commits, failed) = (state.commits(), disk.failed());
        let (changed, in_conflict) = keys_told(&events);
        let is_same = (look.life, look.commits, look.failed) == (life, commits, failed);
        if !forced && is_same && changed.is_empty() {
            return Ok(());
        }

        disk.set_watched(true);
        let named = |broken: Broken| Broken {
            how: format!("at {node}: {}", broken.how),
            ..broken
        };
        check_grown(&look.clock, state.clock()).map_err(named)?;
        if look.is_catching_up && !state.is_catching_up() && by_time {
            // It has given up waiting.
            self.oracle.excuse_batches(state);
            self.cluster.trace.count("claims given up");
            if self.is_quiet && self.settled_at_rest.iter().any(|&other| other != node) {
                let how = format!(
                    "{node} waited for a claim, and {:?} did not make it",
                    self.settled_at_rest
                );
                return broken("P2 progress", how);
            }
        }
        let state = self.cluster.nodes[node]
            .replica
            .as_ref()
            .map(|replica| replica.state());
        let Some(state) = state else {
            return Ok(());
        };
        let is_damaged = |key: &[u8]| disk.is_damaged(key);
        let shown = self.oracle.check(state, is_damaged).map_err(named)?;
        self.oracle.check_batches(state, &shown).map_err(named)?;
        if self.looks[node].life == life {
            let told = shown.check_told(&self.looks[node].shown, &changed, &in_conflict);
            told.map_err(named)?;
        }
        let is_catching_up = state.is_catching_up();
        let look = &mut self.looks[node];
        look.life = life;
        look.commits = commits;
        look.failed = failed;
        look.clock = Arc::clone(state.clock());
        look.is_catching_up = is_catching_up;
        look.shown = shown;
        disk.set_watched(false);
        let trace = &mut self.cluster.trace;
        trace.count("checks");
        let has_gaps = look.clock.iter().any(|(_, known)| known.ahead_len() > 0);
        trace.count_times("clocks with gaps", u64::from(has_gaps));
        trace.count_times("replicas seen catching up", u64::from(is_catching_up));
        Ok(())
    }

    fn check_events(&self, node: usize, events: &[Event]) -> Result<(), Broken> {
        for event in events {
            match event {
                Event::Divergence { peer } => {
                    let how = format!("{node} holds something else than {}", peer.replica);
                    return broken("C1", how);
                }
                Event::Error { error, .. } => self.check_error(node, error)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Honest peers on honest links never break the protocol, and do not fall silent undisturbed.
    fn check_error(&self, node: usize, error: &PeerError) -> Result<(), Broken> {
        let accuses = matches!(
            error,
            PeerError::Frame(_) | PeerError::Malformed(_) | PeerError::Misbehaved(_)
        );
        if accuses && (self.is_honest || self.is_quiet) {
            return broken(
                "P1 protocol",
                format!("{node} accuses an honest peer: {error}"),
            );
        }
        let disturbed = matches!(
            error,
            PeerError::Stalled { .. } | PeerError::Storage { .. } | PeerError::Handshake { .. }
        );
        if disturbed && self.is_quiet {
            return broken("P2 progress", format!("{node}, undisturbed: {error}"));
        }
        Ok(())
    }

    /// The node that an action means: there may be more or fewer than when the plan was made.
    fn node(&self, node: usize) -> usize {
        node % self.cluster.nodes.len()
    }

    fn act(&mut self, action: &Action) -> Result<(), Broken> {
        match *action {
            Action::Write { node, ref ops } => self.write(self.node(node), ops),
            Action::Read { node } => {
                self.cluster.trace.count("reads");
                self.look(self.node(node), false, true)
            }
            Action::Sync { node } => {
                let node = self.node(node);
                let now = self.cluster.now_at(node);
                let life = self.cluster.nodes[node].life;
                if let Some(replica) = &mut self.cluster.nodes[node].replica {
                    let sync = replica.request_sync(now);
                    self.cluster.trace.count("syncs asked for");
                    self.plan_later(SYNC_TIMEOUT_US, Later::AbandonSync(node, life, sync));
                }
                self.cluster.poke(node);
                Ok(())
            }
            Action::CutOneWay { from, to } => {
                let (from, to) = (self.node(from), self.node(to));
                if from != to {
                    self.cluster.trace.count("cuts");
                    self.cluster.cut(from, to);
                }
                Ok(())
            }
            Action::Partition { side } => {
                self.partition(side);
                Ok(())
            }
            Action::Heal => {
                self.cluster.trace.count("heals");
                self.cluster.heal();
                Ok(())
            }
            Action::SlowDown { a, b, bytes_per_ms } => {
                let (a, b) = (self.node(a), self.node(b));
                self.cluster.trace.count("lines slowed down");
                self.cluster.slow_down(a, b, bytes_per_ms);
                Ok(())
            }
            Action::BreakLink { choice, silently } => {
                if self.cluster.break_link(choice, silently) {
                    let what = if silently {
                        "links that fell silent"
                    } else {
                        "links broken"
                    };
                    self.cluster.trace.count(what);
                }
                Ok(())
            }
            Action::Kill {
                node,
                silently,
                lost,
                away_us,
                again,
            } => {
                let node = self.node(node);
                self.looks[node].crash_again = again;
                self.kill(node, silently, lost, away_us);
                Ok(())
            }
            Action::CrashAtCommit {
                node,
                after,
                done,
                lost,
            } => {
                let node = self.node(node);
                if self.cluster.nodes[node].replica.is_some() {
                    self.looks[node].lost_at_crash = lost;
                    self.cluster.nodes[node].disk.crash_at_commit(after, done);
                }
                Ok(())
            }
            Action::CloseAndOpen { node, away_us } => self.close(self.node(node), away_us),
            Action::Pause { node, for_us } => {
                let node = self.node(node);
                let now = self.cluster.now_at(node);
                if let Some(replica) = &mut self.cluster.nodes[node].replica {
                    replica.pause(now);
                    self.cluster.trace.count("pauses");
                    self.plan_later(for_us, Later::Resume(node));
                }
                self.cluster.poke(node);
                Ok(())
            }
            Action::FillDisk { node, for_us } => {
                let node = self.node(node);
                self.cluster.nodes[node].disk.set_full(true);
                self.cluster.trace.count("disks filled");
                self.plan_later(for_us, Later::EmptyDisk(node));
                Ok(())
            }
            Action::FailDisk { node, operations } => {
                let node = self.node(node);
                self.cluster.nodes[node].disk.fail_next(operations);
                Ok(())
            }
            Action::Damage {
                node,
                key,
                bit,
                for_us,
            } => {
                let node = self.node(node);
                let disk = &self.cluster.nodes[node].disk;
                if disk.damage(format!("key{key}").as_bytes(), bit) {
                    self.cluster.trace.count("records damaged");
                    self.plan_later(for_us, Later::Repair(node));
                }
                Ok(())
            }
            Action::BackUp { node } => {
                let node = self.node(node);
                let copy = self.cluster.nodes[node].disk.copy();
                self.backups.push((node, copy));
                self.cluster.trace.count("backups");
                Ok(())
            }
            Action::Restore { choice, again } => self.restore(choice, again),
            Action::Clone { node } => self.clone_disk(self.node(node)),
            Action::Join { knows } => {
                let knows = self.node(knows);
                if self.cluster.nodes.len() >= self.replicas_max {
                    return Ok(());
                }
                self.cluster.trace.count("joins");
                let node = self.add_node(Disk::new());
                self.cluster.nodes[node].peers.insert(knows);
                self.start(node)
            }
            Action::Die { node } => {
                let node = self.node(node);
                let alive = self.cluster.nodes.iter().filter(|node| !node.is_dead);
                if alive.count() > 1 && !self.cluster.nodes[node].is_dead {
                    self.cluster.trace.count("deaths");
                    self.cluster.kill(node, true);
                    self.cluster.nodes[node].is_dead = true;
                }
                Ok(())
            }
            Action::SetClock {
                node,
                off_us,
                tick_us,
            } => {
                let node = self.node(node);
                self.cluster.trace.count("clocks set");
                self.cluster.nodes[node].wall_off_us = off_us;
                self.cluster.nodes[node].tick_us = tick_us;
                Ok(())
            }
            Action::Discover { node, peer } => {
                let (node, peer) = (self.node(node), self.node(peer));
                self.cluster.discover(node, peer);
                self.look(node, false, false)
            }
            Action::Forget { node, peer } => {
                let (node, peer) = (self.node(node), self.node(peer));
                self.cluster.remove_peer(node, peer);
                self.look(node, false, false)
            }
            Action::Record { side } => {
                self.cluster.record_next_link(side);
                Ok(())
            }
            Action::Replay { node } => {
                let node = self.node(node);
                if self.cluster.replay(node) {
                    self.cluster.trace.count("sessions replayed");
                }
                self.look(node, false, false)
            }
        }
    }

    fn write(&mut self, node: usize, changes: &[Change]) -> Result<(), Broken> {
        let ops: Vec<Op> = changes.iter().map(op).collect();
        let disk = self.cluster.nodes[node].disk.clone();
        let (life, now) = (self.cluster.nodes[node].life, self.cluster.now_at(node));
        let Some(state) = self.cluster.state(node) else {
            self.cluster.trace.count("writes to nobody");
            return Ok(());
        };
        disk.set_watched(true);
        let is_damaged = |op: &Op| state.record(op.key()).is_err() && disk.is_damaged(op.key());
        if ops.iter().any(is_damaged) {
            disk.set_watched(false);
            return self.write_over_damage(node, &ops);
        }
        let seen = self.oracle.look(state, &ops)?;
        disk.set_watched(false);

        let written = self.cluster.write(node, &ops);
        let wall_us = now.wall_us;
        match (written, self.cluster.state(node)) {
            (Some(Ok(written)), Some(state)) => {
                disk.set_watched(true);
                self.oracle
                    .enter(life, wall_us, &seen, &ops, Some(&written), state)?;
                disk.set_watched(false);
                self.cluster.trace.count("writes");
                self.count_ops(&ops);
            }
            (Some(Ok(_)), None) => {
                return broken("D", format!("{node} has answered and died"));
            }
            (Some(Err(_)), None) => {
                // It died inside: the disk tells whether the write was made.
                self.cluster.trace.count("writes unanswered");
                let left = State::open(Arc::new(disk.copy()), [0; 16]);
                let left = left.or_else(|error| broken("D", error.to_string()))?;
                self.oracle.enter(life, wall_us, &seen, &ops, None, &left)?;
            }
            (Some(Err(_)), Some(_)) => {
                self.cluster.trace.count("writes refused by the disk");
                return self.look(node, false, true);
            }
            (None, _) => {}
        }
        self.look(node, false, false)
    }

    /// A write that cannot see what it replaces must be refused.
    fn write_over_damage(&mut self, node: usize, ops: &[Op]) -> Result<(), Broken> {
        if let Some(Ok(_)) = self.cluster.write(node, ops) {
            return broken("D", format!("{node} overwrites what it cannot read"));
        }
        self.cluster.trace.count("writes refused over damage");
        self.look(node, false, true)
    }

    fn count_ops(&mut self, ops: &[Op]) {
        let trace = &mut self.cluster.trace;
        trace.count_times("batches", u64::from(ops.len() > 1));
        for op in ops {
            match op {
                Op::Put(_, value) => {
                    trace.count_times("values over 1 MiB", u64::from(value.len() > 1 << 20));
                }
                Op::Delete(_) => trace.count("deletes"),
            }
        }
    }

    fn partition(&mut self, side: u64) {
        self.cluster.trace.count("cuts");
        let nodes = self.cluster.nodes.len();
        for from in 0..nodes {
            for to in 0..nodes {
                if (side >> (from % 64)) & 1 != (side >> (to % 64)) & 1 {
                    self.cluster.cut(from, to);
                }
            }
        }
    }

    fn kill(&mut self, node: usize, silently: bool, lost: usize, away_us: u64) {
        if self.cluster.nodes[node].replica.is_none() {
            return;
        }
        self.cluster.trace.count("kills");
        self.cluster
            .trace
            .count_times("long absences", u64::from(away_us >= 1_000_000));
        self.cluster.kill(node, silently);
        self.release_disk(node, lost);
        self.plan_later(away_us, Later::Start(node));
    }

    /// The process on a disk has ended; with a loss of power, its last commits go too.
    fn release_disk(&mut self, node: usize, lost: usize) {
        let undone = self.cluster.nodes[node].disk.release(lost);
        self.looks[node].lost_at_crash = 0;
        if lost > 0 {
            self.cluster.trace.count("power losses");
        }
        if undone > 0 {
            self.cluster
                .trace
                .count_times("commits undone by a loss of power", undone as u64);
            // What is gone need not be known any more.
            self.looks[node].clock = Arc::default();
        }
    }

    fn close(&mut self, node: usize, away_us: u64) -> Result<(), Broken> {
        if self.cluster.nodes[node].replica.is_none() {
            return Ok(());
        }
        match self.cluster.close(node) {
            Ok(()) => self.cluster.trace.count("clean closes"),
            Err(_) => self.cluster.trace.count("closes refused by the disk"),
        }
        let lost = self.looks[node].lost_at_crash;
        let crashed = self.cluster.nodes[node].disk.has_crashed();
        self.release_disk(node, if crashed { lost } else { 0 });
        self.plan_later(away_us, Later::Start(node));
        Ok(())
    }

    fn restore(&mut self, choice: u64, again: Option<u32>) -> Result<(), Broken> {
        let Some((node, copy)) = self
            .backups
            .get(choice as usize % self.backups.len().max(1))
            .map(|(node, disk)| (*node, disk.copy()))
        else {
            return Ok(());
        };
        self.cluster.trace.count("restores");
        self.cluster.kill(node, false);
        self.cluster.nodes[node].is_dead = false;
        self.cluster.nodes[node].disk = copy;
        self.looks[node] = Look {
            crash_again: again,
            ..Look::default()
        };
        self.start(node)
    }

    fn clone_disk(&mut self, node: usize) -> Result<(), Broken> {
        if self.cluster.nodes.len() >= self.replicas_max || self.cluster.nodes[node].is_dead {
            return Ok(());
        }
        self.cluster.trace.count("clones");
        let copy = self.cluster.nodes[node].disk.copy();
        let clone = self.add_node(copy);
        self.cluster.nodes[clone].peers = self.cluster.nodes[node].peers.clone();
        self.cluster.nodes[clone].peers.insert(node);
        self.start(clone)
    }

    /// Nothing disturbs any more: now all must come to agree, and then fall silent.
    fn rest(&mut self, plan: &Plan) -> Result<(), Broken> {
        for look in &mut self.looks {
            look.crash_again = None;
        }
        self.come_to_rest()?;
        let states = self.cluster.running().into_iter();
        let states: Vec<&State> = states.filter_map(|node| self.cluster.state(node)).collect();
        let known = self.oracle.known_to_any(states);
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
        self.check_agreement(&known)?;
        self.check_silence(plan)?;
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
            self.cluster.nodes[node].disk.repair();
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
        let settled = |state: &State| !state.is_catching_up() && state.tally().is_some();
        settled(first)
            && states
                .filter_map(|node| self.cluster.state(node))
                .all(|state| state.clock() == first.clock() && settled(state))
    }

    fn disagreement(&self) -> String {
        let mut how = "they do not agree though nothing disturbs:".to_owned();
        for node in self.cluster.running() {
            if let Some(state) = self.cluster.state(node) {
                let dots: u64 = state.clock().count_missing_in(&Clock::default());
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
        let mut tallies: BTreeSet<Option<[u8; 40]>> = BTreeSet::new();
        for node in self.cluster.running() {
            let Some(state) = self.cluster.state(node) else {
                continue;
            };
            let shown = self.oracle.check(state, |_| false)?;
            self.oracle.check_batches(state, &shown)?;
            self.oracle.check_nothing_is_lost(state, known)?;
            if !state.clock().covers(known) {
                return broken("C2", format!("{node} does not know what somebody knew"));
            }
            let scanned = scan_tally(&*state.storage().snapshot(), state.writers(), || true);
            if scanned.ok().flatten() != state.tally() {
                return broken("C1", format!("the tally of {node} is wrong"));
            }
            let tally = state.tally().map(Tally::to_bytes);
            tallies.insert(tally.and_then(|tally| tally[..].try_into().ok()));
        }
        if tallies.len() > 1 {
            return broken("C1", "equal clocks and unequal digests".to_owned());
        }
        Ok(())
    }

    /// C5: nobody writes, nobody sends a record, and conversations cost next to nothing.
    fn check_silence(&mut self, plan: &Plan) -> Result<(), Broken> {
        let running = self.cluster.running();
        let interval_us = micros(plan.config.idle_interval);
        let settle_us = micros(plan.config.linger) + 2 * micros(plan.config.stall_timeout);
        // The first sync may still tidy up behind what went before; after that nothing is left to do.
        self.sync_all(&running)?;
        self.run_until(self.cluster.now_us + settle_us)?;
        let before = self.sums(&running);
        self.sync_all(&running)?;
        self.run_until(self.cluster.now_us + settle_us)?;
        let synced = self.sums(&running);
        self.run_until(self.cluster.now_us + 3 * interval_us)?;
        let after = self.sums(&running);

        let (commits, records) = (after.0 - before.0, after.1 - before.1);
        if commits > 0 || records > 0 {
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

/// The keys that events say have changed, and those that they say are in conflict.
fn keys_told(events: &[Event]) -> (BTreeSet<Bytes>, BTreeSet<Bytes>) {
    let (mut changed, mut in_conflict) = (BTreeSet::new(), BTreeSet::new());
    for event in events {
        match event {
            Event::Change { key, .. } => changed.insert(key.clone()),
            Event::Conflict { key } => in_conflict.insert(key.clone()),
            _ => false,
        };
    }
    (changed, in_conflict)
}

fn broken<T>(invariant: &'static str, how: String) -> Result<T, Broken> {
    Err(Broken { invariant, how })
}

fn op(change: &Change) -> Op {
    let key = Bytes::from(format!("key{}", change.key));
    match change.put {
        None => Op::Delete(key),
        Some((value, len)) => {
            let mut bytes = value.to_string().into_bytes();
            bytes.resize(len.max(bytes.len()), b'.');
            Op::Put(key, bytes.into())
        }
    }
}

/// Who knows whose address at the beginning.
fn introductions(plan: &Plan) -> Vec<(usize, usize)> {
    let nodes = plan.replicas;
    let mut luck = chance(plan.seed, &[6]);
    let pairs = (1..nodes).map(|node| match plan.topology {
        Topology::Star => (node, 0),
        Topology::Random => (node, luck.usize(..node)),
        _ => (node, node - 1),
    });
    let mut pairs: Vec<(usize, usize)> = pairs.collect();
    if plan.topology == Topology::Ring {
        pairs.push((0, nodes - 1));
    }
    if plan.topology == Topology::Full {
        let all = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        pairs = all.filter(|(from, to)| from != to).collect();
    }
    pairs.retain(|(from, to)| from != to);
    pairs
}
