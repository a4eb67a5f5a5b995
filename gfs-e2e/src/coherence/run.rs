//! Rounds: each has a directory of its own, some workers on each mount, and a verdict.

use super::evidence::{Checked, Evidence};
use super::place::Place;
use super::worker::Worker;
use crate::cluster::wait_until;
use gfs_core::splitmix::SplitMix64;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Workers on all mounts. Of more calls at a time too many orders are possible.
const WORKERS: u16 = 6;
/// How long a number of steps may take to be done while daemons come and go.
const GOES_ON: Duration = Duration::from_secs(60);

/// How far the workers of a round are.
pub struct Progress {
    steps: AtomicU64,
    over: AtomicBool,
    all: u64,
}

impl Progress {
    /// Waits until so many of a hundred steps are done.
    pub fn wait_for(&self, percent: u64) {
        wait_until(&format!("{percent} % of the steps are done"), GOES_ON, || {
            self.over.load(Ordering::Relaxed) || self.steps.load(Ordering::Relaxed) * 100 >= self.all * percent
        });
    }
}

/// Tells when a worker panics: nobody needs to wait for its steps.
struct Watch<'a>(&'a Progress);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.over.fetch_or(std::thread::panicking(), Ordering::Relaxed);
    }
}

/// Mounts of one cluster, and how long a round is.
pub struct Run {
    mounts: Vec<PathBuf>,
    /// Steps of each worker in a round.
    steps: u64,
    clock: Instant,
}

impl Run {
    /// Rounds of so many steps of each worker.
    pub fn new(mounts: Vec<PathBuf>, steps: u64) -> Self {
        Self { mounts, steps, clock: Instant::now() }
    }

    /// One round. Panics with the seed when something was seen that cannot have been, or when a call failed.
    pub fn round(&self, seed: u64) -> Checked {
        self.round_during(seed, |_| ())
    }

    /// One round, during which something happens to the cluster that should fail no call.
    pub fn round_during(&self, seed: u64, fault: impl FnOnce(&Progress)) -> Checked {
        let evidence = self.evidence(seed, fault);
        match evidence.judge() {
            Ok(checked) if evidence.failed.is_empty() => checked,
            Ok(_) => panic!("seed {seed}: calls failed:\n{}", evidence.failed.join("\n")),
            Err(told) => panic!("seed {seed}: {told}\ncalls that failed:\n{}", evidence.failed.join("\n")),
        }
    }

    fn evidence(&self, seed: u64, fault: impl FnOnce(&Progress)) -> Evidence {
        let place = self.place(seed);
        let each = WORKERS / self.mounts.len() as u16;
        let workers: Vec<_> = (0..self.mounts.len()).flat_map(|m| (0..each).map(move |n| (m, n))).collect();
        let all = workers.len() as u64 * self.steps;
        let progress = Progress { steps: AtomicU64::new(0), over: AtomicBool::new(false), all };
        let mut evidence = Evidence::default();
        std::thread::scope(|scope| {
            let (place, progress) = (&place, &progress);
            let begin = |(mount, number)| {
                scope.spawn(move || {
                    let _watch = Watch(progress);
                    self.work(Worker::new(place, mount, number, seed, self.clock), progress)
                })
            };
            let threads: Vec<_> = workers.into_iter().map(begin).collect();
            fault(progress);
            threads.into_iter().for_each(|thread| evidence.add(thread.join().expect("a worker")));
        });
        for mount in 0..self.mounts.len() {
            let mut worker = Worker::new(&place, mount, WORKERS, seed, self.clock);
            worker.look();
            evidence.add(worker.seen);
        }
        evidence
    }

    /// The directory of a round; a seed may be used again.
    fn place(&self, seed: u64) -> Place {
        let mut numbers = SplitMix64::new(seed ^ 0x706c_6163_6500);
        let (maker, keep) = (numbers.below(self.mounts.len() as u64) as usize, numbers.below(2) == 0);
        let name = format!("round-{seed}-{}", self.clock.elapsed().as_nanos());
        Place::make(&self.mounts, maker, &name, keep).unwrap_or_else(|e| panic!("seed {seed}: {e}"))
    }

    fn work(&self, mut worker: Worker<'_>, progress: &Progress) -> Evidence {
        for _ in 0..self.steps {
            worker.step();
            progress.steps.fetch_add(1, Ordering::Relaxed);
        }
        worker.seen
    }
}
