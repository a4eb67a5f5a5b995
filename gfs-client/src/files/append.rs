//! Appending: O_APPEND writes of many clients, each whole and none over another.
//!
//! Within a chunk its primary picks the place, with the bytes in hand (design section 4, rule 12). What crosses into the next chunk is in
//! `crossing`.

use super::crossing::Watch;
use super::doubt::Doubt;
use super::split::{Span, index_of};
use super::view::View;
use super::write::{Attempt, Commit, Fresh};
use super::{OpenFile, Redo};
use crate::data::{Behalf, DataFailure, Piece};
use crate::error::ClientError;
use crate::limit::CallContext;
use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, Epoch};
use gfs_core::meta::request::UsedChunk;
use gfs_net::crc32c;
use gfs_proto::v1::{self, data_reply::Status, data_request::Op};

/// Longest record that is appended as a whole; a longer one is several.
const MAX_RECORD: usize = 1 << 20;
/// Other chunks that are tried when servers are full.
const OTHER_CHUNKS: u32 = 3;

/// Where an append may go on.
enum Tail {
    /// Into this attached chunk, at or after this offset in it.
    Attached { index: u32, handle: ChunkHandle, offset: u64 },
    /// Into a new chunk at this offset.
    Missing { index: u32, offset: u64 },
}

/// What the primary did with an append.
pub(super) enum Placed {
    /// It lies here in the chunk, and came after this cut of it.
    At { offset: u64, cut: Epoch },
    /// It does not fit behind what is there, which ends here.
    NoRoom { tail: u64 },
}

/// An append of one record.
pub(super) struct Record<'a> {
    pub(super) file: &'a OpenFile,
    pub(super) context: &'a CallContext,
    pub(super) data: Bytes,
    pub(super) clear_suid: bool,
    pub(super) behalf: Behalf,
}

impl OpenFile {
    /// Appends `data` at the end of the file as all clients see it, and answers where it landed. Up to 1 MiB is one record: whole, without
    /// a hole before it and over no other. More is several records.
    ///
    /// # Errors
    /// As `write`. After `TimedOut` and `Interrupted` the record may have been appended.
    pub async fn append(&self, context: &CallContext, data: Bytes, clear_suid: bool) -> Result<u64, ClientError> {
        if let Some(landed) = self.append_behind(context, &data).await? {
            return Ok(landed);
        }
        let behalf = self.client().inner.data.call();
        let _changing = self.changing(context).await?;
        self.client().settle(self.inner.inode, context).await?;
        self.check_writable()?;
        self.client().cut_lost_tail(self.inner.inode, context).await?;
        if data.is_empty() {
            return Ok(self.attributes(context).await?.size);
        }
        let _turn = context.limit.run("append", self.state().appending.lock()).await?;
        let _budget = self.client().budget(data.len() as u64, &context.limit).await?;
        let most = MAX_RECORD.min(usize::try_from(self.client().inner.chunk_size).unwrap_or(MAX_RECORD));
        let (mut data, mut first) = (data, None);
        while !data.is_empty() {
            let part = data.split_to(data.len().min(most));
            let record = Record { file: self, context, data: part, clear_suid, behalf };
            let landed = record.append().await?;
            first.get_or_insert(landed);
        }
        Ok(first.unwrap_or_default())
    }
}

impl Record<'_> {
    pub(super) fn length(&self) -> u64 {
        self.data.len() as u64
    }

    pub(super) fn chunk_size(&self) -> u64 {
        self.file.client().inner.chunk_size
    }

    async fn append(&self) -> Result<u64, ClientError> {
        let (mut redo, mut full, mut watch, mut doubt) = (Redo::new(), 0, None, Doubt::none(self.file));
        loop {
            match self.append_once(&mut watch, &mut doubt).await? {
                Attempt::Done(landed) => {
                    doubt.end();
                    return Ok(landed);
                }
                Attempt::Stale => self.file.forget_view(),
                Attempt::Full if full < OTHER_CHUNKS => full += 1,
                Attempt::Full => return Err(ClientError::NoSpace),
            }
            redo.pause("append", &self.context.limit).await?;
        }
    }

    async fn append_once(&self, watch: &mut Option<Watch>, doubt: &mut Doubt<'_>) -> Result<Attempt<u64>, ClientError> {
        let size = self.file.attributes(self.context).await?.size;
        self.file.end_of(size, self.length())?;
        let index = index_of(size, self.chunk_size());
        let view = self.file.view(self.context, index, index.saturating_add(1)).await?;
        // As in a write: not on top of what is lost.
        self.file.check()?;
        match self.tail(&view)? {
            Tail::Missing { index, offset } => self.start_chunk(&view, index, offset).await,
            Tail::Attached { index, handle, offset } => {
                doubt.begin();
                match self.place(handle, offset, &self.data).await {
                    Ok(Placed::At { offset, cut }) => {
                        self.commit_at(UsedChunk { index, handle, cut, stored: None }, offset).await
                    }
                    Ok(Placed::NoRoom { tail }) => self.cross(index, handle, tail, watch).await,
                    Err(failure) => self.file.failed(failure, &[]),
                }
            }
        }
    }

    /// The end of the file, from a view that may be of another moment than the size that it was asked for.
    fn tail(&self, view: &View) -> Result<Tail, ClientError> {
        let size = view.attributes.size;
        let (index, offset) = (index_of(size, self.chunk_size()), size % self.chunk_size());
        Ok(match view.chunks.get(&index) {
            Some(handle) => Tail::Attached { index, handle: *handle, offset },
            None => Tail::Missing { index, offset },
        })
    }

    /// Has the primary append, at `min` or after it.
    pub(super) async fn place(&self, handle: ChunkHandle, min: u64, data: &Bytes) -> Result<Placed, DataFailure> {
        let client = self.file.client();
        let piece = Piece::new(self.file.inode(), handle);
        let op = Op::Append(v1::Append { min_offset: min, limit: self.chunk_size(), crc: crc32c(data) });
        let result = client.inner.data.change(piece, op, data.clone(), Some(self.behalf), &self.context.limit).await;
        self.file.note_dirty(std::iter::once(handle));
        let changed = result?;
        let offset = changed.reply.offset;
        Ok(match changed.reply.status() {
            Status::Ok => Placed::At { offset, cut: changed.cut() },
            _ => Placed::NoRoom { tail: offset },
        })
    }

    /// The record lies whole in an attached chunk: the size moves over it.
    async fn commit_at(&self, used: UsedChunk, landed: u64) -> Result<Attempt<u64>, ClientError> {
        let start = u64::from(used.index) * self.chunk_size() + landed;
        let min_size = Some(start + self.length());
        let commit = Commit { used: vec![used], min_size, clear_suid: self.clear_suid, ..Commit::default() };
        Ok(at(start, self.file.commit(self.context, commit).await?))
    }

    /// There is no chunk at the end of the file: the record goes into a new one, and over its border into another.
    async fn start_chunk(&self, view: &View, index: u32, offset: u64) -> Result<Attempt<u64>, ClientError> {
        let goal = view.attributes.replicas;
        let room = self.chunk_size() - offset;
        let mut fresh = vec![Fresh::alone(self.file, self.context, index, goal).await?];
        let mut parts = vec![Span { index, offset, length: room.min(self.length()), at: 0 }];
        if self.length() > room && view.chunks.contains_key(&(index + 1)) {
            // What is attached already is not for us alone: the end of the file gets a chunk, and the record goes on from there.
            if let Err(failure) = self.file.make_empty(self.context, fresh[0].handle).await {
                return self.file.failed(failure, &fresh);
            }
            let commit = Commit { attach: &fresh, ..Commit::default() };
            self.file.commit(self.context, commit).await?;
            return Ok(Attempt::Stale);
        }
        if self.length() > room {
            fresh.push(Fresh::alone(self.file, self.context, index + 1, goal).await?);
            parts.push(Span { index: index + 1, offset: 0, length: self.length() - room, at: room });
        }
        let nothing = view.without_chunks();
        if let Err(failure) =
            self.file.write_spans(self.context, (&parts, &self.data), &nothing, &fresh, self.behalf).await
        {
            return self.file.failed(failure, &fresh);
        }
        let start = u64::from(index) * self.chunk_size() + offset;
        let min_size = Some(start + self.length());
        let commit = Commit { attach: &fresh, min_size, clear_suid: self.clear_suid, ..Commit::default() };
        Ok(at(start, self.file.commit(self.context, commit).await?))
    }
}

pub(super) fn at(start: u64, attempt: Attempt<()>) -> Attempt<u64> {
    match attempt {
        Attempt::Done(()) => Attempt::Done(start),
        Attempt::Stale => Attempt::Stale,
        Attempt::Full => Attempt::Full,
    }
}
