//! After healing all members of a chunk hold the same: committed up to the same place, of the same length, with the same bytes; and no
//! server holds anything that the table does not name. A flipped bit that nobody has read is still there: finding it is the scrub's,
//! which is not simulated, so bytes are compared by their checksums.

use crate::master::Master;
use crate::server::Server;
use gfs_core::ids::{ChunkHandle, ServerId};
use std::collections::BTreeMap;

pub fn check(master: &Master, servers: &BTreeMap<ServerId, Server>) -> Vec<String> {
    let mut found = Vec::new();
    let attached = master.state.chunks_from(ChunkHandle(0)).filter(|info| info.reserved.is_none());
    for info in attached {
        let images = info.configuration.members.iter().filter_map(|id| {
            let chunk = servers.get(id)?.disk.chunks.get(&info.handle)?;
            let bytes = chunk.files.blocks.map(|block| (block.version, block.sum));
            Some((*id, (chunk.files.committed, chunk.files.length, bytes)))
        });
        let images: Vec<_> = images.collect();
        if images.len() != info.configuration.members.len() {
            found.push(format!("chunk {}: a member of {:?} has no replica", info.handle, info.configuration));
        }
        for pair in images.windows(2).filter(|pair| pair[0].1 != pair[1].1) {
            found.push(format!("chunk {}: replicas differ after healing: {pair:?}", info.handle));
        }
    }
    for server in servers.values() {
        let named = |handle: &ChunkHandle| {
            master.state.chunk(*handle).is_some_and(|info| {
                let known = info.configuration;
                known.members.contains(&server.id) || known.syncing.contains(&server.id)
            })
        };
        let strays: Vec<_> = server.disk.chunks.keys().filter(|handle| !named(handle)).collect();
        if !strays.is_empty() {
            found.push(format!("{:?} still holds {strays:?}, which nobody names there", server.id));
        }
    }
    found
}
