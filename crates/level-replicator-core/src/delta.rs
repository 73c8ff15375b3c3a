//! What a peer lacks: the live records of a snapshot that its clock does not cover.
//!
//! The rule: everything comes from one snapshot, never from the live tables, or the claim that
//! follows would promise writes that replaced others half-way.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::clock::{Clock, Dot, WriterId};
use crate::limits::{FRAME_PAYLOAD_MAX, RECORDS_FRAME_TARGET};
use crate::log;
use crate::mistake::{Mistake, is_planted};
use crate::packing::RecordsEncoder;
use crate::record::{Key, Record, covers};
use crate::state::{StateError, read_record};
use crate::storage::{Entries, Snapshot, Table};
use crate::writers::Writers;

/// A walk over the log of a snapshot, in the order of dots, that finds each missing record once.
pub struct Delta {
    snapshot: Arc<dyn Snapshot>,
    writers: Arc<Writers>,
    /// What the peer knew when the walk began.
    theirs: Arc<Clock>,
    /// Only this writer's dots are walked over.
    only: Option<WriterId>,
    ranges: VecDeque<(WriterId, RangeInclusive<u64>)>,
    entries: Option<(WriterId, Entries)>,
    /// Keys whose records the peer asked for, whatever it knows.
    wanted: VecDeque<Key>,
    /// A record that did not fit the frame before.
    held_over: Option<(Key, Record)>,
    /// Dots in the ranges that are not live, or were not visited yet.
    unvisited: u64,
    /// Something could not be read, so no claim may follow.
    damaged: Option<StateError>,
}

/// One step of a [`Delta`].
#[derive(Debug)]
pub struct Piece {
    /// The packed records.
    pub payload: Vec<u8>,
    /// How many they are.
    pub records: u64,
}

impl Delta {
    /// Walks over the dots that `ours` has and `theirs` lacks; if `only` is given, over that
    /// writer's.
    pub fn new(
        snapshot: Arc<dyn Snapshot>,
        writers: Arc<Writers>,
        ours: &Clock,
        theirs: Arc<Clock>,
        only: Option<WriterId>,
    ) -> Delta {
        let mut ranges = ours.difference(&theirs);
        ranges.retain(|(writer, _)| only.is_none_or(|only| *writer == only));
        let unvisited = ranges.iter().fold(0u64, |sum, (_, range)| {
            sum.saturating_add(range.end() - range.start())
                .saturating_add(1)
        });
        Delta {
            unvisited,
            snapshot,
            writers,
            theirs,
            only,
            ranges: ranges.into(),
            entries: None,
            wanted: VecDeque::new(),
            held_over: None,
            damaged: None,
        }
    }

    /// Sends the records of these keys too, whatever the peer knows.
    pub fn want(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.wanted.extend(keys);
    }

    /// The next records, about as many as fit a frame, or one that is larger; `None` at the end.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, StateError> {
        let mut encoder = RecordsEncoder::default();
        let mut records = 0;
        while encoder.len() < RECORDS_FRAME_TARGET && encoder.has_room_for_key() {
            let next = match self.held_over.take() {
                Some(record) => Some(record),
                None => self.next_record()?,
            };
            let Some((key, record)) = next else {
                break;
            };
            if !encoder.is_empty() && encoder.len() + size_hint(&key, &record) > FRAME_PAYLOAD_MAX {
                self.held_over = Some((key, record));
                break;
            }
            encoder.push(&key, &record);
            records += 1;
        }
        if encoder.is_empty() {
            return Ok(None);
        }
        Ok(Some(Piece {
            payload: encoder.finish(),
            records,
        }))
    }

    /// At the end: whether every dot of the ranges was live, so that nothing in them has been
    /// replaced by a write that may be missing there.
    pub fn is_gapless(&self) -> bool {
        self.unvisited == 0
    }

    /// What could not be read, if anything: then the peer lacks something that was not sent.
    pub fn take_damage(&mut self) -> Option<StateError> {
        self.damaged.take()
    }

    fn next_record(&mut self) -> Result<Option<(Key, Record)>, StateError> {
        while let Some(key) = self.wanted.pop_front() {
            match read_record(self.snapshot.get(Table::Data, &key)?, &key, &self.writers) {
                // That nothing is here is an answer too.
                Ok(record) => return Ok(Some((key, record))),
                Err(damage) => self.damaged = Some(damage),
            }
        }
        loop {
            let Some((writer, entries)) = &mut self.entries else {
                let Some((writer, range)) = self.ranges.pop_front() else {
                    return Ok(None);
                };
                if let Some(ord) = self.writers.ord(writer) {
                    let entries = log::entries(&*self.snapshot, ord, range);
                    self.entries = Some((writer, entries));
                }
                continue;
            };
            let writer = *writer;
            let Some(entry) = entries.next() else {
                self.entries = None;
                continue;
            };
            let (row, value) = entry?;
            self.unvisited = self.unvisited.saturating_sub(1);
            let dot = Dot {
                writer,
                seq: log::seq_of(&row).unwrap_or(0),
            };
            let key = match log::key_of(&row, &value) {
                Ok(key) => key,
                Err(source) => {
                    let (table, key) = (Table::Log, row);
                    self.damaged = Some(StateError::Corrupt { table, key, source });
                    continue;
                }
            };
            let row = self.snapshot.get(Table::Data, &key)?;
            match read_record(row, &key, &self.writers) {
                // The entry of a write that was replaced while its record could not be read.
                Ok(record)
                    if covers(&record.history(), dot, &self.writers) && !record.holds(dot) => {}
                Ok(record) if !record.holds(dot) => {
                    self.damaged = Some(StateError::LogMismatch { dot, key });
                }
                Ok(record) => {
                    let walked = |dot: &Dot| {
                        self.only.is_none_or(|only| dot.writer == only)
                            || is_planted(Mistake::PushPassesSiblings)
                    };
                    let missing = |dot: &Dot| walked(dot) && !self.theirs.contains(*dot);
                    let mut live = record.live.iter().map(|version| version.dot);
                    if live.find(missing) == Some(dot) {
                        return Ok(Some((key, record)));
                    }
                }
                Err(damage) => self.damaged = Some(damage),
            }
        }
    }
}

/// At least as many bytes as the record takes in a `Records` message.
pub fn size_hint(key: &Key, record: &Record) -> usize {
    let values: usize = record
        .puts()
        .filter_map(|put| put.value())
        .map(|value| value.len())
        .sum();
    key.len() + values + 64 + 48 * record.live.len() + 20 * record.seen.len()
}
