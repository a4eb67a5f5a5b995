//! The kernel's FUSE interface as numbers (include/uapi/linux/fuse.h, version 7.43): opcodes, flags, sizes of what stands before names.
//!
//! All integers are in the byte order of the machine.

/// Length of the header of a request: length u32, opcode u32, unique u64, node u64, uid u32, gid u32, pid u32, extensions u32.
pub const IN_HEADER: usize = 40;
/// Length of the header of an answer: length u32, negative errno i32, unique u64.
pub const OUT_HEADER: usize = 16;
/// The version that is spoken.
pub const MAJOR: u32 = 7;
/// The newest minor version whose structures are known here.
pub const MINOR: u32 = 43;
/// The oldest that is served: flags of 64 bits.
pub const OLDEST_MINOR: u32 = 36;

/// Opcodes.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const STATX: u32 = 52;
}

/// Length of the structure that stands before names and data in a request.
pub fn head_length(opcode: u32) -> usize {
    match opcode {
        op::SETATTR => 88,
        op::COPY_FILE_RANGE => 56,
        op::GETLK | op::SETLK | op::SETLKW => 48,
        op::READ | op::WRITE | op::READDIR | op::READDIRPLUS => 40,
        op::FALLOCATE | op::IOCTL => 32,
        op::RELEASE | op::RELEASEDIR | op::FLUSH | op::LSEEK | op::STATX => 24,
        op::GETATTR | op::MKNOD | op::FSYNC | op::FSYNCDIR | op::CREATE | op::BMAP | op::RENAME2 => 16,
        op::MKDIR
        | op::RENAME
        | op::LINK
        | op::OPEN
        | op::OPENDIR
        | op::SETXATTR
        | op::GETXATTR
        | op::LISTXATTR
        | op::ACCESS
        | op::INTERRUPT
        | op::SYNCFS => 8,
        _ => 0,
    }
}

/// Flags of INIT.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// Bits that say what SETATTR changes.
pub mod set {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// The write comes from the page cache.
pub const WRITE_CACHE: u32 = 1 << 0;
/// Set-id bits go.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// The flock of the open file goes with it.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// Only data is to be synced.
pub const FSYNC_DATA: u32 = 1 << 0;
/// The lock is of flock(2).
pub const LK_FLOCK: u32 = 1 << 0;
/// Files opened so go past the page cache.
pub const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// The pages that the kernel has of the file are right.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Writes of one file past the page cache may come at the same time.
pub const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
/// Notification: attributes and pages of an inode.
pub const NOTIFY_INVAL_INODE: i32 = 2;
/// Notification: a name.
pub const NOTIFY_INVAL_ENTRY: i32 = 3;
/// What is told of STATX: all of stat(2) and the time of birth.
pub const STATX_MASK: u32 = 0x7ff | 0x800;

/// FUSE over io_uring.
pub mod uring {
    /// Header of a request or answer of a ring: 128 bytes of in or out header, 128 of the structure of the operation, then flags u64,
    /// commit id u64, payload length u32, padding.
    pub const HEADER: usize = 288;
    /// Where the structure of the operation is.
    pub const OPERATION: usize = 128;
    /// Where the commit id is.
    pub const COMMIT_ID: usize = 264;
    /// Where the length of the payload is.
    pub const PAYLOAD: usize = 272;
    /// Command: here is room for a request.
    pub const REGISTER: u32 = 1;
    /// Command: here is an answer, and room for another request.
    pub const COMMIT_AND_FETCH: u32 = 2;
}
