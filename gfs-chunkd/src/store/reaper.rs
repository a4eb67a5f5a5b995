//! What deleted replicas leave on a disk: freed later, or used again for new ones.
//!
//! Freeing the blocks of a file can take a millisecond and more: a file system that is mounted with `discard` tells the device at once,
//! and does so while the caller waits; and ext4 without a journal looks for a long time for an inode that was not freed a moment ago. So a
//! deletion only moves the file aside. A new replica takes a small one of those and empties it. One thread a disk frees the rest, one file
//! after the other: slowly while the disk is asked for something else, and not the last ones as long as new replicas may come.
//! The directory is the queue: what is left of it when the process ends is the next one's.

use super::error::StoreError;
use super::file::ChunkFile;
use gfs_core::ids::ChunkHandle;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The pause after one removal while the disk is asked for something else.
const PAUSE: Duration = Duration::from_millis(50);
/// The disk counts as busy for so long after a call, in milliseconds.
const BUSY_MS: u64 = 200;
/// So many wait at most for a quiet time; beyond them removals take a quarter of the time.
const MANY: usize = 50_000;
/// So many are kept for new replicas, for so long after the last was made or deleted.
const KEPT: usize = 1_024;
const KEPT_FOR: Duration = Duration::from_secs(60);
/// How often it is looked whether that is over.
const LOOK: Duration = Duration::from_secs(5);
/// Larger files are not used again: to empty them takes as long as to remove them.
const SMALL: u64 = 256 << 10;
/// With less free space than this, or than an eighth, everything is freed at once.
const AMPLE: u64 = 4 << 30;
/// Names that are remembered; what else is in the directory is found when these are gone.
const NAMES: usize = 200_000;
/// Where deleted files wait, in the directory of the disk.
pub(crate) const ASIDE: &str = "deleted";

/// The directory of one disk, and the thread that empties it.
pub(crate) struct Reaper {
    shared: Arc<Shared>,
}

struct Shared {
    aside: PathBuf,
    kept: usize,
    state: Mutex<State>,
    changed: Condvar,
    started: Instant,
    /// When a chunk of this disk was last asked for something, in milliseconds since the start.
    called: AtomicU64,
}

struct State {
    /// Files in the directory, the longest deleted first.
    waiting: VecDeque<PathBuf>,
    /// There may be others in the directory.
    more: bool,
    /// When a file came or was used again.
    used: Instant,
    ended: bool,
}

impl Reaper {
    /// Starts to free what an earlier process left in the directory of a disk.
    pub fn start(disk: &Path) -> Result<Self, StoreError> {
        Self::keeping(disk, KEPT)
    }

    fn keeping(disk: &Path, kept: usize) -> Result<Self, StoreError> {
        let aside = disk.join(ASIDE);
        if let Err(error) = std::fs::create_dir_all(&aside) {
            tracing::warn!(dir = %aside.display(), %error, "deleted chunks are freed while their deletion waits");
        }
        let state = State { waiting: VecDeque::new(), more: true, used: Instant::now(), ended: false };
        let shared = Arc::new(Shared {
            aside,
            kept,
            state: Mutex::new(state),
            changed: Condvar::new(),
            started: Instant::now(),
            called: AtomicU64::new(0),
        });
        let running = shared.clone();
        let started = std::thread::Builder::new().name("reaper".into()).spawn(move || running.run());
        started.map_err(|e| StoreError::io("start the reaper of", disk, e))?;
        Ok(Self { shared })
    }

    /// Somebody asks the disk for something.
    pub fn called(&self) {
        self.shared.called.store(self.shared.now_ms(), Ordering::Relaxed);
    }

    /// Moves the file of a deleted replica aside; `record` is where the journal says so, which makes the name unique. No error when there
    /// is no such file.
    pub fn take(&self, path: &Path, handle: ChunkHandle, record: u64) -> Result<(), StoreError> {
        let aside = self.shared.aside.join(format!("{:016x}.{record:x}", handle.0));
        if std::fs::rename(path, &aside).is_ok() {
            let mut state = self.shared.state.lock();
            state.used = Instant::now();
            if state.waiting.len() < NAMES {
                state.waiting.push_back(aside);
            } else {
                state.more = true;
            }
            if state.waiting.len() > self.shared.kept || state.more {
                self.shared.changed.notify_one();
            }
            return Ok(());
        }
        // A full disk may have no room for the name, or somebody took the directory away: then it is freed here and now.
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::io("unlink", path, e)),
            _ => Ok(()),
        }
    }

    /// Makes the file of a new replica of one that was deleted: empty but for what `fill` writes, and only then in its place. `None` when
    /// there is none for that.
    pub fn reuse(
        &self,
        path: &Path,
        fill: impl FnOnce(&ChunkFile) -> Result<(), StoreError>,
    ) -> Option<Result<ChunkFile, StoreError>> {
        let aside = {
            let mut state = self.shared.state.lock();
            state.used = Instant::now();
            state.waiting.pop_back()?
        };
        let Some(file) = ChunkFile::take_over(&aside, path, SMALL) else {
            // Large, or still in use: to be freed, before the others.
            self.shared.state.lock().waiting.push_front(aside);
            self.shared.changed.notify_one();
            return None;
        };
        let placed = fill(&file)
            .and_then(|()| std::fs::rename(&aside, path).map_err(|error| StoreError::io("rename", &aside, error)));
        Some(placed.map(|()| file))
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
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn is_busy(&self) -> bool {
        let called = self.called.load(Ordering::Relaxed);
        called > 0 && self.now_ms().saturating_sub(called) < BUSY_MS
    }

    /// Whether there is so much room that what waits does no harm.
    fn has_room(&self) -> bool {
        rustix::fs::statvfs(&self.aside).is_ok_and(|stat| {
            let (free, total) =
                (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize));
            free >= AMPLE.max(total / 8)
        })
    }

    fn run(&self) {
        while let Some((path, left)) = self.next() {
            let begun = Instant::now();
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    // Tried again at the next start.
                    tracing::warn!(file = %path.display(), %error, "what a deleted chunk occupied is not free yet");
                }
                _ => (),
            }
            let pause = match (self.is_busy(), left < MANY && self.has_room()) {
                (false, _) => Duration::ZERO,
                (true, true) => PAUSE,
                (true, false) => (begun.elapsed() * 3).min(PAUSE),
            };
            if self.rest(pause) {
                return;
            }
        }
    }

    /// The next file to free, and how many there are beside it. Waits for one; `None` when it is time to end.
    fn next(&self) -> Option<(PathBuf, usize)> {
        loop {
            if self.state.lock().more {
                self.look();
            }
            let mut state = self.state.lock();
            if state.ended {
                return None;
            }
            let count = state.waiting.len();
            let idle = state.used.elapsed() >= KEPT_FOR;
            if count > self.kept || (count > 0 && (idle || !self.has_room())) {
                return Some((state.waiting.pop_front()?, count - 1));
            }
            if !state.more {
                self.changed.wait_for(&mut state, LOOK);
            }
        }
    }

    /// Finds what is in the directory and not remembered.
    fn look(&self) {
        let mut state = self.state.lock();
        state.more = false;
        let known: std::collections::HashSet<PathBuf> = state.waiting.iter().cloned().collect();
        let Ok(entries) = std::fs::read_dir(&self.aside) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            if state.waiting.len() >= NAMES {
                state.more = true;
                return;
            }
            if !known.contains(&path) {
                state.waiting.push_back(path);
            }
        }
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
        let reaper = Reaper::keeping(disk.path(), 0).unwrap();
        wait_until("what was left is freed", || count(&aside) == 0);
        for number in 0..100 {
            let file = disk.path().join("chunk");
            std::fs::write(&file, "bytes").unwrap();
            reaper.take(&file, ChunkHandle(number), number).unwrap();
            assert!(!file.exists(), "it is gone from its place at once");
        }
        wait_until("what was taken is freed", || count(&aside) == 0);
    }

    fn deleted(disk: &Path, reaper: &Reaper, number: u64, bytes: usize) {
        let file = disk.join("chunk");
        std::fs::write(&file, vec![7; bytes]).unwrap();
        reaper.take(&file, ChunkHandle(number), number).unwrap();
    }

    fn reused(disk: &Path, reaper: &Reaper) -> Option<PathBuf> {
        let place = disk.join("new");
        let made = reaper.reuse(&place, |file| file.write(10, &[b"fresh"]))?.unwrap();
        assert_eq!(
            std::fs::read(&place).unwrap(),
            [&[0; 10][..], b"fresh"].concat(),
            "of the old file nothing is left"
        );
        Some(made.path)
    }

    #[test]
    fn small_files_are_kept_and_used_again_and_large_ones_are_not() {
        let disk = tempfile::tempdir().unwrap();
        let reaper = Reaper::start(disk.path()).unwrap();
        assert_eq!(reused(disk.path(), &reaper), None);
        deleted(disk.path(), &reaper, 1, 5000);
        assert_eq!(reused(disk.path(), &reaper), Some(disk.path().join("new")));
        assert_eq!(count(&disk.path().join(ASIDE)), 0);
        deleted(disk.path(), &reaper, 2, 2 * SMALL as usize);
        assert_eq!(reused(disk.path(), &reaper), None);
    }

    #[test]
    fn file_that_somebody_still_uses_is_not_used_again() {
        let disk = tempfile::tempdir().unwrap();
        let reaper = Reaper::start(disk.path()).unwrap();
        deleted(disk.path(), &reaper, 1, 100);
        let aside = std::fs::read_dir(disk.path().join(ASIDE)).unwrap().next().unwrap().unwrap().path();
        for options in [std::fs::OpenOptions::new().read(true), std::fs::OpenOptions::new().write(true)] {
            let user = options.open(&aside).unwrap();
            assert_eq!(reused(disk.path(), &reaper), None);
            drop(user);
        }
        assert!(reused(disk.path(), &reaper).is_some());
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
