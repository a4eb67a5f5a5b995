//! Writes that are answered before the replicas have them: those to files that this session holds.
//!
//! What a program writes into such a file waits here and goes to the replicas in the order in which it was written, pieces that follow each
//! other as one, several that do not overlap at a time; each becomes part of the file after those before it. Large writes beyond the beginning
//! of a file wait for room here, so that the program goes on at the pace of the servers. Everything else that is done to the file's bytes, and
//! its end of being held, waits until nothing waits here: nobody else is shown the file before. Nothing is taken when the cluster is nearly
//! full, so that ENOSPC comes with the write. What fails is told once, by the next write, flush or sync of the file, or by a sync of everything.

use super::write::Manner;
use super::{FileState, OpenFile};
use crate::client::{Client, Inner};
use crate::data::Behalf;
use crate::delegations::{Delegations, Held};
use crate::error::ClientError;
use crate::limit::{CallContext, CallLimit};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use gfs_core::meta::request::Credentials;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

/// Beyond the first bytes of a file, writes longer than `LITTLE` have a budget of their own.
const SMALL: u64 = 4 << 20;
const LITTLE: usize = 32 << 10;
/// Bytes that may wait in all files of a client, of such large writes and of all others.
const MOST_LARGE: usize = 64 << 20;
const MOST: usize = 16 << 20;
/// A piece counts as so many bytes at least: small ones cost time, and more memory than their bytes.
const LEAST: usize = 4 << 10;
/// Pieces of one file that may wait.
const PIECES: usize = 8192;
/// Nothing more is taken when nothing was carried out for so long: who would have to wait shall wait.
const BRISK: Duration = Duration::from_millis(500);
/// Nothing more of a file is taken when the oldest piece has waited for so long: how much waits follows the pace of the servers, so that
/// whoever asks for the file waits for it in time (`RECALL_WAITS` of the delegations).
const OLDEST: Duration = Duration::from_secs(2);
/// What could not be carried out under its delegation is given up after so long: everything else of the client waits for it.
const LOOSE: Duration = Duration::from_secs(10);
/// Files of which something is written at a time: more would only get into each other's way at the chunk servers.
const AT_ONCE: usize = 32;
/// After so many pieces another file that waits has its turn.
const TURN: u64 = 256;
/// Pieces that follow each other are written as one up to this length.
const JOINED: usize = 1 << 20;
/// What follows directly what is being written is written at the same time only if it is so long: until then more may follow it.
const APART: usize = 256 << 10;
/// Pieces of one file that are written at a time, with so many bytes together, or with fewer if they are small.
const UNDER_WAY: (usize, usize) = (64, 6 << 20);
/// With less room than this in the cluster nothing is taken.
const AMPLE: u64 = 2 << 30;
/// An outage is waited for so many times longer than by a call: nobody who could try again waits here.
const PATIENCE: u32 = 3;
/// How long an answer about the room counts.
const ROOM_COUNTS: Duration = Duration::from_secs(5);

/// What a client's files share.
pub(crate) struct Shared {
    bytes: Arc<Semaphore>,
    large: Arc<Semaphore>,
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
            large: Arc::new(Semaphore::new(MOST_LARGE)),
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
    /// Rings when a piece came.
    more: Notify,
    /// Those who wait for that: nothing more is taken meanwhile.
    waiters: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Piece>,
    failed: Option<ClientError>,
    /// Where the last piece ends, and how much was written up to there in a row since the last was taken.
    end: u64,
    run: usize,
    /// One has failed, and others are still on their way: the file is shown longer than it will be.
    failing: bool,
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
    since: Instant,
}

impl Piece {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.data.len() as u64
    }
}

/// One answered write, until it is carried out or given up: then this is dropped.
struct Answered {
    held: Arc<Held>,
    shared: Arc<Shared>,
    delegations: Arc<Delegations>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.shared.end();
        if self.held.end_behind() {
            self.delegations.work.notify_one();
        }
    }
}

impl Queue {
    /// The next piece, with what follows it directly; not while something is written that it overlaps, nor a small one while it follows
    /// directly what is being written: more may come to be joined with it.
    fn take(&mut self, under_way: &[Range<u64>]) -> Option<Piece> {
        let free = |next: &Range<u64>| !under_way.iter().any(|range| range.start < next.end && next.start < range.end);
        let first = self.waiting.front().filter(|first| free(&first.range()))?;
        let (mut count, mut end) = (1, first.range().end);
        for next in self.waiting.iter().skip(1) {
            let same = Arc::ptr_eq(&next.held, &first.held) && next.session == first.session;
            let short = next.range().end <= first.offset + JOINED as u64;
            if next.offset != end || !same || !short || !free(&next.range()) {
                break;
            }
            (count, end) = (count + 1, next.range().end);
        }
        let length = (end - first.offset) as usize;
        let follows = under_way.iter().any(|range| range.end == first.offset);
        if follows && length < APART && count == self.waiting.len() {
            return None;
        }
        self.run = 0;
        let mut first = self.waiting.pop_front()?;
        if count > 1 {
            let mut all = BytesMut::with_capacity(length);
            all.extend_from_slice(&first.data);
            for piece in self.waiting.drain(..count - 1) {
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
            queue.failing = false;
            self.0.busy.store(false, Ordering::Release);
        }
        self.0.emptied.notify_waiters();
    }
}

/// The turns of pieces that are written at the same time: each becomes part of the file after those before it.
struct Turns {
    /// The number of the piece whose turn it is; `None` when one has failed, so that none after it has a turn.
    next: watch::Sender<Option<u64>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { next: watch::Sender::new(Some(0)) }
    }
}

impl Turns {
    fn have_failed(&self) -> bool {
        self.next.borrow().is_none()
    }

    /// Nothing is under way: the next piece is this one.
    fn begin(&self, number: u64) {
        self.next.send_replace(Some(number));
    }
}

/// The turn of one piece.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turn<'_> {
    /// Waits for it; false when it never comes.
    pub(super) async fn comes(&self) -> bool {
        let mut next = self.turns.next.subscribe();
        let came = next.wait_for(|next| next.is_none_or(|next| next >= self.number)).await;
        came.is_ok_and(|next| next.is_some())
    }

    /// It is over; when the piece failed, no other comes.
    fn over(&self, written: bool) {
        self.turns.next.send_replace(written.then_some(self.number + 1));
    }
}

/// What bytes that wait count as.
fn cost(data: &Bytes) -> u32 {
    data.len().max(LEAST) as u32
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
    /// Whether something of it waits to be written.
    pub(super) fn is_behind(&self) -> bool {
        self.behind.is_busy()
    }

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
        let behind = &self.client().inner.behind;
        let held = self.wish_to_hold(context).await;
        if held && !data.is_empty() && data.len() <= MOST {
            let large = end > SMALL && data.len() > LITTLE;
            let budget = if large { &behind.large } else { &behind.bytes };
            // Another file may have it all, and its servers not answer: then this one waits for its own.
            let room = tokio::time::timeout(BRISK, budget.clone().acquire_many_owned(cost(&data)));
            if let Ok(Ok(permit)) = context.limit.run("write", room).await?
                && self.queue(offset, &data, permit)?
            {
                return Ok(());
            }
        }
        self.write(context, offset, data, clear_suid).await
    }

    /// As `append`, but may return before the replicas have the record, when nobody but this client can tell: where the file ends is for
    /// this session alone to say then. `None` when it has to be appended now.
    ///
    /// # Errors
    /// As `append`.
    pub(super) async fn append_behind(&self, context: &CallContext, data: &Bytes) -> Result<Option<u64>, ClientError> {
        let held = data.len() <= LITTLE && self.wish_to_hold(context).await;
        if data.is_empty() || !held {
            return Ok(None);
        }
        let Inner { behind, delegations, .. } = &*self.client().inner;
        let _turn = context.limit.run("append", self.state().appending.lock()).await?;
        loop {
            let held = delegations.get(self.inner.inode).and_then(|held| held.attributes());
            let Some((attributes, _)) = held else { return Ok(None) };
            self.end_of(attributes.size, data.len() as u64)?;
            if let Ok(permit) = behind.bytes.clone().try_acquire_many_owned(cost(data))
                && self.queue(attributes.size, data, permit)?
            {
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
    fn queue(&self, offset: u64, data: &Bytes, permit: OwnedSemaphorePermit) -> Result<bool, ClientError> {
        let inner = &self.client().inner;
        // Before the file is looked for: what is held then is held in this session, or in a later one that refuses the bytes.
        let session = inner.session.data_session();
        let Some(held) = inner.delegations.get(self.inner.inode) else { return Ok(false) };
        self.check_writable()?;
        let lost = inner.lost_tails.contains(self.inner.inode);
        if lost || inner.delegations.loose().is_some() || !self.client().has_ample_room() {
            return Ok(false);
        }
        let behind = &self.state().behind;
        let mut queue = behind.queue.lock();
        let slow = queue.waiting.front().is_some_and(|piece| piece.since.elapsed() >= OLDEST);
        let busy = queue.waiting.len() >= PIECES || slow || behind.waiters.load(Ordering::Acquire) > 0;
        if busy || queue.failing || queue.failed.is_some() || !inner.behind.begin() {
            return Ok(false);
        }
        let range = offset..offset + data.len() as u64;
        if !held.begin_behind(&range, inner.chunk_size) {
            inner.behind.end();
            return Ok(false);
        }
        let (shared, delegations) = (inner.behind.clone(), inner.delegations.clone());
        let answered = Answered { held: held.clone(), shared, delegations, _permit: permit };
        let since = Instant::now();
        queue.run = if queue.end == range.start { queue.run + data.len() } else { APART };
        queue.end = range.end;
        let rings = queue.run >= APART;
        queue.waiting.push_back(Piece { offset, data: data.clone(), held, session, answered: vec![answered], since });
        if !behind.busy.swap(true, Ordering::AcqRel) {
            let file = self.clone();
            tokio::spawn(async move { file.write_waiting().await });
        } else if rings {
            behind.more.notify_one();
        }
        Ok(true)
    }

    /// Writes what waits until nothing does.
    async fn write_waiting(self) {
        let behind = &self.state().behind;
        let _end = Finish(behind);
        let turns = Turns::default();
        let mut running = FuturesUnordered::new();
        let mut under_way: Vec<Range<u64>> = Vec::new();
        let mut permit: Option<SemaphorePermit<'_>> = None;
        let mut since = 0;
        for number in 0.. {
            let piece = loop {
                let more = behind.more.notified();
                if running.is_empty() {
                    // What failed, and what was under way with it, is over; what was answered since then has its own fate.
                    turns.begin(number);
                    behind.queue.lock().failing = false;
                    drop(permit.take());
                    if behind.end_if_empty() {
                        break None;
                    }
                    permit = self.client().inner.behind.writers.acquire().await.ok();
                    since = number;
                }
                let bytes: u64 = under_way.iter().map(|range| range.end - range.start).sum();
                let room = running.len() < UNDER_WAY.0
                    && bytes < UNDER_WAY.1 as u64
                    && !turns.have_failed()
                    && number < since + TURN;
                if room && let Some(piece) = behind.queue.lock().take(&under_way) {
                    break Some(piece);
                }
                if let Some(done) = tokio::select! {
                    Some(done) = running.next(), if !running.is_empty() => Some(done),
                    () = more, if room => None,
                } {
                    under_way.retain(|range| *range != done);
                }
            };
            let Some(piece) = piece else { break };
            under_way.push(piece.range());
            running.push(self.write_one_waiting(piece, Turn { turns: &turns, number }));
        }
        self.client().inner.files.tidy(self.inner.inode);
    }

    /// Writes one piece, after those before it; answers which.
    async fn write_one_waiting(&self, piece: Piece, turn: Turn<'_>) -> Range<u64> {
        let inner = &self.client().inner;
        let range = piece.range();
        let context = CallContext::new(Credentials::default(), CallLimit::within(inner.options.call_limit * PATIENCE));
        let given_up = async {
            piece.held.wait_detached().await;
            tokio::time::sleep(LOOSE).await;
        };
        let behalf = Behalf::Session(piece.session);
        let manner = Manner { clear_suid: false, behind: Some((&piece.held, turn)), behalf };
        let written = tokio::select! {
            written = self.write_part(&context, piece.offset, piece.data, manner) => written,
            () = given_up => Err(ClientError::TimedOut { operation: "write" }),
        };
        // In turn too: what is told of a failure is the first one.
        match (written, turn.comes().await) {
            (Ok(()), true) => turn.over(true),
            (Err(error), true) => {
                self.lose_waiting(error);
                turn.over(false);
            }
            // One before it has failed, which is told.
            (_, false) => {}
        }
        range
    }

    /// What follows a failure would only fail too, or leave a hole where bytes were promised.
    fn lose_waiting(&self, error: ClientError) {
        tracing::error!(%error, inode = %self.inner.inode, "written bytes are lost: the next call on the file tells");
        let mut queue = self.state().behind.queue.lock();
        queue.waiting.clear();
        queue.failing = true;
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
    pub(super) fn has_ample_room(&self) -> bool {
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
    use futures_util::FutureExt;

    fn piece(held: &Arc<Held>, offset: u64, length: usize) -> Piece {
        let (shared, delegations) = (Arc::<Shared>::default(), Arc::default());
        assert!(shared.begin() && held.begin_behind(&(0..offset + length as u64), 64 << 20));
        let permit = shared.bytes.clone().try_acquire_owned().unwrap();
        let answered = vec![Answered { held: held.clone(), shared, delegations, _permit: permit }];
        let (data, since) = (Bytes::from(vec![1; length]), Instant::now());
        Piece { offset, data, held: held.clone(), session: 1, answered, since }
    }

    #[tokio::test]
    async fn turns_come_in_order_and_none_comes_after_a_failure() {
        let turns = Turns::default();
        let turn = |number| Turn { turns: &turns, number };
        assert!(turn(0).comes().await);
        let mut second = Box::pin(async { turn(1).comes().await });
        assert!(second.as_mut().now_or_never().is_none());
        turn(0).over(true);
        assert!(second.await);
        turn(1).over(false);
        assert!(turns.have_failed() && !turn(2).comes().await && !turn(9).comes().await);
        turns.begin(3);
        assert!(turn(3).comes().await);
    }

    #[test]
    fn what_is_being_written_is_not_written_over_before_it_is_done() {
        let held = held();
        let mut queue = Queue::default();
        for (offset, length) in [(0, 10), (10, 10), (30, 10)] {
            queue.waiting.push_back(piece(&held, offset, length));
        }
        assert!(queue.take(&[5..6, 90..91]).is_none());
        let first = queue.take(&[15..16, 90..91]).unwrap();
        assert_eq!(first.range(), 0..10, "without what follows it");
        assert!(queue.take(&[first.range(), 15..16]).is_none());
        assert_eq!(queue.take(&[first.range()]).unwrap().range(), 10..20);
        assert_eq!(queue.take(&[0..10, 10..20]).unwrap().range(), 30..40);
    }

    #[test]
    fn a_little_that_follows_what_is_being_written_waits_for_more() {
        let held = held();
        let mut queue = Queue::default();
        for (offset, length) in [(100, 10), (110, 10)] {
            queue.waiting.push_back(piece(&held, offset, length));
        }
        assert!(queue.take(&[0..100, 500..600]).is_none());
        queue.waiting.push_back(piece(&held, 120, APART));
        let length = 20 + APART as u64;
        assert_eq!(queue.take(&[0..100, 50..60]).unwrap().range(), 100..100 + length);
        queue.waiting.push_back(piece(&held, 200, 10));
        assert_eq!(queue.take(&[0..100, 50..60]).unwrap().range(), 200..210, "it follows nothing");
        queue.waiting.push_back(piece(&held, 100, 10));
        assert_eq!(queue.take(&[]).unwrap().range(), 100..110, "nothing is being written");
        for offset in [100, 110, 300] {
            queue.waiting.push_back(piece(&held, offset, 10));
        }
        assert_eq!(queue.take(&[0..100, 50..60]).unwrap().range(), 100..120, "what comes next does not follow it");
    }

    #[test]
    fn what_follows_directly_is_written_as_one_up_to_a_bound() {
        let held = held();
        let mut queue = Queue::default();
        for (offset, length) in [(0, 10), (10, 20), (40, 5), (45, JOINED), (45 + JOINED as u64, 7)] {
            queue.waiting.push_back(piece(&held, offset, length));
        }
        let pieces: Vec<Piece> = std::iter::from_fn(|| queue.take(&[])).collect();
        let taken: Vec<(u64, usize, usize)> =
            pieces.iter().map(|piece| (piece.offset, piece.data.len(), piece.answered.len())).collect();
        assert_eq!(taken, [(0, 30, 2), (40, 5, 1), (45, JOINED, 1), (45 + JOINED as u64, 7, 1)]);
        let end = 45 + JOINED as u64 + 7;
        assert_eq!(held.attributes().unwrap().0.size, end, "they are shown until they are carried out");
        drop(pieces);
        assert_eq!(held.attributes().unwrap().0.size, 0);
    }
}
