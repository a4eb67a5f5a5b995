//! What can go wrong in a log, as one closed set.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of the log. It can be cloned: all waiters of a failed fsync get it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
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
    /// Something that was on stable storage is damaged. Nothing was changed.
    #[error(
        "{} is corrupt at offset {offset}: {problem}. Do not delete it: restore this directory from a copy, or remove \
         this server and let it be filled again from the others", file.display()
    )]
    Corrupt {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// An earlier fsync failed, so that nobody knows what is on stable storage: the log takes nothing more.
    #[error("the log in {} is out of service since an fsync failed: {source}", dir.display())]
    Poisoned {
        /// The log's directory.
        dir: PathBuf,
        /// The error of that fsync.
        source: Arc<io::Error>,
    },
    /// A record larger than `max_record_bytes`.
    #[error("a record of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u32,
    },
    /// No record starts there: it was trimmed, or never written.
    #[error("no record at position {position} of the log in {}", dir.display())]
    NoRecord {
        /// The log's directory.
        dir: PathBuf,
        /// The position asked for.
        position: u64,
    },
    /// Another process uses the directory.
    #[error("the log in {} is in use by another process", dir.display())]
    Locked {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The visitor refused a record during `open`.
    #[error("record at position {position} of the log in {}: {problem}", dir.display())]
    Refused {
        /// The log's directory.
        dir: PathBuf,
        /// The record.
        position: u64,
        /// What the visitor found.
        problem: String,
    },
    /// The log was closed while somebody waited.
    #[error("the log in {} was closed", dir.display())]
    Closed {
        /// The log's directory.
        dir: PathBuf,
    },
}

impl LogError {
    /// Builds the error of a failed system call.
    pub(crate) fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.to_owned(), source: Arc::new(source.into()) }
    }

    /// Whether the disk is full: nothing was changed, and the call may be repeated later.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                source.kind() == io::ErrorKind::StorageFull || source.kind() == io::ErrorKind::QuotaExceeded
            }
            _ => false,
        }
    }
}
