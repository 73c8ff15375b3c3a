//! Whoever was touched must hold what the oracle says: nothing that a scenario expects can hide it.

use std::collections::BTreeSet;
use std::sync::Arc;

use level_replicator_core::clock::micros;
use level_replicator_core::event::Event;
use level_replicator_core::record::Op;
use level_replicator_core::session::PeerError;
use level_replicator_core::state::State;
use level_replicator_core::storage::Table;

use super::Stage;
use crate::cluster::Touched;
use crate::oracle::{Broken, check_grown};

/// With more writes than this a replica is checked after commands only, not after every step.
const CLOSE_WATCH_MAX: usize = 200;

/// Among more replicas than this nobody wants to hear what happens at each.
const CROWD: usize = 8;

impl Stage {
    /// Lets the next thing happen that happens before a time; answers whether there was one.
    pub(super) fn step(&mut self, until_us: u64) -> bool {
        let Some(touched) = self.cluster.step(until_us) else {
            return false;
        };
        if let Some(touched) = touched {
            self.look_after(touched);
        }
        true
    }

    /// Lets time pass.
    pub(super) fn run_for(&mut self, us: u64) {
        let until_us = self.cluster.now_us + us;
        while self.step(until_us) {}
    }

    /// Looks at a replica to which something happened.
    pub(super) fn look_after(&mut self, touched: Touched) {
        let node = touched.node;
        let look = &self.looks[node];
        let has_given_up = touched.by_time
            && look.is_catching_up
            && self
                .cluster
                .state(node)
                .is_some_and(|state| !state.is_catching_up());
        if has_given_up && let Some(state) = self.cluster.state(node) {
            self.oracle.excuse_batches(state);
            let name = self.name(node);
            self.tell(format!("{name} waits no longer for the rest"));
        }
        if self.oracle.writes() <= CLOSE_WATCH_MAX || !self.cluster.nodes[node].events.is_empty() {
            self.look(node, false);
        }
    }

    pub(super) fn look_at_all(&mut self) {
        for node in 0..self.cluster.nodes.len() {
            self.look(node, true);
        }
    }

    /// Tells what a replica told, and checks it if it has changed.
    fn look(&mut self, node: usize, is_forced: bool) {
        let events = std::mem::take(&mut self.cluster.nodes[node].events);
        if let Some(state) = self.cluster.state(node) {
            self.names.meet_replica(node, state.replica());
        }
        let (mut changed, mut in_conflict) = (BTreeSet::new(), BTreeSet::new());
        for event in events {
            match &event {
                Event::Change { key, .. } => changed.extend([key.clone()]),
                Event::Conflict { key } => in_conflict.extend([key.clone()]),
                _ => {}
            }
            self.tell_event(node, &event);
        }
        if let Some(state) = self.cluster.state(node) {
            self.names.meet_replica(node, state.replica());
            for descriptor in state.writers().iter() {
                self.names.meet_reissued(descriptor);
            }
        }
        let Some(state) = self.cluster.state(node) else {
            return;
        };
        if let Some(writer) = state.current_writer() {
            self.names.meet(node, writer);
        }
        let life = self.cluster.nodes[node].life;
        let look = &self.looks[node];
        let is_same = (look.life, look.commits) == (life, state.commits());
        let is_late = self.oracle.writes() > CLOSE_WATCH_MAX && !is_forced;
        // What the log says is checked again once it can be read.
        let is_rotten = self.cluster.nodes[node].disk.is_rotten(Table::Log);
        if is_same || is_late || look.is_unchecked || is_rotten {
            return;
        }
        if state.promotions() > look.promotions {
            // It forgets all that is not live with it.
            self.looks[node].promotions = state.promotions();
            self.looks[node].clock = Arc::clone(state.clock());
            self.looks[node].floor = Arc::default();
            self.looks[node].has_forgotten = true;
            self.oracle.be_lenient();
        }
        let look = &self.looks[node];
        let disk = &self.cluster.nodes[node].disk;
        let now = self.cluster.now_at(node);
        let checked = check_grown(&look.clock, state.clock())
            .and_then(|()| check_grown(&look.floor, state.floor()))
            .and_then(|()| check_ack(state, look.has_forgotten))
            .and_then(|()| self.oracle.check_floor(state))
            .and_then(|()| {
                let grace_us = micros(self.config.expiry_grace);
                self.oracle.enter_expired(life, now, grace_us, state)
            })
            .and_then(|_| self.oracle.check(state, now, |key| disk.is_damaged(key)))
            .and_then(|shown| self.oracle.check_batches(state, &shown).map(|()| shown))
            .and_then(|shown| {
                if look.life == life && self.oracle.writes() <= CLOSE_WATCH_MAX {
                    shown.check_told(&look.shown, &changed, &in_conflict)?;
                }
                Ok(shown)
            });
        let (commits, is_catching_up) = (state.commits(), state.is_catching_up());
        let (clock, floor) = (Arc::clone(state.clock()), Arc::clone(state.floor()));
        let look = &mut self.looks[node];
        look.floor = floor;
        (look.life, look.commits) = (life, commits);
        (look.clock, look.is_catching_up) = (clock, is_catching_up);
        match checked {
            Ok(shown) => look.shown = shown,
            Err(broken) => self.tell_broken(node, &broken),
        }
    }

    fn tell_broken(&mut self, node: usize, broken: &Broken) {
        // One sentence is enough: what follows from it says nothing new.
        self.looks[node].is_unchecked = true;
        let how = self.names.translate(&broken.how);
        let name = self.name(node);
        self.broken(format!("{} at {name}: {how}", broken.invariant));
    }

    fn tell_event(&mut self, node: usize, event: &Event) {
        let name = self.name(node);
        if let Event::WriterCollision { .. } | Event::Divergence { key: Some(_), .. } = event {
            // It has written values again by itself.
            self.looks[node].is_unchecked = true;
        }
        match event {
            Event::Conflict { .. } if self.looks.len() > CROWD => {}
            Event::Error {
                error: PeerError::Unreachable { .. },
                ..
            } if self.looks.len() > CROWD => {}
            Event::Conflict { key } => {
                self.tell(format!(
                    "{name} has a conflict on {}",
                    super::names::text(key)
                ));
            }
            Event::Error { error, .. } => {
                let accuses = matches!(
                    error,
                    PeerError::Frame(_) | PeerError::Malformed(_) | PeerError::Misbehaved(_)
                );
                let error = self.names.translate(&error.to_string());
                if accuses && !self.is_disturbed {
                    self.broken(format!("{name} accuses an honest peer: {error}"));
                } else {
                    self.tell(format!("{name} error: {error}"));
                }
            }
            Event::ClockSkew { ahead_ms, .. } => {
                let hours = ahead_ms / 3_600_000;
                self.tell(format!(
                    "{name} is told stamps {hours} hours ahead of its clock"
                ));
            }
            Event::Divergence { key, .. } if self.is_disturbed => {
                let key = key.as_ref().map(super::names::text);
                let where_ = key.map_or("other data".to_owned(), |key| format!("{key} differs"));
                self.tell(format!(
                    "{name} reports a divergence: equal clocks, {where_}"
                ));
            }
            Event::Promoted => self.tell(format!("{name} promotes itself")),
            Event::Renamed { before, now } => {
                let (before, now) = (self.names.replica(*before), self.names.replica(*now));
                self.tell(format!("{name} takes a new name: {before} becomes {now}"));
            }
            Event::Excluded { replica } => {
                let replica = self.names.replica(*replica);
                self.tell(format!("{name} waits no longer for {replica}"));
            }
            Event::WriterCollision { writer, keys } => {
                let writer = self.names.writers(&[*writer]);
                self.tell(format!(
                    "{name} shares {writer} with a twin: {keys} keys are written again"
                ));
            }
            Event::Rebuilt { damage } => {
                self.tell(format!("{name} rebuilds what it knows: {damage}"));
            }
            Event::Divergence { .. } => self.broken(format!("{name} reports a divergence")),
            _ => {}
        }
    }

    /// Writes on a replica as its program would, and enters it with the oracle.
    pub(super) fn write(&mut self, node: usize, ops: &[Op]) -> Result<String, String> {
        let name = self.name(node);
        let (life, wall_us) = (
            self.cluster.nodes[node].life,
            self.cluster.now_at(node).wall_us,
        );
        let is_checked = !self.looks[node].is_unchecked;
        let state = self.cluster.state(node);
        let state = state.ok_or_else(|| format!("{name} does not run"))?;
        let seen = self.oracle.look(state, ops);
        let seen = seen.map_err(|broken| broken.how);
        let written = self.cluster.write(node, ops);
        let told = match (written, self.cluster.state(node)) {
            (Some(Ok(written)), Some(state)) => {
                if let Some(writer) = state.current_writer() {
                    self.names.meet(node, writer);
                }
                if is_checked {
                    let entered =
                        self.oracle
                            .enter(life, wall_us, &seen?, ops, Some(&written), state);
                    if let Err(broken) = entered {
                        self.tell_broken(node, &broken);
                    }
                }
                match written.first.zip(written.last) {
                    None => "writes nothing".to_owned(),
                    Some((first, last)) if first == last => self.names.dot(first),
                    Some((first, last)) => {
                        format!("{} to {}", self.names.dot(first), last.seq)
                    }
                }
            }
            (Some(Err(error)), Some(_)) => format!("refused: {error}"),
            (Some(Err(_)), None) => {
                let copy = Arc::new(self.cluster.nodes[node].disk.copy());
                if let (Ok(left), Ok(seen)) = (State::open(copy, [0; 16]), seen) {
                    let entered = self.oracle.enter(life, wall_us, &seen, ops, None, &left);
                    entered.map_err(|broken| broken.how)?;
                }
                format!("{name} dies in the middle of it")
            }
            _ => "nobody there".to_owned(),
        };
        Ok(told)
    }
}

/// Checks that a replica has agreed to nothing that it does not know. One that lost its memory may have.
fn check_ack(state: &State, has_forgotten: bool) -> Result<(), Broken> {
    let epoch = state.epoch();
    let is_known = has_forgotten || state.clock().covers(&epoch.cut);
    if is_known || !epoch.acks.contains(&state.replica()) {
        return Ok(());
    }
    Err(Broken {
        invariant: "E2 epoch",
        how: "it has agreed to a cut that it does not know".to_owned(),
    })
}
