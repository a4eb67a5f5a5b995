//! What travels between the nodes of a simulated cluster.

use crate::disk::Block;
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, OperationId, Sequence, ServerId, SessionId};
use gfs_core::meta::request::{Answer as Told, ClientCommand, Configuration, Query, Reply, Stored};
use gfs_core::replica::{Answer, Message, Mutation, OperationRecord, Outcome, WantedChange};

/// The lane of heartbeats and their answers.
pub const LEASES: u64 = 1;

/// A node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Node {
    /// The master.
    Master,
    /// A chunk server.
    Server(ServerId),
    /// A client.
    Client(u64),
}

/// A replica, as its server reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The newest epoch known there.
    pub epoch: Epoch,
    /// On stable storage up to here.
    pub flushed: Sequence,
    /// Whether it is sound; what is not serves nothing in this epoch, and its server agrees that it is dropped.
    pub health: Health,
}

/// Whether a replica is sound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// It is.
    Sound,
    /// Its machine lost power: it may lack what was not flushed.
    Suspect,
    /// It is whole, but takes no more writes.
    Retired,
    /// It can't be used.
    Broken,
}

/// A chunk, as the master tells its servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assigned {
    /// Which.
    pub handle: ChunkHandle,
    /// In force.
    pub configuration: Configuration,
    /// It is part of a file.
    pub attached: bool,
}

/// An order to zero a tail (rule 13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZeroTail {
    /// The file.
    pub inode: InodeId,
    /// The chunk.
    pub handle: ChunkHandle,
    /// From here on.
    pub from: u64,
    /// The epoch that the cut began.
    pub cut: Epoch,
}

/// A tail that is zeroed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Zeroed {
    /// The order.
    pub order: ZeroTail,
    /// What is stored after it.
    pub stored: Stored,
}

/// The answer to a heartbeat, and what the master orders with it.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// Chunks that name this server.
    pub assigned: Vec<Assigned>,
    /// Replicas here that are not in the table.
    pub gone: Vec<ChunkHandle>,
    /// Tombstones.
    pub delete: Vec<(ChunkHandle, Epoch)>,
    /// Tails to zero.
    pub zero: Vec<ZeroTail>,
}

/// What is said about one chunk.
#[derive(Clone, Debug)]
pub enum About {
    /// Primary to others, with the payload of a prepare.
    Peer { call: u64, epoch: Epoch, message: Message, value: u64, configuration: Configuration },
    /// Back to the primary.
    PeerAnswer { call: u64, epoch: Epoch, answer: Answer },
    /// A piece of the chunk for a server that is being filled.
    Copy { call: u64, epoch: Epoch, piece: Piece },
    /// How a piece was taken.
    CopyAnswer { call: u64, first: usize, ok: bool },
    /// Secondary to primary: what is committed?
    Query { call: u64, epoch: Epoch, unsettled: bool },
    /// Back; `None` when it can't be said.
    QueryAnswer { call: u64, epoch: Epoch, committed: Option<Sequence> },
    /// Client to primary.
    Mutate { call: u64, epoch: Epoch, operation: OperationId, confirmed: u64, mutation: Mutation, value: u64 },
    /// Client to primary: fsync.
    Sync { call: u64, epoch: Epoch },
    /// Client to any member.
    Read { call: u64, epoch: Epoch, block: usize },
}

/// Blocks as of a moment of the chunk's history.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The first block.
    pub first: usize,
    /// Blocks from there on.
    pub blocks: Vec<Block>,
    /// As of here.
    pub committed: Sequence,
    /// Up to here, blocks of equal versions are equal and need no copy.
    pub same_below: Option<Sequence>,
    /// With the last piece.
    pub finish: Option<Finish>,
}

/// Length and operation table: the end of a copy.
pub type Finish = (u64, Vec<OperationRecord>);

/// A message. `call` pairs an answer with its question.
#[derive(Clone, Debug)]
pub enum Packet {
    /// To a chunk server, about a chunk.
    Chunk(ChunkHandle, About),
    /// To a client: how its request ended, what was read, and what is stored after a write.
    Reply { call: u64, outcome: Outcome, value: u64 },
    /// Chunk server to master; `number` is echoed.
    Heartbeat { incarnation: u64, number: u64, held: Vec<Held>, deleted: Vec<ChunkHandle>, zeroed: Vec<Zeroed> },
    /// Master to chunk server: the lease is renewed from the sending of that heartbeat.
    Lease { incarnation: u64, number: u64, orders: Orders },
    /// Primary to master.
    Want { incarnation: u64, handle: ChunkHandle, change: WantedChange },
    /// Anybody to master: what is in force? With servers that did not answer.
    Locate { call: u64, handle: ChunkHandle, suspects: Vec<ServerId> },
    /// Master to anybody; `None` when there is no such chunk.
    Located { call: u64, handle: ChunkHandle, assigned: Option<Assigned> },
    /// Client to master: a session, please. `call` is the nonce too.
    Open { call: u64 },
    /// Back.
    Opened { call: u64, session: SessionId },
    /// Client to master: a mutation.
    Command { call: u64, command: ClientCommand },
    /// Back.
    Done { call: u64, reply: Reply },
    /// Client to master: a question.
    Ask { call: u64, query: Query },
    /// Back.
    Told { call: u64, answer: Told },
}

impl Packet {
    /// What is in order with it on the way between two nodes: everything about one chunk, or one connection's packets.
    pub fn lane(&self) -> u64 {
        match self {
            Self::Chunk(handle, About::Mutate { .. } | About::Sync { .. } | About::Read { .. }) => 1 << 62 | handle.0,
            Self::Chunk(handle, About::Copy { .. }) => 1 << 61 | handle.0,
            Self::Chunk(handle, _) => 1 << 63 | handle.0,
            Self::Heartbeat { .. } | Self::Lease { .. } | Self::Located { .. } | Self::Want { .. } => LEASES,
            Self::Locate { .. } => LEASES,
            _ => 2,
        }
    }

    /// Whether a second one may arrive long after the first: a request that its sender repeats on another connection.
    pub fn may_straggle(&self) -> bool {
        match self {
            Self::Chunk(_, about) => {
                matches!(about, About::Mutate { .. } | About::Sync { .. } | About::Read { .. } | About::Query { .. })
            }
            Self::Command { .. } | Self::Ask { .. } | Self::Locate { .. } | Self::Open { .. } => true,
            _ => false,
        }
    }
}
