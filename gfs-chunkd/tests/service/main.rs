//! Chunk servers as their clients and their master see them, over the network. One program: what they are made of is built into it once.

mod cluster;
mod common;
mod disk_faults;
mod lending;
