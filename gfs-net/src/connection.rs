//! One outgoing connection: a queue of requests, a table of calls that wait for their answers.

use crate::crc32c;
use crate::error::NetError;
use crate::frame::{FrameError, Kind, MAX_HEADER, MAX_PAYLOAD, Prefix, encode_prefix};
use crate::pool::PoolOptions;
use crate::reader::{FrameReader, ReadError, Side};
use bytes::{Buf, Bytes, BytesMut};
use gfs_proto::v1::{DataReply, DataRequest};
use parking_lot::Mutex;
use prost::Message;
use socket2::{SockRef, TcpKeepalive};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};

pub(crate) type Answer = Result<(DataReply, Bytes), NetError>;

/// A frame ready to be written: prefix and header, then payload.
pub(crate) struct Outgoing {
    pub head: Bytes,
    pub payload: Bytes,
}

impl Outgoing {
    /// Encodes a message into a frame.
    pub fn new(kind: Kind, tag: u64, message: &impl Message, payload: Bytes) -> Self {
        let header = message.encode_to_vec();
        let prefix = Prefix { kind, header: header.len(), payload: payload.len(), tag, header_crc: crc32c(&header) };
        let mut head = BytesMut::with_capacity(crate::frame::PREFIX + header.len());
        head.extend_from_slice(&encode_prefix(&prefix));
        head.extend_from_slice(&header);
        Self { head: head.freeze(), payload }
    }

    pub fn bytes(&self) -> usize {
        self.head.len() + self.payload.len()
    }
}

/// Writes frames from a queue until it closes; `sent` is told the size of each.
pub(crate) async fn write_frames(
    mut sink: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    sent: impl Fn(usize),
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(32);
    loop {
        if queue.recv_many(&mut batch, 32).await == 0 {
            return sink.shutdown().await;
        }
        // Small frames that wait together leave together; large payloads go out from where they lie.
        let mut small = BytesMut::new();
        for frame in batch.drain(..) {
            let size = frame.bytes();
            if size <= 16 * 1024 {
                small.extend_from_slice(&frame.head);
                small.extend_from_slice(&frame.payload);
            } else {
                let before = std::mem::take(&mut small).freeze();
                sink.write_all_buf(&mut before.chain(frame.head).chain(frame.payload)).await?;
            }
            sent(size);
        }
        if !small.is_empty() {
            sink.write_all_buf(&mut small).await?;
        }
    }
}

/// A peer whose machine has acknowledged nothing for so long is taken for unreachable. The kernel waits longer and longer between its tries,
/// so that a connection that lives on is of use again only long after a cut is healed; a new one is at once.
const SILENCE: Duration = Duration::from_secs(4);

/// Options that every data socket gets.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2)),
    )?;
    socket.set_tcp_user_timeout(Some(SILENCE))
}

/// A connection to one peer. It fails once, as a whole; the pool then makes another.
pub(crate) struct Connection {
    address: Arc<str>,
    queue: mpsc::UnboundedSender<Outgoing>,
    queued_bytes: Arc<AtomicUsize>,
    max_queued_bytes: usize,
    waiting: Arc<Waiting>,
    next_tag: AtomicU64,
    introduced: AtomicBool,
    cluster: Bytes,
    close: Arc<Notify>,
}

/// Calls that wait for their answers, until the connection ends.
struct Waiting {
    state: Mutex<WaitingState>,
}

struct WaitingState {
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    ended: Option<NetError>,
}

impl Waiting {
    fn end(&self, error: NetError) {
        let mut state = self.state.lock();
        state.ended.get_or_insert(error.clone());
        for (_, call) in state.calls.drain() {
            let _ = call.send(Err(error.clone()));
        }
    }
}

/// A call in progress: its answer, and its place in the table.
pub(crate) struct Ticket {
    pub answer: oneshot::Receiver<Answer>,
    waiting: Arc<Waiting>,
    tag: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.state.lock().calls.remove(&self.tag);
    }
}

impl Connection {
    /// Starts to connect in the background; requests may be queued at once.
    pub fn open(address: Arc<str>, options: &PoolOptions) -> Arc<Self> {
        let (queue, receiver) = mpsc::unbounded_channel();
        let connection = Arc::new(Self {
            address: address.clone(),
            queue,
            queued_bytes: Arc::default(),
            max_queued_bytes: options.max_queued_bytes,
            waiting: Arc::new(Waiting { state: Mutex::new(WaitingState { calls: HashMap::new(), ended: None }) }),
            next_tag: AtomicU64::new(1),
            introduced: AtomicBool::new(false),
            cluster: Bytes::copy_from_slice(&options.cluster.0.to_be_bytes()),
            close: Arc::default(),
        });
        let task = Task {
            address,
            waiting: connection.waiting.clone(),
            queued_bytes: connection.queued_bytes.clone(),
            close: connection.close.clone(),
            connect_timeout: options.connect_timeout,
        };
        tokio::spawn(task.run(receiver));
        connection
    }

    /// Whether it has failed or was closed.
    pub fn ended(&self) -> bool {
        self.waiting.state.lock().ended.is_some()
    }

    /// Ends it; calls that wait fail.
    pub fn close(&self) {
        self.waiting.end(NetError::Closed { address: self.address.clone() });
        self.close.notify_one();
    }

    /// Queues a request behind those queued before.
    pub fn send(&self, request: DataRequest, payload: Bytes) -> Result<Ticket, NetError> {
        let tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        let frame = self.frame(Kind::Request, tag, request, payload)?;
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.waiting.state.lock();
            if let Some(error) = &state.ended {
                return Err(error.clone());
            }
            state.calls.insert(tag, sender);
        }
        let ticket = Ticket { answer, waiting: self.waiting.clone(), tag };
        self.queue.send(frame).map_err(|_| NetError::Closed { address: self.address.clone() })?;
        Ok(ticket)
    }

    /// Queues a request that nobody answers behind those queued before.
    pub fn notify(&self, request: DataRequest) -> Result<(), NetError> {
        let frame = self.frame(Kind::Notice, 0, request, Bytes::new())?;
        self.queue.send(frame).map_err(|_| NetError::Closed { address: self.address.clone() })
    }

    fn frame(&self, kind: Kind, tag: u64, mut request: DataRequest, payload: Bytes) -> Result<Outgoing, NetError> {
        if !self.introduced.swap(true, Ordering::Relaxed) {
            request.cluster = self.cluster.clone();
        }
        let frame = Outgoing::new(kind, tag, &request, payload);
        let bytes = frame.bytes();
        if frame.payload.len() > MAX_PAYLOAD || frame.head.len() > MAX_HEADER {
            return Err(NetError::TooLarge { bytes });
        }
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) > self.max_queued_bytes {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(NetError::TooBusy { address: self.address.clone() });
        }
        Ok(frame)
    }
}

/// The background half of a connection.
struct Task {
    address: Arc<str>,
    waiting: Arc<Waiting>,
    queued_bytes: Arc<AtomicUsize>,
    close: Arc<Notify>,
    connect_timeout: Duration,
}

impl Task {
    async fn run(self, queue: mpsc::UnboundedReceiver<Outgoing>) {
        let error = match self.connect().await {
            Err(source) => NetError::Connect { address: self.address.clone(), source: Arc::new(source) },
            Ok(stream) => self.serve(stream, queue).await,
        };
        self.waiting.end(error);
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let connecting = TcpStream::connect(&*self.address);
        let stream =
            tokio::time::timeout(self.connect_timeout, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
        tune(&stream)?;
        Ok(stream)
    }

    async fn serve(&self, stream: TcpStream, queue: mpsc::UnboundedReceiver<Outgoing>) -> NetError {
        let (source, sink) = stream.into_split();
        let closed = NetError::Closed { address: self.address.clone() };
        tokio::select! {
            _ = write_frames(sink, queue, |bytes| { self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed); }) => closed,
            error = self.read(FrameReader::new(source, Side::Asking)) => match error {
                ReadError::Frame(source) => NetError::Frame { address: self.address.clone(), source },
                ReadError::End | ReadError::Io(_) => closed,
            },
            () = self.close.notified() => closed,
        }
    }

    async fn read(&self, mut frames: FrameReader<impl tokio::io::AsyncRead + Unpin>) -> ReadError {
        loop {
            let next = async {
                let prefix = frames.next_prefix().await?;
                frames.body(&prefix).await
            };
            let frame = match next.await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            let Ok(reply) = DataReply::decode(frame.header) else {
                return ReadError::Frame(FrameError::Header);
            };
            // A call that was given up is no longer in the table: its late answer is dropped.
            if let Some(call) = self.waiting.state.lock().calls.remove(&frame.tag) {
                let _ = call.send(Ok((reply, frame.payload)));
            }
        }
    }
}
