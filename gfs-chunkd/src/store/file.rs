//! Reading and writing chunk files: whole ranges, short counts and interrupts handled, errors with their path.

use super::error::StoreError;
use gfs_local::file;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The most parts that one system call takes.
const IOV_MAX: usize = 1024;

/// Whether nobody else has a file open. The kernel gives a write lease only then.
fn is_the_only_user(file: &File) -> bool {
    let lease = |kind: i32| {
        // SAFETY: the descriptor is open as long as `file`, and F_SETLEASE takes an integer.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
    };
    lease(libc::F_WRLCK) && lease(libc::F_UNLCK)
}

/// An open chunk file.
#[derive(Debug)]
pub(crate) struct ChunkFile {
    pub file: File,
    pub path: PathBuf,
    /// The same file, opened with `O_DIRECT` when first needed.
    direct: OnceLock<File>,
}

impl ChunkFile {
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::with(path, OFlags::RDWR)
    }

    pub fn create(path: &Path) -> Result<Self, StoreError> {
        Self::with(path, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)
    }

    fn with(path: &Path, flags: OFlags) -> Result<Self, StoreError> {
        let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
            .map_err(|e| StoreError::io("open", path, e))?;
        Ok(Self { file: File::from(fd), path: path.to_owned(), direct: OnceLock::new() })
    }

    /// Empties the file of a deleted chunk at `aside` for a new one that will be at `path`. `None` when it holds more than `most` bytes, or
    /// anybody still has it open: what is under way there must not see, or change, the new one.
    pub fn take_over(aside: &Path, path: &Path, most: u64) -> Option<Self> {
        let file = Self::open(aside).ok()?;
        let stat = rustix::fs::fstat(&file.file).ok()?;
        let small = u64::try_from(stat.st_blocks).ok()?.saturating_mul(512) <= most;
        // After a power cut a file may be there under its old name too.
        if !small || stat.st_nlink != 1 || !is_the_only_user(&file.file) {
            return None;
        }
        rustix::fs::ftruncate(&file.file, 0).ok()?;
        Some(Self { path: path.to_owned(), ..file })
    }

    /// The file past the page cache; only for [`super::direct`].
    pub fn direct(&self) -> Result<&File, Errno> {
        if let Some(opened) = self.direct.get() {
            return Ok(opened);
        }
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&self.path, flags, Mode::empty())?;
        Ok(self.direct.get_or_init(|| File::from(opened)))
    }

    /// Reads `length` bytes; what lies beyond the end of the file is zero.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, StoreError> {
        file::begin(&self.file, offset, length as u64);
        file::read(&self.file, offset, length).map_err(|e| StoreError::io("read", &self.path, e))
    }

    /// Has the operating system begin to read a range; does not wait for it.
    pub fn will_need(&self, offset: u64, length: u64) {
        file::will_need(&self.file, offset, length);
    }

    /// The same as `read` for what is in the page cache; `None` if it is not, or the end of the file is reached.
    pub fn read_cached(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        file::read_cached(&self.file, offset, length)
    }

    /// Writes all parts one after the other.
    pub fn write(&self, mut offset: u64, parts: &[&[u8]]) -> Result<(), StoreError> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().filter(|p| !p.is_empty()).map(|p| IoSlice::new(p)).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let batch = rest.len().min(IOV_MAX);
            match rustix::io::pwritev(&self.file, &rest[..batch], offset) {
                Ok(0) => return Err(StoreError::io("write", &self.path, Errno::IO)),
                Ok(count) => {
                    IoSlice::advance_slices(&mut rest, count);
                    offset += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(StoreError::io("write", &self.path, e)),
            }
        }
        Ok(())
    }

    /// Makes a range read as zeros and gives its space back where the file system can.
    pub fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        if length == 0 {
            return Ok(());
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, mode, offset, length) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_zeros(offset, length),
            Err(e) => Err(StoreError::io("fallocate", &self.path, e)),
        }
    }

    fn write_zeros(&self, mut offset: u64, mut length: u64) -> Result<(), StoreError> {
        let zeros = vec![0u8; length.min(1 << 20) as usize];
        while length > 0 {
            let piece = length.min(zeros.len() as u64);
            self.write(offset, &[&zeros[..piece as usize]])?;
            offset += piece;
            length -= piece;
        }
        Ok(())
    }

    /// Brings the file's bytes to stable storage.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|e| StoreError::io("fdatasync", &self.path, e))
    }
}
