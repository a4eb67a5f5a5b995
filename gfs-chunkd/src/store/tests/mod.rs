//! Facts about the store.

mod copying;
mod damage;
mod disks;
mod facts;
mod formats;
mod model;
mod outage;
mod power;
mod scrub;

use super::*;
use gfs_core::ids::{BlockVersion, ClusterId, Epoch, Generation, InodeId, OperationId, ServerId};
use std::path::Path;
use std::time::Duration;

pub(super) const CHUNK: u64 = 1 << 20;
pub(super) const CLUSTER: ClusterId = ClusterId(0xc1);
pub(super) const SERVER: u128 = 0x5e;

/// A directory for tests that open stores very often: in memory where that is possible, since every open syncs.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Small sizes, so that tests meet every border.
pub(super) fn options(dir: &Path) -> StoreOptions {
    StoreOptions {
        alarm: crate::store::Alarm::default(),
        dirs: vec![dir.to_owned()],
        chunk_size: CHUNK,
        reserve: Some(1 << 20),
        journal_bytes: 4 << 20,
        segment_bytes: 1 << 20,
        land_bytes: 16 << 10,
        direct_bytes: 16 << 10,
        overlay_bytes: 1 << 20,
        linger: Duration::from_secs(3600),
        open_files: 4,
        boot_id: Some("first boot".into()),
    }
}

pub(crate) fn open(dir: &Path) -> Store {
    open_with(options(dir))
}

pub(super) fn open_with(options: StoreOptions) -> Store {
    let store = Store::open(options).unwrap();
    store.adopt(CLUSTER, SERVER, CHUNK).unwrap();
    store
}

pub(super) fn handle(n: u64) -> ChunkHandle {
    ChunkHandle::new(Generation(1), n)
}

pub(super) fn configuration(epoch: u32) -> Configuration {
    Configuration {
        epoch: Epoch(epoch),
        primary: ServerId(1),
        members: vec![ServerId(1), ServerId(2)],
        syncing: vec![ServerId(9)],
    }
}

pub(super) fn header() -> ChunkHeader {
    ChunkHeader {
        generation: Generation(1),
        inode: InodeId(77),
        index: 3,
        path_hint: b"/some/file".to_vec(),
        ..ChunkHeader::default()
    }
}

pub(crate) fn create(store: &Store, n: u64) -> ChunkHandle {
    store.create(handle(n), &header(), &configuration(1)).unwrap();
    handle(n)
}

pub(super) fn write(sequence: u64, kind: WriteKind, offset: u64, length: u64) -> PreparedWrite {
    PreparedWrite {
        version: BlockVersion { epoch: Epoch(1), sequence: Sequence(sequence) },
        operation: OperationId { session: SessionId(5), operation: sequence },
        kind,
        offset,
        length,
        append: false,
    }
}

/// Prepares the next write of a chunk.
pub(super) fn prepare(store: &Store, handle: ChunkHandle, offset: u64, data: &[u8]) -> Sequence {
    let sequence = next(store, handle);
    store.prepare(handle, &write(sequence.0, WriteKind::Data, offset, data.len() as u64), data).unwrap();
    sequence
}

/// Prepares and commits the next write of a chunk.
pub(crate) fn put(store: &Store, handle: ChunkHandle, offset: u64, data: &[u8]) -> Sequence {
    let sequence = prepare(store, handle, offset, data);
    store.commit(handle, sequence).unwrap();
    sequence
}

pub(super) fn next(store: &Store, handle: ChunkHandle) -> Sequence {
    let state = store.state(handle).unwrap();
    state.prepared.last().map_or(state.committed, |write| write.sequence()).next()
}

pub(super) fn bytes(store: &Store, handle: ChunkHandle, offset: u64, length: u64) -> Vec<u8> {
    store.read(handle, offset, length).unwrap().data.to_vec()
}

/// The file of a chunk, wherever it is below `dir`.
pub(super) fn chunk_file(dir: &Path, handle: ChunkHandle) -> std::path::PathBuf {
    dir.join("chunks").join(format!("{:02x}", handle.0 % 256)).join(format!("{:016x}", handle.0))
}

pub(super) fn flip(path: &Path, offset: u64, mask: u8) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0u8];
    // Beyond the end of a file is a zero.
    file.read_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ mask], offset).unwrap();
}
