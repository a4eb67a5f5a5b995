//! Deadlocks among waiters for record locks.
//!
//! This room owns the question whether a wait would close a circle. Who waits is the leader's soft state; who
//! holds is committed. Only record locks are looked at: flock waits for ever, as on a local file system.

use super::locks::LockTable;
use super::request::{Lock, LockFamily, LockOwner};
use crate::ids::InodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Who waits for which locks. An owner may wait more than once: it is a process, and it has threads.
#[derive(Clone, Debug, Default)]
pub struct WaitGraph {
    waits: BTreeMap<LockOwner, Vec<(InodeId, Lock)>>,
}

impl WaitGraph {
    /// The owner of `lock` waits for it.
    pub fn add(&mut self, inode: InodeId, lock: Lock) {
        self.waits.entry(lock.owner).or_default().push((inode, lock));
    }

    /// One such wait has ended.
    pub fn remove(&mut self, inode: InodeId, lock: &Lock) {
        let Some(waits) = self.waits.get_mut(&lock.owner) else { return };
        if let Some(at) = waits.iter().position(|(other, wait)| *other == inode && wait == lock) {
            waits.swap_remove(at);
        }
        if waits.is_empty() {
            self.waits.remove(&lock.owner);
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }
}

/// Whether a wait for `lock` on `inode` would close a circle: somebody who holds against it waits, over any number
/// of others, for its owner.
pub fn would_deadlock(held: &LockTable, waiting: &WaitGraph, inode: InodeId, lock: &Lock) -> bool {
    if lock.family != LockFamily::Record {
        return false;
    }
    let mut seen: BTreeSet<LockOwner> = BTreeSet::new();
    let mut open = held.blockers(inode, lock);
    while let Some(blocker) = open.pop() {
        if blocker == lock.owner {
            return true;
        }
        if !seen.insert(blocker) {
            continue;
        }
        for (inode, wait) in waiting.waits.get(&blocker).into_iter().flatten() {
            if wait.family == LockFamily::Record {
                open.extend(held.blockers(*inode, wait));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;
    use crate::meta::request::{LockMode, LockRange};

    fn lock(session: u64, at: u64) -> Lock {
        Lock {
            family: LockFamily::Record,
            owner: LockOwner { session: SessionId(session), owner: 1 },
            pid: 1,
            mode: LockMode::Write,
            range: LockRange { start: at, end: at },
        }
    }

    const FILE: InodeId = InodeId(5);

    fn three_holders() -> LockTable {
        let mut held = LockTable::default();
        for session in 1..=3 {
            held.set(FILE, &lock(session, session)).unwrap();
        }
        held
    }

    #[test]
    fn a_circle_of_three_is_found_and_a_chain_is_not() {
        let held = three_holders();
        let mut waiting = WaitGraph::default();
        assert!(!would_deadlock(&held, &waiting, FILE, &lock(1, 2)));
        waiting.add(FILE, lock(1, 2));
        assert!(!would_deadlock(&held, &waiting, FILE, &lock(2, 3)));
        waiting.add(FILE, lock(2, 3));
        assert!(would_deadlock(&held, &waiting, FILE, &lock(3, 1)));
        waiting.remove(FILE, &lock(1, 2));
        assert!(!would_deadlock(&held, &waiting, FILE, &lock(3, 1)));
        waiting.remove(FILE, &lock(2, 3));
        assert!(waiting.is_empty());
    }

    #[test]
    fn flock_never_counts_as_a_deadlock() {
        let flock = |session| Lock { family: LockFamily::Flock, ..lock(session, 0) };
        let mut held = LockTable::default();
        held.set(FILE, &flock(1)).unwrap();
        held.set(InodeId(6), &flock(2)).unwrap();
        let mut waiting = WaitGraph::default();
        waiting.add(InodeId(6), flock(1));
        assert!(!would_deadlock(&held, &waiting, FILE, &flock(2)));
    }

    #[test]
    fn a_circle_among_others_does_not_hang_the_search() {
        let held = three_holders();
        let mut waiting = WaitGraph::default();
        waiting.add(FILE, lock(1, 2));
        waiting.add(FILE, lock(2, 1));
        assert!(!would_deadlock(&held, &waiting, FILE, &lock(3, 1)));
    }
}
