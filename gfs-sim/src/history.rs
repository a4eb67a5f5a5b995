//! What clients asked and got, with times, and what servers did: the evidence that the invariants judge.

use gfs_core::ids::{ChunkHandle, Epoch, InodeId, OperationId, Sequence, ServerId};
use gfs_core::replica::PreparedWrite;
use std::collections::{BTreeMap, BTreeSet};

/// Which blocks of a file a change is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// These get its value.
    Blocks {
        /// The first.
        first: usize,
        /// How many.
        count: usize,
    },
    /// All from here on become nothing.
    From(usize),
    /// An append that was not answered: any block may have got its value.
    Unknown,
}

/// A write with a value of its own, or a cut.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The file.
    pub inode: InodeId,
    /// Where.
    pub place: Place,
    /// What; a cut has none.
    pub value: u64,
    /// When it was asked.
    pub asked: u64,
    /// When it was acknowledged; `None` while in doubt.
    pub acknowledged: Option<u64>,
    /// The primary chose the place.
    pub append: bool,
}

impl Change {
    /// What it makes of a block, if anything.
    pub fn value_at(&self, block: usize) -> Option<u64> {
        match self.place {
            Place::Blocks { first, count } => (first..first + count).contains(&block).then_some(self.value),
            Place::From(first) => (block >= first).then_some(0),
            Place::Unknown => Some(self.value),
        }
    }
}

/// A read of one block.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// The file.
    pub inode: InodeId,
    /// Which block of it.
    pub block: usize,
    /// What it returned.
    pub value: u64,
    /// When it was asked.
    pub asked: u64,
    /// When it returned.
    pub answered: u64,
}

/// An fsync of a file.
#[derive(Clone, Copy, Debug)]
pub struct Synced {
    /// The file.
    pub inode: InodeId,
    /// When it was asked.
    pub asked: u64,
    /// When it returned.
    pub answered: u64,
}

/// The evidence of one run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All changes, in the order in which they were asked.
    pub changes: Vec<Change>,
    /// All reads that returned.
    pub reads: Vec<Read>,
    /// All syncs that returned.
    pub syncs: Vec<Synced>,
    /// Which file a chunk was attached to.
    pub places: BTreeMap<ChunkHandle, InodeId>,
    /// What each place in a chunk's history holds, as the first server committed it.
    pub committed: BTreeMap<(ChunkHandle, Sequence), (OperationId, u64)>,
    /// All values that were ever committed.
    pub values: BTreeSet<u64>,
    /// Which server ordered writes of a chunk in an epoch.
    pub orderers: BTreeMap<(ChunkHandle, Epoch), ServerId>,
    /// Up to where a chunk's syncs were answered.
    pub synced: BTreeMap<ChunkHandle, Sequence>,
    /// When no member of a chunk was left that had lost nothing: what was acknowledged and not synced may be gone.
    pub exposed: BTreeMap<ChunkHandle, BTreeSet<u64>>,
    /// The epoch of a chunk in which that happened last.
    exposed_at: BTreeMap<ChunkHandle, Epoch>,
    /// When the master lost power, and with it the last of what it had answered.
    pub master_lost: BTreeSet<u64>,
    /// What was found wrong while running.
    pub violations: Vec<String>,
}

impl History {
    /// A server committed a write.
    pub fn on_commit(&mut self, server: ServerId, handle: ChunkHandle, write: &PreparedWrite, value: u64) {
        self.values.insert(value);
        let (sequence, operation) = (write.sequence(), write.operation);
        let old = self.exposed_at.get(&handle).is_some_and(|epoch| write.version.epoch <= *epoch);
        let place = (handle, sequence);
        if old && !self.committed.contains_key(&place) {
            // One that was left out before all others lost something may still learn what was in the place then.
            return;
        }
        let first = *self.committed.entry(place).or_insert((operation, value));
        if first != (operation, value) {
            self.violations.push(format!(
                "chunk {handle}: histories diverge at {sequence}: {server:?} committed {operation:?} of {value}, another {first:?}"
            ));
        }
    }

    /// A server ordered a write as primary.
    pub fn on_order(&mut self, handle: ChunkHandle, epoch: Epoch, server: ServerId) {
        let first = *self.orderers.entry((handle, epoch)).or_insert(server);
        if first != server {
            self.violations.push(format!("chunk {handle}: {epoch:?} has two primaries: {first:?} and {server:?}"));
        }
    }

    /// A sync of a chunk was answered.
    pub fn chunk_synced(&mut self, handle: ChunkHandle, upto: Sequence) {
        let known = self.synced.entry(handle).or_default();
        *known = upto.max(*known);
    }

    /// No member of the chunk is left that has lost nothing: places in its history may be taken anew.
    pub fn on_exposed(&mut self, now: u64, handle: ChunkHandle, epoch: Epoch) {
        self.exposed_at.insert(handle, epoch);
        self.exposed.entry(handle).or_default().insert(now);
        self.committed.retain(|(other, _), _| *other != handle);
    }

    /// When something of a file that was acknowledged and not synced may have been lost.
    pub fn losses(&self, inode: InodeId) -> BTreeSet<u64> {
        let chunks = self.places.iter().filter(|(_, file)| **file == inode).map(|(handle, _)| handle);
        let lost = chunks.filter_map(|handle| self.exposed.get(handle)).flatten();
        lost.chain(&self.master_lost).copied().collect()
    }

    /// All files that anybody changed or read.
    pub fn files(&self) -> BTreeSet<InodeId> {
        self.changes.iter().map(|change| change.inode).chain(self.reads.iter().map(|read| read.inode)).collect()
    }
}
