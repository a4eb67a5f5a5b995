//! Writes that change nothing but times: when those are shown, and when they are committed.
//!
//! This room owns the order of these steps. What is not committed yet is kept in `times`.

use super::times::Flush;
use super::{Leader, ServeError};
use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::grants::Touched;
use gfs_core::meta::request::{Refusal, Reply, Request};
use std::sync::Arc;
use std::time::Duration;

/// Commits of times under way at a time; well below the replies that the state keeps for a session.
const COMMITS_AT_A_TIME: usize = 256;

impl Leader {
    /// A session has written in place. Others drop the attributes that they cache before the new times are shown to anybody.
    /// File capabilities do not survive it: with them the write is committed at once.
    ///
    /// # Errors
    /// The log's.
    pub async fn written_in_place(
        self: &Arc<Self>,
        session: SessionId,
        inode: InodeId,
        clear_suid: bool,
    ) -> Result<Reply, ServeError> {
        if self.machine.state().attributes(inode).is_none() {
            return Ok(Reply::Refused(Refusal::Stale));
        }
        let touched = Touched { inodes: vec![inode], entries: Vec::new() };
        let _held = self.gate.clear(&self.sessions, touched, session).await;
        self.recall(&[inode], session).await?;
        if self.machine.state().namespace().has_capability(inode) {
            return self.commit_in_place(inode, clear_suid).await;
        }
        self.times.touch(inode, session, self.now(), clear_suid);
        Ok(Reply::Done)
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
