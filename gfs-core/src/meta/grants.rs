//! Which sessions may cache what, and until when: the leader's soft state of cache grants.
//!
//! This room owns the table and its rules; it never sends an invalidation and never reads a clock. A grant on
//! an inode is the right to cache its attributes, layout and xattrs, and, for a directory, its entries and
//! absences. The caller asks for the grant *before* it reads the state for the answer: a mutation that comes
//! between the two then finds the grant. The holder counts from before it sent its request.
//!
//! Grants are kept in two generations, each one grant time long: forgetting is dropping a map.

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
    /// When the last of the grants ends by itself, in ms of the caller's clock.
    pub until_ms: u64,
}

/// Times and bounds of a [`GrantTable`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantOptions {
    /// Length of a grant.
    pub grant_ms: u32,
    /// How long an inode is not granted after two sessions contended for it.
    pub contended_ms: u32,
    /// Most grants remembered; beyond it none is given.
    pub capacity: usize,
}

impl Default for GrantOptions {
    fn default() -> Self {
        Self { grant_ms: 1_000, contended_ms: 5_000, capacity: 2_000_000 }
    }
}

type Generation = BTreeMap<(Key, SessionId), u64>;

/// The grants that may still be in force. Times are milliseconds of the caller's monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct GrantTable {
    options: GrantOptions,
    current: Generation,
    previous: Generation,
    /// When `current` was begun.
    begun_ms: u64,
    /// What has a mutation under way, and how many.
    blocked: BTreeMap<Key, u32>,
    /// What was contended for, and until when it is not granted.
    contended: BTreeMap<Key, u64>,
}

impl GrantTable {
    /// An empty table.
    pub fn new(options: GrantOptions) -> Self {
        Self { options, ..Self::default() }
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
        let fresh = items.iter().filter(|key| !self.current.contains_key(&(**key, session))).count();
        if self.len() + fresh > self.options.capacity {
            return None;
        }
        for key in items {
            self.current.insert((*key, session), now_ms + u64::from(self.options.grant_ms));
        }
        Some(self.options.grant_ms)
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
            for (session, until_ms) in others {
                let none = Conflict { session, inodes: Vec::new(), entries: Vec::new(), until_ms };
                let conflict = found.entry(session).or_insert(none);
                conflict.until_ms = conflict.until_ms.max(until_ms);
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

    /// A session has dropped what it was asked to. Its grant on the other entries of a directory stays.
    pub fn acknowledged(&mut self, conflict: &Conflict) {
        for inode in &conflict.inodes {
            let key = ((*inode, Cached::Attributes), conflict.session);
            self.current.remove(&key);
            self.previous.remove(&key);
        }
    }

    /// A session has ended and caches nothing.
    pub fn drop_session(&mut self, session: SessionId) {
        self.current.retain(|(_, holder), _| *holder != session);
        self.previous.retain(|(_, holder), _| *holder != session);
    }

    /// Grants remembered, the expired ones of two generations included.
    pub fn len(&self) -> usize {
        self.current.len() + self.previous.len()
    }

    /// Whether no grant is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_contended(&self, key: Key, now_ms: u64) -> bool {
        self.contended.get(&key).is_some_and(|until| *until > now_ms)
    }

    fn mark_contended(&mut self, key: Key, now_ms: u64) {
        if self.contended.len() >= self.options.capacity {
            // Contention is advice: without a mark it is granted and recalled again.
            self.contended.retain(|_, until| *until > now_ms);
            if self.contended.len() >= self.options.capacity {
                return;
            }
        }
        self.contended.insert(key, now_ms + u64::from(self.options.contended_ms));
    }

    fn holders(&self, key: Key, now_ms: u64) -> BTreeMap<SessionId, u64> {
        let range = (key, SessionId(0))..=(key, SessionId(u64::MAX));
        let both = self.previous.range(range.clone()).chain(self.current.range(range));
        both.filter(|(_, until)| **until > now_ms).map(|((_, session), until)| (*session, *until)).collect()
    }

    /// A grant lives one grant time, so what two rotations ago was current is over.
    fn rotate(&mut self, now_ms: u64) {
        let age = now_ms.saturating_sub(self.begun_ms);
        let length = u64::from(self.options.grant_ms);
        if age < length {
            return;
        }
        let ended = std::mem::take(&mut self.current);
        self.previous = if age < 2 * length { ended } else { Generation::new() };
        self.begun_ms = now_ms;
        self.contended.retain(|_, until| *until > now_ms);
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

    fn touch(inodes: &[InodeId], entries: &[(InodeId, &str)]) -> Touched {
        Touched {
            inodes: inodes.to_vec(),
            entries: entries.iter().map(|(parent, name)| (*parent, name.as_bytes().to_vec())).collect(),
        }
    }

    #[test]
    fn a_mutation_conflicts_with_the_grants_of_others_only() {
        let mut table = GrantTable::default();
        assert_eq!(table.grant(A, FILE, Attributes, 0), Some(1_000));
        assert_eq!(table.grant(B, FILE, Attributes, 400), Some(1_000));
        assert_eq!(table.grant(B, DIRECTORY, Entries, 400), Some(1_000));
        let found = table.conflicts(&touch(&[FILE], &[(DIRECTORY, "x")]), A, 500);
        let expected =
            Conflict { session: B, inodes: vec![FILE], entries: vec![(DIRECTORY, b"x".to_vec())], until_ms: 1_400 };
        assert_eq!(found, vec![expected]);
    }

    #[test]
    fn a_grant_ends_by_itself_also_across_generations() {
        let mut table = GrantTable::default();
        table.grant(B, FILE, Attributes, 900);
        table.grant(B, DIRECTORY, Attributes, 1_100);
        assert_eq!(table.conflicts(&touch(&[FILE], &[]), A, 1_800).len(), 1);
        assert_eq!(table.conflicts(&touch(&[FILE], &[]), A, 1_900), vec![]);
        table.grant(A, InodeId(99), Attributes, 5_000);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn what_is_contended_is_not_granted_for_a_while() {
        let mut table = GrantTable::default();
        table.grant(B, FILE, Attributes, 0);
        table.conflicts(&touch(&[FILE], &[]), A, 10);
        assert_eq!(table.grant(A, FILE, Attributes, 5_009), None);
        assert_eq!(table.grant(A, FILE, Attributes, 5_010), Some(1_000));
    }

    #[test]
    fn a_mutation_under_way_stops_grants_until_the_last_one_ends() {
        let mut table = GrantTable::default();
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
        let mut table = GrantTable::new(GrantOptions { capacity: 2, ..GrantOptions::default() });
        assert!(table.grant(A, InodeId(1), Attributes, 0).is_some());
        assert!(table.grant(A, InodeId(2), Attributes, 0).is_some());
        assert_eq!(table.grant(A, InodeId(3), Attributes, 0), None);
        assert!(table.grant(A, InodeId(2), Attributes, 1).is_some());
        assert!(table.grant(A, InodeId(3), Attributes, 2_100).is_some());
    }

    #[test]
    fn an_acknowledged_or_ended_session_conflicts_no_more() {
        let mut table = GrantTable::default();
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
        let mut table = GrantTable::default();
        table.grant_all(B, &[(DIRECTORY, Attributes), (DIRECTORY, Entries)], 0);
        let found = table.conflicts(&touch(&[DIRECTORY], &[(DIRECTORY, "x")]), A, 1);
        table.acknowledged(&found[0]);
        let later = table.conflicts(&touch(&[DIRECTORY], &[(DIRECTORY, "y")]), A, 2);
        assert_eq!(later.len(), 1);
        assert_eq!(later[0].inodes, vec![]);
        assert_eq!(later[0].entries, vec![(DIRECTORY, b"y".to_vec())]);
    }
}
