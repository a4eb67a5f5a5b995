//! What is done to the mounts meanwhile: writers, readers and makers of names, each call timed, each answer checked.

use super::blocks::{BLOCK, Book};
use gfs_core::splitmix::SplitMix64;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Files that one writer owns.
const FILES: u64 = 4;
/// Blocks of a file: four chunks of the cluster that is brought up for this.
const BLOCKS: u64 = 256;
/// Writers and readers of each mount.
const WORKERS: usize = 2;
/// Names that one maker keeps.
const NAMES: u64 = 32;
/// The class of calls that no fault comes upon.
pub const CALM: &str = "no fault";
/// The class of calls that more than one fault came upon.
const SEVERAL: &str = "several faults";
/// Problems that are told in full.
const TOLD: usize = 20;

/// What a call does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Work {
    /// Reading a block.
    Read,
    /// Writing a block.
    Write,
    /// Bringing a file to stable storage.
    Sync,
    /// Making, renaming, removing, looking.
    Names,
}

/// Calls of one kind during faults of one class.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// How many.
    pub count: u64,
    /// The longest.
    pub longest: Duration,
}

/// What came of it so far.
#[derive(Debug, Default)]
pub struct Record {
    /// What has happened, in order; the last goes on.
    during: Mutex<Vec<&'static str>>,
    calls: Mutex<BTreeMap<(&'static str, Work), Calls>>,
    problems: Mutex<(u64, Vec<String>)>,
}

/// The class of a call while this happened: what a call that begins in calm and ends in it, with a fault between, is counted in.
fn class_of(during: &[&'static str]) -> &'static str {
    let mut faults = during.iter().filter(|class| **class != CALM);
    match (faults.next(), faults.next()) {
        (None, _) => CALM,
        (Some(only), None) => only,
        _ => SEVERAL,
    }
}

impl Record {
    /// What happens from now on.
    pub fn during(&self, class: &'static str) {
        self.during.lock().push(class);
    }

    /// Times a call; one that fails is a problem.
    fn time<T>(&self, work: Work, what: impl Fn() -> String, call: impl FnOnce() -> std::io::Result<T>) -> Option<T> {
        let (begun, first) = (Instant::now(), self.during.lock().len().saturating_sub(1));
        let result = call();
        let took = begun.elapsed();
        let during = class_of(&self.during.lock()[first..]);
        {
            let mut calls = self.calls.lock();
            let calls = calls.entry((during, work)).or_default();
            calls.count += 1;
            calls.longest = calls.longest.max(took);
        }
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(format!("{}: {error} (after {:.1} s, {during})", what(), took.as_secs_f64()));
                None
            }
        }
    }

    fn problem(&self, text: String) {
        let mut problems = self.problems.lock();
        problems.0 += 1;
        if problems.1.len() < TOLD {
            problems.1.push(text);
        }
    }

    /// All calls by class and kind.
    pub fn calls(&self) -> BTreeMap<(&'static str, Work), Calls> {
        self.calls.lock().clone()
    }

    /// How many problems there are, and the first of them.
    pub fn problems(&self) -> (u64, Vec<String>) {
        self.problems.lock().clone()
    }
}

/// A file that one writer owns and everybody reads.
struct Shared {
    name: String,
    book: Book,
}

/// The threads at work.
pub struct Load {
    record: Arc<Record>,
    stop: Arc<AtomicBool>,
    files: Arc<Vec<Shared>>,
    /// The directory of this run, as each mount shows it.
    roots: Vec<PathBuf>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// Makes the files and starts.
    pub fn start(mounts: &[PathBuf], seed: u64, record: Arc<Record>) -> std::io::Result<Self> {
        let name = format!("gfs-torture-{}", std::process::id());
        let roots: Vec<PathBuf> = mounts.iter().map(|mount| mount.join(&name)).collect();
        std::fs::create_dir(&roots[0])?;
        let writers = roots.len() * WORKERS;
        let count = writers as u64 * FILES;
        let files: Vec<Shared> =
            (0..count).map(|file| Shared { name: format!("file-{file}"), book: Book::new(file, BLOCKS) }).collect();
        for file in &files {
            File::create(roots[0].join(&file.name))?.set_len(BLOCKS * BLOCK as u64)?;
        }
        let mut load =
            Self { record, stop: Arc::default(), files: Arc::new(files), roots: roots.clone(), threads: Vec::new() };
        let mut random = SplitMix64::new(seed);
        for worker in 0..writers {
            let root = &roots[worker % roots.len()];
            let (first, seeds) = (worker as u64 * FILES, [random.draw(), random.draw()]);
            load.spawn(root, seeds[0], move |worker| worker.write(first))?;
            load.spawn(root, seeds[1], Worker::read)?;
        }
        for (index, root) in roots.iter().enumerate() {
            let other = roots[(index + 1) % roots.len()].clone();
            load.spawn(root, random.draw(), move |worker| worker.names(index, &other))?;
        }
        Ok(load)
    }

    fn spawn(
        &mut self,
        root: &Path,
        seed: u64,
        work: impl FnOnce(&mut Worker) + Send + 'static,
    ) -> std::io::Result<()> {
        let mut worker = Worker {
            root: root.to_owned(),
            random: SplitMix64::new(seed),
            files: self.files.clone(),
            record: self.record.clone(),
            stop: self.stop.clone(),
        };
        let thread = std::thread::Builder::new().name("torture".into()).spawn(move || work(&mut worker))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Ends the threads, reads every block over every mount, and removes the files. Answers how many blocks were right.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.record.problem("a thread of the load ended badly".into());
            }
        }
        self.record.during("at the end");
        let mut right = 0;
        for root in &self.roots {
            for file in self.files.iter() {
                let blocks = 0..file.book.len();
                right += blocks.filter(|block| check(&self.record, root, file, *block)).count() as u64;
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.roots[0]) {
            self.record.problem(format!("removing {}: {error}", self.roots[0].display()));
        }
        right
    }
}

fn check(record: &Record, root: &Path, file: &Shared, block: u64) -> bool {
    let path = root.join(&file.name);
    let what = || format!("read of block {block} of {}", path.display());
    let read = || {
        let mut bytes = vec![0; BLOCK];
        File::open(&path)?.read_exact_at(&mut bytes, block * BLOCK as u64)?;
        Ok(bytes)
    };
    match record.time(Work::Read, what, || file.book.check(block, read)) {
        Some(Ok(())) => true,
        Some(Err(wrong)) => {
            record.problem(format!("{}: {wrong}", what()));
            false
        }
        None => false,
    }
}

struct Worker {
    root: PathBuf,
    random: SplitMix64,
    files: Arc<Vec<Shared>>,
    record: Arc<Record>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn write(&mut self, first: u64) {
        let files = self.files.clone();
        while self.goes_on() {
            let file = &files[(first + self.random.below(FILES)) as usize];
            let path = self.root.join(&file.name);
            let shown = || path.display().to_string();
            let opened = self.record.time(
                Work::Names,
                || format!("open of {}", shown()),
                || OpenOptions::new().write(true).open(&path),
            );
            let Some(opened) = opened else { continue };
            for _ in 0..=self.random.below(16) {
                let block = self.random.below(BLOCKS);
                let (version, bytes) = file.book.begin(block);
                let what = || format!("write of block {block} of {}", shown());
                if self.record.time(Work::Write, what, || opened.write_all_at(&bytes, block * BLOCK as u64)).is_some() {
                    file.book.acknowledged(block, version);
                }
            }
            self.record.time(Work::Sync, || format!("fsync of {}", shown()), || opened.sync_all());
        }
    }

    fn read(&mut self) {
        let files = self.files.clone();
        while self.goes_on() {
            let file = &files[self.random.below(files.len() as u64) as usize];
            let block = self.random.below(BLOCKS);
            check(&self.record, &self.root, file, block);
        }
    }

    /// Makes files under one name, gives them another, removes them again, and looks over the other mount each time.
    fn names(&mut self, own: usize, other: &Path) {
        let record = self.record.clone();
        let does = |what: &str, path: &Path, call: &dyn Fn() -> std::io::Result<()>| {
            record.time(Work::Names, || format!("{what} {}", path.display()), call).is_some()
        };
        let mut number = 0u64;
        while self.goes_on() {
            let (new, old) = (format!("new-{own}-{number}"), format!("old-{own}-{number}"));
            let (made, named) = (self.root.join(&new), self.root.join(&old));
            let text = format!("{own} {number}");
            if does("create", &made, &|| std::fs::write(&made, &text))
                && does("rename", &made, &|| std::fs::rename(&made, &named))
            {
                does("look over the other mount at", &named, &|| same(&other.join(&old), Some(&text)));
                does("look over the other mount at", &made, &|| same(&other.join(&new), None));
            }
            if let Some(last) = number.checked_sub(NAMES) {
                let gone = format!("old-{own}-{last}");
                let path = self.root.join(&gone);
                if does("remove", &path, &|| std::fs::remove_file(&path)) {
                    does("look over the other mount at", &path, &|| same(&other.join(&gone), None));
                }
            }
            number += 1;
        }
    }
}

/// Whether a file holds this, or is not there.
fn same(path: &Path, expected: Option<&str>) -> std::io::Result<()> {
    let found = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if found.as_deref() == expected {
        return Ok(());
    }
    let told = |what: Option<&str>| what.map_or("nothing".to_owned(), |text| format!("{text:?}"));
    Err(std::io::Error::other(format!("{} instead of {}", told(found.as_deref()), told(expected))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_belongs_to_the_one_fault_that_came_upon_it() {
        assert_eq!(class_of(&[CALM]), CALM);
        assert_eq!(class_of(&[CALM, "master stopped", CALM]), "master stopped");
        assert_eq!(class_of(&["master stopped", CALM, "master stopped"]), SEVERAL);
    }

    #[test]
    fn load_on_a_sound_directory_finds_nothing_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let record = Arc::new(Record::default());
        record.during("calm");
        let load = Load::start(&[dir.path().into(), dir.path().into()], 1, record.clone()).unwrap();
        while record.calls().values().map(|calls| calls.count).sum::<u64>() < 2_000 {
            std::thread::yield_now();
        }
        let blocks = 2 * 2 * WORKERS as u64 * FILES * BLOCKS;
        assert_eq!(load.finish(), blocks);
        assert_eq!(record.problems(), (0, vec![]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn bytes_that_change_by_themselves_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let record = Arc::new(Record::default());
        let load = Load::start(&[dir.path().into()], 1, record.clone()).unwrap();
        let root = load.roots[0].clone();
        while !record.calls().contains_key(&(CALM, Work::Sync)) {
            std::thread::yield_now();
        }
        for file in 0..FILES * WORKERS as u64 {
            let file = OpenOptions::new().write(true).open(root.join(format!("file-{file}"))).unwrap();
            (0..BLOCKS).for_each(|block| file.write_all_at(b"?", block * BLOCK as u64 + 100).unwrap());
        }
        load.finish();
        let (count, first) = record.problems();
        assert!(count > 0 && first[0].contains("never written"), "{first:?}");
    }
}
