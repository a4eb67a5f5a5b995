//! Once a second: the store's own work, the fill state of the disks, disks that failed.

use crate::driver::Driver;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(1);

/// Runs until `shutdown`.
pub async fn run(driver: Arc<Driver>, mut shutdown: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
        let taken = driver.clone();
        let round = driver.spawn_blocking(move || {
            taken.store.tick();
            taken.shared.set_usage(&taken.store.usage());
            taken.take_failed();
            taken.expire();
        });
        if let Err(error) = round.await {
            tracing::error!(%error, "a round of background work ended badly");
        }
    }
}
