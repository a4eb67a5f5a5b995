//! The wire contract: generated message types and their conversions to and from core types.
//!
//! Nothing is decided here. What arrives is checked for form (known codes, lengths) and refused as a whole when it does
//! not fit.

/// Generated from `proto/gfs/v1/*.proto`; see `tests/generated.rs`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    include!("gen/gfs.v1.rs");
}

pub mod convert;

/// Version of the contract; a peer with another one is refused with a clear message.
pub const PROTOCOL: u32 = 1;
