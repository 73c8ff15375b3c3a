//! The `level-replicator` tool.

mod args;
mod command;
mod output;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Demo(demo) => command::demo::run(&demo),
        Command::DemoReplica(replica) => command::demo::replica::run(&replica),
        Command::Secret => command::secret::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("level-replicator: {error}");
            ExitCode::FAILURE
        }
    }
}
