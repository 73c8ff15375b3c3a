//! A peer that says anything, to a whole replica.
//!
//! An input is a program: steps that send bytes, frames and messages with arbitrary fields, let time
//! pass, close and make links, and write locally. What must hold in the end: what the replica said
//! can be read; its tables agree with each other and with its clock; a local write is there as long
//! as no peer has said that it saw it; time that passes without news lets the replica rest; and the
//! tables open again with the same clock, with and without a close, and another replica can be told
//! all of it.

mod peer;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::{Now, WriterId};
use level_replicator_core::config::Config;
use level_replicator_core::event::{Discovery, Event};
use level_replicator_core::limits::PEERS_MAX;
use level_replicator_core::record::{Key, Op, Record, Version};
use level_replicator_core::replica::{Input, Output, Replica};
use level_replicator_core::session::{LinkId, PeerError};
use level_replicator_core::state::State;
use level_replicator_core::storage::memory::MemoryStorage;

use self::peer::{Line, Names, Sent};
use crate::fields::Fields;
use crate::seeds::{self, Pair};
use crate::target::{Outcome, Target};

/// A conversation. An input is a program of steps.
pub const TARGET: Target = Target {
    name: "session",
    body: run,
    seeds,
    remake: None,
    deep_percent_min: 20,
    outcomes_min: 30,
};

const STEPS_MAX: usize = 64;
const LINKS_MAX: usize = 4;
const OUTPUTS_MAX: usize = 10_000;
const SILENT_TIMEOUTS_MAX: usize = 16;
const OWN_KEYS: u8 = 4;

/// The steps, by the remainder of their first byte. Those that lead deeper come more than once.
mod step {
    pub(super) const BYTES: u8 = 0;
    pub(super) const FRAME: u8 = 1;
    pub(super) const MESSAGE: u8 = 2;
    pub(super) const HELLO: u8 = 3;
    pub(super) const ROUND: u8 = 4;
    pub(super) const ANSWER: u8 = 5;
    pub(super) const WAIT: u8 = 6;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const LINK: u8 = 8;
    pub(super) const DIAL: u8 = 9;
    pub(super) const WRITE: u8 = 10;
    pub(super) const LEAD: u8 = 11;
    pub(super) const COMPARE: u8 = 12;
    pub(super) const SPREAD: u8 = 13;
    pub(super) const RANGES: u8 = 14;
    /// With one more, for what a program tells its replica.
    pub(super) const COUNT: u8 = 16;
}

/// Runs one input.
pub fn run(input: &[u8]) -> Outcome {
    let mut scene = Scene::new();
    let mut fields = Fields::new(input);
    let mut steps = 0;
    while !fields.is_over() && steps < STEPS_MAX {
        scene.step(&mut fields);
        steps += 1;
    }
    scene.rest();
    scene.check();
    scene.outcome()
}

fn seeds() -> Vec<Vec<u8>> {
    let mut programs: Vec<Vec<u8>> = Vec::new();
    for frames in seeds::said() {
        let mut program = Vec::new();
        for frame in frames {
            let len = frame.payload.len() as u16;
            program.extend_from_slice(&[step::FRAME, frame.kind]);
            program.extend_from_slice(&len.to_be_bytes());
            program.extend_from_slice(&frame.payload);
        }
        programs.push(program);
    }
    let hello = [step::HELLO, 0];
    let mut any = fastrand::Rng::with_seed(1);
    for number in 0..400u16 {
        // Every other peer says that it holds the same, as after a heal or before a scrub.
        let echoes = [0, 1, 3, 7][usize::from(number) % 4];
        let mut program = vec![hello[0], 0x21, echoes];
        for _ in 0..any.usize(1..12) {
            let next = [
                step::MESSAGE,
                step::ROUND,
                step::ROUND,
                step::ANSWER,
                step::ANSWER,
                step::WRITE,
                step::LEAD,
                step::LEAD,
                step::COMPARE,
                step::COMPARE,
                step::SPREAD,
                step::RANGES,
                step::WAIT,
            ];
            program.push(next[any.usize(..next.len())]);
            program.extend((0..any.usize(1..24)).map(|_| any.u8(..24)));
        }
        programs.push(program);
    }
    programs
}

/// A replica with earlier writes of its own, and whoever is at the other ends of its links.
struct Scene {
    replica: Replica,
    storage: MemoryStorage,
    now: Now,
    lines: BTreeMap<LinkId, Line>,
    /// The link that the next message goes to.
    at: Option<LinkId>,
    dialing: Vec<LinkId>,
    names: Names,
    sent: Sent,
    /// What was under each key after the last local write of it.
    own: BTreeMap<Key, Record>,
    met: u64,
    faults: BTreeSet<String>,
    /// What else has happened.
    seen: BTreeSet<&'static str>,
    /// The replica has forgotten what it had heard of.
    promoted: bool,
}

impl Scene {
    fn new() -> Scene {
        let storage = MemoryStorage::new();
        let now = Now {
            wall_us: 1_700_000_000_000_000,
            steady_us: 1_000_000,
        };
        let mut scene = Scene::open(storage, 1, now);
        scene.write(0, Some(b"before"));
        scene.write(1, Some(b""));
        let before = scene.replica.state().current_writer();
        // What was written so far becomes the floor, and is reclaimed.
        for _ in 0..40 {
            scene.wait(Duration::from_millis(100));
        }
        assert!(!scene.replica.state().floor().is_empty(), "no floor");
        let now = scene.now;
        scene.replica.state_mut().close().expect("memory takes all");
        let (storage, own) = (scene.storage, scene.own);

        let mut scene = Scene::open(storage, 2, now);
        scene.own = own;
        scene.write(3, Some(b"now"));
        scene.write(1, Some(b"now"));
        scene.write(2, Some(b"now"));
        scene.write(2, None);
        let current = scene.replica.state().current_writer();
        scene.names.own = [current, before].map(|writer| writer.expect("it wrote"));
        scene.accept();
        scene
    }

    fn open(storage: MemoryStorage, seed: u64, now: Now) -> Scene {
        let config = Config {
            window: 2_048,
            atomic_budget: 512,
            links_max: LINKS_MAX,
            ..Config::default()
        };
        let disk = Arc::new(storage.clone());
        let mut replica = Replica::open(disk, config, seed, now).expect("good tables open");
        replica.state_mut().observed = true;
        Scene {
            replica,
            storage,
            now,
            lines: BTreeMap::new(),
            at: None,
            dialing: Vec::new(),
            names: Names {
                own: [WriterId(0); 2],
            },
            sent: Sent::default(),
            own: BTreeMap::new(),
            met: 0,
            faults: BTreeSet::new(),
            seen: BTreeSet::new(),
            promoted: false,
        }
    }

    fn step(&mut self, fields: &mut Fields<'_>) {
        match fields.below(step::COUNT) {
            step::BYTES => {
                let len = fields.byte();
                let bytes = fields.bytes(usize::from(len)).to_vec();
                self.send(bytes);
            }
            step::FRAME => {
                let (kind, len) = (fields.byte(), fields.short());
                let payload = fields.bytes(usize::from(len));
                self.say(|line, _| line.out.push(kind, payload));
            }
            step::MESSAGE => self.say(|line, names| {
                let message = names.message(fields);
                message.encode(&mut line.out);
            }),
            step::HELLO => self.say(|line, names| {
                let message = names.hello(line.hello.as_ref(), fields);
                message.encode(&mut line.out);
            }),
            step::ROUND => self.say(|line, names| {
                for message in names.round(fields) {
                    message.encode(&mut line.out);
                }
            }),
            step::ANSWER => self.say(|line, names| {
                let heads = names.heads(fields);
                line.answer(heads).encode(&mut line.out);
            }),
            step::LEAD => self.say(|line, names| {
                for message in names.lead(line, fields) {
                    message.encode(&mut line.out);
                }
            }),
            step::COMPARE => self.say(|line, names| {
                for message in names.compare(line, fields) {
                    message.encode(&mut line.out);
                }
            }),
            step::RANGES => self.say(|line, _| {
                for message in Names::ranges(line, fields) {
                    message.encode(&mut line.out);
                }
            }),
            step::SPREAD => {
                let replica = self.replica.state().replica();
                self.say(|line, names| {
                    for message in names.spread(replica, fields) {
                        message.encode(&mut line.out);
                    }
                });
            }
            step::WAIT => {
                let ms = fields.number().min(100_000_000);
                self.wait(Duration::from_millis(ms));
            }
            step::CLOSE => self.close(fields.is_odd()),
            step::LINK => self.change_link(fields),
            step::DIAL => self.answer_dial(fields.is_odd()),
            step::WRITE => {
                let key = fields.below(2 * OWN_KEYS);
                let len = usize::from(fields.byte());
                let value = vec![key; if len > 200 { 50 * len } else { len }];
                self.write(key, (len % 5 > 0).then_some(&value));
                self.input(Input::Timeout);
            }
            _ => self.control(fields),
        }
    }

    /// Says something on the link that is in use.
    fn say(&mut self, say: impl FnOnce(&mut Line, &Names)) {
        let Some(line) = self.at.and_then(|at| self.lines.get_mut(&at)) else {
            self.accept();
            return;
        };
        say(line, &self.names);
        let bytes = line.out.take();
        self.send(bytes);
    }

    fn send(&mut self, bytes: Vec<u8>) {
        let Some(at) = self.at else {
            return;
        };
        if let Some(line) = self.lines.get_mut(&at) {
            line.note_sent(&bytes, &mut self.sent);
        }
        self.input(Input::Received(at, bytes.into()));
    }

    fn write(&mut self, key: u8, value: Option<&[u8]>) {
        let key = Bytes::from(vec![b'a' + key]);
        let op = match value {
            Some(value) => Op::Put(key.clone(), Bytes::copy_from_slice(value)),
            None => Op::Delete(key.clone()),
        };
        let written = self.replica.write(self.now, &[op]);
        written.expect("whatever came, a local write works");
        let record = self.replica.state().record(&key);
        self.own
            .insert(key, record.expect("what was written can be read"));
    }

    fn wait(&mut self, time: Duration) {
        let micros = time.as_micros() as u64;
        self.now.steady_us += micros;
        self.now.wall_us += micros;
        self.input(Input::Timeout);
    }

    fn close(&mut self, with_error: bool) {
        let Some(at) = self.at.take() else {
            return;
        };
        self.lines.remove(&at);
        let error = with_error.then(|| PeerError::Broken {
            reason: "the wire was cut".to_owned(),
        });
        self.input(Input::Closed(at, error));
    }

    /// Uses another link, or makes a new one.
    fn change_link(&mut self, fields: &mut Fields<'_>) {
        let place = usize::from(fields.below(4));
        match self.lines.keys().nth(place) {
            Some(&link) => self.at = Some(link),
            None => self.accept(),
        }
    }

    fn accept(&mut self) {
        let remote = Address::from(std::net::SocketAddr::from(([10, 0, 0, 66], 9_000)));
        if let Some(link) = self.replica.accept(self.now, remote) {
            self.lines.insert(link, Line::to(self.replica.instance()));
            self.at = Some(link);
        }
        self.follow();
    }

    fn answer_dial(&mut self, succeeds: bool) {
        let Some(link) = self.dialing.pop() else {
            return;
        };
        if succeeds {
            self.lines.insert(link, Line::to(self.replica.instance()));
            self.at = Some(link);
            self.input(Input::Connected(link));
        } else {
            let reason = "nobody is there".to_owned();
            self.input(Input::ConnectFailed(
                link,
                PeerError::Unreachable { reason },
            ));
        }
    }

    fn control(&mut self, fields: &mut Fields<'_>) {
        let now = self.now;
        match fields.below(8) {
            0 => self.replica.pause(now),
            1 => self.replica.resume(now),
            2 => drop(self.replica.request_sync(now)),
            3 => self.replica.add_peer(now, Names::address(fields)),
            4 => self.replica.remove_peer(now, &Names::address(fields)),
            5 => {
                let address = Names::address(fields);
                self.input(Input::Discovered(address, Discovery::Multicast));
            }
            6 => self.replica.call_everybody(now),
            _ => self.replica.set_advertised(Some(Names::address(fields))),
        }
        self.input(Input::Timeout);
    }

    fn input(&mut self, input: Input) {
        self.replica.handle_input(self.now, input);
        self.follow();
    }

    /// Does what the replica asks for.
    fn follow(&mut self) {
        let mut outputs = 0;
        while let Some(output) = self.replica.poll_output() {
            outputs += 1;
            assert!(outputs <= OUTPUTS_MAX, "one input and no end of outputs");
            match output {
                Output::Connect(link, _) => self.dialing.push(link),
                Output::Send(link, bytes) => {
                    if let Some(line) = self.lines.get_mut(&link) {
                        line.note_heard(&bytes);
                    } else {
                        // A link that is refused is told so before it is known here.
                        Line::to(self.replica.instance()).note_heard(&bytes);
                    }
                }
                Output::Close(link) => {
                    self.lines.remove(&link);
                    self.dialing.retain(|dialing| *dialing != link);
                    self.at = self.at.filter(|at| *at != link);
                }
                Output::Event(event) => self.note_event(&event),
                Output::Sync => self.replica.handle_input(self.now, Input::Synced),
                Output::Scan => seeds::scan(&mut self.replica),
            }
        }
    }

    fn note_event(&mut self, event: &Event) {
        match event {
            Event::Connect { .. } | Event::Connection { .. } => self.met += 1,
            Event::Promoted => self.promoted = true,
            Event::WriterCollision { .. } => drop(self.seen.insert("collision")),
            Event::Divergence { key: Some(_), .. } => drop(self.seen.insert("divergence")),
            Event::Renamed { .. } => drop(self.seen.insert("renamed")),
            Event::Error { error, .. } => {
                assert!(
                    !matches!(error, PeerError::Storage { .. }),
                    "a storage that takes all is blamed: {error}"
                );
                let text = format!("{error:?}");
                let name = text.split(|letter: char| !letter.is_alphanumeric());
                let names: Vec<&str> = name.filter(|name| !name.is_empty()).take(2).collect();
                self.faults.insert(match error {
                    PeerError::Misbehaved(_) | PeerError::Frame(_) => names.join(" "),
                    PeerError::Malformed(error) => crate::target::decode_error_name(error),
                    _ => names[0].to_owned(),
                });
            }
            _ => {}
        }
    }

    /// Lets time pass until nothing is left to do at once: every timeout that is due must do
    /// something, or be due later afterwards.
    fn rest(&mut self) {
        let mut silent = 0;
        for _ in 0..64 {
            let Some(due) = self.replica.next_timeout() else {
                return;
            };
            let waits = due.saturating_sub(self.now.steady_us);
            self.now.steady_us += waits;
            self.now.wall_us = self.now.wall_us.saturating_add(waits);
            self.replica.handle_input(self.now, Input::Timeout);
            silent = if waits == 0 && !self.replica.has_output() {
                silent + 1
            } else {
                0
            };
            assert!(silent <= SILENT_TIMEOUTS_MAX, "timeouts without end");
            self.follow();
        }
    }

    fn check(&mut self) {
        assert!(
            self.replica.sessions().count() <= LINKS_MAX,
            "too many links"
        );
        assert!(
            self.replica.peers().iter().count() <= PEERS_MAX,
            "too many peers"
        );
        for session in self.replica.sessions() {
            tables::check_size("clock", &session.theirs);
            tables::check_size("floor", &session.their_floor);
        }
        tables::check(self.replica.state());
        self.check_own_writes();
        tables::check_open(&self.storage, self.replica.state(), false);
        // Until it is healed a replica serves nobody who does not know what it wants to.
        if self.replica.traffic().received_records > 0 && self.replica.state().wanted().is_empty() {
            self.check_passing_on();
        }
        self.replica.state_mut().close().expect("memory takes all");
        tables::check_open(&self.storage, self.replica.state(), true);
    }

    /// The next process on these tables tells an empty replica everything.
    fn check_passing_on(&self) {
        let open = |storage, seed| Scene::open(storage, seed, self.now).replica;
        let told = MemoryStorage::new();
        let replicas = [open(self.storage.fork(), 3), open(told, 4)];
        let mut pair = Pair::new(replicas, self.now);
        pair.talk();
        let [mine, theirs] = pair.replicas.each_ref().map(Replica::state);
        assert_eq!(
            mine.clock(),
            self.replica.state().clock(),
            "nothing came back"
        );
        assert_eq!(theirs.clock(), mine.clock(), "not all was passed on");
        // How much has been reclaimed may differ.
        let counts = |state: &State| {
            let tally = tables::tally(state);
            (tally.keys, tally.conflicts, tally.digest)
        };
        assert_eq!(counts(theirs), counts(mine), "something else was passed on");
    }

    fn check_own_writes(&self) {
        // Each own writer is the parent of the next, so a word about one may be about all.
        // After a collision the same values stand under a new name.
        let may_be_seen = self.sent.knows_all
            || self.seen.contains("collision")
            || (self.names.own.iter()).any(|own| self.sent.writers.contains(own));
        let values = |record: &Record| -> Vec<Bytes> {
            let puts = record.puts().filter_map(Version::value);
            puts.cloned().collect()
        };
        for (key, written) in &self.own {
            let record = self.replica.state().record(key);
            let record = record.expect("it can be read");
            // Under a new name the same values stand.
            if !self.sent.keys.contains(key) && !self.sent.absent {
                assert_eq!(values(&record), values(written), "an own write changed");
            }
            let is_own = |version: &&Version| self.names.own.contains(&version.dot.writer);
            for version in written.puts().filter(is_own) {
                assert!(
                    may_be_seen || record.live.contains(version),
                    "an own write was replaced by a peer that had not seen it"
                );
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let received = self.replica.traffic().received_records;
        let faults: Vec<&str> = self.faults.iter().map(|fault| &fault[..]).take(2).collect();
        let name = format!(
            "{} met, {} records, {} ghosts, {}{}{}{}",
            self.met.min(3),
            received.min(3),
            self.replica.state().ghosts().min(2),
            if self.promoted { "promoted, " } else { "" },
            self.seen
                .iter()
                .map(|name| format!("{name}, "))
                .collect::<String>(),
            if self.lines.values().any(|line| line.was_healed) {
                "healed, "
            } else {
                ""
            },
            faults.join(" and ")
        );
        Outcome {
            is_deep: received > 0,
            name,
        }
    }
}
