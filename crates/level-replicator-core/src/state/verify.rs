//! A full check of what a replica holds: every row of every table, and whether the tables agree.
//!
//! The rule: it reads one snapshot and changes nothing. What it finds is told with what to do about it; nothing that is found
//! ends it, but a disk that cannot be read does.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::feed::{Cursor, FeedError};
use super::{META_TALLY, State, StateError, feed, floor, load_writers, read_feed, read_record};
use crate::clock::{Clock, Dot};
use crate::codec::unseal;
use crate::known_rows::{KnownRows, LoadError};
use crate::log;
use crate::record::{Record, Tally};
use crate::storage::{Snapshot, StorageError, Table};
use crate::writers::Writers;

/// Findings that are told one by one; more are counted.
const FINDINGS_MAX: usize = 100;

/// Rows of the change feed that are read at once.
const FEED_ROWS: usize = 1_000;

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Where.
    pub table: Table,
    /// The row; empty if it is not one row's fault.
    pub key: Bytes,
    /// What is wrong, in a phrase.
    pub problem: String,
    /// What to do about it.
    pub cure: &'static str,
}

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Rows of all tables that were read.
    pub rows: u64,
    /// Keys with a value.
    pub keys: u64,
    /// The fingerprint of all keys and values that could be read.
    pub digest: u128,
    /// What is wrong, as far as it is told one by one.
    pub findings: Vec<Finding>,
    /// How much is wrong in all.
    pub findings_count: u64,
}

const CURE_DATA: &str = "a peer that holds the key gives it back at the next conversations, or write the key again: \
     docs/recovery.md";
const CURE_LOG: &str = "close the replica and open it: the log is built again from the data";
const CURE_REBUILT: &str =
    "close the replica and open it: what is known is built again from the data";
const CURE_RESTORE: &str = "restore the whole directory from a backup, or move it away and let its peers fill a new one: \
     docs/recovery.md";
const CURE_CLUSTER: &str = "nothing: it is passed over, and told again by the members that know it";
const CURE_SUMS: &str =
    "end the process without a close and open the replica: it counts anew; and please report it";
const CURE_FEED: &str = "programs that follow changes must read everything once: open without the change feed, then with it";

/// A replica at one moment, to be checked without keeping it from anything.
pub struct VerifyView {
    snapshot: Arc<dyn Snapshot>,
    writers: Arc<Writers>,
    clock: Arc<Clock>,
    /// Writes in it may have no log entry.
    unlogged: Arc<Clock>,
    tally: Option<Tally>,
}

impl State {
    /// What is here now, to be checked by [`VerifyView::verify`].
    pub fn verify_view(&self) -> VerifyView {
        VerifyView {
            snapshot: self.storage.snapshot(),
            writers: Arc::clone(&self.writers),
            clock: Arc::clone(&self.clock),
            unlogged: Arc::clone(&self.unlogged),
            tally: self.tally(),
        }
    }
}

impl VerifyView {
    /// Checks everything. `goes_on` is told how many rows were read of about how many, and ends the check by answering false;
    /// then the answer is `None`.
    pub fn verify(
        &self,
        mut goes_on: impl FnMut(u64, Option<u64>) -> bool,
    ) -> Result<Option<Verification>, StorageError> {
        let total = self.tally.map(|tally| tally.keys + tally.log);
        let mut found = Verification::default();
        self.check_small_tables(&mut found)?;
        let mut sum = Tally::default();
        for entry in self.rows(Table::Data) {
            let (key, row) = entry?;
            found.rows += 1;
            if !goes_on(found.rows, total) {
                return Ok(None);
            }
            match read_record(Some(row), &key, &self.writers) {
                Ok(record) => {
                    sum.add(record.tally(&key));
                    self.check_record(&key, &record, &mut found)?;
                }
                Err(error) => found.note(Table::Data, &key, phrase(&error), CURE_DATA),
            }
        }
        for entry in self.rows(Table::Log) {
            let (row, value) = entry?;
            found.rows += 1;
            sum.log += 1;
            if !goes_on(found.rows, total) {
                return Ok(None);
            }
            self.check_log_entry(&row, &value, &mut found)?;
        }
        found.keys = sum.keys;
        found.digest = sum.digest;
        if found.findings_count == 0
            && let Some(tally) = self.tally
            && tally != sum
        {
            let problem = "the counts or the digest that are kept differ from what is there";
            found.note(Table::Meta, META_TALLY, problem.to_owned(), CURE_SUMS);
        }
        if !self.check_feed(&mut found, |rows| goes_on(rows, total))? {
            return Ok(None);
        }
        Ok(Some(found))
    }

    fn rows(&self, table: Table) -> crate::storage::Entries {
        self.snapshot
            .range(table, Bound::Unbounded, Bound::Unbounded)
    }

    /// The tables that are as small as the cluster.
    fn check_small_tables(&self, found: &mut Verification) -> Result<(), StorageError> {
        for table in [
            Table::Meta,
            Table::Writers,
            Table::Clock,
            Table::Floor,
            // These lead to keys, and are removed when they lead to nothing.
            Table::Pending,
            Table::Waiting,
            Table::Expiry,
        ] {
            for entry in self.rows(table) {
                entry?;
                found.rows += 1;
            }
        }
        for table in [Table::Members, Table::Epoch] {
            for entry in self.rows(table) {
                let (row, value) = entry?;
                found.rows += 1;
                if let Err(error) = unseal(&row, &value, "row") {
                    found.note(table, &row, error.to_string(), CURE_CLUSTER);
                }
            }
        }
        let snapshot = &*self.snapshot;
        found.note_state(
            Table::Writers,
            load_writers(snapshot).map(drop),
            CURE_RESTORE,
        )?;
        let clock = KnownRows::load(snapshot, &self.writers).map(drop);
        found.note_load(Table::Clock, clock)?;
        found.note_load(Table::Floor, floor::load(snapshot).map(drop))?;
        Ok(())
    }

    fn check_record(
        &self,
        key: &Bytes,
        record: &Record,
        found: &mut Verification,
    ) -> Result<(), StorageError> {
        for version in &record.live {
            let dot = version.dot;
            if !self.clock.contains(dot) {
                let problem = format!("its write {dot} is not in the clock");
                found.note(Table::Data, key, problem, CURE_REBUILT);
            }
            if self.unlogged.contains(dot) {
                continue;
            }
            let Some(row) = self.log_row(dot) else {
                continue;
            };
            if self.snapshot.get(Table::Log, &row)?.is_none() {
                let problem = format!("its write {dot} has no entry in the log");
                found.note(Table::Data, key, problem, CURE_LOG);
            }
        }
        Ok(())
    }

    fn log_row(&self, dot: Dot) -> Option<Bytes> {
        let ord = self.writers.ord(dot.writer)?;
        Some(log::row_key(ord, dot.seq))
    }

    fn check_log_entry(
        &self,
        row: &Bytes,
        value: &Bytes,
        found: &mut Verification,
    ) -> Result<(), StorageError> {
        let ord = row.first_chunk().map(|ord| u32::from_be_bytes(*ord));
        let writer = ord.and_then(|ord| self.writers.by_ord(ord));
        let (Some(writer), Some(seq)) = (writer, log::seq_of(row)) else {
            let problem = "it names no writer that is known".to_owned();
            found.note(Table::Log, row, problem, CURE_LOG);
            return Ok(());
        };
        let dot = Dot {
            writer: writer.writer,
            seq,
        };
        let key = match log::key_of(row, value) {
            Ok(key) => key,
            Err(error) => {
                found.note(Table::Log, row, error.to_string(), CURE_LOG);
                return Ok(());
            }
        };
        // What is below the floor goes in the background, and may name what has changed since.
        if self.unlogged.contains(dot) {
            return Ok(());
        }
        let record = self.snapshot.get(Table::Data, &key)?;
        // A record that cannot be read was found already.
        if let Ok(record) = read_record(record, &key, &self.writers)
            && !record.holds(dot)
        {
            let problem = format!(
                "it names key {}, whose record does not hold write {dot}",
                key.escape_ascii()
            );
            found.note(Table::Log, row, problem, CURE_LOG);
        }
        Ok(())
    }

    /// Whether the feed can be read from its oldest row to its end.
    fn check_feed(
        &self,
        found: &mut Verification,
        mut goes_on: impl FnMut(u64) -> bool,
    ) -> Result<bool, StorageError> {
        let problem = |error: FeedError| match error {
            FeedError::State(StateError::Storage(error)) => Err(error),
            error => Ok(error.to_string()),
        };
        let mut cursor = match feed::oldest(&*self.snapshot) {
            Ok(oldest) => oldest,
            Err(FeedError::Off) => return Ok(true),
            Err(error) => {
                found.note(Table::Feed, &[], problem(error)?, CURE_FEED);
                return Ok(true);
            }
        };
        loop {
            let read = read_feed(&*self.snapshot, &self.writers, cursor, FEED_ROWS);
            let changes = match read {
                Ok(changes) => changes,
                Err(error) => {
                    found.note(Table::Feed, &[], problem(error)?, CURE_FEED);
                    return Ok(true);
                }
            };
            let Some(last) = changes.last() else {
                return Ok(true);
            };
            if !Cursor::are_consecutive(cursor, &changes) {
                let problem = format!("rows behind {cursor} are missing");
                found.note(Table::Feed, &[], problem, CURE_FEED);
                return Ok(true);
            }
            cursor = last.cursor;
            found.rows += changes.len() as u64;
            if !goes_on(found.rows) {
                return Ok(false);
            }
        }
    }
}

impl Verification {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings_count == 0
    }

    fn note(&mut self, table: Table, key: &[u8], problem: String, cure: &'static str) {
        self.findings_count += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding {
                table,
                key: Bytes::copy_from_slice(key),
                problem,
                cure,
            });
        }
    }

    fn note_state(
        &mut self,
        table: Table,
        outcome: Result<(), StateError>,
        cure: &'static str,
    ) -> Result<(), StorageError> {
        match outcome {
            Ok(()) => {}
            Err(StateError::Storage(error)) => return Err(error),
            Err(error) => self.note(table, &[], phrase(&error), cure),
        }
        Ok(())
    }

    fn note_load(
        &mut self,
        table: Table,
        outcome: Result<(), LoadError>,
    ) -> Result<(), StorageError> {
        match outcome {
            Ok(()) => {}
            Err(LoadError::Storage(error)) => return Err(error),
            Err(LoadError::Decode(error)) => {
                self.note(table, &[], error.to_string(), CURE_REBUILT);
            }
        }
        Ok(())
    }
}

/// What is wrong, without the row: that is told beside it.
fn phrase(error: &StateError) -> String {
    match error {
        StateError::Corrupt { source, .. } => source.to_string(),
        error => error.to_string(),
    }
}
