//! What the kernel is answered, whatever carries it.

use crate::errno::Result;
use crate::fs::{LockHeld, Usage};
use gfs_client::{FileType, Timestamp};
use std::time::Duration;

/// The attributes of a node as the kernel is told them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeAttributes {
    /// The kernel's number.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    /// Access time.
    pub atime: Timestamp,
    /// Modification time.
    pub mtime: Timestamp,
    /// Change time.
    pub ctime: Timestamp,
    /// Birth time.
    pub btime: Timestamp,
    /// What it is.
    pub kind: FileType,
    /// Permission bits.
    pub permissions: u16,
    /// Names.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// `st_blksize`.
    pub block_size: u32,
}

/// A name, what it names, and for how long the kernel may keep both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its attributes; inode 0 tells of an absence.
    pub attributes: NodeAttributes,
    /// For how long.
    pub ttl: Duration,
}

/// How an opened file is read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passage {
    /// Past the page cache, where the kernel can map such files.
    Direct,
    /// By the page cache; whether the pages that are there are right.
    Pages(bool),
}

/// One name of a listing.
#[derive(Clone, Copy, Debug)]
pub struct ListedName<'a> {
    /// The kernel's number of what it names.
    pub inode: u64,
    /// Where to go on after it.
    pub offset: u64,
    /// What it names.
    pub kind: FileType,
    /// The name.
    pub name: &'a [u8],
}

/// An answer.
pub enum Answer<'a> {
    /// It is done.
    Done,
    /// A name and what it names, or its absence.
    Entry(Entry),
    /// Attributes, and for how long they may be kept.
    Attributes(NodeAttributes, Duration),
    /// An open file.
    Opened(u64, Passage),
    /// An open directory.
    OpenedDirectory(u64),
    /// A file that was made and opened.
    Created(Entry, u64),
    /// Bytes.
    Data(&'a [u8]),
    /// Bytes written or copied.
    Written(u32),
    /// How much room an extended attribute needs.
    Length(u32),
    /// How full the file system is.
    Usage(Usage),
    /// What stands in the way of a lock.
    Lock(LockHeld),
    /// An offset.
    Offset(i64),
    /// Names: as many as there is room for.
    Names(&'a mut dyn Iterator<Item = ListedName<'a>>),
    /// Names with attributes: as many as there is room for.
    NamesPlus(&'a mut dyn Iterator<Item = (ListedName<'a>, Entry)>),
}

/// Where the answer to one request goes. One that is dropped without an answer answers EIO, if the transport can.
pub trait Reply: Send {
    /// Answers. An answer that does not fit the request is EIO.
    fn send(self: Box<Self>, answer: Result<Answer<'_>>);
}
