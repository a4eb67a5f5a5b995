//! Monotonic time in milliseconds since the process started, without the time in which the process did not run.
//!
//! A master that was stopped, or whose machine slept, has read no heartbeat meanwhile: measured by a wall everybody's lease would be
//! over when it goes on. What this clock leaves out makes leases only longer in the eyes of the master, and that is the safe side:
//! their holders count by their own clocks.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between beats, when the process runs.
pub const BEAT: Duration = Duration::from_millis(100);
/// Of a longer time between two beats the rest does not count, in milliseconds.
const LONGEST_MS: u64 = 500;
/// After such a time it takes so long, in milliseconds, until what others said meanwhile has been taken.
const CATCH_UP_MS: u64 = 500;

/// Counts from when it was made; clones are the same clock. Until the first beat all time counts.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
    beats: Arc<Mutex<Beats>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Beats {
    /// Of the last beat, in milliseconds since the start.
    last_ms: Option<u64>,
    /// What does not count.
    skipped_ms: u64,
    /// Of the first beat after a time that does not count, in milliseconds since the start.
    back_ms: Option<u64>,
}

impl Beats {
    /// With all that does not count until `real_ms`.
    fn until(self, real_ms: u64) -> Self {
        let gap = self.last_ms.map_or(0, |last| real_ms.saturating_sub(last));
        Self { skipped_ms: self.skipped_ms + gap.saturating_sub(LONGEST_MS), ..self }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self { start: Instant::now(), beats: Arc::default() }
    }
}

impl Clock {
    fn real_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Milliseconds since the start in which the process ran.
    pub fn now_ms(&self) -> u64 {
        let beats = self.beats.lock();
        let real_ms = self.real_ms();
        real_ms - beats.until(real_ms).skipped_ms
    }

    /// The moment at which `now_ms` is `ms`, if the process goes on to run.
    pub fn instant(&self, ms: u64) -> Instant {
        let beats = self.beats.lock();
        self.start + Duration::from_millis(ms + beats.until(self.real_ms()).skipped_ms)
    }

    /// The process runs; answers how long it did not before, in milliseconds. To be called every `BEAT`.
    pub fn beat(&self) -> u64 {
        let mut beats = self.beats.lock();
        let real_ms = self.real_ms();
        let now = beats.until(real_ms);
        let skipped_ms = now.skipped_ms - beats.skipped_ms;
        let back_ms = if skipped_ms > 0 { Some(real_ms) } else { now.back_ms };
        *beats = Beats { last_ms: Some(real_ms), back_ms, ..now };
        skipped_ms
    }

    /// Whether the process did not run a moment ago. What others sent meanwhile is taken in any order: a request of a process
    /// that has since died before the word of the one that came after it.
    pub fn is_catching_up(&self) -> bool {
        let beats = self.beats.lock();
        let real_ms = self.real_ms();
        let is_recent = |back: u64| real_ms < back + CATCH_UP_MS;
        beats.until(real_ms).skipped_ms > beats.skipped_ms || beats.back_ms.is_some_and(is_recent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_process_did_not_run_does_not_count() {
        let clock = Clock::default();
        pass(2_000).await;
        assert_eq!((clock.beat(), clock.now_ms()), (0, 2_000));
        pass(100).await;
        assert_eq!((clock.beat(), clock.now_ms()), (0, 2_100));
        pass(60_000).await;
        assert_eq!(clock.now_ms(), 2_600, "leases ran out before the first beat after a stop");
        assert_eq!((clock.beat(), clock.now_ms()), (59_500, 2_600));
        pass(100).await;
        assert_eq!(clock.now_ms(), 2_700);
    }

    #[tokio::test(start_paused = true)]
    async fn who_did_not_run_catches_up_first() {
        let clock = Clock::default();
        clock.beat();
        pass(LONGEST_MS).await;
        assert!(!clock.is_catching_up());
        pass(1).await;
        assert!(clock.is_catching_up(), "before the first beat");
        clock.beat();
        pass(CATCH_UP_MS - 1).await;
        clock.beat();
        assert!(clock.is_catching_up());
        pass(1).await;
        assert!(!clock.is_catching_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_told_by_the_same_clock() {
        let clock = Clock::default();
        clock.beat();
        pass(10_000).await;
        clock.beat();
        tokio::time::sleep_until(clock.instant(700)).await;
        assert_eq!(clock.now_ms(), 700);
    }
}
