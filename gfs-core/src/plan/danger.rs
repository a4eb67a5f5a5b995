//! Which chunks are in danger, worst first: what `gfs fsck` and `gfs status` tell.

use super::succession::Standing;
use crate::ids::{ChunkHandle, ServerId};
use crate::meta::chunks::ChunkInfo;
use std::collections::BTreeMap;

/// A chunk that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// The chunk.
    pub info: ChunkInfo,
    /// Members whose server is there with the replica.
    pub online: usize,
    /// A member has blocks that do not match their checksums.
    pub damaged: bool,
}

/// All chunks at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Chunks that were looked at.
    pub chunks: u64,
    /// With fewer members than their goal.
    pub below: u64,
    /// Without any member that is there.
    pub lost: u64,
    /// With a damaged member.
    pub damaged: u64,
    /// The worst: fewest members there first, then lowest handle.
    pub worst: Vec<Trouble>,
}

/// Looks at attached chunks, and keeps at most the `most` worst.
pub fn survey(
    chunks: impl IntoIterator<Item = ChunkInfo>,
    standing: impl Fn(ServerId, ChunkHandle) -> Standing,
    most: usize,
) -> Survey {
    let mut survey = Survey::default();
    let mut worst: BTreeMap<(usize, ChunkHandle), Trouble> = BTreeMap::new();
    for info in chunks.into_iter().filter(|info| info.reserved.is_none()) {
        survey.chunks += 1;
        let members = || info.configuration.members.iter().map(|server| standing(*server, info.handle));
        let there = |standing| !matches!(standing, Standing::Gone | Standing::Unknown);
        let online = members().filter(|standing| there(*standing)).count();
        let damaged =
            members().any(|standing| matches!(standing, Standing::Damaged | Standing::Retired | Standing::Gone));
        let below = info.missing() > 0;
        survey.below += u64::from(below);
        survey.lost += u64::from(online == 0);
        survey.damaged += u64::from(damaged);
        if below || damaged || online == 0 {
            worst.insert((online, info.handle), Trouble { info, online, damaged });
            if worst.len() > most {
                worst.pop_last();
            }
        }
    }
    survey.worst = worst.into_values().collect();
    survey
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, InodeId, SessionId};
    use crate::meta::request::{Configuration, Stored};

    fn chunk(handle: u64, members: &[u16]) -> ChunkInfo {
        let members: Vec<ServerId> = members.iter().copied().map(ServerId).collect();
        let configuration = Configuration { epoch: Epoch(1), primary: members[0], members, syncing: Vec::new() };
        let (inode, stored) = (InodeId(handle), Stored::default());
        let handle = ChunkHandle(handle);
        ChunkInfo { handle, inode, index: 0, configuration, goal: 3, reserved: None, cut: Epoch(0), stored }
    }

    #[test]
    fn the_worst_come_first_and_what_is_reserved_does_not_count() {
        let standing = |server: ServerId, handle: ChunkHandle| match (server.0, handle.0) {
            (1, _) => Standing::Unknown,
            (2, 12) => Standing::Damaged,
            _ => Standing::Sound,
        };
        let reserved = ChunkInfo { reserved: Some(SessionId(1)), ..chunk(14, &[1]) };
        let chunks = [chunk(10, &[2, 3, 4]), chunk(11, &[3, 4]), chunk(12, &[2, 3, 4]), chunk(13, &[1]), reserved];
        let found = survey(chunks.clone(), standing, 10);
        assert_eq!((found.chunks, found.below, found.lost, found.damaged), (4, 2, 1, 1));
        let order: Vec<_> = found.worst.iter().map(|trouble| (trouble.info.handle.0, trouble.online)).collect();
        assert_eq!(order, vec![(13, 0), (11, 2), (12, 3)]);
        assert_eq!(survey(chunks, standing, 1).worst.len(), 1);
    }
}
