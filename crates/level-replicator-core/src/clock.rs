//! Names of writes, and sets of them: dots, version vectors, clocks, stamps.
//!
//! The rule: a [`Clock`] says which writes a replica *knows*, and it grows only with what has been
//! applied. Where these come from: dotted version vectors (Preguiça et al. 2010) and server-wide
//! clocks (Gonçalves et al. 2015, 2017).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3;

use crate::codec::{DecodeError, Reader, put_varint};
use crate::limits::STAMP_MAX;
use crate::mistake::{Mistake, is_planted};

/// What time it is, as the core is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Wall clock in microseconds since 1970. May be wrong, and may jump.
    pub wall_us: u64,
    /// Microseconds since some fixed moment of this process. Never goes back.
    pub steady_us: u64,
}

impl Now {
    /// The steady moment that lies `after` this one, in microseconds.
    pub fn plus(self, after: Duration) -> u64 {
        self.steady_us.saturating_add(micros(after))
    }
}

/// A duration in microseconds, at most `u64::MAX`.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Names a replica: 16 random bytes kept in its data directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub [u8; 16]);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplicaId({self})")
    }
}

/// Names one lifetime of a replica's process: random, minted at the first write after each open, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterId(pub u64);

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriterId({self})")
    }
}

/// The name of one write: its writer, and its number there, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// Who wrote.
    pub writer: WriterId,
    /// Which of that writer's writes; the first is 1.
    pub seq: u64,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.writer, self.seq)
    }
}

/// When a write happened by its writer's clock, in microseconds since 1970.
///
/// It is greater than the stamp of everything the write replaced, whatever the clock said, and it
/// only breaks ties between concurrent writes of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(u64);

impl Stamp {
    /// The stamp of a moment in microseconds; moments after the year 4253 count as that year.
    pub fn from_micros(micros: u64) -> Stamp {
        Stamp(micros.min(STAMP_MAX))
    }

    /// Microseconds since 1970.
    pub fn as_micros(self) -> u64 {
        self.0
    }

    /// The stamp of a write at `now` that replaces writes of which `replaced` is the latest.
    pub fn after(now: Now, replaced: Option<Stamp>) -> Stamp {
        if is_planted(Mistake::StampNotAfter) {
            return Stamp::from_micros(now.wall_us);
        }
        let least = replaced.map_or(0, |stamp| stamp.0 + 1);
        Stamp::from_micros(now.wall_us.max(least))
    }
}

/// For each writer, how many of its writes: all up to that number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionVector(BTreeMap<WriterId, u64>);

impl VersionVector {
    /// Whether the vector names no writer.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of writers named.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How far the vector reaches for a writer; 0 if it does not name it.
    pub fn get(&self, writer: WriterId) -> u64 {
        self.0.get(&writer).copied().unwrap_or(0)
    }

    /// Makes the vector reach at least to `dot`.
    pub fn raise(&mut self, dot: Dot) {
        let seq = self.0.entry(dot.writer).or_insert(0);
        *seq = (*seq).max(dot.seq);
    }

    /// Makes the vector reach at least as far as `other` everywhere.
    pub fn join(&mut self, other: &VersionVector) {
        other.iter().for_each(|dot| self.raise(dot));
    }

    /// Keeps the entries for which `keep` answers true.
    pub fn retain(&mut self, mut keep: impl FnMut(Dot) -> bool) {
        self.0.retain(|&writer, &mut seq| keep(Dot { writer, seq }));
    }

    /// The last dot of each writer, in the order of writers.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        self.0.iter().map(|(&writer, &seq)| Dot { writer, seq })
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut vector = VersionVector::default();
        dots.into_iter().for_each(|dot| vector.raise(dot));
        vector
    }
}

/// What is known of one writer: everything up to `base`, and ranges ahead of it with gaps between.
///
/// The ranges are disjoint, do not touch each other, and begin above `base + 1`. The gaps are
/// writes not known here, for instance because a conversation was cut half-way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    base: u64,
    ahead: BTreeMap<u64, u64>,
}

impl Known {
    /// Everything up to and including this number is known.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The ranges known above the base, ascending, both ends inclusive.
    pub fn ahead(&self) -> impl DoubleEndedIterator<Item = RangeInclusive<u64>> + '_ {
        self.ahead.iter().map(|(&first, &last)| first..=last)
    }

    /// The ranges above the base that have a number in `span`, ascending.
    pub fn ahead_within(
        &self,
        span: RangeInclusive<u64>,
    ) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        let reaching = self.ahead.range(..span.start()).next_back();
        let reaching = reaching.filter(|(_, last)| *last >= span.start());
        let ranges = reaching.into_iter().chain(self.ahead.range(span));
        ranges.map(|(&first, &last)| first..=last)
    }

    /// Number of ranges above the base.
    pub fn ahead_len(&self) -> usize {
        self.ahead.len()
    }

    /// Whether the write with this number is known.
    pub fn contains(&self, seq: u64) -> bool {
        seq <= self.base || self.contains_range(seq..=seq)
    }

    /// Adds a range of numbers; an empty range adds nothing.
    pub fn insert(&mut self, range: RangeInclusive<u64>) {
        let (mut first, mut last) = (*range.start(), *range.end());
        if first > last || last <= self.base {
            return;
        }
        if first <= self.base.saturating_add(1) {
            self.base = last;
            self.absorb();
            return;
        }
        // Take in every range that overlaps or touches, from the right to the left.
        while let Some((&start, &end)) = self.ahead.range(..=last.saturating_add(1)).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            first = first.min(start);
            last = last.max(end);
            self.ahead.remove(&start);
        }
        self.ahead.insert(first, last);
    }

    /// All ranges that are known, the base's first.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        let base = (self.base > 0).then_some(1..=self.base);
        base.into_iter().chain(self.ahead())
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.base == 0 && self.ahead.is_empty()
    }

    /// Whether everything in `other` is known here.
    pub fn covers(&self, other: &Known) -> bool {
        // This is asked all the time, also of a clock with a gap for every write that a heal lacks: so
        // what lies below our base is not looked at.
        let Some(above_base) = self.base.checked_add(1) else {
            return true;
        };
        other.base <= self.base
            && other
                .ahead_within(above_base..=u64::MAX)
                .all(|range| self.contains_range(range))
    }

    /// Adds everything that `other` knows.
    pub fn union(&mut self, other: &Known) {
        other.ranges().for_each(|range| self.insert(range));
    }

    /// The ranges known here and not in `other`, ascending.
    pub fn difference(&self, other: &Known) -> Vec<RangeInclusive<u64>> {
        let mut missing = Vec::new();
        for range in self.ranges() {
            let Some(above_base) = other.base.checked_add(1) else {
                break;
            };
            let mut first = (*range.start()).max(above_base);
            let last = *range.end();
            if first > last {
                continue;
            }
            let reaching = other.ahead.range(..first).next_back().into_iter();
            let mut is_known_to_its_end = false;
            for (&start, &end) in reaching.chain(other.ahead.range(first..=last)) {
                if end < first {
                    continue;
                }
                if start > first {
                    missing.push(first..=start - 1);
                }
                is_known_to_its_end = end >= last;
                first = end.saturating_add(1);
            }
            if !is_known_to_its_end {
                missing.push(first..=last);
            }
        }
        missing
    }

    /// The greatest number known; 0 if nothing is.
    pub fn last(&self) -> u64 {
        let ahead = self.ahead.last_key_value();
        ahead.map_or(self.base, |(_, &last)| last)
    }

    /// Appends the base, then the number of ranges ahead of it, each as its distance and its length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.base);
        put_varint(out, self.ahead.len() as u64);
        let mut last = self.base;
        for (&first, &end) in &self.ahead {
            put_varint(out, first - last);
            put_varint(out, end - first);
            last = end;
        }
    }

    /// Reads what [`Known::encode`] wrote.
    pub fn decode(reader: &mut Reader) -> Result<Known, DecodeError> {
        let mut last = reader.varint()?;
        let mut known = Known::default();
        known.insert(1..=last);
        for _ in 0..reader.count(usize::MAX, 2)? {
            let invalid = DecodeError::Invalid {
                what: "known writes",
            };
            let first = last.checked_add(reader.varint()?).ok_or(invalid.clone())?;
            let end = first.checked_add(reader.varint()?).ok_or(invalid.clone())?;
            if first == last {
                return Err(invalid);
            }
            known.insert(first..=end);
            last = end;
        }
        Ok(known)
    }

    fn contains_range(&self, range: RangeInclusive<u64>) -> bool {
        let at_or_before = self.ahead.range(..=*range.start()).next_back();
        at_or_before.is_some_and(|(_, last)| last >= range.end())
    }

    /// Lets the base take in the ranges that it has reached.
    fn absorb(&mut self) {
        while let Some((&first, &last)) = self.ahead.first_key_value() {
            if first > self.base.saturating_add(1) {
                break;
            }
            self.base = self.base.max(last);
            self.ahead.pop_first();
        }
    }
}

/// The set of writes that a replica knows: a *server-wide clock* with holes.
///
/// ```
/// use level_replicator_core::clock::{Clock, Dot, WriterId};
///
/// let writer = WriterId(7);
/// let mut clock = Clock::default();
/// clock.insert(Dot { writer, seq: 1 });
/// clock.insert(Dot { writer, seq: 3 });
///
/// assert!(clock.contains(Dot { writer, seq: 3 }));
/// assert!(!clock.contains(Dot { writer, seq: 2 }));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clock(BTreeMap<WriterId, Known>);

impl Clock {
    /// Whether the write is known.
    pub fn contains(&self, dot: Dot) -> bool {
        self.0
            .get(&dot.writer)
            .is_some_and(|known| known.contains(dot.seq))
    }

    /// Adds one write.
    pub fn insert(&mut self, dot: Dot) {
        self.insert_range(dot.writer, dot.seq..=dot.seq);
    }

    /// Adds a range of one writer's writes, both ends inclusive; an empty range adds nothing.
    pub fn insert_range(&mut self, writer: WriterId, range: RangeInclusive<u64>) {
        if !range.is_empty() {
            self.0.entry(writer).or_default().insert(range);
        }
    }

    /// What is known of one writer.
    pub fn get(&self, writer: WriterId) -> Option<&Known> {
        self.0.get(&writer)
    }

    /// Replaces what is known of one writer.
    pub fn set(&mut self, writer: WriterId, known: Known) {
        if known.is_empty() {
            self.0.remove(&writer);
        } else {
            self.0.insert(writer, known);
        }
    }

    /// Everything known of each writer, in the order of writers.
    pub fn iter(&self) -> impl Iterator<Item = (WriterId, &Known)> + '_ {
        self.0.iter().map(|(&writer, known)| (writer, known))
    }

    /// Number of writers of which something is known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets everything that `other` knows.
    pub fn remove(&mut self, other: &Clock) {
        for (writer, gone) in other.iter() {
            let Some(known) = self.0.remove(&writer) else {
                continue;
            };
            for range in known.difference(gone) {
                self.insert_range(writer, range);
            }
        }
    }

    /// Adds everything that `other` knows.
    pub fn union(&mut self, other: &Clock) {
        for (writer, known) in other.iter() {
            self.0.entry(writer).or_default().union(known);
        }
    }

    /// Whether everything in `other` is known here.
    pub fn covers(&self, other: &Clock) -> bool {
        other
            .iter()
            .all(|(writer, known)| self.covers_writer(writer, known))
    }

    /// Whether everything in `known` of one writer is known here.
    pub fn covers_writer(&self, writer: WriterId, known: &Known) -> bool {
        self.0
            .get(&writer)
            .map_or(known.is_empty(), |mine| mine.covers(known))
    }

    /// The ranges known here and not in `other`, in the order of writers, then of numbers.
    pub fn difference(&self, other: &Clock) -> Vec<(WriterId, RangeInclusive<u64>)> {
        let nothing = Known::default();
        let mut missing = Vec::new();
        for (writer, known) in self.iter() {
            let theirs = other.get(writer).unwrap_or(&nothing);
            let ranges = known.difference(theirs).into_iter();
            missing.extend(ranges.map(|range| (writer, range)));
        }
        missing
    }

    /// Number of writes known here and not in `other`.
    pub fn count_missing_in(&self, other: &Clock) -> u64 {
        let ranges = self.difference(other).into_iter();
        ranges.fold(0, |sum, (_, range)| {
            sum.saturating_add(range.end() - range.start())
                .saturating_add(1)
        })
    }

    /// A fingerprint: equal exactly for clocks that know the same writes.
    pub fn digest(&self) -> u128 {
        let mut hash = Xxh3::new();
        for (writer, known) in self.iter() {
            hash.update(&writer.0.to_be_bytes());
            hash.update(&(known.ahead_len() as u64).to_be_bytes());
            hash.update(&known.base().to_be_bytes());
            for range in known.ahead() {
                hash.update(&range.start().to_be_bytes());
                hash.update(&range.end().to_be_bytes());
            }
        }
        hash.digest128()
    }

    /// The lower half of the fingerprint, for a hello: as long as those of the members and the epoch.
    pub fn short_digest(&self) -> u64 {
        self.digest() as u64
    }
}

impl FromIterator<Dot> for Clock {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut clock = Clock::default();
        dots.into_iter().for_each(|dot| clock.insert(dot));
        clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(ranges: &[RangeInclusive<u64>]) -> Known {
        let mut known = Known::default();
        ranges.iter().for_each(|range| known.insert(range.clone()));
        known
    }

    #[test]
    fn the_base_takes_in_the_ranges_it_reaches() {
        let known = known(&[3..=4, 6..=6, 1..=2]);

        assert_eq!(known.base(), 4);
        assert_eq!(known.ahead().collect::<Vec<_>>(), [6..=6]);
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let known = known(&[10..=12, 16..=20, 13..=15]);

        assert_eq!(known.ahead().collect::<Vec<_>>(), [10..=20]);
    }

    #[test]
    fn a_difference_names_exactly_the_gaps() {
        let mine = known(&[1..=10, 20..=30]);
        let theirs = known(&[1..=3, 5..=6, 9..=22, 29..=40]);

        assert_eq!(mine.difference(&theirs), [4..=4, 7..=8, 23..=28]);
    }

    #[test]
    fn an_empty_range_leaves_no_trace() {
        let mut clock = Clock::default();
        #[allow(clippy::reversed_empty_ranges)]
        clock.insert_range(WriterId(1), 1..=0);
        assert_eq!(clock, Clock::default());
    }

    #[test]
    fn a_stamp_is_later_than_what_it_replaces_even_when_the_clock_went_back() {
        let now = Now {
            wall_us: 1,
            steady_us: 0,
        };
        let replaced = Stamp::from_micros(9_000);

        assert!(Stamp::after(now, Some(replaced)) > replaced);
    }
}
