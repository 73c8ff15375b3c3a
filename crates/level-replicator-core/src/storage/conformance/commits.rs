//! What is committed is there, all of it, and nothing else.

use super::compare::Outcome;
use super::{Case, Subject};
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::{Batch, Table};

pub(super) const CASES: &[Case] = cases![
    new_tables_are_empty,
    a_value_comes_back_until_it_is_removed,
    the_empty_key_and_the_empty_value_are_like_any_other,
    every_byte_may_stand_in_a_key_and_in_a_value,
    the_longest_keys_and_large_values_come_back,
    a_key_longer_than_any_has_no_value,
    tables_do_not_mix,
    of_two_changes_of_one_key_the_later_counts,
    a_large_batch_is_done_whole,
    an_empty_batch_changes_nothing,
    a_commit_is_seen_at_once,
    a_sync_changes_nothing,
];

fn new_tables_are_empty(subject: &Subject<'_>) -> Outcome {
    let tables = subject.open();
    tables.expect_all("before the first commit")?;
    (Table::ALL.into_iter()).try_for_each(|table| tables.expect_key(table, b"key"))
}

fn a_value_comes_back_until_it_is_removed(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    tables.commit(|batch| {
        batch.put(Table::Data, "key", "value");
        batch.put(Table::Data, "other", "stays");
    })?;
    tables.expect_all("after the put")?;

    tables.commit(|batch| batch.put(Table::Data, "key", "another value"))?;
    tables.expect_all("after the key was put again")?;

    tables.commit(|batch| {
        batch.remove(Table::Data, "key");
        batch.remove(Table::Data, "never there");
    })?;
    tables.expect_key(Table::Data, b"key")?;
    tables.expect_key(Table::Data, b"never there")?;
    tables.expect_all("after the removal")?;

    tables.commit(|batch| batch.put(Table::Data, "key", "back"))?;
    tables.expect_all("after the removed key was put again")
}

fn the_empty_key_and_the_empty_value_are_like_any_other(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    tables.commit(|batch| {
        for table in Table::ALL {
            batch.put(table, "", "of the empty key");
            batch.put(table, "key", "");
        }
    })?;
    tables.expect_all("after the puts")?;

    tables.commit(|batch| {
        batch.put(Table::Data, "", "");
        batch.remove(Table::Log, "");
        batch.remove(Table::Pending, "key");
    })?;
    tables.expect_key(Table::Log, b"")?;
    tables.expect_key(Table::Pending, b"key")?;
    tables.expect_all("after the removals")
}

fn every_byte_may_stand_in_a_key_and_in_a_value(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    tables.commit(|batch| {
        for byte in 0..=u8::MAX {
            for key in [&[byte][..], &[byte, 0], &[0, byte], &[b'k', byte, 0xff]] {
                batch.put(Table::Data, key.to_vec(), vec![byte, 0, 0xff, byte]);
            }
        }
    })?;
    tables.expect_all("after the puts")?;

    tables.commit(|batch| {
        (0..=u8::MAX).for_each(|byte| batch.remove(Table::Data, vec![byte, 0]));
    })?;
    tables.expect_all("after the keys that end in a zero were removed")
}

fn the_longest_keys_and_large_values_come_back(subject: &Subject<'_>) -> Outcome {
    let mut chance = fastrand::Rng::with_seed(0);
    let mut noise = |len: usize| {
        let mut bytes = vec![0; len];
        chance.fill(&mut bytes);
        bytes
    };
    let longest = |last: u8| {
        let mut key = vec![b'k'; KEY_BYTES_MAX];
        key[KEY_BYTES_MAX - 1] = last;
        key
    };
    let mut tables = subject.open();
    tables.commit(|batch| {
        for last in [0, 1, 0xff] {
            batch.put(Table::Data, longest(last), vec![last]);
            batch.put(Table::Pending, longest(last), "");
        }
        // A row of the log has the key of its write for a value.
        batch.put(Table::Log, vec![0xff; 12], longest(1));
        batch.put(Table::Data, vec![0xff; KEY_BYTES_MAX], noise(100_000));
    })?;
    tables.expect_all("after the puts of the longest keys")?;

    for len in [1, 255, 256, 65_535, 65_536, 1 << 20, VALUE_BYTES_MAX + 100] {
        let value = noise(len);
        tables.commit(|batch| batch.put(Table::Data, len.to_be_bytes().to_vec(), value))?;
    }
    tables.expect_all("after the puts of large values")?;

    tables.commit(|batch| batch.remove(Table::Data, longest(1)))?;
    tables.expect_key(Table::Data, &longest(1))?;
    tables.expect_all("after the removal of a longest key")
}

fn a_key_longer_than_any_has_no_value(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    tables.commit(|batch| batch.put(Table::Data, vec![b'k'; KEY_BYTES_MAX], "value"))?;
    // Programs may ask for a key that they could not have put.
    [KEY_BYTES_MAX + 1, 65_535, 65_536, 65_536 + KEY_BYTES_MAX]
        .into_iter()
        .try_for_each(|len| tables.expect_key(Table::Data, &vec![b'k'; len]))
}

fn tables_do_not_mix(subject: &Subject<'_>) -> Outcome {
    const KEYS: [&[u8]; 5] = [b"", b"\0", b"key", b"\xff", b"\xff\xff\xff"];
    let mut tables = subject.open();
    for table in Table::ALL {
        tables.commit(|batch| {
            for key in KEYS {
                batch.put(table, key, vec![table as u8]);
            }
        })?;
        tables.expect_all("while the tables are filled")?;
    }
    for table in Table::ALL {
        tables.commit(|batch| KEYS.into_iter().for_each(|key| batch.remove(table, key)))?;
        tables.expect_key(table, b"key")?;
        tables.expect_all("while the tables are emptied")?;
    }
    Ok(())
}

fn of_two_changes_of_one_key_the_later_counts(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    tables.commit(|batch| batch.put(Table::Data, "removed, then put", "before"))?;
    tables.commit(|batch| {
        batch.put(Table::Data, "put twice", "first");
        batch.put(Table::Data, "put, then removed", "first");
        batch.remove(Table::Data, "removed, then put");
        batch.put(Table::Log, "put twice", "in another table");
        batch.put(Table::Data, "put twice", "second");
        batch.remove(Table::Data, "put, then removed");
        batch.put(Table::Data, "removed, then put", "second");
    })?;
    tables.expect_key(Table::Data, b"put, then removed")?;
    tables.expect_all("after the commit")
}

fn a_large_batch_is_done_whole(subject: &Subject<'_>) -> Outcome {
    const CHANGES: u32 = 10_000;
    let key = |number: u32| number.to_be_bytes().to_vec();
    let mut tables = subject.open();
    tables.commit(|batch| {
        for number in 0..CHANGES {
            let table = Table::ALL[number as usize % Table::ALL.len()];
            batch.put(table, key(number), key(number));
        }
    })?;
    tables.expect_all("after 10,000 puts in one batch")?;

    tables.commit(|batch| {
        for number in 0..CHANGES {
            let table = Table::ALL[number as usize % Table::ALL.len()];
            batch.remove(table, key(number));
            batch.put(table, key(CHANGES + number), "value");
        }
    })?;
    tables.expect_all("after each was removed, and another put, in one batch")
}

fn an_empty_batch_changes_nothing(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    tables.storage.commit(Batch::default())?;
    tables.expect_all("of new tables")?;
    tables.commit(|batch| batch.put(Table::Data, "key", "value"))?;
    tables.storage.commit(Batch::default())?;
    tables.expect_all("of tables with a row")
}

fn a_commit_is_seen_at_once(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    for number in 0..500_u32 {
        let fresh = number.to_be_bytes();
        let replaced = (number % 7).to_be_bytes();
        tables.commit(|batch| {
            batch.put(Table::Log, fresh.to_vec(), "value");
            batch.put(Table::Data, replaced.to_vec(), fresh.to_vec());
        })?;
        tables.expect_key(Table::Log, &fresh)?;
        tables.expect_key(Table::Data, &replaced)?;
    }
    tables.expect_all("after all commits")
}

fn a_sync_changes_nothing(subject: &Subject<'_>) -> Outcome {
    let mut tables = subject.open();
    tables.storage.sync()?;
    tables.expect_all("of new tables")?;
    tables.commit(|batch| batch.put(Table::Data, "key", "value"))?;
    tables.storage.sync()?;
    tables.storage.sync()?;
    tables.expect_all("of tables with a row")?;
    tables.commit(|batch| batch.put(Table::Data, "key", "after the sync"))?;
    tables.expect_all("after the next commit")
}
