//! The clock on disk.
//!
//! A writer has one row for its base, and one row for each block of 4,096 numbers in which a range
//! ahead of the base *begins*, so that a long catch-up rewrites a few small rows, whatever gaps it
//! leaves. What comes in the order of keys, as in a heal, is scattered over all blocks: it gets rows of
//! its own instead, which are written once. The rule: the rows of a writer, united, are what is known
//! of it. A row that has been overtaken adds nothing, and is removed when the whole is written.

use std::collections::BTreeSet;
use std::ops::{Bound, RangeInclusive};

use bytes::Bytes;

use crate::clock::{Clock, Known};
use crate::codec::{DecodeError, Reader, put_varint, seal, unseal};
use crate::storage::{Batch, Snapshot, StorageError, Table};
use crate::writers::{WriterOrd, Writers};

const BLOCK_BITS: u32 = 12;

/// What touches more blocks than this is scattered: rewriting them all would cost more, again and
/// again, than what is new.
const BLOCKS_REWRITTEN_MAX: usize = 8;

/// The rows of scattered ranges are numbered from here, beyond the blocks of all numbers that there are.
const SCATTERED: u64 = 1 << 60;

/// Most ranges in one row.
const ROW_RANGES_MAX: usize = 1 << BLOCK_BITS;

/// Knows which block rows are on disk, and writes the rows that a growing clock needs.
#[derive(Debug, Clone, Default)]
pub struct KnownRows {
    blocks: BTreeSet<(WriterOrd, u64)>,
}

/// Why the clock cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The engine failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A row is damaged.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl KnownRows {
    /// Reads the clock.
    pub fn load(
        snapshot: &dyn Snapshot,
        writers: &Writers,
    ) -> Result<(KnownRows, Clock), LoadError> {
        const WHAT: &str = "clock row";
        let mut rows = KnownRows::default();
        let mut clock = Clock::default();
        for entry in snapshot.range(Table::Clock, Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = entry?;
            let value = unseal(&key, &value, WHAT)?;
            let mut key = Reader::new(key, WHAT);
            let (ord, row) = (key.u32()?, key.u64()?);
            key.finish()?;
            let Some(descriptor) = writers.by_ord(ord) else {
                return Err(DecodeError::Invalid { what: WHAT }.into());
            };
            let mut value = Reader::new(value, WHAT);
            if let Some(block) = row.checked_sub(1) {
                rows.blocks.insert((ord, block));
                for range in decode_ranges(&mut value)? {
                    clock.insert_range(descriptor.writer, range);
                }
            } else {
                clock.insert_range(descriptor.writer, 1..=value.varint()?);
            }
            value.finish()?;
        }
        Ok((rows, clock))
    }

    /// Writes the rows of one writer that changed when `added` became part of what is `known`.
    pub fn put_added(&mut self, batch: &mut Batch, ord: WriterOrd, known: &Known, added: &Known) {
        let mut base_grew = false;
        let mut blocks = BTreeSet::new();
        for range in added.ranges() {
            let within = known.ahead_within(range.clone()).next();
            base_grew |= *range.start() <= known.base();
            blocks.extend(within.map(|within| within.start() >> BLOCK_BITS));
        }
        if base_grew {
            put_base(batch, ord, known.base());
        }
        if blocks.len() > BLOCKS_REWRITTEN_MAX {
            self.put_scattered(batch, ord, added);
            return;
        }
        for block in blocks {
            self.put_block(batch, ord, block, known);
        }
    }

    /// Writes ranges into rows of their own.
    fn put_scattered(&mut self, batch: &mut Batch, ord: WriterOrd, added: &Known) {
        let ranges: Vec<_> = added.ranges().collect();
        let mut before = self.blocks.range((ord, SCATTERED)..=(ord, u64::MAX));
        let first = before.next_back().map_or(SCATTERED, |(_, last)| last + 1);
        for (block, ranges) in (first..).zip(ranges.chunks(ROW_RANGES_MAX)) {
            self.put_row(batch, ord, block, ranges);
        }
    }

    /// Forgets the clock on disk, row by row.
    pub fn clear(
        &mut self,
        batch: &mut Batch,
        snapshot: &dyn Snapshot,
    ) -> Result<(), StorageError> {
        for entry in snapshot.range(Table::Clock, Bound::Unbounded, Bound::Unbounded) {
            batch.remove(Table::Clock, entry?.0);
        }
        self.blocks.clear();
        Ok(())
    }

    /// Whether a writer has rows beside its base's.
    pub fn has_blocks(&self, ord: WriterOrd) -> bool {
        self.blocks
            .range((ord, 0)..=(ord, u64::MAX))
            .next()
            .is_some()
    }

    /// Writes all that is known of one writer, and removes the rows that have been overtaken.
    pub fn put_whole(&mut self, batch: &mut Batch, ord: WriterOrd, known: &Known) {
        put_base(batch, ord, known.base());
        let old = self.blocks.range((ord, 0)..=(ord, u64::MAX));
        for (ord, block) in old.copied().collect::<Vec<_>>() {
            batch.remove(Table::Clock, row_key(ord, block + 1));
            self.blocks.remove(&(ord, block));
        }
        let blocks: BTreeSet<u64> = known
            .ahead()
            .map(|range| range.start() >> BLOCK_BITS)
            .collect();
        for block in blocks {
            self.put_block(batch, ord, block, known);
        }
    }

    fn put_block(&mut self, batch: &mut Batch, ord: WriterOrd, block: u64, known: &Known) {
        let first = block << BLOCK_BITS;
        let span = first..=first + ((1 << BLOCK_BITS) - 1);
        let ranges = known.ahead_within(span.clone());
        let begin_here: Vec<_> = ranges
            .filter(|range| span.contains(range.start()))
            .collect();
        self.put_row(batch, ord, block, &begin_here);
    }

    fn put_row(
        &mut self,
        batch: &mut Batch,
        ord: WriterOrd,
        block: u64,
        ranges: &[RangeInclusive<u64>],
    ) {
        let row = row_key(ord, block + 1);
        let mut value = encode_ranges(ranges);
        seal(&row, &mut value);
        batch.put(Table::Clock, row, value);
        self.blocks.insert((ord, block));
    }
}

/// Writes the base of one writer.
pub fn put_base(batch: &mut Batch, ord: WriterOrd, base: u64) {
    let row = row_key(ord, 0);
    let mut value = Vec::with_capacity(14);
    put_varint(&mut value, base);
    seal(&row, &mut value);
    batch.put(Table::Clock, row, value);
}

fn row_key(ord: WriterOrd, row: u64) -> Bytes {
    let mut key = Vec::with_capacity(12);
    key.extend_from_slice(&ord.to_be_bytes());
    key.extend_from_slice(&row.to_be_bytes());
    key.into()
}

fn encode_ranges(ranges: &[RangeInclusive<u64>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 4 * ranges.len());
    put_varint(&mut out, ranges.len() as u64);
    for range in ranges {
        put_varint(&mut out, *range.start());
        put_varint(&mut out, range.end() - range.start());
    }
    out
}

fn decode_ranges(reader: &mut Reader) -> Result<Vec<RangeInclusive<u64>>, DecodeError> {
    let count = reader.count(ROW_RANGES_MAX, 2)?;
    let invalid = DecodeError::Invalid { what: "clock row" };
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let first = reader.varint()?;
        let last = first.checked_add(reader.varint()?);
        ranges.push(first..=last.ok_or(invalid.clone())?);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Dot, ReplicaId, WriterId};
    use crate::storage::Storage;
    use crate::storage::memory::MemoryStorage;
    use crate::writers::Descriptor;

    const WRITER: WriterId = WriterId(5);

    fn writers() -> Writers {
        let mut writers = Writers::default();
        let descriptor = Descriptor {
            writer: WRITER,
            replica: ReplicaId([0; 16]),
            parent: None,
        };
        writers.add(descriptor).expect("a writer without a parent");
        writers
    }

    #[test]
    fn scattered_writes_cost_what_is_new_and_load_as_the_whole_clock() {
        let storage = MemoryStorage::new();
        let mut rows = KnownRows::default();
        let mut clock = Clock::default();
        let mut bytes = 0;
        for piece in 0..40 {
            let mut added = Known::default();
            // Each piece has writes of every block.
            (0..2_500).for_each(|at| added.insert(at * 41 + piece + 2..=at * 41 + piece + 2));
            for range in added.ranges() {
                clock.insert_range(WRITER, range);
            }
            let mut batch = Batch::default();
            let known = clock.get(WRITER).expect("something was added");
            rows.put_added(&mut batch, 0, known, &added);
            let sizes = batch
                .changes()
                .iter()
                .map(|row| row.value.as_ref().map_or(0, Bytes::len));
            bytes += sizes.sum::<usize>();
            storage.commit(batch).expect("memory takes all");
        }

        let (mut loaded_rows, loaded) =
            KnownRows::load(&*storage.snapshot(), &writers()).expect("good rows");
        assert_eq!(loaded, clock);
        assert!(bytes < 40 * 2_500 * 5, "{bytes} bytes for 100,000 writes");

        let mut batch = Batch::default();
        let known = clock.get(WRITER).expect("something was added");
        loaded_rows.put_whole(&mut batch, 0, known);
        storage.commit(batch).expect("memory takes all");
        let rows = storage
            .snapshot()
            .range(Table::Clock, Bound::Unbounded, Bound::Unbounded);
        assert!(rows.count() <= 28, "what was overtaken stays");
        let (_, loaded) = KnownRows::load(&*storage.snapshot(), &writers()).expect("good rows");
        assert_eq!(loaded, clock);
    }

    #[test]
    fn rows_written_piece_by_piece_load_as_the_whole_clock() {
        let storage = MemoryStorage::new();
        let mut rows = KnownRows::default();
        let mut clock = Clock::default();
        for piece in [3..=3, 4_090..=4_100, 1..=2, 9_000..=20_000, 4..=10] {
            let mut added = Known::default();
            added.insert(piece.clone());
            let mut batch = Batch::default();
            clock.insert_range(WRITER, piece);
            let known = clock.get(WRITER).expect("something was added");
            rows.put_added(&mut batch, 0, known, &added);
            storage.commit(batch).expect("memory takes all");
        }

        let (_, loaded) = KnownRows::load(&*storage.snapshot(), &writers()).expect("good rows");

        assert_eq!(loaded, clock);
    }

    #[test]
    fn the_whole_leaves_no_row_that_the_base_has_passed() {
        let storage = MemoryStorage::new();
        let mut rows = KnownRows::default();
        let mut known = Known::default();
        known.insert(2..=50_000);
        let mut batch = Batch::default();
        rows.put_added(&mut batch, 0, &known.clone(), &known);
        known.insert(1..=1);
        known.insert(60_000..=60_000);
        rows.put_whole(&mut batch, 0, &known);
        storage.commit(batch).expect("memory takes all");

        let snapshot = storage.snapshot();
        let all = snapshot.range(Table::Clock, Bound::Unbounded, Bound::Unbounded);
        assert_eq!(all.count(), 2, "the base and one block");
        let (_, loaded) = KnownRows::load(&*snapshot, &writers()).expect("good rows");
        assert!(loaded.contains(Dot {
            writer: WRITER,
            seq: 60_000
        }));
        assert_eq!(loaded.get(WRITER).map(Known::base), Some(50_000));
    }
}
