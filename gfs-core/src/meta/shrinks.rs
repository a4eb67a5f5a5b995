//! Cuts under way: files whose size went down and whose last chunk still has bytes beyond it.
//!
//! This room owns the committed intents of rule 13. A file has at most one: a later cut is never higher, so it
//! takes the place of the one before.

use crate::arena::codec::{SliceReader, put_varint};
use crate::arena::{Record, Table};
use crate::ids::{ChunkHandle, Epoch, InodeId};

/// A chunk's tail that is to be zeroed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shrink {
    /// The file.
    pub inode: InodeId,
    /// The chunk that was cut.
    pub handle: ChunkHandle,
    /// Its place in the file.
    pub index: u32,
    /// Zero it from here on, in bytes of the chunk.
    pub from: u64,
    /// The epoch that the cut began; zeroing in this one or a later one counts.
    pub epoch: Epoch,
}

/// The intent but for its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    handle: ChunkHandle,
    index: u32,
    from: u64,
    epoch: Epoch,
}

impl Record for Cut {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.handle.0.to_le_bytes());
        put_varint(out, u64::from(self.index));
        put_varint(out, self.from);
        put_varint(out, u64::from(self.epoch.0));
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = SliceReader(bytes);
        let handle = ChunkHandle(u64::from_le_bytes(reader.take(8)?.try_into().ok()?));
        let cut = Self { handle, index: reader.varint32()?, from: reader.varint()?, epoch: Epoch(reader.varint32()?) };
        reader.0.is_empty().then_some(cut)
    }
}

/// All intents, by inode.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shrinks(pub(crate) Table<Cut>);

fn shrink(inode: u64, cut: Cut) -> Shrink {
    let Cut { handle, index, from, epoch } = cut;
    Shrink { inode: InodeId(inode), handle, index, from, epoch }
}

impl Shrinks {
    pub(crate) fn get(&self, inode: InodeId) -> Option<Shrink> {
        self.0.get((inode.0, 0)).map(|cut| shrink(inode.0, cut))
    }

    pub(crate) fn contains(&self, inode: InodeId) -> bool {
        self.0.contains((inode.0, 0))
    }

    pub(crate) fn set(&mut self, shrink: Shrink) {
        let Shrink { inode, handle, index, from, epoch } = shrink;
        self.0.insert((inode.0, 0), &Cut { handle, index, from, epoch });
    }

    pub(crate) fn remove(&mut self, inode: InodeId) {
        self.0.remove((inode.0, 0));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Shrink> + '_ {
        self.0.range((0, 0)).map(|((inode, _), cut)| shrink(inode, cut))
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }
}
