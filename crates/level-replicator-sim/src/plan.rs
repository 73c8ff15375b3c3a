//! What is going to happen in a run: everything that chance decides before it begins.
//!
//! A plan is a list of actions at given times. Taking one of them away leaves the others as they
//! are, so a failing plan can be made smaller until only what matters is left.

mod action;
mod profile;

use std::time::Duration;

use level_replicator_core::config::Config;

pub use self::action::{Action, Change};
use self::profile::Kind;
pub use self::profile::{PROFILES, Profile, profile};
use crate::chance::{chance, percent};
use crate::cluster::Weather;

const HOUR_US: i64 = 3_600 * 1_000_000;
const YEAR_US: i64 = 365 * 24 * HOUR_US;

/// Who knows whose address at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// Everybody knows everybody.
    Full,
    /// Each knows the next, the last the first.
    Ring,
    /// Each knows the one before.
    Chain,
    /// All know the first.
    Star,
    /// Each knows some one before it.
    Random,
}

/// Everything that chance decides before a run begins.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it comes from.
    pub seed: u64,
    /// The name of its profile.
    pub profile: &'static str,
    /// How many replicas there are at first.
    pub replicas: usize,
    /// Who knows whom.
    pub topology: Topology,
    /// The settings of every replica.
    pub config: Config,
    /// What links do.
    pub weather: Weather,
    /// How many keys are written.
    pub keys: usize,
    /// What happens, and when, in microseconds; in the order of time.
    pub actions: Vec<(u64, Action)>,
}

impl Plan {
    /// The plan of a seed. `replicas` overrides how many there are.
    pub fn new(profile: &Profile, seed: u64, replicas: Option<usize>) -> Plan {
        let mut luck = chance(seed, &[0]);
        let luck = &mut luck;
        let (least, most) = profile.replicas;
        let replicas = replicas.unwrap_or_else(|| luck.usize(least..=most));
        let delay_max_us = pick(luck, &[100, 1_000, 5_000, 40_000]);
        let keys = luck.usize(1..=profile.keys);
        let config = config(luck, profile);
        let topology = pick(
            luck,
            &[
                Topology::Full,
                Topology::Ring,
                Topology::Chain,
                Topology::Star,
                Topology::Random,
            ],
        );
        let mut plan = Plan {
            seed,
            profile: profile.name,
            replicas,
            topology,
            config,
            weather: Weather {
                delay_min_us: 50,
                delay_max_us,
                split_percent: pick(luck, &[0, 10, 50]),
                garble_permille: if percent(luck, 50) {
                    profile.garble_permille
                } else {
                    0
                },
            },
            keys,
            actions: Vec::new(),
        };
        let count = luck.usize(profile.actions.0..=profile.actions.1);
        let pace_us = pick(luck, &[300, 3_000, 30_000, 200_000]);
        let mut at = 1_000_000 + luck.u64(..1_000_000);
        let mut values = 0;
        for _ in 0..count {
            at += luck.u64(..2 * pace_us);
            let action = plan.action(profile, luck, pace_us, &mut values);
            plan.actions.push((at, action));
        }
        plan
    }

    fn action(
        &self,
        profile: &Profile,
        luck: &mut fastrand::Rng,
        pace_us: u64,
        values: &mut u64,
    ) -> Action {
        let node = luck.usize(..self.replicas + 1);
        let peer = luck.usize(..self.replicas + 1);
        let away_us = pace_us * pick(luck, &[1, 1, 4, 20]) + pick(luck, &[0, 1_000, 20_000]);
        match profile.kind(luck) {
            Kind::Write => Action::Write {
                node,
                ops: self.ops(profile, luck, values),
            },
            Kind::Read => Action::Read { node },
            Kind::Sync => Action::Sync { node },
            Kind::Cut if percent(luck, 50) => Action::CutOneWay {
                from: node,
                to: peer,
            },
            Kind::Cut => Action::Partition { side: luck.u64(..) },
            Kind::Heal => Action::Heal,
            Kind::Slow => Action::SlowDown {
                a: node,
                b: peer,
                bytes_per_ms: pick(luck, &[1, 20, 500]),
            },
            Kind::Break => Action::BreakLink {
                choice: luck.u64(..),
                silently: percent(luck, 25),
            },
            Kind::Kill => Action::Kill {
                node,
                silently: percent(luck, 25),
                lost: 0,
                away_us,
                again: again(luck, profile),
            },
            Kind::PowerLoss => Action::Kill {
                node,
                silently: percent(luck, 80),
                lost: luck.usize(1..12),
                away_us,
                again: again(luck, profile),
            },
            Kind::Crash => Action::CrashAtCommit {
                node,
                after: luck.u32(..6),
                done: percent(luck, 50),
                lost: if percent(luck, 25) {
                    luck.usize(1..8)
                } else {
                    0
                },
            },
            Kind::Close => Action::CloseAndOpen { node, away_us },
            Kind::Pause => Action::Pause {
                node,
                for_us: away_us,
            },
            Kind::Full => Action::FillDisk {
                node,
                for_us: away_us,
            },
            Kind::Fail => Action::FailDisk {
                node,
                operations: luck.u32(1..6),
            },
            Kind::Damage => Action::Damage {
                node,
                key: luck.usize(..self.keys),
                bit: luck.u64(..),
                for_us: away_us,
            },
            Kind::BackUp => Action::BackUp { node },
            Kind::Restore => Action::Restore {
                choice: luck.u64(..),
                again: again(luck, profile),
            },
            Kind::Clone => Action::Clone { node },
            Kind::Join => Action::Join {
                knows: node,
                again: if profile.dies_often {
                    again(luck, profile)
                } else {
                    Vec::new()
                },
            },
            Kind::Die => Action::Die { node },
            Kind::Clock => {
                let second = 1_000_000;
                Action::SetClock {
                    node,
                    off_us: pick(
                        luck,
                        &[
                            0,
                            1,
                            -1,
                            second,
                            -second,
                            HOUR_US,
                            -HOUR_US,
                            YEAR_US,
                            -20 * YEAR_US,
                        ],
                    ),
                    tick_us: pick(luck, &[1, 1, 1_000, 1_000_000, 60_000_000]),
                }
            }
            Kind::Discover => Action::Discover { node, peer },
            Kind::Forget => Action::Forget { node, peer },
            Kind::Replay if percent(luck, 50) => Action::Record {
                side: luck.usize(..2),
            },
            Kind::Replay => Action::Replay { node },
            Kind::Retire => Action::Retire { node, other: peer },
        }
    }

    fn ops(&self, profile: &Profile, luck: &mut fastrand::Rng, values: &mut u64) -> Vec<Change> {
        let is_batch = percent(luck, profile.batch_percent);
        let count = if is_batch { luck.usize(1..6) } else { 1 };
        let op = |_| {
            let key = luck.usize(..self.keys);
            if percent(luck, profile.delete_percent) {
                return Change {
                    key,
                    put: None,
                    expires_ms: None,
                };
            }
            *values += 1;
            let is_long = percent(luck, profile.long_percent);
            let max = profile.value_bytes_max;
            let len = if is_long {
                pick(luck, &[max, max / 2, max / 40])
            } else {
                0
            };
            // Chance of its own: profiles without expiry stay as they are.
            let mut own = chance(self.seed, &[11, *values]);
            let expires = percent(&mut own, profile.expiry_percent);
            Change {
                key,
                put: Some((*values, len)),
                expires_ms: expires.then(|| pick(&mut own, &[1, 30, 300, 2_000, 10_000])),
            }
        };
        (0..count).map(op).collect()
    }

    /// A line for each setting, for a person who reads a failure.
    pub fn settings(&self) -> String {
        let config = &self.config;
        format!(
            "{} replicas ({:?}), {} keys, links of {} to {} us, {} of 1000 pieces garbled, {} of 100 split;\n\
             linger {:?}, relay_delay {:?}, idle_interval {:?}, atomic_budget {}, window {}, round_time {:?}",
            self.replicas,
            self.topology,
            self.keys,
            self.weather.delay_min_us,
            self.weather.delay_max_us,
            self.weather.garble_permille,
            self.weather.split_percent,
            config.linger,
            config.relay_delay,
            config.idle_interval,
            config.atomic_budget,
            config.window,
            config.round_time,
        )
    }
}

fn config(luck: &mut fastrand::Rng, profile: &Profile) -> Config {
    Config {
        idle_interval: Duration::from_millis(pick(luck, &[300, 2_000, 30_000])),
        backoff_max: Duration::from_millis(pick(luck, &[200, 5_000])),
        stall_timeout: Duration::from_millis(pick(luck, &[1_000, 10_000])),
        hello_timeout: Duration::from_millis(pick(luck, &[1_000, 5_000])),
        round_time: Duration::from_millis(pick(luck, &[30, 10_000])),
        linger: Duration::from_millis(pick(luck, &[0, 30, 1_000])),
        relay_delay: Duration::from_millis(pick(luck, &[0, 20])),
        atomic_budget: pick(luck, &[0, 200, 100_000, 1 << 20]),
        window: pick(luck, &[1, 70_000, 1 << 20]),
        range_keys: pick(luck, &[1, 2, 256]),
        ranges_per_reached: pick(luck, &[1, 2, 16]),
        promote_timeout: Duration::from_millis(pick(luck, profile.promotes_ms)),
        reclaim_interval: Duration::from_millis(pick(luck, &[20, 200, 2_000])),
        reclaim_pause: Duration::from_micros(pick(luck, &[200, 20_000])),
        overdue: Duration::from_millis(pick(luck, &[500, 5_000])),
        horizon: Duration::from_millis(pick(luck, profile.horizons_ms)),
        first_sync_timeout: Duration::ZERO,
        expiry_grace: Duration::from_secs(2),
        ..Config::default()
    }
}

/// After how many commits a process dies, once for each of the next lives.
fn again(luck: &mut fastrand::Rng, profile: &Profile) -> Vec<u32> {
    if profile.dies_often && percent(luck, 70) {
        return (0..luck.u32(1..10)).map(|_| luck.u32(2..10)).collect();
    }
    let dies = percent(luck, 30).then(|| luck.u32(1..6));
    dies.into_iter().collect()
}

fn pick<T: Copy>(luck: &mut fastrand::Rng, choices: &[T]) -> T {
    choices[luck.usize(..choices.len())]
}
