//! What the tests share: replicas in temporary directories, and waiting for what must happen.
//!
//! The rule: nothing sleeps for a fixed time. Whoever waits says for what, and there is a deadline.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use level_replicator::{Db, Event, Events, Options};
use level_replicator_core::storage::memory::MemoryStorage;
use tempfile::TempDir;

/// How long anything may take before it counts as never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(3);

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(POLL);
    }
}

/// A database and the temporary directory that holds it.
pub(crate) struct Node {
    pub(crate) db: Db,
    pub(crate) directory: TempDir,
}

impl Deref for Node {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

impl Node {
    /// Closes the database and opens it again.
    pub(crate) fn reopen(self, options: Options) -> Node {
        let Node { db, directory } = self;
        db.close().expect("a healthy database closes");
        drop(db);
        let db = options
            .open(directory.path())
            .expect("a closed database opens again");
        Node { db, directory }
    }

    /// Where peers reach it.
    pub(crate) fn address(&self) -> String {
        address(&self.db)
    }
}

/// Where peers reach a database.
pub(crate) fn address(db: &Db) -> String {
    db.status().listen.expect("it listens").to_string()
}

/// Opens a database in a new directory.
#[track_caller]
pub(crate) fn open(options: Options) -> Node {
    let directory = directory();
    let db = options
        .open(directory.path())
        .expect("a new directory opens");
    Node { db, directory }
}

/// Opens a database in memory.
#[track_caller]
pub(crate) fn open_in_memory(options: Options, storage: &MemoryStorage) -> Db {
    options
        .open_with(Arc::new(storage.clone()))
        .expect("tables in memory open")
}

/// A new directory that is removed at the end.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A replica that talks to nobody.
pub(crate) fn alone() -> Options {
    Options::new().cluster(cluster())
}

/// A replica that listens on a free port, in a cluster of its test's own: a port that is freed by
/// one test may be taken by another.
pub(crate) fn listening() -> Options {
    alone().listen("127.0.0.1:0")
}

/// The name of the test's own cluster.
pub(crate) fn cluster() -> String {
    let test = std::thread::current().name().unwrap_or("main").to_owned();
    test.chars().take(200).collect()
}

/// What readers see of all keys.
pub(crate) fn contents(db: &Db) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let entries = db
        .iter()
        .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())));
    entries
        .collect::<Result<_, _>>()
        .expect("all keys can be read")
}

/// The value of a key as text.
pub(crate) fn text(db: &Db, key: &str) -> Option<String> {
    let value = db.get(key).expect("the key can be read");
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

/// The concurrent values of a key as texts, in canonical order.
pub(crate) fn sibling_texts(db: &Db, key: &str) -> Vec<String> {
    let siblings = db.siblings(key).expect("the key can be read");
    siblings
        .iter()
        .map(|sibling| String::from_utf8_lossy(&sibling.value).into_owned())
        .collect()
}

/// Waits until replicas know the same writes, and checks that they then hold the same.
#[track_caller]
pub(crate) fn agree(replicas: &[&Db]) {
    let first = replicas[0];
    eventually("all replicas know the same writes", || {
        let clock = first.status().clock;
        replicas.iter().all(|db| db.status().clock == clock)
    });
    for db in &replicas[1..] {
        assert_eq!(
            db.digest().expect("a digest"),
            first.digest().expect("a digest"),
            "replicas that know the same writes have other digests"
        );
        assert!(
            contents(db) == contents(first),
            "equal clocks, but readers see other data"
        );
    }
}

/// Opens replicas of which each after the first knows the first.
pub(crate) fn star(count: usize) -> Vec<Node> {
    let first = open(listening());
    let address = first.address();
    let mut nodes = vec![first];
    nodes.extend((1..count).map(|_| open(listening().peer(&address))));
    nodes
}

/// Waits for an event that a function takes.
#[track_caller]
pub(crate) fn wait_for<T>(
    events: &mut Events,
    what: &str,
    mut take: impl FnMut(&Event) -> Option<T>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(event) = events.recv_timeout(left) else {
            panic!("waited in vain for {what}; there were only {seen:?}");
        };
        if let Some(taken) = take(&event) {
            return taken;
        }
        if seen.len() < 50 {
            seen.push(event);
        }
    }
}

/// Waits for an error event whose text holds all of some words.
#[track_caller]
pub(crate) fn wait_for_error(events: &mut Events, words: &[&str]) -> String {
    wait_for(
        events,
        &format!("an error that says {words:?}"),
        |event| match event {
            Event::Error { error, .. } => {
                let text = error.to_string();
                words.iter().all(|word| text.contains(word)).then_some(text)
            }
            _ => None,
        },
    )
}

/// Reads the events that are there.
pub(crate) fn drain(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv()).collect()
}
