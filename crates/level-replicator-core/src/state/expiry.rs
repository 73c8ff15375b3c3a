//! Values that expire: who deletes them, and when.
//!
//! The rule: nothing is dropped without a dot. Readers hide an expired value, each by its own clock;
//! that changes nothing stored. The replica that wrote it then deletes it, by its own clock, with an
//! ordinary delete that has seen this write alone: no clock elsewhere can end a value early or keep it
//! longer, and a refresh that the delete had not seen survives. Only when that replica is gone for
//! good another one does it, a day later.
//!
//! A row of [`Table::Expiry`] leads to each such value: those of this replica first, in the order in
//! which they expire. A row whose value is not there any more is removed when it is due.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::edit::Edit;
use super::{ChangeKind, Changed, State, StateError};
use crate::clock::{Dot, Known, Now, ReplicaId, Stamp};
use crate::codec::{DecodeError, Reader};
use crate::limits::{EXPIRY_LOOK, EXPIRY_STEP};
use crate::mistake::{Mistake, is_planted};
use crate::record::{Content, Key, Record, Version};
use crate::storage::{Snapshot, StorageError, Table, is_empty_range};
use crate::writers::Writers;

/// The rows of values that this replica wrote.
const OWN: u8 = 0;
/// The rows of all others, and of what could not be deleted when it was due.
const OTHERS: u8 = 1;

/// Whose values one step looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those that this replica wrote.
    Own,
    /// Those of replicas that are gone for good.
    Orphans,
}

/// What one step has done.
#[derive(Debug, Default)]
pub struct Expired {
    /// The values that were deleted.
    pub changed: Vec<Changed>,
    /// Whether there may be more to do at once.
    pub more: bool,
    /// A record that could not be read; its values wait.
    pub damage: Option<StateError>,
}

/// When the next values expire, as far as the rows say.
///
/// Rows that were removed slow down a search that begins before them, so each begins where the last ended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NextExpiry {
    own: Option<Stamp>,
    others: Option<Stamp>,
}

impl NextExpiry {
    pub(super) fn load(snapshot: &dyn Snapshot) -> Result<NextExpiry, StorageError> {
        NextExpiry {
            own: Some(Stamp::default()),
            others: Some(Stamp::default()),
        }
        .searched(snapshot)
    }

    /// The first rows at or after those that were the first before.
    fn searched(self, snapshot: &dyn Snapshot) -> Result<NextExpiry, StorageError> {
        Ok(NextExpiry {
            own: first_until(snapshot, OWN, self.own)?,
            others: first_until(snapshot, OTHERS, self.others)?,
        })
    }

    /// A row was written.
    pub(super) fn note(&mut self, sooner: NextExpiry) {
        let least = |a: Option<Stamp>, b: Option<Stamp>| a.into_iter().chain(b).min();
        self.own = least(self.own, sooner.own);
        self.others = least(self.others, sooner.others);
    }

    fn note_row(&mut self, kind: u8, until: Stamp) {
        let (own, others) = match kind {
            OWN => (Some(until), None),
            _ => (None, Some(until)),
        };
        self.note(NextExpiry { own, others });
    }
}

impl State {
    /// When the next value that this replica wrote expires, by its wall clock.
    pub fn next_own_expiry(&self) -> Option<Stamp> {
        self.next_expiry.own
    }

    /// When the next value expires, or expired, that another replica wrote.
    pub fn next_foreign_expiry(&self) -> Option<Stamp> {
        self.next_expiry.others
    }

    /// Deletes a bounded number of values that have expired, in one commit; the values of replicas that
    /// are gone for good `grace_us` later. `random` names a new writer if this is the first write.
    pub fn expire_step(
        &mut self,
        now: Now,
        whose: Whose,
        grace_us: u64,
        random: u64,
    ) -> Result<Expired, StateError> {
        let snapshot = self.storage.snapshot();
        let due = self.due_rows(&*snapshot, now, whose, grace_us)?;
        let (writer, writers) = match self.current {
            Some(writer) => (writer, Arc::clone(&self.writers)),
            None => self.with_new_writer(random)?,
        };
        let mut edit = Edit::new(self, &writers).by(writer);
        edit.expires = true;
        let mut expired = Expired {
            more: due.last.is_some(),
            ..Expired::default()
        };
        let mut seq = self.clock.get(writer).map_or(0, Known::base);
        let before = seq;
        let mut handled = BTreeSet::new();

        for row in due.damaged {
            edit.batch.remove(Table::Expiry, row);
        }
        for DueRow { row, until, key } in due.rows {
            let old = match self.record(&key) {
                Ok(old) => old,
                Err(damage @ StateError::Corrupt { .. }) => {
                    expired.damage = Some(damage);
                    edit.move_expiry(row, OTHERS, until, &key);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let is_left = (old.live.iter()).any(|version| version.content.until() == Some(until));
            if !is_left {
                edit.batch.remove(Table::Expiry, row);
                continue;
            }
            if handled.contains(&key) {
                // Its record is about to change; what is left of it then is seen at the next look.
                edit.move_expiry(row, OTHERS, until, &key);
                continue;
            }
            let next = Dot {
                writer,
                seq: seq + 1,
            };
            let is_ours = |version: &Version| self.may_expire(version, now, grace_us, &writers);
            match without_expired(&old, next, now, is_ours, &writers) {
                Some(new) => {
                    seq += 1;
                    edit.batch.remove(Table::Expiry, row);
                    edit.replace(&key, &old, new);
                    expired.changed.push(Changed {
                        key: key.clone(),
                        conflict: false,
                        visible: true,
                        kind: ChangeKind::Expired,
                    });
                    handled.insert(key);
                }
                // It was written under a name that is not ours any more.
                None if whose == Whose::Own => edit.move_expiry(row, OTHERS, until, &key),
                None => {}
            }
        }

        if seq > before {
            self.commit_own(edit, writer, seq)?;
            self.writers = writers;
        } else if !edit.batch.is_empty() {
            self.commit_edit(edit)?;
        }
        if whose == Whose::Orphans {
            self.looked_to = due.last;
        }
        // What was known before is not too late either, and what was deleted must be told.
        if let Ok(next) = self.next_expiry.searched(&*self.storage.snapshot()) {
            self.next_expiry = next;
        }
        Ok(expired)
    }

    fn due_rows(
        &self,
        snapshot: &dyn Snapshot,
        now: Now,
        whose: Whose,
        grace_us: u64,
    ) -> Result<Due, StateError> {
        let (kind, first, last_us, room) = match whose {
            Whose::Own => (OWN, self.next_expiry.own, now.wall_us, EXPIRY_STEP),
            Whose::Orphans => {
                let last_us = now.wall_us.saturating_sub(grace_us);
                (OTHERS, self.next_expiry.others, last_us, EXPIRY_LOOK)
            }
        };
        let mut due = Due::default();
        let Some(first) = first.filter(|first| first.as_micros() <= last_us) else {
            return Ok(due);
        };
        let first = row_key(kind, first, &[]);
        let start = match &self.looked_to {
            Some(row) if kind == OTHERS && *row >= first => Bound::Excluded(&row[..]),
            _ => Bound::Included(&first[..]),
        };
        let end = row_key(kind, Stamp::from_micros(last_us.saturating_add(1)), &[]);
        if is_empty_range(start, Bound::Excluded(&end)) {
            return Ok(due);
        }
        for entry in snapshot.range(Table::Expiry, start, Bound::Excluded(&end)) {
            let (row, _) = entry?;
            if due.rows.len() == room {
                due.last = due.rows.last().map(|last| last.row.clone());
                break;
            }
            match decode_row(row.clone()) {
                Ok((until, key)) => due.rows.push(DueRow { row, until, key }),
                // It leads to nothing.
                Err(_) => due.damaged.push(row),
            }
        }
        Ok(due)
    }

    /// Whether it is on this replica to delete a value, and the time has come.
    fn may_expire(&self, version: &Version, now: Now, grace_us: u64, writers: &Writers) -> bool {
        let Some(until) = version.content.until() else {
            return false;
        };
        let Some(owner) = writers.get(version.dot.writer) else {
            return false;
        };
        let has_passed = |grace_us: u64| until.as_micros().saturating_add(grace_us) <= now.wall_us;
        if owner.replica == self.replica || is_planted(Mistake::ExpiredByAnybody) {
            return has_passed(0);
        }
        has_passed(grace_us) && self.is_gone(owner.replica) && self.is_first_active()
    }

    /// Whether a replica was sent away, or silent for so long that nothing waits for it.
    fn is_gone(&self, replica: ReplicaId) -> bool {
        self.members.is_retired(replica) || self.life(replica).excluded
    }

    /// Whether no member that takes part has a lesser name.
    fn is_first_active(&self) -> bool {
        let mut active = self.members.active();
        let first = active.find(|other| *other == self.replica || !self.life(*other).excluded);
        first == Some(self.replica)
    }
}

/// The record after a write that deletes what has expired and replaces nothing else; `None` if nothing
/// has, or if it cannot be told apart from what stays.
///
/// A write stands for all earlier ones of its author under the key. So if the author has another value
/// there, which is concurrent with what has expired, it is written again in the delete's place.
fn without_expired(
    old: &Record,
    dot: Dot,
    now: Now,
    has_expired: impl Fn(&Version) -> bool,
    writers: &Writers,
) -> Option<Record> {
    let (gone, rest): (Vec<&Version>, Vec<&Version>) =
        old.live.iter().partition(|version| has_expired(version));
    if gone.is_empty() {
        return None;
    }
    let is_own = |version: &&Version| {
        version.dot.writer == dot.writer || writers.implies(dot.writer, version.dot)
    };
    let (own, kept): (Vec<&Version>, Vec<&Version>) = rest.into_iter().partition(is_own);
    let mut own_values = own.iter().filter(|version| version.value().is_some());
    let content = match (own_values.next(), own_values.next()) {
        (None, _) => Content::Delete,
        (Some(only), None) => only.content.clone(),
        (Some(_), Some(_)) => return None,
    };
    if is_planted(Mistake::ExpiredWithoutDot) {
        let live = kept.into_iter().cloned().collect();
        let seen = old.seen.clone();
        return Some(Record { live, seen });
    }
    let mut new = Record {
        live: kept.into_iter().cloned().collect(),
        seen: old.history(),
    };
    if is_planted(Mistake::ExpiryTakesAll) {
        new.live.clear();
    }
    new.live.push(Version {
        dot,
        stamp: Stamp::after(now, old.last_stamp()),
        content,
    });
    new.live.sort_by_key(|version| version.dot);
    new.drop_implied(writers);
    Some(new)
}

impl Edit<'_> {
    /// Makes the rows that lead to values which expire follow a record.
    pub(super) fn follow_expiry(&mut self, key: &Key, old: &Record, new: &Record) {
        let expires = |record: &Record| {
            let mut live = record.live.iter();
            live.any(|version| version.content.until().is_some())
        };
        if !expires(old) && !expires(new) {
            return;
        }
        let (before, after) = (self.expiry_rows(old), self.expiry_rows(new));
        for (kind, until) in before.difference(&after) {
            let row = row_key(*kind, *until, key);
            self.batch.remove(Table::Expiry, row);
        }
        for &(kind, until) in after.difference(&before) {
            self.put_expiry(kind, until, key);
        }
    }

    fn expiry_rows(&self, record: &Record) -> BTreeSet<(u8, Stamp)> {
        let rows = record.live.iter().filter_map(|version| {
            let until = version.content.until()?;
            let owner = self.writers.get(version.dot.writer)?.replica;
            Some((if owner == self.replica { OWN } else { OTHERS }, until))
        });
        rows.collect()
    }

    fn move_expiry(&mut self, row: Bytes, kind: u8, until: Stamp, key: &Key) {
        self.batch.remove(Table::Expiry, row);
        self.put_expiry(kind, until, key);
    }

    fn put_expiry(&mut self, kind: u8, until: Stamp, key: &Key) {
        let row = row_key(kind, until, key);
        self.batch.put(Table::Expiry, row, Bytes::new());
        self.sooner.note_row(kind, until);
    }
}

struct DueRow {
    row: Bytes,
    until: Stamp,
    key: Key,
}

#[derive(Default)]
struct Due {
    rows: Vec<DueRow>,
    /// Rows that are none.
    damaged: Vec<Bytes>,
    /// The last that was looked at, if there are more.
    last: Option<Bytes>,
}

fn first_until(
    snapshot: &dyn Snapshot,
    kind: u8,
    from: Option<Stamp>,
) -> Result<Option<Stamp>, StorageError> {
    let Some(from) = from else {
        return Ok(None);
    };
    let (start, end) = (row_key(kind, from, &[]), [kind + 1]);
    let (start, end) = (Bound::Included(&start[..]), Bound::Excluded(&end[..]));
    let Some(entry) = snapshot.range(Table::Expiry, start, end).next() else {
        return Ok(None);
    };
    let (row, _) = entry?;
    // A row that is none is removed at the next look.
    Ok(Some(
        decode_row(row).map_or(Stamp::default(), |(until, _)| until),
    ))
}

fn row_key(kind: u8, until: Stamp, key: &[u8]) -> Bytes {
    let mut row = Vec::with_capacity(9 + key.len());
    row.push(kind);
    row.extend_from_slice(&until.as_micros().to_be_bytes());
    row.extend_from_slice(key);
    row.into()
}

fn decode_row(row: Bytes) -> Result<(Stamp, Key), DecodeError> {
    let mut reader = Reader::new(row, "expiry row");
    reader.u8()?;
    let until = Stamp::from_micros(reader.u64()?);
    let key = reader.bytes(reader.remaining())?;
    Ok((until, key))
}
