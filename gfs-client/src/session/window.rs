//! Numbers of operations, and which answers have all arrived: what lets the other side forget.

use std::collections::BTreeSet;

/// Hands out operation numbers from 1 and knows the highest one below which all are answered.
#[derive(Debug, Default)]
pub(crate) struct ConfirmWindow {
    last: u64,
    confirmed: u64,
    answered: BTreeSet<u64>,
}

impl ConfirmWindow {
    /// The next number.
    pub(crate) fn begin(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The answer to `operation` has arrived, or nobody will ask for it any more.
    pub(crate) fn end(&mut self, operation: u64) {
        if operation <= self.confirmed || operation > self.last {
            return;
        }
        self.answered.insert(operation);
        while self.answered.remove(&(self.confirmed + 1)) {
            self.confirmed += 1;
        }
    }

    /// All operations up to and including this one are answered.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_stops_before_the_first_unanswered_operation() {
        let mut window = ConfirmWindow::default();
        let numbers: Vec<u64> = (0..4).map(|_| window.begin()).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        window.end(2);
        window.end(4);
        assert_eq!(window.confirmed(), 0);
        window.end(1);
        assert_eq!(window.confirmed(), 2);
        window.end(3);
        assert_eq!(window.confirmed(), 4);
    }

    #[test]
    fn answers_that_come_twice_or_from_nowhere_change_nothing() {
        let mut window = ConfirmWindow::default();
        window.begin();
        window.end(1);
        window.end(1);
        window.end(9);
        assert_eq!((window.confirmed(), window.answered.len()), (1, 0));
        assert_eq!(window.begin(), 2);
    }
}
