//! Writes that change nothing but times: when those are shown, and when they are committed.
//!
//! This room owns the order of these steps. What is not committed yet is kept in `times`, and by the client that was told of it: after a
//! restart it is shown again. Whatever changes an inode otherwise commits them first, or sets the times itself. So an inode whose
//! ctime is not before a shown time needs it no more.

use super::times::Flush;
use super::{Leader, ServeError};
use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::grants::Touched;
use gfs_core::meta::request::{FileType, Refusal, Reply, Request, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// Commits of times under way at a time; well below the replies that the state keeps for a session.
const COMMITS_AT_A_TIME: usize = 256;

/// What a session was told that is shown of a file.
pub struct Shown {
    /// The file.
    pub inode: InodeId,
    /// Its times.
    pub time: Timestamp,
    /// When set-id bits were last cleared.
    pub cleared: Timestamp,
}

impl Leader {
    /// A session has written in place. Others drop the attributes that they cache before the new times are shown to anybody.
    /// File capabilities do not survive it: with them the write is committed at once. Answers the time that is shown and not committed.
    ///
    /// # Errors
    /// The log's.
    pub async fn written_in_place(
        self: &Arc<Self>,
        session: SessionId,
        inode: InodeId,
        clear_suid: bool,
    ) -> Result<(Reply, Option<Timestamp>), ServeError> {
        if self.machine.state().attributes(inode).is_none() {
            return Ok((Reply::Refused(Refusal::Stale), None));
        }
        let touched = Touched { inodes: vec![inode], entries: Vec::new() };
        let _held = self.gate.clear(&self.sessions, touched, session).await;
        self.recall(&[inode], session).await?;
        if self.machine.state().namespace().has_capability(inode) {
            return Ok((self.commit_in_place(inode, clear_suid).await?, None));
        }
        let now = self.now();
        self.times.touch(inode, session, now, clear_suid);
        Ok((Reply::Done, Some(now)))
    }

    /// Shows again what a session was told that is shown, as far as nothing later is committed: the process that told it may have died.
    pub fn show_again(self: &Arc<Self>, session: SessionId, shown: &[Shown]) {
        let now = self.now();
        let state = self.machine.state();
        let mut inodes = Vec::new();
        for Shown { inode, time, cleared } in shown {
            let Some(file) = state.attributes(*inode).filter(|file| file.file_type == FileType::File) else { continue };
            if file.ctime < *time {
                self.times.touch(*inode, session, (*time).min(now), file.ctime < *cleared);
                inodes.push(*inode);
            }
        }
        drop(state);
        if inodes.is_empty() {
            return;
        }
        tracing::info!(%session, files = inodes.len(), "times of writes are shown again");
        // Who has asked since the restart may cache the older ones.
        let (leader, touched) = (self.clone(), Touched { inodes, entries: Vec::new() });
        tokio::spawn(async move { drop(leader.gate.withdraw(&leader.sessions, touched, session).await) });
    }

    /// Commits the times of these inodes: what changes them without setting their times comes after that in the log.
    pub(super) async fn settle_times(&self, inodes: &[InodeId]) {
        if self.times.is_empty() {
            return;
        }
        for inode in inodes {
            // A commit that is under way is waited for.
            drop(self.times.hold(*inode).await);
            if let Some(flush) = self.times.take_one(*inode) {
                let gone = self.commit_times(flush).await;
                self.times.flushed(flush, gone);
            }
        }
    }

    async fn commit_in_place(&self, inode: InodeId, clear_suid: bool) -> Result<Reply, ServeError> {
        let hold = self.times.hold(inode).await;
        let clear_suid = clear_suid || self.times.clears_suid(inode);
        let (attach, used, min_size, space) = (Vec::new(), Vec::new(), None, None);
        let received = self.now();
        let reply = self.propose_own(Request::CommitWrite { inode, attach, used, min_size, clear_suid, space }).await?;
        if matches!(reply, Reply::Refused(_)) {
            return Ok(reply);
        }
        hold.into_iter().for_each(|hold| hold.superseded(received));
        Ok(Reply::Done)
    }

    /// Commits uncommitted times: those older than `age`, of one session or of all.
    pub async fn flush_times(self: &Arc<Self>, age: Duration, session: Option<SessionId>) {
        let mut commits = tokio::task::JoinSet::new();
        for flush in self.times.take(age, session) {
            if commits.len() >= COMMITS_AT_A_TIME {
                commits.join_next().await;
            }
            let leader = self.clone();
            commits.spawn(async move {
                let gone = leader.commit_times(flush).await;
                leader.times.flushed(flush, gone);
            });
        }
        while commits.join_next().await.is_some() {}
    }

    async fn commit_times(&self, flush: Flush) -> bool {
        let mut changes = flush.changes();
        if let Some(now) = self.machine.state().attributes(flush.inode) {
            if now.mtime >= flush.time && !flush.clear_suid {
                return true;
            }
            changes.ctime = Some(flush.time.max(now.ctime));
        }
        match self.propose_own(Request::SetAttributes { inode: flush.inode, changes }).await {
            // A refusal is final too: the file is gone.
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, inode = %flush.inode, "times are committed later");
                false
            }
        }
    }
}
