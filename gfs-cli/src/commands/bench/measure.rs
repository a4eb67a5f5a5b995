//! Runs one step in all jobs at a time and counts: how much in how long, and how long the calls took.

use super::Setting;
use super::report::Step;
use anyhow::{Context, Result, bail};
use std::io;
use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Length of one sequential read or write, in bytes.
pub(super) const PIECE: usize = 1 << 20;

/// In what a step is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// Megabytes (10^6).
    Bytes,
    /// Calls, or rows of calls, that are one operation to a user.
    Operations,
}

/// Counts the calls of one job, until its limit.
pub(super) struct Count {
    until: Instant,
    amount: u64,
    calls: Vec<Duration>,
}

impl Count {
    /// Makes one call and counts it as `amount`. Answers whether there is time for more.
    pub(super) fn call(&mut self, amount: u64, call: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
        let begun = Instant::now();
        call()?;
        let ended = Instant::now();
        self.calls.push(ended - begun);
        self.amount += amount;
        Ok(ended < self.until)
    }
}

/// Runs `job` once for each job, all at the same time; the step ends with the last of them.
pub(super) fn step(
    name: &str,
    unit: Unit,
    setting: &Setting,
    job: impl Fn(u16, &mut Count) -> io::Result<()> + Sync,
) -> Result<Step> {
    if setting.interrupted.load(Ordering::Acquire) {
        bail!("interrupted");
    }
    let together = Barrier::new(setting.asked.jobs.into());
    let one = |number: u16| {
        together.wait();
        let begun = Instant::now();
        let mut count =
            Count { until: begun + Duration::from_secs(setting.asked.seconds), amount: 0, calls: Vec::new() };
        job(number, &mut count).map(|()| (count, begun, Instant::now()))
    };
    let done: io::Result<Vec<_>> = std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..setting.asked.jobs).map(|number| scope.spawn(move || one(number))).collect();
        let ends = jobs.into_iter().map(|job| job.join().unwrap_or_else(|_| Err(io::Error::other("a job panicked"))));
        ends.collect()
    });
    let done = done.with_context(|| format!("{name} in {}", setting.place.display()))?;
    let begun = done.iter().map(|(_, begun, _)| *begun).min();
    let ended = done.iter().map(|(_, _, ended)| *ended).max();
    let seconds = begun.zip(ended).map_or(0.0, |(begun, ended)| (ended - begun).as_secs_f64());
    let amount: u64 = done.iter().map(|(count, _, _)| count.amount).sum();
    let mut calls: Vec<Duration> = done.into_iter().flat_map(|(count, _, _)| count.calls).collect();
    calls.sort_unstable();
    let scale = if unit == Unit::Bytes { 1e6 } else { 1.0 };
    Ok(Step {
        name: name.to_owned(),
        unit: if unit == Unit::Bytes { "MB/s" } else { "ops/s" }.to_owned(),
        rate: amount as f64 / scale / seconds.max(1e-9),
        seconds,
        p50_us: percentile(&calls, 50),
        p99_us: percentile(&calls, 99),
    })
}

/// The time in microseconds that `percent` of the calls did not exceed; 0 without calls.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |call| call.as_nanos() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_calls() {
        let calls: Vec<Duration> = (1..=100).map(Duration::from_micros).collect();
        assert_eq!((percentile(&calls, 50), percentile(&calls, 99)), (51.0, 100.0));
        assert_eq!((percentile(&calls[..1], 99), percentile(&[], 50)), (1.0, 0.0));
    }
}
