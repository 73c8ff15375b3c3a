//! The Redis protocol through the doors of daemons.

use crate::daemon::{Daemon, until};

#[test]
fn two_daemons_agree_wait_and_keep_both_sides_of_a_conflict() {
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let one = Daemon::start(directories[0].path(), &[]);
    let two = Daemon::start(directories[1].path(), &["--peer", &one.listen]);
    let (mut a, mut b) = (one.client(), two.client());
    assert_eq!(a.call("WAIT 0 0"), "(0)");
    assert_eq!(b.call("LR.SYNC 20000"), "OK");
    assert_eq!(a.call("SET k 1"), "OK");
    assert_eq!(a.call("WAIT 1 20000"), "(1)");
    assert_eq!(b.call("GET k"), "1");
    assert_eq!(a.call("WAIT 2 30"), "(1)");

    assert_eq!(b.call("LR.PAUSE"), "OK");
    assert_eq!(a.call("SET k a"), "OK");
    assert_eq!(b.call("SET k b"), "OK");
    assert_eq!(a.call("WAIT 1 30"), "(0)");
    let refused = b.call("LR.SYNC 1000");
    assert!(
        refused.starts_with("-ERR ") && refused.contains(&one.listen),
        "{refused}"
    );
    assert_eq!(b.call("LR.RESUME"), "OK");
    assert_eq!(b.call("LR.SYNC 20000"), "OK");
    assert_eq!(a.call("LR.CONFLICTS"), "[k]");
    assert_eq!(a.call("LR.CONFLICTS LIMIT 0"), "[]");
    assert_eq!(a.call("LR.SIBLINGS k"), "[a b]");
    assert_eq!(b.call("LR.SIBLINGS nothing"), "[]");
    assert_eq!(a.call("LR.RESOLVE k both"), "OK");
    assert_eq!(a.call("WAIT 1 20000"), "(1)");
    assert_eq!(b.call("LR.SIBLINGS k"), "[both]");
    let digests = until(
        "they agree",
        || (a.call("LR.DIGEST"), b.call("LR.DIGEST")),
        |(a, b)| a == b,
    );
    assert_eq!(digests.0.len(), 32);

    let status = a.call("LR.STATUS");
    assert!(
        status.contains(&format!("\"replica\":\"{}\"", one.replica)),
        "{status}"
    );
    assert!(
        b.call("LR.PEERS")
            .contains(&format!("\"address\":\"{}\"", one.listen))
    );
    assert_eq!(b.call(&format!("LR.DROPPEER {}", one.listen)), "OK");
    assert_eq!(b.call(&format!("LR.ADDPEER {}", one.listen)), "OK");
    assert!(b.call("LR.ADDPEER nonsense").starts_with("-ERR "));
    let stranger = "0".repeat(32);
    assert!(
        a.call(&format!("LR.RETIRE {stranger}"))
            .starts_with("-ERR ")
    );
    assert_eq!(a.call(&format!("LR.RETIRE {}", two.replica)), "OK");
}

#[test]
fn a_password_is_asked_for_by_the_daemon_and_given_by_the_tool() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("password");
    std::fs::write(&file, "open sesame\n").expect("written");
    let file = file.to_str().expect("a name");
    let path = directory.path().join("replica");
    let daemon = Daemon::start(&path, &["--resp-password-file", file]);
    let mut client = daemon.client();
    assert_eq!(client.call("GET a"), "-NOAUTH Authentication required.");
    assert!(
        client
            .call("HELLO 3")
            .starts_with("-NOAUTH HELLO must be called")
    );
    let wrong = "-WRONGPASS invalid username-password pair or user is disabled.";
    assert_eq!(client.call_words(&[b"AUTH", b"open"]), wrong);
    assert_eq!(
        client.call_words(&[b"AUTH", b"root", b"open sesame"]),
        wrong
    );
    assert_eq!(client.call_words(&[b"AUTH", b"open sesame"]), "OK");
    assert_eq!(client.call("GET a"), "nil");
    assert_eq!(client.call("RESET"), "RESET");
    assert_eq!(client.call("GET a"), "-NOAUTH Authentication required.");
    let hello: [&[u8]; 5] = [b"HELLO", b"3", b"AUTH", b"default", b"open sesame"];
    assert!(client.call_words(&hello).starts_with("%["));
    assert_eq!(client.call("SET a 1"), "OK");

    let refused = crate::command(&["get", "a", "--at", &daemon.resp])
        .output()
        .expect("it runs");
    assert_eq!(refused.status.code(), Some(1));
    let said = crate::stderr(&refused);
    assert!(
        said.contains("--password-file") && said.lines().count() == 1,
        "{said}"
    );
    let given = ["get", "a", "--at", &daemon.resp, "--password-file", file];
    assert_eq!(crate::stdout(&crate::run(&given)), "1\n");
    let (_, logged) = daemon.stop();
    assert!(!logged.contains("sesame"), "{logged}");
}
