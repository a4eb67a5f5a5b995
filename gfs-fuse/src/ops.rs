//! The operations of the kernel: each a span, a call into `fs`, a reply.
//!
//! This room and `session` alone know the transport. What an operation means is decided in `fs`.

use crate::desks::Desks;
use crate::errno::{Errno, Result};
use crate::fs::attributes::{self, to_system_time};
use crate::fs::directory::Page;
use crate::fs::interrupts::Wait;
use crate::fs::{Call, Caller, Changes, Found, Fs, LockAsked, Lookup, Name};
use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use gfs_client::{Attributes, FileType, InodeId, NodeKind};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::Instrument;

/// Inode numbers are never reused, so every generation is the same.
const GENERATION: Generation = Generation(0);

/// The mounted file system as the transport calls it.
pub struct Operations {
    runner: Runner,
    /// Reads that the threads of the session do by themselves.
    reads: Arc<Desks<Read>>,
    file_flags: FopenFlags,
    ended: Option<oneshot::Sender<()>>,
}

/// What requests are carried out with.
#[derive(Clone)]
struct Runner {
    fs: Arc<Fs>,
    runtime: Handle,
}

/// Who asks, and the number of the request.
#[derive(Clone, Copy)]
struct Asker {
    caller: Caller,
    unique: u64,
}

impl Asker {
    fn of(request: &Request) -> Self {
        let caller = Caller { uid: request.uid(), gid: request.gid(), tid: request.pid() };
        Self { caller, unique: request.unique().0 }
    }
}

/// A read of the kernel.
struct Read {
    asker: Asker,
    file: u64,
    offset: u64,
    size: u32,
    reply: ReplyData,
}

impl From<Errno> for fuser::Errno {
    fn from(errno: Errno) -> Self {
        Self::from_i32(errno.0)
    }
}

/// Answers an error on any kind of reply, or goes on with the value.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $ok:expr) => {
        match $result {
            Ok($value) => $ok,
            Err(errno) => $reply.error(errno.into()),
        }
    };
}

impl Runner {
    fn run<F, Fut>(&self, name: &'static str, asker: Asker, wait: Wait, work: F)
    where
        F: FnOnce(Arc<Fs>, Call) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let span = tracing::debug_span!("fuse", op = name, unique = asker.unique, tid = asker.caller.tid);
        let call = self.fs.call(name, asker.caller, wait);
        let loose = self.fs.is_loose().then(|| (Arc::clone(&self.fs), call.context.clone()));
        let work = work(Arc::clone(&self.fs), call);
        let work = async move {
            if let Some((fs, context)) = loose {
                fs.settle_loose(&context).await;
            }
            work.await;
        };
        let mut work = Box::pin(work.instrument(span));
        // As far as it gets without waiting it runs here: what is cached is answered with no other thread involved.
        let _runtime = self.runtime.enter();
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(work);
        }
    }

    fn read(&self, read: Read) {
        let Read { asker, file, offset, size, reply } = read;
        self.run("read", asker, Wait::Other, move |fs, call| async move {
            answer!(reply, fs.read(&call, file, offset, size).await, data => reply.data(&data));
        });
    }
}

impl Operations {
    /// Serves `fs`, doing the work that waits on `runtime`. `ended` is told when the kernel is done with it.
    pub fn new(fs: Arc<Fs>, runtime: Handle, ended: oneshot::Sender<()>) -> Self {
        let runner = Runner { fs, runtime };
        let reads: Arc<Desks<Read>> = Arc::default();
        let (rescuer, watched) = (runner.clone(), reads.clone());
        runner.runtime.spawn(async move { watched.watch(|read| rescuer.read(read)).await });
        Self { runner, reads, file_flags: FopenFlags::empty(), ended: Some(ended) }
    }

    fn run<F, Fut>(&self, name: &'static str, request: &Request, wait: Wait, work: F)
    where
        F: FnOnce(Arc<Fs>, Call) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.runner.run(name, Asker::of(request), wait, work);
    }

    fn waiting<F, Fut>(&self, name: &'static str, request: &Request, work: F)
    where
        F: FnOnce(Arc<Fs>, Call) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.run(name, request, Wait::Other, work);
    }

    /// An operation whose answer is only whether it succeeded.
    fn simple<F, Fut>(&self, name: &'static str, request: &Request, reply: ReplyEmpty, work: F)
    where
        F: FnOnce(Arc<Fs>, Call) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.waiting(name, request, |fs, call| async move { answer!(reply, work(fs, call).await, () => reply.ok()) });
    }

    fn make(
        &self,
        name: &'static str,
        request: &Request,
        parent: INodeNo,
        entry: &OsStr,
        made: Made,
        reply: ReplyEntry,
    ) {
        let entry = entry.as_bytes().to_vec();
        self.waiting(name, request, move |fs, call| async move {
            let at = (fs.inner(parent.0), entry);
            let result = fs.make(&call, &at, made.kind, (made.mode, made.umask)).await;
            answer!(reply, result, found => reply_entry(&fs, &at, found, reply));
        });
    }
}

struct Made {
    kind: NodeKind,
    mode: u16,
    umask: u16,
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

fn file_attr(fs: &Fs, of: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(fs.outer(of.inode)),
        size: of.size,
        blocks: attributes::blocks(of),
        atime: to_system_time(of.atime),
        mtime: to_system_time(of.mtime),
        ctime: to_system_time(of.ctime),
        crtime: to_system_time(of.btime),
        kind: kind(of.file_type),
        perm: of.mode & 0o7777,
        nlink: of.links,
        uid: of.uid,
        gid: of.gid,
        rdev: of.rdev,
        blksize: attributes::block_size(of),
        flags: 0,
    }
}

/// What an absent name is told with: inode 0, so that the kernel keeps the absence for the time granted.
fn absent_attr() -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn reply_entry(fs: &Fs, at: &Name, found: Found, reply: ReplyEntry) {
    let attr = file_attr(fs, &found.attributes);
    fs.deliver_entry(found.grant.as_ref(), at, |ttl| reply.entry(&ttl, &attr, GENERATION));
}

fn reply_attr(fs: &Fs, found: Found, reply: ReplyAttr) {
    let attr = file_attr(fs, &found.attributes);
    fs.deliver(found.grant.as_ref(), |ttl| reply.attr(&ttl, &attr));
}

/// The two-step protocol of getxattr and listxattr: size 0 asks for the length.
fn reply_xattr(value: &[u8], room: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(length) if room == 0 => reply.size(length),
        Ok(length) if length <= room => reply.data(value),
        _ => reply.error(fuser::Errno::ERANGE),
    }
}

fn fill(fs: &Fs, page: &Page, offset: u64, mut reply: ReplyDirectory) {
    for entry in page.from(offset).unwrap_or_default() {
        let inode = INodeNo(fs.outer(entry.attributes.inode));
        if reply.add(inode, entry.offset, kind(entry.attributes.file_type), OsStr::from_bytes(&entry.name)) {
            break;
        }
    }
    reply.ok();
}

fn fill_plus(fs: &Fs, directory: InodeId, page: &Page, offset: u64, mut reply: ReplyDirectoryPlus) {
    fs.deliver(page.grant.as_ref(), |ttl| {
        for entry in page.from(offset).unwrap_or_default() {
            fs.note_name(directory, &entry.name, ttl);
            let mut attributes = entry.attributes.clone();
            let ttl = if fs.fit_listed(&mut attributes, !ttl.is_zero()) { ttl } else { Duration::ZERO };
            let attr = file_attr(fs, &attributes);
            if reply.add(attr.ino, entry.offset, OsStr::from_bytes(&entry.name), &ttl, &attr, GENERATION) {
                break;
            }
        }
        reply.ok();
    });
}

impl Filesystem for Operations {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.file_flags = crate::session::negotiate(config, self.runner.fs.cache());
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(ended) = self.ended.take() {
            // Nobody waits when the process is ending anyway.
            let _ = ended.send(());
        }
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.waiting("lookup", request, move |fs, call| async move {
            let at = (fs.inner(parent.0), name);
            answer!(reply, fs.lookup(&call, &at).await, found => match found {
                Lookup::Found(found) => reply_entry(&fs, &at, found, reply),
                Lookup::Absent(grant) => {
                    fs.deliver_entry(grant.as_ref(), &at, |ttl| reply.entry(&ttl, &absent_attr(), GENERATION));
                }
            });
        });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.waiting("getattr", request, move |fs, call| async move {
            answer!(reply, fs.get_attributes(&call, fs.inner(ino.0)).await, found => reply_attr(&fs, found, reply));
        });
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
        self.waiting("setattr", request, move |fs, call| async move {
            answer!(reply, fs.set_attributes(&call, fs.inner(ino.0), changes).await, found => reply_attr(&fs, found, reply));
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.waiting("readlink", request, move |fs, call| async move {
            answer!(reply, fs.read_link(&call, fs.inner(ino.0)).await, target => reply.data(&target));
        });
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
        self.make("mknod", request, parent, name, made, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (mode, umask) = (attributes::permissions(mode), attributes::permissions(umask));
        self.make("mkdir", request, parent, name, Made { kind: NodeKind::Directory, mode, umask }, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.simple("unlink", request, reply, move |fs, call| async move {
            fs.unlink(&call, (fs.inner(parent.0), name)).await
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.simple("rmdir", request, reply, move |fs, call| async move {
            fs.rmdir(&call, (fs.inner(parent.0), name)).await
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = NodeKind::Symlink(target.as_os_str().as_bytes().to_vec());
        self.make("symlink", request, parent, name, Made { kind, mode: 0o777, umask: 0 }, reply);
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
        let (from, to) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        self.simple("rename", request, reply, move |fs, call| async move {
            let (from, to) = ((fs.inner(parent.0), from), (fs.inner(newparent.0), to));
            fs.rename(&call, from, to, flags.bits()).await
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let name = newname.as_bytes().to_vec();
        self.waiting("link", request, move |fs, call| async move {
            let at = (fs.inner(newparent.0), name);
            answer!(reply, fs.link(&call, fs.inner(ino.0), &at).await, found => reply_entry(&fs, &at, found, reply));
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let file_flags = self.file_flags;
        self.waiting("open", request, move |fs, call| async move {
            let result = fs.open(&call, fs.inner(ino.0), flags.0).await;
            answer!(reply, result, opened => {
                let flags = match opened.pages {
                    None => file_flags,
                    Some(true) => FopenFlags::FOPEN_KEEP_CACHE,
                    Some(false) => FopenFlags::empty(),
                };
                reply.opened(FileHandle(opened.number), flags);
            });
        });
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
        let (name, file_flags) = (name.as_bytes().to_vec(), self.file_flags);
        let (mode, umask) = (attributes::permissions(mode), attributes::permissions(umask));
        self.waiting("create", request, move |fs, call| async move {
            let at = (fs.inner(parent.0), name);
            answer!(reply, fs.create(&call, &at, (mode, umask), flags).await, (found, number) => {
                let attr = file_attr(&fs, &found.attributes);
                fs.deliver_entry(found.grant.as_ref(), &at, |ttl| {
                    reply.created(&ttl, &attr, GENERATION, FileHandle(number), file_flags);
                });
            });
        });
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = Read { asker: Asker::of(request), file: fh.0, offset, size, reply };
        let seat = match self.reads.sit_down(read) {
            Ok(seat) => seat,
            Err(read) => return self.runner.read(read),
        };
        let _runtime = self.runner.runtime.enter();
        let data = self.runner.fs.read_near(fh.0, offset, size);
        // Whoever has taken it away answers it.
        match (seat.get_up(), data) {
            (Some(read), Some(data)) => read.reply.data(&data),
            (Some(read), None) => self.runner.read(read),
            (None, _) => {}
        }
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
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
        let write = crate::fs::Write {
            offset,
            data,
            flags: flags.0,
            from_page_cache: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            clear_set_id: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        self.waiting("write", request, move |fs, call| async move {
            answer!(reply, fs.write(&call, fh.0, write).await, written => reply.written(written));
        });
    }

    fn flush(&self, request: &Request, _ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        self.simple("flush", request, reply, move |fs, call| async move { fs.flush(&call, fh.0, lock_owner.0).await });
    }

    fn release(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Begun here, in order of arrival, so that a lock asked right after a close can see that one is being given up.
        let released = self.runner.fs.begin_release(fh.0, lock_owner.map(|owner| owner.0));
        self.simple(
            "release",
            request,
            reply,
            move |fs, call| async move { fs.finish_release(&call, released?).await },
        );
    }

    fn fsync(&self, request: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.simple("fsync", request, reply, move |fs, call| async move { fs.fsync(&call, fh.0, datasync).await });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let number = self.runner.fs.open_directory(self.runner.fs.inner(ino.0));
        reply.opened(FileHandle(number), FopenFlags::empty());
    }

    fn readdir(&self, request: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.waiting("readdir", request, move |fs, call| async move {
            answer!(reply, fs.read_directory(&call, fh.0, offset).await, page => fill(&fs, &page, offset, reply));
        });
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.waiting("readdirplus", request, move |fs, call| async move {
            answer!(reply, fs.read_directory(&call, fh.0, offset).await, page => {
                fill_plus(&fs, fs.inner(ino.0), &page, offset, reply);
            });
        });
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        answer!(reply, self.runner.fs.close_directory(fh.0), () => reply.ok());
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let inode = self.runner.fs.inner(ino.0);
        self.simple("fsyncdir", request, reply, move |fs, call| async move { fs.sync_directory(&call, inode).await });
    }

    fn statfs(&self, request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.waiting("statfs", request, move |fs, call| async move {
            answer!(reply, fs.usage(&call).await, usage => reply.statfs(
                usage.blocks,
                usage.blocks_free,
                usage.blocks_free,
                usage.inodes,
                usage.inodes_free,
                attributes::BLOCK_SIZE,
                255,
                attributes::BLOCK_SIZE,
            ));
        });
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
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.simple("setxattr", request, reply, move |fs, call| async move {
            fs.set_xattr(&call, fs.inner(ino.0), name, value, flags).await
        });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_vec();
        self.waiting("getxattr", request, move |fs, call| async move {
            answer!(reply, fs.get_xattr(&call, fs.inner(ino.0), name).await, value => reply_xattr(&value, size, reply));
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.waiting("listxattr", request, move |fs, call| async move {
            answer!(reply, fs.list_xattrs(&call, fs.inner(ino.0)).await, names => reply_xattr(&names, size, reply));
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.simple("removexattr", request, reply, move |fs, call| async move {
            fs.remove_xattr(&call, fs.inner(ino.0), name).await
        });
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // With default_permissions the kernel has checked already and does not ask.
        reply.ok();
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
        self.waiting("getlk", request, move |fs, call| async move {
            let asked = LockAsked { handle: 0, owner: lock_owner.0, start, end, kind: typ, pid };
            let result = fs.test_lock(&call, fs.inner(ino.0), asked).await;
            answer!(reply, result, held => reply.locked(held.start, held.end, held.kind, held.pid));
        });
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
        let wait = if sleep { Wait::Lock } else { Wait::Other };
        let asked = LockAsked { handle: fh.0, owner: lock_owner.0, start, end, kind: typ, pid };
        self.run("setlk", request, wait, move |fs, call| async move {
            answer!(reply, fs.set_lock(&call, fs.inner(ino.0), asked, sleep).await, () => reply.ok());
        });
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
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.simple("fallocate", request, reply, move |fs, call| async move {
            fs.allocate(&call, fh.0, offset, length, mode).await
        });
    }

    fn lseek(&self, request: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.waiting("lseek", request, move |fs, call| async move {
            answer!(reply, fs.seek(&call, fh.0, offset, whence).await, found => reply.offset(found));
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.waiting("copy_file_range", request, move |fs, call| async move {
            let result = fs.copy_range(&call, (fh_in.0, offset_in), (fh_out.0, offset_out), len).await;
            answer!(reply, result, copied => reply.written(copied));
        });
    }
}
