//! How long it will take until all chunks have their copies again, from how it went so far.

use std::collections::VecDeque;

/// How far back is looked.
const WINDOW_MS: u64 = 30_000;
/// Between two samples.
const SAMPLE_MS: u64 = 500;
/// Less says nothing.
const LEAST_MS: u64 = 2_000;

/// Counts of chunks below their goal, over the last half minute.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    samples: VecDeque<(u64, u64)>,
}

impl Pace {
    /// Notes how many chunks are below their goal now.
    pub fn observe(&mut self, now_ms: u64, below: u64) {
        let rises = self.samples.back().is_some_and(|(_, last)| below > *last);
        if below == 0 || rises {
            // More was lost: what was done before does not tell how long this takes.
            self.samples.clear();
        }
        if below == 0 {
            return;
        }
        if self.samples.back().is_none_or(|(at, _)| now_ms.saturating_sub(*at) >= SAMPLE_MS) {
            self.samples.push_back((now_ms, below));
        }
        while self.samples.len() > 2
            && self.samples.front().is_some_and(|(at, _)| now_ms.saturating_sub(*at) > WINDOW_MS)
        {
            self.samples.pop_front();
        }
    }

    /// Milliseconds until none is left if it goes on like this; `None` while that is not known, or nothing gets better.
    pub fn remaining_ms(&self, now_ms: u64, below: u64) -> Option<u64> {
        let (since, before) = self.samples.front()?;
        let (elapsed, done) = (now_ms.saturating_sub(*since), before.saturating_sub(below));
        (elapsed >= LEAST_MS && done > 0).then(|| below.saturating_mul(elapsed) / done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_from_the_pace_of_the_last_half_minute() {
        let mut pace = Pace::default();
        for second in 0..=60u64 {
            // Slow at first, ten a second in the last half minute.
            let below = if second <= 30 { 1_000 - second } else { 970 - 10 * (second - 30) };
            pace.observe(second * 1_000, below);
        }
        assert_eq!(pace.remaining_ms(60_000, 670), Some(67_000));
    }

    #[test]
    fn nothing_is_told_too_early_without_progress_or_after_new_losses() {
        let mut pace = Pace::default();
        assert_eq!(pace.remaining_ms(0, 5), None);
        pace.observe(0, 10);
        assert_eq!(pace.remaining_ms(1_000, 9), None);
        assert_eq!(pace.remaining_ms(10_000, 10), None);
        assert_eq!(pace.remaining_ms(10_000, 5), Some(10_000));
        pace.observe(10_000, 200);
        assert_eq!(pace.remaining_ms(11_000, 199), None);
        pace.observe(12_000, 0);
        assert_eq!(pace.remaining_ms(99_000, 1), None);
    }

    #[test]
    fn samples_are_bounded() {
        let mut pace = Pace::default();
        for ms in 0..1_000_000 {
            pace.observe(ms, 1_000_000);
        }
        assert!(pace.samples.len() <= 2 + (WINDOW_MS / SAMPLE_MS) as usize, "{}", pace.samples.len());
    }
}
