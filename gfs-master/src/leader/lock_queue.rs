//! Waiting for locks: queues, cancellation, circles.
//!
//! This room owns who waits. Who holds is committed state. Acquisitions on one inode go through one at a time, so that
//! a lock which looks free when it is proposed is free when it is applied.

use gfs_core::ids::{InodeId, OperationId, SessionId};
use gfs_core::meta::deadlock::{WaitGraph, would_deadlock};
use gfs_core::meta::locks::LockTable;
use gfs_core::meta::request::Lock;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, OwnedMutexGuard};

type Turn = Arc<tokio::sync::Mutex<()>>;

#[derive(Default)]
struct Inner {
    graph: WaitGraph,
    /// In the order in which they came.
    waiting: BTreeMap<InodeId, Vec<Arc<Notify>>>,
    /// By call, with how many hold it.
    cancels: BTreeMap<OperationId, (Arc<Notify>, usize)>,
    turns: BTreeMap<InodeId, (Turn, usize)>,
}

/// All queues; clones share them.
#[derive(Clone, Default)]
pub struct LockQueues(Arc<Mutex<Inner>>);

/// The exclusive turn to acquire locks on one inode.
pub struct Acquiring {
    queues: LockQueues,
    inode: InodeId,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Drop for Acquiring {
    fn drop(&mut self) {
        self.queues.leave(self.inode);
    }
}

/// One who waits: leaves the queue when dropped.
pub struct Waiter {
    queues: LockQueues,
    inode: InodeId,
    lock: Lock,
    woken: Arc<Notify>,
}

impl Waiter {
    /// Returns when something on the inode was released since the wait began.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut inner = self.queues.0.lock();
        inner.graph.remove(self.inode, &self.lock);
        if let Some(waiting) = inner.waiting.get_mut(&self.inode) {
            waiting.retain(|other| !Arc::ptr_eq(other, &self.woken));
            if waiting.is_empty() {
                inner.waiting.remove(&self.inode);
            }
        }
    }
}

/// A call that can be cancelled: forgets itself when dropped.
pub struct Cancellable {
    queues: LockQueues,
    id: OperationId,
    cancelled: Arc<Notify>,
}

impl Cancellable {
    /// Returns when it was cancelled.
    pub async fn cancelled(&self) {
        self.cancelled.notified().await;
    }
}

impl Drop for Cancellable {
    fn drop(&mut self) {
        let mut inner = self.queues.0.lock();
        if let Some((_, users)) = inner.cancels.get_mut(&self.id) {
            *users -= 1;
            if *users == 0 {
                inner.cancels.remove(&self.id);
            }
        }
    }
}

impl LockQueues {
    /// Waits for the turn to acquire on `inode`; the turn ends when the answer is dropped.
    pub async fn acquire(&self, inode: InodeId) -> Acquiring {
        let turn = {
            let mut inner = self.0.lock();
            let (turn, users) = inner.turns.entry(inode).or_default();
            *users += 1;
            turn.clone()
        };
        let mut acquiring = Acquiring { queues: self.clone(), inode, _turn: None };
        acquiring._turn = Some(turn.lock_owned().await);
        acquiring
    }

    fn leave(&self, inode: InodeId) {
        let mut inner = self.0.lock();
        if let Some((_, users)) = inner.turns.get_mut(&inode) {
            *users -= 1;
            if *users == 0 {
                inner.turns.remove(&inode);
            }
        }
    }

    /// Queues up for `lock`; `None` when that would close a circle. Call it while the state is locked for reading, so
    /// that no release is missed.
    pub fn wait(&self, held: &LockTable, inode: InodeId, lock: Lock) -> Option<Waiter> {
        let mut inner = self.0.lock();
        if would_deadlock(held, &inner.graph, inode, &lock) {
            return None;
        }
        let woken = Arc::new(Notify::new());
        inner.graph.add(inode, lock);
        inner.waiting.entry(inode).or_default().push(woken.clone());
        Some(Waiter { queues: self.clone(), inode, lock, woken })
    }

    /// Something on `inode` was released.
    pub fn wake(&self, inode: InodeId) {
        for waiter in self.0.lock().waiting.get(&inode).into_iter().flatten() {
            waiter.notify_one();
        }
    }

    /// Something was released somewhere.
    pub fn wake_all(&self) {
        for waiter in self.0.lock().waiting.values().flatten() {
            waiter.notify_one();
        }
    }

    /// Makes a call known to [`LockQueues::cancel`]; all that are made for one call share the cancellation, which is
    /// kept until one of them has taken it.
    pub fn cancellable(&self, id: OperationId) -> Cancellable {
        let cancelled = {
            let mut inner = self.0.lock();
            let (cancelled, users) = inner.cancels.entry(id).or_default();
            *users += 1;
            cancelled.clone()
        };
        Cancellable { queues: self.clone(), id, cancelled }
    }

    /// Ends a wait, if it still waits.
    pub fn cancel(&self, id: OperationId) {
        if let Some((cancelled, _)) = self.0.lock().cancels.get(&id) {
            cancelled.notify_one();
        }
    }

    /// Ends all waits of a session.
    pub fn cancel_session(&self, session: SessionId) {
        let range = OperationId { session, operation: 0 }..=OperationId { session, operation: u64::MAX };
        for (_, (cancelled, _)) in self.0.lock().cancels.range(range) {
            cancelled.notify_one();
        }
    }

    #[cfg(test)]
    fn is_idle(&self) -> bool {
        let inner = self.0.lock();
        inner.graph.is_empty() && inner.waiting.is_empty() && inner.cancels.is_empty() && inner.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::meta::request::{LockFamily, LockMode, LockOwner, LockRange};

    const FILE: InodeId = InodeId(3);

    fn lock(session: u64, at: u64) -> Lock {
        Lock {
            family: LockFamily::Record,
            owner: LockOwner { session: SessionId(session), owner: 1 },
            pid: 1,
            mode: LockMode::Write,
            range: LockRange { start: at, end: at },
        }
    }

    #[tokio::test]
    async fn a_release_wakes_who_waits_and_nothing_is_left_behind() {
        let queues = LockQueues::default();
        let mut held = LockTable::default();
        held.set(FILE, &lock(1, 0)).unwrap();
        let waiter = queues.wait(&held, FILE, lock(2, 0)).unwrap();
        queues.wake(InodeId(4));
        queues.wake(FILE);
        waiter.woken().await;
        drop(waiter);
        assert!(queues.is_idle());
    }

    #[tokio::test]
    async fn a_circle_is_refused() {
        let queues = LockQueues::default();
        let mut held = LockTable::default();
        held.set(FILE, &lock(1, 1)).unwrap();
        held.set(FILE, &lock(2, 2)).unwrap();
        let waiter = queues.wait(&held, FILE, lock(1, 2)).unwrap();
        assert!(queues.wait(&held, FILE, lock(2, 1)).is_none());
        drop(waiter);
        assert!(queues.wait(&held, FILE, lock(2, 1)).is_some());
    }

    #[tokio::test]
    async fn only_the_named_wait_or_the_session_is_cancelled() {
        let queues = LockQueues::default();
        let id = OperationId { session: SessionId(1), operation: 5 };
        let early = queues.cancellable(id);
        let call = queues.cancellable(id);
        queues.cancel(OperationId { session: SessionId(1), operation: 6 });
        queues.cancel_session(SessionId(2));
        queues.cancel_session(SessionId(1));
        drop(early);
        call.cancelled().await;
        drop(call);
        assert!(queues.is_idle());
    }

    #[tokio::test]
    async fn acquisitions_on_one_inode_take_turns() {
        let queues = LockQueues::default();
        let first = queues.acquire(FILE).await;
        let second = tokio::spawn({
            let queues = queues.clone();
            async move { queues.acquire(FILE).await }
        });
        let other = queues.acquire(InodeId(4)).await;
        assert!(!second.is_finished());
        drop(first);
        drop(second.await.unwrap());
        drop(other);
        assert!(queues.is_idle());
    }
}
