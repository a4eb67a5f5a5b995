//! Test harness: real processes, real kernel mounts, in temporary directories, cleaned up also when a test fails.
//!
//! Nothing here is skipped silently: a missing /dev/fuse or binary is a failure that says so.

pub mod cluster;
pub mod power;
pub mod record;
pub mod work;

pub use cluster::{Cluster, Options, Process};
