//! Reads and writes that belong together.

use std::collections::BTreeMap;

use bytes::Bytes;
use level_replicator_core::clock::Stamp;
use level_replicator_core::record::{Key, Op, Value};
use level_replicator_core::resolver::Sibling;
use level_replicator_core::storage::Table;

use crate::db::{Snapshot, check_key};
use crate::error::Error;
use crate::put_options::PutOptions;
use crate::range::Entry;
use crate::system_clock::wall_time;

/// What a closure of [`Db::transact`](crate::Db::transact) reads and writes.
pub struct Transaction {
    snapshot: Snapshot,
    /// The rows that were read, as they were.
    reads: BTreeMap<Key, Option<Bytes>>,
    writes: BTreeMap<Key, Op>,
}

impl Transaction {
    pub(crate) fn new(snapshot: Snapshot) -> Transaction {
        Transaction {
            snapshot,
            reads: BTreeMap::new(),
            writes: BTreeMap::new(),
        }
    }

    /// What readers see of a key at the moment of the transaction, or what it wrote itself.
    ///
    /// # Errors
    ///
    /// As [`Db::get`](crate::Db::get).
    pub fn get(&mut self, key: impl AsRef<[u8]>) -> Result<Option<Value>, Error> {
        Ok(self.entry(key)?.map(|entry| entry.value))
    }

    /// The same as [`Transaction::get`], with the moment at which the value expires.
    ///
    /// # Errors
    ///
    /// As [`Db::get`](crate::Db::get).
    pub fn entry(&mut self, key: impl AsRef<[u8]>) -> Result<Option<Entry>, Error> {
        let key = Bytes::copy_from_slice(key.as_ref());
        let written = |value: &Value, until: Option<Stamp>| Entry {
            value: value.clone(),
            expires_at: until.map(|until| wall_time(until.as_micros())),
        };
        match self.writes.get(&key) {
            Some(Op::Put(_, value)) => return Ok(Some(written(value, None))),
            Some(Op::PutUntil(_, value, until)) => {
                let entry = written(value, Some(*until));
                return Ok((Some(*until) > self.snapshot.view.moment).then_some(entry));
            }
            Some(Op::Delete(_)) => return Ok(None),
            None => {}
        }
        match self.read(&key)? {
            None => Ok(None),
            Some(row) => self.snapshot.view.entry(&key, row),
        }
    }

    /// The concurrent values of a key at the moment of the transaction, whatever it wrote itself; see
    /// [`Db::siblings`](crate::Db::siblings).
    ///
    /// # Errors
    ///
    /// As [`Db::get`](crate::Db::get).
    pub fn siblings(&mut self, key: impl AsRef<[u8]>) -> Result<Vec<Sibling>, Error> {
        let key = Bytes::copy_from_slice(key.as_ref());
        match self.read(&key)? {
            None => Ok(Vec::new()),
            Some(row) => self.snapshot.view.siblings(&key, row),
        }
    }

    /// Reads a row, and remembers that it was read.
    fn read(&mut self, key: &Key) -> Result<Option<Bytes>, Error> {
        check_key(key)?;
        let row = self.snapshot.tables.get(Table::Data, key)?;
        self.reads.insert(key.clone(), row.clone());
        Ok(row)
    }

    /// Sets a key when the transaction is committed.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let key = Bytes::copy_from_slice(key.as_ref());
        let value = Bytes::copy_from_slice(value.as_ref());
        self.writes.insert(key.clone(), Op::Put(key, value));
    }

    /// The same as [`Transaction::put`], with options.
    pub fn put_with(
        &mut self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: &PutOptions,
    ) {
        let op = options.op(key.as_ref(), value.as_ref());
        self.writes.insert(op.key().clone(), op);
    }

    /// Removes a key when the transaction is committed.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) {
        let key = Bytes::copy_from_slice(key.as_ref());
        self.writes.insert(key.clone(), Op::Delete(key));
    }

    pub(crate) fn into_parts(self) -> (BTreeMap<Key, Option<Bytes>>, Vec<Op>) {
        (self.reads, self.writes.into_values().collect())
    }
}
