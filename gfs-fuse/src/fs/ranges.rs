//! Ranges of open files: allocating, punching holes, finding data and holes, copying.

use super::handles::FileHandle;
use super::{Call, Fs, inodes};
use crate::errno::{Errno, Result};
use gfs_client::{AttributeChanges, Request, Zeroing};
use std::time::Duration;
use tokio::time::Instant;

/// One piece of a copy.
const COPY_PIECE: u64 = 1 << 20;
/// After so long a copy answers with what it has: the caller goes on, or is interrupted in between.
const COPY_TIME: Duration = Duration::from_secs(1);

/// What fallocate(2) is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Allocation {
    /// Make sure that writes there find space.
    Reserve { keep_size: bool },
    /// Bytes there become zero.
    Zero(Zeroing),
}

fn allocation(mode: i32) -> Result<Allocation> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH_KEEP: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 => Ok(Allocation::Reserve { keep_size: false }),
        KEEP => Ok(Allocation::Reserve { keep_size: true }),
        PUNCH_KEEP => Ok(Allocation::Zero(Zeroing::Punch)),
        ZERO_KEEP => Ok(Allocation::Zero(Zeroing::Keep)),
        ZERO => Ok(Allocation::Zero(Zeroing::Grow)),
        _ => Err(Errno(libc::EOPNOTSUPP)),
    }
}

impl Fs {
    /// fallocate.
    ///
    /// # Errors
    /// EOPNOTSUPP for a mode that we do not have, EFBIG, ENOSPC.
    pub async fn allocate(&self, call: &Call, number: u64, offset: u64, length: u64, mode: i32) -> Result<()> {
        let handle = self.files.get(number)?;
        let what = allocation(mode)?;
        if offset.checked_add(length).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Errno(libc::EFBIG));
        }
        self.clear_set_id(call, &handle).await?;
        match what {
            Allocation::Reserve { keep_size } => handle.file.allocate(&call.context, offset, length, keep_size).await?,
            Allocation::Zero(how) => handle.file.zero_range(&call.context, offset, length, how).await?,
        }
        self.access.changed(handle.inode);
        Ok(())
    }

    /// What a write would do by the kernel's flag, for calls that have none.
    async fn clear_set_id(&self, call: &Call, handle: &FileHandle) -> Result<()> {
        if !inodes::lacks_fsetid(call.caller) {
            return Ok(());
        }
        let before = self.get_attributes(call, handle.inode).await?.attributes;
        if super::attributes::has_set_id(&before) {
            let changes = AttributeChanges { clear_suid: true, ..AttributeChanges::default() };
            self.done(call, Request::SetAttributes { inode: handle.inode, changes }).await?;
        }
        Ok(())
    }

    /// lseek with SEEK_DATA or SEEK_HOLE; everything else the kernel does itself.
    ///
    /// # Errors
    /// ENXIO beyond the end, or when no data follows.
    pub async fn seek(&self, call: &Call, number: u64, offset: i64, whence: i32) -> Result<i64> {
        let handle = self.files.get(number)?;
        let offset = u64::try_from(offset).map_err(|_| Errno(libc::ENXIO))?;
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return Err(Errno(libc::EINVAL)),
        };
        let found = handle.file.seek(&call.context, offset, hole).await?;
        let found = found.ok_or(Errno(libc::ENXIO))?;
        i64::try_from(found).map_err(|_| Errno(libc::EOVERFLOW))
    }

    /// Copies between two open files without passing the bytes through the caller. May copy less than asked, as
    /// copy_file_range(2) may.
    ///
    /// # Errors
    /// Only when nothing was copied.
    pub async fn copy_range(&self, call: &Call, from: (u64, u64), to: (u64, u64), length: u64) -> Result<u32> {
        let (source, target) = (self.files.get(from.0)?, self.files.get(to.0)?);
        self.clear_set_id(call, &target).await?;
        let until = Instant::now() + COPY_TIME;
        // The answer has 32 bits; whole pieces keep the next call aligned.
        let length = length.min(u64::from(u32::MAX) / COPY_PIECE * COPY_PIECE);
        let mut copied = 0;
        while copied < length && (copied == 0 || Instant::now() < until) {
            let piece = COPY_PIECE.min(length - copied);
            match self.copy_piece(call, (&source, from.1 + copied), (&target, to.1 + copied), piece).await {
                Ok(0) => break,
                Ok(count) => copied += count,
                Err(errno) if copied == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        self.access.changed(target.inode);
        u32::try_from(copied).map_err(|_| Errno(libc::EIO))
    }

    async fn copy_piece(
        &self,
        call: &Call,
        from: (&FileHandle, u64),
        to: (&FileHandle, u64),
        length: u64,
    ) -> Result<u64> {
        let data = from.0.file.read(&call.context, from.1, length).await?;
        if data.is_empty() {
            return Ok(0);
        }
        if !from.0.no_atime {
            self.note_access(from.0.inode);
        }
        let count = data.len() as u64;
        to.0.file.write(&call.context, to.1, data, false).await?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_fallocate_that_we_have() {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(allocation(0), Ok(Allocation::Reserve { keep_size: false }));
        assert_eq!(allocation(keep), Ok(Allocation::Reserve { keep_size: true }));
        assert_eq!(allocation(libc::FALLOC_FL_PUNCH_HOLE | keep), Ok(Allocation::Zero(Zeroing::Punch)));
        assert_eq!(allocation(libc::FALLOC_FL_ZERO_RANGE), Ok(Allocation::Zero(Zeroing::Grow)));
        assert_eq!(allocation(libc::FALLOC_FL_ZERO_RANGE | keep), Ok(Allocation::Zero(Zeroing::Keep)));
    }

    #[test]
    fn modes_of_fallocate_that_we_do_not_have() {
        for mode in [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, 1 << 20]
        {
            assert_eq!(allocation(mode), Err(Errno(libc::EOPNOTSUPP)), "{mode:#x}");
        }
    }
}
