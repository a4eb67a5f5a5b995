//! Reads and changes of every block of a file can be put into one order that respects real time.
//!
//! This is promised for what was acknowledged as long as one member of the chunk's configuration in force has lost nothing: not
//! its power, not its disk, not a bit. From the moment when none is left, or when the only master lost the last of its log, only
//! what was synced is promised: that is `synced`. This one judges everything before that moment.

use super::register::{Call, fits};
use crate::client::FILE_BLOCKS;
use crate::history::History;
use gfs_core::ids::InodeId;

pub fn check(history: &History) -> Vec<String> {
    let files = history.files();
    files.into_iter().flat_map(|inode| check_file(history, inode)).collect()
}

fn check_file(history: &History, inode: InodeId) -> Vec<String> {
    let end = history.losses(inode).first().copied().unwrap_or(u64::MAX);
    let mut found = Vec::new();
    for block in 0..FILE_BLOCKS {
        let calls = calls(history, inode, block, (0, end), |_| false);
        if !fits(&calls, &[0]) {
            found.push(format!("file {inode}, block {block}: no order of {}", show(&calls)));
        }
    }
    found
}

/// The calls on a block between two moments. A change is for sure when it began and was acknowledged between them, or is `kept`.
pub(super) fn calls(
    history: &History,
    inode: InodeId,
    block: usize,
    (start, end): (u64, u64),
    kept: impl Fn(&crate::history::Change) -> bool,
) -> Vec<Call> {
    let changes = history.changes.iter().filter(|change| change.inode == inode && change.asked < end);
    let losses = history.losses(inode);
    let mut calls: Vec<Call> = changes
        .filter_map(|change| {
            // What remembered that it was done may have been lost with an append: then it was done again elsewhere.
            let twice = change.append
                && losses.iter().any(|lost| change.asked <= *lost && change.acknowledged.is_none_or(|at| at >= *lost));
            let Some(value) = change.value_at(block) else {
                let (asked, value) = (change.asked, change.value);
                return twice.then_some(Call { asked, answered: u64::MAX, value, read: false });
            };
            let sure = change.acknowledged.filter(|at| (*at < end && change.asked >= start) || kept(change));
            Some(Call { asked: change.asked, answered: sure.unwrap_or(u64::MAX), value, read: false })
        })
        .collect();
    let reads = history.reads.iter().filter(|read| read.inode == inode && read.block == block);
    let reads = reads.filter(|read| read.asked >= start && read.answered < end);
    calls.extend(reads.map(|read| Call { asked: read.asked, answered: read.answered, value: read.value, read: true }));
    calls
}

pub(super) fn show(calls: &[Call]) -> String {
    let mut calls = calls.to_vec();
    calls.sort_by_key(|call| call.asked);
    let one = |call: &Call| {
        let what = if call.read { "read" } else { "wrote" };
        let end = if call.answered == u64::MAX { "?".to_string() } else { call.answered.to_string() };
        format!("\n    {}..{end} {what} {:x}", call.asked, call.value)
    };
    calls.iter().map(one).collect()
}
