//! The clocks of this machine, read once per call of the core.

use std::time::{Duration, Instant, SystemTime};

use level_replicator_core::clock::{Now, micros};

/// Tells the time from the moment it was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub(crate) fn start() -> SystemClock {
        SystemClock {
            start: Instant::now(),
        }
    }

    /// Both clocks as the core wants them. A wall clock before 1970 counts as 1970.
    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Now {
            wall_us: micros(wall.unwrap_or_default()),
            steady_us: micros(self.start.elapsed()),
        }
    }

    /// The moment at which the steady clock shows `steady_us`.
    pub(crate) fn instant(&self, steady_us: u64) -> Instant {
        self.start + Duration::from_micros(steady_us)
    }
}

/// The moment that lies this many microseconds after the beginning of 1970.
pub(crate) fn wall_time(wall_us: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(wall_us)
}

/// The moment after a timeout that a caller chose; one too far away to be told is a year away.
pub(crate) fn deadline(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + timeout.min(YEAR)
}
