//! The trait of this room on openraft: start, recovery, checkpoints.
//!
//! This room owns the raft and its life. A group has one voter now; nothing here counts on that but the network.

use super::batcher::Batcher;
use super::log_store::{LogStore, LogStoreError};
use super::machine::Machine;
use super::network::Network;
use super::types::{NodeId, Raft};
use super::{Consensus, ConsensusError, ConsensusMetrics, Pending};
use crate::checkpoint::{self, CheckpointError};
use crate::data_dir::DataDir;
use gfs_core::meta::command::{Command, CommandReply};
use gfs_log::LogOptions;
use openraft::error::{CheckIsLeaderError, RaftError};
use openraft::{BasicNode, Config, SnapshotPolicy};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// How long a start waits for the log to be applied.
const RECOVERY_LIMIT: Duration = Duration::from_secs(600);

/// How often raft is asked for a checkpoint until there is one.
const TRIGGER_AGAIN: Duration = Duration::from_secs(1);

/// Inode numbers left out at a start: more than can have been given and lost between two flushes of the log.
const SKIPPED_INODES: u64 = 1 << 20;

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log on disk.
    #[error(transparent)]
    Log(#[from] LogStoreError),
    /// The checkpoints on disk.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Raft refused what it found, or stopped.
    #[error("recovery of the log: {0}")]
    Recovery(String),
}

/// When checkpoints are made.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointPolicy {
    /// After so many bytes of log.
    pub log_bytes: u64,
    /// After so many entries.
    pub entries: u64,
    /// But for so many inodes at least one entry; 0 is no such bound.
    pub inodes_an_entry: u64,
}

/// The replicated log of a running master.
pub struct RaftConsensus {
    raft: Raft,
    machine: Machine,
    log: LogStore,
    batcher: Batcher,
    /// Kept for its lock.
    dir: DataDir,
    policy: CheckpointPolicy,
    /// End of the log when the newest checkpoint was made.
    checkpoint_end: AtomicU64,
    stopped: Arc<watch::Sender<bool>>,
}

impl RaftConsensus {
    /// Recovers from `dir` and leads. Returns when everything in the log is applied.
    ///
    /// # Errors
    /// One line each: damage of the log or of all checkpoints, and what raft refuses.
    pub async fn start(dir: DataDir, policy: CheckpointPolicy) -> Result<Self, StartError> {
        checkpoint::sweep(dir.path())?;
        let options = LogOptions { name: "log".into(), ..LogOptions::default() };
        let log = LogStore::open(&dir.log_dir(), options)?;
        let start = checkpoint::newest(dir.path(), dir.cluster(), |next| log.reaches(next))?;
        let machine = Machine::new(dir.path().to_owned(), dir.cluster(), start, log.clone());
        let raft = Raft::new(dir.node(), Arc::new(config()?), Network, log.clone(), machine.clone())
            .await
            .map_err(|error| StartError::Recovery(error.to_string()))?;
        let stopped = Arc::new(watch::channel(false).0);
        let batcher = Batcher::start(raft.clone(), machine.clone(), log.clone(), stopped.clone());
        let checkpoint_end = AtomicU64::new(log.end().saturating_sub(log.bytes()));
        let node = dir.node();
        let this = Self { raft, machine, log, batcher, dir, policy, checkpoint_end, stopped };
        this.lead(node).await?;
        Ok(this)
    }

    async fn lead(&self, node: NodeId) -> Result<(), StartError> {
        let wrong = |error: String| StartError::Recovery(error);
        let initialized = self.raft.is_initialized().await.map_err(|error| wrong(error.to_string()))?;
        if !initialized {
            let members = BTreeMap::from([(node, BasicNode::default())]);
            self.raft.initialize(members).await.map_err(|error| wrong(error.to_string()))?;
        }
        let last = self.log.last_log_id().map(|id| id.index);
        let wait = self.raft.wait(Some(RECOVERY_LIMIT));
        let ready = wait.metrics(
            |metrics| metrics.current_leader == Some(node) && metrics.last_applied.map(|id| id.index) >= last,
            "recovery",
        );
        ready.await.map_err(|error| wrong(error.to_string()))?;
        self.linearizable().await.map_err(|error| wrong(error.to_string()))
    }

    /// Leaves out the inode numbers that a power cut may have taken back. To be called before anything is served.
    ///
    /// # Errors
    /// The log's.
    pub async fn skip_lost_inodes(&self) -> Result<(), StartError> {
        let skipped = self.propose(Command::SkipInodes { count: SKIPPED_INODES }).await;
        skipped.map(drop).map_err(|error| StartError::Recovery(error.to_string()))
    }

    /// The state.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The log, for tests that fill its disk.
    #[cfg(test)]
    pub(super) fn log(&self) -> &LogStore {
        &self.log
    }

    /// Turns true when the log has failed: the process must stop, and must not retry.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.subscribe()
    }

    /// Whether enough was logged since the last checkpoint. A start replays what came after it, 18 us an entry on two cores, and a
    /// checkpoint writes everything: so a small state gets one often, and a large one more seldom.
    pub fn checkpoint_due(&self) -> bool {
        let bytes = self.log.end().saturating_sub(self.checkpoint_end.load(Ordering::Relaxed));
        let entries = self.machine.applied().saturating_sub(self.machine.checkpointed());
        let inodes = self.machine.state().counts().namespace.inodes;
        let least = self.policy.entries.max(inodes.checked_div(self.policy.inodes_an_entry).unwrap_or(0));
        entries > 0 && (bytes >= self.policy.log_bytes || entries >= least)
    }

    /// Makes a checkpoint in the background and waits for it, then lets go of the log that no kept checkpoint needs.
    ///
    /// # Errors
    /// The file system's, and that the log has stopped.
    pub async fn checkpoint(&self) -> Result<(), StartError> {
        let wrong = |error: String| StartError::Recovery(error);
        let target = self.machine.applied();
        let end = self.log.end();
        if target == 0 {
            return Ok(());
        }
        if self.machine.checkpointed() < target {
            self.write_checkpoint(target).await?;
        }
        self.checkpoint_end.store(end, Ordering::Relaxed);
        let dir = self.dir.path().to_owned();
        let pruned = tokio::task::spawn_blocking(move || checkpoint::prune(&dir)).await;
        let keep = pruned.map_err(|error| wrong(error.to_string()))??;
        if let Some(upto) = keep.checked_sub(1) {
            self.raft.trigger().purge_log(upto).await.map_err(|error| wrong(error.to_string()))?;
        }
        Ok(())
    }

    async fn write_checkpoint(&self, target: u64) -> Result<(), StartError> {
        let wrong = |error: String| StartError::Recovery(error);
        let wait = self.raft.wait(Some(RECOVERY_LIMIT));
        let done = wait.metrics(|metrics| metrics.snapshot.is_some_and(|id| id.index + 1 >= target), "checkpoint");
        let (mut done, mut failed) = (std::pin::pin!(done), std::pin::pin!(self.machine.checkpoint_fails()));
        loop {
            self.raft.trigger().snapshot().await.map_err(|error| wrong(error.to_string()))?;
            tokio::select! {
                done = &mut done => return done.map(drop).map_err(|error| wrong(error.to_string())),
                error = &mut failed => return Err(error.into()),
                // Raft passes over the wish while it believes that it still writes one, as for a moment after a failure.
                () = tokio::time::sleep(TRIGGER_AGAIN) => {}
            }
        }
    }

    fn is_only_voter(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let mut voters = metrics.membership_config.voter_ids();
        voters.next() == Some(metrics.id) && voters.next().is_none()
    }

    /// Stops raft. What was answered stays answered.
    pub async fn shutdown(&self) {
        if let Err(error) = self.log.all_durable().await {
            tracing::error!(%error, "the end of the log is not on stable storage");
        }
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end cleanly");
        }
    }
}

fn config() -> Result<Config, StartError> {
    let config = Config {
        cluster_name: "gfs".into(),
        heartbeat_interval: 100,
        election_timeout_min: 300,
        election_timeout_max: 600,
        snapshot_policy: SnapshotPolicy::Never,
        // Purged by hand, back to the older of two checkpoints.
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    };
    config.validate().map_err(|error| StartError::Recovery(error.to_string()))
}

impl Consensus for RaftConsensus {
    fn submit(&self, command: Command) -> Pending<'_, Result<CommandReply, ConsensusError>> {
        Box::pin(self.batcher.submit(command))
    }

    fn durable(&self) -> Pending<'_, Result<(), ConsensusError>> {
        Box::pin(async {
            self.log.all_durable().await.map_err(|error| {
                tracing::error!(%error, "the log has stopped");
                self.stopped.send_replace(true);
                ConsensusError::Stopped
            })
        })
    }

    fn is_leader(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.running_state.is_ok() && metrics.current_leader == Some(metrics.id)
    }

    fn linearizable(&self) -> Pending<'_, Result<(), ConsensusError>> {
        Box::pin(async {
            if self.is_only_voter() && self.is_leader() {
                // Nobody else can lead, and what was committed is what was applied here.
                return Ok(());
            }
            match self.raft.ensure_linearizable().await {
                Ok(_) => Ok(()),
                Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
                    Err(ConsensusError::NotLeader { hint: to.leader_node.map(|node| node.addr) })
                }
                Err(_) => Err(ConsensusError::NotLeader { hint: None }),
            }
        })
    }

    fn metrics(&self) -> ConsensusMetrics {
        ConsensusMetrics {
            log_index: self.machine.applied().saturating_sub(1),
            checkpoint_index: self.machine.checkpointed().saturating_sub(1),
            log_bytes: self.log.bytes(),
        }
    }
}
