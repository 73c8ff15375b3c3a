//! What can be asked for on the command line. Usage errors end with exit code 2.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A key-value store that lives in your program and keeps itself equal to its peers.
#[derive(Debug, Parser)]
#[command(name = "level-replicator", version, about)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch replicas with real data diverge and agree again
    Demo(DemoArgs),
    /// One replica of the demo, steered over standard input
    #[command(hide = true)]
    DemoReplica(DemoReplicaArgs),
    /// Print a new cluster secret: 64 hex digits and a newline
    Secret,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How many replicas to start
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub(crate) replicas: u8,
    /// Load the lines of FILE as keys instead of the files under the current directory
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// Tell the replicas each other's addresses instead of letting them find each other
    #[arg(long)]
    pub(crate) no_multicast: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DemoReplicaArgs {
    /// The directory of the replica
    #[arg(long)]
    pub(crate) path: PathBuf,
    /// The cluster
    #[arg(long)]
    pub(crate) cluster: String,
    /// Do not look for peers by multicast
    #[arg(long)]
    pub(crate) no_multicast: bool,
}
