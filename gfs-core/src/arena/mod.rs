//! Compact ordered tables that freeze for free: the memory of the master.
//!
//! A [`Table`] maps a pair of integers to a record. It is a B+tree whose leaves hold their entries encoded, one
//! after the other, in one allocation of the size they need, so an entry costs its encoded bytes and little
//! more. Nodes are shared by reference count and copied when they are changed while shared: `Clone` is one
//! pointer, and is how a checkpoint freezes the state. This room knows no inode and no chunk.

pub mod codec;
pub mod hash;
mod leaf;
mod node;
mod table;

pub use table::{Key, Record, Table};
