//! Two mounts that cache names, attributes and open files, against a model: every call's effect is seen on the other mount by the next call.

use gfs_core::splitmix::SplitMix64;
use gfs_e2e::{Cluster, Options};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Directories: so many that most are left alone for long enough to be cached.
const DIRECTORIES: u64 = 60;
/// Names in each.
const NAMES: u64 = 4;
/// Calls.
const STEPS: u64 = 1_500;
/// Files held open at a time.
const HELD: usize = 24;

/// A file of the model.
#[derive(Clone, PartialEq, Debug)]
struct Node {
    content: Vec<u8>,
    mode: u32,
    links: u64,
}

/// A file that is held open for reading, perhaps without a name.
struct Held {
    file: File,
    node: usize,
}

/// What there should be.
#[derive(Default)]
struct Model {
    nodes: Vec<Node>,
    names: BTreeMap<(u64, u64), usize>,
}

impl Model {
    fn unlink(&mut self, at: (u64, u64)) {
        if let Some(node) = self.names.remove(&at) {
            self.nodes[node].links -= 1;
        }
    }

    fn make(&mut self, at: (u64, u64), content: Vec<u8>) {
        self.nodes.push(Node { content, mode: 0o644, links: 1 });
        self.names.insert(at, self.nodes.len() - 1);
    }
}

fn place(mount: &Path, (directory, name): (u64, u64)) -> PathBuf {
    mount.join(format!("d{directory}/n{name}"))
}

/// A name must be on a mount as the model has it.
fn check(mount: &Path, model: &Model, at: (u64, u64), step: u64) {
    let path = place(mount, at);
    let Some(node) = model.names.get(&at).map(|node| &model.nodes[*node]) else {
        let found = fs::symlink_metadata(&path);
        assert!(found.is_err_and(|error| error.kind() == ErrorKind::NotFound), "step {step}: {path:?} is there");
        return;
    };
    let found = fs::metadata(&path).unwrap_or_else(|error| panic!("step {step}: {path:?}: {error}"));
    let seen = (found.len(), found.mode() & 0o777, found.nlink());
    assert_eq!(seen, (node.content.len() as u64, node.mode, node.links), "step {step}: {path:?}");
    assert_eq!(fs::read(&path).unwrap(), node.content, "step {step}: {path:?}");
}

fn listing(mount: &Path, directory: u64) -> Vec<String> {
    let entries = fs::read_dir(mount.join(format!("d{directory}"))).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

struct Run<'a> {
    mounts: [&'a Path; 2],
    numbers: SplitMix64,
    model: Model,
    held: Vec<Held>,
}

impl Run<'_> {
    fn any(&mut self) -> (u64, u64) {
        (self.numbers.below(DIRECTORIES), self.numbers.below(NAMES))
    }

    /// A directory is made anew, by the mount that will have it for itself, and what was in the old one goes.
    fn remake(&mut self, mount: &Path, directory: u64) {
        let (path, old) = (mount.join(format!("d{directory}")), mount.join("old"));
        fs::rename(&path, &old).unwrap();
        fs::create_dir(&path).unwrap();
        fs::remove_dir_all(self.mounts[self.numbers.below(2) as usize].join("old")).unwrap();
        (0..NAMES).for_each(|name| self.model.unlink((directory, name)));
    }

    /// One call on a mount, in the model too.
    fn step(&mut self, mount: &Path, step: u64) -> (u64, u64) {
        if self.numbers.below(12) == 0 {
            let directory = self.numbers.below(DIRECTORIES);
            self.remake(mount, directory);
            return (directory, 0);
        }
        let (at, to) = (self.any(), self.any());
        let (path, target) = (place(mount, at), place(mount, to));
        let node = self.model.names.get(&at).copied();
        let content: Vec<u8> = step.to_le_bytes().repeat(1 + self.numbers.below(400) as usize);
        match (self.numbers.below(10), node) {
            (_, None) => {
                fs::write(&path, &content).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
                self.model.make(at, content);
            }
            (0 | 1, Some(_)) => {
                fs::remove_file(&path).unwrap();
                self.model.unlink(at);
            }
            (2 | 3, Some(node)) => {
                fs::rename(&path, &target).unwrap();
                if self.model.names.get(&to) != Some(&node) {
                    self.model.unlink(to);
                    self.model.names.remove(&at);
                    self.model.names.insert(to, node);
                }
            }
            (4, Some(node)) if !self.model.names.contains_key(&to) => {
                fs::hard_link(&path, &target).unwrap();
                self.model.nodes[node].links += 1;
                self.model.names.insert(to, node);
            }
            (5, Some(node)) => {
                let mode = 0o600 + self.numbers.below(64) as u32;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                self.model.nodes[node].mode = mode;
            }
            (6, Some(node)) => {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                let offset = self.numbers.below(3_000);
                file.write_all_at(&content, offset).unwrap();
                let end = offset as usize + content.len();
                let known = &mut self.model.nodes[node].content;
                known.resize(known.len().max(end), 0);
                known[offset as usize..end].copy_from_slice(&content);
            }
            (7, Some(node)) => {
                let length = self.numbers.below(4_000);
                OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
                self.model.nodes[node].content.resize(length as usize, 0);
            }
            (_, Some(node)) => {
                if self.held.len() == HELD {
                    self.held.swap_remove(self.numbers.below(HELD as u64) as usize);
                }
                self.held.push(Held { file: File::open(&path).unwrap(), node });
            }
        }
        at
    }

    fn look(&mut self, at: (u64, u64), step: u64) {
        let mount = self.mounts[self.numbers.below(2) as usize];
        check(mount, &self.model, at, step);
        let other = self.any();
        check(mount, &self.model, other, step);
        if let Some(held) = self.held.get(self.numbers.below(HELD as u64) as usize) {
            let expected = &self.model.nodes[held.node];
            let mut content = vec![0; expected.content.len() + 100];
            let length = held.file.read_at(&mut content, 0).unwrap();
            assert_eq!(content[..length], expected.content, "step {step}: an open file");
            assert_eq!(held.file.metadata().unwrap().nlink(), expected.links, "step {step}: an open file");
        }
        if step.is_multiple_of(16) {
            let names = self.model.names.range((other.0, 0)..(other.0 + 1, 0)).map(|((_, name), _)| format!("n{name}"));
            assert_eq!(listing(mount, other.0), names.collect::<Vec<_>>(), "step {step}");
        }
    }
}

#[test]
fn every_call_is_seen_on_the_other_mount_by_the_next_one() {
    let mut cluster = Cluster::start(Options::default());
    let second = cluster.mount_again();
    let first = cluster.mount();
    for directory in 0..DIRECTORIES {
        fs::create_dir(first.join(format!("d{directory}"))).unwrap();
    }
    let mounts = [first.as_path(), second.as_path()];
    for seed in [3, 1_000_003] {
        let mut run = Run { mounts, numbers: SplitMix64::new(seed), model: Model::default(), held: Vec::new() };
        let mut step = 0;
        while step < STEPS {
            // Several on one mount, so that it has something to itself before the other looks.
            let mount = mounts[run.numbers.below(2) as usize];
            let count = 1 + run.numbers.below(5);
            let touched: Vec<_> = (0..count).map(|_| run.step(mount, step)).collect();
            touched.into_iter().for_each(|at| run.look(at, step));
            step += count;
        }
        for at in run.model.names.keys() {
            fs::remove_file(place(&first, *at)).unwrap();
        }
    }
}
