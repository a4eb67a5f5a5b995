//! What every process of gfs shares: configuration, logging, health, metrics, start and stop.
//!
//! This room starts, configures, observes and stops a process. It knows nothing about files, chunks or
//! clusters, and it takes no decision for the daemon that uses it.
#![warn(missing_docs)]

pub mod args;
pub mod config;
pub mod http;
pub mod life;
pub mod log;
pub mod metrics;

pub use args::CommonArgs;
pub use config::{ConfigError, Layers, Loaded};
