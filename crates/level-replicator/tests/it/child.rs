//! Child processes: this very test binary, run again with a role.
//!
//! A child is steered by lines on its standard input and answers with lines on its standard
//! output, each behind a mark, because the test runner of the child writes there too.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use level_replicator::{Db, Options};

use crate::common::PATIENCE;

const ROLE: &str = "LEVEL_REPLICATOR_TEST_ROLE";
const ARGUMENTS: &str = "LEVEL_REPLICATOR_TEST_ARGUMENTS";
const MARK: &str = "@@ ";
const SEPARATOR: char = '\u{1f}';

/// A running child; killed when it is dropped.
pub(crate) struct Child {
    process: std::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts a child with a role and its arguments.
    pub(crate) fn start(role: &str, arguments: &[&str]) -> Child {
        let program = std::env::current_exe().expect("the test knows its own program");
        Child::start_by(Command::new(program), role, arguments)
    }

    /// Starts a child that cannot write files of more than some blocks of 512 bytes, as on a full
    /// disk: a write beyond that fails.
    pub(crate) fn start_limited(blocks: u32, role: &str, arguments: &[&str]) -> Child {
        let program = std::env::current_exe().expect("the test knows its own program");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(program);
        Child::start_by(command, role, arguments)
    }

    fn start_by(mut command: Command, role: &str, arguments: &[&str]) -> Child {
        let mut process = command
            .args(["--exact", "child::acts_only_when_it_is_a_child_process"])
            .args(["--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(ARGUMENTS, arguments.join(&SEPARATOR.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary runs again");
        let stdout = process.stdout.take().expect("its output is piped");
        Child {
            process,
            lines: BufReader::new(stdout).lines(),
        }
    }

    /// The next line that it says; `None` when it has ended.
    pub(crate) fn hear(&mut self) -> Option<String> {
        hear(&mut self.lines)
    }

    /// What follows a word at the beginning of the next line.
    #[track_caller]
    pub(crate) fn expect(&mut self, word: &str) -> String {
        let line = self.hear().expect("the child has ended");
        match line.strip_prefix(word) {
            Some(rest) => rest.trim().to_owned(),
            None => panic!("the child said '{line}', not '{word}'"),
        }
    }

    /// Says a line to it.
    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.process.stdin.as_mut().expect("its input is piped");
        writeln!(stdin, "{line}").expect("the child listens");
    }

    /// Kills it with SIGKILL, and reads what it had still said.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.process.kill().expect("the child can be killed");
        let rest = std::iter::from_fn(|| self.hear()).collect();
        self.process.wait().expect("the child has ended");
        rest
    }

    /// Kills it with SIGKILL some time after it has said a line that begins with a word. Answers all
    /// that it said, and how it ended: perhaps by itself, before.
    pub(crate) fn kill_after(mut self, word: &str, delay: Duration) -> (Vec<String>, ExitStatus) {
        let (process, lines) = (&mut self.process, &mut self.lines);
        let said = std::thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let listener = scope.spawn(move || {
                let mut said = Vec::new();
                while let Some(line) = hear(lines) {
                    if line.starts_with(word) {
                        // Nobody waits for it any more if it comes twice.
                        let _ = tell.send(());
                    }
                    said.push(line);
                }
                drop(tell);
                said
            });
            let heard = told.recv_timeout(PATIENCE);
            let is_silent = heard == Err(RecvTimeoutError::Timeout);
            if heard.is_ok() {
                // Its end cuts this short.
                let _ = told.recv_timeout(delay);
            }
            process.kill().expect("the child can be killed");
            assert!(!is_silent, "the child never said '{word}'");
            listener.join().expect("the child's lines are read")
        });
        let status = self.process.wait().expect("the child has ended");
        (said, status)
    }
}

fn hear(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<String> {
    loop {
        let line = lines.next()?.ok()?;
        if let Some(at) = line.find(MARK) {
            return Some(line[at + MARK.len()..].to_owned());
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The entry of every child. In the ordinary run it does nothing.
#[test]
fn acts_only_when_it_is_a_child_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    println!();
    let arguments = std::env::var(ARGUMENTS).unwrap_or_default();
    let arguments: Vec<&str> = arguments.split(SEPARATOR).collect();
    match role.as_str() {
        "keeper" => crate::backup::keep(&arguments),
        "victim" => crate::killed::live(&arguments),
        "writer" => write_until_killed(&arguments),
        "replica" => obey(&arguments),
        "opener" => open_once(&arguments),
        "filler" => fill(&arguments),
        other => panic!("no such role: {other}"),
    }
}

/// Says a line to the parent.
pub(crate) fn tell(line: impl std::fmt::Display) {
    println!("{MARK}{line}");
}

fn options(cluster: &str, peer: &str) -> Options {
    let options = Options::new().cluster(cluster).listen("127.0.0.1:0");
    if peer.is_empty() {
        options
    } else {
        options.peer(peer)
    }
}

fn open(path: &str, options: Options) -> Db {
    options
        .open(Path::new(path))
        .expect("the child's directory opens")
}

/// Writes key after key and tells of each when it is acknowledged.
fn write_until_killed(arguments: &[&str]) {
    let [path, cluster, peer, prefix] = arguments else {
        panic!("a writer needs a directory, a cluster, a peer and a prefix");
    };
    let db = open(path, options(cluster, peer));
    tell(format_args!("ready {}", crate::common::address(&db)));
    for number in 0u64.. {
        let key = format!("{prefix}{number:06}");
        db.put(&key, format!("value of {key}")).expect("a write");
        if number % 10 == 3 {
            // Some that are written twice, and some that are deleted.
            db.put(&key, format!("second value of {key}"))
                .expect("a write");
        }
        tell(format_args!("acknowledged {key}"));
    }
}

/// A replica that does what the lines on its input say.
fn obey(arguments: &[&str]) {
    let [path, cluster, peer] = arguments else {
        panic!("a replica needs a directory, a cluster and a peer");
    };
    let db = open(path, options(cluster, peer));
    tell(format_args!("ready {}", crate::common::address(&db)));
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["put", key, value] => {
                db.put(key, value).expect("a write");
                tell("done");
            }
            ["get", key] => {
                let value = crate::common::text(&db, key);
                tell(format_args!("value {}", value.unwrap_or_default()));
            }
            ["sync"] => {
                db.sync_now(Duration::from_secs(10))
                    .expect("the peers are reached");
                tell("done");
            }
            _ => panic!("no such command: {line}"),
        }
    }
}

/// Opens a directory and tells what came of it.
fn open_once(arguments: &[&str]) {
    match Options::new().open(Path::new(arguments[0])) {
        Ok(_) => tell("opened"),
        Err(error) => tell(format_args!("refused {error}")),
    }
}

/// Writes batches of two keys until a write fails, and tells of the error. Then it tells whether
/// reads go on and how a second write fails.
fn fill(arguments: &[&str]) {
    let db = open(arguments[0], Options::new());
    tell("ready");
    let noise: Vec<u8> = noise(40_000);
    for number in 0u64..10_000 {
        let mut batch = db.batch();
        batch.put(format!("left/{number:06}"), &noise);
        batch.put(format!("right/{number:06}"), &noise);
        match batch.commit() {
            Ok(_) => tell(format_args!("acknowledged {number:06}")),
            Err(error) => {
                tell(format_args!("failed {number:06} {error}"));
                break;
            }
        }
    }
    let readable = db.get("left/000000").is_ok_and(|value| value.is_some());
    tell(format_args!("readable {readable}"));
    let again = db.put("small", "value");
    tell(format_args!(
        "again {}",
        again
            .err()
            .map_or("ok".to_owned(), |error| error.to_string())
    ));
}

/// Bytes that do not compress.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for byte in &mut bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    bytes
}
