//! The library that every client of gfs is built on: the mount, the command line, gateways.
//!
//! This room finds masters, keeps the session alive, retries under the same operation number, knows where chunks are, holds
//! open files and moves file bytes. It knows nothing of a kernel, reads no environment and never decides what is allowed:
//! the master does.
#![warn(missing_docs)]

pub mod admin;
mod calls;
mod client;
mod data;
mod delegations;
mod directories;
mod error;
mod files;
mod flusher;
mod grants;
mod lessons;
mod limit;
mod liveness;
mod locations;
mod locks;
mod names;
mod near;
pub mod path;
mod reserve;
mod session;
mod target;

pub use admin::AdminError;
pub use calls::{Looked, Opened, Usage};
pub use client::{Answered, Client, ClientOptions, Outcome};
pub use error::ClientError;
pub use files::{ACCESS_BOTH, ACCESS_READ, ACCESS_WRITE, Access, OpenFile, Pages, Zeroing};
pub use grants::{Grant, Invalidator, Ticket};
pub use limit::{CallContext, CallLimit, CancelToken, Progress, WaitsFor};
pub use target::{DEFAULT_MASTER, Target, TargetError};

pub use gfs_core::ids::{InodeId, ROOT};
pub use gfs_core::meta::namespace::access_is_due;
pub use gfs_core::meta::request::{
    AttributeChanges, Attributes, Credentials, DirectoryEntry, FileType, Lock, LockFamily, LockMode, LockOwner,
    LockRange, NodeKind, Refusal, RenameMode, Request, SetTime, Timestamp, XattrMode,
};
