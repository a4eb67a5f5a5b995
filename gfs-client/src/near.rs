//! Replicas that chunk servers of this machine have lent: they are read in place, without a message.
//!
//! This room asks for loans, keeps them, and reads. Nothing here has to succeed: whoever finds no replica here asks the servers, and so does
//! whoever meets one that is damaged, or a disk that does not answer, for they repair and go elsewhere. What keeps it right is in `gfs_local`.

use crate::data::Piece;
use crate::locations::{Locations, Peer};
use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, ClusterId, Epoch, ServerId};
use gfs_local::layout::Geometry;
use gfs_local::{LedgerView, LentReplica, Unread, ledger, words};
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// Chunks that something is known of.
const CHUNKS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// Replicas that are kept open at most; fewer if this process may open few files.
const OPEN: usize = 1024;
/// A read of so many bytes asks for a loan at once; a smaller one when the chunk is read again.
const LARGE: usize = 64 << 10;
/// A chunk server of this machine answers within this, or is not asked for a while.
const ANSWER: Duration = Duration::from_millis(300);
/// Where there is no chunk server, or one that does not lend to this user, it is asked again after so long.
const ABSENT: Duration = Duration::from_secs(5);
/// A replica that is not lent, or whose loan has ended, is asked for again after so long.
const REFUSED: Duration = Duration::from_millis(200);
/// The same of one that was damaged, or whose disk did not answer.
const DOUBTED: Duration = Duration::from_secs(5);
/// A disk that does not answer within this is not waited for: others have the bytes too.
const PATIENCE: Duration = Duration::from_millis(120);
/// Reads that wait for disks at a time.
const WAITING: usize = 64;
/// So far ahead of a reader that goes on in a row the disk is asked, and in steps of so much, in bytes.
pub(crate) const AHEAD: u64 = 8 << 20;
const STEP: u64 = 2 << 20;
/// How often files of loans that are over are closed.
const SWEEP: Duration = Duration::from_secs(1);

/// A replica that is lent to this client.
struct Lent {
    replica: LentReplica,
    epoch: Epoch,
    /// Up to where the disk was asked ahead.
    asked: AtomicU64,
}

enum Known {
    /// It was read once.
    Seen,
    /// A chunk server is being asked.
    Asked,
    Lent(Arc<Lent>),
    /// Not to be asked for before.
    Refused(Instant),
}

/// One chunk server that may be on this machine.
#[derive(Default)]
struct Lender {
    link: Option<Link>,
    /// Not to be asked before.
    rests: Option<Instant>,
}

struct Link {
    stream: UnixStream,
    /// The page of the process that answers there.
    page: Option<(u64, Arc<LedgerView>)>,
}

/// See the module.
pub(crate) struct Near {
    /// `None`: nothing is read in place.
    cluster: Option<ClusterId>,
    locations: Arc<Locations>,
    lenders: Mutex<HashMap<ServerId, Arc<Mutex<Lender>>>>,
    chunks: Mutex<LruCache<ChunkHandle, Known>>,
    open: NonZeroUsize,
    /// Those lent, in the order in which they were.
    lent: Mutex<LruCache<ChunkHandle, ()>>,
    waiting: Arc<tokio::sync::Semaphore>,
}

impl Near {
    /// Reads in place where a chunk server of this cluster is on this machine, if `cluster` is given.
    pub(crate) fn new(cluster: Option<ClusterId>, locations: Arc<Locations>) -> Arc<Self> {
        let may_open = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let open = NonZeroUsize::new((may_open / 4).min(OPEN as u64) as usize).unwrap_or(NonZeroUsize::MIN);
        Arc::new(Self {
            cluster,
            locations,
            lenders: Mutex::default(),
            chunks: Mutex::new(LruCache::new(CHUNKS)),
            open,
            lent: Mutex::new(LruCache::unbounded()),
            waiting: Arc::new(tokio::sync::Semaphore::new(WAITING)),
        })
    }

    /// Reads a part of a chunk in place; `None` when the servers have to be asked.
    pub(crate) async fn read(
        self: &Arc<Self>,
        piece: Piece,
        (offset, length): (u64, usize),
        in_a_row: bool,
    ) -> Option<Bytes> {
        let lent = self.find(piece, length)?;
        if length <= LARGE {
            match lent.replica.read(offset, length, false) {
                Err(Unread::WouldWait) => {}
                other => return self.judge(piece.handle, other),
            }
        }
        let permit = self.waiting.clone().try_acquire_owned().ok()?;
        let waits = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            lent.read(offset, length, in_a_row)
        });
        match tokio::time::timeout(PATIENCE, waits).await {
            Ok(Ok(result)) => self.judge(piece.handle, result),
            Ok(Err(_)) => None,
            Err(_) => {
                self.doubt(piece.handle);
                None
            }
        }
    }

    /// The same on a thread that may wait for the disk.
    pub(crate) fn read_here(
        self: &Arc<Self>,
        piece: Piece,
        (offset, length): (u64, usize),
        in_a_row: bool,
    ) -> Option<Bytes> {
        let lent = self.find(piece, length)?;
        self.judge(piece.handle, lent.read(offset, length, in_a_row))
    }

    /// A reader that goes on in a row comes to this chunk next: has its replica lent, and its first bytes read.
    pub(crate) fn prepare(self: &Arc<Self>, next: Piece) {
        if let Some(lent) = self.find(next, LARGE) {
            lent.ahead(0, 0);
        }
    }

    fn judge(&self, handle: ChunkHandle, result: Result<Bytes, Unread>) -> Option<Bytes> {
        match result {
            Ok(bytes) => return Some(bytes),
            Err(Unread::Damaged(_) | Unread::Disk(_)) => self.doubt(handle),
            Err(Unread::Over) => self.put(handle, Known::Refused(Instant::now() + REFUSED)),
            Err(Unread::WouldWait | Unread::Range) => {}
        }
        None
    }

    /// What is read in place of a chunk is doubtful: the servers are asked for a while.
    fn doubt(&self, handle: ChunkHandle) {
        self.put(handle, Known::Refused(Instant::now() + DOUBTED));
    }

    fn put(&self, handle: ChunkHandle, known: Known) {
        self.lent.lock().pop(&handle);
        let old = self.chunks.lock().push(handle, known);
        close(old);
    }

    /// The replica of a chunk, if one is lent that is at least as new as the piece; has one asked for where that is worth it.
    fn find(self: &Arc<Self>, piece: Piece, length: usize) -> Option<Arc<Lent>> {
        self.cluster?;
        let handle = piece.handle;
        let mut chunks = self.chunks.lock();
        match chunks.get(&handle) {
            Some(Known::Lent(lent)) => {
                // One of a newer epoch says that the file may have been cut since its size was learned: the servers say so too.
                let fits = piece.epoch.is_none_or(|epoch| epoch == lent.epoch);
                return fits.then(|| lent.clone());
            }
            Some(Known::Asked) => return None,
            Some(Known::Refused(until)) if *until > Instant::now() => return None,
            None if length < LARGE => {
                let old = chunks.push(handle, Known::Seen);
                drop(chunks);
                close(old);
                return None;
            }
            Some(Known::Seen | Known::Refused(_)) | None => {}
        }
        let members = self.locations.configuration(handle)?.members;
        let peers = members.iter().filter_map(|server| self.locations.peer(*server));
        let mut members: Vec<Peer> = peers.filter(|peer| peer.near).collect();
        if members.is_empty() {
            return None;
        }
        // All clients of a machine read the same replica, so that it is in memory once.
        let turn = (handle.0 % members.len() as u64) as usize;
        members.rotate_left(turn);
        let old = chunks.push(handle, Known::Asked);
        drop(chunks);
        close(old);
        let near = self.clone();
        tokio::task::spawn_blocking(move || near.borrow(handle, &members));
        None
    }

    /// Asks the servers for a loan, one after the other. Blocks.
    fn borrow(&self, handle: ChunkHandle, members: &[Peer]) {
        match members.iter().find_map(|peer| self.ask(peer, handle)) {
            Some(lent) => {
                lent.replica.will_need_table();
                let mut order = self.lent.lock();
                order.put(handle, ());
                let oldest = if order.len() > self.open.get() { order.pop_lru() } else { None };
                drop(order);
                let mut chunks = self.chunks.lock();
                let evicted = oldest.and_then(|(oldest, ())| chunks.pop_entry(&oldest));
                let old = chunks.push(handle, Known::Lent(Arc::new(lent)));
                drop(chunks);
                close(evicted);
                close(old);
            }
            None => self.put(handle, Known::Refused(Instant::now() + REFUSED)),
        }
    }

    fn ask(&self, peer: &Peer, handle: ChunkHandle) -> Option<Lent> {
        let (cluster, server) = (self.cluster?, peer.server);
        let lender = self.lenders.lock().entry(server).or_default().clone();
        let mut lender = lender.lock();
        if lender.rests.is_some_and(|until| until > Instant::now()) {
            return None;
        }
        if lender.link.is_none() {
            match Link::open(cluster, peer) {
                Ok(link) => lender.link = Some(link),
                Err(error) => {
                    tracing::debug!(%server, %error, "no chunk server to borrow from");
                    lender.rests = Some(Instant::now() + ABSENT);
                    return None;
                }
            }
        }
        let asked = lender.link.as_mut().map(|link| link.ask(handle));
        asked?.unwrap_or_else(|error| {
            tracing::debug!(%server, %error, "a chunk server of this machine does not lend");
            *lender = Lender { link: None, rests: Some(Instant::now() + ABSENT) };
            None
        })
    }

    /// Closes the files of loans that are over: their chunks may have been deleted.
    fn sweep(&self) {
        let mut over = Vec::new();
        for (handle, known) in self.chunks.lock().iter() {
            if let Known::Lent(lent) = known
                && !lent.replica.stands()
            {
                over.push(*handle);
            }
        }
        for handle in over {
            self.put(handle, Known::Refused(Instant::now()));
        }
    }
}

/// Lets go of what is known no more. To close the file of a deleted chunk frees its space, which may take long, and must keep nobody.
fn close(known: Option<(ChunkHandle, Known)>) {
    if let Some((_, Known::Lent(lent))) = known {
        tokio::task::spawn_blocking(move || drop(lent));
    }
}

/// Tidies up until the client is gone.
pub(crate) async fn run(near: Weak<Near>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match near.upgrade() {
            Some(near) if !near.lent.lock().is_empty() => near.sweep(),
            Some(_) => {}
            None => return,
        }
    }
}

impl Lent {
    /// Reads, waiting for the disk; one that goes on in a row has the disk asked for what comes next.
    fn read(&self, offset: u64, length: usize, in_a_row: bool) -> Result<Bytes, Unread> {
        if in_a_row && length >= LARGE {
            self.ahead(offset, length);
        }
        self.replica.read(offset, length, true)
    }

    /// Has the disk asked for what comes after a range, and for the range.
    fn ahead(&self, offset: u64, length: usize) {
        let end = offset + length as u64;
        let asked = self.asked.load(Ordering::Relaxed);
        // What was asked for far behind or before says nothing of this reader.
        let from = if (offset..=end + AHEAD).contains(&asked) { asked } else { offset };
        if end + AHEAD >= from + STEP {
            self.asked.store(end + AHEAD, Ordering::Relaxed);
            self.replica.will_need(from, end + AHEAD - from);
        }
    }
}

impl Link {
    fn open(cluster: ClusterId, peer: &Peer) -> io::Result<Self> {
        let stream = words::connect(cluster, peer.server, &peer.address)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Self { stream, page: None })
    }

    fn ask(&mut self, handle: ChunkHandle) -> io::Result<Option<Lent>> {
        self.stream.write_all(&words::encode_ask(handle))?;
        let (answer, file) = words::receive_answer(&self.stream)?;
        let (Some(terms), Some(file)) = (words::decode_answer(&answer)?, file) else { return Ok(None) };
        let page = match &self.page {
            Some((incarnation, page)) if *incarnation == terms.incarnation => page.clone(),
            _ => {
                let page = Arc::new(LedgerView::open(&ledger::path_of(terms.server), terms.incarnation)?);
                self.page = Some((terms.incarnation, page.clone()));
                page
            }
        };
        let geometry = Geometry { chunk_size: terms.chunk_size };
        let replica = LentReplica::new(file.into(), geometry, terms.length, terms.loan, page);
        Ok(Some(Lent { replica, epoch: terms.epoch, asked: AtomicU64::new(0) }))
    }
}
