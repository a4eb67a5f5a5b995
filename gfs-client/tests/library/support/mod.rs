//! A master with the real state machine behind a small service, and chunk servers that keep their chunks in memory; both with faults
//! to order. Each test file uses a part of it.

pub mod chunks;
pub mod master;

use chunks::ChunkServers;
use gfs_client::{CallContext, CallLimit, CancelToken, Client, ClientOptions, Credentials, Target};
use master::Master;
use std::sync::Arc;
use std::time::Duration;

/// Limit of everything that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster in this process.
pub struct Cluster {
    pub master: Arc<Master>,
    pub chunks: Arc<ChunkServers>,
}

impl Cluster {
    /// A master and `servers` chunk servers; chunks of `chunk_size`, two replicas.
    pub async fn start(servers: usize, chunk_size: u64) -> Self {
        let master = Master::start(chunk_size).await;
        let chunks = ChunkServers::start(&master, servers).await;
        Self { master, chunks }
    }

    pub async fn client(&self) -> Client {
        let options = ClientOptions { description: "test".into(), ..ClientOptions::default() };
        Client::connect(self.target(), options).await.unwrap()
    }

    pub fn target(&self) -> Target {
        Target { masters: vec![self.master.address.clone()] }
    }
}

/// A call as root, with a generous limit.
pub fn call() -> CallContext {
    CallContext::new(Credentials::default(), CallLimit::within(PATIENCE))
}

/// A call that can be cancelled.
pub fn cancellable(cancel: &CancelToken) -> CallContext {
    CallContext::new(Credentials::default(), CallLimit::cancellable(PATIENCE, cancel.clone()))
}

/// Waits until a condition holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "in vain: {what}");
}
