//! Agreement on the order of commands: the narrow door to the replicated log.
//!
//! This room owns the trait that the rest of the master sees, and its implementation on openraft. Nobody outside it
//! names an openraft type, but for the position of a checkpoint. It never looks into a command.

mod batcher;
pub mod codec;
pub mod log_store;
pub mod machine;
mod network;
pub mod raft;
pub mod types;

#[cfg(test)]
mod tests;

use gfs_core::meta::command::{Command, CommandReply};
use std::future::Future;
use std::pin::Pin;

/// A future behind the trait.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a command was not carried out, or why that is not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConsensusError {
    /// Another master leads.
    #[error("not the leader; try {hint:?}")]
    NotLeader {
        /// Its address, when known.
        hint: Option<String>,
    },
    /// Too many commands wait already; nothing was proposed.
    #[error("too many commands are waiting")]
    Overloaded,
    /// The command does not fit one log entry; nothing was proposed.
    #[error("a command of {bytes} bytes does not fit a log entry")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The disk of the log is full; nothing was proposed.
    #[error("no space left for the log of the master")]
    NoSpace,
    /// The log failed or the process stops: whether the command was carried out is not known.
    #[error("the log has stopped")]
    Stopped,
}

/// What there is to tell about the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConsensusMetrics {
    /// Index of the last applied entry.
    pub log_index: u64,
    /// Index of the last entry in the newest checkpoint.
    pub checkpoint_index: u64,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
}

/// The replicated log, as the rest of the master sees it.
pub trait Consensus: Send + Sync + 'static {
    /// Commits and applies a command, once; answers what it answered. The command survives the kill of every process; a
    /// moment later, or after [`Consensus::durable`], a power cut too.
    fn submit(&self, command: Command) -> Pending<'_, Result<CommandReply, ConsensusError>>;

    /// Returns when everything that is applied here is on stable storage of a quorum.
    fn durable(&self) -> Pending<'_, Result<(), ConsensusError>>;

    /// [`Consensus::submit`], answered when it is durable.
    fn propose(&self, command: Command) -> Pending<'_, Result<CommandReply, ConsensusError>> {
        Box::pin(async move {
            let reply = self.submit(command).await?;
            self.durable().await?;
            Ok(reply)
        })
    }

    /// Whether this master believes that it leads. Only [`Consensus::linearizable`] proves it.
    fn is_leader(&self) -> bool;

    /// Returns when everything that was committed anywhere before this call is applied here, and this master was the
    /// leader after the call began.
    fn linearizable(&self) -> Pending<'_, Result<(), ConsensusError>>;

    /// Numbers to show.
    fn metrics(&self) -> ConsensusMetrics;
}
