//! Sources of peers: names, files, commands, and whatever a program knows better.
//!
//! The rule: what a source names is dialed, and no longer when it names it no more. A source that fails
//! goes on with what it said last, so a registry that is down cuts nobody off.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use level_replicator_core::address::Address;
use level_replicator_core::event::Event;
use level_replicator_core::session::PeerError;

use crate::shared::Shared;

/// Addresses that one source may name.
const ADDRESSES_MAX: usize = 1_000;

/// Bytes of a file or of a command's output that are read.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Something that knows where peers are; see [`Options::peer_source`](crate::Options::peer_source).
///
/// It is asked on a thread of its own, and may take its time.
///
/// ```
/// use level_replicator::{Address, PeerSource};
///
/// /// Peers that a program keeps in a variable of the environment.
/// struct FromEnvironment;
///
/// impl PeerSource for FromEnvironment {
///     fn peers(&mut self) -> Vec<Address> {
///         let text = std::env::var("SHOP_PEERS").unwrap_or_default();
///         text.split(',').filter_map(|peer| peer.parse().ok()).collect()
///     }
/// }
/// ```
pub trait PeerSource: Send {
    /// The addresses of all peers, as far as they are known now. An address that is missing from the
    /// next answer is not dialed any more; so a source that cannot tell should repeat what it said last.
    fn peers(&mut self) -> Vec<Address>;

    /// What went wrong when it was asked last, if anything. It is told in [`Event::Error`] when it changes.
    fn problem(&mut self) -> Option<String> {
        None
    }

    /// What ends an answer that takes its time; it is called when the database is closed, from another
    /// thread, while this source may be asked.
    fn interrupt(&self) -> Option<Interrupt> {
        None
    }
}

/// Ends what a source is doing; see [`PeerSource::interrupt`].
pub type Interrupt = Arc<dyn Fn() + Send + Sync>;

/// Peers that are known beforehand.
#[derive(Debug, Clone)]
pub struct StaticPeers(pub Vec<Address>);

impl PeerSource for StaticPeers {
    fn peers(&mut self) -> Vec<Address> {
        self.0.clone()
    }
}

/// What a source said last, and what went wrong since.
#[derive(Debug, Clone, Default)]
struct Memory {
    peers: Vec<Address>,
    problem: Option<String>,
}

impl Memory {
    fn update(&mut self, told: Result<Vec<Address>, String>) -> Vec<Address> {
        match told {
            Ok(peers) => {
                self.peers = peers;
                self.problem = None;
            }
            Err(problem) => self.problem = Some(problem),
        }
        self.peers.clone()
    }
}

/// All addresses of a name, such as one for which a cluster's scheduler answers with every instance.
#[derive(Debug, Clone)]
pub struct DnsPeers {
    name: Address,
    memory: Memory,
}

impl DnsPeers {
    /// The addresses of `name:port`.
    pub fn new(name: Address) -> DnsPeers {
        DnsPeers {
            name,
            memory: Memory::default(),
        }
    }
}

impl PeerSource for DnsPeers {
    fn peers(&mut self) -> Vec<Address> {
        let resolved = self.name.as_str().to_socket_addrs();
        let told = resolved
            .map(|addresses| addresses.map(Address::from).collect())
            .map_err(|error| format!("cannot resolve {}: {error}", self.name.as_str()));
        self.memory.update(told)
    }

    fn problem(&mut self) -> Option<String> {
        self.memory.problem.clone()
    }
}

/// A file with an address, `host:port`, on each line. What follows a `#` is passed over. The file is read
/// again when it has changed.
#[derive(Debug, Clone)]
pub struct PeersFile {
    path: PathBuf,
    /// Length and time of the last change when it was read.
    read: Option<(u64, Option<SystemTime>)>,
    memory: Memory,
}

impl PeersFile {
    /// The addresses in a file, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> PeersFile {
        PeersFile {
            path: path.into(),
            read: None,
            memory: Memory::default(),
        }
    }

    fn read(&self) -> Result<Vec<Address>, String> {
        let refused = |error| format!("cannot read {}: {error}", self.path.display());
        let file = std::fs::File::open(&self.path).map_err(refused)?;
        let text = read_bounded(file).map_err(refused)?;
        parse_lines(&text).map_err(|problem| format!("{}: {problem}", self.path.display()))
    }
}

impl PeerSource for PeersFile {
    fn peers(&mut self) -> Vec<Address> {
        let metadata = std::fs::metadata(&self.path).ok();
        let now = metadata.map(|metadata| (metadata.len(), metadata.modified().ok()));
        // A file that was changed within one tick of its clock may look as before: a short while it is
        // read each time.
        let is_fresh = now.and_then(|(_, modified)| modified?.elapsed().ok());
        let is_fresh = is_fresh.is_none_or(|age| age < Duration::from_secs(3));
        if self.read.is_none() || now != self.read || is_fresh {
            let told = self.read();
            self.read = now;
            return self.memory.update(told);
        }
        self.memory.peers.clone()
    }

    fn problem(&mut self) -> Option<String> {
        self.memory.problem.clone()
    }
}

/// The output of a command, an address on each line: the door to any registry or inventory.
///
/// The command is run by the shell, and killed with what it has started after 5 seconds, or when the
/// database is closed.
#[derive(Debug, Clone)]
pub struct PeersCommand {
    command: String,
    /// The groups of processes that run now.
    running: Arc<Mutex<BTreeSet<u32>>>,
    memory: Memory,
}

impl PeersCommand {
    /// The addresses that a command prints.
    pub fn new(command: impl Into<String>) -> PeersCommand {
        PeersCommand {
            command: command.into(),
            running: Arc::default(),
            memory: Memory::default(),
        }
    }

    fn run(&self) -> Result<Vec<Address>, String> {
        let shell = if cfg!(windows) {
            ("cmd", "/C")
        } else {
            ("sh", "-c")
        };
        let mut command = Command::new(shell.0);
        command
            .args([shell.1, &self.command])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // What the shell starts is in its group, so that all of it can be killed.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command
            .spawn()
            .map_err(|error| format!("cannot run '{}': {error}", self.command))?;
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        lock(&self.running).insert(child.id());
        let told = finish(&mut child, deadline);
        if told.is_err() {
            kill_all(child.id());
            let _ = child.kill();
            let _ = child.wait();
        }
        lock(&self.running).remove(&child.id());
        let text = told.map_err(|problem| format!("'{}' {problem}", self.command))?;
        parse_lines(&text).map_err(|problem| format!("'{}' printed {problem}", self.command))
    }
}

/// What a command prints until it ends. Its output is read aside, so that neither a full pipe nor one that
/// something in the background keeps open holds this up.
fn finish(child: &mut Child, deadline: Instant) -> Result<String, String> {
    let (sender, output) = channel();
    if let Some(stdout) = child.stdout.take() {
        let reader = std::thread::Builder::new().name("level-replicator-output".to_owned());
        let reader = reader.spawn(move || {
            let _ = sender.send(read_bounded(stdout));
        });
        reader.map_err(|error| format!("cannot be read: {error}"))?;
    }
    let late = || format!("took more than {} s", COMMAND_TIMEOUT.as_secs());
    let left = deadline.saturating_duration_since(Instant::now());
    let text = output.recv_timeout(left).map_err(|_| late())?;
    let text = text.map_err(|error| format!("cannot be read: {error}"))?;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(text),
            Ok(Some(status)) => return Err(format!("failed: {status}")),
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(None) => return Err(late()),
            Err(error) => return Err(format!("cannot be waited for: {error}")),
        }
    }
}

/// Kills a command and what it has started, where processes have groups.
fn kill_all(group: u32) {
    if cfg!(unix) {
        let group = format!("-{group}");
        let mut kill = Command::new("kill");
        kill.args(["-KILL", "--", &group]).stderr(Stdio::null());
        let _ = kill.status();
    }
}

/// A text as a whole: one that is cut might end with half an address.
fn read_bounded(from: impl Read) -> std::io::Result<String> {
    let mut text = Vec::new();
    from.take(TEXT_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        let what = format!("more than {TEXT_BYTES_MAX} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

impl PeerSource for PeersCommand {
    fn peers(&mut self) -> Vec<Address> {
        let told = self.run();
        self.memory.update(told)
    }

    fn interrupt(&self) -> Option<Interrupt> {
        let running = Arc::clone(&self.running);
        Some(Arc::new(move || {
            let groups = lock(&running).clone();
            groups.into_iter().for_each(kill_all);
        }))
    }

    fn problem(&mut self) -> Option<String> {
        self.memory.problem.clone()
    }
}

/// The addresses in a text, one on each line.
fn parse_lines(text: &str) -> Result<Vec<Address>, String> {
    let mut addresses = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let address: Address = line
            .parse()
            .map_err(|error| format!("line {}: {error}", number + 1))?;
        if addresses.len() == ADDRESSES_MAX {
            return Err(format!("more than {ADDRESSES_MAX} addresses"));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// A source as [`Options`](crate::Options) holds it.
#[derive(Clone)]
pub(crate) struct SourceSlot {
    source: Arc<Mutex<dyn PeerSource>>,
    interrupt: Option<Interrupt>,
    every: Duration,
}

impl SourceSlot {
    pub(crate) fn new(source: impl PeerSource + 'static, every: Duration) -> SourceSlot {
        SourceSlot {
            interrupt: source.interrupt(),
            source: Arc::new(Mutex::new(source)),
            every,
        }
    }

    fn ask(&self) -> (BTreeSet<Address>, Option<String>) {
        let mut source = lock(&self.source);
        let peers = source.peers().into_iter().take(ADDRESSES_MAX).collect();
        (peers, source.problem())
    }
}

impl fmt::Debug for SourceSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerSource")
    }
}

/// Which addresses the sources name, and how many of them do; and when to stop asking.
#[derive(Default)]
pub(crate) struct SourceDesk {
    named: Mutex<BTreeMap<Address, usize>>,
    interrupts: Mutex<Vec<Interrupt>>,
    is_closed: Mutex<bool>,
    closed: Condvar,
}

impl SourceDesk {
    /// Remembers how to interrupt a source that is going to be asked.
    pub(crate) fn admit(&self, slot: &SourceSlot) {
        lock(&self.interrupts).extend(slot.interrupt.clone());
    }

    /// Lets the threads that ask the sources end, and what the sources wait for.
    pub(crate) fn close(&self) {
        *lock(&self.is_closed) = true;
        self.closed.notify_all();
        let interrupts = std::mem::take(&mut *lock(&self.interrupts));
        interrupts.iter().for_each(|interrupt| interrupt());
    }

    /// Answers whether it is time to ask again.
    fn wait(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        let mut is_closed = lock(&self.is_closed);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if *is_closed || left.is_zero() {
                return !*is_closed;
            }
            let waited = self.closed.wait_timeout(is_closed, left);
            is_closed = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Asks a source again and again. It holds the database only while it tells what it has heard: a name
/// that takes long to resolve must not keep the directory locked.
pub(crate) fn watch(shared: &Weak<Shared>, desk: &SourceDesk, slot: &SourceSlot) {
    let mut named = BTreeSet::new();
    let mut known_problem = None;
    loop {
        let (now, problem) = slot.ask();
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if shared.check_open().is_err() {
            return;
        }
        let (come, gone) = count(desk, &named, &now);
        shared.tell_source(&come, &gone);
        named = now;
        if problem != known_problem {
            if let Some(reason) = problem.clone() {
                let error = PeerError::Source { reason };
                let address = None;
                shared.events.send(Event::Error { address, error });
            }
            known_problem = problem;
        }
        drop(shared);
        if !desk.wait(slot.every) {
            return;
        }
    }
}

/// What no source named before, and what none names any more.
fn count(
    desk: &SourceDesk,
    before: &BTreeSet<Address>,
    now: &BTreeSet<Address>,
) -> (Vec<Address>, Vec<Address>) {
    let mut counts = lock(&desk.named);
    let mut gone = Vec::new();
    for address in before.difference(now) {
        if let Some(count) = counts.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(address);
                gone.push(address.clone());
            }
        }
    }
    for address in now.difference(before) {
        *counts.entry(address.clone()).or_default() += 1;
    }
    // What was named before is not said again: an address that was removed by hand stays away until the
    // source has left it out once.
    (now.difference(before).cloned().collect(), gone)
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(addresses: &[Address]) -> Vec<&str> {
        addresses.iter().map(Address::as_str).collect()
    }

    #[test]
    fn lines_may_be_empty_and_have_remarks() {
        let parsed = parse_lines("a:1\n\n  b:2 # the second\n# none\n").expect("addresses");
        assert_eq!(texts(&parsed), ["a:1", "b:2"]);
        let refused = parse_lines("a:1\nnonsense\n").expect_err("no address");
        assert!(refused.starts_with("line 2: "), "{refused}");
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed_and_remembered_when_it_is_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("peers");
        let mut source = PeersFile::new(&path);
        assert!(source.peers().is_empty());
        assert!(source.problem().is_some());

        std::fs::write(&path, "a:1\n").expect("written");
        assert_eq!(texts(&source.peers()), ["a:1"]);
        assert_eq!(source.problem(), None);
        std::fs::write(&path, "a:1\nb:2\n").expect("written");
        assert_eq!(texts(&source.peers()), ["a:1", "b:2"]);
        std::fs::write(&path, "a:1\nb 2\n").expect("written");
        assert_eq!(texts(&source.peers()), ["a:1", "b:2"]);
        assert!(
            source
                .problem()
                .is_some_and(|problem| problem.contains("line 2"))
        );
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(texts(&source.peers()), ["a:1", "b:2"]);
    }

    #[test]
    fn a_command_prints_addresses_or_is_told_to_have_failed() {
        let mut source = PeersCommand::new("echo a:1; echo b:2");
        assert_eq!(texts(&source.peers()), ["a:1", "b:2"]);
        let mut source = PeersCommand::new("exit 3");
        assert!(source.peers().is_empty());
        assert!(
            source
                .problem()
                .is_some_and(|problem| problem.contains("'exit 3' failed"))
        );
    }

    #[test]
    fn a_command_that_leaves_something_running_holds_nothing_up() {
        let begin = Instant::now();
        let mut source = PeersCommand::new("sleep 300 & echo a:1");
        assert!(source.peers().is_empty());
        assert!(begin.elapsed() < COMMAND_TIMEOUT * 3);
        let problem = source.problem().unwrap_or_default();
        assert!(problem.contains("took more than"), "{problem}");
    }

    #[test]
    fn what_is_too_long_is_refused_and_not_cut() {
        let mut source = PeersCommand::new("yes host-of-a-peer:9000 | head -c 1048586");
        assert!(source.peers().is_empty());
        let problem = source.problem().unwrap_or_default();
        assert!(problem.contains("more than 1048576 bytes"), "{problem}");
    }

    #[test]
    fn an_address_stays_as_long_as_one_source_names_it() {
        let desk = SourceDesk::default();
        let set = |text: &str| BTreeSet::from([text.parse::<Address>().expect("an address")]);
        let none = BTreeSet::new();
        count(&desk, &none, &set("a:1"));
        count(&desk, &none, &set("a:1"));
        assert!(count(&desk, &set("a:1"), &none).1.is_empty());
        assert_eq!(texts(&count(&desk, &set("a:1"), &none).1), ["a:1"]);
    }
}
