//! What travels between the nodes of a simulated cluster.

use crate::disk::Block;
use gfs_core::ids::{Epoch, OperationId, Sequence, ServerId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{Answer, Message, Mutation, OperationRecord, Status, WantedChange};

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

/// A message. `call` pairs an answer with its question.
#[derive(Clone, Debug)]
pub enum Packet {
    /// Primary to others, with the payload of a prepare.
    Peer { call: u64, epoch: Epoch, message: Message, value: u64, configuration: Configuration },
    /// Back to the primary.
    PeerAnswer { call: u64, epoch: Epoch, answer: Answer },
    /// A piece of the chunk for a server that is being filled.
    Copy {
        call: u64,
        epoch: Epoch,
        first: usize,
        blocks: Vec<Block>,
        committed: Sequence,
        finish: Option<(u64, Vec<OperationRecord>)>,
    },
    /// How a piece was taken.
    CopyAnswer { call: u64, first: usize, status: Status },
    /// Secondary to primary: what is committed?
    Query { call: u64, epoch: Epoch, unsettled: bool },
    /// Back.
    QueryAnswer { call: u64, epoch: Epoch, status: Status, committed: Sequence },
    /// Client to primary.
    Write { call: u64, epoch: Epoch, operation: OperationId, confirmed: u64, mutation: Mutation, value: u64 },
    /// Client to primary: fsync.
    Sync { call: u64, epoch: Epoch },
    /// Client to any member.
    Read { call: u64, epoch: Epoch, block: usize },
    /// To a client.
    Reply { call: u64, status: Status, value: u64 },
    /// Chunk server to master; `number` is echoed. `unfit` names the epoch in which its replica serves nothing, because it
    /// is suspect or broken: its agreement to be left out of that configuration.
    Heartbeat { incarnation: u64, number: u64, unfit: Option<Epoch> },
    /// Master to chunk server: the lease is renewed from the sending of that heartbeat.
    Lease { incarnation: u64, number: u64, configuration: Configuration },
    /// Primary to master.
    Want { incarnation: u64, change: WantedChange },
    /// Anybody to master: what is in force? With servers that did not answer.
    Locate { call: u64, suspects: Vec<ServerId> },
    /// Master to anybody.
    Located { call: u64, configuration: Configuration },
}
