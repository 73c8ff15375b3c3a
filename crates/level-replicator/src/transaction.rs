//! Reads and writes that belong together.

use std::collections::BTreeMap;

use bytes::Bytes;
use level_replicator_core::record::{Key, Op, Value};
use level_replicator_core::storage::Table;

use crate::db::{Snapshot, check_key};
use crate::error::Error;

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
        let key = Bytes::copy_from_slice(key.as_ref());
        match self.writes.get(&key) {
            Some(Op::Put(_, value)) => return Ok(Some(value.clone())),
            Some(Op::Delete(_)) => return Ok(None),
            None => {}
        }
        check_key(&key)?;
        let row = self.snapshot.tables.get(Table::Data, &key)?;
        self.reads.insert(key.clone(), row.clone());
        match row {
            None => Ok(None),
            Some(row) => self.snapshot.view.value(&key, row),
        }
    }

    /// Sets a key when the transaction is committed.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let key = Bytes::copy_from_slice(key.as_ref());
        let value = Bytes::copy_from_slice(value.as_ref());
        self.writes.insert(key.clone(), Op::Put(key, value));
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
