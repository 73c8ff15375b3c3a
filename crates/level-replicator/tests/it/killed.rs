//! A process that is killed again and again, at any moment, while it writes and two peers talk with
//! it: nothing that it acknowledged is lost, its tables fit together, and all three end equal.
//!
//! `LEVEL_KILLS` is how often it is killed, `LEVEL_KILLS_SEED` the source of chance.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::ops::Bound;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use level_replicator::Bytes;
use level_replicator::storage::fjall::{FjallOptions, FjallStorage};
use level_replicator::storage::{Storage, Table};
use level_replicator::{Clock, Db, Dot, Options, WriterId};
use level_replicator_core::record::{Record, covers};
use level_replicator_core::state::{State, read_record, scan_tally};
use level_replicator_core::writers::Writers;

use crate::author::{Author, Note, name_of, value_of};
use crate::child::{Child, tell};
use crate::common::*;
use crate::histories::{Found, Histories};

const VICTIM: char = 'v';
const PEERS: [char; 2] = ['p', 'q'];

const KILLS: u64 = 200;

/// A peer's pause between two writes.
const PEER_PAUSE: Duration = Duration::from_millis(5);

/// How long the victim runs, at most, before it is killed while it writes.
const LIFE_MAX: Duration = Duration::from_millis(50);

/// How long an open may take before the victim is left to close.
const OPEN_TIME_MAX: Duration = Duration::from_millis(80);

/// The same while it catches up, which takes about as long.
const CATCH_UP_MAX: Duration = Duration::from_millis(150);

/// How long it idles, at most: peers write every shared key within that time.
const IDLE_MAX: Duration = Duration::from_millis(150);

/// How many writes it makes, at most, before it closes or idles.
const WRITES_AT_MOST: u64 = 40;

/// Where a life is meant to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Open,
    Write,
    CatchUp,
    /// When others have replaced its last write, perhaps.
    Idle,
    Close,
    AfterClose,
}

/// What one life of the victim is told.
struct Life {
    first: u64,
    seed: u64,
    /// How much it writes before it closes or idles.
    writes: u64,
    closes: bool,
    listens: bool,
    /// Whether its first write waits for a conversation.
    waits: bool,
}

impl Life {
    fn start(&self, directory: &Path, peers: &[String]) -> Child {
        Child::start(
            "victim",
            &[
                directory.to_str().expect("a path of text"),
                &cluster(),
                &peers.join(","),
                &self.first.to_string(),
                &self.seed.to_string(),
                &self.writes.to_string(),
                &self.closes.to_string(),
                &self.listens.to_string(),
                &self.waits.to_string(),
            ],
        )
    }
}

/// Kills a victim some time after it has said a word. Answers all that it said.
fn kill(victim: Child, word: &str, delay: Duration) -> Vec<String> {
    let (said, status) = victim.kill_after(word, delay);
    // A killed process has no code.
    assert!(
        matches!(status.code(), None | Some(0)),
        "the victim failed by itself ({status}), having said {:?}",
        said.last()
    );
    said
}

/// What a test exercised.
#[derive(Debug, Default)]
struct Exercised {
    kills: BTreeMap<Moment, u64>,
    closes: u64,
    catching_up: u64,
    received: u64,
}

impl fmt::Display for Exercised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kills = |moment| self.kills.get(&moment).copied().unwrap_or(0);
        write!(
            f,
            "kills: {} during open, {} write, {} catch-up, {} idle, {} close ({} closed in time); \
             {} left half of a catch-up; {} records received",
            kills(Moment::Open),
            kills(Moment::Write),
            kills(Moment::CatchUp),
            kills(Moment::Idle),
            kills(Moment::Close),
            self.closes,
            self.catching_up,
            self.received,
        )
    }
}

#[test]
fn a_replica_killed_at_any_moment_keeps_what_it_acknowledged_and_its_peers_agree() {
    let kills = number_from("LEVEL_KILLS", KILLS);
    let seed = number_from("LEVEL_KILLS_SEED", 1);
    println!("{kills} kills, seed {seed}");
    let began = Instant::now();

    let mut trial = Trial::new(seed);
    while trial.exercised.kills.values().sum::<u64>() < kills {
        trial.live_and_die();
    }
    trial.end();
    println!("{}; {:.1?}", trial.exercised, began.elapsed());
}

#[test]
fn a_directory_whose_creation_was_killed_opens() {
    let seed = number_from("LEVEL_KILLS_SEED", 1);
    println!("seed {seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    let began = Instant::now();
    drop(open(alone()));
    let creation_time = began.elapsed();
    let mut unfinished = 0;
    for _ in 0..number_from("LEVEL_KILLS", KILLS).div_ceil(10) {
        let directory = directory();
        let life = Life {
            first: 1,
            seed: chance.u64(..),
            writes: u64::MAX,
            closes: true,
            listens: false,
            waits: false,
        };
        let delay = creation_time.mul_f64(chance.f64() * 1.2);
        let mut histories = Histories::default();
        for line in kill(life.start(directory.path(), &[]), "opening", delay) {
            if let Some(note) = Note::parse(&line) {
                histories.note(note);
            }
        }
        unfinished += u64::from(!directory.path().join("engine").exists());

        let tables = Tables::read(directory.path());
        histories.check_author(&tables.found(), VICTIM);
        let db = alone().open(directory.path()).expect("what is there opens");
        db.put("key", "value").expect("a write");
    }
    println!("{unfinished} of them before the engine was in its place");
}

fn number_from(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().expect("a number in the environment"),
        Err(_) => default,
    }
}

/// What three authors wrote; two of them are threads of this process.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Histories>>);

impl Shared {
    fn get(&self) -> MutexGuard<'_, Histories> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The victim's directory, its peers, and all that is known to have been written.
struct Trial {
    chance: fastrand::Rng,
    directory: tempfile::TempDir,
    peers: Vec<Peer>,
    histories: Shared,
    /// The name of the replica, once it was told.
    replica: Option<String>,
    /// The writers of earlier lives.
    writers: BTreeSet<WriterId>,
    /// How long the last open and the last close took.
    open_time: Duration,
    close_time: Duration,
    exercised: Exercised,
}

impl Trial {
    fn new(seed: u64) -> Trial {
        let mut chance = fastrand::Rng::with_seed(seed);
        let histories = Shared::default();
        let first = Peer::start(PEERS[0], listening(), &histories, chance.u64(..));
        let options = listening().peer(first.node.address());
        let second = Peer::start(PEERS[1], options, &histories, chance.u64(..));
        Trial {
            chance,
            directory: directory(),
            peers: vec![first, second],
            histories,
            replica: None,
            writers: BTreeSet::new(),
            open_time: Duration::from_millis(20),
            close_time: Duration::from_millis(20),
            exercised: Exercised::default(),
        }
    }

    /// Runs the victim, kills it, and checks what it left.
    fn live_and_die(&mut self) {
        let moment = match self.chance.u32(..16) {
            // Only a close empties the journal, which every open reads.
            _ if self.open_time > OPEN_TIME_MAX => Moment::AfterClose,
            0..4 => Moment::Open,
            4..10 => Moment::Write,
            10 => Moment::CatchUp,
            11 => Moment::Idle,
            12..15 => Moment::Close,
            _ => Moment::AfterClose,
        };
        if moment == Moment::CatchUp {
            let peer = self.chance.usize(..self.peers.len());
            self.peers[peer].write_bulk();
        }
        let said = self.run(moment);
        self.listen_to(&said);

        let has_said = |word| said.iter().any(|line| line.starts_with(word));
        let has_closed = has_said("closed");
        self.check(has_closed && has_said("counted"));
        match (has_said("open "), has_said("closing")) {
            _ if has_closed => self.exercised.closes += 1,
            (false, _) => self.exercised.count(Moment::Open),
            (true, true) => self.exercised.count(Moment::Close),
            _ if has_said("idle") => self.exercised.count(Moment::Idle),
            _ if moment == Moment::CatchUp => self.exercised.count(moment),
            _ => self.exercised.count(Moment::Write),
        }
    }

    /// Runs the victim once, and answers what it said.
    fn run(&mut self, moment: Moment) -> Vec<String> {
        let some = self.chance.u64(..WRITES_AT_MOST);
        let (word, delay_max, writes) = match moment {
            Moment::Open => ("opening", self.open_time.mul_f64(1.2), u64::MAX),
            Moment::Write => ("open ", LIFE_MAX, u64::MAX),
            Moment::CatchUp => ("open ", CATCH_UP_MAX, u64::MAX),
            Moment::Idle => ("idle", IDLE_MAX, some),
            Moment::Close => ("closing", self.close_time.mul_f64(1.2), some),
            Moment::AfterClose => ("closed", Duration::ZERO, some),
        };
        let first = self.histories.get().next_number(VICTIM);
        let life = Life {
            first,
            seed: self.chance.u64(..),
            writes,
            closes: moment != Moment::Idle,
            listens: self.chance.u32(..4) == 0,
            waits: self.chance.bool(),
        };
        let delay = delay_max.mul_f64(self.chance.f64());
        let peers = self.peers.iter().map(|peer| peer.node.address());
        let child = life.start(self.directory.path(), &peers.collect::<Vec<_>>());
        kill(child, word, delay)
    }

    /// Takes in what the victim said.
    fn listen_to(&mut self, said: &[String]) {
        let mut writers = BTreeSet::new();
        let mut received = 0;
        let mut histories = self.histories.get();
        for line in said {
            if let Some(note) = Note::parse(line) {
                if let Note::Acknowledged { dot: Some(dot), .. } = note {
                    writers.insert(dot.writer);
                }
                histories.note(note);
                continue;
            }
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["opening" | "idle" | "counted" | "closing"] => {}
                ["open", replica, micros] => {
                    let before = self.replica.get_or_insert_with(|| replica.to_owned());
                    assert_eq!(before, replica, "the replica's name");
                    self.open_time = parse_micros(micros);
                }
                ["closed", micros] => self.close_time = parse_micros(micros),
                ["received", records] => received = records.parse().expect("a number"),
                _ => panic!("the victim said '{line}'"),
            }
        }
        drop(histories);
        self.exercised.received += received;
        assert!(writers.len() <= 1, "a process is one writer");
        for writer in writers {
            let is_new = self.writers.insert(writer);
            assert!(is_new, "two processes wrote as {writer}");
        }
    }

    /// Looks at what the victim left, in a copy: so that the next open finds it as it was.
    fn check(&mut self, is_counted: bool) {
        let copy = directory();
        copy_directory(self.directory.path(), copy.path());
        let tables = Tables::read(copy.path());
        assert!(
            !is_counted || tables.is_counted,
            "a tally that was known at the close is lost"
        );
        self.exercised.catching_up += u64::from(tables.is_catching_up);

        let found = tables.found();
        let mut histories = self.histories.get();
        histories.check_author(&found, VICTIM);
        histories.check_batches(&found, &[VICTIM]);
        if !tables.is_catching_up {
            histories.check_batches(&found, &PEERS);
        }
        for (key, last) in histories.last_of(VICTIM) {
            if let Some(dot) = last.dot {
                tables.check_known(key, dot);
            }
        }
    }

    /// Lets all three agree, and checks what they hold.
    fn end(&mut self) {
        let mut peers = Vec::new();
        for peer in self.peers.drain(..) {
            peers.push(peer.stop());
        }
        let options = peers
            .iter()
            .fold(listening(), |options, peer| options.peer(peer.address()));
        let victim = options
            .open(self.directory.path())
            .expect("a killed database opens");
        let [first, second] = &peers[..] else {
            panic!("there are two peers");
        };
        agree(&[first, second, &victim]);
        eventually("the tally is known", || victim.status().digest.is_some());

        let mut received = 0;
        let mut histories = self.histories.get();
        for db in [first, second, &victim] {
            let found = found_by(db);
            histories.check_all(&found);
            histories.check_batches(&found, &[VICTIM, PEERS[0], PEERS[1]]);
            received += db.status().traffic.received_records;
        }
        println!(
            "{} acknowledged writes, {} of them ended a conflict, {} conflicts left, {} keys",
            histories.acknowledged,
            histories.conflicts,
            victim.conflicts().count(),
            victim.iter().count(),
        );
        drop(histories);
        self.exercised.received += received;

        victim.close().expect("a healthy database closes");
        drop(victim);
        let mut directories = vec![self.directory.path().to_owned()];
        for Node { db, directory } in &peers {
            db.close().expect("a healthy database closes");
            directories.push(directory.path().to_owned());
        }
        let _directories: Vec<_> = peers.into_iter().map(|node| node.directory).collect();
        for directory in directories {
            let tables = Tables::read(&directory);
            assert!(tables.is_counted, "after a clean close the tally is known");
        }
    }
}

impl Exercised {
    fn count(&mut self, moment: Moment) {
        *self.kills.entry(moment).or_insert(0) += 1;
    }
}

fn parse_micros(text: &str) -> Duration {
    Duration::from_micros(text.parse().expect("a number"))
}

/// A peer that writes all the time.
struct Peer {
    node: Node,
    /// Who sends waits for the answer.
    bulk: Sender<Sender<()>>,
    thread: JoinHandle<()>,
}

impl Peer {
    fn start(name: char, options: Options, histories: &Shared, seed: u64) -> Peer {
        let node = open(options);
        let (bulk, orders) = mpsc::channel();
        let histories = histories.clone();
        let tell = move |note| histories.get().note(note);
        let author = Author::new(name, node.db.clone(), 1, seed, tell);
        Peer {
            node,
            bulk,
            thread: std::thread::spawn(move || write_until_stopped(author, &orders)),
        }
    }

    /// Writes more than the victim can apply at once.
    fn write_bulk(&self) {
        let (done, is_done) = mpsc::channel();
        self.bulk.send(done).expect("the peer writes");
        is_done.recv().expect("the peer writes");
    }

    fn stop(self) -> Node {
        drop(self.bulk);
        self.thread.join().expect("the peer wrote without an error");
        self.node
    }
}

fn write_until_stopped(mut author: Author<impl FnMut(Note)>, orders: &Receiver<Sender<()>>) {
    loop {
        match orders.recv_timeout(PEER_PAUSE) {
            Ok(done) => {
                author.write_bulk();
                done.send(()).expect("somebody waits for it");
            }
            Err(RecvTimeoutError::Timeout) => author.write_something(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// One life of the victim.
pub(crate) fn live(arguments: &[&str]) {
    let [
        path,
        cluster,
        peers,
        first,
        seed,
        writes,
        closes,
        listens,
        waits,
    ] = arguments
    else {
        panic!("a victim is told nine things");
    };
    let mut options = Options::new().cluster(*cluster);
    let peers = peers.split(',').filter(|peer| !peer.is_empty());
    options = peers.fold(options, Options::peer);
    if *listens == "true" {
        options = options.listen("127.0.0.1:0");
    }
    if *waits == "false" {
        options = options.first_sync_timeout(Duration::ZERO);
    }
    let number = |text: &str| -> u64 { text.parse().expect("a number") };

    tell("opening");
    let began = Instant::now();
    let db = options.open(path).expect("a killed database opens");
    let micros = began.elapsed().as_micros();
    tell(format_args!("open {} {micros}", db.status().replica));

    let mut author = Author::new(VICTIM, db.clone(), number(first), number(seed), tell);
    for count in 0..number(writes) {
        author.write_something();
        if count % 16 == 15 {
            let received = db.status().traffic.received_records;
            tell(format_args!("received {received}"));
        }
    }
    if *closes == "false" {
        author.write_shared();
        tell("idle");
        let end = std::io::stdin().lines().next();
        assert!(end.is_none(), "nobody says anything to a victim");
        return;
    }
    drop(author);
    if db.status().digest.is_some() {
        tell("counted");
    }

    tell("closing");
    let began = Instant::now();
    db.close().expect("a healthy database closes");
    drop(db);
    tell(format_args!("closed {}", began.elapsed().as_micros()));
}

/// What is on disk, read by the core without the library.
struct Tables {
    records: BTreeMap<String, Record>,
    clock: Arc<Clock>,
    floor: Arc<Clock>,
    writers: Arc<Writers>,
    is_catching_up: bool,
    /// Whether the tally was written down.
    is_counted: bool,
}

impl Tables {
    /// Reads everything, and checks that the tables fit together: the log names exactly the live
    /// writes, the clock contains them, and the tally, if there is one, is right.
    fn read(directory: &Path) -> Tables {
        let storage = FjallStorage::open(directory, &FjallOptions::default());
        let storage: Arc<dyn Storage> =
            Arc::new(storage.expect("what a killed process left opens"));
        let state = State::open(Arc::clone(&storage), [1; 16]).expect("the tables can be read");
        let snapshot = storage.snapshot();
        let all = |table| {
            let entries = snapshot.range(table, Bound::Unbounded, Bound::Unbounded);
            entries.map(|entry| entry.expect("the tables can be read"))
        };

        let mut records = BTreeMap::new();
        let mut expected = BTreeMap::new();
        for (key, row) in all(Table::Data) {
            let record = read_record(Some(row), &key, state.writers()).expect("a good record");
            for Dot { writer, seq } in record.live.iter().map(|version| version.dot) {
                let is_known = state.clock().contains(Dot { writer, seq });
                assert!(is_known, "{writer}:{seq} is live and unknown");
                let ord = state
                    .writers()
                    .ord(writer)
                    .expect("the writer is described");
                let dot = Dot { writer, seq };
                let row = level_replicator_core::log::row_key(ord, seq);
                if !state.floor().contains(dot) && !state.wanted().contains(dot) {
                    expected.insert(row, key.clone());
                }
            }
            let key = String::from_utf8(key.to_vec()).expect("keys are text");
            records.insert(key, record);
        }
        // What the floor made superfluous may not have been removed yet.
        let is_needed =
            |(row, _): &(Bytes, Bytes)| expected.contains_key(row) || !state.is_reclaiming();
        let log = all(Table::Log).filter(is_needed).map(|(row, value)| {
            let key = level_replicator_core::log::key_of(&row, &value).expect("a good entry");
            (row, key)
        });
        let log: BTreeMap<_, _> = log.collect();
        assert!(log == expected, "the log names other writes than are live");

        let tally = state.tally();
        if let Some(tally) = tally {
            let scanned = scan_tally(&*snapshot, state.writers(), || true);
            assert_eq!(scanned.expect("the tables can be read"), Some(tally));
        }
        Tables {
            records,
            clock: Arc::clone(state.clock()),
            floor: Arc::clone(state.floor()),
            writers: Arc::clone(state.writers()),
            is_catching_up: state.is_catching_up(),
            is_counted: tally.is_some(),
        }
    }

    /// The writes whose values are there.
    fn found(&self) -> BTreeMap<String, Found> {
        let found = self.records.iter().map(|(key, record)| {
            let values = record.puts().filter_map(|put| put.value());
            (key.clone(), names(key, values.map(|value| &value[..])))
        });
        found.filter(|(_, found)| !found.is_empty()).collect()
    }

    /// Checks that a write is known, and live or replaced. Below the floor nothing else is left of a write
    /// that was replaced.
    fn check_known(&self, key: &str, dot: Dot) {
        assert!(self.clock.contains(dot), "{dot} of {key} was forgotten");
        if self.floor.contains(dot) {
            return;
        }
        let record = self.records.get(key);
        let record = record.unwrap_or_else(|| panic!("{key} has lost its record"));
        let mut history = record.seen.clone();
        (record.live.iter()).for_each(|version| history.raise(version.dot));
        assert!(
            covers(&history, dot, &self.writers),
            "{dot} of {key} was acknowledged and has left no trace in {record:?}"
        );
    }
}

/// The writes whose values a database shows.
fn found_by(db: &Db) -> BTreeMap<String, Found> {
    let keys = db.iter().map(|entry| entry.expect("all keys can be read"));
    keys.map(|(key, _)| {
        let siblings = db.siblings(&key).expect("the key can be read");
        let key = String::from_utf8(key.to_vec()).expect("keys are text");
        let values = siblings.iter().map(|sibling| &sibling.value[..]);
        let names = names(&key, values);
        (key, names)
    })
    .collect()
}

/// The names of the writes that left some values, which must be whole.
fn names<'a>(key: &str, values: impl Iterator<Item = &'a [u8]>) -> Found {
    let names = values.map(|value| {
        let (author, number) = name_of(value).expect("a value names its write");
        assert!(value == value_of(key, author, number), "a value of {key}");
        (author, number)
    });
    names.collect()
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory is made");
    for entry in fs::read_dir(from).expect("a directory is listed") {
        let entry = entry.expect("a directory is listed");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_directory(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("a file is copied");
        }
    }
}
