//! The store as a whole: opening, adopting disks, creating and deleting chunks, background work.

use super::Store;
use super::checkpoint::Scope;
use super::chunk::{Chunk, State};
use super::disk::Disk;
use super::error::StoreError;
use super::identity::{self, DiskIdentity};
use super::layout::{Geometry, PATH_HINT};
use super::record::JournalRecord;
use super::recover;
use super::types::{ChunkHeader, DiskUsage, Identity, Quarantined, StoreOptions};
use gfs_core::ids::{ChunkHandle, ClusterId};
use gfs_core::meta::request::Configuration;
use parking_lot::{Mutex, RwLock};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a new chunk takes at once.
const NEW_CHUNK: u64 = 32 << 10;

impl Store {
    /// Opens all directories and recovers what is in them. Directories without an identity wait for `adopt`.
    ///
    /// A directory of another server, or that another process uses, is an error. One that can't be read is left out,
    /// unless there is no other.
    pub fn open(options: StoreOptions) -> Result<Store, StoreError> {
        let options = Arc::new(options);
        let mut fresh = Vec::new();
        let mut known: Vec<(PathBuf, File, DiskIdentity)> = Vec::new();
        for dir in &options.dirs {
            let lock = identity::lock(dir)?;
            match identity::read(dir)? {
                Some(found) => known.push((dir.clone(), lock, found)),
                None => fresh.push((dir.clone(), lock)),
            }
        }
        for (dir, _, found) in known.iter().skip(1) {
            check_same(&known[0], dir, found)?;
        }
        let chunk_size = known.first().map_or(options.chunk_size, |(_, _, found)| found.chunk_size);
        let (mut disks, mut chunks, mut unusable) = (Vec::new(), HashMap::new(), Vec::new());
        let alone = known.len() == 1;
        for (dir, lock, found) in known {
            match recover::open(&dir, lock, found, &options) {
                Ok((disk, replicas)) => {
                    disks.push(disk);
                    chunks.extend(replicas.into_iter().map(|chunk| (chunk.handle, chunk)));
                }
                Err(error) if alone || matches!(error, StoreError::WrongDisk { .. }) => return Err(error),
                Err(error) => {
                    tracing::error!(disk = %dir.display(), %error, "disk is out of service");
                    unusable.push((dir, Arc::from(error.to_string())));
                }
            }
        }
        Ok(Store {
            options,
            chunk_size: AtomicU64::new(chunk_size),
            disks: RwLock::new(disks),
            fresh: Mutex::new(fresh),
            unusable,
            chunks: RwLock::new(chunks),
            creating: Mutex::new(HashSet::new()),
        })
    }

    /// Who the disks belong to; `None` while all of them are fresh.
    pub fn identity(&self) -> Option<Identity> {
        self.disks.read().first().map(|disk| disk.identity.owner)
    }

    /// Bytes of a chunk.
    pub fn chunk_size(&self) -> u64 {
        self.chunk_size.load(Ordering::Acquire)
    }

    /// Gives fresh directories an identity and starts to use them.
    pub fn adopt(&self, cluster: ClusterId, server: u128, chunk_size: u64) -> Result<(), StoreError> {
        let owner = Identity { cluster, server };
        let mut fresh = self.fresh.lock();
        let refused = |problem: String, mend: &str| {
            let path = self.options.dirs.first().cloned().unwrap_or_default();
            StoreError::WrongDisk { path, problem, mend: mend.into() }
        };
        if !Geometry::is_valid(chunk_size) {
            return Err(refused(
                format!("chunks of {chunk_size} bytes are not possible"),
                "The size must be a multiple of 4096, at most 1 GiB",
            ));
        }
        if self.identity().is_some_and(|known| known != owner || self.chunk_size() != chunk_size) {
            return Err(refused(
                format!("it does not belong to server {server:032x} of cluster {cluster}"),
                "Give this server its own directories, or start with empty ones",
            ));
        }
        while let Some((dir, lock)) = fresh.pop() {
            let identity = DiskIdentity { owner, disk: identity::random()?, chunk_size };
            recover::format(&dir, &identity, &self.options)?;
            let (disk, _) = recover::open(&dir, lock, identity, &self.options)?;
            self.disks.write().push(disk);
        }
        self.chunk_size.store(chunk_size, Ordering::Release);
        Ok(())
    }

    /// Makes an empty replica, on the disk with the most space.
    pub fn create(
        &self,
        handle: ChunkHandle,
        header: &ChunkHeader,
        configuration: &Configuration,
    ) -> Result<(), StoreError> {
        if !self.creating.lock().insert(handle) {
            return Err(StoreError::Exists { handle });
        }
        let made = self.create_on_some_disk(handle, header, configuration);
        self.creating.lock().remove(&handle);
        made
    }

    fn create_on_some_disk(
        &self,
        handle: ChunkHandle,
        header: &ChunkHeader,
        configuration: &Configuration,
    ) -> Result<(), StoreError> {
        if self.chunks.read().contains_key(&handle) {
            return Err(StoreError::Exists { handle });
        }
        let disk = self.roomiest()?;
        disk.judge(disk.take_space(NEW_CHUNK))?;
        let _complete = disk.membership.read();
        let made = disk.judge(make(&disk, handle, header, configuration))?;
        self.chunks.write().insert(handle, Arc::new(made));
        Ok(())
    }

    /// The disk in service with the most room; of those with about the same, the one with the fewest chunks.
    fn roomiest(&self) -> Result<Arc<Disk>, StoreError> {
        let disks = self.disks.read();
        let mut failure = StoreError::NotAdopted;
        let in_service = disks.iter().filter(|disk| disk.check().map_err(|error| failure = error).is_ok());
        let best = in_service.max_by_key(|disk| {
            let free = if disks.len() == 1 { 0 } else { disk.admitted() };
            // Directories on one file system have equal space: then the number of chunks decides. A full one is never like the others.
            (free >= self.chunk_size(), free >> 30, Reverse(Arc::strong_count(disk)))
        });
        let best = best.cloned();
        best.ok_or(failure)
    }

    /// Deletes a replica. It stays deleted, also after a power cut.
    pub fn delete(&self, handle: ChunkHandle) -> Result<(), StoreError> {
        self.with(handle, |chunk| {
            let _complete = chunk.disk.membership.read();
            let appended = {
                let mut state = chunk.state.write();
                if state.dead {
                    return Err(chunk.missing());
                }
                let appended = chunk.journal(&mut state, &JournalRecord::Delete)?;
                // Otherwise older records could bring it back, without the bytes that are not in them.
                chunk.journal_durable(appended.end.0)?;
                state.dead = true;
                chunk.drop_overlay(&mut state);
                appended
            };
            chunk.disk.remove_file(handle, appended.start.0)?;
            self.chunks.write().remove(&handle);
            Ok(())
        })
    }

    /// Fill state of all disks.
    pub fn usage(&self) -> Vec<DiskUsage> {
        let mut counts: HashMap<*const Disk, u64> = HashMap::new();
        for chunk in self.chunks.read().values() {
            *counts.entry(Arc::as_ptr(&chunk.disk)).or_default() += 1;
        }
        let disks = self.disks.read();
        let used = disks.iter().map(|disk| disk.usage(counts.get(&Arc::as_ptr(disk)).copied().unwrap_or(0)));
        let unusable = self.unusable.iter().map(|(path, reason)| DiskUsage {
            path: path.clone(),
            total: 0,
            free: 0,
            chunks: 0,
            failed: Some(reason.clone()),
        });
        used.chain(unusable).collect()
    }

    /// Files that were put aside when the store was opened.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.disks.read().iter().flat_map(|disk| disk.quarantined.lock().clone()).collect()
    }

    /// Chunks on disks that failed since the store was opened, by handle.
    pub fn failed_chunks(&self) -> Vec<ChunkHandle> {
        let chunks = self.chunks.read();
        let failed = chunks.values().filter(|chunk| chunk.disk.check().is_err());
        let mut handles: Vec<ChunkHandle> = failed.map(|chunk| chunk.handle).collect();
        handles.sort_unstable();
        handles
    }

    /// Background work: checkpoints, and making clean what rests. Call it about every second from a thread that may
    /// block; only one at a time does anything on a disk.
    pub fn tick(&self) {
        for disk in self.healthy() {
            let scope = if disk.wants_checkpoint() { Scope::All } else { Scope::Idle };
            if let Err(error) = self.checkpoint(&disk, scope, self.options.linger) {
                tracing::warn!(disk = %disk.path.display(), %error, "checkpoint failed");
            }
        }
    }

    /// Brings everything to stable storage and marks all replicas clean; for an orderly end.
    pub fn close(&self) -> Result<(), StoreError> {
        self.healthy().iter().try_for_each(|disk| self.checkpoint(disk, Scope::All, Duration::ZERO))
    }

    fn healthy(&self) -> Vec<Arc<Disk>> {
        self.disks.read().iter().filter(|disk| disk.check().is_ok()).cloned().collect()
    }

    pub(super) fn checkpoint(&self, disk: &Arc<Disk>, scope: Scope, linger: Duration) -> Result<(), StoreError> {
        let all = || {
            let chunks = self.chunks.read();
            chunks.values().filter(|chunk| Arc::ptr_eq(&chunk.disk, disk)).cloned().collect()
        };
        disk.judge(disk.make_checkpoint(all, scope, linger))
    }
}

/// Records a new replica and makes its file.
fn make(
    disk: &Arc<Disk>,
    handle: ChunkHandle,
    header: &ChunkHeader,
    configuration: &Configuration,
) -> Result<Chunk, StoreError> {
    let mut header = header.clone();
    header.path_hint.truncate(PATH_HINT);
    let chunk = Chunk {
        handle,
        disk: disk.clone(),
        header: header.clone(),
        state: RwLock::new(State::default()),
        gate: Mutex::new(()),
    };
    let configuration = configuration.clone();
    let mut state = State { configuration, stored: Some(0), intent: true, fresh: true, ..State::default() };
    let record = JournalRecord::Create { header, configuration: state.configuration.clone() };
    let appended = chunk.journal(&mut state, &record)?;
    if let Err(error) = chunk.write_new_file(&mut state, appended.start.0) {
        // Without this the replica would be there again, empty, after a restart.
        let deleted = chunk.journal(&mut state, &JournalRecord::Delete)?;
        disk.remove_file(handle, deleted.start.0)?;
        return Err(error);
    }
    *chunk.state.write() = state;
    Ok(chunk)
}

fn check_same(
    (first, _, identity): &(PathBuf, File, DiskIdentity),
    dir: &std::path::Path,
    found: &DiskIdentity,
) -> Result<(), StoreError> {
    if found.owner == identity.owner && found.chunk_size == identity.chunk_size && found.disk != identity.disk {
        return Ok(());
    }
    let problem = if found.disk == identity.disk {
        format!("it is a copy of {}", first.display())
    } else {
        format!(
            "it belongs to server {:032x} of cluster {}, but {} to server {:032x} of cluster {}",
            found.owner.server,
            found.owner.cluster,
            first.display(),
            identity.owner.server,
            identity.owner.cluster
        )
    };
    let mend = "Give every chunk server its own directories".to_owned();
    Err(StoreError::WrongDisk { path: dir.to_owned(), problem, mend })
}
