//! Calls on shared files, step by step, as `gfs-client` does them: look where the file is, ask a chunk server, tell the master.
//!
//! A write that the master sends back (its chunk was cut, or another one is there) is written again with another value: to the
//! evidence these are two writes, of which the first was never acknowledged. Records that cross from one chunk into the next are
//! not simulated; an append is one block.

use super::{Client, Sight, Task, Want};
use crate::disk::{BLOCK, CHUNK, CHUNK_BLOCKS};
use crate::history::{Change, Place, Read, Synced};
use crate::master::{create, file_name};
use crate::message::{About, Node, Packet};
use crate::rng::Rng;
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, OperationId, ROOT, ServerId};
use gfs_core::meta::request::{
    Answer, AttributeChanges, ChunkLocation, Configuration, NodeKind, Query, Reply, Request, Stored, UsedChunk,
};
use gfs_core::replica::{Mutation, Outcome, Status, WriteKind};

/// Chunks of a file at most.
pub const FILE_CHUNKS: usize = 2;
/// Blocks of a file at most.
pub const FILE_BLOCKS: usize = FILE_CHUNKS * CHUNK_BLOCKS;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read { block: usize },
    Write { first: usize, count: usize },
    Append,
    Cut { blocks: usize },
    Sync,
    Replace,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Lookup,
    Layout,
    Allocate,
    /// Where the chunk is now.
    Locate,
    /// The chunk server's part.
    Data,
    Commit,
    Cut,
    Barrier,
    Unlink,
    Create,
}

/// The chunk that the work is on.
#[derive(Clone, Debug)]
struct Target {
    index: usize,
    handle: ChunkHandle,
    configuration: Configuration,
    /// Not part of the file yet.
    fresh: bool,
    /// Its configuration is another one than the layout said: the file may have been cut meanwhile.
    moved: bool,
}

/// A call on a file that is under way.
#[derive(Debug)]
pub(super) struct Work {
    kind: Kind,
    file: u64,
    step: Step,
    asked: u64,
    inode: InodeId,
    size: u64,
    chunks: Vec<ChunkLocation>,
    target: Option<Target>,
    /// Chunks that are synced.
    synced: usize,
    value: u64,
    /// Its number at the chunk, and at the master.
    data_operation: u64,
    operation: u64,
    /// The place of its change in the evidence.
    change: Option<usize>,
    landed: u64,
    cut: Epoch,
    stored: Option<Stored>,
    tries: u32,
    /// What it knew of the chunk's place is old.
    refused: bool,
    /// How the chunk server answered last.
    last: Option<Status>,
    pub(super) suspects: Vec<ServerId>,
}

/// How many steps a client has to do at the end.
pub(super) fn closing_steps(files: u64) -> usize {
    files as usize * (FILE_BLOCKS + 1)
}

impl Work {
    fn new(kind: Kind, file: u64) -> Self {
        Self {
            kind,
            file,
            step: Step::Lookup,
            asked: 0,
            inode: InodeId(0),
            size: 0,
            chunks: Vec::new(),
            target: None,
            synced: 0,
            value: 0,
            data_operation: 0,
            operation: 0,
            change: None,
            landed: 0,
            cut: Epoch(0),
            stored: None,
            tries: 0,
            refused: false,
            last: None,
            suspects: Vec::new(),
        }
    }

    pub(super) fn closing(step: usize, files: u64) -> Self {
        let (file, part) = ((step / (FILE_BLOCKS + 1)) as u64, step % (FILE_BLOCKS + 1));
        let kind = if part < FILE_BLOCKS { Kind::Read { block: part } } else { Kind::Sync };
        Self::new(kind, file.min(files - 1))
    }

    pub(super) fn choose(files: u64, rng: &mut Rng) -> Self {
        let block = rng.below(FILE_BLOCKS as u64) as usize;
        let kind = match rng.below(100) {
            0..34 => {
                let room = CHUNK_BLOCKS - block % CHUNK_BLOCKS;
                Kind::Write { first: block, count: rng.between(1, 3).min(room as u64) as usize }
            }
            34..78 => Kind::Read { block },
            78..87 => Kind::Append,
            87..92 => Kind::Sync,
            92..98 => Kind::Cut { blocks: rng.below(FILE_BLOCKS as u64 + 1) as usize },
            _ => Kind::Replace,
        };
        Self::new(kind, rng.below(files))
    }

    fn place(&self) -> Place {
        match self.kind {
            Kind::Write { first, count } => Place::Blocks { first, count },
            Kind::Cut { blocks } => Place::From(blocks),
            _ => Place::Unknown,
        }
    }

    /// The first block of the change, in the file and in its chunk.
    fn end(&self) -> u64 {
        match self.kind {
            Kind::Write { first, count } => (first + count) as u64 * BLOCK,
            _ => self.landed + BLOCK,
        }
    }
}

impl Client {
    pub(super) fn ask_file(&mut self, work: &mut Work, sight: &mut Sight) -> Vec<Want> {
        if !work.suspects.is_empty() && work.step == Step::Data {
            work.step = Step::Locate;
        }
        match work.step {
            Step::Lookup => self.question_file(Query::Lookup { parent: ROOT, name: file_name(work.file) }),
            Step::Layout => {
                work.asked = sight.now;
                self.question_file(Query::Layout { inode: work.inode, first: 0, count: FILE_CHUNKS as u32 })
            }
            Step::Allocate => {
                self.command(work.operation, Request::AllocateChunks { replicas: 3, placements: Vec::new() })
            }
            Step::Locate => {
                let Some(target) = &work.target else { return vec![Want::Wake(1)] };
                let (handle, suspects) = (target.handle, std::mem::take(&mut work.suspects));
                let call = self.call(None);
                vec![Want::Send(Node::Master, Packet::Locate { call, handle, suspects }), Want::Wake(300)]
            }
            Step::Data => self.ask_chunk(work, sight),
            Step::Commit => self.command(work.operation, commit_request(work)),
            Step::Cut => {
                let Kind::Cut { blocks } = work.kind else { return vec![Want::Wake(1)] };
                let changes = AttributeChanges { size: Some(blocks as u64 * BLOCK), ..AttributeChanges::default() };
                self.command(work.operation, Request::SetAttributes { inode: work.inode, changes })
            }
            Step::Barrier => self.command(work.operation, Request::Barrier { times: true }),
            Step::Unlink => self.command(work.operation, Request::Unlink { parent: ROOT, name: file_name(work.file) }),
            Step::Create => self.command(work.operation, create(ROOT, &file_name(work.file), NodeKind::File)),
        }
    }

    fn question_file(&mut self, query: Query) -> Vec<Want> {
        let call = self.call(None);
        vec![Want::Send(Node::Master, Packet::Ask { call, query }), Want::Wake(300)]
    }

    fn ask_chunk(&mut self, work: &mut Work, sight: &mut Sight) -> Vec<Want> {
        let Some(target) = &work.target else { return vec![Want::Wake(1)] };
        let (handle, epoch) = (target.handle, target.configuration.epoch);
        let member = sight.rng.pick(&target.configuration.members).copied();
        let to = match (work.kind, member) {
            (Kind::Read { .. }, Some(member)) => member,
            _ => target.configuration.primary,
        };
        let call = self.call(Some(to));
        let at = |mutation| {
            let session = self.session.unwrap_or_default();
            let operation = OperationId { session, operation: work.data_operation };
            About::Mutate { call, epoch, operation, confirmed: self.data_confirmed, mutation, value: work.value }
        };
        let about = match work.kind {
            Kind::Read { block } => About::Read { call, epoch, block: block % CHUNK_BLOCKS },
            Kind::Sync => About::Sync { call, epoch },
            Kind::Append if target.fresh => at(write_at(0, 1)),
            Kind::Append => {
                let min_offset = work.size.saturating_sub(target.index as u64 * CHUNK);
                at(Mutation::Append { min_offset, limit: CHUNK, length: BLOCK })
            }
            Kind::Write { first, count } => at(write_at(first % CHUNK_BLOCKS, count)),
            Kind::Cut { .. } | Kind::Replace => return vec![Want::Wake(1)],
        };
        vec![Want::Send(Node::Server(to), Packet::Chunk(handle, about)), Want::Wake(500)]
    }

    pub(super) fn file_answered(&mut self, mut work: Work, packet: Packet, sight: &mut Sight) -> Vec<Want> {
        let next = match packet {
            Packet::Told { answer, .. } => self.told(&mut work, answer, sight),
            Packet::Done { reply, .. } => {
                self.confirmed = work.operation;
                self.done(&mut work, reply, sight)
            }
            Packet::Located { assigned, .. } => match (assigned, &mut work.target) {
                (Some(assigned), Some(target)) => {
                    target.moved |= target.configuration.epoch != assigned.configuration.epoch;
                    target.configuration = assigned.configuration.clone();
                    self.locations.insert(target.handle, assigned.configuration);
                    // A file that was cut since its size was learned may hold bytes that are no part of it yet.
                    let outdated = target.moved && matches!(work.kind, Kind::Read { .. });
                    if outdated { Next::Again } else { Next::Step(Step::Data) }
                }
                _ => Next::Again,
            },
            Packet::Reply { outcome, value, .. } => self.replied(&mut work, &outcome, value, sight),
            other => unreachable!("a file was answered {other:?}"),
        };
        let (step, pause) = match next {
            Next::End(done) => return self.end_file(done, sight),
            Next::Step(step) => (step, 0),
            Next::Later(step) => (step, sight.rng.between(10, 60)),
            Next::Again => {
                (work.target, work.synced) = (None, 0);
                (Step::Layout, sight.rng.between(1, 20))
            }
        };
        self.enter(&mut work, step);
        if pause > 0 {
            self.task = Some(Task::File(work));
            return vec![Want::Wake(pause)];
        }
        let wants = self.ask_file(&mut work, sight);
        self.task = Some(Task::File(work));
        wants
    }

    /// A step at the master is a mutation of its own.
    fn enter(&mut self, work: &mut Work, step: Step) {
        let numbered =
            matches!(step, Step::Allocate | Step::Commit | Step::Cut | Step::Barrier | Step::Unlink | Step::Create);
        if numbered && work.step != step {
            self.operation += 1;
            work.operation = self.operation;
        }
        work.step = step;
    }

    fn told(&mut self, work: &mut Work, answer: Answer, sight: &mut Sight) -> Next {
        match answer {
            Answer::Attributes(attributes) => {
                work.inode = attributes.inode;
                match work.kind {
                    Kind::Replace => Next::Step(Step::Unlink),
                    Kind::Cut { .. } => {
                        work.asked = sight.now;
                        self.record(work, sight);
                        Next::Step(Step::Cut)
                    }
                    _ => Next::Step(Step::Layout),
                }
            }
            Answer::Layout { attributes, chunks } => {
                (work.size, work.chunks) = (attributes.size, chunks);
                self.recall(work, sight);
                self.laid_out(work, sight)
            }
            // The file is gone.
            _ => Next::End(true),
        }
    }

    /// Now and then goes where the chunks were when it looked before, as one does that keeps what it knows.
    fn recall(&mut self, work: &mut Work, sight: &mut Sight) {
        for location in &mut work.chunks {
            let known = self.locations.entry(location.handle).or_insert_with(|| location.configuration.clone());
            if work.refused || sight.rng.chance(50) {
                known.clone_from(&location.configuration);
            } else {
                location.configuration.clone_from(known);
            }
        }
        work.refused = false;
    }

    fn laid_out(&mut self, work: &mut Work, sight: &mut Sight) -> Next {
        let index = match work.kind {
            Kind::Read { block } if block as u64 * BLOCK >= work.size => return self.read_done(work, 0, sight),
            Kind::Read { block } => block / CHUNK_BLOCKS,
            Kind::Write { first, .. } => first / CHUNK_BLOCKS,
            Kind::Append if work.size >= FILE_BLOCKS as u64 * BLOCK => return Next::End(true),
            Kind::Append => (work.size / CHUNK) as usize,
            Kind::Sync => {
                let Some(location) = work.chunks.get(work.synced) else { return Next::Step(Step::Barrier) };
                work.target = Some(target(location));
                return Next::Step(Step::Data);
            }
            Kind::Cut { .. } | Kind::Replace => return Next::End(true),
        };
        work.target = work.chunks.iter().find(|location| location.index as usize == index).map(target);
        match work.kind {
            Kind::Read { .. } if work.target.is_none() => return self.read_done(work, 0, sight),
            Kind::Read { .. } => return Next::Step(Step::Data),
            // Part of a chunk without a chunk: only a whole write starts one there.
            Kind::Append if work.target.is_none() && !work.size.is_multiple_of(CHUNK) => return Next::End(true),
            _ => {}
        }
        if work.target.is_none() {
            let Some((handle, configuration)) = self.reserved.pop() else { return Next::Step(Step::Allocate) };
            work.target = Some(Target { index, handle, configuration, fresh: true, moved: false });
        }
        self.begin_attempt(work, sight);
        Next::Step(Step::Data)
    }

    fn begin_attempt(&mut self, work: &mut Work, sight: &mut Sight) {
        // Whatever became of the attempt before, nobody waits for its answer.
        self.data_confirmed = self.data_operation;
        self.data_operation += 1;
        work.data_operation = self.data_operation;
        work.value = self.fresh_value();
        self.record(work, sight);
    }

    fn record(&mut self, work: &mut Work, sight: &mut Sight) {
        let (inode, place, value, asked) = (work.inode, work.place(), work.value, work.asked);
        work.change = Some(sight.history.changes.len());
        let append = work.kind == Kind::Append;
        sight.history.changes.push(Change { inode, place, value, asked, acknowledged: None, append });
    }

    fn acknowledged(&mut self, work: &Work, sight: &mut Sight) -> Next {
        if let Some(change) = work.change.and_then(|change| sight.history.changes.get_mut(change)) {
            change.acknowledged = Some(sight.now);
            if work.kind == Kind::Append {
                change.place = Place::Blocks { first: (work.landed / BLOCK) as usize, count: 1 };
            }
        }
        Next::End(true)
    }

    fn read_done(&mut self, work: &Work, value: u64, sight: &mut Sight) -> Next {
        if let Kind::Read { block } = work.kind {
            let (inode, asked, answered) = (work.inode, work.asked, sight.now);
            sight.history.reads.push(Read { inode, block, value, asked, answered });
        }
        Next::End(true)
    }

    fn done(&mut self, work: &mut Work, reply: Reply, sight: &mut Sight) -> Next {
        match (work.step, reply) {
            (Step::Allocate, Reply::Chunks(chunks)) => {
                self.reserved.extend(chunks);
                Next::Again
            }
            (Step::Commit, Reply::Attributes { .. }) => self.acknowledged(work, sight),
            (Step::Commit, Reply::Refused(_)) => Next::Again,
            (Step::Cut, Reply::Attributes { .. }) => self.acknowledged(work, sight),
            (Step::Barrier, Reply::Done) => {
                let (inode, asked, answered) = (work.inode, work.asked, sight.now);
                sight.history.syncs.push(Synced { inode, asked, answered });
                Next::End(true)
            }
            (Step::Unlink, _) => Next::Step(Step::Create),
            _ => Next::End(true),
        }
    }

    fn replied(&mut self, work: &mut Work, outcome: &Outcome, value: u64, sight: &mut Sight) -> Next {
        work.last = Some(outcome.status);
        match (work.kind, outcome.status) {
            (Kind::Read { .. }, Status::Ok) => self.read_done(work, value, sight),
            (Kind::Read { .. }, _) => {
                work.refused = true;
                Next::Again
            }
            (Kind::Sync, Status::Ok) => {
                if let Some(target) = &work.target {
                    sight.history.chunk_synced(target.handle, outcome.sequence);
                }
                work.synced += 1;
                self.laid_out(work, sight)
            }
            (_, Status::Ok) => self.written(work, outcome, sight),
            (Kind::Append, Status::NoRoom) => {
                // Somebody else's record is there and not yet part of the file; it may never be, when that client died.
                work.tries += 1;
                if work.tries > 5 { Next::End(true) } else { Next::Again }
            }
            _ => Next::Later(Step::Locate),
        }
    }

    /// The chunk holds it; the master is told what it has to know.
    fn written(&mut self, work: &mut Work, outcome: &Outcome, sight: &mut Sight) -> Next {
        let Some(target) = &work.target else { return Next::Again };
        (work.cut, work.stored) = (outcome.cut, outcome.stored);
        work.landed = target.index as u64 * CHUNK + outcome.offset;
        if target.fresh || work.end() > work.size || target.moved || sight.rng.chance(20) {
            return Next::Step(Step::Commit);
        }
        self.acknowledged(work, sight)
    }
}

/// What a call does next.
enum Next {
    /// Nothing: it has ended.
    End(bool),
    /// This, at once.
    Step(Step),
    /// This, after a moment.
    Later(Step),
    /// It begins anew, after a moment.
    Again,
}

fn target(location: &ChunkLocation) -> Target {
    let (index, handle, configuration) = (location.index as usize, location.handle, location.configuration.clone());
    Target { index, handle, configuration, fresh: false, moved: false }
}

fn write_at(first: usize, count: usize) -> Mutation {
    Mutation::At { kind: WriteKind::Data, offset: first as u64 * BLOCK, length: count as u64 * BLOCK }
}

fn commit_request(work: &Work) -> Request {
    let (mut attach, mut used) = (Vec::new(), Vec::new());
    if let Some(target) = &work.target {
        let (index, handle) = (target.index as u32, target.handle);
        if target.fresh {
            attach.push((index, handle));
        }
        used.push(UsedChunk { index, handle, cut: work.cut, stored: work.stored });
    }
    let unsure = work.target.as_ref().is_some_and(|target| target.moved || target.fresh);
    let min_size = (unsure || work.end() > work.size).then(|| work.end());
    Request::CommitWrite { inode: work.inode, attach, used, min_size, clear_suid: false, space: None }
}
