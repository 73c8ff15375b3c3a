//! Processes that are killed while they write: what was acknowledged is still there.

use std::collections::BTreeSet;

use level_replicator::Db;

use crate::child::Child;
use crate::common::*;

/// The keys that a child was heard to have written.
#[derive(Default)]
struct Acknowledged(BTreeSet<String>);

impl Acknowledged {
    fn note(&mut self, line: &str) {
        let key = line
            .strip_prefix("acknowledged ")
            .expect("a writer says nothing else");
        self.0.insert(key.to_owned());
    }

    /// Listens until a child has written some keys, kills it, and notes what it had still said.
    fn note_until_killed(&mut self, mut child: Child, count: usize) {
        for _ in 0..count {
            let line = child.hear().expect("the writer goes on");
            self.note(&line);
        }
        // The last line may have been cut by the kill.
        let rest = child.kill();
        let whole = rest
            .iter()
            .filter(|line| line.ends_with(|last: char| last.is_ascii_digit()));
        whole
            .filter(|line| line.len() >= "acknowledged x/000000".len())
            .for_each(|line| self.note(line));
    }

    #[track_caller]
    fn are_all_in(&self, db: &Db) {
        for key in &self.0 {
            let value = text(db, key);
            let value = value.unwrap_or_else(|| panic!("{key} was acknowledged and is lost"));
            let number: u64 = key[2..].parse().expect("a number");
            let expected = match number % 10 {
                3 => format!("second value of {key}"),
                _ => format!("value of {key}"),
            };
            assert_eq!(value, expected);
        }
    }
}

fn start_writer(directory: &tempfile::TempDir, peer: &str, prefix: &str) -> (Child, String) {
    let path = directory.path().to_str().expect("a path of text");
    let mut child = Child::start("writer", &[path, &cluster(), peer, prefix]);
    let address = child.expect("ready");
    (child, address)
}

#[test]
fn no_acknowledged_write_is_lost_when_the_process_is_killed() {
    let directory = directory();
    let mut acknowledged = Acknowledged::default();
    for (round, prefix) in ["a/", "b/", "c/", "d/"].into_iter().enumerate() {
        let (child, _) = start_writer(&directory, "", prefix);
        acknowledged.note_until_killed(child, 100 * (round + 1));

        let db = alone()
            .open(directory.path())
            .expect("a killed database opens");
        acknowledged.are_all_in(&db);
        let unacknowledged = db.iter().count() - acknowledged.0.len();
        assert!(
            unacknowledged <= round + 1,
            "at most one write of each process was on its way"
        );
    }
}

#[test]
fn the_digest_is_known_again_after_a_kill_and_right() {
    let directory = directory();
    let (child, _) = start_writer(&directory, "", "a/");
    Acknowledged::default().note_until_killed(child, 300);

    let db = listening()
        .open(directory.path())
        .expect("a killed database opens");
    let asked = db
        .digest()
        .expect("a digest, though nothing is counted yet");
    eventually("the scan has ended", || db.status().digest.is_some());
    let status = db.status();
    assert_eq!(status.digest, Some(asked));
    assert_eq!(status.keys, Some(db.iter().count() as u64));
    assert_eq!(
        status.clock.len(),
        1,
        "the killed process is known as a writer"
    );

    let peer = open(alone().peer(address(&db)));
    agree(&[&db, &peer]);
    assert_eq!(
        peer.digest().expect("a digest"),
        asked,
        "a replica that got it all counts the same"
    );

    db.put("later", "value").expect("a write");
    agree(&[&db, &peer]);
    drop(db);
    let db = alone().open(directory.path()).expect("it opens");
    assert_eq!(
        db.status().digest,
        peer.status().digest,
        "after a clean close it is known at once"
    );
}

#[test]
fn a_write_while_the_digest_is_counted_is_counted_once() {
    let directory = directory();
    let (child, _) = start_writer(&directory, "", "a/");
    Acknowledged::default().note_until_killed(child, 300);

    let db = listening()
        .open(directory.path())
        .expect("a killed database opens");
    for number in 0..50 {
        db.put(format!("b/{number}"), "value").expect("a write");
        db.delete(format!("a/{number:06}")).expect("a delete");
    }
    eventually("the scan has ended", || db.status().digest.is_some());
    let peer = open(alone().peer(address(&db)));
    agree(&[&db, &peer]);
    assert_eq!(db.status().keys, peer.status().keys);
}

#[test]
fn replicas_killed_while_they_talk_end_equal_and_whole() {
    let parent = open(listening());
    let directory = directory();
    let mut acknowledged = Acknowledged::default();
    for (round, prefix) in ["a/", "b/", "c/"].into_iter().enumerate() {
        let (child, _) = start_writer(&directory, &parent.address(), prefix);
        let received = parent.status().traffic.received_records;
        for number in 0..200 {
            parent
                .put(format!("p/{round}/{number}"), "of the parent")
                .expect("a write");
        }
        eventually("they talk", || {
            parent.status().traffic.received_records > received + 20
        });
        acknowledged.note_until_killed(child, 150);
    }

    let killed = listening().peer(parent.address()).open(directory.path());
    let killed = killed.expect("a killed database opens");
    acknowledged.are_all_in(&killed);
    agree(&[&parent, &killed]);
    acknowledged.are_all_in(&parent);
    assert_eq!(parent.prefix("p/").count(), 600);
    assert_eq!(killed.prefix("p/").count(), 600);
    assert_eq!(killed.status().conflicts, Some(0));
}

#[test]
fn a_replica_killed_between_commands_answers_the_same_afterwards() {
    let directory = directory();
    let path = directory.path().to_str().expect("a path of text");
    let parent = open(listening());
    parent.put("of parent", "value").expect("a write");
    let mut child = Child::start("replica", &[path, &cluster(), &parent.address()]);
    child.expect("ready");
    child.say("put of-child value");
    child.expect("done");
    child.say("sync");
    child.expect("done");
    child.say("put unsynced value");
    child.expect("done");
    child.kill();

    let mut child = Child::start("replica", &[path, &cluster(), &parent.address()]);
    child.expect("ready");
    for key in ["of-child", "unsynced"] {
        child.say(&format!("get {key}"));
        assert_eq!(child.expect("value"), "value");
        eventually("the parent has it", || text(&parent, key).is_some());
    }
}
