//! The chunk store on one disk: checksums, and reads and writes of 4 KiB and 1 MiB.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gfs_chunkd::store::{ChunkHeader, PreparedWrite, Store, StoreOptions, WriteKind};
use gfs_core::ids::{BlockVersion, ChunkHandle, ClusterId, Epoch, OperationId, Sequence, SessionId};
use gfs_core::meta::request::Configuration;
use std::hint::black_box;

const CHUNK: u64 = 64 << 20;

/// A store with one chunk, and the next place in its history.
struct Fixture {
    store: Store,
    _dir: tempfile::TempDir,
    chunk: ChunkHandle,
    chunks: u64,
    sequence: u64,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the benchmark");
        let options = StoreOptions { dirs: vec![dir.path().to_owned()], ..StoreOptions::default() };
        let store = Store::open(options).expect("open");
        store.adopt(ClusterId(1), 1, CHUNK).expect("adopt");
        let mut fixture = Self { store, _dir: dir, chunk: ChunkHandle(0), chunks: 0, sequence: 0 };
        fixture.next_chunk();
        fixture
    }

    fn next_chunk(&mut self) {
        if self.chunks > 0 {
            self.store.delete(self.chunk).expect("delete");
        }
        self.chunks += 1;
        self.chunk = ChunkHandle(self.chunks);
        self.sequence = 0;
        self.store.create(self.chunk, &ChunkHeader::default(), &Configuration::default()).expect("create");
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.sequence += 1;
        let write = PreparedWrite {
            version: BlockVersion { epoch: Epoch(1), sequence: Sequence(self.sequence) },
            operation: OperationId { session: SessionId(1), operation: self.sequence },
            kind: WriteKind::Data,
            offset,
            length: data.len() as u64,
            append: false,
        };
        self.store.prepare(self.chunk, &write, data).expect("prepare");
        self.store.commit(self.chunk, Sequence(self.sequence)).expect("commit");
    }
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc32c");
    for size in [4096usize, 1 << 20] {
        let data = vec![5u8; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} in blocks of 4096"), |b| {
            b.iter(|| black_box(&data).chunks(4096).map(crc_fast::crc32_iscsi).fold(0, |a, b| a ^ b));
        });
    }
    group.finish();
}

fn write(c: &mut Criterion) {
    let mut group = c.benchmark_group("write (prepare + commit)");
    for size in [4096u64, 1 << 20] {
        let data = vec![5u8; size as usize];
        group.throughput(Throughput::Bytes(size));
        let mut fixture = Fixture::new();
        let mut offset = 0;
        group.bench_function(format!("append {size}"), |b| {
            b.iter(|| {
                if offset + size > CHUNK {
                    fixture.next_chunk();
                    offset = 0;
                }
                fixture.write(offset, &data);
                offset += size;
            });
        });
        let mut fixture = Fixture::new();
        for n in 0..16 {
            fixture.write(n << 20, &vec![1u8; 1 << 20]);
        }
        let mut turn = 0u64;
        group.bench_function(format!("overwrite {size}"), |b| {
            b.iter(|| {
                turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                fixture.write((turn >> 33) % ((16 << 20) / size) * size, &data);
                if fixture.sequence.is_multiple_of(1000) {
                    fixture.store.tick();
                }
            });
        });
        group.bench_function(format!("overwrite {size} + sync"), |b| {
            b.iter(|| {
                turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                fixture.write((turn >> 33) % ((16 << 20) / size) * size, &data);
                fixture.store.sync(fixture.chunk).expect("sync");
            });
        });
    }
    group.finish();
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("read, cached by the kernel");
    let mut fixture = Fixture::new();
    for n in 0..16 {
        fixture.write(n << 20, &vec![1u8; 1 << 20]);
    }
    for size in [4096u64, 1 << 20] {
        group.throughput(Throughput::Bytes(size));
        let mut turn = 0u64;
        group.bench_function(format!("{size}"), |b| {
            b.iter(|| {
                turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let offset = (turn >> 33) % ((16 << 20) / size) * size;
                black_box(fixture.store.read(fixture.chunk, offset, size).expect("read"));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, checksum, write, read);
criterion_main!(benches);
