//! What the kernel sees: POSIX on top of the client library, without knowing the transport.
//!
//! This room owns open handles, directory offsets, lock owners, access times, interrupts, and how long the kernel may cache. Data, dirty
//! bytes, retry and sessions are `gfs-client`'s; permission is checked by the kernel (`default_permissions`).

pub mod access_time;
pub mod attributes;
mod blocked;
pub mod cached_names;
pub mod directory;
mod files;
pub mod handles;
mod inodes;
pub mod interrupts;
mod listed;
mod locking;
pub mod locks;
mod names;
pub mod pages;
mod ranges;

pub use files::{Opened, Released, Write};
pub use inodes::{Changes, Usage};
pub use locking::{LockAsked, LockHeld};

use crate::errno::{Errno, Result};
use crate::options::CacheMode;
use access_time::AccessTimes;
use cached_names::CachedNames;
use directory::DirectoryHandle;
use gfs_client::{
    Attributes, CallContext, CallLimit, CancelToken, Client, Credentials, Grant, InodeId, Pages, ROOT, path,
};
use handles::{Directories, Files};
use interrupts::{Interrupts, Wait, Watch};
use listed::ListedNames;
use locking::Releases;
use locks::LockTable;
use pages::{CachedPages, Shown};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A blocking lock waits as long as it takes; tokio wants a number.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A name in a directory.
pub type Name = (InodeId, Vec<u8>);

/// Who made a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Thread id; 0 when the kernel acts by itself, or for a process that we cannot see.
    pub tid: u32,
}

/// One call under way: its bounds, and its place on the list of what a signal can end.
pub struct Call {
    /// For the client library.
    pub context: CallContext,
    /// Who asks.
    pub caller: Caller,
    _watch: Option<Watch>,
}

/// Attributes, and how long they may be cached.
#[derive(Clone, Debug)]
pub struct Found {
    /// The attributes.
    pub attributes: Attributes,
    /// `None`: not at all.
    pub grant: Option<Grant>,
}

/// What a name names.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// This.
    Found(Found),
    /// Nothing, which may be cached as well.
    Absent(Option<Grant>),
}

/// How a mount behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FsOptions {
    /// What the kernel may cache.
    pub cache: CacheMode,
    /// Whether file data that is read may stay in its page cache.
    pub pages: Pages,
    /// Longest wait of one call.
    pub call_timeout: Duration,
    /// Whether reads move access times.
    pub moves_atime: bool,
}

/// The page cache of the kernel, as far as this room has to reach it.
pub trait PageCache: Send + Sync {
    /// Drops all pages of a file, and its attributes. Waits for pages that are being read or written just now.
    fn drop_pages(&self, inode: InodeId);
}

/// A mounted cluster.
pub struct Fs {
    client: Client,
    runtime: Handle,
    options: FsOptions,
    /// The directory shown as the root.
    root: InodeId,
    files: Files,
    directories: Directories,
    locks: Mutex<LockTable>,
    releases: Releases,
    access: Arc<AccessTimes>,
    names: CachedNames,
    listed: Arc<ListedNames>,
    interrupts: Interrupts,
    stale: OnceLock<mpsc::SyncSender<InodeId>>,
    pages: CachedPages,
    page_cache: OnceLock<Arc<dyn PageCache>>,
}

impl Fs {
    /// A mount of the whole cluster; work in the background runs on `runtime`.
    ///
    /// # Errors
    /// When the watcher thread cannot be started.
    pub fn new(client: Client, runtime: Handle, options: FsOptions) -> std::io::Result<Self> {
        Ok(Self {
            client,
            runtime,
            options,
            root: ROOT,
            files: Files::default(),
            directories: Directories::default(),
            locks: Mutex::default(),
            releases: Releases::default(),
            access: Arc::default(),
            names: CachedNames::default(),
            listed: Arc::default(),
            interrupts: Interrupts::start()?,
            stale: OnceLock::new(),
            pages: CachedPages::default(),
            page_cache: OnceLock::new(),
        })
    }

    /// Makes a directory of the cluster the root of the mount; before it is mounted.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn show_only(&mut self, directory: &[u8]) -> std::result::Result<(), String> {
        let context = self.context(self.options.call_timeout);
        let resolved = path::resolve(&self.client, &context, directory).await.map_err(|error| error.to_string())?;
        if resolved.file_type != gfs_client::FileType::Directory {
            return Err("is not a directory".into());
        }
        self.root = resolved.inode;
        Ok(())
    }

    /// Begins a call of a caller.
    pub fn call(&self, operation: &'static str, caller: Caller, wait: Wait) -> Call {
        let cancel = CancelToken::new();
        let watch = self.interrupts.watch(operation, caller, wait, &cancel);
        let limit = match wait {
            Wait::Lock => FOREVER,
            Wait::Other => self.options.call_timeout,
        };
        let credentials = Credentials { uid: caller.uid, gid: caller.gid, groups: Vec::new(), check: false };
        let context = CallContext::new(credentials, CallLimit::cancellable(limit, cancel));
        Call { context, caller, _watch: watch }
    }

    /// Bounds for what the mount does by itself.
    fn context(&self, limit: Duration) -> CallContext {
        CallContext::new(Credentials::default(), CallLimit::within(limit))
    }

    /// What the kernel may cache.
    pub fn cache(&self) -> CacheMode {
        self.options.cache
    }

    /// The inode behind a number of the kernel. The root of the mount is 1 there; the two numbers change places, so that
    /// the mapping stays one to one.
    pub fn inner(&self, number: u64) -> InodeId {
        self.swapped(InodeId(number))
    }

    /// The kernel's number of an inode.
    pub fn outer(&self, inode: InodeId) -> u64 {
        self.swapped(inode).0
    }

    fn swapped(&self, inode: InodeId) -> InodeId {
        swap(self.root, inode)
    }

    /// Hands an answer to the kernel with the time for which it may be cached.
    pub fn deliver(&self, grant: Option<&Grant>, hand_over: impl FnOnce(Duration)) {
        match grant.filter(|_| self.options.cache != CacheMode::None) {
            Some(grant) => self.client.deliver(&grant.ticket, hand_over),
            None => hand_over(Duration::ZERO),
        }
    }

    /// The same for what a name names, or for its absence.
    pub fn deliver_entry(&self, grant: Option<&Grant>, at: &Name, hand_over: impl FnOnce(Duration)) {
        self.deliver(grant, |ttl| {
            self.note_name(at.0, &at.1, ttl);
            hand_over(ttl);
        });
    }

    /// The kernel is about to be told a name that it may keep for `ttl`.
    pub fn note_name(&self, directory: InodeId, name: &[u8], ttl: Duration) {
        self.names.note(directory, name, ttl);
    }

    /// Whether the kernel may have a name cached.
    pub fn may_have_name(&self, directory: InodeId, name: &[u8]) -> bool {
        self.names.may_have(directory, name)
    }

    /// Attributes of a listing as the kernel may be shown them; answers whether they may be cached: no access time is being moved, which
    /// would make them old, and the pages that it has allow it.
    pub fn fit_listed(&self, attributes: &mut Attributes, granted: bool) -> bool {
        self.fit_to_pages(attributes, granted) && !self.access.is_pending(attributes.inode)
    }

    /// Every answer with attributes comes by here: what makes the kernel drop its pages goes by what it was shown last.
    fn fit_to_pages(&self, attributes: &mut Attributes, granted: bool) -> bool {
        let shown = self.pages.show(attributes, granted);
        if let Shown::Later(later) = shown {
            attributes.mtime.0 = attributes.mtime.0.saturating_add(later);
        }
        shown == Shown::Plain
    }

    /// An inode was changed elsewhere: what is remembered of it here no longer counts.
    pub fn forget(&self, inode: InodeId) {
        self.access.changed(inode);
        self.pages.forget(inode);
    }

    /// Inodes of open files, whose pages the kernel may hold.
    pub fn open_inodes(&self) -> Vec<InodeId> {
        let mut inodes: Vec<InodeId> = self.files.all().iter().map(|file| file.inode).collect();
        inodes.sort_unstable();
        inodes.dedup();
        inodes
    }

    /// Who drops pages. The first one counts.
    pub fn on_old_pages(&self, cache: Arc<dyn PageCache>) {
        // A second session on one file system does not exist.
        let _ = self.page_cache.set(cache);
    }

    /// Has the kernel drop pages and waits for it, on another thread: other requests go on meanwhile, which may be what it waits for.
    async fn drop_pages(&self, inode: InodeId) {
        if let Some(cache) = self.page_cache.get().cloned() {
            // It only fails with the runtime.
            let _ = tokio::task::spawn_blocking(move || cache.drop_pages(inode)).await;
        }
    }

    /// Where inodes go whose attributes the kernel has wrong and shall drop soon. The first one counts.
    pub fn on_stale_attributes(&self, queue: mpsc::SyncSender<InodeId>) {
        // A second session on one file system does not exist.
        let _ = self.stale.set(queue);
    }

    /// Has the kernel drop attributes soon, on another thread: this one may be what the kernel waits for.
    fn drop_attributes(&self, inode: InodeId) {
        let full = self.stale.get().is_some_and(|queue| queue.try_send(inode).is_err());
        if full {
            tracing::debug!(%inode, "attributes left to run out by themselves");
        }
    }

    /// Everything written so far on stable storage.
    ///
    /// # Errors
    /// What could not be written.
    pub async fn sync_all(&self, limit: Duration) -> Result<()> {
        Ok(self.client.sync_all(&self.context(limit)).await?)
    }

    /// Whether calls have to wait for writes that were answered and go on without their delegation.
    pub fn is_loose(&self) -> bool {
        self.client.is_loose()
    }

    /// Waits for them.
    pub async fn settle_loose(&self, context: &CallContext) {
        self.client.settle_loose(context).await;
    }

    /// Waits for background work, at most until `deadline`.
    pub async fn settle(&self, deadline: Instant) {
        self.access.settle_all(deadline).await;
    }

    /// Opens a directory; nobody is asked.
    pub fn open_directory(&self, inode: InodeId) -> u64 {
        self.directories.insert(DirectoryHandle::new(inode))
    }

    /// Closes a directory.
    ///
    /// # Errors
    /// EBADF.
    pub fn close_directory(&self, number: u64) -> Result<()> {
        self.directories.remove(number).map(drop)
    }
}

fn swap(root: InodeId, inode: InodeId) -> InodeId {
    if inode == ROOT {
        root
    } else if inode == root {
        ROOT
    } else {
        inode
    }
}

/// EIO with the reason in the log: an answer that does not fit its question.
fn unexpected(operation: &'static str) -> Errno {
    tracing::error!(operation, "the master gave an answer of another kind");
    Errno(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_a_subtree_and_number_one_change_places() {
        let root = InodeId(77);
        for (kernel, inode) in [(1, 77), (77, 1), (5, 5)] {
            assert_eq!(swap(root, InodeId(kernel)), InodeId(inode));
            assert_eq!(swap(root, InodeId(inode)), InodeId(kernel));
        }
        assert_eq!(swap(ROOT, ROOT), ROOT);
    }
}
