//! A tree of files in memory, and the operations that change it.
//!
//! The same operations in the same order make the same tree. That is what a journal of a file system relies on, and [`super::Disk`],
//! which keeps one tree as programs see it and one as it is on stable storage.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

/// Bytes of a block: what is written and lost as one.
pub const BLOCK: u64 = 4096;
/// The inode of the uppermost directory.
pub const ROOT: Inode = 1;

/// The number of an inode; never used again.
pub type Inode = u64;
/// The bytes of a block, shared by the trees that hold the same.
pub type Block = Arc<[u8; BLOCK as usize]>;

/// A file or directory.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it holds.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Names of a file. A directory has one.
    pub links: u32,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Bytes.
    File(Content),
    /// Names.
    Directory(BTreeMap<OsString, Inode>),
}

/// The bytes of a file.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Its size in bytes.
    pub size: u64,
    /// Blocks that were written; the others are zeros.
    pub blocks: BTreeMap<u64, Block>,
}

/// A change that goes through the journal of a file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// A new file or directory.
    Create {
        /// Where.
        parent: Inode,
        /// Its name.
        name: OsString,
        /// Its inode, which is free.
        inode: Inode,
        /// Whether it is a directory.
        directory: bool,
        /// Permission bits.
        mode: u32,
    },
    /// Another name of a file.
    Link {
        /// The file.
        inode: Inode,
        /// Where.
        parent: Inode,
        /// The name.
        name: OsString,
    },
    /// A name goes, of a file or an empty directory.
    Remove {
        /// Where.
        parent: Inode,
        /// The name.
        name: OsString,
    },
    /// A name moves, over another one if there is one.
    Rename {
        /// From where.
        parent: Inode,
        /// The old name.
        name: OsString,
        /// To where.
        new_parent: Inode,
        /// The new name.
        new_name: OsString,
    },
    /// The size of a file; what is beyond a smaller one is gone.
    Size {
        /// The file.
        inode: Inode,
        /// Bytes.
        size: u64,
    },
    /// Whole blocks become zeros.
    Zero {
        /// The file.
        inode: Inode,
        /// The first block.
        from: u64,
        /// The block after the last.
        to: u64,
    },
    /// Permission bits.
    Mode {
        /// The file or directory.
        inode: Inode,
        /// The bits.
        mode: u32,
    },
}

/// Files and directories.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: HashMap<Inode, Node>,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node { kind: Kind::Directory(BTreeMap::new()), mode: 0o755, links: 1 };
        Self { nodes: HashMap::from([(ROOT, root)]) }
    }
}

impl Tree {
    /// A node, if there is one.
    pub fn node(&self, inode: Inode) -> Option<&Node> {
        self.nodes.get(&inode)
    }

    /// The names in a directory.
    pub fn names(&self, directory: Inode) -> Option<&BTreeMap<OsString, Inode>> {
        match &self.nodes.get(&directory)?.kind {
            Kind::Directory(names) => Some(names),
            Kind::File(_) => None,
        }
    }

    /// What a name in a directory stands for.
    pub fn lookup(&self, parent: Inode, name: &OsStr) -> Option<Inode> {
        self.names(parent)?.get(name).copied()
    }

    /// The bytes of a file.
    pub fn content(&self, inode: Inode) -> Option<&Content> {
        match &self.nodes.get(&inode)?.kind {
            Kind::File(content) => Some(content),
            Kind::Directory(_) => None,
        }
    }

    /// The bytes of a file, to change them.
    pub fn content_mut(&mut self, inode: Inode) -> Option<&mut Content> {
        match &mut self.nodes.get_mut(&inode)?.kind {
            Kind::File(content) => Some(content),
            Kind::Directory(_) => None,
        }
    }

    /// The inodes that an operation touches: an fsync of any of them makes it durable.
    pub fn touches(&self, op: &Op) -> Vec<Inode> {
        match op {
            Op::Create { parent, inode, .. } | Op::Link { parent, inode, .. } => vec![*parent, *inode],
            Op::Remove { parent, name } => std::iter::once(*parent).chain(self.lookup(*parent, name)).collect(),
            Op::Rename { parent, name, new_parent, new_name } => [*parent, *new_parent]
                .into_iter()
                .chain(self.lookup(*parent, name))
                .chain(self.lookup(*new_parent, new_name))
                .collect(),
            Op::Size { inode, .. } | Op::Zero { inode, .. } | Op::Mode { inode, .. } => vec![*inode],
        }
    }

    /// Carries an operation out, which the caller has checked; what is about an inode that is gone does nothing. Answers the inode
    /// that has lost its last name by it: it stays until it is taken by `reap`.
    pub fn apply(&mut self, op: &Op) -> Option<Inode> {
        match op {
            Op::Create { parent, name, inode, directory, mode } => {
                let kind = if *directory { Kind::Directory(BTreeMap::new()) } else { Kind::File(Content::default()) };
                self.nodes.insert(*inode, Node { kind, mode: *mode, links: 1 });
                self.put(*parent, name, *inode)
            }
            Op::Link { inode, parent, name } => {
                self.nodes.get_mut(inode)?.links += 1;
                self.put(*parent, name, *inode)
            }
            Op::Remove { parent, name } => {
                let gone = self.take(*parent, name)?;
                self.unlink(gone)
            }
            Op::Rename { parent, name, new_parent, new_name } => {
                let moved = self.take(*parent, name)?;
                self.put(*new_parent, new_name, moved)
            }
            Op::Size { inode, size } => {
                self.content_mut(*inode)?.resize(*size);
                None
            }
            Op::Zero { inode, from, to } => {
                self.content_mut(*inode)?.blocks.retain(|block, _| !(*from..*to).contains(block));
                None
            }
            Op::Mode { inode, mode } => {
                self.nodes.get_mut(inode)?.mode = *mode;
                None
            }
        }
    }

    /// Takes a node away that has no name any more.
    pub fn reap(&mut self, inode: Inode) {
        if self.nodes.get(&inode).is_some_and(|node| node.links == 0) {
            self.nodes.remove(&inode);
        }
    }

    fn names_mut(&mut self, directory: Inode) -> Option<&mut BTreeMap<OsString, Inode>> {
        match &mut self.nodes.get_mut(&directory)?.kind {
            Kind::Directory(names) => Some(names),
            Kind::File(_) => None,
        }
    }

    fn take(&mut self, parent: Inode, name: &OsStr) -> Option<Inode> {
        self.names_mut(parent)?.remove(name)
    }

    fn put(&mut self, parent: Inode, name: &OsStr, inode: Inode) -> Option<Inode> {
        let replaced = self.names_mut(parent)?.insert(name.to_owned(), inode)?;
        self.unlink(replaced)
    }

    fn unlink(&mut self, inode: Inode) -> Option<Inode> {
        let node = self.nodes.get_mut(&inode)?;
        node.links = node.links.saturating_sub(1);
        (node.links == 0).then_some(inode)
    }
}

impl Content {
    /// Fills `out` from an offset; answers how many bytes lie before the end of the file.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let length = self.size.saturating_sub(offset).min(out.len() as u64) as usize;
        let out = &mut out[..length];
        for (block, range, at) in pieces(offset, length) {
            match self.blocks.get(&block) {
                Some(bytes) => out[at..at + range.len()].copy_from_slice(&bytes[range]),
                None => out[at..at + range.len()].fill(0),
            }
        }
        length
    }

    /// Writes bytes; the size is not changed.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (block, range, at) in pieces(offset, bytes.len()) {
            let held = self.blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK as usize]));
            let length = range.len();
            Arc::make_mut(held)[range].copy_from_slice(&bytes[at..at + length]);
        }
    }

    /// The first offset from `offset` on that is data, or a hole; the end of the file is a hole.
    pub fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let mut block = offset / BLOCK;
        while block * BLOCK < self.size && self.blocks.contains_key(&block) == hole {
            block += 1;
        }
        let found = (block * BLOCK).max(offset);
        if found < self.size { Some(found) } else { hole.then_some(self.size) }
    }

    /// Drops what lies beyond the end: whole blocks, and the tail of the last one.
    pub fn trim(&mut self) {
        let (last, within) = (self.size / BLOCK, (self.size % BLOCK) as usize);
        self.blocks.split_off(&(last + u64::from(within > 0)));
        if let Some(bytes) = self.blocks.get_mut(&last) {
            Arc::make_mut(bytes)[within..].fill(0);
        }
    }

    fn resize(&mut self, size: u64) {
        let shrinks = size < self.size;
        self.size = size;
        if shrinks {
            self.trim();
        }
    }
}

/// Cuts a range of bytes at the borders of blocks: the block, the range in it, where in the bytes that is.
pub fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = done;
        let (block, from) = ((offset + at as u64) / BLOCK, ((offset + at as u64) % BLOCK) as usize);
        let to = (from + length - at).min(BLOCK as usize);
        done += to - from;
        Some((block, from..to, at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(parent: Inode, name: &str, inode: Inode, directory: bool) -> Op {
        Op::Create { parent, name: name.into(), inode, directory, mode: 0o600 }
    }

    fn file(tree: &mut Tree) -> &mut Content {
        tree.apply(&create(ROOT, "f", 2, false));
        tree.content_mut(2).unwrap()
    }

    #[test]
    fn a_rename_over_a_file_takes_its_last_name() {
        let mut tree = Tree::default();
        for op in [create(ROOT, "d", 2, true), create(2, "new", 3, false), create(ROOT, "old", 4, false)] {
            assert_eq!(tree.apply(&op), None);
        }
        let rename = Op::Rename { parent: 2, name: "new".into(), new_parent: ROOT, new_name: "old".into() };
        assert_eq!(tree.touches(&rename), [2, ROOT, 3, 4]);
        assert_eq!(tree.apply(&rename), Some(4));
        assert!(tree.node(4).is_some(), "who has it open still sees it");
        tree.reap(4);
        assert!(tree.node(4).is_none());
        assert_eq!((tree.lookup(ROOT, "old".as_ref()), tree.lookup(2, "new".as_ref())), (Some(3), None));
    }

    #[test]
    fn a_file_goes_with_its_last_link() {
        let mut tree = Tree::default();
        tree.apply(&create(ROOT, "a", 2, false));
        tree.apply(&Op::Link { inode: 2, parent: ROOT, name: "b".into() });
        assert_eq!(tree.apply(&Op::Remove { parent: ROOT, name: "a".into() }), None);
        assert_eq!(tree.apply(&Op::Remove { parent: ROOT, name: "b".into() }), Some(2));
    }

    #[test]
    fn bytes_are_read_as_written_across_blocks() {
        let mut tree = Tree::default();
        let content = file(&mut tree);
        content.size = 3 * BLOCK;
        let bytes: Vec<u8> = (0..6000).map(|n| (n % 251) as u8 + 1).collect();
        content.write(4000, &bytes);
        let mut found = vec![7; 3 * BLOCK as usize + 5];
        assert_eq!(content.read(0, &mut found), 3 * BLOCK as usize);
        assert!(found[..4000].iter().all(|byte| *byte == 0));
        assert_eq!(found[4000..10_000], bytes);
        assert!(found[10_000..3 * BLOCK as usize].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_cut_off_reads_as_zeros_when_the_file_grows_again() {
        let mut tree = Tree::default();
        file(&mut tree).size = 3 * BLOCK;
        tree.content_mut(2).unwrap().write(0, &[9; 3 * BLOCK as usize]);
        for size in [BLOCK + 10, 3 * BLOCK] {
            tree.apply(&Op::Size { inode: 2, size });
        }
        let mut found = vec![1; 3 * BLOCK as usize];
        tree.content(2).unwrap().read(0, &mut found);
        let kept = BLOCK as usize + 10;
        assert!(found[..kept].iter().all(|byte| *byte == 9) && found[kept..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn data_and_holes_are_found() {
        let mut tree = Tree::default();
        let content = file(&mut tree);
        content.size = 4 * BLOCK + 1;
        content.write(2 * BLOCK, &[1; BLOCK as usize]);
        assert_eq!(content.seek(5, false), Some(2 * BLOCK));
        assert_eq!(content.seek(2 * BLOCK + 7, false), Some(2 * BLOCK + 7));
        assert_eq!(content.seek(2 * BLOCK + 7, true), Some(3 * BLOCK));
        assert_eq!(content.seek(3 * BLOCK, false), None);
        content.write(4 * BLOCK, &[1]);
        assert_eq!(content.seek(4 * BLOCK, true), Some(4 * BLOCK + 1), "the end is a hole");
        assert_eq!(content.seek(4 * BLOCK + 1, true), None);
    }
}
