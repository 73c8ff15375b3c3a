//! Shows that the simulator would notice: how many seeds it takes until a mistake that was made on
//! purpose is found.

use level_replicator_core::mistake::Mistake;

use crate::oracle::Broken;
use crate::plan::{Profile, profile};
use crate::sweep::Sweep;

/// Where a mistake was noticed.
pub struct Caught {
    /// In which kind of runs.
    pub profile: &'static Profile,
    /// After so many seeds, counted from seed 0.
    pub seeds: u64,
    /// What broke first.
    pub broken: Broken,
}

/// The profile whose runs make a mistake matter. Where none is named, the standard one does.
fn where_it_matters(mistake: Mistake) -> &'static str {
    match mistake {
        Mistake::FramesUnnumbered | Mistake::FramesForAnybody => "network",
        Mistake::GapsClosedByTime | Mistake::GapsWrittenAgain | Mistake::CutRoundUntold => "gaps",
        Mistake::WholeThoughReplaced => "copies",
        Mistake::DamageSkipped
        | Mistake::ClaimOverDamage
        | Mistake::ClockNotTakenBack
        | Mistake::ClosedAgain => "disk",
        _ => "standard",
    }
}

/// Runs seeds from 0 on until the mistake is noticed; `None` if `seeds_max` of them do not.
pub fn catch(mistake: Mistake, seeds_max: u64) -> Option<Caught> {
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
        profile,
        seeds: failed.seed + 1,
        broken: failed.broken,
    })
}
