//! Appending and syncing: one writer, and several that share an fdatasync.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gfs_log::{Log, LogOptions};
use std::hint::black_box;

fn open(dir: &std::path::Path) -> Log {
    match Log::open(dir, LogOptions::default(), |_| Ok(())) {
        Ok(log) => log,
        Err(error) => panic!("open: {error}"),
    }
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("append");
    for size in [200usize, 4096, 1 << 20] {
        let dir = tempfile::tempdir().expect("a directory for the benchmark");
        let log = open(dir.path());
        let payload = vec![7u8; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size}"), |b| {
            b.iter(|| {
                let appended = log.append(1, &[black_box(&payload)]).expect("append");
                log.trim(appended.start).expect("trim");
            });
        });
    }
    group.finish();
}

fn sync(c: &mut Criterion) {
    let mut group = c.benchmark_group("append+sync 200 B");
    for writers in [1u64, 32] {
        let dir = tempfile::tempdir().expect("a directory for the benchmark");
        let log = open(dir.path());
        group.throughput(Throughput::Elements(writers));
        group.bench_function(format!("{writers} writers"), |b| {
            b.iter(|| {
                std::thread::scope(|scope| {
                    for _ in 0..writers {
                        scope.spawn(|| {
                            let appended = log.append(1, &[&[7u8; 200]]).expect("append");
                            log.sync(appended.end).expect("sync");
                        });
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, append, sync);
criterion_main!(benches);
