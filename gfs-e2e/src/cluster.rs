//! A cluster of real processes on this machine, brought up with `gfs up` and taken down when dropped.

use crate::power::Machines;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What kind of cluster a test wants.
#[derive(Clone, Debug)]
pub struct Options {
    /// Chunk servers.
    pub chunkservers: u16,
    /// Replica goal.
    pub replicas: u8,
    /// Chunk size in bytes; smaller than 64 MiB only in tests that cross many borders.
    pub chunk_size: Option<u64>,
    /// Further options of the mounts, as after `-o`.
    pub mount_options: String,
    /// Settings of the daemons, as environment variables.
    pub settings: Vec<(&'static str, String)>,
    /// Whether each daemon runs on a machine of its own, the power of which can be cut.
    pub power: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chunkservers: 3,
            replicas: 3,
            chunk_size: None,
            mount_options: String::new(),
            settings: Vec::new(),
            power: false,
        }
    }
}

/// One process of the cluster, as `cluster.toml` lists it.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Process {
    /// `master-1`, `chunkd-1`, `mount-1`.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// Where it serves; a mount's is its mount point.
    pub address: String,
    /// Its data directory.
    #[serde(default)]
    pub data: PathBuf,
    /// Its log file.
    #[serde(default)]
    pub log: PathBuf,
}

#[derive(serde::Deserialize)]
struct ClusterFile {
    process: Vec<Process>,
}

/// A running cluster with one mount, and more if asked.
pub struct Cluster {
    options: Options,
    base_port: u16,
    extra_mounts: Vec<PathBuf>,
    machines: Option<Machines>,
    // Last, so that it is removed after everything in it has stopped.
    root: TempDir,
}

/// Path of a binary of this workspace, beside the running test's own.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("path of the test");
    let folder = own.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `cargo test --workspace --no-run` first", path.display());
    path
}

/// Waits until `ready` says yes, and fails the test with `what` after a deadline.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !ready() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// The first of 200 ports that are free now, different for every cluster of this process.
fn free_ports() -> u16 {
    let start = 20_000 + (std::process::id() % 150) as u16 * 200;
    for _ in 0..150 {
        let step = NEXT_PORT.fetch_add(200, Ordering::Relaxed);
        let base = 20_000 + (start - 20_000 + step) % 30_000;
        let wanted = [0, 1, 100, 101, 110, 111, 120, 121, 130, 131];
        if wanted.iter().all(|offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok()) {
            return base;
        }
    }
    panic!("no free range of ports");
}

impl Cluster {
    /// Brings a cluster up and mounts it.
    pub fn start(options: Options) -> Self {
        assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing: these tests need a kernel with FUSE");
        // Open to all, so that what another user is refused is refused by the mount.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let root =
            tempfile::Builder::new().prefix("gfs-e2e-").permissions(mode).tempdir().expect("temporary directory");
        fs::create_dir(root.path().join("mnt")).expect("mount point");
        let mut cluster = Self { options, base_port: free_ports(), extra_mounts: Vec::new(), machines: None, root };
        if cluster.options.power {
            let servers: Vec<_> = (1..=cluster.options.chunkservers).map(|n| format!("chunkd-{n}")).collect();
            let names = std::iter::once("master-1").chain(servers.iter().map(String::as_str));
            cluster.machines = Some(Machines::start(&cluster.dir(), names));
        }
        cluster.up();
        cluster
    }

    /// Brings up what is missing.
    pub fn up(&self) {
        let output = self.try_up();
        assert!(output.status.success(), "gfs up failed: {}{}", text(&output), self.logs());
    }

    /// As `up`, but hands the outcome back.
    pub fn try_up(&self) -> Output {
        self.up_command().output().expect("run gfs up")
    }

    /// The command that brings up what is missing.
    pub fn up_command(&self) -> Command {
        let mut command = Command::new(binary("gfs"));
        command.arg("up").arg("--dir").arg(self.dir()).arg("--mount").arg(self.mount());
        command.args(["--base-port", &self.base_port.to_string()]);
        command.args(["--chunkservers", &self.options.chunkservers.to_string()]);
        command.args(["--replicas", &self.options.replicas.to_string()]);
        if let Some(size) = self.options.chunk_size {
            command.args(["--chunk-size", &size.to_string()]);
        }
        command.envs(self.options.settings.iter().map(|(key, value)| (key, value)));
        if let Some(machines) = &self.machines {
            let running = self.processes();
            let runs = |name: &str| running.iter().any(|process| process.name == name && alive(process.pid));
            command.env("GFS_CHUNKD_BOOT_ID", machines.boot_id(runs));
        }
        command
    }

    /// Where the cluster keeps its data.
    pub fn dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// A directory for the test's own files, outside the cluster.
    pub fn scratch(&self) -> PathBuf {
        let path = self.root.path().join("scratch");
        fs::create_dir_all(&path).expect("scratch directory");
        path
    }

    /// The first mount point.
    pub fn mount(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    /// The master's address.
    pub fn master(&self) -> String {
        format!("127.0.0.1:{}", self.base_port)
    }

    /// Mounts the cluster once more.
    pub fn mount_again(&mut self) -> PathBuf {
        let path = self.root.path().join(format!("mnt{}", self.extra_mounts.len() + 2));
        fs::create_dir(&path).expect("mount point");
        let mut command = Command::new(binary("gfs"));
        command.arg("mount").arg(self.master()).arg(&path);
        if !self.options.mount_options.is_empty() {
            command.args(["-o", &self.options.mount_options]);
        }
        let output = command.output().expect("run gfs mount");
        assert!(output.status.success(), "gfs mount failed: {}", text(&output));
        self.extra_mounts.push(path.clone());
        path
    }

    /// Runs the `gfs` command against this cluster.
    pub fn gfs(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary("gfs"));
        command.args(arguments).env("GFS_CLUSTER", self.master()).current_dir(self.scratch());
        command.output().expect("run gfs")
    }

    /// Runs the `gfs` command and returns its standard output; it must succeed.
    pub fn gfs_ok(&self, arguments: &[&str]) -> String {
        let output = self.gfs(arguments);
        assert!(output.status.success(), "gfs {arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The processes that are recorded as running.
    pub fn processes(&self) -> Vec<Process> {
        let path = self.dir().join("cluster.toml");
        let content = fs::read_to_string(&path).unwrap_or_default();
        if content.is_empty() {
            return Vec::new();
        }
        let file: ClusterFile = toml::from_str(&content).expect("cluster.toml");
        file.process
    }

    /// One process by name.
    pub fn process(&self, name: &str) -> Process {
        let found = self.processes().into_iter().find(|p| p.name == name);
        found.unwrap_or_else(|| panic!("no process {name} in cluster.toml"))
    }

    /// Sends a signal to one process.
    pub fn signal(&self, name: &str, signal: Signal) {
        let pid = self.process(name).pid;
        kill_process(Pid::from_raw(pid).expect("pid"), signal).unwrap_or_else(|e| panic!("signal {name}: {e}"));
    }

    /// Kills one process with SIGKILL and waits until it is gone.
    pub fn kill(&self, name: &str) {
        let pid = self.process(name).pid;
        self.signal(name, Signal::KILL);
        wait_until(&format!("{name} ends"), Duration::from_secs(10), || !alive(pid));
    }

    /// The machines of the daemons, in a cluster with `Options::power`.
    pub fn machines(&self) -> &Machines {
        self.machines.as_ref().expect("a cluster whose power can be cut")
    }

    /// Cuts the power of some daemons' machines: kills the daemons and drops what was not on stable storage.
    pub fn cut_power(&self, names: &[&str], seed: u64) {
        let running = self.processes();
        let running = running.into_iter().filter(|process| names.contains(&process.name.as_str())).collect();
        kill_all(running);
        self.machines().cut(names, seed);
    }

    /// Cuts the power of everything, the machine with the mount included.
    pub fn cut_all_power(&self, seed: u64) {
        kill_all(self.processes());
        let names = self.machines().names();
        self.machines().cut(&names.iter().map(String::as_str).collect::<Vec<_>>(), seed);
    }

    /// Kills every daemon and leaves the mounts.
    pub fn kill_daemons(&self) {
        kill_all(self.processes().into_iter().filter(|p| !p.name.starts_with("mount")).collect());
    }

    /// The ends of all logs, for a failure's message.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for process in self.processes() {
            let content = fs::read_to_string(&process.log).unwrap_or_default();
            let lines: Vec<_> = content.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            all.push_str(&format!("\n--- {}\n{}", process.name, tail.join("\n")));
        }
        all
    }

    fn unmount(path: &Path) {
        let done = Command::new("umount").arg(path).output().is_ok_and(|o| o.status.success());
        if !done {
            let _ = Command::new("umount").arg("-l").arg(path).output();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let processes = self.processes();
        for path in &self.extra_mounts {
            Self::unmount(path);
        }
        let down = Command::new(binary("gfs")).arg("down").arg("--dir").arg(self.dir()).output();
        if !down.is_ok_and(|o| o.status.success()) {
            Self::unmount(&self.mount());
        }
        for process in processes {
            if alive(process.pid) {
                let _ = Pid::from_raw(process.pid).map(|pid| kill_process(pid, Signal::KILL));
            }
        }
    }
}

/// Kills processes that may have ended already, and waits until they are gone.
fn kill_all(processes: Vec<Process>) {
    for process in &processes {
        let _ = kill_process(Pid::from_raw(process.pid).expect("pid"), Signal::KILL);
    }
    wait_until("all that were killed end", Duration::from_secs(10), || processes.iter().all(|p| !alive(p.pid)));
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    let Some(id) = Pid::from_raw(pid) else { return false };
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    test_kill_process(id).is_ok() && !state.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
}

/// What a command printed.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
