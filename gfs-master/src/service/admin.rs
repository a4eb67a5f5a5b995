//! `Admin`: what operators ask and want.
//!
//! This room owns the translation of their calls. Walks over all of the state run on a frozen copy, in a thread of their
//! own.

use super::{check, status};
use crate::leader::Leader;
use crate::leader::servers::{Liveness, ServerNow};
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_core::meta::command::{Command, CommandRefusal, CommandReply, ServerIntent};
use gfs_core::meta::state::State;
use gfs_proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service.
pub struct AdminService(Arc<Leader>);

impl AdminService {
    /// Serves what the leader knows.
    pub fn new(leader: Arc<Leader>) -> Self {
        Self(leader)
    }

    async fn command(&self, command: Command) -> Result<Response<v1::Empty>, Status> {
        match self.0.consensus.propose(command).await {
            Ok(CommandReply::Done) => Ok(Response::new(v1::Empty {})),
            Ok(CommandReply::Refused(CommandRefusal::UnknownServer)) => {
                Err(Status::not_found(CommandRefusal::UnknownServer.to_string()))
            }
            Ok(CommandReply::Refused(refusal)) => Err(Status::failed_precondition(refusal.to_string())),
            Ok(_) => Err(Status::internal("unexpected answer to a command")),
            Err(error) => Err(status(&error.into())),
        }
    }
}

fn server_id(wire: u32) -> Result<ServerId, Status> {
    Ok(ServerId(u16::try_from(wire).map_err(|_| Status::invalid_argument("server number out of range"))?))
}

#[tonic::async_trait]
impl v1::admin_server::Admin for AdminService {
    async fn status(&self, _request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusAnswer>, Status> {
        let leader = self.0.clone();
        let frozen = leader.machine.state().clone();
        let now = leader.servers.view();
        let walk = {
            let (frozen, now) = (frozen.clone(), now.clone());
            tokio::task::spawn_blocking(move || (frozen.memory_bytes(), lost(&frozen, &now), frozen.orphans().count()))
        };
        let (memory, lost, orphans) = walk.await.map_err(|error| Status::internal(error.to_string()))?;
        let counts = frozen.counts();
        let metrics = leader.consensus.metrics();
        let full_redundancy_ms = leader.pace.lock().remaining_ms(leader.clock.now_ms(), counts.under_goal);
        Ok(Response::new(v1::StatusAnswer {
            cluster: frozen.cluster().0.to_be_bytes().to_vec().into(),
            generation: frozen.generation().0.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: leader.clock.now_ms(),
            files: counts.namespace.files,
            directories: counts.namespace.directories,
            inodes: counts.namespace.inodes,
            chunks: counts.chunks - counts.reserved,
            under_goal: counts.under_goal,
            lost,
            tombstones: counts.tombstones,
            orphans: orphans as u64,
            chunk_size: frozen.chunk_size(),
            replicas: frozen.default_replicas().into(),
            servers: servers(&frozen, now),
            sessions: sessions(&leader, &frozen),
            log_index: metrics.log_index,
            checkpoint_index: metrics.checkpoint_index,
            memory,
            bytes: counts.namespace.logical_bytes,
            full_redundancy_ms: full_redundancy_ms.unwrap_or_default(),
        }))
    }

    async fn check(&self, _request: Request<v1::CheckRequest>) -> Result<Response<v1::CheckAnswer>, Status> {
        let leader = self.0.clone();
        let frozen = leader.machine.state().clone();
        let work = tokio::task::spawn_blocking(move || check::check(&leader, &frozen));
        work.await.map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }

    async fn list_chunks(
        &self,
        request: Request<v1::ListChunksRequest>,
    ) -> Result<Response<v1::ListChunksAnswer>, Status> {
        let v1::ListChunksRequest { from, limit } = request.into_inner();
        Ok(Response::new(check::list(&self.0.machine.state(), from, limit)))
    }

    async fn set_intent(&self, request: Request<v1::SetIntentRequest>) -> Result<Response<v1::Empty>, Status> {
        let from = request.into_inner();
        let intent = if from.drain { ServerIntent::Draining } else { ServerIntent::Active };
        let done = self.command(Command::SetServerIntent { server: server_id(from.server)?, intent }).await;
        self.0.work.notify_one();
        done
    }

    async fn remove_server(&self, request: Request<v1::RemoveServerRequest>) -> Result<Response<v1::Empty>, Status> {
        let server = server_id(request.into_inner().server)?;
        if self.0.servers.liveness(server) == Liveness::Online {
            return Err(Status::failed_precondition("the chunk server is online: stop it first"));
        }
        let done = self.command(Command::RemoveServer { server }).await?;
        self.0.servers.remove(server);
        Ok(done)
    }

    async fn set_log_level(&self, request: Request<v1::SetLogLevelRequest>) -> Result<Response<v1::Empty>, Status> {
        let level = request.into_inner().level;
        gfs_daemon::log::set_level(&level).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(v1::Empty {}))
    }
}

/// Attached chunks without a member on a server that is there.
fn lost(state: &State, now: &[ServerNow]) -> u64 {
    let alive: Vec<ServerId> =
        now.iter().filter(|server| server.liveness != Liveness::Offline).map(|server| server.server).collect();
    let gone = |info: &gfs_core::meta::chunks::ChunkInfo| {
        info.reserved.is_none() && info.configuration.members.iter().all(|member| !alive.contains(member))
    };
    if alive.len() == now.len() {
        return 0;
    }
    state.chunks_from(ChunkHandle(0)).filter(gone).count() as u64
}

fn servers(state: &State, now: Vec<ServerNow>) -> Vec<v1::ServerStatus> {
    let mut soft: BTreeMap<ServerId, ServerNow> = now.into_iter().map(|server| (server.server, server)).collect();
    let status = |record: gfs_core::meta::servers::ServerRecord| {
        let now = soft.remove(&record.server);
        let liveness = now.as_ref().map_or(Liveness::Offline, |now| now.liveness);
        let shown = match (liveness, record.intent) {
            (Liveness::Online, ServerIntent::Draining) => "draining",
            (Liveness::Online, ServerIntent::Active) => "online",
            (Liveness::Suspect, _) => "suspect",
            (Liveness::Offline, _) => "offline",
        };
        let mut status = v1::ServerStatus {
            server: record.server.0.into(),
            address: record.identity.address,
            http: record.identity.http,
            zone: record.identity.zone,
            host: record.identity.host,
            state: shown.into(),
            ..v1::ServerStatus::default()
        };
        if let Some(now) = now {
            status.total = now.total;
            status.free = now.free;
            status.chunks = now.chunks;
            status.load = now.load;
            status.last_heard_ms = now.silent_ms.unwrap_or_default();
            status.disks = now.disks;
            status.version = now.version;
        }
        status
    };
    state.servers().iter().map(status).collect()
}

fn sessions(leader: &Leader, state: &State) -> Vec<v1::SessionStatus> {
    let view = leader.sessions.view();
    let opens = leader.opens.lock();
    let status = |soft: crate::leader::sessions::SessionView| v1::SessionStatus {
        session: soft.session.0,
        description: soft.description,
        open_files: opens.table.count(soft.session) as u64,
        locks: state.locks().files_of(soft.session),
        connected: soft.connected,
    };
    view.into_iter().map(status).collect()
}
