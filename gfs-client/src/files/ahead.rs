//! Reading whole small files ahead: whoever reads one after the other, in the order of their directory's listing or in that in which they were
//! made, finds the next ones here.
//!
//! What is read ahead counts as long as nothing can have changed it: the file may be opened without a question before and after, with the same
//! attributes, and no mark came in between. It is given out once. This room sees reads that begin a file, so nothing is read ahead for a
//! kernel that has the pages itself.

use crate::client::{Client, Inner};
use crate::data::Piece;
use crate::grants::{Against, Stamp};
use crate::limit::{CallContext, CallLimit};
use bytes::Bytes;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Attributes, Credentials, DirectoryEntry, FileType, Timestamp};
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::sync::watch;

/// Largest file that is read ahead.
pub(super) const SMALL: u64 = 64 << 10;
/// Files that are read ahead and not asked for yet.
const MOST: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// How many are read ahead at first, and at most.
const WINDOW: (usize, usize) = (2, 16);
/// Listings that are remembered, each of as many names as an answer holds.
const LISTINGS: NonZeroUsize = NonZeroUsize::new(16).unwrap();
/// Files that were made one after the other: so many numbers further the next one is looked for.
const STRIDE: u64 = 4;
/// How long a file is read ahead.
const LIMIT: Duration = Duration::from_secs(5);

/// A file as it was when it was read.
#[derive(Clone)]
struct Content {
    ctime: Timestamp,
    size: u64,
    era: u64,
    stamp: Stamp,
    bytes: Bytes,
}

/// `None` while it is being read, then what came of it.
type Reading = watch::Receiver<Option<Option<Content>>>;

struct State {
    files: LruCache<InodeId, Reading>,
    /// Files of a part of a listing, in its order, by the first of them.
    listings: LruCache<InodeId, Vec<InodeId>>,
    /// The file that was begun last.
    last: Option<InodeId>,
    /// How many to read ahead.
    window: usize,
}

/// See the module.
pub(crate) struct Ahead {
    state: Mutex<State>,
}

impl Default for Ahead {
    fn default() -> Self {
        let state = State { files: LruCache::new(MOST), listings: LruCache::new(LISTINGS), last: None, window: 0 };
        Self { state: Mutex::new(state) }
    }
}

impl State {
    /// The files that come after one, if that is the next one after the last, by the listing that both are in or by their numbers.
    fn following(&mut self, inode: InodeId) -> Vec<InodeId> {
        let last = self.last.replace(inode);
        let Some(last) = last.filter(|last| *last != inode) else { return Vec::new() };
        let listed = self.listings.iter().find_map(|(_, files)| {
            let at = files.iter().position(|file| *file == inode)?;
            // Some may lie in between that are no small files, or not wanted.
            let before = &files[at.saturating_sub(STRIDE as usize)..at];
            before.contains(&last).then(|| files[at + 1..].iter().take(WINDOW.1).copied().collect())
        });
        let numbered = || {
            let near = (1..=STRIDE).contains(&inode.0.wrapping_sub(last.0));
            if near { (inode.0 + 1..=inode.0 + 2 * WINDOW.1 as u64).map(InodeId).collect() } else { Vec::new() }
        };
        listed.unwrap_or_else(numbered)
    }
}

impl Ahead {
    /// A part of a listing, in its order.
    pub(crate) fn note_listing(&self, entries: &[DirectoryEntry]) {
        let small = |of: &Attributes| of.file_type == FileType::File && (1..=SMALL).contains(&of.size);
        let files = entries.iter().map(|entry| &entry.attributes).filter(|of| small(of)).map(|of| of.inode);
        let files: Vec<InodeId> = files.collect();
        if let Some(first) = files.first() {
            self.state.lock().listings.put(*first, files);
        }
    }
}

impl Client {
    /// The content of a file that is being read from its beginning, if it was read ahead, and has others read that probably come next.
    pub(super) async fn begin_reading(&self, context: &CallContext, inode: InodeId) -> Option<Bytes> {
        let (found, next) = {
            let mut state = self.inner.ahead.state.lock();
            let found = state.files.pop(&inode);
            let next = state.following(inode);
            state.window = match (next.is_empty(), found.is_some()) {
                (true, _) => 0,
                (false, true) => (state.window * 2).clamp(WINDOW.0, WINDOW.1),
                (false, false) => state.window.max(WINDOW.0),
            };
            (found, next)
        };
        self.read_ahead(&next);
        let mut reading = found?;
        let came = context.limit.run("read", reading.wait_for(Option::is_some)).await.ok()?.ok()?.clone();
        let content = came.flatten()?;
        let Inner { cache, grants, files, .. } = &*self.inner;
        let (attributes, _, era) = cache.openable(inode).filter(|_| !files.is_written(inode))?;
        let same = (attributes.ctime, attributes.size, era) == (content.ctime, content.size, content.era);
        (same && !grants.marked(inode, content.stamp, Against::All)).then_some(content.bytes)
    }

    /// Reads the first of these that may be small files, unless they are here already.
    fn read_ahead(&self, next: &[InodeId]) {
        let Inner { ahead, cache, files, .. } = &*self.inner;
        let small = |inode: &&InodeId| {
            let known = cache.attributes(**inode);
            known.is_some_and(|of| of.file_type == FileType::File && (1..=SMALL).contains(&of.size))
                && !files.is_written(**inode)
        };
        let window = ahead.state.lock().window;
        for inode in next.iter().filter(small).take(window) {
            let (done, reading) = watch::channel(None);
            {
                let mut state = ahead.state.lock();
                if state.files.contains(inode) {
                    continue;
                }
                state.files.put(*inode, reading);
            }
            let (client, inode) = (self.clone(), *inode);
            tokio::spawn(async move {
                let content = client.read_whole(inode).await;
                done.send_replace(Some(content));
            });
        }
    }

    async fn read_whole(&self, inode: InodeId) -> Option<Content> {
        let Inner { cache, grants, files, locations, data, .. } = &*self.inner;
        let context = CallContext::new(Credentials::default(), CallLimit::within(LIMIT));
        let stamp = grants.stamp();
        if cache.openable(inode).is_none() || cache.get(inode, 0, 0).is_none() {
            self.layout(&context, inode, 0, crate::locations::WINDOW).await.ok()?;
        }
        let (attributes, _, era) = cache.openable(inode).filter(|of| of.0.size <= SMALL && !files.is_written(inode))?;
        let (known, chunks) = cache.get(inode, 0, 0)?;
        let length = attributes.size;
        let bytes = match chunks.get(&0) {
            None => Bytes::from(vec![0; length as usize]),
            Some(handle) => {
                let epoch = Some(locations.configuration(*handle)?.epoch);
                let piece = Piece { inode, handle: *handle, epoch };
                let _budget = self.budget(length, &context.limit).await.ok()?;
                data.read(piece, 0, length as u32, false, &context.limit).await.ok()?
            }
        };
        let whole = known.size == length && bytes.len() as u64 == length;
        whole.then_some(Content { ctime: attributes.ctime, size: length, era, stamp, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let state = Ahead::default().state.into_inner();
        State { last: Some(InodeId(100)), ..state }
    }

    #[test]
    fn files_that_are_read_in_the_order_of_a_listing_are_followed_by_the_rest_of_it() {
        let mut state = state();
        let files: Vec<InodeId> = [500, 100, 300, 50, 70].map(InodeId).to_vec();
        state.listings.put(InodeId(500), files);
        assert_eq!(state.following(InodeId(300)), [InodeId(50), InodeId(70)]);
        assert_eq!(state.following(InodeId(70)), [], "the last");
        assert_eq!(state.following(InodeId(500)), [], "backwards");
    }

    #[test]
    fn files_that_are_read_in_the_order_of_their_making_are_followed_by_the_next_numbers() {
        let mut state = state();
        assert_eq!(state.following(InodeId(102))[..2], [InodeId(103), InodeId(104)]);
        assert_eq!(state.following(InodeId(102)), [], "the same once more");
        assert_eq!(state.following(InodeId(5_000)), []);
        assert_eq!(state.following(InodeId(4_999)), []);
    }
}
