//! The log: the name of every live write, and the key it is live under.
//!
//! The rule: an entry exists exactly for the live writes above the floor, and changes in the same
//! commit. Overwritten writes leave no entry, so the log never outgrows the data; what everybody
//! knows leaves none either, so the log of a cluster at rest is empty. Entries that a new floor made
//! superfluous are removed in the background.

use std::ops::{Bound, RangeInclusive};

use bytes::Bytes;

use crate::clock::{Clock, WriterId};
use crate::codec::{DecodeError, seal, unseal};
use crate::mistake::{Mistake, is_planted};
use crate::record::{Key, Record, Version};
use crate::storage::{Batch, Entries, Snapshot, StorageError, Table};
use crate::writers::WriterOrd;

/// The row of a log entry: local number of the writer, then the write's number, both big-endian.
pub fn row_key(ord: WriterOrd, seq: u64) -> Bytes {
    let mut row = Vec::with_capacity(12);
    row.extend_from_slice(&ord.to_be_bytes());
    row.extend_from_slice(&seq.to_be_bytes());
    row.into()
}

/// The write's number in a row of the log; `None` for bytes that are no row.
pub fn seq_of(row: &[u8]) -> Option<u64> {
    let (_, seq) = row.split_at_checked(4)?;
    Some(u64::from_be_bytes(seq.try_into().ok()?))
}

/// A log entry whose record holds one value and nothing else, so that a floor changes nothing of it.
const PLAIN: u8 = 1;

/// The value of a log entry: whether its record is plain, the key, and a checksum.
pub fn row_value(row: &[u8], key: &[u8], record: &Record) -> Bytes {
    let mut value = Vec::with_capacity(key.len() + 5);
    value.push(u8::from(is_plain(record)) * PLAIN);
    value.extend_from_slice(key);
    seal(row, &mut value);
    value.into()
}

/// The key that a log entry names.
pub fn key_of(row: &[u8], value: &Bytes) -> Result<Key, DecodeError> {
    entry_of(row, value).map(|(key, _)| key)
}

/// The key that a log entry names, and whether its record is plain.
pub fn entry_of(row: &[u8], value: &Bytes) -> Result<(Key, bool), DecodeError> {
    const WHAT: &str = "log entry";
    let body = unseal(row, value, WHAT)?;
    match body.first() {
        Some(&flags) => Ok((body.slice(1..), flags & PLAIN != 0)),
        None => Err(DecodeError::Truncated { what: WHAT }),
    }
}

fn is_plain(record: &Record) -> bool {
    record.live.len() == 1 && !record.is_strippable()
}

/// Makes the log follow a record that changes from `old` to `new`; answers how many entries more it
/// has, wrapping around. Writes in `unlogged` have none.
pub fn follow(
    batch: &mut Batch,
    key: &Key,
    old: &Record,
    new: &Record,
    unlogged: &Clock,
    ord: impl Fn(WriterId) -> WriterOrd,
) -> u64 {
    let is_logged = |version: &&Version| !unlogged.contains(version.dot);
    let mut more = 0u64;
    for gone in old
        .live
        .iter()
        .filter(|version| !new.holds(version.dot))
        .filter(is_logged)
    {
        if is_planted(Mistake::LogNotTrimmed) {
            break;
        }
        batch.remove(Table::Log, row_key(ord(gone.dot.writer), gone.dot.seq));
        more = more.wrapping_sub(1);
    }
    let looks_different = is_plain(old) != is_plain(new);
    for version in new.live.iter().filter(is_logged) {
        let came = !old.holds(version.dot);
        if came || looks_different {
            let row = row_key(ord(version.dot.writer), version.dot.seq);
            let value = row_value(&row, key, new);
            batch.put(Table::Log, row, value);
        }
        more = more.wrapping_add(u64::from(came));
    }
    more
}

/// The entries of one writer whose numbers lie in a range, ascending.
pub fn entries(snapshot: &dyn Snapshot, ord: WriterOrd, range: RangeInclusive<u64>) -> Entries {
    let (first, last) = (row_key(ord, *range.start()), row_key(ord, *range.end()));
    snapshot.range(Table::Log, Bound::Included(&first), Bound::Included(&last))
}

/// The number of a writer's last live write; 0 if none is live.
pub fn last_seq(snapshot: &dyn Snapshot, ord: WriterOrd) -> Result<u64, StorageError> {
    match entries(snapshot, ord, 0..=u64::MAX).next_back() {
        None => Ok(0),
        Some(entry) => Ok(seq_of(&entry?.0).unwrap_or(0)),
    }
}
