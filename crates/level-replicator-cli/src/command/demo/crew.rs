//! The demo's view of its replicas: child processes, spoken to over pipes.

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::SECRET_VARIABLE;
use super::wire::{Said, hear, say, say_entry};
use crate::command::Failure;

const NAMES: [&str; 8] = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta",
];

/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often a condition is looked at again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// All replicas of the demo, and what they need to start.
pub(crate) struct Crew {
    pub(crate) members: Vec<Member>,
    directory: PathBuf,
    cluster: String,
    secret: String,
    multicast: bool,
}

/// One replica.
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) address: String,
    pub(crate) replica: String,
    /// Bytes sent and received by processes of this replica that are gone.
    past_traffic: (u64, u64),
    child: Child,
    to: BufWriter<ChildStdin>,
    from: BufReader<ChildStdout>,
}

/// What a replica says about itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) peers: u64,
    pub(crate) keys: u64,
    pub(crate) conflicts: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) digest: String,
    pub(crate) settled: bool,
    pub(crate) clock: BTreeMap<String, u64>,
}

/// A concurrent value, and who wrote it when.
pub(crate) struct Sibling {
    pub(crate) replica: String,
    pub(crate) stamp_us: u64,
    pub(crate) value: Vec<u8>,
}

impl Crew {
    pub(crate) fn start(
        count: usize,
        directory: &Path,
        cluster: String,
        secret: String,
        multicast: bool,
    ) -> Result<Crew, Failure> {
        let mut crew = Crew {
            members: Vec::new(),
            directory: directory.to_owned(),
            cluster,
            secret,
            multicast,
        };
        for &name in NAMES.iter().take(count) {
            let member = crew.start_member(name)?;
            crew.members.push(member);
        }
        Ok(crew)
    }

    /// Kills a replica without warning and starts it again on the same directory.
    pub(crate) fn kill(&mut self, index: usize) -> Result<(), Failure> {
        let member = &mut self.members[index];
        member.child.kill()?;
        member.child.wait()?;
        Ok(())
    }

    pub(crate) fn restart(&mut self, index: usize) -> Result<(), Failure> {
        let past = self.members[index].past_traffic;
        let mut member = self.start_member(self.members[index].name)?;
        member.past_traffic = past;
        self.members[index] = member;
        Ok(())
    }

    /// Multicast turned out not to work.
    pub(crate) fn forget_multicast(&mut self) {
        self.multicast = false;
    }

    pub(crate) fn has_multicast(&self) -> bool {
        self.multicast
    }

    /// Tells every replica the addresses of the others.
    pub(crate) fn introduce_all(&mut self) -> Result<(), Failure> {
        let addresses: Vec<String> = self
            .members
            .iter()
            .map(|member| member.address.clone())
            .collect();
        for (index, member) in self.members.iter_mut().enumerate() {
            for (other, address) in addresses.iter().enumerate() {
                if other != index {
                    member.say(&format!("peer {address}"))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn reports(&mut self) -> Result<Vec<Report>, Failure> {
        self.members.iter_mut().map(Member::report).collect()
    }

    /// Looks at the reports until they are as wanted; answers how long that took, `None` if too long.
    pub(crate) fn wait_until(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&[Report]) -> bool,
    ) -> Result<Option<Duration>, Failure> {
        let start = Instant::now();
        while start.elapsed() < patience {
            super::check_interrupted()?;
            if wanted(&self.reports()?) {
                return Ok(Some(start.elapsed()));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(None)
    }

    /// Waits until all replicas say that they hold the same.
    pub(crate) fn wait_equal(&mut self) -> Result<Duration, Failure> {
        let waited = self.wait_until(PATIENCE, |reports| {
            reports
                .iter()
                .all(|report| report.settled && report.equals(&reports[0]))
        })?;
        let seconds = PATIENCE.as_secs();
        waited.ok_or_else(|| format!("the replicas did not agree within {seconds} s").into())
    }

    /// Ends all replicas cleanly.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        for member in &mut self.members {
            member.say("end")?;
        }
        for member in &mut self.members {
            let status = member.child.wait()?;
            if !status.success() {
                return Err(format!("replica {} ended with {status}", member.name).into());
            }
        }
        Ok(())
    }

    fn start_member(&self, name: &'static str) -> Result<Member, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("demo-replica")
            .args(["--cluster", &self.cluster])
            .arg("--path")
            .arg(self.directory.join(name))
            .env(SECRET_VARIABLE, &self.secret)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if !self.multicast {
            command.arg("--no-multicast");
        }
        let mut child = command.spawn()?;
        let to = child.stdin.take().ok_or("the child has a standard input")?;
        let from = child
            .stdout
            .take()
            .ok_or("the child has a standard output")?;
        let mut member = Member {
            name,
            address: String::new(),
            replica: String::new(),
            past_traffic: (0, 0),
            child,
            to: BufWriter::new(to),
            from: BufReader::new(from),
        };
        let ready = member.hear("ready")?;
        member.address = ready.word(1).to_owned();
        member.replica = ready.word(2).to_owned();
        Ok(member)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // On the way out after an error nobody is to be left behind; after a clean end this is nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Member {
    pub(crate) fn say(&mut self, line: &str) -> Result<(), Failure> {
        Ok(say(&mut self.to, line)?)
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        Ok(say_entry(&mut self.to, "put", key, value)?)
    }

    pub(crate) fn put_and_hear(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        say_entry(&mut self.to, "put-and-tell", key, value)?;
        self.to.flush()?;
        self.hear("written").map(drop)
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<(), Failure> {
        Ok(say_entry(&mut self.to, "delete", key, b"")?)
    }

    /// Returns when everything said before is done.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.say("done")?;
        self.hear("done").map(drop)
    }

    pub(crate) fn pause(&mut self) -> Result<(), Failure> {
        self.say("pause")?;
        self.hear("paused").map(drop)
    }

    pub(crate) fn report(&mut self) -> Result<Report, Failure> {
        self.say("status")?;
        let said = self.hear("status")?;
        let clock = said.words.iter().filter_map(|word| {
            let (writer, writes) = word.split_once('=')?;
            Some((writer.to_owned(), writes.parse().ok()?))
        });
        Ok(Report {
            peers: said.number(1),
            keys: said.number(2),
            conflicts: said.number(3),
            sent: said.number(4) + self.past_traffic.0,
            received: said.number(5) + self.past_traffic.1,
            digest: said.word(6).to_owned(),
            settled: said.number(7) == 1,
            clock: clock.collect(),
        })
    }

    /// Keeps what this process has sent and received, for after its end.
    pub(crate) fn keep_traffic(&mut self) -> Result<(), Failure> {
        let report = self.report()?;
        self.past_traffic = (report.sent, report.received);
        Ok(())
    }

    /// The concurrent values of a key, and the one that readers see.
    pub(crate) fn siblings(&mut self, key: &[u8]) -> Result<(Vec<Sibling>, Vec<u8>), Failure> {
        say_entry(&mut self.to, "siblings", key, b"")?;
        self.to.flush()?;
        let mut siblings = Vec::new();
        loop {
            let said = self.hear_any()?;
            match said.verb() {
                "sibling" => siblings.push(Sibling {
                    replica: said.word(1).to_owned(),
                    stamp_us: said.number(2),
                    value: said.value,
                }),
                _ => return Ok((siblings, said.value)),
            }
        }
    }

    /// Everything the replica holds.
    pub(crate) fn dump(&mut self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Failure> {
        self.say("dump")?;
        let mut entries = BTreeMap::new();
        loop {
            let said = self.hear_any()?;
            if said.verb() != "entry" {
                return Ok(entries);
            }
            entries.insert(said.key, said.value);
        }
    }

    fn hear(&mut self, verb: &str) -> Result<Said, Failure> {
        let said = self.hear_any()?;
        if said.verb() != verb {
            return Err(format!(
                "replica {} said '{}' instead of '{verb}'",
                self.name,
                said.verb()
            )
            .into());
        }
        Ok(said)
    }

    fn hear_any(&mut self) -> Result<Said, Failure> {
        let said = hear(&mut self.from)?;
        said.ok_or_else(|| format!("replica {} has ended unexpectedly", self.name).into())
    }
}

impl Report {
    pub(crate) fn equals(&self, other: &Report) -> bool {
        self.digest == other.digest && self.clock == other.clock
    }

    /// Writes that some other replica knows and this one does not.
    pub(crate) fn lag(&self, all: &[Report]) -> u64 {
        let mut most: BTreeMap<&str, u64> = BTreeMap::new();
        for (writer, writes) in all.iter().flat_map(|report| &report.clock) {
            let known = most.entry(writer).or_default();
            *known = (*known).max(*writes);
        }
        let missing = most
            .iter()
            .map(|(writer, writes)| writes - self.clock.get(*writer).copied().unwrap_or(0));
        missing.sum()
    }
}
