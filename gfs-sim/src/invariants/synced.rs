//! What was acknowledged before a sync was asked is there when the sync has returned, for ever: a later read never shows
//! anything that had to be overwritten by it.

use crate::disk::BLOCKS;
use crate::history::History;

pub fn check(history: &History) -> Vec<String> {
    let Some(last_sync) = history.syncs.iter().copied().max() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for block in 0..BLOCKS {
        let on_block = || history.writes.values().filter(move |write| History::covers(write, block));
        let synced = on_block().filter(|w| w.acknowledged.is_some_and(|at| at < last_sync)).max_by_key(|w| w.asked);
        let Some(synced) = synced else { continue };
        for read in history.reads.iter().filter(|read| read.block == block && read.asked > last_sync) {
            let older = match history.writes.get(&read.value) {
                None => true,
                Some(write) => write.acknowledged.is_some_and(|at| at < synced.asked),
            };
            if older {
                found.push(format!("block {block}: synced value {} was lost, {} came back", synced.value, read.value));
            }
        }
    }
    found
}
