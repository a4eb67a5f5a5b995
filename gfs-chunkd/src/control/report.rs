//! Reports: everything that this server holds after it registered, and what it has done since.

use super::orders;
use crate::driver::Driver;
use gfs_core::ids::ChunkHandle;
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Replicas in one message.
const PIECE: usize = 1000;
/// Limit of one report.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
struct Due {
    full: bool,
    deleted: BTreeSet<ChunkHandle>,
    shrunk: Vec<v1::ShrinkDone>,
}

/// What the master has yet to be told. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    inner: Arc<(Mutex<Due>, Notify)>,
}

impl Reports {
    /// The master needs everything.
    pub fn full(&self) {
        self.add(|due| due.full = true);
    }

    /// A tombstone has been carried out.
    pub fn deleted(&self, handle: ChunkHandle) {
        self.add(|due| {
            due.deleted.insert(handle);
        });
    }

    /// A tail has been zeroed on all members.
    pub fn shrunk(&self, done: v1::ShrinkDone) {
        self.add(|due| {
            // The master repeats the order until it hears this; once is enough.
            due.shrunk.retain(|other| (other.handle, other.epoch) != (done.handle, done.epoch));
            due.shrunk.push(done);
        });
    }

    fn add(&self, change: impl FnOnce(&mut Due)) {
        change(&mut self.inner.0.lock());
        self.inner.1.notify_one();
    }

    fn take(&self) -> Due {
        std::mem::take(&mut *self.inner.0.lock())
    }

    fn put_back(&self, due: Due) {
        let mut now = self.inner.0.lock();
        now.full |= due.full;
        now.deleted.extend(due.deleted);
        now.shrunk.extend(due.shrunk);
    }

    /// Reports what is due, until `shutdown`.
    pub async fn run(self, driver: Arc<Driver>, mut shutdown: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = self.inner.1.notified() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
            loop {
                let due = self.take();
                if !due.full && due.deleted.is_empty() && due.shrunk.is_empty() {
                    break;
                }
                let told = tokio::select! {
                    told = tell(&driver, &due) => told,
                    _ = shutdown.wait_for(|stop| *stop) => return,
                };
                if !told {
                    self.put_back(due);
                    tokio::time::sleep(PAUSE).await;
                } else if due.full {
                    driver.confirm_all().await;
                }
            }
        }
    }
}

async fn tell(driver: &Arc<Driver>, due: &Due) -> bool {
    let summaries = if due.full { driver.summaries().await } else { Vec::new() };
    let message = |replicas: &[v1::ReplicaSummary]| v1::ReplicaReport {
        server: driver.me.0.into(),
        incarnation: driver.incarnation,
        replicas: replicas.to_vec(),
        full: due.full,
        ..v1::ReplicaReport::default()
    };
    let mut pieces: Vec<v1::ReplicaReport> = summaries.chunks(PIECE).map(message).collect();
    let mut first = message(&[]);
    first.deleted = due.deleted.iter().map(|handle| handle.0).collect();
    first.shrunk.clone_from(&due.shrunk);
    pieces.insert(0, first);
    let report = async {
        let mut client = driver.master.client()?;
        Ok::<_, super::master::MasterError>(client.report(tokio_stream::iter(pieces)).await)
    };
    match tokio::time::timeout(LIMIT, report).await {
        Ok(Ok(Ok(answer))) => {
            take_answer(driver, answer.into_inner());
            true
        }
        Ok(Ok(Err(status))) => {
            tracing::debug!(code = ?status.code(), message = status.message(), "a report was not taken");
            driver.master.rotate();
            false
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "a report could not be sent");
            false
        }
        Err(_) => {
            tracing::warn!("a report took too long");
            driver.master.rotate();
            false
        }
    }
}

fn take_answer(driver: &Arc<Driver>, answer: v1::ReportAnswer) {
    if !answer.unknown.is_empty() {
        tracing::info!(chunks = answer.unknown.len(), "the master does not know some replicas; they are kept");
    }
    orders::carry_out(driver, v1::MasterOrder { delete: answer.delete, ..v1::MasterOrder::default() });
}
