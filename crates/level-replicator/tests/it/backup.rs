//! A copy of a running replica is one moment of it, whole or not there, and a replica of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use level_replicator::{Db, Error, Options};
use level_replicator_core::clock::Known;

use crate::child::{Child, noise, tell};
use crate::common::*;

/// Enough for several commits of a copy.
const LARGE_VALUES: usize = 40;
const LARGE_VALUE_LEN: usize = 100_000;

fn fill(db: &Db) {
    let value = noise(LARGE_VALUE_LEN);
    for number in 0..LARGE_VALUES {
        db.put(format!("large/{number:03}"), &value)
            .expect("a write");
    }
}

fn open_copy(path: &Path) -> Db {
    alone().open(path).expect("a copy opens")
}

/// The names beside a directory that is to be made, its own included.
fn siblings(path: &Path) -> Vec<String> {
    let parent = path.parent().expect("a parent");
    let names = fs::read_dir(parent).expect("a directory").map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.to_string_lossy().into_owned()
    });
    names.collect()
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

#[test]
fn a_copy_holds_what_the_replica_held() {
    let place = directory();
    let db = open(alone());
    fill(&db);
    db.put("deleted", "value").expect("a write");
    db.delete("deleted").expect("a delete");

    let mut told = Vec::new();
    let path = place.path().join("new").join("copy");
    let report = db
        .backup_with(&path, |progress| told.push(progress))
        .expect("a backup");

    assert_eq!(report.keys, LARGE_VALUES as u64 + 1, "the deleted one too");
    assert!(report.bytes > (LARGE_VALUES * LARGE_VALUE_LEN) as u64);
    assert!(told.len() > 2, "it told only {told:?}");
    assert!(told.is_sorted_by_key(|progress| progress.bytes));
    let last = told.last().expect("it told something");
    assert_eq!((last.rows, last.bytes), (report.rows, report.bytes));
    assert_eq!(siblings(&path), ["copy"], "nothing is left beside it");

    let copy = open_copy(&path);
    assert_eq!(copy.status().replica, db.status().replica);
    assert_eq!(copy.status().clock, db.status().clock);
    assert!(
        contents(&copy) == contents(&db),
        "the copy holds other data"
    );
    assert_eq!(
        copy.digest().expect("a digest"),
        db.digest().expect("a digest")
    );
}

#[test]
fn a_backup_under_writes_is_one_moment_and_holds_up_nobody() {
    let place = directory();
    let db = open(alone());
    fill(&db);
    let acknowledged = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let path = place.path().join("copy");

    let before = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1u64.. {
                let mut batch = db.batch();
                for side in ["left", "right"] {
                    batch.put(format!("{side}/{:02}", number % 50), number.to_string());
                }
                batch.commit().expect("a batch");
                acknowledged.store(number, Ordering::SeqCst);
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        eventually("all pairs were written", || {
            acknowledged.load(Ordering::SeqCst) >= 100
        });
        let before = acknowledged.load(Ordering::SeqCst);
        let report = db.backup_with(&path, |_| {
            // Would wait for ever if the backup kept others from writing.
            let seen = acknowledged.load(Ordering::SeqCst);
            eventually("a write is acknowledged meanwhile", || {
                acknowledged.load(Ordering::SeqCst) > seen
            });
        });
        stop.store(true, Ordering::SeqCst);
        report.expect("a backup");
        before
    });

    let copy = open_copy(&path);
    let mut newest = 0;
    for pair in 0..50 {
        let left = text(&copy, &format!("left/{pair:02}")).expect("the left of a pair");
        let right = text(&copy, &format!("right/{pair:02}")).expect("the right of a pair");
        assert_eq!(left, right, "half a batch is in the copy");
        newest = newest.max(left.parse().expect("a number"));
    }
    assert!(
        newest >= before,
        "{before} was acknowledged, {newest} copied"
    );
    let writer = db.status().writer.expect("it has written");
    let known = copy.status().clock.get(writer).map_or(0, Known::base);
    let written = LARGE_VALUES as u64 + 2 * newest;
    assert_eq!(known, written, "the tables are of different moments");
    // Of the fifty last batches none is missing.
    for number in newest - 49..=newest {
        let key = format!("left/{:02}", number % 50);
        assert_eq!(text(&copy, &key), Some(number.to_string()));
    }
}

#[test]
fn a_directory_that_holds_something_is_refused_and_left_alone() {
    let place = directory();
    let db = open(alone());
    db.put("key", "value").expect("a write");
    let taken = place.path().join("taken");
    fs::create_dir(&taken).expect("a directory");
    fs::write(taken.join("thesis.tex"), "do not lose this").expect("a write");
    let file = place.path().join("file");
    fs::write(&file, "text").expect("a write");

    for (path, problem) in [(&taken, "not empty"), (&file, "not a directory")] {
        let error = db.backup(path).expect_err("it is refused");
        assert!(matches!(error, Error::BackupTarget { .. }), "{error}");
        let text = error.to_string();
        for words in [text_of(path), problem, "choose a directory"] {
            assert!(text.contains(words), "'{text}' does not say '{words}'");
        }
    }
    assert_eq!(siblings(&taken).len(), 2, "nothing was put there");
    assert_eq!(siblings(&taken.join("thesis.tex")), ["thesis.tex"]);
    assert_eq!(fs::read_to_string(&file).expect("a read"), "text");

    let own = db.backup(db.directory.path()).expect_err("it is refused");
    assert!(matches!(own, Error::BackupTarget { .. }), "{own}");
}

#[test]
fn an_empty_directory_takes_a_backup() {
    let place = directory();
    let db = open(alone());
    db.put("key", "value").expect("a write");
    let path = place.path().join("empty");
    fs::create_dir(&path).expect("a directory");
    db.backup(&path).expect("a backup");
    assert_eq!(text(&open_copy(&path), "key").as_deref(), Some("value"));
}

#[test]
fn a_backup_that_is_killed_leaves_no_directory_with_its_name_and_can_be_made_again() {
    let place = directory();
    let path = place.path().join("copy");
    let Node { db, directory } = open(alone());
    fill(&db);
    db.close().expect("it closes");
    drop(db);

    let arguments = [text_of(directory.path()), text_of(&path), "wait"];
    let mut child = Child::start("keeper", &arguments);
    child.expect("copying");
    child.kill();
    assert_eq!(siblings(&path), ["copy.unfinished-backup"]);

    let db = alone().open(directory.path()).expect("it opens again");
    db.backup(&path).expect("a backup");
    assert_eq!(siblings(&path), ["copy"], "the remains are gone");
    assert!(contents(&open_copy(&path)) == contents(&db));
}

#[test]
fn a_backup_that_runs_is_not_disturbed_by_another_into_the_same_directory() {
    let place = directory();
    let path = place.path().join("copy");
    let db = open(alone());
    fill(&db);
    db.backup_with(&path, |_| {
        let error = db.backup(&path).expect_err("it is refused");
        assert!(error.to_string().contains("another backup"), "{error}");
    })
    .expect("a backup");
    assert!(contents(&open_copy(&path)) == contents(&db));
}

#[test]
fn a_backup_that_fails_leaves_nothing_and_says_that_the_database_is_not_harmed() {
    let place = directory();
    let path = place.path().join("copy");
    let Node { db, directory } = open(alone());
    fill(&db);
    db.close().expect("it closes");
    drop(db);

    let arguments = [text_of(directory.path()), text_of(&path), "go on"];
    let mut child = Child::start_limited(4_000, "keeper", &arguments);
    let said = loop {
        let line = child.hear().expect("the child says what came of it");
        if line != "copying" {
            break line;
        }
    };
    for words in ["failed", text_of(&path), "not harmed"] {
        assert!(said.contains(words), "'{said}' does not say '{words}'");
    }
    child.expect("written");
    assert!(siblings(&path).is_empty(), "{:?}", siblings(&path));
}

#[test]
fn a_database_that_is_closed_ends_its_backup() {
    let place = directory();
    let path = place.path().join("copy");
    let db = open(alone());
    fill(&db);
    let error = db
        .backup_with(&path, |_| {
            // Only the first call closes it.
            let _ = db.close();
        })
        .expect_err("a closed database is not copied");
    assert!(matches!(error, Error::Closed), "{error}");
    assert!(siblings(&path).is_empty(), "{:?}", siblings(&path));
    assert!(matches!(db.backup(&path), Err(Error::Closed)));
}

#[test]
fn a_copy_and_its_original_both_write_and_agree() {
    let place = directory();
    let path: PathBuf = place.path().join("copy");
    let db = open(listening());
    db.put("before", "value").expect("a write");
    db.backup(&path).expect("a backup");
    db.put("after", "on the original").expect("a write");
    db.put("both", "original").expect("a write");

    let copy = listening().open(&path).expect("a copy opens");
    assert_eq!(text(&copy, "after"), None, "it was written after the copy");
    copy.put("copied", "on the copy").expect("a write");
    copy.put("both", "copy").expect("a write");

    // Both know a third, and each other.
    let third = open(listening().peer(db.address()).peer(address(&copy)));
    copy.add_peer(db.address()).expect("an address");
    agree(&[&db, &copy, &third]);
    assert_eq!(text(&db, "copied").as_deref(), Some("on the copy"));
    assert_eq!(text(&copy, "after").as_deref(), Some("on the original"));
    assert_eq!(sibling_texts(&third, "both"), ["original", "copy"]);
}

/// A child that copies a database, and at the first news of it waits for its end if it is told to.
pub(crate) fn keep(arguments: &[&str]) {
    let [path, target, then] = arguments else {
        panic!("a keeper needs a directory, another, and what to do then");
    };
    let db = Options::new()
        .cluster(cluster())
        .open(path)
        .expect("the child's directory opens");
    let outcome = db.backup_with(target, |_| {
        tell("copying");
        if *then == "wait" {
            // Nothing is ever said to it.
            let _ = std::io::stdin().read_line(&mut String::new());
        }
    });
    match outcome {
        Ok(report) => tell(format_args!("copied {report:?}")),
        Err(error) => tell(format_args!("failed {error}")),
    }
    match db.put("small", "value") {
        Ok(_) => tell("written"),
        Err(error) => tell(format_args!("not written: {error}")),
    }
}
