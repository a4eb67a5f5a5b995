//! The metadata service: all names, chunk configurations, sessions and locks of a cluster, in memory and in a replicated
//! log. It never touches file bytes.
//!
//! `consensus` and `background` perform, `leader` holds the soft state between them and `gfs_core`, `service` translates.

#![warn(missing_docs)]

pub mod background;
pub mod checkpoint;
pub mod config;
pub mod consensus;
pub mod data_dir;
pub mod leader;
pub mod random;
pub mod server;
pub mod service;
