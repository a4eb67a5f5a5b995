//! Reading directories: `.` and `..`, pages of the master's listing, offsets that stay good.
//!
//! This room owns the mapping between a master's cookies and the kernel's offsets, and what an open directory keeps
//! between two calls. It asks nobody.
//!
//! Offset 0 is the start, 1 comes after `.`, 2 after `..`, and what comes after the entry with cookie c is c + 2.

use gfs_client::Grant;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Attributes, DirectoryEntry};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Offset after `.`.
pub const AFTER_DOT: u64 = 1;
/// Offset after `..`: where the master's listing starts, cookie 0.
pub const AFTER_DOTS: u64 = 2;
/// Entries asked of the master at once: more than one reply to the kernel takes.
pub const PAGE_ENTRIES: u32 = 1024;

/// One entry as the kernel is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Where to go on after it.
    pub offset: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// What it names.
    pub attributes: Attributes,
}

/// A run of entries without a gap.
#[derive(Debug)]
pub struct Page {
    base: u64,
    entries: Vec<Listed>,
    end: bool,
    /// How long what it says may be cached; `None`: not at all.
    pub grant: Option<Grant>,
}

/// The master's cookie to go on from; `None` while `.` or `..` is still to come.
pub fn cookie_of(offset: u64) -> Option<u64> {
    offset.checked_sub(AFTER_DOTS)
}

/// The offset after an entry; `None` when it does not fit the kernel's signed offsets.
pub fn offset_after(cookie: u64) -> Option<u64> {
    cookie.checked_add(AFTER_DOTS).filter(|offset| i64::try_from(*offset).is_ok())
}

impl Page {
    /// Builds the page that starts at offset `base`; `dots` are the entries before the master's. `None` when a cookie does not
    /// fit or they do not rise: then nothing could be continued safely.
    pub fn new(
        base: u64,
        dots: Vec<Listed>,
        entries: Vec<DirectoryEntry>,
        end: bool,
        grant: Option<Grant>,
    ) -> Option<Self> {
        let mut all = dots;
        all.reserve(entries.len());
        for entry in entries {
            let offset = offset_after(entry.cookie)?;
            if offset <= all.last().map_or(base, |last| last.offset) {
                return None;
            }
            all.push(Listed { offset, name: entry.name, attributes: entry.attributes });
        }
        // Without an entry and without an end the kernel would take the empty reply for the end.
        if all.is_empty() && !end {
            return None;
        }
        Some(Self { base, entries: all, end, grant })
    }

    /// The entries from `offset` on, when this page knows them: an empty slice is the end of the directory.
    pub fn from(&self, offset: u64) -> Option<&[Listed]> {
        let rest = if offset == self.base {
            &self.entries[..]
        } else {
            let at = self.entries.binary_search_by_key(&offset, |entry| entry.offset).ok()?;
            &self.entries[at + 1..]
        };
        (self.end || !rest.is_empty()).then_some(rest)
    }
}

/// What the master answers of a listing: entries, whether they are the last, and for how long that may be cached.
pub type Answered = (Vec<DirectoryEntry>, bool, Grant);

/// The next run of entries, asked for while the kernel takes the one before.
#[derive(Debug)]
struct Next {
    cookie: u64,
    answer: JoinHandle<Option<Answered>>,
}

impl Drop for Next {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

/// An open directory.
#[derive(Debug)]
pub struct DirectoryHandle {
    /// The directory.
    pub inode: InodeId,
    page: Mutex<Option<Arc<Page>>>,
    next: Mutex<Option<Next>>,
}

impl DirectoryHandle {
    /// A handle at the start.
    pub fn new(inode: InodeId) -> Self {
        Self { inode, page: Mutex::new(None), next: Mutex::new(None) }
    }

    /// The page kept from the last call, if it can go on from `offset`. The start is always asked anew, so that rewinddir sees
    /// what is there now.
    pub fn kept(&self, offset: u64) -> Option<Arc<Page>> {
        let page = self.page.lock();
        let page = page.as_ref().filter(|page| offset != 0 && page.from(offset).is_some())?;
        Some(Arc::clone(page))
    }

    /// The entries after `cookie`, if they were asked for ahead. The start never is.
    pub async fn ahead(&self, cookie: u64) -> Option<Answered> {
        let mut next = self.next.lock().take().filter(|next| next.cookie == cookie)?;
        (&mut next.answer).await.ok().flatten()
    }

    /// The entries after `cookie` are being asked for.
    pub fn ask_ahead(&self, cookie: u64, answer: JoinHandle<Option<Answered>>) {
        *self.next.lock() = Some(Next { cookie, answer });
    }

    /// Keeps a page for the next call.
    pub fn keep(&self, page: &Arc<Page>) {
        *self.page.lock() = Some(Arc::clone(page));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::attributes::tests::sample;

    fn entry(cookie: u64) -> DirectoryEntry {
        DirectoryEntry { cookie, name: format!("f{cookie}").into_bytes(), attributes: sample() }
    }

    fn dots() -> Vec<Listed> {
        [(AFTER_DOT, "."), (AFTER_DOTS, "..")]
            .map(|(offset, name)| Listed { offset, name: name.into(), attributes: sample() })
            .to_vec()
    }

    fn names(page: &Page, offset: u64) -> Option<Vec<String>> {
        let rest = page.from(offset)?;
        Some(rest.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect())
    }

    #[test]
    fn offsets_and_cookies_map_one_to_one() {
        assert_eq!(cookie_of(0), None);
        assert_eq!(cookie_of(AFTER_DOT), None);
        assert_eq!(cookie_of(AFTER_DOTS), Some(0));
        for cookie in [1, 2, 3, 77, i64::MAX as u64 - 2] {
            assert_eq!(cookie_of(offset_after(cookie).unwrap()), Some(cookie));
        }
        assert_eq!(offset_after(i64::MAX as u64 - 1), None);
        assert_eq!(offset_after(u64::MAX), None);
    }

    #[test]
    fn every_offset_goes_on_behind_its_entry() {
        let page = Page::new(0, dots(), vec![entry(1), entry(5)], true, None).unwrap();
        assert_eq!(names(&page, 0).unwrap(), [".", "..", "f1", "f5"]);
        assert_eq!(names(&page, AFTER_DOT).unwrap(), ["..", "f1", "f5"]);
        assert_eq!(names(&page, AFTER_DOTS).unwrap(), ["f1", "f5"]);
        assert_eq!(names(&page, 3).unwrap(), ["f5"]);
        assert_eq!(names(&page, 7).unwrap(), Vec::<String>::new());
        assert_eq!(names(&page, 4), None, "no entry ends there");
    }

    #[test]
    fn spent_page_of_a_longer_directory_asks_for_more() {
        let page = Page::new(3, Vec::new(), vec![entry(5)], false, None).unwrap();
        assert_eq!(names(&page, 3).unwrap(), ["f5"]);
        assert_eq!(names(&page, 7), None);
    }

    #[test]
    fn listing_that_cannot_be_continued_is_refused() {
        assert!(Page::new(2, Vec::new(), vec![entry(5), entry(5)], true, None).is_none());
        assert!(Page::new(9, Vec::new(), vec![entry(5)], true, None).is_none());
        assert!(Page::new(2, Vec::new(), vec![entry(u64::MAX)], true, None).is_none());
        assert!(Page::new(2, Vec::new(), Vec::new(), false, None).is_none());
    }

    #[test]
    fn rewinding_forgets_the_kept_page() {
        let handle = DirectoryHandle::new(InodeId(1));
        assert!(handle.kept(2).is_none());
        let page = Arc::new(Page::new(0, dots(), vec![entry(1)], true, None).unwrap());
        handle.keep(&page);
        assert!(handle.kept(AFTER_DOTS).is_some());
        assert!(handle.kept(0).is_none());
        assert!(handle.kept(99).is_none());
    }
}
