//! Access times: a read moves them as relatime says, without holding up the read or a stat after it.
//!
//! This room owns which inodes need no further look, and the touches under way. A touch is registered before the read is
//! answered and shown in attributes of this mount from then on; the master hears of it a moment later, so that many
//! reads and writes of one file cost a few records. Other mounts see it then: access times are the one attribute that is lazy.

use super::attributes;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Attributes, Timestamp};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Inodes remembered as settled; beyond it all are forgotten and looked at again.
const MAX_SETTLED: usize = 65_536;
/// Touches under way; beyond it a read moves no access time.
const MAX_PENDING: usize = 1024;
/// How long a touch waits before the master hears of it.
pub const DELAY: Duration = Duration::from_millis(200);

/// What this mount knows about access times.
#[derive(Debug, Default)]
pub struct AccessTimes {
    settled: Mutex<HashSet<InodeId>>,
    pending: Mutex<BTreeMap<InodeId, Pending>>,
    count: AtomicUsize,
    next: AtomicU64,
}

#[derive(Debug)]
struct Pending {
    number: u64,
    /// When the file was read.
    at: Timestamp,
    /// The master is being told.
    sent: bool,
    done: watch::Receiver<()>,
}

/// A touch under way; dropping it ends it.
#[derive(Debug)]
pub struct Touch {
    times: Arc<AccessTimes>,
    inode: InodeId,
    number: u64,
    _done: watch::Sender<()>,
}

impl Touch {
    /// The master is told from now on. False when the touch was taken back meanwhile.
    pub fn send(&self) -> bool {
        let mut pending = self.times.pending.lock();
        let mine = pending.get_mut(&self.inode).filter(|touch| touch.number == self.number);
        mine.map(|touch| touch.sent = true).is_some()
    }
}

impl Drop for Touch {
    fn drop(&mut self) {
        self.times.remove(self.inode, |touch| touch.number == self.number);
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

    /// Registers a read at `at`; `None` when a touch is under way or there are too many.
    pub fn begin(self: &Arc<Self>, inode: InodeId, at: Timestamp) -> Option<Touch> {
        let mut pending = self.pending.lock();
        if pending.len() >= MAX_PENDING || pending.contains_key(&inode) {
            return None;
        }
        let (done, waiter) = watch::channel(());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        pending.insert(inode, Pending { number, at, sent: false, done: waiter });
        self.count.fetch_add(1, Ordering::Release);
        Some(Touch { times: Arc::clone(self), inode, number, _done: done })
    }

    fn remove(&self, inode: InodeId, which: impl FnOnce(&Pending) -> bool) {
        let mut pending = self.pending.lock();
        if pending.get(&inode).is_some_and(which) {
            pending.remove(&inode);
            self.count.fetch_sub(1, Ordering::Release);
        }
    }

    /// Shows a touch under way in attributes. True when there is one.
    pub fn show(&self, attributes: &mut Attributes) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let Some(at) = self.pending.lock().get(&attributes.inode).map(|touch| touch.at) else { return false };
        if attributes::access_is_due(attributes, at) {
            attributes.atime = attributes.atime.max(at);
        }
        true
    }

    /// Whether a touch of `inode` is under way.
    pub fn is_pending(&self, inode: InodeId) -> bool {
        self.count.load(Ordering::Acquire) != 0 && self.pending.lock().contains_key(&inode)
    }

    /// Before somebody sets the access time: takes back a touch that the master has not been told of, and waits for one
    /// that is on its way, at most until `deadline`.
    pub async fn take_back(&self, inode: InodeId, deadline: Instant) {
        self.remove(inode, |touch| !touch.sent);
        self.settle(inode, deadline).await;
    }

    /// Waits until no touch of `inode` is under way, at most until `deadline`.
    async fn settle(&self, inode: InodeId, deadline: Instant) {
        let waiter = self.pending.lock().get(&inode).map(|touch| touch.done.clone());
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

    fn read_at(at: i64, mtime: i64) -> Attributes {
        let mut attributes = Attributes { inode: FILE, ..attributes::tests::sample() };
        (attributes.atime, attributes.mtime, attributes.ctime) = (Timestamp(at), Timestamp(mtime), Timestamp(mtime));
        attributes
    }

    #[test]
    fn a_touch_under_way_is_shown_where_relatime_moves_the_time() {
        let times = Arc::new(AccessTimes::default());
        let touch = times.begin(FILE, Timestamp(50)).unwrap();
        assert!(times.begin(FILE, Timestamp(51)).is_none());
        let (mut due, mut not_due) = (read_at(10, 20), read_at(30, 20));
        assert!(times.show(&mut due) && times.show(&mut not_due));
        assert_eq!((due.atime, not_due.atime), (Timestamp(50), Timestamp(30)));
        drop(touch);
        assert!(!times.show(&mut due));
    }

    #[tokio::test]
    async fn a_touch_that_was_not_sent_is_taken_back() {
        let times = Arc::new(AccessTimes::default());
        let first = times.begin(FILE, Timestamp(50)).unwrap();
        times.take_back(FILE, Instant::now()).await;
        assert!(!first.send());
        // A new one is not ended by the end of the old one.
        let second = times.begin(FILE, Timestamp(60)).unwrap();
        drop(first);
        assert!(second.send());
    }

    #[tokio::test]
    async fn a_touch_on_its_way_is_waited_for_until_the_deadline() {
        let times = Arc::new(AccessTimes::default());
        let touch = times.begin(FILE, Timestamp(50)).unwrap();
        assert!(touch.send());
        times.take_back(FILE, Instant::now()).await;
        assert!(times.show(&mut read_at(10, 20)), "it was taken back although it was sent");
        let far = Instant::now() + Duration::from_secs(60);
        let mut waiting = std::pin::pin!(times.take_back(FILE, far));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(std::future::Future::poll(waiting.as_mut(), &mut context).is_pending());
        drop(touch);
        waiting.await;
        assert!(!times.show(&mut read_at(10, 20)));
    }
}
