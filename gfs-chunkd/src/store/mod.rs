//! The chunk store: replicas of chunks in local directories, one a disk.
//!
//! This room owns bytes on disk: the chunk files (`docs/formats/chunk.md`), the journal of prepared and committed
//! writes (`docs/formats/journal.md`) and the identity of the disks (`docs/formats/disk.md`). It never
//! decides what to prepare, commit or delete, and never talks to another server.
//!
//! All calls block and may come from any thread. What a call has done survives the kill of the process when it
//! returns; what `sync` has covered survives a power cut.

mod checkpoint;
mod chunk;
mod codec;
mod commit;
mod copy;
#[doc(hidden)]
pub mod decoders;
mod direct;
mod disk;
mod error;
mod file;
mod identity;
mod layout;
mod manage;
mod prepare;
mod read;
mod reaper;
mod record;
mod recover;
mod scrub;
#[cfg(test)]
pub(crate) mod tests;
mod types;

pub use error::StoreError;
pub use layout::BLOCK;
pub use types::*;

use bytes::Bytes;
use chunk::Chunk;
use disk::Disk;
use gfs_core::ids::{ChunkHandle, Sequence, SessionId};
use gfs_core::meta::request::Configuration;
use parking_lot::{Mutex, RwLock};
use record::JournalRecord;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// The chunk store of one server.
pub struct Store {
    options: Arc<StoreOptions>,
    chunk_size: AtomicU64,
    disks: RwLock<Vec<Arc<Disk>>>,
    /// Directories without an identity, locked.
    fresh: Mutex<Vec<(PathBuf, std::fs::File)>>,
    /// Directories that could not be used when the store was opened, and why.
    unusable: Vec<(PathBuf, Arc<str>)>,
    chunks: RwLock<HashMap<ChunkHandle, Arc<Chunk>>>,
    /// Handles that are being created.
    creating: Mutex<HashSet<ChunkHandle>>,
}

impl Store {
    /// All replicas on disks in service, by handle.
    pub fn list(&self) -> Vec<ReplicaState> {
        let mut chunks: Vec<Arc<Chunk>> = self.chunks.read().values().cloned().collect();
        chunks.sort_unstable_by_key(|chunk| chunk.handle);
        let healthy = chunks.iter().filter(|chunk| chunk.disk.check().is_ok());
        healthy.map(|chunk| chunk.describe(&chunk.state.read())).collect()
    }

    /// The boot of the machine that the store runs in.
    pub fn boot(&self) -> Result<String, StoreError> {
        identity::current_boot(&self.options)
    }

    /// One replica.
    pub fn state(&self, handle: ChunkHandle) -> Result<ReplicaState, StoreError> {
        self.with(handle, |chunk| Ok(chunk.describe(&chunk.state.read())))
    }

    /// Records a configuration. One with a single member is on stable storage when this returns (see `Action::Persist`).
    pub fn set_configuration(&self, handle: ChunkHandle, configuration: &Configuration) -> Result<(), StoreError> {
        self.with(handle, |chunk| {
            let mut state = chunk.state.write();
            if state.dead {
                return Err(chunk.missing());
            }
            if state.configuration == *configuration {
                return Ok(());
            }
            let appended = chunk.journal(&mut state, &JournalRecord::Configuration(configuration.clone()))?;
            state.configuration = configuration.clone();
            drop(state);
            if configuration.members.len() == 1 { chunk.journal_durable(appended.end.0) } else { Ok(()) }
        })
    }

    /// Whether there is room for bytes that this server would be the first to take. A full disk answers `NoSpace` here while it still
    /// takes what others have ordered.
    pub fn admit(&self, handle: ChunkHandle, bytes: u64) -> Result<(), StoreError> {
        self.with(handle, |chunk| chunk.disk.admit(bytes))
    }

    /// Stores a write; no reader sees it. `data` is empty for `Zero` and `Truncate`, else `write.length` bytes, at most
    /// 16 MiB. Its sequence must follow what is prepared. `Truncate` zeroes from its offset to the end, whatever its length.
    pub fn prepare(&self, handle: ChunkHandle, write: &PreparedWrite, data: &[u8]) -> Result<(), StoreError> {
        self.with(handle, |chunk| {
            if chunk.disk.is_overrun() {
                // Somebody else may be at it: then it is enough to wait.
                drop(chunk.disk.checkpoint.lock());
            }
            if chunk.disk.is_overrun() {
                self.checkpoint(&chunk.disk, checkpoint::Scope::All, self.options.linger)?;
            }
            chunk.prepare(write, data)
        })
    }

    /// Prepared writes up to here take effect: readers see them. What is committed already is no error.
    pub fn commit(&self, handle: ChunkHandle, upto: Sequence) -> Result<(), StoreError> {
        self.with(handle, |chunk| chunk.commit(upto))
    }

    /// Forgets prepared writes above a sequence, and their operations.
    pub fn rollback(&self, handle: ChunkHandle, above: Sequence) -> Result<(), StoreError> {
        self.with(handle, |chunk| chunk.rollback(above))
    }

    /// The payload of a prepared write that is not committed yet; empty for `Zero` and `Truncate`.
    pub fn prepared_data(&self, handle: ChunkHandle, sequence: Sequence) -> Result<Bytes, StoreError> {
        self.with(handle, |chunk| chunk.prepared_data(sequence))
    }

    /// Reads committed bytes, verified. The range is cut at the end of the chunk.
    pub fn read(&self, handle: ChunkHandle, offset: u64, length: u64) -> Result<ReadOut, StoreError> {
        self.with(handle, |chunk| chunk.read(offset, length))
    }

    /// Like `read`, but `Ok(None)` when it would have to wait for the disk or for a lock.
    pub fn read_cached(&self, handle: ChunkHandle, offset: u64, length: u64) -> Result<Option<ReadOut>, StoreError> {
        self.with(handle, |chunk| chunk.read_cached(offset, length))
    }

    /// Puts what is committed in its place in the file, as far as the journal still holds it.
    pub fn settle(&self, handle: ChunkHandle) -> Result<(), StoreError> {
        self.with(handle, |chunk| chunk.settle().map(drop))
    }

    /// The file of a replica, open for reading, and the length of what is committed, if the file holds exactly that: nothing is prepared,
    /// nothing waits in the journal, nothing is missing. It does so until something is done to the replica.
    pub fn lend(&self, handle: ChunkHandle) -> Result<Option<(std::fs::File, u64)>, StoreError> {
        self.with(handle, |chunk| chunk.lend())
    }

    /// Has the operating system read a range that will be asked for soon. A hint: it answers nothing.
    pub fn read_ahead(&self, handle: ChunkHandle, offset: u64, length: u64) {
        let chunk = self.chunks.read().get(&handle).cloned();
        if let Some(chunk) = chunk.filter(|chunk| chunk.disk.check().is_ok()) {
            chunk.read_ahead(offset, length);
        }
    }

    /// Brings everything committed to stable storage; answers up to which sequence.
    pub fn sync(&self, handle: ChunkHandle) -> Result<Sequence, StoreError> {
        self.with(handle, |chunk| chunk.sync())
    }

    /// The same for several chunks, with one journal fsync a disk.
    pub fn sync_many(&self, handles: &[ChunkHandle]) -> Vec<Result<Sequence, StoreError>> {
        let begun: Vec<_> = handles
            .iter()
            .map(|handle| self.with(*handle, |chunk| chunk.sync_begin().map(|begun| (begun, chunk.clone()))))
            .collect();
        let finish = |((committed, end), chunk): ((Sequence, Option<u64>), Arc<Chunk>)| {
            if let Some(end) = end {
                chunk.disk.judge(chunk.journal_durable(end))?;
                chunk.raise_flushed(committed);
            }
            Ok(committed)
        };
        begun.into_iter().map(|begun| begun.and_then(finish)).collect()
    }

    /// The first offset at or after `offset` that is data (or a hole); the chunk size when there is none. Everything
    /// beyond the length is a hole.
    pub fn seek(&self, handle: ChunkHandle, offset: u64, hole: bool) -> Result<u64, StoreError> {
        self.with(handle, |chunk| chunk.seek(offset, hole))
    }

    /// How many blocks hold committed bytes, and up to which sequence that counts. A block that a `Zero` or `Truncate` has punched out as
    /// a whole holds none; one into which zeros were written does. The table is read once, then the count is kept.
    pub fn stored(&self, handle: ChunkHandle) -> Result<(u32, Sequence), StoreError> {
        self.with(handle, |chunk| chunk.stored())
    }

    /// Versions and checksums of committed blocks.
    pub fn blocks(&self, handle: ChunkHandle, first: u32, count: u32) -> Result<Vec<BlockInfo>, StoreError> {
        self.with(handle, |chunk| chunk.blocks(first, count))
    }

    /// Versions and checksums of committed blocks with their verified bytes, a whole block for each.
    pub fn fetch_blocks(
        &self,
        handle: ChunkHandle,
        first: u32,
        count: u32,
    ) -> Result<(Vec<BlockInfo>, Bytes), StoreError> {
        self.with(handle, |chunk| chunk.fetch_blocks(first, count))
    }

    /// Verifies committed blocks as they lie on the disk, past the page cache. Answers how many bytes were read. A replica that is
    /// being written is left for another time.
    pub fn scrub(&self, handle: ChunkHandle, first: u32, count: u32) -> Result<u64, StoreError> {
        self.with(handle, |chunk| chunk.scrub(first, count))
    }

    /// Begins to fill the replica from another: all prepared writes are forgotten, committed and prepared become
    /// `base`, committed blocks stay, and the replica is `filling`.
    pub fn copy_start(&self, handle: ChunkHandle, base: Sequence) -> Result<(), StoreError> {
        self.with(handle, |chunk| chunk.copy_start(base))
    }

    /// Replaces blocks, whatever is there. `data` holds a whole block for each; a block never written is zeros.
    pub fn copy_in(
        &self,
        handle: ChunkHandle,
        first: u32,
        blocks: &[BlockInfo],
        data: &[u8],
    ) -> Result<(), StoreError> {
        self.with(handle, |chunk| chunk.copy_in(first, blocks, data))
    }

    /// The copy is whole: sets the length and the operations, brings everything to stable storage and ends `filling`.
    pub fn copy_finish(
        &self,
        handle: ChunkHandle,
        length: u64,
        operations: &[OperationRecord],
    ) -> Result<(), StoreError> {
        self.with(handle, |chunk| chunk.copy_finish(length, operations))
    }

    /// Notes that the replica lacks something, or that it is known to be whole again. The former is on stable storage when this
    /// returns.
    pub fn set_suspect(&self, handle: ChunkHandle, suspect: bool) -> Result<(), StoreError> {
        self.with(handle, |chunk| chunk.set_suspect(suspect))
    }

    /// Answers of the session up to `upto` have arrived: their records may go.
    pub fn confirm_operations(&self, handle: ChunkHandle, session: SessionId, upto: u64) -> Result<(), StoreError> {
        self.with(handle, |chunk| {
            chunk.state.write().operations.confirm(session, upto);
            Ok(())
        })
    }

    /// Runs a call on a chunk whose disk is in service, and takes the disk out of service if the call says so.
    fn with<T>(
        &self,
        handle: ChunkHandle,
        call: impl FnOnce(&Arc<Chunk>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let chunk = self.chunks.read().get(&handle).cloned().ok_or(StoreError::NoChunk { handle })?;
        chunk.disk.check()?;
        chunk.disk.called();
        chunk.disk.judge(call(&chunk))
    }
}
