//! The change feed: what readers came to see, change by change, in the order of the commits.
//!
//! The rule: a row is written in the commit of its change, and a [`Cursor`] names the row it stands behind by number *and* by
//! the open that wrote it. So a cursor fits wherever exactly the rows before it were written, a copy included, and nowhere
//! else: who asks with another is told so instead of missing something.
//!
//! Rows have consecutive numbers. The oldest go when there are more than are to be kept.

use std::fmt;
use std::ops::Bound;
use std::str::FromStr;

use bytes::Bytes;

use super::edit::Edit;
use super::{ChangeKind, State, StateError, corrupt, decode_meta};
use crate::clock::{Dot, ReplicaId, WriterId};
use crate::codec::{DecodeError, Reader, flag, seal, unseal};
use crate::record::{Key, Record};
use crate::storage::{Batch, Snapshot, StorageError, Table};
use crate::writers::Writers;

const META_FEED: &[u8] = b"feed";

/// Rows that are removed at once when too many are kept.
const PRUNE_ROWS: u64 = 1_024;

/// Rows that are removed at once when none is kept any more.
const DROP_ROWS: usize = 10_000;

const KIND_MASK: u8 = 0b0000_0011;
const CONCURRENT: u8 = 0b0001_0000;
const LOCAL: u8 = 0b0010_0000;
const HAS_DOT: u8 = 0b0100_0000;

const ROW: &str = "change feed row";

/// A place in the change feed of a replica: behind one of its changes.
///
/// As text it is a number and a name, such as `1042-9f86d081884c7d65`, and `0` before everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Cursor {
    seq: u64,
    open: u64,
}

impl Cursor {
    /// Before the first change that the replica ever made.
    pub const START: Cursor = Cursor { seq: 0, open: 0 };

    /// Whether no number is missing behind a cursor.
    pub(super) fn are_consecutive(cursor: Cursor, changes: &[FeedChange]) -> bool {
        let numbers = changes.iter().map(|change| change.cursor.seq);
        numbers.eq(cursor.seq + 1..=cursor.seq + changes.len() as u64)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Cursor::START {
            return f.write_str("0");
        }
        write!(f, "{}-{:016x}", self.seq, self.open)
    }
}

/// A text is no cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no cursor: '0' is the first, others look like '1042-9f86d081884c7d65'")]
pub struct CursorError {
    text: String,
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Cursor, CursorError> {
        let parse = || {
            if text == "0" {
                return Some(Cursor::START);
            }
            let (seq, open) = text.split_once('-')?;
            let is_number = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
            let is_name = open.len() == 16 && open.bytes().all(|byte| byte.is_ascii_hexdigit());
            Some(Cursor {
                seq: is_number.then(|| seq.parse().ok())??,
                open: is_name.then(|| u64::from_str_radix(open, 16).ok())??,
            })
        };
        parse().ok_or_else(|| CursorError {
            text: text.chars().take(80).collect(),
        })
    }
}

/// A change of what readers see of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeedChange {
    /// Behind this change.
    pub cursor: Cursor,
    /// The key.
    pub key: Key,
    /// What became of it.
    pub kind: ChangeKind,
    /// Whether the write was made here, and not learned of from a peer.
    pub is_local: bool,
    /// Whether the key has concurrent writes since: this one did not replace all that stood before.
    pub is_concurrent: bool,
    /// The write that did it; `None` if that is not known any more.
    pub dot: Option<Dot>,
    /// The replica that wrote it, as far as that is known.
    pub origin: Option<ReplicaId>,
}

/// Where the feed ends and where it begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Feed {
    /// The name of this open.
    open: u64,
    /// The number of the next row.
    next: u64,
    bounds: Bounds,
}

/// What is kept of the feed.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// The number of the first row, and which open wrote the one before it.
    first: u64,
    before: u64,
    /// How many rows are kept.
    keep: u64,
}

/// The rows that one commit adds.
#[derive(Debug, Clone, Copy)]
pub(super) struct FeedEdit {
    open: u64,
    next: u64,
}

/// Why the feed cannot be read on from a cursor.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// It is not kept.
    #[error("no change feed is kept")]
    Off,
    /// It does not hold all that followed the cursor, or never held the cursor.
    #[error(
        "the change feed does not hold all that follows {cursor}; what it holds follows {oldest}"
    )]
    FellBehind {
        /// The cursor.
        cursor: Cursor,
        /// Behind this one all is kept.
        oldest: Cursor,
    },
    /// It could not be read.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<StorageError> for FeedError {
    fn from(error: StorageError) -> FeedError {
        FeedError::State(error.into())
    }
}

impl State {
    /// From now on notes what readers come to see, and keeps the last `keep` changes. `random` names this open.
    pub fn keep_changes(&mut self, keep: u64, random: u64) -> Result<(), StateError> {
        let keep = keep.max(1);
        let snapshot = self.storage.snapshot();
        let bounds = match bounds(&*snapshot)? {
            Some(bounds) => Bounds { keep, ..bounds },
            // What was written before is not in it.
            None => Bounds {
                first: 1,
                before: if self.writers.is_empty() { 0 } else { random },
                keep,
            },
        };
        let next = last_row(&*snapshot)?.map_or(bounds.first, |(seq, _)| seq + 1);
        let mut batch = Batch::default();
        bounds.put(&mut batch);
        self.commit(batch)?;
        self.feed = Some(Feed {
            open: random,
            next,
            bounds,
        });
        Ok(())
    }

    /// Goes on as it was: notes changes if they were kept. `random`, asked only then, names this open.
    pub fn go_on_with_changes(&mut self, random: impl FnOnce() -> u64) -> Result<(), StateError> {
        match bounds(&*self.storage.snapshot())? {
            Some(bounds) => self.keep_changes(bounds.keep, random()),
            None => Ok(()),
        }
    }

    /// Removes what was noted while changes were kept: the feed would have a gap.
    pub fn drop_changes(&mut self) -> Result<(), StateError> {
        let snapshot = self.storage.snapshot();
        if bounds(&*snapshot)?.is_none() {
            return Ok(());
        }
        let rows = snapshot.range(Table::Feed, Bound::Unbounded, Bound::Unbounded);
        let mut rows = rows.map(|row| row.map(|(key, _)| key));
        loop {
            let step: Result<Vec<Bytes>, StorageError> = rows.by_ref().take(DROP_ROWS).collect();
            let step = step?;
            let mut batch = Batch::default();
            let is_last = step.len() < DROP_ROWS;
            step.into_iter()
                .for_each(|row| batch.remove(Table::Feed, row));
            if is_last {
                batch.remove(Table::Meta, META_FEED);
            }
            self.commit(batch)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Behind the last change; `None` if changes are not kept.
    pub fn feed_end(&self) -> Option<u64> {
        self.feed.map(|feed| feed.next - 1)
    }

    /// Another process goes on from the same memory: what both note from now on must not look alike.
    pub fn rename_feed(&mut self, random: u64) {
        if let Some(feed) = &mut self.feed {
            feed.open = random;
        }
    }

    pub(super) fn feed_edit(&self) -> Option<FeedEdit> {
        self.feed
            .map(|Feed { open, next, .. }| FeedEdit { open, next })
    }

    /// A commit with these rows is done.
    pub(super) fn take_feed(&mut self, edit: Option<FeedEdit>) {
        if let (Some(feed), Some(edit)) = (&mut self.feed, edit) {
            feed.next = edit.next;
        }
        // What cannot be removed now is removed later.
        let _ = self.prune_feed();
    }

    fn prune_feed(&mut self) -> Result<(), StateError> {
        let Some(mut feed) = self.feed else {
            return Ok(());
        };
        let Bounds { first, keep, .. } = feed.bounds;
        if feed.next - first < keep.saturating_add(PRUNE_ROWS) {
            return Ok(());
        }
        let mut batch = Batch::default();
        let last = first + PRUNE_ROWS - 1;
        feed.bounds.before = match self.storage.get(Table::Feed, &row_key(last))? {
            Some(row) => writer_of_row(last, &row)?,
            // Whoever stands there is told that it fell behind.
            None => feed.open,
        };
        for seq in first..=last {
            batch.remove(Table::Feed, row_key(seq));
        }
        feed.bounds.first = last + 1;
        feed.bounds.put(&mut batch);
        self.commit(batch)?;
        self.feed = Some(feed);
        Ok(())
    }
}

impl Bounds {
    /// Behind this one all is kept.
    fn oldest(&self) -> Cursor {
        Cursor {
            seq: self.first - 1,
            open: self.before,
        }
    }

    fn put(&self, batch: &mut Batch) {
        let mut row = Vec::with_capacity(28);
        for number in [self.first, self.before, self.keep] {
            row.extend_from_slice(&number.to_be_bytes());
        }
        seal(META_FEED, &mut row);
        batch.put(Table::Meta, META_FEED, row);
    }
}

impl Edit<'_> {
    /// Adds a row to the feed if readers come to see something else.
    pub(super) fn note_change(&mut self, key: &Key, old: &Record, new: &Record) {
        let Some(feed) = &mut self.feed else { return };
        let dots = |record: &Record| -> Vec<Dot> { record.puts().map(|put| put.dot).collect() };
        if dots(old) == dots(new) {
            return;
        }
        let news = (new.live.iter()).filter(|version| !old.holds(version.dot));
        let dot = news
            .max_by_key(|version| version.stamp)
            .map(|version| version.dot);
        let kind = match new.puts().next() {
            Some(_) => ChangeKind::Put,
            None if self.expires => ChangeKind::Expired,
            None => ChangeKind::Delete,
        };
        let is_local = dot.is_some_and(|dot| Some(dot.writer) == self.writer);
        let mut row = Vec::with_capacity(8 + 1 + 16 + key.len() + 4);
        row.extend_from_slice(&feed.open.to_be_bytes());
        row.push(
            kind_code(kind)
                | flag(new.live.len() >= 2, CONCURRENT)
                | flag(is_local, LOCAL)
                | flag(dot.is_some(), HAS_DOT),
        );
        if let Some(dot) = dot {
            row.extend_from_slice(&dot.writer.0.to_be_bytes());
            row.extend_from_slice(&dot.seq.to_be_bytes());
        }
        row.extend_from_slice(key);
        let at = row_key(feed.next);
        seal(&at, &mut row);
        self.batch.put(Table::Feed, at, row);
        feed.next += 1;
    }
}

/// Some changes that follow a cursor, at most so many, in the order of their commits. At the end of the feed there are none.
pub fn read_feed(
    snapshot: &dyn Snapshot,
    writers: &Writers,
    cursor: Cursor,
    limit: usize,
) -> Result<Vec<FeedChange>, FeedError> {
    let start = follow(snapshot, cursor)?;
    let start = row_key(start);
    let rows = snapshot.range(Table::Feed, Bound::Included(&start), Bound::Unbounded);
    let changes = rows.take(limit).map(|row| {
        let (at, row) = row?;
        Ok(decode(&at, row, writers)?)
    });
    changes.collect()
}

/// Behind this one everything is kept.
pub(super) fn oldest(snapshot: &dyn Snapshot) -> Result<Cursor, FeedError> {
    Ok(bounds(snapshot)?.ok_or(FeedError::Off)?.oldest())
}

/// Behind the last change of a snapshot.
pub fn feed_cursor(snapshot: &dyn Snapshot) -> Result<Cursor, FeedError> {
    let bounds = bounds(snapshot)?.ok_or(FeedError::Off)?;
    let last = last_row(snapshot)?.map(|(seq, open)| Cursor { seq, open });
    Ok(last.unwrap_or(bounds.oldest()))
}

/// The number of the row that follows a cursor.
fn follow(snapshot: &dyn Snapshot, cursor: Cursor) -> Result<u64, FeedError> {
    let bounds = bounds(snapshot)?.ok_or(FeedError::Off)?;
    let oldest = bounds.oldest();
    if cursor == oldest {
        return Ok(bounds.first);
    }
    if cursor.seq >= bounds.first
        && let Some(row) = snapshot.get(Table::Feed, &row_key(cursor.seq))?
        && writer_of_row(cursor.seq, &row)? == cursor.open
    {
        return Ok(cursor.seq + 1);
    }
    Err(FeedError::FellBehind { cursor, oldest })
}

/// What is kept; `None` if no feed is.
fn bounds(snapshot: &dyn Snapshot) -> Result<Option<Bounds>, StateError> {
    let Some(row) = snapshot.get(Table::Meta, META_FEED)? else {
        return Ok(None);
    };
    let row = unseal(META_FEED, &row, "meta row")
        .map_err(|source| corrupt(Table::Meta, META_FEED, source))?;
    let bounds = decode_meta(META_FEED, row, |reader| {
        let bounds = Bounds {
            first: reader.u64()?,
            before: reader.u64()?,
            keep: reader.u64()?,
        };
        let invalid = DecodeError::Invalid { what: "meta row" };
        (bounds.first > 0).then_some(bounds).ok_or(invalid)
    })?;
    Ok(Some(bounds))
}

fn last_row(snapshot: &dyn Snapshot) -> Result<Option<(u64, u64)>, StateError> {
    let mut rows = snapshot.range(Table::Feed, Bound::Unbounded, Bound::Unbounded);
    let Some(row) = rows.next_back() else {
        return Ok(None);
    };
    let (at, row) = row?;
    let seq = seq_of(&at)?;
    Ok(Some((seq, writer_of_row(seq, &row)?)))
}

fn row_key(seq: u64) -> Bytes {
    Bytes::copy_from_slice(&seq.to_be_bytes())
}

fn seq_of(at: &Bytes) -> Result<u64, StateError> {
    let bytes = <[u8; 8]>::try_from(&at[..]).map_err(|_| {
        let source = DecodeError::Invalid { what: ROW };
        corrupt(Table::Feed, at, source)
    })?;
    Ok(u64::from_be_bytes(bytes))
}

/// Which open wrote a row.
fn writer_of_row(seq: u64, row: &Bytes) -> Result<u64, StateError> {
    let at = row_key(seq);
    let open = unseal(&at, row, ROW).and_then(|row| Reader::new(row, ROW).u64());
    open.map_err(|source| corrupt(Table::Feed, &at, source))
}

fn decode(at: &Bytes, row: Bytes, writers: &Writers) -> Result<FeedChange, StateError> {
    let seq = seq_of(at)?;
    let decode = || {
        let mut reader = Reader::new(unseal(at, &row, ROW)?, ROW);
        let open = reader.u64()?;
        let flags = reader.u8()?;
        let dot = match flags & HAS_DOT {
            0 => None,
            _ => Some(Dot {
                writer: WriterId(reader.u64()?),
                seq: reader.u64()?,
            }),
        };
        let key = reader.bytes(reader.remaining())?;
        let descriptor = dot.and_then(|dot| writers.get(dot.writer));
        Ok(FeedChange {
            cursor: Cursor { seq, open },
            key,
            kind: kind_of_code(flags & KIND_MASK)?,
            is_local: flags & LOCAL != 0,
            is_concurrent: flags & CONCURRENT != 0,
            dot,
            origin: descriptor.map(|descriptor| descriptor.replica),
        })
    };
    decode().map_err(|source| corrupt(Table::Feed, at, source))
}

fn kind_code(kind: ChangeKind) -> u8 {
    match kind {
        ChangeKind::Put => 0,
        ChangeKind::Delete => 1,
        ChangeKind::Expired => 2,
    }
}

fn kind_of_code(code: u8) -> Result<ChangeKind, DecodeError> {
    match code {
        0 => Ok(ChangeKind::Put),
        1 => Ok(ChangeKind::Delete),
        2 => Ok(ChangeKind::Expired),
        _ => Err(DecodeError::Invalid { what: ROW }),
    }
}
