#![allow(clippy::unwrap_used)]

use std::fs;
#[cfg(unix)]
use std::io::{BufRead as _, BufReader};
use std::ops::Bound::Unbounded;
use std::path::Path;
#[cfg(unix)]
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use level_replicator_core::storage::conformance::{self, Engine, Job};
use tempfile::TempDir;

use super::*;

/// Tells the test process that it is the child of a test, and which directory to write to.
const CHILD_DIRECTORY: &str = "LEVEL_REPLICATOR_TEST_DIRECTORY";

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn try_open(path: &Path) -> Result<FjallStorage, OpenError> {
    FjallStorage::open(path, &FjallOptions::default())
}

fn open(path: &Path) -> FjallStorage {
    try_open(path).unwrap()
}

fn refusal(path: &Path) -> OpenError {
    match try_open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

fn put(storage: &FjallStorage, table: Table, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(table, key.to_vec(), value.to_vec());
    storage.commit(batch).unwrap();
}

fn keys(entries: Entries) -> Vec<Vec<u8>> {
    entries.map(|entry| entry.unwrap().0.to_vec()).collect()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
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

#[test]
fn a_key_or_value_beyond_the_engines_limits_is_refused_and_changes_nothing() {
    let dir = temp();
    let storage = open(dir.path());
    put(&storage, Table::Data, &[1; KEY_LEN_MAX], b"longest");

    let mut batch = Batch::default();
    batch.put(Table::Data, "other", "value");
    batch.put(Table::Data, vec![1; KEY_LEN_MAX + 1], "value");
    let error = storage.commit(batch).unwrap_err();

    assert_eq!(
        error.to_string(),
        "cannot commit a batch: key of 65535 bytes exceeds the engine's limit of 65534"
    );
    assert_eq!(storage.get(Table::Data, b"other").unwrap(), None);
    assert_eq!(storage.get(Table::Data, &[1; 70_000]).unwrap(), None);
    put(
        &storage,
        Table::Data,
        b"after",
        b"the engine still takes writes",
    );
}

#[test]
fn a_snapshot_and_its_ranges_see_one_moment_while_the_engine_flushes_and_merges() {
    let dir = temp();
    let storage = open(dir.path());
    for number in 0..1_000_u32 {
        put(&storage, Table::Data, &number.to_be_bytes(), b"before");
    }
    let snapshot = storage.snapshot();
    let mut range = snapshot.range(Table::Data, Unbounded, Unbounded);
    assert!(range.next().is_some());

    for round in 0..6 {
        for number in 0..1_000_u32 {
            let mut batch = Batch::default();
            if (number + round) % 3 == 0 {
                batch.remove(Table::Data, number.to_be_bytes().to_vec());
            } else {
                batch.put(Table::Data, number.to_be_bytes().to_vec(), "after");
            }
            storage.commit(batch).unwrap();
        }
        storage.close().unwrap();
    }
    storage.shared.engine().keyspace.major_compact().unwrap();

    assert_eq!(
        range
            .filter(|entry| entry.as_ref().unwrap().1 == "before")
            .count(),
        999
    );
    let again = snapshot.range(Table::Data, Unbounded, Unbounded);
    assert!(
        again
            .map(|entry| entry.unwrap())
            .all(|(_, value)| value == "before")
    );
    for number in 0..1_000_u32 {
        let value = snapshot.get(Table::Data, &number.to_be_bytes()).unwrap();
        assert_eq!(value.unwrap(), "before");
    }
}

#[test]
fn a_directory_is_made_with_its_parents_and_its_sizes_are_told() {
    let dir = temp();
    let storage = open(&dir.path().join("missing/parents"));
    put(&storage, Table::Data, b"key", &[1; 1_000]);

    for _ in 0..2 {
        let stats = storage.stats();
        assert!(stats.disk_bytes.unwrap() > 0);
        assert!(stats.write_buffer_bytes.is_some());
        assert!(stats.journal_bytes.is_some());
        storage.close().unwrap();
    }
}

#[test]
fn a_database_that_was_dropped_under_load_opens_again_at_once() {
    let dir = temp();
    for round in 0..100_u32 {
        let storage = open(dir.path());
        if round > 0 {
            let value = storage
                .get(Table::Data, &(round - 1).to_be_bytes())
                .unwrap();
            assert!(value.is_some());
        }
        for number in 0..20_u32 {
            put(
                &storage,
                Table::Log,
                &(round * 20 + number).to_be_bytes(),
                &[1; 5_000],
            );
        }
        put(&storage, Table::Data, &round.to_be_bytes(), b"value");
        // A flush that is not waited for, a snapshot and a range that live longer than the storage.
        storage.shared.engine().keyspace.rotate_memtable().unwrap();
        let snapshot = storage.snapshot();
        let mut range = snapshot.range(Table::Log, Unbounded, Unbounded);
        range.next();
        drop(storage);
        drop(snapshot);
        assert!(matches!(refusal(dir.path()), OpenError::Locked { .. }));
        assert!(range.next_back().unwrap().is_ok());
    }
}

#[test]
fn a_second_opener_is_refused_at_once() {
    let dir = temp();
    let storage = open(dir.path());

    let error = refusal(dir.path());

    assert!(matches!(&error, OpenError::Locked { path } if path == dir.path()));
    put(&storage, Table::Data, b"key", b"the first is not disturbed");
}

#[test]
fn a_newer_format_is_refused() {
    let dir = temp();
    drop(open(dir.path()));
    fs::write(
        dir.path().join("FORMAT"),
        "level-replicator 7\n3.1.4\nmore\n",
    )
    .unwrap();

    let error = refusal(dir.path());

    assert_eq!(
        error.to_string(),
        format!(
            "{} has format 7, written by version 3.1.4; this version reads formats up to 1: \
             use version 3.1.4 or later",
            dir.path().display()
        )
    );
}

#[test]
fn a_format_file_that_says_nothing_is_refused() {
    for text in [
        "",
        "\n",
        "garbage",
        "level-replicator",
        "level-replicator -1",
        "level-replicator 0",
    ] {
        let dir = temp();
        drop(open(dir.path()));
        fs::write(dir.path().join("FORMAT"), text).unwrap();
        assert!(
            matches!(refusal(dir.path()), OpenError::NotADatabase { .. }),
            "{text}"
        );
    }
    let dir = temp();
    drop(open(dir.path()));
    fs::write(dir.path().join("FORMAT"), [0xff; 100_000]).unwrap();
    assert!(matches!(
        refusal(dir.path()),
        OpenError::NotADatabase { .. }
    ));
}

#[test]
fn a_directory_that_holds_something_else_is_refused_and_left_as_it_was() {
    for holding in [
        &["notes.txt"][..],
        &["CURRENT", "LOCK"],
        &["engine"],
        &["engine", "LOCK"],
    ] {
        let dir = temp();
        for name in holding {
            fs::write(dir.path().join(name), "mine").unwrap();
        }

        let error = refusal(dir.path());

        assert!(matches!(&error, OpenError::NotADatabase { .. }), "{error}");
        assert!(
            error
                .to_string()
                .starts_with(&dir.path().display().to_string())
        );
        let mut expected = holding.to_vec();
        expected.sort();
        assert_eq!(names(dir.path()), expected);
        for name in holding {
            assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"mine");
        }
    }
}

#[test]
fn a_file_is_no_directory() {
    let dir = temp();
    let file = dir.path().join("file");
    fs::write(&file, "text").unwrap();

    assert!(matches!(refusal(&file), OpenError::NotADatabase { .. }));
    let error = refusal(&file.join("below"));
    assert!(matches!(&error, OpenError::Io { .. }), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"text");
}

#[test]
fn a_creation_that_was_cut_short_anywhere_is_taken_up_again() {
    type Cut = fn(&Path);
    let cuts: [Cut; 7] = [
        |path| fs::create_dir_all(path).unwrap(),
        |path| {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("LOCK"), "").unwrap();
        },
        |path| {
            fs::create_dir_all(path.join("engine.new")).unwrap();
            fs::write(path.join("LOCK"), "").unwrap();
            fs::write(path.join("engine.new/0.jnl"), "half").unwrap();
        },
        |path| {
            drop(open(path));
            fs::rename(path.join("engine"), path.join("engine.new")).unwrap();
            fs::write(path.join("FORMAT.new"), "level-repl").unwrap();
            fs::remove_file(path.join("FORMAT")).unwrap();
        },
        |path| {
            drop(open(path));
            fs::rename(path.join("engine"), path.join("engine.new")).unwrap();
        },
        |path| {
            drop(open(path));
            fs::remove_file(path.join("LOCK")).unwrap();
        },
        |path| fs::create_dir_all(path.join("lost+found")).unwrap(),
    ];
    for (number, cut) in cuts.into_iter().enumerate() {
        let dir = temp();
        let path = dir.path().join("database");
        cut(&path);

        let storage = try_open(&path).unwrap_or_else(|error| panic!("cut {number}: {error}"));
        put(&storage, Table::Data, b"key", b"value");
        drop(storage);

        let value = open(&path).get(Table::Data, b"key").unwrap();
        assert_eq!(value.unwrap(), "value");
        let mut left = names(&path);
        left.retain(|name| name != "lost+found");
        assert_eq!(left, ["FORMAT", "LOCK", "engine"]);
    }
}

#[test]
fn a_database_without_its_engine_is_not_taken_for_a_new_one() {
    let dir = temp();
    drop(open(dir.path()));
    fs::remove_dir_all(dir.path().join("engine")).unwrap();
    assert!(matches!(
        refusal(dir.path()),
        OpenError::NotADatabase { .. }
    ));
}

#[test]
fn the_format_file_names_the_format_and_the_version_that_wrote_it() {
    let dir = temp();
    drop(open(dir.path()));
    let text = fs::read_to_string(dir.path().join("FORMAT")).unwrap();
    assert_eq!(
        text,
        format!("level-replicator 1\n{}\n", env!("CARGO_PKG_VERSION"))
    );
}

/// This test process again, as a child that runs one of the tests below under a shell's limits.
#[cfg(unix)]
fn child(test: &str, directory: &Path, limits: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{limits} exec \"$0\" \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args([test, "--nocapture", "--test-threads=1"])
        .env(CHILD_DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// A batch that says its number in two tables, with values that do not compress.
fn numbered_batch(number: u64) -> Batch {
    let mut batch = Batch::default();
    let noise = || {
        std::iter::repeat_with(|| fastrand::u8(..))
            .take(3_000)
            .collect::<Vec<u8>>()
    };
    batch.put(Table::Data, number.to_be_bytes().to_vec(), noise());
    batch.put(Table::Log, number.to_be_bytes().to_vec(), noise());
    batch
}

/// How many numbered batches there are: all from 0 on, each whole.
fn count_numbered_batches(storage: &FjallStorage) -> u64 {
    let snapshot = storage.snapshot();
    let data = keys(snapshot.range(Table::Data, Unbounded, Unbounded));
    let log = keys(snapshot.range(Table::Log, Unbounded, Unbounded));
    assert_eq!(data, log);
    let numbers = (0..data.len() as u64).map(|number| number.to_be_bytes().to_vec());
    assert!(numbers.eq(data.iter().cloned()));
    data.len() as u64
}

#[cfg(unix)]
fn acknowledged(line: &str) -> Option<u64> {
    line.strip_prefix("acknowledged ")?.parse().ok()
}

#[test]
fn child_writes_until_it_is_stopped_or_a_write_fails() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else {
        return;
    };
    let storage = open(Path::new(&directory));
    let mut number = count_numbered_batches(&storage);
    println!();
    let error = loop {
        if let Err(error) = storage.commit(numbered_batch(number)) {
            break error;
        }
        number += 1;
        println!("acknowledged {number}");
    };

    println!("failed {error}");
    assert_eq!(count_numbered_batches(&storage), number);
    println!("reads work");
    println!(
        "again {}",
        storage.commit(numbered_batch(number)).unwrap_err()
    );
    println!("sync {}", storage.sync().unwrap_err());
    println!("close {}", storage.close().unwrap_err());
    drop(storage);
    println!("dropped");
}

#[cfg(unix)]
const CHILD: &str = "child_writes_until_it_is_stopped_or_a_write_fails";

#[cfg(unix)]
#[test]
fn a_killed_process_loses_no_acknowledged_commit() {
    let dir = temp();
    let mut known = 0;
    for round in 0..5 {
        let mut process = child(CHILD, dir.path(), "").spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let enough = known + 200 + round * 777;
        while known < enough {
            if let Some(number) = acknowledged(&lines.next().unwrap().unwrap()) {
                known = number;
            }
        }
        process.kill().unwrap();
        process.wait().unwrap();
        known = lines
            .filter_map(|line| acknowledged(&line.unwrap()))
            .last()
            .unwrap_or(known);

        let storage = open(dir.path());
        let found = count_numbered_batches(&storage);
        assert!(found >= known, "{known} acknowledged, {found} found");
        known = found;
    }
}

#[cfg(unix)]
#[test]
fn a_failed_write_ends_all_writing_and_loses_nothing_that_was_acknowledged() {
    let dir = temp();
    drop(open(dir.path()));
    let mut known = 0;
    for blocks in [100, 1_001, 5_003, 9_999, 40_000] {
        let limits = format!("trap '' XFSZ; ulimit -f {blocks};");
        let output = child(CHILD, dir.path(), &limits).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        known = output
            .lines()
            .filter_map(acknowledged)
            .next_back()
            .unwrap_or(known);
        let said = |what: &str| {
            let line = output.lines().find(|line| line.starts_with(what));
            line.unwrap_or_default().to_owned()
        };
        assert!(said("failed").contains("File too large"));
        assert!(said("again").contains("no further writes are accepted until"));
        assert_eq!(said("reads work"), "reads work");
        assert_eq!(said("dropped"), "dropped");

        let storage = open(dir.path());
        let found = count_numbered_batches(&storage);
        // The batch that failed may have been completed when the engine was dropped.
        assert!(
            found == known || found == known + 1,
            "{known} acknowledged, {found} found"
        );
        known = found;
    }
}

#[test]
fn later_writes_count_after_a_close_that_emptied_the_journal() {
    let dir = temp();
    for round in 0..8_u32 {
        let storage = open(dir.path());
        let value = storage.get(Table::Data, b"key").unwrap();
        if round % 4 == 0 {
            assert_eq!(value, None);
        } else {
            assert_eq!(value.unwrap(), (round - 1).to_be_bytes().to_vec());
        }
        put(&storage, Table::Data, b"key", b"replaced at once");
        let mut batch = Batch::default();
        match round % 4 {
            3 => batch.remove(Table::Data, "key"),
            _ => batch.put(Table::Data, "key", round.to_be_bytes().to_vec()),
        }
        storage.commit(batch).unwrap();
        storage.close().unwrap();
        if round % 3 == 0 {
            storage.shared.engine().keyspace.major_compact().unwrap();
        }
        if round % 2 == 0 {
            put(
                &storage,
                Table::Log,
                &round.to_be_bytes(),
                b"after the close",
            );
        }
        drop(storage);

        let journal_bytes: u64 = fs::read_dir(dir.path().join("engine"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().extension().is_some_and(|name| name == "jnl"))
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert_eq!(journal_bytes == 0, round % 2 == 1, "round {round}");
    }
    let log = open(dir.path())
        .snapshot()
        .range(Table::Log, Unbounded, Unbounded);
    assert_eq!(keys(log).len(), 4);
}

#[test]
fn no_reader_sees_half_a_batch_while_the_engine_flushes_and_merges() {
    const KEYS: u32 = 200;
    let dir = temp();
    let storage = open(dir.path());
    let commit = |round: u32| {
        let mut batch = Batch::default();
        for key in 0..KEYS {
            let value = round.to_be_bytes().to_vec();
            batch.put(Table::Data, key.to_be_bytes().to_vec(), value);
        }
        storage.commit(batch).unwrap();
    };
    commit(0);
    let is_done = AtomicBool::new(false);

    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each flush and each merge moves the engine's idea of what may be seen.
            while !is_done.load(Ordering::Relaxed) {
                let _ = storage.shared.engine().keyspace.rotate_memtable().unwrap();
            }
        });
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let snapshot = storage.snapshot();
                let first = snapshot.get(Table::Data, &0_u32.to_be_bytes());
                let last = snapshot.get(Table::Data, &(KEYS - 1).to_be_bytes());
                if first.as_ref().unwrap() != last.as_ref().unwrap() {
                    is_done.store(true, Ordering::Relaxed);
                    panic!("{first:?} {last:?}");
                }
            }
        });
        for round in 1..500 {
            if is_done.load(Ordering::Relaxed) {
                break;
            }
            commit(round);
        }
        is_done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_row_that_is_read_again_and_again_is_the_newest_at_every_moment() {
    let dir = temp();
    let storage = open(dir.path());
    // Now and then the row is too large to be kept beside the engine, or is gone.
    let row = |round: u32| {
        let mut row = round.to_be_bytes().to_vec();
        row.resize(if round % 7 == 3 { 5_000 } else { 100 }, 0xa5);
        (round % 11 != 5).then_some(row)
    };
    let round_of = |row: &Bytes| u32::from_be_bytes(row[..4].try_into().unwrap());
    let is_done = AtomicBool::new(false);

    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut newest = 0;
                while !is_done.load(Ordering::Relaxed) {
                    if let Some(row) = storage.get(Table::Data, b"key").unwrap() {
                        let round = round_of(&row);
                        assert!(round >= newest, "{round} after {newest}");
                        newest = round;
                    }
                }
            });
        }
        for round in 1..20_000 {
            let mut batch = Batch::default();
            match row(round) {
                Some(row) => batch.put(Table::Data, b"key".to_vec(), row),
                None => batch.remove(Table::Data, b"key".to_vec()),
            }
            storage.commit(batch).unwrap();
            for _ in 0..2 {
                let found = storage.get(Table::Data, b"key").unwrap();
                if found.as_deref() != row(round).as_deref() {
                    is_done.store(true, Ordering::Relaxed);
                    panic!("round {round}: {:?}", found.as_ref().map(round_of));
                }
            }
        }
        is_done.store(true, Ordering::Relaxed);
    });
}

/// Copies a directory as it stands, as the end of its process would leave it.
fn copy_as_it_stands(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_as_it_stands(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn an_open_after_an_unclean_end_shortens_a_long_journal_and_loses_nothing() {
    let value = vec![0xa5; 1_000];
    let (dir, copy) = (temp(), temp());
    let storage = open(dir.path());
    for number in 0..12_000u32 {
        put(&storage, Table::Data, &number.to_be_bytes(), &value);
        if number == 3_000 {
            // What is in tables already is in the journal too.
            storage.relieve();
        }
    }
    copy_as_it_stands(dir.path(), copy.path());
    let journal_bytes = |storage: &FjallStorage| storage.stats().journal_bytes.unwrap();
    assert!(journal_bytes(&storage) > LONG_JOURNAL);
    drop(storage);

    for round in 0..3u32 {
        let storage = open(copy.path());
        assert!(journal_bytes(&storage) < LONG_JOURNAL, "round {round}");
        let entries = storage.snapshot().range(Table::Data, Unbounded, Unbounded);
        assert_eq!(keys(entries).len(), 12_000 + round as usize);
        // What is written next counts, however the process ends.
        put(
            &storage,
            Table::Data,
            &(12_000 + round).to_be_bytes(),
            b"new",
        );
        put(
            &storage,
            Table::Data,
            &0u32.to_be_bytes(),
            &round.to_be_bytes(),
        );
        let next = temp();
        copy_as_it_stands(copy.path(), next.path());
        drop(storage);
        let newer = open(next.path()).get(Table::Data, &0u32.to_be_bytes());
        assert_eq!(newer.unwrap().unwrap(), round.to_be_bytes().to_vec());
    }
}
