//! A storage in memory: for tests, for simulations, and for replicas that need not outlive their process.

use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;

use super::{
    Batch, Entries, Snapshot, Storage, StorageError, Table, bound_as_slice, is_empty_range,
};

type Tree = RedBlackTreeMapSync<Bytes, Bytes>;

/// Tables in memory. Clones share the same tables; a snapshot costs a few pointers.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    tables: Arc<Mutex<MemorySnapshot>>,
}

#[derive(Clone, Default)]
struct MemorySnapshot {
    tables: [Tree; Table::ALL.len()],
}

impl MemoryStorage {
    /// Empty tables.
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    /// Other tables that begin with what is in these now: a clone of the disk, as it were.
    pub fn fork(&self) -> MemoryStorage {
        MemoryStorage {
            tables: Arc::new(Mutex::new(self.current())),
        }
    }

    fn current(&self) -> MemorySnapshot {
        self.with(|tables| tables.clone())
    }

    // A commit cannot panic half-way through its changes, so a poisoned lock guards whole tables.
    fn with<T>(&self, action: impl FnOnce(&mut MemorySnapshot) -> T) -> T {
        action(&mut self.tables.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Storage for MemoryStorage {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.with(|tables| tables.get(table, key))
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(self.current())
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        self.with(|tables| {
            for change in batch.into_changes() {
                let tree = &mut tables.tables[change.table as usize];
                match change.value {
                    Some(value) => tree.insert_mut(change.key, value),
                    None => {
                        tree.remove_mut(&change.key);
                    }
                }
            }
        });
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

impl Snapshot for MemorySnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.tables[table as usize].get(key).cloned())
    }

    fn range(&self, table: Table, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Entries {
        let own = |bound: Bound<&[u8]>| bound.map(Bytes::copy_from_slice);
        Box::new(Walk {
            tree: self.tables[table as usize].clone(),
            start: own(start),
            end: own(end),
        })
    }
}

/// Steps through a tree from both ends, looking its place up again at each step.
struct Walk {
    tree: Tree,
    start: Bound<Bytes>,
    end: Bound<Bytes>,
}

impl Walk {
    fn step(&mut self, back: bool) -> Option<(Bytes, Bytes)> {
        if is_empty_range(bound_as_slice(&self.start), bound_as_slice(&self.end)) {
            return None;
        }
        let mut range = self
            .tree
            .range::<Bytes, _>((self.start.as_ref(), self.end.as_ref()));
        let (key, value) = if back {
            range.next_back()?
        } else {
            range.next()?
        };
        let entry = (key.clone(), value.clone());
        let passed = Bound::Excluded(entry.0.clone());
        if back {
            self.end = passed;
        } else {
            self.start = passed;
        }
        Some(entry)
    }
}

impl Iterator for Walk {
    type Item = Result<(Bytes, Bytes), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(false).map(Ok)
    }
}

impl DoubleEndedIterator for Walk {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(true).map(Ok)
    }
}
