//! The whole cluster in one deterministic process: the real cores, with a pretended clock, network and disks.
//!
//! A run is a seed. Servers are killed, paused, cut off, lose power; the master restarts; packets are late or lost. The
//! invariants, one file each, judge what clients saw.

pub mod client;
pub mod disk;
pub mod history;
pub mod invariants;
pub mod master;
pub mod message;
pub mod rng;
pub mod server;
pub mod world;

pub use world::{Options, run};
