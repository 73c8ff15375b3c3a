//! Chance decides who writes what, who hears whom, what breaks, and what a clock says; after every
//! step everybody must hold what the [`History`] says, and at rest everybody the same.
//!
//! `LEVEL_SEEDS=1000..2000` runs other seeds than the few of every day; a seed that fails is named.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use level_replicator_core::clock::Clock;
use level_replicator_core::config::Config;
use level_replicator_core::record::Op;
use level_replicator_core::storage::memory::MemoryStorage;

use crate::cluster::{Cluster, End};
use crate::history::History;

const HOUR_US: i64 = 3_600 * 1_000_000;

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// One run.
pub(crate) struct Run {
    chance: Chance,
    cluster: Cluster,
    history: History,
    /// Which life of which process runs at each node.
    lifetimes: Vec<u64>,
    next_lifetime: u64,
    /// What each disk knew at the last look: it never gets less.
    clocks: Vec<Clock>,
    /// How many commits each process had made at the last look: without a new one nothing changed.
    commits: Vec<Option<u64>>,
    /// Disks of nodes that are down.
    down: BTreeMap<usize, MemoryStorage>,
    backups: Vec<(usize, MemoryStorage)>,
    introductions: Vec<(usize, usize)>,
    keys: usize,
    values: u64,
    batches_are_whole: bool,
}

const NODES_MAX: usize = 6;

impl Run {
    pub(crate) fn new(seed: u64) -> Run {
        let mut chance = Chance(seed);
        let config = Config {
            idle_interval: Duration::from_millis(500),
            backoff_max: Duration::from_millis(200),
            stall_timeout: Duration::from_millis(1_000),
            linger: Duration::from_millis(chance.of(&[0, 30, 1_000])),
            relay_delay: Duration::from_millis(chance.of(&[0, 20])),
            atomic_budget: chance.of(&[0, 200, 100_000, 1 << 20]),
            window: chance.of(&[1, 70_000, 1 << 20]),
            round_time: Duration::from_millis(if seed % 4 == 1 { 3 } else { 10_000 }),
            ..Config::default()
        };
        let nodes = 2 + chance.below(4);
        let mut cluster = Cluster::with_config(0, config);
        cluster.seed = seed << 20;
        let introductions = introductions(&mut chance, nodes);
        let keys = 1 + chance.below(6);
        let mut run = Run {
            chance,
            cluster,
            history: History::default(),
            lifetimes: Vec::new(),
            next_lifetime: 0,
            clocks: Vec::new(),
            commits: Vec::new(),
            down: BTreeMap::new(),
            backups: Vec::new(),
            introductions,
            keys,
            values: 0,
            batches_are_whole: true,
        };
        for _ in 0..nodes {
            run.add_node(MemoryStorage::new());
        }
        for node in 0..nodes {
            run.introduce(node);
        }
        run
    }

    fn add_node(&mut self, disk: MemoryStorage) {
        let node = self.cluster.nodes.len();
        self.cluster.nodes.push(None);
        self.lifetimes.push(0);
        self.clocks.push(Clock::default());
        self.commits.push(None);
        self.open(node, disk);
    }

    fn open(&mut self, node: usize, disk: MemoryStorage) {
        self.next_lifetime += 1;
        self.lifetimes[node] = self.next_lifetime;
        self.commits[node] = None;
        self.cluster.open(node, disk);
        if self.chance.percent(50) {
            self.cluster.scan_tally(node);
        }
        let clock = self.cluster.state(node).clock();
        assert!(
            clock.covers(&self.clocks[node]),
            "node {node} forgot what its disk knew"
        );
        self.clocks[node] = Clock::clone(clock);
    }

    fn introduce(&mut self, node: usize) {
        for (from, to) in self.introductions.clone() {
            if from == node {
                self.cluster.introduce(from, to);
            }
        }
    }

    pub(crate) fn run(&mut self) {
        let steps = 30 + self.chance.below(90);
        for _ in 0..steps {
            self.step();
            self.check_all();
        }
        self.rest();
    }

    fn step(&mut self) {
        match self.chance.below(100) {
            0..35 => self.write(),
            35..68 => self.deliver_some(),
            68..77 => {
                let ms = self.chance.of(&[1, 5, 25, 120]);
                self.cluster.advance_ms(ms);
            }
            77..81 => self.cut(),
            81..84 => self.cluster.heal(),
            84..88 => self.break_a_link(),
            88..92 => self.stop_or_start(),
            92..94 => self.close_and_open(),
            94..95 => self.back_up(),
            95..96 => self.restore(),
            96..97 => self.clone_a_disk(),
            _ => self.change_a_clock(),
        }
    }

    fn any_running(&mut self) -> Option<usize> {
        let running = self.cluster.running();
        (!running.is_empty()).then(|| self.chance.of(&running))
    }

    fn op(&mut self) -> Op {
        let key = Bytes::from(format!("key{}", self.chance.below(self.keys)));
        if self.chance.percent(20) {
            return Op::Delete(key);
        }
        self.values += 1;
        let mut value = self.values.to_string();
        if self.chance.percent(5) {
            value = value.repeat(40_000 / value.len());
        }
        Op::Put(key, value.into())
    }

    fn write(&mut self) {
        let Some(node) = self.any_running() else {
            return;
        };
        let count = if self.chance.percent(75) {
            1
        } else {
            1 + self.chance.below(5)
        };
        if self.history.room() < count {
            return;
        }
        let ops: Vec<Op> = (0..count).map(|_| self.op()).collect();
        let seen = self.history.seen_by(self.cluster.state(node), &ops);
        self.cluster.now.wall_us += 1;
        let now = self.cluster.now_at(node);
        let written = self
            .cluster
            .node(node)
            .replica
            .write(now, &ops)
            .expect("memory takes all");
        let lifetime = self.lifetimes[node];
        let state = self.cluster.state(node);
        self.history
            .enter(lifetime, now.wall_us, &seen, &ops, &written, state);
        if self.chance.percent(50) {
            self.cluster.advance_us(1);
        }
    }

    fn deliver_some(&mut self) {
        for _ in 0..1 + self.chance.below(12) {
            let ends: Vec<End> = self.cluster.ends_with_mail();
            if ends.is_empty() {
                return;
            }
            let end = self.chance.of(&ends);
            let at_most = if self.chance.percent(10) {
                1 + self.chance.below(200)
            } else {
                usize::MAX
            };
            self.cluster.deliver_next(end, at_most);
            self.check(end.0);
            if self.chance.percent(60) {
                self.cluster.advance_us(1);
            }
        }
    }

    fn cut(&mut self) {
        let nodes = self.cluster.nodes.len();
        let (a, b) = (self.chance.below(nodes), self.chance.below(nodes));
        if a != b {
            self.cluster.cut(a, b);
        }
    }

    fn break_a_link(&mut self) {
        let ends = self.cluster.link_ends();
        if !ends.is_empty() {
            let end = self.chance.of(&ends);
            self.cluster.break_link(end);
        }
    }

    fn stop_or_start(&mut self) {
        let node = self.chance.below(self.cluster.nodes.len());
        match self.down.remove(&node) {
            Some(disk) => {
                self.open(node, disk);
                self.introduce(node);
            }
            None => {
                let disk = self.cluster.kill(node);
                self.down.insert(node, disk);
                if self.chance.percent(60) {
                    self.start(node);
                }
            }
        }
    }

    fn start(&mut self, node: usize) {
        if let Some(disk) = self.down.remove(&node) {
            self.open(node, disk);
            self.introduce(node);
        }
    }

    fn close_and_open(&mut self) {
        if let Some(node) = self.any_running() {
            let now = self.cluster.now_at(node);
            let replica = &mut self.cluster.node(node).replica;
            replica.pause(now);
            replica.state_mut().close().expect("memory takes all");
            let disk = self.cluster.kill(node);
            self.down.insert(node, disk);
            self.start(node);
        }
    }

    fn back_up(&mut self) {
        if let Some(node) = self.any_running() {
            let disk = self.cluster.node(node).storage.fork();
            self.backups.push((node, disk));
        }
    }

    /// A node goes on from an older state of its disk.
    fn restore(&mut self) {
        if self.backups.is_empty() {
            return self.back_up();
        }
        let (node, disk) = self.chance.of(&self.backups);
        if !self.down.contains_key(&node) {
            self.cluster.kill(node);
        }
        self.down.insert(node, disk.fork());
        self.clocks[node] = Clock::default();
        self.start(node);
    }

    /// A copy of a disk runs beside the original, under the same name.
    fn clone_a_disk(&mut self) {
        let Some(node) = self.any_running() else {
            return;
        };
        let copy = self.cluster.nodes.len();
        if copy < NODES_MAX {
            let disk = self.cluster.node(node).storage.fork();
            self.add_node(disk);
            self.introductions.push((copy, node));
            self.introductions.push((node, copy));
            self.introduce(copy);
            self.cluster.introduce(node, copy);
        }
    }

    fn change_a_clock(&mut self) {
        let node = self.chance.below(self.cluster.nodes.len());
        let off = self.chance.of(&[
            0,
            1,
            -1,
            HOUR_US,
            -HOUR_US,
            9_000 * HOUR_US,
            -90_000 * HOUR_US,
        ]);
        self.cluster.wall_off_us.insert(node, off);
    }

    fn check_all(&mut self) {
        for node in self.cluster.running() {
            self.check(node);
        }
    }

    fn check(&mut self, node: usize) {
        if self.cluster.nodes[node].is_none() {
            return;
        }
        let state = self.cluster.state(node);
        if self.commits[node].replace(state.commits()) == Some(state.commits()) {
            return;
        }
        let who = format!("node {node}");
        self.cluster.assert_whole(node);
        self.history.check(state, &who);
        if self.batches_are_whole {
            self.history.check_batches(state, &who);
        }
        assert!(
            state.clock().covers(&self.clocks[node]),
            "{who} forgot what it knew"
        );
        self.clocks[node] = Clock::clone(state.clock());
    }

    /// Everybody runs and reaches everybody: all must become equal, and nothing known get lost.
    fn rest(&mut self) {
        self.cluster.heal();
        for node in 0..self.cluster.nodes.len() {
            self.start(node);
        }
        let running = self.cluster.running();
        let states = running.iter().map(|&node| self.cluster.state(node));
        let known = self.history.known_to(states);
        for round in 0.. {
            self.cluster.deliver_all();
            let first = self.cluster.state(0).clock();
            let equal = running
                .iter()
                .all(|&node| self.cluster.state(node).clock() == first);
            let catching_up = |node: &usize| self.cluster.state(*node).is_catching_up();
            let waiting = running.iter().filter(|node| catching_up(node)).count();
            // Only when the source of a batch is gone for ever nobody can make its claim.
            let settled = waiting == 0 || waiting == running.len() && round > 1_000;
            if equal && settled && self.cluster.ends_with_mail().is_empty() {
                break;
            }
            assert!(round < 4_000, "equal: {equal}, {waiting} are catching up");
            self.cluster.advance_to_next_timeout(20_000);
        }
        while running
            .iter()
            .any(|&node| self.cluster.state(node).is_catching_up())
        {
            assert!(
                self.cluster.now.steady_us < 300_000_000,
                "they wait for ever for a claim"
            );
            self.cluster.deliver_all();
            self.cluster.advance_to_next_timeout(1_000_000);
            // Who gives up waiting for a claim may show half of a batch.
            self.batches_are_whole = false;
        }
        self.check_all();
        self.cluster.assert_equal();
        let clock = Clock::clone(self.cluster.state(0).clock());
        assert!(clock.covers(&known), "something that was known is lost");

        for _ in 0..40 {
            self.cluster.deliver_all();
            self.cluster.advance_to_next_timeout(20_000);
        }
        self.cluster.assert_equal();
        assert_eq!(
            clock,
            **self.cluster.state(0).clock(),
            "somebody writes without being asked"
        );
    }
}

/// Who knows whose address: a chain, a star, everybody, or chance, but never two separate parts.
fn introductions(chance: &mut Chance, nodes: usize) -> Vec<(usize, usize)> {
    let shape = chance.below(4);
    let mut pairs = Vec::new();
    for node in 1..nodes {
        let before = match shape {
            0 => node - 1,
            1 => 0,
            _ => chance.below(node),
        };
        pairs.push(if chance.percent(50) {
            (node, before)
        } else {
            (before, node)
        });
        if shape == 2 {
            pairs.extend((0..node).flat_map(|other| [(node, other), (other, node)]));
        }
    }
    pairs
}

fn seeds() -> Range<u64> {
    let parse = |text: String| {
        let (first, last) = text.split_once("..")?;
        Some(first.parse().ok()?..last.parse().ok()?)
    };
    match std::env::var("LEVEL_SEEDS") {
        Ok(text) => parse(text).expect("LEVEL_SEEDS has the form 1000..2000"),
        Err(_) => 0..300,
    }
}

/// Seeds that once failed, with what they found.
const ONCE_FAILED: [(u64, &str); 6] = [
    (
        640,
        "a push passed over a record with siblings and claimed it",
    ),
    (
        998,
        "a base that nobody wrote down was lost with its last log entry",
    ),
    (
        1222,
        "a push passed over a record with siblings and claimed it",
    ),
    (
        1300,
        "a push passed over a record with siblings and claimed it",
    ),
    (
        1054,
        "a push named itself whole though a dot of it had been replaced",
    ),
    (
        1302,
        "a push named itself whole though a dot of it had been replaced",
    ),
];

/// Names the seed of a run that fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "random schedule {} fails: LEVEL_SEEDS={0}..{}",
                self.0,
                self.0 + 1
            );
        }
    }
}

#[test]
fn what_once_failed_fails_no_more() {
    for (seed, found) in ONCE_FAILED {
        let named = Named(seed);
        eprintln!("{seed}: {found}");
        Run::new(seed).run();
        drop(named);
    }
}

#[test]
fn everybody_holds_what_it_must_at_every_step_of_random_schedules() {
    for seed in seeds() {
        let named = Named(seed);
        Run::new(seed).run();
        drop(named);
    }
}
