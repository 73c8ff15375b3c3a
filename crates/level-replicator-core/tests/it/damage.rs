//! A damaged record is told of, never served or spread, and stops nobody.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::event::Event;
use level_replicator_core::session::PeerError;
use level_replicator_core::state::{State, StateError};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Storage, Table};

use crate::cluster::Cluster;

/// Flips a bit in the middle of the row of a key.
fn damage(cluster: &mut Cluster, node: usize, key: &'static [u8]) {
    let storage = cluster.node(node).storage.clone();
    let row = storage.get(Table::Data, key).expect("memory reads");
    let middle = row.expect("the key is there").len() / 2;
    flip(&storage, Table::Data, key, middle);
}

/// Flips a bit of one byte of a row.
fn flip(storage: &MemoryStorage, table: Table, key: &[u8], at: usize) {
    let row = storage.get(table, key).expect("memory reads");
    let mut row = row.expect("the row is there").to_vec();
    row[at] ^= 1;
    let mut batch = Batch::default();
    batch.put(table, Bytes::copy_from_slice(key), row);
    storage.commit(batch).expect("memory takes all");
}

/// The keys and values of a table.
fn rows(storage: &MemoryStorage, table: Table) -> Vec<(Bytes, Bytes)> {
    let snapshot = storage.snapshot();
    let entries = snapshot.range(table, Bound::Unbounded, Bound::Unbounded);
    entries.map(|entry| entry.expect("memory reads")).collect()
}

fn storage_errors(cluster: &mut Cluster, node: usize) -> usize {
    let errors = cluster.node(node).events.iter().filter(|event| {
        matches!(
            event,
            Event::Error {
                error: PeerError::Storage { .. },
                ..
            }
        )
    });
    errors.count()
}

#[test]
pub(crate) fn a_damaged_record_at_the_sender_is_not_sent_and_not_tried_again_at_once() {
    let mut cluster = Cluster::new(2);
    for key in ["a", "damaged", "z"] {
        cluster.put(0, key, "a value of some length");
    }
    damage(&mut cluster, 0, b"damaged");
    cluster.introduce(1, 0);
    cluster.run_for_ms(3_000);
    cluster.put(0, "later", "value");
    cluster.run_for_ms(1_000);

    for key in ["a", "z", "later"] {
        assert!(cluster.get(1, key).is_some(), "{key} was not sent");
    }
    assert_eq!(cluster.get(1, "damaged"), None);
    let promised = cluster.state(1).clock().covers(cluster.state(0).clock());
    assert!(!promised, "it was claimed all the same");
    assert!((1..5).contains(&storage_errors(&mut cluster, 0)));
    assert!(
        cluster.node(0).sends < 60,
        "{} packets",
        cluster.node(0).sends
    );
}

#[test]
fn a_damaged_record_at_the_receiver_is_replaced_by_the_senders_and_everything_else_arrives() {
    let mut cluster = Cluster::new(2);
    cluster.introduce(1, 0);
    cluster.put(0, "damaged", "a value of some length");
    cluster.settle();
    damage(&mut cluster, 1, b"damaged");
    cluster.put(0, "damaged", "another value");
    for number in 0..50 {
        cluster.put(0, &format!("later{number}"), "value");
    }
    cluster.run_for_ms(5_000);

    for number in 0..50 {
        let key = format!("later{number}");
        assert!(cluster.get(1, &key).is_some(), "{key} did not arrive");
    }
    assert_eq!(cluster.get(1, "damaged").as_deref(), Some("another value"));
    assert_eq!(storage_errors(&mut cluster, 1), 1);
    cluster.assert_equal();
    assert!(
        cluster.node(0).sends < 200,
        "{} packets",
        cluster.node(0).sends
    );
}

/// Two replicas that wrote the same key apart from each other; what the second wrote is damaged.
fn with_a_lost_write() -> Cluster {
    let mut cluster = Cluster::new(2);
    cluster.introduce(1, 0);
    cluster.put(0, "before", "value");
    cluster.settle();
    cluster.cut(0, 1);
    cluster.put(0, "damaged", "theirs");
    cluster.put(1, "damaged", "a value that nobody else knows");
    damage(&mut cluster, 1, b"damaged");
    cluster.heal();
    cluster.introduce(1, 0);
    cluster
}

#[test]
fn a_damaged_record_stays_if_it_may_hold_a_write_that_the_peer_does_not_know() {
    let mut cluster = with_a_lost_write();
    cluster.put(0, "later", "value");
    cluster.run_for_ms(5_000);

    assert!(cluster.get(1, "later").is_some());
    assert!(cluster.node(1).replica.state().record(b"damaged").is_err());
    assert!((1..5).contains(&storage_errors(&mut cluster, 1)));
    // Nothing of the key is known anew, and no whole clock: it can still be sent again.
    let theirs = cluster.state(0).clock().clone();
    assert!(!cluster.state(1).clock().covers(&theirs));
    assert_eq!(cluster.get(0, "damaged").as_deref(), Some("theirs"));
}

/// How many packets a replica sends within 20 ms, if every microsecond brings what is under way.
fn packets_in_20_ms(cluster: &mut Cluster, node: usize) -> u64 {
    let before = cluster.node(node).sends;
    for _ in 0..20_000 {
        let ends = cluster.ends_with_mail();
        cluster.advance_us(1);
        for end in ends {
            cluster.deliver_next(end, usize::MAX);
        }
    }
    cluster.node(node).sends - before
}

#[test]
fn a_record_that_nobody_can_mend_is_not_asked_for_over_and_over() {
    let mut cluster = Cluster::new(2);
    cluster.introduce(1, 0);
    cluster.put(0, "damaged", "an old value of some length");
    cluster.settle();
    cluster.put(1, "damaged", "a fresh value of some length");
    damage(&mut cluster, 1, b"damaged");
    let packets = packets_in_20_ms(&mut cluster, 0);
    assert!(packets < 100, "{packets} packets");
}

#[test]
fn a_record_that_neither_side_can_read_is_not_asked_for_over_and_over() {
    let mut cluster = Cluster::new(2);
    cluster.introduce(1, 0);
    cluster.put(0, "damaged", "an old value of some length");
    cluster.settle();
    for node in 0..2 {
        damage(&mut cluster, node, b"damaged");
        let error = cluster.state(node).record(b"damaged");
        let error = error.expect_err("it is damaged");
        cluster.node(node).replica.note_damage(&error);
    }
    cluster.run_for_ms(5_000);
    cluster.put(0, "other", "value");
    let packets = packets_in_20_ms(&mut cluster, 0);
    assert!(packets < 100, "{packets} packets");
}

#[test]
fn a_sync_over_a_damaged_record_fails_and_accuses_nobody_of_silence() {
    let mut cluster = with_a_lost_write();
    cluster.run_for_ms(2_000);

    for asker in [1, 0] {
        let now = cluster.now;
        let sync = cluster.node(asker).replica.request_sync(now);
        cluster.run_for_ms(15_000);
        let missed = cluster.node(asker).replica.sync_result(sync);
        assert_eq!(
            missed.map(|missed| missed.len()),
            Some(1),
            "asked by {asker}"
        );
    }

    for node in 0..2 {
        let silent = |event: &Event| {
            matches!(
                event,
                Event::Error {
                    error: PeerError::Stalled { .. },
                    ..
                }
            )
        };
        let events = &cluster.node(node).events;
        assert!(!events.iter().any(silent), "{node}: {events:?}");
    }
}

#[test]
fn every_byte_of_a_record_is_covered_and_the_good_copy_comes_back() {
    let mut cluster = Cluster::new(2);
    cluster.put(0, "damaged", "value");
    cluster.introduce(1, 0);
    cluster.settle();
    let len = rows(&cluster.node(1).storage, Table::Data)[0].1.len();
    for at in 0..len {
        let storage = cluster.node(1).storage.clone();
        flip(&storage, Table::Data, b"damaged", at);
        let read = cluster.state(1).record(b"damaged");
        let names_table = |error| {
            matches!(
                error,
                StateError::Corrupt {
                    table: Table::Data,
                    ..
                }
            )
        };
        assert!(read.is_err_and(names_table), "byte {at} was served");
        // A conversation that touches the key finds it, and asks for it.
        cluster.put(0, "damaged", "value");
        cluster.run_for_ms(1_000);
        assert_eq!(
            cluster.get(1, "damaged").as_deref(),
            Some("value"),
            "byte {at}"
        );
        assert_eq!(
            cluster.get(0, "damaged").as_deref(),
            Some("value"),
            "byte {at}"
        );
    }
    cluster.assert_equal();
}

#[test]
fn a_local_write_replaces_a_record_that_cannot_be_read_and_nothing_that_is_missing() {
    let mut cluster = Cluster::new(2);
    cluster.introduce(1, 0);
    cluster.put(0, "damaged", "before");
    cluster.settle();
    damage(&mut cluster, 0, b"damaged");
    cluster.put(0, "damaged", "after");
    cluster.settle();
    for node in 0..2 {
        assert_eq!(cluster.siblings(node, "damaged"), ["after"], "node {node}");
    }
    cluster.assert_equal();

    let mut cluster = with_a_lost_write();
    cluster.put(0, "later", "value");
    cluster.run_for_ms(3_000);
    let known = cluster.state(1).clock().clone();
    assert!(known.iter().any(|(_, known)| known.ahead_len() > 0));
    // What is known above the gap is live under another key, so it is none of this one's.
    cluster.put(1, "damaged", "after");
    cluster.run_for_ms(35_000);
    for node in 0..2 {
        let values = cluster.siblings(node, "damaged");
        assert_eq!(values, ["after", "theirs"], "node {node}");
    }
    cluster.assert_equal();
}

/// The log is rebuilt from the data, whatever was damaged: the flag, the key, the checksum.
#[test]
fn a_damaged_log_entry_is_told_of_and_its_write_arrives_all_the_same() {
    for at in 0..6 {
        let mut cluster = Cluster::new(2);
        cluster.put(0, "k", "value");
        let storage = cluster.node(0).storage.clone();
        let (row, value) = rows(&storage, Table::Log)[0].clone();
        assert_eq!(value.len(), 6);
        flip(&storage, Table::Log, &row, at);
        cluster.introduce(1, 0);
        cluster.run_for_ms(35_000);

        assert_eq!(cluster.get(1, "k").as_deref(), Some("value"), "byte {at}");
        let told = |event: &Event| matches!(event, Event::Error { error: PeerError::Storage { reason }, .. } if reason.contains("Log"));
        assert!(cluster.node(0).events.iter().any(told), "byte {at}");
        cluster.assert_equal();
    }
}

#[test]
fn a_log_entry_that_was_lost_is_missed_by_the_comparison_of_sums() {
    let mut cluster = Cluster::new(2);
    cluster.put(0, "k", "value");
    let storage = cluster.node(0).storage.clone();
    let (row, value) = rows(&storage, Table::Log)[0].clone();
    let mut other = row.to_vec();
    other[11] ^= 0x40;
    let mut batch = Batch::default();
    batch.remove(Table::Log, row);
    batch.put(Table::Log, Bytes::from(other), value);
    storage.commit(batch).expect("memory takes all");
    cluster.introduce(1, 0);
    cluster.run_for_ms(70_000);

    assert_eq!(cluster.get(1, "k").as_deref(), Some("value"));
    let told = |event: &Event| matches!(event, Event::Divergence { .. });
    assert!((0..2).any(|node| cluster.node(node).events.iter().any(told)));
}

#[test]
fn a_log_that_is_damaged_again_and_again_is_rebuilt_once_in_a_while() {
    let mut cluster = Cluster::new(1);
    let dot = cluster.put(0, "k", "value");
    // Until the one epoch is over.
    cluster.run_for_ms(20_000);
    let mut commits_after = |ms| {
        let key = Bytes::from_static(b"k");
        let damage = StateError::LogMismatch { dot, key };
        let before = cluster.state(0).commits();
        cluster.node(0).replica.note_damage(&damage);
        cluster.run_for_ms(ms);
        cluster.state(0).commits() - before
    };
    assert!(commits_after(100) > 0, "it was not rebuilt");
    assert_eq!(commits_after(5_000), 0);
    assert!(commits_after(30_000) > 0, "it was not rebuilt");
}

/// Two replicas that hold the same, with a floor, members and an epoch.
fn at_rest() -> Cluster {
    let mut cluster = Cluster::new(2);
    cluster.introduce_all();
    for node in 0..2 {
        cluster.put(node, "deleted", "value");
        cluster.put(node, &format!("kept{node}"), "value");
    }
    cluster.settle();
    cluster.delete(0, "deleted");
    cluster.run_for_ms(15_000);
    for node in 0..2 {
        assert!(!cluster.state(node).floor().is_empty(), "no floor");
        assert!(!cluster.state(node).epoch().acks.is_empty(), "no epoch");
    }
    cluster
}

#[test]
fn damaged_rows_of_the_clock_and_the_floor_are_rebuilt_at_the_open_and_healed() {
    for table in [Table::Clock, Table::Floor] {
        let damaged = at_rest().kill(1);
        for (number, (row, value)) in rows(&damaged, table).into_iter().enumerate() {
            for at in [0, value.len() - 1] {
                let mut cluster = at_rest();
                let storage = cluster.kill(1);
                flip(&storage, table, &row, at);
                cluster.open(1, storage);
                let name = format!("{table:?}");
                let told = |event: &Event| matches!(event, Event::Rebuilt { damage } if damage.contains(&name));
                cluster.run_for_ms(5);
                let node = cluster.node(1);
                assert!(node.events.iter().any(told), "row {number} of {table:?}");
                assert!(cluster.get(1, "kept1").is_some(), "its own value");
                cluster.introduce_all();
                cluster.run_for_ms(5_000);
                cluster.assert_equal();
                for key in ["kept0", "kept1"] {
                    assert_eq!(cluster.get(1, key).as_deref(), Some("value"));
                }
                assert_eq!(cluster.get(1, "deleted"), None, "a delete was forgotten");
            }
        }
    }
}

#[test]
fn damaged_rows_of_writers_refuse_the_open_and_nothing_is_changed() {
    for table in [Table::Writers] {
        let storage = at_rest().kill(1);
        for (row, value) in rows(&storage, table) {
            for at in 0..value.len() {
                let damaged = storage.fork();
                flip(&damaged, table, &row, at);
                let before: Vec<_> = Table::ALL.map(|table| rows(&damaged, table)).into();
                let opened = State::open(Arc::new(damaged.clone()), [0; 16]);
                let refused = opened.err().map(|error| error.to_string());
                let name = format!("{table:?}");
                assert!(
                    refused.is_some_and(|text| text.contains(&name)),
                    "byte {at}"
                );
                let after: Vec<_> = Table::ALL.map(|table| rows(&damaged, table)).into();
                assert_eq!(after, before);
            }
        }
    }
}

#[test]
fn a_damaged_row_of_a_member_is_told_again_by_who_knows_it() {
    let storage = at_rest().kill(1);
    for (row, _) in rows(&storage, Table::Members) {
        let mut cluster = at_rest();
        let storage = cluster.kill(1);
        flip(&storage, Table::Members, &row, 0);
        cluster.open(1, storage);
        cluster.introduce_all();
        cluster.run_for_ms(2_000);
        assert_eq!(cluster.state(1).members(), cluster.state(0).members());
        assert_eq!(cluster.state(1).members().len(), 2);
        cluster.assert_equal();
    }
}

#[test]
fn rows_that_are_damaged_while_a_replica_runs_are_not_read_and_stop_nobody() {
    for table in [
        Table::Clock,
        Table::Writers,
        Table::Floor,
        Table::Members,
        Table::Epoch,
    ] {
        let mut cluster = at_rest();
        let storage = cluster.node(1).storage.clone();
        for (row, _) in rows(&storage, table) {
            flip(&storage, table, &row, 0);
        }
        cluster.put(0, "after", "value");
        cluster.put(1, "kept0", "after");
        cluster.run_for_ms(5_000);
        cluster.assert_equal();
        assert_eq!(
            cluster.get(1, "after").as_deref(),
            Some("value"),
            "{table:?}"
        );
        assert_eq!(
            cluster.get(0, "kept0").as_deref(),
            Some("after"),
            "{table:?}"
        );
    }
}

#[test]
fn a_damaged_row_of_the_epoch_is_told_again_by_peers_or_proposed_anew() {
    for (row, value) in rows(&at_rest().kill(1), Table::Epoch) {
        for at in 0..value.len() {
            let mut cluster = at_rest();
            let storage = cluster.kill(1);
            flip(&storage, Table::Epoch, &row, at);
            cluster.open(1, storage);
            cluster.introduce_all();
            cluster.delete(0, "kept0");
            cluster.run_for_ms(6_000);
            cluster.assert_equal();
            let epochs = [0, 1].map(|node| cluster.state(node).epoch().clone());
            assert_eq!(epochs[0], epochs[1]);
        }
    }
}
