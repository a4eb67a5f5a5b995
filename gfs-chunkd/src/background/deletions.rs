//! Carries tombstones out, a few at a time.
//!
//! The master orders thousands at once when a tree is removed. Each takes a blocking thread until the journal is on stable storage:
//! all at once they would leave none to those who wait for an answer.

use crate::driver::{Driver, Job};
use gfs_core::ids::{ChunkHandle, Epoch};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore, watch};

/// Under way at a time: enough to share an fsync of the journal.
const TURNS: usize = 64;

/// Tombstones that wait. A repeated order adds nothing, so there are no more than replicas.
#[derive(Default)]
pub struct Deletions {
    waiting: Mutex<BTreeMap<ChunkHandle, Epoch>>,
    more: Notify,
}

impl Deletions {
    /// Takes an order; of two for one chunk the newer epoch counts.
    pub fn order(&self, tombstones: impl IntoIterator<Item = (ChunkHandle, Epoch)>) {
        let mut waiting = self.waiting.lock();
        for (handle, epoch) in tombstones {
            let known = waiting.entry(handle).or_insert(epoch);
            *known = epoch.max(*known);
        }
        self.more.notify_one();
    }

    fn next(&self) -> Option<(ChunkHandle, Epoch)> {
        self.waiting.lock().pop_first()
    }
}

/// Runs until `shutdown`.
pub async fn run(driver: Arc<Driver>, mut shutdown: watch::Receiver<bool>) {
    let turns = Arc::new(Semaphore::new(TURNS));
    let work = async {
        while let Ok(turn) = turns.clone().acquire_owned().await {
            let Some((handle, epoch)) = driver.deletions.next() else {
                driver.deletions.more.notified().await;
                continue;
            };
            match driver.slot(handle) {
                Some(slot) => driver.push(&slot, Job::Delete { epoch, turn }),
                None => driver.reports.deleted(handle),
            }
        }
    };
    tokio::select! {
        () = work => {}
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_order_adds_nothing_and_the_newer_epoch_counts() {
        let deletions = Deletions::default();
        let chunk = |number| ChunkHandle(number);
        deletions.order([(chunk(2), Epoch(5)), (chunk(1), Epoch(3))]);
        deletions.order([(chunk(2), Epoch(4)), (chunk(1), Epoch(7))]);
        let all: Vec<_> = std::iter::from_fn(|| deletions.next()).collect();
        assert_eq!(all, [(chunk(1), Epoch(7)), (chunk(2), Epoch(5))]);
    }
}
