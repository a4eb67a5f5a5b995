//! No deletion of a last live copy: judged at the moment of the deletion, against the chunk table and against what the other servers
//! hold at that moment.
//!
//! A replica that the table names as a member is never deleted. One that it does not name may be, when some member has one: all
//! that was synced is in it, and all that was acknowledged unless it lost power. A chunk that is not in the table has no live copy.

use crate::disk::ChunkDisk;
use crate::master::Master;
use crate::server::Server;
use gfs_core::ids::{ChunkHandle, Epoch, ServerId};
use std::collections::BTreeMap;

pub fn check(
    master: &Master,
    servers: &BTreeMap<ServerId, Server>,
    by: ServerId,
    handle: ChunkHandle,
    epoch: Epoch,
) -> Option<String> {
    let info = master.state.chunk(handle)?;
    let known = &info.configuration;
    if known.members.contains(&by) {
        return Some(format!("{by:?} deleted its replica of chunk {handle} at {epoch:?}, a member of {known:?}"));
    }
    let holds = |server: &&ServerId| servers.get(server).is_some_and(|server| is_readable(server, handle));
    if known.members.iter().find(holds).is_none() {
        return Some(format!("{by:?} deleted the last replica of chunk {handle}, which is in {known:?}"));
    }
    None
}

/// Whether a server has a replica that can be read.
fn is_readable(server: &Server, handle: ChunkHandle) -> bool {
    !server.disk.failed && server.disk.chunks.get(&handle).is_some_and(ChunkDisk::is_whole)
}

/// Whether a server's replica has lost nothing.
pub fn is_sound(server: &Server, handle: ChunkHandle) -> bool {
    is_readable(server, handle) && !lacks(server, handle)
}

/// Whether a server's replica has lost something, and its server knows it.
pub fn lacks(server: &Server, handle: ChunkHandle) -> bool {
    server.disk.failed || server.disk.chunks.get(&handle).is_none_or(|chunk| chunk.files.suspect)
}
