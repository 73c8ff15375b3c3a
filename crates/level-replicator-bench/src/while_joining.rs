//! P17: how long a local put takes while everything streams in from a peer.
//!
//! The baseline is the same replica, a moment before, with nobody there.

use std::time::{Duration, Instant};

use level_replicator::{Db, Options, Secret};

use crate::Result;
use crate::catch_up::fill_ours;
use crate::latency::per_mille;
use crate::other_process::{OtherProcess, Role};
use crate::report::{Report, Row};
use crate::workload::{Value, Workload};

const TIMEOUT: Duration = Duration::from_secs(600);

/// Puts are a little apart, as of a program that does something else too.
const PAUSE: Duration = Duration::from_micros(200);

/// Keys that are put again and again.
const LOCAL_KEYS: u64 = 1_000;

/// Puts that are timed before the peer comes.
const ALONE: usize = 20_000;

pub(crate) fn measure(keys: u32, runs: u32, report: &mut Report) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let full = scratch.path().join("full");
    fill_ours(&full, &Workload::new(keys))?;
    let secret = Secret::generate()?;
    let source = OtherProcess::start(Role::Serve, &secret, Some(&full))?;
    let row = |of: &str, goal| {
        let name = format!("P17 put while {keys} records stream in, {of}; with nobody there");
        Row::named(name, "ms", goal)
    };
    let mut p99 = row("p99", "<= 1 ms");
    let mut p999 = row("p99.9", "<= 10 ms");
    for _ in 0..runs {
        let empty = tempfile::tempdir()?;
        let db = Options::new().secret(secret.clone());
        let db = db.open(empty.path().join("ours"))?;
        let alone = put_until(&db, |count| Ok(count >= ALONE))?;
        db.add_peer(&source.address)?;
        let whole = u64::from(keys);
        let deadline = Instant::now() + TIMEOUT;
        let streaming = put_until(&db, |count| {
            if Instant::now() > deadline {
                return Err("the catch-up does not end".into());
            }
            Ok(count % 64 == 0
                && db
                    .status()
                    .keys
                    .is_some_and(|keys| keys >= whole + LOCAL_KEYS))
        })?;
        p99.add(per_mille(&streaming, 990), per_mille(&alone, 990));
        p999.add(per_mille(&streaming, 999), per_mille(&alone, 999));
        db.close()?;
    }
    source.end()?;
    report.add([p99, p999]);
    Ok(())
}

/// How long each put of one of a few keys takes, until it is enough.
fn put_until(db: &Db, mut is_enough: impl FnMut(usize) -> Result<bool>) -> Result<Vec<Duration>> {
    let value: Value = [7; size_of::<Value>()];
    let mut took = Vec::new();
    while !is_enough(took.len())? {
        let key = format!("local/{:04}", took.len() as u64 % LOCAL_KEYS);
        let since = Instant::now();
        db.put(key, value)?;
        took.push(since.elapsed());
        std::thread::sleep(PAUSE);
    }
    took.sort_unstable();
    Ok(took)
}
