//! What goes wrong in a run, and how often.
//!
//! Each run has a weather, so that every kind of fault gets runs in which it happens often. A fault that destroys stored bytes for
//! good hits a replica only while another member has everything: nothing can keep data whose copies all burn at once.

use crate::breaks::Breach;

/// What kind of faults a run has most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    /// Processes are killed, one or all.
    Kills,
    /// Cuts in one direction or both, pauses, loss and doubles.
    Network,
    /// Single servers lose power.
    Power,
    /// Several or all lose power at once, the master too.
    Blackout,
    /// Disks fill up, get slow or fail for good; bits flip.
    Disks,
    /// The master is killed or loses power.
    Master,
    /// Servers die one after the other until one is left, and that one loses power.
    LastOne,
    /// Anything but flipped bits.
    Mixed,
}

const WEATHERS: [Weather; 8] = [
    Weather::Kills,
    Weather::Network,
    Weather::Power,
    Weather::Blackout,
    Weather::Disks,
    Weather::Master,
    Weather::LastOne,
    Weather::Mixed,
];

/// What kind of run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Chunk servers.
    pub servers: u16,
    /// Replica goal.
    pub goal: usize,
    /// Clients.
    pub clients: u64,
    /// Files that all clients share.
    pub files: u64,
    /// How long faults happen, in simulated milliseconds.
    pub fault_ms: u64,
    /// Which faults.
    pub weather: Weather,
    /// A rule that is broken.
    pub breach: Breach,
    /// Whether everything that happens is printed.
    pub show: bool,
}

impl Options {
    /// The run that belongs to a seed.
    pub fn of_seed(seed: u64) -> Self {
        let weather = WEATHERS[(seed % WEATHERS.len() as u64) as usize];
        let servers = 4 + (seed / 8 % 2) as u16;
        let breach = Breach::default();
        // With one file clients get into each other's way more often.
        let files = 1 + seed / 16 % 2;
        Self { servers, goal: 3, clients: 3, files, fault_ms: 6_000, weather, breach, show: false }
    }
}

/// A fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// One server's process dies.
    Kill,
    /// All servers' processes die.
    KillAll,
    /// A client dies; another takes its place.
    KillClient,
    /// A connection breaks, in one direction or both.
    Cut,
    /// What the master says to a server comes late, then nothing of what the server says to the master arrives: its lease ends while
    /// everybody else reaches it.
    Estranged,
    /// A process hangs.
    Pause,
    /// One machine loses power.
    Power,
    /// Several machines lose power at once.
    PowerSome,
    /// All machines lose power at once.
    PowerAll,
    /// The master's process hangs.
    PauseMaster,
    /// The master's process dies.
    KillMaster,
    /// The master's machine loses power.
    PowerMaster,
    /// A disk takes no new writes for a while.
    Full,
    /// A disk's flushes hang for a while.
    Slow,
    /// A disk's flushes fail for a while.
    FlushFails,
    /// A disk fails for good and is replaced by an empty one.
    DiskDies,
    /// A bit flips in a stored block.
    Flip,
    /// All but one server die one after the other, then that one loses power.
    LastOne,
}

impl Weather {
    /// Faults and their weights.
    pub fn faults(self) -> &'static [(Fault, u64)] {
        use Fault::*;
        match self {
            Self::Kills => &[(Kill, 8), (KillAll, 2), (KillClient, 3), (KillMaster, 1), (Cut, 2), (Pause, 1)],
            Self::Network => &[(Cut, 10), (Estranged, 5), (Pause, 4), (Kill, 2), (KillMaster, 1), (PauseMaster, 2)],
            Self::Power => &[(Power, 6), (Kill, 3), (Cut, 2), (Pause, 1), (KillMaster, 1)],
            Self::Blackout => &[(PowerAll, 3), (PowerSome, 4), (PowerMaster, 2), (PauseMaster, 1), (Kill, 3), (Cut, 2)],
            Self::Disks => &[(Full, 2), (Slow, 2), (FlushFails, 2), (DiskDies, 2), (Flip, 4), (Kill, 3), (Cut, 1)],
            Self::Master => {
                &[(KillMaster, 5), (PauseMaster, 3), (PowerMaster, 4), (Kill, 3), (KillClient, 2), (Cut, 2)]
            }
            Self::LastOne => &[(LastOne, 6), (Kill, 2), (Cut, 1), (KillMaster, 1)],
            Self::Mixed => &[
                (Kill, 4),
                (KillAll, 1),
                (KillClient, 1),
                (Cut, 4),
                (Estranged, 2),
                (Pause, 2),
                (Power, 2),
                (PowerSome, 1),
                (PowerAll, 1),
                (KillMaster, 1),
                (PauseMaster, 1),
                (PowerMaster, 1),
                (Full, 1),
                (Slow, 1),
                (FlushFails, 1),
                (DiskDies, 1),
            ],
        }
    }

    /// Packets lost, of a thousand.
    pub fn loss_permille(self) -> u64 {
        if self == Self::Network { 20 } else { 4 }
    }

    /// Packets that take long, and with them what comes after them on their connection, of ten thousand.
    pub fn stall_per_myriad(self) -> u64 {
        if matches!(self, Self::Network | Self::Mixed) { 20 } else { 3 }
    }

    /// Requests that arrive again, of a thousand.
    pub fn double_permille(self) -> u64 {
        if self == Self::Network { 60 } else { 15 }
    }
}
