//! The `level-replicator` tool: a replica as a daemon, and the commands with which people and scripts
//! look at one and steer it.
//!
//! It is a library only so that tests can use its parts; programs use the library `level-replicator`.

mod args;
mod command;
mod door;
pub mod feed;
pub mod http;
mod json;
mod output;
pub mod report;
pub mod resp;
mod resp_client;
mod settings;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Arguments, Command};
use command::{Failure, UsageError};

/// Runs the tool with the arguments of this process.
pub fn main() -> ExitCode {
    let outcome = run(Arguments::parse().command);
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    // Whoever read the output has seen enough, as with 'head'.
    let broken_pipe = error.downcast_ref::<io::Error>();
    if broken_pipe.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    // A text may have come over the network: it is kept to one line, and steers no terminal.
    let text = error.to_string().replace(char::is_control, " ");
    let _ = writeln!(io::stderr(), "level-replicator: {text}");
    if error.is::<UsageError>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(demo) => command::demo::run(&demo),
        Command::DemoReplica(replica) => command::demo::replica::run(&replica),
        Command::Serve(args) => command::serve::run(*args),
        Command::Secret => command::secret::run(),
        Command::Invite(args) => command::invite::run(&args),
        Command::Get(args) => command::values::get(&args),
        Command::Put(args) => command::values::put(&args),
        Command::Delete(args) => command::values::delete(&args),
        Command::Range(args) => command::range::run(&args),
        Command::Siblings(args) => command::values::siblings(&args),
        Command::Resolve(args) => command::values::resolve(&args),
        Command::Status(args) => command::look::status(&args),
        Command::Peers(args) => command::look::peers(&args),
        Command::Conflicts(args) => command::look::conflicts(&args),
        Command::Digest(args) => command::look::digest(&args),
        Command::Retire(args) => command::look::retire(&args),
        Command::Sync(args) => command::look::sync(&args),
        Command::AddPeer(args) => command::steer::add_peer(&args),
        Command::DropPeer(args) => command::steer::drop_peer(&args),
        Command::Pause(args) => command::steer::pause(&args),
        Command::Resume(args) => command::steer::resume(&args),
        Command::Import(args) => command::bulk::import(&args),
        Command::Export(args) => command::bulk::export(&args),
        Command::Watch(args) => command::watch::run(&args),
        Command::Backup(args) => command::care::backup(&args),
        Command::Verify(args) => command::care::verify(&args),
        Command::Bench(args) => command::bench::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "level-replicator", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
    }
}
