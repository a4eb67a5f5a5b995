//! The client library against a master and chunk servers in memory. One program: what a client is made of is built into it once.

mod ahead;
mod behind;
mod files;
mod held;
mod rewrites;
mod session;
mod support;
