//! A mutation takes one place in the chunk's history, however often it was asked; an acknowledged one takes one for sure.

use crate::history::History;
use std::collections::{BTreeMap, BTreeSet};

pub fn check(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let mut places = BTreeMap::new();
    for (sequence, (operation, _)) in &history.committed {
        if let Some(first) = places.insert(*operation, *sequence) {
            found.push(format!("{operation:?} was applied twice, at {first:?} and {sequence:?}"));
        }
    }
    let applied: BTreeSet<u64> = history.committed.values().map(|(_, value)| *value).collect();
    for write in history.writes.values().filter(|write| write.acknowledged.is_some()) {
        if !applied.contains(&write.value) {
            found.push(format!("acknowledged value {} was never committed", write.value));
        }
    }
    found
}
