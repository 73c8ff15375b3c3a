//! How the cost of a write grows with the number of replicas, in virtual time.
//!
//! A cluster with the settings of production learns its addresses from one, then somebody writes one
//! key at a time. A *round* is one conversation further: a write has taken as many rounds as the
//! longest chain of conversations over which a replica got it.

pub mod report;

use std::time::Duration;

use bytes::Bytes;
use level_replicator_core::clock::Dot;
use level_replicator_core::config::Config;
use level_replicator_core::record::Op;
use level_replicator_core::replica::Replica;

use crate::chance::chance;
use crate::cluster::{Cluster, Weather};
use crate::disk::Disk;
use crate::trace::Trace;

/// Bytes of a key and its value, together, in each write that is measured.
const ENTRY_BYTES: usize = 116;

/// A write that has not arrived everywhere after this long never will.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who writes what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Nobody wrote for a while, and no link is open.
    Quiet,
    /// Every replica writes once a second.
    Busy,
}

impl Load {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Load::Quiet => "quiet",
            Load::Busy => "busy",
        }
    }

    /// A line about it.
    pub fn title(self) -> &'static str {
        match self {
            Load::Quiet => "Quiet: one write after five seconds of silence, no link open",
            Load::Busy => "Busy: every replica writes once a second",
        }
    }
}

/// What one write costs in a cluster of a size: medians over several writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Number of replicas.
    pub replicas: usize,
    /// Conversations in a row until everybody has it.
    pub rounds: f64,
    /// The most of them that any write took.
    pub rounds_worst: f64,
    /// Virtual milliseconds until everybody has it.
    pub ms: f64,
    /// How often its record reached each other replica.
    pub crossings: f64,
    /// Bytes on all links, for each other replica, before encryption.
    pub bytes: f64,
}

impl Cost {
    /// The rounds that are allowed for so many replicas: one for each doubling, and four.
    pub fn rounds_max(replicas: usize) -> f64 {
        (replicas as f64).log2() + 4.0
    }

    /// The crossings that are allowed.
    pub const CROSSINGS_MAX: f64 = 1.3;
}

/// Measures a cluster of so many replicas: `writes` writes, each by another replica.
///
/// # Errors
///
/// A sentence, if a write did not arrive everywhere.
pub fn measure(replicas: usize, load: Load, writes: usize) -> Result<Cost, String> {
    let mut crowd = Crowd::new(replicas);
    let mut costs = Vec::new();
    match load {
        Load::Quiet => {
            for write in 0..writes {
                crowd.cluster.run_for(5_000_000);
                costs.push(crowd.cost_of_one(write)?);
            }
        }
        Load::Busy => costs.push(crowd.cost_of_many(writes)?),
    }
    let of = |field: fn(&Cost) -> f64| middle(costs.iter().map(field).collect());
    Ok(Cost {
        replicas,
        rounds: of(|cost| cost.rounds),
        rounds_worst: costs
            .iter()
            .map(|cost| cost.rounds_worst)
            .fold(0.0, f64::max),
        ms: of(|cost| cost.ms),
        crossings: of(|cost| cost.crossings),
        bytes: of(|cost| cost.bytes),
    })
}

/// Replicas that know one another.
struct Crowd {
    cluster: Cluster,
    luck: fastrand::Rng,
}

/// A write on its way.
struct Spread {
    dot: Dot,
    began_us: u64,
    /// Over how many conversations each replica got it.
    rounds: Vec<Option<u64>>,
    done_us: u64,
}

impl Crowd {
    fn new(replicas: usize) -> Crowd {
        let seed = replicas as u64;
        let mut cluster = Cluster::new(seed, Config::default(), Trace::new(false));
        cluster.weather = Weather {
            delay_min_us: 100,
            delay_max_us: 1_000,
            ..Weather::FAIR
        };
        for node in 0..replicas {
            cluster.add_node(Disk::new());
            if node > 0 {
                cluster.nodes[node].peers.insert(0);
            }
        }
        for node in 0..replicas {
            // An empty disk without faults opens.
            let _ = cluster.open(node);
        }
        cluster.run_for(120_000_000);
        Crowd {
            cluster,
            luck: chance(seed, &[7]),
        }
    }

    fn write(&mut self, node: usize) -> Result<Spread, String> {
        let key = Bytes::from(format!("{:016x}", self.luck.u64(..)));
        let value: Vec<u8> = (0..ENTRY_BYTES - key.len())
            .map(|_| self.luck.u8(..))
            .collect();
        let op = Op::Put(key, value.into());
        let written = self.cluster.write(node, &[op]);
        let dot = written
            .and_then(Result::ok)
            .and_then(|written| written.last);
        let mut rounds = vec![None; self.cluster.nodes.len()];
        rounds[node] = Some(0);
        Ok(Spread {
            dot: dot.ok_or("a write without a name")?,
            began_us: self.cluster.now_us,
            rounds,
            done_us: 0,
        })
    }

    /// Lets things happen until all writes are everywhere.
    fn run_until_everywhere(&mut self, spreads: &mut [Spread]) -> Result<(), String> {
        let until_us = self.cluster.now_us + PATIENCE.as_micros() as u64;
        while spreads.iter().any(|spread| spread.done_us == 0) {
            let Some(touched) = self.cluster.step(until_us) else {
                return Err(format!("a write is not everywhere after {PATIENCE:?}"));
            };
            self.note(touched, spreads);
        }
        Ok(())
    }

    fn run_for(&mut self, us: u64, spreads: &mut [Spread]) {
        let until_us = self.cluster.now_us + us;
        while let Some(touched) = self.cluster.step(until_us) {
            self.note(touched, spreads);
        }
    }

    fn note(&mut self, touched: Option<crate::cluster::Touched>, spreads: &mut [Spread]) {
        let Some((node, from)) = touched.and_then(|touched| Some((touched.node, touched.from?)))
        else {
            return;
        };
        self.cluster.nodes[node].events.clear();
        let Some(state) = self.cluster.state(node) else {
            return;
        };
        for spread in spreads.iter_mut().filter(|spread| spread.done_us == 0) {
            if spread.rounds[node].is_none() && state.clock().contains(spread.dot) {
                spread.rounds[node] = spread.rounds[from].map(|rounds| rounds + 1);
                if spread.rounds.iter().all(Option::is_some) {
                    spread.done_us = self.cluster.now_us;
                }
            }
        }
    }

    /// Records received and bytes sent, over all replicas.
    fn sums(&self) -> (u64, u64) {
        let replicas = self
            .cluster
            .nodes
            .iter()
            .filter_map(|node| node.replica.as_ref());
        let traffic = replicas.map(Replica::traffic);
        traffic.fold((0, 0), |(records, bytes), traffic| {
            (
                records + traffic.received_records,
                bytes + traffic.sent_bytes,
            )
        })
    }

    fn cost_of_one(&mut self, write: usize) -> Result<Cost, String> {
        let before = self.sums();
        let others = (self.cluster.nodes.len() - 1) as f64;
        let mut spreads = [self.write(write * 7 % self.cluster.nodes.len())?];
        self.run_until_everywhere(&mut spreads)?;
        // What is still said about it belongs to its cost.
        self.cluster.run_for(3_000_000);
        let after = self.sums();
        Ok(cost(
            &spreads,
            others,
            (after.0 - before.0, after.1 - before.1),
        ))
    }

    fn cost_of_many(&mut self, seconds: usize) -> Result<Cost, String> {
        let replicas = self.cluster.nodes.len();
        let mut spreads = Vec::new();
        let before = self.sums();
        for _ in 0..seconds {
            for node in 0..replicas {
                let spread = self.write(node)?;
                spreads.push(spread);
                self.run_for(1_000_000 / replicas as u64, &mut spreads);
            }
        }
        self.run_until_everywhere(&mut spreads)?;
        self.cluster.run_for(3_000_000);
        let after = self.sums();
        let others = (replicas - 1) as f64 * spreads.len() as f64;
        Ok(cost(
            &spreads,
            others,
            (after.0 - before.0, after.1 - before.1),
        ))
    }
}

fn cost(spreads: &[Spread], others: f64, (records, bytes): (u64, u64)) -> Cost {
    let longest = |spread: &Spread| spread.rounds.iter().flatten().max().copied().unwrap_or(0);
    let rounds: Vec<f64> = spreads
        .iter()
        .map(|spread| longest(spread) as f64)
        .collect();
    let took = |spread: &Spread| (spread.done_us - spread.began_us) as f64 / 1e3;
    Cost {
        replicas: 0,
        rounds_worst: rounds.iter().copied().fold(0.0, f64::max),
        rounds: middle(rounds),
        ms: middle(spreads.iter().map(took).collect()),
        crossings: records as f64 / others,
        bytes: bytes as f64 / others,
    }
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
