//! Scenarios: a cluster moved by hand, told as a text of commands and what came of them.
//!
//! The rule: nobody talks unless a command says so, and after every step of every command the oracle
//! checks whoever was touched; what it finds stands in [`Played::broken`] and cannot be blessed.
//!
//! ```text
//! config atomic_budget=0 seed=2            settings, before the replicas
//! replicas S R T                           or: replicas 100 as a chain | ring | star | random graph
//! S put KEY VALUE | delete KEY | batch put KEY VALUE, delete KEY | fill PREFIX COUNT of N bytes
//! S resolve KEY VALUE | resolver first | last | largest | joined
//! S get KEY | shows | knows | size
//! S crash | crash at commit N | crash before commit N | power-loss N | close | open | dies
//! S opens COUNT times | backup as NAME | restore NAME | clone as NAME | twin as NAME
//! S clock +1 year | loses the log entry of KEY
//! S rots the value | header | log entry of KEY     a bit flips on the disk
//! S rots the clock | floor | members | epoch | writers      in the first row
//! S keeps                                  log, deletes, histories, waiting, floor, wanted
//! S proposes | epoch | members | retires R | cannot reach R | reaches all
//! reclaim | reclaim S R                    everybody or these talk until the floor has grown
//! sync R S [quietly] [watch KEY..] [ACTION MOMENT from S]
//!     While a conversation is stopped nothing arrives in it; others may run meanwhile.
//!     ACTION: stop | cut | drop | repeat | swap | garble | truncate | oversize
//!     MOMENT: before hello | clock | records | claim | yield | plan | start | range | list | absent |
//!             floor | cluster, at byte N, after N frames (of records)
//! continue [R S] [ACTION MOMENT from S]    goes on with a conversation that was stopped
//! replay S to T                            plays what S said in the last conversation to T
//! R crashes at each commit in sync S       once for each commit, from the same disk
//! R is killed after every N frames from S  and all that is sent is not much more than once
//! wait 61 seconds | run until equal | expect equal | expect equal R S | expect R KEY VALUE
//! ```
//!
//! A value is a word, a quoted text, or `N*` for so many bytes. A line that begins with `#` is prose;
//! lines that begin with a space are output.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use level_replicator_core::clock::Clock;
use level_replicator_core::config::Config;
use level_replicator_core::resolver::Resolver;

use crate::cluster::{Cluster, Piece};
use crate::disk::Disk;
use crate::oracle::{Oracle, Shown};
use crate::trace::Trace;

use self::file::{Line, lines, words};
use self::names::Names;
use self::talk::Talk;

mod file;
mod names;
mod talk;
mod watch;

mod acts;
mod cuts;

/// A scenario that was played.
#[derive(Debug, Clone)]
pub struct Played {
    /// The scenario with the output that came of it.
    pub text: String,
    /// What must never happen and did.
    pub broken: Vec<String>,
    /// How many commands it has.
    pub commands: usize,
}

/// Plays a scenario; answers it with its output.
pub fn play(text: &str) -> String {
    run(text).text
}

/// Plays a scenario and keeps what the oracle said.
pub fn run(text: &str) -> Played {
    let mut stage = Stage::new();
    let mut played = String::new();
    let mut commands = 0;
    for line in lines(text) {
        let (Line::Prose(words) | Line::Command(words)) = line;
        played.push_str(words);
        played.push('\n');
        if let Line::Command(command) = line {
            commands += 1;
            for told in stage.obey(command) {
                played.push_str(&format!("    {told}\n"));
            }
        }
    }
    Played {
        text: played,
        broken: stage.broken,
        commands,
    }
}

/// The cluster of a scenario, and whoever watches it.
struct Stage {
    config: Config,
    cluster: Cluster,
    oracle: Oracle,
    names: Names,
    looks: Vec<Look>,
    resolvers: Vec<Resolver>,
    backups: BTreeMap<String, Disk>,
    /// Conversations that were stopped.
    talks: Vec<Talk>,
    /// What was said in the last conversation.
    said: Vec<Piece>,
    /// Whether errors and differences between replicas are what the scenario is about.
    is_disturbed: bool,
    told: Vec<String>,
    broken: Vec<String>,
}

/// What a replica looked like when it was last checked.
#[derive(Default)]
struct Look {
    life: u64,
    commits: u64,
    clock: Arc<Clock>,
    floor: Arc<Clock>,
    promotions: u64,
    /// It may have agreed to what it does not know any more: its disk was put back or copied.
    has_forgotten: bool,
    is_catching_up: bool,
    shown: Shown,
    /// It is one of two that are one, or heard of such: nobody can say what it must hold.
    is_unchecked: bool,
}

impl Stage {
    fn new() -> Stage {
        // Nobody calls anybody by himself; a peer is named for one conversation only.
        let config = Config {
            idle_interval: Duration::from_secs(3_600),
            // Deletes are reclaimed when a command says so.
            reclaim_interval: Duration::from_secs(365 * 86_400),
            ..Config::default()
        };
        Stage {
            cluster: Cluster::new(1, config.clone(), Trace::new(false)),
            config,
            oracle: Oracle::default(),
            names: Names::default(),
            looks: Vec::new(),
            resolvers: Vec::new(),
            backups: BTreeMap::new(),
            talks: Vec::new(),
            said: Vec::new(),
            is_disturbed: false,
            told: Vec::new(),
            broken: Vec::new(),
        }
    }

    fn obey(&mut self, command: &str) -> Vec<String> {
        let words = words(command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let Err(reason) = self.act(&words) {
            self.broken(format!("not understood: {reason}"));
        }
        self.look_at_all();
        counted(std::mem::take(&mut self.told))
    }

    fn act(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["config", settings @ ..] => self.configure(settings),
            ["replicas", count, "as", "a", shape, ..] => self.build(number(count)?, shape),
            ["replicas", names @ ..] => self.add_replicas(names),
            ["sync", a, b, how @ ..] => self.sync(a, b, how),
            ["continue", how @ ..] => self.go_on(how),
            ["replay", from, "to", to] => self.replay(from, to),
            ["wait", count, unit] => self.wait(span(count, unit)?),
            ["reclaim", names @ ..] => self.reclaim(names),
            ["run", "until", "equal"] => self.run_until_equal(),
            ["expect", "equal", names @ ..] => self.expect_equal(names),
            ["expect", node, key, value] => self.expect_value(node, key, value),
            [name, deed @ ..] => {
                let node = self.names.node(name)?;
                self.act_on(node, deed)
            }
            [] => Ok(()),
        }
    }

    fn tell(&mut self, what: impl Into<String>) {
        self.told.push(what.into());
    }

    /// Something that must not happen: told, and remembered whatever is expected.
    fn broken(&mut self, how: String) {
        self.told.push(format!("BROKEN: {how}"));
        self.broken.push(how);
    }

    fn name(&self, node: usize) -> String {
        self.names.of(node).to_owned()
    }
}

/// Lines that follow each other and are the same become one.
fn counted(lines: Vec<String>) -> Vec<String> {
    let same = lines.chunk_by(|a, b| a == b);
    same.map(|lines| match lines.len() {
        1 => lines[0].clone(),
        times => format!("{} ({times} times)", lines[0]),
    })
    .collect()
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

/// A span of time in microseconds.
fn span(count: &str, unit: &str) -> Result<i64, String> {
    let count: i64 = count.parse().map_err(|_| format!("{count} is no number"))?;
    let seconds = match unit.trim_end_matches('s') {
        "second" => 1,
        "hour" => 3_600,
        "day" => 86_400,
        "year" => 31_557_600,
        _ => return Err(format!("{unit} is no unit of time")),
    };
    Ok(count * seconds * 1_000_000)
}

/// A value: `N*` stands for N bytes.
fn value(word: &str) -> Bytes {
    let len = word.strip_suffix('*').and_then(|len| len.parse().ok());
    match len {
        Some(len) => vec![b'.'; len].into(),
        None => Bytes::copy_from_slice(word.as_bytes()),
    }
}
