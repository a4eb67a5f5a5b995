//! How a run ends: faults stop, the cluster gets time to heal, every client reads everything once more.

use super::World;
use crate::invariants::{converged, namespace};
use gfs_core::ids::ServerId;

/// How often is looked whether all is well, in milliseconds.
const LOOK_MS: u64 = 100;
/// How often at most.
const LOOKS: u64 = 400;

impl World {
    fn wait_until(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..LOOKS {
            if done(self) || !self.history.violations.is_empty() {
                return;
            }
            self.go(self.now + LOOK_MS);
        }
    }

    /// Ends all faults and gives the cluster time.
    pub(super) fn heal(&mut self) {
        self.healing = true;
        self.doomed = None;
        self.cuts.clear();
        self.paused.clear();
        self.resume_master();
        self.start_master();
        for n in (1..=self.options.servers).map(ServerId) {
            let Some(server) = self.servers.get_mut(&n) else { continue };
            (server.disk.full_until, server.disk.slow_until, server.disk.unsound_until) = (0, 0, 0);
            if server.disk.failed {
                self.replace_disk(n);
            }
            self.start(n);
        }
        self.clients.values_mut().for_each(|(client, _)| client.close());
        self.wait_until(|world| world.clients.values().all(|(client, _)| client.is_closed()));
        self.wait_until(|world| {
            let healed = namespace::check_healed(&world.master.state).is_empty();
            healed && converged::check(&world.master, &world.servers).is_empty()
        });
    }

    /// What must hold at the end besides what the evidence shows.
    pub(super) fn close(&mut self) -> Vec<String> {
        if !self.history.violations.is_empty() {
            return Vec::new();
        }
        let mut found = namespace::check_healed(&self.master.state);
        found.extend(namespace::check(&self.master.state));
        found.extend(self.master.log.check_replays());
        if self.master.log.replay(0).hash() != self.master.state.hash() {
            found.push("the log does not give the state that is served".to_string());
        }
        found.extend(converged::check(&self.master, &self.servers));
        for (id, (client, _)) in self.clients.iter().filter(|(_, (client, _))| !client.is_closed()) {
            found.push(format!("client {id} could not do everything after healing: {}", client.waits_for()));
        }
        if !found.is_empty() {
            found.extend(self.servers.values().map(|server| server.describe()));
        }
        found
    }
}
