//! Facts about the state machine as a whole.

mod checkpoint;
mod cluster;
mod files;
mod held_files;
pub(super) mod master;
mod once;
mod random;
mod shrink;
mod stored;

use super::command::{Command, CommandReply, ServerIdentity, Stamp};
use super::request::{
    Answer, AttributeChanges, Attributes, ClientCommand, Credentials, NodeKind, Query, Refusal, Reply, Request,
    Timestamp, UsedChunk,
};
use super::state::State;
use crate::ids::{ChunkHandle, ClusterId, Epoch, InodeId, OperationId, ROOT, ServerId, SessionId};
use std::collections::BTreeMap;

/// Small chunks, so that a test needs few bytes.
pub(super) const CHUNK: u64 = 4_096;

/// A state with four servers, a clock, and the operation numbers of its sessions.
pub(super) struct Bench {
    pub(super) state: State,
    pub(super) log: Vec<(Stamp, Command)>,
    operations: BTreeMap<SessionId, u64>,
    clock: i64,
}

impl Bench {
    pub(super) fn new() -> Self {
        let state = State::format(ClusterId(7), CHUNK, 3, 0o755, Timestamp(1));
        let mut bench = Self { state, log: Vec::new(), operations: BTreeMap::new(), clock: 10 };
        for number in 1..=4 {
            let identity =
                ServerIdentity { uuid: number, address: format!("s{number}:1"), ..ServerIdentity::default() };
            assert_eq!(bench.apply(Command::RegisterServer(identity)), CommandReply::Server(ServerId(number as u16)));
        }
        bench
    }

    pub(super) fn apply(&mut self, command: Command) -> CommandReply {
        self.clock += 1;
        let stamp = Stamp { now: Timestamp(self.clock), seed: self.clock as u64 };
        let reply = self.state.apply(stamp, &command);
        self.log.push((stamp, command));
        reply
    }

    pub(super) fn session(&mut self) -> SessionId {
        let nonce = 1_000 + self.log.len() as u64;
        match self.apply(Command::OpenSession { nonce, description: "test".into() }) {
            CommandReply::Session(session) => session,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a new operation of a session that confirms nothing.
    pub(super) fn run(&mut self, session: SessionId, request: Request) -> Reply {
        let operation = self.operations.entry(session).or_insert(0);
        *operation += 1;
        let id = OperationId { session, operation: *operation };
        self.run_as(id, 0, request)
    }

    pub(super) fn run_as(&mut self, id: OperationId, confirmed: u64, request: Request) -> Reply {
        let credentials = Credentials::default();
        match self.apply(Command::Client(ClientCommand { id, confirmed, credentials, request })) {
            CommandReply::Client(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn create(&mut self, session: SessionId, name: &str) -> InodeId {
        match self.run(session, create(name)) {
            Reply::Entry { attributes, .. } => attributes.inode,
            other => panic!("{other:?}"),
        }
    }

    /// Reserves a chunk on servers 1, 2, 3.
    pub(super) fn reserve(&mut self, session: SessionId) -> ChunkHandle {
        let placements = vec![vec![ServerId(2), ServerId(1), ServerId(3)]];
        match self.run(session, Request::AllocateChunks { replicas: 3, placements }) {
            Reply::Chunks(chunks) => chunks[0].0,
            other => panic!("{other:?}"),
        }
    }

    /// A file whose first `size` bytes lie in new chunks.
    pub(super) fn file(&mut self, session: SessionId, name: &str, size: u64) -> (InodeId, Vec<ChunkHandle>) {
        let inode = self.create(session, name);
        let handles: Vec<_> = (0..size.div_ceil(CHUNK)).map(|_| self.reserve(session)).collect();
        let attach = handles.iter().enumerate().map(|(index, handle)| (index as u32, *handle)).collect();
        let reply = self.run(session, commit(inode, attach, vec![], Some(size)));
        assert!(matches!(reply, Reply::Attributes { .. }), "{reply:?}");
        (inode, handles)
    }

    pub(super) fn attributes(&self, inode: InodeId) -> Attributes {
        match self.state.query(&Credentials::default(), &Query::GetAttributes { inode }) {
            Answer::Attributes(attributes) => attributes,
            other => panic!("{other:?}"),
        }
    }

    /// (server, handle) of all tombstones.
    pub(super) fn tombstones(&self) -> Vec<(u16, ChunkHandle)> {
        self.state.tombstones().map(|tombstone| (tombstone.server.0, tombstone.handle)).collect()
    }
}

pub(super) fn create(name: &str) -> Request {
    let name = name.as_bytes().to_vec();
    Request::Create { parent: ROOT, name, kind: NodeKind::File, mode: 0o644, umask: 0, exclusive: true, hold: false }
}

pub(super) fn unlink(name: &str) -> Request {
    Request::Unlink { parent: ROOT, name: name.as_bytes().to_vec() }
}

pub(super) fn commit(
    inode: InodeId,
    attach: Vec<(u32, ChunkHandle)>,
    used: Vec<(u32, ChunkHandle)>,
    min_size: Option<u64>,
) -> Request {
    commit_after(Epoch(0), inode, attach, used, min_size)
}

/// A write that came after this cut of the chunks that it used.
pub(super) fn commit_after(
    cut: Epoch,
    inode: InodeId,
    attach: Vec<(u32, ChunkHandle)>,
    used: Vec<(u32, ChunkHandle)>,
    min_size: Option<u64>,
) -> Request {
    let used = used.into_iter().map(|(index, handle)| UsedChunk { index, handle, cut, stored: None }).collect();
    Request::CommitWrite { inode, attach, used, min_size, clear_suid: false, space: None }
}

pub(super) fn resize(inode: InodeId, size: u64) -> Request {
    Request::SetAttributes { inode, changes: AttributeChanges { size: Some(size), ..AttributeChanges::default() } }
}

pub(super) const STALE: Reply = Reply::Refused(Refusal::Stale);
