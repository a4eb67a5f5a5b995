//! The vocabulary between the store and its callers.

use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, ClusterId, Generation, InodeId, Sequence};
use gfs_core::meta::request::Configuration;
pub use gfs_core::replica::{OperationRecord, PreparedWrite, WriteKind};
pub use gfs_local::layout::BlockInfo;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Data directories, one a disk.
    pub dirs: Vec<PathBuf>,
    /// Bytes of a chunk: a multiple of 4096, at most 1 GiB. A fresh server learns it when it registers: see `Store::adopt`.
    pub chunk_size: u64,
    /// Bytes left free on every disk, so that deletes and the journal always work; `None`: the smaller of
    /// 1 GiB and 1 percent, but at least four journal segments.
    pub reserve: Option<u64>,
    /// A checkpoint is made when a disk's journal exceeds this many bytes.
    pub journal_bytes: u64,
    /// Size of a journal segment.
    pub segment_bytes: u64,
    /// A write of fewer bytes goes with its data through the journal even where it could land in place, so
    /// that a sync of it costs one journal fsync that is shared with other chunks.
    pub land_bytes: u64,
    /// So many bytes or more that are put in place at once bypass the page cache.
    pub direct_bytes: u64,
    /// Committed bytes that wait in memory to be put in place, a disk, before writers have to help.
    pub overlay_bytes: u64,
    /// A chunk that was not written for this long is made clean by `tick`, so that a power cut does not make it suspect.
    pub linger: Duration,
    /// Chunk files kept open.
    pub open_files: usize,
    /// Identity of this boot of the machine; `None`: what the kernel says. Tests inject another to simulate a power cut.
    pub boot_id: Option<String>,
    /// Told when a disk fails.
    pub alarm: Alarm,
}

/// Whom to call when a disk fails, before anybody learns of it otherwise. The call must not wait.
#[derive(Clone, Default)]
pub struct Alarm(pub Option<Arc<dyn Fn() + Send + Sync>>);

impl Alarm {
    pub(crate) fn ring(&self) {
        if let Some(call) = &self.0 {
            call();
        }
    }
}

impl std::fmt::Debug for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Alarm").field(&self.0.is_some()).finish()
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            dirs: Vec::new(),
            chunk_size: 64 << 20,
            reserve: None,
            journal_bytes: 256 << 20,
            segment_bytes: 32 << 20,
            land_bytes: 64 << 10,
            direct_bytes: 64 << 10,
            overlay_bytes: 64 << 20,
            linger: Duration::from_secs(20),
            open_files: 1024,
            boot_id: None,
            alarm: Alarm::default(),
        }
    }
}

/// Who the disks belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The chunk server, a random number that it registers with.
    pub server: u128,
}

/// What never changes about a replica.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChunkHeader {
    /// Generation of the cluster that made the chunk.
    pub generation: Generation,
    /// The file that it belongs to, for salvage.
    pub inode: InodeId,
    /// Its place in the file, in chunks.
    pub index: u32,
    /// The file's path when the chunk was made, a hint for salvage; cut to 2048 bytes.
    pub path_hint: Vec<u8>,
    /// Room: 0 is plain replication.
    pub layout_kind: u8,
    /// Room: which shard of an erasure-coded chunk.
    pub shard_index: u8,
    /// Room: 0 is no encryption.
    pub cipher: u16,
}

/// What the store knows of a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaState {
    /// Which chunk.
    pub handle: ChunkHandle,
    /// What never changes about it.
    pub header: ChunkHeader,
    /// The newest configuration that was recorded.
    pub configuration: Configuration,
    /// Committed up to here.
    pub committed: Sequence,
    /// Prepared and not committed, in order, without a gap.
    pub prepared: Vec<PreparedWrite>,
    /// Everything committed up to here is on stable storage.
    pub flushed: Sequence,
    /// Length of the committed bytes.
    pub length: u64,
    /// Operations that may be repeated, by session and operation.
    pub operations: Vec<OperationRecord>,
    /// It may lack something after a power loss (rule 8), until `set_suspect` or `copy_finish`.
    pub suspect: bool,
    /// It is being filled: `start_fill` without `copy_finish`.
    pub filling: bool,
}

/// The answer of a read: verified bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadOut {
    /// The range, cut at the end of the chunk; bytes never written and bytes beyond the length are zero.
    pub data: Bytes,
    /// CRC32C of every block of the range, when both its ends are block aligned; else empty.
    pub block_crcs: Vec<u32>,
    /// CRC32C of `data`, when the range is not block aligned.
    pub crc: u32,
    /// The replica's committed length.
    pub length: u64,
}

/// Fill state of one disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskUsage {
    /// The directory.
    pub path: PathBuf,
    /// Size of its file system in bytes.
    pub total: u64,
    /// Bytes that may still be used: free ones less the reserve.
    pub free: u64,
    /// Chunks on it.
    pub chunks: u64,
    /// Why it is out of service, if it is.
    pub failed: Option<Arc<str>>,
}

/// A file that looked like a chunk and could not be used; it was moved to `quarantine/`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quarantined {
    /// The chunk by the name of its file, if that could be read.
    pub handle: Option<ChunkHandle>,
    /// Where it is now.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}
