//! What a file looks like at one moment: its attributes, and which chunks are where.

use super::OpenFile;
use crate::client::Client;
use crate::data::Piece;
use crate::error::ClientError;
use crate::limit::CallContext;
use crate::locations::{WINDOW, Window};
use gfs_core::ids::{ChunkHandle, Epoch, InodeId};
use gfs_core::meta::request::Attributes;
use std::collections::BTreeMap;

/// A file at one moment.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) attributes: Attributes,
    /// The attached chunks among those asked.
    pub(crate) chunks: Window,
    /// The epochs of their configurations at that moment: a cut raises them.
    pub(crate) epochs: BTreeMap<ChunkHandle, Epoch>,
}

impl View {
    /// A chunk of this view, to be used as the view knows it.
    pub(super) fn piece(&self, handle: ChunkHandle) -> Piece {
        Piece { inode: self.attributes.inode, handle, epoch: self.epochs.get(&handle).copied() }
    }

    /// The same moment, as if nothing were attached.
    pub(super) fn without_chunks(&self) -> Self {
        Self { attributes: self.attributes.clone(), chunks: Window::new(), epochs: BTreeMap::new() }
    }
}

impl OpenFile {
    /// The file, and its chunks `first ..= last`: what is cached under a live grant, else what the master says now.
    pub(super) async fn view(&self, context: &CallContext, first: u32, last: u32) -> Result<View, ClientError> {
        match self.known_view(first, last) {
            Some(view) => Ok(view),
            None => self.client().look(context, self.inner.inode, first, last).await,
        }
    }

    /// The same, if it is cached under a live grant.
    pub(super) fn known_view(&self, first: u32, last: u32) -> Option<View> {
        let inner = &self.client().inner;
        let epoch = |handle: &ChunkHandle| inner.locations.configuration(*handle).map(|known| (*handle, known.epoch));
        let held = inner.delegations.get(self.inner.inode);
        let is_held = held.is_some();
        // While it is being given back, the master alone can tell: what was known before it was held is past.
        let (attributes, chunks) = match held {
            Some(held) => held.layout(first, last)?,
            None => inner.cache.get(self.inner.inode, first, last)?,
        };
        let epochs: BTreeMap<ChunkHandle, Epoch> = chunks.values().filter_map(epoch).collect();
        // A place that is learned only after this moment would not tell of a cut in between.
        (is_held || epochs.len() == chunks.len()).then_some(View { attributes, chunks, epochs })
    }

    /// As `view`, but from the master: what was known has proved wrong.
    pub(super) async fn fresh_view(&self, context: &CallContext, first: u32, last: u32) -> Result<View, ClientError> {
        self.client().look(context, self.inner.inode, first, last).await
    }

    /// The attributes, cached under a live grant or asked.
    pub(super) async fn attributes(&self, context: &CallContext) -> Result<Attributes, ClientError> {
        let inner = &self.client().inner;
        // As in `known_view`.
        let known = match inner.delegations.get(self.inner.inode) {
            Some(held) => held.current().map(|(attributes, _)| attributes),
            None => inner.cache.attributes(self.inner.inode),
        };
        match known {
            Some(attributes) => Ok(attributes),
            None => Ok(self.client().get_attributes(context, self.inner.inode).await?.0),
        }
    }

    /// What is known of the file has proved wrong: the master is asked next.
    pub(super) async fn look_again(&self, context: &CallContext) -> Result<(), ClientError> {
        self.client().settle(self.inner.inode, context).await?;
        self.forget_view();
        Ok(())
    }

    /// What is known of the file has proved wrong.
    pub(super) fn forget_view(&self) {
        self.client().inner.cache.drop_inodes(&[self.inner.inode]);
    }
}

impl Client {
    /// Asks for whole windows, so that the answer serves the next reads too. An answer may be cut at the master's bound; what follows is
    /// asked for again, and counts only if nothing changed in between.
    async fn look(&self, context: &CallContext, inode: InodeId, first: u32, last: u32) -> Result<View, ClientError> {
        let start = first - first % WINDOW;
        let count = (last - start).saturating_add(1).div_ceil(WINDOW).saturating_mul(WINDOW);
        let (attributes, chunks) = self.layout(context, inode, start, count.min(MAX_COUNT)).await?;
        let wanted = chunks.into_iter().filter(|chunk| (first..=last).contains(&chunk.index));
        let (chunks, epochs) =
            wanted.map(|chunk| ((chunk.index, chunk.handle), (chunk.handle, chunk.configuration.epoch))).unzip();
        Ok(View { attributes, chunks, epochs })
    }
}

/// Chunks of one question; a master answers at least so many. Callers stay below it.
pub(super) const MAX_COUNT: u32 = 16 * WINDOW;
