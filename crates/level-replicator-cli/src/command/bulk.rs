//! `import` and `export`: everything, as JSON lines; or in, from LevelDB.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::Failure;
use crate::args::{ExportArgs, ImportArgs};
use crate::door::{Door, Span};
use crate::json;
use crate::output::count;

/// What is written at once.
const BATCH_KEYS: usize = 500;
const BATCH_BYTES: usize = 1 << 20;

/// Longest line: a value of 64 MiB, each byte of it written as an escape of six, and its key.
const LINE_BYTES_MAX: u64 = 400 << 20;

pub(crate) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let done = match &args.leveldb {
        Some(directory) => import_leveldb(directory, args)?,
        None => import_lines(args.file.as_deref().unwrap_or(Path::new("-")), args)?,
    };
    writeln!(std::io::stderr(), "{} keys written", count(done))?;
    Ok(())
}

fn import_lines(file: &Path, args: &ImportArgs) -> Result<u64, Failure> {
    let (input, size): (Box<dyn Read>, Option<u64>) = if file == Path::new("-") {
        (Box::new(std::io::stdin().lock()), None)
    } else {
        let shown = file.display();
        let file = File::open(file).map_err(|error| format!("cannot read {shown}: {error}"))?;
        let size = file.metadata().ok().map(|metadata| metadata.len());
        (Box::new(file), size)
    };
    let bar = bar(size, "{wide_bar} {bytes} of {total_bytes}, {eta} left");
    let mut lines = BufReader::with_capacity(1 << 16, bar.wrap_read(input));
    let mut importer = Importer::new(Door::open(&args.door)?, ["line", "lines"]);
    loop {
        let mut line = Vec::new();
        let read = (&mut lines)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        match read {
            Ok(0) => break,
            Ok(_) if line.trim_ascii().is_empty() => importer.skip(),
            Ok(_) => importer.add(parse(&line))?,
            Err(error) => importer.add(Err(error.to_string()))?,
        }
    }
    let done = importer.finish()?;
    bar.finish_and_clear();
    Ok(done)
}

#[cfg(feature = "leveldb")]
fn import_leveldb(directory: &Path, args: &ImportArgs) -> Result<u64, Failure> {
    use level_replicator::storage::leveldb::LevelDbReader;

    let entries = LevelDbReader::open(directory).map_err(|error| error.to_string())?;
    let bar = bar(None, "");
    let mut importer = Importer::new(Door::open(&args.door)?, ["entry", "entries"]);
    for entry in entries {
        importer.add(match entry {
            Ok((key, _)) if key.is_empty() => Err(EMPTY_KEY.to_owned()),
            Ok(entry) => Ok(entry),
            Err(error) => Err(error.to_string()),
        })?;
        bar.inc(1);
    }
    let done = importer.finish()?;
    bar.finish_and_clear();
    Ok(done)
}

#[cfg(not(feature = "leveldb"))]
fn import_leveldb(_: &Path, _: &ImportArgs) -> Result<u64, Failure> {
    Err("this build cannot read LevelDB: build the tool with `--features leveldb`, for which LevelDB's library must be installed".into())
}

const EMPTY_KEY: &str = "the key is empty";

/// Writes what comes in, a batch at a time, and says where it ended if it does.
struct Importer {
    door: Door,
    /// What is counted: one, and many.
    unit: [&'static str; 2],
    /// How many have come in.
    seen: u64,
    batch: Vec<(Vec<u8>, Vec<u8>)>,
    batch_bytes: usize,
    /// The first and the last that is in the batch.
    batch_span: (u64, u64),
    done: u64,
}

impl Importer {
    fn new(door: Door, unit: [&'static str; 2]) -> Importer {
        Importer {
            door,
            unit,
            seen: 0,
            batch: Vec::new(),
            batch_bytes: 0,
            batch_span: (0, 0),
            done: 0,
        }
    }

    fn skip(&mut self) {
        self.seen += 1;
    }

    /// Takes the next key and value, or what is wrong with it: then what came before is written, and that is the end.
    fn add(&mut self, entry: Result<(Vec<u8>, Vec<u8>), String>) -> Result<(), Failure> {
        self.seen += 1;
        let (key, value) = match entry {
            Ok(entry) => entry,
            Err(what) => {
                let at = format!("{} {}", self.unit[0], self.seen);
                self.write()?;
                let done = count(self.done);
                return Err(format!("{at}: {what}; {done} keys before it are written").into());
            }
        };
        if self.batch.is_empty() {
            self.batch_span.0 = self.seen;
        }
        self.batch_span.1 = self.seen;
        self.batch_bytes += key.len() + value.len();
        self.batch.push((key, value));
        if self.batch.len() >= BATCH_KEYS || self.batch_bytes >= BATCH_BYTES {
            self.write()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<u64, Failure> {
        self.write()?;
        Ok(self.done)
    }

    fn write(&mut self) -> Result<(), Failure> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.door.put_all(&self.batch).map_err(|error| {
            let (first, last) = self.batch_span;
            let done = count(self.done);
            let units = self.unit[1];
            format!("{units} {first} to {last}: {error}; {done} keys before them are written")
        })?;
        self.done += self.batch.len() as u64;
        self.batch.clear();
        self.batch_bytes = 0;
        Ok(())
    }
}

fn parse(line: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let parsed = serde_json::from_slice(line).map_err(|error| format!("no JSON: {error}"))?;
    let Value::Object(object) = parsed else {
        return Err("no object with a key and a value".to_owned());
    };
    let key = json::take(&object, "key")?;
    if key.is_empty() {
        return Err(EMPTY_KEY.to_owned());
    }
    Ok((key, json::take(&object, "value")?))
}

pub(crate) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let mut door = Door::open(&args.door)?;
    let keys = door.count()?;
    // Where the lines themselves are seen, a bar would only disturb them.
    let bar = if std::io::stdout().is_terminal() {
        ProgressBar::hidden()
    } else {
        bar(
            keys,
            "{wide_bar} {human_pos} of {human_len} keys, {eta} left",
        )
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    door.for_each(&Span::default(), |key, value| {
        writeln!(out, "{}", json::entry(key, value))?;
        bar.inc(1);
        Ok(true)
    })?;
    out.flush()?;
    bar.finish_and_clear();
    Ok(())
}

fn bar(len: Option<u64>, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = match len {
        Some(len) => ProgressBar::new(len),
        None => ProgressBar::new_spinner(),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) if len.is_some() => bar.with_style(style),
        _ => bar,
    }
}
