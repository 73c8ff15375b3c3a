//! The unit of systemd: systemd takes it, and the tool takes what it is started with.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::daemon::Daemon;
use crate::{command, run, stdout};

const PROGRAM: &str = "/usr/local/bin/level-replicator";

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/level-replicator.service");
    fs::read_to_string(path).expect("the unit is there")
}

#[test]
fn systemd_takes_the_unit() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("level-replicator.service");
    let here = env!("CARGO_BIN_EXE_level-replicator");
    fs::write(&file, unit().replace(PROGRAM, here)).expect("written");
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&file)
        .output();
    // Not every machine has systemd.
    let Ok(verified) = verified else { return };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(
        verified.status.success() && !said.contains("level-replicator"),
        "{said}"
    );
}

#[test]
fn the_tool_starts_as_the_unit_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    fs::write(at("secret"), stdout(&run(&["secret"]))).expect("written");
    fs::write(at("settings"), "multicast-group = \"239.192.76.83:7683\"\n").expect("written");
    let unit = unit();
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .expect("it starts something");
    let line = line
        .replace("/etc/level-replicator.toml", &at("settings"))
        .replace("/var/lib/level-replicator", &at("state"))
        .replace("${CREDENTIALS_DIRECTORY}/secret", &at("secret"));
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[0], PROGRAM);
    let mut starting = command(&words[1..]);
    starting.args(["--listen", "127.0.0.1:0", "--resp", "127.0.0.1:0"]);
    starting.args(["--http", "127.0.0.1:0", "--no-multicast"]);
    let daemon = Daemon::of(&mut starting);
    let (status, logged) = daemon.stop();
    assert!(status.success(), "{logged}");
}
