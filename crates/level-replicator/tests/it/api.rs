//! What a program sees of one replica.

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use level_replicator::{Db, Durability, Error, Event, Events, Origin, Resolver};
use level_replicator_core::storage::memory::MemoryStorage;

use crate::common::*;

const MIB: usize = 1 << 20;

fn keys(range: level_replicator::Range) -> Vec<String> {
    range
        .map(|entry| String::from_utf8_lossy(&entry.expect("an entry").0).into_owned())
        .collect()
}

fn with_keys(names: &[&str]) -> Node {
    let node = open(alone());
    for name in names {
        node.put(name, format!("value of {name}")).expect("a write");
    }
    node
}

/// A key with the values "first" and "second", written by two replicas that had not met.
fn with_siblings(resolver: Resolver) -> (Node, Node) {
    let first = open(listening().resolver(resolver.clone()));
    first.put("key", "first").expect("a write");
    let second = open(listening().resolver(resolver));
    second.put("key", "second").expect("a write");
    first.add_peer(second.address()).expect("an address");
    agree(&[&first, &second]);
    (first, second)
}

#[test]
fn what_is_put_is_got_until_it_is_deleted() {
    let db = open(alone());
    assert_eq!(text(&db, "key"), None);

    let put = db.put("key", "value").expect("a write");
    assert_eq!(text(&db, "key").as_deref(), Some("value"));

    let replaced = db.put("key", "other").expect("a write");
    assert!(replaced > put);
    assert_eq!(text(&db, "key").as_deref(), Some("other"));

    let deleted = db.delete("key").expect("a delete");
    assert!(deleted > Some(replaced));
    assert_eq!(text(&db, "key"), None);
    assert!(contents(&db).is_empty());
}

#[test]
fn keys_and_values_are_any_bytes_and_a_value_may_be_empty() {
    let db = open(alone());
    let all: Vec<u8> = (0..=255).collect();
    db.put(&all, &all).expect("a write");
    db.put([0], b"").expect("a write");
    db.put([0xff; 300], [0; 1]).expect("a write");

    assert_eq!(db.get(&all).expect("a read").as_deref(), Some(&all[..]));
    assert_eq!(db.get([0]).expect("a read").as_deref(), Some(&b""[..]));
    assert_eq!(db.iter().count(), 3);
    assert_eq!(keys(db.range([0]..=[0])), ["\0"]);
}

#[test]
fn deletes_of_nothing_and_empty_batches_succeed_and_write_nothing() {
    let db = open(alone());
    assert_eq!(db.delete("nothing").expect("no error"), None);
    assert_eq!(db.batch().commit().expect("no error"), None);
    let mut batch = db.batch();
    batch.delete("nothing").delete("nothing either");
    assert_eq!(batch.commit().expect("no error"), None);

    let status = db.status();
    assert_eq!(status.writer, None, "a writer was minted for nothing");
    assert!(status.clock.is_empty());
}

#[test]
fn a_batch_is_written_as_one_and_nothing_of_it_when_it_is_dropped() {
    let db = with_keys(&["old"]);
    let mut dropped = db.batch();
    dropped.put("new", "value").delete("old");
    assert_eq!(dropped.len(), 2);
    drop(dropped);
    assert_eq!(keys(db.iter()), ["old"]);

    let mut batch = db.batch();
    batch
        .put("new", "value")
        .delete("old")
        .put("newer", "value");
    let last = batch
        .commit()
        .expect("a write")
        .expect("something was written");

    assert_eq!(keys(db.iter()), ["new", "newer"]);
    assert_eq!(
        last.seq, 4,
        "one dot for the first put, three for the batch"
    );
}

#[test]
fn of_several_operations_on_one_key_in_a_batch_the_last_counts() {
    let db = open(alone());
    let mut batch = db.batch();
    batch
        .put("a", "1")
        .put("b", "1")
        .put("a", "2")
        .delete("b")
        .put("a", "3");
    let last = batch
        .commit()
        .expect("a write")
        .expect("something was written");

    assert_eq!(text(&db, "a").as_deref(), Some("3"));
    assert_eq!(text(&db, "b"), None);
    assert_eq!(last.seq, 1, "a delete of a key without a value is no write");
    assert_eq!(sibling_texts(&db, "a"), ["3"]);

    let mut batch = db.batch();
    batch.delete("a").put("a", "4");
    batch.commit().expect("a write");
    assert_eq!(sibling_texts(&db, "a"), ["4"]);
}

#[test]
fn ranges_keep_to_all_kinds_of_bounds() {
    let db = with_keys(&["a", "b", "c", "d", "e"]);
    assert_eq!(keys(db.range("b".."d")), ["b", "c"]);
    assert_eq!(keys(db.range("b"..="d")), ["b", "c", "d"]);
    assert_eq!(keys(db.range("d"..)), ["d", "e"]);
    assert_eq!(keys(db.range(.."c")), ["a", "b"]);
    assert_eq!(keys(db.range(..="c")), ["a", "b", "c"]);
    assert_eq!(keys(db.range::<&str>(..)), ["a", "b", "c", "d", "e"]);
    assert_eq!(
        keys(db.range::<&str>((Bound::Excluded("b"), Bound::Excluded("d")))),
        ["c"]
    );
    assert_eq!(
        keys(db.range::<&str>((Bound::Excluded("b"), Bound::Included("d")))),
        ["c", "d"]
    );
    assert_eq!(keys(db.range("bb".."cc")), ["c"]);
    assert_eq!(keys(db.range("b".."b")), [""; 0]);
    assert_eq!(keys(db.range("b"..="b")), ["b"]);
    assert_eq!(
        keys(db.range::<&str>((Bound::Excluded("b"), Bound::Excluded("b")))),
        [""; 0]
    );
    let (greater, less) = ("d", "b");
    assert_eq!(keys(db.range(greater..less)), [""; 0]);
    assert_eq!(keys(db.range(""..)), ["a", "b", "c", "d", "e"]);
}

#[test]
fn a_range_is_read_from_both_ends_and_meets_in_the_middle() {
    let db = with_keys(&["a", "b", "c", "d", "e"]);
    assert_eq!(keys_back(db.iter()), ["e", "d", "c", "b", "a"]);

    let mut range = db.range("a"..="d");
    let mut next = |back: bool| {
        let entry = if back {
            range.next_back()
        } else {
            range.next()
        };
        entry.map(|entry| entry.expect("an entry").0)
    };
    assert_eq!(next(false).as_deref(), Some(&b"a"[..]));
    assert_eq!(next(true).as_deref(), Some(&b"d"[..]));
    assert_eq!(next(true).as_deref(), Some(&b"c"[..]));
    assert_eq!(next(false).as_deref(), Some(&b"b"[..]));
    assert_eq!(next(false), None);
    assert_eq!(next(true), None);
}

fn keys_back(range: level_replicator::Range) -> Vec<String> {
    let backwards = range.rev();
    backwards
        .map(|entry| String::from_utf8_lossy(&entry.expect("an entry").0).into_owned())
        .collect()
}

#[test]
fn a_prefix_takes_in_exactly_the_keys_that_begin_with_it() {
    let db = with_keys(&["user", "user.", "user/1", "user/2", "user0", "uses"]);
    assert_eq!(keys(db.prefix("user/")), ["user/1", "user/2"]);
    assert_eq!(keys_back(db.prefix("user/")), ["user/2", "user/1"]);
    assert_eq!(keys(db.prefix("nobody")), [""; 0]);
    assert_eq!(keys(db.prefix("")).len(), 6);

    db.put([0xff, 0xff, 1], "value").expect("a write");
    assert_eq!(db.prefix([0xff]).count(), 1);
    assert_eq!(db.prefix([0xff, 0xff]).count(), 1);
    assert_eq!(db.prefix([0xff, 0xff, 0xff]).count(), 0);
}

#[test]
fn a_snapshot_and_a_running_range_stay_at_their_moment() {
    let db = with_keys(&["a", "b", "c"]);
    let view = db.snapshot();
    let mut running = db.iter();
    assert!(running.next().is_some());

    db.put("b", "changed").expect("a write");
    db.delete("c").expect("a delete");
    db.put("d", "new").expect("a write");

    assert_eq!(
        view.get("b").expect("a read").as_deref(),
        Some(&b"value of b"[..])
    );
    assert_eq!(keys(view.iter()), ["a", "b", "c"]);
    assert_eq!(keys(view.range("b"..)), ["b", "c"]);
    assert_eq!(keys(view.prefix("c")), ["c"]);
    assert_eq!(keys(running), ["b", "c"]);
    assert_eq!(keys(db.iter()), ["a", "b", "d"]);
}

#[test]
fn deleted_keys_do_not_show_in_ranges_from_either_end() {
    let db = with_keys(&["a", "b", "c", "d"]);
    for key in ["a", "d", "b"] {
        db.delete(key).expect("a delete");
    }
    assert_eq!(keys(db.iter()), ["c"]);
    assert_eq!(keys_back(db.iter()), ["c"]);
    assert_eq!(db.iter().count(), 1);
}

#[test]
fn eight_threads_that_count_in_one_key_lose_no_count() {
    let db = open(alone());
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let increment = |old: Option<&[u8]>| {
                        let old = old.map_or(0, |old| {
                            let text = std::str::from_utf8(old).expect("a number");
                            text.parse::<u32>().expect("a number")
                        });
                        Some((old + 1).to_string())
                    };
                    db.update("count", increment).expect("a write");
                }
            });
        }
    });
    assert_eq!(text(&db, "count").as_deref(), Some("1600"));
    assert_eq!(sibling_texts(&db, "count").len(), 1);
}

#[test]
fn an_update_that_answers_nothing_deletes() {
    let db = with_keys(&["key"]);
    assert!(
        db.update("key", |_| None::<&str>)
            .expect("a write")
            .is_some()
    );
    assert_eq!(text(&db, "key"), None);
    assert_eq!(db.update("key", |_| None::<&str>).expect("no error"), None);
}

#[test]
fn a_transaction_runs_again_when_what_it_read_has_changed() {
    let db = with_keys(&["a", "unread"]);
    let runs = AtomicU32::new(0);
    let seen = db.transact(|t| {
        let run = runs.fetch_add(1, Ordering::Relaxed);
        let seen = t.get("a")?;
        if run == 0 {
            db.put("a", "changed meanwhile")?;
        } else {
            // What was not read may change.
            db.put("unread", "changed meanwhile")?;
        }
        t.put("b", "written");
        Ok(seen)
    });
    assert_eq!(
        seen.expect("a commit").as_deref(),
        Some(&b"changed meanwhile"[..])
    );
    assert_eq!(runs.into_inner(), 2);
    assert_eq!(text(&db, "b").as_deref(), Some("written"));
}

#[test]
fn a_transaction_that_read_nothing_there_runs_again_when_something_came() {
    let db = open(alone());
    let mut runs = 0;
    db.transact(|t| {
        runs += 1;
        if t.get("key")?.is_none() {
            db.put("key", "was faster")?;
            t.put("key", "mine");
        }
        Ok(())
    })
    .expect("a commit");
    assert_eq!((runs, text(&db, "key").as_deref()), (2, Some("was faster")));
}

#[test]
fn a_transaction_sees_its_own_writes_and_one_moment_else() {
    let db = with_keys(&["a", "b"]);
    db.transact(|t| {
        t.put("a", "mine");
        t.delete("b");
        assert_eq!(t.get("a")?.as_deref(), Some(&b"mine"[..]));
        assert_eq!(t.get("b")?, None);
        assert_eq!(t.get("c")?, None);
        Ok(())
    })
    .expect("a commit");
    assert_eq!(keys(db.iter()), ["a"]);
}

#[test]
fn an_aborted_transaction_writes_nothing() {
    let db = with_keys(&["a"]);
    let before = db.status().clock;
    let outcome = db.transact(|t| {
        t.put("a", "changed");
        t.put("b", "new");
        Err::<(), _>(Error::aborted("not today"))
    });
    let error = outcome.expect_err("it gave up");
    assert!(matches!(error, Error::Aborted(_)), "{error}");
    assert!(error.to_string().contains("not today"));
    assert_eq!(keys(db.iter()), ["a"]);
    assert_eq!(db.status().clock, before);
}

#[test]
fn a_transaction_that_always_meets_another_writer_gives_up() {
    let db = open(alone());
    let mut number = 0;
    let outcome = db.transact(|t| {
        t.get("key")?;
        number += 1;
        db.put("key", number.to_string())?;
        t.put("other", "value");
        Ok(())
    });
    assert!(
        matches!(outcome, Err(Error::Contended { attempts: 1_000 })),
        "{outcome:?}"
    );
    assert_eq!(text(&db, "other"), None);
}

#[test]
fn siblings_are_listed_in_one_order_and_end_with_a_resolution() {
    let (first, second) = with_siblings(Resolver::default());
    assert_eq!(sibling_texts(&first, "key"), ["first", "second"]);
    assert_eq!(sibling_texts(&second, "key"), ["first", "second"]);
    let siblings = first.siblings("key").expect("a read");
    assert_eq!(siblings[0].replica, first.status().replica);
    assert_eq!(siblings[1].replica, second.status().replica);
    assert!(siblings[0].stamp < siblings[1].stamp);
    assert_eq!(first.status().conflicts, Some(1));
    let conflicts: Result<Vec<_>, _> = first.conflicts().collect();
    assert_eq!(conflicts.expect("a scan"), [("key".into(), siblings)]);

    assert!(first.resolve("key", "both").expect("a write").is_some());
    agree(&[&first, &second]);

    assert_eq!(sibling_texts(&second, "key"), ["both"]);
    assert_eq!(second.conflicts().count(), 0);
    assert_eq!(second.status().conflicts, Some(0));
}

#[test]
fn a_resolution_to_what_all_siblings_are_writes_nothing() {
    let db = open(alone());
    assert!(
        db.resolve("key", "value").expect("a write").is_some(),
        "there was no value before"
    );
    let before = db.status().clock;
    assert_eq!(db.resolve("key", "value").expect("no error"), None);
    assert_eq!(db.status().clock, before);
    assert!(db.resolve("key", "other").expect("a write").is_some());

    let (first, second) = (open(listening()), open(listening()));
    first.put("same", "value").expect("a write");
    second.put("same", "value").expect("a write");
    first.add_peer(second.address()).expect("an address");
    agree(&[&first, &second]);
    assert_eq!(sibling_texts(&first, "same"), ["value", "value"]);
    let before = first.status().clock;
    assert_eq!(first.resolve("same", "value").expect("no error"), None);
    assert_eq!(first.status().clock, before);
}

#[test]
fn resolvers_pick_and_merge_what_readers_see() {
    let (first, _second) = with_siblings(Resolver::pick(|a, b| b.value < a.value));
    assert_eq!(text(&first, "key").as_deref(), Some("first"));
    assert_eq!(contents(&first)[&b"key"[..]], b"first");

    let (first, second) = with_siblings(Resolver::merge(|a, b| {
        [&a.value[..], b"+", &b.value[..]].concat()
    }));
    assert_eq!(text(&first, "key").as_deref(), Some("first+second"));
    assert_eq!(text(&second, "key").as_deref(), Some("first+second"));
    assert_eq!(
        sibling_texts(&first, "key"),
        ["first", "second"],
        "a merge writes nothing"
    );
    let old = first
        .update("key", |old| old.map(<[u8]>::to_ascii_uppercase))
        .expect("a write");
    assert!(old.is_some());
    assert_eq!(sibling_texts(&first, "key"), ["FIRST+SECOND"]);
}

#[test]
fn another_resolver_after_a_reopen_changes_the_view_and_nothing_else() {
    let (first, second) = with_siblings(Resolver::last_write_wins());
    assert_eq!(text(&first, "key").as_deref(), Some("second"));
    let before = (first.digest().expect("a digest"), first.status().clock);

    let first = first.reopen(listening().resolver(Resolver::first_write_wins()));

    assert_eq!(text(&first, "key").as_deref(), Some("first"));
    assert_eq!(
        (first.digest().expect("a digest"), first.status().clock),
        before
    );
    assert_eq!(sibling_texts(&first, "key"), ["first", "second"]);
    assert_eq!(text(&second, "key").as_deref(), Some("second"));
}

#[test]
fn keys_are_refused_when_empty_or_over_the_limit_and_taken_at_it() {
    let db = open(alone());
    let (at_limit, over) = (vec![b'k'; 65_000], vec![b'k'; 65_001]);
    db.put(&at_limit, "value").expect("a key at the limit");
    assert_eq!(
        db.get(&at_limit).expect("a read").as_deref(),
        Some(&b"value"[..])
    );
    assert_eq!(db.iter().count(), 1);
    let before = db.status().clock;

    assert!(matches!(db.put("", "value"), Err(Error::EmptyKey)));
    assert!(matches!(db.get(""), Err(Error::EmptyKey)));
    assert!(matches!(db.delete(""), Err(Error::EmptyKey)));
    assert!(matches!(db.siblings(""), Err(Error::EmptyKey)));
    assert!(matches!(db.resolve("", "value"), Err(Error::EmptyKey)));
    assert!(matches!(
        db.update("", |_| Some("value")),
        Err(Error::EmptyKey)
    ));
    assert!(matches!(db.snapshot().get(""), Err(Error::EmptyKey)));
    let is_too_large = |error: Option<Error>| {
        matches!(
            error,
            Some(Error::TooLarge {
                size: 65_001,
                limit: 65_000,
                ..
            })
        )
    };
    assert!(is_too_large(db.put(&over, "value").err()));
    assert!(is_too_large(db.get(&over).err()));
    assert!(is_too_large(db.delete(&over).err()));
    assert!(is_too_large(db.update(&over, |_| Some("value")).err()));
    assert_eq!(db.status().clock, before);
}

#[test]
fn values_are_refused_over_the_limit_and_an_option_raises_it() {
    let db = open(alone());
    let value = vec![7; 8 * MIB + 1];
    let refused = db.put("key", &value);
    assert!(matches!(
        refused,
        Err(Error::TooLarge {
            size: 8_388_609,
            limit: 8_388_608,
            ..
        })
    ));
    assert_eq!(db.status().writer, None);
    db.put("key", &value[1..]).expect("a value at the limit");
    assert_eq!(
        db.get("key").expect("a read").map(|value| value.len()),
        Some(8 * MIB)
    );

    let db = db.reopen(alone().value_bytes_max(8 * MIB + 1));
    db.put("key", &value).expect("the limit was raised");
    assert_eq!(
        db.get("key").expect("a read").map(|value| value.len()),
        Some(8 * MIB + 1)
    );

    let refused = alone()
        .value_bytes_max(64 * MIB + 1)
        .open(directory().path());
    assert!(matches!(
        refused,
        Err(Error::InvalidOption {
            option: "value_bytes_max",
            ..
        })
    ));
}

#[test]
fn a_batch_is_refused_whole_when_one_operation_is_wrong() {
    let db = open(alone());
    for wrong in [&b""[..], &[b'k'; 65_001]] {
        let mut batch = db.batch();
        batch.put("right", "value").put(wrong, "value");
        assert!(batch.commit().is_err());
        let mut batch = db.batch();
        batch.put("right", "value").delete(wrong);
        assert!(batch.commit().is_err());
    }
    assert_eq!(db.iter().count(), 0);
    assert_eq!(db.status().writer, None);
}

#[test]
fn a_batch_of_a_million_operations_is_taken_and_one_more_refused() {
    let db = open_in_memory(alone(), &MemoryStorage::new());
    let mut batch = db.batch();
    for _ in 0..1_000_000 {
        batch.put("k", "");
    }
    assert_eq!(batch.len(), 1_000_000);
    batch.commit().expect("a batch at the limit");
    let before = db.status().clock;

    let mut batch = db.batch();
    for _ in 0..1_000_001 {
        batch.put("k", "");
    }
    let refused = batch.commit();
    assert!(matches!(
        refused,
        Err(Error::TooLarge {
            size: 1_000_001,
            limit: 1_000_000,
            ..
        })
    ));
    assert_eq!(db.status().clock, before);
}

#[test]
fn a_batch_of_more_than_256_mebibytes_is_refused() {
    let db = open_in_memory(alone(), &MemoryStorage::new());
    let value = vec![0; 8 * MIB];
    let mut batch = db.batch();
    for _ in 0..32 {
        // The keys are what is too much.
        batch.put("k", &value);
    }
    let refused = batch.commit();
    assert!(matches!(
        refused,
        Err(Error::TooLarge {
            size: 268_435_488,
            limit: 268_435_456,
            ..
        })
    ));
    assert_eq!(db.status().writer, None);
}

#[test]
fn a_reopen_keeps_everything_after_a_close_and_after_a_drop() {
    let db = with_keys(&["a", "b", "c", "d"]);
    db.put("a", "changed").expect("a write");
    db.delete("d").expect("a delete");
    let seen = |db: &Db| {
        let status = db.status();
        (
            contents(db),
            db.digest().expect("a digest"),
            status.clock,
            status.replica,
            status.keys,
        )
    };
    let before = seen(&db);
    assert_eq!(before.4, Some(3));

    let db = db.reopen(alone());
    assert!(
        db.status().digest.is_some(),
        "after a clean close nothing has to be counted"
    );
    assert_eq!(seen(&db), before);

    let Node { db, directory } = db;
    drop(db);
    let db = alone()
        .open(directory.path())
        .expect("a dropped database opens again");
    assert!(db.status().digest.is_some(), "a drop closes as well");
    assert_eq!(seen(&db), before);

    db.put("e", "new").expect("a write");
    assert_ne!(db.digest().expect("a digest"), before.1);
    assert_eq!(
        db.status().clock.len(),
        2,
        "each open that writes has a writer of its own"
    );
}

#[test]
fn the_first_receiver_hears_that_the_port_is_open_though_it_came_later() {
    let db = open(listening());
    let mut events = db.events();
    let heard = wait_for(&mut events, "listening", |event| match event {
        Event::Listening { address } => Some(address.to_string()),
        _ => None,
    });
    assert_eq!(heard, db.address());
    assert_ne!(db.status().listen.expect("it listens").port(), 0);
}

#[test]
fn events_tell_of_local_and_remote_changes_and_of_conflicts() {
    let (first, second) = (open(listening()), open(listening()));
    let (mut at_first, mut at_second) = (first.events(), second.events());
    first.put("key", "first").expect("a write");
    second.put("key", "second").expect("a write");
    let change = |event: &Event| match event {
        Event::Change { key, origin, .. } => Some((key.to_vec(), *origin)),
        _ => None,
    };
    assert_eq!(
        wait_for(&mut at_first, "own change", change),
        (b"key".to_vec(), Origin::Local)
    );
    assert_eq!(
        wait_for(&mut at_second, "own change", change),
        (b"key".to_vec(), Origin::Local)
    );

    first.add_peer(second.address()).expect("an address");

    for (events, other) in [(&mut at_first, &second), (&mut at_second, &first)] {
        let from = Origin::Peer(other.status().replica);
        assert_eq!(
            wait_for(events, "remote change", change),
            (b"key".to_vec(), from)
        );
        let key = wait_for(events, "conflict", |event| match event {
            Event::Conflict { key } => Some(key.clone()),
            _ => None,
        });
        assert_eq!(key, "key");
    }
}

#[test]
fn a_reader_of_events_that_is_too_slow_is_told_how_many_it_missed() {
    let db = open_in_memory(alone(), &MemoryStorage::new());
    let (mut slow, mut watcher) = (db.events(), db.events());
    for number in 0..5_000u32 {
        db.put("key", number.to_string()).expect("a write");
    }
    // Both get each event at once, so the slow one has been sent what the other has counted.
    let count = |events: &mut Events| {
        let told = drain(events).into_iter();
        told.fold((0, 0), |(missed, read), event| match event {
            Event::Missed { count } => (missed + count, read),
            _ => (missed, read + 1),
        })
    };
    let mut seen = 0;
    eventually("every write was told", || {
        let (missed, read) = count(&mut watcher);
        seen += missed + read;
        seen >= 5_000
    });
    let (missed, read) = count(&mut slow);
    assert_eq!(missed + read, 5_000);
    assert!(missed > 0 && read > 0, "{missed} missed, {read} read");
}

#[test]
fn receivers_end_when_the_database_is_closed() {
    let db = open(alone());
    let mut events = db.events();
    db.put("key", "value").expect("a write");
    let waiting = thread::spawn(move || events.by_ref().count());
    db.close().expect("it closes");
    assert_eq!(waiting.join().expect("no panic"), 1);
    assert!(
        db.events().recv().is_none(),
        "a receiver made after the end ends at once"
    );
}

#[test]
fn whatever_is_asked_after_a_close_is_refused() {
    let db = open(listening());
    db.put("key", "value").expect("a write");
    let clone = db.db.clone();
    db.close().expect("it closes");

    let short = Duration::from_millis(1);
    let is_closed = |error: Option<Error>| matches!(error, Some(Error::Closed));
    assert!(is_closed(db.close().err()));
    assert!(is_closed(clone.close().err()));
    assert!(is_closed(clone.put("key", "value").err()));
    assert!(is_closed(clone.get("key").err()));
    assert!(is_closed(clone.delete("key").err()));
    assert!(is_closed(clone.batch().commit().err()));
    assert!(is_closed(clone.siblings("key").err()));
    assert!(is_closed(clone.resolve("key", "value").err()));
    assert!(is_closed(clone.update("key", |_| Some("value")).err()));
    assert!(is_closed(clone.transact(|_| Ok(())).err()));
    assert!(is_closed(clone.digest().err()));
    assert!(is_closed(clone.sync_now(short).err()));
    assert!(is_closed(clone.pause().err()));
    assert!(is_closed(clone.resume().err()));
    assert!(is_closed(clone.add_peer("127.0.0.1:1").err()));
    assert!(is_closed(clone.remove_peer("127.0.0.1:1").err()));
}

#[test]
fn a_close_frees_the_port_and_the_directory_while_handles_remain() {
    let db = open(listening());
    let address = db.address();
    let clone = db.db.clone();
    db.close().expect("it closes");
    drop(std::net::TcpListener::bind(&address).expect("the port is free"));
    // Nothing is read after the end, so the engine may go; the handles may stay.
    let Node { db, directory } = db;
    drop((db, clone));
    alone()
        .open(directory.path())
        .expect("the directory is free");
}

/// A write that met a close half-way must not be answered with success and then be missing from the
/// clock: it would never reach a peer.
#[test]
fn a_write_that_races_with_a_close_is_refused_or_whole() {
    for round in 0..15 {
        let storage = MemoryStorage::new();
        let db = open_in_memory(alone(), &storage);
        db.put("before", "value").expect("a write");
        let started = AtomicBool::new(false);
        let acknowledged: usize = thread::scope(|scope| {
            let writers: Vec<_> = (0..6)
                .map(|thread| {
                    let (db, started) = (&db, &started);
                    scope.spawn(move || {
                        (0..)
                            .take_while(|number| {
                                started.store(*number > 2, Ordering::Release);
                                db.put(format!("{thread}/{number}"), "value").is_ok()
                            })
                            .count()
                    })
                })
                .collect();
            eventually("the writers run", || started.load(Ordering::Acquire));
            db.close().expect("it closes");
            writers
                .into_iter()
                .map(|writer| writer.join().expect("no panic"))
                .sum()
        });
        drop(db);

        let peer = open_in_memory(listening(), &MemoryStorage::new());
        let db = open_in_memory(listening().peer(address(&peer)), &storage);
        assert_eq!(db.iter().count(), acknowledged + 1, "round {round}");
        db.sync_now(PATIENCE).expect("the peer is reached");
        assert_eq!(
            contents(&peer).len(),
            acknowledged + 1,
            "round {round}: a write never reaches a peer"
        );
        assert_eq!(
            peer.digest().expect("a digest"),
            db.digest().expect("a digest"),
            "round {round}"
        );
    }
}

#[test]
fn a_database_is_used_inside_a_runtime_of_several_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build();
    runtime
        .expect("a runtime")
        .block_on(use_inside_async_code());
}

#[test]
fn a_database_is_used_inside_a_runtime_of_one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime
        .expect("a runtime")
        .block_on(use_inside_async_code());
}

async fn use_inside_async_code() {
    let first = open(listening());
    let second = open(listening().peer(first.address()));
    let mut events = second.events();
    let dot = first.put("key", "value").expect("a write");
    first
        .wait_replicated(dot, 1, PATIENCE)
        .expect("it is replicated");
    let copy = first.db.clone();
    let task = tokio::spawn(async move { text(&copy, "key") });
    assert_eq!(task.await.expect("no panic").as_deref(), Some("value"));
    loop {
        let event = events.next_async().await.expect("it is open");
        if matches!(&event, Event::Change { key, .. } if *key == "key") {
            break;
        }
    }
    second.sync_now(PATIENCE).expect("the peer is reached");
    // Both are dropped here, inside async code, and so closed.
    drop(first);
    drop(second);
    assert!(events.next_async().await.is_some() || events.next_async().await.is_none());
}

#[test]
fn handles_are_cloned_and_shared_between_threads() {
    fn is_shareable<T: Clone + Send + Sync + 'static>(_: &T) {}
    fn is_sendable<T: Send>(_: &T) {}
    let db = with_keys(&["a"]);
    is_shareable(&db.db);
    is_shareable(&db.snapshot());
    is_sendable(&db.iter());
    is_sendable(&db.events());

    let clone = db.db.clone();
    let writing = thread::spawn(move || clone.put("b", "value").map(drop));
    writing.join().expect("no panic").expect("a write");
    assert_eq!(keys(db.iter()), ["a", "b"]);
}

#[test]
fn durable_writes_of_eight_threads_are_all_kept() {
    let db = open(alone().durability(Durability::Sync));
    thread::scope(|scope| {
        for thread in 0..8 {
            let db = &db;
            scope.spawn(move || {
                for number in 0..10 {
                    db.put(format!("{thread}/{number}"), "value")
                        .expect("a durable write");
                }
            });
        }
    });
    let db = db.reopen(alone());
    assert_eq!(db.iter().count(), 80);
    assert_eq!(db.status().keys, Some(80));
}

#[test]
fn a_timeout_without_an_end_is_no_accident() {
    let db = open(listening());
    db.sync_now(Duration::MAX).expect("nobody is to be reached");
    let dot = db.put("key", "value").expect("a write");
    db.wait_replicated(dot, 0, Duration::MAX)
        .expect("nobody is needed");
    let refused = listening().linger(Duration::MAX).open(directory().path());
    let refused = refused.expect_err("a year is long enough").to_string();
    assert!(
        refused.contains("linger is more than a year")
            || refused.contains("linger: is more than a year"),
        "{refused}"
    );
}
