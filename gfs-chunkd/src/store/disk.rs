//! One data directory: its journal, its open files, its space, and whether it is in service.

use super::direct::Direct;
use super::error::StoreError;
use super::file::ChunkFile;
use super::identity::{DiskIdentity, sync_dir};
use super::layout::Geometry;
use super::reaper::Reaper;
use super::types::{DiskUsage, Quarantined, StoreOptions};
use gfs_core::ids::ChunkHandle;
use gfs_log::{Log, LogError, LogOptions, Record};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Directories that chunk files are spread over.
pub(crate) const FANS: u64 = 256;
/// The type of a file system that a program serves, as statfs tells it.
const FUSE: u32 = 0x6573_5546;
/// The largest record: a prepare with its data.
const MAX_RECORD: u32 = 32 << 20;

/// A directory in use.
pub(crate) struct Disk {
    pub path: PathBuf,
    /// Holds the lock.
    pub dir: File,
    pub identity: DiskIdentity,
    pub geometry: Geometry,
    pub journal: Log,
    pub options: Arc<StoreOptions>,
    /// Whether one syncfs brings everything to stable storage: the kernel does not pass it on to a file system in user space.
    pub syncs_whole: bool,
    reserve: u64,
    /// Bytes that may be written before the file system is asked again.
    budget: AtomicI64,
    failed: AtomicBool,
    reason: Mutex<Option<Arc<str>>>,
    files: Mutex<LruCache<ChunkHandle, Arc<ChunkFile>>>,
    /// Writes of many bytes.
    pub direct: Direct,
    /// Committed bytes in memory that wait to be put in place.
    pub overlay: AtomicU64,
    /// Directories with creations and removals that are not durable yet.
    pub touched: Mutex<BTreeSet<u64>>,
    /// Chunks whose newest state slot is not durable yet.
    pub slots: Mutex<BTreeSet<ChunkHandle>>,
    /// Held during a checkpoint.
    pub checkpoint: Mutex<()>,
    /// Held (shared) from the record of a creation or removal until it is done.
    pub membership: RwLock<()>,
    pub quarantined: Mutex<Vec<Quarantined>>,
    reaper: Reaper,
}

impl Disk {
    /// Wraps an opened directory.
    pub fn new(
        path: &Path,
        dir: File,
        identity: DiskIdentity,
        journal: Log,
        options: Arc<StoreOptions>,
    ) -> Result<Self, StoreError> {
        let open_files = NonZeroUsize::new(options.open_files).unwrap_or(NonZeroUsize::MIN);
        let stat = rustix::fs::statvfs(path).map_err(|e| StoreError::io("statvfs", path, e))?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        let kind = rustix::fs::fstatfs(&dir).map_err(|e| StoreError::io("statfs", path, e))?.f_type;
        let direct = Direct::new(options.direct_bytes);
        let reserve = options.reserve.unwrap_or((1 << 30).min(total / 100).max(4 * options.segment_bytes));
        Ok(Self {
            path: path.to_owned(),
            dir,
            identity,
            geometry: Geometry { chunk_size: identity.chunk_size },
            journal,
            options,
            syncs_whole: kind as u32 != FUSE,
            reserve,
            budget: AtomicI64::new(0),
            failed: AtomicBool::new(false),
            reason: Mutex::new(None),
            files: Mutex::new(LruCache::new(open_files)),
            direct,
            overlay: AtomicU64::new(0),
            touched: Mutex::new(BTreeSet::new()),
            slots: Mutex::new(BTreeSet::new()),
            checkpoint: Mutex::new(()),
            membership: RwLock::new(()),
            quarantined: Mutex::new(Vec::new()),
            reaper: Reaper::start(path)?,
        })
    }

    /// Opens the journal of a directory.
    pub fn open_journal(
        dir: &Path,
        options: &StoreOptions,
        visit: impl FnMut(Record) -> Result<(), LogError>,
    ) -> Result<Log, StoreError> {
        let path = dir.join("journal");
        let log_options =
            LogOptions { segment_bytes: options.segment_bytes, max_record_bytes: MAX_RECORD, name: "journal".into() };
        Log::open(&path, log_options, visit).map_err(|source| StoreError::Journal { path, source })
    }

    /// The directory number of a chunk.
    pub fn fan(handle: ChunkHandle) -> u64 {
        // Handles count up, so the low bits spread evenly.
        handle.0 % FANS
    }

    /// The directory with this number.
    pub fn fan_path(dir: &Path, fan: u64) -> PathBuf {
        dir.join("chunks").join(format!("{fan:02x}"))
    }

    /// The file of a chunk.
    pub fn chunk_path(&self, handle: ChunkHandle) -> PathBuf {
        Self::fan_path(&self.path, Self::fan(handle)).join(format!("{:016x}", handle.0))
    }

    /// The open file of a chunk.
    pub fn file(&self, handle: ChunkHandle) -> Result<Arc<ChunkFile>, StoreError> {
        if let Some(file) = self.files.lock().get(&handle) {
            return Ok(file.clone());
        }
        let path = self.chunk_path(handle);
        let file = match ChunkFile::open(&path) {
            // Somebody took the file away: the replica is lost, the disk is not.
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(StoreError::Corrupt { handle, block: 0, path });
            }
            opened => Arc::new(opened?),
        };
        self.keep_open(handle, file.clone());
        Ok(file)
    }

    /// Makes the file of a new chunk, with these first bytes.
    pub fn new_file(&self, handle: ChunkHandle, offset: u64, parts: &[&[u8]]) -> Result<ChunkFile, StoreError> {
        let path = self.chunk_path(handle);
        if let Some(Ok(file)) = self.reaper.reuse(&path, |file| file.write(offset, parts)) {
            return Ok(file);
        }
        let file = ChunkFile::create(&path)?;
        file.write(offset, parts)?;
        Ok(file)
    }

    /// Keeps a file open for the next use.
    pub fn keep_open(&self, handle: ChunkHandle, file: Arc<ChunkFile>) {
        // The closing of another file must not happen under the lock.
        let _evicted = self.files.lock().push(handle, file);
    }

    /// Forgets the open file of a chunk.
    pub fn forget_file(&self, handle: ChunkHandle) {
        let _closed = self.files.lock().pop(&handle);
    }

    /// Somebody asks for something of this disk.
    pub fn called(&self) {
        self.reaper.called();
    }

    /// Takes the file of a deleted replica away; `record` is where the journal says that it is deleted. Its blocks are freed a while later.
    pub fn remove_file(&self, handle: ChunkHandle, record: u64) -> Result<(), StoreError> {
        self.forget_file(handle);
        self.reaper.take(&self.chunk_path(handle), handle, record)?;
        self.touch(handle);
        Ok(())
    }

    /// Notes a creation or removal in a chunk's directory.
    pub fn touch(&self, handle: ChunkHandle) {
        self.touched.lock().insert(Self::fan(handle));
    }

    /// Makes creations and removals in a chunk's directory durable.
    pub fn sync_fan(&self, handle: ChunkHandle) -> Result<(), StoreError> {
        sync_dir(&Self::fan_path(&self.path, Self::fan(handle)))
    }

    /// Brings everything on the file system to stable storage.
    pub fn sync_all(&self) -> Result<(), StoreError> {
        rustix::fs::syncfs(&self.dir).map_err(|e| StoreError::io("syncfs", &self.path, e))
    }

    /// Refuses if the disk is out of service.
    pub fn check(&self) -> Result<(), StoreError> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let reason = self.reason.lock().clone().unwrap_or_else(|| "unknown".into());
        Err(StoreError::DiskFailed { path: self.path.clone(), reason })
    }

    /// Takes the disk out of service if the result says so; the error is then `DiskFailed`.
    pub fn judge<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match result {
            Err(error) if error.fails_disk() => {
                let reason: Arc<str> = error.to_string().into();
                let mut kept = self.reason.lock();
                if kept.is_none() {
                    tracing::error!(disk = %self.path.display(), %reason, "disk is out of service");
                    *kept = Some(reason.clone());
                }
                drop(kept);
                if !self.failed.swap(true, Ordering::AcqRel) {
                    self.options.alarm.ring();
                }
                Err(StoreError::DiskFailed { path: self.path.clone(), reason })
            }
            Err(StoreError::Journal { source, .. }) if source.is_no_space() => {
                Err(StoreError::NoSpace { path: self.path.clone() })
            }
            other => other,
        }
    }

    /// Turns a journal's error into ours.
    pub fn journal_error(&self, source: LogError) -> StoreError {
        StoreError::Journal { path: self.path.join("journal"), source }
    }

    /// Takes bytes from what may be written, or says that there is no space.
    pub fn take_space(&self, bytes: u64) -> Result<(), StoreError> {
        let wanted = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.budget.fetch_sub(wanted, Ordering::AcqRel) >= wanted {
            return Ok(());
        }
        let (_, free) = self.space()?;
        if free < bytes {
            self.budget.store(0, Ordering::Release);
            return Err(StoreError::NoSpace { path: self.path.clone() });
        }
        // Others write to the file system too: never trust an answer for long.
        let budget = ((free - bytes) / 8).min(1 << 30);
        self.budget.store(i64::try_from(budget).unwrap_or(0), Ordering::Release);
        Ok(())
    }

    /// Whether bytes that nobody else has yet may come here. This ends well before `take_space` does, so that a server refuses what it
    /// would order itself while it still follows others: a member that is full would have to leave its chunks.
    pub fn admit(&self, bytes: u64) -> Result<(), StoreError> {
        let left = u64::try_from(self.budget.load(Ordering::Acquire)).unwrap_or(0);
        // When it was given, eight times a budget were free: after it is used up, at least seven times what is left of it. Others write too.
        if left.saturating_mul(4) >= bytes.saturating_add(self.reserve / 2) {
            return Ok(());
        }
        let (_, free) = self.space()?;
        if free < bytes.saturating_add(self.reserve / 2) {
            return Err(StoreError::NoSpace { path: self.path.clone() });
        }
        Ok(())
    }

    /// Total bytes of the file system, and free ones less the reserve.
    pub fn space(&self) -> Result<(u64, u64), StoreError> {
        let stat = rustix::fs::fstatvfs(&self.dir).map_err(|e| StoreError::io("statvfs", &self.path, e))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(self.reserve);
        Ok((stat.f_blocks.saturating_mul(stat.f_frsize), free))
    }

    /// Bytes that `admit` still lets in.
    pub fn admitted(&self) -> u64 {
        self.space().map_or(0, |(_, free)| free.saturating_sub(self.reserve / 2))
    }

    /// Fill state. Free is what is let in: of what is kept for others' orders nobody can make use.
    pub fn usage(&self, chunks: u64) -> DiskUsage {
        let (total, free) = (self.space().map_or(0, |(total, _)| total), self.admitted());
        DiskUsage { path: self.path.clone(), total, free, chunks, failed: self.reason.lock().clone() }
    }
}
