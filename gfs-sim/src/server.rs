//! A chunk server of the simulation: it carries out what the real replica state machine decides, on a pretended disk.

use crate::disk::{BLOCK, BLOCKS, Disk, Image};
use crate::history::History;
use crate::master::FENCE_MS;
use crate::message::{Node, Packet};
use crate::rng::Rng;
use gfs_core::ids::{Epoch, Sequence, ServerId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{Action, Answer, Event, Message, Outcome, ReadPlan, Replica, Role, Status, Ticket, Token};
use std::collections::{BTreeMap, VecDeque};

/// Something that a server wants the world to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Send a packet.
    Send(Node, Packet),
    /// Wake this server after so many milliseconds.
    Wake(u64, Alarm),
}

/// Why a server is woken.
#[derive(Clone, Debug)]
pub enum Alarm {
    /// Send a heartbeat.
    Heartbeat,
    /// The lease may have run out.
    Fence,
    /// A flush ends, and this is stable.
    Flushed(Ticket, Box<Image>),
    /// A message to a peer was not answered in time.
    Timeout(u64),
    /// Retry with a peer.
    Retry(ServerId),
    /// Ask the master for the wanted change.
    Ask,
    /// Go on filling.
    Fill(u64),
}

/// Who waits for a token.
#[derive(Clone, Copy, Debug)]
enum Waiter {
    Client(u64, u64),
    Peer { server: ServerId, call: u64, epoch: Epoch, kind: PeerKind },
    Query { server: ServerId, call: u64, epoch: Epoch },
}

#[derive(Clone, Copy, Debug)]
enum PeerKind {
    Settle,
    Prepare,
    Flush(Ticket),
    Notice,
}

/// A copy to a syncing server.
#[derive(Clone, Copy, Debug)]
struct Filling {
    to: ServerId,
    epoch: Epoch,
    next: usize,
}

/// A chunk server process.
pub struct Server {
    /// Its number.
    pub id: ServerId,
    /// Counts its processes.
    pub incarnation: u64,
    /// Whether the process runs.
    pub up: bool,
    /// The replica's state machine.
    pub replica: Replica,
    /// Its disk.
    pub disk: Disk,
    number: u64,
    sent: BTreeMap<u64, u64>,
    fence_at: u64,
    leased: bool,
    next_call: u64,
    next_token: u64,
    waiters: BTreeMap<Token, Waiter>,
    calls: BTreeMap<u64, (ServerId, Epoch)>,
    fills: BTreeMap<u64, Filling>,
    reads: BTreeMap<u64, (u64, u64, usize)>,
    asking: bool,
    payload: u64,
}

/// What a server sees of the world while it works.
pub struct Surroundings<'a> {
    /// The time in milliseconds.
    pub now: u64,
    /// Randomness.
    pub rng: &'a mut Rng,
    /// The evidence.
    pub history: &'a mut History,
    /// What it wants done.
    pub effects: &'a mut Vec<Effect>,
}

impl Server {
    /// A server with an empty disk that is not running.
    pub fn new(id: ServerId) -> Self {
        let disk = Disk::default();
        Self {
            id,
            incarnation: 0,
            up: false,
            replica: Replica::new(id, disk.load()),
            disk,
            number: 0,
            sent: BTreeMap::new(),
            fence_at: 0,
            leased: false,
            next_call: 1,
            next_token: 1,
            waiters: BTreeMap::new(),
            calls: BTreeMap::new(),
            fills: BTreeMap::new(),
            reads: BTreeMap::new(),
            asking: false,
            payload: 0,
        }
    }

    /// Starts the process on what the disk holds.
    pub fn start(&mut self, world: &mut Surroundings) {
        let disk = std::mem::take(&mut self.disk);
        let (id, incarnation) = (self.id, self.incarnation + 1);
        *self = Self { incarnation, up: true, replica: Replica::new(id, disk.load()), disk, ..Self::new(id) };
        self.next_call = incarnation << 32;
        self.replica.set_minimum(2);
        world.effects.push(Effect::Wake(0, Alarm::Heartbeat));
    }

    /// Feeds an event and carries out what follows from it.
    fn feed(&mut self, event: Event, world: &mut Surroundings) {
        let mut actions: VecDeque<Action> = self.replica.handle(event).into();
        while let Some(action) = actions.pop_front() {
            if let Action::Store { write, .. } = action {
                if self.replica.role() == Role::Primary {
                    world.history.on_order(write.version.epoch, self.id);
                }
                let full = world.rng.below(1000) == 0;
                let result = if full { Err(Status::NoSpace) } else { Ok(()) };
                if !full {
                    self.disk.store(write, self.payload);
                }
                // Answered before anything else, as the state machine demands.
                let after = self.replica.handle(Event::Stored(result));
                for action in after.into_iter().rev() {
                    actions.push_front(action);
                }
            } else {
                self.perform(action, world);
            }
        }
    }

    fn perform(&mut self, action: Action, world: &mut Surroundings) {
        match action {
            Action::Persist(configuration) => self.disk.persist(&configuration),
            Action::Store { .. } => unreachable!("handled by feed"),
            Action::Commit(upto) => {
                for (write, value) in self.disk.commit(upto) {
                    world.history.on_commit(self.id, write.sequence(), write.operation, value);
                }
            }
            Action::RollBack(above) => self.disk.roll_back(above),
            Action::StartFill { base } => self.disk.start_fill(base),
            Action::ClearSuspect => self.disk.files.suspect = false,
            Action::Send { to, message } => self.send_peer(to, message, world),
            Action::Reply { token, outcome } => self.reply(token, outcome, world),
            Action::Flush(ticket) => {
                let image = Box::new(self.disk.snapshot());
                world.effects.push(Effect::Wake(world.rng.between(1, 20), Alarm::Flushed(ticket, image)));
            }
            Action::AskMaster => {
                if !std::mem::replace(&mut self.asking, true) {
                    world.effects.push(Effect::Wake(0, Alarm::Ask));
                }
            }
            Action::RetryLater(server) => world.effects.push(Effect::Wake(50, Alarm::Retry(server))),
            Action::Fill { to, epoch, .. } => {
                let call = self.call();
                self.fills.insert(call, Filling { to, epoch, next: 0 });
                world.effects.push(Effect::Wake(0, Alarm::Fill(call)));
            }
        }
    }

    fn call(&mut self) -> u64 {
        self.next_call += 1;
        self.next_call
    }

    fn token(&mut self, waiter: Waiter) -> Token {
        self.next_token += 1;
        self.waiters.insert(Token(self.next_token), waiter);
        Token(self.next_token)
    }

    fn send_peer(&mut self, to: ServerId, message: Message, world: &mut Surroundings) {
        let value = match &message {
            Message::Prepare { write, .. } => match self.disk.files.prepared.get(&write.sequence()) {
                Some((_, value)) => *value,
                None => return,
            },
            _ => 0,
        };
        let Some(configuration) = self.replica.configuration().cloned() else { return };
        let (call, epoch) = (self.call(), self.replica.epoch());
        if !matches!(message, Message::Committed(_)) {
            self.calls.insert(call, (to, epoch));
            world.effects.push(Effect::Wake(300, Alarm::Timeout(call)));
        }
        world.effects.push(Effect::Send(Node::Server(to), Packet::Peer { call, epoch, message, value, configuration }));
    }

    fn reply(&mut self, token: Token, outcome: Outcome, world: &mut Surroundings) {
        let Some(waiter) = self.waiters.remove(&token) else { return };
        let (to, packet) = match waiter {
            Waiter::Client(client, call) => {
                (Node::Client(client), Packet::Reply { call, status: outcome.status, value: 0 })
            }
            Waiter::Query { server, call, epoch } => {
                let packet = Packet::QueryAnswer { call, epoch, status: outcome.status, committed: outcome.sequence };
                (Node::Server(server), packet)
            }
            Waiter::Peer { server, call, epoch, kind } => {
                let answer = match kind {
                    PeerKind::Settle => Answer::Settle(outcome),
                    PeerKind::Prepare => Answer::Prepare(outcome),
                    PeerKind::Flush(ticket) => Answer::Flush(ticket, outcome),
                    PeerKind::Notice => return,
                };
                (Node::Server(server), Packet::PeerAnswer { call, epoch, answer })
            }
        };
        world.effects.push(Effect::Send(to, packet));
    }

    /// How it stands, for a failure's message.
    pub fn describe(&self) -> String {
        let r = &self.replica;
        format!(
            "up {} role {:?} epoch {:?} settled {} suspect {} committed {:?} prepared {:?} fence {} wants {:?}",
            self.up,
            r.role(),
            r.epoch(),
            r.is_settled(),
            r.is_suspect(),
            r.committed(),
            r.prepared(),
            self.fence_at,
            r.wanted_change()
        )
    }

    /// An alarm went off.
    pub fn wake(&mut self, alarm: Alarm, world: &mut Surroundings) {
        match alarm {
            Alarm::Heartbeat => self.heartbeat(world),
            Alarm::Fence if world.now >= self.fence_at => {
                self.leased = false;
                self.feed(Event::Lease(false), world);
            }
            Alarm::Fence => {}
            Alarm::Flushed(ticket, image) => {
                self.disk.stabilize(*image);
                self.feed(Event::Flushed { ticket, ok: true }, world);
            }
            Alarm::Timeout(call) => {
                if let Some((server, epoch)) = self.calls.remove(&call) {
                    self.feed(Event::Unreachable { server, epoch }, world);
                }
            }
            Alarm::Retry(server) => self.feed(Event::Retry(server), world),
            Alarm::Ask => {
                self.asking = false;
                if let Some(change) = self.replica.wanted_change() {
                    self.asking = true;
                    world
                        .effects
                        .push(Effect::Send(Node::Master, Packet::Want { incarnation: self.incarnation, change }));
                    world.effects.push(Effect::Wake(100, Alarm::Ask));
                }
            }
            Alarm::Fill(call) => self.fill(call, world),
        }
    }

    fn heartbeat(&mut self, world: &mut Surroundings) {
        self.number += 1;
        self.sent.insert(self.number, world.now);
        let unfit = (self.replica.is_suspect() || self.replica.is_broken()).then(|| self.replica.epoch());
        let packet = Packet::Heartbeat { incarnation: self.incarnation, number: self.number, unfit };
        world.effects.push(Effect::Send(Node::Master, packet));
        world.effects.push(Effect::Wake(200, Alarm::Heartbeat));
        let waits = matches!(self.replica.role(), Role::Secondary | Role::Syncing) && !self.replica.is_settled();
        if let (true, Some(known)) = (waits, self.replica.configuration()) {
            let (to, epoch) = (known.primary, known.epoch);
            let call = self.call();
            world.effects.push(Effect::Send(Node::Server(to), Packet::Query { call, epoch, unsettled: true }));
        }
    }

    fn fill(&mut self, call: u64, world: &mut Surroundings) {
        let Some(filling) = self.fills.get(&call).copied() else { return };
        if !self.replica.is_filling(filling.to, filling.epoch) {
            self.fills.remove(&call);
            return;
        }
        let last = (filling.next + 4).min(BLOCKS);
        let blocks = self.disk.files.blocks[filling.next..last].to_vec();
        let finish = (last == BLOCKS).then(|| (self.disk.files.length, self.replica.operations()));
        let (epoch, committed, first) = (filling.epoch, self.replica.committed(), filling.next);
        let packet = Packet::Copy { call, epoch, first, blocks, committed, finish };
        world.effects.push(Effect::Send(Node::Server(filling.to), packet));
        // Sent again when it is not answered: a piece is the same whenever it is applied as of its point.
        world.effects.push(Effect::Wake(120, Alarm::Fill(call)));
    }

    fn learn(&mut self, configuration: Configuration, world: &mut Surroundings) {
        if configuration.epoch > self.replica.epoch() {
            self.feed(Event::Configuration(configuration), world);
        }
    }

    /// A packet arrived.
    pub fn receive(&mut self, from: Node, packet: Packet, world: &mut Surroundings) {
        match (from, packet) {
            (Node::Server(server), Packet::Peer { call, epoch, message, value, configuration }) => {
                self.learn(configuration, world);
                let kind = match &message {
                    Message::Settle { .. } => PeerKind::Settle,
                    Message::Prepare { .. } => PeerKind::Prepare,
                    Message::Flush { ticket, .. } => PeerKind::Flush(*ticket),
                    Message::Committed(_) => PeerKind::Notice,
                };
                let token = Some(self.token(Waiter::Peer { server, call, epoch, kind }));
                self.payload = value;
                self.feed(Event::Peer { token, epoch, message }, world);
            }
            (Node::Server(server), Packet::PeerAnswer { call, epoch, answer }) => {
                if self.calls.remove(&call).is_some() {
                    self.feed(Event::Answer { from: server, epoch, answer }, world);
                }
            }
            (from, Packet::Copy { call, epoch, first, blocks, committed, finish }) => {
                let status = self.take_copy(epoch, first, &blocks, committed, finish, world);
                world.effects.push(Effect::Send(from, Packet::CopyAnswer { call, first, status }));
            }
            (_, Packet::CopyAnswer { call, first, status }) => self.copied(call, first, status, world),
            (Node::Server(server), Packet::Query { call, epoch, unsettled }) => {
                let token = self.token(Waiter::Query { server, call, epoch });
                self.feed(Event::CommittedQuery { token, epoch, unsettled: unsettled.then_some(server) }, world);
            }
            (_, Packet::QueryAnswer { call, epoch, status, committed }) => {
                self.committed_learned(call, epoch, status, committed, world);
            }
            (Node::Client(client), Packet::Write { call, epoch, operation, confirmed, mutation, value }) => {
                self.stale(epoch, world);
                let token = self.token(Waiter::Client(client, call));
                self.payload = value;
                self.feed(Event::Mutate { token, epoch, operation, confirmed, mutation }, world);
            }
            (Node::Client(client), Packet::Sync { call, epoch }) => {
                self.stale(epoch, world);
                let token = self.token(Waiter::Client(client, call));
                self.feed(Event::Sync { token, epoch }, world);
            }
            (Node::Client(client), Packet::Read { call, epoch, block }) => {
                self.stale(epoch, world);
                self.read(client, call, epoch, block, world);
            }
            (_, Packet::Lease { incarnation, number, configuration }) => {
                self.leased(incarnation, number, configuration, world);
            }
            (_, Packet::Located { configuration, .. }) => {
                // Packets of the master arrive in order: this one is from the present term of the lease.
                self.learn(configuration.clone(), world);
                self.feed(Event::InForce(configuration), world);
            }
            (_, other) => unreachable!("a chunk server got {other:?}"),
        }
    }

    /// Somebody knows a newer configuration: ask for it.
    fn stale(&mut self, epoch: Epoch, world: &mut Surroundings) {
        if epoch > self.replica.epoch() {
            let call = self.call();
            world.effects.push(Effect::Send(Node::Master, Packet::Locate { call, suspects: Vec::new() }));
        }
    }

    fn leased(&mut self, incarnation: u64, number: u64, configuration: Configuration, world: &mut Surroundings) {
        let Some(sent) = self.sent.get(&number).copied().filter(|_| incarnation == self.incarnation) else { return };
        self.sent = self.sent.split_off(&number);
        self.learn(configuration.clone(), world);
        if sent + FENCE_MS <= world.now || sent + FENCE_MS <= self.fence_at {
            return;
        }
        self.fence_at = sent + FENCE_MS;
        world.effects.push(Effect::Wake(self.fence_at - world.now, Alarm::Fence));
        if !std::mem::replace(&mut self.leased, true) {
            self.feed(Event::Lease(true), world);
        }
        // The answer carried the configuration in force in this term of the lease.
        self.feed(Event::InForce(configuration), world);
    }

    fn take_copy(
        &mut self,
        epoch: Epoch,
        first: usize,
        blocks: &[crate::disk::Block],
        committed: Sequence,
        finish: Option<(u64, Vec<gfs_core::replica::OperationRecord>)>,
        world: &mut Surroundings,
    ) -> Status {
        match self.replica.accept_copy(epoch, committed) {
            Err(status) => status,
            Ok(actions) => {
                for action in actions {
                    self.perform(action, world);
                }
                self.disk.files.blocks[first..first + blocks.len()].copy_from_slice(blocks);
                if let Some((length, operations)) = finish {
                    self.replica.finish_copy(length, &operations);
                    self.disk.files.length = length;
                    let above = self.disk.files.committed.next();
                    let newer = self.disk.files.operations.split_off(&above);
                    self.disk.files.operations = operations.into_iter().map(|o| (o.sequence, o)).chain(newer).collect();
                }
                Status::Ok
            }
        }
    }

    fn copied(&mut self, call: u64, first: usize, status: Status, world: &mut Surroundings) {
        // A late answer to an earlier piece says nothing about this one.
        let Some(filling) = self.fills.get_mut(&call).filter(|filling| filling.next == first) else { return };
        match status {
            Status::Ok if filling.next + 4 >= BLOCKS => {
                let (server, epoch) = (filling.to, filling.epoch);
                self.fills.remove(&call);
                self.feed(Event::Filled { server, epoch }, world);
            }
            Status::Ok => {
                filling.next += 4;
                self.fill(call, world);
            }
            _ => {}
        }
    }

    fn read(&mut self, client: u64, call: u64, epoch: Epoch, block: usize, world: &mut Surroundings) {
        let refused = |status| Effect::Send(Node::Client(client), Packet::Reply { call, status, value: 0 });
        match self.replica.plan_read(epoch, block as u64 * BLOCK, BLOCK) {
            ReadPlan::Local => {
                let value = self.disk.files.blocks[block].value;
                let packet = Packet::Reply { call, status: Status::Ok, value };
                world.effects.push(Effect::Send(Node::Client(client), packet));
            }
            ReadPlan::AskPrimary(primary) => {
                let query = self.call();
                self.reads.insert(query, (client, call, block));
                world
                    .effects
                    .push(Effect::Send(Node::Server(primary), Packet::Query { call: query, epoch, unsettled: false }));
            }
            ReadPlan::Refuse(status) => world.effects.push(refused(status)),
        }
    }

    fn committed_learned(
        &mut self,
        call: u64,
        epoch: Epoch,
        status: Status,
        committed: Sequence,
        world: &mut Surroundings,
    ) {
        if status == Status::Ok {
            self.feed(Event::CommittedLearned { epoch, committed }, world);
        }
        let Some((client, question, block)) = self.reads.remove(&call) else { return };
        let fresh = status == Status::Ok
            && !matches!(self.replica.plan_read(epoch, 0, 0), ReadPlan::Refuse(_))
            && self.replica.committed() >= committed;
        let (status, value) = if fresh { (Status::Ok, self.disk.files.blocks[block].value) } else { (Status::Busy, 0) };
        world.effects.push(Effect::Send(Node::Client(client), Packet::Reply { call: question, status, value }));
    }
}
