//! Atomic transactions, optimistic locks, and commits that many clients share.

use std::sync::Barrier;

use level_replicator::{Durability, Options};

use crate::resp::{Client, Reply, Served, bulk, bulks, ok, request};

fn queued() -> Reply {
    Reply::Simple("QUEUED".to_owned())
}

#[test]
fn a_transaction_sees_its_own_writes_and_is_written_at_exec() {
    let served = Served::start();
    let (mut client, mut other) = (served.client(), served.client());
    client.say("SET a 1");

    assert_eq!(client.say("MULTI"), ok());
    for line in [
        "SET b 2",
        "GET a",
        "APPEND b 3",
        "MGET a b none",
        "PING",
        "EXPIRE b 100",
        "TTL b",
    ] {
        assert_eq!(client.say(line), queued(), "{line}");
    }
    assert_eq!(other.say("GET b"), Reply::Null);
    // What is read is the state at EXEC.
    other.say("SET a new");
    let replies = client.say("EXEC");
    let expected = [
        ok(),
        bulk("new"),
        Reply::Integer(2),
        Reply::Array(vec![bulk("new"), bulk("23"), Reply::Null]),
        Reply::Simple("PONG".to_owned()),
        Reply::Integer(1),
        Reply::Integer(100),
    ];
    assert_eq!(replies, Reply::Array(expected.to_vec()));
    assert_eq!(other.say("GET b"), bulk("23"));
    assert_eq!(client.say("EXEC").error(), "ERR EXEC without MULTI");
}

#[test]
fn what_cannot_be_carried_out_gives_up_the_whole() {
    let served = Served::start();
    let mut client = served.client();
    for wrong in [
        "GET",
        "NOSUCH x",
        "KEYS *",
        "SUBSCRIBE a",
        "LR.SYNC",
        "SCAN 0",
        "WAIT 0 0",
        "FLUSHALL",
    ] {
        client.say("MULTI");
        assert_eq!(client.say("SET a 1"), queued());
        assert!(client.say(wrong).error().starts_with("ERR "), "{wrong}");
        let given_up = client.say("EXEC");
        assert!(given_up.error().starts_with("EXECABORT "), "{given_up:?}");
        assert_eq!(client.say("GET a"), Reply::Null, "{wrong}");
    }
    assert_eq!(client.say("MULTI"), ok());
    assert_eq!(
        client.say("MULTI").error(),
        "ERR MULTI calls can not be nested"
    );
    assert_eq!(
        client.say("WATCH a").error(),
        "ERR WATCH inside MULTI is not allowed"
    );
    assert_eq!(client.say("DISCARD"), ok());
    assert_eq!(client.say("DISCARD").error(), "ERR DISCARD without MULTI");
}

#[test]
fn a_command_that_fails_at_exec_leaves_the_others() {
    let served = Served::start();
    let mut client = served.client();
    client.say("MULTI");
    client.say("SET a 1");
    client.say("SET a 2 EX x");
    client.say("INCR a");
    client.say("GET a");
    let replies = client.say("EXEC");
    assert_eq!(replies.items()[0], ok());
    assert!(replies.items()[1].error().contains("not an integer"));
    assert!(replies.items()[2].error().contains("merge type"));
    assert_eq!(replies.items()[3], bulk("1"));
}

#[test]
fn a_watched_key_that_changes_leaves_everything_undone() {
    let served = Served::start();
    let (mut client, mut other) = (served.client(), served.client());
    client.say("SET a 1");
    for change in ["SET a 2", "SET a 2", "DEL a", "SET a 1"] {
        client.say("WATCH a b");
        other.say(change);
        client.say("MULTI");
        client.say("SET done yes");
        assert_eq!(client.say("EXEC"), Reply::Null, "{change}");
        assert_eq!(client.say("GET done"), Reply::Null, "{change}");
    }

    // Unchanged; changed only elsewhere; forgotten.
    client.say("WATCH a");
    other.say("SET b 1");
    client.say("MULTI");
    client.say("SET done yes");
    assert_eq!(client.say("EXEC"), Reply::Array(vec![ok()]));
    for forget in ["UNWATCH", "MULTI\nDISCARD", "MULTI\nEXEC"] {
        client.say("WATCH a");
        forget.lines().for_each(|line| drop(client.say(line)));
        other.say("SET a 3");
        client.say("MULTI");
        client.say("GET a");
        assert_eq!(client.say("EXEC"), bulks(&["3"]), "{forget}");
    }
}

#[test]
fn increments_by_watch_are_never_lost() {
    const CLIENTS: usize = 4;
    const EACH: usize = 50;
    let served = Served::start();
    let start = Barrier::new(CLIENTS);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = served.client();
                start.wait();
                for _ in 0..EACH {
                    while !try_increment(&mut client) {}
                }
            });
        }
    });
    let sum = (CLIENTS * EACH).to_string();
    assert_eq!(served.client().say("GET counter"), bulk(sum));
}

fn try_increment(client: &mut Client) -> bool {
    client.say("WATCH counter");
    let before = match client.say("GET counter") {
        Reply::Null => 0,
        value => value.text().parse::<usize>().expect("a number"),
    };
    // In one piece, so that EXEC meets the writes of others in one group.
    let value = (before + 1).to_string();
    let pipeline = [
        request(&["MULTI"]),
        request(&["SET", "counter", &value]),
        request(&["EXEC"]),
    ];
    client.send(&pipeline.concat());
    assert_eq!((client.hear(), client.hear()), (ok(), queued()));
    client.hear() != Reply::Null
}

#[test]
fn many_writers_at_once_each_get_their_own_replies() {
    const CLIENTS: usize = 16;
    for durability in [Durability::Buffered, Durability::Sync] {
        let options = Options::new().durability(durability);
        let served = Served::start_with(options, |options| options.durability = durability);
        std::thread::scope(|scope| {
            for number in 0..CLIENTS {
                let mut client = served.client();
                scope.spawn(move || {
                    for round in 0..40 {
                        let key = format!("key-{number}-{round}");
                        let pipeline = [
                            request(&["SETNX", &key, &key]),
                            request(&["SETNX", &key, "again"]),
                            request(&["APPEND", &key, "!"]),
                            request(&["GET", &key]),
                            request(&["GETDEL", &key]),
                            request(&["DEL", &key, "none"]),
                        ];
                        client.send(&pipeline.concat());
                        assert_eq!(client.hear(), Reply::Integer(1));
                        assert_eq!(client.hear(), Reply::Integer(0));
                        assert_eq!(client.hear(), Reply::Integer(key.len() as i64 + 1));
                        assert_eq!(client.hear(), bulk(format!("{key}!")));
                        assert_eq!(client.hear(), bulk(format!("{key}!")));
                        assert_eq!(client.hear(), Reply::Integer(0));
                    }
                });
            }
        });
        assert_eq!(served.client().say("DBSIZE"), Reply::Integer(0));
    }
}
