//! What a replica holds, and the only code that changes it.
//!
//! The rule that carries everything: a dot is in the clock only if its write is live here, or
//! something here has replaced it. So the clock grows by the live dots just applied, and by a
//! peer's whole clock once everything of that peer's snapshot has been applied; never per writer,
//! never per prefix, never before the data.

mod cluster;
mod damage;
mod edit;
mod expiry;
mod feed;
mod floor;
mod join;
mod progress;
mod promotion;
mod reissue;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use self::cluster::Life;
use self::edit::Edit;
use self::expiry::NextExpiry;
pub use self::expiry::{Expired, Whose};
use self::feed::Feed;
pub use self::feed::{Cursor, CursorError, FeedChange, FeedError, feed_cursor, read_feed};
use self::floor::{Floors, Reclaim};
use self::progress::Progress;
pub use self::verify::{Finding, Verification, VerifyView};
use crate::clock::{Clock, Dot, Known, Now, ReplicaId, Stamp, VersionVector, WriterId};
use crate::codec::{DecodeError, Reader, put_varint, seal, unseal};
use crate::known_rows::{KnownRows, LoadError};
use crate::log;
use crate::members::{Epoch, Members, digest};
use crate::mistake::{Mistake, is_planted};
use crate::record::{Content, Key, Op, Record, Tally, Version, decode_row};
use crate::storage::{Batch, Change, Snapshot, Storage, StorageError, Table};
use crate::writers::{Descriptor, DescriptorError, WriterOrd, Writers};

const META_REPLICA: &[u8] = b"replica";
const META_LAST_WRITER: &[u8] = b"last writer";
const META_TALLY: &[u8] = b"tally";
const META_UNCLAIMED: &[u8] = b"unclaimed";
const META_RECLAIM: &[u8] = b"reclaim";
const META_PROMOTIONS: &[u8] = b"promotions";
const META_COLLIDED: &[u8] = b"collided";

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
    /// What became of the key.
    pub kind: ChangeKind,
}

/// What became of a key that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It has a value, a new one or another one.
    Put,
    /// Its value was deleted.
    Delete,
    /// Its value had expired, and this replica has deleted it. Others learn of an ordinary delete.
    Expired,
}

/// How much of a peer's snapshot a commit makes complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach<'a> {
    /// Some records: half of a batch may show.
    Part,
    /// Some records of a heal, in which the peer's snapshot has been joined up to a key, if it is told.
    Heal {
        /// Everything before this key.
        to: Option<&'a Key>,
    },
    /// The last records of a heal that went on where another was cut: everything is here of what was known
    /// to whoever began.
    Resumed {
        /// The floor of the sender.
        floor: Option<&'a Clock>,
    },
    /// All that one writer wrote, among others' writes.
    Writer(WriterId),
    /// Everything of a snapshot.
    Snapshot {
        /// The writers of whom its sender may itself hold half a batch.
        unclaimed: &'a [WriterId],
        /// Its sender's floor, if it comes after a heal.
        floor: Option<&'a Clock>,
    },
}

/// What came of joining a peer's records with ours.
#[derive(Debug, Default)]
pub struct Joined {
    /// What changed, if it was asked for.
    pub changed: Vec<Changed>,
    /// A record of ours that could not be read.
    pub damage: Option<StateError>,
    /// How many such records were replaced by the peer's.
    pub mended: u64,
    /// The peer's record of such a key was passed over.
    pub passed_over: bool,
}

/// The moment at which the snapshot of a scan was taken.
#[derive(Debug, Clone, Copy)]
pub struct ScanStart {
    since: Tally,
    losses: u64,
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
    /// How often the tally was lost since the open.
    tally_losses: u64,
    /// Writers of whom a write was applied that no finished claim has covered yet.
    unclaimed: BTreeSet<WriterId>,
    /// Ended writers whose name another process uses too, until all that is live of them is written again.
    collided: BTreeSet<WriterId>,
    ghosts: u64,
    /// What everybody knows (`G` of docs/causality.md): nothing in it has a log entry.
    floor: Arc<Clock>,
    /// What heals that were begun will make known (`F`): until it is covered, what is here is not whole.
    wanted: Arc<Clock>,
    /// Both together: writes in it need no log entry.
    unlogged: Arc<Clock>,
    /// How far a heal had come that was cut.
    progress: Progress,
    reclaim: Reclaim,
    /// When the next values expire.
    next_expiry: NextExpiry,
    /// The row of the others' values that expire at which the last look ended, if more were due.
    looked_to: Option<Bytes>,
    members: Members,
    lives: BTreeMap<ReplicaId, Life>,
    epoch: Epoch,
    cluster_digest: u64,
    /// What was damaged at the open, if anything: then the clock was rebuilt from the data.
    rebuilt: Option<String>,
    promotions: u64,
    commits: u64,
    /// What is noted for programs that follow changes, if they are kept.
    feed: Option<Feed>,
    /// Whether changes are described in [`Written`] and [`State::apply`]: they cost copies.
    pub observed: bool,
    /// Whether changes that come from peers are described, for the conflicts among them.
    pub observes_conflicts: bool,
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
        // What is known can be rebuilt from the data; so damage in these rows is no end.
        let mut rebuilt: Option<String> = None;
        let mut note = |table: Table, source: DecodeError| {
            rebuilt.get_or_insert_with(|| format!("a row of the {table:?} table: {source}"));
        };
        let (mut known_rows, mut clock) = match KnownRows::load(&*snapshot, &writers) {
            Ok(loaded) => loaded,
            Err(LoadError::Storage(error)) => return Err(error.into()),
            Err(LoadError::Decode(source)) => {
                note(Table::Clock, source);
                Default::default()
            }
        };
        let floors = floor::load(&*snapshot);
        let Floors {
            floor,
            wanted,
            progress,
        } = match floors {
            Ok(loaded) => loaded,
            Err(LoadError::Storage(error)) => return Err(error.into()),
            Err(LoadError::Decode(source)) => {
                note(Table::Floor, source);
                Default::default()
            }
        };
        // Its rows are written by a peer's word.
        let is_described = |(writer, _)| writers.ord(writer).is_some();
        let may_go_on = progress.clock().iter().all(is_described);
        let progress = if may_go_on {
            progress
        } else {
            Progress::default()
        };
        let (members, lives) = cluster::load_members(&*snapshot)?;
        let epoch = cluster::load_epoch(&*snapshot)?;

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
                    // What is below the floor, or wanted, has no log entries.
                    let last_in = |clock: &Clock| clock.get(writer).map_or(0, Known::last);
                    let below = last_in(&floor).max(last_in(&wanted));
                    let last = log::last_seq(&*snapshot, ord)?.max(below);
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
        let collided = match snapshot.get(Table::Meta, META_COLLIDED)? {
            Some(row) => decode_meta(META_COLLIDED, row, decode_writer_set)?,
            None => BTreeSet::new(),
        };
        let promotions = match snapshot.get(Table::Meta, META_PROMOTIONS)? {
            Some(row) => decode_meta(META_PROMOTIONS, row, |reader| reader.u64())?,
            None => 0,
        };
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
        let mut unlogged = floor.clone();
        unlogged.union(&wanted);
        let reclaims = snapshot.get(Table::Meta, META_RECLAIM)?.is_some();
        let next_expiry = NextExpiry::load(&*snapshot)?;
        let mut state = State {
            storage,
            replica,
            writers: Arc::new(writers),
            clock: Arc::new(clock),
            known_rows,
            current,
            parent,
            tally_change: Tally::default(),
            tally_base,
            tally_losses: 0,
            unclaimed,
            collided,
            ghosts,
            reclaim: Reclaim::new(&floor, reclaims),
            floor: Arc::new(floor),
            wanted: Arc::new(wanted),
            unlogged: Arc::new(unlogged),
            progress,
            next_expiry,
            looked_to: None,
            lives,
            cluster_digest: digest(&members, &epoch),
            members,
            epoch,
            rebuilt: None,
            promotions,
            commits: 0,
            feed: None,
            observed: false,
            observes_conflicts: false,
        };
        if rebuilt.is_some() {
            state.promote()?;
            state.rebuilt = rebuilt;
        }
        state.take_part()?;
        Ok(state)
    }

    /// What was damaged at the open, if anything: then what is known was rebuilt from the data.
    pub fn rebuilt(&self) -> Option<&str> {
        self.rebuilt.as_deref()
    }

    /// How often this replica has gone on with what it had, because nobody could heal it.
    pub fn promotions(&self) -> u64 {
        self.promotions
    }

    /// What everybody knows, as far as it is known here that they do: the *floor*.
    pub fn floor(&self) -> &Arc<Clock> {
        &self.floor
    }

    /// What heals that were begun will make known. Until then only those who know all of it can be
    /// served from here.
    pub fn wanted(&self) -> &Arc<Clock> {
        &self.wanted
    }

    /// What a peer must know while a heal is unfinished, before it may give us anything or be given
    /// anything: all that the heal is to make known, and all of whoever wrote something that came
    /// before it was cut. Empty if none is unfinished.
    ///
    /// The histories of what came were reclaimed where it came from, so nothing here tells that it
    /// replaced what a peer may still hold who does not know it.
    pub fn unfinished(&self) -> Arc<Clock> {
        if self.wanted.is_empty() || is_planted(Mistake::HalfHealedByAnybody) {
            return Arc::clone(&self.wanted);
        }
        let mut unfinished = Clock::clone(&self.wanted);
        unfinished.union(&self.taken());
        Arc::new(unfinished)
    }

    /// Whether all that came before a heal was cut is known to a peer that knows `context`.
    pub fn may_take_from(&self, context: &Clock) -> bool {
        self.wanted.is_empty()
            || is_planted(Mistake::HalfHealedByAnybody)
            || context.covers(&self.taken())
    }

    /// What is known of the writers of whom something came that no claim has covered yet.
    fn taken(&self) -> Clock {
        let mut taken = Clock::default();
        for &writer in &self.unclaimed {
            if let Some(known) = self.clock.get(writer) {
                taken.set(writer, known.clone());
            }
        }
        taken
    }

    /// Whether what is here is whole: no heal is unfinished, and no key has a history without a write.
    pub fn is_whole(&self) -> bool {
        self.wanted.is_empty() && self.ghosts == 0
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

    /// Counts and digest over all keys; `None` until [`State::end_scan`] after an unclean end.
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
        put_writer_set(&mut batch, META_UNCLAIMED, &BTreeSet::new());
        // What was wanted may have become known piece by piece, without a claim.
        let floor = self.floor_after_claim(&mut batch, None);
        self.commit(batch)?;
        self.take_floor(floor);
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
            None => self.with_new_writer(random)?,
        };
        let mut edit = Edit::new(self, &writers).by(writer);
        let mut written = Written::default();
        let mut seq = self.clock.get(writer).map_or(0, Known::base);
        let mut log = None;
        let nothing = Record::default();

        for op in last_per_key(ops) {
            let key = op.key();
            let (old, readable) = match self.record(key) {
                Ok(old) => (old, true),
                // What was there cannot be read, so the write replaces all that is known.
                Err(damage @ StateError::Corrupt { .. }) => {
                    let log = match &mut log {
                        Some(log) => log,
                        None => {
                            let snapshot = self.storage.snapshot();
                            log.insert(self.scan_log(&*snapshot, ops.iter().map(Op::key))?)
                        }
                    };
                    let old = self.unreadable(key, log).ok_or(damage)?;
                    edit.forget_entries(log.entries(key));
                    (old, false)
                }
                Err(error) => return Err(error),
            };
            let content = match op {
                Op::Put(_, value) => Content::Put(value.clone()),
                Op::PutUntil(_, value, until) => Content::PutUntil(value.clone(), *until),
                Op::Delete(_) if readable && old.puts().next().is_none() => continue,
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
            let stored = if readable { &old } else { &nothing };
            edit.replace(key, stored, new);
            written.first.get_or_insert(dot);
            written.last = Some(dot);
            if self.observed {
                written.changed.push(Changed {
                    key: key.clone(),
                    conflict: false,
                    visible: true,
                    kind: match op {
                        Op::Put(..) | Op::PutUntil(..) => ChangeKind::Put,
                        Op::Delete(_) => ChangeKind::Delete,
                    },
                });
            }
        }
        if written.last.is_none() {
            return Ok(written);
        }

        self.commit_own(edit, writer, seq)?;
        self.writers = writers;
        if log.is_some() {
            self.lose_tally();
        }
        Ok(written)
    }

    /// Commits writes of the current writer, which is minted by them if there was none.
    fn commit_own(
        &mut self,
        mut edit: Edit<'_>,
        writer: WriterId,
        seq: u64,
    ) -> Result<(), StorageError> {
        if self.current.is_none() {
            edit.put_new_writer(writer);
        }
        self.commit_edit(edit)?;
        self.current = Some(writer);
        Arc::make_mut(&mut self.clock).insert_range(writer, 1..=seq);
        Ok(())
    }

    fn commit_edit(&mut self, edit: Edit<'_>) -> Result<(), StorageError> {
        let Edit {
            batch,
            tally,
            ghosts,
            sooner,
            feed,
            ..
        } = edit;
        self.commit(batch)?;
        self.take_feed(feed);
        self.tally_change = tally;
        self.ghosts = self.ghosts.wrapping_add(ghosts);
        self.next_expiry.note(sooner);
        Ok(())
    }

    /// Adds writers that a peer described; parents come before their children.
    pub fn describe(&mut self, descriptors: &[Descriptor]) -> Result<(), StateError> {
        let mut writers = Writers::clone(&self.writers);
        let mut batch = Batch::default();
        for descriptor in descriptors {
            let before = writers.len();
            let ord = writers.add(*descriptor)?;
            if writers.len() > before {
                let (row, value) = writer_row(ord, descriptor);
                batch.put(Table::Writers, row, value);
            }
        }
        if !batch.is_empty() {
            self.commit(batch)?;
            self.writers = Arc::new(writers);
        }
        Ok(())
    }

    /// What to remember of the moment at which a snapshot is taken, to sum it up with [`scan_tally`].
    pub fn begin_scan(&self) -> ScanStart {
        ScanStart {
            since: self.tally_change,
            losses: self.tally_losses,
        }
    }

    /// Takes the sums over a snapshot, unless they have been lost again since it was taken.
    pub fn end_scan(&mut self, scanned: Tally, start: ScanStart) {
        if start.losses == self.tally_losses {
            let mut base = scanned;
            base.subtract(start.since);
            self.tally_base = Some(base);
        }
    }

    /// The sums are not known any more: something was changed that could not be read.
    fn lose_tally(&mut self) {
        self.tally_base = None;
        self.tally_losses += 1;
    }

    /// Writes down what would otherwise be recovered at the next open. Nothing is written afterwards.
    pub fn close(&mut self) -> Result<(), StateError> {
        let mut batch = Batch::default();
        if let Some(tally) = self.tally() {
            batch.put(Table::Meta, META_TALLY, tally.to_bytes());
        }
        self.put_lives(&mut batch);
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
    fn with_new_writer(&self, random: u64) -> Result<(WriterId, Arc<Writers>), StateError> {
        let writer = self.new_name(random);
        let mut writers = Writers::clone(&self.writers);
        writers.add(Descriptor {
            writer,
            replica: self.replica,
            parent: self.parent,
        })?;
        Ok((writer, Arc::new(writers)))
    }

    /// A name for a new writer. A copy of this process's memory has its source of names too: what it
    /// has used, as far as that was heard of, is passed over. Its writes would be taken for ours.
    fn new_name(&self, random: u64) -> WriterId {
        let mut names = fastrand::Rng::with_seed(random);
        let mut writer = WriterId(random);
        while self.writers.ord(writer).is_some() {
            writer = WriterId(names.u64(..));
        }
        writer
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
    for entry in snapshot.range(Table::Log, Bound::Unbounded, Bound::Unbounded) {
        if !goes_on() {
            return Ok(None);
        }
        entry?;
        tally.log += 1;
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
        let decode = |value: &Bytes| {
            let mut reader = Reader::new(unseal(&row, value, "writer row")?, "writer row");
            let descriptor = Descriptor::decode(&mut reader)?;
            reader.finish().map(|()| descriptor)
        };
        let descriptor = decode(&value).map_err(|source| corrupt(Table::Writers, &row, source))?;
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

fn put_writer_set(batch: &mut Batch, key: &'static [u8], writers: &BTreeSet<WriterId>) {
    if writers.is_empty() {
        batch.remove(Table::Meta, key);
        return;
    }
    let mut row = Vec::with_capacity(2 + 8 * writers.len());
    put_varint(&mut row, writers.len() as u64);
    for writer in writers {
        row.extend_from_slice(&writer.0.to_be_bytes());
    }
    batch.put(Table::Meta, key, row);
}

fn writer_row(ord: WriterOrd, descriptor: &Descriptor) -> (Bytes, Bytes) {
    let row = ord_row(ord);
    let mut value = Vec::with_capacity(44);
    descriptor.encode(&mut value);
    seal(&row, &mut value);
    (row, value.into())
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

impl Changed {
    /// A record that could not be read was replaced.
    fn of_mended(key: &Key, new: &Record) -> Changed {
        Changed {
            key: key.clone(),
            conflict: new.puts().count() >= 2,
            visible: true,
            kind: kind_of(new),
        }
    }
}

fn kind_of(new: &Record) -> ChangeKind {
    match new.puts().next() {
        Some(_) => ChangeKind::Put,
        None => ChangeKind::Delete,
    }
}

fn describe_change(key: &Key, old: &Record, new: &Record) -> Changed {
    let count = |record: &Record| record.puts().count();
    Changed {
        key: key.clone(),
        conflict: count(new) >= 2 && count(old) < 2,
        visible: !(old.puts().map(|put| put.dot)).eq(new.puts().map(|put| put.dot)),
        kind: kind_of(new),
    }
}
