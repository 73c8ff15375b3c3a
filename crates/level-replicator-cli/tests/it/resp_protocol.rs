//! The protocol itself: versions, pipelines, lines typed by hand, the password, broken requests.

use std::io::Write;

use level_replicator::Options;
use level_replicator_cli::resp::{Password, RespOptions, RespServer, StartError};

use crate::resp::{Reply, Served, bulk, ok, request};

fn map(reply: &Reply) -> &[(Reply, Reply)] {
    match reply {
        Reply::Map(pairs) => pairs,
        other => panic!("no map: {other:?}"),
    }
}

#[test]
fn hello_chooses_the_version() {
    let served = Served::start();
    let mut client = served.client();
    let first = client.say("HELLO");
    assert_eq!(first.items().len(), 14);
    let third = client.say("HELLO 3 SETNAME worker");
    let pairs = map(&third);
    assert!(pairs.contains(&(bulk("proto"), Reply::Integer(3))));
    assert!(pairs.contains(&(bulk("mode"), bulk("standalone"))));
    assert_eq!(client.say("CLIENT GETNAME"), bulk("worker"));
    client.send(b"GET none\r\nCONFIG GET *\r\n");
    assert_eq!(client.hear(), Reply::Null);
    assert_eq!(map(&client.hear()), []);

    // What is wrong changes nothing.
    assert_eq!(
        client.say("HELLO 4").error(),
        "NOPROTO unsupported protocol version"
    );
    assert!(
        client
            .say("HELLO two")
            .error()
            .starts_with("ERR Protocol version")
    );
    assert!(
        client
            .say("HELLO 2 SETNAME")
            .error()
            .starts_with("ERR Syntax error in HELLO")
    );
    assert_eq!(map(&client.say("HELLO")).len(), 7);
    assert_eq!(client.say("RESET"), Reply::Simple("RESET".to_owned()));
    assert_eq!(client.say("HELLO").items().len(), 14);
    assert_eq!(client.say("CLIENT GETNAME"), Reply::Null);
}

#[test]
fn a_pipeline_is_answered_in_order_however_it_is_cut() {
    let served = Served::start();
    let mut pipeline = Vec::new();
    let mut expected = Vec::new();
    for number in 0..300 {
        let key = format!("key-{}", number % 7);
        let value = number.to_string();
        pipeline.extend(request(&["SET", &key, &value]));
        expected.push(ok());
        if number % 3 == 0 {
            pipeline.extend(format!("GET {key}\r\n").bytes());
            expected.push(bulk(&value));
        }
        if number % 50 == 0 {
            pipeline.extend(request(&["NOSUCH"]));
            let text = "ERR unknown command 'NOSUCH', with args beginning with: ";
            expected.push(Reply::Error(text.to_owned()));
        }
    }
    for len in [1, 7, 100, pipeline.len()] {
        let mut client = served.client();
        for piece in pipeline.chunks(len) {
            client.send(piece);
        }
        for reply in &expected {
            assert_eq!(client.hear(), *reply, "in pieces of {len}");
        }
    }
}

#[test]
fn a_pipeline_of_a_thousand_writes_and_more_is_answered() {
    let served = Served::start();
    let mut client = served.client();
    let write = request(&["SET", "key", &"v".repeat(100)]);
    std::thread::scope(|scope| {
        let mut stream = client.stream.try_clone().expect("a second handle");
        scope.spawn(move || stream.write_all(&write.repeat(20_000)));
        for _ in 0..20_000 {
            assert_eq!(client.hear(), ok());
        }
    });
}

#[test]
fn lines_can_be_typed_by_hand() {
    let served = Served::start();
    let mut client = served.client();
    client.send(b"\r\n  set 'a key' \"a\\x20value\\n\" \r\nget 'a key'\nPING\r\n");
    assert_eq!(client.hear(), ok());
    assert_eq!(client.hear(), bulk("a value\n"));
    assert_eq!(client.hear(), Reply::Simple("PONG".to_owned()));
}

#[test]
fn a_broken_request_is_told_and_ends_the_connection() {
    let served = Served::start();
    for (said, told) in [
        (&b"*1\r\nPING\r\n"[..], "expected '$', got 'P'"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*2000000\r\n", "invalid multibulk length"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (
            b"*2\r\n$3\r\nGET\r\n$99999999999\r\n",
            "invalid bulk length",
        ),
        (b"get 'a\r\n", "unbalanced quotes in request"),
        (&[b'a'; 70_000], "too big inline request"),
    ] {
        let mut client = served.client();
        // What was said before is answered first.
        client.send(&[&request(&["SET", "a", "1"])[..], said].concat());
        assert_eq!(client.hear(), ok());
        assert_eq!(client.hear().error(), format!("ERR Protocol error: {told}"));
        client.hear_the_end();
    }
    assert_eq!(served.client().say("GET a"), bulk("1"));
}

#[test]
fn nothing_is_answered_before_the_password() {
    let served = Served::start_with(Options::new(), |options| {
        options.password = Password::new("open sesame");
    });
    let mut client = served.client();
    for line in [
        "GET a",
        "PING",
        "NOSUCH",
        "MULTI",
        "SUBSCRIBE a",
        "LR.STATUS",
    ] {
        assert_eq!(
            client.say(line).error(),
            "NOAUTH Authentication required.",
            "{line}"
        );
    }
    assert!(client.say("HELLO 3").error().starts_with("NOAUTH HELLO"));
    for wrong in [
        &["AUTH", "open"][..],
        &["AUTH", "other", "open sesame"],
        &["HELLO", "3", "AUTH", "default", "x"],
    ] {
        let refused = client.call(wrong);
        assert!(refused.error().starts_with("WRONGPASS"), "{refused:?}");
    }
    assert_eq!(client.call(&["AUTH", "open sesame"]), ok());
    assert_eq!(client.say("PING").text(), "PONG");
    assert_eq!(client.say("RESET").text(), "RESET");
    assert_eq!(
        client.say("PING").error(),
        "NOAUTH Authentication required."
    );
    let hello = client.call(&["HELLO", "3", "AUTH", "default", "open sesame"]);
    assert_eq!(map(&hello).len(), 7);
    assert_eq!(client.say("PING").text(), "PONG");

    // A stranger's requests are small.
    let mut stranger = served.client();
    stranger.send(b"*11\r\n");
    let told = stranger.hear();
    assert_eq!(
        told.error(),
        "ERR Protocol error: unauthenticated multibulk length"
    );
    stranger.hear_the_end();
    let mut stranger = served.client();
    stranger.send(b"*2\r\n$4\r\nAUTH\r\n$20000\r\n");
    let told = stranger.hear();
    assert_eq!(
        told.error(),
        "ERR Protocol error: unauthenticated bulk length"
    );
    assert_eq!(served.client().say("QUIT"), ok());
}

#[test]
fn without_a_password_a_password_is_a_mistake() {
    let served = Served::start();
    let refused = served.client().say("AUTH x");
    assert!(
        refused
            .error()
            .starts_with("ERR AUTH <password> called without any password")
    );
    assert_eq!(served.client().say("AUTH default x"), ok());
}

#[test]
fn other_machines_need_a_password() {
    let served = Served::start();
    let open = RespOptions::new("0.0.0.0:0".parse().expect("an address"));
    let refused = RespServer::start(served.db.clone(), open.clone()).expect_err("it is refused");
    assert!(matches!(refused, StartError::Open { .. }), "{refused}");
    assert!(refused.to_string().contains("no password"), "{refused}");

    let taken = RespOptions::new(served.server.address().clone());
    let refused = RespServer::start(served.db.clone(), taken).expect_err("it is taken");
    assert!(matches!(refused, StartError::Listen { .. }), "{refused}");
}

#[test]
fn a_stop_ends_connections_and_frees_the_port() {
    let served = Served::start();
    let address = served.server.address().to_string();
    let mut idle = served.client();
    let mut waiting = served.client();
    waiting.say("SET a 1");
    waiting.send(&request(&["WAIT", "1", "0"]));
    served.server.stop();
    idle.hear_the_end();
    waiting.hear_the_end();
    std::net::TcpListener::bind(address).expect("the port is free");
    assert_eq!(
        served.db.get("a").expect("it can be read").as_deref(),
        Some(&b"1"[..])
    );
    served.db.close().expect("nothing holds it");
}
