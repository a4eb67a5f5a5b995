//! What every process of gfs shares: configuration, logging, health, metrics, start and stop.
//!
//! This room starts, configures, observes and stops a process. It knows nothing about files, chunks or
//! clusters, and it takes no decision for the daemon that uses it.
#![warn(missing_docs)]

/// The allocator of every process of gfs. The daemons make and drop many small messages and tasks; the tasks of tokio are aligned
/// to 128 bytes, for which the allocator of the C library takes a slow path. See `docs/decisions/0005-crates.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod args;
pub mod config;
pub mod http;
pub mod life;
pub mod log;
pub mod metrics;

pub use args::CommonArgs;
pub use config::{ConfigError, Layers, Loaded};
