//! A comparison holds a few ranges in memory on each side, whatever the other side does or does not.

use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Now};
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
    let snapshot = state.storage().snapshot();
    View::new(
        &plan(),
        Arc::new(Clock::default()),
        snapshot,
        Arc::clone(state.writers()),
    )
}

#[test]
fn a_leader_whose_follower_never_answers_announces_a_few_ranges() {
    let mut leader = Leader::new(&plan(), view());
    assert!(
        matches!(leader.advance(), Ok(Next::Wait)),
        "it begins unasked"
    );
    leader
        .begin(Bytes::from_static(b"z"))
        .expect("the first start");
    assert!(leader.begin(Bytes::new()).is_err(), "a second start");
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
    let mut leader = Leader::new(&plan(), view());
    leader
        .begin(Bytes::from_static(b"z"))
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
    let mut follower = Follower::new(&plan(), view());
    let range = Range {
        end: None,
        count: 1_000_000,
        fingerprint: 1,
    };
    follower.take_range(range).expect("the first range");
    let mut listed = 0;
    let mut parts = 0;
    while let Some(list) = follower.next_list().expect("memory reads") {
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
    let mut follower = Follower::new(&plan(), view());
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
    let mut follower = Follower::new(&plan(), view());
    let range = Range {
        end: None,
        count: 1,
        fingerprint: 1,
    };
    follower.take_range(range).expect("the first range");
    follower.next_list().expect("memory reads");
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
