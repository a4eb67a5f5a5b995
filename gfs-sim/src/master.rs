//! The master of a simulated cluster: the real metadata state machine for what is committed, and a leader's soft state.
//!
//! A configuration that drops a member takes effect only when that member agreed or its lease is surely over (rule 2).

use gfs_core::ids::{ChunkHandle, ClusterId, Epoch, OperationId, ServerId, SessionId};
use gfs_core::meta::command::{Command, CommandReply, ServerIdentity, Stamp};
use gfs_core::meta::request::{ClientCommand, Configuration, Credentials, NodeKind, Reply, Request, Timestamp};
use gfs_core::meta::state::State;
use gfs_core::replica::WantedChange;
use std::collections::{BTreeMap, BTreeSet};

/// The membership lease, in milliseconds.
pub const LEASE_MS: u64 = 1600;
/// A chunk server stops serving this long after the sending of the heartbeat that was answered.
pub const FENCE_MS: u64 = 1400;

/// The master.
pub struct Master {
    /// What is committed; survives a restart.
    pub state: State,
    /// The one chunk.
    pub handle: ChunkHandle,
    goal: usize,
    /// Until when each server may believe that it has a lease.
    leases: BTreeMap<ServerId, u64>,
    /// Last heard of.
    heard: BTreeMap<ServerId, (u64, u64)>,
    /// Servers that serve nothing in this epoch.
    unfit: BTreeMap<ServerId, Epoch>,
}

fn apply(state: &mut State, now: u64, command: Command) -> CommandReply {
    let stamp = Stamp { now: Timestamp(now as i64 * 1_000_000), seed: now };
    state.apply(stamp, &command)
}

fn client(state: &mut State, session: SessionId, operation: u64, request: Request) -> Reply {
    let id = OperationId { session, operation };
    let command = ClientCommand { id, confirmed: 0, credentials: Credentials::default(), request };
    match apply(state, 1, Command::Client(command)) {
        CommandReply::Client(reply) => reply,
        other => panic!("a client's command was answered {other:?}"),
    }
}

impl Master {
    /// Formats a cluster of `servers` with one file of one chunk on the first `goal` of them.
    pub fn new(servers: u16, goal: usize) -> Self {
        let mut state = State::format(ClusterId(7), 64 << 20, goal as u8, 0o755, Timestamp(0));
        for n in 1..=servers {
            let identity = ServerIdentity {
                uuid: n.into(),
                address: format!("s{n}:1"),
                host: format!("s{n}"),
                ..ServerIdentity::default()
            };
            assert_eq!(apply(&mut state, 0, Command::RegisterServer(identity)), CommandReply::Server(ServerId(n)));
        }
        let open = Command::OpenSession { nonce: 1, description: "simulation".into() };
        let CommandReply::Session(session) = apply(&mut state, 0, open) else { panic!("no session") };
        let create = Request::Create {
            parent: gfs_core::ids::ROOT,
            name: b"file".to_vec(),
            kind: NodeKind::File,
            mode: 0o644,
            umask: 0,
            exclusive: true,
        };
        let Reply::Entry { attributes, .. } = client(&mut state, session, 1, create) else { panic!("no file") };
        let members = (1..=goal as u16).map(ServerId).collect();
        let allocate = Request::AllocateChunks { replicas: goal as u8, placements: vec![members] };
        let Reply::Chunks(chunks) = client(&mut state, session, 2, allocate) else { panic!("no chunk") };
        let handle = chunks[0].0;
        let commit = Request::CommitWrite {
            inode: attributes.inode,
            attach: vec![(0, handle)],
            used: vec![],
            min_size: Some(0),
            clear_suid: false,
            space: None,
        };
        client(&mut state, session, 3, commit);
        Self { state, handle, goal, leases: BTreeMap::new(), heard: BTreeMap::new(), unfit: BTreeMap::new() }
    }

    /// A new leader takes over: it knows what is committed and nothing else.
    pub fn restart(&mut self, now: u64) {
        self.heard.clear();
        self.unfit.clear();
        let everybody: Vec<_> = (1..=64).map(ServerId).collect();
        self.leases = everybody.into_iter().map(|server| (server, now + LEASE_MS)).collect();
    }

    /// The configuration in force.
    pub fn configuration(&self) -> Configuration {
        self.state.chunk(self.handle).map(|chunk| chunk.configuration).unwrap_or_default()
    }

    /// A heartbeat arrived; its answer renews the lease.
    pub fn heartbeat(&mut self, now: u64, server: ServerId, incarnation: u64, unfit: Option<Epoch>) {
        if self.heard.get(&server).is_some_and(|(known, _)| *known > incarnation) {
            return;
        }
        self.heard.insert(server, (incarnation, now));
        match unfit {
            Some(epoch) => self.unfit.insert(server, epoch),
            None => self.unfit.remove(&server),
        };
        self.leases.insert(server, now + LEASE_MS);
        self.recruit(now);
    }

    fn alive(&self, now: u64, server: ServerId) -> bool {
        self.heard.get(&server).is_some_and(|(_, at)| now < at + 400)
    }

    fn lease_over(&self, now: u64, server: ServerId) -> bool {
        self.leases.get(&server).is_none_or(|until| now > *until)
    }

    fn install(&mut self, now: u64, next: Configuration) {
        let expected = self.configuration().epoch;
        apply(&mut self.state, now, Command::Reconfigure { handle: self.handle, expected, next });
    }

    /// A primary wants a change. A process that has been replaced is not heard: what it knew of its peers died with it.
    pub fn want(&mut self, now: u64, asker: ServerId, incarnation: u64, change: &WantedChange) {
        let known = self.configuration();
        let current = self.heard.get(&asker).is_some_and(|(registered, _)| *registered == incarnation);
        if !current || change.epoch != known.epoch || known.primary != asker {
            return;
        }
        let droppable = |server: &ServerId| {
            let agrees = *server == asker || self.unfit.get(server) == Some(&known.epoch);
            agrees || known.syncing.contains(server) || self.lease_over(now, *server)
        };
        let drop: BTreeSet<ServerId> = change.failed.iter().copied().filter(droppable).collect();
        let ready = change.ready.iter().filter(|server| known.syncing.contains(server) && !drop.contains(server));
        let ready: BTreeSet<ServerId> = ready.copied().collect();
        self.reconfigure(now, &drop, &ready);
    }

    fn reconfigure(&mut self, now: u64, drop: &BTreeSet<ServerId>, ready: &BTreeSet<ServerId>) {
        let known = self.configuration();
        let stays = |server: &&ServerId| !drop.contains(server);
        let mut members: Vec<ServerId> = known.members.iter().chain(ready).filter(stays).copied().collect();
        members.sort();
        let syncing: Vec<_> = known.syncing.iter().filter(stays).filter(|s| !ready.contains(s)).copied().collect();
        if members.is_empty() || (drop.is_empty() && ready.is_empty()) {
            return;
        }
        let keep = members.contains(&known.primary).then_some(known.primary);
        let live = members.iter().copied().find(|server| self.alive(now, *server));
        let Some(primary) = keep.or(live) else { return };
        self.install(now, Configuration { epoch: known.epoch, primary, members, syncing });
    }

    /// A client can't reach these servers.
    pub fn suspects(&mut self, now: u64, suspects: &[ServerId]) {
        let known = self.configuration();
        if suspects.contains(&known.primary) && !self.alive(now, known.primary) && self.lease_over(now, known.primary) {
            self.reconfigure(now, &BTreeSet::from([known.primary]), &BTreeSet::new());
        }
    }

    /// Adds a live server when members are missing.
    fn recruit(&mut self, now: u64) {
        let known = self.configuration();
        if known.members.len() + known.syncing.len() >= self.goal || !self.alive(now, known.primary) {
            return;
        }
        let in_use = |server: &ServerId| known.members.contains(server) || known.syncing.contains(server);
        let Some(server) = self.heard.keys().copied().find(|s| !in_use(s) && self.alive(now, *s)) else { return };
        let mut syncing = known.syncing.clone();
        syncing.push(server);
        syncing.sort();
        self.install(now, Configuration { syncing, ..known });
    }
}
