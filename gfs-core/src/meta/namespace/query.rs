//! Reads: names, attributes, listings, and walks over everything.

use super::names::Dentry;
use super::permission::{EXECUTE, READ};
use super::{DirectoryPage, Namespace, check_name};
use crate::ids::InodeId;
use crate::meta::request::{Attributes, Credentials, DirectoryEntry, FileType, ListedName, Refusal};

/// Entries in one page of a listing, at most.
const PAGE_MAX: u32 = 8192;

impl Namespace {
    /// What a name names; `.` and `..` included.
    pub fn lookup(&self, who: &Credentials, parent: InodeId, name: &[u8]) -> Result<Attributes, Refusal> {
        let directory = self.load_directory(parent)?;
        self.permit(who, parent, &directory, EXECUTE)?;
        check_name(name)?;
        let id = self.peek(parent, name).ok_or(Refusal::NotFound)?;
        // A removed directory may outlive the one that it was in.
        let gone = if name == b".." { Refusal::NotFound } else { Refusal::Stale };
        self.attributes(id).ok_or(gone)
    }

    /// What a name names, without asking who wants to know; `.` and `..` included.
    pub fn peek(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        match name {
            b"." => self.load_directory(parent).ok().map(|_| parent),
            b".." => self.parent(parent),
            _ => self.dentries.find(parent.0, name).map(|(_, dentry)| dentry.inode),
        }
    }

    /// The directory that a directory is in, or was in before it was removed; the root is in itself.
    pub fn parent(&self, directory: InodeId) -> Option<InodeId> {
        self.load_directory(directory).ok().map(|inode| inode.parent)
    }

    /// The attributes of an inode, orphan or not.
    pub fn attributes(&self, inode: InodeId) -> Option<Attributes> {
        self.inodes.get((inode.0, 0)).map(|record| record.attributes(inode))
    }

    /// Whether the inode is there, orphan or not.
    pub fn contains(&self, inode: InodeId) -> bool {
        self.inodes.contains((inode.0, 0))
    }

    /// The target of a symbolic link; `Invalid` of anything else.
    pub fn read_link(&self, inode: InodeId) -> Result<Vec<u8>, Refusal> {
        match self.load(inode)?.file_type {
            FileType::Symlink => self.targets.get((inode.0, 0)).ok_or(Refusal::Stale),
            _ => Err(Refusal::Invalid),
        }
    }

    /// A page of a directory after `cookie`, without `.` and `..`. Values up to 2 are the start. A name that is
    /// there from the first page to the last is in exactly one of them.
    pub fn read_directory(
        &self,
        who: &Credentials,
        inode: InodeId,
        cookie: u64,
        limit: u32,
    ) -> Result<DirectoryPage, Refusal> {
        let (entries, end) = self.page(who, inode, (cookie, limit), |cookie, Dentry { inode, name }| {
            Some(DirectoryEntry { cookie, name, attributes: self.attributes(inode)? })
        })?;
        Ok(DirectoryPage { entries, end })
    }

    /// As `read_directory`, with numbers and types instead of attributes; and whether the directory ended.
    pub fn list_names(
        &self,
        who: &Credentials,
        inode: InodeId,
        cookie: u64,
        limit: u32,
    ) -> Result<(Vec<ListedName>, bool), Refusal> {
        self.page(who, inode, (cookie, limit), |cookie, Dentry { inode, name }| {
            let file_type = self.inodes.get((inode.0, 0))?.file_type;
            Some(ListedName { cookie, name, inode, file_type })
        })
    }

    fn page<T>(
        &self,
        who: &Credentials,
        inode: InodeId,
        (cookie, limit): (u64, u32),
        show: impl Fn(u64, Dentry) -> Option<T>,
    ) -> Result<(Vec<T>, bool), Refusal> {
        let directory = self.load_directory(inode)?;
        self.permit(who, inode, &directory, READ)?;
        let Some(from) = cookie.checked_add(1) else { return Ok((Vec::new(), true)) };
        let mut names = self.dentries.table.range_of(inode.0, from);
        let mut entries = Vec::new();
        for (cookie, dentry) in names.by_ref().take(limit.clamp(1, PAGE_MAX) as usize) {
            entries.push(show(cookie, dentry).ok_or(Refusal::Stale)?);
        }
        Ok((entries, names.next().is_none()))
    }

    /// Inodes without a name, in order of number.
    pub fn orphans(&self) -> impl Iterator<Item = InodeId> + '_ {
        self.orphans.range((0, 0)).map(|((inode, _), ())| InodeId(inode))
    }

    /// Whether the inode is there and has no name.
    pub fn is_orphan(&self, inode: InodeId) -> bool {
        self.orphans.contains((inode.0, 0))
    }

    /// All inodes in order of number, from `from` on.
    pub fn inodes(&self, from: InodeId) -> impl Iterator<Item = Attributes> + '_ {
        self.inodes.range((from.0, 0)).map(|((inode, _), record)| record.attributes(InodeId(inode)))
    }

    /// All names as (directory, name, inode), in order of directory and cookie.
    pub fn entries(&self) -> impl Iterator<Item = (InodeId, Vec<u8>, InodeId)> + '_ {
        let all = self.dentries.table.range((0, 0));
        all.map(|((directory, _), Dentry { inode, name })| (InodeId(directory), name, inode))
    }
}
