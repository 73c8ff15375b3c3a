//! Shows that the simulator would notice: how many seeds it takes until a mistake that was made on
//! purpose is found.

use std::panic::{AssertUnwindSafe, catch_unwind};

use level_replicator_core::mistake::{Mistake, plant};

use crate::oracle::Broken;
use crate::plan::profile;
use crate::script;
use crate::sweep::Sweep;

/// Where a mistake was noticed.
pub struct Caught {
    /// In which kind of runs, or in which story.
    pub place: &'static str,
    /// After so many seeds, counted from seed 0; 0 in a story.
    pub seeds: u64,
    /// What broke first.
    pub broken: Broken,
}

/// The profile whose runs make a mistake matter. Where none is named, the standard one does.
fn where_it_matters(mistake: Mistake) -> &'static str {
    match mistake {
        Mistake::FramesUnnumbered | Mistake::FramesForAnybody | Mistake::HalfHealedByAnybody => {
            "network"
        }
        Mistake::GapsClosedByTime | Mistake::GapsWrittenAgain | Mistake::CutRoundUntold => "gaps",
        Mistake::WholeThoughReplaced => "copies",
        Mistake::DamageSkipped
        | Mistake::ClaimOverDamage
        | Mistake::ClockNotTakenBack
        | Mistake::ClosedAgain => "disk",
        Mistake::HalfHealedServes => "heals",
        Mistake::HealWithoutClock | Mistake::NoFloorCheck => "exclusion",
        Mistake::WaitingForgotten
        | Mistake::EpochWithoutMembers
        | Mistake::TombstonesByAge
        | Mistake::StripByOwnClock => "reclaim",
        _ => "standard",
    }
}

/// The story of a schedule that chance hardly ever meets, and its name.
fn story(mistake: Mistake) -> Option<(&'static str, &'static str)> {
    Some(match mistake {
        Mistake::AckEarly => (
            "story 14",
            include_str!("../scenarios/14_proposer_dies.txt"),
        ),
        Mistake::DeleteOverGap => (
            "story 26",
            include_str!("../scenarios/26_delete_above_a_gap.txt"),
        ),
        Mistake::FloorNotAdopted => (
            "story 32",
            include_str!("../scenarios/32_reclaimed_beside_a_concurrent_write.txt"),
        ),
        Mistake::HealBesideOthers => (
            "story 33",
            include_str!("../scenarios/33_another_beside_a_heal.txt"),
        ),
        Mistake::CutNotClosed => (
            "story 34",
            include_str!("../scenarios/34_history_through_a_parent.txt"),
        ),
        Mistake::ScrubHalfHealed => (
            "story 36",
            include_str!("../scenarios/36_promoted_beside_the_stale.txt"),
        ),
        Mistake::PushBelowFloor => (
            "story 37",
            include_str!("../scenarios/37_push_below_the_floor.txt"),
        ),
        Mistake::WantedForgotten => (
            "story 38",
            include_str!("../scenarios/38_known_by_another_way.txt"),
        ),
        Mistake::ResumedClaimsAll => ("story 42", include_str!("../scenarios/42_heal_goes_on.txt")),
        Mistake::ProgressKept => (
            "story 43",
            include_str!("../scenarios/43_another_between_two_heals.txt"),
        ),
        Mistake::ResumedByAnybody => (
            "story 44",
            include_str!("../scenarios/44_healed_by_one_who_knows_less.txt"),
        ),
        Mistake::ResumedIsWhole => (
            "story 45",
            include_str!("../scenarios/45_half_a_batch_behind_a_heal.txt"),
        ),
        Mistake::ReachedOverDamage => (
            "story 46",
            include_str!("../scenarios/46_damage_behind_a_heal.txt"),
        ),
        _ => return None,
    })
}

/// Plays a story with a mistake; what the oracle objects to first. A panic is an objection.
fn play(text: &str, mistake: Mistake) -> Option<Broken> {
    plant(Some(mistake));
    let played = catch_unwind(AssertUnwindSafe(|| script::run(text)));
    plant(None);
    let objection = match played {
        Ok(played) => played.broken.first().map(ToString::to_string),
        Err(_) => Some("a panic".to_owned()),
    };
    objection.map(|how| Broken {
        invariant: "story",
        how,
    })
}

/// Plays the mistake's story if it has one; else runs seeds from 0 on until the mistake is noticed.
/// `None` if `seeds_max` of them do not.
pub fn catch(mistake: Mistake, seeds_max: u64) -> Option<Caught> {
    if let Some((place, text)) = story(mistake) {
        let broken = play(text, mistake)?;
        return Some(Caught {
            place,
            seeds: 0,
            broken,
        });
    }
    let profile = profile(where_it_matters(mistake))?;
    let sweep = Sweep {
        profile,
        seeds: 0..seeds_max,
        replicas: None,
        time_max: None,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        twice_every: u64::MAX,
        mistake: Some(mistake),
        stops_at_first: true,
    };
    let failed = sweep.run(|_| ()).failed.into_iter().next()?;
    Some(Caught {
        place: profile.name,
        seeds: failed.seed + 1,
        broken: failed.broken,
    })
}
