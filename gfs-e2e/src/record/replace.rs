//! A file that is replaced as editors and package managers do it: written beside, synced, renamed over.

use super::{Believe, Load, found, parent, sync_dir};
use crate::work::pattern;
use gfs_core::splitmix::SplitMix64;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// A name that always stands for a whole version.
pub struct Replace {
    path: PathBuf,
    believe: Believe,
    /// The version whose name was synced, 0 for none, and those renamed over it since.
    allowed: Vec<u64>,
    answered: usize,
    newest: u64,
}

fn content(version: u64) -> Vec<u8> {
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.extend(pattern(version, 0, (version * 1_237 % 20_000) as usize));
    bytes
}

impl Replace {
    /// A name that is not there yet.
    pub fn new(path: PathBuf, believe: Believe) -> Self {
        Self { path, believe, allowed: vec![0], answered: 0, newest: 0 }
    }

    /// Which version is there.
    fn look(&self) -> io::Result<u64> {
        let path = self.path.display();
        let bytes = found(std::fs::read(&self.path))?;
        let says = match &bytes {
            None => 0,
            Some(bytes) => {
                assert!(bytes.len() >= 8, "{path} has {} bytes", bytes.len());
                u64::from_le_bytes(std::array::from_fn(|at| bytes[at]))
            }
        };
        assert!(self.allowed.contains(&says), "{path} is version {says}, and may be one of {:?}", self.allowed);
        assert!(bytes.is_none_or(|bytes| bytes == content(says)), "{path}: version {says} is not whole");
        Ok(says)
    }
}

impl Load for Replace {
    fn step(&mut self, random: &mut SplitMix64) -> io::Result<()> {
        self.newest += 1;
        let beside = self.path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(&content(self.newest))?;
        file.sync_all()?;
        drop(file);
        self.allowed.push(self.newest);
        std::fs::rename(&beside, &self.path)?;
        self.answered = self.allowed.len() - 1;
        if random.below(2) == 0 {
            sync_dir(parent(&self.path))?;
            if self.believe == Believe::Directories {
                self.nothing_is_lost();
            }
        }
        Ok(())
    }

    fn nothing_is_lost(&mut self) {
        self.allowed.drain(..self.answered);
        self.answered = 0;
    }

    fn check(&self) -> io::Result<()> {
        self.look().map(drop)
    }

    fn settle(&mut self) -> io::Result<()> {
        (self.allowed, self.answered) = (vec![self.look()?], 0);
        sync_dir(parent(&self.path))
    }
}
