//! The tool as a person meets it.

mod client;
mod commands;
mod daemon;
mod demo;
mod discovery;
mod doors;
mod follow;
mod http;
mod redis;
mod resp;
mod resp_commands;
mod resp_limits;
mod resp_protocol;
mod resp_replication;
mod resp_scans;
mod resp_transactions;
mod unit;
mod usage;

use std::process::{Command, Output};

/// Runs the tool to its end.
fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the tool runs")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_level-replicator"));
    command.args(arguments);
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("the tool prints text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("the tool prints text")
}
