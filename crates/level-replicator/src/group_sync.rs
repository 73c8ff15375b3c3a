//! One fsync for all who wait: while one runs, the next waiters gather.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use level_replicator_core::storage::{Storage, StorageError};

/// Knows how many commits there were, and makes them survive a loss of power.
#[derive(Default)]
pub(crate) struct GroupSync {
    committed: AtomicU64,
    progress: Mutex<Progress>,
    finished: Condvar,
}

#[derive(Default)]
struct Progress {
    synced: u64,
    running: bool,
}

impl GroupSync {
    /// Notes that so many commits have returned since the open.
    pub(crate) fn note_commits(&self, commits: u64) {
        self.committed.fetch_max(commits, Ordering::AcqRel);
    }

    /// Whether some commit would not survive a loss of power.
    pub(crate) fn is_behind(&self) -> bool {
        self.lock().synced < self.committed.load(Ordering::Acquire)
    }

    /// Returns when everything committed before the call would survive a loss of power.
    pub(crate) fn sync_all(&self, storage: &dyn Storage) -> Result<(), StorageError> {
        self.sync_to(self.committed.load(Ordering::Acquire), storage)
    }

    /// Returns when the commit with this number would survive a loss of power.
    ///
    /// The first who waits syncs for all who committed before it began.
    pub(crate) fn sync_to(&self, commit: u64, storage: &dyn Storage) -> Result<(), StorageError> {
        let mut progress = self.lock();
        while progress.synced < commit {
            if progress.running {
                let finished = self.finished.wait(progress);
                progress = finished.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            progress.running = true;
            drop(progress);
            let covered = self.committed.load(Ordering::Acquire);
            let outcome = storage.sync();
            progress = self.lock();
            progress.running = false;
            self.finished.notify_all();
            outcome?;
            progress.synced = progress.synced.max(covered);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use level_replicator_core::storage::memory::MemoryStorage;
    use level_replicator_core::storage::{Batch, Snapshot, Table};

    use super::*;

    /// A storage whose first sync lasts until the gate is opened.
    #[derive(Default)]
    struct Gated {
        memory: MemoryStorage,
        syncs: AtomicUsize,
        begun: Condvar,
        opened: Condvar,
        gate: Mutex<(bool, bool)>,
    }

    impl Storage for Gated {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<bytes::Bytes>, StorageError> {
            self.memory.get(table, key)
        }

        fn snapshot(&self) -> Arc<dyn Snapshot> {
            self.memory.snapshot()
        }

        fn commit(&self, batch: Batch) -> Result<(), StorageError> {
            self.memory.commit(batch)
        }

        fn sync(&self) -> Result<(), StorageError> {
            self.syncs.fetch_add(1, Ordering::AcqRel);
            let mut gate = self.gate.lock().expect("no test panics under it");
            gate.0 = true;
            self.begun.notify_all();
            while !gate.1 {
                gate = self.opened.wait(gate).expect("no test panics under it");
            }
            Ok(())
        }
    }

    #[test]
    fn all_who_commit_while_a_sync_runs_share_the_next_one() {
        let (group, storage) = (GroupSync::default(), Gated::default());
        group.note_commits(1);
        std::thread::scope(|scope| {
            scope.spawn(|| group.sync_to(1, &storage).expect("it syncs"));
            let mut gate = storage.gate.lock().expect("no test panics under it");
            while !gate.0 {
                gate = storage.begun.wait(gate).expect("no test panics under it");
            }
            group.note_commits(9);
            for commit in 2..=9 {
                let (group, storage) = (&group, &storage);
                scope.spawn(move || group.sync_to(commit, storage).expect("it syncs"));
            }
            gate.1 = true;
            storage.opened.notify_all();
        });
        assert_eq!(storage.syncs.load(Ordering::Acquire), 2);
        assert!(!group.is_behind());
    }
}
