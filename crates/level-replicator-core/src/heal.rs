//! Two replicas' data compared range by range, in the order of keys.
//!
//! The *leader* walks over a snapshot and announces each range of about 256 keys with a fingerprint.
//! The *follower* looks at the same range in a snapshot of its own: if the fingerprints are equal
//! nothing more is said; if not it lists a hash of each of its keys, and the leader answers with the
//! records that the list lacks and with the places of those that it does not have itself. Where the
//! follower has nothing the leader streams without asking. So a comparison that was cut costs little
//! when it begins again, and neither side holds more than a few ranges in memory. Now and then the
//! leader says how far everything was compared; a heal that was cut may go on from there.
//!
//! A *heal* makes the follower hold what the leader's clock promises; a *scrub* only finds out
//! whether two replicas with equal clocks hold the same. After "Range-based set reconciliation"
//! (Meyer 2022), with one level of fixed ranges: both sides read all of theirs once anyway.
//!
//! The rule: everything that the leader says comes from one snapshot of it.

use std::collections::{BTreeSet, VecDeque};
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::clock::Clock;
use crate::config::Config;
use crate::delta::{Piece, size_hint};
use crate::limits::{
    FRAME_PAYLOAD_MAX, LIST_ITEMS_MAX, RANGE_BYTES, RANGES_PENDING, RECORDS_FRAME_TARGET,
};
use crate::mistake::{Mistake, is_planted};
use crate::packing::RecordsEncoder;
use crate::record::{Key, Record};
use crate::state::{StateError, read_record};
use crate::storage::{Entries, Snapshot, StorageError, Table};
use crate::writers::Writers;

/// Stands for a record that cannot be read.
const UNREADABLE: u64 = 0;

/// What two replicas are compared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The follower is to hold what the leader's clock promises.
    Heal,
    /// Both should hold the same values; nothing is changed by the comparison itself.
    Scrub,
}

/// How a comparison begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it is for.
    pub purpose: Purpose,
    /// A number that makes the hashes of this comparison its own, so that a collision does not repeat.
    pub seed: u64,
    /// The first key that is compared.
    pub start: Key,
    /// The key before which it ends; `None` for the end of all keys.
    pub end: Option<Key>,
}

impl Plan {
    /// Whether it is for all keys.
    pub fn is_of_all(&self) -> bool {
        self.start.is_empty() && self.end.is_none()
    }
}

/// What the follower says to a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Go ahead.
    From {
        /// Where to begin: what comes before was compared in a heal that was cut.
        start: Key,
        /// From this key on nothing is here, so records may be sent at once.
        direct: Key,
    },
    /// Not now: something else is being taken in, or things are not as they have to be.
    Refused,
}

/// A range that the leader announces; it begins where the one before ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The key before which it ends; `None` for the end of the plan.
    pub end: Option<Key>,
    /// Number of items in it.
    pub count: u64,
    /// Fingerprint of the items.
    pub fingerprint: u128,
}

/// What the follower has in a range, or in the next part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum List {
    /// The same.
    Same,
    /// These items, in the order of keys. The part ends before `end`; with `None`, where the range does.
    Items {
        /// Where the part ends.
        end: Option<Key>,
        /// A hash of each item.
        hashes: Vec<u64>,
    },
}

/// A follower, or a leader, said something that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfOrder;

/// How records are seen in a comparison.
#[derive(Debug, Clone)]
struct Glasses {
    purpose: Purpose,
    seed: u64,
    /// The leader's floor: what lies below it may be stripped on one side only.
    floor: Arc<Clock>,
}

/// One side's tables at one moment.
#[derive(Clone)]
pub struct View {
    /// The tables.
    pub snapshot: Arc<dyn Snapshot>,
    /// The writers named in them.
    pub writers: Arc<Writers>,
}

impl Glasses {
    fn new(plan: &Plan, floor: Arc<Clock>) -> Glasses {
        Glasses {
            purpose: plan.purpose,
            seed: plan.seed,
            floor,
        }
    }

    /// The hash of one key, if there is anything to compare.
    fn item(&self, key: &[u8], record: &Record) -> Option<u64> {
        let is_scrub = self.purpose == Purpose::Scrub;
        let stripped = if is_scrub {
            None
        } else {
            record.stripped(&self.floor)
        };
        let record = stripped.as_ref().unwrap_or(record);
        let nothing = if is_scrub {
            record.puts().next().is_none()
        } else {
            record.is_empty()
        };
        if nothing {
            return None;
        }
        let mut bytes = Vec::with_capacity(key.len() + 32);
        bytes.extend_from_slice(&(key.len() as u32).to_be_bytes());
        bytes.extend_from_slice(key);
        for version in &record.live {
            let hash = version.content.hash();
            if hash.is_none() && is_scrub {
                continue;
            }
            bytes.extend_from_slice(&version.dot.writer.0.to_be_bytes());
            bytes.extend_from_slice(&version.dot.seq.to_be_bytes());
            bytes.push(u8::from(hash.is_some()));
            bytes.extend_from_slice(&hash.unwrap_or(0).to_be_bytes());
        }
        if !is_scrub {
            for seen in record.seen.iter() {
                bytes.extend_from_slice(&seen.writer.0.to_be_bytes());
                bytes.extend_from_slice(&seen.seq.to_be_bytes());
            }
        }
        Some(xxh3_64_with_seed(&bytes, self.seed))
    }
}

impl View {
    fn entries(&self, start: &[u8], end: Option<&Key>) -> Entries {
        let end = end.map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        self.snapshot
            .range(Table::Data, Bound::Included(start), end)
    }

    fn record(&self, key: &Key) -> Result<Record, StateError> {
        read_record(self.snapshot.get(Table::Data, key)?, key, &self.writers)
    }
}

/// The items of a range as they are found, and what they sum up to.
#[derive(Default)]
struct Items {
    items: Vec<(Key, u64)>,
    key_bytes: usize,
}

impl Items {
    fn push(&mut self, key: Key, hash: u64) {
        self.key_bytes += key.len();
        self.items.push((key, hash));
    }

    fn fingerprint(&self) -> u128 {
        let mut sum = Xxh3::new();
        for (_, hash) in &self.items {
            sum.update(&hash.to_be_bytes());
        }
        sum.digest128()
    }
}

/// What the leader does next.
#[derive(Debug)]
pub enum Next {
    /// Send records.
    Records(Piece),
    /// Announce a range.
    Range(Range),
    /// Name the items of a part that are not here: their places in the list.
    Absent(Vec<u64>),
    /// Say that everything before a key has been sent or compared.
    Reached(Key),
    /// Wait for the follower.
    Wait,
    /// Everything was compared.
    Done,
}

struct Announced {
    /// What is left of the range, as its parts are listed.
    items: VecDeque<(Key, u64)>,
    /// Something in it cannot be read, so nothing can be said to be absent.
    is_damaged: bool,
    end: Option<Key>,
}

#[derive(Default)]
struct Answer {
    lacking: VecDeque<Key>,
    absent: Vec<u64>,
    /// What is reached with it, if it is the last of a range.
    reached: Option<Key>,
}

/// The side that walks and announces.
pub struct Leader {
    glasses: Glasses,
    view: View,
    entries: Peekable<Entries>,
    start: Key,
    end: Option<Key>,
    /// A part was compared before: what comes now is not all.
    is_resumed: bool,
    /// Before which key everything was compared, and how many ranges ago that was said.
    reached: Option<Key>,
    unsaid: usize,
    range_keys: usize,
    ranges_per_reached: usize,
    /// From where records are sent without asking, once the follower has said so.
    direct_from: Option<Key>,
    /// Up to where ranges were announced.
    announced_to: Key,
    /// Everything was announced or sent.
    walked: bool,
    pending: VecDeque<Announced>,
    answers: VecDeque<Answer>,
    held_over: Option<(Key, Record)>,
    damage: Option<StateError>,
    refused: bool,
    /// What may be sent without asking comes next, once all that was announced is answered.
    waits_for_lists: bool,
}

impl Leader {
    /// Begins at the start of the plan.
    pub fn new(plan: &Plan, floor: Arc<Clock>, view: View, config: &Config) -> Leader {
        Leader {
            glasses: Glasses::new(plan, floor),
            entries: view.entries(&plan.start, plan.end.as_ref()).peekable(),
            view,
            start: plan.start.clone(),
            end: plan.end.clone(),
            is_resumed: false,
            reached: None,
            unsaid: 0,
            range_keys: config.range_keys,
            ranges_per_reached: config.ranges_per_reached,
            direct_from: None,
            announced_to: plan.start.clone(),
            walked: false,
            pending: VecDeque::new(),
            answers: VecDeque::new(),
            held_over: None,
            damage: None,
            refused: false,
            waits_for_lists: false,
        }
    }

    /// What the comparison is for.
    pub fn purpose(&self) -> Purpose {
        self.glasses.purpose
    }

    /// The follower is ready. It begins where an earlier comparison has come to, if that is later.
    pub fn begin(&mut self, start: &Key, direct_from: Key) -> Result<(), OutOfOrder> {
        let is_beyond = self.end.as_ref().is_some_and(|end| start >= end);
        if self.direct_from.is_some() || *start < self.start || is_beyond {
            return Err(OutOfOrder);
        }
        self.is_resumed = *start > self.start;
        self.announced_to = start.clone();
        if self.is_resumed {
            let entries = self.view.entries(start, self.end.as_ref());
            self.entries = entries.peekable();
        }
        self.direct_from = Some(direct_from);
        Ok(())
    }

    /// Whether the follower has begun later than planned, so that it was not told everything now.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// The follower cannot be compared with now.
    pub fn refuse(&mut self) {
        self.refused = true;
    }

    /// Whether the follower refused.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// Whether there is something to say without anything from the follower.
    pub fn is_ready(&self) -> bool {
        let may_walk = self.direct_from.is_some() && !self.walked;
        self.refused
            || !self.answers.is_empty()
            || self.may_say_reached()
            || (may_walk && !self.waits_for_lists && self.pending.len() < RANGES_PENDING)
            || (self.walked && self.pending.is_empty())
    }

    /// The follower told what it has in the first range that is open, or in the next part of it.
    pub fn take_list(&mut self, list: List) -> Result<(), OutOfOrder> {
        let range = self.pending.front_mut().ok_or(OutOfOrder)?;
        let (end, hashes) = match list {
            List::Same => {
                let end = self.pending.pop_front().and_then(|range| range.end);
                self.waits_for_lists &= !self.pending.is_empty();
                match self.answers.back_mut() {
                    Some(before) => before.reached = end,
                    None => self.reach(end),
                }
                return Ok(());
            }
            List::Items { end, hashes } => (end, hashes),
        };
        if self.answers.len() >= RANGES_PENDING {
            return Err(OutOfOrder);
        }
        let count = match &end {
            Some(end) => range.items.partition_point(|(key, _)| key < end),
            None => range.items.len(),
        };
        let is_damaged = range.is_damaged;
        let mine: Vec<(Key, u64)> = range.items.drain(..count).collect();
        let mut reached = None;
        if end.is_none() {
            reached = self.pending.pop_front().and_then(|range| range.end);
            self.waits_for_lists &= !self.pending.is_empty();
        }
        let theirs: BTreeSet<u64> = hashes.iter().copied().collect();
        let ours: BTreeSet<u64> = mine.iter().map(|(_, hash)| *hash).collect();
        let places = (0u64..).zip(&hashes);
        let absent = places
            .filter(|(_, hash)| !ours.contains(hash))
            .map(|(place, _)| place);
        let lacking = mine.into_iter().filter(|(_, hash)| !theirs.contains(hash));
        let answer = Answer {
            absent: if is_damaged {
                Vec::new()
            } else {
                absent.collect()
            },
            lacking: lacking.map(|(key, _)| key).collect(),
            reached,
        };
        self.answers.push_back(answer);
        Ok(())
    }

    /// What to do next.
    pub fn advance(&mut self) -> Result<Next, StateError> {
        if let Some(answer) = self.answers.front_mut() {
            let mut encoder = RecordsEncoder::default();
            let mut records = 0;
            while let Some(key) = answer.lacking.front() {
                match self.view.record(key) {
                    Ok(record) => {
                        let size = size_hint(key, &record);
                        if !encoder.is_empty() && encoder.len() + size > FRAME_PAYLOAD_MAX {
                            break;
                        }
                        encoder.push(key, &record);
                        records += 1;
                    }
                    Err(damage @ StateError::Corrupt { .. }) => self.damage = Some(damage),
                    Err(error) => return Err(error),
                }
                answer.lacking.pop_front();
                if encoder.len() >= RECORDS_FRAME_TARGET || !encoder.has_room_for_key() {
                    break;
                }
            }
            if records > 0 {
                let payload = encoder.finish();
                return Ok(Next::Records(Piece { payload, records }));
            }
            let absent = std::mem::take(&mut answer.absent);
            let reached = self.answers.pop_front().and_then(|answer| answer.reached);
            self.reach(reached);
            return Ok(Next::Absent(absent));
        }
        if self.refused {
            return Ok(Next::Done);
        }
        if self.may_say_reached()
            && let Some(key) = self.reached.take()
        {
            self.unsaid = 0;
            return Ok(Next::Reached(key));
        }
        let Some(direct_from) = self.direct_from.clone() else {
            return Ok(Next::Wait);
        };
        if self.walked {
            let is_done = self.pending.is_empty();
            return Ok(if is_done { Next::Done } else { Next::Wait });
        }
        if self.announced_to >= direct_from {
            self.waits_for_lists = !self.pending.is_empty();
            if self.waits_for_lists {
                return Ok(Next::Wait);
            }
            return Ok(match self.direct_piece()? {
                Some(piece) => Next::Records(piece),
                None => {
                    self.walked = true;
                    Next::Done
                }
            });
        }
        if self.pending.len() >= RANGES_PENDING {
            return Ok(Next::Wait);
        }
        self.next_range(&direct_from).map(Next::Range)
    }

    /// A range is settled.
    fn reach(&mut self, end: Option<Key>) {
        if end.is_some() {
            self.reached = end;
            self.unsaid += 1;
        }
    }

    /// Whether to say how far everything has come: not behind what could not be read.
    fn may_say_reached(&self) -> bool {
        let is_whole = self.damage.is_none() || is_planted(Mistake::ReachedOverDamage);
        self.glasses.purpose == Purpose::Heal
            && self.reached.is_some()
            && self.unsaid >= self.ranges_per_reached
            && is_whole
    }

    /// What could not be read, if anything: then the follower lacks something that was not sent.
    pub fn take_damage(&mut self) -> Option<StateError> {
        self.damage.take()
    }

    fn next_range(&mut self, direct_from: &Key) -> Result<Range, StateError> {
        let mut items = Items::default();
        let (mut bytes, mut is_damaged) = (0, false);
        loop {
            let at_end = match self.entries.peek() {
                None => Some(self.end.clone()),
                Some(Err(error)) => return Err(error.clone().into()),
                Some(Ok((key, _))) => {
                    let full = items.items.len() >= self.range_keys || bytes >= RANGE_BYTES;
                    let end = if key < direct_from { key } else { direct_from };
                    (full || key >= direct_from).then(|| Some(end.clone()))
                }
            };
            if let Some(end) = at_end {
                self.walked = self.entries.peek().is_none();
                if let Some(end) = &end {
                    self.announced_to = end.clone();
                }
                let range = Range {
                    end,
                    count: items.items.len() as u64,
                    fingerprint: items.fingerprint(),
                };
                self.pending.push_back(Announced {
                    items: items.items.into(),
                    is_damaged,
                    end: range.end.clone(),
                });
                return Ok(range);
            }
            let Some(entry) = self.entries.next() else {
                continue;
            };
            let (key, row) = entry?;
            bytes += key.len() + row.len();
            match read_record(Some(row), &key, &self.view.writers) {
                Ok(record) => {
                    if let Some(hash) = self.glasses.item(&key, &record) {
                        items.push(key, hash);
                    }
                }
                Err(damage) => {
                    is_damaged = true;
                    self.damage = Some(damage);
                }
            }
        }
    }

    fn direct_piece(&mut self) -> Result<Option<Piece>, StateError> {
        let mut encoder = RecordsEncoder::default();
        let mut records = 0;
        let mut last = None;
        let most = self.range_keys.saturating_mul(self.ranges_per_reached) as u64;
        while encoder.len() < RECORDS_FRAME_TARGET && encoder.has_room_for_key() && records < most {
            let next = match self.held_over.take() {
                Some(record) => Some(record),
                None => self.next_record()?,
            };
            let Some((key, record)) = next else {
                break;
            };
            if !encoder.is_empty() && encoder.len() + size_hint(&key, &record) > FRAME_PAYLOAD_MAX {
                self.held_over = Some((key, record));
                break;
            }
            encoder.push(&key, &record);
            records += 1;
            last = Some(key);
        }
        if let Some(last) = last {
            self.reached = Some(after(&last));
            self.unsaid = self.ranges_per_reached;
        }
        Ok((records > 0).then(|| Piece {
            payload: encoder.finish(),
            records,
        }))
    }

    fn next_record(&mut self) -> Result<Option<(Key, Record)>, StateError> {
        for entry in self.entries.by_ref() {
            let (key, row) = entry?;
            match read_record(Some(row), &key, &self.view.writers) {
                Ok(record) if self.glasses.item(&key, &record).is_some() => {
                    return Ok(Some((key, record)));
                }
                Ok(_) => {}
                Err(damage) => self.damage = Some(damage),
            }
        }
        Ok(None)
    }
}

/// A part of a range that was listed and is not answered yet.
struct Part {
    keys: Vec<Key>,
}

/// The side that looks and lists. What it has is looked at when it is asked for: what is written here
/// meanwhile is no part of what the leader's clock promises.
pub struct Follower {
    glasses: Glasses,
    /// Where the first range that is not answered begins, or the rest of it.
    at: Key,
    end: Option<Key>,
    ranges: VecDeque<Range>,
    parts: VecDeque<Part>,
    /// The last range was announced.
    is_over: bool,
    /// The keys of the records that have come for the first part.
    came: BTreeSet<Key>,
    is_resumed: bool,
    /// From which key on nothing was here, and whether records from there on have come.
    direct_from: Option<Key>,
    is_direct: bool,
}

/// The least key after another.
fn after(key: &Key) -> Key {
    let mut after = key.to_vec();
    after.push(0);
    after.into()
}

impl Follower {
    /// Begins at the start of the plan, or where an earlier comparison has come to.
    pub fn new(plan: &Plan, resume: Option<Key>, floor: Arc<Clock>) -> Follower {
        Follower {
            glasses: Glasses::new(plan, floor),
            is_resumed: resume.is_some(),
            at: resume.unwrap_or_else(|| plan.start.clone()),
            end: plan.end.clone(),
            ranges: VecDeque::new(),
            parts: VecDeque::new(),
            is_over: false,
            came: BTreeSet::new(),
            direct_from: None,
            is_direct: false,
        }
    }

    /// What the comparison is for.
    pub fn purpose(&self) -> Purpose {
        self.glasses.purpose
    }

    /// What the leader's floor was when the comparison began.
    pub fn floor(&self) -> Arc<Clock> {
        Arc::clone(&self.glasses.floor)
    }

    /// Whether it goes on where an earlier comparison was cut.
    pub fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// How to begin.
    pub fn start(&mut self, view: &View) -> Result<Start, StorageError> {
        let last = view
            .entries(&self.at, self.end.as_ref())
            .next_back()
            .transpose()?;
        let direct = last.map_or_else(|| self.at.clone(), |(key, _)| after(&key));
        self.direct_from = Some(direct.clone());
        Ok(Start::From {
            start: self.at.clone(),
            direct,
        })
    }

    /// The leader announced a range.
    pub fn take_range(&mut self, range: Range) -> Result<(), OutOfOrder> {
        let full = self.ranges.len() + self.parts.len() > 2 * RANGES_PENDING;
        let last = self
            .ranges
            .back()
            .map_or(Some(&self.at), |before| before.end.as_ref());
        let follows = match (last, &range.end) {
            (None, _) => false,
            (Some(last), Some(end)) => last < end && self.end.as_ref().is_none_or(|all| end <= all),
            (Some(_), None) => true,
        };
        // What was sent without asking is here by now, and would be taken for what the leader lacks.
        if full || !follows || self.is_over || self.is_direct {
            return Err(OutOfOrder);
        }
        self.is_over = range.end.is_none();
        self.ranges.push_back(range);
        Ok(())
    }

    /// What to say of the next range, or of the next part of it; `None` until more has come.
    pub fn next_list(&mut self, view: &View) -> Result<Option<List>, StateError> {
        if self.parts.len() >= RANGES_PENDING {
            return Ok(None);
        }
        let Some(range) = self.ranges.front() else {
            return Ok(None);
        };
        let range_end = range.end.clone();
        let bounded = range_end.clone().or_else(|| self.end.clone());
        let told = usize::try_from(range.count).unwrap_or(usize::MAX);
        let most = LIST_ITEMS_MAX
            .max(told.saturating_add(1))
            .min(4 * LIST_ITEMS_MAX);
        let (items, rest) = self.items(view, bounded.as_ref(), most)?;
        let is_same = rest.is_none()
            && items.items.len() as u64 == range.count
            && items.fingerprint() == range.fingerprint;
        if rest.is_none() {
            self.ranges.pop_front();
            self.at = range_end.unwrap_or_default();
        }
        if is_same {
            return Ok(Some(List::Same));
        }
        if let Some(rest) = &rest {
            self.at = rest.clone();
        }
        let (keys, hashes) = items.items.into_iter().unzip();
        self.parts.push_back(Part { keys });
        Ok(Some(List::Items { end: rest, hashes }))
    }

    /// The items from where we are to the end of the range, or so many of them; and with which key
    /// the rest begins.
    fn items(
        &self,
        view: &View,
        end: Option<&Key>,
        most: usize,
    ) -> Result<(Items, Option<Key>), StateError> {
        let mut items = Items::default();
        for entry in view.entries(&self.at, end) {
            let (key, row) = entry?;
            if items.items.len() >= most || items.key_bytes >= 16 * RANGE_BYTES {
                return Ok((items, Some(key)));
            }
            match read_record(Some(row), &key, &view.writers) {
                Ok(record) => {
                    if let Some(hash) = self.glasses.item(&key, &record) {
                        items.push(key, hash);
                    }
                }
                // What cannot be read is like nothing else, so the leader tells what it has.
                Err(StateError::Corrupt { .. }) => items.push(key, UNREADABLE),
                Err(error) => return Err(error),
            }
        }
        Ok((items, None))
    }

    /// Records of the leader have come.
    pub fn note_records(&mut self, records: &[(Key, Record)]) {
        let direct_from = self.direct_from.as_ref();
        self.is_direct |=
            (records.iter()).any(|(key, _)| direct_from.is_some_and(|from| key >= from));
        if let Some(part) = self.parts.front() {
            let listed = records
                .iter()
                .filter(|(key, _)| part.keys.binary_search(key).is_ok());
            self.came.extend(listed.map(|(key, _)| key.clone()));
        }
    }

    /// How many keys are remembered of which records have come.
    pub fn remembered(&self) -> usize {
        self.came.len()
    }

    /// The leader answered the first part; answers the keys of it of which the leader holds nothing.
    pub fn take_absent(&mut self, places: &[u64]) -> Result<Vec<Key>, OutOfOrder> {
        let part = self.parts.pop_front().ok_or(OutOfOrder)?;
        let came = std::mem::take(&mut self.came);
        let mut absent = Vec::new();
        for &place in places {
            let place = usize::try_from(place).map_err(|_| OutOfOrder)?;
            let key = part.keys.get(place).ok_or(OutOfOrder)?;
            if !came.contains(key) {
                absent.push(key.clone());
            }
        }
        Ok(absent)
    }

    /// Whether every range that was announced has been answered.
    pub fn is_settled(&self) -> bool {
        self.ranges.is_empty() && self.parts.is_empty()
    }
}
