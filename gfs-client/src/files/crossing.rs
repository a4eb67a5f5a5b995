//! Records that cross from one chunk into the next.
//!
//! Who appends to the primary exactly what the chunk has room for, claims its tail: nobody else can cross then. It writes the rest into a
//! chunk that no reader sees yet, and attaches that chunk and moves the size over both parts in one record. Until then readers see
//! neither part, and other appends wait.
//!
//! Who claims may die. Others can know that only by waiting, longer than a session lives without its client. Then one of them attaches an
//! empty chunk at the first free place after the tail, which is where the commit of the dead one would attach its own: that commit is stale
//! from then on. Only now is the tail cut back to the size. Each take-over attaches at another place, so that only one of several wins, and
//! every commit of a crossing attaches at the first free place, so that it can always be fenced. An empty chunk that is left beyond the
//! end is an ordinary chunk of zeros once the file grows into it.

use super::OpenFile;
use super::append::{Placed, Record, at};
use super::split::{Span, index_of};
use super::view::View;
use super::write::{Attempt, Commit, Fresh};
use crate::data::{Behalf, DataFailure, Piece};
use crate::error::ClientError;
use crate::limit::{CallContext, CallLimit};
use gfs_core::ids::{ChunkHandle, Epoch};
use gfs_core::meta::request::{Credentials, UsedChunk};
use gfs_proto::v1;
use std::time::Duration;
use tokio::time::Instant;

/// How often those who wait look.
const LOOK: Duration = Duration::from_millis(20);
/// Places after the tail among which a free one is looked for.
const PLACES: u32 = 64;
/// Limit for giving a claim back.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);

/// What a waiting append has seen, and since when.
pub(super) struct Watch {
    seen: (u64, u32),
    since: Instant,
}

/// The tail of a chunk, filled by the first part of a record. Dropped before it is settled, it is given back in the background.
struct Claim {
    file: OpenFile,
    index: u32,
    handle: ChunkHandle,
    /// The cut of the chunk that the part came after.
    cut: Epoch,
    /// Where the part starts in the chunk.
    from: u64,
    /// The place at which the commit attaches.
    free: u32,
    goal: u8,
    settled: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        self.settled = true;
        let (file, index, handle, from, free, goal) =
            (self.file.clone(), self.index, self.handle, self.from, self.free, self.goal);
        let context = CallContext::new(Credentials::default(), CallLimit::within(RELEASE_LIMIT));
        let session = file.client().inner.session.data_session();
        let claims = file.state().claims.clone();
        let release = async move {
            // Nobody holds the file before this is done.
            let _claims = claims;
            // First our own commit must be out of the question: it may still be on its way.
            let fenced = file.fence(&context, (index, handle), free, goal).await;
            match fenced {
                Ok(true) => {
                    file.cut_tail(&context, (handle, session), from).await.map_err(|failure| format!("{failure:?}"))
                }
                Ok(false) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = release.await {
                    tracing::warn!(error, "the tail of a chunk stays claimed until others take over");
                }
            });
        }
    }
}

impl Record<'_> {
    /// The record does not fit behind `tail`. Claims what is left and crosses, or waits for the one that does.
    pub(super) async fn cross(
        &self,
        index: u32,
        handle: ChunkHandle,
        tail: u64,
        watch: &mut Option<Watch>,
    ) -> Result<Attempt<u64>, ClientError> {
        let view = self.file.fresh_view(self.context, index, index.saturating_add(PLACES)).await?;
        let size = view.attributes.size;
        if view.chunks.get(&index) != Some(&handle) || index_of(size, self.chunk_size()) != index {
            return Ok(Attempt::Stale);
        }
        let Some(free) = free_place(&view, index) else {
            return Err(ClientError::Io {
                handle,
                reason: "too many unfinished appends at the end of the file".into(),
            });
        };
        let tail = tail.clamp(size % self.chunk_size(), self.chunk_size());
        let room = self.chunk_size() - tail;
        if room == 0 {
            return self.wait_for_crossing(&view, (index, handle), free, watch).await;
        }
        if room >= self.length() {
            return Ok(Attempt::Stale);
        }
        match self.place(handle, tail, &self.data.slice(..room as usize)).await {
            Ok(Placed::At { offset: from, cut }) => {
                let goal = view.attributes.replicas;
                let claim = Claim { file: self.file.clone(), index, handle, cut, from, free, goal, settled: false };
                self.cross_over(&view, claim, room).await
            }
            Ok(Placed::NoRoom { .. }) => Ok(Attempt::Stale),
            Err(failure) => self.file.failed(failure, &[]),
        }
    }

    /// The tail is ours: the rest, and the record that makes both parts visible.
    async fn cross_over(&self, view: &View, mut claim: Claim, room: u64) -> Result<Attempt<u64>, ClientError> {
        let next = claim.index + 1;
        let rest = self.data.slice(room as usize..);
        let fresh = [Fresh::alone(self.file, self.context, claim.free, claim.goal).await?];
        let span = Span { index: next, offset: 0, length: rest.len() as u64, at: 0 };
        let written = match self.file.write_spans(self.context, (&[span], &rest), view, &fresh, self.behalf).await {
            Ok(written) => written,
            Err(failure) => return self.file.failed(failure, &fresh),
        };
        if claim.free != next
            && let Err(failure) = self.file.make_empty(self.context, fresh[0].handle).await
        {
            return self.file.failed(failure, &fresh);
        }
        let mut used = vec![UsedChunk { index: claim.index, handle: claim.handle, cut: claim.cut, stored: None }];
        used.extend(view.chunks.get(&next).and_then(|handle| written.used(next, *handle)));
        let start = u64::from(claim.index) * self.chunk_size() + claim.from;
        let commit = Commit {
            attach: &fresh,
            used,
            min_size: Some(start + self.length()),
            clear_suid: self.clear_suid,
            ..Commit::default()
        };
        let committed = self.file.commit(self.context, commit).await?;
        // Stale: somebody has fenced us off and cuts the tail, or has truncated the file, which cut it too.
        claim.settled = true;
        Ok(at(start, committed))
    }

    /// Somebody else crosses: looks again after a while, and takes over from one that must be dead.
    async fn wait_for_crossing(
        &self,
        view: &View,
        tail: (u32, ChunkHandle),
        free: u32,
        watch: &mut Option<Watch>,
    ) -> Result<Attempt<u64>, ClientError> {
        let seen = (view.attributes.size, free);
        match watch.as_ref().filter(|watch| watch.seen == seen) {
            None => *watch = Some(Watch { seen, since: Instant::now() }),
            Some(watch) if watch.since.elapsed() > self.crossing_limit() => {
                tracing::warn!(inode = %self.file.inode(), "an append was left unfinished; its part is dropped");
                if self.file.fence(self.context, tail, free, view.attributes.replicas).await? {
                    return self.take_over(tail).await;
                }
            }
            Some(_) => {}
        }
        self.context.limit.pause("append", LOOK).await?;
        Ok(Attempt::Stale)
    }

    /// How long one that crosses is waited for: longer than the lease of its session.
    fn crossing_limit(&self) -> Duration {
        let lease = self.file.client().inner.lease;
        lease + lease / 10
    }

    async fn take_over(&self, (index, handle): (u32, ChunkHandle)) -> Result<Attempt<u64>, ClientError> {
        let session = self.file.client().inner.session.data_session();
        // Again, now that nothing can be committed over the border: what is covered stays.
        let size = self.file.fresh_view(self.context, index, index).await?.attributes.size;
        if index_of(size, self.chunk_size()) == index
            && let Err(failure) = self.file.cut_tail(self.context, (handle, session), size % self.chunk_size()).await
        {
            return self.file.failed(failure, &[]);
        }
        Ok(Attempt::Stale)
    }
}

impl OpenFile {
    /// Attaches an empty chunk at a free place after a tail. False when something is there by now, or the tail is no more.
    async fn fence(
        &self,
        context: &CallContext,
        tail: (u32, ChunkHandle),
        free: u32,
        goal: u8,
    ) -> Result<bool, ClientError> {
        let empty = Fresh::alone(self, context, free, goal).await?;
        if let Err(failure) = self.make_empty(context, empty.handle).await {
            // The next attempt takes another chunk.
            return self.failed::<()>(failure, &[]).map(|_| false);
        }
        let used = vec![UsedChunk { index: tail.0, handle: tail.1, cut: Epoch(0), stored: None }];
        let commit = Commit { attach: &[empty], used, ..Commit::default() };
        Ok(matches!(self.commit(context, commit).await?, Attempt::Done(())))
    }

    /// Has the members of a reserved chunk make their replicas: what is attached has to be there, even when it is all zeros.
    pub(super) async fn make_empty(&self, context: &CallContext, handle: ChunkHandle) -> Result<(), DataFailure> {
        let data = &self.client().inner.data;
        let zero = v1::Zero { offset: 0, length: 1, truncate: false };
        let result = data.zero(Piece::new(self.inode(), handle), zero, data.call(), &context.limit).await;
        self.note_dirty(std::iter::once(handle));
        result
    }

    /// Drops what lies in a chunk from an offset on: nobody is going to cover it. Only in the session in which that was made sure of: in
    /// another one somebody else may have written there.
    async fn cut_tail(
        &self,
        context: &CallContext,
        (handle, session): (ChunkHandle, u64),
        from: u64,
    ) -> Result<(), DataFailure> {
        let inner = &self.client().inner;
        let zero = v1::Zero { offset: from, length: inner.chunk_size - from, truncate: true };
        inner.data.zero(Piece::new(self.inode(), handle), zero, Behalf::Session(session), &context.limit).await
    }
}

/// The first place after a chunk where none is attached.
fn free_place(view: &View, index: u32) -> Option<u32> {
    (index.checked_add(1)?..=index.saturating_add(PLACES)).find(|place| !view.chunks.contains_key(place))
}
