//! Datagrams of the local network to announcements.
//!
//! What must hold: nothing is heard without its seal, and what is heard can be told again.

use level_replicator_core::announcement::Announcement;
use level_replicator_core::limits::{ADDRESS_BYTES_MAX, ANNOUNCEMENT_BYTES_MAX};

use crate::fields::Fields;
use crate::seeds;
use crate::target::{Outcome, Target, decode_error_name};

/// A datagram. An input is an odd byte and what is then sealed with the cluster's key, or an even
/// byte and a whole datagram.
pub const TARGET: Target = Target {
    name: "announcement",
    body: run,
    seeds: seeds::announcements,
    remake: None,
    deep_percent_min: 5,
    outcomes_min: 6,
};

/// The key with which the golden announcement is sealed.
const KEY: [u8; 32] = [3; 32];
const MAC_BYTES: usize = 16;

/// Runs one input.
pub fn run(input: &[u8]) -> Outcome {
    let mut fields = Fields::new(input);
    let is_sealed = fields.is_odd();
    let mut datagram = fields.rest().to_vec();
    if is_sealed {
        let seal = blake3::keyed_hash(&KEY, &datagram);
        datagram.extend_from_slice(&seal.as_bytes()[..MAC_BYTES]);
    }
    match Announcement::decode(&datagram, &KEY) {
        Err(error) => Outcome::refused(decode_error_name(&error)),
        Ok(announcement) => {
            check(&datagram, &announcement);
            let answer = if announcement.wants_answer {
                "asks"
            } else {
                "tells"
            };
            let host = if announcement.host.is_empty() {
                "itself"
            } else {
                "a host"
            };
            Outcome::deep(format!("{answer} of {host}"))
        }
    }
}

fn check(datagram: &[u8], announcement: &Announcement) {
    assert!(datagram.len() <= ANNOUNCEMENT_BYTES_MAX, "too large");
    assert!(announcement.host.len() < ADDRESS_BYTES_MAX, "host too long");
    let again = announcement.encode(&KEY);
    assert_eq!(
        Announcement::decode(&again, &KEY).as_ref(),
        Ok(announcement),
        "an announcement told again"
    );
    let mut other_key = KEY;
    other_key[31] ^= 1;
    assert!(
        Announcement::decode(datagram, &other_key).is_err(),
        "another cluster's announcement is heard"
    );
}
