//! The datagram by which replicas on one network find each other.
//!
//! ```text
//! announcement = "LRA" version:u8 instance:u64 flags:u8 port:u16 host-length:u16 host mac:16
//! flags        = 1 if an answer is wanted
//! ```
//!
//! The MAC is keyed BLAKE3 with a key made of the cluster's secret and name, so replicas of other
//! clusters, and strangers, are not heard. An old announcement can be replayed; all it does is have
//! its address dialed once more.

use bytes::Bytes;

use crate::codec::{DecodeError, Reader};
use crate::limits::{ADDRESS_BYTES_MAX, ANNOUNCEMENT_BYTES_MAX};

const MAGIC: [u8; 3] = *b"LRA";
const VERSION: u8 = 1;
const WANTS_ANSWER: u8 = 1;
const MAC_BYTES: usize = 16;

/// "I am here."
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// A random number of the announcing process, by which it knows its own announcements.
    pub instance: u64,
    /// Whether those who hear it are to announce themselves to the sender.
    pub wants_answer: bool,
    /// Where it listens; empty stands for the address the datagram comes from.
    pub host: String,
    /// The TCP port on which it listens.
    pub port: u16,
}

impl Announcement {
    /// The datagram, with its MAC.
    ///
    /// # Panics
    ///
    /// If the host is longer than an address may be.
    pub fn encode(&self, key: &[u8; 32]) -> Vec<u8> {
        assert!(self.host.len() < ADDRESS_BYTES_MAX, "oversized host");
        let host_len = u16::try_from(self.host.len()).expect("an address is short");
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&self.instance.to_be_bytes());
        out.push(if self.wants_answer { WANTS_ANSWER } else { 0 });
        out.extend_from_slice(&self.port.to_be_bytes());
        out.extend_from_slice(&host_len.to_be_bytes());
        out.extend_from_slice(self.host.as_bytes());
        let mac = mac(key, &out);
        out.extend_from_slice(&mac);
        out
    }

    /// Reads a datagram.
    ///
    /// # Errors
    ///
    /// A datagram of another cluster fails its checksum.
    pub fn decode(datagram: &[u8], key: &[u8; 32]) -> Result<Announcement, DecodeError> {
        const WHAT: &str = "announcement";
        if datagram.len() > ANNOUNCEMENT_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                what: WHAT,
                size: datagram.len() as u64,
                limit: ANNOUNCEMENT_BYTES_MAX as u64,
            });
        }
        let Some(len) = datagram.len().checked_sub(MAC_BYTES) else {
            return Err(DecodeError::Truncated { what: WHAT });
        };
        let (body, given) = datagram.split_at(len);
        // Compared as hashes, in constant time.
        let expected = blake3::keyed_hash(key, &mac(key, body));
        if expected != blake3::keyed_hash(key, given) {
            return Err(DecodeError::Checksum { what: WHAT });
        }

        let mut reader = Reader::new(Bytes::copy_from_slice(body), WHAT);
        if reader.array()? != MAGIC || reader.u8()? != VERSION {
            return Err(DecodeError::Invalid { what: WHAT });
        }
        let instance = reader.u64()?;
        let wants_answer = reader.u8()? & WANTS_ANSWER != 0;
        let port = u16::from_be_bytes(reader.array()?);
        let host_len = usize::from(u16::from_be_bytes(reader.array()?));
        if host_len >= ADDRESS_BYTES_MAX {
            return Err(DecodeError::TooLarge {
                what: "host of an announcement",
                size: host_len as u64,
                limit: ADDRESS_BYTES_MAX as u64 - 1,
            });
        }
        let host = reader.bytes(host_len)?;
        reader.finish()?;
        let host = String::from_utf8(host.to_vec());
        Ok(Announcement {
            instance,
            wants_answer,
            host: host.map_err(|_| DecodeError::Invalid { what: WHAT })?,
            port,
        })
    }
}

fn mac(key: &[u8; 32], body: &[u8]) -> [u8; MAC_BYTES] {
    let mut mac = [0; MAC_BYTES];
    mac.copy_from_slice(&blake3::keyed_hash(key, body).as_bytes()[..MAC_BYTES]);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement() -> Announcement {
        Announcement {
            instance: 0x0102_0304_0506_0708,
            wants_answer: true,
            host: "10.0.0.7".to_owned(),
            port: 9_000,
        }
    }

    #[test]
    fn an_announcement_survives_the_round_trip() {
        let datagram = announcement().encode(&[3; 32]);
        assert_eq!(
            Announcement::decode(&datagram, &[3; 32]),
            Ok(announcement())
        );
    }

    #[test]
    fn a_host_that_could_not_be_announced_is_not_heard() {
        let longest = Announcement {
            host: "h".repeat(ADDRESS_BYTES_MAX - 1),
            ..announcement()
        };
        let key = [3; 32];
        let datagram = longest.encode(&key);
        assert_eq!(Announcement::decode(&datagram, &key), Ok(longest));

        let mut longer = datagram[..datagram.len() - MAC_BYTES].to_vec();
        let host_len = longer.len() - (ADDRESS_BYTES_MAX - 1);
        longer.push(b'h');
        longer[host_len - 2..host_len].copy_from_slice(&(ADDRESS_BYTES_MAX as u16).to_be_bytes());
        let seal = mac(&key, &longer);
        longer.extend_from_slice(&seal);
        assert!(matches!(
            Announcement::decode(&longer, &key),
            Err(DecodeError::TooLarge { .. })
        ));
    }

    #[test]
    fn another_cluster_and_any_damage_are_not_heard() {
        let datagram = announcement().encode(&[3; 32]);
        assert!(Announcement::decode(&datagram, &[4; 32]).is_err());
        for bit in 0..datagram.len() * 8 {
            let mut damaged = datagram.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Announcement::decode(&damaged, &[3; 32]).is_err(),
                "bit {bit}"
            );
        }
        for len in 0..datagram.len() {
            assert!(Announcement::decode(&datagram[..len], &[3; 32]).is_err());
        }
    }
}
