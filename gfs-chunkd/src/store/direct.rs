//! Writing many bytes past the page cache.
//!
//! The first touch of a fresh page costs more than all else that is done with its bytes, and bytes that just arrived are
//! seldom read back from here. So large writes of whole blocks go out with `O_DIRECT`, from aligned buffers that are used
//! again. A file system that refuses that gets buffered writes. The kernel keeps buffered readers of the same file right.
//!
//! This room decides nothing about durability: a direct write needs `fdatasync` like any other, for the file's extents.

use super::error::StoreError;
use super::file::ChunkFile;
use super::layout::BLOCK;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of one buffer, and so of the largest single write.
const BUFFER: usize = 1 << 20;
/// Buffers kept for the next use. More are made while more threads write, and dropped afterwards.
const KEPT: usize = 8;

/// Direct writes to the files of one directory.
pub(crate) struct Direct {
    /// Fewer bytes are written through the page cache; in bytes.
    least: u64,
    /// The file system can't do it.
    refused: AtomicBool,
    buffers: Mutex<Vec<Buffer>>,
}

impl Direct {
    /// Direct writes for anything of at least `least` bytes.
    pub fn new(least: u64) -> Self {
        Self { least, refused: AtomicBool::new(false), buffers: Mutex::default() }
    }

    /// Writes `bytes` at `offset` and zeros up to the borders of their first and last block.
    pub fn write_padded(&self, file: &ChunkFile, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        let end = offset + bytes.len() as u64;
        let (front, back) = ((offset % BLOCK) as usize, (end.next_multiple_of(BLOCK) - end) as usize);
        let whole = whole_blocks(offset, bytes.len() as u64);
        if !self.takes(whole.end - whole.start) {
            return file.write(offset - front as u64, &[&ZEROS[..front], bytes, &ZEROS[..back]]);
        }
        let (head, rest) = bytes.split_at((whole.start - offset) as usize);
        let (middle, tail) = rest.split_at((whole.end - whole.start) as usize);
        if !head.is_empty() {
            file.write(offset - front as u64, &[&ZEROS[..front], head])?;
        }
        if !tail.is_empty() {
            file.write(whole.end, &[tail, &ZEROS[..back]])?;
        }
        self.write_blocks(file, whole.start, &[middle])
    }

    /// Writes whole blocks, given in parts, from a block's border on.
    pub fn write_blocks(&self, file: &ChunkFile, mut offset: u64, parts: &[&[u8]]) -> Result<(), StoreError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        debug_assert!(offset.is_multiple_of(BLOCK) && (length as u64).is_multiple_of(BLOCK));
        if !self.takes(length as u64) {
            return file.write(offset, parts);
        }
        // Whatever is wrong with the second descriptor, the first one serves.
        let Ok(Some(direct)) = self.checked(file.direct(), &file.path) else {
            return file.write(offset, parts);
        };
        let mut buffer = self.buffers.lock().pop().unwrap_or_else(Buffer::new);
        let mut parts = parts.iter().copied();
        let mut rest: &[u8] = &[];
        let written = loop {
            let filled = fill(buffer.bytes(), &mut rest, &mut parts);
            if filled == 0 {
                break Ok(());
            }
            if let Err(error) = self.write_buffer(file, direct, offset, &buffer.bytes()[..filled]) {
                break Err(error);
            }
            offset += filled as u64;
        };
        let mut buffers = self.buffers.lock();
        if buffers.len() < KEPT {
            buffers.push(buffer);
        }
        written
    }

    fn takes(&self, length: u64) -> bool {
        length >= self.least.max(BLOCK) && !self.refused.load(Ordering::Relaxed)
    }

    fn write_buffer(&self, file: &ChunkFile, direct: &File, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut done = 0;
        while done < bytes.len() {
            let count = match rustix::io::pwrite(direct, &bytes[done..], offset + done as u64) {
                Err(Errno::INTR) => continue,
                result => self.checked(result, &file.path)?.unwrap_or(0),
            };
            // Nothing, or a part of a block: an ordinary write finishes, or says what is wrong.
            let blocks = count - count % BLOCK as usize;
            if blocks == 0 {
                return file.write(offset + done as u64, &[&bytes[done..]]);
            }
            done += blocks;
        }
        Ok(())
    }

    /// What a direct call answered; `None` when the file system can't do it, which is then remembered.
    fn checked<T>(&self, result: Result<T, Errno>, path: &Path) -> Result<Option<T>, StoreError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                if !self.refused.swap(true, Ordering::Relaxed) {
                    tracing::warn!(path = %path.display(), "the file system refuses O_DIRECT: writes go through the page cache");
                }
                Ok(None)
            }
            Err(error) => Err(StoreError::io("write", path, error)),
        }
    }

    #[cfg(test)]
    pub fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

/// The whole blocks within `offset .. offset + length`, in bytes; empty when there are none.
fn whole_blocks(offset: u64, length: u64) -> Range<u64> {
    let start = offset.next_multiple_of(BLOCK);
    let end = (offset + length) / BLOCK * BLOCK;
    start..end.max(start)
}

/// Copies as much as fits; answers how many bytes.
fn fill<'a>(buffer: &mut [u8], rest: &mut &'a [u8], parts: &mut impl Iterator<Item = &'a [u8]>) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        if rest.is_empty() {
            match parts.next() {
                Some(part) => *rest = part,
                None => break,
            }
        }
        let (now, later) = rest.split_at(rest.len().min(buffer.len() - filled));
        buffer[filled..filled + now.len()].copy_from_slice(now);
        filled += now.len();
        *rest = later;
    }
    filled
}

/// Memory that begins at a block's border.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0; BUFFER + BLOCK as usize];
        let start = memory.as_ptr().align_offset(BLOCK as usize);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BUFFER]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(length: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn whole_blocks_of_a_range_leave_a_part_of_a_block_at_each_end() {
        assert_eq!(whole_blocks(0, 8192), 0..8192);
        assert_eq!(whole_blocks(1, 8191), 4096..8192);
        assert_eq!(whole_blocks(4096, 4097), 4096..8192);
        assert_eq!(whole_blocks(5, 10_000), 4096..8192);
        assert!(whole_blocks(1, 4095).is_empty());
        assert!(whole_blocks(5000, 100).is_empty());
        assert!(whole_blocks(4096, 0).is_empty());
    }

    #[test]
    fn parts_of_any_size_fill_buffers_in_order() {
        let whole = random(1000);
        let cut: Vec<&[u8]> = vec![&whole[..1], &whole[1..1], &whole[1..700], &whole[700..]];
        let (mut parts, mut rest, mut seen) = (cut.into_iter(), &[][..], Vec::new());
        let mut buffer = [0; 64];
        loop {
            match fill(&mut buffer, &mut rest, &mut parts) {
                0 => break,
                filled => seen.extend_from_slice(&buffer[..filled]),
            }
        }
        assert_eq!(seen, whole);
    }

    #[test]
    fn direct_bytes_with_their_ends_are_what_a_buffered_reader_sees() {
        let dir = tempfile::tempdir().unwrap();
        let file = ChunkFile::create(&dir.path().join("file")).unwrap();
        let direct = Direct::new(BLOCK);
        let bytes = random(2 * BUFFER + 12_345);
        // Cached before, and longer than what is written.
        file.write(0, &[&vec![9; 4 << 20]]).unwrap();
        file.read(0, 4 << 20).unwrap();
        direct.write_padded(&file, 4096 + 77, &bytes).unwrap();
        let end = 4096 + 77 + bytes.len();
        assert!(file.read(0, 4096).unwrap().iter().all(|byte| *byte == 9));
        assert!(file.read(4096, 77).unwrap().iter().all(|byte| *byte == 0));
        assert!(file.read(4096 + 77, bytes.len()).unwrap() == bytes);
        let padding = end.next_multiple_of(4096) - end;
        assert!(file.read(end as u64, padding).unwrap().iter().all(|byte| *byte == 0));
        assert_eq!(file.read((end + padding) as u64, 1).unwrap(), [9]);
    }

    #[test]
    fn a_refusal_is_remembered_and_the_bytes_are_written_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = ChunkFile::create(&dir.path().join("file")).unwrap();
        let direct = Direct::new(BLOCK);
        let refused: Option<()> = direct.checked(Err(Errno::INVAL), &file.path).unwrap();
        assert!(refused.is_none() && direct.is_refused());
        let bytes = random(8192);
        direct.write_blocks(&file, 4096, &[&bytes[..100], &bytes[100..]]).unwrap();
        assert_eq!(file.read(4096, 8192).unwrap(), bytes);
    }

    #[test]
    fn a_write_that_the_kernel_refuses_is_done_through_the_page_cache() {
        let dir = tempfile::tempdir().unwrap();
        let file = ChunkFile::create(&dir.path().join("file")).unwrap();
        let direct = Direct::new(BLOCK);
        let Ok(opened) = file.direct() else { return };
        // An offset that no file system takes past the page cache.
        let bytes = random(8192);
        direct.write_buffer(&file, opened, 1, &bytes).unwrap();
        assert!(direct.is_refused());
        assert_eq!(file.read(1, 8192).unwrap(), bytes);
    }
}
