//! The chunk server's place with the master: registration, lease, heartbeats, orders, reports, questions.
//!
//! This room owns the lease and every call to the master. What a replica does with an answer is `driver`'s.

pub mod heartbeat;
pub mod lease;
pub mod lookup;
pub mod master;
pub mod orders;
pub mod report;

use crate::store::DiskUsage;
use gfs_core::ids::ChunkHandle;
use gfs_core::replica::Fences;
use gfs_proto::v1;
use lease::Lease;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;

/// Problems named in one heartbeat.
const PROBLEMS_AT_A_TIME: usize = 1000;

/// Why a replica is not served any more, as the master counts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProblemKind {
    /// Its disk failed, or it is not here though it should be.
    Lost = 1,
    /// Stored bytes do not match their checksum.
    Corrupt = 2,
    /// It can't be served for another reason.
    Unserved = 3,
    /// It is whole, but takes no more writes: full disk, asked to leave.
    Retired = 4,
}

/// What the heartbeat thread and the rest of the process share. Nothing here waits for a disk.
#[derive(Debug, Default)]
pub struct Shared {
    /// The membership lease.
    pub lease: Lease,
    /// Which client sessions are over.
    pub fences: RwLock<Fences>,
    /// Requests since the last heartbeat.
    pub requests: AtomicU32,
    usage: Mutex<Vec<v1::DiskUsage>>,
    problems: Mutex<BTreeMap<ChunkHandle, (ProblemKind, String)>>,
}

impl Shared {
    /// Takes the fill state of the disks.
    pub fn set_usage(&self, disks: &[DiskUsage]) {
        let to_wire = |disk: &DiskUsage| v1::DiskUsage {
            path: disk.path.display().to_string(),
            total: disk.total,
            free: disk.free,
            chunks: disk.chunks,
            failed: disk.failed.is_some(),
            error: disk.failed.as_deref().unwrap_or_default().to_owned(),
        };
        *self.usage.lock() = disks.iter().map(to_wire).collect();
    }

    /// The fill state of the disks, as the master is told.
    pub fn usage(&self) -> Vec<v1::DiskUsage> {
        self.usage.lock().clone()
    }

    /// This server has stopped serving a replica; the master is told with every heartbeat until it is solved.
    pub fn report_problem(&self, handle: ChunkHandle, kind: ProblemKind, detail: &str) {
        let mut detail = detail.to_owned();
        detail.truncate(detail.floor_char_boundary_at(200));
        if self.problems.lock().insert(handle, (kind, detail.clone())).is_none() {
            tracing::warn!(%handle, ?kind, detail, "a replica is not served");
        }
    }

    /// The master has given the replica another place.
    pub fn solve_problem(&self, handle: ChunkHandle) {
        self.problems.lock().remove(&handle);
    }

    /// Whether a problem of the replica is reported.
    pub fn has_problem(&self, handle: ChunkHandle) -> bool {
        self.problems.lock().contains_key(&handle)
    }

    fn problems(&self) -> Vec<v1::ReplicaProblem> {
        let problems = self.problems.lock();
        let to_wire = |(handle, (kind, detail)): (&ChunkHandle, &(ProblemKind, String))| v1::ReplicaProblem {
            handle: handle.0,
            kind: *kind as u32,
            detail: detail.clone(),
        };
        problems.iter().take(PROBLEMS_AT_A_TIME).map(to_wire).collect()
    }
}

/// `str::floor_char_boundary`, which is younger than our compiler.
trait FloorBoundary {
    fn floor_char_boundary_at(&self, index: usize) -> usize;
}

impl FloorBoundary for str {
    fn floor_char_boundary_at(&self, index: usize) -> usize {
        (0..=index.min(self.len())).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_until_it_is_solved() {
        let shared = Shared::default();
        shared.report_problem(ChunkHandle(7), ProblemKind::Corrupt, &"é".repeat(150));
        let told = shared.problems();
        assert_eq!((told[0].handle, told[0].kind, told[0].detail.len()), (7, 2, 200));
        assert_eq!(shared.problems().len(), 1);
        shared.solve_problem(ChunkHandle(7));
        assert!(shared.problems().is_empty());
    }
}
