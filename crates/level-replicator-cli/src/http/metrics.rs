//! The metrics, as text for Prometheus: docs/metrics.md tells each.
//!
//! The rule: what is not known is left out, never zero.

use std::fmt::{Display, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use level_replicator::{PeerStatus, SyncState};

use crate::http::guests::Counts;
use crate::http::look::Seen;

/// The media type of the text.
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const PREFIX: &str = "level_replicator_";

/// All metrics at one moment.
pub(crate) fn text(seen: &Seen, counts: &Counts) -> String {
    let mut text = Text::default();
    replica(&mut text, seen);
    cluster(&mut text, seen);
    peers(&mut text, &seen.status.peers);
    engine(&mut text, seen);
    http(&mut text, counts);
    text.0
}

fn replica(text: &mut Text, seen: &Seen) {
    let status = &seen.status;
    let name = status.replica.to_string();
    text.family("info", "gauge", "Which replica this is; always 1.")
        .sample(
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("replica", &name),
                ("cluster", &status.cluster),
            ],
            1,
        );
    text.gauge("keys", "Keys with a value.", status.keys);
    text.gauge(
        "conflicts",
        "Keys with several concurrent values.",
        status.conflicts,
    );
    text.gauge(
        "deletes_waiting",
        "Keys of which only a delete is left.",
        status.deletes,
    );
    text.gauge(
        "log_entries",
        "Writes of which not every member is known to know.",
        status.log_entries,
    );
    let writes = status.clock.count_missing_in(&Default::default());
    text.gauge("writes_known", "Writes known here.", Some(writes));
    let writes = status.reclaim.floor.count_missing_in(&Default::default());
    text.gauge(
        "writes_known_to_all",
        "Writes that every member is known to know.",
        Some(writes),
    );
    text.gauge(
        "writes_per_second",
        "Local writes per second, recent ones weighing more.",
        Some(status.writes_per_second),
    );
    text.gauge(
        "paused",
        "Whether conversations are off.",
        Some(u8::from(status.paused)),
    );
    let mut states = text.family(
        "sync_state",
        "gauge",
        "Whether what readers see is whole: 1 for the state it is in.",
    );
    for (state, name) in [
        (SyncState::Settled, "settled"),
        (SyncState::CatchingUp, "catching up"),
        (SyncState::Healing, "healing"),
    ] {
        states.sample(&[("state", name)], u8::from(status.sync_state == state));
    }
    text.counter(
        "changes_total",
        "Changes that the change feed has told of, if changes are kept.",
        status.changes,
    );
    text.counter(
        "promotions_total",
        "Heals that nobody could finish.",
        Some(status.promotions),
    );
}

fn cluster(text: &mut Text, seen: &Seen) {
    let status = &seen.status;
    let mut members = text.family("members", "gauge", "Replicas that ever took part.");
    let count = |state: &str| {
        let of_state = seen.members.iter().filter(|member| {
            let is = match (member.retired, member.excluded) {
                (true, _) => "retired",
                (false, true) => "excluded",
                (false, false) => "active",
            };
            is == state
        });
        of_state.count()
    };
    for state in ["active", "excluded", "retired"] {
        members.sample(&[("state", state)], count(state));
    }
    let reclaim = &status.reclaim;
    text.gauge(
        "epoch",
        "The latest epoch, in which the members agree on what every one of them knows.",
        Some(reclaim.epoch),
    );
    text.gauge(
        "epoch_open",
        "Whether the latest epoch is still waited for.",
        Some(u8::from(reclaim.epoch_open)),
    );
    text.gauge(
        "epoch_age_seconds",
        "How long the latest epoch has been known here.",
        Some(reclaim.epoch_age.as_secs_f64()),
    );
    text.gauge(
        "reclaiming",
        "Whether deletes, histories or log entries are being removed right now.",
        Some(u8::from(reclaim.reclaiming)),
    );
    text.gauge(
        "members_held_back",
        "Members that have not agreed to the open epoch.",
        Some(reclaim.held_back_by.len()),
    );
    let mut held_back = text.family(
        "member_silent_seconds",
        "gauge",
        "For how long a member that has not agreed to the open epoch has been silent.",
    );
    for (replica, silent) in &reclaim.held_back_by {
        held_back.sample(&[("replica", &replica.to_string())], silent.as_secs_f64());
    }
    text.gauge(
        "agreed_age_seconds",
        "Since a peer last proved that it holds the same.",
        status.agreed_at.map(age),
    );
    text.gauge(
        "verified_age_seconds",
        "Since all data was last compared with a peer's, row by row.",
        status.verified_at.map(age),
    );
}

fn peers(text: &mut Text, peers: &[PeerStatus]) {
    let connected = peers.iter().filter(|peer| peer.connected).count();
    text.gauge("peers", "Addresses that are known.", Some(peers.len()));
    text.gauge(
        "peers_connected",
        "Addresses with which a conversation runs.",
        Some(connected),
    );
    text.by_peer(
        "peer_connected",
        "Whether a conversation runs.",
        peers,
        |peer| Some(u8::from(peer.connected)),
    );
    text.by_peer(
        "peer_failures",
        "Attempts in a row that failed.",
        peers,
        |peer| Some(peer.failures),
    );
    text.by_peer(
        "peer_lag_writes",
        "Writes known here that the peer lacked when it was last heard.",
        peers,
        |peer| peer.lag,
    );
    text.by_peer(
        "peer_synced_age_seconds",
        "Since both sides last knew the same.",
        peers,
        |peer| peer.synced_ago.map(|ago| ago.as_secs_f64()),
    );
}

fn engine(text: &mut Text, seen: &Seen) {
    let status = &seen.status;
    let traffic = &status.traffic;
    for (name, help, value) in [
        (
            "conversations_total",
            "Conversations in which both sides said hello.",
            traffic.conversations,
        ),
        (
            "sent_bytes_total",
            "Bytes sent to peers, before encryption.",
            traffic.sent_bytes,
        ),
        (
            "received_bytes_total",
            "Bytes received from peers, after decryption.",
            traffic.received_bytes,
        ),
        (
            "sent_records_total",
            "Records sent to peers.",
            traffic.sent_records,
        ),
        (
            "received_records_total",
            "Records received from peers.",
            traffic.received_records,
        ),
    ] {
        text.counter(name, help, Some(value));
    }
    text.gauge("links", "Links to peers that are open.", Some(status.links));
    let storage = &status.storage;
    text.gauge(
        "storage_disk_bytes",
        "Everything on disk.",
        storage.disk_bytes,
    );
    text.gauge(
        "storage_write_buffer_bytes",
        "Written and not yet sorted into tables.",
        storage.write_buffer_bytes,
    );
    text.gauge(
        "storage_journal_bytes",
        "The write-ahead journal.",
        storage.journal_bytes,
    );
    text.gauge(
        "storage_alarm",
        "Whether the engine's background work may be stuck.",
        Some(u8::from(status.storage_alarm)),
    );
    text.counter(
        "storage_stalls_total",
        "Commits that waited because the engine was behind with its background work.",
        storage.stalls,
    );
    let stalled_us = storage.stalled_us.map(Duration::from_micros);
    text.counter(
        "storage_stalled_seconds_total",
        "How long they waited.",
        stalled_us.map(|stalled| stalled.as_secs_f64()),
    );
}

fn http(text: &mut Text, counts: &Counts) {
    text.gauge(
        "http_connections",
        "HTTP connections that are open.",
        Some(counts.open.load(Ordering::Relaxed)),
    );
    for (name, help, count) in [
        (
            "http_connections_total",
            "HTTP connections that were taken in.",
            &counts.accepted,
        ),
        (
            "http_refused_total",
            "HTTP connections that were turned away, or ended for others, because there were too many.",
            &counts.refused,
        ),
        ("http_requests_total", "HTTP requests.", &counts.requests),
    ] {
        text.counter(name, help, Some(count.load(Ordering::Relaxed)));
    }
}

fn age(at: SystemTime) -> f64 {
    let age: Duration = SystemTime::now().duration_since(at).unwrap_or_default();
    age.as_secs_f64()
}

#[derive(Default)]
struct Text(String);

/// A metric whose samples follow. Without any it leaves nothing.
struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
    head: Option<String>,
}

impl Text {
    fn family<'a>(&'a mut self, name: &'a str, kind: &str, help: &str) -> Family<'a> {
        let head = format!("# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n");
        Family {
            text: &mut self.0,
            name,
            head: Some(head),
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.family(name, "gauge", help).sample(&[], value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.family(name, "counter", help).sample(&[], value);
        }
    }

    fn by_peer<V: Display>(
        &mut self,
        name: &str,
        help: &str,
        peers: &[PeerStatus],
        value: impl Fn(&PeerStatus) -> Option<V>,
    ) {
        let mut family = self.family(name, "gauge", help);
        for peer in peers {
            if let Some(value) = value(peer) {
                family.sample(&[("peer", peer.address.as_str())], value);
            }
        }
    }
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        if let Some(head) = self.head.take() {
            self.text.push_str(&head);
        }
        self.text.push_str(PREFIX);
        self.text.push_str(self.name);
        for (place, (label, is)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            // Writing to a text does not fail.
            let _ = write!(self.text, "{before}{label}=\"{}\"", escaped(is));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_quoted_and_what_is_not_known_leaves_nothing() {
        let mut text = Text::default();
        text.family("a", "gauge", "Help.")
            .sample(&[("x", "1\\\"\n"), ("y", "")], 0.5);
        text.gauge("b", "Help.", None::<u64>);
        text.by_peer("c", "Help.", &[], |_| Some(1));
        text.counter("d_total", "Help.", Some(u64::MAX));
        text.counter("e_total", "Help.", None::<u64>);
        let expected = "# HELP level_replicator_a Help.\n\
            # TYPE level_replicator_a gauge\n\
            level_replicator_a{x=\"1\\\\\\\"\\n\",y=\"\"} 0.5\n\
            # HELP level_replicator_d_total Help.\n\
            # TYPE level_replicator_d_total counter\n\
            level_replicator_d_total 18446744073709551615\n";
        assert_eq!(text.0, expected);
    }
}
