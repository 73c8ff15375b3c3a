//! P12: what is on disk beyond keys and values, while the log is needed and when it is not any more.

use level_replicator::Secret;

use crate::Result;
use crate::processes::{Node, compact, directory_bytes};
use crate::proofs::deletes::all_bytes;
use crate::report::{Report, Row};

const SPACE: u64 = 1;

pub(crate) fn measure(keys: u32, report: &mut Report) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let directory = scratch.path().join("replica");
    let row = |what, unit, goal| Row::named(format!("P12 {keys} keys: {what}"), unit, goal);
    let mut early = row(
        "bytes of rows beyond key and value, per key, before reclaiming",
        "bytes",
        "",
    );
    let mut late = row(
        "bytes of rows beyond key and value, per key, at rest",
        "bytes",
        "<= 28",
    );
    let mut log = row(
        "log rows and version vector entries at rest; before",
        "rows",
        "0",
    );
    let mut disk = row("directory at rest, merged; keys and values", "bytes", "");

    let mut node = Node::start(&directory, &secret, "reclaim=1000000")?;
    node.ask(&format!("fill {SPACE} 0 {keys} 0"))?;
    // Half of them a second time, so that there is something to forget.
    node.ask(&format!("fill {SPACE} 0 {} 1", keys / 2))?;
    let before = node.ask("rows")?;
    node.close()?;
    let mut node = Node::start(&directory, &secret, "reclaim=200")?;
    node.wait_until_reclaimed()?;
    let after = node.ask("rows")?;
    node.close()?;
    compact(&directory)?;

    let per_key = |rows: &crate::processes::Answer| {
        Ok::<_, crate::Failure>(
            (all_bytes(rows)? - rows.number("payload")?) as f64 / f64::from(keys),
        )
    };
    early.add_alone(per_key(&before)?);
    late.add_alone(per_key(&after)?);
    let superfluous = |rows: &crate::processes::Answer| {
        Ok::<_, crate::Failure>(
            (rows.number("log")?
                + rows.number("vectors")?
                + rows.number("waiting")?
                + rows.number("pending")?) as f64,
        )
    };
    log.add(superfluous(&after)?, superfluous(&before)?);
    disk.add(
        directory_bytes(&directory)? as f64,
        after.number("payload")? as f64,
    );
    report.add([early, late, log, disk]);
    Ok(())
}
