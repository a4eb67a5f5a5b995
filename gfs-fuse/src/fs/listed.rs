//! Directories that were listed without attributes: those of their names are asked for in whole pages once names are looked up there.
//!
//! A plain listing costs no attributes, which most who list never look at. Who does looks at one after the other, in whatever order, and
//! would send a message for each. This room decides how far ahead of them is asked. It asks nobody.

use gfs_core::ids::InodeId;
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Directories that are remembered.
const DIRECTORIES: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// So many names are fetched for each that was looked up, beyond the first page.
const FOR_EACH: usize = 32;

/// How far the attributes of a directory are known.
#[derive(Debug)]
struct Listed {
    /// The offset from which on they are not.
    offset: u64,
    looked_up: usize,
    fetched: usize,
    under_way: bool,
    listing: u64,
}

/// A page to be fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// From where.
    pub offset: u64,
    /// For which listing.
    listing: u64,
}

/// See the module.
#[derive(Debug)]
pub struct ListedNames {
    directories: Mutex<LruCache<InodeId, Listed>>,
    /// How many there are: most lookups find none.
    count: AtomicUsize,
    /// Listings so far.
    listings: AtomicU64,
}

impl Default for ListedNames {
    fn default() -> Self {
        Self {
            directories: Mutex::new(LruCache::new(DIRECTORIES)),
            count: AtomicUsize::new(0),
            listings: AtomicU64::new(0),
        }
    }
}

impl ListedNames {
    fn change<T>(&self, change: impl FnOnce(&mut LruCache<InodeId, Listed>) -> T) -> T {
        let mut directories = self.directories.lock();
        let result = change(&mut directories);
        self.count.store(directories.len(), Ordering::Relaxed);
        result
    }

    /// A listing begins: what was fetched for an earlier one may be old.
    pub fn begun(&self, directory: InodeId) {
        if self.count.load(Ordering::Relaxed) > 0 {
            self.change(|directories| directories.pop(&directory));
        }
    }

    /// Names from `offset` on are shown without attributes.
    pub fn without_attributes(&self, directory: InodeId, offset: u64) {
        self.change(|directories| {
            if !directories.contains(&directory) {
                let listing = self.listings.fetch_add(1, Ordering::Relaxed);
                directories.put(directory, Listed { offset, looked_up: 0, fetched: 0, under_way: false, listing });
            }
        });
    }

    /// A name was looked up and found: the page that is to be fetched, if one is.
    pub fn looked_up(&self, directory: InodeId) -> Option<Fetch> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut directories = self.directories.lock();
        let listed = directories.get_mut(&directory)?;
        listed.looked_up += 1;
        let due = !listed.under_way && listed.fetched <= listed.looked_up * FOR_EACH;
        listed.under_way |= due;
        due.then_some(Fetch { offset: listed.offset, listing: listed.listing })
    }

    /// A page of so many names was fetched; `next` is where the directory goes on, if it does and can be read. The page that is to be fetched
    /// next, if one is.
    pub fn fetched(&self, directory: InodeId, fetch: Fetch, names: usize, next: Option<u64>) -> Option<Fetch> {
        self.change(|directories| {
            let listed = directories.get_mut(&directory).filter(|listed| listed.listing == fetch.listing)?;
            let Some(offset) = next else {
                directories.pop(&directory);
                return None;
            };
            listed.offset = offset;
            listed.fetched += names;
            listed.under_way = listed.fetched <= listed.looked_up * FOR_EACH;
            listed.under_way.then_some(Fetch { offset, ..fetch })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: InodeId = InodeId(5);

    fn offset(fetch: Option<Fetch>) -> Option<u64> {
        fetch.map(|fetch| fetch.offset)
    }

    #[test]
    fn who_only_lists_costs_nothing() {
        let listed = ListedNames::default();
        assert_eq!(listed.looked_up(DIRECTORY), None);
        listed.without_attributes(DIRECTORY, 300);
        assert_eq!(listed.looked_up(InodeId(6)), None);
        assert_eq!(offset(listed.looked_up(DIRECTORY)), Some(300));
        assert_eq!(listed.looked_up(DIRECTORY), None, "it is under way");
    }

    #[test]
    fn so_much_is_fetched_as_names_are_looked_up() {
        let listed = ListedNames::default();
        listed.without_attributes(DIRECTORY, 300);
        let first = listed.looked_up(DIRECTORY).unwrap();
        assert_eq!(listed.fetched(DIRECTORY, first, 1024, Some(2000)), None, "one name was looked up");
        let looks = (1..1000).find_map(|look| Some((look, listed.looked_up(DIRECTORY)?)));
        let (31, second) = looks.unwrap() else { panic!("{looks:?}") };
        assert_eq!(second.offset, 2000);
        (0..100).for_each(|_| assert_eq!(listed.looked_up(DIRECTORY), None));
        let third = listed.fetched(DIRECTORY, second, 1024, Some(4000));
        assert_eq!(offset(third), Some(4000), "there is more than one page to catch up");
        assert_eq!(listed.fetched(DIRECTORY, third.unwrap(), 1024, None), None);
        assert_eq!(listed.looked_up(DIRECTORY), None, "all of it is known");
    }

    #[test]
    fn what_is_fetched_for_a_listing_is_not_taken_for_the_next() {
        let listed = ListedNames::default();
        listed.without_attributes(DIRECTORY, 300);
        listed.without_attributes(DIRECTORY, 9000);
        let old = listed.looked_up(DIRECTORY).unwrap();
        assert_eq!(old.offset, 300);
        listed.begun(DIRECTORY);
        assert_eq!(listed.looked_up(DIRECTORY), None);
        listed.without_attributes(DIRECTORY, 400);
        assert_eq!(listed.fetched(DIRECTORY, old, 10, Some(11)), None);
        assert_eq!(listed.fetched(DIRECTORY, old, 10, None), None);
        assert_eq!(offset(listed.looked_up(DIRECTORY)), Some(400));
    }
}
