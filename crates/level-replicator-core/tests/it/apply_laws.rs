//! Joining is idempotent, commutative and associative over everything that honest replicas can come
//! to hold, and the order, repetition and cutting of what arrives change nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Dot, Now};
use level_replicator_core::record::{Key, Op, Record, Side};
use level_replicator_core::state::{Reach, State};
use level_replicator_core::storage::Table;
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::writers::Writers;
use proptest::prelude::*;

const REPLICAS: usize = 4;

/// One thing that happens to a replica.
#[derive(Debug, Clone)]
enum Happening {
    Put {
        at: usize,
        key: u8,
    },
    Delete {
        at: usize,
        key: u8,
    },
    /// The process ends and begins again: its next writer is a child of the last.
    Restart {
        at: usize,
    },
    /// Everything of one replica comes to another, with the claim.
    Pull {
        at: usize,
        from: usize,
    },
    /// Some keys of one replica come to another, and then the link breaks.
    PullSome {
        at: usize,
        from: usize,
        keys: u8,
    },
}

fn happening() -> impl Strategy<Value = Happening> {
    let (at, key) = (0..REPLICAS, 0..4u8);
    prop_oneof![
        4 => (at.clone(), key.clone()).prop_map(|(at, key)| Happening::Put { at, key }),
        1 => (at.clone(), key).prop_map(|(at, key)| Happening::Delete { at, key }),
        1 => at.clone().prop_map(|at| Happening::Restart { at }),
        2 => (at.clone(), at.clone()).prop_map(|(at, from)| Happening::Pull { at, from }),
        2 => (at.clone(), at, any::<u8>())
            .prop_map(|(at, from, keys)| Happening::PullSome { at, from, keys }),
    ]
}

/// What one replica holds at one moment.
#[derive(Clone)]
struct View {
    records: BTreeMap<Key, Record>,
    clock: Clock,
}

impl View {
    fn of(state: &State) -> View {
        let snapshot = state.storage().snapshot();
        let rows = snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded);
        let records = rows.map(|row| {
            let (key, _) = row.expect("memory reads");
            let record = state.record(&key).expect("a good record");
            (key, record)
        });
        View {
            records: records.collect(),
            clock: Clock::clone(state.clock()),
        }
    }

    fn side<'a>(&'a self, key: &Key, nothing: &'a Record) -> Side<'a> {
        Side {
            record: self.records.get(key).unwrap_or(nothing),
            clock: &self.clock,
        }
    }

    fn join(&self, other: &View, writers: &Writers) -> View {
        let nothing = Record::default();
        let keys = self.records.keys().chain(other.records.keys());
        let records = keys.map(|key| {
            let joined = Record::join(self.side(key, &nothing), other.side(key, &nothing), writers);
            (key.clone(), joined)
        });
        let mut clock = self.clock.clone();
        clock.union(&other.clock);
        View {
            records: records.collect(),
            clock,
        }
    }

    /// What the laws are about: which writes are live under which key.
    fn live(&self) -> BTreeMap<Key, Vec<Dot>> {
        let dots = |record: &Record| record.live.iter().map(|version| version.dot).collect();
        let records = self
            .records
            .iter()
            .filter(|(_, record)| !record.live.is_empty());
        records
            .map(|(key, record)| (key.clone(), dots(record)))
            .collect()
    }
}

/// Replicas to which things happened, and all writers they know together.
struct World {
    states: Vec<State>,
    disks: Vec<MemoryStorage>,
    chance: u64,
    now: Now,
}

impl World {
    fn new() -> World {
        let disks: Vec<MemoryStorage> = (0..REPLICAS).map(|_| MemoryStorage::new()).collect();
        let open = |(replica, disk): (usize, &MemoryStorage)| {
            State::open(Arc::new(disk.clone()), [replica as u8; 16]).expect("memory opens")
        };
        World {
            states: disks.iter().enumerate().map(open).collect(),
            disks,
            chance: 0,
            now: Now::default(),
        }
    }

    fn of(happenings: &[Happening]) -> World {
        let mut world = World::new();
        happenings
            .iter()
            .for_each(|happening| world.happen(happening));
        world
    }

    fn happen(&mut self, happening: &Happening) {
        let key = |key: u8| Bytes::from(vec![b'k', key]);
        match *happening {
            Happening::Put { at, key: k } => {
                let value = Bytes::from(self.chance.to_string());
                self.write(at, Op::Put(key(k), value));
            }
            Happening::Delete { at, key: k } => self.write(at, Op::Delete(key(k))),
            Happening::Restart { at } => {
                let disk = Arc::new(self.disks[at].clone());
                self.states[at] = State::open(disk, [0; 16]).expect("memory opens");
            }
            Happening::Pull { at, from } => {
                let view = View::of(&self.states[from]);
                self.describe(at, from);
                apply(
                    &mut self.states[at],
                    view.records.into_iter().collect(),
                    &view.clock,
                    true,
                );
            }
            Happening::PullSome { at, from, keys } => {
                let view = View::of(&self.states[from]);
                self.describe(at, from);
                let chosen = view
                    .records
                    .into_iter()
                    .filter(|(key, _)| keys & (1 << key[1]) != 0);
                apply(&mut self.states[at], chosen.collect(), &view.clock, false);
            }
        }
    }

    fn write(&mut self, at: usize, op: Op) {
        self.chance += 1;
        self.states[at]
            .write(self.now, &[op], self.chance)
            .expect("memory takes all");
    }

    fn describe(&mut self, at: usize, from: usize) {
        let descriptors: Vec<_> = self.states[from].writers().iter().copied().collect();
        self.states[at]
            .describe(&descriptors)
            .expect("honest descriptors");
    }

    /// A replica that knows all writers and no write.
    fn newcomer(&self) -> State {
        let disk = Arc::new(MemoryStorage::new());
        let mut state = State::open(disk, [99; 16]).expect("memory opens");
        for other in &self.states {
            let descriptors: Vec<_> = other.writers().iter().copied().collect();
            state.describe(&descriptors).expect("honest descriptors");
        }
        state
    }

    fn views(&self) -> Vec<View> {
        self.states.iter().map(View::of).collect()
    }
}

fn apply(state: &mut State, records: Vec<(Key, Record)>, context: &Clock, claim: bool) {
    let reach = if claim {
        Reach::Snapshot {
            unclaimed: &[],
            floor: None,
        }
    } else {
        Reach::Part
    };
    state
        .apply(records, context, reach)
        .expect("memory takes all");
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    proptest::collection::vec(happening(), 1..50)
}

proptest! {
    #![proptest_config(crate::samples::proptest_config())]

    #[test]
    fn join_is_idempotent_commutative_and_associative(happenings in happenings()) {
        let world = World::of(&happenings);
        let writers = Arc::clone(world.newcomer().writers());
        let views = world.views();
        for a in &views {
            prop_assert_eq!(a.join(a, &writers).records, a.records.clone());
            for b in &views {
                let (ab, ba) = (a.join(b, &writers), b.join(a, &writers));
                prop_assert_eq!(&ab.records, &ba.records);
                prop_assert_eq!(ab.join(b, &writers).live(), ab.live());
                for c in &views {
                    let left = ab.join(c, &writers);
                    let right = a.join(&b.join(c, &writers), &writers);
                    prop_assert_eq!(left.live(), right.live());
                    prop_assert_eq!(&left.clock, &right.clock);
                }
            }
        }
    }

    #[test]
    fn what_arrives_in_any_order_twice_and_in_pieces_makes_the_same_whole(
        happenings in happenings(),
        order in proptest::collection::vec((0..REPLICAS, any::<u8>(), any::<bool>()), 0..24),
        last in Just([0, 1, 2, 3]).prop_shuffle(),
    ) {
        let world = World::of(&happenings);
        let mut state = world.newcomer();
        let views = world.views();
        let mut expected = View::of(&state);
        for view in &views {
            expected = expected.join(view, state.writers());
        }

        for (from, keys, reversed) in order {
            let View { records, clock } = views[from].clone();
            let mut some: Vec<_> =
                records.into_iter().filter(|(key, _)| keys & (1 << key[1]) != 0).collect();
            if reversed {
                some.reverse();
            }
            apply(&mut state, some, &clock, false);
        }
        for from in last {
            let View { records, clock } = views[from].clone();
            let mut records: Vec<_> = records.into_iter().collect();
            let rest = records.split_off(records.len() / 2);
            apply(&mut state, records, &clock, false);
            apply(&mut state, rest.clone(), &clock, true);
            // The same once more, after its own claim.
            apply(&mut state, rest, &clock, false);
        }

        let view = View::of(&state);
        prop_assert_eq!(view.live(), expected.live());
        prop_assert_eq!(view.clock, expected.clock);
        prop_assert!(!state.is_catching_up());
    }

    #[test]
    fn a_state_that_is_opened_again_holds_and_knows_the_same(happenings in happenings()) {
        let mut world = World::of(&happenings);
        let before: Vec<View> = world.views();
        for at in 0..REPLICAS {
            world.happen(&Happening::Restart { at });
        }
        for (before, after) in before.iter().zip(world.views()) {
            prop_assert_eq!(&before.records, &after.records);
            prop_assert_eq!(&before.clock, &after.clock);
            prop_assert_eq!(before.clock.digest(), after.clock.digest());
        }
    }
}

/// §4: N of S holds (A,1) because S replaced it. Only the claim may tell R so.
#[test]
fn a_clock_promises_nothing_of_a_writer_before_everything_has_come() {
    let mut world = World::new();
    world.happen(&Happening::Put { at: 0, key: 0 });
    world.happen(&Happening::Pull { at: 1, from: 0 });
    world.happen(&Happening::Pull { at: 2, from: 0 });
    world.happen(&Happening::Put { at: 1, key: 0 });
    world.happen(&Happening::Put { at: 1, key: 1 });
    let old = View::of(&world.states[0]);
    let (_, first) = old
        .clock
        .iter()
        .next()
        .map(|(writer, known)| (writer, known.base()))
        .expect("one");
    assert_eq!(first, 1);

    // Only the second key of S arrives at R.
    world.happen(&Happening::PullSome {
        at: 3,
        from: 1,
        keys: 2,
    });
    assert_eq!(
        world.states[3].clock().count_missing_in(&Clock::default()),
        1
    );

    // So what T still holds can reach R.
    world.happen(&Happening::Pull { at: 3, from: 2 });
    assert_eq!(View::of(&world.states[3]).live().len(), 2);
}
