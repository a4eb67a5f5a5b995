//! What can be asked of the metadata state machine, and what it answers.
//!
//! This room owns the vocabulary between the master and everybody else, in core types. It decides
//! nothing. The wire forms and the conversions are in `gfs-proto`.

pub use super::stored::{Space, Stored, UsedChunk};
use crate::ids::{ChunkHandle, Epoch, InodeId, OperationId, ServerId, SessionId};
use std::sync::Arc;

/// A point in time, in nanoseconds since 1970-01-01 UTC; negative before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub i64);

/// Who asks, as the client saw it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Supplementary groups; may be empty when `check` is false.
    pub groups: Vec<u32>,
    /// Whether the master checks permissions. A kernel mount has let the kernel check them, with the
    /// capabilities that only it knows, and says false; tools without a mount say true.
    pub check: bool,
}

/// What kind of object an inode is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target, at most 4095 bytes.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
    /// A character device with its number.
    CharDevice(u32),
    /// A block device with its number.
    BlockDevice(u32),
}

/// The type of an inode without what hangs on it, with the values of `d_type` (S_IFMT >> 12).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum FileType {
    /// A named pipe.
    Fifo = 1,
    /// A character device.
    CharDevice = 2,
    /// A directory.
    Directory = 4,
    /// A block device.
    BlockDevice = 6,
    /// A regular file.
    File = 8,
    /// A symbolic link.
    Symlink = 10,
    /// A Unix domain socket.
    Socket = 12,
}

/// The attributes of an inode, as `stat` shows them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Its number.
    pub inode: InodeId,
    /// Its type.
    pub file_type: FileType,
    /// Permission bits with set-user-id, set-group-id and sticky: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Length in bytes; of a symlink its target's.
    pub size: u64,
    /// Bytes that are stored in attached chunks, in whole blocks, or promised: what `st_blocks` is derived from.
    pub allocated: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// When it was made.
    pub btime: Timestamp,
    /// Replicas wanted for each chunk.
    pub replicas: u8,
    /// Whether it has an access or default ACL, so that a client may skip asking for one.
    pub has_acl: bool,
    /// Whether it has any extended attribute, ACLs included.
    pub has_xattrs: bool,
}

/// A time to set: to the master's clock, or to a given value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The leader's clock when it stamped the entry.
    Now,
    /// This value.
    At(Timestamp),
}

/// Changes of attributes; what is `None` stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AttributeChanges {
    /// New permission bits (low 12).
    pub mode: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length: a truncation or an extension (design section 4, rule 13).
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// Set the change time to this (only from a trusted restore tool); otherwise the leader's clock.
    pub ctime: Option<Timestamp>,
    /// New replica goal for chunks made from now on, and for existing ones by re-replication.
    pub replicas: Option<u8>,
    /// Clear set-user-id, and set-group-id of group-executable files (a write or truncation by an
    /// unprivileged user did it).
    pub clear_suid: bool,
}

/// `flags` of rename: exactly one meaning each, as renameat2(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RenameMode {
    /// Replace an existing target.
    #[default]
    Replace,
    /// Refuse when the target exists.
    NoReplace,
    /// Swap both names in one step.
    Exchange,
}

/// Condition of setxattr(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XattrMode {
    /// Create or replace.
    #[default]
    Any,
    /// XATTR_CREATE: refuse with `Exists` when present.
    Create,
    /// XATTR_REPLACE: refuse with `NoData` when absent.
    Replace,
}

/// A byte range of a lock, end inclusive; `u64::MAX` reaches the end of the file however long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
}

/// What a lock call asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum LockMode {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// Give up.
    Unlock,
}

/// The two families of locks, which never conflict with each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum LockFamily {
    /// flock(2): whole file.
    Flock,
    /// fcntl(2) record locks, POSIX and open-file-description ones.
    Record,
}

/// Who holds a lock: a kernel lock owner within a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct LockOwner {
    /// The session it lives and dies with.
    pub session: SessionId,
    /// The kernel's owner token.
    pub owner: u64,
}

/// One lock, held or asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lock {
    /// Its family.
    pub family: LockFamily,
    /// Whose it is.
    pub owner: LockOwner,
    /// Process id to report to F_GETLK.
    pub pid: u32,
    /// Shared, exclusive or a release.
    pub mode: LockMode,
    /// Which bytes; the whole file for `Flock`.
    pub range: LockRange,
}

/// A mutation asked by a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Makes an inode under a name. Fails with `Exists` when the name is taken, unless `exclusive` is false
    /// and it is a regular file, which is then answered as it is (`Entry { created: false }`).
    Create {
        /// Directory to make it in.
        parent: InodeId,
        /// Its name there.
        name: Vec<u8>,
        /// What to make.
        kind: NodeKind,
        /// Permission bits before umask and default ACL.
        mode: u16,
        /// The caller's umask, which a default ACL of the parent replaces.
        umask: u16,
        /// O_EXCL.
        exclusive: bool,
        /// Of a directory: the session holds it from now on (`meta::holds`), unless it holds very many.
        hold: bool,
    },
    /// Adds a name to an existing inode that is not a directory.
    Link {
        /// The inode.
        inode: InodeId,
        /// Directory of the new name.
        parent: InodeId,
        /// The new name.
        name: Vec<u8>,
    },
    /// Removes a name of something that is not a directory.
    Unlink {
        /// Directory of the name.
        parent: InodeId,
        /// The name.
        name: Vec<u8>,
    },
    /// Removes an empty directory.
    Rmdir {
        /// Directory of the name.
        parent: InodeId,
        /// The name.
        name: Vec<u8>,
    },
    /// renameat2(2).
    Rename {
        /// Old directory.
        parent: InodeId,
        /// Old name.
        name: Vec<u8>,
        /// New directory.
        new_parent: InodeId,
        /// New name.
        new_name: Vec<u8>,
        /// What to do with an existing target.
        mode: RenameMode,
    },
    /// chmod, chown, truncate, utimensat, set-replicas.
    SetAttributes {
        /// The inode.
        inode: InodeId,
        /// What changes.
        changes: AttributeChanges,
    },
    /// setxattr(2), POSIX ACLs as `system.posix_acl_access` and `_default` included.
    SetXattr {
        /// The inode.
        inode: InodeId,
        /// Full name with its namespace prefix.
        name: Vec<u8>,
        /// Value, at most 64 KiB.
        value: Vec<u8>,
        /// Condition.
        mode: XattrMode,
    },
    /// removexattr(2).
    RemoveXattr {
        /// The inode.
        inode: InodeId,
        /// Full name.
        name: Vec<u8>,
    },
    /// Sets or releases a lock, without waiting: a conflict is answered `WouldBlock`. The leader keeps the
    /// queue of waiters and proposes this when the lock looks free.
    SetLock {
        /// The inode.
        inode: InodeId,
        /// The lock; `mode` Unlock releases the range.
        lock: Lock,
    },
    /// Releases every lock of one owner on an inode, of one family or of both.
    ReleaseLocks {
        /// The inode.
        inode: InodeId,
        /// Whose.
        owner: LockOwner,
        /// Which family; `None` is both.
        family: Option<LockFamily>,
    },
    /// Reserves chunks with a configuration each, for this session to attach later by `CommitWrite`. A
    /// session that ends gives them back. `placements` is filled in by the leader before it proposes.
    AllocateChunks {
        /// Replica goal of each.
        replicas: u8,
        /// One list of servers for each chunk, its primary first.
        placements: Vec<Vec<ServerId>>,
    },
    /// Makes finished writes part of a file: attaches new chunks, moves the size up, sets the times, in one
    /// step. Refused with `Stale` when a chunk of `used` or `attach` is not, or cannot be, the file's chunk at that
    /// index, or when it names a size and a cut has zeroed bytes of the chunk since they were written; nothing is
    /// changed then.
    CommitWrite {
        /// The file.
        inode: InodeId,
        /// Reserved chunks to attach: (index, handle). An index that already has another chunk is `Stale`.
        attach: Vec<(u32, ChunkHandle)>,
        /// Chunks that the write went to, checked; what is stored of them is noted. May name those of `attach` too.
        used: Vec<UsedChunk>,
        /// The size becomes at least this; `None` leaves it.
        min_size: Option<u64>,
        /// Clear set-id bits, as a write by an unprivileged user must.
        clear_suid: bool,
        /// Space that counts as stored from now on, or no more.
        space: Option<Space>,
    },
    /// What the holder of files and directories did to them by itself: first the steps in their order, then the files, then directories
    /// are given back. Each step and each file is done whole or not at all, and one that is refused keeps no other back.
    Flush {
        /// The files.
        files: Vec<FlushedFile>,
        /// What was done to the names of held directories.
        steps: Vec<NameStep>,
        /// Directories and files that the session holds no more.
        gives_back: Vec<InodeId>,
    },
    /// Has the session hold a file (`meta::holds`): it alone changes it from now on, and tells with [`Request::Flush`], until it is asked back.
    /// Answered with the attributes.
    Hold {
        /// A regular file with nothing on it that only the master can deal with.
        inode: InodeId,
    },
    /// Sets so many inode numbers apart for the session, to make what a [`NameStep`] makes. Those that it does not use are never used.
    ReserveInodes {
        /// How many.
        count: u32,
    },
    /// Drops what lies beyond the end of a file: a write has put bytes there and will never say so (its caller gave up, or its session
    /// has ended). They are cut off as by a truncation to the present size, so that no later growth shows them.
    CutTail {
        /// The file.
        inode: InodeId,
    },
    /// Sets atime as reads do, where relatime moves it. Never goes back; what is gone is left out.
    TouchAccess {
        /// The files and directories.
        inodes: Vec<InodeId>,
    },
    /// Changes nothing: answered when everything before it is on stable storage (fsync, sync).
    Barrier {
        /// Times of writes too, which may still be soft; fdatasync does without.
        times: bool,
    },
}

/// What the holder of a write delegation did to one file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlushedFile {
    /// The file.
    pub inode: InodeId,
    /// As of `CommitWrite`.
    pub attach: Vec<(u32, ChunkHandle)>,
    /// As of `CommitWrite`.
    pub used: Vec<UsedChunk>,
    /// As of `CommitWrite`.
    pub min_size: Option<u64>,
    /// Attributes as they are at the holder, where they changed; its change time counts, unless it would go back.
    pub changes: AttributeChanges,
}

/// What the holder of directories did to their names, or to what it has made there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameStep {
    /// When, by the master's clock as the holder knows it.
    pub at: Timestamp,
    /// Who did it.
    pub uid: u32,
    /// With which group.
    pub gid: u32,
    /// The number of what a `Create` makes.
    pub inode: InodeId,
    /// `Create`, `Unlink`, `Rmdir`, `Rename` or `SetAttributes`.
    pub request: Request,
}

/// A server that holds chunks, as told to clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerAddress {
    /// Its number.
    pub server: ServerId,
    /// `host:port` of its data port.
    pub address: Arc<str>,
}

/// The committed configuration of a chunk (design section 4, rule 1).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Configuration {
    /// Its version.
    pub epoch: Epoch,
    /// Orders the writes; always one of `members`.
    pub primary: ServerId,
    /// Servers that hold everything committed, sorted.
    pub members: Vec<ServerId>,
    /// Servers being filled: they prepare every new write, serve no reads and count for nothing; sorted.
    pub syncing: Vec<ServerId>,
}

/// Where one chunk of a file is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkLocation {
    /// Position in the file, in chunks.
    pub index: u32,
    /// Its handle.
    pub handle: ChunkHandle,
    /// Who holds it.
    pub configuration: Configuration,
    /// How much of it is stored.
    pub stored: Stored,
}

/// One entry of a directory listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryEntry {
    /// Position to go on from after this entry: stable while the directory changes; 0 is the start.
    pub cookie: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// What it names.
    pub attributes: Attributes,
}

/// One entry of a listing that shows no attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedName {
    /// As of `DirectoryEntry`.
    pub cookie: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// What it names.
    pub inode: InodeId,
    /// Of which type that is.
    pub file_type: FileType,
}

/// Answer to a mutation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Done, nothing to tell.
    Done,
    /// A name and what it names now.
    Entry {
        /// Attributes of the named inode.
        attributes: Attributes,
        /// Whether this call made it.
        created: bool,
    },
    /// Attributes after the change. `pending_shrink` says that the size took effect but a chunk's tail is still
    /// to be zeroed (rule 13): the leader answers the client when that is done.
    Attributes {
        /// The attributes.
        attributes: Attributes,
        /// Whether the leader must still drive the zeroing.
        pending_shrink: bool,
    },
    /// Chunks reserved for the session, in the order asked.
    Chunks(Vec<(ChunkHandle, Configuration)>),
    /// Flushed but for these: position among the files, and beyond them among the steps, and why.
    Flushed(Vec<(u32, Refusal)>),
    /// The first of the inode numbers that are set apart.
    Inodes(InodeId),
    /// Refused; nothing changed.
    Refused(Refusal),
}

/// Why a request is refused. A closed set: one table in `gfs-fuse` maps it to errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// ENOENT.
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST.
    #[error("file exists")]
    Exists,
    /// ENOTDIR.
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR.
    #[error("is a directory")]
    IsDirectory,
    /// ENOTEMPTY.
    #[error("directory not empty")]
    NotEmpty,
    /// EACCES: permission bits or ACL.
    #[error("permission denied")]
    Access,
    /// EPERM: not the owner, or never allowed.
    #[error("operation not permitted")]
    NotPermitted,
    /// EINVAL.
    #[error("invalid argument")]
    Invalid,
    /// ENAMETOOLONG.
    #[error("file name too long")]
    NameTooLong,
    /// EMLINK.
    #[error("too many links")]
    TooManyLinks,
    /// EFBIG.
    #[error("file too large")]
    TooLarge,
    /// ENOSPC: no chunk server can take another chunk.
    #[error("no space left on the cluster")]
    NoSpace,
    /// EDQUOT.
    #[error("quota exceeded")]
    Quota,
    /// ENODATA: no such extended attribute.
    #[error("no such attribute")]
    NoData,
    /// ERANGE or E2BIG: an extended attribute does not fit.
    #[error("attribute too large")]
    XattrTooLarge,
    /// EOPNOTSUPP.
    #[error("operation not supported")]
    NotSupported,
    /// EAGAIN: a lock conflicts.
    #[error("lock held by another")]
    WouldBlock,
    /// EDEADLK.
    #[error("lock would deadlock")]
    Deadlock,
    /// ENOLCK.
    #[error("too many locks")]
    NoLocks,
    /// EINTR: a waiting call was cancelled.
    #[error("interrupted")]
    Interrupted,
    /// ESTALE for an inode; for a `CommitWrite`, the layout that it was based on has changed: look again.
    #[error("stale layout or handle")]
    Stale,
    /// The session has ended or was never there: open a new one. Open files of the old one are lost.
    #[error("session expired")]
    SessionExpired,
    /// EROFS.
    #[error("read-only file system")]
    ReadOnly,
}

/// A read of the metadata.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Query {
    /// Name to inode.
    Lookup {
        /// Directory.
        parent: InodeId,
        /// Name; `.` and `..` allowed.
        name: Vec<u8>,
    },
    /// stat.
    GetAttributes {
        /// The inode.
        inode: InodeId,
    },
    /// readlink.
    ReadLink {
        /// The inode.
        inode: InodeId,
    },
    /// readdir with attributes.
    ReadDirectory {
        /// The directory.
        inode: InodeId,
        /// Go on after this position; 0 is the start.
        cookie: u64,
        /// At most this many entries.
        limit: u32,
    },
    /// readdir: names, numbers and types alone.
    ListNames {
        /// The directory.
        inode: InodeId,
        /// Go on after this position; 0 is the start.
        cookie: u64,
        /// At most this many entries.
        limit: u32,
    },
    /// getxattr.
    GetXattr {
        /// The inode.
        inode: InodeId,
        /// Full name.
        name: Vec<u8>,
    },
    /// listxattr.
    ListXattrs {
        /// The inode.
        inode: InodeId,
    },
    /// Where chunks of a file are: those attached in `first .. first + count`, holes left out.
    Layout {
        /// The file.
        inode: InodeId,
        /// First chunk index.
        first: u32,
        /// How many indices.
        count: u32,
    },
    /// F_GETLK: the first lock that conflicts.
    TestLock {
        /// The inode.
        inode: InodeId,
        /// The lock that would be set.
        lock: Lock,
    },
}

/// Answer to a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A name's or inode's attributes.
    Attributes(Attributes),
    /// A symlink's target.
    Target(Vec<u8>),
    /// A page of a directory.
    Directory {
        /// Entries in cookie order.
        entries: Vec<DirectoryEntry>,
        /// Whether the directory ended.
        end: bool,
    },
    /// A page of a directory without attributes.
    Listing {
        /// Entries in cookie order.
        entries: Vec<ListedName>,
        /// Whether the directory ended.
        end: bool,
    },
    /// A value of an extended attribute.
    Value(Vec<u8>),
    /// Names of extended attributes.
    Names(Vec<Vec<u8>>),
    /// Chunks, with the attributes as of the same moment.
    Layout {
        /// Attributes of the file.
        attributes: Attributes,
        /// Attached chunks in the asked range.
        chunks: Vec<ChunkLocation>,
    },
    /// The conflicting lock, if any.
    Lock(Option<Lock>),
    /// Refused.
    Refused(Refusal),
}

impl Answer {
    /// The attributes that it shows.
    pub fn shown(&self) -> impl Iterator<Item = &Attributes> {
        let (one, entries) = match self {
            Self::Attributes(attributes) | Self::Layout { attributes, .. } => (Some(attributes), &[][..]),
            Self::Directory { entries, .. } => (None, entries.as_slice()),
            Self::Target(_)
            | Self::Listing { .. }
            | Self::Value(_)
            | Self::Names(_)
            | Self::Lock(_)
            | Self::Refused(_) => (None, &[][..]),
        };
        one.into_iter().chain(entries.iter().map(|entry| &entry.attributes))
    }

    /// The same, to be changed.
    pub fn shown_mut(&mut self) -> impl Iterator<Item = &mut Attributes> {
        let (one, entries) = match self {
            Self::Attributes(attributes) | Self::Layout { attributes, .. } => (Some(attributes), &mut [][..]),
            Self::Directory { entries, .. } => (None, entries.as_mut_slice()),
            Self::Target(_)
            | Self::Listing { .. }
            | Self::Value(_)
            | Self::Names(_)
            | Self::Lock(_)
            | Self::Refused(_) => (None, &mut [][..]),
        };
        one.into_iter().chain(entries.iter_mut().map(|entry| &mut entry.attributes))
    }
}

/// One mutation as a client sent it: the content of a log entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientCommand {
    /// Who, and which of its operations.
    pub id: OperationId,
    /// The session has the answers to all its operations up to and including this one: they may be forgotten.
    pub confirmed: u64,
    /// On whose behalf.
    pub credentials: Credentials,
    /// What.
    pub request: Request,
}
