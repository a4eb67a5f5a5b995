//! What happens to chunks: reserved, attached by finished writes, cut by truncations, buried, reconfigured.
//!
//! This room owns the rules that keep sizes, chunks, server counts and tombstones in step. It decides on
//! committed state alone: whether a member may be dropped now is the leader's to know.

use super::apply::Context;
use super::chunks::{ChunkInfo, MAX_GOAL, first_configuration, is_valid};
use super::request::{
    AttributeChanges, Configuration, Credentials, FileType, FlushedFile, Refusal, Reply, Request, Space, Stored,
    UsedChunk,
};
use super::shrinks::Shrink;
use super::state::State;
use super::tombstones::Tombstone;
use crate::breaks::Break;
use crate::ids::{ChunkHandle, Epoch, InodeId, ServerId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// Most chunks that a session may have reserved and not attached.
pub const MAX_RESERVED: usize = 1_024;
/// Most chunks of one `CommitWrite`.
const MAX_CHUNKS_OF_WRITE: usize = 65_536;
/// Most replicas that one command condemns; the rest is reported again.
const MAX_CONDEMNED: usize = 65_536;

/// What a `CommitWrite` says about chunks and size.
#[derive(Clone, Copy)]
pub(crate) struct Write<'a> {
    pub(crate) inode: InodeId,
    pub(crate) attach: &'a [(u32, ChunkHandle)],
    pub(crate) used: &'a [UsedChunk],
    pub(crate) min_size: Option<u64>,
    pub(crate) space: Option<Space>,
}

impl State {
    /// Whether a request has to wait until the pending cut of its file is finished: it would grow the file past
    /// the cut, or attach chunks there. Applied all the same it is answered `Stale`, nothing is changed and nothing
    /// remembered, so that the leader can propose the same operation again.
    pub fn waits_for_shrink(&self, request: &Request) -> bool {
        let (inode, size, attach) = match request {
            Request::SetAttributes { inode, changes } => (*inode, changes.size, &[][..]),
            Request::CommitWrite { inode, attach, min_size, .. } => (*inode, *min_size, attach.as_slice()),
            _ => return false,
        };
        if self.breaks.is(Break::GrowthBeforeCut) {
            return false;
        }
        let Some(shrink) = self.shrinks.get(inode) else { return false };
        let Some(attributes) = self.namespace.attributes(inode) else { return false };
        size.is_some_and(|size| size > attributes.size) || attach.iter().any(|(index, _)| *index >= shrink.index)
    }

    pub(crate) fn allocate(
        &mut self,
        context: Context<'_>,
        replicas: u8,
        placements: &[Vec<ServerId>],
    ) -> Result<Reply, Refusal> {
        let goal = if replicas == 0 { self.default_replicas } else { replicas };
        if goal > MAX_GOAL || placements.len() > MAX_RESERVED {
            return Err(Refusal::Invalid);
        }
        let held = self.chunks.reserved_by(context.session).count();
        if placements.is_empty() || held + placements.len() > MAX_RESERVED {
            return Err(Refusal::NoSpace);
        }
        let known = |server: &&ServerId| self.servers.contains(**server);
        let usable = placements.iter().map(|servers| servers.iter().filter(known).copied().collect::<Vec<_>>());
        let configurations: Option<Vec<_>> = usable.map(|servers| first_configuration(&servers)).collect();
        let mut chunks = Vec::new();
        for configuration in configurations.ok_or(Refusal::NoSpace)? {
            named(&configuration).for_each(|server| self.servers.add_replica(server));
            let handle = self.chunks.reserve(context.session, configuration.clone(), goal);
            chunks.push((handle, configuration));
        }
        Ok(Reply::Chunks(chunks))
    }

    pub(crate) fn commit_write(
        &mut self,
        context: Context<'_>,
        write: Write<'_>,
        clear_suid: bool,
    ) -> Result<Reply, Refusal> {
        let inode = write.inode;
        self.namespace.access(context.who, inode, 2)?;
        let before = self.namespace.attributes(inode).ok_or(Refusal::Stale)?;
        if before.file_type != FileType::File {
            return Err(Refusal::Invalid);
        }
        let end = write.space.map(|space| space.to).max(write.min_size);
        if end.is_some_and(|end| end > self.max_size()) {
            return Err(Refusal::TooLarge);
        }
        let sized = write.min_size.is_some() && !self.breaks.is(Break::CutForgotten);
        let fresh = self.check_chunks(context.session, write, sized)?;
        let after = self.namespace.commit_write(inode, write.min_size, clear_suid, context.stamp.now)?;
        for (index, handle) in &fresh {
            self.chunks.attach(context.session, *handle, (inode, *index), before.replicas.clamp(1, MAX_GOAL));
        }
        self.note_stored(inode, write, after.size)?;
        if let Some(space) = write.space {
            self.namespace.note_space(inode, space)?;
        }
        self.attributes_reply(inode, false)
    }

    /// Takes over what the holder of a write delegation did to one file.
    pub(super) fn flush_file(&mut self, context: Context<'_>, file: &FlushedFile) -> Result<(), Refusal> {
        let FlushedFile { inode, attach, used, min_size, changes } = file;
        // Permission was asked when it was done.
        let context = Context { who: &Credentials::default(), ..context };
        let before = self.namespace.attributes(*inode).ok_or(Refusal::Stale)?;
        if self.holds.holder(*inode).is_some_and(|holder| holder != context.session) {
            return Err(Refusal::Stale);
        }
        if changes.size.is_some() || changes.replicas.is_some() {
            return Err(Refusal::Invalid);
        }
        self.namespace.check_attributes(context.who, *inode, changes)?;
        if !attach.is_empty() || !used.is_empty() || min_size.is_some() {
            let write = Write { inode: *inode, attach, used, min_size: *min_size, space: None };
            self.commit_write(context, write, changes.clear_suid)?;
        }
        let ctime = changes.ctime.map(|ctime| ctime.max(before.ctime));
        let changes = AttributeChanges { ctime, ..changes.clone() };
        self.namespace.set_attributes(context.who, *inode, &changes, context.stamp.now).map(drop)
    }

    /// Notes what a write says of its chunks. Of one that it says nothing of, and that was never counted, all below the size counts.
    fn note_stored(&mut self, inode: InodeId, write: Write<'_>, size: u64) -> Result<(), Refusal> {
        let mut told: BTreeMap<u32, Option<Stored>> = write.attach.iter().map(|(index, _)| (*index, None)).collect();
        told.extend(write.used.iter().map(|used| (used.index, used.stored.filter(Stored::is_counted))));
        let after = |(index, told): (u32, Option<Stored>)| {
            let info = self.chunks.at(inode, index)?;
            let stored = match told {
                Some(told) => self.later(&info, told),
                None => info.stored.or_all_of(self.overlap(index, size)),
            };
            Some((info, stored))
        };
        let counts: Vec<_> = told.into_iter().filter_map(after).collect();
        self.recount(inode, &counts)
    }

    /// The later of what is known of a chunk and of what a primary has counted. A count of an epoch to come is nobody's.
    fn later(&self, info: &ChunkInfo, told: Stored) -> Stored {
        if told.at <= info.stored.at || told.at.epoch > info.configuration.epoch {
            return info.stored;
        }
        let most = self.chunk_size.div_ceil(Stored::BLOCK) as u32;
        Stored { blocks: told.blocks.min(most), ..told }
    }

    /// Gives chunks of a file, as they are known, new counts.
    fn recount(&mut self, inode: InodeId, counts: &[(ChunkInfo, Stored)]) -> Result<(), Refusal> {
        let mut allocated = self.namespace.allocated(inode)?;
        for (info, stored) in counts {
            allocated = allocated.saturating_sub(info.stored.bytes()).saturating_add(stored.bytes());
            self.chunks.set_stored(inode, info.index, *stored);
        }
        self.namespace.set_allocated(inode, allocated)
    }

    /// The chunks that are to be attached, once it is sure that all of a write fits. A chunk that is there already
    /// (the write was split, and a part is told again) is not attached twice.
    ///
    /// A write that is `sized`, because it took the file to be shorter or saw a chunk's configuration change, must have reached
    /// each chunk after its last cut: the cut has zeroed what lay there before, and zeros must not become part of the file as
    /// if they had been written. How long the file is now does not matter: another write may have grown it since.
    /// One that names no size came before the cut and is done.
    fn check_chunks(
        &self,
        session: SessionId,
        write: Write<'_>,
        sized: bool,
    ) -> Result<Vec<(u32, ChunkHandle)>, Refusal> {
        let Write { inode, attach, used, .. } = write;
        if attach.len() + used.len() > MAX_CHUNKS_OF_WRITE {
            return Err(Refusal::Invalid);
        }
        let mut fresh = Vec::new();
        let (mut places, mut handles) = (BTreeSet::new(), BTreeSet::new());
        for (index, handle) in attach {
            if !places.insert(*index) || !handles.insert(*handle) {
                return Err(Refusal::Invalid);
            }
            match self.chunks.at(inode, *index) {
                // New when it was written, so before any cut.
                Some(info) if info.handle == *handle && !(sized && info.cut > Epoch(0)) => {}
                Some(_) => return Err(Refusal::Stale),
                None => {
                    let info = self.chunks.get(*handle).filter(|info| info.reserved == Some(session));
                    info.ok_or(Refusal::Stale)?;
                    fresh.push((*index, *handle));
                }
            }
        }
        let is_there = |used: &UsedChunk| match self.chunks.at(inode, used.index) {
            Some(info) => info.handle == used.handle && !(sized && used.cut < info.cut),
            None => fresh.contains(&(used.index, used.handle)),
        };
        if used.iter().all(is_there) { Ok(fresh) } else { Err(Refusal::Stale) }
    }

    pub(crate) fn set_attributes(
        &mut self,
        context: Context<'_>,
        inode: InodeId,
        changes: &AttributeChanges,
    ) -> Result<Reply, Refusal> {
        if changes.replicas.is_some_and(|goal| !(1..=MAX_GOAL).contains(&goal)) {
            return Err(Refusal::Invalid);
        }
        if changes.size.is_some_and(|size| size > self.max_size()) {
            return Err(Refusal::TooLarge);
        }
        let before = self.namespace.attributes(inode).ok_or(Refusal::Stale)?;
        self.namespace.set_attributes(context.who, inode, changes, context.stamp.now)?;
        if let Some(size) = changes.size.filter(|size| *size <= before.size) {
            self.fit_chunks(inode, size, size < before.size)?;
        }
        if let Some(goal) = changes.replicas {
            self.chunks.set_goal(inode, goal);
        }
        self.attributes_reply(inode, changes.size.is_some() && self.shrinks.contains(inode))
    }

    fn attributes_reply(&self, inode: InodeId, pending_shrink: bool) -> Result<Reply, Refusal> {
        let attributes = self.namespace.attributes(inode).ok_or(Refusal::Stale)?;
        Ok(Reply::Attributes { attributes, pending_shrink })
    }

    /// Cuts off what lies beyond the end of a file.
    pub(crate) fn cut_tail(&mut self, inode: InodeId) -> Result<(), Refusal> {
        let attributes = self.namespace.attributes(inode).ok_or(Refusal::Stale)?;
        if attributes.file_type != FileType::File {
            return Err(Refusal::Invalid);
        }
        self.fit_chunks(inode, attributes.size, true)
    }

    /// Fits a file's chunks to a size that is no larger: what lies wholly beyond is buried, and the chunk at the end, if it is to be
    /// `cut`, gets a new epoch and an intent (rule 13).
    fn fit_chunks(&mut self, inode: InodeId, size: u64, cut: bool) -> Result<(), Refusal> {
        let mut allocated = self.namespace.allocated(inode)?;
        let first_gone = size.div_ceil(self.chunk_size);
        if let Ok(first) = u32::try_from(first_gone) {
            let gone: Vec<_> = self.chunks.of_file(inode, first).map(|info| (info.handle, info.stored)).collect();
            for (handle, stored) in gone {
                allocated = allocated.saturating_sub(stored.bytes());
                self.bury(handle);
            }
        }
        self.namespace.set_allocated(inode, allocated)?;
        if self.shrinks.get(inode).is_some_and(|shrink| u64::from(shrink.index) >= first_gone) {
            self.shrinks.remove(inode);
        }
        let from = size % self.chunk_size;
        if cut && from != 0 {
            self.cut(inode, (size / self.chunk_size) as u32, from)?;
        }
        Ok(())
    }

    /// Counts of every chunk all that lies below the size of its file: version 1 of the state said no more.
    pub(crate) fn count_all(&mut self) {
        let files: BTreeSet<InodeId> = self
            .chunks
            .iter_from(ChunkHandle(0))
            .filter(|info| info.reserved.is_none())
            .map(|info| info.inode)
            .collect();
        for inode in files {
            let Some(attributes) = self.namespace.attributes(inode) else { continue };
            let all = |info: ChunkInfo| {
                let stored = info.stored.or_all_of(self.overlap(info.index, attributes.size));
                (info, stored)
            };
            let counts: Vec<_> = self.chunks.of_file(inode, 0).map(all).collect();
            // It has been a sum of bytes, not of blocks.
            let _ = self.namespace.set_allocated(inode, 0);
            let _ = self.recount(inode, &counts);
        }
    }

    /// Cuts the chunk at an index, if there is one, from an offset in it on.
    fn cut(&mut self, inode: InodeId, index: u32, from: u64) -> Result<(), Refusal> {
        let Some(info) = self.chunks.at(inode, index) else { return Ok(()) };
        let Some((handle, epoch)) = self.chunks.cut(inode, index) else { return Ok(()) };
        self.shrinks.set(Shrink { inode, handle, index, from, epoch });
        let stored = info.stored.cut(from, epoch);
        self.recount(inode, &[(info, stored)])
    }

    /// Bytes of a chunk that lie below the size of its file.
    fn overlap(&self, index: u32, size: u64) -> u64 {
        size.saturating_sub(u64::from(index) * self.chunk_size).min(self.chunk_size)
    }

    /// Takes a chunk out of the table and condemns its replicas.
    pub(crate) fn bury(&mut self, handle: ChunkHandle) {
        let Some(info) = self.chunks.remove(handle) else { return };
        let epoch = info.configuration.epoch;
        for server in named(&info.configuration) {
            self.servers.drop_replica(server);
            self.tombstones.add(Tombstone { server, handle, epoch });
        }
        // A replica that was condemned before may have heard of later epochs.
        self.tombstones.raise(self.servers.last(), handle, epoch);
    }

    /// Frees an orphan with all that hangs on it; what has a name, or is not there, is left alone.
    pub(crate) fn reap(&mut self, inode: InodeId) {
        if self.namespace.reap(inode).is_none() {
            return;
        }
        let chunks: Vec<_> = self.chunks.of_file(inode, 0).map(|info| info.handle).collect();
        chunks.into_iter().for_each(|handle| self.bury(handle));
        self.shrinks.remove(inode);
        self.locks.release_inode(inode);
        self.holds.end(inode);
    }

    /// A tail is zeroed; `stored` is what the primary has counted after it.
    pub(crate) fn finish_shrink(&mut self, inode: InodeId, handle: ChunkHandle, epoch: Epoch, stored: Option<Stored>) {
        let info = self.chunks.get(handle).filter(|info| info.inode == inode);
        if let (Some(info), Some(told)) = (info, stored.filter(Stored::is_counted)) {
            let stored = self.later(&info, told);
            // A chunk's file is there as long as the chunk is.
            let _ = self.recount(inode, &[(info, stored)]);
        }
        let done = |shrink: &Shrink| shrink.handle == handle && epoch >= shrink.epoch;
        if self.shrinks.get(inode).as_ref().is_some_and(done) {
            self.shrinks.remove(inode);
        }
    }

    /// Installs a configuration if the expected one is in force and nothing could be lost by it; answers the one
    /// that is in force then.
    pub(crate) fn reconfigure(
        &mut self,
        handle: ChunkHandle,
        expected: Epoch,
        next: &Configuration,
    ) -> Option<Configuration> {
        let info = self.chunks.get(handle)?;
        if info.configuration.epoch != expected || expected.0 == u32::MAX || !self.may_follow(&info, next) {
            return Some(info.configuration);
        }
        let next = Configuration { epoch: expected.next(), ..next.clone() };
        let before: BTreeSet<ServerId> = named(&info.configuration).collect();
        let after: BTreeSet<ServerId> = named(&next).collect();
        for server in before.difference(&after) {
            self.servers.drop_replica(*server);
            // With fewer members than the goal the dropped replica may still be of use: its server can come back.
            if next.members.len() >= usize::from(info.goal) || self.breaks.is(Break::CondemnedBelowGoal) {
                self.tombstones.add(Tombstone { server: *server, handle, epoch: next.epoch });
            }
        }
        for server in after.difference(&before) {
            self.servers.add_replica(*server);
            self.tombstones.remove(*server, handle);
        }
        self.chunks.set_configuration(handle, &next);
        Some(next)
    }

    /// A member holds everything committed, or was syncing until now; one at least was a member before.
    fn may_follow(&self, info: &ChunkInfo, next: &Configuration) -> bool {
        let now = &info.configuration;
        let from_now = |server: &ServerId| now.members.contains(server) || now.syncing.contains(server);
        is_valid(next)
            && next.members.iter().all(from_now)
            && next.members.iter().any(|server| now.members.contains(server))
            && named(next).count() <= 2 * usize::from(MAX_GOAL)
            && named(next).all(|server| self.servers.contains(server))
    }

    /// Gives tombstones to replicas that no configuration names: of chunks that are gone for good, and of chunks
    /// that have all their members elsewhere.
    pub(crate) fn condemn(&mut self, replicas: &[(ChunkHandle, ServerId)]) {
        for (handle, server) in replicas.iter().take(MAX_CONDEMNED) {
            if !self.servers.contains(*server) {
                continue;
            }
            let epoch = match self.chunks.get(*handle) {
                Some(info) if info.missing() == 0 && named(&info.configuration).all(|named| named != *server) => {
                    info.configuration.epoch
                }
                Some(_) => continue,
                None if self.was_given(*handle) => Epoch(u32::MAX),
                None => continue,
            };
            self.tombstones.add(Tombstone { server: *server, handle: *handle, epoch });
        }
    }

    /// Whether this generation gave out a handle: what an older one gave and the table does not know may be live
    /// data of a time that a restored backup does not remember.
    fn was_given(&self, handle: ChunkHandle) -> bool {
        handle.generation() == self.chunks.generation() && (1..self.chunks.watermark()).contains(&handle.counter())
    }
}

/// All servers that a configuration names.
fn named(configuration: &Configuration) -> impl Iterator<Item = ServerId> + '_ {
    configuration.members.iter().chain(&configuration.syncing).copied()
}
