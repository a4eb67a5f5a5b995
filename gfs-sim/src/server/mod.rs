//! A chunk server of the simulation: it carries out what the real replica state machine decides, on a pretended disk.
//!
//! This room owns the process: its lease, its heartbeats, and which replica a packet is for. What is done for one replica is in
//! `drive`, copies are in `fill`, reads in `read`.

mod drive;
mod fill;
mod orders;
mod read;

use crate::breaks::Breach;
use crate::disk::{Disk, Image};
use crate::history::History;
use crate::master::FENCE_MS;
use crate::message::{About, Assigned, Health, Held, Node, Orders, Packet, ZeroTail, Zeroed};
use crate::rng::Rng;
use fill::Filling;
use gfs_core::ids::{ChunkHandle, Epoch, ServerId};
use gfs_core::replica::{Event, Message, Outcome, Replica, Role, Status, Ticket, Token};
use std::collections::{BTreeMap, BTreeSet};

/// Something that a server wants the world to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Send a packet.
    Send(Node, Packet),
    /// Wake this server after so many milliseconds.
    Wake(u64, Alarm),
    /// It has deleted a replica that knew this epoch.
    Deleted(ChunkHandle, Epoch),
}

/// Why a server is woken.
#[derive(Clone, Debug)]
pub enum Alarm {
    /// Send a heartbeat.
    Heartbeat,
    /// The lease may have run out.
    Fence,
    /// A flush ends, and this is stable.
    Flushed(ChunkHandle, Ticket, u64, Box<Image>),
    /// A message to a peer was not answered in time.
    Timeout(u64),
    /// Retry with a peer.
    Retry(ChunkHandle, ServerId),
    /// Ask the master for the wanted change.
    Ask(ChunkHandle),
    /// Go on filling.
    Fill(u64),
}

/// Who waits for a token.
#[derive(Clone, Copy, Debug)]
enum Waiter {
    Client { client: u64, call: u64, mutation: bool },
    Peer { server: ServerId, call: u64, epoch: Epoch, kind: PeerKind },
    Query { server: ServerId, call: u64, epoch: Epoch },
    Zero(ZeroTail),
    ZeroSync(ZeroTail),
}

#[derive(Clone, Copy, Debug)]
enum PeerKind {
    Settle,
    Prepare,
    Flush(Ticket),
    Notice,
}

/// One replica of this process.
struct Slot {
    replica: Replica,
    asking: bool,
    payload: u64,
    waiters: BTreeMap<Token, Waiter>,
    zeroing: BTreeSet<Epoch>,
    /// What it was broken by is that it had no room for a write.
    full: bool,
}

/// A chunk server process.
pub struct Server {
    /// Its number.
    pub id: ServerId,
    /// Counts its processes.
    pub incarnation: u64,
    /// Whether the process runs.
    pub up: bool,
    /// Its disk.
    pub disk: Disk,
    breach: Breach,
    slots: BTreeMap<ChunkHandle, Slot>,
    /// Members of files that are not on the disk, and the epoch in which that was found.
    lost: BTreeMap<ChunkHandle, Epoch>,
    number: u64,
    sent: BTreeMap<u64, u64>,
    fence_at: u64,
    leased: bool,
    term: u64,
    next_call: u64,
    next_token: u64,
    calls: BTreeMap<u64, (ChunkHandle, ServerId, Epoch)>,
    /// Questions to the master, and the term of the lease in which they were asked.
    locates: BTreeMap<u64, u64>,
    fills: BTreeMap<u64, Filling>,
    reads: BTreeMap<u64, read::Waiting>,
    deleted: BTreeSet<ChunkHandle>,
    zeroed: Vec<Zeroed>,
}

/// What a server sees of the world while it works.
pub struct Surroundings<'a> {
    /// The time in milliseconds.
    pub now: u64,
    /// No faults any more.
    pub calm: bool,
    /// Randomness.
    pub rng: &'a mut Rng,
    /// The evidence.
    pub history: &'a mut History,
    /// What it wants done.
    pub effects: &'a mut Vec<Effect>,
}

impl Surroundings<'_> {
    fn send(&mut self, to: Node, packet: Packet) {
        self.effects.push(Effect::Send(to, packet));
    }

    fn wake(&mut self, after: u64, alarm: Alarm) {
        self.effects.push(Effect::Wake(after, alarm));
    }
}

impl Server {
    /// A server with an empty disk that is not running.
    pub fn new(id: ServerId, breach: Breach) -> Self {
        Self {
            id,
            incarnation: 0,
            up: false,
            disk: Disk::default(),
            breach,
            slots: BTreeMap::new(),
            lost: BTreeMap::new(),
            number: 0,
            sent: BTreeMap::new(),
            fence_at: 0,
            leased: false,
            term: 0,
            next_call: 1,
            next_token: 1,
            calls: BTreeMap::new(),
            locates: BTreeMap::new(),
            fills: BTreeMap::new(),
            reads: BTreeMap::new(),
            deleted: BTreeSet::new(),
            zeroed: Vec::new(),
        }
    }

    /// Starts the process on what the disk holds.
    pub fn start(&mut self, world: &mut Surroundings) {
        let disk = std::mem::take(&mut self.disk);
        let (id, incarnation, breach) = (self.id, self.incarnation + 1, self.breach);
        *self = Self { incarnation, up: true, disk, ..Self::new(id, breach) };
        self.next_call = incarnation << 32;
        let handles: Vec<ChunkHandle> = self.disk.chunks.keys().copied().collect();
        for handle in handles {
            let loaded = self.disk.chunks[&handle].load();
            self.adopt(handle, Replica::new(id, loaded));
        }
        world.wake(0, Alarm::Heartbeat);
    }

    fn adopt(&mut self, handle: ChunkHandle, mut replica: Replica) {
        replica.set_minimum(2);
        replica.break_rule(self.breach.of_core());
        let (waiters, zeroing) = (BTreeMap::new(), BTreeSet::new());
        self.slots.insert(handle, Slot { replica, asking: false, payload: 0, waiters, zeroing, full: false });
    }

    fn call(&mut self) -> u64 {
        self.next_call += 1;
        self.next_call
    }

    fn token(&mut self, handle: ChunkHandle, waiter: Waiter) -> Token {
        self.next_token += 1;
        if let Some(slot) = self.slots.get_mut(&handle) {
            slot.waiters.insert(Token(self.next_token), waiter);
        }
        Token(self.next_token)
    }

    fn epoch(&self, handle: ChunkHandle) -> Epoch {
        self.slots.get(&handle).map_or(Epoch(0), |slot| slot.replica.epoch())
    }

    /// How it stands, for a failure's message.
    pub fn describe(&self) -> String {
        let mut text = format!("{:?} up {} fence {}", self.id, self.up, self.fence_at);
        for (handle, slot) in &self.slots {
            let r = &slot.replica;
            text.push_str(&format!(
                "\n    {handle}: {:?} {:?} settled {} in force {} suspect {} broken {} committed {} prepared {} wants {:?}",
                r.role(),
                r.epoch(),
                r.is_settled(),
                r.is_in_force(),
                r.is_suspect(),
                r.is_broken(),
                r.committed(),
                r.prepared(),
                r.wanted_change()
            ));
        }
        text
    }

    /// An alarm went off.
    pub fn wake(&mut self, alarm: Alarm, world: &mut Surroundings) {
        self.check_lease(world);
        match alarm {
            Alarm::Heartbeat => self.heartbeat(world),
            Alarm::Fence => {}
            Alarm::Flushed(handle, ticket, number, image) => self.flushed(handle, ticket, number, *image, world),
            Alarm::Timeout(call) => {
                if let Some((handle, server, epoch)) = self.calls.remove(&call) {
                    self.feed(handle, Event::Unreachable { server, epoch }, world);
                }
            }
            Alarm::Retry(handle, server) => self.feed(handle, Event::Retry(server), world),
            Alarm::Ask(handle) => self.ask(handle, world),
            Alarm::Fill(call) => self.fill(call, world),
        }
    }

    /// The clock says whether the lease holds, whatever has or has not woken the process.
    fn check_lease(&mut self, world: &mut Surroundings) {
        if self.leased && world.now >= self.fence_at {
            self.leased = false;
            for handle in self.handles() {
                self.feed(handle, Event::Lease(false), world);
            }
        }
    }

    fn handles(&self) -> Vec<ChunkHandle> {
        self.slots.keys().copied().collect()
    }

    fn health(&self, slot: &Slot) -> Health {
        match () {
            () if self.disk.failed || (slot.replica.is_broken() && !slot.full) => Health::Broken,
            () if slot.replica.is_suspect() => Health::Suspect,
            () if slot.replica.is_broken() => Health::Retired,
            () => Health::Sound,
        }
    }

    fn heartbeat(&mut self, world: &mut Surroundings) {
        self.number += 1;
        self.sent.insert(self.number, world.now);
        let mut held = Vec::new();
        for (handle, slot) in &self.slots {
            let flushed = self.disk.chunks.get(handle).map_or_else(Default::default, |chunk| chunk.stable.committed);
            held.push(Held { handle: *handle, epoch: slot.replica.epoch(), flushed, health: self.health(slot) });
        }
        for (handle, epoch) in &self.lost {
            held.push(Held { handle: *handle, epoch: *epoch, flushed: Default::default(), health: Health::Broken });
        }
        let (incarnation, number) = (self.incarnation, self.number);
        let (deleted, zeroed) = (self.deleted.iter().copied().collect(), self.zeroed.clone());
        world.send(Node::Master, Packet::Heartbeat { incarnation, number, held, deleted, zeroed });
        world.wake(200, Alarm::Heartbeat);
        self.ask_primaries(world);
        self.scrub(world);
    }

    /// Looks at one replica's checksums.
    fn scrub(&mut self, world: &mut Surroundings) {
        let handles = self.handles();
        let Some(handle) = world.rng.pick(&handles).copied() else { return };
        if self.disk.chunks.get(&handle).is_some_and(|chunk| !chunk.is_whole()) {
            self.unreadable(handle, world);
        }
    }

    /// Replicas that wait for a settle remind their primaries.
    fn ask_primaries(&mut self, world: &mut Surroundings) {
        for handle in self.handles() {
            let replica = &self.slots[&handle].replica;
            let waits = matches!(replica.role(), Role::Secondary | Role::Syncing) && !replica.is_settled();
            if waits {
                let (to, epoch) = (replica.primary(), replica.epoch());
                let call = self.call();
                let about = About::Query { call, epoch, unsettled: true };
                world.send(Node::Server(to), Packet::Chunk(handle, about));
            }
        }
    }

    /// A packet arrived.
    pub fn receive(&mut self, from: Node, packet: Packet, world: &mut Surroundings) {
        self.check_lease(world);
        match packet {
            Packet::Chunk(handle, about) => self.receive_about(from, handle, about, world),
            Packet::Lease { incarnation, number, orders } => self.granted(incarnation, number, orders, world),
            Packet::Located { call, handle, assigned } => {
                let asked = self.locates.remove(&call);
                match assigned {
                    Some(assigned) if asked == Some(self.term) && self.leased => self.assign(assigned, true, world),
                    Some(assigned) => self.assign(assigned, false, world),
                    None => self.gone(handle, world),
                }
            }
            other => unreachable!("a chunk server got {other:?}"),
        }
    }

    fn receive_about(&mut self, from: Node, handle: ChunkHandle, about: About, world: &mut Surroundings) {
        match (from, about) {
            (Node::Server(server), About::Peer { call, epoch, message, value, configuration }) => {
                self.peer_says(handle, (server, call, epoch), message, value, configuration, world);
            }
            (Node::Server(server), About::PeerAnswer { call, epoch, answer }) => {
                if self.calls.remove(&call).is_some() {
                    self.feed(handle, Event::Answer { from: server, epoch, answer }, world);
                }
            }
            (from, About::Copy { call, epoch, piece }) => {
                let first = piece.first;
                let ok = self.take_copy(handle, epoch, piece, world).is_ok();
                world.send(from, Packet::Chunk(handle, About::CopyAnswer { call, first, ok }));
            }
            (_, About::CopyAnswer { call, first, ok }) => self.copied(call, first, ok, world),
            (Node::Server(server), About::Query { call, epoch, unsettled }) => {
                let token = self.token(handle, Waiter::Query { server, call, epoch });
                let unsettled = unsettled.then_some(server);
                self.feed(handle, Event::CommittedQuery { token, epoch, unsettled }, world);
            }
            (_, About::QueryAnswer { call, epoch, committed }) => {
                self.committed_learned(handle, call, epoch, committed, world);
            }
            (Node::Client(client), About::Mutate { call, epoch, operation, confirmed, mutation, value }) => {
                if self.is_known(client, handle, call, epoch, world) {
                    let token = self.token(handle, Waiter::Client { client, call, mutation: true });
                    self.set_payload(handle, value);
                    let fenced = false;
                    self.feed(handle, Event::Mutate { token, epoch, operation, confirmed, mutation, fenced }, world);
                }
            }
            (Node::Client(client), About::Sync { call, epoch }) => {
                if self.is_known(client, handle, call, epoch, world) {
                    let token = self.token(handle, Waiter::Client { client, call, mutation: false });
                    self.feed(handle, Event::Sync { token, epoch }, world);
                }
            }
            (Node::Client(client), About::Read { call, epoch, block }) => {
                if self.is_known(client, handle, call, epoch, world) {
                    self.read(client, handle, call, epoch, block, world);
                }
            }
            (from, other) => unreachable!("a chunk server got {other:?} from {from:?}"),
        }
    }

    fn set_payload(&mut self, handle: ChunkHandle, value: u64) {
        if let Some(slot) = self.slots.get_mut(&handle) {
            slot.payload = value;
        }
    }

    fn peer_says(
        &mut self,
        handle: ChunkHandle,
        (server, call, epoch): (ServerId, u64, Epoch),
        message: Message,
        value: u64,
        configuration: gfs_core::meta::request::Configuration,
        world: &mut Surroundings,
    ) {
        if configuration.epoch > self.epoch(handle) {
            self.assign(Assigned { handle, configuration, attached: true }, false, world);
            self.locate(handle, world);
        }
        let kind = match &message {
            Message::Settle { .. } => PeerKind::Settle,
            Message::Prepare { .. } => PeerKind::Prepare,
            Message::Flush { ticket, .. } => PeerKind::Flush(*ticket),
            Message::Committed(_) => PeerKind::Notice,
        };
        let token = Some(self.token(handle, Waiter::Peer { server, call, epoch, kind }));
        self.set_payload(handle, value);
        self.feed(handle, Event::Peer { token, epoch, message }, world);
    }

    /// Whether a client's request can be given to a replica. One that is not here, or older than the client knows, makes this
    /// server ask the master.
    fn is_known(
        &mut self,
        client: u64,
        handle: ChunkHandle,
        call: u64,
        epoch: Epoch,
        world: &mut Surroundings,
    ) -> bool {
        if epoch > self.epoch(handle) {
            self.locate(handle, world);
        }
        let known = self.slots.contains_key(&handle);
        if !known {
            let outcome = Outcome::of(Status::NoChunk);
            world.send(Node::Client(client), Packet::Reply { call, outcome, value: 0 });
        }
        known
    }

    fn locate(&mut self, handle: ChunkHandle, world: &mut Surroundings) {
        let call = self.call();
        if self.leased {
            self.locates.insert(call, self.term);
        }
        world.send(Node::Master, Packet::Locate { call, handle, suspects: Vec::new() });
    }

    /// A heartbeat was answered: the lease counts from when it was sent.
    fn granted(&mut self, incarnation: u64, number: u64, orders: Orders, world: &mut Surroundings) {
        let Some(sent) = self.sent.get(&number).copied().filter(|_| incarnation == self.incarnation) else { return };
        if sent + FENCE_MS <= world.now {
            return;
        }
        self.sent = self.sent.split_off(&number);
        if sent + FENCE_MS > self.fence_at {
            self.fence_at = sent + FENCE_MS;
            world.wake(self.fence_at - world.now, Alarm::Fence);
        }
        if !std::mem::replace(&mut self.leased, true) {
            self.term += 1;
            for handle in self.handles() {
                self.feed(handle, Event::Lease(true), world);
            }
        }
        self.carry_out_orders(orders, world);
    }
}
