//! The chunk server: the store on disk, the driver of replicas, heartbeats.
//!
//! `gfs_core::replica` decides what a replica does; this crate carries it out on disks (`store`) and sockets (`driver`,
//! `service`), keeps its place with the master (`control`) and does what runs on a timer (`background`). It knows no names
//! and never decides who the members of a chunk are.
#![warn(missing_docs)]

pub mod background;
pub mod config;
pub mod control;
pub mod driver;
pub mod server;
pub mod service;
pub mod store;
