//! A range gives the entries between its bounds, in the order of their bytes, from both ends.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use super::compare::{Difference, Outcome};
use super::model::Modeled;
use super::{Case, Subject};
use crate::limits::KEY_BYTES_MAX;
use crate::storage::Table;

pub(super) const CASES: &[Case] = cases![
    keys_come_in_the_order_of_their_bytes,
    a_range_keeps_to_its_bounds,
    a_range_read_from_the_back_is_the_same_backwards,
    a_range_read_from_both_ends_meets_once,
    an_empty_or_inverted_range_gives_nothing,
    a_bound_may_be_longer_than_any_key,
    a_range_of_many_entries_is_whole_from_both_ends,
    the_rows_of_one_writer_are_found_among_those_of_others,
];

/// Keys that are each other's prefixes, and lie on both sides of what is less than zero as an `i8`.
const STORED: [&[u8]; 10] = [
    b"",
    b"\0",
    b"\0\0",
    b"b",
    b"b\0",
    b"bb",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff",
];

/// The stored keys, and some before, between and after them.
const PROBES: [&[u8]; 15] = [
    b"",
    b"\0",
    b"\0\0",
    b"\0\x01",
    b"a",
    b"b",
    b"b\0",
    b"b\0\0",
    b"bb",
    b"c",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff",
    b"\xff\xff\xff",
];

fn keys_come_in_the_order_of_their_bytes(subject: &Subject<'_>) -> Outcome {
    let mut chance = fastrand::Rng::with_seed(0);
    let mut tables = subject.open();
    for _ in 0..50 {
        tables.commit(|batch| {
            for _ in 0..40 {
                let len = chance.usize(0..6);
                let key: Vec<u8> = (0..len).map(|_| chance.u8(..)).collect();
                batch.put(Table::Data, key, "value");
            }
        })?;
    }
    tables.expect_all("after 2,000 random keys")
}

fn a_range_keeps_to_its_bounds(subject: &Subject<'_>) -> Outcome {
    expect_all_ranges(&probed(subject)?, || false)
}

fn a_range_read_from_the_back_is_the_same_backwards(subject: &Subject<'_>) -> Outcome {
    expect_all_ranges(&probed(subject)?, || true)
}

fn a_range_read_from_both_ends_meets_once(subject: &Subject<'_>) -> Outcome {
    let tables = probed(subject)?;
    let mut is_back = false;
    expect_all_ranges(&tables, || {
        is_back = !is_back;
        is_back
    })
    .map_err(|difference| difference.within("ends taking turns"))?;

    let mut chance = fastrand::Rng::with_seed(0);
    expect_all_ranges(&tables, || chance.bool())
        .map_err(|difference| difference.within("ends chosen by chance"))
}

fn an_empty_or_inverted_range_gives_nothing(subject: &Subject<'_>) -> Outcome {
    let tables = probed(subject)?;
    let snapshot = tables.storage.snapshot();
    let key: &[u8] = b"b";
    let ranges = [
        (Included(key), Excluded(key)),
        (Excluded(key), Included(key)),
        (Excluded(key), Excluded(key)),
        (Excluded(key), Excluded(b"b\0")),
        (Included(b"bb"), Included(key)),
        (Included(b"\xff"), Excluded(b"\0")),
        (Excluded(b"\xff\xff"), Included(b"")),
        (Excluded(b"c"), Excluded(b"a")),
        (Unbounded, Excluded(b"")),
        (Excluded(b"\xff\xff"), Unbounded),
    ];
    for table in Table::ALL {
        for (start, end) in ranges {
            for is_back in [false, true] {
                (tables.model).expect_range(&*snapshot, (table, start, end), || is_back)?;
            }
        }
    }
    Ok(())
}

fn a_bound_may_be_longer_than_any_key(subject: &Subject<'_>) -> Outcome {
    let longest = vec![b'k'; KEY_BYTES_MAX];
    let mut tables = subject.open();
    for table in [Table::Log, Table::Data, Table::Pending] {
        tables.commit(|batch| {
            batch.put(table, "a", "before");
            batch.put(table, longest.clone(), "longest");
            batch.put(table, "z", "after");
        })?;
    }
    let snapshot = tables.storage.snapshot();
    for len in [KEY_BYTES_MAX + 1, 65_535, 65_536, 65_536 + KEY_BYTES_MAX] {
        let beyond = vec![b'k'; len];
        for bound in [Included(&beyond[..]), Excluded(&beyond[..])] {
            for range in [
                (Table::Data, bound, Unbounded),
                (Table::Data, Unbounded, bound),
                (Table::Data, bound, bound),
            ] {
                tables.model.expect_range(&*snapshot, range, || false)?;
                tables.model.expect_range(&*snapshot, range, || true)?;
            }
        }
    }
    Ok(())
}

fn a_range_of_many_entries_is_whole_from_both_ends(subject: &Subject<'_>) -> Outcome {
    const KEYS: u32 = 20_000;
    let key = |number: u32| number.to_be_bytes();
    let mut chance = fastrand::Rng::with_seed(0);
    let mut tables = subject.open();
    for first in (0..KEYS).step_by(1_000) {
        tables.commit(|batch| {
            for number in first..first + 1_000 {
                let value = vec![number as u8; chance.usize(0..100)];
                batch.put(Table::Data, key(number).to_vec(), value);
            }
        })?;
    }
    tables = subject.settle(tables)?;
    tables.commit(|batch| {
        let removed = (0..KEYS).step_by(3);
        removed.for_each(|number| batch.remove(Table::Data, key(number).to_vec()));
    })?;

    let snapshot = tables.storage.snapshot();
    for _ in 0..5 {
        let (start, end) = (key(chance.u32(0..KEYS)), key(chance.u32(0..KEYS)));
        let range = (Table::Data, Included(&start[..]), Excluded(&end[..]));
        (tables.model).expect_range(&*snapshot, range, || chance.bool())?;
    }
    let all = (Table::Data, Unbounded, Unbounded);
    tables.model.expect_range(&*snapshot, all, || false)?;
    tables.model.expect_range(&*snapshot, all, || true)?;
    tables.model.expect_range(&*snapshot, all, || chance.bool())
}

fn the_rows_of_one_writer_are_found_among_those_of_others(subject: &Subject<'_>) -> Outcome {
    let row = |ord: u32, seq: u64| [&ord.to_be_bytes()[..], &seq.to_be_bytes()].concat();
    let mut tables = subject.open();
    tables.commit(|batch| {
        for ord in [0, 1, 2, 255, 256, u32::MAX] {
            let seqs = (1..300).chain([u64::from(ord) << 32, u64::MAX]);
            seqs.for_each(|seq| batch.put(Table::Log, row(ord, seq), "key"));
        }
    })?;
    tables = subject.settle(tables)?;

    let snapshot = tables.storage.snapshot();
    for ord in [0, 1, 2, 3, 255, 256, u32::MAX] {
        for (first, last) in [(0, u64::MAX), (1, 1), (17, 255), (255, 257), (300, 1 << 40)] {
            let (first, last) = (row(ord, first), row(ord, last));
            let range = (Table::Log, Included(&first[..]), Included(&last[..]));
            tables.model.expect_range(&*snapshot, range, || false)?;
            tables.model.expect_range(&*snapshot, range, || true)?;
        }
    }
    Ok(())
}

/// Tables that all hold the same keys, of which one half is older than the other.
fn probed(subject: &Subject<'_>) -> Result<Modeled, Difference> {
    let mut tables = subject.open();
    for half in 0..2 {
        tables = subject.settle(tables)?;
        tables.commit(|batch| {
            for table in Table::ALL {
                for key in STORED.into_iter().skip(half).step_by(2) {
                    batch.put(table, key, vec![table as u8]);
                }
            }
        })?;
    }
    Ok(tables)
}

/// Tries every pair of bounds, also those between which no key can lie.
fn expect_all_ranges(tables: &Modeled, mut from_back: impl FnMut() -> bool) -> Outcome {
    let mut bounds: Vec<Bound<&[u8]>> = vec![Unbounded];
    bounds.extend(
        PROBES
            .iter()
            .flat_map(|&key| [Included(key), Excluded(key)]),
    );
    let snapshot = tables.storage.snapshot();
    for table in Table::ALL {
        for &start in &bounds {
            for &end in &bounds {
                (tables.model).expect_range(&*snapshot, (table, start, end), &mut from_back)?;
            }
        }
    }
    Ok(())
}
