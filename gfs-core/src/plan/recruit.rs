//! Filling up chunks that lack members.
//!
//! This room owns the order: fewest live members first, then what blocks somebody, then the rest.

use super::{Action, ClusterView, Limits, Reason, configure};
use crate::ids::ChunkHandle;
use crate::meta::chunks::ChunkInfo;
use crate::placement::derived_seed;
use std::collections::BTreeSet;

/// Plans for chunks with fewer members than their goal. `urgent` are chunks that somebody waits for. A chunk whose
/// primary is not online is left to failover: nobody could copy it.
pub fn recruit(
    view: &mut ClusterView,
    chunks: impl IntoIterator<Item = ChunkInfo>,
    urgent: &BTreeSet<ChunkHandle>,
    limits: &Limits,
    seed: u64,
) -> Vec<Action> {
    let mut ranked: Vec<((usize, bool, ChunkHandle), ChunkInfo)> = chunks
        .into_iter()
        .filter(|info| info.missing() > 0)
        .map(|info| {
            let live = info.configuration.members.iter().filter(|server| view.online(**server)).count();
            ((live, !urgent.contains(&info.handle), info.handle), info)
        })
        .filter(|(_, info)| view.online(info.configuration.primary))
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut actions = Vec::new();
    for (number, (_, info)) in ranked.into_iter().enumerate() {
        if actions.len() >= limits.actions {
            break;
        }
        actions.extend(fill(view, &info, limits, derived_seed(seed, number as u64)));
    }
    actions
}

/// One step for one chunk: leave syncing servers out that are gone, and recruit all that are missing.
fn fill(view: &mut ClusterView, info: &ChunkInfo, limits: &Limits, seed: u64) -> Option<Action> {
    let now = &info.configuration;
    let mut next = now.clone();
    next.syncing.retain(|server| view.online(*server));
    let mut reason = Reason::StopSyncing;
    for number in 0..info.missing().saturating_sub(next.syncing.len()) {
        if !view.may_send(now.primary, limits) {
            break;
        }
        let Some(server) = view.recruit(&next, limits, derived_seed(seed, number as u64)) else { break };
        next = configure::recruiting(&next, server);
        view.begin_copy(now.primary, server);
        reason = Reason::UnderGoal;
    }
    if next == *now {
        return None;
    }
    Some(Action { handle: info.handle, expected: now.epoch, next, reason })
}
