//! What is stored under a key, and how two replicas' views of it become one.
//!
//! The rule: a write survives until a write that had *seen* it replaces it. Writes that had not
//! seen each other are live side by side. After "Delta state replicated data types" (Almeida,
//! Shoker, Baquero 2016), with the clock of the whole replica as causal context.

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

use crate::clock::{Clock, Dot, Known, Stamp, VersionVector, WriterId};
use crate::codec::{DecodeError, Reader, put_varint, seal, unseal};
use crate::limits::{SIBLINGS_MAX, VALUE_BYTES_CEILING};
use crate::mistake::{Mistake, is_planted};
use crate::writers::{WriterOrd, Writers};

/// A key: any 1 to 65,000 bytes.
pub type Key = Bytes;

/// A value: any bytes up to the limit of the replica. It is shared, so cloning it is cheap.
pub type Value = Bytes;

/// One operation of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key to a value.
    Put(Key, Value),
    /// Sets a key to a value that readers do not see any more when this moment has come.
    PutUntil(Key, Value, Stamp),
    /// Removes a key.
    Delete(Key),
}

impl Op {
    /// The key that the operation is about.
    pub fn key(&self) -> &Key {
        match self {
            Op::Put(key, _) | Op::PutUntil(key, _, _) | Op::Delete(key) => key,
        }
    }
}

/// What a live write left under its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A value.
    Put(Value),
    /// A value that readers hide from this moment on, each by its own clock. It stays what it is until
    /// a delete replaces it, which the replica that wrote it makes; see docs/causality.md.
    PutUntil(Value, Stamp),
    /// Nothing: a *tombstone*, kept so that others learn of the delete.
    Delete,
}

impl Content {
    /// The value, unless the write was a delete.
    pub fn value(&self) -> Option<&Value> {
        match self {
            Content::Put(value) | Content::PutUntil(value, _) => Some(value),
            Content::Delete => None,
        }
    }

    /// From when on readers hide the value, if ever.
    pub fn until(&self) -> Option<Stamp> {
        match self {
            Content::PutUntil(_, until) => Some(*until),
            Content::Put(_) | Content::Delete => None,
        }
    }

    /// Whether readers hide it at a moment.
    pub fn is_expired(&self, now: Stamp) -> bool {
        self.until().is_some_and(|until| until <= now)
    }

    /// Four bytes that stand for the value, and the moment it expires, beside the write's dot.
    pub fn hash(&self) -> Option<u32> {
        let hash = match self {
            Content::Put(value) => xxh3_64(value),
            Content::PutUntil(value, until) => xxh3_64_with_seed(value, until.as_micros()),
            Content::Delete => return None,
        };
        Some(hash as u32)
    }
}

/// One write that nothing known here has replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The name of the write.
    pub dot: Dot,
    /// When it happened by its writer's clock.
    pub stamp: Stamp,
    /// What it left.
    pub content: Content,
}

impl Version {
    /// The value, unless the write was a delete.
    pub fn value(&self) -> Option<&Value> {
        self.content.value()
    }
}

/// Everything a replica holds about one key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The live writes in the order of their dots; two or more are concurrent *siblings*.
    pub live: Vec<Version>,
    /// What the key's history covers beyond the live writes (`V` of docs/causality.md).
    ///
    /// A live dot implies its writer's earlier dots on the key and those of the writer's parents,
    /// so for a key with one author this is empty.
    pub seen: VersionVector,
}

impl Record {
    /// Whether nothing is held: neither a live write nor a history.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.seen.is_empty()
    }

    /// The live writes that left a value.
    pub fn puts(&self) -> impl Iterator<Item = &Version> + '_ {
        self.live.iter().filter(|version| version.value().is_some())
    }

    /// The values that readers may see at a moment.
    pub fn shown(&self, now: Stamp) -> impl Iterator<Item = &Version> + '_ {
        self.puts()
            .filter(move |version| !version.content.is_expired(now))
    }

    /// The latest stamp among the live writes.
    pub fn last_stamp(&self) -> Option<Stamp> {
        self.live.iter().map(|version| version.stamp).max()
    }

    /// Whether the dot is live here.
    pub fn holds(&self, dot: Dot) -> bool {
        self.live.iter().any(|version| version.dot == dot)
    }

    /// The record after a write that saw all of this one.
    pub fn superseded_by(&self, version: Version, writers: &Writers) -> Record {
        let mut record = Record {
            seen: self.history(),
            live: vec![version],
        };
        record.drop_implied(writers);
        record
    }

    /// Joins what two replicas hold of one key; `mine` and `theirs` are equals.
    ///
    /// A write that one side holds and the other does not stays if the other had not heard of it,
    /// and goes if the other had: then that side held something that replaced it. Idempotent,
    /// commutative and associative as long as each side's clock only names writes which that side
    /// holds or holds a replacement of.
    pub fn join(mine: Side<'_>, theirs: Side<'_>, writers: &Writers) -> Record {
        // The common case of a catch-up: a key that is new here.
        let is_news = |version: &Version| !mine.clock.contains(version.dot);
        if mine.record.is_empty() && theirs.record.live.iter().all(is_news) {
            let mut record = theirs.record.clone();
            record.drop_implied(writers);
            return record;
        }

        let (mut my_history, mut their_history) = (mine.record.history(), theirs.record.history());
        if is_planted(Mistake::LiveNotInHistory) {
            my_history = mine.record.seen.clone();
            their_history = theirs.record.seen.clone();
        }
        let unseen = |dot: Dot, side: Side<'_>, history: &VersionVector| {
            !side.clock.contains(dot) && !covers(history, dot, writers)
        };

        let kept = mine.record.live.iter().filter(|version| {
            theirs.record.holds(version.dot) || unseen(version.dot, theirs, &their_history)
        });
        let came = theirs.record.live.iter().filter(|version| {
            !mine.record.holds(version.dot) && unseen(version.dot, mine, &my_history)
        });
        let mut live: Vec<Version> = kept.chain(came).cloned().collect();
        if is_planted(Mistake::SiblingsDropped) {
            live.sort_by_key(|version| (version.stamp, version.dot));
            live.drain(..live.len().saturating_sub(1));
        }
        if is_planted(Mistake::DeleteWins) {
            let deletes = live.iter().filter(|version| version.value().is_none());
            let last = deletes.map(|version| version.stamp).max();
            live.retain(|version| version.value().is_none() || Some(version.stamp) >= last);
        }
        live.sort_by_key(|version| version.dot);

        let mut seen = my_history;
        seen.join(&their_history);
        let mut record = Record { live, seen };
        record.drop_implied(writers);
        record
    }

    /// All that the record's history covers: `seen` and the live dots themselves.
    pub fn history(&self) -> VersionVector {
        let mut history = self.seen.clone();
        for version in &self.live {
            history.raise(version.dot);
        }
        history
    }

    /// Whether anything is held that a floor may make superfluous: a delete or a history.
    pub fn is_strippable(&self) -> bool {
        !self.seen.is_empty() || self.live.iter().any(|version| version.value().is_none())
    }

    /// Whether only a history is left.
    pub fn is_ghost(&self) -> bool {
        self.live.is_empty() && !self.seen.is_empty()
    }

    /// The record without what nobody needs any more, if all of it lies below a floor.
    ///
    /// Who knows the floor knows all that the deletes and the history stand for; who does not is
    /// healed before it is told anything else. A delete stands for *all* earlier writes of its
    /// writer under the key, so the floor must hold those without a gap; of a value it must hold the
    /// write itself. The floor holds with each writer the writes that its parents' chain implies.
    pub fn stripped(&self, floor: &Clock) -> Option<Record> {
        let reaches = |dot: Dot| floor.get(dot.writer).map_or(0, Known::base) >= dot.seq;
        let is_below = |version: &Version| match version.content {
            Content::Put(_) | Content::PutUntil(..) => floor.contains(version.dot),
            Content::Delete if is_planted(Mistake::DeleteOverGap) => floor.contains(version.dot),
            Content::Delete if is_planted(Mistake::TombstonesByAge) => true,
            Content::Delete => reaches(version.dot),
        };
        if !self.is_strippable()
            || !self.live.iter().all(is_below)
            || !self.seen.iter().all(reaches)
        {
            return None;
        }
        let live = self.puts().cloned().collect();
        let seen = VersionVector::default();
        Some(Record { live, seen })
    }

    /// Forgets the part of `seen` that the live dots, or the rest of it, imply.
    pub fn drop_implied(&mut self, writers: &Writers) {
        if is_planted(Mistake::NoHistory) {
            self.seen = VersionVector::default();
        }
        if self.seen.is_empty() {
            return;
        }
        let implied_by = |by: Dot, dot: Dot| {
            (by.writer == dot.writer && by.seq >= dot.seq) || writers.implies(by.writer, dot)
        };
        let all = self.seen.clone();
        let live = &self.live;
        self.seen.retain(|dot| {
            let by_live = live.iter().any(|version| implied_by(version.dot, dot));
            let by_rest = all.iter().any(|by| by != dot && implied_by(by, dot));
            !by_live && !by_rest
        });
    }

    /// What the record adds to the [`Tally`] of its replica.
    pub fn tally(&self, key: &[u8]) -> Tally {
        let mut puts = self.puts();
        let Some(first) = puts.next() else {
            return Tally {
                deletes: u64::from(!self.live.is_empty()),
                ..Tally::default()
            };
        };
        let siblings = puts.next().is_some();

        let mut bytes = Vec::with_capacity(key.len() + 32);
        bytes.extend_from_slice(&(key.len() as u32).to_be_bytes());
        bytes.extend_from_slice(key);
        let rest = if siblings { &self.live[..] } else { &[] };
        for version in std::iter::once(first).chain(rest) {
            if let Some(hash) = version.content.hash() {
                bytes.extend_from_slice(&version.dot.writer.0.to_be_bytes());
                bytes.extend_from_slice(&version.dot.seq.to_be_bytes());
                bytes.extend_from_slice(&hash.to_be_bytes());
            }
        }
        Tally {
            keys: 1,
            conflicts: u64::from(siblings),
            deletes: 0,
            log: 0,
            digest: xxh3_128(&bytes),
        }
    }
}

/// One replica's view of a key: its record, and the clock that says what else it knew.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// What it holds of the key.
    pub record: &'a Record,
    /// What it knows altogether.
    pub clock: &'a Clock,
}

/// Whether a key's history covers a dot, with the chains of parents taken into account.
pub fn covers(history: &VersionVector, dot: Dot, writers: &Writers) -> bool {
    let reaches = history.get(dot.writer) >= dot.seq;
    if is_planted(Mistake::HistoryNotExpanded) {
        return reaches;
    }
    reaches || history.iter().any(|seen| writers.implies(seen.writer, dot))
}

/// Counts over all keys of a replica, and the fingerprint of their values.
///
/// All fields are sums over keys, so they are kept up to date by taking the old record's share away
/// and adding the new one's. They wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Keys with a value.
    pub keys: u64,
    /// Keys with two or more concurrent values.
    pub conflicts: u64,
    /// Keys of which only a delete is left, which waits to be reclaimed.
    pub deletes: u64,
    /// Entries of the log: live writes that are not below the floor.
    pub log: u64,
    /// Sum of a 128-bit hash of each key with the dots and contents of its live values: equal on
    /// replicas that hold the same.
    pub digest: u128,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: Tally) {
        self.keys = self.keys.wrapping_add(other.keys);
        self.conflicts = self.conflicts.wrapping_add(other.conflicts);
        self.deletes = self.deletes.wrapping_add(other.deletes);
        self.log = self.log.wrapping_add(other.log);
        self.digest = self.digest.wrapping_add(other.digest);
    }

    /// Takes another tally away.
    pub fn subtract(&mut self, other: Tally) {
        self.keys = self.keys.wrapping_sub(other.keys);
        self.conflicts = self.conflicts.wrapping_sub(other.conflicts);
        self.deletes = self.deletes.wrapping_sub(other.deletes);
        self.log = self.log.wrapping_sub(other.log);
        self.digest = self.digest.wrapping_sub(other.digest);
    }

    /// The tally as 48 bytes.
    pub fn to_bytes(self) -> Bytes {
        let mut out = Vec::with_capacity(48);
        out.extend_from_slice(&self.keys.to_be_bytes());
        out.extend_from_slice(&self.conflicts.to_be_bytes());
        out.extend_from_slice(&self.deletes.to_be_bytes());
        out.extend_from_slice(&self.log.to_be_bytes());
        out.extend_from_slice(&self.digest.to_be_bytes());
        out.into()
    }

    /// Reads what [`Tally::to_bytes`] wrote.
    pub fn from_bytes(bytes: Bytes) -> Result<Tally, DecodeError> {
        let mut reader = Reader::new(bytes, "tally");
        let tally = Tally {
            keys: reader.u64()?,
            conflicts: reader.u64()?,
            deletes: reader.u64()?,
            log: reader.u64()?,
            digest: u128::from_be_bytes(reader.array()?),
        };
        reader.finish()?;
        Ok(tally)
    }
}

/// The flag of a record with exactly one live write and no history, the common case.
const SINGLE: u8 = 1;
/// With [`SINGLE`]: the one live write is a delete.
const SINGLE_DELETE: u8 = 2;
/// With [`SINGLE`]: the one live write is a value that expires.
const SINGLE_UNTIL: u8 = 4;
/// What a live write of another record is.
const KIND_PUT: u8 = 0;
const KIND_DELETE: u8 = 1;
const KIND_UNTIL: u8 = 2;
const STAMP_BYTES: usize = 7;

/// The disk form of a record; see docs/storage.md.
pub fn encode_row(key: &[u8], record: &Record, ord: impl Fn(WriterId) -> WriterOrd) -> Bytes {
    let values: usize = record
        .puts()
        .filter_map(Version::value)
        .map(Bytes::len)
        .sum();
    let mut out = Vec::with_capacity(values + 24 * (1 + record.live.len() + record.seen.len()));
    let put_dot = |out: &mut Vec<u8>, dot: Dot| {
        put_varint(out, u64::from(ord(dot.writer)));
        put_varint(out, dot.seq);
    };

    if let ([version], true) = (&record.live[..], record.seen.is_empty()) {
        let kind = match &version.content {
            Content::Put(_) => 0,
            Content::PutUntil(..) => SINGLE_UNTIL,
            Content::Delete => SINGLE_DELETE,
        };
        out.push(SINGLE | kind);
        put_dot(&mut out, version.dot);
        put_stamp(&mut out, version.stamp);
        put_content_head(&mut out, &version.content);
        if let Some(value) = version.value() {
            out.extend_from_slice(value);
        }
    } else {
        out.push(0);
        put_varint(&mut out, record.live.len() as u64);
        for version in &record.live {
            out.push(match &version.content {
                Content::Put(_) => KIND_PUT,
                Content::PutUntil(..) => KIND_UNTIL,
                Content::Delete => KIND_DELETE,
            });
            put_dot(&mut out, version.dot);
            put_stamp(&mut out, version.stamp);
            put_content_head(&mut out, &version.content);
            if let Some(value) = version.value() {
                put_varint(&mut out, value.len() as u64);
                out.extend_from_slice(value);
            }
        }
        put_varint(&mut out, record.seen.len() as u64);
        record.seen.iter().for_each(|dot| put_dot(&mut out, dot));
    }

    seal(key, &mut out);
    // Without spare room the bytes can be shared as they are.
    out.shrink_to_fit();
    out.into()
}

fn put_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    out.extend_from_slice(&stamp.as_micros().to_be_bytes()[8 - STAMP_BYTES..]);
}

/// What stands before a value: when it expires, and its hash.
fn put_content_head(out: &mut Vec<u8>, content: &Content) {
    if let Some(until) = content.until() {
        put_stamp(out, until);
    }
    if let Some(hash) = content.hash() {
        out.extend_from_slice(&hash.to_be_bytes());
    }
}

/// Reads what [`encode_row`] wrote under the same key.
///
/// # Errors
///
/// Any changed bit of the key or the row fails the checksum, so a damaged record is never served.
pub fn decode_row(key: &[u8], row: Bytes, writers: &Writers) -> Result<Record, DecodeError> {
    const WHAT: &str = "stored record";
    let invalid = DecodeError::Invalid { what: WHAT };
    let body = unseal(key, &row, WHAT)?;
    let mut reader = Reader::new(body, WHAT);
    let dot = |reader: &mut Reader| {
        let ord = WriterOrd::try_from(reader.varint()?).ok();
        let descriptor = ord.and_then(|ord| writers.by_ord(ord));
        Ok::<_, DecodeError>(Dot {
            writer: descriptor.ok_or(invalid.clone())?.writer,
            seq: reader.varint()?,
        })
    };

    let flags = reader.u8()?;
    if flags & SINGLE != 0 {
        let dot = dot(&mut reader)?;
        let stamp = stamp(&mut reader)?;
        let content = single_content(&mut reader, flags)?;
        reader.finish()?;
        let live = vec![Version {
            dot,
            stamp,
            content,
        }];
        return Ok(Record {
            live,
            seen: VersionVector::default(),
        });
    }

    let count = reader.count(SIBLINGS_MAX, 1)?;
    let mut live = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = reader.u8()?;
        let dot = dot(&mut reader)?;
        let at = stamp(&mut reader)?;
        let value = |reader: &mut Reader| {
            reader.u32()?;
            reader.prefixed(VALUE_BYTES_CEILING)
        };
        let content = match kind {
            KIND_PUT => Content::Put(value(&mut reader)?),
            KIND_UNTIL => {
                let until = stamp(&mut reader)?;
                Content::PutUntil(value(&mut reader)?, until)
            }
            KIND_DELETE => Content::Delete,
            _ => return Err(invalid),
        };
        live.push(Version {
            dot,
            stamp: at,
            content,
        });
    }
    let mut seen = VersionVector::default();
    for _ in 0..reader.count(usize::MAX, 2)? {
        seen.raise(dot(&mut reader)?);
    }
    reader.finish()?;
    Ok(Record { live, seen })
}

/// What a row with exactly one live write holds, without looking up its writer.
///
/// `None` if there are several live writes or a history: then the record must be decoded.
pub fn single_value(key: &[u8], row: &Bytes) -> Result<Option<Content>, DecodeError> {
    let body = unseal(key, row, "stored record")?;
    let mut reader = Reader::new(body, "stored record");
    let flags = reader.u8()?;
    if flags & SINGLE == 0 {
        return Ok(None);
    }
    reader.varint()?;
    reader.varint()?;
    reader.slice(STAMP_BYTES)?;
    single_content(&mut reader, flags).map(Some)
}

/// The rest of a row with exactly one live write, behind the stamp.
fn single_content(reader: &mut Reader, flags: u8) -> Result<Content, DecodeError> {
    if flags & SINGLE_DELETE != 0 {
        return Ok(Content::Delete);
    }
    let until = (flags & SINGLE_UNTIL != 0).then(|| stamp(reader));
    let until = until.transpose()?;
    reader.u32()?;
    let value = reader.bytes(reader.remaining())?;
    Ok(match until {
        Some(until) => Content::PutUntil(value, until),
        None => Content::Put(value),
    })
}

fn stamp(reader: &mut Reader) -> Result<Stamp, DecodeError> {
    let mut micros = [0; 8];
    micros[8 - STAMP_BYTES..].copy_from_slice(reader.slice(STAMP_BYTES)?);
    Ok(Stamp::from_micros(u64::from_be_bytes(micros)))
}
