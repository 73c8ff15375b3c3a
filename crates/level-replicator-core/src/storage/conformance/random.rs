//! Many operations chosen by seeded chance do to the tables what they do to a model.

use std::ops::Bound;
use std::sync::Arc;

use fastrand::Rng;

use super::compare::{Outcome, expect_value};
use super::model::{Model, Modeled};
use super::{Case, Subject};
use crate::storage::{Batch, Snapshot, Table};

pub(super) const CASES: &[Case] = cases![random_operations_agree_with_a_model];

const SEED: u64 = 2014;

const OPERATIONS: u32 = 4_000;

/// How many snapshots are kept over later commits, each with what it must show.
const MOMENTS_MAX: usize = 4;

type Moment = (Arc<dyn Snapshot>, Model);

fn random_operations_agree_with_a_model(subject: &Subject<'_>) -> Outcome {
    let mut chance = Rng::with_seed(SEED);
    let mut tables = subject.open();
    let mut moments = Vec::new();
    for operation in 0..OPERATIONS {
        if subject.keeps_tables && chance.u32(0..400) == 0 {
            moments.clear();
            if chance.bool() {
                tables.storage.close()?;
            }
            tables = subject.reopen(tables);
        }
        operate(&mut tables, &mut moments, &mut chance).map_err(|difference| {
            difference.within(format_args!("operation {operation} of seed {SEED}"))
        })?;
    }
    tables.expect_all("after all operations")
}

fn operate(tables: &mut Modeled, moments: &mut Vec<Moment>, chance: &mut Rng) -> Outcome {
    match chance.u32(0..100) {
        0..40 => tables.commit(|batch| fill(batch, chance)),
        40..60 => tables.expect_key(random_table(chance), &random_key(chance)),
        60..75 => {
            let now = tables.storage.snapshot();
            expect_random_range(&*now, &tables.model, chance)
        }
        75..85 => match chance.choice(moments.iter()) {
            Some((snapshot, then)) => {
                let (table, key) = (random_table(chance), random_key(chance));
                let found = snapshot.get(table, &key)?;
                expect_value(table, &key, found.as_ref(), then.get(table, &key))?;
                expect_random_range(&**snapshot, then, chance)
            }
            None => Ok(()),
        },
        85..95 => {
            if moments.len() == MOMENTS_MAX {
                moments.swap_remove(chance.usize(0..MOMENTS_MAX));
            }
            moments.push((tables.storage.snapshot(), tables.model.clone()));
            Ok(())
        }
        95..98 => match chance.choice(moments.iter()) {
            Some((snapshot, then)) => then.expect_all(&**snapshot),
            None => tables.expect_all("as of the last commit"),
        },
        _ => Ok(tables.storage.sync()?),
    }
}

fn fill(batch: &mut Batch, chance: &mut Rng) {
    for _ in 0..chance.usize(0..10) {
        let (table, key) = (random_table(chance), random_key(chance));
        if chance.u32(0..4) == 0 {
            batch.remove(table, key);
        } else {
            let value: Vec<u8> = (0..chance.usize(0..40)).map(|_| chance.u8(..)).collect();
            batch.put(table, key, value);
        }
    }
}

fn expect_random_range(snapshot: &dyn Snapshot, model: &Model, chance: &mut Rng) -> Outcome {
    let (start, end) = (random_key(chance), random_key(chance));
    let (start, end) = (random_bound(&start, chance), random_bound(&end, chance));
    let range = (random_table(chance), start, end);
    // From the front, from the back, or from whichever end comes up.
    let backwards = chance.choice([0.0, 0.5, 1.0]).unwrap_or_default();
    model.expect_range(snapshot, range, || chance.f64() < backwards)
}

fn random_table(chance: &mut Rng) -> Table {
    Table::ALL[chance.usize(0..Table::ALL.len())]
}

/// A short key of few different bytes, so that the same ones come up again.
fn random_key(chance: &mut Rng) -> Vec<u8> {
    const BYTES: [u8; 6] = [0, 1, b'k', 0x7f, 0x80, 0xff];
    (0..chance.usize(0..4))
        .map(|_| BYTES[chance.usize(0..BYTES.len())])
        .collect()
}

fn random_bound<'a>(key: &'a [u8], chance: &mut Rng) -> Bound<&'a [u8]> {
    match chance.u32(0..5) {
        0 | 1 => Bound::Included(key),
        2 | 3 => Bound::Excluded(key),
        _ => Bound::Unbounded,
    }
}
