//! `status`, `peers`, `conflicts`, `digest`, `retire`, `sync`: looking and steering.

use std::io::Write;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::values::print_line;
use super::{Failure, UsageError, picture};
use crate::args::{JsonArgs, RetireArgs, StatusArgs, SyncArgs};
use crate::door::{self, Door};
use crate::json;
use crate::output::{bytes, count};
use crate::report;

pub(crate) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let mut door = Door::open(&args.door)?;
    let mut look = || match &mut door {
        Door::Daemon(client) => door::text(client.call(&[b"LR.STATUS"])?),
        Door::Directory(db) => Ok(report::status_json(db)),
    };
    if args.watch {
        return picture::run(|| Ok(serde_json::from_str(&look()?)?));
    }
    let told = look()?;
    if args.json {
        return print_line(told.as_bytes());
    }
    print_status(&serde_json::from_str(&told)?)
}

pub(crate) fn peers(args: &JsonArgs) -> Result<(), Failure> {
    let mut client = Door::daemon(&args.door, "peers")?;
    let told = door::text(client.call(&[b"LR.PEERS"])?)?;
    if args.json {
        return print_line(told.as_bytes());
    }
    let peers: Value = serde_json::from_str(&told)?;
    let mut out = std::io::stdout().lock();
    for peer in peers.as_array().into_iter().flatten() {
        writeln!(out, "{}", peer_line(peer))?;
    }
    Ok(())
}

pub(crate) fn conflicts(args: &JsonArgs) -> Result<(), Failure> {
    let keys = Door::open(&args.door)?.conflicts()?;
    if args.json {
        let keys = keys.iter().map(|key| {
            let mut object = Map::new();
            json::put(&mut object, "key", key);
            Value::Object(object)
        });
        return print_line(Value::Array(keys.collect()).to_string().as_bytes());
    }
    keys.iter().try_for_each(|key| print_line(key))
}

pub(crate) fn digest(args: &JsonArgs) -> Result<(), Failure> {
    let digest = match Door::open(&args.door)? {
        Door::Daemon(mut client) => door::text(client.call(&[b"LR.DIGEST"])?)?,
        Door::Directory(db) => format!("{:032x}", db.digest()?),
    };
    if args.json {
        let object = serde_json::json!({ "digest": digest });
        return print_line(object.to_string().as_bytes());
    }
    print_line(digest.as_bytes())
}

pub(crate) fn retire(args: &RetireArgs) -> Result<(), Failure> {
    let is_name =
        args.replica.len() == 32 && args.replica.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_name {
        let text = "REPLICA is a name of 32 hex digits, as 'status' tells them".to_owned();
        return Err(UsageError(text).into());
    }
    let mut client = Door::daemon(&args.door, "retire")?;
    client.call(&[b"LR.RETIRE", args.replica.as_bytes()])?;
    Ok(())
}

pub(crate) fn sync(args: &SyncArgs) -> Result<(), Failure> {
    let mut client = Door::daemon(&args.door, "sync")?;
    let timeout = Duration::from_secs(args.timeout);
    client.set_patience(timeout + Duration::from_secs(10))?;
    let ms = timeout.as_millis().to_string();
    client.call(&[b"LR.SYNC", ms.as_bytes()])?;
    Ok(())
}

/// What the JSON of a status says, for a person.
fn print_status(status: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let number = |name: &str| status[name].as_u64().map_or_else(|| "?".to_owned(), count);
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let mut line = |name: &str, what: String| writeln!(out, "{name:<12} {what}");
    line("replica", text(&status["replica"]))?;
    line("cluster", text(&status["cluster"]))?;
    line("listens on", text(&status["listen"]))?;
    let paused = if status["paused"] == true {
        ", paused"
    } else {
        ""
    };
    line("state", format!("{}{paused}", text(&status["sync_state"])))?;
    line("keys", number("keys"))?;
    line("conflicts", number("conflicts"))?;
    let waiting = format!(
        "{} deletes, {} log entries",
        number("deletes_waiting"),
        number("log_entries")
    );
    line("waiting", waiting)?;
    line("digest", text(&status["digest"]))?;
    line("agreed", ago(&status["agreed_at_ms"]))?;
    line("verified", ago(&status["verified_at_ms"]))?;
    let size = |name: &str| {
        status["storage"][name]
            .as_u64()
            .map_or_else(|| "?".to_owned(), bytes)
    };
    line("disk", size("disk_bytes"))?;
    let reclaim = &status["reclaim"];
    let held: Vec<String> = (reclaim["held_back_by"].as_array().into_iter().flatten())
        .map(|held| text(&held["replica"]))
        .collect();
    let epoch = match (reclaim["epoch_open"] == true, held.is_empty()) {
        (false, _) => "completed".to_owned(),
        (true, true) => "open".to_owned(),
        (true, false) => format!("open, waits for {}", held.join(", ")),
    };
    line("epoch", format!("{} {epoch}", reclaim["epoch"]))?;
    if status["storage"]["alarm"] == true {
        line(
            "ALARM",
            "the engine holds far more unsorted data than it should".to_owned(),
        )?;
    }
    for peer in status["peers"].as_array().into_iter().flatten() {
        line("peer", peer_line(peer))?;
    }
    for member in status["members"].as_array().into_iter().flatten() {
        let state = match (
            member["self"] == true,
            member["retired"] == true,
            member["excluded"] == true,
        ) {
            (true, _, _) => "this replica".to_owned(),
            (_, true, _) => "retired".to_owned(),
            (_, _, true) => format!("excluded, seen {}", ago(&member["seen_at_ms"])),
            _ => format!("seen {}", ago(&member["seen_at_ms"])),
        };
        line("member", format!("{} {state}", text(&member["replica"])))?;
    }
    Ok(())
}

fn peer_line(peer: &Value) -> String {
    let state = if peer["connected"] == true {
        "connected".to_owned()
    } else if let Some(failures) = peer["failures"].as_u64().filter(|failures| *failures > 0) {
        format!("failed {failures} times")
    } else {
        "idle".to_owned()
    };
    let lag = match peer["lag_writes"].as_u64() {
        None => "never heard".to_owned(),
        Some(0) => "has everything".to_owned(),
        Some(lag) => format!("lacks {} writes", count(lag)),
    };
    let address = peer["address"].as_str().unwrap_or("?");
    format!("{address:<24} {state}, {lag}")
}

/// How long ago a moment in milliseconds since 1970 is.
pub(super) fn ago(at_ms: &Value) -> String {
    let Some(at_ms) = at_ms.as_u64() else {
        return "never".to_owned();
    };
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
    let seconds = SystemTime::now()
        .duration_since(at)
        .unwrap_or_default()
        .as_secs();
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}
