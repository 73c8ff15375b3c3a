//! What the protocol needs of a storage engine: ordered tables, snapshots, atomic commits.
//!
//! The rule: a [`Batch`] is committed whole or not at all, and a [`Snapshot`] never sees half of one.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod memory;

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

/// The tables of a replica. The number is the table's name on disk and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Identity of the replica and other single values.
    Meta = 0,
    /// Local number of a writer -> its descriptor.
    Writers = 1,
    /// What is known of each writer.
    Clock = 2,
    /// Dot of a live write -> its key.
    Log = 3,
    /// Key -> record.
    Data = 4,
    /// Keys whose record holds no live write but still a version vector.
    Pending = 5,
    /// What everybody knows, and what a heal that goes on will know, a row per writer.
    Floor = 6,
    /// Name of a replica -> whether it takes part.
    Members = 7,
    /// The cut that is being agreed on, and who has agreed.
    Epoch = 8,
    /// Keys whose record holds a delete or a version vector to which no log entry leads.
    Waiting = 9,
    /// Moments at which values expire, with their keys.
    Expiry = 10,
    /// Number of a change -> the change, if changes are kept.
    Feed = 11,
}

impl Table {
    /// Every table, in the order of their numbers.
    pub const ALL: [Table; 12] = [
        Table::Meta,
        Table::Writers,
        Table::Clock,
        Table::Log,
        Table::Data,
        Table::Pending,
        Table::Floor,
        Table::Members,
        Table::Epoch,
        Table::Waiting,
        Table::Expiry,
        Table::Feed,
    ];
}

/// A storage engine failed; nothing of the operation was done.
#[derive(Debug, Clone)]
pub struct StorageError {
    action: &'static str,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

impl StorageError {
    /// An error met while doing `action`, a phrase such as "commit a batch".
    pub fn new(
        action: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        StorageError {
            action,
            source: Arc::from(source.into()),
        }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.action, self.source)
    }
}

impl std::error::Error for StorageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// Changes that are committed together. Of two changes of one key the later counts.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    changes: Vec<Change>,
}

/// One change of a [`Batch`]: the new value of a key, or `None` to remove it.
#[derive(Debug, Clone)]
pub struct Change {
    /// Where.
    pub table: Table,
    /// Which key.
    pub key: Bytes,
    /// Its new value; `None` removes the key.
    pub value: Option<Bytes>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.push(Change {
            table,
            key: key.into(),
            value: Some(value.into()),
        });
    }

    /// Removes a key; removing an absent key is allowed.
    pub fn remove(&mut self, table: Table, key: impl Into<Bytes>) {
        self.changes.push(Change {
            table,
            key: key.into(),
            value: None,
        });
    }

    /// Whether the batch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes in the order in which they were made.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The changes in the order in which they were made, given away.
    pub fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

/// Keys and values of a range, ascending; it can be read from both ends.
pub type Entries = Box<dyn DoubleEndedIterator<Item = Result<(Bytes, Bytes), StorageError>> + Send>;

/// The tables at one moment.
pub trait Snapshot: Send + Sync {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// The entries between two bounds.
    fn range(&self, table: Table, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Entries;
}

/// An ordered key-value engine that can hold a replica.
///
/// Calls come from several threads at once; commits come one at a time. A commit that returned `Ok`
/// is seen by every later read, and survives the end of the process; [`Storage::sync`] makes it
/// survive the loss of power. After a failed commit the tables are as before it.
///
/// The feature `conformance` adds a suite, `storage::conformance`, for the tests of an engine: it tries
/// what is promised here and on [`Batch`], [`Snapshot`] and [`Entries`].
pub trait Storage: Send + Sync {
    /// The value of a key as of the last commit.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// The tables as of the last commit.
    fn snapshot(&self) -> Arc<dyn Snapshot>;

    /// Does all changes of a batch, or none.
    fn commit(&self, batch: Batch) -> Result<(), StorageError>;

    /// Returns when everything committed before the call would survive a loss of power.
    fn sync(&self) -> Result<(), StorageError>;

    /// Much was written that is not read again soon: a storage that gathers writes in memory may begin to
    /// let go of them. Fails silently; nothing depends on it.
    fn relieve(&self) {}

    /// Gets ready to be dropped, so that the next open is fast. Nothing is committed afterwards.
    fn close(&self) -> Result<(), StorageError> {
        self.sync()
    }

    /// Sizes a person may want to watch.
    fn stats(&self) -> StorageStats {
        StorageStats::default()
    }
}

/// Sizes of a storage engine, in bytes, and its stalls; `None` where the engine has no such thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorageStats {
    /// Everything on disk.
    pub disk_bytes: Option<u64>,
    /// Written and not yet sorted into tables.
    pub write_buffer_bytes: Option<u64>,
    /// The write-ahead journal.
    pub journal_bytes: Option<u64>,
    /// Since the open: commits that had to wait because the engine was behind with its background work.
    pub stalls: Option<u64>,
    /// How long they waited, in microseconds.
    pub stalled_us: Option<u64>,
}

/// The bounds of all keys that begin with `prefix`.
pub fn prefix_bounds(prefix: &[u8]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let start = Bound::Included(prefix.to_vec());
    // The first key after all those with the prefix: its last byte that can grow, grown.
    let Some(last) = prefix.iter().rposition(|&byte| byte < 0xff) else {
        return (start, Bound::Unbounded);
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    (start, Bound::Excluded(end))
}

/// Whether no key can lie between two bounds: ordered trees refuse such ranges.
pub fn is_empty_range(start: Bound<&[u8]>, end: Bound<&[u8]>) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (
            Bound::Included(start) | Bound::Excluded(start),
            Bound::Included(end) | Bound::Excluded(end),
        ) => start >= end,
    }
}

/// Borrows a bound of bytes.
pub fn bound_as_slice<K: AsRef<[u8]>>(bound: &Bound<K>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key.as_ref()),
        Bound::Excluded(key) => Bound::Excluded(key.as_ref()),
        Bound::Unbounded => Bound::Unbounded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_ends_in_0xff_is_bounded_by_the_byte_before() {
        let (_, end) = prefix_bounds(b"a\xff\xff");
        assert_eq!(end, Bound::Excluded(b"b".to_vec()));
        assert_eq!(prefix_bounds(b"\xff").1, Bound::Unbounded);
        assert_eq!(prefix_bounds(b"").1, Bound::Unbounded);
    }
}
