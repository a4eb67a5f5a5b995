//! How much of a chunk is stored, and which of two counts is the later one.
//!
//! A primary counts the blocks of its chunk that hold bytes and tells each writer, with the moment at which it counted: the epoch, and
//! what was committed in the chunk. Both only grow in a chunk's life, so counts are ordered whoever brings them and however late, and what
//! lowers a count (a hole, a cut) needs no rule of its own. This room owns that order; it never adds chunks up.

use crate::arena::codec::{SliceReader, put_varint};
use crate::ids::{BlockVersion, ChunkHandle, Epoch, Sequence};

/// How much of a chunk is stored, as of one moment of its history.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Stored {
    /// Blocks of [`Stored::BLOCK`] bytes that hold bytes.
    pub blocks: u32,
    /// When that was counted: the primary's epoch, and what was committed. Sequence 0: nobody has counted (in this epoch).
    pub at: BlockVersion,
}

/// A chunk that a write went to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsedChunk {
    /// Its place in the file, in chunks.
    pub index: u32,
    /// Its handle.
    pub handle: ChunkHandle,
    /// The last cut of the chunk that the write came after, as its primary said; 0 is none.
    pub cut: Epoch,
    /// How much of it is stored after the write, as its primary said.
    pub stored: Option<Stored>,
}

/// A range of a file whose space is promised to it (fallocate), or given back (a punched hole).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// First byte.
    pub from: u64,
    /// The byte after the last.
    pub to: u64,
    /// Whether it is promised, or given back.
    pub promised: bool,
}

impl Stored {
    /// Bytes of a block.
    pub const BLOCK: u64 = 4096;

    /// Whether a primary has counted.
    pub fn is_counted(&self) -> bool {
        self.at.sequence > Sequence(0)
    }

    /// In bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) * Self::BLOCK
    }

    /// What becomes of the count when all from `from` on (in bytes of the chunk) is cut off in a new epoch. What is counted in
    /// older ones does not count any more.
    pub(crate) fn cut(self, from: u64, epoch: Epoch) -> Self {
        let at = BlockVersion { epoch, sequence: Sequence(0) };
        Self { blocks: self.blocks.min(blocks_of(from)), at }
    }

    /// What becomes of the count when `bytes` of the chunk may be stored and nobody says how many are: all of them, unless it was counted.
    pub(crate) fn or_all_of(self, bytes: u64) -> Self {
        if self.is_counted() { self } else { Self { blocks: self.blocks.max(blocks_of(bytes)), ..self } }
    }

    /// Nothing where nothing is known, so that a chunk that was never counted costs nothing.
    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        if self != Self::default() {
            put_varint(out, u64::from(self.blocks));
            put_varint(out, u64::from(self.at.epoch.0));
            put_varint(out, self.at.sequence.0);
        }
    }

    pub(crate) fn decode(reader: &mut SliceReader<'_>) -> Option<Self> {
        if reader.0.is_empty() {
            return Some(Self::default());
        }
        let blocks = reader.varint32()?;
        let at = BlockVersion { epoch: Epoch(reader.varint32()?), sequence: Sequence(reader.varint()?) };
        Some(Self { blocks, at }).filter(|stored| *stored != Self::default())
    }
}

/// Blocks that cover so many bytes of a chunk.
fn blocks_of(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(Stored::BLOCK)).unwrap_or(u32::MAX)
}
