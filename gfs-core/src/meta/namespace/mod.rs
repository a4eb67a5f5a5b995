//! The POSIX namespace: inodes, names, extended attributes and ACLs as one pure data structure.
//!
//! This room owns what a name, a mode bit, a link count and a time mean. It never knows a chunk, a server, a
//! session or a lock: sizes are told to it, and what lost its last name stays as an orphan until `reap`.
//! `Clone` costs a few pointers and is the freeze of a checkpoint.
//!
//! A mutation decides wholly before it changes anything: what is refused leaves no trace. An inode that is not
//! there is `Stale`, a name that is not there is `NotFound`.

mod acl;
mod attributes;
mod create;
mod encode;
mod inode;
mod names;
mod paths;
mod permission;
mod promise;
mod query;
mod remove;
mod rename;
mod types;
mod verify;
mod xattr;

#[cfg(test)]
mod tests;

pub use attributes::access_is_due;
pub use create::new_attributes;
pub use inode::directory_size;
pub use types::{Counts, CreateArgs, Created, DirectoryPage, RenameArgs, Renamed, RootOptions, Unlinked};
pub use verify::Inconsistency;

use super::request::{Attributes, FileType, Refusal, Timestamp};
use crate::arena::Table;
use crate::ids::{Generation, InodeId, ROOT};
use inode::Inode;
use names::{Dentry, Names};
use xattr::Xattr;

/// Longest name of a directory entry or an extended attribute, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Most hard links to one inode that is not a directory. Directories count their subdirectories without limit.
pub const LINK_MAX: u32 = 65_000;
/// Longest value of an extended attribute, and longest list of the names of one inode, in bytes.
pub const XATTR_MAX: usize = 65_536;
/// Largest file size, in bytes.
pub const SIZE_MAX: u64 = i64::MAX as u64;

/// The namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// (inode, 0) -> inode.
    inodes: Table<Inode>,
    /// (directory, cookie) -> name and inode.
    dentries: Names<Dentry>,
    /// (inode, cookie) -> name and value.
    xattrs: Names<Xattr>,
    /// (inode, 0) -> target of a symbolic link.
    targets: Table<Vec<u8>>,
    /// (inode, 0): inodes without a name.
    orphans: Table<()>,
    generation: Generation,
    /// Counter of the next inode number.
    next: u64,
    files: u64,
    directories: u64,
    /// Sum of the sizes of regular files; sparse ones can exceed 64 bits together.
    logical_bytes: u128,
}

impl Namespace {
    /// A namespace with nothing but its root, which is its own parent.
    pub fn new(root: RootOptions) -> Self {
        let mut namespace = Self {
            inodes: Table::new(),
            dentries: Names::new(root.hash_key),
            xattrs: Names::new(root.hash_key),
            targets: Table::new(),
            orphans: Table::new(),
            generation: root.generation,
            next: ROOT.0 + 1,
            files: 0,
            directories: 1,
            logical_bytes: 0,
        };
        let mut inode = Inode::new(FileType::Directory, root.mode & 0o7777, root.now);
        inode.links = 2;
        (inode.uid, inode.gid) = (root.uid, root.gid);
        inode.replicas = root.replicas;
        inode.parent = ROOT;
        namespace.store(ROOT, &inode);
        namespace
    }

    /// Inode numbers handed out from now on belong to this generation (after a restore).
    pub fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
    }

    /// Leaves out the next `count` inode numbers.
    pub fn skip_inodes(&mut self, count: u64) {
        self.next = self.next.saturating_add(count);
    }

    /// Sets the next `count` inode numbers apart; answers the first.
    pub fn reserve_inodes(&mut self, count: u64) -> InodeId {
        let first = InodeId::new(self.generation, self.next);
        self.skip_inodes(count);
        first
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts {
            inodes: self.inodes.len(),
            files: self.files,
            directories: self.directories,
            entries: self.dentries.table.len(),
            logical_bytes: u64::try_from(self.logical_bytes).unwrap_or(u64::MAX),
        }
    }

    /// Heap bytes of all tables without the allocator's own, counted by walking them: O(n / 50).
    pub fn memory_bytes(&self) -> u64 {
        self.inodes.memory_bytes()
            + self.dentries.table.memory_bytes()
            + self.xattrs.table.memory_bytes()
            + self.targets.memory_bytes()
            + self.orphans.memory_bytes()
    }

    fn load(&self, id: InodeId) -> Result<Inode, Refusal> {
        self.inodes.get((id.0, 0)).ok_or(Refusal::Stale)
    }

    fn load_directory(&self, id: InodeId) -> Result<Inode, Refusal> {
        let inode = self.load(id)?;
        if inode.file_type == FileType::Directory { Ok(inode) } else { Err(Refusal::NotDirectory) }
    }

    fn load_file(&self, id: InodeId) -> Result<Inode, Refusal> {
        let inode = self.load(id)?;
        match inode.file_type {
            FileType::File => Ok(inode),
            FileType::Directory => Err(Refusal::IsDirectory),
            _ => Err(Refusal::Invalid),
        }
    }

    fn store(&mut self, id: InodeId, inode: &Inode) {
        self.inodes.insert((id.0, 0), inode);
    }

    /// Changes an inode that the caller has seen to be there.
    fn edit(&mut self, id: InodeId, change: impl FnOnce(&mut Inode)) -> Attributes {
        let mut inode = self.inodes.get((id.0, 0)).unwrap_or_else(|| panic!("inode {id} vanished in a mutation"));
        change(&mut inode);
        self.store(id, &inode);
        inode.attributes(id)
    }

    /// Stores `inode` with a new size; its old one is what it says now.
    fn resize(&mut self, inode: &mut Inode, size: u64) {
        self.logical_bytes = self.logical_bytes - u128::from(inode.size) + u128::from(size);
        inode.size = size;
    }

    /// The names in a directory changed.
    fn touch_directory(&mut self, id: InodeId, entries: i64, links: i32, now: Timestamp) {
        self.edit(id, |directory| {
            directory.entries = directory.entries.saturating_add_signed(entries);
            directory.links = directory.links.saturating_add_signed(links);
            directory.mtime = now;
            directory.ctime = now;
        });
    }
}

/// What a name of a directory entry must be; `.` and `..` pass.
pub(super) fn check_name(name: &[u8]) -> Result<(), Refusal> {
    match name {
        [] => Err(Refusal::NotFound),
        _ if name.len() > NAME_MAX => Err(Refusal::NameTooLong),
        _ if name.contains(&b'/') || name.contains(&0) => Err(Refusal::Invalid),
        _ => Ok(()),
    }
}

pub(super) fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}
