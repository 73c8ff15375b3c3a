//! Clusters of daemons that are cut off, killed, cloned and restored, used through their doors only, with
//! an exact oracle.
//!
//! In each phase nobody talks, and everybody writes. Afterwards every key must hold, on every replica,
//! exactly what the last operation of each replica that touched it has left, or what stood there before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::client::Client;
use crate::daemon::{Daemon, until};

const KEYS: usize = 12;
const WRITES: usize = 40;

/// What the last operation on a key has left: a value, or nothing.
type Left = Option<String>;

struct Member {
    daemon: Option<Daemon>,
    path: PathBuf,
    /// What it did in this phase.
    touched: BTreeMap<String, Left>,
    /// A copy of its directory from some earlier phase.
    copy: Option<PathBuf>,
}

impl Member {
    fn start(&mut self) {
        self.daemon = Some(Daemon::start(&self.path, &[]));
        // Whoever starts talks; but everybody else is silent, so it meets nobody.
        assert_eq!(self.client().call("LR.PAUSE"), "OK");
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    fn client(&self) -> Client {
        self.daemon().client()
    }

    /// It dies as if by `kill -9`.
    fn kill(&mut self) {
        self.daemon = None;
    }

    fn stop(&mut self) {
        let (status, logged) = self.daemon.take().expect("it runs").stop();
        assert!(status.success(), "{logged}");
    }
}

struct Cluster {
    directory: tempfile::TempDir,
    members: Vec<Member>,
    luck: fastrand::Rng,
    values: u64,
    paths: usize,
    /// What stands under each key when everybody agrees.
    agreed: BTreeMap<String, BTreeSet<String>>,
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("it can be listed") {
        let entry = entry.expect("it can be listed");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it has one").is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("it can be copied");
        }
    }
}

impl Cluster {
    fn new(count: usize, seed: u64) -> Cluster {
        let mut cluster = Cluster {
            directory: tempfile::tempdir().expect("a directory"),
            members: Vec::new(),
            luck: fastrand::Rng::with_seed(seed),
            values: 0,
            paths: 0,
            agreed: BTreeMap::new(),
        };
        for _ in 0..count {
            let path = cluster.new_path();
            cluster.add(path);
        }
        cluster
    }

    fn new_path(&mut self) -> PathBuf {
        self.paths += 1;
        self.directory.path().join(format!("{}", self.paths))
    }

    fn add(&mut self, path: PathBuf) -> usize {
        let mut member = Member {
            daemon: None,
            path,
            touched: BTreeMap::new(),
            copy: None,
        };
        member.start();
        self.members.push(member);
        self.members.len() - 1
    }

    /// One operation, or a MULTI of some, on a replica that nobody hears.
    fn write(&mut self, at: usize) {
        let mut client = self.members[at].client();
        let count = if self.luck.usize(..4) == 0 {
            self.luck.usize(2..6)
        } else {
            1
        };
        let mut calls = Vec::new();
        let mut left = BTreeMap::new();
        for _ in 0..count {
            let key = format!("k{:02}", self.luck.usize(..KEYS));
            if self.luck.usize(..3) == 0 {
                calls.push(format!("DEL {key}"));
                left.insert(key, None);
            } else {
                self.values += 1;
                calls.push(format!("SET {key} v{}", self.values));
                left.insert(key, Some(format!("v{}", self.values)));
            }
        }
        let touched = &mut self.members[at].touched;
        if let [call] = &calls[..] {
            let reply = client.call(call);
            for (key, left) in left {
                // A delete of nothing writes nothing.
                if left.is_some() || reply == "(1)" {
                    touched.insert(key, left);
                }
            }
            return;
        }
        let had: BTreeMap<String, bool> = (left.keys())
            .map(|key| (key.clone(), client.call(&format!("EXISTS {key}")) == "(1)"))
            .collect();
        assert_eq!(client.call("MULTI"), "OK");
        for call in &calls {
            assert_eq!(client.call(call), "QUEUED");
        }
        assert!(client.call("EXEC").starts_with('['));
        for (key, left) in left {
            // Of what a batch sets and deletes again nothing is written where nothing was.
            if left.is_some() || had[&key] {
                touched.insert(key, left);
            }
        }
    }

    /// Something happens to one of the replicas, which comes back silent.
    fn disturb(&mut self, most: usize) {
        let at = self.luck.usize(..self.members.len());
        match self.luck.usize(..5) {
            0 => {
                self.members[at].kill();
                self.members[at].start();
            }
            1 => {
                self.members[at].stop();
                self.members[at].start();
            }
            // The directory is put aside, to be restored in a later phase.
            2 => {
                self.members[at].stop();
                let copy = self.new_path();
                copy_directory(&self.members[at].path, &copy);
                self.members[at].start();
                // What this phase has written so far would come back with it; only what all know may.
                if self.members[at].touched.is_empty() {
                    self.members[at].copy = Some(copy);
                }
            }
            // An old copy takes the place of the directory: what it wrote since nobody has heard is lost.
            3 => {
                if let Some(copy) = self.members[at].copy.take() {
                    self.members[at].kill();
                    self.members[at].path = copy;
                    self.members[at].touched.clear();
                    self.members[at].start();
                }
            }
            // A copy runs beside the original.
            _ => {
                if self.members.len() < most && self.members[at].touched.is_empty() {
                    self.members[at].stop();
                    let path = self.new_path();
                    copy_directory(&self.members[at].path, &path);
                    self.members[at].start();
                    self.add(path);
                }
            }
        }
    }

    fn phase(&mut self, number: usize, most: usize) {
        for member in &mut self.members {
            member.touched.clear();
            assert_eq!(member.client().call("LR.PAUSE"), "OK");
        }
        // What was restored is old: what it would overwrite is not what the others agreed on.
        let mut restored = BTreeSet::new();
        for turn in 0..WRITES {
            let at = self.luck.usize(..self.members.len());
            if !restored.contains(&at) {
                self.write(at);
            }
            if turn % 10 == 5 {
                let paths: Vec<PathBuf> = self
                    .members
                    .iter()
                    .map(|member| member.path.clone())
                    .collect();
                self.disturb(most);
                let moved = paths
                    .iter()
                    .enumerate()
                    .filter(|(at, path)| self.members[*at].path != **path);
                restored.extend(moved.map(|(at, _)| at));
            }
        }
        let expected = self.expected();
        self.join();
        let told = format!("phase {number}");
        until(
            &told,
            || {
                self.members
                    .iter()
                    .map(|member| shown(&mut member.client()))
                    .collect::<Vec<_>>()
            },
            |all| all.iter().all(|shown| *shown == expected),
        );
        until(
            &told,
            || {
                self.members
                    .iter()
                    .map(|member| member.client().call("LR.DIGEST"))
                    .collect::<Vec<_>>()
            },
            |digests| digests.iter().all(|digest| *digest == digests[0]),
        );
        self.agreed = expected;
    }

    /// Every key with the values that must be there.
    fn expected(&self) -> BTreeMap<String, BTreeSet<String>> {
        let keys = (0..KEYS).map(|key| format!("k{key:02}"));
        let of = |key: &String| -> BTreeSet<String> {
            let touched: Vec<&Left> = (self.members.iter())
                .filter_map(|member| member.touched.get(key))
                .collect();
            if touched.is_empty() {
                return self.agreed.get(key).cloned().unwrap_or_default();
            }
            touched.into_iter().flatten().cloned().collect()
        };
        keys.map(|key| (key.clone(), of(&key)))
            .filter(|(_, values)| !values.is_empty())
            .collect()
    }

    /// Everybody talks to everybody again.
    fn join(&mut self) {
        for member in &self.members {
            assert_eq!(member.client().call("LR.RESUME"), "OK");
        }
        for one in &self.members {
            for other in &self.members {
                if one.path != other.path {
                    let add = format!("LR.ADDPEER {}", other.daemon().listen);
                    assert_eq!(one.client().call(&add), "OK");
                }
            }
        }
    }
}

/// Every key with its values, as a replica shows them.
fn shown(client: &mut Client) -> BTreeMap<String, BTreeSet<String>> {
    let keys = (0..KEYS).map(|key| format!("k{key:02}"));
    let siblings = keys.map(|key| {
        let siblings = client.call(&format!("LR.SIBLINGS {key}"));
        let siblings = siblings
            .trim_matches(['[', ']'])
            .split(' ')
            .map(str::to_owned);
        (
            key,
            siblings
                .filter(|value| !value.is_empty())
                .collect::<BTreeSet<_>>(),
        )
    });
    siblings.filter(|(_, values)| !values.is_empty()).collect()
}

#[test]
fn two_daemons_hold_exactly_what_was_left_after_every_phase() {
    let mut cluster = Cluster::new(2, 1);
    (0..8).for_each(|number| cluster.phase(number, 3));
}

#[test]
fn five_daemons_hold_exactly_what_was_left_after_every_phase() {
    let mut cluster = Cluster::new(5, 2);
    (0..4).for_each(|number| cluster.phase(number, 6));
}
