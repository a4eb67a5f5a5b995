//! Which sessions may cache what, and until when: the leader's soft state of cache grants.
//!
//! This room owns the table and its rules; it never sends an invalidation and never reads a clock. A grant on
//! an inode is the right to cache its attributes, layout and xattrs, and, for a directory, its entries and
//! absences. The caller asks for the grant *before* it reads the state for the answer: a mutation that comes
//! between the two then finds the grant. The holder counts from before it sent its request.
//!
//! A grant is long, and good only while its holder and the master talk: a holder that has had no answer to anything it sent in the last
//! [`SILENCE_MS`] uses none, so that one that has vanished delays a change by no more than that. What a holder passes on to a cache that
//! it cannot empty at once (a kernel's) it passes on for [`PASSED_ON_MS`] at most. When the table is nearly full, grants are short.
//!
//! Grants are kept in two generations of each length: forgetting is dropping a map.

use crate::ids::{InodeId, SessionId};
use std::collections::BTreeMap;

/// What a grant lets a session cache of an inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cached {
    /// Its attributes, size, layout and xattrs.
    Attributes,
    /// Of a directory: its entries and absences.
    Entries,
}

type Key = (InodeId, Cached);

/// What the caches of other sessions may hold that a request makes stale.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Touched {
    /// Inodes whose attributes, layout or xattrs change.
    pub inodes: Vec<InodeId>,
    /// Names (directory, name) that change what they mean.
    pub entries: Vec<(InodeId, Vec<u8>)>,
}

impl Touched {
    /// Whether nothing that can be cached is touched.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.entries.is_empty()
    }

    /// The grants that are concerned, sorted, each once.
    fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<Key> = self.inodes.iter().map(|inode| (*inode, Cached::Attributes)).collect();
        keys.extend(self.entries.iter().map(|(parent, _)| (*parent, Cached::Entries)));
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// What one session has to drop before a mutation may be applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// Who holds the grants.
    pub session: SessionId,
    /// Inodes to drop.
    pub inodes: Vec<InodeId>,
    /// Names to drop.
    pub entries: Vec<(InodeId, Vec<u8>)>,
}

/// A session of which the master has heard nothing for so long uses no grant any more.
pub const SILENCE_MS: u64 = 2_000;
/// What a session has passed on of its grants is forgotten so long after it was passed on, whatever happens.
pub const PASSED_ON_MS: u64 = 1_000;

/// Times and bounds of a [`GrantTable`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantOptions {
    /// Length of a grant.
    pub long_ms: u32,
    /// Length of a grant when there are `long_capacity` of the others.
    pub short_ms: u32,
    /// How long an inode is not granted after two sessions contended for it.
    pub contended_ms: u32,
    /// Most long grants remembered.
    pub long_capacity: usize,
    /// Most short ones; beyond it none is given.
    pub short_capacity: usize,
}

impl Default for GrantOptions {
    fn default() -> Self {
        Self { long_ms: 60_000, short_ms: 1_000, contended_ms: 5_000, long_capacity: 500_000, short_capacity: 500_000 }
    }
}

type Generation = BTreeMap<(Key, SessionId), u64>;

/// Grants of one length. One lives for that length, so what two rotations ago was current is over.
#[derive(Clone, Debug, Default)]
struct Generations {
    length_ms: u64,
    current: Generation,
    previous: Generation,
    /// When `current` was begun.
    begun_ms: u64,
}

impl Generations {
    fn new(length_ms: u32) -> Self {
        Self { length_ms: length_ms.into(), ..Self::default() }
    }

    fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    /// Whether a new generation has begun.
    fn rotate(&mut self, now_ms: u64) -> bool {
        let age = now_ms.saturating_sub(self.begun_ms);
        if age < self.length_ms {
            return false;
        }
        let ended = std::mem::take(&mut self.current);
        self.previous = if age < 2 * self.length_ms { ended } else { Generation::new() };
        self.begun_ms = now_ms;
        true
    }

    /// Gives all of `items` if they find room.
    fn give(&mut self, session: SessionId, items: &[Key], now_ms: u64, capacity: usize) -> bool {
        let fresh = items.iter().filter(|key| !self.current.contains_key(&(**key, session))).count();
        if self.len() + fresh > capacity {
            return false;
        }
        for key in items {
            self.current.insert((*key, session), now_ms + self.length_ms);
        }
        true
    }

    fn maps(&mut self) -> [&mut Generation; 2] {
        [&mut self.current, &mut self.previous]
    }
}

/// The grants that may still be in force. Times are milliseconds of the caller's monotonic clock.
#[derive(Clone, Debug)]
pub struct GrantTable {
    options: GrantOptions,
    long: Generations,
    short: Generations,
    /// What has a mutation under way, and how many.
    blocked: BTreeMap<Key, u32>,
    /// What was contended for, and until when it is not granted.
    contended: BTreeMap<Key, u64>,
}

impl Default for GrantTable {
    fn default() -> Self {
        Self::new(GrantOptions::default())
    }
}

impl GrantTable {
    /// An empty table.
    pub fn new(options: GrantOptions) -> Self {
        let (long, short) = (Generations::new(options.long_ms), Generations::new(options.short_ms));
        Self { options, long, short, blocked: BTreeMap::new(), contended: BTreeMap::new() }
    }

    /// Grants and remembers; answers for how many ms, or `None` while a mutation of it is under way, it is
    /// contended, or the table is full.
    pub fn grant(&mut self, session: SessionId, inode: InodeId, what: Cached, now_ms: u64) -> Option<u32> {
        self.grant_all(session, &[(inode, what)], now_ms)
    }

    /// Grants what one answer shows (a lookup: entries of the directory and attributes of what is found): all or
    /// nothing.
    pub fn grant_all(&mut self, session: SessionId, items: &[(InodeId, Cached)], now_ms: u64) -> Option<u32> {
        self.rotate(now_ms);
        if items.iter().any(|key| self.blocked.contains_key(key) || self.is_contended(*key, now_ms)) {
            return None;
        }
        let GrantOptions { long_ms, short_ms, long_capacity, short_capacity, .. } = self.options;
        if self.long.give(session, items, now_ms, long_capacity) {
            Some(long_ms)
        } else if self.short.give(session, items, now_ms, short_capacity) {
            Some(short_ms)
        } else {
            None
        }
    }

    /// The grants of other sessions than `by` that stand against a mutation, by session. What is found is contended
    /// from now on.
    pub fn conflicts(&mut self, touched: &Touched, by: SessionId, now_ms: u64) -> Vec<Conflict> {
        let mut found: BTreeMap<SessionId, Conflict> = BTreeMap::new();
        for key in touched.keys() {
            let holders = self.holders(key, now_ms);
            let others: Vec<_> = holders.into_iter().filter(|(session, _)| *session != by).collect();
            if !others.is_empty() {
                self.mark_contended(key, now_ms);
            }
            for (session, _) in others {
                let none = Conflict { session, inodes: Vec::new(), entries: Vec::new() };
                let conflict = found.entry(session).or_insert(none);
                match key {
                    (inode, Cached::Attributes) => conflict.inodes.push(inode),
                    (inode, Cached::Entries) => {
                        let names = touched.entries.iter().filter(|(parent, _)| *parent == inode);
                        conflict.entries.extend(names.cloned());
                    }
                }
            }
        }
        found.into_values().collect()
    }

    /// Whether another session than `by` may cache the attributes of an inode.
    pub fn is_shared(&self, inode: InodeId, by: SessionId, now_ms: u64) -> bool {
        self.holders((inode, Cached::Attributes), now_ms).keys().any(|session| *session != by)
    }

    /// Stops granting what a mutation touches, until as many [`GrantTable::unblock`] were called.
    pub fn block(&mut self, touched: &Touched) {
        for key in touched.keys() {
            *self.blocked.entry(key).or_insert(0) += 1;
        }
    }

    /// The mutation is applied, or was given up.
    pub fn unblock(&mut self, touched: &Touched) {
        for key in touched.keys() {
            if let Some(count) = self.blocked.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.blocked.remove(&key);
                }
            }
        }
    }

    /// Until when a session's grants stand against a mutation as they are now; `None` when they do not.
    pub fn stands_until(&self, conflict: &Conflict, now_ms: u64) -> Option<u64> {
        let inodes = conflict.inodes.iter().map(|inode| (*inode, Cached::Attributes));
        let keys = inodes.chain(conflict.entries.iter().map(|(parent, _)| (*parent, Cached::Entries)));
        keys.filter_map(|key| self.holders(key, now_ms).get(&conflict.session).copied()).max()
    }

    /// A session has dropped what it was asked to. Its grant on the other entries of a directory stays.
    pub fn acknowledged(&mut self, conflict: &Conflict) {
        for inode in &conflict.inodes {
            let key = ((*inode, Cached::Attributes), conflict.session);
            for map in self.maps() {
                map.remove(&key);
            }
        }
    }

    /// A session uses none of the grants that it has now after `until_ms`.
    pub fn cut(&mut self, session: SessionId, until_ms: u64) {
        for map in self.maps() {
            for (_, until) in map.iter_mut().filter(|((_, holder), _)| *holder == session) {
                *until = until_ms.min(*until);
            }
        }
    }

    /// A session has ended and caches nothing.
    pub fn drop_session(&mut self, session: SessionId) {
        for map in self.maps() {
            map.retain(|(_, holder), _| *holder != session);
        }
    }

    /// Grants remembered, the expired ones of two generations included.
    pub fn len(&self) -> usize {
        self.long.len() + self.short.len()
    }

    /// Whether no grant is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn maps(&mut self) -> impl Iterator<Item = &mut Generation> {
        self.long.maps().into_iter().chain(self.short.maps())
    }

    fn is_contended(&self, key: Key, now_ms: u64) -> bool {
        self.contended.get(&key).is_some_and(|until| *until > now_ms)
    }

    fn mark_contended(&mut self, key: Key, now_ms: u64) {
        if self.contended.len() >= self.options.long_capacity {
            // Contention is advice: without a mark it is granted and recalled again.
            self.contended.retain(|_, until| *until > now_ms);
            if self.contended.len() >= self.options.long_capacity {
                return;
            }
        }
        self.contended.insert(key, now_ms + u64::from(self.options.contended_ms));
    }

    fn holders(&self, key: Key, now_ms: u64) -> BTreeMap<SessionId, u64> {
        let range = (key, SessionId(0))..=(key, SessionId(u64::MAX));
        let mut holders = BTreeMap::new();
        for map in [&self.long.previous, &self.long.current, &self.short.previous, &self.short.current] {
            for ((_, session), until) in map.range(range.clone()).filter(|(_, until)| **until > now_ms) {
                let known = holders.entry(*session).or_insert(*until);
                *known = *until.max(known);
            }
        }
        holders
    }

    fn rotate(&mut self, now_ms: u64) {
        self.long.rotate(now_ms);
        if self.short.rotate(now_ms) {
            self.contended.retain(|_, until| *until > now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cached::{Attributes, Entries};
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(10);
    const DIRECTORY: InodeId = InodeId(11);

    /// Long grants of a second, and no short ones.
    const OF_A_SECOND: GrantOptions =
        GrantOptions { long_ms: 1_000, short_ms: 10, contended_ms: 5_000, long_capacity: 1_000, short_capacity: 0 };

    fn table() -> GrantTable {
        GrantTable::new(OF_A_SECOND)
    }

    fn touch(inodes: &[InodeId], entries: &[(InodeId, &str)]) -> Touched {
        Touched {
            inodes: inodes.to_vec(),
            entries: entries.iter().map(|(parent, name)| (*parent, name.as_bytes().to_vec())).collect(),
        }
    }

    #[test]
    fn a_mutation_conflicts_with_the_grants_of_others_only() {
        let mut table = table();
        assert_eq!(table.grant(A, FILE, Attributes, 0), Some(1_000));
        assert_eq!(table.grant(B, FILE, Attributes, 400), Some(1_000));
        assert_eq!(table.grant(B, DIRECTORY, Entries, 400), Some(1_000));
        let found = table.conflicts(&touch(&[FILE], &[(DIRECTORY, "x")]), A, 500);
        let expected = Conflict { session: B, inodes: vec![FILE], entries: vec![(DIRECTORY, b"x".to_vec())] };
        assert_eq!(found, vec![expected]);
        assert_eq!(table.stands_until(&found[0], 500), Some(1_400));
    }

    #[test]
    fn a_grant_ends_by_itself_also_across_generations() {
        let mut table = table();
        table.grant(B, FILE, Attributes, 900);
        table.grant(B, DIRECTORY, Attributes, 1_100);
        assert_eq!(table.conflicts(&touch(&[FILE], &[]), A, 1_800).len(), 1);
        assert_eq!(table.conflicts(&touch(&[FILE], &[]), A, 1_900), vec![]);
        table.grant(A, InodeId(99), Attributes, 5_000);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn what_is_contended_is_not_granted_for_a_while() {
        let mut table = table();
        table.grant(B, FILE, Attributes, 0);
        table.conflicts(&touch(&[FILE], &[]), A, 10);
        assert_eq!(table.grant(A, FILE, Attributes, 5_009), None);
        assert_eq!(table.grant(A, FILE, Attributes, 5_010), Some(1_000));
    }

    #[test]
    fn a_mutation_under_way_stops_grants_until_the_last_one_ends() {
        let mut table = table();
        let touched = touch(&[FILE], &[(DIRECTORY, "x")]);
        table.block(&touched);
        table.block(&touched);
        table.unblock(&touched);
        assert_eq!(table.grant(A, FILE, Attributes, 0), None);
        assert_eq!(table.grant_all(A, &[(InodeId(12), Attributes), (DIRECTORY, Entries)], 0), None);
        assert!(table.is_empty());
        table.unblock(&touched);
        assert_eq!(table.grant_all(A, &[(FILE, Attributes), (DIRECTORY, Entries)], 0), Some(1_000));
    }

    #[test]
    fn a_full_table_gives_no_grant_until_old_ones_are_over() {
        let mut table = GrantTable::new(GrantOptions { long_capacity: 2, ..OF_A_SECOND });
        assert!(table.grant(A, InodeId(1), Attributes, 0).is_some());
        assert!(table.grant(A, InodeId(2), Attributes, 0).is_some());
        assert_eq!(table.grant(A, InodeId(3), Attributes, 0), None);
        assert!(table.grant(A, InodeId(2), Attributes, 1).is_some());
        assert!(table.grant(A, InodeId(3), Attributes, 2_100).is_some());
    }

    #[test]
    fn an_acknowledged_or_ended_session_conflicts_no_more() {
        let mut table = table();
        table.grant(B, FILE, Attributes, 0);
        let found = table.conflicts(&touch(&[FILE], &[]), A, 1);
        table.acknowledged(&found[0]);
        assert_eq!(table.conflicts(&touch(&[FILE], &[]), A, 2), vec![]);
        table.grant(B, DIRECTORY, Attributes, 3);
        table.drop_session(B);
        assert_eq!(table.conflicts(&touch(&[DIRECTORY], &[]), A, 4), vec![]);
    }

    #[test]
    fn dropping_one_entry_keeps_the_grant_on_the_others() {
        let mut table = table();
        table.grant_all(B, &[(DIRECTORY, Attributes), (DIRECTORY, Entries)], 0);
        let found = table.conflicts(&touch(&[DIRECTORY], &[(DIRECTORY, "x")]), A, 1);
        table.acknowledged(&found[0]);
        let later = table.conflicts(&touch(&[DIRECTORY], &[(DIRECTORY, "y")]), A, 2);
        assert_eq!(later.len(), 1);
        assert_eq!(later[0].inodes, vec![]);
        assert_eq!(later[0].entries, vec![(DIRECTORY, b"y".to_vec())]);
    }

    #[test]
    fn beside_many_long_grants_others_are_short() {
        let options = GrantOptions { long_capacity: 2, short_capacity: 1, ..GrantOptions::default() };
        let mut table = GrantTable::new(options);
        assert_eq!(table.grant_all(A, &[(FILE, Attributes), (DIRECTORY, Entries)], 0), Some(60_000));
        assert_eq!(table.grant(A, InodeId(1), Attributes, 0), Some(1_000));
        assert_eq!(table.grant(A, InodeId(2), Attributes, 0), None);
        assert_eq!(table.grant(A, InodeId(2), Attributes, 2_000), Some(1_000));
        assert_eq!(table.conflicts(&touch(&[FILE, InodeId(1), InodeId(2)], &[]), B, 2_000)[0].inodes.len(), 2);
    }

    #[test]
    fn a_session_whose_connection_has_ended_keeps_what_it_has_for_a_moment_only() {
        let mut table = table();
        table.grant_all(A, &[(FILE, Attributes), (DIRECTORY, Entries)], 0);
        table.grant(B, FILE, Attributes, 0);
        let of_a = &table.conflicts(&touch(&[FILE], &[(DIRECTORY, "x")]), B, 1)[0];
        let of_b = &table.conflicts(&touch(&[FILE], &[]), A, 1)[0];
        assert_eq!(table.stands_until(of_a, 1), Some(1_000));
        table.cut(A, 300);
        assert_eq!((table.stands_until(of_a, 1), table.stands_until(of_b, 1)), (Some(300), Some(1_000)));
        assert_eq!(table.stands_until(of_a, 300), None);
    }
}
