//! The way out for a replica that nobody can heal: it knows exactly what it holds.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::floor::Reclaim;
use super::{META_LAST_WRITER, META_PROMOTIONS, META_RECLAIM, State, StateError, read_record};
use crate::clock::{Clock, Dot};
use crate::known_rows::KnownRows;
use crate::log;
use crate::record::Version;
use crate::storage::{Batch, Table};

/// Rows that are written in one commit while the log is rebuilt.
const ROWS_PER_COMMIT: usize = 4_096;

/// What a rebuilding of the log has found.
struct Rebuilt {
    live: Clock,
    /// The entries that lead to records which cannot be read.
    unread: Vec<Bytes>,
}

impl State {
    /// Makes known exactly the writes that are live here, and nothing of the floor.
    ///
    /// So the replica can be served and serve again, though it forgets what else it had heard of: at
    /// worst a value that was replaced somewhere appears again beside what replaced it. The log is
    /// rebuilt from the data. What comes first harms nobody if the end is never reached.
    ///
    /// The histories of the records stay: whoever gets a write from here must learn what it had seen. So
    /// they may say more than the clock, and refuse what others with an equal clock have taken from
    /// somebody who was far behind; digests show that, and a scrub makes them equal.
    ///
    /// Of a record that cannot be read nothing is known afterwards: neither its writes nor that they
    /// were here. So whatever a peer holds of it stands for it, and so does a local write.
    pub fn promote(&mut self) -> Result<(), StateError> {
        let Rebuilt { live, unread } = self.rebuild_log(&Clock::default())?;
        let snapshot = self.storage.snapshot();
        let mut batch = Batch::default();
        for table in [Table::Floor, Table::Waiting] {
            for entry in snapshot.range(table, Bound::Unbounded, Bound::Unbounded) {
                batch.remove(table, entry?.0);
            }
        }
        let mut rows = KnownRows::default();
        rows.clear(&mut batch, &*snapshot)?;
        for (writer, known) in live.iter() {
            if let Some(ord) = self.writers.ord(writer) {
                rows.put_whole(&mut batch, ord, known);
            }
        }
        // In one commit with the clock: as long as a write is known something must lead to it.
        for row in unread {
            batch.remove(Table::Log, row);
        }
        batch.remove(Table::Meta, META_RECLAIM);
        batch.remove(Table::Meta, META_LAST_WRITER);
        let promotions = (self.promotions + 1).to_be_bytes().to_vec();
        batch.put(Table::Meta, META_PROMOTIONS, promotions);
        self.commit(batch)?;

        self.promotions += 1;

        self.known_rows = rows;
        self.clock = Arc::new(live);
        self.floor = Arc::default();
        self.wanted = Arc::default();
        self.unlogged = Arc::default();
        self.progress = Default::default();
        self.reclaim = Default::default();
        self.current = None;
        self.parent = None;
        Ok(())
    }

    /// Rebuilds the log of a replica that finds it damaged.
    pub fn mend_log(&mut self) -> Result<(), StateError> {
        let unlogged = Clock::clone(&self.unlogged);
        let live = self.rebuild_log(&unlogged)?.live;
        // An open that found no entry of the last write may have forgotten it.
        let mut batch = Batch::default();
        let mut clock = Clock::clone(&self.clock);
        for (writer, known) in live.iter() {
            if let Some(ord) = self.writers.ord(writer)
                && !clock.covers_writer(writer, known)
            {
                known
                    .ranges()
                    .for_each(|range| clock.insert_range(writer, range));
                if let Some(grown) = clock.get(writer) {
                    self.known_rows.put_whole(&mut batch, ord, grown);
                }
            }
        }
        if !batch.is_empty() {
            self.commit(batch)?;
            self.clock = Arc::new(clock);
        }
        Ok(())
    }

    /// Writes the log entries of all live writes but those in `unlogged`, and removes all others;
    /// but for those that lead to records which cannot be read. The sums over all keys are to be scanned
    /// again afterwards.
    fn rebuild_log(&mut self, unlogged: &Clock) -> Result<Rebuilt, StateError> {
        let snapshot = self.storage.snapshot();
        let mut live = Clock::default();
        let mut unreadable = BTreeSet::new();
        // Should it end half-way, what is superfluous is removed as after an unclean end.
        self.lose_tally();
        self.reclaim = Reclaim::new(&self.floor, true);
        let mut batch = Batch::default();
        batch.put(Table::Meta, META_RECLAIM, Bytes::new());
        for entry in snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded) {
            let (key, row) = entry?;
            let record = match read_record(Some(row), &key, &self.writers) {
                Ok(record) => record,
                Err(StateError::Corrupt { .. }) => {
                    unreadable.insert(key);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let is_unlogged = |version: &Version| unlogged.contains(version.dot);
            if record.is_strippable() && !record.is_ghost() && record.live.iter().all(is_unlogged) {
                batch.put(Table::Waiting, key.clone(), Bytes::new());
            }
            for version in &record.live {
                live.insert(version.dot);
                if unlogged.contains(version.dot) {
                    continue;
                }
                let Some(ord) = self.writers.ord(version.dot.writer) else {
                    continue;
                };
                let row = log::row_key(ord, version.dot.seq);
                let value = log::row_value(&row, &key, &record);
                batch.put(Table::Log, row, value);
            }
            if batch.changes().len() >= ROWS_PER_COMMIT {
                self.commit(std::mem::take(&mut batch))?;
            }
        }
        if !batch.is_empty() {
            self.commit(std::mem::take(&mut batch))?;
        }

        // What goes here leads to nothing, or to what everybody knows. So each of these entries may go
        // by itself, and as many as an end half-way leaves are removed with the next rebuilding.
        let snapshot = self.storage.snapshot();
        let mut unread = Vec::new();
        for entry in snapshot.range(Table::Log, Bound::Unbounded, Bound::Unbounded) {
            let (row, value) = entry?;
            let is_right = |dot| live.contains(dot) && !unlogged.contains(dot);
            if self.dot_of(&row).is_some_and(is_right) {
                continue;
            }
            // What leads to a record that cannot be read keeps others from being told that all is here.
            if log::key_of(&row, &value).is_ok_and(|key| unreadable.contains(&key)) {
                unread.push(row);
                continue;
            }
            batch.remove(Table::Log, row);
            if batch.changes().len() >= ROWS_PER_COMMIT {
                self.commit(std::mem::take(&mut batch))?;
            }
        }
        if !batch.is_empty() {
            self.commit(batch)?;
        }
        // The log was counted anew; the sums are rebuilt as after an unclean end.
        self.lose_tally();
        Ok(Rebuilt { live, unread })
    }

    /// The write whose entry a row of the log is.
    pub(super) fn dot_of(&self, row: &[u8]) -> Option<Dot> {
        let (ord, _) = row.split_at_checked(4)?;
        let descriptor = self
            .writers
            .by_ord(u32::from_be_bytes(ord.try_into().ok()?))?;
        let seq = log::seq_of(row)?;
        Some(Dot {
            writer: descriptor.writer,
            seq,
        })
    }
}
