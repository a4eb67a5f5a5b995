//! What the namespace is asked with and what it answers, beyond `meta::request`.

use crate::ids::{Generation, InodeId};
use crate::meta::request::{Attributes, DirectoryEntry, FileType, NodeKind, RenameMode, Timestamp};

/// What a fresh namespace starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootOptions {
    /// Part of every inode number handed out.
    pub generation: Generation,
    /// Keys the hash that orders directories; any value, the same on all masters (for instance from the cluster id).
    pub hash_key: u128,
    /// Permission bits of the root directory.
    pub mode: u16,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Replica goal of the root, inherited by everything made below it.
    pub replicas: u8,
    /// All times of the root.
    pub now: Timestamp,
}

/// Result of `create`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Created {
    /// What the name names now.
    pub attributes: Attributes,
    /// Whether this call made it.
    pub created: bool,
}

/// A name that was removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unlinked {
    /// What it named.
    pub inode: InodeId,
    /// Its type.
    pub file_type: FileType,
    /// Whether it was the last name: the inode is now an orphan.
    pub orphaned: bool,
}

/// Result of `rename`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Renamed {
    /// What the old name named.
    pub moved: InodeId,
    /// What the new name named before, when it lost that name (never for an exchange, nor when both were one inode).
    pub replaced: Option<Unlinked>,
}

/// Both ends of a rename.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RenameArgs<'a> {
    /// Old directory.
    pub parent: InodeId,
    /// Old name.
    pub name: &'a [u8],
    /// New directory.
    pub new_parent: InodeId,
    /// New name.
    pub new_name: &'a [u8],
    /// What to do with an existing target.
    pub mode: RenameMode,
}

/// What `create` shall make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreateArgs<'a> {
    /// Directory to make it in.
    pub parent: InodeId,
    /// Its name there.
    pub name: &'a [u8],
    /// What to make.
    pub kind: &'a NodeKind,
    /// Permission bits before umask and default ACL.
    pub mode: u16,
    /// The caller's umask.
    pub umask: u16,
    /// O_EXCL.
    pub exclusive: bool,
}

/// A page of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryPage {
    /// Entries in cookie order, without `.` and `..`.
    pub entries: Vec<DirectoryEntry>,
    /// Whether the directory ended.
    pub end: bool,
}

/// How much there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Inodes of all kinds, orphans included.
    pub inodes: u64,
    /// Regular files, orphans included.
    pub files: u64,
    /// Directories, orphans included.
    pub directories: u64,
    /// Names, `.` and `..` not counted.
    pub entries: u64,
    /// Sum of the sizes of regular files.
    pub logical_bytes: u64,
}
