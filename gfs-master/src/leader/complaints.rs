//! Members that others cannot work with although they are alive: a link is cut, or a disk hangs.
//!
//! This room owns how long such a thing is watched before somebody is asked to leave, and who. It is told by primaries that cannot
//! reach a member. Clients' complaints about a primary are no ground: to one that is only busy, another primary is one more delay.

use super::Leader;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::chunks::ChunkInfo;
use gfs_core::plan::succession::Standing;
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Complaints must go on for so long. A member that has just come back, or whose disk is only busy, answers before.
const PATIENCE_MS: u64 = 5_000;
/// Complaints this far apart are not the same.
const GAP_MS: u64 = 1_500;
/// A server that has been asked to leave gets no new replicas for so long.
const SHUN_MS: u64 = 10_000;
/// Complaints remembered.
const MOST: usize = 100_000;

/// Which members are complained about, since when.
#[derive(Debug, Default)]
pub struct Complaints(Mutex<BTreeMap<(ChunkHandle, ServerId), Complaint>>);

#[derive(Clone, Copy, Debug)]
struct Complaint {
    since_ms: u64,
    last_ms: u64,
}

impl Complaints {
    /// Notes a complaint; answers whether it has gone on long enough to be acted on.
    pub fn note(&self, now_ms: u64, handle: ChunkHandle, server: ServerId) -> bool {
        let mut all = self.0.lock();
        if all.len() >= MOST {
            all.retain(|_, complaint| complaint.last_ms + GAP_MS > now_ms);
            if all.len() >= MOST {
                return false;
            }
        }
        let fresh = Complaint { since_ms: now_ms, last_ms: now_ms };
        let complaint = all.entry((handle, server)).or_insert(fresh);
        if complaint.last_ms + GAP_MS <= now_ms {
            *complaint = fresh;
        }
        complaint.last_ms = now_ms;
        complaint.since_ms + PATIENCE_MS <= now_ms
    }

    /// The member is none any more.
    pub fn forget(&self, handle: ChunkHandle, server: ServerId) {
        self.0.lock().remove(&(handle, server));
    }
}

/// Whom a primary that cannot work with `stubborn` members parts from: with one of them, it is that one; with all of several, the
/// fault is more likely its own.
fn culprits(info: &ChunkInfo, stubborn: Vec<ServerId>) -> Vec<ServerId> {
    let others = info.configuration.members.len().saturating_sub(1);
    if stubborn.len() >= 2 && stubborn.len() == others { vec![info.configuration.primary] } else { stubborn }
}

impl Leader {
    /// A primary cannot work with members that are alive. When that goes on, somebody is asked to leave the chunk.
    pub fn complain(&self, info: &ChunkInfo, failed: &[ServerId]) {
        let now = self.clock.now_ms();
        let sound = |server: &ServerId| self.servers.standing(*server, info.handle) == Standing::Sound;
        let stubborn = failed.iter().copied().filter(|server| {
            info.configuration.members.contains(server)
                && *server != info.configuration.primary
                && sound(server)
                && self.complaints.note(now, info.handle, *server)
        });
        for server in culprits(info, stubborn.collect()) {
            self.part_from(info, server);
        }
    }

    fn part_from(&self, info: &ChunkInfo, server: ServerId) {
        tracing::warn!(%server, handle = %info.handle, "others cannot work with this member: it is asked to leave");
        self.servers.shun(server, SHUN_MS);
        let leave = vec![v1::Delete { handle: info.handle.0, epoch: info.configuration.epoch.0 }];
        self.servers.order(server, v1::MasterOrder { leave, ..v1::MasterOrder::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gfs_core::ids::{Epoch, InodeId};
    use gfs_core::meta::request::{Configuration, Stored};

    const CHUNK: ChunkHandle = ChunkHandle(7);
    const ONE: ServerId = ServerId(1);

    #[test]
    fn a_complaint_is_acted_on_when_it_goes_on_and_not_when_it_comes_again_later() {
        let complaints = Complaints::default();
        let goes_on = |from: u64| (from..from + PATIENCE_MS).step_by(1_000).any(|at| complaints.note(at, CHUNK, ONE));
        assert!(!goes_on(1_000));
        assert!(complaints.note(1_000 + PATIENCE_MS, CHUNK, ONE));
        let later = 1_000 + PATIENCE_MS + GAP_MS;
        assert!(!goes_on(later));
        assert!(complaints.note(later + PATIENCE_MS, CHUNK, ONE));
        complaints.forget(CHUNK, ONE);
        assert!(!complaints.note(later + PATIENCE_MS, CHUNK, ONE));
    }

    #[test]
    fn a_primary_that_reaches_nobody_goes_itself() {
        let ids = |list: &[u16]| list.iter().copied().map(ServerId).collect::<Vec<_>>();
        let info = |members: &[u16]| ChunkInfo {
            handle: CHUNK,
            inode: InodeId(1),
            index: 0,
            configuration: Configuration { epoch: Epoch(1), primary: ONE, members: ids(members), syncing: Vec::new() },
            goal: 3,
            reserved: None,
            cut: Epoch(0),
            stored: Stored::default(),
        };
        assert_eq!(culprits(&info(&[1, 2, 3]), ids(&[3])), ids(&[3]));
        assert_eq!(culprits(&info(&[1, 2, 3]), ids(&[2, 3])), ids(&[1]));
        assert_eq!(culprits(&info(&[1, 2]), ids(&[2])), ids(&[2]));
    }
}
