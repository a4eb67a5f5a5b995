//! Reading directories: `.` and `..`, pages of the master's listing, offsets that stay good.
//!
//! This room owns the mapping between a master's cookies and the kernel's offsets, and what an open directory keeps
//! between two calls. It asks nobody.
//!
//! Offset 0 is the start, 1 comes after `.`, 2 after `..`, and what comes after the entry with cookie c is c + 2.

use gfs_client::Grant;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Attributes, DirectoryEntry, FileType, ListedName};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Offset after `.`.
pub const AFTER_DOT: u64 = 1;
/// Offset after `..`: where the master's listing starts, cookie 0.
pub const AFTER_DOTS: u64 = 2;
/// Entries with attributes asked of the master at first: what one reply to the kernel takes, which says then whether it wants more of them.
pub const FIRST_ENTRIES: u32 = 256;
/// Entries with attributes asked of the master at once after that.
pub const PAGE_ENTRIES: u32 = 1024;
/// Names without attributes asked of the master at once.
pub const PAGE_NAMES: u32 = 4096;

/// One entry as the kernel is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Where to go on after it.
    pub offset: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// What it names.
    pub inode: InodeId,
    /// Of which type that is.
    pub file_type: FileType,
    /// Its attributes, where they were asked for.
    pub attributes: Option<Attributes>,
}

impl Listed {
    /// An entry with attributes.
    pub fn with_attributes(offset: u64, name: Vec<u8>, attributes: Attributes) -> Self {
        Self { offset, name, inode: attributes.inode, file_type: attributes.file_type, attributes: Some(attributes) }
    }

    /// An entry of the master; `None` when its cookie does not fit.
    pub fn entry(DirectoryEntry { cookie, name, attributes }: DirectoryEntry) -> Option<Self> {
        Some(Self::with_attributes(offset_after(cookie)?, name, attributes))
    }

    /// A name of the master; `None` when its cookie does not fit.
    pub fn name(ListedName { cookie, name, inode, file_type }: ListedName) -> Option<Self> {
        Some(Self { offset: offset_after(cookie)?, name, inode, file_type, attributes: None })
    }
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
    /// Builds the page that starts at offset `base`; `dots` are the entries before the master's. `None` when offsets do not rise: then
    /// nothing could be continued safely.
    pub fn new(base: u64, dots: Vec<Listed>, answered: Answered) -> Option<Self> {
        let Answered { mut entries, end, grant } = answered;
        if !dots.is_empty() {
            entries.splice(..0, dots);
        }
        let mut last = base;
        for entry in &entries {
            if entry.offset <= last {
                return None;
            }
            last = entry.offset;
        }
        // Without an entry and without an end the kernel would take the empty reply for the end.
        if entries.is_empty() && !end {
            return None;
        }
        Some(Self { base, entries, end, grant })
    }

    /// Whether there are attributes with all names from `offset` on.
    fn has_attributes(&self, offset: u64) -> bool {
        self.from(offset).is_some_and(|entries| entries.iter().all(|entry| entry.attributes.is_some()))
    }

    /// The offset after the last entry; `None` at the end of the directory.
    pub fn goes_on(&self) -> Option<u64> {
        self.entries.last().filter(|_| !self.end).map(|last| last.offset)
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

/// What the master answers of a listing.
#[derive(Debug)]
pub struct Answered {
    /// A run of entries.
    pub entries: Vec<Listed>,
    /// Whether they are the last.
    pub end: bool,
    /// For how long they may be cached; `None`: not at all.
    pub grant: Option<Grant>,
}

/// The next run of entries, asked for while the kernel takes the one before.
#[derive(Debug)]
struct Next {
    offset: u64,
    plus: bool,
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
    pub fn kept(&self, offset: u64, plus: bool) -> Option<Arc<Page>> {
        let page = self.page.lock();
        let page = page.as_ref().filter(|page| offset != 0 && page.from(offset).is_some())?;
        (!plus || page.has_attributes(offset)).then(|| Arc::clone(page))
    }

    /// The entries from `offset` on, if they were asked for ahead as they are wanted. The start never is.
    pub async fn ahead(&self, offset: u64, plus: bool) -> Option<Answered> {
        let mut next = self.next.lock().take().filter(|next| next.offset == offset && next.plus == plus)?;
        (&mut next.answer).await.ok().flatten()
    }

    /// Has the entries from `offset` on asked for by `ask`, unless they are already.
    pub fn ask_ahead(&self, offset: u64, plus: bool, ask: impl FnOnce() -> JoinHandle<Option<Answered>>) {
        let mut next = self.next.lock();
        if next.as_ref().is_none_or(|next| next.offset != offset || next.plus != plus) {
            *next = Some(Next { offset, plus, answer: ask() });
        }
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

    fn entry(cookie: u64) -> Listed {
        let name = format!("f{cookie}").into_bytes();
        Listed::entry(DirectoryEntry { cookie, name, attributes: sample() }).unwrap()
    }

    fn name(cookie: u64) -> Listed {
        let name = format!("f{cookie}").into_bytes();
        Listed::name(ListedName { cookie, name, inode: InodeId(9), file_type: FileType::File }).unwrap()
    }

    fn page(base: u64, dots: Vec<Listed>, entries: Vec<Listed>, end: bool) -> Option<Page> {
        Page::new(base, dots, Answered { entries, end, grant: None })
    }

    fn dots() -> Vec<Listed> {
        [(AFTER_DOT, "."), (AFTER_DOTS, "..")]
            .map(|(offset, name)| Listed::with_attributes(offset, name.into(), sample()))
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
        let page = page(0, dots(), vec![entry(1), entry(5)], true).unwrap();
        assert_eq!(names(&page, 0).unwrap(), [".", "..", "f1", "f5"]);
        assert_eq!(names(&page, AFTER_DOT).unwrap(), ["..", "f1", "f5"]);
        assert_eq!(names(&page, AFTER_DOTS).unwrap(), ["f1", "f5"]);
        assert_eq!(names(&page, 3).unwrap(), ["f5"]);
        assert_eq!(names(&page, 7).unwrap(), Vec::<String>::new());
        assert_eq!(names(&page, 4), None, "no entry ends there");
    }

    #[test]
    fn spent_page_of_a_longer_directory_asks_for_more() {
        let page = page(3, Vec::new(), vec![entry(5)], false).unwrap();
        assert_eq!(names(&page, 3).unwrap(), ["f5"]);
        assert_eq!(names(&page, 7), None);
    }

    #[test]
    fn listing_that_cannot_be_continued_is_refused() {
        assert!(page(2, Vec::new(), vec![entry(5), entry(5)], true).is_none());
        assert!(page(9, Vec::new(), vec![entry(5)], true).is_none());
        assert!(page(2, Vec::new(), Vec::new(), false).is_none());
        let beyond = ListedName { cookie: u64::MAX, name: b"f".to_vec(), inode: InodeId(9), file_type: FileType::File };
        assert!(Listed::name(beyond).is_none());
    }

    #[test]
    fn rewinding_forgets_the_kept_page() {
        let handle = DirectoryHandle::new(InodeId(1));
        assert!(handle.kept(2, false).is_none());
        handle.keep(&Arc::new(page(0, dots(), vec![entry(1)], true).unwrap()));
        assert!(handle.kept(AFTER_DOTS, true).is_some());
        assert!(handle.kept(0, false).is_none());
        assert!(handle.kept(99, false).is_none());
    }

    #[test]
    fn page_of_names_does_for_who_wants_names_alone() {
        let handle = DirectoryHandle::new(InodeId(1));
        let mixed = page(0, dots(), vec![entry(1), name(2), entry(3)], false).unwrap();
        assert_eq!(mixed.goes_on(), Some(5));
        handle.keep(&Arc::new(mixed));
        assert!(handle.kept(AFTER_DOTS, false).is_some() && handle.kept(AFTER_DOTS, true).is_none());
        assert!(handle.kept(4, true).is_some(), "behind the name without attributes");
    }

    #[tokio::test]
    async fn what_was_asked_ahead_is_taken_as_it_is_wanted() {
        let handle = DirectoryHandle::new(InodeId(1));
        let answer =
            |end| move || tokio::spawn(async move { Some(Answered { entries: Vec::new(), end, grant: None }) });
        handle.ask_ahead(7, false, answer(true));
        handle.ask_ahead(7, false, || panic!("it is asked for already"));
        assert!(handle.ahead(7, true).await.is_none());
        handle.ask_ahead(7, true, answer(true));
        assert!(handle.ahead(7, true).await.is_some_and(|answered| answered.end));
        assert!(handle.ahead(7, true).await.is_none());
    }
}
