//! `watch`: the changes of a replica, as they come.

use std::io::Write;
use std::time::Duration;

use level_replicator::Cursor;
use serde_json::{Map, Value};

use super::{Failure, UsageError};
use crate::args::WatchArgs;
use crate::door::{self, Door};
use crate::feed::Page;
use crate::json;

/// Changes that are asked for at once.
const PAGE: usize = 1_000;

/// How long a daemon waits for a change before it is asked again.
const BLOCK: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &WatchArgs) -> Result<(), Failure> {
    let prefix = args.prefix.as_deref().unwrap_or_default().as_bytes();
    if let Some(from) = &args.from {
        from.parse::<Cursor>()
            .map_err(|error| UsageError(format!("--from: {error}")))?;
    }
    match Door::open(&args.door)? {
        Door::Daemon(mut client) => {
            let mut cursor = args.from.clone().unwrap_or_else(|| "$".to_owned());
            let (page, block) = (PAGE.to_string(), BLOCK.as_millis().to_string());
            loop {
                let words = [
                    b"LR.CHANGES",
                    cursor.as_bytes(),
                    b"LIMIT",
                    page.as_bytes(),
                    b"BLOCK",
                    block.as_bytes(),
                ];
                let told = door::text(client.call(&words)?)?;
                let told: Value = serde_json::from_str(&told)?;
                let changes = told["changes"].as_array().map_or(&[][..], Vec::as_slice);
                print(changes, prefix, args.json)?;
                let Some(next) = told["cursor"].as_str() else {
                    return Err("the daemon answered no cursor: is it level-replicator?".into());
                };
                next.clone_into(&mut cursor);
            }
        }
        // Nobody writes to it: what it holds is all.
        Door::Directory(db) => {
            let mut cursor = match &args.from {
                Some(from) => from.parse()?,
                None => Cursor::START,
            };
            loop {
                let page = Page::read(&db, cursor, prefix, PAGE)?;
                if page.cursor == cursor {
                    return Ok(());
                }
                cursor = page.cursor;
                print(&page.changes, prefix, args.json)?;
            }
        }
    }
}

/// Each change on a line, and out before the next is waited for.
fn print(changes: &[Value], prefix: &[u8], as_json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for change in changes {
        let Value::Object(object) = change else {
            continue;
        };
        let key = json::take(object, "key")?;
        if !key.starts_with(prefix) {
            continue;
        }
        match as_json {
            true => writeln!(out, "{change}")?,
            false => writeln!(out, "{}", line(object, &key))?,
        }
    }
    Ok(out.flush()?)
}

fn line(change: &Map<String, Value>, key: &[u8]) -> String {
    let text = |name: &str| change.get(name).and_then(Value::as_str).unwrap_or("?");
    let value = json::take(change, "value").ok();
    let value = value.map_or_else(String::new, |value| format!(" = {}", shown(&value)));
    let mut notes = vec![text("cursor").to_owned()];
    if change.get("local") == Some(&Value::Bool(false)) {
        notes.push(format!("from {}", text("origin")));
    }
    if change.get("concurrent") == Some(&Value::Bool(true)) {
        notes.push("concurrent".to_owned());
    }
    let kind = text("kind");
    format!("{kind:<7} {}{value}  ({})", shown(key), notes.join(", "))
}

/// Bytes as they are if they are text, on one line.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}
