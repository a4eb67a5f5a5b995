//! Files that this session may change by itself and tell the master of later: those that it has made and holds a write delegation of.
//!
//! This room keeps them and decides what may be done to them here; the rules are the core's. It never sends anything: `flusher` does. The
//! attributes kept here are the file's true ones until the delegation has ended; answers that were asked for before that are shown
//! with them too, however late they arrive.

mod held;

pub(crate) use held::{Held, Report};

use crate::grants::{Grant, Stamp};
use crate::liveness::Vouched;
use crate::locations::Locations;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Answer, Attributes, ChunkLocation, FileType, Timestamp};
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use tokio::time::Instant;

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
    /// Whether the session surely lives.
    pub(crate) vouched: Vouched,
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
    /// Those of them that the master has not been told of, and those that it is being told of.
    unknown: BTreeSet<InodeId>,
    telling: BTreeSet<InodeId>,
    /// Counts what was said of them at the beginning of a connection.
    claims: u64,
    /// How many of the files were there before they were held: their names are not known.
    unnamed: usize,
}

impl Table {
    fn forget(&mut self, held: &Held) {
        if self.files.remove(&held.inode()).is_none() {
            return;
        }
        match &held.name {
            Some(name) if self.names.get(name) == Some(&held.inode()) => {
                self.names.remove(name);
            }
            Some(_) => {}
            None => self.unnamed -= 1,
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
                telling: BTreeSet::new(),
                claims: 0,
                unnamed: 0,
            }),
            work: Notify::new(),
            vouched: Vouched::default(),
            loose: Arc::default(),
            tight: AtomicU64::new(0),
        }
    }
}

impl Delegations {
    /// This session has made a file by itself under `name`.
    pub(crate) fn made(&self, made: &Attributes, name: (InodeId, Vec<u8>), grant: Grant) {
        let claims = self.claims();
        self.given(made, name, grant, claims);
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
        table.names.insert(name.clone(), inode);
        let first = table.files.is_empty();
        let held = Held::new(made, name, grant, self.vouched.clone(), self.loose.clone());
        table.files.insert(inode, Arc::new(held));
        if first {
            self.work.notify_one();
        }
    }

    /// A file is about to be asked for: what was asked back before is past. To be remembered until it is there. `None` while the master is
    /// yet to be told that it is not held.
    pub(crate) fn asks_for(&self, inode: InodeId) -> Option<u64> {
        let mut table = self.table.lock();
        if table.unknown.contains(&inode) || table.telling.contains(&inode) {
            return None;
        }
        table.refused.pop(&inode);
        Some(table.claims)
    }

    /// The master knows what it was told with the last reports, or never will.
    pub(crate) fn told_unknown(&self) {
        self.table.lock().telling.clear();
    }

    /// The master has committed that this session holds a file that was there before, as it is `now`, with all its chunks. Given back at once,
    /// and false, when it was asked back already or what is held was said meanwhile.
    pub(crate) fn holds_existing(
        &self,
        (attributes, chunks): (&Attributes, &[ChunkLocation]),
        now: Timestamp,
        grant: Grant,
        claims: u64,
    ) -> bool {
        let inode = attributes.inode;
        let mut table = self.table.lock();
        if table.files.contains_key(&inode) {
            return false;
        }
        if table.refused.contains(&inode) || table.claims != claims {
            table.unknown.insert(inode);
            self.work.notify_one();
            return false;
        }
        let held = Held::existing(attributes, chunks, now, grant, self.vouched.clone(), self.loose.clone());
        table.unnamed += 1;
        table.files.insert(inode, Arc::new(held));
        self.work.notify_one();
        true
    }

    /// The master takes this session for the holder of a file, and it is none.
    pub(crate) fn disowns(&self, inode: InodeId) {
        let mut table = self.table.lock();
        if !table.files.contains_key(&inode) {
            table.unknown.insert(inode);
            self.work.notify_one();
        }
    }

    /// Files that were there before they were held: whatever is done to a name may concern them.
    pub(crate) fn unnamed(&self) -> Vec<Arc<Held>> {
        let table = self.table.lock();
        if table.unnamed == 0 {
            return Vec::new();
        }
        table.files.values().filter(|held| held.name.is_none()).cloned().collect()
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
                Some(held) => held.recall(),
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
        for attributes in answer.shown_mut().filter(|of| of.file_type == FileType::File) {
            let inode = attributes.inode;
            let held = table.files.get(&inode).and_then(|held| held.attributes()).map(|(known, _)| known);
            let late =
                || table.ended.get(&inode).filter(|(_, order)| stamp.order < *order).map(|(known, _)| known.clone());
            if let Some(known) = held.or_else(late) {
                // Links are counted by the master alone.
                *attributes = Attributes { links: attributes.links, ..known };
            }
        }
    }

    /// When the next flush is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let table = self.table.lock();
        if !table.unknown.is_empty() {
            return Some(Instant::now());
        }
        // Read once: there may be thousands.
        let now = Instant::now();
        table.files.values().filter_map(|held| held.due(now)).min()
    }

    /// What is to be told now: at most `AT_ONCE` files, of those that the master knows or is told of first; and inodes that are asked back
    /// and not held.
    pub(crate) fn reports(
        &self,
        locations: &Locations,
        is_made: impl Fn(InodeId) -> bool,
    ) -> (Vec<Report>, BTreeSet<InodeId>) {
        let now = Instant::now();
        let (held, unknown) = {
            let mut table = self.table.lock();
            let rest = table.unknown.iter().nth(AT_ONCE).copied().map(|first| table.unknown.split_off(&first));
            let unknown = std::mem::replace(&mut table.unknown, rest.unwrap_or_default());
            table.telling = unknown.clone();
            (table.files.values().cloned().collect::<Vec<_>>(), unknown)
        };
        let held = held.iter().filter(|held| is_made(held.inode()));
        (held.filter_map(|held| held.report(locations, now)).take(AT_ONCE).collect(), unknown)
    }

    /// The master has what a report told; `order` is the order of marks now.
    pub(crate) fn told(&self, report: &Report, order: u64) {
        report.held.told(report);
        if report.ends {
            self.end(&report.held, order);
        }
        report.held.tell_told(report);
    }

    fn end(&self, held: &Arc<Held>, order: u64) {
        let mut table = self.table.lock();
        table.ended.put(held.inode(), (held.end(), order));
        table.forget(held);
        drop(table);
        held.tell_ended();
    }

    /// The master will never have this: answers whether anything was lost, once.
    pub(crate) fn lose(&self, held: &Arc<Held>) -> bool {
        let lost = held.lose();
        self.table.lock().forget(held);
        held.tell_ended();
        lost
    }
}

#[cfg(test)]
pub(crate) mod tests;
