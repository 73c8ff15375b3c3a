//! An empty replica gets all keys of one whose log is reclaimed, once undisturbed and once killed one
//! second after each start.

use std::path::Path;
use std::time::{Duration, Instant};

use level_replicator::Secret;

use super::Findings;
use crate::Result;
use crate::processes::{Node, high_water, number as parse};
use crate::report::number;

const SPACE: u64 = 1;
const KILLS_MAX: u64 = 200;

/// All lives together get at most so much more than one that is left alone, from so many keys on: each
/// kill may cost the mebibyte that is applied at once.
const GOAL: f64 = 1.2;
const GOAL_KEYS: u64 = 1_000_000;

/// What one size of data cost.
struct Joined {
    keys: u64,
    alone: Life,
    lives: Vec<Life>,
    /// Most memory of the side that sends, after the undisturbed run and at the end.
    server: [u64; 2],
    sent: [u64; 2],
    took: Duration,
}

/// One life of the joining replica.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    bytes: u64,
    records: u64,
    memory: u64,
    opened: Duration,
    ended: Duration,
    is_done: bool,
}

pub(crate) fn prove(keys: u64, life_ms: u64, growth: u32, findings: &mut Findings) -> Result<()> {
    findings.say(format_args!(
        "\n### An empty replica joins, and is killed {life_ms} ms after each start\n"
    ));
    let sizes = [keys / 10, keys];
    let mut all = Vec::new();
    for keys in sizes {
        all.push(join(
            keys,
            Duration::from_millis(life_ms),
            growth,
            findings,
        )?);
    }
    findings.say("| keys | run | lives | received bytes | sent bytes | records | seconds | most memory, joining | most memory, sending |");
    findings.say("|---|---|---|---|---|---|---|---|---|");
    for joined in &all {
        let Joined {
            keys,
            alone,
            lives,
            server,
            sent,
            took,
        } = joined;
        let sum = |get: fn(&Life) -> u64| lives.iter().map(get).sum::<u64>() as f64;
        let most = lives.iter().map(|life| life.memory).max().unwrap_or(0);
        let runs = [
            (
                "undisturbed",
                1,
                alone.bytes as f64,
                sent[0],
                alone.records as f64,
                alone.ended,
                alone.memory,
                server[0],
            ),
            (
                "killed",
                lives.len(),
                sum(|life| life.bytes),
                sent[1],
                sum(|life| life.records),
                *took,
                most,
                server[1],
            ),
        ];
        for (run, lives, bytes, sent, records, took, joining, sending) in runs {
            findings.say(format_args!(
                "| {} | {run} | {lives} | {} | {} | {} | {:.2} | {} | {} |",
                number(*keys as f64),
                number(bytes),
                number(sent as f64),
                number(records),
                took.as_secs_f64(),
                number(joining as f64),
                number(sending as f64),
            ));
        }
    }
    findings.say("");
    for joined in &all {
        let opens = || joined.lives.iter().map(|life| life.opened.as_secs_f64());
        let mean = opens().sum::<f64>() / joined.lives.len() as f64;
        findings.say(format_args!(
            "{} keys: start and open took {mean:.3} s on average, at most {:.3} s.",
            joined.keys,
            opens().fold(0.0, f64::max)
        ));
    }
    findings.say("");
    for joined in &all {
        let lives = &joined.lives;
        let keys = joined.keys;
        // What was on its way to somebody who was killed counts too.
        let ratio = joined.sent[1] as f64 / joined.sent[0] as f64;
        let is_done = lives.last().is_some_and(|life| life.is_done);
        findings.expect(
            is_done,
            format_args!("{keys} keys: it ends, after {} kills", lives.len() - 1),
        );
        let what =
            format!("{keys} keys: all lives are sent {ratio:.3} times what one undisturbed run is");
        if keys < GOAL_KEYS {
            findings.say(format_args!("* {what}"));
        } else {
            findings.expect(ratio <= GOAL, format_args!("{what}, at most {GOAL}"));
        }
    }
    Ok(())
}

fn join(keys: u64, mut life: Duration, growth: u32, findings: &mut Findings) -> Result<Joined> {
    let scratch = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let place = |name: &str| scratch.path().join(name);
    let mut filler = Node::start(&place("server"), &secret, "reclaim=200")?;
    filler.ask(&format!("fill {SPACE} 0 {keys} 0"))?;
    filler.wait_until_reclaimed()?;
    filler.close()?;

    // Another process, so that its memory is that of sending alone.
    let options = "listen=127.0.0.1:0 reclaim=200";
    let mut server = Node::start(&place("server"), &secret, options)?;
    let before = server.wait_until_reclaimed()?;
    let digest = before.text("digest").to_owned();
    let alone = live(&place("alone"), &secret, &server.address, None)?;
    let between = server.status()?;
    let server_alone = high_water(&server.process().to_string())?;

    let began = Instant::now();
    let mut lives: Vec<Life> = Vec::new();
    while lives.last().is_none_or(|life| !life.is_done) && lives.len() as u64 <= KILLS_MAX {
        let lived = live(&place("killed"), &secret, &server.address, Some(life))?;
        eprintln!("{keys} keys, life {}: {lived:?}", lives.len() + 1);
        lives.push(lived);
        life += life * growth / 100;
    }
    let took = began.elapsed();
    let after = server.status()?;
    let mut joined = Node::start(&place("killed"), &secret, "")?;
    let status = joined.wait_until("its keys are counted", |status| {
        status.text("digest") != "?"
    })?;
    findings.expect(
        status.text("digest") == digest
            && status.number("keys")? == keys
            && status.text("settled") == "1",
        format_args!("{keys} keys: the killed replica ends with the same digest"),
    );
    let wrong = joined
        .ask(&format!("check {SPACE} 0 {keys} 0"))?
        .number("wrong")?;
    findings.expect(
        wrong == 0,
        format_args!("{keys} keys: all of them hold their value ({wrong} do not)"),
    );
    joined.close()?;
    let sent = |from: &crate::processes::Answer, to: &crate::processes::Answer| {
        Ok::<_, crate::Failure>(to.number("sent")? - from.number("sent")?)
    };
    let joined = Joined {
        keys,
        alone,
        lives,
        server: [server_alone, high_water(&server.process().to_string())?],
        sent: [sent(&before, &between)?, sent(&between, &after)?],
        took,
    };
    server.close()?;
    Ok(joined)
}

/// Lets the joining replica live until it is equal, or for so long.
fn live(directory: &Path, secret: &Secret, server: &str, most: Option<Duration>) -> Result<Life> {
    let began = Instant::now();
    // A first write or a status is not waited for: every moment of a life counts.
    let mut node = Node::start(directory, secret, "reclaim=200")?;
    let mut life = Life {
        opened: began.elapsed(),
        ..Life::default()
    };
    node.say(&format!("join {server}"))?;
    let killer = most.map(|most| {
        let (process, left) = (node.process(), most.saturating_sub(began.elapsed()));
        Killer::start(process, left)
    });
    while let Some(line) = node.hear()? {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["came", bytes, records, memory] => {
                life.bytes = parse(bytes)?;
                life.records = parse(records)?;
                life.memory = parse(memory)?;
            }
            ["ok", ..] => {
                life.is_done = true;
                break;
            }
            _ => return Err(line.into()),
        }
    }
    life.ended = began.elapsed();
    let was_killed = killer.is_some_and(Killer::stop);
    if life.is_done && !was_killed {
        let status = node.status()?;
        life.bytes = status.number("received")?;
        life.records = status.number("received_records")?;
        life.memory = high_water(&node.process().to_string())?;
        node.close()?;
    } else {
        life.is_done = false;
        node.kill()?;
    }
    Ok(life)
}

/// Kills a process after some time, unless it is stopped before.
struct Killer {
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<bool>,
}

impl Killer {
    fn start(process: u32, after: Duration) -> Killer {
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            if stopped.recv_timeout(after).is_ok() {
                return false;
            }
            let process = process.to_string();
            let killed = std::process::Command::new("kill")
                .args(["-KILL", &process])
                .status();
            killed.is_ok_and(|status| status.success())
        });
        Killer { stop, thread }
    }

    /// Answers whether it killed.
    fn stop(self) -> bool {
        // It has killed already if it does not listen any more.
        let _ = self.stop.send(());
        self.thread.join().unwrap_or(true)
    }
}
