//! P9: two replicas are cut off from each other, one changes some keys, and they meet again: once
//! while the writes are still in the log, once after the other was given up and the log reclaimed.

use level_replicator::Secret;

use crate::Result;
use crate::counter::Counter;
use crate::processes::{Node, wait_until_equal};
use crate::report::{Report, Row};
use crate::workload::ENTRY_BYTES;

const SPACE: u64 = 1;
const CHANGED: u64 = 1_000;
const HORIZON_MS: u64 = 2_500;

pub(crate) fn measure(keys: u32, runs: u32, report: &mut Report) -> Result<()> {
    let changed = CHANGED.min(u64::from(keys));
    let mut meeting = Meeting::begin(u64::from(keys), changed)?;
    let (time, size) = ("<= 25 ms", "<= 1.15");
    for (is_healed, when) in [(false, "by the log"), (true, "below the floor: healed")] {
        let row = |what, unit, goal| {
            Row::named(
                format!("P9 {changed} of {keys} keys changed during a cut, {when}: {what}"),
                unit,
                goal,
            )
        };
        let goal = |goal| if is_healed { "" } else { goal };
        let mut took = row("from contact to equal", "ms", goal(time));
        let mut wire = row(
            "bytes both ways, with handshake and encryption; the changed keys and values",
            "bytes",
            goal(size),
        );
        let mut records = row("records sent; changed", "records", "");
        for _ in 0..runs {
            let met = meeting.again(is_healed)?;
            took.add_alone(met.ms);
            wire.add(met.bytes as f64, (changed * ENTRY_BYTES as u64) as f64);
            records.add(met.records as f64, changed as f64);
        }
        report.add([took, wire, records]);
    }
    meeting.here.close()?;
    meeting.there.close()
}

struct Meeting {
    keys: u64,
    changed: u64,
    tag: u64,
    counter: Counter,
    here: Node,
    there: Node,
    _scratch: tempfile::TempDir,
}

struct Met {
    ms: f64,
    bytes: u64,
    records: u64,
}

impl Meeting {
    fn begin(keys: u64, changed: u64) -> Result<Meeting> {
        let scratch = tempfile::tempdir()?;
        let secret = Secret::generate()?;
        let counter = Counter::start()?;
        let common = format!("horizon={HORIZON_MS} reclaim=300");
        let here = format!("{common} listen=127.0.0.1:0 advertise={}", counter.address);
        let mut here = Node::start(&scratch.path().join("here"), &secret, &here)?;
        counter.pass_to(&here.address);
        here.ask(&format!("fill {SPACE} 0 {keys} 0"))?;
        let there = format!("{common} peer={}", counter.address);
        let mut there = Node::start(&scratch.path().join("there"), &secret, &there)?;
        there.ask("sync 600")?;
        wait_until_equal(&mut [&mut here, &mut there])?;
        Ok(Meeting {
            keys,
            changed,
            tag: 0,
            counter,
            here,
            there,
            _scratch: scratch,
        })
    }

    fn again(&mut self, is_healed: bool) -> Result<Met> {
        self.here.wait_until_reclaimed()?;
        self.there.wait_until_reclaimed()?;
        let epoch = self.here.status()?.number("epoch")?;
        self.there.ask("pause")?;
        self.tag += 1;
        self.here.ask(&format!(
            "change {SPACE} {} {} {}",
            self.keys, self.changed, self.tag
        ))?;
        if is_healed {
            self.here
                .wait_until("the log is reclaimed without the other", |status| {
                    crate::processes::is_reclaimed(status)
                        && status.number("epoch").is_ok_and(|now| now > epoch)
                })?;
        }
        let before = (self.counter.counts(), self.there.status()?);
        let met = self.there.ask("meet 600")?;
        let after = (self.counter.counts(), self.there.status()?);
        if !wait_until_equal(&mut [&mut self.here, &mut self.there])? {
            return Err("the two do not agree".into());
        }
        let records = after.1.number("received_records")? - before.1.number("received_records")?;
        let bytes = |counts: [u64; 3]| counts[1] + counts[2];
        Ok(Met {
            ms: met.number("micros")? as f64 / 1_000.0,
            bytes: bytes(after.0) - bytes(before.0),
            records,
        })
    }
}
