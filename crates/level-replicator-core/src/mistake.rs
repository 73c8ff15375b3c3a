//! Mistakes to make on purpose, so that tests can show that they would be noticed.
//!
//! The rule: none of this happens in production. Without the feature `mistakes` nothing can be
//! planted, `is_planted` is the constant `false`, and the compiler removes every branch that asks.
//! With it, `plant` makes the code of the calling thread wrong in one small way that somebody might
//! get wrong, and a checker that stays silent is itself at fault.

#[cfg(feature = "mistakes")]
use std::cell::Cell;

/// Lists the mistakes once: what is done wrong, the variant, and its name.
macro_rules! mistakes {
    ($($(#[doc = $doc:literal])+ $mistake:ident = $name:literal,)+) => {
        /// Something that is done wrong on purpose.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mistake {
            $($(#[doc = $doc])+ $mistake,)+
        }

        impl Mistake {
            /// Every mistake.
            pub const ALL: &[Mistake] = &[$(Mistake::$mistake),+];

            /// What it is called on a command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Mistake::$mistake => $name),+
                }
            }

            /// What is done wrong, in a sentence.
            pub fn about(self) -> &'static str {
                match self {
                    $(Mistake::$mistake => concat!($($doc),+).trim_start()),+
                }
            }
        }
    };
}

mistakes! {
    /// A part of a round makes known all that its sender knows of the writers in it.
    ClockPerWriter = "clock-per-writer",
    /// A write that is applied makes all earlier ones of its writer known.
    ClockPerEntry = "clock-per-entry",
    /// What a writer is known to have written makes its parent's writes known.
    ParentsInferred = "parents-inferred",
    /// Records that were applied before the end of their round do not become known.
    NoHoles = "no-holes",
    /// The first part of a round makes all of it known.
    ClaimBeforeApply = "claim-before-apply",
    /// A claim makes known what its sender knows by now, not what its snapshot knew.
    ClaimOfNow = "claim-of-now",
    /// A round streams what is there when its turn comes, not its snapshot.
    LiveLog = "live-log",
    /// A push passes over records that hold another writer's write first, and claims them.
    PushPassesSiblings = "push-passes-siblings",
    /// A push claims also what others wrote and the peer does not know.
    PushClaimsAll = "push-claims-all",
    /// A round that ran out of time claims.
    YieldAsClaim = "yield-as-claim",
    /// A record that cannot be read is passed over, and claimed.
    DamageSkipped = "damage-skipped",
    /// A damaged record here is passed over in one part of a round, and the claim after it is taken.
    ClaimOverDamage = "claim-over-damage",
    /// A frame is taken wherever it stands on its link.
    FramesUnnumbered = "frames-unnumbered",
    /// A frame is taken whoever it was said to.
    FramesForAnybody = "frames-for-anybody",
    /// After a commit that failed the clock stays what it would be.
    ClockNotTakenBack = "clock-not-taken-back",
    /// What came of a round that was cut changes readers' view without an event.
    CutRoundUntold = "cut-round-untold",
    /// The rows of a gap that stays are written again with every claim.
    GapsWrittenAgain = "gaps-written-again",
    /// What was heard of a peer in an earlier conversation counts as heard in this one.
    RememberedClock = "remembered-clock",
    /// A key forgets all but its live writes.
    NoHistory = "no-history",
    /// The history with which a record is joined does not hold its live writes.
    LiveNotInHistory = "live-not-in-history",
    /// A history does not imply the writes of its writers' parents.
    HistoryNotExpanded = "history-not-expanded",
    /// Of concurrent writes only the latest stays.
    SiblingsDropped = "siblings-dropped",
    /// A delete removes the concurrent puts with an earlier stamp.
    DeleteWins = "delete-wins",
    /// A delete leaves nothing behind.
    TombstoneDropped = "tombstone-dropped",
    /// A stamp is what the clock says, even if that is before what is replaced.
    StampNotAfter = "stamp-not-after",
    /// Between equal stamps the order in which writers were met decides.
    TieNotByDot = "tie-not-by-dot",
    /// An open goes on with the writer of the process before.
    WriterReused = "writer-reused",
    /// Each open closes the last writer again, over the gaps that it has by then.
    ClosedAgain = "closed-again",
    /// How far the own writer came is not written down when its last live write dies.
    BaseNotKept = "base-not-kept",
    /// Waiting in vain for a claim fills the gaps that it would have filled.
    GapsClosedByTime = "gaps-closed-by-time",
    /// The log keeps the entries of writes that were replaced.
    LogNotTrimmed = "log-not-trimmed",
    /// The log is committed after the records.
    LogApart = "log-apart",
    /// The clock is committed before the records.
    ClockApart = "clock-apart",
    /// A join leaves the counts and the digest as they were.
    TallyNotUpdated = "tally-not-updated",
    /// Records are applied as they come, and nobody is told that half a batch may show.
    BatchInParts = "batch-in-parts",
    /// Half a batch that the sender of a claim may hold is taken for whole.
    UnclaimedForgotten = "unclaimed-forgotten",
    /// An open forgets of whom half a batch may be held.
    UnclaimedNotKept = "unclaimed-not-kept",
    /// Equal clocks are enough to part, even if one side waits for a claim.
    SettledByClock = "settled-by-clock",
    /// A delete is dropped though earlier writes of its writer, which it stands for, are not below the floor.
    DeleteOverGap = "delete-over-gap",
    /// A record that cannot be stripped at its cut is never looked at again.
    WaitingForgotten = "waiting-forgotten",
    /// A replica that was healed half-way serves everybody.
    HalfHealedServes = "half-healed-serves",
    /// What a heal was to bring comes from a peer that lacks what the heal has brought already.
    HalfHealedByAnybody = "half-healed-by-anybody",
    /// What a heal wanted does not become part of the floor when it is covered by another way.
    WantedForgotten = "wanted-forgotten",
    /// A cut holds writers though something is missing that their parents' chain implies.
    CutNotClosed = "cut-not-closed",
    /// A member agrees to a cut that it does not know.
    AckEarly = "ack-early",
    /// An epoch completes without waiting for the members.
    EpochWithoutMembers = "epoch-without-members",
    /// A peer is served from the log though it does not know the floor.
    NoFloorCheck = "no-floor-check",
    /// A push goes to a peer that does not know the floor.
    PushBelowFloor = "push-below-floor",
    /// The sender's floor is not adopted before its records are taken.
    FloorNotAdopted = "floor-not-adopted",
    /// A heal removes nothing that its sender's clock covers.
    HealWithoutClock = "heal-without-clock",
    /// A replica that heals takes records from others too.
    HealBesideOthers = "heal-beside-others",
    /// A delete is dropped at the next step of reclaiming, whoever knows of it.
    TombstonesByAge = "tombstones-by-age",
    /// Histories are dropped when they lie within the own clock.
    StripByOwnClock = "strip-by-own-clock",
    /// Replicas whose heal is unfinished are compared as if they held the same.
    ScrubHalfHealed = "scrub-half-healed",
    /// A heal that was cut is gone on with by a peer that knows less than the one that began it.
    ResumedByAnybody = "resumed-by-anybody",
    /// What comes from others between two parts of a heal does not end it.
    ProgressKept = "progress-kept",
    /// A heal that was gone on with makes all known that its last sender knows.
    ResumedClaimsAll = "resumed-claims-all",
    /// After a heal that was gone on with no half of a batch is expected.
    ResumedIsWhole = "resumed-is-whole",
    /// A leader says that everything has been compared though it could not read all of it.
    ReachedOverDamage = "reached-over-damage",
    /// A push calls its author's batches whole though parts of them have been replaced.
    WholeThoughReplaced = "whole-though-replaced",
    /// Whoever finds that a value has expired by its own clock deletes it.
    ExpiredByAnybody = "expired-by-anybody",
    /// The delete of an expired value takes all else under the key with it.
    ExpiryTakesAll = "expiry-takes-all",
    /// An expired value is removed without a delete.
    ExpiredWithoutDot = "expired-without-dot",
    /// Nobody deletes the expired values of a replica that is gone.
    OrphansStay = "orphans-stay",
}

impl Mistake {
    /// The mistake with a name.
    pub fn by_name(name: &str) -> Option<Mistake> {
        let mut all = Mistake::ALL.iter().copied();
        all.find(|mistake| mistake.name() == name)
    }
}

#[cfg(feature = "mistakes")]
thread_local! {
    static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Makes everything that runs on this thread from now on make one mistake, or none.
#[cfg(feature = "mistakes")]
pub fn plant(mistake: Option<Mistake>) {
    PLANTED.set(mistake);
}

/// Whether a mistake is to be made here.
#[cfg(feature = "mistakes")]
pub(crate) fn is_planted(mistake: Mistake) -> bool {
    PLANTED.get() == Some(mistake)
}

/// Whether a mistake is to be made here: never.
#[cfg(not(feature = "mistakes"))]
#[inline(always)]
pub(crate) const fn is_planted(_: Mistake) -> bool {
    false
}
