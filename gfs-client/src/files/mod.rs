//! Open files: reading, writing, appending, syncing; and what is kept of a file as long as it is open or not yet synced.
//!
//! Writes are carried out before they are answered, but for the first bytes of new files (`behind`). What is kept else is what an fsync has
//! to reach. This room never decides a size or a layout; the master does, and refuses what is based on an old one.

mod ahead;
mod append;
mod behind;
mod crossing;
mod digest;
mod doubt;
mod hold;
mod read;
mod space;
pub(crate) mod split;
mod sync;
mod view;
mod write;

pub(crate) use ahead::Ahead;
pub(crate) use behind::Shared as SharedBehind;
pub(crate) use doubt::LostTails;
pub use space::Zeroing;

use crate::client::Client;
use crate::data::{Attempt, DataFailure, first_of};
use crate::error::ClientError;
use crate::limit::CallLimit;
use gfs_core::ids::{ChunkHandle, InodeId};
pub use gfs_core::meta::opens::OpenAccess as Access;
use gfs_core::meta::opens::OpenMode;
use gfs_core::meta::request::Refusal;
use gfs_proto::convert::open_mode_to_wire;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// O_RDONLY.
pub const ACCESS_READ: Access = Access::Read;
/// O_WRONLY.
pub const ACCESS_WRITE: Access = Access::Write;
/// O_RDWR.
pub const ACCESS_BOTH: Access = Access::Both;

/// Whether what is read through an open file may stay in a page cache above this library: until `Invalidator::invalidate` says that it is to
/// be dropped, and only as long as the attributes of the file are granted. While they are not, another client has it open for writing, and
/// pages are good for one read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pages {
    /// It does not.
    #[default]
    Never,
    /// If no other client has the file open for writing.
    IfAlone,
    /// It will.
    Anyway,
}

/// Largest piece of a read or write that goes over the wire at once. The pieces of one request overlap: while one is stored, the
/// next is on its way. Small enough for that, large enough that their count does not matter.
pub(crate) const PIECE: u64 = 256 << 10;
/// Pieces of one request that are under way at a time.
const PIECES_AT_A_TIME: usize = 16;
/// One piece under way.
type Running<'a, T> = Attempt<'a, Result<T, DataFailure>>;

/// Runs the pieces of one request, begun in their order on this task, and hands over what each came to. Ends at the first failure.
async fn run_pieces<'a, T>(
    mut waiting: impl Iterator<Item = Running<'a, T>>,
    mut done: impl FnMut(T),
) -> Result<(), DataFailure> {
    let mut running = Vec::new();
    loop {
        running.extend(waiting.by_ref().take(PIECES_AT_A_TIME - running.len()));
        if running.is_empty() {
            return Ok(());
        }
        done(first_of(&mut running).await?);
    }
}

/// Chunks written and not synced, beyond which some are synced in the background.
const MAX_DIRTY: usize = 16_384;

/// Chunks of a file that this client wrote since its last sync.
#[derive(Default)]
struct Dirty {
    chunks: BTreeSet<ChunkHandle>,
    /// Times were sent that the master has not committed.
    times: bool,
}

/// A reserved chunk that writes of this client are filling, before it is attached.
struct Filling {
    handle: ChunkHandle,
    session: u64,
    users: usize,
}

/// What is kept of one file over all its handles.
#[derive(Default)]
pub(crate) struct FileState {
    handles: AtomicUsize,
    /// Handles that may write.
    writers: AtomicUsize,
    dirty: Mutex<Dirty>,
    /// One sync at a time: a second one must not return before the first.
    syncing: tokio::sync::Mutex<()>,
    /// Appends of this client take turns: they would only get into each other's way.
    appending: tokio::sync::Mutex<()>,
    /// Reserving takes turns, so that two writes to one new chunk share it.
    reserving: tokio::sync::Mutex<()>,
    filling: Mutex<BTreeMap<u32, Filling>>,
    behind: behind::Behind,
    /// Held (shared) while this client changes the file, other than by what it holds; never waited for to be had alone.
    changing: tokio::sync::RwLock<()>,
    wish: Mutex<hold::Wish>,
    /// Shared by claims of a chunk's tail that are not settled.
    claims: Arc<()>,
}

/// All files that are open or not synced.
#[derive(Default)]
pub(crate) struct FileStates {
    files: Mutex<HashMap<InodeId, Arc<FileState>>>,
    dirty: AtomicUsize,
    flushing: AtomicBool,
}

impl FileStates {
    fn open(&self, inode: InodeId, access: Access) -> Arc<FileState> {
        let state = self.files.lock().entry(inode).or_default().clone();
        state.handles.fetch_add(1, Ordering::AcqRel);
        if access != Access::Read {
            state.writers.fetch_add(1, Ordering::AcqRel);
        }
        state
    }

    /// Whether this client has a file open for writing, or still writes to it: only the master knows its attributes then, unless it is held.
    pub(crate) fn is_written(&self, inode: InodeId) -> bool {
        let files = self.files.lock();
        files.get(&inode).is_some_and(|state| state.writers.load(Ordering::Acquire) > 0 || !state.behind.is_clean())
    }

    /// A handle was closed. Returns whether it was the last.
    fn close(&self, inode: InodeId, state: &FileState) -> bool {
        let mut files = self.files.lock();
        let last = state.handles.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && state.is_clean() {
            files.remove(&inode);
        }
        last
    }

    /// Forgets a file that nobody has open, once it is synced.
    fn tidy(&self, inode: InodeId) {
        let mut files = self.files.lock();
        if files.get(&inode).is_some_and(|state| state.handles.load(Ordering::Acquire) == 0 && state.is_clean()) {
            files.remove(&inode);
        }
    }

    /// Files of which something waits to be written, or to be told.
    fn all_behind(&self) -> Vec<(InodeId, Arc<FileState>)> {
        let files = self.files.lock();
        files
            .iter()
            .filter(|(_, state)| !state.behind.is_clean())
            .map(|(inode, state)| (*inode, state.clone()))
            .collect()
    }

    /// What could not be written of a file after it was answered; told once.
    pub(crate) fn take_failure(&self, inode: InodeId) -> Result<(), ClientError> {
        let state = self.files.lock().get(&inode).cloned();
        state.map_or(Ok(()), |state| state.behind.take_failure())
    }

    fn all_dirty(&self) -> Vec<(InodeId, Arc<FileState>)> {
        let files = self.files.lock();
        files.iter().filter(|(_, state)| state.is_dirty()).map(|(inode, state)| (*inode, state.clone())).collect()
    }
}

impl FileState {
    fn is_dirty(&self) -> bool {
        let dirty = self.dirty.lock();
        !dirty.chunks.is_empty() || dirty.times
    }

    fn is_clean(&self) -> bool {
        self.behind.is_clean() && !self.is_dirty()
    }
}

/// An open file. Cheap to clone; the last clone to go closes it, or `close` does.
#[derive(Clone)]
pub struct OpenFile {
    inner: Arc<Handle>,
}

struct Handle {
    client: Client,
    inode: InodeId,
    /// As the master counts it.
    counted: OpenMode,
    /// As the caller may use it.
    access: Access,
    state: Arc<FileState>,
    closed: AtomicBool,
    /// Where the last read ended.
    read_end: AtomicU64,
}

impl Handle {
    fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = &self.client.inner;
        // What is held is closed with the flush that gives it back.
        if !inner.delegations.get(self.inode).is_some_and(|held| held.close()) {
            inner.session.close_file(self.inode.0, open_mode_to_wire(self.counted));
        }
        if self.counted.access != Access::Read && self.state.writer_goes() {
            self.client.let_go(self.inode);
        }
        if inner.files.close(self.inode, &self.state) {
            inner.locks.forget(self.inode);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenFile")
            .field("inode", &self.inner.inode)
            .field("access", &self.inner.access)
            .finish_non_exhaustive()
    }
}

impl OpenFile {
    /// A handle on what the master has just opened.
    pub(crate) fn new(client: Client, inode: InodeId, access: Access) -> Self {
        let state = client.inner.files.open(inode, access);
        Self {
            inner: Arc::new(Handle {
                client,
                inode,
                counted: access.into(),
                access,
                state,
                closed: AtomicBool::new(false),
                read_end: AtomicU64::new(0),
            }),
        }
    }

    /// The same handle, of which pages may be cached. Only for one that was not shared yet.
    pub(crate) fn with_pages(mut self) -> Self {
        if let Some(handle) = Arc::get_mut(&mut self.inner) {
            handle.counted.pages = true;
        }
        self
    }

    /// The same handle for less. Only for one that was not shared yet.
    pub(crate) fn limited(mut self, access: Access) -> Self {
        if let Some(handle) = Arc::get_mut(&mut self.inner) {
            handle.access = access;
        }
        self
    }

    /// The file.
    pub fn inode(&self) -> InodeId {
        self.inner.inode
    }

    /// Closes it for all clones, without waiting: what still waits to be written is, and what was not synced stays known to
    /// `Client::sync_all`.
    pub fn close(&self) {
        self.inner.close();
    }

    fn client(&self) -> &Client {
        &self.inner.client
    }

    fn state(&self) -> &FileState {
        &self.inner.state
    }

    /// Before every use of the file: its locks may have been lost.
    fn check(&self) -> Result<(), ClientError> {
        self.inner.client.inner.locks.check(self.inner.inode)
    }

    fn check_writable(&self) -> Result<(), ClientError> {
        self.take_failure()?;
        self.check()?;
        if self.inner.access == Access::Read { Err(Refusal::NotPermitted.into()) } else { Ok(()) }
    }

    /// The end of a range, which must be one that a file can have.
    fn end_of(&self, offset: u64, length: u64) -> Result<u64, ClientError> {
        let chunks = u64::from(u32::MAX);
        let largest = self.inner.client.inner.chunk_size.saturating_mul(chunks).min(i64::MAX as u64);
        offset.checked_add(length).filter(|end| *end <= largest).ok_or(ClientError::Refused(Refusal::TooLarge))
    }
}

/// Pauses of something that starts over because the layout changed under it.
pub(crate) struct Redo {
    next: Duration,
}

impl Redo {
    pub(crate) fn new() -> Self {
        Self { next: Duration::ZERO }
    }

    pub(crate) async fn pause(&mut self, operation: &'static str, limit: &CallLimit) -> Result<(), ClientError> {
        limit.pause(operation, self.next).await?;
        self.next = (self.next * 2).clamp(Duration::from_millis(2), Duration::from_millis(100));
        Ok(())
    }
}
