//! The transport over /dev/fuse that the crate `fuser` speaks.
//!
//! This file turns its calls into operations and answers into its replies.

use super::{MAX_BACKGROUND, MAX_WRITE, Notify, Session};
use crate::desks::DESKS;
use crate::errno::{Errno, Result};
use crate::fs::{Caller, Changes, LockAsked, Write, attributes};
use crate::ops::reply::{Answer, Entry, NodeAttributes, Passage, Reply};
use crate::ops::request::{Asker, Made, Operation};
use crate::ops::{Operations, Patience};
use crate::options::{CacheMode, KernelFlag, MountOptions};
use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Config, CopyFileRangeFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, MountOption, Notifier, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use gfs_client::{FileType, NodeKind};
use std::ffi::OsStr;
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Inode numbers are never reused, so every generation is the same.
const GENERATION: Generation = Generation(0);

/// What is asked of the kernel, each where it can.
///
/// Not FUSE_ATOMIC_O_TRUNC: the kernel would send O_TRUNC before it has looked whether the file is being executed, and
/// `open(program, O_RDONLY | O_TRUNC)` would empty the program under its process and then fail with ETXTBSY.
const WANTED: [InitFlags; 13] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Without it the kernel asks for security.capability before every write.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    // The kernel checks ACLs itself, with capabilities and supplementary groups, and leaves the umask to us.
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    // A symlink's target never changes, and an inode number is never used again.
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_MAX_PAGES,
];

/// Sets up the connection; answers how regular files are opened.
///
/// Data passes by the page cache, unless that was asked for or the kernel could then not map files shared (before 6.6).
fn negotiate(config: &mut KernelConfig, cache: CacheMode) -> FopenFlags {
    let able = config.capabilities();
    for flag in WANTED {
        if config.add_capabilities(flag).is_err() {
            tracing::info!(?flag, "the kernel cannot do this");
        }
    }
    // A value out of range is answered with the nearest one.
    if let Err(nearest) = config.set_max_write(MAX_WRITE) {
        let _ = config.set_max_write(nearest);
    }
    if let Err(nearest) = config.set_max_readahead(MAX_WRITE) {
        let _ = config.set_max_readahead(nearest);
    }
    let _ = config.set_max_background(MAX_BACKGROUND);
    if !super::passes_by(cache, able.contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP)) {
        FopenFlags::empty()
    } else {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    }
}

/// What the kernel and fusermount3 are told.
fn config(options: &MountOptions, source: &str, privileged: bool) -> Config {
    let mut config = Config::default();
    let mut mount = vec![
        // A comma would end the option.
        MountOption::FSName(source.replace(',', "+")),
        // Not MountOption::Subtype: the direct path of the transport does not pass that on.
        MountOption::CUSTOM("subtype=gfs".into()),
        MountOption::DefaultPermissions,
    ];
    let has = |flag| options.kernel_flags.contains(&flag);
    if privileged {
        // As mount.fuse does for root; a user may not ask for these.
        mount.push(if has(KernelFlag::NoSuid) { MountOption::NoSuid } else { MountOption::Suid });
        mount.push(if has(KernelFlag::NoDev) { MountOption::NoDev } else { MountOption::Dev });
    }
    for (flag, option) in [
        (KernelFlag::NoExec, MountOption::NoExec),
        (KernelFlag::Sync, MountOption::Sync),
        (KernelFlag::DirSync, MountOption::DirSync),
    ] {
        if has(flag) {
            mount.push(option);
        }
    }
    if options.read_only {
        mount.push(MountOption::RO);
    }
    if options.no_atime {
        mount.push(MountOption::NoAtime);
    }
    config.mount_options = mount;
    // A mount made by root is for everybody, as any file system is: the kernel checks permissions.
    let everybody = options.allow_other || privileged;
    config.acl = match (everybody, options.allow_root) {
        (true, _) => SessionACL::All,
        (false, true) => SessionACL::RootAndOwner,
        (false, false) => SessionACL::Owner,
    };
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    // Those that wait for a disk by themselves are not missed.
    config.n_threads = Some(processors.clamp(2, 4) + DESKS);
    // A user whose only way to the device is fusermount3 cannot open it again.
    config.clone_fd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    config
}

/// A session of `fuser`.
struct Mounted {
    session: fuser::Session<Served>,
    notifier: Notifier,
}

/// Mounts.
///
/// # Errors
/// What the kernel or fusermount3 said.
pub fn mount(
    operations: Arc<Operations>,
    mountpoint: &Path,
    options: &MountOptions,
    source: &str,
) -> io::Result<Box<dyn Session>> {
    let config = config(options, source, rustix::process::geteuid().is_root());
    let session = fuser::Session::new(Served { operations, direct: Arc::default() }, mountpoint, &config)?;
    let notifier = session.notifier();
    Ok(Box::new(Mounted { session, notifier }))
}

impl Session for Mounted {
    fn notify(&self) -> Arc<dyn Notify> {
        Arc::new(self.notifier.clone())
    }

    fn serve(self: Box<Self>) -> io::Result<()> {
        // The transport would unmount when this is dropped, by the path alone: by then another mount may be there.
        // Unmounting is `mountpoint::unmount`, which looks first.
        let _kept = ManuallyDrop::new(self.session.spawn()?);
        Ok(())
    }
}

impl Notify for Notifier {
    fn inode(&self, inode: u64, offset: i64, length: i64) -> io::Result<()> {
        self.inval_inode(INodeNo(inode), offset, length)
    }

    fn entry(&self, directory: u64, name: &[u8]) -> io::Result<()> {
        self.inval_entry(INodeNo(directory), OsStr::from_bytes(name))
    }
}

/// The operations as `fuser` calls them.
struct Served {
    operations: Arc<Operations>,
    /// How files are opened that go past the page cache.
    direct: Arc<OnceLock<FopenFlags>>,
}

/// A reply of `fuser`, of the kind that fits the request.
enum Replies {
    Attr(ReplyAttr),
    Data(ReplyData),
    Directory(ReplyDirectory),
    DirectoryPlus(ReplyDirectoryPlus),
    Empty(ReplyEmpty),
    Entry(ReplyEntry),
    Lock(ReplyLock),
    Lseek(ReplyLseek),
    Statfs(ReplyStatfs),
    Write(ReplyWrite),
    Xattr(ReplyXattr),
    Open(ReplyOpen, Arc<OnceLock<FopenFlags>>),
    Create(ReplyCreate, Arc<OnceLock<FopenFlags>>),
}

impl Replies {
    fn error(self, errno: Errno) {
        let errno = fuser::Errno::from_i32(errno.0);
        match self {
            Self::Attr(reply) => reply.error(errno),
            Self::Data(reply) => reply.error(errno),
            Self::Directory(reply) => reply.error(errno),
            Self::DirectoryPlus(reply) => reply.error(errno),
            Self::Empty(reply) => reply.error(errno),
            Self::Entry(reply) => reply.error(errno),
            Self::Lock(reply) => reply.error(errno),
            Self::Lseek(reply) => reply.error(errno),
            Self::Statfs(reply) => reply.error(errno),
            Self::Write(reply) => reply.error(errno),
            Self::Xattr(reply) => reply.error(errno),
            Self::Open(reply, _) => reply.error(errno),
            Self::Create(reply, _) => reply.error(errno),
        }
    }
}

impl Reply for Replies {
    fn send(self: Box<Self>, answer: Result<Answer<'_>>) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(errno) => return self.error(errno),
        };
        match (*self, answer) {
            (Self::Empty(reply), Answer::Done) => reply.ok(),
            (Self::Entry(reply), Answer::Entry(Entry { attributes, ttl })) => {
                reply.entry(&ttl, &file_attr(&attributes), GENERATION);
            }
            (Self::Attr(reply), Answer::Attributes(attributes, ttl)) => reply.attr(&ttl, &file_attr(&attributes)),
            (Self::Open(reply, direct), Answer::Opened(handle, passage)) => {
                reply.opened(FileHandle(handle), flags_of(passage, &direct));
            }
            (Self::Open(reply, _), Answer::OpenedDirectory(handle)) => {
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            (Self::Create(reply, direct), Answer::Created(Entry { attributes, ttl }, handle)) => {
                let flags = flags_of(Passage::Direct, &direct);
                reply.created(&ttl, &file_attr(&attributes), GENERATION, FileHandle(handle), flags);
            }
            (Self::Data(reply), Answer::Data(bytes)) => reply.data(bytes),
            (Self::Write(reply), Answer::Written(count)) => reply.written(count),
            (Self::Xattr(reply), Answer::Length(length)) => reply.size(length),
            (Self::Xattr(reply), Answer::Data(value)) => reply.data(value),
            (Self::Statfs(reply), Answer::Usage(usage)) => reply.statfs(
                usage.blocks,
                usage.blocks_free,
                usage.blocks_free,
                usage.inodes,
                usage.inodes_free,
                attributes::BLOCK_SIZE,
                attributes::NAME_MAX,
                attributes::BLOCK_SIZE,
            ),
            (Self::Lock(reply), Answer::Lock(held)) => reply.locked(held.start, held.end, held.kind, held.pid),
            (Self::Lseek(reply), Answer::Offset(offset)) => reply.offset(offset),
            (Self::Directory(mut reply), Answer::Names(names)) => {
                for name in names {
                    let of = kind(name.kind);
                    if reply.add(INodeNo(name.inode), name.offset, of, OsStr::from_bytes(name.name)) {
                        break;
                    }
                }
                reply.ok();
            }
            (Self::DirectoryPlus(mut reply), Answer::NamesPlus(names)) => {
                for (name, Entry { attributes, ttl }) in names {
                    let attr = file_attr(&attributes);
                    if reply.add(attr.ino, name.offset, OsStr::from_bytes(name.name), &ttl, &attr, GENERATION) {
                        break;
                    }
                }
                reply.ok();
            }
            (reply, _) => reply.error(super::mismatch()),
        }
    }
}

fn flags_of(passage: Passage, direct: &OnceLock<FopenFlags>) -> FopenFlags {
    match passage {
        Passage::Direct => direct.get().copied().unwrap_or(FopenFlags::empty()),
        Passage::Pages(true) => FopenFlags::FOPEN_KEEP_CACHE,
        Passage::Pages(false) => FopenFlags::empty(),
    }
}

fn kind(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::Directory => fuser::FileType::Directory,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::File => fuser::FileType::RegularFile,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Socket => fuser::FileType::Socket,
    }
}

fn file_attr(of: &NodeAttributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(of.inode),
        size: of.size,
        blocks: of.blocks,
        atime: attributes::to_system_time(of.atime),
        mtime: attributes::to_system_time(of.mtime),
        ctime: attributes::to_system_time(of.ctime),
        crtime: attributes::to_system_time(of.btime),
        kind: kind(of.kind),
        perm: of.permissions,
        nlink: of.links,
        uid: of.uid,
        gid: of.gid,
        rdev: of.rdev,
        blksize: of.block_size,
        flags: 0,
    }
}

fn asker(request: &Request) -> Asker {
    let caller = Caller { uid: request.uid(), gid: request.gid(), tid: request.pid() };
    Asker { caller, unique: request.unique().0 }
}

impl Served {
    fn ask(&self, request: &Request, node: INodeNo, operation: Operation<'_>, reply: Replies) {
        self.operations.carry_out(asker(request), node.0, operation, Patience::Waits, Box::new(reply));
    }
}

impl Filesystem for Served {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // There is one INIT in a session.
        let _ = self.direct.set(negotiate(config, self.operations.fs().cache()));
        Ok(())
    }

    fn destroy(&mut self) {
        self.operations.end();
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.ask(request, parent, Operation::Lookup(name.as_bytes()), Replies::Entry(reply));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.ask(request, ino, Operation::GetAttributes, Replies::Attr(reply));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let given = |time: TimeOrNow| match time {
            TimeOrNow::Now => attributes::set_time(None),
            TimeOrNow::SpecificTime(time) => attributes::set_time(Some(time)),
        };
        let changes = Changes {
            mode: mode.map(attributes::permissions),
            uid,
            gid,
            size,
            atime: atime.map(given),
            mtime: mtime.map(given),
        };
        self.ask(request, ino, Operation::SetAttributes(changes), Replies::Attr(reply));
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.ask(request, ino, Operation::ReadLink, Replies::Data(reply));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = attributes::node_kind(mode, rdev) else { return reply.error(fuser::Errno::EINVAL) };
        let made = Made { kind, mode: attributes::permissions(mode), umask: attributes::permissions(umask) };
        self.ask(request, parent, Operation::Make(name.as_bytes(), made), Replies::Entry(reply));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (mode, umask) = (attributes::permissions(mode), attributes::permissions(umask));
        let made = Made { kind: NodeKind::Directory, mode, umask };
        self.ask(request, parent, Operation::Make(name.as_bytes(), made), Replies::Entry(reply));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.ask(request, parent, Operation::Unlink(name.as_bytes()), Replies::Empty(reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.ask(request, parent, Operation::RemoveDirectory(name.as_bytes()), Replies::Empty(reply));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = Made { kind: NodeKind::Symlink(target.as_os_str().as_bytes().to_vec()), mode: 0o777, umask: 0 };
        self.ask(request, parent, Operation::Make(name.as_bytes(), made), Replies::Entry(reply));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.as_bytes(), newname.as_bytes());
        let operation = Operation::Rename { name, new_parent: newparent.0, new_name, flags: flags.bits() };
        self.ask(request, parent, operation, Replies::Empty(reply));
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let operation = Operation::Link { inode: ino.0, name: newname.as_bytes() };
        self.ask(request, newparent, operation, Replies::Entry(reply));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.ask(request, ino, Operation::Open(flags.0), Replies::Open(reply, Arc::clone(&self.direct)));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (mode, umask) = (attributes::permissions(mode), attributes::permissions(umask));
        let operation = Operation::Create { name: name.as_bytes(), mode, umask, flags };
        self.ask(request, parent, operation, Replies::Create(reply, Arc::clone(&self.direct)));
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.ask(request, ino, Operation::Read { handle: fh.0, offset, size }, Replies::Data(reply));
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The only copy: the transport's buffer is used again for the next request.
        let data = Bytes::copy_from_slice(data);
        let write = Write {
            offset,
            data,
            flags: flags.0,
            from_page_cache: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            clear_set_id: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        self.ask(request, ino, Operation::Write { handle: fh.0, write }, Replies::Write(reply));
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        self.ask(request, ino, Operation::Flush { handle: fh.0, owner: lock_owner.0 }, Replies::Empty(reply));
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.ask(
            request,
            ino,
            Operation::Release { handle: fh.0, owner: lock_owner.map(|owner| owner.0) },
            Replies::Empty(reply),
        );
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.ask(request, ino, Operation::Sync { handle: fh.0, data_only: datasync }, Replies::Empty(reply));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.ask(request, ino, Operation::OpenDirectory, Replies::Open(reply, Arc::clone(&self.direct)));
    }

    fn readdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.ask(
            request,
            ino,
            Operation::ReadDirectory { handle: fh.0, offset, plus: false },
            Replies::Directory(reply),
        );
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.ask(
            request,
            ino,
            Operation::ReadDirectory { handle: fh.0, offset, plus: true },
            Replies::DirectoryPlus(reply),
        );
    }

    fn releasedir(&self, request: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.ask(request, ino, Operation::ReleaseDirectory(fh.0), Replies::Empty(reply));
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.ask(request, ino, Operation::SyncDirectory, Replies::Empty(reply));
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.ask(request, ino, Operation::Usage, Replies::Statfs(reply));
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.ask(request, ino, Operation::SetXattr { name: name.as_bytes(), value, flags }, Replies::Empty(reply));
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.ask(request, ino, Operation::GetXattr { name: name.as_bytes(), size }, Replies::Xattr(reply));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.ask(request, ino, Operation::ListXattrs(size), Replies::Xattr(reply));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.ask(request, ino, Operation::RemoveXattr(name.as_bytes()), Replies::Empty(reply));
    }

    fn access(&self, request: &Request, ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.ask(request, ino, Operation::Access, Replies::Empty(reply));
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let asked = LockAsked { handle: 0, owner: lock_owner.0, start, end, kind: typ, pid };
        self.ask(request, ino, Operation::TestLock(asked), Replies::Lock(reply));
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let asked = LockAsked { handle: fh.0, owner: lock_owner.0, start, end, kind: typ, pid };
        // The transport drops what tells flock(2) from fcntl(2).
        let operation = Operation::SetLock { asked, wait: sleep, family: None };
        self.ask(request, ino, operation, Replies::Empty(reply));
    }

    fn bmap(&self, _request: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(fuser::Errno::EINVAL);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then takes files for always ready, as POSIX says of regular ones.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.ask(request, ino, Operation::Allocate { handle: fh.0, offset, length, mode }, Replies::Empty(reply));
    }

    fn lseek(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.ask(request, ino, Operation::Seek { handle: fh.0, offset, whence }, Replies::Lseek(reply));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let operation = Operation::Copy { from: (fh_in.0, offset_in), to: (fh_out.0, offset_out), length: len };
        self.ask(request, ino_in, operation, Replies::Write(reply));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &str) -> MountOptions {
        let mut options = MountOptions::default();
        options.add(list).unwrap();
        options
    }

    #[test]
    fn root_gets_devices_and_set_id_unless_refused() {
        let plain = config(&options(""), "h:1,h:2", true).mount_options;
        assert!(plain.contains(&MountOption::Suid) && plain.contains(&MountOption::Dev));
        assert!(plain.contains(&MountOption::FSName("h:1+h:2".into())));
        assert!(plain.contains(&MountOption::DefaultPermissions));
        let strict = config(&options("nosuid,nodev,noexec,ro,noatime"), "h", true).mount_options;
        for option in
            [MountOption::NoSuid, MountOption::NoDev, MountOption::NoExec, MountOption::RO, MountOption::NoAtime]
        {
            assert!(strict.contains(&option), "{option:?}");
        }
        let user = config(&options("suid,dev"), "h", false).mount_options;
        assert!(!user.contains(&MountOption::Suid) && !user.contains(&MountOption::Dev));
    }

    #[test]
    fn others_are_let_in_by_root_or_when_asked() {
        assert_eq!(config(&options(""), "h", true).acl, SessionACL::All);
        assert_eq!(config(&options(""), "h", false).acl, SessionACL::Owner);
        assert_eq!(config(&options("allow_root"), "h", false).acl, SessionACL::RootAndOwner);
        assert_eq!(config(&options("allow_root,allow_other"), "h", false).acl, SessionACL::All);
    }
}
