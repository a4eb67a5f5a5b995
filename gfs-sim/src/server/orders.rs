//! What the master orders: configurations, deletions, zeroed tails.

use super::{Effect, Server, Slot, Surroundings, Waiter};
use crate::breaks::Neglect;
use crate::disk::CHUNK;
use crate::message::{Assigned, Orders, ZeroTail, Zeroed};
use gfs_core::ids::{ChunkHandle, Epoch, OperationId, SessionId};
use gfs_core::replica::{Event, Loaded, Mutation, Outcome, Replica, Role, Status, WriteKind};
use std::collections::BTreeSet;

impl Server {
    pub(super) fn carry_out_orders(&mut self, orders: Orders, world: &mut Surroundings) {
        let is_member = |assigned: &&Assigned| assigned.configuration.members.contains(&self.id);
        let named: BTreeSet<_> = orders.assigned.iter().filter(is_member).map(|assigned| assigned.handle).collect();
        self.lost.retain(|handle, _| named.contains(handle));
        // What the master heard of is told; what it still wants done it orders again.
        self.deleted.clear();
        self.zeroed.retain(|done| orders.zero.contains(&done.order));
        for assigned in orders.assigned {
            self.assign(assigned, true, world);
        }
        for handle in orders.gone {
            self.gone(handle, world);
        }
        for (handle, epoch) in orders.delete {
            self.delete(handle, epoch, world);
        }
        for order in orders.zero {
            self.zero(order, world);
        }
    }

    /// Takes a configuration; makes the replica if it has to be here. `in_force`: the master said so in this term of the lease.
    pub(super) fn assign(&mut self, assigned: Assigned, in_force: bool, world: &mut Surroundings) {
        let Assigned { handle, configuration, attached } = assigned;
        if !self.slots.contains_key(&handle) {
            let member = configuration.members.contains(&self.id);
            if member && attached {
                // It is part of a file, so it was here once: an empty one must not take its place.
                self.lost.insert(handle, configuration.epoch);
                return;
            }
            if self.disk.failed || !(member || configuration.syncing.contains(&self.id)) {
                return;
            }
            self.adopt(handle, Replica::new(self.id, Loaded::default()));
            self.feed(handle, Event::Lease(self.leased), world);
        }
        self.lost.remove(&handle);
        let event = if in_force { Event::InForce(configuration) } else { Event::Configuration(configuration) };
        self.feed(handle, event, world);
    }

    /// The master knows no such chunk: nothing is served until a configuration says otherwise.
    pub(super) fn gone(&mut self, handle: ChunkHandle, world: &mut Surroundings) {
        self.feed(handle, Event::Lease(false), world);
        // The replica hears of the lease that runs when the master names it again, with the next answer.
        if self.leased {
            self.feed(handle, Event::Lease(true), world);
        }
    }

    /// A tombstone: a replica that knows a later epoch is not meant.
    fn delete(&mut self, handle: ChunkHandle, epoch: Epoch, world: &mut Surroundings) {
        let Some(Slot { replica, .. }) = self.slots.get(&handle) else {
            self.deleted.insert(handle);
            return;
        };
        let known = replica.epoch();
        if (known > epoch && !self.breach.neglects(Neglect::TombstoneOfAnyEpoch)) || self.disk.failed {
            return;
        }
        self.feed(handle, Event::Lease(false), world);
        self.slots.remove(&handle);
        self.disk.chunks.remove(&handle);
        self.deleted.insert(handle);
        world.effects.push(Effect::Deleted(handle, known));
    }

    /// Rule 13: a replicated write whose identity is the epoch that the cut began. The master takes the cut for done only when it
    /// is on stable storage: what it then forgets nobody would do again after a power cut.
    fn zero(&mut self, order: ZeroTail, world: &mut Surroundings) {
        let handle = order.handle;
        let Some(slot) = self.slots.get_mut(&handle) else { return };
        let replica = &slot.replica;
        let ready = replica.role() == Role::Primary && replica.epoch() >= order.cut && replica.is_in_force();
        if !ready || !slot.zeroing.insert(order.cut) {
            return;
        }
        slot.payload = 0;
        let epoch = replica.epoch();
        let operation = OperationId { session: SessionId(0), operation: u64::from(order.cut.0) };
        let length = CHUNK.saturating_sub(order.from);
        let mutation = Mutation::At { kind: WriteKind::Truncate, offset: order.from, length };
        let token = self.token(handle, Waiter::Zero(order));
        self.feed(handle, Event::Mutate { token, epoch, operation, confirmed: 0, mutation, fenced: false }, world);
    }

    pub(super) fn zero_written(&mut self, order: ZeroTail, outcome: &Outcome, world: &mut Surroundings) {
        if outcome.status != Status::Ok {
            return self.zero_ended(order, outcome);
        }
        let epoch = self.epoch(order.handle);
        let token = self.token(order.handle, Waiter::ZeroSync(order));
        self.feed(order.handle, Event::Sync { token, epoch }, world);
    }

    pub(super) fn zero_ended(&mut self, order: ZeroTail, outcome: &Outcome) {
        let epoch = self.epoch(order.handle);
        if let Some(slot) = self.slots.get_mut(&order.handle) {
            slot.zeroing.remove(&order.cut);
        }
        if let (Status::Ok, Some(chunk)) = (outcome.status, self.disk.chunks.get(&order.handle)) {
            let stored = chunk.stored(epoch);
            self.zeroed.retain(|other| other.order != order);
            self.zeroed.push(Zeroed { order, stored });
        }
    }
}
