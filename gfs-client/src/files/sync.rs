//! fsync: everything written through this client, over all handles, on stable storage of all members; and its metadata at the masters.

use super::{FileState, OpenFile};
use crate::client::Client;
use crate::data::{DataFailure, Piece};
use crate::error::ClientError;
use crate::limit::{CallContext, CallLimit};
use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, InodeId};
use gfs_core::meta::request::Credentials;
use gfs_proto::v1::{self, data_request::Op};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;

/// Chunks that are synced at the same time.
const AT_ONCE: usize = 16;
/// Limit of a sync that nobody waits for.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(60);

/// Chunks that a sync has taken on itself. What it did not reach goes back when it ends, however it ends.
struct Taken<'a> {
    client: &'a Client,
    state: &'a FileState,
    chunks: BTreeSet<ChunkHandle>,
    times: bool,
}

impl<'a> Taken<'a> {
    fn new(client: &'a Client, state: &'a FileState, times_too: bool) -> Self {
        let mut dirty = state.dirty.lock();
        let chunks = std::mem::take(&mut dirty.chunks);
        let times = times_too && std::mem::take(&mut dirty.times);
        drop(dirty);
        client.inner.files.dirty.fetch_sub(chunks.len(), Ordering::AcqRel);
        Self { client, state, chunks, times }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut dirty = self.state.dirty.lock();
        dirty.times |= self.times;
        let back = std::mem::take(&mut self.chunks).into_iter().filter(|chunk| dirty.chunks.insert(*chunk)).count();
        drop(dirty);
        self.client.inner.files.dirty.fetch_add(back, Ordering::AcqRel);
    }
}

impl OpenFile {
    /// Returns when everything written to the file through this client is on stable storage, with `data_only` all but its times.
    ///
    /// # Errors
    /// What could not be made safe; it stays unsynced, so that the next sync tries again and tells again.
    pub async fn sync(&self, context: &CallContext, data_only: bool) -> Result<(), ClientError> {
        self.state().drained(context).await?;
        self.take_failure()?;
        self.client().sync_file(context, self.inner.inode, self.state(), !data_only).await?;
        // The master may have changed meanwhile, and not know what another had answered.
        self.check()
    }
}

impl Client {
    /// Returns when everything written through this client is on stable storage.
    ///
    /// # Errors
    /// The first of what could not be made safe; the rest is tried all the same.
    pub async fn sync_all(&self, context: &CallContext) -> Result<(), ClientError> {
        let mut result = self.drain_all(context).await;
        result = result.and(self.tell_all(self.inner.delegations.all(), context).await);
        result = result.and(self.sync_files(context).await);
        if let Err(error) = self.barrier(context, true).await {
            result = result.and(Err(error));
        }
        result
    }

    /// Returns when every change of a directory's names that was answered is on stable storage at the masters.
    ///
    /// # Errors
    /// `SessionLost` once after a master lost some of them; as every call.
    pub async fn sync_directory(&self, context: &CallContext, inode: InodeId) -> Result<(), ClientError> {
        self.barrier(context, true).await?;
        self.inner.locks.check(inode)
    }

    async fn sync_files(&self, context: &CallContext) -> Result<(), ClientError> {
        let mut result = Ok(());
        let mut running = JoinSet::new();
        for (inode, state) in self.inner.files.all_dirty() {
            if running.len() >= AT_ONCE {
                result = result.and(joined(running.join_next().await));
            }
            let (client, context) = (self.clone(), context.clone());
            running.spawn(async move { client.sync_file(&context, inode, &state, true).await });
        }
        while let Some(done) = running.join_next().await {
            result = result.and(joined(Some(done)));
        }
        result
    }

    async fn sync_file(
        &self,
        context: &CallContext,
        inode: InodeId,
        state: &FileState,
        times_too: bool,
    ) -> Result<(), ClientError> {
        // One at a time: what another sync has taken is not on stable storage before that one has ended.
        let turn = context.limit.run("sync", state.syncing.lock()).await?;
        let mut taken = Taken::new(self, state, times_too);
        let times = taken.times;
        let metadata = async {
            let held = self.inner.delegations.get(inode);
            self.tell_all(held.into_iter().collect(), context).await?;
            self.barrier(context, times).await
        };
        let (chunks, metadata) = tokio::join!(self.sync_chunks(context, inode, &mut taken), metadata);
        if metadata.is_ok() {
            taken.times = false;
        }
        drop(taken);
        drop(turn);
        self.inner.files.tidy(inode);
        chunks.and(metadata)
    }

    async fn sync_chunks(
        &self,
        context: &CallContext,
        inode: InodeId,
        taken: &mut Taken<'_>,
    ) -> Result<(), ClientError> {
        let handles: Vec<ChunkHandle> = taken.chunks.iter().copied().collect();
        if let [only] = handles[..] {
            self.sync_chunk(context, Piece::new(inode, only)).await?;
            taken.chunks.clear();
            return Ok(());
        }
        let mut result = Ok(());
        let mut running = JoinSet::new();
        let mut waiting = handles.into_iter();
        loop {
            while running.len() < AT_ONCE {
                let Some(handle) = waiting.next() else { break };
                let (client, context) = (self.clone(), context.clone());
                running.spawn(async move { (handle, client.sync_chunk(&context, Piece::new(inode, handle)).await) });
            }
            let Some(done) = running.join_next().await else { return result };
            match done {
                Ok((handle, Ok(()))) => {
                    taken.chunks.remove(&handle);
                }
                Ok((_, Err(error))) => result = result.and(Err(error)),
                Err(_) => result = result.and(Err(ClientError::Closed)),
            }
        }
    }

    async fn sync_chunk(&self, context: &CallContext, piece: Piece) -> Result<(), ClientError> {
        match self.inner.data.change(piece, Op::Sync(v1::Sync {}), Bytes::new(), None, &context.limit).await {
            // A chunk that is no more was cut off or deleted: nothing is left to keep.
            Ok(_) | Err(DataFailure::Gone) => Ok(()),
            Err(DataFailure::NoSpace) => Err(ClientError::NoSpace),
            Err(DataFailure::Client(error)) => Err(error),
        }
    }

    /// With very much unsynced, syncs in the background, so that what has to be remembered stays bounded.
    pub(super) fn flush_some(&self) {
        let files = &self.inner.files;
        if files.dirty.load(Ordering::Acquire) <= super::MAX_DIRTY || files.flushing.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            let Some(inner) = inner.upgrade() else { return };
            let client = Client { inner };
            let context = CallContext::new(Credentials::default(), CallLimit::within(BACKGROUND_LIMIT));
            if let Err(error) = client.sync_files(&context).await {
                // Whatever it is stays unsynced, and is told by the next fsync of that file.
                tracing::warn!(%error, "cannot sync in the background");
            }
            client.inner.files.flushing.store(false, Ordering::Release);
        });
    }
}

fn joined(done: Option<Result<Result<(), ClientError>, tokio::task::JoinError>>) -> Result<(), ClientError> {
    match done {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(ClientError::Closed),
    }
}
