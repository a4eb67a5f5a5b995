//! Speed of the namespace at a million files, and what a file costs in memory.
//!
//! `GFS_FILES=10000000 cargo bench -p gfs-core --bench namespace` measures more files.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use gfs_core::arena::codec::{DecodeError, PieceReader};
use gfs_core::ids::{Generation, InodeId, ROOT};
use gfs_core::meta::namespace::{CreateArgs, Namespace, RootOptions};
use gfs_core::meta::request::{Credentials, NodeKind, Timestamp};
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Counts what the program has allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it is; only a counter is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn who() -> Credentials {
    Credentials { uid: 1000, gid: 1000, groups: Vec::new(), check: false }
}

fn name(number: u64) -> Vec<u8> {
    format!("file-{number:012}").into_bytes()
}

fn time(number: u64) -> Timestamp {
    Timestamp(1_770_000_000_000_000_000 + number as i64 * 17_001)
}

fn create(space: &mut Namespace, parent: InodeId, kind: &NodeKind, number: u64) -> InodeId {
    let name = name(number);
    let args = CreateArgs { parent, name: &name, kind, mode: 0o644, umask: 0o022, exclusive: true };
    space.create(&who(), args, time(number)).expect("a new name").attributes.inode
}

/// Resident memory of this process in bytes, as the kernel counts it.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// One directory with `files` empty files; prints what it took.
fn build(files: u64) -> Namespace {
    let now = time(0);
    let mut space = Namespace::new(RootOptions {
        generation: Generation(0),
        hash_key: 0x5eed,
        mode: 0o755,
        uid: 0,
        gid: 0,
        replicas: 3,
        now,
    });
    let (before, resident_before, start) = (ALLOCATED.load(Ordering::Relaxed), resident(), Instant::now());
    for number in 0..files {
        create(&mut space, ROOT, &NodeKind::File, number);
    }
    let took = start.elapsed();
    let each = |bytes: u64| bytes as f64 / files as f64;
    println!("{files} files in one directory in {took:.2?}, {:.0} ns each", took.as_nanos() as f64 / files as f64);
    println!("  own accounting     {:6.1} B a file", each(space.memory_bytes()));
    println!("  counting allocator {:6.1} B a file", each((ALLOCATED.load(Ordering::Relaxed) - before) as u64));
    println!("  resident set       {:6.1} B a file", each(resident().saturating_sub(resident_before)));
    space
}

fn checkpoint(space: &Namespace) {
    let start = Instant::now();
    let mut bytes = Vec::new();
    let written: Result<(), DecodeError> = space.encode(&mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    written.expect("memory takes everything");
    let (wrote, length) = (start.elapsed(), bytes.len());
    let start = Instant::now();
    let mut pieces = bytes.chunks(1 << 20);
    let mut source = || Ok::<_, DecodeError>(pieces.next().map(<[u8]>::to_vec));
    let again = Namespace::decode(&mut PieceReader::new(&mut source)).expect("its own bytes");
    println!("  checkpoint of {length} bytes: written in {wrote:.2?}, read in {:.2?}", start.elapsed());
    assert_eq!(again.counts(), space.counts());
}

fn benches(criterion: &mut Criterion) {
    let files = std::env::var("GFS_FILES").ok().and_then(|files| files.parse().ok()).unwrap_or(1_000_000);
    let mut space = build(files);
    checkpoint(&space);
    let mut number = 0;
    let mut random = move || {
        number = (number + 7_368_787) % files;
        number
    };
    criterion.bench_function("lookup", |bencher| {
        bencher.iter(|| space.lookup(&who(), ROOT, &name(random())).expect("a file"));
    });
    criterion.bench_function("readdir of 100 with attributes", |bencher| {
        let mut cookie = 0;
        bencher.iter(|| {
            let page = space.read_directory(&who(), ROOT, cookie, 100).expect("a page");
            cookie = page.entries.last().map_or(0, |entry| entry.cookie);
            black_box(page)
        });
    });
    let mut fresh = files;
    criterion.bench_function("create, unlink and reap", |bencher| {
        bencher.iter(|| {
            fresh += 1;
            let inode = create(&mut space, ROOT, &NodeKind::File, fresh);
            space.unlink(&who(), ROOT, &name(fresh), time(fresh)).expect("a file");
            space.reap(inode).expect("an orphan")
        });
    });
    criterion.bench_function("first create after a freeze", |bencher| {
        let thaw = || {
            fresh += 1;
            (space.clone(), fresh)
        };
        bencher.iter_batched(
            thaw,
            |(mut space, number)| {
                create(&mut space, ROOT, &NodeKind::File, number);
                space
            },
            BatchSize::SmallInput,
        );
    });
    let start = Instant::now();
    for number in 0..files {
        let gone = space.unlink(&who(), ROOT, &name(number), time(number)).expect("a file");
        space.reap(gone.inode).expect("an orphan");
    }
    println!("all unlinked and reaped, {:.0} ns each", start.elapsed().as_nanos() as f64 / files as f64);
    println!("  {} bytes left", space.memory_bytes());
}

criterion_group!(all, benches);
criterion_main!(all);
