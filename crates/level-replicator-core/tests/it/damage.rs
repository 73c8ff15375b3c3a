//! A damaged record is told of, never served or spread, and stops nobody.

use bytes::Bytes;
use level_replicator_core::event::Event;
use level_replicator_core::session::PeerError;
use level_replicator_core::storage::{Batch, Storage, Table};

use crate::cluster::Cluster;

/// Flips a bit of the value of a key.
fn damage(cluster: &mut Cluster, node: usize, key: &'static [u8]) {
    let storage = cluster.node(node).storage.clone();
    let row = storage.get(Table::Data, key).expect("memory reads");
    let mut row = row.expect("the key is there").to_vec();
    let middle = row.len() / 2;
    row[middle] ^= 1;
    let mut batch = Batch::default();
    batch.put(Table::Data, Bytes::from_static(key), row);
    storage.commit(batch).expect("memory takes all");
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
fn a_damaged_record_at_the_receiver_stays_and_everything_else_arrives() {
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
    assert!(cluster.node(1).replica.state().record(b"damaged").is_err());
    assert_eq!(storage_errors(&mut cluster, 1), 1);
    // Nothing of the key is known anew, and no whole clock: it can still be sent again.
    assert!(
        !cluster
            .state(1)
            .clock()
            .covers(&cluster.state(0).clock().clone())
    );
    assert!(
        cluster.node(0).sends < 200,
        "{} packets",
        cluster.node(0).sends
    );
}

#[test]
fn a_sync_over_a_damaged_record_fails_and_accuses_nobody_of_silence() {
    let mut cluster = Cluster::new(2);
    cluster.introduce(1, 0);
    cluster.put(0, "damaged", "a value of some length");
    cluster.settle();
    damage(&mut cluster, 1, b"damaged");
    cluster.put(0, "damaged", "another value");
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
