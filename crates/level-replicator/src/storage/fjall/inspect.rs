//! Looks at the engine's files before the engine does, for damage that it would not notice or would
//! answer by removing data.
//!
//! The engine takes a tree without its file `current` for one that was never made, and removes it. It
//! does not compare a manifest with its checksum. It reserves memory for a list of sections before it
//! compares the checksum of that. And it cuts a journal where it does not understand it, as if nothing
//! came after: right for what an end of the process cut short, but not for damage.
//!
//! ```text
//! version             the engine's format
//! 7.jnl               a journal; the one with the highest number is being written
//! keyspaces/0         a tree: the engine's own
//! keyspaces/1         a tree: our tables
//!   current           number of the manifest:u64 its XXH3-128:u128 0:u8
//!   v3                the manifest: which tables there are, in which order
//!   tables/12         a table; each of its blocks has a checksum, which the engine compares
//!
//! journal   = batch*
//! batch     = 1:u8 items:u32 seqno:u64 item* 3:u8 XXH3-64 of the items:u64 "FJL" 3:u8
//! item      = 2:u8 kind:u8 compression:u8 tree:u64 key-length:u16 value-length:u32
//!             stored-length:u32 key value
//! sections  = bytes "TOC!" count:u32 (position:u64 length:u64 name-length:u16 name)*
//!             "SFA!" 1:u8 0:u8 XXH3-128 from "TOC!" on:u128 position of "TOC!":u64 length:u64
//! ```
//!
//! Integers are little-endian. Manifests and tables consist of sections.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

const VERSION: &str = "version";
const LOCK: &str = "lock";
const KEYSPACES: &str = "keyspaces";
const CURRENT: &str = "current";
const TABLES: &str = "tables";
const JOURNAL: &str = "jnl";

/// The engine's own tree, and the only one that we make.
const TREES: [&str; 2] = ["0", "1"];

/// Number of the manifest, checksum, kind of the checksum.
const CURRENT_LEN: usize = 8 + 16 + 1;

/// Tags of a journal's entries, and what a batch ends in.
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const TRAILER: [u8; 4] = *b"FJL\x03";

/// The engine's numbers of batches end at the half of this, and it panics there.
const SEQNO_MAX: u64 = 1 << 62;

/// A loss of power leaves zeros where a sector was not written.
const SECTOR: u64 = 512;

/// How much of a journal is read in one go.
const CHUNK: usize = 64 << 10;

/// What a list of sections begins with, and what follows it at the end of the file.
const SECTIONS: [u8; 4] = *b"TOC!";
const SECTIONS_END: [u8; 6] = *b"SFA!\x01\x00";
const SECTIONS_END_LEN: usize = 6 + 16 + 8 + 8;

/// A list has about ten sections with short names.
const SECTIONS_LEN_MAX: usize = 64 << 10;

/// What is wrong with which file.
#[derive(Debug)]
pub(super) struct Damage {
    pub(super) file: PathBuf,
    pub(super) problem: String,
}

/// Looks at the files of an engine that was once made whole. Changes nothing.
pub(super) fn inspect(engine: &Path) -> Result<(), Damage> {
    let version = engine.join(VERSION);
    match read(&version)? {
        None => return damaged(&version, "it is missing"),
        // Of another version the engine says so itself.
        Some(bytes) if bytes.len() != 4 || !bytes.starts_with(b"FJL") => {
            return damaged(&version, "it does not say \"FJL\" and a number");
        }
        Some(_) => {}
    }
    if !exists(&engine.join(LOCK))? {
        return damaged(&engine.join(LOCK), "it is missing");
    }
    for tree in TREES {
        inspect_tree(&engine.join(KEYSPACES).join(tree))?;
    }
    for name in names(&engine.join(KEYSPACES))? {
        let path = engine.join(KEYSPACES).join(&name);
        // At any other directory the engine panics, or removes it.
        if !TREES.contains(&name.as_str()) && path.is_dir() {
            return damaged(&path, "it does not belong there");
        }
    }
    inspect_journals(engine)
}

/// Compares a tree's manifest with its checksum.
fn inspect_tree(tree: &Path) -> Result<(), Damage> {
    let current = tree.join(CURRENT);
    let Some(bytes) = read(&current)? else {
        return damaged(&current, "it is missing");
    };
    if bytes.len() != CURRENT_LEN {
        return damaged(
            &current,
            format!("it has {} bytes, not {CURRENT_LEN}", bytes.len()),
        );
    }
    let (number, rest) = bytes.split_at(8);
    let number = u64::from_le_bytes(number.try_into().expect("8 bytes"));
    let checksum = u128::from_le_bytes(rest[..16].try_into().expect("16 bytes"));

    let manifest = tree.join(format!("v{number}"));
    let Some(bytes) = read(&manifest)? else {
        return damaged(
            &manifest,
            "it is missing, or the file current beside it is damaged",
        );
    };
    if xxh3_128(&bytes) != checksum {
        return damaged(
            &manifest,
            "its checksum, in the file current beside it, does not match",
        );
    }

    let tables = tree.join(TABLES);
    for table in tables_of(&bytes).unwrap_or_default() {
        let table = tables.join(table.to_string());
        if !exists(&table)? {
            return damaged(&table, "it is missing");
        }
        inspect_sections(&table)?;
    }
    for name in names(&tables)? {
        let table = tables.join(&name);
        // What macOS leaves everywhere.
        if name == ".DS_Store" || name.starts_with("._") {
            continue;
        }
        if name.parse::<u64>().is_err() || table.is_dir() {
            return damaged(&table, "it does not belong there");
        }
    }
    Ok(())
}

/// The numbers of the tables that a manifest names; `None` if it is not understood.
fn tables_of(manifest: &[u8]) -> Option<Vec<u64>> {
    let end = manifest.len().checked_sub(SECTIONS_END_LEN)?;
    let position = u64::from_le_bytes(manifest[end + 22..end + 30].try_into().ok()?);
    let mut list = Fields(manifest.get(usize::try_from(position).ok()?..end)?);
    list.take(SECTIONS.len())?;
    let mut sections = (0..list.u32()?).map(|_| {
        let (position, len) = (list.u64()?, list.u64()?);
        let name_len = list.u16()?;
        Some((list.take(name_len.into())?, position, len))
    });
    let (_, position, len) =
        sections.find_map(|section| section.filter(|(name, ..)| *name == TABLES.as_bytes()))?;
    let section = position..position.checked_add(len)?;
    let section = usize::try_from(section.start).ok()?..usize::try_from(section.end).ok()?;
    let mut fields = Fields(manifest.get(section)?);

    let mut tables = Vec::new();
    for _level in 0..fields.u8()? {
        for _run in 0..fields.u8()? {
            for _table in 0..fields.u32()? {
                tables.push(fields.u64()?);
                // Kind and value of the checksum, and a number that is added to those of its batches.
                fields.take(1 + 16 + 8)?;
            }
        }
    }
    Some(tables)
}

/// Takes apart what was checked by its checksum before.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// Compares a table's list of sections with its checksum.
fn inspect_sections(table: &Path) -> Result<(), Damage> {
    let matches = || {
        let mut file = File::open(table)?;
        let len = file.metadata()?.len();
        let Some(end) = len.checked_sub(SECTIONS_END_LEN as u64) else {
            return Ok(false);
        };
        let mut tail = [0; SECTIONS_END_LEN];
        file.seek(SeekFrom::Start(end))?;
        file.read_exact(&mut tail)?;
        let checksum = u128::from_le_bytes(tail[6..22].try_into().expect("16 bytes"));
        let position = u64::from_le_bytes(tail[22..30].try_into().expect("8 bytes"));
        let list_len = end.checked_sub(position);
        let list_len = list_len.and_then(|len| usize::try_from(len).ok());
        let Some(list_len) = list_len.filter(|len| *len <= SECTIONS_LEN_MAX) else {
            return Ok(false);
        };
        let mut list = vec![0; list_len];
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(&mut list)?;
        Ok(tail.starts_with(&SECTIONS_END)
            && list.starts_with(&SECTIONS)
            && xxh3_128(&list) == checksum)
    };
    if !matches().map_err(cannot_read(table))? {
        return damaged(
            table,
            "the list of its sections, at its end, does not match its checksum",
        );
    }
    Ok(())
}

fn inspect_journals(engine: &Path) -> Result<(), Damage> {
    let mut numbers = Vec::new();
    for name in names(engine)? {
        if let Some(number) = name
            .strip_suffix(JOURNAL)
            .and_then(|name| name.strip_suffix('.'))
        {
            match number.parse::<u64>() {
                Ok(number) => numbers.push(number),
                Err(_) => return damaged(&engine.join(name), "it does not belong there"),
            }
        }
    }
    numbers.sort_unstable();
    if numbers.is_empty() {
        return damaged(&engine.join("*.jnl"), "the journal is missing");
    }

    let mut seqno = None;
    for (place, number) in numbers.iter().enumerate() {
        let path = journal(engine, *number);
        // Journals are numbered one by one, and the oldest are removed first.
        if place > 0 && numbers[place - 1] + 1 != *number {
            return damaged(&journal(engine, *number - 1), "it is missing");
        }
        let problem = Journal::open(&path).and_then(|mut journal| journal.inspect(&mut seqno));
        if let Some(problem) = problem.map_err(cannot_read(&path))? {
            return damaged(&path, problem);
        }
    }
    Ok(())
}

fn journal(engine: &Path, number: u64) -> PathBuf {
    engine.join(format!("{number}.{JOURNAL}"))
}

/// What there is at some place of a journal.
enum Found {
    /// A batch, and its number.
    Whole(u64),
    /// Less than a batch, or none.
    Part,
    /// A batch whose end is not what the engine wrote.
    Damaged,
}

/// Reads a journal batch by batch.
struct Journal {
    reader: BufReader<File>,
    position: u64,
    len: u64,
    chunk: Vec<u8>,
}

impl Journal {
    fn open(path: &Path) -> io::Result<Journal> {
        let file = File::open(path)?;
        Ok(Journal {
            len: file.metadata()?.len(),
            reader: BufReader::new(file),
            position: 0,
            chunk: vec![0; CHUNK],
        })
    }

    /// Answers what is wrong with it, if anything is that an end of the process, or a loss of power,
    /// does not explain.
    fn inspect(&mut self, seqno: &mut Option<u64>) -> io::Result<Option<String>> {
        while self.position < self.len {
            let start = self.position;
            let damage = || Ok(Some(format!("the batch at byte {start} is damaged")));
            let found = match self.read_batch()? {
                Found::Whole(seqno) => seqno,
                Found::Part if self.is_cut_short(start)? => return Ok(None),
                Found::Part | Found::Damaged => return damage(),
            };
            // The engine's checksum does not cover the number.
            if found > SEQNO_MAX || seqno.is_some_and(|last| found <= last) {
                return Ok(Some(format!("the batch at byte {start} is out of order")));
            }
            *seqno = Some(found);
        }
        Ok(None)
    }

    /// Goes to the end of a batch.
    fn read_batch(&mut self) -> io::Result<Found> {
        let Some(start) = self.take::<13>()? else {
            return Ok(Found::Part);
        };
        if start[0] != START {
            return Ok(Found::Part);
        }
        let items = u32::from_le_bytes(start[1..5].try_into().expect("4 bytes"));
        let seqno = u64::from_le_bytes(start[5..13].try_into().expect("8 bytes"));
        let mut hasher = Xxh3::new();
        for _ in 0..items {
            let Some(item) = self.take::<21>()? else {
                return Ok(Found::Part);
            };
            let key_len = u16::from_le_bytes(item[11..13].try_into().expect("2 bytes"));
            let stored_len = u32::from_le_bytes(item[17..21].try_into().expect("4 bytes"));
            let left = u64::from(key_len) + u64::from(stored_len);
            if item[0] != ITEM || left > self.len - self.position {
                return Ok(Found::Part);
            }
            hasher.update(&item);
            self.hash(&mut hasher, left)?;
        }
        let Some(end) = self.take::<13>()? else {
            return Ok(Found::Part);
        };
        let checksum = u64::from_le_bytes(end[1..9].try_into().expect("8 bytes"));
        if checksum != hasher.digest() {
            return Ok(Found::Part);
        }
        Ok(if end[0] == END && end[9..] == TRAILER {
            Found::Whole(seqno)
        } else if end[0] == 0 || end[9..].contains(&0) {
            // As if a sector was not written.
            Found::Part
        } else {
            Found::Damaged
        })
    }

    fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        if N as u64 > self.len - self.position {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(Some(bytes))
    }

    fn hash(&mut self, hasher: &mut Xxh3, mut left: u64) -> io::Result<()> {
        while left > 0 {
            let len = left.min(CHUNK as u64);
            let chunk = &mut self.chunk[..len as usize];
            self.reader.read_exact(chunk)?;
            hasher.update(chunk);
            self.position += len;
            left -= len;
        }
        Ok(())
    }

    /// Whether a batch that is not whole is the last, cut short by an end of the process, or has a
    /// hole, as a loss of power leaves it. The end of a batch is written last: with one, it was whole.
    fn is_cut_short(&mut self, start: u64) -> io::Result<bool> {
        self.reader.seek(SeekFrom::Start(start))?;
        let mut zeros = 0;
        // The last bytes read: room for the end of a batch.
        let mut last = [0; 13];
        loop {
            let count = self.reader.read(&mut self.chunk)?;
            if count == 0 {
                return Ok(true);
            }
            for &byte in &self.chunk[..count] {
                zeros = if byte == 0 { zeros + 1 } else { 0 };
                if zeros >= SECTOR {
                    return Ok(true);
                }
                last.copy_within(1.., 0);
                last[12] = byte;
                if last[0] == END && last[9..] == TRAILER {
                    return Ok(false);
                }
            }
        }
    }
}

/// The names in a directory.
fn names(directory: &Path) -> Result<Vec<String>, Damage> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return damaged(directory, "it is missing");
        }
        entries => entries.map_err(cannot_read(directory))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names
        .collect::<io::Result<_>>()
        .map_err(cannot_read(directory))
}

fn exists(path: &Path) -> Result<bool, Damage> {
    path.try_exists().map_err(cannot_read(path))
}

/// The bytes of a small file; `None` if it is missing.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Damage> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot_read(path)(error)),
    }
}

fn cannot_read(path: &Path) -> impl Fn(io::Error) -> Damage {
    move |error| Damage {
        file: path.to_owned(),
        problem: format!("it cannot be read: {error}"),
    }
}

fn damaged<T>(file: &Path, problem: impl Into<String>) -> Result<T, Damage> {
    Err(Damage {
        file: file.to_owned(),
        problem: problem.into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use level_replicator_core::storage::{Batch, Storage as _, Table};
    use tempfile::TempDir;

    use super::super::{FjallOptions, FjallStorage};
    use super::*;

    const BATCHES: u8 = 40;

    /// The engine of a database as a kill leaves it, with its batches in the journal.
    fn killed() -> (TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let live = place.path().join("live");
        let storage = FjallStorage::open(&live, &FjallOptions::default()).unwrap();
        for number in 1..=BATCHES {
            let mut batch = Batch::default();
            batch.put(Table::Data, vec![number], vec![number; 1_000]);
            batch.put(Table::Pending, vec![number], Vec::new());
            storage.commit(batch).unwrap();
        }
        let killed = place.path().join("killed");
        copy(&live.join("engine"), &killed);
        drop(storage);
        // The engine reserves room behind what it wrote.
        let journal = journal(&killed, 0);
        let mut bytes = fs::read(&journal).unwrap();
        bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1);
        fs::write(&journal, bytes).unwrap();
        (place, killed)
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy(&path, &target);
            } else {
                fs::copy(&path, &target).unwrap();
            }
        }
    }

    /// Changes the bytes of the first journal.
    fn edit(engine: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let journal = journal(engine, 0);
        let mut bytes = fs::read(&journal).unwrap();
        change(&mut bytes);
        fs::write(&journal, bytes).unwrap();
    }

    #[track_caller]
    fn is_damaged(engine: &Path, file: &Path, words: &str) {
        let damage = inspect(engine).unwrap_err();
        assert_eq!(damage.file, file);
        assert!(damage.problem.contains(words), "{damage:?}");
    }

    #[test]
    fn what_an_end_of_the_process_leaves_is_no_damage() {
        let (_place, engine) = killed();
        inspect(&engine).unwrap();
        let len = fs::metadata(journal(&engine, 0)).unwrap().len() as usize;
        for cut in (1..60).chain((60..2_300).step_by(31)) {
            edit(&engine, |bytes| bytes.truncate(len - cut));
            inspect(&engine).unwrap();
        }
        edit(&engine, |bytes| bytes.extend([0; 5_000]));
        inspect(&engine).unwrap();
        edit(&engine, Vec::clear);
        inspect(&engine).unwrap();
    }

    #[test]
    fn a_sector_that_was_never_written_is_no_damage() {
        let (_place, engine) = killed();
        edit(&engine, |bytes| bytes[10_240..10_752].fill(0));
        inspect(&engine).unwrap();
    }

    #[test]
    fn each_changed_byte_of_a_journal_is_damage_but_for_the_number_of_a_batch() {
        let (_place, engine) = killed();
        let file = journal(&engine, 0);
        let len = fs::metadata(&file).unwrap().len() as usize;
        let batch = len / usize::from(BATCHES);
        // One batch in the middle, and the last.
        for offset in (10 * batch..11 * batch).chain(len - batch..len) {
            let within = offset % batch;
            if (60..batch - 60).contains(&within) && !within.is_multiple_of(13) {
                continue;
            }
            edit(&engine, |bytes| bytes[offset] ^= 0x40);
            let found = inspect(&engine);
            edit(&engine, |bytes| bytes[offset] ^= 0x40);
            match found {
                Err(damage) => assert_eq!(damage.file, file),
                // A greater number of the last batch changes nothing.
                Ok(()) => assert!((5..12).contains(&within), "{offset} of {len}"),
            }
        }
        inspect(&engine).unwrap();
    }

    #[test]
    fn a_journal_that_is_missing_between_two_is_damage() {
        let (_place, engine) = killed();
        fs::write(journal(&engine, 2), "").unwrap();
        is_damaged(&engine, &journal(&engine, 1), "missing");
    }

    #[test]
    fn a_journal_that_goes_back_in_time_is_damage() {
        let (_place, engine) = killed();
        fs::copy(journal(&engine, 0), journal(&engine, 1)).unwrap();
        is_damaged(&engine, &journal(&engine, 1), "out of order");
    }

    #[test]
    fn a_directory_that_the_engine_would_remove_or_panic_at_is_damage() {
        let (_place, engine) = killed();
        fs::write(engine.join("keyspaces/.DS_Store"), "").unwrap();
        fs::write(engine.join("keyspaces/1/tables/.DS_Store"), "").unwrap();
        inspect(&engine).unwrap();
        for name in [
            "keyspaces/2",
            "keyspaces/lost+found",
            "keyspaces/1/tables/x",
        ] {
            let directory = engine.join(name);
            fs::create_dir(&directory).unwrap();
            is_damaged(&engine, &directory, "does not belong there");
            fs::remove_dir(&directory).unwrap();
        }
    }
}
