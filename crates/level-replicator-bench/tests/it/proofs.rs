//! What the bench proves at full size holds for a few keys too. It ends with an error, and says what is
//! wrong, if something is.

use std::process::Command;

/// Runs a proof of the bench, which has to find nothing wrong.
#[track_caller]
fn prove(arguments: &str) {
    let bench = Command::new(env!("CARGO_BIN_EXE_level-replicator-bench"))
        .args(arguments.split(' '))
        .output();
    let bench = bench.expect("the bench runs");
    let (said, complained) = (
        String::from_utf8_lossy(&bench.stdout),
        String::from_utf8_lossy(&bench.stderr),
    );
    assert!(bench.status.success(), "{said}\n{complained}");
    assert!(said.contains("holds"), "it proved nothing: {said}");
}

#[test]
fn what_was_deleted_and_reclaimed_stays_so_when_a_replica_with_all_values_comes_back() {
    prove("deletes --keys 3000");
}

#[test]
fn an_old_copy_opened_twice_beside_its_original_and_in_its_place_loses_nothing() {
    prove("copies --keys 6000");
}

#[test]
fn an_empty_replica_that_is_killed_again_and_again_joins_in_the_end() {
    prove("joins --keys 20000 --life 60 --growth 10");
}
