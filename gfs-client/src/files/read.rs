//! Reading.

use super::ahead::SMALL;
use super::split::{Span, index_of, spans};
use super::view::{MAX_COUNT, View};
use super::{OpenFile, PIECE, Redo, Running, run_pieces};
use crate::client::Client;
use crate::data::{DataFailure, Piece};
use crate::error::ClientError;
use crate::limit::CallContext;
use crate::near::AHEAD;
use bytes::{Bytes, BytesMut};
use std::sync::atomic::Ordering;

/// Longest read that is answered in one go; a longer one comes back short, as read(2) may.
const MAX_READ: u64 = 64 << 20;

impl OpenFile {
    /// Reads up to `length` bytes from `offset`. Fewer mean the end of the file, or that more than 64 MiB were asked for. Holes are zeros.
    ///
    /// # Errors
    /// `Io` when no replica has the bytes whole; `TimedOut`; `SessionLost` once after locks on the file were lost.
    pub async fn read(&self, context: &CallContext, offset: u64, length: u64) -> Result<Bytes, ClientError> {
        self.check()?;
        self.state().drained(context).await?;
        let chunk_size = self.client().inner.chunk_size;
        let length = length.min(MAX_READ).min(chunk_size.saturating_mul(u64::from(MAX_COUNT) / 2));
        if length == 0 || offset >= i64::MAX as u64 || offset / chunk_size >= u64::from(u32::MAX) {
            return Ok(Bytes::new());
        }
        if offset == 0
            && let Some(bytes) = self.client().begin_reading(context, self.inner.inode).await
        {
            self.inner.read_end.store(bytes.len() as u64, Ordering::Relaxed);
            return Ok(bytes.slice(..bytes.len().min(length as usize)));
        }
        let in_a_row = self.inner.read_end.swap(offset + length, Ordering::Relaxed) == offset;
        let mut redo = Redo::new();
        loop {
            let last = index_of(offset + length - 1, chunk_size);
            let view = self.view(context, index_of(offset, chunk_size), last).await?;
            let length = view.attributes.size.saturating_sub(offset).min(length);
            if length == 0 {
                return Ok(Bytes::new());
            }
            let _budget = self.client().budget(length, &context.limit).await?;
            match self.read_view(context, &view, offset, length, in_a_row).await {
                Ok(bytes) => return Ok(bytes),
                Err(DataFailure::Gone) => self.look_again(context).await?,
                Err(DataFailure::NoSpace) => return Err(ClientError::malformed("no space for a read")),
                Err(DataFailure::Client(error)) => return Err(error),
            }
            redo.pause("read", &context.limit).await?;
        }
    }

    /// As `read`, if that takes no message: the file is known here, nothing of it waits to be written, and a chunk server of this machine
    /// has lent the replica. Waits for nothing but that machine's disk. `None`: `read` has to be called.
    pub fn read_near(&self, offset: u64, length: u64) -> Option<Bytes> {
        self.check().ok()?;
        if length == 0 || length > PIECE || offset >= i64::MAX as u64 || self.state().is_behind() {
            return None;
        }
        let Client { inner } = self.client();
        let (first, last) = (offset / inner.chunk_size, (offset + length - 1) / inner.chunk_size);
        let index = u32::try_from(first).ok().filter(|_| first == last)?;
        let view = self.known_view(index, index)?;
        if offset == 0 && view.attributes.size <= SMALL {
            // Small files may have been read ahead.
            return None;
        }
        let length = view.attributes.size.saturating_sub(offset).min(length);
        if length == 0 {
            return Some(Bytes::new());
        }
        let handle = view.chunks.get(&index)?;
        let in_a_row = self.inner.read_end.load(Ordering::Relaxed) == offset;
        let range = (offset % inner.chunk_size, length as usize);
        let bytes = inner.data.near.read_here(view.piece(*handle), range, in_a_row)?;
        if in_a_row && range.0 + AHEAD >= inner.chunk_size {
            self.prepare_next(index + 1);
        }
        self.inner.read_end.store(offset + length, Ordering::Relaxed);
        Some(bytes)
    }

    /// The reader comes to this chunk soon.
    fn prepare_next(&self, index: u32) {
        let Client { inner } = self.client();
        if let Some(view) = self.known_view(index, index)
            && let Some(handle) = view.chunks.get(&index)
        {
            inner.data.near.prepare(view.piece(*handle));
        }
    }

    async fn read_view(
        &self,
        context: &CallContext,
        view: &View,
        offset: u64,
        length: u64,
        in_a_row: bool,
    ) -> Result<Bytes, DataFailure> {
        let client = self.client();
        let pieces: Vec<Span> = spans(offset, length, client.inner.chunk_size).flat_map(Span::pieces).collect();
        if let [only] = pieces[..] {
            return match view.chunks.get(&only.index) {
                Some(handle) => Ok(self.read_piece(context, only, view.piece(*handle), in_a_row).await?.1),
                None => Ok(Bytes::from(vec![0; only.length as usize])),
            };
        }
        let mut whole = BytesMut::zeroed(length as usize);
        let reads = pieces.iter().filter_map(|span| {
            let piece = view.piece(*view.chunks.get(&span.index)?);
            Some(Box::pin(self.read_piece(context, *span, piece, in_a_row)) as Running<'_, _>)
        });
        run_pieces(reads, |(span, bytes): (Span, Bytes)| {
            let start = span.at as usize;
            whole[start..start + bytes.len()].copy_from_slice(&bytes);
        })
        .await?;
        Ok(whole.freeze())
    }

    async fn read_piece(
        &self,
        context: &CallContext,
        span: Span,
        piece: Piece,
        in_a_row: bool,
    ) -> Result<(Span, Bytes), DataFailure> {
        let data = &self.client().inner.data;
        Ok((span, data.read(piece, span.offset, span.length as u32, in_a_row, &context.limit).await?))
    }
}

/// The next data or hole.
impl OpenFile {
    /// lseek(2) with SEEK_DATA, or SEEK_HOLE when `hole`: the offset, or `None` where that gives ENXIO.
    ///
    /// # Errors
    /// As `read`.
    pub async fn seek(&self, context: &CallContext, offset: u64, hole: bool) -> Result<Option<u64>, ClientError> {
        self.check()?;
        self.state().drained(context).await?;
        let mut redo = Redo::new();
        loop {
            match self.seek_once(context, offset, hole).await {
                Ok(found) => return Ok(found),
                Err(DataFailure::Gone) => self.look_again(context).await?,
                Err(DataFailure::NoSpace) => return Err(ClientError::malformed("no space for a seek")),
                Err(DataFailure::Client(error)) => return Err(error),
            }
            redo.pause("seek", &context.limit).await?;
        }
    }

    async fn seek_once(&self, context: &CallContext, offset: u64, hole: bool) -> Result<Option<u64>, DataFailure> {
        let chunk_size = self.client().inner.chunk_size;
        let mut at = offset;
        loop {
            let first = u32::try_from(at / chunk_size).unwrap_or(u32::MAX);
            let last = first.saturating_add(MAX_COUNT / 2);
            let view = self.view(context, first, last).await?;
            let size = view.attributes.size;
            if offset >= size {
                return Ok(None);
            }
            let until = (u64::from(last) + 1).saturating_mul(chunk_size).min(size);
            match self.seek_in(context, &view, (at, until), hole).await? {
                Some(found) => return Ok(Some(found)),
                None if until >= size => return Ok(hole.then_some(size)),
                None => at = until,
            }
        }
    }

    async fn seek_in(
        &self,
        context: &CallContext,
        view: &View,
        (from, until): (u64, u64),
        hole: bool,
    ) -> Result<Option<u64>, DataFailure> {
        let chunk_size = self.client().inner.chunk_size;
        for span in spans(from, until.saturating_sub(from), chunk_size) {
            let base = u64::from(span.index) * chunk_size;
            let found = match view.chunks.get(&span.index) {
                Some(handle) => {
                    self.client().inner.data.seek(view.piece(*handle), span.offset, hole, &context.limit).await?
                }
                None if hole => span.offset,
                None => continue,
            };
            if found < span.offset + span.length {
                return Ok(Some(base + found.max(span.offset)));
            }
        }
        Ok(None)
    }
}
