//! Why a call of the client library failed. One table in `gfs-fuse` turns this into errno.

use gfs_core::ids::{ChunkHandle, InodeId};
use gfs_core::meta::request::Refusal;
use gfs_proto::convert::ConvertError;
use std::sync::Arc;

/// A call that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The master decided so; nothing changed.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// No answer before the deadline. A mutation may or may not have taken effect.
    #[error("{operation} timed out")]
    TimedOut {
        /// What was waited for.
        operation: &'static str,
    },
    /// The caller cancelled. Nothing happened, unless the request was already on its way for longer than a grace of one
    /// second: then it may take effect later.
    #[error("interrupted")]
    Interrupted,
    /// No master could be reached when connecting.
    #[error("no master answers at {masters}: {reason}")]
    Unavailable {
        /// Who was asked.
        masters: String,
        /// What the last one said.
        reason: String,
    },
    /// No replica of a chunk can give or take the bytes.
    #[error("chunk {handle}: {reason}")]
    Io {
        /// The chunk.
        handle: ChunkHandle,
        /// What the last server said.
        reason: Arc<str>,
    },
    /// The chunk servers are full.
    #[error("no space left on the cluster")]
    NoSpace,
    /// The session ended on the master's side while locks on this file, or a mutation under way, depended on it.
    #[error("the session was lost")]
    SessionLost {
        /// The file whose locks are gone; `None` for a mutation with an unknown outcome.
        inode: Option<InodeId>,
    },
    /// The masters belong to another cluster than the one that this client knows.
    #[error("the master belongs to another cluster")]
    WrongCluster,
    /// The versions of client and master do not fit.
    #[error("versions do not fit: {0}")]
    Version(String),
    /// A peer sent what the contract does not allow.
    #[error("malformed answer: {0}")]
    Malformed(Arc<str>),
    /// A path that is no path, or has too many symbolic links in it.
    #[error("too many levels of symbolic links")]
    TooManyLinks,
    /// The file is written all the time: what was asked for has no one answer.
    #[error("the file is being written")]
    Changing {
        /// Which.
        inode: InodeId,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    /// The master's refusal, when that is what it is.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) => Some(*refusal),
            _ => None,
        }
    }

    pub(crate) fn malformed(what: impl Into<Arc<str>>) -> Self {
        Self::Malformed(what.into())
    }
}

impl From<ConvertError> for ClientError {
    fn from(error: ConvertError) -> Self {
        Self::malformed(error.to_string())
    }
}
