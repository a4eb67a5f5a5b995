//! Bytes that a write has put beyond the end of a file, until the size covers them.
//!
//! A write that ends in between (interrupted, out of time, refused) leaves them there, and a later growth of the file would show them. So
//! whoever may have written such bytes and does not come to their end has the master cut them off.

use super::OpenFile;
use crate::limit::{CallContext, CallLimit};
use gfs_core::meta::request::{Credentials, Request};
use std::time::Duration;

/// How long it is tried. When the cluster is away for longer, the session ends, and its end cuts too.
const LIMIT: Duration = Duration::from_secs(60);

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
