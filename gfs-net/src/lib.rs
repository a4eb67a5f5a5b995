//! The data path: frames over TCP, connections, pools; and channels for the control path.
//!
//! This room moves requests, replies and raw bytes. It never retries and knows nothing of chunks: retry lives
//! in `gfs-client`, meaning in the daemons.
#![warn(missing_docs)]

mod connection;
pub mod control;
mod error;
pub mod frame;
mod pool;
mod reader;
mod server;

pub use error::NetError;
pub use frame::{MAX_HEADER, MAX_PAYLOAD};
pub use pool::{DataPool, PendingCall, PoolOptions};
pub use server::{DataHandler, Incoming, Responder, ServeLimits, serve};

/// CRC32C (Castagnoli) of a payload: the checksum that frames, blocks and logs share.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}
