//! A few replicas in one thread, with links that deliver every byte in order.
//!
//! Time stands still until a test moves it, so nothing here waits or depends on the machine. Links
//! keep their own order and know nothing of each other: a test that wants to choose which of them
//! moves next takes the deliveries into its own hands.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::{Dot, Now, Stamp};
use level_replicator_core::config::Config;
use level_replicator_core::event::Event;
use level_replicator_core::record::{Op, Record, Tally};
use level_replicator_core::replica::{Input, Output, Replica};
use level_replicator_core::resolver::Resolver;
use level_replicator_core::session::{LinkId, PeerError};
use level_replicator_core::state::State;
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Storage, Table};

/// One side of a link: whose, and what that side calls it.
pub(crate) type End = (usize, LinkId);

/// What is under way to one end of a link.
#[derive(Debug, Clone)]
pub(crate) enum Parcel {
    Bytes(Bytes),
    /// The other side has closed the link; what it sent before stands in front.
    Closed,
}

/// One replica with its disk.
pub(crate) struct Node {
    pub(crate) replica: Replica,
    pub(crate) storage: MemoryStorage,
    pub(crate) events: Vec<Event>,
    pub(crate) sent_bytes: u64,
    pub(crate) sends: u64,
}

/// Replicas, and what is under way between them.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) now: Now,
    config: Config,
    ends: BTreeMap<End, End>,
    wire: VecDeque<(End, Parcel)>,
    /// The source of all names and chance of the replica that is opened next.
    pub(crate) seed: u64,
    /// How far each replica's wall clock is off, in microseconds.
    pub(crate) wall_off_us: BTreeMap<usize, i64>,
    /// Pairs that cannot reach each other.
    cut: Vec<(usize, usize)>,
    /// After so many more deliveries every link breaks.
    pub(crate) break_after: Option<u64>,
    pub(crate) deliveries: u64,
    /// Whether each frame is a delivery of its own.
    pub(crate) by_frame: bool,
}

/// Cuts bytes between frames: a header of nine bytes names the length in its third to fifth.
fn frames(mut bytes: Bytes) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_be_bytes([0, bytes[2], bytes[3], bytes[4]]) as usize;
        frames.push(bytes.split_to(9 + length));
    }
    frames
}

pub(crate) fn address(node: usize) -> Address {
    format!("10.0.0.{node}:9000").parse().expect("an address")
}

impl Cluster {
    pub(crate) fn new(nodes: usize) -> Cluster {
        Cluster::with_config(nodes, Config::default())
    }

    pub(crate) fn with_config(nodes: usize, config: Config) -> Cluster {
        let mut cluster = Cluster {
            nodes: Vec::new(),
            now: Now {
                wall_us: 1_700_000_000_000_000,
                steady_us: 1_000_000,
            },
            config,
            ends: BTreeMap::new(),
            wire: VecDeque::new(),
            seed: 1,
            wall_off_us: BTreeMap::new(),
            cut: Vec::new(),
            break_after: None,
            deliveries: 0,
            by_frame: false,
        };
        for node in 0..nodes {
            cluster.nodes.push(None);
            cluster.open(node, MemoryStorage::new());
        }
        cluster
    }

    /// Starts a replica on a disk.
    pub(crate) fn open(&mut self, node: usize, storage: MemoryStorage) {
        let mut config = self.config.clone();
        config.advertised = Some(address(node));
        self.open_with(node, storage, config);
    }

    /// Starts a replica on a disk with settings of its own.
    pub(crate) fn open_with(&mut self, node: usize, storage: MemoryStorage, config: Config) {
        self.seed += 1;
        let shared = Arc::new(storage.clone());
        let now = self.now_at(node);
        let replica = Replica::open(shared, config, self.seed, now).expect("it opens");
        self.nodes[node] = Some(Node {
            replica,
            storage,
            events: Vec::new(),
            sent_bytes: 0,
            sends: 0,
        });
    }

    /// Ends a process without a word; its disk stays.
    pub(crate) fn kill(&mut self, node: usize) -> MemoryStorage {
        let ends: Vec<End> = self
            .ends
            .keys()
            .filter(|end| end.0 == node)
            .copied()
            .collect();
        for end in ends {
            self.break_link(end);
        }
        self.nodes[node].take().expect("it runs").storage
    }

    pub(crate) fn restart(&mut self, node: usize) {
        let storage = self.kill(node);
        self.open(node, storage);
    }

    pub(crate) fn node(&mut self, node: usize) -> &mut Node {
        self.nodes[node].as_mut().expect("it runs")
    }

    pub(crate) fn state(&self, node: usize) -> &State {
        self.nodes[node].as_ref().expect("it runs").replica.state()
    }

    /// The replicas that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|&node| self.nodes[node].is_some())
            .collect()
    }

    /// What time it is on one replica.
    pub(crate) fn now_at(&self, node: usize) -> Now {
        let off = self.wall_off_us.get(&node).copied().unwrap_or(0);
        Now {
            wall_us: self.now.wall_us.saturating_add_signed(off),
            steady_us: self.now.steady_us,
        }
    }

    pub(crate) fn introduce(&mut self, from: usize, to: usize) {
        let now = self.now_at(from);
        self.node(from).replica.add_peer(now, address(to));
    }

    pub(crate) fn introduce_all(&mut self) {
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
                if from != to {
                    self.introduce(from, to);
                }
            }
        }
    }

    /// Cuts two replicas off from one another.
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cut.push((a, b));
        self.cut.push((b, a));
        let across = |(end, other): (&End, &End)| {
            ((end.0, other.0) == (a, b) || (end.0, other.0) == (b, a)).then_some(*end)
        };
        let ends: Vec<End> = self.ends.iter().filter_map(across).collect();
        for end in ends {
            self.break_link(end);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn put(&mut self, node: usize, key: &str, value: &str) -> Dot {
        let op = Op::Put(
            Bytes::copy_from_slice(key.as_bytes()),
            Bytes::copy_from_slice(value.as_bytes()),
        );
        self.write(node, &[op]).expect("a put writes")
    }

    pub(crate) fn delete(&mut self, node: usize, key: &str) -> Option<Dot> {
        self.write(node, &[Op::Delete(Bytes::copy_from_slice(key.as_bytes()))])
    }

    pub(crate) fn write(&mut self, node: usize, ops: &[Op]) -> Option<Dot> {
        self.now.wall_us += 1;
        let now = self.now_at(node);
        let written = self.node(node).replica.write(now, ops);
        written.expect("the storage works").last
    }

    pub(crate) fn get(&mut self, node: usize, key: &str) -> Option<String> {
        let state = self.node(node).replica.state();
        let record = state.record(key.as_bytes()).expect("a good record");
        let key = Bytes::copy_from_slice(key.as_bytes());
        let now = Stamp::default();
        let shown = Resolver::last_write_wins().resolve(&key, &record, state.writers(), now);
        shown.map(|(value, _)| String::from_utf8_lossy(&value).into_owned())
    }

    pub(crate) fn siblings(&mut self, node: usize, key: &str) -> Vec<String> {
        let state = self.node(node).replica.state();
        let record = state.record(key.as_bytes()).expect("a good record");
        let puts = record.puts().filter_map(|put| put.value().cloned());
        let mut values: Vec<String> = puts
            .map(|value| String::from_utf8_lossy(&value).into_owned())
            .collect();
        values.sort();
        values
    }

    /// Everything a replica holds, key by key.
    pub(crate) fn contents(&self, node: usize) -> BTreeMap<Bytes, Record> {
        let state = self.nodes[node].as_ref().expect("it runs").replica.state();
        let snapshot = state.storage().snapshot();
        let entries = snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded);
        entries
            .map(|entry| {
                let (key, _) = entry.expect("memory reads");
                let record = state.record(&key).expect("a good record");
                (key, record)
            })
            .collect()
    }

    /// Delivers and lets time pass until nothing happens for a while.
    pub(crate) fn settle(&mut self) {
        self.run_for_ms(400);
    }

    /// Lets time pass in steps, delivering all that is under way at each.
    pub(crate) fn run_for_ms(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(5) {
            self.deliver_all();
            self.advance_ms(5);
        }
        self.deliver_all();
    }

    pub(crate) fn advance_ms(&mut self, ms: u64) {
        self.advance_us(ms * 1_000);
    }

    pub(crate) fn advance_us(&mut self, us: u64) {
        self.now.steady_us += us;
        self.now.wall_us += us;
        self.tick();
    }

    /// Calls every replica whose time has come, until none is left.
    fn tick(&mut self) {
        for node in 0..self.nodes.len() {
            for calls in 0.. {
                assert!(
                    calls < 10_000,
                    "node {node} wants to be called again and again"
                );
                let now = self.now_at(node);
                let Some(running) = &mut self.nodes[node] else {
                    break;
                };
                if running
                    .replica
                    .next_timeout()
                    .is_none_or(|due| due > now.steady_us)
                {
                    break;
                }
                running.replica.handle_input(now, Input::Timeout);
                self.take_outputs(node);
            }
        }
    }

    pub(crate) fn deliver_all(&mut self) {
        self.tick();
        while let Some((end, parcel)) = self.wire.pop_front() {
            self.deliveries += 1;
            if let Some(left) = &mut self.break_after {
                if *left == 0 {
                    self.break_after = None;
                    self.break_all();
                    continue;
                }
                *left -= 1;
            }
            self.deliver(end, parcel);
            self.tick();
        }
    }

    /// The ends to which something is under way.
    pub(crate) fn ends_with_mail(&self) -> Vec<End> {
        let ends: BTreeSet<End> = self.wire.iter().map(|(end, _)| *end).collect();
        ends.into_iter().collect()
    }

    /// Delivers the next parcel of one link; with `at_most`, only so many of its bytes.
    pub(crate) fn deliver_next(&mut self, end: End, at_most: usize) {
        let Some(place) = self.wire.iter().position(|(to, _)| *to == end) else {
            return;
        };
        let parcel = match &mut self.wire[place].1 {
            Parcel::Bytes(bytes) if bytes.len() > at_most => Parcel::Bytes(bytes.split_to(at_most)),
            whole => {
                let whole = whole.clone();
                self.wire.remove(place);
                whole
            }
        };
        self.deliver(end, parcel);
    }

    fn deliver(&mut self, end: End, parcel: Parcel) {
        match parcel {
            Parcel::Bytes(bytes) => self.input(end.0, Input::Received(end.1, bytes)),
            Parcel::Closed => {
                self.forget_end(end);
                self.input(end.0, Input::Closed(end.1, None));
            }
        }
    }

    /// The other end of a link, unless that side has closed it. Names of links come again after a
    /// restart, so both ends must name each other.
    fn other_end(&self, end: End) -> Option<End> {
        let other = *self.ends.get(&end)?;
        (self.ends.get(&other) == Some(&end)).then_some(other)
    }

    /// Removes an end with all that is under way to it.
    fn forget_end(&mut self, end: End) {
        self.wire.retain(|(to, _)| *to != end);
        self.ends.remove(&end);
    }

    pub(crate) fn break_all(&mut self) {
        let ends: Vec<End> = self.ends.keys().copied().collect();
        for end in ends {
            self.break_link(end);
        }
    }

    pub(crate) fn input(&mut self, node: usize, input: Input) {
        let now = self.now_at(node);
        if let Some(running) = &mut self.nodes[node] {
            running.replica.handle_input(now, input);
            self.take_outputs(node);
        }
    }

    /// Ends a link; what was under way on it is lost.
    pub(crate) fn break_link(&mut self, end: End) {
        if !self.ends.contains_key(&end) {
            return;
        }
        let other = self.other_end(end);
        self.forget_end(end);
        let Some(other) = other else {
            return self.input(end.0, Input::Closed(end.1, None));
        };
        self.forget_end(other);
        let broken = || {
            Some(PeerError::Broken {
                reason: "cut".to_owned(),
            })
        };
        self.input(end.0, Input::Closed(end.1, broken()));
        self.input(other.0, Input::Closed(other.1, broken()));
    }

    fn take_outputs(&mut self, node: usize) {
        while let Some(output) = self.nodes[node]
            .as_mut()
            .and_then(|node| node.replica.poll_output())
        {
            match output {
                Output::Event(event) => self.node(node).events.push(event),
                Output::Sync => {
                    let now = self.now_at(node);
                    self.node(node).replica.handle_input(now, Input::Synced);
                }
                Output::Scan => {}
                Output::Send(link, bytes) => {
                    let sender = self.node(node);
                    sender.sent_bytes += bytes.len() as u64;
                    sender.sends += 1;
                    if let Some(other) = self.other_end((node, link)) {
                        let parcels = if self.by_frame {
                            frames(bytes)
                        } else {
                            vec![bytes]
                        };
                        let parcels = parcels.into_iter().map(Parcel::Bytes);
                        self.wire.extend(parcels.map(|parcel| (other, parcel)));
                    }
                }
                Output::Close(link) => self.close(node, link),
                Output::Connect(link, address) => self.connect(node, link, &address),
            }
        }
    }

    /// What was sent before a close still arrives.
    fn close(&mut self, node: usize, link: LinkId) {
        let other = self.other_end((node, link));
        self.forget_end((node, link));
        if let Some(other) = other {
            self.wire.push_back((other, Parcel::Closed));
        }
    }

    fn connect(&mut self, node: usize, link: LinkId, to: &Address) {
        let there = (0..self.nodes.len()).find(|&there| address(there) == *to);
        let reachable = there.filter(|&there| {
            there != node && self.nodes[there].is_some() && !self.cut.contains(&(node, there))
        });
        let accepted = reachable.and_then(|there| {
            let now = self.now_at(there);
            let link = self.node(there).replica.accept(now, address(node))?;
            Some((there, link))
        });
        let Some(other) = accepted else {
            let reason = "nobody there".to_owned();
            self.input(
                node,
                Input::ConnectFailed(link, PeerError::Unreachable { reason }),
            );
            return;
        };
        self.ends.insert((node, link), other);
        self.ends.insert(other, (node, link));
        self.take_outputs(other.0);
        self.input(node, Input::Connected(link));
    }

    /// Checks that all running replicas hold the same, and that each one's parts fit together.
    pub(crate) fn assert_equal(&self) {
        let running = self.running();
        let live = |node: usize| -> BTreeMap<Bytes, _> {
            let contents = self.contents(node).into_iter();
            contents.map(|(key, record)| (key, record.live)).collect()
        };
        let shown = |node: usize| -> Vec<_> {
            let writers = self.state(node).writers();
            let contents = self.contents(node).into_iter();
            contents
                .map(|(key, record)| {
                    Resolver::default().resolve(&key, &record, writers, Stamp::default())
                })
                .collect()
        };
        for &node in &running {
            self.assert_whole(node);
            assert_eq!(shown(node), shown(running[0]), "node {node} shows others");
            assert_eq!(
                live(node),
                live(running[0]),
                "node {node} against {}",
                running[0]
            );
            assert_eq!(self.state(node).clock(), self.state(running[0]).clock());
            // After an unclean end a tally is unknown until it is scanned; `assert_whole` scans.
            let tallies = self.state(node).tally().zip(self.state(running[0]).tally());
            assert!(
                tallies.is_none_or(|(mine, theirs)| mine == theirs),
                "{tallies:?}"
            );
            assert!(
                !self.state(node).is_catching_up(),
                "node {node} is catching up"
            );
        }
    }

    /// The log names exactly the live dots, the clock contains them, the tally is right.
    pub(crate) fn assert_whole(&self, node: usize) {
        let running = self.nodes[node].as_ref().expect("it runs");
        let state = running.replica.state();
        let mut expected = BTreeMap::new();
        let mut tally = Tally::default();
        for (key, record) in self.contents(node) {
            tally.add(record.tally(&key));
            for version in &record.live {
                assert!(
                    state.clock().contains(version.dot),
                    "{} is live and unknown",
                    version.dot
                );
                let ord = state.writers().ord(version.dot.writer).expect("described");
                let row = level_replicator_core::log::row_key(ord, version.dot.seq);
                if !state.floor().contains(version.dot) && !state.wanted().contains(version.dot) {
                    expected.insert(row, key.clone());
                }
            }
        }
        let snapshot = running.storage.snapshot();
        let log = snapshot.range(Table::Log, Bound::Unbounded, Bound::Unbounded);
        let rows: Vec<(Bytes, Bytes)> = log.map(|entry| entry.expect("memory reads")).collect();
        tally.log = rows.len() as u64;
        let mut log: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        for (row, value) in rows {
            let key = level_replicator_core::log::key_of(&row, &value).expect("a good entry");
            // What the floor made superfluous may not have been removed yet.
            if expected.contains_key(&row) || !state.is_reclaiming() {
                log.insert(row, key);
            }
        }
        assert_eq!(log, expected, "log of node {node}");
        if let Some(known) = state.tally() {
            assert_eq!(known, tally, "tally of node {node}");
        }
    }
}
