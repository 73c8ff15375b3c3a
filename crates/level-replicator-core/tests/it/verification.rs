//! Whatever is damaged, the check finds it, and it finds nothing where nothing is.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Now, ReplicaId};
use level_replicator_core::record::Op;
use level_replicator_core::state::{Reach, State, Verification};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Storage as _, Table};

/// A replica that has written, learned of a peer's writes, and has a floor, a feed and members.
fn sample() -> (MemoryStorage, State) {
    let (disk, other) = (MemoryStorage::new(), MemoryStorage::new());
    let mut state = State::open(Arc::new(disk.clone()), [1; 16]).expect("memory opens");
    let mut peer = State::open(Arc::new(other.clone()), [2; 16]).expect("memory opens");
    state.keep_changes(1_000, 7).expect("memory takes all");
    let now = Now::default();
    let key = |number: u8| Bytes::from(vec![b'k', number]);
    let write = |state: &mut State, numbers: std::ops::Range<u8>| {
        for number in numbers {
            let op = Op::Put(key(number), Bytes::from(vec![number; 30]));
            state.write(now, &[op], 3).expect("memory takes all");
        }
    };
    write(&mut state, 0..20);
    peer.write(now, &[Op::Put(key(3), Bytes::from_static(b"peer"))], 4)
        .expect("memory takes all");
    state
        .write(now, &[Op::Delete(key(5))], 3)
        .expect("memory takes all");
    let writers: Vec<_> = peer.writers().iter().copied().collect();
    state.describe(&writers).expect("honest descriptors");
    state.admit(ReplicaId([2; 16])).expect("memory takes all");
    let snapshot = other.snapshot();
    let row = snapshot.get(Table::Data, &key(3)).expect("memory reads");
    let record = level_replicator_core::state::read_record(row, &key(3), peer.writers());
    let context = Clock::clone(peer.clock());
    let reach = Reach::Snapshot {
        unclaimed: &[],
        floor: None,
    };
    let records = vec![(key(3), record.expect("a record"))];
    state
        .apply(records, &context, reach)
        .expect("memory takes all");
    state.adopt_floor(&context).expect("memory takes all");
    (disk, state)
}

fn verify(state: &State) -> Verification {
    let verified = state.verify_view().verify(|_, _| true);
    verified.expect("memory reads").expect("it was not ended")
}

fn rows(disk: &MemoryStorage, table: Table) -> Vec<(Bytes, Bytes)> {
    let snapshot = disk.snapshot();
    let rows = snapshot.range(table, Bound::Unbounded, Bound::Unbounded);
    rows.map(|row| row.expect("memory reads")).collect()
}

fn set(disk: &MemoryStorage, table: Table, key: &Bytes, row: Option<Bytes>) {
    let mut batch = Batch::default();
    match row {
        Some(row) => batch.put(table, key.clone(), row),
        None => batch.remove(table, key.clone()),
    }
    disk.commit(batch).expect("memory takes all");
}

#[test]
fn a_sound_replica_is_found_sound() {
    let (_, state) = sample();
    let verified = verify(&state);
    assert!(verified.is_sound(), "{verified:?}");
    assert_eq!(verified.keys, 19);
    assert_eq!(Some(verified.digest), state.tally().map(|it| it.digest));
    assert!(verified.rows > 60, "{}", verified.rows);
}

#[test]
fn every_changed_byte_is_found_and_told_with_a_cure() {
    for table in [
        Table::Data,
        Table::Log,
        Table::Clock,
        Table::Floor,
        Table::Writers,
        Table::Members,
        Table::Feed,
    ] {
        let (disk, state) = sample();
        let all = rows(&disk, table);
        assert!(!all.is_empty(), "{table:?} has no rows");
        for (key, row) in all {
            for at in 0..row.len() {
                let mut changed = row.to_vec();
                changed[at] ^= 0x04;
                set(&disk, table, &key, Some(changed.into()));
                let verified = verify(&state);
                let found = verified.findings.iter().find(|it| it.table == table);
                let found = found.unwrap_or_else(|| panic!("{table:?} {key:?} byte {at}"));
                assert!(!found.problem.is_empty() && !found.cure.is_empty());
            }
            set(&disk, table, &key, Some(row));
        }
        assert!(verify(&state).is_sound());
    }
}

#[test]
fn every_missing_row_of_data_log_and_feed_is_found() {
    for table in [Table::Data, Table::Log, Table::Feed] {
        let (disk, state) = sample();
        let all = rows(&disk, table);
        let last = all.last().expect("rows").0.clone();
        for (key, row) in all {
            // Nothing follows the last change that could tell of it.
            if table == Table::Feed && key == last {
                continue;
            }
            set(&disk, table, &key, None);
            assert!(!verify(&state).is_sound(), "{table:?} {key:?}");
            set(&disk, table, &key, Some(row));
        }
    }
}

#[test]
fn a_check_ends_when_it_is_told_to() {
    let (_, state) = sample();
    let mut told = 0;
    let verified = state.verify_view().verify(|_, total| {
        told += 1;
        assert!(total.is_some());
        told < 5
    });
    assert_eq!(verified.expect("memory reads"), None);
    assert_eq!(told, 5);
}
