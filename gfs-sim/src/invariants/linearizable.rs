//! Reads and writes of every block can be put into one order that respects real time.
//!
//! Values are unique, so the test of Gibbons and Korach (Testing Shared Memories, SIAM J. Comput. 26, 1997, section 5) is
//! exact: a value's zone spans from its earliest answer to its latest question; two zones that run forward must not
//! overlap, and none that runs backward may lie within one that runs forward.

use crate::disk::BLOCKS;
use crate::history::History;
use std::collections::BTreeMap;

#[derive(Clone, Copy)]
struct Zone {
    value: u64,
    first_answer: u64,
    last_question: u64,
    written_at: u64,
}

impl Zone {
    fn forward(&self) -> bool {
        self.first_answer < self.last_question
    }
}

pub fn check(history: &History) -> Vec<String> {
    (0..BLOCKS).flat_map(|block| check_block(history, block)).collect()
}

fn zones(history: &History, block: usize) -> Result<BTreeMap<u64, Zone>, String> {
    // Value 0 is there from the start.
    let mut zones = BTreeMap::from([(0, Zone { value: 0, first_answer: 0, last_question: 0, written_at: 0 })]);
    for write in history.writes.values().filter(|write| History::covers(write, block)) {
        let first_answer = write.acknowledged.unwrap_or(u64::MAX);
        zones.insert(
            write.value,
            Zone { value: write.value, first_answer, last_question: write.asked, written_at: write.asked },
        );
    }
    for read in history.reads.iter().filter(|read| read.block == block) {
        let Some(zone) = zones.get_mut(&read.value) else {
            return Err(format!("block {block}: a read returned {}, which nobody wrote there", read.value));
        };
        if read.answered < zone.written_at {
            return Err(format!("block {block}: {} was read before it was written", read.value));
        }
        zone.first_answer = zone.first_answer.min(read.answered);
        zone.last_question = zone.last_question.max(read.asked);
    }
    Ok(zones)
}

fn check_block(history: &History, block: usize) -> Vec<String> {
    let zones = match zones(history, block) {
        Ok(zones) => zones,
        Err(violation) => return vec![violation],
    };
    // A write in doubt that nobody read may never have happened: it constrains nothing.
    let mut forward: Vec<Zone> = zones.values().copied().filter(Zone::forward).collect();
    let backward = zones.values().filter(|zone| !zone.forward() && zone.first_answer != u64::MAX);
    forward.sort_by_key(|zone| zone.first_answer);
    let mut found = Vec::new();
    for pair in forward.windows(2) {
        if pair[1].first_answer < pair[0].last_question {
            found.push(format!(
                "block {block}: values {} ({}..{}) and {} ({}..{}) were both seen first",
                pair[0].value,
                pair[0].first_answer,
                pair[0].last_question,
                pair[1].value,
                pair[1].first_answer,
                pair[1].last_question
            ));
        }
    }
    for zone in backward {
        let (low, high) = (zone.last_question, zone.first_answer);
        if let Some(around) = forward.iter().find(|f| f.first_answer < low && high < f.last_question) {
            found.push(format!(
                "block {block}: value {} was acknowledged within {low}..{high}, but {} was seen before ({}) and after it ({})",
                zone.value, around.value, around.first_answer, around.last_question
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{ReadRecord, WriteRecord};

    fn history(writes: &[(u64, u64, Option<u64>)], reads: &[(u64, u64, u64)]) -> History {
        let mut history = History::default();
        for (value, asked, acknowledged) in writes {
            let write = WriteRecord { first: 0, count: 1, value: *value, asked: *asked, acknowledged: *acknowledged };
            history.writes.insert(*value, write);
        }
        history.reads = reads
            .iter()
            .map(|(value, asked, answered)| ReadRecord { block: 0, value: *value, asked: *asked, answered: *answered })
            .collect();
        history
    }

    #[test]
    fn overlapping_calls_may_take_either_order() {
        assert!(check(&history(&[(1, 10, Some(20)), (2, 15, Some(30))], &[(2, 31, 32)])).is_empty());
        assert!(check(&history(&[(1, 10, Some(20)), (2, 15, Some(30))], &[(1, 31, 32)])).is_empty());
        assert!(check(&history(&[(1, 10, None)], &[(0, 50, 51), (1, 60, 61)])).is_empty());
    }

    #[test]
    fn a_stale_read_is_found() {
        assert!(!check(&history(&[(1, 10, Some(20)), (2, 30, Some(40))], &[(1, 50, 51)])).is_empty());
        assert!(!check(&history(&[(1, 10, Some(20))], &[(0, 50, 51)])).is_empty());
    }

    #[test]
    fn going_back_is_found() {
        assert!(!check(&history(&[(1, 10, None)], &[(1, 20, 21), (0, 30, 31)])).is_empty());
        assert!(!check(&history(&[(1, 1, Some(2)), (2, 10, None)], &[(2, 20, 21), (1, 30, 31)])).is_empty());
    }

    #[test]
    fn a_value_from_nowhere_is_found() {
        assert!(!check(&history(&[], &[(9, 1, 2)])).is_empty());
    }
}
