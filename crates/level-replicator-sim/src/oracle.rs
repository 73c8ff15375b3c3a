//! What really happened, kept apart from the code under test.
//!
//! Every write with all that its author had seen of the key. From that follows what a replica must
//! hold whatever order the news took. The oracle never asks a replica what supersedes what: a write
//! has seen exactly what was live on its author at that moment, and all that those had seen.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Dot, Known, Now, ReplicaId, Stamp, WriterId};
use level_replicator_core::log;
use level_replicator_core::record::{Content, Op, Record, Tally, Version};
use level_replicator_core::resolver::Resolver;
use level_replicator_core::state::{State, Written};
use level_replicator_core::storage::Table;

/// Something that must hold does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which invariant, by its name in docs/causality.md.
    pub invariant: &'static str,
    /// Where and how.
    pub how: String,
}

fn broken<T>(invariant: &'static str, how: String) -> Result<T, Broken> {
    Err(Broken { invariant, how })
}

/// Some of the writes of one key, by their numbers there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set(Vec<u64>);

impl Set {
    fn insert(&mut self, write: usize) {
        if self.0.len() <= write / 64 {
            self.0.resize(write / 64 + 1, 0);
        }
        self.0[write / 64] |= 1 << (write % 64);
    }

    fn contains(&self, write: usize) -> bool {
        self.word(write / 64) & (1 << (write % 64)) != 0
    }

    fn word(&self, place: usize) -> u64 {
        self.0.get(place).copied().unwrap_or(0)
    }

    fn add(&mut self, other: &Set) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine |= theirs;
        }
    }

    fn remove(&mut self, other: &Set) {
        for (place, mine) in self.0.iter_mut().enumerate() {
            *mine &= !other.word(place);
        }
    }

    fn is_within(&self, other: &Set) -> bool {
        let mut words = self.0.iter().enumerate();
        words.all(|(place, mine)| mine & !other.word(place) == 0)
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let words = self.0.iter().enumerate();
        words.flat_map(|(place, word)| {
            let bits = (0..64).filter(move |bit| word & (1 << bit) != 0);
            bits.map(move |bit| place * 64 + bit)
        })
    }
}

struct Write {
    dot: Dot,
    content: Content,
    stamp: Stamp,
    /// All that it had seen of its key, without itself.
    past: Set,
}

#[derive(Default)]
struct KeyHistory {
    writes: Vec<Write>,
}

impl KeyHistory {
    fn number(&self, dot: Dot) -> Option<usize> {
        self.writes.iter().position(|write| write.dot == dot)
    }

    /// The writes of a set that no other one in it had seen.
    fn greatest(&self, known: &Set) -> Set {
        let mut greatest = known.clone();
        for write in known.iter() {
            greatest.remove(&self.writes[write].past);
        }
        greatest
    }

    /// What must be live where this is known.
    fn live(&self, known: &Set) -> Vec<Dot> {
        let greatest = self.greatest(known);
        let mut dots: Vec<Dot> = greatest
            .iter()
            .map(|write| self.writes[write].dot)
            .collect();
        dots.sort();
        dots
    }

    /// The values that must be live where this is known.
    fn live_puts(&self, known: &Set) -> Vec<Dot> {
        let greatest = self.greatest(known);
        let puts = greatest.iter().map(|write| &self.writes[write]);
        let mut dots: Vec<Dot> = puts
            .filter(|write| write.content.value().is_some())
            .map(|write| write.dot)
            .collect();
        dots.sort();
        dots
    }

    /// What a reader must see where this is known: the put with the greatest stamp, then dot, of those
    /// that have not expired.
    fn winner(&self, known: &Set, now: Stamp) -> Option<&Bytes> {
        let greatest = self.greatest(known);
        let puts = greatest.iter().map(|write| &self.writes[write]);
        let puts = puts.filter(|write| write.content.value().is_some());
        let puts = puts.filter(|write| write.content.until().is_none_or(|until| until > now));
        let winner = puts.max_by_key(|write| (write.stamp, write.dot))?;
        winner.content.value()
    }
}

/// What readers of a replica can see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// The live puts of each key that has any.
    puts: BTreeMap<Bytes, Vec<Dot>>,
    /// Keys whose records are damaged.
    unreadable: BTreeSet<Bytes>,
}

impl Shown {
    /// Checks that events told of every change since `before`, and of every new conflict.
    pub fn check_told(
        &self,
        before: &Shown,
        changed: &BTreeSet<Bytes>,
        in_conflict: &BTreeSet<Bytes>,
    ) -> Result<(), Broken> {
        for key in self.puts.keys().chain(before.puts.keys()) {
            if self.unreadable.contains(key) || before.unreadable.contains(key) {
                continue;
            }
            let (now, then) = (self.puts.get(key), before.puts.get(key));
            if now != then && !changed.contains(key) {
                return broken("E1", format!("{key:?} changed and no event told of it"));
            }
            let count = |puts: Option<&Vec<Dot>>| puts.map_or(0, Vec::len);
            if count(now) >= 2 && count(then) < 2 && !in_conflict.contains(key) {
                let how = format!("{key:?} is in conflict and no event told of it");
                return broken("E1", how);
            }
        }
        Ok(())
    }
}

/// What a replica was about to overwrite, taken before a write.
pub struct Seen {
    past: BTreeMap<Bytes, Set>,
    /// The latest stamp of what is live. What was reclaimed has none any more: nothing concurrent with
    /// it can come.
    latest: BTreeMap<Bytes, Stamp>,
    /// Keys whose records could not be read: a write replaces all that is known of them.
    unreadable: BTreeSet<Bytes>,
    /// Keys without a value.
    empty: BTreeSet<Bytes>,
    /// Keys of which half of a heal has taken every value, though the other half is yet to show why.
    taken: BTreeSet<Bytes>,
}

/// All writes of all replicas, also of those that are lost.
#[derive(Default)]
pub struct Oracle {
    keys: BTreeMap<Bytes, KeyHistory>,
    /// Which process a writer belongs to, and how far it got.
    writers: BTreeMap<WriterId, (u64, u64)>,
    batches: Vec<Batch>,
    /// Writes that have the stamp of an earlier one of their key.
    equal_stamps: u64,
    /// A replica has promoted itself: from then on a value that was replaced may appear again beside
    /// what replaced it, and only that nothing is lost can be asked for.
    is_lenient: bool,
    /// Keys whose record was overwritten while it could not be read. What it had seen beyond the clock
    /// is lost, so a value that was replaced may appear again there too.
    overwritten: BTreeSet<Bytes>,
    /// All floors that were ever seen, together.
    floors: Clock,
}

struct Batch {
    writes: Vec<(Bytes, usize)>,
    /// Nobody can tell any more that half of it is missing.
    is_excused: bool,
}

impl Oracle {
    /// Number of writes so far.
    pub fn writes(&self) -> usize {
        self.keys.values().map(|key| key.writes.len()).sum()
    }

    /// Number of writes with the stamp of an earlier write of their key.
    pub fn equal_stamps(&self) -> u64 {
        self.equal_stamps
    }

    /// What the operations are about to see on a replica.
    pub fn look(&self, state: &State, ops: &[Op]) -> Result<Seen, Broken> {
        let (mut pasts, mut unreadable) = (BTreeMap::new(), BTreeSet::new());
        let mut latest = BTreeMap::new();
        let (mut empty, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for op in ops {
            let mut past = Set::default();
            let record = state.record(op.key());
            if record.is_err() {
                unreadable.insert(op.key().clone());
            }
            let holds_nothing = record.as_ref().is_ok_and(|it| it.puts().next().is_none());
            if holds_nothing {
                empty.insert(op.key().clone());
            }
            if !state.wanted().is_empty() && holds_nothing {
                taken.insert(op.key().clone());
            }
            if let Some(stamp) = record.as_ref().ok().and_then(Record::last_stamp) {
                latest.insert(op.key().clone(), stamp);
            }
            if let Some(history) = self.keys.get(op.key()) {
                let live = match &record {
                    Ok(record) => record.live.iter().map(|version| version.dot).collect(),
                    Err(_) => {
                        let dots = history.writes.iter().map(|write| write.dot);
                        dots.filter(|dot| state.clock().contains(*dot))
                            .collect::<Vec<_>>()
                    }
                };
                // What was reclaimed has been seen too.
                let dots = history.writes.iter().map(|write| write.dot);
                let below = dots.filter(|dot| state.floor().contains(*dot));
                for dot in below.chain(live) {
                    let Some(number) = history.number(dot) else {
                        return broken("I6", format!("{dot} was never written"));
                    };
                    past.insert(number);
                    past.add(&history.writes[number].past);
                }
            }
            pasts.insert(op.key().clone(), past);
        }
        Ok(Seen {
            past: pasts,
            latest,
            unreadable,
            empty,
            taken,
        })
    }

    /// Whether exactly what is known and not replaced must be live under a key.
    fn is_exact(&self, key: &Bytes) -> bool {
        !self.is_lenient && !self.overwritten.contains(key)
    }

    /// What a replica holds, and what its sums say of it, for a person.
    pub fn describe(&self, state: &State) -> String {
        let mut sum = Tally::default();
        let mut told = String::new();
        for key in self.keys.keys() {
            match state.record(key) {
                Ok(record) => {
                    let dots: Vec<String> = record.puts().map(|put| put.dot.to_string()).collect();
                    told.push_str(&format!("{}={} ", key.escape_ascii(), dots.join("|")));
                    sum.add(record.tally(key));
                }
                Err(_) => told.push_str(&format!("{} unreadable ", key.escape_ascii())),
            }
        }
        let known = state.tally().map(|tally| (tally.digest, tally.keys));
        format!(
            "{told}sums {known:x?}, in truth {:x?}",
            (sum.digest, sum.keys)
        )
    }

    /// Whether a replica has had to go on with what it had.
    pub fn is_lenient(&self) -> bool {
        self.is_lenient
    }

    /// A replica goes on with what it has: from now on old values may appear again.
    pub fn be_lenient(&mut self) {
        self.is_lenient = true;
        for batch in &mut self.batches {
            batch.is_excused = true;
        }
    }

    /// Checks I5, and that a floor grows only by others' floors or by a cut that everybody whom the
    /// replica waits for has agreed to.
    pub fn check_floor(&mut self, state: &State) -> Result<(), Broken> {
        let floor = state.floor();
        if !state.clock().covers(floor) {
            return broken("I5", "the floor holds what is not known".to_owned());
        }
        if state.writers().closed_part(floor) != **floor {
            return broken(
                "I5",
                "the floor holds a child without its parent".to_owned(),
            );
        }
        if self.floors.covers(floor) {
            return Ok(());
        }
        let mut allowed = self.floors.clone();
        allowed.union(&state.epoch().cut);
        let waits_for: Vec<_> = state.missing_acks().collect();
        if !waits_for.is_empty() || !allowed.covers(floor) {
            let how = format!("a cut is complete without {waits_for:?}");
            return broken("E2 epoch", how);
        }
        self.floors.union(floor);
        Ok(())
    }

    /// Enters a write that was made by a process, and checks its names and stamps: I6 and I8.
    ///
    /// `written` is what the replica answered; `None` if it died before it could.
    pub fn enter(
        &mut self,
        life: u64,
        wall_us: u64,
        seen: &Seen,
        ops: &[Op],
        written: Option<&Written>,
        state: &State,
    ) -> Result<(), Broken> {
        let counting = self.counting(seen, ops);
        self.overwritten.extend(seen.unreadable.iter().cloned());
        let mut entered: Vec<(Bytes, Write)> = Vec::new();
        for op in &counting {
            if written.is_none() && state.record(op.key()).is_err() {
                // What could not be read has not been replaced: the process died before the commit.
                return Ok(());
            }
            let record = read(state, op.key())?;
            let history = self.keys.get(op.key());
            let is_new = |dot: Dot| history.is_none_or(|history| history.number(dot).is_none());
            if written.is_none()
                && entered.is_empty()
                && !record.live.iter().any(|version| is_new(version.dot))
            {
                // The process died before the commit.
                return Ok(());
            }
            let [version] = &record.live[..] else {
                let how = format!("after a write {record:?} is left of {:?}", op.key());
                return broken("I1", how);
            };
            if !is_new(version.dot) {
                return broken("I6", format!("{} is used again", version.dot));
            }
            let past = seen.past.get(op.key()).cloned().unwrap_or_default();
            let latest = seen.latest.get(op.key()).copied();
            check_stamp(version.stamp, latest, wall_us, version.dot)?;
            let content = match op {
                Op::Put(_, value) => Content::Put(value.clone()),
                Op::PutUntil(_, value, until) => Content::PutUntil(value.clone(), *until),
                Op::Delete(_) => Content::Delete,
            };
            if version.content != content {
                return broken("I1", format!("{} is not what was written", version.dot));
            }
            let write = Write {
                dot: version.dot,
                content,
                stamp: version.stamp,
                past,
            };
            entered.push((op.key().clone(), write));
        }
        self.check_names(life, &entered, written)?;

        let mut batch = Batch {
            writes: Vec::new(),
            is_excused: false,
        };
        for (key, write) in entered {
            let history = self.keys.entry(key.clone()).or_default();
            let same = |before: &Write| before.stamp == write.stamp;
            self.equal_stamps += u64::from(history.writes.iter().any(same));
            batch.writes.push((key, history.writes.len()));
            history.writes.push(write);
        }
        if batch.writes.len() > 1 {
            self.batches.push(batch);
        }
        Ok(())
    }

    /// Enters the deletes that a replica has made of expired values. By the rule, and not by its word,
    /// each has seen what its replica knew of the key that had expired by its clock and was its own to
    /// delete: what it wrote, or `grace_us` later what somebody wrote who is gone. Answers how many of
    /// either kind there were.
    pub fn enter_expired(
        &mut self,
        life: u64,
        now: Now,
        grace_us: u64,
        state: &State,
    ) -> Result<(u64, u64), Broken> {
        let owner = |writer: WriterId| {
            let descriptor = state.writers().get(writer);
            descriptor.map(|descriptor| descriptor.replica)
        };
        let is_first = is_first_member(state);
        let mut found: Vec<(Bytes, Version)> = Vec::new();
        for (key, history) in &self.keys {
            let Ok(record) = state.record(key) else {
                continue;
            };
            let is_found = |version: &&Version| {
                history.number(version.dot).is_none()
                    && owner(version.dot.writer) == Some(state.replica())
            };
            let versions = record.live.iter().filter(is_found);
            found.extend(versions.map(|version| (key.clone(), version.clone())));
        }
        found.sort_by_key(|(_, version)| version.dot);

        let mut counts = (0, 0);
        for (key, version) in found {
            let Some(history) = self.keys.get(&key) else {
                continue;
            };
            let (mut past, mut known) = (Set::default(), Set::default());
            let (mut last, mut is_own) = (Stamp::default(), false);
            for (number, write) in history.writes.iter().enumerate() {
                if state.clock().contains(write.dot) {
                    known.insert(number);
                }
            }
            let live = history.greatest(&known);
            for number in live.iter() {
                let write = &history.writes[number];
                let Some((until, owner)) = write.content.until().zip(owner(write.dot.writer))
                else {
                    continue;
                };
                let is_mine = owner == state.replica();
                let late_us = if is_mine { 0 } else { grace_us };
                let has_passed = until.as_micros().saturating_add(late_us) <= now.wall_us;
                if has_passed && (is_mine || is_gone(state, owner) && is_first) {
                    is_own |= is_mine;
                    last = last.max(write.stamp);
                    past.insert(number);
                    past.add(&write.past);
                }
            }
            if last == Stamp::default() {
                let how = format!(
                    "{} deletes {key:?}, of which nothing has expired",
                    version.dot
                );
                return broken("X2", how);
            }
            if version.stamp <= last {
                let how = format!("the stamp of {} is not after what expired", version.dot);
                return broken("I8", how);
            }
            if version.value().is_some() {
                // Another value of its own stands there again in the delete's place.
                let same = |write: &usize| history.writes[*write].content == version.content;
                let again = live.iter().find(same);
                let Some(again) = again else {
                    let how = format!("{} of {key:?} was written by nobody", version.dot);
                    return broken("X2", how);
                };
                past.insert(again);
                past.add(&history.writes[again].past);
            }
            if is_own {
                counts.0 += 1;
            } else {
                counts.1 += 1;
            }
            let write = Write {
                dot: version.dot,
                content: version.content,
                stamp: version.stamp,
                past,
            };
            let before = self.writers.get(&version.dot.writer);
            let life = before.map_or(life, |(life, _)| *life);
            let entered = [(key.clone(), write)];
            self.check_names(life, &entered, None)?;
            let [(_, write)] = entered;
            if let Some(history) = self.keys.get_mut(&key) {
                history.writes.push(write);
            }
        }
        Ok(counts)
    }

    /// The operations that write something: the last on each key, and no delete of nothing.
    fn counting<'a>(&self, seen: &Seen, ops: &'a [Op]) -> Vec<&'a Op> {
        let is_last = |index: usize| {
            ops[index + 1..]
                .iter()
                .all(|later| later.key() != ops[index].key())
        };
        let deletes_nothing = |op: &Op| {
            let past = seen.past.get(op.key()).cloned().unwrap_or_default();
            if matches!(op, Op::Delete(_)) && !self.is_exact(op.key()) {
                // A value may have appeared again beside the delete that had replaced it.
                return seen.empty.contains(op.key());
            }
            matches!(op, Op::Delete(_))
                && !seen.unreadable.contains(op.key())
                && (seen.taken.contains(op.key())
                    || (self.keys.get(op.key()))
                        .is_none_or(|history| history.live_puts(&past).is_empty()))
        };
        let last = ops.iter().enumerate().filter(|(index, _)| is_last(*index));
        last.map(|(_, op)| op)
            .filter(|op| !deletes_nothing(op))
            .collect()
    }

    fn check_names(
        &mut self,
        life: u64,
        entered: &[(Bytes, Write)],
        written: Option<&Written>,
    ) -> Result<(), Broken> {
        let dots: Vec<Dot> = entered.iter().map(|(_, write)| write.dot).collect();
        if let Some(written) = written {
            let told = (written.first, written.last);
            if told != (dots.first().copied(), dots.last().copied()) {
                return broken("I6", format!("a write of {dots:?} was told as {told:?}"));
            }
        }
        for dot in dots {
            let writer = self.writers.entry(dot.writer).or_insert((life, 0));
            if writer.0 != life {
                return broken("I6", format!("writer {} is used again", dot.writer));
            }
            if dot.seq != writer.1 + 1 {
                return broken("I6", format!("{dot} comes after number {}", writer.1));
            }
            writer.1 = dot.seq;
        }
        Ok(())
    }

    /// Checks all that a replica must hold by what it knows: I1 to I4, I6 and I10, and what readers see.
    ///
    /// What `is_damaged` says cannot be read is passed over; if it can be read it must be right.
    pub fn check(
        &self,
        state: &State,
        now: Now,
        is_damaged: impl Fn(&[u8]) -> bool,
    ) -> Result<Shown, Broken> {
        let now = Stamp::from_micros(now.wall_us);
        let mut shown = Shown::default();
        let mut live_dots = BTreeMap::new();
        let mut sum = Tally::default();
        for (key, history) in &self.keys {
            if state.record(key).is_err() && is_damaged(key) {
                shown.unreadable.insert(key.clone());
                continue;
            }
            let record = read(state, key)?;
            let known = self.known(state, key, history, &record)?;
            self.check_key(state, now, (key, history), &record, &known)?;
            for version in &record.live {
                live_dots.insert(version.dot, key);
            }
            if !record.is_empty() {
                sum.add(record.tally(key));
            }
            check_found_again(state, key, &record)?;
            let puts: Vec<Dot> = record.puts().map(|put| put.dot).collect();
            if !puts.is_empty() {
                shown.puts.insert(key.clone(), puts);
            }
        }
        sum.log = check_log(state, &live_dots, &shown.unreadable)?;
        check_own_writer(state)?;
        if let Some(tally) = state.tally()
            && tally != sum
            && shown.unreadable.is_empty()
        {
            return broken("C1", format!("the sums say {tally:?}, the records {sum:?}"));
        }
        Ok(shown)
    }

    fn check_key(
        &self,
        state: &State,
        now: Stamp,
        (key, history): (&Bytes, &KeyHistory),
        record: &Record,
        known: &Set,
    ) -> Result<(), Broken> {
        // Who is healed half-way, or was never healed to the end, may know a write without its past.
        let is_exact = state.wanted().is_empty() && self.is_exact(key);
        for write in known.iter().filter(|_| is_exact) {
            let write = &history.writes[write];
            if !write.past.is_within(known) {
                let how = format!("{} of {key:?} is known without its past", write.dot);
                return broken("I2", how);
            }
        }
        let live: Vec<Dot> = record.puts().map(|version| version.dot).collect();
        let must = history.live_puts(known);
        // Half of a heal may have removed what only the other half shows to be dead.
        let is_half_healed = !state.wanted().is_empty();
        let is_right = if is_exact {
            live == must
        } else {
            is_half_healed || must.iter().all(|dot| live.contains(dot))
        };
        let deletes = record
            .live
            .iter()
            .filter(|version| version.value().is_none());
        let greatest = history.live(known);
        let stale_delete = deletes
            .map(|version| version.dot)
            // One below somebody's floor is about to be reclaimed, and says nothing any more, whatever
            // came after it.
            .find(|dot| !greatest.contains(dot) && !self.floors.contains(*dot));
        if is_exact && let Some(dot) = stale_delete {
            return broken(
                "I1",
                format!("{key:?} holds the delete {dot}, which was replaced"),
            );
        }
        if !is_right {
            return broken(
                "I1",
                format!("{key:?} holds {live:?} and must hold {must:?}"),
            );
        }
        for version in &record.live {
            if !state.clock().contains(version.dot) {
                return broken(
                    "I3",
                    format!("{} of {key:?} is live and unknown", version.dot),
                );
            }
            let write = history
                .number(version.dot)
                .map(|number| &history.writes[number]);
            let same = write.is_some_and(|write| {
                write.content == version.content && write.stamp == version.stamp
            });
            if !same {
                return broken(
                    "I1",
                    format!("{} of {key:?} was written otherwise", version.dot),
                );
            }
        }
        let shown = Resolver::last_write_wins().resolve(key, record, state.writers(), now);
        let shown = shown.map(|(value, _)| value);
        let winner = history.winner(known, now);
        if is_exact && shown.as_ref() != winner {
            return broken(
                "I1",
                format!("readers see {shown:?} of {key:?}, not {winner:?}"),
            );
        }
        Ok(())
    }

    /// The writes of a key that a replica knows by its clock or by the key's own history. Checks I10
    /// on the way: what is not below the floor the history alone must cover.
    fn known(
        &self,
        state: &State,
        key: &Bytes,
        history: &KeyHistory,
        record: &Record,
    ) -> Result<Set, Broken> {
        let reach = reach(state, record)?;
        let mut known = Set::default();
        for (number, write) in history.writes.iter().enumerate() {
            let covered = reach
                .get(&write.dot.writer)
                .is_some_and(|seq| *seq >= write.dot.seq);
            let in_clock = state.clock().contains(write.dot);
            let is_asked = state.wanted().is_empty() && self.is_exact(key);
            if is_asked && in_clock && !covered && !state.floor().contains(write.dot) {
                let how = format!("{} of {key:?} is known and not in its history", write.dot);
                return broken("I10", how);
            }
            if in_clock || covered {
                known.insert(number);
            }
        }
        Ok(known)
    }

    /// Checks C6: a replica that is caught up shows all or nothing of what is left of each batch.
    pub fn check_batches(&self, state: &State, shown: &Shown) -> Result<(), Broken> {
        if state.is_catching_up() || !state.wanted().is_empty() || self.is_lenient {
            return Ok(());
        }
        let mut known: BTreeMap<&Bytes, (Set, Set)> = BTreeMap::new();
        let readable = |batch: &&Batch| {
            let mut keys = batch.writes.iter().map(|(key, _)| key);
            !batch.is_excused
                && keys.all(|key| !shown.unreadable.contains(key) && self.is_exact(key))
        };
        for batch in self.batches.iter().filter(readable) {
            let (mut here, mut missing) = (Vec::new(), Vec::new());
            for (key, write) in &batch.writes {
                let Some(history) = self.keys.get(key) else {
                    continue;
                };
                if !known.contains_key(key) {
                    let record = read(state, key)?;
                    let set = self.known(state, key, history, &record)?;
                    let mut replaced = Set::default();
                    for write in set.iter() {
                        replaced.add(&history.writes[write].past);
                    }
                    known.insert(key, (set, replaced));
                }
                let Some((set, replaced)) = known.get(key) else {
                    continue;
                };
                if replaced.contains(*write) {
                    continue;
                }
                let dot = history.writes[*write].dot;
                if set.contains(*write) {
                    here.push(dot);
                } else {
                    missing.push(dot);
                }
            }
            if !here.is_empty() && !missing.is_empty() {
                let how = format!("of one batch readers see {here:?} and not {missing:?}");
                return broken("C6", how);
            }
        }
        Ok(())
    }

    /// A replica has waited in vain for the rest of some batches: of those anybody may show half from
    /// now on.
    pub fn excuse_batches(&mut self, state: &State) {
        for batch in &mut self.batches {
            let knows = |(key, write): &(Bytes, usize)| {
                let write = self.keys.get(key).map(|history| &history.writes[*write]);
                write.is_some_and(|write| state.clock().contains(write.dot))
            };
            let known = batch.writes.iter().filter(|write| knows(write)).count();
            batch.is_excused |= known > 0 && known < batch.writes.len();
        }
    }

    /// The writes that at least one of these replicas knows.
    pub fn known_to_any<'a>(&self, states: impl IntoIterator<Item = &'a State>) -> Clock {
        let mut clock = Clock::default();
        for state in states {
            for history in self.keys.values() {
                let dots = history.writes.iter().map(|write| write.dot);
                for dot in dots.filter(|dot| state.clock().contains(*dot)) {
                    clock.insert(dot);
                }
            }
        }
        clock
    }

    /// Checks C2 and C3: what is known somewhere, and replaced by nothing that is, is live here, and
    /// nothing else is.
    pub fn check_nothing_is_lost(&self, state: &State, known: &Clock) -> Result<(), Broken> {
        for (key, history) in &self.keys {
            let mut set = Set::default();
            let numbered = history.writes.iter().enumerate();
            for (number, write) in numbered.filter(|(_, write)| known.contains(write.dot)) {
                set.insert(number);
                // Who knows a write knows what it had seen.
                set.add(&write.past);
            }
            let must = history.live_puts(&set);
            let record = read(state, key)?;
            let live: Vec<Dot> = record.puts().map(|version| version.dot).collect();
            let is_lost = |dot: &Dot| !live.contains(dot);
            if !self.is_exact(key) && !must.iter().any(is_lost) {
                continue;
            }
            if live != must {
                return broken(
                    "C2",
                    format!("{key:?} holds {live:?} and must hold {must:?}"),
                );
            }
        }
        Ok(())
    }
}

/// Checks I8: a write is later than what it replaces, and else what the clock says.
fn check_stamp(
    stamp: Stamp,
    replaced: Option<Stamp>,
    wall_us: u64,
    dot: Dot,
) -> Result<(), Broken> {
    if replaced.is_some_and(|replaced| replaced >= stamp) {
        let how = format!("the stamp of {dot} is not after that of a write it replaces");
        return broken("I8", how);
    }
    let least = replaced.map_or(0, |replaced| replaced.as_micros() + 1);
    if stamp != Stamp::from_micros(wall_us.max(least)) {
        let how = format!("the stamp of {dot} is neither clock nor successor");
        return broken("I8", how);
    }
    Ok(())
}

fn read(state: &State, key: &[u8]) -> Result<Record, Broken> {
    state
        .record(key)
        .or_else(|error| broken("D", error.to_string()))
}

/// How far a key's history reaches for each writer, with what the writers' parents imply.
fn reach(state: &State, record: &Record) -> Result<BTreeMap<WriterId, u64>, Broken> {
    let mut reach: BTreeMap<WriterId, u64> = BTreeMap::new();
    let live = record.live.iter().map(|version| version.dot);
    for dot in record.seen.iter().chain(live) {
        let mut next = Some(dot);
        while let Some(dot) = next {
            let seq = reach.entry(dot.writer).or_default();
            *seq = (*seq).max(dot.seq);
            let Some(descriptor) = state.writers().get(dot.writer) else {
                return broken("I2", format!("writer {} is not described", dot.writer));
            };
            next = descriptor.parent;
        }
    }
    Ok(reach)
}

/// Checks I4: the log names exactly the live writes above the floor, each under its key. Entries that
/// the floor made superfluous may be left until they are reclaimed. Answers how many entries there are.
fn check_log(
    state: &State,
    live: &BTreeMap<Dot, &Bytes>,
    unreadable: &BTreeSet<Bytes>,
) -> Result<u64, Broken> {
    let snapshot = state.storage().snapshot();
    let (mut entries, mut rows) = (0, 0);
    let is_below = |dot: &Dot| state.floor().contains(*dot) || state.wanted().contains(*dot);
    for entry in snapshot.range(Table::Log, Bound::Unbounded, Bound::Unbounded) {
        let (row, value) = entry.or_else(|error| broken("I4", error.to_string()))?;
        let key = log::key_of(&row, &value).or_else(|error| broken("I4", error.to_string()))?;
        rows += 1;
        if unreadable.contains(&key) {
            continue;
        }
        let ord = row.first_chunk().map(|ord| u32::from_be_bytes(*ord));
        let writer = ord.and_then(|ord| state.writers().by_ord(ord));
        let dot = writer.zip(log::seq_of(&row)).map(|(writer, seq)| Dot {
            writer: writer.writer,
            seq,
        });
        if dot.as_ref().is_some_and(is_below) {
            if !state.is_reclaiming() && state.wanted().is_empty() {
                return broken(
                    "I4",
                    format!("the log names {dot:?}, which is below the floor"),
                );
            }
            continue;
        }
        if dot.and_then(|dot| live.get(&dot)) != Some(&&key) {
            return broken(
                "I4",
                format!("the log names {dot:?} under {key:?}, which is not live"),
            );
        }
        entries += 1;
    }
    let above = live.keys().filter(|dot| !is_below(dot)).count();
    if entries != above {
        let how = format!("the log has {entries} entries for {above} live writes above the floor");
        return broken("I4", how);
    }
    Ok(rows)
}

/// Checks that a record which a floor may make smaller will be looked at again: a log entry leads to
/// it, or it waits.
fn check_found_again(state: &State, key: &Bytes, record: &Record) -> Result<(), Broken> {
    let is_below = |dot: Dot| state.floor().contains(dot) || state.wanted().contains(dot);
    let has_entry = record.live.iter().any(|version| !is_below(version.dot));
    let will_be = state.is_reclaiming() || !state.wanted().is_empty() || has_entry;
    if !record.is_strippable() || record.is_ghost() || will_be {
        return Ok(());
    }
    match state.storage().snapshot().get(Table::Waiting, key) {
        Ok(Some(_)) => Ok(()),
        _ => broken(
            "C4",
            format!("nothing leads to {key:?}, which waits to be reclaimed"),
        ),
    }
}

/// Checks C4 at rest: nothing of what everybody knows is left of deletes, histories and the log. What
/// stands above a gap that nobody can fill stays.
pub fn check_reclaimed(state: &State) -> Result<(), Broken> {
    let cut = state.writers().closed_part(state.clock());
    let snapshot = state.storage().snapshot();
    for entry in snapshot.range(Table::Log, Bound::Unbounded, Bound::Unbounded) {
        let (row, _) = entry.or_else(|error| broken("C4", error.to_string()))?;
        let ord = row.first_chunk().map(|ord| u32::from_be_bytes(*ord));
        let writer = ord.and_then(|ord| state.writers().by_ord(ord));
        let dot = writer.zip(log::seq_of(&row)).map(|(writer, seq)| Dot {
            writer: writer.writer,
            seq,
        });
        if dot.is_some_and(|dot| cut.contains(dot)) {
            return broken("C4", format!("the log still names {dot:?}"));
        }
    }
    for entry in snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded) {
        let (key, _) = entry.or_else(|error| broken("C4", error.to_string()))?;
        let record = read(state, &key)?;
        if record.stripped(&cut).is_some() {
            return broken("C4", format!("{key:?} still holds {record:?}"));
        }
    }
    Ok(())
}

/// Checks X1 at rest: no value of this replica is left that expired two seconds ago and more by its own
/// clock, nor, if it is the first member, one that somebody has left who is gone, `grace_us` later.
pub fn check_expired(state: &State, now: Now, grace_us: u64) -> Result<(), Broken> {
    let ago = |us: u64| Stamp::from_micros(now.wall_us.saturating_sub(us));
    let (long_ago, longer_ago) = (ago(2_000_000), ago(2_000_000 + grace_us));
    let is_first = is_first_member(state);
    let snapshot = state.storage().snapshot();
    for entry in snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded) {
        let (key, _) = entry.or_else(|error| broken("X1", error.to_string()))?;
        let record = read(state, &key)?;
        let is_late = |version: &&Version| {
            let descriptor = state.writers().get(version.dot.writer);
            descriptor.is_some_and(|descriptor| {
                let owner = descriptor.replica;
                let own = owner == state.replica() && version.content.is_expired(long_ago);
                let orphaned = is_gone(state, owner) && version.content.is_expired(longer_ago);
                own || orphaned && is_first
            })
        };
        if let Some(left) = record.live.iter().find(is_late) {
            let how = format!("{key:?} still holds {}, which has expired", left.dot);
            return broken("X1", how);
        }
    }
    Ok(())
}

fn is_gone(state: &State, replica: ReplicaId) -> bool {
    state.members().is_retired(replica) || state.life(replica).excluded
}

/// Whether nobody who takes part has a lesser name.
fn is_first_member(state: &State) -> bool {
    let takes_part = |other: &ReplicaId| *other == state.replica() || !state.life(*other).excluded;
    state.members().active().filter(takes_part).min() == Some(state.replica())
}

/// Checks the second half of I6: no write of the own process is missing.
fn check_own_writer(state: &State) -> Result<(), Broken> {
    let known = state
        .current_writer()
        .and_then(|writer| state.clock().get(writer));
    if known.is_some_and(|known| known.ahead_len() > 0) {
        return broken("I6", "the own writer has holes".to_owned());
    }
    Ok(())
}

/// Checks I7: a clock never loses anything.
pub fn check_grown(before: &Clock, after: &Clock) -> Result<(), Broken> {
    if after.covers(before) {
        return Ok(());
    }
    let base = |clock: &Clock, writer| clock.get(writer).map_or(0, Known::base);
    let shrunk = before
        .iter()
        .find(|(writer, known)| !after.covers_writer(*writer, known));
    let how = shrunk.map(|(writer, known)| {
        format!(
            "writer {writer} was known up to {}, now up to {}",
            known.base(),
            base(after, writer)
        )
    });
    broken("I7", how.unwrap_or_default())
}
