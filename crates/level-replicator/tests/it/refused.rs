//! Peers that must be refused: each time an event says why, and the replica goes on serving others.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use level_replicator::{Db, Event, Events, Options, Secret};
use level_replicator_core::clock::{Clock, Dot, ReplicaId, Stamp, WriterId};
use level_replicator_core::frame::FrameWriter;
use level_replicator_core::limits::FRAME_PAYLOAD_MAX;
use level_replicator_core::message::{Head, Heads, Message};
use level_replicator_core::record::{Content, Record, Version};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::writers::Descriptor;

use crate::common::*;
use crate::proxy::Proxy;
use crate::wire::{Wire, hello, open_key};

fn secret(digits: &str) -> Secret {
    Secret::from_hex(&digits.repeat(32)).expect("64 digits")
}

fn in_memory(options: Options) -> Db {
    open_in_memory(options, &MemoryStorage::new())
}

/// A replica with one key, and what it tells.
fn serving() -> (Db, Events) {
    let db = in_memory(options());
    db.put("key", "value").expect("a write");
    let events = db.events();
    (db, events)
}

fn options() -> Options {
    listening().stall_timeout(Duration::from_secs(5))
}

fn dial(db: &Db) -> Wire {
    Wire::dial(&address(db), &open_key(&cluster())).expect("the key is right")
}

/// Whether a healthy replica still gets everything, and is still heard.
#[track_caller]
fn still_serves(db: &Db) {
    let healthy = in_memory(options().peer(address(db)));
    healthy.put("healthy", "value").expect("a write");
    agree(&[db, &healthy]);
    assert_eq!(contents(db).len(), 2, "only the healthy peer wrote");
}

/// Says something wrong over a link that was greeted properly, and sees it refused.
#[track_caller]
fn refuses(words: &[&str], wrong: impl FnOnce(&mut Wire)) {
    let (db, mut events) = serving();
    let mut wire = dial(&db);
    wire.hear_hello();
    wrong(&mut wire);
    wait_for_error(&mut events, words);
    wire.expect_close();
    still_serves(&db);
}

#[test]
fn another_secret_is_refused_and_both_sides_say_why() {
    let first = in_memory(options().secret(secret("ab")));
    let mut at_first = first.events();
    first.put("key", "value").expect("a write");
    let second = in_memory(options().secret(secret("cd")).peer(address(&first)));
    let mut at_second = second.events();

    let theirs = wait_for_error(&mut at_first, &["handshake failed", "another secret"]);
    let ours = wait_for_error(&mut at_second, &["handshake failed", "secret", "differs"]);
    assert!(
        !theirs.contains("abab") && !ours.contains("cdcd"),
        "a secret shows"
    );
    assert_eq!(text(&second, "key"), None);
    assert_eq!(second.status().traffic.received_records, 0);

    let healthy = in_memory(options().secret(secret("ab")).peer(address(&first)));
    agree(&[&first, &healthy]);
    assert_eq!(text(&healthy, "key").as_deref(), Some("value"));
}

#[test]
fn without_the_secret_nobody_is_served() {
    let first = in_memory(options().secret(secret("ab")));
    let mut at_first = first.events();
    let second = in_memory(options().peer(address(&first)));
    wait_for_error(&mut at_first, &["handshake failed", "another secret"]);
    wait_for_error(&mut second.events(), &["handshake failed"]);
}

#[test]
fn another_cluster_with_the_same_secret_is_refused_by_name() {
    let first = in_memory(options().secret(secret("ab")).cluster("shop"));
    let mut at_first = first.events();
    first.put("key", "value").expect("a write");
    let second = in_memory(
        options()
            .secret(secret("ab"))
            .cluster("blog")
            .peer(address(&first)),
    );
    let mut at_second = second.events();

    wait_for_error(&mut at_second, &["cluster 'shop'", "not to 'blog'"]);
    wait_for_error(&mut at_first, &["cluster 'blog'", "not to 'shop'"]);
    assert_eq!(text(&second, "key"), None);
}

#[test]
fn another_cluster_without_a_secret_is_refused_in_the_handshake() {
    let first = in_memory(options().cluster("shop"));
    let mut at_first = first.events();
    let second = in_memory(options().cluster("blog").peer(address(&first)));
    wait_for_error(&mut at_first, &["handshake failed", "cluster"]);
    wait_for_error(&mut second.events(), &["handshake failed", "cluster"]);
}

#[test]
fn a_secret_is_rotated_without_a_pause() {
    let (old, new) = ("ab".repeat(32), "cd".repeat(32));
    let keys = |text: String| Secret::from_hex(&text).expect("one or two keys");
    let steps = [
        old.clone(),
        format!("{old}\n{new}"),
        format!("{new}\n{old}"),
        new.clone(),
    ];
    for (before, after) in steps.iter().zip(&steps[1..]) {
        let first = in_memory(options().secret(keys(before.clone())));
        let second = in_memory(options().secret(keys(after.clone())).peer(address(&first)));
        let third = in_memory(options().secret(keys(after.clone())));
        let fourth = in_memory(options().secret(keys(before.clone())).peer(address(&third)));
        for (number, node) in [&first, &second, &third, &fourth].iter().enumerate() {
            node.put(number.to_string(), "value").expect("a write");
        }
        agree(&[&first, &second]);
        agree(&[&third, &fourth]);
    }
    let first = in_memory(options().secret(keys(old)));
    let second = in_memory(options().secret(keys(new)).peer(address(&first)));
    wait_for_error(&mut second.events(), &["handshake failed"]);
}

#[test]
fn garbage_on_the_port_is_refused() {
    let (db, mut events) = serving();
    let mut web = TcpStream::connect(address(&db)).expect("it listens");
    web.write_all(b"GET / HTTP/1.1\r\n\r\n")
        .expect("it listens");
    wait_for_error(&mut events, &["handshake failed", "18245 bytes"]);

    let mut right_length = TcpStream::connect(address(&db)).expect("it listens");
    right_length
        .write_all(&[&[0, 48][..], &[7; 48]].concat())
        .expect("it listens");
    wait_for_error(&mut events, &["handshake failed", "does not fit"]);

    let half = TcpStream::connect(address(&db)).expect("it listens");
    half.shutdown(Shutdown::Both).expect("a socket");
    wait_for_error(&mut events, &["handshake failed", "closed"]);
    still_serves(&db);
}

#[test]
fn a_stranger_that_stays_silent_holds_nobody_up() {
    let (db, _events) = serving();
    let silent = [(); 20].map(|()| TcpStream::connect(address(&db)).expect("it listens"));
    still_serves(&db);
    drop(silent);
}

#[test]
fn another_version_of_the_protocol_is_refused_with_both_numbers() {
    refuses(&["versions 2 to 3", "speaks 1"], |wire| {
        let mut newer = hello(&cluster());
        (newer.version_min, newer.version_max) = (2, 3);
        wire.say(&Message::Hello(newer));
    });
    refuses(&["frame of version 9", "speaks version 1"], |wire| {
        wire.say_bytes(&[9; 20])
    });
}

#[test]
fn a_frame_over_the_limit_is_refused_before_it_is_read() {
    let size = u32::try_from(FRAME_PAYLOAD_MAX + 1)
        .expect("a small number")
        .to_be_bytes();
    refuses(&["frame of 262145 bytes", "262144"], |wire| {
        wire.say_hello(&cluster());
        wire.say_bytes(&[1, 4, size[1], size[2], size[3], 0, 0, 0, 0]);
    });
}

fn framed(message: &Message) -> Vec<u8> {
    let mut writer = FrameWriter::default();
    message.encode(&mut writer);
    writer.take()
}

#[test]
fn frames_that_are_damaged_or_no_messages_are_refused() {
    refuses(&["checksum"], |wire| {
        let mut frame = framed(&Message::Hello(hello(&cluster())));
        *frame.last_mut().expect("a frame") ^= 1;
        wire.say_bytes(&frame);
    });
    refuses(&["malformed message"], |wire| {
        let mut writer = FrameWriter::default();
        writer.push(1, b"no hello");
        wire.say_bytes(&writer.take());
    });
    refuses(&["malformed message"], |wire| {
        let mut writer = FrameWriter::default();
        writer.push(99, b"");
        wire.say_bytes(&writer.take());
    });
}

#[test]
fn what_the_protocol_does_not_allow_is_refused() {
    refuses(&["before it said hello"], |wire| wire.say(&claim()));
    refuses(&["hello twice"], |wire| {
        wire.say_hello(&cluster());
        wire.say_hello(&cluster());
    });
    refuses(&["outside a round"], |wire| {
        wire.say_hello(&cluster());
        wire.say(&claim());
    });
    refuses(&["records outside a round"], |wire| {
        wire.say_hello(&cluster());
        wire.say(&Message::Records(vec![("forged".into(), forged(1))]));
    });
    refuses(&["confirmed a round"], |wire| {
        wire.say_hello(&cluster());
        wire.say(&Message::Applied(level_replicator_core::message::Applied {
            consumed: 1_000_000,
            ..Default::default()
        }));
    });
}

#[test]
fn records_of_unknown_writers_or_beyond_the_clock_are_refused() {
    refuses(&["had not described"], |wire| {
        wire.say_hello(&cluster());
        wire.say(&round(1));
        wire.say(&Message::Records(vec![("forged".into(), forged(1))]));
        wire.say(&claim());
    });
    refuses(&["clock does not know"], |wire| {
        wire.say_hello(&cluster());
        wire.say(&round(1));
        wire.say(&Message::Writers(vec![descriptor()]));
        wire.say(&Message::Records(vec![("forged".into(), forged(2))]));
        wire.say(&claim());
    });
}

/// The hand-made peer can speak properly, so the refusals above are for what was wrong.
#[test]
fn the_same_round_is_taken_when_it_is_right() {
    let (db, _events) = serving();
    let mut wire = dial(&db);
    wire.hear_hello();
    wire.say_hello(&cluster());
    wire.say(&round(1));
    wire.say(&Message::Writers(vec![descriptor()]));
    wire.say(&Message::Records(vec![("forged".into(), forged(1))]));
    wire.say(&claim());
    eventually("the round is applied", || {
        text(&db, "forged").as_deref() == Some("value")
    });
}

fn descriptor() -> Descriptor {
    Descriptor {
        writer: WriterId(7),
        replica: ReplicaId([7; 16]),
        parent: None,
    }
}

/// A round that knows one write.
fn round(seq: u64) -> Message {
    let mut clock = Clock::default();
    clock.insert_range(WriterId(7), 1..=seq);
    let known = clock.get(WriterId(7)).expect("it was inserted").clone();
    let head = Head {
        writer: WriterId(7),
        known,
        adds: false,
    };
    Message::Clock {
        heads: Heads(vec![head]),
        asks: false,
        more: false,
    }
}

fn forged(seq: u64) -> Record {
    let dot = Dot {
        writer: WriterId(7),
        seq,
    };
    Record {
        live: vec![Version {
            dot,
            stamp: Stamp::from_micros(1),
            content: Content::Put("value".into()),
        }],
        ..Record::default()
    }
}

#[test]
fn a_peer_that_says_nothing_after_the_handshake_is_left() {
    let short = Duration::from_millis(300);
    let db = in_memory(options().stall_timeout(short));
    let mut events = db.events();
    db.put("key", "value").expect("a write");
    let mut wire = dial(&db);
    wire.hear_hello();
    wait_for_error(&mut events, &["silent for"]);
    wire.expect_close();

    let mut wire = dial(&db);
    wire.hear_hello();
    wire.say_hello(&cluster());
    // It owes an answer to what it was told, and does not give it.
    wait_for_error(&mut events, &["silent for"]);
    wire.expect_close();
    still_serves(&db);
}

#[test]
fn records_that_are_garbled_repeated_or_cut_are_refused() {
    let refuse = |words: &[&str], wrong: &dyn Fn(&mut Wire)| refuses(words, |wire| wrong(wire));
    refuse(&["damaged, repeated or out of order"], &|wire| {
        let mut sealed = wire.seal(b"anything");
        *sealed.last_mut().expect("a record") ^= 1;
        wire.send(&sealed);
    });
    refuse(&["damaged, repeated or out of order"], &|wire| {
        let frame = framed(&Message::Hello(hello(&cluster())));
        let sealed = wire.seal(&frame);
        wire.send(&sealed);
        wire.send(&sealed);
    });
    refuse(&["record of 65535 bytes"], &|wire| wire.send(&[0xff; 10]));
    refuse(&["closed by the peer"], &|wire| {
        wire.say_hello(&cluster());
        wire.cut();
    });
    refuse(&["inside a record"], &|wire| {
        let sealed = wire.seal(b"anything");
        wire.send(&sealed[..5]);
        wire.cut();
    });
}

#[test]
fn a_wire_that_garbles_is_left_and_used_again_when_it_is_healed() {
    let proxy = Proxy::start();
    let first = in_memory(options().advertise(proxy.address()));
    proxy.lead_to(&address(&first));
    first.put("key", "value").expect("a write");
    proxy.garble_answers_after(150);
    // It listens nowhere, so the only way between the two is the wire.
    let second = in_memory(
        alone()
            .first_sync_timeout(Duration::ZERO)
            .peer(proxy.address()),
    );
    let mut events = second.events();
    wait_for_error(&mut events, &["damaged, repeated or out of order"]);
    assert_eq!(text(&second, "key"), None);

    proxy.garble_answers_after(u64::MAX);
    agree(&[&first, &second]);
    assert_eq!(text(&second, "key").as_deref(), Some("value"));
    wait_for(&mut events, "synced", |event| {
        matches!(event, Event::Synced { .. }).then_some(())
    });
    assert!(proxy.connections() >= 2);
}

/// The end of a round that holds everything.
fn claim() -> Message {
    Message::Claim {
        unclaimed: Vec::new(),
    }
}

#[test]
fn a_peer_that_reads_nothing_loses_its_link_and_what_waits_for_it() {
    let db = in_memory(options().stall_timeout(Duration::from_secs(1)));
    let mut state = 1u64;
    let mut noise = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    let value: Vec<u8> = (0..8 << 20).map(|_| noise()).collect();
    db.put("large", &value).expect("a write");
    let mut events = db.events();
    let mut wire = dial(&db);
    wire.say_hello(&cluster());
    wire.say(&Message::Clock {
        heads: Heads::default(),
        asks: false,
        more: false,
    });

    wait_for_error(&mut events, &["silent"]);
    eventually("the link is gone", || db.status().links == 0);
    db.pause().expect("nobody is left");
    drop(wire);
}
