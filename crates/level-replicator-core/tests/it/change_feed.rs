//! The change feed says exactly what readers came to see, through restarts, copies and gaps.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Dot, Now, Stamp};
use level_replicator_core::record::{Key, Op, Record};
use level_replicator_core::state::{
    ChangeKind, Cursor, FeedChange, FeedError, Reach, State, Whose, feed_cursor, read_feed,
    read_record,
};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Storage as _, Table};

const KEYS: u8 = 12;
const REPLICAS: usize = 3;

struct Machine {
    disk: MemoryStorage,
    state: State,
    keep: u64,
    /// Where a program has read to, and where that was before, by the number of changes that follow.
    cursor: Cursor,
    earlier: Vec<(Cursor, usize)>,
    changes: Vec<FeedChange>,
    prunes: u64,
}

fn open(disk: &MemoryStorage, keep: u64, chance: &mut fastrand::Rng) -> State {
    let random = chance.u128(..).to_be_bytes();
    let mut state = State::open(Arc::new(disk.clone()), random).expect("memory opens");
    state
        .keep_changes(keep, chance.u64(..))
        .expect("memory takes all");
    state
}

impl Machine {
    fn new(keep: u64, chance: &mut fastrand::Rng) -> Machine {
        let disk = MemoryStorage::new();
        Machine {
            state: open(&disk, keep, chance),
            disk,
            keep,
            cursor: Cursor::START,
            earlier: vec![(Cursor::START, 0)],
            changes: Vec::new(),
            prunes: 0,
        }
    }

    /// The records, by their keys.
    fn records(&self) -> BTreeMap<Key, Record> {
        let snapshot = self.disk.snapshot();
        let rows = snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded);
        let record = |(key, row): (Bytes, Bytes)| {
            let record = read_record(Some(row), &key, self.state.writers()).expect("a record");
            (key, record)
        };
        rows.map(|row| record(row.expect("memory reads"))).collect()
    }

    fn read(&self, cursor: Cursor, limit: usize) -> Result<Vec<FeedChange>, FeedError> {
        read_feed(&*self.disk.snapshot(), self.state.writers(), cursor, limit)
    }

    /// Does something, and compares what the feed says of it with what became of the records.
    fn watch(&mut self, is_local: bool, expires: bool, action: impl FnOnce(&mut State)) {
        let before = self.records();
        action(&mut self.state);
        let after = self.records();
        let nothing = Record::default();
        let puts = |record: &Record| -> Vec<Dot> { record.puts().map(|put| put.dot).collect() };
        let mut expected = BTreeMap::new();
        for key in before.keys().chain(after.keys()) {
            let old = before.get(key).unwrap_or(&nothing);
            let new = after.get(key).unwrap_or(&nothing);
            if puts(old) != puts(new) {
                expected.insert(key.clone(), (old, new));
            }
        }

        // In pieces, as a program may.
        let mut news = Vec::new();
        while let piece = self.read(self.cursor, 2).expect("the reader is near")
            && !piece.is_empty()
        {
            self.cursor = piece.last().expect("a change").cursor;
            news.extend(piece);
        }
        assert_eq!(news.len(), expected.len(), "{news:?} of {expected:?}");
        for change in &news {
            let (old, new) = expected.remove(&change.key).expect("it changed, once");
            let kind = match (puts(new).is_empty(), expires) {
                (false, _) => ChangeKind::Put,
                (true, false) => ChangeKind::Delete,
                (true, true) => ChangeKind::Expired,
            };
            assert_eq!(change.kind, kind, "{change:?}");
            assert_eq!(change.is_concurrent, new.live.len() >= 2, "{change:?}");
            match change.dot {
                Some(dot) => {
                    assert!(new.holds(dot) && !old.holds(dot), "{change:?}");
                    assert_eq!(change.is_local, is_local, "{change:?}");
                    let descriptor = self.state.writers().get(dot.writer).expect("described");
                    assert_eq!(change.origin, Some(descriptor.replica));
                }
                None => assert!(new.live.iter().all(|version| old.holds(version.dot))),
            }
            assert_eq!(change.cursor.to_string().parse(), Ok(change.cursor));
        }
        self.changes.extend(news);
        self.earlier.push((self.cursor, self.changes.len()));
        assert_eq!(
            self.cursor,
            feed_cursor(&*self.disk.snapshot()).expect("a feed")
        );
    }

    /// Whoever reads on from anywhere sees exactly what followed, or is told that it fell behind.
    fn check_cursors(&mut self, is_lost: bool) {
        for (cursor, count) in self.earlier.clone() {
            let rest = &self.changes[count..];
            match self.read(cursor, usize::MAX) {
                Ok(read) if !is_lost => assert_eq!(read, rest, "from {cursor}"),
                Ok(read) => panic!("{read:?} from {cursor}"),
                Err(FeedError::FellBehind { oldest, .. }) => {
                    assert!(is_lost || rest.len() as u64 > self.keep, "from {cursor}");
                    let read = self.read(oldest, usize::MAX).expect("the oldest is kept");
                    if !is_lost {
                        assert_eq!(read, self.changes[self.changes.len() - read.len()..]);
                        assert!(read.len() as u64 >= self.keep);
                    }
                    self.prunes += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn now(chance: &mut fastrand::Rng) -> Now {
    let us = chance.u64(1_000..2_000_000);
    Now {
        wall_us: us,
        steady_us: us,
    }
}

fn play(seed: u64, keep: u64) -> u64 {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut machines: Vec<Machine> = (0..REPLICAS)
        .map(|_| Machine::new(keep, &mut chance))
        .collect();
    let key = |chance: &mut fastrand::Rng| Bytes::from(vec![b'k', chance.u8(..KEYS)]);
    for _ in 0..chance.usize(50..400) {
        let at = chance.usize(..REPLICAS);
        match chance.u8(..10) {
            0..5 => {
                let ops: Vec<Op> = (0..chance.usize(1..4))
                    .map(|_| match chance.u8(..5) {
                        0 => Op::Delete(key(&mut chance)),
                        1 => Op::PutUntil(
                            key(&mut chance),
                            Bytes::new(),
                            Stamp::from_micros(500_000),
                        ),
                        _ => Op::Put(key(&mut chance), Bytes::from(vec![chance.u8(..)])),
                    })
                    .collect();
                let (now, random) = (now(&mut chance), chance.u64(..));
                machines[at].watch(true, false, |state| {
                    state.write(now, &ops, random).expect("memory takes all");
                });
            }
            5 => {
                let (now, random) = (now(&mut chance), chance.u64(..));
                machines[at].watch(true, true, |state| {
                    let step = state.expire_step(now, Whose::Own, 0, random);
                    step.expect("memory takes all");
                });
            }
            6..9 => {
                let from = chance.usize(..REPLICAS);
                let records: Vec<_> = machines[from].records().into_iter().collect();
                let context = Clock::clone(machines[from].state.clock());
                let writers: Vec<_> = machines[from].state.writers().iter().copied().collect();
                let is_part = chance.bool();
                let records = match is_part {
                    false => records,
                    true => records.into_iter().filter(|_| chance.bool()).collect(),
                };
                machines[at].watch(false, false, |state| {
                    state.describe(&writers).expect("honest descriptors");
                    let reach = match is_part {
                        true => Reach::Part,
                        false => Reach::Snapshot {
                            unclaimed: &[],
                            floor: None,
                        },
                    };
                    state
                        .apply(records, &context, reach)
                        .expect("memory takes all");
                });
            }
            _ => {
                let machine = &mut machines[at];
                machine.state = open(&machine.disk, keep, &mut chance);
            }
        }
    }
    let mut prunes = 0;
    for machine in &mut machines {
        machine.check_cursors(false);
        prunes += machine.prunes;
    }
    prunes
}

#[test]
fn the_feed_is_what_readers_came_to_see_from_any_cursor() {
    for seed in 0..300 {
        assert_eq!(play(seed, 1_000_000), 0);
    }
}

#[test]
fn who_reads_too_late_is_told_and_skips_nothing() {
    let mut chance = fastrand::Rng::with_seed(7);
    let mut machine = Machine::new(100, &mut chance);
    for _ in 0..3_000 {
        let op = Op::Put(Bytes::from(vec![b'k', chance.u8(..KEYS)]), Bytes::new());
        machine.watch(true, false, |state| {
            state
                .write(Now::default(), &[op], 1)
                .expect("memory takes all");
        });
    }
    machine.check_cursors(false);
    assert!(machine.prunes > 1_000, "{}", machine.prunes);
}

#[test]
fn a_copy_goes_on_from_what_both_have_and_from_nothing_else() {
    let mut chance = fastrand::Rng::with_seed(8);
    let mut machine = Machine::new(1_000, &mut chance);
    let put = |machine: &mut Machine, number: u8| {
        let op = Op::Put(Bytes::from(vec![b'k', number]), Bytes::new());
        machine.watch(true, false, |state| {
            state
                .write(Now::default(), &[op], 1)
                .expect("memory takes all");
        });
    };
    (0..5).for_each(|number| put(&mut machine, number));
    let common = machine.cursor;
    let disk = machine.disk.fork();
    let mut copy = Machine {
        state: open(&disk, 1_000, &mut chance),
        disk,
        keep: 1_000,
        cursor: common,
        earlier: Vec::new(),
        changes: machine.changes.clone(),
        prunes: 0,
    };
    machine.state = open(&machine.disk, 1_000, &mut chance);
    (5..9).for_each(|number| put(&mut machine, number));
    (20..26).for_each(|number| put(&mut copy, number));

    assert_eq!(copy.read(common, 9).expect("common").len(), 6);
    assert_eq!(machine.read(common, 9).expect("common").len(), 4);
    for change in &machine.changes[5..] {
        let read = copy.read(change.cursor, 9);
        assert!(
            matches!(read, Err(FeedError::FellBehind { .. })),
            "{read:?}"
        );
    }
    for change in &copy.changes[5..] {
        let read = machine.read(change.cursor, 9);
        assert!(
            matches!(read, Err(FeedError::FellBehind { .. })),
            "{read:?}"
        );
    }
}

#[test]
fn what_was_written_while_no_changes_were_kept_is_not_skipped() {
    let mut chance = fastrand::Rng::with_seed(9);
    let mut machine = Machine::new(1_000, &mut chance);
    let put = |state: &mut State, number: u8| {
        let op = Op::Put(Bytes::from(vec![b'k', number]), Bytes::new());
        state
            .write(Now::default(), &[op], 1)
            .expect("memory takes all");
    };
    (0..5).for_each(|number| machine.watch(true, false, |state| put(state, number)));

    let id = [1; 16];
    let mut state = State::open(Arc::new(machine.disk.clone()), id).expect("memory opens");
    state.drop_changes().expect("memory takes all");
    put(&mut state, 77);
    let snapshot = machine.disk.snapshot();
    let mut rows = snapshot.range(Table::Feed, Bound::Unbounded, Bound::Unbounded);
    assert!(rows.next().is_none());
    let read = read_feed(&*snapshot, state.writers(), machine.cursor, 9);
    assert!(matches!(read, Err(FeedError::Off)), "{read:?}");
    drop(state);

    machine.state = open(&machine.disk, 1_000, &mut chance);
    machine.check_cursors(true);
    machine.cursor = feed_cursor(&*machine.disk.snapshot()).expect("a feed");
    (5..20).for_each(|number| machine.watch(true, false, |state| put(state, number)));
    // Even when the numbers of the new changes reach those of the old.
    machine.earlier.truncate(6);
    machine.check_cursors(true);
}

#[test]
fn texts_that_are_no_cursors_are_refused() {
    for text in [
        "",
        "-",
        "1",
        "-1",
        "1-",
        "x-0000000000000000",
        "1-000000000000000",
        "+1-0000000000000000",
        "1-00000000000000000",
        "18446744073709551616-0000000000000000",
        "1-000000000000000g",
        "0-",
        " 0",
        "$",
    ] {
        let parsed = text.parse::<Cursor>();
        assert!(parsed.is_err(), "'{text}' is {parsed:?}");
    }
    assert_eq!("0".parse(), Ok(Cursor::START));
}
