//! The storage in memory passes the conformance suite, and the suite refuses storages that are at fault.

mod faulty;

use faulty::Fault;
use level_replicator_core::storage::Storage;
use level_replicator_core::storage::conformance::{self, Engine, Failure, Job};
use level_replicator_core::storage::memory::MemoryStorage;

struct InMemory;

impl Engine for InMemory {
    type Place = MemoryStorage;

    fn new_place(&self) -> MemoryStorage {
        MemoryStorage::new()
    }

    fn open(&self, place: &MemoryStorage) -> Box<dyn Storage> {
        Box::new(place.clone())
    }

    fn run_both(&self, one: Job<'_>, other: Job<'_>) {
        run_both(one, other);
    }
}

fn run_both(one: Job<'_>, other: Job<'_>) {
    std::thread::scope(|scope| {
        scope.spawn(one);
        other();
    });
}

#[test]
fn the_storage_in_memory_conforms() {
    conformance::check(&InMemory);
}

#[test]
fn an_engine_that_keeps_nothing_conforms_unless_it_says_that_it_does() {
    struct Forgetful {
        keeps_tables: bool,
    }

    impl Engine for Forgetful {
        type Place = ();

        fn new_place(&self) {}

        fn open(&self, (): &()) -> Box<dyn Storage> {
            Box::new(MemoryStorage::new())
        }

        fn run_both(&self, one: Job<'_>, other: Job<'_>) {
            run_both(one, other);
        }

        fn keeps_tables(&self) -> bool {
            self.keeps_tables
        }
    }

    conformance::check(&Forgetful {
        keeps_tables: false,
    });
    for case in [
        "what_was_committed_is_there_after_a_close",
        "what_was_committed_is_there_after_a_drop_without_a_close",
        "random_operations_agree_with_a_model",
    ] {
        refuse(&Forgetful { keeps_tables: true }, case);
    }
}

#[test]
fn a_job_that_is_not_run_is_noticed() {
    struct Idle;

    impl Engine for Idle {
        type Place = MemoryStorage;

        fn new_place(&self) -> MemoryStorage {
            MemoryStorage::new()
        }

        fn open(&self, place: &MemoryStorage) -> Box<dyn Storage> {
            Box::new(place.clone())
        }

        fn run_both(&self, one: Job<'_>, _: Job<'_>) {
            one();
        }
    }

    for case in ["no_snapshot_sees_half_a_batch", "no_get_sees_half_a_batch"] {
        let failure = refuse(&Idle, case);
        assert!(failure.difference.contains("was not run"), "{failure}");
    }
}

#[test]
fn the_faulty_storage_conforms_as_long_as_it_has_no_fault() {
    conformance::check(&Fault::None);
}

#[test]
fn the_panic_names_the_cases_that_failed_and_what_differed() {
    let panic = std::panic::catch_unwind(|| conformance::check(&Fault::EmptyBatchesAreRefused));

    let panic = panic.expect_err("it is refused");
    let text = *panic.downcast::<String>().expect("a text");
    assert!(text.starts_with("the engine fails "), "{text}");
    let line = "\n  an_empty_batch_changes_nothing: the engine answered with an error: \
                cannot commit a batch: it is empty";
    assert!(text.contains(line), "{text}");
}

#[test]
fn each_fault_is_found_by_the_case_that_is_named_for_it() {
    for (fault, case) in [
        (
            Fault::RemovalsAreForgotten,
            "a_value_comes_back_until_it_is_removed",
        ),
        (
            Fault::EmptyValuesAreAbsent,
            "the_empty_key_and_the_empty_value_are_like_any_other",
        ),
        (
            Fault::KeysEndAtAZero,
            "every_byte_may_stand_in_a_key_and_in_a_value",
        ),
        (
            Fault::LongKeysAreCut,
            "the_longest_keys_and_large_values_come_back",
        ),
        (
            Fault::LargeValuesAreCut,
            "the_longest_keys_and_large_values_come_back",
        ),
        (Fault::TwoTablesAreOne, "tables_do_not_mix"),
        (Fault::RangesRunIntoTheNextTable, "tables_do_not_mix"),
        (
            Fault::FirstChangeCounts,
            "of_two_changes_of_one_key_the_later_counts",
        ),
        (Fault::BatchesLoseTheirEnd, "a_large_batch_is_done_whole"),
        (
            Fault::EmptyBatchesAreRefused,
            "an_empty_batch_changes_nothing",
        ),
        (Fault::ReadsLagBehind, "a_commit_is_seen_at_once"),
        (
            Fault::BytesAreSigned,
            "keys_come_in_the_order_of_their_bytes",
        ),
        (Fault::StartIsAlwaysExcluded, "a_range_keeps_to_its_bounds"),
        (Fault::EndIsAlwaysIncluded, "a_range_keeps_to_its_bounds"),
        (
            Fault::BackIsFront,
            "a_range_read_from_the_back_is_the_same_backwards",
        ),
        (
            Fault::EndsPassEachOther,
            "a_range_read_from_both_ends_meets_once",
        ),
        (
            Fault::InvertedRangesPanic,
            "an_empty_or_inverted_range_gives_nothing",
        ),
        (Fault::LongBoundsPanic, "a_bound_may_be_longer_than_any_key"),
        (Fault::LongBoundsPanic, "a_key_longer_than_any_has_no_value"),
        (
            Fault::SnapshotsFollowCommits,
            "a_snapshot_does_not_see_later_commits",
        ),
        (
            Fault::RangesFollowCommits,
            "an_open_range_does_not_see_later_commits",
        ),
        (
            Fault::SnapshotsEndWithTheStorage,
            "a_snapshot_outlives_its_storage",
        ),
        (Fault::BatchesShowInParts, "no_snapshot_sees_half_a_batch"),
        (Fault::GetsShowBatchesInParts, "no_get_sees_half_a_batch"),
        (
            Fault::LostWithoutAClose,
            "what_was_committed_is_there_after_a_drop_without_a_close",
        ),
        (
            Fault::RemovedComesBack,
            "what_was_committed_is_there_after_a_close",
        ),
    ] {
        // Shown if the case finds nothing wrong.
        eprintln!("{fault:?}");
        refuse(&fault, case);
    }
}

/// Tries one case, which the engine must fail.
fn refuse(engine: &impl Engine, name: &str) -> Failure {
    let case = conformance::cases().find(|case| case.name() == name);
    let case = case.unwrap_or_else(|| panic!("there is no case {name}"));
    let Err(failure) = case.check(engine) else {
        panic!("{name} finds nothing wrong");
    };
    assert_eq!(failure.case, name);
    failure
}
