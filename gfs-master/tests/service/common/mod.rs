//! A master in this process, and hand-driven clients and chunk servers that speak to it over gRPC.

use gfs_core::ids::OperationId;
use gfs_core::meta::request::{ClientCommand, Credentials, NodeKind, Query, Request};
use gfs_log::LogError;
use gfs_master::config::MasterConfig;
use gfs_master::consensus::log_store::LogStoreError;
use gfs_master::consensus::raft::StartError;
use gfs_master::server::{Server, ServerError};
use gfs_proto::v1::{self, client_message::Body as In, server_message::Body as Out};
use gfs_proto::{PROTOCOL, convert};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Nothing that is waited for takes longer.
pub const LIMIT: Duration = Duration::from_secs(15);
pub const CHUNK_SIZE: u64 = 1 << 20;

pub fn config(dir: &Path) -> MasterConfig {
    MasterConfig {
        data: dir.to_owned(),
        listen: "127.0.0.1:0".into(),
        http: "127.0.0.1:0".into(),
        chunk_size: CHUNK_SIZE,
        settle_ms: 300,
        replace_after_ms: 500,
        ..MasterConfig::default()
    }
}

/// A master that lets nobody cache anything.
pub async fn start_without_grants(dir: &Path) -> Server {
    start_as(&MasterConfig { grant_ms: 0, ..config(dir) }).await
}

pub async fn start(dir: &Path) -> Server {
    start_as(&config(dir)).await
}

/// Starts a master, once the one before has let go of its log: the tasks of its raft do so a moment after the shutdown.
async fn start_as(config: &MasterConfig) -> Server {
    until("the start of a master", async || match Server::start(config).await {
        Err(ServerError::Start(StartError::Log(LogStoreError::Log(LogError::Locked { .. })))) => None,
        started => Some(started.unwrap()),
    })
    .await
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {LIMIT:?}"),
    }
}

/// Waits until `check` answers something.
pub async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(value) = check().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

pub async fn channel(server: &Server) -> Channel {
    gfs_net::control::connect(&server.address.to_string(), LIMIT).await.unwrap()
}

pub struct Client {
    pub session: u64,
    pub operation: u64,
    pub welcome: v1::Welcome,
    tag: u64,
    out: mpsc::Sender<v1::ClientMessage>,
    answers: Streaming<v1::ServerMessage>,
    /// Messages that were not what was waited for.
    pub seen: Vec<v1::ServerMessage>,
}

impl Client {
    pub async fn open(server: &Server, nonce: u64) -> Self {
        let hello =
            v1::Hello { protocol: PROTOCOL, nonce, description: format!("client {nonce}"), ..Default::default() };
        Self::hello(server, hello).await.unwrap_or_else(|failure| panic!("{failure:?}"))
    }

    pub async fn resume(self, server: &Server, reclaim: Vec<v1::OpenFile>) -> Self {
        let (session, operation) = (self.session, self.operation);
        drop(self);
        let hello = v1::Hello { protocol: PROTOCOL, session, nonce: 999, reclaim, ..Default::default() };
        let mut resumed = Self::hello(server, hello).await.unwrap_or_else(|failure| panic!("{failure:?}"));
        resumed.operation = operation;
        resumed
    }

    pub async fn hello(server: &Server, hello: v1::Hello) -> Result<Self, v1::Failure> {
        let (out, messages) = mpsc::channel(64);
        let mut client = v1::metadata_client::MetadataClient::new(channel(server).await);
        out.send(v1::ClientMessage { tag: 1, body: Some(In::Hello(hello)) }).await.unwrap();
        let mut answers = client.session(ReceiverStream::new(messages)).await.unwrap().into_inner();
        let first = within("welcome", answers.message()).await.unwrap().unwrap();
        match first.body {
            Some(Out::Welcome(welcome)) => {
                Ok(Self { session: welcome.session, operation: 0, welcome, tag: 1, out, answers, seen: Vec::new() })
            }
            Some(Out::Failure(failure)) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// Sends without waiting; answers the tag.
    pub async fn send(&mut self, body: In) -> u64 {
        self.tag += 1;
        self.out.send(v1::ClientMessage { tag: self.tag, body: Some(body) }).await.unwrap();
        self.tag
    }

    pub async fn receive(&mut self, tag: u64) -> Out {
        if let Some(at) = self.seen.iter().position(|message| message.tag == tag) {
            return self.seen.remove(at).body.unwrap();
        }
        loop {
            let message = within("an answer", self.answers.message()).await.unwrap().expect("the stream ended");
            if message.tag == tag {
                return message.body.unwrap();
            }
            self.seen.push(message);
        }
    }

    pub async fn call(&mut self, body: In) -> Out {
        let tag = self.send(body).await;
        self.receive(tag).await
    }

    pub fn mutation(&mut self, request: Request) -> v1::Mutation {
        self.operation += 1;
        self.numbered(self.operation, request)
    }

    pub fn numbered(&self, operation: u64, request: Request) -> v1::Mutation {
        convert::mutation_to_wire(&ClientCommand {
            id: OperationId { session: gfs_core::ids::SessionId(self.session), operation },
            confirmed: 0,
            credentials: Credentials::default(),
            request,
        })
    }

    pub async fn mutate(&mut self, request: Request) -> v1::Reply {
        let mutation = self.mutation(request);
        reply(self.call(In::Mutation(mutation)).await)
    }

    pub async fn create(&mut self, name: &str) -> v1::Attributes {
        let reply = self.mutate(create(name)).await;
        assert_eq!(reply.refusal, 0, "{reply:?}");
        reply.attributes.unwrap()
    }

    pub async fn query(&mut self, query: Query) -> v1::QueryAnswer {
        let request = v1::QueryRequest { credentials: Some(Default::default()), kind: Some((&query).into()) };
        match self.call(In::Query(request)).await {
            Out::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for an invalidation and answers it if `answer` says so.
    pub async fn invalidation(&mut self, answer: bool) -> v1::Invalidate {
        let invalidate = match self.receive(0).await {
            Out::Invalidate(invalidate) => invalidate,
            other => panic!("{other:?}"),
        };
        if answer {
            self.send(In::Invalidated(v1::Invalidated { id: invalidate.id })).await;
        }
        invalidate
    }
}

pub fn reply(body: Out) -> v1::Reply {
    match body {
        Out::Reply(reply) => reply,
        other => panic!("{other:?}"),
    }
}

pub fn create(name: &str) -> Request {
    Request::Create {
        parent: gfs_core::ids::ROOT,
        name: name.as_bytes().to_vec(),
        kind: NodeKind::File,
        mode: 0o644,
        umask: 0,
        exclusive: true,
        hold: false,
    }
}

/// A chunk server that only says what it is told to.
pub struct Chunkd {
    pub server: u32,
    pub incarnation: u64,
    pub cluster: v1::cluster_client::ClusterClient<Channel>,
    number: u64,
    beats: mpsc::Sender<v1::Heartbeat>,
    orders: Streaming<v1::MasterOrder>,
    /// The last that came.
    pub fences: v1::Fences,
}

pub fn registration(uuid: u8, incarnation: u64) -> v1::RegisterRequest {
    v1::RegisterRequest {
        protocol: PROTOCOL,
        uuid: vec![uuid; 16].into(),
        address: format!("127.0.0.1:{}", 9000 + u32::from(uuid)),
        host: format!("host-{uuid}"),
        incarnation,
        clean: true,
        ..Default::default()
    }
}

impl Chunkd {
    pub async fn join(server: &Server, uuid: u8, incarnation: u64) -> Self {
        Self::join_with(server, uuid, incarnation, &[]).await
    }

    /// Joins and reports these replicas.
    pub async fn join_with(server: &Server, uuid: u8, incarnation: u64, handles: &[u64]) -> Self {
        let replica = |handle: &u64| v1::ReplicaSummary { handle: *handle, epoch: 1, ..Default::default() };
        Self::join_holding(server, uuid, incarnation, handles.iter().map(replica).collect()).await
    }

    /// Joins and reports these replicas, as they are said to be.
    pub async fn join_holding(server: &Server, uuid: u8, incarnation: u64, replicas: Vec<v1::ReplicaSummary>) -> Self {
        let mut cluster = v1::cluster_client::ClusterClient::new(channel(server).await);
        let registered = cluster.register(registration(uuid, incarnation)).await.unwrap().into_inner();
        let (beats, messages) = mpsc::channel(16);
        let first = beat(registered.server, incarnation, 1, Vec::new());
        beats.send(first).await.unwrap();
        let orders = cluster.attend(ReceiverStream::new(messages)).await.unwrap().into_inner();
        let mut this = Self {
            server: registered.server,
            incarnation,
            cluster,
            number: 1,
            beats,
            orders,
            fences: v1::Fences::default(),
        };
        assert!(within("a lease", this.next_order()).await.unwrap().lease);
        this.report(replicas).await;
        this
    }

    pub async fn next_order(&mut self) -> Option<v1::MasterOrder> {
        let order = self.orders.message().await.ok().flatten();
        if let Some(fences) = order.as_ref().and_then(|order| order.fences.clone()) {
            self.fences = fences;
        }
        order
    }

    /// Beats once and answers whether that renewed the lease, with the orders that came before the answer.
    pub async fn beat(&mut self, problems: Vec<v1::ReplicaProblem>) -> (bool, Vec<v1::MasterOrder>) {
        self.number += 1;
        let mut others = Vec::new();
        let beat = beat(self.server, self.incarnation, self.number, problems);
        self.beats.send(v1::Heartbeat { fences: self.fences.version, ..beat }).await.unwrap();
        loop {
            let order = within("an answer to a heartbeat", self.next_order()).await.expect("the stream ended");
            if order.heartbeat == self.number {
                return (order.lease, others);
            }
            others.push(order);
        }
    }

    /// Beats until an order comes that `wanted` takes.
    pub async fn order<T>(&mut self, what: &str, mut wanted: impl FnMut(&v1::MasterOrder) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while tokio::time::Instant::now() < deadline {
            for order in self.beat(Vec::new()).await.1 {
                if let Some(found) = wanted(&order) {
                    return found;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no order: {what}");
    }

    pub async fn report(&mut self, replicas: Vec<v1::ReplicaSummary>) -> v1::ReportAnswer {
        let piece = v1::ReplicaReport { replicas, full: true, ..self.piece() };
        self.tell(piece).await
    }

    pub fn piece(&self) -> v1::ReplicaReport {
        v1::ReplicaReport { server: self.server, incarnation: self.incarnation, ..Default::default() }
    }

    pub async fn tell(&mut self, piece: v1::ReplicaReport) -> v1::ReportAnswer {
        self.cluster.report(tokio_stream::iter([piece])).await.unwrap().into_inner()
    }

    pub async fn reconfigure(&mut self, ask: v1::ReconfigureRequest) -> v1::ConfigurationsAnswer {
        let ask = v1::ReconfigureRequest { server: self.server, incarnation: self.incarnation, ..ask };
        self.cluster.reconfigure(ask).await.unwrap().into_inner()
    }
}

fn beat(server: u32, incarnation: u64, number: u64, problems: Vec<v1::ReplicaProblem>) -> v1::Heartbeat {
    let disk = v1::DiskUsage { path: "/d".into(), total: 1 << 40, free: 1 << 39, ..Default::default() };
    v1::Heartbeat { server, incarnation, number, disks: vec![disk], load: 0, problems, fences: 0, unanswered: 0 }
}

/// Beats for servers in the background, so that they stay online.
pub async fn beat_all(servers: &mut [&mut Chunkd]) {
    for server in servers.iter_mut() {
        server.beat(Vec::new()).await;
    }
}
