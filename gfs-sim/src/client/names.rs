//! Names: a directory of the client's own, in which it knows what every call must answer.
//!
//! Nobody else touches that directory, so an answer that is not the expected one means that a call was performed twice, or not
//! at all although it was answered. The master may lose what it answered and had not flushed when it loses power; the client is
//! told which calls those are and takes them back.

use crate::history::History;
use crate::master::create;
use crate::message::Packet;
use crate::rng::Rng;
use gfs_core::ids::{InodeId, ROOT};
use gfs_core::meta::request::{Answer, NodeKind, Query, Refusal, RenameMode, Reply, Request};
use std::collections::BTreeMap;

/// Different names.
const NAMES: u64 = 4;

type Directory = BTreeMap<Vec<u8>, InodeId>;

#[derive(Clone, Debug)]
enum Call {
    MakeDirectory,
    Create(Vec<u8>),
    Unlink(Vec<u8>),
    Rename(Vec<u8>, Vec<u8>),
    Link(Vec<u8>, Vec<u8>),
    /// Confirms all answers, so that no repeat of theirs can do anything.
    Confirm,
    Look,
    Compare,
}

#[derive(Clone, Debug, Default)]
struct Model {
    directory: Option<InodeId>,
    names: Directory,
}

/// The names of a client.
#[derive(Debug)]
pub(super) struct Names {
    own: Vec<u8>,
    model: Model,
    call: Call,
    /// What is asked: the same however often, whatever the master loses meanwhile.
    request: Option<Request>,
    /// The master has lost something: its answers prove nothing until the directory was looked at.
    disturbed: bool,
    operation: u64,
}

fn name(number: u64) -> Vec<u8> {
    format!("n{number}").into_bytes()
}

impl Names {
    pub(super) fn new(id: u64, incarnation: u64) -> Self {
        let own = format!("client{id}.{incarnation}").into_bytes();
        let (model, call) = (Model::default(), Call::MakeDirectory);
        Self { own, model, call, request: None, disturbed: false, operation: 0 }
    }

    pub(super) fn needs_directory(&self) -> bool {
        self.model.directory.is_none() || self.disturbed
    }

    pub(super) fn operation(&self) -> u64 {
        self.operation
    }

    pub(super) fn choose(&mut self, operation: u64, rng: &mut Rng) {
        self.operation = operation;
        let (one, other) = (name(rng.below(NAMES)), name(rng.below(NAMES)));
        self.call = match rng.below(6) {
            _ if self.disturbed => Call::Confirm,
            _ if self.model.directory.is_none() => Call::MakeDirectory,
            0 | 1 => Call::Create(one),
            2 => Call::Unlink(one),
            3 | 4 if self.model.names.contains_key(&one) => Call::Link(one, other),
            _ => Call::Rename(one, other),
        };
        self.request = Some(self.to_request());
    }

    pub(super) fn choose_listing(&mut self) {
        self.request = None;
        self.call = if self.disturbed { Call::Look } else { Call::Compare };
    }

    /// Whether it has to look at its directory now.
    pub(super) fn has_to_look(&self) -> bool {
        matches!(self.call, Call::Look)
    }

    /// What to ask: a mutation, or at the end what the directory holds.
    pub(super) fn request(&self) -> Result<Request, Query> {
        let inode = self.model.directory.unwrap_or(ROOT);
        self.request.clone().ok_or(Query::ReadDirectory { inode, cookie: 0, limit: 100 })
    }

    fn to_request(&self) -> Request {
        let parent = self.model.directory.unwrap_or(ROOT);
        match &self.call {
            Call::MakeDirectory => create(ROOT, &self.own, NodeKind::Directory),
            Call::Create(name) => create(parent, name, NodeKind::File),
            Call::Unlink(name) => Request::Unlink { parent, name: name.clone() },
            Call::Rename(name, new_name) => {
                let (name, new_parent, new_name) = (name.clone(), parent, new_name.clone());
                Request::Rename { parent, name, new_parent, new_name, mode: RenameMode::Replace }
            }
            Call::Link(of, name) => {
                let inode = self.model.names.get(of).copied().unwrap_or(ROOT);
                Request::Link { inode, parent, name: name.clone() }
            }
            Call::Confirm | Call::Look | Call::Compare => Request::Barrier { times: false },
        }
    }

    /// Compares an answer with what it has to be, and takes it over.
    pub(super) fn answered(&mut self, packet: Packet, client: u64, history: &mut History) {
        let wrong = match packet {
            Packet::Done { reply, .. } if self.disturbed => {
                self.take_disturbed(&reply);
                None
            }
            Packet::Done { reply, .. } => {
                (!self.take(&reply)).then(|| format!("{:?} was answered {reply:?}", self.call))
            }
            Packet::Told { answer, .. } => {
                let listed = listed(&answer);
                if self.has_to_look() {
                    // What is there is what it is.
                    self.disturbed = false;
                    self.model.directory = self.model.directory.filter(|_| listed.is_some());
                    if self.model.directory.is_none() {
                        // It may be there without this client knowing its number, made anew by a request that came twice:
                        // another name is free for sure.
                        self.own.push(b'+');
                    }
                    self.model.names = listed.filter(|_| self.model.directory.is_some()).unwrap_or_default();
                    return self.call = Call::Compare;
                }
                let listed = listed.unwrap_or_default();
                (listed != self.model.names).then(|| format!("the directory holds {listed:?}"))
            }
            other => Some(format!("a call on names was answered {other:?}")),
        };
        if let Some(wrong) = wrong {
            history.violations.push(format!("client {client}: {wrong}, but it knows {:?}", self.model.names));
        }
    }

    /// Whether this is the answer to a call that is performed once.
    fn take(&mut self, reply: &Reply) -> bool {
        let names = &mut self.model.names;
        match (&self.call, reply) {
            (Call::MakeDirectory, Reply::Entry { attributes, created: true }) => {
                self.model.directory = Some(attributes.inode);
                true
            }
            (Call::Create(name), Reply::Entry { attributes, created: true }) => {
                let known = names.values().any(|inode| *inode == attributes.inode);
                !known && names.insert(name.clone(), attributes.inode).is_none()
            }
            (Call::Link(of, name), Reply::Entry { attributes, created: true }) => {
                names.get(of) == Some(&attributes.inode) && names.insert(name.clone(), attributes.inode).is_none()
            }
            (Call::Create(name) | Call::Link(_, name), Reply::Refused(Refusal::Exists)) => names.contains_key(name),
            (Call::Unlink(name), Reply::Done) => names.remove(name).is_some(),
            (Call::Rename(old, new), Reply::Done) => match names.get(old).copied() {
                None => false,
                // Two names of one inode: both stay.
                Some(inode) if names.get(new) == Some(&inode) => true,
                Some(inode) => {
                    names.remove(old);
                    names.insert(new.clone(), inode);
                    true
                }
            },
            (Call::Unlink(name) | Call::Rename(name, _), Reply::Refused(Refusal::NotFound)) => {
                !names.contains_key(name)
            }
            _ => false,
        }
    }

    /// An answer while nobody knows what the master still has.
    fn take_disturbed(&mut self, reply: &Reply) {
        match (&self.call, reply) {
            (Call::MakeDirectory, Reply::Entry { attributes, .. }) => self.model.directory = Some(attributes.inode),
            // It has come to be without anybody knowing its number: another will do.
            (Call::MakeDirectory, _) => self.own.push(b'+'),
            (Call::Confirm, Reply::Done) => {
                self.request = None;
                self.call = Call::Look;
            }
            _ => {}
        }
    }

    /// The master has lost something that it had answered, or was about to.
    pub(super) fn lost(&mut self) {
        self.disturbed = true;
    }
}

/// What a listing shows; `None` when there is no such directory.
fn listed(answer: &Answer) -> Option<Directory> {
    match answer {
        Answer::Directory { entries, end: true } => {
            Some(entries.iter().map(|entry| (entry.name.clone(), entry.attributes.inode)).collect())
        }
        _ => None,
    }
}
