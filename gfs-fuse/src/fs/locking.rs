//! Setting, testing and giving up file locks.
//!
//! Locks are the master's; `locks` knows whose they are here. This file carries both together.

use super::locks::{self, CallerCall};
use super::{Call, Fs};
use crate::errno::{Errno, Result};
use gfs_client::{CallContext, ClientError, InodeId, Lock, LockFamily, LockMode, LockOwner, LockRange, Refusal};
use gfs_core::ids::SessionId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;

/// Looks at a caller that is not yet asleep, and the pause between them.
const LOOKS: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_micros(200);
/// Attempts of a lock that does not wait, while locks of closed files are being given up here.
const ATTEMPTS: u32 = 4;

/// A lock as the kernel asks for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockAsked {
    /// The open file.
    pub handle: u64,
    /// The kernel's owner token.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub kind: i32,
    /// Process, for F_GETLK.
    pub pid: u32,
}

/// A lock as the kernel is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockHeld {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub kind: i32,
    /// Process.
    pub pid: u32,
}

/// Locks of closed files on their way back to the master.
///
/// The kernel tells of the last close after close(2) has returned, so a lock asked right after it may meet the old one.
#[derive(Debug)]
pub(super) struct Releases {
    under_way: Mutex<BTreeMap<InodeId, u32>>,
    finished: watch::Sender<u64>,
}

impl Default for Releases {
    fn default() -> Self {
        Self { under_way: Mutex::default(), finished: watch::Sender::new(0) }
    }
}

impl Releases {
    pub(super) fn begin(&self, inode: InodeId) {
        *self.under_way.lock().entry(inode).or_default() += 1;
    }

    pub(super) fn finish(&self, inode: InodeId) {
        let mut under_way = self.under_way.lock();
        if let Some(count) = under_way.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&inode);
            }
        }
        drop(under_way);
        self.finished.send_modify(|count| *count += 1);
    }

    fn count(&self) -> u64 {
        *self.finished.borrow()
    }

    /// Whether a refused lock is worth another attempt: something was given up since `count`, or is being.
    async fn retry_after(&self, inode: InodeId, count: u64, call: &CallContext) -> bool {
        let mut finished = self.finished.subscribe();
        loop {
            let under_way = self.under_way.lock().contains_key(&inode);
            if !under_way {
                return self.count() != count;
            }
            let next = call.limit.run("waiting for a lock to be given up", finished.changed()).await;
            if !matches!(next, Ok(Ok(()))) {
                return false;
            }
        }
    }
}

impl Fs {
    /// Sets, waits for, or gives up a lock. A `family` that the transport does not tell is looked up.
    ///
    /// # Errors
    /// EAGAIN when it is held and `wait` is false; EINTR when the caller has a signal; EDEADLK; ENOLCK.
    pub async fn set_lock(
        &self,
        call: &Call,
        inode: InodeId,
        asked: LockAsked,
        wait: bool,
        family: Option<LockFamily>,
    ) -> Result<()> {
        let (mode, range) = parse(asked)?;
        let family = match family {
            None => family_of(call.caller.tid).await,
            told => told,
        };
        if mode == LockMode::Unlock {
            let families = family.map_or(vec![LockFamily::Record, LockFamily::Flock], |family| vec![family]);
            for family in families {
                self.client.set_lock(&call.context, inode, lock(asked, family, mode, range), false).await?;
            }
            return Ok(());
        }
        let family = family.unwrap_or(LockFamily::Record);
        self.locks.lock().note(inode, asked.owner, asked.handle, family);
        let lock = lock(asked, family, mode, range);
        for _ in 1..ATTEMPTS {
            let count = self.releases.count();
            match self.client.set_lock(&call.context, inode, lock, wait).await {
                Err(ClientError::Refused(Refusal::WouldBlock)) if !wait => {
                    if !self.releases.retry_after(inode, count, &call.context).await {
                        return Err(Errno(libc::EAGAIN));
                    }
                }
                other => return Ok(other?),
            }
        }
        Ok(self.client.set_lock(&call.context, inode, lock, wait).await?)
    }

    /// F_GETLK: what stands in the way, or F_UNLCK.
    ///
    /// # Errors
    /// EINVAL for a range that is none, and what the master says.
    pub async fn test_lock(&self, call: &Call, inode: InodeId, asked: LockAsked) -> Result<LockHeld> {
        let (mode, range) = parse(asked)?;
        let lock = lock(asked, LockFamily::Record, mode, range);
        let held = self.client.test_lock(&call.context, inode, lock).await?;
        Ok(held.map_or(LockHeld { start: asked.start, end: asked.end, kind: libc::F_UNLCK, pid: 0 }, |held| {
            let (start, end) = locks::range_to_kernel(held.range);
            LockHeld { start, end, kind: locks::mode_to_kernel(held.mode), pid: held.pid }
        }))
    }

    /// Gives up every lock of an owner on an inode.
    pub(super) async fn give_up(&self, inode: InodeId, owner: u64, family: Option<LockFamily>) -> Result<()> {
        // Not the caller's bounds: a killed process must lose its locks too.
        let context = self.context(self.options.call_timeout);
        Ok(self.client.release_locks(&context, inode, owner, family).await?)
    }
}

fn parse(asked: LockAsked) -> Result<(LockMode, LockRange)> {
    let mode = locks::mode_from_kernel(asked.kind).ok_or(Errno(libc::EINVAL))?;
    let range = locks::range_from_kernel(asked.start, asked.end).ok_or(Errno(libc::EINVAL))?;
    Ok((mode, range))
}

/// The session is the client's to fill in.
fn lock(asked: LockAsked, family: LockFamily, mode: LockMode, range: LockRange) -> Lock {
    let owner = LockOwner { session: SessionId(0), owner: asked.owner };
    Lock { family, owner, pid: asked.pid, mode, range }
}

/// Which family a caller that is blocked in a lock call means; `None` when that cannot be seen.
async fn family_of(tid: u32) -> Option<LockFamily> {
    if tid == 0 {
        return None;
    }
    for _ in 0..LOOKS {
        let text = std::fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
        match locks::parse_syscall(&text) {
            CallerCall::Locking(family) => return Some(family),
            CallerCall::Unknown => return None,
            CallerCall::Running => tokio::time::sleep(LOOK_PAUSE).await,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_client::{CallLimit, Credentials};

    const FILE: InodeId = InodeId(3);

    fn context(limit: Duration) -> CallContext {
        CallContext::new(Credentials::default(), CallLimit::within(limit))
    }

    #[tokio::test]
    async fn refused_lock_is_tried_again_after_a_release_only() {
        let releases = Releases::default();
        let long = context(Duration::from_secs(60));
        let count = releases.count();
        assert!(!releases.retry_after(FILE, count, &long).await, "nothing happened");
        releases.begin(FILE);
        releases.finish(FILE);
        assert!(releases.retry_after(FILE, count, &long).await, "one ended in between");
        let count = releases.count();
        releases.begin(FILE);
        let (retry, ()) = tokio::join!(releases.retry_after(FILE, count, &long), async { releases.finish(FILE) });
        assert!(retry, "one ended while we waited");
    }

    #[tokio::test]
    async fn waiting_for_a_release_ends_with_the_call() {
        let releases = Releases::default();
        releases.begin(FILE);
        assert!(!releases.retry_after(FILE, 0, &context(Duration::ZERO)).await);
    }

    #[tokio::test]
    async fn family_of_somebody_not_locking_is_unknown() {
        assert_eq!(family_of(0).await, None);
        assert_eq!(family_of(u32::MAX).await, None);
    }

    #[test]
    fn nonsense_is_invalid() {
        let asked = LockAsked { handle: 1, owner: 2, start: 0, end: 9, kind: libc::F_RDLCK, pid: 4 };
        assert_eq!(parse(asked), Ok((LockMode::Read, LockRange { start: 0, end: 9 })));
        assert_eq!(parse(LockAsked { kind: 9, ..asked }), Err(Errno(libc::EINVAL)));
        assert_eq!(parse(LockAsked { start: 10, ..asked }), Err(Errno(libc::EINVAL)));
    }
}
