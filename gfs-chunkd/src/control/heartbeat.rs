//! Heartbeats, on a thread of their own that touches no disk.
//!
//! The thread has its own runtime and its own channel, so that nothing that the rest of the process does can delay it. It
//! renews the lease itself and hands everything else on.

use super::Shared;
use super::lease::Moment;
use super::master::{MasterClient, MasterError};
use gfs_core::ids::SessionId;
use gfs_core::replica::Fences;
use gfs_proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// Heartbeats that may wait to be sent.
const QUEUE: usize = 8;
/// Unanswered heartbeats that are remembered.
const UNANSWERED: usize = 64;
/// A master that is silent for so long is left.
const SILENCE: Duration = Duration::from_millis(1500);
/// Pauses between tries to reach a master.
const BACKOFF: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(500)];
/// Problems and disk usage go with every so manieth heartbeat.
const DETAILS_EVERY: u64 = 5;

/// What the thread tells the rest of the process.
#[derive(Debug)]
pub enum Notice {
    /// The master knows this process anew: it needs a full report.
    Registered,
    /// Something to do.
    Order(v1::MasterOrder),
}

/// What the thread needs.
pub struct Heartbeats {
    /// The masters.
    pub masters: Vec<String>,
    /// How to register again.
    pub registration: v1::RegisterRequest,
    /// The answer to the first registration.
    pub registered: v1::RegisterAnswer,
    /// Lease, load, usage, problems.
    pub shared: Arc<Shared>,
    /// Where notices go; when it is full they are dropped: the master repeats its orders.
    pub notices: mpsc::Sender<Notice>,
    /// Ends the thread.
    pub shutdown: watch::Receiver<bool>,
}

impl Heartbeats {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's.
    pub fn spawn(self) -> std::io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            let mut shutdown = self.shutdown.clone();
            runtime.block_on(async move {
                tokio::select! {
                    () = self.run() => {}
                    _ = shutdown.wait_for(|stop| *stop) => {}
                }
            });
        })
    }

    async fn run(mut self) {
        let master = MasterClient::new(self.masters.clone());
        let mut number = 0;
        let mut failures = 0_usize;
        let mut unheard = 0;
        loop {
            let before = number;
            let status = self.attend(&master, &mut number, &mut unheard).await;
            if status.code() != Code::DeadlineExceeded {
                // It was refused or ended: that is an answer too.
                unheard = 0;
            }
            // A stream that carried more than its first heartbeat was good.
            failures = if number > before + 1 { 0 } else { failures + 1 };
            tracing::debug!(code = ?status.code(), message = status.message(), "heartbeats interrupted");
            if status.code() == Code::FailedPrecondition || failures > 1 {
                self.register(&master).await;
            }
            if status.code() != Code::FailedPrecondition {
                master.rotate();
            }
            tokio::time::sleep(BACKOFF[failures.min(BACKOFF.len() - 1)]).await;
        }
    }

    async fn register(&mut self, master: &MasterClient) {
        match master.register(&self.registration).await {
            Ok(answer) if answer.server == self.registered.server && answer.cluster == self.registered.cluster => {
                self.registered = answer;
                self.notify(Notice::Registered);
            }
            Ok(answer) => tracing::error!(server = answer.server, "the master takes this server for another one"),
            Err(error @ MasterError::Refused { .. }) => tracing::error!(%error, "the master refuses this server"),
            Err(error) => tracing::debug!(%error, "not registered"),
        }
    }

    fn notify(&self, notice: Notice) {
        if let Err(error) = self.notices.try_send(notice) {
            tracing::warn!(%error, "a notice of the master was dropped");
        }
    }

    /// One stream of heartbeats, until it ends. `unheard` counts those since the master was last heard, over all streams.
    async fn attend(&self, master: &MasterClient, number: &mut u64, unheard: &mut u32) -> Status {
        let mut client = match master.client() {
            Ok(client) => client,
            Err(error) => return Status::internal(error.to_string()),
        };
        let (sender, beats) = mpsc::channel(QUEUE);
        let mut stream = Stream { sender, sent: BTreeMap::new(), fences: 0, unheard };
        // The master answers the call once it has the first heartbeat.
        self.beat(number, &mut stream, true);
        let opening = tokio::time::timeout(SILENCE, client.attend(ReceiverStream::new(beats))).await;
        let mut orders = match opening {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded("the master does not take heartbeats"),
        };
        let every = Duration::from_millis(u64::from(self.registered.heartbeat_ms.clamp(10, 10_000)));
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A master that answers and grants no lease does not lead.
        let mut leased = tokio::time::Instant::now();
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if leased.elapsed() > SILENCE {
                        return Status::deadline_exceeded("the master grants no lease");
                    }
                    self.beat(number, &mut stream, false);
                }
                order = orders.message() => match order {
                    Ok(Some(order)) => {
                        let before = stream.fences;
                        if self.take(order, &mut stream) {
                            leased = tokio::time::Instant::now();
                        }
                        if stream.fences != before {
                            // Somebody waits for it.
                            self.beat(number, &mut stream, false);
                        }
                    }
                    Ok(None) => return Status::unavailable("the master ended the stream"),
                    Err(status) => return status,
                }
            }
        }
    }

    fn beat(&self, number: &mut u64, stream: &mut Stream<'_>, first: bool) {
        *number += 1;
        let details = first || number.is_multiple_of(DETAILS_EVERY);
        let beat = v1::Heartbeat {
            server: self.registered.server,
            incarnation: self.registration.incarnation,
            number: *number,
            disks: if details { self.shared.usage() } else { Vec::new() },
            load: self.shared.requests.swap(0, Ordering::Relaxed),
            problems: self.shared.problems(),
            fences: stream.fences,
            unanswered: *stream.unheard,
        };
        // Before it is handed over: the lease counts from the sending or earlier.
        let now = Moment::now();
        if stream.sender.try_send(beat).is_ok() {
            *stream.unheard = stream.unheard.saturating_add(1);
            stream.sent.insert(*number, now);
            while stream.sent.len() > UNANSWERED {
                stream.sent.pop_first();
            }
        }
    }

    /// True when the order renewed the lease.
    fn take(&self, mut order: v1::MasterOrder, stream: &mut Stream<'_>) -> bool {
        let lease = order.lease;
        *stream.unheard = 0;
        // Before the lease that comes with them.
        if let Some(fences) = order.fences.take() {
            *self.shared.fences.write() = fences_from_wire(&fences);
            stream.fences = fences.version;
        }
        if let Some(at) = stream.sent.remove(&order.heartbeat) {
            stream.sent.retain(|number, _| *number > order.heartbeat);
            if order.lease {
                self.shared.lease.renew(at, Duration::from_millis(self.registered.lease_ms.into()));
            }
        }
        let empty =
            order.delete.is_empty() && order.assign.is_empty() && order.zero_tail.is_empty() && order.leave.is_empty();
        if !empty {
            self.notify(Notice::Order(order));
        }
        lease
    }
}

/// One stream of heartbeats.
struct Stream<'a> {
    sender: mpsc::Sender<v1::Heartbeat>,
    /// When those that are not answered were sent.
    sent: BTreeMap<u64, Moment>,
    /// Version of the fences last taken on it.
    fences: u64,
    /// Heartbeats since the master was last heard, on this stream or one before it.
    unheard: &'a mut u32,
}

fn fences_from_wire(from: &v1::Fences) -> Fences {
    Fences::new(SessionId(from.next), from.live.iter().copied().map(SessionId))
}
