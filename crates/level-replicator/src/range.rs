//! Reading many keys: lazily, in order, at one moment.

use std::sync::Arc;
use std::time::SystemTime;

use level_replicator_core::clock::Stamp;
use level_replicator_core::record::{Content, Key, Record, Value, single_value};
use level_replicator_core::resolver::{Resolver, Sibling, siblings};
use level_replicator_core::state::{StateError, read_record};
use level_replicator_core::storage::{Entries, Table};
use level_replicator_core::writers::Writers;

use crate::error::Error;
use crate::shared::Shared;
use crate::system_clock::wall_time;

/// What readers see of a key: its value, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// From when on readers do not see it any more, each by its own clock; `None` if it stays.
    pub expires_at: Option<SystemTime>,
}

/// Turns rows into what readers see.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) shared: Arc<Shared>,
    /// The moment for which it is told what has expired; `None` stands for now, whenever that is.
    pub(crate) moment: Option<Stamp>,
}

impl View {
    /// What readers see of a row.
    pub(crate) fn value(&self, key: &Key, row: Value) -> Result<Option<Value>, Error> {
        Ok(self.shown(key, row)?.map(|(value, _)| value))
    }

    /// The same, with the moment at which it expires.
    pub(crate) fn entry(&self, key: &Key, row: Value) -> Result<Option<Entry>, Error> {
        let shown = self.shown(key, row)?;
        Ok(shown.map(|(value, until)| Entry {
            value,
            expires_at: until.map(|until| wall_time(until.as_micros())),
        }))
    }

    fn shown(&self, key: &Key, row: Value) -> Result<Option<(Value, Option<Stamp>)>, Error> {
        match single_value(key, &row) {
            Ok(Some(Content::Put(value))) => Ok(Some((value, None))),
            Ok(Some(Content::PutUntil(value, until))) => {
                Ok((until > self.moment()).then_some((value, Some(until))))
            }
            Ok(Some(Content::Delete)) => Ok(None),
            Ok(None) => {
                let (record, writers) = self.record(key, row)?;
                let moment = self.moment();
                Ok(self.resolver().resolve(key, &record, &writers, moment))
            }
            Err(source) => Err(Error::Corrupt(StateError::Corrupt {
                table: Table::Data,
                key: key.clone(),
                source,
            })),
        }
    }

    /// The record of a row, with the writers that it names.
    pub(crate) fn record(&self, key: &Key, row: Value) -> Result<(Record, Arc<Writers>), Error> {
        let writers = self.shared.writers();
        if let Ok(record) = read_record(Some(row.clone()), key, &writers) {
            return Ok((record, writers));
        }
        // The row may name a writer that was met after we looked.
        let writers = self.shared.refresh_writers();
        let record = read_record(Some(row), key, &writers)?;
        Ok((record, writers))
    }

    /// The live values of a row in canonical order.
    pub(crate) fn siblings(&self, key: &Key, row: Value) -> Result<Vec<Sibling>, Error> {
        let (record, writers) = self.record(key, row)?;
        Ok(siblings(key, &record, &writers, self.moment()))
    }

    fn moment(&self) -> Stamp {
        self.moment.unwrap_or_else(|| self.shared.now_stamp())
    }

    fn resolver(&self) -> &Resolver {
        &self.shared.resolver
    }
}

/// Keys and values in order, at one moment; it can be read from both ends.
///
/// It holds that moment's data, and the engine, until it is dropped.
pub struct Range {
    entries: Entries,
    view: View,
}

impl Range {
    pub(crate) fn new(entries: Entries, view: View) -> Range {
        Range { entries, view }
    }

    fn shown(
        &self,
        entry: Result<(Key, Value), level_replicator_core::storage::StorageError>,
    ) -> Option<Result<(Key, Value), Error>> {
        let (key, row) = match entry {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error.into())),
        };
        match self.view.value(&key, row) {
            Ok(value) => value.map(|value| Ok((key, value))),
            Err(error) => Some(Err(error)),
        }
    }
}

impl Iterator for Range {
    type Item = Result<(Key, Value), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = self.entries.next()?;
            if let Some(shown) = self.shown(entry) {
                return Some(shown);
            }
        }
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            let entry = self.entries.next_back()?;
            if let Some(shown) = self.shown(entry) {
                return Some(shown);
            }
        }
    }
}

/// The keys with two or more concurrent values, in order, each with its values.
pub struct Conflicts {
    pub(crate) entries: Entries,
    pub(crate) view: View,
}

impl Iterator for Conflicts {
    type Item = Result<(Key, Vec<Sibling>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (key, row) = match self.entries.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error.into())),
            };
            if matches!(single_value(&key, &row), Ok(Some(_))) {
                continue;
            }
            match self.view.siblings(&key, row) {
                Ok(siblings) if siblings.len() < 2 => {}
                Ok(siblings) => return Some(Ok((key, siblings))),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
