//! The types that openraft is instantiated with.
//!
//! This room owns the payload of a log entry while it travels through this process: the batch and the
//! ticket that leads back to those who wait for it. The ticket never leaves the process.

use super::ConsensusError;
use gfs_core::meta::command::{CommandReply, Entry as MetaEntry};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Number of a master in its group.
pub type NodeId = u64;

openraft::declare_raft_types!(
    /// What openraft works with here.
    pub TypeConfig:
        D = Batch,
        R = (),
        NodeId = NodeId,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = tokio::fs::File,
        AsyncRuntime = openraft::TokioRuntime,
);

/// The raft of this group.
pub type Raft = openraft::Raft<TypeConfig>;
/// Position of an entry.
pub type LogId = openraft::LogId<NodeId>;
/// An entry of the raft log.
pub type RaftEntry = openraft::Entry<TypeConfig>;
/// The members of the group as of some entry.
pub type StoredMembership = openraft::StoredMembership<NodeId, openraft::BasicNode>;
/// An error of the storage, as openraft wants it.
pub type StorageError = openraft::StorageError<NodeId>;

/// Where the answer to one proposed command goes.
pub type Waiter = oneshot::Sender<Result<CommandReply, ConsensusError>>;

/// The commands of one log entry, and who waits for them in this process.
#[derive(Clone, Default)]
pub struct Batch {
    /// What is written to the log.
    pub entry: Arc<MetaEntry>,
    ticket: Ticket,
}

#[derive(Clone, Default)]
struct Ticket(Arc<Mutex<Option<Open>>>);

struct Open {
    waiters: Vec<Waiter>,
    _permit: OwnedSemaphorePermit,
}

impl Batch {
    /// A batch that was read from the log: nobody waits for it.
    pub fn recovered(entry: MetaEntry) -> Self {
        Self { entry: Arc::new(entry), ticket: Ticket::default() }
    }

    /// A batch that was just proposed. `permit` is given back when it has been answered.
    pub fn proposed(entry: MetaEntry, waiters: Vec<Waiter>, permit: OwnedSemaphorePermit) -> Self {
        let open = Open { waiters, _permit: permit };
        Self { entry: Arc::new(entry), ticket: Ticket(Arc::new(Mutex::new(Some(open)))) }
    }

    /// Answers those who wait, in the order of the commands. A second answer goes nowhere.
    pub fn answer(&self, replies: Vec<CommandReply>) {
        let open = self.ticket.0.lock().take();
        if let Some(open) = open {
            for (waiter, reply) in open.waiters.into_iter().zip(replies) {
                // A proposer that went away does not need its answer.
                let _ = waiter.send(Ok(reply));
            }
        }
    }

    /// Tells those who still wait that the batch was not, or may not have been, carried out.
    pub fn fail(&self, error: &ConsensusError) {
        let open = self.ticket.0.lock().take();
        if let Some(open) = open {
            for waiter in open.waiters {
                let _ = waiter.send(Err(error.clone()));
            }
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} commands)", self.entry.commands.len())
    }
}

impl PartialEq for Batch {
    fn eq(&self, other: &Self) -> bool {
        self.entry == other.entry
    }
}
