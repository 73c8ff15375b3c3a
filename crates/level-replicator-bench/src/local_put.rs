//! P1: put by one thread, while nobody else is there.
//!
//! All sides take turns of some thousand keys, so whatever else the machine does slows all alike.

use std::time::{Duration, Instant};

use level_replicator::{Options, Secret};

use crate::Result;
use crate::bare::BareEngine;
use crate::report::{Report, Row};
use crate::workload::{Key, Value, Workload};

const TURN: usize = 2_000;

pub(crate) fn measure(keys: u32, runs: u32, report: &mut Report) -> Result<()> {
    let workload = Workload::new(keys);
    let row = |measure, goal| Row::new(measure, "puts/s", goal);
    let mut insert = row("P1 put, inserting; the engine doing the same", ">= 0.9");
    let mut update = row("P1 put, updating; the engine doing the same", ">= 0.9");
    let mut plain = row("P1 put, inserting; the engine's plain put", "");
    let mut feed_insert = row("P1 put, inserting, with the change feed; without", "");
    let mut feed_update = row("P1 put, updating, with the change feed; without", "");

    for _ in 0..runs {
        let scratch = tempfile::tempdir()?;
        let directory = |name| scratch.path().join(name);
        let db = Options::new()
            .secret(Secret::generate()?)
            .open(directory("ours"))?;
        let with_feed = Options::new()
            .secret(Secret::generate()?)
            .change_feed(true)
            .open(directory("feed"))?;
        let mut bare = BareEngine::open(&directory("bare"))?;
        let bare_plain = BareEngine::open(&directory("plain"))?;
        let mut put = |key: &Key, value: &Value| Ok(db.put(key, value).map(drop)?);
        let mut put_feed = |key: &Key, value: &Value| Ok(with_feed.put(key, value).map(drop)?);
        let mut put_bare = |key: &Key, value: &Value| bare.replicated_put(key, value);
        let mut put_plain = |key: &Key, value: &Value| bare_plain.plain_put(key, value);

        let sides: [Put<'_>; 4] = [&mut put, &mut put_bare, &mut put_plain, &mut put_feed];
        let [ours, same, alone, feed] = puts_per_second(workload.inserts(), sides)?;
        insert.add(ours, same);
        plain.add(ours, alone);
        feed_insert.add(feed, ours);

        let sides: [Put<'_>; 3] = [&mut put, &mut put_bare, &mut put_feed];
        let [ours, same, feed] = puts_per_second(workload.updates(), sides)?;
        update.add(ours, same);
        feed_update.add(feed, ours);
        db.close()?;
        with_feed.close()?;
    }
    report.add([insert, update, plain, feed_insert, feed_update]);
    Ok(())
}

type Put<'a> = &'a mut dyn FnMut(&Key, &Value) -> Result<()>;

/// Lets each side put all entries, turn by turn.
fn puts_per_second<const SIDES: usize>(
    mut entries: impl Iterator<Item = (Key, Value)>,
    mut sides: [Put<'_>; SIDES],
) -> Result<[f64; SIDES]> {
    let mut took = [Duration::ZERO; SIDES];
    let mut count = 0;
    loop {
        let turn: Vec<(Key, Value)> = entries.by_ref().take(TURN).collect();
        if turn.is_empty() {
            return Ok(took.map(|took| count as f64 / took.as_secs_f64()));
        }
        count += turn.len();
        for (put, took) in sides.iter_mut().zip(&mut took) {
            let start = Instant::now();
            for (key, value) in &turn {
                put(key, value)?;
            }
            *took += start.elapsed();
        }
    }
}
