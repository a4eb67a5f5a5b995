//! Filling a replica from another, and repairing blocks of one.
//!
//! Copied blocks go straight to their place: the replica counts for nothing until all of it is on stable storage, or
//! the block was damaged anyway. They replace what is here without a question, since the protocol orders them.

use super::chunk::{Chunk, OverlayBlock};
use super::error::StoreError;
use super::layout::{BLOCK, ZERO_CRC};
use super::record::JournalRecord;
use super::types::BlockInfo;
use crc_fast::crc32_iscsi;
use gfs_core::ids::Sequence;
use gfs_core::replica::OperationRecord;
use std::sync::atomic::Ordering;

impl Chunk {
    /// Begins to fill the replica. See `Store::copy_start`.
    pub fn copy_start(&self, base: Sequence) -> Result<(), StoreError> {
        let mut state = self.state.write();
        if state.dead {
            return Err(self.missing());
        }
        // Nothing from before may be replayed over the copy.
        self.drain_overlay(&mut state)?;
        self.file()?.sync()?;
        let appended = self.journal(&mut state, &JournalRecord::CopyStart { base })?;
        (state.filling, state.stored) = (true, None);
        state.intent = true;
        state.intent_end = appended.end.0;
        self.forget_prepared(&mut state, Sequence(0))?;
        let kept = state.committed.min(base);
        state.operations.roll_back(kept);
        state.committed = base;
        state.flushed = state.flushed.min(base);
        let flushed = state.flushed;
        self.write_slot(&mut state, flushed)?;
        drop(state);
        self.journal_durable(appended.end.0)
    }

    /// Puts copied blocks in place. See `Store::copy_in`.
    pub fn copy_in(&self, first: u32, blocks: &[BlockInfo], data: &[u8]) -> Result<(), StoreError> {
        let range = self.block_range(first, blocks.len() as u32)?;
        let malformed =
            StoreError::Malformed { handle: self.handle, offset: u64::from(first) * BLOCK, length: data.len() as u64 };
        if data.len() as u64 != blocks.len() as u64 * BLOCK {
            return Err(malformed);
        }
        let pieces: Vec<&[u8]> = data.chunks_exact(BLOCK as usize).collect();
        for ((block, info), piece) in range.clone().zip(blocks).zip(&pieces) {
            let expected = if info.is_written() { info.crc } else { ZERO_CRC };
            if crc32_iscsi(piece) != expected {
                return Err(StoreError::BadPayload { handle: self.handle, block });
            }
        }
        self.disk.take_space(data.len() as u64)?;
        let mut state = self.state.write();
        if state.dead {
            return Err(self.missing());
        }
        if !state.intent {
            let appended = self.journal(&mut state, &JournalRecord::Intent)?;
            state.intent = true;
            state.intent_end = appended.end.0;
        }
        self.journal_durable(state.intent_end)?;
        state.stored = None;
        for block in range.clone() {
            if let Some(old) = state.overlay.remove(&block) {
                self.disk.overlay.fetch_sub(OverlayBlock::cost(&old), Ordering::AcqRel);
            }
        }
        let file = self.file()?;
        let all: Vec<(u32, &BlockInfo, &[u8])> =
            range.zip(blocks).zip(pieces).map(|((block, info), piece)| (block, info, piece)).collect();
        for run in all.chunk_by(|a, b| is_hole(a.1) == is_hole(b.1)) {
            let offset = u64::from(run[0].0) * BLOCK;
            if is_hole(run[0].1) {
                file.punch(offset, run.len() as u64 * BLOCK)?;
            } else {
                let parts: Vec<&[u8]> = run.iter().map(|(_, _, piece)| *piece).collect();
                self.disk.direct.write_blocks(&file, offset, &parts)?;
            }
        }
        self.write_entries(&file, first, blocks)?;
        state.landed_dirty = true;
        state.changes += 1;
        Ok(())
    }

    /// Ends the filling. See `Store::copy_finish`.
    pub fn copy_finish(&self, length: u64, operations: &[OperationRecord]) -> Result<(), StoreError> {
        if length > self.geometry().chunk_size {
            return Err(StoreError::Malformed { handle: self.handle, offset: length, length: 0 });
        }
        let _gate = self.gate.lock();
        self.file()?.sync()?;
        let mut state = self.state.write();
        if state.dead {
            return Err(self.missing());
        }
        // Nothing of what was here before may show when the replica grows.
        let old = std::mem::replace(&mut state.length, length);
        if let Err(error) = self.erase_strays(&state) {
            state.length = old;
            return Err(error);
        }
        // What came in since, while nobody held the lock.
        self.file()?.sync()?;
        let record = JournalRecord::CopyFinish { length, operations: operations.to_vec() };
        let appended = self.journal(&mut state, &record)?;
        let committed = state.committed;
        state.operations = state.operations.filled(committed, operations);
        (state.filling, state.stored) = (false, None);
        state.landed_dirty = false;
        let fresh = std::mem::take(&mut state.fresh);
        drop(state);
        if fresh {
            self.disk.sync_fan(self.handle)?;
        }
        self.journal_durable(appended.end.0)?;
        self.raise_flushed(committed);
        Ok(())
    }

    /// See `Store::set_suspect`.
    pub fn set_suspect(&self, on: bool) -> Result<(), StoreError> {
        let mut state = self.state.write();
        if state.dead {
            return Err(self.missing());
        }
        if state.suspect == on {
            return Ok(());
        }
        let appended = self.journal(&mut state, &JournalRecord::Suspect(on))?;
        state.suspect = on;
        drop(state);
        if on { self.journal_durable(appended.end.0) } else { Ok(()) }
    }
}

/// Whether a block reads as zeros, so that it needs no space.
fn is_hole(info: &BlockInfo) -> bool {
    !info.is_written() || info.crc == ZERO_CRC
}
