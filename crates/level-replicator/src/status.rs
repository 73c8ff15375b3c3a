//! What can be seen of a database from outside.

use std::time::{Duration, SystemTime};

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
    /// A peer compares its data with ours, because we were away for too long, or it was cut while it
    /// did: values that others have deleted may show.
    Healing,
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
    /// Entries of the log: writes of which not every member is known to know.
    pub log_entries: Option<u64>,
    /// Fingerprint of all keys and values: equal on replicas that hold the same.
    pub digest: Option<u128>,
    /// When a peer last proved that it holds the same, by our clock.
    pub agreed_at: Option<SystemTime>,
    /// When all data was last compared with a peer's, row by row, by our clock.
    pub verified_at: Option<SystemTime>,
    /// How far the reclaiming of deletes, histories and log entries has come.
    pub reclaim: ReclaimStatus,
    /// How often this replica has gone on with what it had, because nobody could finish its heal.
    pub promotions: u64,
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
    /// How many changes the change feed has told of; `None` if changes are not kept.
    pub changes: Option<u64>,
    /// Sizes of the engine.
    pub storage: StorageStats,
    /// The engine holds far more unsorted data than it should: its background work may be stuck.
    pub storage_alarm: bool,
}

/// How far reclaiming has come.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReclaimStatus {
    /// The writes that every member knows: nothing is kept for their sake.
    pub floor: Clock,
    /// The number of the latest epoch, in which the members agree on the next floor.
    pub epoch: u64,
    /// Whether it is still waited for.
    pub epoch_open: bool,
    /// How long the latest epoch has been known here.
    pub epoch_age: Duration,
    /// The members that have not agreed to it yet, and for how long each has been silent.
    pub held_back_by: Vec<(ReplicaId, Duration)>,
    /// Whether something below the floor is being removed right now.
    pub reclaiming: bool,
}

/// What is known of a member of the cluster.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MemberStatus {
    /// Its name.
    pub replica: ReplicaId,
    /// Whether it is this replica.
    pub is_self: bool,
    /// Whether it was sent away for good.
    pub retired: bool,
    /// Whether it was silent for so long that nothing waits for it until it comes back.
    pub excluded: bool,
    /// Who met it first.
    pub admitted_by: ReplicaId,
    /// When it last showed a sign of life, by our clock.
    pub seen_at: Option<SystemTime>,
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
