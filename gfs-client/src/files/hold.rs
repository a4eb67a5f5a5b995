//! Holding files that were there before, and new ones for longer than a while: so that writes to them are answered early, and told together.
//!
//! Who writes a file for the second time asks the master for it, unless another client has it open. What is known of the file then has to be
//! all that there is: nothing of this client that changes it is under way meanwhile (`FileState::changing`).

use super::OpenFile;
use crate::client::Client;
use crate::delegations::Held;
use crate::error::ClientError;
use crate::grants::{Grant, Keys};
use crate::limit::{CallContext, CallLimit};
use gfs_core::ids::InodeId;
use gfs_core::meta::holds::MAX_CHUNKS;
use gfs_core::meta::request::{Credentials, Timestamp};
use gfs_proto::v1::{self, request::Kind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::RwLockReadGuard;
use tokio::time::Instant;

// All chunks of a file that is held come with one answer.
const _: () = assert!(MAX_CHUNKS <= super::view::MAX_COUNT);
/// So many writes of a file have it asked for.
const WRITES: u32 = 2;
/// After a refusal it is not asked for again at first, and at most; doubled each time.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A file is waited for so long at most: others that change it wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// Limit of asking for a file that is held already.
const LIMIT: Duration = Duration::from_secs(10);

/// Whether a file may be asked for.
#[derive(Default)]
pub(super) struct Wish {
    /// Writes since it was last held.
    writes: u32,
    /// Not before, and how long the next pause is.
    rests: Option<(Instant, Duration)>,
}

impl Wish {
    /// Counts a write; true when the file is to be asked for.
    fn writes(&mut self, now: Instant) -> bool {
        self.writes = self.writes.saturating_add(1);
        self.writes >= WRITES && self.rests.is_none_or(|(until, _)| until <= now)
    }

    fn refused(&mut self, now: Instant) {
        let pause = self.rests.map_or(AGAIN.0, |(_, next)| next);
        *self = Self { writes: 0, rests: Some((now + pause, (pause * 2).min(AGAIN.1))) };
    }

    fn granted(&mut self) {
        self.writes = 0;
    }
}

impl OpenFile {
    /// To be held while this client changes the file in a way that the master is told of at once.
    pub(super) async fn changing(&self, context: &CallContext) -> Result<RwLockReadGuard<'_, ()>, ClientError> {
        self.state().changing(context).await
    }

    /// A write is about to be made that may be answered early. Asks for the file where that is worth it; answers whether it is held now.
    pub(super) async fn wish_to_hold(&self, context: &CallContext) -> bool {
        let inner = &self.client().inner;
        if let Some(held) = inner.delegations.get(self.inner.inode) {
            if held.shall_last() {
                let client = self.client().clone();
                tokio::spawn(async move { client.prolong(held).await });
            }
            return true;
        }
        if !self.state().wish.lock().writes(Instant::now()) || !self.client().has_ample_room() {
            return false;
        }
        // What still goes on without a delegation, or gives back a place that it has claimed, may change the file.
        let claimed = Arc::strong_count(&self.state().claims) > 1;
        if claimed || self.state().is_behind() || inner.delegations.loose().is_some() {
            return false;
        }
        // Where something else changes the file just now, the next write asks.
        let Ok(_alone) = self.state().changing.try_write() else { return false };
        let patience = CallContext::new(context.credentials.clone(), CallLimit::within(PATIENCE));
        let held = context.limit.run("hold", self.hold(&patience)).await.unwrap_or_else(|error| {
            inner.delegations.disowns(self.inner.inode);
            Err(error)
        });
        let held = held.unwrap_or_else(|error| {
            tracing::debug!(%error, inode = %self.inner.inode, "a file is not held");
            false
        });
        let mut wish = self.state().wish.lock();
        if held {
            wish.granted()
        } else {
            wish.refused(Instant::now())
        }
        held
    }

    async fn hold(&self, context: &CallContext) -> Result<bool, ClientError> {
        let inner = &self.client().inner;
        let inode = self.inner.inode;
        let Some(claims) = inner.delegations.asks_for(inode) else { return Ok(false) };
        let asked = self.client().ask_to_hold(inode, context).await;
        // It may have been committed all the same.
        let now = asked.inspect_err(|_| inner.delegations.disowns(inode))?;
        let Some(now) = now else { return Ok(false) };
        let stamp = inner.grants.stamp();
        let (attributes, chunks) = match self.client().layout(context, inode, 0, MAX_CHUNKS).await {
            Ok(all) => all,
            Err(error) => {
                inner.delegations.disowns(inode);
                return Err(error);
            }
        };
        let whole = attributes.size <= u64::from(MAX_CHUNKS).saturating_mul(inner.chunk_size);
        if !whole || chunks.iter().any(|chunk| chunk.index >= MAX_CHUNKS) {
            inner.delegations.disowns(inode);
            return Ok(false);
        }
        let grant = Grant::new(stamp, 0, Keys { inodes: vec![inode], ..Keys::default() });
        Ok(inner.delegations.holds_existing((&attributes, &chunks), now, grant, claims))
    }
}

impl Client {
    /// Has the master commit that this session holds a file. Answers the master's clock, or `None` when it does not.
    async fn ask_to_hold(&self, inode: InodeId, context: &CallContext) -> Result<Option<Timestamp>, ClientError> {
        let request = v1::Request { kind: Some(Kind::Hold(inode.0)) };
        match self.mutate_wire("hold", context, request).await {
            Ok((reply, _)) if reply.delegated => Ok(Some(Timestamp(reply.now_ns))),
            Ok(_) => {
                // Committed, but somebody else has opened it meanwhile.
                self.inner.delegations.disowns(inode);
                Ok(None)
            }
            Err(ClientError::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the master commit that a new file is held, so that it need not end soon.
    async fn prolong(&self, held: Arc<Held>) {
        let context = CallContext::new(Credentials::default(), CallLimit::within(LIMIT));
        let kept = match self.ask_to_hold(held.inode(), &context).await {
            Ok(Some(_)) => held.lasts(true),
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, inode = %held.inode(), "a file is not held for longer");
                held.lasts(false)
            }
        };
        if kept { self.inner.delegations.work.notify_one() } else { self.inner.delegations.disowns(held.inode()) }
    }

    /// Files that a change of names may concern, though under which names they are held is not known: those that stand there, as far as that
    /// is known, else all such.
    pub(crate) fn held_under(&self, entries: &[(InodeId, Vec<u8>)]) -> Vec<Arc<Held>> {
        let unnamed = self.inner.delegations.unnamed();
        if unnamed.is_empty() || entries.is_empty() {
            return Vec::new();
        }
        let known: Option<Vec<Option<InodeId>>> =
            entries.iter().map(|entry| self.inner.grants.name(entry).map(|(target, _)| target)).collect();
        match known {
            Some(targets) => unnamed.into_iter().filter(|held| targets.contains(&Some(held.inode()))).collect(),
            None => unnamed,
        }
    }

    /// To be held while this client changes files by their inodes: those of which anything is open here.
    pub(crate) fn states_of(&self, inodes: &[InodeId]) -> Vec<Arc<super::FileState>> {
        let files = self.inner.files.files.lock();
        inodes.iter().filter_map(|inode| files.get(inode).cloned()).collect()
    }

    /// The last handle that may write was closed: what was only held for its sake is given back.
    pub(super) fn let_go(&self, inode: InodeId) {
        let delegations = &self.inner.delegations;
        if delegations.get(inode).is_some_and(|held| held.let_go()) {
            delegations.work.notify_one();
        }
    }
}

impl super::FileState {
    /// See [`OpenFile::changing`].
    pub(crate) async fn changing(&self, context: &CallContext) -> Result<RwLockReadGuard<'_, ()>, ClientError> {
        context.limit.run("write", self.changing.read()).await
    }

    /// Whether the handle that goes was the last that may write.
    pub(super) fn writer_goes(&self) -> bool {
        self.writers.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_asked_for_at_the_second_write_and_less_and_less_often_when_refused() {
        let (mut wish, begin) = (Wish::default(), Instant::now());
        assert!(!wish.writes(begin) && wish.writes(begin));
        wish.refused(begin);
        assert!(!wish.writes(begin) && !wish.writes(begin), "at once again");
        let later = begin + AGAIN.0;
        assert!(wish.writes(later));
        wish.refused(later);
        wish.writes(later);
        assert!(!wish.writes(later + AGAIN.0) && wish.writes(later + 2 * AGAIN.0), "twice as long");
        let mut wish = Wish::default();
        wish.writes(begin);
        wish.granted();
        assert!(!wish.writes(begin) && wish.writes(begin), "given back, it takes two writes again");
    }
}
