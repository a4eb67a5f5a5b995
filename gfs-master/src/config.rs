//! Settings of the master.

use crate::consensus::raft::CheckpointPolicy;
use crate::data_dir::FormatOptions;
use crate::leader::LeaderOptions;
use crate::leader::servers::LeaseTimes;
use gfs_core::meta::grants::GrantOptions;
use gfs_core::plan::Limits;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// All settings with their defaults; `--print-config` shows them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MasterConfig {
    /// Directory of the log and the checkpoints.
    pub data: PathBuf,
    /// Address of the gRPC port.
    pub listen: String,
    /// Address of the HTTP port: health and metrics.
    pub http: String,
    /// Bytes of a chunk; matters only when a fresh directory is formatted.
    pub chunk_size: u64,
    /// Default replicas; matters only when a fresh directory is formatted.
    pub replicas: u8,
    /// What to log.
    pub log_level: String,
    /// Directory of daily log files.
    pub log_dir: Option<PathBuf>,
    /// A client session ends when nothing is heard for so long.
    pub session_lease_ms: u64,
    /// How long clients may cache metadata without asking.
    pub grant_ms: u32,
    /// Membership lease of chunk servers.
    pub server_lease_ms: u64,
    /// Between heartbeats of chunk servers.
    pub heartbeat_ms: u64,
    /// Without a heartbeat for so long a chunk server is suspect.
    pub suspicion_ms: u64,
    /// After a start nothing is deleted or copied in the background for so long, unless all chunk servers reported.
    pub settle_ms: u64,
    /// Replicas on a chunk server that is gone for so long are made elsewhere.
    pub replace_after_ms: u64,
    /// Files that one session may hold open.
    pub open_files: usize,
    /// A checkpoint is made after so many bytes of log.
    pub checkpoint_bytes: u64,
    /// A checkpoint is made after so many log entries, or a quarter of the number of files when that is more.
    pub checkpoint_entries: u64,
}

impl Default for MasterConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::from("/var/lib/gfs/master"),
            listen: "127.0.0.1:7400".into(),
            http: "127.0.0.1:7401".into(),
            chunk_size: 64 << 20,
            replicas: 3,
            log_level: "info".into(),
            log_dir: None,
            session_lease_ms: 10_000,
            grant_ms: GrantOptions::default().long_ms,
            server_lease_ms: 1_600,
            heartbeat_ms: 200,
            suspicion_ms: 400,
            settle_ms: 60_000,
            replace_after_ms: 30_000,
            open_files: 1 << 20,
            checkpoint_bytes: 64 << 20,
            checkpoint_entries: 50_000,
        }
    }
}

/// A setting that cannot work.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {value}: {reason}")]
pub struct BadSetting {
    /// Which.
    pub key: &'static str,
    /// Its value.
    pub value: u64,
    /// Why not.
    pub reason: &'static str,
}

impl MasterConfig {
    /// Refuses settings that cannot work together.
    ///
    /// # Errors
    /// The first bad one.
    pub fn check(&self) -> Result<(), BadSetting> {
        let bad = |key, value, reason| Err(BadSetting { key, value, reason });
        if !self.chunk_size.is_power_of_two() || !(64 << 10..=1 << 30).contains(&self.chunk_size) {
            return bad("chunk_size", self.chunk_size, "must be a power of two from 64 KiB to 1 GiB");
        }
        if !(1..=16).contains(&self.replicas) {
            return bad("replicas", self.replicas.into(), "must be 1 to 16");
        }
        if self.heartbeat_ms == 0 || self.suspicion_ms < 2 * self.heartbeat_ms {
            return bad("suspicion_ms", self.suspicion_ms, "must be at least twice heartbeat_ms");
        }
        if self.server_lease_ms < 2 * self.suspicion_ms {
            return bad("server_lease_ms", self.server_lease_ms, "must be at least twice suspicion_ms");
        }
        if self.session_lease_ms < 1_000 {
            return bad("session_lease_ms", self.session_lease_ms, "must be at least 1000");
        }
        Ok(())
    }

    /// What a fresh directory is formatted with.
    pub fn format(&self) -> FormatOptions {
        FormatOptions { chunk_size: self.chunk_size, replicas: self.replicas }
    }

    /// When checkpoints are made.
    pub fn checkpoints(&self) -> CheckpointPolicy {
        let (log_bytes, entries) = (self.checkpoint_bytes, self.checkpoint_entries);
        CheckpointPolicy { log_bytes, entries, inodes_an_entry: 4 }
    }

    /// Times and bounds of the leader.
    pub fn leader(&self) -> LeaderOptions {
        LeaderOptions {
            session_lease: Duration::from_millis(self.session_lease_ms),
            servers: LeaseTimes {
                lease_ms: self.server_lease_ms,
                heartbeat_ms: self.heartbeat_ms,
                suspicion_ms: self.suspicion_ms,
            },
            grants: GrantOptions { long_ms: self.grant_ms, ..GrantOptions::default() },
            settle: Duration::from_millis(self.settle_ms),
            replace_after: Duration::from_millis(self.replace_after_ms),
            open_files: self.open_files,
            limits: Limits::default(),
        }
    }
}
