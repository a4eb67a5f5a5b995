//! Replication against a small cluster in memory: named facts, and random histories with an oracle.

mod cluster;
mod disk;
mod facts;
mod network;
mod oracle;
mod random;
