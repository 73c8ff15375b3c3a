//! Carrying out the actions of a plan.

use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Now, Stamp};
use level_replicator_core::record::Op;
use level_replicator_core::state::State;

use super::{Later, Look, Run, broken};
use crate::disk::Disk;
use crate::oracle::Broken;
use crate::plan::{Action, Change};

/// How long a program waits for a sync that it asked for.
const SYNC_TIMEOUT_US: u64 = 1_000_000;

impl Run {
    /// The node that an action means: there may be more or fewer than when the plan was made.
    fn node(&self, node: usize) -> usize {
        node % self.cluster.nodes.len()
    }

    pub(super) fn act(&mut self, action: &Action) -> Result<(), Broken> {
        match *action {
            Action::Write { node, ref ops } => self.write(self.node(node), ops),
            Action::Read { node } => {
                self.cluster.trace.count("reads");
                self.look(self.node(node), false, true)
            }
            Action::Sync { node } => {
                let node = self.node(node);
                let now = self.cluster.now_at(node);
                let life = self.cluster.nodes[node].life;
                if let Some(replica) = &mut self.cluster.nodes[node].replica {
                    let sync = replica.request_sync(now);
                    self.cluster.trace.count("syncs asked for");
                    self.plan_later(SYNC_TIMEOUT_US, Later::AbandonSync(node, life, sync));
                }
                self.cluster.poke(node);
                Ok(())
            }
            Action::CutOneWay { from, to } => {
                let (from, to) = (self.node(from), self.node(to));
                if from != to {
                    self.cluster.trace.count("cuts");
                    self.cluster.cut(from, to);
                }
                Ok(())
            }
            Action::Partition { side } => {
                self.partition(side);
                Ok(())
            }
            Action::Heal => {
                self.cluster.trace.count("heals");
                self.cluster.heal();
                Ok(())
            }
            Action::SlowDown { a, b, bytes_per_ms } => {
                let (a, b) = (self.node(a), self.node(b));
                self.cluster.trace.count("lines slowed down");
                self.cluster.slow_down(a, b, bytes_per_ms);
                Ok(())
            }
            Action::BreakLink { choice, silently } => {
                if self.cluster.break_link(choice, silently) {
                    let what = if silently {
                        "links that fell silent"
                    } else {
                        "links broken"
                    };
                    self.cluster.trace.count(what);
                }
                Ok(())
            }
            Action::Kill {
                node,
                silently,
                lost,
                away_us,
                ref again,
            } => {
                let node = self.node(node);
                self.looks[node].crash_again = reversed(again);
                self.kill(node, silently, lost, away_us);
                Ok(())
            }
            Action::CrashAtCommit {
                node,
                after,
                done,
                lost,
            } => {
                let node = self.node(node);
                if self.cluster.nodes[node].replica.is_some() {
                    self.looks[node].lost_at_crash = lost;
                    self.cluster.nodes[node].disk.crash_at_commit(after, done);
                }
                Ok(())
            }
            Action::CloseAndOpen { node, away_us } => self.close(self.node(node), away_us),
            Action::Pause { node, for_us } => {
                let node = self.node(node);
                let now = self.cluster.now_at(node);
                if let Some(replica) = &mut self.cluster.nodes[node].replica {
                    replica.pause(now);
                    self.cluster.trace.count("pauses");
                    self.plan_later(for_us, Later::Resume(node));
                }
                self.cluster.poke(node);
                Ok(())
            }
            Action::FillDisk { node, for_us } => {
                let node = self.node(node);
                self.cluster.nodes[node].disk.set_full(true);
                self.cluster.trace.count("disks filled");
                self.plan_later(for_us, Later::EmptyDisk(node));
                Ok(())
            }
            Action::FailDisk { node, operations } => {
                let node = self.node(node);
                self.cluster.nodes[node].disk.fail_next(operations);
                Ok(())
            }
            Action::Damage {
                node,
                key,
                bit,
                for_us,
            } => {
                let node = self.node(node);
                let disk = &self.cluster.nodes[node].disk;
                if disk.damage(format!("key{key}").as_bytes(), bit) {
                    self.cluster.trace.count("records damaged");
                    self.plan_later(for_us, Later::Repair(node));
                }
                Ok(())
            }
            Action::BackUp { node } => {
                let node = self.node(node);
                let copy = self.cluster.nodes[node].disk.copy();
                self.backups.push((node, copy));
                self.cluster.trace.count("backups");
                Ok(())
            }
            Action::Restore { choice, ref again } => self.restore(choice, again),
            Action::Clone { node } => self.clone_disk(self.node(node)),
            Action::Join { knows, ref again } => {
                let knows = self.node(knows);
                if self.cluster.nodes.len() >= self.replicas_max {
                    return Ok(());
                }
                self.cluster.trace.count("joins");
                let node = self.add_node(Disk::new());
                self.cluster.nodes[node].peers.insert(knows);
                self.looks[node].crash_again = reversed(again);
                self.start(node)
            }
            Action::Die { node } => {
                let node = self.node(node);
                let alive = self.cluster.nodes.iter().filter(|node| !node.is_dead);
                if alive.count() > 1 && !self.cluster.nodes[node].is_dead {
                    self.cluster.trace.count("deaths");
                    self.cluster.kill(node, true);
                    self.cluster.nodes[node].is_dead = true;
                }
                Ok(())
            }
            Action::SetClock {
                node,
                off_us,
                tick_us,
            } => {
                let node = self.node(node);
                self.cluster.trace.count("clocks set");
                self.cluster.nodes[node].wall_off_us = off_us;
                self.cluster.nodes[node].tick_us = tick_us;
                Ok(())
            }
            Action::Discover { node, peer } => {
                let (node, peer) = (self.node(node), self.node(peer));
                self.cluster.discover(node, peer);
                self.look(node, false, false)
            }
            Action::Forget { node, peer } => {
                let (node, peer) = (self.node(node), self.node(peer));
                self.cluster.remove_peer(node, peer);
                self.look(node, false, false)
            }
            Action::Record { side } => {
                self.cluster.record_next_link(side);
                Ok(())
            }
            Action::Retire { node, other } => {
                let (node, other) = (self.node(node), self.node(other));
                let name = self.cluster.nodes[other].replica.as_ref();
                let name = name.map(|replica| replica.state().replica());
                let now = self.cluster.now_at(node);
                if let Some(name) = name
                    && let Some(replica) = &mut self.cluster.nodes[node].replica
                    && replica.state().replica() != name
                    && matches!(replica.retire(now, name), Ok(true))
                {
                    self.cluster.trace.count("retirements");
                }
                self.cluster.poke(node);
                self.look(node, false, false)
            }
            Action::Replay { node } => {
                let node = self.node(node);
                if self.cluster.replay(node) {
                    self.cluster.trace.count("sessions replayed");
                }
                self.look(node, false, false)
            }
        }
    }

    fn write(&mut self, node: usize, changes: &[Change]) -> Result<(), Broken> {
        let disk = self.cluster.nodes[node].disk.clone();
        let (life, now) = (self.cluster.nodes[node].life, self.cluster.now_at(node));
        let ops: Vec<Op> = changes.iter().map(|change| op(change, now)).collect();
        let Some(state) = self.cluster.state(node) else {
            self.cluster.trace.count("writes to nobody");
            return Ok(());
        };
        disk.set_watched(true);
        let seen = self.oracle.look(state, &ops)?;
        disk.set_watched(false);

        let written = self.cluster.write(node, &ops);
        let wall_us = now.wall_us;
        match (written, self.cluster.state(node)) {
            (Some(Ok(written)), Some(state)) => {
                disk.set_watched(true);
                self.oracle
                    .enter(life, wall_us, &seen, &ops, Some(&written), state)?;
                disk.set_watched(false);
                self.cluster.trace.count("writes");
                self.count_ops(&ops);
            }
            (Some(Ok(_)), None) => {
                return broken("D", format!("{node} has answered and died"));
            }
            (Some(Err(_)), None) => {
                // It died inside: the disk tells whether the write was made.
                self.cluster.trace.count("writes unanswered");
                let left = State::open(Arc::new(disk.copy()), [0; 16]);
                let left = left.or_else(|error| broken("D", error.to_string()))?;
                self.oracle.enter(life, wall_us, &seen, &ops, None, &left)?;
            }
            (Some(Err(_)), Some(_)) => {
                self.cluster.trace.count("writes refused by the disk");
                return self.look(node, false, true);
            }
            (None, _) => {}
        }
        self.look(node, false, false)
    }

    fn count_ops(&mut self, ops: &[Op]) {
        let trace = &mut self.cluster.trace;
        trace.count_times("batches", u64::from(ops.len() > 1));
        for op in ops {
            match op {
                Op::Put(_, value) => {
                    trace.count_times("values over 1 MiB", u64::from(value.len() > 1 << 20));
                }
                Op::PutUntil(..) => trace.count("values that expire"),
                Op::Delete(_) => trace.count("deletes"),
            }
        }
    }

    fn partition(&mut self, side: u64) {
        self.cluster.trace.count("cuts");
        let nodes = self.cluster.nodes.len();
        for from in 0..nodes {
            for to in 0..nodes {
                if (side >> (from % 64)) & 1 != (side >> (to % 64)) & 1 {
                    self.cluster.cut(from, to);
                }
            }
        }
    }

    fn kill(&mut self, node: usize, silently: bool, lost: usize, away_us: u64) {
        if self.cluster.nodes[node].replica.is_none() {
            return;
        }
        self.cluster.trace.count("kills");
        self.cluster
            .trace
            .count_times("long absences", u64::from(away_us >= 1_000_000));
        self.cluster.kill(node, silently);
        self.release_disk(node, lost);
        self.plan_later(away_us, Later::Start(node));
    }

    /// The process on a disk has ended; with a loss of power, its last commits go too.
    pub(super) fn release_disk(&mut self, node: usize, lost: usize) {
        let undone = self.cluster.nodes[node].disk.release(lost);
        self.looks[node].lost_at_crash = 0;
        if lost > 0 {
            self.cluster.trace.count("power losses");
        }
        if undone > 0 {
            self.cluster
                .trace
                .count_times("commits undone by a loss of power", undone as u64);
            // What is gone need not be known any more.
            self.looks[node] = Look {
                crash_again: std::mem::take(&mut self.looks[node].crash_again),
                ..Look::default()
            };
        }
    }

    fn close(&mut self, node: usize, away_us: u64) -> Result<(), Broken> {
        if self.cluster.nodes[node].replica.is_none() {
            return Ok(());
        }
        match self.cluster.close(node) {
            Ok(()) => self.cluster.trace.count("clean closes"),
            Err(_) => self.cluster.trace.count("closes refused by the disk"),
        }
        let lost = self.looks[node].lost_at_crash;
        let crashed = self.cluster.nodes[node].disk.has_crashed();
        self.release_disk(node, if crashed { lost } else { 0 });
        self.plan_later(away_us, Later::Start(node));
        Ok(())
    }

    fn restore(&mut self, choice: u64, again: &[u32]) -> Result<(), Broken> {
        let Some((node, copy)) = self
            .backups
            .get(choice as usize % self.backups.len().max(1))
            .map(|(node, disk)| (*node, disk.copy()))
        else {
            return Ok(());
        };
        self.cluster.trace.count("restores");
        self.cluster.kill(node, false);
        self.cluster.nodes[node].is_dead = false;
        self.cluster.nodes[node].disk = copy;
        self.looks[node] = Look {
            crash_again: reversed(again),
            ..Look::default()
        };
        self.start(node)
    }

    fn clone_disk(&mut self, node: usize) -> Result<(), Broken> {
        if self.cluster.nodes.len() >= self.replicas_max || self.cluster.nodes[node].is_dead {
            return Ok(());
        }
        self.cluster.trace.count("clones");
        let copy = self.cluster.nodes[node].disk.copy();
        let clone = self.add_node(copy);
        self.cluster.nodes[clone].peers = self.cluster.nodes[node].peers.clone();
        self.cluster.nodes[clone].peers.insert(node);
        self.start(clone)
    }
}

fn reversed(again: &[u32]) -> Vec<u32> {
    again.iter().rev().copied().collect()
}

fn op(change: &Change, now: Now) -> Op {
    let key = Bytes::from(format!("key{}", change.key));
    match change.put {
        None => Op::Delete(key),
        Some((value, len)) => {
            let mut bytes = value.to_string().into_bytes();
            bytes.resize(len.max(bytes.len()), b'.');
            match change.expires_ms {
                None => Op::Put(key, bytes.into()),
                Some(ms) => {
                    let until = Stamp::from_micros(now.wall_us.saturating_add(1_000 * ms));
                    Op::PutUntil(key, bytes.into(), until)
                }
            }
        }
    }
}
