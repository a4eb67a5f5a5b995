//! What the kernel asks, whatever it came by.

use crate::fs::{Changes, LockAsked, Write};
use gfs_client::{LockFamily, NodeKind};

/// Who asks, and the number of the request.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// Who.
    pub caller: crate::fs::Caller,
    /// The kernel's number of the request.
    pub unique: u64,
}

/// What is to be made under a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// What.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u16,
    /// The caller's umask.
    pub umask: u16,
}

/// An operation on a node of the kernel. Names are without a slash, as the kernel sees to.
#[derive(Debug)]
pub enum Operation<'a> {
    /// What does a name of this directory name?
    Lookup(&'a [u8]),
    /// stat.
    GetAttributes,
    /// chmod, chown, truncate, utimensat.
    SetAttributes(Changes),
    /// readlink.
    ReadLink,
    /// mknod, mkdir, symlink.
    Make(&'a [u8], Made),
    /// unlink.
    Unlink(&'a [u8]),
    /// rmdir.
    RemoveDirectory(&'a [u8]),
    /// renameat2 out of this directory.
    Rename {
        /// Which name.
        name: &'a [u8],
        /// Where to.
        new_parent: u64,
        /// As what.
        new_name: &'a [u8],
        /// RENAME_*.
        flags: u32,
    },
    /// link: another name in this directory.
    Link {
        /// Which inode.
        inode: u64,
        /// As what.
        name: &'a [u8],
    },
    /// open, with its O_* flags.
    Open(i32),
    /// open with O_CREAT of a name that is absent.
    Create {
        /// Which name.
        name: &'a [u8],
        /// Permission bits.
        mode: u16,
        /// The caller's umask.
        umask: u16,
        /// O_*.
        flags: i32,
    },
    /// read.
    Read {
        /// The open file.
        handle: u64,
        /// From where.
        offset: u64,
        /// How much at most.
        size: u32,
    },
    /// write.
    Write {
        /// The open file.
        handle: u64,
        /// What, where.
        write: Write,
    },
    /// A descriptor was closed.
    Flush {
        /// The open file.
        handle: u64,
        /// Whose record locks go.
        owner: u64,
    },
    /// The last descriptor was closed.
    Release {
        /// The open file.
        handle: u64,
        /// Whose flock goes.
        owner: Option<u64>,
    },
    /// fsync, fdatasync.
    Sync {
        /// The open file.
        handle: u64,
        /// Without times.
        data_only: bool,
    },
    /// opendir.
    OpenDirectory,
    /// getdents.
    ReadDirectory {
        /// The open directory.
        handle: u64,
        /// Where to go on.
        offset: u64,
        /// With attributes.
        plus: bool,
    },
    /// closedir.
    ReleaseDirectory(u64),
    /// fsync of a directory.
    SyncDirectory,
    /// statfs.
    Usage,
    /// setxattr.
    SetXattr {
        /// Which.
        name: &'a [u8],
        /// To what.
        value: &'a [u8],
        /// XATTR_*.
        flags: i32,
    },
    /// getxattr.
    GetXattr {
        /// Which.
        name: &'a [u8],
        /// Room for it; 0 asks for its length.
        size: u32,
    },
    /// listxattr, with the room for it.
    ListXattrs(u32),
    /// removexattr.
    RemoveXattr(&'a [u8]),
    /// With `default_permissions` the kernel has checked already.
    Access,
    /// F_GETLK.
    TestLock(LockAsked),
    /// F_SETLK, F_SETLKW, flock.
    SetLock {
        /// Which.
        asked: LockAsked,
        /// Whether to wait for it.
        wait: bool,
        /// flock(2) or fcntl(2), where the transport tells.
        family: Option<LockFamily>,
    },
    /// fallocate.
    Allocate {
        /// The open file.
        handle: u64,
        /// From where.
        offset: u64,
        /// How much.
        length: u64,
        /// FALLOC_FL_*.
        mode: i32,
    },
    /// lseek to data or a hole.
    Seek {
        /// The open file.
        handle: u64,
        /// From where.
        offset: i64,
        /// SEEK_DATA or SEEK_HOLE.
        whence: i32,
    },
    /// copy_file_range.
    Copy {
        /// Open file and offset.
        from: (u64, u64),
        /// Open file and offset.
        to: (u64, u64),
        /// How much.
        length: u64,
    },
    /// What we do not do: the errno says how that is told.
    Refuse(i32),
}
