//! What can go wrong around a database: the error says what, where, and what to do, and nothing is
//! half done.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use level_replicator::{Db, Durability, Error, Options, Secret};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Snapshot, Storage, StorageError, Table};

use crate::child::Child;
use crate::common::*;

#[track_caller]
fn says(error: &Error, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "'{text}' does not say '{word}'");
    }
}

fn name(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

#[track_caller]
fn refusal(options: Options, path: &Path) -> Error {
    match options.open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

#[test]
fn a_directory_is_opened_once_in_this_process() {
    let db = open(alone());
    db.put("key", "value").expect("a write");
    let error = refusal(alone(), db.directory.path());
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    says(&error, &[name(db.directory.path()), "in use", "close"]);

    assert_eq!(
        text(&db, "key").as_deref(),
        Some("value"),
        "the first is not harmed"
    );
    let db = db.reopen(alone());
    assert_eq!(text(&db, "key").as_deref(), Some("value"));
}

#[test]
fn a_directory_is_opened_by_one_process() {
    let db = open(alone());
    let path = name(db.directory.path()).to_owned();
    let refused = Child::start("opener", &[&path]).expect("refused");
    assert!(
        refused.contains("in use") && refused.contains(&path),
        "{refused}"
    );

    db.close().expect("it closes");
    let Node { db, directory } = db;
    drop(db);
    Child::start("opener", &[&path]).expect("opened");

    let mut child = Child::start("replica", &[&path, "default", ""]);
    child.expect("ready");
    assert!(matches!(
        refusal(alone(), directory.path()),
        Error::Locked { .. }
    ));
    child.kill();
    alone()
        .open(directory.path())
        .expect("a lock ends with its process, not with a file");
}

#[test]
fn a_newer_format_is_refused_with_the_version_that_wrote_it() {
    let Node { db, directory } = open(alone());
    drop(db);
    fs::write(
        directory.path().join("FORMAT"),
        "level-replicator 7\n3.1.4\n",
    )
    .expect("a write");
    let error = refusal(alone(), directory.path());
    assert!(
        matches!(
            error,
            Error::NewerFormat {
                found: 7,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
    says(
        &error,
        &[name(directory.path()), "format 7", "3.1.4", "up to 1"],
    );
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let directory = directory();
    fs::write(directory.path().join("thesis.tex"), "do not lose this").expect("a write");
    let error = refusal(alone(), directory.path());
    assert!(matches!(error, Error::NotADatabase { .. }), "{error}");
    says(
        &error,
        &[
            name(directory.path()),
            "thesis.tex",
            "choose another directory",
        ],
    );
    let left: Vec<_> = fs::read_dir(directory.path())
        .expect("a directory")
        .collect();
    assert_eq!(left.len(), 1, "nothing was put there");
}

#[test]
fn a_file_in_the_place_of_the_directory_is_refused() {
    let directory = directory();
    let file = directory.path().join("file");
    fs::write(&file, "text").expect("a write");
    let error = refusal(alone(), &file);
    assert!(matches!(error, Error::NotADatabase { .. }), "{error}");
    says(&error, &[name(&file), "not a directory", "choose another"]);
    assert_eq!(fs::read_to_string(&file).expect("a read"), "text");
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_cannot_be_written_is_refused_by_name() {
    // Not even root can make a directory there.
    let error = refusal(alone(), Path::new("/proc/level-replicator/db"));
    assert!(matches!(error, Error::Io { .. }), "{error}");
    says(
        &error,
        &["cannot create the directory", "/proc/level-replicator/db"],
    );
}

#[test]
fn a_lost_format_file_is_told_and_the_data_left_alone() {
    let db = open(alone());
    db.put("key", "value").expect("a write");
    let Node { db, directory } = db;
    drop(db);
    let format = directory.path().join("FORMAT");
    let kept = fs::read(&format).expect("a read");
    fs::remove_file(&format).expect("a removal");
    let error = refusal(alone(), directory.path());
    says(&error, &[name(directory.path()), "FORMAT", "backup"]);

    fs::write(&format, kept).expect("a write");
    let db = alone()
        .open(directory.path())
        .expect("the data was left alone");
    assert_eq!(text(&db, "key").as_deref(), Some("value"));
}

#[test]
fn on_a_full_disk_a_write_fails_whole_and_what_was_acknowledged_survives() {
    let Node { db, directory } = open(alone());
    drop(db);
    let path = name(directory.path());
    // 4 MiB where the shell counts blocks of 512 bytes, 8 where it counts 1,024.
    let mut child = Child::start_limited(8_192, "filler", &[path]);
    child.expect("ready");
    let mut acknowledged = Vec::new();
    let failed = loop {
        let line = child.hear().expect("the child goes on");
        match line.strip_prefix("acknowledged ") {
            Some(number) => acknowledged.push(number.to_owned()),
            None => break line,
        }
    };
    assert!(failed.starts_with("failed "), "{failed}");
    for word in [
        "storage",
        "File too large",
        "nothing of this call shows",
        "full",
        "reopen",
    ] {
        assert!(failed.contains(word), "'{failed}' does not say '{word}'");
    }
    assert_eq!(child.expect("readable"), "true");
    let again = child.expect("again");
    assert!(
        again.contains("reopen"),
        "a write after a failed one says what to do: {again}"
    );
    assert!(acknowledged.len() > 10, "the disk was full at once");
    drop(child);

    let db = alone()
        .open(directory.path())
        .expect("with room again it opens");
    for number in &acknowledged {
        for side in ["left", "right"] {
            let value = db.get(format!("{side}/{number}")).expect("a read");
            assert_eq!(
                value.map(|value| value.len()),
                Some(40_000),
                "{side}/{number} is lost"
            );
        }
    }
    let found = db.prefix("left/").count();
    assert_eq!(found, db.prefix("right/").count(), "half a batch is there");
    // The engine may have completed the batch that failed when it was dropped, but no other.
    assert!((acknowledged.len()..=acknowledged.len() + 1).contains(&found));
    db.put("later", "value").expect("it writes again");
}

#[test]
fn a_port_in_use_is_told_and_the_directory_stays_free() {
    let db = open(listening());
    let taken = db.address();
    let directory = directory();
    let error = refusal(alone().listen(&taken), directory.path());
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    says(&error, &["cannot listen", &taken, "in use", "another port"]);
    listening()
        .open(directory.path())
        .expect("the directory was let go");
}

#[test]
fn options_that_make_no_sense_are_refused_with_what_would() {
    let place = directory();
    let path = place.path().join("db");
    let zero = Duration::ZERO;
    for (options, words) in [
        (
            alone().listen("nonsense"),
            &["listen", "'nonsense'", "host:port"][..],
        ),
        (
            alone().peer("127.0.0.1"),
            &["peer", "'127.0.0.1'", "host:port"],
        ),
        (alone().peer("127.0.0.1:x"), &["peer", "host:port"]),
        (alone().advertise(""), &["advertise", "host:port"]),
        (
            alone().listen("0.0.0.0:0"),
            &["listen", "0.0.0.0:0", "secret", "127.0.0.1"],
        ),
        (alone().listen("[::]:0"), &["listen", "secret"]),
        (alone().listen("192.0.2.1:9000"), &["listen", "secret"]),
        (
            alone().multicast_group("10.0.0.1:7"),
            &["multicast_group", "224.0.0.0"],
        ),
        (alone().cluster(""), &["cluster", "1 to 255"]),
        (
            alone().cluster("x".repeat(256)),
            &["cluster", "256", "1 to 255"],
        ),
        (alone().min_interval(zero), &["min_interval", "more than 0"]),
        (
            alone().idle_interval(zero),
            &["min_interval", "idle_interval"],
        ),
        (alone().fanout(0), &["fanout", "at least 1"]),
        (
            alone().value_bytes_max(1 << 40),
            &["value_bytes_max", "67108864"],
        ),
    ] {
        let error = refusal(options, &path);
        assert!(matches!(error, Error::InvalidOption { .. }), "{error}");
        says(&error, words);
        assert!(
            !path.exists(),
            "nothing is made when an option is wrong: {error}"
        );
    }
    let first = refusal(alone().listen("a").peer("b").cluster(""), &path);
    says(&first, &["listen", "'a'"]);
}

#[test]
fn with_a_secret_every_interface_may_be_listened_on() {
    let secret = Secret::generate().expect("a secret");
    let db = open(alone().listen("0.0.0.0:0").secret(secret.clone()));
    db.put("key", "value").expect("a write");
    let port = db.status().listen.expect("it listens").port();
    let peer = open(alone().peer(format!("127.0.0.1:{port}")).secret(secret));
    agree(&[&db, &peer]);
}

#[test]
fn a_secret_file_is_refused_by_name_and_its_text_never_shows() {
    let place = directory();
    let path = place.path().join("secret");
    let error = Secret::from_file(&path).expect_err("there is none");
    says(&error, &["read the secret", name(&path)]);
    fs::write(&path, "hunter2\n").expect("a write");
    let error = Secret::from_file(&path).expect_err("it is too short");
    says(&error, &[name(&path), "64 hex digits"]);
    assert!(!error.to_string().contains("hunter2"));
    let good = Secret::generate().expect("a secret").to_hex();
    fs::write(&path, format!("{good}\n")).expect("a write");
    assert_eq!(Secret::from_file(&path).expect("a secret").to_hex(), good);
}

#[test]
fn limits_are_told_in_plain_words() {
    let db = open(alone());
    let error = db
        .put(vec![1; 70_000], "value")
        .expect_err("the key is too long");
    says(&error, &["key of 70000 bytes exceeds the limit of 65000"]);
    let error = db
        .put("key", vec![1; 9 << 20])
        .expect_err("the value is too long");
    says(
        &error,
        &["value of 9437184 bytes exceeds the limit of 8388608"],
    );
}

/// Tables in memory whose commits and syncs fail on demand.
struct Failing {
    tables: MemoryStorage,
    commits_fail: AtomicBool,
    syncs_fail: AtomicBool,
    syncs: AtomicU64,
}

impl Failing {
    fn new() -> Arc<Failing> {
        Arc::new(Failing {
            tables: MemoryStorage::new(),
            commits_fail: AtomicBool::new(false),
            syncs_fail: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
        })
    }

    fn fail(&self, fails: bool) {
        self.commits_fail.store(fails, Ordering::Release);
    }
}

impl Deref for Failing {
    type Target = MemoryStorage;

    fn deref(&self) -> &MemoryStorage {
        &self.tables
    }
}

impl Storage for Failing {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.tables.get(table, key)
    }

    fn snapshot(&self) -> Arc<dyn Snapshot> {
        self.tables.snapshot()
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        if self.commits_fail.load(Ordering::Acquire) {
            return Err(StorageError::new("commit a batch", "the disk is on fire"));
        }
        self.tables.commit(batch)
    }

    fn sync(&self) -> Result<(), StorageError> {
        if self.syncs_fail.load(Ordering::Acquire) {
            return Err(StorageError::new("sync", "the disk is on fire"));
        }
        self.syncs.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

fn on(storage: &Arc<Failing>, options: Options) -> Db {
    options
        .open_with(Arc::clone(storage) as Arc<dyn Storage>)
        .expect("it opens")
}

fn rows(storage: &MemoryStorage) -> Vec<(Table, Bytes, Bytes)> {
    let all = std::ops::Bound::Unbounded;
    let snapshot = storage.snapshot();
    let rows = Table::ALL.into_iter().flat_map(|table| {
        let rows = snapshot.range(table, all, all);
        rows.map(move |row| row.map(|(key, value)| (table, key, value)))
    });
    rows.collect::<Result<_, _>>()
        .expect("tables in memory are read")
}

#[test]
fn a_write_that_the_storage_refuses_is_not_half_done_anywhere() {
    let storage = Failing::new();
    let db = on(&storage, listening());
    storage.fail(true);
    let error = db.put("key", "value").expect_err("the storage fails");
    assert!(matches!(error, Error::Storage(_)), "{error}");
    says(
        &error,
        &["commit a batch", "on fire", "nothing of this call shows"],
    );
    assert_eq!(
        db.status().writer,
        None,
        "the writer of a failed first write is not minted"
    );

    storage.fail(false);
    let dot = db.put("key", "value").expect("it works again");
    assert_eq!(dot.seq, 1);
    let seen = |db: &Db| {
        (
            contents(db),
            db.digest().ok(),
            db.status().clock,
            db.status().keys,
        )
    };
    let (before, rows_before) = (seen(&db), rows(&storage));

    storage.fail(true);
    assert!(db.put("key", "other").is_err());
    assert!(db.put("new", "value").is_err());
    assert!(db.delete("key").is_err());
    assert!(db.resolve("key", "other").is_err());
    assert!(db.update("key", |_| Some("other")).is_err());
    let mut batch = db.batch();
    batch.put("one", "value").put("two", "value").delete("key");
    assert!(batch.commit().is_err());
    assert!(seen(&db) == before, "something is left in memory");
    assert!(
        rows(&storage) == rows_before,
        "something is left in the tables"
    );
    assert_eq!(text(&db, "key").as_deref(), Some("value"), "reads go on");

    storage.fail(false);
    assert_eq!(db.put("new", "value").expect("it works again").seq, 2);
    let peer = open_in_memory(alone().peer(address(&db)), &MemoryStorage::new());
    agree(&[&db, &peer]);
}

#[test]
fn what_a_peer_sends_is_not_half_taken_in_when_the_storage_fails() {
    let storage = Failing::new();
    let db = on(&storage, listening());
    let mut events = db.events();
    db.put("own", "value").expect("a write");
    let before = (
        db.digest().expect("a digest"),
        db.status().clock,
        rows(&storage),
    );
    storage.fail(true);

    let peer = open(listening().first_sync_timeout(Duration::ZERO));
    for number in 0..100 {
        peer.put(number.to_string(), "value").expect("a write");
    }
    peer.add_peer(address(&db)).expect("an address");
    let told = wait_for_error(&mut events, &["own storage"]);
    assert!(told.contains("on fire"), "{told}");
    assert!(
        (
            db.digest().expect("a digest"),
            db.status().clock,
            rows(&storage)
        ) == before
    );
    assert_eq!(db.iter().count(), 1);

    storage.fail(false);
    agree(&[&db, &peer]);
    assert_eq!(db.iter().count(), 101);
    db.put("later", "value").expect("it works again");
    agree(&[&db, &peer]);
}

#[test]
fn a_durable_write_that_cannot_be_synced_says_that_it_is_in_place() {
    let storage = Failing::new();
    let db = on(&storage, alone().durability(Durability::Sync));
    storage.syncs_fail.store(true, Ordering::Release);
    let error = db.put("key", "value").expect_err("the sync fails");
    assert!(matches!(error, Error::NotDurable(_)), "{error}");
    says(&error, &["in place", "durable", "on fire"]);
    assert_eq!(text(&db, "key").as_deref(), Some("value"));

    storage.syncs_fail.store(false, Ordering::Release);
    db.put("key", "other").expect("it works again");
    assert!(storage.syncs.load(Ordering::Acquire) > 0);
}

#[test]
fn buffered_writes_are_synced_again_when_the_storage_recovers() {
    let storage = Failing::new();
    let db = on(&storage, alone());
    let mut events = db.events();
    storage.syncs_fail.store(true, Ordering::Release);
    db.put("key", "value").expect("a buffered write");
    wait_for_error(&mut events, &["own storage", "on fire"]);

    storage.syncs_fail.store(false, Ordering::Release);
    let before = storage.syncs.load(Ordering::Acquire);
    db.put("key", "other").expect("a buffered write");
    eventually("what was written is synced", || {
        storage.syncs.load(Ordering::Acquire) > before
    });
}

#[test]
fn a_close_that_cannot_write_says_so_and_the_next_open_recovers() {
    let storage = Failing::new();
    let db = on(&storage, alone());
    db.put("key", "value").expect("a write");
    let digest = db.digest().expect("a digest");
    storage.fail(true);
    assert!(matches!(db.close(), Err(Error::Storage(_))));
    drop(db);

    storage.fail(false);
    let db = on(&storage, alone());
    assert_eq!(text(&db, "key").as_deref(), Some("value"));
    assert_eq!(db.digest().expect("a digest"), digest);
    assert_eq!(db.status().clock.len(), 1);
}
