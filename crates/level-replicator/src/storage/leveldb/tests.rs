#![allow(clippy::unwrap_used)]

use std::fs;

use level_replicator_core::storage::conformance::{self, Engine, Job};
use tempfile::TempDir;

use super::*;

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(path: &Path) -> LevelDbStorage {
    LevelDbStorage::open(path, &LevelDbOptions::default()).unwrap()
}

fn refusal(path: &Path) -> String {
    match LevelDbStorage::open(path, &LevelDbOptions::default()) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    }
}

fn put(storage: &LevelDbStorage, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(Table::Data, key.to_vec(), value.to_vec());
    storage.commit(batch).unwrap();
}

struct TemporaryDirectory;

impl Engine for TemporaryDirectory {
    type Place = TempDir;

    fn new_place(&self) -> TempDir {
        temp()
    }

    fn open(&self, directory: &TempDir) -> Box<dyn Storage> {
        Box::new(open(directory.path()))
    }

    fn run_both(&self, one: Job<'_>, other: Job<'_>) {
        std::thread::scope(|scope| {
            scope.spawn(one);
            other();
        });
    }
}

#[test]
fn the_engine_conforms() {
    conformance::check(&TemporaryDirectory);
}

/// Writes a database as any program would.
fn foreign(path: &Path, entries: &[(&[u8], &[u8])]) {
    let opening = Opening {
        creates: true,
        cache_bytes: 1 << 20,
        write_buffer_bytes: 1 << 20,
    };
    let database = Database::open(path, &opening).unwrap();
    let mut batch = WriteBatch::new();
    entries
        .iter()
        .for_each(|(key, value)| batch.put(key, value));
    database.write(&batch, true).unwrap();
}

#[test]
fn a_database_of_another_program_is_refused_and_read() {
    let dir = temp();
    let path = dir.path().join("theirs");
    foreign(&path, &[(b"b", b"2"), (b"", b"empty"), (b"a\0\xff", b"")]);
    let text = refusal(&path);
    assert!(text.contains("import --leveldb"), "{text}");

    let read: Result<Vec<_>, _> = LevelDbReader::open(&path).unwrap().collect();
    let expected: [(&[u8], &[u8]); 3] = [(b"", b"empty"), (b"a\0\xff", b""), (b"b", b"2")];
    let expected: Vec<_> = expected
        .iter()
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .collect();
    assert_eq!(read.unwrap(), expected);
}

#[test]
fn nothing_is_made_where_nothing_is_to_be_read() {
    let dir = temp();
    let path = dir.path().join("nothing");
    let error = LevelDbReader::open(&path)
        .err()
        .expect("there is nothing")
        .to_string();
    assert!(error.contains("no LevelDB database"), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_later_format_and_a_second_opener_are_refused() {
    let dir = temp();
    foreign(dir.path(), &[(MARK, b"2")]);
    assert!(refusal(dir.path()).contains("use a later one"));

    let other = temp();
    let _storage = open(other.path());
    let text = refusal(other.path());
    assert!(text.contains("lock"), "{text}");
}

#[test]
fn a_damaged_log_is_told_and_not_forgotten() {
    let dir = temp();
    let storage = open(dir.path());
    for number in 0..100_u32 {
        put(&storage, &number.to_be_bytes(), &[7; 100]);
    }
    let log = dir.path().join(logs(dir.path()).pop_first().unwrap());
    drop(storage);
    let mut bytes = fs::read(&log).unwrap();
    bytes[3_000] ^= 1;
    fs::write(&log, bytes).unwrap();
    let text = refusal(dir.path());
    assert!(text.contains("orruption"), "{text}");
}

#[test]
fn a_sync_covers_what_an_earlier_log_holds() {
    let dir = temp();
    let options = LevelDbOptions {
        write_buffer_bytes: 1 << 16,
        ..LevelDbOptions::default()
    };
    let storage = LevelDbStorage::open(dir.path(), &options).unwrap();
    let before = logs(dir.path());
    for number in 0..200_u32 {
        put(&storage, &number.to_be_bytes(), &[7; 1_000]);
    }
    storage.sync().unwrap();
    let after = logs(dir.path());
    assert_ne!(before, after, "memory was full meanwhile");
    // One log, so all that came before it is in tables.
    assert_eq!(after.len(), 1);
    assert_eq!(*storage.logs.lock().unwrap(), after);
    put(&storage, b"more", b"value");
    storage.sync().unwrap();
    assert_eq!(logs(dir.path()), after, "nothing is sorted without need");
}

#[test]
fn replicas_on_both_engines_agree() {
    let (ours, theirs) = (temp(), temp());
    let here = crate::Options::new()
        .listen("127.0.0.1:0")
        .open(ours.path().join("fjall"))
        .unwrap();
    let there = crate::Options::new().peer(here.status().listen.unwrap().to_string());
    let there = there
        .open_with(Arc::new(open(&theirs.path().join("leveldb"))))
        .unwrap();
    for number in 0..500_u32 {
        here.put(format!("here/{number}"), number.to_be_bytes())
            .unwrap();
        there
            .put(format!("there/{number}"), number.to_be_bytes())
            .unwrap();
    }
    there.delete("there/7").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while here.digest().unwrap() != there.digest().unwrap() || here.iter().count() < 999 {
        assert!(std::time::Instant::now() < deadline, "they do not agree");
        let _ = there.sync_now(std::time::Duration::from_secs(5));
    }
    let all = |db: &crate::Db| db.iter().map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(all(&here), all(&there));
    let keys: Vec<_> = all(&there).into_iter().rev().collect();
    let back: Vec<_> = there.iter().rev().map(Result::unwrap).collect();
    assert_eq!(keys, back);
    drop((here, there));

    let again = crate::Options::new()
        .open_with(Arc::new(open(&theirs.path().join("leveldb"))))
        .unwrap();
    assert_eq!(again.iter().count(), 999);
}
