//! Bytes to values and back: little pieces that every format here is made of.
//!
//! The rule: a length read from outside is compared with what is really there before anything is
//! allocated for it. Numbers are LEB128 varints unless a fixed width is said.

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const CHECKSUM_BYTES: usize = 4;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end in the middle of something.
    #[error("{what} is cut short")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// A length or a count is over its bound.
    #[error("{what} of {size} exceeds the limit of {limit}")]
    TooLarge {
        /// What was being read.
        what: &'static str,
        /// What the bytes say.
        size: u64,
        /// The greatest value that is accepted.
        limit: u64,
    },
    /// A value that no version of the format has.
    #[error("{what} is not valid")]
    Invalid {
        /// What was being read.
        what: &'static str,
    },
    /// Bytes are left over after the last field.
    #[error("{what} has {extra} bytes too many")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// How many bytes are left.
        extra: usize,
    },
    /// The checksum does not fit the bytes.
    #[error("{what} fails its checksum")]
    Checksum {
        /// What was being read.
        what: &'static str,
    },
}

/// Appends a checksum over a row's key and all of `row`, so that no changed bit goes unnoticed.
pub fn seal(key: &[u8], row: &mut Vec<u8>) {
    let checksum = row_checksum(key, row);
    row.extend_from_slice(&checksum.to_be_bytes());
}

/// What [`seal`] was given, if the checksum at its end is right.
pub fn unseal(key: &[u8], row: &Bytes, what: &'static str) -> Result<Bytes, DecodeError> {
    let Some(len) = row.len().checked_sub(CHECKSUM_BYTES) else {
        return Err(DecodeError::Truncated { what });
    };
    let (body, checksum) = row.split_at(len);
    if row_checksum(key, body).to_be_bytes() != checksum {
        return Err(DecodeError::Checksum { what });
    }
    Ok(row.slice(..len))
}

fn row_checksum(key: &[u8], body: &[u8]) -> u32 {
    xxh3_64_with_seed(body, xxh3_64(key)) as u32
}

/// Reads values off the front of shared bytes, without copying what it hands out.
#[derive(Debug, Clone)]
pub struct Reader {
    bytes: Bytes,
    at: usize,
    what: &'static str,
}

impl Reader {
    /// Begins at the front of `bytes`; errors will name `what`.
    pub fn new(bytes: Bytes, what: &'static str) -> Reader {
        Reader { bytes, at: 0, what }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.slice(1)?[0])
    }

    /// Four bytes, big-endian.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Eight bytes, big-endian.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A fixed number of bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(N)?);
        Ok(array)
    }

    /// A varint; longer than ten bytes or above `u64::MAX` is invalid.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid { what: self.what })
    }

    /// A varint that counts things of at least `unit` bytes each, of which at most `limit` are accepted.
    ///
    /// More than can fit in the rest of the bytes is cut short, so the count is safe to allocate for.
    pub fn count(&mut self, limit: usize, unit: usize) -> Result<usize, DecodeError> {
        let size = self.varint()?;
        if size > limit as u64 {
            return Err(DecodeError::TooLarge {
                what: self.what,
                size,
                limit: limit as u64,
            });
        }
        let count = size as usize;
        if count.saturating_mul(unit) > self.remaining() {
            return Err(DecodeError::Truncated { what: self.what });
        }
        Ok(count)
    }

    /// The next `len` bytes, sharing the memory they came in.
    pub fn bytes(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.remaining() {
            return Err(DecodeError::Truncated { what: self.what });
        }
        let taken = self.bytes.slice(self.at..self.at + len);
        self.at += len;
        Ok(taken)
    }

    /// The next `len` bytes, borrowed.
    pub fn slice(&mut self, len: usize) -> Result<&[u8], DecodeError> {
        if len > self.remaining() {
            return Err(DecodeError::Truncated { what: self.what });
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    /// Bytes with their length in front, at most `limit` of them.
    pub fn prefixed(&mut self, limit: usize) -> Result<Bytes, DecodeError> {
        let len = self.count(limit, 1)?;
        self.bytes(len)
    }

    /// UTF-8 text with its length in front, at most `limit` bytes of it.
    pub fn text(&mut self, limit: usize) -> Result<String, DecodeError> {
        let bytes = self.prefixed(limit)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(DecodeError::Invalid { what: self.what }),
        }
    }

    /// Checks that nothing is left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing {
                what: self.what,
                extra,
            }),
        }
    }
}

/// Appends a varint: seven bits a byte, the lowest first.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends bytes with their length in front.
pub fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Folds a signed difference into a small unsigned number: 0, -1, 1, -2, ...
pub fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Undoes [`zigzag`].
pub fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A bit of a byte of flags, if it is set.
pub fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_over_64_bits_is_invalid() {
        let mut reader = Reader::new(Bytes::from_static(&[0xff; 10]), "number");
        assert_eq!(
            reader.varint(),
            Err(DecodeError::Invalid { what: "number" })
        );
    }

    #[test]
    fn a_count_is_checked_against_the_bytes_that_are_there() {
        let mut out = Vec::new();
        put_varint(&mut out, 1_000);
        out.extend_from_slice(&[0; 99]);

        let mut reader = Reader::new(out.into(), "list");

        assert_eq!(
            reader.count(1_000, 1),
            Err(DecodeError::Truncated { what: "list" })
        );
    }
}
