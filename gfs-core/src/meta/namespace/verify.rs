//! Checks that the tables agree with each other: what `gfs fsck` asks of the master, and what tests assert.

use super::acl;
use super::inode::{ACCESS_ACL, DEFAULT_ACL, Inode, XATTRS};
use super::{Counts, Namespace};
use crate::ids::{InodeId, ROOT};
use crate::meta::request::FileType;
use std::collections::BTreeMap;

/// A contradiction between tables.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Inconsistency {
    /// A name in something that is not there or is not a directory.
    #[error("a name in {directory}, which is no directory")]
    NoDirectory {
        /// The number that the name is listed under.
        directory: InodeId,
    },
    /// A name of nothing.
    #[error("a name in {directory} names {inode}, which does not exist")]
    Dangling {
        /// The directory.
        directory: InodeId,
        /// What is missing.
        inode: InodeId,
    },
    /// A directory with two names, or whose `..` is not where its name is.
    #[error("directory {inode} is in {directory} but its parent is {parent}, or it has two names")]
    WrongParent {
        /// The directory.
        inode: InodeId,
        /// Where its name is.
        directory: InodeId,
        /// What its `..` says.
        parent: InodeId,
    },
    /// The link count is not what the names say.
    #[error("inode {inode} has {found} links, its names say {expected}")]
    Links {
        /// The inode.
        inode: InodeId,
        /// Recorded.
        found: u32,
        /// Counted.
        expected: u32,
    },
    /// The number of names is not what a directory says.
    #[error("directory {inode} says {found} names and has {expected}")]
    Entries {
        /// The directory.
        inode: InodeId,
        /// Recorded.
        found: u64,
        /// Counted.
        expected: u64,
    },
    /// An inode without names is not among the orphans, or one with names is.
    #[error("inode {inode} and the list of orphans disagree")]
    Orphan {
        /// The inode.
        inode: InodeId,
    },
    /// The flags for attributes and ACLs are not what the attributes say.
    #[error("the attribute flags of inode {inode} are wrong")]
    Flags {
        /// The inode.
        inode: InodeId,
    },
    /// A symbolic link without its target, or a target without its link.
    #[error("inode {inode} and its link target disagree")]
    LinkTarget {
        /// The inode.
        inode: InodeId,
    },
    /// The totals are not what the tables say.
    #[error("counts are {found:?}, the tables say {expected:?}")]
    Totals {
        /// Kept.
        found: Box<Counts>,
        /// Counted.
        expected: Box<Counts>,
    },
}

/// What the names say of an inode.
#[derive(Default)]
struct Tally {
    names: u32,
    subdirectories: u32,
    entries: u64,
}

impl Namespace {
    /// Walks everything and collects contradictions, at most `limit`.
    pub fn verify(&self, limit: usize) -> Vec<Inconsistency> {
        let mut found = Vec::new();
        let tallies = self.tally(&mut found);
        let mut totals = Counts { entries: self.dentries.table.len(), ..Counts::default() };
        let mut bytes = 0_u128;
        for ((number, _), inode) in self.inodes.range((0, 0)) {
            self.verify_inode(InodeId(number), &inode, tallies.get(&number), &mut found);
            totals.inodes += 1;
            totals.files += u64::from(inode.file_type == FileType::File);
            totals.directories += u64::from(inode.is_directory());
            bytes += if inode.file_type == FileType::File { u128::from(inode.size) } else { 0 };
        }
        totals.logical_bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.verify_hangers(&mut found);
        if totals != self.counts() {
            found.push(Inconsistency::Totals { found: Box::new(self.counts()), expected: Box::new(totals) });
        }
        found.truncate(limit);
        found
    }

    fn tally(&self, found: &mut Vec<Inconsistency>) -> BTreeMap<u64, Tally> {
        let mut tallies: BTreeMap<u64, Tally> = BTreeMap::new();
        for (directory, _, inode) in self.entries() {
            tallies.entry(directory.0).or_default().entries += 1;
            let Ok(target) = self.load(inode) else {
                found.push(Inconsistency::Dangling { directory, inode });
                continue;
            };
            let named = tallies.entry(inode.0).or_default();
            named.names += 1;
            if target.is_directory() {
                if named.names > 1 || target.parent != directory {
                    found.push(Inconsistency::WrongParent { inode, directory, parent: target.parent });
                }
                tallies.entry(directory.0).or_default().subdirectories += 1;
            }
        }
        for &number in tallies.keys() {
            let directory = InodeId(number);
            if tallies[&number].entries > 0 && self.load_directory(directory).is_err() {
                found.push(Inconsistency::NoDirectory { directory });
            }
        }
        tallies
    }

    fn verify_inode(&self, id: InodeId, inode: &Inode, tally: Option<&Tally>, found: &mut Vec<Inconsistency>) {
        let none = Tally::default();
        let tally = tally.unwrap_or(&none);
        let named = tally.names > 0 || id == ROOT;
        let expected = match (inode.is_directory(), named) {
            (true, true) => 2 + tally.subdirectories,
            (true, false) => 0,
            (false, _) => tally.names,
        };
        if inode.links != expected {
            found.push(Inconsistency::Links { inode: id, found: inode.links, expected });
        }
        if inode.entries != tally.entries {
            found.push(Inconsistency::Entries { inode: id, found: inode.entries, expected: tally.entries });
        }
        if self.is_orphan(id) == named {
            found.push(Inconsistency::Orphan { inode: id });
        }
        let flag = |present: bool, flag: u8| if present { flag } else { 0 };
        let has = |name| self.xattrs.find(id.0, name).is_some();
        let flags = flag(has(acl::ACCESS), ACCESS_ACL)
            | flag(has(acl::DEFAULT), DEFAULT_ACL)
            | flag(!self.xattrs.is_empty(id.0), XATTRS);
        if inode.flags != flags {
            found.push(Inconsistency::Flags { inode: id });
        }
        let target = self.targets.get((id.0, 0)).map(|target| target.len() as u64);
        let wanted = (inode.file_type == FileType::Symlink).then_some(inode.size);
        if target != wanted {
            found.push(Inconsistency::LinkTarget { inode: id });
        }
    }

    /// What hangs on inodes that are not there.
    fn verify_hangers(&self, found: &mut Vec<Inconsistency>) {
        let missing = |number: u64| !self.inodes.contains((number, 0));
        for ((number, _), _) in self.xattrs.table.range_bytes((0, 0)).filter(|(key, _)| missing(key.0)) {
            found.push(Inconsistency::Flags { inode: InodeId(number) });
        }
        for ((number, _), _) in self.targets.range_bytes((0, 0)).filter(|(key, _)| missing(key.0)) {
            found.push(Inconsistency::LinkTarget { inode: InodeId(number) });
        }
        for inode in self.orphans().filter(|inode| missing(inode.0)) {
            found.push(Inconsistency::Orphan { inode });
        }
    }
}
