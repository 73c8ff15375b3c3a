//! What must hold of a replica's tables, whatever came.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use level_replicator_core::clock::{Dot, WriterId};
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
    for (row, key) in rows(&*snapshot, Table::Log) {
        let dot = dot_of(state, &row);
        let record = state.record(&key).expect("what is stored can be read");
        assert!(
            record.holds(dot),
            "the log names {} for {dot}, which does not hold it",
            key.escape_ascii()
        );
    }
    let pending = rows(&*snapshot, Table::Pending).into_iter();
    let pending: Vec<Bytes> = pending.map(|(key, _)| key).collect();
    assert_eq!(pending, ghosts, "histories without a live write are listed");
    assert_eq!(state.ghosts(), ghosts.len() as u64, "they are counted");

    assert!(
        state.tally().is_none_or(|told| told == tally(state)),
        "the tally is true"
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
    assert!(
        record.live.is_sorted_by(|a, b| a.dot < b.dot),
        "dots out of order"
    );
    for version in &record.live {
        let dot = version.dot;
        assert!(state.clock().contains(dot), "{dot} is live but not known");
        let ord = writers.ord(dot.writer).expect("writers are described");
        let entry = snapshot.get(Table::Log, &log::row_key(ord, dot.seq));
        let entry = entry.expect("memory reads all");
        assert!(
            entry.as_ref() == Some(key),
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
