//! What can go wrong in the store, as one closed set.

use gfs_core::ids::{ChunkHandle, Sequence};
use gfs_log::LogError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of the chunk store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No such chunk here.
    #[error("chunk {handle} is not here")]
    NoChunk {
        /// Which.
        handle: ChunkHandle,
    },
    /// A chunk with this handle is here already.
    #[error("chunk {handle} exists already")]
    Exists {
        /// Which.
        handle: ChunkHandle,
    },
    /// Stored bytes do not match their checksum: another replica has to answer, and this block needs repair.
    #[error("chunk {handle} is corrupt in block {block} of {}", path.display())]
    Corrupt {
        /// Which chunk.
        handle: ChunkHandle,
        /// Which block of it.
        block: u32,
        /// Its file.
        path: PathBuf,
    },
    /// Bytes handed in do not match the checksum handed in with them.
    #[error("block {block} for chunk {handle} does not match its checksum")]
    BadPayload {
        /// Which chunk.
        handle: ChunkHandle,
        /// Which block of it.
        block: u32,
    },
    /// The disk is full, but for the reserve. Nothing was changed.
    #[error("no space left on {}", path.display())]
    NoSpace {
        /// The disk.
        path: PathBuf,
    },
    /// The disk failed and is out of service until the process is restarted.
    #[error("disk {} is out of service: {reason}", path.display())]
    DiskFailed {
        /// The disk.
        path: PathBuf,
        /// What happened.
        reason: Arc<str>,
    },
    /// A prepare after a gap, a commit of what is not prepared, or a rollback of what is committed.
    #[error("chunk {handle}: sequence {got} is out of order, expected {expected}")]
    OutOfOrder {
        /// Which chunk.
        handle: ChunkHandle,
        /// The sequence that would be right (the newest possible one for commit and rollback).
        expected: Sequence,
        /// The sequence that came.
        got: Sequence,
    },
    /// A range beyond the chunk, or a payload of another length than announced.
    #[error("chunk {handle}: bad range or payload, offset {offset}, length {length}")]
    Malformed {
        /// Which chunk.
        handle: ChunkHandle,
        /// First byte.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// No directory has an identity yet: the server must register first.
    #[error("no directory of this chunk server belongs to a cluster yet")]
    NotAdopted,
    /// The directory belongs to another cluster, server or chunk size, or its identity file is damaged.
    #[error("{}: {problem}. {mend}", path.display())]
    WrongDisk {
        /// The directory.
        path: PathBuf,
        /// What does not fit.
        problem: String,
        /// What an operator can do.
        mend: String,
    },
    /// Another process uses the directory.
    #[error("{}: in use by another process; stop it, or give each chunk server directories of its own", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The journal could not be used.
    #[error("journal in {}: {source}", path.display())]
    Journal {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: LogError,
    },
    /// A system call failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// The call.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
}

impl StoreError {
    /// Builds the error of a failed system call.
    pub(crate) fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source: io::Error = source.into();
        let full = matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        if full && !is_sync(operation) {
            return Self::NoSpace { path: path.to_owned() };
        }
        Self::Io { operation, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether the disk has to be taken out of service after it.
    pub(crate) fn fails_disk(&self) -> bool {
        match self {
            Self::Io { operation, source, .. } => is_sync(operation) || !is_shortage(source),
            Self::Journal { source: LogError::Io { source: cause, .. }, .. } => {
                !is_shortage(cause) && cause.kind() != io::ErrorKind::StorageFull
            }
            Self::Journal { source: LogError::TooLarge { .. } | LogError::NoRecord { .. }, .. } => false,
            Self::Journal { .. } => true,
            _ => false,
        }
    }
}

/// Whether the call was to bring something to stable storage: then any failure means that nobody knows what is there.
fn is_sync(operation: &str) -> bool {
    matches!(operation, "fsync" | "fdatasync" | "syncfs")
}

/// Whether it is this process or machine that lacks something, and not the disk.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN))
}
