//! The floor: what everybody knows, and what it makes superfluous.
//!
//! The rule: the floor grows in one commit, and only by cuts that everybody agreed on or that a peer
//! has as its own floor; what it makes superfluous is removed afterwards, in small steps. A step that
//! has not happened yet is no danger, because deletes, histories and log entries below the floor say
//! nothing wrong; what counts is that nobody who does not know the floor is served from the log.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;

use super::edit::Edit;
use super::progress::Progress;
use super::{META_RECLAIM, State, StateError};
use crate::clock::{Clock, Known, WriterId};
use crate::codec::{DecodeError, Reader, seal, unseal};
use crate::known_rows::LoadError;
use crate::limits::{KEY_BYTES_MAX, RECLAIM_RECORD_COST, RECLAIM_STEP};
use crate::log;
use crate::mistake::{Mistake, is_planted};
use crate::record::{Key, Record};
use crate::storage::{Batch, Snapshot, Table};

const FLOOR: u8 = 0;
const WANTED: u8 = 1;
pub(super) const HEALING: u8 = 2;
pub(super) const HEALED_TO: u8 = 3;

/// What is left to be reclaimed: log entries of these ranges, and the keys that wait.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    ranges: VecDeque<(WriterId, RangeInclusive<u64>)>,
    /// The last key of [`Table::Waiting`] that was looked at; `None` if none of them is to be.
    waiting: Option<Bound<Key>>,
    /// Something that could not be read waits, so it is looked at again.
    met_damage: bool,
}

impl Reclaim {
    /// What is left after an open: all below the floor, if it was not finished before.
    pub(super) fn new(floor: &Clock, unfinished: bool) -> Reclaim {
        let mut reclaim = Reclaim::default();
        if unfinished {
            reclaim.add(floor.difference(&Clock::default()));
        }
        reclaim
    }

    fn add(&mut self, ranges: Vec<(WriterId, RangeInclusive<u64>)>) {
        if !ranges.is_empty() {
            self.ranges.extend(ranges);
            self.waiting = Some(Bound::Unbounded);
        }
    }

    fn is_done(&self) -> bool {
        self.ranges.is_empty() && self.waiting.is_none()
    }
}

/// What the floor becomes with a commit.
#[derive(Debug, Default)]
pub(super) struct FloorGrowth {
    floor: Option<Clock>,
    covers_wanted: bool,
}

impl State {
    /// Makes a peer's floor, or a completed cut, part of the floor. All of it must be known here.
    pub fn adopt_floor(&mut self, more: &Clock) -> Result<(), StateError> {
        let mut batch = Batch::default();
        let growth = self.grow_floor(&mut batch, more, false);
        if !batch.is_empty() {
            self.commit(batch)?;
        }
        self.take_floor(growth);
        Ok(())
    }

    /// A heal begins whose end will make a floor known, by a peer whose snapshot has the clock `context`.
    /// From now on, and until the floor is covered, only those who know all of it are served.
    pub fn begin_heal(&mut self, theirs: &Clock, context: &Clock) -> Result<(), StateError> {
        let mut wanted = Clock::clone(&self.wanted);
        let mut batch = Batch::default();
        let progress = self.progress.before_heal(&mut batch, context);
        let is_served = self.clock.covers(theirs) || is_planted(Mistake::HalfHealedServes);
        if !is_served {
            grow_rows(&mut batch, WANTED, &mut wanted, theirs);
        }
        if !batch.is_empty() {
            self.commit(batch)?;
        }
        self.progress = progress;
        self.wanted = Arc::new(wanted);
        self.note_unlogged();
        Ok(())
    }

    /// The rows with which the floor follows a claim: by the floor of whoever healed us, and by all
    /// that was wanted once the clock, grown by the claim, covers it.
    pub(super) fn floor_after_claim(
        &self,
        batch: &mut Batch,
        healed: Option<&Clock>,
    ) -> FloorGrowth {
        let covers_wanted = !self.wanted.is_empty() && self.clock.covers(&self.wanted);
        let mut more = healed.cloned().unwrap_or_default();
        if covers_wanted && !is_planted(Mistake::WantedForgotten) {
            more.union(&self.wanted);
        }
        self.grow_floor(batch, &more, covers_wanted)
    }

    pub(super) fn grow_floor(
        &self,
        batch: &mut Batch,
        more: &Clock,
        covers_wanted: bool,
    ) -> FloorGrowth {
        let mut growth = FloorGrowth {
            floor: None,
            covers_wanted,
        };
        if covers_wanted {
            for (writer, _) in self.wanted.iter() {
                batch.remove(Table::Floor, row_key(WANTED, writer));
            }
        }
        if self.floor.covers(more) {
            return growth;
        }
        let mut floor = Clock::clone(&self.floor);
        grow_rows(batch, FLOOR, &mut floor, more);
        batch.put(Table::Meta, META_RECLAIM, Bytes::new());
        growth.floor = Some(floor);
        growth
    }

    /// The floor was committed.
    pub(super) fn take_floor(&mut self, growth: FloorGrowth) {
        if growth.covers_wanted {
            self.wanted = Arc::default();
        }
        if let Some(floor) = growth.floor {
            self.reclaim.add(floor.difference(&self.floor));
            self.floor = Arc::new(floor);
            self.note_unlogged();
        }
    }

    fn note_unlogged(&mut self) {
        let mut unlogged = Clock::clone(&self.floor);
        unlogged.union(&self.wanted);
        self.unlogged = Arc::new(unlogged);
    }

    /// Whether something below the floor is left to be removed.
    pub fn is_reclaiming(&self) -> bool {
        !self.reclaim.is_done()
    }

    /// Removes a little of what the floor made superfluous, in one commit. What cannot be removed yet
    /// is found again when the floor has grown. Something damaged is answered, and stays.
    pub fn reclaim_step(&mut self) -> Result<Option<StateError>, StateError> {
        let outcome = self.try_reclaim_step();
        if outcome.is_err() {
            // Where the step has come to is not known, so it begins again from the front.
            self.reclaim = Reclaim::new(&self.floor, true);
        }
        outcome
    }

    fn try_reclaim_step(&mut self) -> Result<Option<StateError>, StateError> {
        let writers = Arc::clone(&self.writers);
        let snapshot = self.storage.snapshot();
        let mut edit = Edit::new(self, &writers);
        let mut step = Step {
            seen: BTreeMap::new(),
            damage: None,
        };
        let mut room = RECLAIM_STEP;
        let mut ranges = std::mem::take(&mut self.reclaim.ranges);
        let mut waiting = self.reclaim.waiting.clone();

        while room > 0
            && let Some((writer, range)) = ranges.pop_front()
        {
            let Some(ord) = writers.ord(writer) else {
                continue;
            };
            let mut next = *range.start();
            for entry in log::entries(&*snapshot, ord, range.clone()) {
                if room == 0 {
                    break;
                }
                let (row, value) = entry?;
                room -= 1;
                next = log::seq_of(&row).unwrap_or(next).saturating_add(1);
                match log::entry_of(&row, &value) {
                    Ok((_, true)) => {}
                    Ok((key, false)) => {
                        room = room.saturating_sub(RECLAIM_RECORD_COST);
                        step.settle(self, &mut edit, &*snapshot, &key)?;
                    }
                    Err(source) => step.damage = Some(super::corrupt(Table::Log, &row, source)),
                }
                edit.batch.remove(Table::Log, row);
                edit.tally.log = edit.tally.log.wrapping_sub(1);
            }
            if room == 0 && next <= *range.end() {
                ranges.push_front((writer, next..=*range.end()));
            }
        }
        if room > 0
            && let Some(from) = &waiting
        {
            let from = crate::storage::bound_as_slice(from);
            let mut last = None;
            for entry in snapshot.range(Table::Waiting, from, Bound::Unbounded) {
                if room == 0 {
                    break;
                }
                let (key, _) = entry?;
                room = room.saturating_sub(RECLAIM_RECORD_COST);
                step.settle(self, &mut edit, &*snapshot, &key)?;
                last = Some(key);
            }
            waiting = last.filter(|_| room == 0).map(Bound::Excluded);
        }
        let mut met_damage = self.reclaim.met_damage || step.damage.is_some();
        if ranges.is_empty() && waiting.is_none() && met_damage {
            waiting = Some(Bound::Unbounded);
            met_damage = false;
        }
        if ranges.is_empty() && waiting.is_none() {
            edit.batch.remove(Table::Meta, META_RECLAIM);
        }

        self.commit_edit(edit)?;
        self.reclaim = Reclaim {
            ranges,
            waiting,
            met_damage,
        };
        Ok(step.damage)
    }
}

/// What one step of reclaiming has met.
struct Step {
    seen: BTreeMap<Key, Record>,
    damage: Option<StateError>,
}

impl Step {
    /// Takes from a record what it need not hold any more.
    fn settle(
        &mut self,
        state: &State,
        edit: &mut Edit<'_>,
        snapshot: &dyn Snapshot,
        key: &Key,
    ) -> Result<(), StateError> {
        if self.seen.contains_key(key) {
            return Ok(());
        }
        let row = snapshot.get(Table::Data, key)?;
        let old = match super::read_record(row, key, &state.writers) {
            Ok(old) => old,
            Err(damage @ StateError::Corrupt { .. }) => {
                self.damage = Some(damage);
                edit.batch.put(Table::Waiting, key.clone(), Bytes::new());
                self.seen.insert(key.clone(), Record::default());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let stored = match old.stripped(&state.floor) {
            Some(new) => edit.replace(key, &old, new),
            None => {
                // The row in the table of those who wait may be out of date.
                edit.wait(key, &old, &old);
                if !old.is_strippable() || old.is_ghost() {
                    edit.batch.remove(Table::Waiting, key.clone());
                }
                old
            }
        };
        self.seen.insert(key.clone(), stored);
        Ok(())
    }
}

/// What the table of the floor holds.
#[derive(Debug, Default)]
pub(super) struct Floors {
    pub(super) floor: Clock,
    pub(super) wanted: Clock,
    pub(super) progress: Progress,
}

pub(super) fn load(snapshot: &dyn Snapshot) -> Result<Floors, LoadError> {
    const WHAT: &str = "floor row";
    let mut floors = Floors::default();
    let (mut healing, mut healed_to) = (Clock::default(), None);
    for entry in snapshot.range(Table::Floor, Bound::Unbounded, Bound::Unbounded) {
        let (row, value) = entry?;
        let mut value = Reader::new(unseal(&row, &value, WHAT)?, WHAT);
        let mut key = Reader::new(row, WHAT);
        let clock = match key.u8()? {
            FLOOR => &mut floors.floor,
            WANTED => &mut floors.wanted,
            HEALING => &mut healing,
            HEALED_TO => {
                healed_to = Some(value.prefixed(KEY_BYTES_MAX + 1)?);
                key.finish()?;
                value.finish()?;
                continue;
            }
            _ => return Err(DecodeError::Invalid { what: WHAT }.into()),
        };
        clock.set(WriterId(key.u64()?), Known::decode(&mut value)?);
        key.finish()?;
        value.finish()?;
    }
    floors.progress = Progress::new(healing, healed_to);
    Ok(floors)
}

/// Adds to a clock that is kept in rows of a kind.
fn grow_rows(batch: &mut Batch, kind: u8, clock: &mut Clock, more: &Clock) {
    for (writer, known) in more.iter() {
        if clock.covers_writer(writer, known) {
            continue;
        }
        let mut joined = clock.get(writer).cloned().unwrap_or_default();
        joined.union(known);
        put_row(batch, kind, writer, &joined);
        clock.set(writer, joined);
    }
}

pub(super) fn put_row(batch: &mut Batch, kind: u8, writer: WriterId, known: &Known) {
    let row = row_key(kind, writer);
    let mut value = Vec::new();
    known.encode(&mut value);
    seal(&row, &mut value);
    batch.put(Table::Floor, row, value);
}

pub(super) fn row_key(kind: u8, writer: WriterId) -> Bytes {
    let mut key = vec![kind];
    key.extend_from_slice(&writer.0.to_be_bytes());
    key.into()
}
