//! While something is away: what waits says for what, and nobody loses what it held.

use gfs_e2e::cluster::wait_until;
use gfs_e2e::work::pattern;
use gfs_e2e::{Cluster, Options};
use rustix::process::Signal;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const WHILE: Duration = Duration::from_secs(30);

/// A process that runs until it is dropped.
struct Running(Child);

impl Running {
    fn start(script: &str) -> Self {
        let child = Command::new("python3").arg("-c").arg(script).stdout(Stdio::piped()).spawn();
        Self(child.expect("python3"))
    }

    fn says(&mut self, word: &str) {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().expect("its output")).read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), word);
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn ends_well(&mut self) {
        wait_until("the process ends", WHILE, || self.0.try_wait().expect("its state").is_some());
        assert!(self.0.wait().expect("its end").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn flock(path: &Path, and_then: &str) -> Running {
    Running::start(&format!(
        "import fcntl, time\nf = open({path:?}, 'r+')\nfcntl.flock(f, fcntl.LOCK_EX)\nprint('held', flush=True)\n{and_then}"
    ))
}

fn why(cluster: &Cluster, what: &str) -> String {
    let output = cluster.gfs(&["why", what]);
    print!("{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn waits_for(cluster: &Cluster, process: &Running, what: &str) {
    let mut said = String::new();
    wait_until(&format!("the process is said to wait for {what}"), WHILE, || {
        said = why(cluster, &process.pid());
        println!("{said}");
        said.contains(what)
    });
}

/// Longer than the lease of a chunk server (1.6 s) and the one of a session (10 s).
const LONG: Duration = Duration::from_secs(13);

#[test]
fn a_master_that_is_stopped_for_longer_than_all_leases_takes_nothing_from_anybody() {
    let mut cluster = Cluster::start(Options { chunk_size: Some(1 << 20), ..Options::default() });
    let (a, b) = (cluster.mount(), cluster.mount_again());
    std::fs::write(a.join("data"), pattern(3, 0, 4 << 20)).unwrap();
    std::fs::write(a.join("lock"), "x").unwrap();
    let mut holder = flock(&a.join("lock"), "time.sleep(600)");
    holder.says("held");
    let placed = cluster.gfs_ok(&["chunks", "--json", "/data"]);
    let stopped = Instant::now();
    cluster.signal("master-1", Signal::STOP);
    let mut blocked = Running::start(&format!("open({:?}, 'w').write('after')", b.join("new")));
    waits_for(&cluster, &blocked, "the master");
    assert!(why(&cluster, "0").contains(&format!("thread {}", blocked.pid())), "a list of all names it too");
    std::thread::sleep(LONG.saturating_sub(stopped.elapsed()));
    cluster.signal("master-1", Signal::CONT);
    blocked.ends_well();
    assert_eq!(std::fs::read(b.join("data")).unwrap(), pattern(3, 0, 4 << 20));
    assert_eq!(cluster.gfs_ok(&["chunks", "--json", "/data"]), placed, "epochs and members are as before");
    let mut other = flock(&b.join("lock"), "");
    waits_for(&cluster, &other, "a file lock");
    drop(holder);
    other.ends_well();
}

#[test]
fn who_waits_for_a_lock_or_a_chunk_server_is_told_so() {
    let mut cluster = Cluster::start(Options::default());
    let (a, b) = (cluster.mount(), cluster.mount_again());
    std::fs::write(a.join("f"), "x").unwrap();
    assert!(why(&cluster, "/f").contains("nothing to wait for"), "{}", why(&cluster, "/f"));
    let mut holder = flock(&a.join("f"), "time.sleep(600)");
    holder.says("held");
    let mut waiter = flock(&b.join("f"), "");
    waits_for(&cluster, &waiter, "a file lock");
    let told = why(&cluster, &b.join("f").display().to_string());
    assert!(told.contains(&format!("exclusive flock lock held by process {}", holder.pid())), "{told}");
    drop(holder);
    waiter.ends_well();
    // No chunk server at all: a read waits for one, and says for which.
    for server in 1..=3 {
        cluster.signal(&format!("chunkd-{server}"), Signal::STOP);
    }
    let mut reader = Running::start(&format!("assert open({:?}).read() == 'x'", b.join("f")));
    waits_for(&cluster, &reader, "chunk server");
    for server in 1..=3 {
        cluster.signal(&format!("chunkd-{server}"), Signal::CONT);
    }
    reader.ends_well();
    let missing = cluster.gfs(&["why", "4194303"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no process 4194303 here"));
}

#[test]
fn a_stopped_and_a_dead_mount_do_not_hide_what_another_says() {
    let mut cluster = Cluster::start(Options::default());
    let (silent, live) = (cluster.mount(), cluster.mount_again());
    std::fs::write(live.join("f"), "x").unwrap();
    let mut holder = flock(&live.join("f"), "time.sleep(600)");
    holder.says("held");
    let mut waiter = flock(&live.join("f"), "");
    for signal in [Signal::STOP, Signal::KILL] {
        cluster.signal("mount-1", signal);
        waits_for(&cluster, &waiter, "a file lock");
        wait_until("the other mount is named", WHILE, || {
            let told = cluster.gfs(&["why", "0"]);
            let named = format!("{}: the mount does not answer", silent.display());
            String::from_utf8_lossy(&told.stderr).contains(&named)
        });
    }
    drop(holder);
    waiter.ends_well();
}
