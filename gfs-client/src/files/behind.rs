//! Writes that are answered before the replicas have them: those at the beginning of new files that this session holds, and little ones
//! anywhere in them.
//!
//! What a program writes into such a file waits here, at most some megabytes, and goes to the replicas in the order in which it was
//! written, pieces that follow each other as one. Everything else that is done to the file's bytes, and its end of being held, waits until
//! nothing waits here: nobody else is shown the file before. Nothing is taken when the cluster is nearly full, so that ENOSPC comes with
//! the write. What fails is told once, by the next write, flush or sync of the file, or by a sync of everything.

use super::write::Manner;
use super::{FileState, OpenFile};
use crate::client::Client;
use crate::data::Behalf;
use crate::delegations::{Delegations, Held};
use crate::error::ClientError;
use crate::limit::{CallContext, CallLimit};
use bytes::{Bytes, BytesMut};
use gfs_core::meta::request::Credentials;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Only the first bytes of a file are taken: small files gain by it, large writes keep the servers busy anyway.
const SMALL: u64 = 4 << 20;
/// Beyond them, writes up to this length are taken: one after the other, each would wait for all replicas.
const LITTLE: usize = 32 << 10;
/// Bytes that may wait in all files of a client.
const MOST: usize = 16 << 20;
/// A piece counts as so many bytes at least: small ones cost time, and more memory than their bytes.
const LEAST: usize = 4 << 10;
/// Pieces of one file that may wait.
const PIECES: usize = 64;
/// Nothing more is taken when nothing was carried out for so long: who would have to wait shall wait.
const BRISK: Duration = Duration::from_millis(500);
/// What could not be carried out under its delegation is given up after so long: everything else of the client waits for it.
const LOOSE: Duration = Duration::from_secs(10);
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
    /// Pieces that are not carried out, and when one was, or the first of them came.
    pace: Mutex<Pace>,
}

#[derive(Default)]
struct Pace {
    pieces: u64,
    last: Option<Instant>,
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
            pace: Mutex::default(),
        }
    }
}

/// What waits of one file.
#[derive(Default)]
pub(super) struct Behind {
    queue: Mutex<Queue>,
    /// Whether something waits or is on its way: a task writes. Changed under the queue's lock, read without it.
    busy: AtomicBool,
    emptied: Notify,
    /// Those who wait for that: nothing more is taken meanwhile.
    waiters: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Piece>,
    failed: Option<ClientError>,
}

/// Bytes that are written as one.
struct Piece {
    offset: u64,
    data: Bytes,
    held: Arc<Held>,
    /// In which they were answered.
    session: u64,
    /// The answered writes that it is.
    answered: Vec<Answered>,
}

/// One answered write, until it is carried out or given up: then this is dropped.
struct Answered {
    held: Arc<Held>,
    bytes: u64,
    shared: Arc<Shared>,
    delegations: Arc<Delegations>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.shared.end();
        if self.held.end_behind(self.bytes) {
            self.delegations.work.notify_one();
        }
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
            && next.session == first.session
        {
            length += next.data.len();
            joined.extend(self.waiting.pop_front());
        }
        if !joined.is_empty() {
            let mut all = BytesMut::with_capacity(length);
            all.extend_from_slice(&first.data);
            for piece in joined {
                all.extend_from_slice(&piece.data);
                first.answered.extend(piece.answered);
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

    /// Whether there is nothing to be written and nothing to be told.
    pub(super) fn is_clean(&self) -> bool {
        !self.is_busy() && self.queue.lock().failed.is_none()
    }

    /// What was lost, once.
    pub(super) fn take_failure(&self) -> Result<(), ClientError> {
        self.queue.lock().failed.take().map_or(Ok(()), Err)
    }

    /// Ends the writing when nothing waits.
    fn end_if_empty(&self) -> bool {
        let queue = self.queue.lock();
        let empty = queue.waiting.is_empty();
        if empty {
            self.busy.store(false, Ordering::Release);
        }
        empty
    }

    async fn idle(&self) {
        let _waiter = Waiter::new(&self.waiters);
        loop {
            let emptied = self.emptied.notified();
            if !self.is_busy() {
                return;
            }
            emptied.await;
        }
    }
}

/// The end of the task that writes, also when it panics.
struct Finish<'a>(&'a Behind);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.0.queue.lock();
            queue.waiting.clear();
            self.0.busy.store(false, Ordering::Release);
        }
        self.0.emptied.notify_waiters();
    }
}

/// Counts one who waits.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    /// Takes a piece; false when the servers do not keep up.
    fn begin(&self) -> bool {
        let mut pace = self.pace.lock();
        let now = Instant::now();
        if pace.pieces == 0 {
            pace.last = Some(now);
        }
        let brisk = pace.last.is_none_or(|last| now < last + BRISK);
        pace.pieces += u64::from(brisk);
        brisk
    }

    fn end(&self) {
        let mut pace = self.pace.lock();
        pace.pieces -= 1;
        pace.last = Some(Instant::now());
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
        let end = self.end_of(offset, data.len() as u64)?;
        let taken = !data.is_empty() && (end <= SMALL || data.len() <= LITTLE);
        if taken && self.queue(offset, &data)? {
            return Ok(());
        }
        self.write(context, offset, data, clear_suid).await
    }

    /// As `append`, but may return before the replicas have the record, when nobody but this client can tell: where the file ends is for
    /// this session alone to say then. `None` when it has to be appended now.
    ///
    /// # Errors
    /// As `append`.
    pub(super) async fn append_behind(&self, context: &CallContext, data: &Bytes) -> Result<Option<u64>, ClientError> {
        let delegations = &self.client().inner.delegations;
        if data.is_empty() || data.len() > LITTLE || delegations.get(self.inner.inode).is_none() {
            return Ok(None);
        }
        let _turn = context.limit.run("append", self.state().appending.lock()).await?;
        loop {
            let held = delegations.get(self.inner.inode).and_then(|held| held.attributes());
            let Some((attributes, _)) = held else { return Ok(None) };
            self.end_of(attributes.size, data.len() as u64)?;
            if self.queue(attributes.size, data)? {
                return Ok(Some(attributes.size));
            }
            if !self.state().behind.is_busy() {
                return Ok(None);
            }
            self.state().drained(context).await?;
        }
    }

    /// What could not be written after it was answered; told once.
    ///
    /// # Errors
    /// Why.
    pub fn take_failure(&self) -> Result<(), ClientError> {
        let told = self.state().behind.take_failure();
        if matches!(told, Err(ClientError::SessionLost { .. })) {
            // The loss of the whole file is told with it.
            let _ = self.check();
        }
        told
    }

    /// Lets bytes wait; false when they have to be written now.
    fn queue(&self, offset: u64, data: &Bytes) -> Result<bool, ClientError> {
        let inner = &self.client().inner;
        // Before the file is looked for: what is held then is held in this session, or in a later one that refuses the bytes.
        let session = inner.session.data_session();
        let Some(held) = inner.delegations.get(self.inner.inode) else { return Ok(false) };
        self.check_writable()?;
        let lost = inner.lost_tails.contains(self.inner.inode);
        if lost || inner.delegations.loose().is_some() || !self.client().has_ample_room() {
            return Ok(false);
        }
        let cost = data.len().max(LEAST) as u32;
        let Ok(permit) = inner.behind.bytes.clone().try_acquire_many_owned(cost) else { return Ok(false) };
        let behind = &self.state().behind;
        let mut queue = behind.queue.lock();
        let busy = queue.waiting.len() >= PIECES || behind.waiters.load(Ordering::Acquire) > 0;
        if busy || queue.failed.is_some() || !inner.behind.begin() {
            return Ok(false);
        }
        let bytes = data.len() as u64;
        if !held.begin_behind(offset + bytes, bytes) {
            inner.behind.end();
            return Ok(false);
        }
        let (shared, delegations) = (inner.behind.clone(), inner.delegations.clone());
        let answered = Answered { held: held.clone(), bytes, shared, delegations, _permit: permit };
        queue.waiting.push_back(Piece { offset, data: data.clone(), held, session, answered: vec![answered] });
        if !behind.busy.swap(true, Ordering::AcqRel) {
            let file = self.clone();
            tokio::spawn(async move { file.write_waiting().await });
        }
        Ok(true)
    }

    /// Writes what waits until nothing does.
    async fn write_waiting(self) {
        let inner = &self.client().inner;
        let behind = &self.state().behind;
        let _end = Finish(behind);
        while !behind.end_if_empty() {
            let Ok(_turn) = inner.behind.writers.acquire().await else { return };
            let Some(piece) = behind.queue.lock().take() else { continue };
            let context =
                CallContext::new(Credentials::default(), CallLimit::within(inner.options.call_limit * PATIENCE));
            let given_up = async {
                piece.held.wait_detached().await;
                tokio::time::sleep(LOOSE).await;
            };
            let behalf = Behalf::Session(piece.session);
            let manner = Manner { clear_suid: false, behind: Some(&piece.held), behalf };
            let written = tokio::select! {
                written = self.write_part(&context, piece.offset, piece.data, manner) => written,
                () = given_up => Err(ClientError::TimedOut { operation: "write" }),
            };
            if let Err(error) = written {
                self.lose_waiting(error);
            }
        }
        inner.files.tidy(self.inner.inode);
    }

    /// What follows a failure would only fail too, or leave a hole where bytes were promised.
    fn lose_waiting(&self, error: ClientError) {
        tracing::error!(%error, inode = %self.inner.inode, "written bytes are lost: the next call on the file tells");
        let mut queue = self.state().behind.queue.lock();
        queue.waiting.clear();
        queue.failed = Some(error);
    }
}

impl Client {
    /// Returns when nothing waits to be written, in any file.
    ///
    /// # Errors
    /// What files that nobody has open have lost, once; and as any call.
    pub(crate) async fn drain_all(&self, context: &CallContext) -> Result<(), ClientError> {
        let mut result = Ok(());
        for (inode, state) in self.inner.files.all_behind() {
            result = result.and(state.drained(context).await);
            if state.handles.load(Ordering::Acquire) == 0 {
                result = result.and(state.behind.take_failure());
                self.inner.files.tidy(inode);
            }
        }
        result
    }

    /// Whether answered writes go on without their delegation.
    pub fn is_loose(&self) -> bool {
        self.inner.delegations.loose().is_some()
    }

    /// Returns when no answered write goes on without its delegation: before that nothing that is done here may pass it by. Ready at once
    /// but after a long outage.
    pub async fn settle_loose(&self, context: &CallContext) {
        let Some(loose) = self.inner.delegations.loose() else { return };
        for (_, state) in self.inner.files.all_behind() {
            if state.drained(context).await.is_err() {
                // It goes on waiting with the next call; this one has its limit.
                return;
            }
        }
        self.inner.delegations.tightened(loose);
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
        let (shared, delegations) = (Arc::<Shared>::default(), Arc::default());
        assert!(shared.begin() && held.begin_behind(offset + length as u64, length as u64));
        let permit = shared.bytes.clone().try_acquire_owned().unwrap();
        let answered =
            vec![Answered { held: held.clone(), bytes: length as u64, shared, delegations, _permit: permit }];
        Piece { offset, data: Bytes::from(vec![1; length]), held: held.clone(), session: 1, answered }
    }

    #[test]
    fn what_follows_directly_is_written_as_one_up_to_a_bound() {
        let held = held();
        let mut queue = Queue::default();
        for (offset, length) in [(0, 10), (10, 20), (40, 5), (45, JOINED), (45 + JOINED as u64, 7)] {
            queue.waiting.push_back(piece(&held, offset, length));
        }
        let pieces: Vec<Piece> = std::iter::from_fn(|| queue.take()).collect();
        let taken: Vec<(u64, usize, usize)> =
            pieces.iter().map(|piece| (piece.offset, piece.data.len(), piece.answered.len())).collect();
        assert_eq!(taken, [(0, 30, 2), (40, 5, 1), (45, JOINED, 1), (45 + JOINED as u64, 7, 1)]);
        let end = 45 + JOINED as u64 + 7;
        assert_eq!(held.attributes().unwrap().0.size, end, "they are shown until they are carried out");
        drop(pieces);
        assert_eq!(held.attributes().unwrap().0.size, 0);
    }
}
