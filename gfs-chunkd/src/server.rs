//! Builds a chunk server and runs it: disks, registration, heartbeats, data port, HTTP port.

use crate::background::{deletions, scrub, tick};
use crate::config::ChunkdConfig;
use crate::control::heartbeat::{Heartbeats, Notice};
use crate::control::lease::Moment;
use crate::control::master::{MasterClient, MasterError};
use crate::control::{Shared, orders};
use crate::driver::{Driver, Loans, Parts};
use crate::service::data::DataService;
use crate::service::lend;
use crate::store::{Alarm, Store, StoreError, StoreOptions};
use gfs_core::ids::{ClusterId, ServerId};
use gfs_daemon::http::{self, Health};
use gfs_daemon::life::{self, BindError};
use gfs_daemon::metrics::Metrics;
use gfs_local::Ledger;
use gfs_net::{DataPool, PoolOptions, ServeLimits};
use gfs_proto::{PROTOCOL, v1};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::Code;

/// Notices of the heartbeat thread that may wait.
const NOTICES: usize = 4096;
/// Between two tries to register for the first time.
const REGISTER_AGAIN: Duration = Duration::from_millis(300);
/// A dead process with our identity is forgotten by the master within this.
const TWIN_GRACE: Duration = Duration::from_secs(3);
/// Tasks have so long to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Why a chunk server can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The master refuses this server.
    #[error("the master refuses this chunk server: {0}")]
    Refused(String),
    /// An address of a master.
    #[error(transparent)]
    Master(#[from] MasterError),
    /// The master answered with something that can't be.
    #[error("the master's answer to the registration can't be understood: {0}")]
    BadAnswer(&'static str),
    /// The system.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// A future behind a pointer: whoever awaits it need not be compiled together with all that it does, as for a plain `async fn`.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A chunk server that is registered and ready to serve.
pub struct Server {
    /// `host:port` of the data port on this machine. What is advertised to others may be another one.
    pub address: String,
    /// The HTTP port.
    pub http: SocketAddr,
    driver: Arc<Driver>,
    listener: TcpListener,
    http_listener: TcpListener,
    cluster: ClusterId,
    heartbeats: Heartbeats,
    notices: mpsc::Receiver<Notice>,
    health: Health,
    metrics: Metrics,
    pace: scrub::Pace,
    stop: watch::Sender<bool>,
    /// Which replicas are lent, and the file that says that some may be.
    ledger: Option<(Arc<Ledger>, PathBuf)>,
}

impl Server {
    /// Opens the disks, takes the ports and registers; waits for a master as long as it takes.
    ///
    /// # Errors
    /// Ports, disks, and a master that refuses for good.
    pub fn start(config: &ChunkdConfig) -> Boxed<'_, Result<Self, ServerError>> {
        let dirs = config.dirs();
        let open_files = open_files(dirs.len());
        Self::start_with(config, StoreOptions { dirs, open_files, ..StoreOptions::default() })
    }

    /// The same with other options for the store.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_with(config: &ChunkdConfig, mut options: StoreOptions) -> Boxed<'_, Result<Self, ServerError>> {
        Box::pin(async move {
            let listener = life::bind(&config.listen, "--listen").await?;
            let http_listener = life::bind(&config.http, "--http").await?;
            let http = http_listener.local_addr().map_err(io("asking for the HTTP port"))?;
            let local = listener.local_addr().map_err(io("asking for the data port"))?;
            if config.reserve_bytes > 0 {
                options.reserve = Some(config.reserve_bytes);
            }
            if !config.boot_id.is_empty() {
                options.boot_id = Some(config.boot_id.clone());
            }
            let loans: Arc<Loans> = Arc::default();
            let lent = loans.clone();
            options.alarm = Alarm(Some(Arc::new(move || lent.take_all_back())));
            let opening = tokio::task::spawn_blocking(move || Store::open(options));
            let store =
                Arc::new(opening.await.map_err(|error| io("opening the store")(std::io::Error::other(error)))??);
            let registration = registration(config, local, http, &store)?;
            let master = MasterClient::new(config.masters());
            let answer = register(&master, &registration).await?;
            let cluster = cluster_of(&answer)?;
            adopt(&store, cluster, &registration, &answer).await?;
            let me = u16::try_from(answer.server).map_err(|_| ServerError::BadAnswer("server number"))?;
            tracing::info!(server = me, %cluster, advertised = registration.address, "registered");
            let shared = Arc::new(Shared::default());
            shared.set_usage(&store.usage());
            let mark = config.dirs().into_iter().next().unwrap_or_default().join(LENDING);
            let ledger = open_ledger(&registration, &mark, Duration::from_millis(answer.lease_ms.into())).await?;
            if let Some((ledger, server)) = &ledger {
                loans.open(ledger.clone(), registration.incarnation, *server);
                shared.lease.show_in(ledger.clone());
            }
            let driver = Driver::new(Parts {
                me: ServerId(me),
                incarnation: registration.incarnation,
                store,
                pool: DataPool::new(PoolOptions { cluster, ..PoolOptions::default() }),
                master,
                shared: shared.clone(),
                loans,
                parallel_fills: config.parallel_fills,
            });
            let (sender, notices) = mpsc::channel(NOTICES);
            let (stop, shutdown) = watch::channel(false);
            let address = reachable(local);
            let registration = v1::RegisterRequest { cluster: answer.cluster.clone(), ..registration };
            let heartbeats = Heartbeats {
                masters: config.masters(),
                registration,
                registered: answer,
                shared,
                notices: sender,
                shutdown,
            };
            let (health, metrics) = (Health::new(), Metrics::new());
            watch_driver(&metrics, &driver);
            let pace = scrub::Pace {
                bytes_per_second: config.scrub_mb_per_s.saturating_mul(1_000_000),
                period: Duration::from_secs(config.scrub_period_s),
                dir: config.dirs().into_iter().next().unwrap_or_default(),
            };
            Ok(Self {
                address,
                http,
                driver,
                listener,
                http_listener,
                cluster,
                heartbeats,
                notices,
                health,
                metrics,
                pace,
                stop,
                ledger: ledger.map(|(ledger, _)| (ledger, mark)),
            })
        })
    }

    /// The replicas, for tests that look inside.
    pub fn driver(&self) -> Arc<Driver> {
        self.driver.clone()
    }

    /// Serves until `shutdown` turns true, then ends in order.
    ///
    /// # Errors
    /// A thread that can't be started, or a disk that can't be flushed.
    pub fn run(self, shutdown: watch::Receiver<bool>) -> Boxed<'static, Result<(), ServerError>> {
        Box::pin(async move {
            let Self {
                driver,
                listener,
                http_listener,
                cluster,
                heartbeats,
                notices,
                health,
                metrics,
                pace,
                stop,
                ledger,
                ..
            } = self;
            let stopping = stop.subscribe();
            let heartbeat =
                heartbeats.spawn().map_err(|source| ServerError::Io { operation: "starting a thread", source })?;
            let mut tasks = JoinSet::new();
            let handler = Arc::new(DataService::new(driver.clone()));
            tasks.spawn(gfs_net::serve(listener, cluster, handler, ServeLimits::default(), stopping.clone()));
            let counts = watch_scrub(&metrics);
            tasks.spawn(lend::run(driver.clone(), cluster, stopping.clone()));
            tasks.spawn(scrub::run(driver.clone(), pace, counts, stopping.clone()));
            tasks.spawn(serve_http(http_listener, health.clone(), metrics, stopping.clone()));
            tasks.spawn(take_notices(driver.clone(), notices));
            tasks.spawn(driver.reports.clone().run(driver.clone(), stopping.clone()));
            tasks.spawn(tick::run(driver.clone(), stopping.clone()));
            tasks.spawn(deletions::run(driver.clone(), stopping.clone()));
            let found = driver.clone();
            let apply = Box::new(move |answer| found.found(answer));
            let (master, shared, me) = (driver.master.clone(), driver.shared.clone(), driver.me);
            tasks.spawn(driver.lookup.clone().run(master, shared, me, stopping, apply));
            driver.reports.full();
            health.set_serving();
            life::wait(shutdown).await;
            health.set_failing("stopping");
            stop.send_replace(true);
            if let Some((ledger, mark)) = ledger {
                ledger.end();
                // One that stays costs the next start a lease.
                let _ = std::fs::remove_file(mark);
            }
            let ended = tokio::time::timeout(STOP_LIMIT, async { while tasks.join_next().await.is_some() {} }).await;
            if ended.is_err() {
                tracing::warn!("some requests did not end in time");
                tasks.abort_all();
            }
            let closing = tokio::task::spawn_blocking(move || {
                if heartbeat.join().is_err() {
                    tracing::error!("the heartbeat thread ended badly");
                }
                driver.store.close()
            });
            match closing.await {
                Ok(closed) => Ok(closed?),
                Err(error) => {
                    Err(ServerError::Io { operation: "closing the store", source: std::io::Error::other(error) })
                }
            }
        })
    }
}

async fn serve_http(listener: TcpListener, health: Health, metrics: Metrics, stopping: watch::Receiver<bool>) {
    if let Err(error) = http::serve(listener, health, metrics, stopping).await {
        tracing::error!(%error, "the HTTP port ended");
    }
}

async fn take_notices(driver: Arc<Driver>, mut notices: mpsc::Receiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        match notice {
            Notice::Registered => driver.reports.full(),
            Notice::Order(order) => orders::carry_out(&driver, order),
        }
    }
}

fn watch_driver(metrics: &Metrics, driver: &Arc<Driver>) {
    let held = driver.clone();
    metrics.gauge_fn("gfs_chunkd_replicas", "Replicas on this server", &[], move || held.count() as f64);
    let leased = driver.clone();
    let has_lease = move || f64::from(u8::from(leased.shared.lease.term().is_some()));
    metrics.gauge_fn("gfs_chunkd_lease", "1 while the membership lease is held", &[], has_lease);
}

fn watch_scrub(metrics: &Metrics) -> Arc<scrub::Counts> {
    let counts = Arc::new(scrub::Counts::default());
    let read = |of: fn(&scrub::Counts) -> &AtomicU64| {
        let counts = counts.clone();
        move || of(&counts).load(Ordering::Relaxed) as f64
    };
    metrics.gauge_fn("gfs_chunkd_scrubbed_bytes", "Bytes verified by scrubbing", &[], read(|counts| &counts.bytes));
    let damaged = read(|counts| &counts.damaged);
    metrics.gauge_fn("gfs_chunkd_scrub_damaged", "Replicas that scrubbing found damaged", &[], damaged);
    metrics.gauge_fn("gfs_chunkd_scrub_passes", "Scrubs of everything that ended", &[], read(|counts| &counts.passes));
    counts
}

/// Registers for the first time: waits for a master, gives up when one refuses.
async fn register(master: &MasterClient, request: &v1::RegisterRequest) -> Result<v1::RegisterAnswer, ServerError> {
    let began = Moment::now();
    let mut told = false;
    loop {
        match master.register(request).await {
            Ok(answer) => return Ok(answer),
            Err(MasterError::Refused { code: Code::AlreadyExists, .. }) if Moment::now() < began.plus(TWIN_GRACE) => {}
            Err(MasterError::Refused { reason, .. }) => return Err(ServerError::Refused(reason)),
            Err(error @ MasterError::Address(_)) => return Err(error.into()),
            Err(error) if !std::mem::replace(&mut told, true) => tracing::warn!(%error, "waiting for a master"),
            Err(error) => tracing::debug!(%error, "waiting for a master"),
        }
        tokio::time::sleep(REGISTER_AGAIN).await;
    }
}

fn cluster_of(answer: &v1::RegisterAnswer) -> Result<ClusterId, ServerError> {
    let bytes: [u8; 16] = answer.cluster[..].try_into().map_err(|_| ServerError::BadAnswer("cluster id"))?;
    Ok(ClusterId(u128::from_be_bytes(bytes)))
}

/// A file of this name in the first directory says that a process lends, or was killed when it did.
const LENDING: &str = "lending";

/// The page in which loans are shown, with the id that it goes by. Those of a process that was killed end before this one serves.
async fn open_ledger(
    registration: &v1::RegisterRequest,
    mark: &Path,
    lease: Duration,
) -> Result<Option<(Arc<Ledger>, u128)>, ServerError> {
    let uuid: [u8; 16] = registration.uuid[..].try_into().map_err(|_| ServerError::BadAnswer("uuid"))?;
    let server = u128::from_be_bytes(uuid);
    let path = gfs_local::ledger::path_of(server);
    // Somebody has removed the page of a process that was killed: its loans are over with its lease.
    if mark.exists() && !path.exists() {
        tokio::time::sleep(lease).await;
    }
    let made = Ledger::create(&path, registration.incarnation)
        .and_then(|ledger| std::fs::File::create(mark).map(|_| Arc::new(ledger)));
    match made {
        Ok(ledger) => Ok(Some((ledger, server))),
        Err(error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "clients of this machine cannot read replicas in place: they ask as all others do");
            // Loans of an earlier process that could not be ended are over with its lease.
            tokio::time::sleep(lease).await;
            Ok(None)
        }
    }
}

async fn adopt(
    store: &Arc<Store>,
    cluster: ClusterId,
    registration: &v1::RegisterRequest,
    answer: &v1::RegisterAnswer,
) -> Result<(), ServerError> {
    let uuid: [u8; 16] = registration.uuid[..].try_into().map_err(|_| ServerError::BadAnswer("uuid"))?;
    let (store, chunk_size) = (store.clone(), answer.chunk_size);
    let work = tokio::task::spawn_blocking(move || store.adopt(cluster, u128::from_be_bytes(uuid), chunk_size));
    let adopted = work.await;
    Ok(adopted
        .map_err(|error| ServerError::Io { operation: "adopting disks", source: std::io::Error::other(error) })??)
}

fn registration(
    config: &ChunkdConfig,
    local: SocketAddr,
    http: SocketAddr,
    store: &Store,
) -> Result<v1::RegisterRequest, ServerError> {
    let identity = store.identity();
    let uuid = match &identity {
        Some(identity) => identity.server.to_be_bytes(),
        None => random()?,
    };
    let address = if config.advertise.is_empty() { reachable(local) } else { config.advertise.clone() };
    let clean = !store.list().iter().any(|held| held.suspect);
    Ok(v1::RegisterRequest {
        protocol: PROTOCOL,
        cluster: identity.map(|known| known.cluster.0.to_be_bytes().to_vec()).unwrap_or_default().into(),
        uuid: uuid.to_vec().into(),
        address,
        http: reachable(http),
        zone: config.zone.clone(),
        host: if config.host.is_empty() { host_name() } else { config.host.clone() },
        boot_id: store.boot()?,
        incarnation: u64::from_be_bytes(random()?).max(1),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        clean,
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The name by which others find what listens at an address here.
fn reachable(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("{}:{}", host_name(), address.port()),
        false => address.to_string(),
    }
}

fn io(operation: &'static str) -> impl FnOnce(std::io::Error) -> ServerError {
    move |source| ServerError::Io { operation, source }
}

fn random<const N: usize>() -> Result<[u8; N], ServerError> {
    let mut bytes = [0; N];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(io("reading /dev/urandom")).map(|()| bytes)
}

/// Chunk files that are kept open at most, of all directories together: to open one again costs two reads of the disk when it was not in
/// use for long.
const MOST_OPEN: u64 = 16_384;

/// How many chunk files of each of `dirs` directories may be kept open: half of what the process may open, which is raised as far as allowed.
fn open_files(dirs: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where that is not allowed there is less to keep open.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    ((allowed / 2).min(MOST_OPEN) as usize / dirs.max(1)).max(64)
}
