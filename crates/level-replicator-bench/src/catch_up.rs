//! P5: an empty replica gets everything from another process, and makes it durable.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use level_replicator::storage::fjall::{FjallOptions, FjallStorage};
use level_replicator::{Options, Secret};
use level_replicator_core::storage::Storage as _;

use crate::Result;
use crate::bare::BareEngine;
use crate::other_process::{OtherProcess, Role};
use crate::report::{Report, Row};
use crate::workload::{ENTRY_BYTES, Workload};

const TIMEOUT: Duration = Duration::from_secs(600);

const FILL_BATCH: usize = 1_000;

pub(crate) fn measure(keys: u32, runs: u32, report: &mut Report) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (ours, bare) = (scratch.path().join("ours"), scratch.path().join("bare"));
    let workload = Workload::new(keys);
    fill_ours(&ours, &workload)?;
    let bare = fill_bare(&bare, &workload)?;
    let secret = Secret::generate()?;
    let source = OtherProcess::start(Role::Serve, &secret, Some(&ours))?;

    let mut speed = Row::new(
        "P5 catch-up of an empty replica; the engine's scan and sorted batches of 1,000",
        "records/s",
        ">= 500,000/s",
    );
    let mut wire = Row::new(
        "P8 bytes sent per entry before encryption; key and value",
        "bytes",
        "<= 122",
    );
    for _ in 0..runs {
        let empty = tempfile::tempdir()?;
        let caught_up = catch_up(&empty.path().join("ours"), &secret, &source.address, keys)?;
        let copied = copy(&empty.path().join("bare"), &bare, keys)?;
        speed.add(caught_up.records_per_second, copied);
        wire.add(caught_up.bytes_per_entry, ENTRY_BYTES as f64);
    }
    source.end()?;
    report.add([speed, wire]);
    Ok(())
}

pub(crate) fn fill_ours(directory: &Path, workload: &Workload) -> Result<()> {
    let db = Options::new().open(directory)?;
    let mut entries = workload.inserts().peekable();
    while entries.peek().is_some() {
        let mut batch = db.batch();
        for (key, value) in entries.by_ref().take(FILL_BATCH) {
            batch.put(key, value);
        }
        batch.commit()?;
    }
    Ok(db.close()?)
}

fn fill_bare(directory: &Path, workload: &Workload) -> Result<BareEngine> {
    let mut bare = BareEngine::open(directory)?;
    for (key, value) in workload.inserts() {
        bare.replicated_put(&key, &value)?;
    }
    Ok(bare)
}

struct CaughtUp {
    records_per_second: f64,
    bytes_per_entry: f64,
}

fn catch_up(directory: &Path, secret: &Secret, source: &str, keys: u32) -> Result<CaughtUp> {
    let storage = Arc::new(FjallStorage::open(directory, &FjallOptions::default())?);
    let db = Options::new()
        .secret(secret.clone())
        .open_with(storage.clone())?;

    let start = Instant::now();
    db.add_peer(source)?;
    db.sync_now(TIMEOUT)?;
    storage.sync()?;
    let took = start.elapsed();

    let status = db.status();
    if status.keys != Some(u64::from(keys)) {
        return Err(format!("caught up with {:?} of {keys} keys", status.keys).into());
    }
    db.close()?;
    Ok(CaughtUp {
        records_per_second: f64::from(keys) / took.as_secs_f64(),
        bytes_per_entry: status.traffic.received_bytes as f64 / f64::from(keys),
    })
}

/// Records a second of the engine alone.
fn copy(directory: &Path, from: &BareEngine, keys: u32) -> Result<f64> {
    let bare = BareEngine::open(directory)?;

    let start = Instant::now();
    let copied = bare.copy_all(from)?;
    let took = start.elapsed();

    if copied != keys as usize {
        return Err(format!("copied {copied} of {keys} keys").into());
    }
    Ok(f64::from(keys) / took.as_secs_f64())
}
