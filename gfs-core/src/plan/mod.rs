//! Planners: what background work a cluster needs, as functions from a view to a list of actions.
//!
//! This room owns the order of danger and the bounds of a tick. It never acts: the master's background carries
//! the actions out and checks epochs again at that moment; that a dropped member's lease is over is its to wait
//! for.

pub mod configure;
pub mod danger;
pub mod pace;
pub mod rebalance;
pub mod recruit;
pub mod succession;
pub mod surplus;

use crate::ids::{ChunkHandle, Epoch, ServerId};
use crate::meta::request::Configuration;
use crate::placement::ServerView;
use std::collections::BTreeMap;

/// Why an action is proposed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// Members are missing.
    UnderGoal,
    /// A member is on a server that is to be emptied.
    Drain,
    /// A fuller server gives to an emptier one.
    Rebalance,
    /// There are more members than the goal.
    Surplus,
    /// A syncing server is gone, or not needed.
    StopSyncing,
}

/// A configuration to propose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    /// The chunk.
    pub handle: ChunkHandle,
    /// The epoch that the plan was made on.
    pub expected: Epoch,
    /// The configuration to install; its epoch is ignored.
    pub next: Configuration,
    /// Why.
    pub reason: Reason,
}

/// Bounds of one tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most actions.
    pub actions: usize,
    /// Most chunks that may be copied to one server at a time.
    pub incoming: u32,
    /// Most chunks that may be copied from one primary at a time.
    pub outgoing: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { actions: 64, incoming: 8, outgoing: 8 }
    }
}

/// The servers, and the copies that are under way between them.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    servers: BTreeMap<ServerId, ServerView>,
    incoming: BTreeMap<ServerId, u32>,
    outgoing: BTreeMap<ServerId, u32>,
}

impl ClusterView {
    /// A view of these servers without copies under way.
    pub fn new(servers: impl IntoIterator<Item = ServerView>) -> Self {
        let servers = servers.into_iter().map(|server| (server.server, server)).collect();
        Self { servers, ..Self::default() }
    }

    /// Counts the copies that a chunk's configuration has under way. Call it for every chunk with syncing members.
    pub fn count_copies(&mut self, configuration: &Configuration) {
        for server in &configuration.syncing {
            self.begin_copy(configuration.primary, *server);
        }
    }

    fn begin_copy(&mut self, from: ServerId, to: ServerId) {
        *self.outgoing.entry(from).or_insert(0) += 1;
        *self.incoming.entry(to).or_insert(0) += 1;
    }

    /// What is known of a server.
    pub fn get(&self, server: ServerId) -> Option<&ServerView> {
        self.servers.get(&server)
    }

    fn online(&self, server: ServerId) -> bool {
        self.get(server).is_some_and(|view| view.online)
    }

    fn draining(&self, server: ServerId) -> bool {
        self.get(server).is_some_and(|view| view.draining)
    }

    fn may_send(&self, from: ServerId, limits: &Limits) -> bool {
        self.online(from) && self.outgoing.get(&from).copied().unwrap_or(0) < limits.outgoing
    }

    /// A server for one more replica of a chunk, other than those that its configuration names.
    fn recruit(&self, configuration: &Configuration, limits: &Limits, seed: u64) -> Option<ServerId> {
        let has_room = |server: &&ServerView| self.incoming.get(&server.server).copied().unwrap_or(0) < limits.incoming;
        let named: Vec<ServerId> = configuration.members.iter().chain(&configuration.syncing).copied().collect();
        // Servers that are being copied to as much as they may stay in view when they are named: their zones count.
        let view: Vec<ServerView> = self
            .servers
            .values()
            .filter(|server| has_room(server) || named.contains(&server.server))
            .cloned()
            .collect();
        crate::placement::choose(&view, 1, &named, seed)?.first().copied()
    }
}

#[cfg(test)]
mod tests;
