//! Bytes that a write has put beyond the end of a file, until the size covers them.
//!
//! A write that ends in between (interrupted, out of time, refused) leaves them there, and a later growth of the file would show them. So
//! whoever may have written such bytes and does not come to their end has the master cut them off.

use super::OpenFile;
use crate::client::Client;
use crate::error::ClientError;
use crate::limit::{CallContext, CallLimit};
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Credentials, Request};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long it is tried. When the cluster is away for longer, the session ends, and its end cuts too.
const LIMIT: Duration = Duration::from_secs(60);

/// Files remembered as longer than a master knows that has lost power; those of one session's last second.
const MOST: usize = 65_536;

/// Files of which a master that lost power does not know what it had answered: their bytes may lie beyond the end that it knows.
#[derive(Debug, Default)]
pub(crate) struct LostTails(Mutex<BTreeSet<InodeId>>);

impl LostTails {
    /// Takes what the master has lost.
    pub(crate) fn extend(&self, inodes: &BTreeSet<InodeId>) {
        let mut files = self.0.lock();
        let room = MOST.saturating_sub(files.len());
        files.extend(inodes.iter().take(room));
    }

    /// The session is over, and whoever ended it has cut them.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    pub(crate) fn contains(&self, inode: InodeId) -> bool {
        self.0.lock().contains(&inode)
    }

    fn remove(&self, inode: InodeId) {
        self.0.lock().remove(&inode);
    }
}

impl Client {
    /// Before a file grows: what was lost of it is not to come back with that.
    pub(crate) async fn cut_lost_tail(&self, inode: InodeId, context: &CallContext) -> Result<(), ClientError> {
        if !self.inner.lost_tails.contains(inode) {
            return Ok(());
        }
        let own = CallContext { credentials: Credentials::default(), ..context.clone() };
        let lost = self.change(&own, Request::CutTail { inode }).await;
        // What is no file, or none any more, has no tail.
        match lost {
            Ok(_) | Err(ClientError::Refused(_)) => self.inner.lost_tails.remove(inode),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Set from before the first such byte is sent until the size covers them. Dropped while it is set, it has the tail cut.
pub(super) struct Doubt<'a> {
    file: &'a OpenFile,
    set: bool,
}

impl<'a> Doubt<'a> {
    pub(super) fn none(file: &'a OpenFile) -> Self {
        Self { file, set: false }
    }

    /// Bytes beyond the end are about to be sent to a chunk of the file.
    pub(super) fn begin(&mut self) {
        self.set = true;
    }

    /// The size covers them.
    pub(super) fn end(mut self) {
        self.set = false;
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.set {
            return;
        }
        let (client, inode) = (self.file.client().clone(), self.file.inode());
        let context = CallContext::new(Credentials::default(), CallLimit::within(LIMIT));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            // What is held is longer here than at the master.
            let settled = client.settle(inode, &context).await;
            let cut = match settled {
                Ok(()) => client.change(&context, Request::CutTail { inode }).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = cut {
                tracing::warn!(%error, %inode, "what an unfinished write left beyond the end of a file stays until this session ends");
            }
        });
    }
}
