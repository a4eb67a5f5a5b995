//! The bytes of a whole state: what a checkpoint holds.
//!
//! Layout (docs/formats/checkpoint.md): magic `gfs-meta`, version; then the head (cluster, chunk size, default
//! replicas, generation, watermark, last server, last session); then sections, each a tag byte and a table:
//! servers, sessions, progress, replies, locks, attached, reserved, shrinks, tombstones, namespace, held directories (since version 3). Integers are
//! varints, ids of a cluster little-endian. Indexes and counts are not written but derived.
//!
//! This room owns that order and refuses what contradicts itself. The checksum over all of it is the writer's.

use super::chunks::{ChunkRecord, ChunkTable, MAX_GOAL};
use super::holds::Holds;
use super::locks::LockTable;
use super::namespace::Namespace;
use super::request::FileType;
use super::servers::Servers;
use super::sessions::{SessionParts, Sessions};
use super::shrinks::Shrinks;
use super::state::{MIN_CHUNK_SIZE, State};
use super::tombstones::Tombstones;
use crate::arena::codec::{self, PieceReader, put_varint};
use crate::arena::hash::siphash;
use crate::arena::{Record, Table};
use crate::breaks::Broken;
use crate::ids::{ChunkHandle, ClusterId, Generation, InodeId, ServerId, SessionId};
use std::cell::Cell;

/// First bytes of the state in a checkpoint.
pub const MAGIC: &[u8; 8] = b"gfs-meta";
/// Version written; all up to it are read.
pub const VERSION: u32 = 3;

/// Why a state cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError<E> {
    /// The bytes could not be had.
    #[error("reading the state: {0}")]
    Source(E),
    /// They are not what `encode_checkpoint` writes.
    #[error("{section} section, in the piece that ends at byte {offset}: {problem}")]
    Corrupt {
        /// Which section.
        section: &'static str,
        /// Where the piece ends in which it was seen, counted from the start of the state.
        offset: u64,
        /// What is wrong.
        problem: codec::DecodeError,
    },
    /// Written by a newer program.
    #[error("the state has version {found}, this program knows up to {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
}

impl<E> From<codec::DecodeError> for DecodeError<E> {
    fn from(problem: codec::DecodeError) -> Self {
        Self::Corrupt { section: "", offset: 0, problem }
    }
}

/// Sections in the order in which they are written, with their tags.
const SECTIONS: [&str; 11] = [
    "servers",
    "sessions",
    "progress",
    "replies",
    "locks",
    "attached",
    "reserved",
    "shrinks",
    "tombstones",
    "namespace",
    "held directories",
];

impl State {
    /// Writes the state, in pieces. Equal states give equal bytes.
    ///
    /// # Errors
    /// The sink's.
    pub fn encode_checkpoint<E>(&self, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        sink(&self.head())?;
        let sessions = self.sessions.parts();
        let (attached, reserved, ..) = self.chunks.parts();
        section(0, self.servers.parts().0, sink)?;
        section(1, &sessions.records, sink)?;
        section(2, &sessions.progress, sink)?;
        section(3, &sessions.replies, sink)?;
        section(4, self.locks.held(), sink)?;
        section(5, attached, sink)?;
        section(6, reserved, sink)?;
        section(7, &self.shrinks.0, sink)?;
        section(8, self.tombstones.table(), sink)?;
        sink(&[9])?;
        self.namespace.encode(sink)?;
        section(10, self.holds.table(), sink)
    }

    fn head(&self) -> Vec<u8> {
        let (_, _, generation, watermark) = self.chunks.parts();
        let mut head = MAGIC.to_vec();
        put_varint(&mut head, u64::from(VERSION));
        head.extend_from_slice(&self.cluster.0.to_le_bytes());
        put_varint(&mut head, self.chunk_size);
        head.push(self.default_replicas);
        put_varint(&mut head, u64::from(generation.0));
        put_varint(&mut head, watermark);
        put_varint(&mut head, u64::from(self.servers.parts().1.0));
        put_varint(&mut head, self.sessions.parts().last.0);
        head
    }

    /// Reads what [`State::encode_checkpoint`] wrote, from pieces of any size; `None` ends them.
    ///
    /// # Errors
    /// The source's, a newer version, or the section in which something is malformed or contradicts the rest. Never
    /// panics, whatever the bytes.
    pub fn decode_checkpoint<E>(
        source: &mut dyn FnMut() -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Self, DecodeError<E>> {
        let (section, offset) = (Cell::new("head"), Cell::new(0_u64));
        let mut counted = || {
            let piece = source().map_err(DecodeError::Source)?;
            offset.set(offset.get() + piece.as_ref().map_or(0, |piece| piece.len() as u64));
            Ok(piece)
        };
        let mut reader = PieceReader::new(&mut counted);
        Decoder { reader: &mut reader, section: &section }.state().map_err(|error| match error {
            DecodeError::Corrupt { problem, .. } => {
                DecodeError::Corrupt { section: section.get(), offset: offset.get(), problem }
            }
            other => other,
        })
    }

    /// Equal states have equal hashes, on every machine and however they came about.
    pub fn hash(&self) -> u64 {
        let sessions = self.sessions.parts();
        let (attached, reserved, ..) = self.chunks.parts();
        let parts = [
            self.servers.parts().0.hash(),
            sessions.records.hash(),
            sessions.progress.hash(),
            sessions.replies.hash(),
            self.locks.held().hash(),
            attached.hash(),
            reserved.hash(),
            self.shrinks.0.hash(),
            self.tombstones.table().hash(),
            self.namespace.hash(),
            self.holds.table().hash(),
        ];
        let mut bytes = self.head();
        parts.iter().for_each(|part| bytes.extend_from_slice(&part.to_le_bytes()));
        siphash(0, &bytes)
    }
}

fn section<V: Record, E>(tag: u8, table: &Table<V>, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    sink(&[tag])?;
    table.encode(sink)
}

/// Checks one entry of a table.
type Accept<'a, V> = &'a mut dyn FnMut((u64, u64), &V) -> bool;

struct Decoder<'a, 'b, E> {
    reader: &'a mut PieceReader<'b, DecodeError<E>>,
    /// The section being read, for the error.
    section: &'a Cell<&'static str>,
}

struct Head {
    version: u64,
    cluster: ClusterId,
    chunk_size: u64,
    default_replicas: u8,
    generation: Generation,
    watermark: u64,
    last_server: ServerId,
    last_session: SessionId,
}

impl<E> Decoder<'_, '_, E> {
    fn state(&mut self) -> Result<State, DecodeError<E>> {
        let head = self.head()?;
        let servers =
            self.table(0, &mut |key, record: &super::servers::ServerRecord| key == (u64::from(record.server.0), 0))?;
        let servers = Servers::restore(servers, head.last_server).ok_or(malformed("server registry"))?;
        let sessions = self.sessions(head.last_session)?;
        let held = self.table(4, &mut |key, _: &super::records::Held| key.1 == 0)?;
        let locks = LockTable::restore(held);
        let attached = self.table(5, &mut |key, _: &ChunkRecord| u32::try_from(key.1).is_ok())?;
        let reserved = self.table(6, &mut |_, _: &ChunkRecord| true)?;
        let chunks =
            ChunkTable::restore(attached, reserved, head.generation, head.watermark).ok_or(malformed("chunk table"))?;
        let shrinks = Shrinks(self.table(7, &mut |key, _| key.1 == 0)?);
        let tombstones = Tombstones::restore(self.table(8, &mut |key, epoch| Tombstones::accepts(key, epoch))?);
        self.begin(9)?;
        let namespace = Namespace::decode(self.reader)?;
        let Head { version, cluster, chunk_size, default_replicas, .. } = head;
        let holds =
            if version < 3 { Holds::default() } else { Holds::restore(self.table(10, &mut |key, _| key.1 == 0)?) };
        #[rustfmt::skip]
        let mut state = State {
            cluster, chunk_size, default_replicas, namespace, chunks, servers, sessions, locks, shrinks, tombstones,
            holds, breaks: Broken::default(),
        };
        if !self.reader.at_end()? {
            return Err(malformed("end of the state").into());
        }
        self.section.set("whole state");
        state.reconcile()?;
        if version == 1 {
            state.count_all();
        }
        Ok(state)
    }

    fn head(&mut self) -> Result<Head, DecodeError<E>> {
        let reader = &mut *self.reader;
        if reader.take(MAGIC.len(), "magic")? != MAGIC {
            return Err(malformed("magic").into());
        }
        let version = reader.varint("version")?;
        if !(1..=u64::from(VERSION)).contains(&version) {
            return Err(DecodeError::Version { found: u32::try_from(version).unwrap_or(u32::MAX) });
        }
        let cluster = reader.take(16, "cluster")?;
        let cluster = <[u8; 16]>::try_from(cluster).map_err(|_| malformed("cluster"))?;
        let head = Head {
            version,
            cluster: ClusterId(u128::from_le_bytes(cluster)),
            chunk_size: reader.varint("chunk size")?,
            default_replicas: reader.byte("default replicas")?,
            generation: Generation(small(reader.varint("generation")?, "generation")?),
            watermark: reader.varint("watermark")?,
            last_server: ServerId(small(reader.varint("last server")?, "last server")?),
            last_session: SessionId(reader.varint("last session")?),
        };
        let sized = head.chunk_size.is_power_of_two() && (MIN_CHUNK_SIZE..=1 << 31).contains(&head.chunk_size);
        if !sized || !(1..=MAX_GOAL).contains(&head.default_replicas) {
            return Err(malformed("geometry").into());
        }
        Ok(head)
    }

    fn sessions(&mut self, last: SessionId) -> Result<Sessions, DecodeError<E>> {
        let records =
            self.table(1, &mut |key, record: &super::sessions::SessionRecord| key == (record.session.0, 0))?;
        let progress = self.table(2, &mut |key, _| key.1 == 0)?;
        let replies = self.table(3, &mut |_, _| true)?;
        let parts = SessionParts { records, progress, replies, last };
        Ok(Sessions::restore(parts).ok_or(malformed("sessions"))?)
    }

    fn begin(&mut self, tag: u8) -> Result<(), DecodeError<E>> {
        self.section.set(SECTIONS[usize::from(tag)]);
        if self.reader.byte("section tag")? != tag {
            return Err(malformed("section tag").into());
        }
        Ok(())
    }

    fn table<V: Record>(&mut self, tag: u8, accept: Accept<'_, V>) -> Result<Table<V>, DecodeError<E>> {
        self.begin(tag)?;
        Table::decode(self.reader, SECTIONS[usize::from(tag)], accept)
    }
}

fn malformed(what: &'static str) -> codec::DecodeError {
    codec::DecodeError::Malformed(what)
}

fn small(value: u64, what: &'static str) -> Result<u16, codec::DecodeError> {
    u16::try_from(value).map_err(|_| malformed(what))
}

impl State {
    /// Checks the sections against each other and counts the replicas of each server.
    fn reconcile(&mut self) -> Result<(), codec::DecodeError> {
        let chunks = self.chunks.clone();
        for info in chunks.iter_from(ChunkHandle(0)) {
            let in_place = match info.reserved {
                Some(session) => self.sessions.contains(session),
                None => self.is_file(info.inode),
            };
            if !in_place {
                return Err(malformed("owner of a chunk"));
            }
            for server in info.configuration.members.iter().chain(&info.configuration.syncing) {
                if !self.servers.contains(*server) {
                    return Err(malformed("server of a chunk"));
                }
                self.servers.add_replica(*server);
            }
        }
        let cut = |shrink: super::shrinks::Shrink| {
            shrink.from < self.chunk_size
                && self.chunks.at(shrink.inode, shrink.index).is_some_and(|info| info.handle == shrink.handle)
        };
        if !self.shrinks.iter().all(cut) {
            return Err(malformed("chunk of a cut"));
        }
        let held = |(inode, lock): (InodeId, super::request::Lock)| {
            self.namespace.contains(inode) && self.sessions.contains(lock.owner.session)
        };
        if !self.locks.iter().all(held) {
            return Err(malformed("owner of a lock"));
        }
        let holds = |(inode, session): (InodeId, SessionId)| {
            let of = self.namespace.attributes(inode).map(|of| of.file_type);
            matches!(of, Some(FileType::Directory | FileType::File)) && self.sessions.contains(session)
        };
        if !self.holds.iter().all(holds) {
            return Err(malformed("holder of a directory or file"));
        }
        Ok(())
    }

    fn is_file(&self, inode: InodeId) -> bool {
        self.namespace.attributes(inode).is_some_and(|attributes| attributes.file_type == FileType::File)
    }
}
