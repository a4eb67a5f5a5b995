//! The FUSE mount.
//!
//! `transport` knows what requests come by, `ops` what they ask, `fs` knows POSIX, `errno` is the table between them. What the kernel sees
//! is decided here; finding masters, open files, retry and file bytes are the client library's.
#![warn(missing_docs)]

mod desks;
pub mod errno;
pub mod fs;
pub mod mount;
mod mountpoint;
mod ops;
pub mod options;
mod transport;

pub use mountpoint::MountpointError;
pub use options::{CacheMode, MountOptions, OptionError};
