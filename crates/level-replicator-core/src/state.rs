//! What a replica holds, and the only code that changes it.
//!
//! The rule that carries everything: a dot is in the clock only if its write is live here, or
//! something here has replaced it. So the clock grows by the live dots just applied, and by a
//! peer's whole clock once everything of that peer's snapshot has been applied; never per writer,
//! never per prefix, never before the data.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::{Clock, Dot, Known, Now, ReplicaId, Stamp, VersionVector, WriterId};
use crate::codec::{DecodeError, Reader, put_varint};
use crate::known_rows::{KnownRows, LoadError, put_base};
use crate::log;
use crate::mistake::{Mistake, is_planted};
use crate::record::{Content, Key, Op, Record, Side, Tally, Version, decode_row, encode_row};
use crate::storage::{Batch, Change, Snapshot, Storage, StorageError, Table};
use crate::writers::{Descriptor, DescriptorError, WriterOrd, Writers};

const META_REPLICA: &[u8] = b"replica";
const META_LAST_WRITER: &[u8] = b"last writer";
const META_TALLY: &[u8] = b"tally";
const META_UNCLAIMED: &[u8] = b"unclaimed";

/// Why a replica's state could not be read or changed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The engine failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Something on disk is damaged.
    #[error("{table:?} row of {} is damaged: {source}", key.escape_ascii())]
    Corrupt {
        /// The table.
        table: Table,
        /// The row's key.
        key: Bytes,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The log names a key whose record does not hold the write.
    #[error("log entry {dot} names key {}, whose record does not hold it", key.escape_ascii())]
    LogMismatch {
        /// The write.
        dot: Dot,
        /// The key that the entry names.
        key: Key,
    },
    /// A writer's descriptor contradicts what is known.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
}

/// One change of a key, for events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The key.
    pub key: Key,
    /// Whether it now has two or more concurrent values and had fewer.
    pub conflict: bool,
    /// Whether what readers see may have changed.
    pub visible: bool,
}

/// How much of a peer's snapshot a commit makes complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach<'a> {
    /// Some records: half of a batch may show.
    Part,
    /// All that one writer wrote, among others' writes.
    Writer(WriterId),
    /// Everything, from a peer that may itself hold half a batch of these writers.
    Snapshot(&'a [WriterId]),
}

/// What came of joining a peer's records with ours.
#[derive(Debug, Default)]
pub struct Joined {
    /// What changed, if it was asked for.
    pub changed: Vec<Changed>,
    /// A record of ours that could not be read. The peer's record of the key was passed over.
    pub damage: Option<StateError>,
}

/// What a local write did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// The dots of the operations that wrote something, in order; deletes of nothing have none.
    pub first: Option<Dot>,
    /// The last of them.
    pub last: Option<Dot>,
    /// What changed, if it was asked for.
    pub changed: Vec<Changed>,
}

/// Data, log, clock and writers of a replica.
pub struct State {
    storage: Arc<dyn Storage>,
    replica: ReplicaId,
    writers: Arc<Writers>,
    clock: Arc<Clock>,
    known_rows: KnownRows,
    current: Option<WriterId>,
    parent: Option<Dot>,
    /// Sum of all changes since the tally was last known as a whole.
    tally_change: Tally,
    tally_base: Option<Tally>,
    /// Writers of whom a write was applied that no finished claim has covered yet.
    unclaimed: BTreeSet<WriterId>,
    ghosts: u64,
    commits: u64,
    /// Whether changes are described in [`Written`] and [`State::apply`]: they cost copies.
    pub observed: bool,
}

impl State {
    /// Opens what the storage holds; an empty one becomes a new replica.
    ///
    /// The writer of the last process is *closed*: its last number is recovered once, written, and
    /// from then on it is a foreign writer. `random` names a new replica if the storage is empty.
    pub fn open(storage: Arc<dyn Storage>, random: [u8; 16]) -> Result<State, StateError> {
        let snapshot = storage.snapshot();
        let mut batch = Batch::default();

        let replica = match snapshot.get(Table::Meta, META_REPLICA)? {
            Some(row) => ReplicaId(decode_meta(META_REPLICA, row, |reader| reader.array())?),
            None => {
                batch.put(Table::Meta, META_REPLICA, Bytes::copy_from_slice(&random));
                ReplicaId(random)
            }
        };
        let writers = load_writers(&*snapshot)?;
        let (mut known_rows, mut clock) =
            KnownRows::load(&*snapshot, &writers).map_err(|error| match error {
                LoadError::Storage(error) => StateError::Storage(error),
                LoadError::Decode(source) => corrupt(Table::Clock, &[], source),
            })?;

        let parent = match snapshot.get(Table::Meta, META_LAST_WRITER)? {
            None => None,
            Some(row) => {
                let (ord, closed) = decode_meta(META_LAST_WRITER, row, |reader| {
                    Ok((reader.u32()?, reader.u8()? != 0))
                })?;
                let invalid = DecodeError::Invalid {
                    what: "last writer",
                };
                let descriptor = writers
                    .by_ord(ord)
                    .ok_or_else(|| corrupt(Table::Meta, META_LAST_WRITER, invalid))?;
                let writer = descriptor.writer;
                let reopened =
                    is_planted(Mistake::ClosedAgain) || is_planted(Mistake::WriterReused);
                if !closed || reopened {
                    let last = log::last_seq(&*snapshot, ord)?;
                    clock.insert_range(writer, 1..=last);
                    let known = clock.get(writer).cloned().unwrap_or_default();
                    known_rows.put_whole(&mut batch, ord, &known);
                    batch.put(Table::Meta, META_LAST_WRITER, last_writer_row(ord, true));
                }
                let base = clock.get(writer).map_or(0, Known::base);
                (base > 0).then_some(Dot { writer, seq: base })
            }
        };

        // A tally on disk is true only until the next write.
        let tally_base = match snapshot.get(Table::Meta, META_TALLY)? {
            Some(row) => {
                batch.remove(Table::Meta, META_TALLY);
                Tally::from_bytes(row).ok()
            }
            None if writers.is_empty() => Some(Tally::default()),
            None => None,
        };
        let mut unclaimed = match snapshot.get(Table::Meta, META_UNCLAIMED)? {
            Some(row) => decode_meta(META_UNCLAIMED, row, decode_writer_set)?,
            None => BTreeSet::new(),
        };
        if is_planted(Mistake::UnclaimedNotKept) {
            unclaimed.clear();
        }
        let mut ghosts = 0;
        for entry in snapshot.range(Table::Pending, Bound::Unbounded, Bound::Unbounded) {
            entry?;
            ghosts += 1;
        }

        if !batch.is_empty() {
            storage.commit(batch)?;
        }
        let mut current = None;
        if is_planted(Mistake::WriterReused) {
            current = parent.map(|last| last.writer);
        }
        Ok(State {
            storage,
            replica,
            writers: Arc::new(writers),
            clock: Arc::new(clock),
            known_rows,
            current,
            parent,
            tally_change: Tally::default(),
            tally_base,
            unclaimed,
            ghosts,
            commits: 0,
            observed: false,
        })
    }

    /// This replica's name.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// The writer of this open, once it has written.
    pub fn current_writer(&self) -> Option<WriterId> {
        self.current
    }

    /// The writes known here.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// All writers ever met.
    pub fn writers(&self) -> &Arc<Writers> {
        &self.writers
    }

    /// The engine.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Counts and digest over all keys; `None` until [`State::set_tally_base`] after an unclean end.
    pub fn tally(&self) -> Option<Tally> {
        let mut tally = self.tally_base?;
        tally.add(self.tally_change);
        Some(tally)
    }

    /// Whether some write applied here is not covered by a finished claim: half of a peer's batch may show.
    pub fn is_catching_up(&self) -> bool {
        !self.unclaimed.is_empty()
    }

    /// The writers of whom half a batch may show.
    pub fn unclaimed(&self) -> impl Iterator<Item = WriterId> + '_ {
        self.unclaimed.iter().copied()
    }

    /// How far those writers are known, to see whether a catch-up goes on.
    pub fn unclaimed_known(&self) -> Vec<(WriterId, u64, usize)> {
        let known = self.unclaimed.iter().filter_map(|writer| {
            let known = self.clock.get(*writer)?;
            Some((*writer, known.base(), known.ahead_len()))
        });
        known.collect()
    }

    /// Stops waiting for claims that nobody can make.
    pub fn give_up_claims(&mut self) -> Result<(), StateError> {
        let mut batch = Batch::default();
        put_unclaimed(&mut batch, &BTreeSet::new());
        self.commit(batch)?;
        if is_planted(Mistake::GapsClosedByTime) {
            for &writer in &self.unclaimed {
                let last = self
                    .clock
                    .get(writer)
                    .and_then(|known| known.ranges().last());
                let last = last.map_or(0, |range| *range.end());
                Arc::make_mut(&mut self.clock).insert_range(writer, 1..=last);
            }
        }
        self.unclaimed.clear();
        Ok(())
    }

    /// Number of commits since the open.
    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// Number of keys of which only a history is left.
    pub fn ghosts(&self) -> u64 {
        self.ghosts
    }

    /// The record of a key; empty if there is none.
    pub fn record(&self, key: &[u8]) -> Result<Record, StateError> {
        read_record(self.storage.get(Table::Data, key)?, key, &self.writers)
    }

    /// Writes operations as one. Of several operations on one key the last counts; a delete of a key
    /// without a value writes nothing. `random` names a new writer if this is the first write.
    pub fn write(&mut self, now: Now, ops: &[Op], random: u64) -> Result<Written, StateError> {
        let (writer, writers) = match self.current {
            Some(writer) => (writer, Arc::clone(&self.writers)),
            None => self.with_new_writer(WriterId(random))?,
        };
        let mut edit = Edit::new(&writers, self.tally_change);
        let mut written = Written::default();
        let mut seq = self.clock.get(writer).map_or(0, Known::base);

        for op in last_per_key(ops) {
            let key = op.key();
            let old = self.record(key)?;
            let content = match op {
                Op::Put(_, value) => Content::Put(value.clone()),
                Op::Delete(_) if old.puts().next().is_none() => continue,
                Op::Delete(_) => Content::Delete,
            };
            seq += 1;
            let dot = Dot { writer, seq };
            let stamp = Stamp::after(now, old.last_stamp());
            let version = Version {
                dot,
                stamp,
                content,
            };
            let mut new = old.superseded_by(version, &writers);
            if is_planted(Mistake::TombstoneDropped)
                && matches!(op, Op::Delete(_))
                && new.seen.is_empty()
            {
                new = Record::default();
            }
            edit.replace(key, &old, &new);
            written.first.get_or_insert(dot);
            written.last = Some(dot);
            if self.observed {
                written.changed.push(Changed {
                    key: key.clone(),
                    conflict: false,
                    visible: true,
                });
            }
        }
        if written.last.is_none() {
            return Ok(written);
        }

        if self.current.is_none() {
            edit.put_new_writer(writer);
        }
        let Edit {
            batch,
            tally,
            ghosts,
            ..
        } = edit;
        self.commit(batch)?;
        self.current = Some(writer);
        self.writers = writers;
        Arc::make_mut(&mut self.clock).insert_range(writer, 1..=seq);
        self.tally_change = tally;
        self.ghosts = self.ghosts.wrapping_add(ghosts);
        Ok(written)
    }

    /// Adds writers that a peer described; parents come before their children.
    pub fn describe(&mut self, descriptors: &[Descriptor]) -> Result<(), StateError> {
        let mut writers = Writers::clone(&self.writers);
        let mut batch = Batch::default();
        for descriptor in descriptors {
            let before = writers.len();
            let ord = writers.add(*descriptor)?;
            if writers.len() > before {
                batch.put(Table::Writers, ord_row(ord), descriptor.to_bytes());
            }
        }
        if !batch.is_empty() {
            self.commit(batch)?;
            self.writers = Arc::new(writers);
        }
        Ok(())
    }

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
        let mut edit = Edit::new(&writers, self.tally_change);
        let mut outcome = Joined::default();
        let mut added = Clock::default();
        let mut joined: BTreeMap<Key, Record> = BTreeMap::new();
        let mut own_dot_died = false;
        // Nobody else commits meanwhile, so one view serves all reads. In the order of keys, reads
        // and writes meet what the one before has brought near.
        let snapshot = self.storage.snapshot();
        records.sort_by(|(a, _), (b, _)| a.cmp(b));

        for (key, theirs) in records {
            let old = match joined.remove(&key) {
                Some(record) => record,
                None => match read_record(snapshot.get(Table::Data, &key)?, &key, &writers) {
                    Err(damage @ StateError::Corrupt { .. }) => {
                        reach = Reach::Part;
                        outcome.damage = Some(damage);
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
            let new = Record::join(mine, remote, &writers);
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
                edit.replace(&key, &old, &new);
                if self.observed {
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
        if let Reach::Snapshot(_) = reach {
            growth = self.grow_clock(&mut edit, context, true);
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
            put_unclaimed(&mut edit.batch, &unclaimed);
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
            batch,
            tally,
            ghosts,
            ..
        } = edit;
        if !batch.is_empty()
            && let Err(error) = self.commit(batch)
        {
            self.take_back(growth);
            return Err(error.into());
        }
        self.unclaimed = unclaimed;
        if !is_planted(Mistake::TallyNotUpdated) {
            self.tally_change = tally;
        }
        self.ghosts = self.ghosts.wrapping_add(ghosts);
        Ok(outcome)
    }

    /// Takes the tally of a snapshot that was current when `since` was [`State::tally_change`].
    pub fn set_tally_base(&mut self, scanned: Tally, since: Tally) {
        let mut base = scanned;
        base.subtract(since);
        self.tally_base = Some(base);
    }

    /// Sum of all changes since the open.
    pub fn tally_change(&self) -> Tally {
        self.tally_change
    }

    /// Writes down what would otherwise be recovered at the next open. Nothing is written afterwards.
    pub fn close(&mut self) -> Result<(), StateError> {
        let mut batch = Batch::default();
        if let Some(tally) = self.tally() {
            batch.put(Table::Meta, META_TALLY, tally.to_bytes());
        }
        if let Some(writer) = self.current
            && let Some(ord) = self.writers.ord(writer)
        {
            let known = self.clock.get(writer).cloned().unwrap_or_default();
            self.known_rows.put_whole(&mut batch, ord, &known);
            batch.put(Table::Meta, META_LAST_WRITER, last_writer_row(ord, true));
        }
        if !batch.is_empty() {
            self.commit(batch)?;
        }
        Ok(())
    }

    /// The table of writers with one that is minted now.
    fn with_new_writer(&self, writer: WriterId) -> Result<(WriterId, Arc<Writers>), StateError> {
        let mut writers = Writers::clone(&self.writers);
        writers.add(Descriptor {
            writer,
            replica: self.replica,
            parent: self.parent,
        })?;
        Ok((writer, Arc::new(writers)))
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
            Reach::Part => None,
            Reach::Writer(writer) => Some(writer),
            Reach::Snapshot(_) if is_planted(Mistake::UnclaimedForgotten) => {
                return self.unclaimed_after_claim(context, &[]);
            }
            Reach::Snapshot(theirs) => return self.unclaimed_after_claim(context, theirs),
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

    fn commit(&mut self, mut batch: Batch) -> Result<(), StorageError> {
        if is_planted(Mistake::LogApart) {
            batch = self.commit_apart(batch, |table| table != Table::Log)?;
        }
        if is_planted(Mistake::ClockApart) {
            batch = self.commit_apart(batch, |table| table == Table::Clock)?;
        }
        self.storage.commit(batch)?;
        self.commits += 1;
        Ok(())
    }

    /// Commits the changes of some tables by themselves and returns the others: the work of a
    /// [`Mistake`].
    fn commit_apart(
        &self,
        batch: Batch,
        is_first: impl Fn(Table) -> bool,
    ) -> Result<Batch, StorageError> {
        let (mut first, mut rest) = (Batch::default(), Batch::default());
        for Change { table, key, value } in batch.into_changes() {
            let part = if is_first(table) {
                &mut first
            } else {
                &mut rest
            };
            match value {
                Some(value) => part.put(table, key, value),
                None => part.remove(table, key),
            }
        }
        self.storage.commit(first)?;
        Ok(rest)
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
                    Ok(ghost) => {
                        ghosts.insert(key, ghost);
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
            if is_ghost(&ghost) && is_within(&ghost.seen, &self.clock, &self.writers) {
                edit.replace(&key, &ghost, &Record::default());
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

/// The rows that one commit changes, and what they do to the sums over all keys.
struct Edit<'a> {
    writers: &'a Writers,
    batch: Batch,
    tally: Tally,
    /// How many more ghosts there are; wraps around.
    ghosts: u64,
}

impl<'a> Edit<'a> {
    fn new(writers: &'a Writers, tally: Tally) -> Edit<'a> {
        Edit {
            writers,
            batch: Batch::default(),
            tally,
            ghosts: 0,
        }
    }

    /// The local number of a writer that has been described.
    fn ord(&self, writer: WriterId) -> WriterOrd {
        let ord = self.writers.ord(writer);
        ord.expect("records and clocks are checked for undescribed writers before they are applied")
    }

    /// Changes one key's record, and log and sums with it.
    fn replace(&mut self, key: &Key, old: &Record, new: &Record) {
        let writers = self.writers;
        let ord_of = |writer| {
            let ord = writers.ord(writer);
            ord.expect("records are checked for undescribed writers before they are applied")
        };
        log::follow(&mut self.batch, key, old, new, ord_of);
        if new.is_empty() {
            self.batch.remove(Table::Data, key.clone());
        } else {
            let row = encode_row(key, new, ord_of);
            self.batch.put(Table::Data, key.clone(), row);
        }
        if is_ghost(new) && !is_ghost(old) {
            self.batch.put(Table::Pending, key.clone(), Bytes::new());
            self.ghosts = self.ghosts.wrapping_add(1);
        }
        if is_ghost(old) && !is_ghost(new) {
            self.batch.remove(Table::Pending, key.clone());
            self.ghosts = self.ghosts.wrapping_sub(1);
        }
        self.tally.subtract(old.tally(key));
        self.tally.add(new.tally(key));
    }

    /// The rows of a writer that was minted for this commit.
    fn put_new_writer(&mut self, writer: WriterId) {
        let ord = self.ord(writer);
        if let Some(descriptor) = self.writers.by_ord(ord) {
            self.batch
                .put(Table::Writers, ord_row(ord), descriptor.to_bytes());
        }
        let row = last_writer_row(ord, false);
        self.batch.put(Table::Meta, META_LAST_WRITER, row);
    }
}

/// Sums up all records of a snapshot, which takes as long as reading everything; `None` if
/// `goes_on`, asked before each record, answers false.
pub fn scan_tally(
    snapshot: &dyn Snapshot,
    writers: &Writers,
    goes_on: impl Fn() -> bool,
) -> Result<Option<Tally>, StateError> {
    let mut tally = Tally::default();
    for entry in snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded) {
        if !goes_on() {
            return Ok(None);
        }
        let (key, row) = entry?;
        tally.add(read_record(Some(row), &key, writers)?.tally(&key));
    }
    Ok(Some(tally))
}

/// Decodes a row of the data table; no row is an empty record.
pub fn read_record(
    row: Option<Bytes>,
    key: &[u8],
    writers: &Writers,
) -> Result<Record, StateError> {
    let Some(row) = row else {
        return Ok(Record::default());
    };
    decode_row(key, row, writers).map_err(|source| corrupt(Table::Data, key, source))
}

fn corrupt(table: Table, key: &[u8], source: DecodeError) -> StateError {
    StateError::Corrupt {
        table,
        key: Bytes::copy_from_slice(key),
        source,
    }
}

fn load_writers(snapshot: &dyn Snapshot) -> Result<Writers, StateError> {
    let mut writers = Writers::default();
    for entry in snapshot.range(Table::Writers, Bound::Unbounded, Bound::Unbounded) {
        let (row, value) = entry?;
        let mut reader = Reader::new(value, "writer row");
        let descriptor = Descriptor::decode(&mut reader)
            .and_then(|descriptor| reader.finish().map(|()| descriptor))
            .map_err(|source| corrupt(Table::Writers, &row, source))?;
        let ord = writers.add(descriptor)?;
        if row != ord_row(ord) {
            let source = DecodeError::Invalid { what: "writer row" };
            return Err(corrupt(Table::Writers, &row, source));
        }
    }
    Ok(writers)
}

fn decode_meta<T>(
    key: &'static [u8],
    row: Bytes,
    decode: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, StateError> {
    let mut reader = Reader::new(row, "meta row");
    let value = decode(&mut reader).and_then(|value| reader.finish().map(|()| value));
    value.map_err(|source| corrupt(Table::Meta, key, source))
}

fn decode_writer_set(reader: &mut Reader) -> Result<BTreeSet<WriterId>, DecodeError> {
    let count = reader.count(usize::MAX, 8)?;
    (0..count).map(|_| Ok(WriterId(reader.u64()?))).collect()
}

fn put_unclaimed(batch: &mut Batch, unclaimed: &BTreeSet<WriterId>) {
    if unclaimed.is_empty() {
        batch.remove(Table::Meta, META_UNCLAIMED);
        return;
    }
    let mut row = Vec::with_capacity(2 + 8 * unclaimed.len());
    put_varint(&mut row, unclaimed.len() as u64);
    for writer in unclaimed {
        row.extend_from_slice(&writer.0.to_be_bytes());
    }
    batch.put(Table::Meta, META_UNCLAIMED, row);
}

fn ord_row(ord: WriterOrd) -> Bytes {
    Bytes::copy_from_slice(&ord.to_be_bytes())
}

fn last_writer_row(ord: WriterOrd, closed: bool) -> Bytes {
    let mut row = ord.to_be_bytes().to_vec();
    row.push(u8::from(closed));
    row.into()
}

/// The last operation on each key, in the order in which they were given.
fn last_per_key(ops: &[Op]) -> impl Iterator<Item = &Op> + '_ {
    let last: BTreeMap<&[u8], usize> = match ops {
        [] | [_] => BTreeMap::new(),
        _ => (ops.iter().enumerate())
            .map(|(index, op)| (&op.key()[..], index))
            .collect(),
    };
    let is_last =
        move |index: usize, op: &Op| last.get(&op.key()[..]).is_none_or(|&at| at == index);
    (ops.iter().enumerate()).filter_map(move |(index, op)| is_last(index, op).then_some(op))
}

fn is_ghost(record: &Record) -> bool {
    record.live.is_empty() && !record.seen.is_empty()
}

/// Whether a history, with all that its writers' parents imply, lies within a clock.
fn is_within(seen: &VersionVector, clock: &Clock, writers: &Writers) -> bool {
    seen.iter().all(|dot| {
        let mut next = Some(dot);
        while let Some(dot) = next {
            if clock.get(dot.writer).map_or(0, Known::base) < dot.seq {
                return false;
            }
            next = writers.get(dot.writer).and_then(|known| known.parent);
        }
        true
    })
}

fn describe_change(key: &Key, old: &Record, new: &Record) -> Changed {
    let count = |record: &Record| record.puts().count();
    Changed {
        key: key.clone(),
        conflict: count(new) >= 2 && count(old) < 2,
        visible: !(old.puts().map(|put| put.dot)).eq(new.puts().map(|put| put.dot)),
    }
}
