//! Programs that follow a daemon's changes, and its backups and checks.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::commands::assert_failed;
use crate::daemon::{Daemon, until};
use crate::{command, stderr, stdout};

const FEED: [&str; 1] = ["--change-feed"];

/// The whole lines of what a reader has written down; the rest of the last one was cut by its end.
fn lines(file: &Path) -> Vec<Value> {
    let mut bytes = Vec::new();
    let mut file = File::open(file).expect("it was made");
    file.read_to_end(&mut bytes).expect("a read");
    let whole = bytes
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let text = String::from_utf8(bytes[..whole].to_vec()).expect("a text");
    let parse = |line| serde_json::from_str(line).expect("an object");
    text.lines().map(parse).collect()
}

#[test]
fn a_reader_that_is_killed_a_hundred_times_sees_every_change_once_and_in_order() {
    let place = tempfile::tempdir().expect("a directory");
    let here = Daemon::start(&place.path().join("here"), &FEED);
    let there = ["--peer", &here.listen];
    let there = Daemon::start(&place.path().join("there"), &there);
    let is_done = AtomicBool::new(false);
    let mut chance = fastrand::Rng::with_seed(1);
    let mut seen: Vec<Value> = Vec::new();
    let mut kills = 0;

    std::thread::scope(|scope| {
        for (daemon, name) in [(&here, "here"), (&there, "there")] {
            let is_done = &is_done;
            scope.spawn(move || {
                let mut client = daemon.client();
                for number in 0.. {
                    if is_done.load(Ordering::Relaxed) {
                        return;
                    }
                    // Each writer's keys tell the order in which it wrote.
                    client.call(&format!("SET {name}/{number:06} {number}"));
                    if number % 10 == 9 {
                        client.call(&format!("DEL {name}/{:06}", number - 5));
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }
        for round in 0..101 {
            let file = place.path().join(format!("read {round}"));
            let cursor = seen
                .last()
                .map_or("0", |change| change["cursor"].as_str().expect("a cursor"));
            let mut reader = command(&["watch", "--json", "--from", cursor, "--at", &here.resp]);
            let reader = reader.stdout(File::create(&file).expect("a file"));
            let mut reader = reader.spawn().expect("the tool runs");
            std::thread::sleep(Duration::from_millis(chance.u64(0..60)));
            if round == 100 {
                is_done.store(true, Ordering::Relaxed);
                std::thread::sleep(Duration::from_secs(2));
            }
            reader.kill().expect("it runs");
            reader.wait().expect("it ends");
            kills += 1;
            seen.extend(lines(&file));
        }
    });

    assert!(kills > 100 && seen.len() > 2_000, "{} changes", seen.len());
    // All of it at once says the same.
    let mut client = here.client();
    let mut cursor = "0".to_owned();
    let mut all: Vec<Value> = Vec::new();
    loop {
        let told = client.call(&format!("LR.CHANGES {cursor} LIMIT 10000"));
        let told: Value = serde_json::from_str(told.trim_matches('"')).expect("an object");
        let changes = told["changes"].as_array().expect("a list");
        if changes.is_empty() {
            break;
        }
        all.extend(changes.iter().cloned());
        cursor = told["cursor"].as_str().expect("a cursor").to_owned();
    }
    let told = |change: &Value| {
        (
            change["cursor"].clone(),
            change["key"].clone(),
            change["kind"].clone(),
        )
    };
    assert_eq!(seen.len(), all.len());
    assert!(seen.iter().map(told).eq(all.iter().map(told)));
    // Of each writer every put is there once, in its order, and where it came from.
    for (name, is_local) in [("here/", true), ("there/", false)] {
        let puts = seen.iter().filter(|change| change["kind"] == "put");
        let puts: Vec<&Value> = puts
            .filter(|change| change["key"].as_str().expect("a text").starts_with(name))
            .collect();
        assert!(puts.len() > 500, "{} of {name}", puts.len());
        for (number, change) in puts.iter().enumerate() {
            // What came from the peer with its delete was never seen here.
            if is_local {
                assert_eq!(change["key"], format!("{name}{number:06}"));
            }
            assert_eq!(change["local"], is_local);
            assert!(change["origin"].is_string());
        }
        let keys = puts
            .iter()
            .map(|change| change["key"].as_str().expect("a text"));
        let mut sorted: Vec<&str> = keys.clone().collect();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), puts.len(), "none of {name} twice");
    }
}

#[test]
fn changes_are_told_to_who_waits_and_not_to_who_was_not_meant() {
    let place = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&place.path().join("replica"), &FEED);
    let mut watching = command(&["watch", "user/", "--at", &daemon.resp]);
    let mut watching = watching
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tool runs");
    let mut told = BufReader::new(watching.stdout.take().expect("a pipe")).lines();
    let mut client = daemon.client();
    // It may not wait yet, and begins with what comes from then on.
    for _ in 0..20 {
        client.call("SET user/0 early");
        std::thread::sleep(Duration::from_millis(50));
    }
    client.call("SET other 1");
    client.call("SET user/1 Ada");
    client.call("DEL user/1");
    let next = told
        .by_ref()
        .map(|line| line.expect("a line"))
        .find(|line| !line.contains("user/0"));
    let next = next.expect("a line");
    assert!(
        next.starts_with("put     user/1") && next.contains('('),
        "{next}"
    );
    let next = told.next().expect("a line").expect("a line");
    assert!(next.starts_with("delete  user/1"), "{next}");
    watching.kill().expect("it runs");
    watching.wait().expect("it ends");

    let waited = Instant::now();
    let empty = client.call("LR.CHANGES $ BLOCK 200");
    assert!(empty.contains("\"changes\":[]"), "{empty}");
    assert!(waited.elapsed() >= Duration::from_millis(200));
    for (line, words) in [
        ("LR.CHANGES", "wrong number of arguments"),
        ("LR.CHANGES nonsense", "is no cursor"),
        ("LR.CHANGES 0 LIMIT x", "not an integer"),
        ("LR.CHANGES 0 BLOCK -1", "out of range"),
        ("LR.CHANGES 0 WHAT", "syntax error"),
        ("LR.CHANGES 7-0123456789abcdef", "FELLBEHIND"),
    ] {
        let said = client.call(line);
        assert!(said.contains(words), "{line}: {said}");
    }
    assert_failed(
        &daemon.run(&["watch", "--from", "7"]),
        2,
        &["--from", "no cursor"],
    );
    let behind = daemon.run(&["watch", "--from", "7-0123456789abcdef"]);
    assert_failed(&behind, 1, &["does not hold all"]);

    let other = Daemon::start(&place.path().join("other"), &[]);
    assert_failed(&other.run(&["watch"]), 1, &["--change-feed"]);
    daemon.stop();
    let path = place.path().join("replica");
    let path = path.to_str().expect("a name");
    let read = command(&["watch", "--path", path])
        .output()
        .expect("the tool runs");
    assert!(read.status.success(), "{}", stderr(&read));
    assert!(stdout(&read).lines().count() >= 4, "{}", stdout(&read));
}

#[test]
fn a_backup_taken_under_load_is_sound_and_comes_back_without_harm() {
    let place = tempfile::tempdir().expect("a directory");
    let here = Daemon::start(&place.path().join("here"), &FEED);
    let there = Daemon::start(&place.path().join("there"), &["--peer", &here.listen]);
    let copy = place.path().join("copy");
    let copy = copy.to_str().expect("a name");
    let is_done = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut client = here.client();
            let mut written = 0;
            while !is_done.load(Ordering::Relaxed) {
                for _ in 0..100 {
                    client.send(&format!("SET key/{} {written}", written % 5_000));
                    written += 1;
                }
                for _ in 0..100 {
                    assert_eq!(client.reply(), "OK");
                }
            }
            written
        });
        std::thread::sleep(Duration::from_millis(500));
        let backed = here.run(&["backup", copy]);
        assert!(backed.status.success(), "{}", stderr(&backed));
        let verified = here.run(&["verify"]);
        assert!(
            verified.status.success(),
            "{}{}",
            stdout(&verified),
            stderr(&verified)
        );
        is_done.store(true, Ordering::Relaxed);
        writing.join().expect("it writes")
    });
    assert!(written > 1_000, "{written}");

    let verified = command(&["verify", "--json", "--path", copy])
        .output()
        .expect("the tool runs");
    assert!(verified.status.success(), "{}", stderr(&verified));
    let found: Value = serde_json::from_slice(&verified.stdout).expect("an object");
    assert_eq!(
        (&found["sound"], &found["findings_count"]),
        (&true.into(), &0.into())
    );
    assert_failed(&here.run(&["backup", copy]), 1, &["choose a directory"]);

    // It runs beside the original, writes, and all agree.
    let restored = Daemon::start(Path::new(copy), &["--peer", &there.listen]);
    restored.client().call("SET restored yes");
    restored.run(&["sync"]);
    there.run(&["sync"]);
    let digests = || [&here, &there, &restored].map(|daemon| stdout(&daemon.run(&["digest"])));
    until("all agree", digests, |[a, b, c]| a == b && b == c);
    assert_eq!(here.client().call("GET restored"), "yes");
    assert_eq!(here.client().call("LR.CONFLICTS"), "[]");
    let drawn = here.run(&["status"]);
    assert!(drawn.status.success());
}

#[test]
fn the_picture_of_the_cluster_is_drawn_again_and_again() {
    let place = tempfile::tempdir().expect("a directory");
    let here = Daemon::start(&place.path().join("here"), &[]);
    let _there = Daemon::start(&place.path().join("there"), &["--peer", &here.listen]);
    let mut watching = command(&["status", "--watch", "--at", &here.resp]);
    let mut watching = watching
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tool runs");
    let told = BufReader::new(watching.stdout.take().expect("a pipe")).lines();
    let mut pictures = 0;
    for line in told.map(|line| line.expect("a line")) {
        assert!(line.chars().count() <= 80, "{line}");
        pictures += usize::from(line.starts_with("cluster "));
        if pictures == 3 {
            break;
        }
    }
    assert_eq!(pictures, 3);
    watching.kill().expect("it runs");
    watching.wait().expect("it ends");
    assert_failed(
        &here.run(&["status", "--watch", "--json"]),
        2,
        &["cannot be used"],
    );
}
