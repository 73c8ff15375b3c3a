//! Every setting of a replica, with its default and its unit; checked once, when it is opened.

use std::time::Duration;

use crate::address::Address;
use crate::limits::{
    CLUSTER_BYTES_MAX, RANGE_KEYS, RANGES_PER_REACHED, RECORD_VALUES_MAX, VALUE_BYTES_CEILING,
    VALUE_BYTES_MAX,
};

/// Longest duration of any setting.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Settings of a replica.
#[derive(Debug, Clone)]
pub struct Config {
    /// Replicas of different clusters never talk. Default "default".
    pub cluster: String,
    /// Where peers can reach this replica, if they can. Default none.
    pub advertised: Option<Address>,
    /// Longest pause between two conversations with a peer. Default 30 s.
    pub idle_interval: Duration,
    /// Shortest pause between two conversations with a peer. Default 10 ms.
    pub min_interval: Duration,
    /// How long writes of others wait before they are offered on. Default 20 ms.
    pub relay_delay: Duration,
    /// How long a link stays open without news; 0 closes it after each exchange. Default 1 s.
    pub linger: Duration,
    /// How many peers are dialed at once in a cluster of more than eight. Default 3.
    pub fanout: usize,
    /// How long the first write waits for one conversation; 0 turns that off. Default 2 s.
    pub first_sync_timeout: Duration,
    /// How long a peer may take to introduce itself. Default 5 s.
    pub hello_timeout: Duration,
    /// How long a peer that owes an answer may be silent. Default 10 s.
    pub stall_timeout: Duration,
    /// How long one round may hold its snapshot. Default 10 s.
    pub round_time: Duration,
    /// Records of one round up to this many bytes become visible all at once. Default 1 MiB.
    pub atomic_budget: usize,
    /// Bytes of records that may be under way to a peer. Default 1 MiB.
    pub window: usize,
    /// Keys in one range that is compared at once. Default 256.
    pub range_keys: usize,
    /// Ranges after which it is said how far a comparison has come, so that it can go on from there
    /// if it is cut. Default 16.
    pub ranges_per_reached: usize,
    /// Longest value in bytes, inclusive. Default 8 MiB, at most 64 MiB.
    pub value_bytes_max: usize,
    /// Most links at once, both ways together. Default 256.
    pub links_max: usize,
    /// First pause after a failed attempt to reach a peer; it doubles from there. Default 50 ms.
    pub backoff_min: Duration,
    /// Longest pause after failed attempts. Default 5 s.
    pub backoff_max: Duration,
    /// How long a replica that misses a claim, or whose heal was cut, waits for somebody who could help.
    /// Default 60 s.
    pub promote_timeout: Duration,
    /// How long what is written and deleted stays as it is before all members are asked whether they
    /// know it, so that it can be reclaimed. Default 2 s.
    pub reclaim_interval: Duration,
    /// The pause between two steps of reclaiming, which keep local writers waiting for about a
    /// millisecond each. Default 0.2 ms.
    pub reclaim_pause: Duration,
    /// How long a cut that nobody may know any more is waited for before another is proposed; it
    /// doubles each time. Default 30 s.
    pub overdue: Duration,
    /// How long the expired values of a replica that is gone for good stay before another deletes them.
    /// Default one day.
    pub expiry_grace: Duration,
    /// How long a member may be silent before deletes are reclaimed without it. When it comes back it is
    /// healed, and what it wrote meanwhile survives. Default 14 days.
    pub horizon: Duration,
    /// Whether changes are kept for programs that follow them. Default: as it was.
    pub change_feed: ChangeFeed,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cluster: "default".to_owned(),
            advertised: None,
            idle_interval: Duration::from_secs(30),
            min_interval: Duration::from_millis(10),
            relay_delay: Duration::from_millis(20),
            linger: Duration::from_secs(1),
            fanout: 3,
            first_sync_timeout: Duration::from_secs(2),
            hello_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(10),
            round_time: Duration::from_secs(10),
            atomic_budget: 1 << 20,
            window: 1 << 20,
            range_keys: RANGE_KEYS,
            ranges_per_reached: RANGES_PER_REACHED,
            value_bytes_max: VALUE_BYTES_MAX,
            links_max: 256,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            promote_timeout: Duration::from_secs(60),
            reclaim_interval: Duration::from_secs(2),
            reclaim_pause: Duration::from_micros(200),
            overdue: Duration::from_secs(30),
            expiry_grace: Duration::from_secs(24 * 60 * 60),
            horizon: Duration::from_secs(14 * 24 * 60 * 60),
            change_feed: ChangeFeed::AsItWas,
        }
    }
}

/// Whether changes are kept for programs that follow them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeFeed {
    /// As when the replica was opened the last time; not if it is new.
    AsItWas,
    /// Not; what was kept is forgotten. It costs nothing.
    Off,
    /// At least so many.
    Keep(u64),
}

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {problem}")]
pub struct ConfigError {
    /// Which setting.
    pub setting: &'static str,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl Config {
    /// Checks every setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |setting, problem: String| Err(ConfigError { setting, problem });
        if self.cluster.is_empty() || self.cluster.len() > CLUSTER_BYTES_MAX {
            let len = self.cluster.len();
            return refuse(
                "cluster",
                format!("has a name of {len} bytes: choose 1 to {CLUSTER_BYTES_MAX}"),
            );
        }
        if self.value_bytes_max > VALUE_BYTES_CEILING {
            let max = self.value_bytes_max;
            return refuse(
                "value_bytes_max",
                format!("is {max}: choose at most {VALUE_BYTES_CEILING}"),
            );
        }
        if self.min_interval.is_zero() || self.min_interval > self.idle_interval {
            return refuse(
                "min_interval",
                "must be more than 0 and at most idle_interval".to_owned(),
            );
        }
        if self.backoff_min.is_zero() || self.backoff_min > self.backoff_max {
            return refuse(
                "backoff_min",
                "must be more than 0 and at most backoff_max".to_owned(),
            );
        }
        for (setting, value) in [
            ("idle_interval", self.idle_interval),
            ("relay_delay", self.relay_delay),
            ("linger", self.linger),
            ("first_sync_timeout", self.first_sync_timeout),
            ("hello_timeout", self.hello_timeout),
            ("stall_timeout", self.stall_timeout),
            ("round_time", self.round_time),
            ("backoff_max", self.backoff_max),
            ("promote_timeout", self.promote_timeout),
            ("reclaim_interval", self.reclaim_interval),
            ("reclaim_pause", self.reclaim_pause),
            ("overdue", self.overdue),
            ("expiry_grace", self.expiry_grace),
            ("horizon", self.horizon),
        ] {
            if value > DURATION_MAX {
                return refuse(setting, "is more than a year: choose less".to_owned());
            }
        }
        for (setting, value) in [
            ("hello_timeout", self.hello_timeout),
            ("stall_timeout", self.stall_timeout),
            ("round_time", self.round_time),
            ("reclaim_interval", self.reclaim_interval),
            ("overdue", self.overdue),
            ("horizon", self.horizon),
        ] {
            if value.is_zero() {
                return refuse(
                    setting,
                    "is 0: nothing could be answered in time".to_owned(),
                );
            }
        }
        for (setting, value) in [
            ("fanout", self.fanout),
            ("links_max", self.links_max),
            ("window", self.window),
            ("range_keys", self.range_keys),
            ("ranges_per_reached", self.ranges_per_reached),
        ] {
            if value == 0 {
                return refuse(setting, "is 0: choose at least 1".to_owned());
            }
        }
        Ok(())
    }

    /// Bytes that one record may have on the wire: its fragments are put together in memory.
    pub fn record_bytes_max(&self) -> usize {
        RECORD_VALUES_MAX * self.value_bytes_max.max(VALUE_BYTES_MAX)
    }
}
