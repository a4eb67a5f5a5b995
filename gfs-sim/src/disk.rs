//! A chunk server's disk: what survives a kill of the process, and what survives a power cut.
//!
//! It pretends what `gfs-chunkd/src/store` does: prepared writes are kept apart and take effect in place when they
//! commit; a flush makes stable what was committed before it began.

use crate::rng::Rng;
use gfs_core::ids::{BlockVersion, Sequence};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{Loaded, OperationRecord, PreparedWrite, WriteKind};
use std::collections::BTreeMap;

/// Bytes of a block; every write of the simulation covers whole blocks.
pub const BLOCK: u64 = 4096;
/// Blocks of the one chunk.
pub const BLOCKS: usize = 12;

/// A block: which write it is from, and what that wrote (0: nothing yet).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Block {
    /// Its version.
    pub version: BlockVersion,
    /// Its content.
    pub value: u64,
}

/// Everything that files hold of the chunk.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// The recorded configuration.
    pub configuration: Option<Configuration>,
    /// Committed up to here.
    pub committed: Sequence,
    /// Prepared writes and what they write.
    pub prepared: BTreeMap<Sequence, (PreparedWrite, u64)>,
    /// Content in place.
    pub blocks: [Block; BLOCKS],
    /// Length of the committed bytes.
    pub length: u64,
    /// The operation table.
    pub operations: BTreeMap<Sequence, OperationRecord>,
    /// May lack something.
    pub suspect: bool,
}

/// A disk with one chunk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// What the operating system's files hold now.
    pub files: Image,
    stable: Image,
}

impl Disk {
    /// Records a configuration.
    pub fn persist(&mut self, configuration: &Configuration) {
        self.files.configuration = Some(configuration.clone());
        // The store syncs configurations with its next flush; a lost one is learned again.
    }

    /// Stores a prepared write.
    pub fn store(&mut self, write: PreparedWrite, value: u64) {
        self.files.prepared.insert(write.sequence(), (write, value));
        let record = OperationRecord { operation: write.operation, sequence: write.sequence(), offset: write.offset };
        self.files.operations.insert(write.sequence(), record);
    }

    /// Lets prepared writes take effect; returns them.
    pub fn commit(&mut self, upto: Sequence) -> Vec<(PreparedWrite, u64)> {
        let rest = self.files.prepared.split_off(&upto.next());
        let done: Vec<_> = std::mem::replace(&mut self.files.prepared, rest).into_values().collect();
        for (write, value) in &done {
            self.apply(write, *value);
        }
        self.files.committed = upto.max(self.files.committed);
        done
    }

    fn apply(&mut self, write: &PreparedWrite, value: u64) {
        let first = (write.offset / BLOCK) as usize;
        let last = (write.end().min(BLOCK * BLOCKS as u64) / BLOCK) as usize;
        for block in &mut self.files.blocks[first..last] {
            *block = Block { version: write.version, value };
        }
        match write.kind {
            WriteKind::Data => self.files.length = self.files.length.max(write.end()),
            WriteKind::Zero => {}
            WriteKind::Truncate => self.files.length = self.files.length.min(write.offset),
        }
    }

    /// Forgets prepared writes above `above`.
    pub fn roll_back(&mut self, above: Sequence) {
        self.files.prepared.split_off(&above.next());
        self.files.operations.split_off(&above.next());
    }

    /// Begins to be filled from `base`.
    pub fn start_fill(&mut self, base: Sequence) {
        self.files.prepared.clear();
        let committed = self.files.committed;
        self.files.operations.split_off(&committed.next());
        self.files.committed = base;
    }

    /// What is to be made stable by a flush that begins now.
    pub fn snapshot(&self) -> Image {
        self.files.clone()
    }

    /// A flush has ended: this is stable.
    pub fn stabilize(&mut self, image: Image) {
        if image.committed >= self.stable.committed {
            self.stable = image;
        }
    }

    /// The power went: what was not flushed is lost, or not, block by block.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        let mut image = self.stable.clone();
        let dirty = image.committed != self.files.committed
            || image.blocks != self.files.blocks
            || !self.files.prepared.is_empty()
            || image.configuration != self.files.configuration;
        for (kept, written) in image.blocks.iter_mut().zip(&self.files.blocks) {
            if rng.chance(50) {
                *kept = *written;
            }
        }
        image.prepared.clear();
        let committed = image.committed;
        image.operations.split_off(&committed.next());
        image.suspect |= dirty;
        self.files = image;
    }

    /// What the store tells a starting server.
    pub fn load(&self) -> Loaded {
        Loaded {
            configuration: self.files.configuration.clone(),
            committed: self.files.committed,
            prepared: self.files.prepared.values().map(|(write, _)| *write).collect(),
            length: self.files.length,
            operations: self.files.operations.values().copied().collect(),
            suspect: self.files.suspect,
        }
    }
}
