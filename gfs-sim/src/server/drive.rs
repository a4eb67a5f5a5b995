//! Carrying out what a replica wants done: storing, committing, sending, answering.

use super::{Alarm, PeerKind, Server, Surroundings, Waiter};
use crate::breaks::Neglect;
use crate::disk::{ChunkDisk, Image};
use crate::message::{About, Node, Packet};
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{Action, Answer, Event, Message, Outcome, PreparedWrite, Role, Status, Ticket, Token};
use std::collections::VecDeque;

impl Server {
    /// Feeds an event to a replica and carries out what follows from it.
    pub(super) fn feed(&mut self, handle: ChunkHandle, event: Event, world: &mut Surroundings) {
        if let Some(slot) = self.slots.get_mut(&handle) {
            let actions = slot.replica.handle(event);
            self.carry_out(handle, actions, world);
        }
    }

    /// Performs actions in order; a store is answered before anything else happens.
    pub(super) fn carry_out(&mut self, handle: ChunkHandle, actions: Vec<Action>, world: &mut Surroundings) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let Action::Store { write, .. } = action else {
                self.perform(handle, action, world);
                continue;
            };
            let result = self.store(handle, write, world);
            let Some(slot) = self.slots.get_mut(&handle) else { return };
            if !slot.replica.is_broken() {
                slot.full = result == Err(Status::NoSpace) && slot.replica.role() != Role::Primary;
            }
            for action in slot.replica.handle(Event::Stored(result)).into_iter().rev() {
                actions.push_front(action);
            }
        }
    }

    fn store(&mut self, handle: ChunkHandle, write: PreparedWrite, world: &mut Surroundings) -> Result<(), Status> {
        let intent = !self.breach.neglects(Neglect::IntentNotWritten);
        let Some(slot) = self.slots.get(&handle) else { return Err(Status::NoChunk) };
        if slot.replica.role() == Role::Primary {
            world.history.on_order(handle, write.version.epoch, self.id);
        }
        if self.disk.failed {
            return Err(Status::IoError);
        }
        let full = world.now < self.disk.full_until || (!world.calm && world.rng.below(1000) == 0);
        let Some(chunk) = self.disk.chunks.get_mut(&handle).filter(|_| !full) else { return Err(Status::NoSpace) };
        if intent {
            chunk.intend();
        }
        chunk.store(write, slot.payload);
        Ok(())
    }

    fn perform(&mut self, handle: ChunkHandle, action: Action, world: &mut Surroundings) {
        match action {
            Action::Persist(configuration) => self.persist(handle, &configuration),
            Action::Store { .. } => unreachable!("handled by carry_out"),
            Action::Commit(upto) => {
                let reverse = self.breach.neglects(Neglect::CommittedInReverse);
                // One that is being filled may hold what all members have lost since; it is judged when it is a member.
                let counts = self.slots.get(&handle).is_some_and(|slot| slot.replica.role() != Role::Syncing);
                // It is committed with the decision, even if the disk fails now.
                let failed = self.disk.failed;
                let done = self.disk.chunks.get_mut(&handle).map(|chunk| chunk.commit(upto, reverse));
                if failed {
                    self.feed(handle, Event::Broken, world);
                }
                for (write, value) in done.unwrap_or_default() {
                    if counts {
                        world.history.on_commit(self.id, handle, &write, value);
                    }
                }
            }
            Action::RollBack(above) => {
                if let Some(chunk) = self.writable(handle, world) {
                    chunk.roll_back(above);
                }
            }
            Action::StartFill { base } => {
                if let Some(chunk) = self.writable(handle, world) {
                    chunk.intend();
                    chunk.start_fill(base);
                }
            }
            Action::Suspect(suspect) => {
                if let Some(chunk) = self.writable(handle, world) {
                    chunk.set_suspect(suspect);
                }
            }
            Action::Send { to, message } => self.send_peer(handle, to, message, world),
            Action::Reply { token, outcome } => self.reply(handle, token, outcome, world),
            Action::Flush(ticket) => self.flush(handle, ticket, world),
            Action::AskMaster => {
                let Some(slot) = self.slots.get_mut(&handle) else { return };
                if !std::mem::replace(&mut slot.asking, true) {
                    world.wake(0, Alarm::Ask(handle));
                }
            }
            Action::RetryLater(server) => world.wake(50, Alarm::Retry(handle, server)),
            Action::Fill { to, epoch, base, trusted } => {
                self.start_filling(handle, to, epoch, trusted.then_some(base), world);
            }
        }
    }

    /// The replica's files. On a disk that has failed there are none, and the replica can't go on.
    fn writable(&mut self, handle: ChunkHandle, world: &mut Surroundings) -> Option<&mut ChunkDisk> {
        if self.disk.failed {
            self.feed(handle, Event::Broken, world);
            return None;
        }
        self.disk.chunks.get_mut(&handle)
    }

    fn persist(&mut self, handle: ChunkHandle, configuration: &Configuration) {
        if self.disk.failed {
            return;
        }
        let named = configuration.members.contains(&self.id) || configuration.syncing.contains(&self.id);
        match self.disk.chunks.get_mut(&handle) {
            Some(chunk) => chunk.persist(configuration),
            None if named => self.disk.create(handle, configuration),
            None => {}
        }
    }

    fn flush(&mut self, handle: ChunkHandle, ticket: Ticket, world: &mut Surroundings) {
        let Some((number, image)) = self.disk.begin_flush(handle) else { return };
        let slow = self.disk.slow_until.saturating_sub(world.now);
        let takes = slow + world.rng.between(1, 20);
        world.wake(takes, Alarm::Flushed(handle, ticket, number, Box::new(image)));
    }

    /// After a flush that fails nobody knows what is on the disk. It is never tried again: the replica is replaced.
    pub(super) fn flushed(
        &mut self,
        handle: ChunkHandle,
        ticket: Ticket,
        number: u64,
        image: Image,
        world: &mut Surroundings,
    ) {
        let ok = !self.disk.failed && world.now >= self.disk.unsound_until;
        if let Some(chunk) = self.disk.chunks.get_mut(&handle).filter(|_| ok) {
            chunk.end_flush(number, image);
        }
        self.feed(handle, Event::Flushed { ticket, ok }, world);
    }

    fn send_peer(&mut self, handle: ChunkHandle, to: ServerId, message: Message, world: &mut Surroundings) {
        let prepared = self.disk.chunks.get(&handle).map(|chunk| &chunk.files.prepared);
        let value = match &message {
            Message::Prepare { write, .. } => match prepared.and_then(|prepared| prepared.get(&write.sequence())) {
                Some((_, value)) => *value,
                None => return,
            },
            _ => 0,
        };
        let Some(slot) = self.slots.get(&handle) else { return };
        let Some(configuration) = slot.replica.configuration().cloned() else { return };
        let epoch = slot.replica.epoch();
        let call = self.call();
        if !matches!(message, Message::Committed(_)) {
            let patience = if matches!(message, Message::Flush { .. }) { 800 } else { 300 };
            self.calls.insert(call, (handle, to, epoch));
            world.wake(patience, Alarm::Timeout(call));
        }
        let about = About::Peer { call, epoch, message, value, configuration };
        world.send(Node::Server(to), Packet::Chunk(handle, about));
    }

    fn reply(&mut self, handle: ChunkHandle, token: Token, mut outcome: Outcome, world: &mut Surroundings) {
        let epoch = self.epoch(handle);
        let waiter = self.slots.get_mut(&handle).and_then(|slot| slot.waiters.remove(&token));
        let (to, packet) = match waiter {
            None => return,
            Some(Waiter::Zero(order)) => return self.zero_written(order, &outcome, world),
            Some(Waiter::ZeroSync(order)) => return self.zero_ended(order, &outcome),
            Some(Waiter::Client { client, call, mutation }) => {
                if mutation && outcome.status == Status::Ok {
                    outcome.stored = self.disk.chunks.get(&handle).map(|chunk| chunk.stored(epoch));
                }
                (Node::Client(client), Packet::Reply { call, outcome, value: 0 })
            }
            Some(Waiter::Query { server, call, epoch }) => {
                let committed = (outcome.status == Status::Ok).then_some(outcome.sequence);
                (Node::Server(server), Packet::Chunk(handle, About::QueryAnswer { call, epoch, committed }))
            }
            Some(Waiter::Peer { server, call, epoch, kind }) => {
                let answer = match kind {
                    PeerKind::Settle => Answer::Settle(outcome),
                    PeerKind::Prepare => Answer::Prepare(outcome),
                    PeerKind::Flush(ticket) => Answer::Flush(ticket, outcome),
                    PeerKind::Notice => return,
                };
                (Node::Server(server), Packet::Chunk(handle, About::PeerAnswer { call, epoch, answer }))
            }
        };
        world.send(to, packet);
    }

    pub(super) fn ask(&mut self, handle: ChunkHandle, world: &mut Surroundings) {
        let incarnation = self.incarnation;
        let Some(slot) = self.slots.get_mut(&handle) else { return };
        let wanted = slot.replica.wanted_change();
        slot.asking = wanted.is_some();
        if let Some(change) = wanted {
            world.send(Node::Master, Packet::Want { incarnation, handle, change });
            world.wake(100, Alarm::Ask(handle));
        }
    }
}
