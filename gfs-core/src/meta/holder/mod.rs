//! What the holder of directories does by itself: it knows every name in them and every attribute of theirs, decides its own calls as the
//! master would, and remembers the steps that the master is to be told of, in their order.
//!
//! This room decides and remembers; it sends nothing and reads no clock. What it cannot decide is the master's, once the directories that
//! it is about are given back ([`Holder::concerned`]). Files have write delegations of their own; of a file this room knows its name alone.

mod decide;

#[cfg(test)]
mod tests;

use super::namespace::access_is_due;
use super::request::{
    AttributeChanges, Attributes, FileType, NameStep, NodeKind, Refusal, Reply, Request, SetTime, Timestamp,
};
use crate::ids::InodeId;
use std::collections::{HashMap, VecDeque};

/// Directories held at a time: beyond them those that were changed longest ago are given back.
pub const MAX_DIRECTORIES: usize = 16_384;
/// Names known in all of them together.
pub const MAX_NAMES: usize = 262_144;
/// Steps of one flush, and roughly the bytes of their names and targets.
const STEPS_AT_ONCE: (usize, usize) = (512, 256 << 10);

/// What became of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It is done, or refused, with this reply.
    Done(Reply),
    /// It is the master's to do.
    NotHere,
    /// It can be done here once there are inode numbers.
    NoNumbers,
}

/// One name of a held directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Child {
    /// What it names.
    pub inode: InodeId,
    /// Of which type that is.
    pub file_type: FileType,
}

struct Directory {
    attributes: Attributes,
    names: HashMap<Vec<u8>, Child>,
    /// It is being given back: nothing is decided here any more.
    ending: bool,
    /// When something was last changed in it.
    used: Timestamp,
    /// Where it has its name, when that is not in a held directory: whoever moves it or removes it there has it given back.
    place: Option<(InodeId, Vec<u8>)>,
}

/// Something that is neither a file nor a directory, made here, of which the master has not been told.
struct Node {
    attributes: Attributes,
    target: Vec<u8>,
}

/// What the master is to be told at a time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// The steps.
    pub steps: Vec<NameStep>,
    /// Directories to give back after them.
    pub gives_back: Vec<InodeId>,
    /// The number of the last step that is told with it.
    pub upto: u64,
    /// There are more steps.
    pub more: bool,
}

impl Batch {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.gives_back.is_empty()
    }
}

/// See the module.
#[derive(Default)]
pub struct Holder {
    directories: HashMap<InodeId, Directory>,
    /// The held directory in which something has its name.
    parents: HashMap<InodeId, InodeId>,
    nodes: HashMap<InodeId, Node>,
    /// By their places.
    placed: HashMap<(InodeId, Vec<u8>), InodeId>,
    names: usize,
    /// Directories that are being given back.
    ending: usize,
    /// Inode numbers: from, to.
    numbers: VecDeque<(u64, u64)>,
    waiting: VecDeque<NameStep>,
    /// How many steps there ever were, and how many of them the master knows.
    last: u64,
    told: u64,
    /// The number of the last untold step about an inode; in the order of steps what they are about.
    untold: HashMap<InodeId, u64>,
    order: VecDeque<(u64, InodeId)>,
}

impl Holder {
    /// The master says that this session holds a directory which it has just made under a name in another one that it does not hold.
    pub fn given(&mut self, made: &Attributes, (parent, name): (InodeId, &[u8])) {
        self.hold(made);
        self.place(made.inode, (parent, name.to_vec()));
    }

    fn hold(&mut self, made: &Attributes) {
        let (attributes, used) = (made.clone(), made.ctime);
        let directory = Directory { attributes, names: HashMap::new(), ending: false, used, place: None };
        self.directories.insert(made.inode, directory);
    }

    fn place(&mut self, inode: InodeId, place: (InodeId, Vec<u8>)) {
        if let Some(directory) = self.directories.get_mut(&inode) {
            directory.place = Some(place.clone());
            self.placed.insert(place, inode);
        }
    }

    /// Whether nothing is held and nothing is to be told.
    pub fn is_idle(&self) -> bool {
        self.directories.is_empty() && self.told == self.last
    }

    /// Whether a directory is held, or being given back.
    pub fn holds(&self, inode: InodeId) -> bool {
        self.directories.contains_key(&inode)
    }

    /// Numbers that the master has set apart.
    pub fn stock(&mut self, first: InodeId, count: u64) {
        self.numbers.push_back((first.0, first.0 + count));
    }

    /// How many numbers are left.
    pub fn stocked(&self) -> u64 {
        self.numbers.iter().map(|(from, to)| to - from).sum()
    }

    fn number(&mut self) -> Option<InodeId> {
        let (from, to) = self.numbers.front_mut()?;
        let number = InodeId(*from);
        *from += 1;
        if from == to {
            self.numbers.pop_front();
        }
        Some(number)
    }

    fn held(&self, inode: InodeId) -> Option<&Directory> {
        self.directories.get(&inode).filter(|directory| !directory.ending)
    }

    /// What a name in a held directory stands for; `None` when that is the master's to say.
    pub fn look_up(&self, directory: InodeId, name: &[u8]) -> Option<Option<Child>> {
        self.held(directory).map(|of| of.names.get(name).copied())
    }

    /// Something else that only this session knows of, in a held directory.
    fn node(&self, inode: InodeId) -> Option<&Node> {
        self.nodes.get(&inode).filter(|_| self.parents.get(&inode).is_some_and(|parent| self.held(*parent).is_some()))
    }

    /// How a held directory is, or something else that only this session knows of.
    pub fn attributes(&self, inode: InodeId) -> Option<Attributes> {
        let node = || self.node(inode).map(|node| node.attributes.clone());
        self.held(inode).map(|directory| directory.attributes.clone()).or_else(node)
    }

    /// The target of a symbolic link that only this session knows of.
    pub fn target(&self, inode: InodeId) -> Option<Vec<u8>> {
        self.node(inode).filter(|node| node.attributes.file_type == FileType::Symlink).map(|of| of.target.clone())
    }

    /// Sets the access time of a held directory as a read does; false when that is the master's to do.
    pub fn touch_access(&mut self, inode: InodeId, now: Timestamp) -> bool {
        let Some(directory) = self.directories.get_mut(&inode).filter(|of| !of.ending) else { return false };
        if access_is_due(&directory.attributes, now) && directory.attributes.atime < now {
            directory.attributes.atime = now;
            let changes = AttributeChanges {
                atime: Some(SetTime::At(now)),
                ctime: Some(directory.attributes.ctime),
                ..AttributeChanges::default()
            };
            self.remember((0, 0), now, InodeId(0), Request::SetAttributes { inode, changes }, &[inode]);
        }
        true
    }

    /// The held directories that the master has to know before it can do this: they are to be given back first.
    pub fn concerned(&self, request: &Request) -> Vec<InodeId> {
        let mut found = Vec::new();
        let mut add = |inode: InodeId| {
            if self.directories.contains_key(&inode) && !found.contains(&inode) {
                found.push(inode);
            }
        };
        let named = |parent: &InodeId, name: &Vec<u8>| {
            let child = self.directories.get(parent).and_then(|of| of.names.get(name)).map(|child| child.inode);
            child.or_else(|| self.placed.get(&(*parent, name.clone())).copied())
        };
        match request {
            Request::Create { parent, .. } => add(*parent),
            Request::Unlink { parent, name } | Request::Rmdir { parent, name } => {
                add(*parent);
                named(parent, name).into_iter().for_each(add);
            }
            Request::Rename { parent, name, new_parent, new_name, .. } => {
                add(*parent);
                add(*new_parent);
                named(parent, name).into_iter().chain(named(new_parent, new_name)).for_each(add);
            }
            Request::Link { inode, parent, .. } => {
                add(*parent);
                self.parents.get(inode).copied().into_iter().for_each(add);
            }
            Request::SetAttributes { inode, .. }
            | Request::SetXattr { inode, .. }
            | Request::RemoveXattr { inode, .. } => add(*inode),
            _ => (),
        }
        found
    }

    /// What is held and had its last change before this, and what is too much: to be given back.
    pub fn begin_idle(&mut self, before: Timestamp) {
        let mut idle: Vec<(Timestamp, InodeId)> =
            self.directories.iter().filter(|(_, of)| !of.ending).map(|(inode, of)| (of.used, *inode)).collect();
        let many = self.directories.len() > MAX_DIRECTORIES || self.names > MAX_NAMES;
        if !many {
            idle.retain(|(used, _)| *used < before);
        } else {
            idle.sort_unstable();
            let half = idle.len().div_ceil(2);
            idle.truncate(half);
        }
        for (_, inode) in idle {
            self.begin_end(inode);
        }
    }

    /// A directory is to be given back. False when it is not held.
    pub fn begin_end(&mut self, inode: InodeId) -> bool {
        let Some(directory) = self.directories.get_mut(&inode) else { return false };
        self.ending += usize::from(!std::mem::replace(&mut directory.ending, true));
        true
    }

    /// The number of the last step.
    pub fn last_step(&self) -> u64 {
        self.last
    }

    /// The number of the last step that the master knows.
    pub fn told_step(&self) -> u64 {
        self.told
    }

    /// When the last step that waits to be told was done.
    pub fn last_time(&self) -> Option<Timestamp> {
        self.waiting.back().map(|step| step.at)
    }

    /// Steps that wait to be told.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the master knows of everything that was done to these.
    pub fn is_told(&self, inodes: &[InodeId]) -> bool {
        self.untold.is_empty() || !inodes.iter().any(|inode| self.untold.contains_key(inode))
    }

    /// Whether the master knows of something once it knows the steps up to here.
    pub fn is_told_by(&self, inode: InodeId, upto: u64) -> bool {
        self.untold.get(&inode).is_none_or(|last| *last <= upto)
    }

    /// Whether a directory is being given back.
    pub fn any_ending(&self) -> bool {
        self.ending > 0
    }

    /// What is to be told now. One batch at a time: the next only after `told` or `lose`.
    pub fn take(&mut self) -> Batch {
        let (mut steps, mut bytes) = (Vec::new(), 0);
        while steps.len() < STEPS_AT_ONCE.0 && bytes < STEPS_AT_ONCE.1 {
            let Some(step) = self.waiting.pop_front() else { break };
            bytes += size_of(&step.request);
            steps.push(step);
        }
        let more = !self.waiting.is_empty();
        // A directory goes with the last of its steps.
        let gives_back = if self.ending > 0 && !more {
            self.directories.iter().filter(|(_, directory)| directory.ending).map(|(inode, _)| *inode).collect()
        } else {
            Vec::new()
        };
        Batch { steps, gives_back, upto: self.last - self.waiting.len() as u64, more }
    }

    /// The master knows this.
    pub fn told(&mut self, batch: &Batch) {
        self.told = batch.upto;
        while let Some((_, inode)) = self.order.front().copied().filter(|(step, _)| *step <= batch.upto) {
            self.order.pop_front();
            if self.untold.get(&inode).is_some_and(|last| *last <= batch.upto) {
                self.untold.remove(&inode);
                self.nodes.remove(&inode);
            }
        }
        for inode in &batch.gives_back {
            self.forget(*inode);
        }
    }

    /// The session is gone, or the master refuses what was done: nothing is held. Answers what is lost, as inodes that it was about.
    pub fn lose(&mut self) -> Vec<InodeId> {
        let lost = std::mem::take(&mut self.untold).into_keys().collect();
        *self = Self { last: self.last, told: self.last, ..Self::default() };
        lost
    }

    fn forget(&mut self, inode: InodeId) {
        let Some(directory) = self.directories.remove(&inode) else { return };
        self.names -= directory.names.len();
        self.ending -= usize::from(directory.ending);
        if let Some(place) = directory.place {
            self.placed.remove(&place);
        }
        for (name, child) in directory.names {
            self.parents.remove(&child.inode);
            self.place(child.inode, (inode, name));
        }
    }

    fn remember(&mut self, (uid, gid): (u32, u32), at: Timestamp, inode: InodeId, request: Request, about: &[InodeId]) {
        self.last += 1;
        for inode in about {
            self.untold.insert(*inode, self.last);
            self.order.push_back((self.last, *inode));
        }
        self.waiting.push_back(NameStep { at, uid, gid, inode, request });
    }
}

/// Roughly the bytes of a step.
fn size_of(request: &Request) -> usize {
    match request {
        Request::Create { name, kind: NodeKind::Symlink(target), .. } => name.len() + target.len() + 64,
        Request::Create { name, .. } | Request::Unlink { name, .. } | Request::Rmdir { name, .. } => name.len() + 64,
        Request::Rename { name, new_name, .. } => name.len() + new_name.len() + 64,
        _ => 128,
    }
}

fn refused(refusal: Refusal) -> Decision {
    Decision::Done(Reply::Refused(refusal))
}
