//! A client of the simulation: one call at a time, repeated under the same operation number until it is answered.

use crate::disk::{BLOCK, BLOCKS};
use crate::history::{History, ReadRecord, WriteRecord};
use crate::message::{Node, Packet};
use crate::rng::Rng;
use gfs_core::ids::{OperationId, ServerId, SessionId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{Mutation, Status, WriteKind};

#[derive(Clone, Copy, Debug)]
enum Task {
    Write { operation: u64, first: usize, count: usize, value: u64 },
    Read { block: usize },
    Sync,
}

/// What a client wants done.
#[derive(Clone, Debug)]
pub enum Want {
    /// Send a packet.
    Send(Node, Packet),
    /// Be woken, unless something else happened meanwhile.
    Wake(u64),
}

/// A client.
pub struct Client {
    id: u64,
    configuration: Configuration,
    task: Option<(Task, u64)>,
    /// The question that is out, and to whom.
    question: Option<(u64, Option<ServerId>)>,
    next_call: u64,
    next_operation: u64,
    confirmed: u64,
    /// Only reads every block once from now on, in order.
    pub closing: bool,
    /// Blocks read while closing.
    pub closed: usize,
}

impl Client {
    /// A client that knows nothing yet.
    pub fn new(id: u64) -> Self {
        Self {
            id,
            configuration: Configuration::default(),
            task: None,
            question: None,
            next_call: 0,
            next_operation: 1,
            confirmed: 0,
            closing: false,
            closed: 0,
        }
    }

    /// Time passed without an answer, or it is time for something new.
    pub fn wake(&mut self, now: u64, rng: &mut Rng, history: &mut History) -> Vec<Want> {
        if self.task.is_none() {
            let task = self.choose(rng);
            if let Task::Write { first, count, value, .. } = task {
                let write = WriteRecord { first, count, value, asked: now, acknowledged: None };
                history.writes.insert(value, write);
            }
            self.task = Some((task, now));
            return self.ask(rng);
        }
        // No answer: whoever was asked is suspect.
        let suspects = self.question.and_then(|(_, server)| server).into_iter().collect();
        self.locate(suspects)
    }

    fn choose(&mut self, rng: &mut Rng) -> Task {
        if self.closing {
            return Task::Read { block: self.closed.min(BLOCKS - 1) };
        }
        match rng.below(20) {
            0..9 => {
                let operation = self.next_operation;
                self.next_operation += 1;
                let first = rng.below(BLOCKS as u64) as usize;
                let count = rng.between(1, 3).min((BLOCKS - first) as u64) as usize;
                Task::Write { operation, first, count, value: self.id << 32 | operation }
            }
            9..18 => Task::Read { block: rng.below(BLOCKS as u64) as usize },
            _ => Task::Sync,
        }
    }

    fn locate(&mut self, suspects: Vec<ServerId>) -> Vec<Want> {
        let call = self.call(None);
        vec![Want::Send(Node::Master, Packet::Locate { call, suspects }), Want::Wake(300)]
    }

    fn call(&mut self, server: Option<ServerId>) -> u64 {
        self.next_call += 1;
        self.question = Some((self.next_call, server));
        self.next_call
    }

    fn ask(&mut self, rng: &mut Rng) -> Vec<Want> {
        let Some((task, _)) = self.task else { return Vec::new() };
        let Some(anybody) = rng.pick(&self.configuration.members).copied() else {
            return self.locate(Vec::new());
        };
        let epoch = self.configuration.epoch;
        let to = if matches!(task, Task::Read { .. }) { anybody } else { self.configuration.primary };
        let call = self.call(Some(to));
        let packet = match task {
            Task::Read { block } => Packet::Read { call, epoch, block },
            Task::Sync => Packet::Sync { call, epoch },
            Task::Write { operation, first, count, value } => Packet::Write {
                call,
                epoch,
                operation: OperationId { session: SessionId(self.id), operation },
                confirmed: self.confirmed,
                mutation: Mutation::At {
                    kind: WriteKind::Data,
                    offset: first as u64 * BLOCK,
                    length: count as u64 * BLOCK,
                },
                value,
            },
        };
        vec![Want::Send(Node::Server(to), packet), Want::Wake(500)]
    }

    /// A packet arrived.
    pub fn receive(&mut self, packet: Packet, now: u64, rng: &mut Rng, history: &mut History) -> Vec<Want> {
        match packet {
            Packet::Located { call, configuration } if self.is_current(call) => {
                if configuration.epoch > self.configuration.epoch {
                    self.configuration = configuration;
                }
                self.ask(rng)
            }
            Packet::Reply { call, status, value } if self.is_current(call) => {
                self.answered(status, value, now, rng, history)
            }
            _ => Vec::new(),
        }
    }

    fn is_current(&self, call: u64) -> bool {
        self.question.is_some_and(|(current, _)| current == call)
    }

    fn answered(&mut self, status: Status, value: u64, now: u64, rng: &mut Rng, history: &mut History) -> Vec<Want> {
        if status != Status::Ok {
            // Look again after a moment; nobody is suspect.
            self.question = None;
            return vec![Want::Wake(rng.between(10, 60))];
        }
        let Some((task, asked)) = self.task.take() else { return Vec::new() };
        self.question = None;
        match task {
            Task::Write { operation, value, .. } => {
                self.confirmed = operation;
                if let Some(write) = history.writes.get_mut(&value) {
                    write.acknowledged = Some(now);
                }
            }
            Task::Read { block } => {
                history.reads.push(ReadRecord { block, value, asked, answered: now });
                if self.closing {
                    self.closed += 1;
                }
            }
            Task::Sync => history.syncs.push(asked),
        }
        let pause = if self.closing { 1 } else { rng.between(1, 30) };
        vec![Want::Wake(pause)]
    }

    /// What it is doing, for a failure's message.
    pub fn waits_for(&self) -> String {
        format!("task {:?}, question {:?}, knows {:?}", self.task, self.question, self.configuration)
    }

    /// Whether it waits for nothing.
    pub fn idle(&self) -> bool {
        self.task.is_none()
    }
}
