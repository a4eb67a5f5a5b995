//! What clients know: each cell has one writer, which repeats a write until it is acknowledged.

use crate::ids::Sequence;
use crate::replica::{Mutation, Outcome, Status, WriteKind};
use std::collections::BTreeMap;

pub const CELL: usize = 4;
pub const CELLS: usize = 16;
/// Appends land from here on.
pub const APPENDS: u64 = (CELL * CELLS) as u64;

#[derive(Clone, Debug)]
pub struct Operation {
    pub mutation: Mutation,
    pub data: Vec<u8>,
    pub cell: Option<usize>,
    pub value: u32,
}

/// Reads must return the floor of a cell, or its write under way; having been seen, that is the new floor.
#[derive(Default)]
pub struct Oracle {
    pub next_operation: u64,
    pub outstanding: BTreeMap<u64, Operation>,
    pub floor: BTreeMap<usize, u32>,
    pub appended: BTreeMap<u32, u64>,
    pub tried_appends: Vec<u32>,
    pub synced: Sequence,
    pub acknowledged: usize,
}

impl Oracle {
    pub fn begin(&mut self, cell: Option<usize>) -> Option<u64> {
        if cell.is_some() && self.outstanding.values().any(|operation| operation.cell == cell) {
            return None;
        }
        self.next_operation += 1;
        let value = self.next_operation as u32;
        let data = value.to_le_bytes().to_vec();
        let length = data.len() as u64;
        let mutation = match cell {
            Some(cell) => Mutation::At { kind: WriteKind::Data, offset: (cell * CELL) as u64, length },
            None => {
                self.tried_appends.push(value);
                Mutation::Append { min_offset: APPENDS, limit: super::disk::CHUNK as u64, length }
            }
        };
        self.outstanding.insert(self.next_operation, Operation { mutation, data, cell, value });
        Some(self.next_operation)
    }

    /// Every operation up to here has its answer.
    pub fn confirmed(&self) -> u64 {
        self.outstanding.keys().next().map_or(self.next_operation, |first| first - 1)
    }

    pub fn answered(&mut self, operation: u64, outcome: Outcome) {
        let Some(known) = self.outstanding.get(&operation) else {
            return;
        };
        match outcome.status {
            Status::Ok => {
                self.acknowledged += 1;
                match known.cell {
                    Some(cell) => {
                        self.floor.insert(cell, known.value);
                    }
                    None => {
                        let twice = self.appended.insert(known.value, outcome.offset);
                        assert_eq!(twice, None);
                    }
                }
                self.outstanding.remove(&operation);
            }
            Status::NoRoom => {
                // Never placed: a repeat of a placed one is answered with its place.
                self.tried_appends.retain(|value| *value != known.value);
                self.outstanding.remove(&operation);
            }
            _ => {}
        }
    }

    pub fn check_read(&mut self, content: &[u8], who: &str) {
        for cell in 0..CELLS {
            let value = read(content, cell * CELL);
            let floor = self.floor.get(&cell).copied().unwrap_or(0);
            let under_way = self.outstanding.values().find(|operation| operation.cell == Some(cell)).map(|op| op.value);
            assert!(
                value == floor || Some(value) == under_way,
                "{who}: cell {cell} reads {value}, acknowledged {floor}, under way {under_way:?}"
            );
            self.floor.insert(cell, value);
        }
        for (value, offset) in &self.appended {
            assert_eq!(read(content, *offset as usize), *value, "{who}: append {value} is not at {offset}");
        }
    }

    /// Every append is there once, in places of its own, without a hole.
    pub fn check_appends(&self, content: &[u8], length: u64) {
        let mut found: Vec<u32> =
            (APPENDS..length.max(APPENDS)).step_by(CELL).map(|at| read(content, at as usize)).collect();
        found.sort_unstable();
        let mut expected = self.tried_appends.clone();
        expected.sort_unstable();
        assert_eq!(found, expected, "appends");
    }
}

pub fn read(content: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([content[at], content[at + 1], content[at + 2], content[at + 3]])
}
