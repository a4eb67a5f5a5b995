//! Random commands against a small model of files and chunks.

use super::checkpoint::{bytes_of, state_of};
use super::*;
use crate::ids::{BlockVersion, Epoch, Sequence};
use crate::meta::request::{Configuration, Stored};
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    Unlink(u8),
    Reserve(u8),
    Commit { file: u8, index: u8, growth: u16 },
    Resize { file: u8, size: u32 },
    Finish(u8),
    Reap,
    Move { chunk: u8, change: u8 },
    Forget,
    EndSession(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u8..5).prop_map(Step::Create),
        1 => (0u8..5).prop_map(Step::Unlink),
        3 => any::<u8>().prop_map(Step::Reserve),
        5 => (0u8..5, 0u8..6, any::<u16>()).prop_map(|(file, index, growth)| Step::Commit { file, index, growth }),
        2 => (0u8..5, 0u32..6 * CHUNK as u32).prop_map(|(file, size)| Step::Resize { file, size }),
        2 => (0u8..5).prop_map(Step::Finish),
        1 => Just(Step::Reap),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(chunk, change)| Step::Move { chunk, change }),
        1 => Just(Step::Forget),
        1 => any::<u8>().prop_map(Step::EndSession),
    ];
    prop::collection::vec(step, 1..120)
}

/// What a file is: its size and the chunks in their places.
#[derive(Clone, Debug, Default)]
struct File {
    size: u64,
    chunks: BTreeMap<u32, ChunkHandle>,
    cut: bool,
}

type Places = Vec<(u32, ChunkHandle)>;

/// Whether a write that ends there is taken to have left a hole.
fn is_hole(end: u64) -> bool {
    end.is_multiple_of(5)
}

struct World {
    bench: Bench,
    sessions: Vec<SessionId>,
    names: BTreeMap<u8, InodeId>,
    files: BTreeMap<InodeId, File>,
    reserved: BTreeMap<ChunkHandle, SessionId>,
    /// Chunks whose only block was a hole when they were counted last.
    empty: BTreeSet<ChunkHandle>,
    operation: u64,
}

impl World {
    fn new() -> Self {
        let mut bench = Bench::new();
        let sessions = (0..3).map(|_| bench.session()).collect();
        let (names, files, reserved, empty) = Default::default();
        Self { bench, sessions, names, files, reserved, empty, operation: 0 }
    }

    /// Runs a request, then the same again: the answer must be the same and nothing may change.
    fn run(&mut self, session: SessionId, request: Request) -> Reply {
        self.operation += 1;
        let id = OperationId { session, operation: self.operation };
        let confirmed = self.operation.saturating_sub(4);
        let waits = self.bench.state.waits_for_shrink(&request);
        let reply = self.bench.run_as(id, confirmed, request.clone());
        let hash = self.bench.state.hash();
        assert_eq!(self.bench.run_as(id, confirmed, request), reply);
        assert_eq!(self.bench.state.hash(), hash, "a repeat changed the state");
        assert_eq!(self.bench.state.replayed(id).is_none(), waits);
        reply
    }

    fn session(&self, number: u8) -> SessionId {
        self.sessions[usize::from(number) % self.sessions.len()]
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Create(name) => {
                let reply = self.run(self.session(*name), create(&name.to_string()));
                match (reply, self.names.get(name)) {
                    (Reply::Entry { attributes, created: true }, None) => {
                        self.names.insert(*name, attributes.inode);
                        self.files.insert(attributes.inode, File::default());
                    }
                    (reply, Some(_)) => assert_eq!(reply, Reply::Refused(Refusal::Exists)),
                    other => panic!("{other:?}"),
                }
            }
            Step::Unlink(name) => {
                let expected = match self.names.remove(name) {
                    Some(_) => Reply::Done,
                    None => Reply::Refused(Refusal::NotFound),
                };
                assert_eq!(self.run(self.session(0), unlink(&name.to_string())), expected);
            }
            Step::Reserve(number) => {
                let session = self.session(*number);
                let placements = vec![vec![ServerId(1 + u16::from(*number) % 4)], vec![ServerId(3), ServerId(2)]];
                let reply = self.run(session, Request::AllocateChunks { replicas: 2, placements });
                let Reply::Chunks(chunks) = reply else { panic!("{reply:?}") };
                self.reserved.extend(chunks.iter().map(|(handle, _)| (*handle, session)));
            }
            Step::Commit { file, index, growth } => self.commit(*file, u32::from(*index), u64::from(*growth)),
            Step::Resize { file, size } => self.resize(*file, u64::from(*size)),
            Step::Finish(file) => {
                let Some(inode) = self.names.get(file).copied() else { return };
                let Some(shrink) = self.bench.state.shrink(inode) else { return };
                let (handle, epoch) = (shrink.handle, shrink.epoch);
                self.bench.apply(Command::FinishShrink { inode, handle, epoch, stored: None });
                self.files.get_mut(&inode).unwrap().cut = false;
            }
            Step::Reap => {
                let inodes: Vec<_> = self.bench.state.orphans().collect();
                inodes.iter().for_each(|inode| drop(self.files.remove(inode)));
                self.bench.apply(Command::ReapOrphans { inodes });
            }
            Step::Move { chunk, change } => self.reconfigure(*chunk, *change),
            Step::Forget => {
                let done =
                    self.bench.state.tombstones().map(|tombstone| (tombstone.handle, tombstone.server)).collect();
                self.bench.apply(Command::ForgetTombstones { done });
                assert_eq!(self.bench.tombstones(), []);
            }
            Step::EndSession(number) => {
                let session = self.session(*number);
                self.bench.apply(Command::EndSession { session });
                self.reserved.retain(|_, owner| *owner != session);
                self.sessions.retain(|open| *open != session);
                self.sessions.push(self.bench.session());
            }
        }
    }

    fn commit(&mut self, name: u8, index: u32, growth: u64) {
        let Some(inode) = self.names.get(&name).copied() else { return };
        let file = self.files.get(&inode).unwrap().clone();
        let Some((handle, session)) = self.reserved.first_key_value().map(|(handle, owner)| (*handle, *owner)) else {
            return;
        };
        let end = u64::from(index) * CHUNK + growth % CHUNK + 1;
        let (attach, used) = match file.chunks.get(&index) {
            Some(old) if !growth.is_multiple_of(3) => (vec![], vec![(index, *old)]),
            _ => (vec![(index, handle)], vec![]),
        };
        let fits = used.len() == 1 || !file.chunks.contains_key(&index);
        // Some writes came before the last cut of their chunk.
        let last = used.first().map_or(Epoch(0), |(_, handle)| self.bench.state.chunk(*handle).unwrap().cut);
        let cut = if growth.is_multiple_of(2) { last } else { Epoch(0) };
        let zeroed = cut < last;
        let cut_at = (file.size / CHUNK) as u32;
        let waits = file.cut && (end > file.size || (!attach.is_empty() && index >= cut_at));
        let chunk = used.first().map_or(handle, |(_, handle)| *handle);
        let request = self.commit_request(cut, inode, (attach.clone(), used), end);
        let reply = self.run(session, request);
        if !fits || waits || zeroed {
            assert_eq!(reply, STALE);
            return;
        }
        assert!(matches!(reply, Reply::Attributes { .. }), "{reply:?}");
        let file = self.files.get_mut(&inode).unwrap();
        file.size = file.size.max(end);
        for (index, handle) in attach {
            file.chunks.insert(index, handle);
            self.reserved.remove(&handle);
        }
        if is_hole(end) {
            self.empty.insert(chunk)
        } else {
            self.empty.remove(&chunk)
        };
    }

    /// Its primary has counted what the write left in the chunk: one block or a hole.
    fn commit_request(&self, cut: Epoch, inode: InodeId, (attach, mut used): (Places, Places), end: u64) -> Request {
        used.extend(attach.first());
        let stored = |handle| {
            let epoch = self.bench.state.chunk(handle).unwrap().configuration.epoch;
            let at = BlockVersion { epoch, sequence: Sequence(self.operation + 1) };
            Some(Stored { blocks: u32::from(!is_hole(end)), at })
        };
        let mut request = commit_after(cut, inode, attach, used, Some(end));
        if let Request::CommitWrite { used, .. } = &mut request {
            used.iter_mut().for_each(|used| used.stored = stored(used.handle));
        }
        request
    }

    fn resize(&mut self, name: u8, size: u64) {
        let Some(inode) = self.names.get(&name).copied() else { return };
        let reply = self.run(self.session(0), resize(inode, size));
        let file = self.files.get_mut(&inode).unwrap();
        if file.cut && size > file.size {
            assert_eq!(reply, STALE);
            return;
        }
        if size < file.size {
            let cuts = !size.is_multiple_of(CHUNK) && file.chunks.contains_key(&((size / CHUNK) as u32));
            file.cut = cuts;
        }
        if size <= file.size {
            file.chunks.retain(|index, _| u64::from(*index) * CHUNK < size);
        }
        file.size = size;
        let Reply::Attributes { pending_shrink, .. } = reply else { panic!("{reply:?}") };
        assert_eq!(pending_shrink, file.cut);
    }

    /// Drops, promotes or recruits, as the bits of `change` say.
    fn reconfigure(&mut self, chunk: u8, change: u8) {
        let handles: Vec<_> = self.bench.state.chunks_from(ChunkHandle(0)).collect();
        if handles.is_empty() {
            return;
        }
        let info = &handles[usize::from(chunk) % handles.len()];
        let mut next: Configuration = info.configuration.clone();
        let server = ServerId(1 + u16::from(change) % 4);
        if next.members.contains(&server) && next.members.len() > 1 {
            next.members.retain(|member| *member != server);
            next.primary = next.members[0];
        } else if next.syncing.contains(&server) {
            next.syncing.retain(|syncing| *syncing != server);
            next.members.push(server);
            next.members.sort_unstable();
        } else if !next.members.contains(&server) {
            next.syncing.push(server);
            next.syncing.sort_unstable();
        }
        let expected = if change > 200 { Epoch(0) } else { info.configuration.epoch };
        let after = if change > 200 { info.configuration.epoch } else { expected.next() };
        let handle = info.handle;
        let reply = self.bench.apply(Command::Reconfigure { handle, expected, next });
        assert!(matches!(reply, CommandReply::Configuration(Some(now)) if now.epoch == after));
    }

    fn check(&self) {
        let state = &self.bench.state;
        let mut live = BTreeMap::new();
        for (inode, file) in &self.files {
            let attributes = self.bench.attributes(*inode);
            assert_eq!(attributes.size, file.size);
            let stored = file.chunks.values().filter(|handle| !self.empty.contains(handle));
            assert_eq!(attributes.allocated, stored.count() as u64 * CHUNK, "{file:?}");
            let found: BTreeMap<u32, ChunkHandle> =
                state.chunks().of_file(*inode, 0).map(|info| (info.index, info.handle)).collect();
            assert_eq!(found, file.chunks);
            assert_eq!(state.shrink(*inode).is_some(), file.cut);
            live.extend(file.chunks.values().map(|handle| (*handle, None)));
        }
        live.extend(self.reserved.iter().map(|(handle, session)| (*handle, Some(*session))));
        let table: BTreeMap<_, _> =
            state.chunks_from(ChunkHandle(0)).map(|info| (info.handle, info.reserved)).collect();
        assert_eq!(table, live);
        let mut counts = BTreeMap::new();
        let mut under = BTreeSet::new();
        for info in state.chunks_from(ChunkHandle(0)) {
            for server in info.configuration.members.iter().chain(&info.configuration.syncing) {
                *counts.entry(*server).or_insert(0) += 1;
                assert_eq!(state.tombstone(*server, info.handle), None, "a tombstone for a replica in use");
            }
            if info.reserved.is_none() && info.missing() > 0 {
                under.insert(info.handle);
            }
        }
        for server in state.servers().iter() {
            let count = counts.get(&server.server).copied().unwrap_or(0);
            assert_eq!(state.servers().replicas_on(server.server), count);
        }
        assert_eq!(state.under_goal(ChunkHandle(0)).map(|info| info.handle).collect::<BTreeSet<_>>(), under);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn the_state_is_what_a_small_model_says_and_replay_gives_the_same(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check();
        }
        let state = &world.bench.state;
        let mut again = Bench::new().state;
        // The first four entries registered the servers, as `Bench::new` did again: they are idempotent.
        for (stamp, command) in &world.bench.log {
            again.apply(*stamp, command);
        }
        prop_assert_eq!(again.hash(), state.hash());
        let bytes = bytes_of(state);
        prop_assert_eq!(&bytes_of(&again), &bytes);
        let decoded = state_of(&bytes, 1_000).unwrap();
        prop_assert_eq!(decoded.hash(), state.hash());
    }
}
