//! What `gfs fsck` asks: the metadata against itself, chunks in danger with their paths, and the chunk table in pages.
//!
//! This room translates. What is a contradiction and what is a danger is the core's to say.

use crate::leader::Leader;
use gfs_core::ids::{ChunkHandle, InodeId};
use gfs_core::meta::state::State;
use gfs_core::plan::danger::{self, Survey, Trouble};
use gfs_proto::{convert, v1};
use std::collections::{BTreeMap, BTreeSet};

/// Contradictions told.
const INCONSISTENCIES: usize = 100;
/// Chunks in danger told.
const TROUBLES: usize = 1_000;
/// Chunks in one page.
const PAGE: u32 = 4_096;

/// Checks everything; it may take seconds with millions of files.
pub fn check(leader: &Leader, frozen: &State) -> v1::CheckAnswer {
    let inconsistencies = frozen.namespace().verify(INCONSISTENCIES);
    let all = frozen.chunks_from(ChunkHandle(0));
    let found = danger::survey(all, |server, handle| leader.servers.standing(server, handle), TROUBLES);
    let inodes: BTreeSet<InodeId> = found.worst.iter().map(|trouble| trouble.info.inode).collect();
    let paths = frozen.namespace().paths_of(&inodes);
    let Survey { chunks, below, lost, damaged, worst } = found;
    v1::CheckAnswer {
        inodes: frozen.counts().namespace.inodes,
        chunks,
        inconsistencies: inconsistencies.iter().map(ToString::to_string).collect(),
        below_goal: below,
        lost,
        damaged,
        troubles: worst.into_iter().map(|trouble| troubled(trouble, &paths)).collect(),
    }
}

fn troubled(trouble: Trouble, paths: &BTreeMap<InodeId, Vec<u8>>) -> v1::TroubledChunk {
    let Trouble { info, online, damaged } = trouble;
    v1::TroubledChunk {
        handle: info.handle.0,
        inode: info.inode.0,
        index: info.index,
        path: paths.get(&info.inode).cloned().unwrap_or_default().into(),
        goal: info.goal.into(),
        copies: info.configuration.members.len() as u32,
        online: online as u32,
        damaged,
        syncing: info.configuration.syncing.len() as u32,
    }
}

/// Attached chunks from a handle on.
pub fn list(state: &State, from: u64, limit: u32) -> v1::ListChunksAnswer {
    let limit = limit.clamp(1, PAGE) as usize;
    let mut answer = v1::ListChunksAnswer::default();
    let mut named = BTreeSet::new();
    let (mut seen, mut last) = (0, ChunkHandle(from));
    for info in state.chunks_from(ChunkHandle(from)).take(limit) {
        (seen, last) = (seen + 1, info.handle);
        if info.reserved.is_none() {
            named.extend(info.configuration.members.iter().copied());
            let chunk = Some((&info.location()).into());
            answer.chunks.push(v1::PlacedChunk { inode: info.inode.0, chunk });
        }
    }
    answer.servers = convert::servers_to_wire(&state.addresses(named));
    answer.next = if seen == limit { last.0.saturating_add(1) } else { 0 };
    answer
}
