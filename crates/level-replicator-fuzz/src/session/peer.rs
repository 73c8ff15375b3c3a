//! Whoever is at the other end: what it can say, and what it has said.

use std::collections::BTreeSet;

use bytes::Bytes;
use level_replicator_core::address::Address;
use level_replicator_core::clock::{Clock, Dot, Known, ReplicaId, Stamp, VersionVector, WriterId};
use level_replicator_core::frame::{FrameReader, FrameWriter, WIRE_VERSION};
use level_replicator_core::message::{Applied, Head, Heads, Hello, Message};
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

    /// A hello; most often one with which the conversation goes on.
    pub(super) fn hello(&self, fields: &mut Fields<'_>) -> Message {
        let form = fields.byte();
        let cluster = if form & 0x80 == 0 { CLUSTER } else { "another" };
        Message::Hello(Hello {
            version_min: 1,
            version_max: 1,
            cluster: cluster.to_owned(),
            replica: ReplicaId([form & 3; 16]),
            instance: 1 + u64::from(form & 7),
            clock_digest: u128::from(form),
            state_digest: (form & 8 != 0).then_some(3),
            whole: form & 16 != 0,
            settled: form & 32 != 0,
            epoch: 0,
            addresses_digest: u64::from(form),
            advertised: (form & 64 != 0).then(|| Names::address(fields)),
        })
    }

    /// Any message.
    pub(super) fn message(&self, fields: &mut Fields<'_>) -> Message {
        match fields.below(16) {
            0 => self.hello(fields),
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
                whole: self.writers(fields).pop(),
            },
            13 => Message::Applied(Applied {
                consumed: fields.number(),
                answers: fields.is_odd(),
                ends: fields.is_odd(),
                more: fields.below(8) == 1,
                heads: self.heads(fields),
            }),
            14 => {
                let count = fields.below(8);
                Message::Addresses((0..count).map(|_| Names::address(fields)).collect())
            }
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
                whole: self.writers(fields).pop(),
            },
            _ => Message::Records(self.records(fields)),
        };
        let more = false;
        vec![
            Message::Clock { heads, asks, more },
            Message::Writers(descriptors.collect()),
            Message::Records(records),
            end,
        ]
    }
}

/// Everything that was sent and may have been understood.
#[derive(Default)]
pub(super) struct Sent {
    /// Keys of which a record was sent.
    pub(super) keys: BTreeSet<Key>,
    /// Writers of whom anything was said that could replace a write of theirs.
    pub(super) writers: BTreeSet<WriterId>,
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
