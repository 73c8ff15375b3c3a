//! One run: a plan is carried out, and after every step everybody must hold what the oracle says.

mod acts;
mod rest;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, WriterId, micros};
use level_replicator_core::event::Event;
use level_replicator_core::replica::SyncId;
use level_replicator_core::session::PeerError;
use level_replicator_core::state::State;
use level_replicator_core::storage::Table;

use crate::chance::chance;
use crate::cluster::Cluster;
use crate::disk::Disk;
use crate::oracle::{Broken, Oracle, Shown, check_grown};
use crate::plan::{Action, Plan, Topology};
use crate::trace::{Counts, Trace};

/// Replicas added to those of the plan by joins and clones, at most.
const ADDED_MAX: usize = 4;

/// Who waits for a claim as long as this meets everybody meanwhile.
const LONG_ENOUGH_US: u64 = 60_000_000;

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

/// What ends a run early, and breaks nothing.
const BEYOND: &str = "beyond what is promised";

/// A record could be read again whose writes its replica had forgotten when it promoted itself.
const WHOLE_TOO_LATE: &str = "records whole too late";

/// Two replicas with equal clocks hold something else, one of which has promoted itself: a history there
/// refuses what the other has taken from somebody who was far behind. They tell, and a scrub makes them
/// equal; what it writes for that the oracle does not foresee.
const DIVERGED: &str = "divergences after a promotion";

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
    floor: Arc<Clock>,
    members: usize,
    epoch: u64,
    promotions: u64,
    is_half_healed: bool,
    deletes: u64,
    is_catching_up: bool,
    shown: Shown,
    /// What it waits for, and since when nothing of that has come.
    waiting: Vec<(WriterId, u64, usize)>,
    waiting_since_us: u64,
    /// How many commits are lost when the process dies at one.
    lost_at_crash: usize,
    /// After how many commits it dies in each of the next lives, the last first.
    crash_again: Vec<u32>,
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
        match self.try_to_carry_out(plan) {
            Err(broken) if broken.invariant == BEYOND => {
                let how = [WHOLE_TOO_LATE, DIVERGED]
                    .into_iter()
                    .find(|how| broken.how == *how);
                self.cluster.trace.count(how.unwrap_or(BEYOND));
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn try_to_carry_out(&mut self, plan: &Plan) -> Result<(), Broken> {
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

    /// Makes damaged records whole. One whose writes were forgotten meanwhile, because nobody could heal its
    /// replica, is beyond what is promised, and the run ends.
    fn repair(&mut self, node: usize) -> Result<(), Broken> {
        let disk = &self.cluster.nodes[node].disk;
        if self.oracle.is_lenient() && disk.is_rotten(Table::Data) {
            return broken(BEYOND, WHOLE_TOO_LATE.to_owned());
        }
        disk.repair();
        Ok(())
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
                self.repair(node)?;
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
        if let Some(commits) = self.looks[node].crash_again.pop() {
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
            self.enter_expired_at_crash(node)?;
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
        if let Some(state) = self.cluster.state(node)
            && state.promotions() > look.promotions
        {
            // It forgets all that is not live with it.
            self.looks[node].clock = Arc::clone(state.clock());
            self.looks[node].floor = Arc::default();
            self.oracle.be_lenient();
        }
        let look = &self.looks[node];
        let Some(state) = self.cluster.state(node) else {
            return Ok(());
        };
        check_grown(&look.clock, state.clock()).map_err(named)?;
        check_grown(&look.floor, state.floor()).map_err(named)?;
        if state.members().len() < look.members || state.epoch().number < look.epoch {
            return broken("I7", format!("{node} has forgotten a member or an epoch"));
        }
        self.oracle.check_floor(state).map_err(named)?;
        // It may have died at the commit with which it gave up.
        let promote_us = micros(self.cluster.config.promote_timeout);
        let waited_us = self.cluster.now_us - look.waiting_since_us;
        let died_giving_up = look.life != life && waited_us >= promote_us;
        if look.is_catching_up && !state.is_catching_up() && (by_time || died_giving_up) {
            // It has given up waiting.
            self.oracle.excuse_batches(state);
            self.cluster.trace.count("claims given up");
            self.check_given_up(node)?;
        }
        self.note_waiting(node);
        let Some(replica) = &self.cluster.nodes[node].replica else {
            return Ok(());
        };
        let state = replica.state();
        let goes_on = replica.sessions().any(|session| session.is_resumed());
        let is_damaged = |key: &[u8]| disk.is_damaged(key);
        let now = self.cluster.now_at(node);
        let grace_us = micros(self.cluster.config.expiry_grace);
        let expired = self.oracle.enter_expired(life, now, grace_us, state);
        let (own, others) = expired.map_err(named)?;
        let shown = self.oracle.check(state, now, is_damaged).map_err(named)?;
        self.oracle.check_batches(state, &shown).map_err(named)?;
        if self.looks[node].life == life {
            let told = shown.check_told(&self.looks[node].shown, &changed, &in_conflict);
            told.map_err(named)?;
        }
        let is_catching_up = state.is_catching_up();
        let is_half_healed = !state.wanted().is_empty();
        let deletes = state.tally().map_or(0, |tally| tally.deletes);
        let look = &mut self.looks[node];
        let has_promoted = state.promotions() > look.promotions;
        let was_half_healed = std::mem::replace(&mut look.is_half_healed, is_half_healed);
        let has_completed = !look.floor.covers(state.floor());
        let reclaimed = look.deletes.saturating_sub(deletes);
        look.deletes = deletes;
        look.life = life;
        look.commits = commits;
        look.failed = failed;
        look.clock = Arc::clone(state.clock());
        look.floor = Arc::clone(state.floor());
        look.members = state.members().len();
        look.epoch = state.epoch().number;
        look.promotions = state.promotions();
        look.is_catching_up = is_catching_up;
        look.shown = shown;
        disk.set_watched(false);
        let trace = &mut self.cluster.trace;
        trace.count_times("epochs completed", u64::from(has_completed));
        trace.count_times(
            "deletes reclaimed",
            if has_completed { 0 } else { reclaimed },
        );
        trace.count_times("replicas seen half healed", u64::from(is_half_healed));
        let begun = is_half_healed && !was_half_healed;
        let finished = was_half_healed && !is_half_healed && !has_promoted;
        trace.count_times("heals begun", u64::from(begun));
        trace.count_times("heals finished", u64::from(finished));
        trace.count_times("heals seen to go on", u64::from(goes_on));
        trace.count_times("expired values deleted", own);
        trace.count_times("expired values of others deleted", others);
        trace.count("checks");
        let has_gaps = look.clock.iter().any(|(_, known)| known.ahead_len() > 0);
        trace.count_times("clocks with gaps", u64::from(has_gaps));
        trace.count_times("replicas seen catching up", u64::from(is_catching_up));
        Ok(())
    }

    /// Enters what a process had deleted when it died, by the clock that it died with.
    fn enter_expired_at_crash(&mut self, node: usize) -> Result<(), Broken> {
        let disk = self.cluster.nodes[node].disk.copy();
        let Ok(left) = State::open(Arc::new(disk), [0; 16]) else {
            return Ok(());
        };
        let life = self.cluster.nodes[node].life;
        let now = self.cluster.now_at(node);
        let grace_us = micros(self.cluster.config.expiry_grace);
        self.oracle.enter_expired(life, now, grace_us, &left)?;
        Ok(())
    }

    /// A replica has given up waiting for a claim: not too early, and not in vain.
    fn check_given_up(&self, node: usize) -> Result<(), Broken> {
        let promote_us = micros(self.cluster.config.promote_timeout);
        let waited_us = self.cluster.now_us - self.looks[node].waiting_since_us;
        if waited_us < promote_us {
            let how = format!("{node} gave up waiting for a claim after {waited_us} us");
            return broken("P2 progress", how);
        }
        let mut able = self.settled_at_rest.iter().filter(|&&other| other != node);
        if self.is_quiet && promote_us >= LONG_ENOUGH_US && able.next().is_some() {
            let how = format!(
                "{node} waited for a claim, and {:?} did not make it",
                self.settled_at_rest
            );
            return broken("P2 progress", how);
        }
        Ok(())
    }

    /// Notes since when a replica waits for the same claims and nothing of them has come.
    fn note_waiting(&mut self, node: usize) {
        let life = self.cluster.nodes[node].life;
        let waiting = self.cluster.state(node).map(State::unclaimed_known);
        let waiting = waiting.unwrap_or_default();
        let look = &mut self.looks[node];
        if look.life != life || look.waiting != waiting {
            look.waiting_since_us = self.cluster.now_us;
            look.waiting = waiting;
        }
    }

    fn check_events(&self, node: usize, events: &[Event]) -> Result<(), Broken> {
        for event in events {
            match event {
                Event::Divergence { .. } if self.oracle.is_lenient() => {
                    return broken(BEYOND, DIVERGED.to_owned());
                }
                Event::Divergence { peer, .. } => {
                    let mut how = format!("{node} holds something else than {}", peer.replica);
                    let is_one = |other: &usize| {
                        let state = self.cluster.state(*other);
                        *other == node || state.is_some_and(|state| state.replica() == peer.replica)
                    };
                    for other in self.cluster.running().into_iter().filter(is_one) {
                        if let Some(state) = self.cluster.state(other) {
                            how.push_str(&format!("; {other}: {}", self.oracle.describe(state)));
                        }
                    }
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
