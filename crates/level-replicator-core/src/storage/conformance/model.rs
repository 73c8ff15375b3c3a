//! What the tables must hold: the plainest thing that can hold it, beside the storage that is tried.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::compare::{Entry, Outcome, expect_entries, expect_value, read, show_range};
use crate::storage::{Batch, Snapshot, Storage, Table};

/// The tables at one moment, as they must be.
#[derive(Clone, Default)]
pub(super) struct Model {
    rows: BTreeMap<(Table, Bytes), Bytes>,
}

impl Model {
    pub(super) fn apply(&mut self, batch: &Batch) {
        for change in batch.changes() {
            let place = (change.table, change.key.clone());
            match &change.value {
                Some(value) => self.rows.insert(place, value.clone()),
                None => self.rows.remove(&place),
            };
        }
    }

    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Bytes> {
        self.rows.get(&(table, Bytes::copy_from_slice(key)))
    }

    /// The entries between two bounds, found by looking at all: no idea of order is shared with the
    /// engines that are tried.
    pub(super) fn range(&self, table: Table, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Vec<Entry> {
        let first = (table, Bytes::new());
        (self.rows.range(first..))
            .take_while(|((of, _), _)| *of == table)
            .filter(|((_, key), _)| lies_within(key, start, end))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Compares one range, read as `from_back` says.
    pub(super) fn expect_range(
        &self,
        snapshot: &dyn Snapshot,
        (table, start, end): (Table, Bound<&[u8]>, Bound<&[u8]>),
        from_back: impl FnMut() -> bool,
    ) -> Outcome {
        let expected = self.range(table, start, end);
        let entries = snapshot.range(table, start, end);
        read(entries, expected.len(), from_back)
            .and_then(|found| expect_entries(&found, &expected))
            .map_err(|difference| {
                difference.within(format_args!("{table:?} {}", show_range(start, end)))
            })
    }

    /// Compares everything: each key, and each table from its beginning.
    pub(super) fn expect_all(&self, snapshot: &dyn Snapshot) -> Outcome {
        for ((table, key), value) in &self.rows {
            let found = snapshot.get(*table, key)?;
            expect_value(*table, key, found.as_ref(), Some(value))?;
        }
        Table::ALL.into_iter().try_for_each(|table| {
            let all = (table, Bound::Unbounded, Bound::Unbounded);
            self.expect_range(snapshot, all, || false)
        })
    }
}

/// A storage, and what it must hold.
pub(super) struct Modeled {
    pub(super) storage: Box<dyn Storage>,
    pub(super) model: Model,
}

impl Modeled {
    pub(super) fn new(storage: Box<dyn Storage>) -> Modeled {
        Modeled {
            storage,
            model: Model::default(),
        }
    }

    /// Commits what `fill` puts into a batch.
    pub(super) fn commit(&mut self, fill: impl FnOnce(&mut Batch)) -> Outcome {
        let mut batch = Batch::default();
        fill(&mut batch);
        self.model.apply(&batch);
        Ok(self.storage.commit(batch)?)
    }

    /// Compares one key, as of the last commit.
    pub(super) fn expect_key(&self, table: Table, key: &[u8]) -> Outcome {
        let expected = self.model.get(table, key);
        expect_value(table, key, self.storage.get(table, key)?.as_ref(), expected)?;
        let found = self.storage.snapshot().get(table, key)?;
        expect_value(table, key, found.as_ref(), expected)
            .map_err(|difference| difference.within("in a new snapshot"))
    }

    /// Compares everything, as of the last commit.
    pub(super) fn expect_all(&self, when: &str) -> Outcome {
        let by_key = self
            .model
            .rows
            .iter()
            .try_for_each(|((table, key), value)| {
                let found = self.storage.get(*table, key)?;
                expect_value(*table, key, found.as_ref(), Some(value))
            });
        by_key
            .and_then(|()| self.model.expect_all(&*self.storage.snapshot()))
            .map_err(|difference| difference.within(when))
    }
}

fn lies_within(key: &[u8], start: Bound<&[u8]>, end: Bound<&[u8]>) -> bool {
    let is_after_start = match start {
        Bound::Included(start) => key >= start,
        Bound::Excluded(start) => key > start,
        Bound::Unbounded => true,
    };
    let is_before_end = match end {
        Bound::Included(end) => key <= end,
        Bound::Excluded(end) => key < end,
        Bound::Unbounded => true,
    };
    is_after_start && is_before_end
}
