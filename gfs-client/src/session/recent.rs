//! Mutations that were answered a moment ago. A master answers before its log is on stable storage (docs/decisions/0008): one that loses power
//! may lose them, and must not vouch for them with a later sync.
//!
//! This room remembers them for longer than the log can take to be flushed, asks the next master for them, and says which files and
//! directories those were about that it does not know.

use gfs_core::ids::InodeId;
use gfs_proto::v1::{self, request::Kind};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// The log is flushed after 5 ms; the rest is for a slow disk.
const LONGEST: Duration = Duration::from_secs(2);
/// Mutations remembered; of more the latest.
const MOST: usize = 16_384;

struct Answered {
    operation: u64,
    inodes: Vec<u64>,
    at: Instant,
}

#[derive(Default)]
pub(super) struct Recent(VecDeque<Answered>);

impl Recent {
    /// A mutation was answered.
    pub(super) fn note(&mut self, operation: u64, request: &v1::Request, reply: &v1::Reply) {
        if operation == 0 || reply.refusal != 0 {
            return;
        }
        let mut inodes = about(request);
        inodes.extend(reply.attributes.as_ref().map(|attributes| attributes.inode));
        if inodes.is_empty() {
            return;
        }
        let at = Instant::now();
        // Only an answer of a master that went on shows that what came long before is flushed.
        while self.0.front().is_some_and(|first| first.at + LONGEST < at) || self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back(Answered { operation, inodes, at });
    }

    /// Their numbers, to ask for.
    pub(super) fn operations(&self) -> Vec<u64> {
        self.0.iter().map(|answered| answered.operation).collect()
    }

    /// The session is another one: its operations count anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The master does not know some of them: what they were about.
    pub(super) fn take_lost(&mut self, lost: &[u64]) -> BTreeSet<InodeId> {
        let lost: BTreeSet<u64> = lost.iter().copied().collect();
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.0).into_iter().partition(|answered| lost.contains(&answered.operation));
        self.0 = kept;
        gone.into_iter().flat_map(|answered| answered.inodes).map(InodeId).collect()
    }
}

/// The files and directories that a request names.
fn about(request: &v1::Request) -> Vec<u64> {
    match &request.kind {
        Some(Kind::Create(create)) => vec![create.parent],
        Some(Kind::Link(link)) => vec![link.inode, link.parent],
        Some(Kind::Unlink(unlink) | Kind::Rmdir(unlink)) => vec![unlink.parent],
        Some(Kind::Rename(rename)) => vec![rename.parent, rename.new_parent],
        Some(Kind::SetAttributes(set)) => vec![set.inode],
        Some(Kind::SetXattr(set)) => vec![set.inode],
        Some(Kind::RemoveXattr(remove)) => vec![remove.inode],
        Some(Kind::SetLock(set)) => vec![set.inode],
        Some(Kind::CommitWrite(commit)) => vec![commit.inode],
        Some(Kind::Flush(flush)) => {
            let mut inodes: Vec<u64> = flush.files.iter().map(|file| file.inode).collect();
            for step in &flush.steps {
                inodes.extend(step.request.as_ref().into_iter().flat_map(about));
                inodes.extend((step.inode != 0).then_some(step.inode));
            }
            inodes.sort_unstable();
            inodes.dedup();
            inodes
        }
        Some(Kind::CutTail(inode) | Kind::Hold(inode)) => vec![*inode],
        Some(
            Kind::ReleaseLocks(_)
            | Kind::AllocateChunks(_)
            | Kind::TouchAccess(_)
            | Kind::TouchAccesses(_)
            | Kind::ReserveInodes(_)
            | Kind::Barrier(_),
        )
        | None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unlink(parent: u64) -> v1::Request {
        v1::Request { kind: Some(Kind::Unlink(v1::Unlink { parent, ..Default::default() })) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_next_master_does_not_know_is_told_by_its_directories() {
        let mut recent = Recent::default();
        let done = v1::Reply::default();
        recent.note(1, &unlink(10), &done);
        recent.note(2, &unlink(20), &v1::Reply { refusal: 1, ..Default::default() });
        recent.note(3, &unlink(30), &done);
        recent.note(4, &unlink(40), &done);
        assert_eq!(recent.operations(), [1, 3, 4], "a refusal changed nothing");
        assert_eq!(recent.take_lost(&[3]), BTreeSet::from([InodeId(30)]));
        assert_eq!(recent.operations(), [1, 4]);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(recent.operations(), [1, 4], "no master has said anything since");
        recent.note(5, &unlink(50), &done);
        assert_eq!(recent.operations(), [5]);
    }
}
