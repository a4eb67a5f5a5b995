//! Directories that this session holds: their names are its own to change, and the master is told later, many steps in one message.
//!
//! This room keeps them, the clock by which steps are stamped, and who waits until the master knows. What may be decided here is the core's
//! ([`gfs_core::meta::holder`]). It never sends anything: `flusher` does.

mod calls;

pub(crate) use calls::{KNOWN, own_grant};

use crate::liveness::Vouched;
use gfs_core::ids::InodeId;
use gfs_core::meta::holder::{Batch, Child, Decision, Holder};
use gfs_core::meta::request::{Attributes, Credentials, Request, Timestamp};
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A step is told after so long at the latest.
const LATEST: Duration = Duration::from_millis(10);
/// So many are told at once.
const MANY: usize = 256;
/// Beyond so many, whoever wants another one done waits.
const MOST: usize = 4_096;
/// A directory in which nothing changed for so long is given back.
const IDLE: Duration = Duration::from_secs(300);
/// How often those are looked for.
pub(crate) const LOOK_FOR_IDLE: Duration = Duration::from_secs(10);
/// Recalls of what this session does not hold, which may be on its way.
const MAX_REFUSED: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();
/// Inode numbers that are asked for at a time, and below how many.
const NUMBERS: (u32, u64) = (4_096, 2_048);

/// A batch on its way, of one life of the holder.
pub(crate) struct Taken {
    pub(crate) batch: Batch,
    life: u64,
}

struct State {
    holder: Holder,
    /// Counts the times that everything was lost.
    life: u64,
    /// The master's clock when it was heard last.
    clock: Option<(Timestamp, Instant)>,
    /// When the oldest step was done that is not on its way.
    since: Option<Instant>,
    /// Steps up to here are waited for.
    wanted: u64,
    in_flight: bool,
    looked: Instant,
    /// Asked back before this session knew that it had them.
    refused: LruCache<InodeId, ()>,
}

impl State {
    fn now(&self) -> Timestamp {
        let (at, when) = self.clock.unwrap_or((Timestamp(0), Instant::now()));
        Timestamp(at.0.saturating_add(when.elapsed().as_nanos() as i64))
    }

    /// Something may have been done that waits to be told. Whether the flusher does not know yet that it is to tell soon, or now.
    fn note_waiting(&mut self) -> bool {
        let waiting = self.holder.waiting();
        let first = waiting > 0 && self.since.is_none();
        if first {
            self.since = Some(Instant::now());
        }
        first || waiting == MANY
    }

    fn is_due(&self, now: Instant) -> bool {
        let waited = self.since.is_some_and(|since| since + LATEST <= now) || self.looked + LOOK_FOR_IDLE <= now;
        self.holder.waiting() >= MANY || self.wanted > self.holder.told_step() || waited || self.holder.any_ending()
    }
}

/// What became of a call.
pub(crate) struct Decided {
    pub(crate) decision: Decision,
    /// When it was done, if it was.
    pub(crate) at: Option<Timestamp>,
    /// The flusher is to be rung.
    ring: bool,
    /// There are few inode numbers left.
    low: bool,
}

/// See the module.
pub(crate) struct Directories {
    state: Mutex<State>,
    /// Nothing is held and nothing is to be told: usually so, which costs a read of this.
    idle: AtomicBool,
    /// Whether the session surely lives.
    vouched: Vouched,
    /// Changes whenever something was told or given back.
    progress: watch::Sender<u64>,
    refilling: AtomicBool,
}

impl Directories {
    /// None. `vouched` says whether the session surely lives.
    pub(crate) fn new(vouched: Vouched) -> Self {
        let state = State {
            holder: Holder::default(),
            life: 0,
            clock: None,
            since: None,
            wanted: 0,
            in_flight: false,
            looked: Instant::now(),
            refused: LruCache::new(MAX_REFUSED),
        };
        Self {
            state: Mutex::new(state),
            idle: AtomicBool::new(true),
            vouched,
            progress: watch::Sender::new(0),
            refilling: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Acquire)
    }

    fn note_idle(&self, state: &State) {
        self.idle.store(state.holder.is_idle(), Ordering::Release);
    }

    fn note_progress(&self, state: MutexGuard<'_, State>) {
        self.note_idle(&state);
        let told = state.holder.told_step();
        drop(state);
        self.progress.send_replace(told);
    }

    /// Uses what is held, if there is anything and the session surely lives.
    fn using<R>(&self, use_it: impl FnOnce(&mut State) -> Option<R>) -> Option<R> {
        if self.is_idle() || !self.vouched.is_sure() {
            return None;
        }
        use_it(&mut self.state.lock())
    }

    /// The master has given a directory that was just made in this place. It is not taken when it was asked back already.
    pub(crate) fn given(&self, made: &Attributes, place: (InodeId, &[u8])) {
        let mut state = self.state.lock();
        if state.refused.pop(&made.inode).is_some() {
            return;
        }
        if made.ctime > state.now() {
            state.clock = Some((made.ctime, Instant::now()));
        }
        state.holder.given(made, place);
        self.note_idle(&state);
    }

    /// Does a call here, if that is possible. `then` is called before anybody can be told of it.
    pub(crate) fn decide(&self, who: &Credentials, request: &Request, then: impl FnOnce(&Decision)) -> Option<Decided> {
        self.using(|state| {
            let now = state.now();
            let decision = state.holder.decide(who, request, now);
            then(&decision);
            let ring = state.note_waiting();
            let low = state.holder.stocked() < NUMBERS.1;
            Some(Decided { decision, at: state.holder.last_time(), ring, low })
        })
    }

    /// What these names in held directories stand for.
    pub(crate) fn named(&self, entries: &[(InodeId, Vec<u8>)]) -> Vec<InodeId> {
        let found = self.using(|state| {
            let known = |(parent, name): &(InodeId, Vec<u8>)| state.holder.look_up(*parent, name).flatten();
            Some(entries.iter().filter_map(known).map(|child| child.inode).collect())
        });
        found.unwrap_or_default()
    }

    /// What a name stands for; `None` when that is the master's to say.
    pub(crate) fn look_up(&self, parent: InodeId, name: &[u8]) -> Option<Option<Child>> {
        self.using(|state| state.holder.look_up(parent, name))
    }

    /// How a held directory is, or something else that only this session knows of.
    pub(crate) fn attributes(&self, inode: InodeId) -> Option<Attributes> {
        self.using(|state| state.holder.attributes(inode))
    }

    /// The target of a symbolic link that only this session knows of.
    pub(crate) fn target(&self, inode: InodeId) -> Option<Vec<u8>> {
        self.using(|state| state.holder.target(inode))
    }

    /// Sets the access time of a held directory; `None` when that is the master's to do, and whether the flusher is to be rung.
    pub(crate) fn touch_access(&self, inode: InodeId) -> Option<bool> {
        self.using(|state| {
            let now = state.now();
            let touched = state.holder.touch_access(inode, now);
            touched.then(|| state.note_waiting())
        })
    }

    /// Whether a directory is held, or being given back.
    pub(crate) fn holds(&self, inode: InodeId) -> bool {
        !self.is_idle() && self.state.lock().holder.holds(inode)
    }

    /// The directories that are to be given back before the master can do this.
    pub(crate) fn concerned(&self, request: &Request) -> Vec<InodeId> {
        if self.is_idle() { Vec::new() } else { self.state.lock().holder.concerned(request) }
    }

    /// A directory is to be given back. False when it is not held.
    pub(crate) fn begin_end(&self, inode: InodeId) -> bool {
        !self.is_idle() && self.state.lock().holder.begin_end(inode)
    }

    /// The master asks for something back: true when it is a directory that is held, and is given back from now on.
    pub(crate) fn recall(&self, inode: InodeId) -> bool {
        let mut state = self.state.lock();
        let held = state.holder.begin_end(inode);
        if !held {
            state.refused.put(inode, ());
        }
        held
    }

    /// Returns when none of these is held any more.
    pub(crate) async fn wait_ended(&self, inodes: &[InodeId]) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as `self`.
        let _ = progress.wait_for(|_| !inodes.iter().any(|inode| self.holds(*inode))).await;
    }

    /// Whether the master knows everything that was done to these.
    pub(crate) fn is_told(&self, inodes: &[InodeId]) -> bool {
        self.is_idle() || self.state.lock().holder.is_told(inodes)
    }

    /// Whether a file may be told of with the steps up to here.
    pub(crate) fn covers(&self, inode: InodeId, taken: &Taken) -> bool {
        self.is_idle() || self.state.lock().holder.is_told_by(inode, taken.batch.upto)
    }

    /// Whether so many steps wait that another one has to.
    pub(crate) fn is_full(&self) -> bool {
        !self.is_idle() && self.state.lock().holder.waiting() >= MOST
    }

    /// Returns when the master knows everything that was done so far; the flusher is to be rung after the first poll.
    pub(crate) fn wait_told(&self) -> Option<impl Future<Output = ()> + use<>> {
        let wanted = {
            let mut state = self.state.lock();
            let last = state.holder.last_step();
            if state.holder.told_step() >= last {
                return None;
            }
            state.wanted = last;
            last
        };
        let mut progress = self.progress.subscribe();
        Some(async move {
            let _ = progress.wait_for(|told| *told >= wanted).await;
        })
    }

    /// When something is to be told.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.is_idle() {
            return None;
        }
        let state = self.state.lock();
        if state.in_flight {
            return None;
        }
        let now = Instant::now();
        if state.is_due(now) { Some(now) } else { state.since.map(|since| since + LATEST) }
    }

    /// What is to be told now. `then` is called before anything else is done here.
    pub(crate) fn take(&self, then: impl FnOnce(&Batch)) -> Taken {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.looked + LOOK_FOR_IDLE <= now {
            state.looked = now;
            let before = Timestamp(state.now().0.saturating_sub(IDLE.as_nanos() as i64));
            state.holder.begin_idle(before);
        }
        let batch = state.holder.take();
        state.since = if batch.more { state.since } else { None };
        state.in_flight = true;
        then(&batch);
        Taken { batch, life: state.life }
    }

    /// The master knows this.
    pub(crate) fn told(&self, taken: &Taken) {
        let mut state = self.state.lock();
        state.in_flight = false;
        if state.life == taken.life {
            state.holder.told(&taken.batch);
        }
        self.note_progress(state);
    }

    /// Whether this was taken in the present life.
    pub(crate) fn is_present(&self, taken: &Taken) -> bool {
        self.state.lock().life == taken.life
    }

    /// The session is gone, or the master knows of other things: nothing is held. Answers what is lost.
    pub(crate) fn lose(&self) -> Vec<InodeId> {
        let mut state = self.state.lock();
        state.life += 1;
        state.in_flight = false;
        state.since = None;
        let lost = state.holder.lose();
        self.note_progress(state);
        lost
    }

    /// How many inode numbers to ask for, when that is due and nobody does already.
    pub(crate) fn begin_refill(&self) -> Option<u32> {
        let low = self.state.lock().holder.stocked() < NUMBERS.1;
        (low && !self.refilling.swap(true, Ordering::AcqRel)).then_some(NUMBERS.0)
    }

    /// They came, or did not.
    pub(crate) fn end_refill(&self, first: Option<InodeId>) {
        if let Some(first) = first {
            self.state.lock().holder.stock(first, NUMBERS.0.into());
        }
        self.refilling.store(false, Ordering::Release);
        self.progress.send_modify(|_| ());
    }

    /// Returns when numbers came, or did not.
    pub(crate) async fn wait_refill(&self) {
        let mut progress = self.progress.subscribe();
        let _ = progress.wait_for(|_| !self.refilling.load(Ordering::Acquire)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locations::tests::attributes;
    use gfs_core::ids::ROOT;
    use gfs_core::meta::request::{FileType, NodeKind};

    fn made(inode: u64) -> Attributes {
        Attributes {
            inode: InodeId(inode),
            file_type: FileType::Directory,
            mode: 0o755,
            links: 2,
            ..attributes(4096, 5)
        }
    }

    fn fifo(parent: u64) -> Request {
        let (parent, name, kind) = (InodeId(parent), b"x".to_vec(), NodeKind::Fifo);
        Request::Create { parent, name, kind, mode: 0o644, umask: 0, exclusive: true, hold: false }
    }

    #[tokio::test]
    async fn directory_that_was_asked_back_before_it_was_known_is_not_taken() {
        let directories = Directories::new(Vouched::default());
        assert!(!directories.recall(InodeId(7)));
        directories.given(&made(7), (ROOT, b"d"));
        assert!(!directories.holds(InodeId(7)) && directories.is_idle());
        directories.given(&made(8), (ROOT, b"e"));
        assert!(directories.holds(InodeId(8)) && directories.recall(InodeId(8)));
    }

    #[tokio::test(start_paused = true)]
    async fn first_step_rings_and_is_due_soon_whatever_it_is() {
        let directories = Directories::new(Vouched::default());
        directories.given(&made(7), (ROOT, b"d"));
        directories.end_refill(Some(InodeId(100)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(directories.touch_access(InodeId(7)), Some(true));
        let decided = directories.decide(&Credentials::default(), &fifo(7), |_| ()).unwrap();
        assert!(matches!(decided.decision, Decision::Done(_)) && !decided.ring, "rung already");
        assert!(directories.next_due().is_some_and(|due| due <= Instant::now() + LATEST));
        let taken = directories.take(|batch| assert_eq!(batch.steps.len(), 2));
        assert!(directories.next_due().is_none() && !directories.is_told(&[InodeId(100)]));
        directories.told(&taken);
        assert!(directories.is_told(&[InodeId(100)]) && directories.attributes(InodeId(100)).is_none());
    }
}
