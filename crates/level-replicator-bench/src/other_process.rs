//! The second process of a measure: this program, started once more.
//!
//! It reads the secret from its input, prints the address it listens on, plays its role, and ends
//! when its input ends.

use std::io::{BufRead, BufReader, Read, Write, stdin};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use clap::ValueEnum;
use level_replicator::{Db, Options, Secret};

use crate::workload::ENTRY_BYTES;
use crate::{Result, latency, obey};

/// What the other process does.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    /// Lets others have what a directory holds.
    Serve,
    /// Answers the questions that others put.
    Answer,
    /// Sends back what it gets over a bare connection.
    Echo,
    /// Does what it is told.
    Obey,
}

/// A running process; dropping it lets it end.
pub(crate) struct OtherProcess {
    /// Where it listens.
    pub(crate) address: String,
    child: Child,
    input: ChildStdin,
}

impl OtherProcess {
    pub(crate) fn start(
        role: Role,
        secret: &Secret,
        directory: Option<&Path>,
    ) -> Result<OtherProcess> {
        let role = role.to_possible_value().ok_or("every role has a name")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--role", role.get_name()]);
        if let Some(directory) = directory {
            command.arg("--directory").arg(directory);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;

        let mut input = child.stdin.take().ok_or("the input is piped")?;
        writeln!(input, "{}", secret.to_hex())?;
        let mut address = String::new();
        let output = child.stdout.take().ok_or("the output is piped")?;
        BufReader::new(output).read_line(&mut address)?;
        Ok(OtherProcess {
            address: address.trim_end().to_owned(),
            child,
            input,
        })
    }

    /// Lets it end, and waits until it has.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.input);
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("the other process ended with {status}").into());
        }
        Ok(())
    }
}

/// Plays a role in this process until its input ends.
pub(crate) fn play(role: Role, directory: Option<&Path>) -> Result<()> {
    let mut secret = String::new();
    stdin().read_line(&mut secret)?;
    let secret = Secret::from_hex(secret.trim_end())?;
    match role {
        Role::Echo => echo(),
        Role::Obey => obey::play(secret, directory.ok_or("this role needs a directory")?),
        Role::Serve => {
            let db = listen(secret, directory)?;
            wait_for_end()?;
            Ok(db.close()?)
        }
        Role::Answer => {
            let db = listen(secret, directory)?;
            let events = db.events();
            std::thread::scope(|scope| {
                let answer = || latency::answer(&db, events).map_err(|error| error.to_string());
                let answers = scope.spawn(answer);
                let ended = wait_for_end();
                // Closing ends the events, and with them the answers.
                db.close()?;
                answers
                    .join()
                    .map_err(|_| "the answering thread panicked")??;
                ended
            })
        }
    }
}

fn listen(secret: Secret, directory: Option<&Path>) -> Result<Db> {
    let directory = directory.ok_or("this role needs a directory")?;
    let db = Options::new()
        .secret(secret)
        .listen("127.0.0.1:0")
        .open(directory)?;
    let address = db.status().listen.ok_or("the database listens")?;
    println!("{address}");
    Ok(db)
}

fn echo() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut entry = [0; ENTRY_BYTES];
    while stream.read_exact(&mut entry).is_ok() {
        stream.write_all(&entry)?;
    }
    Ok(())
}

fn wait_for_end() -> Result<()> {
    stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
