//! What a disk holds after a crash at any commit fits together, and gaps of the clock outlive opens.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Dot, Now};
use level_replicator_core::record::Op;
use level_replicator_core::state::{Reach, State, StateError};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Snapshot, Storage, StorageError, Table};

use crate::cluster::Cluster;
use crate::samples::{descriptors, dot, put, record};

/// The writer of all that is written here; [`descriptors`] has others.
const OWN: u64 = 100;

/// A disk that takes so many commits and no more.
struct DyingStorage {
    disk: MemoryStorage,
    commits_left: AtomicUsize,
}

impl Storage for DyingStorage {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.disk.get(table, key)
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        self.disk.snapshot()
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        let one_less = |left: usize| left.checked_sub(1);
        self.commits_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .map_err(|_| StorageError::new("commit a batch", "the disk is gone"))?;
        self.disk.commit(batch)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.disk.sync()
    }
}

const WHOLE: Reach<'static> = Reach::Snapshot {
    unclaimed: &[],
    floor: None,
};

fn write(state: &mut State, keys: &[&'static str]) -> Result<(), StateError> {
    let value = Bytes::from_static(b"own");
    let ops: Vec<Op> = (keys.iter())
        .map(|key| Op::Put(Bytes::from_static(key.as_bytes()), value.clone()))
        .collect();
    state.write(Now::default(), &ops, OWN).map(|_| ())
}

/// The peer's two writes.
fn theirs() -> [Dot; 2] {
    [dot(1, 1), dot(1, 2)]
}

/// Writes, half of a round that makes siblings, a write that replaces them, the end of the round.
fn live(storage: Arc<dyn Storage>) -> Result<(), StateError> {
    let context: Clock = theirs().into_iter().collect();
    let of_peer = |key, seq| {
        let record = record(&[put(1, seq, b"peer's")], &[]);
        vec![(Bytes::from_static(key), record)]
    };
    let mut state = State::open(storage, [1; 16])?;
    write(&mut state, &["a", "b"])?;
    state.describe(&descriptors())?;
    state.apply(of_peer(b"a", 1), &context, Reach::Part)?;
    write(&mut state, &["a"])?;
    state.apply(of_peer(b"c", 2), &context, WHOLE)?;
    state.close()
}

/// A disk whose last writer was closed after its first write, and then got its third one back from
/// a peer, but not the second.
fn disk_with_a_gap() -> (MemoryStorage, State) {
    let disk = MemoryStorage::new();
    let mut lost = State::open(Arc::new(disk.clone()), [1; 16]).expect("memory opens");
    write(&mut lost, &["a"]).expect("memory takes all");
    let disk = disk.fork();
    write(&mut lost, &["b"]).expect("memory takes all");
    write(&mut lost, &["c"]).expect("memory takes all");

    let mut state = State::open(Arc::new(disk.clone()), [1; 16]).expect("memory opens");
    let third = lost.record(b"c").expect("a good record");
    let records = vec![(Bytes::from_static(b"c"), third)];
    let context = Clock::clone(lost.clock());
    state
        .apply(records, &context, Reach::Part)
        .expect("memory takes all");
    (disk, state)
}

fn assert_gap(state: &State) {
    assert!(state.clock().contains(dot(OWN, 3)));
    assert!(!state.clock().contains(dot(OWN, 2)), "nobody sent it");
}

#[test]
pub(crate) fn a_crash_after_any_commit_leaves_records_log_and_clock_that_fit() {
    for commits in 0.. {
        let disk = MemoryStorage::new();
        let outcome = live(Arc::new(DyingStorage {
            disk: disk.clone(),
            commits_left: AtomicUsize::new(commits),
        }));

        let mut cluster = Cluster::new(1);
        cluster.open(0, disk);
        cluster.assert_whole(0);
        let state = cluster.state(0);
        for (dot, key) in theirs().into_iter().zip(["a", "c"]) {
            let record = state.record(key.as_bytes()).expect("a good record");
            let replaced = record.seen.get(dot.writer) >= dot.seq;
            assert_eq!(
                state.clock().contains(dot),
                record.holds(dot) || replaced,
                "{dot} after {commits} commits"
            );
        }
        if outcome.is_ok() {
            assert!(commits > 5, "each step commits");
            break;
        }
    }
}

#[test]
pub(crate) fn a_gap_of_the_last_writer_stays_a_gap_at_the_next_open() {
    let (disk, state) = disk_with_a_gap();
    assert_gap(&state);

    let state = State::open(Arc::new(disk), [1; 16]).expect("memory opens");

    assert_gap(&state);
}

#[test]
pub(crate) fn a_gap_stays_a_gap_when_nobody_claims_it() {
    let (_, mut state) = disk_with_a_gap();
    assert!(state.is_catching_up());

    state.give_up_claims().expect("memory takes all");

    assert!(!state.is_catching_up());
    assert_gap(&state);
}

/// Whether a replica that was idle for two minutes still waits for the rest, half a second after a
/// round to it was cut after so many deliveries; `None` if the cut left nothing or everything.
fn waits_half_a_second_after_a_cut(deliveries: u64) -> Option<bool> {
    const WRITES: u64 = 6_000;
    let mut cluster = Cluster::new(2);
    cluster.by_frame = true;
    cluster.introduce(1, 0);
    cluster.put(0, "before", "x");
    cluster.run_for_ms(120_000);
    cluster.cut(0, 1);
    for number in 0..WRITES {
        let value = format!("{} and {}", number * 7_919, number * 104_729);
        cluster.put(0, &format!("{number:04}"), &value);
    }
    cluster.heal();
    cluster.break_after = Some(deliveries);
    for _ in 0..2_000 {
        if cluster.break_after.is_none() {
            break;
        }
        cluster.run_for_ms(5);
    }
    cluster.cut(0, 1);
    let known = cluster.state(1).clock().count_missing_in(&Clock::default());
    cluster.run_for_ms(500);
    let has_half = (2..=WRITES).contains(&known);
    has_half.then(|| cluster.state(1).is_catching_up())
}

#[test]
fn the_half_of_a_round_that_was_cut_is_waited_for_after_a_long_idle_time_too() {
    let waits: Vec<bool> = (5..12)
        .filter_map(waits_half_a_second_after_a_cut)
        .collect();

    assert!(!waits.is_empty(), "no cut leaves half of a round");
    assert!(waits.iter().all(|waits| *waits), "{waits:?}");
}
