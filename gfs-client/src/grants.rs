//! Cache grants: what an answer may be cached for, and the race between an answer on its way to a cache and an invalidation.
//!
//! An answer is stamped with the moment at which its request was sent. An invalidation that arrives later marks what it names;
//! so does the end of this session's own mutation. `Grants::deliver` hands out the time that is left, or zero when a mark came after the
//! stamp. The thread of `Recaller` waits for deliveries in progress, calls the invalidator and only then lets the acknowledgement go.
//! This room never talks to the master itself.

use crate::liveness::Liveness;
use crate::names::{Entry, KnownNames};
use gfs_core::ids::InodeId;
use gfs_core::meta::grants::PASSED_ON_MS;
use gfs_proto::v1;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Drops what was cached outside this library: a kernel's entries, attributes and pages.
pub trait Invalidator: Send + Sync {
    /// Drops the attributes, xattrs, layout and data of each inode, and each (directory, name) entry or absence. Called on a
    /// thread of its own, which may wait for the kernel; when it returns, the master may let the change happen.
    fn invalidate(&self, inodes: &[InodeId], entries: &[(InodeId, Vec<u8>)]);

    /// The stream of invalidations was broken: some may have been missed, so that nothing cached may outlive its grant. What has no
    /// lifetime of its own (data pages) must be checked or dropped before its next use.
    fn reset(&self) {}
}

/// When a request was sent: in time, and in the order of marks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    pub(crate) order: u64,
    pub(crate) sent: Instant,
}

/// Proof of a grant, to be handed to `Client::deliver` when the answer is passed on to a cache.
#[derive(Clone, Debug)]
pub struct Ticket {
    order: u64,
    expires: Instant,
    inodes: Vec<InodeId>,
    entry: Option<(InodeId, Vec<u8>)>,
    listing: Option<InodeId>,
}

impl Ticket {
    /// Whether it still holds for the attributes of a directory.
    pub(crate) fn holds_for(&self, grants: &Grants, directory: InodeId) -> bool {
        let marks = grants.marks.lock();
        self.order >= marks.moved
            && self.expires > Instant::now()
            && !marks.inode_marked(directory, self.order, Against::All)
    }

    pub(crate) fn expires(&self) -> Instant {
        self.expires
    }

    pub(crate) fn order(&self) -> u64 {
        self.order
    }

    /// As if what it covers had been asked for when it began to hold.
    pub(crate) fn stamp(&self, granted: Duration) -> Stamp {
        Stamp { order: self.order, sent: self.expires - granted }
    }
}

/// For how long an answer may be cached.
#[derive(Clone, Debug)]
pub struct Grant {
    /// What the master gave, counted from the sending of the request; zero: do not cache.
    pub duration: Duration,
    /// To be handed to `Client::deliver`.
    pub ticket: Ticket,
}

/// What a ticket covers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    pub(crate) inodes: Vec<InodeId>,
    pub(crate) entry: Option<(InodeId, Vec<u8>)>,
    pub(crate) listing: Option<InodeId>,
}

impl Grant {
    pub(crate) fn new(stamp: Stamp, grant_ms: u32, keys: Keys) -> Self {
        let duration = Duration::from_millis(grant_ms.into());
        let Keys { inodes, entry, listing } = keys;
        Self { duration, ticket: Ticket { order: stamp.order, expires: stamp.sent + duration, inodes, entry, listing } }
    }

    /// Of what is known under a grant that ends then, as it was looked up at `stamp`.
    pub(crate) fn until(stamp: Stamp, expires: Instant, keys: Keys) -> Self {
        let Keys { inodes, entry, listing } = keys;
        let duration = expires.saturating_duration_since(stamp.sent);
        Self { duration, ticket: Ticket { order: stamp.order, expires, inodes, entry, listing } }
    }
}

/// Which marks end a permission to cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Against {
    /// Everything: for answers to questions.
    All,
    /// All but this session's own `CommitWrite`s: those are ordered among themselves by what they answer.
    AllButCommits,
}

/// Order of the last marks of one key.
#[derive(Clone, Copy, Default)]
struct Mark {
    hard: u64,
    soft: u64,
}

#[derive(Default)]
struct Marks {
    inodes: HashMap<InodeId, Mark>,
    entries: HashMap<(InodeId, Vec<u8>), u64>,
    listings: HashMap<InodeId, u64>,
    /// Everything stamped before this counts as marked.
    floor: u64,
    /// Since then no directory was moved or removed by this session.
    moved: u64,
}

/// Marks beyond which all are forgotten at once, at the price of caching nothing that is on its way just then.
const MAX_MARKS: usize = 65_536;

impl Marks {
    fn bound(&mut self, order: u64) {
        if self.inodes.len() + self.entries.len() + self.listings.len() > MAX_MARKS {
            *self = Self { floor: order, moved: order, ..Self::default() };
        }
    }

    fn mark(&mut self, order: u64, inodes: &[InodeId], entries: &[(InodeId, Vec<u8>)]) {
        for inode in inodes {
            self.inodes.entry(*inode).or_default().hard = order;
        }
        for (parent, name) in entries {
            self.entries.insert((*parent, name.clone()), order);
            self.listings.insert(*parent, order);
        }
        self.bound(order);
    }

    fn dead(&self, ticket: &Ticket) -> bool {
        let later = |mark: Option<&u64>| mark.is_some_and(|mark| *mark > ticket.order);
        ticket.order < self.floor
            || ticket.inodes.iter().any(|inode| self.inode_marked(*inode, ticket.order, Against::All))
            || ticket.entry.as_ref().is_some_and(|entry| later(self.entries.get(entry)))
            || ticket.listing.is_some_and(|listing| later(self.listings.get(&listing)))
    }

    fn inode_marked(&self, inode: InodeId, order: u64, against: Against) -> bool {
        let mark = self.inodes.get(&inode).copied().unwrap_or_default();
        order < self.floor || mark.hard > order || (against == Against::All && mark.soft > order)
    }
}

/// The marks, and the lock that deliveries share.
#[derive(Default)]
pub(crate) struct Grants {
    order: AtomicU64,
    marks: Mutex<Marks>,
    delivering: RwLock<()>,
    names: KnownNames,
    pub(crate) liveness: Arc<Liveness>,
}

/// An own mutation of names that is on its way.
pub(crate) struct Changing {
    grants: Arc<Grants>,
    entries: Vec<Entry>,
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.grants.names.end_change(&self.entries);
    }
}

impl Grants {
    /// The stamp of a request that is sent now.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { order: self.order.load(Ordering::SeqCst), sent: Instant::now() }
    }

    /// Marks what another session changes, or this one did. What was asked before is not to be cached.
    pub(crate) fn mark(&self, inodes: &[InodeId], entries: &[(InodeId, Vec<u8>)]) {
        let mut marks = self.marks.lock();
        let order = self.order.fetch_add(1, Ordering::SeqCst) + 1;
        marks.mark(order, inodes, entries);
        for entry in entries {
            self.names.forget(entry);
        }
    }

    /// Marks an inode whose size or times this session's own write changed.
    pub(crate) fn mark_commit(&self, inode: InodeId) {
        let mut marks = self.marks.lock();
        let order = self.order.fetch_add(1, Ordering::SeqCst) + 1;
        marks.inodes.entry(inode).or_default().soft = order;
        marks.bound(order);
    }

    /// A directory was moved or removed by its name, or may have been: which one is not known here.
    pub(crate) fn mark_moved(&self) {
        let mut marks = self.marks.lock();
        marks.moved = self.order.fetch_add(1, Ordering::SeqCst) + 1;
    }

    /// Marks everything: the stream of invalidations was broken.
    pub(crate) fn mark_all(&self) {
        let mut marks = self.marks.lock();
        let order = self.order.fetch_add(1, Ordering::SeqCst) + 1;
        *marks = Marks { floor: order, moved: order, ..Marks::default() };
        self.names.clear();
    }

    /// Whether an inode was marked after a request was sent.
    pub(crate) fn marked(&self, inode: InodeId, stamp: Stamp, against: Against) -> bool {
        self.marks.lock().inode_marked(inode, stamp.order, against)
    }

    /// An own mutation of these names goes out.
    pub(crate) fn begin(self: &Arc<Self>, entries: &[Entry]) -> Changing {
        self.names.begin_change(entries);
        Changing { grants: self.clone(), entries: entries.to_vec() }
    }

    /// An answer says what a name stands for, or that it stands for nothing.
    pub(crate) fn learn(&self, entry: Entry, target: Option<InodeId>, grant: &Grant) {
        // The lock keeps a mark from coming in between.
        let marks = self.marks.lock();
        let marked = marks.entries.get(&entry).is_some_and(|mark| *mark > grant.ticket.order);
        if !grant.duration.is_zero() && !marked && grant.ticket.order >= marks.floor {
            self.names.put(entry, target, grant.ticket.expires);
        }
    }

    /// What a name stands for, if that is known without a question, and until when it is.
    pub(crate) fn name(&self, entry: &Entry) -> Option<(Option<InodeId>, Instant)> {
        self.names.get(entry).filter(|_| self.liveness.is_live())
    }

    /// Marks what an own mutation changed, and lets its reply count from here on, unless something else was marked while it was under way.
    /// Answers too those of `inodes` of which nothing was marked meanwhile: what the reply says of them counts from here on.
    pub(crate) fn conclude(&self, grant: Grant, inodes: &[InodeId], entries: &[Entry]) -> (Grant, Vec<InodeId>) {
        let mut marks = self.marks.lock();
        let unmarked = |inode: &InodeId| !marks.inode_marked(*inode, grant.ticket.order, Against::All);
        let counted = inodes.iter().copied().filter(unmarked).collect();
        let dead = marks.dead(&grant.ticket);
        let order = self.order.fetch_add(1, Ordering::SeqCst) + 1;
        marks.mark(order, inodes, entries);
        let duration = if dead { Duration::ZERO } else { grant.duration };
        let expires = if dead { Instant::now() } else { grant.ticket.expires };
        (Grant { duration, ticket: Ticket { order, expires, ..grant.ticket } }, counted)
    }

    /// For how long an answer may be passed on to a cache that cannot be emptied at once.
    fn remaining(&self, ticket: &Ticket) -> Duration {
        if self.marks.lock().dead(ticket) {
            return Duration::ZERO;
        }
        let granted = ticket.expires.saturating_duration_since(Instant::now());
        granted.min(self.liveness.remaining()).min(PASSED_ON)
    }

    /// Runs `hand_over` with the time for which the answer may still be cached. No invalidation is acknowledged meanwhile, so
    /// `hand_over` must be short: it passes the answer to the cache and returns.
    pub(crate) fn deliver<R>(&self, ticket: &Ticket, hand_over: impl FnOnce(Duration) -> R) -> R {
        let _shared = self.delivering.read();
        hand_over(self.remaining(ticket))
    }

    /// Returns when every delivery that began before has ended.
    fn wait_for_deliveries(&self) {
        drop(self.delivering.write());
    }
}

/// One order to drop, with the connection that it came over.
pub(crate) enum Recall {
    Invalidate { connection: u64, message: v1::Invalidate },
    Reset,
}

/// What was passed on is forgotten after that.
const PASSED_ON: Duration = Duration::from_millis(PASSED_ON_MS);

/// Invalidations that are not acknowledged, by connection and number, and when they came.
type Unacknowledged = BTreeMap<(u64, u64), Instant>;

/// The queue to the thread that carries recalls out. What it has not carried out for longer than anything passed on lives is acknowledged all
/// the same: it may wait for a system call of this machine that waits for another client, which may wait for us.
pub(crate) struct Recaller {
    queue: mpsc::Sender<Recall>,
    invalidator: Arc<Mutex<Option<Arc<dyn Invalidator>>>>,
    unacknowledged: Arc<Mutex<Unacknowledged>>,
}

/// Recalls that may wait for the kernel; beyond them the connection is given up and grants run out by themselves.
const MAX_RECALLS: usize = 4096;

impl Recaller {
    /// Starts the thread. `acknowledge(connection, id)` is called after each invalidation that was not overdue. The thread ends with the
    /// recaller.
    pub(crate) fn start(grants: Arc<Grants>, acknowledge: impl Fn(u64, u64) + Send + 'static) -> std::io::Result<Self> {
        let (queue, mut recalls) = mpsc::channel(MAX_RECALLS);
        let invalidator: Arc<Mutex<Option<Arc<dyn Invalidator>>>> = Arc::default();
        let shared = invalidator.clone();
        let unacknowledged: Arc<Mutex<Unacknowledged>> = Arc::default();
        let waiting = unacknowledged.clone();
        std::thread::Builder::new().name("gfs-recall".into()).spawn(move || {
            while let Some(recall) = recalls.blocking_recv() {
                grants.wait_for_deliveries();
                let target = shared.lock().clone();
                match recall {
                    Recall::Reset => target.iter().for_each(|target| target.reset()),
                    Recall::Invalidate { connection, message } => {
                        if let Some(target) = target {
                            let (inodes, entries) = named(&message);
                            target.invalidate(&inodes, &entries);
                        }
                        if waiting.lock().remove(&(connection, message.id)).is_some() {
                            acknowledge(connection, message.id);
                        }
                    }
                }
            }
        })?;
        Ok(Self { queue, invalidator, unacknowledged })
    }

    /// Sets who is told.
    pub(crate) fn set(&self, invalidator: Arc<dyn Invalidator>) {
        *self.invalidator.lock() = Some(invalidator);
    }

    /// Queues a recall; false when the queue is full.
    pub(crate) fn push(&self, recall: Recall) -> bool {
        if let Recall::Invalidate { connection, message } = &recall {
            self.unacknowledged.lock().insert((*connection, message.id), Instant::now());
        }
        self.queue.try_send(recall).is_ok()
    }

    /// Takes what is to be acknowledged although it was not carried out yet: nothing that it was about lives any more.
    pub(crate) fn take_overdue(&self) -> Vec<(u64, u64)> {
        let mut waiting = self.unacknowledged.lock();
        let overdue: Vec<_> = waiting.iter().filter(|(_, at)| at.elapsed() > PASSED_ON).map(|(key, _)| *key).collect();
        for key in &overdue {
            waiting.remove(key);
        }
        overdue
    }
}

/// What an invalidation names, in core types.
pub(crate) fn named(message: &v1::Invalidate) -> (Vec<InodeId>, Vec<(InodeId, Vec<u8>)>) {
    let inodes = message.inodes.iter().copied().map(InodeId).collect();
    let entries = message.entries.iter().map(|entry| (InodeId(entry.parent), entry.name.to_vec())).collect();
    (inodes, entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as blocking;

    const FILE: InodeId = InodeId(7);
    const DIRECTORY: InodeId = InodeId(1);

    fn grant(grants: &Grants) -> Grant {
        Grant::new(
            grants.stamp(),
            60_000,
            Keys { inodes: vec![FILE], entry: Some((DIRECTORY, b"x".to_vec())), listing: None },
        )
    }

    fn left(grants: &Grants, grant: &Grant) -> bool {
        grants.deliver(&grant.ticket, |ttl| ttl > Duration::ZERO)
    }

    #[test]
    fn a_mark_after_the_request_ends_the_grant_and_one_before_does_not() {
        let grants = Grants::default();
        grants.mark(&[FILE], &[]);
        let live = grant(&grants);
        assert!(left(&grants, &live));
        grants.mark(&[InodeId(99)], &[(DIRECTORY, b"other".to_vec())]);
        assert!(left(&grants, &live));
        grants.mark(&[], &[(DIRECTORY, b"x".to_vec())]);
        assert!(!left(&grants, &live));
        let second = grant(&grants);
        grants.mark_all();
        assert!(!left(&grants, &second));
    }

    #[test]
    fn a_listing_dies_with_any_entry_of_its_directory() {
        let grants = Grants::default();
        let page = Grant::new(grants.stamp(), 60_000, Keys { listing: Some(DIRECTORY), ..Keys::default() });
        assert!(left(&grants, &page));
        grants.mark(&[], &[(DIRECTORY, b"anything".to_vec())]);
        assert!(!left(&grants, &page));
    }

    #[test]
    fn the_time_left_counts_from_the_sending_of_the_request() {
        let grants = Grants::default();
        let sent = Instant::now() - Duration::from_millis(500);
        let half = Grant::new(Stamp { order: 0, sent }, 1_000, Keys::default());
        let ttl = grants.deliver(&half.ticket, |ttl| ttl);
        assert!(ttl <= Duration::from_millis(500), "{ttl:?}");
        let over = Grant::new(Stamp { order: 0, sent }, 400, Keys::default());
        assert_eq!(grants.deliver(&over.ticket, |ttl| ttl), Duration::ZERO);
    }

    #[test]
    fn own_commits_end_questions_but_not_other_commits() {
        let grants = Grants::default();
        let before = grants.stamp();
        grants.mark_commit(FILE);
        assert!(grants.marked(FILE, before, Against::All));
        assert!(!grants.marked(FILE, before, Against::AllButCommits));
        grants.mark(&[FILE], &[]);
        assert!(grants.marked(FILE, before, Against::AllButCommits));
        assert!(!grants.marked(FILE, grants.stamp(), Against::All));
    }

    #[test]
    fn the_reply_of_an_own_mutation_survives_its_own_mark_but_no_other() {
        let grants = Grants::default();
        let reply = grant(&grants);
        let kept = grants.conclude(reply.clone(), &[FILE], &[(DIRECTORY, b"x".to_vec())]).0;
        assert!(left(&grants, &kept));
        assert!(!left(&grants, &reply));
        let overtaken = grant(&grants);
        grants.mark(&[FILE], &[]);
        let dropped = grants.conclude(overtaken, &[FILE], &[]).0;
        assert!(!left(&grants, &dropped));
        assert_eq!(dropped.duration, Duration::ZERO);
    }

    #[test]
    fn too_many_marks_are_forgotten_safely() {
        let grants = Grants::default();
        let old = grant(&grants);
        for inode in 1_000..1_000 + MAX_MARKS as u64 + 1 {
            grants.mark(&[InodeId(inode)], &[]);
        }
        assert!(!left(&grants, &old));
        assert!(left(&grants, &grant(&grants)));
    }

    struct Recorder(blocking::Sender<&'static str>);

    impl Invalidator for Recorder {
        fn invalidate(&self, inodes: &[InodeId], _: &[(InodeId, Vec<u8>)]) {
            assert_eq!(inodes, [FILE]);
            self.0.send("invalidated").unwrap();
        }
    }

    #[test]
    fn an_invalidation_waits_for_the_delivery_in_progress_and_is_acknowledged_last() {
        let grants = Arc::new(Grants::default());
        let (events, log) = blocking::channel();
        let acknowledged = events.clone();
        let recaller = Recaller::start(grants.clone(), move |connection, id| {
            assert_eq!((connection, id), (3, 5));
            acknowledged.send("acknowledged").unwrap();
        })
        .unwrap();
        recaller.set(Arc::new(Recorder(events.clone())));
        let live = grant(&grants);
        grants.deliver(&live.ticket, |ttl| {
            assert!(ttl > Duration::ZERO);
            grants.mark(&[FILE], &[]);
            let message = v1::Invalidate { id: 5, inodes: vec![FILE.0], entries: Vec::new() };
            assert!(recaller.push(Recall::Invalidate { connection: 3, message }));
            // The recaller has every chance to run ahead if it does not wait for this delivery.
            assert!(log.recv_timeout(Duration::from_millis(50)).is_err());
            events.send("delivered").unwrap();
        });
        let order: Vec<_> = (0..3).map(|_| log.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        assert_eq!(order, ["delivered", "invalidated", "acknowledged"]);
        assert!(!left(&grants, &live));
    }
}
