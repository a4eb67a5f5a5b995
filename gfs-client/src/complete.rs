//! Directories of which every name is known, because this session made them a moment ago and nobody else came in since: an absent name there
//! needs no question, and a program that unpacks a tree asks for many.
//!
//! A directory counts only under an unbroken chain of grants on its entries. Names are never forgotten, not even by an unlink: a name too
//! many costs a question, one too few would be a lie. This room never talks to the master.

use gfs_core::ids::InodeId;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use tokio::time::Instant;

/// Directories that are known at a time.
const MAX_DIRECTORIES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Names of one directory; beyond them it is forgotten.
const MAX_NAMES: usize = 16_384;

struct Known {
    /// Hashes of the names; two that collide cost a question.
    names: HashSet<u64>,
    expires: Instant,
}

/// The known directories.
pub(crate) struct CompleteDirectories {
    hasher: RandomState,
    known: Mutex<LruCache<InodeId, Known>>,
}

impl Default for CompleteDirectories {
    fn default() -> Self {
        Self { hasher: RandomState::new(), known: Mutex::new(LruCache::new(MAX_DIRECTORIES)) }
    }
}

impl CompleteDirectories {
    /// This session made a directory; nobody else gets in before `expires` without a recall.
    pub(crate) fn made(&self, directory: InodeId, expires: Instant) {
        if expires > Instant::now() {
            self.known.lock().put(directory, Known { names: HashSet::new(), expires });
        }
    }

    /// This session is about to change a name, or has: from here on it is asked for.
    pub(crate) fn name(&self, directory: InodeId, name: &[u8]) {
        let mut known = self.known.lock();
        let Some(of) = known.get_mut(&directory) else { return };
        of.names.insert(self.hasher.hash_one(name));
        if of.names.len() > MAX_NAMES {
            known.pop(&directory);
        }
    }

    /// An answer renewed the grant on a directory's entries. One that has run out stays so: somebody may have come in.
    pub(crate) fn renew(&self, directory: InodeId, expires: Instant) {
        let mut known = self.known.lock();
        let Some(of) = known.get_mut(&directory) else { return };
        if of.expires > Instant::now() {
            of.expires = of.expires.max(expires);
        } else {
            known.pop(&directory);
        }
    }

    /// Until when a name is known to be absent, if it is.
    pub(crate) fn absent(&self, directory: InodeId, name: &[u8]) -> Option<Instant> {
        let mut known = self.known.lock();
        let of = known.get(&directory).filter(|of| of.expires > Instant::now())?;
        (!of.names.contains(&self.hasher.hash_one(name))).then_some(of.expires)
    }

    /// Somebody else comes in.
    pub(crate) fn forget(&self, directory: InodeId) {
        self.known.lock().pop(&directory);
    }

    pub(crate) fn clear(&self) {
        self.known.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const DIRECTORY: InodeId = InodeId(7);
    const SECOND: Duration = Duration::from_secs(1);

    fn fresh() -> CompleteDirectories {
        let complete = CompleteDirectories::default();
        complete.made(DIRECTORY, Instant::now() + SECOND);
        complete
    }

    #[tokio::test(start_paused = true)]
    async fn only_names_that_were_never_touched_are_absent() {
        let complete = fresh();
        assert!(complete.absent(DIRECTORY, b"a").is_some());
        complete.name(DIRECTORY, b"a");
        assert_eq!(complete.absent(DIRECTORY, b"a"), None);
        assert!(complete.absent(DIRECTORY, b"b").is_some());
        assert_eq!(complete.absent(InodeId(8), b"b"), None, "a directory that nobody here made");
        complete.forget(DIRECTORY);
        assert_eq!(complete.absent(DIRECTORY, b"b"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_that_ran_out_is_not_renewed() {
        let complete = fresh();
        tokio::time::advance(SECOND / 2).await;
        complete.renew(DIRECTORY, Instant::now() + SECOND);
        tokio::time::advance(SECOND * 3 / 4).await;
        assert!(complete.absent(DIRECTORY, b"b").is_some());
        tokio::time::advance(SECOND).await;
        complete.renew(DIRECTORY, Instant::now() + SECOND);
        assert_eq!(complete.absent(DIRECTORY, b"b"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_directory_is_forgotten() {
        let complete = fresh();
        for n in 0..=MAX_NAMES as u64 {
            complete.name(DIRECTORY, &n.to_le_bytes());
        }
        assert_eq!(complete.absent(DIRECTORY, b"b"), None);
    }
}
