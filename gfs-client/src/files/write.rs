//! Writing in place, into new chunks, and past the end.
//!
//! Data first, then one `CommitWrite` that attaches new chunks and moves the size, so that no reader sees a size without its bytes. What the
//! master calls stale was based on an old layout and is done again.

use super::behind::Turn;
use super::doubt::Doubt;
use super::split::{Span, index_of, spans};
use super::view::{MAX_COUNT, View};
use super::{FileState, Filling, OpenFile, Redo, Running, run_pieces};
use crate::client::Client;
use crate::data::{Behalf, Changed, DataFailure, Piece};
use crate::delegations::Held;
use crate::error::ClientError;
use crate::limit::CallContext;
use crate::session::Call;
use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, Epoch, InodeId};
use gfs_core::meta::request::{Refusal, UsedChunk};
use gfs_net::crc32c;
use gfs_proto::v1::{self, data_request::Op, request::Kind, server_message::Body as Said};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Most bytes that are written as one; a longer write is several, one after the other.
const MAX_WRITE: u64 = 64 << 20;
/// Other chunks that are tried for new data when servers are full.
const OTHER_CHUNKS: u32 = 3;

/// What an attempt came to.
pub(super) enum Attempt<T> {
    Done(T),
    /// The layout has changed: again, on a fresh view.
    Stale,
    /// A server of a new chunk is full: again, with another chunk.
    Full,
}

/// A reserved chunk in use by one write; others of the same client may fill it at the same time.
pub(super) struct Fresh {
    state: Arc<super::Handle>,
    pub(super) index: u32,
    pub(super) handle: ChunkHandle,
}

impl Fresh {
    /// It cannot become the file's: the next write takes another.
    pub(super) fn spoil(&self) {
        let mut filling = self.file().filling.lock();
        if filling.get(&self.index).is_some_and(|filling| filling.handle == self.handle) {
            filling.remove(&self.index);
        }
    }

    /// A reserved chunk that no other write shares, to be attached as it is.
    pub(super) async fn alone(
        file: &OpenFile,
        context: &CallContext,
        index: u32,
        goal: u8,
    ) -> Result<Self, ClientError> {
        let handle = file.client().inner.reserve.take(goal, &context.limit).await?;
        Ok(Self { state: file.inner.clone(), index, handle })
    }

    fn file(&self) -> &FileState {
        &self.state.state
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let mut filling = self.file().filling.lock();
        let Some(shared) = filling.get_mut(&self.index).filter(|shared| shared.handle == self.handle) else { return };
        shared.users -= 1;
        if shared.users == 0 {
            filling.remove(&self.index);
        }
    }
}

/// How one write is carried out.
#[derive(Clone, Copy)]
pub(super) struct Manner<'a> {
    pub(super) clear_suid: bool,
    /// It was answered before, under this delegation: its times are set, and others wait for it.
    pub(super) behind: Option<(&'a Held, Turn<'a>)>,
    pub(super) behalf: Behalf,
}

impl<'a> Manner<'a> {
    fn held(&self) -> Option<&'a Held> {
        self.behind.map(|(held, _)| held)
    }
}

impl OpenFile {
    /// Writes all of `data` at `offset`. `clear_suid`: clear set-id bits, as for a caller without privilege. When this returns, every
    /// reader that starts later sees the bytes; `sync` makes them safe against a loss of power.
    ///
    /// # Errors
    /// `NoSpace`, `Refused(TooLarge)`, `Io`, `TimedOut`: a part may have been written then. `SessionLost` once after locks were lost.
    pub async fn write(
        &self,
        context: &CallContext,
        offset: u64,
        data: Bytes,
        clear_suid: bool,
    ) -> Result<(), ClientError> {
        // Before the look at what is lost: what is lost later shows when the bytes are sent.
        let behalf = self.client().inner.data.call();
        self.check_writable()?;
        self.end_of(offset, data.len() as u64)?;
        self.state().drained(context).await?;
        self.take_failure()?;
        let _changing = self.changing(context).await?;
        let chunk_size = self.client().inner.chunk_size;
        let most = MAX_WRITE.min(chunk_size.saturating_mul(u64::from(MAX_COUNT) / 2));
        let (mut data, mut offset) = (data, offset);
        while !data.is_empty() {
            let part = data.split_to(data.len().min(most as usize));
            let length = part.len() as u64;
            self.write_part(context, offset, part, Manner { clear_suid, behind: None, behalf }).await?;
            offset += length;
        }
        Ok(())
    }

    /// Writes what is not too long to be one.
    pub(super) async fn write_part(
        &self,
        context: &CallContext,
        offset: u64,
        data: Bytes,
        manner: Manner<'_>,
    ) -> Result<(), ClientError> {
        if self.client().inner.lost_tails.contains(self.inner.inode) {
            // The cut has the file given back, which must not wait for this.
            manner.held().inspect(|held| held.detach());
        }
        self.client().cut_lost_tail(self.inner.inode, context).await?;
        let _budget = self.client().budget(data.len() as u64, &context.limit).await?;
        let (mut redo, mut full, mut doubt) = (Redo::new(), 0, Doubt::none(self));
        loop {
            if manner.held().is_some_and(Held::is_lost) {
                // Another may have written since.
                return Err(ClientError::SessionLost { inode: Some(self.inner.inode) });
            }
            match self.write_once(context, offset, &data, manner, &mut doubt).await? {
                Attempt::Done(()) => {
                    doubt.end();
                    return Ok(());
                }
                Attempt::Stale => {
                    manner.held().inspect(|held| held.detach());
                    self.look_again(context).await?;
                }
                Attempt::Full if full < OTHER_CHUNKS => full += 1,
                Attempt::Full => return Err(ClientError::NoSpace),
            }
            redo.pause("write", &context.limit).await?;
        }
    }

    async fn write_once(
        &self,
        context: &CallContext,
        offset: u64,
        data: &Bytes,
        manner: Manner<'_>,
        doubt: &mut Doubt<'_>,
    ) -> Result<Attempt<()>, ClientError> {
        let chunk_size = self.client().inner.chunk_size;
        let length = data.len() as u64;
        let end = offset + length;
        if let Some(held) = manner.held().filter(|held| held.layout(0, 0).is_none()) {
            // The master is asked, and must not wait for this.
            held.detach();
        }
        let view = self.view(context, index_of(offset, chunk_size), index_of(end - 1, chunk_size)).await?;
        // Looking may have shown that what was done before is lost: then this is not done on top of it.
        self.check()?;
        let clear_suid = manner.clear_suid && has_privilege(&view);
        let parts: Vec<Span> = spans(offset, length, chunk_size).collect();
        let mut fresh = Vec::new();
        for part in parts.iter().filter(|part| !view.chunks.contains_key(&part.index)) {
            fresh.push(self.fresh_chunk(context, part.index, view.attributes.replicas).await?);
        }
        let extends = end > view.attributes.size;
        // One of those before it may attach the chunk that is new now.
        if extends && (manner.behind.is_some() || fresh.len() < parts.len()) {
            doubt.begin();
        }
        let in_place = !extends && fresh.is_empty();
        let written = self.write_spans(context, (&parts, data), &view, &fresh, manner.behalf);
        let now = manner.behind.is_none();
        let (written, told) = if now && in_place {
            let (written, told) = tokio::join!(written, self.soft_times(context, clear_suid));
            (written, Some(told))
        } else {
            (written.await, None)
        };
        let written = match written {
            Ok(written) => written,
            Err(failure) => return self.failed(failure, &fresh),
        };
        if let Some((_, turn)) = manner.behind
            && !turn.comes().await
        {
            // One before it has failed: nothing comes after it.
            return Err(ClientError::Closed);
        }
        if in_place && !written.moved && !self.has_untold(&view) {
            match told {
                Some(told) => told?,
                None if now => self.soft_times(context, clear_suid).await?,
                // Its times were set when it was answered.
                None => {}
            }
            return Ok(Attempt::Done(()));
        }
        let used = parts.iter().filter_map(|part| written.used(part.index, *view.chunks.get(&part.index)?));
        // A new chunk is attached with its size: the file may have been cut since, and what lies in the chunk beyond its end would
        // come back when it grows again.
        let min_size = (extends || written.moved || !fresh.is_empty()).then_some(end);
        let (used, behind) = (used.collect(), manner.held());
        let commit = Commit { attach: &fresh, used, min_size, clear_suid, behind, ..Commit::default() };
        match self.commit(context, commit).await? {
            // Only a count was to be told, of a chunk that a cut has taken since. The write came before the cut and others may have
            // seen it: it must not come once more.
            Attempt::Stale if in_place && !written.moved => {
                self.forget_view();
                if now {
                    self.soft_times(context, clear_suid).await?;
                }
                Ok(Attempt::Done(()))
            }
            attempt => Ok(attempt),
        }
    }

    /// What a failure of data means for the whole write.
    pub(super) fn failed<T>(&self, failure: DataFailure, fresh: &[Fresh]) -> Result<Attempt<T>, ClientError> {
        fresh.iter().for_each(Fresh::spoil);
        match failure {
            DataFailure::Gone => Ok(Attempt::Stale),
            DataFailure::NoSpace if fresh.is_empty() => Err(ClientError::NoSpace),
            DataFailure::NoSpace => Ok(Attempt::Full),
            DataFailure::Client(error) => Err(error),
        }
    }

    /// A reserved chunk for a place where there is none: the one that other writes of this client are filling just now, or a new one.
    pub(super) async fn fresh_chunk(&self, context: &CallContext, index: u32, goal: u8) -> Result<Fresh, ClientError> {
        let state = self.state();
        let inner = &self.client().inner;
        let _turn = context.limit.run("allocate", state.reserving.lock()).await?;
        let session = inner.session.id();
        let shared = state.filling.lock().get_mut(&index).filter(|filling| filling.session == session).map(|filling| {
            filling.users += 1;
            filling.handle
        });
        let handle = match shared {
            Some(handle) => handle,
            None => {
                let handle = inner.reserve.take(goal, &context.limit).await?;
                state.filling.lock().insert(index, Filling { handle, session, users: 1 });
                handle
            }
        };
        Ok(Fresh { state: self.inner.clone(), index, handle })
    }

    /// Writes each span to its chunk; all at the same time.
    pub(super) async fn write_spans(
        &self,
        context: &CallContext,
        (parts, data): (&[Span], &Bytes),
        view: &View,
        fresh: &[Fresh],
        behalf: Behalf,
    ) -> Result<Written, DataFailure> {
        let targets: BTreeMap<u32, ChunkHandle> = view
            .chunks
            .iter()
            .map(|(index, handle)| (*index, *handle))
            .chain(fresh.iter().map(|f| (f.index, f.handle)))
            .collect();
        let mut todo = Vec::new();
        for span in parts.iter().flat_map(|part| part.pieces()) {
            let handle = *targets.get(&span.index).ok_or(DataFailure::Gone)?;
            let piece = view.piece(handle);
            todo.push((piece, span.offset, data.slice(span.at as usize..(span.at + span.length) as usize)));
        }
        let mut written = Written::default();
        // In their order, so that the pieces reach the primary so: only what comes after all else lands in place at once.
        let write = |one| Box::pin(write_piece(self.client(), context, one, behalf)) as Running<'_, _>;
        let writes = todo.iter().map(write);
        let result = run_pieces(writes, |(handle, changed)| written.add(handle, &changed)).await;
        // Also after an error: some may have been written.
        self.note_dirty(todo.iter().map(|(piece, ..)| piece.handle));
        result.map(|()| written)
    }

    /// Remembers what a sync has to reach. After the answer: a sync that ran meanwhile has not reached it.
    pub(super) fn note_dirty(&self, handles: impl Iterator<Item = ChunkHandle>) {
        let files = &self.client().inner.files;
        let added = {
            let mut dirty = self.state().dirty.lock();
            handles.filter(|handle| dirty.chunks.insert(*handle)).count()
        };
        if added > 0 {
            files.dirty.fetch_add(added, Ordering::AcqRel);
        }
        // Chunks of a closed file are found by its entry in the table, which must be there again.
        if self.inner.closed.load(Ordering::Acquire) {
            files.files.lock().entry(self.inner.inode).or_insert_with(|| self.inner.state.clone());
        }
        self.client().flush_some();
    }

    /// Whether a change in place has filled or made holes, which the master has to know.
    pub(super) fn has_untold(&self, view: &View) -> bool {
        view.chunks.values().any(|handle| self.client().inner.locations.is_untold(*handle))
    }

    /// Tells the master of new times of a write that changed nothing else.
    pub(super) async fn soft_times(&self, context: &CallContext, clear_suid: bool) -> Result<(), ClientError> {
        let inode = self.inner.inode;
        if self.take_over_here(context, &[], &[], None, None).await? {
            return Ok(());
        }
        self.state().dirty.lock().times = true;
        self.client().inner.cache.times_move(inode);
        let call = Call::SoftTimes(v1::SoftTimes { inode: inode.0, clear_suid });
        let (said, _) = self.client().inner.session.call("write", call, &context.limit).await?;
        let Said::Reply(reply) = said else { return Err(ClientError::malformed("answer to times")) };
        self.client().inner.grants.mark_commit(inode);
        self.client().inner.cache.times_move(inode);
        crate::client::refused(reply.refusal)
    }
}

/// Whether a file may have anything that a write by an unprivileged user takes away: set-id bits, or file capabilities.
pub(super) fn has_privilege(view: &View) -> bool {
    view.attributes.mode & 0o6000 != 0 || view.attributes.has_xattrs
}

/// One `CommitWrite`.
#[derive(Default)]
pub(super) struct Commit<'a> {
    pub(super) attach: &'a [Fresh],
    pub(super) used: Vec<UsedChunk>,
    pub(super) min_size: Option<u64>,
    pub(super) clear_suid: bool,
    /// Space promised or given back.
    pub(super) space: Option<v1::Space>,
    /// Of a write that was answered before, under this delegation.
    pub(super) behind: Option<&'a Held>,
}

impl OpenFile {
    /// Makes finished writes part of a file that this session holds. False when the master is to do that; then it is not held any more.
    async fn take_over_here(
        &self,
        context: &CallContext,
        attach: &[(u32, ChunkHandle)],
        used: &[UsedChunk],
        min_size: Option<u64>,
        behind: Option<&Held>,
    ) -> Result<bool, ClientError> {
        let inner = &self.client().inner;
        let Some(held) = inner.delegations.get(self.inner.inode) else { return Ok(false) };
        let written = used.iter().map(|used| (used.index, used.handle));
        if held.write(attach, written, min_size, behind.is_none(), &inner.locations) {
            return Ok(true);
        }
        behind.inspect(|held| held.detach());
        self.client().give_back(vec![held], context).await?;
        self.check()?;
        Ok(false)
    }

    /// Makes finished writes part of the file.
    pub(super) async fn commit(&self, context: &CallContext, commit: Commit<'_>) -> Result<Attempt<()>, ClientError> {
        let inode: InodeId = self.inner.inode;
        let locations = &self.client().inner.locations;
        let attached: Vec<(u32, ChunkHandle)> = commit.attach.iter().map(|fresh| (fresh.index, fresh.handle)).collect();
        if commit.space.is_some() {
            self.client().settle(inode, context).await?;
            self.check()?;
        } else if self.take_over_here(context, &attached, &commit.used, commit.min_size, commit.behind).await? {
            return Ok(Attempt::Done(()));
        }
        // How much is stored in the new chunks is told of like that in the others.
        let fresh = |fresh: &Fresh| UsedChunk { index: fresh.index, handle: fresh.handle, cut: Epoch(0), stored: None };
        let used = commit.used.into_iter().chain(commit.attach.iter().map(fresh));
        let used: Vec<_> = used.map(|used| UsedChunk { stored: locations.count(used.handle), ..used }).collect();
        let wire = v1::CommitWrite {
            inode: inode.0,
            attach: commit.attach.iter().map(|new| used_chunk(&fresh(new))).collect(),
            used: used.iter().map(used_chunk).collect(),
            min_size: commit.min_size,
            clear_suid: commit.clear_suid,
            space: commit.space,
        };
        let request = v1::Request { kind: Some(Kind::CommitWrite(wire)) };
        match self.client().mutate_wire("write", context, request).await {
            Ok((reply, stamp)) => {
                self.client().note_commit(inode, reply, stamp, &attached);
                used.iter().for_each(|used| locations.count_told(used.handle, used.stored.unwrap_or_default()));
                Ok(Attempt::Done(()))
            }
            Err(ClientError::Refused(Refusal::Stale)) => {
                commit.attach.iter().for_each(Fresh::spoil);
                Ok(Attempt::Stale)
            }
            Err(error) => {
                // It may have taken effect all the same.
                commit.attach.iter().for_each(Fresh::spoil);
                self.client().inner.grants.mark_commit(inode);
                self.forget_view();
                Err(error)
            }
        }
    }
}

fn used_chunk(used: &UsedChunk) -> v1::IndexedChunk {
    let stored = used.stored.map(Into::into);
    v1::IndexedChunk { index: used.index, handle: used.handle.0, cut: used.cut.0, stored }
}

/// What finished writes came to.
#[derive(Default)]
pub(super) struct Written {
    /// The configuration of a chunk changed under way: the file may have been cut meanwhile.
    pub(super) moved: bool,
    /// The last cut of each chunk that all its writes came after.
    cuts: BTreeMap<ChunkHandle, Epoch>,
}

impl Written {
    fn add(&mut self, handle: ChunkHandle, changed: &Changed) {
        self.moved |= changed.moved;
        let cut = self.cuts.entry(handle).or_insert(changed.cut());
        *cut = changed.cut().min(*cut);
    }

    /// How a `CommitWrite` tells of an attached chunk that was written.
    pub(super) fn used(&self, index: u32, handle: ChunkHandle) -> Option<UsedChunk> {
        self.cuts.get(&handle).map(|cut| UsedChunk { index, handle, cut: *cut, stored: None })
    }
}

type Todo = (Piece, u64, Bytes);

async fn write_piece(
    client: &Client,
    context: &CallContext,
    (piece, offset, data): &Todo,
    behalf: Behalf,
) -> Result<(ChunkHandle, Changed), DataFailure> {
    let op = Op::Write(v1::Write { offset: *offset, crc: crc32c(data) });
    let changed = client.inner.data.change(*piece, op, data.clone(), Some(behalf), &context.limit).await?;
    Ok((piece.handle, changed))
}
