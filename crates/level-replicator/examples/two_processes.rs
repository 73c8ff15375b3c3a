//! Two processes on one machine: the program starts itself once more, and each side writes.
//!
//! `cargo run -p level-replicator --example two_processes`

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use level_replicator::{Db, Options, Secret};

/// The environment variable by which the child gets the secret.
const SECRET: &str = "TWO_PROCESSES_SECRET";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments[1..] {
        [] => parent(),
        [directory, peer] => child(directory.as_ref(), peer),
        _ => Err("run it without arguments".into()),
    }
}

fn parent() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let secret = Secret::generate()?;
    let db = open(&directory.path().join("parent"), &secret, None)?;
    let address = db.status().listen.ok_or("the parent listens")?;

    // Arguments can be seen by everybody on the machine, so the secret is not among them.
    let mut child = Command::new(std::env::current_exe()?)
        .arg(directory.path().join("child"))
        .arg(address.as_str())
        .env(SECRET, secret.to_hex())
        .stdout(Stdio::piped())
        .spawn()?;
    db.put("from/parent", "hello, child")?;
    let answer = wait_for(&db, "from/child")?;
    println!("parent reads: {answer}");

    let output = child.stdout.take().ok_or("the child prints")?;
    for line in BufReader::new(output).lines() {
        println!("{}", line?);
    }
    child.wait()?;
    db.close()?;
    Ok(())
}

fn child(directory: &Path, peer: &str) -> Result<(), Box<dyn Error>> {
    let secret = Secret::from_hex(&std::env::var(SECRET)?)?;
    let db = open(directory, &secret, Some(peer))?;
    let greeting = wait_for(&db, "from/parent")?;
    println!("child read: {greeting}");
    let dot = db.put("from/child", "hello, parent")?;
    db.wait_replicated(dot, 1, Duration::from_secs(10))?;
    db.close()?;
    Ok(())
}

fn open(
    directory: &Path,
    secret: &Secret,
    peer: Option<&str>,
) -> Result<Db, level_replicator::Error> {
    let mut options = Options::new().secret(secret.clone()).listen("127.0.0.1:0");
    if let Some(peer) = peer {
        options = options.peer(peer);
    }
    options.open(directory)
}

/// Follows the events until a key has a value.
fn wait_for(db: &Db, key: &str) -> Result<String, Box<dyn Error>> {
    let mut events = db.events();
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(value) = db.get(key)? {
            return Ok(String::from_utf8_lossy(&value).into_owned());
        }
        events.recv_timeout(Duration::from_millis(200));
    }
    Err(format!("{key} did not arrive").into())
}
