//! `import` and `export`: everything, as JSON lines.

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
    let (input, size): (Box<dyn Read>, Option<u64>) = if args.file == Path::new("-") {
        (Box::new(std::io::stdin().lock()), None)
    } else {
        let shown = args.file.display();
        let file =
            File::open(&args.file).map_err(|error| format!("cannot read {shown}: {error}"))?;
        let size = file.metadata().ok().map(|metadata| metadata.len());
        (Box::new(file), size)
    };
    let bar = bar(size, "{wide_bar} {bytes} of {total_bytes}, {eta} left");
    let mut lines = BufReader::with_capacity(1 << 16, bar.wrap_read(input));
    let mut door = Door::open(&args.door)?;
    let mut batch = Batch::default();
    for number in 1_u64.. {
        let mut line = Vec::new();
        let read = (&mut lines)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        let refused = |what: String, done: u64| {
            format!(
                "line {number}: {what}; {} keys before it are written",
                count(done)
            )
        };
        if read.map_err(|error| refused(error.to_string(), batch.done))? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match parse(&line) {
            Ok((key, value)) => batch.add(number, key, value),
            Err(what) => {
                batch.write(&mut door)?;
                return Err(refused(what, batch.done).into());
            }
        }
        if batch.is_full() {
            batch.write(&mut door)?;
        }
    }
    batch.write(&mut door)?;
    bar.finish_and_clear();
    writeln!(std::io::stderr(), "{} keys written", count(batch.done))?;
    Ok(())
}

#[derive(Default)]
struct Batch {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first and the last line that is in it.
    lines: Option<(u64, u64)>,
    bytes: usize,
    done: u64,
}

impl Batch {
    fn add(&mut self, line: u64, key: Vec<u8>, value: Vec<u8>) {
        let first = self.lines.map_or(line, |(first, _)| first);
        self.lines = Some((first, line));
        self.bytes += key.len() + value.len();
        self.entries.push((key, value));
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= BATCH_KEYS || self.bytes >= BATCH_BYTES
    }

    fn write(&mut self, door: &mut Door) -> Result<(), Failure> {
        let Some((first, last)) = self.lines.take() else {
            return Ok(());
        };
        door.put_all(&self.entries).map_err(|error| {
            let done = count(self.done);
            format!("lines {first} to {last}: {error}; {done} keys before them are written")
        })?;
        self.done += self.entries.len() as u64;
        self.entries.clear();
        self.bytes = 0;
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
        return Err("the key is empty".to_owned());
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
