//! A checker that stays silent is itself at fault: every mistake that can be planted is noticed.

use level_replicator_core::mistake::{Mistake, plant};
use level_replicator_sim::catch::catch;
use level_replicator_sim::minimize::minimize;
use level_replicator_sim::plan::{Plan, profile};
use level_replicator_sim::run::run;

/// Seeds within which each mistake must be noticed, whatever else changes.
const SEEDS_MAX: u64 = 6_000;

#[test]
fn every_mistake_is_noticed_within_a_bounded_number_of_seeds() {
    let mut unnoticed = Vec::new();
    for &mistake in Mistake::ALL {
        match catch(mistake, SEEDS_MAX) {
            Some(caught) => eprintln!(
                "{}: {} seeds of '{}', {}",
                mistake.name(),
                caught.seeds,
                caught.place,
                caught.broken.invariant
            ),
            None => unnoticed.push(mistake.name()),
        }
    }
    assert!(unnoticed.is_empty(), "nobody notices {unnoticed:?}");
}

#[test]
fn a_failing_schedule_is_made_small_and_still_fails_in_the_same_way() {
    let standard = profile("standard").expect("the first profile");
    let mistake = Mistake::ClockPerWriter;
    plant(Some(mistake));
    let failing = (0..200).map(|seed| Plan::new(standard, seed, None));
    let found = failing
        .filter_map(|plan| Some((run(&plan, false).failure?, plan)))
        .next();
    let ((_, broken), plan) = found.expect("it is noticed");

    let smaller = minimize(&plan, &broken, 400);

    let failure = run(&smaller, false)
        .failure
        .map(|(_, broken)| broken.invariant);
    plant(None);
    assert_eq!(failure, Some(broken.invariant));
    assert!(
        smaller.actions.len() * 4 < plan.actions.len(),
        "{} of {} actions are left",
        smaller.actions.len(),
        plan.actions.len()
    );
}
