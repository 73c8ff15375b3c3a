//! A snapshot shows one moment, whole, however long it is held and whoever commits meanwhile.

use std::ops::Bound::Unbounded;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;

use super::compare::{Difference, Outcome, expect_entries, expect_value, read, show};
use super::model::{Model, Modeled};
use super::{Case, Subject};
use crate::storage::{Batch, Storage, Table};

pub(super) const CASES: &[Case] = cases![
    a_snapshot_does_not_see_later_commits,
    an_open_range_does_not_see_later_commits,
    snapshots_of_different_moments_stand_side_by_side,
    a_range_outlives_its_snapshot,
    a_snapshot_outlives_its_storage,
    no_snapshot_sees_half_a_batch,
    no_get_sees_half_a_batch,
];

/// How often a batch is committed while another thread reads.
const ROUNDS: u32 = 1_000;

/// How often the other thread reads at most, should it run alone.
const READS_MAX: u32 = 100_000;

/// How many keys of a table each of those batches changes.
const KEYS: u8 = 20;

fn a_snapshot_does_not_see_later_commits(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    let empty = tables.storage.snapshot();
    put_numbers(&mut tables)?;
    let (snapshot, then) = (tables.storage.snapshot(), tables.model.clone());

    change_numbers(&mut tables)?;

    Model::default().expect_all(&*empty)?;
    then.expect_all(&*snapshot)?;
    for key in [&b"added"[..], &number(0), &number(1)] {
        let found = snapshot.get(Table::Data, key)?;
        expect_value(Table::Data, key, found.as_ref(), then.get(Table::Data, key))?;
    }
    tables.expect_all("in a new snapshot, while an old one is held")
}

fn an_open_range_does_not_see_later_commits(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    put_numbers(&mut tables)?;
    let expected = tables.model.range(Table::Data, Unbounded, Unbounded);
    let snapshot = tables.storage.snapshot();
    let untouched = snapshot.range(Table::Data, Unbounded, Unbounded);
    let mut begun = snapshot.range(Table::Data, Unbounded, Unbounded);
    let first = begun.next().transpose()?;
    let last = begun.next_back().transpose()?;

    change_numbers(&mut tables)?;

    let untouched = read(untouched, expected.len(), || false)?;
    expect_entries(&untouched, &expected)
        .map_err(|difference| difference.within("a range opened before the commits"))?;
    let mut is_back = false;
    let rest = read(begun, expected.len(), || {
        is_back = !is_back;
        is_back
    })?;
    let begun: Vec<_> = first.into_iter().chain(rest).chain(last).collect();
    expect_entries(&begun, &expected)
        .map_err(|difference| difference.within("a range begun before the commits"))
}

fn snapshots_of_different_moments_stand_side_by_side(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    let mut moments = Vec::new();
    for round in 0..30_u32 {
        moments.push((tables.storage.snapshot(), tables.model.clone()));
        tables.commit(|batch| {
            for table in Table::ALL {
                batch.put(table, number(round), number(round));
                batch.put(table, "in each round", number(round));
                batch.remove(table, number(round / 2));
            }
        })?;
    }
    for (round, (snapshot, then)) in moments.iter().enumerate().rev() {
        then.expect_all(&**snapshot)
            .map_err(|difference| difference.within(format_args!("after {round} commits")))?;
    }
    Ok(())
}

fn a_range_outlives_its_snapshot(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    put_numbers(&mut tables)?;
    let expected = tables.model.range(Table::Data, Unbounded, Unbounded);
    let snapshot = tables.storage.snapshot();
    let entries = snapshot.range(Table::Data, Unbounded, Unbounded);
    drop(snapshot);
    change_numbers(&mut tables)?;

    expect_entries(&read(entries, expected.len(), || false)?, &expected)
}

fn a_snapshot_outlives_its_storage(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    put_numbers(&mut tables)?;
    let Modeled { storage, model } = tables;
    let snapshot = storage.snapshot();
    let expected = model.range(Table::Data, Unbounded, Unbounded);
    let mut entries = snapshot.range(Table::Data, Unbounded, Unbounded);
    let first = entries.next().transpose()?;
    storage.close()?;
    drop(storage);

    model.expect_all(&*snapshot)?;
    drop(snapshot);
    let rest = read(entries, expected.len(), || true)?;
    let all: Vec<_> = first.into_iter().chain(rest).collect();
    expect_entries(&all, &expected)
}

fn no_snapshot_sees_half_a_batch(subject: &Subject<'_>) -> Outcome {
    while_committing(subject, |storage, committed| {
        let snapshot = storage.snapshot();
        let mut seen: Option<Bytes> = None;
        for table in [Table::Data, Table::Log] {
            let entries = snapshot.range(table, Unbounded, Unbounded);
            let entries = read(entries, KEYS.into(), || false)?;
            if entries.len() != usize::from(KEYS) {
                let found = entries.len();
                return Err(Difference::new(format!(
                    "every batch puts {KEYS} keys in {table:?}, a snapshot showed {found}"
                )));
            }
            for (key, value) in entries {
                let first = seen.get_or_insert_with(|| value.clone());
                if value != *first {
                    return Err(Difference::new(format!(
                        "a snapshot showed {} under the first key and {} under {} in {table:?}, \
                         which every batch puts alike",
                        show(first),
                        show(&value),
                        show(&key),
                    )));
                }
            }
        }
        expect_round(&seen.unwrap_or_default(), committed).map(drop)
    })
}

fn no_get_sees_half_a_batch(subject: &Subject<'_>) -> Outcome {
    while_committing(subject, |storage, committed| {
        let mut earlier = committed;
        // What was seen under one key must have come to all others too, in either order.
        for key in [0, KEYS - 1, 0, KEYS / 2] {
            for table in [Table::Data, Table::Log] {
                let value = storage.get(table, &[key])?.unwrap_or_default();
                earlier = expect_round(&value, earlier)?;
            }
        }
        Ok(())
    })
}

/// Commits one batch after another, each of which puts its number under all keys, while another
/// thread reads. `read` is told the last number that was committed before it began.
fn while_committing(
    subject: &Subject<'_>,
    read: impl Fn(&dyn Storage, u32) -> Outcome + Sync,
) -> Outcome {
    let storage = subject.open().storage;
    storage.commit(numbered_batch(0))?;
    let committed = AtomicU32::new(0);
    let is_done = AtomicBool::new(false);
    let not_run = || Err(Difference::new("a job was not run by `Engine::run_both`"));
    let (mut wrote, mut saw) = (not_run(), not_run());

    (subject.run_both)(
        Box::new(|| {
            wrote = (1..=ROUNDS).try_for_each(|round| {
                storage.commit(numbered_batch(round))?;
                committed.store(round, Ordering::Release);
                Ok(())
            });
            is_done.store(true, Ordering::Release);
        }),
        Box::new(|| {
            saw = (0..READS_MAX)
                .take_while(|_| !is_done.load(Ordering::Acquire))
                .try_for_each(|_| read(&*storage, committed.load(Ordering::Acquire)));
        }),
    );

    wrote.and(saw)?;
    read(&*storage, ROUNDS).map_err(|difference| difference.within("after the last commit"))
}

/// Puts the number under all keys of two tables, but something else before.
fn numbered_batch(round: u32) -> Batch {
    let mut batch = Batch::default();
    for key in 0..KEYS {
        for table in [Table::Data, Table::Log] {
            batch.put(table, vec![key], "replaced in the same batch");
            batch.put(table, vec![key], number(round));
        }
    }
    batch
}

/// The number in a value, which must be that of a batch at least as late as another.
fn expect_round(value: &Bytes, at_least: u32) -> Result<u32, Difference> {
    let round = (value[..].try_into().map(u32::from_be_bytes))
        .map_err(|_| Difference::new(format!("{} was shown, half a batch", show(value))))?;
    if round < at_least {
        return Err(Difference::new(format!(
            "batch {round} was shown, though batch {at_least} had been committed or seen before"
        )));
    }
    Ok(round)
}

fn number(number: u32) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Puts 1,000 numbers in two tables.
fn put_numbers(tables: &mut Modeled) -> Outcome {
    tables.commit(|batch| {
        for key in 0..1_000 {
            batch.put(Table::Data, number(key), "before");
            batch.put(Table::Log, number(key), "before");
        }
    })
}

/// Of those numbers, removes a third, replaces a third, and adds something.
fn change_numbers(tables: &mut Modeled) -> Outcome {
    for key in 0..1_000 {
        tables.commit(|batch| match key % 3 {
            0 => batch.remove(Table::Data, number(key)),
            1 => batch.put(Table::Data, number(key), "after"),
            _ => batch.put(Table::Data, [&number(key)[..], b"added"].concat(), "after"),
        })?;
    }
    tables.commit(|batch| {
        batch.put(Table::Data, "added", "after");
        batch.remove(Table::Log, number(0));
    })
}
