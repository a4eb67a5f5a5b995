//! Whether what the master has granted may be used at this moment.
//!
//! Only while the two talk: the master has answered something that was sent a short while ago (`gfs_core::meta::grants::SILENCE_MS`). And
//! not while an own mutation is on its way that nobody waits for any more: what it changes when is not known.

use gfs_core::meta::grants::SILENCE_MS;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Below this it is time to ask for a sign of life if grants are used.
const LOW: Duration = Duration::from_millis(SILENCE_MS / 2);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    /// `None` before the first answer.
    until: Mutex<Option<Instant>>,
    doubts: AtomicUsize,
    used: AtomicBool,
}

impl Liveness {
    /// The master has answered what was sent at `sent`; a session that is silent for `lease` ends.
    pub(crate) fn vouch(&self, sent: Instant, lease: Duration) {
        // A tenth for clocks that run apart.
        let until = sent + Duration::from_millis(SILENCE_MS).min(lease) * 9 / 10;
        let mut known = self.until.lock();
        *known = (*known).max(Some(until));
    }

    /// Whether grants may be used now. Somebody who asks wants to go on using them.
    pub(crate) fn is_live(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// For how long grants may be used without another sign of the master.
    pub(crate) fn remaining(&self) -> Duration {
        self.used.store(true, Ordering::Relaxed);
        if self.doubts.load(Ordering::SeqCst) > 0 {
            return Duration::ZERO;
        }
        self.until.lock().map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Whether grants were used since this was asked last, and will soon not be usable any more.
    pub(crate) fn wants_sign(&self) -> bool {
        let low = self.until.lock().is_some_and(|until| until.saturating_duration_since(Instant::now()) < LOW);
        low && self.used.swap(false, Ordering::Relaxed)
    }

    /// An own mutation is on its way that nobody waits for any more.
    pub(crate) fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::SeqCst);
    }

    /// It has been answered, or never will be.
    pub(crate) fn end_doubt(&self) {
        self.doubts.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Until when the session surely lives: the master has answered something that was sent so long before as a session lives without a word.
/// After that it may have given to others what the session holds, and nothing is done or shown by what was known. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vouched(Arc<Mutex<Option<Instant>>>);

impl Vouched {
    /// It lives until then at least.
    pub(crate) fn extend(&self, until: Instant) {
        let mut known = self.0.lock();
        *known = (*known).max(Some(until));
    }

    /// Whether it surely lives now; before the first answer it counts as alive.
    pub(crate) fn is_sure(&self) -> bool {
        self.0.lock().is_none_or(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn grants_are_used_as_long_as_the_master_answers() {
        let liveness = Liveness::default();
        assert!(liveness.is_live(), "nothing was said yet");
        let lease = Duration::from_secs(10);
        liveness.vouch(Instant::now(), lease);
        tokio::time::advance(Duration::from_millis(1_700)).await;
        assert!(liveness.is_live() && liveness.wants_sign() && !liveness.wants_sign());
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(!liveness.is_live());
        liveness.vouch(Instant::now() - Duration::from_millis(100), lease);
        assert!(liveness.is_live() && !liveness.wants_sign());
        tokio::time::advance(Duration::from_secs(2)).await;
        liveness.vouch(Instant::now() - Duration::from_millis(950), Duration::from_secs(1));
        assert!(!liveness.is_live(), "a session with a short lease");
    }

    #[tokio::test(start_paused = true)]
    async fn grants_are_not_used_while_a_mutation_is_in_doubt() {
        let liveness = Liveness::default();
        liveness.doubt();
        liveness.doubt();
        liveness.end_doubt();
        assert!(!liveness.is_live());
        liveness.end_doubt();
        assert!(liveness.is_live());
    }
}
