//! A pretended chunk store: what it holds survives a crash of its server.

use crate::ids::{BlockVersion, Epoch, OperationId, Sequence};
use crate::meta::request::Configuration;
use crate::replica::{Loaded, OperationRecord, PreparedWrite, WriteKind};
use std::collections::BTreeMap;

pub const CHUNK: usize = 256;
pub const BLOCK: usize = 8;
pub const BLOCKS: usize = CHUNK / BLOCK;

#[derive(Clone, Debug)]
pub struct Disk {
    pub configuration: Option<Configuration>,
    pub committed: Sequence,
    pub length: u64,
    pub content: Vec<u8>,
    pub versions: Vec<BlockVersion>,
    pub prepared: BTreeMap<Sequence, (PreparedWrite, Vec<u8>)>,
    pub operations: BTreeMap<OperationId, OperationRecord>,
    pub suspect: bool,
    pub filling: bool,
}

impl Disk {
    pub fn new() -> Self {
        Self {
            configuration: None,
            committed: Sequence(0),
            length: 0,
            content: vec![0; CHUNK],
            versions: vec![BlockVersion::default(); BLOCKS],
            prepared: BTreeMap::new(),
            operations: BTreeMap::new(),
            suspect: false,
            filling: false,
        }
    }

    pub fn load(&self) -> Loaded {
        Loaded {
            configuration: self.configuration.clone(),
            committed: self.committed,
            prepared: self.prepared.values().map(|(write, _)| *write).collect(),
            length: self.length,
            operations: self.operations.values().copied().collect(),
            suspect: self.suspect,
            filling: self.filling,
        }
    }

    fn last(&self) -> Sequence {
        self.prepared.last_key_value().map_or(self.committed, |(sequence, _)| *sequence)
    }

    pub fn prepare(&mut self, write: &PreparedWrite, data: &[u8]) {
        assert_eq!(write.sequence(), self.last().next(), "prepare after a gap");
        if write.kind == WriteKind::Data {
            assert_eq!(data.len() as u64, write.length);
        }
        self.prepared.insert(write.sequence(), (*write, data.to_vec()));
        let record = OperationRecord { operation: write.operation, sequence: write.sequence(), offset: write.offset };
        self.operations.insert(write.operation, record);
    }

    pub fn commit(&mut self, upto: Sequence) {
        assert!(upto <= self.last(), "commit of {upto} beyond {}", self.last());
        let rest = self.prepared.split_off(&upto.next());
        for (_, (write, data)) in std::mem::replace(&mut self.prepared, rest) {
            self.apply(&write, &data);
        }
        self.committed = self.committed.max(upto);
    }

    fn apply(&mut self, write: &PreparedWrite, data: &[u8]) {
        let (start, end) = (write.offset as usize, write.end() as usize);
        match write.kind {
            WriteKind::Data => {
                self.content[start..end].copy_from_slice(data);
                self.length = self.length.max(write.end());
            }
            WriteKind::Zero => self.content[start..end].fill(0),
            WriteKind::Truncate => {
                self.content[start..end].fill(0);
                self.length = self.length.min(write.offset);
            }
        }
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            self.versions[block] = write.version;
        }
    }

    pub fn roll_back(&mut self, above: Sequence) {
        assert!(above >= self.committed, "roll-back of what is committed");
        self.prepared.split_off(&above.next());
        self.operations.retain(|_, record| record.sequence <= above);
    }

    pub fn start_fill(&mut self, base: Sequence) {
        self.filling = true;
        self.prepared.clear();
        let committed = self.committed;
        self.operations.retain(|_, record| record.sequence <= committed);
        self.committed = base;
    }

    pub fn copy_in(&mut self, first: usize, blocks: &[(BlockVersion, Vec<u8>)], epoch: Epoch) {
        for (index, (version, bytes)) in blocks.iter().enumerate() {
            let block = first + index;
            let mine = self.versions[block];
            assert!(mine <= *version || mine.epoch < epoch, "a block that is newer than its copy: {mine:?}");
            self.versions[block] = *version;
            self.content[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(bytes);
        }
    }

    pub fn copy_finish(&mut self, length: u64, operations: &[OperationRecord]) {
        self.length = length;
        let committed = self.committed;
        self.operations.retain(|_, record| record.sequence > committed);
        self.operations.extend(operations.iter().map(|record| (record.operation, *record)));
        self.suspect = false;
        self.filling = false;
    }
}
