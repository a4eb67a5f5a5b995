//! What a sync has promised is on stable storage of every current member: not only of some, and not only until the next change of
//! members.
//!
//! Members that have lost something, or whose disk is gone, are not asked: they serve nothing and are replaced.

use super::last_copy::is_sound;
use crate::history::History;
use crate::server::Server;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::request::Configuration;
use std::collections::BTreeMap;

pub fn check(
    history: &History,
    servers: &BTreeMap<ServerId, Server>,
    handle: ChunkHandle,
    known: &Configuration,
) -> Option<String> {
    let synced = *history.synced.get(&handle)?;
    let members = known.members.iter().filter_map(|id| servers.get(id)).filter(|server| is_sound(server, handle));
    let stable = |server: &Server| server.disk.chunks.get(&handle).map(|chunk| chunk.stable.committed);
    let short = members.into_iter().find(|server| stable(server) < Some(synced))?;
    Some(format!(
        "chunk {handle}: synced up to {synced}, but {:?}, a member of {known:?}, has {:?} on stable storage",
        short.id,
        stable(short)
    ))
}
