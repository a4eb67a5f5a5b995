//! The records of the journal (`docs/formats/journal.md`). Everything is little endian.
//!
//! Every payload begins with the chunk handle, 8 bytes. Kinds and the rest:
//!
//! ```text
//! 1 create        inode u64, index u32, generation u16, layout u8, shard u8, cipher u16, hint length u16, hint, configuration
//! 2 delete
//! 3 configuration configuration
//! 4 prepare       epoch u32, kind u8, flags u8 (1: append), reserved u16, sequence u64, session u64, operation u64,
//!                 offset u64, length u64, landed u64, then the bytes of [offset, landed); the rest lies in place
//! 5 commit        upto u64, count u32, reserved u32, then (block u32, crc u32): blocks that kept older bytes
//! 6 roll back     above u64
//! 7 intent
//! 8 flushed       sequence u64
//! 9 copy start    base u64
//! 10 copy finish  length u64, count u32, reserved u32, operations
//! 11 suspect      on u8
//! ```

use super::codec::{Put, Take};
use super::layout::PATH_HINT;
use super::types::ChunkHeader;
use gfs_core::ids::{BlockVersion, ChunkHandle, Epoch, Generation, InodeId, OperationId, Sequence, SessionId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{OperationRecord, PreparedWrite, WriteKind};

/// A record of the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum JournalRecord {
    Create {
        header: ChunkHeader,
        configuration: Configuration,
    },
    Delete,
    Configuration(Configuration),
    /// `landed`: bytes from here on lie in place in the chunk file, those before in `data`.
    Prepare {
        write: PreparedWrite,
        landed: u64,
        data: Vec<u8>,
    },
    Commit {
        upto: Sequence,
        crcs: Vec<(u32, u32)>,
    },
    Rollback {
        above: Sequence,
    },
    Intent,
    Flushed(Sequence),
    CopyStart {
        base: Sequence,
    },
    CopyFinish {
        length: u64,
        operations: Vec<OperationRecord>,
    },
    Suspect(bool),
}

/// Bytes of a prepare record before its data.
pub(crate) const PREPARE_HEAD: usize = 64;

impl JournalRecord {
    /// The record's number in the journal.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Create { .. } => 1,
            Self::Delete => 2,
            Self::Configuration(_) => 3,
            Self::Prepare { .. } => PREPARE,
            Self::Commit { .. } => 5,
            Self::Rollback { .. } => 6,
            Self::Intent => 7,
            Self::Flushed(_) => 8,
            Self::CopyStart { .. } => 9,
            Self::CopyFinish { .. } => 10,
            Self::Suspect(_) => 11,
        }
    }

    /// Encodes the payload.
    pub fn encode(&self, handle: ChunkHandle) -> Vec<u8> {
        let mut put = Put::default();
        put.u64(handle.0);
        match self {
            Self::Create { header, configuration } => {
                let hint = &header.path_hint[..header.path_hint.len().min(PATH_HINT)];
                put.u64(header.inode.0).u32(header.index).u16(header.generation.0);
                put.u8(header.layout_kind).u8(header.shard_index).u16(header.cipher);
                put.u16(hint.len() as u16).bytes(hint).configuration(configuration);
            }
            Self::Delete | Self::Intent => {}
            Self::Configuration(configuration) => {
                put.configuration(configuration);
            }
            Self::Prepare { write, landed, data } => {
                let mut bytes = prepare_head(handle, write, *landed).to_vec();
                bytes.extend_from_slice(data);
                return bytes;
            }
            Self::Commit { upto, crcs } => {
                put.u64(upto.0).u32(crcs.len() as u32).u32(0);
                for (block, crc) in crcs {
                    put.u32(*block).u32(*crc);
                }
            }
            Self::Rollback { above: sequence } | Self::Flushed(sequence) | Self::CopyStart { base: sequence } => {
                put.u64(sequence.0);
            }
            Self::CopyFinish { length, operations } => {
                put.u64(*length).u32(operations.len() as u32).u32(0);
                for record in operations {
                    put.operation(record);
                }
            }
            Self::Suspect(on) => {
                put.u8(u8::from(*on));
            }
        }
        put.0
    }

    /// Decodes a payload; `None` if it can't be a record of this kind.
    pub fn decode(kind: u8, payload: &[u8]) -> Option<(ChunkHandle, Self)> {
        let mut take = Take(payload);
        let handle = ChunkHandle(take.u64()?);
        let record = match kind {
            1 => decode_create(&mut take)?,
            2 => Self::Delete,
            3 => Self::Configuration(take.configuration()?),
            PREPARE => decode_prepare(&mut take)?,
            5 => {
                let upto = Sequence(take.u64()?);
                let count = take.u32()?;
                take.u32()?;
                if take.0.len() / 8 < count as usize {
                    return None;
                }
                let crcs = (0..count).map(|_| Some((take.u32()?, take.u32()?))).collect::<Option<_>>()?;
                Self::Commit { upto, crcs }
            }
            6 => Self::Rollback { above: Sequence(take.u64()?) },
            7 => Self::Intent,
            8 => Self::Flushed(Sequence(take.u64()?)),
            9 => Self::CopyStart { base: Sequence(take.u64()?) },
            10 => {
                let length = take.u64()?;
                let count = take.u32()?;
                take.u32()?;
                Self::CopyFinish { length, operations: take.operations(count)? }
            }
            11 => Self::Suspect(take.u8()? != 0),
            _ => return None,
        };
        take.0.is_empty().then_some((handle, record))
    }
}

/// The kind of a prepare record.
pub(crate) const PREPARE: u8 = 4;

/// What a prepare record holds before its data.
pub(crate) fn prepare_head(handle: ChunkHandle, write: &PreparedWrite, landed: u64) -> [u8; PREPARE_HEAD] {
    let mut put = Put::default();
    put.u64(handle.0).u32(write.version.epoch.0).u8(write.kind as u8).u8(u8::from(write.append)).u16(0);
    put.u64(write.version.sequence.0).u64(write.operation.session.0).u64(write.operation.operation);
    put.u64(write.offset).u64(write.length).u64(landed);
    let mut head = [0; PREPARE_HEAD];
    head.copy_from_slice(&put.0);
    head
}

fn decode_create(take: &mut Take<'_>) -> Option<JournalRecord> {
    let (inode, index, generation) = (InodeId(take.u64()?), take.u32()?, Generation(take.u16()?));
    let (layout_kind, shard_index, cipher) = (take.u8()?, take.u8()?, take.u16()?);
    let hint = usize::from(take.u16()?);
    let path_hint = take.bytes(hint)?.to_vec();
    let header = ChunkHeader { generation, inode, index, path_hint, layout_kind, shard_index, cipher };
    Some(JournalRecord::Create { header, configuration: take.configuration()? })
}

fn decode_prepare(take: &mut Take<'_>) -> Option<JournalRecord> {
    let epoch = Epoch(take.u32()?);
    let kind = WriteKind::from_number(u32::from(take.u8()?))?;
    let append = take.u8()? & 1 != 0;
    take.u16()?;
    let version = BlockVersion { epoch, sequence: Sequence(take.u64()?) };
    let operation = OperationId { session: SessionId(take.u64()?), operation: take.u64()? };
    let (offset, length, landed) = (take.u64()?, take.u64()?, take.u64()?);
    let write = PreparedWrite { version, operation, kind, offset, length, append };
    let held = match kind {
        WriteKind::Data => usize::try_from(landed.checked_sub(offset)?).ok()?,
        WriteKind::Zero | WriteKind::Truncate => 0,
    };
    if kind == WriteKind::Data && landed > offset.checked_add(length)? {
        return None;
    }
    let data = take.bytes(held)?.to_vec();
    Some(JournalRecord::Prepare { write, landed, data })
}
