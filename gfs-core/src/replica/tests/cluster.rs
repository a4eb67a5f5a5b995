//! Servers, disks, a network and a master in memory; time is which step is taken next.

use super::disk::{BLOCK, BLOCKS, Disk};
use super::network::{Body, Copy, Network, Packet, Reply, Request, Wants};
use super::oracle::Oracle;
use crate::ids::{BlockVersion, Epoch, OperationId, Sequence, ServerId, SessionId};
use crate::meta::request::Configuration;
use crate::replica::{
    Action, Answer, Event, Message, Mutation, Outcome, ReadPlan, Replica, Role, Status, Ticket, Token,
};
use crate::splitmix::SplitMix64;
use std::collections::{BTreeMap, BTreeSet};

/// Small deterministic randomness.
pub struct Pick(SplitMix64);

impl Pick {
    pub fn next(&mut self) -> u64 {
        self.0.draw()
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub fn one<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }
}

#[derive(Clone, Copy, Debug)]
enum WaitsFor {
    Client(u64),
    Sync { committed: Sequence },
    Peer { to: ServerId, epoch: Epoch, wants: Wants },
}

#[derive(Clone, Debug)]
struct Filling {
    to: ServerId,
    epoch: Epoch,
    base: Sequence,
    theirs: Option<Vec<BlockVersion>>,
    next: usize,
    waits: bool,
}

pub struct Node {
    pub replica: Option<Replica>,
    pub disk: Disk,
    tokens: BTreeMap<Token, WaitsFor>,
    next_token: u64,
    pub timers: Vec<Event>,
    fills: Vec<Filling>,
    /// Data of the request that is handled now, and of own writes not yet committed.
    data: Vec<u8>,
}

pub struct Cluster {
    pub nodes: BTreeMap<ServerId, Node>,
    pub network: Network,
    pub configuration: Configuration,
    pub oracle: Oracle,
    pub pick: Pick,
    /// Chance in a thousand of a crash before an action.
    pub crash_permille: u64,
    pub copied: usize,
    /// Serving primaries seen, by epoch.
    primaries: BTreeMap<Epoch, ServerId>,
}

pub fn server(number: u16) -> ServerId {
    ServerId(number)
}

impl Cluster {
    pub fn new(seed: u64, servers: u16, members: u16) -> Self {
        let configuration = Configuration {
            epoch: Epoch(1),
            primary: server(1),
            members: (1..=members).map(server).collect(),
            syncing: Vec::new(),
        };
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            network: Network::default(),
            configuration,
            oracle: Oracle::default(),
            pick: Pick(SplitMix64::new(seed)),
            crash_permille: 0,
            copied: 0,
            primaries: BTreeMap::new(),
        };
        for number in 1..=servers {
            let node = Node {
                replica: None,
                disk: Disk::new(),
                tokens: BTreeMap::new(),
                next_token: 0,
                timers: Vec::new(),
                fills: Vec::new(),
                data: Vec::new(),
            };
            cluster.nodes.insert(server(number), node);
            cluster.restart(server(number));
        }
        cluster
    }

    pub fn node(&mut self, id: ServerId) -> &mut Node {
        self.nodes.get_mut(&id).expect("known server")
    }

    pub fn replica(&self, id: ServerId) -> &Replica {
        self.nodes[&id].replica.as_ref().expect("running server")
    }

    pub fn is_up(&self, id: ServerId) -> bool {
        self.nodes[&id].replica.is_some()
    }

    pub fn restart(&mut self, id: ServerId) {
        let node = self.node(id);
        if node.replica.is_none() {
            node.replica = Some(Replica::new(id, node.disk.load()));
            self.feed(id, Event::Lease(true), Vec::new());
        }
    }

    pub fn crash(&mut self, id: ServerId) {
        let node = self.node(id);
        node.replica = None;
        node.tokens.clear();
        node.timers.clear();
        node.fills.clear();
        for lost in self.network.cut(id) {
            self.undelivered(&lost);
        }
    }

    /// The sender learns that a packet was not answered.
    pub fn undelivered(&mut self, packet: &Packet) {
        let event = match packet.wants {
            Wants::Query | Wants::Nothing => return,
            _ => Event::Unreachable { server: packet.to, epoch: packet.epoch },
        };
        self.node(packet.from).timers.push(event);
    }

    /// Feeds an event and carries out the actions, with crashes in between.
    pub fn feed(&mut self, id: ServerId, event: Event, data: Vec<u8>) {
        let node = self.node(id);
        let Some(replica) = node.replica.as_mut() else { return };
        node.data = data;
        let mut actions = replica.handle(event);
        while !actions.is_empty() {
            let mut stored = false;
            for action in std::mem::take(&mut actions) {
                assert!(!stored, "an action after a store");
                if self.crash_permille > 0 && self.pick.next() % 1000 < self.crash_permille {
                    return self.crash(id);
                }
                stored = self.perform(id, action);
            }
            let node = self.node(id);
            if stored && let Some(replica) = node.replica.as_mut() {
                actions = replica.handle(Event::Stored(Ok(())));
            }
        }
        self.check_single_primary(id);
    }

    fn check_single_primary(&mut self, id: ServerId) {
        if let Some(replica) = &self.nodes[&id].replica
            && replica.role() == Role::Primary
            && replica.is_serving()
        {
            let first = *self.primaries.entry(replica.epoch()).or_insert(id);
            assert_eq!(first, id, "two primaries in epoch {}", replica.epoch());
        }
    }

    fn perform(&mut self, id: ServerId, action: Action) -> bool {
        let node = self.nodes.get_mut(&id).expect("known server");
        match action {
            Action::Persist(configuration) => node.disk.configuration = Some(configuration),
            Action::Store { write, .. } => {
                node.disk.prepare(&write, &node.data);
                return true;
            }
            Action::Commit(upto) => node.disk.commit(upto),
            Action::RollBack(above) => node.disk.roll_back(above),
            Action::StartFill { base } => node.disk.start_fill(base),
            Action::Suspect(suspect) => node.disk.suspect = suspect,
            Action::Send { to, message } => self.send(id, to, message),
            Action::Reply { token, outcome } => self.reply(id, token, outcome),
            Action::Flush(ticket) => node.timers.push(Event::Flushed { ticket, ok: true }),
            Action::AskMaster => {}
            Action::RetryLater(server) => node.timers.push(Event::Retry(server)),
            Action::Fill { to, epoch, base, trusted } => {
                let theirs = trusted.then(|| self.nodes[&to].disk.versions.clone());
                let filling = Filling { to, epoch, base, theirs, next: 0, waits: false };
                self.node(id).fills.push(filling);
            }
        }
        false
    }

    fn send(&mut self, from: ServerId, to: ServerId, message: Message) {
        let node = &self.nodes[&from];
        let replica = node.replica.as_ref().expect("running server");
        let (wants, data) = match &message {
            Message::Settle { .. } => (Wants::Settle, Vec::new()),
            Message::Committed(_) => (Wants::Nothing, Vec::new()),
            Message::Flush { ticket, .. } => (Wants::Flush(*ticket), Vec::new()),
            Message::Prepare { write, .. } => (Wants::Prepare, node.disk.prepared[&write.sequence()].1.clone()),
        };
        let configuration = replica.configuration().expect("a primary has one").clone();
        let epoch = configuration.epoch;
        let body = Body::Message { configuration, message, data };
        self.network.send(Packet { from, to, epoch, wants, body });
    }

    fn reply(&mut self, from: ServerId, token: Token, outcome: Outcome) {
        let node = self.nodes.get_mut(&from).expect("known server");
        match node.tokens.remove(&token) {
            Some(WaitsFor::Client(operation)) => self.oracle.answered(operation, outcome),
            Some(WaitsFor::Sync { committed }) if outcome.status == Status::Ok => {
                assert!(outcome.sequence >= committed, "a flush that stops short");
                self.oracle.synced = self.oracle.synced.max(outcome.sequence);
            }
            Some(WaitsFor::Peer { to, epoch, wants }) => {
                let configuration = node.replica.as_ref().and_then(|replica| replica.configuration().cloned());
                self.network.replies.push(Reply { from, to, epoch, wants, outcome, configuration });
            }
            Some(WaitsFor::Sync { .. }) | None => {}
        }
    }

    fn token(&mut self, id: ServerId, waits: WaitsFor) -> Token {
        let node = self.node(id);
        node.next_token += 1;
        let token = Token(node.next_token);
        node.tokens.insert(token, waits);
        token
    }

    /// A packet arrives.
    pub fn deliver(&mut self, packet: Packet) {
        let Packet { from, to, epoch, wants, body } = packet.clone();
        if !self.is_up(to) {
            return self.undelivered(&packet);
        }
        match body {
            Body::Message { configuration, message, data } => {
                self.feed(to, Event::Configuration(configuration), Vec::new());
                if !self.is_up(to) {
                    return self.undelivered(&packet);
                }
                let token = self.token(to, WaitsFor::Peer { to: from, epoch, wants });
                let token = (wants != Wants::Nothing).then_some(token);
                self.feed(to, Event::Peer { token, epoch, message }, data);
                if !self.is_up(to) {
                    self.undelivered(&packet);
                }
            }
            Body::Copy(copy) => self.deliver_copy(from, to, epoch, &copy),
            Body::Query { unsettled } => {
                let token = self.token(to, WaitsFor::Peer { to: from, epoch, wants });
                let unsettled = unsettled.then_some(from);
                self.feed(to, Event::CommittedQuery { token, epoch, unsettled }, Vec::new());
            }
        }
    }

    fn deliver_copy(&mut self, from: ServerId, to: ServerId, epoch: Epoch, copy: &Copy) {
        let node = self.node(to);
        let replica = node.replica.as_mut().expect("running server");
        let outcome = match replica.accept_copy(epoch, copy.committed) {
            Ok(actions) => {
                for action in actions {
                    self.perform(to, action);
                }
                let node = self.node(to);
                node.disk.copy_in(copy.first, &copy.blocks, epoch);
                if let (Some((length, operations)), Some(replica)) = (&copy.last, node.replica.as_mut()) {
                    node.disk.copy_finish(*length, operations);
                    replica.finish_copy(*length, operations);
                }
                Outcome::of(Status::Ok)
            }
            Err(status) => Outcome::of(status),
        };
        self.network.replies.push(Reply {
            from: to,
            to: from,
            epoch,
            wants: Wants::Copy,
            outcome,
            configuration: None,
        });
    }

    /// An answer arrives.
    pub fn deliver_reply(&mut self, reply: Reply) {
        let Reply { from, to, epoch, wants, outcome, configuration } = reply;
        if let (Status::StaleEpoch, Some(configuration)) = (outcome.status, configuration) {
            self.feed(to, Event::Configuration(configuration), Vec::new());
        }
        let answer = match wants {
            Wants::Settle => Answer::Settle(outcome),
            Wants::Prepare => Answer::Prepare(outcome),
            Wants::Flush(ticket) => Answer::Flush(ticket, outcome),
            Wants::Nothing => return,
            Wants::Copy => return self.copy_answered(from, to, epoch, outcome),
            Wants::Query => {
                if outcome.status == Status::Ok {
                    self.feed(to, Event::CommittedLearned { epoch, committed: outcome.sequence }, Vec::new());
                }
                return;
            }
        };
        self.feed(to, Event::Answer { from, epoch, answer }, Vec::new());
    }

    fn copy_answered(&mut self, from: ServerId, to: ServerId, epoch: Epoch, outcome: Outcome) {
        let node = self.node(to);
        let Some(at) = node.fills.iter().position(|fill| fill.to == from && fill.epoch == epoch && fill.waits) else {
            return;
        };
        node.fills[at].waits = false;
        if outcome.status != Status::Ok {
            node.fills.remove(at);
            self.feed(to, Event::Unreachable { server: from, epoch }, Vec::new());
        } else if node.fills[at].next >= BLOCKS {
            node.fills.remove(at);
            self.feed(to, Event::Filled { server: from, epoch }, Vec::new());
        }
    }

    /// Sends the next piece of a copy, if one is under way at this server.
    pub fn copy_step(&mut self, id: ServerId) {
        let node = self.nodes.get_mut(&id).expect("known server");
        let Some(replica) = node.replica.as_ref() else { return };
        node.fills.retain(|fill| replica.is_filling(fill.to, fill.epoch));
        let Some(fill) = node.fills.iter_mut().find(|fill| !fill.waits) else { return };
        let same = |block: usize, fill: &Filling| {
            let mine = node.disk.versions[block];
            mine.sequence <= fill.base && fill.theirs.as_ref().is_some_and(|theirs| theirs[block] == mine)
        };
        while fill.next < BLOCKS && same(fill.next, fill) {
            fill.next += 1;
        }
        let first = fill.next.min(BLOCKS);
        fill.next = (first + 3).min(BLOCKS);
        fill.waits = true;
        let blocks: Vec<_> = (first..fill.next)
            .map(|block| (node.disk.versions[block], node.disk.content[block * BLOCK..(block + 1) * BLOCK].to_vec()))
            .collect();
        self.copied += blocks.len();
        let last = (fill.next == BLOCKS).then(|| (replica.length(), replica.operations()));
        let body = Body::Copy(Copy { committed: replica.committed(), first, blocks, last });
        let packet = Packet { from: id, to: fill.to, epoch: fill.epoch, wants: Wants::Copy, body };
        self.network.send(packet);
    }

    /// A client sends an operation to a server under an epoch.
    pub fn request(&mut self, operation: u64, to: ServerId, epoch: Epoch) {
        let confirmed = self.oracle.confirmed();
        let known = &self.oracle.outstanding[&operation];
        let request = Request { to, epoch, operation, confirmed, mutation: known.mutation, data: known.data.clone() };
        self.network.requests.push(request);
    }

    pub fn deliver_request(&mut self, request: Request) {
        if !self.is_up(request.to) {
            return;
        }
        let token = self.token(request.to, WaitsFor::Client(request.operation));
        let operation = OperationId { session: SessionId(9), operation: request.operation };
        let Request { epoch, confirmed, mutation, data, .. } = request;
        self.feed(request.to, Event::Mutate { token, epoch, operation, confirmed, mutation, fenced: false }, data);
    }

    pub fn sync(&mut self, to: ServerId) {
        if let Some(replica) = &self.nodes[&to].replica {
            let (epoch, committed) = (replica.epoch(), replica.committed());
            let token = self.token(to, WaitsFor::Sync { committed });
            self.feed(to, Event::Sync { token, epoch }, Vec::new());
        }
    }

    /// A client reads the whole chunk under the server's own epoch.
    pub fn read(&mut self, id: ServerId) -> bool {
        let Some(replica) = &self.nodes[&id].replica else { return false };
        let epoch = replica.epoch();
        match replica.plan_read(epoch, 0, super::disk::CHUNK as u64) {
            ReadPlan::Local => {
                let content = self.nodes[&id].disk.content.clone();
                self.oracle.check_read(&content, &format!("server {id} in epoch {epoch}"));
                true
            }
            ReadPlan::AskPrimary(to) => {
                let body = Body::Query { unsettled: false };
                self.network.send(Packet { from: id, to, epoch, wants: Wants::Query, body });
                false
            }
            ReadPlan::Refuse(_) => {
                self.ask_for_settle(id);
                false
            }
        }
    }

    /// A secondary that has not settled since it started makes itself known.
    pub fn ask_for_settle(&mut self, id: ServerId) {
        if let Some(replica) = &self.nodes[&id].replica
            && matches!(replica.role(), Role::Secondary | Role::Syncing)
            && !replica.is_settled()
        {
            let (epoch, to) = (replica.epoch(), replica.primary());
            let body = Body::Query { unsettled: true };
            self.network.send(Packet { from: id, to, epoch, wants: Wants::Query, body });
        }
    }

    /// The master tells a leased server what is in force.
    pub fn tell(&mut self, id: ServerId) {
        let configuration = self.configuration.clone();
        self.feed(id, Event::Lease(true), Vec::new());
        self.feed(id, Event::InForce(configuration), Vec::new());
    }

    /// The master installs a configuration; servers that it drops have lost their lease first.
    pub fn install(&mut self, mut next: Configuration) {
        let dropped: Vec<ServerId> =
            self.configuration.members.iter().copied().filter(|old| !next.members.contains(old)).collect();
        for id in dropped {
            self.feed(id, Event::Lease(false), Vec::new());
        }
        next.epoch = self.configuration.epoch.next();
        self.configuration = next;
    }

    /// The master grants what a primary wants.
    pub fn grant(&mut self, id: ServerId) {
        let Some(wanted) = self.nodes[&id].replica.as_ref().and_then(Replica::wanted_change) else { return };
        if wanted.epoch != self.configuration.epoch {
            return self.tell(id);
        }
        let mut next = self.configuration.clone();
        let failed: BTreeSet<ServerId> = wanted.failed.into_iter().collect();
        next.syncing.retain(|server| !failed.contains(server) && !wanted.ready.contains(server));
        let kept: BTreeSet<ServerId> =
            next.members.iter().chain(&wanted.ready).copied().filter(|server| !failed.contains(server)).collect();
        let Some(first) = kept.first().copied() else { return };
        next.members = kept.into_iter().collect();
        if !next.members.contains(&next.primary) {
            next.primary = first;
        }
        self.install(next);
        self.tell(id);
    }

    pub fn timer(&mut self, id: ServerId) {
        let count = self.nodes[&id].timers.len();
        if count > 0 {
            let at = self.pick.below(count);
            let event = self.node(id).timers.remove(at);
            self.feed(id, event, Vec::new());
        }
    }

    /// Delivers everything, in order, until nothing moves.
    pub fn settle_down(&mut self) {
        for _ in 0..100_000 {
            if let Some(packet) = self.network.next(&mut self.pick) {
                self.deliver(packet);
            } else if let Some(reply) = self.network.replies.pop() {
                self.deliver_reply(reply);
            } else if let Some(request) = self.network.requests.pop() {
                self.deliver_request(request);
            } else if !self.run_background() {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn run_background(&mut self) -> bool {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.copy_step(id);
            let flushes = self.nodes[&id].timers.iter().position(|event| matches!(event, Event::Flushed { .. }));
            if let Some(at) = flushes {
                let event = self.node(id).timers.remove(at);
                self.feed(id, event, Vec::new());
                return true;
            }
        }
        !self.network.is_quiet()
    }

    /// Makes a client's operation and delivers it to the primary; true when it was acknowledged.
    pub fn write(&mut self, cell: usize) -> u64 {
        let operation = self.oracle.begin(Some(cell)).expect("a free cell");
        self.request(operation, self.configuration.primary, self.configuration.epoch);
        operation
    }

    pub fn mutation(&self, operation: u64) -> Mutation {
        self.oracle.outstanding[&operation].mutation
    }

    pub fn flush_ticket(&self, id: ServerId) -> Option<Ticket> {
        self.nodes[&id].timers.iter().find_map(|event| match event {
            Event::Flushed { ticket, .. } => Some(*ticket),
            _ => None,
        })
    }
}
