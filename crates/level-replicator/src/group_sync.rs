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
