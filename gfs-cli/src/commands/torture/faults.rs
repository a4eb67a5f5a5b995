//! Faults: which one comes next, and how it is done to the daemons of a cluster on this machine.

use super::links::{Cut, Links};
use crate::cluster_file::{ClusterFile, NAME, Process};
use crate::process;
use anyhow::{Context, Result, bail};
use gfs_core::splitmix::SplitMix64;
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// How long until everything is whole again.
const HEALED: Duration = Duration::from_secs(300);
/// After so long without a chunk server its copies are made anew elsewhere: 30 s, and some time to do it.
const REPLACED: Duration = Duration::from_secs(40);
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(200);

/// What happens to daemons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// SIGKILL, and a start after a while.
    Kill,
    /// SIGSTOP, and SIGCONT after a while.
    Stop,
    /// What chunk servers hear or say is swallowed for a while: by each of those that are hit, or between the master and all.
    Cut(Cut),
}

/// Whom it happens to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    /// A chunk server.
    ChunkServer(u16),
    /// The master.
    Master,
    /// Every daemon; the mounts live on.
    All,
}

/// One fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// Whom.
    pub target: Target,
    /// For how long.
    pub length: Duration,
    /// Quiet time before it.
    pub calm: Duration,
}

impl Fault {
    /// The next fault of a run.
    pub fn next(random: &mut SplitMix64, chunk_servers: u16) -> Self {
        let target = match random.below(10) {
            0 => Target::All,
            1 | 2 => Target::Master,
            _ => Target::ChunkServer(u16::try_from(random.below(chunk_servers.into())).unwrap_or(0) + 1),
        };
        let kind = match random.below(7) {
            0 | 1 => Kind::Kill,
            2 | 3 => Kind::Stop,
            4 => Kind::Cut(Cut { incoming: true, outgoing: true }),
            5 => Kind::Cut(Cut { incoming: true, outgoing: false }),
            _ => Kind::Cut(Cut { incoming: false, outgoing: true }),
        };
        let longest = if target == Target::All { 2_000 } else { 8_000 };
        let length = match (kind, target, random.below(8)) {
            // Long enough that what it held is copied to others.
            (Kind::Kill, Target::ChunkServer(_), 0) => REPLACED,
            _ => Duration::from_millis(random.below(longest)),
        };
        Self { kind, target, length, calm: Duration::from_millis(500 + random.below(3_000)) }
    }

    /// The class that its stalls are counted in.
    pub fn class(&self) -> &'static str {
        match (self.kind, self.target) {
            (Kind::Kill, Target::ChunkServer(_)) => "chunk server killed",
            (Kind::Stop, Target::ChunkServer(_)) => "chunk server stopped",
            (Kind::Kill, Target::Master) => "master killed",
            (Kind::Stop, Target::Master) => "master stopped",
            (Kind::Kill, Target::All) => "all daemons killed",
            (Kind::Stop, Target::All) => "all daemons stopped",
            (Kind::Cut(_), Target::Master | Target::All) => "chunk servers cut off",
            (Kind::Cut(Cut { incoming: true, outgoing: true }), _) => "chunk server cut off",
            (Kind::Cut(Cut { incoming: true, .. }), _) => "chunk server is deaf",
            (Kind::Cut(_), _) => "chunk server is mute",
        }
    }

    /// Whether it cuts a chunk server off, by name. The master has no link of its own: it is cut from all.
    fn cuts(&self, name: &str) -> bool {
        self.target == Target::Master || self.hits(name)
    }

    fn hits(&self, name: &str) -> bool {
        match self.target {
            Target::ChunkServer(number) => name == format!("chunkd-{number}"),
            Target::Master => name.starts_with("master-"),
            Target::All => !name.starts_with("mount-"),
        }
    }
}

/// A cluster that this run brought up, and takes away when it is dropped.
pub struct Cluster {
    gfs: PathBuf,
    dir: PathBuf,
    mounts: Vec<PathBuf>,
    links: Links,
    keep: bool,
}

impl Cluster {
    /// Brings up a cluster with two mounts in a directory.
    pub fn start(dir: &Path, chunk_servers: u16, keep: bool) -> Result<Self> {
        let gfs = std::env::current_exe().context("cannot find this program")?;
        let mounts = vec![dir.join("mnt-1"), dir.join("mnt-2")];
        for mount in &mounts {
            std::fs::create_dir_all(mount).with_context(|| format!("cannot create {}", mount.display()))?;
        }
        let links = Links::start(dir, chunk_servers)?;
        let cluster = Self { gfs, dir: dir.to_owned(), mounts, links, keep };
        let count = chunk_servers.to_string();
        // Small chunks: many of them are hit.
        let made = ["--chunkservers", &count, "--base-port", "0", "--chunk-size", "1M", "--mount"];
        cluster.up(&made, &[&cluster.mounts[0]])?;
        let master = cluster.master()?;
        cluster.run(Command::new(&cluster.gfs).args(["mount", &master]).arg(&cluster.mounts[1]))?;
        Ok(cluster)
    }

    /// Where it is mounted.
    pub fn mounts(&self) -> &[PathBuf] {
        &self.mounts
    }

    /// Lets a fault happen until it ends, then waits until all copies are there again. Answers how long that wait took.
    pub fn suffer(&self, fault: &Fault) -> Result<Duration> {
        let hit: Vec<Process> =
            self.file()?.processes.into_iter().filter(|process| fault.hits(&process.name)).collect();
        if hit.is_empty() {
            bail!("cluster.toml names no process for {:?}", fault.target);
        }
        let all = |signal| hit.iter().try_for_each(|process| send(process, signal));
        match fault.kind {
            Kind::Kill => {
                all(Signal::KILL)?;
                std::thread::sleep(fault.length);
                self.up(&[], &[])?;
            }
            Kind::Stop => {
                all(Signal::STOP)?;
                std::thread::sleep(fault.length);
                all(Signal::CONT)?;
            }
            Kind::Cut(cut) => {
                self.links.cut(cut, |name| fault.cuts(name));
                std::thread::sleep(fault.length);
                self.links.cut(Cut::default(), |_| true);
            }
        }
        self.wait_until_healthy()
    }

    /// Waits until nothing is below its goal.
    pub fn wait_until_healthy(&self) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let status = self.ask(&["status"])?;
            let text = String::from_utf8_lossy(&status.stdout).into_owned();
            if status.status.success() && text.lines().next() == Some("healthy") {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > HEALED {
                let told = if text.is_empty() { String::from_utf8_lossy(&status.stderr).into_owned() } else { text };
                bail!("not whole again after {} s: {}", HEALED.as_secs(), told.lines().next().unwrap_or_default());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Checks everything by `gfs fsck --deep`.
    pub fn check(&self) -> Result<()> {
        let output = self.ask(&["fsck", "--deep"])?;
        if !output.status.success() {
            bail!("gfs fsck --deep: {}", said(&output));
        }
        Ok(())
    }

    fn file(&self) -> Result<ClusterFile> {
        ClusterFile::read(&self.dir.join(NAME))?.context("there is no cluster.toml")
    }

    fn master(&self) -> Result<String> {
        Ok(self.file()?.masters().join(","))
    }

    fn ask(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.gfs);
        Ok(command.arg("--cluster").arg(self.master()?).args(arguments).output()?)
    }

    fn up(&self, arguments: &[&str], paths: &[&Path]) -> Result<()> {
        let links = self.links.argument();
        self.gfs(&[&["up", "--links", &links], arguments].concat(), paths)
    }

    fn gfs(&self, arguments: &[&str], paths: &[&Path]) -> Result<()> {
        self.run(Command::new(&self.gfs).args(arguments).args(paths).arg("--dir").arg(&self.dir))
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        let output = command.output().context("cannot run gfs")?;
        if !output.status.success() {
            bail!("{}", said(&output));
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.file().unwrap_or_default().processes {
            // What is still stopped could not end in good order.
            let _ = send(&process, Signal::CONT);
        }
        let second = Command::new(&self.gfs).arg("umount").arg(&self.mounts[1]).output();
        let down = self.gfs(if self.keep { &["down"] } else { &["down", "--wipe"] }, &[]);
        for problem in [second.err().map(anyhow::Error::from), down.err()].into_iter().flatten() {
            eprintln!("gfs torture: the cluster in {} is not taken away: {problem:#}", self.dir.display());
        }
        if !self.keep {
            for mount in &self.mounts {
                let _ = std::fs::remove_dir(mount);
            }
            let _ = std::fs::remove_dir(&self.dir);
        }
    }
}

fn said(output: &Output) -> String {
    let text = [&output.stderr[..], &output.stdout[..]].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("no word").to_owned()
}

fn send(process: &Process, signal: Signal) -> Result<()> {
    if !process::is_ours(process) {
        return Ok(());
    }
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).context("no such pid")?;
    kill_process(pid, signal).with_context(|| format!("cannot signal {}", process.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_always_gives_the_same_faults_and_all_kinds_come() {
        let faults = |seed| {
            let mut random = SplitMix64::new(seed);
            (0..200).map(|_| Fault::next(&mut random, 4)).collect::<Vec<_>>()
        };
        assert_eq!(faults(5), faults(5));
        assert_ne!(faults(5), faults(6));
        let classes: BTreeSet<_> = faults(5).iter().map(Fault::class).collect();
        assert_eq!(classes.len(), 10, "{classes:?}");
        let targets: BTreeSet<_> = faults(5).iter().map(|fault| fault.target).collect();
        assert_eq!(targets.len(), 6, "{targets:?}");
    }

    #[test]
    fn faults_hit_daemons_and_never_mounts() {
        let fault = |target| Fault { kind: Kind::Kill, target, length: Duration::ZERO, calm: Duration::ZERO };
        assert!(fault(Target::ChunkServer(2)).hits("chunkd-2"));
        assert!(!fault(Target::ChunkServer(2)).hits("chunkd-20"));
        assert!(fault(Target::Master).hits("master-1"));
        assert!(fault(Target::Master).cuts("chunkd-1") && !fault(Target::ChunkServer(2)).cuts("chunkd-1"));
        assert!(fault(Target::All).hits("chunkd-3") && !fault(Target::All).hits("mount-1"));
    }
}
