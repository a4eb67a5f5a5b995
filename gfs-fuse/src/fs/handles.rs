//! Open files and directories by their number.
//!
//! This room owns the numbers that the kernel gets for what it opens. Data, sizes and dirty bytes are the client's.

use super::directory::DirectoryHandle;
use crate::errno::{Errno, Result};
use gfs_client::OpenFile;
use gfs_core::ids::InodeId;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open file.
pub struct FileHandle {
    /// The file.
    pub inode: InodeId,
    /// The client's side of it.
    pub file: OpenFile,
    /// Whether what is read through it stays in the page cache.
    pub pages: bool,
    /// Whether what is written through it passes by the page cache.
    pub writes: bool,
    /// Whether reads through it leave the access time alone (O_NOATIME).
    pub no_atime: bool,
}

/// All that is open, by number.
pub struct Handles<T> {
    open: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

/// Open files.
pub type Files = Handles<FileHandle>;
/// Open directories.
pub type Directories = Handles<DirectoryHandle>;

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { open: RwLock::new(HashMap::new()), next: AtomicU64::new(1) }
    }
}

impl<T> Handles<T> {
    /// Gives something a number, never used again.
    pub fn insert(&self, what: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(number, Arc::new(what));
        number
    }

    /// What has this number; EBADF when nothing has.
    pub fn get(&self, number: u64) -> Result<Arc<T>> {
        self.open.read().get(&number).cloned().ok_or(Errno(libc::EBADF))
    }

    /// Takes it off the list.
    pub fn remove(&self, number: u64) -> Result<Arc<T>> {
        self.open.write().remove(&number).ok_or(Errno(libc::EBADF))
    }

    /// All that is open now.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.open.read().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_a_closed_handle_is_refused_and_not_reused() {
        let handles = Directories::default();
        let first = handles.insert(DirectoryHandle::new(InodeId(1)));
        assert_eq!(handles.get(first).unwrap().inode, InodeId(1));
        assert!(handles.remove(first).is_ok());
        assert_eq!(handles.get(first).err(), Some(Errno(libc::EBADF)));
        assert_eq!(handles.remove(first).err(), Some(Errno(libc::EBADF)));
        assert_ne!(handles.insert(DirectoryHandle::new(InodeId(2))), first);
    }
}
