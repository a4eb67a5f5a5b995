//! A client of the simulation: a session, one call at a time, repeated under the same numbers until it is answered.
//!
//! This room owns the session and the repeating. What a call on a file does step by step is in `file`, names are in `names`.

mod file;
mod names;

use crate::history::History;
use crate::message::{Node, Packet};
use crate::rng::Rng;
use file::Work;
pub use file::{FILE_BLOCKS, FILE_CHUNKS};
use gfs_core::ids::{ChunkHandle, OperationId, ServerId, SessionId};
use gfs_core::meta::request::{ClientCommand, Configuration, Credentials, Request};
use names::Names;
use std::collections::BTreeMap;

/// What a client wants done.
#[derive(Clone, Debug)]
pub enum Want {
    /// Send a packet.
    Send(Node, Packet),
    /// Be woken, unless something else happened meanwhile.
    Wake(u64),
}

/// What a client sees of the world while it works.
pub struct Sight<'a> {
    /// The time in milliseconds.
    pub now: u64,
    /// Randomness.
    pub rng: &'a mut Rng,
    /// The evidence.
    pub history: &'a mut History,
}

/// A call.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // One for each client, and never moved.
enum Task {
    /// On a file.
    File(Work),
    /// On a name of its own directory.
    Name,
}

/// What a client does at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Closing {
    Not,
    Reads(usize),
    Listing,
    Closed,
}

/// A client.
pub struct Client {
    id: u64,
    incarnation: u64,
    /// Its session, once it is open.
    pub session: Option<SessionId>,
    files: u64,
    task: Option<Task>,
    names: Names,
    /// The question that is out, and to whom.
    question: Option<(u64, Option<ServerId>)>,
    next_call: u64,
    /// Operations at the master: the last number given, and the last answered.
    operation: u64,
    confirmed: u64,
    /// The same for mutations of chunks.
    data_operation: u64,
    data_confirmed: u64,
    next_value: u64,
    /// Reserved chunks that nothing was written to.
    reserved: Vec<(ChunkHandle, Configuration)>,
    /// Where chunks were when this client last looked. It may act on that until it is refused.
    locations: BTreeMap<ChunkHandle, Configuration>,
    closing: Closing,
}

impl Client {
    /// A client that knows nothing yet.
    pub fn new(id: u64, incarnation: u64, files: u64) -> Self {
        Self {
            id,
            incarnation,
            session: None,
            files,
            task: None,
            names: Names::new(id, incarnation),
            question: None,
            next_call: incarnation << 24,
            operation: 0,
            confirmed: 0,
            data_operation: 0,
            data_confirmed: 0,
            next_value: (id << 40) + (incarnation << 24),
            reserved: Vec::new(),
            locations: BTreeMap::new(),
            closing: Closing::Not,
        }
    }

    /// The client that takes its place when it dies.
    pub fn successor(&self) -> Self {
        Self::new(self.id, self.incarnation + 1, self.files)
    }

    /// Its life so far.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// From now on it only reads every block once, syncs, and compares its names.
    pub fn close(&mut self) {
        self.closing = Closing::Reads(0);
    }

    /// Whether it has done that.
    pub fn is_closed(&self) -> bool {
        self.closing == Closing::Closed
    }

    /// What it is doing, for a failure's message.
    pub fn waits_for(&self) -> String {
        format!("closing {:?}, task {:?}, question {:?}, {:?}", self.closing, self.task, self.question, self.session)
    }

    /// The master has lost something with its power.
    pub fn lost(&mut self) {
        self.names.lost();
    }

    /// Time passed without an answer, or it is time for something new.
    pub fn wake(&mut self, sight: &mut Sight) -> Vec<Want> {
        if self.session.is_none() {
            // The same attempt, whoever answers: the call is its nonce.
            let call = *self.question.get_or_insert((self.next_call, None));
            return vec![Want::Send(Node::Master, Packet::Open { call: call.0 }), Want::Wake(300)];
        }
        if self.task.is_none() {
            return self.begin(sight);
        }
        let suspects: Vec<ServerId> = self.question.and_then(|(_, server)| server).into_iter().collect();
        match &mut self.task {
            Some(Task::File(work)) if !suspects.is_empty() => work.suspects = suspects,
            _ => {}
        }
        self.ask(sight)
    }

    fn begin(&mut self, sight: &mut Sight) -> Vec<Want> {
        match self.closing {
            Closing::Not => {}
            Closing::Reads(done) if done < file::closing_steps(self.files) => {
                self.task = Some(Task::File(Work::closing(done, self.files)));
                return self.ask(sight);
            }
            Closing::Reads(_) if self.names.needs_directory() => {}
            Closing::Reads(_) | Closing::Listing => {
                self.closing = Closing::Listing;
                self.names.choose_listing();
                self.task = Some(Task::Name);
                return self.ask(sight);
            }
            Closing::Closed => return Vec::new(),
        }
        if self.names.has_to_look() {
            self.names.choose_listing();
            self.task = Some(Task::Name);
        } else if self.names.needs_directory() || sight.rng.chance(20) {
            self.operation += 1;
            self.names.choose(self.operation, sight.rng);
            self.task = Some(Task::Name);
        } else {
            self.task = Some(Task::File(Work::choose(self.files, sight.rng)));
        }
        self.ask(sight)
    }

    /// Sends what the present step asks.
    fn ask(&mut self, sight: &mut Sight) -> Vec<Want> {
        match self.task.take() {
            None => Vec::new(),
            Some(Task::Name) => {
                self.task = Some(Task::Name);
                match self.names.request() {
                    Ok(request) => self.command(self.names.operation(), request),
                    Err(query) => {
                        let call = self.call(None);
                        vec![Want::Send(Node::Master, Packet::Ask { call, query }), Want::Wake(300)]
                    }
                }
            }
            Some(Task::File(mut work)) => {
                let wants = self.ask_file(&mut work, sight);
                self.task = Some(Task::File(work));
                wants
            }
        }
    }

    fn call(&mut self, server: Option<ServerId>) -> u64 {
        self.next_call += 1;
        self.question = Some((self.next_call, server));
        self.next_call
    }

    fn command(&mut self, operation: u64, request: Request) -> Vec<Want> {
        let Some(session) = self.session else { return Vec::new() };
        let call = self.call(None);
        let id = OperationId { session, operation };
        let (confirmed, credentials) = (self.confirmed, Credentials::default());
        let command = ClientCommand { id, confirmed, credentials, request };
        vec![Want::Send(Node::Master, Packet::Command { call, command }), Want::Wake(300)]
    }

    fn fresh_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    /// A packet arrived.
    pub fn receive(&mut self, packet: Packet, sight: &mut Sight) -> Vec<Want> {
        let call = match &packet {
            Packet::Opened { call, .. }
            | Packet::Done { call, .. }
            | Packet::Told { call, .. }
            | Packet::Located { call, .. }
            | Packet::Reply { call, .. } => *call,
            other => unreachable!("a client got {other:?}"),
        };
        if self.question.is_none_or(|(current, _)| current != call) {
            return Vec::new();
        }
        self.question = None;
        if let Packet::Opened { session, .. } = packet {
            self.session = Some(session);
            return vec![Want::Wake(1)];
        }
        match self.task.take() {
            None => Vec::new(),
            Some(Task::Name) => {
                if matches!(packet, Packet::Done { .. }) {
                    self.confirmed = self.names.operation();
                }
                self.names.answered(packet, self.id, sight.history);
                if self.closing == Closing::Listing {
                    self.closing = Closing::Closed;
                }
                self.pause(sight)
            }
            Some(Task::File(work)) => self.file_answered(work, packet, sight),
        }
    }

    /// A call has ended.
    fn pause(&mut self, sight: &mut Sight) -> Vec<Want> {
        let pause = if self.closing == Closing::Not { sight.rng.between(1, 30) } else { 1 };
        vec![Want::Wake(pause)]
    }

    fn end_file(&mut self, done: bool, sight: &mut Sight) -> Vec<Want> {
        if let (Closing::Reads(step), true) = (self.closing, done) {
            self.closing = Closing::Reads(step + 1);
        }
        self.pause(sight)
    }
}
