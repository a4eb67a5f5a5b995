//! The command as a process: exit codes, and processes of a cluster on this machine, with stand-ins for the daemons.

use gfs_cli::cluster_file::{ClusterFile, Process};
use gfs_cli::process;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Held while a program is written and while a process is started: a child that is forked while another test writes a
/// program keeps that open for writing until its exec, and then the program cannot be run (ETXTBSY).
static FORK: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    FORK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(command: &mut Command) -> Output {
    let child = {
        let _alone = alone();
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap()
    };
    child.wait_with_output().unwrap()
}

/// A directory with the command, and stand-ins beside it.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let _alone = alone();
        std::fs::copy(env!("CARGO_BIN_EXE_gfs"), dir.path().join("bin/gfs")).unwrap();
        Self { dir }
    }

    /// A stand-in for a daemon: a script, whose process is named as the daemon's would be.
    fn program(&self, name: &str, script: &str) -> PathBuf {
        let _alone = alone();
        let path = self.dir.path().join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn cluster(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    fn gfs(&self, line: &str) -> Output {
        let mut command = Command::new(self.dir.path().join("bin/gfs"));
        command.args(line.split_whitespace()).current_dir(self.dir.path()).env_remove("GFS_CLUSTER");
        run(&mut command)
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn errors(output: &Output) -> Vec<String> {
    String::from_utf8(output.stderr.clone()).unwrap().lines().map(String::from).collect()
}

#[test]
fn exit_codes_tell_usage_from_failure() {
    let bench = Bench::new();
    for (line, expected) in [
        ("help", 0),
        ("--version", 0),
        ("completions bash", 0),
        ("frobnicate", 2),
        ("log-level loud", 2),
        ("ls relative/path", 2),
        ("up --masters 3", 2),
        ("ls / --cluster nonsense:port", 1),
        ("/nonexistent-mountpoint -x", 2),
    ] {
        let output = bench.gfs(line);
        assert_eq!(code(&output), expected, "{line}: {:?}", errors(&output));
    }
}

#[test]
fn refusal_of_more_masters_is_one_line_and_leaves_nothing_behind() {
    let bench = Bench::new();
    let output = bench.gfs("up --dir cluster --masters 3");
    assert_eq!(errors(&output), ["gfs up: --masters 3: this version serves one master; leave the flag out"]);
    assert!(!bench.cluster().exists());
}

#[test]
fn missing_daemon_is_named_with_the_mend() {
    let bench = Bench::new();
    let mut command = Command::new(bench.dir.path().join("bin/gfs"));
    let output = run(command.args(["up", "--dir", "cluster"]).current_dir(bench.dir.path()).env("PATH", ""));
    assert_eq!(code(&output), 1);
    let errors = errors(&output);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("gfs-master is neither beside") && errors[0].contains("cargo build"), "{errors:?}");
}

#[test]
fn daemon_that_does_not_start_is_told_in_one_line_with_its_own_reason() {
    let bench = Bench::new();
    bench.program("gfs-master", "echo 'gfs-master: data directory is used by process 7' >&2; exit 1");
    bench.program("gfs-chunkd", "exit 1");
    let output = bench.gfs("up --dir cluster --base-port 0");
    assert_eq!(code(&output), 1);
    let errors = errors(&output);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0].starts_with("gfs up: master-1 did not start: gfs-master: data directory is used by process 7 (log:")
    );
    let file = ClusterFile::read(&bench.cluster().join("cluster.toml")).unwrap().unwrap();
    assert_eq!(file.processes, [], "what does not run is not recorded");
}

#[test]
fn occupied_port_is_told_before_anything_is_started() {
    let bench = Bench::new();
    bench.program("gfs-master", "touch started");
    bench.program("gfs-chunkd", "touch started");
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    if port > 65000 {
        return; // the ports above it would not fit, which is another refusal
    }
    let output = bench.gfs(&format!("up --dir cluster --base-port {port}"));
    let expected = format!(
        "gfs up: port {port} on 127.0.0.1 is in use: stop the process that has it, or choose others with --base-port"
    );
    assert_eq!(errors(&output), [expected]);
    assert!(!bench.dir.path().join("started").exists());
}

/// Starts a stand-in that waits for a signal, and records it.
fn record(bench: &Bench, file: &mut ClusterFile, name: &str, program: &Path) {
    let cluster = bench.cluster();
    std::fs::create_dir_all(cluster.join("logs")).unwrap();
    std::fs::create_dir_all(cluster.join(name)).unwrap();
    let log = cluster.join("logs").join(format!("{name}.log"));
    let starting = {
        let _alone = alone();
        process::start(name, program, &[], &log).unwrap()
    };
    let ready = starting.wait_ready(Duration::from_secs(20)).unwrap();
    file.put(Process {
        name: name.into(),
        pid: ready.pid,
        started: ready.started,
        address: ready.address,
        data: cluster.join(name),
        log,
        ..Process::default()
    });
}

/// Blocks without a child: a read of a pipe that is also held open for writing.
const WAITING: &str = "mkfifo \"$0.$$\"; exec 3<>\"$0.$$\"; echo READY x address=127.0.0.1:1; read line <&3";

#[test]
fn down_stops_recorded_processes_and_keeps_the_data_unless_wiped() {
    let bench = Bench::new();
    let master = bench.program("gfs-master", WAITING);
    let stubborn = bench.program("gfs-chunkd", WAITING);
    let mut file = ClusterFile::default();
    file.settings.chunkservers = Some(1);
    record(&bench, &mut file, "master-1", &master);
    record(&bench, &mut file, "chunkd-1", &stubborn);
    // A pid that was used again by something else: it must not be touched.
    let innocent = std::process::id();
    let foreign = Process { name: "chunkd-2".into(), pid: innocent, started: 1, ..Process::default() };
    file.put(foreign);
    file.write(&bench.cluster().join("cluster.toml")).unwrap();
    let pids: Vec<u32> = ["master-1", "chunkd-1"].map(|name| file.process(name).unwrap().pid).to_vec();

    let output = bench.gfs("down --dir cluster");
    assert_eq!(code(&output), 0, "{:?}", errors(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "stopped chunkd-1\nstopped master-1\n");
    assert!(pids.iter().all(|pid| process::start_time(*pid).is_none()));
    let after = ClusterFile::read(&bench.cluster().join("cluster.toml")).unwrap().unwrap();
    assert_eq!((after.processes.len(), after.settings.chunkservers), (0, Some(1)));
    assert!(bench.cluster().join("master-1").exists());

    let again = bench.gfs("down --dir cluster --wipe");
    assert_eq!(code(&again), 0, "{:?}", errors(&again));
    assert!(!bench.cluster().exists());
    assert_eq!(code(&bench.gfs("down --dir cluster")), 0, "nothing to stop is no failure");
}

#[test]
fn stopped_cluster_is_told_and_not_replaced_by_another() {
    let bench = Bench::new();
    let dir = bench.dir.path().join("gfs-data");
    std::fs::create_dir(&dir).unwrap();
    ClusterFile::default().write(&dir.join("cluster.toml")).unwrap();
    let output = bench.gfs("ls /");
    assert_eq!(code(&output), 1);
    assert!(errors(&output)[0].contains("is stopped: start it with `gfs up`"), "{:?}", errors(&output));
}

#[test]
fn mount_calls_run_the_mount_process_with_its_arguments_and_exit_code() {
    let bench = Bench::new();
    bench.program("gfs-fuse", "echo \"$@\"; exit 32");
    let helper = bench.dir.path().join("bin/mount.gfs");
    std::os::unix::fs::symlink(bench.dir.path().join("bin/gfs"), &helper).unwrap();
    for line in ["mount h:1 /mnt -o ro", "h:1 /mnt -o ro", "--cluster h:1 mount /mnt -o ro"] {
        let output = bench.gfs(line);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "h:1 /mnt -o ro\n", "{line}");
        assert_eq!(code(&output), 32, "{line}");
    }
    let output = run(Command::new(&helper).args(["h:1", "/mnt", "-n", "-o", "ro"]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "h:1 /mnt -o ro\n");
    assert_eq!(code(&output), 32);
    std::fs::remove_file(bench.dir.path().join("bin/gfs-fuse")).unwrap();
    let output = run(Command::new(&helper).args(["h:1", "/mnt"]).env("PATH", ""));
    assert_eq!((code(&output), errors(&output).len()), (32, 1));
}
