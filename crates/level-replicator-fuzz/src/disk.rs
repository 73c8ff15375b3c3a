//! Tables that nobody wrote, to a replica that opens them.
//!
//! What must hold: opening, reading, writing, joining and closing answer with an error or work; what
//! was opened and closed opens again with the same clock; and clock rows written anew say the same.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Now};
use level_replicator_core::known_rows::{KnownRows, LoadError};
use level_replicator_core::record::{Op, Version, decode_row};
use level_replicator_core::state::{Reach, State, StateError, scan_tally};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Batch, Storage, Table};
use level_replicator_core::writers::Writers;

use crate::fields::Fields;
use crate::record::seal_row;
use crate::seeds;
use crate::target::{Outcome, Target, decode_error_name};

/// All tables of a replica. An input is rows: a byte for the table, the length of the key, the key,
/// the length of the value in two bytes, the value. Rows that carry a checksum get it here, unless the
/// table's byte has its highest bit set.
pub const TARGET: Target = Target {
    name: "disk",
    body: run,
    seeds: seeds::disks,
    remake: None,
    deep_percent_min: 10,
    outcomes_min: 10,
};

const WITH_CHECKSUM: u8 = 0x80;
const RANDOM: [u8; 16] = [9; 16];
/// More steps than the rows of any input can need.
const RECLAIM_STEPS_MAX: usize = 1_000;
const NOW: Now = Now {
    wall_us: 1_700_000_000_000_000,
    steady_us: 1_000_000,
};

/// Whether the rows of a table end with a checksum.
fn has_checksum(table: Table) -> bool {
    !matches!(table, Table::Meta | Table::Pending | Table::Waiting)
}

/// Writes the rows of tables as an input.
pub(crate) fn rows_of(storage: &MemoryStorage) -> Vec<u8> {
    let mut input = Vec::new();
    let snapshot = storage.snapshot();
    for (number, table) in Table::ALL.into_iter().enumerate() {
        for entry in snapshot.range(table, Bound::Unbounded, Bound::Unbounded) {
            let (key, value) = entry.expect("memory reads all");
            let bare = value.len() - if has_checksum(table) { 4 } else { 0 };
            input.extend_from_slice(&[number as u8, key.len() as u8]);
            input.extend_from_slice(&key);
            input.extend_from_slice(&(bare as u16).to_be_bytes());
            input.extend_from_slice(&value[..bare]);
        }
    }
    input
}

fn tables(input: &[u8]) -> MemoryStorage {
    let mut fields = Fields::new(input);
    let mut batch = Batch::default();
    while !fields.is_over() {
        let number = fields.byte();
        let table = Table::ALL[usize::from(number & !WITH_CHECKSUM) % Table::ALL.len()];
        let len = fields.byte();
        let key = Bytes::copy_from_slice(fields.bytes(usize::from(len)));
        let len = fields.short();
        let value = fields.bytes(usize::from(len));
        let value = if has_checksum(table) && number & WITH_CHECKSUM == 0 {
            seal_row(&key, value)
        } else {
            Bytes::copy_from_slice(value)
        };
        batch.put(table, key, value);
    }
    let storage = MemoryStorage::new();
    storage.commit(batch).expect("memory takes all");
    storage
}

/// Runs one input.
pub fn run(input: &[u8]) -> Outcome {
    let storage = tables(input);
    match State::open(Arc::new(storage.clone()), RANDOM) {
        Err(error) => Outcome::refused(error_name(&error)),
        Ok(state) => {
            check_clock_rows(&storage, &state);
            let rebuilt = if state.rebuilt().is_some() {
                "rebuilt, "
            } else {
                ""
            };
            let name = use_it(state);
            check_second_open(&storage);
            Outcome::deep(format!("{rebuilt}{name}"))
        }
    }
}

fn error_name(error: &StateError) -> String {
    match error {
        StateError::Corrupt { table, source, .. } => {
            format!("{table:?}: {}", decode_error_name(source))
        }
        StateError::Descriptor(_) => "descriptor".to_owned(),
        StateError::LogMismatch { .. } => "log mismatch".to_owned(),
        _ => "another error".to_owned(),
    }
}

/// Clock rows that are read and written as a whole say the same.
fn check_clock_rows(storage: &MemoryStorage, state: &State) {
    let (loaded, rewritten) = (load(storage, state.writers()), storage.fork());
    let Ok((mut rows, clock)) = loaded else {
        panic!("clock rows that were opened cannot be loaded");
    };
    let mut batch = Batch::default();
    for (writer, known) in clock.iter() {
        let ord = state
            .writers()
            .ord(writer)
            .expect("rows are of known writers");
        rows.put_whole(&mut batch, ord, known);
    }
    rewritten.commit(batch).expect("memory takes all");
    let again = load(&rewritten, state.writers()).map(|(_, clock)| clock);
    assert_eq!(again.ok(), Some(clock), "clock rows written again");
}

fn load(storage: &MemoryStorage, writers: &Writers) -> Result<(KnownRows, Clock), LoadError> {
    KnownRows::load(&*storage.snapshot(), writers)
}

/// Reads, writes and joins every key, closes, and tells how it went.
fn use_it(mut state: State) -> String {
    let snapshot = state.storage().snapshot();
    let mut damaged = 0;
    let mut good = Vec::new();
    for entry in snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded) {
        let (key, row) = entry.expect("memory reads all");
        match decode_row(&key, row, state.writers()) {
            Ok(record) => good.push((key, record)),
            Err(_) => damaged += 1,
        }
    }
    let scanned = scan_tally(&*snapshot, state.writers(), || true);
    assert_eq!(scanned.is_err(), damaged > 0, "a scan passes over damage");

    for (key, _) in &good {
        let put = Op::Put(key.clone(), Bytes::from_static(b"new"));
        let written = state
            .write(NOW, &[put], 77)
            .expect("a good record can be replaced");
        let dot = written.last.expect("a put writes");
        let record = state.record(key).expect("it was just written");
        assert_eq!(record.live.len(), 1, "a write replaces all that it saw");
        assert!(
            record.holds(dot) && state.clock().contains(dot),
            "a write is known"
        );
    }
    // What was there before is old news now, so it must not come back.
    let context = Clock::clone(state.clock());
    let names = good.len().min(5);
    let reach = if damaged > 0 {
        Reach::Part
    } else {
        Reach::Snapshot {
            unclaimed: &[],
            floor: None,
        }
    };
    let outcome = match state.apply(good, &context, reach) {
        Ok(_) => "joined",
        Err(_) => "refused",
    };
    let kept = puts(&state);
    reclaim(&mut state);
    state.mend_log().expect("a log can be rebuilt");
    assert_eq!(puts(&state), kept, "reclaiming changed a value");
    let epoch = if take_part_in_epoch(&mut state) {
        ", an epoch"
    } else {
        ""
    };
    reclaim(&mut state);
    assert_eq!(puts(&state), kept, "an epoch changed a value");
    state.close().expect("memory takes all");
    format!("{names} good, {} damaged, {outcome}{epoch}", damaged.min(3))
}

/// The values of every key that can be read.
fn puts(state: &State) -> Vec<(Bytes, Vec<Version>)> {
    let snapshot = state.storage().snapshot();
    let entries = snapshot.range(Table::Data, Bound::Unbounded, Bound::Unbounded);
    let of = |entry: Result<(Bytes, Bytes), _>| {
        let (key, _) = entry.expect("memory reads all");
        let record = state.record(&key).ok()?;
        let puts: Vec<Version> = record.puts().cloned().collect();
        (!puts.is_empty()).then_some((key, puts))
    };
    entries.filter_map(of).collect()
}

/// Reclaims to the end. What cannot be read is looked at in each pass, so that is not waited for.
fn reclaim(state: &mut State) {
    let mut unreadable = BTreeSet::new();
    for _ in 0..RECLAIM_STEPS_MAX {
        if !state.is_reclaiming() {
            return;
        }
        let damage = state.reclaim_step().expect("memory takes all");
        if damage.is_some_and(|damage| !unreadable.insert(damage.to_string())) {
            return;
        }
    }
    panic!("reclaiming without end");
}

/// Proposes a cut, agrees to it, and completes it if nobody else is waited for.
fn take_part_in_epoch(state: &mut State) -> bool {
    state.complete().expect("memory takes all");
    if state.has_reclaimable().expect("memory reads all") {
        state.propose().expect("memory takes all");
    }
    if state.may_ack() {
        state.ack().expect("memory takes all");
    }
    state.complete().expect("memory takes all")
}

fn check_second_open(storage: &MemoryStorage) {
    let open = || State::open(Arc::new(storage.clone()), RANDOM).expect("it opened before");
    let clock = Arc::clone(open().clock());
    assert_eq!(open().clock(), &clock, "the clock of a second open");
}
