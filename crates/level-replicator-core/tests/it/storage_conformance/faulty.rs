//! Storages that are each at fault in one way.

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use level_replicator_core::limits::KEY_BYTES_MAX;
use level_replicator_core::storage::conformance::{Engine, Job};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{
    Batch, Change, Entries, Snapshot, Storage, StorageError, Table,
};

use super::run_both;

/// What is wrong with a [`Faulty`] storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    RemovalsAreForgotten,
    EmptyValuesAreAbsent,
    KeysEndAtAZero,
    LongKeysAreCut,
    LargeValuesAreCut,
    TwoTablesAreOne,
    RangesRunIntoTheNextTable,
    FirstChangeCounts,
    BatchesLoseTheirEnd,
    EmptyBatchesAreRefused,
    ReadsLagBehind,
    BytesAreSigned,
    StartIsAlwaysExcluded,
    EndIsAlwaysIncluded,
    BackIsFront,
    EndsPassEachOther,
    InvertedRangesPanic,
    LongBoundsPanic,
    SnapshotsFollowCommits,
    RangesFollowCommits,
    SnapshotsEndWithTheStorage,
    BatchesShowInParts,
    GetsShowBatchesInParts,
    LostWithoutAClose,
    RemovedComesBack,
}

impl Engine for Fault {
    type Place = MemoryStorage;

    fn new_place(&self) -> MemoryStorage {
        MemoryStorage::new()
    }

    fn open(&self, place: &MemoryStorage) -> Box<dyn Storage> {
        let tables = match self {
            Fault::LostWithoutAClose | Fault::RemovedComesBack => place.fork(),
            _ => place.clone(),
        };
        Box::new(Faulty {
            fault: *self,
            place: place.clone(),
            read_by_get: Mutex::new(tables.fork()),
            tables,
            is_open: Arc::new(AtomicBool::new(true)),
        })
    }

    fn run_both(&self, one: Job<'_>, other: Job<'_>) {
        run_both(one, other);
    }
}

/// Tables in memory with one fault.
struct Faulty {
    fault: Fault,
    /// What the next open finds.
    place: MemoryStorage,
    tables: MemoryStorage,
    /// Other tables that [`Storage::get`] reads where that is the fault.
    read_by_get: Mutex<MemoryStorage>,
    is_open: Arc<AtomicBool>,
}

struct FaultySnapshot {
    fault: Fault,
    moment: Arc<dyn Snapshot>,
    tables: MemoryStorage,
    is_open: Arc<AtomicBool>,
}

impl Storage for Faulty {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let mut snapshot = self.faulty_snapshot();
        if let Fault::ReadsLagBehind | Fault::GetsShowBatchesInParts = self.fault {
            snapshot.moment = self.read_by_get().snapshot();
        }
        snapshot.get(table, key)
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        Arc::new(self.faulty_snapshot())
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        let mut changes = batch.into_changes();
        match self.fault {
            Fault::RemovalsAreForgotten => changes.retain(|change| change.value.is_some()),
            Fault::FirstChangeCounts => changes.reverse(),
            Fault::BatchesLoseTheirEnd => changes.truncate(5_000),
            Fault::EmptyBatchesAreRefused if changes.is_empty() => {
                return Err(StorageError::new("commit a batch", "it is empty"));
            }
            Fault::BatchesShowInParts => return commit_in_parts(&self.tables, changes),
            Fault::GetsShowBatchesInParts => {
                commit_in_parts(&self.read_by_get(), changes.clone())?;
            }
            Fault::ReadsLagBehind => {
                *self.read_by_get.lock().expect("nobody panicked") = self.tables.fork();
            }
            _ => {}
        }
        let stored = changes.into_iter().map(|change| Change {
            table: self.fault.table(change.table),
            key: Bytes::copy_from_slice(self.fault.key(&change.key)),
            value: change.value.map(|value| match self.fault {
                Fault::LargeValuesAreCut => value.slice(..value.len().min(65_535)),
                _ => value,
            }),
        });
        self.tables.commit(batch_of(stored))
    }

    fn sync(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn close(&self) -> Result<(), StorageError> {
        if self.fault == Fault::LostWithoutAClose {
            replace(&self.place, &self.tables);
        }
        Ok(())
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.is_open.store(false, Ordering::Relaxed);
        if self.fault == Fault::RemovedComesBack {
            let puts = rows(&self.tables);
            self.place.commit(batch_of(puts)).expect("it is in memory");
        }
    }
}

impl Faulty {
    fn read_by_get(&self) -> MemoryStorage {
        self.read_by_get.lock().expect("nobody panicked").clone()
    }

    fn faulty_snapshot(&self) -> FaultySnapshot {
        FaultySnapshot {
            fault: self.fault,
            moment: self.tables.snapshot(),
            tables: self.tables.clone(),
            is_open: Arc::clone(&self.is_open),
        }
    }
}

impl Snapshot for FaultySnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.check_open()?;
        assert!(self.fault != Fault::LongBoundsPanic || key.len() <= KEY_BYTES_MAX);
        let value = (self.moment()).get(self.fault.table(table), self.fault.key(key))?;
        Ok(value.filter(|value| self.fault != Fault::EmptyValuesAreAbsent || !value.is_empty()))
    }

    fn range(&self, table: Table, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Entries {
        if let Err(error) = self.check_open() {
            return Box::new(std::iter::once(Err(error)));
        }
        let (start, end) = match (self.fault, start, end) {
            (Fault::StartIsAlwaysExcluded, Bound::Included(key), end) => {
                (Bound::Excluded(key), end)
            }
            (Fault::EndIsAlwaysIncluded, start, Bound::Excluded(key)) => {
                (start, Bound::Included(key))
            }
            (_, start, end) => (start, end),
        };
        let table = self.fault.table(table);
        let entries = || self.moment().range(table, start, end);
        match self.fault {
            Fault::LongBoundsPanic => {
                let is_long = |key: &[u8]| key.len() > KEY_BYTES_MAX;
                let (start, end) = (start.map(is_long), end.map(is_long));
                let long = [Bound::Included(true), Bound::Excluded(true)];
                assert!(!long.contains(&start) && !long.contains(&end));
                entries()
            }
            Fault::InvertedRangesPanic => {
                if let (
                    Bound::Included(start) | Bound::Excluded(start),
                    Bound::Included(end) | Bound::Excluded(end),
                ) = (start, end)
                {
                    assert!(start <= end, "range start is greater than range end");
                }
                entries()
            }
            Fault::RangesRunIntoTheNextTable if end == Bound::Unbounded => {
                let next = Table::ALL.get(table as usize + 1);
                let all = |table: &Table| self.moment.range(*table, Bound::Unbounded, end);
                Box::new(entries().chain(next.map(all).into_iter().flatten()))
            }
            Fault::BytesAreSigned => {
                let mut sorted: Vec<_> = entries().collect::<Result<_, _>>().expect("in memory");
                sorted
                    .sort_by_key(|(key, _)| key.iter().map(|byte| *byte as i8).collect::<Vec<_>>());
                Box::new(sorted.into_iter().map(Ok))
            }
            Fault::BackIsFront => Box::new(TwoEnds {
                front: entries(),
                back: None,
            }),
            Fault::EndsPassEachOther => Box::new(TwoEnds {
                front: entries(),
                back: Some(entries()),
            }),
            Fault::RangesFollowCommits => Box::new(Following {
                tables: self.tables.clone(),
                table,
                start: start.map(Bytes::copy_from_slice),
                end: end.map(Bytes::copy_from_slice),
            }),
            _ => entries(),
        }
    }
}

impl FaultySnapshot {
    fn moment(&self) -> Arc<dyn Snapshot> {
        match self.fault {
            Fault::SnapshotsFollowCommits => self.tables.snapshot(),
            _ => Arc::clone(&self.moment),
        }
    }

    fn check_open(&self) -> Result<(), StorageError> {
        let is_open = self.is_open.load(Ordering::Relaxed);
        if self.fault == Fault::SnapshotsEndWithTheStorage && !is_open {
            return Err(StorageError::new("read a snapshot", "the storage is gone"));
        }
        Ok(())
    }
}

impl Fault {
    fn table(self, table: Table) -> Table {
        match (self, table) {
            (Fault::TwoTablesAreOne, Table::Pending) => Table::Data,
            _ => table,
        }
    }

    fn key(self, key: &[u8]) -> &[u8] {
        let len = match self {
            Fault::KeysEndAtAZero => key.iter().position(|byte| *byte == 0),
            Fault::LongKeysAreCut => Some(key.len().min(1_000)),
            _ => None,
        };
        &key[..len.unwrap_or(key.len())]
    }
}

/// A range whose ends do not know of each other; without a back, both are the front.
struct TwoEnds {
    front: Entries,
    back: Option<Entries>,
}

impl Iterator for TwoEnds {
    type Item = Result<(Bytes, Bytes), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.front.next()
    }
}

impl DoubleEndedIterator for TwoEnds {
    fn next_back(&mut self) -> Option<Self::Item> {
        match &mut self.back {
            Some(back) => back.next_back(),
            None => self.front.next(),
        }
    }
}

/// A range that reads what is there now, at each step.
struct Following {
    tables: MemoryStorage,
    table: Table,
    start: Bound<Bytes>,
    end: Bound<Bytes>,
}

impl Following {
    fn entries(&self) -> Entries {
        let (start, end) = (self.start.as_ref(), self.end.as_ref());
        let now = self.tables.snapshot();
        now.range(
            self.table,
            start.map(|key| &key[..]),
            end.map(|key| &key[..]),
        )
    }
}

impl Iterator for Following {
    type Item = Result<(Bytes, Bytes), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entries().next()?;
        if let Ok((key, _)) = &entry {
            self.start = Bound::Excluded(key.clone());
        }
        Some(entry)
    }
}

impl DoubleEndedIterator for Following {
    fn next_back(&mut self) -> Option<Self::Item> {
        let entry = self.entries().next_back()?;
        if let Ok((key, _)) = &entry {
            self.end = Bound::Excluded(key.clone());
        }
        Some(entry)
    }
}

fn batch_of(changes: impl IntoIterator<Item = Change>) -> Batch {
    let mut batch = Batch::default();
    for Change { table, key, value } in changes {
        match value {
            Some(value) => batch.put(table, key, value),
            None => batch.remove(table, key),
        }
    }
    batch
}

fn commit_in_parts(tables: &MemoryStorage, changes: Vec<Change>) -> Result<(), StorageError> {
    for change in changes {
        tables.commit(batch_of([change]))?;
        // Whoever reads may do so here, also where there is but one processor.
        std::thread::yield_now();
    }
    Ok(())
}

/// Puts of everything that the tables hold.
fn rows(tables: &MemoryStorage) -> Vec<Change> {
    let snapshot = tables.snapshot();
    let rows = Table::ALL.into_iter().flat_map(|table| {
        let entries = snapshot.range(table, Bound::Unbounded, Bound::Unbounded);
        entries.map(move |entry| {
            let (key, value) = entry.expect("it is in memory");
            Change {
                table,
                key,
                value: Some(value),
            }
        })
    });
    rows.collect()
}

/// Makes tables hold what others hold.
fn replace(tables: &MemoryStorage, by: &MemoryStorage) {
    let removals = rows(tables).into_iter().map(|change| Change {
        value: None,
        ..change
    });
    let batch = batch_of(removals.chain(rows(by)));
    tables.commit(batch).expect("it is in memory");
}
