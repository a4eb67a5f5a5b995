//! The master of a simulated cluster: the real metadata state machine on a pretended log, and a leader's soft state.
//!
//! This room owns what is asked of the master and what it answers. The log is in `log`, who the members of a chunk are next in
//! `succession`, work that nobody asks for in `background`. What is answered before the log's flush survives a kill of the
//! process and no power cut; what chunk servers act on, locks, sessions and reserved chunks wait for it
//! (docs/decisions/0008).

mod background;
mod log;
mod succession;

use crate::breaks::{Breach, Neglect};
use crate::disk::CHUNK;
use crate::history::History;
use crate::message::{Assigned, Health, Held, Node, Orders, Packet, ZeroTail, Zeroed};
use crate::rng::Rng;
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, OperationId, ROOT, Sequence, ServerId, SessionId};
use gfs_core::meta::command::{Command, CommandReply, ServerIdentity};
use gfs_core::meta::request::{ClientCommand, Configuration, Credentials, NodeKind, Reply, Request};
use gfs_core::meta::state::State;
use gfs_core::replica::WantedChange;
pub use log::Log;
use std::collections::{BTreeMap, BTreeSet};

/// The membership lease, in milliseconds.
pub const LEASE_MS: u64 = 1600;
/// A chunk server stops serving this long after the sending of the heartbeat that was answered.
pub const FENCE_MS: u64 = 1400;
/// A server that was not heard of for so long is taken for gone.
const SUSPICION_MS: u64 = 400;
/// Nothing is deleted before all servers have reported, or for so long.
const SETTLE_MS: u64 = 60_000;

/// What a server said of itself last.
#[derive(Clone, Debug, Default)]
struct Heard {
    incarnation: u64,
    at: u64,
    held: BTreeMap<ChunkHandle, (Epoch, Health, Sequence)>,
}

/// After it hung, a leader takes so long to take what was said meanwhile, in milliseconds.
const CATCH_UP_MS: u64 = 500;

/// What a leader knows and loses with its process.
#[derive(Clone, Debug, Default)]
struct Soft {
    started: u64,
    /// Until when each server may believe that it has a lease.
    leases: BTreeMap<ServerId, u64>,
    heard: BTreeMap<ServerId, Heard>,
    /// When it has taken what was said while it was away.
    caught_up: u64,
    /// Answers that wait for a cut to be finished.
    waiting: Vec<(Node, u64, InodeId, Reply)>,
    /// Cuts that were pending when this leader began, and are forgotten if the rule is broken.
    forgotten: BTreeSet<InodeId>,
}

/// The master.
pub struct Master {
    /// Its log.
    pub log: Log,
    /// What is committed.
    pub state: State,
    /// Whether the process runs.
    pub up: bool,
    /// Whether somebody ended a session that has to be ended.
    pub ending: Vec<(u64, SessionId)>,
    breach: Breach,
    servers: u16,
    goal: usize,
    soft: Soft,
}

/// Packets to send.
type Out = Vec<(Node, Packet)>;

impl Master {
    /// Formats a cluster of `servers` with `files` empty files in the root directory.
    pub fn new(servers: u16, goal: usize, files: u64, breach: Breach) -> Self {
        let mut log = Log::format(CHUNK, goal as u8, breach.of_core());
        let mut state = log.replay(0);
        let mut apply = |command| log.submit(&mut state, 0, command);
        for n in 1..=servers {
            let identity = ServerIdentity {
                uuid: n.into(),
                address: format!("s{n}:1"),
                host: format!("s{n}"),
                ..ServerIdentity::default()
            };
            assert_eq!(apply(Command::RegisterServer(identity)), CommandReply::Server(ServerId(n)));
        }
        let open = Command::OpenSession { nonce: 1, description: "simulation".into() };
        let CommandReply::Session(session) = apply(open) else { panic!("no session") };
        for file in 0..files {
            let id = OperationId { session, operation: file + 1 };
            let (credentials, request) = (Credentials::default(), create(ROOT, &file_name(file), NodeKind::File));
            apply(Command::Client(ClientCommand { id, confirmed: 0, credentials, request }));
        }
        log.sync();
        Self { log, state, up: true, ending: Vec::new(), breach, servers, goal, soft: Soft::default() }
    }

    /// A new leader takes over: it knows what the log holds and nothing else. Answers what is wrong with that.
    pub fn restart(&mut self, now: u64, lost: bool) -> Vec<String> {
        let mut found = self.log.check_replays();
        let replayed = self.log.replay_from_checkpoint();
        if !lost && replayed.hash() != self.state.hash() {
            found.push("the log does not give the state that was served".into());
        }
        self.state = replayed;
        self.up = true;
        let everybody = (1..=self.servers).map(|n| (ServerId(n), now + LEASE_MS)).collect();
        self.soft = Soft { started: now, leases: everybody, ..Soft::default() };
        if self.breach.neglects(Neglect::CutNotRedone) {
            self.soft.forgotten = self.state.shrinks().map(|shrink| shrink.inode).collect();
        }
        if lost {
            // Inode numbers that the power cut took back must not come to mean other files.
            self.propose(now, Command::SkipInodes { count: 1000 });
        }
        found
    }

    /// The process hangs, and goes on at `back`.
    pub fn pause(&mut self, back: u64) {
        self.soft.caught_up = back + CATCH_UP_MS;
    }

    /// The machine lost power; answers whether anything of the log is lost with it.
    pub fn lose_power(&mut self, rng: &mut Rng, found: &mut Vec<String>) -> bool {
        self.up = false;
        self.log.lose_power(rng, found)
    }

    /// A command that survives a kill from now on, and a power cut after the next flush.
    fn submit(&mut self, now: u64, command: Command) -> CommandReply {
        self.log.submit(&mut self.state, now, command)
    }

    /// A command that is on stable storage when this returns.
    fn propose(&mut self, now: u64, command: Command) -> CommandReply {
        let reply = self.log.submit(&mut self.state, now, command);
        if !self.breach.neglects(Neglect::ToldBeforeDurable) {
            self.log.sync();
        }
        reply
    }

    /// Whether a server was heard a moment ago.
    pub fn alive(&self, now: u64, server: ServerId) -> bool {
        self.soft.heard.get(&server).is_some_and(|heard| now < heard.at + SUSPICION_MS)
    }

    fn lease_over(&self, now: u64, server: ServerId) -> bool {
        let over = self.soft.leases.get(&server).is_none_or(|until| now > *until) && now >= self.soft.caught_up;
        over || self.breach.neglects(Neglect::LeaseNotWaited)
    }

    fn is_settled(&self, now: u64) -> bool {
        self.soft.heard.len() == usize::from(self.servers) || now > self.soft.started + SETTLE_MS
    }

    /// A packet arrived.
    pub fn receive(&mut self, now: u64, from: Node, packet: Packet, rng: &mut Rng, history: &mut History) -> Out {
        match packet {
            Packet::Heartbeat { incarnation, number, held, deleted, zeroed } => {
                let Node::Server(server) = from else { return Vec::new() };
                if !self.hear(now, server, incarnation, &held) {
                    return Vec::new();
                }
                let mut out = self.take_report(now, server, &held, deleted, zeroed);
                let orders = self.orders(now, server, &held);
                out.push((from, Packet::Lease { incarnation, number, orders }));
                out
            }
            Packet::Want { incarnation, handle, change } => {
                if let Node::Server(server) = from {
                    self.want(now, server, incarnation, handle, &change);
                }
                vec![self.located(from, 0, handle)]
            }
            Packet::Locate { call, handle, suspects } => {
                self.suspected(now, handle, &suspects);
                vec![self.located(from, call, handle)]
            }
            Packet::Open { call } => {
                let nonce = match from {
                    Node::Client(client) => client << 32 | (call & 0xffff_ffff),
                    _ => call,
                };
                let command = Command::OpenSession { nonce, description: "client".into() };
                let CommandReply::Session(session) = self.propose(now, command) else { return Vec::new() };
                vec![(from, Packet::Opened { call, session })]
            }
            Packet::Command { call, command } => self.command(now, from, call, command, rng, history),
            Packet::Ask { call, query } => {
                let answer = self.state.query(&Credentials::default(), &query);
                vec![(from, Packet::Told { call, answer })]
            }
            other => unreachable!("the master got {other:?} from {from:?}"),
        }
    }

    /// Notes a heartbeat; answers whether it is of the server's present process.
    fn hear(&mut self, now: u64, server: ServerId, incarnation: u64, held: &[Held]) -> bool {
        if self.soft.heard.get(&server).is_some_and(|known| known.incarnation > incarnation) {
            return false;
        }
        let held = held.iter().map(|held| (held.handle, (held.epoch, held.health, held.flushed))).collect();
        self.soft.heard.insert(server, Heard { incarnation, at: now, held });
        self.soft.leases.insert(server, now + LEASE_MS);
        true
    }

    /// What a server has done, and what it holds that nobody names.
    fn take_report(
        &mut self,
        now: u64,
        server: ServerId,
        held: &[Held],
        deleted: Vec<ChunkHandle>,
        zeroed: Vec<Zeroed>,
    ) -> Out {
        let done: Vec<_> = deleted
            .into_iter()
            .filter(|handle| self.state.tombstone(server, *handle).is_some())
            .map(|handle| (handle, server))
            .collect();
        if !done.is_empty() {
            self.propose(now, Command::ForgetTombstones { done });
        }
        for Zeroed { order, stored } in zeroed {
            let ZeroTail { inode, handle, cut, .. } = order;
            if self.state.shrink(inode).is_some_and(|shrink| shrink.handle == handle) {
                self.propose(now, Command::FinishShrink { inode, handle, epoch: cut, stored: Some(stored) });
            }
        }
        if self.is_settled(now) {
            let stray = |held: &&Held| {
                let info = self.state.chunk(held.handle);
                let epoch = info.as_ref().map_or(Epoch(u32::MAX), |info| info.configuration.epoch);
                let condemned = self.state.tombstone(server, held.handle).is_some_and(|known| known.epoch >= epoch);
                // A chunk that is gone has a tombstone of its last epoch, which is enough.
                let buried = info.is_none() && self.state.tombstone(server, held.handle).is_some();
                !condemned && !buried && !info.is_some_and(|info| names(&info.configuration, server))
            };
            let replicas: Vec<_> = held.iter().filter(stray).map(|held| (held.handle, server)).collect();
            if !replicas.is_empty() {
                self.propose(now, Command::CondemnUnknown { replicas });
            }
        }
        self.release_waiting()
    }

    fn orders(&self, now: u64, server: ServerId, held: &[Held]) -> Orders {
        let mut orders = Orders::default();
        for info in self.state.chunks_from(ChunkHandle(0)) {
            if names(&info.configuration, server) || held.iter().any(|held| held.handle == info.handle) {
                let (handle, configuration) = (info.handle, info.configuration);
                orders.assigned.push(Assigned { handle, configuration, attached: info.reserved.is_none() });
            }
        }
        orders.gone =
            held.iter().map(|held| held.handle).filter(|handle| self.state.chunk(*handle).is_none()).collect();
        if self.is_settled(now) {
            let due = self.state.tombstones_of(server, ChunkHandle(0));
            orders.delete = due.map(|tombstone| (tombstone.handle, tombstone.epoch)).collect();
        }
        for shrink in self.state.shrinks().filter(|shrink| !self.soft.forgotten.contains(&shrink.inode)) {
            if self.state.chunk(shrink.handle).is_some_and(|info| info.configuration.primary == server) {
                let (inode, handle, from, cut) = (shrink.inode, shrink.handle, shrink.from, shrink.epoch);
                orders.zero.push(ZeroTail { inode, handle, from, cut });
            }
        }
        orders
    }

    fn located(&self, to: Node, call: u64, handle: ChunkHandle) -> (Node, Packet) {
        let assigned = self.state.chunk(handle).map(|info| {
            let (configuration, attached) = (info.configuration, info.reserved.is_none());
            Assigned { handle, configuration, attached }
        });
        (to, Packet::Located { call, handle, assigned })
    }

    /// A primary wants a change. A process that has been replaced is not heard: what it knew of its peers died with it.
    fn want(&mut self, now: u64, asker: ServerId, incarnation: u64, handle: ChunkHandle, change: &WantedChange) {
        let Some(info) = self.state.chunk(handle) else { return };
        let current = self.soft.heard.get(&asker).is_some_and(|known| known.incarnation == incarnation);
        if current && change.epoch == info.configuration.epoch && info.configuration.primary == asker {
            self.change(now, handle, &change.failed, &change.ready, Some(asker));
        }
    }

    /// A client can't reach these servers.
    fn suspected(&mut self, now: u64, handle: ChunkHandle, suspects: &[ServerId]) {
        let Some(info) = self.state.chunk(handle) else { return };
        let primary = info.configuration.primary;
        if suspects.contains(&primary) && !self.alive(now, primary) {
            self.change(now, handle, &[primary], &[], None);
        }
    }

    /// A client's mutation.
    fn command(
        &mut self,
        now: u64,
        from: Node,
        call: u64,
        mut command: ClientCommand,
        rng: &mut Rng,
        history: &mut History,
    ) -> Out {
        let known = self.state.replayed(command.id).is_some();
        if !known && self.state.waits_for_shrink(&command.request) {
            // Proposed when the cut is done; the client asks again until then.
            return Vec::new();
        }
        if let (false, Request::AllocateChunks { placements, .. }) = (known, &mut command.request) {
            match self.place(now, rng) {
                Some(servers) => *placements = vec![servers.clone(), servers],
                None => return Vec::new(),
            }
        }
        let request = command.request.clone();
        let (id, operation) = (command.id, command.id.operation);
        let durable = match &request {
            Request::AllocateChunks { .. } | Request::Barrier { .. } => true,
            Request::SetAttributes { changes, .. } => changes.size.is_some(),
            _ => false,
        };
        let command = Command::Client(command);
        let reply = if durable { self.propose(now, command) } else { self.submit(now, command) };
        let CommandReply::Client(reply) = reply else { return Vec::new() };
        match (&request, &reply) {
            (Request::CommitWrite { inode, attach, .. }, Reply::Attributes { .. }) => {
                history.places.extend(attach.iter().map(|(_, handle)| (*handle, *inode)));
            }
            (Request::Barrier { .. }, Reply::Done) => self.log.note_barrier(),
            (Request::SetAttributes { inode, .. }, Reply::Attributes { pending_shrink: true, .. })
                if self.state.shrink(*inode).is_some() =>
            {
                self.soft.waiting.push((from, call, *inode, reply));
                return Vec::new();
            }
            _ => {}
        }
        debug_assert!(operation > 0 && id.session > SessionId(0));
        vec![(from, Packet::Done { call, reply })]
    }

    /// Servers for a new chunk: those that are alive, the primary first.
    fn place(&self, now: u64, rng: &mut Rng) -> Option<Vec<ServerId>> {
        let mut alive: Vec<ServerId> = (1..=self.servers).map(ServerId).filter(|s| self.alive(now, *s)).collect();
        while alive.len() > self.goal {
            alive.remove(rng.below(alive.len() as u64) as usize);
        }
        let first = rng.below(alive.len() as u64) as usize;
        if first < alive.len() {
            alive.swap(0, first);
        }
        (alive.len() >= 2).then_some(alive)
    }

    fn release_waiting(&mut self) -> Out {
        let state = &self.state;
        let (ready, waiting) = std::mem::take(&mut self.soft.waiting)
            .into_iter()
            .partition(|(_, _, inode, _)| state.shrink(*inode).is_none());
        self.soft.waiting = waiting;
        let ready: Vec<(Node, u64, InodeId, Reply)> = ready;
        ready.into_iter().map(|(to, call, _, reply)| (to, Packet::Done { call, reply })).collect()
    }
}

fn names(configuration: &Configuration, server: ServerId) -> bool {
    configuration.members.contains(&server) || configuration.syncing.contains(&server)
}

/// A request that makes something under a name that must be free.
pub fn create(parent: InodeId, name: &[u8], kind: NodeKind) -> Request {
    Request::Create { parent, name: name.to_vec(), kind, mode: 0o755, umask: 0, exclusive: true, hold: false }
}

/// The name of a file that all clients share.
pub fn file_name(file: u64) -> Vec<u8> {
    format!("file{file}").into_bytes()
}
