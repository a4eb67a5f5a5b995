//! Questions to the master about configurations in force, many at a time.
//!
//! Requests for chunks that this server does not know, or knows older, or has not had confirmed in this term of the lease
//! wait here for one shared question.

use super::Shared;
use super::lease::{Lease, Term};
use super::master::MasterClient;
use gfs_core::ids::{ChunkHandle, ServerId};
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};

/// Handles in one question.
const BATCH: usize = 1000;
/// Requests that may wait.
const MAX_WAITING: usize = 100_000;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// Tries before those who wait are told that there is no answer.
const TRIES: usize = 20;

/// The master's answer to one batch.
#[derive(Debug)]
pub struct Found {
    /// The term of the lease when the question was sent, if it was held.
    pub term: Option<Term>,
    /// Configurations in force.
    pub assignments: Vec<v1::Assignment>,
    /// Chunks that are in no configuration.
    pub gone: Vec<ChunkHandle>,
}

/// Gives an answer to the replicas; called before those who wait are woken. It must not wait.
pub type Apply = Box<dyn Fn(Found) + Send + Sync>;

/// What became of a question about one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Looked {
    /// The answer was given to the driver.
    Known,
    /// The master knows no such chunk.
    Gone,
    /// The master did not answer.
    Unanswered,
}

#[derive(Default)]
struct Waiting {
    chunks: BTreeMap<ChunkHandle, Vec<oneshot::Sender<Looked>>>,
    count: usize,
}

/// The waiting room. Cheap to clone.
#[derive(Clone, Default)]
pub struct Lookup {
    inner: Arc<(Mutex<Waiting>, Notify)>,
}

impl Lookup {
    /// Asks about a chunk and waits until the driver has the answer, or `limit` is over.
    pub async fn ask(&self, handle: ChunkHandle, limit: Duration) -> Looked {
        let (sender, answer) = oneshot::channel();
        if !self.enqueue(handle, Some(sender)) {
            return Looked::Unanswered;
        }
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(looked)) => looked,
            _ => Looked::Unanswered,
        }
    }

    /// Asks about a chunk without waiting.
    pub fn note(&self, handle: ChunkHandle) {
        self.enqueue(handle, None);
    }

    fn enqueue(&self, handle: ChunkHandle, sender: Option<oneshot::Sender<Looked>>) -> bool {
        let (waiting, wake) = &*self.inner;
        let mut waiting = waiting.lock();
        if waiting.count >= MAX_WAITING {
            return false;
        }
        let waiters = waiting.chunks.entry(handle).or_default();
        // A waiter that has given up makes room for the next.
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.extend(sender);
        waiting.count = waiting.count.saturating_add(1);
        drop(waiting);
        wake.notify_one();
        true
    }

    fn take(&self) -> BTreeMap<ChunkHandle, Vec<oneshot::Sender<Looked>>> {
        let mut waiting = self.inner.0.lock();
        let rest = match waiting.chunks.keys().nth(BATCH).copied() {
            Some(first) => waiting.chunks.split_off(&first),
            None => BTreeMap::new(),
        };
        waiting.count = rest.values().map(|waiters| waiters.len().max(1)).sum();
        std::mem::replace(&mut waiting.chunks, rest)
    }

    /// Asks the master until `shutdown`; `apply` gives an answer to the replicas before those who wait are woken.
    pub async fn run(
        self,
        master: MasterClient,
        shared: Arc<Shared>,
        me: ServerId,
        mut shutdown: watch::Receiver<bool>,
        apply: Apply,
    ) {
        loop {
            let batch = self.take();
            if batch.is_empty() {
                tokio::select! {
                    () = self.inner.1.notified() => continue,
                    _ = shutdown.wait_for(|stop| *stop) => return,
                }
            }
            tokio::select! {
                () = answer(&master, &shared.lease, me, batch, &apply) => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }
}

async fn answer(
    master: &MasterClient,
    lease: &Lease,
    me: ServerId,
    mut batch: BTreeMap<ChunkHandle, Vec<oneshot::Sender<Looked>>>,
    apply: &Apply,
) {
    let handles: Vec<ChunkHandle> = batch.keys().copied().collect();
    for attempt in 0..TRIES {
        let term = lease.term();
        match master.configurations(me, &handles).await {
            Ok(answer) if answer.refusal == 0 => {
                let gone: Vec<ChunkHandle> = answer.gone.iter().copied().map(ChunkHandle).collect();
                for handle in &gone {
                    for waiter in batch.remove(handle).unwrap_or_default() {
                        let _ = waiter.send(Looked::Gone);
                    }
                }
                apply(Found { term, assignments: answer.assignments, gone });
                for waiter in batch.into_values().flatten() {
                    let _ = waiter.send(Looked::Known);
                }
                return;
            }
            Ok(_) => tracing::debug!(attempt, "the master can't tell configurations yet"),
            Err(error) => tracing::debug!(attempt, %error, "configurations could not be asked"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    for waiter in batch.into_values().flatten() {
        let _ = waiter.send(Looked::Unanswered);
    }
}
