//! Commands that read many keys.
//!
//! The rule: memory stays bounded, and others have their turn. A reply whose length is not known before is read twice,
//! at one moment: once to count, once to send.

use std::ops::Bound;

use level_replicator::{Bytes, Db, Error, Key, Range, Snapshot, Value};
use tokio::task::yield_now;

use crate::resp::connection::{Connection, Stop};
use crate::resp::glob;
use crate::resp::options::{
    FLUSH_BYTES, FLUSH_KEYS, FLUSH_KEYS_BYTES, SCAN_BYTES_MAX, SCAN_COUNT_MAX,
};
use crate::resp::refusal::{NO_INTEGER, Refusal, SYNTAX};
use crate::resp::request::{Request, parse_integer};

/// Lets others have their turn every so many keys or bytes.
#[derive(Debug, Default)]
struct Pace {
    keys: usize,
    bytes: usize,
}

impl Pace {
    const KEYS: usize = 256;
    const BYTES: usize = 1 << 20;

    async fn step(&mut self, bytes: usize) {
        self.keys += 1;
        self.bytes += bytes;
        if self.keys >= Pace::KEYS || self.bytes >= Pace::BYTES {
            *self = Pace::default();
            yield_now().await;
        }
    }
}

/// What `LR.RANGE` asks for.
struct RangeRequest {
    start: Bound<Bytes>,
    end: Bound<Bytes>,
    reverse: bool,
    limit: usize,
}

type Entries = Box<dyn Iterator<Item = Result<(Key, Value), Error>>>;

impl RangeRequest {
    fn parse(request: &Request) -> Result<RangeRequest, Refusal> {
        let mut parsed = RangeRequest {
            start: match request.argument(1) {
                b"-" => Bound::Unbounded,
                start => Bound::Included(end_point(start)),
            },
            end: match request.argument(2) {
                b"+" => Bound::Unbounded,
                end => Bound::Excluded(end_point(end)),
            },
            reverse: false,
            limit: usize::MAX,
        };
        // From the last end or up to the first there is nothing.
        if request.argument(1) == b"+" || request.argument(2) == b"-" {
            parsed.limit = 0;
        }
        let mut words = request.arguments_from(3);
        while let Some(word) = words.next() {
            match &word.to_ascii_uppercase()[..] {
                b"REV" => parsed.reverse = true,
                b"LIMIT" => {
                    let limit = parse_limit(words.next())?;
                    parsed.limit = parsed.limit.min(limit);
                }
                _ => return Err(SYNTAX),
            }
        }
        Ok(parsed)
    }

    fn entries(&self, moment: &Snapshot) -> Entries {
        // The engine takes no range that ends before it begins.
        if let (Bound::Included(start), Bound::Excluded(end)) = (&self.start, &self.end)
            && start >= end
        {
            return Box::new(std::iter::empty());
        }
        let range: Range = moment.range((self.start.clone(), self.end.clone()));
        if self.reverse {
            Box::new(range.rev().take(self.limit))
        } else {
            Box::new(range.take(self.limit))
        }
    }
}

/// A key that begins with `[` is what follows, so that `-`, `+` and `[` can be meant.
fn end_point(text: &[u8]) -> Bytes {
    Bytes::copy_from_slice(text.strip_prefix(b"[").unwrap_or(text))
}

/// A count that is not negative.
pub(super) fn parse_limit(word: Option<&[u8]>) -> Result<usize, Refusal> {
    let number = parse_integer(word.ok_or(SYNTAX)?).ok_or(NO_INTEGER)?;
    usize::try_from(number).map_err(|_| NO_INTEGER)
}

/// What `SCAN` asks for.
struct ScanRequest {
    pattern: Option<Vec<u8>>,
    count: usize,
    /// Whether keys have another type than the only one there is.
    is_vain: bool,
}

impl ScanRequest {
    fn parse(request: &Request) -> Result<ScanRequest, Refusal> {
        let mut parsed = ScanRequest {
            pattern: None,
            count: 10,
            is_vain: false,
        };
        let mut words = request.arguments_from(2);
        while let Some(word) = words.next() {
            let value = words.next().ok_or(SYNTAX);
            match &word.to_ascii_uppercase()[..] {
                b"MATCH" => parsed.pattern = Some(value?.to_vec()),
                b"COUNT" => {
                    let count = parse_integer(value?).ok_or(NO_INTEGER)?;
                    let count = usize::try_from(count).unwrap_or(0);
                    if count == 0 {
                        return Err(SYNTAX);
                    }
                    parsed.count = count.min(SCAN_COUNT_MAX);
                }
                b"TYPE" => parsed.is_vain = !value?.eq_ignore_ascii_case(b"string"),
                _ => return Err(SYNTAX),
            }
        }
        Ok(parsed)
    }

    fn wants(&self, key: &[u8]) -> bool {
        let pattern = self.pattern.as_ref();
        !self.is_vain && pattern.is_none_or(|pattern| glob::matches(pattern, key))
    }
}

impl Connection {
    pub(super) async fn range(&mut self, request: &Request) -> Result<(), Stop> {
        let wanted = RangeRequest::parse(request)?;
        let moment = self.server.db.snapshot();
        let mut pace = Pace::default();
        let mut count = 0;
        for entry in wanted.entries(&moment) {
            let (_, value) = entry?;
            count += 1;
            pace.step(value.len()).await;
        }

        self.out.array(2 * count);
        for entry in wanted.entries(&moment) {
            // What could be read before cannot be now: the reply cannot be finished.
            let (key, value) = entry.map_err(|_| Stop::Ended)?;
            self.out.bulk(&key);
            self.out.bulk(&value);
            self.flush_if_full().await?;
            pace.step(value.len()).await;
        }
        Ok(())
    }

    pub(super) async fn keys(&mut self, request: &Request) -> Result<(), Stop> {
        let pattern = request.argument(1);
        let prefix = glob::literal_prefix(pattern);
        let moment = self.server.db.snapshot();
        let mut pace = Pace::default();
        let mut count = 0;
        for entry in moment.prefix(&prefix) {
            let (key, value) = entry?;
            count += usize::from(glob::matches(pattern, &key));
            pace.step(value.len()).await;
        }

        self.out.array(count);
        for entry in moment.prefix(&prefix) {
            let (key, value) = entry.map_err(|_| Stop::Ended)?;
            if glob::matches(pattern, &key) {
                self.out.bulk(&key);
                self.flush_if_full().await?;
            }
            pace.step(value.len()).await;
        }
        Ok(())
    }

    /// Goes on behind the last key that was looked at, so that each key that stays is returned once.
    pub(super) async fn scan(&mut self, request: &Request) -> Result<(), Stop> {
        let invalid = || Refusal::new("ERR invalid cursor");
        let cursor = parse_integer(request.argument(1)).ok_or_else(invalid)?;
        let cursor = u64::try_from(cursor).map_err(|_| invalid())?;
        let wanted = ScanRequest::parse(request)?;
        let pattern = wanted.pattern.as_deref().unwrap_or_default();
        let prefix = Bytes::from(glob::literal_prefix(pattern));
        let start = match cursor {
            0 => Bound::Included(prefix.clone()),
            _ => Bound::Excluded(self.server.cursors.borrow().key(cursor).ok_or_else(|| {
                Refusal::new("ERR cursor is unknown here or was forgotten; begin again with 0")
            })?),
        };
        // A cursor of a scan with another pattern may stand before everything that is wanted.
        let start = match start {
            Bound::Excluded(key) if key < prefix => Bound::Included(prefix.clone()),
            start => start,
        };

        let mut found: Vec<Key> = Vec::new();
        let (mut looked_at, mut bytes) = (0, 0);
        let mut last = None;
        let mut is_done = true;
        let mut pace = Pace::default();
        for entry in self.server.db.range((start, Bound::Unbounded)) {
            let (key, value) = entry?;
            if !key.starts_with(&prefix) {
                break;
            }
            if looked_at >= wanted.count || bytes >= SCAN_BYTES_MAX {
                is_done = false;
                break;
            }
            looked_at += 1;
            bytes += key.len();
            if wanted.wants(&key) {
                found.push(key.clone());
            }
            last = Some(key);
            pace.step(value.len()).await;
        }
        let next = match last {
            Some(key) if !is_done => self.server.cursors.borrow_mut().issue(&key),
            _ => 0,
        };
        self.out.array(2);
        self.out.bulk(next.to_string());
        self.out.array(found.len());
        found.iter().for_each(|key| self.out.bulk(key));
        Ok(())
    }

    pub(super) async fn mget(&mut self, request: &Request) -> Result<(), Stop> {
        let moment = self.server.db.snapshot();
        let mut pace = Pace::default();
        let before = self.out.len();
        let mut was_sent = false;
        self.out.array(request.len() - 1);
        for key in request.arguments_from(1) {
            let value = match moment.get(key) {
                Ok(value) => value,
                // Half a reply cannot be taken back.
                Err(_) if was_sent => return Err(Stop::Ended),
                Err(error) => {
                    self.out.truncate(before);
                    return Err(error.into());
                }
            };
            let len = value.as_ref().map_or(0, |value| value.len());
            self.out.bulk_or_null(value);
            was_sent |= self.flush_if_full().await?;
            pace.step(len).await;
        }
        Ok(())
    }

    pub(super) async fn dbsize(&mut self) -> Result<(), Stop> {
        if let Some(keys) = self.server.db.status().keys {
            self.out.integer(i64::try_from(keys).unwrap_or(i64::MAX));
            return Ok(());
        }
        // After an unclean end they are still being counted.
        let mut pace = Pace::default();
        let mut count = 0;
        for entry in self.server.db.iter() {
            let (_, value) = entry?;
            count += 1;
            pace.step(value.len()).await;
        }
        self.out.count(count);
        Ok(())
    }

    /// Deletes all keys, in steps: each is atomic, all of them together are not.
    pub(super) async fn flushall(&mut self, request: &Request) -> Result<(), Stop> {
        let word = request.argument(1).to_ascii_uppercase();
        if request.len() > 2 || !matches!(&word[..], b"" | b"SYNC" | b"ASYNC") {
            return Err(SYNTAX.into());
        }
        let mut from = Bound::Unbounded;
        while let Some(last) = self.on_a_thread(move |db| delete_some(db, from)).await? {
            from = Bound::Excluded(last);
        }
        self.last_dot = self.server.db.last_dot();
        self.out.simple("OK");
        Ok(())
    }

    /// Sends what is written, if that is much; answers whether it was.
    pub(super) async fn flush_if_full(&mut self) -> Result<bool, Stop> {
        let is_full = self.out.len() >= FLUSH_BYTES;
        if is_full {
            self.flush().await?;
        }
        Ok(is_full)
    }
}

/// Deletes some keys; answers the last of them, or `None` if there were none.
fn delete_some(db: &Db, from: Bound<Key>) -> Result<Option<Key>, Error> {
    let mut batch = db.batch();
    let mut bytes = 0;
    let mut last = None;
    for entry in db.range((from, Bound::Unbounded)) {
        let (key, _) = entry?;
        batch.delete(&key);
        bytes += key.len();
        last = Some(key);
        if batch.len() >= FLUSH_KEYS || bytes >= FLUSH_KEYS_BYTES {
            break;
        }
    }
    batch.commit()?;
    Ok(last)
}
