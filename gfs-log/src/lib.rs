//! The segment log: the master's consensus log and the chunk server's journal are written with it.
//!
//! This room owns frames, segments, group commit and recovery (`docs/formats/log.md`). It never knows what a
//! record means, and never retries a failed fsync: the log is poisoned instead.
//!
//! - [`Log::append`] writes to the operating system: the record survives the kill of the process.
//! - [`Log::sync`] and [`Log::when_durable`] wait for stable storage; all that wait share one fdatasync.
//! - [`Log::open`] visits what is there and cuts a torn tail, but only where nothing durable can be in it.

mod directory;
mod error;
mod flush;
mod frame;
mod log;
mod recover;
mod segment;

pub use error::LogError;
pub use log::{Appended, Log, LogOptions, Position, Record};

/// The largest position: they are stored in 56 bits.
pub const MAX_POSITION: u64 = (1 << 56) - 1;
