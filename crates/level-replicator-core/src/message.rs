//! What replicas say to each other. The grammar is in docs/protocol.md.
//!
//! The rule: decoding allocates no more than a small multiple of the bytes that really came.

use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::address::Address;
use crate::clock::{Clock, Dot, Known, ReplicaId, WriterId};
use crate::codec::{DecodeError, Reader, flag, put_prefixed, put_varint};
use crate::frame::{Frame, FrameWriter, WIRE_VERSION};
use crate::heal::{List, Plan, Purpose, Range, Start};
use crate::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_PER_MESSAGE, CLUSTER_BYTES_MAX, DESCRIPTORS_PER_MESSAGE,
    FRAME_PAYLOAD_MAX, HEADS_PER_MESSAGE, KEY_BYTES_MAX, LIST_ITEMS_MAX, MEMBERS_PER_MESSAGE,
    UNCLAIMED_PER_MESSAGE, WANTED_KEYS_MAX,
};
use crate::members::{Epoch, Member, Members};
use crate::packing::{RecordsEncoder, decode_records};
use crate::record::{Key, Record};
use crate::writers::Descriptor;

const MAGIC: [u8; 4] = *b"LREP";

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Who I am and what I know, in short. The first message of both sides.
    Hello(Hello),
    /// Writers that the receiver may not know, parents before children.
    Writers(Vec<Descriptor>),
    /// A round begins: what my snapshot knows, as far as it differs from what I told last.
    Clock {
        /// What differs.
        heads: Heads,
        /// The receiver shall answer with its own heads before anything is sent.
        asks: bool,
        /// More heads follow in another `Clock`.
        more: bool,
    },
    /// Records of the round's snapshot.
    Records(Vec<(Key, Record)>),
    /// A piece of one record that is too large for a frame.
    Fragment {
        /// The piece.
        bytes: Bytes,
        /// Whether it is the last one.
        last: bool,
    },
    /// The round is over: you have everything of my snapshot, so you know its whole clock.
    Claim {
        /// Writers of whom I may hold half a batch.
        unclaimed: Vec<WriterId>,
    },
    /// The round is over without a claim.
    Yield {
        /// The writer, if there is one, of whose writes you now have all that I have.
        whole: Option<WriterId>,
        /// What I hold is not whole, and you do not know what is missing: ask somebody else.
        unserved: bool,
    },
    /// What I have taken in.
    Applied(Applied),
    /// Addresses at which replicas of the cluster were seen.
    Addresses(Vec<Address>),
    /// I have no room for a conversation now.
    Busy {
        /// When to try again, in milliseconds.
        retry_ms: u64,
    },
    /// I have nothing more to say and close the link.
    Bye,
    /// What I know of members and the epoch.
    Cluster(ClusterNews),
    /// My floor, as far as it differs from what I told last.
    Floor {
        /// What differs.
        heads: Heads,
        /// More heads follow in another `Floor`.
        more: bool,
    },
    /// Instead of records by dots, the round compares what both hold, range by range.
    Plan(Plan),
    /// Answers a plan.
    Start(Start),
    /// The next range of the comparison.
    Range(Range),
    /// What I have in the first range that is open.
    List(List),
    /// The places in the first list that is open of items that I do not have.
    Absent(Vec<u64>),
    /// Send me the records of these keys: mine cannot be read.
    Want(Vec<Key>),
    /// Of these writers' parents, by the last number that each writer's process knew of its own, and of
    /// the parents' parents: the clock or the floor that comes next holds all, and leaves it out.
    Chains(Vec<(WriterId, Dot)>),
    /// I do not know the parents that you named: tell your clock with nothing left out.
    TellAll,
    /// Everything before this key has been sent or compared.
    Reached(Key),
}

/// What a replica knows of members and the epoch, or a piece of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterNews {
    /// Members.
    pub members: Vec<(ReplicaId, Member)>,
    /// The epoch, with what this piece holds of its cut.
    pub epoch: Epoch,
    /// The cut is told, in this piece and others.
    pub has_cut: bool,
    /// More follows in another `Cluster`.
    pub more: bool,
}

/// The first message: who is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The least wire version that the sender speaks.
    pub version_min: u8,
    /// The greatest wire version that the sender speaks.
    pub version_max: u8,
    /// The cluster it belongs to.
    pub cluster: String,
    /// Its name.
    pub replica: ReplicaId,
    /// A random number of this process, to tell two processes with one name apart.
    pub instance: u64,
    /// Fingerprint of its clock.
    pub clock_digest: u128,
    /// Fingerprint of its contents, if it is known.
    pub state_digest: Option<u128>,
    /// Whether its state is whole: no heal is unfinished, and no history is without a live write.
    pub whole: bool,
    /// Whether it is being healed, and takes records from nobody else.
    pub heals: bool,
    /// Whether it waits for no claim. One that does wants to be told the clock in full.
    pub settled: bool,
    /// A random number of this link's end, to tell a process from a copy of its memory.
    pub token: u64,
    /// Fingerprint of its floor.
    pub floor_digest: u64,
    /// Fingerprint of what it knows of members and the epoch.
    pub cluster_digest: u64,
    /// Fingerprint of the epoch's name.
    pub epoch_digest: u64,
    /// Fingerprint of the addresses it knows.
    pub addresses_digest: u64,
    /// Where it can be reached, if it can. An unspecified host stands for the one the link comes from.
    pub advertised: Option<Address>,
}

/// Parts of a clock: what is known of some writers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heads(pub Vec<Head>);

/// What is known of one writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The writer.
    pub writer: WriterId,
    /// What is known.
    pub known: Known,
    /// Whether this is to be added to what was told before, rather than to replace it.
    pub adds: bool,
}

/// What the receiver of a round has taken in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Bytes of records taken in since the link began: the sender may send that much more.
    pub consumed: u64,
    /// Answers a clock that asked.
    pub answers: bool,
    /// The round that was claimed or yielded is applied.
    pub ends: bool,
    /// I am being healed by somebody else, and take no records until I say otherwise.
    pub heals: bool,
    /// More heads follow in another `Applied`.
    pub more: bool,
    /// What I know now, as far as it differs from what I told last.
    pub heads: Heads,
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const WRITERS: u8 = 2;
    pub(super) const CLOCK: u8 = 3;
    pub(super) const RECORDS: u8 = 4;
    pub(super) const FRAGMENT: u8 = 5;
    pub(super) const CLAIM: u8 = 6;
    pub(super) const YIELD: u8 = 7;
    pub(super) const APPLIED: u8 = 8;
    pub(super) const ADDRESSES: u8 = 9;
    pub(super) const BUSY: u8 = 10;
    pub(super) const BYE: u8 = 11;
    pub(super) const CLUSTER: u8 = 12;
    pub(super) const FLOOR: u8 = 13;
    pub(super) const PLAN: u8 = 14;
    pub(super) const START: u8 = 15;
    pub(super) const RANGE: u8 = 16;
    pub(super) const LIST: u8 = 17;
    pub(super) const ABSENT: u8 = 18;
    pub(super) const WANT: u8 = 19;
    pub(super) const CHAINS: u8 = 20;
    pub(super) const TELL_ALL: u8 = 21;
    pub(super) const REACHED: u8 = 22;
}

const CLOCK_ASKS: u8 = 1;
const CLOCK_MORE: u8 = 2;
const APPLIED_ANSWERS: u8 = 1;
const APPLIED_ENDS: u8 = 2;
const APPLIED_MORE: u8 = 4;
const APPLIED_HEALS: u8 = 8;
const CLUSTER_CUT: u8 = 1;
const CLUSTER_MORE: u8 = 2;
const YIELD_UNSERVED: u8 = 1;
const HELLO_STATE: u8 = 1;
const HELLO_WHOLE: u8 = 2;
const HELLO_ADVERTISED: u8 = 4;
const HELLO_SETTLED: u8 = 8;
const HELLO_HEALS: u8 = 16;
const HEAD_ADDS: u8 = 1;
const HEAD_AHEAD: u8 = 2;

impl Message {
    /// Appends the message as one frame.
    pub fn encode(&self, out: &mut FrameWriter) {
        let mut payload = Vec::new();
        let kind = self.encode_payload(&mut payload);
        out.push(kind, &payload);
    }

    fn encode_payload(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Message::Hello(hello) => {
                hello.encode(out);
                kind::HELLO
            }
            Message::Writers(descriptors) => {
                put_varint(out, descriptors.len() as u64);
                descriptors.iter().for_each(|writer| writer.encode(out));
                kind::WRITERS
            }
            Message::Clock { heads, asks, more } => {
                out.push(flag(*asks, CLOCK_ASKS) | flag(*more, CLOCK_MORE));
                heads.encode(out);
                kind::CLOCK
            }
            Message::Records(records) => {
                let mut encoder = RecordsEncoder::default();
                records
                    .iter()
                    .for_each(|(key, record)| encoder.push(key, record));
                out.extend_from_slice(&encoder.finish());
                kind::RECORDS
            }
            Message::Fragment { bytes, last } => {
                out.push(u8::from(*last));
                out.extend_from_slice(bytes);
                kind::FRAGMENT
            }
            Message::Claim { unclaimed } => {
                put_writers(out, unclaimed);
                kind::CLAIM
            }
            Message::Yield { whole, unserved } => {
                out.push(flag(*unserved, YIELD_UNSERVED));
                put_writers(out, whole.as_slice());
                kind::YIELD
            }
            Message::Applied(applied) => {
                let flags = flag(applied.answers, APPLIED_ANSWERS)
                    | flag(applied.ends, APPLIED_ENDS)
                    | flag(applied.more, APPLIED_MORE)
                    | flag(applied.heals, APPLIED_HEALS);
                out.push(flags);
                put_varint(out, applied.consumed);
                applied.heads.encode(out);
                kind::APPLIED
            }
            Message::Addresses(addresses) => {
                put_varint(out, addresses.len() as u64);
                for address in addresses {
                    put_prefixed(out, address.as_str().as_bytes());
                }
                kind::ADDRESSES
            }
            Message::Busy { retry_ms } => {
                put_varint(out, *retry_ms);
                kind::BUSY
            }
            Message::Bye => kind::BYE,
            Message::Cluster(news) => {
                news.encode(out);
                kind::CLUSTER
            }
            Message::Floor { heads, more } => {
                out.push(u8::from(*more));
                heads.encode(out);
                kind::FLOOR
            }
            Message::Plan(plan) => {
                out.push(u8::from(plan.purpose == Purpose::Scrub));
                out.extend_from_slice(&plan.seed.to_be_bytes());
                put_prefixed(out, &plan.start);
                put_end(out, plan.end.as_ref());
                kind::PLAN
            }
            Message::Start(start) => {
                match start {
                    Start::Refused => out.push(0),
                    Start::From { start, direct } => {
                        out.push(1);
                        put_prefixed(out, start);
                        put_prefixed(out, direct);
                    }
                }
                kind::START
            }
            Message::Range(range) => {
                put_varint(out, range.count);
                out.extend_from_slice(&range.fingerprint.to_be_bytes());
                put_end(out, range.end.as_ref());
                kind::RANGE
            }
            Message::List(list) => {
                out.push(u8::from(*list != List::Same));
                if let List::Items { end, hashes } = list {
                    put_end(out, end.as_ref());
                    put_varint(out, hashes.len() as u64);
                    for hash in hashes {
                        out.extend_from_slice(&hash.to_be_bytes());
                    }
                }
                kind::LIST
            }
            Message::Absent(places) => {
                put_varint(out, places.len() as u64);
                places.iter().for_each(|&place| put_varint(out, place));
                kind::ABSENT
            }
            Message::Want(keys) => {
                put_varint(out, keys.len() as u64);
                keys.iter().for_each(|key| put_prefixed(out, key));
                kind::WANT
            }
            Message::Chains(chains) => {
                put_varint(out, chains.len() as u64);
                for (writer, parent) in chains {
                    out.extend_from_slice(&writer.0.to_be_bytes());
                    out.extend_from_slice(&parent.writer.0.to_be_bytes());
                    put_varint(out, parent.seq);
                }
                kind::CHAINS
            }
            Message::TellAll => kind::TELL_ALL,
            Message::Reached(key) => {
                put_prefixed(out, key);
                kind::REACHED
            }
        }
    }

    /// Whether the message belongs to the round that a clock has begun.
    pub fn is_of_round(&self) -> bool {
        matches!(
            self,
            Message::Records(_)
                | Message::Fragment { .. }
                | Message::Claim { .. }
                | Message::Yield { .. }
                | Message::Plan(_)
                | Message::Range(_)
                | Message::Absent(_)
                | Message::Reached(_)
        )
    }

    /// Reads the message of a frame.
    pub fn decode(frame: Frame) -> Result<Message, DecodeError> {
        match frame.kind {
            kind::HELLO => Hello::decode(frame.payload).map(Message::Hello),
            kind::RECORDS => decode_records(frame.payload).map(Message::Records),
            kind::FRAGMENT => {
                let mut reader = Reader::new(frame.payload, "fragment");
                let last = decode_bool(&mut reader, "fragment")?;
                let bytes = reader.bytes(reader.remaining())?;
                Ok(Message::Fragment { bytes, last })
            }
            _ => Message::decode_small(frame),
        }
    }

    fn decode_small(frame: Frame) -> Result<Message, DecodeError> {
        let mut reader = Reader::new(frame.payload, "message");
        let message = match frame.kind {
            kind::WRITERS => {
                let count = reader.count(DESCRIPTORS_PER_MESSAGE, 25)?;
                let descriptors = (0..count).map(|_| Descriptor::decode(&mut reader));
                Message::Writers(descriptors.collect::<Result<_, _>>()?)
            }
            kind::CLOCK => {
                let flags = reader.u8()?;
                Message::Clock {
                    asks: flags & CLOCK_ASKS != 0,
                    more: flags & CLOCK_MORE != 0,
                    heads: Heads::decode(&mut reader)?,
                }
            }
            kind::CLAIM => Message::Claim {
                unclaimed: decode_writers(&mut reader, UNCLAIMED_PER_MESSAGE)?,
            },
            kind::YIELD => Message::Yield {
                unserved: reader.u8()? & YIELD_UNSERVED != 0,
                whole: decode_writers(&mut reader, 1)?.pop(),
            },
            kind::APPLIED => {
                let flags = reader.u8()?;
                Message::Applied(Applied {
                    answers: flags & APPLIED_ANSWERS != 0,
                    ends: flags & APPLIED_ENDS != 0,
                    more: flags & APPLIED_MORE != 0,
                    heals: flags & APPLIED_HEALS != 0,
                    consumed: reader.varint()?,
                    heads: Heads::decode(&mut reader)?,
                })
            }
            kind::ADDRESSES => {
                let count = reader.count(ADDRESSES_PER_MESSAGE, 1)?;
                let addresses = (0..count).map(|_| decode_address(&mut reader));
                Message::Addresses(addresses.collect::<Result<_, _>>()?)
            }
            kind::BUSY => Message::Busy {
                retry_ms: reader.varint()?,
            },
            kind::BYE => Message::Bye,
            kind::CLUSTER => Message::Cluster(ClusterNews::decode(&mut reader)?),
            kind::FLOOR => Message::Floor {
                more: decode_bool(&mut reader, "floor")?,
                heads: Heads::decode(&mut reader)?,
            },
            kind::PLAN => Message::Plan(Plan {
                purpose: match decode_bool(&mut reader, "plan")? {
                    false => Purpose::Heal,
                    true => Purpose::Scrub,
                },
                seed: reader.u64()?,
                start: reader.prefixed(KEY_BYTES_MAX + 1)?,
                end: decode_end(&mut reader)?,
            }),
            kind::START => Message::Start(match decode_bool(&mut reader, "start")? {
                false => Start::Refused,
                true => Start::From {
                    start: reader.prefixed(KEY_BYTES_MAX + 1)?,
                    direct: reader.prefixed(KEY_BYTES_MAX + 1)?,
                },
            }),
            kind::RANGE => Message::Range(Range {
                count: reader.varint()?,
                fingerprint: u128::from_be_bytes(reader.array()?),
                end: decode_end(&mut reader)?,
            }),
            kind::LIST if !decode_bool(&mut reader, "list")? => Message::List(List::Same),
            kind::LIST => {
                let end = decode_end(&mut reader)?;
                let count = reader.count(4 * LIST_ITEMS_MAX, 8)?;
                let hashes = (0..count).map(|_| reader.u64());
                let hashes = hashes.collect::<Result<_, _>>()?;
                Message::List(List::Items { end, hashes })
            }
            kind::ABSENT => {
                let count = reader.count(4 * LIST_ITEMS_MAX, 1)?;
                let places = (0..count).map(|_| reader.varint());
                Message::Absent(places.collect::<Result<_, _>>()?)
            }
            kind::WANT => {
                let count = reader.count(WANTED_KEYS_MAX, 1)?;
                let keys = (0..count).map(|_| reader.prefixed(KEY_BYTES_MAX));
                Message::Want(keys.collect::<Result<_, _>>()?)
            }
            kind::CHAINS => {
                let count = reader.count(HEADS_PER_MESSAGE, 17)?;
                let chains = (0..count).map(|_| {
                    let writer = WriterId(reader.u64()?);
                    let parent = WriterId(reader.u64()?);
                    let seq = reader.varint()?;
                    Ok((
                        writer,
                        Dot {
                            writer: parent,
                            seq,
                        },
                    ))
                });
                Message::Chains(chains.collect::<Result<_, DecodeError>>()?)
            }
            kind::TELL_ALL => Message::TellAll,
            kind::REACHED => Message::Reached(reader.prefixed(KEY_BYTES_MAX + 1)?),
            _ => {
                return Err(DecodeError::Invalid {
                    what: "message kind",
                });
            }
        };
        reader.finish()?;
        Ok(message)
    }
}

fn decode_bool(reader: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Invalid { what }),
    }
}

/// The end of a range: nothing for the end of all keys.
fn put_end(out: &mut Vec<u8>, end: Option<&Key>) {
    out.push(u8::from(end.is_some()));
    if let Some(end) = end {
        put_prefixed(out, end);
    }
}

fn decode_end(reader: &mut Reader) -> Result<Option<Key>, DecodeError> {
    if !decode_bool(reader, "end of a range")? {
        return Ok(None);
    }
    reader.prefixed(KEY_BYTES_MAX + 1).map(Some)
}

impl ClusterNews {
    /// All of it, in pieces that fit a message each.
    pub fn pieces(members: &Members, epoch: &Epoch, has_cut: bool) -> Vec<ClusterNews> {
        let all: Vec<_> = members.iter().collect();
        let told = |cut: Clock| Epoch {
            cut,
            ..epoch.clone()
        };
        let piece = |members: &[_], cut| ClusterNews {
            members: members.to_vec(),
            epoch: told(cut),
            has_cut,
            more: true,
        };
        let mut pieces: Vec<ClusterNews> = all
            .chunks(MEMBERS_PER_MESSAGE)
            .map(|members| piece(members, Clock::default()))
            .collect();
        if has_cut {
            for heads in Heads::changed(&epoch.cut, &Clock::default()) {
                let mut cut = Clock::default();
                heads.update(&mut cut);
                pieces.push(piece(&[], cut));
            }
        }
        if let Some(last) = pieces.last_mut() {
            last.more = false;
        }
        pieces
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(flag(self.has_cut, CLUSTER_CUT) | flag(self.more, CLUSTER_MORE));
        put_varint(out, self.members.len() as u64);
        for (replica, member) in &self.members {
            out.extend_from_slice(&replica.0);
            member.encode(out);
        }
        self.epoch.encode_head(out);
        let heads = Heads::changed(&self.epoch.cut, &Clock::default());
        for head in heads.into_iter().take(1) {
            head.encode(out);
        }
    }

    fn decode(reader: &mut Reader) -> Result<ClusterNews, DecodeError> {
        let flags = reader.u8()?;
        let count = reader.count(MEMBERS_PER_MESSAGE, 33)?;
        let members = (0..count).map(|_| Ok((ReplicaId(reader.array()?), Member::decode(reader)?)));
        let members = members.collect::<Result<_, DecodeError>>()?;
        let mut epoch = Epoch::decode_head(reader)?;
        Heads::decode(reader)?.update(&mut epoch.cut);
        Ok(ClusterNews {
            members,
            epoch,
            has_cut: flags & CLUSTER_CUT != 0,
            more: flags & CLUSTER_MORE != 0,
        })
    }
}

fn put_writers(out: &mut Vec<u8>, writers: &[WriterId]) {
    put_varint(out, writers.len() as u64);
    for writer in writers {
        out.extend_from_slice(&writer.0.to_be_bytes());
    }
}

fn decode_writers(reader: &mut Reader, limit: usize) -> Result<Vec<WriterId>, DecodeError> {
    let count = reader.count(limit, 8)?;
    (0..count).map(|_| Ok(WriterId(reader.u64()?))).collect()
}

fn decode_address(reader: &mut Reader) -> Result<Address, DecodeError> {
    let text = reader.text(ADDRESS_BYTES_MAX)?;
    let address = text.parse();
    address.map_err(|_| DecodeError::Invalid { what: "address" })
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.push(self.version_min);
        out.push(self.version_max);
        put_prefixed(out, self.cluster.as_bytes());
        out.extend_from_slice(&self.replica.0);
        out.extend_from_slice(&self.instance.to_be_bytes());
        out.extend_from_slice(&self.clock_digest.to_be_bytes());
        out.push(
            flag(self.state_digest.is_some(), HELLO_STATE)
                | flag(self.whole, HELLO_WHOLE)
                | flag(self.settled, HELLO_SETTLED)
                | flag(self.heals, HELLO_HEALS)
                | flag(self.advertised.is_some(), HELLO_ADVERTISED),
        );
        if let Some(digest) = self.state_digest {
            out.extend_from_slice(&digest.to_be_bytes());
        }
        out.extend_from_slice(&self.token.to_be_bytes());
        out.extend_from_slice(&self.floor_digest.to_be_bytes());
        out.extend_from_slice(&self.cluster_digest.to_be_bytes());
        out.extend_from_slice(&self.epoch_digest.to_be_bytes());
        out.extend_from_slice(&self.addresses_digest.to_be_bytes());
        if let Some(address) = &self.advertised {
            put_prefixed(out, address.as_str().as_bytes());
        }
    }

    /// Reads a hello. The magic and the two versions stand first in every version of the protocol.
    fn decode(payload: Bytes) -> Result<Hello, DecodeError> {
        const WHAT: &str = "hello";
        let mut reader = Reader::new(payload, WHAT);
        if reader.array()? != MAGIC {
            return Err(DecodeError::Invalid { what: WHAT });
        }
        let (version_min, version_max) = (reader.u8()?, reader.u8()?);
        let understood = version_min <= WIRE_VERSION && WIRE_VERSION <= version_max;
        if !understood {
            // The rest is written in a language not spoken here.
            return Ok(Hello::of_versions(version_min, version_max));
        }
        let mut hello = Hello {
            cluster: reader.text(CLUSTER_BYTES_MAX)?,
            replica: ReplicaId(reader.array()?),
            instance: reader.u64()?,
            clock_digest: u128::from_be_bytes(reader.array()?),
            ..Hello::of_versions(version_min, version_max)
        };
        let flags = reader.u8()?;
        if flags & HELLO_STATE != 0 {
            hello.state_digest = Some(u128::from_be_bytes(reader.array()?));
        }
        hello.whole = flags & HELLO_WHOLE != 0;
        hello.settled = flags & HELLO_SETTLED != 0;
        hello.heals = flags & HELLO_HEALS != 0;
        hello.token = reader.u64()?;
        hello.floor_digest = reader.u64()?;
        hello.cluster_digest = reader.u64()?;
        hello.epoch_digest = reader.u64()?;
        hello.addresses_digest = reader.u64()?;
        if flags & HELLO_ADVERTISED != 0 {
            hello.advertised = Some(decode_address(&mut reader)?);
        }
        reader.finish()?;
        Ok(hello)
    }

    fn of_versions(version_min: u8, version_max: u8) -> Hello {
        Hello {
            version_min,
            version_max,
            cluster: String::new(),
            replica: ReplicaId([0; 16]),
            instance: 0,
            clock_digest: 0,
            state_digest: None,
            whole: false,
            settled: false,
            heals: false,
            token: 0,
            floor_digest: 0,
            cluster_digest: 0,
            epoch_digest: 0,
            addresses_digest: 0,
            advertised: None,
        }
    }
}

impl Heads {
    /// What differs in `now` from what was `told`, in pieces that fit a message each; at least one piece.
    pub fn changed(now: &Clock, told: &Clock) -> Vec<Heads> {
        let mut pieces = vec![Heads::default()];
        let mut room = HEADS_PER_MESSAGE;
        for (writer, known) in now.iter() {
            if told.get(writer) == Some(known) {
                continue;
            }
            let mut adds = false;
            let mut ahead = known.ahead().peekable();
            loop {
                if room == 0 {
                    pieces.push(Heads::default());
                    room = HEADS_PER_MESSAGE;
                }
                let mut part = Known::default();
                if !adds {
                    part.insert(1..=known.base());
                }
                room -= 1;
                while room > 0
                    && let Some(range) = ahead.next()
                {
                    part.insert(range);
                    room -= 1;
                }
                let piece = pieces.last_mut().expect("there is always a piece");
                piece.0.push(Head {
                    writer,
                    known: part,
                    adds,
                });
                adds = true;
                if ahead.peek().is_none() {
                    break;
                }
            }
        }
        pieces
    }

    /// Brings what a peer was known to know up to date.
    pub fn update(&self, clock: &mut Clock) {
        for head in &self.0 {
            if !head.adds {
                clock.set(head.writer, head.known.clone());
                continue;
            }
            for range in head.known.ranges() {
                clock.insert_range(head.writer, range);
            }
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.0.len() as u64);
        for Head {
            writer,
            known,
            adds,
        } in &self.0
        {
            out.extend_from_slice(&writer.0.to_be_bytes());
            let has_ahead = known.ahead_len() > 0;
            out.push(flag(*adds, HEAD_ADDS) | flag(has_ahead, HEAD_AHEAD));
            put_varint(out, known.base());
            if has_ahead {
                put_varint(out, known.ahead_len() as u64);
                let mut last = known.base();
                for range in known.ahead() {
                    put_varint(out, range.start() - last);
                    put_varint(out, range.end() - range.start());
                    last = *range.end();
                }
            }
        }
    }

    fn decode(reader: &mut Reader) -> Result<Heads, DecodeError> {
        const WHAT: &str = "heads";
        let invalid = DecodeError::Invalid { what: WHAT };
        let count = reader.count(HEADS_PER_MESSAGE, 10)?;
        let mut heads = Vec::with_capacity(count);
        for _ in 0..count {
            let writer = WriterId(reader.u64()?);
            let before = heads.last().map(|head: &Head| head.writer);
            if before.is_some_and(|before| before >= writer) {
                return Err(invalid);
            }
            let flags = reader.u8()?;
            let mut known = Known::default();
            let mut last = reader.varint()?;
            known.insert(1..=last);
            if flags & HEAD_AHEAD != 0 {
                for _ in 0..reader.count(HEADS_PER_MESSAGE, 2)? {
                    let range = decode_range(reader, last).ok_or(invalid.clone())?;
                    last = *range.end();
                    known.insert(range);
                }
            }
            heads.push(Head {
                writer,
                known,
                adds: flags & HEAD_ADDS != 0,
            });
        }
        Ok(Heads(heads))
    }
}

fn decode_range(reader: &mut Reader, last: u64) -> Option<RangeInclusive<u64>> {
    let first = last.checked_add(reader.varint().ok()?)?;
    let end = first.checked_add(reader.varint().ok()?)?;
    (first > last).then_some(first..=end)
}

/// Appends a `Records` message whose payload is packed already; in fragments if it is too large for
/// one frame.
pub fn encode_records(payload: Vec<u8>, out: &mut FrameWriter) {
    if payload.len() <= FRAME_PAYLOAD_MAX {
        out.push(kind::RECORDS, &payload);
        return;
    }
    const PIECE: usize = FRAME_PAYLOAD_MAX - 1;
    let bytes = Bytes::from(payload);
    let pieces = bytes.len().div_ceil(PIECE);
    for piece in 0..pieces {
        let fragment = Message::Fragment {
            bytes: bytes.slice(piece * PIECE..bytes.len().min((piece + 1) * PIECE)),
            last: piece + 1 == pieces,
        };
        fragment.encode(out);
    }
}
