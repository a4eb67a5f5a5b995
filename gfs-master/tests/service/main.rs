//! The master as its clients and chunk servers see it, over gRPC. One program: what a master is made of is built into it once.

mod common;
mod creations;
mod delegations;
mod servers;
mod sessions;
mod survivors;
