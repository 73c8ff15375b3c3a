//! Names for people: `S2:3` is the third write of the second process of replica S that wrote.

use std::collections::BTreeMap;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Dot, ReplicaId, WriterId};
use level_replicator_core::record::{Record, Version};
use level_replicator_core::writers::Descriptor;

/// What replicas and writers are called.
#[derive(Default)]
pub(super) struct Names {
    /// The replicas, in the order of their numbers.
    pub(super) replicas: Vec<String>,
    writers: BTreeMap<WriterId, String>,
    counts: BTreeMap<usize, u32>,
    ids: BTreeMap<ReplicaId, (usize, String)>,
}

impl Names {
    /// The number of a replica.
    pub(super) fn node(&self, name: &str) -> Result<usize, String> {
        let place = self.replicas.iter().position(|known| known == name);
        place.ok_or_else(|| format!("no replica is called {name}"))
    }

    /// What a replica is called.
    pub(super) fn of(&self, node: usize) -> &str {
        &self.replicas[node]
    }

    /// Names the writer of a process when it is first met.
    pub(super) fn meet(&mut self, node: usize, writer: WriterId) {
        if !self.writers.contains_key(&writer) {
            let count = self.counts.entry(node).or_default();
            *count += 1;
            let replica = &self.replicas[node];
            let dot = if replica.ends_with(|letter: char| letter.is_ascii_digit()) {
                "."
            } else {
                ""
            };
            let name = format!("{replica}{dot}{count}");
            self.writers.insert(writer, name);
        }
    }

    /// Names the identity of a replica when it is first met: each that follows has a prime more.
    pub(super) fn meet_replica(&mut self, node: usize, id: ReplicaId) {
        if !self.ids.contains_key(&id) {
            let before = self.ids.values().filter(|known| known.0 == node).count();
            let name = format!("{}{}", self.replicas[node], "'".repeat(before));
            self.ids.insert(id, (node, name));
        }
    }

    /// Names a writer that only wrote values again.
    pub(super) fn meet_reissued(&mut self, descriptor: &Descriptor) {
        let owner = self.ids.get(&descriptor.replica).map(|owner| owner.0);
        if let Some(node) = owner
            && descriptor.parent.is_none()
            && self.counts.contains_key(&node)
        {
            self.meet(node, descriptor.writer);
        }
    }

    /// What an identity is called.
    pub(super) fn replica(&self, id: ReplicaId) -> String {
        let name = self.ids.get(&id).map(|(_, name)| name.clone());
        name.unwrap_or_else(|| id.to_string())
    }

    /// The latest identity of a replica.
    pub(super) fn id(&self, node: usize) -> Option<ReplicaId> {
        let own = self.ids.iter().filter(|(_, owner)| owner.0 == node);
        let latest = own.max_by_key(|(_, owner)| owner.1.len());
        latest.map(|(id, _)| *id)
    }

    fn writer(&self, writer: WriterId) -> String {
        let name = self.writers.get(&writer);
        name.cloned().unwrap_or_else(|| writer.to_string())
    }

    /// A writer's name for each of several, in the order of names.
    pub(super) fn writers(&self, writers: &[WriterId]) -> String {
        let mut names: Vec<String> = writers.iter().map(|writer| self.writer(*writer)).collect();
        names.sort();
        names.join(", ")
    }

    /// The name of a write.
    pub(super) fn dot(&self, dot: Dot) -> String {
        format!("{}:{}", self.writer(dot.writer), dot.seq)
    }

    /// A text of the core with names in the place of random numbers.
    pub(super) fn translate(&self, text: &str) -> String {
        let names = self.writers.iter();
        names.fold(text.to_owned(), |text, (writer, name)| {
            text.replace(&writer.to_string(), name)
        })
    }

    fn version(&self, version: &Version) -> String {
        let deleted = if version.value().is_none() {
            " deleted"
        } else {
            ""
        };
        format!("{}{deleted}", self.dot(version.dot))
    }

    /// A record as it crosses a link: the writes that live, and what they are known to have replaced.
    pub(super) fn record(&self, key: &Bytes, record: &Record) -> String {
        let mut live: Vec<String> = record.live.iter().map(|live| self.version(live)).collect();
        live.sort();
        let mut seen: Vec<String> = record.seen.iter().map(|dot| self.dot(dot)).collect();
        seen.sort();
        let over = if seen.is_empty() { "" } else { " over " };
        format!("{}={}{over}{}", text(key), live.join("|"), seen.join(" "))
    }

    /// What is known of each writer.
    pub(super) fn clock(&self, clock: &Clock) -> String {
        let mut known: Vec<String> = clock
            .iter()
            .map(|(writer, known)| {
                let ranges = known
                    .ranges()
                    .map(|range| match (range.start(), range.end()) {
                        (start, end) if start == end => start.to_string(),
                        (start, end) => format!("{start}-{end}"),
                    });
                let ranges: Vec<String> = ranges.collect();
                format!("{}:{}", self.writer(writer), ranges.join(","))
            })
            .collect();
        known.sort();
        known.join(" ")
    }
}

/// Bytes for people: long ones only by their number.
pub(super) fn text(bytes: &Bytes) -> String {
    match bytes.len() {
        0 => "\"\"".to_owned(),
        1..=40 => bytes.escape_ascii().to_string(),
        len => format!("({len} bytes)"),
    }
}
