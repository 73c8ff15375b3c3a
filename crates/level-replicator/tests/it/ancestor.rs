//! What the ancestor, and stores like this one, got wrong when they were run for real: one test each.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;
use std::ops::Bound;
use std::thread;
use std::time::Duration;

use level_replicator::{Db, Options, Resolver, Secret};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Storage, Table};

use crate::child::{Child, noise};
use crate::common::*;
use crate::wire::{Wire, open_key};

fn in_memory(options: Options) -> Db {
    open_in_memory(options, &MemoryStorage::new())
}

fn traffic(db: &Db) -> u64 {
    let traffic = db.status().traffic;
    traffic.sent_bytes + traffic.received_bytes
}

fn log_entries(storage: &MemoryStorage) -> usize {
    storage
        .snapshot()
        .range(Table::Log, Bound::Unbounded, Bound::Unbounded)
        .count()
}

#[test]
fn replication_goes_on_after_hundreds_of_writes_of_one_process() {
    let (first, second) = {
        let first = in_memory(listening());
        let second = in_memory(listening().peer(address(&first)));
        (first, second)
    };
    for number in 0..300u32 {
        let dot = first.put(number.to_string(), "value").expect("a write");
        if number % 10 == 0 {
            first.wait_replicated(dot, 1, PATIENCE).expect("it arrives");
        }
    }
    agree(&[&first, &second]);
    assert_eq!(second.iter().count(), 300);
    let dot = first.put("one more", "value").expect("a write");
    first.wait_replicated(dot, 1, PATIENCE).expect("it arrives");
    assert_eq!(text(&second, "one more").as_deref(), Some("value"));
}

#[test]
fn one_write_starts_few_connections_and_they_close() {
    let linger = Duration::from_millis(50);
    let first = in_memory(listening().linger(linger));
    let second = in_memory(listening().linger(linger).peer(address(&first)));
    second.sync_now(PATIENCE).expect("the peer is reached");
    eventually("the links are closed", || {
        first.status().links + second.status().links == 0
    });
    let before = first.status().traffic.conversations;

    first.put("key", "value").expect("a write");
    agree(&[&first, &second]);
    eventually("the links are closed", || {
        first.status().links + second.status().links == 0
    });
    let started = first.status().traffic.conversations - before;
    assert!(
        (1..=3).contains(&started),
        "one write started {started} conversations"
    );
}

#[test]
fn twenty_keys_written_at_once_on_two_replicas_end_equal() {
    let (first, second) = (in_memory(listening()), in_memory(listening()));
    for number in 0..20 {
        first
            .put(format!("{number:02}"), "of first")
            .expect("a write");
        second
            .put(format!("{number:02}"), "of second")
            .expect("a write");
    }
    first.add_peer(address(&second)).expect("an address");
    agree(&[&first, &second]);
    for number in 0..20 {
        let key = format!("{number:02}");
        assert_eq!(sibling_texts(&first, &key), ["of first", "of second"]);
        assert_eq!(text(&first, &key).as_deref(), Some("of second"));
    }
    assert_eq!(second.status().conflicts, Some(20));
}

#[test]
fn a_delete_against_a_put_ends_equal_and_the_put_survives() {
    let (first, second) = (in_memory(listening()), in_memory(listening()));
    first.put("key", "seen").expect("a write");
    first.add_peer(address(&second)).expect("an address");
    agree(&[&first, &second]);

    first.pause().expect("the links end");
    second.put("key", "unseen").expect("a write");
    first.delete("key").expect("a delete");
    assert_eq!(text(&first, "key"), None);
    first.resume().expect("it is open");
    agree(&[&first, &second]);
    assert_eq!(sibling_texts(&first, "key"), ["unseen"]);
    assert_eq!(sibling_texts(&second, "key"), ["unseen"]);
}

#[test]
fn three_replicas_agree_with_a_resolver() {
    let options = || listening().resolver(Resolver::pick(|a, b| b.value < a.value));
    let nodes = [(); 3].map(|()| in_memory(options()));
    for (db, value) in nodes.iter().zip(["b", "a", "c"]) {
        for number in 0..5 {
            db.put(format!("key {number}"), value).expect("a write");
        }
    }
    for db in &nodes[1..] {
        nodes[0].add_peer(address(db)).expect("an address");
    }
    agree(&nodes.iter().collect::<Vec<_>>());
    for db in &nodes {
        assert!(
            contents(db).values().all(|value| value == b"a"),
            "the least wins everywhere"
        );
        assert_eq!(db.iter().count(), 5);
    }
}

#[test]
fn a_killed_peer_leaves_the_other_alive() {
    let db = open(listening());
    let directory = directory();
    let path = directory.path().to_str().expect("a path of text");
    let (cluster, peer) = (cluster(), db.address());
    let mut child = Child::start("writer", &[path, &cluster, &peer, "a/"]);
    child.expect("ready");
    eventually("they talk", || db.iter().count() > 20);
    child.kill();

    db.put("after the kill", "value").expect("a write");
    let healthy = open(listening().peer(db.address()));
    agree(&[&db, &healthy]);
    assert_eq!(text(&healthy, "after the kill").as_deref(), Some("value"));
}

#[test]
fn writes_after_a_restart_replicate() {
    let first = open(listening());
    let second = open(alone().peer(first.address()));
    let mut first = first;
    for round in 0..4 {
        let key = format!("round {round}");
        first.put(&key, "value").expect("a write");
        first
            .put("every round", round.to_string())
            .expect("a write");
        second.sync_now(PATIENCE).expect("the peer is reached");
        assert_eq!(text(&second, &key).as_deref(), Some("value"));
        assert_eq!(sibling_texts(&second, "every round"), [round.to_string()]);
        let address = first.address();
        second.remove_peer(&address).expect("an address");
        first = first.reopen(listening());
        second.add_peer(first.address()).expect("an address");
    }
}

#[test]
fn catching_up_costs_in_proportion_to_what_is_missing() {
    let value = noise(100 * 4_000);
    let cost = |keys: usize| {
        let first = in_memory(listening());
        let mut batch = first.batch();
        for (number, value) in value.chunks(100).take(keys).enumerate() {
            batch.put(format!("key {number:08}"), value);
        }
        batch.commit().expect("a write");
        let second = in_memory(alone().peer(address(&first)));
        second.sync_now(PATIENCE).expect("the peer is reached");
        assert_eq!(
            second.status().traffic.received_records as usize,
            keys,
            "each crosses once"
        );
        agree(&[&first, &second]);
        traffic(&second) as f64
    };
    let (half, whole) = (cost(2_000), cost(4_000));
    assert!(
        whole <= 2.3 * half,
        "2,000 keys cost {half} bytes, 4,000 cost {whole}"
    );
    assert!(
        whole / 4_000.0 <= 160.0,
        "{} bytes a key of 112",
        whole / 4_000.0
    );
}

#[test]
fn log_and_index_do_not_grow_with_overwrites() {
    let storage = MemoryStorage::new();
    let db = open_in_memory(listening(), &storage);
    let peer_storage = MemoryStorage::new();
    let peer = open_in_memory(alone().peer(address(&db)), &peer_storage);
    for number in 0..20 {
        db.put("key", number.to_string()).expect("a write");
        agree(&[&db, &peer]);
    }
    let rows = |storage: &MemoryStorage, table| {
        storage
            .snapshot()
            .range(table, Bound::Unbounded, Bound::Unbounded)
            .count()
    };
    for storage in [&storage, &peer_storage] {
        assert_eq!(log_entries(storage), 1, "20 overwrites leave one entry");
        assert_eq!(rows(storage, Table::Data), 1);
        assert_eq!(rows(storage, Table::Pending), 0);
    }
    peer.put("key", "of the peer").expect("a write");
    agree(&[&db, &peer]);
    assert_eq!((log_entries(&storage), log_entries(&peer_storage)), (1, 1));
}

#[test]
fn writes_are_passed_on_between_replicas_that_never_meet() {
    let middle = in_memory(listening());
    let first = in_memory(alone().peer(address(&middle)));
    let last = in_memory(alone().peer(address(&middle)));
    for number in 0..10 {
        first
            .put(format!("first {number}"), "value")
            .expect("a write");
        last.put(format!("last {number}"), "value")
            .expect("a write");
    }
    agree(&[&first, &middle, &last]);
    assert_eq!(last.iter().count(), 20);
}

#[test]
fn a_stranger_cannot_write() {
    let secret = Secret::generate().expect("a secret");
    let db = in_memory(listening().secret(secret));
    db.put("key", "value").expect("a write");
    let before = (db.digest().expect("a digest"), db.status().clock);

    // Whoever knows the cluster's name, a replica without the secret, and plain noise.
    assert!(Wire::dial(&address(&db), &open_key(&cluster())).is_err());
    let stranger = in_memory(alone().first_sync_timeout(Duration::ZERO));
    stranger.put("key", "forged").expect("a write");
    stranger.put("more", "forged").expect("a write");
    stranger.add_peer(address(&db)).expect("an address");
    assert!(stranger.sync_now(Duration::from_secs(2)).is_err());
    let mut raw = TcpStream::connect(address(&db)).expect("it listens");
    raw.write_all(&noise(5_000)).ok();

    assert_eq!((db.digest().expect("a digest"), db.status().clock), before);
    assert_eq!(
        text(&stranger, "key").as_deref(),
        Some("forged"),
        "and it reads nothing either"
    );
    assert_eq!(db.status().traffic.received_records, 0);
}

#[test]
fn an_empty_batch_answers() {
    let first = in_memory(listening());
    assert_eq!(first.batch().commit().expect("an answer"), None);
    let second = in_memory(alone().peer(address(&first)));
    assert_eq!(second.batch().commit().expect("an answer"), None);
    first.put("key", "value").expect("a write");
    agree(&[&first, &second]);
}

#[test]
fn the_same_key_twice_in_a_batch_and_ten_puts_at_once_are_counted_right() {
    let first = in_memory(listening());
    let mut batch = first.batch();
    batch.put("key", "1").put("key", "2");
    let dot = batch
        .commit()
        .expect("a write")
        .expect("something was written");
    assert_eq!(dot.seq, 1);

    let dots: BTreeSet<u64> = thread::scope(|scope| {
        let writers: Vec<_> = (0..10)
            .map(|number| {
                let first = &first;
                scope.spawn(move || first.put("key", number.to_string()).expect("a write").seq)
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().expect("no panic"))
            .collect()
    });
    assert_eq!(dots, (2..=11).collect());
    assert_eq!(sibling_texts(&first, "key").len(), 1);

    let second = in_memory(alone().peer(address(&first)));
    agree(&[&first, &second]);
    assert_eq!(sibling_texts(&second, "key").len(), 1);
}

#[test]
fn the_defaults_of_the_readme_work() {
    let (here, there) = (directory(), directory());
    let first = Options::new()
        .listen("127.0.0.1:0")
        .open(here.path())
        .expect("it opens");
    let second = Options::new()
        .peer(address(&first))
        .open(there.path())
        .expect("it opens");
    first.put("some-key", "some-value").expect("a write");
    agree(&[&first, &second]);
    assert_eq!(text(&second, "some-key").as_deref(), Some("some-value"));
    second.put("ключ", "значение").expect("a write");
    agree(&[&first, &second]);
    assert_eq!(text(&first, "ключ").as_deref(), Some("значение"));
}

/// Tarantool: A ends with what B wrote and B with what A wrote.
#[test]
fn two_replicas_do_not_end_with_each_others_value() {
    let first = in_memory(listening());
    let second = in_memory(listening());
    first.add_peer(address(&second)).expect("an address");
    second.add_peer(address(&first)).expect("an address");
    agree(&[&first, &second]);
    for round in 0..30 {
        thread::scope(|scope| {
            scope.spawn(|| {
                first
                    .put("key", format!("of first {round}"))
                    .expect("a write")
            });
            scope.spawn(|| {
                second
                    .put("key", format!("of second {round}"))
                    .expect("a write")
            });
        });
        agree(&[&first, &second]);
        assert_eq!(text(&first, "key"), text(&second, "key"));
        let shown = text(&first, "key").expect("a value");
        assert!(
            shown.ends_with(&round.to_string()),
            "an older value shows: {shown}"
        );
    }
}

/// PouchDB: the loser of a conflict comes back when the winner is deleted.
#[test]
fn the_loser_of_a_conflict_does_not_come_back_when_the_winner_is_deleted() {
    let (first, second) = (in_memory(listening()), in_memory(listening()));
    first.put("key", "loser").expect("a write");
    second.put("key", "winner").expect("a write");
    first.add_peer(address(&second)).expect("an address");
    agree(&[&first, &second]);
    assert_eq!(text(&first, "key").as_deref(), Some("winner"));

    first.delete("key").expect("a delete");

    agree(&[&first, &second]);
    assert_eq!((text(&first, "key"), text(&second, "key")), (None, None));
    assert!(sibling_texts(&second, "key").is_empty());
    assert_eq!(second.status().conflicts, Some(0));
}

/// datacake: the cost of a conversation without news grows with the number of keys.
#[test]
fn idle_traffic_does_not_grow_with_the_number_of_keys() {
    let cost = |keys: usize| {
        let first = in_memory(listening().linger(Duration::ZERO));
        let mut batch = first.batch();
        for number in 0..keys {
            batch.put(format!("{number:08}"), "value");
        }
        batch.commit().expect("a write");
        let second = in_memory(alone().linger(Duration::ZERO).peer(address(&first)));
        agree(&[&first, &second]);
        // What is left of the catch-up ends here.
        for _ in 0..2 {
            second.sync_now(PATIENCE).expect("the peer is reached");
            eventually("no link is left", || {
                first.status().links + second.status().links == 0
            });
        }
        let before = second.status().traffic;
        for _ in 0..3 {
            second.sync_now(PATIENCE).expect("the peer is reached");
            eventually("no link is left", || {
                first.status().links + second.status().links == 0
            });
        }
        let after = second.status().traffic;
        let conversations = after.conversations - before.conversations;
        assert_eq!(after.received_records, before.received_records);
        let sent = (after.sent_bytes - before.sent_bytes) / conversations;
        let received = (after.received_bytes - before.received_bytes) / conversations;
        assert!(
            sent <= 300 && received <= 300,
            "{sent} bytes there and {received} back"
        );
        sent + received
    };
    let (few, many) = (cost(10), cost(3_000));
    assert!(
        many <= few + 20,
        "{few} bytes with 10 keys, {many} with 3,000"
    );
}
