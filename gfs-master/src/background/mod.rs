//! What the master does on its own: one task for each duty, each with its own pace.
//!
//! This room owns the timers. Every duty looks at the state anew, acts through the leader, and bounds what it does at a
//! time; nothing here is remembered over a restart.

mod collect;
mod repair;

use crate::consensus::Consensus;
use crate::consensus::raft::RaftConsensus;
use crate::leader::{Leader, clock, shrink};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Between looks for sessions whose lease is over.
const EXPIRY: Duration = Duration::from_millis(500);
/// Times that were shown for so long are committed.
const TIMES_AGE: Duration = Duration::from_millis(500);
/// Between looks for such times.
const TIMES: Duration = Duration::from_millis(200);
/// Between looks whether a checkpoint is due.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// After a checkpoint failed.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(30);
/// Between rounds of collecting and repairing, if nothing rings before.
const ROUND: Duration = Duration::from_millis(500);
/// Between rounds when something rings.
const BREATH: Duration = Duration::from_millis(50);

/// Starts all duties; they end when `stopping` turns true. The set is their owner: wait for it.
pub fn start(leader: Arc<Leader>, raft: Arc<RaftConsensus>, stopping: &watch::Receiver<bool>) -> JoinSet<()> {
    let mut duties = JoinSet::new();
    let mut duty = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let stop = gfs_daemon::life::wait(stopping.clone());
        duties.spawn(async move {
            tokio::select! {
                () = work => (),
                () = stop => (),
            }
        });
    };
    duty(Box::pin(beat(leader.clone())));
    duty(Box::pin(expire(leader.clone())));
    duty(Box::pin(times(leader.clone())));
    duty(Box::pin(shrinks(leader.clone())));
    duty(Box::pin(checkpoints(raft)));
    duty(Box::pin(rounds(leader)));
    duties
}

async fn beat(leader: Arc<Leader>) {
    loop {
        let skipped_ms = leader.clock.beat();
        if skipped_ms > 0 {
            tracing::warn!(
                skipped_ms,
                "this master did not run for a while: leases that others hold are longer by that"
            );
        }
        tokio::time::sleep(clock::BEAT).await;
    }
}

async fn expire(leader: Arc<Leader>) {
    loop {
        tokio::time::sleep(EXPIRY).await;
        let expired = leader.sessions.take_expired();
        leader.fence(expired.iter().copied()).await;
        for session in expired {
            tracing::info!(%session, "a session's lease is over");
            if let Err(error) = leader.end_session(session).await {
                tracing::warn!(%error, %session, "a session's end is tried again");
            }
        }
        leader.cut_lost_tails().await;
    }
}

async fn times(leader: Arc<Leader>) {
    loop {
        tokio::time::sleep(TIMES).await;
        leader.flush_times(TIMES_AGE, None).await;
    }
}

async fn shrinks(leader: Arc<Leader>) {
    loop {
        leader.drive_shrinks().await;
        tokio::time::sleep(shrink::RETRY).await;
    }
}

async fn checkpoints(raft: Arc<RaftConsensus>) {
    loop {
        tokio::time::sleep(CHECKPOINT).await;
        if !raft.checkpoint_due() {
            continue;
        }
        let begun = tokio::time::Instant::now();
        match raft.checkpoint().await {
            Ok(()) => {
                let index = raft.metrics().checkpoint_index;
                tracing::info!(index, elapsed_ms = begun.elapsed().as_millis() as u64, "checkpoint written");
            }
            Err(error) => {
                tracing::error!(%error, "no checkpoint could be written; the log grows until one can");
                tokio::time::sleep(CHECKPOINT_PAUSE).await;
            }
        }
    }
}

async fn rounds(leader: Arc<Leader>) {
    let mut collector = collect::Collector::default();
    let mut repairer = repair::Repairer::default();
    if let Err(error) = leader.end_former_own_sessions().await {
        tracing::warn!(%error, "sessions of former leaders stay for now");
    }
    loop {
        let rung = leader.work.notified();
        if tokio::time::timeout(ROUND, rung).await.is_ok() {
            tokio::time::sleep(BREATH).await;
        }
        if leader.consensus.is_leader() {
            collector.round(&leader).await;
            repairer.round(&leader).await;
        }
    }
}
