//! Reading a lent replica: bytes and checksums from the file, then the question whether the loan stands.

use crate::file;
use crate::layout::{BLOCK, ENTRY, Geometry, blocks_of, decode_entry, verify_block};
use crate::ledger::{LedgerView, Loan};
use bytes::Bytes;
use rustix::io::Errno;
use std::fs::File;
use std::sync::Arc;

/// Why a lent replica was not read. The chunk server can be asked instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unread {
    /// Not all of it is in memory, and the caller does not want to wait for the disk.
    #[error("the disk would have to be waited for")]
    WouldWait,
    /// The loan does not stand any more.
    #[error("the loan is over")]
    Over,
    /// A block, or its entry in the table, does not match its checksum.
    #[error("block {0} does not match its checksum")]
    Damaged(u32),
    /// The disk.
    #[error("{0}")]
    Disk(Errno),
    /// The range is not within the chunk.
    #[error("the range is not within the chunk")]
    Range,
}

/// A replica that a chunk server of this machine has lent.
#[derive(Debug)]
pub struct LentReplica {
    file: File,
    geometry: Geometry,
    /// Committed bytes: beyond them, the chunk is zeros.
    length: u64,
    loan: Loan,
    ledger: Arc<LedgerView>,
}

impl LentReplica {
    /// A replica in `file`, `length` of its bytes committed, as long as `loan` stands.
    pub fn new(file: File, geometry: Geometry, length: u64, loan: Loan, ledger: Arc<LedgerView>) -> Self {
        Self { file, geometry, length, loan, ledger }
    }

    /// Whether the loan stands.
    pub fn stands(&self) -> bool {
        self.ledger.stands(&self.loan)
    }

    /// Reads exactly `length` bytes from `offset` of the chunk, each block verified. With `wait` it may wait for the disk.
    ///
    /// # Errors
    /// See [`Unread`].
    pub fn read(&self, offset: u64, length: usize, wait: bool) -> Result<Bytes, Unread> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.geometry.chunk_size);
        let end = end.ok_or(Unread::Range)?;
        let first = (offset / BLOCK) as u32;
        let blocks = (blocks_of(end).max(first) - first) as usize;
        let stored = (blocks_of(self.length).max(first) - first) as usize;
        let stored = stored.min(blocks);
        let start = u64::from(first) * BLOCK;
        let mut bytes = Vec::new();
        if stored > 0 {
            let length = stored * BLOCK as usize;
            if wait {
                file::begin(&self.file, start, length as u64);
            }
            let table = self.range(self.geometry.entry(first), stored * ENTRY, wait)?;
            bytes = self.range(start, length, wait)?;
            verify(first, &table, &mut bytes)?;
        }
        bytes.resize(blocks * BLOCK as usize, 0);
        if !self.stands() {
            return Err(Unread::Over);
        }
        let skip = (offset - start) as usize;
        Ok(Bytes::from(bytes).slice(skip..skip + length))
    }

    /// Has the operating system begin to read a range; does not wait for it.
    pub fn will_need(&self, offset: u64, length: u64) {
        file::will_need(&self.file, offset, length.min(self.length.saturating_sub(offset)));
    }

    /// The same for the checksums of the whole replica.
    pub fn will_need_table(&self) {
        file::will_need(&self.file, self.geometry.table(), u64::from(blocks_of(self.length)) * ENTRY as u64);
    }

    /// A range as it lies in the file.
    fn range(&self, offset: u64, length: usize, wait: bool) -> Result<Vec<u8>, Unread> {
        if wait {
            file::read(&self.file, offset, length).map_err(Unread::Disk)
        } else {
            file::read_cached(&self.file, offset, length).ok_or(Unread::WouldWait)
        }
    }
}

/// Checks each block against its entry; what was never written, or was punched out, becomes zeros.
fn verify(first: u32, table: &[u8], bytes: &mut [u8]) -> Result<(), Unread> {
    let entries = table.as_chunks::<ENTRY>().0;
    for ((block, entry), bytes) in (first..).zip(entries).zip(bytes.chunks_exact_mut(BLOCK as usize)) {
        verify_block(decode_entry(entry), bytes).ok_or(Unread::Damaged(block))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{BlockInfo, encode_entry};
    use crate::ledger::{Ledger, now};
    use crc_fast::crc32_iscsi;
    use gfs_core::ids::{BlockVersion, Epoch, Sequence};
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    const GEOMETRY: Geometry = Geometry { chunk_size: 64 << 10 };

    struct Lent {
        _dir: tempfile::TempDir,
        ledger: Ledger,
        file: File,
        replica: LentReplica,
    }

    /// A replica of so many committed bytes, all of them 7.
    fn lent(length: u64) -> Lent {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("chunk")).unwrap();
        let version = BlockVersion { epoch: Epoch(1), sequence: Sequence(1) };
        for block in 0..blocks_of(length) {
            let mut bytes = [0_u8; BLOCK as usize];
            let until = (length - u64::from(block) * BLOCK).min(BLOCK) as usize;
            bytes[..until].fill(7);
            file.write_all_at(&bytes, u64::from(block) * BLOCK).unwrap();
            let entry = encode_entry(&BlockInfo::data(version, crc32_iscsi(&bytes)));
            file.write_all_at(&entry, GEOMETRY.entry(block)).unwrap();
        }
        let page = dir.path().join("page");
        let ledger = Ledger::create(&page, 1).unwrap();
        ledger.renew(1, now() + Duration::from_secs(3600));
        let view = Arc::new(LedgerView::open(&page, 1).unwrap());
        let loan = ledger.lend(0, 1);
        let opened = File::open(dir.path().join("chunk")).unwrap();
        Lent { ledger, file, replica: LentReplica::new(opened, GEOMETRY, length, loan, view), _dir: dir }
    }

    #[test]
    fn any_range_is_what_is_committed_and_zeros_behind_it() {
        let lent = lent(10_000);
        let mut whole = vec![0; GEOMETRY.chunk_size as usize];
        whole[..10_000].fill(7);
        for (offset, length) in [(0, 65_536), (0, 1), (4095, 2), (9_999, 3), (12_288, 4096), (60_000, 5_536), (5, 0)] {
            let read = lent.replica.read(offset, length, true).unwrap();
            assert_eq!(read, whole[offset as usize..offset as usize + length], "{length} from {offset}");
        }
        assert_eq!(lent.replica.read(65_000, 537, true), Err(Unread::Range));
        assert_eq!(lent.replica.read(u64::MAX, 2, true), Err(Unread::Range));
    }

    #[test]
    fn what_is_in_memory_needs_no_waiting() {
        let lent = lent(8192);
        lent.replica.read(0, 8192, true).unwrap();
        assert_eq!(lent.replica.read(100, 5000, false).unwrap(), vec![7; 5000]);
    }

    #[test]
    fn a_flipped_bit_is_never_returned() {
        let lent = lent(8192);
        lent.file.write_all_at(&[6], 5000).unwrap();
        assert_eq!(lent.replica.read(0, 4096, true).unwrap(), vec![7; 4096]);
        assert_eq!(lent.replica.read(4096, 10, true), Err(Unread::Damaged(1)));
        lent.file.write_all_at(&[1], GEOMETRY.entry(0) + 3).unwrap();
        assert_eq!(lent.replica.read(0, 10, true), Err(Unread::Damaged(0)));
    }

    #[test]
    fn nothing_is_returned_that_was_read_after_the_loan_was_over() {
        let lent = lent(8192);
        lent.ledger.take_back(0);
        assert_eq!(lent.replica.read(0, 10, true), Err(Unread::Over));
        assert_eq!(lent.replica.read(0, 10, false), Err(Unread::Over));
        assert!(!lent.replica.stands());
    }
}
