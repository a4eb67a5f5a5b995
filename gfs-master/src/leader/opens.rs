//! Files that sessions hold open, and which orphans may go because nobody does.
//!
//! This room keeps the core's table in step with the state. A file that was just made and opened in one step is in the state before
//! it is in the table: whoever is about to free orphans has the table take over what the state knows first. Lock order: the state's
//! lock before the table's.

use super::Leader;
use gfs_core::ids::{InodeId, OperationId, SessionId};
use gfs_core::meta::opens::{OpenAccess, OpenTable, TooManyOpen};
use gfs_core::meta::request::{Refusal, Reply};
use gfs_core::meta::state::State;
use std::collections::BTreeSet;

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

    /// A session opens a file.
    ///
    /// # Errors
    /// `NotFound` for a file that goes just now; `NoLocks` when it holds too many.
    pub fn hold_open(&self, session: SessionId, inode: InodeId, access: OpenAccess, count: u32) -> Result<(), Refusal> {
        let mut opens = self.opens.lock();
        if opens.reaping.contains(&inode) {
            return Err(Refusal::NotFound);
        }
        opens.table.open(session, inode, access, count).map_err(too_many)
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
    pub fn let_go(&self, session: SessionId, inode: InodeId, access: OpenAccess, count: u32) {
        if self.opens.lock().table.close(session, inode, access, count) {
            self.work.notify_one();
        }
    }
}

fn too_many(error: TooManyOpen) -> Refusal {
    tracing::info!(%error, "an open is refused");
    Refusal::NoLocks
}
