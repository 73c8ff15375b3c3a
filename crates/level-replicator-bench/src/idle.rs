//! P10: what two replicas cost that hold the same and have nothing to say.

use std::time::{Duration, Instant};

use level_replicator::Secret;

use crate::Result;
use crate::counter::Counter;
use crate::processes::{Node, processor_time, wait_until_equal};
use crate::report::{Report, Row};

const SPACE: u64 = 1;

pub(crate) fn measure(keys: u32, seconds: u32, runs: u32, report: &mut Report) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let counters = [Counter::start()?, Counter::start()?];
    let options = |at: usize| format!("listen=127.0.0.1:0 advertise={}", counters[at].address);
    let mut first = Node::start(&scratch.path().join("first"), &secret, &options(0))?;
    counters[0].pass_to(&first.address);
    first.ask(&format!("fill {SPACE} 0 {keys} 0"))?;
    let second_options = format!("{} peer={}", options(1), counters[0].address);
    let mut second = Node::start(&scratch.path().join("second"), &secret, &second_options)?;
    counters[1].pass_to(&second.address);
    second.ask("sync 600")?;
    wait_until_equal(&mut [&mut first, &mut second])?;
    first.wait_until_reclaimed()?;
    second.wait_until_reclaimed()?;
    // Opened anew, they do not remember that much was written a moment ago, and talk rarely.
    second.close()?;
    first.close()?;
    let mut first = Node::start(&scratch.path().join("first"), &secret, &options(0))?;
    counters[0].pass_to(&first.address);
    let second_options = format!("{} peer={}", options(1), counters[0].address);
    let mut second = Node::start(&scratch.path().join("second"), &secret, &second_options)?;
    counters[1].pass_to(&second.address);
    second.ask("sync 60")?;
    for node in [&mut first, &mut second] {
        node.wait_until_reclaimed()?;
        node.wait_until("the links are closed", |status| status.text("links") == "0")?;
    }

    let row = |what, unit, goal| {
        Row::named(
            format!("P10 two idle replicas of {keys} keys: {what}"),
            unit,
            goal,
        )
    };
    let mut here = row(
        "bytes of a conversation without news, from the side that dials; before encryption",
        "bytes",
        "<= 300",
    );
    let mut there = row(
        "the same, from the other side; before encryption",
        "bytes",
        "<= 300",
    );
    let mut traffic = row(
        "bytes both ways, with handshake and encryption",
        "bytes/s",
        "< 100",
    );
    let mut processor = row("processor time of the busier side", "%", "< 0.1");
    for _ in 0..runs {
        let processes = [first.process(), second.process()];
        let times = || {
            Ok::<_, crate::Failure>([processor_time(processes[0])?, processor_time(processes[1])?])
        };
        let counts = || {
            counters[0]
                .counts()
                .iter()
                .zip(counters[1].counts())
                .map(|(a, b)| a + b)
                .collect::<Vec<u64>>()
        };
        let plain = [first.status()?, second.status()?];
        let (began, count, time) = (Instant::now(), counts(), times()?);
        std::thread::sleep(Duration::from_secs(seconds.into()));
        let (took, count_after, time_after) = (began.elapsed().as_secs_f64(), counts(), times()?);
        let plain_after = [first.status()?, second.status()?];

        let used = time
            .iter()
            .zip(&time_after)
            .map(|(before, after)| (*after - *before).as_secs_f64());
        processor.add_alone(100.0 * used.fold(0.0, f64::max) / took);
        let grown = |at: usize| (count_after[at] - count[at]) as f64;
        traffic.add_alone((grown(1) + grown(2)) / took);
        let conversations =
            plain_after[0].number("conversations")? - plain[0].number("conversations")?;
        let said: u64 = plain
            .iter()
            .zip(&plain_after)
            .map(|(before, after)| Ok(after.number("sent")? - before.number("sent")?))
            .sum::<Result<u64>>()?;
        if conversations > 0 && grown(0) > 0.0 {
            eprintln!("{conversations} conversations, {said} bytes before encryption");
            let share = said as f64 / conversations as f64;
            here.add(grown(1) / grown(0), share / 2.0);
            there.add(grown(2) / grown(0), share / 2.0);
        }
    }
    report.add([here, there, traffic, processor]);
    first.close()?;
    second.close()
}
