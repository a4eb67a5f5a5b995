//! Whether reads and writes of one block can be put into one order that respects real time.
//!
//! The search of Wing and Gong (Testing and Verifying Concurrent Objects, J. Parallel Distrib. Comput. 17, 1993) with the memory
//! of Lowe (Testing for Linearizability, Concurrency Computat.: Pract. Exper. 29, 2017): try every call that began before the first
//! answer among those that are left, and never look twice at the same set of done calls with the same value.

use std::collections::HashSet;

/// A call on a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// When it began.
    pub asked: u64,
    /// When it had ended; `u64::MAX` when it may take effect at any later time, or never.
    pub answered: u64,
    /// What it wrote or returned.
    pub value: u64,
    /// It returned it.
    pub read: bool,
}

/// Most calls that are put in order.
const MOST: usize = 128;

/// Whether the calls fit one order that begins with one of the values in `first`.
pub fn fits(calls: &[Call], first: &[u64]) -> bool {
    let returned: HashSet<u64> = calls.iter().filter(|call| call.read).map(|call| call.value).collect();
    // A write in doubt that nobody read constrains nothing.
    let matters = |call: &&Call| call.answered != u64::MAX || returned.contains(&call.value);
    let mut calls: Vec<Call> = calls.iter().filter(matters).copied().collect();
    calls.sort_by_key(|call| (call.asked, call.answered));
    assert!(calls.len() <= MOST, "{} calls on one block", calls.len());
    let mut search = Search { calls: &calls, seen: HashSet::new() };
    first.iter().any(|value| search.from(0, *value))
}

struct Search<'a> {
    calls: &'a [Call],
    seen: HashSet<(u128, u64)>,
}

impl Search<'_> {
    fn from(&mut self, done: u128, value: u64) -> bool {
        if !self.seen.insert((done, value)) {
            return false;
        }
        let left = || (0..self.calls.len()).filter(|at| done & 1 << at == 0);
        let Some(deadline) = left().map(|at| self.calls[at].answered).min() else { return true };
        if deadline == u64::MAX {
            // What is left is in doubt.
            return true;
        }
        let next: Vec<usize> = left().take_while(|at| self.calls[*at].asked <= deadline).collect();
        next.into_iter().any(|at| {
            let call = self.calls[at];
            match call.read {
                true if call.value != value => false,
                _ => self.from(done | 1 << at, call.value),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, asked: u64, answered: u64) -> Call {
        Call { asked, answered, value, read: false }
    }

    fn read(value: u64, asked: u64, answered: u64) -> Call {
        Call { asked, answered, value, read: true }
    }

    const DOUBT: u64 = u64::MAX;

    #[test]
    fn overlapping_calls_may_take_either_order() {
        assert!(fits(&[write(1, 10, 20), write(2, 15, 30), read(2, 31, 32)], &[0]));
        assert!(fits(&[write(1, 10, 20), write(2, 15, 30), read(1, 31, 32)], &[0]));
        assert!(fits(&[write(1, 10, DOUBT), read(0, 50, 51), read(1, 60, 61)], &[0]));
    }

    #[test]
    fn a_stale_read_is_found() {
        assert!(!fits(&[write(1, 10, 20), write(2, 30, 40), read(1, 50, 51)], &[0]));
        assert!(!fits(&[write(1, 10, 20), read(0, 50, 51)], &[0]));
    }

    #[test]
    fn going_back_is_found_and_a_cut_may_be_seen_as_often_as_it_happened() {
        assert!(!fits(&[write(1, 10, DOUBT), read(1, 20, 21), read(0, 30, 31)], &[0]));
        assert!(!fits(&[write(1, 1, 2), write(2, 10, DOUBT), read(2, 20, 21), read(1, 30, 31)], &[0]));
        assert!(fits(&[write(1, 1, 2), write(0, 10, 22), read(0, 20, 21), read(0, 30, 31)], &[0]));
        assert!(!fits(&[write(1, 1, 2), write(0, 10, 22), read(0, 20, 21), read(1, 30, 31)], &[0]));
    }

    #[test]
    fn a_value_from_nowhere_is_found() {
        assert!(!fits(&[read(9, 1, 2)], &[0]));
        assert!(fits(&[read(9, 1, 2)], &[0, 9]));
    }
}
