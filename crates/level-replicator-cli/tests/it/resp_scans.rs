//! `SCAN`: exact, whatever is written meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::resp::{Client, Reply, Served, bulks};

/// One step; answers the next cursor and the keys.
fn scan(client: &mut Client, cursor: &str, options: &str) -> (String, Vec<String>) {
    let line = format!("SCAN {cursor} {options}");
    let reply = client.say(line.trim());
    let keys = reply.items()[1].items().iter().map(Reply::text);
    (reply.items()[0].text(), keys.collect())
}

fn scan_all(client: &mut Client, options: &str) -> Vec<String> {
    let (mut cursor, mut keys) = scan(client, "0", options);
    while cursor != "0" {
        let (next, more) = scan(client, &cursor, options);
        keys.extend(more);
        cursor = next;
    }
    keys
}

#[test]
fn every_key_is_returned_once_and_in_order() {
    let served = Served::start();
    let mut client = served.client();
    assert_eq!(scan(&mut client, "0", ""), ("0".to_owned(), Vec::new()));
    for number in 0..100 {
        client.say(&format!("SET key-{number:03} 1"));
    }
    client.say("SET other 1");
    for options in [
        "",
        "COUNT 1",
        "COUNT 7",
        "COUNT 100",
        "COUNT 101",
        "COUNT 9999999999",
        "TYPE string",
    ] {
        let keys = scan_all(&mut client, options);
        assert_eq!(keys.len(), 101, "{options}");
        assert!(keys.is_sorted(), "{options}");
    }
    for (options, count) in [
        ("MATCH key-*", 100),
        ("MATCH key-0[01]* COUNT 3", 20),
        ("MATCH *9 COUNT 3", 10),
        ("MATCH other", 1),
        ("MATCH none*", 0),
        ("TYPE list", 0),
    ] {
        assert_eq!(scan_all(&mut client, options).len(), count, "{options}");
    }
}

#[test]
fn a_cursor_can_be_used_again_and_one_of_nobody_is_refused() {
    let served = Served::start();
    let mut client = served.client();
    for number in 0..20 {
        client.say(&format!("SET key-{number:03} 1"));
    }
    let (cursor, _) = scan(&mut client, "0", "");
    let again = [0, 1].map(|_| scan(&mut client, &cursor, "").1);
    assert_eq!(again[0], again[1]);
    let number: i64 = cursor.parse().expect("a number");
    assert!(number < 1 << 53, "every client can read {number}");

    let other = Served::start();
    let refused = other.client().say(&format!("SCAN {cursor}"));
    assert!(
        refused.error().contains("begin again with 0"),
        "{refused:?}"
    );
}

#[test]
fn keys_that_stay_are_returned_exactly_once_while_others_come_and_go() {
    let served = Served::start();
    let mut batch = served.db.batch();
    for number in 0..2_000 {
        batch.put(format!("stay-{number:05}"), "value");
    }
    batch.commit().expect("it is written");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(7);
            let mut client = served.client();
            while !is_over.load(Ordering::Relaxed) {
                let number = random.usize(..2_000);
                let line = match random.u8(..3) {
                    // What stays is written again, too.
                    0 => format!("SET stay-{number:05} {}", random.u8(..)),
                    1 => format!("SET stay-{number:05}-guest 1"),
                    _ => format!("DEL stay-{number:05}-guest"),
                };
                client.say(&line);
            }
        });
        let mut client = served.client();
        for options in ["", "COUNT 3", "COUNT 100", "MATCH stay-* COUNT 50"] {
            let keys = scan_all(&mut client, options);
            let set: BTreeSet<&String> = keys.iter().collect();
            assert_eq!(set.len(), keys.len(), "one was returned twice");
            let stayed = keys.iter().filter(|key| !key.ends_with("guest"));
            assert_eq!(stayed.count(), 2_000, "{options}");
            assert!(keys.is_sorted());
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_scan_goes_on_behind_a_key_that_was_deleted() {
    let served = Served::start();
    let mut client = served.client();
    for key in ["a", "b", "c", "d"] {
        client.say(&format!("SET {key} 1"));
    }
    let (cursor, keys) = scan(&mut client, "0", "COUNT 2");
    assert_eq!(keys, ["a", "b"]);
    client.say("DEL b c");
    client.say("SET aa 1");
    let (end, keys) = scan(&mut client, &cursor, "COUNT 2");
    assert_eq!((&end[..], &keys[..]), ("0", &["d".to_owned()][..]));
    assert_eq!(client.say("KEYS *"), bulks(&["a", "aa", "d"]));
}
