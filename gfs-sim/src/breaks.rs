//! Rules that a run may break on purpose, to show that the invariants notice.
//!
//! Most rules live in the core, and are broken there (`gfs_core::breaks`). The others are duties of a driver: what waits for a
//! clock, a disk or a log. Those are broken in the simulation's own drivers, which stand for `gfs-chunkd` and `gfs-master`; that
//! they would be noticed says nothing of whether the daemons keep them.

use gfs_core::breaks::{Break, Broken};

/// A duty of a driver that is not done. The numbers are those of the design, section 4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Neglect {
    /// Rule 2, master: a member is dropped although its lease may hold.
    LeaseNotWaited,
    /// Rule 1, master: a configuration is told before the log has it on stable storage.
    ToldBeforeDurable,
    /// Rule 3, store: writes that commit together take effect in reverse.
    CommittedInReverse,
    /// Rule 7, master: the last member that lost nothing is dropped in favour of one that lost power.
    SuspectPreferred,
    /// Rule 8, store: no intent is on stable storage before the first write.
    IntentNotWritten,
    /// Rule 13, master: a cut is not driven any more after a restart.
    CutNotRedone,
    /// Rule 14, server: a tombstone deletes a replica of any epoch.
    TombstoneOfAnyEpoch,
    /// On disk, server: a checksum is not checked.
    ChecksumUnchecked,
}

/// What a run breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Breach {
    core: Broken,
    driver: Option<Neglect>,
}

impl Breach {
    /// A rule of the core; `None` in a build in which rules can't be broken.
    pub fn core(rule: Break) -> Option<Self> {
        Some(Self { core: Broken::only(rule)?, driver: None })
    }

    /// A duty of a driver.
    pub fn driver(duty: Neglect) -> Self {
        Self { core: Broken::default(), driver: Some(duty) }
    }

    /// For the state machines of the core.
    pub fn of_core(self) -> Broken {
        self.core
    }

    /// Whether a driver neglects this duty.
    pub fn neglects(self, duty: Neglect) -> bool {
        self.driver == Some(duty)
    }
}
