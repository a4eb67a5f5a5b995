//! Files that sessions hold open, and which orphans may go because nobody does.
//!
//! This room keeps the core's table in step with the state. A file that was just made and opened in one step is in the state before
//! it is in the table: whoever is about to free orphans has the table take over what the state knows first. Lock order: the state's
//! lock before the table's.

use super::Leader;
use gfs_core::ids::{InodeId, OperationId, SessionId};
use gfs_core::meta::grants::{Cached, Touched};
use gfs_core::meta::opens::{OpenMode, OpenTable, TooManyOpen};
use gfs_core::meta::request::{Refusal, Reply};
use gfs_core::meta::state::State;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Files held open, and orphans whose end is being committed: those cannot be opened any more.
pub struct Opens {
    /// Who holds what.
    pub table: OpenTable,
    /// Orphans that go now.
    reaping: BTreeSet<InodeId>,
}

impl Opens {
    /// Nothing is open. A session may hold `limit` files.
    pub fn new(limit: usize) -> Self {
        Self { table: OpenTable::new(limit), reaping: BTreeSet::new() }
    }

    /// Counts what the state has made for operations that are not answered yet.
    fn take_over(&mut self, state: &State) {
        let unmade: Vec<OperationId> = self.table.unmade().collect();
        for id in unmade {
            if let Some(Reply::Entry { attributes, .. }) = state.replayed(id) {
                // Too many: its asker is told.
                let _ = self.table.made(id, attributes.inode);
            }
        }
    }
}

/// What a session may do with an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Granted {
    /// It may be cached for so many ms.
    pub ms: u32,
    /// The file may be opened for reading without a word, and its pages be kept in this era; 0: it may not.
    pub pages_era: u64,
}

/// What became of an open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// As it is counted.
    pub mode: OpenMode,
    /// It may write, and another session may have pages of the file, or open it without a word: `end_grants_of_readers` comes
    /// before the answer.
    pub used_elsewhere: bool,
}

/// Which of two opens can have the same pages: pages that were read in another era may be those of a write that nobody was told of.
pub struct PagesEra(AtomicU64);

impl PagesEra {
    /// The first one of this process.
    pub fn new(incarnation: u64) -> Self {
        Self(AtomicU64::new(incarnation))
    }

    /// The present one.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

impl Leader {
    /// At most `most` orphans that nobody holds open. Until `reaped` they cannot be opened.
    pub fn begin_reaping(&self, most: usize) -> Vec<InodeId> {
        let state = self.machine.state();
        if state.orphans().next().is_none() {
            return Vec::new();
        }
        let mut opens = self.opens.lock();
        opens.take_over(&state);
        let free: Vec<InodeId> = state.orphans().filter(|inode| !opens.table.is_open(*inode)).take(most).collect();
        opens.reaping.extend(&free);
        free
    }

    /// The end of these orphans was committed, or was not.
    pub fn reaped(&self, inodes: &[InodeId]) {
        let mut opens = self.opens.lock();
        for inode in inodes {
            opens.reaping.remove(inode);
        }
    }

    /// A session opens a file; through its page cache, if it wants to, when no other session has it open for writing, or `anyway`.
    ///
    /// # Errors
    /// `Stale` for a file that goes just now: its name may stand for another one, so whoever asked has to look again; `NoLocks` when it
    /// holds too many.
    pub fn hold_open(
        &self,
        session: SessionId,
        inode: InodeId,
        mode: OpenMode,
        anyway: bool,
        count: u32,
    ) -> Result<Held, Refusal> {
        // Others may have it open who have not come back since this process started.
        let known = self.sessions.others_reclaimed(session);
        let mut opens = self.opens.lock();
        if opens.reaping.contains(&inode) {
            return Err(Refusal::Stale);
        }
        let alone = known && opens.table.writers(inode).all(|writer| writer == session);
        let mode = OpenMode { pages: mode.pages && (alone || anyway), ..mode };
        opens.table.open(session, inode, mode, count).map_err(too_many)?;
        let used_elsewhere = mode.writes() && self.is_used_elsewhere(&opens.table, inode, session);
        Ok(Held { mode, used_elsewhere })
    }

    /// Whether another session than a writer may have pages of a file, or open it without a word.
    pub fn is_used_elsewhere(&self, opens: &OpenTable, inode: InodeId, writer: SessionId) -> bool {
        self.gate.is_shared(inode, writer) || opens.page_users(inode).any(|user| user != writer)
    }

    /// Other sessions than a writer lose their grants of a file. Those that may have pages of it get none as long as it is open for
    /// writing: their pages are good for one read then. The others get such as say that they are not alone.
    pub async fn end_grants_of_readers(&self, writer: SessionId, inode: InodeId) {
        let touched = Touched { inodes: vec![inode], entries: Vec::new() };
        drop(self.gate.clear(&self.sessions, touched, writer).await);
    }

    /// As `Gate::grant`, but nothing to a session that may have pages of a file that another may write, and nothing of a file that is being
    /// cut: how much it occupies changes by itself in a moment. Says too whether `alone`, if it is among the items, is open for writing
    /// nowhere else: its holder may open it without a word until the grant ends.
    pub(super) fn grant(
        &self,
        state: &State,
        session: SessionId,
        items: &[(InodeId, Cached)],
        alone: Option<InodeId>,
    ) -> Granted {
        // Kept until it is granted: a writer that opens later finds the grant.
        let opens = self.opens.lock();
        let known = self.sessions.others_reclaimed(session);
        let written = |inode: InodeId| !known || opens.table.writers(inode).any(|writer| writer != session);
        let uses = |inode: InodeId| opens.table.page_users(inode).any(|user| user == session);
        let barred = |(inode, what): &(InodeId, Cached)| {
            let pages = || opens.table.has_pages() && uses(*inode) && written(*inode);
            *what == Cached::Attributes && (pages() || state.shrink(*inode).is_some())
        };
        if items.iter().any(barred) {
            return Granted::default();
        }
        let ms = self.gate.grant(session, items);
        let alone = alone.filter(|inode| ms > 0 && !written(*inode) && !opens.reaping.contains(inode));
        Granted { ms, pages_era: alone.map_or(0, |_| self.pages_era.now()) }
    }

    /// A session is gone, and writes of it may have come to nothing that nobody was told of: pages from before do not count at the next
    /// open. To be called when its writes cannot reach the chunk servers any more.
    pub fn end_pages_of_writer(&self, session: SessionId) {
        // What a session had open that has not come back since this process started is not known.
        let known = self.sessions.has_reclaimed(session);
        if !known || self.opens.lock().table.files_of(session).any(|(_, counts)| counts.writes()) {
            self.pages_era.end();
        }
    }

    /// An operation that is to hold open what it makes was answered with this file.
    ///
    /// # Errors
    /// `NotFound` for a file that has gone since; `NoLocks` when the session holds too many.
    pub fn hold_made(&self, id: OperationId, inode: InodeId) -> Result<(), Refusal> {
        let state = self.machine.state();
        let mut opens = self.opens.lock();
        if state.attributes(inode).is_none() || opens.reaping.contains(&inode) {
            opens.table.refused(id);
            return Err(Refusal::NotFound);
        }
        opens.table.made(id, inode).map(drop).map_err(too_many)
    }

    /// A session closes a file.
    pub fn let_go(&self, session: SessionId, inode: InodeId, mode: impl Into<OpenMode>, count: u32) {
        if self.opens.lock().table.close(session, inode, mode, count) {
            self.work.notify_one();
        }
    }
}

fn too_many(error: TooManyOpen) -> Refusal {
    tracing::info!(%error, "an open is refused");
    Refusal::NoLocks
}
