//! Secrets, mistakes, and what the tool says to them.

use crate::{run, stderr, stdout};

#[test]
fn a_secret_is_64_hex_digits_and_a_newline_and_never_the_same() {
    let secrets = [stdout(&run(&["secret"])), stdout(&run(&["secret"]))];
    for secret in &secrets {
        let digits = secret.strip_suffix('\n').expect("it ends with a newline");
        assert_eq!(digits.len(), 64);
        assert!(
            digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{digits}"
        );
    }
    assert_ne!(secrets[0], secrets[1]);
}

#[test]
fn wrong_usage_ends_with_2_and_a_failure_with_1_and_one_line() {
    for wrong in [
        &["demo", "--replicas", "1"][..],
        &["demo", "--replicas", "9"],
        &["demo", "--replicas", "many"],
        &["demo", "--unknown"],
        &["no-such-command"],
        &[],
    ] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }

    let output = run(&["demo", "--keys", "/no/such/file"]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("/no/such/file"), "{said}");
}

#[test]
fn a_demo_replica_without_a_secret_says_who_starts_it() {
    let output = run(&["demo-replica", "--path", "unused", "--cluster", "unused"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("started by 'demo'"));
}
