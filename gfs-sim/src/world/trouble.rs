//! Faults as they happen.

use super::{Item, World};
use crate::client::Client;
use crate::disk::ChunkDisk;
use crate::faults::Fault;
use crate::invariants::last_copy::is_sound;
use crate::message::{LEASES, Node};
use crate::server::Server;
use gfs_core::ids::{ChunkHandle, ServerId};
use std::cmp::Reverse;

/// The longest that a packet takes without being sent again.
const ON_ITS_WAY_MS: u64 = 150;
/// Of a longer pause the rest does not count for the master: its clock leaves out the time in which it did not run.
const LONGEST_MS: u64 = 500;

/// Something goes wrong, or is mended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    /// The next fault.
    Next,
    /// A server's process starts.
    Start(ServerId),
    /// A server's process dies.
    Kill(ServerId),
    /// A server's machine loses power.
    Power(ServerId),
    /// A failed disk is replaced by an empty one.
    Replace(ServerId),
    /// The master starts.
    StartMaster,
    /// Nothing that a server says reaches the master for so long.
    Unheard(ServerId, u64),
}

impl World {
    pub(super) fn trouble(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Next if self.healing => {}
            Trouble::Next => {
                self.fault();
                let pause = self.rng.between(80, 1000);
                self.push(pause, Item::Trouble(Trouble::Next));
            }
            Trouble::Start(server) => self.start(server),
            Trouble::Kill(server) => self.kill(server),
            Trouble::Power(server) => self.cut_power(server),
            Trouble::Replace(server) => self.replace_disk(server),
            Trouble::StartMaster => self.start_master(),
            Trouble::Unheard(server, length) => {
                _ = self.cuts.insert((Node::Server(server), Node::Master), self.now + length);
            }
        }
    }

    fn fault(&mut self) {
        let faults = self.options.weather.faults();
        let mut at = self.rng.below(faults.iter().map(|(_, weight)| weight).sum());
        let drawn = faults.iter().find(|(_, weight)| {
            let hit = at < *weight;
            at = at.saturating_sub(*weight);
            hit
        });
        let fault = drawn.map_or(Fault::Kill, |(fault, _)| *fault);
        let server = ServerId(self.rng.between(1, self.options.servers.into()) as u16);
        let length = if self.rng.chance(30) { self.rng.between(1500, 4000) } else { self.rng.between(50, 1200) };
        if self.is_damaged() && fault != Fault::Slow {
            // The other copies are needed now.
            return;
        }
        if self.options.show {
            println!("{} {fault:?} of {server:?} for {length}", self.now);
        }
        match fault {
            Fault::Kill => self.down(server, length, Self::kill),
            Fault::KillAll => self.down_some(100, length, Self::kill),
            Fault::KillClient => self.kill_client(),
            Fault::Cut => self.cut(server, length),
            Fault::Estranged => self.estrange(server),
            Fault::Pause => _ = self.paused.insert(server, self.now + length),
            Fault::Power => self.down(server, length, Self::cut_power),
            Fault::PowerSome => self.down_some(60, length, Self::cut_power),
            Fault::PowerAll => self.down_some(100, length, Self::cut_power),
            Fault::PauseMaster => self.pause_master(length),
            Fault::KillMaster => self.down_master(false, length),
            Fault::PowerMaster => self.doomed = Some(length),
            Fault::FlushFails if self.is_spare(server, None) => {
                if let Some(server) = self.servers.get_mut(&server) {
                    server.disk.unsound_until = self.now + length;
                }
            }
            Fault::FlushFails => {}
            Fault::Full if !self.is_spare(server, None) => {}
            Fault::Full | Fault::Slow => {
                let until = self.now + length;
                if let Some(server) = self.servers.get_mut(&server) {
                    let disk = &mut server.disk;
                    *(if fault == Fault::Full { &mut disk.full_until } else { &mut disk.slow_until }) = until;
                }
            }
            Fault::DiskDies => self.fail_disk(server, length),
            Fault::Flip => self.flip(server),
            Fault::LastOne => self.last_one(server),
        }
    }

    fn down(&mut self, server: ServerId, length: u64, how: fn(&mut Self, ServerId)) {
        how(self, server);
        self.push(length, Item::Trouble(Trouble::Start(server)));
    }

    fn down_some(&mut self, percent: u64, length: u64, how: fn(&mut Self, ServerId)) {
        for n in 1..=self.options.servers {
            if self.rng.chance(percent) {
                let back = self.rng.between(10, length);
                self.down(ServerId(n), back, how);
            }
        }
    }

    fn kill(&mut self, server: ServerId) {
        if let Some(process) = self.servers.get_mut(&server) {
            process.up = false;
        }
    }

    fn cut_power(&mut self, server: ServerId) {
        // What has been filled again meanwhile lacks something from now on, not since an earlier cut.
        self.judge_losses();
        self.kill(server);
        if let Some(process) = self.servers.get_mut(&server) {
            process.disk.lose_power(&mut self.rng);
        }
        // What is late would have had to be sent again: only what is on its way still arrives.
        let (items, me, late) = (&mut self.items, Node::Server(server), self.now + ON_ITS_WAY_MS);
        let is_sent = |item: &Item| matches!(item, Item::Deliver { from, .. } if *from == me);
        for Reverse((_, order)) in self.queue.iter().filter(|Reverse((at, _))| *at > late) {
            if items.get(order).is_some_and(is_sent) {
                items.remove(order);
            }
        }
        self.judge_losses();
    }

    /// All but one die, so far apart that each is dropped before the next; then the last one loses power.
    fn last_one(&mut self, last: ServerId) {
        let mut after = 0;
        for n in (1..=self.options.servers).map(ServerId).filter(|server| *server != last) {
            self.push(after, Item::Trouble(Trouble::Kill(n)));
            self.push(after + 5_500, Item::Trouble(Trouble::Start(n)));
            after += self.rng.between(300, 1800);
        }
        let end = after + self.rng.between(500, 2500);
        self.push(end, Item::Trouble(Trouble::Power(last)));
        let back = self.rng.between(50, 1000);
        self.push(end + back, Item::Trouble(Trouble::Start(last)));
    }

    fn kill_client(&mut self) {
        let id = self.rng.between(1, self.options.clients);
        let due = self.master_now() + 2_000;
        let Some((client, stamp)) = self.clients.get_mut(&id) else { return };
        if let Some(session) = client.session {
            self.master.ending.push((due, session));
        }
        let next: Client = client.successor();
        *client = next;
        *stamp += 1;
        let stamp = *stamp;
        self.push(100, Item::ClientWake { client: id, stamp });
    }

    fn cut(&mut self, server: ServerId, length: u64) {
        let mut others: Vec<Node> = self.servers.keys().map(|id| Node::Server(*id)).collect();
        others.push(Node::Master);
        others.extend(self.clients.keys().map(|id| Node::Client(*id)));
        let Some(other) = self.rng.pick(&others).copied() else { return };
        let until = self.now + length;
        let me = Node::Server(server);
        let ways = self.rng.between(1, 3);
        if ways & 1 != 0 {
            self.cuts.insert((me, other), until);
        }
        if ways & 2 != 0 {
            self.cuts.insert((other, me), until);
        }
    }

    fn estrange(&mut self, server: ServerId) {
        let (late, begins, length) =
            (self.rng.between(0, 1300), self.rng.between(0, 300), self.rng.between(1800, 4000));
        self.links.insert((Node::Master, Node::Server(server), LEASES), self.now + late);
        self.push(begins, Item::Trouble(Trouble::Unheard(server, length)));
    }

    pub(super) fn down_master(&mut self, power: bool, length: u64) {
        if !self.master.up {
            return;
        }
        self.master.up = false;
        if power {
            let mut found = Vec::new();
            let lost = self.master.lose_power(&mut self.rng, &mut found);
            self.history.violations.append(&mut found);
            if lost {
                self.master_lost = true;
                self.history.master_lost.insert(self.now);
                self.clients.values_mut().for_each(|(client, _)| client.lost());
            }
        }
        self.push(length.min(1500), Item::Trouble(Trouble::StartMaster));
    }

    fn pause_master(&mut self, length: u64) {
        if self.master.up && self.master_paused <= self.now {
            self.master_paused = self.now + length;
            self.master_skipped += length.saturating_sub(LONGEST_MS);
            self.master.pause(self.master_now());
        }
    }

    pub(super) fn resume_master(&mut self) {
        let rest = self.master_paused.saturating_sub(self.now);
        self.master_skipped = self.master_skipped.saturating_sub(rest);
        self.master_paused = 0;
    }

    pub(super) fn start_master(&mut self) {
        if self.master.up {
            return;
        }
        let lost = std::mem::take(&mut self.master_lost);
        self.resume_master();
        let found = self.master.restart(self.master_now(), lost);
        self.history.violations.extend(found);
        self.judge_configurations();
    }

    /// Whether each chunk of this server has other members, and all of those have everything: of two members with one bad block
    /// each, none could be told to be better. One of them is there: the others may be dropped before anybody knows of this one's fault.
    fn is_spare(&self, server: ServerId, only: Option<ChunkHandle>) -> bool {
        let chunks = self.master.state.chunks_from(ChunkHandle(0));
        let mut chunks = chunks.filter(|info| only.is_none_or(|handle| info.handle == handle));
        chunks.all(|info| {
            let members = &info.configuration.members;
            let mut others = members.iter().filter(|id| **id != server);
            let here = others.clone().any(|id| self.master.alive(self.master_now(), *id));
            let fine = |id| self.servers.get(id).is_some_and(|server: &Server| server.disk.is_fine(self.now));
            let sound = others.all(|id| fine(id) && is_sound(&self.servers[id], info.handle));
            !members.contains(&server) || (here && sound)
        })
    }

    /// Whether a server holds writes to a chunk that its client has not told the master of yet. That a new disk lacks those, nobody
    /// can tell it (docs/roadmap.md).
    fn holds_untold(&self, server: ServerId) -> bool {
        let chunks = self.master.state.chunks_from(ChunkHandle(0));
        let mut reserved = chunks.filter(|info| info.reserved.is_some()).map(|info| info.handle);
        let written = |handle| self.servers[&server].disk.chunks.get(&handle).is_some_and(ChunkDisk::is_written);
        reserved.any(written)
    }

    fn fail_disk(&mut self, server: ServerId, length: u64) {
        if self.is_spare(server, None) && !self.holds_untold(server) {
            if let Some(process) = self.servers.get_mut(&server) {
                process.disk.failed = true;
            }
            self.push(length, Item::Trouble(Trouble::Replace(server)));
            self.judge_losses();
        }
    }

    pub(super) fn replace_disk(&mut self, server: ServerId) {
        self.kill(server);
        if let Some(process) = self.servers.get_mut(&server).filter(|process| process.disk.failed) {
            process.disk = Default::default();
        }
        self.start(server);
    }

    /// Whether a member has a bit flipped that nobody has read yet.
    fn is_damaged(&self) -> bool {
        let chunks = self.master.state.chunks_from(ChunkHandle(0));
        chunks.into_iter().any(|info| {
            let chunk = |id| self.servers.get(id).and_then(|server: &Server| server.disk.chunks.get(&info.handle));
            info.configuration.members.iter().filter_map(chunk).any(|chunk| !chunk.is_whole())
        })
    }

    fn flip(&mut self, server: ServerId) {
        let Some(process) = self.servers.get(&server) else { return };
        let handles: Vec<ChunkHandle> = process.disk.chunks.keys().copied().collect();
        let Some(handle) = self.rng.pick(&handles).copied() else { return };
        let all_up = self.servers.values().all(|server| server.up && !server.disk.failed);
        if !all_up || !self.is_spare(server, Some(handle)) {
            return;
        }
        if let Some(process) = self.servers.get_mut(&server) {
            process.disk.flip(handle, &mut self.rng);
        }
        self.judge_losses();
    }
}
