//! A machine whose power can be cut.
//!
//! [`Layer`] is a file system of the tests' own, mounted below a daemon's data directory. It keeps everything in memory, and when
//! the power is cut it drops what no fsync has made durable, by choice of a seed: see [`Disk`] for what may be lost, and how.
//! [`Machines`] gives one such layer to each daemon of a cluster, and a new boot of the machine after each cut.
//!
//! [`Tree`] and [`Disk`] decide and do no I/O; [`Layer`] alone knows FUSE.

mod disk;
mod layer;
mod machines;
mod tree;

pub use disk::Disk;
pub use layer::Layer;
pub use machines::Machines;
pub use tree::{BLOCK, Content, Inode, Kind, Node, Op, ROOT, Tree};
