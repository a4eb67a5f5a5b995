//! Names that are known under a live grant of their directory: what each stands for, or that it is absent.
//!
//! This room remembers and forgets, with a bound; `grants` decides what may be put in. A name that an own mutation is changing is not known
//! until that has been answered: its effect may be seen elsewhere before.

use gfs_core::ids::InodeId;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use tokio::time::Instant;

/// Names that are known at a time.
const MAX_NAMES: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// A directory and a name in it.
pub(crate) type Entry = (InodeId, Vec<u8>);

struct Table {
    known: LruCache<Entry, (Option<InodeId>, Instant)>,
    /// Names under change, and by how many mutations.
    changing: HashMap<Entry, usize>,
}

/// See the module.
pub(crate) struct KnownNames {
    table: Mutex<Table>,
}

impl Default for KnownNames {
    fn default() -> Self {
        Self { table: Mutex::new(Table { known: LruCache::new(MAX_NAMES), changing: HashMap::new() }) }
    }
}

impl KnownNames {
    /// A name stands for this, or for nothing, until somebody else comes in or `expires` is past.
    pub(crate) fn put(&self, entry: Entry, target: Option<InodeId>, expires: Instant) {
        let mut table = self.table.lock();
        if !table.changing.contains_key(&entry) {
            table.known.put(entry, (target, expires));
        }
    }

    /// What a name stands for, if that is known, and until when it is.
    pub(crate) fn get(&self, entry: &Entry) -> Option<(Option<InodeId>, Instant)> {
        let mut table = self.table.lock();
        table.known.get(entry).copied().filter(|(_, expires)| *expires > Instant::now())
    }

    /// The meaning of a name changes, or may have.
    pub(crate) fn forget(&self, entry: &Entry) {
        self.table.lock().known.pop(entry);
    }

    /// All of them may have changed.
    pub(crate) fn clear(&self) {
        self.table.lock().known.clear();
    }

    /// An own mutation of these names goes out.
    pub(crate) fn begin_change(&self, entries: &[Entry]) {
        let mut table = self.table.lock();
        for entry in entries {
            table.known.pop(entry);
            *table.changing.entry(entry.clone()).or_insert(0) += 1;
        }
    }

    /// It has been answered.
    pub(crate) fn end_change(&self, entries: &[Entry]) {
        let mut table = self.table.lock();
        for entry in entries {
            if let Some(count) = table.changing.get_mut(entry) {
                *count -= 1;
                if *count == 0 {
                    table.changing.remove(entry);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const FILE: InodeId = InodeId(9);

    fn entry(name: &str) -> Entry {
        (InodeId(1), name.as_bytes().to_vec())
    }

    fn target(names: &KnownNames, name: &str) -> Option<Option<InodeId>> {
        names.get(&entry(name)).map(|(target, _)| target)
    }

    #[tokio::test(start_paused = true)]
    async fn name_is_known_until_it_expires_or_is_forgotten() {
        let names = KnownNames::default();
        let expires = Instant::now() + Duration::from_secs(60);
        names.put(entry("there"), Some(FILE), expires);
        names.put(entry("absent"), None, expires);
        assert_eq!((target(&names, "there"), target(&names, "absent")), (Some(Some(FILE)), Some(None)));
        assert_eq!(target(&names, "other"), None);
        names.forget(&entry("there"));
        assert_eq!(target(&names, "there"), None);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(target(&names, "absent"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn name_under_change_is_not_known_before_the_last_change_has_ended() {
        let names = KnownNames::default();
        let expires = Instant::now() + Duration::from_secs(60);
        names.put(entry("x"), Some(FILE), expires);
        let changed = [entry("x")];
        names.begin_change(&changed);
        names.begin_change(&changed);
        assert_eq!(target(&names, "x"), None);
        names.end_change(&changed);
        names.put(entry("x"), Some(FILE), expires);
        assert_eq!(target(&names, "x"), None, "another change is under way");
        names.end_change(&changed);
        names.put(entry("x"), None, expires);
        assert_eq!(target(&names, "x"), Some(None));
    }
}
