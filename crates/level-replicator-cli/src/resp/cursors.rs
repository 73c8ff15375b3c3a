//! What the cursors of `SCAN` stand for: the last key that was looked at.
//!
//! The rule: a scan goes on behind a key and not at a place, so whatever is written meanwhile, a key that is there all
//! the time is returned once. Old cursors are forgotten, and that is said rather than answered wrongly.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::resp::options::{CURSORS_BYTES_MAX, CURSORS_MAX};

/// Cursors are below this, so that every client can read them as a number.
const CURSOR_BITS: u32 = 53;

/// The cursors of all connections.
#[derive(Debug)]
pub(crate) struct Cursors {
    /// The number of the oldest one. It begins anywhere, so that those of before a restart are not taken for ours.
    oldest: u64,
    keys: VecDeque<Bytes>,
    bytes: usize,
}

impl Cursors {
    pub(crate) fn new(chance: u64) -> Cursors {
        Cursors {
            // Half of the numbers are left to count on.
            oldest: 1 + (chance >> (64 - (CURSOR_BITS - 1))),
            keys: VecDeque::new(),
            bytes: 0,
        }
    }

    /// A cursor that stands for a key.
    pub(crate) fn issue(&mut self, key: &[u8]) -> u64 {
        self.keys.push_back(Bytes::copy_from_slice(key));
        self.bytes += key.len();
        while self.bytes > CURSORS_BYTES_MAX || self.keys.len() > CURSORS_MAX {
            if let Some(forgotten) = self.keys.pop_front() {
                self.bytes -= forgotten.len();
                self.oldest += 1;
            }
        }
        self.oldest + self.keys.len() as u64 - 1
    }

    /// The key that a cursor stands for; `None` if it is forgotten or was never issued.
    pub(crate) fn key(&self, cursor: u64) -> Option<Bytes> {
        let place = usize::try_from(cursor.checked_sub(self.oldest)?).ok()?;
        self.keys.get(place).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_stands_for_its_key_until_it_is_forgotten() {
        let mut cursors = Cursors::new(u64::MAX);
        let first = cursors.issue(b"first");
        assert!(first < 1 << CURSOR_BITS);
        assert_eq!(cursors.key(first).as_deref(), Some(&b"first"[..]));
        for unknown in [0, 1, first - 1, first + 1, u64::MAX] {
            assert_eq!(cursors.key(unknown), None);
        }

        let large = vec![b'k'; 65_000];
        let issued: Vec<u64> = (0..1_000).map(|_| cursors.issue(&large)).collect();
        assert!(cursors.bytes <= CURSORS_BYTES_MAX);
        assert_eq!(cursors.key(first), None);
        assert_eq!(cursors.key(issued[0]), None);
        assert_eq!(cursors.key(issued[999]).as_deref(), Some(&large[..]));
    }
}
