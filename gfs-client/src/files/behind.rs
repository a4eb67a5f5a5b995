//! Writes that are answered before the replicas have them: those at the beginning of new files that this session holds.
//!
//! What a program writes into a small new file waits here, at most some megabytes, and goes to the replicas in the order in which it was
//! written, pieces that follow each other as one. Everything else that is done to the file's bytes, and its end of being held, waits until
//! nothing waits here: nobody else is shown the file before. Nothing is taken when the cluster is nearly full, so that ENOSPC comes with
//! the write. What fails is told once, by the next write, flush or sync of the file, or by a sync of everything.

use super::{FileState, OpenFile};
use crate::client::Client;
use crate::delegations::Held;
use crate::error::ClientError;
use crate::limit::{CallContext, CallLimit};
use bytes::{Bytes, BytesMut};
use gfs_core::meta::request::Credentials;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Only the first bytes of a file are taken: small files gain by it, large ones keep the servers busy anyway.
const SMALL: u64 = 4 << 20;
/// Bytes that may wait in all files of a client.
const MOST: usize = 64 << 20;
/// Files of which something is written at a time.
const AT_ONCE: usize = 32;
/// Pieces that follow each other are written as one up to this length.
const JOINED: usize = 256 << 10;
/// With less room than this in the cluster nothing is taken.
const AMPLE: u64 = 2 << 30;
/// An outage is waited for so many times longer than by a call: nobody who could try again waits here.
const PATIENCE: u32 = 3;
/// How long an answer about the room counts.
const ROOM_COUNTS: Duration = Duration::from_secs(5);

/// What a client's files share.
pub(crate) struct Shared {
    bytes: Arc<Semaphore>,
    writers: Semaphore,
    room: Mutex<Room>,
    /// A failure that no open file is left to tell of.
    lost: Mutex<Option<ClientError>>,
}

#[derive(Default)]
struct Room {
    ample: bool,
    asked: Option<Instant>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(MOST)),
            writers: Semaphore::new(AT_ONCE),
            room: Mutex::default(),
            lost: Mutex::default(),
        }
    }
}

/// What waits of one file.
#[derive(Default)]
pub(super) struct Behind {
    queue: Mutex<Queue>,
    /// Quick to read: whether something waits or is on its way.
    busy: AtomicBool,
    emptied: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Piece>,
    running: bool,
    failed: Option<ClientError>,
}

struct Piece {
    offset: u64,
    data: Bytes,
    /// How many answered writes it is.
    writes: u64,
    held: Arc<Held>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

impl Queue {
    /// The next piece, with what follows it directly.
    fn take(&mut self) -> Option<Piece> {
        let mut first = self.waiting.pop_front()?;
        let mut length = first.data.len();
        let mut joined = Vec::new();
        while let Some(next) = self.waiting.front()
            && next.offset == first.offset + length as u64
            && length + next.data.len() <= JOINED
            && Arc::ptr_eq(&next.held, &first.held)
        {
            length += next.data.len();
            joined.extend(self.waiting.pop_front());
        }
        if !joined.is_empty() {
            let mut all = BytesMut::with_capacity(length);
            all.extend_from_slice(&first.data);
            for piece in joined {
                all.extend_from_slice(&piece.data);
                first.writes += piece.writes;
                first.permits.extend(piece.permits);
            }
            first.data = all.freeze();
        }
        Some(first)
    }
}

impl Behind {
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// What was lost, once.
    fn take_failure(&self) -> Result<(), ClientError> {
        match self.queue.lock().failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    async fn idle(&self) {
        loop {
            let emptied = self.emptied.notified();
            if !self.is_busy() {
                return;
            }
            emptied.await;
        }
    }
}

impl FileState {
    /// Returns when nothing waits to be written.
    pub(super) async fn drained(&self, context: &CallContext) -> Result<(), ClientError> {
        if self.behind.is_busy() { context.limit.run("write", self.behind.idle()).await } else { Ok(()) }
    }
}

impl OpenFile {
    /// As `write`, but may return before the replicas have the bytes when nobody but this client can tell: they are lost only with this
    /// process. A failure is then told by the next write, [`OpenFile::take_failure`] or `sync`.
    ///
    /// # Errors
    /// As `write`.
    pub async fn write_behind(
        &self,
        context: &CallContext,
        offset: u64,
        data: Bytes,
        clear_suid: bool,
    ) -> Result<(), ClientError> {
        self.take_failure()?;
        if !data.is_empty() && self.end_of(offset, data.len() as u64)? <= SMALL && self.queue(offset, &data)? {
            return Ok(());
        }
        self.write(context, offset, data, clear_suid).await
    }

    /// What could not be written after it was answered; told once.
    ///
    /// # Errors
    /// Why.
    pub fn take_failure(&self) -> Result<(), ClientError> {
        self.state().behind.take_failure()
    }

    /// Lets bytes wait; false when they have to be written now.
    fn queue(&self, offset: u64, data: &Bytes) -> Result<bool, ClientError> {
        let inner = &self.client().inner;
        let Some(held) = inner.delegations.get(self.inner.inode) else { return Ok(false) };
        self.check_writable()?;
        if !self.client().has_ample_room() {
            return Ok(false);
        }
        let Ok(permit) = inner.behind.bytes.clone().try_acquire_many_owned(data.len() as u32) else { return Ok(false) };
        let behind = &self.state().behind;
        let mut queue = behind.queue.lock();
        if queue.failed.is_some() || !held.begin_behind(offset + data.len() as u64, data.len() as u64) {
            return Ok(false);
        }
        queue.waiting.push_back(Piece { offset, data: data.clone(), writes: 1, held, permits: vec![permit] });
        behind.busy.store(true, Ordering::Release);
        if !std::mem::replace(&mut queue.running, true) {
            let file = self.clone();
            tokio::spawn(async move { file.write_waiting().await });
        }
        Ok(true)
    }

    /// Writes what waits until nothing does.
    async fn write_waiting(self) {
        let inner = &self.client().inner;
        let behind = &self.state().behind;
        loop {
            let Ok(_turn) = inner.behind.writers.acquire().await else { return };
            let piece = {
                let mut queue = behind.queue.lock();
                let Some(piece) = queue.take() else {
                    queue.running = false;
                    behind.busy.store(false, Ordering::Release);
                    break;
                };
                piece
            };
            let context =
                CallContext::new(Credentials::default(), CallLimit::within(inner.options.call_limit * PATIENCE));
            let (length, end) = (piece.data.len() as u64, piece.end());
            let written = self.write_held(&context, piece.offset, piece.data, &piece.held).await;
            if let Err(error) = written {
                self.lose_waiting(error, end);
            }
            if piece.held.end_behind(piece.writes, length) {
                inner.delegations.work.notify_one();
            }
        }
        behind.emptied.notify_waiters();
        inner.files.tidy(self.inner.inode);
    }

    /// What follows a failure would only fail too, or leave a hole where bytes were promised.
    fn lose_waiting(&self, error: ClientError, end: u64) {
        let inner = &self.client().inner;
        tracing::error!(%error, inode = %self.inner.inode, end, "written bytes are lost: the next call on the file tells");
        let mut queue = self.state().behind.queue.lock();
        for piece in std::mem::take(&mut queue.waiting) {
            piece.held.end_behind(piece.writes, piece.data.len() as u64);
        }
        if self.inner.closed.load(Ordering::Acquire) {
            inner.behind.lost.lock().get_or_insert(error);
        } else {
            queue.failed = Some(error);
        }
    }
}

impl Client {
    /// Returns when nothing waits to be written, in any file.
    ///
    /// # Errors
    /// What closed files have lost, once; and as any call.
    pub(crate) async fn drain_all(&self, context: &CallContext) -> Result<(), ClientError> {
        for state in self.inner.files.all_busy() {
            state.drained(context).await?;
        }
        self.inner.behind.lost.lock().take().map_or(Ok(()), Err)
    }

    /// Whether the cluster has so much room that what waits will find some. Asks now and then, and does not wait for the answer.
    fn has_ample_room(&self) -> bool {
        let mut room = self.inner.behind.room.lock();
        if room.asked.is_none_or(|asked| asked.elapsed() >= ROOM_COUNTS) {
            room.asked = Some(Instant::now());
            let client = self.clone();
            tokio::spawn(async move {
                let context = CallContext::new(Credentials::default(), CallLimit::within(ROOM_COUNTS));
                let free = client.statfs(&context).await.map_or(0, |usage| usage.free);
                client.inner.behind.room.lock().ample = free >= AMPLE;
            });
        }
        room.ample
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegations::tests::held;

    fn piece(held: &Arc<Held>, offset: u64, length: usize) -> Piece {
        Piece { offset, data: Bytes::from(vec![1; length]), writes: 1, held: held.clone(), permits: Vec::new() }
    }

    #[test]
    fn what_follows_directly_is_written_as_one_up_to_a_bound() {
        let held = held();
        let mut queue = Queue::default();
        for (offset, length) in [(0, 10), (10, 20), (40, 5), (45, JOINED), (45 + JOINED as u64, 7)] {
            queue.waiting.push_back(piece(&held, offset, length));
        }
        let taken: Vec<(u64, usize, u64)> =
            std::iter::from_fn(|| queue.take()).map(|piece| (piece.offset, piece.data.len(), piece.writes)).collect();
        assert_eq!(taken, [(0, 30, 2), (40, 5, 1), (45, JOINED, 1), (45 + JOINED as u64, 7, 1)]);
    }
}
