//! One segment file: its header, and reading and writing in it by position.
//!
//! ```text
//! 0   8  magic "GFSLOG\0\1"
//! 8   4  version, 1
//! 12  4  offset of the first frame, 4096
//! 16  8  position of the first frame
//! 24  8  bytes of the file
//! 32  8  random number of the log, the same in all its segments
//! 40  4  CRC32C of bytes 0..40
//! 4096 - frames, without gaps, each at its position
//! ```
//!
//! A segment is called by the position of its first frame, in hexadecimal.

use crate::error::LogError;
use crc_fast::crc32_iscsi;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::IoSlice;
use std::path::{Path, PathBuf};

/// Offset of the first frame.
pub(crate) const DATA: u64 = 4096;
const MAGIC: &[u8; 8] = b"GFSLOG\0\x01";
const VERSION: u32 = 1;
const HEADER: usize = 44;
/// Where a segment is made.
pub(crate) const WORK: &str = "new.tmp";
/// Where a spare is made.
pub(crate) const SPARE_WORK: &str = "spare.tmp";

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub file: File,
    pub path: PathBuf,
    /// Position of its first frame.
    pub base: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub base: u64,
    pub bytes: u64,
    pub log: u64,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0u8; HEADER];
        out[0..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(DATA as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.base.to_le_bytes());
        out[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        out[32..40].copy_from_slice(&self.log.to_le_bytes());
        let crc = crc32_iscsi(&out[..40]);
        out[40..44].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header; the error says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some(header) = bytes.get(..HEADER) else {
            return Err("the header is cut off".into());
        };
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        if &header[..8] != MAGIC {
            return Err("not a segment of a log".into());
        }
        if crc32_iscsi(&header[..40]) != u32_at(40) {
            return Err("the header does not match its checksum".into());
        }
        if u32_at(8) != VERSION || u32_at(12) != DATA as u32 {
            return Err(format!("version {} is not supported, this program knows {VERSION}", u32_at(8)));
        }
        Ok(Self { base: u64_at(16), bytes: u64_at(24), log: u64_at(32) })
    }
}

impl Segment {
    /// Creates a segment, or makes one of a spare file whose old contents stay where they are. The header is
    /// on stable storage when it returns; the name in the directory is not.
    pub fn create(dir: &Path, base: u64, bytes: u64, log: u64, spare: Option<&Path>) -> Result<Self, LogError> {
        let path = dir.join(Self::name(base));
        let work = dir.join(WORK);
        if let Some(spare) = spare {
            std::fs::rename(spare, &work).map_err(|e| LogError::io("rename", spare, e))?;
        }
        let made = Self::prepare(&work, &path, SegmentHeader { base, bytes, log });
        if made.is_err() {
            // A half-made file is of no use to anybody; if removing it fails, the next create takes it over.
            let _ = std::fs::remove_file(&work);
        }
        made
    }

    fn prepare(work: &Path, path: &Path, header: SegmentHeader) -> Result<Self, LogError> {
        let file = open(work, OFlags::RDWR | OFlags::CREATE)?;
        allocate(&file, work, header.bytes)?;
        write_all(&file, work, &[&header.encode()], 0)?;
        file.sync_all().map_err(|e| LogError::io("fsync", work, e))?;
        std::fs::rename(work, path).map_err(|e| LogError::io("rename", work, e))?;
        Ok(Self { file, path: path.to_owned(), base: header.base, bytes: header.bytes })
    }

    /// Allocates a file that a segment can be made of later; returns its path. A crash may leave it behind: then it is found as a spare.
    pub fn set_aside(dir: &Path, bytes: u64) -> Result<PathBuf, LogError> {
        let (work, path) = (dir.join(SPARE_WORK), dir.join("next.spare"));
        let made = open(&work, OFlags::RDWR | OFlags::CREATE).and_then(|file| allocate(&file, &work, bytes));
        let made = made.and_then(|()| std::fs::rename(&work, &path).map_err(|e| LogError::io("rename", &work, e)));
        if made.is_err() {
            // What it has got so far is of no use, and others may need it.
            let _ = std::fs::remove_file(&work);
        }
        made.map(|()| path)
    }

    /// Opens an existing segment and reads its header.
    pub fn open(path: &Path) -> Result<(Self, SegmentHeader), LogError> {
        let file = open(path, OFlags::RDWR)?;
        let mut bytes = [0u8; HEADER];
        let got = read_some(&file, path, &mut bytes, 0)?;
        let header = SegmentHeader::decode(&bytes[..got]).map_err(|problem| LogError::Corrupt {
            file: path.to_owned(),
            offset: 0,
            problem,
        })?;
        let segment = Self { file, path: path.to_owned(), base: header.base, bytes: header.bytes };
        Ok((segment, header))
    }

    /// Its name in the directory.
    pub fn name(base: u64) -> String {
        format!("{base:016x}.log")
    }

    /// The first position that a segment's name says, if it is a segment's name.
    pub fn base_of(name: &str) -> Option<u64> {
        let digits = name.strip_suffix(".log")?;
        if digits.len() != 16 {
            return None;
        }
        u64::from_str_radix(digits, 16).ok()
    }

    /// Where in the file a position is.
    pub fn offset(&self, position: u64) -> u64 {
        position - self.base + DATA
    }

    /// The position after the last byte of the file.
    pub fn limit(&self) -> u64 {
        self.base + (self.bytes - DATA)
    }

    /// Writes parts at a position.
    pub fn write(&self, position: u64, parts: &[&[u8]]) -> Result<(), LogError> {
        write_all(&self.file, &self.path, parts, self.offset(position))
    }

    /// Fills `buffer` from a position; fewer bytes only at the end of the file.
    pub fn read(&self, position: u64, buffer: &mut [u8]) -> Result<usize, LogError> {
        read_some(&self.file, &self.path, buffer, self.offset(position))
    }

    /// Puts zeros from a position to the end of the file, on stable storage.
    pub fn wipe(&self, position: u64) -> Result<(), LogError> {
        let from = self.offset(position);
        if from < self.bytes {
            let length = self.bytes - from;
            match rustix::fs::fallocate(&self.file, FallocateFlags::ZERO_RANGE, from, length) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(from, length)?,
                Err(e) => return Err(LogError::io("fallocate", &self.path, e)),
            }
        }
        self.file.sync_all().map_err(|e| LogError::io("fsync", &self.path, e))
    }

    fn write_zeros(&self, mut from: u64, mut length: u64) -> Result<(), LogError> {
        let zeros = vec![0u8; 1 << 20];
        while length > 0 {
            let piece = length.min(zeros.len() as u64);
            write_all(&self.file, &self.path, &[&zeros[..piece as usize]], from)?;
            from += piece;
            length -= piece;
        }
        Ok(())
    }
}

/// Gives a file all its blocks, where the file system can.
fn allocate(file: &File, path: &Path, bytes: u64) -> Result<(), LogError> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes).map_err(|e| LogError::io("truncate", path, e)),
        Err(e) => Err(LogError::io("fallocate", path, e)),
    }
}

fn open(path: &Path, flags: OFlags) -> Result<File, LogError> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|e| LogError::io("open", path, e))
}

/// The most parts that one system call takes.
const IOV_MAX: usize = 1024;

/// Writes all parts, with as few calls as the kernel allows.
fn write_all(file: &File, path: &Path, parts: &[&[u8]], mut offset: u64) -> Result<(), LogError> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().filter(|p| !p.is_empty()).map(|p| IoSlice::new(p)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let batch = rest.len().min(IOV_MAX);
        match rustix::io::pwritev(file, &rest[..batch], offset) {
            Ok(0) => return Err(LogError::io("write", path, Errno::IO)),
            Ok(n) => {
                IoSlice::advance_slices(&mut rest, n);
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(LogError::io("write", path, e)),
        }
    }
    Ok(())
}

fn read_some(file: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<usize, LogError> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(LogError::io("read", path, e)),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_a_segment_header() {
        let header = SegmentHeader { base: 0x1122, bytes: 0x10000, log: 0xabcd };
        let bytes = header.encode();
        let mut expected = Vec::new();
        expected.extend_from_slice(b"GFSLOG\0\x01");
        expected.extend_from_slice(&[1, 0, 0, 0, 0, 0x10, 0, 0]);
        expected.extend_from_slice(&[0x22, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(&[0xcd, 0xab, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[..40], expected[..]);
        assert_eq!(u32::from_le_bytes([bytes[40], bytes[41], bytes[42], bytes[43]]), GOLDEN_CRC);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
    }

    const GOLDEN_CRC: u32 = 2_532_239_004;

    #[test]
    fn a_flipped_bit_in_the_header_is_found() {
        let good = SegmentHeader { base: 5, bytes: 6, log: 7 }.encode();
        for bit in 0..HEADER * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn names_hold_the_first_position() {
        assert_eq!(Segment::base_of(&Segment::name(0x12_3456)), Some(0x12_3456));
        assert_eq!(Segment::base_of("lost+found"), None);
        assert_eq!(Segment::base_of("12.log"), None);
    }
}
