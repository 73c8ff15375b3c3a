//! What really happened, kept apart from the code under test.
//!
//! Every write with all that it had seen of its key. From this follows what a replica must hold,
//! whatever order the news took: the greatest elements of what it knows (I1 of the design), and that
//! it never knows a write without that write's past (I2).

use std::collections::BTreeMap;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Dot, Stamp, WriterId};
use level_replicator_core::record::{Op, Record};
use level_replicator_core::state::{State, Written};

/// Writes that one history can hold.
pub(crate) const WRITES_MAX: usize = 256;

/// Some of the writes of a history.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Set([u64; WRITES_MAX / 64]);

impl Set {
    fn insert(&mut self, write: usize) {
        self.0[write / 64] |= 1 << (write % 64);
    }

    fn contains(&self, write: usize) -> bool {
        self.0[write / 64] & (1 << (write % 64)) != 0
    }

    fn add(&mut self, other: &Set) {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(mine, theirs)| *mine |= theirs);
    }

    fn meets(&self, other: &Set) -> bool {
        self.0
            .iter()
            .zip(other.0)
            .any(|(mine, theirs)| mine & theirs != 0)
    }

    fn remove(&mut self, other: &Set) {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(mine, theirs)| *mine &= !theirs);
    }

    fn is_within(&self, other: &Set) -> bool {
        self.0
            .iter()
            .zip(other.0)
            .all(|(mine, theirs)| mine & !theirs == 0)
    }
}

struct Write {
    dot: Dot,
    value: Option<Bytes>,
    stamp: Stamp,
    /// All that it had seen of its key, without itself.
    past: Set,
}

/// All writes of all replicas, also of those that are lost.
#[derive(Default)]
pub(crate) struct History {
    writes: Vec<Write>,
    /// Which lifetime of which process a writer belongs to, and how far it got.
    writers: BTreeMap<WriterId, (u64, u64)>,
    by_key: BTreeMap<Bytes, Vec<usize>>,
    /// The writes of each batch of two or more.
    batches: Vec<Set>,
}

impl History {
    /// How many more writes fit.
    pub(crate) fn room(&self) -> usize {
        WRITES_MAX - self.writes.len()
    }

    /// What a write is about to see of each key: taken before it.
    pub(crate) fn seen_by(&self, state: &State, ops: &[Op]) -> BTreeMap<Bytes, Set> {
        let keys = ops.iter().map(|op| op.key().clone());
        keys.map(|key| (key.clone(), self.known(state, &key)))
            .collect()
    }

    /// Enters a write that was made, and checks the names and the stamps it got (I6, I8).
    pub(crate) fn enter(
        &mut self,
        lifetime: u64,
        wall_us: u64,
        seen: &BTreeMap<Bytes, Set>,
        ops: &[Op],
        written: &Written,
        state: &State,
    ) {
        let mut last: BTreeMap<&Bytes, usize> = BTreeMap::new();
        ops.iter().enumerate().for_each(|(index, op)| {
            last.insert(op.key(), index);
        });
        let counting = ops
            .iter()
            .enumerate()
            .filter(|(index, op)| last[op.key()] == *index);
        let deletes_nothing = |op: &Op| {
            matches!(op, Op::Delete(_))
                && !self
                    .greatest(&seen[op.key()])
                    .any(|write| self.is_put(write))
        };
        let counting: Vec<&Op> = counting
            .map(|(_, op)| op)
            .filter(|op| !deletes_nothing(op))
            .collect();
        let (Some(first), Some(last)) = (written.first, written.last) else {
            assert!(counting.is_empty(), "a write without a name");
            return;
        };
        assert_eq!(first.writer, last.writer);
        let entry = self.writers.entry(first.writer).or_insert((lifetime, 0));
        assert_eq!(entry.0, lifetime, "writer {} is used again", first.writer);
        assert_eq!(first.seq, entry.1 + 1, "numbers are in turn");
        assert_eq!(
            last.seq - entry.1,
            counting.len() as u64,
            "one number for each operation"
        );
        entry.1 = last.seq;

        let mut batch = Set::default();
        let before = self.writes.len();
        for (seq, op) in (first.seq..).zip(counting) {
            let dot = Dot {
                writer: first.writer,
                seq,
            };
            let record = state.record(op.key()).expect("a good record");
            let [version] = &record.live[..] else {
                panic!("a write leaves one live version, not {record:?}");
            };
            assert_eq!(version.dot, dot);
            let past = seen[op.key()];
            for before in self.in_set(&past) {
                let before = self.writes[before].stamp;
                assert!(
                    before < version.stamp,
                    "the stamp of {dot} is not after what it saw"
                );
            }
            assert!(version.stamp >= Stamp::from_micros(wall_us));
            batch.insert(self.writes.len());
            self.by_key
                .entry(op.key().clone())
                .or_default()
                .push(self.writes.len());
            self.writes.push(Write {
                dot,
                value: match op {
                    Op::Put(_, value) => Some(value.clone()),
                    Op::Delete(_) => None,
                },
                stamp: version.stamp,
                past,
            });
        }
        if self.writes.len() > before + 1 {
            self.batches.push(batch);
        }
    }

    /// Checks everything that a replica must hold by what it knows: I1, I2 and I3.
    pub(crate) fn check(&self, state: &State, who: &str) {
        for key in self.by_key.keys() {
            let known = self.known(state, key);
            for write in self.in_set(&known) {
                let past = &self.writes[write].past;
                let dot = self.writes[write].dot;
                assert!(past.is_within(&known), "{who} knows {dot} without its past");
            }
            let record = state.record(key).expect("a good record");
            let mut live: Vec<Dot> = record.live.iter().map(|version| version.dot).collect();
            assert!(live.is_sorted(), "{who}: {live:?}");
            live.sort();
            let mut must: Vec<Dot> = self
                .greatest(&known)
                .map(|write| self.writes[write].dot)
                .collect();
            must.sort();
            assert_eq!(
                live, must,
                "{who} holds the left of {key:?}, and must the right"
            );
            self.check_contents(&record, state, who);
        }
    }

    fn check_contents(&self, record: &Record, state: &State, who: &str) {
        for version in &record.live {
            let write = self.writes.iter().find(|write| write.dot == version.dot);
            let write = write.unwrap_or_else(|| panic!("{who} holds the invented {}", version.dot));
            assert_eq!(
                version.value(),
                write.value.as_ref(),
                "{who}: {}",
                version.dot
            );
            assert_eq!(version.stamp, write.stamp, "{who}: {}", version.dot);
            assert!(
                state.clock().contains(version.dot),
                "{who} holds the unknown {}",
                version.dot
            );
        }
    }

    /// Checks that a replica which is caught up knows all or nothing of what is left of each batch
    /// after what it knows to have replaced parts of it (C6).
    pub(crate) fn check_batches(&self, state: &State, who: &str) {
        if state.is_catching_up() {
            return;
        }
        let mut known = Set::default();
        self.by_key
            .keys()
            .for_each(|key| known.add(&self.known(state, key)));
        let mut replaced = Set::default();
        self.in_set(&known)
            .for_each(|write| replaced.add(&self.writes[write].past));
        for batch in &self.batches {
            let mut batch = *batch;
            batch.remove(&replaced);
            let dots = || {
                self.in_set(&batch)
                    .map(|write| self.writes[write].dot)
                    .collect::<Vec<_>>()
            };
            let whole = batch.is_within(&known) || !batch.meets(&known);
            assert!(whole, "{who} shows half of the batch {:?}", dots());
        }
    }

    /// The writes of a key that a replica knows by its clock or the key's own history.
    fn known(&self, state: &State, key: &Bytes) -> Set {
        let record = state.record(key).expect("a good record");
        let mut reach: BTreeMap<WriterId, u64> = BTreeMap::new();
        let live = record.live.iter().map(|version| version.dot);
        for dot in record.seen.iter().chain(live) {
            let mut next = Some(dot);
            while let Some(dot) = next {
                let seq = reach.entry(dot.writer).or_default();
                *seq = (*seq).max(dot.seq);
                next = state
                    .writers()
                    .get(dot.writer)
                    .expect("a described writer")
                    .parent;
            }
        }
        let mut known = Set::default();
        for &write in self.by_key.get(key).into_iter().flatten() {
            let dot = self.writes[write].dot;
            let covered = reach.get(&dot.writer).is_some_and(|seq| *seq >= dot.seq);
            if covered || state.clock().contains(dot) {
                known.insert(write);
            }
        }
        known
    }

    /// The writes of a set that no other one in it had seen.
    fn greatest(&self, known: &Set) -> impl Iterator<Item = usize> + '_ {
        let mut greatest = *known;
        for write in self.in_set(known) {
            greatest.remove(&self.writes[write].past);
        }
        (0..self.writes.len()).filter(move |write| greatest.contains(*write))
    }

    fn in_set<'a>(&'a self, set: &'a Set) -> impl Iterator<Item = usize> + 'a {
        (0..self.writes.len()).filter(|write| set.contains(*write))
    }

    fn is_put(&self, write: usize) -> bool {
        self.writes[write].value.is_some()
    }

    /// Everything that at least one of these replicas knows of this history.
    pub(crate) fn known_to<'a>(&self, states: impl IntoIterator<Item = &'a State>) -> Clock {
        let mut clock = Clock::default();
        for state in states {
            let dots = self.writes.iter().map(|write| write.dot);
            dots.filter(|dot| state.clock().contains(*dot))
                .for_each(|dot| clock.insert(dot));
        }
        clock
    }
}
