//! One replica in memory, and the two ways in which its state is written: the journal and the state slot.
//!
//! A committed overwrite is first kept in `overlay` and goes to its place only when the journal that holds it is
//! on stable storage. So whatever a crash leaves in the file can be made whole again from the journal.

use super::disk::Disk;
use super::error::StoreError;
use super::file::ChunkFile;
use super::layout::{BLOCK, ENTRY, Geometry, Slot, blocks_of, decode_entry, encode_entry};
use super::record::JournalRecord;
use super::types::{BlockInfo, ChunkHeader, ReplicaState};
use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, Sequence};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{OperationTable, PreparedWrite, WriteKind};
use gfs_log::{Appended, Position};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A replica.
pub(crate) struct Chunk {
    pub handle: ChunkHandle,
    pub disk: Arc<Disk>,
    pub header: ChunkHeader,
    pub state: RwLock<State>,
    /// Held while its file is being synced.
    pub gate: Mutex<()>,
}

/// What changes about a replica.
#[derive(Default)]
pub(crate) struct State {
    /// Deleted while somebody still had it in hand.
    pub dead: bool,
    pub configuration: Configuration,
    pub committed: Sequence,
    pub flushed: Sequence,
    pub length: u64,
    /// How many committed blocks are stored; `None` until somebody asks.
    pub stored: Option<u32>,
    pub prepared: VecDeque<Prepared>,
    pub operations: OperationTable,
    pub suspect: bool,
    pub filling: bool,
    /// A power cut would make it suspect.
    pub intent: bool,
    /// The intent is durable once the journal is up to here.
    pub intent_end: u64,
    /// Committed blocks that are not in place yet.
    pub overlay: BTreeMap<u32, OverlayBlock>,
    /// The overlay may go to its place once the journal is durable up to here.
    pub overlay_end: u64,
    /// Bytes in the file that are nowhere else and not synced.
    pub landed_dirty: bool,
    /// Counts what was written to the file; `synced` is the count that a checkpoint has seen on stable storage.
    pub changes: u64,
    pub synced: u64,
    /// The file's name is not durable yet.
    pub fresh: bool,
    /// The oldest record in the journal that is not contained in the file.
    pub oldest: Option<u64>,
    /// Counter of the newest state slot.
    pub counter: u64,
    pub last_write: Option<Instant>,
}

/// A prepared write.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub write: PreparedWrite,
    /// Bytes from here on lie in place in the file.
    pub landed: u64,
    /// The bytes before.
    pub data: Bytes,
}

impl Prepared {
    /// Blocks that lie in place.
    pub fn landed_blocks(&self) -> std::ops::Range<u32> {
        if self.write.kind != WriteKind::Data || self.landed >= self.write.end() {
            return 0..0;
        }
        (self.landed / BLOCK) as u32..blocks_of(self.write.end())
    }
}

/// A committed block that is not in place yet.
#[derive(Clone, Debug)]
pub(crate) struct OverlayBlock {
    pub info: BlockInfo,
    /// `None` is zeros.
    pub data: Option<Bytes>,
}

impl OverlayBlock {
    /// A block as if it had never been written.
    pub fn erased() -> Self {
        Self { info: BlockInfo::default(), data: None }
    }

    /// What it costs in memory.
    pub fn cost(&self) -> u64 {
        self.data.as_ref().map_or(64, |data| data.len() as u64 + 64)
    }
}

impl State {
    /// The newest prepared write, or what is committed.
    pub fn prepared_end(&self) -> Sequence {
        self.prepared.back().map_or(self.committed, |p| p.write.sequence())
    }

    /// The length as it will be once everything prepared is committed, or more. Blocks that wait in the overlay count too:
    /// after a truncation they lie beyond the length, and would go over whatever had landed there.
    pub fn reach(&self) -> u64 {
        let data = self.prepared.iter().filter(|p| p.write.kind == WriteKind::Data);
        let overlay = self.overlay.last_key_value().map_or(0, |(block, _)| (u64::from(*block) + 1) * BLOCK);
        data.map(|p| p.write.end()).max().unwrap_or(0).max(self.length).max(overlay)
    }

    /// Notes a record in the journal.
    pub fn note(&mut self, appended: Appended) {
        self.oldest.get_or_insert(appended.start.0);
        self.last_write = Some(Instant::now());
    }

    /// Whether a power cut now would lose nothing, and nothing is under way.
    pub fn is_clean(&self) -> bool {
        !self.intent && self.oldest.is_none() && self.prepared.is_empty()
    }
}

impl Chunk {
    pub fn geometry(&self) -> Geometry {
        self.disk.geometry
    }

    pub fn file(&self) -> Result<Arc<ChunkFile>, StoreError> {
        self.disk.file(self.handle)
    }

    pub fn missing(&self) -> StoreError {
        StoreError::NoChunk { handle: self.handle }
    }

    pub fn corrupt(&self, block: u32) -> StoreError {
        let path = self.disk.chunk_path(self.handle);
        tracing::warn!(handle = %self.handle, block, path = %path.display(), "block does not match its checksum");
        StoreError::Corrupt { handle: self.handle, block, path }
    }

    /// Appends a record to the journal.
    pub fn journal(&self, state: &mut State, record: &JournalRecord) -> Result<Appended, StoreError> {
        let payload = record.encode(self.handle);
        let appended = self.disk.journal.append(record.kind(), &[&payload]).map_err(|e| self.disk.journal_error(e))?;
        state.note(appended);
        Ok(appended)
    }

    /// Waits until the journal is on stable storage up to a position.
    pub fn journal_durable(&self, upto: u64) -> Result<(), StoreError> {
        if self.disk.journal.durable().0 >= upto {
            return Ok(());
        }
        self.disk.journal.sync(Position(upto)).map_err(|e| self.disk.journal_error(e))
    }

    /// What is known of the replica.
    pub fn describe(&self, state: &State) -> ReplicaState {
        ReplicaState {
            handle: self.handle,
            header: self.header.clone(),
            configuration: state.configuration.clone(),
            committed: state.committed,
            prepared: state.prepared.iter().map(|p| p.write).collect(),
            flushed: state.flushed,
            length: state.length,
            operations: state.operations.records(),
            suspect: state.suspect,
            filling: state.filling,
        }
    }

    /// Reads entries of the block table; `None` in place of a damaged one.
    pub fn read_entries(&self, file: &ChunkFile, first: u32, count: u32) -> Result<Vec<Option<BlockInfo>>, StoreError> {
        let raw = file.read(self.geometry().entry(first), count as usize * ENTRY)?;
        Ok(parse_entries(&raw))
    }

    /// Writes entries of the block table.
    pub fn write_entries(&self, file: &ChunkFile, first: u32, infos: &[BlockInfo]) -> Result<(), StoreError> {
        let raw: Vec<u8> = infos.iter().flat_map(encode_entry).collect();
        file.write(self.geometry().entry(first), &[&raw])
    }

    /// Makes blocks as if they had never been written.
    pub fn erase(&self, file: &ChunkFile, blocks: std::ops::Range<u32>) -> Result<(), StoreError> {
        if blocks.is_empty() {
            return Ok(());
        }
        // In this order, so that a kill between the two leaves an entry that tells of the rest.
        file.punch(u64::from(blocks.start) * BLOCK, blocks.len() as u64 * BLOCK)?;
        let (entries, length) = (self.geometry().entry(blocks.start), blocks.len() * ENTRY);
        match file.write(entries, &[&vec![0; length]]) {
            // No page of the table is there yet, and none is needed for zeros.
            Err(StoreError::NoSpace { .. }) => file.punch(entries, length as u64),
            written => written,
        }
    }

    /// Puts the overlay in its place. The journal must be durable up to `overlay_end`.
    pub fn apply_overlay(&self, state: &mut State) -> Result<(), StoreError> {
        if state.overlay.is_empty() {
            return Ok(());
        }
        let file = self.file()?;
        let blocks: Vec<(u32, &OverlayBlock)> =
            state.overlay.iter().map(|(block, content)| (*block, content)).collect();
        let same_run = |a: &(u32, &OverlayBlock), b: &(u32, &OverlayBlock)| {
            a.0 + 1 == b.0 && a.1.data.is_some() == b.1.data.is_some()
        };
        for run in blocks.chunk_by(same_run) {
            let offset = u64::from(run[0].0) * BLOCK;
            let parts: Vec<&[u8]> = run.iter().filter_map(|(_, b)| b.data.as_deref()).collect();
            if parts.is_empty() {
                file.punch(offset, run.len() as u64 * BLOCK)?;
            } else {
                self.disk.direct.write_blocks(&file, offset, &parts)?;
            }
        }
        for run in blocks.chunk_by(|a, b| a.0 + 1 == b.0) {
            let infos: Vec<BlockInfo> = run.iter().map(|(_, b)| b.info).collect();
            self.write_entries(&file, run[0].0, &infos)?;
        }
        state.changes += 1;
        self.drop_overlay(state);
        Ok(())
    }

    /// Forgets the overlay and what it cost.
    pub fn drop_overlay(&self, state: &mut State) {
        let cost: u64 = std::mem::take(&mut state.overlay).values().map(OverlayBlock::cost).sum();
        self.disk.overlay.fetch_sub(cost, Ordering::AcqRel);
    }

    /// Puts committed blocks into the overlay.
    pub fn extend_overlay(&self, state: &mut State, blocks: BTreeMap<u32, OverlayBlock>) {
        for (block, content) in blocks {
            self.disk.overlay.fetch_add(content.cost(), Ordering::AcqRel);
            if let Some(old) = state.overlay.insert(block, content) {
                self.disk.overlay.fetch_sub(old.cost(), Ordering::AcqRel);
            }
        }
    }

    /// Waits for the journal and puts the overlay in its place.
    pub fn drain_overlay(&self, state: &mut State) -> Result<(), StoreError> {
        if state.overlay.is_empty() {
            return Ok(());
        }
        self.journal_durable(state.overlay_end)?;
        self.apply_overlay(state)
    }

    /// Writes the state slot: everything up to here is in the file, which the caller has synced. Prepared writes
    /// are appended to the journal again. The slot itself is on stable storage only after the next checkpoint.
    pub fn write_slot(&self, state: &mut State, flushed: Sequence) -> Result<(), StoreError> {
        let replay = self.disk.journal.end().0;
        let mut oldest = None;
        for prepared in &state.prepared {
            let head = super::record::prepare_head(self.handle, &prepared.write, prepared.landed);
            let parts: [&[u8]; 2] = [&head, &prepared.data];
            let kind = super::record::PREPARE;
            let appended = self.disk.journal.append(kind, &parts).map_err(|e| self.disk.journal_error(e))?;
            oldest.get_or_insert(appended.start.0);
        }
        let mut operations = state.operations.records();
        operations.sort_by_key(|record| record.sequence);
        let slot = Slot {
            counter: state.counter + 1,
            replay,
            handle: self.handle,
            committed: state.committed,
            flushed,
            length: state.length,
            intent: state.intent,
            suspect: state.suspect,
            filling: state.filling,
            configuration: state.configuration.clone(),
            operations,
        };
        self.file()?.write(self.geometry().slot(slot.counter), &[&slot.padded()])?;
        self.disk.slots.lock().insert(self.handle);
        state.counter = slot.counter;
        state.oldest = oldest;
        Ok(())
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let cost: u64 = self.state.get_mut().overlay.values().map(OverlayBlock::cost).sum();
        self.disk.overlay.fetch_sub(cost, Ordering::AcqRel);
    }
}

/// Reads raw entries; `None` in place of a damaged one.
pub(crate) fn parse_entries(raw: &[u8]) -> Vec<Option<BlockInfo>> {
    raw.as_chunks::<ENTRY>().0.iter().map(decode_entry).collect()
}
