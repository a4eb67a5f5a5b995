//! Connections to all peers, made when first used.

use crate::connection::{Connection, Ticket};
use crate::error::NetError;
use bytes::Bytes;
use gfs_core::ids::ClusterId;
use gfs_proto::v1::data_request::Op;
use gfs_proto::v1::{CommittedQuery, DataReply, DataRequest};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How connections are made.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// The cluster that peers must belong to; 0 when not yet known, which peers accept.
    pub cluster: ClusterId,
    /// Limit for making a connection.
    pub connect_timeout: Duration,
    /// Connections to each peer; calls of one lane share one.
    pub connections_per_peer: usize,
    /// Bytes that may wait to be sent on one connection before calls are refused.
    pub max_queued_bytes: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            cluster: ClusterId(0),
            connect_timeout: Duration::from_secs(2),
            connections_per_peer: 2,
            max_queued_bytes: 256 * 1024 * 1024,
        }
    }
}

/// Connections to chunk servers. Cheap to clone.
#[derive(Clone)]
pub struct DataPool {
    inner: Arc<Inner>,
}

/// The connections to one peer, by lane.
type Lanes = Vec<Option<Arc<Connection>>>;

struct Inner {
    options: PoolOptions,
    peers: Mutex<HashMap<Arc<str>, Lanes>>,
}

impl DataPool {
    /// An empty pool.
    pub fn new(options: PoolOptions) -> Self {
        Self { inner: Arc::new(Inner { options, peers: Mutex::default() }) }
    }

    /// Queues a call. Calls with the same address and lane reach the wire in the order in which they were started. Must be
    /// called within a tokio runtime.
    pub fn start(
        &self,
        address: &str,
        lane: u64,
        request: DataRequest,
        payload: Bytes,
        deadline: Instant,
    ) -> PendingCall {
        let address: Arc<str> = address.into();
        let state = match self.connection(&address, lane).send(request, payload) {
            Ok(ticket) => CallState::Waiting { ticket, timer: Box::pin(tokio::time::sleep_until(deadline)) },
            Err(error) => CallState::Failed(error),
        };
        PendingCall { address, state }
    }

    /// Queues a request that nobody answers, in the order of [`DataPool::start`]. It may get lost without a word.
    pub fn notify(&self, address: &str, lane: u64, request: DataRequest) {
        if let Err(error) = self.connection(&address.into(), lane).notify(request) {
            tracing::debug!(%error, address, "a notice was not sent");
        }
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// Any `NetError`; only `Connect`, `TooBusy` and `TooLarge` say that the peer has not seen the request.
    pub async fn call(
        &self,
        address: &str,
        lane: u64,
        request: DataRequest,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<(DataReply, Bytes), NetError> {
        self.start(address, lane, request, payload, deadline).await
    }

    /// Whether nothing at an address answers within a limit, though this asks for nothing that a disk or a lock would have to be waited
    /// for. A refused connection is an answer: who restarts is back soon, and who is dead is known to be.
    pub async fn is_silent(&self, address: &str, limit: Duration) -> bool {
        let nothing = DataRequest { op: Some(Op::CommittedQuery(CommittedQuery::default())), ..DataRequest::default() };
        let answer = self.call(address, 0, nothing, Bytes::new(), Instant::now() + limit).await;
        matches!(answer, Err(NetError::Deadline { .. }))
    }

    /// Closes all connections to a peer; calls that wait fail at once.
    pub fn forget(&self, address: &str) {
        let connections = self.inner.peers.lock().remove(address);
        for connection in connections.into_iter().flatten().flatten() {
            connection.close();
        }
    }

    fn connection(&self, address: &Arc<str>, lane: u64) -> Arc<Connection> {
        let count = self.inner.options.connections_per_peer.max(1);
        let mut peers = self.inner.peers.lock();
        let connections = peers.entry(address.clone()).or_insert_with(|| vec![None; count]);
        let slot = &mut connections[(lane % count as u64) as usize];
        match slot {
            Some(connection) if !connection.ended() => connection.clone(),
            _ => slot.insert(Connection::open(address.clone(), &self.inner.options)).clone(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for connection in self.peers.get_mut().values().flatten().flatten() {
            connection.close();
        }
    }
}

/// A call under way. Dropping it gives the answer up; the request may still take effect.
pub struct PendingCall {
    address: Arc<str>,
    state: CallState,
}

enum CallState {
    Waiting { ticket: Ticket, timer: Pin<Box<Sleep>> },
    Failed(NetError),
}

impl Future for PendingCall {
    type Output = Result<(DataReply, Bytes), NetError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let (ticket, timer) = match &mut this.state {
            CallState::Failed(error) => return Poll::Ready(Err(error.clone())),
            CallState::Waiting { ticket, timer } => (ticket, timer),
        };
        if let Poll::Ready(answer) = Pin::new(&mut ticket.answer).poll(context) {
            return Poll::Ready(answer.unwrap_or_else(|_| Err(NetError::Closed { address: this.address.clone() })));
        }
        timer.as_mut().poll(context).map(|()| Err(NetError::Deadline { address: this.address.clone() }))
    }
}
