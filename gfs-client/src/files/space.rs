//! Zeroing and reserving ranges: fallocate(2).

use super::split::{Span, spans};
use super::view::MAX_COUNT;
use super::write::{Attempt, Commit};
use super::{OpenFile, Redo};
use crate::data::{DataFailure, Piece};
use crate::error::ClientError;
use crate::limit::CallContext;
use gfs_core::ids::{ChunkHandle, Epoch};
use gfs_core::meta::request::{Attributes, UsedChunk};
use gfs_proto::v1;

/// What becomes of a range that is zeroed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zeroing {
    /// A hole (FALLOC_FL_PUNCH_HOLE).
    Punch,
    /// Zeros that count as stored (FALLOC_FL_ZERO_RANGE with FALLOC_FL_KEEP_SIZE).
    Keep,
    /// The same, and the file grows to the range's end (FALLOC_FL_ZERO_RANGE).
    Grow,
}

impl OpenFile {
    /// Zeroes a range.
    ///
    /// # Errors
    /// As `write`.
    pub async fn zero_range(
        &self,
        context: &CallContext,
        offset: u64,
        length: u64,
        how: Zeroing,
    ) -> Result<(), ClientError> {
        let _changing = self.changing(context).await?;
        self.client().settle(self.inner.inode, context).await?;
        self.check_writable()?;
        self.end_of(offset, length)?;
        let mut done = 0;
        let step = self.client().inner.chunk_size.saturating_mul(u64::from(MAX_COUNT) / 2);
        while done < length {
            let part = step.min(length - done);
            self.zero_part(context, offset + done, part, how).await?;
            done += part;
        }
        Ok(())
    }

    async fn zero_part(
        &self,
        context: &CallContext,
        offset: u64,
        length: u64,
        how: Zeroing,
    ) -> Result<(), ClientError> {
        let mut redo = Redo::new();
        loop {
            match self.zero_once(context, offset, length, how).await? {
                Attempt::Done(()) => return Ok(()),
                Attempt::Full => return Err(ClientError::NoSpace),
                Attempt::Stale => self.forget_view(),
            }
            redo.pause("zero", &context.limit).await?;
        }
    }

    async fn zero_once(
        &self,
        context: &CallContext,
        offset: u64,
        length: u64,
        how: Zeroing,
    ) -> Result<Attempt<()>, ClientError> {
        let chunk_size = self.client().inner.chunk_size;
        let parts: Vec<Span> = spans(offset, length, chunk_size).collect();
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(Attempt::Done(())) };
        let view = self.view(context, first.index, last.index).await?;
        // As in a write: not on top of what is lost.
        self.check()?;
        let end = offset + length;
        let mut used = Vec::new();
        for part in &parts {
            let Some(handle) = view.chunks.get(&part.index).copied() else { continue };
            if let Err(failure) = self.zero_in(context, handle, *part).await {
                return self.failed(failure, &[]);
            }
            // A cut before or after makes no difference: it leaves zeros too.
            used.push(UsedChunk { index: part.index, handle, cut: Epoch(u32::MAX), stored: None });
        }
        let grows = how == Zeroing::Grow && end > view.attributes.size;
        let (min_size, promised) = (grows.then_some(end), how != Zeroing::Punch);
        let space = Some(v1::Space { from: offset, to: end, promised });
        self.commit(context, Commit { used, min_size, space, ..Commit::default() }).await
    }

    async fn zero_in(&self, context: &CallContext, handle: ChunkHandle, part: Span) -> Result<(), DataFailure> {
        let data = &self.client().inner.data;
        let zero = v1::Zero { offset: part.offset, length: part.length, truncate: false };
        let result = data.zero(Piece::new(self.inner.inode, handle), zero, data.call(), &context.limit).await;
        self.note_dirty(std::iter::once(handle));
        result
    }

    /// fallocate(2) with mode 0 (or FALLOC_FL_KEEP_SIZE): makes sure that the cluster has room now, and grows the file to the range's end
    /// unless `keep_size`. The range counts as stored from then on, but space is not set aside: a later write may still find the cluster full.
    ///
    /// # Errors
    /// `NoSpace`; as `write`.
    pub async fn allocate(
        &self,
        context: &CallContext,
        offset: u64,
        length: u64,
        keep_size: bool,
    ) -> Result<(), ClientError> {
        let _changing = self.changing(context).await?;
        self.client().settle(self.inner.inode, context).await?;
        self.check_writable()?;
        let end = self.end_of(offset, length)?;
        let attributes = self.attributes(context).await?;
        let more = end.saturating_sub(offset.max(held(&attributes)));
        if more > 0 && self.client().statfs(context).await?.free < more {
            return Err(ClientError::NoSpace);
        }
        if end <= held(&attributes) {
            // Nothing is to be stored, but it is a change of the file like any other.
            return self.soft_times(context, false).await;
        }
        let min_size = (!keep_size && end > attributes.size).then_some(end);
        let space = Some(v1::Space { from: offset, to: end, promised: true });
        let commit = Commit { min_size, space, ..Commit::default() };
        match self.commit(context, commit).await? {
            Attempt::Done(()) => Ok(()),
            Attempt::Stale | Attempt::Full => Err(ClientError::Refused(gfs_core::meta::request::Refusal::Stale)),
        }
    }
}

/// Up to where a file that has no holes has its bytes.
fn held(attributes: &Attributes) -> u64 {
    if attributes.allocated >= attributes.size { attributes.size } else { 0 }
}
