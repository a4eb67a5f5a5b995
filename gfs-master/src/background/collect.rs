//! Garbage: orphans that nobody holds, replicas that nobody names, tombstones that are not carried out yet.
//!
//! This room owns the pace. Nothing is deleted before all servers have reported or long enough after the start, and a
//! server deletes only what a committed tombstone names.

use crate::leader::Leader;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::command::Command;
use gfs_proto::v1;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Orphans freed by one command.
const ORPHANS: usize = 1_000;
/// Strays looked at in one round.
const STRAYS: usize = 10_000;
/// Tombstones in one order.
const TOMBSTONES: usize = 2_000;
/// A tombstone that was not carried out is sent again after so long.
const AGAIN: Duration = Duration::from_secs(10);

/// How far each server has been told its tombstones.
#[derive(Default)]
pub struct Collector {
    told: BTreeMap<ServerId, (ChunkHandle, Instant)>,
}

impl Collector {
    /// One round.
    pub async fn round(&mut self, leader: &Leader) {
        self.orphans(leader).await;
        if leader.is_settled() {
            condemn(leader).await;
            self.tombstones(leader);
        }
    }

    /// Orphans live while anybody holds them open; who does is known once all sessions have said so, and none owes a word.
    async fn orphans(&self, leader: &Leader) {
        if !leader.sessions.all_reclaimed() || leader.gate.is_owed() {
            return;
        }
        let inodes = leader.begin_reaping(ORPHANS);
        if inodes.is_empty() {
            return;
        }
        let more = inodes.len() == ORPHANS;
        let reaped = leader.consensus.propose(Command::ReapOrphans { inodes: inodes.clone() }).await;
        leader.reaped(&inodes);
        match reaped {
            Ok(_) if more => leader.work.notify_one(),
            Ok(_) => (),
            Err(error) => tracing::warn!(%error, "orphans are freed later"),
        }
    }

    fn tombstones(&mut self, leader: &Leader) {
        let state = leader.machine.state();
        let servers: Vec<ServerId> = state.servers().iter().map(|record| record.server).collect();
        for server in servers {
            let (from, since) = self.told.get(&server).copied().unwrap_or((ChunkHandle(0), Instant::now()));
            let batch: Vec<_> = state.tombstones_of(server, from).take(TOMBSTONES).collect();
            let Some(last) = batch.last() else {
                if from != ChunkHandle(0) && since.elapsed() >= AGAIN {
                    self.told.remove(&server);
                }
                continue;
            };
            let next = ChunkHandle(last.handle.0.saturating_add(1));
            let delete = batch.iter().map(|one| v1::Delete { handle: one.handle.0, epoch: one.epoch.0 }).collect();
            if leader.servers.order(server, v1::MasterOrder { delete, ..v1::MasterOrder::default() }) {
                self.told.insert(server, (next, Instant::now()));
            }
        }
    }
}

/// Replicas that no configuration names get tombstones. Whether that is right the state decides: of chunks that need
/// copies, and of handles that this generation never gave, it condemns none.
async fn condemn(leader: &Leader) {
    let replicas: Vec<_> = {
        let strays = leader.servers.take_strays(STRAYS);
        let state = leader.machine.state();
        let unnamed = |handle: ChunkHandle, server: ServerId| {
            state.chunk(handle).is_none_or(|info| {
                let now = &info.configuration;
                !now.members.contains(&server) && !now.syncing.contains(&server)
            })
        };
        let free = strays.into_iter().filter(|(handle, server, _)| unnamed(*handle, *server));
        free.map(|(handle, server, _)| (handle, server)).collect()
    };
    if replicas.is_empty() {
        return;
    }
    tracing::info!(count = replicas.len(), "replicas that no configuration names");
    if let Err(error) = leader.consensus.propose(Command::CondemnUnknown { replicas }).await {
        tracing::warn!(%error, "stray replicas stay until they are reported again");
    }
}
