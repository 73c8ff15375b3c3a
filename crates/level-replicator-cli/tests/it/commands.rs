//! The commands against a daemon and against a directory; what they print, and how they end.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Output, Stdio};

use crate::daemon::Daemon;
use crate::{command, run, stderr, stdout};

/// It failed with a code and one line that holds all of some words.
pub(crate) fn assert_failed(output: &Output, code: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    if code == 1 {
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("level-replicator: "), "{said}");
    }
    for word in words {
        assert!(said.contains(word), "'{word}' is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn assert_printed(output: &Output, expected: &str) {
    assert!(output.status.success(), "{}", stderr(output));
    assert_eq!(stdout(output), expected);
}

/// The same commands do the same through either door.
fn use_values(run: impl Fn(&[&str]) -> Output) {
    assert_printed(&run(&["put", "b", "2"]), "");
    assert_printed(&run(&["put", "a", "-1"]), "");
    assert_printed(&run(&["put", "c", "later", "--expires-in", "1000"]), "");
    assert_printed(&run(&["get", "a"]), "-1\n");
    assert_failed(&run(&["get", "nothing"]), 1, &["there is no key 'nothing'"]);
    assert_failed(&run(&["get", ""]), 1, &["key is empty"]);
    assert_printed(&run(&["range"]), "a\t-1\nb\t2\nc\tlater\n");
    assert_printed(&run(&["range", "b"]), "b\t2\nc\tlater\n");
    assert_printed(&run(&["range", "a", "b"]), "a\t-1\n");
    assert_printed(
        &run(&["range", "--reverse", "--limit", "2"]),
        "c\tlater\nb\t2\n",
    );
    let lines = "{\"key\":\"b\",\"value\":\"2\"}\n";
    assert_printed(&run(&["range", "--prefix", "b", "--json"]), lines);
    assert_printed(&run(&["siblings", "a"]), "-1\n");
    assert_printed(&run(&["siblings", "a", "--json"]), "[{\"value\":\"-1\"}]\n");
    assert_failed(&run(&["siblings", "nothing"]), 1, &["no key 'nothing'"]);
    assert_printed(&run(&["resolve", "a", "0"]), "");
    assert_printed(&run(&["get", "a"]), "0\n");
    assert_printed(&run(&["conflicts"]), "");
    assert_printed(&run(&["conflicts", "--json"]), "[]\n");
    assert_printed(&run(&["delete", "a"]), "");
    assert_failed(&run(&["delete", "a"]), 1, &["there is no key 'a'"]);
    let digest = stdout(&run(&["digest"]));
    assert_eq!(digest.trim_end().len(), 32, "{digest}");
    let json = stdout(&run(&["digest", "--json"]));
    assert_eq!(json, format!("{{\"digest\":\"{}\"}}\n", digest.trim_end()));
    assert!(stdout(&run(&["status"])).contains("keys         2\n"));
    let status: serde_json::Value =
        serde_json::from_slice(&run(&["status", "--json"]).stdout).expect("JSON");
    assert_eq!(status["keys"], 2);
    assert_eq!(status["digest"], digest.trim_end());
    let long = "k".repeat(65_001);
    assert_failed(&run(&["put", &long, "v"]), 1, &["65001 bytes"]);
}

#[test]
fn values_are_used_through_a_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(directory.path(), &[]);
    use_values(|arguments| daemon.run(arguments));
    assert_printed(&daemon.run(&["peers"]), "");
    assert_printed(&daemon.run(&["peers", "--json"]), "[]\n");
    assert_printed(&daemon.run(&["sync"]), "");
    assert_failed(&daemon.run(&["retire", "me"]), 2, &["32 hex digits"]);
    assert_failed(
        &daemon.run(&["retire", &"0".repeat(32)]),
        1,
        &["no other member"],
    );
    let (status, logged) = daemon.stop();
    assert!(status.success(), "{logged}");
    assert!(logged.contains("closing"), "{logged}");
}

#[test]
fn values_are_used_in_a_directory_that_no_daemon_holds() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a name");
    let at_path = |arguments: &[&str]| {
        command(arguments)
            .args(["--path", path])
            .output()
            .expect("the tool runs")
    };
    assert_failed(&at_path(&["get", "a"]), 1, &["holds no replica"]);
    let daemon = Daemon::start(directory.path(), &[]);
    assert_failed(&at_path(&["get", "a"]), 1, &["in use by another process"]);
    assert!(daemon.stop().0.success());
    use_values(at_path);
    for needs in [&["sync"][..], &["peers"], &["retire", &"0".repeat(32)]] {
        assert_failed(&at_path(needs), 2, &["needs a running daemon"]);
    }
}

#[test]
fn everything_is_exported_and_imported_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    let (one, two) = (Daemon::start(&one, &[]), Daemon::start(&two, &[]));
    let mut lines = String::new();
    for number in 0..100_000 {
        lines.push_str(&format!(
            "{{\"key\":\"k{number:06}\",\"value\":\"{number}\"}}\n"
        ));
    }
    lines.push_str("\n{\"key_b64\":\"/wA=\",\"value_b64\":\"\"}\n");
    lines.push_str("{\"key\":\"\\\"ü\\n\",\"value\":\"\"}\n");
    let file = directory.path().join("lines");
    fs::write(&file, &lines).expect("written");
    let file = file.to_str().expect("a name");
    let imported = one.run(&["import", file]);
    assert!(imported.status.success(), "{}", stderr(&imported));
    assert!(stderr(&imported).contains("100,002 keys written"));

    let exported = one.run(&["export"]);
    assert!(exported.status.success());
    assert_eq!(stdout(&exported).lines().count(), 100_002);
    let mut importing = command(&["import", "-", "--at", &two.resp]);
    let mut importing = importing
        .stdin(Stdio::piped())
        .spawn()
        .expect("the tool runs");
    let mut stdin = importing.stdin.take().expect("a pipe");
    stdin.write_all(&exported.stdout).expect("it reads");
    drop(stdin);
    assert!(importing.wait().expect("it ends").success());
    assert_eq!(two.run(&["export"]).stdout, exported.stdout);
    assert_eq!(two.client().call_words(&[b"STRLEN", b"\xff\0"]), "(0)");
    assert_eq!(two.client().call("DBSIZE"), "(100002)");

    for (line, words) in [
        (
            "{\"key\":\"x\",\"value\":\"1\"}\nnonsense\n",
            &["line 2", "no JSON", "1 keys before it are written"][..],
        ),
        (
            "{\"key\":\"x\"}\n",
            &["line 1", "neither 'value' nor 'value_b64'"],
        ),
        (
            "{\"key\":\"\",\"value\":\"\"}\n",
            &["line 1", "the key is empty"],
        ),
        ("[]\n", &["line 1", "no object"]),
        (
            "{\"key_b64\":\"?\",\"value\":\"\"}\n",
            &["line 1", "base 64"],
        ),
    ] {
        fs::write(file, line).expect("written");
        assert_failed(&one.run(&["import", file]), 1, words);
    }
    assert_failed(&one.run(&["import", "/nowhere"]), 1, &["/nowhere"]);
    // With the feature, clients/leveldb tries what is there to be read.
    let words = if cfg!(feature = "leveldb") {
        "no LevelDB database"
    } else {
        "--features leveldb"
    };
    let from_leveldb = ["import", "--leveldb", "/nowhere"];
    assert_failed(&one.run(&from_leveldb), 1, &[words]);
    assert_failed(
        &one.run(&["import", file, "--leveldb", "d"]),
        2,
        &["cannot be used"],
    );
    assert_failed(&one.run(&["import"]), 2, &["<FILE>"]);
}

#[test]
fn wrong_arguments_are_told_in_a_line() {
    let nobody = ["--at", "127.0.0.1:1"];
    for words in [
        &["get", "a"][..],
        &["put", "a", "1"],
        &["status"],
        &["export"],
        &["sync"],
    ] {
        let output = command(words).args(nobody).output().expect("the tool runs");
        assert_failed(&output, 1, &["cannot reach a daemon at 127.0.0.1:1"]);
    }
    assert_failed(&run(&["get", "a", "--at", "nonsense"]), 2, &["--at: "]);
    for usage in [
        &["get"][..],
        &["put", "a"],
        &["range", "a", "b", "c"],
        &["range", "a", "--prefix", "b"],
        &["get", "a", "--at", "x:1", "--path", "y"],
        &["put", "a", "b", "--expires-in", "0"],
        &["serve", "--durability", "perhaps"],
        &["serve", "--path"],
        &["bench", "--keys", "1"],
        &["sync", "--timeout", "18446744073709551615"],
        &["completions", "klingon"],
    ] {
        assert_failed(&run(usage), 2, &[]);
    }
    assert_failed(&run(&["serve"]), 2, &["--path is missing"]);
    let open = ["serve", "--path", "unused", "--listen", "0.0.0.0:0"];
    assert_failed(&run(&open), 2, &["no secret", "--secret-file"]);
    assert_failed(
        &run(&["invite", "--address", "a:1"]),
        2,
        &["--secret-file is missing"],
    );
    assert_failed(&run(&["invite", "--address", "a"]), 2, &["--address: "]);
    assert_failed(&run(&["invite", "--address", "a:0"]), 2, &["port 0"]);
    let long = "c".repeat(256);
    for name in ["", &long] {
        let output = run(&["invite", "--address", "a:1", "--cluster", name]);
        assert_failed(&output, 2, &["--cluster: ", "1 to 255"]);
    }
    let senseless = ["serve", "--path", "unused", "--cluster", ""];
    assert_failed(&run(&senseless), 2, &["option cluster"]);
    assert!(stdout(&run(&["completions", "bash"])).contains("level-replicator"));
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("one");
    let daemon = Daemon::start(&path, &[]);
    let serve = |path: &std::path::Path, more: &[&str]| {
        let mut serving = command(&["serve", "--no-multicast", "--http", "none", "--path"]);
        serving
            .arg(path)
            .args(more)
            .output()
            .expect("the tool runs")
    };
    let free = ["--listen", "127.0.0.1:0", "--resp", "127.0.0.1:0"];
    assert_eq!(serve(&path, &free).status.code(), Some(1));
    let other = directory.path().join("two");
    let taken = serve(&other, &["--listen", "127.0.0.1:0", "--resp", &daemon.resp]);
    let said = stderr(&taken);
    assert_eq!(taken.status.code(), Some(1));
    assert!(said.contains("choose another port"), "{said}");
    let taken = serve(&other, &["--listen", &daemon.listen, "--resp", "none"]);
    assert_eq!(taken.status.code(), Some(1));
    assert!(stderr(&taken).contains(&daemon.listen));
    let file = directory.path().join("file");
    fs::write(&file, "not a directory").expect("written");
    assert_eq!(serve(&file, &free).status.code(), Some(1));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(directory.path(), &[]);
    let mut client = daemon.client();
    for number in 0..20_000 {
        client.send(&format!("SET key:{number} {number}"));
    }
    (0..20_000).for_each(|_| assert_eq!(client.reply(), "OK"));
    let mut reading = command(&["range", "--at", &daemon.resp]);
    let reading = reading.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut reading = reading.spawn().expect("the tool runs");
    drop(reading.stdout.take());
    let output = reading.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_daemon_serves_though_nobody_reads_its_ready_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut serving = command(&["serve", "--no-multicast", "--listen", "none"]);
    serving.args(["--resp", "none", "--http", "none", "--path"]);
    let mut serving = serving
        .arg(directory.path())
        .stdout(
            fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .expect("it opens"),
        )
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool runs");
    let stderr = serving.stderr.take().expect("a pipe");
    let told = BufReader::new(stderr)
        .lines()
        .map_while(Result::ok)
        .find(|line| line.contains("cannot print the ready line"));
    let running = serving.try_wait().expect("it can be waited for");
    let _ = serving.kill();
    let _ = serving.wait();
    assert!(told.is_some());
    assert_eq!(running, None);
}

#[test]
fn a_secret_that_is_no_text_is_refused_and_not_passed_over() {
    use std::os::unix::ffi::OsStrExt;
    let directory = tempfile::tempdir().expect("a directory");
    let broken = std::ffi::OsStr::from_bytes(b"\xffsesame");
    for name in [
        "LEVEL_REPLICATOR_SECRET",
        "LEVEL_REPLICATOR_RESP_PASSWORD",
        "LEVEL_REPLICATOR_HTTP_PASSWORD",
    ] {
        let mut serving = command(&["serve", "--no-multicast", "--listen", "none", "--path"]);
        let serving = serving.arg(directory.path()).env(name, broken);
        let output = serving.output().expect("the tool runs");
        assert_failed(&output, 2, &[name]);
        assert!(!stderr(&output).contains("sesame"));
    }
}

#[test]
fn what_a_daemon_does_not_take_is_told_with_its_lines() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(&directory.path().join("one"), &[]);
    let file = directory.path().join("lines");
    let long = "k".repeat(65_001);
    let lines =
        format!("{{\"key\":\"a\",\"value\":\"1\"}}\n\n{{\"key\":\"{long}\",\"value\":\"1\"}}\n");
    fs::write(&file, &lines).expect("written");
    let import = ["import", file.to_str().expect("a name")];
    let cases = ["lines 1 to 3: ", "65000", "0 keys before them"];
    assert_failed(&daemon.run(&import), 1, &cases);
    fs::write(&file, format!("{lines}nonsense\n")).expect("written");
    assert_failed(&daemon.run(&import), 1, &cases);
    assert_eq!(daemon.client().call("DBSIZE"), "(0)");
}

#[test]
fn large_values_are_printed_a_few_at_a_time_and_all_of_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(directory.path(), &[]);
    let mut client = daemon.client();
    let large = vec![b'v'; 1 << 20];
    // Small ones first, so that the first page is cut where they end.
    for number in 0..1_500 {
        assert_eq!(client.call(&format!("SET a{number:04} 1")), "OK");
    }
    for number in 0..20 {
        let key = format!("b{number:04}");
        assert_eq!(client.call_words(&[b"SET", key.as_bytes(), &large]), "OK");
    }
    for more in [&[][..], &["--reverse"], &["--limit", "1510"]] {
        let output = daemon.run(&[&["range"], more].concat());
        let printed = stdout(&output);
        let mut keys: Vec<&str> = printed.lines().map(|line| &line[..5]).collect();
        if more == ["--reverse"] {
            keys.reverse();
        }
        let expected = if more.len() == 2 { 1_510 } else { 1_520 };
        assert_eq!(keys.len(), expected, "{more:?}");
        assert!(keys.is_sorted_by(|a, b| a < b), "{more:?}");
    }
}

#[test]
fn a_daemon_is_steered_and_its_peers_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let one = Daemon::start(&directory.path().join("one"), &[]);
    let two = Daemon::start(&directory.path().join("two"), &[]);
    assert_printed(&one.run(&["pause"]), "");
    assert!(stdout(&one.run(&["status"])).contains("paused"));
    assert_printed(&one.run(&["resume"]), "");
    assert_printed(&one.run(&["add-peer", &two.listen]), "");
    assert_printed(&one.run(&["sync"]), "");
    assert!(stdout(&one.run(&["peers"])).contains(&two.listen));
    assert_printed(&one.run(&["drop-peer", &two.listen]), "");
    assert!(!stdout(&one.run(&["peers"])).contains(&two.listen));
    assert_failed(&one.run(&["add-peer", "nonsense"]), 2, &["nonsense"]);
    let path = directory.path().join("one");
    drop(one);
    let path = path.to_str().expect("a name");
    assert_failed(&run(&["pause", "--path", path]), 2, &["--at"]);
}
