//! The metadata state machine: namespace, chunk table, sessions, locks.
//!
//! `apply(&mut state, stamp, command) -> reply` decides and performs on committed state and may refuse,
//! deterministically. The same code runs live, in recovery, on followers and in simulation.

pub mod apply;
pub mod checkpoint;
pub mod chunks;
pub mod command;
pub mod deadlock;
pub mod delegations;
pub mod grants;
pub mod holder;
pub mod holds;
pub mod locks;
pub mod namespace;
pub mod opens;
pub mod query;
mod records;
pub mod request;
pub mod servers;
pub mod sessions;
pub mod shrinks;
pub mod state;
pub mod steps;
mod stored;
pub mod tombstones;
pub mod write;

#[cfg(test)]
mod tests;
