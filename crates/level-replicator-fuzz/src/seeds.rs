//! What real replicas say and store, to begin from.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::{Dot, Now, ReplicaId, WriterId};
use level_replicator_core::config::Config;
use level_replicator_core::frame::{Frame, FrameReader, FrameWriter};
use level_replicator_core::record::Op;
use level_replicator_core::replica::{Input, Output, Replica};
use level_replicator_core::session::LinkId;
use level_replicator_core::state::scan_tally;
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Storage, Table};
use level_replicator_core::writers::{Descriptor, Writers};

use crate::{disk, record};

macro_rules! golden {
    ($name:literal) => {
        include_str!(concat!(
            "../../level-replicator-core/tests/golden/",
            $name,
            ".hex"
        ))
    };
}

const FRAMES: [&str; 22] = [
    golden!("frame_plain"),
    golden!("frame_compressed"),
    golden!("message_hello"),
    golden!("message_writers"),
    golden!("message_clock"),
    golden!("message_records"),
    golden!("message_fragment"),
    golden!("message_claim"),
    golden!("message_yield"),
    golden!("message_applied"),
    golden!("message_addresses"),
    golden!("message_busy"),
    golden!("message_bye"),
    golden!("message_cluster"),
    golden!("message_floor"),
    golden!("message_plan"),
    golden!("message_start"),
    golden!("message_range"),
    golden!("message_list"),
    golden!("message_list-same"),
    golden!("message_absent"),
    golden!("message_want"),
];

const ROWS: [&str; 3] = [
    golden!("row_put"),
    golden!("row_delete"),
    golden!("row_siblings"),
];

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::bytes)
        .filter_map(|digit| char::from(digit).to_digit(16))
        .map(|digit| digit as u8)
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

/// The writers that the golden rows name.
pub(crate) fn writers() -> Writers {
    let mut writers = Writers::default();
    for writer in 1..=5 {
        let parent = (writer > 1).then(|| Dot {
            writer: WriterId(writer - 1),
            seq: 1_000,
        });
        let descriptor = Descriptor {
            writer: WriterId(writer),
            replica: ReplicaId([7; 16]),
            parent,
        };
        writers.add(descriptor).expect("parents come first");
    }
    writers
}

/// Whole streams, one way each: those of a conversation, and every golden frame.
pub(crate) fn streams() -> Vec<Vec<u8>> {
    let said = said().into_iter().map(|frames| {
        let mut writer = FrameWriter::default();
        for frame in frames {
            writer.push(frame.kind, &frame.payload);
        }
        writer.take()
    });
    said.chain(FRAMES.map(unhex)).collect()
}

/// Kind and payload of every frame of those streams.
pub(crate) fn messages() -> Vec<Vec<u8>> {
    let golden = FRAMES.map(unhex).into_iter();
    let golden = golden.flat_map(|stream| frames(&stream, 0));
    let said = said().into_iter().flatten();
    said.chain(golden)
        .map(|frame| [&[frame.kind], &frame.payload[..]].concat())
        .collect()
}

/// The frames of a good stream to the process `listener`.
fn frames(stream: &[u8], listener: u64) -> Vec<Frame> {
    let mut reader = FrameReader::new(listener);
    reader.push(stream);
    std::iter::from_fn(|| reader.next_frame().expect("a good stream")).collect()
}

pub(crate) fn records() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for row in ROWS.map(unhex) {
        seeds.push([&[record::WHOLE_ROW], &row[..]].concat());
        seeds.push([&[record::BARE_ROW], &row[..row.len() - 4]].concat());
    }
    for message in messages() {
        if let Some((4, payload)) = message.split_first() {
            seeds.push([&[record::PACKED], payload].concat());
        }
    }
    seeds.push([&[record::TALLY][..], &[0; 40]].concat());
    for form in 0..16 {
        seeds.push(vec![record::FIELDS, form << 4, 1, 2, 3, form, 4, 5, 6]);
    }
    seeds
}

pub(crate) fn disks() -> Vec<Vec<u8>> {
    let all = conversations();
    let disks = all.iter().flat_map(|conversation| &conversation.disks);
    disks.map(disk::rows_of).collect()
}

pub(crate) fn announcements() -> Vec<Vec<u8>> {
    let datagram = unhex(golden!("announcement"));
    let bare = &datagram[..datagram.len() - 16];
    vec![[&[0], &datagram[..]].concat(), [&[1], bare].concat()]
}

/// What two replicas said, and what they held, while they ran and after they were closed.
pub(crate) struct Conversation {
    /// The frames of each side.
    pub(crate) said: Vec<Vec<Frame>>,
    pub(crate) disks: Vec<MemoryStorage>,
}

const NOW: Now = Now {
    wall_us: 1_700_000_000_000_000,
    steady_us: 1_000_000,
};

fn op(key: u8, value: Option<&[u8]>) -> Op {
    let key = Bytes::from(format!("key{key}"));
    match value {
        Some(value) => Op::Put(key, Bytes::copy_from_slice(value)),
        None => Op::Delete(key),
    }
}

/// What each side said in every conversation.
pub(crate) fn said() -> Vec<Vec<Frame>> {
    conversations()
        .into_iter()
        .flat_map(|conversation| conversation.said)
        .collect()
}

/// Two that exchange all; a newcomer that is healed, and one that is healed again, as it missed an
/// epoch; two of whom one has lost a value.
fn conversations() -> Vec<Conversation> {
    let first = conversation();
    let [_, _, mine, theirs] = &first.disks[..] else {
        panic!("two replicas have two disks each");
    };
    let heal = talk_on([mine.fork(), MemoryStorage::new()], 30);
    let behind = talk_on([heal.disks[2].fork(), first.disks[1].fork()], 40);
    let poor = theirs.fork();
    let mut batch = Batch::default();
    let entries = poor
        .snapshot()
        .range(Table::Data, Bound::Unbounded, Bound::Unbounded);
    for entry in entries.take(2) {
        let (key, _) = entry.expect("memory reads all");
        batch.remove(Table::Data, key);
    }
    batch.remove(Table::Meta, Bytes::from_static(b"tally"));
    poor.commit(batch).expect("memory takes all");
    let scrub = talk_on([mine.fork(), poor], 50);
    vec![first, heal, behind, scrub]
}

/// What two replicas say to each other that find these disks.
fn talk_on(disks: [MemoryStorage; 2], seed: u64) -> Conversation {
    let replicas = [0, 1].map(|side| open(&disks[side], seed + side as u64));
    let mut pair = Pair::new(replicas, NOW);
    for side in 0..2 {
        for _ in 0..4 {
            pair.talk();
        }
        pair.write(side, &[op(7, Some(b"more")), op(3 + side as u8, None)]);
    }
    for _ in 0..4 {
        pair.talk();
    }
    pair.end(disks)
}

/// A replica that reclaims soon.
fn open(disk: &MemoryStorage, seed: u64) -> Replica {
    let config = Config {
        reclaim_interval: Duration::from_millis(200),
        linger: Duration::from_secs(60),
        ..Config::default()
    };
    let mut replica =
        Replica::open(Arc::new(disk.clone()), config, seed, NOW).expect("memory opens");
    scan(&mut replica);
    replica
}

/// Sums up all records, as a program does in the background.
pub(crate) fn scan(replica: &mut Replica) {
    let state = replica.state_mut();
    let start = state.begin_scan();
    let scanned = scan_tally(&*state.storage().snapshot(), state.writers(), || true);
    if let Ok(Some(tally)) = scanned {
        state.end_scan(tally, start);
    }
}

/// Two replicas that wrote before, in two processes each, meet, exchange all, and go on writing.
pub(crate) fn conversation() -> Conversation {
    let disks = [MemoryStorage::new(), MemoryStorage::new()];
    let open = |side: usize, seed: u64| open(&disks[side], seed);
    for side in 0..2 {
        let mut before = open(side, 10 + side as u64);
        let ops = [
            op(0, Some(b"old")),
            op(1, Some(&[b'v'; 40])),
            op(2, Some(b"")),
        ];
        before.write(NOW, &ops).expect("memory takes all");
    }
    let mut pair = Pair::new([open(0, 20), open(1, 21)], NOW);
    for side in 0..2 {
        let ops = [
            op(1, Some(b"new")),
            op(3 + side as u8, Some(b"own")),
            op(2, None),
        ];
        pair.write(side, &ops);
    }
    pair.talk();
    for round in 0..4 {
        pair.write(
            round % 2,
            &[op(5, Some(&[round as u8; 2_000])), op(0, None)],
        );
        pair.talk();
    }
    pair.end(disks)
}

/// Two replicas with one link between them.
pub(crate) struct Pair {
    pub(crate) replicas: [Replica; 2],
    links: [LinkId; 2],
    streams: [Vec<u8>; 2],
    now: Now,
}

impl Pair {
    pub(crate) fn new(mut replicas: [Replica; 2], now: Now) -> Pair {
        let remote: Address = "10.0.0.1:9000".parse().expect("an address");
        let links = [0, 1].map(|side: usize| {
            let link = replicas[side].accept(now, remote.clone());
            link.expect("it accepts links")
        });
        Pair {
            replicas,
            links,
            streams: Default::default(),
            now,
        }
    }

    fn write(&mut self, side: usize, ops: &[Op]) {
        self.replicas[side]
            .write(self.now, ops)
            .expect("memory takes all");
    }

    /// Closes both, and tells what they said and held, while they ran and afterwards.
    fn end(mut self, disks: [MemoryStorage; 2]) -> Conversation {
        let mut held: Vec<MemoryStorage> = disks.iter().map(MemoryStorage::fork).collect();
        for replica in &mut self.replicas {
            replica.state_mut().close().expect("memory takes all");
        }
        held.extend(disks);
        let said = [0, 1].map(|side| {
            let listener = self.replicas[1 - side].instance();
            frames(&self.streams[side], listener)
        });
        Conversation {
            said: said.into(),
            disks: held,
        }
    }

    /// Half a second of talk.
    pub(crate) fn talk(&mut self) {
        for _ in 0..10 {
            self.now.wall_us += 50_000;
            self.now.steady_us += 50_000;
            for side in 0..2 {
                self.replicas[side].handle_input(self.now, Input::Timeout);
            }
            self.deliver();
        }
    }

    fn deliver(&mut self) {
        let mut wire = VecDeque::new();
        let mut deliveries = 0;
        loop {
            for side in 0..2 {
                while let Some(output) = self.replicas[side].poll_output() {
                    match output {
                        Output::Send(_, bytes) => wire.push_back((1 - side, bytes)),
                        Output::Sync => self.replicas[side].handle_input(self.now, Input::Synced),
                        Output::Scan => scan(&mut self.replicas[side]),
                        _ => {}
                    }
                }
            }
            let Some((to, bytes)) = wire.pop_front() else {
                return;
            };
            deliveries += 1;
            assert!(deliveries < 100_000, "two replicas talk without end");
            self.streams[1 - to].extend_from_slice(&bytes);
            let input = Input::Received(self.links[to], bytes);
            self.replicas[to].handle_input(self.now, input);
        }
    }
}
