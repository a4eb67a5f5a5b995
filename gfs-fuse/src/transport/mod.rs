//! Sessions with the kernel: mounting, what is negotiated, requests and answers, notifications.
//!
//! This room alone knows what requests come by. `fuser` is the transport over /dev/fuse; `native` speaks the kernel's interface itself,
//! which io_uring needs. Both give the same operations to `ops`.

mod cache;
mod fuser;
mod native;

pub use cache::KernelCache;

use crate::errno::Errno;
use crate::ops::Operations;
use crate::options::{CacheMode, MountOptions, Transport};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Largest write, and with it the largest read, of one request.
const MAX_WRITE: u32 = 1 << 20;
/// Requests without a waiting caller (read-ahead, asynchronous I/O) that the kernel keeps in flight.
const MAX_BACKGROUND: u16 = 256;

/// A mounted file system that nobody serves yet.
pub trait Session {
    /// What tells the kernel to drop what it has cached.
    fn notify(&self) -> Arc<dyn Notify>;

    /// Lets threads of its own serve the kernel until it is unmounted; the end is told by `Operations`.
    ///
    /// # Errors
    /// When the threads cannot be started.
    fn serve(self: Box<Self>) -> io::Result<()>;
}

/// Notifications to the kernel. What is not cached is an error that means nothing.
pub trait Notify: Send + Sync {
    /// Drops attributes, and pages from `offset` on; none for a negative one.
    ///
    /// # Errors
    /// What the kernel says.
    fn inode(&self, inode: u64, offset: i64, length: i64) -> io::Result<()>;

    /// Drops a name.
    ///
    /// # Errors
    /// What the kernel says.
    fn entry(&self, directory: u64, name: &[u8]) -> io::Result<()>;
}

/// Mounts, over the transport that the options ask for, or the best one there is.
///
/// # Errors
/// What the kernel or fusermount3 said.
pub fn mount(
    operations: &Arc<Operations>,
    mountpoint: &Path,
    options: &MountOptions,
    source: &str,
) -> io::Result<Box<dyn Session>> {
    if options.transport != Transport::Dev {
        match native::mount(operations, mountpoint, options, source) {
            Ok(session) => return Ok(session),
            Err(native::MountError::Mount(error)) => return Err(error),
            Err(native::MountError::NoRing(why)) if options.transport == Transport::Uring => {
                tracing::warn!("no FUSE over io_uring here: {why}; mounting over /dev/fuse");
            }
            Err(native::MountError::NoRing(why)) => tracing::debug!(%why, "mounting over /dev/fuse"),
        }
    }
    fuser::mount(Arc::clone(operations), mountpoint, options, source)
}

/// Whether file data goes past the page cache where nothing else is said, on a kernel that can or cannot map such files.
fn passes_by(cache: CacheMode, maps_uncached: bool) -> bool {
    cache != CacheMode::Pages && maps_uncached
}

/// Whether this kernel can map files that pass by the page cache; known before the session, which negotiates it.
pub fn maps_uncached_files() -> bool {
    version_at_least(rustix::system::uname().release().to_string_lossy().as_ref(), (6, 6))
}

fn version_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    found >= wanted
}

/// EIO with the reason in the log: an answer that does not fit its request.
fn mismatch() -> Errno {
    tracing::error!("an operation gave an answer of another kind");
    Errno(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
