//! Cuts and floors: what a replica keeps for the sake of others, who takes part, and how it ends; and
//! bits that flip on a disk.

use std::ops::Bound;

use level_replicator_core::clock::{Clock, Dot};
use level_replicator_core::log;
use level_replicator_core::replica::Input;
use level_replicator_core::state::State;
use level_replicator_core::storage::{Storage, Table};

use super::Stage;
use super::names::text;

/// So many rounds of conversations among all are enough for any epoch of a scenario.
const ROUNDS_MAX: usize = 4;

/// An epoch may end one that was open, and another reclaim what came meanwhile.
const EPOCHS_MAX: usize = 3;

impl Stage {
    /// These replicas, or all that run, talk until nothing of what they know is left to be reclaimed, or
    /// they wait for somebody else.
    pub(super) fn reclaim(&mut self, names: &[&str]) -> Result<(), String> {
        let nodes: Result<Vec<usize>, String> =
            names.iter().map(|name| self.names.node(name)).collect();
        let nodes = if names.is_empty() {
            self.cluster.running()
        } else {
            nodes?
        };
        let is_open = |stage: &Stage| {
            let states = nodes.iter().filter_map(|node| stage.cluster.state(*node));
            states.into_iter().any(State::is_epoch_open)
        };
        let names: Vec<String> = nodes.iter().map(|node| self.name(*node)).collect();
        for _ in 0..EPOCHS_MAX {
            if !is_open(self) {
                let able = nodes.iter().find(|node| self.may_propose(**node).is_ok());
                let Some(&able) = able else {
                    break;
                };
                self.do_propose(able)?;
            }
            for _ in 0..ROUNDS_MAX {
                for (place, a) in names.iter().enumerate() {
                    for b in &names[place + 1..] {
                        self.sync(a, b, &["silently"])?;
                    }
                }
                if !is_open(self) {
                    break;
                }
            }
            self.run_for(1_000_000);
            if is_open(self) {
                break;
            }
        }
        let mut told: Vec<(String, Vec<String>)> = Vec::new();
        for (&node, name) in nodes.iter().zip(names) {
            let Some(state) = self.cluster.state(node) else {
                continue;
            };
            let mut floor = format!("floor {}", self.clock_or_nothing(state.floor()));
            if state.is_epoch_open() {
                let missing = state.missing_acks().map(|id| self.names.replica(id));
                let missing: Vec<String> = missing.collect();
                floor.push_str(&format!(", waits for {}", missing.join(", ")));
            }
            match told.iter_mut().find(|(other, _)| *other == floor) {
                Some((_, names)) => names.push(name),
                None => told.push((floor, vec![name])),
            }
        }
        for (floor, names) in told {
            self.tell(format!("{}: {floor}", names.join(", ")));
        }
        Ok(())
    }

    fn clock_or_nothing(&self, clock: &Clock) -> String {
        let told = self.names.clock(clock);
        if told.is_empty() {
            "nothing".to_owned()
        } else {
            told
        }
    }

    fn may_propose(&self, node: usize) -> Result<(), String> {
        let state = self.cluster.state(node).ok_or("it does not run")?;
        if state.is_catching_up() || !state.wanted().is_empty() {
            return Err("it does not know what it lacks".to_owned());
        }
        let has_any = state.has_reclaimable().map_err(|error| error.to_string())?;
        has_any.then_some(()).ok_or("nothing to reclaim".to_owned())
    }

    /// Begins an epoch, as the replica would by itself after a while.
    pub(super) fn propose(&mut self, node: usize) -> Result<(), String> {
        if let Err(reason) = self.may_propose(node) {
            self.tell(format!("proposes nothing: {reason}"));
            return Ok(());
        }
        self.do_propose(node)?;
        let cut = self.cluster.state(node).map(|state| &state.epoch().cut);
        let told = cut.map(|cut| self.clock_or_nothing(cut));
        self.tell(format!("cut {}", told.unwrap_or_default()));
        Ok(())
    }

    fn do_propose(&mut self, node: usize) -> Result<(), String> {
        let replica = self.cluster.nodes[node].replica.as_mut();
        let proposed = replica.ok_or("it does not run")?.state_mut().propose();
        proposed.map_err(|error| error.to_string())?;
        self.cluster.input(node, Input::Timeout);
        self.run_for(5_000);
        Ok(())
    }

    pub(super) fn retire(&mut self, node: usize, other: &str) -> Result<(), String> {
        let other = self.names.node(other)?;
        let id = self.names.id(other).ok_or("it was never met")?;
        let now = self.cluster.now_at(node);
        let replica = self.cluster.nodes[node].replica.as_mut();
        let retired = replica.ok_or("it does not run")?.retire(now, id);
        let is_news = retired.map_err(|error| error.to_string())?;
        self.cluster.poke(node);
        if !is_news {
            self.tell("it is retired already");
        }
        Ok(())
    }

    /// The epoch as one replica knows it.
    pub(super) fn tell_epoch(&mut self, node: usize) -> Result<(), String> {
        let state = self.cluster.state(node).ok_or("it does not run")?;
        let epoch = state.epoch();
        let agreed = epoch.acks.iter().map(|id| self.names.replica(*id));
        let mut agreed: Vec<String> = agreed.collect();
        agreed.sort();
        let mut told = format!(
            "{} by {}: {}",
            epoch.number,
            self.names.replica(epoch.proposer),
            self.clock_or_nothing(&epoch.cut)
        );
        if !agreed.is_empty() {
            told.push_str(&format!(", agreed {}", agreed.join(" ")));
        }
        if state.is_epoch_open() {
            let missing = state.missing_acks().map(|id| self.names.replica(id));
            let mut missing: Vec<String> = missing.collect();
            missing.sort();
            told.push_str(&format!(", waits for {}", missing.join(" ")));
        }
        let told = if epoch.number == 0 {
            "none".to_owned()
        } else {
            told
        };
        self.tell(told);
        Ok(())
    }

    pub(super) fn tell_members(&mut self, node: usize) -> Result<(), String> {
        let state = self.cluster.state(node).ok_or("it does not run")?;
        let mut told: Vec<String> = state
            .members()
            .iter()
            .map(|(id, member)| {
                let name = self.names.replica(id);
                match (member.retired, state.life(id).excluded) {
                    (true, _) => format!("{name} retired"),
                    (false, true) => format!("{name} given up"),
                    (false, false) => name,
                }
            })
            .collect();
        told.sort();
        self.tell(told.join(", "));
        Ok(())
    }

    /// What is on the disk of a replica beside values, clock and writers.
    pub(super) fn keeps(&mut self, node: usize) -> Result<(), String> {
        let state = self.cluster.state(node).ok_or("it does not run")?;
        let snapshot = state.storage().snapshot();
        let rows = |table| {
            snapshot
                .range(table, Bound::Unbounded, Bound::Unbounded)
                .flatten()
        };
        let mut log = Vec::new();
        for (row, value) in rows(Table::Log) {
            let key = log::key_of(&row, &value);
            let key = key.map_or("(damaged)".to_owned(), |key| text(&key));
            log.push(format!("{key}={}", self.entry_name(state, &row)));
        }
        log.sort();
        let (mut deletes, mut histories) = (Vec::new(), Vec::new());
        for (key, _) in rows(Table::Data) {
            let Ok(record) = state.record(&key) else {
                continue;
            };
            let dead = record.live.iter().filter(|live| live.value().is_none());
            deletes.extend(dead.map(|live| format!("{}={}", text(&key), self.names.dot(live.dot))));
            let mut seen: Vec<String> = record.seen.iter().map(|dot| self.names.dot(dot)).collect();
            seen.sort();
            if !seen.is_empty() {
                histories.push(format!("{}={}", text(&key), seen.join(" ")));
            }
        }
        let waiting = rows(Table::Waiting).map(|(key, _)| text(&key)).collect();
        let clock = |clock: &Clock| -> Vec<String> {
            let told = self.names.clock(clock);
            if told.is_empty() { vec![] } else { vec![told] }
        };
        let parts: [(&str, Vec<String>); 6] = [
            ("log", log),
            ("deletes", deletes),
            ("histories", histories),
            ("waiting", waiting),
            ("floor", clock(state.floor())),
            ("wanted", clock(state.wanted())),
        ];
        let told = parts.iter().filter(|(_, part)| !part.is_empty());
        let told: Vec<String> = told
            .map(|(name, part)| format!("{name} {}", part.join(" ")))
            .collect();
        if told.is_empty() {
            self.tell("nothing");
        }
        self.told.extend(told);
        Ok(())
    }

    fn entry_name(&self, state: &State, row: &[u8]) -> String {
        let ord = row.first_chunk().map(|ord| u32::from_be_bytes(*ord));
        let writer = ord.and_then(|ord| state.writers().by_ord(ord));
        let dot = writer.zip(log::seq_of(row)).map(|(writer, seq)| Dot {
            writer: writer.writer,
            seq,
        });
        dot.map_or("(nobody)".to_owned(), |dot| self.names.dot(dot))
    }

    /// A bit flips on the disk of a replica.
    pub(super) fn rot(&mut self, node: usize, what: &[&str]) -> Result<(), String> {
        let disk = self.cluster.nodes[node].disk.clone();
        let first_row = |table, is_it: &dyn Fn(&[u8], &bytes::Bytes) -> bool| {
            let snapshot = disk.snapshot();
            let mut rows = snapshot
                .range(table, Bound::Unbounded, Bound::Unbounded)
                .flatten();
            rows.find(|(row, value)| is_it(row, value))
                .map(|(row, _)| row)
        };
        let done = match *what {
            // The value stands before the four bytes of the checksum.
            ["value", "of", key] => {
                disk.damage_row(Table::Data, key.as_bytes(), |len| (len - 5) * 8)
            }
            ["header", "of", key] => disk.damage_row(Table::Data, key.as_bytes(), |_| 1),
            ["log", "entry", "of", key] => {
                let names = |row: &[u8], value: &bytes::Bytes| {
                    log::key_of(row, value).is_ok_and(|named| named == key.as_bytes())
                };
                let row = first_row(Table::Log, &names);
                row.is_some_and(|row| disk.damage_row(Table::Log, &row, |_| 9))
            }
            [table] => {
                let table = table_called(table)?;
                let row = first_row(table, &|_, _| true);
                row.is_some_and(|row| disk.damage_row(table, &row, |_| 1))
            }
            _ => return Err(format!("nothing is called {}", what.join(" "))),
        };
        self.is_disturbed = true;
        if done {
            Ok(())
        } else {
            Err("no such row".to_owned())
        }
    }
}

fn table_called(name: &str) -> Result<Table, String> {
    Ok(match name {
        "clock" => Table::Clock,
        "floor" => Table::Floor,
        "members" => Table::Members,
        "epoch" => Table::Epoch,
        "writers" => Table::Writers,
        _ => return Err(format!("no table is called {name}")),
    })
}
