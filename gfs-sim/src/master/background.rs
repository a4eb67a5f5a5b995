//! Work that nobody asks the master for: members that are gone, copies that are missing, orphans, dead sessions.

use super::Master;
use crate::rng::Rng;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::chunks::ChunkInfo;
use gfs_core::meta::command::Command;
use gfs_core::plan::configure;

impl Master {
    /// One round; to be called every now and then.
    pub fn tick(&mut self, now: u64, rng: &mut Rng) {
        let chunks: Vec<ChunkInfo> = self.state.chunks_from(ChunkHandle(0)).collect();
        for info in chunks {
            let (handle, known) = (info.handle, &info.configuration);
            let mut failed = self.gone_members(now, handle, known);
            failed.extend(known.syncing.iter().filter(|server| !self.alive(now, **server)));
            if !failed.is_empty() {
                self.change(now, handle, &failed, &[], None);
            }
            self.recruit(now, handle, rng);
        }
        let orphans: Vec<_> = self.state.orphans().collect();
        if !orphans.is_empty() {
            self.propose(now, Command::ReapOrphans { inodes: orphans });
        }
        let due: Vec<_> = self.ending.iter().filter(|(at, _)| *at <= now).map(|(_, session)| *session).collect();
        self.ending.retain(|(at, _)| *at > now);
        for session in due {
            self.propose(now, Command::EndSession { session });
        }
        if rng.chance(5) {
            self.log.write_checkpoint(&self.state);
        }
    }

    /// Adds a live server when members are missing.
    fn recruit(&mut self, now: u64, handle: ChunkHandle, rng: &mut Rng) {
        let Some(info) = self.state.chunk(handle) else { return };
        let known = &info.configuration;
        let missing = info.missing() > known.syncing.len();
        if !missing || !self.alive(now, known.primary) {
            return;
        }
        let named = |server: &ServerId| known.members.contains(server) || known.syncing.contains(server);
        let able = |server: &ServerId| !named(server) && self.alive(now, *server);
        let able: Vec<ServerId> = self.soft.heard.keys().copied().filter(able).collect();
        if let Some(server) = rng.pick(&able) {
            let next = configure::recruiting(known, *server);
            self.propose(now, Command::Reconfigure { handle, expected: known.epoch, next });
        }
    }
}
