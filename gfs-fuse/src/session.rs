//! The session with the kernel: mounting, what is negotiated, notifications, unmounting.
//!
//! This room and `ops` alone know the transport.

use crate::desks::DESKS;
use crate::fs::{Fs, PageCache};
use crate::ops::Operations;
use crate::options::{CacheMode, KernelFlag, MountOptions};
use fuser::{Config, FopenFlags, INodeNo, InitFlags, KernelConfig, MountOption, Notifier, Session, SessionACL};
use gfs_client::Invalidator;
use gfs_core::ids::InodeId;
use std::ffi::OsStr;
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, mpsc};

/// Largest write, and with it the largest read, of one request.
const MAX_WRITE: u32 = 1 << 20;
/// Requests without a waiting caller (read-ahead, asynchronous I/O) that the kernel keeps in flight.
const MAX_BACKGROUND: u16 = 256;

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
pub fn negotiate(config: &mut KernelConfig, cache: CacheMode) -> FopenFlags {
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
    if cache == CacheMode::Pages || !able.contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP) {
        FopenFlags::empty()
    } else {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    }
}

/// Whether this kernel can map files that pass by the page cache; known before the session, which `negotiate` asks.
pub fn maps_uncached_files() -> bool {
    version_at_least(rustix::system::uname().release().to_string_lossy().as_ref(), (6, 6))
}

fn version_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    found >= wanted
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

/// A mounted file system that nobody serves yet.
pub struct Mounted {
    session: Session<Operations>,
    notifier: Notifier,
}

/// Mounts.
///
/// # Errors
/// What the kernel or fusermount3 said.
pub fn mount(operations: Operations, mountpoint: &Path, options: &MountOptions, source: &str) -> io::Result<Mounted> {
    let config = config(options, source, rustix::process::geteuid().is_root());
    let session = Session::new(operations, mountpoint, &config)?;
    let notifier = session.notifier();
    Ok(Mounted { session, notifier })
}

impl Mounted {
    /// What drops the kernel's caches on behalf of the client library.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn kernel_cache(&self, fs: &Arc<Fs>) -> io::Result<KernelCache> {
        let (queue, stale) = mpsc::sync_channel::<InodeId>(MAX_STALE);
        let cache = KernelCache { fs: Arc::clone(fs), notifier: self.notifier.clone() };
        let worker = cache.clone();
        std::thread::Builder::new().name("gfs-notify".into()).spawn(move || {
            for inode in stale {
                worker.tell(worker.notifier.inval_inode(INodeNo(worker.fs.outer(inode)), -1, 0));
            }
        })?;
        fs.on_stale_attributes(queue);
        fs.on_old_pages(Arc::new(cache.clone()));
        Ok(cache)
    }

    /// Lets threads of its own serve the kernel until it is unmounted; the end is told by `Operations`.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn serve(self) -> io::Result<()> {
        // The transport would unmount when this is dropped, by the path alone: by then another mount may be there.
        // Unmounting is `mountpoint::unmount`, which looks first.
        let _kept = ManuallyDrop::new(self.session.spawn()?);
        Ok(())
    }
}

/// Attributes to drop that may wait; the kernel has marked most of them itself.
const MAX_STALE: usize = 1024;

/// Drops what the kernel has cached. Only called on threads that no system call on the mount waits for.
#[derive(Clone)]
pub struct KernelCache {
    fs: Arc<Fs>,
    notifier: Notifier,
}

impl KernelCache {
    fn tell(&self, result: io::Result<()>) {
        // What is not cached is no error; what remains is a mount that is going away.
        if let Err(error) = result {
            tracing::debug!(%error, "the kernel took no notification");
        }
    }

    fn drop_inode(&self, inode: InodeId) {
        self.fs.forget(inode);
        self.tell(self.notifier.inval_inode(INodeNo(self.fs.outer(inode)), 0, 0));
    }
}

impl PageCache for KernelCache {
    fn drop_pages(&self, inode: InodeId) {
        self.tell(self.notifier.inval_inode(INodeNo(self.fs.outer(inode)), 0, 0));
    }
}

impl Invalidator for KernelCache {
    fn invalidate(&self, inodes: &[InodeId], entries: &[(InodeId, Vec<u8>)]) {
        for inode in inodes {
            self.drop_inode(*inode);
        }
        for (directory, name) in entries {
            if self.fs.may_have_name(*directory, name) {
                let directory = INodeNo(self.fs.outer(*directory));
                self.tell(self.notifier.inval_entry(directory, OsStr::from_bytes(name)));
            }
        }
    }

    fn reset(&self) {
        for inode in self.fs.open_inodes() {
            self.drop_inode(inode);
        }
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
    fn kernel_release_is_compared_by_number() {
        for (release, new) in [
            ("6.18.44-fc", true),
            ("6.6.0", true),
            ("6.1.0-13-amd64", false),
            ("7.0", true),
            ("5.15.0", false),
            ("", false),
        ] {
            assert_eq!(version_at_least(release, (6, 6)), new, "{release}");
        }
    }

    #[test]
    fn others_are_let_in_by_root_or_when_asked() {
        assert_eq!(config(&options(""), "h", true).acl, SessionACL::All);
        assert_eq!(config(&options(""), "h", false).acl, SessionACL::Owner);
        assert_eq!(config(&options("allow_root"), "h", false).acl, SessionACL::RootAndOwner);
        assert_eq!(config(&options("allow_root,allow_other"), "h", false).acl, SessionACL::All);
    }
}
