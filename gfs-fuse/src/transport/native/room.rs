//! Memory that is shared with the kernel: one request and its answer.

use super::abi::uring;
use crate::transport::session::MAX_WRITE;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;

/// The payload of an entry begins here; before it is the header.
const PAYLOAD: usize = 4096;

/// Memory for one request and its answer, shared with the kernel.
pub struct Room {
    start: NonNull<u8>,
    /// What the kernel is shown: header and payload.
    parts: [libc::iovec; 2],
}

// SAFETY: the memory is reached through `header` and `payload` alone, whose callers own the entry.
unsafe impl Send for Room {}
// SAFETY: the same.
unsafe impl Sync for Room {}

impl Room {
    const LENGTH: usize = PAYLOAD + MAX_WRITE as usize;

    /// Room that is taken up page by page, as it is used.
    ///
    /// # Errors
    /// When there is no more address space.
    pub fn new() -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping of no file at an address that the kernel chooses.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), Self::LENGTH, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        // SAFETY: the mapping that was just made. Advice that is not taken does no harm.
        let _ = unsafe { madvise(start, Self::LENGTH, Advice::LinuxNoHugepage) };
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let part = |at: usize, length: usize| libc::iovec {
            // SAFETY: within the mapping.
            iov_base: unsafe { start.as_ptr().add(at) }.cast::<c_void>(),
            iov_len: length,
        };
        Ok(Self { start, parts: [part(0, uring::HEADER), part(PAYLOAD, MAX_WRITE as usize)] })
    }

    /// What the kernel is shown, in its words.
    pub fn parts(&self) -> u64 {
        self.parts.as_ptr() as u64
    }

    /// The header of the entry.
    ///
    /// # Safety
    /// The caller owns the entry, and holds no other reference to it.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn header(&self) -> &mut [u8] {
        // SAFETY: within the mapping, which lives as long as `self`; exclusive as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), uring::HEADER) }
    }

    /// The payload of the entry.
    ///
    /// # Safety
    /// As for `header`.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn payload(&self) -> &mut [u8] {
        // SAFETY: as in `header`; the payload does not overlap it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(PAYLOAD), MAX_WRITE as usize) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; whoever uses it holds this.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), Self::LENGTH) } {
            tracing::error!(%error, "cannot unmap an entry");
        }
    }
}
