//! What can happen to a cluster from outside.

use std::fmt;

use crate::trace::Seconds;

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
        /// Once it is back it dies again, just after it has made so many commits; once for each.
        again: Vec<u32>,
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
        /// Once it runs it dies, just after it has made so many commits; once for each.
        again: Vec<u32>,
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
        /// Once it runs it dies, just after it has made so many commits; once for each.
        again: Vec<u32>,
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
    /// One replica sends another away for good.
    Retire {
        /// Who sends.
        node: usize,
        /// Whom.
        other: usize,
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
    /// After how many milliseconds the value expires, if it does.
    pub expires_ms: Option<u64>,
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
                ops.iter().try_for_each(|change| {
                    match change.put {
                        Some((value, 0)) => write!(f, " k{}=v{value}", change.key),
                        Some((value, len)) => write!(f, " k{}=v{value} ({len} bytes)", change.key),
                        None => write!(f, " k{} deleted", change.key),
                    }?;
                    match change.expires_ms {
                        Some(ms) => write!(f, " for {ms} ms"),
                        None => Ok(()),
                    }
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
            Action::Join { knows, again } => {
                write!(f, "a replica joins that knows {knows}")?;
                dies_again(f, again)
            }
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
            Action::Retire { node, other } => write!(f, "{node} retires {other}"),
            Action::Replay { node } => write!(f, "the recorded link is played to {node}"),
        }
    }
}

fn dies_again(f: &mut fmt::Formatter<'_>, again: &[u32]) -> fmt::Result {
    for (time, commits) in again.iter().enumerate() {
        let when = if time == 0 {
            "; once it runs it dies after"
        } else {
            ", then after"
        };
        write!(f, "{when} {commits} commits")?;
    }
    Ok(())
}
