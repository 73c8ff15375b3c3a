//! The engine alone, opened as the library opens it and given the same reads and writes.
//!
//! A row of the data table has as many bytes as the library's would, so that both write as much.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use crate::Result;
use crate::workload::{Key, Value};

const WORKER_THREADS: usize = 4;
const CACHE_BYTES: u64 = 64 << 20;

const LOG: u8 = 3;
const DATA: u8 = 4;

/// What the library stores beside a value: flags, dot, stamp and two checksums.
const HEADER_BYTES: usize = 20;

/// Entries in one batch of a catch-up.
const BATCH_ENTRIES: usize = 1_000;

/// A directory of the engine.
pub(crate) struct BareEngine {
    database: Database,
    keyspace: Keyspace,
    seq: u64,
}

impl BareEngine {
    pub(crate) fn open(directory: &Path) -> Result<BareEngine> {
        let database = Database::builder(directory)
            .worker_threads(WORKER_THREADS)
            .cache_size(CACHE_BYTES)
            .open()?;
        let keyspace = database.keyspace("tables", KeyspaceCreateOptions::default)?;
        Ok(BareEngine {
            database,
            keyspace,
            seq: 0,
        })
    }

    /// Inserts an entry and nothing else.
    pub(crate) fn plain_put(&self, key: &Key, value: &Value) -> Result<()> {
        Ok(self.keyspace.insert(data_key(key), value)?)
    }

    /// Reads the record, then writes it anew together with its log entry.
    pub(crate) fn replicated_put(&mut self, key: &Key, value: &Value) -> Result<()> {
        self.seq += 1;
        let old = self.keyspace.get(data_key(key))?;

        let mut batch = self.batch(3);
        if let Some(seq) = old.as_deref().and_then(|row| row.first_chunk()) {
            batch.remove(&self.keyspace, log_key(u64::from_be_bytes(*seq)));
        }
        batch.insert(&self.keyspace, log_key(self.seq), key);
        batch.insert(&self.keyspace, data_key(key), data_row(self.seq, value));
        Ok(batch.commit()?)
    }

    /// Copies all entries in the order of keys from another directory, durably; answers how many.
    pub(crate) fn copy_all(&self, from: &BareEngine) -> Result<usize> {
        let mut entries = from.keyspace.prefix([DATA]).peekable();
        let mut copied = 0;
        while entries.peek().is_some() {
            let mut batch = self.batch(BATCH_ENTRIES);
            for entry in entries.by_ref().take(BATCH_ENTRIES) {
                let (key, row) = entry.into_inner()?;
                batch.insert(&self.keyspace, key, row);
            }
            copied += batch.len();
            batch.commit()?;
        }
        self.database.persist(PersistMode::SyncAll)?;
        Ok(copied)
    }

    fn batch(&self, capacity: usize) -> OwnedWriteBatch {
        OwnedWriteBatch::with_capacity(self.database.clone(), capacity)
            .durability(Some(PersistMode::Buffer))
    }
}

fn data_key(key: &Key) -> [u8; 1 + size_of::<Key>()] {
    let mut stored = [DATA; 1 + size_of::<Key>()];
    stored[1..].copy_from_slice(key);
    stored
}

fn data_row(seq: u64, value: &Value) -> [u8; HEADER_BYTES + size_of::<Value>()] {
    let mut row = [0; HEADER_BYTES + size_of::<Value>()];
    row[..8].copy_from_slice(&seq.to_be_bytes());
    row[HEADER_BYTES..].copy_from_slice(value);
    row
}

/// The table, four bytes for the writer, eight for the number of the write.
fn log_key(seq: u64) -> [u8; 13] {
    let mut stored = [0; 13];
    stored[0] = LOG;
    stored[5..].copy_from_slice(&seq.to_be_bytes());
    stored
}
