//! Programs that follow changes, through restarts, with writes from elsewhere.

use std::path::Path;
use std::time::Duration;

use level_replicator::{Change, ChangeKind, Cursor, Db, Error, Options};

const PATIENCE: Duration = Duration::from_secs(20);

fn open(path: &Path) -> Db {
    let options = Options::new().listen("127.0.0.1:0").change_feed(true);
    options.open(path).expect("it opens")
}

fn told(change: &Change) -> (String, ChangeKind) {
    let key = String::from_utf8(change.key.to_vec()).expect("a text");
    (key, change.kind)
}

#[test]
fn changes_of_both_sides_are_told_with_their_origin() {
    let place = tempfile::tempdir().expect("a directory");
    let here = open(&place.path().join("here"));
    let address = here.status().listen.expect("it listens");
    let there = Options::new().peer(address.as_str());
    let there = there.open(place.path().join("there")).expect("it opens");
    let mut changes = here.changes(Cursor::START).expect("a feed");
    assert_eq!(changes.try_next().expect("it reads"), None);

    let ours = here.put("ours", "1").expect("a write");
    let theirs = there.put("theirs", "2").expect("a write");
    there.sync_now(PATIENCE).expect("it reaches");
    here.pause().expect("it pauses");
    here.put("both", "here").expect("a write");
    let concurrent = there.put("both", "there").expect("a write");
    here.delete("theirs").expect("a write");
    here.resume().expect("it goes on");
    there.sync_now(PATIENCE).expect("it reaches");

    let mut next = || {
        let next = changes.next_timeout(PATIENCE).expect("it reads");
        next.expect("a change")
    };
    // The first two are independent of each other.
    let mut first = [next(), next()];
    first.sort_by_key(|change| change.key.clone());
    let [one, two] = first;
    assert_eq!(
        (told(&one), one.dot),
        (("ours".to_owned(), ChangeKind::Put), Some(ours))
    );
    assert_eq!(
        (one.is_local, one.origin),
        (true, Some(here.status().replica))
    );
    assert_eq!(
        (told(&two), two.dot),
        (("theirs".to_owned(), ChangeKind::Put), Some(theirs))
    );
    assert_eq!(
        (two.is_local, two.origin),
        (false, Some(there.status().replica))
    );
    assert!(!one.is_concurrent && !two.is_concurrent);

    let three = next();
    assert_eq!(told(&three), ("both".to_owned(), ChangeKind::Put));
    assert!(three.is_local && !three.is_concurrent);
    assert_eq!(told(&next()), ("theirs".to_owned(), ChangeKind::Delete));
    let five = next();
    assert_eq!(five.dot, Some(concurrent));
    assert!(five.is_concurrent && !five.is_local);
    assert_eq!(changes.cursor(), here.cursor().expect("a feed"));
}

#[test]
fn a_program_goes_on_where_it_was_after_the_database_was_closed() {
    let place = tempfile::tempdir().expect("a directory");
    let mut cursor = Cursor::START;
    for round in 0..20 {
        let db = open(place.path());
        for number in 0..10 {
            db.put(format!("{round}"), format!("{number}"))
                .expect("a write");
        }
        let mut changes = db.changes(cursor).expect("a feed");
        // It deals with some, and leaves the others to the next round.
        for _ in 0..9 {
            changes.try_next().expect("it reads").expect("a change");
        }
        cursor = changes.cursor().to_string().parse().expect("a cursor");
        drop(changes);
        db.close().expect("it closes");
    }
    let db = open(place.path());
    let mut changes = db.changes(cursor).expect("a feed");
    let mut left = 0;
    while changes.try_next().expect("it reads").is_some() {
        left += 1;
    }
    assert_eq!(left, 20 * 10 - 20 * 9);
}

#[test]
fn who_waits_is_woken_by_a_write_and_by_the_end() {
    let place = tempfile::tempdir().expect("a directory");
    let db = open(place.path());
    let changes = db.changes(Cursor::START).expect("a feed");
    let reader = std::thread::spawn(move || {
        changes
            .map(|change| told(&change.expect("a change")))
            .collect::<Vec<_>>()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut changes = db.changes(Cursor::START).expect("a feed");
    let task = runtime.spawn(async move {
        let mut seen = Vec::new();
        loop {
            match changes.next_async().await {
                Ok(change) => seen.push(told(&change)),
                Err(Error::Closed) => return seen,
                Err(error) => panic!("{error}"),
            }
        }
    });
    let mut expected = Vec::new();
    for number in 0..500 {
        if number % 100 == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        db.put(format!("{number}"), "").expect("a write");
        expected.push((format!("{number}"), ChangeKind::Put));
    }
    // What is there when it closes may go unread: nobody closes before all are read.
    std::thread::sleep(Duration::from_millis(500));
    db.close().expect("it closes");
    assert_eq!(reader.join().expect("it reads"), expected);
    assert_eq!(runtime.block_on(task).expect("it reads"), expected);
}

#[test]
fn who_comes_too_late_reads_everything_at_one_moment_and_goes_on() {
    let place = tempfile::tempdir().expect("a directory");
    let options = Options::new().change_feed_of(1_000);
    let db = options.open(place.path()).expect("it opens");
    for number in 0..5_000 {
        db.put(format!("{:03}", number % 500), format!("{number}"))
            .expect("a write");
    }
    let Err(Error::FellBehind { cursor, oldest }) = db.changes(Cursor::START) else {
        panic!("it is not told that it fell behind");
    };
    assert_eq!(cursor, Cursor::START);
    let mut changes = db.changes(oldest).expect("the oldest");
    let mut count = 0;
    while changes.try_next().expect("it reads").is_some() {
        count += 1;
    }
    assert!((1_000..3_100).contains(&count), "{count}");

    let snapshot = db.snapshot();
    db.put("500", "new").expect("a write");
    assert_eq!(snapshot.iter().count(), 500);
    let mut changes = db
        .changes(snapshot.cursor().expect("a feed"))
        .expect("a feed");
    let change = changes.try_next().expect("it reads").expect("a change");
    assert_eq!(told(&change), ("500".to_owned(), ChangeKind::Put));
    assert_eq!(changes.try_next().expect("it reads"), None);
}

#[test]
fn without_a_feed_nothing_is_kept_and_that_is_told() {
    let place = tempfile::tempdir().expect("a directory");
    let db = Options::new().open(place.path()).expect("it opens");
    assert!(matches!(
        db.changes(Cursor::START),
        Err(Error::ChangesNotKept)
    ));
    assert!(matches!(db.cursor(), Err(Error::ChangesNotKept)));
    drop(db);
    let db = open(place.path());
    db.put("key", "value").expect("a write");
    let cursor = db.cursor().expect("a feed");
    drop(db);
    // Whoever opens it without a word of the feed does it no harm.
    let other = Options::new().open(place.path()).expect("it opens");
    other.put("key", "other").expect("a write");
    drop(other);
    let db = open(place.path());
    assert_eq!(
        db.changes(cursor)
            .expect("a feed")
            .try_next()
            .expect("it reads")
            .map(|it| told(&it)),
        Some(("key".to_owned(), ChangeKind::Put))
    );
    drop(db);
    drop(
        Options::new()
            .change_feed(false)
            .open(place.path())
            .expect("it opens"),
    );
    let db = open(place.path());
    let error = db
        .changes(cursor)
        .err()
        .expect("there is a gap")
        .to_string();
    assert!(error.contains("go on from"), "{error}");
}
