//! What was acknowledged before a sync was asked is there when the sync has returned, for ever, whoever loses power.
//!
//! After a moment at which something that was not synced may have been lost (see `linearizable`), changes that no sync covers may
//! have happened or not, and may show or not. Those that a sync covers must have happened, and the reads after that moment
//! must fit them. A sync covers nothing that an earlier moment of that kind may have taken.

use super::linearizable::{calls, show};
use super::register::fits;
use crate::client::FILE_BLOCKS;
use crate::history::{Change, History};
use gfs_core::ids::InodeId;

pub fn check(history: &History) -> Vec<String> {
    let files = history.files();
    files.into_iter().flat_map(|inode| check_file(history, inode)).collect()
}

fn check_file(history: &History, inode: InodeId) -> Vec<String> {
    let losses: Vec<u64> = history.losses(inode).into_iter().collect();
    let mut found = Vec::new();
    for (at, start) in losses.iter().enumerate() {
        let end = losses.get(at + 1).copied().unwrap_or(u64::MAX);
        let synced = |change: &Change| {
            let covers = |sync: &&crate::history::Synced| {
                sync.inode == inode
                    && sync.answered < *start
                    && change.acknowledged.is_some_and(|acknowledged| acknowledged < sync.asked)
                    && !losses.iter().any(|lost| (change.asked..=sync.answered).contains(lost))
            };
            history.syncs.iter().find(covers).is_some()
        };
        for block in 0..FILE_BLOCKS {
            let calls = calls(history, inode, block, (*start, end), synced);
            if !fits(&calls, &[0]) {
                found.push(format!(
                    "file {inode}, block {block}: what was synced before {start} was lost: {}",
                    show(&calls)
                ));
            }
        }
    }
    found
}
