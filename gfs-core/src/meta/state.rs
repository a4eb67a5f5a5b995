//! The whole committed state of the metadata service.
//!
//! This room owns what the state consists of and the views that others have of it. Only `apply` changes it.
//! `Clone` is a handful of pointers, and is how a checkpoint freezes it.

use super::chunks::{ChunkInfo, ChunkTable, MAX_GOAL};
use super::holds::Holds;
use super::locks::LockTable;
use super::namespace::{Counts, Namespace, RootOptions};
use super::request::{Attributes, Reply, ServerAddress, Timestamp};
use super::servers::Servers;
use super::sessions::{Known, Sessions};
use super::shrinks::{Shrink, Shrinks};
use super::tombstones::{Tombstone, Tombstones};
use crate::breaks::Broken;
use crate::ids::{ChunkHandle, ClusterId, Generation, InodeId, OperationId, ServerId, SessionId};
use std::sync::Arc;

pub use super::checkpoint::DecodeError;
pub use super::grants::Touched;

/// Smallest chunk size that a cluster may be formatted with.
pub const MIN_CHUNK_SIZE: u64 = 4_096;
/// Most indices of a file.
const MAX_CHUNKS_OF_FILE: u64 = 1 << 32;

/// The committed state.
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) cluster: ClusterId,
    pub(crate) chunk_size: u64,
    pub(crate) default_replicas: u8,
    pub(crate) namespace: Namespace,
    pub(crate) chunks: ChunkTable,
    pub(crate) servers: Servers,
    pub(crate) sessions: Sessions,
    pub(crate) locks: LockTable,
    pub(crate) shrinks: Shrinks,
    pub(crate) tombstones: Tombstones,
    pub(crate) holds: Holds,
    pub(crate) breaks: Broken,
}

/// How much there is of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StateCounts {
    /// Of the namespace.
    pub namespace: Counts,
    /// Chunks, reserved ones included.
    pub chunks: u64,
    /// Chunks that sessions have reserved.
    pub reserved: u64,
    /// Attached chunks with fewer members than their goal.
    pub under_goal: u64,
    /// Replicas that are to be deleted.
    pub tombstones: u64,
    /// Files that are being cut.
    pub shrinks: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Registered chunk servers.
    pub servers: u64,
}

impl State {
    /// The state of a fresh cluster: an empty root. Out-of-range options are moved into range: the chunk size to
    /// a power of two of at least 4 KiB, the replicas to 1..=16.
    pub fn format(cluster: ClusterId, chunk_size: u64, default_replicas: u8, root_mode: u16, now: Timestamp) -> Self {
        let generation = Generation(1);
        let replicas = default_replicas.clamp(1, MAX_GOAL);
        let root = RootOptions { generation, hash_key: cluster.0, mode: root_mode, uid: 0, gid: 0, replicas, now };
        Self {
            cluster,
            chunk_size: chunk_size.clamp(MIN_CHUNK_SIZE, 1 << 31).next_power_of_two(),
            default_replicas: replicas,
            namespace: Namespace::new(root),
            chunks: ChunkTable::new(generation),
            servers: Servers::default(),
            sessions: Sessions::default(),
            locks: LockTable::default(),
            shrinks: Shrinks::default(),
            tombstones: Tombstones::default(),
            holds: Holds::default(),
            breaks: Broken::default(),
        }
    }

    /// Breaks a rule from now on, to show that somebody notices.
    pub fn break_rule(&mut self, breaks: Broken) {
        self.breaks = breaks;
    }

    /// The cluster's identity.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The generation that new ids belong to.
    pub fn generation(&self) -> Generation {
        self.chunks.generation()
    }

    /// Bytes of a chunk.
    pub fn chunk_size(&self) -> u64 {
        self.chunk_size
    }

    /// Replica goal of what nobody set another for.
    pub fn default_replicas(&self) -> u8 {
        self.default_replicas
    }

    /// Largest size of a file.
    pub fn max_size(&self) -> u64 {
        self.chunk_size.saturating_mul(MAX_CHUNKS_OF_FILE).min(super::namespace::SIZE_MAX)
    }

    /// The answer that an operation got before, if it is still kept.
    pub fn replayed(&self, id: OperationId) -> Option<Reply> {
        match self.sessions.known(id) {
            Known::Answered(reply) => Some(reply),
            Known::New | Known::Forgotten | Known::NoSession => None,
        }
    }

    /// Inodes without a name: freed by `ReapOrphans` once nobody holds them open.
    pub fn orphans(&self) -> impl Iterator<Item = InodeId> + '_ {
        self.namespace.orphans()
    }

    /// Whether an inode has lost its last name.
    pub fn is_orphan(&self, inode: InodeId) -> bool {
        self.namespace.is_orphan(inode)
    }

    /// An inode's attributes.
    pub fn attributes(&self, inode: InodeId) -> Option<Attributes> {
        self.namespace.attributes(inode)
    }

    /// A file's chunks in order, from an index on.
    pub fn chunks_of(&self, inode: InodeId, first: u32) -> impl Iterator<Item = ChunkInfo> + '_ {
        self.chunks.of_file(inode, first)
    }

    /// Cuts whose chunk's tail is still to be zeroed, by inode.
    pub fn shrinks(&self) -> impl Iterator<Item = Shrink> + '_ {
        self.shrinks.iter()
    }

    /// The cut that is pending on a file.
    pub fn shrink(&self, inode: InodeId) -> Option<Shrink> {
        self.shrinks.get(inode)
    }

    /// Replicas that are to be deleted, by server and handle.
    pub fn tombstones(&self) -> impl Iterator<Item = Tombstone> + '_ {
        self.tombstones.iter()
    }

    /// Those of one server, from a handle on.
    pub fn tombstones_of(&self, server: ServerId, from: ChunkHandle) -> impl Iterator<Item = Tombstone> + '_ {
        self.tombstones.of(server, from)
    }

    /// Whether a replica is to be deleted, and up to which epoch.
    pub fn tombstone(&self, server: ServerId, handle: ChunkHandle) -> Option<Tombstone> {
        self.tombstones.get(server, handle)
    }

    /// Open sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Registered chunk servers.
    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Directories that sessions hold.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Locks that are held.
    pub fn locks(&self) -> &LockTable {
        &self.locks
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A chunk.
    pub fn chunk(&self, handle: ChunkHandle) -> Option<ChunkInfo> {
        self.chunks.get(handle)
    }

    /// The chunk table.
    pub fn chunks(&self) -> &ChunkTable {
        &self.chunks
    }

    /// The chunks that a session has reserved and not attached.
    pub fn reserved_by(&self, session: SessionId) -> impl Iterator<Item = ChunkInfo> + '_ {
        self.chunks.reserved_by(session)
    }

    /// Chunks with fewer members than their goal, from a handle on.
    pub fn under_goal(&self, from: ChunkHandle) -> impl Iterator<Item = ChunkInfo> + '_ {
        self.chunks.under_goal(from)
    }

    /// Chunks with enough members that have more, or have syncing ones, from a handle on.
    pub fn over_goal(&self, from: ChunkHandle) -> impl Iterator<Item = ChunkInfo> + '_ {
        self.chunks.over_goal(from)
    }

    /// All chunks from a handle on: to walk the table in bounded steps.
    pub fn chunks_from(&self, from: ChunkHandle) -> impl Iterator<Item = ChunkInfo> + '_ {
        self.chunks.iter_from(from)
    }

    /// Addresses of servers; those that are not registered any more are left out.
    pub fn addresses(&self, servers: impl IntoIterator<Item = ServerId>) -> Vec<ServerAddress> {
        let records = servers.into_iter().filter_map(|server| self.servers.get(server));
        records
            .map(|record| ServerAddress { server: record.server, address: Arc::from(record.identity.address) })
            .collect()
    }

    /// How much there is of everything.
    pub fn counts(&self) -> StateCounts {
        StateCounts {
            namespace: self.namespace.counts(),
            chunks: self.chunks.len(),
            reserved: self.chunks.reserved_count(),
            under_goal: self.chunks.under_goal_count(),
            tombstones: self.tombstones.len(),
            shrinks: self.shrinks.len(),
            sessions: self.sessions.len(),
            servers: self.servers.len(),
        }
    }

    /// Bytes of memory of namespace and chunk table, by walking them.
    pub fn memory_bytes(&self) -> u64 {
        self.namespace.memory_bytes() + self.chunks.memory_bytes()
    }

    /// Ids handed out from now on belong to a later generation: an operator restored a backup and says so.
    pub fn raise_generation(&mut self, generation: Generation) {
        if generation > self.generation() {
            self.namespace.set_generation(generation);
            self.chunks.set_generation(generation);
        }
    }
}
