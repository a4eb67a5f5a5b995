//! The membership lease (design section 4, rule 2).
//!
//! It counts from the sending of the heartbeat that was answered, on a clock that goes on while the machine sleeps, and
//! ends here before it can end at the master.

use gfs_local::Ledger;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How much earlier than the master this server takes its lease for ended.
pub const MARGIN: Duration = Duration::from_millis(200);

/// A point on the monotonic clock that counts suspended time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(Duration);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid timespec that the call fills in.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
        assert_eq!(result, 0, "the boot clock is always there");
        Self(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32))
    }

    /// The moment this much later.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

/// A stretch of time in which the lease never lapsed. What was confirmed in one says nothing in the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Term(pub u64);

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    until: Option<Moment>,
    term: u64,
}

/// The lease of this server; shared by all threads.
#[derive(Debug, Default)]
pub struct Lease {
    held: Mutex<Held>,
    /// Where those who read lent replicas look.
    ledger: OnceLock<Arc<Ledger>>,
}

impl Lease {
    /// Has renewals shown in a ledger too, from the next one on.
    pub fn show_in(&self, ledger: Arc<Ledger>) {
        // There is one a process.
        let _ = self.ledger.set(ledger);
    }

    /// The heartbeat sent at `sent` was answered: the master's lease lasts `duration` from then.
    pub fn renew(&self, sent: Moment, duration: Duration) {
        self.renew_at(Moment::now(), sent, duration);
    }

    fn renew_at(&self, now: Moment, sent: Moment, duration: Duration) {
        let until = sent.plus(duration.saturating_sub(MARGIN));
        if until <= now {
            return;
        }
        let mut held = self.held.lock();
        match held.until {
            Some(before) if before > now => held.until = Some(before.max(until)),
            _ => {
                held.term += 1;
                held.until = Some(until);
            }
        }
        if let (Some(ledger), Some(Moment(until))) = (self.ledger.get(), held.until) {
            ledger.renew(held.term, until);
        }
    }

    /// The term of the lease, if it is held now.
    pub fn term(&self) -> Option<Term> {
        self.term_at(Moment::now())
    }

    fn term_at(&self, now: Moment) -> Option<Term> {
        let held = self.held.lock();
        held.until.filter(|until| *until > now).map(|_| Term(held.term))
    }

    /// Whether the lease has been held without a gap since `term` was read.
    pub fn still(&self, term: Term) -> bool {
        self.term() == Some(term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    const T: Duration = Duration::from_millis(1600);

    #[test]
    fn it_counts_from_the_sending_and_ends_before_the_masters() {
        let lease = Lease::default();
        assert_eq!(lease.term_at(at(0)), None);
        lease.renew_at(at(1300), at(1000), T);
        assert_eq!(lease.term_at(at(1301)), Some(Term(1)));
        assert_eq!(lease.term_at(at(2399)), Some(Term(1)));
        assert_eq!(lease.term_at(at(2400)), None);
    }

    #[test]
    fn an_answer_that_comes_too_late_gives_nothing() {
        let lease = Lease::default();
        lease.renew_at(at(2500), at(1000), T);
        assert_eq!(lease.term_at(at(2500)), None);
    }

    #[test]
    fn a_gap_begins_a_new_term_even_when_nobody_looked() {
        let lease = Lease::default();
        lease.renew_at(at(1000), at(1000), T);
        lease.renew_at(at(1200), at(1200), T);
        assert_eq!(lease.term_at(at(1300)), Some(Term(1)));
        lease.renew_at(at(2700), at(2650), T);
        assert_eq!(lease.term_at(at(2700)), Some(Term(2)));
    }

    #[test]
    fn a_late_answer_to_an_older_heartbeat_does_not_shorten_it() {
        let lease = Lease::default();
        lease.renew_at(at(1000), at(1000), T);
        lease.renew_at(at(1050), at(900), T);
        assert_eq!(lease.term_at(at(2399)), Some(Term(1)));
    }
}
