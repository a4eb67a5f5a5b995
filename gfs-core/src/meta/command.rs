//! Log entries: everything that changes the metadata, stamped by the leader.
//!
//! `State::apply` is the only reader. Anything that is not here is soft state and is lost with the process.

use super::request::{ClientCommand, Configuration, Reply, Stored, Timestamp};
use crate::ids::{ChunkHandle, Epoch, InodeId, ServerId, SessionId};

/// What the leader adds to an entry, so that `apply` needs no clock and no randomness.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    /// The leader's clock; never goes back within a log.
    pub now: Timestamp,
    /// Random bits.
    pub seed: u64,
}

/// How a chunk server describes itself when it registers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerIdentity {
    /// Random id kept in its data directories; what makes it the same server after a restart.
    pub uuid: u128,
    /// `host:port` of its data port, as clients reach it.
    pub address: String,
    /// `host:port` of its HTTP port; empty when it has none.
    pub http: String,
    /// Failure domain above the host: rack, room; may be empty.
    pub zone: String,
    /// Failure domain below it: the machine's host name; tests may set it apart.
    pub host: String,
}

/// What an operator wants of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServerIntent {
    /// Use it.
    #[default]
    Active,
    /// Empty it: no new chunks, and the ones that it has move away.
    Draining,
}

/// One change of the metadata.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// A client's mutation, deduplicated by its operation id.
    Client(ClientCommand),
    /// Opens a client session.
    OpenSession {
        /// Random id of the opening attempt: a retry finds the session that the first try opened.
        nonce: u64,
        /// Who it is, for people: host, process, mount point.
        description: String,
    },
    /// Ends a session: its locks, reservations and replies go.
    EndSession {
        /// Which.
        session: SessionId,
    },
    /// Makes a chunk server known, or takes its new address; answered with its number.
    RegisterServer(ServerIdentity),
    /// Sets what an operator wants of a server.
    SetServerIntent {
        /// Which.
        server: ServerId,
        /// What.
        intent: ServerIntent,
    },
    /// Forgets a server that holds no member of any chunk; its tombstones go with it.
    RemoveServer {
        /// Which.
        server: ServerId,
    },
    /// Changes a chunk's configuration if its epoch is still `expected`; the new epoch is the one after it.
    Reconfigure {
        /// The chunk.
        handle: ChunkHandle,
        /// The epoch that the decision was based on.
        expected: Epoch,
        /// The configuration to install; its epoch field is ignored.
        next: Configuration,
    },
    /// The tail of a shrunken file is zeroed on all members: the intent is done (rule 13).
    FinishShrink {
        /// The file.
        inode: InodeId,
        /// The intent, by the chunk and epoch that were zeroed.
        handle: ChunkHandle,
        /// The epoch in which it was zeroed; an older one is ignored.
        epoch: Epoch,
        /// How much of the chunk is stored after it.
        stored: Option<Stored>,
    },
    /// Frees orphans that no session holds open.
    ReapOrphans {
        /// Which.
        inodes: Vec<InodeId>,
    },
    /// Servers have deleted these replicas: (chunk, server).
    ForgetTombstones {
        /// Which.
        done: Vec<(ChunkHandle, ServerId)>,
    },
    /// Chunk servers hold replicas that no configuration names and that are older than `below`: give them a tombstone.
    CondemnUnknown {
        /// (chunk, server) pairs.
        replicas: Vec<(ChunkHandle, ServerId)>,
    },
    /// Leaves out inode numbers: those that a power cut may have taken back, together with the files that had them, must
    /// not come to mean other files to a client that still holds them open.
    SkipInodes {
        /// How many.
        count: u64,
    },
}

/// Answer to a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandReply {
    /// To a client's mutation.
    Client(Reply),
    /// The session that was opened.
    Session(SessionId),
    /// The number of the registered server.
    Server(ServerId),
    /// The configuration in force after a `Reconfigure`, whether or not it was the asked one; `None` when
    /// the chunk is gone.
    Configuration(Option<Configuration>),
    /// Done.
    Done,
    /// Refused for a reason that the caller shows as it is.
    Refused(CommandRefusal),
}

/// Why a command of the cluster is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandRefusal {
    /// No such server.
    #[error("no such chunk server")]
    UnknownServer,
    /// It still holds members.
    #[error("the chunk server still holds replicas: drain it first")]
    ServerInUse,
    /// No more server numbers.
    #[error("too many chunk servers")]
    TooManyServers,
}

/// A log entry: commands that share one stamp, applied in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// Clock and seed.
    pub stamp: Stamp,
    /// The batch.
    pub commands: Vec<Command>,
}
