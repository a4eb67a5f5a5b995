//! Which files this session holds locks on, so that their loss is told.

use crate::client::Client;
use crate::error::ClientError;
use crate::limit::CallContext;
use crate::session::Call;
use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::request::{Answer, Lock, LockFamily, LockMode, LockOwner, Query, Request};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Locks held, and files whose locks were lost without their owner knowing yet.
#[derive(Default)]
pub(crate) struct LockBook {
    state: Mutex<Book>,
    /// Files in `lost`: usually none, which costs a read of this.
    lost: AtomicUsize,
}

#[derive(Default)]
struct Book {
    held: BTreeMap<InodeId, BTreeSet<(LockFamily, u64)>>,
    lost: BTreeSet<InodeId>,
    /// Open files of which locks were lost, and the last session with which they were.
    past: BTreeMap<InodeId, u64>,
}

impl LockBook {
    fn hold(&self, inode: InodeId, lock: &Lock) {
        let mut book = self.state.lock();
        let key = (lock.family, lock.owner.owner);
        match lock.mode {
            LockMode::Read | LockMode::Write => {
                book.held.entry(inode).or_default().insert(key);
            }
            // A part of a range that is released leaves the rest: only a release of everything is counted.
            LockMode::Unlock if lock.range.start == 0 && lock.range.end >= i64::MAX as u64 => {
                book.release(inode, |k| *k == key)
            }
            LockMode::Unlock => {}
        }
    }

    fn release(&self, inode: InodeId, owner: u64, family: Option<LockFamily>) {
        self.state.lock().release(inode, |(f, o)| *o == owner && family.is_none_or(|family| family == *f));
    }

    /// The session is gone, and every lock with it.
    pub(crate) fn lose_all(&self, session: u64) {
        let mut book = self.state.lock();
        let files: Vec<InodeId> = std::mem::take(&mut book.held).into_keys().collect();
        book.past.extend(files.iter().map(|inode| (*inode, session)));
        book.lost.extend(files);
        self.lost.store(book.lost.len(), Ordering::Release);
    }

    /// Whether locks on a file were lost with this session or a later one.
    pub(crate) fn were_lost_since(&self, inode: InodeId, session: u64) -> bool {
        self.state.lock().past.get(&inode).is_some_and(|lost| *lost >= session)
    }

    /// What was written to a file is lost.
    pub(crate) fn lose(&self, inode: InodeId) {
        let mut book = self.state.lock();
        book.lost.insert(inode);
        self.lost.store(book.lost.len(), Ordering::Release);
    }

    /// Tells once that the locks on a file, or what was written to it, were lost.
    pub(crate) fn check(&self, inode: InodeId) -> Result<(), ClientError> {
        if self.lost.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let mut book = self.state.lock();
        let was_lost = book.lost.remove(&inode);
        self.lost.store(book.lost.len(), Ordering::Release);
        if was_lost { Err(ClientError::SessionLost { inode: Some(inode) }) } else { Ok(()) }
    }

    /// The last handle on a file was closed: nobody is left to tell.
    pub(crate) fn forget(&self, inode: InodeId) {
        let mut book = self.state.lock();
        book.held.remove(&inode);
        book.lost.remove(&inode);
        book.past.remove(&inode);
        self.lost.store(book.lost.len(), Ordering::Release);
    }
}

impl Book {
    fn release(&mut self, inode: InodeId, gone: impl Fn(&(LockFamily, u64)) -> bool) {
        if let Some(owners) = self.held.get_mut(&inode) {
            owners.retain(|key| !gone(key));
            if owners.is_empty() {
                self.held.remove(&inode);
            }
        }
    }
}

impl Client {
    /// Sets or releases a lock; the session in `lock.owner` is filled in. With `wait`, until it is free, the limit passes or the call is
    /// cancelled.
    ///
    /// # Errors
    /// `Refused(WouldBlock)` without `wait`; `Refused(Deadlock)`; `Interrupted` when cancelled, the lock is then not held.
    pub async fn set_lock(
        &self,
        context: &CallContext,
        inode: InodeId,
        lock: Lock,
        wait: bool,
    ) -> Result<(), ClientError> {
        self.inner.locks.check(inode)?;
        self.told(context, &[inode]).await?;
        let request: gfs_proto::v1::Request = (&Request::SetLock { inode, lock }).into();
        let credentials = (&context.credentials).into();
        let call = match lock.mode {
            LockMode::Read | LockMode::Write if wait => Call::WaitLock { credentials, request },
            _ => Call::Mutate { credentials, request },
        };
        let arrival = self.inner.session.call("lock", call, &context.limit).await?;
        Client::reply_of(arrival)?;
        self.inner.locks.hold(inode, &lock);
        Ok(())
    }

    /// The first lock that conflicts with `lock`, if any.
    ///
    /// # Errors
    /// Any of the session.
    pub async fn test_lock(
        &self,
        context: &CallContext,
        inode: InodeId,
        mut lock: Lock,
    ) -> Result<Option<Lock>, ClientError> {
        lock.owner.session = SessionId(self.inner.session.id());
        match self.query(context, Query::TestLock { inode, lock }).await?.answer {
            Answer::Lock(found) => Ok(found),
            _ => Err(ClientError::malformed("answer to a lock test")),
        }
    }

    /// Releases all locks of one owner on a file, of one family or of both.
    ///
    /// # Errors
    /// Any of the session.
    pub async fn release_locks(
        &self,
        context: &CallContext,
        inode: InodeId,
        owner: u64,
        family: Option<LockFamily>,
    ) -> Result<(), ClientError> {
        let owner = LockOwner { session: SessionId(self.inner.session.id()), owner };
        self.mutate(context, Request::ReleaseLocks { inode, owner, family }).await?;
        self.inner.locks.release(inode, owner.owner, family);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::meta::request::LockRange;

    const FILE: InodeId = InodeId(5);

    fn lock(owner: u64, mode: LockMode, end: u64) -> Lock {
        let owner = LockOwner { session: SessionId(1), owner };
        Lock { family: LockFamily::Record, owner, pid: 1, mode, range: LockRange { start: 0, end } }
    }

    #[test]
    fn a_lost_lock_is_told_once_for_each_file() {
        let book = LockBook::default();
        book.hold(FILE, &lock(1, LockMode::Write, 9));
        book.hold(InodeId(6), &lock(1, LockMode::Read, 9));
        book.hold(InodeId(6), &lock(1, LockMode::Unlock, u64::MAX));
        assert!(book.check(FILE).is_ok());
        book.lose_all(1);
        assert!(matches!(book.check(FILE), Err(ClientError::SessionLost { inode: Some(FILE) })));
        assert!(book.check(FILE).is_ok());
        assert!(book.check(InodeId(6)).is_ok());
    }

    #[test]
    fn a_partial_release_keeps_the_file_and_a_full_one_does_not() {
        let book = LockBook::default();
        book.hold(FILE, &lock(1, LockMode::Write, 9));
        book.hold(FILE, &lock(1, LockMode::Unlock, 4));
        assert_eq!(book.state.lock().held.len(), 1);
        book.release(FILE, 1, Some(LockFamily::Flock));
        assert_eq!(book.state.lock().held.len(), 1);
        book.release(FILE, 1, None);
        assert_eq!(book.state.lock().held.len(), 0);
    }
}
