//! Reading committed bytes, always verified.

use super::chunk::{Chunk, State, parse_entries};
use super::error::StoreError;
use super::file::ChunkFile;
use super::layout::{BLOCK, ENTRY, ZERO_CRC, blocks_of, verify_block};
use super::types::{BlockInfo, ReadOut};
use bytes::Bytes;
use crc_fast::crc32_iscsi;
use gfs_core::ids::Sequence;
use std::ops::Range;

/// Entries of the block table looked at at once when searching for data or holes.
const SEEK_STEP: u32 = 4096;

/// Table and data of some blocks, as they are in the file.
type Raw = (Vec<u8>, Vec<u8>);

impl Chunk {
    /// Reads a range. See `Store::read`.
    pub fn read(&self, offset: u64, length: u64) -> Result<ReadOut, StoreError> {
        let range = self.range(offset, length)?;
        let state = self.state.read();
        let blocks = covering(&range);
        let raw = self.raw(&state, blocks.clone())?;
        let (infos, bytes) = self.assemble(&state, blocks, raw)?;
        Ok(cut(&range, state.length, infos, bytes))
    }

    /// The same, unless it would have to wait.
    pub fn read_cached(&self, offset: u64, length: u64) -> Result<Option<ReadOut>, StoreError> {
        let range = self.range(offset, length)?;
        let Some(state) = self.state.try_read() else {
            return Ok(None);
        };
        let blocks = covering(&range);
        let Some(raw) = self.raw_cached(&state, blocks.clone())? else {
            return Ok(None);
        };
        let (infos, bytes) = self.assemble(&state, blocks, raw)?;
        Ok(Some(cut(&range, state.length, infos, bytes)))
    }

    /// Starts to read a range into the page cache. See `Store::read_ahead`.
    pub fn read_ahead(&self, offset: u64, length: u64) {
        let end = self.state.read().length;
        let length = length.min(end.saturating_sub(offset));
        if length > 0
            && let Ok(file) = self.file()
        {
            file.will_need(offset, length);
        }
    }

    /// The file and the committed length. See `Store::lend`.
    pub fn lend(&self) -> Result<Option<(std::fs::File, u64)>, StoreError> {
        let state = self.state.read();
        if state.dead {
            return Err(self.missing());
        }
        let whole = state.prepared.is_empty() && state.overlay.is_empty() && !state.filling && !state.suspect;
        if !whole {
            return Ok(None);
        }
        let path = self.disk.chunk_path(self.handle);
        let file = std::fs::File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
        Ok(Some((file, state.length)))
    }

    fn range(&self, offset: u64, length: u64) -> Result<Range<u64>, StoreError> {
        let size = self.geometry().chunk_size;
        if offset > size {
            return Err(StoreError::Malformed { handle: self.handle, offset, length });
        }
        Ok(offset..offset.saturating_add(length).min(size))
    }

    /// Checks a range of blocks.
    pub fn block_range(&self, first: u32, count: u32) -> Result<Range<u32>, StoreError> {
        match first.checked_add(count) {
            Some(end) if end <= self.geometry().blocks() => Ok(first..end),
            _ => Err(StoreError::Malformed {
                handle: self.handle,
                offset: u64::from(first) * BLOCK,
                length: u64::from(count) * BLOCK,
            }),
        }
    }

    /// Blocks of the range that readers may look at in the file: beyond the length nothing is committed.
    fn visible(state: &State, blocks: &Range<u32>) -> Range<u32> {
        let end = blocks_of(state.length).min(blocks.end);
        blocks.start..end.max(blocks.start)
    }

    /// Table and data of the visible blocks, as they are in the file.
    fn raw(&self, state: &State, blocks: Range<u32>) -> Result<Raw, StoreError> {
        if state.dead {
            return Err(self.missing());
        }
        let visible = Self::visible(state, &blocks);
        if visible.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let file = self.file()?;
        let table = file.read(self.geometry().entry(visible.start), visible.len() * ENTRY)?;
        let data = file.read(u64::from(visible.start) * BLOCK, visible.len() * BLOCK as usize)?;
        Ok((table, data))
    }

    fn raw_cached(&self, state: &State, blocks: Range<u32>) -> Result<Option<Raw>, StoreError> {
        if state.dead {
            return Err(self.missing());
        }
        let visible = Self::visible(state, &blocks);
        if visible.is_empty() {
            return Ok(Some((Vec::new(), Vec::new())));
        }
        let file = self.file()?;
        let table = file.read_cached(self.geometry().entry(visible.start), visible.len() * ENTRY);
        let Some(table) = table else {
            return Ok(None);
        };
        let data = file.read_cached(u64::from(visible.start) * BLOCK, visible.len() * BLOCK as usize);
        Ok(data.map(|data| (table, data)))
    }

    /// Verifies what came from the file, puts the overlay over it, and zeros where nothing is.
    fn assemble(
        &self,
        state: &State,
        blocks: Range<u32>,
        (table, mut data): Raw,
    ) -> Result<(Vec<BlockInfo>, Vec<u8>), StoreError> {
        let mut infos = Vec::with_capacity(blocks.len());
        let pieces = data.chunks_exact_mut(BLOCK as usize);
        for ((block, entry), bytes) in blocks.clone().zip(parse_entries(&table)).zip(pieces) {
            if let Some(content) = state.overlay.get(&block) {
                match &content.data {
                    Some(newer) => bytes.copy_from_slice(newer),
                    None => bytes.fill(0),
                }
                infos.push(content.info);
                continue;
            }
            infos.push(verify_block(entry, bytes).ok_or_else(|| self.corrupt(block))?);
        }
        infos.resize(blocks.len(), BlockInfo::default());
        data.resize(blocks.len() * BLOCK as usize, 0);
        Ok((infos, data))
    }

    /// Blocks as they lie in the file, verified, whether committed or not.
    pub fn read_in_place(&self, file: &ChunkFile, blocks: Range<u32>) -> Result<(Vec<BlockInfo>, Vec<u8>), StoreError> {
        let infos = self.read_entries(file, blocks.start, blocks.len() as u32)?;
        let mut data = file.read(u64::from(blocks.start) * BLOCK, blocks.len() * BLOCK as usize)?;
        let mut checked = Vec::with_capacity(infos.len());
        for ((block, entry), bytes) in blocks.zip(infos).zip(data.chunks_exact_mut(BLOCK as usize)) {
            checked.push(verify_block(entry, bytes).ok_or_else(|| self.corrupt(block))?);
        }
        Ok((checked, data))
    }

    /// Versions and checksums of committed blocks. See `Store::blocks`.
    pub fn blocks(&self, first: u32, count: u32) -> Result<Vec<BlockInfo>, StoreError> {
        let blocks = self.block_range(first, count)?;
        let state = self.state.read();
        self.infos(&state, blocks)
    }

    fn infos(&self, state: &State, blocks: Range<u32>) -> Result<Vec<BlockInfo>, StoreError> {
        if state.dead {
            return Err(self.missing());
        }
        let visible = Self::visible(state, &blocks);
        let mut infos = Vec::with_capacity(blocks.len());
        if !visible.is_empty() {
            let entries = self.read_entries(&*self.file()?, visible.start, visible.len() as u32)?;
            for (block, entry) in visible.zip(entries) {
                let known = state.overlay.get(&block).map(|content| content.info).or(entry);
                infos.push(known.ok_or_else(|| self.corrupt(block))?);
            }
        }
        infos.resize(blocks.len(), BlockInfo::default());
        Ok(infos)
    }

    /// How much of it is stored. See `Store::stored`.
    pub fn stored(&self) -> Result<(u32, Sequence), StoreError> {
        if let State { stored: Some(blocks), committed, dead: false, .. } = *self.state.read() {
            return Ok((blocks, committed));
        }
        let mut state = self.state.write();
        if state.dead {
            return Err(self.missing());
        }
        let entries = self.read_entries(&*self.file()?, 0, blocks_of(state.length))?;
        let stored = (0..).zip(entries).filter(|(block, entry)| {
            let known = state.overlay.get(block).map(|content| content.info).or(*entry);
            known.is_none_or(|info| info.is_stored())
        });
        let blocks = stored.count() as u32;
        state.stored = Some(blocks);
        Ok((blocks, state.committed))
    }

    /// Committed blocks with their bytes. See `Store::fetch_blocks`.
    pub fn fetch_blocks(&self, first: u32, count: u32) -> Result<(Vec<BlockInfo>, Bytes), StoreError> {
        let blocks = self.block_range(first, count)?;
        let state = self.state.read();
        let raw = self.raw(&state, blocks.clone())?;
        let (infos, bytes) = self.assemble(&state, blocks, raw)?;
        Ok((infos, bytes.into()))
    }

    /// Finds data or a hole. See `Store::seek`.
    pub fn seek(&self, offset: u64, hole: bool) -> Result<u64, StoreError> {
        let size = self.geometry().chunk_size;
        let state = self.state.read();
        if !hole && offset >= state.length {
            return Ok(size);
        }
        let end = blocks_of(state.length);
        let mut block = (offset.min(size) / BLOCK) as u32;
        while block < end {
            let step = block..(block + SEEK_STEP).min(end);
            for (at, info) in step.clone().zip(self.infos(&state, step.clone())?) {
                let is_hole = !info.is_written() || info.crc == ZERO_CRC;
                if is_hole == hole {
                    return Ok(offset.max(u64::from(at) * BLOCK).min(size));
                }
            }
            block = step.end;
        }
        if !hole {
            return Ok(size);
        }
        // A hole begins where the last byte ends, though its block is not a hole as a whole.
        Ok(offset.max(state.length).min(size))
    }
}

fn covering(range: &Range<u64>) -> Range<u32> {
    let start = (range.start / BLOCK) as u32;
    start..blocks_of(range.end).max(start)
}

/// Cuts whole blocks down to the range that was asked for.
fn cut(range: &Range<u64>, length: u64, infos: Vec<BlockInfo>, bytes: Vec<u8>) -> ReadOut {
    let start = range.start / BLOCK * BLOCK;
    let bytes = Bytes::from(bytes);
    let data = bytes.slice((range.start - start) as usize..(range.end - start) as usize);
    if range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK) {
        let crc_of = |info: BlockInfo| if info.is_written() { info.crc } else { ZERO_CRC };
        return ReadOut { data, block_crcs: infos.into_iter().map(crc_of).collect(), crc: 0, length };
    }
    let crc = crc32_iscsi(&data);
    ReadOut { data, block_crcs: Vec::new(), crc, length }
}
