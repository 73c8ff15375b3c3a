//! How records of a peer become ours, and how the clock grows with them.
//!
//! The rule: the clock comes last. It grows by the live writes just applied, or by the peer's whole
//! clock once everything of its snapshot is here.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::ops::Bound;
use std::sync::Arc;

use super::edit::Edit;
use super::floor::FloorGrowth;
use super::{
    Changed, Joined, META_UNCLAIMED, Reach, State, StateError, describe_change, is_within,
    put_writer_set, read_record,
};
use crate::clock::{Clock, Known, WriterId};
use crate::known_rows::{KnownRows, put_base};
use crate::mistake::{Mistake, is_planted};
use crate::record::{Key, Record, Side};
use crate::storage::{Batch, Table};

impl State {
    /// Joins records from a peer's snapshot, of which `context` is the clock, in one commit.
    ///
    /// If they are the rest of the snapshot, the peer's whole clock becomes known; else exactly the
    /// live dots of the records do. All writers must be described. A record of ours that is damaged
    /// stays as it is; then nothing of its key is known anew, and no whole clock.
    pub fn apply(
        &mut self,
        mut records: Vec<(Key, Record)>,
        context: &Clock,
        mut reach: Reach<'_>,
    ) -> Result<Joined, StateError> {
        let writers = Arc::clone(&self.writers);
        let mut edit = Edit::new(self, &writers);
        let mut outcome = Joined::default();
        let mut added = Clock::default();
        let mut joined: BTreeMap<Key, Record> = BTreeMap::new();
        let mut own_dot_died = false;
        // Nobody else commits meanwhile, so one view serves all reads. In the order of keys, reads
        // and writes meet what the one before has brought near.
        let snapshot = self.storage.snapshot();
        records.sort_by(|(a, _), (b, _)| a.cmp(b));

        let mut log = None;
        let mut rest = records.into_iter();
        while let Some((key, theirs)) = rest.next() {
            let old = match joined.remove(&key) {
                Some(record) => record,
                None => match read_record(snapshot.get(Table::Data, &key)?, &key, &writers) {
                    Err(damage @ StateError::Corrupt { .. }) => {
                        outcome.damage = Some(damage);
                        let log = match &mut log {
                            Some(log) => log,
                            None => {
                                let after = rest.as_slice().iter().map(|(key, _)| key);
                                let keys = iter::once(&key).chain(after);
                                log.insert(self.scan_log(&*snapshot, keys)?)
                            }
                        };
                        if !self.may_mend(&*snapshot, (&key, &theirs), context, log)? {
                            reach = match reach {
                                Reach::Heal { .. } | Reach::Resumed { .. } => {
                                    Reach::Heal { to: None }
                                }
                                _ => Reach::Part,
                            };
                            outcome.passed_over = true;
                            continue;
                        }
                        let entries = log.entries(&key);
                        own_dot_died |= (entries.iter()).any(|(_, dot)| {
                            Some(dot.writer) == self.current && !theirs.holds(*dot)
                        });
                        edit.forget_entries(entries);
                        outcome.mended += 1;
                        theirs
                            .live
                            .iter()
                            .for_each(|version| added.insert(version.dot));
                        let mended = edit.replace(&key, &Record::default(), theirs);
                        if self.observed || self.observes_conflicts {
                            outcome.changed.push(Changed::of_mended(&key, &mended));
                        }
                        joined.insert(key, mended);
                        continue;
                    }
                    read => read?,
                },
            };
            let mine = Side {
                record: &old,
                clock: &self.clock,
            };
            let remote = Side {
                record: &theirs,
                clock: context,
            };
            let mut new = Record::join(mine, remote, &writers);
            if new.is_ghost() && is_within(&new.seen, &self.clock, &writers) {
                new = Record::default();
            }
            for version in &theirs.live {
                let dot = version.dot;
                added.insert(dot);
                if is_planted(Mistake::ClockPerEntry) {
                    added.insert_range(dot.writer, 1..=dot.seq);
                }
                if is_planted(Mistake::ParentsInferred)
                    && let Some(descriptor) = writers.get(dot.writer)
                    && let Some(parent) = descriptor.parent
                {
                    added.insert_range(parent.writer, 1..=parent.seq);
                }
            }
            if new != old {
                own_dot_died |= old.live.iter().any(|version| {
                    Some(version.dot.writer) == self.current && !new.holds(version.dot)
                });
                new = edit.replace(&key, &old, new);
                if self.observed || self.observes_conflicts {
                    outcome.changed.push(describe_change(&key, &old, &new));
                }
            }
            joined.insert(key, new);
        }

        if is_planted(Mistake::ClockPerWriter) {
            for (writer, known) in context.iter() {
                if added.get(writer).is_some() {
                    added.set(writer, known.clone());
                }
            }
        }
        // The clock comes last: it must never promise a write that is not yet applied.
        let unclaimed = self.unclaimed_after(&added, context, reach);
        let mut growth = Growth::default();
        let mut floor = FloorGrowth::default();
        let claimed = self.claimed(reach, context, &added);
        if let Some((claimed, theirs)) = claimed {
            growth = self.grow_clock(&mut edit, &claimed, true);
            floor = self.floor_after_claim(&mut edit.batch, theirs);
            match self.forget_ghosts(&mut edit, &joined) {
                Ok(None) => {}
                Ok(damage) => outcome.damage = damage,
                Err(error) => {
                    self.take_back(growth);
                    return Err(error);
                }
            }
        } else if !is_planted(Mistake::NoHoles) {
            growth = self.grow_clock(&mut edit, &added, false);
        }
        if unclaimed != self.unclaimed {
            put_writer_set(&mut edit.batch, META_UNCLAIMED, &unclaimed);
        }
        if own_dot_died
            && !is_planted(Mistake::BaseNotKept)
            && let Some(writer) = self.current
        {
            // The log no longer ends with our last write, so the next open could not recover it.
            let base = self.clock.get(writer).map_or(0, Known::base);
            let ord = edit.ord(writer);
            put_base(&mut edit.batch, ord, base);
        }

        let Edit {
            mut batch,
            tally,
            ghosts,
            sooner,
            feed,
            ..
        } = edit;
        let progress = match reach {
            Reach::Heal { to: Some(to) } => self.progress.reached(&mut batch, context, to),
            Reach::Heal { to: None } => self.progress.clone(),
            Reach::Snapshot { .. } | Reach::Resumed { .. }
                if !is_planted(Mistake::ProgressKept) =>
            {
                self.progress.ended(&mut batch)
            }
            _ if batch.is_empty() || is_planted(Mistake::ProgressKept) => self.progress.clone(),
            _ => self.progress.ended(&mut batch),
        };
        if !batch.is_empty()
            && let Err(error) = self.commit(batch)
        {
            self.take_back(growth);
            return Err(error.into());
        }
        self.unclaimed = unclaimed;
        self.progress = progress;
        if !is_planted(Mistake::TallyNotUpdated) {
            self.tally_change = tally;
        }
        self.ghosts = self.ghosts.wrapping_add(ghosts);
        self.next_expiry.note(sooner);
        self.take_floor(floor);
        self.take_feed(feed);
        if outcome.mended > 0 {
            self.lose_tally();
        }
        Ok(outcome)
    }

    /// What becomes known at the end of everything of a snapshot, and the floor that does; `None` before.
    fn claimed<'a>(
        &self,
        reach: Reach<'a>,
        context: &'a Clock,
        added: &Clock,
    ) -> Option<(Cow<'a, Clock>, Option<&'a Clock>)> {
        match reach {
            Reach::Snapshot { floor, .. } => Some((Cow::Borrowed(context), floor)),
            Reach::Resumed { floor } if is_planted(Mistake::ResumedClaimsAll) => {
                Some((Cow::Borrowed(context), floor))
            }
            Reach::Resumed { floor } => {
                // Others have gone on with later snapshots, of which the front is missing here.
                let first = self.progress.clock();
                let floor = floor.filter(|floor| first.covers(floor));
                let mut claimed = Clock::clone(first);
                claimed.union(added);
                Some((Cow::Owned(claimed), floor))
            }
            _ => None,
        }
    }

    /// The next heal begins from the front.
    pub fn forget_progress(&mut self) -> Result<(), StateError> {
        let mut batch = Batch::default();
        let progress = self.progress.ended(&mut batch);
        if !batch.is_empty() {
            self.commit(batch)?;
        }
        self.progress = progress;
        Ok(())
    }

    /// How far a heal had come that was cut: before this key everything is here of whoever began it.
    pub fn healed_to(&self) -> Option<&Key> {
        self.progress.to()
    }

    /// The writers of whom half a batch may show after a commit.
    fn unclaimed_after(
        &self,
        added: &Clock,
        context: &Clock,
        reach: Reach<'_>,
    ) -> BTreeSet<WriterId> {
        let mut unclaimed = self.unclaimed.clone();
        let whole = match reach {
            Reach::Part if is_planted(Mistake::BatchInParts) => return unclaimed,
            Reach::Part | Reach::Heal { .. } => None,
            Reach::Resumed { .. } if is_planted(Mistake::ResumedIsWhole) => {
                return self.unclaimed_after_claim(context, &[]);
            }
            // Half a batch may come of two snapshots, or of one whose sender did not come to say so.
            Reach::Resumed { .. } => None,
            Reach::Writer(writer) => Some(writer),
            Reach::Snapshot { .. } if is_planted(Mistake::UnclaimedForgotten) => {
                return self.unclaimed_after_claim(context, &[]);
            }
            Reach::Snapshot { unclaimed, .. } => {
                return self.unclaimed_after_claim(context, unclaimed);
            }
        };
        let news = added.iter().filter(|(writer, known)| {
            Some(*writer) != whole && !self.clock.covers_writer(*writer, known)
        });
        unclaimed.extend(news.map(|(writer, _)| writer));
        unclaimed
    }

    fn unclaimed_after_claim(&self, context: &Clock, theirs: &[WriterId]) -> BTreeSet<WriterId> {
        let mut unclaimed = self.unclaimed.clone();
        unclaimed.retain(|writer| {
            let known = self.clock.get(*writer);
            let covered = known.is_none_or(|known| context.covers_writer(*writer, known));
            !covered || theirs.contains(writer)
        });
        // Half a batch of theirs becomes half a batch of ours, unless we had all that they have.
        unclaimed.extend(theirs.iter().filter(|writer| {
            let known = context.get(**writer);
            known.is_some_and(|known| !self.clock.covers_writer(**writer, known))
        }));
        unclaimed
    }

    /// Adds `news` to the clock, with the rows for it; answers what to take back if they cannot be
    /// committed.
    fn grow_clock(&mut self, edit: &mut Edit<'_>, news: &Clock, whole: bool) -> Growth {
        let known_already = |(writer, known): &(WriterId, &Known)| {
            self.clock.covers_writer(*writer, known) && !whole
        };
        let grown: Vec<_> = news.iter().filter(|entry| !known_already(entry)).collect();
        if grown.is_empty() {
            return Growth {
                added: Clock::default(),
                rows: None,
            };
        }
        let mut growth = Growth {
            added: Clock::default(),
            rows: Some(self.known_rows.clone()),
        };
        let clock = Arc::make_mut(&mut self.clock);
        for (writer, news) in grown {
            let ord = edit.ord(writer);
            // Rows that the base has passed go once no gap is left; a gap that stays costs nothing.
            let is_gapless = clock
                .get(writer)
                .is_some_and(|known| known.ahead_len() == 0);
            let has_passed_rows = (is_gapless || is_planted(Mistake::GapsWrittenAgain))
                && self.known_rows.has_blocks(ord);
            if whole && clock.covers_writer(writer, news) && !has_passed_rows {
                continue;
            }
            let fresh = match clock.get(writer) {
                Some(known) => news.difference(known),
                None => news.ranges().collect(),
            };
            for range in fresh {
                growth.added.insert_range(writer, range.clone());
                clock.insert_range(writer, range);
            }
            let Some(known) = clock.get(writer) else {
                continue;
            };
            if whole {
                self.known_rows.put_whole(&mut edit.batch, ord, known);
            } else {
                self.known_rows.put_added(&mut edit.batch, ord, known, news);
            }
        }
        growth
    }

    /// Makes the clock what it was before it grew.
    fn take_back(&mut self, growth: Growth) {
        if is_planted(Mistake::ClockNotTakenBack) {
            return;
        }
        Arc::make_mut(&mut self.clock).remove(&growth.added);
        if let Some(rows) = growth.rows {
            self.known_rows = rows;
        }
    }

    /// Drops the histories that the clock, grown by a claim, now covers. One that cannot be read stays,
    /// and is answered.
    fn forget_ghosts(
        &self,
        edit: &mut Edit<'_>,
        joined: &BTreeMap<Key, Record>,
    ) -> Result<Option<StateError>, StateError> {
        let mut damage = None;
        let mut ghosts: BTreeMap<Key, Record> = BTreeMap::new();
        if self.ghosts > 0 {
            let snapshot = self.storage.snapshot();
            for entry in snapshot.range(Table::Pending, Bound::Unbounded, Bound::Unbounded) {
                let (key, _) = entry?;
                if joined.contains_key(&key) {
                    continue;
                }
                match self.record(&key) {
                    Ok(ghost) if ghost.is_ghost() => {
                        ghosts.insert(key, ghost);
                    }
                    // It was replaced while it could not be read.
                    Ok(_) => {
                        edit.batch.remove(Table::Pending, key);
                        edit.ghosts = edit.ghosts.wrapping_sub(1);
                    }
                    Err(corrupt @ StateError::Corrupt { .. }) => damage = Some(corrupt),
                    Err(error) => return Err(error),
                }
            }
        }
        ghosts.extend(
            joined
                .iter()
                .map(|(key, record)| (key.clone(), record.clone())),
        );
        for (key, ghost) in ghosts {
            if ghost.is_ghost() && is_within(&ghost.seen, &self.clock, &self.writers) {
                edit.replace(&key, &ghost, Record::default());
            }
        }
        Ok(damage)
    }
}

/// What the clock in memory has grown by for a commit.
#[derive(Default)]
struct Growth {
    added: Clock,
    /// What the rows on disk were before, if they change.
    rows: Option<KnownRows>,
}
