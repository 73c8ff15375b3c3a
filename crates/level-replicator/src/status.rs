//! What can be seen of a database from outside.

use std::time::Duration;

use level_replicator_core::address::Address;
use level_replicator_core::clock::{Clock, ReplicaId, WriterId};
use level_replicator_core::event::Discovery;
use level_replicator_core::replica::Traffic;
use level_replicator_core::storage::StorageStats;

/// Whether what readers see is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncState {
    /// Batches of other replicas are seen whole or not at all.
    Settled,
    /// A catch-up is under way, or was cut: half of another replica's batch may show.
    CatchingUp,
}

/// How a database is doing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Status {
    /// The name of this replica.
    pub replica: ReplicaId,
    /// The writer of this open, once it has written.
    pub writer: Option<WriterId>,
    /// The cluster.
    pub cluster: String,
    /// Where it listens, with the port that was really taken.
    pub listen: Option<Address>,
    /// Whether peers on the local network are looked for; false if that was not possible.
    pub multicast: bool,
    /// Whether conversations are off.
    pub paused: bool,
    /// Whether what readers see is whole.
    pub sync_state: SyncState,
    /// Keys with a value. `None` while they are counted, after an unclean end.
    pub keys: Option<u64>,
    /// Keys with two or more concurrent values.
    pub conflicts: Option<u64>,
    /// Keys of which only a delete is left.
    pub deletes: Option<u64>,
    /// Fingerprint of all keys and values: equal on replicas that hold the same.
    pub digest: Option<u128>,
    /// The writes known here.
    pub clock: Clock,
    /// Local writes per second, recent ones weighing more.
    pub writes_per_second: f64,
    /// What was said and heard since the open.
    pub traffic: Traffic,
    /// Links that are open.
    pub links: usize,
    /// Every known address.
    pub peers: Vec<PeerStatus>,
    /// Sizes of the engine.
    pub storage: StorageStats,
    /// The engine holds far more unsorted data than it should: its background work may be stuck.
    pub storage_alarm: bool,
}

/// How a known address is doing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The address.
    pub address: Address,
    /// How it became known.
    pub discovery: Discovery,
    /// Who answered there last.
    pub replica: Option<ReplicaId>,
    /// Whether a conversation runs.
    pub connected: bool,
    /// Attempts in a row that failed.
    pub failures: u32,
    /// Writes known here that the peer lacked when it was last heard; `None` before that.
    pub lag: Option<u64>,
    /// How long ago both sides last knew the same.
    pub synced_ago: Option<Duration>,
}
