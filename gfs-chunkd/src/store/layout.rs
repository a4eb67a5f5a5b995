//! The layout of a chunk file (`docs/formats/chunk.md`). Everything is little endian.
//!
//! ```text
//! 0                       data, chunk size bytes, sparse
//! S = chunk size          identity header, 4096 bytes, written once
//! S + 4096                state slot 0, at most 65536 bytes
//! S + 69632               state slot 1
//! S + 135168              block table: 16 bytes a block
//! after it, 4096-aligned  reserved: nonce and tag, 32 bytes a block
//! ```
//!
//! The state slots are written in turn; the valid one with the higher counter counts.

use super::codec::{OPERATION, Put, Take};
use super::types::ChunkHeader;
use crc_fast::crc32_iscsi;
use gfs_core::ids::{ChunkHandle, ClusterId, Generation, InodeId, Sequence};
use gfs_core::meta::request::{Configuration, Stored};
use gfs_core::replica::OperationRecord;
pub use gfs_local::layout::BLOCK;
pub(crate) use gfs_local::layout::{
    ENTRY, Geometry, HEADER, SLOT, ZERO_CRC, ZEROED, blocks_of, decode_entry, encode_entry, verify_block,
};

/// The same as a shift.
pub(crate) const BLOCK_SHIFT: u32 = 12;
/// The longest path hint.
pub(crate) const PATH_HINT: usize = 2048;
/// Operation records kept in a state slot: the newest.
pub(crate) const SLOT_OPERATIONS: usize = 1536;

const HEADER_MAGIC: &[u8; 8] = b"GFSCHNK\x01";
const SLOT_MAGIC: &[u8; 8] = b"GFSSTAT\x01";
const VERSION: u32 = 1;

/// The identity header of a chunk file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FileHeader {
    pub cluster: ClusterId,
    pub handle: ChunkHandle,
    pub chunk_size: u64,
    /// Journal position of the record that created this file: older records are of an earlier file of this name.
    pub birth: u64,
    pub chunk: ChunkHeader,
}

impl FileHeader {
    pub fn encode(&self) -> Vec<u8> {
        let hint = &self.chunk.path_hint[..self.chunk.path_hint.len().min(PATH_HINT)];
        let geometry = Geometry { chunk_size: self.chunk_size };
        let mut put = Put::default();
        put.bytes(HEADER_MAGIC).u32(VERSION).u32(BLOCK_SHIFT).bytes(&self.cluster.0.to_be_bytes());
        put.u16(self.chunk.generation.0).u8(self.chunk.layout_kind).u8(self.chunk.shard_index);
        put.u16(self.chunk.cipher).u16(hint.len() as u16);
        put.u64(self.handle.0).u64(self.chunk.inode.0).u32(self.chunk.index).u32(0);
        put.u64(self.chunk_size).u64(geometry.table()).u64(geometry.aux()).u64(self.birth).bytes(hint);
        let mut bytes = put.0;
        bytes.resize(HEADER - 4, 0);
        let crc = crc32_iscsi(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; the error says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let Some((body, crc)) = bytes.get(..HEADER).and_then(|b| b.split_last_chunk::<4>()) else {
            return Err("the file is too short for a header".into());
        };
        if crc32_iscsi(body) != u32::from_le_bytes(*crc) {
            return Err("the header does not match its checksum".into());
        }
        let mut take = Take(body);
        if take.bytes(8) != Some(HEADER_MAGIC) {
            return Err("not a chunk file".into());
        }
        let (version, shift) = (take.u32(), take.u32());
        if version != Some(VERSION) || shift != Some(BLOCK_SHIFT) {
            return Err(format!("format version {version:?} with checksum shift {shift:?} is not supported"));
        }
        Self::decode_fields(&mut take).ok_or_else(|| "the header has impossible fields".to_owned())
    }

    fn decode_fields(take: &mut Take<'_>) -> Option<Self> {
        let cluster = ClusterId(u128::from_be_bytes(take.bytes(16)?.try_into().ok()?));
        let generation = Generation(take.u16()?);
        let (layout_kind, shard_index, cipher) = (take.u8()?, take.u8()?, take.u16()?);
        let hint = usize::from(take.u16()?);
        let (handle, inode, index) = (ChunkHandle(take.u64()?), InodeId(take.u64()?), take.u32()?);
        take.u32()?;
        let chunk_size = take.u64()?;
        let geometry = Geometry { chunk_size };
        if !Geometry::is_valid(chunk_size) || take.u64()? != geometry.table() || take.u64()? != geometry.aux() {
            return None;
        }
        let birth = take.u64()?;
        let path_hint = take.bytes(hint)?.to_vec();
        let chunk = ChunkHeader { generation, inode, index, path_hint, layout_kind, shard_index, cipher };
        Some(Self { cluster, handle, chunk_size, birth, chunk })
    }
}

/// What a state slot says: the replica as of a journal position.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Slot {
    pub counter: u64,
    /// Records of this chunk before this position are contained in the slot and the file.
    pub replay: u64,
    pub handle: ChunkHandle,
    pub committed: Sequence,
    pub flushed: Sequence,
    pub length: u64,
    pub intent: bool,
    pub suspect: bool,
    pub filling: bool,
    pub configuration: Configuration,
    pub operations: Vec<OperationRecord>,
}

impl Slot {
    pub fn encode(&self) -> Vec<u8> {
        let skip = self.operations.len().saturating_sub(SLOT_OPERATIONS);
        let operations = &self.operations[skip..];
        let mut put = Put::default();
        put.bytes(SLOT_MAGIC).u32(VERSION).u32(0);
        put.u64(self.counter).u64(self.replay).u64(self.handle.0);
        put.u64(self.committed.0).u64(self.flushed.0).u64(self.length);
        put.u32(u32::from(self.intent) | u32::from(self.suspect) << 1 | u32::from(self.filling) << 2);
        put.u32(operations.len() as u32).configuration(&self.configuration);
        for record in operations {
            put.operation(record);
        }
        let mut bytes = put.0;
        let length = bytes.len() as u32 + 4;
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        let crc = crc32_iscsi(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Bytes of the encoded slot, from its first 16, if these can be a slot's.
    /// As it is written: whole blocks, so that the file system has to read none for it, nor the one that ended the file before.
    pub fn padded(&self) -> Vec<u8> {
        let mut bytes = self.encode();
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        bytes
    }

    pub fn encoded_length(bytes: &[u8]) -> Option<usize> {
        let mut take = Take(bytes);
        if take.bytes(8)? != SLOT_MAGIC || take.u32()? != VERSION {
            return None;
        }
        Some(take.u32()? as usize).filter(|length| *length as u64 <= SLOT)
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let length = Self::encoded_length(bytes)?;
        let (body, crc) = bytes.get(..length)?.split_last_chunk::<4>()?;
        if crc32_iscsi(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut take = Take(body);
        take.bytes(16)?;
        let (counter, replay, handle) = (take.u64()?, take.u64()?, ChunkHandle(take.u64()?));
        let (committed, flushed, length) = (Sequence(take.u64()?), Sequence(take.u64()?), take.u64()?);
        let (flags, count) = (take.u32()?, take.u32()?);
        let configuration = take.configuration()?;
        let operations = take.operations(count)?;
        Some(Self {
            counter,
            replay,
            handle,
            committed,
            flushed,
            length,
            intent: flags & 1 != 0,
            suspect: flags & 2 != 0,
            filling: flags & 4 != 0,
            configuration,
            operations,
        })
    }
}

const _: () = assert!(BLOCK == Stored::BLOCK);
const _: () = assert!(88 + 12 + 2 * 2 * 64 + SLOT_OPERATIONS * OPERATION + 4 < SLOT as usize);
