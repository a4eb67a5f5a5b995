//! Load that keeps a record of what it was promised, and checks it after a fault.
//!
//! Each [`Load`] has files of its own, so that it knows what may be in them: what was synced, or anything that was written since, whole
//! in each block of 4 KiB, and nothing else.

mod append;
mod blocks;
mod files;
mod replace;

pub use append::Append;
pub use blocks::Blocks;
pub use files::Files;
pub use replace::Replace;

use crate::cluster::wait_until;
use gfs_core::splitmix::SplitMix64;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A program that writes, and remembers.
pub trait Load: Send {
    /// Does one thing more. After an error it is in doubt whether that was done.
    ///
    /// # Errors
    /// Those of the mount.
    fn step(&mut self, random: &mut SplitMix64) -> io::Result<()>;

    /// No power was cut where it matters: what was answered counts as synced.
    fn nothing_is_lost(&mut self);

    /// Checks what is there, which panics if it is wrong.
    ///
    /// # Errors
    /// Those of the mount.
    fn check(&self) -> io::Result<()>;

    /// Checks what is there, makes it durable, and goes on from there with files opened anew.
    ///
    /// # Errors
    /// Those of the mount.
    fn settle(&mut self) -> io::Result<()>;
}

/// What is taken for durable when the sync of a directory has returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Believe {
    /// All changes of its names that were answered before.
    Directories,
    /// Only the names of files that were synced themselves. A mount that outlives a power cut of the master is not told that names are
    /// lost that nobody had synced by then, and syncs the directory of which they are gone.
    Files,
}

/// One load of each kind, with its files in a directory.
pub fn all_kinds(directory: &Path, believe: Believe) -> Vec<Box<dyn Load>> {
    vec![
        Box::new(Blocks::new(directory.join("blocks"), false)),
        Box::new(Blocks::new(directory.join("synchronous"), true)),
        Box::new(Append::new(directory.join("appended"), believe)),
        Box::new(Files::new(directory.join("files"), believe)),
        Box::new(Replace::new(directory.join("replaced"), believe)),
    ]
}

/// How far running loads are.
pub struct Steps {
    done: Vec<AtomicU64>,
    /// One of them has panicked.
    failed: AtomicBool,
}

impl Steps {
    /// Waits until each load has done `count` steps more, or has ended with an error.
    pub fn wait_for(&self, count: u64) {
        let now = || self.done.iter().map(|steps| steps.load(Ordering::Relaxed));
        let begin: Vec<_> = now().collect();
        wait_until(&format!("{count} steps of each load"), Duration::from_secs(120), || {
            assert!(!self.failed.load(Ordering::Relaxed), "a load has failed, as it says above");
            now().zip(&begin).all(|(now, begin)| now >= begin.saturating_add(count))
        });
    }
}

/// Sets a flag when its thread panics, so that nobody goes on for ever.
struct TellsPanic<'a>(&'a AtomicBool);

impl Drop for TellsPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Runs loads, each in a thread, while `fault` happens, and until it has returned. A load ends with its first error.
pub fn under_load(loads: &mut [Box<dyn Load>], seed: u64, fault: impl FnOnce(&Steps)) -> Vec<io::Result<()>> {
    let stop = AtomicBool::new(false);
    let done = loads.iter().map(|_| AtomicU64::new(0)).collect();
    let steps = Steps { done, failed: AtomicBool::new(false) };
    let run = |load: &mut dyn Load, done: &AtomicU64, seed: u64| {
        let _tells = TellsPanic(&steps.failed);
        let mut random = SplitMix64::new(seed);
        while !stop.load(Ordering::Relaxed) {
            load.step(&mut random).inspect_err(|_| done.store(u64::MAX, Ordering::Relaxed))?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let _stops = TellsPanic(&stop);
        let threads: Vec<_> = loads
            .iter_mut()
            .zip(&steps.done)
            .zip(seed.wrapping_mul(31)..)
            .map(|((load, done), seed)| {
                let run = &run;
                scope.spawn(move || run(load.as_mut(), done, seed))
            })
            .collect();
        fault(&steps);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}

/// Makes the names in a directory durable.
fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("a file in a directory")
}

/// What was found, `None` for nothing of that name.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
