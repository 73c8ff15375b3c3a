//! What was committed outlives the storage, whether or not it was closed.

use super::compare::Outcome;
use super::{Case, Subject};
use crate::storage::Table;

pub(super) const CASES: &[Case] = cases![
    what_was_committed_is_there_after_a_close,
    what_was_committed_is_there_after_a_drop_without_a_close,
];

fn what_was_committed_is_there_after_a_close(subject: &Subject<'_>) -> Outcome {
    is_there_when_reopened(subject, true)
}

fn what_was_committed_is_there_after_a_drop_without_a_close(subject: &Subject<'_>) -> Outcome {
    is_there_when_reopened(subject, false)
}

/// Each round replaces, removes and adds, so that nothing of an earlier round may come back.
fn is_there_when_reopened(subject: &Subject<'_>, is_closed: bool) -> Outcome {
    if !subject.keeps_tables {
        return Ok(());
    }
    let key = |number: u32| number.to_be_bytes().to_vec();
    let mut tables = subject.open();
    for round in 0..5_u32 {
        for table in Table::ALL {
            tables.commit(|batch| {
                batch.put(table, "", key(round));
                batch.put(table, key(round), "replaced in the same batch");
                batch.put(table, key(round), vec![round as u8; 1_000]);
                batch.put(table, "in even rounds", "value");
            })?;
        }
        tables.commit(|batch| {
            for table in Table::ALL {
                batch.remove(table, key(round.saturating_sub(2)));
                if round % 2 == 1 {
                    batch.remove(table, "in even rounds");
                }
            }
        })?;
        if is_closed {
            tables.storage.close()?;
        }

        tables = subject.reopen(tables);
        tables.expect_key(Table::Data, &key(round.saturating_sub(2)))?;
        tables.expect_key(Table::Data, b"in even rounds")?;
        tables.expect_all("opened again")?;
    }

    // Nothing was committed since the last open.
    tables = subject.reopen(tables);
    tables.expect_all("opened once more")
}
