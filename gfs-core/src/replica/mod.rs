//! Replication of one chunk, seen by one server: PacificA's primary and backups with the master as
//! configuration manager (Lin et al., MSR-TR-2008-25), reads as in CRAQ.
//!
//! `Replica` takes events and returns actions; drivers carry them out: `gfs-chunkd` with disks and
//! sockets, the simulation with pretended ones. This room never does I/O and knows no time.
//!
//! What every rule below rests on:
//!
//! - Sequence numbers count over the chunk's whole life. The primary stores a write before it sends it, so
//!   no member holds more of an epoch than its primary.
//! - A write commits when all members of the configuration in force hold it. Whatever is committed is
//!   therefore in the prepared prefix of every member that may become primary.
//! - A new primary settles first: every other server forgets what older epochs ordered beyond the
//!   primary's prefix and says how far its own reaches; the primary sends the rest of its uncommitted
//!   prefix again as ordinary prepares. A settle never removes a write of its own epoch, so that a late
//!   or repeated one does no harm.
//! - A syncing server takes all new writes from a base on, and whole blocks as of an exact committed
//!   point, in order with the prepares; it replaces its blocks by them. Once it is full it counts for
//!   commits and flushes, and only then is the master asked to make it a member.
//!
//! The driver's duties: carry actions out in order; answer `Store` with `Stored` before anything else;
//! send what goes to one server about one chunk in order; never let a replica see events concurrently.

mod fences;
mod machine;
mod operations;
mod peer;
mod primary;
mod recruit;
mod settle;
mod types;

#[cfg(test)]
mod tests;

pub use fences::Fences;
pub use machine::Replica;
pub use operations::{CAPACITY as OPERATION_CAPACITY, OperationTable, Seen};
pub use types::{
    Action, Answer, Event, Loaded, Message, Mutation, OperationRecord, Outcome, PreparedWrite, ReadPlan, Role,
    SettledAs, Status, Ticket, Token, WantedChange, WriteKind,
};
