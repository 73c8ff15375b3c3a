//! What can be asked for on the command line. Usage errors end with exit code 2.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

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
    /// Run a replica as a daemon, until SIGTERM or Ctrl-C
    Serve(Box<ServeArgs>),
    /// Print a new cluster secret: 64 hex digits and a newline
    Secret,
    /// Print a ticket: all that another machine needs to join the cluster
    Invite(InviteArgs),
    /// Print the value of a key
    Get(KeyArgs),
    /// Set a key to a value
    Put(PutArgs),
    /// Delete a key
    Delete(KeyArgs),
    /// Print keys and values, in the order of keys
    Range(RangeArgs),
    /// Print the changes of a replica as they come
    Watch(WatchArgs),
    /// Tell how the replica is doing
    Status(StatusArgs),
    /// Tell which addresses are known, and how they are doing
    Peers(JsonArgs),
    /// Print the keys that have several concurrent values
    Conflicts(JsonArgs),
    /// Print the concurrent values of a key
    Siblings(JsonKeyArgs),
    /// End a conflict: replace all concurrent values of a key by one
    Resolve(ResolveArgs),
    /// Send a replica away for good, so that nothing waits for it
    Retire(RetireArgs),
    /// Talk with every known peer now
    Sync(SyncArgs),
    /// Tell a daemon of a peer, until it is closed
    AddPeer(PeerArgs),
    /// Let a daemon forget a peer's address
    DropPeer(PeerArgs),
    /// Let a daemon talk with nobody, until 'resume' or a restart
    Pause(SteerArgs),
    /// End a pause
    Resume(SteerArgs),
    /// Print the fingerprint of all keys and values: equal on replicas that hold the same
    Digest(JsonArgs),
    /// Load keys and values from JSON lines or LevelDB
    Import(ImportArgs),
    /// Print all keys and values as JSON lines
    Export(ExportArgs),
    /// Copy a replica, a running one too, into a new directory: opening that restores it
    Backup(BackupArgs),
    /// Check everything that is stored, and tell what to do about what is wrong
    Verify(JsonArgs),
    /// Measure this machine: put, get, range, catch-up
    Bench(BenchArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
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

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DurabilityName {
    /// When it survives the end of the process
    Buffered,
    /// When it survives a loss of power
    Sync,
}

/// Which of several concurrent values readers see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ResolverName {
    /// The one that was written last, by its writer's clock
    LastWrite,
    /// The one that was written first
    FirstWrite,
    /// The largest, as bytes
    Largest,
    /// The smallest, as bytes
    Smallest,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object on each line
    Json,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogLevel {
    /// What needs somebody
    Error,
    /// What may need somebody
    Warn,
    /// What happened
    Info,
    /// Every conversation and change
    Debug,
}

/// Everything can also be set by the variable named beside it, or in the file given by --config; flags
/// win over variables, and those over the file.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The directory of the replica, made if it is missing
    #[arg(long, value_name = "DIR", env = "LEVEL_REPLICATOR_PATH")]
    pub(crate) path: Option<PathBuf>,
    /// The cluster: replicas of different clusters never talk [default: default]
    #[arg(long, value_name = "NAME", env = "LEVEL_REPLICATOR_CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Where peers reach this replica; port 0 picks a free one, 'none' only reaches out
    /// [default: 127.0.0.1:9000]
    #[arg(long, value_name = "HOST:PORT", env = "LEVEL_REPLICATOR_LISTEN")]
    pub(crate) listen: Option<String>,
    /// What peers are told, if it is not the address listened on
    #[arg(long, value_name = "HOST:PORT", env = "LEVEL_REPLICATOR_ADVERTISE")]
    pub(crate) advertise: Option<String>,
    /// A peer; any number
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "LEVEL_REPLICATOR_PEER",
        value_delimiter = ','
    )]
    pub(crate) peer: Vec<String>,
    /// A file with a peer on each line, read again when it changes
    #[arg(long, value_name = "FILE", env = "LEVEL_REPLICATOR_PEERS_FILE")]
    pub(crate) peers_file: Option<PathBuf>,
    /// A name all of whose addresses are peers
    #[arg(long, value_name = "NAME:PORT", env = "LEVEL_REPLICATOR_PEERS_DNS")]
    pub(crate) peers_dns: Option<String>,
    /// A command that prints a peer on each line, run every 10 seconds
    #[arg(long, value_name = "CMD", env = "LEVEL_REPLICATOR_PEERS_COMMAND")]
    pub(crate) peers_command: Option<String>,
    /// Do not look for peers on the local network
    #[arg(
        long,
        env = "LEVEL_REPLICATOR_NO_MULTICAST",
        num_args = 0..=1,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub(crate) no_multicast: Option<bool>,
    /// The group in which peers are looked for [default: 239.192.76.82:7682]
    #[arg(
        long,
        value_name = "ADDR:PORT",
        env = "LEVEL_REPLICATOR_MULTICAST_GROUP"
    )]
    pub(crate) multicast_group: Option<String>,
    /// A file with the cluster's secret; or the variable LEVEL_REPLICATOR_SECRET holds it
    #[arg(long, value_name = "FILE", env = "LEVEL_REPLICATOR_SECRET_FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// A file with a ticket, '-' for standard input: cluster, secret and a peer
    #[arg(long, value_name = "FILE", env = "LEVEL_REPLICATOR_JOIN_FILE")]
    pub(crate) join_file: Option<PathBuf>,
    /// Where Redis clients connect, or 'none' [default: 127.0.0.1:6379]
    #[arg(long, value_name = "HOST:PORT", env = "LEVEL_REPLICATOR_RESP")]
    pub(crate) resp: Option<String>,
    /// A file with the password of Redis clients; or the variable LEVEL_REPLICATOR_RESP_PASSWORD
    /// holds it
    #[arg(long, value_name = "FILE", env = "LEVEL_REPLICATOR_RESP_PASSWORD_FILE")]
    pub(crate) resp_password_file: Option<PathBuf>,
    /// Most Redis clients at once [default: 10000]
    #[arg(long, value_name = "N", env = "LEVEL_REPLICATOR_RESP_CLIENTS_MAX")]
    pub(crate) resp_clients_max: Option<usize>,
    /// Seconds after which an idle Redis client is disconnected, 0 for never [default: 0]
    #[arg(
        long,
        value_name = "SECONDS",
        env = "LEVEL_REPLICATOR_RESP_IDLE_TIMEOUT"
    )]
    pub(crate) resp_idle_timeout: Option<u64>,
    /// Where the page, the status and the metrics are, or 'none' [default: 127.0.0.1:9100]
    #[arg(long, value_name = "HOST:PORT", env = "LEVEL_REPLICATOR_HTTP")]
    pub(crate) http: Option<String>,
    /// A file with the password of that page; or the variable LEVEL_REPLICATOR_HTTP_PASSWORD holds it
    #[arg(long, value_name = "FILE", env = "LEVEL_REPLICATOR_HTTP_PASSWORD_FILE")]
    pub(crate) http_password_file: Option<PathBuf>,
    /// When a write counts as done [default: buffered]
    #[arg(long, env = "LEVEL_REPLICATOR_DURABILITY")]
    pub(crate) durability: Option<DurabilityName>,
    /// Which of several concurrent values readers see [default: last-write]
    #[arg(long, env = "LEVEL_REPLICATOR_RESOLVER")]
    pub(crate) resolver: Option<ResolverName>,
    /// Keep changes for programs that follow them: 'watch', LR.CHANGES
    #[arg(
        long,
        env = "LEVEL_REPLICATOR_CHANGE_FEED",
        num_args = 0..=1,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub(crate) change_feed: Option<bool>,
    /// Longest value in bytes, at most 64 MiB [default: 8388608]
    #[arg(long, value_name = "BYTES", env = "LEVEL_REPLICATOR_VALUE_BYTES_MAX")]
    pub(crate) value_bytes_max: Option<usize>,
    /// Seconds after which a silent member is not waited for any more [default: 1209600, 14 days]
    #[arg(long, value_name = "SECONDS", env = "LEVEL_REPLICATOR_HORIZON")]
    pub(crate) horizon: Option<u64>,
    /// A TOML file with any of these settings
    #[arg(long, value_name = "FILE", env = "LEVEL_REPLICATOR_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// How logs are written, to standard error [default: text]
    #[arg(long, env = "LEVEL_REPLICATOR_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// What is logged [default: info]
    #[arg(long, env = "LEVEL_REPLICATOR_LOG_LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
}

#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    /// Where a member of the cluster can be reached
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: String,
    /// The file with the cluster's secret; or the variable LEVEL_REPLICATOR_SECRET holds it
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// The cluster
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) cluster: String,
}

/// Where the replica is.
#[derive(Debug, Clone, Args)]
pub(crate) struct DoorArgs {
    /// A running daemon's address for Redis clients [default: 127.0.0.1:6379]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "LEVEL_REPLICATOR_AT",
        conflicts_with = "path"
    )]
    pub(crate) at: Option<String>,
    /// A directory that no daemon holds
    #[arg(long, value_name = "DIR")]
    pub(crate) path: Option<PathBuf>,
    /// A file with the daemon's password; or the variable LEVEL_REPLICATOR_RESP_PASSWORD holds it
    #[arg(long, value_name = "FILE", conflicts_with = "path")]
    pub(crate) password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// The key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long, conflicts_with = "watch")]
    pub(crate) json: bool,
    /// Draw a picture of the cluster every second, until Ctrl-C
    #[arg(long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Only keys that begin with it
    pub(crate) prefix: Option<String>,
    /// Begin behind this cursor, 0 for the first change ever [default: what comes from now on]
    #[arg(long, value_name = "CURSOR")]
    pub(crate) from: Option<String>,
    /// Print a JSON object for each change
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The directory for the copy, missing or empty; of a running daemon, on its machine
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JsonKeyArgs {
    /// The key
    pub(crate) key: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The key
    pub(crate) key: String,
    /// The value
    #[arg(allow_hyphen_values = true)]
    pub(crate) value: String,
    /// Let the value expire after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) expires_in: Option<u64>,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// The key
    pub(crate) key: String,
    /// The value
    #[arg(allow_hyphen_values = true)]
    pub(crate) value: String,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RangeArgs {
    /// The first key
    pub(crate) start: Option<String>,
    /// The key before which to end
    pub(crate) end: Option<String>,
    /// Only keys that begin with this
    #[arg(long, value_name = "P", conflicts_with_all = ["start", "end"])]
    pub(crate) prefix: Option<String>,
    /// From the last to the first
    #[arg(long)]
    pub(crate) reverse: bool,
    /// At most so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Print JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RetireArgs {
    /// The replica's name: 32 hex digits, as 'status' tells them
    #[arg(value_name = "REPLICA")]
    pub(crate) replica: String,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    /// How many seconds to wait for every peer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PeerArgs {
    /// Where the peer can be reached
    #[arg(value_name = "HOST:PORT")]
    pub(crate) address: String,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SteerArgs {
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// JSON lines, '-' for standard input
    #[arg(required_unless_present = "leveldb")]
    pub(crate) file: Option<PathBuf>,
    /// Load all keys and values of a LevelDB database instead, which no other program may have open
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    pub(crate) leveldb: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) door: DoorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// How many keys
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    pub(crate) keys: u64,
}
