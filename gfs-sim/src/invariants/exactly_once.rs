//! A mutation of a chunk takes one place in its history, however often it was asked; an acknowledged one takes one for sure; and
//! no two acknowledged appends lie on the same block, unless the file was cut in between.
//!
//! Mutations at the master are judged by the clients, which know what each call on their own names must answer.

use crate::history::{Change, History, Place};
use std::collections::BTreeMap;

pub fn check(history: &History) -> Vec<String> {
    let mut found = places(history);
    let acknowledged = || history.changes.iter().filter(|change| change.acknowledged.is_some());
    for write in acknowledged().filter(|change| change.value != 0) {
        if !history.values.contains(&write.value) {
            found.push(format!("acknowledged value {:x} was never committed", write.value));
        }
    }
    let appends: Vec<&Change> = acknowledged().filter(|change| change.append).collect();
    for (at, one) in appends.iter().enumerate() {
        for other in &appends[at + 1..] {
            let same = one.inode == other.inode && one.place == other.place;
            if same && !cut_between(history, one, other) {
                found.push(format!("two appends lie on one block: {one:?} and {other:?}"));
            }
        }
    }
    found
}

/// The master's own cuts are numbered by epochs, which every chunk counts for itself; so are they here.
fn places(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let mut places = BTreeMap::new();
    for ((handle, sequence), (operation, _)) in &history.committed {
        if let Some(first) = places.insert((*handle, *operation), *sequence) {
            found.push(format!("chunk {handle}: {operation:?} was applied twice, at {first} and {sequence}"));
        }
    }
    found
}

/// Whether a cut, or a loss of what was not synced, may have come between two appends.
fn cut_between(history: &History, one: &Change, other: &Change) -> bool {
    let from = one.asked.min(other.asked);
    let cut = history.changes.iter().any(|change| {
        let is_cut = change.inode == one.inode && matches!(change.place, Place::From(_));
        is_cut && change.acknowledged.is_none_or(|at| at > from)
    });
    cut || history.losses(one.inode).iter().any(|at| *at > from)
}
