//! One file that this session holds: what was done to it, how far the master knows that, and which answered writes are still to be carried out.

use crate::grants::Grant;
use crate::liveness::Vouched;
use crate::locations::{Locations, Window};
use gfs_core::ids::{ChunkHandle, Epoch, InodeId};
use gfs_core::meta::delegations as rules;
use gfs_core::meta::request::{
    AttributeChanges, Attributes, ChunkLocation, Credentials, FlushedFile, Timestamp, UsedChunk,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What was done here is told after so long.
pub(super) const LATEST: Duration = Duration::from_millis(100);
/// A delegation is given back after so long. The master relies on its being less than a minute.
const LONGEST: Duration = Duration::from_secs(20);
/// An end that the master asks for waits for answered writes at most so long: it ends a session that gives nothing back within a lease.
pub(super) const RECALL_WAITS: Duration = Duration::from_secs(8);
/// Writes of older files are not answered early, so that their end has not to wait.
pub(super) const YOUNG: Duration = Duration::from_secs(15);
/// A file that has been held for so long is probably written for longer: the master is asked to commit that.
const SETTLED: Duration = Duration::from_secs(5);
/// Space is counted in blocks of so many bytes.
const BLOCK: u64 = 4096;
/// Bytes in chunks that the master does not know of, beyond which it is told at once.
const MAX_UNTOLD: u64 = 16 << 20;
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Changed here.
    Held,
    /// Being given back: nothing changes here any more.
    Ending,
    /// The master's again.
    Ended,
}

/// How far the master knows a file.
#[derive(Clone, Copy, Default)]
struct Progress {
    told: u64,
    ended: bool,
    detached: bool,
}

/// One file.
pub(crate) struct Held {
    inode: InodeId,
    /// Under which it was made; `None`: it was there before.
    pub(super) name: Option<(InodeId, Vec<u8>)>,
    grant: Grant,
    vouched: Vouched,
    loose: Arc<AtomicU64>,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

struct State {
    phase: Phase,
    attributes: Attributes,
    /// As the master knows them.
    told: Attributes,
    chunks: Window,
    /// Bytes stored in each chunk.
    stored: BTreeMap<u32, u64>,
    /// Chunks to attach.
    fresh: BTreeSet<u32>,
    /// Chunks of which more or less is stored than was told.
    counted: BTreeSet<u32>,
    /// Counts the changes.
    version: u64,
    told_version: u64,
    /// A flush up to here is waited for.
    wanted: u64,
    /// It is to be given back.
    recalled: bool,
    /// Since when the master asks for that.
    asked: Option<Instant>,
    closed: bool,
    /// When the oldest change was made that the master does not know, or the file was closed.
    since: Option<Instant>,
    untold_bytes: u64,
    in_flight: bool,
    /// Answered writes that are not carried out.
    behind: Behind,
    /// The master's clock when it was given, and when that was.
    clock: (Timestamp, Instant),
    /// The master knows of it as long as it lasts, also a restarted one: it need not end soon.
    lasting: bool,
    /// It was asked for, or need not be.
    asked_to_last: bool,
}

/// Writes that were answered and are not carried out.
#[derive(Clone, Copy, Default)]
struct Behind {
    writes: u64,
    /// The furthest end of one; without a gap from the end of what is carried out.
    end: u64,
    /// They go on without the delegation, whose end waits for them no more.
    detached: bool,
    /// The session has lost the file: they must not be carried out.
    lost: bool,
}

/// What the master is to be told of one file.
pub(crate) struct Report {
    pub(crate) held: Arc<Held>,
    pub(crate) file: FlushedFile,
    pub(crate) ends: bool,
    pub(crate) closes: bool,
    attributes: Attributes,
    version: u64,
    /// All chunks that are attached, at the end of the delegation.
    pub(crate) chunks: Window,
    /// The master has committed that it is held.
    pub(crate) lasting: bool,
}

impl State {
    fn now(&self) -> Timestamp {
        let (at, when) = self.clock;
        // Never behind what was shown.
        Timestamp(at.0.saturating_add(when.elapsed().as_nanos() as i64)).max(self.attributes.ctime)
    }

    fn changed(&mut self) {
        self.version += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    /// The attributes as this client has to see them: with what was answered and is not carried out.
    fn shown(&self) -> Attributes {
        let mut shown = self.attributes.clone();
        if self.behind.writes > 0 {
            let (size, end) = (shown.size, shown.size.max(self.behind.end));
            shown.size = end;
            // Within the size, what is written was stored before.
            shown.allocated += end.next_multiple_of(BLOCK) - size.next_multiple_of(BLOCK);
        }
        shown
    }

    /// Whether there is no hole where a range is within the size.
    fn is_stored(&self, range: &Range<u64>, chunk_size: u64) -> bool {
        let size = self.attributes.size;
        let (first, last) = (range.start / chunk_size, range.end.min(size).saturating_sub(1) / chunk_size);
        range.start >= size
            || (first..=last).all(|index| {
                let whole = (size - index * chunk_size).min(chunk_size).next_multiple_of(BLOCK).min(chunk_size);
                let stored = u32::try_from(index).ok().and_then(|index| self.stored.get(&index));
                stored.is_some_and(|stored| *stored >= whole)
            })
    }

    /// Whether the end has to wait for writes that were answered: not for ever, the master relies on it.
    fn waits(&self, now: Instant) -> bool {
        let in_time = self.asked.is_none_or(|asked| now < asked + RECALL_WAITS);
        let young = self.lasting || now < self.clock.1 + 2 * LONGEST;
        self.behind.writes > 0 && !self.behind.detached && in_time && young
    }

    fn due(&self, now: Instant) -> Option<Instant> {
        if self.in_flight || self.phase == Phase::Ended {
            return None;
        }
        let waits = self.waits(now);
        let end = |times: u32| if self.lasting { None } else { Some(self.clock.1 + times * LONGEST) };
        let longest = match self.asked {
            Some(asked) if waits => end(2).into_iter().chain([asked + RECALL_WAITS]).min(),
            _ if waits => end(2),
            _ => end(1),
        };
        let at_once = (self.recalled && !waits) || self.wanted > self.told_version || self.untold_bytes >= MAX_UNTOLD;
        if at_once {
            Some(self.clock.1)
        } else {
            longest.into_iter().chain(self.since.map(|since| since + LATEST)).min()
        }
    }
}

impl Held {
    /// The file that was just made under `name`.
    pub(super) fn new(
        made: &Attributes,
        name: (InodeId, Vec<u8>),
        grant: Grant,
        vouched: Vouched,
        loose: Arc<AtomicU64>,
    ) -> Self {
        let state = State {
            phase: Phase::Held,
            attributes: made.clone(),
            told: made.clone(),
            chunks: Window::new(),
            stored: BTreeMap::new(),
            fresh: BTreeSet::new(),
            counted: BTreeSet::new(),
            version: 0,
            told_version: 0,
            wanted: 0,
            recalled: false,
            asked: None,
            closed: false,
            since: None,
            untold_bytes: 0,
            in_flight: false,
            behind: Behind::default(),
            clock: (made.ctime, Instant::now()),
            lasting: false,
            asked_to_last: false,
        };
        let progress = watch::Sender::new(Progress::default());
        Self { inode: made.inode, name: Some(name), grant, vouched, loose, state: Mutex::new(state), progress }
    }

    /// A file that was there before, and is this session's to change as long as it wants: as it is `now`, with all its chunks.
    pub(super) fn existing(
        attributes: &Attributes,
        chunks: &[ChunkLocation],
        now: Timestamp,
        grant: Grant,
        vouched: Vouched,
        loose: Arc<AtomicU64>,
    ) -> Self {
        let held = Self::new(attributes, (InodeId(0), Vec::new()), grant, vouched, loose);
        {
            let mut state = held.state.lock();
            state.chunks = chunks.iter().map(|chunk| (chunk.index, chunk.handle)).collect();
            state.stored = chunks.iter().map(|chunk| (chunk.index, chunk.stored.bytes())).collect();
            state.clock.0 = now;
            (state.lasting, state.asked_to_last) = (true, true);
        }
        Self { name: None, ..held }
    }

    /// Whether it has been held for so long that the master is to commit that it is: true once.
    pub(crate) fn shall_last(&self) -> bool {
        let mut state = self.state.lock();
        let due = state.phase == Phase::Held && state.clock.1.elapsed() >= SETTLED;
        due && !std::mem::replace(&mut state.asked_to_last, true)
    }

    /// The master has committed that it is held, or perhaps has, if not `surely`: then it is given back as if it had. False when it is held
    /// no more.
    pub(crate) fn lasts(&self, surely: bool) -> bool {
        let mut state = self.state.lock();
        state.lasting = state.phase == Phase::Held;
        state.recalled |= state.lasting && !surely;
        state.lasting
    }

    /// Whether the master has committed that it is held.
    pub(crate) fn is_lasting(&self) -> bool {
        self.state.lock().lasting
    }

    /// Whether the end of the file's being open is told with its end here.
    fn is_own(&self) -> bool {
        self.name.is_some()
    }

    /// Nobody here writes it any more: it is given back.
    pub(crate) fn let_go(&self) -> bool {
        let mut state = self.state.lock();
        if self.is_own() || state.phase != Phase::Held {
            return false;
        }
        state.recalled = true;
        true
    }

    /// Which file.
    pub(crate) fn inode(&self) -> InodeId {
        self.inode
    }

    fn knows(&self, state: &State) -> bool {
        state.phase != Phase::Ended && self.vouched.is_sure()
    }

    fn may_change(&self, state: &State) -> bool {
        state.phase == Phase::Held && self.vouched.is_sure()
    }

    /// The attributes, with the grant that the file was made under; none if it was there before.
    pub(crate) fn attributes(&self) -> Option<(Attributes, Grant)> {
        let state = self.state.lock();
        self.knows(&state).then(|| (state.shown(), self.grant.clone()))
    }

    /// A write of `range` is answered and is to be carried out later; false when it has to be carried out now: also when how much of the
    /// file is stored after it could not be said before. Its times are set.
    pub(crate) fn begin_behind(&self, range: &Range<u64>, chunk_size: u64) -> bool {
        let mut state = self.state.lock();
        let asked = state.recalled || state.wanted > state.told_version;
        let old = !state.lasting && state.clock.1.elapsed() >= YOUNG;
        let late = state.closed || state.behind.detached || old;
        if asked || late || !self.may_change(&state) || !rules::is_plain(&state.attributes) {
            return false;
        }
        let gap = range.start > state.attributes.size.max(state.behind.end);
        if gap || !state.is_stored(range, chunk_size) {
            return false;
        }
        state.behind.writes += 1;
        state.behind.end = state.behind.end.max(range.end);
        let now = state.now();
        rules::write(&mut state.attributes, None, now);
        state.changed();
        true
    }

    /// One of them is carried out, or was given up. Whether somebody waits for that.
    pub(crate) fn end_behind(&self) -> bool {
        let mut state = self.state.lock();
        state.behind.writes -= 1;
        if state.behind.writes == 0 {
            state.behind.end = 0;
            if state.closed {
                state.since.get_or_insert_with(Instant::now);
            }
        }
        state.behind.writes == 0 && state.recalled
    }

    /// Answered writes go on without the delegation: its end waits for them no more, and everything else here has to.
    pub(crate) fn detach(&self) {
        self.detach_in(&mut self.state.lock());
    }

    fn detach_in(&self, state: &mut State) {
        if !std::mem::replace(&mut state.behind.detached, true) && state.behind.writes > 0 {
            self.loose.fetch_add(1, Ordering::SeqCst);
            self.progress.send_modify(|progress| progress.detached = true);
        }
    }

    /// Returns when answered writes go on without the delegation.
    pub(crate) fn wait_detached(&self) -> impl Future<Output = ()> + use<> {
        let mut progress = self.progress.subscribe();
        async move {
            if progress.wait_for(|progress| progress.detached).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the session has lost the file, so that nothing that was answered may be carried out any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.state.lock().behind.lost
    }

    /// Whether it was closed and the master is yet to be told: true once, for the one who tells.
    pub(crate) fn take_closed(&self) -> bool {
        std::mem::take(&mut self.state.lock().closed)
    }

    /// The same, as long as nothing can be different: not any more while the file is being given back.
    pub(crate) fn current(&self) -> Option<(Attributes, Grant)> {
        let state = self.state.lock();
        self.may_change(&state).then(|| (state.shown(), self.grant.clone()))
    }

    /// The attributes as they are carried out, and the chunks `first ..= last`; likewise.
    pub(crate) fn layout(&self, first: u32, last: u32) -> Option<(Attributes, Window)> {
        let state = self.state.lock();
        let chunks = || state.chunks.range(first..=last).map(|(index, handle)| (*index, *handle)).collect();
        self.may_change(&state).then(|| (state.attributes.clone(), chunks()))
    }

    /// Changes attributes; `None` when that is the master's to do.
    pub(crate) fn change(&self, who: &Credentials, changes: &AttributeChanges) -> Option<(Attributes, Grant)> {
        let mut state = self.state.lock();
        let now = state.now();
        if !self.may_change(&state) || !rules::change(&mut state.attributes, who, changes, now) {
            return None;
        }
        state.changed();
        Some((state.shown(), self.grant.clone()))
    }

    /// Sets the access time as a read does; `None` when that is the master's to do.
    pub(crate) fn touch_access(&self) -> Option<(Attributes, Grant)> {
        let mut state = self.state.lock();
        if !self.may_change(&state) {
            return None;
        }
        state.attributes.atime = state.now().max(state.attributes.atime);
        state.changed();
        Some((state.shown(), self.grant.clone()))
    }

    /// Makes a finished write part of the file, with new times if `timed`; false when that is the master's to do.
    pub(crate) fn write(
        &self,
        attach: &[(u32, ChunkHandle)],
        used: impl Iterator<Item = (u32, ChunkHandle)>,
        min_size: Option<u64>,
        timed: bool,
        locations: &Locations,
    ) -> bool {
        let mut state = self.state.lock();
        let taken = |(index, handle): &(u32, ChunkHandle)| state.chunks.get(index).is_some_and(|had| had != handle);
        if !self.may_change(&state) || !rules::is_plain(&state.attributes) || attach.iter().any(taken) {
            return false;
        }
        for (index, handle) in attach {
            if state.chunks.insert(*index, *handle).is_none() {
                state.fresh.insert(*index);
            }
        }
        for (index, handle) in used.chain(attach.iter().copied()) {
            let stored = locations.count(handle).map_or(0, |stored| stored.bytes());
            let before = state.stored.insert(index, stored).unwrap_or(0);
            if before != stored {
                state.counted.insert(index);
                state.attributes.allocated = (state.attributes.allocated + stored).saturating_sub(before);
                if state.fresh.contains(&index) {
                    state.untold_bytes += stored.saturating_sub(before);
                }
            }
        }
        if timed {
            let now = state.now();
            rules::write(&mut state.attributes, min_size, now);
        } else {
            state.attributes.size = state.attributes.size.max(min_size.unwrap_or(0));
        }
        state.changed();
        true
    }

    /// The file was closed: true when its hold goes with the delegation, false when the master is to be told apart.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.state.lock();
        if state.phase == Phase::Held && self.is_own() {
            state.closed = true;
            state.since.get_or_insert_with(Instant::now);
        }
        state.closed
    }

    pub(super) fn report(self: &Arc<Self>, locations: &Locations, now: Instant) -> Option<Report> {
        let mut state = self.state.lock();
        if state.due(now).is_none_or(|due| due > now) {
            return None;
        }
        let asked = state.recalled || state.closed || (!state.lasting && state.clock.1 + LONGEST <= now);
        let ends = asked && !state.waits(now);
        if ends {
            state.phase = Phase::Ending;
            self.detach_in(&mut state);
        }
        state.in_flight = true;
        state.since = None;
        state.untold_bytes = 0;
        let mut file = FlushedFile { inode: self.inode, ..FlushedFile::default() };
        if state.version > state.told_version {
            let fresh = std::mem::take(&mut state.fresh);
            let counted = std::mem::take(&mut state.counted);
            let chunk = |index: &u32| Some((*index, *state.chunks.get(index)?));
            file.attach = fresh.iter().filter_map(chunk).collect();
            let told = counted.union(&fresh).filter_map(chunk);
            // An older file may have been cut before it was held; since then nobody has.
            let cut = if state.lasting { Epoch(u32::MAX) } else { Epoch(0) };
            file.used =
                told.map(|(index, handle)| UsedChunk { index, handle, cut, stored: locations.count(handle) }).collect();
            file.min_size = (state.attributes.size > state.told.size).then_some(state.attributes.size);
            file.changes = rules::difference(&state.told, &state.attributes);
        }
        let (attributes, version) = (state.attributes.clone(), state.version);
        let chunks = if ends { state.chunks.clone() } else { Window::new() };
        let (closes, lasting) = (ends && state.closed, state.lasting);
        Some(Report { held: self.clone(), file, ends, closes, attributes, version, chunks, lasting })
    }

    /// When the master is to be told something of it.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.state.lock().due(now)
    }

    /// The master wants it back.
    pub(super) fn recall(&self) {
        let mut state = self.state.lock();
        state.recalled = true;
        state.asked.get_or_insert_with(Instant::now);
    }

    /// The master has what a report told.
    pub(super) fn told(&self, report: &Report) {
        let mut state = self.state.lock();
        state.in_flight = false;
        state.told = report.attributes.clone();
        state.told_version = report.version;
    }

    /// Lets those know who wait for what a report told.
    pub(super) fn tell_told(&self, report: &Report) {
        self.progress.send_modify(|progress| progress.told = report.version);
    }

    /// It is the master's again; with the attributes that it ends with.
    pub(super) fn end(&self) -> Attributes {
        let mut state = self.state.lock();
        state.phase = Phase::Ended;
        state.attributes.clone()
    }

    /// The master will never have what was done; answers whether anything was, once however many find out.
    pub(super) fn lose(&self) -> bool {
        let mut state = self.state.lock();
        state.phase = Phase::Ended;
        let first = !std::mem::replace(&mut state.behind.lost, true);
        first && (state.version > state.told_version || state.behind.writes > 0)
    }

    /// Lets those know who wait for its end.
    pub(super) fn tell_ended(&self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }

    /// Waits until the master knows everything that was done so far.
    pub(crate) fn wait_told(&self) -> impl Future<Output = ()> + use<> {
        let wanted = {
            let mut state = self.state.lock();
            state.wanted = state.version;
            state.wanted
        };
        let mut progress = self.progress.subscribe();
        async move {
            let _ = progress.wait_for(|progress| progress.told >= wanted || progress.ended).await;
        }
    }

    /// Asks for the delegation's end, and waits for it.
    pub(crate) fn wait_ended(&self) -> impl Future<Output = ()> + use<> {
        // Whoever asks here waits for answered writes as long as it may: it must not pass them by.
        self.state.lock().recalled = true;
        let mut progress = self.progress.subscribe();
        async move {
            let _ = progress.wait_for(|progress| progress.ended).await;
        }
    }
}
