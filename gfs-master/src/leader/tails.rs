//! Bytes beyond the end of files that nobody will make part of them: their writer is gone.
//!
//! This room owns which files that may be, and has them cut there, so that no later growth shows the bytes (design section 4, rule 13).
//! A writer that is alive and gives up says so itself (`Request::CutTail`). Of a session that ends, the files are those that it could
//! write. A session that never came back to this process has told nothing: then it is every file of which a chunk server has reported
//! more bytes than the size covers, whichever member that is: after a loss of power any of them may be the one that goes on.

use super::{Leader, ServeError};
use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::chunks::ChunkInfo;
use gfs_core::meta::grants::Touched;
use gfs_core::meta::request::Request;
use gfs_core::meta::state::State;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Files remembered as longer on disk than their size; sessions that write hold at most so many in that state.
const MOST: usize = 1 << 20;
/// Cuts proposed at a time.
const AT_A_TIME: usize = 256;

/// What was reported.
#[derive(Debug, Default)]
pub struct Tails(Mutex<Reported>);

#[derive(Debug, Default)]
struct Reported {
    /// Files with more bytes than their size covers.
    beyond: BTreeSet<InodeId>,
    /// A session has ended that never came back to this process.
    lost: bool,
}

/// Whether a file may have bytes beyond its end: a chunk lies there, in part or as a whole.
fn may_have_tail(state: &State, inode: InodeId) -> bool {
    let Some(attributes) = state.attributes(inode) else { return false };
    let first = u32::try_from(attributes.size / state.chunk_size()).unwrap_or(u32::MAX);
    state.chunks_of(inode, first).next().is_some()
}

impl Leader {
    /// A chunk server has reported where a replica ends. Each member's counts: while the others live the primary holds what any of them
    /// holds, but when all have lost power it may be another one that goes on, with more.
    pub fn saw_length(&self, state: &State, info: &ChunkInfo, length: u64) {
        let Some(attributes) = state.attributes(info.inode).filter(|_| info.reserved.is_none()) else { return };
        let start = u64::from(info.index) * state.chunk_size();
        if start.saturating_add(length) > attributes.size {
            let mut reported = self.tails.0.lock();
            if reported.beyond.len() < MOST {
                reported.beyond.insert(info.inode);
            }
        }
    }

    /// A session is ending: what it may have written beyond the ends of files is cut off.
    ///
    /// # Errors
    /// The log's.
    pub(super) async fn cut_tails_of(self: &Arc<Self>, session: SessionId) -> Result<(), ServeError> {
        if !self.sessions.has_reclaimed(session) {
            self.tails.0.lock().lost = true;
        }
        self.cut_tails(self.written_by(session), session).await
    }

    /// Files that a session can write.
    fn written_by(&self, session: SessionId) -> BTreeSet<InodeId> {
        let mut inodes: BTreeSet<InodeId> = self.delegations.held_by(session).into_iter().collect();
        let opens = self.opens.lock();
        inodes.extend(opens.table.files_of(session).filter(|(_, counts)| counts.writes()).map(|(inode, _)| inode));
        inodes
    }

    /// After sessions were lost with a former process: cuts what chunk servers have reported. With none lost, what was reported is
    /// the business of sessions that are alive.
    pub async fn cut_lost_tails(self: &Arc<Self>) {
        let inodes: Vec<InodeId> = {
            let mut reported = self.tails.0.lock();
            if !self.sessions.all_reclaimed() || !self.is_settled() {
                return;
            }
            let beyond = std::mem::take(&mut reported.beyond);
            if reported.lost { beyond.into_iter().collect() } else { Vec::new() }
        };
        if inodes.is_empty() {
            return;
        }
        // What a live session holds by a write delegation is longer than the size for a good reason.
        let recalled = self.recall(&inodes, SessionId(0)).await;
        let cut = match recalled {
            Ok(()) => self.cut_tails(inodes.iter().copied().collect(), SessionId(0)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = cut {
            tracing::warn!(%error, "bytes beyond the ends of files are cut off later");
            self.tails.0.lock().beyond.extend(inodes);
        }
    }

    /// On behalf of a session, or of none.
    async fn cut_tails(self: &Arc<Self>, inodes: BTreeSet<InodeId>, by: SessionId) -> Result<(), ServeError> {
        let mut cuts = JoinSet::new();
        let mut result = Ok(());
        for inode in inodes {
            if !may_have_tail(&self.machine.state(), inode) {
                continue;
            }
            if cuts.len() >= AT_A_TIME {
                result = result.and(joined(cuts.join_next().await));
            }
            let leader = self.clone();
            cuts.spawn(async move {
                // Others may cache how much the file occupies.
                let touched = Touched { inodes: vec![inode], entries: Vec::new() };
                let _held = leader.gate.withdraw(&leader.sessions, touched, by).await;
                leader.propose_own(Request::CutTail { inode }).await?;
                leader.order_zeroing(Some(inode));
                Ok(())
            });
        }
        while let Some(done) = cuts.join_next().await {
            result = result.and(joined(Some(done)));
        }
        result
    }
}

fn joined(done: Option<Result<Result<(), ServeError>, tokio::task::JoinError>>) -> Result<(), ServeError> {
    done.map_or(Ok(()), |done| done.unwrap_or(Err(ServeError::Unexpected)))
}
