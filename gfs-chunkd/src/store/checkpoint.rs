//! Bringing things to stable storage: `sync` for one chunk, checkpoints for a disk.
//!
//! A checkpoint moves what the journal holds into the chunk files and then trims it. Its order is what keeps it safe:
//! journal durable, overlay in place, files durable, state slots written, slots durable, journal trimmed.

use super::chunk::Chunk;
use super::disk::{Disk, FANS};
use super::error::StoreError;
use super::identity::sync_dir;
use super::record::JournalRecord;
use gfs_core::ids::Sequence;
use gfs_log::Position;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// From so many files on, one syncfs is cheaper than syncing each.
const MANY: usize = 64;

/// Which chunks a checkpoint is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All that the journal holds something of, so that it can be trimmed as a whole.
    All,
    /// Only what was not written for a while, to make it clean.
    Idle,
}

impl Chunk {
    /// Starts a sync: bytes that are not in the journal are durable when it returns. Answers what will be flushed,
    /// and up to where the journal has to be durable for that; `None` if there is nothing to do.
    pub fn sync_begin(&self) -> Result<(Sequence, Option<u64>), StoreError> {
        let _gate = self.gate.lock();
        let (committed, landed, fresh) = {
            let mut state = self.state.write();
            if state.dead {
                return Err(self.missing());
            }
            if state.flushed >= state.committed {
                return Ok((state.committed, None));
            }
            let landed = std::mem::take(&mut state.landed_dirty);
            (state.committed, landed, landed && std::mem::take(&mut state.fresh))
        };
        if landed {
            self.file()?.sync()?;
        }
        if fresh {
            self.disk.sync_fan(self.handle)?;
        }
        let mut state = self.state.write();
        if state.dead {
            return Err(self.missing());
        }
        // Less than before if a copy was started meanwhile.
        let committed = committed.min(state.committed);
        // Of a suspect replica nobody knows what is missing: its flushed sequence stays what it was.
        let record = JournalRecord::Flushed(if state.suspect { state.flushed } else { committed });
        let appended = self.journal(&mut state, &record)?;
        Ok((committed, Some(appended.end.0)))
    }

    /// Notes that everything up to here is on stable storage.
    pub fn raise_flushed(&self, flushed: Sequence) {
        let mut state = self.state.write();
        if !state.suspect {
            state.flushed = state.flushed.max(flushed.min(state.committed));
        }
    }

    /// Brings everything committed to stable storage. See `Store::sync`.
    pub fn sync(&self) -> Result<Sequence, StoreError> {
        let (committed, end) = self.sync_begin()?;
        if let Some(end) = end {
            self.journal_durable(end)?;
            self.raise_flushed(committed);
        }
        Ok(committed)
    }

    fn is_idle(&self, linger: Duration) -> bool {
        let state = self.state.read();
        let rests = state.last_write.is_none_or(|at| at.elapsed() >= linger);
        rests && state.prepared.is_empty() && !state.is_clean() && !state.filling && !state.dead
    }

    fn in_scope(&self, scope: Scope, linger: Duration, cut: u64) -> bool {
        match scope {
            Scope::Idle => self.is_idle(linger),
            Scope::All => {
                let state = self.state.read();
                let held = state.oldest.is_some_and(|oldest| oldest < cut) || !state.overlay.is_empty();
                !state.dead && (held || state.intent && state.prepared.is_empty() && linger.is_zero())
            }
        }
    }

    /// Puts the overlay in place and answers the count of changes so far.
    pub fn settle(&self) -> Result<u64, StoreError> {
        let mut state = self.state.write();
        if !state.dead {
            self.drain_overlay(&mut state)?;
        }
        Ok(state.changes)
    }

    /// Writes the state slot, with the file durable before it. Answers the slot's counter and what it calls flushed.
    fn seal(&self, linger: Duration) -> Result<Option<(u64, Sequence)>, StoreError> {
        let mut state = self.state.write();
        if state.dead {
            return Ok(None);
        }
        self.drain_overlay(&mut state)?;
        if state.changes != state.synced {
            self.file()?.sync()?;
            state.synced = state.changes;
        }
        state.landed_dirty = false;
        let rests = state.last_write.is_none_or(|at| at.elapsed() >= linger);
        if rests && state.prepared.is_empty() && !state.filling {
            state.intent = false;
        }
        // What a power cut has taken is not flushed, though everything that is left is.
        let flushed = if state.suspect { state.flushed } else { state.committed };
        self.write_slot(&mut state, flushed)?;
        Ok(Some((state.counter, flushed)))
    }

    fn sealed(&self, counter: u64, flushed: Sequence) {
        let mut state = self.state.write();
        // Another slot since then may know better, after a copy was started.
        if state.counter == counter {
            state.flushed = state.flushed.max(flushed);
        }
    }
}

impl Disk {
    /// Makes a checkpoint of the chunks in scope; `all` lists every chunk of this disk.
    pub fn make_checkpoint(
        &self,
        all: impl FnOnce() -> Vec<Arc<Chunk>>,
        scope: Scope,
        linger: Duration,
    ) -> Result<(), StoreError> {
        let _gate = self.checkpoint.lock();
        let (cut, chunks) = {
            // Creations and removals whose records lie before the cut are done.
            let _complete = self.membership.write();
            (self.journal.end(), all())
        };
        let targets: Vec<&Arc<Chunk>> = chunks.iter().filter(|c| c.in_scope(scope, linger, cut.0)).collect();
        if targets.is_empty() && scope == Scope::Idle {
            return Ok(());
        }
        self.journal.sync(cut).map_err(|e| self.journal_error(e))?;
        let changes = targets.iter().map(|chunk| chunk.settle()).collect::<Result<Vec<_>, _>>()?;
        self.sync_files(&targets)?;
        for (chunk, changes) in targets.iter().zip(changes) {
            let mut state = chunk.state.write();
            state.synced = state.synced.max(changes);
        }
        let mut sealed = Vec::with_capacity(targets.len());
        for chunk in &targets {
            sealed.extend(chunk.seal(linger)?.map(|(counter, flushed)| (chunk, counter, flushed)));
        }
        self.sync_slots()?;
        self.journal.sync(self.journal.end()).map_err(|e| self.journal_error(e))?;
        for (chunk, counter, flushed) in sealed {
            chunk.sealed(counter, flushed);
        }
        let needed = chunks.iter().filter_map(|chunk| chunk.state.read().oldest).min().unwrap_or(cut.0);
        self.journal.trim(Position(needed.min(cut.0))).map_err(|e| self.journal_error(e))
    }

    fn sync_files(&self, chunks: &[&Arc<Chunk>]) -> Result<(), StoreError> {
        let dirty: Vec<_> = chunks
            .iter()
            .filter(|chunk| {
                let state = chunk.state.read();
                !state.dead && state.changes != state.synced
            })
            .collect();
        if dirty.len() > MANY && self.syncs_whole {
            return self.sync_all();
        }
        for chunk in dirty {
            match chunk.file() {
                Ok(file) => file.sync()?,
                Err(_) if chunk.state.read().dead => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes all state slots durable that were written so far, and the names of new and removed files.
    fn sync_slots(&self) -> Result<(), StoreError> {
        let slots = std::mem::take(&mut *self.slots.lock());
        let touched = std::mem::take(&mut *self.touched.lock());
        if slots.len() > MANY && self.syncs_whole {
            return self.sync_all();
        }
        for handle in slots {
            match self.file(handle) {
                Ok(file) => file.sync()?,
                // Deleted since.
                Err(StoreError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for fan in touched.into_iter().filter(|fan| *fan < FANS) {
            sync_dir(&Self::fan_path(&self.path, fan))?;
        }
        Ok(())
    }

    /// Whether the journal or the overlay asks for a checkpoint.
    pub fn wants_checkpoint(&self) -> bool {
        self.journal.bytes() > self.options.journal_bytes
            || self.overlay.load(Ordering::Acquire) > self.options.overlay_bytes / 2
    }

    /// Whether writers have to wait for one.
    pub fn is_overrun(&self) -> bool {
        self.journal.bytes() > self.options.journal_bytes.saturating_mul(2)
    }
}
