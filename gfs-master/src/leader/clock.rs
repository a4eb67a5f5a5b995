//! Monotonic time in milliseconds since the process started.

use std::time::Duration;
use tokio::time::Instant;

/// Counts from when it was made; copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }

    /// The moment that is `ms` after the start.
    pub fn instant(&self, ms: u64) -> Instant {
        self.0 + Duration::from_millis(ms)
    }
}
