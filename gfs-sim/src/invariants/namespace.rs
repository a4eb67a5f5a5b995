//! The laws of the metadata: link counts, parents and totals agree; every chunk is part of a file that is there; and after healing
//! nothing is left over: no orphan, no cut, no tombstone.

use gfs_core::ids::ChunkHandle;
use gfs_core::meta::state::State;

/// What must hold at any time.
pub fn check(state: &State) -> Vec<String> {
    let mut found: Vec<String> = state.namespace().verify(10).iter().map(ToString::to_string).collect();
    for info in state.chunks_from(ChunkHandle(0)) {
        match info.reserved {
            Some(session) if !state.sessions().contains(session) => {
                found.push(format!("chunk {} is reserved by {session:?}, which is not open", info.handle));
            }
            None if state.attributes(info.inode).is_none() => {
                found.push(format!("chunk {} is part of {}, which is not there", info.handle, info.inode));
            }
            _ => {}
        }
        let members = info.configuration.members.iter().chain(&info.configuration.syncing);
        for server in members.filter(|server| state.tombstone(**server, info.handle).is_some()) {
            found.push(format!("chunk {} has a tombstone at {server:?}, which its configuration names", info.handle));
        }
    }
    found
}

/// What must hold when the cluster has been well for a while.
pub fn check_healed(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    let counts = state.counts();
    if state.orphans().next().is_some() {
        found.push("orphans that nobody holds are left".to_string());
    }
    if counts.shrinks > 0 {
        found.push(format!("a cut is still pending: {:?}", state.shrinks().collect::<Vec<_>>()));
    }
    if counts.tombstones > 0 {
        found.push(format!("tombstones are left: {:?}", state.tombstones().collect::<Vec<_>>()));
    }
    if counts.under_goal > 0 {
        let under: Vec<_> = state.under_goal(ChunkHandle(0)).map(|info| (info.handle, info.configuration)).collect();
        found.push(format!("did not heal: {under:?}"));
    }
    found
}
