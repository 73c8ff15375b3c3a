//! A disk that fails: it crashes the process at a commit, loses what was not synced, refuses commits
//! and reads, and can be copied at any moment.
//!
//! The rule: a commit is whole or not there at all, whatever happens; the core is promised no less
//! by any engine.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Entries, Snapshot, Storage, StorageError, Table};

/// How many commits a loss of power may undo at most.
const UNSYNCED_MAX: usize = 64;

/// One disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct Disk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    tables: MemoryStorage,
    /// The tables before each commit since the last sync, the oldest first.
    unsynced: VecDeque<MemoryStorage>,
    commits: u64,
    crash: Option<Crash>,
    /// The process that used the disk is dead: whatever it still tries has no effect.
    crashed: bool,
    full: bool,
    /// So many of the next operations fail.
    errors: u32,
    failed: u64,
    damage: Vec<Damage>,
    /// Somebody looks on from outside: no fault shows.
    watched: bool,
}

/// A row that is not what was written.
#[derive(Debug, Clone)]
struct Damage {
    table: Table,
    key: Bytes,
    good: Bytes,
    bad: Bytes,
}

/// A crash that waits for its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Crash {
    /// How many commits go before it.
    after: u32,
    /// Whether the commit at which it happens is still done.
    done: bool,
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Disk {
        Disk::default()
    }

    /// Another disk with the same content, and no faults.
    pub fn copy(&self) -> Disk {
        let copy = Disk::new();
        let state = self.lock();
        copy.lock().tables = state.tables.fork();
        copy.lock().damage = state.damage.clone();
        drop(state);
        copy
    }

    /// The process dies at the commit after the next `after` ones, just before it or just after it
    /// was done.
    pub fn crash_at_commit(&self, after: u32, done: bool) {
        self.lock().crash = Some(Crash { after, done });
    }

    /// Whether the process has died at a commit.
    pub fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// From now on commits fail, or no longer.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// The next so many reads and commits fail.
    pub fn fail_next(&self, operations: u32) {
        self.lock().errors = operations;
    }

    /// While a disk is watched no read of it fails, and no fault is used up.
    pub fn set_watched(&self, watched: bool) {
        self.lock().watched = watched;
    }

    /// How many operations have failed.
    pub fn failed(&self) -> u64 {
        self.lock().failed
    }

    /// Number of commits done.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// Flips a bit in the record of a key; answers whether there is one.
    pub fn damage(&self, key: &[u8], bit: u64) -> bool {
        self.damage_row(Table::Data, key, |len| bit as usize % (len * 8))
    }

    /// Flips a bit in a row of a table; `bit` chooses it by the row's number of bytes. Answers whether
    /// there is such a row.
    pub fn damage_row(&self, table: Table, key: &[u8], bit: impl Fn(usize) -> usize) -> bool {
        let mut state = self.lock();
        let Ok(Some(good)) = state.tables.get(table, key) else {
            return false;
        };
        let mut bad = good.to_vec();
        let bit = bit(bad.len());
        bad[bit / 8] ^= 1 << (bit % 8);
        let damage = Damage {
            table,
            key: Bytes::copy_from_slice(key),
            good,
            bad: bad.into(),
        };
        let done = state.replace(table, &damage.key, &damage.bad);
        state.damage.push(damage);
        done
    }

    /// Makes every damaged row what it was, as far as it is still there. A loss of power may bring
    /// the damage back.
    pub fn repair(&self) {
        let mut state = self.lock();
        // A record may have been damaged twice.
        for damage in state.damage.clone().into_iter().rev() {
            let row = state.tables.get(damage.table, &damage.key);
            if row.is_ok_and(|row| row.as_ref() == Some(&damage.bad)) {
                state.replace(damage.table, &damage.key, &damage.good);
            }
        }
    }

    /// Whether the record of a key was damaged at some time.
    pub fn is_damaged(&self, key: &[u8]) -> bool {
        let state = self.lock();
        let is_it = |damage: &Damage| damage.table == Table::Data && damage.key == key;
        state.damage.iter().any(is_it)
    }

    /// Whether a row of a table still is what damage made of it.
    pub fn is_rotten(&self, table: Table) -> bool {
        let state = self.lock();
        state.damage.iter().any(|damage| {
            let row = state.tables.get(damage.table, &damage.key);
            damage.table == table && row.is_ok_and(|row| row.as_ref() == Some(&damage.bad))
        })
    }

    /// The process is gone. With a loss of power the last `lost` commits go too, as far as they were
    /// not synced; answers how many went. No fault is left over.
    pub fn release(&self, lost: usize) -> usize {
        let mut state = self.lock();
        state.crash = None;
        state.crashed = false;
        state.full = false;
        state.errors = 0;
        let lost = lost.min(state.unsynced.len());
        if lost > 0 {
            let kept = state.unsynced.len() - lost;
            state.tables = state.unsynced[kept].clone();
            state.unsynced.truncate(kept);
        }
        lost
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Fails if a fault is due.
    fn check(&mut self, action: &'static str) -> Result<(), StorageError> {
        if self.watched {
            return Ok(());
        }
        if self.crashed {
            return Err(StorageError::new(action, "the process is dead"));
        }
        if self.errors > 0 {
            self.errors -= 1;
            self.failed += 1;
            return Err(StorageError::new(action, "input/output error"));
        }
        Ok(())
    }

    /// Changes a row behind everybody's back.
    fn replace(&mut self, table: Table, key: &Bytes, row: &Bytes) -> bool {
        let mut batch = Batch::default();
        batch.put(table, key.clone(), row.clone());
        self.tables.commit(batch).is_ok()
    }

    fn commit(&mut self, batch: Batch) -> Result<(), StorageError> {
        const ACTION: &str = "commit a batch";
        self.check(ACTION)?;
        if self.full {
            self.failed += 1;
            return Err(StorageError::new(ACTION, "no space left on device"));
        }
        let crash = match &mut self.crash {
            Some(crash) if crash.after == 0 => Some(*crash),
            Some(crash) => {
                crash.after -= 1;
                None
            }
            None => None,
        };
        if crash.is_none_or(|crash| crash.done) {
            if self.unsynced.len() == UNSYNCED_MAX {
                self.unsynced.pop_front();
            }
            self.unsynced.push_back(self.tables.fork());
            self.tables.commit(batch)?;
            self.commits += 1;
        }
        if crash.is_some() {
            self.crashed = true;
            return Err(StorageError::new(ACTION, "the process dies here"));
        }
        Ok(())
    }
}

impl Storage for Disk {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let mut state = self.lock();
        state.check("read a row")?;
        state.tables.get(table, key)
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(View {
            tables: self.lock().tables.snapshot(),
            disk: self.clone(),
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        self.lock().commit(batch)
    }

    fn sync(&self) -> Result<(), StorageError> {
        let mut state = self.lock();
        state.check("sync")?;
        state.unsynced.clear();
        Ok(())
    }
}

/// The tables at one moment, read from a disk that may fail by now.
struct View {
    tables: Arc<dyn Snapshot>,
    disk: Disk,
}

impl Snapshot for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.disk.lock().check("read a row")?;
        self.tables.get(table, key)
    }

    fn range(&self, table: Table, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Entries {
        match self.disk.lock().check("read a range") {
            Ok(()) => self.tables.range(table, start, end),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &Disk, value: &'static str) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        batch.put(Table::Data, "key", value);
        Storage::commit(disk, batch)
    }

    fn value(disk: &Disk) -> Option<Bytes> {
        disk.get(Table::Data, b"key").expect("it reads")
    }

    #[test]
    fn a_loss_of_power_undoes_what_was_not_synced() {
        let disk = Disk::new();
        put(&disk, "synced").expect("a good disk");
        disk.sync().expect("a good disk");
        put(&disk, "first").expect("a good disk");
        put(&disk, "second").expect("a good disk");

        assert_eq!(disk.release(1), 1);
        assert_eq!(value(&disk), Some("first".into()));
        assert_eq!(disk.release(9), 1);
        assert_eq!(value(&disk), Some("synced".into()));
    }

    #[test]
    fn a_crash_at_a_commit_leaves_it_whole_or_not_there() {
        for (done, left) in [(true, "second"), (false, "first")] {
            let disk = Disk::new();
            disk.crash_at_commit(1, done);
            put(&disk, "first").expect("before the crash");
            assert!(put(&disk, "second").is_err());
            assert!(put(&disk, "third").is_err(), "the dead write nothing");
            assert!(disk.has_crashed());

            disk.release(0);
            assert_eq!(value(&disk), Some(left.into()));
        }
    }

    #[test]
    fn a_copy_goes_its_own_way() {
        let disk = Disk::new();
        put(&disk, "before").expect("a good disk");
        let copy = disk.copy();
        put(&disk, "after").expect("a good disk");
        assert_eq!(value(&copy), Some("before".into()));
    }
}
