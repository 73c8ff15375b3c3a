//! The main job: it ends with equal replicas, is readable, and leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::{command, run, stderr, stdout};

fn keys_file(directory: &Path, lines: usize) -> String {
    let path = directory.join("keys.txt");
    let keys: String = (0..lines)
        .map(|line| format!("key number {line}\n"))
        .collect();
    fs::write(&path, keys).expect("a file can be written");
    path.to_string_lossy().into_owned()
}

fn is_readable(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
        assert!(
            !line.contains('\x1b'),
            "colour, though nobody looks: {line}"
        );
    }
}

fn left_behind(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the directory is there");
    let names = entries.map(|entry| entry.expect("it can be read").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names
        .filter(|name| name.starts_with("level-replicator-demo"))
        .collect()
}

#[test]
fn three_replicas_diverge_and_agree_and_leave_nothing_behind() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let keys = keys_file(directory.path(), 500);
    let output = command(&["demo", "--keys", &keys])
        .env("TMPDIR", directory.path())
        .output()
        .expect("the tool runs");

    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", stderr(&output));
    is_readable(&said);
    for part in [
        "start", "discover", "load", "cut", "write", "kill", "heal", "conflict", "compare",
    ] {
        assert!(
            said.contains(&format!("\n  {part} ")),
            "no step {part} in\n{said}"
        );
    }
    assert!(said.contains("200 acknowledged"), "{said}");
    assert_eq!(said.matches("<- readers see").count(), 1, "{said}");
    assert!(said.contains("equal: 3 replicas hold the same"), "{said}");
    assert_eq!(left_behind(directory.path()), Vec::<String>::new());
}

#[test]
fn without_multicast_two_replicas_are_told_their_addresses_and_the_demo_says_so() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let keys = keys_file(directory.path(), 20);
    let output = run(&["demo", "--replicas", "2", "--no-multicast", "--keys", &keys]);

    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", stderr(&output));
    assert!(said.contains("multicast is off: they were told"), "{said}");
    assert!(said.contains("equal: 2 replicas hold the same"), "{said}");
}

#[test]
fn files_are_loaded_by_default_and_too_few_of_them_are_an_error_with_a_cure() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let few = command(&["demo"])
        .current_dir(directory.path())
        .output()
        .expect("the tool runs");
    assert_eq!(few.status.code(), Some(1));
    assert!(stderr(&few).contains("--keys FILE"), "{}", stderr(&few));

    for file in 0..12 {
        let path = directory.path().join(format!("file-{file:02}"));
        fs::write(path, vec![file; 3_000]).expect("a file can be written");
    }
    let output = command(&["demo"])
        .current_dir(directory.path())
        .output()
        .expect("the tool runs");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("12 keys (35 KiB) from the files"),
        "{}",
        stdout(&output)
    );
}

#[cfg(unix)]
#[test]
fn an_interrupted_demo_removes_what_it_made_and_ends_its_replicas() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let keys = keys_file(directory.path(), 20_000);
    let mut demo = command(&["demo", "--keys", &keys])
        .env("TMPDIR", directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool runs");
    wait_for(|| !left_behind(directory.path()).is_empty());
    let interrupt = std::process::Command::new("kill")
        .args(["-INT", &demo.id().to_string()])
        .status();
    assert!(interrupt.expect("kill runs").success());

    let status = demo.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert_eq!(left_behind(directory.path()), Vec::<String>::new());
}

#[cfg(unix)]
fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}
