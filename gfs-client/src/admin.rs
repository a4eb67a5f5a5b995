//! What operators ask the master: thin calls of the `Admin` service.

use crate::client::Client;
use crate::error::ClientError;
use crate::limit::CallContext;
use gfs_net::control;
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
