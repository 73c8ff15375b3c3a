//! What the program and the machine of one replica do, and what can be seen of it.

use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Now, Stamp};
use level_replicator_core::frame::FrameWriter;
use level_replicator_core::log;
use level_replicator_core::message::{Heads, Message};
use level_replicator_core::record::Op;
use level_replicator_core::resolver::{Resolver, siblings};
use level_replicator_core::state::State;
use level_replicator_core::storage::{Batch, Storage, Table};

use super::names::text;
use super::{Look, Stage, number, span, value};
use crate::chance::chance;
use crate::disk::Disk;

/// A kill -9 now and then may cost at most so much more than one undisturbed transfer.
const KILLED_RATIO_MAX: f64 = 1.2;

/// No cluster of a scenario needs longer to agree, in virtual seconds.
const AGREE_MAX_S: u64 = 1_000;

impl Stage {
    pub(super) fn configure(&mut self, settings: &[&str]) -> Result<(), String> {
        for setting in settings {
            let (name, value) = setting.split_once('=').ok_or("a setting is NAME=VALUE")?;
            let value = number(value)?;
            match name {
                "seed" => self.cluster.seed = value as u64,
                "atomic_budget" => self.config.atomic_budget = value,
                "window" => self.config.window = value,
                "range_keys" => self.config.range_keys = value,
                "ranges_per_reached" => self.config.ranges_per_reached = value,
                "idle_seconds" => {
                    self.config.idle_interval = Duration::from_secs(value as u64);
                }
                "horizon_seconds" => self.config.horizon = Duration::from_secs(value as u64),
                "reclaim_seconds" => {
                    self.config.reclaim_interval = Duration::from_secs(value as u64);
                }
                "overdue_seconds" => self.config.overdue = Duration::from_secs(value as u64),
                _ => return Err(format!("no setting is called {name}")),
            }
        }
        self.cluster.config = self.config.clone();
        Ok(())
    }

    pub(super) fn add_replicas(&mut self, names: &[&str]) -> Result<(), String> {
        for name in names {
            let node = self.add(name, Disk::new());
            self.start(node)?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str, disk: Disk) -> usize {
        self.cluster.config = self.config.clone();
        self.names.replicas.push(name.to_owned());
        self.looks.push(Look::default());
        self.resolvers.push(Resolver::default());
        self.cluster.add_node(disk)
    }

    /// Many replicas that know each other's addresses and call as they like.
    pub(super) fn build(&mut self, count: usize, shape: &str) -> Result<(), String> {
        let mut luck = chance(self.cluster.seed, &[6]);
        for node in 0..count {
            let name = format!("r{}", node + 1);
            self.add(&name, Disk::new());
            let peer = match (node, shape) {
                (0, "ring") => Some(count - 1),
                (0, _) => None,
                (_, "chain" | "ring") => Some(node - 1),
                (_, "star") => Some(0),
                (_, "random") => Some(luck.usize(..node)),
                _ => return Err(format!("no cluster is a {shape}")),
            };
            self.cluster.nodes[node].peers.extend(peer);
        }
        (0..count).try_for_each(|node| self.start(node))
    }

    pub(super) fn start(&mut self, node: usize) -> Result<(), String> {
        self.cluster.open(node).map_err(|error| error.to_string())?;
        self.cluster.scan(node, 0);
        self.run_for(1);
        Ok(())
    }

    pub(super) fn wait(&mut self, us: i64) -> Result<(), String> {
        self.run_for(us.unsigned_abs());
        Ok(())
    }

    pub(super) fn act_on(&mut self, node: usize, deed: &[&str]) -> Result<(), String> {
        let name = self.name(node);
        match *deed {
            ["put" | "delete", ..] => {
                let op = op(deed, self.cluster.now_at(node))?;
                self.write_and_tell(node, &[op])
            }
            ["batch", ref ops @ ..] => {
                let ops = ops.split(|word| *word == ",").filter(|op| !op.is_empty());
                let now = self.cluster.now_at(node);
                let ops: Result<Vec<Op>, String> = ops.map(|words| op(words, now)).collect();
                self.write_and_tell(node, &ops?)
            }
            ["fill", prefix, count, "of", len, "bytes"] => {
                self.fill(node, prefix, number(count)?, number(len)?)
            }
            ["resolve", key, word] => self.resolve(node, key, value(word)),
            ["resolver", which] => {
                self.resolvers[node] = resolver(which)?;
                Ok(())
            }
            ["get", key] => {
                let told = self.view(node, &Bytes::copy_from_slice(key.as_bytes()));
                self.tell(told);
                // As the library does with what it cannot read.
                if let Some(replica) = &mut self.cluster.nodes[node].replica
                    && let Err(damage) = replica.state().record(key.as_bytes())
                {
                    replica.note_damage(&damage);
                }
                Ok(())
            }
            ["shows"] => self.show(node),
            ["knows"] => {
                let state = self.cluster.state(node).ok_or("it does not run")?;
                let told = self.names.clock(state.clock());
                self.tell(if told.is_empty() {
                    "nothing".to_owned()
                } else {
                    told
                });
                Ok(())
            }
            ["size"] => self.size(node),
            ["crash"] => {
                self.cluster.kill(node, false);
                self.release(node, 0)
            }
            ["crash", "at", "commit", place] => {
                let before = number(place)? as u32 - 1;
                self.cluster.nodes[node].disk.crash_at_commit(before, true);
                Ok(())
            }
            ["crash", "before", "commit", place] => {
                let before = number(place)? as u32 - 1;
                self.cluster.nodes[node].disk.crash_at_commit(before, false);
                Ok(())
            }
            ["power-loss", count] => {
                self.cluster.kill(node, false);
                self.release(node, number(count)?)
            }
            ["close"] => self.cluster.close(node).map_err(|error| error.to_string()),
            ["open"] => {
                self.cluster.nodes[node].disk.release(0);
                self.start(node)
            }
            ["opens", count, "times"] => self.open_often(node, number(count)?),
            ["dies"] => {
                self.cluster.kill(node, false);
                self.cluster.nodes[node].is_dead = true;
                Ok(())
            }
            ["backup", "as", backup] => {
                let copy = self.cluster.nodes[node].disk.copy();
                self.backups.insert(backup.to_owned(), copy);
                Ok(())
            }
            ["restore", backup] => {
                let copy = self.backups.get(backup).ok_or("no such backup")?.copy();
                self.put_disk(node, copy)
            }
            ["clone", "as", clone] => {
                let copy = self.cluster.nodes[node].disk.copy();
                let clone = self.add(clone, copy);
                self.looks[clone].has_forgotten = true;
                self.looks[node].has_forgotten = true;
                self.start(clone)
            }
            ["twin", "as", twin] => self.twin(node, twin),
            ["clock", count, unit] => {
                self.cluster.nodes[node].wall_off_us += span(count, unit)?;
                Ok(())
            }
            ["loses", "the", "log", "entry", "of", key] => self.lose_log_entry(node, key),
            ["rots", "the", ref what @ ..] => self.rot(node, what),
            ["keeps"] => self.keeps(node),
            ["epoch"] => self.tell_epoch(node),
            ["members"] => self.tell_members(node),
            ["proposes"] => self.propose(node),
            ["cannot", "reach", other] => {
                let other = self.names.node(other)?;
                self.cluster.cut(node, other);
                self.cluster.cut(other, node);
                Ok(())
            }
            ["reaches", "all"] => {
                self.cluster.heal();
                Ok(())
            }
            ["retires", other] => self.retire(node, other),
            ["crashes", "at", "each", "commit", "in", "sync", from] => {
                self.crash_at_each_commit(node, from)
            }
            [
                "is",
                "killed",
                "after",
                "every",
                count,
                "frames",
                "from",
                from,
            ] => self.kill_often(node, number(count)?, from),
            _ => Err(format!("{name} cannot {}", deed.join(" "))),
        }
    }

    fn write_and_tell(&mut self, node: usize, ops: &[Op]) -> Result<(), String> {
        let told = self.write(node, ops)?;
        self.tell(told);
        Ok(())
    }

    /// Many keys with values that no compression makes smaller.
    fn fill(&mut self, node: usize, prefix: &str, count: usize, len: usize) -> Result<(), String> {
        let mut luck = chance(self.cluster.seed, &[7]);
        let mut told = String::new();
        for place in 0..count {
            let bytes: Vec<u8> = (0..len).map(|_| luck.u8(..)).collect();
            let key = Bytes::from(format!("{prefix}{place:05}"));
            told = self.write(node, &[Op::Put(key, bytes.into())])?;
        }
        self.tell(format!("up to {told}"));
        Ok(())
    }

    /// As the library does: nothing is written if all values are that value already.
    fn resolve(&mut self, node: usize, key: &str, value: Bytes) -> Result<(), String> {
        let state = self.cluster.state(node).ok_or("it does not run")?;
        let record = state
            .record(key.as_bytes())
            .map_err(|error| error.to_string())?;
        let mut values = record.puts().filter_map(|put| put.value()).peekable();
        if values.peek().is_some() && values.all(|known| *known == value) {
            self.tell("writes nothing");
            return Ok(());
        }
        self.write_and_tell(
            node,
            &[Op::Put(Bytes::copy_from_slice(key.as_bytes()), value)],
        )
    }

    /// What readers see of a key.
    pub(super) fn view(&self, node: usize, key: &Bytes) -> String {
        let Some(state) = self.cluster.state(node) else {
            return "(nobody there)".to_owned();
        };
        match state.record(key) {
            Ok(record) => {
                let now = Stamp::from_micros(self.cluster.now_at(node).wall_us);
                let shown = self.resolvers[node].resolve(key, &record, state.writers(), now);
                shown.map_or("nothing".to_owned(), |(value, _)| text(&value))
            }
            Err(error) => self.names.translate(&error.to_string()),
        }
    }

    fn show(&mut self, node: usize) -> Result<(), String> {
        let state = self.cluster.state(node).ok_or("it does not run")?;
        let mut told = Vec::new();
        let now = Stamp::from_micros(self.cluster.now_at(node).wall_us);
        let snapshot = state.storage().snapshot();
        for row in snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded) {
            let (key, _) = row.map_err(|error| error.to_string())?;
            let record = state.record(&key).map_err(|error| error.to_string())?;
            let mut values: Vec<String> = siblings(&key, &record, state.writers(), now)
                .iter()
                .map(|sibling| {
                    format!("{} ({})", text(&sibling.value), self.names.dot(sibling.dot))
                })
                .collect();
            values.sort();
            let conflict = if values.len() > 1 {
                format!(", readers see {}", self.view(node, &key))
            } else {
                String::new()
            };
            if !values.is_empty() {
                told.push(format!(
                    "{} = {}{conflict}",
                    text(&key),
                    values.join(" and ")
                ));
            }
        }
        if told.is_empty() {
            told.push("nothing".to_owned());
        }
        if state.is_catching_up() {
            told.push("catching up".to_owned());
        }
        self.told.extend(told);
        Ok(())
    }

    /// What a clock costs: entries, and bytes when it is told as a whole.
    fn size(&mut self, node: usize) -> Result<(), String> {
        let state = self.cluster.state(node).ok_or("it does not run")?;
        let mut frames = FrameWriter::default();
        for heads in Heads::changed(state.clock(), &Clock::default()) {
            let (asks, more) = (false, false);
            Message::Clock { heads, asks, more }.encode(&mut frames);
        }
        let (writers, clock) = (state.writers().len(), state.clock().len());
        let wire = frames.take().len();
        self.tell(format!(
            "{writers} writers, {clock} in the clock, {wire} bytes on the wire"
        ));
        Ok(())
    }

    /// The process is gone; with a loss of power its last commits are, too.
    fn release(&mut self, node: usize, lost: usize) -> Result<(), String> {
        let undone = self.cluster.nodes[node].disk.release(lost);
        if undone > 0 {
            self.looks[node] = Look::default();
            self.tell(format!("{undone} commits are lost"));
        }
        Ok(())
    }

    fn put_disk(&mut self, node: usize, disk: Disk) -> Result<(), String> {
        self.cluster.kill(node, false);
        self.cluster.nodes[node].is_dead = false;
        self.cluster.nodes[node].disk = disk;
        self.looks[node] = Look {
            has_forgotten: true,
            ..Look::default()
        };
        self.start(node)
    }

    fn open_often(&mut self, node: usize, count: usize) -> Result<(), String> {
        for time in 0..count {
            let key = Bytes::from_static(b"counter");
            let op = Op::Put(key, time.to_string().into());
            // The oracle goes through all writes of a key with each: it looks at the last one only.
            self.looks[node].is_unchecked = true;
            let written = self.cluster.write(node, &[op]);
            written
                .ok_or("nobody there")?
                .map_err(|error| error.to_string())?;
            let writer = self.cluster.state(node).and_then(State::current_writer);
            writer
                .into_iter()
                .for_each(|writer| self.names.meet(node, writer));
            self.cluster
                .close(node)
                .map_err(|error| error.to_string())?;
            self.cluster.open(node).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The same memory goes on twice: both take the same name for their next writer.
    fn twin(&mut self, node: usize, twin: &str) -> Result<(), String> {
        self.cluster.kill(node, false);
        let copy = self.cluster.nodes[node].disk.copy();
        let twin = self.add(twin, copy);
        let memory = chance(self.cluster.seed, &[8, twin as u64]).u64(..);
        for node in [node, twin] {
            let opened = self.cluster.open_with(node, memory);
            opened.map_err(|error| error.to_string())?;
            self.cluster.scan(node, 0);
        }
        self.run_for(1);
        self.is_disturbed = true;
        self.looks[twin].is_unchecked = true;
        Ok(())
    }

    fn lose_log_entry(&mut self, node: usize, key: &str) -> Result<(), String> {
        let disk = &self.cluster.nodes[node].disk;
        let snapshot = disk.snapshot();
        let mut rows = snapshot
            .range(Table::Log, Bound::Unbounded, Bound::Unbounded)
            .flatten();
        let row = rows.find(|(row, value)| {
            log::key_of(row, value).is_ok_and(|named| named == key.as_bytes())
        });
        let (row, _) = row.ok_or("no such entry")?;
        let mut batch = Batch::default();
        batch.remove(Table::Log, row);
        disk.commit(batch).map_err(|error| error.to_string())?;
        self.is_disturbed = true;
        self.looks[node].is_unchecked = true;
        Ok(())
    }

    /// From the same disk again and again: the process dies after its first, second, .. commit.
    fn crash_at_each_commit(&mut self, node: usize, from: &str) -> Result<(), String> {
        let name = self.name(node);
        self.cluster
            .close(node)
            .map_err(|error| error.to_string())?;
        let before = self.cluster.nodes[node].disk.copy();
        for commit in 0..200 {
            self.put_disk(node, before.copy())?;
            self.cluster.nodes[node].disk.crash_at_commit(commit, true);
            self.sync(&name, from, &["quietly"])?;
            self.told.clear();
            if self.cluster.state(node).is_some() {
                // The crash that did not come does not come later either.
                self.cluster.nodes[node].disk.release(0);
                self.tell(format!(
                    "{commit} crashes; each time the next conversation made it whole"
                ));
                return Ok(());
            }
            self.cluster.nodes[node].disk.release(0);
            self.start(node)?;
            self.sync(&name, from, &["quietly"])?;
            self.expect_equal(&[&name, from])?;
            self.look_at_all();
            if !self.broken.is_empty() {
                return Err(format!("crash at commit {commit}"));
            }
        }
        Err("the conversation never came to its end".to_owned())
    }

    fn kill_often(&mut self, node: usize, frames: usize, from: &str) -> Result<(), String> {
        let name = self.name(node);
        let sender = self.names.node(from)?;
        let sent = |stage: &Stage| {
            let replica = stage.cluster.nodes[sender].replica.as_ref();
            replica.map_or(0, |replica| replica.traffic().sent_bytes)
        };
        // What it takes without a kill, from the same disk.
        let before = self.cluster.nodes[node].disk.copy();
        let begun = sent(self);
        self.sync(&name, from, &["quietly"])?;
        let once = sent(self) - begun;
        self.put_disk(node, before)?;
        let begun = sent(self);
        let mut kills = 0;
        let moment = [
            "quietly",
            "stop",
            "after",
            &frames.to_string(),
            "frames",
            "from",
            from,
        ];
        loop {
            self.sync(&name, from, &moment)?;
            if self.talks.pop().is_none() {
                break;
            }
            self.cluster.frozen.clear();
            self.cluster.kill(node, false);
            self.run_for(300);
            self.cluster.remove_peer(sender, node);
            self.start(node)?;
            kills += 1;
        }
        let ratio = (sent(self) - begun) as f64 / once as f64;
        self.told.clear();
        self.tell(format!("killed {kills} times"));
        if ratio > KILLED_RATIO_MAX {
            self.broken(format!("all that was sent is {ratio:.2} times once"));
        } else {
            self.tell(format!(
                "all that was sent is at most {KILLED_RATIO_MAX} times once"
            ));
        }
        Ok(())
    }

    pub(super) fn run_until_equal(&mut self) -> Result<(), String> {
        let running = self.cluster.running();
        for second in 1..=AGREE_MAX_S {
            self.run_for(1_000_000);
            let states = running.iter().filter_map(|node| self.cluster.state(*node));
            let mut clocks = states.map(|state| (state.is_catching_up(), state.clock()));
            let first = clocks.next();
            if clocks.all(|clock| !clock.0 && Some(clock) == first) {
                let steps = [1, 2, 5, 10, 20, 50, 100, 200, 500];
                let within = steps.into_iter().find(|step| second <= *step);
                self.tell(format!("equal within {} s", within.unwrap_or(AGREE_MAX_S)));
                return self.expect_equal(&[]);
            }
        }
        self.broken("they never agree".to_owned());
        Ok(())
    }

    /// Equal clocks and contents, and nothing lost that anybody of them knows. Some may still wait for
    /// the rest of what a dead one wrote.
    pub(super) fn expect_equal(&mut self, names: &[&str]) -> Result<(), String> {
        let nodes: Result<Vec<usize>, String> =
            names.iter().map(|name| self.names.node(name)).collect();
        let nodes = if names.is_empty() {
            self.cluster.running()
        } else {
            nodes?
        };
        let states = nodes.iter().filter_map(|node| self.cluster.state(*node));
        let states: Vec<&State> = states.collect();
        let Some(first) = states.first() else {
            return Err("nobody runs".to_owned());
        };
        let mut faults = Vec::new();
        let digest = |state: &State| state.tally().map(|tally| tally.digest);
        let known = self.oracle.known_to_any(states.iter().copied());
        for (state, node) in states.iter().zip(&nodes) {
            let name = self.names.of(*node);
            if state.clock() != first.clock() {
                faults.push(format!("{name} does not know the same"));
            } else if digest(state).is_none() || digest(state) != digest(first) {
                faults.push(format!("{name} does not hold the same"));
            }
            if !self.looks[*node].is_unchecked
                && let Err(broken) = self.oracle.check_nothing_is_lost(state, &known)
            {
                let how = self.names.translate(&broken.how);
                faults.push(format!("{} at {name}: {how}", broken.invariant));
            }
        }
        if faults.is_empty() {
            self.tell("equal");
        }
        faults.into_iter().for_each(|fault| self.broken(fault));
        Ok(())
    }

    pub(super) fn expect_value(
        &mut self,
        name: &str,
        key: &str,
        value: &str,
    ) -> Result<(), String> {
        let node = self.names.node(name)?;
        let shown = self.view(node, &Bytes::copy_from_slice(key.as_bytes()));
        if shown == value {
            self.tell("yes");
        } else {
            self.broken(format!("{name} shows {shown} for {key}, not {value}"));
        }
        Ok(())
    }
}

fn op(words: &[&str], now: Now) -> Result<Op, String> {
    match words {
        ["put", key, content, "for", count, unit] => {
            let until = now.wall_us.saturating_add_signed(span(count, unit)?);
            Ok(Op::PutUntil(
                value(key),
                value(content),
                Stamp::from_micros(until),
            ))
        }
        ["put", key, content] => Ok(Op::Put(value(key), value(content))),
        ["delete", key] => Ok(Op::Delete(value(key))),
        _ => Err(format!("no operation: {}", words.join(" "))),
    }
}

fn resolver(which: &str) -> Result<Resolver, String> {
    Ok(match which {
        "last" => Resolver::last_write_wins(),
        "first" => Resolver::first_write_wins(),
        "largest" => Resolver::pick(|a, b| b.value > a.value),
        "joined" => Resolver::merge(|a, b| [&a.value[..], b"+", &b.value[..]].concat()),
        _ => return Err(format!("no resolver is called {which}")),
    })
}
