//! What lies on a chunk server's disks, and the segments of a log.

use gfs_chunkd::store::decoders;
use gfs_log::{Log, LogOptions};
use gfs_net::crc32c;
use std::os::unix::fs::FileExt;

/// The bytes, and the same with a CRC32C of all before it in the last four.
fn sealed(bytes: &[u8]) -> [Vec<u8>; 2] {
    let mut whole = bytes.to_vec();
    if let Some((body, crc)) = whole.split_last_chunk_mut::<4>() {
        *crc = crc32c(body).to_le_bytes();
    }
    [bytes.to_vec(), whole]
}

/// A record of the journal: its kind, then its payload.
pub fn journal_record(bytes: &[u8]) {
    if let Some((kind, payload)) = bytes.split_first() {
        decoders::journal_record(*kind, payload);
    }
}

/// The header of a chunk file.
pub fn chunk_header(bytes: &[u8]) {
    sealed(bytes).iter().for_each(|bytes| decoders::chunk_header(bytes));
}

/// The saved state of a replica.
pub fn replica_slot(bytes: &[u8]) {
    sealed(bytes).iter().for_each(|bytes| decoders::replica_slot(bytes));
}

/// The table of a chunk's blocks.
pub fn block_table(bytes: &[u8]) {
    decoders::block_table(bytes);
}

/// The identity file of a disk.
pub fn disk_identity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    decoders::disk_identity(text);
    let body = text.rsplit_once("crc = ").map_or(text, |(body, _)| body);
    decoders::disk_identity(&format!("{body}crc = {:08x}\n", crc32c(body.as_bytes())));
}

/// Bytes over a part of a segment with records in it: the first two tell where. What is read then was written, in its order; or
/// nothing is read, and the log says why.
pub fn log_segment(bytes: &[u8]) {
    let Some((at, bytes)) = bytes.split_first_chunk::<2>() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let options = || LogOptions { segment_bytes: 1 << 16, max_record_bytes: 1 << 12, ..LogOptions::default() };
    let records: Vec<Vec<u8>> = (0..20).map(|number| vec![number; 50 + 90 * usize::from(number)]).collect();
    let log = Log::open(dir.path(), options(), |_| Ok(())).expect("a new log");
    for record in &records {
        log.append(1, &[record]).expect("an append");
    }
    log.sync(log.end()).expect("a sync");
    drop(log);
    let files = std::fs::read_dir(dir.path()).expect("the directory").filter_map(Result::ok);
    let segment = files.map(|file| file.path()).find(|path| path.metadata().is_ok_and(|m| m.len() >= 1 << 16));
    let segment = std::fs::File::options().write(true).open(segment.expect("a segment")).expect("the segment");
    segment.write_all_at(bytes, u16::from_le_bytes(*at).into()).expect("a write");
    let mut read = Vec::new();
    let opened = Log::open(dir.path(), options(), |record| {
        read.push(record.payload);
        Ok(())
    });
    if opened.is_ok() {
        assert!(records.starts_with(&read), "{} records that were not written so", read.len());
    }
}
