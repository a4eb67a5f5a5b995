//! The tree above the leaves: a B+tree (Comer, "The Ubiquitous B-Tree", 1979) whose nodes are shared between
//! frozen copies and copied when they are changed while shared.
//!
//! All leaves are at one depth. Underfull nodes are merged where the result leaves room, and never borrow from
//! a neighbour; an empty node is removed.

use super::leaf::{Cursor, Key, Leaf};
use std::sync::Arc;

/// A leaf above this many bytes is split.
pub const LEAF_MAX: usize = 1024;
/// A leaf below this is merged with a neighbour if both fit `LEAF_MERGED`.
const LEAF_MIN: usize = 384;
const LEAF_MERGED: usize = 832;
/// A branch with more children is split.
pub const BRANCH_MAX: usize = 64;
const BRANCH_MIN: usize = 24;
const BRANCH_MERGED: usize = 52;

/// A node.
#[derive(Clone, Debug)]
pub enum Node {
    /// Entries.
    Leaf(Leaf),
    /// Subtrees in order.
    Branch(Vec<Child>),
}

/// A subtree and the lowest key that belongs into it (of the first one: anything below, too).
#[derive(Clone, Debug)]
pub struct Child {
    /// No key below it is in the subtree.
    pub low: Key,
    /// The subtree.
    pub node: Arc<Node>,
}

/// Outcome of `insert`.
pub struct Inserted {
    /// There was a value before.
    pub replaced: bool,
    /// A new right neighbour of the node.
    pub split: Option<Child>,
    /// The entry is the last one of the node.
    last: bool,
}

fn position(children: &[Child], key: Key) -> usize {
    children.partition_point(|child| child.low <= key).saturating_sub(1)
}

/// The value at `key`.
pub fn get(mut node: &Node, key: Key) -> Option<&[u8]> {
    loop {
        match node {
            Node::Leaf(leaf) => return leaf.get(key),
            Node::Branch(children) => node = &children[position(children, key)].node,
        }
    }
}

/// Sets the value at `key`.
pub fn insert(node: &mut Arc<Node>, key: Key, value: &[u8]) -> Inserted {
    match Arc::make_mut(node) {
        Node::Leaf(leaf) => {
            let put = leaf.put(key, value);
            let upper = if leaf.len() > LEAF_MAX { leaf.split(put.last && !put.replaced) } else { None };
            let split = upper.map(|(low, upper)| Child { low, node: Arc::new(Node::Leaf(upper)) });
            Inserted { replaced: put.replaced, split, last: put.last }
        }
        Node::Branch(children) => {
            let at = position(children, key);
            let below = insert(&mut children[at].node, key, value);
            let last = below.last && at + 1 == children.len();
            let mut split = None;
            if let Some(child) = below.split {
                if children.len() == children.capacity() {
                    children.reserve_exact(8);
                }
                children.insert(at + 1, child);
                if children.len() > BRANCH_MAX {
                    let cut = if last { children.len() - 1 } else { children.len() / 2 };
                    let upper = children.split_off(cut);
                    children.shrink_to_fit();
                    split = Some(Child { low: upper[0].low, node: Arc::new(Node::Branch(upper)) });
                }
            }
            Inserted { replaced: below.replaced, split, last }
        }
    }
}

/// Removes `key`, which must be there.
pub fn remove(node: &mut Arc<Node>, key: Key) {
    match Arc::make_mut(node) {
        Node::Leaf(leaf) => leaf.remove(key),
        Node::Branch(children) => {
            let at = position(children, key);
            remove(&mut children[at].node, key);
            tidy(children, at);
        }
    }
}

/// Removes child `at` when it is empty, and merges it with a neighbour when it is small.
fn tidy(children: &mut Vec<Child>, at: usize) {
    let small = match &*children[at].node {
        Node::Leaf(leaf) if leaf.len() == 0 => {
            children.remove(at);
            return;
        }
        Node::Branch(below) if below.is_empty() => {
            children.remove(at);
            return;
        }
        Node::Leaf(leaf) => leaf.len() < LEAF_MIN,
        Node::Branch(below) => below.len() < BRANCH_MIN,
    };
    if !small {
        return;
    }
    for left in [at.wrapping_sub(1), at] {
        if left != usize::MAX && left + 1 < children.len() && fit(&children[left].node, &children[left + 1].node) {
            let upper = children.remove(left + 1);
            merge(Arc::make_mut(&mut children[left].node), &upper.node);
            return;
        }
    }
}

fn fit(left: &Node, right: &Node) -> bool {
    match (left, right) {
        (Node::Leaf(left), Node::Leaf(right)) => left.len() + right.len() <= LEAF_MERGED,
        (Node::Branch(left), Node::Branch(right)) => left.len() + right.len() <= BRANCH_MERGED,
        _ => false,
    }
}

fn merge(left: &mut Node, right: &Node) {
    match (left, right) {
        (Node::Leaf(left), Node::Leaf(right)) => left.append(right),
        (Node::Branch(left), Node::Branch(right)) => {
            left.reserve_exact(right.len());
            left.extend_from_slice(right);
        }
        (left, right) => unreachable!("neighbours of different depth: {left:?}, {right:?}"),
    }
}

/// Calls `visit` with each leaf in order; stops at the first error.
pub fn leaves<'a, E>(node: &'a Node, visit: &mut dyn FnMut(&'a Leaf) -> Result<(), E>) -> Result<(), E> {
    match node {
        Node::Leaf(leaf) => visit(leaf),
        Node::Branch(children) => children.iter().try_for_each(|child| leaves(&child.node, visit)),
    }
}

/// Heap bytes below and with `node`, without the allocator's own.
pub fn memory(node: &Node) -> u64 {
    // The node in its `Arc`, with two counts.
    let own = size_of::<Node>() + 2 * size_of::<usize>();
    match node {
        Node::Leaf(leaf) => (own + leaf.capacity()) as u64,
        Node::Branch(children) => {
            let below: u64 = children.iter().map(|child| memory(&child.node)).sum();
            below + (own + children.capacity() * size_of::<Child>()) as u64
        }
    }
}

/// Builds a tree from leaves that are in order and not empty.
pub fn build(leaves: Vec<Leaf>) -> Arc<Node> {
    let mut level: Vec<Child> = leaves
        .into_iter()
        .filter_map(|leaf| Some(Child { low: leaf.first()?, node: Arc::new(Node::Leaf(leaf)) }))
        .collect();
    while level.len() > 1 {
        let mut above = Vec::with_capacity(level.len() / BRANCH_MERGED + 1);
        let mut rest = level.into_iter().peekable();
        while let Some(first) = rest.peek() {
            let low = first.low;
            let children: Vec<Child> = rest.by_ref().take(BRANCH_MERGED).collect();
            above.push(Child { low, node: Arc::new(Node::Branch(children)) });
        }
        level = above;
    }
    level.pop().map_or_else(|| Arc::new(Node::Leaf(Leaf::default())), |child| child.node)
}

/// Reads entries in order.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    /// Children still to visit, of each level, the lowest last.
    above: Vec<std::slice::Iter<'a, Child>>,
    leaf: Cursor<'a>,
}

impl<'a> Entries<'a> {
    /// From the first entry not below `key`.
    pub fn from(mut node: &'a Node, key: Key) -> Self {
        let mut above = Vec::new();
        loop {
            match node {
                Node::Leaf(leaf) => return Self { above, leaf: leaf.cursor(key) },
                Node::Branch(children) => {
                    let at = position(children, key);
                    above.push(children[at + 1..].iter());
                    node = &children[at].node;
                }
            }
        }
    }

    fn next_leaf(&mut self) -> Option<()> {
        let mut node = loop {
            match self.above.last_mut()?.next() {
                Some(child) => break &*child.node,
                None => self.above.pop(),
            };
        };
        loop {
            match node {
                Node::Leaf(leaf) => {
                    self.leaf = leaf.cursor((0, 0));
                    return Some(());
                }
                Node::Branch(children) => {
                    let (first, rest) = children.split_first()?;
                    self.above.push(rest.iter());
                    node = &first.node;
                }
            }
        }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (Key, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(entry);
            }
            self.next_leaf()?;
        }
    }
}
