//! The kernel's own interface: requests over io_uring, and over /dev/fuse what does not come by there.
//!
//! `abi` has its numbers, `decode` and `encode` are pure, `device` mounts and reads, `ring` has the rings, `room` their memory, `inbox` the way
//! of answers. This file puts a session together.

mod abi;
mod decode;
mod device;
mod encode;
mod inbox;
mod ring;
mod room;

use crate::ops::Operations;
use crate::options::MountOptions;
use crate::transport::session::{Notify, Session, Users};
use device::{Device, Gate};
use inbox::Inbox;
use ring::{Rings, Served};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

/// Where the kernel says whether it offers FUSE over io_uring.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Why there is no session.
pub enum MountError {
    /// There is no FUSE over io_uring here; nothing is mounted.
    NoRing(String),
    /// It could not be mounted at all.
    Mount(io::Error),
}

/// A session over io_uring.
struct Mounted {
    rings: Rings,
    served: Served,
    nudged: mpsc::Receiver<u16>,
    mountpoint: PathBuf,
}

/// Notifications that do not pass answers which were written before.
struct Behind {
    device: Arc<Device>,
    inboxes: Vec<Arc<Inbox>>,
}

impl Behind {
    fn wait(&self) {
        self.inboxes.iter().for_each(|inbox| inbox.wait_given());
    }
}

impl Notify for Behind {
    fn inode(&self, inode: u64, offset: i64, length: i64) -> io::Result<()> {
        self.wait();
        self.device.inode(inode, offset, length)
    }

    fn entry(&self, directory: u64, name: &[u8]) -> io::Result<()> {
        self.wait();
        self.device.entry(directory, name)
    }
}

/// Mounts for requests over io_uring.
///
/// # Errors
/// Why not.
pub fn mount(
    operations: &Arc<Operations>,
    mountpoint: &Path,
    options: &MountOptions,
    source: &str,
) -> Result<Box<dyn Session>, MountError> {
    // A module that is not loaded yet is by this.
    let _ = std::fs::File::open("/dev/fuse");
    offered(std::fs::read_to_string(SWITCH).ok().as_deref()).map_err(MountError::NoRing)?;
    let rings = Rings::new().map_err(|error| MountError::NoRing(format!("io_uring: {error}")))?;
    let device = Arc::new(device::mount(mountpoint, options, source).map_err(MountError::Mount)?);
    let (nudges, nudged) = mpsc::sync_channel(ring::NUDGES);
    match agree(operations, &device, options, &rings, nudges) {
        Ok(served) => Ok(Box::new(Mounted { rings, served, nudged, mountpoint: mountpoint.to_path_buf() })),
        Err(why) => {
            // They may have got requests of others, which the unmount would wait for.
            rings.stop();
            // Before the device goes, which would leave a dead mount for a moment.
            let mounted = crate::mountpoint::device_at(mountpoint);
            let unmounted = mounted.map(|mounted| crate::mountpoint::unmount(mountpoint, &mounted));
            drop(device);
            match unmounted {
                Some(Err(error)) => Err(MountError::Mount(error)),
                _ => Err(MountError::NoRing(why)),
            }
        }
    }
}

fn agree(
    operations: &Arc<Operations>,
    device: &Arc<Device>,
    options: &MountOptions,
    rings: &Rings,
    nudges: mpsc::SyncSender<u16>,
) -> Result<Served, String> {
    let agreed = device.shake_hands(options.cache).map_err(|error| error.to_string())?;
    if agreed.flags & abi::init::OVER_IO_URING == 0 {
        return Err("the kernel does not offer it".into());
    }
    let user = rustix::process::geteuid();
    let only_root = Users::of(options, user.is_root()) == Users::RootAndOwner;
    let gate = Gate { owner: only_root.then(|| user.as_raw()) };
    let (device, operations) = (Arc::clone(device), Arc::clone(operations));
    let served = Served { device, operations, gate, direct: agreed.direct, nudges };
    rings.register(&served).map_err(|error| format!("the kernel takes no ring: {error}"))?;
    Ok(served)
}

/// Whether the kernel offers it, by the text of its switch; else what to do.
fn offered(switch: Option<&str>) -> Result<(), String> {
    match switch.map(str::trim) {
        Some("Y" | "1") => Ok(()),
        Some(_) => Err(format!("it is switched off; `echo Y > {SWITCH}` as root switches it on")),
        None => Err("it needs Linux 6.14 or newer, with CONFIG_FUSE_IO_URING".into()),
    }
}

impl Session for Mounted {
    fn notify(&self) -> Arc<dyn Notify> {
        Arc::new(Behind { device: Arc::clone(&self.served.device), inboxes: self.rings.inboxes() })
    }

    fn serve(self: Box<Self>) -> io::Result<()> {
        let Self { rings, served, nudged, mountpoint } = *self;
        std::thread::Builder::new().name("gfs-nudge".into()).spawn(move || ring::nudge(&nudged, &mountpoint))?;
        rings.answer();
        // What is forgotten is told there, and its end is the end of the session.
        std::thread::Builder::new().name("gfs-device".into()).spawn(move || {
            served.device.serve(&served.operations, served.direct, served.gate);
            served.operations.end();
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switch_that_is_off_says_how_it_is_switched_on() {
        assert_eq!(offered(Some("Y\n")), Ok(()));
        assert!(offered(Some("N\n")).unwrap_err().contains("echo Y"));
        assert!(offered(None).unwrap_err().contains("6.14"));
    }
}
