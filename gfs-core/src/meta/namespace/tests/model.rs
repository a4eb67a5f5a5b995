//! Random operations on the namespace and on a plain model give equal answers and equal trees.

use super::checkpoint::{bytes_of, reread};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// An inode of the model.
#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    directory: bool,
    names: BTreeMap<String, u64>,
    /// Whether anything names it.
    links: u32,
}

#[derive(Clone, Debug)]
struct Model {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

/// What happened to a name: the inode that it named, and whether that lost its last one.
type Lost = Option<(u64, bool)>;

impl Model {
    fn new() -> Self {
        let root = Node { directory: true, ..Node::default() };
        Self { nodes: BTreeMap::from([(1, root)]), next: 2 }
    }

    fn names(&self, directory: u64) -> Result<&BTreeMap<String, u64>, Refusal> {
        let node = self.nodes.get(&directory).ok_or(Refusal::Stale)?;
        if node.directory { Ok(&node.names) } else { Err(Refusal::NotDirectory) }
    }

    /// A directory's parent, found the slow way.
    fn parent(&self, inode: u64) -> Option<u64> {
        self.nodes.iter().find(|(_, node)| node.names.values().any(|child| *child == inode)).map(|(id, _)| *id)
    }

    fn dead(&self, directory: u64) -> bool {
        directory != 1 && self.parent(directory).is_none()
    }

    fn within(&self, mut inode: u64, ancestor: u64) -> bool {
        while inode != ancestor {
            match self.parent(inode) {
                Some(parent) => inode = parent,
                None => return false,
            }
        }
        true
    }

    fn put(&mut self, directory: u64, name: &str, inode: u64) {
        if let Some(node) = self.nodes.get_mut(&directory) {
            node.names.insert(name.to_owned(), inode);
        }
    }

    fn cut(&mut self, directory: u64, name: &str) -> Option<u64> {
        self.nodes.get_mut(&directory)?.names.remove(name)
    }

    fn create(&mut self, parent: u64, name: &str, directory: bool, exclusive: bool) -> Result<(u64, bool), Refusal> {
        if let Some(&found) = self.names(parent)?.get(name) {
            let opens = !exclusive && !directory && !self.nodes[&found].directory;
            return if opens { Ok((found, false)) } else { Err(Refusal::Exists) };
        }
        if self.dead(parent) {
            return Err(Refusal::NotFound);
        }
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, Node { directory, names: BTreeMap::new(), links: 1 });
        self.put(parent, name, id);
        Ok((id, true))
    }

    fn link(&mut self, inode: u64, parent: u64, name: &str) -> Result<u32, Refusal> {
        let names = self.names(parent)?;
        let node = self.nodes.get(&inode).ok_or(Refusal::Stale)?;
        match () {
            () if names.contains_key(name) => Err(Refusal::Exists),
            () if self.dead(parent) => Err(Refusal::NotFound),
            () if node.directory => Err(Refusal::NotPermitted),
            () if node.links == 0 => Err(Refusal::NotFound),
            () => {
                let links = node.links + 1;
                self.nodes.entry(inode).and_modify(|node| node.links = links);
                self.put(parent, name, inode);
                Ok(links)
            }
        }
    }

    fn lose(&mut self, inode: u64) -> Lost {
        let node = self.nodes.get_mut(&inode)?;
        node.links -= 1;
        Some((inode, node.links == 0))
    }

    fn remove(&mut self, parent: u64, name: &str, directory: bool) -> Result<Lost, Refusal> {
        let found = *self.names(parent)?.get(name).ok_or(Refusal::NotFound)?;
        let node = &self.nodes[&found];
        match (node.directory, directory) {
            (true, false) => return Err(Refusal::IsDirectory),
            (false, true) => return Err(Refusal::NotDirectory),
            _ => {}
        }
        if !node.names.is_empty() {
            return Err(Refusal::NotEmpty);
        }
        self.cut(parent, name);
        Ok(self.lose(found))
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), mode: RenameMode) -> Result<Lost, Refusal> {
        let (sources, targets) = (self.names(from.0)?, self.names(to.0)?);
        let source = *sources.get(from.1).ok_or(Refusal::NotFound)?;
        let target = targets.get(to.1).copied();
        let swap = mode == RenameMode::Exchange;
        if mode == RenameMode::NoReplace && target.is_some() {
            return Err(Refusal::Exists);
        }
        if swap && target.is_none() {
            return Err(Refusal::NotFound);
        }
        if self.within(to.0, source) {
            return Err(Refusal::Invalid);
        }
        if target.is_some_and(|target| self.within(from.0, target)) {
            return Err(if swap { Refusal::Invalid } else { Refusal::NotEmpty });
        }
        if target == Some(source) {
            return Ok(None);
        }
        let Some(target) = target else {
            if self.dead(to.0) {
                return Err(Refusal::NotFound);
            }
            self.cut(from.0, from.1);
            self.put(to.0, to.1, source);
            return Ok(None);
        };
        if swap {
            self.put(from.0, from.1, target);
            self.put(to.0, to.1, source);
            return Ok(None);
        }
        match (self.nodes[&source].directory, self.nodes[&target].directory) {
            (true, false) => return Err(Refusal::NotDirectory),
            (false, true) => return Err(Refusal::IsDirectory),
            _ if !self.nodes[&target].names.is_empty() => return Err(Refusal::NotEmpty),
            _ => {}
        }
        self.cut(from.0, from.1);
        self.put(to.0, to.1, source);
        Ok(self.lose(target))
    }

    fn reap(&mut self, inode: u64) -> bool {
        let orphan = inode != 1 && self.nodes.get(&inode).is_some_and(|node| node.links == 0);
        orphan && self.nodes.remove(&inode).is_some()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create { parent: u64, name: u8, directory: bool, exclusive: bool },
    Link { inode: u64, parent: u64, name: u8 },
    Remove { parent: u64, name: u8, directory: bool },
    Rename { from: (u64, u8), to: (u64, u8), mode: RenameMode },
    Reap { inode: u64 },
    Freeze,
}

fn step() -> impl Strategy<Value = Step> {
    // Few numbers and names, so that they meet; the root more often than any other.
    let inode = || prop_oneof![1 => Just(1_u64), 4 => 1..24_u64];
    let name = || 0..7_u8;
    let mode = prop_oneof![
        3 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        1 => Just(RenameMode::Exchange)
    ];
    prop_oneof![
        6 => (inode(), name(), any::<bool>(), any::<bool>())
            .prop_map(|(parent, name, directory, exclusive)| Step::Create { parent, name, directory, exclusive }),
        2 => (inode(), inode(), name()).prop_map(|(inode, parent, name)| Step::Link { inode, parent, name }),
        3 => (inode(), name(), any::<bool>())
            .prop_map(|(parent, name, directory)| Step::Remove { parent, name, directory }),
        5 => (inode(), name(), inode(), name(), mode)
            .prop_map(|(a, b, c, d, mode)| Step::Rename { from: (a, b), to: (c, d), mode }),
        1 => inode().prop_map(|inode| Step::Reap { inode }),
        1 => Just(Step::Freeze),
    ]
}

fn spelled(name: u8) -> String {
    format!("name-{name}")
}

/// Does a step on both and says the two answers, spelled alike.
fn both(world: &mut World, model: &mut Model, step: &Step) -> (String, String) {
    let lost = |unlinked: Unlinked| Some((unlinked.inode.0, unlinked.orphaned));
    match step {
        Step::Create { parent, name, directory, exclusive } => {
            let (name, now) = (spelled(*name), world.tick());
            let kind = if *directory { NodeKind::Directory } else { NodeKind::File };
            let args = CreateArgs {
                parent: InodeId(*parent),
                name: name.as_bytes(),
                kind: &kind,
                mode: 0o755,
                umask: 0,
                exclusive: *exclusive,
            };
            let real = world.space.create(&kernel(), args, now).map(|made| (made.attributes.inode.0, made.created));
            (format!("{real:?}"), format!("{:?}", model.create(*parent, &name, *directory, *exclusive)))
        }
        Step::Link { inode, parent, name } => {
            let real = world.link(&kernel(), InodeId(*inode), InodeId(*parent), &spelled(*name));
            (format!("{real:?}"), format!("{:?}", model.link(*inode, *parent, &spelled(*name))))
        }
        Step::Remove { parent, name, directory } => {
            let (name, id) = (spelled(*name), InodeId(*parent));
            let real = if *directory { world.rmdir(&kernel(), id, &name) } else { world.unlink(&kernel(), id, &name) };
            (format!("{:?}", real.map(lost)), format!("{:?}", model.remove(*parent, &name, *directory)))
        }
        Step::Rename { from, to, mode } => {
            let (old, new) = (spelled(from.1), spelled(to.1));
            let real = world.rename(&kernel(), (InodeId(from.0), &old), (InodeId(to.0), &new), *mode);
            let real = real.map(|renamed| renamed.replaced.and_then(lost));
            (format!("{real:?}"), format!("{:?}", model.rename((from.0, &old), (to.0, &new), *mode)))
        }
        Step::Reap { inode } => {
            let real = world.space.reap(InodeId(*inode)).is_some();
            (format!("{real:?}"), format!("{:?}", model.reap(*inode)))
        }
        Step::Freeze => Default::default(),
    }
}

/// The tree as the model would have it, read through listings of `limit` names.
fn listed(space: &Namespace, limit: u32) -> BTreeMap<u64, Node> {
    let mut nodes = BTreeMap::new();
    for attributes in space.inodes(InodeId(0)) {
        let directory = attributes.file_type == FileType::Directory;
        let mut node = Node { directory, ..Node::default() };
        node.links = if directory { u32::from(attributes.links > 0) } else { attributes.links };
        let (mut cookie, mut end) = (0, !directory);
        while !end {
            let page = space.read_directory(&kernel(), attributes.inode, cookie, limit).expect("a page");
            for entry in page.entries {
                cookie = entry.cookie;
                node.names.insert(String::from_utf8(entry.name).expect("a name"), entry.attributes.inode.0);
            }
            end = page.end;
        }
        nodes.insert(attributes.inode.0, node);
    }
    // The model keeps no name for the root.
    nodes.entry(1).and_modify(|root| root.links = 0);
    nodes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_operations_agree_with_the_model(steps in prop::collection::vec(step(), 1..250)) {
        let (mut world, mut model) = (World::new(), Model::new());
        let mut frozen: Option<(Namespace, Model, u64)> = None;
        for step in &steps {
            let hash = world.space.hash();
            let (real, expected) = both(&mut world, &mut model, step);
            prop_assert_eq!(&real, &expected, "{:?}", step);
            if real.starts_with("Err") {
                prop_assert_eq!(world.space.hash(), hash, "{:?} was refused and left a trace", step);
            }
            if matches!(step, Step::Freeze) {
                frozen = Some((world.space.clone(), model.clone(), hash));
            }
        }
        prop_assert_eq!(listed(&world.space, 3), model.nodes);
        prop_assert_eq!(world.space.verify(9), []);
        let again = reread(&bytes_of(&world.space), 100);
        prop_assert_eq!(again.map(|again| again.hash()), Ok(world.space.hash()));
        if let Some((space, model, hash)) = frozen {
            prop_assert_eq!(space.hash(), hash);
            prop_assert_eq!(listed(&space, 100), model.nodes);
        }
    }
}
