//! From inodes back to paths, for reports to people. Files know no parents, so this walks all names once.

use super::Namespace;
use crate::ids::{InodeId, ROOT};
use std::collections::{BTreeMap, BTreeSet};

/// Deeper than this no path is followed: then the tables contradict each other.
const DEEPEST: usize = 4096;

impl Namespace {
    /// One path of each inode that has one.
    pub fn paths_of(&self, wanted: &BTreeSet<InodeId>) -> BTreeMap<InodeId, Vec<u8>> {
        let mut names: BTreeMap<InodeId, (InodeId, Vec<u8>)> = BTreeMap::new();
        if wanted.is_empty() {
            return BTreeMap::new();
        }
        for (directory, name, inode) in self.entries() {
            if wanted.contains(&inode) {
                names.entry(inode).or_insert_with(|| (directory, name));
            }
        }
        let path = |(inode, (directory, name)): (InodeId, (InodeId, Vec<u8>))| {
            let mut parts = vec![name];
            let mut at = directory;
            while at != ROOT && parts.len() < DEEPEST {
                let parent = self.parent(at)?;
                parts.push(self.name_in(parent, at)?);
                at = parent;
            }
            let path: Vec<u8> = parts.iter().rev().flat_map(|part| [b"/", part.as_slice()].concat()).collect();
            Some((inode, path))
        };
        names.into_iter().filter_map(path).collect()
    }

    fn name_in(&self, directory: InodeId, inode: InodeId) -> Option<Vec<u8>> {
        let mut entries = self.dentries.table.range_of(directory.0, 0);
        entries.find(|(_, dentry)| dentry.inode == inode).map(|(_, dentry)| dentry.name)
    }
}
