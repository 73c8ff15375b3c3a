//! The secret of a cluster, and the keys that are made of it.

use std::fmt;
use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::Error;

const KEY_BYTES: usize = 32;

/// Longer than any file with a secret.
const FILE_BYTES_MAX: u64 = 4_096;

/// 256 random bits that every replica of a cluster shares; during a rotation, two of them.
///
/// The first key is used to reach others, every key is accepted from them. So a secret is rotated
/// without a pause: add the new key as the second everywhere, then put it first everywhere, then
/// remove the old one.
///
/// There is no way to make a secret of a passphrase: a weak one could be guessed offline by anybody
/// who heard one handshake.
///
/// ```
/// use level_replicator::Secret;
///
/// let secret = Secret::generate()?;
/// let same = Secret::from_hex(&secret.to_hex())?;
/// assert_eq!(same.to_hex().len(), 64);
/// # Ok::<(), level_replicator::Error>(())
/// ```
#[derive(Clone)]
pub struct Secret {
    keys: Vec<Zeroizing<[u8; KEY_BYTES]>>,
}

impl Secret {
    /// A new secret from the operating system's source of chance.
    ///
    /// # Errors
    ///
    /// [`Error::Random`] if the operating system has none.
    pub fn generate() -> Result<Secret, Error> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *key).map_err(Error::Random)?;
        Ok(Secret { keys: vec![key] })
    }

    /// Reads 64 hex digits, or two lines of them. White space at the ends of lines is ignored.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSecret`] if the text is anything else. The text does not show in the error.
    pub fn from_hex(text: &str) -> Result<Secret, Error> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys: Option<Vec<_>> = lines.map(decode_hex).collect();
        match keys {
            Some(keys) if (1..=2).contains(&keys.len()) => Ok(Secret { keys }),
            _ => Err(Error::InvalidSecret { path: None }),
        }
    }

    /// Reads a file of one or two lines of 64 hex digits.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::InvalidSecret`] if it holds anything else.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Secret, Error> {
        let path = path.as_ref();
        let mut text = Zeroizing::new(String::new());
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        read.map_err(|source| Error::Io {
            action: "read the secret",
            path: path.to_owned(),
            source,
        })?;
        Secret::from_hex(&text).map_err(|_| Error::InvalidSecret {
            path: Some(path.to_owned()),
        })
    }

    /// The first key as 64 hex digits.
    pub fn to_hex(&self) -> String {
        let first = self.keys.first().into_iter();
        first
            .flat_map(|key| key.iter())
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

fn decode_hex(line: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let digits = line.as_bytes();
    if digits.len() != 2 * KEY_BYTES {
        return None;
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(key)
}

/// What a replica proves itself with: to peers over TCP, and in announcements.
#[derive(Clone)]
pub(crate) struct ClusterKeys {
    /// One per key of the secret; the first is used to reach out.
    pub(crate) handshake: Vec<[u8; KEY_BYTES]>,
    /// The same for announcements.
    pub(crate) announcement: Vec<[u8; KEY_BYTES]>,
}

impl ClusterKeys {
    /// The keys of a cluster. Without a secret, whoever knows the cluster's name has them.
    pub(crate) fn derive(secret: Option<&Secret>, cluster: &str) -> ClusterKeys {
        const OPEN: &str = "level-replicator 2026-11 open cluster";
        const HANDSHAKE: &str = "level-replicator 2026-11 handshake";
        const ANNOUNCEMENT: &str = "level-replicator 2026-11 announcement";
        let keys = match secret {
            Some(secret) => secret.keys.iter().map(|key| **key).collect(),
            None => vec![blake3::derive_key(OPEN, cluster.as_bytes())],
        };
        let announcement = |key: &[u8; KEY_BYTES]| {
            // Announcements carry no name of the cluster, so the key must.
            let key = blake3::derive_key(ANNOUNCEMENT, key);
            *blake3::keyed_hash(&key, cluster.as_bytes()).as_bytes()
        };
        ClusterKeys {
            handshake: keys
                .iter()
                .map(|key| blake3::derive_key(HANDSHAKE, key))
                .collect(),
            announcement: keys.iter().map(announcement).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_one_or_two_lines_of_64_digits_is_refused() {
        let good = "ab".repeat(32);
        assert!(Secret::from_hex(&good).is_ok());
        assert!(Secret::from_hex(&format!("{good}\n  {good}  \n")).is_ok());
        let three = format!("{good}\n{good}\n{good}");
        let long = format!("{good}0");
        let no_digit = good.replace('a', "g");
        for bad in ["", "abcd", &long, &no_digit, &three] {
            assert!(Secret::from_hex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn neither_debug_nor_errors_show_the_secret() {
        let secret = Secret::from_hex(&"ab".repeat(32)).expect("64 digits");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        let error = Secret::from_hex("deadbeef").expect_err("too short");
        assert!(!error.to_string().contains("deadbeef"));
    }

    #[test]
    fn another_cluster_has_other_announcement_keys_under_one_secret() {
        let secret = Secret::from_hex(&"ab".repeat(32)).expect("64 digits");
        let shop = ClusterKeys::derive(Some(&secret), "shop");
        let blog = ClusterKeys::derive(Some(&secret), "blog");
        assert_eq!(shop.handshake, blog.handshake);
        assert_ne!(shop.announcement, blog.announcement);
        let open = ClusterKeys::derive(None, "shop");
        assert_ne!(open.handshake, ClusterKeys::derive(None, "blog").handshake);
    }
}
