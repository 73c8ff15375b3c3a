//! Rows that are read again and again, in front of the engine.
//!
//! The rule: a row that is found here is what the engine would answer. A commit changes both while no row comes in, and a
//! row that was read before a commit of the same key is not kept after it.
//!
//! What it saves is the engine's search through memory and tables, which takes many times as long. A row comes in when it is
//! read a second time before many others were, so that reads by chance, and those before each write, do not pay for it.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Larger rows are not kept: beside their own bytes the search costs little.
const ROW_BYTES_MAX: usize = 4096;

/// What a kept row takes beside its bytes and its key's, about.
const OVERHEAD_BYTES: usize = 128;

/// About what a kept row takes, to begin with tables of a fitting size.
const TYPICAL_BYTES: u64 = 256;

/// Places for keys, by hash: what tells for little whether a key need be looked for. Keys that share one only keep each
/// other out now and then.
const PLACES: usize = 4096;

pub(super) struct RowCache {
    /// `None` if there is no room for any.
    rows: Option<Cache<Vec<u8>, Bytes, Weight>>,
    places: Box<[Place]>,
    seed: u64,
}

#[derive(Default)]
struct Place {
    /// How often its keys were changed.
    changes: AtomicU64,
    /// A part of the hash of the key that was read last and not found here.
    missed: AtomicU32,
    /// One of its keys has come in at some time.
    is_in_use: AtomicBool,
}

#[derive(Clone)]
struct Weight;

impl Weighter<Vec<u8>, Bytes> for Weight {
    fn weight(&self, key: &Vec<u8>, row: &Bytes) -> u64 {
        (OVERHEAD_BYTES + key.len() + row.len()) as u64
    }
}

/// A row that was not found, and may come in.
pub(super) struct Candidate<'a> {
    place: &'a Place,
    changes: u64,
}

impl RowCache {
    /// One that takes up to so many bytes.
    pub(super) fn new(bytes: u64) -> RowCache {
        let items = usize::try_from(bytes / TYPICAL_BYTES).unwrap_or(usize::MAX);
        RowCache {
            rows: (items > 0).then(|| Cache::with_weighter(items, bytes, Weight)),
            places: (0..PLACES).map(|_| Place::default()).collect(),
            seed: RandomState::new().hash_one(0),
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Bytes> {
        let is_in_use = &self.place(key).0.is_in_use;
        self.rows
            .as_ref()
            .filter(|_| is_in_use.load(Ordering::Relaxed))?
            .get(key)
    }

    /// To be asked when a row was not found, before the snapshot is taken from which it is read; answers whether it may come in.
    pub(super) fn miss(&self, key: &[u8]) -> Option<Candidate<'_>> {
        self.rows.as_ref()?;
        let (place, tag) = self.place(key);
        let changes = place.changes.load(Ordering::Acquire);
        let is_second = place.missed.swap(tag, Ordering::Relaxed) == tag;
        is_second.then_some(Candidate { place, changes })
    }

    /// Lets in a row that was read, unless it was changed since. The caller keeps commits out.
    pub(super) fn keep(&self, candidate: &Candidate<'_>, key: &[u8], row: &Bytes) {
        let Some(rows) = &self.rows else { return };
        let is_unchanged = candidate.place.changes.load(Ordering::Acquire) == candidate.changes;
        if is_unchanged && row.len() <= ROW_BYTES_MAX {
            candidate.place.is_in_use.store(true, Ordering::Relaxed);
            // A copy: the engine's row would keep its whole block in memory.
            rows.insert(key.to_vec(), Bytes::copy_from_slice(row));
        }
    }

    /// A row is being committed: whoever has begun to read it does not keep it. Answers whether it is here; then the commit
    /// is followed by [`RowCache::replace`], and the caller lets nobody read the engine or keep a row from here to there.
    pub(super) fn note_change(&self, key: &[u8]) -> bool {
        let Some(rows) = &self.rows else { return false };
        let (place, _) = self.place(key);
        place.changes.fetch_add(1, Ordering::AcqRel);
        place.is_in_use.load(Ordering::Relaxed) && rows.contains_key(key)
    }

    /// The row of a key that is here has become another, or none.
    pub(super) fn replace(&self, key: &[u8], row: Option<Bytes>) {
        let Some(rows) = &self.rows else { return };
        let row = row.filter(|row| row.len() <= ROW_BYTES_MAX);
        let is_replaced = row.is_some_and(|row| {
            let row = Bytes::copy_from_slice(&row);
            rows.replace(key.to_vec(), row, true).is_ok()
        });
        if !is_replaced {
            rows.remove(key);
        }
    }

    /// The place of a key, and what tells the key from most others there.
    fn place(&self, key: &[u8]) -> (&Place, u32) {
        let hash = xxh3_64_with_seed(key, self.seed);
        (&self.places[hash as usize % PLACES], (hash >> 32) as u32)
    }
}
