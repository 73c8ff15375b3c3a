//! One replica of the demo: a process with a directory and a port of its own, steered by lines on
//! standard input. It ends, cleanly, when standard input does.

use std::io::{BufReader, BufWriter, Write, stdin, stdout};
use std::time::Duration;

use level_replicator::{Db, Options, Secret, Status, SyncState};

use super::SECRET_VARIABLE;
use super::wire::{Said, hear, say, say_entry};
use crate::args::DemoReplicaArgs;
use crate::command::Failure;

pub(crate) fn run(args: &DemoReplicaArgs) -> Result<(), Failure> {
    // The parent decides when it is over, also when somebody presses Ctrl-C for all of us.
    ctrlc::set_handler(|| {})?;
    let secret = std::env::var(SECRET_VARIABLE)
        .map_err(|_| format!("{SECRET_VARIABLE} is not set: this command is started by 'demo'"))?;
    let db = Options::new()
        .cluster(&args.cluster)
        .secret(Secret::from_hex(&secret)?)
        .listen("127.0.0.1:0")
        .multicast(!args.no_multicast)
        .first_sync_timeout(Duration::from_millis(500))
        .open(&args.path)?;

    let mut out = BufWriter::new(stdout().lock());
    let status = db.status();
    let address = status.listen.ok_or("a demo replica listens")?;
    say(&mut out, &format!("ready {address} {}", status.replica))?;
    let mut input = BufReader::new(stdin().lock());
    while let Some(said) = hear(&mut input)?
        && said.verb() != "end"
    {
        obey(&db, &said, &mut out)?;
    }
    db.close()?;
    Ok(())
}

fn obey(db: &Db, said: &Said, out: &mut impl Write) -> Result<(), Failure> {
    match said.verb() {
        "put" => {
            db.put(&said.key, &said.value)?;
        }
        "put-and-tell" => {
            db.put(&said.key, &said.value)?;
            say(out, "written")?;
        }
        "delete" => {
            db.delete(&said.key)?;
        }
        "done" => say(out, "done")?,
        "peer" => db.add_peer(said.word(1))?,
        "pause" => {
            db.pause()?;
            say(out, "paused")?;
        }
        "resume" => db.resume()?,
        "resolve" => {
            db.resolve(&said.key, &said.value)?;
        }
        "status" => tell_status(db, out)?,
        "siblings" => {
            for sibling in db.siblings(&said.key)? {
                let verb = format!("sibling {} {}", sibling.replica, sibling.stamp.as_micros());
                say_entry(out, &verb, &said.key, &sibling.value)?;
            }
            let shown = db.get(&said.key)?.unwrap_or_default();
            say_entry(out, "shown", &said.key, &shown)?;
            out.flush()?;
        }
        "dump" => {
            for entry in db.iter() {
                let (key, value) = entry?;
                say_entry(out, "entry", &key, &value)?;
            }
            say(out, "end")?;
        }
        verb => return Err(format!("unknown demo command '{verb}'").into()),
    }
    Ok(())
}

/// `status PEERS KEYS CONFLICTS SENT RECEIVED DIGEST SETTLED MULTICAST [WRITER=COUNT]..`
fn tell_status(db: &Db, out: &mut impl Write) -> Result<(), Failure> {
    let status = counted_status(db);
    let connected = status.peers.iter().filter(|peer| peer.replica.is_some());
    let mut line = format!(
        "status {} {} {} {} {} {:032x} {} {}",
        connected.count(),
        status.keys.unwrap_or(0),
        status.conflicts.unwrap_or(0),
        status.traffic.sent_bytes,
        status.traffic.received_bytes,
        db.digest()?,
        u8::from(status.sync_state == SyncState::Settled),
        u8::from(status.multicast),
    );
    for (writer, known) in status.clock.iter() {
        let writes: u64 = known
            .ranges()
            .map(|range| range.end() - range.start() + 1)
            .sum();
        line.push_str(&format!(" {writer}={writes}"));
    }
    Ok(say(out, &line)?)
}

/// The status once the keys are counted, which takes a moment after a kill.
fn counted_status(db: &Db) -> Status {
    loop {
        let status = db.status();
        if status.keys.is_some() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
