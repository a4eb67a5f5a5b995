//! Channels of the control path: gRPC with limits and keep-alive set once, here.

use crate::error::NetError;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Longest control message, both ways.
pub const MAX_CONTROL_MESSAGE: usize = 16 * 1024 * 1024;

/// A channel to `host:port`. It connects when first used and again when it broke; each use fails after `timeout` when there
/// is nobody to connect to.
///
/// # Errors
/// `NetError::Address` when the address is not `host:port`.
pub fn channel(address: &str, timeout: Duration) -> Result<Channel, NetError> {
    Ok(endpoint(address, timeout)?.connect_lazy())
}

/// As `channel`, but connects now.
///
/// # Errors
/// `NetError::Address`, or `NetError::Connect` when nobody answers within `timeout`.
pub async fn connect(address: &str, timeout: Duration) -> Result<Channel, NetError> {
    let connecting = endpoint(address, timeout)?.connect().await;
    connecting.map_err(|error| NetError::Connect {
        address: address.into(),
        source: std::sync::Arc::new(std::io::Error::other(root_cause(&error))),
    })
}

fn endpoint(address: &str, timeout: Duration) -> Result<Endpoint, NetError> {
    let bad = |reason: String| NetError::Address { address: address.into(), reason: reason.into() };
    if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
        return Err(bad("expected HOST:PORT".into()));
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| bad(error.to_string()))?;
    Ok(endpoint
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
        .http2_keep_alive_interval(Duration::from_secs(3))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true))
}

/// The innermost reason of an error: what a person can act on.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
