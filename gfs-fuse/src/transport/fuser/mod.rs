//! The transport over /dev/fuse that the crate `fuser` speaks.
//!
//! This file turns its calls into operations, `reply` answers into its replies; `session` mounts.

mod reply;
mod session;

pub use session::mount;

use crate::fs::{Caller, Changes, LockAsked, Write, attributes};
use crate::ops::request::{Asker, Made, Operation};
use crate::ops::{Operations, Patience};
use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use gfs_client::NodeKind;
use reply::Replies;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// The operations as `fuser` calls them.
struct Served {
    operations: Arc<Operations>,
    /// How files are opened that go past the page cache.
    direct: Arc<OnceLock<FopenFlags>>,
}

fn asker(request: &Request) -> Asker {
    let caller = Caller { uid: request.uid(), gid: request.gid(), tid: request.pid() };
    Asker { caller, unique: request.unique().0 }
}

impl Served {
    fn new(operations: Arc<Operations>) -> Self {
        Self { operations, direct: Arc::default() }
    }

    fn ask(&self, request: &Request, node: INodeNo, operation: Operation<'_>, reply: Replies) {
        self.operations.carry_out(asker(request), node.0, operation, Patience::Waits, Box::new(reply));
    }
}

impl Filesystem for Served {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // There is one INIT in a session.
        let _ = self.direct.set(session::negotiate(config, self.operations.fs().cache()));
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
