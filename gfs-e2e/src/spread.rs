//! A cluster that is spread over the hosts of a network: each daemon and each mount on its own.

use crate::cluster::{binary, text, wait_until};
use crate::daemon::Daemon;
use crate::network::Network;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

/// The host of the master.
pub const MASTER: &str = "master";
/// Hosts of the chunk servers.
pub const SERVERS: [&str; 3] = ["chunkd-1", "chunkd-2", "chunkd-3"];
/// Hosts of the mounts.
pub const CLIENTS: [&str; 2] = ["client-1", "client-2"];

const PORT: u16 = 7400;
/// How long all chunks may take to be back at their goal.
const HEALTHY: Duration = Duration::from_secs(60);

/// A master, three chunk servers and two mounts.
pub struct Spread {
    /// The network between them.
    pub network: Network,
    mounts: Vec<Daemon>,
    daemons: Vec<Daemon>,
    // Last, so that it is removed after everything in it has stopped.
    root: TempDir,
}

impl Spread {
    /// Brings it up; returns when both mounts answer.
    pub fn start() -> Self {
        let hosts: Vec<_> = [MASTER].into_iter().chain(SERVERS).chain(CLIENTS).collect();
        let root = tempfile::Builder::new().prefix("gfs-e2e-").tempdir().expect("temporary directory");
        let mut cluster = Self { network: Network::new(&hosts), mounts: Vec::new(), daemons: Vec::new(), root };
        cluster.start_daemon(MASTER, "gfs-master", &["--chunk-size", "4194304", "--replicas", "3"]);
        cluster.daemons[0].wait_ready();
        let master = cluster.master();
        for host in SERVERS {
            cluster.start_daemon(host, "gfs-chunkd", &["--master", &master, "--host", host]);
        }
        cluster.daemons.iter().for_each(Daemon::wait_ready);
        CLIENTS.into_iter().for_each(|host| cluster.start_mount(host));
        cluster.mounts.iter().for_each(Daemon::wait_ready);
        cluster.wait_until_healthy();
        cluster
    }

    /// The master's address.
    pub fn master(&self) -> String {
        format!("{}:{PORT}", self.network.address(MASTER))
    }

    /// Where a client's mount is.
    pub fn mount(&self, host: &str) -> PathBuf {
        self.root.path().join(host)
    }

    /// Runs the `gfs` command on the master's host.
    pub fn gfs(&self, arguments: &[&str]) -> Output {
        let mut command = self.network.command(MASTER, binary("gfs"));
        command.args(arguments).env("GFS_CLUSTER", self.master()).current_dir(self.root.path());
        command.output().expect("run gfs")
    }

    /// Waits until every chunk has all its copies.
    pub fn wait_until_healthy(&self) {
        let mut said = String::new();
        let healthy = || {
            said = text(&self.gfs(&["status"]));
            said.lines().next().is_some_and(|line| line.trim() == "healthy")
        };
        wait_until("all chunks are back at their goal", HEALTHY, healthy);
    }

    /// Reads all copies of all chunks and compares them.
    pub fn assert_copies_are_equal(&self) {
        let output = self.gfs(&["fsck", "--deep"]);
        assert!(output.status.success(), "fsck --deep: {}", text(&output));
    }

    /// The ends of all logs, for a failure's message.
    pub fn logs(&self) -> String {
        self.daemons.iter().chain(&self.mounts).map(Daemon::last_words).collect()
    }

    fn start_daemon(&mut self, host: &str, program: &str, arguments: &[&str]) {
        let address = self.network.address(host);
        let data = self.root.path().join(format!("{host}-data"));
        let mut command = self.network.command(host, binary(program));
        command.arg("--data").arg(data).args(arguments);
        command.args(["--listen", &format!("{address}:{PORT}"), "--http", &format!("{address}:{}", PORT + 1)]);
        self.daemons.push(Daemon::start(host, command, &self.log(host)));
    }

    fn start_mount(&mut self, host: &str) {
        let path = self.mount(host);
        fs::create_dir(&path).expect("mount point");
        let mut command = self.network.command(host, binary("gfs"));
        command.args(["mount", &self.master()]).arg(&path).arg("-f");
        self.mounts.push(Daemon::start(host, command, &self.log(host)));
    }

    fn log(&self, host: &str) -> PathBuf {
        self.root.path().join(format!("{host}.log"))
    }
}

impl Drop for Spread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for mount in &self.mounts {
            unmount(&self.mount(mount.name()));
        }
    }
}

fn unmount(path: &Path) {
    let done = Command::new("umount").arg(path).output().is_ok_and(|output| output.status.success());
    if !done {
        let _ = Command::new("umount").arg("-l").arg(path).output();
    }
}
