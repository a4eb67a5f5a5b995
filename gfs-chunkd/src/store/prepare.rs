//! Preparing a write: it is in files of the operating system when the call returns, and no reader sees it.
//!
//! An overwrite goes with its bytes into the journal. Bytes beyond everything that was ever written or prepared may
//! land in place instead, if they are many: readers never look beyond the committed length. The journal's record
//! comes first, so that landed bytes which nobody was told about are found and erased after a crash.

use super::chunk::{Chunk, Prepared, State};
use super::error::StoreError;
use super::layout::{BLOCK, ZEROED, blocks_of};
use super::record::{JournalRecord, PREPARE, prepare_head};
use super::types::BlockInfo;
use bytes::Bytes;
use crc_fast::crc32_iscsi;
use gfs_core::ids::Sequence;
use gfs_core::replica::{OperationRecord, PreparedWrite, WriteKind};
use std::sync::atomic::Ordering;

/// Sequences are stored in 48 bits.
const MAX_SEQUENCE: u64 = (1 << 48) - 1;
/// The largest payload of one write.
const MAX_DATA: usize = 16 << 20;

impl Chunk {
    /// Stores a write without showing it. See `Store::prepare`.
    pub fn prepare(&self, write: &PreparedWrite, data: &[u8]) -> Result<(), StoreError> {
        self.validate(write, data)?;
        if write.kind == WriteKind::Data {
            // A block table entry and a record's head come on top.
            self.disk.take_space(write.length + write.length / 128 + 512)?;
        }
        let mut state = self.state.write();
        if state.dead {
            return Err(self.missing());
        }
        let expected = state.prepared_end().next();
        if write.sequence() != expected {
            return Err(StoreError::OutOfOrder { handle: self.handle, expected, got: write.sequence() });
        }
        let landed = self.landing(&state, write);
        let kept = match write.kind {
            WriteKind::Data => &data[..(landed - write.offset.min(landed)) as usize],
            WriteKind::Zero | WriteKind::Truncate => &[],
        };
        self.journal_prepare(&mut state, write, landed, kept)?;
        let prepared = Prepared { write: *write, landed, data: Bytes::copy_from_slice(kept) };
        if let Err(error) = self.land(&mut state, &prepared, data) {
            return Err(self.undo_landing(&mut state, &prepared, error));
        }
        state.operations.insert(OperationRecord {
            operation: write.operation,
            sequence: write.sequence(),
            offset: write.offset,
        });
        state.prepared.push_back(prepared);
        let intent_end = state.intent_end;
        drop(state);
        self.journal_durable(intent_end)
    }

    fn validate(&self, write: &PreparedWrite, data: &[u8]) -> Result<(), StoreError> {
        let size = self.geometry().chunk_size;
        let fits = write.offset <= size && write.length <= size - write.offset;
        let payload = match write.kind {
            WriteKind::Data => data.len() as u64 == write.length && data.len() <= MAX_DATA,
            WriteKind::Zero | WriteKind::Truncate => data.is_empty(),
        };
        if fits && payload && write.sequence().0 <= MAX_SEQUENCE && write.version.epoch.0 < ZEROED {
            return Ok(());
        }
        Err(StoreError::Malformed { handle: self.handle, offset: write.offset, length: write.length })
    }

    /// From where on the bytes of a write may land in place; the end of the write when none may.
    fn landing(&self, state: &State, write: &PreparedWrite) -> u64 {
        if write.kind != WriteKind::Data || state.filling {
            return write.end();
        }
        let untouched = u64::from(blocks_of(state.reach())) * BLOCK;
        let landed = write.offset.max(untouched);
        if landed + self.disk.options.land_bytes.max(1) <= write.end() { landed } else { write.end() }
    }

    /// Appends the record, with an intent before it if the replica was clean.
    fn journal_prepare(
        &self,
        state: &mut State,
        write: &PreparedWrite,
        landed: u64,
        kept: &[u8],
    ) -> Result<(), StoreError> {
        let head = prepare_head(self.handle, write, landed);
        let parts: [&[u8]; 2] = [&head, kept];
        let journal = &self.disk.journal;
        if state.intent {
            let appended = journal.append(PREPARE, &parts).map_err(|e| self.disk.journal_error(e))?;
            state.note(appended);
            return Ok(());
        }
        let intent = JournalRecord::Intent;
        let payload = intent.encode(self.handle);
        let batch: [(u8, &[&[u8]]); 2] = [(intent.kind(), &[&payload]), (PREPARE, &parts)];
        let appended = journal.append_batch(&batch).map_err(|e| self.disk.journal_error(e))?;
        state.note(appended);
        state.intent = true;
        state.intent_end = appended.end.0;
        Ok(())
    }

    /// Puts bytes in place beyond everything that readers see.
    fn land(&self, state: &mut State, prepared: &Prepared, data: &[u8]) -> Result<(), StoreError> {
        let blocks = prepared.landed_blocks();
        if blocks.is_empty() {
            return Ok(());
        }
        // A power cut must not leave bytes there that no intent tells of.
        self.journal_durable(state.intent_end)?;
        let write = &prepared.write;
        let landed = &data[(prepared.landed - write.offset) as usize..];
        let front = (prepared.landed % BLOCK) as usize;
        let infos: Vec<BlockInfo> =
            landed_crcs(landed, front).into_iter().map(|crc| BlockInfo::data(write.version, crc)).collect();
        debug_assert_eq!(infos.len(), blocks.len());
        let file = self.file()?;
        self.disk.direct.write_padded(&file, prepared.landed, landed)?;
        self.write_entries(&file, blocks.start, &infos)?;
        state.landed_dirty = true;
        state.changes += 1;
        Ok(())
    }

    /// The landing failed half way: takes the record back and erases what is there.
    fn undo_landing(&self, state: &mut State, prepared: &Prepared, error: StoreError) -> StoreError {
        if error.fails_disk() {
            return error;
        }
        let above = Sequence(prepared.write.sequence().0 - 1);
        let undone = self
            .journal(state, &JournalRecord::Rollback { above })
            .and_then(|_| self.erase(&*self.file()?, prepared.landed_blocks()));
        state.changes += 1;
        match undone {
            Ok(()) => error,
            // The file no longer says what the journal says: only a restart can put that right.
            Err(second) => StoreError::Io {
                operation: "undo a write of",
                path: self.disk.chunk_path(self.handle),
                source: std::sync::Arc::new(std::io::Error::other(second.to_string())),
            },
        }
    }

    /// Forgets prepared writes above a sequence. See `Store::rollback`.
    pub fn rollback(&self, above: Sequence) -> Result<(), StoreError> {
        let mut state = self.state.write();
        if state.dead {
            return Err(self.missing());
        }
        if above < state.committed {
            return Err(StoreError::OutOfOrder { handle: self.handle, expected: state.committed, got: above });
        }
        if above >= state.prepared_end() {
            return Ok(());
        }
        self.journal(&mut state, &JournalRecord::Rollback { above })?;
        self.forget_prepared(&mut state, above)?;
        state.operations.roll_back(above);
        Ok(())
    }

    /// Drops prepared writes above a sequence and erases what of them lies in place.
    pub fn forget_prepared(&self, state: &mut State, above: Sequence) -> Result<(), StoreError> {
        let keep = state.prepared.partition_point(|p| p.write.sequence() <= above);
        let dropped = state.prepared.split_off(keep);
        for prepared in dropped.iter().filter(|p| !p.landed_blocks().is_empty()) {
            self.erase(&*self.file()?, prepared.landed_blocks())?;
            state.changes += 1;
        }
        Ok(())
    }

    /// The payload of a prepared write.
    pub fn prepared_data(&self, sequence: Sequence) -> Result<Bytes, StoreError> {
        let state = self.state.read();
        let Some(prepared) = state.prepared.iter().find(|p| p.write.sequence() == sequence) else {
            let expected = state.prepared_end();
            return Err(StoreError::OutOfOrder { handle: self.handle, expected, got: sequence });
        };
        let blocks = prepared.landed_blocks();
        if blocks.is_empty() {
            return Ok(prepared.data.clone());
        }
        let start = u64::from(blocks.start) * BLOCK;
        let (_, bytes) = self.read_in_place(&*self.file()?, blocks)?;
        let mut whole = prepared.data.to_vec();
        whole.extend_from_slice(&bytes[(prepared.landed - start) as usize..(prepared.write.end() - start) as usize]);
        Ok(whole.into())
    }

    /// Whether writers should put committed bytes in their place before they go on.
    pub fn overlay_is_full(&self) -> bool {
        self.disk.overlay.load(Ordering::Acquire) > self.disk.options.overlay_bytes
    }
}

/// Checksums of the whole blocks that hold `landed`, which begins `front` bytes into its first block.
fn landed_crcs(landed: &[u8], front: usize) -> Vec<u32> {
    let block = BLOCK as usize;
    let mut crcs = Vec::with_capacity((front + landed.len()).div_ceil(block));
    let head = if front == 0 { 0 } else { (block - front).min(landed.len()) };
    let padded = |bytes: &[u8], front: usize| {
        let mut whole = [0u8; BLOCK as usize];
        whole[front..front + bytes.len()].copy_from_slice(bytes);
        crc32_iscsi(&whole)
    };
    if head > 0 {
        crcs.push(padded(&landed[..head], front));
    }
    let pieces = landed[head..].chunks_exact(block);
    let rest = pieces.remainder();
    crcs.extend(pieces.map(crc32_iscsi));
    if !rest.is_empty() {
        crcs.push(padded(rest, 0));
    }
    crcs
}
