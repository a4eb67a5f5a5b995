//! The decoders of what lies on a disk, for those who feed them with anything (`gfs-fuzz`). Each checks that what it takes comes out
//! the same again.

use super::chunk::parse_entries;
use super::identity::DiskIdentity;
use super::layout::{self, FileHeader, Slot};
use super::record::JournalRecord;
use super::types::{BlockInfo, ChunkHeader, Identity};
use gfs_core::ids::{BlockVersion, ChunkHandle, ClusterId, Epoch, OperationId, Sequence, ServerId, SessionId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{OperationRecord, PreparedWrite, WriteKind};

const HANDLE: ChunkHandle = ChunkHandle(0x0001_0000_0000_2195);

/// What each decoder takes, to begin with.
pub fn examples() -> Vec<(&'static str, Vec<u8>)> {
    let version = BlockVersion { epoch: Epoch(3), sequence: Sequence(70) };
    let operation = OperationId { session: SessionId(4), operation: 5 };
    let operations = vec![OperationRecord { operation, sequence: Sequence(70), offset: 4096 }];
    let members = vec![ServerId(1), ServerId(2)];
    let configuration = Configuration { epoch: Epoch(3), primary: ServerId(1), members, syncing: vec![ServerId(9)] };
    let header = ChunkHeader { path_hint: b"/a/path".to_vec(), ..ChunkHeader::default() };
    let write = PreparedWrite { version, operation, kind: WriteKind::Data, offset: 4096, length: 8, append: true };
    let records = [
        JournalRecord::Create { header: header.clone(), configuration: configuration.clone() },
        JournalRecord::Delete,
        JournalRecord::Configuration(configuration.clone()),
        JournalRecord::Prepare { write, landed: 4096, data: b"12345678".to_vec() },
        JournalRecord::Commit { upto: Sequence(70), crcs: vec![(1, 2), (3, 4)] },
        JournalRecord::Rollback { above: Sequence(69) },
        JournalRecord::Intent,
        JournalRecord::Flushed(Sequence(70)),
        JournalRecord::CopyStart { base: Sequence(1) },
        JournalRecord::CopyFinish { length: 9000, operations: operations.clone() },
        JournalRecord::Suspect(true),
    ];
    let mut all: Vec<(&'static str, Vec<u8>)> = records
        .iter()
        .map(|record| ("journal_record", [vec![record.kind()], record.encode(HANDLE)].concat()))
        .collect();
    let file = FileHeader { cluster: ClusterId(7), handle: HANDLE, chunk_size: 1 << 26, birth: 8, chunk: header };
    all.push(("chunk_header", file.encode()));
    let slot = Slot { counter: 5, handle: HANDLE, intent: true, configuration, operations, ..Slot::default() };
    all.push(("replica_slot", slot.encode()));
    let entries =
        [BlockInfo::data(version, 1), BlockInfo::default(), BlockInfo { zeroed: true, ..BlockInfo::data(version, 2) }];
    all.push(("block_table", entries.iter().flat_map(layout::encode_entry).collect()));
    let owner = Identity { cluster: ClusterId(7), server: 8 };
    all.push(("disk_identity", DiskIdentity { owner, disk: 9, chunk_size: 1 << 26 }.encode().into_bytes()));
    all
}

/// A record of the journal.
pub fn journal_record(kind: u8, payload: &[u8]) {
    if let Some((handle, record)) = JournalRecord::decode(kind, payload) {
        let again = record.encode(handle);
        assert_eq!(JournalRecord::decode(record.kind(), &again), Some((handle, record)));
    }
}

/// The header of a chunk file.
pub fn chunk_header(bytes: &[u8]) {
    if let Ok(header) = FileHeader::decode(bytes) {
        assert_eq!(FileHeader::decode(&header.encode()), Ok(header));
    }
}

/// The saved state of a replica.
pub fn replica_slot(bytes: &[u8]) {
    if let Some(slot) = Slot::decode(bytes) {
        assert_eq!(Slot::decode(&slot.encode()), Some(slot));
    }
}

/// The table of a chunk's blocks.
pub fn block_table(bytes: &[u8]) {
    for entry in parse_entries(bytes).into_iter().flatten() {
        assert_eq!(layout::decode_entry(&layout::encode_entry(&entry)), Some(entry));
    }
}

/// The identity file of a disk.
pub fn disk_identity(text: &str) {
    if let Ok(identity) = DiskIdentity::decode(text) {
        assert_eq!(DiskIdentity::decode(&identity.encode()), Ok(identity));
    }
}
