//! How often to talk: the more is written here, the more often.

use std::time::Duration;

use crate::clock::{Now, micros};
use crate::config::Config;

/// Time in which the memory of past writes fades to a third.
const MEMORY: Duration = Duration::from_secs(5);

/// An exponentially decayed rate of local writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteVelocity {
    per_second: f64,
    as_of_us: u64,
}

impl WriteVelocity {
    /// Counts writes.
    pub fn record_writes(&mut self, now: Now, writes: u64) {
        self.per_second = self.per_second(now) + writes as f64 / MEMORY.as_secs_f64();
        self.as_of_us = now.steady_us;
    }

    /// Writes per second, recent ones weighing more.
    pub fn per_second(&self, now: Now) -> f64 {
        let age = now.steady_us.saturating_sub(self.as_of_us) as f64;
        self.per_second * (-age / micros(MEMORY) as f64).exp()
    }

    /// The pause between two conversations with a peer, in microseconds: about one conversation a
    /// write, within the bounds of the configuration.
    pub fn interval_us(&self, now: Now, config: &Config) -> u64 {
        let (min, max) = (micros(config.min_interval), micros(config.idle_interval));
        let per_second = self.per_second(now);
        if per_second * max as f64 <= 1e6 {
            return max;
        }
        ((1e6 / per_second) as u64).clamp(min, max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_ms(ms: u64) -> Now {
        Now {
            wall_us: 0,
            steady_us: ms * 1_000,
        }
    }

    #[test]
    fn writes_shorten_the_interval_and_silence_stretches_it_again() {
        let config = Config::default();
        let mut velocity = WriteVelocity::default();
        assert_eq!(velocity.interval_us(at_ms(0), &config), 30_000_000);

        velocity.record_writes(at_ms(0), 10_000);
        assert_eq!(velocity.interval_us(at_ms(0), &config), 10_000);

        let later: Vec<u64> = [10, 20, 30, 40, 60]
            .iter()
            .map(|seconds| velocity.interval_us(at_ms(seconds * 1_000), &config))
            .collect();
        assert!(later.is_sorted(), "{later:?}");
        assert_eq!(later[4], 30_000_000);
    }
}
