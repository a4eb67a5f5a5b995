//! Emptying draining servers, and dropping members beyond the goal.
//!
//! This room owns which member goes. It never plans fewer members than the goal, and never drops a member while
//! fewer than the goal would be online.

use super::{Action, ClusterView, Limits, Reason, configure};
use crate::ids::ServerId;
use crate::meta::chunks::ChunkInfo;
use crate::placement::derived_seed;
use std::collections::BTreeMap;

/// Plans for chunks that have enough members: those on draining servers get a replacement first, and what is beyond
/// the goal is dropped. Give it the chunks over their goal, and a walk over the table while a server drains.
pub fn trim(
    view: &mut ClusterView,
    chunks: impl IntoIterator<Item = ChunkInfo>,
    limits: &Limits,
    seed: u64,
) -> Vec<Action> {
    let mut actions = Vec::new();
    for (number, info) in chunks.into_iter().enumerate() {
        if actions.len() >= limits.actions {
            break;
        }
        if info.missing() > 0 || info.reserved.is_some() {
            continue;
        }
        let action = drop_one(view, &info).or_else(|| stop_syncing(view, &info));
        actions.extend(action.or_else(|| replace(view, &info, limits, derived_seed(seed, number as u64))));
    }
    actions
}

/// The member beyond the goal that goes: offline before draining before the one whose zone and host are most crowded
/// before the fullest.
fn drop_one(view: &ClusterView, info: &ChunkInfo) -> Option<Action> {
    let now = &info.configuration;
    if now.members.len() <= usize::from(info.goal) {
        return None;
    }
    let victim = now.members.iter().copied().max_by_key(|server| expendable(view, now.members.as_slice(), *server))?;
    let rest = now.members.iter().filter(|server| **server != victim && view.online(**server)).count();
    if rest < usize::from(info.goal) {
        return None;
    }
    let next = configure::without(now, &[victim], view)?;
    Some(Action { handle: info.handle, expected: now.epoch, next, reason: Reason::Surplus })
}

fn expendable(view: &ClusterView, members: &[ServerId], server: ServerId) -> (bool, bool, usize, usize, u64, ServerId) {
    let Some(own) = view.get(server) else { return (true, true, 0, 0, 0, server) };
    let others = || members.iter().filter(|other| **other != server).filter_map(|other| view.get(*other));
    let zone = others().filter(|other| other.zone == own.zone).count();
    let host = others().filter(|other| other.zone == own.zone && other.host == own.host).count();
    (!own.online, own.draining, zone, host, own.fill(), server)
}

/// A syncing server that is gone is not waited for.
fn stop_syncing(view: &ClusterView, info: &ChunkInfo) -> Option<Action> {
    let now = &info.configuration;
    let mut next = now.clone();
    next.syncing.retain(|server| view.online(*server));
    if next == *now {
        return None;
    }
    Some(Action { handle: info.handle, expected: now.epoch, next, reason: Reason::StopSyncing })
}

/// A member is on a draining server and nobody is being filled: recruit one in its place.
fn replace(view: &mut ClusterView, info: &ChunkInfo, limits: &Limits, seed: u64) -> Option<Action> {
    let now = &info.configuration;
    let drains = now.members.iter().any(|server| view.draining(*server));
    if !drains || !now.syncing.is_empty() || !view.may_send(now.primary, limits) {
        return None;
    }
    let server = view.recruit(now, limits, seed)?;
    view.begin_copy(now.primary, server);
    let next = configure::recruiting(now, server);
    Some(Action { handle: info.handle, expected: now.epoch, next, reason: Reason::Drain })
}

/// How many members each draining server has among these chunks: what is left to move.
pub fn left_to_drain(view: &ClusterView, chunks: impl IntoIterator<Item = ChunkInfo>) -> BTreeMap<ServerId, u64> {
    let mut left = BTreeMap::new();
    for info in chunks {
        for server in info.configuration.members.iter().filter(|server| view.draining(**server)) {
            *left.entry(*server).or_insert(0) += 1;
        }
    }
    left
}
