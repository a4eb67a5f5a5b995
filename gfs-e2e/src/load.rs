//! Readers and writers on several mounts, whose every call must succeed, is checked and is timed.

use crate::cluster::wait_until;
use crate::work::{assert_pattern, pattern};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of one write.
const BLOCK: usize = 64 << 10;
/// Blocks of the file that a mount writes: it begins again after them.
const BLOCKS: u64 = 96;
/// Bytes of one read.
const READ: usize = 256 << 10;
/// Bytes of the file that a mount reads.
const READ_FILE: usize = 8 << 20;
/// How often each must have done its work before and after a fault.
const ROUNDS: u64 = 5;
/// How long that may take.
const GOES_ON: Duration = Duration::from_secs(60);

/// The longest call of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stalls {
    /// Reading a file that nobody writes.
    pub read: Duration,
    /// Writing a block, without its sync.
    pub write: Duration,
    /// Syncing it.
    pub sync: Duration,
    /// A new small file, written, synced and renamed over another: all of it.
    pub replace: Duration,
}

impl Stalls {
    fn join(self, other: Self) -> Self {
        Self {
            read: self.read.max(other.read),
            write: self.write.max(other.write),
            sync: self.sync.max(other.sync),
            replace: self.replace.max(other.replace),
        }
    }

    /// The longest of all.
    pub fn longest(&self) -> Duration {
        self.read.max(self.write).max(self.sync).max(self.replace)
    }
}

impl fmt::Display for Stalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [read, write, sync, replace] =
            [self.read, self.write, self.sync, self.replace].map(|time| time.as_secs_f64());
        write!(f, "longest read {read:.2} s (promise 0.5), write {write:.2} s (3), sync {sync:.2} s (3)")?;
        write!(f, ", new file written, synced and renamed {replace:.2} s")
    }
}

/// What one mount does: it reads one file, writes another, and replaces a third.
struct Worker {
    reads: File,
    writes: File,
    dir: PathBuf,
    number: u64,
    /// How often each of the three was done.
    done: [AtomicU64; 3],
}

/// The load; files are made in the given directories, which are the same one through different mounts.
pub struct Load {
    workers: Vec<Worker>,
    stop: AtomicBool,
}

/// Has the threads end also when the fault panics: they are waited for then.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Makes the files.
    pub fn new(dirs: &[PathBuf]) -> Self {
        let workers = dirs.iter().zip(0..).map(|(dir, number)| Worker::new(dir, number)).collect();
        Self { workers, stop: AtomicBool::new(false) }
    }

    /// Works while `fault` happens, and until all have gone on after it. Then every file is read through every mount and must hold what
    /// was written last.
    pub fn during(&self, fault: impl FnOnce()) -> Stalls {
        self.stop.store(false, Ordering::Relaxed);
        let (stalls, ends) = std::thread::scope(|scope| {
            let stop = Stop(&self.stop);
            let threads: Vec<_> = (self.workers.iter())
                .map(|worker| {
                    let reads = scope.spawn(|| worker.read(&self.stop));
                    let replaces = scope.spawn(|| worker.replace(&self.stop));
                    (reads, replaces, scope.spawn(|| worker.write(&self.stop)))
                })
                .collect();
            self.go_on("before the fault");
            fault();
            self.go_on("after the fault");
            drop(stop);
            let (mut stalls, mut ends) = (Stalls::default(), Vec::new());
            for (reads, replaces, writes) in threads {
                let (replace, newest) = replaces.join().expect("who replaces");
                let (write, written) = writes.join().expect("who writes");
                stalls = stalls.join(reads.join().expect("who reads")).join(replace).join(write);
                ends.push((newest, written));
            }
            (stalls, ends)
        });
        for (worker, (newest, written)) in self.workers.iter().zip(&ends) {
            self.workers.iter().for_each(|other| other.assert_holds(worker.number, *newest, written));
        }
        stalls
    }

    /// Waits until each worker has done each of its works some times more.
    fn go_on(&self, when: &str) {
        let counts = || self.workers.iter().flat_map(|w| &w.done).map(|done| done.load(Ordering::Relaxed));
        let before: Vec<_> = counts().collect();
        wait_until(&format!("all calls go on {when}"), GOES_ON, || {
            // Somebody who has failed has stopped all: the failure is told by its thread.
            self.stop.load(Ordering::Relaxed) || counts().zip(&before).all(|(now, before)| now >= before + ROUNDS)
        });
    }
}

impl Worker {
    fn new(dir: &Path, number: u64) -> Self {
        let read = dir.join(format!("read-{number}"));
        std::fs::write(&read, pattern(number, 0, READ_FILE)).expect("a file to read");
        let mut options = OpenOptions::new();
        options.create(true).read(true).write(true).truncate(true);
        let writes = options.open(dir.join(format!("write-{number}"))).expect("a file to write");
        writes.set_len(BLOCKS * BLOCK as u64).expect("its length");
        let reads = File::open(read).expect("a file to read");
        Self { reads, writes, dir: dir.into(), number, done: Default::default() }
    }

    /// Repeats a work until it is to stop; a panic in it stops all.
    fn repeat(&self, kind: usize, stop: &AtomicBool, mut work: impl FnMut(u64)) {
        let failed = Stop(stop);
        while !stop.load(Ordering::Relaxed) {
            let round = self.done[kind].load(Ordering::Relaxed);
            work(round);
            self.done[kind].store(round + 1, Ordering::Relaxed);
        }
        drop(failed);
    }

    fn read(&self, stop: &AtomicBool) -> Stalls {
        let mut longest = Duration::ZERO;
        self.repeat(0, stop, |round| {
            let offset = round * 7 % (READ_FILE / READ) as u64 * READ as u64;
            timed(&mut longest, || assert_pattern(&self.reads, self.number, offset, READ));
            // Reads are so short that they would leave the others no processor.
            std::thread::sleep(Duration::from_millis(5));
        });
        Stalls { read: longest, ..Stalls::default() }
    }

    /// Returns the seed of each block.
    fn write(&self, stop: &AtomicBool) -> (Stalls, Vec<Option<u64>>) {
        let (mut write, mut sync, mut seeds) = (Duration::ZERO, Duration::ZERO, vec![None; BLOCKS as usize]);
        self.repeat(1, stop, |round| {
            let block = round * 5 % BLOCKS;
            let (offset, seed) = (block * BLOCK as u64, seed(self.number, round));
            let bytes = pattern(seed, offset, BLOCK);
            timed(&mut write, || self.writes.write_all_at(&bytes, offset).expect("write during a fault"));
            timed(&mut sync, || self.writes.sync_data().expect("sync during a fault"));
            seeds[block as usize] = Some(seed);
        });
        (Stalls { write, sync, ..Stalls::default() }, seeds)
    }

    /// Returns the number of the newest small file.
    fn replace(&self, stop: &AtomicBool) -> (Stalls, u64) {
        let (mut replace, mut newest) = (Duration::ZERO, 0);
        self.repeat(2, stop, |round| {
            timed(&mut replace, || self.replace_once(round));
            newest = round;
            std::thread::sleep(Duration::from_millis(20));
        });
        (Stalls { replace, ..Stalls::default() }, newest)
    }

    fn replace_once(&self, round: u64) {
        let (work, path) = (self.dir.join(format!("new-{}", self.number)), self.small(self.number));
        let mut file = File::create(&work).expect("create during a fault");
        file.write_all(&pattern(seed(self.number, round), 0, 5000)).expect("write of a new file during a fault");
        file.sync_all().expect("sync of a new file during a fault");
        drop(file);
        std::fs::rename(&work, &path).expect("rename during a fault");
    }

    fn small(&self, number: u64) -> PathBuf {
        self.dir.join(format!("small-{number}"))
    }

    /// Checks what a worker has left, through this one's mount.
    fn assert_holds(&self, number: u64, newest: u64, written: &[Option<u64>]) {
        let small = std::fs::read(self.small(number)).expect("the small file");
        assert!(small == pattern(seed(number, newest), 0, 5000), "the small file of {number} is not the newest");
        let file = File::open(self.dir.join(format!("write-{number}"))).expect("the written file");
        for (block, seed) in written.iter().enumerate() {
            if let Some(seed) = seed {
                assert_pattern(&file, *seed, (block * BLOCK) as u64, BLOCK);
            }
        }
    }
}

/// What tells the bytes of one round of one worker from all others.
fn seed(number: u64, round: u64) -> u64 {
    (number + 1) << 32 | round
}

fn timed(longest: &mut Duration, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    *longest = start.elapsed().max(*longest);
}
