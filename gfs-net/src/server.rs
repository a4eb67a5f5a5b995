//! The accepting side: connections in, requests to a handler, replies back.

use crate::connection::{Outgoing, tune, write_frames};
use crate::frame::{Kind, Prefix};
use crate::reader::{Frame, FrameReader, ReadError, Side};
use bytes::Bytes;
use gfs_core::ids::ClusterId;
use gfs_proto::v1::{DataReply, DataRequest, data_reply::Status};
use prost::Message;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// Bounds of what peers can make this side hold.
#[derive(Clone, Debug)]
pub struct ServeLimits {
    /// Open connections.
    pub connections: usize,
    /// Requests of one connection that are not yet answered; more wait in the socket.
    pub requests_per_connection: usize,
    /// Payload bytes of all unanswered requests together; more wait in their sockets.
    pub bytes: usize,
    /// A frame that has begun must be complete after this.
    pub frame_timeout: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            requests_per_connection: 256,
            bytes: 256 * 1024 * 1024,
            frame_timeout: Duration::from_secs(30),
        }
    }
}

/// Who answers requests.
pub trait DataHandler: Send + Sync + 'static {
    /// Takes a request. Called in the order of arrival on a connection, on the task that reads it, so it must not block:
    /// longer work is spawned.
    fn handle(&self, incoming: Incoming);
}

/// A request with all that is needed to answer it.
pub struct Incoming {
    /// What is asked.
    pub request: DataRequest,
    /// The bytes that came with it.
    pub payload: Bytes,
    /// Who asks.
    pub peer: SocketAddr,
    /// The way back.
    pub responder: Responder,
}

/// Sends the one reply to a request; dropped unused, it answers BUSY. That of a notice sends nothing.
pub struct Responder {
    tag: u64,
    sender: Option<mpsc::UnboundedSender<Outgoing>>,
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

impl Responder {
    /// Replies.
    pub fn send(mut self, reply: DataReply, payload: Bytes) {
        self.deliver(&reply, payload);
    }

    fn deliver(&mut self, reply: &DataReply, payload: Bytes) {
        if let Some(sender) = self.sender.take() {
            // A connection that is gone needs no answer.
            let _ = sender.send(Outgoing::new(Kind::Reply, self.tag, reply, payload));
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.deliver(&DataReply { status: Status::Busy.into(), ..DataReply::default() }, Bytes::new());
    }
}

/// Accepts connections until `shutdown` turns true. Requests already taken are still answered.
pub async fn serve(
    listener: TcpListener,
    cluster: ClusterId,
    handler: Arc<dyn DataHandler>,
    limits: ServeLimits,
    mut shutdown: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let bytes = Arc::new(Semaphore::new(limits.bytes.min(Semaphore::MAX_PERMITS)));
    let limits = Arc::new(limits);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let served = Served {
                    peer,
                    cluster,
                    handler: handler.clone(),
                    limits: limits.clone(),
                    bytes: bytes.clone(),
                    shutdown: shutdown.clone(),
                };
                tokio::spawn(async move {
                    served.run(stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: give the others time to end.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

struct Served {
    peer: SocketAddr,
    cluster: ClusterId,
    handler: Arc<dyn DataHandler>,
    limits: Arc<ServeLimits>,
    bytes: Arc<Semaphore>,
    shutdown: watch::Receiver<bool>,
}

impl Served {
    async fn run(mut self, stream: TcpStream) {
        if let Err(error) = tune(&stream) {
            tracing::debug!(peer = %self.peer, %error, "cannot set socket options");
        }
        let (source, sink) = stream.into_split();
        let (sender, queue) = mpsc::unbounded_channel();
        let writer = tokio::spawn(write_frames(sink, queue, |_| {}));
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            () = self.read(FrameReader::new(source, Side::Asked), sender) => {}
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
        // The writer ends once every responder has answered and let go of the queue.
        if let Ok(Err(error)) = writer.await {
            tracing::debug!(peer = %self.peer, %error, "connection ended while writing");
        }
    }

    async fn read(&mut self, mut frames: FrameReader<impl AsyncRead + Unpin>, sender: mpsc::UnboundedSender<Outgoing>) {
        let slots = Arc::new(Semaphore::new(self.limits.requests_per_connection));
        let mut first = true;
        loop {
            let (frame, permits) = match self.next(&mut frames, &slots).await {
                Ok(next) => next,
                Err(ReadError::End) => return,
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "connection ended");
                    return;
                }
            };
            let sender = frame.answered.then(|| sender.clone());
            let responder = Responder { tag: frame.tag, sender, _permits: permits };
            let Ok(request) = DataRequest::decode(frame.header) else {
                responder.send(refusal(Status::Malformed, "the request header cannot be decoded"), Bytes::new());
                return;
            };
            if std::mem::take(&mut first) && !self.same_cluster(&request.cluster) {
                let text = format!("this chunk server belongs to cluster {}", self.cluster);
                responder.send(refusal(Status::WrongCluster, &text), Bytes::new());
                return;
            }
            self.handler.handle(Incoming { request, payload: frame.payload, peer: self.peer, responder });
        }
    }

    async fn next(
        &self,
        frames: &mut FrameReader<impl AsyncRead + Unpin>,
        slots: &Arc<Semaphore>,
    ) -> Result<(Frame, (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)), ReadError> {
        let closed = |_| ReadError::End;
        let slot = slots.clone().acquire_owned().await.map_err(closed)?;
        let prefix: Prefix = frames.next_prefix().await?;
        let bytes = match prefix.payload {
            0 => None,
            length => Some(self.bytes.clone().acquire_many_owned(length as u32).await.map_err(closed)?),
        };
        let body = tokio::time::timeout(self.limits.frame_timeout, frames.body(&prefix)).await;
        let frame = body.map_err(|_| ReadError::Io(std::io::ErrorKind::TimedOut.into()))??;
        Ok((frame, (slot, bytes)))
    }

    fn same_cluster(&self, named: &[u8]) -> bool {
        named.is_empty() || self.cluster.0 == 0 || named == [0; 16] || named == self.cluster.0.to_be_bytes()
    }
}

fn refusal(status: Status, message: &str) -> DataReply {
    DataReply { status: status.into(), message: message.into(), ..DataReply::default() }
}
