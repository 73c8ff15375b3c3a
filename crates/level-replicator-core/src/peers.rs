//! The peers that may be dialed: their addresses, when each is due, and how often it failed.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::address::Address;
use crate::clock::{Clock, Now, ReplicaId, micros};
use crate::config::Config;
use crate::event::Discovery;
use crate::limits::PEERS_MAX;
use crate::session::LinkId;

/// Attempts in a row that fail before an address that nobody named is forgotten.
const FAILURES_UNTIL_LOST: u32 = 60;

/// One address, and what is known about who is there.
#[derive(Debug, Clone)]
pub struct PeerEntry {
    /// How it became known.
    pub discovery: Discovery,
    /// Who answered there last.
    pub replica: Option<ReplicaId>,
    /// The link that is being made, or was made, to it.
    pub link: Option<LinkId>,
    /// When to dial it next, in steady microseconds.
    pub due_us: u64,
    /// The end of the last conversation, in steady microseconds.
    pub ended_us: u64,
    /// Attempts in a row that failed.
    pub failures: u32,
    /// Whether it turned out to be this very process.
    pub is_self: bool,
    /// The end of the last exchange, in steady microseconds.
    pub synced_us: Option<u64>,
    /// What it was last heard to know: a hint for when to call, never a ground for a claim.
    pub heard: Option<Arc<Clock>>,
    /// Fingerprint of members and epoch when the last conversation ended, if both sides knew the same.
    pub cluster_told: u64,
}

/// All addresses known.
#[derive(Debug, Default)]
pub struct PeerTable {
    peers: BTreeMap<Address, PeerEntry>,
}

impl PeerTable {
    /// Adds an address; answers whether it is new. One that leads nowhere is not added.
    pub fn learn(&mut self, now: Now, address: Address, discovery: Discovery) -> bool {
        if let Some(peer) = self.peers.get_mut(&address) {
            // A peer that announces itself is there again, whatever the last attempts said.
            if discovery == Discovery::Multicast && peer.failures > 0 {
                peer.failures = 0;
                peer.due_us = peer.due_us.min(now.steady_us);
            }
            let is_told = discovery == Discovery::Source && peer.discovery != Discovery::Named;
            if discovery == Discovery::Named || is_told {
                peer.discovery = discovery;
            }
            return false;
        }
        let full = self.peers.len() >= PEERS_MAX && !is_lasting(discovery);
        if full || !address.is_reachable() {
            return false;
        }
        self.peers.insert(
            address,
            PeerEntry {
                discovery,
                replica: None,
                link: None,
                due_us: now.steady_us,
                ended_us: 0,
                failures: 0,
                is_self: false,
                synced_us: None,
                heard: None,
                cluster_told: 0,
            },
        );
        true
    }

    /// Removes an address.
    pub fn forget(&mut self, address: &Address) -> Option<PeerEntry> {
        self.peers.remove(address)
    }

    /// What is known about an address.
    pub fn get(&self, address: &Address) -> Option<&PeerEntry> {
        self.peers.get(address)
    }

    /// What is known about an address, to change it.
    pub fn get_mut(&mut self, address: &Address) -> Option<&mut PeerEntry> {
        self.peers.get_mut(address)
    }

    /// All addresses but our own, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&Address, &PeerEntry)> + '_ {
        self.peers.iter().filter(|(_, peer)| !peer.is_self)
    }

    /// All addresses but our own, to change what is known about them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Address, &mut PeerEntry)> + '_ {
        self.peers.iter_mut().filter(|(_, peer)| !peer.is_self)
    }

    /// Gives named addresses that led to ourselves another chance: a name may lead elsewhere by now.
    pub fn forgive_selves(&mut self, now: Now) {
        for peer in self.peers.values_mut() {
            if is_lasting(peer.discovery) && peer.due_us <= now.steady_us {
                peer.is_self = false;
            }
        }
    }

    /// Notes that an attempt or a conversation failed; answers whether the address is given up.
    ///
    /// The pause before the next attempt doubles, and is shortened by chance by up to a half.
    pub fn fail(&mut self, now: Now, address: &Address, config: &Config, chance: f64) -> bool {
        let Some(peer) = self.peers.get_mut(address) else {
            return false;
        };
        let doublings = peer.failures.min(20);
        let pause = micros(config.backoff_min) << doublings;
        let pause = pause.min(micros(config.backoff_max)) as f64;
        peer.failures += 1;
        peer.due_us = now.steady_us + (pause * (1.0 - chance / 2.0)) as u64;
        let lost = !is_lasting(peer.discovery) && peer.failures >= FAILURES_UNTIL_LOST;
        if lost {
            self.peers.remove(address);
        }
        lost
    }

    /// Addresses that answered, for telling others.
    pub fn seen(&self) -> impl Iterator<Item = &Address> + '_ {
        let answered = |peer: &PeerEntry| peer.replica.is_some() && peer.failures == 0;
        self.iter()
            .filter(move |(_, peer)| answered(peer))
            .map(|(address, _)| address)
    }
}

/// Whether an address stays though nobody answers there: somebody goes on naming it.
fn is_lasting(discovery: Discovery) -> bool {
    matches!(discovery, Discovery::Named | Discovery::Source)
}

/// A fingerprint of a set of addresses.
pub fn digest<'a>(addresses: impl IntoIterator<Item = &'a Address>) -> u64 {
    let mut sorted: Vec<&Address> = addresses.into_iter().collect();
    sorted.sort();
    sorted.dedup();
    let mut hash = Xxh3::new();
    for address in sorted {
        hash.update(address.as_str().as_bytes());
        hash.update(b"\n");
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(steady_us: u64) -> Now {
        Now {
            wall_us: 0,
            steady_us,
        }
    }

    #[test]
    fn the_pause_doubles_up_to_its_limit_and_chance_only_shortens_it() {
        let config = Config::default();
        let address: Address = "10.0.0.1:9000".parse().expect("an address");
        let mut peers = PeerTable::default();
        peers.learn(at(0), address.clone(), Discovery::Named);

        let mut pauses = Vec::new();
        for _ in 0..10 {
            peers.fail(at(0), &address, &config, 0.0);
            pauses.push(peers.get(&address).expect("a named peer stays").due_us / 1_000);
        }
        assert_eq!(
            pauses,
            [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]
        );

        peers.fail(at(0), &address, &config, 1.0);
        let due = peers.get(&address).expect("a named peer stays").due_us;
        assert_eq!(due, 2_500_000);
    }
}
