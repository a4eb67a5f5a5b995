//! What a disk holds, and what is left of it when the power is cut.
//!
//! The semantics are those of a journalled file system as ext4 (ordered) and XFS are, with all the freedom that they take:
//!
//! - *Names and sizes* go through a journal, in order. An fsync of a file or directory makes durable everything up to the last
//!   operation that touched it. Of what is behind, a cut leaves any prefix.
//! - *Data* that was written and not synced may be there after a cut, or what was there before, or something older that was written in
//!   between, or a mixture of both within a block: each sector of 512 bytes is old or new. Each block of 4 KiB has its own fate.
//! - Data is there only with what made room for it: not beyond a size that was lost, and not in a range that was cut off or zeroed since
//!   by an operation that was lost. A size without its data reads as zeros.
//! - fdatasync is as fsync: it makes the size durable too.
//!
//! Nothing here does I/O, and a seed decides everything.

use super::tree::{BLOCK, Block, Content, Inode, Kind, Node, Op, ROOT, Tree, pieces};
use gfs_core::splitmix::SplitMix64;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// One in so many rewrites of a block finds that the system has written back by itself what was there.
const WRITEBACK: u64 = 4;
/// The longest name.
const NAME_MAX: usize = 255;

/// A number that orders operations; the first is 1.
type Sequence = u64;

/// A file system in memory that knows what of it is on stable storage.
#[derive(Debug)]
pub struct Disk {
    /// As programs see it.
    live: Tree,
    /// As it is on stable storage: everything up to `committed`, and the data that was synced.
    stable: Tree,
    committed: Sequence,
    /// What was done since, in order.
    journal: VecDeque<Op>,
    /// What is known of inodes that were used since the last cut.
    inodes: HashMap<Inode, Use>,
    next: Inode,
    random: SplitMix64,
    changes: u64,
}

#[derive(Debug, Default)]
struct Use {
    /// How often it is open.
    opens: u32,
    /// The last operation that touched it.
    touched: Sequence,
    /// The last operation that decides where its data can be.
    shaped: Sequence,
    /// Blocks that were written since they were synced, and the operation that each needs to be there.
    dirty: BTreeMap<u64, Sequence>,
}

impl Disk {
    /// An empty one. The seed decides what is written back without being asked.
    pub fn new(seed: u64) -> Self {
        Self {
            live: Tree::default(),
            stable: Tree::default(),
            committed: 0,
            journal: VecDeque::new(),
            inodes: HashMap::new(),
            next: ROOT + 1,
            random: SplitMix64::new(seed),
            changes: 0,
        }
    }

    /// A file or directory.
    ///
    /// # Errors
    /// `NOENT`.
    pub fn node(&self, inode: Inode) -> Result<&Node, Errno> {
        self.live.node(inode).ok_or(Errno::NOENT)
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// `NOENT`, `NOTDIR`.
    pub fn lookup(&self, parent: Inode, name: &OsStr) -> Result<Inode, Errno> {
        self.names(parent)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// The names in a directory.
    ///
    /// # Errors
    /// `NOENT`, `NOTDIR`.
    pub fn names(&self, directory: Inode) -> Result<&BTreeMap<OsString, Inode>, Errno> {
        self.node(directory)?;
        self.live.names(directory).ok_or(Errno::NOTDIR)
    }

    /// How many changes there were so far: writes, operations on names, syncs.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Makes a file or directory.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn create(&mut self, parent: Inode, name: &OsStr, directory: bool, mode: u32) -> Result<Inode, Errno> {
        self.check_free(parent, name)?;
        let inode = self.next;
        self.next += 1;
        self.perform(Op::Create { parent, name: name.to_owned(), inode, directory, mode });
        Ok(inode)
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// As link(2).
    pub fn link(&mut self, inode: Inode, parent: Inode, name: &OsStr) -> Result<(), Errno> {
        if self.node(inode)?.links == 0 {
            return Err(Errno::NOENT);
        }
        self.live.content(inode).ok_or(Errno::PERM)?;
        self.check_free(parent, name)?;
        self.perform(Op::Link { inode, parent, name: name.to_owned() });
        Ok(())
    }

    /// Removes the name of a file, or an empty directory.
    ///
    /// # Errors
    /// As unlink(2) and rmdir(2).
    pub fn remove(&mut self, parent: Inode, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let inode = self.lookup(parent, name)?;
        match (self.live.names(inode), directory) {
            (Some(_), false) => return Err(Errno::ISDIR),
            (None, true) => return Err(Errno::NOTDIR),
            (Some(names), true) if !names.is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        self.perform(Op::Remove { parent, name: name.to_owned() });
        Ok(())
    }

    /// Moves a name.
    ///
    /// # Errors
    /// As renameat2(2). That a directory is moved into itself is found by the kernel.
    pub fn rename(&mut self, from: (Inode, &OsStr), to: (Inode, &OsStr), replace: bool) -> Result<(), Errno> {
        let moved = self.lookup(from.0, from.1)?;
        match self.lookup(to.0, to.1) {
            Ok(_) if !replace => return Err(Errno::EXIST),
            Ok(replaced) if replaced == moved => return Ok(()),
            Ok(replaced) => match (self.live.names(moved), self.live.names(replaced)) {
                (Some(_), None) => return Err(Errno::NOTDIR),
                (None, Some(_)) => return Err(Errno::ISDIR),
                (_, Some(names)) if !names.is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            },
            Err(Errno::NOENT) => check_name(to.1)?,
            Err(error) => return Err(error),
        }
        let (name, new_name) = (from.1.to_owned(), to.1.to_owned());
        self.perform(Op::Rename { parent: from.0, name, new_parent: to.0, new_name });
        Ok(())
    }

    /// Sets permission bits.
    ///
    /// # Errors
    /// `NOENT`.
    pub fn set_mode(&mut self, inode: Inode, mode: u32) -> Result<(), Errno> {
        self.node(inode)?;
        self.perform(Op::Mode { inode, mode });
        Ok(())
    }

    /// Sets the size of a file.
    ///
    /// # Errors
    /// `NOENT`, `ISDIR`.
    pub fn set_size(&mut self, inode: Inode, size: u64) -> Result<(), Errno> {
        let before = self.content(inode)?.size;
        if size != before {
            self.perform(Op::Size { inode, size });
        }
        if size < before {
            self.inodes.entry(inode).or_default().dirty.split_off(&size.div_ceil(BLOCK));
        }
        Ok(())
    }

    /// Reads up to `length` bytes.
    ///
    /// # Errors
    /// `NOENT`, `ISDIR`.
    pub fn read(&self, inode: Inode, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let content = self.content(inode)?;
        let mut bytes = vec![0; content.size.saturating_sub(offset).min(length as u64) as usize];
        content.read(offset, &mut bytes);
        Ok(bytes)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// `NOENT`, `ISDIR`.
    pub fn write(&mut self, inode: Inode, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.changes += 1;
        let end = offset + bytes.len() as u64;
        if end > self.content(inode)?.size {
            self.perform(Op::Size { inode, size: end });
        }
        for (block, _, _) in pieces(offset, bytes.len()) {
            if self.random.below(WRITEBACK) == 0 {
                self.write_back(inode, block);
            }
        }
        let used = self.inodes.entry(inode).or_default();
        let needs = used.shaped;
        used.dirty.extend(pieces(offset, bytes.len()).map(|(block, _, _)| (block, needs)));
        let content = self.live.content_mut(inode).ok_or(Errno::NOENT)?;
        content.write(offset, bytes);
        Ok(())
    }

    /// Makes room. Blocks that are not written read as zeros.
    ///
    /// # Errors
    /// `NOENT`, `ISDIR`.
    pub fn allocate(&mut self, inode: Inode, end: u64) -> Result<(), Errno> {
        let size = self.content(inode)?.size.max(end);
        self.set_size(inode, size)
    }

    /// Makes a range read as zeros; the size is not changed.
    ///
    /// # Errors
    /// `NOENT`, `ISDIR`.
    pub fn zero(&mut self, inode: Inode, from: u64, to: u64) -> Result<(), Errno> {
        let size = self.content(inode)?.size;
        let (first, end) = (from.div_ceil(BLOCK), to / BLOCK);
        let edges = if first > end { [(from, to); 2] } else { [(from, first * BLOCK), (end * BLOCK, to)] };
        for (from, to) in edges {
            let to = to.min(size);
            if from < to {
                self.write(inode, from, &vec![0; (to - from) as usize])?;
            }
        }
        if first < end {
            self.inodes.entry(inode).or_default().dirty.retain(|block, _| !(first..end).contains(block));
            self.perform(Op::Zero { inode, from: first, to: end });
        }
        Ok(())
    }

    /// The next data, or hole.
    ///
    /// # Errors
    /// `NXIO` if there is none.
    pub fn seek(&self, inode: Inode, offset: u64, hole: bool) -> Result<u64, Errno> {
        self.content(inode)?.seek(offset, hole).ok_or(Errno::NXIO)
    }

    /// Makes a file or directory durable.
    ///
    /// # Errors
    /// `NOENT`.
    pub fn sync(&mut self, inode: Inode) -> Result<(), Errno> {
        self.node(inode)?;
        self.changes += 1;
        let used = self.inodes.entry(inode).or_default();
        let (touched, dirty) = (used.touched, std::mem::take(&mut used.dirty));
        self.commit(touched);
        for block in dirty.into_keys() {
            self.store(inode, block);
        }
        Ok(())
    }

    /// Notes that a file is open once more: it stays when its last name goes.
    pub fn opened(&mut self, inode: Inode) {
        self.inodes.entry(inode).or_default().opens += 1;
    }

    /// Notes that it is open once less.
    pub fn closed(&mut self, inode: Inode) {
        let used = self.inodes.entry(inode).or_default();
        used.opens = used.opens.saturating_sub(1);
        if used.opens == 0 && self.live.node(inode).is_some_and(|node| node.links == 0) {
            self.forget(inode);
        }
    }

    /// Cuts the power: what was not made durable is lost, kept or torn, as the seed decides.
    pub fn cut(&mut self, seed: u64) {
        self.random = SplitMix64::new(seed);
        let waiting = self.journal.len() as u64;
        let kept = match self.random.below(4) {
            0 => 0,
            1 => waiting,
            _ => self.random.below(waiting + 1),
        };
        self.commit(self.committed + kept);
        let mut inodes: Vec<_> = std::mem::take(&mut self.inodes).into_iter().collect();
        // In an order of their own, so that the seed decides.
        inodes.sort_unstable_by_key(|(inode, _)| *inode);
        for (inode, used) in inodes {
            for (block, needs) in used.dirty {
                if needs <= self.committed {
                    self.decide(inode, block);
                }
            }
            if let Some(content) = self.stable.content_mut(inode) {
                content.trim();
            }
        }
        self.journal.clear();
        self.committed = 0;
        self.live = self.stable.clone();
    }

    /// The fate of a block that was written and not synced.
    fn decide(&mut self, inode: Inode, block: u64) {
        match self.random.below(8) {
            0..3 => {}
            3..6 => self.store(inode, block),
            _ => {
                let zeros: Block = Arc::new([0; BLOCK as usize]);
                let Some(new) = self.live.content(inode).and_then(|content| content.blocks.get(&block)) else { return };
                let new = new.clone();
                let Some(content) = self.stable.content_mut(inode) else { return };
                let mut torn = content.blocks.get(&block).cloned().unwrap_or(zeros);
                for (old, new) in Arc::make_mut(&mut torn).chunks_mut(SECTOR).zip(new.chunks(SECTOR)) {
                    if self.random.below(2) == 0 {
                        old.copy_from_slice(new);
                    }
                }
                content.blocks.insert(block, torn);
            }
        }
    }

    /// What the system does by itself, some time: writes a block back as it is now.
    fn write_back(&mut self, inode: Inode, block: u64) {
        let needs = self.inodes.get(&inode).and_then(|used| used.dirty.get(&block));
        if needs.is_some_and(|needs| *needs <= self.committed) {
            self.store(inode, block);
        }
    }

    fn store(&mut self, inode: Inode, block: u64) {
        let Some(bytes) = self.live.content(inode).and_then(|content| content.blocks.get(&block)) else { return };
        let bytes = bytes.clone();
        if let Some(content) = self.stable.content_mut(inode) {
            content.blocks.insert(block, bytes);
        }
    }

    fn perform(&mut self, op: Op) {
        self.changes += 1;
        let sequence = self.committed + self.journal.len() as u64 + 1;
        for inode in self.live.touches(&op) {
            self.inodes.entry(inode).or_default().touched = sequence;
        }
        if let Op::Create { inode, .. } | Op::Size { inode, .. } | Op::Zero { inode, .. } = op {
            self.inodes.entry(inode).or_default().shaped = sequence;
        }
        if let Some(orphan) = self.live.apply(&op)
            && self.inodes.get(&orphan).is_none_or(|used| used.opens == 0)
        {
            self.forget(orphan);
        }
        self.journal.push_back(op);
    }

    fn commit(&mut self, upto: Sequence) {
        while self.committed < upto {
            let Some(op) = self.journal.pop_front() else { return };
            self.committed += 1;
            if let Some(orphan) = self.stable.apply(&op) {
                self.stable.reap(orphan);
            }
        }
    }

    fn forget(&mut self, inode: Inode) {
        self.live.reap(inode);
        self.inodes.remove(&inode);
    }

    fn content(&self, inode: Inode) -> Result<&Content, Errno> {
        match &self.node(inode)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Directory(_) => Err(Errno::ISDIR),
        }
    }

    fn check_free(&self, parent: Inode, name: &OsStr) -> Result<(), Errno> {
        match self.lookup(parent, name) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) if self.node(parent)?.links == 0 => Err(Errno::NOENT),
            Err(Errno::NOENT) => check_name(name),
            Err(error) => Err(error),
        }
    }
}

fn check_name(name: &OsStr) -> Result<(), Errno> {
    if name.len() > NAME_MAX { Err(Errno::NAMETOOLONG) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const SEEDS: std::ops::Range<u64> = 0..200;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    fn file(disk: &mut Disk) -> Inode {
        disk.create(ROOT, name("f"), false, 0o600).unwrap()
    }

    fn all(disk: &Disk, inode: Inode) -> Vec<u8> {
        disk.read(inode, 0, 1 << 20).unwrap()
    }

    /// What is there after a cut, for each of many seeds.
    fn outcomes<T: Ord>(make: impl Fn(&mut Disk), look: impl Fn(&Disk) -> T) -> BTreeSet<T> {
        let outcome = |seed| {
            let mut disk = Disk::new(seed);
            make(&mut disk);
            disk.cut(seed);
            look(&disk)
        };
        SEEDS.map(outcome).collect()
    }

    #[test]
    fn what_was_synced_is_there() {
        let found = outcomes(
            |disk| {
                let f = file(disk);
                disk.write(f, 100, &[7; 9000]).unwrap();
                disk.sync(f).unwrap();
            },
            |disk| all(disk, disk.lookup(ROOT, name("f")).unwrap()),
        );
        let expected: Vec<u8> = [vec![0; 100], vec![7; 9000]].concat();
        assert_eq!(found, BTreeSet::from([expected]));
    }

    #[test]
    fn an_overwrite_that_was_not_synced_is_old_or_new_in_each_sector() {
        let found = outcomes(
            |disk| {
                let f = file(disk);
                disk.write(f, 0, &[1; 2 * BLOCK as usize]).unwrap();
                disk.sync(f).unwrap();
                disk.write(f, 0, &[2; 2 * BLOCK as usize]).unwrap();
            },
            |disk| all(disk, disk.lookup(ROOT, name("f")).unwrap()),
        );
        let whole = |byte| move |block: &[u8]| block.iter().all(|found| *found == byte);
        let blocks = || found.iter().flat_map(|bytes| bytes.chunks(BLOCK as usize));
        assert!(blocks().any(whole(1)) && blocks().any(whole(2)), "both happen");
        assert!(blocks().any(|block| !whole(1)(block) && !whole(2)(block)), "blocks are torn");
        let sectors = found.iter().flat_map(|bytes| bytes.chunks(SECTOR));
        assert!(sectors.clone().all(|sector| whole(1)(sector) || whole(2)(sector)), "sectors are not");
        let mixed = found.iter().any(|bytes| whole(1)(&bytes[..4096]) && whole(2)(&bytes[4096..]));
        assert!(mixed, "each block has its own fate");
    }

    #[test]
    fn an_older_write_may_be_what_was_written_back() {
        let found = outcomes(
            |disk| {
                let f = file(disk);
                disk.write(f, 0, &[1; 512]).unwrap();
                disk.sync(f).unwrap();
                disk.write(f, 0, &[2; 512]).unwrap();
                disk.write(f, 0, &[3; 512]).unwrap();
            },
            |disk| all(disk, 2)[0],
        );
        assert_eq!(found, BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn names_survive_as_a_prefix_that_holds_what_was_synced() {
        let found = outcomes(
            |disk| {
                for text in ["a", "b"] {
                    disk.create(ROOT, name(text), false, 0o600).unwrap();
                }
                disk.sync(ROOT).unwrap();
                disk.rename((ROOT, name("a")), (ROOT, name("c")), true).unwrap();
                disk.remove(ROOT, name("b"), false).unwrap();
                disk.create(ROOT, name("d"), true, 0o700).unwrap();
            },
            |disk| disk.names(ROOT).unwrap().keys().map(|n| n.to_string_lossy().into_owned()).collect::<String>(),
        );
        let expected = ["ab", "bc", "c", "cd"].map(str::to_owned);
        assert_eq!(found, BTreeSet::from(expected));
    }

    #[test]
    fn the_sync_of_a_file_brings_along_all_names_before_its_last_change_and_none_after() {
        let found = outcomes(
            |disk| {
                disk.create(ROOT, name("before"), false, 0o600).unwrap();
                let f = file(disk);
                disk.create(ROOT, name("later"), false, 0o600).unwrap();
                disk.write(f, 0, b"").unwrap();
                disk.sync(f).unwrap();
            },
            |disk| disk.names(ROOT).unwrap().len(),
        );
        assert_eq!(found, BTreeSet::from([2, 3]));
    }

    #[test]
    fn a_new_file_may_come_back_empty_or_with_zeros_or_not_at_all() {
        let found = outcomes(
            |disk| {
                let f = file(disk);
                disk.write(f, 0, &[5; 4096]).unwrap();
            },
            |disk| match disk.lookup(ROOT, name("f")) {
                Ok(f) => match &all(disk, f)[..] {
                    [] => "empty",
                    bytes if bytes.iter().all(|byte| *byte == 0) => "zeros",
                    bytes if bytes.iter().all(|byte| *byte == 5) => "whole",
                    _ => "torn",
                },
                Err(_) => "none",
            },
        );
        assert_eq!(found, BTreeSet::from(["none", "empty", "zeros", "whole", "torn"]));
    }

    #[test]
    fn bytes_behind_a_cut_end_that_was_lost_are_the_old_ones() {
        let found = outcomes(
            |disk| {
                let f = file(disk);
                disk.write(f, 0, &[1; 8192]).unwrap();
                disk.sync(f).unwrap();
                disk.set_size(f, 0).unwrap();
                disk.write(f, 4096, &[2; 4096]).unwrap();
            },
            |disk| {
                let bytes = all(disk, 2);
                (bytes.len(), bytes.first().copied(), bytes.last().copied())
            },
        );
        // With the old size all is old; the new size of the write comes with the cut before it.
        for (size, first, last) in &found {
            match size {
                0 => {}
                8192 if *first == Some(1) => assert_eq!(*last, Some(1)),
                8192 => assert!(*first == Some(0) && (*last == Some(0) || *last == Some(2))),
                other => panic!("a size of {other}"),
            }
        }
        assert!(found.contains(&(8192, Some(1), Some(1))) && found.contains(&(8192, Some(0), Some(2))));
    }

    #[test]
    fn zeros_of_a_punched_hole_count_only_with_the_hole() {
        let found = outcomes(
            |disk| {
                let f = file(disk);
                disk.write(f, 0, &[1; 3 * BLOCK as usize]).unwrap();
                disk.sync(f).unwrap();
                disk.zero(f, BLOCK, 2 * BLOCK).unwrap();
                disk.write(f, BLOCK, &[2; BLOCK as usize]).unwrap();
            },
            |disk| all(disk, 2)[BLOCK as usize],
        );
        assert_eq!(found, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn zeroing_keeps_what_is_beside_the_range() {
        for (from, to) in [(10, 20), (10, 5000), (4096, 8192), (100, 12_000), (8192, 20_000)] {
            let mut disk = Disk::new(0);
            let f = file(&mut disk);
            disk.write(f, 0, &[1; 12_288]).unwrap();
            disk.zero(f, from, to).unwrap();
            let bytes = all(&disk, f);
            assert_eq!(bytes.len(), 12_288);
            let zeroed = |at: usize| (from..to).contains(&(at as u64));
            assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == u8::from(!zeroed(at))), "{from}..{to}");
        }
    }

    #[test]
    fn a_file_that_is_open_outlives_its_name_but_not_a_cut() {
        let mut disk = Disk::new(0);
        let f = file(&mut disk);
        disk.opened(f);
        disk.write(f, 0, b"held").unwrap();
        disk.remove(ROOT, name("f"), false).unwrap();
        assert_eq!(all(&disk, f), b"held");
        disk.sync(f).unwrap();
        disk.closed(f);
        assert_eq!(disk.read(f, 0, 1), Err(Errno::NOENT));
        let g = file(&mut disk);
        disk.opened(g);
        disk.remove(ROOT, name("f"), false).unwrap();
        disk.sync(ROOT).unwrap();
        disk.cut(1);
        assert_eq!(disk.node(g).map(|node| node.links), Err(Errno::NOENT));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut disk = Disk::new(0);
        let f = file(&mut disk);
        let d = disk.create(ROOT, name("d"), true, 0o700).unwrap();
        disk.create(d, name("x"), false, 0o600).unwrap();
        assert_eq!(disk.create(ROOT, name("f"), false, 0), Err(Errno::EXIST));
        assert_eq!(disk.create(f, name("x"), false, 0), Err(Errno::NOTDIR));
        assert_eq!(disk.remove(ROOT, name("d"), false), Err(Errno::ISDIR));
        assert_eq!(disk.remove(ROOT, name("d"), true), Err(Errno::NOTEMPTY));
        assert_eq!(disk.remove(ROOT, name("f"), true), Err(Errno::NOTDIR));
        assert_eq!(disk.rename((ROOT, name("f")), (ROOT, name("d")), true), Err(Errno::ISDIR));
        assert_eq!(disk.rename((d, name("x")), (ROOT, name("f")), false), Err(Errno::EXIST));
        assert_eq!(disk.link(d, ROOT, name("e")), Err(Errno::PERM));
        assert_eq!(disk.write(d, 0, b"x"), Err(Errno::ISDIR));
        assert_eq!(disk.seek(f, 0, false), Err(Errno::NXIO));
    }

    #[test]
    fn a_second_cut_starts_from_what_the_first_has_left() {
        let mut disk = Disk::new(3);
        let f = file(&mut disk);
        disk.write(f, 0, &[1; 4096]).unwrap();
        disk.sync(f).unwrap();
        for seed in 0..20 {
            disk.write(f, 0, &[seed as u8 + 2; 4096]).unwrap();
            disk.cut(seed);
            let left = all(&disk, f);
            disk.cut(seed + 1);
            assert_eq!(all(&disk, f), left, "nothing is in doubt any more");
        }
    }
}
