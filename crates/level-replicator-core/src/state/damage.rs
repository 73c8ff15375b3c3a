//! Records that cannot be read, and what may stand for them.
//!
//! The rule: what is known of such a record is in the log, for every live write above the floor has
//! its entry there. A peer's record stands for it if the peer knows all of that and the floor; a
//! local write does if what is known of its key can be told from what is known of others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;

use super::{State, StateError};
use crate::clock::{Clock, Dot, VersionVector};
use crate::log;
use crate::record::{Key, Record};
use crate::storage::{Snapshot, Table};

/// What one reading of the whole log tells of some keys.
pub(super) struct LogScan {
    entries: BTreeMap<Key, Vec<(Bytes, Dot)>>,
    /// All writes with an entry that names a key.
    dots: Clock,
}

impl LogScan {
    /// The rows that lead to a key, and their writes.
    pub(super) fn entries(&self, key: &Key) -> &[(Bytes, Dot)] {
        self.entries.get(key).map_or(&[], Vec::as_slice)
    }
}

impl State {
    /// Reads the whole log for the entries that lead to some keys.
    pub(super) fn scan_log<'k>(
        &self,
        snapshot: &dyn Snapshot,
        keys: impl Iterator<Item = &'k Key>,
    ) -> Result<LogScan, StateError> {
        let keys: BTreeSet<&Key> = keys.collect();
        let mut scan = LogScan {
            entries: BTreeMap::new(),
            dots: Clock::default(),
        };
        for entry in snapshot.range(Table::Log, Bound::Unbounded, Bound::Unbounded) {
            let (row, value) = entry?;
            let (Ok(key), Some(dot)) = (log::key_of(&row, &value), self.dot_of(&row)) else {
                continue;
            };
            scan.dots.insert(dot);
            if keys.contains(&key) {
                scan.entries.entry(key).or_default().push((row, dot));
            }
        }
        Ok(scan)
    }

    /// What stands for a record that cannot be read when it is written over: nothing is left of it, and
    /// it has seen all that is known of its key. `None` if nobody can tell what that is.
    ///
    /// A history knows no gaps, and must not seem to have seen what is missing. Below a gap it is all
    /// that is known. Above one it is the writes that were live under this key, which stand for the
    /// earlier ones anyway; what is live under other keys is none of its business. Of a write that
    /// is neither, nobody can say under which key it was.
    pub(super) fn unreadable(&self, key: &Key, log: &LogScan) -> Option<Record> {
        let mut told = log.dots.clone();
        let mut seen = VersionVector::default();
        for (writer, known) in self.writers.closed_part(&self.clock).iter() {
            let seq = known.base();
            if seq > 0 {
                told.insert_range(writer, 1..=seq);
                seen.raise(Dot { writer, seq });
            }
        }
        let entries = log.entries(key).iter();
        entries.for_each(|(_, dot)| seen.raise(*dot));
        told.covers(&self.clock).then(|| Record {
            live: Vec::new(),
            seen,
        })
    }

    /// Whether a peer's record may stand for one of ours that cannot be read: if its sender knows every
    /// write that ours can have held. Those that are below the floor, or wanted, have no entries.
    ///
    /// No write may so become live under two keys, as twins that share a writer may tell it: the log
    /// can name only one of them. A join sees that by the clock. Of what has no entry it is not asked.
    pub(super) fn may_mend(
        &self,
        snapshot: &dyn Snapshot,
        (key, theirs): (&Key, &Record),
        context: &Clock,
        log: &LogScan,
    ) -> Result<bool, StateError> {
        let is_known = |(_, dot): &(Bytes, Dot)| context.contains(*dot);
        if !context.covers(&self.unlogged) || !log.entries(key).iter().all(is_known) {
            return Ok(false);
        }
        for version in &theirs.live {
            let Some(ord) = self.writers.ord(version.dot.writer) else {
                continue;
            };
            let row = log::row_key(ord, version.dot.seq);
            if let Some(value) = snapshot.get(Table::Log, &row)?
                && log::key_of(&row, &value).is_ok_and(|named| named != *key)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
