//! Carries the session: finds a master, says hello, passes messages on, and starts over when the connection ends.
//!
//! This room performs; what to send and what to fail is decided in `table`.

use super::table::{PROBE_TAG, Step};
use super::{Concerned, DataOperations, Phase, Shared};
use crate::error::ClientError;
use crate::grants::{Recall, Recaller, named};
use gfs_net::control;
use gfs_proto::v1::{self, client_message::Body as Ask, metadata_client::MetadataClient, server_message::Body as Said};
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::Streaming;

/// Messages that may wait to be sent; beyond them the connection counts as broken.
const MAX_QUEUED: usize = 16_384;
/// Limit for a TCP connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Limit for the stream to open, and then for the welcome.
const WELCOME_LIMIT: Duration = Duration::from_secs(2);
/// Silence while calls wait, after which the master is probed.
const QUIET: Duration = Duration::from_millis(700);
/// How long a probe may take when there is another master to try.
const PATIENCE: Duration = Duration::from_secs(1);
/// And when there is none, so that a busy machine is not mistaken for a dead one.
const PATIENCE_ALONE: Duration = Duration::from_secs(4);
/// How often stalls are looked for.
const WATCH: Duration = Duration::from_millis(250);
/// Pauses between failed attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Pause before a call is sent again that the master could not serve just then.
const LATER: Duration = Duration::from_millis(200);

/// How a connection ended.
enum End {
    /// The session is to end.
    Closing,
    /// Try another master, for this reason.
    Broken(String),
    /// Try this master.
    Redirected(String),
    /// The session is gone on their side: say hello anew.
    Lost,
    /// No retry can help.
    Final(ClientError),
}

/// Which master to try next.
struct Rotation {
    masters: VecDeque<String>,
    hint: Option<String>,
    failures: u32,
}

impl Rotation {
    fn current(&mut self) -> String {
        self.hint.take().unwrap_or_else(|| self.masters[0].clone())
    }

    fn failed(&mut self) {
        self.masters.rotate_left(1);
        self.failures = self.failures.saturating_add(1);
    }

    /// Nothing on the first round over all masters, then longer and longer.
    fn pause(&self) -> Duration {
        let rounds = self.failures / self.masters.len().max(1) as u32;
        if self.failures == 0 {
            Duration::ZERO
        } else {
            (BACKOFF.0 * 2u32.saturating_pow(rounds.min(10))).min(BACKOFF.1)
        }
    }
}

/// Runs until the session is closed or cannot go on.
pub(super) async fn run(shared: Arc<Shared>, recaller: Arc<Recaller>) {
    if shared.options.masters.is_empty() {
        shared.fail(&ClientError::Unavailable { masters: String::new(), reason: "no master was named".into() });
        return;
    }
    let mut link =
        Link { shared: shared.clone(), recaller, nonce: random(), cluster: Vec::new(), lease: Duration::ZERO };
    let mut rotation = Rotation { masters: shared.options.masters.clone().into(), hint: None, failures: 0 };
    while !shared.closing.load(Ordering::Acquire) {
        let address = rotation.current();
        let mut welcomed = false;
        let end = link.attempt(&address, &mut welcomed).await;
        shared.table.lock().disconnect();
        // Nothing is heard any more of what others change; the master counts on this a moment after the end of the stream.
        shared.concerned.grants.mark_all();
        shared.concerned.files.clear();
        if welcomed {
            rotation.failures = 0;
        }
        match end {
            End::Closing => break,
            End::Final(error) => {
                tracing::error!(%error, master = address, "the session cannot go on");
                shared.fail(&error);
                return;
            }
            End::Lost => {
                link.nonce = random();
                shared.table.lock().expire();
                rotation.failures = rotation.failures.saturating_add(1);
                rotation.hint = Some(address);
            }
            End::Redirected(hint) => {
                rotation.failed();
                rotation.hint = Some(hint);
            }
            End::Broken(reason) => {
                tracing::debug!(master = address, reason, "no session over this master");
                *shared.trouble.lock() = Some(format!("{address}: {reason}"));
                shared.phase.send_if_modified(|phase| {
                    let connecting = matches!(phase, Phase::Connecting(_));
                    if connecting {
                        *phase = Phase::Connecting(format!("{address}: {reason}"));
                    }
                    connecting
                });
                rotation.failed();
            }
        }
        tokio::select! {
            () = tokio::time::sleep(rotation.pause()) => {}
            () = shared.closed() => break,
        }
    }
    shared.fail(&ClientError::Closed);
}

impl Shared {
    async fn closed(&self) {
        while !self.closing.load(Ordering::Acquire) {
            self.wake.notified().await;
        }
    }
}

struct Link {
    shared: Arc<Shared>,
    recaller: Arc<Recaller>,
    nonce: u64,
    cluster: Vec<u8>,
    /// How long the session lives without a word from here.
    lease: Duration,
}

/// An open stream, welcomed.
struct Stream {
    incoming: Streaming<v1::ServerMessage>,
    connection: u64,
    lease: Duration,
}

impl Link {
    async fn attempt(&mut self, address: &str, welcomed: &mut bool) -> End {
        let (out, queue) = mpsc::channel(MAX_QUEUED);
        let hello = {
            let mut table = self.shared.table.lock();
            let delegated = self.shared.concerned.delegations.claim();
            table.hello(&self.shared.options.description, self.nonce, &self.cluster, delegated)
        };
        let again = self.shared.table.lock().session != 0;
        if out.try_send(v1::ClientMessage { tag: 0, body: Some(Ask::Hello(hello)) }).is_err() {
            return End::Broken("the queue is closed".into());
        }
        let opened = tokio::select! {
            opened = open(address, queue) => opened,
            () = self.shared.closed() => return End::Closing,
        };
        let (welcome, incoming) = match opened {
            Ok(opened) => opened,
            Err(end) => return end,
        };
        if !self.cluster.is_empty() && self.cluster != welcome.cluster {
            return End::Final(ClientError::WrongCluster);
        }
        *welcomed = true;
        self.cluster = welcome.cluster.to_vec();
        let lease = Duration::from_millis(u64::from(welcome.lease_ms.max(300)));
        self.lease = lease;
        let connection = self.welcome(out, welcome, again);
        self.serve(Stream { incoming, connection, lease }).await
    }

    /// Takes the welcome: the kernel's caches may have missed invalidations, and locks are gone with an old session.
    fn welcome(&self, out: mpsc::Sender<v1::ClientMessage>, welcome: v1::Welcome, again: bool) -> u64 {
        let Shared { table, concerned, phase, data, .. } = &*self.shared;
        if again && !self.recaller.push(Recall::Reset) {
            tracing::warn!("too many recalls wait for the kernel");
        }
        let mut table = table.lock();
        let before = table.session;
        let unknown = table.lost(&welcome);
        let lost = table.attach(out, welcome.session, welcome.resumed);
        let connection = table.connection;
        drop(table);
        if lost {
            tracing::warn!(old = before, new = welcome.session, "the session was lost");
            concerned.locks.lose_all(before);
            concerned.lost_tails.clear();
            self.shared.lose_directories();
            for held in concerned.delegations.all() {
                self.shared.lose(&held);
            }
        }
        if !unknown.is_empty() {
            tracing::warn!(
                files = unknown.len(),
                "the master has lost changes that it had answered: did it lose power?"
            );
            self.shared.lose_directories();
            unknown.iter().for_each(|inode| concerned.locks.lose(*inode));
            concerned.lost_tails.extend(&unknown);
        }
        // After the files that are lost: what was answered of them is not to be written in this session.
        if before != welcome.session {
            *data.lock() = Arc::new(DataOperations { session: welcome.session, ..DataOperations::default() });
        }
        phase.send_replace(Phase::Ready(welcome));
        connection
    }

    async fn serve(&self, mut stream: Stream) -> End {
        let mut keep_alive = tokio::time::interval(stream.lease / 3);
        let mut watch = tokio::time::interval(WATCH);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut later: Option<Instant> = None;
        let mut postponed: Vec<u64> = Vec::new();
        loop {
            tokio::select! {
                message = stream.incoming.message() => {
                    let step = match message {
                        Ok(Some(message)) => self.take(message, stream.connection),
                        Ok(None) => return End::Broken("the master ended the stream".into()),
                        Err(status) => return End::Broken(status.message().to_owned()),
                    };
                    match step {
                        Step::Continue => {}
                        Step::Later(tag) => {
                            postponed.push(tag);
                            later.get_or_insert_with(|| Instant::now() + LATER);
                        }
                        Step::Elsewhere(Some(hint)) => return End::Redirected(hint),
                        Step::Elsewhere(None) => return End::Broken("the master does not serve".into()),
                        Step::Lost => return End::Lost,
                        Step::Final(error) => return End::Final(error),
                    }
                }
                _ = keep_alive.tick() => {
                    let mut table = self.shared.table.lock();
                    table.tell(Ask::KeepAlive(v1::KeepAlive {}));
                    let Concerned { delegations, directories, .. } = &self.shared.concerned;
                    if !delegations.is_idle() || !directories.is_idle() {
                        table.ask_sign();
                    }
                }
                _ = watch.tick() => {
                    let patience = if self.shared.options.masters.len() > 1 { PATIENCE } else { PATIENCE_ALONE };
                    if self.shared.table.lock().stalled(QUIET, patience) {
                        return End::Broken("the master does not answer".into());
                    }
                    if self.shared.concerned.grants.liveness.wants_sign() {
                        self.shared.table.lock().ask_sign();
                    }
                    for (connection, id) in self.recaller.take_overdue() {
                        self.shared.acknowledge(connection, id);
                    }
                }
                () = tokio::time::sleep_until(later.unwrap_or_else(Instant::now)), if later.is_some() => {
                    later = None;
                    let mut table = self.shared.table.lock();
                    postponed.drain(..).for_each(|tag| table.transmit(tag));
                }
                () = self.shared.wake.notified() => {
                    if self.shared.closing.load(Ordering::Acquire) {
                        return self.farewell(stream).await;
                    }
                }
            }
            if !self.shared.table.lock().connected() {
                return End::Broken("the connection is stuck".into());
            }
        }
    }

    /// One message from the master, in stream order.
    fn take(&self, message: v1::ServerMessage, connection: u64) -> Step {
        let Some(said) = message.body else { return Step::Continue };
        let message = match said {
            Said::Invalidate(message) => message,
            Said::Recall(message) => {
                let Concerned { delegations, directories, .. } = &self.shared.concerned;
                let inodes = message.inodes.into_iter().map(gfs_core::ids::InodeId);
                // Before the files are looked at: the other lock is taken first elsewhere.
                let files: Vec<_> = inodes.filter(|inode| !directories.recall(*inode)).collect();
                delegations.recall(files.into_iter());
                self.shared.table.lock().heard();
                return Step::Continue;
            }
            said => {
                let mut table = self.shared.table.lock();
                let sent = table.sent(message.tag);
                let step = table.arrive(message.tag, said);
                if let (Step::Continue, Some(sent)) = (&step, sent) {
                    // A tenth for clocks that run apart.
                    self.shared.concerned.delegations.vouched.extend(sent + self.lease * 9 / 10);
                    self.shared.concerned.grants.liveness.vouch(sent, self.lease);
                }
                return step;
            }
        };
        let (inodes, entries) = named(&message);
        self.shared.concerned.grants.mark(&inodes, &entries);
        self.shared.concerned.files.drop_inodes(&inodes);
        {
            let mut table = self.shared.table.lock();
            table.heard();
            // Before the acknowledgement: after it a file that is not known to be open may be freed.
            table.tell_opens(Some(&inodes));
        }
        if self.recaller.push(Recall::Invalidate { connection, message }) {
            Step::Continue
        } else {
            // Unacknowledged, the grants run out by themselves.
            tracing::warn!("too many recalls wait for the kernel");
            Step::Elsewhere(None)
        }
    }

    async fn farewell(&self, mut stream: Stream) -> End {
        self.shared.table.lock().tell_tagged(PROBE_TAG, Ask::Goodbye(v1::Goodbye {}));
        let answered = async {
            while let Ok(Some(message)) = stream.incoming.message().await {
                if message.tag == PROBE_TAG && matches!(message.body, Some(Said::Reply(_))) {
                    return;
                }
            }
        };
        if tokio::time::timeout(WELCOME_LIMIT, answered).await.is_err() {
            tracing::debug!("no answer to the farewell");
        }
        End::Closing
    }
}

/// Opens the stream and waits for the welcome.
async fn open(
    address: &str,
    queue: mpsc::Receiver<v1::ClientMessage>,
) -> Result<(v1::Welcome, Streaming<v1::ServerMessage>), End> {
    let channel = control::connect(address, CONNECT_LIMIT).await.map_err(|error| End::Broken(error.to_string()))?;
    let mut master = MetadataClient::new(channel)
        .max_decoding_message_size(control::MAX_CONTROL_MESSAGE)
        .max_encoding_message_size(control::MAX_CONTROL_MESSAGE);
    let silent = |_| End::Broken("the master does not welcome".into());
    let opened =
        tokio::time::timeout(WELCOME_LIMIT, master.session(ReceiverStream::new(queue))).await.map_err(silent)?;
    let mut incoming = opened.map_err(|status| End::Broken(status.message().to_owned()))?.into_inner();
    let first = tokio::time::timeout(WELCOME_LIMIT, incoming.message()).await.map_err(silent)?;
    match first.map_err(|status| End::Broken(status.message().to_owned()))?.and_then(|message| message.body) {
        Some(Said::Welcome(welcome)) => Ok((welcome, incoming)),
        Some(Said::Failure(failure)) => Err(refused(failure)),
        _ => Err(End::Broken("the master ended the stream before it welcomed".into())),
    }
}

fn refused(failure: v1::Failure) -> End {
    use v1::failure::Code;
    match failure.code() {
        Code::NotLeader if !failure.hint.is_empty() => End::Redirected(failure.hint),
        Code::SessionExpired => End::Lost,
        Code::Protocol | Code::Malformed => End::Final(ClientError::Version(failure.message)),
        Code::WrongCluster => End::Final(ClientError::WrongCluster),
        Code::NotLeader
        | Code::Starting
        | Code::Stopping
        | Code::Overloaded
        | Code::Unavailable
        | Code::Unspecified => End::Broken(failure.message),
    }
}

/// Random bits for a nonce, from the seeds that the standard library takes from the system.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
