//! Replicas in processes of their own, steered by lines; what they cost, seen from outside.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use level_replicator::Secret;

use crate::Result;
use crate::other_process::Role;

/// How long anything may take before it counts as never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

const POLL: Duration = Duration::from_millis(20);

/// A replica in a process of its own; killed when it is dropped.
pub(crate) struct Node {
    /// Where it listens.
    pub(crate) address: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a replica answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer(BTreeMap<String, String>);

impl Answer {
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("?", |text| text)
    }

    /// A number; an error if it is not known yet.
    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        number(self.text(name))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (&name[..], &text[..]))
    }
}

impl Node {
    /// Opens a directory. The options are words as `name=value`.
    pub(crate) fn start(directory: &Path, secret: &Secret, options: &str) -> Result<Node> {
        let role = Role::Obey
            .to_possible_value()
            .ok_or("every role has a name")?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--role", role.get_name(), "--directory"])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().ok_or("the input is piped")?;
        let output = child.stdout.take().ok_or("the output is piped")?;
        writeln!(input, "{}\n{options}", secret.to_hex())?;
        let mut node = Node {
            address: String::new(),
            child,
            input,
            output: BufReader::new(output),
        };
        node.address = node.hear()?.ok_or("the replica did not open")?;
        Ok(node)
    }

    /// The next line that it says; nothing when it has ended.
    pub(crate) fn hear(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let count = self.output.read_line(&mut line)?;
        Ok((count > 0 && line.ends_with('\n')).then(|| line.trim_end().to_owned()))
    }

    /// Says a line and waits for the answer.
    pub(crate) fn ask(&mut self, line: &str) -> Result<Answer> {
        self.say(line)?;
        self.answer()
    }

    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    pub(crate) fn answer(&mut self) -> Result<Answer> {
        let line = self.hear()?.ok_or("the replica has ended")?;
        let rest = line.strip_prefix("ok").ok_or_else(|| line.clone())?;
        let words = rest.split_whitespace();
        let pairs = words.filter_map(|word| word.split_once('='));
        Ok(Answer(
            pairs
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .collect(),
        ))
    }

    pub(crate) fn status(&mut self) -> Result<Answer> {
        self.ask("status")
    }

    /// Waits until its status is as it should be.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&Answer) -> bool,
    ) -> Result<Answer> {
        let began = Instant::now();
        loop {
            let status = self.status()?;
            if is_so(&status) {
                return Ok(status);
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("waited in vain until {what}: {status:?}").into());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until nothing is left to be reclaimed.
    pub(crate) fn wait_until_reclaimed(&mut self) -> Result<Answer> {
        self.wait_until("everything is reclaimed", is_reclaimed)
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Closes it and waits for its end.
    pub(crate) fn close(mut self) -> Result<()> {
        self.ask("close")?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("a replica ended with {status}").into());
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn is_reclaimed(status: &Answer) -> bool {
    let is = |name, value| status.text(name) == value;
    is("log", "0") && is("deletes", "0") && is("reclaiming", "0") && is("below_floor", "1")
}

/// Waits until replicas know the same writes and hold the same; answers whether digests that were
/// computed anew from all data are equal too.
pub(crate) fn wait_until_equal(nodes: &mut [&mut Node]) -> Result<bool> {
    let began = Instant::now();
    loop {
        let statuses: Vec<Answer> = nodes
            .iter_mut()
            .map(|node| node.status())
            .collect::<Result<_>>()?;
        let first = &statuses[0];
        let same = |name| {
            statuses
                .iter()
                .all(|status| status.text(name) == first.text(name))
        };
        let is_settled = statuses.iter().all(|status| status.text("settled") == "1");
        if is_settled
            && same("clock")
            && first.text("digest") != "?"
            && statuses.iter().all(|status| status.text("digest") != "?")
        {
            return Ok(same("digest"));
        }
        if began.elapsed() > PATIENCE {
            let clocks: Vec<_> = statuses
                .iter()
                .map(|status| {
                    (
                        status.text("clock"),
                        status.text("settled"),
                        status.text("keys"),
                    )
                })
                .collect();
            return Err(format!("waited in vain for equal replicas: {clocks:?}").into());
        }
        std::thread::sleep(POLL);
    }
}

/// Bytes of all files below a directory.
pub(crate) fn directory_bytes(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // The engine removes what it has merged.
            Err(_) => continue,
        };
        bytes += match metadata.is_dir() {
            true => directory_bytes(&entry.path())?,
            false => metadata.len(),
        };
    }
    Ok(bytes)
}

/// Copies a directory.
pub(crate) fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_directory(&entry.path(), &to)?,
            false => drop(fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}

/// Merges all that the engine holds in a closed replica's directory, by the engine's own call.
pub(crate) fn compact(directory: &Path) -> Result<()> {
    let database = fjall::Database::builder(directory.join("engine"))
        .worker_threads(4)
        .open()?;
    let keyspace = database.keyspace("replica", fjall::KeyspaceCreateOptions::default)?;
    keyspace.rotate_memtable_and_wait()?;
    keyspace.major_compact()?;
    Ok(())
}

/// The most memory that a process has had resident, in bytes; 0 where that cannot be known.
pub(crate) fn high_water(process: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kilobytes.map_or(Ok(0), |count| Ok(number(count.trim())? << 10))
}

/// Processor time that all threads of a process have had; zero where that cannot be known.
pub(crate) fn processor_time(process: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Ok(Duration::ZERO);
    };
    for task in tasks {
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text
            .split(' ')
            .next()
            .map_or(Ok(0), |word| number(word.trim()))?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

pub(crate) fn number(text: &str) -> Result<u64> {
    text.parse()
        .map_err(|_| format!("'{text}' is no number").into())
}
