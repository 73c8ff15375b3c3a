//! `status --watch`: the cluster as one replica sees it, on one screen, again and again.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Failure;
use super::look::ago;
use crate::output::{Paint, bytes, count};

/// How often the picture is drawn.
const INTERVAL: Duration = Duration::from_secs(1);

/// Peers, and members, that are shown; more are counted.
const LINES_MAX: usize = 12;

/// Moves to the first place of a terminal, and clears what is behind.
const HOME: &str = "\x1b[H\x1b[J";

/// Draws until nobody looks any more.
pub(crate) fn run(mut look: impl FnMut() -> Result<Value, Failure>) -> Result<(), Failure> {
    let paint = Paint::for_stdout();
    let is_screen = std::io::stdout().is_terminal();
    let mut before: Option<(Instant, Value)> = None;
    loop {
        let status = look()?;
        let now = Instant::now();
        let since = before
            .as_ref()
            .map(|(then, status)| (now.duration_since(*then), status));
        let picture = draw(&status, since, paint);
        let mut out = std::io::stdout().lock();
        let clear = if is_screen { HOME } else { "" };
        write!(out, "{clear}{picture}")?;
        out.flush()?;
        drop(out);
        before = Some((now, status));
        std::thread::sleep(INTERVAL);
    }
}

/// One picture: no line is longer than 80 columns.
fn draw(status: &Value, before: Option<(Duration, &Value)>, paint: Paint) -> String {
    let mut out = String::new();
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let number = |value: &Value| value.as_u64().map_or_else(|| "?".to_owned(), count);
    let rate = |name: &str| {
        let (took, before) = before?;
        let value = |status: &Value| status["traffic"][name].as_u64();
        let grown = value(status)?.saturating_sub(value(before)?);
        Some((grown as f64 / took.as_secs_f64().max(0.001)) as u64)
    };
    let speed = |name: &str| rate(name).map_or_else(|| "?".to_owned(), bytes);
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };

    let cluster = clip(&text(&status["cluster"]), 24);
    line(format!(
        "{}  replica {}",
        paint.bold(format!("cluster {cluster}")),
        text(&status["replica"])
    ));
    let (is_well, verdict) = verdict(status);
    let verdict = clip(&verdict, 80);
    line(match is_well {
        true => paint.green(verdict),
        false => paint.red(verdict),
    });
    line(String::new());
    let reclaim = &status["reclaim"];
    let epoch = match reclaim["epoch_open"] == true {
        true => "open",
        false => "completed",
    };
    line(format!(
        "keys      {:<14} conflicts {:<8} writes/s {}",
        number(&status["keys"]),
        number(&status["conflicts"]),
        status["writes_per_second"]
    ));
    line(format!(
        "sent      {:<14} received  {:<8} conversations {}",
        format!("{}/s", speed("sent_bytes")),
        format!("{}/s", speed("received_bytes")),
        number(&status["traffic"]["conversations"])
    ));
    line(format!(
        "waiting   {} deletes, {} log entries; epoch {} {epoch}",
        number(&status["deletes_waiting"]),
        number(&status["log_entries"]),
        reclaim["epoch"]
    ));
    line(format!(
        "disk      {:<14} equal to a peer {}",
        status["storage"]["disk_bytes"]
            .as_u64()
            .map_or_else(|| "?".to_owned(), bytes),
        ago(&status["agreed_at_ms"])
    ));

    let list = |name: &str| status[name].as_array().cloned().unwrap_or_default();
    let peers = list("peers");
    line(String::new());
    line(paint.bold(format!(
        "{:<34} {:<12} {:>12} {:>12}",
        "PEER", "STATE", "LACKS", "LAST EQUAL"
    )));
    for peer in peers.iter().take(LINES_MAX) {
        let state = match (peer["connected"] == true, peer["failures"].as_u64()) {
            (true, _) => "connected".to_owned(),
            (false, Some(failures)) if failures > 0 => format!("failed {failures}"),
            _ => "idle".to_owned(),
        };
        let equal = match peer["synced_ago_ms"].as_u64() {
            None => "never".to_owned(),
            Some(ms) => format!("{} s ago", ms / 1_000),
        };
        line(format!(
            "{:<34} {state:<12} {:>12} {equal:>12}",
            clip(&text(&peer["address"]), 34),
            number(&peer["lag_writes"]),
        ));
    }
    more(&mut line, peers.len());

    let members = list("members");
    line(String::new());
    line(paint.bold(format!("{:<34} {:<24}", "MEMBER", "SEEN")));
    for member in members.iter().take(LINES_MAX) {
        let seen = ago(&member["seen_at_ms"]);
        let state = match (
            member["self"] == true,
            member["retired"] == true,
            member["excluded"] == true,
        ) {
            (true, _, _) => "this replica".to_owned(),
            (_, true, _) => "retired".to_owned(),
            (_, _, true) => format!("{seen}, excluded"),
            _ => seen,
        };
        line(format!("{:<34} {state}", text(&member["replica"])));
    }
    more(&mut line, members.len());
    out
}

fn more(line: &mut impl FnMut(String), len: usize) {
    if len > LINES_MAX {
        line(format!("and {} more", len - LINES_MAX));
    }
}

/// Whether all is well, and what is not, in a sentence.
fn verdict(status: &Value) -> (bool, String) {
    let peers = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
    let count_of = |is: &dyn Fn(&Value) -> bool| peers.iter().filter(|peer| is(peer)).count();
    let cut = count_of(&|peer| peer["failures"].as_u64().is_some_and(|count| count > 0));
    let behind = count_of(&|peer| peer["lag_writes"].as_u64().is_some_and(|lag| lag > 0));
    let held = status["reclaim"]["held_back_by"]
        .as_array()
        .map_or(0, Vec::len);
    let conflicts = status["conflicts"].as_u64().unwrap_or(0);
    let mut wrong = Vec::new();
    if status["storage"]["alarm"] == true {
        wrong.push("the engine is behind with its background work".to_owned());
    }
    if status["paused"] == true {
        wrong.push("paused".to_owned());
    }
    match status["sync_state"].as_str() {
        Some("settled") | None => {}
        Some(state) => wrong.push(state.to_owned()),
    }
    if cut > 0 {
        wrong.push(format!("{cut} of {} peers cannot be reached", peers.len()));
    }
    if behind > 0 {
        wrong.push(format!("{behind} lack writes"));
    }
    if held > 0
        && status["reclaim"]["epoch_age_ms"]
            .as_u64()
            .is_some_and(|ms| ms > 60_000)
    {
        wrong.push(format!("{held} members hold deletes back"));
    }
    if conflicts > 0 {
        wrong.push(format!("{} conflicts", count(conflicts)));
    }
    if wrong.is_empty() {
        let known = match peers.len() {
            0 => "no peer is known".to_owned(),
            1 => "1 peer is known".to_owned(),
            some => format!("{some} peers are known"),
        };
        return (true, format!("all is well; {known}"));
    }
    (false, wrong.join("; "))
}

/// A text that is cut where it is too long.
fn clip(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(columns.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(peers: usize) -> Value {
        let peer = json!({"address": "a".repeat(60), "connected": false, "failures": 3, "lag_writes": 12_345_678_u64, "synced_ago_ms": null});
        let member =
            json!({"replica": "0".repeat(32), "self": false, "excluded": true, "seen_at_ms": 1});
        json!({
            "cluster": "c".repeat(90), "replica": "f".repeat(32), "sync_state": "healing", "keys": null,
            "conflicts": 1_000_000_000_u64, "writes_per_second": 123_456.7, "deletes_waiting": 7, "log_entries": 8,
            "traffic": {"conversations": 1, "sent_bytes": 10, "received_bytes": 20}, "paused": true,
            "reclaim": {"epoch": 9, "epoch_open": true, "epoch_age_ms": 100_000, "held_back_by": [{}]},
            "storage": {"disk_bytes": 123_456_789, "alarm": true}, "agreed_at_ms": null,
            "peers": vec![peer; peers], "members": vec![member; peers],
        })
    }

    #[test]
    fn it_fits_a_screen_of_80_columns_whatever_happens() {
        for peers in [0, 1, 5, 100] {
            let status = status(peers);
            let before = Some((Duration::from_secs(1), &status));
            let drawn = draw(&status, before, Paint::off());
            for line in drawn.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
            assert!(drawn.lines().count() <= 40);
            assert!(drawn.contains("the engine is behind"), "{drawn}");
        }
    }

    #[test]
    fn it_says_when_all_is_well() {
        let status = json!({"sync_state": "settled", "peers": [{"lag_writes": 0, "failures": 0}]});
        assert_eq!(
            verdict(&status),
            (true, "all is well; 1 peer is known".to_owned())
        );
    }
}
