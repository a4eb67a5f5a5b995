//! A file that grows at its end.

use super::{Believe, Load, found, parent, sync_dir};
use crate::work::pattern;
use gfs_core::splitmix::SplitMix64;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

const BLOCK: u64 = 4096;
/// The most that is appended at once.
const AT_ONCE: u64 = 20_000;

/// A file to which is appended. After each fault it is cut back to what is right and grows with other bytes, so that none that were cut off
/// can come back unseen.
pub struct Append {
    path: PathBuf,
    believe: Believe,
    file: Option<File>,
    /// From where on bytes are of which seed.
    seeds: Vec<(u64, u64)>,
    synced: u64,
    answered: u64,
    /// Where appends since the last sync end, answered or not.
    ends: Vec<u64>,
    made: bool,
}

impl Append {
    /// A file that is not there yet.
    pub fn new(path: PathBuf, believe: Believe) -> Self {
        Self { path, believe, file: None, seeds: vec![(0, 1)], synced: 0, answered: 0, ends: Vec::new(), made: false }
    }

    fn expected(&self, offset: u64, length: u64) -> Vec<u8> {
        let ends = self.seeds.iter().skip(1).map(|(start, _)| *start).chain([u64::MAX]);
        let of_seed = |((start, seed), end): (&(u64, u64), u64)| {
            let (from, to) = (offset.max(*start), (offset + length).min(end));
            if from < to { pattern(*seed, from, (to - from) as usize) } else { Vec::new() }
        };
        self.seeds.iter().zip(ends).flat_map(of_seed).collect()
    }

    fn open(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            if !self.made {
                file.sync_all()?;
                sync_dir(parent(&self.path))?;
                self.made = true;
            }
            self.file = Some(file);
        }
        Ok(self.file.as_mut().expect("just opened"))
    }

    /// How many bytes are right, `None` if there is no file.
    fn look(&self) -> io::Result<Option<u64>> {
        let bytes = found(std::fs::read(&self.path))?;
        assert!(bytes.is_some() || !self.made, "{} is gone, which was synced", self.path.display());
        Ok(bytes.map(|bytes| self.right(&bytes)))
    }

    /// How many of these bytes are right from the beginning; beyond what was synced, a block may still hold what was there before an append.
    fn right(&self, bytes: &[u8]) -> u64 {
        let (path, size) = (self.path.display(), bytes.len() as u64);
        assert!(size >= self.synced, "{path} has {size} bytes, {} were synced", self.synced);
        let known = size == self.synced || self.ends.contains(&size);
        assert!(known, "{path} has {size} bytes, {} synced, appends end at {:?}", self.synced, self.ends);
        let expected = self.expected(0, size);
        if let Some(at) = (0..self.synced as usize).find(|at| bytes[*at] != expected[*at]) {
            panic!("{path}: byte {at} of {} that were synced is wrong", self.synced);
        }
        let mut start = self.synced;
        let mut right = size;
        while start < size {
            let end = ((start / BLOCK + 1) * BLOCK).min(size);
            let borders = self.ends.iter().copied().filter(|at| (start..end).contains(at)).chain([start, end]);
            let is_old_at = |at: &u64| {
                let (start, at, end) = (start as usize, *at as usize, end as usize);
                bytes[start..at] == expected[start..at] && bytes[at..end].iter().all(|byte| *byte == 0)
            };
            match borders.filter(is_old_at).max() {
                Some(at) if at < end => right = right.min(at),
                Some(_) => {}
                None => panic!("{path}: bytes {start}..{end} of {size} are neither old nor new"),
            }
            start = end;
        }
        right
    }
}

impl Load for Append {
    fn step(&mut self, random: &mut SplitMix64) -> io::Result<()> {
        self.open()?;
        if random.below(4) == 0 {
            self.open()?.sync_data()?;
            self.nothing_is_lost();
            return Ok(());
        }
        let length = 1 + random.below(AT_ONCE);
        let bytes = self.expected(self.answered, length);
        self.ends.push(self.answered + length);
        self.open()?.write_all(&bytes)?;
        self.answered += length;
        let size = self.open()?.metadata()?.len();
        if size < self.answered && self.believe == Believe::Files {
            // The master has lost power, and the size of what was appended last with it.
            return Err(io::ErrorKind::StaleNetworkFileHandle.into());
        }
        assert_eq!(
            size,
            self.answered,
            "{}: bytes after an append of {length} to its end; {} were synced",
            self.path.display(),
            self.synced
        );
        Ok(())
    }

    fn nothing_is_lost(&mut self) {
        self.synced = self.answered;
        self.ends.retain(|end| *end > self.answered);
    }

    fn check(&self) -> io::Result<()> {
        self.look().map(drop)
    }

    fn settle(&mut self) -> io::Result<()> {
        self.file = None;
        let Some(right) = self.look()? else { return Ok(()) };
        let file = OpenOptions::new().write(true).open(&self.path)?;
        file.set_len(right)?;
        file.sync_all()?;
        (self.synced, self.answered) = (right, right);
        self.ends.clear();
        self.seeds.retain(|(start, _)| *start < right);
        let seed = self.seeds.last().map_or(1, |(_, seed)| seed + 1);
        self.seeds.push((right, seed));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(synced: u64, ends: &[u64]) -> Append {
        Append { synced, answered: synced, ends: ends.to_vec(), ..Append::new("f".into(), Believe::Directories) }
    }

    #[test]
    fn an_append_that_was_not_synced_may_be_missing_in_each_block() {
        let load = append(1000, &[3000, 20_000]);
        let whole = load.expected(0, 20_000);
        assert_eq!(load.right(&whole), 20_000);
        assert_eq!(load.right(&whole[..3000]), 3000);
        let mut holed = whole.clone();
        holed[8192..12_288].fill(0);
        assert_eq!(load.right(&holed), 8192);
        holed[3000..4096].fill(0);
        assert_eq!(load.right(&holed), 3000);
    }

    #[test]
    fn what_was_synced_must_be_right_and_nothing_may_be_mixed() {
        let load = append(1000, &[3000, 20_000]);
        let whole = load.expected(0, 20_000);
        let wrong = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            std::panic::catch_unwind(|| load.right(&bytes)).is_err()
        };
        assert!(wrong(&|bytes| bytes[999] ^= 1), "synced");
        assert!(wrong(&|bytes| bytes.truncate(999)), "too short");
        assert!(wrong(&|bytes| bytes.truncate(5000)), "half an append");
        assert!(wrong(&|bytes| bytes[9000] ^= 1), "garbage");
        assert!(wrong(&|bytes| bytes[9000..12_288].fill(0)), "half a block");
    }

    #[test]
    fn bytes_of_each_seed_begin_where_they_should() {
        let load = Append { seeds: vec![(0, 1), (10, 2), (25, 3)], ..append(0, &[]) };
        let expected = [pattern(1, 5, 5), pattern(2, 10, 15), pattern(3, 25, 5)].concat();
        assert_eq!(load.expected(5, 25), expected);
    }
}
