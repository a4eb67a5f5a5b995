//! What configuration is in force, for those who found that theirs is not, or that a server does not answer.
//!
//! This room owns how long an answer waits for a newer configuration, and the failover of a primary that a client asks
//! for.

use super::Leader;
use gfs_core::ids::{ChunkHandle, Epoch, ServerId};
use gfs_core::meta::chunks::ChunkInfo;
use std::sync::Arc;
use std::time::Duration;

/// How long an answer waits for a configuration newer than the one that the asker knows.
const NEWER_LIMIT: Duration = Duration::from_millis(2_500);
/// How long it waits when nobody is suspected.
const GLANCE: Duration = Duration::from_millis(200);
/// How often a suspicion is looked at again.
const POLL: Duration = Duration::from_millis(50);

impl Leader {
    /// The configuration in force of a chunk, if possible newer than `known`; `None` when the chunk is gone. `suspects`
    /// are servers that did not answer the asker: a primary among them whose lease is over is dropped. One that is alive, and of the
    /// `silent`, which answer the asker nothing at all, is asked to leave.
    pub async fn locate(
        self: &Arc<Self>,
        handle: ChunkHandle,
        known: Epoch,
        suspects: &[ServerId],
        silent: &[ServerId],
    ) -> Option<ChunkInfo> {
        let mut complained = false;
        let limit = if suspects.is_empty() { GLANCE } else { NEWER_LIMIT };
        let until = tokio::time::Instant::now() + limit;
        loop {
            let info = self.machine.state().chunk(handle)?;
            if info.configuration.epoch > known || known == Epoch(0) && suspects.is_empty() {
                return Some(info);
            }
            let named = suspects.iter().any(|suspect| info.configuration.members.contains(suspect));
            if tokio::time::Instant::now() >= until || !(named || suspects.is_empty()) {
                return Some(info);
            }
            if named && suspects.contains(&info.configuration.primary) {
                self.fail_over(&info).await;
                if silent.contains(&info.configuration.primary) && !std::mem::replace(&mut complained, true) {
                    self.complain_of_primary(&info);
                }
            }
            let changed = self.changed.notified();
            // Waiting a little is all that is left to do.
            let _ = tokio::time::timeout(POLL, changed).await;
        }
    }
}
