//! File contents: blocks written in place, a file that grows and is cut, a log, and a file that is mapped.

use super::deeds::{Register, Shape, TORN};
use super::evidence::Appending;
use super::history::Call;
use super::locks;
use super::place::Object;
use super::worker::{Timed, Way, Worker, open};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of the file.
pub const BLOCKS: usize = 4;
/// Bytes of a record, which lies across blocks as it comes.
const RECORD: usize = 700;
/// Records up to which the file is written and cut.
const RECORDS: u64 = 12;
/// Pages of the mapped file that are used.
const PAGES: u64 = 2;

/// A record with this stamp in all its words; 0 is zeros.
fn record(stamp: u64, length: usize) -> Vec<u8> {
    stamp.to_le_bytes().iter().copied().cycle().take(length).collect()
}

/// The stamp of a record.
fn stamp_of(found: &[u8], length: usize) -> u64 {
    let Some(stamp) = found.first_chunk().map(|first| u64::from_le_bytes(*first)) else { return TORN };
    if found == record(stamp, length) { stamp } else { TORN }
}

/// How this worker reads. Two that read the same pages of a mount may see each other's (docs/semantics.md), so only one does.
fn reading(worker: &mut Worker<'_>) -> Way {
    match worker.numbers.below(3) {
        0 if worker.is_first() => Way::Cached,
        0 | 1 => Way::Direct,
        _ => Way::Both,
    }
}

/// Fills a buffer as far as the file goes.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    loop {
        match file.read_at(&mut buffer[done..], offset + done as u64)? {
            0 => return Ok(done),
            more => done += more,
        }
    }
}

/// Writes or reads one or two blocks.
pub fn work_on_blocks(worker: &mut Worker<'_>) {
    let first = worker.numbers.below(BLOCKS as u64) as usize;
    let count = (1 + worker.numbers.below(2) as usize).min(BLOCKS - first);
    if worker.one_in(2) {
        let way = [Way::Both, Way::Both, Way::BothDirect, Way::BothSync][worker.numbers.below(4) as usize];
        write_blocks(worker, first, count, way);
    } else {
        let way = reading(worker);
        read_blocks(worker, first, count, way);
    }
}

fn write_blocks(worker: &mut Worker<'_>, first: usize, count: usize, way: Way) {
    let file = worker.file(Object::Blocks, way);
    let Some(file) = worker.value("open blocks", file) else { return };
    let stamps: Vec<_> = (0..count).map(|_| worker.stamp()).collect();
    let bytes: Vec<u8> = stamps.iter().flat_map(|stamp| record(*stamp, BLOCK)).collect();
    let timed = worker.timed(|| file.write_all_at(&bytes, (first * BLOCK) as u64));
    for (block, stamp) in (first..).zip(stamps) {
        let call = worker.changed(&timed, Register::Write(stamp));
        worker.seen.registers.entry(format!("block {block}")).or_default().push(call);
    }
    if worker.one_in(4) {
        worker.value("sync blocks", file.sync_data());
    }
}

fn read_blocks(worker: &mut Worker<'_>, first: usize, count: usize, way: Way) {
    let file = worker.file(Object::Blocks, way);
    let Some(file) = worker.value("open blocks", file) else { return };
    let mut bytes = vec![0; count * BLOCK];
    let timed = worker.timed(|| read_up_to(&file, &mut bytes, (first * BLOCK) as u64));
    if let Err(error) = &timed.result {
        worker.failed("read blocks", error);
        return;
    }
    let whole = matches!(timed.result, Ok(read) if read == bytes.len());
    for (block, found) in (first..).zip(bytes.chunks(BLOCK)) {
        let value = if whole { stamp_of(found, BLOCK) } else { TORN };
        let call = worker.answer(&timed, Register::Read(value));
        worker.seen.registers.entry(format!("block {block}")).or_default().push(call);
    }
}

/// Writes, appends, cuts, reads or asks for the length.
pub fn work_on_shape(worker: &mut Worker<'_>) {
    let at = worker.numbers.below(RECORDS) as usize;
    match worker.numbers.below(8) {
        0 | 1 => put(worker, at),
        2 => append_to_shape(worker),
        3 => cut(worker, at),
        4 | 5 => {
            let way = reading(worker);
            get(worker, at, way);
        }
        _ => length_of_shape(worker),
    }
}

fn shape(worker: &mut Worker<'_>, call: Call<Shape>) {
    worker.seen.shapes.entry("shape".into()).or_default().push(call);
}

fn put(worker: &mut Worker<'_>, at: usize) {
    let file = worker.file(Object::Shape, Way::Both);
    let Some(file) = worker.value("open shape", file) else { return };
    let value = worker.stamp();
    let timed = worker.timed(|| file.write_all_at(&record(value, RECORD), (at * RECORD) as u64));
    let call = worker.changed(&timed, Shape::Put { at, value });
    shape(worker, call);
}

/// Appends a record in one call.
fn append(worker: &mut Worker<'_>, object: Object) -> Option<(u64, Timed<()>)> {
    let file = worker.file(object, Way::Append);
    let file = worker.value("open for append", file)?;
    let stamp = worker.stamp();
    let bytes = record(stamp, RECORD);
    let timed = worker.timed(|| match (&*file).write(&bytes)? {
        RECORD => Ok(()),
        less => Err(io::Error::other(format!("{less} bytes were appended"))),
    });
    Some((stamp, timed))
}

fn append_to_shape(worker: &mut Worker<'_>) {
    let Some((stamp, timed)) = append(worker, Object::Shape) else { return };
    let call = worker.changed(&timed, Shape::Append(stamp));
    shape(worker, call);
}

/// A file that is open, one that is opened for it, or by the opening.
fn cut(worker: &mut Worker<'_>, at: usize) {
    let way = worker.numbers.below(3);
    let at = if way == 2 { 0 } else { at };
    let path = worker.path(Object::Shape);
    let file = worker.file(Object::Shape, Way::Both);
    let Some(file) = worker.value("open shape", file) else { return };
    let length = (at * RECORD) as u64;
    let timed = worker.timed(|| match way {
        0 => file.set_len(length),
        1 => open(path, Way::Both)?.set_len(length),
        _ => File::create(path).map(drop),
    });
    let call = worker.changed(&timed, Shape::Cut(at));
    shape(worker, call);
}

fn get(worker: &mut Worker<'_>, at: usize, way: Way) {
    let file = worker.file(Object::Shape, way);
    let Some(file) = worker.value("open shape", file) else { return };
    let mut found = vec![0; RECORD];
    let timed = worker.timed(|| file.read_at(&mut found, (at * RECORD) as u64));
    let value = match &timed.result {
        Ok(0) => None,
        Ok(read) => Some(stamp_of(&found[..*read], RECORD)),
        Err(error) => return worker.failed("read shape", error),
    };
    let call = worker.answer(&timed, Shape::Got { at, value });
    shape(worker, call);
}

/// How many records a file has, as its name or an open file of it says; nothing for another length.
fn length(worker: &mut Worker<'_>, object: Object) -> Option<Call<Option<usize>>> {
    let (path, is_open) = (worker.path(object), worker.one_in(2));
    let found = if is_open {
        let file = worker.file(object, Way::Both);
        let file = worker.value("open for its length", file)?;
        worker.timed(|| file.metadata())
    } else {
        worker.timed(|| path.metadata())
    };
    let size = match &found.result {
        Ok(found) => found.size() as usize,
        Err(error) => {
            worker.failed("length", error);
            return None;
        }
    };
    Some(worker.answer(&found, size.is_multiple_of(RECORD).then_some(size / RECORD)))
}

fn length_of_shape(worker: &mut Worker<'_>) {
    let Some(call) = length(worker, Object::Shape) else { return };
    shape(worker, call.map(Shape::Long));
}

/// Appends a record, reads all, or asks for the length.
pub fn work_on_log(worker: &mut Worker<'_>) {
    match worker.numbers.below(5) {
        0..=2 => {
            let Some((stamp, timed)) = append(worker, Object::Log) else { return };
            let call = worker.changed(&timed, Appending::Append(stamp));
            log(worker, call);
        }
        3 => {
            let way = reading(worker);
            read_log(worker, way);
        }
        _ => {
            let Some(call) = length(worker, Object::Log) else { return };
            log(worker, call.map(Appending::Long));
        }
    }
}

fn log(worker: &mut Worker<'_>, call: Call<Appending>) {
    worker.seen.logs.entry("log".into()).or_default().push(call);
}

fn read_log(worker: &mut Worker<'_>, way: Way) {
    let file = worker.file(Object::Log, way);
    let Some(file) = worker.value("open log", file) else { return };
    let mut bytes = vec![0; 1 << 20];
    let timed = worker.timed(|| read_up_to(&file, &mut bytes, 0));
    match &timed.result {
        Ok(read) => {
            let records = bytes[..*read].chunks(RECORD).map(|found| stamp_of(found, RECORD)).collect();
            let call = worker.answer(&timed, Appending::Found(records));
            log(worker, call);
        }
        Err(error) => worker.failed("read log", error),
    }
}

/// Under the lock: loads, stores or writes. Without it: reads past the page cache, which shows what was synced from any mapping.
pub fn work_on_mapped(worker: &mut Worker<'_>) {
    let page = worker.numbers.below(PAGES);
    if worker.one_in(3) {
        return read_mapped(worker, page);
    }
    let lock = open(worker.path(Object::MappedLock), Way::Both).and_then(|file| {
        locks::lock_open_file(&file, true)?;
        Ok(file)
    });
    let Some(lock) = worker.value("lock the mapped file", lock) else { return };
    let (path, value) = (worker.path(Object::Mapped), worker.stamp());
    if worker.one_in(3) {
        let timed = worker.timed(|| open(path, Way::Both)?.write_all_at(&value.to_le_bytes(), page * BLOCK as u64));
        let call = worker.changed(&timed, Register::Write(value));
        mapped(worker, page, call);
    } else {
        let load = worker.timed(|| Mapping::new(&path));
        map(worker, page, value, load);
    }
    drop(lock);
}

fn mapped(worker: &mut Worker<'_>, page: u64, call: Call<Register>) {
    worker.seen.registers.entry(format!("mapped page {page}")).or_default().push(call);
}

fn map(worker: &mut Worker<'_>, page: u64, value: u64, opened: Timed<Mapping>) {
    let mapping = match &opened.result {
        Ok(mapping) => mapping,
        Err(error) => return worker.failed("map", error),
    };
    let load = worker.timed(|| Ok(mapping.word(page).load(Ordering::SeqCst)));
    let found = load.result.as_ref().copied().unwrap_or(TORN);
    let call = worker.spanning(&opened, &load, Register::Read(found));
    mapped(worker, page, call);
    if worker.one_in(2) {
        let timed = worker.timed(|| {
            mapping.word(page).store(value, Ordering::SeqCst);
            mapping.sync()
        });
        let call = worker.changed(&timed, Register::Write(value));
        mapped(worker, page, call);
    }
}

fn read_mapped(worker: &mut Worker<'_>, page: u64) {
    let file = worker.file(Object::Mapped, Way::Direct);
    let Some(file) = worker.value("open mapped", file) else { return };
    let mut bytes = [0; 8];
    let timed = worker.timed(|| file.read_exact_at(&mut bytes, page * BLOCK as u64));
    if let Err(error) = &timed.result {
        return worker.failed("read mapped", error);
    }
    let call = worker.answer(&timed, Register::Read(u64::from_le_bytes(bytes)));
    mapped(worker, page, call);
}

/// The pages of a file, shared with all who map it.
struct Mapping(*mut std::ffi::c_void);

const MAPPED: usize = PAGES as usize * BLOCK;

impl Mapping {
    fn new(path: &Path) -> io::Result<Self> {
        let file = open(path.into(), Way::Both)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses where, and the file has these pages: it is never cut.
        let start = unsafe { mmap(null_mut(), MAPPED, protection, MapFlags::SHARED, &file, 0) }?;
        Ok(Self(start))
    }

    /// The first word of a page.
    fn word(&self, page: u64) -> &AtomicU64 {
        assert!(page < PAGES);
        // SAFETY: inside the mapping, aligned as a page is, and only used as an atomic word.
        unsafe { AtomicU64::from_ptr(self.0.cast::<u8>().add(page as usize * BLOCK).cast()) }
    }

    fn sync(&self) -> io::Result<()> {
        // SAFETY: the whole mapping.
        Ok(unsafe { msync(self.0, MAPPED, MsyncFlags::SYNC) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, of which nobody has a reference any more.
        let _ = unsafe { munmap(self.0, MAPPED) };
    }
}

/// Reads everything once.
pub fn look(worker: &mut Worker<'_>) {
    for way in [Way::Cached, Way::Direct] {
        read_blocks(worker, 0, BLOCKS, way);
        (0..RECORDS as usize).for_each(|at| get(worker, at, way));
        read_log(worker, way);
    }
    length_of_shape(worker);
    (0..PAGES).for_each(|page| read_mapped(worker, page));
}
