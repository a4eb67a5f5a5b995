//! A chunk server's disk: what survives a kill of the process, and what survives a power cut.
//!
//! It pretends what `gfs-chunkd/src/store` does: prepared writes are kept apart and take effect in place when they commit; a
//! flush makes stable what was committed before it began; an intent is on stable storage before the first write, so that
//! a replica that lost power knows that it may lack something.

use crate::rng::Rng;
use gfs_core::ids::{BlockVersion, ChunkHandle, Epoch, Sequence};
use gfs_core::meta::request::{Configuration, Stored};
use gfs_core::replica::{Loaded, OperationRecord, PreparedWrite, WriteKind};
use std::collections::BTreeMap;

/// Bytes of a block; every write of the simulation covers whole blocks.
pub const BLOCK: u64 = 4096;
/// Blocks of a chunk.
pub const CHUNK_BLOCKS: usize = 8;
/// Bytes of a chunk.
pub const CHUNK: u64 = BLOCK * CHUNK_BLOCKS as u64;

/// A block: which write it is from, what that wrote (0: nothing), and the checksum of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Block {
    /// Its version.
    pub version: BlockVersion,
    /// Its content.
    pub value: u64,
    /// The content that was written.
    pub sum: u64,
}

impl Block {
    /// Whether the checksum is right.
    pub fn is_whole(&self) -> bool {
        self.value == self.sum
    }
}

/// Everything that files hold of one chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// The recorded configuration.
    pub configuration: Option<Configuration>,
    /// Committed up to here.
    pub committed: Sequence,
    /// Prepared writes and what they write.
    pub prepared: BTreeMap<Sequence, (PreparedWrite, u64)>,
    /// Content in place.
    pub blocks: [Block; CHUNK_BLOCKS],
    /// Length of the committed bytes.
    pub length: u64,
    /// The operation table.
    pub operations: BTreeMap<Sequence, OperationRecord>,
    /// May lack something.
    pub suspect: bool,
    /// Being filled has begun and not ended.
    pub filling: bool,
}

/// One chunk on a disk.
#[derive(Clone, Debug, Default)]
pub struct ChunkDisk {
    /// What the operating system's files hold now.
    pub files: Image,
    /// What a power cut leaves for sure.
    pub stable: Image,
    /// On stable storage: a power cut may take something.
    intent: bool,
    /// Flushes up to this one say nothing any more.
    last_flush: u64,
}

impl ChunkDisk {
    /// A new replica. That it is there, and its first configuration, are on stable storage before anything is written.
    /// Flushes up to `last_flush` were of another replica.
    fn create(configuration: &Configuration, last_flush: u64) -> Self {
        let files = Image { configuration: Some(configuration.clone()), ..Image::default() };
        Self { stable: files.clone(), files, intent: false, last_flush }
    }

    /// Records a configuration. The store syncs it with its next flush; a lost one is learned again. One with a single member is
    /// synced at once.
    pub fn persist(&mut self, configuration: &Configuration) {
        self.files.configuration = Some(configuration.clone());
        if configuration.members.len() == 1 {
            self.stable.configuration.clone_from(&self.files.configuration);
        }
    }

    /// Writes the intent before anything else changes.
    pub fn intend(&mut self) {
        self.intent = true;
    }

    /// Stores a prepared write.
    pub fn store(&mut self, write: PreparedWrite, value: u64) {
        self.files.prepared.insert(write.sequence(), (write, value));
        let record = OperationRecord { operation: write.operation, sequence: write.sequence(), offset: write.offset };
        self.files.operations.insert(write.sequence(), record);
    }

    /// Notes that the replica lacks something, on stable storage, or that it is whole again.
    pub fn set_suspect(&mut self, suspect: bool) {
        self.files.suspect = suspect;
        self.stable.suspect |= suspect;
    }

    /// Lets prepared writes take effect; returns them.
    pub fn commit(&mut self, upto: Sequence, reverse: bool) -> Vec<(PreparedWrite, u64)> {
        let rest = self.files.prepared.split_off(&upto.next());
        let done: Vec<_> = std::mem::replace(&mut self.files.prepared, rest).into_values().collect();
        let mut order: Vec<_> = done.iter().collect();
        if reverse {
            order.reverse();
        }
        for (write, value) in order {
            apply(&mut self.files, write, *value);
        }
        self.files.committed = upto.max(self.files.committed);
        done
    }

    /// Forgets prepared writes above `above`.
    pub fn roll_back(&mut self, above: Sequence) {
        self.files.prepared.split_off(&above.next());
        self.files.operations.split_off(&above.next());
    }

    /// Begins to be filled from `base`.
    pub fn start_fill(&mut self, base: Sequence) {
        self.files.filling = true;
        self.files.prepared.clear();
        let kept = self.files.committed.min(base);
        self.files.operations.split_off(&kept.next());
        self.files.committed = base;
    }

    /// The last piece of a copy is in place.
    pub fn finish_fill(&mut self, length: u64, operations: Vec<OperationRecord>) {
        self.files.filling = false;
        self.files.length = length;
        let newer = self.files.operations.split_off(&self.files.committed.next());
        self.files.operations = operations.into_iter().map(|record| (record.sequence, record)).chain(newer).collect();
    }

    /// A flush has ended: this is stable.
    pub fn end_flush(&mut self, number: u64, image: Image) {
        if number <= self.last_flush {
            return;
        }
        self.last_flush = number;
        let suspect = image.suspect || self.files.suspect;
        self.stable = Image { suspect, ..image };
        if self.stable == self.files && self.files.prepared.is_empty() {
            self.intent = false;
        }
    }

    /// The power went: what was not flushed is lost, or not, block by block.
    fn lose_power(&mut self, last_flush: u64, rng: &mut Rng) {
        let mut image = self.stable.clone();
        for (kept, written) in image.blocks.iter_mut().zip(&self.files.blocks) {
            if self.intent && rng.chance(50) {
                *kept = *written;
            }
        }
        image.prepared.clear();
        let committed = image.committed;
        image.operations.split_off(&committed.next());
        image.suspect |= self.intent;
        self.stable.suspect |= self.intent;
        self.files = image;
        // A flush that was under way never ends.
        self.last_flush = last_flush;
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
            filling: self.files.filling,
        }
    }

    /// How much is stored, as a primary of this epoch counts it.
    pub fn stored(&self, epoch: Epoch) -> Stored {
        let blocks = self.files.blocks.iter().filter(|block| block.value != 0).count() as u32;
        Stored { blocks, at: BlockVersion { epoch, sequence: self.files.committed } }
    }

    /// Whether anything was ever written to it.
    pub fn is_written(&self) -> bool {
        self.files.committed > Sequence(0) || !self.files.prepared.is_empty()
    }

    /// Whether all that it holds can be read.
    pub fn is_whole(&self) -> bool {
        self.files.blocks.iter().all(Block::is_whole)
    }
}

fn apply(image: &mut Image, write: &PreparedWrite, value: u64) {
    let first = (write.offset / BLOCK) as usize;
    let last = (write.end().min(CHUNK) / BLOCK) as usize;
    let value = if write.kind == WriteKind::Data { value } else { 0 };
    for block in &mut image.blocks[first..last] {
        *block = Block { version: write.version, value, sum: value };
    }
    match write.kind {
        WriteKind::Data => image.length = image.length.max(write.end()),
        WriteKind::Zero => {}
        WriteKind::Truncate => image.length = image.length.min(write.offset),
    }
}

/// A server's disk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The replicas on it.
    pub chunks: BTreeMap<ChunkHandle, ChunkDisk>,
    /// It fails every call until it is replaced.
    pub failed: bool,
    /// It takes no new writes until then.
    pub full_until: u64,
    /// Flushes that end before then fail.
    pub unsound_until: u64,
    /// A flush that begins before then takes until then.
    pub slow_until: u64,
    flushes: u64,
}

impl Disk {
    /// The machine lost power.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        for chunk in self.chunks.values_mut() {
            chunk.lose_power(self.flushes, rng);
        }
    }

    /// Makes a new replica.
    pub fn create(&mut self, handle: ChunkHandle, configuration: &Configuration) {
        self.chunks.insert(handle, ChunkDisk::create(configuration, self.flushes));
    }

    /// What is to be made stable by a flush of a replica that begins now, with the flush's number.
    pub fn begin_flush(&mut self, handle: ChunkHandle) -> Option<(u64, Image)> {
        let files = self.chunks.get(&handle)?.files.clone();
        self.flushes += 1;
        Some((self.flushes, files))
    }

    /// Whether nothing is wrong with it now.
    pub fn is_fine(&self, now: u64) -> bool {
        !self.failed && now >= self.full_until && now >= self.unsound_until
    }

    /// Flips a bit of a block that holds something; answers whether there was one.
    pub fn flip(&mut self, handle: ChunkHandle, rng: &mut Rng) -> bool {
        let Some(chunk) = self.chunks.get_mut(&handle) else { return false };
        let at = rng.below(CHUNK_BLOCKS as u64) as usize;
        for image in [&mut chunk.files, &mut chunk.stable] {
            if image.blocks[at].value != 0 {
                image.blocks[at].value ^= 1 << 62;
            }
        }
        !chunk.is_whole()
    }
}
