//! P1: put by one thread, while nobody else is there.

use std::path::Path;
use std::time::Instant;

use level_replicator::{Options, Secret};

use crate::Result;
use crate::bare::BareEngine;
use crate::report::{Report, Row};
use crate::workload::{Key, Value, Workload};

pub(crate) fn measure(keys: u32, runs: u32, report: &mut Report) -> Result<()> {
    let workload = Workload::new(keys);
    let row = |measure, goal| Row::new(measure, "puts/s", goal);
    let mut insert = row("P1 put, inserting; the engine doing the same", ">= 0.9");
    let mut update = row("P1 put, updating; the engine doing the same", ">= 0.9");
    let mut plain = row("P1 put, inserting; the engine's plain put", "");

    for _ in 0..runs {
        let ours = in_new_directory(|directory| run_ours(directory, &workload))?;
        let bare = in_new_directory(|directory| run_bare(directory, &workload))?;
        let plain_put = in_new_directory(|directory| {
            let bare = BareEngine::open(directory)?;
            puts_per_second(workload.inserts(), |key, value| bare.plain_put(key, value))
        })?;
        insert.add(ours.insert, bare.insert);
        update.add(ours.update, bare.update);
        plain.add(ours.insert, plain_put);
    }
    report.add([insert, update, plain]);
    Ok(())
}

struct Speeds {
    insert: f64,
    update: f64,
}

fn run_ours(directory: &Path, workload: &Workload) -> Result<Speeds> {
    let db = Options::new().secret(Secret::generate()?).open(directory)?;
    let put = |key: &Key, value: &Value| {
        db.put(key, value)?;
        Ok(())
    };
    let speeds = Speeds {
        insert: puts_per_second(workload.inserts(), put)?,
        update: puts_per_second(workload.updates(), put)?,
    };
    db.close()?;
    Ok(speeds)
}

fn run_bare(directory: &Path, workload: &Workload) -> Result<Speeds> {
    let mut bare = BareEngine::open(directory)?;
    let mut put = |key: &Key, value: &Value| bare.replicated_put(key, value);
    Ok(Speeds {
        insert: puts_per_second(workload.inserts(), &mut put)?,
        update: puts_per_second(workload.updates(), &mut put)?,
    })
}

fn puts_per_second(
    entries: impl Iterator<Item = (Key, Value)>,
    mut put: impl FnMut(&Key, &Value) -> Result<()>,
) -> Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    for (key, value) in entries {
        put(&key, &value)?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn in_new_directory<T>(run: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let directory = tempfile::tempdir()?;
    run(&directory.path().join("data"))
}
