//! The FUSE mount.
//!
//! `ops` and `session` know the transport, `fs` knows POSIX, `errno` is the table between the two. What the kernel sees is
//! decided here; finding masters, open files, retry and file bytes are the client library's.
#![warn(missing_docs)]

mod desks;
pub mod errno;
pub mod fs;
pub mod mount;
mod mountpoint;
mod ops;
pub mod options;
mod session;

pub use mountpoint::MountpointError;
pub use options::{CacheMode, MountOptions, OptionError};
