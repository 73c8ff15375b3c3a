//! Damage to any file of a database: an error that says where and what to do, or all data, but never
//! wrong data and never a panic.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use level_replicator::storage::fjall::{FjallOptions, FjallStorage};
use level_replicator::storage::{Batch, Storage as _, Table};
use level_replicator::{Bytes, Db, Error};

use crate::child::noise;
use crate::common::*;

/// Every commit of the database, in order.
const COMMITS: usize = 90;

/// After how many commits it was closed and opened again.
const CLOSED_AFTER: [usize; 2] = [30, 60];

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

/// What is put and what is deleted by a commit. Some values are large enough to be compressed.
fn commit(number: usize) -> (Vec<(String, Vec<u8>)>, Option<String>) {
    let len = match number % 10 {
        0 => 6_000,
        short => 30 * short,
    };
    let mut value = noise(len);
    value.truncate(len / 2 + len / 3);
    value.resize(len, b'.');
    let puts = vec![
        (format!("key/{:02}", number % 25), value),
        ("last".to_owned(), number.to_string().into_bytes()),
    ];
    let delete = number
        .is_multiple_of(7)
        .then(|| format!("key/{:02}", (3 * number + 1) % 25));
    (puts, delete)
}

fn write(db: &Db, number: usize) {
    let (puts, delete) = commit(number);
    let mut batch = db.batch();
    for (key, value) in puts {
        batch.put(key, value);
    }
    if let Some(key) = delete {
        batch.delete(key);
    }
    batch.commit().expect("a batch");
}

/// What is there after each commit, beginning before the first.
fn history() -> Vec<Contents> {
    let mut contents = Contents::new();
    let mut history = vec![contents.clone()];
    for number in 1..=COMMITS {
        let (puts, delete) = commit(number);
        contents.extend(
            puts.into_iter()
                .map(|(key, value)| (key.into_bytes(), value)),
        );
        if let Some(key) = delete {
            contents.remove(key.as_bytes());
        }
        history.push(contents.clone());
    }
    history
}

/// A directory that was closed well, or as a kill leaves it: with a journal that matters.
fn image(place: &Path, closed: bool) -> PathBuf {
    let live = place.join("live");
    let mut next = 1;
    for until in CLOSED_AFTER {
        let db = alone().open(&live).expect("it opens");
        (next..=until).for_each(|number| write(&db, number));
        next = until + 1;
        db.close().expect("it closes");
    }
    let db = alone().open(&live).expect("it opens");
    (next..=COMMITS).for_each(|number| write(&db, number));
    if closed {
        db.close().expect("it closes");
        drop(db);
        return live;
    }
    let killed = place.join("killed");
    copy(&live, &killed);
    killed
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Removed,
    Cut(usize),
    Flipped(usize, u8),
}

impl Damage {
    /// All cuts and flips that are tried on a file of some length: everywhere at its ends, where its
    /// frame is, and here and there between.
    fn all(len: usize) -> Vec<Damage> {
        let mut all = vec![Damage::Removed];
        if len == 0 {
            return all;
        }
        let cuts = [0, 1, len / 4, len / 2, len * 3 / 4, len - 1];
        all.extend(cuts.map(Damage::Cut));
        let begin = 0..len.min(40);
        let end = len.saturating_sub(120)..len;
        let between = (0..24).map(|part| part * len / 24 + part * 7 % 11);
        let mut offsets: Vec<usize> = begin.chain(end).chain(between).collect();
        offsets.retain(|offset| *offset < len);
        offsets.sort_unstable();
        offsets.dedup();
        let masks = [0x01, 0x80, 0x10, 0x04];
        let flips = offsets.iter().enumerate();
        all.extend(flips.map(|(place, offset)| Damage::Flipped(*offset, masks[place % 4])));
        all
    }

    fn apply(self, file: &Path) {
        if let Damage::Removed = self {
            return fs::remove_file(file).expect("it is removed");
        }
        let mut bytes = fs::read(file).expect("it is read");
        match self {
            Damage::Removed => {}
            Damage::Cut(len) => bytes.truncate(len),
            Damage::Flipped(offset, mask) => bytes[offset] ^= mask,
        }
        fs::write(file, bytes).expect("it is written");
    }
}

/// What a program meets that opens a database, reads all of it, writes, closes it and does so again.
fn meet(path: &Path) -> Result<[Contents; 2], Error> {
    let mut seen = Vec::new();
    for round in ["one", "two"] {
        let db = alone().open(path)?;
        let entries = db.iter();
        let found: Result<Contents, Error> = entries
            .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())))
            .collect();
        let found = found?;
        for (key, value) in &found {
            assert_eq!(db.get(key)?.as_deref(), Some(&value[..]));
        }
        db.put("new", round)?;
        db.close()?;
        seen.push(found);
    }
    let [first, mut second] = <[Contents; 2]>::try_from(seen).expect("two rounds");
    assert_eq!(second.remove(&b"new"[..]).as_deref(), Some(&b"one"[..]));
    Ok([first, second])
}

/// As [`meet`], but a panic is a text, and what takes too long is one too.
fn meet_with_patience(path: &Path) -> Result<Result<[Contents; 2], Error>, String> {
    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    std::thread::Builder::new()
        .name(cluster())
        .spawn(move || {
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| meet(&path)));
            // Nobody waits any more if it took too long.
            let _ = tell.send(outcome.map_err(|_| "a panic".to_owned()));
        })
        .expect("a thread");
    told.recv_timeout(PATIENCE)
        .unwrap_or_else(|_| Err("no end".to_owned()))
}

/// Damages each file of a directory in each way, and judges what a program meets. Answers how many
/// cases ended in an error.
fn try_all_damage(
    place: &Path,
    image: &Path,
    may_be_earlier: impl Fn(&Path, Damage) -> bool,
) -> u32 {
    let history = history();
    let all = &history[COMMITS];
    let mut errors = 0;
    for file in files(image) {
        let name = file.strip_prefix(image).expect("a file of the image");
        let len = fs::metadata(&file).expect("a file").len() as usize;
        for damage in Damage::all(len) {
            let case = format!("{} {damage:?}", name.display());
            let damaged = place.join("damaged");
            let _ = fs::remove_dir_all(&damaged);
            copy(image, &damaged);
            damage.apply(&damaged.join(name));

            match meet_with_patience(&damaged) {
                Err(end) => panic!("{case}: {end}"),
                Ok(Err(error)) => {
                    errors += 1;
                    let text = error.to_string();
                    for words in [damaged.to_str().expect("a text"), "move it away"] {
                        assert!(text.contains(words), "{case}: '{text}' says no '{words}'");
                    }
                }
                Ok(Ok([first, second])) => {
                    assert!(first == second, "{case}: other data after a reopening");
                    let is_right = if may_be_earlier(name, damage) {
                        history.contains(&first)
                    } else {
                        first == *all
                    };
                    let moment = history.iter().position(|moment| *moment == first);
                    assert!(
                        is_right,
                        "{case} of {len}: wrong data and no error; as after commit {moment:?}"
                    );
                }
            }
        }
    }
    errors
}

#[test]
fn damage_to_any_file_of_a_closed_database_is_told_and_never_served() {
    let place = directory();
    let image = image(place.path(), true);
    let errors = try_all_damage(place.path(), &image, |_, _| false);
    assert!(errors > 300, "only {errors} kinds of damage were noticed");
}

#[test]
fn damage_to_any_file_of_a_killed_database_is_told_and_never_served() {
    let place = directory();
    let image = image(place.path(), false);
    // A journal without its end is what a loss of power leaves: an earlier moment, whole.
    let errors = try_all_damage(place.path(), &image, |file, damage| {
        file.extension().is_some_and(|kind| kind == "jnl") && matches!(damage, Damage::Cut(_))
    });
    assert!(errors > 300, "only {errors} kinds of damage were noticed");
}

#[test]
fn a_damaged_replica_is_filled_again_by_its_peers_from_an_empty_directory() {
    let place = directory();
    let path = place.path().join("replica");
    let away = place.path().join("replica.damaged");
    let peer = open(listening());
    let options = || listening().peer(peer.address());

    let db = options().open(&path).expect("a new directory opens");
    let old = db.status().replica;
    for number in 1..=COMMITS {
        write(if number % 2 == 0 { &db } else { &peer }, number);
        if number % 10 == 0 {
            agree(&[&peer, &db]);
        }
    }
    agree(&[&peer, &db]);
    peer.pause().expect("it pauses");
    db.put("unseen", "by any peer").expect("a write");
    db.close().expect("it closes");
    drop(db);
    peer.resume().expect("it resumes");

    let current = path.join("engine/keyspaces/1/current");
    Damage::Cut(3).apply(&current);
    let error = match options().open(&path) {
        Ok(_) => panic!("a damaged directory was opened"),
        Err(error) => error,
    };
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let text_of_error = error.to_string();
    for words in [current.to_str().expect("a text"), "docs/recovery.md"] {
        assert!(text_of_error.contains(words), "{text_of_error}");
    }

    fs::rename(&path, &away).expect("it is moved away");
    let db = options().open(&path).expect("an empty directory opens");
    db.sync_now(PATIENCE).expect("the peer is reached");
    agree(&[&peer, &db]);
    assert_eq!(contents(&db), contents(&peer));
    assert_eq!(text(&db, "last"), Some(COMMITS.to_string()));
    assert_eq!(text(&db, "unseen"), None, "no peer had seen it");
    assert_ne!(db.status().replica, old, "it is a new replica");

    db.put("new", "value").expect("a write");
    db.sync_now(PATIENCE).expect("the peer is reached");
    assert_eq!(text(&peer, "new").as_deref(), Some("value"));
}

/// The tables in which our rows are.
fn tables(directory: &Path) -> Vec<PathBuf> {
    files(&directory.join("engine/keyspaces/1/tables"))
}

/// Flips a byte of a file in its place, so that who has it open sees it.
fn flip_in_place(file: &Path, offset: u64) {
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .expect("it opens");
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset)).expect("a place");
    file.read_exact(&mut byte).expect("a read");
    file.seek(SeekFrom::Start(offset)).expect("a place");
    file.write_all(&[byte[0] ^ 0x20]).expect("a write");
}

#[test]
fn damage_to_an_open_database_is_told_by_what_reads_it() {
    let place = directory();
    let image = image(place.path(), true);
    let all = history().pop().expect("a last moment");
    let db = alone().cache_bytes(0).open(&image).expect("it opens");
    for table in tables(&image) {
        let len = fs::metadata(&table).expect("a file").len();
        for offset in (0..len).step_by(1_500) {
            flip_in_place(&table, offset);
        }
    }

    let mut errors = 0;
    for (key, value) in &all {
        match db.get(key) {
            Ok(found) => assert_eq!(found.as_deref(), Some(&value[..])),
            Err(error) => {
                errors += 1;
                let text = error.to_string();
                for words in [image.to_str().expect("a text"), "move it away"] {
                    assert!(text.contains(words), "'{text}' says no '{words}'");
                }
            }
        }
    }
    assert!(errors > all.len() / 2, "only {errors} reads failed");
    let read: Result<Vec<_>, Error> = db.iter().collect();
    assert!(read.is_err(), "all was read");
    assert!(db.backup(place.path().join("copy")).is_err());
    assert!(!place.path().join("copy").exists());
}

#[test]
fn damage_that_only_a_merge_meets_loses_nothing_else() {
    let place = directory();
    let path = place.path().join("replica");
    let key = |number: usize| format!("key/{number:03}");
    let value = noise(300);
    let db = alone().open(&path).expect("a new directory opens");
    for number in 0..200 {
        db.put(key(number), &value).expect("a write");
    }
    db.close().expect("it closes");
    drop(db);
    let table = tables(&path).remove(0);
    let middle = fs::metadata(&table).expect("a file").len() / 2;
    flip_in_place(&table, middle);

    let check = |error: &Error| {
        let text = error.to_string();
        for words in [path.to_str().expect("a text"), "move it away"] {
            assert!(text.contains(words), "'{text}' says no '{words}'");
        }
    };
    // Each close adds a table, so that tables are merged.
    for round in 0..10 {
        let outcome = alone().open(&path).and_then(|db| {
            db.put("round", round.to_string())?;
            db.close()
        });
        if let Err(error) = outcome {
            check(&error);
        }
    }
    // A merge that meets the damage before the first commit ends the engine, and with it the open.
    let mut opened = (0..100).map(|_| alone().open(&path).inspect_err(check));
    let db = (opened.find_map(Result::ok)).expect("most opens come before the merge");
    let mut errors = 0;
    for number in 0..200 {
        match db.get(key(number)) {
            Ok(found) => assert_eq!(found.as_deref(), Some(&value[..]), "{number}"),
            Err(_) => errors += 1,
        }
    }
    assert!((1..50).contains(&errors), "{errors} keys cannot be read");
}

#[test]
fn a_row_that_is_changed_behind_the_engines_checksum_is_never_served() {
    let place = directory();
    let image = image(place.path(), true);
    let all = history().pop().expect("a last moment");
    for key in ["key/05", "key/03"] {
        assert_eq!(
            all.contains_key(key.as_bytes()),
            key == "key/05",
            "one is deleted"
        );
        let key = Bytes::from_static(key.as_bytes());
        let row = {
            let storage = FjallStorage::open(&image, &FjallOptions::default()).expect("it opens");
            let row = storage.get(Table::Data, &key).expect("a read");
            row.expect("a row").to_vec()
        };
        // Each byte of the frame, and some of the value.
        let frame = 0..row.len().min(20);
        for offset in frame.chain((20..row.len()).step_by(23)) {
            let mut changed = row.clone();
            changed[offset] ^= 0x10;
            let storage = FjallStorage::open(&image, &FjallOptions::default()).expect("it opens");
            let mut batch = Batch::default();
            batch.put(Table::Data, key.clone(), changed);
            storage.commit(batch).expect("a commit");
            let db = alone().open_with(Arc::new(storage)).expect("it opens");
            let error = db.get(&key).expect_err("a changed row is damaged");
            assert!(matches!(error, Error::Corrupt(_)), "{error}");
            assert!(error.to_string().contains("docs/recovery.md"), "{error}");
            let last = db.get("last").expect("other keys are read");
            assert_eq!(last.as_deref(), Some(&all[&b"last"[..]][..]));
        }
    }
}

#[test]
fn a_journal_cut_where_it_is_damaged_opens_and_gives_what_no_peer_had_seen() {
    let place = directory();
    let peer = open(listening());
    let live = place.path().join("live");
    let old = place.path().join("old");
    let db = alone().open(&live).expect("a new directory opens");
    (1..=COMMITS).for_each(|number| write(&db, number));
    copy(&live, &old);

    let journal = old.join("engine/0.jnl");
    // The engine reserves room behind what it wrote.
    let bytes = fs::read(&journal).expect("a read");
    let written = bytes.iter().rposition(|&byte| byte != 0).expect("a byte");
    flip_in_place(&journal, written as u64 / 2);
    let error = match alone().open(&old) {
        Ok(_) => panic!("a damaged directory was opened"),
        Err(error) => error.to_string(),
    };
    let (_, rest) = error.split_once("the batch at byte ").expect("a byte");
    let (byte, _) = rest.split_once(' ').expect("a number and more");
    Damage::Cut(byte.parse().expect("a number")).apply(&journal);

    let old = alone().peer(peer.address()).open(&old).expect("it opens");
    old.sync_now(PATIENCE).expect("the peer is reached");
    agree(&[&peer, &old]);
    let found = contents(&peer);
    let moment = history().iter().position(|moment| *moment == found);
    let moment = moment.expect("the peer has one moment, whole");
    assert!(moment > COMMITS / 4, "only {moment} commits were saved");
}
