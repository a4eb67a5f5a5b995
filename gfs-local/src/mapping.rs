//! A page of shared memory, seen as numbers that change at once.

use rustix::fd::AsFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// A file of shared memory, mapped as a whole.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: the memory belongs to this value alone, and is only reached as atomic numbers.
unsafe impl Send for Mapping {}
// SAFETY: the same.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a file, which must be that long and stay so.
    pub fn new(file: impl AsFd, length: usize, writable: bool) -> io::Result<Self> {
        let rights = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory of ours.
        let start = unsafe { mmap(std::ptr::null_mut(), length, rights, MapFlags::SHARED, file, 0)? };
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { start, length })
    }

    /// The number at an offset, a multiple of 8. One of a mapping that is not writable may only be loaded.
    pub fn cell(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length, "{offset} of {}", self.length);
        // SAFETY: in bounds and aligned, by the line above and because mappings begin at a page; mapped as long as `self` lives, and changed
        // by atomic stores alone, of this process or another one.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().byte_add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrowed from the mapping outlives `self`. What is unmapped is what was mapped, so that there is no error.
        let _ = unsafe { munmap(self.start.as_ptr(), self.length) };
    }
}
