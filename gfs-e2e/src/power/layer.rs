//! The disk of a machine as a mounted file system, served by threads of this process.
//!
//! Data passes by the page cache, and a cut unmounts: nothing that the kernel remembers outlives it. Locks are the kernel's own.

use super::disk::Disk;
use super::tree::{BLOCK, Inode, Kind, Node};
use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Nobody else changes anything, so that the kernel may remember names and attributes.
const TTL: Duration = Duration::from_secs(600);
/// Largest read and write of one request.
const MAX_WRITE: u32 = 1 << 20;
/// How long the last files of processes that were killed may take to be closed.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);
/// What statfs answers: a terabyte, all of it free.
const BLOCKS: u64 = (1 << 40) / BLOCK;
const FILES: u64 = 1 << 30;

/// A mounted [`Disk`]; unmounted when dropped.
pub struct Layer {
    path: PathBuf,
    disk: Arc<Mutex<Disk>>,
    session: Option<BackgroundSession>,
}

impl Layer {
    /// Mounts an empty disk.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn mount(path: &Path, seed: u64) -> io::Result<Self> {
        let mut layer = Self { path: path.to_owned(), disk: Arc::new(Mutex::new(Disk::new(seed))), session: None };
        layer.attach()?;
        Ok(layer)
    }

    /// Cuts the power of the machine, all processes of which are dead, and mounts what is left.
    ///
    /// # Errors
    /// What the kernel said: the disk is in use, above all.
    pub fn cut(&mut self, seed: u64) -> io::Result<()> {
        self.detach()?;
        self.disk.lock().cut(seed);
        self.attach()
    }

    /// How many changes the disk has seen.
    pub fn changes(&self) -> u64 {
        self.disk.lock().changes()
    }

    fn attach(&mut self) -> io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("gfs-power".into()), MountOption::NoAtime];
        config.n_threads = Some(2);
        config.clone_fd = true;
        self.session = Some(fuser::spawn_mount(Operations::new(self.disk.clone()), &self.path, &config)?);
        Ok(())
    }

    fn detach(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let end = Instant::now() + UNMOUNT_LIMIT;
        let unmounted = loop {
            match rustix::mount::unmount(&self.path, UnmountFlags::empty()) {
                Err(Errno::BUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => {
                    // Whoever holds it loses it; the threads end when it is let go.
                    let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
                    break Err(error.into());
                }
                Ok(()) => {
                    // A thread that was about to read its next request may say that the connection was aborted.
                    let _ = session.join();
                    break Ok(());
                }
            }
        };
        unmounted.map_err(|error: io::Error| {
            io::Error::new(error.kind(), format!("unmount {}: {error}", self.path.display()))
        })
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            eprintln!("{error}");
        }
    }
}

/// A directory as it was when it was opened.
type Listing = Arc<Vec<(Inode, FileType, OsString)>>;

/// Requests of the kernel, turned into calls of a [`Disk`].
struct Operations {
    disk: Arc<Mutex<Disk>>,
    listings: Mutex<HashMap<u64, Listing>>,
    next_handle: AtomicU64,
}

impl Operations {
    fn new(disk: Arc<Mutex<Disk>>) -> Self {
        Self { disk, listings: Mutex::new(HashMap::new()), next_handle: AtomicU64::new(1) }
    }

    fn made(&self, parent: INodeNo, name: &OsStr, directory: bool, mode: u32) -> Result<FileAttr, fuser::Errno> {
        let mut disk = self.disk.lock();
        let inode = disk.create(parent.0, name, directory, mode & 0o7777).map_err(code)?;
        disk.node(inode).map(|node| attributes(inode, node)).map_err(code)
    }

    fn looked(&self, inode: Inode) -> Result<FileAttr, fuser::Errno> {
        self.disk.lock().node(inode).map(|node| attributes(inode, node)).map_err(code)
    }

    fn listing(&self, directory: Inode) -> Result<Listing, Errno> {
        let disk = self.disk.lock();
        let mut all = vec![(directory, FileType::Directory, ".".into()), (directory, FileType::Directory, "..".into())];
        for (name, inode) in disk.names(directory)? {
            all.push((*inode, kind(disk.node(*inode)?), name.clone()));
        }
        Ok(Arc::new(all))
    }
}

fn code(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

fn kind(node: &Node) -> FileType {
    match node.kind {
        Kind::File(_) => FileType::RegularFile,
        Kind::Directory(_) => FileType::Directory,
    }
}

fn attributes(inode: Inode, node: &Node) -> FileAttr {
    let (size, blocks) = match &node.kind {
        Kind::File(content) => (content.size, content.blocks.len() as u64 * (BLOCK / 512)),
        Kind::Directory(_) => (BLOCK, 8),
    };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(inode),
        size,
        blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(node),
        perm: node.mode as u16,
        nlink: node.links,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK as u32,
        flags: 0,
    }
}

/// Answers a request that has nothing to say.
fn done(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(code(error)),
    }
}

fn entry(reply: ReplyEntry, result: Result<FileAttr, fuser::Errno>) {
    match result {
        Ok(found) => reply.entry(&TTL, &found, Generation(0)),
        Err(error) => reply.error(error),
    }
}

const OPENED: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

impl Filesystem for Operations {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS] {
            // Only faster with them.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(MAX_WRITE);
        // What is read ahead into a page cache that nobody looks into is wasted.
        let _ = config.set_max_readahead(BLOCK as u32);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.disk.lock().lookup(parent.0, name).map_err(code);
        entry(reply, found.and_then(|inode| self.looked(inode)));
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.looked(inode.0) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = {
            let mut disk = self.disk.lock();
            let mode = mode.map_or(Ok(()), |mode| disk.set_mode(inode.0, mode & 0o7777));
            mode.and_then(|()| size.map_or(Ok(()), |size| disk.set_size(inode.0, size)))
        };
        match set.map_err(code).and_then(|()| self.looked(inode.0)) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        entry(reply, self.made(parent, name, true, mode & !umask));
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.made(parent, name, false, mode & !umask) {
            Ok(found) => {
                self.disk.lock().opened(found.ino.0);
                reply.created(&TTL, &found, Generation(0), FileHandle(0), OPENED);
            }
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.disk.lock().remove(parent.0, name, false));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.disk.lock().remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !RenameFlags::RENAME_NOREPLACE.contains(flags) {
            return reply.error(fuser::Errno::EINVAL);
        }
        let renamed = self.disk.lock().rename((parent.0, name), (new_parent.0, new_name), flags.is_empty());
        done(reply, renamed);
    }

    fn link(&self, _request: &Request, inode: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let linked = self.disk.lock().link(inode.0, new_parent.0, new_name).map_err(code);
        entry(reply, linked.and_then(|()| self.looked(inode.0)));
    }

    fn open(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.disk.lock().opened(inode.0);
        reply.opened(FileHandle(0), OPENED);
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.disk.lock().closed(inode.0);
        reply.ok();
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.disk.lock().read(inode.0, offset, size as usize);
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(code(error)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = {
            let mut disk = self.disk.lock();
            let written = disk.write(inode.0, offset, data);
            // O_SYNC contains O_DSYNC.
            let synced = flags.0 & libc::O_DSYNC != 0;
            written.and_then(|()| if synced { disk.sync(inode.0) } else { Ok(()) })
        };
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(code(error)),
        }
    }

    fn fsync(&self, _request: &Request, inode: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        done(reply, self.disk.lock().sync(inode.0));
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.listing(inode.0) {
            Ok(listing) => {
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                self.listings.lock().insert(handle, listing);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(code(error)),
        }
    }

    fn readdir(&self, _request: &Request, inode: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        // From the beginning again, as after a rewinddir, it is read anew.
        let listing = if offset == 0 {
            self.listing(inode.0).inspect(|listing| drop(self.listings.lock().insert(handle.0, listing.clone())))
        } else {
            self.listings.lock().get(&handle.0).cloned().ok_or(Errno::BADF)
        };
        let listing = match listing {
            Ok(listing) => listing,
            Err(error) => return reply.error(code(error)),
        };
        for (at, (inode, kind, name)) in listing.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*inode), at as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.lock().remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, inode: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        done(reply, self.disk.lock().sync(inode.0));
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, FILES, FILES, BLOCK as u32, 255, BLOCK as u32);
    }

    fn fallocate(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const ZERO: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & !(ZERO | libc::FALLOC_FL_KEEP_SIZE) != 0 {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        }
        let mut disk = self.disk.lock();
        let end = offset + length;
        let grown = if mode & libc::FALLOC_FL_KEEP_SIZE == 0 { disk.allocate(inode.0, end) } else { Ok(()) };
        let zeroed = grown.and_then(|()| if mode & ZERO != 0 { disk.zero(inode.0, offset, end) } else { Ok(()) });
        done(reply, zeroed);
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let found = match u64::try_from(offset) {
            Ok(offset) => self.disk.lock().seek(inode.0, offset, whence == libc::SEEK_HOLE),
            Err(_) => Err(Errno::NXIO),
        };
        match found {
            Ok(found) => reply.offset(found as i64),
            Err(error) => reply.error(code(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FallocateFlags;
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::{FileExt, OpenOptionsExt};

    fn layer() -> (Layer, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Layer::mount(dir.path(), 1).unwrap(), dir)
    }

    #[test]
    fn files_work_and_what_was_synced_survives_a_cut() {
        let (mut layer, dir) = layer();
        let path = dir.path();
        std::fs::create_dir(path.join("d")).unwrap();
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(path.join("d/f")).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
        file.write_all_at(&[3; 100_000], 5000).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 6000, 100).unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 8192, 4096).unwrap();
        file.sync_all().unwrap();
        drop(file);
        std::fs::rename(path.join("d/f"), path.join("g")).unwrap();
        File::open(path).unwrap().sync_all().unwrap();
        let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path.join("g"));
        drop(direct.unwrap());
        layer.cut(7).unwrap();
        let bytes = std::fs::read(path.join("g")).unwrap();
        let expected = |at: usize| {
            let zero = (6000..6100).contains(&at) || (8192..12_288).contains(&at);
            if (5000..105_000).contains(&at) && !zero { 3 } else { 0 }
        };
        assert_eq!(bytes.len(), 1 << 20);
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
        let names: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["d", "g"]);
    }

    #[test]
    fn each_seed_of_a_cut_leaves_an_old_or_a_new_name() {
        let (mut layer, dir) = layer();
        let path = dir.path().join("name");
        let write = |text: &str| {
            let work = dir.path().join("work");
            std::fs::write(&work, text).unwrap();
            File::open(&work).unwrap().sync_all().unwrap();
            std::fs::rename(&work, &path).unwrap();
        };
        write("old");
        File::open(dir.path()).unwrap().sync_all().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..12 {
            write("new");
            layer.cut(seed).unwrap();
            seen.insert(std::fs::read_to_string(&path).unwrap());
            write("old");
            File::open(dir.path()).unwrap().sync_all().unwrap();
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["new", "old"]);
    }

    #[test]
    fn a_layer_that_is_dropped_is_unmounted() {
        let (layer, dir) = layer();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        drop(layer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
