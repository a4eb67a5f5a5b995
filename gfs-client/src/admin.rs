//! What operators ask the master: thin calls of the `Admin` service.

use crate::client::Client;
use crate::data::Piece;
use crate::error::ClientError;
use crate::limit::CallContext;
use bytes::Bytes;
use gfs_core::ids::{InodeId, ServerId};
use gfs_core::meta::request::ChunkLocation;
use gfs_net::control;
use gfs_proto::convert::servers_from_wire;
use gfs_proto::v1::data_reply::Status as DataStatus;
use gfs_proto::v1::{self, admin_client::AdminClient};
use std::future::Future;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Limit for a connection to one master.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Pause before all masters are asked again.
const PAUSE: Duration = Duration::from_millis(300);

/// Why an operator's call was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AdminError {
    /// The master refuses, and says why.
    #[error("{0}")]
    Refused(String),
    /// It could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A page of the chunk table.
#[derive(Clone, Debug)]
pub struct ChunkPage {
    /// Each chunk with the file that it is part of.
    pub chunks: Vec<(InodeId, ChunkLocation)>,
    /// Where to go on.
    pub next: Option<u64>,
}

/// What a member says of its copy of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Copy {
    /// It was read whole: the hash, and the place in the chunk's history up to which it goes.
    Whole {
        /// State of the hash over all of the chunk.
        digest: Bytes,
        /// What was committed.
        sequence: u64,
    },
    /// It could not be read, and why. The server has reported that, and is given a new copy.
    Damaged(String),
    /// The chunk is being written or reconfigured: to be asked again.
    Moved,
}

/// Operators' calls of one cluster.
#[derive(Clone, Copy)]
pub struct Admin<'a> {
    client: &'a Client,
}

impl Client {
    /// Operators' calls.
    pub fn admin(&self) -> Admin<'_> {
        Admin { client: self }
    }
}

impl Admin<'_> {
    /// How the cluster is.
    ///
    /// # Errors
    /// `Unavailable` when no master answers within the limit.
    pub async fn status(&self, context: &CallContext) -> Result<v1::StatusAnswer, AdminError> {
        self.call(context, async |mut admin: AdminClient<Channel>| admin.status(v1::StatusRequest {}).await).await
    }

    /// Begins (`drain`) or ends the emptying of a chunk server.
    ///
    /// # Errors
    /// `Refused` when there is no such server; `Unavailable`.
    pub async fn set_intent(&self, context: &CallContext, server: u32, drain: bool) -> Result<(), AdminError> {
        let request = v1::SetIntentRequest { server, drain };
        self.call(context, async |mut admin: AdminClient<Channel>| admin.set_intent(request).await).await.map(drop)
    }

    /// Forgets a chunk server that holds nothing.
    ///
    /// # Errors
    /// `Refused` when it still holds replicas or is not known; `Unavailable`.
    pub async fn remove_server(&self, context: &CallContext, server: u32) -> Result<(), AdminError> {
        let request = v1::RemoveServerRequest { server };
        self.call(context, async |mut admin: AdminClient<Channel>| admin.remove_server(request).await).await.map(drop)
    }

    /// Has the master check its tables, and tell which chunks are in danger.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn check(&self, context: &CallContext) -> Result<v1::CheckAnswer, AdminError> {
        self.call(context, async |mut admin: AdminClient<Channel>| admin.check(v1::CheckRequest {}).await).await
    }

    /// A page of the chunk table from a handle on: each attached chunk with its file, and the handle to go on with, if any.
    ///
    /// # Errors
    /// `Unavailable`; `Client(Malformed)`.
    pub async fn list_chunks(&self, context: &CallContext, from: u64, limit: u32) -> Result<ChunkPage, AdminError> {
        let request = v1::ListChunksRequest { from, limit };
        let answer =
            self.call(context, async |mut admin: AdminClient<Channel>| admin.list_chunks(request).await).await?;
        let servers = servers_from_wire(answer.servers).map_err(ClientError::from)?;
        self.client.inner.locations.learn_servers(servers);
        let chunk = |placed: v1::PlacedChunk| {
            let chunk = placed.chunk.ok_or_else(|| ClientError::malformed("a page of chunks"))?;
            Ok((InodeId(placed.inode), ChunkLocation::try_from(chunk)?))
        };
        let chunks = answer.chunks.into_iter().map(chunk).collect::<Result<Vec<_>, ClientError>>()?;
        Ok(ChunkPage { chunks, next: (answer.next > 0).then_some(answer.next) })
    }

    /// Has one member of a chunk hash what it holds of it.
    ///
    /// # Errors
    /// `Io` when it cannot be asked.
    pub async fn digest(
        &self,
        context: &CallContext,
        (inode, chunk): (InodeId, &ChunkLocation),
        server: ServerId,
    ) -> Result<Copy, ClientError> {
        let piece = Piece::new(inode, chunk.handle);
        let asked = (server, chunk.configuration.epoch);
        let length = self.client.inner.chunk_size;
        let reply = self.client.inner.data.digest_at(piece, asked, length, &context.limit).await?;
        Ok(match reply.status() {
            DataStatus::Ok => Copy::Whole { digest: reply.digest, sequence: reply.sequence },
            DataStatus::Corrupt => Copy::Damaged(reply.message),
            DataStatus::IoError => Copy::Damaged(format!("{:?} {}", reply.status(), reply.message)),
            _ => Copy::Moved,
        })
    }

    /// Changes what the master logs.
    ///
    /// # Errors
    /// `Refused` when the level is none; `Unavailable`.
    pub async fn set_log_level(&self, context: &CallContext, level: &str) -> Result<(), AdminError> {
        let ask = async |mut admin: AdminClient<Channel>| {
            admin.set_log_level(v1::SetLogLevelRequest { level: level.to_owned() }).await
        };
        self.call(context, ask).await.map(drop)
    }

    /// Asks one master after the other until one answers. All of these calls may be repeated.
    async fn call<T, F>(&self, context: &CallContext, ask: impl Fn(AdminClient<Channel>) -> F) -> Result<T, AdminError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let masters = &self.client.inner.masters;
        let mut reason = String::from("no master was named");
        let asked = context.limit.run("admin", async {
            loop {
                for master in masters {
                    let channel = match control::connect(master, CONNECT_LIMIT).await {
                        Ok(channel) => channel,
                        Err(error) => {
                            reason = error.to_string();
                            continue;
                        }
                    };
                    let admin = AdminClient::new(channel).max_decoding_message_size(control::MAX_CONTROL_MESSAGE);
                    match ask(admin).await {
                        Ok(answer) => return Ok(answer.into_inner()),
                        Err(status) => match refusal(&status) {
                            Some(error) => return Err(error),
                            None => reason = status.message().to_owned(),
                        },
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        match asked.await {
            Ok(answer) => answer,
            Err(ClientError::TimedOut { .. }) => {
                Err(ClientError::Unavailable { masters: masters.join(","), reason }.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What a status says for good; `None` when another master, or a later time, may do better.
fn refusal(status: &Status) -> Option<AdminError> {
    match status.code() {
        Code::NotFound
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::FailedPrecondition => Some(AdminError::Refused(status.message().to_owned())),
        Code::Unimplemented => Some(ClientError::Version(status.message().to_owned()).into()),
        Code::DataLoss => Some(ClientError::malformed(status.message()).into()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => None,
    }
}
