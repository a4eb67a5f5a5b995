//! Access times: a read moves them as relatime says, without holding up the read.
//!
//! This room owns which inodes need no further look, and the touches under way. A touch is registered before the
//! read is answered, and attributes of that inode wait for it, so that a stat after a read on this mount sees it.

use super::attributes;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Attributes, Timestamp};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;
use tokio::time::Instant;

/// Inodes remembered as settled; beyond it all are forgotten and looked at again.
const MAX_SETTLED: usize = 65_536;
/// Touches under way; beyond it a read moves no access time.
const MAX_PENDING: usize = 1024;

/// What this mount knows about access times.
#[derive(Debug, Default)]
pub struct AccessTimes {
    settled: Mutex<HashSet<InodeId>>,
    pending: Mutex<BTreeMap<InodeId, watch::Receiver<()>>>,
    count: AtomicUsize,
}

/// A touch under way; dropping it ends it.
#[derive(Debug)]
pub struct Touch {
    times: Arc<AccessTimes>,
    inode: InodeId,
    _done: watch::Sender<()>,
}

impl Drop for Touch {
    fn drop(&mut self) {
        self.times.pending.lock().remove(&self.inode);
        self.times.count.fetch_sub(1, Ordering::Release);
    }
}

impl AccessTimes {
    /// A read of `inode` succeeded. True when somebody has to look whether its access time moves, with `begin`.
    pub fn read(&self, inode: InodeId) -> bool {
        let mut settled = self.settled.lock();
        if settled.len() >= MAX_SETTLED {
            settled.clear();
        }
        settled.insert(inode)
    }

    /// The inode changed, here or elsewhere: its next read is looked at again.
    pub fn changed(&self, inode: InodeId) {
        self.settled.lock().remove(&inode);
    }

    /// Registers a touch; `None` when one is under way or there are too many.
    pub fn begin(self: &Arc<Self>, inode: InodeId) -> Option<Touch> {
        let mut pending = self.pending.lock();
        if pending.len() >= MAX_PENDING || pending.contains_key(&inode) {
            return None;
        }
        let (done, waiters) = watch::channel(());
        pending.insert(inode, waiters);
        self.count.fetch_add(1, Ordering::Release);
        Some(Touch { times: Arc::clone(self), inode, _done: done })
    }

    /// Whether a touch of `inode` is under way.
    pub fn is_pending(&self, inode: InodeId) -> bool {
        self.count.load(Ordering::Acquire) != 0 && self.pending.lock().contains_key(&inode)
    }

    /// Waits until no touch of `inode` is under way, at most until `deadline`.
    pub async fn settle(&self, inode: InodeId, deadline: Instant) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let waiter = self.pending.lock().get(&inode).cloned();
        if let Some(mut waiter) = waiter {
            // The sender is dropped at the end, which is all that is waited for.
            let _ = tokio::time::timeout_at(deadline, waiter.changed()).await;
        }
    }

    /// Waits for all touches, at most until `deadline`.
    pub async fn settle_all(&self, deadline: Instant) {
        let inodes: Vec<InodeId> = self.pending.lock().keys().copied().collect();
        for inode in inodes {
            self.settle(inode, deadline).await;
        }
    }
}

/// Whether a read now moves the access time.
pub fn is_due(attributes: &Attributes, now: std::time::SystemTime) -> bool {
    let now: Timestamp = attributes::from_system_time(now);
    attributes::access_is_due(attributes, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(5);

    #[test]
    fn first_read_is_looked_at_and_the_next_after_a_change() {
        let times = AccessTimes::default();
        assert!(times.read(FILE));
        assert!(!times.read(FILE));
        times.changed(FILE);
        assert!(times.read(FILE));
    }

    #[tokio::test]
    async fn attributes_wait_for_a_touch_under_way() {
        let times = Arc::new(AccessTimes::default());
        let touch = times.begin(FILE).unwrap();
        assert!(times.begin(FILE).is_none());
        assert!(times.is_pending(FILE) && !times.is_pending(InodeId(6)));
        let far = Instant::now() + std::time::Duration::from_secs(60);
        let mut waiting = std::pin::pin!(times.settle(FILE, far));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(std::future::Future::poll(waiting.as_mut(), &mut context).is_pending());
        drop(touch);
        waiting.await;
        assert!(!times.is_pending(FILE));
        times.settle(FILE, far).await;
    }

    #[tokio::test]
    async fn waiting_for_a_stuck_touch_ends_at_the_deadline() {
        let times = Arc::new(AccessTimes::default());
        let _touch = times.begin(FILE).unwrap();
        times.settle(FILE, Instant::now()).await;
        assert!(times.is_pending(FILE));
    }
}
