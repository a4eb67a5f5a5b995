//! Where bytes and checksums lie in a chunk file (`docs/formats/chunk.md`). Everything is little endian.
//!
//! ```text
//! 0                       data, chunk size bytes, sparse
//! S = chunk size          identity header, 4096 bytes
//! S + 4096                two state slots of 65536 bytes
//! S + 135168              block table: 16 bytes a block
//! after it, 4096-aligned  reserved: nonce and tag, 32 bytes a block
//! ```

use crc_fast::crc32_iscsi;
use gfs_core::ids::{BlockVersion, Epoch, Sequence};

/// Bytes of a checksum block.
pub const BLOCK: u64 = 4096;
/// Bytes of an entry of the block table.
pub const ENTRY: usize = 16;
/// Bytes of the identity header.
pub const HEADER: usize = 4096;
/// Bytes reserved for a state slot.
pub const SLOT: u64 = 64 << 10;
/// The bit of an entry's epoch that says that the block was punched out.
pub const ZEROED: u32 = 1 << 31;
/// CRC32C of a block of zeros.
pub const ZERO_CRC: u32 = 0x98f9_4189;

/// Where things are in a chunk file of a given chunk size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes of a chunk.
    pub chunk_size: u64,
}

impl Geometry {
    /// Whether the size can be a chunk's.
    pub fn is_valid(chunk_size: u64) -> bool {
        chunk_size >= BLOCK && chunk_size.is_multiple_of(BLOCK) && chunk_size <= 1 << 30
    }

    /// Blocks of a chunk.
    pub fn blocks(self) -> u32 {
        (self.chunk_size / BLOCK) as u32
    }

    /// Where the identity header is.
    pub fn header(self) -> u64 {
        self.chunk_size
    }

    /// Where the state slot with this counter is.
    pub fn slot(self, counter: u64) -> u64 {
        self.chunk_size + HEADER as u64 + (counter % 2) * SLOT
    }

    /// Where the block table is.
    pub fn table(self) -> u64 {
        self.chunk_size + HEADER as u64 + 2 * SLOT
    }

    /// Where the entry of a block is.
    pub fn entry(self, block: u32) -> u64 {
        self.table() + u64::from(block) * ENTRY as u64
    }

    /// Where nonces and tags will be, 32 bytes a block.
    pub fn aux(self) -> u64 {
        self.entry(self.blocks()).next_multiple_of(BLOCK)
    }
}

/// Number of blocks that cover so many bytes.
pub fn blocks_of(bytes: u64) -> u32 {
    bytes.div_ceil(BLOCK) as u32
}

/// Version and checksum of one committed block; all zero when it was never written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockInfo {
    /// Which write last touched it.
    pub version: BlockVersion,
    /// CRC32C of the whole block.
    pub crc: u32,
    /// That write punched it out as a whole: it reads as zeros, and nothing of it is stored.
    pub zeroed: bool,
}

impl BlockInfo {
    /// A block with bytes.
    pub fn data(version: BlockVersion, crc: u32) -> Self {
        Self { version, crc, zeroed: false }
    }

    /// A block that was punched out.
    pub fn zeroed(version: BlockVersion) -> Self {
        Self { version, crc: ZERO_CRC, zeroed: true }
    }

    /// Whether the block was ever written.
    pub fn is_written(&self) -> bool {
        *self != Self::default()
    }

    /// Whether it counts as stored.
    pub fn is_stored(&self) -> bool {
        self.is_written() && !self.zeroed
    }
}

/// One entry of the block table.
///
/// ```text
/// 0   4  CRC32C of the whole block
/// 4   4  epoch; the highest bit is set when the block was punched out, not written
/// 8   6  sequence
/// 14  2  check: low half of the CRC32C of bytes 0..14, 0xffff in place of 0
/// ```
///
/// All zero is a block that was never written.
pub fn encode_entry(info: &BlockInfo) -> [u8; ENTRY] {
    let mut out = [0u8; ENTRY];
    if !info.is_written() {
        return out;
    }
    out[0..4].copy_from_slice(&info.crc.to_le_bytes());
    let zeroed = if info.zeroed { ZEROED } else { 0 };
    out[4..8].copy_from_slice(&(info.version.epoch.0 | zeroed).to_le_bytes());
    out[8..14].copy_from_slice(&info.version.sequence.0.to_le_bytes()[..6]);
    let check = entry_check(&out);
    out[14..16].copy_from_slice(&check.to_le_bytes());
    out
}

/// Reads an entry; `None` if it is damaged.
pub fn decode_entry(bytes: &[u8; ENTRY]) -> Option<BlockInfo> {
    if bytes == &[0; ENTRY] {
        return Some(BlockInfo::default());
    }
    if entry_check(bytes) != u16::from_le_bytes([bytes[14], bytes[15]]) {
        return None;
    }
    let mut sequence = [0u8; 8];
    sequence[..6].copy_from_slice(&bytes[8..14]);
    let epoch = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let version = BlockVersion { epoch: Epoch(epoch & !ZEROED), sequence: Sequence(u64::from_le_bytes(sequence)) };
    let crc = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Some(BlockInfo { version, crc, zeroed: epoch & ZEROED != 0 })
}

/// Checks the bytes of a block against its entry; where nothing is stored they become zeros. `None` when either is damaged.
pub fn verify_block(entry: Option<BlockInfo>, bytes: &mut [u8]) -> Option<BlockInfo> {
    let info = entry?;
    if info.is_stored() {
        return (info.crc == crc32_iscsi(bytes)).then_some(info);
    }
    bytes.fill(0);
    Some(info)
}

fn entry_check(bytes: &[u8; ENTRY]) -> u16 {
    match crc32_iscsi(&bytes[..14]) as u16 {
        0 => 0xffff,
        check => check,
    }
}
