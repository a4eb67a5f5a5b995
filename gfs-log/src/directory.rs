//! The directory of a log: its lock, its listing, and making changes in it durable.

use crate::error::LogError;
use crate::segment::{SPARE_WORK, Segment, WORK};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What a directory holds.
pub(crate) struct Listing {
    /// First positions of the segments, in order.
    pub bases: Vec<u64>,
    /// Old segments kept to be used again.
    pub spares: Vec<PathBuf>,
}

/// Creates the directory if needed, and locks it against other processes for as long as the file lives.
pub(crate) fn open_locked(dir: &Path) -> Result<File, LogError> {
    if !dir.is_dir() {
        std::fs::create_dir_all(dir).map_err(|e| LogError::io("mkdir", dir, e))?;
        if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            let parent_file = File::open(parent).map_err(|e| LogError::io("open", parent, e))?;
            sync(&parent_file, parent)?;
        }
    }
    let file = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .map_err(|e| LogError::io("open", dir, e))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LogError::Locked { dir: dir.to_owned() }),
        Err(e) => Err(LogError::io("flock", dir, e)),
    }
}

/// Makes creations, renames and removals in the directory durable.
pub(crate) fn sync(dir_file: &File, dir: &Path) -> Result<(), LogError> {
    dir_file.sync_all().map_err(|e| LogError::io("fsync", dir, e))
}

/// Lists segments and spares, and removes what a crash left half made.
pub(crate) fn list(dir: &Path) -> Result<Listing, LogError> {
    let mut listing = Listing { bases: Vec::new(), spares: Vec::new() };
    let entries = std::fs::read_dir(dir).map_err(|e| LogError::io("list", dir, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| LogError::io("list", dir, e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(base) = Segment::base_of(name) {
            listing.bases.push(base);
        } else if name.ends_with(".spare") {
            listing.spares.push(entry.path());
        } else if name == WORK || name == SPARE_WORK {
            std::fs::remove_file(entry.path()).map_err(|e| LogError::io("unlink", &entry.path(), e))?;
        }
    }
    listing.bases.sort_unstable();
    Ok(listing)
}
