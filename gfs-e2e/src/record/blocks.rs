//! Blocks of a file, written in place.

use super::{Load, found, parent, sync_dir};
use crate::work::pattern;
use gfs_core::splitmix::SplitMix64;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

const BLOCK: usize = 4096;
/// Blocks of the file: two chunks of a mebibyte and a bit.
const COUNT: usize = 600;
/// The most that one call writes.
const AT_ONCE: u64 = 8;

/// A file of blocks that each say which version of which block they are.
pub struct Blocks {
    path: PathBuf,
    /// Opened with `O_DSYNC`: a write that has returned is synced.
    synchronous: bool,
    file: Option<File>,
    blocks: Vec<Versions>,
    newest: u64,
    /// The file is there for sure.
    made: bool,
}

/// What a block may hold.
#[derive(Clone)]
struct Versions {
    /// The one that was synced, and those that were written since.
    allowed: Vec<u64>,
    /// Which of them was answered last.
    answered: usize,
}

impl Versions {
    /// What was answered counts.
    fn settle(&mut self) {
        self.allowed.drain(..self.answered);
        self.answered = 0;
    }
}

/// Version 0 is zeros.
fn content(version: u64, block: usize) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK];
    }
    let mut bytes = pattern(version, (block * BLOCK) as u64, BLOCK);
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes
}

impl Blocks {
    /// A file that is not there yet.
    pub fn new(path: PathBuf, synchronous: bool) -> Self {
        let blocks = vec![Versions { allowed: vec![0], answered: 0 }; COUNT];
        Self { path, synchronous, file: None, blocks, newest: 0, made: false }
    }

    fn open(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let flags = if self.synchronous { libc::O_DSYNC } else { 0 };
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).read(true).write(true).custom_flags(flags);
            let file = options.open(&self.path)?;
            if !self.made {
                file.set_len((COUNT * BLOCK) as u64)?;
                file.sync_all()?;
                sync_dir(parent(&self.path))?;
                self.made = true;
            }
            self.file = Some(file);
        }
        Ok(self.file.as_ref().expect("just opened"))
    }

    /// The version of each block, `None` if there is no file.
    fn look(&self) -> io::Result<Option<Vec<u64>>> {
        let path = self.path.display();
        let Some(mut bytes) = found(std::fs::read(&self.path))? else {
            assert!(!self.made, "{path} is gone, which was synced");
            return Ok(None);
        };
        assert!(!self.made || bytes.len() == COUNT * BLOCK, "{path} has {} bytes", bytes.len());
        bytes.resize(COUNT * BLOCK, 0);
        let version = |(number, (bytes, block)): (usize, (&[u8], &Versions))| {
            let (says, allowed) = (u64::from_le_bytes(std::array::from_fn(|at| bytes[at])), &block.allowed);
            assert!(allowed.contains(&says), "{path}: block {number} is version {says}, not one of {allowed:?}");
            assert!(bytes == content(says, number), "{path}: block {number} begins as version {says} and is a mixture");
            says
        };
        Ok(Some(bytes.chunks(BLOCK).zip(&self.blocks).enumerate().map(version).collect()))
    }
}

impl Load for Blocks {
    fn step(&mut self, random: &mut SplitMix64) -> io::Result<()> {
        self.open()?;
        let file = self.file.as_ref().expect("opened");
        if !self.synchronous && random.below(4) == 0 {
            file.sync_data()?;
            self.nothing_is_lost();
            return Ok(());
        }
        let first = random.below(COUNT as u64 - AT_ONCE) as usize;
        let written = first..first + 1 + random.below(AT_ONCE) as usize;
        self.newest += 1;
        let mut bytes = Vec::with_capacity(written.len() * BLOCK);
        for block in written.clone() {
            self.blocks[block].allowed.push(self.newest);
            bytes.extend(content(self.newest, block));
        }
        file.write_all_at(&bytes, (first * BLOCK) as u64)?;
        for block in &mut self.blocks[written] {
            block.answered = block.allowed.len() - 1;
            if self.synchronous {
                block.settle();
            }
        }
        Ok(())
    }

    fn nothing_is_lost(&mut self) {
        self.blocks.iter_mut().for_each(Versions::settle);
    }

    fn check(&self) -> io::Result<()> {
        self.look().map(drop)
    }

    fn settle(&mut self) -> io::Result<()> {
        self.file = None;
        let Some(versions) = self.look()? else { return Ok(()) };
        self.blocks = versions.into_iter().map(|found| Versions { allowed: vec![found], answered: 0 }).collect();
        self.open()?.sync_all()
    }
}
