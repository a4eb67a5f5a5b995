//! Deliberate breaks of safety rules: how the simulation shows that it would notice.
//!
//! This room owns the names of the rules that can be broken, and the switch. A rule is broken where it lives, in the code that
//! production runs. The switch can't be thrown there: without the feature `breaks`, which only the tests of the simulation turn on,
//! [`Broken`] has no size, [`Broken::is`] is constantly false, and nothing can make another one.

/// A rule that is not kept. The numbers are those of the design, section 4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Break {
    /// Rule 1: a message of another epoch is taken, and so is a client's request.
    EpochUnchecked,
    /// Rule 2: clients are served without a lease, and without the master's word that the configuration is in force.
    ServedWithoutLease,
    /// Rule 3: a member takes a write although it lacks the one before it.
    GapInPrepares,
    /// Rule 3: a repeated operation is applied again.
    RepeatApplied,
    /// Rule 3: a write commits, and is answered, when one other member holds it.
    CommittedBeforeAll,
    /// Rule 4: a failed flush is answered like one that did not fail.
    FlushFailureIgnored,
    /// Rule 4: a sync is answered when the primary's own flush is done.
    SyncOfPrimaryOnly,
    /// Rule 5: a secondary answers from its own bytes although a prepared write overlaps.
    ReadBesidePrepared,
    /// Rule 5: a secondary lets writes take effect as soon as it has prepared them.
    PreparedServedAsCommitted,
    /// Rule 6: what an older epoch ordered beyond the new primary's prefix is kept.
    TailNotSettled,
    /// Rule 6: a new primary serves before the others agree with it.
    ServedUnsettled,
    /// Rule 8: a server that lost power counts as if it lacked nothing.
    SuspectServes,
    /// Rule 9: a syncing member is promoted before its copy is on stable storage.
    PromotedBeforeStable,
    /// Rule 9: a piece of a copy is taken as of another moment than the replica's.
    CopyOfAnotherMoment,
    /// Rule 13: a write that came before a cut makes the file grow over what the cut has zeroed.
    CutForgotten,
    /// Rule 13: a file grows while its cut is pending.
    GrowthBeforeCut,
    /// Rule 14: a dropped replica is condemned although members are missing.
    CondemnedBelowGoal,
    /// Section 3: an answered mutation is performed again when it is repeated.
    RepliesIgnored,
}

/// Which rule a state machine breaks; none, as it should be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Broken(#[cfg(feature = "breaks")] Option<Break>);

impl Broken {
    /// Whether this rule is broken.
    #[cfg(not(feature = "breaks"))]
    #[inline(always)]
    pub const fn is(self, _rule: Break) -> bool {
        false
    }

    /// Whether this rule is broken.
    #[cfg(feature = "breaks")]
    #[inline]
    pub fn is(self, rule: Break) -> bool {
        self.0 == Some(rule)
    }

    /// One that breaks a rule; `None` where rules can't be broken.
    #[cfg(not(feature = "breaks"))]
    pub const fn only(_rule: Break) -> Option<Self> {
        None
    }

    /// One that breaks a rule; `None` where rules can't be broken.
    #[cfg(feature = "breaks")]
    pub const fn only(rule: Break) -> Option<Self> {
        Some(Self(Some(rule)))
    }
}
