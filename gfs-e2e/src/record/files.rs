//! Small files that come and go.

use super::{Believe, Load, found, sync_dir};
use crate::work::pattern;
use gfs_core::splitmix::SplitMix64;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

const BLOCK: usize = 4096;
const LONGEST: u64 = 12_000;

/// A directory of small files, some of them synced, some not, some deleted.
pub struct Files {
    directory: PathBuf,
    believe: Believe,
    /// The directory is there for sure.
    made: bool,
    files: BTreeMap<u64, Entry>,
    next: u64,
}

struct Entry {
    length: u64,
    /// Whether its content was synced.
    synced: bool,
    /// Whether its name may be there.
    there: bool,
    /// Whether it may be gone.
    gone: bool,
    /// What was done last: it was made, not removed.
    made: bool,
    /// Whether that was answered.
    answered: bool,
}

impl Entry {
    fn settle(&mut self) {
        if self.answered {
            (self.there, self.gone) = (self.made, !self.made);
        }
    }
}

impl Files {
    /// A directory that is not there yet.
    pub fn new(directory: PathBuf, believe: Believe) -> Self {
        Self { directory, believe, made: false, files: BTreeMap::new(), next: 0 }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(number.to_string())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        sync_dir(&self.directory)?;
        if self.believe == Believe::Directories {
            self.files.values_mut().for_each(Entry::settle);
        }
        Ok(())
    }

    fn make(&mut self, length: u64, sync: bool) -> io::Result<()> {
        let number = self.next;
        self.next += 1;
        let entry = Entry { length, synced: false, there: true, gone: true, made: true, answered: false };
        self.files.insert(number, entry);
        let mut file = File::create_new(self.path(number))?;
        file.write_all(&pattern(number, 0, length as usize))?;
        if sync {
            file.sync_all()?;
        }
        drop(file);
        let entry = self.files.get_mut(&number).expect("inserted");
        (entry.answered, entry.synced) = (true, sync);
        if sync {
            self.sync_names()?;
            self.files.get_mut(&number).expect("inserted").settle();
        }
        Ok(())
    }

    fn remove(&mut self, random: &mut SplitMix64) -> io::Result<()> {
        let there = self.files.iter().filter(|(_, entry)| entry.made && entry.answered);
        let numbers: Vec<u64> = there.map(|(number, _)| *number).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let number = numbers[random.below(numbers.len() as u64) as usize];
        let path = self.path(number);
        let entry = self.files.get_mut(&number).expect("chosen");
        (entry.gone, entry.made, entry.answered) = (true, false, false);
        std::fs::remove_file(path)?;
        entry.answered = true;
        if random.below(2) == 0 { self.sync_names() } else { Ok(()) }
    }

    /// Which files are there.
    fn look(&self) -> io::Result<BTreeSet<u64>> {
        let Some(names) = found(std::fs::read_dir(&self.directory))? else {
            assert!(!self.made, "{} is gone, which was synced", self.directory.display());
            return Ok(BTreeSet::new());
        };
        for name in names {
            let name = name?.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            let known = number.is_some_and(|number: u64| self.files.contains_key(&number));
            assert!(known, "{} has {name:?}, which nobody made", self.directory.display());
        }
        let mut there = BTreeSet::new();
        for (number, entry) in &self.files {
            if self.is_there(*number, entry)? {
                there.insert(*number);
            }
        }
        Ok(there)
    }

    /// Whether a file is there.
    fn is_there(&self, number: u64, entry: &Entry) -> io::Result<bool> {
        let path = self.path(number);
        let Some(bytes) = found(std::fs::read(&path))? else {
            assert!(entry.gone, "{} is gone, which was synced", path.display());
            return Ok(false);
        };
        assert!(entry.there, "{} is back, though its deletion was synced", path.display());
        let expected = pattern(number, 0, entry.length as usize);
        if entry.synced {
            assert!(bytes == expected, "{} has other bytes than were synced", path.display());
            return Ok(true);
        }
        assert!(bytes.len() <= expected.len(), "{} has {} bytes", path.display(), bytes.len());
        for (found, expected) in bytes.chunks(BLOCK).zip(expected.chunks(BLOCK)) {
            let right = *found == expected[..found.len()] || found.iter().all(|byte| *byte == 0);
            assert!(right, "{} has bytes that nobody wrote", path.display());
        }
        Ok(true)
    }
}

impl Load for Files {
    fn step(&mut self, random: &mut SplitMix64) -> io::Result<()> {
        if !self.made {
            std::fs::create_dir_all(&self.directory)?;
            sync_dir(super::parent(&self.directory))?;
            self.made = true;
        }
        let length = random.below(LONGEST);
        match random.below(5) {
            0 => self.remove(random),
            kind => self.make(length, kind > 2),
        }
    }

    fn nothing_is_lost(&mut self) {
        for entry in self.files.values_mut().filter(|entry| entry.answered) {
            entry.synced = true;
            entry.settle();
        }
    }

    fn check(&self) -> io::Result<()> {
        self.look().map(drop)
    }

    fn settle(&mut self) -> io::Result<()> {
        let there = self.look()?;
        self.files.retain(|number, _| there.contains(number));
        let halves = self.files.iter().filter(|(_, entry)| !entry.synced);
        for number in halves.map(|(number, _)| *number).collect::<Vec<_>>() {
            std::fs::remove_file(self.path(number))?;
            self.files.remove(&number);
        }
        for entry in self.files.values_mut() {
            (entry.there, entry.gone, entry.made, entry.answered) = (true, false, true, true);
        }
        if self.made { sync_dir(&self.directory) } else { Ok(()) }
    }
}
