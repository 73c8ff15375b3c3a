//! Replicas that talk over real sockets of this machine.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use level_replicator::{Db, Discovery, Error, Event, SyncState};
use level_replicator_core::storage::memory::MemoryStorage;

use crate::child::noise;
use crate::common::*;
use crate::proxy::Proxy;
use crate::wire::{Wire, open_key};

fn conversations(db: &Db) -> u64 {
    db.status().traffic.conversations
}

#[test]
fn writes_on_any_of_three_replicas_reach_all() {
    let nodes = star(3);
    for (number, node) in nodes.iter().enumerate() {
        node.put(format!("from {number}"), "value")
            .expect("a write");
    }
    let all: Vec<&Db> = nodes.iter().map(|node| &node.db).collect();
    eventually("each has all three", || {
        all.iter().all(|db| db.iter().count() == 3)
    });
    agree(&all);

    nodes[2].delete("from 0").expect("a delete");
    nodes[0].put("from 1", "changed").expect("a write");
    eventually("the changes are everywhere", || {
        all.iter().all(|db| {
            text(db, "from 0").is_none() && text(db, "from 1").as_deref() == Some("changed")
        })
    });
    agree(&all);
}

#[test]
fn a_delete_reaches_all_and_the_key_does_not_come_back() {
    let nodes = star(3);
    nodes[0].put("key", "value").expect("a write");
    let all: Vec<&Db> = nodes.iter().map(|node| &node.db).collect();
    eventually("each has the key", || {
        all.iter().all(|db| text(db, "key").is_some())
    });

    nodes[1].delete("key").expect("a delete");

    eventually("nobody has the key", || {
        all.iter().all(|db| text(db, "key").is_none())
    });
    agree(&all);
    for db in &all {
        db.sync_now(PATIENCE).expect("all are reached");
    }
    assert!(all.iter().all(|db| db.iter().count() == 0));
}

#[test]
fn two_replicas_that_listen_nowhere_meet_through_a_third() {
    let relay = open(listening());
    let ends = [(); 2].map(|()| open(alone().peer(relay.address())));
    ends[0].put("a", "value").expect("a write");
    ends[1].put("b", "value").expect("a write");

    agree(&[&ends[0], &relay, &ends[1]]);
    eventually("both keys are at both ends", || {
        ends.iter().all(|end| end.iter().count() == 2)
    });
    for end in &ends {
        assert_eq!(
            end.peers().len(),
            1,
            "nobody told an address that leads nowhere"
        );
    }
}

#[test]
fn concurrent_writes_are_siblings_everywhere_and_readers_agree_on_one() {
    let nodes = [(); 3].map(|()| open(listening()));
    for (number, node) in nodes.iter().enumerate() {
        node.put("key", format!("from {number}")).expect("a write");
    }
    for node in &nodes[1..] {
        nodes[0].add_peer(node.address()).expect("an address");
    }
    agree(&[&nodes[0], &nodes[1], &nodes[2]]);
    for node in &nodes {
        assert_eq!(sibling_texts(node, "key"), ["from 0", "from 1", "from 2"]);
        assert_eq!(
            text(node, "key").as_deref(),
            Some("from 2"),
            "the last by its stamp wins"
        );
        assert_eq!(node.status().conflicts, Some(1));
    }

    nodes[1].put("key", "settled").expect("a write");
    agree(&[&nodes[0], &nodes[1], &nodes[2]]);
    for node in &nodes {
        assert_eq!(sibling_texts(node, "key"), ["settled"]);
    }
}

#[test]
fn a_large_value_and_many_keys_cross_whole() {
    let first = open(listening());
    let large = noise(3 << 20);
    first.put("large", &large).expect("a write");
    let mut batch = first.batch();
    for number in 0..3_000 {
        batch.put(format!("{number:05}"), noise(100));
    }
    batch.commit().expect("a write");
    let second = open(alone().peer(first.address()));
    second.sync_now(PATIENCE).expect("the peer is reached");
    agree(&[&first, &second]);
    assert_eq!(
        second.get("large").expect("a read").as_deref(),
        Some(&large[..])
    );
    eventually("nothing is half", || {
        second.status().sync_state == SyncState::Settled
    });
}

/// B sends A everything over a wire that is cut after some bytes; then B is gone for good, and C,
/// which has all of it, must give A exactly the rest.
#[test]
fn a_conversation_cut_at_any_byte_is_finished_by_another_peer() {
    let values = noise(400_000);
    for bytes in [1, 98, 180, 700, 66_000, 133_000, 266_000] {
        let proxy = Proxy::start();
        let b = open_in_memory(
            listening().advertise(proxy.address()),
            &MemoryStorage::new(),
        );
        proxy.lead_to(&address(&b));
        for (number, value) in values.chunks(1_000).enumerate() {
            b.put(format!("{number:03}"), value).expect("a write");
        }
        for number in (0..400).step_by(7) {
            b.delete(format!("{number:03}")).expect("a delete");
        }
        let c = open_in_memory(listening().peer(address(&b)), &MemoryStorage::new());
        c.sync_now(PATIENCE).expect("b is reached");
        c.remove_peer(proxy.address()).expect("an address");
        c.remove_peer(address(&b)).expect("an address");
        let whole = contents(&b);

        proxy.cut_answers_after(bytes);
        let a = open_in_memory(
            listening().first_sync_timeout(Duration::ZERO),
            &MemoryStorage::new(),
        );
        a.put("of a", "value").expect("a write");
        a.add_peer(proxy.address()).expect("an address");
        eventually("the cut wire was tried", || proxy.answered() >= bytes);
        a.remove_peer(proxy.address()).expect("an address");
        drop(proxy);
        b.close().expect("it closes");

        a.add_peer(address(&c)).expect("an address");
        eventually(&format!("a has all after a cut at {bytes}"), || {
            a.iter().count() == whole.len() + 1
        });
        agree(&[&a, &c]);
        let mut of_a = contents(&a);
        assert!(of_a.remove(&b"of a"[..]).is_some());
        assert!(of_a == whole, "after a cut at {bytes}");
        assert_eq!(a.status().sync_state, SyncState::Settled);
    }
}

/// One replica writes batches in which every key gets the same number; a reader on another one
/// must never see two numbers in one view.
#[test]
fn readers_of_another_replica_never_see_half_of_a_batch() {
    let writer = open(listening());
    let write = |number: u32| {
        let mut batch = writer.batch();
        for key in 0..100 {
            batch.put(format!("{key:03}"), number.to_string());
        }
        batch.commit().expect("a write")
    };
    write(0);
    let reader = open(listening().peer(writer.address()));
    reader.sync_now(PATIENCE).expect("the writer is reached");
    agree(&[&writer, &reader]);

    let done = AtomicBool::new(false);
    let numbers = |range: level_replicator::Range| -> BTreeSet<Vec<u8>> {
        range
            .map(|entry| entry.expect("an entry").1.to_vec())
            .collect()
    };
    let seen = thread::scope(|scope| {
        let (done, reader, numbers) = (&done, &reader, &numbers);
        let by_range = scope.spawn(move || {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Acquire) {
                let found = numbers(reader.iter());
                assert_eq!(found.len(), 1, "a range shows half of a batch: {found:?}");
                seen.extend(found);
            }
            seen.len()
        });
        let by_snapshot = scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                let view = reader.snapshot();
                let first = view.get("000").expect("a read");
                let last = view.get("099").expect("a read");
                assert_eq!(first, last, "a snapshot shows half of a batch");
                let backwards = view.range("050"..).next_back();
                let (_, value) = backwards.expect("a key").expect("an entry");
                assert_eq!(Some(value), first, "a snapshot shows half of a batch");
            }
        });
        let mut last = None;
        for number in 1..=60 {
            last = write(number);
            if number % 3 == 0 {
                let dot = last.expect("something was written");
                writer
                    .wait_replicated(dot, 1, PATIENCE)
                    .expect("it arrives");
            }
        }
        let dot = last.expect("something was written");
        writer
            .wait_replicated(dot, 1, PATIENCE)
            .expect("it arrives");
        done.store(true, Ordering::Release);
        by_snapshot.join().expect("the snapshots were whole");
        by_range.join().expect("the ranges were whole")
    });
    assert!(seen > 1, "the reader saw nothing change");
    agree(&[&writer, &reader]);
}

#[test]
fn write_velocity_raises_the_number_of_conversations_and_silence_lowers_it() {
    let options = |options: level_replicator::Options| {
        options
            .linger(Duration::ZERO)
            .min_interval(Duration::from_millis(5))
            .idle_interval(Duration::from_secs(600))
    };
    let first = open(options(listening()));
    let second = open(options(alone()).peer(first.address()));
    second.sync_now(PATIENCE).expect("the peer is reached");
    eventually("the link is closed", || second.status().links == 0);
    let quiet = conversations(&second);

    let mut events = second.events();
    for number in 0..20 {
        let dot = second.put("key", number.to_string()).expect("a write");
        second
            .wait_replicated(dot, 1, Duration::from_millis(300))
            .ok();
    }
    agree(&[&first, &second]);
    let busy = conversations(&second) - quiet;
    assert!(busy >= 2, "20 writes started {busy} conversations");
    // One for each write, and one for each reminder of those who wait: six in 300 ms.
    assert!(
        busy <= 20 * 7 + 10,
        "20 writes started {busy} conversations"
    );
    let connects = drain(&mut events);
    let connects = connects
        .iter()
        .filter(|event| matches!(event, Event::Connect { .. }))
        .count();
    assert!(connects as u64 >= 2, "each conversation is an event");

    eventually("the links are closed", || {
        first.status().links + second.status().links == 0
    });
    let before = conversations(&second);
    let rate = second.status().writes_per_second;
    assert!(rate > 0.5, "{rate} writes a second");
    eventually("the rate fades", || {
        second.status().writes_per_second < rate * 0.8
    });
    assert!(
        conversations(&second) - before <= 8,
        "silence goes on talking"
    );
}

#[test]
fn without_lingering_replicas_connect_talk_and_disconnect() {
    let first = open(listening().linger(Duration::ZERO));
    let second = open(listening().linger(Duration::ZERO).peer(first.address()));
    for round in 0..6 {
        first
            .put(format!("first {round}"), "value")
            .expect("a write");
        second
            .put(format!("second {round}"), "value")
            .expect("a write");
        agree(&[&first, &second]);
        eventually("no link is left", || {
            first.status().links + second.status().links == 0
        });
    }
    assert_eq!(first.iter().count(), 12);
}

#[test]
fn the_events_of_the_ancestor_arrive_on_both_sides() {
    let first = open(listening());
    let mut at_first = first.events();
    wait_for(&mut at_first, "listening", |event| {
        matches!(event, Event::Listening { .. }).then_some(())
    });
    let second = open(alone().peer(first.address()).peer(refusing_address()));
    let mut at_second = second.events();
    second.put("key", "value").expect("a write");

    let reached = wait_for(&mut at_second, "connect", |event| match event {
        Event::Connect { peer } => Some(peer.clone()),
        _ => None,
    });
    assert_eq!(reached.replica, first.status().replica);
    assert_eq!(reached.address.to_string(), first.address());
    let came = wait_for(&mut at_first, "connection", |event| match event {
        Event::Connection { peer } => Some(peer.replica),
        _ => None,
    });
    assert_eq!(came, second.status().replica);
    let (sent, received) = wait_for(&mut at_first, "synced with the key", |event| match event {
        Event::Synced { sent, received, .. } if *received > 0 => Some((*sent, *received)),
        _ => None,
    });
    assert_eq!((sent, received), (0, 1));

    let third = open(alone().peer(refusing_address()));
    wait_for_error(&mut third.events(), &["cannot be reached"]);
}

/// An address of this machine at which nobody listens.
fn refusing_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it listens").to_string()
}

#[test]
fn the_first_write_waits_for_a_silent_peer_no_longer_than_it_may() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it listens").to_string();
    let timeout = Duration::from_millis(300);
    let db = open(alone().peer(&address).first_sync_timeout(timeout));

    let begun = Instant::now();
    db.put("first", "value").expect("a write");
    let waited = begun.elapsed();
    assert!(waited >= timeout, "it waited only {waited:?}");
    assert!(
        waited < timeout + Duration::from_secs(3),
        "it waited {waited:?}"
    );

    let begun = Instant::now();
    db.put("second", "value").expect("a write");
    assert!(begun.elapsed() < timeout, "only the first write waits");
}

#[test]
fn the_first_write_does_not_wait_for_a_peer_that_refuses_and_reads_never_wait() {
    let patient = Duration::from_secs(600);
    let db = open(alone().peer(refusing_address()).first_sync_timeout(patient));
    let begun = Instant::now();
    db.put("key", "value").expect("a write");
    assert!(begun.elapsed() < PATIENCE);

    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it listens").to_string();
    let db = open(alone().peer(&address).first_sync_timeout(patient));
    let begun = Instant::now();
    assert_eq!(text(&db, "key"), None);
    assert_eq!(db.iter().count(), 0);
    assert!(begun.elapsed() < Duration::from_secs(5));

    thread::scope(|scope| {
        let write = scope.spawn(|| db.put("key", "value"));
        db.pause().expect("the only link ends");
        write
            .join()
            .expect("no panic")
            .expect("a pause ends the wait");
    });
    let db = open(alone().peer(&address).first_sync_timeout(Duration::ZERO));
    let begun = Instant::now();
    db.put("key", "value").expect("a write");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "zero turns the wait off"
    );
}

#[test]
fn the_first_write_sees_what_a_reachable_peer_has() {
    let first = open(listening());
    first.put("key", "old").expect("a write");
    for round in 0..5 {
        let second = open(alone().peer(first.address()).first_sync_timeout(PATIENCE));
        second.put("key", format!("new {round}")).expect("a write");
        assert_eq!(
            sibling_texts(&second, "key"),
            [format!("new {round}")],
            "the write had seen the old value"
        );
        agree(&[&first, &second]);
    }
}

#[test]
fn sync_now_leaves_both_sides_knowing_what_either_knew() {
    let first = open(listening());
    let second = open(listening().peer(first.address()));
    for round in 0..10 {
        first
            .put(format!("first {round}"), "value")
            .expect("a write");
        second
            .put(format!("second {round}"), "value")
            .expect("a write");
        second.sync_now(PATIENCE).expect("the peer is reached");
        let expected = 2 * (round + 1);
        assert_eq!(
            (first.iter().count(), second.iter().count()),
            (expected, expected)
        );
    }
    let nobody = open(alone());
    nobody
        .sync_now(Duration::from_secs(1))
        .expect("there is nobody to miss");
}

#[test]
fn sync_now_names_the_peers_that_it_did_not_reach() {
    let first = open(listening());
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = silent
        .local_addr()
        .map(|address| (address.to_string(), silent))
        .expect("it listens");
    let refusing = refusing_address();
    let second = open(
        alone()
            .peer(first.address())
            .peer(&silent.0)
            .peer(&refusing),
    );

    let begun = Instant::now();
    let error = second
        .sync_now(Duration::from_millis(700))
        .expect_err("two cannot be reached");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let Error::NotReached { addresses } = &error else {
        panic!("{error}");
    };
    let named: BTreeSet<String> = addresses.iter().map(ToString::to_string).collect();
    assert_eq!(named, BTreeSet::from([silent.0.clone(), refusing.clone()]));
    assert!(error.to_string().contains(&refusing), "{error}");

    second.remove_peer(&silent.0).expect("an address");
    second.remove_peer(&refusing).expect("an address");
    second.sync_now(PATIENCE).expect("the rest is reached");
    second.pause().expect("the links end");
    let error = second.sync_now(PATIENCE).expect_err("it talks to nobody");
    assert!(matches!(error, Error::NotReached { .. }));
}

/// Both dial, both close their links at once, both ask: no call may hang or fail because a link
/// came or went at the wrong moment.
#[test]
fn sync_now_succeeds_however_links_come_and_go() {
    let linger = Duration::ZERO;
    let first = open_in_memory(listening().linger(linger), &MemoryStorage::new());
    let second = open_in_memory(listening().linger(linger), &MemoryStorage::new());
    first.add_peer(address(&second)).expect("an address");
    second.add_peer(address(&first)).expect("an address");
    let call = |db: &Db, name: &str| {
        for round in 0..50 {
            let begun = Instant::now();
            db.put(format!("{name} {round}"), "value").expect("a write");
            if let Err(error) = db.sync_now(Duration::from_secs(5)) {
                panic!(
                    "{name} in round {round} after {:?}: {error}",
                    begun.elapsed()
                );
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| call(&first, "first"));
        scope.spawn(|| call(&second, "second"));
    });
    agree(&[&first, &second]);
    assert_eq!(first.iter().count(), 100);
}

/// The peer has said hello but not yet what it knows, when the call comes.
#[test]
fn sync_now_succeeds_when_it_is_asked_while_a_conversation_begins() {
    let proxy = Proxy::start();
    let first = open(listening().advertise(proxy.address()));
    first.put("key", "value").expect("a write");
    proxy.lead_to(&first.address());
    // The answer in the handshake and the first record, which is the hello.
    proxy.hold_answers_after_records(2);
    let second = open(alone());
    let mut events = second.events();
    second.add_peer(proxy.address()).expect("an address");
    wait_for(&mut events, "connect", |event| {
        matches!(event, Event::Connect { .. }).then_some(())
    });

    let short = Duration::from_millis(100);
    let early = second
        .sync_now(short)
        .expect_err("what the peer knows is held back");
    assert!(matches!(early, Error::NotReached { .. }));
    thread::scope(|scope| {
        let asking = scope.spawn(|| second.sync_now(Duration::from_secs(5)));
        // However far that call has come, it must succeed; most often it waits already.
        assert!(second.sync_now(short).is_err());
        proxy.let_go();
        asking
            .join()
            .expect("no panic")
            .expect("the peer is reached");
    });
    agree(&[&first, &second]);
}

#[test]
fn wait_replicated_counts_other_replicas() {
    let nodes = star(3);
    let dot = nodes[1].put("key", "value").expect("a write");
    nodes[1]
        .wait_replicated(dot, 0, Duration::ZERO)
        .expect("nobody is asked for");
    nodes[1]
        .wait_replicated(dot, 1, PATIENCE)
        .expect("one has it");
    nodes[1]
        .wait_replicated(dot, 2, PATIENCE)
        .expect("both have it");
    assert!(nodes.iter().all(|node| text(node, "key").is_some()));

    let error = nodes[1]
        .wait_replicated(dot, 3, Duration::from_millis(200))
        .expect_err("there are two");
    assert!(
        matches!(
            error,
            Error::NotReplicated {
                reached: 2,
                wanted: 3
            }
        ),
        "{error}"
    );

    let lonely = open(alone());
    let dot = lonely.put("key", "value").expect("a write");
    let begun = Instant::now();
    let error = lonely
        .wait_replicated(dot, 1, Duration::from_millis(100))
        .expect_err("nobody is there");
    assert!(
        matches!(
            error,
            Error::NotReplicated {
                reached: 0,
                wanted: 1
            }
        ),
        "{error}"
    );
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[test]
fn a_paused_replica_has_no_link_and_nothing_passes_until_it_resumes() {
    let first = open(listening());
    let second = open(listening().peer(first.address()));
    first.put("before", "value").expect("a write");
    agree(&[&first, &second]);

    second.pause().expect("the links end");
    let status = second.status();
    assert!(status.paused);
    assert_eq!(status.links, 0);
    first.put("of first", "value").expect("a write");
    second
        .put("of second", "value")
        .expect("reads and writes go on");
    assert!(
        first.sync_now(Duration::from_millis(500)).is_err(),
        "a paused replica refuses others"
    );
    assert_eq!(text(&first, "of second"), None);
    assert_eq!(text(&second, "of first"), None);
    assert_eq!(second.status().links, 0);

    second.resume().expect("it is open");
    agree(&[&first, &second]);
    assert_eq!(first.iter().count(), 3);
    assert!(!second.status().paused);

    second.pause().expect("the links end");
    let second = second.reopen(listening().peer(first.address()));
    first.put("after", "value").expect("a write");
    agree(&[&first, &second]);
}

/// A peer that vanishes without a goodbye, while something is being said to it.
#[test]
fn a_link_to_a_peer_that_vanished_does_not_stay_open() {
    let db = open_in_memory(listening(), &MemoryStorage::new());
    for round in 0..12 {
        let mut wire = Wire::dial(&address(&db), &open_key(&cluster())).expect("the key is right");
        wire.hear_hello();
        wire.say_hello(&cluster());
        db.put("key", round.to_string()).expect("a write");
        drop(wire);
        db.pause().expect("no link remains");
        db.resume().expect("it is open");
    }
    eventually("no link remains", || db.status().links == 0);
}

#[test]
fn a_pause_and_a_close_do_not_wait_for_a_peer_that_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent_address = silent.local_addr().expect("it listens").to_string();
    let db = open_in_memory(alone().peer(&silent_address), &MemoryStorage::new());
    let begun = Instant::now();
    eventually("it is being dialed", || db.status().links == 1);
    db.pause().expect("the attempt is given up");
    db.resume().expect("it is open");
    eventually("it is being dialed", || db.status().links == 1);
    db.remove_peer(&silent_address).expect("an address");
    eventually("the attempt is given up", || db.status().links == 0);
    db.add_peer(&silent_address).expect("an address");
    eventually("it is being dialed", || db.status().links == 1);
    db.close().expect("it closes");
    // Each of the three would wait for some seconds, until the attempt has failed by itself.
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "it took {:?}",
        begun.elapsed()
    );
}

#[test]
fn replicas_that_dial_each_other_at_once_keep_one_link_and_tell_of_no_error() {
    for _ in 0..5 {
        let nodes = [(); 2].map(|()| open_in_memory(listening(), &MemoryStorage::new()));
        let mut events = [nodes[0].events(), nodes[1].events()];
        thread::scope(|scope| {
            scope.spawn(|| nodes[0].add_peer(address(&nodes[1])));
            scope.spawn(|| nodes[1].add_peer(address(&nodes[0])));
        });
        nodes[0].put("key", "value").expect("a write");
        agree(&[&nodes[0], &nodes[1]]);
        eventually("one link is left", || {
            nodes.iter().all(|db| db.status().links <= 1)
        });
        for events in &mut events {
            let heard = drain(events);
            let is_error = |event: &&Event| matches!(event, Event::Error { .. });
            assert_eq!(heard.iter().find(is_error), None);
        }
    }
}

#[test]
fn peers_are_added_and_removed_while_it_runs() {
    let first = open(listening());
    let second = open(alone());
    first.put("key", "value").expect("a write");
    second.add_peer(first.address()).expect("an address");
    agree(&[&first, &second]);
    assert_eq!(second.peers().len(), 1);
    assert_eq!(second.peers()[0].replica, Some(first.status().replica));

    second.remove_peer(first.address()).expect("an address");
    assert!(second.peers().is_empty());
    eventually("the conversation ends", || {
        first.status().links + second.status().links == 0
    });
    second.put("unheard", "value").expect("a write");
    second
        .sync_now(PATIENCE)
        .expect("nobody is left to be reached");
    assert_eq!(text(&first, "unheard"), None);

    for wrong in ["", "nowhere", "127.0.0.1", "127.0.0.1:99999"] {
        assert!(
            matches!(second.add_peer(wrong), Err(Error::InvalidOption { .. })),
            "{wrong}"
        );
    }
}

#[test]
fn an_address_learned_through_a_third_replica_is_used_when_that_one_is_gone() {
    let middle = open(listening());
    let first = open(listening().peer(middle.address()));
    let second = open(listening().peer(middle.address()));
    let knows = |db: &Db, address: &str| {
        db.peers()
            .iter()
            .any(|peer| peer.address.as_str() == address && peer.discovery == Discovery::Peer)
    };
    first.put("key", "value").expect("a write");
    eventually("the ends know each other", || {
        knows(&first, &second.address()) || knows(&second, &first.address())
    });

    drop(middle);
    first.put("later", "value").expect("a write");
    agree(&[&first, &second]);
    assert_eq!(text(&second, "later").as_deref(), Some("value"));
}

#[test]
fn several_databases_of_one_process_listen_side_by_side() {
    let nodes = star(5);
    let addresses: BTreeSet<String> = nodes.iter().map(Node::address).collect();
    assert_eq!(addresses.len(), 5);
    for (number, node) in nodes.iter().enumerate() {
        node.put(number.to_string(), "value").expect("a write");
    }
    agree(&nodes.iter().map(|node| &node.db).collect::<Vec<_>>());
    assert!(nodes.iter().all(|node| node.iter().count() == 5));
}

/// Whether the group can be joined here; says so if not.
fn has_multicast(db: &Db) -> bool {
    let mut events = db.events();
    let mut failed = false;
    eventually("multicast is joined or has failed", || {
        failed |= drain(&mut events).iter().any(|event| match event {
            Event::Error { error, .. } => error.to_string().contains("multicast"),
            _ => false,
        });
        failed || db.status().multicast
    });
    if failed {
        println!("skipped: this machine cannot join a multicast group on its loopback interface");
    }
    !failed
}

#[test]
fn replicas_find_each_other_by_multicast() {
    let first = open(listening().multicast(true));
    if !has_multicast(&first) {
        return;
    }
    let second = open(listening().multicast(true));
    let stranger = open(listening().cluster("another").multicast(true));
    first.put("key", "value").expect("a write");

    agree(&[&first, &second]);
    assert_eq!(text(&second, "key").as_deref(), Some("value"));
    let found = [first.peers(), second.peers()].concat();
    assert!(
        found
            .iter()
            .any(|peer| peer.discovery == Discovery::Multicast)
    );
    assert!(stranger.peers().is_empty(), "another cluster is not heard");
}

#[test]
fn a_replica_on_a_copy_of_anothers_directory_loses_nothing() {
    let first = open(listening());
    first.put("common", "value").expect("a write");
    first.put("contested", "original").expect("a write");
    let options = listening();
    let Node { db, directory } = first;
    db.close().expect("it closes");
    drop(db);
    let copied = crate::common::directory();
    copy(directory.path(), copied.path());

    let first = options
        .clone()
        .open(directory.path())
        .expect("the original opens");
    let clone = options.open(copied.path()).expect("the copy opens");
    assert_eq!(first.status().replica, clone.status().replica);
    for number in 0..50 {
        first
            .put(format!("of first {number}"), "value")
            .expect("a write");
        clone
            .put(format!("of clone {number}"), "value")
            .expect("a write");
    }
    first.put("contested", "by first").expect("a write");
    clone.put("contested", "by clone").expect("a write");

    let third = open(listening().peer(address(&first)).peer(address(&clone)));
    agree(&[&first, &clone, &third]);
    assert_eq!(third.iter().count(), 102);
    assert_eq!(sibling_texts(&third, "contested"), ["by first", "by clone"]);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            std::fs::create_dir(&target).expect("a directory");
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}
