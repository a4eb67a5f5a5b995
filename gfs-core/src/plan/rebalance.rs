//! Moving chunks from full servers to empty ones.
//!
//! This room owns when a move is worth its cost. A move is a recruit; dropping the fullest member once there is
//! one too many is `surplus`'s.

use super::{Action, ClusterView, Limits, Reason, configure};
use crate::ids::ServerId;
use crate::meta::chunks::ChunkInfo;

/// Least difference of fill, in thousandths, between two servers that is worth moving a chunk.
const WORTHWHILE: u64 = 100;

/// Plans moves for healthy chunks of a walk over the table: from a member that is much fuller than a usable server in
/// a place that is no worse. At most one copy at a time goes to a server for this.
pub fn rebalance(view: &mut ClusterView, chunks: impl IntoIterator<Item = ChunkInfo>, limits: &Limits) -> Vec<Action> {
    let mut actions = Vec::new();
    for info in chunks {
        if actions.len() >= limits.actions {
            break;
        }
        let now = &info.configuration;
        let healthy = now.members.len() == usize::from(info.goal) && now.syncing.is_empty() && info.reserved.is_none();
        let settled = now.members.iter().all(|server| view.online(*server) && !view.draining(*server));
        if !healthy || !settled || !view.may_send(now.primary, limits) {
            continue;
        }
        if let Some(target) = target(view, &now.members) {
            view.begin_copy(now.primary, target);
            let next = configure::recruiting(now, target);
            actions.push(Action { handle: info.handle, expected: now.epoch, next, reason: Reason::Rebalance });
        }
    }
    actions
}

/// The emptiest server that a replica of the fullest member should move to. It is in the zone of that member or in one
/// without a replica, and on no host of the others, so that `surplus` will drop that member and not another.
fn target(view: &ClusterView, members: &[ServerId]) -> Option<ServerId> {
    let fullest =
        members.iter().filter_map(|server| view.get(*server)).max_by_key(|server| (server.fill(), server.server))?;
    let others: Vec<_> =
        members.iter().filter(|server| **server != fullest.server).filter_map(|server| view.get(*server)).collect();
    let fits = |server: &&crate::placement::ServerView| {
        let zone_free = server.zone == fullest.zone || others.iter().all(|other| other.zone != server.zone);
        let host_free = server.host.is_empty()
            || others.iter().all(|other| (&other.zone, &other.host) != (&server.zone, &server.host));
        let idle = view.incoming.get(&server.server).copied().unwrap_or(0) == 0;
        let emptier = server.fill() + WORTHWHILE <= fullest.fill();
        server.usable() && !members.contains(&server.server) && zone_free && host_free && idle && emptier
    };
    view.servers.values().filter(fits).min_by_key(|server| (server.fill(), server.server)).map(|server| server.server)
}
