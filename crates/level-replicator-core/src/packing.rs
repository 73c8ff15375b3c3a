//! Records packed for the wire: what a record shares with the one before it costs nothing.
//!
//! The rule: a packed record refers only to the table of writers at the front and to records before
//! it in the same message, so each message can be read by itself.

use bytes::Bytes;

use crate::clock::{Dot, Stamp, VersionVector, WriterId};
use crate::codec::{DecodeError, Reader, flag, put_prefixed, put_varint, unzigzag, zigzag};
use crate::limits::{KEY_BYTES_MAX, KEYS_PER_MESSAGE_BYTES_MAX, SIBLINGS_MAX, VALUE_BYTES_CEILING};
use crate::record::{Content, Key, Record, Version};

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
/// The live write is a value that expires.
const UNTIL: u8 = 64;

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
        let next_seq = same_writer && before.seq.checked_add(1) == Some(version.dot.seq);
        let same_value_len = value_len == before.value_len;
        let flags = SIMPLE
            | kind(&version.content)
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
        self.put_until(version);
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
            self.body.push(kind(&version.content));
            self.put_dot(version.dot);
            self.put_stamp(version.stamp);
            self.put_until(version);
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

    /// When a value expires, as the step from its stamp.
    fn put_until(&mut self, version: &Version) {
        if let Some(until) = version.content.until() {
            let step = until.as_micros() as i64 - version.stamp.as_micros() as i64;
            put_varint(&mut self.body, zigzag(step));
        }
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

fn kind(content: &Content) -> u8 {
    match content {
        Content::Put(_) => 0,
        Content::PutUntil(..) => UNTIL,
        Content::Delete => DELETE,
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
    // A record has a byte of key at least, and takes two more when all else is as in the one before.
    let count = reader.count(KEYS_PER_MESSAGE_BYTES_MAX, 3)?;
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
        let content = self.content(flags, stamp, |decoder| {
            if flags & SAME_VALUE_LEN == 0 {
                decoder.before.value_len = decoder.reader.count(VALUE_BYTES_CEILING, 1)?;
            }
            decoder.reader.bytes(decoder.before.value_len)
        })?;
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
            let content = self.content(flags, stamp, |decoder| {
                decoder.reader.prefixed(VALUE_BYTES_CEILING)
            })?;
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

    fn content(
        &mut self,
        flags: u8,
        stamp: Stamp,
        value: impl FnOnce(&mut Self) -> Result<Bytes, DecodeError>,
    ) -> Result<Content, DecodeError> {
        match flags & (DELETE | UNTIL) {
            0 => Ok(Content::Put(value(self)?)),
            DELETE => Ok(Content::Delete),
            UNTIL => {
                let until = stepped(stamp.as_micros(), self.reader.varint()?)?;
                Ok(Content::PutUntil(value(self)?, until))
            }
            _ => Err(INVALID),
        }
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
        let stamp = stepped(self.before.stamp, self.reader.varint()?)?;
        self.before.stamp = stamp.as_micros();
        Ok(stamp)
    }
}

/// The stamp that is a step away from another.
fn stepped(before: u64, step: u64) -> Result<Stamp, DecodeError> {
    let micros = before.checked_add_signed(unzigzag(step)).ok_or(INVALID)?;
    let stamp = Stamp::from_micros(micros);
    (stamp.as_micros() == micros)
        .then_some(stamp)
        .ok_or(INVALID)
}
