//! Every mistake that can be planted is noticed: most by random schedules, the others by a test of
//! what chance meets too rarely, or cannot do.

use std::panic::{AssertUnwindSafe, catch_unwind};

use level_replicator_core::mistake::{Mistake, plant};

use crate::random_schedules::Run;
use crate::{crashes, damage};

/// Seeds that find what the first few hundred do not: tried before them.
const RARE: [u64; 2] = [807, 1054];

/// Whether a check fails with a mistake, and holds without it.
fn notices(check: impl Fn(), mistake: Mistake) -> bool {
    let holds = || catch_unwind(AssertUnwindSafe(&check)).is_ok();
    plant(Some(mistake));
    let noticed = !holds();
    plant(None);
    noticed && holds()
}

fn is_noticed(mistake: Mistake) -> bool {
    match mistake {
        Mistake::LogApart | Mistake::ClockApart => notices(
            crashes::a_crash_after_any_commit_leaves_records_log_and_clock_that_fit,
            mistake,
        ),
        Mistake::ClosedAgain => notices(
            crashes::a_gap_of_the_last_writer_stays_a_gap_at_the_next_open,
            mistake,
        ),
        Mistake::GapsClosedByTime => {
            notices(crashes::a_gap_stays_a_gap_when_nobody_claims_it, mistake)
        }
        Mistake::DamageSkipped => notices(
            damage::a_damaged_record_at_the_sender_is_not_sent_and_not_tried_again_at_once,
            mistake,
        ),
        _ => {
            let mut seeds = RARE.into_iter().chain(0..400);
            seeds.any(|seed| notices(|| Run::new(seed).run(), mistake))
        }
    }
}

#[test]
fn every_mistake_is_noticed() {
    let all = Mistake::ALL.iter().copied();
    let unnoticed: Vec<_> = all.filter(|mistake| !is_noticed(*mistake)).collect();

    assert!(unnoticed.is_empty(), "nobody notices {unnoticed:?}");
}

#[test]
fn a_mistake_is_found_by_its_name() {
    for &mistake in Mistake::ALL {
        assert_eq!(Mistake::by_name(mistake.name()), Some(mistake));
    }
    assert_eq!(Mistake::by_name("none"), None);
}
