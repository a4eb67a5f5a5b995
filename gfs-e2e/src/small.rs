//! A cluster whose daemons keep their data on small disks, so that they can be filled.

use crate::cluster::{binary, text, wait_until};
use crate::daemon::Daemon;
use crate::disk::SmallDisk;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

/// How long all chunks may take to be back at their goal.
const HEALTHY: Duration = Duration::from_secs(60);

/// How large the disks are, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Sizes<'a> {
    /// The master's; 0: it has no small one.
    pub master: u64,
    /// Those of each chunk server, one for each of its data directories.
    pub servers: &'a [&'a [u64]],
}

/// A master, chunk servers and one mount.
pub struct SmallCluster {
    mount: Option<Daemon>,
    daemons: Vec<Daemon>,
    addresses: Vec<String>,
    master_disk: Option<SmallDisk>,
    server_disks: Vec<Vec<SmallDisk>>,
    // Last, so that it is removed after everything in it has stopped.
    root: TempDir,
}

impl SmallCluster {
    /// Brings it up; returns when the mount answers.
    pub fn start(sizes: Sizes<'_>) -> Self {
        let root = tempfile::Builder::new().prefix("gfs-e2e-").tempdir().expect("temporary directory");
        let (daemons, addresses, server_disks) = (Vec::new(), Vec::new(), Vec::new());
        let mut cluster = Self { mount: None, daemons, addresses, master_disk: None, server_disks, root };
        if sizes.master > 0 {
            cluster.master_disk = Some(cluster.disk("master", sizes.master));
        }
        cluster.start_master("127.0.0.1:0");
        for (number, sizes) in sizes.servers.iter().enumerate() {
            let disk = |(index, mib): (usize, &u64)| cluster.disk(&format!("chunkd-{number}-{index}"), *mib);
            let disks = sizes.iter().enumerate().map(disk).collect();
            cluster.server_disks.push(disks);
            cluster.start_server(number);
        }
        cluster.daemons.iter().for_each(Daemon::wait_ready);
        cluster.start_mount();
        cluster
    }

    /// The mount point.
    pub fn mount(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    /// The disk of the master.
    pub fn master_disk(&self) -> &SmallDisk {
        self.master_disk.as_ref().expect("a small disk of the master")
    }

    /// A disk of a chunk server; both count from 0.
    pub fn disk_of(&self, server: usize, disk: usize) -> &SmallDisk {
        &self.server_disks[server][disk]
    }

    /// Kills the master and starts it again, where it was.
    pub fn restart_master(&mut self) {
        drop(self.daemons.remove(0));
        let address = self.addresses.remove(0);
        self.start_master(&address);
    }

    /// Whether the master runs; one that has ended by itself is a failure of its own.
    pub fn master_runs(&self) -> bool {
        self.daemons[0].runs()
    }

    /// Runs the `gfs` command.
    pub fn gfs(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary("gfs"));
        command.args(arguments).env("GFS_CLUSTER", &self.addresses[0]).current_dir(self.root.path());
        command.output().expect("run gfs")
    }

    /// Runs the `gfs` command and returns its standard output; it must succeed.
    pub fn gfs_ok(&self, arguments: &[&str]) -> String {
        let output = self.gfs(arguments);
        assert!(output.status.success(), "gfs {arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until every chunk has all its copies.
    pub fn wait_until_healthy(&self) {
        wait_until("all chunks are back at their goal", HEALTHY, || {
            text(&self.gfs(&["status"])).lines().next().is_some_and(|line| line.trim() == "healthy")
        });
    }

    /// The ends of all logs, for a failure's message.
    pub fn logs(&self) -> String {
        self.daemons.iter().chain(&self.mount).map(Daemon::last_words).collect()
    }

    fn disk(&self, name: &str, mib: u64) -> SmallDisk {
        let at = |ending: &str| self.root.path().join(format!("{name}{ending}"));
        SmallDisk::new(&at(".image"), &at(""), mib)
    }

    fn start_master(&mut self, address: &str) {
        let data = match &self.master_disk {
            Some(disk) => disk.path().join("data"),
            None => self.root.path().join("master"),
        };
        let mut command = Command::new(binary("gfs-master"));
        command.arg("--data").arg(data).args(["--listen", address, "--http", "127.0.0.1:0"]);
        command.args(["--chunk-size", "4194304", "--replicas", "3"]);
        let daemon = Daemon::start("master", command, &self.root.path().join("master.log"));
        daemon.wait_ready();
        self.addresses.insert(0, daemon.address());
        self.daemons.insert(0, daemon);
    }

    fn start_server(&mut self, number: usize) {
        let data: Vec<_> =
            self.server_disks[number].iter().map(|disk| disk.path().join("data").display().to_string()).collect();
        let name = format!("chunkd-{number}");
        let mut command = Command::new(binary("gfs-chunkd"));
        command.args(["--data", &data.join(","), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.args(["--host", &name, "--master", &self.addresses[0]]);
        self.daemons.push(Daemon::start(&name, command, &self.root.path().join(format!("{name}.log"))));
    }

    fn start_mount(&mut self) {
        std::fs::create_dir(self.mount()).expect("mount point");
        let mut command = Command::new(binary("gfs"));
        command.args(["mount", &self.addresses[0]]).arg(self.mount()).arg("-f");
        let mount = Daemon::start("mount", command, &self.root.path().join("mount.log"));
        self.mount.insert(mount).wait_ready();
    }
}

impl Drop for SmallCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let done = Command::new("umount").arg(self.mount()).output().is_ok_and(|output| output.status.success());
        if !done {
            let _ = Command::new("umount").arg("-l").arg(self.mount()).output();
        }
    }
}
