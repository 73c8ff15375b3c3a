//! The log: the name of every live write, and the key it is live under.
//!
//! The rule: an entry exists exactly for the live writes of the data table, and changes in the
//! same commit. Overwritten writes leave no entry, so the log never outgrows the data.

use std::ops::{Bound, RangeInclusive};

use bytes::Bytes;

use crate::mistake::{Mistake, is_planted};
use crate::record::{Key, Record};
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

/// Makes the log follow a record that changes from `old` to `new`.
pub fn follow(
    batch: &mut Batch,
    key: &Key,
    old: &Record,
    new: &Record,
    ord: impl Fn(crate::clock::WriterId) -> WriterOrd,
) {
    for gone in old.live.iter().filter(|version| !new.holds(version.dot)) {
        if is_planted(Mistake::LogNotTrimmed) {
            break;
        }
        batch.remove(Table::Log, row_key(ord(gone.dot.writer), gone.dot.seq));
    }
    for came in new.live.iter().filter(|version| !old.holds(version.dot)) {
        let row = row_key(ord(came.dot.writer), came.dot.seq);
        batch.put(Table::Log, row, key.clone());
    }
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
