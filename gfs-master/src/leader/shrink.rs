//! Finishing shrinks (design section 4, rule 13): order the zeroing, commit that it is done.
//!
//! This room owns the driving. Which shrinks are pending is committed state, so a restart goes on where it was.

use super::{Leader, ServeError};
use gfs_core::ids::{ChunkHandle, Epoch, InodeId};
use gfs_core::meta::command::Command;
use gfs_core::meta::request::Stored;
use gfs_core::meta::shrinks::Shrink;
use gfs_proto::v1;
use std::sync::Arc;
use std::time::Duration;

/// How long a caller waits for the zeroing.
const WAIT_LIMIT: Duration = Duration::from_secs(20);
/// Orders sent at a time.
const MAX_ORDERS: usize = 1_000;
/// An order that was not answered is sent again after so long.
pub const RETRY: Duration = Duration::from_millis(500);

impl Leader {
    /// Returns when no shrink of the file is pending any more.
    ///
    /// # Errors
    /// `Unavailable` after a while: the caller asks again.
    pub async fn wait_for_shrink(self: &Arc<Self>, inode: InodeId) -> Result<(), ServeError> {
        self.order_zeroing(Some(inode));
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.machine.state().shrink(inode).is_none() {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(WAIT_LIMIT, wait).await;
        waited.map_err(|_| ServeError::Unavailable("the primary of the chunk that is cut does not answer"))
    }

    /// Sends the orders of pending shrinks to the primaries, of one file or of all.
    pub fn order_zeroing(&self, only: Option<InodeId>) {
        let orders: Vec<_> = {
            let state = self.machine.state();
            let pending: Vec<Shrink> = match only {
                Some(inode) => state.shrink(inode).into_iter().collect(),
                None => state.shrinks().take(MAX_ORDERS).collect(),
            };
            let order = |shrink: Shrink| {
                let info = state.chunk(shrink.handle)?;
                let zero = v1::ZeroTail {
                    handle: shrink.handle.0,
                    epoch: info.configuration.epoch.0,
                    from: shrink.from,
                    inode: shrink.inode.0,
                    cut: shrink.epoch.0,
                };
                Some((info.configuration.primary, info, zero))
            };
            pending.into_iter().filter_map(order).collect()
        };
        for (primary, info, zero) in orders {
            // The order names the epoch that the shrink raised, so the primary must know it.
            let assign = vec![self.assignment(&info)];
            self.servers
                .order(primary, v1::MasterOrder { assign, zero_tail: vec![zero], ..v1::MasterOrder::default() });
        }
    }

    /// A primary says that a tail is zeroed on all members, and how much of the chunk is stored since.
    ///
    /// # Errors
    /// The log's.
    pub async fn finish_shrink(
        &self,
        inode: InodeId,
        handle: ChunkHandle,
        epoch: Epoch,
        stored: Option<Stored>,
    ) -> Result<(), ServeError> {
        let pending = self.machine.state().shrink(inode).is_some_and(|shrink| shrink.handle == handle);
        if pending {
            self.consensus.propose(Command::FinishShrink { inode, handle, epoch, stored }).await?;
        }
        self.changed.notify_waiters();
        Ok(())
    }
}

impl Leader {
    /// Sends the orders of all pending shrinks again, and names another primary where the one in force is gone.
    pub async fn drive_shrinks(&self) {
        let orphaned: Vec<_> = {
            let state = self.machine.state();
            let chunks = state.shrinks().take(MAX_ORDERS).filter_map(|shrink| state.chunk(shrink.handle));
            chunks.filter(|info| self.may_drop(info.configuration.primary, info.handle)).collect()
        };
        for info in &orphaned {
            self.fail_over(info).await;
        }
        self.order_zeroing(None);
    }
}
