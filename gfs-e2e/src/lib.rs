//! Test harness: real processes, real kernel mounts, in temporary directories, cleaned up also when a test fails.
//!
//! Nothing here is skipped silently: a missing /dev/fuse or binary is a failure that says so.

pub mod cluster;
pub mod coherence;
pub mod daemon;
pub mod disk;
pub mod load;
pub mod network;
pub mod power;
pub mod record;
pub mod small;
pub mod spread;
pub mod suites;
pub mod work;

pub use cluster::{Cluster, Options, Process};
pub use spread::Spread;
