//! What must hold of a replica's tables, whatever came.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Clock, Dot, Known, WriterId};
use level_replicator_core::limits::{CLOCK_RANGES_MAX, CLOCK_WRITERS_MAX, MEMBERS_MAX};
use level_replicator_core::log;
use level_replicator_core::record::{Record, Tally, decode_row};
use level_replicator_core::state::{State, scan_tally};
use level_replicator_core::storage::memory::MemoryStorage;
use level_replicator_core::storage::{Snapshot, Table};

fn rows(snapshot: &dyn Snapshot, table: Table) -> Vec<(Bytes, Bytes)> {
    let entries = snapshot.range(table, Bound::Unbounded, Bound::Unbounded);
    entries
        .map(|entry| entry.expect("memory reads all"))
        .collect()
}

/// Checks that data, log, histories and sums agree with each other and with the clock.
pub(super) fn check(state: &State) {
    let snapshot = state.storage().snapshot();
    let mut ghosts = Vec::new();
    for (key, row) in rows(&*snapshot, Table::Data) {
        let record = decode_row(&key, row, state.writers()).expect("what is stored can be read");
        check_record(state, &*snapshot, &key, &record);
        if record.live.is_empty() {
            ghosts.push(key);
        }
    }
    for (row, value) in rows(&*snapshot, Table::Log) {
        let dot = dot_of(state, &row);
        let key = log::key_of(&row, &value).expect("what is stored can be read");
        let record = state.record(&key).expect("what is stored can be read");
        // What is below the floor may not have been removed yet, whatever became of its record.
        assert!(
            record.holds(dot) || is_unlogged(state, dot),
            "the log names {} for {dot}, which does not hold it",
            key.escape_ascii()
        );
    }
    let pending = rows(&*snapshot, Table::Pending).into_iter();
    let pending: Vec<Bytes> = pending.map(|(key, _)| key).collect();
    assert_eq!(pending, ghosts, "histories without a live write are listed");
    assert_eq!(state.ghosts(), ghosts.len() as u64, "they are counted");

    check_floor(state);
    assert!(
        state.tally().is_none_or(|told| told == tally(state)),
        "the tally is true"
    );
}

/// Whether a live write needs no log entry.
fn is_unlogged(state: &State, dot: Dot) -> bool {
    state.floor().contains(dot) || state.wanted().contains(dot)
}

fn check_floor(state: &State) {
    let (floor, clock) = (state.floor(), state.clock());
    assert!(clock.covers(floor), "the floor holds what is not known");
    assert_eq!(
        state.writers().closed_part(floor),
        **floor,
        "the floor has a gap below a writer"
    );
    for (name, told) in [
        ("floor", &**floor),
        ("wanted", &**state.wanted()),
        ("cut", &state.epoch().cut),
    ] {
        check_size(name, told);
    }
    assert!(state.members().len() <= MEMBERS_MAX, "too many members");
    assert!(
        state.epoch().acks.len() <= MEMBERS_MAX,
        "too many agreements"
    );
}

/// Checks that a clock is no larger than a clock may be.
pub(super) fn check_size(name: &str, clock: &Clock) {
    assert!(clock.len() <= CLOCK_WRITERS_MAX, "{name}: too many writers");
    let ranges: usize = clock.iter().map(|(_, known)| Known::ahead_len(known)).sum();
    assert!(ranges <= CLOCK_RANGES_MAX, "{name}: too many gaps");
}

/// Checks that a record which a floor may make smaller is found again.
fn check_waiting(state: &State, snapshot: &dyn Snapshot, key: &Bytes, record: &Record) {
    if !record.is_strippable() || record.is_ghost() {
        return;
    }
    let is_logged = |dot: Dot| {
        let ord = state.writers().ord(dot.writer);
        let row = log::row_key(ord.expect("writers are described"), dot.seq);
        let entry = snapshot.get(Table::Log, &row);
        entry.expect("memory reads all").is_some()
    };
    let waits = snapshot.get(Table::Waiting, key).expect("memory reads all");
    assert!(
        waits.is_some() || record.live.iter().any(|version| is_logged(version.dot)),
        "nothing leads to {}, of which something can be reclaimed",
        key.escape_ascii()
    );
}

/// The tally as the data says it.
pub(super) fn tally(state: &State) -> Tally {
    let snapshot = state.storage().snapshot();
    let scanned = scan_tally(&*snapshot, state.writers(), || true);
    let scanned = scanned.expect("what is stored can be read");
    scanned.expect("nothing stops the scan")
}

fn check_record(state: &State, snapshot: &dyn Snapshot, key: &Bytes, record: &Record) {
    let writers = state.writers();
    assert!(!record.is_empty(), "a row that holds nothing");
    check_waiting(state, snapshot, key, record);
    assert!(
        record.live.is_sorted_by(|a, b| a.dot < b.dot),
        "dots out of order"
    );
    for version in &record.live {
        let dot = version.dot;
        assert!(state.clock().contains(dot), "{dot} is live but not known");
        let ord = writers.ord(dot.writer).expect("writers are described");
        let row = log::row_key(ord, dot.seq);
        let entry = snapshot.get(Table::Log, &row).expect("memory reads all");
        if entry.is_none() && is_unlogged(state, dot) {
            continue;
        }
        let entry = entry.map(|entry| log::entry_of(&row, &entry).expect("a good entry"));
        let is_plain = record.live.len() == 1 && !record.is_strippable();
        assert!(
            entry
                .as_ref()
                .is_some_and(|(named, plain)| named == key && (*plain <= is_plain)),
            "{dot} is live under {} and the log says {entry:?}",
            key.escape_ascii()
        );
    }
}

fn dot_of(state: &State, row: &[u8]) -> Dot {
    let mut ord = [0; 4];
    ord.copy_from_slice(&row[..4]);
    let descriptor = state.writers().by_ord(u32::from_be_bytes(ord));
    let writer: WriterId = descriptor.expect("the log is of known writers").writer;
    let seq = log::seq_of(row).expect("a row of the log");
    Dot { writer, seq }
}

/// Checks that another process would find here what this one holds.
pub(super) fn check_open(storage: &MemoryStorage, held: &State, closed: bool) {
    let opened = State::open(Arc::new(storage.fork()), [0; 16]).expect("what is stored opens");
    assert_eq!(opened.clock(), held.clock(), "the clock of the next open");
    assert_eq!(
        opened.replica(),
        held.replica(),
        "the name of the next open"
    );
    assert_eq!(
        opened.ghosts(),
        held.ghosts(),
        "the histories of the next open"
    );
    assert_eq!(opened.floor(), held.floor(), "the floor of the next open");
    assert_eq!(opened.wanted(), held.wanted(), "what the next open wants");
    assert_eq!(opened.epoch(), held.epoch(), "the epoch of the next open");
    assert_eq!(
        opened.members(),
        held.members(),
        "the members of the next open"
    );
    assert_eq!(opened.rebuilt(), None, "what was stored is not damaged");
    let unclaimed = |state: &State| state.unclaimed().collect::<Vec<_>>();
    assert_eq!(
        unclaimed(&opened),
        unclaimed(held),
        "the unclaimed of the next open"
    );
    if closed {
        assert_eq!(opened.tally(), held.tally(), "the tally of the next open");
    }
}
