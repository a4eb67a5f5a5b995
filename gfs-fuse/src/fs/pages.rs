//! File data in the kernel's page cache: which pages still count, and when they are dropped.
//!
//! The kernel asks for attributes before it reads from pages, unless it may still cache those that it has, and drops all pages of a file
//! when the length or the modification time that it is shown differs from what it knows. So pages are right as long as the attributes
//! are granted, which the master does not do while another mount has the file open for writing. What remains is this room's: pages
//! of a file that was closed meanwhile; a change that left length and modification time as they were (`touch -r`); and reads while
//! nothing is granted, or while this mount itself writes past the page cache: then every answer shows a modification time that the
//! kernel has not been shown lately, some nanoseconds later than the true one, so that pages are good for one read.
//!
//! It sends nothing to the kernel.

use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Attributes, Timestamp};
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Closed files whose pages may count again.
const MAX_CLOSED: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();
/// How far a modification time is shown later than it is, at most: in ns. Answers cross each other, so that two times in turn would not do.
const MOST_LATER: i64 = 999;

/// What pages of a file belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Content {
    ctime: Timestamp,
    mtime: Timestamp,
    size: u64,
}

impl Content {
    fn of(attributes: &Attributes) -> Self {
        Self { ctime: attributes.ctime, mtime: attributes.mtime, size: attributes.size }
    }
}

/// A file of which this mount has pages, or that it writes past them.
#[derive(Default)]
struct Open {
    readers: usize,
    writers: usize,
    /// As the kernel was shown it last, if it was.
    content: Option<Content>,
    /// All pages are of this content, in this era of the master.
    era: Option<u64>,
    /// How much later the modification time was shown last.
    later: i64,
}

#[derive(Default)]
struct Table {
    open: HashMap<InodeId, Open>,
    closed: Option<LruCache<InodeId, (Content, u64)>>,
}

impl Table {
    fn tidy(&mut self, inode: InodeId) {
        let Some(open) = self.open.get(&inode) else { return };
        if open.readers > 0 {
            return;
        }
        if let (Some(content), Some(era), 0) = (open.content, open.era, open.writers) {
            self.closed.get_or_insert_with(|| LruCache::new(MAX_CLOSED)).put(inode, (content, era));
        }
        if open.writers == 0 {
            self.open.remove(&inode);
        }
    }
}

/// What an answer about a file means for its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// The kernel does what is right.
    Plain,
    /// It hides a change that the pages do not have: they are to be dropped before it is shown, or it is not to be cached.
    Hides,
    /// Pages are good for one read: it is not to be cached, and the modification time is to be shown as much later.
    Later(i64),
}

/// All files with pages that count.
#[derive(Default)]
pub struct CachedPages {
    table: Mutex<Table>,
    /// Files with readers.
    read: AtomicUsize,
}

impl CachedPages {
    /// A file was opened through the page cache; answers whether the pages that the kernel still has are right.
    pub fn opened(&self, attributes: &Attributes, era: u64) -> bool {
        let now = (Some(Content::of(attributes)), Some(era));
        let mut table = self.table.lock();
        let closed = table.closed.as_mut().and_then(|closed| closed.pop(&attributes.inode));
        let open = table.open.entry(attributes.inode).or_default();
        let known = if open.readers > 0 {
            (open.content, open.era)
        } else {
            (closed.map(|closed| closed.0), closed.map(|closed| closed.1))
        };
        open.readers += 1;
        (open.content, open.era) = now;
        if open.readers == 1 {
            self.read.fetch_add(1, Ordering::AcqRel);
        }
        known == now
    }

    /// It was closed, once.
    pub fn closed(&self, inode: InodeId) {
        let mut table = self.table.lock();
        let Some(open) = table.open.get_mut(&inode).filter(|open| open.readers > 0) else { return };
        open.readers -= 1;
        if open.readers == 0 {
            self.read.fetch_sub(1, Ordering::AcqRel);
            table.tidy(inode);
        }
    }

    /// A file is about to be opened for writing past the page cache. Answers whether there are readers: what the kernel caches of it is
    /// to be dropped before the open is answered.
    pub fn write_begins(&self, inode: InodeId) -> bool {
        let mut table = self.table.lock();
        if let Some(closed) = &mut table.closed {
            closed.pop(&inode);
        }
        let open = table.open.entry(inode).or_default();
        open.writers += 1;
        open.era = None;
        open.readers > 0
    }

    /// It was closed, once, or was not opened.
    pub fn write_ends(&self, inode: InodeId) {
        let mut table = self.table.lock();
        if let Some(open) = table.open.get_mut(&inode) {
            open.writers = open.writers.saturating_sub(1);
            table.tidy(inode);
        }
    }

    /// Whether this mount writes a file past the page cache.
    pub fn is_written(&self, inode: InodeId) -> bool {
        self.table.lock().open.get(&inode).is_some_and(|open| open.writers > 0)
    }

    /// A file was changed, and its pages were dropped or may be mixed with later ones: they do not count after the last close.
    pub fn forget(&self, inode: InodeId) {
        let mut table = self.table.lock();
        if let Some(open) = table.open.get_mut(&inode) {
            open.era = None;
        }
        if let Some(closed) = &mut table.closed {
            closed.pop(&inode);
        }
    }

    /// The kernel is about to be shown these attributes; `granted` by the master, or not.
    pub fn show(&self, attributes: &Attributes, granted: bool) -> Shown {
        if self.read.load(Ordering::Acquire) == 0 {
            return Shown::Plain;
        }
        let mut table = self.table.lock();
        let Some(open) = table.open.get_mut(&attributes.inode).filter(|open| open.readers > 0) else {
            return Shown::Plain;
        };
        if !granted || open.writers > 0 {
            open.later = open.later % MOST_LATER + 1;
            (open.content, open.era) = (None, None);
            return Shown::Later(open.later);
        }
        let shown = Content::of(attributes);
        let Some(known) = open.content else {
            // It was shown another time last, so that it drops its pages now.
            open.content = Some(shown);
            return Shown::Plain;
        };
        if known.ctime == shown.ctime {
            return Shown::Plain;
        }
        open.era = None;
        if (known.mtime, known.size) == (shown.mtime, shown.size) {
            return Shown::Hides;
        }
        open.content = Some(shown);
        Shown::Plain
    }

    /// All pages of a file were dropped after it had these attributes.
    pub fn dropped(&self, attributes: &Attributes) {
        if let Some(open) = self.table.lock().open.get_mut(&attributes.inode) {
            (open.content, open.era) = (Some(Content::of(attributes)), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::meta::request::FileType;

    const FILE: InodeId = InodeId(8);

    fn attributes(ctime: i64, mtime: i64) -> Attributes {
        Attributes {
            inode: FILE,
            file_type: FileType::File,
            mode: 0o644,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 10,
            allocated: 0,
            atime: Timestamp(1),
            mtime: Timestamp(mtime),
            ctime: Timestamp(ctime),
            btime: Timestamp(1),
            replicas: 3,
            has_acl: false,
            has_xattrs: false,
        }
    }

    #[test]
    fn pages_count_again_when_nothing_has_changed() {
        let pages = CachedPages::default();
        assert!(!pages.opened(&attributes(5, 5), 1), "the first open has none");
        assert!(pages.opened(&attributes(5, 5), 1), "a second one beside it");
        pages.closed(FILE);
        pages.closed(FILE);
        assert!(pages.opened(&attributes(5, 5), 1));
        pages.closed(FILE);
        assert!(!pages.opened(&attributes(6, 5), 1), "changed meanwhile");
        pages.closed(FILE);
        assert!(!pages.opened(&attributes(6, 5), 2), "a writer was lost meanwhile");
    }

    #[test]
    fn pages_that_were_told_to_go_do_not_count_at_the_next_open() {
        let pages = CachedPages::default();
        pages.opened(&attributes(5, 5), 1);
        pages.forget(FILE);
        pages.closed(FILE);
        assert!(!pages.opened(&attributes(5, 5), 1), "told while it was open");
        pages.closed(FILE);
        pages.forget(FILE);
        assert!(!pages.opened(&attributes(5, 5), 1), "told while it was closed");
    }

    #[test]
    fn a_change_that_leaves_length_and_time_is_seen() {
        let pages = CachedPages::default();
        assert_eq!(pages.show(&attributes(6, 5), true), Shown::Plain, "not open");
        pages.opened(&attributes(5, 5), 1);
        assert_eq!(pages.show(&attributes(5, 5), true), Shown::Plain);
        assert_eq!(pages.show(&attributes(7, 7), true), Shown::Plain, "the kernel sees it by itself");
        for _ in 0..2 {
            assert_eq!(pages.show(&attributes(8, 7), true), Shown::Hides, "until they are dropped");
        }
        pages.dropped(&attributes(8, 7));
        assert_eq!(pages.show(&attributes(8, 7), true), Shown::Plain);
        pages.closed(FILE);
        assert!(!pages.opened(&attributes(8, 7), 1), "pages of several contents");
    }

    #[test]
    fn without_a_grant_no_two_answers_in_a_row_look_the_same() {
        let pages = CachedPages::default();
        pages.opened(&attributes(5, 5), 1);
        let mut last = Vec::new();
        for _ in 0..3_000 {
            let Shown::Later(later) = pages.show(&attributes(5, 5), false) else { panic!("cached without a grant") };
            assert!((1..=MOST_LATER).contains(&later) && !last.contains(&later), "{later} after {last:?}");
            last.push(later);
            if last.len() > 100 {
                last.remove(0);
            }
        }
        assert_eq!(pages.show(&attributes(5, 5), true), Shown::Plain, "which differs from all of these");
        pages.closed(FILE);
        assert!(!pages.opened(&attributes(5, 5), 1));
    }

    #[test]
    fn a_writer_of_the_same_mount_makes_pages_good_for_one_read() {
        let pages = CachedPages::default();
        assert!(!pages.write_begins(FILE) && pages.is_written(FILE));
        pages.write_ends(FILE);
        pages.opened(&attributes(5, 5), 1);
        assert!(pages.write_begins(FILE), "there are pages");
        assert!(matches!(pages.show(&attributes(5, 5), true), Shown::Later(_)));
        pages.write_ends(FILE);
        assert!(!pages.is_written(FILE));
        assert_eq!(pages.show(&attributes(9, 9), true), Shown::Plain);
        pages.closed(FILE);
        assert!(!pages.opened(&attributes(9, 9), 1));
        pages.closed(FILE);
        pages.write_begins(FILE);
        pages.write_ends(FILE);
        assert!(!pages.opened(&attributes(9, 9), 1), "it may have been written");
    }
}
