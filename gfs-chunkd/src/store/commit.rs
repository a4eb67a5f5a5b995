//! Committing prepared writes: their result becomes what readers see, at once and whole.
//!
//! Landed bytes only need the length moved. Everything else is merged with what is there into whole blocks, which
//! wait in the overlay until the journal is durable. The commit record carries the checksums of the blocks that kept
//! older bytes, so that a replay can prove that it merged with the right ones.

use super::chunk::{Chunk, OverlayBlock, Prepared, State};
use super::error::StoreError;
use super::layout::{BLOCK, blocks_of};
use super::record::JournalRecord;
use super::types::BlockInfo;
use bytes::Bytes;
use crc_fast::crc32_iscsi;
use gfs_core::ids::{BlockVersion, Sequence};
use gfs_core::replica::WriteKind;
use std::collections::{BTreeMap, BTreeSet};

/// What committing writes will change.
pub(crate) struct Staged {
    pub blocks: BTreeMap<u32, OverlayBlock>,
    /// Blocks of which a part is older than the writes.
    pub merged: BTreeSet<u32>,
    /// Those of them whose older part does not match its checksum.
    pub unproven: BTreeSet<u32>,
    pub length: u64,
    /// How many more blocks are stored than before.
    pub growth: i64,
    /// Set in a replay after a power cut: what was flushed before it.
    cut: Option<Sequence>,
    /// Blocks whose landed bytes the power cut took. A part that was written over them is lost with them.
    lost: BTreeSet<u32>,
}

/// Where the older part of a block comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// It must match its checksum.
    Verified,
    /// It need not: it is proven otherwise, or will be replaced.
    Unverified,
}

impl Staged {
    pub fn new(length: u64) -> Self {
        let (blocks, merged, unproven, lost) = Default::default();
        Self { blocks, merged, unproven, length, growth: 0, cut: None, lost }
    }

    /// For a replay, after a power cut perhaps.
    pub fn replay(state: &State, power_cut: bool) -> Self {
        Self { cut: power_cut.then_some(state.flushed), ..Self::new(state.length) }
    }

    /// Adds one write.
    pub fn add(&mut self, chunk: &Chunk, state: &State, prepared: &Prepared, base: Base) -> Result<(), StoreError> {
        let write = &prepared.write;
        match write.kind {
            WriteKind::Data => {
                self.put(chunk, state, prepared, base)?;
                self.find_landed(chunk, prepared)?;
                // They lay beyond everything that was stored.
                self.growth += prepared.landed_blocks().len() as i64;
                self.length = self.length.max(write.end());
            }
            WriteKind::Zero => self.zero(chunk, state, write.version, write.offset, write.end(), base)?,
            WriteKind::Truncate => {
                self.zero(chunk, state, write.version, write.offset, u64::MAX, base)?;
                self.length = self.length.min(write.offset);
            }
        }
        Ok(())
    }

    fn put(&mut self, chunk: &Chunk, state: &State, prepared: &Prepared, base: Base) -> Result<(), StoreError> {
        let (mut at, end) = (prepared.write.offset, prepared.write.offset + prepared.data.len() as u64);
        if at == end {
            return Ok(());
        }
        let version = prepared.write.version;
        let first = (at / BLOCK) as u32;
        let entries = chunk.read_entries(&*chunk.file()?, first, blocks_of(end) - first)?;
        for (block, entry) in (first..).zip(entries) {
            let start = u64::from(block) * BLOCK;
            let stop = end.min(start + BLOCK);
            let from = (at - prepared.write.offset) as usize;
            let piece = prepared.data.slice(from..from + (stop - at) as usize);
            let in_block = (at - start) as usize;
            at = stop;
            if self.is_newer(chunk, state, (block, entry), version)? {
                continue;
            }
            if piece.len() as u64 == BLOCK {
                let info = BlockInfo::data(version, crc32_iscsi(&piece));
                self.renew(block);
                self.set(state, (block, entry), OverlayBlock { info, data: Some(piece) });
            } else if !self.lost.contains(&block) {
                self.merge(chunk, state, version, Part { block, entry, at: in_block, bytes: &piece }, base)?;
            }
        }
        Ok(())
    }

    /// Makes a range read as zeros, where anything is stored.
    fn zero(
        &mut self,
        chunk: &Chunk,
        state: &State,
        version: BlockVersion,
        from: u64,
        to: u64,
        base: Base,
    ) -> Result<(), StoreError> {
        // Beyond the length all is zero already, and later writes may have landed there.
        let to = to.min(u64::from(blocks_of(self.length)) * BLOCK);
        if from >= to {
            return Ok(());
        }
        let (first, last) = ((from / BLOCK) as u32, blocks_of(to));
        let entries = chunk.read_entries(&*chunk.file()?, first, last - first)?;
        for (block, entry) in (first..last).zip(entries) {
            let known = self.known(state, block).or(entry);
            let start = u64::from(block) * BLOCK;
            let (head, tail) = (from.max(start) - start, to.min(start + BLOCK) - start);
            let whole = head == 0 && tail == BLOCK;
            if whole {
                self.lost.remove(&block);
            }
            if known.is_some_and(|info| !info.is_stored()) || self.is_newer(chunk, state, (block, entry), version)? {
                continue;
            }
            if whole {
                self.renew(block);
                self.set(state, (block, entry), OverlayBlock { info: BlockInfo::zeroed(version), data: None });
            } else {
                let zeros = vec![0; (tail - head) as usize];
                let part = Part { block, entry, at: head as usize, bytes: &zeros };
                self.merge(chunk, state, version, part, base)?;
            }
        }
        Ok(())
    }

    fn merge(
        &mut self,
        chunk: &Chunk,
        state: &State,
        version: BlockVersion,
        part: Part<'_>,
        base: Base,
    ) -> Result<(), StoreError> {
        let zeros = || vec![0; BLOCK as usize];
        let staged = self.blocks.get(&part.block);
        if staged.is_none() {
            self.merged.insert(part.block);
        }
        let mut whole = match staged.or_else(|| state.overlay.get(&part.block)) {
            Some(content) => content.data.as_ref().map_or_else(zeros, |data| data.to_vec()),
            None if part.entry.is_some_and(|info| !info.is_stored()) => zeros(),
            None => {
                let bytes = chunk.file()?.read(u64::from(part.block) * BLOCK, BLOCK as usize)?;
                if part.entry.is_none_or(|info| info.crc != crc32_iscsi(&bytes)) {
                    if base == Base::Verified {
                        return Err(chunk.corrupt(part.block));
                    }
                    self.unproven.insert(part.block);
                }
                bytes
            }
        };
        whole[part.at..part.at + part.bytes.len()].copy_from_slice(part.bytes);
        let info = BlockInfo::data(version, crc32_iscsi(&whole));
        self.set(state, (part.block, part.entry), OverlayBlock { info, data: Some(Bytes::from(whole)) });
        Ok(())
    }

    /// Gives a block, of which the file's table says `entry`, its new content.
    fn set(&mut self, state: &State, (block, entry): (u32, Option<BlockInfo>), content: OverlayBlock) {
        let was_stored = self.known(state, block).or(entry).is_none_or(|info| info.is_stored());
        self.growth += i64::from(content.info.is_stored()) - i64::from(was_stored);
        self.blocks.insert(block, content);
    }

    /// What is known of a block without looking at the file.
    fn known(&self, state: &State, block: u32) -> Option<BlockInfo> {
        self.blocks.get(&block).or_else(|| state.overlay.get(&block)).map(|content| content.info)
    }

    /// Whether a block contains the write already: a copy or an interrupted commit has brought it.
    fn is_newer(
        &self,
        chunk: &Chunk,
        state: &State,
        (block, entry): (u32, Option<BlockInfo>),
        version: BlockVersion,
    ) -> Result<bool, StoreError> {
        if let Some(info) = self.known(state, block) {
            return Ok(info.version >= version);
        }
        let Some(info) = entry.filter(|info| info.version >= version) else {
            return Ok(false);
        };
        // A power cut may have kept the entry and not the bytes.
        Ok(self.cut.is_none() || chunk.is_intact(&*chunk.file()?, block, &info)?)
    }

    /// A block's older content does not matter any more.
    fn renew(&mut self, block: u32) {
        self.merged.remove(&block);
        self.unproven.remove(&block);
        self.lost.remove(&block);
    }

    /// In a replay after a power cut: sees which bytes that had landed are still there. The journal does not have them.
    fn find_landed(&mut self, chunk: &Chunk, prepared: &Prepared) -> Result<(), StoreError> {
        let blocks = prepared.landed_blocks();
        let Some(flushed) = self.cut.filter(|_| !blocks.is_empty()) else {
            return Ok(());
        };
        let version = prepared.write.version;
        let entries = chunk.read_entries(&*chunk.file()?, blocks.start, blocks.len() as u32)?;
        for (block, entry) in blocks.zip(entries) {
            // The write found zeros there.
            self.renew(block);
            self.blocks.remove(&block);
            if version.sequence > flushed && entry.is_some_and(|info| info.version < version) {
                self.blocks.insert(block, OverlayBlock::erased());
                self.lost.insert(block);
            }
        }
        Ok(())
    }

    /// In a replay after a power cut: erases again where bytes had landed that were rolled back.
    pub fn undo_landed(&mut self, chunk: &Chunk, prepared: &Prepared) -> Result<(), StoreError> {
        let (blocks, version) = (prepared.landed_blocks(), prepared.write.version);
        let file = chunk.file()?;
        let entries = chunk.read_entries(&file, blocks.start, blocks.len() as u32)?;
        for (block, entry) in blocks.zip(entries) {
            let newer = entry.filter(|info| info.version > version);
            let stays = newer.map_or(Ok(false), |info| chunk.is_intact(&file, block, &info))?;
            if !stays {
                self.renew(block);
                self.blocks.insert(block, OverlayBlock::erased());
            }
        }
        Ok(())
    }
}

/// A part of one block, and what the file's table says of the block.
struct Part<'a> {
    block: u32,
    entry: Option<BlockInfo>,
    at: usize,
    bytes: &'a [u8],
}

impl Chunk {
    /// Makes prepared writes take effect. See `Store::commit`.
    pub fn commit(&self, upto: Sequence) -> Result<(), StoreError> {
        let mut state = self.state.write();
        if state.dead {
            return Err(self.missing());
        }
        if upto <= state.committed {
            return Ok(());
        }
        if upto > state.prepared_end() {
            return Err(StoreError::OutOfOrder { handle: self.handle, expected: state.prepared_end(), got: upto });
        }
        let count = state.prepared.partition_point(|p| p.write.sequence() <= upto);
        // What is being filled may hold anything: the copy replaces it.
        let base = if state.filling { Base::Unverified } else { Base::Verified };
        let mut staged = Staged::new(state.length);
        for prepared in state.prepared.iter().take(count) {
            staged.add(self, &state, prepared, base)?;
        }
        let crcs = staged.merged.iter().filter_map(|b| Some((*b, staged.blocks.get(b)?.info.crc))).collect();
        let appended = self.journal(&mut state, &JournalRecord::Commit { upto, crcs })?;
        if !staged.blocks.is_empty() {
            state.overlay_end = appended.end.0;
        }
        self.extend_overlay(&mut state, staged.blocks);
        state.length = staged.length;
        state.stored = state.stored.map(|blocks| (i64::from(blocks) + staged.growth).max(0) as u32);
        state.committed = upto;
        state.prepared.drain(..count);
        if self.overlay_is_full() {
            match self.drain_overlay(&mut state) {
                // The bytes are safe in the journal; a later call tries again.
                Err(StoreError::NoSpace { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }
}
