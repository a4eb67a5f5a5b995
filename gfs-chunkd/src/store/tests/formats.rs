//! Golden bytes: what is on disk today must be readable for ever.

use super::*;
use crate::store::identity::DiskIdentity;
use crate::store::layout::{FileHeader, Geometry, Slot, ZERO_CRC, decode_entry, encode_entry};
use crate::store::record::JournalRecord;
use crc_fast::crc32_iscsi;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn operation() -> OperationRecord {
    let operation = OperationId { session: SessionId(0x11), operation: 0x22 };
    OperationRecord { operation, sequence: Sequence(0x33), offset: 0x44 }
}

#[test]
fn golden_bytes_of_an_identity_header() {
    let header = FileHeader {
        cluster: ClusterId(0x0102_0304),
        handle: ChunkHandle(0x0506),
        chunk_size: 1 << 20,
        birth: 0x77,
        chunk: ChunkHeader { layout_kind: 8, shard_index: 9, cipher: 10, ..header() },
    };
    let bytes = header.encode();
    assert_eq!(bytes.len(), 4096);
    assert_eq!(
        hex(&bytes[..106]),
        concat!(
            "474653",
            "43484e",
            "4b01",
            "01000000",
            "0c000000",
            "00000000000000000000000001020304",
            "0100",
            "08",
            "09",
            "0a00",
            "0a00",
            "0605000000000000",
            "4d00000000000000",
            "03000000",
            "00000000",
            "0000100000000000",
            "0010120000000000",
            "0020120000000000",
            "7700000000000000",
            "2f736f6d652f66696c65"
        )
    );
    assert!(bytes[106..4092].iter().all(|byte| *byte == 0));
    assert_eq!(bytes[4092..], crc32_iscsi(&bytes[..4092]).to_le_bytes());
    assert_eq!(FileHeader::decode(&bytes).unwrap(), header);
}

#[test]
fn golden_bytes_of_a_state_slot() {
    let slot = Slot {
        counter: 5,
        replay: 6,
        handle: ChunkHandle(7),
        committed: Sequence(8),
        flushed: Sequence(9),
        length: 10,
        intent: true,
        suspect: false,
        filling: true,
        configuration: configuration(3),
        operations: vec![operation()],
    };
    let bytes = slot.encode();
    assert_eq!(
        hex(&bytes[..bytes.len() - 4]),
        concat!(
            "4746535354415401",
            "01000000",
            "7e000000",
            "0500000000000000",
            "0600000000000000",
            "0700000000000000",
            "0800000000000000",
            "0900000000000000",
            "0a00000000000000",
            "05000000",
            "01000000",
            "03000000",
            "0100",
            "0200",
            "0100",
            "0000",
            "0100",
            "0200",
            "0900",
            "1100000000000000",
            "2200000000000000",
            "3300000000000000",
            "4400000000000000"
        )
    );
    assert_eq!(bytes[bytes.len() - 4..], crc32_iscsi(&bytes[..bytes.len() - 4]).to_le_bytes());
    assert_eq!(Slot::decode(&bytes), Some(slot));
}

#[test]
fn golden_bytes_of_table_entries() {
    assert_eq!(ZERO_CRC, crc32_iscsi(&[0; 4096]));
    assert_eq!(encode_entry(&BlockInfo::default()), [0; 16]);
    let version = BlockVersion { epoch: Epoch(2), sequence: Sequence(0x0102_0304_0506) };
    let info = BlockInfo::data(version, 0xaabb_ccdd);
    let bytes = encode_entry(&info);
    assert_eq!(hex(&bytes[..14]), "ddccbbaa02000000060504030201");
    assert_eq!(bytes[14..], (crc32_iscsi(&bytes[..14]) as u16).to_le_bytes());
    assert_eq!(decode_entry(&bytes), Some(info));
    for bit in 0..128 {
        let mut bad = bytes;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_entry(&bad), None, "bit {bit}");
        let mut empty = [0u8; 16];
        empty[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_entry(&empty), None, "bit {bit} of an empty entry");
    }
    let punched = BlockInfo::zeroed(version);
    assert_eq!(hex(&encode_entry(&punched)[..14]), "8941f99802000080060504030201");
    assert_eq!(decode_entry(&encode_entry(&punched)), Some(punched));
}

#[test]
fn places_in_a_chunk_file_are_fixed() {
    let geometry = Geometry { chunk_size: 64 << 20 };
    assert_eq!(geometry.header(), 67_108_864);
    assert_eq!((geometry.slot(0), geometry.slot(1), geometry.slot(2)), (67_112_960, 67_178_496, 67_112_960));
    assert_eq!((geometry.table(), geometry.entry(1), geometry.aux()), (67_244_032, 67_244_048, 67_506_176));
}

#[test]
fn golden_bytes_of_journal_records() {
    let write = PreparedWrite { append: true, ..write(0x33, WriteKind::Data, 0x1000, 5) };
    let records = [
        (
            JournalRecord::Create {
                header: ChunkHeader { path_hint: b"h".to_vec(), ..header() },
                configuration: configuration(3),
            },
            concat!(
                "4d00000000000000",
                "03000000",
                "0100",
                "00",
                "00",
                "0000",
                "0100",
                "68",
                "03000000",
                "0100",
                "0200",
                "0100",
                "0000",
                "0100",
                "0200",
                "0900"
            ),
        ),
        (JournalRecord::Delete, ""),
        (JournalRecord::Configuration(configuration(3)), "03000000010002000100000001000200"),
        (
            JournalRecord::Prepare { write, landed: 0x1003, data: b"abc".to_vec() },
            concat!(
                "01000000",
                "00",
                "01",
                "0000",
                "3300000000000000",
                "0500000000000000",
                "3300000000000000",
                "0010000000000000",
                "0500000000000000",
                "0310000000000000",
                "616263"
            ),
        ),
        (
            JournalRecord::Commit { upto: Sequence(4), crcs: vec![(1, 2)] },
            "040000000000000001000000000000000100000002000000",
        ),
        (JournalRecord::Rollback { above: Sequence(4) }, "0400000000000000"),
        (JournalRecord::Intent, ""),
        (JournalRecord::Flushed(Sequence(4)), "0400000000000000"),
        (JournalRecord::CopyStart { base: Sequence(4) }, "0400000000000000"),
        (
            JournalRecord::CopyFinish { length: 9, operations: vec![operation()] },
            concat!(
                "0900000000000000",
                "0100000000000000",
                "1100000000000000",
                "2200000000000000",
                "3300000000000000",
                "4400000000000000"
            ),
        ),
        (JournalRecord::Suspect(true), "01"),
    ];
    for (n, (record, expected)) in records.into_iter().enumerate() {
        assert_eq!(usize::from(record.kind()), n + 1);
        let bytes = record.encode(ChunkHandle(0x0a0b));
        assert!(hex(&bytes).starts_with(&format!("0b0a000000000000{expected}")), "{record:?}: {}", hex(&bytes));
        assert_eq!(JournalRecord::decode(record.kind(), &bytes), Some((ChunkHandle(0x0a0b), record.clone())));
        for cut in 0..bytes.len() {
            // Never a panic, and never the same.
            let decoded = JournalRecord::decode(record.kind(), &bytes[..cut]);
            assert_ne!(decoded, Some((ChunkHandle(0x0a0b), record.clone())));
        }
    }
}

#[test]
fn golden_text_of_a_disk_identity() {
    let identity =
        DiskIdentity { owner: Identity { cluster: CLUSTER, server: SERVER }, disk: 0xd1, chunk_size: 67_108_864 };
    let text = identity.encode();
    let body = "gfs disk, version 1. Do not edit or copy this file.\n\
        cluster = 000000000000000000000000000000c1\n\
        server = 0000000000000000000000000000005e\n\
        disk = 000000000000000000000000000000d1\n\
        chunk_size = 67108864\n";
    assert_eq!(text, format!("{body}crc = {:08x}\n", crc32_iscsi(body.as_bytes())));
    assert_eq!(DiskIdentity::decode(&text), Ok(identity));
}
