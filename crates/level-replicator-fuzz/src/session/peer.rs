//! Whoever is at the other end: what it can say, and what it has said.

use std::collections::BTreeSet;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::{Clock, Dot, Known, ReplicaId, Stamp, VersionVector, WriterId};
use level_replicator_core::frame::{FrameReader, FrameWriter, WIRE_VERSION};
use level_replicator_core::heal::{List, Plan, Purpose, Range, Start};
use level_replicator_core::limits::{MEMBERS_PER_MESSAGE, WANTED_KEYS_MAX};
use level_replicator_core::members::{Epoch, Member};
use level_replicator_core::message::{Applied, ClusterNews, Head, Heads, Hello, Message};
use level_replicator_core::packing::decode_records;
use level_replicator_core::record::{Content, Key, Record, Version};
use level_replicator_core::writers::Descriptor;

use crate::fields::Fields;
use crate::frame::take_sealed;

const FOREIGN_WRITERS: u8 = 6;
const CLUSTER: &str = "default";

/// Whom and what messages speak of: few names, so that what is said hangs together.
pub(super) struct Names {
    /// The current writer of the replica, and the one before.
    pub(super) own: [WriterId; 2],
}

impl Names {
    fn writer(&self, number: u8) -> WriterId {
        match number % 8 {
            6 => self.own[0],
            7 => self.own[1],
            foreign => WriterId(1_000 + u64::from(foreign)),
        }
    }

    /// One foreign writer; each replica is two of them, one after the other.
    fn descriptor(&self, number: u8, contradicts: bool) -> Descriptor {
        let number = number % FOREIGN_WRITERS;
        let has_parent = (number % 2 == 1) ^ contradicts;
        Descriptor {
            writer: self.writer(number),
            replica: ReplicaId([number / 2; 16]),
            parent: (has_parent && number > 0).then(|| Dot {
                writer: self.writer(number - 1),
                seq: 5,
            }),
        }
    }

    fn key(fields: &mut Fields<'_>) -> Key {
        match fields.byte() {
            letter @ 0..=239 => Bytes::from(vec![b'a' + letter % 12]),
            long => {
                let len = 1 + fields.bytes(1).len() + usize::from(long - 239) * 50;
                Bytes::from(vec![b'k'; len])
            }
        }
    }

    pub(super) fn address(fields: &mut Fields<'_>) -> Address {
        let host = match fields.below(8) {
            0 => "0.0.0.0".to_owned(),
            1 => "h".repeat(250),
            number => format!("10.0.0.{number}"),
        };
        let address = format!("{host}:{}", fields.number() as u16);
        address.parse().expect("an address")
    }

    fn dot(&self, fields: &mut Fields<'_>) -> Dot {
        let writer = self.writer(fields.byte());
        let seq = fields.number().max(1);
        Dot { writer, seq }
    }

    fn record(&self, fields: &mut Fields<'_>) -> Record {
        let form = fields.byte();
        let live = match form % 8 {
            0..=4 => 1,
            5 => 2,
            6 => 3,
            _ => 0,
        };
        let mut live: Vec<Version> = (0..live).map(|_| self.version(fields)).collect();
        live.sort_by_key(|version| version.dot);
        live.dedup_by_key(|version| version.dot);
        let seen = if form & 8 == 0 { 0 } else { fields.below(3) };
        let seen: VersionVector = (0..seen).map(|_| self.dot(fields)).collect();
        Record { live, seen }
    }

    fn version(&self, fields: &mut Fields<'_>) -> Version {
        let dot = self.dot(fields);
        let stamp = Stamp::from_micros(fields.number());
        let len = usize::from(fields.byte());
        let content = match len % 4 {
            0 => Content::Delete,
            1 => Content::Put(vec![7; 16 * len].into()),
            2 if len % 8 == 2 => {
                let until = Stamp::from_micros(fields.number());
                Content::PutUntil(vec![7; len % 16].into(), until)
            }
            _ => Content::Put(vec![7; len % 16].into()),
        };
        Version {
            dot,
            stamp,
            content,
        }
    }

    fn records(&self, fields: &mut Fields<'_>) -> Vec<(Key, Record)> {
        let count = fields.below(5);
        let one = |_| (Names::key(fields), self.record(fields));
        (0..count).map(one).collect()
    }

    pub(super) fn heads(&self, fields: &mut Fields<'_>) -> Heads {
        let count = fields.below(5);
        in_order((0..count).map(|_| self.head(fields)).collect())
    }

    fn head(&self, fields: &mut Fields<'_>) -> Head {
        let writer = self.writer(fields.byte());
        let form = fields.byte();
        let mut known = Known::default();
        known.insert(1..=fields.number());
        for _ in 0..form % 4 {
            let first = fields.number().max(1);
            known.insert(first..=first.saturating_add(fields.number()));
        }
        let adds = form & 4 != 0;
        Head {
            writer,
            known,
            adds,
        }
    }

    fn writers(&self, fields: &mut Fields<'_>) -> Vec<WriterId> {
        let count = fields.below(4);
        (0..count).map(|_| self.writer(fields.byte())).collect()
    }

    fn descriptors(&self, fields: &mut Fields<'_>) -> Vec<Descriptor> {
        let count = fields.below(FOREIGN_WRITERS + 1);
        match fields.below(8) {
            0 => (0..count)
                .map(|_| self.descriptor(fields.byte(), fields.is_odd()))
                .collect(),
            _ => (0..count)
                .map(|number| self.descriptor(number, false))
                .collect(),
        }
    }

    /// A hello; most often one with which the conversation goes on. It may say that its sender knows
    /// and holds what the replica has just said of itself.
    pub(super) fn hello(&self, theirs: Option<&Hello>, fields: &mut Fields<'_>) -> Message {
        let form = fields.byte();
        let echoes = fields.byte();
        let echo = |bit: u8| theirs.filter(|_| echoes & bit != 0);
        let cluster = if form & 0x80 == 0 { CLUSTER } else { "another" };
        let mut replica = ReplicaId([form & 3; 16]);
        if let Some(theirs) = echo(128).filter(|_| form & 4 != 0) {
            replica = theirs.replica;
        }
        Message::Hello(Hello {
            version_min: 1,
            version_max: 1,
            cluster: cluster.to_owned(),
            replica,
            instance: echo(64).map_or(1 + u64::from(form & 7), |theirs| theirs.instance),
            clock_digest: echo(1).map_or(u128::from(form), |theirs| theirs.clock_digest),
            state_digest: (form & 8 != 0).then_some(3),
            whole: form & 16 != 0 || echoes & 4 != 0,
            heals: echoes & 32 != 0,
            settled: form & 32 != 0,
            token: u64::from(form) << 56,
            floor_digest: echo(2).map_or(u64::from(form), |theirs| theirs.floor_digest),
            cluster_digest: echo(8).map_or(u64::from(form), |theirs| theirs.cluster_digest),
            epoch_digest: echo(16).map_or(u64::from(form), |theirs| theirs.epoch_digest),
            addresses_digest: u64::from(form),
            advertised: (form & 64 != 0).then(|| Names::address(fields)),
        })
    }

    /// A floor: most often of some foreign writers without a gap below them, sometimes any.
    fn floor(&self, fields: &mut Fields<'_>) -> Heads {
        let form = fields.byte();
        if form >= 224 {
            return self.heads(fields);
        }
        let count = form % (FOREIGN_WRITERS + 1);
        let of = |number| {
            let mut known = Known::default();
            known.insert(1..=5 + u64::from(form >> 5));
            Head {
                writer: self.writer(number),
                known,
                adds: form & 8 != 0,
            }
        };
        in_order((0..count).map(of).collect())
    }

    /// A key at which something begins or ends, of any length up to one.
    fn bound(fields: &mut Fields<'_>) -> Key {
        if fields.below(8) == 0 {
            return Key::new();
        }
        Names::key(fields)
    }

    /// A start from the front, or sometimes from further on.
    fn start(fields: &mut Fields<'_>) -> Start {
        let start = if fields.below(4) > 0 {
            Key::new()
        } else {
            Names::bound(fields)
        };
        let direct = Names::bound(fields);
        Start::From { start, direct }
    }

    fn end(fields: &mut Fields<'_>) -> Option<Key> {
        (fields.below(4) > 0).then(|| Names::bound(fields))
    }

    fn plan(purpose: Purpose, fields: &mut Fields<'_>) -> Message {
        // Heals of a part are refused.
        let parts_of = if purpose == Purpose::Heal { 64 } else { 8 };
        let all = fields.below(parts_of) > 0;
        Message::Plan(Plan {
            purpose,
            seed: fields.number(),
            start: if all {
                Key::new()
            } else {
                Names::bound(fields)
            },
            end: if all { None } else { Names::end(fields) },
        })
    }

    fn range(fields: &mut Fields<'_>) -> Range {
        Range {
            end: Names::end(fields),
            count: fields.number(),
            fingerprint: u128::from(fields.byte()),
        }
    }

    fn list(fields: &mut Fields<'_>) -> Message {
        if fields.below(4) == 0 {
            return Message::List(List::Same);
        }
        let count = fields.below(6);
        Message::List(List::Items {
            end: (fields.below(3) == 0).then(|| Names::bound(fields)),
            hashes: (0..count).map(|_| fields.number()).collect(),
        })
    }

    fn absent(most: usize, fields: &mut Fields<'_>) -> Message {
        let all = fields.is_odd();
        let mut places: Vec<u64> = (0..most as u64)
            .filter(|_| all || fields.is_odd())
            .collect();
        if fields.below(16) == 0 {
            places.push(fields.number());
        }
        Message::Absent(places)
    }

    fn want(fields: &mut Fields<'_>) -> Message {
        let count = fields.below(WANTED_KEYS_MAX as u8 + 1);
        Message::Want((0..count).map(|_| Names::key(fields)).collect())
    }

    fn epoch(&self, replica: ReplicaId, fields: &mut Fields<'_>) -> Epoch {
        let form = fields.byte();
        let many = if form >= 240 { 4_000u16 } else { 4 };
        let mut acks: BTreeSet<ReplicaId> = (0..many)
            .filter(|number| form >= 240 || form >> number & 1 != 0)
            .map(|number| Names::member(form, number))
            .collect();
        if form & 16 != 0 {
            acks.insert(replica);
        }
        let mut cut = Clock::default();
        if form & 32 == 0 {
            self.floor(fields).update(&mut cut);
        } else {
            self.heads(fields).update(&mut cut);
        }
        Epoch {
            number: fields.number(),
            proposer: ReplicaId([form & 3; 16]),
            superseded: fields.number() as u32,
            cut,
            acks,
        }
    }

    /// A member: one that says hello here, or one of thousands of others.
    fn member(form: u8, number: u16) -> ReplicaId {
        let mut name = [form; 16];
        if number < 4 {
            name = [number as u8; 16];
        } else {
            name[..2].copy_from_slice(&number.to_be_bytes());
        }
        ReplicaId(name)
    }

    /// What a peer knows of members and the epoch, in one piece or more.
    pub(super) fn spread(&self, replica: ReplicaId, fields: &mut Fields<'_>) -> Vec<Message> {
        let pieces = 1 + fields.below(5);
        let form = fields.byte();
        let epoch = self.epoch(replica, fields);
        let piece = |piece: u8| {
            let count = if form >= 224 {
                MEMBERS_PER_MESSAGE as u16
            } else {
                u16::from(form % 6)
            };
            let first = u16::from(piece) * count;
            let of = |number: u16| {
                let member = Member {
                    retired: form & 64 != 0 && number.is_multiple_of(3),
                    admitted_by: ReplicaId([form & 3; 16]),
                };
                (Names::member(form, number), member)
            };
            let mut members: Vec<_> = (first..first + count).map(of).collect();
            if form == 7 {
                let member = Member {
                    retired: true,
                    admitted_by: replica,
                };
                members.push((replica, member));
            }
            Message::Cluster(ClusterNews {
                members,
                epoch: epoch.clone(),
                has_cut: form & 1 != 0,
                more: piece + 1 < pieces,
            })
        };
        (0..pieces).map(piece).collect()
    }

    /// The begin of a comparison that this end leads, with everything that the protocol wants before it.
    pub(super) fn lead(&self, line: &mut Line, fields: &mut Fields<'_>) -> Vec<Message> {
        let form = fields.byte();
        let descriptors = (0..FOREIGN_WRITERS).map(|number| self.descriptor(number, false));
        let floor = self.floor(fields);
        let purpose = if form & 3 == 0 {
            Purpose::Scrub
        } else {
            Purpose::Heal
        };
        let mut context: Vec<Head> = floor.0.clone();
        context.iter_mut().for_each(|head| head.adds = true);
        if form & 4 != 0 {
            context.extend(self.heads(fields).0);
        }
        line.lists.clear();
        line.led_to = Some(Key::new());
        let (asks, more) = (form & 8 != 0, false);
        let mut messages = vec![
            Message::Clock {
                heads: match purpose {
                    Purpose::Heal => in_order(context),
                    Purpose::Scrub => Heads::default(),
                },
                asks,
                more,
            },
            Message::Writers(descriptors.collect()),
        ];
        if purpose == Purpose::Heal {
            messages.push(Message::Floor { heads: floor, more });
        }
        messages.push(Names::plan(purpose, fields));
        messages
    }

    /// The next ranges of the comparison that this end leads: most often each after the one before.
    pub(super) fn ranges(line: &mut Line, fields: &mut Fields<'_>) -> Vec<Message> {
        let mut messages = Vec::new();
        for _ in 0..=fields.below(4) {
            let mut range = Names::range(fields);
            if let (Some(last), Some(end)) = (&line.led_to, &mut range.end)
                && *end <= *last
                && fields.below(8) > 0
            {
                *end = [&last[..], &b"a"[..]].concat().into();
            }
            line.led_to.clone_from(&range.end);
            messages.push(Message::Range(range));
        }
        messages
    }

    /// Whatever the comparison waits for: as its follower a start and lists, as its leader records, the
    /// places of what is absent, and the end.
    pub(super) fn compare(&self, line: &mut Line, fields: &mut Fields<'_>) -> Vec<Message> {
        let mut messages = Vec::new();
        for _ in 0..std::mem::take(&mut line.plans) {
            messages.push(Message::Start(if fields.below(16) == 0 {
                Start::Refused
            } else {
                Names::start(fields)
            }));
        }
        for _ in 0..std::mem::take(&mut line.ranges) {
            messages.push(Names::list(fields));
        }
        for count in std::mem::take(&mut line.lists) {
            if fields.is_odd() {
                messages.push(Message::Records(self.records(fields)));
            }
            messages.push(Names::absent(count, fields));
            // Out of order half of the time, and in a scrub always.
            if fields.below(8) == 0 {
                messages.push(Message::Reached(Names::bound(fields)));
            }
        }
        match fields.below(8) {
            0 | 1 => messages.push(Message::Claim {
                unclaimed: self.writers(fields),
            }),
            2 => messages.push(Message::Yield {
                whole: None,
                unserved: fields.is_odd(),
            }),
            3 => messages.push(line.answer(self.heads(fields))),
            _ => {}
        }
        messages
    }

    /// Any message.
    pub(super) fn message(&self, fields: &mut Fields<'_>) -> Message {
        match fields.below(25) {
            0 => self.hello(None, fields),
            1 => Message::Writers(self.descriptors(fields)),
            2..=4 => Message::Clock {
                asks: fields.is_odd(),
                more: fields.below(8) == 1,
                heads: self.heads(fields),
            },
            5..=8 => Message::Records(self.records(fields)),
            9 | 10 => {
                let last = fields.is_odd();
                let len = fields.byte();
                let bytes = Bytes::copy_from_slice(fields.bytes(usize::from(len)));
                Message::Fragment { bytes, last }
            }
            11 => Message::Claim {
                unclaimed: self.writers(fields),
            },
            12 => Message::Yield {
                unserved: fields.below(8) == 1,
                whole: self.writers(fields).pop(),
            },
            13 => Message::Applied(Applied {
                consumed: fields.number(),
                answers: fields.is_odd(),
                ends: fields.is_odd(),
                more: fields.below(8) == 1,
                heals: fields.below(8) == 1,
                heads: self.heads(fields),
            }),
            14 => {
                let count = fields.below(8);
                Message::Addresses((0..count).map(|_| Names::address(fields)).collect())
            }
            15 => Message::Floor {
                more: fields.below(8) == 1,
                heads: self.floor(fields),
            },
            16 => {
                let purpose = if fields.is_odd() {
                    Purpose::Heal
                } else {
                    Purpose::Scrub
                };
                Names::plan(purpose, fields)
            }
            17 => Message::Start(if fields.is_odd() {
                Start::Refused
            } else {
                Names::start(fields)
            }),
            18 => Message::Range(Names::range(fields)),
            19 => Names::list(fields),
            20 => Names::absent(usize::from(fields.below(8)), fields),
            21 => Names::want(fields),
            22 => {
                let replica = ReplicaId([9; 16]);
                let mut pieces = self.spread(replica, fields);
                pieces.pop().expect("there is always a piece")
            }
            23 => Message::Reached(Names::bound(fields)),
            _ if fields.is_odd() => Message::Bye,
            _ => Message::Busy {
                retry_ms: fields.number(),
            },
        }
    }

    /// A round as the protocol wants it, whatever its records say: its clock knows their dots.
    pub(super) fn round(&self, fields: &mut Fields<'_>) -> Vec<Message> {
        let asks = fields.is_odd();
        let records = self.records(fields);
        let mut clock = Clock::default();
        for (_, record) in &records {
            record
                .live
                .iter()
                .for_each(|version| clock.insert(version.dot));
        }
        let added = clock.iter().map(|(writer, known)| Head {
            writer,
            known: known.clone(),
            adds: true,
        });
        let heads = in_order(added.chain(self.heads(fields).0).collect());
        let descriptors = (0..FOREIGN_WRITERS).map(|number| self.descriptor(number, false));
        let end = match fields.below(6) {
            0..=2 => Message::Claim {
                unclaimed: self.writers(fields),
            },
            3 | 4 => Message::Yield {
                unserved: false,
                whole: self.writers(fields).pop(),
            },
            _ => Message::Records(self.records(fields)),
        };
        let more = false;
        let mut messages = vec![
            Message::Clock { heads, asks, more },
            Message::Writers(descriptors.collect()),
            Message::Records(records),
            end,
        ];
        if fields.below(8) == 0 {
            let heads = self.floor(fields);
            messages.insert(2, Message::Floor { heads, more });
        }
        messages
    }
}

/// Everything that was sent and may have been understood.
#[derive(Default)]
pub(super) struct Sent {
    /// Keys of which a record was sent.
    pub(super) keys: BTreeSet<Key>,
    /// Writers of whom anything was said that could replace a write of theirs.
    pub(super) writers: BTreeSet<WriterId>,
    /// Keys were called absent, by their places in a list.
    pub(super) absent: bool,
    /// A peer said that it knew all that the replica did.
    pub(super) knows_all: bool,
}

impl Sent {
    fn note_heads(&mut self, heads: &Heads) {
        self.writers.extend(heads.0.iter().map(|head| head.writer));
    }

    fn note_records(&mut self, records: &[(Key, Record)]) {
        for (key, record) in records {
            self.keys.insert(key.clone());
            self.writers
                .extend(record.seen.iter().map(|dot| dot.writer));
        }
    }
}

/// One link, as its other end sees it.
pub(super) struct Line {
    /// Frames for the replica.
    pub(super) out: FrameWriter,
    /// What the replica will make of what is sent.
    mirror: FrameReader,
    fragments: Vec<u8>,
    /// What the replica said of itself.
    pub(super) hello: Option<Hello>,
    /// Plans and ranges of the replica that were not answered.
    plans: u32,
    ranges: u32,
    /// How long the lists are that the replica has made and nobody has answered.
    lists: Vec<usize>,
    /// Where the last range ended that this end announced.
    led_to: Option<Key>,
    /// The replica has told the end of a round after it agreed to be compared.
    pub(super) was_healed: bool,
    has_started: bool,
    /// Whom the replica takes this end for: the random number of its hello.
    listener: u64,
    /// Frames that came from the replica.
    came: u64,
    consumed: u64,
    was_asked: bool,
    round_ended: bool,
}

impl Line {
    /// A link to the process `listener`.
    pub(super) fn to(listener: u64) -> Line {
        let mut out = FrameWriter::default();
        out.bind(listener);
        Line {
            out,
            mirror: FrameReader::new(listener),
            fragments: Vec::new(),
            hello: None,
            plans: 0,
            ranges: 0,
            lists: Vec::new(),
            led_to: None,
            was_healed: false,
            has_started: false,
            listener: 0,
            came: 0,
            consumed: 0,
            was_asked: false,
            round_ended: false,
        }
    }

    pub(super) fn note_sent(&mut self, bytes: &[u8], sent: &mut Sent) {
        self.mirror.push(bytes);
        while let Ok(Some(frame)) = self.mirror.next_frame() {
            match Message::decode(frame) {
                Ok(Message::Hello(hello)) if self.listener == 0 && is_welcome(&hello) => {
                    self.listener = hello.instance;
                    let ours = self.hello.as_ref();
                    sent.knows_all |= ours.is_some_and(|ours| {
                        ours.clock_digest == hello.clock_digest
                            || ours.floor_digest == hello.floor_digest
                    });
                }
                Ok(Message::Absent(_)) => sent.absent = true,
                Ok(Message::Floor { heads, .. }) => sent.note_heads(&heads),
                Ok(Message::Cluster(news)) => {
                    let cut = news.epoch.cut.iter();
                    sent.writers.extend(cut.map(|(writer, _)| writer));
                }
                Ok(Message::Records(records)) => sent.note_records(&records),
                Ok(Message::Clock { heads, .. }) => {
                    self.fragments.clear();
                    sent.note_heads(&heads);
                }
                Ok(Message::Applied(applied)) => sent.note_heads(&applied.heads),
                Ok(Message::Writers(descriptors)) => {
                    let parents = descriptors.iter().filter_map(|writer| writer.parent);
                    sent.writers.extend(parents.map(|parent| parent.writer));
                }
                Ok(Message::Fragment { bytes, last }) => {
                    self.fragments.extend_from_slice(&bytes);
                    if last {
                        let payload = std::mem::take(&mut self.fragments);
                        sent.note_records(&decode_records(payload.into()).unwrap_or_default());
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Reads what the replica says: it must be well-formed, whatever it was told.
    pub(super) fn note_heard(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let frame;
            (frame, rest) = take_sealed(rest, self.came, self.listener);
            self.came += 1;
            let size = frame.payload.len() as u64;
            match Message::decode(frame).expect("a replica says good messages") {
                Message::Records(_) => self.consumed += size,
                Message::Fragment { .. } => self.consumed += size - 1,
                Message::Clock { asks, .. } => self.was_asked |= asks,
                Message::Claim { .. } | Message::Yield { .. } => self.round_ended = true,
                Message::Hello(hello) => self.hello = Some(hello),
                Message::Plan(_) => self.plans += 1,
                Message::Range(_) => self.ranges += 1,
                Message::List(List::Items { hashes, .. }) => self.lists.push(hashes.len()),
                Message::Start(Start::From { .. }) => self.has_started = true,
                Message::Applied(applied) => {
                    self.was_healed |= applied.ends && self.has_started;
                }
                _ => {}
            }
        }
    }

    /// The answer that the replica waits for.
    pub(super) fn answer(&mut self, heads: Heads) -> Message {
        Message::Applied(Applied {
            consumed: self.consumed,
            answers: std::mem::take(&mut self.was_asked),
            ends: std::mem::take(&mut self.round_ended),
            more: false,
            heals: false,
            heads,
        })
    }
}

fn is_welcome(hello: &Hello) -> bool {
    hello.cluster == CLUSTER && (hello.version_min..=hello.version_max).contains(&WIRE_VERSION)
}

/// Heads as a replica takes them: each writer once, in the order of writers.
fn in_order(mut heads: Vec<Head>) -> Heads {
    heads.sort_by_key(|head| head.writer);
    heads.dedup_by_key(|head| head.writer);
    Heads(heads)
}
