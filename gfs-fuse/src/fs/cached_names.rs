//! Which names the kernel may have cached.
//!
//! To drop a name the kernel takes its directory's lock, which a create of our own may hold while it waits for another mount,
//! which may wait for us. So a name that the kernel cannot have cached is not dropped. This room owns that memory; it never
//! forgets a name before its time is over.

use gfs_core::ids::InodeId;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Names kept in one generation; beyond it every name counts as cached.
const MAX_NAMES: usize = 1 << 18;
/// Least life of a generation.
const PERIOD: Duration = Duration::from_secs(2);

/// Hashes of names in two generations; a name is remembered for at least one whole generation.
#[derive(Debug)]
pub struct CachedNames {
    hasher: RandomState,
    names: Mutex<Generations>,
}

#[derive(Debug)]
struct Generations {
    young: HashSet<u64>,
    old: HashSet<u64>,
    /// More names than are kept: all count, in this generation and in the old one.
    overflow: (bool, bool),
    /// The longest lifetime given out in this generation and the old one.
    longest: Duration,
    since: Instant,
}

impl Default for CachedNames {
    fn default() -> Self {
        let names = Generations {
            young: HashSet::new(),
            old: HashSet::new(),
            overflow: (false, false),
            longest: PERIOD,
            since: Instant::now(),
        };
        Self { hasher: RandomState::new(), names: Mutex::new(names) }
    }
}

impl CachedNames {
    /// The kernel is about to be told a name, or its absence, that it may keep for `ttl`.
    pub fn note(&self, directory: InodeId, name: &[u8], ttl: Duration) {
        if !ttl.is_zero() {
            self.note_at(self.hasher.hash_one((directory, name)), ttl, Instant::now());
        }
    }

    /// Whether the kernel may have the name.
    pub fn may_have(&self, directory: InodeId, name: &[u8]) -> bool {
        let hash = self.hasher.hash_one((directory, name));
        let names = self.names.lock();
        names.overflow.0 || names.overflow.1 || names.young.contains(&hash) || names.old.contains(&hash)
    }

    fn note_at(&self, hash: u64, ttl: Duration, now: Instant) {
        let mut names = self.names.lock();
        names.longest = names.longest.max(ttl);
        if now.saturating_duration_since(names.since) >= names.longest {
            names.old = std::mem::take(&mut names.young);
            names.overflow = (false, names.overflow.0);
            names.since = now;
        }
        if names.young.len() < MAX_NAMES {
            names.young.insert(hash);
        } else {
            names.overflow.0 = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: InodeId = InodeId(1);

    #[test]
    fn told_name_is_remembered_and_others_are_not() {
        let names = CachedNames::default();
        names.note(DIRECTORY, b"told", Duration::from_secs(1));
        names.note(DIRECTORY, b"not to be kept", Duration::ZERO);
        assert!(names.may_have(DIRECTORY, b"told"));
        assert!(!names.may_have(DIRECTORY, b"not to be kept"));
        assert!(!names.may_have(InodeId(2), b"told"));
    }

    #[test]
    fn name_outlives_its_time_and_is_forgotten_after_two_generations() {
        let names = CachedNames::default();
        let start = Instant::now();
        let hash = names.hasher.hash_one((DIRECTORY, &b"x"[..]));
        names.note_at(hash, Duration::from_secs(5), start);
        names.note_at(1, Duration::from_secs(1), start + Duration::from_secs(5));
        assert!(names.may_have(DIRECTORY, b"x"), "one generation later");
        names.note_at(2, Duration::from_secs(1), start + Duration::from_secs(10));
        assert!(!names.may_have(DIRECTORY, b"x"));
    }

    #[test]
    fn beyond_the_bound_every_name_counts() {
        let names = CachedNames::default();
        let now = Instant::now();
        for hash in 0..=MAX_NAMES as u64 {
            names.note_at(hash, Duration::from_secs(1), now);
        }
        assert!(names.may_have(DIRECTORY, b"never told"));
        names.note_at(1, Duration::from_secs(1), now + PERIOD);
        assert!(names.may_have(DIRECTORY, b"never told"), "those of the old generation may still be cached");
        names.note_at(1, Duration::from_secs(1), now + 2 * PERIOD);
        assert!(!names.may_have(DIRECTORY, b"never told"));
    }
}
