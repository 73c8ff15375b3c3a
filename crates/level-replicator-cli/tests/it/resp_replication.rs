//! Several replicas through their doors: what others changed, conflicts, and who has what.

use std::time::{Duration, Instant};

use level_replicator::Options;

use crate::resp::{Client, Reply, Served, bulk, bulks, ok, until};

/// Two replicas that know each other.
fn pair() -> (Served, Served) {
    let one = Served::start_with(Options::new().listen("127.0.0.1:0"), |_| {});
    let address = one.db.status().listen.expect("it listens");
    let two = Served::start_with(Options::new().peer(address.as_str()), |_| {});
    assert_eq!(two.client().say("LR.SYNC 10000"), ok());
    (one, two)
}

fn confirmed(word: &str, name: &str, count: i64) -> Vec<Reply> {
    vec![bulk(word), bulk(name), Reply::Integer(count)]
}

fn message(client: &mut Client) -> Vec<String> {
    client.hear().items().iter().map(Reply::text).collect()
}

#[test]
fn local_and_remote_changes_are_told_to_subscribers() {
    let (one, two) = pair();
    let (mut writer, mut remote) = (one.client(), two.client());
    let mut listener = one.client();
    let channel = "__keyspace@0__:a";
    let reply = listener.say(&format!("SUBSCRIBE {channel}"));
    assert_eq!(reply, Reply::Array(confirmed("subscribe", channel, 1)));
    let reply = listener.say("PSUBSCRIBE __keyevent@0__:*");
    assert_eq!(
        reply,
        Reply::Array(confirmed("psubscribe", "__keyevent@0__:*", 2))
    );

    let both = |listener: &mut Client, event: &str| {
        assert_eq!(message(listener), ["message", channel, event]);
        let keyevent = format!("__keyevent@0__:{event}");
        assert_eq!(
            message(listener),
            ["pmessage", "__keyevent@0__:*", &keyevent, "a"]
        );
    };
    writer.say("SET a 1");
    both(&mut listener, "set");
    writer.say("DEL a");
    both(&mut listener, "del");
    remote.say("SET a 2");
    both(&mut listener, "set");
    // Here it must be known before it can be deleted here.
    assert_eq!(writer.say("GET a"), bulk("2"));
    remote.say("DEL a");
    both(&mut listener, "del");
    writer.say("SET a 3 PX 30");
    both(&mut listener, "set");
    both(&mut listener, "expired");

    // Only what belongs there is answered while it listens.
    let refused = listener.say("GET a");
    assert!(
        refused.error().starts_with("ERR Can't execute 'get'"),
        "{refused:?}"
    );
    assert_eq!(listener.say("PING"), bulks(&["pong", ""]));
    let reply = listener.say(&format!("UNSUBSCRIBE {channel} none"));
    assert_eq!(reply, Reply::Array(confirmed("unsubscribe", channel, 1)));
    assert_eq!(
        listener.hear(),
        Reply::Array(confirmed("unsubscribe", "none", 1))
    );
    let reply = listener.say("PUNSUBSCRIBE");
    assert_eq!(
        reply,
        Reply::Array(confirmed("punsubscribe", "__keyevent@0__:*", 0))
    );
    let nothing = vec![bulk("punsubscribe"), Reply::Null, Reply::Integer(0)];
    assert_eq!(listener.say("PUNSUBSCRIBE"), Reply::Array(nothing));
    writer.say("SET a 4");
    assert_eq!(listener.say("GET a"), bulk("4"));

    // Another one can listen again.
    listener.say("SUBSCRIBE __keyevent@0__:set");
    writer.say("SET b 1");
    assert_eq!(
        message(&mut listener),
        ["message", "__keyevent@0__:set", "b"]
    );
}

#[test]
fn in_version_3_a_subscriber_goes_on_and_is_pushed() {
    let served = Served::start();
    let mut client = served.client();
    client.say("HELLO 3");
    let reply = client.say("SUBSCRIBE __keyspace@0__:a");
    assert_eq!(
        reply,
        Reply::Push(confirmed("subscribe", "__keyspace@0__:a", 1))
    );
    assert_eq!(client.say("PING"), Reply::Simple("PONG".to_owned()));
    assert_eq!(client.say("SET a 1"), ok());
    let pushed = ["message", "__keyspace@0__:a", "set"].map(bulk).to_vec();
    assert_eq!(client.hear(), Reply::Push(pushed));
    assert_eq!(client.say("RESET").text(), "RESET");
    assert_eq!(client.say("GET a"), bulk("1"));
}

#[test]
fn wait_answers_how_many_replicas_have_the_write() {
    let (one, two) = pair();
    let mut client = one.client();
    assert_eq!(client.say("SET a 1"), ok());
    assert_eq!(client.say("WAIT 1 0"), Reply::Integer(1));
    assert_eq!(
        two.db.get("a").expect("it can be read").as_deref(),
        Some(&b"1"[..])
    );

    assert_eq!(two.client().say("LR.PAUSE"), ok());
    client.say("SET a 2");
    let began = Instant::now();
    assert_eq!(client.say("WAIT 1 50"), Reply::Integer(0));
    assert!(began.elapsed() >= Duration::from_millis(50));
    // A client that goes while it waits is gone.
    let mut other = one.client();
    other.say("SET b 1");
    other.send(b"WAIT 1 0\r\n");
    let blocked = |count: &str| {
        let count = format!("blocked_clients:{count}\r\n");
        let mut asking = one.client();
        until("so many wait", || {
            asking.say("INFO clients").text().contains(&count)
        });
    };
    blocked("1");
    drop(other);
    blocked("0");

    assert_eq!(two.client().say("LR.RESUME"), ok());
    assert_eq!(client.say("WAIT 1 0"), Reply::Integer(1));
    assert_eq!(client.say("WAIT 2 10"), Reply::Integer(1));
}

#[test]
fn conflicts_are_shown_and_resolved() {
    let (one, two) = pair();
    let (mut first, mut second) = (one.client(), two.client());
    assert_eq!(first.say("LR.PAUSE"), ok());
    for key in ["a", "b"] {
        first.say(&format!("SET {key} here"));
        second.say(&format!("SET {key} there"));
    }
    first.say("SET alone 1");
    assert_eq!(first.say("LR.RESUME"), ok());
    assert_eq!(second.say("LR.SYNC 10000"), ok());

    for client in [&mut first, &mut second] {
        assert_eq!(client.say("LR.CONFLICTS"), bulks(&["a", "b"]));
        assert_eq!(client.say("LR.CONFLICTS LIMIT 1"), bulks(&["a"]));
        let siblings = client.say("LR.SIBLINGS a");
        assert_eq!(siblings, bulks(&["here", "there"]));
    }
    assert_eq!(first.say("LR.DIGEST"), second.say("LR.DIGEST"));
    assert_eq!(first.say("LR.RESOLVE a both"), ok());
    // As any write it replaces all that are known.
    assert_eq!(first.say("SET b both"), ok());
    assert_eq!(first.say("WAIT 1 0"), Reply::Integer(1));
    assert_eq!(second.say("LR.CONFLICTS"), bulks(&[]));
    assert_eq!(second.say("LR.SIBLINGS a"), bulks(&["both"]));
}

#[test]
fn a_watched_key_that_changes_elsewhere_leaves_everything_undone() {
    let (one, two) = pair();
    let mut client = one.client();
    client.say("WATCH a");
    two.client().say("SET a there");
    until("it arrives", || one.client().say("GET a") == bulk("there"));
    client.say("MULTI");
    client.say("SET a here");
    assert_eq!(client.say("EXEC"), Reply::Null);
}

#[test]
fn a_sync_names_those_it_did_not_reach() {
    let served = Served::start_with(Options::new().peer("127.0.0.1:1"), |_| {});
    let refused = served.client().say("LR.SYNC 200");
    assert_eq!(refused.error(), "ERR not reached: 127.0.0.1:1");
}
