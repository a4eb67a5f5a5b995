//! The pure core of gfs: it decides; drivers perform; edges translate.
//!
//! Nothing here opens a socket or a file, reads a clock or draws a random number: time and seeds are
//! arguments. That is what lets the simulation run the very code that runs in production.

pub mod arena;
pub mod breaks;
pub mod ids;
pub mod meta;
pub mod placement;
pub mod plan;
pub mod replica;
pub mod splitmix;
