//! Which replicas wait for a thread to take an assignment on, and how many threads there are for that.
//!
//! Chunks are assigned many at a time, and each one costs a new file: a fraction of a millisecond in the page cache. A thread for each
//! would cost more than the work. A few go on for as long as something waits; when none of them gets on, because a disk hangs, one more is
//! started at a time. This room decides and counts; `Driver` has the threads.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Threads that are started at once.
const FEW: usize = 2;
/// Threads at most, while disks hang.
const MOST: usize = 64;
/// Nothing taken for so long means that those who work hang.
pub(super) const STUCK: Duration = Duration::from_millis(20);

/// And so does something that has waited for so long.
const LATE: Duration = Duration::from_millis(100);

/// What waits, once each: a replica that waits is not submitted again.
pub(super) struct Lanes<T> {
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    /// With the time since when.
    waiting: VecDeque<(T, Instant)>,
    running: usize,
    /// How many were taken, now and when it was last looked.
    taken: (u64, u64),
    watched: bool,
}

/// What has to be started for a submission to be carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    /// A thread that takes until nothing waits.
    Thread,
    /// Somebody who looks every `STUCK` whether threads get on.
    Watch,
    /// Nothing: who works comes to it.
    Nothing,
}

/// What is found by looking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// Nothing waits; the looking ends.
    Idle,
    /// They get on, or there are enough that do not.
    Moving,
    /// One more thread has to be started.
    Stuck,
}

/// A thread's place. Dropping it gives the place back, also when its work panics.
pub(super) struct Lane<T> {
    lanes: Arc<Lanes<T>>,
    ended: bool,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        let inner = Inner { waiting: VecDeque::new(), running: 0, taken: (0, 0), watched: false };
        Self { inner: Mutex::new(inner) }
    }
}

impl<T> Lanes<T> {
    /// Lets something wait.
    pub fn submit(&self, what: T) -> Start {
        let mut inner = self.inner.lock();
        inner.waiting.push_back((what, Instant::now()));
        if inner.running < FEW {
            inner.running += 1;
            Start::Thread
        } else if std::mem::replace(&mut inner.watched, true) {
            Start::Nothing
        } else {
            inner.taken.1 = inner.taken.0;
            Start::Watch
        }
    }

    /// The place of a thread that `submit` or `look` asked for.
    pub fn enter(self: &Arc<Self>) -> Lane<T> {
        Lane { lanes: self.clone(), ended: false }
    }

    /// Looks whether those who work get on.
    pub fn look(&self) -> Progress {
        let mut inner = self.inner.lock();
        if inner.waiting.is_empty() {
            inner.watched = false;
            return Progress::Idle;
        }
        let late = inner.waiting.front().is_some_and(|(_, since)| since.elapsed() >= LATE);
        let stuck = (late || inner.taken.0 == inner.taken.1) && inner.running < MOST;
        inner.taken.1 = inner.taken.0;
        if stuck {
            inner.running += 1;
            Progress::Stuck
        } else {
            Progress::Moving
        }
    }
}

impl<T> Lane<T> {
    /// The next to be worked on; with nothing the place is given back.
    pub fn take(&mut self) -> Option<T> {
        let mut inner = self.lanes.inner.lock();
        let next = inner.waiting.pop_front();
        if next.is_some() {
            inner.taken.0 += 1;
        } else if !std::mem::replace(&mut self.ended, true) {
            inner.running -= 1;
        }
        next.map(|(what, _)| what)
    }
}

impl<T> Drop for Lane<T> {
    fn drop(&mut self) {
        if !self.ended {
            self.lanes.inner.lock().running -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_threads_take_all_in_order() {
        let lanes = Arc::new(Lanes::default());
        let started: Vec<Start> = (0..5).map(|number| lanes.submit(number)).collect();
        assert_eq!(started, [Start::Thread, Start::Thread, Start::Watch, Start::Nothing, Start::Nothing]);
        let (mut one, mut two) = (lanes.enter(), lanes.enter());
        assert_eq!([one.take(), two.take(), one.take(), one.take()], [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(lanes.look(), Progress::Moving);
        assert_eq!(two.take(), Some(4));
        assert_eq!([one.take(), two.take()], [None, None]);
        assert_eq!(lanes.look(), Progress::Idle);
        drop((one, two));
        assert_eq!(lanes.submit(5), Start::Thread, "the places were given back once each");
        assert_eq!(lanes.submit(6), Start::Thread);
        assert_eq!(lanes.submit(7), Start::Watch, "the watch had ended");
    }

    #[test]
    fn threads_that_hang_get_help_up_to_a_bound() {
        let lanes = Arc::new(Lanes::default());
        let mut hanging = Vec::new();
        for number in 0..FEW {
            assert_eq!(lanes.submit(number), Start::Thread);
            let mut lane = lanes.enter();
            lane.take();
            hanging.push(lane);
        }
        assert_eq!(lanes.submit(9), Start::Watch);
        for _ in FEW..MOST {
            assert_eq!(lanes.look(), Progress::Stuck);
            hanging.push(lanes.enter());
        }
        assert_eq!(lanes.look(), Progress::Moving, "there are enough");
        assert_eq!(hanging.last_mut().map(Lane::take), Some(Some(9)));
        assert_eq!(lanes.look(), Progress::Idle);
    }

    #[test]
    fn a_thread_that_panics_gives_its_place_back() {
        let lanes = Arc::new(Lanes::default());
        for number in 0..10 {
            assert_eq!(lanes.submit(number), Start::Thread);
            let mut lane = lanes.enter();
            assert_eq!(lane.take(), Some(number));
            drop(lane);
        }
    }
}
