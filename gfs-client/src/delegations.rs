//! Files that this session may change by itself and tell the master of later: those that it has made and holds a write delegation of.
//!
//! This room keeps them and decides what may be done to them here; the rules are the core's. It never sends anything: `flusher` does. The
//! attributes kept here are the file's true ones until the delegation has ended; answers that were asked for before that are shown
//! with them too, however late they arrive.

use crate::grants::{Grant, Stamp};
use crate::locations::{Locations, Window};
use gfs_core::ids::{ChunkHandle, Epoch, InodeId};
use gfs_core::meta::delegations as rules;
use gfs_core::meta::request::{
    Answer, AttributeChanges, Attributes, Credentials, FileType, FlushedFile, Timestamp, UsedChunk,
};
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// What was done here is told after so long.
const LATEST: Duration = Duration::from_millis(100);
/// A delegation is given back after so long. The master relies on its being less than a minute.
const LONGEST: Duration = Duration::from_secs(20);
/// An end that the master asks for waits for answered writes at most so long: it ends a session that gives nothing back within a lease.
const RECALL_WAITS: Duration = Duration::from_secs(8);
/// Writes of older files are not answered early, so that their end has not to wait.
const YOUNG: Duration = Duration::from_secs(15);
/// Space is counted in blocks of so many bytes.
const BLOCK: u64 = 4096;
/// Bytes in chunks that the master does not know of, beyond which it is told at once.
const MAX_UNTOLD: u64 = 16 << 20;
/// Files of one flush.
pub(crate) const AT_ONCE: usize = 256;
/// Ended delegations that late answers are still checked against.
const MAX_ENDED: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// Recalls of what this session does not hold, which may be on its way.
const MAX_REFUSED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// All of a session's delegations.
pub(crate) struct Delegations {
    table: Mutex<Table>,
    /// Rings when something is to be flushed at once, or a first thing later.
    pub(crate) work: Notify,
    /// Until when the session surely lives.
    vouched: Arc<Mutex<Option<Instant>>>,
    /// How many times answered writes had to go on without their delegation, and up to which of them everything is carried out.
    loose: Arc<AtomicU64>,
    tight: AtomicU64,
}

struct Table {
    files: HashMap<InodeId, Arc<Held>>,
    /// The names under which the files were made.
    names: HashMap<(InodeId, Vec<u8>), InodeId>,
    /// How delegations ended, and the order of marks then.
    ended: LruCache<InodeId, (Attributes, u64)>,
    /// Asked back before this session knew of them.
    refused: LruCache<InodeId, ()>,
    /// Those of them that the master has not been told of.
    unknown: BTreeSet<InodeId>,
    /// Counts what was said of them at the beginning of a connection.
    claims: u64,
}

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
pub(crate) struct Progress {
    told: u64,
    ended: bool,
    detached: bool,
}

/// One file.
pub(crate) struct Held {
    inode: InodeId,
    name: (InodeId, Vec<u8>),
    grant: Grant,
    vouched: Arc<Mutex<Option<Instant>>>,
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
    /// Answered writes that are not carried out, their bytes, and the furthest end of one.
    behind: Behind,
    /// The master's clock when it was given, and when that was.
    clock: (Timestamp, Instant),
}

/// Writes that were answered and are not carried out.
#[derive(Clone, Copy, Default)]
struct Behind {
    writes: u64,
    bytes: u64,
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
            shown.size = shown.size.max(self.behind.end);
            shown.allocated += self.behind.bytes.next_multiple_of(BLOCK);
        }
        shown
    }

    /// Whether the end has to wait for writes that were answered: not for ever, the master relies on it.
    fn waits(&self, now: Instant) -> bool {
        let in_time = self.asked.is_none_or(|asked| now < asked + RECALL_WAITS);
        self.behind.writes > 0 && !self.behind.detached && in_time && now < self.clock.1 + 2 * LONGEST
    }

    fn due(&self) -> Option<Instant> {
        if self.in_flight || self.phase == Phase::Ended {
            return None;
        }
        let waits = self.waits(Instant::now());
        let longest = match self.asked {
            Some(asked) if waits => (asked + RECALL_WAITS).min(self.clock.1 + 2 * LONGEST),
            _ if waits => self.clock.1 + 2 * LONGEST,
            _ => self.clock.1 + LONGEST,
        };
        let at_once = (self.recalled && !waits) || self.wanted > self.told_version || self.untold_bytes >= MAX_UNTOLD;
        if at_once { Some(self.clock.1) } else { Some(self.since.map_or(longest, |since| longest.min(since + LATEST))) }
    }
}

impl Held {
    /// Which file.
    pub(crate) fn inode(&self) -> InodeId {
        self.inode
    }

    fn is_vouched(&self) -> bool {
        self.vouched.lock().is_none_or(|until| Instant::now() < until)
    }

    fn knows(&self, state: &State) -> bool {
        state.phase != Phase::Ended && self.is_vouched()
    }

    fn may_change(&self, state: &State) -> bool {
        state.phase == Phase::Held && self.is_vouched()
    }

    /// The attributes, with the grant that the file was made under.
    pub(crate) fn attributes(&self) -> Option<(Attributes, Grant)> {
        let state = self.state.lock();
        self.knows(&state).then(|| (state.shown(), self.grant.clone()))
    }

    /// An answered write that ends at `end` is to be carried out later; false when it has to be carried out now. Its times are set.
    pub(crate) fn begin_behind(&self, end: u64, bytes: u64) -> bool {
        let mut state = self.state.lock();
        let asked = state.recalled || state.wanted > state.told_version;
        let late = state.closed || state.behind.detached || state.clock.1.elapsed() >= YOUNG;
        if asked || late || !self.may_change(&state) || !rules::is_plain(&state.attributes) {
            return false;
        }
        state.behind.writes += 1;
        state.behind.bytes += bytes;
        state.behind.end = state.behind.end.max(end);
        let now = state.now();
        rules::write(&mut state.attributes, None, now);
        state.changed();
        true
    }

    /// So many of them are carried out, or were given up. Whether somebody waits for that.
    pub(crate) fn end_behind(&self, writes: u64, bytes: u64) -> bool {
        let mut state = self.state.lock();
        state.behind.bytes = state.behind.bytes.saturating_sub(bytes);
        state.behind.writes = state.behind.writes.saturating_sub(writes);
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

    /// Whether it was closed, and the master has not been told apart.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// The attributes as they are carried out, and the chunks `first ..= last`.
    pub(crate) fn layout(&self, first: u32, last: u32) -> Option<(Attributes, Window)> {
        let state = self.state.lock();
        let chunks = || state.chunks.range(first..=last).map(|(index, handle)| (*index, *handle)).collect();
        self.knows(&state).then(|| (state.attributes.clone(), chunks()))
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
        if state.phase == Phase::Held {
            state.closed = true;
            state.since.get_or_insert_with(Instant::now);
        }
        state.closed
    }

    fn report(self: &Arc<Self>, locations: &Locations, now: Instant) -> Option<Report> {
        let mut state = self.state.lock();
        if state.due().is_none_or(|due| due > now) {
            return None;
        }
        let asked = state.recalled || state.closed || state.clock.1 + LONGEST <= now;
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
            file.used = told
                .map(|(index, handle)| UsedChunk { index, handle, cut: Epoch(0), stored: locations.count(handle) })
                .collect();
            file.min_size = (state.attributes.size > state.told.size).then_some(state.attributes.size);
            file.changes = rules::difference(&state.told, &state.attributes);
        }
        let (attributes, version) = (state.attributes.clone(), state.version);
        Some(Report { held: self.clone(), file, ends, closes: ends && state.closed, attributes, version })
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

impl Table {
    fn forget(&mut self, held: &Held) {
        self.files.remove(&held.inode);
        if self.names.get(&held.name) == Some(&held.inode) {
            self.names.remove(&held.name);
        }
    }
}

impl Default for Delegations {
    fn default() -> Self {
        Self {
            table: Mutex::new(Table {
                files: HashMap::new(),
                names: HashMap::new(),
                ended: LruCache::new(MAX_ENDED),
                refused: LruCache::new(MAX_REFUSED),
                unknown: BTreeSet::new(),
                claims: 0,
            }),
            work: Notify::new(),
            vouched: Arc::default(),
            loose: Arc::default(),
            tight: AtomicU64::new(0),
        }
    }
}

impl Delegations {
    /// The master has answered something that was sent so long before `until` as the session lives without a word. After that it may have
    /// given the files to others, and nothing is done or shown here by what was known.
    pub(crate) fn vouch(&self, until: Instant) {
        let mut vouched = self.vouched.lock();
        *vouched = (*vouched).max(Some(until));
    }

    /// To be remembered while a file is being made, and said with what the master gave.
    pub(crate) fn claims(&self) -> u64 {
        self.table.lock().claims
    }

    /// The master gave the file that was just made under `name`. It is not taken when it was asked back already, or when what this session
    /// holds was said meanwhile, without it.
    pub(crate) fn given(&self, made: &Attributes, name: (InodeId, Vec<u8>), grant: Grant, claims: u64) {
        let inode = made.inode;
        let mut table = self.table.lock();
        if table.refused.contains(&inode) {
            return;
        }
        if table.claims != claims {
            table.refused.put(inode, ());
            table.unknown.insert(inode);
            return self.work.notify_one();
        }
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
        };
        table.names.insert(name.clone(), inode);
        let progress = watch::Sender::new(Progress::default());
        let first = table.files.is_empty();
        table.files.insert(
            inode,
            Arc::new(Held {
                inode,
                name,
                grant,
                vouched: self.vouched.clone(),
                loose: self.loose.clone(),
                state: Mutex::new(state),
                progress,
            }),
        );
        if first {
            self.work.notify_one();
        }
    }

    /// The file, if this session holds it.
    pub(crate) fn get(&self, inode: InodeId) -> Option<Arc<Held>> {
        self.table.lock().files.get(&inode).cloned()
    }

    /// Those of these files and names that this session holds.
    pub(crate) fn among(&self, inodes: &[InodeId], names: &[(InodeId, Vec<u8>)]) -> Vec<Arc<Held>> {
        let table = self.table.lock();
        if table.files.is_empty() {
            return Vec::new();
        }
        let named = names.iter().filter_map(|name| table.names.get(name));
        inodes.iter().chain(named).filter_map(|inode| table.files.get(inode).cloned()).collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Held>> {
        self.table.lock().files.values().cloned().collect()
    }

    /// The inodes of all of them, to say at the beginning of a connection.
    pub(crate) fn claim(&self) -> BTreeSet<u64> {
        let mut table = self.table.lock();
        table.claims += 1;
        table.files.keys().map(|inode| inode.0).collect()
    }

    /// The number of the last time that answered writes had to go on without their delegation, unless all are carried out.
    pub(crate) fn loose(&self) -> Option<u64> {
        let loose = self.loose.load(Ordering::SeqCst);
        (loose > self.tight.load(Ordering::SeqCst)).then_some(loose)
    }

    /// Those up to here are carried out.
    pub(crate) fn tightened(&self, upto: u64) {
        self.tight.fetch_max(upto, Ordering::SeqCst);
    }

    /// Whether there is nothing to look after.
    pub(crate) fn is_idle(&self) -> bool {
        let table = self.table.lock();
        table.files.is_empty() && table.unknown.is_empty()
    }

    /// The master wants files back.
    pub(crate) fn recall(&self, inodes: impl Iterator<Item = InodeId>) {
        let mut table = self.table.lock();
        for inode in inodes {
            match table.files.get(&inode) {
                Some(held) => {
                    let mut state = held.state.lock();
                    state.recalled = true;
                    state.asked.get_or_insert_with(Instant::now);
                }
                None => {
                    table.refused.put(inode, ());
                    if table.unknown.len() < MAX_REFUSED.get() {
                        table.unknown.insert(inode);
                    }
                }
            }
        }
        drop(table);
        self.work.notify_one();
    }

    /// Shows the files in an answer to a question of this moment as they are here.
    pub(crate) fn show(&self, answer: &mut Answer, stamp: Stamp) {
        let mut table = self.table.lock();
        if table.files.is_empty() && table.ended.is_empty() {
            return;
        }
        let mut show = |attributes: &mut Attributes| {
            if attributes.file_type != FileType::File {
                return;
            }
            let inode = attributes.inode;
            let held = table.files.get(&inode).and_then(|held| held.attributes()).map(|(known, _)| known);
            let late =
                || table.ended.get(&inode).filter(|(_, order)| stamp.order < *order).map(|(known, _)| known.clone());
            if let Some(known) = held.or_else(late) {
                // Links are counted by the master alone.
                *attributes = Attributes { links: attributes.links, ..known };
            }
        };
        match answer {
            Answer::Attributes(attributes) | Answer::Layout { attributes, .. } => show(attributes),
            Answer::Directory { entries, .. } => entries.iter_mut().for_each(|entry| show(&mut entry.attributes)),
            Answer::Target(_) | Answer::Value(_) | Answer::Names(_) | Answer::Lock(_) | Answer::Refused(_) => (),
        }
    }

    /// When the next flush is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let table = self.table.lock();
        if !table.unknown.is_empty() {
            return Some(Instant::now());
        }
        table.files.values().filter_map(|held| held.state.lock().due()).min()
    }

    /// What is to be told now: at most `AT_ONCE` files; and inodes that are asked back and not held.
    pub(crate) fn reports(&self, locations: &Locations) -> (Vec<Report>, BTreeSet<InodeId>) {
        let now = Instant::now();
        let (held, unknown) = {
            let mut table = self.table.lock();
            (table.files.values().cloned().collect::<Vec<_>>(), std::mem::take(&mut table.unknown))
        };
        (held.iter().filter_map(|held| held.report(locations, now)).take(AT_ONCE).collect(), unknown)
    }

    /// The master has what a report told; `order` is the order of marks now.
    pub(crate) fn told(&self, report: &Report, order: u64) {
        {
            let mut state = report.held.state.lock();
            state.in_flight = false;
            state.told = report.attributes.clone();
            state.told_version = report.version;
        }
        if report.ends {
            self.end(&report.held, order);
        }
        report.held.progress.send_modify(|progress| progress.told = report.version);
    }

    fn end(&self, held: &Arc<Held>, order: u64) {
        let mut table = self.table.lock();
        let mut state = held.state.lock();
        state.phase = Phase::Ended;
        table.ended.put(held.inode, (state.attributes.clone(), order));
        table.forget(held);
        drop((state, table));
        held.progress.send_modify(|progress| progress.ended = true);
    }

    /// The master will never have this: answers whether anything was lost.
    pub(crate) fn lose(&self, held: &Arc<Held>) -> bool {
        let lost = {
            let mut state = held.state.lock();
            state.phase = Phase::Ended;
            // Told once, however many find out.
            let first = !std::mem::replace(&mut state.behind.lost, true);
            first && (state.version > state.told_version || state.behind.writes > 0)
        };
        self.table.lock().forget(held);
        held.progress.send_modify(|progress| progress.ended = true);
        lost
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::grants::{Grants, Keys};
    use gfs_core::meta::request::SetTime;

    const FILE: InodeId = InodeId(9);

    fn made() -> Attributes {
        Attributes {
            inode: FILE,
            file_type: FileType::File,
            mode: 0o600,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: Timestamp(5),
            mtime: Timestamp(5),
            ctime: Timestamp(5),
            btime: Timestamp(5),
            replicas: 3,
            has_acl: false,
            has_xattrs: false,
        }
    }

    fn name() -> (InodeId, Vec<u8>) {
        (InodeId(1), b"f".to_vec())
    }

    fn setup() -> (Delegations, Grants, Locations) {
        let (delegations, grants) = (Delegations::default(), Grants::default());
        let claims = delegations.claims();
        delegations.given(&made(), name(), Grant::new(grants.stamp(), 1_000, Keys::default()), claims);
        (delegations, grants, Locations::new())
    }

    /// A file that is held.
    pub(crate) fn held() -> Arc<Held> {
        let (delegations, ..) = setup();
        delegations.get(FILE).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answered_write_is_shown_here_and_told_when_it_is_carried_out() {
        let (delegations, grants, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        assert!(held.begin_behind(100, 100) && held.begin_behind(5_000, 4_900));
        let shown = held.attributes().unwrap().0;
        assert_eq!((shown.size, shown.allocated), (5_000, 8_192));
        assert_eq!(held.layout(0, 9).unwrap().0.size, 0, "what is carried out");
        let mtime = AttributeChanges { mtime: Some(SetTime::At(Timestamp(77))), ..AttributeChanges::default() };
        assert_eq!(held.change(&Credentials::default(), &mtime).unwrap().0.size, 5_000);
        tokio::time::advance(LATEST).await;
        let told = delegations.reports(&locations).0.remove(0);
        assert_eq!((told.file.min_size, told.file.changes.mtime), (None, Some(SetTime::At(Timestamp(77)))));
        delegations.told(&told, grants.stamp().order);
        assert!(held.write(&[(0, ChunkHandle(7))], std::iter::empty(), Some(5_000), false, &locations));
        assert!(!held.end_behind(2, 5_000), "nobody asks for it");
        let rest = recalled(&delegations, &locations);
        assert_eq!(
            (rest.file.min_size, rest.file.changes.mtime),
            (Some(5_000), Some(SetTime::At(Timestamp(77)))),
            "the time that was set"
        );
        assert_eq!(held.attributes().unwrap().0.size, 5_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_answered_writes_but_not_for_ever() {
        let (delegations, grants, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        assert!(held.begin_behind(100, 100));
        delegations.recall([FILE].into_iter());
        assert!(!held.begin_behind(200, 100), "taken although it is asked back");
        tokio::time::advance(LATEST).await;
        let told = delegations.reports(&locations).0.remove(0);
        assert!(!told.ends);
        delegations.told(&told, grants.stamp().order);
        assert!(delegations.reports(&locations).0.is_empty() && delegations.loose().is_none());
        tokio::time::advance(RECALL_WAITS).await;
        assert!(delegations.reports(&locations).0.remove(0).ends);
        // What is done now must not pass by what is still to be written.
        let loose = delegations.loose().unwrap();
        held.wait_detached().await;
        delegations.tightened(loose);
        assert_eq!(delegations.loose(), None);
        let (delegations, _, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        assert!(held.begin_behind(100, 100));
        held.detach();
        assert!(!held.begin_behind(200, 100) && recalled(&delegations, &locations).ends);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_this_client_asks_for_waits_longer_than_one_that_the_master_asks_for() {
        let (delegations, _, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        assert!(held.begin_behind(100, 100));
        let _ended = held.wait_ended();
        tokio::time::advance(RECALL_WAITS).await;
        assert!(
            delegations.reports(&locations).0.iter().all(|report| !report.ends),
            "a rename would pass the write by"
        );
        assert!(held.end_behind(1, 100), "it is waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn answered_writes_of_a_lost_file_count_as_lost_and_old_files_get_none() {
        let (delegations, grants, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        assert!(held.begin_behind(100, 100));
        tokio::time::advance(LATEST).await;
        let told = delegations.reports(&locations).0.remove(0);
        delegations.told(&told, grants.stamp().order);
        assert!(!held.is_lost() && delegations.lose(&held) && held.is_lost());
        assert!(!delegations.lose(&held), "told twice");
        let (delegations, ..) = setup();
        tokio::time::advance(YOUNG).await;
        assert!(!delegations.get(FILE).unwrap().begin_behind(100, 100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_closed_before_its_writes_are_carried_out_is_given_back_after_them() {
        let (delegations, grants, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        assert!(held.begin_behind(100, 100) && held.close());
        tokio::time::advance(LATEST).await;
        let told = delegations.reports(&locations).0.remove(0);
        assert!(!told.ends);
        delegations.told(&told, grants.stamp().order);
        // Given up: nothing was carried out.
        assert!(!held.end_behind(1, 100));
        tokio::time::advance(LATEST).await;
        let report = delegations.reports(&locations).0.remove(0);
        assert!(report.ends && report.closes);
    }

    fn chmod(mode: u16) -> AttributeChanges {
        AttributeChanges { mode: Some(mode), ..AttributeChanges::default() }
    }

    fn recalled(delegations: &Delegations, locations: &Locations) -> Report {
        delegations.recall([FILE].into_iter());
        let (mut reports, unknown) = delegations.reports(locations);
        assert_eq!((reports.len(), unknown.len()), (1, 0));
        reports.remove(0)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_done_is_told_once_and_later_changes_are_told_later() {
        let (delegations, grants, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        assert!(delegations.reports(&locations).0.is_empty(), "nothing was done");
        held.change(&Credentials::default(), &chmod(0o640)).unwrap();
        assert!(held.write(&[(0, ChunkHandle(7))], std::iter::empty(), Some(100), true, &locations));
        assert!(delegations.reports(&locations).0.is_empty(), "told too early");
        tokio::time::advance(LATEST).await;
        let told = delegations.reports(&locations).0.remove(0);
        assert_eq!((told.file.attach.as_slice(), told.file.min_size), (&[(0, ChunkHandle(7))][..], Some(100)));
        assert_eq!((told.file.changes.mode, told.ends), (Some(0o640), false));
        // While that is on its way:
        let waiting = held.wait_told();
        held.change(&Credentials::default(), &chmod(0o600)).unwrap();
        assert!(delegations.reports(&locations).0.is_empty(), "one report of a file at a time");
        delegations.told(&told, grants.stamp().order);
        waiting.await;
        let rest = recalled(&delegations, &locations);
        assert_eq!((rest.file.changes.mode, rest.file.attach.len(), rest.file.min_size), (Some(0o600), 0, None));
        assert!(rest.ends);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_given_back_is_the_masters_and_late_answers_show_it_as_it_was() {
        let (delegations, grants, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        held.change(&Credentials::default(), &chmod(0o640)).unwrap();
        let before = grants.stamp();
        let report = recalled(&delegations, &locations);
        assert!(held.change(&Credentials::default(), &chmod(0o777)).is_none(), "changed on its way back");
        assert_eq!(held.attributes().unwrap().0.mode, 0o640);
        grants.mark(&[FILE], &[]);
        delegations.told(&report, grants.stamp().order);
        held.wait_ended().await;
        assert!(delegations.get(FILE).is_none() && delegations.among(&[], &[name()]).is_empty());
        let mut late = Answer::Attributes(made());
        delegations.show(&mut late, before);
        assert!(matches!(late, Answer::Attributes(Attributes { mode: 0o640, .. })));
        let mut asked_since = Answer::Attributes(made());
        delegations.show(&mut asked_since, grants.stamp());
        assert_eq!(asked_since, Answer::Attributes(made()));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_sign_of_the_master_nothing_is_done_or_shown() {
        let (delegations, _, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        delegations.vouch(Instant::now() + Duration::from_secs(9));
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(held.change(&Credentials::default(), &chmod(0o640)).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(held.change(&Credentials::default(), &chmod(0o600)).is_none());
        assert!(!held.write(&[], std::iter::empty(), Some(1), true, &locations));
        assert!(held.attributes().is_none() && held.layout(0, 9).is_none() && held.touch_access().is_none());
        delegations.vouch(Instant::now() + Duration::from_secs(9));
        assert_eq!(held.attributes().unwrap().0.mode, 0o640);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_back_before_it_is_known_is_never_taken() {
        let (delegations, grants, locations) = (Delegations::default(), Grants::default(), Locations::new());
        delegations.recall([FILE].into_iter());
        assert_eq!(delegations.reports(&locations).1, BTreeSet::from([FILE]));
        let grant = || Grant::new(grants.stamp(), 1_000, Keys::default());
        delegations.given(&made(), name(), grant(), delegations.claims());
        assert!(delegations.get(FILE).is_none());
        // One whose reply came over a connection at the beginning of which it was not claimed.
        let other = Attributes { inode: InodeId(10), ..made() };
        let claims = delegations.claims();
        assert!(delegations.claim().is_empty());
        delegations.given(&other, name(), grant(), claims);
        assert!(delegations.get(other.inode).is_none());
        assert_eq!(delegations.reports(&locations).1, BTreeSet::from([other.inode]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_file_is_given_back_and_a_lost_one_says_whether_anything_was() {
        let (delegations, _, locations) = setup();
        let held = delegations.get(FILE).unwrap();
        assert!(held.close());
        tokio::time::advance(LATEST).await;
        let report = delegations.reports(&locations).0.remove(0);
        assert!(report.ends && report.closes && report.file.changes == AttributeChanges::default());
        assert!(!delegations.lose(&held), "nothing was done to it");
        let (delegations, ..) = setup();
        let held = delegations.get(FILE).unwrap();
        let times = AttributeChanges { mtime: Some(SetTime::Now), ..AttributeChanges::default() };
        held.change(&Credentials::default(), &times).unwrap();
        assert!(delegations.lose(&held));
        assert!(!held.close(), "its close would go with a flush that never comes");
    }
}
