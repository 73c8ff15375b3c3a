//! P6: how long after a put another process can see it.
//!
//! Clocks of two processes are hard to compare, so a round trip is timed: here a key is put, the
//! other process waits for the event of its change, reads it and puts an answer, and here the same
//! is done with the answer. One way is half of that. The baseline sends one entry to and fro over
//! a bare TCP connection; both sides of both wait by sleeping, not by spinning.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use level_replicator::{Db, Event, Events, Options, Origin, Secret};

use crate::Result;
use crate::other_process::{OtherProcess, Role};
use crate::report::{Report, Row};
use crate::workload::{ENTRY_BYTES, Value};

const SAMPLES: usize = 2_000;
const WARM_UP: usize = 100;
const TIMEOUT: Duration = Duration::from_secs(10);

const QUESTION: &[u8; 16] = b"bench/question--";
const ANSWER: &[u8; 16] = b"bench/answer----";

pub(crate) fn measure(runs: u32, report: &mut Report) -> Result<()> {
    let row = |measure, goal| Row::new(measure, "ms", goal);
    let mut p50 = row("P6 put to visible elsewhere, p50; bare TCP", "<= 0.25 ms");
    let mut p99 = row("P6 put to visible elsewhere, p99; bare TCP", "<= 0.7 ms");
    for _ in 0..runs {
        let ours = run_ours()?;
        let bare = run_bare()?;
        p50.add(per_mille(&ours, 500), per_mille(&bare, 500));
        p99.add(per_mille(&ours, 990), per_mille(&bare, 990));
    }
    report.add([p50, p99]);
    report.note(format!(
        "P6 is half of a round trip, of which each run times {SAMPLES}: put, event and get in the \
         other process, put of an answer, event and get here."
    ));
    Ok(())
}

fn run_ours() -> Result<Vec<Duration>> {
    let directory = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let other = OtherProcess::start(Role::Answer, &secret, Some(&directory.path().join("other")))?;
    let db = Options::new()
        .secret(secret)
        .peer(&other.address)
        .open(directory.path().join("ours"))?;
    db.sync_now(TIMEOUT)?;
    let mut events = db.events();

    let one_way = sample(|value| {
        db.put(QUESTION, value)?;
        loop {
            let event = events.recv_timeout(TIMEOUT).ok_or("no answer came")?;
            if is_by_peer(&event) && db.get(ANSWER)?.as_deref() == Some(value) {
                return Ok(());
            }
        }
    })?;
    db.close()?;
    other.end()?;
    Ok(one_way)
}

/// Answers every question until the database is closed.
pub(crate) fn answer(db: &Db, events: Events) -> Result<()> {
    for event in events {
        if is_by_peer(&event)
            && let Some(question) = db.get(QUESTION)?
        {
            db.put(ANSWER, question)?;
        }
    }
    Ok(())
}

fn is_by_peer(event: &Event) -> bool {
    let Event::Change { origin, .. } = event else {
        return false;
    };
    matches!(origin, Origin::Peer(_))
}

fn run_bare() -> Result<Vec<Duration>> {
    let other = OtherProcess::start(Role::Echo, &Secret::generate()?, None)?;
    let mut stream = TcpStream::connect(&other.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut entry = [0; ENTRY_BYTES];
    let one_way = sample(|value| {
        entry[..value.len()].copy_from_slice(value);
        stream.write_all(&entry)?;
        Ok(stream.read_exact(&mut entry)?)
    })?;
    drop(stream);
    other.end()?;
    Ok(one_way)
}

/// Halves of the times that round trips take, ascending.
fn sample(mut round_trip: impl FnMut(&Value) -> Result<()>) -> Result<Vec<Duration>> {
    let mut random = fastrand::Rng::with_seed(0);
    let mut one_way = Vec::with_capacity(SAMPLES);
    for index in 0..WARM_UP + SAMPLES {
        let mut value = [0; size_of::<Value>()];
        random.fill(&mut value);
        let start = Instant::now();
        round_trip(&value)?;
        if index >= WARM_UP {
            one_way.push(start.elapsed() / 2);
        }
    }
    one_way.sort_unstable();
    Ok(one_way)
}

/// What so many of a thousand do not exceed, in milliseconds.
pub(crate) fn per_mille(ascending: &[Duration], share: usize) -> f64 {
    let at = (ascending.len() * share / 1_000).min(ascending.len() - 1);
    ascending[at].as_secs_f64() * 1_000.0
}
