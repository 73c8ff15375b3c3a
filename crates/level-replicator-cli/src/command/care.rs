//! `backup` and `verify`.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::Failure;
use super::values::print_line;
use crate::args::{BackupArgs, JsonArgs};
use crate::door::{self, Door};
use crate::feed::verification_json;
use crate::output::{bytes, count};

/// How long a daemon may take to read everything.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a spinner turns while a daemon works.
const TICK: Duration = Duration::from_millis(100);

pub(crate) fn backup(args: &BackupArgs) -> Result<(), Failure> {
    let directory = std::path::absolute(&args.directory)?;
    let (keys, size) = match Door::open(&args.door)? {
        Door::Daemon(mut client) => {
            let path = directory
                .to_str()
                .ok_or("the directory's name is no text")?;
            let spinner = spinner("the daemon copies, its log says how far it is");
            client.set_patience(PATIENCE)?;
            let told = door::text(client.call(&[b"LR.BACKUP", path.as_bytes()])?)?;
            spinner.finish_and_clear();
            let told: Value = serde_json::from_str(&told)?;
            let number = |name: &str| told[name].as_u64().unwrap_or(0);
            (number("keys"), number("bytes"))
        }
        Door::Directory(db) => {
            let bar = bar(db.status().keys, "rows copied");
            let report = db.backup_with(&directory, |progress| bar.set_position(progress.rows))?;
            bar.finish_and_clear();
            (report.keys, report.bytes)
        }
    };
    say_done(&directory, keys, size)
}

fn say_done(directory: &Path, keys: u64, size: u64) -> Result<(), Failure> {
    let (keys, size) = (count(keys), bytes(size));
    let shown = directory.display();
    writeln!(
        std::io::stderr(),
        "{keys} keys, {size} are in {shown}: open it to restore"
    )?;
    Ok(())
}

pub(crate) fn verify(args: &JsonArgs) -> Result<(), Failure> {
    let told = match Door::open(&args.door)? {
        Door::Daemon(mut client) => {
            let spinner = spinner("the daemon checks, its log says how far it is");
            client.set_patience(PATIENCE)?;
            let told = door::text(client.call(&[b"LR.VERIFY"])?)?;
            spinner.finish_and_clear();
            told
        }
        Door::Directory(db) => {
            let bar = bar(None, "rows checked");
            let found = db.verify(|progress| {
                if let Some(total) = progress.total {
                    bar.set_length(total);
                }
                bar.set_position(progress.rows);
            })?;
            bar.finish_and_clear();
            verification_json(&found)
        }
    };
    let found: Value = serde_json::from_str(&told)?;
    if args.json {
        print_line(told.as_bytes())?;
    } else {
        print_findings(&found)?;
    }
    match found["findings_count"].as_u64() {
        Some(0) => Ok(()),
        findings => {
            let findings = count(findings.unwrap_or(0));
            Err(format!("{findings} findings: each names what to do").into())
        }
    }
}

fn print_findings(found: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let number = |name: &str| found[name].as_u64().map_or_else(|| "?".to_owned(), count);
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let findings = found["findings"].as_array().map_or(&[][..], Vec::as_slice);
    for finding in findings {
        let table = text(&finding["table"]);
        let key = match (&finding["key"], &finding["key_b64"]) {
            (Value::String(key), _) if key.is_empty() => String::new(),
            (Value::String(key), _) => format!(" {}", key.escape_debug()),
            (_, Value::String(key)) => format!(" (base 64) {key}"),
            _ => String::new(),
        };
        writeln!(out, "{table}{key}: {}", text(&finding["problem"]))?;
        writeln!(out, "    {}", text(&finding["cure"]))?;
    }
    let told = findings.len() as u64;
    let all = found["findings_count"].as_u64().unwrap_or(told);
    if all > told {
        writeln!(out, "and {} more", count(all - told))?;
    }
    let (rows, keys) = (number("rows"), number("keys"));
    if all == 0 {
        writeln!(out, "sound: {keys} keys, {rows} rows were checked")?;
    }
    Ok(())
}

fn spinner(what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(TICK);
    match ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        Ok(style) => spinner.with_style(style),
        Err(_) => spinner,
    }
}

fn bar(len: Option<u64>, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(len.unwrap_or(0));
    let template = format!("{{wide_bar}} {{human_pos}} of about {{human_len}} {what}");
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
