//! The simulated cluster: clock and network, and the loop that drives everything in the order of a seed.
//!
//! What goes wrong is in `trouble`, what is judged on the way in `judge`, how a run ends in `close`.

mod close;
mod judge;
mod trouble;

use crate::client::{Client, Sight, Want};
use crate::faults::{Options, Weather};
use crate::history::History;
use crate::invariants;
use crate::master::Master;
use crate::message::{Node, Packet};
use crate::rng::Rng;
use crate::server::{Alarm, Effect, Server, Surroundings};
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::request::Configuration;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use trouble::Trouble;

#[derive(Debug)]
enum Item {
    /// `process` is the receiver's, when the packet dies with its connection.
    Deliver {
        from: Node,
        to: Node,
        packet: Box<Packet>,
        process: Option<u64>,
    },
    Alarm {
        server: ServerId,
        incarnation: u64,
        alarm: Alarm,
    },
    ClientWake {
        client: u64,
        stamp: u64,
    },
    MasterTick,
    MasterFlush,
    Trouble(Trouble),
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
    flushing: bool,
    /// The master loses power as soon as it has something to lose, for so long.
    doomed: Option<u64>,
    /// Until when the master hangs.
    master_paused: u64,
    /// Time that does not count for it.
    master_skipped: u64,
    servers: BTreeMap<ServerId, Server>,
    clients: BTreeMap<u64, (Client, u64)>,
    links: BTreeMap<(Node, Node, u64), u64>,
    cuts: BTreeMap<(Node, Node), u64>,
    paused: BTreeMap<ServerId, u64>,
    healing: bool,
    history: History,
    /// Configurations as they were last judged.
    known: BTreeMap<ChunkHandle, Configuration>,
    exposed: BTreeSet<ChunkHandle>,
    lacking_since: BTreeMap<(ServerId, ChunkHandle), u64>,
    master_lost: bool,
}

/// Runs one seed; the answer lists what was violated.
pub fn run(seed: u64, options: Options) -> Vec<String> {
    let mut world = World::new(seed, options);
    world.go(options.fault_ms);
    world.heal();
    let mut found = world.close();
    found.extend(invariants::check(&world.history));
    found.truncate(12);
    found
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let Options { servers, goal, clients, files, breach, .. } = options;
        let ids = || (1..=servers).map(ServerId);
        let mut world = Self {
            options,
            now: 1,
            rng: Rng::new(seed),
            order: 0,
            queue: BinaryHeap::new(),
            items: BTreeMap::new(),
            master: Master::new(servers, goal, files, breach),
            flushing: false,
            doomed: None,
            master_paused: 0,
            master_skipped: 0,
            servers: ids().map(|id| (id, Server::new(id, breach))).collect(),
            clients: (1..=clients).map(|n| (n, (Client::new(n, 1, files), 0))).collect(),
            links: BTreeMap::new(),
            cuts: BTreeMap::new(),
            paused: BTreeMap::new(),
            healing: false,
            history: History::default(),
            known: BTreeMap::new(),
            exposed: BTreeSet::new(),
            lacking_since: BTreeMap::new(),
            master_lost: false,
        };
        ids().for_each(|server| world.start(server));
        for client in 1..=clients {
            world.push(10, Item::ClientWake { client, stamp: 0 });
        }
        world.push(50, Item::MasterTick);
        world.push(400, Item::Trouble(Trouble::Next));
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
            // One violation is enough, and what follows from it is not worth the time.
            if at > until || !self.history.violations.is_empty() {
                break;
            }
            self.queue.pop();
            self.now = at;
            if let Some(item) = self.items.remove(&order) {
                self.happen(item);
            }
        }
        self.now = until.max(self.now);
    }

    fn happen(&mut self, item: Item) {
        if self.options.show && !matches!(item, Item::MasterTick | Item::Alarm { .. } | Item::ClientWake { .. }) {
            println!("{} {item:?}", self.now);
        }
        match item {
            Item::Deliver { from, to, packet, process } => self.deliver(from, to, packet, process),
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
                    let (now, rng, history) = (self.now, &mut self.rng, &mut self.history);
                    let wants = process.wake(&mut Sight { now, rng, history });
                    self.client_wants(client, wants);
                }
            }
            Item::MasterTick => {
                if self.master.up && self.master_paused <= self.now {
                    self.master.tick(self.master_now(), &mut self.rng);
                    self.after_master(Vec::new());
                }
                self.push(100, Item::MasterTick);
            }
            Item::MasterFlush if self.master_paused > self.now => self.push_at(self.master_paused, item),
            Item::MasterFlush => {
                self.flushing = false;
                if self.master.up {
                    self.master.log.sync();
                }
            }
            Item::Trouble(trouble) => self.trouble(trouble),
        }
    }

    fn paused_until(&self, server: ServerId) -> Option<u64> {
        self.paused.get(&server).copied().filter(|until| *until > self.now)
    }

    fn master_now(&self) -> u64 {
        self.now.max(self.master_paused) - self.master_skipped
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
        // In a run whose disks fail at other times, a store that fails now and then would take the last copies.
        let calm = self.healing || self.options.weather == Weather::Disks;
        let (now, rng, history) = (self.now, &mut self.rng, &mut self.history);
        work(process, &mut Surroundings { now, calm, rng, history, effects: &mut effects });
        let incarnation = process.incarnation;
        for effect in effects {
            match effect {
                Effect::Send(to, packet) => self.send(Node::Server(server), to, packet),
                Effect::Wake(delay, alarm) => self.push(delay, Item::Alarm { server, incarnation, alarm }),
                Effect::Deleted(handle, epoch) => self.judge_deletion(server, handle, epoch),
            }
        }
    }

    fn client_wants(&mut self, client: u64, wants: Vec<Want>) {
        for want in wants {
            match want {
                Want::Send(to, packet) => self.send(Node::Client(client), to, packet),
                Want::Wake(delay) => {
                    let Some((_, stamp)) = self.clients.get_mut(&client) else { return };
                    *stamp += 1;
                    let stamp = *stamp;
                    self.push(delay, Item::ClientWake { client, stamp });
                }
            }
        }
    }

    /// Packets of one lane arrive in order, as on a connection; some are lost, as when it breaks. A request may arrive a
    /// second time, much later, on another one.
    fn send(&mut self, from: Node, to: Node, packet: Packet) {
        let (loss, double) = (self.options.weather.loss_permille(), self.options.weather.double_permille());
        let cut = self.cuts.get(&(from, to)).is_some_and(|until| *until > self.now);
        if cut || (!self.healing && self.rng.below(1000) < loss) {
            return;
        }
        if !self.healing && packet.may_straggle() && self.rng.below(1000) < double {
            let late = self.rng.between(1, 600);
            self.push(late, Item::Deliver { from, to, packet: Box::new(packet.clone()), process: None });
        }
        let stalls = !self.healing && self.rng.below(10_000) < self.options.weather.stall_per_myriad();
        let delay = if stalls {
            self.rng.between(200, 2500)
        } else if self.rng.chance(2) {
            self.rng.between(20, 150)
        } else {
            self.rng.between(1, 6)
        };
        let lane = (from, to, packet.lane());
        let at = (self.now + delay).max(self.links.get(&lane).copied().unwrap_or(0));
        self.links.insert(lane, at);
        let process = self.process_of(to);
        self.push_at(at, Item::Deliver { from, to, packet: Box::new(packet), process });
    }

    fn process_of(&self, node: Node) -> Option<u64> {
        match node {
            Node::Server(server) => self.servers.get(&server).map(|server| server.incarnation),
            Node::Client(client) => self.clients.get(&client).map(|(client, _)| client.incarnation()),
            Node::Master => None,
        }
    }

    fn deliver(&mut self, from: Node, to: Node, packet: Box<Packet>, process: Option<u64>) {
        if process.is_some() && process != self.process_of(to) {
            return;
        }
        match to {
            Node::Server(server) => {
                if let Some(until) = self.paused_until(server) {
                    return self.push_at(until, Item::Deliver { from, to, packet, process });
                }
                self.with_server(server, |process, world| {
                    if process.up {
                        process.receive(from, *packet, world);
                    }
                });
            }
            Node::Client(client) => {
                let Some((process, _)) = self.clients.get_mut(&client) else { return };
                let (now, rng, history) = (self.now, &mut self.rng, &mut self.history);
                let synced = history.synced.clone();
                let wants = process.receive(*packet, &mut Sight { now, rng, history });
                if synced != self.history.synced {
                    self.judge_stable();
                }
                self.client_wants(client, wants);
            }
            Node::Master if self.master_paused > self.now => {
                self.push_at(self.master_paused, Item::Deliver { from, to, packet, process });
            }
            Node::Master if self.master.up => {
                let now = self.master_now();
                let answers = self.master.receive(now, from, *packet, &mut self.rng, &mut self.history);
                self.after_master(answers);
            }
            Node::Master => {}
        }
    }

    /// The master may have changed configurations, and may have something to flush.
    fn after_master(&mut self, answers: Vec<(Node, Packet)>) {
        self.judge_configurations();
        for (to, packet) in answers {
            self.send(Node::Master, to, packet);
        }
        if self.master.log.is_dirty() && !std::mem::replace(&mut self.flushing, true) {
            let takes = self.rng.between(1, 5);
            self.push(takes, Item::MasterFlush);
        }
        if self.master.log.is_dirty()
            && let Some(length) = self.doomed.take()
        {
            self.down_master(true, length);
        }
    }
}
