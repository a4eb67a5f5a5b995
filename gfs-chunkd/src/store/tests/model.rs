//! The store against a small model: whatever is done to it, and wherever the process is killed, it holds exactly what
//! the calls that returned have made of it.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Write { offset: u64, length: u64, fill: u8 },
    Append { length: u64, fill: u8 },
    Zero { offset: u64, length: u64 },
    Truncate { offset: u64 },
    Commit { count: usize },
    Rollback { count: usize },
    Sync,
    Configure(u32),
    Checkpoint,
    Tick,
    Kill,
}

pub(super) fn length() -> impl Strategy<Value = u64> {
    prop_oneof![1u64..200, 3000u64..9000, (1u64..5).prop_map(|n| n * 4096), 16_000u64..100_000]
}

pub(super) fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..CHUNK, (0u64..256).prop_map(|n| n * 4096), 0u64..20_000]
}

pub(super) fn mutation() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (offset(), length(), 1u8..255).prop_map(|(offset, length, fill)| Step::Write { offset, length, fill }),
        5 => (length(), 1u8..255).prop_map(|(length, fill)| Step::Append { length, fill }),
        1 => (offset(), length()).prop_map(|(offset, length)| Step::Zero { offset, length }),
        1 => offset().prop_map(|offset| Step::Truncate { offset }),
        6 => (1usize..4).prop_map(|count| Step::Commit { count }),
        1 => (1usize..3).prop_map(|count| Step::Rollback { count }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        18 => mutation(),
        1 => Just(Step::Sync),
        1 => (2u32..50).prop_map(Step::Configure),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Tick),
        3 => Just(Step::Kill),
    ]
}

/// What one chunk must hold.
#[derive(Clone)]
pub(super) struct Model {
    pub data: Vec<u8>,
    /// Blocks that hold bytes.
    stored: Vec<bool>,
    pub length: u64,
    pub committed: Sequence,
    pub prepared: Vec<(PreparedWrite, Vec<u8>)>,
    pub configuration: Configuration,
    pub operations: Vec<OperationRecord>,
    epoch: u32,
    /// Number of the newest operation.
    pub operation: u64,
}

impl Model {
    pub fn new() -> Self {
        Self {
            data: vec![0; CHUNK as usize],
            stored: vec![false; (CHUNK / BLOCK) as usize],
            length: 0,
            committed: Sequence(0),
            prepared: Vec::new(),
            configuration: configuration(1),
            operations: Vec::new(),
            epoch: 1,
            operation: 0,
        }
    }

    fn reach(&self) -> u64 {
        let data = self.prepared.iter().filter(|(write, _)| write.kind == WriteKind::Data);
        data.map(|(write, _)| write.end()).max().unwrap_or(0).max(self.length)
    }

    fn prepare(&mut self, store: &Store, chunk: ChunkHandle, kind: WriteKind, offset: u64, length: u64, fill: u8) {
        let offset = offset.min(CHUNK - 1);
        let length = length.min(CHUNK - offset);
        let sequence = self.prepared.last().map_or(self.committed, |(write, _)| write.sequence()).next();
        self.operation += 1;
        let write = PreparedWrite {
            version: BlockVersion { epoch: Epoch(self.epoch), sequence },
            operation: OperationId { session: SessionId(5), operation: self.operation },
            kind,
            offset,
            length,
            append: false,
        };
        let data: Vec<u8> = match kind {
            WriteKind::Data => (0..length).map(|n| fill.wrapping_add((n / 97) as u8)).collect(),
            _ => Vec::new(),
        };
        store.prepare(chunk, &write, &data).unwrap();
        self.operations.push(OperationRecord { operation: write.operation, sequence, offset });
        self.prepared.push((write, data));
    }

    fn commit(&mut self, count: usize) {
        let block = BLOCK as usize;
        for (write, data) in self.prepared.drain(..count) {
            let (from, to) = (write.offset as usize, write.end() as usize);
            match write.kind {
                WriteKind::Data => {
                    self.data[from..to].copy_from_slice(&data);
                    self.stored[from / block..to.div_ceil(block).max(from / block)].fill(!data.is_empty());
                    self.length = self.length.max(write.end());
                }
                WriteKind::Zero => {
                    self.data[from..to].fill(0);
                    let whole = from.div_ceil(block)..to / block;
                    self.stored[whole.start.min(whole.end)..whole.end].fill(false);
                }
                WriteKind::Truncate => {
                    self.data[from..].fill(0);
                    self.stored[from.div_ceil(block)..].fill(false);
                    self.length = self.length.min(write.offset);
                }
            }
            self.committed = write.sequence();
        }
    }

    pub fn run(&mut self, store: &Store, chunk: ChunkHandle, step: &Step) {
        match *step {
            Step::Write { offset, length, fill } => self.prepare(store, chunk, WriteKind::Data, offset, length, fill),
            Step::Append { length, fill } => {
                let offset = self.reach();
                if offset < CHUNK {
                    self.prepare(store, chunk, WriteKind::Data, offset, length, fill);
                }
            }
            Step::Zero { offset, length } => self.prepare(store, chunk, WriteKind::Zero, offset, length, 0),
            Step::Truncate { offset } => self.prepare(store, chunk, WriteKind::Truncate, offset, 0, 0),
            Step::Commit { count } => {
                let count = count.min(self.prepared.len());
                self.commit(count);
                store.commit(chunk, self.committed).unwrap();
            }
            Step::Rollback { count } => {
                self.prepared.truncate(self.prepared.len().saturating_sub(count));
                let above = self.prepared.last().map_or(self.committed, |(write, _)| write.sequence());
                self.operations.retain(|record| record.sequence <= above);
                store.rollback(chunk, above).unwrap();
                self.epoch += 1;
            }
            Step::Sync => assert_eq!(store.sync(chunk).unwrap(), self.committed),
            Step::Configure(epoch) => {
                self.configuration = configuration(epoch);
                store.set_configuration(chunk, &self.configuration).unwrap();
            }
            Step::Checkpoint => store.close().unwrap(),
            Step::Tick => store.tick(),
            Step::Kill => {}
        }
    }

    pub fn check(&self, store: &Store, chunk: ChunkHandle) {
        let state = store.state(chunk).unwrap();
        assert_eq!(state.committed, self.committed);
        assert_eq!(state.length, self.length);
        assert_eq!(state.prepared, self.prepared.iter().map(|(write, _)| *write).collect::<Vec<_>>());
        assert_eq!(state.configuration, self.configuration);
        assert_eq!(state.operations, self.operations);
        assert!(!state.suspect);
        assert!(bytes(store, chunk, 0, CHUNK) == self.data, "bytes differ");
        let stored = self.stored.iter().filter(|stored| **stored).count() as u32;
        assert_eq!(store.stored(chunk).unwrap(), (stored, self.committed));
        for (write, data) in &self.prepared {
            assert!(store.prepared_data(chunk, write.sequence()).unwrap() == *data, "prepared bytes differ");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn a_killed_store_holds_what_its_calls_have_made_of_it(
        steps in prop::collection::vec(step(), 1..60),
        overlay in prop_oneof![Just(0u64), Just(20_000), Just(1 << 20)],
    ) {
        let dir = scratch();
        let options = StoreOptions { overlay_bytes: overlay, ..options(dir.path()) };
        let mut store = open_with(options.clone());
        let chunk = create(&store, 1);
        let mut model = Model::new();
        for step in &steps {
            model.run(&store, chunk, step);
            if matches!(step, Step::Kill) {
                drop(store);
                store = open_with(options.clone());
            }
            model.check(&store, chunk);
        }
        drop(store);
        model.check(&open_with(options), chunk);
    }
}
