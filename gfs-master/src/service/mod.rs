//! The gRPC services: wire messages in, core types through the leader, wire messages out.
//!
//! This room owns the translation and the bounds of what one peer may ask at a time. It decides nothing.

pub mod admin;
mod check;
pub mod cluster;
mod greeting;
pub mod session;

use crate::consensus::ConsensusError;
use crate::leader::ServeError;
use gfs_proto::v1::{self, failure::Code};
use std::future::Future;
use std::pin::Pin;
use tokio_stream::Stream;

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;

/// A failure for a client's call.
pub fn failure(error: &ServeError) -> v1::Failure {
    let (code, hint) = match error {
        ServeError::Consensus(ConsensusError::NotLeader { hint }) => {
            (Code::NotLeader, hint.clone().unwrap_or_default())
        }
        // What cannot be refused waits for room: it is asked again.
        ServeError::Consensus(ConsensusError::Overloaded | ConsensusError::NoSpace) => {
            (Code::Overloaded, String::new())
        }
        ServeError::Consensus(ConsensusError::TooLarge { .. }) => (Code::Malformed, String::new()),
        ServeError::Consensus(ConsensusError::Stopped) => (Code::Stopping, String::new()),
        ServeError::Unavailable(_) | ServeError::Unexpected => (Code::Unavailable, String::new()),
    };
    v1::Failure { code: code.into(), message: error.to_string(), hint }
}

/// The same as a gRPC status, for unary calls.
pub fn status(error: &ServeError) -> tonic::Status {
    match error {
        ServeError::Consensus(ConsensusError::Overloaded | ConsensusError::NoSpace) => {
            tonic::Status::resource_exhausted(error.to_string())
        }
        ServeError::Consensus(ConsensusError::TooLarge { .. }) => tonic::Status::invalid_argument(error.to_string()),
        ServeError::Consensus(_) | ServeError::Unavailable(_) => tonic::Status::unavailable(error.to_string()),
        ServeError::Unexpected => tonic::Status::internal(error.to_string()),
    }
}

/// Waits for `call` unless the process stops first.
pub async fn unless_stopping<T>(
    stopping: tokio::sync::watch::Receiver<bool>,
    call: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        answer = call => Some(answer),
        () = gfs_daemon::life::wait(stopping) => None,
    }
}
