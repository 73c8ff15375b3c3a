//! What stands for a record that cannot be read, and when.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Now, ReplicaId, WriterId};
use level_replicator_core::config::Config;
use level_replicator_core::record::{Key, Op};
use level_replicator_core::state::{Reach, State, StateError};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Storage, Table};
use level_replicator_core::writers::Descriptor;

use crate::cluster::Cluster;
use crate::samples::{dot, put, record};

const NOW: Now = Now {
    wall_us: 1_700_000_000_000_000,
    steady_us: 1,
};

/// Flips a bit in the middle of the row of a key.
fn damage(storage: &MemoryStorage, key: &'static [u8]) {
    let row = storage.get(Table::Data, key).expect("memory reads");
    let mut row = row.expect("the key is there").to_vec();
    let middle = row.len() / 2;
    row[middle] ^= 1;
    let mut batch = Batch::default();
    batch.put(Table::Data, Bytes::from_static(key), row);
    storage.commit(batch).expect("memory takes all");
}

fn count(storage: &MemoryStorage, table: Table) -> usize {
    let snapshot = storage.snapshot();
    let rows = snapshot.range(table, Bound::Unbounded, Bound::Unbounded);
    rows.count()
}

fn key(name: &'static str) -> Key {
    Bytes::from_static(name.as_bytes())
}

fn put_op(name: &'static str) -> Op {
    Op::Put(key(name), Bytes::from_static(b"a value of some length"))
}

fn clock(entries: &[(u64, u64)]) -> Clock {
    let mut clock = Clock::default();
    for &(writer, last) in entries {
        clock.insert_range(WriterId(writer), 1..=last);
    }
    clock
}

/// A replica that has met the writers 5 and 6, with its disk.
fn state() -> (State, MemoryStorage) {
    let storage = MemoryStorage::new();
    let mut state = State::open(Arc::new(storage.clone()), [1; 16]).expect("memory opens");
    let descriptors = [5, 6].map(|writer| Descriptor {
        writer: WriterId(writer),
        replica: ReplicaId([5; 16]),
        parent: None,
    });
    state.describe(&descriptors).expect("they are new");
    (state, storage)
}

/// The same after the third of five writes of writer 5 has come, under another key than `k`; what is
/// under `k` is a write of its own that cannot be read.
fn with_a_gap() -> (State, MemoryStorage) {
    let (mut state, storage) = state();
    state.write(NOW, &[put_op("k")], 1).expect("it writes");
    let third = record(&[put(5, 3, b"third")], &[]);
    let joined = state.apply(vec![(key("j"), third)], &clock(&[(5, 3)]), Reach::Part);
    joined.expect("it joins");
    damage(&storage, b"k");
    (state, storage)
}

#[test]
fn it_is_written_over_if_all_that_is_known_above_a_gap_is_live_under_a_known_key() {
    let (mut state, _) = with_a_gap();
    let written = state.write(NOW, &[put_op("k")], 1).expect("it writes");
    assert_eq!(written.last, Some(dot(1, 2)));
    let record = state.record(b"k").expect("it was replaced");
    assert!(record.seen.get(WriterId(5)) == 0, "it has seen a gap");

    // So a write that was missing stays beside it.
    let first = crate::samples::record(&[put(5, 1, b"first")], &[]);
    let joined = state.apply(vec![(key("k"), first)], &clock(&[(5, 3)]), Reach::Part);
    joined.expect("it joins");
    assert_eq!(state.record(b"k").expect("a good record").live.len(), 2);
}

#[test]
fn it_is_not_written_over_if_a_write_above_a_gap_may_have_been_of_its_key() {
    let (mut state, _) = with_a_gap();
    // The third write is dead: nobody can tell any more under which key it was.
    state.write(NOW, &[put_op("j")], 1).expect("it writes");
    let refused = state.write(NOW, &[put_op("k")], 1);
    assert!(matches!(refused, Err(StateError::Corrupt { .. })));
    assert!(state.record(b"k").is_err());
}

#[test]
fn mending_the_log_keeps_what_leads_to_it() {
    let (mut state, storage) = with_a_gap();
    state.mend_log().expect("memory takes all");
    assert_eq!(count(&storage, Table::Log), 2);
    // A peer that does not know the write has nothing that could stand for it.
    let theirs = record(&[put(6, 1, b"theirs")], &[]);
    let joined = state.apply(vec![(key("k"), theirs)], &clock(&[(6, 1)]), Reach::Part);
    assert!(joined.expect("it joins").passed_over);
}

#[test]
fn a_promotion_forgets_what_was_known_of_it_and_the_next_peer_mends_it() {
    let (mut state, storage) = with_a_gap();
    state.promote().expect("memory takes all");
    assert!(!state.clock().contains(dot(1, 1)), "known and not there");
    assert_eq!(count(&storage, Table::Log), 1);
    let theirs = record(&[put(6, 1, b"theirs")], &[]);
    let joined = state.apply(
        vec![(key("k"), theirs.clone())],
        &clock(&[(6, 1)]),
        Reach::Part,
    );
    assert_eq!(joined.expect("it joins").mended, 1);
    assert_eq!(state.record(b"k").expect("a good record"), theirs);
}

#[test]
fn a_record_with_a_write_that_is_live_under_another_key_does_not_stand_for_it() {
    let (mut state, storage) = with_a_gap();
    let theirs = record(&[put(5, 3, b"another third")], &[]);
    let context = clock(&[(1, 1), (5, 3)]);
    let joined = state.apply(vec![(key("k"), theirs)], &context, Reach::Part);
    assert!(joined.expect("it joins").passed_over);
    assert_eq!(count(&storage, Table::Log), 2);
}

#[test]
fn several_are_mended_by_one_round() {
    let (mut state, storage) = state();
    let ours = clock(&[(1, 2)]);
    state
        .write(NOW, &[put_op("a"), put_op("b")], 1)
        .expect("it writes");
    damage(&storage, b"a");
    damage(&storage, b"b");
    let theirs = |key, seq| {
        let seen = [dot(1, seq)];
        (key, record(&[put(5, seq, b"theirs")], &seen))
    };
    let records = vec![theirs(key("a"), 1), theirs(key("b"), 2)];
    let mut context = clock(&[(5, 2)]);
    context.union(&ours);
    let joined = state
        .apply(records, &context, Reach::Part)
        .expect("it joins");
    assert_eq!((joined.mended, joined.passed_over), (2, false));
    assert_eq!(count(&storage, Table::Log), 2);
}

#[test]
fn an_older_record_does_not_stand_for_it_while_a_heal_is_unfinished() {
    let (mut state, storage) = state();
    let floor = clock(&[(5, 2)]);
    state.begin_heal(&floor, &floor).expect("memory takes all");
    let good = record(&[put(5, 1, b"a value of some length")], &[]);
    let joined = state.apply(vec![(key("k"), good.clone())], &floor, Reach::Part);
    joined.expect("it joins");
    damage(&storage, b"k");
    let other = record(&[put(6, 1, b"concurrent")], &[]);
    let joined = state.apply(vec![(key("k"), other)], &clock(&[(6, 1)]), Reach::Part);
    assert!(joined.expect("it joins").passed_over);

    let reach = Reach::Snapshot {
        unclaimed: &[],
        floor: Some(&floor),
    };
    let joined = state.apply(vec![(key("k"), good)], &floor, reach);
    joined.expect("it joins");
    assert!(state.record(b"k").expect("mended").holds(dot(5, 1)));
}

/// Two replicas, of which the second is below the first one's floor and holds a write of its own that
/// nobody else has, and that cannot be read.
fn below_the_floor() -> Cluster {
    let mut cluster = Cluster::new(2);
    for number in 0..10 {
        cluster.put(0, &format!("a{number}"), "value");
    }
    cluster.delete(0, "a1");
    cluster.run_for_ms(10_000);
    assert!(!cluster.state(0).floor().is_empty());
    cluster.put(1, "k", "a fresh value of some length");
    let storage = cluster.node(1).storage.clone();
    damage(&storage, b"k");
    cluster.introduce(1, 0);
    cluster
}

#[test]
fn a_heal_over_a_lost_write_ends_by_one_promotion() {
    let mut cluster = below_the_floor();
    cluster.run_for_ms(50_000);
    assert!(
        !cluster.state(1).is_whole(),
        "the lost write was passed over"
    );
    assert_eq!(cluster.state(1).promotions(), 0);
    assert!(cluster.node(0).sends < 100, "{}", cluster.node(0).sends);

    cluster.run_for_ms(250_000);
    assert_eq!(cluster.state(1).promotions(), 1);
    assert!(cluster.state(1).is_whole());
    assert!(cluster.state(1).clock().covers(cluster.state(0).floor()));
    assert_eq!(cluster.get(1, "k"), None, "nobody else has it");
    cluster.put(1, "k", "again");
    cluster.run_for_ms(1_000);
    assert_eq!(cluster.get(0, "k").as_deref(), Some("again"));
    cluster.assert_equal();
}

#[test]
fn a_healer_that_cannot_read_a_record_of_its_own_makes_nobody_promote_again_and_again() {
    let mut cluster = below_the_floor();
    cluster.put(0, "z", "a value of some length");
    let storage = cluster.node(0).storage.clone();
    damage(&storage, b"z");
    cluster.run_for_ms(600_000);
    assert_eq!(
        cluster.state(1).promotions(),
        1,
        "for the write that was lost here"
    );
    assert!(!cluster.state(1).is_whole());
    assert_eq!(cluster.get(1, "a2").as_deref(), Some("value"));
    cluster.put(1, "k", "again");
    cluster.run_for_ms(1_000);
    assert_eq!(cluster.get(0, "k").as_deref(), Some("again"));

    // Once the healer's is written over everything comes to an end.
    cluster.put(0, "z", "another");
    cluster.run_for_ms(90_000);
    assert!(cluster.state(1).is_whole());
    assert_eq!(cluster.state(1).promotions(), 1);
    cluster.assert_equal();
}

#[test]
fn heals_over_a_lost_write_do_not_go_on_for_ever() {
    const DELIVERIES_MAX: usize = 5_000;
    let config = Config {
        range_keys: 1,
        ranges_per_reached: 1,
        ..Config::default()
    };
    let mut cluster = Cluster::with_config(2, config);
    for number in 0..10 {
        cluster.put(0, &format!("a{number}"), "value");
    }
    cluster.delete(0, "a1");
    cluster.run_for_ms(10_000);
    assert!(!cluster.state(0).floor().is_empty());
    cluster.put(1, "k", "a fresh value of some length");
    damage(&cluster.node(1).storage.clone(), b"k");
    cluster.introduce(1, 0);
    for news in ["x", "y", "z"] {
        // At one moment, so that nothing is said because time passes.
        cluster.advance_ms(1_000);
        let mut left = DELIVERIES_MAX;
        while let Some(end) = cluster.ends_with_mail().first().copied() {
            cluster.deliver_next(end, usize::MAX);
            left -= 1;
            assert!(left > 0, "they say the same again and again");
        }
        cluster.put(0, news, "news");
    }
}
