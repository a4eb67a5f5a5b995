//! Why a call over the data path failed.

use crate::frame::FrameError;
use std::io;
use std::sync::Arc;

/// A call could not be made or answered. Whether it took effect at the other end is unknown unless said.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NetError {
    /// No connection: nothing was sent.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The peer.
        address: Arc<str>,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The connection ended before the answer came.
    #[error("connection to {address} closed")]
    Closed {
        /// The peer.
        address: Arc<str>,
    },
    /// No answer before the deadline.
    #[error("{address} did not answer in time")]
    Deadline {
        /// The peer.
        address: Arc<str>,
    },
    /// Too many bytes wait to be sent to this peer: nothing was sent.
    #[error("too much is queued for {address}")]
    TooBusy {
        /// The peer.
        address: Arc<str>,
    },
    /// The request is larger than a frame can be: nothing was sent.
    #[error("request of {bytes} bytes exceeds the frame limit")]
    TooLarge {
        /// Header and payload.
        bytes: usize,
    },
    /// What came back is not our protocol.
    #[error("{address} answered with something else: {source}")]
    Frame {
        /// The peer.
        address: Arc<str>,
        /// What is wrong with it.
        source: FrameError,
    },
    /// An address that cannot be used.
    #[error("bad address {address}: {reason}")]
    Address {
        /// As given.
        address: Arc<str>,
        /// Why.
        reason: Arc<str>,
    },
}
