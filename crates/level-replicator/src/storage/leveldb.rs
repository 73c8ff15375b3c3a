//! A replica's tables in LevelDB, the engine of the ancestor, for who has it already (feature `leveldb`).
//!
//! It needs LevelDB's library, such as Debian's `libleveldb-dev`, and is used by
//! [`Options::open_with`](crate::Options::open_with):
//!
//! ```no_run
//! use std::sync::Arc;
//! use level_replicator::{Options, storage::leveldb::{LevelDbOptions, LevelDbStorage}};
//!
//! let storage = LevelDbStorage::open("directory", &LevelDbOptions::default())?;
//! let db = Options::new().open_with(Arc::new(storage))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`LevelDbReader`] reads a database of any other program, such as one that is to be imported.
//!
//! The rule: as of every engine, what [`Storage::commit`] acknowledged survives the end of the process, and once a write has
//! failed nothing is written until the directory is opened again.

mod native;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use level_replicator_core::storage::{
    Batch, Change, Entries, Snapshot, Storage, StorageError, StorageStats, Table, is_empty_range,
};

use native::{Cursor, Database, NativeError, NativeSnapshot, Opening, WriteBatch};

/// What makes a LevelDB database one of ours. No table has this number.
const MARK: &[u8] = b"\xfflevel-replicator";
const FORMAT: &[u8] = b"1";

/// LevelDB counts lengths in 32 bits.
const LEN_MAX: usize = u32::MAX as usize - 1;

/// Its cache while a stranger's database is read.
const READER_CACHE_BYTES: usize = 8 << 20;

/// How a [`LevelDbStorage`] uses memory.
#[derive(Debug, Clone)]
pub struct LevelDbOptions {
    /// Bytes of table blocks kept in memory. Default: 64 MiB.
    pub cache_bytes: usize,
    /// Bytes that are gathered in memory before they are sorted into a table. Default: 16 MiB.
    pub write_buffer_bytes: usize,
}

impl Default for LevelDbOptions {
    fn default() -> LevelDbOptions {
        LevelDbOptions {
            cache_bytes: 64 << 20,
            write_buffer_bytes: 16 << 20,
        }
    }
}

/// A LevelDB database could not be opened or read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LevelDbError {
    /// It holds what another program wrote.
    #[error(
        "{} holds a LevelDB database that is no replica's: choose another directory; \
         `level-replicator import --leveldb` reads what it holds",
        path.display()
    )]
    NotAReplica {
        /// The directory.
        path: PathBuf,
    },

    /// It was written by a later version of this software.
    #[error("{} has format {found:?}; this version reads 1: use a later one", path.display())]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: String,
    },

    /// LevelDB refuses.
    #[error("cannot {action} the LevelDB database {}: {reason}", path.display())]
    Engine {
        /// What was tried, such as "open".
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// What LevelDB said.
        reason: String,
    },
}

/// Tables in a LevelDB database that belongs to this storage alone.
///
/// The directory is locked until the storage and all its snapshots and ranges are dropped.
pub struct LevelDbStorage {
    database: Arc<Database>,
    directory: PathBuf,
    /// The first write that failed.
    failure: OnceLock<WriteFailure>,
    /// The logs that were there when everything was durable last.
    logs: Mutex<BTreeSet<OsString>>,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "{reason} in {}; no further writes are accepted until the database is opened again: look for a \
     full or failing disk, then reopen",
    directory.display()
)]
struct WriteFailure {
    directory: PathBuf,
    reason: String,
}

impl LevelDbStorage {
    /// Opens the database in `directory`, creating it where there is none.
    ///
    /// # Errors
    ///
    /// See [`LevelDbError`]. A database of another program is left as it was.
    pub fn open(
        directory: impl AsRef<Path>,
        options: &LevelDbOptions,
    ) -> Result<LevelDbStorage, LevelDbError> {
        let path = directory.as_ref();
        let opening = Opening {
            creates: true,
            cache_bytes: options.cache_bytes,
            write_buffer_bytes: options.write_buffer_bytes,
        };
        let failed = |action| {
            move |NativeError(reason)| LevelDbError::Engine {
                action,
                path: path.to_owned(),
                reason,
            }
        };
        if let Some(parent) = path.parent() {
            let made = std::fs::create_dir_all(parent);
            made.map_err(|error| failed("create")(NativeError(error.to_string())))?;
        }
        let database = Arc::new(Database::open(path, &opening).map_err(failed("open"))?);
        match database.get(MARK).map_err(failed("read"))? {
            Some(format) if &format[..] == FORMAT => {}
            Some(format) => {
                return Err(LevelDbError::NewerFormat {
                    path: path.to_owned(),
                    found: String::from_utf8_lossy(&format).into_owned(),
                });
            }
            None => {
                let mut first = Cursor::new(&Arc::new(NativeSnapshot::new(Arc::clone(&database))));
                first.seek_to_first();
                first.check().map_err(failed("read"))?;
                if first.key().is_some() {
                    return Err(LevelDbError::NotAReplica {
                        path: path.to_owned(),
                    });
                }
                let mut mark = WriteBatch::new();
                mark.put(MARK, FORMAT);
                database.write(&mark, true).map_err(failed("write"))?;
            }
        }
        // What an earlier process left was sorted into tables by the open, which are synced.
        let logs = Mutex::new(logs(path));
        Ok(LevelDbStorage {
            database,
            directory: path.to_owned(),
            failure: OnceLock::new(),
            logs,
        })
    }

    fn check_failure(&self, action: &'static str) -> Result<(), StorageError> {
        match self.failure.get() {
            Some(failure) => Err(StorageError::new(action, failure.clone())),
            None => Ok(()),
        }
    }

    fn write(
        &self,
        action: &'static str,
        batch: &WriteBatch,
        is_synced: bool,
    ) -> Result<(), StorageError> {
        self.check_failure(action)?;
        let Err(NativeError(reason)) = self.database.write(batch, is_synced) else {
            return Ok(());
        };
        let failure = self.failure.get_or_init(|| WriteFailure {
            directory: self.directory.clone(),
            reason,
        });
        tracing::error!(%failure, "cannot {action}");
        Err(StorageError::new(action, failure.clone()))
    }

    fn native_snapshot(&self) -> NativeSnapshot {
        NativeSnapshot::new(Arc::clone(&self.database))
    }
}

impl Storage for LevelDbStorage {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self.database.get(&stored_key(table, key));
        value.map_err(|error| StorageError::new("read a key", error))
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(LevelDbSnapshot(Arc::new(self.native_snapshot())))
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        const ACTION: &str = "commit a batch";
        if batch.is_empty() {
            return Ok(());
        }
        let mut writes = WriteBatch::new();
        for Change { table, key, value } in batch.changes() {
            let len = key.len().max(value.as_ref().map_or(0, Bytes::len));
            if len > LEN_MAX {
                let error = format!("{len} bytes exceed the engine's limit of {LEN_MAX}");
                return Err(StorageError::new(ACTION, error));
            }
            let key = stored_key(*table, key);
            match value {
                Some(value) => writes.put(&key, value),
                None => writes.delete(&key),
            }
        }
        self.write(ACTION, &writes, false)
    }

    fn sync(&self) -> Result<(), StorageError> {
        const ACTION: &str = "sync the log to disk";
        // A write that changes nothing, synced, makes durable what its log holds.
        self.write(ACTION, &WriteBatch::new(), true)?;
        // What an earlier log holds is durable only once it is in a table.
        let mut known = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if logs(&self.directory) != *known {
            self.database.flush();
            // The flush says nothing of its failure, but a write after it does.
            self.write(ACTION, &WriteBatch::new(), true)?;
            *known = logs(&self.directory);
        }
        Ok(())
    }

    fn stats(&self) -> StorageStats {
        let mut stats = StorageStats::default();
        let sizes = |is_log: bool| {
            let entries = std::fs::read_dir(&self.directory).ok()?;
            let entries = entries.flatten().filter(|entry| {
                !is_log || entry.path().extension().is_some_and(|end| end == "log")
            });
            Some(
                entries
                    .map(|entry| entry.metadata().map_or(0, |data| data.len()))
                    .sum(),
            )
        };
        stats.disk_bytes = sizes(false);
        stats.journal_bytes = sizes(true);
        stats
    }
}

/// The names of LevelDB's write-ahead logs; it begins a new one whenever memory is full.
fn logs(directory: &Path) -> BTreeSet<OsString> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return BTreeSet::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "log"))
        .collect()
}

struct LevelDbSnapshot(Arc<NativeSnapshot>);

impl Snapshot for LevelDbSnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self.0.get(&stored_key(table, key));
        value.map_err(|error| StorageError::new("read a key", error))
    }

    fn range(&self, table: Table, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Entries {
        if is_empty_range(start, end) {
            return Box::new(std::iter::empty());
        }
        let stored = |key: &[u8]| stored_key(table, key);
        let start = match start {
            Bound::Unbounded => Bound::Included(vec![table as u8]),
            bound => bound.map(stored),
        };
        let end = match end {
            Bound::Unbounded => Bound::Excluded(vec![table as u8 + 1]),
            bound => bound.map(stored),
        };
        Box::new(LevelDbRange {
            snapshot: Arc::clone(&self.0),
            start,
            end,
            front: None,
            back: None,
            is_done: false,
        })
    }
}

/// The entries between two stored keys. Each end is a cursor at the entry that it answered last.
struct LevelDbRange {
    snapshot: Arc<NativeSnapshot>,
    start: Bound<Vec<u8>>,
    end: Bound<Vec<u8>>,
    front: Option<Cursor>,
    back: Option<Cursor>,
    is_done: bool,
}

impl LevelDbRange {
    fn step_front(&mut self) -> Option<Result<(Bytes, Bytes), StorageError>> {
        let cursor = match &mut self.front {
            Some(cursor) => {
                cursor.advance();
                cursor
            }
            front => {
                let cursor = front.insert(Cursor::new(&self.snapshot));
                let (Bound::Included(start) | Bound::Excluded(start)) = &self.start else {
                    unreachable!("a range has a first key");
                };
                cursor.seek(start);
                if matches!(self.start, Bound::Excluded(_)) && cursor.key() == Some(start) {
                    cursor.advance();
                }
                cursor
            }
        };
        let other = self.back.as_ref().and_then(Cursor::key);
        let is_inside = |key: &[u8]| is_before(key, &self.end) && other.is_none_or(|k| key < k);
        entry(cursor, is_inside)
    }

    fn step_back(&mut self) -> Option<Result<(Bytes, Bytes), StorageError>> {
        let cursor = match &mut self.back {
            Some(cursor) => {
                cursor.retreat();
                cursor
            }
            back => {
                let cursor = back.insert(Cursor::new(&self.snapshot));
                let (Bound::Included(end) | Bound::Excluded(end)) = &self.end else {
                    unreachable!("a range has a last key");
                };
                // The first that is not less, or beyond all; then back to what lies inside.
                cursor.seek(end);
                match cursor.key() {
                    None => cursor.seek_to_last(),
                    Some(key) if is_before(key, &self.end) => {}
                    Some(_) => cursor.retreat(),
                }
                cursor
            }
        };
        let other = self.front.as_ref().and_then(Cursor::key);
        let is_inside = |key: &[u8]| is_after(key, &self.start) && other.is_none_or(|k| key > k);
        entry(cursor, is_inside)
    }
}

/// What a cursor has come to; `None` at the end of the range.
fn entry(
    cursor: &Cursor,
    is_inside: impl FnOnce(&[u8]) -> bool,
) -> Option<Result<(Bytes, Bytes), StorageError>> {
    let (Some(key), Some(value)) = (cursor.key(), cursor.value()) else {
        let checked = cursor.check();
        return checked
            .err()
            .map(|error| Err(StorageError::new("read a range", error)));
    };
    is_inside(key).then(|| {
        Ok((
            Bytes::copy_from_slice(&key[1..]),
            Bytes::copy_from_slice(value),
        ))
    })
}

impl Iterator for LevelDbRange {
    type Item = Result<(Bytes, Bytes), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let next = self.step_front();
        self.is_done = !matches!(next, Some(Ok(_)));
        next
    }
}

impl DoubleEndedIterator for LevelDbRange {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let next = self.step_back();
        self.is_done = !matches!(next, Some(Ok(_)));
        next
    }
}

fn is_before(key: &[u8], end: &Bound<Vec<u8>>) -> bool {
    match end {
        Bound::Included(end) => key <= &end[..],
        Bound::Excluded(end) => key < &end[..],
        Bound::Unbounded => true,
    }
}

fn is_after(key: &[u8], start: &Bound<Vec<u8>>) -> bool {
    match start {
        Bound::Included(start) => key >= &start[..],
        Bound::Excluded(start) => key > &start[..],
        Bound::Unbounded => true,
    }
}

/// A key behind the number of its table.
fn stored_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(table as u8);
    stored.extend_from_slice(key);
    stored
}

/// The keys and values of a LevelDB database, whoever wrote it, in the order of their bytes, at one moment.
///
/// It is opened as its own program would open it: no other may have it open, its log is sorted into tables, and nothing that
/// it holds is changed. A database with an order of its own cannot be read.
pub struct LevelDbReader {
    cursor: Cursor,
    directory: PathBuf,
    state: ReaderState,
}

#[derive(PartialEq)]
enum ReaderState {
    New,
    Reading,
    Ended,
}

impl LevelDbReader {
    /// Opens the database in `directory`.
    ///
    /// # Errors
    ///
    /// [`LevelDbError::Engine`] if there is none, it is in use, or it is damaged.
    pub fn open(directory: impl AsRef<Path>) -> Result<LevelDbReader, LevelDbError> {
        let path = directory.as_ref();
        let opening = Opening {
            creates: false,
            cache_bytes: READER_CACHE_BYTES,
            write_buffer_bytes: LevelDbOptions::default().write_buffer_bytes,
        };
        // LevelDB would make the directory itself before it finds nothing there.
        let found = if path.join("CURRENT").is_file() {
            Database::open(path, &opening)
        } else {
            let reason = "no LevelDB database is there (a file CURRENT is missing)";
            Err(NativeError(reason.to_owned()))
        };
        let database = found.map_err(|NativeError(reason)| LevelDbError::Engine {
            action: "open",
            path: path.to_owned(),
            reason,
        })?;
        let snapshot = Arc::new(NativeSnapshot::new(Arc::new(database)));
        Ok(LevelDbReader {
            cursor: Cursor::new(&snapshot),
            directory: path.to_owned(),
            state: ReaderState::New,
        })
    }
}

impl Iterator for LevelDbReader {
    type Item = Result<(Vec<u8>, Vec<u8>), LevelDbError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.state {
            ReaderState::New => self.cursor.seek_to_first(),
            ReaderState::Reading => self.cursor.advance(),
            ReaderState::Ended => return None,
        }
        self.state = ReaderState::Reading;
        if let (Some(key), Some(value)) = (self.cursor.key(), self.cursor.value()) {
            return Some(Ok((key.to_vec(), value.to_vec())));
        }
        self.state = ReaderState::Ended;
        let NativeError(reason) = self.cursor.check().err()?;
        Some(Err(LevelDbError::Engine {
            action: "read",
            path: self.directory.clone(),
            reason,
        }))
    }
}
