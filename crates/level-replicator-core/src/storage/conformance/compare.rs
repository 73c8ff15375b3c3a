//! In which way an answer differs from the one that was expected, in words.

use std::fmt;
use std::ops::Bound;

use bytes::Bytes;

use crate::storage::{Entries, StorageError, Table};

/// How a case, or a part of one, ended.
pub(super) type Outcome = Result<(), Difference>;

/// What was expected, and what was found.
#[derive(Debug)]
pub(super) struct Difference(String);

/// A key and its value.
pub(super) type Entry = (Bytes, Bytes);

impl Difference {
    pub(super) fn new(text: impl Into<String>) -> Difference {
        Difference(text.into())
    }

    /// Says first under which circumstances.
    pub(super) fn within(self, circumstances: impl fmt::Display) -> Difference {
        Difference(format!("{circumstances}: {}", self.0))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StorageError> for Difference {
    fn from(error: StorageError) -> Difference {
        Difference(format!("the engine answered with an error: {error}"))
    }
}

/// Compares what was read under one key.
pub(super) fn expect_value(
    table: Table,
    key: &[u8],
    found: Option<&Bytes>,
    expected: Option<&Bytes>,
) -> Outcome {
    if found == expected {
        return Ok(());
    }
    let shown = |value: Option<&Bytes>| value.map_or("no value".to_owned(), |value| show(value));
    Err(Difference(format!(
        "under {} in {table:?}, expected {}, found {}",
        show(key),
        shown(expected),
        shown(found),
    )))
}

/// Compares what was read from a range.
pub(super) fn expect_entries(found: &[Entry], expected: &[Entry]) -> Outcome {
    if found == expected {
        return Ok(());
    }
    let same = (found.iter().zip(expected)).take_while(|(found, expected)| found == expected);
    let place = same.count();
    let shown = |entries: &[Entry]| match entries.get(place) {
        Some((key, value)) => format!("{} = {}", show(key), show(value)),
        None => "the end".to_owned(),
    };
    Err(Difference(format!(
        "of {} entries the one at place {place} differs: expected {}, found {}",
        expected.len(),
        shown(expected),
        shown(found),
    )))
}

/// Reads a range to its end, each time from the end that `from_back` says, and puts it in order.
///
/// It gives up soon after `expected` entries, for a range that is at fault may never end.
pub(super) fn read(
    mut entries: Entries,
    expected: usize,
    mut from_back: impl FnMut() -> bool,
) -> Result<Vec<Entry>, Difference> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    while front.len() + back.len() <= expected {
        let is_back = from_back();
        let (next, read) = match is_back {
            true => (entries.next_back(), &mut back),
            false => (entries.next(), &mut front),
        };
        if let Some(entry) = next {
            read.push(entry?);
            continue;
        }
        // Whoever took turns at both ends goes on at the other until it says so too.
        if front.is_empty() || back.is_empty() {
            break;
        }
        let opposite = match is_back {
            true => entries.next(),
            false => entries.next_back(),
        };
        if let Some(entry) = opposite {
            return Err(Difference(format!(
                "one end of the range said that it is over, then the other gave {}",
                show(&entry?.0)
            )));
        }
        break;
    }
    front.extend(back.into_iter().rev());
    Ok(front)
}

/// Bytes as a person may read them, the first few of many.
pub(super) fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 24;
    if bytes.len() <= SHOWN {
        return format!("\"{}\"", bytes.escape_ascii());
    }
    let start = bytes[..SHOWN].escape_ascii();
    format!("\"{start}...\" of {} bytes", bytes.len())
}

/// A range as Rust writes it, but for a start that is excluded.
pub(super) fn show_range(start: Bound<&[u8]>, end: Bound<&[u8]>) -> String {
    let start = match start {
        Bound::Included(key) => show(key),
        Bound::Excluded(key) => format!("{} (excluded)", show(key)),
        Bound::Unbounded => String::new(),
    };
    let end = match end {
        Bound::Included(key) => format!("={}", show(key)),
        Bound::Excluded(key) => show(key),
        Bound::Unbounded => String::new(),
    };
    format!("{start}..{end}")
}
