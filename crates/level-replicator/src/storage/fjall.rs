//! A replica's tables on disk, kept by the pure-Rust engine fjall.
//!
//! The rule: what [`Storage::commit`] acknowledged survives the end of the process, and once a write
//! has failed nothing is written until the directory is opened again.
//!
//! All tables share one keyspace of the engine, each key behind a byte that is the number of its
//! table: with several keyspaces the engine's workers can block each other for good.

mod directory;
mod inspect;
mod row_cache;
#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{AbstractTree as _, Readable as _};
use level_replicator_core::storage::{
    Batch, Change, Entries, Snapshot, Storage, StorageError, StorageStats, Table, is_empty_range,
};

pub use directory::OpenError;
use directory::{DataDirectory, Engine, Lock, empty_journal};
pub(crate) use directory::{RESTORE, sync_all, sync_parent};
use row_cache::RowCache;

/// With fewer than three workers the engine can stop flushing for good.
const WORKER_THREADS: usize = 4;

/// The engine counts lengths in 16 bits, and the table's number takes one byte.
const KEY_LEN_MAX: usize = u16::MAX as usize - 1;

/// The engine counts lengths in 32 bits.
const VALUE_LEN_MAX: usize = u32::MAX as usize;

/// Commits wait here, one short of the limit at which the engine itself would wait, because the
/// engine waits without noticing that its workers have failed.
const SEALED_MEMTABLES_MAX: usize = 3;

/// Likewise: the engine waits at 30, and every sealed memtable can become another run meanwhile.
const FIRST_LEVEL_RUNS_MAX: usize = 25;

/// How often a waiting thread looks again.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// How long [`Storage::close`] waits for a flush, which only spares the next open some work.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(30);

/// What an unclean end has left in the journal is sorted into tables after the open if it is at least
/// so much, in bytes: else each open would replay it again until more has come.
const FLUSHED_AT_OPEN: u64 = 4 << 20;

/// Up to so much is sorted into tables before the open returns, in bytes, and the journal emptied.
const FLUSHED_IN_OPEN_MAX: u64 = 16 << 20;

/// A journal of so many bytes is worth that: each open reads all of it, about a second for 64 MiB.
const LONG_JOURNAL: u64 = 8 << 20;

/// How long an open waits for that, which only spares the next one some work.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long the workers of a failed engine may take to let go of its journal.
const FAILED_WORKERS_GRACE: Duration = Duration::from_millis(100);

/// How a [`FjallStorage`] uses memory.
#[derive(Debug, Clone)]
pub struct FjallOptions {
    /// Bytes of table blocks and rows kept in memory. Default: 64 MiB.
    pub cache_bytes: u64,
}

impl FjallOptions {
    /// The part of the cache that keeps rows of [`Table::Data`]; the rest keeps blocks.
    fn row_cache_bytes(&self) -> u64 {
        self.cache_bytes / 4
    }

    fn block_cache_bytes(&self) -> u64 {
        self.cache_bytes - self.row_cache_bytes()
    }
}

impl Default for FjallOptions {
    fn default() -> FjallOptions {
        FjallOptions {
            cache_bytes: 64 << 20,
        }
    }
}

/// Tables in a directory that belongs to this storage alone.
///
/// The directory stays locked until the storage and all its snapshots and ranges are dropped.
/// Dropping waits for the engine's threads, so the directory can be opened again at once.
///
/// A snapshot may be held for long: it only keeps on disk what was replaced since. A value is handed
/// out as a part of the engine's block and keeps that block in memory: copy what is kept for long.
///
/// After a failed write reads go on, and writes are refused until the directory is opened again. The
/// batch that failed is not seen before that; opened again, the database has it whole or not at all.
pub struct FjallStorage {
    shared: Arc<Shared>,
}

/// What snapshots and ranges keep alive.
///
/// Dropped in this order: the database stops its workers; the keyspace then holds the last handle of
/// the journal and closes it; only then may another take the lock.
struct Shared {
    engine: Option<Engine>,
    /// Rows of [`Table::Data`].
    rows: RowCache,
    /// Held for writing during a commit, and for reading while a snapshot is taken.
    ///
    /// The engine means to hide a batch until it is whole, but a flush or a merge that ends meanwhile
    /// shows it early.
    commit: RwLock<()>,
    /// The first write that failed.
    failure: OnceLock<Failure>,
    /// Commits that waited for room, and for how long, in microseconds.
    stalls: AtomicU64,
    stalled_us: AtomicU64,
    _lock: Lock,
}

impl FjallStorage {
    /// Opens the database in `directory`, creating it where there is nothing or an empty directory.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. Nothing is written to a directory that holds something else.
    pub fn open(directory: &Path, options: &FjallOptions) -> Result<FjallStorage, OpenError> {
        FjallStorage::start(DataDirectory::lock(directory)?, options)
    }

    /// Makes a new database in `directory`. Of an earlier one nothing is left; something else is
    /// refused and left alone.
    pub(crate) fn create_anew(
        directory: &Path,
        options: &FjallOptions,
    ) -> Result<FjallStorage, OpenError> {
        let directory = DataDirectory::lock(directory)?;
        directory.clear()?;
        FjallStorage::start(directory, options)
    }

    fn start(directory: DataDirectory, options: &FjallOptions) -> Result<FjallStorage, OpenError> {
        let (lock, engine) = directory.open(options)?;
        let engine = with_short_journal(engine, options)?;
        let shared = Shared {
            engine: Some(engine),
            rows: RowCache::new(options.row_cache_bytes()),
            commit: RwLock::new(()),
            failure: OnceLock::new(),
            stalls: AtomicU64::new(0),
            stalled_us: AtomicU64::new(0),
            _lock: lock,
        };
        if shared.engine().keyspace.tree.active_memtable().size() >= FLUSHED_AT_OPEN {
            shared.begin_flush();
        }
        Ok(FjallStorage {
            shared: Arc::new(shared),
        })
    }
}

/// Sorts what an unclean end has left in the journal into tables and empties the journal, unless that
/// takes long or is not worth it. So who is killed again and again comes forward.
fn with_short_journal(engine: Engine, options: &FjallOptions) -> Result<Engine, OpenError> {
    let tree = &engine.keyspace.tree;
    let journal_bytes = engine.database.journal_disk_space().unwrap_or(0);
    let is_short_work =
        tree.active_memtable().size() <= FLUSHED_IN_OPEN_MAX && tree.sealed_memtable_count() == 0;
    if journal_bytes < LONG_JOURNAL || !is_short_work || engine.keyspace.rotate_memtable().is_err()
    {
        return Ok(engine);
    }
    let deadline = Instant::now() + OPEN_WAIT_MAX;
    while tree.sealed_memtable_count() > 0 {
        if Instant::now() > deadline {
            return Ok(engine);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    // As when the storage is dropped: nothing may be in the journal alone.
    let is_flushed = tree.active_memtable().is_empty();
    if !is_flushed || (engine.database.persist(fjall::PersistMode::Buffer)).is_err() {
        return Ok(engine);
    }
    let Engine {
        directory,
        database,
        keyspace,
    } = engine;
    drop(database);
    drop(keyspace);
    empty_journal(&directory);
    directory::open_again(&directory, options)
}

impl Storage for FjallStorage {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let Shared { rows, commit, .. } = &*self.shared;
        // Outside a snapshot a read sees parts of the batch that is being committed.
        let read = || get(self.shared.engine(), &self.shared.snapshot(), table, key);
        if table != Table::Data {
            return read();
        }
        if let Some(row) = rows.get(key) {
            return Ok(Some(row));
        }
        let candidate = rows.miss(key);
        let row = read()?;
        if let (Some(candidate), Some(row)) = (candidate, &row) {
            let _no_commit = commit.read().unwrap_or_else(PoisonError::into_inner);
            rows.keep(&candidate, key, row);
        }
        Ok(row)
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(FjallSnapshot {
            snapshot: self.shared.snapshot(),
            shared: Arc::clone(&self.shared),
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        const ACTION: &str = "commit a batch";
        if batch.is_empty() {
            return Ok(());
        }
        for change in batch.changes() {
            check_lengths(change).map_err(|error| StorageError::new(ACTION, error))?;
        }

        self.shared.wait_for_room(ACTION)?;

        let engine = self.shared.engine();
        let changes = batch.into_changes();
        let mut writes =
            fjall::OwnedWriteBatch::with_capacity(engine.database.clone(), changes.len())
                .durability(Some(fjall::PersistMode::Buffer));

        let outcome = {
            let _no_snapshots =
                (self.shared.commit.write()).unwrap_or_else(PoisonError::into_inner);
            let rows = &self.shared.rows;
            let mut cached = Vec::new();
            for Change { table, key, value } in changes {
                if table == Table::Data && rows.note_change(&key) {
                    cached.push((key.clone(), value.clone()));
                }
                let key = stored_key(table, &key);
                match value {
                    Some(value) => writes.insert(&engine.keyspace, key, value),
                    None => writes.remove(&engine.keyspace, key),
                }
            }
            let outcome = writes.commit();
            if outcome.is_ok() {
                cached
                    .into_iter()
                    .for_each(|(key, row)| rows.replace(&key, row));
            }
            outcome
        };
        self.shared.check_write(ACTION, outcome)
    }

    fn sync(&self) -> Result<(), StorageError> {
        const ACTION: &str = "sync the journal to disk";
        self.shared.check_failure(ACTION)?;
        let persisted = (self.shared.engine().database).persist(fjall::PersistMode::SyncAll);
        self.shared.check_write(ACTION, persisted)
    }

    fn relieve(&self) {
        if self.shared.engine().keyspace.tree.sealed_memtable_count() == 0 {
            self.shared.begin_flush();
        }
    }

    fn close(&self) -> Result<(), StorageError> {
        const ACTION: &str = "flush before closing";
        self.shared.check_failure(ACTION)?;
        let keyspace = &self.shared.engine().keyspace;
        self.shared
            .check_write(ACTION, keyspace.rotate_memtable().map(drop))?;

        let deadline = Instant::now() + CLOSE_WAIT_MAX;
        let is_flushed = (self.shared).wait_until(ACTION, Some(deadline), |tree| {
            tree.sealed_memtable_count() == 0
        })?;
        if !is_flushed {
            tracing::warn!("the flush takes long; the next open will replay the journal instead");
        }
        self.sync()
    }

    fn stats(&self) -> StorageStats {
        let database = &self.shared.engine().database;
        let mut stats = StorageStats::default();
        stats.disk_bytes = database.disk_space().ok();
        stats.write_buffer_bytes = Some(database.write_buffer_size());
        stats.journal_bytes = database.journal_disk_space().ok();
        stats.stalls = Some(self.shared.stalls.load(Ordering::Relaxed));
        stats.stalled_us = Some(self.shared.stalled_us.load(Ordering::Relaxed));
        stats
    }
}

impl Shared {
    fn engine(&self) -> &Engine {
        self.engine
            .as_ref()
            .expect("the engine is there until the storage is dropped")
    }

    /// Lets what is in memory be sorted into tables in the background.
    fn begin_flush(&self) {
        if let Err(error) = self.engine().keyspace.rotate_memtable() {
            // Writes will say so too.
            tracing::warn!(%error, "cannot flush what is in memory");
        }
    }

    fn snapshot(&self) -> fjall::Snapshot {
        let _no_commit = self.commit.read().unwrap_or_else(PoisonError::into_inner);
        self.engine().database.snapshot()
    }

    /// Notes the first write that failed, after which the engine's journal may end in half a batch.
    fn check_write(
        &self,
        action: &'static str,
        outcome: fjall::Result<()>,
    ) -> Result<(), StorageError> {
        let Err(error) = outcome else {
            return Ok(());
        };
        let failure = (self.failure).get_or_init(|| Failure::new(self.engine(), error));
        tracing::error!(%failure, "cannot {action}");
        Err(StorageError::new(action, failure.clone()))
    }

    /// Refuses what comes after a failed write.
    fn check_failure(&self, action: &'static str) -> Result<(), StorageError> {
        match self.failure.get() {
            Some(failure) => Err(StorageError::new(action, failure.clone())),
            None => Ok(()),
        }
    }

    /// Waits while the engine is behind with flushing and merging.
    fn wait_for_room(&self, action: &'static str) -> Result<(), StorageError> {
        self.check_failure(action)?;
        let has_room = |tree: &fjall::AnyTree| {
            tree.sealed_memtable_count() < SEALED_MEMTABLES_MAX
                && tree.l0_run_count() < FIRST_LEVEL_RUNS_MAX
        };
        if has_room(&self.engine().keyspace.tree) {
            return Ok(());
        }
        let since = Instant::now();
        let waited = self.wait_until(action, None, has_room);
        let took = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.stalls.fetch_add(1, Ordering::Relaxed);
        self.stalled_us.fetch_add(took, Ordering::Relaxed);
        waited.map(drop)
    }

    /// Waits for the engine's workers; false when the deadline passed first.
    fn wait_until(
        &self,
        action: &'static str,
        deadline: Option<Instant>,
        is_done: impl Fn(&fjall::AnyTree) -> bool,
    ) -> Result<bool, StorageError> {
        let Engine {
            database, keyspace, ..
        } = self.engine();
        while !is_done(&keyspace.tree) {
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                return Ok(false);
            }
            // Dead workers make no room; this call, otherwise idle, says whether they live.
            self.check_write(action, database.persist(fjall::PersistMode::Buffer))?;
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(true)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(engine) = self.engine.take() else {
            return;
        };
        let Engine {
            directory,
            database,
            keyspace,
        } = engine;
        let has_failed = database.persist(fjall::PersistMode::Buffer).is_err();
        // What was committed went to the journal and the memtable, so with no memtable left nothing
        // is in the journal alone.
        let is_flushed = keyspace.tree.sealed_memtable_count() == 0
            && keyspace.tree.active_memtable().is_empty();

        // Stops the workers. The last of them may hold the journal a moment longer.
        drop(database);

        // Whoever lets go last writes what is left of a failed batch. Waiting makes that this thread,
        // which still holds the lock; a journal without failures has nothing left to write.
        if has_failed {
            std::thread::sleep(FAILED_WORKERS_GRACE);
        }
        drop(keyspace);

        if is_flushed && !has_failed {
            empty_journal(&directory);
        }
    }
}

struct FjallSnapshot {
    snapshot: fjall::Snapshot,
    shared: Arc<Shared>,
}

impl Snapshot for FjallSnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        get(self.shared.engine(), &self.snapshot, table, key)
    }

    fn range(&self, table: Table, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Entries {
        // Of some such ranges the engine makes a panic.
        if is_empty_range(start, end) {
            return Box::new(std::iter::empty());
        }
        let (start, end) = stored_bounds(table, start, end);
        Box::new(FjallRange {
            entries: (self.snapshot).range(&self.shared.engine().keyspace, (start, end)),
            shared: Arc::clone(&self.shared),
        })
    }
}

/// The entries of one table between two bounds.
struct FjallRange {
    entries: fjall::Iter,
    // Dropped last: the files that are read here belong to whoever holds the lock.
    shared: Arc<Shared>,
}

impl Iterator for FjallRange {
    type Item = Result<(Bytes, Bytes), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entries.next()?;
        Some(read_entry(self.shared.engine(), entry))
    }
}

impl DoubleEndedIterator for FjallRange {
    fn next_back(&mut self) -> Option<Self::Item> {
        let entry = self.entries.next_back()?;
        Some(read_entry(self.shared.engine(), entry))
    }
}

fn get(
    engine: &Engine,
    snapshot: &fjall::Snapshot,
    table: Table,
    key: &[u8],
) -> Result<Option<Bytes>, StorageError> {
    if key.len() > KEY_LEN_MAX {
        return Ok(None);
    }
    let value = snapshot
        .get(&engine.keyspace, StoredKey::new(table, key))
        .map_err(|error| StorageError::new("read a key", ReadError::new(engine, error)))?;
    Ok(value.map(Bytes::from))
}

fn read_entry(engine: &Engine, guard: fjall::Guard) -> Result<(Bytes, Bytes), StorageError> {
    let (key, value) = guard
        .into_inner()
        .map_err(|error| StorageError::new("read a range", ReadError::new(engine, error)))?;
    Ok((Bytes::from(key).slice(1..), Bytes::from(value)))
}

/// A key behind the number of its table, to be kept by the engine.
fn stored_key(table: Table, key: &[u8]) -> fjall::Slice {
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(table as u8);
    stored.extend_from_slice(key);
    stored.into()
}

/// The engine's bounds for a range of a table.
///
/// No stored key is longer than the longest prefix of a bound that is too long for the engine, so
/// those above that prefix are exactly those above the bound.
fn stored_bounds(
    table: Table,
    start: Bound<&[u8]>,
    end: Bound<&[u8]>,
) -> (Bound<StoredKey>, Bound<StoredKey>) {
    let start = match start {
        Bound::Unbounded => Bound::Included(&[][..]),
        Bound::Included(key) | Bound::Excluded(key) if key.len() > KEY_LEN_MAX => {
            Bound::Excluded(&key[..KEY_LEN_MAX])
        }
        start => start,
    };
    let stored = |key| StoredKey::new(table, key);
    let end = match end {
        Bound::Unbounded => Bound::Excluded(StoredKey::end_of(table)),
        Bound::Included(key) | Bound::Excluded(key) if key.len() > KEY_LEN_MAX => {
            Bound::Included(stored(&key[..KEY_LEN_MAX]))
        }
        end => end.map(stored),
    };
    (start.map(stored), end)
}

/// A key behind the number of its table, to be looked up: on the stack unless it is long.
enum StoredKey {
    Short { bytes: [u8; 64], len: usize },
    Long(Vec<u8>),
}

impl StoredKey {
    fn new(table: Table, key: &[u8]) -> StoredKey {
        let len = 1 + key.len();
        let mut bytes = [0; 64];
        if len > bytes.len() {
            let mut long = Vec::with_capacity(len);
            long.push(table as u8);
            long.extend_from_slice(key);
            return StoredKey::Long(long);
        }
        bytes[0] = table as u8;
        bytes[1..len].copy_from_slice(key);
        StoredKey::Short { bytes, len }
    }

    /// The first key after all those of a table.
    fn end_of(table: Table) -> StoredKey {
        let mut bytes = [0; 64];
        bytes[0] = table as u8 + 1;
        StoredKey::Short { bytes, len: 1 }
    }
}

impl AsRef<[u8]> for StoredKey {
    fn as_ref(&self) -> &[u8] {
        match self {
            StoredKey::Short { bytes, len } => &bytes[..*len],
            StoredKey::Long(bytes) => bytes,
        }
    }
}

fn check_lengths(change: &Change) -> Result<(), LengthError> {
    let value_len = change.value.as_ref().map_or(0, Bytes::len);
    if change.key.len() > KEY_LEN_MAX {
        return Err(LengthError::Key(change.key.len()));
    }
    if value_len > VALUE_LEN_MAX {
        return Err(LengthError::Value(value_len));
    }
    Ok(())
}

/// The engine cannot hold a change. Nothing was written.
#[derive(Debug, thiserror::Error)]
enum LengthError {
    #[error("key of {0} bytes exceeds the engine's limit of {KEY_LEN_MAX}")]
    Key(usize),
    #[error("value of {0} bytes exceeds the engine's limit of {VALUE_LEN_MAX}")]
    Value(usize),
}

/// A read failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} in {}; if the cause is not a failing disk or missing rights, {RESTORE}",
    describe(.source),
    .directory.display()
)]
struct ReadError {
    /// The directory of the engine's files.
    directory: PathBuf,
    source: fjall::Error,
}

impl ReadError {
    fn new(engine: &Engine, source: fjall::Error) -> ReadError {
        ReadError {
            directory: engine.directory.clone(),
            source,
        }
    }
}

/// Runs what may panic in the engine at a damaged file; answers what the panic said.
fn contain<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "without a word".to_owned())
    })
}

/// The first write that failed. The engine takes no write after it.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "{} in {}; no further writes are accepted until the database is opened again: \
     look for a full or failing disk, then reopen; if it fails again, {RESTORE}",
    describe(.source),
    .directory.display()
)]
struct Failure {
    /// The directory of the engine's files.
    directory: PathBuf,
    source: Arc<fjall::Error>,
}

impl Failure {
    fn new(engine: &Engine, error: fjall::Error) -> Failure {
        Failure {
            directory: engine.directory.clone(),
            source: Arc::new(error),
        }
    }
}

/// Says in words what the engine says in the names of its types.
fn describe(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            error.to_string()
        }
        fjall::Error::Poisoned => "a background flush or an earlier write failed".to_owned(),
        fjall::Error::Locked => "its files are in use by another process".to_owned(),
        fjall::Error::Storage(fjall::LsmError::ChecksumMismatch { .. }) => {
            "a table on disk is damaged (checksum mismatch)".to_owned()
        }
        fjall::Error::Storage(
            error @ (fjall::LsmError::InvalidHeader(_)
            | fjall::LsmError::InvalidTag(_)
            | fjall::LsmError::Decompress(_)
            | fjall::LsmError::Unrecoverable),
        ) => format!("a table on disk is damaged ({error:?})"),
        fjall::Error::JournalRecovery(error) => format!("the journal is damaged ({error:?})"),
        other => format!("{other:?}"),
    }
}
