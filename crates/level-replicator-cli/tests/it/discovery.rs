//! Daemons that find each other by a file, a command, a name, and a ticket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::daemon::{Daemon, until};
use crate::{command, run, stderr, stdout};

/// A write on one daemon arrives at the other.
fn assert_meet(one: &Daemon, two: &Daemon, key: &str) {
    assert_eq!(one.client().call(&format!("SET {key} met")), "OK");
    let get = || two.client().call(&format!("GET {key}"));
    until("they meet", get, |value| value == "met");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name")
}

#[test]
fn peers_come_and_go_with_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let one = Daemon::start(&directory.path().join("one"), &[]);
    let file = directory.path().join("peers");
    fs::write(&file, "# nobody yet\n").expect("written");
    let two = Daemon::start(
        &directory.path().join("two"),
        &["--peers-file", text(&file)],
    );
    assert_eq!(two.client().call("LR.PEERS"), "[]");
    fs::write(&file, format!("{}\n", one.listen)).expect("written");
    assert_meet(&one, &two, "by-file");
    assert!(
        two.client()
            .call("LR.PEERS")
            .contains("\"discovery\":\"source\"")
    );
    fs::write(&file, "").expect("written");
    until(
        "it is forgotten",
        || two.client().call("LR.PEERS"),
        |peers| !peers.contains("\"discovery\":\"source\""),
    );
}

#[test]
fn peers_are_what_a_command_prints_or_a_name_resolves_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let one = Daemon::start(&directory.path().join("one"), &[]);
    let printing = format!("echo {}", one.listen);
    let two = Daemon::start(
        &directory.path().join("two"),
        &["--peers-command", &printing],
    );
    assert_meet(&one, &two, "by-command");
    let port = one.listen.rsplit(':').next().expect("a port");
    let name = format!("localhost:{port}");
    let three = Daemon::start(&directory.path().join("three"), &["--peers-dns", &name]);
    assert_meet(&one, &three, "by-name");
    assert_meet(&three, &two, "through-the-first");
}

#[test]
fn a_command_under_way_ends_with_the_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("process");
    let printing = format!("sleep 300 & echo $! > {}; wait", text(&file));
    let one = Daemon::start(
        &directory.path().join("one"),
        &["--peers-command", &printing],
    );
    let read = || fs::read_to_string(&file).unwrap_or_default();
    let process = until("the command runs", read, |id| id.ends_with('\n'));
    let (status, logged) = one.stop();
    assert!(status.success(), "{logged}");
    let cmdline = format!("/proc/{}/cmdline", process.trim());
    let running = || fs::read(&cmdline).unwrap_or_default();
    until("it ends", running, |words| words.is_empty());
}

#[test]
fn a_ticket_is_all_that_another_machine_needs() {
    let directory = tempfile::tempdir().expect("a directory");
    let secret = directory.path().join("secret");
    fs::write(&secret, stdout(&run(&["secret"]))).expect("written");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("set");
    let flags = ["--cluster", "shop", "--secret-file", text(&secret)];
    let one = Daemon::start(&directory.path().join("one"), &flags);
    let invite = [
        "invite",
        "--address",
        &one.listen,
        "--secret-file",
        text(&secret),
        "--cluster",
        "shop",
    ];
    let invited = run(&invite);
    let ticket = stdout(&invited);
    assert!(
        ticket.starts_with("lr1:") && ticket.lines().count() == 1,
        "{ticket}"
    );
    let file = directory.path().join("ticket");
    fs::write(&file, &ticket).expect("written");
    let everybody = fs::Permissions::from_mode(0o644);
    fs::set_permissions(&file, everybody).expect("set");
    let two = Daemon::start(&directory.path().join("two"), &["--join-file", text(&file)]);
    assert_meet(&one, &two, "by-ticket");

    // The secret shows nowhere.
    let digits = fs::read_to_string(&secret).expect("read");
    let process = fs::read(format!("/proc/{}/cmdline", one.id())).unwrap_or_default();
    assert!(!String::from_utf8_lossy(&process).contains(digits.trim()));
    for daemon in [one, two] {
        let (status, logged) = daemon.stop();
        assert!(status.success(), "{logged}");
        assert!(
            !logged.contains(digits.trim()) && !logged.contains(ticket.trim()),
            "{logged}"
        );
        assert!(logged.contains("can be read by other users"), "{logged}");
    }

    fs::write(&file, &ticket[..ticket.len() - 4]).expect("written");
    let refused = command(&["serve", "--path", "unused", "--join-file", text(&file)]).output();
    let refused = refused.expect("it runs");
    assert_eq!(refused.status.code(), Some(2));
    let said = stderr(&refused);
    assert!(
        said.contains("no ticket") && !said.contains(&ticket[4..20]),
        "{said}"
    );
}
