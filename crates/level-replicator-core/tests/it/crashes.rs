//! What a disk holds after a crash at any commit fits together, and gaps of the clock outlive opens.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Dot, Now, WriterId};
use level_replicator_core::record::{Op, Version};
use level_replicator_core::state::{Reach, State, StateError};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Snapshot, Storage, StorageError, Table};
use level_replicator_core::writers::Descriptor;

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

/// Three keys of its own, one of them beside a peer's write; then the writer turns out to be shared.
fn collide(storage: Arc<dyn Storage>) -> Result<State, StateError> {
    let mut state = State::open(storage, [1; 16])?;
    state.describe(&descriptors())?;
    write(&mut state, &["a"])?;
    write(&mut state, &["b"])?;
    write(&mut state, &["c"])?;
    let theirs = record(&[put(1, 1, b"peer's")], &[]);
    let context: Clock = [dot(1, 1)].into_iter().collect();
    state.apply(vec![(Bytes::from_static(b"b"), theirs)], &context, WHOLE)?;
    state.end_collided_writer()?;
    Ok(state)
}

/// Nothing is left of the shared writer, and nothing is lost.
fn assert_reissued(state: &State) {
    for (key, live) in [("a", 1), ("b", 2), ("c", 1)] {
        let record = state.record(key.as_bytes()).expect("a good record");
        assert_eq!(record.live.len(), live, "{key}: {record:?}");
        let own = |version: &Version| version.dot.writer == WriterId(OWN);
        assert!(!record.live.iter().any(own), "{key}: {record:?}");
    }
}

#[test]
fn writing_again_under_another_name_goes_on_after_a_crash_at_any_commit() {
    let counted = Arc::new(DyingStorage {
        disk: MemoryStorage::new(),
        commits_left: AtomicUsize::new(1_000),
    });
    collide(Arc::clone(&counted) as Arc<dyn Storage>).expect("it has room");
    let before = 1_000 - counted.commits_left.load(Ordering::Relaxed);
    for commits in before.. {
        let disk = MemoryStorage::new();
        let mut state = collide(Arc::new(DyingStorage {
            disk: disk.clone(),
            commits_left: AtomicUsize::new(commits),
        }))
        .expect("it has room");
        let mut name = 1_000;
        let outcome = state.reissue_collided(Now::default(), &mut || {
            name += 1;
            name
        });

        // What is there fits together, and tending the next process does the rest.
        let mut cluster = Cluster::new(1);
        cluster.open(0, disk);
        cluster.assert_whole(0);
        cluster.run_for_ms(100);
        cluster.assert_whole(0);
        assert_reissued(cluster.state(0));
        assert!(!cluster.state(0).has_collided());
        if outcome.is_ok() {
            assert!(commits > before + 3, "each key is a commit");
            break;
        }
    }
}

#[test]
fn writing_again_under_another_name_goes_on_after_an_error() {
    let storage = Arc::new(DyingStorage {
        disk: MemoryStorage::new(),
        commits_left: AtomicUsize::new(1_000),
    });
    let mut state = collide(Arc::clone(&storage) as Arc<dyn Storage>).expect("it has room");
    let mut name = 1_000;
    let mut names = || {
        name += 1;
        name
    };
    storage.commits_left.store(1, Ordering::Relaxed);
    let failed = state.reissue_collided(Now::default(), &mut names);
    failed.expect_err("the second key fails");
    assert!(state.has_collided());
    storage.commits_left.store(1_000, Ordering::Relaxed);
    let finished = state.reissue_collided(Now::default(), &mut names);
    let finished = finished.expect("it has room");
    assert_eq!(finished, [(WriterId(OWN), 2)]);
    assert_reissued(&state);
}

#[test]
fn after_a_collision_or_a_promotion_the_next_writer_has_no_parent() {
    let parent_after = |end: fn(&mut State) -> Result<(), StateError>| {
        let disk = MemoryStorage::new();
        let mut before = State::open(Arc::new(disk.clone()), [1; 16]).expect("memory opens");
        write(&mut before, &["a"]).expect("memory takes all");
        let mut state = State::open(Arc::new(disk), [1; 16]).expect("memory opens");
        let op = |key| [Op::Put(Bytes::from_static(key), Bytes::new())];
        state
            .write(Now::default(), &op(b"b"), 200)
            .expect("it writes");
        let second = state.writers().get(WriterId(200));
        assert_eq!(second.expect("described").parent, Some(dot(OWN, 1)));
        end(&mut state).expect("memory takes all");
        let written = state.write(Now::default(), &op(b"c"), 300);
        let last = written.expect("it writes").last.expect("a put writes");
        assert_eq!(last, dot(300, 1));
        let descriptor = state.writers().get(last.writer);
        descriptor.expect("it is described").parent
    };
    assert_eq!(parent_after(State::end_collided_writer), None);
    assert_eq!(parent_after(State::promote), None);
}

/// Twins that were copied before their first write name their first writer alike.
#[test]
fn a_name_that_a_twin_has_used_already_is_passed_over() {
    let disk = MemoryStorage::new();
    let mut state = State::open(Arc::new(disk.clone()), [1; 16]).expect("memory opens");
    let of_twin = Descriptor {
        writer: WriterId(OWN),
        replica: state.replica(),
        parent: None,
    };
    state.describe(&[of_twin]).expect("it is new");
    let theirs: Clock = (1..=5).map(|seq| dot(OWN, seq)).collect();
    state
        .begin_heal(&theirs, &theirs)
        .expect("memory takes all");

    write(&mut state, &["a"]).expect("memory takes all");

    assert_ne!(state.current_writer(), Some(WriterId(OWN)));
    let opened = State::open(Arc::new(disk), [1; 16]).expect("memory opens");
    assert_eq!(opened.clock(), state.clock());
    assert!(!opened.clock().contains(dot(OWN, 2)), "it was never here");
}

/// A delete and a value that everybody knows; the floor was just committed.
fn below_a_floor(storage: Arc<dyn Storage>) -> State {
    let mut state = State::open(storage, [1; 16]).expect("memory opens");
    write(&mut state, &["kept", "deleted"]).expect("memory takes all");
    let delete = [Op::Delete(Bytes::from_static(b"deleted"))];
    let deleted = state.write(Now::default(), &delete, OWN);
    deleted.expect("memory takes all");
    let all = Clock::clone(state.clock());
    state.adopt_floor(&all).expect("memory takes all");
    state
}

fn count(disk: &MemoryStorage, table: Table) -> usize {
    let snapshot = disk.snapshot();
    let rows = snapshot.range(table, Bound::Unbounded, Bound::Unbounded);
    rows.count()
}

fn assert_reclaimed(state: &mut State, disk: &MemoryStorage) {
    while state.is_reclaiming() {
        state.reclaim_step().expect("memory takes all");
    }
    assert_eq!(count(disk, Table::Log), 0, "log entries stay");
    assert_eq!(count(disk, Table::Data), 1, "the delete stays");
}

#[test]
fn a_step_of_reclaiming_that_failed_is_done_again() {
    let disk = MemoryStorage::new();
    let storage = Arc::new(DyingStorage {
        disk: disk.clone(),
        commits_left: AtomicUsize::new(1_000),
    });
    let mut state = below_a_floor(Arc::clone(&storage) as Arc<dyn Storage>);
    storage.commits_left.store(0, Ordering::Relaxed);
    state.reclaim_step().expect_err("the disk is gone");
    storage.commits_left.store(1_000, Ordering::Relaxed);
    assert_reclaimed(&mut state, &disk);
}

#[test]
fn what_waits_to_be_reclaimed_is_found_after_the_log_was_mended() {
    let disk = MemoryStorage::new();
    let mut state = below_a_floor(Arc::new(disk.clone()));
    state.mend_log().expect("memory takes all");
    assert_reclaimed(&mut state, &disk);
}

#[test]
fn what_a_promotion_leaves_that_failed_half_way_is_reclaimed() {
    let disk = MemoryStorage::new();
    let storage = Arc::new(DyingStorage {
        disk: disk.clone(),
        commits_left: AtomicUsize::new(1_000),
    });
    let mut state = below_a_floor(Arc::clone(&storage) as Arc<dyn Storage>);
    assert_reclaimed(&mut state, &disk);
    state.describe(&descriptors()).expect("memory takes all");
    let theirs: Clock = [dot(1, 1)].into_iter().collect();
    state
        .begin_heal(&theirs, &theirs)
        .expect("memory takes all");
    storage.commits_left.store(1, Ordering::Relaxed);
    state.promote().expect_err("the disk is gone");
    storage.commits_left.store(1_000, Ordering::Relaxed);
    assert_eq!(count(&disk, Table::Log), 1, "the log was rebuilt");

    // A healer came after all.
    let reach = Reach::Snapshot {
        unclaimed: &[],
        floor: Some(&theirs),
    };
    state
        .apply(vec![], &theirs, reach)
        .expect("memory takes all");
    assert_reclaimed(&mut state, &disk);
}

#[test]
fn what_was_wanted_and_came_without_a_claim_ends_the_heal() {
    let mut state = State::open(Arc::new(MemoryStorage::new()), [1; 16]).expect("memory opens");
    state.describe(&descriptors()).expect("memory takes all");
    let theirs: Clock = [dot(1, 1)].into_iter().collect();
    state
        .begin_heal(&theirs, &theirs)
        .expect("memory takes all");
    let came = vec![(Bytes::from_static(b"k"), record(&[put(1, 1, b"v")], &[]))];
    let joined = state.apply(came, &theirs, Reach::Part);
    joined.expect("memory takes all");
    state.give_up_claims().expect("memory takes all");
    assert!(state.is_whole(), "nothing will ever claim what is known");
}
