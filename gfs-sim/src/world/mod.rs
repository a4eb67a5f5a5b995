//! The simulated cluster: clock, network, faults, and the loop that drives everything in the order of a seed.

use crate::client::{Client, Want};
use crate::disk::BLOCKS;
use crate::history::History;
use crate::invariants;
use crate::master::Master;
use crate::message::{Node, Packet};
use crate::rng::Rng;
use crate::server::{Alarm, Effect, Server, Surroundings};
use gfs_core::ids::ServerId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// What kind of run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Chunk servers.
    pub servers: u16,
    /// Replica goal.
    pub goal: usize,
    /// Clients.
    pub clients: u64,
    /// How long faults happen, in simulated milliseconds.
    pub fault_ms: u64,
    /// Whether single servers lose power too, and not only their processes.
    pub power_cuts: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { servers: 4, goal: 3, clients: 3, fault_ms: 10_000, power_cuts: true }
    }
}

#[derive(Debug)]
enum Item {
    Deliver { from: Node, to: Node, packet: Box<Packet>, incarnation: u64 },
    Alarm { server: ServerId, incarnation: u64, alarm: Alarm },
    ClientWake { client: u64, stamp: u64 },
    Fault,
    Restart(ServerId),
}

/// A cluster in the middle of a run.
pub struct World {
    options: Options,
    now: u64,
    rng: Rng,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    items: BTreeMap<u64, Item>,
    master: Master,
    servers: BTreeMap<ServerId, Server>,
    clients: BTreeMap<u64, (Client, u64)>,
    links: BTreeMap<(Node, Node), u64>,
    cuts: BTreeMap<(Node, Node), u64>,
    paused: BTreeMap<ServerId, u64>,
    power_lost_at: Option<u64>,
    healing: bool,
    history: History,
}

/// Runs one seed; the answer lists what was violated.
pub fn run(seed: u64, options: Options) -> Vec<String> {
    let mut world = World::new(seed, options);
    world.go(options.fault_ms);
    world.heal();
    let mut found = world.close();
    found.extend(invariants::check(&world.history, world.power_lost_at));
    found
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut world = Self {
            options,
            now: 1,
            rng: Rng::new(seed),
            order: 0,
            queue: BinaryHeap::new(),
            items: BTreeMap::new(),
            master: Master::new(options.servers, options.goal),
            servers: (1..=options.servers).map(|n| (ServerId(n), Server::new(ServerId(n)))).collect(),
            clients: (1..=options.clients).map(|n| (n, (Client::new(n), 0))).collect(),
            links: BTreeMap::new(),
            cuts: BTreeMap::new(),
            paused: BTreeMap::new(),
            power_lost_at: None,
            healing: false,
            history: History::default(),
        };
        for n in 1..=options.servers {
            world.start(ServerId(n));
        }
        for client in 1..=options.clients {
            world.push(1, Item::ClientWake { client, stamp: 0 });
        }
        world.push(500, Item::Fault);
        world
    }

    fn push(&mut self, delay: u64, item: Item) {
        self.push_at(self.now + delay, item);
    }

    fn push_at(&mut self, at: u64, item: Item) {
        self.order += 1;
        self.items.insert(self.order, item);
        self.queue.push(Reverse((at, self.order)));
    }

    fn go(&mut self, until: u64) {
        while let Some(Reverse((at, order))) = self.queue.peek().copied() {
            if at > until {
                break;
            }
            self.queue.pop();
            self.now = at;
            if let Some(item) = self.items.remove(&order) {
                self.happen(item);
            }
        }
        self.now = until;
    }

    fn happen(&mut self, item: Item) {
        match item {
            Item::Deliver { from, to, packet, incarnation } => self.deliver(from, to, packet, incarnation),
            Item::Alarm { server, incarnation, alarm } => {
                if let Some(until) = self.paused_until(server) {
                    return self.push_at(until, Item::Alarm { server, incarnation, alarm });
                }
                self.with_server(server, |process, world| {
                    if process.up && process.incarnation == incarnation {
                        process.wake(alarm, world);
                    }
                });
            }
            Item::ClientWake { client, stamp } => {
                let Some((process, current)) = self.clients.get_mut(&client) else { return };
                if *current == stamp {
                    let wants = process.wake(self.now, &mut self.rng, &mut self.history);
                    self.client_wants(client, wants);
                }
            }
            Item::Fault if !self.healing => self.fault(),
            Item::Fault => {}
            Item::Restart(server) => self.start(server),
        }
    }

    fn paused_until(&self, server: ServerId) -> Option<u64> {
        self.paused.get(&server).copied().filter(|until| *until > self.now)
    }

    fn start(&mut self, server: ServerId) {
        self.with_server(server, |process, world| {
            if !process.up {
                process.start(world);
            }
        });
    }

    fn with_server(&mut self, server: ServerId, work: impl FnOnce(&mut Server, &mut Surroundings)) {
        let Some(process) = self.servers.get_mut(&server) else { return };
        let mut effects = Vec::new();
        let (rng, history) = (&mut self.rng, &mut self.history);
        work(process, &mut Surroundings { now: self.now, rng, history, effects: &mut effects });
        let incarnation = process.incarnation;
        for effect in effects {
            match effect {
                Effect::Send(to, packet) => self.send(Node::Server(server), to, packet, incarnation),
                Effect::Wake(delay, alarm) => self.push(delay, Item::Alarm { server, incarnation, alarm }),
            }
        }
    }

    fn client_wants(&mut self, client: u64, wants: Vec<Want>) {
        for want in wants {
            match want {
                Want::Send(to, packet) => self.send(Node::Client(client), to, packet, 0),
                Want::Wake(delay) => {
                    let Some((_, stamp)) = self.clients.get_mut(&client) else { return };
                    *stamp += 1;
                    let stamp = *stamp;
                    self.push(delay, Item::ClientWake { client, stamp });
                }
            }
        }
    }

    /// Packets of one link arrive in order, as on a connection; some are lost, as when it breaks.
    fn send(&mut self, from: Node, to: Node, packet: Packet, incarnation: u64) {
        let cut = self.cuts.get(&(from, to)).is_some_and(|until| *until > self.now);
        if cut || (!self.healing && self.rng.below(200) == 0) {
            return;
        }
        let delay = if self.rng.chance(2) { self.rng.between(20, 150) } else { self.rng.between(1, 6) };
        let at = (self.now + delay).max(self.links.get(&(from, to)).copied().unwrap_or(0));
        self.links.insert((from, to), at);
        self.push_at(at, Item::Deliver { from, to, packet: Box::new(packet), incarnation });
    }

    fn deliver(&mut self, from: Node, to: Node, packet: Box<Packet>, incarnation: u64) {
        match to {
            Node::Server(server) => {
                if let Some(until) = self.paused_until(server) {
                    return self.push_at(until, Item::Deliver { from, to, packet, incarnation });
                }
                self.with_server(server, |process, world| {
                    if process.up {
                        process.receive(from, *packet, world);
                    }
                });
            }
            Node::Client(client) => {
                let Some((process, _)) = self.clients.get_mut(&client) else { return };
                let wants = process.receive(*packet, self.now, &mut self.rng, &mut self.history);
                self.client_wants(client, wants);
            }
            Node::Master => self.ask_master(from, *packet),
        }
    }

    fn ask_master(&mut self, from: Node, packet: Packet) {
        match (from, packet) {
            (Node::Server(server), Packet::Heartbeat { incarnation, number, unfit }) => {
                self.master.heartbeat(self.now, server, incarnation, unfit);
                let configuration = self.master.configuration();
                self.send(Node::Master, from, Packet::Lease { incarnation, number, configuration }, 0);
            }
            (Node::Server(server), Packet::Want { incarnation, change }) => {
                self.master.want(self.now, server, incarnation, &change);
                let configuration = self.master.configuration();
                self.send(Node::Master, from, Packet::Located { call: 0, configuration }, 0);
            }
            (_, Packet::Locate { call, suspects }) => {
                self.master.suspects(self.now, &suspects);
                let configuration = self.master.configuration();
                self.send(Node::Master, from, Packet::Located { call, configuration }, 0);
            }
            (from, other) => unreachable!("the master got {other:?} from {from:?}"),
        }
    }

    fn fault(&mut self) {
        let server = ServerId(self.rng.between(1, self.options.servers.into()) as u16);
        let length = if self.rng.chance(30) { self.rng.between(1500, 5000) } else { self.rng.between(50, 1200) };
        match self.rng.below(10) {
            0..4 => {
                self.kill(server);
                self.push(length, Item::Restart(server));
            }
            4 => {
                // Everybody at once.
                for n in 1..=self.options.servers {
                    self.kill(ServerId(n));
                    let back = self.rng.between(10, length);
                    self.push(back, Item::Restart(ServerId(n)));
                }
            }
            5 => self.power_cut(server, length),
            6 => {
                self.paused.insert(server, self.now + length);
            }
            7 => self.master.restart(self.now),
            _ => self.cut(server, length),
        }
        let pause = self.rng.between(100, 1500);
        self.push(pause, Item::Fault);
    }

    fn kill(&mut self, server: ServerId) {
        if let Some(process) = self.servers.get_mut(&server) {
            process.up = false;
        }
    }

    /// At most one server loses power in a run.
    fn power_cut(&mut self, server: ServerId, length: u64) {
        if !self.options.power_cuts || self.power_lost_at.is_some() {
            return;
        }
        self.power_lost_at = Some(self.now);
        self.history.power_lost = true;
        self.kill(server);
        if let Some(process) = self.servers.get_mut(&server) {
            process.disk.lose_power(&mut self.rng);
        }
        self.push(length, Item::Restart(server));
    }

    fn cut(&mut self, server: ServerId, length: u64) {
        let mut others: Vec<Node> = self.servers.keys().map(|id| Node::Server(*id)).collect();
        others.push(Node::Master);
        others.extend(self.clients.keys().map(|id| Node::Client(*id)));
        let Some(other) = self.rng.pick(&others).copied() else { return };
        let until = self.now + length;
        let me = Node::Server(server);
        match self.rng.below(3) {
            0 => _ = self.cuts.insert((me, other), until),
            1 => _ = self.cuts.insert((other, me), until),
            _ => {
                self.cuts.insert((me, other), until);
                self.cuts.insert((other, me), until);
            }
        }
    }

    /// Ends all faults and gives the cluster time.
    fn heal(&mut self) {
        self.healing = true;
        self.cuts.clear();
        self.paused.clear();
        for n in 1..=self.options.servers {
            self.start(ServerId(n));
        }
        for step in 1..=60 {
            self.go(self.options.fault_ms + step * 500);
            let known = self.master.configuration();
            if known.members.len() == self.options.goal && self.clients.values().all(|(client, _)| client.idle()) {
                break;
            }
        }
        for (client, _) in self.clients.values_mut() {
            client.closing = true;
        }
        let start = self.now;
        for step in 1..=40 {
            self.go(start + step * 500);
            if self.clients.values().all(|(client, _)| client.closed >= BLOCKS) {
                break;
            }
        }
    }

    /// What must hold at the end besides the invariants.
    fn close(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let known = self.master.configuration();
        if known.members.len() != self.options.goal {
            found.push(format!("did not heal: {known:?}"));
        }
        if self.clients.values().any(|(client, _)| client.closed < BLOCKS) {
            found.extend(
                self.servers.values().map(|server| format!("{:?} at {}: {}", server.id, self.now, server.describe())),
            );
        }
        for (id, (client, _)) in &self.clients {
            if client.closed < BLOCKS {
                found.push(format!(
                    "client {id} could not read everything after healing: {} blocks; {}",
                    client.closed,
                    client.waits_for()
                ));
            }
        }
        let images: Vec<_> = known.members.iter().filter_map(|id| self.servers.get(id)).collect();
        let committed = images.iter().map(|s| s.disk.files.committed).max();
        for server in images.iter().filter(|s| Some(s.disk.files.committed) == committed) {
            if server.disk.files.blocks != images[0].disk.files.blocks
                && images[0].disk.files.committed == server.disk.files.committed
            {
                found.push(format!("replicas differ after healing: {:?} and {:?}", images[0].id, server.id));
            }
        }
        found
    }
}
