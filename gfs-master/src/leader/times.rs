//! Times of writes that changed nothing else: shown at once, committed a little later.
//!
//! This room owns the times that are not committed yet. A commit of times never runs beside another change of the same
//! inode, so that a time never goes back.

use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::request::{Answer, AttributeChanges, Attributes, Reply, SetTime, Timestamp};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o010;

#[derive(Clone, Copy)]
struct Soft {
    session: SessionId,
    time: Timestamp,
    since: Instant,
    clear_suid: bool,
    /// Mutations of the inode under way.
    holds: u32,
    /// Its commit is under way.
    flushing: bool,
    /// What was written up to here a mutation has covered.
    covered: Timestamp,
}

impl Soft {
    fn take(&mut self, inode: InodeId) -> Option<Flush> {
        if self.holds != 0 || self.flushing {
            return None;
        }
        self.flushing = true;
        Some(Flush { inode, time: self.time, clear_suid: self.clear_suid })
    }
}

#[derive(Default)]
struct Inner {
    soft: BTreeMap<InodeId, Soft>,
}

/// All uncommitted times; clones share them.
#[derive(Clone, Default)]
pub struct Times {
    inner: Arc<Mutex<Inner>>,
    flushed: Arc<Notify>,
}

/// A mutation of an inode under way: its times are not committed beside it.
pub struct Hold {
    times: Times,
    inode: InodeId,
    done: bool,
}

impl Hold {
    /// The mutation was applied and set the times itself: what was written before `at` is covered by it.
    pub fn superseded(mut self, at: Timestamp) {
        self.done = true;
        self.times.release(self.inode, Some(at));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.done {
            self.times.release(self.inode, None);
        }
    }
}

/// Times to commit; tell [`Times::flushed`] what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Of which inode.
    pub inode: InodeId,
    /// The time.
    pub time: Timestamp,
    /// Whether set-id bits go.
    pub clear_suid: bool,
}

impl Flush {
    /// The change to commit.
    pub fn changes(&self) -> AttributeChanges {
        AttributeChanges {
            mtime: Some(SetTime::At(self.time)),
            ctime: Some(self.time),
            clear_suid: self.clear_suid,
            ..AttributeChanges::default()
        }
    }
}

impl Times {
    /// A session wrote at `time`.
    pub fn touch(&self, inode: InodeId, session: SessionId, time: Timestamp, clear_suid: bool) {
        let mut inner = self.inner.lock();
        let fresh = Soft {
            session,
            time,
            since: Instant::now(),
            clear_suid: false,
            holds: 0,
            flushing: false,
            covered: Timestamp(i64::MIN),
        };
        let soft = inner.soft.entry(inode).or_insert(fresh);
        soft.session = session;
        soft.time = soft.time.max(time);
        soft.clear_suid |= clear_suid;
    }

    /// Shows the times in attributes.
    pub fn show(&self, attributes: &mut Attributes) {
        let inner = self.inner.lock();
        if let Some(soft) = inner.soft.get(&attributes.inode) {
            attributes.mtime = attributes.mtime.max(soft.time);
            attributes.ctime = attributes.ctime.max(soft.time);
            if soft.clear_suid {
                attributes.mode &= !S_ISUID;
                if attributes.mode & S_IXGRP != 0 {
                    attributes.mode &= !S_ISGID;
                }
            }
        }
    }

    /// Shows the times in an answer.
    pub fn show_answer(&self, answer: &mut Answer) {
        if self.inner.lock().soft.is_empty() {
            return;
        }
        answer.shown_mut().for_each(|attributes| self.show(attributes));
    }

    /// Shows the times in a reply.
    pub fn show_reply(&self, reply: &mut Reply) {
        if let Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. } = reply {
            self.show(attributes);
        }
    }

    /// A mutation of `inode` begins. Waits while its times are being committed. `None` when there is nothing to hold.
    pub async fn hold(&self, inode: InodeId) -> Option<Hold> {
        loop {
            let flushed = self.flushed.notified();
            tokio::pin!(flushed);
            flushed.as_mut().enable();
            {
                let mut inner = self.inner.lock();
                let soft = inner.soft.get_mut(&inode)?;
                if !soft.flushing {
                    soft.holds += 1;
                    return Some(Hold { times: self.clone(), inode, done: false });
                }
            }
            flushed.await;
        }
    }

    /// Whether set-id bits of an inode are to be cleared with its times.
    pub fn clears_suid(&self, inode: InodeId) -> bool {
        self.inner.lock().soft.get(&inode).is_some_and(|soft| soft.clear_suid)
    }

    fn release(&self, inode: InodeId, covered: Option<Timestamp>) {
        let mut inner = self.inner.lock();
        let Some(soft) = inner.soft.get_mut(&inode) else { return };
        soft.holds = soft.holds.saturating_sub(1);
        if let Some(at) = covered {
            soft.covered = soft.covered.max(at);
        }
        if soft.holds == 0 && soft.time <= soft.covered {
            inner.soft.remove(&inode);
        }
    }

    /// Times older than `age`, or all of one session, that can be committed now.
    pub fn take(&self, age: Duration, session: Option<SessionId>) -> Vec<Flush> {
        let mut inner = self.inner.lock();
        let due = inner.soft.iter_mut().filter(|(_, soft)| {
            let asked = session.is_none_or(|session| session == soft.session);
            asked && soft.since.elapsed() >= age
        });
        due.filter_map(|(inode, soft)| soft.take(*inode)).collect()
    }

    /// Those of one inode, if they can be committed now.
    pub fn take_one(&self, inode: InodeId) -> Option<Flush> {
        self.inner.lock().soft.get_mut(&inode)?.take(inode)
    }

    /// A commit ended; `gone` when it need not be tried again. Newer times stay.
    pub fn flushed(&self, flush: Flush, gone: bool) {
        let mut inner = self.inner.lock();
        if let Some(soft) = inner.soft.get_mut(&flush.inode) {
            soft.flushing = false;
            if gone && soft.time <= flush.time && soft.holds == 0 {
                inner.soft.remove(&flush.inode);
            } else {
                soft.since = Instant::now();
            }
        }
        drop(inner);
        self.flushed.notify_waiters();
    }

    /// How many inodes have uncommitted times.
    pub fn len(&self) -> usize {
        self.inner.lock().soft.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::meta::request::FileType;

    const FILE: InodeId = InodeId(8);
    const A: SessionId = SessionId(1);

    fn attributes() -> Attributes {
        Attributes {
            inode: FILE,
            file_type: FileType::File,
            mode: 0o6755,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: Timestamp(1),
            mtime: Timestamp(1),
            ctime: Timestamp(1),
            btime: Timestamp(1),
            replicas: 3,
            has_acl: false,
            has_xattrs: false,
        }
    }

    #[test]
    fn times_are_shown_before_they_are_committed() {
        let times = Times::default();
        times.touch(FILE, A, Timestamp(50), true);
        times.touch(FILE, A, Timestamp(40), false);
        let mut shown = attributes();
        times.show(&mut shown);
        assert_eq!((shown.mtime, shown.ctime, shown.atime), (Timestamp(50), Timestamp(50), Timestamp(1)));
        assert_eq!(shown.mode, 0o755);
        let flush = times.take(Duration::ZERO, Some(A));
        assert_eq!(flush, vec![Flush { inode: FILE, time: Timestamp(50), clear_suid: true }]);
        assert_eq!(times.take(Duration::ZERO, None), vec![]);
        times.touch(FILE, A, Timestamp(60), false);
        times.flushed(flush[0], true);
        assert_eq!(times.take(Duration::ZERO, None)[0].time, Timestamp(60));
    }

    #[tokio::test]
    async fn a_mutation_and_a_commit_of_times_exclude_each_other() {
        let times = Times::default();
        assert!(times.hold(FILE).await.is_none());
        times.touch(FILE, A, Timestamp(50), false);
        let hold = times.hold(FILE).await.unwrap();
        assert_eq!(times.take(Duration::ZERO, None), vec![]);
        drop(hold);
        let flush = times.take(Duration::ZERO, None);
        let waiting = tokio::spawn({
            let times = times.clone();
            async move { times.hold(FILE).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        times.flushed(flush[0], false);
        let hold = waiting.await.unwrap().unwrap();
        hold.superseded(Timestamp(50));
        assert!(times.is_empty());
    }
}
