//! A master in memory with the rules that chunk servers rely on: leases, configurations, orders.

use gfs_proto::v1::{self, cluster_server::Cluster, cluster_server::ClusterServer};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// Ids of the tests' clusters begin so; they end with the port of their master.
const CLUSTER: u128 = 0x0123_4567_89ab_cdef_0123_4567_89ab_0000;
const LEASE: Duration = Duration::from_millis(1600);

#[derive(Default)]
struct ServerState {
    uuid: Vec<u8>,
    address: String,
    incarnation: u64,
    lease_until: Option<Instant>,
    /// Version that it says it has.
    fences: u64,
    orders: Option<mpsc::Sender<Result<v1::MasterOrder, Status>>>,
}

#[derive(Clone, Default)]
struct Chunk {
    configuration: v1::Configuration,
    inode: u64,
    goal: u32,
}

#[derive(Default)]
struct State {
    servers: BTreeMap<u32, ServerState>,
    chunks: BTreeMap<u64, Chunk>,
    problems: BTreeSet<(u32, u64)>,
    deleted: BTreeSet<(u32, u64)>,
    shrunk: BTreeSet<(u64, u32)>,
    reported: BTreeMap<(u32, u64), v1::ReplicaSummary>,
    silent: bool,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct FakeMaster {
    state: Arc<Mutex<State>>,
    pub address: String,
    /// Its id.
    pub cluster: u128,
}

impl FakeMaster {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let cluster = CLUSTER | u128::from(address.port());
        let master = Self { state: Arc::default(), address: address.to_string(), cluster };
        let service = ClusterServer::new(master.clone());
        let serving = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        master
    }

    pub fn is_leased(&self, server: u32) -> bool {
        let state = self.state.lock();
        state.servers.get(&server).and_then(|known| known.lease_until).is_some_and(|until| until > Instant::now())
    }

    pub fn fences(&self, server: u32) -> u64 {
        self.state.lock().servers.get(&server).map_or(0, |known| known.fences)
    }

    /// Stops to answer heartbeats, or answers them again.
    pub fn set_silent(&self, silent: bool) {
        self.state.lock().silent = silent;
    }

    pub fn configuration(&self, handle: u64) -> v1::Configuration {
        self.state.lock().chunks[&handle].configuration.clone()
    }

    pub fn deleted(&self, server: u32, handle: u64) -> bool {
        self.state.lock().deleted.contains(&(server, handle))
    }

    pub fn shrunk(&self, handle: u64, epoch: u32) -> bool {
        self.state.lock().shrunk.contains(&(handle, epoch))
    }

    pub fn has_problem(&self, server: u32, handle: u64) -> bool {
        self.state.lock().problems.contains(&(server, handle))
    }

    pub fn reported(&self, server: u32, handle: u64) -> Option<v1::ReplicaSummary> {
        self.state.lock().reported.get(&(server, handle)).cloned()
    }

    /// Makes a chunk; its servers learn of it.
    pub fn allocate(&self, handle: u64, members: &[u32]) {
        let configuration =
            v1::Configuration { epoch: 1, primary: members[0], members: members.to_vec(), syncing: Vec::new() };
        let chunk = Chunk { configuration, inode: 0, goal: members.len() as u32 };
        self.state.lock().chunks.insert(handle, chunk);
        self.announce(handle);
    }

    /// The chunk becomes part of a file.
    pub fn attach(&self, handle: u64, inode: u64) {
        if let Some(chunk) = self.state.lock().chunks.get_mut(&handle) {
            chunk.inode = inode;
        }
    }

    pub fn install(&self, handle: u64, change: impl FnOnce(&mut v1::Configuration)) {
        let mut state = self.state.lock();
        let chunk = state.chunks.get_mut(&handle).expect("a chunk");
        change(&mut chunk.configuration);
        chunk.configuration.epoch += 1;
        drop(state);
        self.announce(handle);
    }

    pub fn remove(&self, handle: u64) {
        self.state.lock().chunks.remove(&handle);
    }

    pub fn order(&self, server: u32, order: v1::MasterOrder) {
        let sender = self.state.lock().servers.get(&server).and_then(|known| known.orders.clone());
        sender.expect("the server attends").try_send(Ok(order)).expect("room for an order");
    }

    fn announce(&self, handle: u64) {
        let state = self.state.lock();
        let assignment = state.assignment(handle).expect("a chunk");
        for server in state.servers.values() {
            if let Some(orders) = &server.orders {
                let order = v1::MasterOrder { assign: vec![assignment.clone()], ..v1::MasterOrder::default() };
                let _ = orders.try_send(Ok(order));
            }
        }
    }

    /// What a real master does all the time: replaces a dead primary, recruits who is there and not a member.
    pub fn mend(&self, handle: u64) {
        self.fail_over(handle);
        let known = self.configuration(handle);
        let servers: Vec<u32> = self.state.lock().servers.keys().copied().collect();
        let named = |server: &u32| known.members.contains(server) || known.syncing.contains(server);
        if let Some(new) = servers.into_iter().find(|server| self.is_leased(*server) && !named(server)) {
            self.install(handle, |known| known.syncing.push(new));
        }
        let gone: Vec<u32> = known.syncing.into_iter().filter(|server| !self.is_leased(*server)).collect();
        if !gone.is_empty() {
            self.install(handle, |known| known.syncing.retain(|server| !gone.contains(server)));
        }
    }

    /// The primary's lease is over: another member leads.
    pub fn fail_over(&self, handle: u64) -> bool {
        let old = self.configuration(handle).primary;
        if self.is_leased(old) {
            return false;
        }
        let known = self.configuration(handle);
        let Some(next) = known.members.iter().copied().find(|member| *member != old && self.is_leased(*member)) else {
            return false;
        };
        self.install(handle, |known| {
            known.members.retain(|member| *member != old);
            known.primary = next;
        });
        true
    }
}

impl State {
    fn assignment(&self, handle: u64) -> Option<v1::Assignment> {
        let chunk = self.chunks.get(&handle)?;
        let servers =
            self.servers.iter().map(|(server, known)| v1::Server { server: *server, address: known.address.clone() });
        Some(v1::Assignment {
            handle,
            configuration: Some(chunk.configuration.clone()),
            servers: servers.collect(),
            inode: chunk.inode,
            index: 0,
            goal: chunk.goal,
        })
    }

    fn may_drop(&self, by: u32, server: u32, handle: u64) -> bool {
        let leased = self.servers.get(&server).and_then(|known| known.lease_until);
        by == server || self.problems.contains(&(server, handle)) || leased.is_none_or(|until| until <= Instant::now())
    }

    fn reconfigure(&mut self, from: &v1::ReconfigureRequest) -> u32 {
        let Some(chunk) = self.chunks.get(&from.handle) else { return 0 };
        let mut next = chunk.configuration.clone();
        let current = self.servers.get(&from.server).is_some_and(|known| known.incarnation == from.incarnation);
        if next.epoch != from.epoch || !current {
            return 0;
        }
        let members = from.failed.iter().filter(|server| next.members.contains(server));
        if members.clone().any(|server| !self.may_drop(from.server, *server, from.handle)) {
            return 1;
        }
        next.members.retain(|server| !from.failed.contains(server));
        next.syncing.retain(|server| !from.failed.contains(server) && !from.ready.contains(server));
        next.members.extend(from.ready.iter().filter(|server| chunk.configuration.syncing.contains(server)));
        next.members.sort_unstable();
        if next.members.is_empty() {
            return 1;
        }
        if !next.members.contains(&next.primary) {
            next.primary = next.members[0];
        }
        next.epoch += 1;
        for server in &from.failed {
            self.problems.remove(&(*server, from.handle));
        }
        if let Some(chunk) = self.chunks.get_mut(&from.handle) {
            chunk.configuration = next;
        }
        0
    }
}

#[tonic::async_trait]
impl Cluster for FakeMaster {
    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterAnswer>, Status> {
        let from = request.into_inner();
        let mut state = self.state.lock();
        let known = state.servers.iter().find(|(_, known)| known.uuid == from.uuid).map(|(server, _)| *server);
        let server = known.unwrap_or(state.servers.len() as u32 + 1);
        let entry = state.servers.entry(server).or_default();
        if entry.orders.is_some() && entry.incarnation != from.incarnation {
            return Err(Status::already_exists("a chunk server with this identity is online"));
        }
        entry.uuid = from.uuid.to_vec();
        entry.address = from.address;
        entry.incarnation = from.incarnation;
        Ok(Response::new(v1::RegisterAnswer {
            server,
            cluster: self.cluster.to_be_bytes().to_vec().into(),
            generation: 0,
            chunk_size: super::CHUNK,
            lease_ms: LEASE.as_millis() as u32,
            heartbeat_ms: 200,
        }))
    }

    type AttendStream = Pin<Box<dyn Stream<Item = Result<v1::MasterOrder, Status>> + Send>>;

    async fn attend(&self, request: Request<Streaming<v1::Heartbeat>>) -> Result<Response<Self::AttendStream>, Status> {
        let mut beats = request.into_inner();
        let (orders, answers) = mpsc::channel(256);
        let state = self.state.clone();
        tokio::spawn(async move {
            let mut server = 0;
            while let Some(Ok(beat)) = beats.next().await {
                let mut state = state.lock();
                server = beat.server;
                for problem in &beat.problems {
                    state.problems.insert((beat.server, problem.handle));
                }
                if state.silent {
                    continue;
                }
                let Some(known) = state.servers.get_mut(&beat.server) else { break };
                known.orders = Some(orders.clone());
                known.fences = beat.fences;
                known.lease_until = Some(Instant::now() + LEASE);
                let _ = orders.try_send(Ok(v1::MasterOrder {
                    heartbeat: beat.number,
                    lease: true,
                    ..v1::MasterOrder::default()
                }));
            }
            if let Some(known) = state.lock().servers.get_mut(&server) {
                known.orders = None;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn report(
        &self,
        request: Request<Streaming<v1::ReplicaReport>>,
    ) -> Result<Response<v1::ReportAnswer>, Status> {
        let mut pieces = request.into_inner();
        while let Some(piece) = pieces.message().await? {
            let mut state = self.state.lock();
            state.deleted.extend(piece.deleted.iter().map(|handle| (piece.server, *handle)));
            state.shrunk.extend(piece.shrunk.iter().map(|done| (done.handle, done.epoch)));
            state.reported.extend(piece.replicas.into_iter().map(|held| ((piece.server, held.handle), held)));
        }
        Ok(Response::new(v1::ReportAnswer::default()))
    }

    async fn configurations(
        &self,
        request: Request<v1::ConfigurationsRequest>,
    ) -> Result<Response<v1::ConfigurationsAnswer>, Status> {
        let state = self.state.lock();
        let mut answer = v1::ConfigurationsAnswer::default();
        for handle in request.into_inner().handles {
            match state.assignment(handle) {
                Some(assignment) => answer.assignments.push(assignment),
                None => answer.gone.push(handle),
            }
        }
        Ok(Response::new(answer))
    }

    async fn reconfigure(
        &self,
        request: Request<v1::ReconfigureRequest>,
    ) -> Result<Response<v1::ConfigurationsAnswer>, Status> {
        let from = request.into_inner();
        let mut state = self.state.lock();
        let refusal = state.reconfigure(&from);
        let assignments = state.assignment(from.handle).into_iter().collect();
        drop(state);
        if refusal == 0 && self.state.lock().chunks.contains_key(&from.handle) {
            self.announce(from.handle);
        }
        Ok(Response::new(v1::ConfigurationsAnswer { assignments, gone: Vec::new(), refusal }))
    }
}
