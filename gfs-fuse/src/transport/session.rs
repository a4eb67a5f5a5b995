//! What every transport gives and takes: a session, notifications, and what they agree with the kernel on.

use crate::errno::Errno;
use crate::options::{CacheMode, MountOptions};
use std::io;
use std::sync::Arc;

/// Largest write, and with it the largest read, of one request.
pub const MAX_WRITE: u32 = 1 << 20;
/// Requests without a waiting caller (read-ahead, asynchronous I/O) that the kernel keeps in flight.
pub const MAX_BACKGROUND: u16 = 256;

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

/// Who may use a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Users {
    /// Whom the kernel's checks of permission let in.
    All,
    /// Root and who mounted.
    RootAndOwner,
    /// Who mounted.
    Owner,
}

impl Users {
    /// As the options say. A mount made by root is for everybody, as any file system is: the kernel checks permissions.
    pub fn of(options: &MountOptions, privileged: bool) -> Self {
        match (options.allow_other || privileged, options.allow_root) {
            (true, _) => Self::All,
            (false, true) => Self::RootAndOwner,
            (false, false) => Self::Owner,
        }
    }
}

/// The cluster as the tables of mounts name it: a comma would end the option.
pub fn source_name(source: &str) -> String {
    source.replace(',', "+")
}

/// Whether file data goes past the page cache where nothing else is said, on a kernel that can or cannot map such files.
pub fn passes_by(cache: CacheMode, maps_uncached: bool) -> bool {
    cache != CacheMode::Pages && maps_uncached
}

/// EIO with the reason in the log: an answer that does not fit its request.
pub fn mismatch() -> Errno {
    tracing::error!("an operation gave an answer of another kind");
    Errno(libc::EIO)
}
