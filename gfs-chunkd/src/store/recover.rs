//! Opening a disk: chunk files with their state slots, then the journal replayed over them.
//!
//! After a kill of the process the state is exactly what the calls that returned have made of it: a write whose
//! prepare did not return is dropped if it is incomplete, committed writes whose blocks did not reach their place are
//! put there again. After a power cut the same holds for all that was synced; every replica that may lack more is
//! marked suspect.

use super::chunk::{Chunk, Prepared, State};
use super::commit::{Base, Staged};
use super::disk::{Disk, FANS};
use super::error::StoreError;
use super::file::ChunkFile;
use super::identity::{self, DiskIdentity};
use super::layout::{BLOCK, FileHeader, Geometry, HEADER, Slot, blocks_of};
use super::record::JournalRecord;
use super::types::{BlockInfo, ChunkHeader, Quarantined, StoreOptions};
use bytes::Bytes;
use crc_fast::crc32_iscsi;
use gfs_core::ids::{BlockVersion, ChunkHandle, Sequence};
use gfs_core::replica::{OperationRecord, OperationTable, PreparedWrite};
use gfs_log::{LogError, Record};
use rustix::fs::IFlags;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A replica while the journal is replayed.
struct Replay {
    header: ChunkHeader,
    birth: u64,
    /// Records before this are contained in the slot.
    from: u64,
    state: State,
    redo: Vec<Redo>,
    /// Versions that were rolled back and not prepared again since.
    undone: BTreeSet<BlockVersion>,
    /// Checksums of blocks that kept older bytes, after the last commit that touched them so.
    crcs: BTreeMap<u32, u32>,
    /// There may be bytes beyond the length that belong to no prepared write.
    strays: bool,
    /// The file has to be made again.
    lost: bool,
}

/// What committed records did, in order.
enum Redo {
    Write(Prepared),
    /// A write that had landed was rolled back.
    Undo(Prepared),
    Length(u64),
}

struct Recovery {
    identity: DiskIdentity,
    dir: PathBuf,
    chunks: HashMap<ChunkHandle, Replay>,
    /// Where the journal says that a chunk is deleted.
    deleted: BTreeMap<ChunkHandle, u64>,
    quarantined: Vec<Quarantined>,
}

/// What a recovered disk holds.
pub(crate) type Recovered = (Arc<Disk>, Vec<Arc<Chunk>>);

/// Opens a disk that has an identity.
pub(crate) fn open(
    dir: &Path,
    lock: File,
    identity: DiskIdentity,
    options: &Arc<StoreOptions>,
) -> Result<Recovered, StoreError> {
    if !dir.join("journal").is_dir() {
        return Err(StoreError::WrongDisk {
            path: dir.to_owned(),
            problem: "its journal is missing".into(),
            mend:
                "Restore the directory `journal`, or move the whole directory away and let this server be filled again"
                    .into(),
        });
    }
    let mut recovery = Recovery {
        identity,
        dir: dir.to_owned(),
        chunks: HashMap::new(),
        deleted: BTreeMap::new(),
        quarantined: Vec::new(),
    };
    recovery.scan()?;
    let journal = Disk::open_journal(dir, options, |record| recovery.replay(record))?;
    let boot = identity::current_boot(options)?;
    let power_cut = identity::last_boot(dir).as_deref() != Some(&boot);
    let disk = Arc::new(Disk::new(dir, lock, identity, journal, options.clone())?);
    let chunks = recovery.finish(&disk, power_cut)?;
    if power_cut {
        // Who is suspect must be known again after the next kill.
        disk.make_checkpoint(|| chunks.clone(), super::checkpoint::Scope::All, std::time::Duration::MAX)?;
        identity::note_boot(dir, &boot)?;
    }
    Ok((disk, chunks))
}

impl Recovery {
    /// Reads headers and slots of all chunk files.
    fn scan(&mut self) -> Result<(), StoreError> {
        for fan in 0..FANS {
            let path = Disk::fan_path(&self.dir, fan);
            let entries = std::fs::read_dir(&path).map_err(|e| StoreError::io("list", &path, e))?;
            for entry in entries {
                let entry = entry.map_err(|e| StoreError::io("list", &path, e))?;
                let path = entry.path();
                let name = entry.file_name();
                let handle = name.to_str().and_then(|n| u64::from_str_radix(n, 16).ok()).map(ChunkHandle);
                let expected =
                    handle.filter(|h| Disk::fan(*h) == fan && name.to_str() == Some(&format!("{:016x}", h.0)));
                match self.load(&path, expected) {
                    Ok(replay) => {
                        self.chunks.extend(expected.map(|handle| (handle, replay)));
                    }
                    Err(Unusable::Error(error)) => return Err(error),
                    Err(Unusable::Bad(reason)) => self.quarantine(&path, handle, reason)?,
                }
            }
        }
        Ok(())
    }

    fn load(&self, path: &Path, handle: Option<ChunkHandle>) -> Result<Replay, Unusable> {
        let handle = handle.ok_or_else(|| Unusable::Bad("its name is not a chunk's".into()))?;
        let file = ChunkFile::open(path)?;
        let geometry = Geometry { chunk_size: self.identity.chunk_size };
        let header = FileHeader::decode(&file.read(geometry.header(), HEADER)?).map_err(Unusable::Bad)?;
        if header.handle != handle || header.cluster != self.identity.owner.cluster {
            return Err(Unusable::Bad(format!("it is chunk {} of cluster {}", header.handle, header.cluster)));
        }
        let (slot, damaged) = newest_slot(&file, geometry, handle)?;
        let slot = slot.ok_or_else(|| Unusable::Bad("no valid state in it".into()))?;
        if damaged {
            tracing::warn!(%handle, "a state slot is damaged: the replica is suspect");
        }
        let state = State {
            configuration: slot.configuration,
            committed: slot.committed,
            flushed: slot.flushed,
            length: slot.length.min(geometry.chunk_size),
            operations: OperationTable::from_records(&slot.operations),
            suspect: slot.suspect || damaged,
            filling: slot.filling,
            intent: slot.intent,
            counter: slot.counter,
            ..State::default()
        };
        Ok(Replay::new(header.chunk, header.birth, slot.replay.max(header.birth), state))
    }

    fn quarantine(&mut self, path: &Path, handle: Option<ChunkHandle>, reason: String) -> Result<(), StoreError> {
        let aside = self.dir.join("quarantine");
        std::fs::create_dir_all(&aside).map_err(|e| StoreError::io("mkdir", &aside, e))?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let target = (0u32..)
            .map(|n| aside.join(format!("{name}.{n}")))
            .find(|candidate| !candidate.exists())
            .unwrap_or_else(|| aside.join(&name));
        std::fs::rename(path, &target).map_err(|e| StoreError::io("rename", path, e))?;
        tracing::warn!(file = %path.display(), moved_to = %target.display(), %reason, "unusable chunk file");
        self.quarantined.push(Quarantined { handle, path: target, reason });
        Ok(())
    }

    /// Takes one record of the journal.
    fn replay(&mut self, record: Record) -> Result<(), LogError> {
        let at = record.position.0;
        let refused = |problem: &str| LogError::Refused {
            dir: self.dir.join("journal"),
            position: at,
            problem: problem.to_owned(),
        };
        let (handle, decoded) = JournalRecord::decode(record.kind, &record.payload)
            .ok_or_else(|| refused("not a record of this version"))?;
        if let JournalRecord::Create { header, configuration } = decoded {
            let chunk = self.chunks.entry(handle).or_insert_with(|| {
                self.deleted.remove(&handle);
                let state = State { configuration, intent: true, fresh: true, ..State::default() };
                Replay { lost: true, ..Replay::new(header, at, at, state) }
            });
            if at >= chunk.from {
                chunk.state.oldest.get_or_insert(at);
            }
            return Ok(());
        }
        let Some(chunk) = self.chunks.get_mut(&handle) else {
            return Ok(());
        };
        if at < chunk.birth {
            return Ok(());
        }
        if decoded == JournalRecord::Delete {
            self.chunks.remove(&handle);
            self.deleted.insert(handle, at);
            return Ok(());
        }
        if at >= chunk.from {
            chunk.state.oldest.get_or_insert(at);
            chunk.take(decoded);
        }
        Ok(())
    }

    /// Makes the files agree with what the journal says.
    fn finish(self, disk: &Arc<Disk>, power_cut: bool) -> Result<Vec<Arc<Chunk>>, StoreError> {
        *disk.quarantined.lock() = self.quarantined;
        for (handle, record) in self.deleted {
            disk.remove_file(handle, record)?;
        }
        let mut chunks = Vec::with_capacity(self.chunks.len());
        for (handle, replay) in self.chunks {
            chunks.push(Arc::new(replay.finish(handle, disk, power_cut)?));
        }
        Ok(chunks)
    }
}

impl Replay {
    fn new(header: ChunkHeader, birth: u64, from: u64, state: State) -> Self {
        let (redo, undone, crcs) = Default::default();
        Self { header, birth, from, state, redo, undone, crcs, strays: false, lost: false }
    }

    /// Takes one record of this replica.
    fn take(&mut self, record: JournalRecord) {
        let state = &mut self.state;
        match record {
            JournalRecord::Create { .. } | JournalRecord::Delete => {}
            JournalRecord::Configuration(configuration) => state.configuration = configuration,
            JournalRecord::Prepare { write, landed, data } => self.take_prepare(write, landed, data),
            JournalRecord::Commit { upto, crcs } => {
                let count = state.prepared.partition_point(|p| p.write.sequence() <= upto);
                self.redo.extend(state.prepared.drain(..count).map(Redo::Write));
                state.committed = state.committed.max(upto);
                self.crcs.extend(crcs);
            }
            JournalRecord::Rollback { above } => {
                let keep = state.prepared.partition_point(|p| p.write.sequence() <= above);
                for prepared in state.prepared.drain(keep..).filter(|p| !p.landed_blocks().is_empty()) {
                    self.undone.insert(prepared.write.version);
                    self.redo.push(Redo::Undo(prepared));
                }
                state.operations.roll_back(above);
                self.strays = true;
            }
            JournalRecord::Intent => state.intent = true,
            JournalRecord::Flushed(sequence) => state.flushed = state.flushed.max(sequence),
            JournalRecord::CopyStart { base } => {
                // The file was brought up to date before: nothing older may be put over the copy.
                self.redo.clear();
                self.crcs.clear();
                state.prepared.clear();
                let kept = state.committed.min(base);
                state.operations.roll_back(kept);
                state.committed = base;
                state.flushed = state.flushed.min(base);
                state.filling = true;
                state.intent = true;
                self.strays = true;
            }
            JournalRecord::CopyFinish { length, operations } => {
                self.redo.push(Redo::Length(length));
                state.operations = state.operations.filled(state.committed, &operations);
                state.flushed = state.committed;
                state.filling = false;
            }
            JournalRecord::Suspect(on) => state.suspect = on,
        }
    }

    fn take_prepare(&mut self, write: PreparedWrite, landed: u64, data: Vec<u8>) {
        // A checkpoint appends what is prepared again.
        if write.sequence() <= self.state.prepared_end() {
            return;
        }
        // Bytes of this version are good again.
        self.undone.remove(&write.version);
        let (operation, sequence, offset) = (write.operation, write.sequence(), write.offset);
        self.state.operations.insert(OperationRecord { operation, sequence, offset });
        self.state.prepared.push_back(Prepared { write, landed, data: Bytes::from(data) });
    }

    fn finish(mut self, handle: ChunkHandle, disk: &Arc<Disk>, power_cut: bool) -> Result<Chunk, StoreError> {
        let cut_off = power_cut && self.state.intent;
        let lost_writes = self.lost && (self.state.committed > Sequence(0) || !self.state.prepared.is_empty());
        let newly_suspect = (cut_off || lost_writes) && !self.state.suspect;
        let (mut redo, crcs) = (std::mem::take(&mut self.redo), std::mem::take(&mut self.crcs));
        // A kill leaves nothing of what was rolled back that is not erased as a stray.
        redo.retain(|step| match step {
            Redo::Undo(prepared) => cut_off && self.undone.contains(&prepared.write.version),
            Redo::Write(_) | Redo::Length(_) => true,
        });
        let chunk = Chunk {
            handle,
            disk: disk.clone(),
            header: self.header,
            state: parking_lot::RwLock::new(State::default()),
            gate: parking_lot::Mutex::new(()),
        };
        let mut state = self.state;
        if self.lost {
            chunk.write_new_file(&mut state, self.birth)?;
        }
        chunk.redo(&mut state, &redo, &crcs, cut_off)?;
        let dropped = chunk.drop_incomplete(&mut state)?;
        if cut_off {
            chunk.reset_torn(&state)?;
            chunk.punch_unstored()?;
        }
        if cut_off || dropped || self.strays {
            chunk.erase_strays(&state)?;
        }
        if newly_suspect {
            // Known again after the next kill, whatever boot that is.
            state.suspect = true;
            chunk.journal(&mut state, &JournalRecord::Suspect(true))?;
        }
        // Whatever the last process wrote may not be on stable storage.
        state.changes = 1;
        state.landed_dirty = state.oldest.is_some() || state.intent;
        state.fresh |= state.intent;
        *chunk.state.write() = state;
        Ok(chunk)
    }
}

impl Chunk {
    /// Makes the file of a new replica: header and first slot.
    pub fn write_new_file(&self, state: &mut State, birth: u64) -> Result<(), StoreError> {
        let header = FileHeader {
            cluster: self.disk.identity.owner.cluster,
            handle: self.handle,
            chunk_size: self.geometry().chunk_size,
            birth,
            chunk: self.header.clone(),
        };
        let slot = Slot {
            // Slot 0 lies right behind the header.
            counter: 0,
            replay: birth,
            handle: self.handle,
            intent: true,
            suspect: state.suspect,
            configuration: state.configuration.clone(),
            ..Slot::default()
        };
        let file = self.disk.new_file(self.handle, self.geometry().header(), &[&header.encode(), &slot.padded()])?;
        let file = Arc::new(file);
        self.disk.forget_file(self.handle);
        self.disk.keep_open(self.handle, file);
        self.disk.touch(self.handle);
        state.fresh = true;
        state.counter = 0;
        Ok(())
    }

    /// Puts committed writes in their place again.
    fn redo(
        &self,
        state: &mut State,
        redo: &[Redo],
        crcs: &BTreeMap<u32, u32>,
        cut_off: bool,
    ) -> Result<(), StoreError> {
        let mut staged = Staged::replay(state, cut_off);
        for step in redo {
            match step {
                Redo::Write(prepared) => staged.add(self, state, prepared, Base::Unverified)?,
                Redo::Undo(prepared) => staged.undo_landed(self, prepared)?,
                Redo::Length(length) => staged.length = *length,
            }
        }
        state.length = staged.length;
        for block in std::mem::take(&mut staged.merged) {
            let Some(content) = staged.blocks.get_mut(&block) else { continue };
            let good = match crcs.get(&block) {
                Some(crc) => *crc == content.info.crc,
                None => !staged.unproven.contains(&block),
            };
            if good {
                continue;
            }
            // What it was merged with is not what was there when it was committed.
            if cut_off && self.may_be_torn(state, block, staged.unproven.contains(&block))? {
                // It had landed and was not synced: the block stays as it was before all that.
                staged.blocks.remove(&block);
                continue;
            }
            // The block stays unreadable, with a version that any copy beats.
            tracing::warn!(handle = %self.handle, block, "the older part of a block is damaged");
            content.info = BlockInfo::data(BlockVersion::default(), (!content.info.crc).max(1));
        }
        self.extend_overlay(state, staged.blocks);
        // The journal was synced when it was opened.
        self.apply_overlay(state)
    }

    /// Whether a power cut explains that a block in the file is not what a commit has merged with: then it is either
    /// in an older state, or landed bytes were on their way to it.
    fn may_be_torn(&self, state: &State, block: u32, mismatch: bool) -> Result<bool, StoreError> {
        let entry = self.read_entries(&*self.file()?, block, 1)?.first().copied().flatten();
        Ok(entry.is_some_and(|info| !mismatch || info.version.sequence > state.flushed))
    }

    /// Drops prepared writes from the first one on whose landed bytes are not all there: its prepare never returned,
    /// or a power cut took it.
    fn drop_incomplete(&self, state: &mut State) -> Result<bool, StoreError> {
        let mut keep = 0;
        for prepared in &state.prepared {
            if !self.is_complete(prepared)? {
                break;
            }
            keep += 1;
        }
        if keep == state.prepared.len() {
            return Ok(false);
        }
        let above = Sequence(state.prepared[keep].write.sequence().0 - 1);
        self.journal(state, &JournalRecord::Rollback { above })?;
        self.forget_prepared(state, above)?;
        state.operations.roll_back(above);
        // The same version may be given to other bytes now.
        self.file()?.sync()?;
        Ok(true)
    }

    fn is_complete(&self, prepared: &Prepared) -> Result<bool, StoreError> {
        let blocks = prepared.landed_blocks();
        if blocks.is_empty() {
            return Ok(true);
        }
        let file = self.file()?;
        let entries = self.read_entries(&file, blocks.start, blocks.len() as u32)?;
        let data = file.read(u64::from(blocks.start) * BLOCK, blocks.len() * BLOCK as usize)?;
        let good = |(entry, bytes): (Option<BlockInfo>, &[u8])| {
            entry.is_some_and(|info| info.version == prepared.write.version && info.crc == crc32_iscsi(bytes))
        };
        Ok(entries.into_iter().zip(data.chunks_exact(BLOCK as usize)).all(good))
    }

    /// After a power cut: blocks that landed and were not synced may be there in part. They were zeros before.
    fn reset_torn(&self, state: &State) -> Result<(), StoreError> {
        let file = self.file()?;
        let blocks = self.geometry().blocks();
        for (block, entry) in (0..blocks).zip(self.read_entries(&file, 0, blocks)?) {
            // A damaged entry is not torn: it lies within one sector.
            let unsynced =
                |info: &BlockInfo| info.is_written() && (info.version.sequence > state.flushed || state.filling);
            let Some(info) = entry.filter(unsynced) else { continue };
            if !self.is_intact(&file, block, &info)? {
                self.erase(&file, block..block + 1)?;
            }
        }
        Ok(())
    }

    /// After a power cut: what reads as zeros is made zeros. A later write may rely on it when it is torn itself.
    fn punch_unstored(&self) -> Result<(), StoreError> {
        let file = self.file()?;
        let blocks = self.geometry().blocks();
        let entries = self.read_entries(&file, 0, blocks)?;
        let unstored = |block: &u32| entries[*block as usize].is_some_and(|info| !info.is_stored());
        let mut block = 0;
        while block < blocks {
            let run = (block..blocks).take_while(unstored).count() as u32;
            file.punch(u64::from(block) * BLOCK, u64::from(run) * BLOCK)?;
            block += run.max(1);
        }
        Ok(())
    }

    /// Whether a block's bytes in the file are what this entry says. Where nothing is stored, they do not matter.
    pub fn is_intact(&self, file: &ChunkFile, block: u32, info: &BlockInfo) -> Result<bool, StoreError> {
        if !info.is_stored() {
            return Ok(true);
        }
        Ok(info.crc == crc32_iscsi(&file.read(u64::from(block) * BLOCK, BLOCK as usize)?))
    }

    /// Erases what lies beyond the length and belongs to no prepared write.
    pub fn erase_strays(&self, state: &State) -> Result<(), StoreError> {
        let file = self.file()?;
        let (first, end) = (blocks_of(state.length), self.geometry().blocks());
        let live = |block: u32, info: BlockInfo| {
            state.prepared.iter().any(|p| p.landed_blocks().contains(&block) && info.version == p.write.version)
        };
        let entries = self.read_entries(&file, first, end.saturating_sub(first))?;
        let is_stray = |block: u32| match entries[(block - first) as usize] {
            Some(info) => info.is_written() && !live(block, info),
            None => true,
        };
        let mut block = first;
        while block < end {
            let run = (block..end).take_while(|b| is_stray(*b)).count() as u32;
            self.erase(&file, block..block + run)?;
            block += run.max(1);
        }
        Ok(())
    }
}

/// Why a file is no replica.
enum Unusable {
    /// The disk could not be read.
    Error(StoreError),
    /// What is in it makes no sense.
    Bad(String),
}

impl From<StoreError> for Unusable {
    fn from(error: StoreError) -> Self {
        Self::Error(error)
    }
}

/// The newest valid slot, and whether another one is damaged.
fn newest_slot(file: &ChunkFile, geometry: Geometry, handle: ChunkHandle) -> Result<(Option<Slot>, bool), StoreError> {
    let mut newest: Option<Slot> = None;
    let mut damaged = false;
    for turn in 0..2 {
        let mut bytes = file.read(geometry.slot(turn), BLOCK as usize)?;
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        if let Some(length) = Slot::encoded_length(&bytes).filter(|length| *length > bytes.len()) {
            bytes = file.read(geometry.slot(turn), length)?;
        }
        match Slot::decode(&bytes).filter(|slot| slot.handle == handle && slot.counter % 2 == turn) {
            Some(slot) if newest.as_ref().is_none_or(|other| other.counter < slot.counter) => newest = Some(slot),
            Some(_) => {}
            None => damaged = true,
        }
    }
    Ok((newest, damaged))
}

/// Makes the directories of a new disk.
pub(crate) fn format(dir: &Path, identity: &DiskIdentity, options: &StoreOptions) -> Result<(), StoreError> {
    let chunks = dir.join("chunks");
    std::fs::create_dir_all(&chunks).map_err(|e| StoreError::io("mkdir", &chunks, e))?;
    spread(&chunks);
    for fan in 0..FANS {
        let path = Disk::fan_path(dir, fan);
        std::fs::create_dir_all(&path).map_err(|e| StoreError::io("mkdir", &path, e))?;
    }
    identity::sync_dir(&chunks)?;
    let boot = identity::current_boot(options)?;
    drop(Disk::open_journal(dir, options, |_| Ok(()))?);
    identity::note_boot(dir, &boot)?;
    identity::write(dir, identity)
}

/// Asks the file system to spread the directories in `dir` over the disk (`chattr +T`). Else ext4 puts the inodes of all of them into one
/// group, and without a journal it passes over every one freed there in the last minutes, one by one, for each new file. A hint:
/// other file systems don't know it.
fn spread(dir: &Path) {
    if let Ok(file) = std::fs::File::open(dir) {
        let flags = rustix::fs::ioctl_getflags(&file).map(|flags| flags | IFlags::TOPDIR);
        let _ = flags.and_then(|flags| rustix::fs::ioctl_setflags(&file, flags));
    }
}
