//! Where new chunks go, and telling the servers.
//!
//! This room owns the soft view that placement decides on. How servers are chosen is the core's.

use super::servers::{Liveness, ServerNow};
use super::{Leader, ServeError};
use crate::random;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::chunks::{ChunkInfo, MAX_GOAL};
use gfs_core::meta::command::ServerIntent;
use gfs_core::meta::request::{Refusal, Request};
use gfs_core::placement::{self, ServerView};
use gfs_proto::convert::servers_to_wire;
use gfs_proto::v1;
use std::collections::BTreeMap;

/// Chunks in one allocation.
pub const MAX_CHUNKS: usize = 256;
/// Inodes that a 32-bit user of statfs can be told.
const MAX_INODES: u64 = u32::MAX as u64;

impl Leader {
    /// All servers as placement and plans see them.
    pub fn server_views(&self) -> Vec<ServerView> {
        let now = self.servers.view();
        let state = self.machine.state();
        let reserve = state.chunk_size();
        let view = |soft: &ServerNow| {
            let record = state.servers().get(soft.server)?;
            Some(ServerView {
                server: soft.server,
                zone: record.identity.zone.clone(),
                host: record.identity.host.clone(),
                total: soft.total,
                free: soft.free,
                reserve,
                load: soft.load,
                online: soft.liveness == Liveness::Online,
                draining: record.intent == ServerIntent::Draining,
                shunned: soft.shunned,
            })
        };
        now.iter().filter_map(view).collect()
    }

    /// Fills in where the chunks of an `AllocateChunks` go. `Some` is a refusal.
    ///
    /// # Errors
    /// `Unavailable` when servers that could take chunks are away.
    pub fn place(&self, request: &mut Request) -> Result<Option<Refusal>, ServeError> {
        let Request::AllocateChunks { replicas, placements } = request else { return Ok(None) };
        let (default, room) = {
            let state = self.machine.state();
            (state.default_replicas(), state.chunk_size())
        };
        let goal = if *replicas == 0 { default } else { *replicas };
        if placements.is_empty() || placements.len() > MAX_CHUNKS || goal > MAX_GOAL {
            return Ok(Some(Refusal::Invalid));
        }
        let mut view = self.server_views();
        // One copy is enough only where there is only one server at all.
        let least = usize::from(goal).min(2).min(view.len().max(1));
        if view.iter().filter(|server| server.usable()).count() < least {
            return no_room(&view).map(Some);
        }
        let mut mixer = random::sequence();
        for placement in placements.iter_mut() {
            match placement::choose(&view, goal, &[], mixer.draw()) {
                Some(chosen) if chosen.len() >= least => *placement = chosen,
                _ => return no_room(&view).map(Some),
            }
            // What this call has placed counts for what it places next.
            for server in view.iter_mut().filter(|server| placement.contains(&server.server)) {
                server.free = server.free.saturating_sub(room);
            }
        }
        Ok(None)
    }

    /// Tells the members of chunks what is in force. Lost on the way it does no harm: they can ask.
    pub fn announce(&self, handles: impl IntoIterator<Item = ChunkHandle>) {
        let mut orders: BTreeMap<ServerId, Vec<v1::Assignment>> = BTreeMap::new();
        for handle in handles {
            let info = self.machine.state().chunk(handle);
            let Some(info) = info else { continue };
            let assignment = self.assignment(&info);
            for server in info.configuration.members.iter().chain(&info.configuration.syncing) {
                orders.entry(*server).or_default().push(assignment.clone());
            }
        }
        for (server, assign) in orders {
            self.servers.order(server, v1::MasterOrder { assign, ..v1::MasterOrder::default() });
        }
    }

    /// A chunk's configuration for a server.
    pub fn assignment(&self, info: &ChunkInfo) -> v1::Assignment {
        v1::Assignment {
            handle: info.handle.0,
            configuration: Some((&info.configuration).into()),
            servers: servers_to_wire(&self.addresses([&info.configuration])),
            inode: info.inode.0,
            index: info.index,
            goal: info.goal.into(),
        }
    }
}

/// Why too few servers can take a chunk: full ones refuse for good, absent ones may come back.
fn no_room(view: &[ServerView]) -> Result<Refusal, ServeError> {
    let full = view.iter().any(|server| server.online && !server.draining && server.free <= server.reserve);
    let absent = view.iter().any(|server| !server.online && !server.draining);
    match (full, absent) {
        (true, false) => Ok(Refusal::NoSpace),
        _ if view.is_empty() => Err(ServeError::Unavailable("no chunk server is registered")),
        _ => Err(ServeError::Unavailable("not enough chunk servers are online")),
    }
}

/// Space as users see it: logical bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Bytes that files could have in all.
    pub total: u64,
    /// Bytes that can still be written.
    pub free: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that can still be made.
    pub inodes_free: u64,
    /// Replicas that the bytes are divided by.
    pub replicas: u8,
}

impl Leader {
    /// How much room there is, by what the servers said last.
    pub fn space(&self) -> Space {
        let (counts, replicas) = {
            let state = self.machine.state();
            (state.counts(), state.default_replicas())
        };
        let (mut total, mut free) = (0u64, 0u64);
        for server in self.servers.view() {
            total = total.saturating_add(server.total);
            free = free.saturating_add(server.free);
        }
        let inodes = counts.namespace.inodes;
        let divide = |raw: u64| raw / u64::from(replicas.max(1));
        Space {
            total: divide(total),
            free: divide(free),
            inodes,
            inodes_free: MAX_INODES.saturating_sub(inodes),
            replicas,
        }
    }
}
