//! The machines of a cluster's daemons, a layer each.

use super::layer::Layer;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One machine for each daemon, by the daemon's name.
pub struct Machines {
    inner: Mutex<Inner>,
}

struct Inner {
    machines: BTreeMap<String, Machine>,
    boots: u64,
}

struct Machine {
    layer: Layer,
    /// Counts the boots of all machines, so that it is the same for those that went together.
    boot: u64,
}

impl Machines {
    /// Mounts an empty disk at `DIR/NAME` for each daemon, where `gfs up --dir DIR` puts its data.
    pub fn start<'a>(dir: &Path, names: impl Iterator<Item = &'a str>) -> Self {
        let mut machines = BTreeMap::new();
        for (name, seed) in names.zip(1..) {
            let path = dir.join(name);
            std::fs::create_dir_all(&path).expect("data directory");
            let layer = Layer::mount(&path, seed).unwrap_or_else(|e| panic!("mount {}: {e}", path.display()));
            machines.insert(name.to_owned(), Machine { layer, boot: 1 });
        }
        Self { inner: Mutex::new(Inner { machines, boots: 1 }) }
    }

    /// Cuts the power of some machines, the daemons of which are dead, and boots them.
    pub fn cut(&self, names: &[&str], seed: u64) {
        let mut inner = self.inner.lock();
        inner.boots += 1;
        let boot = inner.boots;
        for (name, seed) in names.iter().zip(seed.wrapping_mul(100)..) {
            let machine = inner.machines.get_mut(*name).unwrap_or_else(|| panic!("no machine of {name}"));
            machine.layer.cut(seed).unwrap_or_else(|e| panic!("power cut of {name}: {e}"));
            machine.boot = boot;
        }
    }

    /// The names of all.
    pub fn names(&self) -> Vec<String> {
        self.inner.lock().machines.keys().cloned().collect()
    }

    /// How many changes the disk of one has seen.
    pub fn changes(&self, name: &str) -> u64 {
        self.inner.lock().machines.get(name).map_or(0, |machine| machine.layer.changes())
    }

    /// The boot id for the daemons that are started now: those that are not `alive`. They are started together, so it must be the same
    /// for all that heed it.
    pub fn boot_id(&self, alive: impl Fn(&str) -> bool) -> String {
        let inner = self.inner.lock();
        let missing = inner.machines.iter().filter(|(name, _)| name.starts_with("chunkd") && !alive(name));
        let boots: BTreeSet<u64> = missing.map(|(_, machine)| machine.boot).collect();
        assert!(boots.len() <= 1, "daemons of machines that went at different times are started at once");
        format!("boot {}", boots.first().copied().unwrap_or(inner.boots))
    }
}
