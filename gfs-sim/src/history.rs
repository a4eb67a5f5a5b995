//! What clients asked and got, with times: the evidence that the invariants judge.

use crate::disk::BLOCKS;
use gfs_core::ids::{Epoch, OperationId, Sequence, ServerId};
use std::collections::BTreeMap;

/// A write of whole blocks with a value of its own.
#[derive(Clone, Copy, Debug)]
pub struct WriteRecord {
    /// First block.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// The unique value.
    pub value: u64,
    /// When it was asked.
    pub asked: u64,
    /// When it was acknowledged; `None` while in doubt.
    pub acknowledged: Option<u64>,
}

/// A read of one block.
#[derive(Clone, Copy, Debug)]
pub struct ReadRecord {
    /// Which block.
    pub block: usize,
    /// What it returned.
    pub value: u64,
    /// When it was asked.
    pub asked: u64,
    /// When it returned.
    pub answered: u64,
}

/// The evidence of one run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All writes, by value.
    pub writes: BTreeMap<u64, WriteRecord>,
    /// All reads that returned.
    pub reads: Vec<ReadRecord>,
    /// Times at which an acknowledged sync had been asked.
    pub syncs: Vec<u64>,
    /// What each place in the chunk's history holds, as the first server committed it.
    pub committed: BTreeMap<Sequence, (OperationId, u64)>,
    /// Which server ordered writes in an epoch.
    pub orderers: BTreeMap<Epoch, ServerId>,
    /// A server lost power: places in the history may be taken anew.
    pub power_lost: bool,
    /// What was found wrong while running.
    pub violations: Vec<String>,
}

impl History {
    /// A server committed a write.
    pub fn on_commit(&mut self, server: ServerId, sequence: Sequence, operation: OperationId, value: u64) {
        let first = *self.committed.entry(sequence).or_insert((operation, value));
        if first != (operation, value) && !self.power_lost {
            self.violations.push(format!(
                "histories diverge at {sequence:?}: {server:?} committed {operation:?} of value {value}, another {first:?}"
            ));
        }
    }

    /// A server ordered a write as primary.
    pub fn on_order(&mut self, epoch: Epoch, server: ServerId) {
        let first = *self.orderers.entry(epoch).or_insert(server);
        if first != server {
            self.violations.push(format!("{epoch:?} has two primaries: {first:?} and {server:?}"));
        }
    }

    /// The blocks that a value was written to.
    pub fn covers(write: &WriteRecord, block: usize) -> bool {
        (write.first..(write.first + write.count).min(BLOCKS)).contains(&block)
    }
}
