//! The running master: starts everything in order, serves, stops in order.
//!
//! This room owns the life of the process's parts. It is a library so that tests can run a master in a process of their
//! own making.

use crate::background;
use crate::config::MasterConfig;
use crate::consensus::raft::{RaftConsensus, StartError};
use crate::data_dir::{DataDir, DataDirError};
use crate::leader::Leader;
use crate::service::admin::AdminService;
use crate::service::cluster::ClusterService;
use crate::service::session::MetadataService;
use gfs_daemon::http::Health;
use gfs_daemon::life;
use gfs_daemon::metrics::Metrics;
use gfs_net::control::MAX_CONTROL_MESSAGE;
use gfs_proto::v1::admin_server::AdminServer;
use gfs_proto::v1::cluster_server::ClusterServer;
use gfs_proto::v1::metadata_server::MetadataServer;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;

/// What is under way has so long to finish when the process stops.
const FINISH: Duration = Duration::from_secs(2);
/// Each part of the process has so long to end then.
const GRACE: Duration = Duration::from_secs(5);

/// Why the master could not start, or had to stop. One line each.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Recovery.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A port.
    #[error(transparent)]
    Bind(#[from] life::BindError),
    /// The operating system.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The gRPC server.
    #[error("serving: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The log failed: nothing more can be promised.
    #[error("the log has failed; see the log for the reason")]
    LogFailed,
}

/// A future behind a pointer: whoever awaits it need not be compiled together with all that it does, as for a plain `async fn`.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A master that serves.
pub struct Server {
    /// Its gRPC port.
    pub address: SocketAddr,
    /// Its HTTP port.
    pub http: SocketAddr,
    /// What it knows.
    pub leader: Arc<Leader>,
    raft: Arc<RaftConsensus>,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    duties: JoinSet<()>,
    health: Health,
}

impl Server {
    /// Takes the ports, recovers, serves.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn start(config: &MasterConfig) -> Boxed<'_, Result<Self, ServerError>> {
        Box::pin(async move {
            let listener = life::bind(&config.listen, "--listen").await?;
            let http_listener = life::bind(&config.http, "--http").await?;
            let local = |listener: &TcpListener| {
                listener.local_addr().map_err(|source| ServerError::Io { operation: "asking for the port", source })
            };
            let (address, http) = (local(&listener)?, local(&http_listener)?);
            let (stop, stopping) = watch::channel(false);
            let (health, metrics) = (Health::new(), Metrics::new());
            let mut duties = JoinSet::new();
            let shown = gfs_daemon::http::serve(http_listener, health.clone(), metrics.clone(), stopping.clone());
            duties.spawn(async move {
                if let Err(error) = shown.await {
                    tracing::error!(%error, "the HTTP port is gone");
                }
            });
            let dir = open_dir(config).await?;
            tracing::info!(cluster = %dir.cluster(), data = %dir.path().display(), fresh = dir.is_fresh(), "recovering");
            let fresh = dir.is_fresh();
            let raft = Arc::new(RaftConsensus::start(dir, config.checkpoints()).await?);
            if !fresh {
                raft.skip_lost_inodes().await?;
            }
            let leader = Leader::new(raft.clone(), raft.machine().clone(), config.leader());
            register_metrics(&metrics, &leader);
            duties.spawn(background_duties(leader.clone(), raft.clone(), stopping.clone()));
            let serving = tokio::spawn(serve(leader.clone(), listener, stopping));
            health.set_serving();
            Ok(Self { address, http, leader, raft, stop, serving, duties, health })
        })
    }

    /// Serves until `shutdown` turns true, then stops admitting, finishes what is under way and returns.
    ///
    /// # Errors
    /// When the log or the port failed meanwhile.
    pub fn run(mut self, shutdown: watch::Receiver<bool>) -> Boxed<'static, Result<(), ServerError>> {
        Box::pin(async move {
            let failed = life::wait(self.raft.stopped());
            let outcome = tokio::select! {
                () = life::wait(shutdown) => Ok(()),
                () = failed => Err(ServerError::LogFailed),
                ended = &mut self.serving => match ended {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(error.into()),
                    Err(error) => Err(ServerError::Io { operation: "serving", source: std::io::Error::other(error) }),
                },
            };
            self.stop().await;
            outcome
        })
    }

    /// Stops.
    pub fn stop(mut self) -> Boxed<'static, ()> {
        Box::pin(async move {
            self.health.set_failing("stopping");
            self.stop.send_replace(true);
            if !ends(&mut self.serving, FINISH).await {
                // What still waits waits for something far off: a lock, a chunk server.
                self.leader.give_up();
                if !ends(&mut self.serving, GRACE).await {
                    tracing::warn!("connections are cut off");
                    self.serving.abort();
                }
            }
            self.leader.give_up();
            let duties = async { while self.duties.join_next().await.is_some() {} };
            if tokio::time::timeout(GRACE, duties).await.is_err() {
                tracing::warn!("background work is cut off");
            }
            if tokio::time::timeout(GRACE, self.raft.shutdown()).await.is_err() {
                tracing::warn!("the log did not end in time");
            }
            drop(self.leader);
            // Calls that were given up let go of the log: whoever starts here next finds it free.
            let free = async {
                while Arc::strong_count(&self.raft) > 1 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            if tokio::time::timeout(GRACE, free).await.is_err() {
                tracing::debug!("something still holds the log");
            }
        })
    }
}

/// Whether the gRPC server has ended, waiting for it at most so long.
async fn ends(serving: &mut tokio::task::JoinHandle<Result<(), tonic::transport::Error>>, limit: Duration) -> bool {
    serving.is_finished() || tokio::time::timeout(limit, serving).await.is_ok()
}

async fn open_dir(config: &MasterConfig) -> Result<DataDir, ServerError> {
    let (data, format) = (config.data.clone(), config.format());
    let opened = tokio::task::spawn_blocking(move || DataDir::open(&data, format, None)).await;
    Ok(opened
        .map_err(|error| ServerError::Io { operation: "opening the data", source: std::io::Error::other(error) })??)
}

async fn background_duties(leader: Arc<Leader>, raft: Arc<RaftConsensus>, stopping: watch::Receiver<bool>) {
    let mut duties = background::start(leader, raft, &stopping);
    while duties.join_next().await.is_some() {}
}

async fn serve(
    leader: Arc<Leader>,
    listener: TcpListener,
    stopping: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let metadata = MetadataServer::new(MetadataService::new(leader.clone(), stopping.clone()))
        .max_decoding_message_size(MAX_CONTROL_MESSAGE)
        .max_encoding_message_size(MAX_CONTROL_MESSAGE);
    let cluster = ClusterServer::new(ClusterService::new(leader.clone(), stopping.clone()))
        .max_decoding_message_size(MAX_CONTROL_MESSAGE)
        .max_encoding_message_size(MAX_CONTROL_MESSAGE);
    let admin = AdminServer::new(AdminService::new(leader)).max_encoding_message_size(MAX_CONTROL_MESSAGE);
    // The builder's option does not reach connections that are accepted here: without it answers wait 40 ms for an ACK.
    let connections = TcpListenerStream::new(listener)
        .map(|accepted| accepted.and_then(|connection| connection.set_nodelay(true).map(|()| connection)));
    tonic::transport::Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(3)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .max_concurrent_streams(1024)
        .add_service(metadata)
        .add_service(cluster)
        .add_service(admin)
        .serve_with_incoming_shutdown(connections, life::wait(stopping))
        .await
}

fn register_metrics(metrics: &Metrics, leader: &Arc<Leader>) {
    type Read = fn(&Leader) -> f64;
    let gauges: [(&'static str, &'static str, Read); 8] = [
        ("gfs_master_log_index", "Index of the last applied entry.", |leader| {
            leader.consensus.metrics().log_index as f64
        }),
        ("gfs_master_checkpoint_index", "Index of the newest checkpoint.", |leader| {
            leader.consensus.metrics().checkpoint_index as f64
        }),
        ("gfs_master_log_bytes", "Bytes of the log on disk.", |leader| leader.consensus.metrics().log_bytes as f64),
        ("gfs_master_inodes", "Inodes.", |leader| leader.machine.state().counts().namespace.inodes as f64),
        ("gfs_master_chunks", "Chunks.", |leader| leader.machine.state().counts().chunks as f64),
        ("gfs_master_chunks_under_goal", "Chunks with too few members.", |leader| {
            leader.machine.state().counts().under_goal as f64
        }),
        ("gfs_master_sessions", "Client sessions.", |leader| leader.sessions.len() as f64),
        ("gfs_master_tombstones", "Replicas to be deleted.", |leader| {
            leader.machine.state().counts().tombstones as f64
        }),
    ];
    for (name, help, read) in gauges {
        let leader = Arc::downgrade(leader);
        metrics.gauge_fn(name, help, &[], move || leader.upgrade().map_or(0.0, |leader| read(&leader)));
    }
}
