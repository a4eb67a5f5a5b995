//! What is judged at the moment when it happens, with a view of the whole cluster that nobody in it has.

use super::World;
use crate::invariants::last_copy::{is_sound, lacks};
use crate::invariants::{last_copy, sound_kept, stable};
use gfs_core::ids::{ChunkHandle, Epoch, ServerId};
use gfs_core::meta::chunks::ChunkInfo;

impl World {
    pub(super) fn judge_deletion(&mut self, by: ServerId, handle: ChunkHandle, epoch: Epoch) {
        let found = last_copy::check(&self.master, &self.servers, by, handle, epoch);
        self.history.violations.extend(found);
    }

    pub(super) fn judge_stable(&mut self) {
        for info in self.master.state.chunks_from(ChunkHandle(0)) {
            let found = stable::check(&self.history, &self.servers, info.handle, &info.configuration);
            self.history.violations.extend(found);
        }
    }

    /// Configurations that have changed, and what they mean.
    pub(super) fn judge_configurations(&mut self) {
        let changed: Vec<ChunkInfo> = self
            .master
            .state
            .chunks_from(ChunkHandle(0))
            .filter(|info| self.known.get(&info.handle) != Some(&info.configuration))
            .collect();
        for info in changed {
            let (handle, after) = (info.handle, &info.configuration);
            if self.options.show {
                println!("{} chunk {handle} is in {after:?}", self.now);
            }
            self.judge_exposure(&info);
            if let Some(before) = self.known.insert(handle, after.clone()) {
                let (servers, since, now) = (&self.servers, &self.lacking_since, self.now);
                let found = sound_kept::check(servers, since, now, handle, &before, after);
                self.history.violations.extend(found);
                let found = stable::check(&self.history, &self.servers, handle, after);
                self.history.violations.extend(found);
            }
        }
    }

    /// Something happened to stored bytes.
    pub(super) fn judge_losses(&mut self) {
        let all: Vec<ChunkInfo> = self.master.state.chunks_from(ChunkHandle(0)).collect();
        all.iter().for_each(|info| self.judge_exposure(info));
    }

    /// Notes when no member is left that has lost nothing: from then on only what was synced is promised.
    fn judge_exposure(&mut self, info: &ChunkInfo) {
        let handle = info.handle;
        let mut any = false;
        for id in &info.configuration.members {
            // A reserved chunk is not there before its first configuration has come.
            let absent = info.reserved.is_some() && !self.servers[id].disk.chunks.contains_key(&handle);
            any |= absent || is_sound(&self.servers[id], handle);
            if absent || !lacks(&self.servers[id], handle) {
                self.lacking_since.remove(&(*id, handle));
            } else {
                self.lacking_since.entry((*id, handle)).or_insert(self.now);
            }
        }
        if any {
            self.exposed.remove(&handle);
        } else if self.exposed.insert(handle) {
            self.history.on_exposed(self.now, handle, info.configuration.epoch);
        }
    }
}
