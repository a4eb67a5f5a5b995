//! Keeping chunks at their goal: members that are gone or damaged go, new ones are filled.
//!
//! This room owns the pace and the walk over the chunk table. What to do is planned in the core; each action is based on
//! an epoch, and is void when that has passed.

use crate::leader::Leader;
use crate::leader::servers::{Liveness, ServerNow};
use crate::random;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::chunks::ChunkInfo;
use gfs_core::plan::succession::Standing;
use gfs_core::plan::{Action, Reason, recruit, surplus};
use gfs_proto::v1;
use std::collections::{BTreeMap, BTreeSet};

/// Chunks looked at in one round.
const LOOKED_AT: usize = 4_096;
/// Configurations proposed in one round for members that are gone.
const DROPS: usize = 256;

/// Where the walks are.
#[derive(Default)]
pub struct Repairer {
    under: ChunkHandle,
    over: ChunkHandle,
    all: ChunkHandle,
    seen: BTreeMap<ServerId, Liveness>,
}

impl Repairer {
    /// One round.
    pub async fn round(&mut self, leader: &Leader) {
        let servers = leader.servers.view();
        self.detect(&servers);
        drop_damaged(leader).await;
        let urgent = std::mem::take(&mut *leader.urgent.lock());
        let settled = leader.is_settled();
        if settled {
            self.drop_gone(leader, &servers).await;
        }
        self.fill(leader, &urgent, settled).await;
        let below = leader.machine.state().counts().under_goal;
        leader.pace.lock().observe(leader.clock.now_ms(), below);
        if settled {
            self.trim(leader).await;
        }
    }

    /// The failure detector's findings, told once each.
    fn detect(&mut self, servers: &[ServerNow]) {
        for now in servers {
            let before = self.seen.insert(now.server, now.liveness);
            if before.is_some_and(|before| before != now.liveness) {
                tracing::info!(server = %now.server, liveness = ?now.liveness, "a chunk server changed");
            }
        }
    }

    /// Members on servers that have been gone for long leave, so that others can take their place.
    async fn drop_gone(&mut self, leader: &Leader, servers: &[ServerNow]) {
        let now = leader.clock.now_ms();
        let patience = leader.options.replace_after.as_millis() as u64;
        let long = |server: &&ServerNow| {
            server.liveness == Liveness::Offline && server.lease_until_ms.saturating_add(patience) <= now
        };
        let gone: BTreeSet<ServerId> = servers.iter().filter(long).map(|server| server.server).collect();
        if gone.is_empty() {
            return;
        }
        let chunks = page(leader, &mut self.all, Walk::All);
        let view = leader.cluster_view();
        let mut dropped = 0;
        for info in chunks {
            let failed: Vec<ServerId> =
                info.configuration.members.iter().copied().filter(|server| gone.contains(server)).collect();
            if failed.is_empty() || dropped >= DROPS {
                continue;
            }
            // The last copies are kept, wherever they are; and somebody who is there and holds everything must lead.
            if let Some(next) = leader.successor(&info, &failed, &[], None, &view)
                && leader.servers.standing(next.primary, info.handle) != Standing::Damaged
            {
                dropped += 1;
                carry_out(leader, &info, next).await;
            }
        }
    }

    /// Chunks with too few members get more.
    async fn fill(&mut self, leader: &Leader, urgent: &BTreeSet<ChunkHandle>, settled: bool) {
        let mut chunks: Vec<ChunkInfo> = {
            let state = leader.machine.state();
            urgent.iter().filter_map(|handle| state.chunk(*handle)).collect()
        };
        if settled {
            let page = page(leader, &mut self.under, Walk::Under);
            chunks.extend(page.into_iter().filter(|info| !urgent.contains(&info.handle)));
        }
        if chunks.is_empty() {
            return;
        }
        let mut view = leader.cluster_view();
        copies_under_way(leader, |info| view.count_copies(&info.configuration));
        let actions = recruit::recruit(&mut view, chunks, urgent, &leader.options.limits, random::bits64());
        let mut waiting = urgent.clone();
        for action in actions {
            waiting.remove(&action.handle);
            perform(leader, action).await;
        }
        // Those for which there was no candidate are looked at again.
        let mut still = leader.urgent.lock();
        let state = leader.machine.state();
        still.extend(waiting.into_iter().filter(|handle| {
            state.chunk(*handle).is_some_and(|info| info.missing() > info.configuration.syncing.len())
        }));
    }

    /// Chunks with more members than they need, or with members that are to be emptied.
    async fn trim(&mut self, leader: &Leader) {
        let mut chunks = page(leader, &mut self.over, Walk::Over);
        let mut view = leader.cluster_view();
        if leader.server_views().iter().any(|server| server.draining) {
            chunks.extend(page(leader, &mut self.all, Walk::All));
        }
        if chunks.is_empty() {
            return;
        }
        copies_under_way(leader, |info| view.count_copies(&info.configuration));
        for action in surplus::trim(&mut view, chunks, &leader.options.limits, random::bits64()) {
            // Never in favour of one that may hold less.
            if leader.servers.standing(action.next.primary, action.handle) == Standing::Sound {
                perform(leader, action).await;
            }
        }
    }
}

enum Walk {
    All,
    Under,
    Over,
}

/// The next chunks of a walk; at its end it begins anew.
fn page(leader: &Leader, cursor: &mut ChunkHandle, walk: Walk) -> Vec<ChunkInfo> {
    let state = leader.machine.state();
    let chunks: Vec<ChunkInfo> = match walk {
        Walk::All => state.chunks_from(*cursor).take(LOOKED_AT).collect(),
        Walk::Under => state.under_goal(*cursor).take(LOOKED_AT).collect(),
        Walk::Over => state.over_goal(*cursor).take(LOOKED_AT).collect(),
    };
    *cursor = match chunks.last() {
        Some(last) if chunks.len() == LOOKED_AT => ChunkHandle(last.handle.0.saturating_add(1)),
        _ => ChunkHandle(0),
    };
    chunks
}

/// Chunks that are being copied are either under their goal, or have enough members and syncing ones.
fn copies_under_way(leader: &Leader, mut count: impl FnMut(&ChunkInfo)) {
    let state = leader.machine.state();
    let both = state.under_goal(ChunkHandle(0)).take(LOOKED_AT).chain(state.over_goal(ChunkHandle(0)).take(LOOKED_AT));
    both.filter(|info| !info.configuration.syncing.is_empty()).for_each(|info| count(&info));
}

/// Replicas that their servers cannot serve leave their configurations; a new copy is made.
async fn drop_damaged(leader: &Leader) {
    let view = leader.cluster_view();
    let mut done = 0;
    for (handle, server) in leader.servers.problems() {
        if done >= DROPS {
            break;
        }
        let info = leader.machine.state().chunk(handle);
        let Some(info) = info.filter(|info| info.configuration.members.contains(&server)) else {
            leader.servers.forget_problem(server, handle);
            continue;
        };
        let Some(next) = leader.successor(&info, &[server], &[], None, &view) else { continue };
        // Never in favour of members that are damaged too.
        let sound = next.members.iter().any(|member| !leader.servers.has_problem(*member, handle));
        if sound {
            done += 1;
            let (expected, reason) = (info.configuration.epoch, Reason::UnderGoal);
            perform(leader, Action { handle, expected, next, reason }).await;
            leader.want(handle);
        }
    }
}

/// Carries a planned action out. A live member is asked to leave: it is dropped when it says so.
async fn perform(leader: &Leader, action: Action) {
    let info = leader.machine.state().chunk(action.handle);
    let Some(info) = info.filter(|info| info.configuration.epoch == action.expected) else { return };
    let dropped: Vec<ServerId> =
        info.configuration.members.iter().copied().filter(|server| !action.next.members.contains(server)).collect();
    let mut asked = false;
    for server in dropped.into_iter().filter(|server| !leader.may_drop(*server, action.handle)) {
        asked = true;
        let leave = vec![v1::Delete { handle: action.handle.0, epoch: action.expected.0 }];
        leader.servers.order(server, v1::MasterOrder { leave, ..v1::MasterOrder::default() });
    }
    if !asked {
        tracing::debug!(handle = %action.handle, reason = ?action.reason, "reconfiguring");
        carry_out(leader, &info, action.next).await;
    }
}

async fn carry_out(leader: &Leader, info: &ChunkInfo, next: gfs_core::meta::request::Configuration) {
    if let Err(error) = leader.install(info, next).await {
        tracing::warn!(%error, handle = %info.handle, "a configuration is proposed later");
    }
}
