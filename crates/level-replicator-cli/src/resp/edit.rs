//! What commands read and write: the database, a moment of it, or the transaction of a group.
//!
//! The rule: sizes are checked before anything is added to a transaction, since one write that is too large would
//! fail those of all other clients in the group.

use std::time::SystemTime;

use level_replicator::{Db, Error, PutOptions, Snapshot, Transaction, Value};

use crate::resp::options::{KEY_BYTES_MAX, TRANSACTION_BYTES_MAX};
use crate::resp::refusal::Refusal;

/// Where a command reads.
pub(crate) trait Source {
    /// What readers see of a key.
    fn get(&mut self, key: &[u8]) -> Result<Option<Value>, Refusal>;

    /// The same with the moment at which it expires.
    fn entry(&mut self, key: &[u8]) -> Result<Option<Shown>, Refusal>;
}

/// A value, and when it expires.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) value: Value,
    pub(crate) expires_at: Option<SystemTime>,
}

/// The database as it is, or, for keys that belong together, at one moment.
pub(crate) struct View<'a> {
    db: &'a Db,
    moment: Option<Snapshot>,
}

impl<'a> View<'a> {
    pub(crate) fn of(db: &'a Db) -> View<'a> {
        View { db, moment: None }
    }

    pub(crate) fn of_one_moment(db: &'a Db) -> View<'a> {
        View {
            db,
            moment: Some(db.snapshot()),
        }
    }
}

impl Source for View<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Value>, Refusal> {
        Ok(match &self.moment {
            Some(moment) => moment.get(key)?,
            None => self.db.get(key)?,
        })
    }

    fn entry(&mut self, key: &[u8]) -> Result<Option<Shown>, Refusal> {
        let entry = self.db.entry(key)?;
        Ok(entry.map(|entry| Shown {
            value: entry.value,
            expires_at: entry.expires_at,
        }))
    }
}

/// The transaction of a group of commands.
pub(crate) struct Edit<'a> {
    transaction: &'a mut Transaction,
    value_bytes_max: usize,
    work: usize,
}

impl<'a> Edit<'a> {
    pub(crate) fn new(transaction: &'a mut Transaction, value_bytes_max: usize) -> Edit<'a> {
        Edit {
            transaction,
            value_bytes_max,
            work: 0,
        }
    }

    /// Bytes that were read and written.
    pub(crate) fn work(&self) -> usize {
        self.work
    }

    /// Writes a value that stays.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        self.check(key, value)?;
        self.transaction.put(key, value);
        Ok(())
    }

    /// Writes a value that expires, if a moment is given. One that is past leaves nothing.
    pub(crate) fn put_until(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_at: Option<SystemTime>,
    ) -> Result<(), Refusal> {
        let Some(at) = expires_at else {
            return self.put(key, value);
        };
        self.check(key, value)?;
        if at <= SystemTime::now() {
            self.transaction.delete(key);
        } else {
            let options = PutOptions::new().expires_at(at);
            self.transaction.put_with(key, value, &options);
        }
        Ok(())
    }

    /// Removes a key.
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<(), Refusal> {
        self.check(key, &[])?;
        self.transaction.delete(key);
        Ok(())
    }

    /// The concurrent values of a key before this transaction.
    pub(crate) fn siblings(
        &mut self,
        key: &[u8],
    ) -> Result<Vec<level_replicator::Sibling>, Refusal> {
        let siblings = self.transaction.siblings(key)?;
        self.count(siblings.iter().map(|sibling| sibling.value.len()).sum())?;
        Ok(siblings)
    }

    /// Counts bytes against what one transaction may hold.
    pub(crate) fn count(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.work += bytes;
        if self.work > TRANSACTION_BYTES_MAX {
            return Err(Refusal::GiveUp(Error::TooLarge {
                what: "batch",
                size: self.work,
                limit: TRANSACTION_BYTES_MAX,
            }));
        }
        Ok(())
    }

    /// Whether a value can be written.
    pub(crate) fn check_value(&self, value: &[u8]) -> Result<(), Refusal> {
        check_size("value", value.len(), self.value_bytes_max)
    }

    fn check(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        check_key(key)?;
        self.check_value(value)?;
        self.count(key.len() + value.len())
    }
}

impl Source for Edit<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Value>, Refusal> {
        let value = self.transaction.get(key)?;
        self.count(key.len() + value.as_ref().map_or(0, |value| value.len()))?;
        Ok(value)
    }

    fn entry(&mut self, key: &[u8]) -> Result<Option<Shown>, Refusal> {
        let entry = self.transaction.entry(key)?;
        self.count(key.len() + entry.as_ref().map_or(0, |entry| entry.value.len()))?;
        Ok(entry.map(|entry| Shown {
            value: entry.value,
            expires_at: entry.expires_at,
        }))
    }
}

/// Whether a text can be a key.
pub(crate) fn check_key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(Error::EmptyKey.into());
    }
    check_size("key", key.len(), KEY_BYTES_MAX)
}

fn check_size(what: &'static str, size: usize, limit: usize) -> Result<(), Refusal> {
    if size > limit {
        return Err(Error::TooLarge { what, size, limit }.into());
    }
    Ok(())
}
