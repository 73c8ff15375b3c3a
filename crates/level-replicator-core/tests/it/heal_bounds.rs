//! A comparison holds a few ranges in memory on each side, whatever the other side does or does not.

use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::Now;
use level_replicator_core::config::Config;
use level_replicator_core::heal::{Follower, Leader, List, Next, Plan, Purpose, Range, View};
use level_replicator_core::limits::{LIST_ITEMS_MAX, RANGE_KEYS, RANGES_PENDING};
use level_replicator_core::record::{Op, Record};
use level_replicator_core::state::State;
use level_replicator_core::storage::memory::MemoryStorage;

const KEYS: usize = 20_000;

fn plan() -> Plan {
    Plan {
        purpose: Purpose::Heal,
        seed: 1,
        start: Bytes::new(),
        end: None,
    }
}

fn view() -> View {
    let mut state = State::open(Arc::new(MemoryStorage::new()), [1; 16]).expect("memory opens");
    let now = Now {
        wall_us: 1_700_000_000_000_000,
        steady_us: 1,
    };
    let op = |number| Op::Put(Bytes::from(format!("key{number:06}")), Bytes::new());
    let ops: Vec<Op> = (0..KEYS).map(op).collect();
    state.write(now, &ops, 1).expect("memory takes all");
    View {
        snapshot: state.storage().snapshot(),
        writers: Arc::clone(state.writers()),
    }
}

fn leader() -> Leader {
    Leader::new(&plan(), Arc::default(), view(), &Config::default())
}

fn follower() -> Follower {
    Follower::new(&plan(), None, Arc::default())
}

#[test]
fn a_leader_whose_follower_never_answers_announces_a_few_ranges() {
    let mut leader = leader();
    assert!(
        matches!(leader.advance(), Ok(Next::Wait)),
        "it begins unasked"
    );
    leader
        .begin(&Bytes::new(), Bytes::from_static(b"z"))
        .expect("the first start");
    assert!(
        leader.begin(&Bytes::new(), Bytes::new()).is_err(),
        "a second start"
    );
    let mut announced = 0;
    while let Next::Range(range) = leader.advance().expect("memory reads") {
        assert!(range.count <= RANGE_KEYS as u64);
        announced += 1;
    }
    assert_eq!(announced, RANGES_PENDING);
    assert!(!leader.is_ready());
}

#[test]
fn a_leader_whose_follower_lists_without_end_takes_a_few_lists() {
    let mut leader = leader();
    leader
        .begin(&Bytes::new(), Bytes::from_static(b"z"))
        .expect("the first start");
    leader.advance().expect("memory reads");
    let list = || List::Items {
        end: Some(Bytes::new()),
        hashes: vec![7; 4 * LIST_ITEMS_MAX],
    };
    let taken = (0..1_000).take_while(|_| leader.take_list(list()).is_ok());
    assert_eq!(taken.count(), RANGES_PENDING);
}

#[test]
fn a_follower_lists_a_range_of_any_size_in_a_few_parts_until_they_are_answered() {
    let mut follower = follower();
    let range = Range {
        end: None,
        count: 1_000_000,
        fingerprint: 1,
    };
    follower.take_range(range).expect("the first range");
    let (mut listed, mut parts) = (0, 0);
    let view = view();
    while let Some(list) = follower.next_list(&view).expect("memory reads") {
        let List::Items { hashes, .. } = list else {
            panic!("it is not the same");
        };
        assert!(hashes.len() <= 4 * LIST_ITEMS_MAX);
        listed += hashes.len();
        parts += 1;
        assert!(parts <= RANGES_PENDING);
    }
    assert_eq!(listed, KEYS);
    assert!(!follower.is_settled());
}

#[test]
fn a_follower_takes_no_more_ranges_than_a_leader_may_announce() {
    let mut follower = follower();
    let of = |number: usize| Range {
        end: Some(Bytes::from(format!("a{number:06}"))),
        count: 0,
        fingerprint: 1,
    };
    let taken = (0..1_000).take_while(|&number| follower.take_range(of(number)).is_ok());
    assert!(taken.count() <= 2 * RANGES_PENDING + 1);
}

#[test]
fn a_follower_does_not_remember_records_of_keys_that_it_has_not_listed() {
    let mut follower = follower();
    let range = Range {
        end: None,
        count: 1,
        fingerprint: 1,
    };
    follower.take_range(range).expect("the first range");
    follower.next_list(&view()).expect("memory reads");
    for number in 0..10_000 {
        let key = Bytes::from(format!("other{number}"));
        follower.note_records(&[(key, Record::default())]);
    }
    assert_eq!(follower.remembered(), 0);
    follower.note_records(&[(Bytes::from_static(b"key000000"), Record::default())]);
    assert_eq!(follower.remembered(), 1);
    let absent = follower.take_absent(&[0, 1]).expect("places in the list");
    assert_eq!(absent, [Bytes::from_static(b"key000001")]);
}

#[test]
fn no_range_follows_records_that_were_sent_without_asking() {
    let range = |end: Option<&'static [u8]>| Range {
        end: end.map(Bytes::from_static),
        count: 0,
        fingerprint: 1,
    };
    let mut follower = follower();
    follower.start(&view()).expect("memory reads");
    follower
        .take_range(range(Some(b"l")))
        .expect("up to where something is here");
    let record = |key| [(Bytes::from_static(key), Record::default())];
    follower.note_records(&record(b"key000001"));
    follower.note_records(&record(b"m"));
    // By now the follower holds what was sent, and would list it as what the leader lacks.
    assert!(follower.take_range(range(None)).is_err());
}

#[test]
fn a_leader_announces_all_that_its_follower_has_before_it_sends_without_asking() {
    let ranges = |direct: &'static [u8]| {
        let mut leader = leader();
        let direct = Bytes::from_static(direct);
        leader
            .begin(&Bytes::new(), direct)
            .expect("the first start");
        let mut ends = Vec::new();
        loop {
            match leader.advance().expect("memory reads") {
                Next::Range(range) => {
                    ends.push(range.end);
                    leader.take_list(List::Same).expect("it was announced");
                }
                Next::Reached(_) => {}
                Next::Records(piece) => return (ends, piece.records > 0),
                _ => return (ends, false),
            }
        }
    };
    assert_eq!(ranges(b""), (vec![], true), "the follower is empty");
    let before_all = Bytes::from_static(b"a\0");
    assert_eq!(ranges(b"a\0"), (vec![Some(before_all)], true));
    let (ends, sends) = ranges(b"key000300\0");
    assert_eq!(ends.last(), Some(&Some(Bytes::from_static(b"key000300\0"))));
    assert!(sends && ends.len() == 2);
    let (ends, sends) = ranges(b"z");
    assert_eq!(ends.last(), Some(&None), "to the end of all keys");
    assert!(!sends);
}
