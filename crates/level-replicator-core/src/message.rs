//! What replicas say to each other. The grammar is in docs/protocol.md.
//!
//! The rule: decoding allocates no more than a small multiple of the bytes that really came.

use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::address::Address;
use crate::clock::{Clock, Dot, Known, ReplicaId, Stamp, VersionVector, WriterId};
use crate::codec::{DecodeError, Reader, put_prefixed, put_varint, unzigzag, zigzag};
use crate::frame::{self, Frame, WIRE_VERSION};
use crate::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_PER_MESSAGE, CLUSTER_BYTES_MAX, DESCRIPTORS_PER_MESSAGE,
    FRAME_PAYLOAD_MAX, HEADS_PER_MESSAGE, KEY_BYTES_MAX, KEYS_PER_MESSAGE_BYTES_MAX, SIBLINGS_MAX,
    UNCLAIMED_PER_MESSAGE, VALUE_BYTES_CEILING,
};
use crate::record::{Content, Key, Record, Version};
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
    /// Whether its state is whole: it holds no histories without a live write.
    ///
    /// A floor that is not yet covered will count here too.
    pub whole: bool,
    /// Whether it waits for no claim. One that does wants to be told the clock in full.
    pub settled: bool,
    /// The number of its membership epoch; 0 as long as there are none.
    pub epoch: u64,
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
    /// More heads follow in another `Applied`.
    pub more: bool,
    /// What I know now, as far as it differs from what I told last.
    pub heads: Heads,
}

/// Kinds 12 to 16 are kept for Members, Epoch, Plan, Range and Want.
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
}

const CLOCK_ASKS: u8 = 1;
const CLOCK_MORE: u8 = 2;
const APPLIED_ANSWERS: u8 = 1;
const APPLIED_ENDS: u8 = 2;
const APPLIED_MORE: u8 = 4;
const HELLO_STATE: u8 = 1;
const HELLO_WHOLE: u8 = 2;
const HELLO_ADVERTISED: u8 = 4;
const HELLO_SETTLED: u8 = 8;
const HEAD_ADDS: u8 = 1;
const HEAD_AHEAD: u8 = 2;

impl Message {
    /// Appends the message as one frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        let kind = self.encode_payload(&mut payload);
        frame::encode(out, kind, &payload);
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
            Message::Yield { whole } => {
                put_writers(out, whole.as_slice());
                kind::YIELD
            }
            Message::Applied(applied) => {
                let flags = flag(applied.answers, APPLIED_ANSWERS)
                    | flag(applied.ends, APPLIED_ENDS)
                    | flag(applied.more, APPLIED_MORE);
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
        }
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
                whole: decode_writers(&mut reader, 1)?.pop(),
            },
            kind::APPLIED => {
                let flags = reader.u8()?;
                Message::Applied(Applied {
                    answers: flags & APPLIED_ANSWERS != 0,
                    ends: flags & APPLIED_ENDS != 0,
                    more: flags & APPLIED_MORE != 0,
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

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn decode_bool(reader: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Invalid { what }),
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
                | flag(self.advertised.is_some(), HELLO_ADVERTISED),
        );
        if let Some(digest) = self.state_digest {
            out.extend_from_slice(&digest.to_be_bytes());
        }
        put_varint(out, self.epoch);
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
        hello.epoch = reader.varint()?;
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
            epoch: 0,
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

/// A record with one live write and no history.
const SIMPLE: u8 = 1;
/// The live write is a delete.
const DELETE: u8 = 2;
/// The writer is that of the record before.
const SAME_WRITER: u8 = 4;
/// The number is one more than that of the record before.
const NEXT_SEQ: u8 = 8;
/// The key shares no prefix with the one before and is as long.
const SAME_KEY_LEN: u8 = 16;
/// The value is as long as the one before.
const SAME_VALUE_LEN: u8 = 32;

/// Packs records so that what they share with the one before costs nothing.
#[derive(Debug, Default)]
pub struct RecordsEncoder {
    writers: Vec<WriterId>,
    body: Vec<u8>,
    count: u64,
    key_bytes: usize,
    before: Before,
}

/// What the record before left for the next one to refer to.
#[derive(Debug, Default)]
struct Before {
    key: Bytes,
    writer: u64,
    seq: u64,
    stamp: u64,
    value_len: usize,
}

impl RecordsEncoder {
    /// About how many bytes [`RecordsEncoder::finish`] would give.
    pub fn len(&self) -> usize {
        self.body.len() + 8 * self.writers.len() + 8
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether any key can be added without exceeding [`KEYS_PER_MESSAGE_BYTES_MAX`].
    pub fn has_room_for_key(&self) -> bool {
        self.key_bytes + KEY_BYTES_MAX <= KEYS_PER_MESSAGE_BYTES_MAX
    }

    /// Adds a record.
    pub fn push(&mut self, key: &Key, record: &Record) {
        self.count += 1;
        self.key_bytes += key.len();
        match (&record.live[..], record.seen.is_empty()) {
            ([version], true) => self.push_simple(key, version),
            _ => self.push_general(key, record),
        }
        self.before.key = key.clone();
    }

    /// The payload of a `Records` message.
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        put_varint(&mut out, self.writers.len() as u64);
        for writer in &self.writers {
            out.extend_from_slice(&writer.0.to_be_bytes());
        }
        put_varint(&mut out, self.count);
        out.extend_from_slice(&self.body);
        out
    }

    fn push_simple(&mut self, key: &Key, version: &Version) {
        let writer = self.writer(version.dot.writer);
        let before = &self.before;
        let shared = shared_prefix(&before.key, key);
        let same_key_len = shared == 0 && before.key.len() == key.len();
        let value_len = version.value().map_or(0, Bytes::len);
        let same_writer = writer == before.writer && before.seq > 0;
        let next_seq = same_writer && version.dot.seq == before.seq + 1;
        let same_value_len = value_len == before.value_len;
        let flags = SIMPLE
            | flag(version.value().is_none(), DELETE)
            | flag(same_writer, SAME_WRITER)
            | flag(next_seq, NEXT_SEQ)
            | flag(same_key_len, SAME_KEY_LEN)
            | flag(same_value_len, SAME_VALUE_LEN);

        self.body.push(flags);
        if same_key_len {
            self.body.extend_from_slice(key);
        } else {
            self.put_key(key, shared);
        }
        if !same_writer {
            put_varint(&mut self.body, writer);
        }
        if !next_seq {
            put_varint(&mut self.body, version.dot.seq);
        }
        self.put_stamp(version.stamp);
        if let Some(value) = version.value() {
            if !same_value_len {
                put_varint(&mut self.body, value_len as u64);
            }
            self.body.extend_from_slice(value);
            self.before.value_len = value_len;
        }
        self.before.writer = writer;
        self.before.seq = version.dot.seq;
    }

    fn push_general(&mut self, key: &Key, record: &Record) {
        self.body.push(0);
        self.put_key(key, shared_prefix(&self.before.key, key));
        put_varint(&mut self.body, record.live.len() as u64);
        for version in &record.live {
            self.body.push(flag(version.value().is_none(), DELETE));
            self.put_dot(version.dot);
            self.put_stamp(version.stamp);
            if let Some(value) = version.value() {
                put_prefixed(&mut self.body, value);
            }
        }
        put_varint(&mut self.body, record.seen.len() as u64);
        record.seen.iter().for_each(|dot| self.put_dot(dot));
    }

    fn put_key(&mut self, key: &Key, shared: usize) {
        put_varint(&mut self.body, shared as u64);
        put_prefixed(&mut self.body, &key[shared..]);
    }

    fn put_dot(&mut self, dot: Dot) {
        let writer = self.writer(dot.writer);
        put_varint(&mut self.body, writer);
        put_varint(&mut self.body, dot.seq);
    }

    fn put_stamp(&mut self, stamp: Stamp) {
        let micros = stamp.as_micros();
        let step = micros as i64 - self.before.stamp as i64;
        put_varint(&mut self.body, zigzag(step));
        self.before.stamp = micros;
    }

    /// The place of a writer in the table at the front of the message.
    fn writer(&mut self, writer: WriterId) -> u64 {
        // Runs of one writer are the rule, so the last place is tried first.
        if self.writers.get(self.before.writer as usize) == Some(&writer) {
            return self.before.writer;
        }
        let place = self.writers.iter().position(|&known| known == writer);
        let place = place.unwrap_or_else(|| {
            self.writers.push(writer);
            self.writers.len() - 1
        });
        place as u64
    }
}

fn shared_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Reads the payload of a `Records` message; it need not fit a frame, for records in fragments.
pub fn decode_records(payload: Bytes) -> Result<Vec<(Key, Record)>, DecodeError> {
    const WHAT: &str = "records";
    let mut reader = Reader::new(payload, WHAT);
    let count = reader.count(usize::MAX, 8)?;
    let writers: Vec<WriterId> = (0..count)
        .map(|_| Ok(WriterId(reader.u64()?)))
        .collect::<Result<_, DecodeError>>()?;
    let count = reader.count(usize::MAX, 4)?;
    let mut decoder = RecordsDecoder {
        reader,
        writers,
        key_bytes: 0,
        before: Before::default(),
    };
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        records.push(decoder.next_record()?);
    }
    decoder.reader.finish()?;
    Ok(records)
}

struct RecordsDecoder {
    reader: Reader,
    writers: Vec<WriterId>,
    key_bytes: usize,
    before: Before,
}

const INVALID: DecodeError = DecodeError::Invalid { what: "records" };

impl RecordsDecoder {
    fn next_record(&mut self) -> Result<(Key, Record), DecodeError> {
        let flags = self.reader.u8()?;
        let key = if flags & SAME_KEY_LEN != 0 {
            self.reader.bytes(self.before.key.len())?
        } else {
            self.key()?
        };
        if key.is_empty() {
            return Err(INVALID);
        }
        self.key_bytes += key.len();
        if self.key_bytes > KEYS_PER_MESSAGE_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                what: "keys of records",
                size: self.key_bytes as u64,
                limit: KEYS_PER_MESSAGE_BYTES_MAX as u64,
            });
        }
        self.before.key = key.clone();
        let record = if flags & SIMPLE != 0 {
            self.simple(flags)?
        } else {
            self.general()?
        };
        Ok((key, record))
    }

    fn key(&mut self) -> Result<Key, DecodeError> {
        let shared = self.reader.varint()?;
        let rest = self.reader.prefixed(KEY_BYTES_MAX)?;
        if shared == 0 {
            return Ok(rest);
        }
        let shared = usize::try_from(shared).map_err(|_| INVALID)?;
        let prefix = self.before.key.get(..shared).ok_or(INVALID)?;
        if prefix.len() + rest.len() > KEY_BYTES_MAX {
            return Err(INVALID);
        }
        Ok([prefix, &rest[..]].concat().into())
    }

    fn simple(&mut self, flags: u8) -> Result<Record, DecodeError> {
        if flags & SAME_WRITER == 0 {
            self.before.writer = self.reader.varint()?;
        }
        let seq = if flags & NEXT_SEQ != 0 {
            self.before.seq.checked_add(1).ok_or(INVALID)?
        } else {
            self.reader.varint()?
        };
        self.before.seq = seq;
        let dot = self.dot(self.before.writer, seq)?;
        let stamp = self.stamp()?;
        let content = if flags & DELETE != 0 {
            Content::Delete
        } else {
            if flags & SAME_VALUE_LEN == 0 {
                self.before.value_len = self.reader.count(VALUE_BYTES_CEILING, 1)?;
            }
            Content::Put(self.reader.bytes(self.before.value_len)?)
        };
        let live = vec![Version {
            dot,
            stamp,
            content,
        }];
        Ok(Record {
            live,
            seen: VersionVector::default(),
        })
    }

    fn general(&mut self) -> Result<Record, DecodeError> {
        let count = self.reader.count(SIBLINGS_MAX, 4)?;
        let mut live: Vec<Version> = Vec::with_capacity(count);
        for _ in 0..count {
            let flags = self.reader.u8()?;
            let dot = self.any_dot()?;
            let stamp = self.stamp()?;
            let content = if flags & DELETE != 0 {
                Content::Delete
            } else {
                Content::Put(self.reader.prefixed(VALUE_BYTES_CEILING)?)
            };
            if live.last().is_some_and(|before| before.dot >= dot) {
                return Err(INVALID);
            }
            live.push(Version {
                dot,
                stamp,
                content,
            });
        }
        let mut seen = VersionVector::default();
        for _ in 0..self.reader.count(usize::MAX, 2)? {
            seen.raise(self.any_dot()?);
        }
        Ok(Record { live, seen })
    }

    fn any_dot(&mut self) -> Result<Dot, DecodeError> {
        let writer = self.reader.varint()?;
        let seq = self.reader.varint()?;
        self.dot(writer, seq)
    }

    fn dot(&self, writer: u64, seq: u64) -> Result<Dot, DecodeError> {
        let place = usize::try_from(writer).map_err(|_| INVALID)?;
        let writer = *self.writers.get(place).ok_or(INVALID)?;
        if seq == 0 {
            return Err(INVALID);
        }
        Ok(Dot { writer, seq })
    }

    fn stamp(&mut self) -> Result<Stamp, DecodeError> {
        let step = unzigzag(self.reader.varint()?);
        let micros = self.before.stamp.checked_add_signed(step).ok_or(INVALID)?;
        self.before.stamp = micros;
        let stamp = Stamp::from_micros(micros);
        (stamp.as_micros() == micros)
            .then_some(stamp)
            .ok_or(INVALID)
    }
}

/// Cuts the payload of an oversized `Records` message into fragments.
pub fn fragments(payload: Vec<u8>) -> impl Iterator<Item = Message> {
    const PIECE: usize = FRAME_PAYLOAD_MAX - 1;
    let bytes = Bytes::from(payload);
    let pieces = bytes.len().div_ceil(PIECE).max(1);
    (0..pieces).map(move |piece| Message::Fragment {
        bytes: bytes.slice(piece * PIECE..bytes.len().min((piece + 1) * PIECE)),
        last: piece + 1 == pieces,
    })
}

/// Appends a `Records` message whose payload is packed already.
pub fn encode_records(out: &mut Vec<u8>, payload: &[u8]) {
    frame::encode(out, kind::RECORDS, payload);
}
