//! Calls to the master, whichever of the given ones leads.

use gfs_core::ids::ChunkHandle;
use gfs_core::ids::ServerId;
use gfs_core::replica::WantedChange;
use gfs_net::NetError;
use gfs_net::control::MAX_CONTROL_MESSAGE;
use gfs_proto::v1::{self, cluster_client::ClusterClient};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Limit for finding out that nobody answers at an address.
const CONNECT: Duration = Duration::from_millis(800);
/// Limit of a call at one master.
const CALL: Duration = Duration::from_secs(3);

/// A call to the master that failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MasterError {
    /// No master could serve it now; the last reason.
    #[error("no master answers ({address}): {reason}")]
    Unavailable {
        /// The one asked last.
        address: String,
        /// What it, or the system, said.
        reason: String,
    },
    /// The master refused for good.
    #[error("{reason}")]
    Refused {
        /// The class of the refusal.
        code: Code,
        /// What it said.
        reason: String,
    },
    /// An address that can't be used.
    #[error(transparent)]
    Address(#[from] NetError),
}

/// A client of the cluster service that tries the masters in turn. Cheap to clone.
#[derive(Clone)]
pub struct MasterClient {
    inner: Arc<Inner>,
}

struct Inner {
    addresses: Vec<String>,
    current: Mutex<usize>,
    channels: Mutex<HashMap<usize, Channel>>,
}

impl MasterClient {
    /// A client for these masters. Channels belong to the runtime that makes the first call.
    pub fn new(addresses: Vec<String>) -> Self {
        let inner = Inner { addresses, current: Mutex::new(0), channels: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The master that is asked first.
    pub fn address(&self) -> String {
        self.inner.addresses[*self.inner.current.lock()].clone()
    }

    /// Asks the next one first from now on.
    pub fn rotate(&self) {
        let mut current = self.inner.current.lock();
        *current = (*current + 1) % self.inner.addresses.len();
    }

    /// A client of the master that is asked first.
    ///
    /// # Errors
    /// `Address`.
    pub fn client(&self) -> Result<ClusterClient<Channel>, MasterError> {
        let index = *self.inner.current.lock();
        let mut channels = self.inner.channels.lock();
        let channel = match channels.get(&index) {
            Some(channel) => channel.clone(),
            None => {
                let channel = gfs_net::control::channel(&self.inner.addresses[index], CONNECT)?;
                channels.entry(index).or_insert(channel).clone()
            }
        };
        drop(channels);
        let client = ClusterClient::new(channel);
        Ok(client.max_decoding_message_size(MAX_CONTROL_MESSAGE).max_encoding_message_size(MAX_CONTROL_MESSAGE))
    }

    /// Makes a call at the masters in turn, each once.
    ///
    /// # Errors
    /// `Unavailable` when none can serve it now; `Refused` as soon as one refuses for another reason.
    pub async fn call<T, F, C>(&self, make: F) -> Result<T, MasterError>
    where
        F: Fn(ClusterClient<Channel>) -> C,
        C: Future<Output = Result<Response<T>, Status>>,
    {
        let mut last = None;
        for _ in 0..self.inner.addresses.len() {
            let answer = tokio::time::timeout(CALL, make(self.client()?)).await;
            let status = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            if !is_elsewhere(&status) {
                return Err(MasterError::Refused { code: status.code(), reason: status.message().to_owned() });
            }
            last = Some(MasterError::Unavailable { address: self.address(), reason: reason(&status) });
            self.rotate();
        }
        Err(last.unwrap_or_else(|| MasterError::Unavailable {
            address: String::new(),
            reason: "no master is named".into(),
        }))
    }

    /// Says who this server is.
    ///
    /// # Errors
    /// As `call`.
    pub async fn register(&self, request: &v1::RegisterRequest) -> Result<v1::RegisterAnswer, MasterError> {
        self.call(|mut client| {
            let request = request.clone();
            async move { client.register(request).await }
        })
        .await
    }

    /// Asks which configurations are in force.
    ///
    /// # Errors
    /// As `call`.
    pub async fn configurations(
        &self,
        server: ServerId,
        handles: &[ChunkHandle],
    ) -> Result<v1::ConfigurationsAnswer, MasterError> {
        let handles: Vec<u64> = handles.iter().map(|handle| handle.0).collect();
        let request = v1::ConfigurationsRequest { server: server.0.into(), handles };
        self.call(|mut client| {
            let request = request.clone();
            async move { client.configurations(request).await }
        })
        .await
    }

    /// Asks for another configuration.
    ///
    /// # Errors
    /// As `call`.
    pub async fn reconfigure(
        &self,
        server: ServerId,
        incarnation: u64,
        handle: ChunkHandle,
        wanted: &WantedChange,
        silent: &[ServerId],
    ) -> Result<v1::ConfigurationsAnswer, MasterError> {
        let numbers = |list: &[ServerId]| list.iter().map(|id| u32::from(id.0)).collect();
        let request = v1::ReconfigureRequest {
            server: server.0.into(),
            handle: handle.0,
            epoch: wanted.epoch.0,
            failed: numbers(&wanted.failed),
            ready: numbers(&wanted.ready),
            incarnation,
            silent: numbers(silent),
        };
        self.call(|mut client| {
            let request = request.clone();
            async move { client.reconfigure(request).await }
        })
        .await
    }
}

/// Whether another master, or the same one a little later, may do what this one can't.
pub fn is_elsewhere(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Aborted
            | Code::Internal
            | Code::ResourceExhausted
    )
}

/// The innermost reason of a status: what a person can act on.
fn reason(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if std::ptr::eq(cause, status) { status.message().to_owned() } else { cause.to_string() }
}
