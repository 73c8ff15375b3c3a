//! `demo`: replicas with real data diverge and agree again, before your eyes.

mod crew;
mod data;
pub(crate) mod replica;
mod screen;
mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use level_replicator::Secret;

use self::crew::Crew;
use self::data::Data;
use self::screen::Screen;
use super::Failure;
use crate::args::DemoArgs;
use crate::output::{brief, bytes, count};

/// The environment variable by which the replicas of a demo get their secret.
const SECRET_VARIABLE: &str = "LEVEL_REPLICATOR_DEMO_SECRET";

/// How long the replicas may take to find each other by multicast.
const DISCOVERY_PATIENCE: Duration = Duration::from_secs(3);

/// Keys of each kind that the two sides write while they are cut off.
const WRITES: usize = 20;
const CONFLICTS: usize = 3;
const DELETES: usize = 2;

/// Writes with an answer each, in the middle of which a replica is killed.
const WRITES_BEFORE_KILL: usize = 200;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn check_interrupted() -> Result<(), Failure> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err("interrupted; everything the demo made is removed".into());
    }
    Ok(())
}

pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))?;
    let data = match &args.keys {
        Some(file) => data::from_lines(file)?,
        None => data::from_files(&std::env::current_dir()?)?,
    };
    if data.entries.len() < 8 {
        return Err("the demo needs at least 8 keys: give a file with more lines".into());
    }
    // Removed when it is dropped, whatever happens in between.
    let directory = tempfile::Builder::new()
        .prefix("level-replicator-demo-")
        .tempdir()?;
    let start = Instant::now();
    let screen = Screen::new();
    screen.title(usize::from(args.replicas), &data);

    let mut demo = Demo::begin(args, data, screen, directory.path())?;
    demo.load()?;
    demo.cut()?;
    demo.diverge()?;
    demo.kill()?;
    demo.heal()?;
    demo.show_conflict()?;
    let proof = demo.prove()?;
    let Demo { crew, screen, .. } = demo;
    crew.end()?;
    directory.close()?;
    screen.verdict(&proof, start.elapsed());
    Ok(())
}

struct Demo {
    crew: Crew,
    screen: Screen,
    data: Data,
    /// Acknowledged writes of the replica that is killed.
    acknowledged: Vec<Vec<u8>>,
}

impl Demo {
    fn begin(
        args: &DemoArgs,
        data: Data,
        screen: Screen,
        directory: &std::path::Path,
    ) -> Result<Demo, Failure> {
        let secret = Secret::generate()?.to_hex();
        let cluster = format!("demo-{}", std::process::id());
        let replicas = usize::from(args.replicas);
        screen.step("start");
        let crew = Crew::start(replicas, directory, cluster, secret, !args.no_multicast)?;
        let places: Vec<String> = crew
            .members
            .iter()
            .map(|member| format!("{} on {}", member.name, member.address))
            .collect();
        screen.tell(&format!(
            "one process and one directory each: {}",
            places.join(", ")
        ));
        let mut demo = Demo {
            crew,
            screen,
            data,
            acknowledged: Vec::new(),
        };
        demo.discover(replicas as u64 - 1)?;
        Ok(demo)
    }

    fn discover(&mut self, others: u64) -> Result<(), Failure> {
        self.screen.step("discover");
        let all_met =
            |reports: &[crew::Report]| reports.iter().all(|report| report.peers >= others);
        let mut why = "multicast is off";
        if self.crew.has_multicast() {
            if let Some(took) = self.crew.wait_until(DISCOVERY_PATIENCE, all_met)? {
                let took = screen::seconds(took);
                self.screen
                    .tell(&format!("they found each other by multicast in {took}"));
                return Ok(());
            }
            self.crew.forget_multicast();
            why = "multicast does not work here";
        }
        self.crew.introduce_all()?;
        let took = self.crew.wait_until(DISCOVERY_PATIENCE, all_met)?;
        let took = took.ok_or("the replicas cannot reach each other on 127.0.0.1")?;
        self.screen.tell(&format!(
            "{why}: they were told each other's addresses, and met in {}",
            screen::seconds(took)
        ));
        Ok(())
    }

    /// Every replica writes its share of the data, all at the same time.
    fn load(&mut self) -> Result<(), Failure> {
        self.screen.step("load");
        let start = Instant::now();
        let replicas = self.crew.members.len();
        let entries = &self.data.entries;
        std::thread::scope(|scope| {
            let shares = self
                .crew
                .members
                .iter_mut()
                .enumerate()
                .map(|(index, member)| {
                    scope.spawn(move || {
                        let share = entries.iter().skip(index).step_by(replicas);
                        for (key, value) in share {
                            member.put(key, value).map_err(|error| error.to_string())?;
                        }
                        member.finish().map_err(|error| error.to_string())
                    })
                });
            let shares: Vec<_> = shares.collect();
            shares.into_iter().try_for_each(|share| {
                share
                    .join()
                    .unwrap_or_else(|_| Err("a thread of the demo panicked".to_owned()))
            })
        })?;
        let written = start.elapsed();
        let equal = self.crew.wait_equal()?;
        self.screen.tell(&format!(
            "all write at once, {} keys in {}; equal {} after the last write",
            count(self.data.entries.len() as u64),
            screen::seconds(written),
            screen::seconds(equal),
        ));
        self.table()
    }

    /// The last replica is cut off from the others.
    fn cut(&mut self) -> Result<(), Failure> {
        self.screen.step("cut");
        let last = self.crew.members.len() - 1;
        self.crew.members[last].pause()?;
        let rest: Vec<&str> = self.crew.members[..last]
            .iter()
            .map(|member| member.name)
            .collect();
        let alone = self.crew.members[last].name;
        self.screen.tell(&format!(
            "the links are cut: {} on one side, {alone} on the other",
            rest.join(", ")
        ));
        Ok(())
    }

    /// Both sides write, change the same keys, and delete.
    fn diverge(&mut self) -> Result<(), Failure> {
        self.screen.step("write");
        let last = self.crew.members.len() - 1;
        let shared = self.shared_keys();
        let fought_over = self.deleted_here_changed_there();
        for side in [0, last] {
            let member = &mut self.crew.members[side];
            let name = member.name;
            for index in 0..WRITES {
                let key = format!("demo/{name}/{index:02}");
                member.put(
                    key.as_bytes(),
                    format!("written by {name} while cut off").as_bytes(),
                )?;
            }
            for key in &shared {
                member.put(key, format!("what {name} made of it").as_bytes())?;
            }
            let deletes = self
                .data
                .entries
                .iter()
                .skip(CONFLICTS + side * DELETES + 1);
            for (key, _) in deletes.take(DELETES).filter(|(key, _)| *key != fought_over) {
                member.delete(key)?;
            }
            member.finish()?;
        }
        self.crew.members[0].delete(&fought_over)?;
        self.crew.members[0].finish()?;
        self.crew.members[last].put(&fought_over, b"changed while it was deleted elsewhere")?;
        self.crew.members[last].finish()?;
        let (one, other) = (self.crew.members[0].name, self.crew.members[last].name);
        self.screen.tell(&format!(
            "{one} and {other} each write {WRITES} new keys, change the same {CONFLICTS}, delete \
             {DELETES}; and {one} deletes a key that {other} changes"
        ));
        Ok(())
    }

    /// A replica is killed in the middle of writing, and started again.
    fn kill(&mut self) -> Result<(), Failure> {
        self.screen.step("kill");
        let victim = if self.crew.members.len() > 2 { 1 } else { 0 };
        let member = &mut self.crew.members[victim];
        let name = member.name;
        for index in 0..WRITES_BEFORE_KILL {
            let key = format!("demo/{name}/before-kill/{index:03}").into_bytes();
            member.put_and_hear(&key, b"acknowledged")?;
            self.acknowledged.push(key);
        }
        member.keep_traffic()?;
        // More is under way, without an answer, when the process dies.
        for index in 0..WRITES_BEFORE_KILL {
            let key = format!("demo/{name}/at-kill/{index:03}");
            member.put(key.as_bytes(), b"perhaps")?;
        }
        self.crew.kill(victim)?;
        self.crew.restart(victim)?;
        if !self.crew.has_multicast() {
            self.crew.introduce_all()?;
        }
        let kept = self.crew.members[victim].dump()?;
        let lost = self
            .acknowledged
            .iter()
            .filter(|key| !kept.contains_key(*key))
            .count();
        if lost > 0 {
            return Err(format!("{lost} acknowledged writes of {name} are lost").into());
        }
        self.screen.tell(&format!(
            "{name} is killed with SIGKILL while it writes, and started again: all {} acknowledged \
             writes are there",
            self.acknowledged.len()
        ));
        self.table()
    }

    fn heal(&mut self) -> Result<(), Failure> {
        self.screen.step("heal");
        let last = self.crew.members.len() - 1;
        self.crew.members[last].say("resume")?;
        let took = self.crew.wait_equal()?;
        self.screen.tell(&format!(
            "the links are back: all replicas agree after {}",
            screen::seconds(took)
        ));
        self.table()
    }

    fn show_conflict(&mut self) -> Result<(), Failure> {
        self.screen.step("conflict");
        let names: BTreeMap<String, &str> = self
            .crew
            .members
            .iter()
            .map(|member| (member.replica.clone(), member.name))
            .collect();
        let key = self.shared_keys().swap_remove(0);
        let (siblings, shown) = self.crew.members[0].siblings(&key)?;
        if siblings.len() < 2 {
            return Err("the conflict was lost".into());
        }
        self.screen.tell(&format!(
            "both sides changed {}: every replica keeps both values",
            brief(&key, 40)
        ));
        let first = siblings
            .iter()
            .map(|sibling| sibling.stamp_us)
            .min()
            .unwrap_or(0);
        for sibling in &siblings {
            let name = names.get(&sibling.replica).copied().unwrap_or("?");
            let later = Duration::from_micros(sibling.stamp_us - first);
            let wins = sibling.value == shown;
            self.screen.sibling(name, later, &sibling.value, wins);
        }
        for index in 1..self.crew.members.len() {
            let (_, theirs) = self.crew.members[index].siblings(&key)?;
            if theirs != shown {
                return Err(
                    format!("{} shows another winner", self.crew.members[index].name).into(),
                );
            }
        }
        let fought_over = self.deleted_here_changed_there();
        let (kept, _) = self.crew.members[0].siblings(&fought_over)?;
        if kept.len() != 1 {
            return Err("a change that a delete had not seen was lost".into());
        }
        self.screen
            .more("a change that the concurrent delete had not seen is kept");
        Ok(())
    }

    /// Compares every key and value of every replica.
    fn prove(&mut self) -> Result<String, Failure> {
        self.screen.step("compare");
        let expected = self.crew.members[0].dump()?;
        for member in &mut self.crew.members[1..] {
            let theirs = member.dump()?;
            if theirs != expected {
                let different = expected
                    .iter()
                    .filter(|(key, value)| theirs.get(*key) != Some(value))
                    .count()
                    + theirs
                        .keys()
                        .filter(|key| !expected.contains_key(*key))
                        .count();
                return Err(format!("{} differs in {different} keys", member.name).into());
            }
        }
        let missing = self
            .acknowledged
            .iter()
            .filter(|key| !expected.contains_key(*key))
            .count();
        if missing > 0 {
            return Err(format!("{missing} acknowledged writes are missing").into());
        }
        let size: usize = expected
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        let keys = count(expected.len() as u64);
        self.screen.tell(&format!(
            "every key and value of every replica, byte by byte: {keys} keys, {}",
            bytes(size as u64)
        ));
        Ok(format!(
            "{} replicas hold the same {keys} keys and values",
            self.crew.members.len()
        ))
    }

    fn table(&mut self) -> Result<(), Failure> {
        let reports = self.crew.reports()?;
        let names: Vec<&str> = self.crew.members.iter().map(|member| member.name).collect();
        self.screen.table(&names, &reports);
        Ok(())
    }

    /// The keys that both sides change.
    fn shared_keys(&self) -> Vec<Vec<u8>> {
        let entries = self.data.entries.iter().take(CONFLICTS);
        entries.map(|(key, _)| key.clone()).collect()
    }

    /// The key that one side deletes and the other changes.
    fn deleted_here_changed_there(&self) -> Vec<u8> {
        self.data.entries[CONFLICTS].0.clone()
    }
}
