//! The state machine as raft drives it: applies committed batches in order and answers those who wait.
//!
//! This room owns the lock around the state. Readers take it for reading, for moments; only `apply` and the
//! installation of a checkpoint write.

use super::log_store::LogStore;
use super::types::{Batch, LogId, RaftEntry, StorageError, StoredMembership, TypeConfig};
use crate::checkpoint::{self, CheckpointError, Frozen};
use gfs_core::ids::ClusterId;
use gfs_core::meta::request::Timestamp;
use gfs_core::meta::state::State;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{EntryPayload, ErrorSubject, ErrorVerb, OptionalSend};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use tokio::sync::Notify;

/// The state and where in the log it is; clones share it.
#[derive(Clone)]
pub struct Machine(Arc<Shared>);

struct Shared {
    inner: RwLock<Inner>,
    dir: PathBuf,
    cluster: ClusterId,
    /// Next index of the newest checkpoint.
    checkpoint: AtomicU64,
    applied: AtomicU64,
    clock: AtomicI64,
    received: AtomicU64,
    log: LogStore,
    /// Why the last checkpoint could not be written, until somebody takes it.
    failure: Mutex<Option<CheckpointError>>,
    /// There is such a reason.
    failed: Notify,
}

struct Inner {
    state: State,
    last: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    /// A machine that goes on from a checkpoint; new ones are written into `dir`, and never hold what `log` could lose.
    pub fn new(dir: PathBuf, cluster: ClusterId, start: Frozen, log: LogStore) -> Self {
        let next = checkpoint::next_of(&start.last);
        Self(Arc::new(Shared {
            inner: RwLock::new(Inner { state: start.state, last: start.last, membership: start.membership }),
            dir,
            cluster,
            checkpoint: AtomicU64::new(next),
            applied: AtomicU64::new(next),
            clock: AtomicI64::new(start.clock.0),
            received: AtomicU64::new(0),
            log,
            failure: Mutex::default(),
            failed: Notify::new(),
        }))
    }

    /// The committed state, for reading. Never hold it over an await.
    pub fn state(&self) -> parking_lot::MappedRwLockReadGuard<'_, State> {
        RwLockReadGuard::map(self.0.inner.read(), |inner| &inner.state)
    }

    /// How many entries are applied.
    pub fn applied(&self) -> u64 {
        self.0.applied.load(Ordering::Acquire)
    }

    /// How many entries the newest checkpoint has.
    pub fn checkpointed(&self) -> u64 {
        self.0.checkpoint.load(Ordering::Acquire)
    }

    /// Why a checkpoint that is begun from now on cannot be written; waits for ever when it can.
    pub fn checkpoint_fails(&self) -> impl Future<Output = CheckpointError> {
        let shared = self.0.clone();
        *shared.failure.lock() = None;
        async move {
            loop {
                let failed = shared.failed.notified();
                if let Some(error) = shared.failure.lock().take() {
                    return error;
                }
                failed.await;
            }
        }
    }

    /// The clock of the last applied entry.
    pub fn clock(&self) -> Timestamp {
        Timestamp(self.0.clock.load(Ordering::Acquire))
    }

    fn freeze(&self) -> Frozen {
        let inner = self.0.inner.read();
        Frozen {
            state: inner.state.clone(),
            last: inner.last,
            membership: inner.membership.clone(),
            clock: self.clock(),
        }
    }

    fn install(&self, frozen: Frozen) {
        let next = checkpoint::next_of(&frozen.last);
        self.0.clock.store(frozen.clock.0, Ordering::Release);
        let mut inner = self.0.inner.write();
        *inner = Inner { state: frozen.state, last: frozen.last, membership: frozen.membership };
        drop(inner);
        self.0.applied.store(next, Ordering::Release);
        self.0.checkpoint.store(next, Ordering::Release);
    }

    fn apply_batch(&self, id: LogId, batch: &Batch) {
        let stamp = batch.entry.stamp;
        let replies = {
            let mut inner = self.0.inner.write();
            let replies = batch.entry.commands.iter().map(|command| inner.state.apply(stamp, command)).collect();
            inner.last = Some(id);
            replies
        };
        self.0.clock.fetch_max(stamp.now.0, Ordering::AcqRel);
        self.0.applied.store(id.index + 1, Ordering::Release);
        batch.answer(replies);
    }

    fn apply_other(&self, id: LogId, membership: Option<StoredMembership>) {
        let mut inner = self.0.inner.write();
        inner.last = Some(id);
        if let Some(membership) = membership {
            inner.membership = membership;
        }
        drop(inner);
        self.0.applied.store(id.index + 1, Ordering::Release);
    }
}

fn snapshot_error(verb: ErrorVerb, error: CheckpointError) -> StorageError {
    StorageError::from_io_error(ErrorSubject::Snapshot(None), verb, std::io::Error::other(error))
}

fn io_error(verb: ErrorVerb, error: std::io::Error) -> StorageError {
    StorageError::from_io_error(ErrorSubject::Snapshot(None), verb, error)
}

fn meta_of(last: Option<LogId>, membership: &StoredMembership) -> SnapshotMeta<u64, openraft::BasicNode> {
    SnapshotMeta {
        last_log_id: last,
        last_membership: membership.clone(),
        snapshot_id: checkpoint::file_name(checkpoint::next_of(&last)),
    }
}

/// Writes one checkpoint of a frozen state.
pub struct Builder {
    machine: Machine,
    frozen: Frozen,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let frozen = self.frozen.clone();
        let durable = self.machine.0.log.all_durable().await;
        durable.map_err(|error| io_error(ErrorVerb::Write, std::io::Error::other(error)))?;
        let shared = self.machine.0.clone();
        let meta = meta_of(frozen.last, &frozen.membership);
        let next = checkpoint::next_of(&frozen.last);
        let written = tokio::task::spawn_blocking(move || checkpoint::write(&shared.dir, shared.cluster, &frozen));
        let path = match written.await {
            Ok(Ok(path)) => path,
            Ok(Err(error)) => return self.not_written(error).await,
            Err(error) => return Err(io_error(ErrorVerb::Write, std::io::Error::other(error))),
        };
        let file = tokio::fs::File::open(&path).await.map_err(|error| io_error(ErrorVerb::Read, error))?;
        self.machine.0.checkpoint.fetch_max(next, Ordering::AcqRel);
        Ok(Snapshot { meta, snapshot: Box::new(file) })
    }
}

impl Builder {
    /// A checkpoint that cannot be written, on a disk that is full, harms nothing: the log has it all. Raft would stop at an error, so it is
    /// handed one that is not newer than what it has, which it passes over.
    async fn not_written(&self, error: CheckpointError) -> Result<Snapshot<TypeConfig>, StorageError> {
        let shared = &self.machine.0;
        let any = checkpoint::list(&shared.dir).ok().and_then(|found| found.into_iter().next());
        let Some((_, path)) = any else { return Err(snapshot_error(ErrorVerb::Write, error)) };
        let file = tokio::fs::File::open(path).await.map_err(|error| io_error(ErrorVerb::Read, error))?;
        *shared.failure.lock() = Some(error);
        shared.failed.notify_waiters();
        Ok(Snapshot { meta: meta_of(None, &StoredMembership::default()), snapshot: Box::new(file) })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let inner = self.0.inner.read();
        Ok((inner.last, inner.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut count = 0;
        for entry in entries {
            let id = entry.log_id;
            match &entry.payload {
                EntryPayload::Blank => self.apply_other(id, None),
                EntryPayload::Normal(batch) => self.apply_batch(id, batch),
                EntryPayload::Membership(membership) => {
                    self.apply_other(id, Some(StoredMembership::new(Some(id), membership.clone())));
                }
            }
            count += 1;
        }
        Ok(vec![(); count])
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder { frozen: self.freeze(), machine: self.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<tokio::fs::File>, StorageError> {
        let number = self.0.received.fetch_add(1, Ordering::Relaxed);
        let path = self.0.dir.join(format!("received-{number}.tmp"));
        let mut options = tokio::fs::OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(true).open(&path).await;
        let file = opened.map_err(|error| io_error(ErrorVerb::Write, error))?;
        // The bytes are copied when they are installed; until then nobody needs the name.
        tokio::fs::remove_file(&path).await.map_err(|error| io_error(ErrorVerb::Write, error))?;
        Ok(Box::new(file))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, openraft::BasicNode>,
        snapshot: Box<tokio::fs::File>,
    ) -> Result<(), StorageError> {
        let shared = self.0.clone();
        let last = meta.last_log_id;
        let mut source = snapshot.into_std().await;
        let install = move || -> Result<Frozen, CheckpointError> {
            let path = shared.dir.join(checkpoint::file_name(checkpoint::next_of(&last)));
            let temporary = path.with_extension("tmp");
            let io = |source| CheckpointError::Io { operation: "receive", path: temporary.clone(), source };
            let copy = || {
                use std::io::Seek;
                source.seek(std::io::SeekFrom::Start(0))?;
                let mut target = std::fs::File::create(&temporary)?;
                std::io::copy(&mut source, &mut target)?;
                target.sync_all()
            };
            let mut copy = copy;
            copy().map_err(io)?;
            let frozen = checkpoint::read(&temporary, shared.cluster)?;
            std::fs::rename(&temporary, &path).map_err(io)?;
            checkpoint::sync_dir(&shared.dir)?;
            Ok(frozen)
        };
        let frozen = match tokio::task::spawn_blocking(install).await {
            Ok(installed) => installed.map_err(|error| snapshot_error(ErrorVerb::Write, error))?,
            Err(error) => return Err(io_error(ErrorVerb::Write, std::io::Error::other(error))),
        };
        self.install(frozen);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let shared = self.0.clone();
        let find = move || -> Result<Option<(Frozen, PathBuf)>, CheckpointError> {
            match checkpoint::list(&shared.dir)?.into_iter().next() {
                Some((next, path)) if next > 0 => Ok(Some((checkpoint::read(&path, shared.cluster)?, path))),
                _ => Ok(None),
            }
        };
        let found = match tokio::task::spawn_blocking(find).await {
            Ok(found) => found.map_err(|error| snapshot_error(ErrorVerb::Read, error))?,
            Err(error) => return Err(io_error(ErrorVerb::Read, std::io::Error::other(error))),
        };
        let Some((frozen, path)) = found else { return Ok(None) };
        let file = tokio::fs::File::open(&path).await.map_err(|error| io_error(ErrorVerb::Read, error))?;
        Ok(Some(Snapshot { meta: meta_of(frozen.last, &frozen.membership), snapshot: Box::new(file) }))
    }
}
