//! Reads of the committed state, and what a mutation would make stale in caches.
//!
//! This room never changes anything and never waits.

use super::grants::Touched;
use super::request::{Answer, Credentials, FileType, Query, Refusal, Request};
use super::state::State;
use crate::ids::{InodeId, SessionId};

/// Most chunks in one answer to `Layout`.
pub const MAX_LAYOUT: usize = 4_096;

impl State {
    /// Answers a query.
    pub fn query(&self, who: &Credentials, query: &Query) -> Answer {
        self.answer(who, query).unwrap_or_else(Answer::Refused)
    }

    fn answer(&self, who: &Credentials, query: &Query) -> Result<Answer, Refusal> {
        let namespace = &self.namespace;
        match query {
            Query::Lookup { parent, name } => namespace.lookup(who, *parent, name).map(Answer::Attributes),
            Query::GetAttributes { inode } => {
                namespace.attributes(*inode).map(Answer::Attributes).ok_or(Refusal::Stale)
            }
            Query::ReadLink { inode } => namespace.read_link(*inode).map(Answer::Target),
            Query::ReadDirectory { inode, cookie, limit } => {
                let page = namespace.read_directory(who, *inode, *cookie, *limit)?;
                Ok(Answer::Directory { entries: page.entries, end: page.end })
            }
            Query::ListNames { inode, cookie, limit } => {
                let (entries, end) = namespace.list_names(who, *inode, *cookie, *limit)?;
                Ok(Answer::Listing { entries, end })
            }
            Query::GetXattr { inode, name } => namespace.get_xattr(who, *inode, name).map(Answer::Value),
            Query::ListXattrs { inode } => namespace.list_xattrs(who, *inode).map(Answer::Names),
            Query::Layout { inode, first, count } => self.layout(who, *inode, *first, *count),
            Query::TestLock { inode, lock } => {
                if !namespace.contains(*inode) {
                    return Err(Refusal::Stale);
                }
                Ok(Answer::Lock(self.locks.conflicting(*inode, lock)))
            }
        }
    }

    /// Whoever may read or write a file may know where it is.
    fn layout(&self, who: &Credentials, inode: InodeId, first: u32, count: u32) -> Result<Answer, Refusal> {
        let attributes = self.namespace.attributes(inode).ok_or(Refusal::Stale)?;
        match attributes.file_type {
            FileType::File => {}
            FileType::Directory => return Err(Refusal::IsDirectory),
            _ => return Err(Refusal::Invalid),
        }
        self.namespace.access(who, inode, 4).or_else(|_| self.namespace.access(who, inode, 2))?;
        let end = u64::from(first) + u64::from(count);
        let chunks = self.chunks.of_file(inode, first).take_while(|info| u64::from(info.index) < end);
        let chunks = chunks.take(MAX_LAYOUT).map(|info| info.location()).collect();
        Ok(Answer::Layout { attributes, chunks })
    }

    /// What caches of other sessions a request would make stale. It may name too much (the request may be refused),
    /// never too little. An access time alone makes nothing stale: it is as lazy as relatime. Nobody else caches anything of what is held.
    pub fn touched(&self, request: &Request) -> Touched {
        match request {
            Request::Create { parent, name, .. } => self.names(&[(*parent, name)], None),
            Request::Link { inode, parent, name } => self.names(&[(*parent, name)], Some(*inode)),
            Request::Unlink { parent, name } | Request::Rmdir { parent, name } => self.names(&[(*parent, name)], None),
            Request::Rename { parent, name, new_parent, new_name, .. } => {
                self.names(&[(*parent, name), (*new_parent, new_name)], None)
            }
            Request::SetAttributes { inode, .. }
            | Request::SetXattr { inode, .. }
            | Request::RemoveXattr { inode, .. }
            | Request::CutTail { inode }
            | Request::Hold { inode }
            | Request::CommitWrite { inode, .. } => self.names(&[], Some(*inode)),
            Request::Flush { files, .. } => {
                let mut inodes: Vec<InodeId> = files.iter().map(|file| file.inode).collect();
                inodes.sort_unstable();
                inodes.dedup();
                Touched { inodes, entries: Vec::new() }
            }
            Request::SetLock { .. }
            | Request::ReleaseLocks { .. }
            | Request::AllocateChunks { .. }
            | Request::TouchAccess { .. }
            | Request::ReserveInodes { .. }
            | Request::Barrier { .. } => Touched::default(),
        }
    }

    /// The directories and files that other sessions hold and that a request would change. Applied all the same it is answered `Stale`, nothing is
    /// changed and nothing remembered, so that the leader can have them given back and propose the same operation again.
    pub fn held_by_others(&self, session: SessionId, request: &Request) -> Vec<InodeId> {
        // A flush is about what its own session holds.
        if self.holds.is_empty() || matches!(request, Request::Flush { .. }) {
            return Vec::new();
        }
        let others = |inode: &InodeId| self.holds.holder(*inode).is_some_and(|holder| holder != session);
        self.touched(request).inodes.into_iter().filter(others).collect()
    }

    /// The directories whose names an answer to a query tells of.
    pub fn consulted(query: &Query) -> Option<InodeId> {
        match query {
            Query::Lookup { parent, .. } => Some(*parent),
            Query::ReadDirectory { inode, .. }
            | Query::ListNames { inode, .. }
            | Query::GetXattr { inode, .. }
            | Query::ListXattrs { inode } => Some(*inode),
            Query::GetAttributes { .. } | Query::ReadLink { .. } | Query::Layout { .. } | Query::TestLock { .. } => {
                None
            }
        }
    }

    /// The directories, the names, and what the names mean now.
    fn names(&self, names: &[(InodeId, &Vec<u8>)], also: Option<InodeId>) -> Touched {
        let mut inodes: Vec<InodeId> = also.into_iter().collect();
        for (parent, name) in names {
            inodes.push(*parent);
            inodes.extend(self.namespace.peek(*parent, name));
        }
        inodes.sort_unstable();
        inodes.dedup();
        let mut entries: Vec<_> = names.iter().map(|(parent, name)| (*parent, (*name).clone())).collect();
        entries.dedup();
        Touched { inodes, entries }
    }
}
