//! Values that expire: hidden by every reader's clock, deleted by their writer's replica.

use std::time::{Duration, SystemTime};

use level_replicator::{ChangeKind, Db, Event, PutOptions};

use crate::common::{PATIENCE, alone, contents, eventually, listening, open, text};

/// Long enough that it has not passed when it is looked at, short enough to be waited for.
const SOON: Duration = Duration::from_millis(300);

fn soon() -> PutOptions {
    PutOptions::new().expires_in(SOON)
}

fn is_deleted(db: &Db) -> bool {
    db.status().keys == Some(0)
}

#[test]
fn a_value_is_hidden_when_its_time_has_come_and_then_deleted() {
    let db = open(alone());
    let mut events = db.events();
    db.put_with("session", "Ada", &soon()).expect("a write");
    let entry = db.entry("session").expect("a read").expect("it lives");
    let expires_at = entry.expires_at.expect("it expires");
    let left = expires_at
        .duration_since(SystemTime::now())
        .expect("not yet");
    assert!(left <= SOON);
    assert_eq!(&entry.value[..], b"Ada");
    let before = db.snapshot();

    eventually("it is hidden", || text(&db, "session").is_none());
    assert!(contents(&db).is_empty());
    assert!(db.siblings("session").expect("a read").is_empty());
    assert_eq!(db.entry("session").expect("a read"), None);
    eventually("it is deleted", || is_deleted(&db));
    // A view of an earlier moment shows what was there then.
    let seen = before.get("session").expect("a read");
    assert_eq!(seen.as_deref(), Some(&b"Ada"[..]));
    let expired = std::iter::from_fn(|| events.recv_timeout(PATIENCE));
    let mut expired = expired.filter_map(|event| match event {
        Event::Change { key, kind, .. } => Some((key, kind)),
        _ => None,
    });
    assert_eq!(expired.next(), Some(("session".into(), ChangeKind::Put)));
    assert_eq!(
        expired.next(),
        Some(("session".into(), ChangeKind::Expired))
    );
}

#[test]
fn a_put_a_refresh_and_a_past_moment_do_what_they_say() {
    let db = open(alone());
    db.put_with("stays", "1", &soon()).expect("a write");
    db.put("stays", "2").expect("a write");
    let past = PutOptions::new().expires_at(SystemTime::UNIX_EPOCH);
    db.put_with("past", "1", &past).expect("a write");
    assert_eq!(text(&db, "past"), None);
    let mut batch = db.batch();
    batch.put_with("a", "1", &soon()).put("b", "1");
    batch.commit().expect("a write");
    db.transact(|t| {
        t.put_with("c", "1", &soon());
        assert!(
            t.entry("c")?
                .is_some_and(|entry| entry.expires_at.is_some())
        );
        t.put_with("d", "1", &past);
        assert_eq!(t.get("d")?, None);
        Ok(())
    })
    .expect("a transaction");
    eventually("what expires is gone", || db.status().keys == Some(2));
    assert_eq!(text(&db, "stays").as_deref(), Some("2"));
    assert_eq!(text(&db, "b").as_deref(), Some("1"));
}

#[test]
fn peers_hide_it_by_themselves_and_learn_of_the_delete() {
    let writer = open(listening());
    let reader = open(listening().peer(writer.address()));
    writer.put_with("session", "Ada", &soon()).expect("a write");
    reader.sync_now(PATIENCE).expect("the writer is there");
    assert!(
        reader
            .entry("session")
            .expect("a read")
            .is_some_and(|entry| entry.expires_at.is_some())
    );

    // Cut off from its writer it is hidden, and stays stored.
    writer.pause().expect("conversations end");
    eventually("it is hidden", || text(&reader, "session").is_none());
    eventually("it is deleted there", || is_deleted(&writer));
    assert_eq!(reader.status().keys, Some(1));
    writer.resume().expect("it talks again");
    eventually("it is deleted here", || is_deleted(&reader));
    eventually("both are equal", || {
        writer.digest().ok() == reader.digest().ok()
    });
}

#[test]
fn a_refresh_that_the_delete_had_not_seen_survives_everywhere() {
    let first = open(listening());
    let second = open(listening().peer(first.address()));
    first.put_with("lease", "first", &soon()).expect("a write");
    second.sync_now(PATIENCE).expect("the first is there");
    second.pause().expect("conversations end");
    second.put("lease", "second").expect("a write");
    eventually("it is deleted", || is_deleted(&first));
    second.resume().expect("it talks again");
    eventually("the refresh is there", || text(&first, "lease").is_some());
    assert_eq!(text(&first, "lease").as_deref(), Some("second"));
    assert_eq!(text(&second, "lease").as_deref(), Some("second"));
}

#[test]
fn what_expired_while_the_process_was_gone_is_deleted_at_the_next_open() {
    let db = open(alone());
    for number in 0..1_000 {
        db.put_with(format!("k{number}"), "1", &soon())
            .expect("a write");
    }
    let db = db.reopen(alone());
    eventually("all is deleted", || is_deleted(&db));
    assert!(contents(&db).is_empty());
}
