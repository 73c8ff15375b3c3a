//! What `status`, `peers`, `LR.STATUS` and `LR.PEERS` tell, as JSON; docs/operating.md has the schema.
//!
//! Moments are milliseconds since 1970, durations milliseconds; what is not known is null.

use std::time::{Duration, SystemTime};

use level_replicator::{Clock, Db, Discovery, MemberStatus, PeerStatus, Status, SyncState};
use serde_json::{Value, json};

/// How a database is doing, in one line.
pub fn status_json(db: &Db) -> String {
    status(&db.status(), &db.members()).to_string()
}

/// Every known address, in one line.
pub fn peers_json(db: &Db) -> String {
    let peers = db.peers();
    Value::Array(peers.iter().map(peer).collect()).to_string()
}

pub(crate) fn status(status: &Status, members: &[MemberStatus]) -> Value {
    let traffic = &status.traffic;
    let reclaim = &status.reclaim;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "replica": status.replica.to_string(),
        "writer": status.writer.map(|writer| writer.to_string()),
        "cluster": status.cluster,
        "listen": status.listen.as_ref().map(|listen| listen.as_str()),
        "multicast": status.multicast,
        "paused": status.paused,
        "sync_state": match status.sync_state {
            SyncState::Settled => "settled",
            SyncState::CatchingUp => "catching up",
            SyncState::Healing => "healing",
        },
        "keys": status.keys,
        "conflicts": status.conflicts,
        "deletes_waiting": status.deletes,
        "log_entries": status.log_entries,
        "digest": status.digest.map(|digest| format!("{digest:032x}")),
        "agreed_at_ms": status.agreed_at.map(unix_ms),
        "verified_at_ms": status.verified_at.map(unix_ms),
        "reclaim": {
            "epoch": reclaim.epoch,
            "epoch_open": reclaim.epoch_open,
            "epoch_age_ms": ms(reclaim.epoch_age),
            "held_back_by": reclaim.held_back_by.iter().map(|(replica, silent)| json!({
                "replica": replica.to_string(),
                "silent_ms": ms(*silent),
            })).collect::<Vec<_>>(),
            "reclaiming": reclaim.reclaiming,
            "floor": clock(&reclaim.floor),
        },
        "promotions": status.promotions,
        "clock": clock(&status.clock),
        "changes": status.changes,
        "writes_per_second": (status.writes_per_second * 10.0).round() / 10.0,
        "traffic": {
            "conversations": traffic.conversations,
            "sent_bytes": traffic.sent_bytes,
            "received_bytes": traffic.received_bytes,
            "sent_records": traffic.sent_records,
            "received_records": traffic.received_records,
        },
        "links": status.links,
        "storage": {
            "disk_bytes": status.storage.disk_bytes,
            "write_buffer_bytes": status.storage.write_buffer_bytes,
            "journal_bytes": status.storage.journal_bytes,
            "stalls": status.storage.stalls,
            "stalled_us": status.storage.stalled_us,
            "alarm": status.storage_alarm,
        },
        "peers": status.peers.iter().map(peer).collect::<Vec<_>>(),
        "members": members.iter().map(member).collect::<Vec<_>>(),
    })
}

fn peer(peer: &PeerStatus) -> Value {
    json!({
        "address": peer.address.as_str(),
        "discovery": match peer.discovery {
            Discovery::Named => "named",
            Discovery::Multicast => "multicast",
            Discovery::Peer => "peer",
            Discovery::Source => "source",
        },
        "replica": peer.replica.map(|replica| replica.to_string()),
        "connected": peer.connected,
        "failures": peer.failures,
        "lag_writes": peer.lag,
        "synced_ago_ms": peer.synced_ago.map(ms),
    })
}

fn member(member: &MemberStatus) -> Value {
    json!({
        "replica": member.replica.to_string(),
        "self": member.is_self,
        "retired": member.retired,
        "excluded": member.excluded,
        "admitted_by": member.admitted_by.to_string(),
        "seen_at_ms": member.seen_at.map(unix_ms),
    })
}

/// A clock in short: of how many writers it knows how many writes.
fn clock(clock: &Clock) -> Value {
    json!({
        "writers": clock.iter().count(),
        "writes": clock.count_missing_in(&Clock::default()),
    })
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    ms(at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default())
}
