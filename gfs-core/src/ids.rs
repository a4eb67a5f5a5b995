//! Identifiers: newtypes for everything that has a name on the wire or on disk.
//!
//! This room owns what an id means and how it is built. It never hands ids out: that is a decision
//! of the master's state machine, made inside `apply`.

use std::fmt;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(raw: $inner) -> Self {
                Self(raw)
            }
        }
    };
}

/// Bits of an inode number or chunk handle that count within one generation of the cluster.
pub const COUNTER_BITS: u32 = 48;

id! {
    /// Number of an inode, never reused: the cluster's generation above a 48-bit counter. The root is 1.
    InodeId(u64)
}
id! {
    /// Id of a chunk, never reused: the cluster's generation above a 48-bit counter.
    ChunkHandle(u64)
}
id! {
    /// Number of a chunk server, given at its first registration and kept for life; 0 is nobody.
    ServerId(u16)
}
id! {
    /// Version of a chunk's configuration: raised by every change of members, syncing members or primary.
    Epoch(u32)
}
id! {
    /// Position of a write in a chunk's history. It counts over the whole life of the chunk and does not
    /// restart with an epoch; (epoch, sequence) names one write.
    Sequence(u64)
}
id! {
    /// A client session, given by the master when it opens; never reused.
    SessionId(u64)
}
id! {
    /// Counts restores of the cluster's metadata; it is part of every inode number and chunk handle.
    Generation(u16)
}

/// The root directory's inode number, the one that FUSE expects.
pub const ROOT: InodeId = InodeId(1);

impl InodeId {
    /// Builds an inode number from its generation and counter.
    pub fn new(generation: Generation, counter: u64) -> Self {
        Self(compose(generation, counter))
    }

    /// The generation that gave it out.
    pub fn generation(self) -> Generation {
        Generation((self.0 >> COUNTER_BITS) as u16)
    }

    /// Its place among those of its generation.
    pub fn counter(self) -> u64 {
        self.0 & ((1 << COUNTER_BITS) - 1)
    }
}

impl ChunkHandle {
    /// Builds a chunk handle from its generation and counter.
    pub fn new(generation: Generation, counter: u64) -> Self {
        Self(compose(generation, counter))
    }

    /// The generation of the cluster in which the chunk was made.
    pub fn generation(self) -> Generation {
        Generation((self.0 >> COUNTER_BITS) as u16)
    }

    /// The counter within that generation.
    pub fn counter(self) -> u64 {
        self.0 & ((1 << COUNTER_BITS) - 1)
    }
}

fn compose(generation: Generation, counter: u64) -> u64 {
    assert!(counter < 1 << COUNTER_BITS, "id counter {counter} exceeds {COUNTER_BITS} bits");
    (u64::from(generation.0) << COUNTER_BITS) | counter
}

impl Epoch {
    /// The epoch after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Sequence {
    /// The sequence number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Identity of a whole cluster, made at random when it is formatted; a disk or a client of another
/// cluster is refused by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// Names one mutation of one session, so that a retry is answered and never applied again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OperationId {
    /// Who asks.
    pub session: SessionId,
    /// Counts the session's mutations from 1.
    pub operation: u64,
}

/// Which write last touched a block of a chunk; ordered, so that of two copies the newer is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BlockVersion {
    /// Epoch in which the write was ordered.
    pub epoch: Epoch,
    /// Its place in the chunk's history.
    pub sequence: Sequence,
}
