//! flock(2) and fcntl(2) record locks: who holds which bytes of which file.
//!
//! This room owns the POSIX rules: ranges split, merge and change mode; the two families never conflict; an
//! owner never conflicts with itself. It never waits: the queue of waiters is the leader's soft state. A file
//! without locks costs nothing.

use super::records::{Held, Number, lock_key};
use super::request::{Lock, LockFamily, LockMode, LockOwner, LockRange, Refusal};
use crate::arena::Table;
use crate::ids::{InodeId, SessionId};

/// Most locks on one file.
const MAX_ON_INODE: usize = 16_384;
/// Most files on which one session holds locks.
const MAX_FILES_OF_SESSION: u64 = 262_144;

/// All locks that are held.
#[derive(Clone, Debug, Default)]
pub struct LockTable {
    /// Sorted by family, owner and range; never empty.
    held: Table<Held>,
    /// On which files a session holds any.
    files: Table<()>,
    /// How many files those are.
    counts: Table<Number>,
}

/// Whether two locks cannot be held at once.
pub fn conflicts(a: &Lock, b: &Lock) -> bool {
    let exclusive = a.mode == LockMode::Write || b.mode == LockMode::Write;
    let released = a.mode == LockMode::Unlock || b.mode == LockMode::Unlock;
    a.family == b.family
        && a.owner != b.owner
        && exclusive
        && !released
        && a.range.start <= b.range.end
        && b.range.start <= a.range.end
}

impl LockTable {
    /// The first lock held on `inode` that conflicts with `lock`.
    pub fn conflicting(&self, inode: InodeId, lock: &Lock) -> Option<Lock> {
        let lock = normal(lock);
        let held = self.on(inode);
        held.into_iter().filter(|other| conflicts(other, &lock)).min_by_key(|other| other.range)
    }

    /// Owners of locks on `inode` that conflict with `lock`.
    pub(crate) fn blockers(&self, inode: InodeId, lock: &Lock) -> Vec<LockOwner> {
        let lock = normal(lock);
        let held = self.on(inode);
        held.iter().filter(|other| conflicts(other, &lock)).map(|other| other.owner).collect()
    }

    /// Sets, changes or releases.
    ///
    /// # Errors
    /// `WouldBlock` on a conflict, `Invalid` for a range that ends before it starts, `NoLocks` at a bound. Nothing
    /// is changed then.
    pub fn set(&mut self, inode: InodeId, lock: &Lock) -> Result<(), Refusal> {
        let lock = normal(lock);
        if lock.range.start > lock.range.end {
            return Err(Refusal::Invalid);
        }
        let before = self.on(inode);
        if before.iter().any(|other| conflicts(other, &lock)) {
            return Err(Refusal::WouldBlock);
        }
        let after = replaced(&before, &lock);
        if lock.mode != LockMode::Unlock {
            let fresh = !self.files.contains((lock.owner.session.0, inode.0));
            let files = self.files_of(lock.owner.session);
            if after.len() > MAX_ON_INODE || (fresh && files >= MAX_FILES_OF_SESSION) {
                return Err(Refusal::NoLocks);
            }
        }
        self.store(inode, after, lock.owner.session);
        Ok(())
    }

    /// Releases all locks of an owner on a file, of one family or both; answers whether there were any.
    pub fn release_owner(&mut self, inode: InodeId, owner: LockOwner, family: Option<LockFamily>) -> bool {
        let matches = |lock: &Lock| lock.owner == owner && family.is_none_or(|family| family == lock.family);
        self.release(inode, owner.session, matches)
    }

    /// Releases all locks of a session; answers the files they were on.
    pub fn release_session(&mut self, session: SessionId) -> Vec<InodeId> {
        let inodes: Vec<InodeId> = self.files.range_of(session.0, 0).map(|(inode, ())| InodeId(inode)).collect();
        for inode in &inodes {
            self.release(*inode, session, |lock| lock.owner.session == session);
        }
        inodes
    }

    /// Forgets the locks of a file that is gone.
    pub fn release_inode(&mut self, inode: InodeId) {
        let held = self.on(inode);
        let mut sessions: Vec<SessionId> = held.iter().map(|lock| lock.owner.session).collect();
        sessions.sort_unstable();
        sessions.dedup();
        for session in sessions {
            self.release(inode, session, |lock| lock.owner.session == session);
        }
    }

    /// The locks held on a file, by family, owner and range.
    pub fn on(&self, inode: InodeId) -> Vec<Lock> {
        self.held.get((inode.0, 0)).unwrap_or_default().0
    }

    /// Every lock held, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (InodeId, Lock)> {
        let files = self.held.range((0, 0));
        files.flat_map(|((inode, _), held)| held.0.into_iter().map(move |lock| (InodeId(inode), lock)))
    }

    /// On how many files a session holds locks.
    pub fn files_of(&self, session: SessionId) -> u64 {
        self.counts.get((session.0, 0)).map_or(0, |count| count.0)
    }

    /// Number of files with locks.
    pub fn files(&self) -> u64 {
        self.held.len()
    }

    /// The table that a checkpoint holds; the rest is derived from it.
    pub(crate) fn held(&self) -> &Table<Held> {
        &self.held
    }

    /// Rebuilds the rest from that table.
    pub(crate) fn restore(held: Table<Held>) -> Self {
        let mut table = Self { held, ..Self::default() };
        let all: Vec<(InodeId, SessionId)> = table.iter().map(|(inode, lock)| (inode, lock.owner.session)).collect();
        for (inode, session) in all {
            if !table.files.insert((session.0, inode.0), &()) {
                let count = table.files_of(session) + 1;
                table.counts.insert((session.0, 0), &Number(count));
            }
        }
        table
    }

    fn release(&mut self, inode: InodeId, session: SessionId, matches: impl Fn(&Lock) -> bool) -> bool {
        let held = self.on(inode);
        let rest: Vec<Lock> = held.iter().filter(|lock| !matches(lock)).copied().collect();
        let found = rest.len() != held.len();
        if found {
            self.store(inode, rest, session);
        }
        found
    }

    /// Installs the locks of a file after a change by `session`.
    fn store(&mut self, inode: InodeId, locks: Vec<Lock>, session: SessionId) {
        let holds = locks.iter().any(|lock| lock.owner.session == session);
        if locks.is_empty() {
            self.held.remove((inode.0, 0));
        } else {
            self.held.insert((inode.0, 0), &Held(locks));
        }
        let (file, of_session) = ((session.0, inode.0), (session.0, 0));
        let count = self.files_of(session);
        if holds {
            if !self.files.insert(file, &()) {
                self.counts.insert(of_session, &Number(count + 1));
            }
        } else if self.files.remove(file) {
            if count <= 1 {
                self.counts.remove(of_session);
            } else {
                self.counts.insert(of_session, &Number(count - 1));
            }
        }
    }
}

/// flock covers the whole file, whatever range came with it.
fn normal(lock: &Lock) -> Lock {
    match lock.family {
        LockFamily::Flock => Lock { range: LockRange { start: 0, end: u64::MAX }, ..*lock },
        LockFamily::Record => *lock,
    }
}

/// The locks of a file after `lock` replaced what its owner held in that range.
fn replaced(before: &[Lock], lock: &Lock) -> Vec<Lock> {
    let mut after = Vec::with_capacity(before.len() + 2);
    let mut merged = *lock;
    for other in before {
        let same = other.family == lock.family && other.owner == lock.owner;
        if same && other.mode == lock.mode && touches(&other.range, &merged.range) {
            // One lock with the new one: `before` is sorted, so what joins is met in order.
            merged.range.start = merged.range.start.min(other.range.start);
            merged.range.end = merged.range.end.max(other.range.end);
        } else if same {
            cut(other, &lock.range, &mut after);
        } else {
            after.push(*other);
        }
    }
    if lock.mode != LockMode::Unlock {
        after.push(merged);
    }
    after.sort_unstable_by_key(lock_key);
    after
}

/// Whether two ranges overlap or are neighbours.
fn touches(a: &LockRange, b: &LockRange) -> bool {
    a.start <= b.end.saturating_add(1) && b.start <= a.end.saturating_add(1)
}

/// What is left of a lock outside of a range.
fn cut(lock: &Lock, range: &LockRange, out: &mut Vec<Lock>) {
    if lock.range.end < range.start || lock.range.start > range.end {
        out.push(*lock);
        return;
    }
    if lock.range.start < range.start {
        out.push(Lock { range: LockRange { start: lock.range.start, end: range.start - 1 }, ..*lock });
    }
    if lock.range.end > range.end {
        out.push(Lock { range: LockRange { start: range.end + 1, end: lock.range.end }, ..*lock });
    }
}

#[cfg(test)]
#[path = "locks_tests.rs"]
mod tests;
