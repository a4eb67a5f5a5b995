//! Group commit: one fdatasync at a time, shared by all that wait.
//!
//! A blocked caller of `sync` flushes itself when nobody else does; the log's own thread flushes for callbacks and
//! calls them. A failed fdatasync is never repeated: the kernel may have dropped the bytes and then report
//! success, so the log is poisoned.

use crate::error::LogError;
use crate::log::{Inner, Position};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What is called when a position is durable, or never will be.
pub(crate) type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Who waits, and whether a flush is running.
#[derive(Default)]
pub(crate) struct FlushState {
    pub running: bool,
    pub waiters: Vec<(u64, Done)>,
    /// When the log's thread flushes though nobody waits.
    pub soon: Option<Instant>,
    pub poisoned: Option<Arc<io::Error>>,
    pub closing: bool,
}

impl Inner {
    /// The error of a poisoned log.
    pub(crate) fn check_poison(&self) -> Result<(), LogError> {
        if !self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        match &self.flush.lock().poisoned {
            Some(source) => Err(LogError::Poisoned { dir: self.dir.clone(), source: source.clone() }),
            None => Ok(()),
        }
    }

    /// Takes the log out of service.
    pub(crate) fn poison(&self, error: &io::Error) -> LogError {
        let source = Arc::new(io::Error::new(error.kind(), error.to_string()));
        let mut state = self.flush.lock();
        let source = state.poisoned.get_or_insert(source).clone();
        self.broken.store(true, Ordering::Release);
        drop(state);
        self.flushed.notify_all();
        self.work.notify_all();
        LogError::Poisoned { dir: self.dir.clone(), source }
    }

    /// Blocks until everything before `upto` is durable.
    pub(crate) fn sync(&self, upto: Position) -> Result<(), LogError> {
        let mut state = self.flush.lock();
        loop {
            if let Some(source) = &state.poisoned {
                return Err(LogError::Poisoned { dir: self.dir.clone(), source: source.clone() });
            }
            if self.durable.load(Ordering::Acquire) >= upto.0 {
                return Ok(());
            }
            if state.running {
                self.flushed.wait(&mut state);
                continue;
            }
            state.running = true;
            drop(state);
            self.flush_round();
            state = self.flush.lock();
        }
    }

    /// One fdatasync. The caller has set `running`.
    pub(crate) fn flush_round(&self) {
        // What is appended from here on asks again.
        self.flush.lock().soon = None;
        let (segment, target) = {
            let writer = self.writer.lock();
            (writer.current.clone(), writer.end)
        };
        let result = self.fdatasync(&segment.file);
        if let Err(error) = &result {
            self.poison(error);
        } else {
            self.durable.fetch_max(target, Ordering::AcqRel);
        }
        let wake = {
            let mut state = self.flush.lock();
            state.running = false;
            !state.waiters.is_empty() || state.soon.is_some()
        };
        self.flushed.notify_all();
        if wake {
            self.work.notify_all();
        }
        if result.is_ok() {
            self.mark(target);
        }
    }

    /// fdatasync, or the failure that a test asked for.
    pub(crate) fn fdatasync(&self, file: &std::fs::File) -> io::Result<()> {
        if self.fail_next_sync.swap(false, Ordering::AcqRel) {
            return Err(io::Error::other("injected fsync failure"));
        }
        file.sync_data()
    }

    /// The log's own thread: flushes for callbacks and calls them.
    pub(crate) fn serve_waiters(&self) {
        let mut state = self.flush.lock();
        loop {
            let outcome = self.outcome_for_all(&state);
            let durable = self.durable.load(Ordering::Acquire);
            let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut state.waiters)
                .into_iter()
                .partition(|(upto, _)| outcome.is_some() || *upto <= durable);
            state.waiters = waiting;
            if !ready.is_empty() {
                drop(state);
                for (_, done) in ready {
                    done(outcome.clone().unwrap_or(Ok(())));
                }
                state = self.flush.lock();
            } else if state.closing {
                return;
            } else if state.running {
                self.work.wait(&mut state);
            } else if state.waiters.is_empty() && state.soon.is_none_or(|at| at > Instant::now()) {
                match state.soon {
                    Some(at) => drop(self.work.wait_until(&mut state, at)),
                    None => self.work.wait(&mut state),
                }
            } else {
                state.running = true;
                drop(state);
                self.flush_round();
                state = self.flush.lock();
            }
        }
    }

    /// What everybody who waits is told, when there is such a thing.
    fn outcome_for_all(&self, state: &FlushState) -> Option<Result<(), LogError>> {
        if let Some(source) = &state.poisoned {
            return Some(Err(LogError::Poisoned { dir: self.dir.clone(), source: source.clone() }));
        }
        state.closing.then(|| Err(LogError::Closed { dir: self.dir.clone() }))
    }
}
