//! Dropping what the kernel has cached, on behalf of the client library.

use super::session::Notify;
use crate::fs::{Fs, PageCache};
use gfs_client::Invalidator;
use gfs_core::ids::InodeId;
use std::io;
use std::sync::{Arc, mpsc};

/// Attributes to drop that may wait; the kernel has marked most of them itself.
const MAX_STALE: usize = 1024;

/// Drops what the kernel has cached. Only called on threads that no system call on the mount waits for.
#[derive(Clone)]
pub struct KernelCache {
    fs: Arc<Fs>,
    notify: Arc<dyn Notify>,
}

impl KernelCache {
    /// The caches of a session that shows `fs`.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn new(fs: &Arc<Fs>, notify: Arc<dyn Notify>) -> io::Result<Self> {
        let (queue, stale) = mpsc::sync_channel::<InodeId>(MAX_STALE);
        let cache = Self { fs: Arc::clone(fs), notify };
        let worker = cache.clone();
        std::thread::Builder::new().name("gfs-notify".into()).spawn(move || {
            for inode in stale {
                worker.tell(worker.notify.inode(worker.fs.outer(inode), -1, 0));
            }
        })?;
        fs.on_stale_attributes(queue);
        fs.on_old_pages(Arc::new(cache.clone()));
        Ok(cache)
    }

    fn tell(&self, result: io::Result<()>) {
        // What is not cached is no error; what remains is a mount that is going away.
        if let Err(error) = result {
            tracing::debug!(%error, "the kernel took no notification");
        }
    }

    fn drop_inode(&self, inode: InodeId) {
        self.fs.forget(inode);
        self.drop_pages(inode);
    }
}

impl PageCache for KernelCache {
    fn drop_pages(&self, inode: InodeId) {
        self.tell(self.notify.inode(self.fs.outer(inode), 0, 0));
    }
}

impl Invalidator for KernelCache {
    fn invalidate(&self, inodes: &[InodeId], entries: &[(InodeId, Vec<u8>)]) {
        for inode in inodes {
            self.drop_inode(*inode);
        }
        for (directory, name) in entries {
            if self.fs.may_have_name(*directory, name) {
                self.tell(self.notify.entry(self.fs.outer(*directory), name));
            }
        }
    }

    fn reset(&self) {
        for inode in self.fs.open_inodes() {
            self.drop_inode(inode);
        }
    }
}
