//! Many runs: a range of seeds, on several threads, with what happened in all of them.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use level_replicator_core::mistake::{Mistake, plant};

use crate::oracle::Broken;
use crate::plan::{Plan, Profile};
use crate::run::run;
use crate::trace::Counts;

/// Failures after which a sweep ends.
const FAILURES_MAX: usize = 10;

/// What to run.
pub struct Sweep {
    /// Which kind of runs.
    pub profile: &'static Profile,
    /// Which seeds.
    pub seeds: Range<u64>,
    /// How many replicas; `None` leaves it to the profile.
    pub replicas: Option<usize>,
    /// No run begins after so long.
    pub time_max: Option<Duration>,
    /// Threads.
    pub jobs: usize,
    /// One seed in so many is run twice, and both runs must be the same byte for byte.
    pub twice_every: u64,
    /// What the core does wrong on purpose.
    pub mistake: Option<Mistake>,
    /// Whether the first failure ends the sweep.
    pub stops_at_first: bool,
}

/// A run that failed.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Its seed.
    pub seed: u64,
    /// When in virtual microseconds.
    pub at_us: u64,
    /// What broke first.
    pub broken: Broken,
}

/// What came of a sweep.
#[derive(Debug, Default)]
pub struct Report {
    /// Runs that came to an end.
    pub runs: u64,
    /// Runs that were compared with a second one of the same seed.
    pub compared: u64,
    /// What happened in all of them.
    pub counts: Counts,
    /// Those that failed, in the order of seeds.
    pub failed: Vec<Failed>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// What the profile is there for and did not happen; told for a thousand runs or more.
    pub fn not_exercised(&self, profile: &Profile) -> Vec<&'static str> {
        if self.runs < 1_000 {
            return Vec::new();
        }
        let must = profile.must_happen.iter().copied();
        must.filter(|what| self.counts.get(what) == 0).collect()
    }
}

impl Sweep {
    /// Runs all seeds; `progress` is called now and then with what there is so far.
    pub fn run(&self, progress: impl Fn(&Report) + Sync) -> Report {
        let began = Instant::now();
        let next = AtomicU64::new(self.seeds.start);
        let is_over = AtomicBool::new(false);
        let report = Mutex::new(Report::default());
        let work = || {
            plant(self.mistake);
            while !is_over.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                let is_late = self.time_max.is_some_and(|max| began.elapsed() >= max);
                if seed >= self.seeds.end || is_late {
                    break;
                }
                let (counts, failed, compared) = self.run_seed(seed);
                let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                report.runs += 1;
                report.compared += u64::from(compared);
                report.counts.join(&counts);
                report.failed.extend(failed);
                report.took = began.elapsed();
                let failures = report.failed.len();
                if failures >= FAILURES_MAX || (self.stops_at_first && failures > 0) {
                    is_over.store(true, Ordering::Relaxed);
                }
                progress(&report);
            }
            plant(None);
        };
        std::thread::scope(|scope| {
            for _ in 1..self.jobs.max(1) {
                scope.spawn(work);
            }
            work();
        });
        let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.failed.sort_by_key(|failed| failed.seed);
        report.took = began.elapsed();
        report
    }

    fn run_seed(&self, seed: u64) -> (Counts, Option<Failed>, bool) {
        let plan = Plan::new(self.profile, seed, self.replicas);
        let outcome = run(&plan, false);
        let mut failure = outcome.failure;
        let compared = failure.is_none() && seed.is_multiple_of(self.twice_every.max(1));
        if compared && run(&plan, false).digest != outcome.digest {
            let how = "two runs of one seed were not the same".to_owned();
            let invariant = "R repeat";
            failure = Some((0, Broken { invariant, how }));
        }
        let failed = failure.map(|(at_us, broken)| Failed {
            seed,
            at_us,
            broken,
        });
        (outcome.counts, failed, compared)
    }
}
