//! Reading ranges of a chunk file: whole ranges, short counts and interrupts handled.

use rustix::buffer::spare_capacity;
use rustix::fd::AsFd;
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSliceMut;
use std::num::NonZeroU64;

/// What the operating system reads at once by itself, in bytes.
const READ_AHEAD: u64 = 128 << 10;

/// Reads `length` bytes; what lies beyond the end of the file is zero.
///
/// # Errors
/// The disk's.
pub fn read(file: impl AsFd, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(&file, spare_capacity(&mut bytes), at) {
            Ok(0) => bytes.resize(length, 0),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    // The vector may have got more room than was asked for.
    bytes.truncate(length);
    Ok(bytes)
}

/// The same for what is in the page cache; `None` if it is not, or the end of the file is reached.
pub fn read_cached(file: impl AsFd, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0_u8; length];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    match rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
        Ok(count) if count == length => Some(bytes),
        _ => None,
    }
}

/// Has the operating system begin to read a range; does not wait for it.
pub fn will_need(file: impl AsFd, offset: u64, length: u64) {
    // No length at all would mean all that follows.
    if let Some(length) = NonZeroU64::new(length) {
        // Advice that is not taken does no harm.
        let _ = rustix::fs::fadvise(file, offset, Some(length), Advice::WillNeed);
    }
}

/// A range is about to be read: has all of a long one read at once, instead of one window of the system's own read-ahead after the other.
pub fn begin(file: impl AsFd, offset: u64, length: u64) {
    if length > READ_AHEAD {
        will_need(file, offset, length);
    }
}
