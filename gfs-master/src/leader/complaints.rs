//! Members that others cannot work with although they are alive: a link is cut, or a disk hangs.
//!
//! This room owns how long such a thing is watched before somebody is asked to leave, and who. It is told by primaries that cannot
//! reach a member, and by clients that cannot reach a primary. That somebody is slow is no ground to a client: where a server is only
//! busy, another primary is one more delay. That its machine answers nothing at all is.

use super::Leader;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::chunks::ChunkInfo;
use gfs_core::plan::succession::Standing;
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Complaints must go on for so long. A member that has just come back, or whose disk is only busy, answers before.
const PATIENCE_MS: u64 = 5_000;
/// The same for one that answers nothing, not even a question that needs no disk.
const SILENCE_MS: u64 = 600;
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
    silent_since_ms: Option<u64>,
}

impl Complaints {
    /// Notes a complaint; answers whether it has gone on long enough to be acted on.
    pub fn note(&self, now_ms: u64, handle: ChunkHandle, server: ServerId, silent: bool) -> bool {
        let mut all = self.0.lock();
        if all.len() >= MOST {
            all.retain(|_, complaint| complaint.last_ms + GAP_MS > now_ms);
            if all.len() >= MOST {
                return false;
            }
        }
        let fresh = Complaint { since_ms: now_ms, last_ms: now_ms, silent_since_ms: None };
        let complaint = all.entry((handle, server)).or_insert(fresh);
        if complaint.last_ms + GAP_MS <= now_ms {
            *complaint = fresh;
        }
        complaint.last_ms = now_ms;
        complaint.silent_since_ms = silent.then(|| complaint.silent_since_ms.unwrap_or(now_ms));
        complaint.since_ms + PATIENCE_MS <= now_ms
            || complaint.silent_since_ms.is_some_and(|since| since + SILENCE_MS <= now_ms)
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

/// Whether a chunk takes writes without its primary: enough others have it whole.
fn is_spared(info: &ChunkInfo, is_sound: impl Fn(ServerId) -> bool) -> bool {
    let others = info.configuration.members.iter().filter(|server| **server != info.configuration.primary);
    others.filter(|server| is_sound(**server)).count() >= usize::from(info.goal).min(2)
}

impl Leader {
    /// A primary cannot work with members that are alive. When that goes on, somebody is asked to leave the chunk. `silent` are those
    /// of them that answer it nothing at all.
    pub fn complain(&self, info: &ChunkInfo, failed: &[ServerId], silent: &[ServerId]) {
        let now = self.clock.now_ms();
        let stubborn = failed.iter().copied().filter(|server| {
            info.configuration.members.contains(server)
                && *server != info.configuration.primary
                && self.is_sound(*server, info.handle)
                && self.complaints.note(now, info.handle, *server, silent.contains(server))
        });
        for server in culprits(info, stubborn.collect()) {
            self.part_from(info, server);
        }
    }

    /// A client says that a chunk's primary answers it nothing at all, and has made sure of that, though it is alive: it is asked to
    /// leave, so that the client can write.
    pub fn complain_of_primary(&self, info: &ChunkInfo) {
        let is_sound = |server| self.is_sound(server, info.handle);
        let primary = info.configuration.primary;
        if is_sound(primary) && is_spared(info, is_sound) {
            self.part_from(info, primary);
        }
    }

    fn is_sound(&self, server: ServerId, handle: ChunkHandle) -> bool {
        self.servers.standing(server, handle) == Standing::Sound
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
        let note = |at: u64| complaints.note(at, CHUNK, ONE, false);
        let goes_on = |from: u64| (from..from + PATIENCE_MS).step_by(1_000).any(note);
        assert!(!goes_on(1_000));
        assert!(note(1_000 + PATIENCE_MS));
        let later = 1_000 + PATIENCE_MS + GAP_MS;
        assert!(!goes_on(later));
        assert!(note(later + PATIENCE_MS));
        complaints.forget(CHUNK, ONE);
        assert!(!note(later + PATIENCE_MS));
    }

    #[test]
    fn one_that_answers_nothing_is_given_up_sooner_unless_it_answers_between() {
        let complaints = Complaints::default();
        let note = |at: u64, silent: bool| complaints.note(at, CHUNK, ONE, silent);
        assert!(!note(1_000, false));
        assert!(!note(1_300, true));
        assert!(!note(1_200 + SILENCE_MS, true));
        assert!(!note(1_300 + SILENCE_MS, false), "it answered");
        assert!(!note(1_400 + SILENCE_MS, true));
        assert!(!note(1_300 + 2 * SILENCE_MS, true));
        assert!(note(1_400 + 2 * SILENCE_MS, true));
    }

    fn ids(list: &[u16]) -> Vec<ServerId> {
        list.iter().copied().map(ServerId).collect()
    }

    fn info(members: &[u16]) -> ChunkInfo {
        ChunkInfo {
            handle: CHUNK,
            inode: InodeId(1),
            index: 0,
            configuration: Configuration { epoch: Epoch(1), primary: ONE, members: ids(members), syncing: Vec::new() },
            goal: 3,
            reserved: None,
            cut: Epoch(0),
            stored: Stored::default(),
        }
    }

    #[test]
    fn a_primary_is_spared_when_two_others_are_sound() {
        assert!(is_spared(&info(&[1, 2, 3]), |_| true));
        assert!(!is_spared(&info(&[1, 2, 3]), |server| server != ServerId(3)));
        assert!(!is_spared(&info(&[1, 2]), |_| true));
        assert!(is_spared(&ChunkInfo { goal: 1, ..info(&[1, 2]) }, |_| true));
        assert!(!is_spared(&ChunkInfo { goal: 1, ..info(&[1]) }, |_| true));
    }

    #[test]
    fn a_primary_that_reaches_nobody_goes_itself() {
        assert_eq!(culprits(&info(&[1, 2, 3]), ids(&[3])), ids(&[3]));
        assert_eq!(culprits(&info(&[1, 2, 3]), ids(&[2, 3])), ids(&[1]));
        assert_eq!(culprits(&info(&[1, 2]), ids(&[2])), ids(&[2]));
    }
}
