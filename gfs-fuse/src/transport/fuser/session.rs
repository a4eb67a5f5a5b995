//! Mounting by `fuser`, and what is negotiated.

use super::Served;
use crate::desks::DESKS;
use crate::ops::Operations;
use crate::options::{CacheMode, KernelFlag, MountOptions};
use crate::transport::session::{MAX_BACKGROUND, MAX_WRITE, Notify, Session, Users, passes_by, source_name};
use fuser::{Config, FopenFlags, INodeNo, InitFlags, KernelConfig, MountOption, Notifier, SessionACL};
use std::ffi::OsStr;
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

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
pub(super) fn negotiate(config: &mut KernelConfig, cache: CacheMode) -> FopenFlags {
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
    if passes_by(cache, able.contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP)) {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    } else {
        FopenFlags::empty()
    }
}

/// What the kernel and fusermount3 are told.
fn config(options: &MountOptions, source: &str, privileged: bool) -> Config {
    let mut config = Config::default();
    let mut mount = vec![
        MountOption::FSName(source_name(source)),
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
    config.acl = match Users::of(options, privileged) {
        Users::All => SessionACL::All,
        Users::RootAndOwner => SessionACL::RootAndOwner,
        Users::Owner => SessionACL::Owner,
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
    let session = fuser::Session::new(Served::new(operations), mountpoint, &config)?;
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
