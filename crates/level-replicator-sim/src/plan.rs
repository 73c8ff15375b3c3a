//! What is going to happen in a run: everything that chance decides before it begins.
//!
//! A plan is a list of actions at given times. Taking one of them away leaves the others as they
//! are, so a failing plan can be made smaller until only what matters is left.

use std::fmt;
use std::time::Duration;

use level_replicator_core::config::Config;

use crate::chance::{chance, percent};
use crate::cluster::Weather;
use crate::trace::Seconds;

const HOUR_US: i64 = 3_600 * 1_000_000;
const YEAR_US: i64 = 365 * 24 * HOUR_US;

/// Something that happens to a cluster from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A program writes operations as one.
    Write {
        /// Where.
        node: usize,
        /// On which keys, and what.
        ops: Vec<Change>,
    },
    /// A program reads every key.
    Read {
        /// Where.
        node: usize,
    },
    /// A program asks for a complete exchange with everybody.
    Sync {
        /// Where.
        node: usize,
    },
    /// One cannot reach another; the way back stays.
    CutOneWay {
        /// Who cannot reach.
        from: usize,
        /// Whom.
        to: usize,
    },
    /// The nodes of one side and those of the other cannot reach each other.
    Partition {
        /// One side, as bits.
        side: u64,
    },
    /// Every way is open again.
    Heal,
    /// A line becomes slow.
    SlowDown {
        /// One end.
        a: usize,
        /// The other end.
        b: usize,
        /// How slow.
        bytes_per_ms: u64,
    },
    /// A link breaks.
    BreakLink {
        /// Which one of those that stand.
        choice: u64,
        /// Nobody is told.
        silently: bool,
    },
    /// A process dies.
    Kill {
        /// Whose.
        node: usize,
        /// Nobody is told.
        silently: bool,
        /// So many of its last commits are lost with it.
        lost: usize,
        /// After how long it comes back.
        away_us: u64,
        /// Once it is back it dies again, just after it has made so many commits.
        again: Option<u32>,
    },
    /// A process dies inside one of its next commits.
    CrashAtCommit {
        /// Whose.
        node: usize,
        /// How many commits go before.
        after: u32,
        /// Whether the commit is done.
        done: bool,
        /// So many of its last commits are lost with it.
        lost: usize,
    },
    /// A program closes its database and opens it again.
    CloseAndOpen {
        /// Whose.
        node: usize,
        /// After how long.
        away_us: u64,
    },
    /// Conversations are off for a while.
    Pause {
        /// Whose.
        node: usize,
        /// For how long.
        for_us: u64,
    },
    /// The disk is full for a while.
    FillDisk {
        /// Whose.
        node: usize,
        /// For how long.
        for_us: u64,
    },
    /// The next reads and commits of a disk fail.
    FailDisk {
        /// Whose.
        node: usize,
        /// How many.
        operations: u32,
    },
    /// A bit flips in a record, and flips back later.
    Damage {
        /// On whose disk.
        node: usize,
        /// Of which key.
        key: usize,
        /// Which bit.
        bit: u64,
        /// For how long.
        for_us: u64,
    },
    /// A copy of a disk is put aside.
    BackUp {
        /// Whose.
        node: usize,
    },
    /// A node goes on from an earlier copy of its disk.
    Restore {
        /// Which copy.
        choice: u64,
        /// Once it runs it dies, just after it has made so many commits.
        again: Option<u32>,
    },
    /// A copy of a disk runs beside the original.
    Clone {
        /// Whose.
        node: usize,
    },
    /// A new replica joins.
    Join {
        /// Whom it knows.
        knows: usize,
    },
    /// A disk is lost for ever.
    Die {
        /// Whose.
        node: usize,
    },
    /// A wall clock is set.
    SetClock {
        /// Whose.
        node: usize,
        /// How far it is off from now on, in microseconds.
        off_us: i64,
        /// It moves in steps of so many microseconds.
        tick_us: u64,
    },
    /// A node hears of another by an announcement.
    Discover {
        /// Who hears.
        node: usize,
        /// Of whom.
        peer: usize,
    },
    /// A node no longer names a peer.
    Forget {
        /// Which node.
        node: usize,
        /// Whom.
        peer: usize,
    },
    /// The next link is recorded from one side.
    Record {
        /// Which side.
        side: usize,
    },
    /// What was recorded is played to a node.
    Replay {
        /// To whom.
        node: usize,
    },
}

/// One operation of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Which key.
    pub key: usize,
    /// The value: its number, and its length in bytes; `None` deletes.
    pub put: Option<(u64, usize)>,
}

/// A named kind of run: what it is about, and how likely each action is.
pub struct Profile {
    /// The name on the command line.
    pub name: &'static str,
    /// What it is about, in a line.
    pub about: &'static str,
    /// Fewest and most replicas, inclusive.
    pub replicas: (usize, usize),
    /// Fewest and most actions, inclusive.
    pub actions: (usize, usize),
    /// Most keys.
    pub keys: usize,
    /// How many of a hundred writes are batches.
    pub batch_percent: u32,
    /// Values have up to so many bytes; most are short.
    pub value_bytes_max: usize,
    /// How many of a hundred values are long.
    pub long_percent: u32,
    /// How many of a thousand pieces are garbled.
    pub garble_permille: u32,
    /// How likely each kind of action is, next to the others.
    weights: &'static [(Kind, u32)],
    /// What has to have happened in a thousand runs, or the profile exercises nothing.
    pub must_happen: &'static [&'static str],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Read,
    Sync,
    Cut,
    Heal,
    Slow,
    Break,
    Kill,
    PowerLoss,
    Crash,
    Close,
    Pause,
    Full,
    Fail,
    Damage,
    BackUp,
    Restore,
    Clone,
    Join,
    Die,
    Clock,
    Discover,
    Forget,
    Replay,
}

/// Every profile, the standard one first.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "standard",
        about: "a little of everything",
        replicas: (2, 6),
        actions: (40, 160),
        keys: 6,
        batch_percent: 25,
        value_bytes_max: 60_000,
        long_percent: 8,
        garble_permille: 2,
        weights: &[
            (Kind::Write, 46),
            (Kind::Read, 3),
            (Kind::Sync, 2),
            (Kind::Cut, 6),
            (Kind::Heal, 5),
            (Kind::Slow, 1),
            (Kind::Break, 6),
            (Kind::Kill, 4),
            (Kind::PowerLoss, 2),
            (Kind::Crash, 4),
            (Kind::Close, 3),
            (Kind::Pause, 1),
            (Kind::Full, 1),
            (Kind::Fail, 2),
            (Kind::Damage, 1),
            (Kind::BackUp, 2),
            (Kind::Restore, 2),
            (Kind::Clone, 1),
            (Kind::Join, 1),
            (Kind::Die, 1),
            (Kind::Clock, 4),
            (Kind::Discover, 2),
            (Kind::Forget, 1),
            (Kind::Replay, 1),
        ],
        must_happen: &[
            "cuts",
            "crashes at a commit",
            "power losses",
            "restores",
            "clones",
            "joins",
            "deaths",
            "event conflict",
            "conversations resumed after a cut",
            "disk errors",
            "batches",
            "sessions replayed",
            "event error: silent peer",
            "event error: no frame",
        ],
    },
    Profile {
        name: "network",
        about: "lines that are cut one way, garbled, slow, half open",
        replicas: (2, 6),
        actions: (40, 160),
        keys: 6,
        batch_percent: 25,
        value_bytes_max: 60_000,
        long_percent: 8,
        garble_permille: 30,
        weights: &[
            (Kind::Write, 45),
            (Kind::Cut, 14),
            (Kind::Heal, 9),
            (Kind::Slow, 4),
            (Kind::Break, 14),
            (Kind::Kill, 2),
            (Kind::Discover, 4),
            (Kind::Forget, 2),
            (Kind::Sync, 2),
            (Kind::Replay, 4),
        ],
        must_happen: &[
            "cuts",
            "links that fell silent",
            "pieces lost",
            "pieces repeated",
            "pieces swapped",
            "pieces truncated",
            "pieces with a flipped bit",
            "event error: no frame",
            "event error: silent peer",
            "sessions replayed",
            "lines slowed down",
            "conversations resumed after a cut",
        ],
    },
    Profile {
        name: "disk",
        about: "crashes at every commit, losses of power, errors, full disks",
        replicas: (2, 4),
        actions: (40, 120),
        keys: 5,
        batch_percent: 30,
        value_bytes_max: 20_000,
        long_percent: 8,
        garble_permille: 0,
        weights: &[
            (Kind::Write, 45),
            (Kind::Crash, 18),
            (Kind::PowerLoss, 10),
            (Kind::Kill, 5),
            (Kind::Close, 5),
            (Kind::Full, 5),
            (Kind::Fail, 8),
            (Kind::Damage, 5),
            (Kind::Break, 4),
        ],
        must_happen: &[
            "crashes at a commit",
            "power losses",
            "commits undone by a loss of power",
            "disk errors",
            "disks filled",
            "clean closes",
            "writes refused by the disk",
            "tallies scanned",
            "writes unanswered",
        ],
    },
    Profile {
        name: "clocks",
        about: "wall clocks off by seconds to years, stepping back, coarse, equal",
        replicas: (2, 5),
        actions: (40, 120),
        keys: 2,
        batch_percent: 10,
        value_bytes_max: 100,
        long_percent: 8,
        garble_permille: 0,
        weights: &[
            (Kind::Write, 60),
            (Kind::Clock, 25),
            (Kind::Cut, 5),
            (Kind::Heal, 5),
            (Kind::Kill, 3),
        ],
        must_happen: &[
            "clocks set",
            "event clock skew",
            "event conflict",
            "conflicts with equal stamps",
        ],
    },
    Profile {
        name: "copies",
        about: "backups restored, directories cloned, everybody going on from them",
        replicas: (2, 4),
        actions: (40, 140),
        keys: 5,
        batch_percent: 25,
        value_bytes_max: 1_000,
        long_percent: 8,
        garble_permille: 0,
        weights: &[
            (Kind::Write, 50),
            (Kind::BackUp, 8),
            (Kind::Restore, 10),
            (Kind::Clone, 6),
            (Kind::Cut, 6),
            (Kind::Heal, 4),
            (Kind::Break, 4),
            (Kind::Kill, 3),
            (Kind::Close, 3),
            (Kind::Clock, 2),
        ],
        must_happen: &["restores", "clones", "event conflict"],
    },
    Profile {
        name: "batches",
        about: "batches over rounds of many parts, with readers in between",
        replicas: (2, 5),
        actions: (40, 120),
        keys: 8,
        batch_percent: 80,
        value_bytes_max: 40_000,
        long_percent: 8,
        garble_permille: 5,
        weights: &[
            (Kind::Write, 50),
            (Kind::Read, 15),
            (Kind::Break, 12),
            (Kind::Cut, 6),
            (Kind::Heal, 4),
            (Kind::Kill, 4),
            (Kind::Crash, 4),
            (Kind::Slow, 3),
            (Kind::Die, 1),
        ],
        must_happen: &[
            "batches",
            "reads",
            "replicas seen catching up",
            "conversations resumed after a cut",
        ],
    },
    Profile {
        name: "gaps",
        about: "long rounds that are cut, and what was left out of them gone for ever",
        replicas: (3, 5),
        actions: (40, 120),
        keys: 4,
        batch_percent: 30,
        value_bytes_max: 70_000,
        long_percent: 60,
        garble_permille: 0,
        weights: &[
            (Kind::Write, 50),
            (Kind::Break, 12),
            (Kind::BackUp, 5),
            (Kind::Restore, 6),
            (Kind::Kill, 12),
            (Kind::Cut, 5),
            (Kind::Heal, 4),
            (Kind::Die, 4),
            (Kind::Slow, 3),
        ],
        must_happen: &[
            "clocks with gaps",
            "claims given up",
            "deaths",
            "restores",
            "conversations resumed after a cut",
        ],
    },
    Profile {
        name: "churn",
        about: "replicas that join, stay away for long, die for ever, come back",
        replicas: (2, 4),
        actions: (40, 120),
        keys: 5,
        batch_percent: 20,
        value_bytes_max: 1_000,
        long_percent: 8,
        garble_permille: 0,
        weights: &[
            (Kind::Write, 50),
            (Kind::Join, 8),
            (Kind::Die, 5),
            (Kind::Kill, 10),
            (Kind::Close, 6),
            (Kind::Cut, 4),
            (Kind::Heal, 3),
            (Kind::Discover, 4),
            (Kind::Forget, 4),
            (Kind::Pause, 3),
        ],
        must_happen: &["joins", "deaths", "clean closes", "pauses", "long absences"],
    },
    Profile {
        name: "large",
        about: "values up to the limit, records of many frames",
        replicas: (2, 3),
        actions: (10, 30),
        keys: 3,
        batch_percent: 20,
        value_bytes_max: 8 << 20,
        long_percent: 8,
        garble_permille: 2,
        weights: &[
            (Kind::Write, 60),
            (Kind::Break, 10),
            (Kind::Cut, 5),
            (Kind::Heal, 5),
            (Kind::Kill, 5),
            (Kind::Slow, 3),
        ],
        must_happen: &["values over 1 MiB", "conversations resumed after a cut"],
    },
    Profile {
        name: "crowd",
        about: "more replicas than talk to each other at once",
        replicas: (9, 16),
        actions: (30, 80),
        keys: 6,
        batch_percent: 20,
        value_bytes_max: 100,
        long_percent: 8,
        garble_permille: 1,
        weights: &[
            (Kind::Write, 60),
            (Kind::Cut, 5),
            (Kind::Heal, 5),
            (Kind::Break, 5),
            (Kind::Kill, 8),
            (Kind::Close, 3),
            (Kind::Clock, 3),
            (Kind::Join, 2),
        ],
        must_happen: &["cuts", "event conflict", "joins"],
    },
];

/// The profile of a name.
pub fn profile(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

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
        let config = config(luck);
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
        match kind(profile, luck) {
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
                again: again(luck),
            },
            Kind::PowerLoss => Action::Kill {
                node,
                silently: percent(luck, 80),
                lost: luck.usize(1..12),
                away_us,
                again: again(luck),
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
                again: again(luck),
            },
            Kind::Clone => Action::Clone { node },
            Kind::Join => Action::Join { knows: node },
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
        }
    }

    fn ops(&self, profile: &Profile, luck: &mut fastrand::Rng, values: &mut u64) -> Vec<Change> {
        let is_batch = percent(luck, profile.batch_percent);
        let count = if is_batch { luck.usize(1..6) } else { 1 };
        let op = |_| {
            let key = luck.usize(..self.keys);
            if percent(luck, 20) {
                return Change { key, put: None };
            }
            *values += 1;
            let is_long = percent(luck, profile.long_percent);
            let max = profile.value_bytes_max;
            let len = if is_long {
                pick(luck, &[max, max / 2, max / 40])
            } else {
                0
            };
            let put = Some((*values, len));
            Change { key, put }
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

fn config(luck: &mut fastrand::Rng) -> Config {
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
        first_sync_timeout: Duration::ZERO,
        ..Config::default()
    }
}

fn again(luck: &mut fastrand::Rng) -> Option<u32> {
    percent(luck, 30).then(|| luck.u32(1..6))
}

fn pick<T: Copy>(luck: &mut fastrand::Rng, choices: &[T]) -> T {
    choices[luck.usize(..choices.len())]
}

fn kind(profile: &Profile, luck: &mut fastrand::Rng) -> Kind {
    let total: u32 = profile.weights.iter().map(|(_, weight)| weight).sum();
    let mut place = luck.u32(..total);
    for (kind, weight) in profile.weights {
        if place < *weight {
            return *kind;
        }
        place -= weight;
    }
    Kind::Write
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let silently = |silently: &bool| {
            if *silently {
                ", and nobody is told"
            } else {
                ""
            }
        };
        match self {
            Action::Write { node, ops } => {
                write!(f, "{node} writes")?;
                ops.iter().try_for_each(|change| match change.put {
                    Some((value, 0)) => write!(f, " k{}=v{value}", change.key),
                    Some((value, len)) => write!(f, " k{}=v{value} ({len} bytes)", change.key),
                    None => write!(f, " k{} deleted", change.key),
                })
            }
            Action::Read { node } => write!(f, "{node} reads everything"),
            Action::Sync { node } => write!(f, "{node} asks for a sync"),
            Action::CutOneWay { from, to } => write!(f, "{from} can no longer reach {to}"),
            Action::Partition { side } => write!(f, "partition {:b}", side & 0xffff),
            Action::Heal => write!(f, "all lines heal"),
            Action::SlowDown { a, b, bytes_per_ms } => {
                write!(f, "line {a}-{b} slows down to {bytes_per_ms} bytes/ms")
            }
            Action::BreakLink { silently: how, .. } => {
                write!(f, "a link breaks{}", silently(how))
            }
            Action::Kill {
                node,
                silently: how,
                lost,
                away_us,
                again,
            } => {
                write!(f, "{node} dies for {}{}", Seconds(*away_us), silently(how))?;
                if *lost > 0 {
                    write!(f, ", its last {lost} commits are lost")?;
                }
                dies_again(f, again)
            }
            Action::CrashAtCommit {
                node,
                after,
                done,
                lost,
            } => {
                let when = if *done { "after" } else { "before" };
                write!(
                    f,
                    "{node} will die {when} its commit {after} from now, losing {lost}"
                )
            }
            Action::CloseAndOpen { node, away_us } => {
                write!(f, "{node} closes for {}", Seconds(*away_us))
            }
            Action::Pause { node, for_us } => write!(f, "{node} pauses for {}", Seconds(*for_us)),
            Action::FillDisk { node, for_us } => {
                write!(f, "the disk of {node} is full for {}", Seconds(*for_us))
            }
            Action::FailDisk { node, operations } => {
                write!(
                    f,
                    "the next {operations} operations of the disk of {node} fail"
                )
            }
            Action::Damage {
                node, key, for_us, ..
            } => write!(
                f,
                "a bit of k{key} flips on the disk of {node} for {}",
                Seconds(*for_us)
            ),
            Action::BackUp { node } => write!(f, "the disk of {node} is copied"),
            Action::Restore { choice, again } => {
                write!(f, "copy {choice:x} is restored")?;
                dies_again(f, again)
            }
            Action::Clone { node } => write!(f, "a copy of {node} runs"),
            Action::Join { knows } => write!(f, "a replica joins that knows {knows}"),
            Action::Die { node } => write!(f, "{node} is lost for ever"),
            Action::SetClock {
                node,
                off_us,
                tick_us,
            } => write!(
                f,
                "the clock of {node} is off by {off_us} us, steps of {tick_us} us"
            ),
            Action::Discover { node, peer } => write!(f, "{node} hears of {peer}"),
            Action::Forget { node, peer } => write!(f, "{node} forgets {peer}"),
            Action::Record { side } => write!(f, "the next link is recorded (side {side})"),
            Action::Replay { node } => write!(f, "the recorded link is played to {node}"),
        }
    }
}

fn dies_again(f: &mut fmt::Formatter<'_>, again: &Option<u32>) -> fmt::Result {
    match again {
        Some(commits) => write!(f, "; once it runs it dies after {commits} commits"),
        None => Ok(()),
    }
}
