//! Frees what deleted replicas leave on a disk.
//!
//! Freeing the blocks of a file can take a millisecond and more: a file system that is mounted with `discard` tells the device at once,
//! and does so while the caller waits. Thousands of removals side by side would hold up everything else on the disk. So a deletion only
//! moves the file aside, and one thread a disk frees what lies there, one file after the other, and at a quarter of its pace while the
//! disk is asked for something else. The directory is the queue: what is left of it when the process ends is freed by the next.

use super::error::StoreError;
use gfs_core::ids::ChunkHandle;
use parking_lot::{Condvar, Mutex};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest pause after one removal.
const PAUSE: Duration = Duration::from_millis(50);
/// Where deleted files wait, in the directory of the disk.
pub(crate) const ASIDE: &str = "deleted";

/// The directory of one disk, and the thread that empties it.
pub(crate) struct Reaper {
    shared: Arc<Shared>,
}

struct Shared {
    aside: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    /// Calls for chunks of this disk so far.
    calls: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Something was put aside since the thread looked last.
    more: bool,
    ended: bool,
}

impl Reaper {
    /// Starts to free what an earlier process left in the directory of a disk.
    pub fn start(disk: &Path) -> Result<Self, StoreError> {
        let aside = disk.join(ASIDE);
        if let Err(error) = std::fs::create_dir_all(&aside) {
            tracing::warn!(dir = %aside.display(), %error, "deleted chunks are freed while their deletion waits");
        }
        let state = Mutex::new(State { more: true, ended: false });
        let shared = Arc::new(Shared { aside, state, changed: Condvar::new(), calls: AtomicU64::new(0) });
        let running = shared.clone();
        let started = std::thread::Builder::new().name("reaper".into()).spawn(move || running.run());
        started.map_err(|e| StoreError::io("start the reaper of", disk, e))?;
        Ok(Self { shared })
    }

    /// Somebody asks the disk for something.
    pub fn called(&self) {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the file of a deleted replica aside; `record` is where the journal says so, which makes the name unique. No error when there
    /// is no such file.
    pub fn take(&self, path: &Path, handle: ChunkHandle, record: u64) -> Result<(), StoreError> {
        if std::fs::rename(path, self.shared.aside.join(format!("{:016x}.{record:x}", handle.0))).is_ok() {
            self.shared.state.lock().more = true;
            self.shared.changed.notify_one();
            return Ok(());
        }
        // A full disk may have no room for the name, or somebody took the directory away: then it is freed here and now.
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::io("unlink", path, e)),
            _ => Ok(()),
        }
    }
}

impl Drop for Reaper {
    /// Does not wait for the thread: its disk may hang.
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        loop {
            {
                let mut state = self.state.lock();
                while !state.more && !state.ended {
                    self.changed.wait(&mut state);
                }
                if state.ended {
                    return;
                }
                state.more = false;
            }
            if let Err(error) = self.empty() {
                // Tried again with the next deletion, and at the next start.
                tracing::warn!(dir = %self.aside.display(), %error, "what deleted chunks occupied is not free yet");
            }
        }
    }

    fn empty(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.aside)? {
            let (begun, calls) = (Instant::now(), self.calls.load(Ordering::Relaxed));
            match std::fs::remove_file(entry?.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => (),
            }
            let busy = self.calls.load(Ordering::Relaxed) != calls;
            if self.rest(if busy { (begun.elapsed() * 3).min(PAUSE) } else { Duration::ZERO }) {
                break;
            }
        }
        Ok(())
    }

    /// Waits; answers whether it is time to end.
    fn rest(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        while !state.ended && !pause.is_zero() && !self.changed.wait_until(&mut state, until).timed_out() {}
        state.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_until(what: &str, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::yield_now();
        }
    }

    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn frees_what_was_left_and_what_is_taken() {
        let disk = tempfile::tempdir().unwrap();
        let aside = disk.path().join(ASIDE);
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(aside.join("0000000000000007.12"), "left by an earlier process").unwrap();
        let reaper = Reaper::start(disk.path()).unwrap();
        wait_until("what was left is freed", || count(&aside) == 0);
        for number in 0..100 {
            let file = disk.path().join("chunk");
            std::fs::write(&file, "bytes").unwrap();
            reaper.take(&file, ChunkHandle(number), number).unwrap();
            assert!(!file.exists(), "it is gone from its place at once");
        }
        wait_until("what was taken is freed", || count(&aside) == 0);
    }

    #[test]
    fn a_file_goes_also_when_there_is_nowhere_to_move_it() {
        let disk = tempfile::tempdir().unwrap();
        let reaper = Reaper::start(disk.path()).unwrap();
        std::fs::remove_dir(disk.path().join(ASIDE)).unwrap();
        let file = disk.path().join("chunk");
        std::fs::write(&file, "bytes").unwrap();
        reaper.take(&file, ChunkHandle(1), 0).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_file_that_is_gone_already_is_no_error() {
        let disk = tempfile::tempdir().unwrap();
        let reaper = Reaper::start(disk.path()).unwrap();
        reaper.take(&disk.path().join("nothing"), ChunkHandle(1), 0).unwrap();
    }

    #[test]
    fn the_thread_ends_with_the_reaper() {
        let disk = tempfile::tempdir().unwrap();
        let reaper = Reaper::start(disk.path()).unwrap();
        let shared = Arc::downgrade(&reaper.shared);
        drop(reaper);
        wait_until("the thread has ended", || shared.strong_count() == 0);
    }
}
