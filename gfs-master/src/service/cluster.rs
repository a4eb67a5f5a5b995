//! `Cluster`: what chunk servers say and are told.
//!
//! This room owns the translation and the identity checks of a chunk server's calls. Leases and configurations are the
//! leader's to decide.

use super::{Answers, status};
use crate::leader::Leader;
use crate::leader::reconfigure::{Ask, Decision};
use crate::leader::servers::AdmitError;
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, Sequence, ServerId};
use gfs_core::meta::command::{Command, CommandReply, ServerIdentity};
use gfs_core::meta::state::State;
use gfs_core::plan::succession::Claim;
use gfs_proto::{PROTOCOL, v1};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Orders that may wait to be sent to one server.
const ORDERS: usize = 256;
/// The first heartbeat must come within this.
const FIRST_BEAT: Duration = Duration::from_secs(5);
/// A server that is silent for so long is cut off; it comes back with a new stream.
const SILENCE: Duration = Duration::from_secs(10);
/// Longest text in a registration.
const MAX_TEXT: usize = 256;
/// Handles in one request or answer.
const MAX_HANDLES: usize = 100_000;
/// A report that stands still for so long is given up.
const REPORT_PAUSE: Duration = Duration::from_secs(60);
/// Chunks compared with a report under one lock.
const COMPARED: usize = 10_000;

/// The service.
pub struct ClusterService {
    leader: Arc<Leader>,
    stopping: watch::Receiver<bool>,
}

impl ClusterService {
    /// Serves until `stopping` turns true.
    pub fn new(leader: Arc<Leader>, stopping: watch::Receiver<bool>) -> Self {
        Self { leader, stopping }
    }

    /// The caller, if it is the process that registered last.
    fn caller(&self, server: u32, incarnation: u64) -> Result<ServerId, Status> {
        let server = server_id(server)?;
        if self.leader.servers.is_registered(server, incarnation) {
            Ok(server)
        } else {
            Err(unknown(&AdmitError::Unknown))
        }
    }

    /// What a chunk server is told must be on stable storage first: it acts on it.
    async fn durable(&self) -> Result<(), Status> {
        self.leader.consensus.durable().await.map_err(|error| status(&error.into()))
    }
}

fn server_id(wire: u32) -> Result<ServerId, Status> {
    let id = u16::try_from(wire).map_err(|_| Status::invalid_argument("server number out of range"))?;
    Ok(ServerId(id))
}

fn unknown(error: &AdmitError) -> Status {
    Status::failed_precondition(error.to_string())
}

fn identity(from: v1::RegisterRequest) -> Result<ServerIdentity, Status> {
    let uuid: [u8; 16] = from.uuid[..].try_into().map_err(|_| Status::invalid_argument("uuid must be 16 bytes"))?;
    if uuid == [0; 16] || from.address.is_empty() {
        return Err(Status::invalid_argument("uuid and address must be set"));
    }
    let texts = [&from.address, &from.http, &from.zone, &from.host, &from.version];
    if texts.iter().any(|text| text.len() > MAX_TEXT) {
        return Err(Status::invalid_argument(format!("a text is longer than {MAX_TEXT} bytes")));
    }
    Ok(ServerIdentity {
        uuid: u128::from_be_bytes(uuid),
        address: from.address,
        http: from.http,
        zone: from.zone,
        host: from.host,
    })
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for ClusterService {
    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterAnswer>, Status> {
        let from = request.into_inner();
        let cluster = self.leader.cluster();
        if from.protocol != PROTOCOL {
            let text = format!("this master speaks protocol {PROTOCOL}, the chunk server {}", from.protocol);
            return Err(Status::failed_precondition(text));
        }
        if !from.cluster.is_empty() && from.cluster[..] != cluster.0.to_be_bytes() {
            let text = format!("this master serves cluster {cluster}; the chunk server's data is of another");
            return Err(Status::permission_denied(text));
        }
        let (incarnation, version) = (from.incarnation, from.version.clone());
        let identity = identity(from)?;
        let known = {
            let state = self.leader.machine.state();
            state.servers().iter().find(|record| record.identity.uuid == identity.uuid)
        };
        if let Some(record) = &known {
            let admitted = self.leader.servers.admit(record.server, incarnation);
            admitted.map_err(|error| Status::already_exists(error.to_string()))?;
        }
        let server = match known.filter(|record| record.identity == identity) {
            // Nothing new to commit.
            Some(record) => record.server,
            None => match self.leader.consensus.propose(Command::RegisterServer(identity)).await {
                Ok(CommandReply::Server(server)) => server,
                Ok(CommandReply::Refused(refusal)) => return Err(Status::resource_exhausted(refusal.to_string())),
                Ok(_) => return Err(Status::internal("unexpected answer to a registration")),
                Err(error) => return Err(status(&error.into())),
            },
        };
        let baseline = self.leader.machine.state().clone();
        let times = self.leader.servers.times();
        let answer = v1::RegisterAnswer {
            server: server.0.into(),
            cluster: cluster.0.to_be_bytes().to_vec().into(),
            generation: baseline.generation().0.into(),
            chunk_size: baseline.chunk_size(),
            lease_ms: times.lease_ms as u32,
            heartbeat_ms: times.heartbeat_ms as u32,
        };
        self.leader.servers.register(server, incarnation, &version, Some(baseline));
        tracing::info!(%server, incarnation, "a chunk server registered");
        Ok(Response::new(answer))
    }

    type AttendStream = Answers<v1::MasterOrder>;

    async fn attend(&self, request: Request<Streaming<v1::Heartbeat>>) -> Result<Response<Self::AttendStream>, Status> {
        let mut beats = request.into_inner();
        let first = tokio::time::timeout(FIRST_BEAT, beats.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no heartbeat came"))??;
        let first = first.ok_or_else(|| Status::invalid_argument("the stream ended before a heartbeat"))?;
        let server = server_id(first.server)?;
        let (direct, answers) = mpsc::channel(ORDERS);
        let (orders, queued) = mpsc::channel(ORDERS);
        let attendance = self.leader.servers.attend(server, first.incarnation, orders);
        let attendance = attendance.map_err(|error| unknown(&error))?;
        let (leader, stopping) = (self.leader.clone(), self.stopping.clone());
        tokio::spawn(async move {
            let listen = listen(&leader, server, first, beats, &direct);
            tokio::select! {
                () = listen => (),
                () = forward(&leader, queued, &direct) => (),
                () = gfs_daemon::life::wait(attendance.replaced) => (),
                () = gfs_daemon::life::wait(stopping) => (),
            }
            leader.servers.leave(server, attendance.connection);
            leader.work.notify_one();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn report(
        &self,
        request: Request<Streaming<v1::ReplicaReport>>,
    ) -> Result<Response<v1::ReportAnswer>, Status> {
        let mut pieces = request.into_inner();
        let mut report = Report::default();
        let mut caller = None;
        loop {
            let piece = tokio::time::timeout(REPORT_PAUSE, pieces.message()).await;
            let Some(piece) = piece.map_err(|_| Status::deadline_exceeded("the report stands still"))?? else { break };
            let server = self.caller(piece.server, piece.incarnation)?;
            caller = Some((server, piece.incarnation));
            report.take(&self.leader, server, piece).await?;
        }
        if let (Some((server, incarnation)), true) = (caller, report.full) {
            let baseline = self.leader.servers.baseline(server, incarnation);
            if let Some(baseline) = baseline {
                compare(&self.leader, server, &report.held, &baseline).await;
            }
            // Only now is it known what it has lost.
            self.leader.servers.reported(server, incarnation);
            self.leader.work.notify_one();
        }
        self.durable().await?;
        Ok(Response::new(report.answer))
    }

    async fn configurations(
        &self,
        request: Request<v1::ConfigurationsRequest>,
    ) -> Result<Response<v1::ConfigurationsAnswer>, Status> {
        let from = request.into_inner();
        if from.handles.len() > MAX_HANDLES {
            return Err(Status::invalid_argument(format!("more than {MAX_HANDLES} handles in one request")));
        }
        self.leader.consensus.linearizable().await.map_err(|error| status(&error.into()))?;
        let mut answer = v1::ConfigurationsAnswer::default();
        for handle in from.handles {
            let info = self.leader.machine.state().chunk(ChunkHandle(handle));
            match info {
                Some(info) => answer.assignments.push(self.leader.assignment(&info)),
                None => answer.gone.push(handle),
            }
        }
        self.durable().await?;
        Ok(Response::new(answer))
    }

    async fn reconfigure(
        &self,
        request: Request<v1::ReconfigureRequest>,
    ) -> Result<Response<v1::ConfigurationsAnswer>, Status> {
        let from = request.into_inner();
        let by = self.caller(from.server, from.incarnation)?;
        let servers = |list: Vec<u32>| list.into_iter().map(server_id).collect::<Result<Vec<_>, _>>();
        let handle = ChunkHandle(from.handle);
        let ask = Ask {
            by,
            handle,
            epoch: Epoch(from.epoch),
            failed: servers(from.failed)?,
            ready: servers(from.ready)?,
            silent: servers(from.silent)?,
        };
        let decision = self.leader.reconfigure(&ask).await.map_err(|error| status(&error))?;
        let mut answer = v1::ConfigurationsAnswer::default();
        match decision {
            Decision::InForce(info) => answer.assignments.push(self.leader.assignment(&info)),
            Decision::NotNow(info) => {
                answer.assignments.push(self.leader.assignment(&info));
                answer.refusal = 1;
            }
            Decision::Gone => answer.gone.push(handle.0),
        }
        self.durable().await?;
        Ok(Response::new(answer))
    }
}

type Orders = mpsc::Sender<Result<v1::MasterOrder, Status>>;

/// Answers heartbeats until the stream ends, the server falls silent or another process takes its place.
async fn listen(
    leader: &Leader,
    server: ServerId,
    first: v1::Heartbeat,
    mut beats: Streaming<v1::Heartbeat>,
    orders: &Orders,
) {
    let mut beat = first;
    loop {
        // Confirmed after the heartbeat arrived, so that no other leader can have dropped this member before.
        let leads = leader.consensus.linearizable().await.is_ok();
        let lease = match leader.servers.heartbeat(&beat, server, leads) {
            Ok(lease) => lease,
            Err(error) => {
                let _ = orders.try_send(Err(unknown(&error)));
                return;
            }
        };
        if !beat.problems.is_empty() {
            leader.work.notify_one();
        }
        // After the lease was noted: whoever ends a session now waits for this server.
        let fences = leader.newer_fences(beat.fences);
        let order = v1::MasterOrder { heartbeat: beat.number, lease, fences, ..v1::MasterOrder::default() };
        if !matches!(tokio::time::timeout(SILENCE, orders.send(Ok(order))).await, Ok(Ok(()))) {
            return;
        }
        match tokio::time::timeout(SILENCE, beats.message()).await {
            Ok(Ok(Some(next))) if next.server == u32::from(server.0) => beat = next,
            _ => return,
        }
    }
}

/// Passes orders on once what they come from is on stable storage: what a chunk server acts on must not be taken back by a
/// power cut of the masters. Leases never wait for that.
async fn forward(leader: &Leader, mut orders: mpsc::Receiver<Result<v1::MasterOrder, Status>>, direct: &Orders) {
    while let Some(order) = orders.recv().await {
        if leader.consensus.durable().await.is_err() || direct.send(order).await.is_err() {
            return;
        }
    }
}

/// A report as far as it has come.
#[derive(Default)]
struct Report {
    full: bool,
    held: BTreeSet<ChunkHandle>,
    answer: v1::ReportAnswer,
}

impl Report {
    async fn take(&mut self, leader: &Arc<Leader>, server: ServerId, piece: v1::ReplicaReport) -> Result<(), Status> {
        self.full |= piece.full;
        for replica in &piece.replicas {
            self.replica(leader, server, replica);
        }
        for done in &piece.shrunk {
            let (inode, handle, epoch) = (InodeId(done.inode), ChunkHandle(done.handle), Epoch(done.epoch));
            let finished = leader.finish_shrink(inode, handle, epoch, done.stored.map(Into::into)).await;
            finished.map_err(|error| status(&error))?;
        }
        let done: Vec<_> = {
            let state = leader.machine.state();
            let handles = piece.deleted.iter().map(|handle| ChunkHandle(*handle));
            handles.filter(|handle| state.tombstone(server, *handle).is_some()).map(|handle| (handle, server)).collect()
        };
        if !done.is_empty() {
            let forgotten = leader.consensus.propose(Command::ForgetTombstones { done }).await;
            forgotten.map_err(|error| status(&error.into()))?;
        }
        Ok(())
    }

    fn replica(&mut self, leader: &Leader, server: ServerId, replica: &v1::ReplicaSummary) {
        let (handle, epoch) = (ChunkHandle(replica.handle), Epoch(replica.epoch));
        self.held.insert(handle);
        let state = leader.machine.state();
        if let Some(tombstone) = state.tombstone(server, handle).filter(|tombstone| tombstone.epoch >= epoch) {
            if leader.is_settled() && self.answer.delete.len() < MAX_HANDLES {
                self.answer.delete.push(v1::Delete { handle: handle.0, epoch: tombstone.epoch.0 });
            }
            return;
        }
        match state.chunk(handle) {
            Some(info) if info.configuration.members.contains(&server) => {
                if replica.suspect {
                    leader.servers.claim(server, handle, claim(replica));
                }
                leader.saw_length(&state, &info, replica.length);
            }
            Some(info) if info.configuration.syncing.contains(&server) => (),
            Some(_) => leader.servers.stray(server, handle, epoch),
            None => {
                if self.answer.unknown.len() < MAX_HANDLES {
                    self.answer.unknown.push(handle.0);
                }
                leader.servers.stray(server, handle, epoch);
            }
        }
    }
}

fn claim(replica: &v1::ReplicaSummary) -> Claim {
    Claim {
        flushed: Sequence(replica.flushed),
        committed: Sequence(replica.committed),
        prepared: Sequence(replica.prepared),
    }
}

/// Finds replicas that a server must have and has not: members of chunks that were attached when it registered. What is
/// attached was written on every member.
async fn compare(leader: &Leader, server: ServerId, held: &BTreeSet<ChunkHandle>, baseline: &State) {
    let mut from = Some(ChunkHandle(0));
    while let Some(start) = from {
        let (mut seen, mut last) = (0, None);
        for info in baseline.chunks_from(start).take(COMPARED) {
            seen += 1;
            last = Some(info.handle);
            let must = info.reserved.is_none() && info.configuration.members.contains(&server);
            if must && !held.contains(&info.handle) {
                let now = leader.machine.state().chunk(info.handle);
                if now.is_some_and(|now| now.configuration.members.contains(&server)) {
                    tracing::warn!(%server, handle = %info.handle, "a replica is lost");
                    leader.servers.problem(server, info.handle);
                }
            }
        }
        from = last.filter(|_| seen == COMPARED).map(|last| ChunkHandle(last.0.saturating_add(1)));
        tokio::task::yield_now().await;
    }
}
