//! The rows that one commit changes, and what they do to the sums over all keys.
//!
//! The rule: data, log and the two tables of what is left to be done change together. A record that
//! a floor may make smaller is found again: by a log entry of one of its live writes, or if none of
//! them has one, by its row in [`Table::Waiting`].

use std::sync::Arc;

use bytes::Bytes;

use super::expiry::NextExpiry;
use super::feed::FeedEdit;
use super::{State, last_writer_row, writer_row};
use crate::clock::{Clock, Dot, ReplicaId, WriterId};
use crate::log;
use crate::mistake::{Mistake, is_planted};
use crate::record::{Key, Record, Tally, encode_row};
use crate::storage::{Batch, Table};
use crate::writers::{WriterOrd, Writers};

/// Changes that are gathered for one commit.
pub(super) struct Edit<'a> {
    pub(super) batch: Batch,
    pub(super) tally: Tally,
    /// How many more ghosts there are; wraps around.
    pub(super) ghosts: u64,
    pub(super) writers: &'a Writers,
    floor: Arc<Clock>,
    unlogged: Arc<Clock>,
    /// Whose values that expire are its own to delete.
    pub(super) replica: ReplicaId,
    /// The first values that expire among those that were added.
    pub(super) sooner: NextExpiry,
    /// Whose writes are made here.
    pub(super) writer: Option<WriterId>,
    /// Whether what is deleted had expired.
    pub(super) expires: bool,
    /// What is added to the change feed, if one is kept.
    pub(super) feed: Option<FeedEdit>,
}

impl<'a> Edit<'a> {
    pub(super) fn new(state: &State, writers: &'a Writers) -> Edit<'a> {
        Edit {
            batch: Batch::default(),
            tally: state.tally_change,
            ghosts: 0,
            writers,
            floor: if is_planted(Mistake::StripByOwnClock) {
                Arc::clone(&state.clock)
            } else {
                Arc::clone(&state.floor)
            },
            unlogged: Arc::clone(&state.unlogged),
            replica: state.replica,
            sooner: NextExpiry::default(),
            writer: state.current,
            expires: false,
            feed: state.feed_edit(),
        }
    }

    /// The same, for writes of a writer that may have been minted for them.
    pub(super) fn by(mut self, writer: WriterId) -> Self {
        self.writer = Some(writer);
        self
    }

    /// The local number of a writer that has been described.
    pub(super) fn ord(&self, writer: WriterId) -> WriterOrd {
        let ord = self.writers.ord(writer);
        ord.expect("records and clocks are checked for undescribed writers before they are applied")
    }

    /// Changes one key's record, and log and sums with it; answers what is stored.
    pub(super) fn replace(&mut self, key: &Key, old: &Record, new: Record) -> Record {
        let new = new.stripped(&self.floor).unwrap_or(new);
        let writers = self.writers;
        let ord_of = |writer| {
            let ord = writers.ord(writer);
            ord.expect("records are checked for undescribed writers before they are applied")
        };
        let unlogged = &self.unlogged;
        let entries = log::follow(&mut self.batch, key, old, &new, unlogged, ord_of);
        self.tally.log = self.tally.log.wrapping_add(entries);
        if new.is_empty() {
            self.batch.remove(Table::Data, key.clone());
        } else {
            let row = encode_row(key, &new, ord_of);
            self.batch.put(Table::Data, key.clone(), row);
        }
        if new.is_ghost() && !old.is_ghost() {
            self.batch.put(Table::Pending, key.clone(), Bytes::new());
            self.ghosts = self.ghosts.wrapping_add(1);
        }
        if old.is_ghost() && !new.is_ghost() {
            self.batch.remove(Table::Pending, key.clone());
            self.ghosts = self.ghosts.wrapping_sub(1);
        }
        self.wait(key, old, &new);
        self.follow_expiry(key, old, &new);
        self.note_change(key, old, &new);
        self.tally.subtract(old.tally(key));
        self.tally.add(new.tally(key));
        new
    }

    /// Removes log entries of a record that could not be read and is about to be replaced.
    pub(super) fn forget_entries(&mut self, entries: &[(Bytes, Dot)]) {
        for (row, _) in entries {
            self.batch.remove(Table::Log, row.clone());
        }
    }

    /// Keeps the row that leads to a record to which no log entry leads.
    pub(super) fn wait(&mut self, key: &Key, old: &Record, new: &Record) {
        let unlogged = &self.unlogged;
        let waits = |record: &Record| {
            let mut live = record.live.iter();
            record.is_strippable()
                && !record.is_ghost()
                && live.all(|version| unlogged.contains(version.dot))
        };
        if is_planted(Mistake::WaitingForgotten) {
            return;
        }
        // What is looked for now may have been written when less was below the floor.
        if waits(new) {
            self.batch.put(Table::Waiting, key.clone(), Bytes::new());
        } else if waits(old) {
            self.batch.remove(Table::Waiting, key.clone());
        }
    }

    /// The rows of a writer that was minted for this commit.
    pub(super) fn put_new_writer(&mut self, writer: WriterId) {
        self.put_writer(writer);
        let row = last_writer_row(self.ord(writer), false);
        self.batch.put(Table::Meta, super::META_LAST_WRITER, row);
    }

    /// The row of a writer's descriptor.
    pub(super) fn put_writer(&mut self, writer: WriterId) {
        let ord = self.ord(writer);
        if let Some(descriptor) = self.writers.by_ord(ord) {
            let (row, value) = writer_row(ord, descriptor);
            self.batch.put(Table::Writers, row, value);
        }
    }
}
