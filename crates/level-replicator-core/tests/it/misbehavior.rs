//! A peer that says what it may not, or nothing at all: its link ends with the right error, nothing
//! that is stored changes, and the conversations with others go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Now, ReplicaId, WriterId};
use level_replicator_core::config::Config;
use level_replicator_core::event::Event;
use level_replicator_core::frame::{FrameError, FrameReader, FrameWriter};
use level_replicator_core::heal::{List, Plan, Purpose, Range, Start};
use level_replicator_core::limits::{CLOCK_WRITERS_MAX, HEADS_PER_MESSAGE};
use level_replicator_core::members::Epoch;
use level_replicator_core::message::{Applied, ClusterNews, Head, Heads, Hello, Message};
use level_replicator_core::record::{Op, Record};
use level_replicator_core::replica::{FirstSync, Input, Output, Replica};
use level_replicator_core::session::{LinkId, Misbehavior, PeerError};
use level_replicator_core::state::State;
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::writers::Descriptor;

use crate::samples::{dot, head, put, record};

const STRANGER: ReplicaId = ReplicaId([0xee; 16]);

/// A replica with one write, and a stranger at the other end of a link to it.
struct Scene {
    replica: Replica,
    now: Now,
    link: LinkId,
    /// What is said and heard on each link.
    streams: BTreeMap<LinkId, (FrameWriter, FrameReader)>,
    said: Vec<Message>,
    errors: Vec<PeerError>,
    /// Collisions and rebuilds.
    events: Vec<Event>,
    closed: bool,
    dialed: Vec<LinkId>,
    before: Arc<Clock>,
}

impl Scene {
    fn new() -> Scene {
        Scene::with(Config::default())
    }

    fn with(config: Config) -> Scene {
        Scene::on(&MemoryStorage::new(), config)
    }

    fn on(disk: &MemoryStorage, config: Config) -> Scene {
        let now = Now {
            wall_us: 1_700_000_000_000_000,
            steady_us: 1_000_000,
        };
        let disk = Arc::new(disk.clone());
        let mut replica = Replica::open(disk, config, 7, now).expect("memory opens");
        let op = Op::Put(Bytes::from_static(b"key"), Bytes::from_static(b"ours"));
        replica.write(now, &[op]).expect("memory takes all");
        let stranger = "10.0.0.66:9000".parse().expect("an address");
        let link = replica.accept(now, stranger).expect("it listens");
        let before = Arc::clone(replica.state().clock());
        let mut scene = Scene {
            replica,
            now,
            link,
            streams: BTreeMap::new(),
            said: Vec::new(),
            errors: Vec::new(),
            events: Vec::new(),
            closed: false,
            dialed: Vec::new(),
            before,
        };
        scene.listen();
        scene
    }

    /// After both hellos.
    fn greeted() -> Scene {
        let mut scene = Scene::new();
        scene.say(&Message::Hello(hello()));
        scene
    }

    /// In a round whose clock knows the first nine writes of writer 5.
    fn in_round(config: Config) -> Scene {
        let mut scene = Scene::with(config);
        scene.say(&Message::Hello(hello()));
        scene.say(&clock(&[(1, 9)]));
        scene.say(&Message::Writers(vec![descriptor()]));
        scene
    }

    fn say(&mut self, message: &Message) {
        let bytes = self.frame(message);
        self.send(bytes);
    }

    fn frame(&mut self, message: &Message) -> Vec<u8> {
        let instance = self.replica.instance();
        let (writer, _) = self.stream(self.link);
        message.encode(writer);
        writer.bind(instance);
        writer.take()
    }

    fn send(&mut self, bytes: Vec<u8>) {
        self.replica
            .handle_input(self.now, Input::Received(self.link, bytes.into()));
        self.listen();
    }

    fn wait(&mut self, ms: u64) {
        self.now.steady_us += ms * 1_000;
        self.now.wall_us += ms * 1_000;
        self.replica.handle_input(self.now, Input::Timeout);
        self.listen();
    }

    fn listen(&mut self) {
        while let Some(output) = self.replica.poll_output() {
            match output {
                Output::Send(link, bytes) => self.hear(link, &bytes),
                Output::Event(Event::Error { error, .. }) => self.errors.push(error),
                Output::Close(link) => self.closed |= link == self.link,
                Output::Connect(link, _) => self.dialed.push(link),
                Output::Event(event @ Event::WriterCollision { .. }) => self.events.push(event),
                Output::Event(_) | Output::Sync | Output::Scan => {}
            }
        }
    }

    fn hear(&mut self, link: LinkId, bytes: &[u8]) {
        let (_, reader) = self.stream(link);
        reader.push(bytes);
        let mut said = Vec::new();
        while let Some(frame) = reader.next_frame().expect("we send good frames") {
            said.push(Message::decode(frame).expect("we send good messages"));
        }
        self.said.append(&mut said);
    }

    fn stream(&mut self, link: LinkId) -> &mut (FrameWriter, FrameReader) {
        let new = || (FrameWriter::default(), FrameReader::new(hello().instance));
        self.streams.entry(link).or_insert_with(new)
    }

    /// The link ended with one error, and nothing that is stored has changed.
    fn assert_ended(&self, error: &PeerError) {
        assert_eq!(self.errors, std::slice::from_ref(error));
        assert!(self.closed, "the link stays");
        assert_eq!(self.replica.state().clock(), &self.before);
        let record = self.replica.state().record(b"key").expect("a good record");
        assert_eq!(record.live.len(), 1);
        assert_eq!(self.replica.sessions().count(), 0);
    }

    fn assert_misbehaved(&self, misbehavior: Misbehavior) {
        self.assert_ended(&PeerError::Misbehaved(misbehavior));
    }
}

fn hello() -> Hello {
    Hello {
        replica: STRANGER,
        advertised: None,
        ..crate::samples::hello()
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        writer: WriterId(5),
        replica: STRANGER,
        parent: None,
    }
}

fn clock(ranges: &[(u64, u64)]) -> Message {
    Message::Clock {
        heads: Heads(vec![head(5, ranges, false)]),
        asks: false,
        more: false,
    }
}

fn records(record: Record) -> Message {
    Message::Records(vec![(Bytes::from_static(b"key"), record)])
}

fn claim() -> Message {
    Message::Claim {
        unclaimed: Vec::new(),
    }
}

fn floor(heads: Vec<Head>) -> Message {
    Message::Floor {
        heads: Heads(heads),
        more: false,
    }
}

fn plan(purpose: Purpose) -> Message {
    Message::Plan(Plan {
        purpose,
        seed: 1,
        start: Bytes::new(),
        end: None,
    })
}

fn range(end: Option<&'static [u8]>) -> Message {
    Message::Range(Range {
        end: end.map(Bytes::from_static),
        count: u64::MAX,
        fingerprint: 1,
    })
}

/// In a heal that a stranger leads, whose floor is all that it knows.
fn in_heal() -> Scene {
    let mut scene = Scene::in_round(Config::default());
    scene.say(&floor(vec![head(5, &[(1, 9)], false)]));
    scene.say(&plan(Purpose::Heal));
    scene
}

#[test]
fn an_honest_healer_is_followed() {
    let mut scene = in_heal();
    let started = |message: &Message| matches!(message, Message::Start(Start::From { .. }));
    assert!(scene.said.iter().any(started), "{:?}", scene.said);
    scene.say(&range(None));
    let listed = |message: &Message| matches!(message, Message::List(List::Items { hashes, .. }) if hashes.len() == 1);
    assert!(scene.said.iter().any(listed), "{:?}", scene.said);
    scene.say(&records(record(&[put(5, 9, b"theirs")], &[])));
    scene.say(&Message::Absent(Vec::new()));
    scene.say(&claim());
    assert!(scene.errors.is_empty(), "{:?}", scene.errors);
    let state = scene.replica.state();
    assert!(state.floor().contains(dot(5, 1)) && state.wanted().is_empty());
    let record = state.record(b"key").expect("a good record");
    assert_eq!(record.live.len(), 2);
}

#[test]
fn a_round_that_is_under_way_elsewhere_is_not_taken_once_a_heal_has_begun() {
    let mut scene = Scene::in_round(Config::default());
    scene.say(&records(record(&[put(5, 9, b"stale")], &[])));
    let first = scene.link;

    let healer = "10.0.0.67:9000".parse().expect("an address");
    scene.link = (scene.replica.accept(scene.now, healer)).expect("it listens");
    scene.listen();
    scene.say(&Message::Hello(Hello {
        replica: ReplicaId([0xef; 16]),
        token: 7,
        ..hello()
    }));
    scene.say(&clock(&[(1, 9)]));
    scene.say(&floor(vec![head(5, &[(1, 9)], false)]));
    scene.say(&plan(Purpose::Heal));
    assert!(!scene.replica.state().wanted().is_empty(), "no heal");

    scene.link = first;
    scene.said.clear();
    scene.say(&claim());
    assert!(scene.errors.is_empty(), "{:?}", scene.errors);
    let state = scene.replica.state();
    assert_eq!(state.clock(), &scene.before, "it was taken");
    let heals = |message: &Message| matches!(message, Message::Applied(applied) if applied.heals);
    assert!(scene.said.iter().any(heals), "{:?}", scene.said);
}

/// A scrub by a stranger that knows what we know, and holds another value under our key.
fn differs_in_a_scrub(written_meanwhile: bool) -> Scene {
    let mut scene = Scene::greeted();
    let ours = scene.replica.state().current_writer();
    let ours = ours.expect("it has written").0;
    scene.say(&Message::Clock {
        heads: Heads(vec![head(ours, &[(1, 1)], false)]),
        asks: false,
        more: false,
    });
    scene.say(&plan(Purpose::Scrub));
    scene.say(&range(None));
    if written_meanwhile {
        let op = Op::Put(Bytes::from_static(b"key"), Bytes::from_static(b"newer"));
        let written = scene.replica.write(scene.now, &[op]);
        written.expect("memory takes all");
    }
    scene.before = Arc::clone(scene.replica.state().clock());
    scene.say(&records(record(&[put(ours, 1, b"theirs")], &[])));
    assert!(scene.errors.is_empty(), "{:?}", scene.errors);
    scene
}

#[test]
fn what_differs_in_a_scrub_is_written_again_unless_something_was_written_meanwhile() {
    let scene = differs_in_a_scrub(false);
    let state = scene.replica.state();
    assert_ne!(state.clock(), &scene.before);
    assert_eq!(state.record(b"key").expect("a good record").live.len(), 2);

    let scene = differs_in_a_scrub(true);
    let state = scene.replica.state();
    assert_eq!(state.clock(), &scene.before, "it was written again");
    assert_eq!(state.record(b"key").expect("a good record").live.len(), 1);
}

#[test]
fn records_below_a_floor_that_is_not_known() {
    for message in [records(record(&[put(5, 9, b"x")], &[])), claim()] {
        let mut scene = Scene::in_round(Config::default());
        scene.say(&floor(vec![head(5, &[(1, 9)], false)]));
        scene.say(&message);
        scene.say(&claim());
        scene.assert_misbehaved(Misbehavior::SkippedHeal);
    }
}

#[test]
fn records_below_a_floor_that_is_not_known_are_not_kept_from_a_cut_round_either() {
    let mut scene = Scene::in_round(Config {
        atomic_budget: usize::MAX,
        ..Config::default()
    });
    scene.say(&floor(vec![head(5, &[(1, 9)], false)]));
    let value: Vec<u8> = (0..25_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect();
    scene.say(&records(record(&[put(5, 9, &value)], &[])));
    let closed = Input::Closed(scene.link, None);
    scene.replica.handle_input(scene.now, closed);
    assert_eq!(scene.replica.state().clock(), &scene.before);
}

#[test]
fn a_floor_that_its_own_clock_does_not_know() {
    let mut scene = Scene::in_round(Config::default());
    scene.say(&floor(vec![head(5, &[(1, 10)], false)]));
    scene.say(&plan(Purpose::Heal));
    scene.assert_misbehaved(Misbehavior::SkippedHeal);
    assert!(scene.replica.state().wanted().is_empty());
}

#[test]
fn a_floor_with_a_gap_below_a_writer() {
    let mut scene = Scene::in_round(Config::default());
    scene.say(&Message::Writers(vec![Descriptor {
        writer: WriterId(6),
        replica: STRANGER,
        parent: Some(dot(5, 5)),
    }]));
    let head_of = |writer, last| head(writer, &[(1, last)], false);
    scene.say(&Message::Clock {
        heads: Heads(vec![head_of(6, 3)]),
        asks: false,
        more: false,
    });
    scene.say(&floor(vec![head_of(5, 4), head_of(6, 3)]));
    scene.say(&plan(Purpose::Heal));
    scene.assert_misbehaved(Misbehavior::OpenFloor);
    assert!(scene.replica.state().wanted().is_empty());
}

#[test]
fn a_floor_that_is_told_in_the_middle_of_a_heal_does_not_count_for_it() {
    let mut scene = in_heal();
    scene.say(&range(None));
    scene.say(&Message::Absent(Vec::new()));
    scene.say(&floor(vec![head(5, &[(1, 10)], false)]));
    scene.say(&claim());
    let state = scene.replica.state();
    assert!(state.clock().covers(state.floor()));
    assert!(state.floor().contains(dot(5, 9)));
}

#[test]
fn a_heal_by_who_knows_writes_of_this_process_that_it_has_not_made_adds_none_at_the_next_open() {
    let disk = MemoryStorage::new();
    let mut scene = Scene::on(&disk, Config::default());
    let ours = scene.replica.state().current_writer();
    let ours = ours.expect("it has written").0;
    scene.say(&Message::Hello(hello()));
    scene.say(&Message::Clock {
        heads: Heads(vec![head(ours, &[(1, 9)], false)]),
        asks: false,
        more: false,
    });
    scene.say(&floor(vec![head(ours, &[(1, 9)], false)]));
    scene.say(&plan(Purpose::Heal));
    let opened = State::open(Arc::new(disk.fork()), [0; 16]).expect("it opens");
    assert_eq!(opened.clock(), scene.replica.state().clock());
    assert!(!opened.clock().contains(dot(ours, 2)));
}

#[test]
fn comparisons_out_of_order() {
    let absent = |places: &[u64]| Message::Absent(places.to_vec());
    let after: [(&str, Vec<Message>); 9] = [
        ("a second plan", vec![plan(Purpose::Heal)]),
        (
            "a range backwards",
            vec![range(Some(b"b")), range(Some(b"a"))],
        ),
        ("an empty range", vec![range(Some(b"b")), range(Some(b"b"))]),
        (
            "a range after the last",
            vec![range(None), range(Some(b"z"))],
        ),
        (
            "a range after the last was answered",
            vec![range(None), absent(&[]), range(Some(b"z"))],
        ),
        ("an answer to no list", vec![absent(&[])]),
        (
            "a place that is not in the list",
            vec![range(None), absent(&[1])],
        ),
        ("a place far out", vec![range(None), absent(&[u64::MAX])]),
        ("a claim before the answer", vec![range(None), claim()]),
    ];
    for (what, messages) in after {
        let mut scene = in_heal();
        messages.iter().for_each(|message| scene.say(message));
        assert_eq!(
            scene.errors,
            [PeerError::Misbehaved(Misbehavior::OutOfOrder)],
            "{what}"
        );
        scene.assert_misbehaved(Misbehavior::OutOfOrder);
    }

    let sent = records(record(&[put(5, 9, b"x")], &[]));
    for messages in [
        vec![sent, plan(Purpose::Heal)],
        vec![range(None)],
        vec![Message::Absent(vec![0])],
    ] {
        let mut scene = Scene::in_round(Config::default());
        messages.iter().for_each(|message| scene.say(message));
        scene.assert_misbehaved(Misbehavior::OutOfOrder);
    }
}

#[test]
fn ranges_without_end() {
    let mut scene = in_heal();
    for number in 0..1_000u32 {
        let end = format!("l{number:08}");
        scene.say(&Message::Range(Range {
            end: Some(end.into()),
            count: 1,
            fingerprint: 1,
        }));
    }
    scene.assert_misbehaved(Misbehavior::OutOfOrder);
}

#[test]
fn a_floor_with_too_many_writers() {
    let mut scene = Scene::greeted();
    for part in 0.. {
        let first = part * HEADS_PER_MESSAGE as u64;
        let heads =
            (first..first + HEADS_PER_MESSAGE as u64).map(|writer| head(writer, &[(1, 1)], false));
        scene.say(&Message::Floor {
            heads: Heads(heads.collect()),
            more: true,
        });
        if first >= CLOCK_WRITERS_MAX as u64 {
            break;
        }
        assert!(scene.errors.is_empty(), "{:?}", scene.errors);
    }
    scene.assert_misbehaved(Misbehavior::OversizedClock);
}

#[test]
fn agreements_of_strangers_do_not_count() {
    let mut scene = Scene::greeted();
    for part in 0..10u16 {
        let acks = (0..1_000u16).map(|number| {
            let mut name = [0x77; 16];
            name[..2].copy_from_slice(&(part * 1_000 + number).to_be_bytes());
            ReplicaId(name)
        });
        scene.say(&Message::Cluster(ClusterNews {
            epoch: Epoch {
                number: u64::MAX,
                acks: acks.chain([STRANGER]).collect(),
                ..Epoch::default()
            },
            has_cut: true,
            ..ClusterNews::default()
        }));
    }
    assert!(scene.errors.is_empty(), "{:?}", scene.errors);
    let epoch = scene.replica.state().epoch();
    assert_eq!(epoch.acks.iter().collect::<Vec<_>>(), [&STRANGER]);
    // The greatest number has no successor, and that stops nobody.
    scene.wait(9_000);
    assert_eq!(scene.replica.state().epoch().number, u64::MAX);
}

#[test]
fn keys_that_are_wanted_of_who_cannot_serve_begin_one_round() {
    let mut scene = in_heal();
    scene.say(&Message::Clock {
        heads: Heads::default(),
        asks: false,
        more: false,
    });
    scene.said.clear();
    for _ in 0..20 {
        scene.say(&Message::Want(vec![Bytes::from_static(b"key")]));
        for _ in 0..20 {
            let ends = scene
                .said
                .iter()
                .any(|said| matches!(said, Message::Yield { .. }));
            let answers = scene
                .said
                .iter()
                .any(|said| matches!(said, Message::Clock { asks: true, .. }));
            if !ends && !answers {
                break;
            }
            scene.said.clear();
            scene.say(&Message::Applied(Applied {
                answers,
                ends,
                ..Applied::default()
            }));
        }
    }
    let clocks = scene.said.len();
    assert!(clocks < 5, "{clocks} messages: {:?}", scene.said);
}

#[test]
fn an_honest_stranger_is_heard() {
    let mut scene = Scene::in_round(Config::default());
    scene.say(&records(record(&[put(5, 9, b"theirs")], &[])));
    scene.say(&claim());

    assert!(scene.errors.is_empty(), "{:?}", scene.errors);
    assert!(scene.replica.state().clock().contains(dot(5, 9)));
    let record = scene.replica.state().record(b"key").expect("a good record");
    assert_eq!(record.live.len(), 2);
}

#[test]
fn garbage() {
    let mut scene = Scene::greeted();
    scene.send(vec![0xff; 100]);
    scene.assert_ended(&PeerError::Frame(FrameError::Version { theirs: 0xff }));
}

#[test]
fn a_damaged_frame() {
    let mut scene = Scene::greeted();
    let mut bytes = scene.frame(&claim());
    *bytes.last_mut().expect("a frame") ^= 1;
    scene.send(bytes);
    scene.assert_ended(&PeerError::Frame(FrameError::Checksum));
}

#[test]
fn another_version() {
    let mut scene = Scene::new();
    scene.say(&Message::Hello(Hello {
        version_min: 2,
        version_max: 3,
        ..hello()
    }));
    scene.assert_ended(&PeerError::Incompatible { min: 2, max: 3 });
}

#[test]
fn another_cluster() {
    let mut scene = Scene::new();
    scene.say(&Message::Hello(Hello {
        cluster: "other".to_owned(),
        ..hello()
    }));
    scene.assert_ended(&PeerError::WrongCluster {
        theirs: "other".to_owned(),
        ours: "default".to_owned(),
    });
}

#[test]
fn a_second_hello() {
    let mut scene = Scene::greeted();
    scene.say(&Message::Hello(hello()));
    scene.assert_misbehaved(Misbehavior::SecondHello);
}

#[test]
fn records_before_hello() {
    let mut scene = Scene::new();
    scene.say(&records(record(&[put(5, 1, b"x")], &[])));
    scene.assert_misbehaved(Misbehavior::NoHello);
}

#[test]
fn records_and_ends_outside_a_round() {
    for message in [
        records(record(&[put(5, 1, b"x")], &[])),
        claim(),
        Message::Yield {
            whole: None,
            unserved: false,
        },
    ] {
        let mut scene = Scene::greeted();
        scene.say(&message);
        scene.assert_misbehaved(Misbehavior::NoRound);
    }
}

#[test]
fn a_record_that_the_round_does_not_know() {
    let mut scene = Scene::in_round(Config::default());
    scene.say(&records(record(&[put(5, 10, b"x")], &[])));
    scene.assert_misbehaved(Misbehavior::UnknownDot);
}

#[test]
fn a_writer_that_was_not_described() {
    let mut scene = Scene::greeted();
    scene.say(&clock(&[(1, 9)]));
    scene.say(&records(record(&[put(5, 9, b"x")], &[])));
    scene.say(&claim());
    scene.assert_misbehaved(Misbehavior::UnknownWriter);
}

#[test]
fn a_history_with_a_writer_that_was_not_described() {
    let mut scene = Scene::in_round(Config::default());
    scene.say(&records(record(&[put(5, 9, b"x")], &[dot(6, 1)])));
    scene.say(&claim());
    scene.assert_misbehaved(Misbehavior::UnknownWriter);
}

#[test]
fn a_claim_over_a_writer_that_was_not_described() {
    let mut scene = Scene::greeted();
    scene.say(&clock(&[(1, 9)]));
    scene.say(&claim());
    scene.assert_misbehaved(Misbehavior::UnknownWriter);
}

/// Two processes resumed from one image of memory use one writer's name. Ours takes another, and says
/// again what it has said: so nobody takes one of the two for the other.
#[test]
fn writes_of_this_process_that_it_has_not_made_make_it_write_again_under_another_name() {
    let mut scene = Scene::greeted();
    let ours = scene
        .replica
        .state()
        .current_writer()
        .expect("it has written");
    scene.say(&Message::Clock {
        heads: Heads(vec![head(ours.0, &[(1, u64::MAX)], false)]),
        asks: false,
        more: false,
    });
    scene.say(&claim());
    assert!(scene.errors.is_empty() && !scene.closed);
    let (writer, keys) = (ours, 1);
    assert_eq!(scene.events, [Event::WriterCollision { writer, keys }]);

    let record = scene.replica.state().record(b"key").expect("a good record");
    let [version] = &record.live[..] else {
        panic!("{record:?}");
    };
    assert_ne!(version.dot.writer, ours);
    assert_eq!(version.value(), Some(&Bytes::from_static(b"ours")));
    let op = Op::Put(Bytes::from_static(b"key"), Bytes::from_static(b"more"));
    let written = scene.replica.write(scene.now, &[op]);
    let last = written
        .expect("memory takes all")
        .last
        .expect("a put writes");
    assert_eq!(last.writer, version.dot.writer);
    assert_eq!(last.seq, 2);
}

#[test]
fn writes_of_this_process_that_it_has_not_made_are_not_kept_from_a_cut_round_either() {
    let mut scene = Scene::greeted();
    let writer = scene
        .replica
        .state()
        .current_writer()
        .expect("it has written");
    scene.say(&Message::Clock {
        heads: Heads(vec![head(writer.0, &[(1, 9)], false)]),
        asks: false,
        more: false,
    });
    let value = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes());
    let planted = level_replicator_core::record::Version {
        dot: level_replicator_core::clock::Dot { writer, seq: 5 },
        stamp: level_replicator_core::clock::Stamp::from_micros(1),
        content: level_replicator_core::record::Content::Put(value.take(100_000).collect()),
    };
    scene.say(&records(Record {
        live: vec![planted],
        ..Record::default()
    }));
    let closed = Input::Closed(scene.link, None);
    scene.replica.handle_input(scene.now, closed);
    assert_eq!(scene.replica.state().clock(), &scene.before);
}

#[test]
fn a_writer_that_is_known_with_another_origin() {
    let mut scene = Scene::in_round(Config::default());
    scene.say(&Message::Writers(vec![Descriptor {
        replica: ReplicaId([1; 16]),
        ..descriptor()
    }]));
    scene.assert_misbehaved(Misbehavior::ContradictingWriter);
}

#[test]
fn a_writer_whose_parent_is_unknown() {
    let mut scene = Scene::greeted();
    scene.say(&Message::Writers(vec![Descriptor {
        parent: Some(dot(77, 1)),
        ..descriptor()
    }]));
    scene.assert_misbehaved(Misbehavior::UnknownWriter);
}

#[test]
fn a_record_in_fragments_that_exceeds_the_limit() {
    let config = Config::default();
    let limit = config.record_bytes_max();
    let mut scene = Scene::in_round(config);
    let piece = Message::Fragment {
        bytes: Bytes::from(vec![0; 200 << 10]),
        last: false,
    };
    for _ in 0..limit / (200 << 10) {
        scene.say(&piece);
        assert!(scene.errors.is_empty(), "{:?}", scene.errors);
    }
    scene.say(&piece);
    scene.assert_misbehaved(Misbehavior::OversizedRecord);
}

#[test]
fn an_end_in_the_middle_of_a_fragment() {
    let mut scene = Scene::in_round(Config::default());
    scene.say(&Message::Fragment {
        bytes: Bytes::from_static(b"half"),
        last: false,
    });
    scene.say(&claim());
    scene.assert_misbehaved(Misbehavior::NoRound);
}

#[test]
fn an_end_of_a_round_that_was_never_sent() {
    for applied in [
        Applied {
            consumed: 1 << 40,
            ..Applied::default()
        },
        Applied {
            ends: true,
            ..Applied::default()
        },
    ] {
        let mut scene = Scene::greeted();
        scene.say(&Message::Applied(applied));
        scene.assert_misbehaved(Misbehavior::NothingToConfirm);
    }
}

#[test]
fn silence_before_hello_and_in_the_middle_ends_by_time() {
    let mut scene = Scene::new();
    scene.wait(4_999);
    assert!(!scene.closed);
    scene.wait(1);
    scene.assert_ended(&PeerError::Stalled { ms: 5_000 });

    let mut scene = Scene::greeted();
    scene.wait(9_999);
    assert!(!scene.closed);
    scene.wait(1);
    scene.assert_ended(&PeerError::Stalled { ms: 10_000 });
}

#[test]
fn a_busy_peer_is_an_error_that_says_when_and_one_that_leaves_is_none() {
    let mut scene = Scene::new();
    scene.say(&Message::Busy { retry_ms: 700 });
    scene.assert_ended(&PeerError::Busy { retry_ms: 700 });

    let mut scene = Scene::greeted();
    scene.say(&Message::Bye);
    assert!(scene.closed && scene.errors.is_empty());
}

#[test]
fn a_bad_peer_disturbs_no_other_conversation() {
    let mut scene = Scene::in_round(Config::default());
    let (good, now) = (scene.link, scene.now);
    let other = "10.0.0.67:9000".parse().expect("an address");
    scene.link = scene.replica.accept(now, other).expect("it listens");
    scene.send(vec![0; 64]);
    assert_eq!(scene.errors.len(), 1);

    scene.link = good;
    scene.say(&records(record(&[put(5, 9, b"theirs")], &[])));
    scene.say(&claim());
    assert!(scene.replica.state().clock().contains(dot(5, 9)));
    assert_eq!(scene.errors.len(), 1);
}

#[test]
fn one_link_too_many_is_told_that_we_are_busy() {
    let mut scene = Scene::with(Config {
        links_max: 1,
        ..Config::default()
    });
    scene.said.clear();
    let now = scene.now;
    let other = "10.0.0.67:9000".parse().expect("an address");
    scene.link = scene.replica.accept(now, other).expect("it is answered");
    scene.listen();
    assert_eq!(scene.said, [Message::Busy { retry_ms: 1_000 }]);
    assert!(scene.closed);
    assert_eq!(scene.replica.sessions().count(), 1);
}

#[test]
fn a_paused_replica_leaves_accepts_nobody_and_talks_again_when_resumed() {
    let mut scene = Scene::greeted();
    let now = scene.now;
    let address: level_replicator_core::address::Address =
        "10.0.0.1:9".parse().expect("an address");
    scene.replica.add_peer(now, address.clone());
    assert_eq!(scene.replica.first_sync(), FirstSync::Waiting);

    scene.replica.pause(now);
    scene.listen();
    assert_eq!(scene.said.last(), Some(&Message::Bye));
    assert!(scene.closed && scene.errors.is_empty());
    assert_eq!(scene.replica.accept(now, address), None);
    assert_eq!(scene.replica.first_sync(), FirstSync::Settled);
    scene.wait(60_000);
    assert_eq!(scene.dialed, []);

    scene.replica.resume(scene.now);
    scene.wait(0);
    assert_eq!(scene.dialed.len(), 1);
}

/// Less than the window is under way at a time, but a round within the atomic budget is held back
/// whole: the sender must be told to go on before the round is over.
#[test]
fn a_sender_is_told_to_go_on_while_its_round_is_held_back() {
    let mut scene = Scene::in_round(Config {
        window: 1,
        atomic_budget: usize::MAX,
        ..Config::default()
    });
    scene.said.clear();
    scene.say(&records(record(&[put(5, 9, b"theirs")], &[])));

    let [Message::Applied(applied)] = &scene.said[..] else {
        panic!("{:?}", scene.said);
    };
    assert!(applied.consumed > 0 && !applied.ends);
    assert_eq!(
        scene.replica.state().clock(),
        &scene.before,
        "nothing is applied yet"
    );
}

#[test]
fn backing_off_grows_from_attempt_to_attempt() {
    let mut scene = Scene::new();
    let unreachable = || PeerError::Unreachable {
        reason: "nobody".to_owned(),
    };
    scene
        .replica
        .add_peer(scene.now, "10.0.0.1:9".parse().expect("an address"));
    let mut at = Vec::new();
    for _ in 0..3_000 {
        scene.wait(10);
        if let Some(link) = scene.dialed.pop() {
            at.push(scene.now.steady_us / 1_000);
            scene
                .replica
                .handle_input(scene.now, Input::ConnectFailed(link, unreachable()));
            scene.listen();
        }
    }
    assert_eq!(scene.replica.first_sync(), FirstSync::Settled);
    let pauses: Vec<u64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] <= 60, "{pauses:?}");
    assert!(
        (2_500..=5_010).contains(pauses.last().expect("several")),
        "{pauses:?}"
    );
    assert!(at.len() < 24, "{pauses:?}");
}

#[test]
fn a_heal_that_goes_on_is_refused_if_a_writer_was_never_described() {
    let mut scene = Scene::new();
    scene.say(&Message::Hello(hello()));
    scene.say(&Message::Clock {
        heads: Heads(vec![head(5, &[(1, 9)], false), head(77, &[(1, 3)], false)]),
        asks: false,
        more: false,
    });
    scene.say(&Message::Writers(vec![descriptor()]));
    scene.say(&floor(vec![head(5, &[(1, 9)], false)]));
    scene.say(&plan(Purpose::Heal));
    for end in [b"b", b"c", b"d", b"e"] {
        scene.say(&range(Some(end)));
        scene.say(&Message::Absent(Vec::new()));
        scene.say(&Message::Reached(Bytes::from_static(end)));
    }
    // From there on another heal would make known what the clock of this one holds.
    assert_eq!(scene.replica.state().healed_to(), None);
    scene.assert_misbehaved(Misbehavior::UnknownWriter);
}

#[test]
fn a_heal_comes_forward_only() {
    for keys in [[b"b", b"b"], [b"c", b"b"]] {
        let mut scene = Scene::new();
        scene.say(&Message::Hello(hello()));
        scene.say(&clock(&[(1, 9)]));
        scene.say(&Message::Writers(vec![descriptor()]));
        scene.say(&floor(vec![head(5, &[(1, 9)], false)]));
        scene.say(&plan(Purpose::Heal));
        for key in keys {
            scene.say(&Message::Reached(Bytes::from_static(key)));
        }
        scene.assert_misbehaved(Misbehavior::OutOfOrder);
    }
}
