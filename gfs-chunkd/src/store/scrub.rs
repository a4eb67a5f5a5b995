//! Verifying what lies on the disk, before somebody needs it.
//!
//! A read would be served from the page cache, and would push out what others use. So this goes past it where the file system can.

use super::chunk::{Chunk, parse_entries};
use super::error::StoreError;
use super::file::ChunkFile;
use super::layout::{BLOCK, ENTRY, blocks_of};
use crc_fast::crc32_iscsi;
use rustix::fs::{Advice, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;

impl Chunk {
    /// See `Store::scrub`.
    pub fn scrub(&self, first: u32, count: u32) -> Result<u64, StoreError> {
        let blocks = self.block_range(first, count)?;
        let state = self.state.read();
        if state.dead {
            return Err(self.missing());
        }
        // Read and written anyway, and not all of it is in the file yet.
        let busy = state.filling || state.last_write.is_some_and(|at| at.elapsed() < self.disk.options.linger);
        let end = blocks_of(state.length).min(blocks.end);
        if busy || end <= blocks.start {
            return Ok(0);
        }
        let blocks = blocks.start..end;
        let file = self.file()?;
        let direct = open_direct(&file);
        let (from, to) = (self.geometry().entry(blocks.start), self.geometry().entry(blocks.end));
        let table = past_cache(&file, direct.as_ref(), from..to)?;
        debug_assert_eq!(table.len(), blocks.len() * ENTRY);
        let mut read = 0;
        for run in stored_runs(blocks, &table, |block| state.overlay.contains_key(&block)) {
            let run = run.map_err(|block| self.corrupt(block))?;
            let data = past_cache(
                &file,
                direct.as_ref(),
                u64::from(run.blocks.start) * BLOCK..u64::from(run.blocks.end) * BLOCK,
            )?;
            read += data.len() as u64;
            for ((block, crc), bytes) in run.blocks.zip(run.crcs).zip(data.chunks_exact(BLOCK as usize)) {
                if crc != crc32_iscsi(bytes) {
                    return Err(self.corrupt(block));
                }
            }
        }
        Ok(read)
    }
}

/// Blocks in a row that are stored in the file, and what their checksums must be.
struct Run {
    blocks: Range<u32>,
    crcs: Vec<u32>,
}

/// The runs of stored blocks; a block whose entry is damaged is an error. What waits in memory is newer than the file, and passed over.
fn stored_runs(blocks: Range<u32>, table: &[u8], waits: impl Fn(u32) -> bool) -> Vec<Result<Run, u32>> {
    let mut runs: Vec<Result<Run, u32>> = Vec::new();
    for (block, entry) in blocks.zip(parse_entries(table)) {
        match entry {
            _ if waits(block) => {}
            None => runs.push(Err(block)),
            Some(info) if !info.is_stored() => {}
            Some(info) => match runs.last_mut() {
                Some(Ok(run)) if run.blocks.end == block => {
                    run.blocks.end += 1;
                    run.crcs.push(info.crc);
                }
                _ => runs.push(Ok(Run { blocks: block..block + 1, crcs: vec![info.crc] })),
            },
        }
    }
    runs
}

/// The file past the page cache, if the file system can.
fn open_direct(file: &ChunkFile) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(&file.path, flags, Mode::empty()).ok().map(File::from)
}

/// Reads a range from the disk itself. Where the file system can't, the range is first dropped from the page cache.
fn past_cache(file: &ChunkFile, direct: Option<&File>, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
    let length = (range.end - range.start) as usize;
    let (start, end) = (range.start / BLOCK * BLOCK, range.end.next_multiple_of(BLOCK));
    if let Some(direct) = direct
        && let Some(bytes) = read_aligned(direct, start, (end - start) as usize)
            .map_err(|error| StoreError::io("read", &file.path, error))?
    {
        let skip = (range.start - start) as usize;
        return Ok(bytes[skip..skip + length].to_vec());
    }
    // Advice that is not taken does no harm.
    let _ = rustix::fs::fadvise(&file.file, range.start, NonZeroU64::new(length as u64), Advice::DontNeed);
    file.read(range.start, length)
}

/// Whole blocks with `O_DIRECT`; `None` when the file system refuses that.
fn read_aligned(direct: &File, start: u64, length: usize) -> Result<Option<Vec<u8>>, Errno> {
    let mut memory = vec![0; length + BLOCK as usize];
    let align = memory.as_ptr().align_offset(BLOCK as usize);
    let buffer = &mut memory[align..align + length];
    let mut done = 0;
    while done < length {
        match rustix::io::pread(direct, &mut buffer[done..], start + done as u64) {
            // Beyond the end of the file there are zeros.
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    memory.drain(..align);
    memory.truncate(length);
    Ok(Some(memory))
}
