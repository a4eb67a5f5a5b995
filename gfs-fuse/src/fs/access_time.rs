//! Access times: a read moves them as relatime says, without holding up the read or a stat after it.
//!
//! This room owns which inodes need no further look, and the touches under way. A touch is registered before the read is
//! answered and shown in attributes of this mount from then on; the master hears of it a moment later, of many in one message, so that
//! reading a tree costs a few records. Other mounts see it then: access times are the one attribute that is lazy.

use gfs_client::access_is_due;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Attributes, Timestamp};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Inodes remembered as settled; beyond it all are forgotten and looked at again.
const MAX_SETTLED: usize = 65_536;
/// Touches under way; beyond it a read moves no access time.
const MAX_PENDING: usize = 8192;
/// How long a touch waits at most before the master hears of it.
pub const DELAY: Duration = Duration::from_millis(200);

/// What this mount knows about access times.
#[derive(Debug, Default)]
pub struct AccessTimes {
    settled: Mutex<HashSet<InodeId>>,
    touches: Mutex<Touches>,
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Touches {
    pending: BTreeMap<InodeId, Pending>,
    /// Somebody will take those that are not sent.
    awaited: bool,
}

#[derive(Debug)]
struct Pending {
    /// When the file was read.
    at: Timestamp,
    /// The master is being told.
    sent: bool,
    /// Dropped with the touch, which is all that is waited for.
    done: watch::Sender<()>,
}

/// What became of a read that may move an access time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// The master hears of it with others.
    Joined,
    /// The same; somebody has to call `take` after `DELAY`.
    First,
    /// A touch is under way, or there are too many.
    Not,
}

/// Touches that the master is being told of; dropping it ends them.
#[derive(Debug)]
pub struct Told {
    times: Arc<AccessTimes>,
    /// Which.
    pub inodes: Vec<InodeId>,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.inodes.iter().for_each(|inode| self.times.remove(*inode, |touch| touch.sent));
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

    /// Registers a read at `at`.
    pub fn begin(&self, inode: InodeId, at: Timestamp) -> Begun {
        let mut touches = self.touches.lock();
        if touches.pending.len() >= MAX_PENDING || touches.pending.contains_key(&inode) {
            return Begun::Not;
        }
        touches.pending.insert(inode, Pending { at, sent: false, done: watch::Sender::new(()) });
        self.count.fetch_add(1, Ordering::Release);
        if std::mem::replace(&mut touches.awaited, true) { Begun::Joined } else { Begun::First }
    }

    /// The touches that the master is told of from now on: all that were not taken back.
    pub fn take(self: &Arc<Self>) -> Told {
        let mut touches = self.touches.lock();
        touches.awaited = false;
        let waiting = touches.pending.iter_mut().filter(|(_, touch)| !touch.sent);
        let inodes = waiting.map(|(inode, touch)| {
            touch.sent = true;
            *inode
        });
        let inodes = inodes.collect();
        drop(touches);
        Told { times: Arc::clone(self), inodes }
    }

    fn remove(&self, inode: InodeId, which: impl FnOnce(&Pending) -> bool) {
        let mut touches = self.touches.lock();
        if touches.pending.get(&inode).is_some_and(which) {
            touches.pending.remove(&inode);
            self.count.fetch_sub(1, Ordering::Release);
        }
    }

    /// Shows a touch under way in attributes. True when there is one.
    pub fn show(&self, attributes: &mut Attributes) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let at = self.touches.lock().pending.get(&attributes.inode).map(|touch| touch.at);
        let Some(at) = at else { return false };
        if access_is_due(attributes, at) {
            attributes.atime = attributes.atime.max(at);
        }
        true
    }

    /// Whether a touch of `inode` is under way.
    pub fn is_pending(&self, inode: InodeId) -> bool {
        self.count.load(Ordering::Acquire) != 0 && self.touches.lock().pending.contains_key(&inode)
    }

    /// Before somebody sets the access time: takes back a touch that the master has not been told of, and waits for one
    /// that is on its way, at most until `deadline`.
    pub async fn take_back(&self, inode: InodeId, deadline: Instant) {
        self.remove(inode, |touch| !touch.sent);
        self.settle(inode, deadline).await;
    }

    /// Waits until no touch of `inode` is under way, at most until `deadline`.
    async fn settle(&self, inode: InodeId, deadline: Instant) {
        let waiter = self.touches.lock().pending.get(&inode).map(|touch| touch.done.subscribe());
        if let Some(mut waiter) = waiter {
            let _ = tokio::time::timeout_at(deadline, waiter.changed()).await;
        }
    }

    /// Waits for all touches, at most until `deadline`.
    pub async fn settle_all(&self, deadline: Instant) {
        let inodes: Vec<InodeId> = self.touches.lock().pending.keys().copied().collect();
        for inode in inodes {
            self.settle(inode, deadline).await;
        }
    }
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
        let mut attributes = Attributes { inode: FILE, ..crate::fs::attributes::tests::sample() };
        (attributes.atime, attributes.mtime, attributes.ctime) = (Timestamp(at), Timestamp(mtime), Timestamp(mtime));
        attributes
    }

    #[test]
    fn a_touch_under_way_is_shown_where_relatime_moves_the_time() {
        let times = Arc::new(AccessTimes::default());
        assert_eq!([times.begin(FILE, Timestamp(50)), times.begin(FILE, Timestamp(51))], [Begun::First, Begun::Not]);
        let (mut due, mut not_due) = (read_at(10, 20), read_at(30, 20));
        assert!(times.show(&mut due) && times.show(&mut not_due));
        assert_eq!((due.atime, not_due.atime), (Timestamp(50), Timestamp(30)));
        drop(times.take());
        assert!(!times.show(&mut due));
    }

    #[test]
    fn touches_are_told_together_and_each_once() {
        let times = Arc::new(AccessTimes::default());
        let other = InodeId(6);
        assert_eq!(
            [times.begin(other, Timestamp(50)), times.begin(FILE, Timestamp(51))],
            [Begun::First, Begun::Joined]
        );
        let told = times.take();
        assert_eq!(told.inodes, [FILE, other]);
        let third = InodeId(7);
        assert_eq!(times.begin(third, Timestamp(52)), Begun::First, "nobody would tell of it");
        let later = times.take();
        assert_eq!(later.inodes, [third]);
        drop(told);
        assert!(!times.is_pending(FILE) && times.is_pending(third));
    }

    #[tokio::test]
    async fn a_touch_that_was_not_sent_is_taken_back() {
        let times = Arc::new(AccessTimes::default());
        times.begin(FILE, Timestamp(50));
        times.take_back(FILE, Instant::now()).await;
        assert_eq!(times.begin(FILE, Timestamp(60)), Begun::Joined);
        assert_eq!(times.take().inodes, [FILE]);
    }

    #[tokio::test]
    async fn a_touch_on_its_way_is_waited_for_until_the_deadline() {
        let times = Arc::new(AccessTimes::default());
        times.begin(FILE, Timestamp(50));
        let told = times.take();
        times.take_back(FILE, Instant::now()).await;
        assert!(times.show(&mut read_at(10, 20)), "it was taken back although it was sent");
        let far = Instant::now() + Duration::from_secs(60);
        let mut waiting = std::pin::pin!(times.take_back(FILE, far));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(std::future::Future::poll(waiting.as_mut(), &mut context).is_pending());
        drop(told);
        waiting.await;
        assert!(!times.show(&mut read_at(10, 20)));
    }
}
