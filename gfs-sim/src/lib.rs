//! The whole cluster in one deterministic process: the real cores, with a pretended clock, network, log and disks.
//!
//! A run is a seed. Servers are killed, paused, cut off, lose power; disks fill up, fail, and flip bits; the master restarts and
//! loses the end of its log; clients die; packets are late, lost or doubled. The invariants, one file each, judge what clients
//! saw and what servers did. `breaks` shows that they would notice.

pub mod breaks;
pub mod client;
pub mod disk;
pub mod faults;
pub mod history;
pub mod invariants;
pub mod master;
pub mod message;
pub mod rng;
pub mod server;
pub mod world;

pub use breaks::{Breach, Neglect};
pub use faults::{Options, Weather};
pub use world::run;
