//! Requests of the kernel by io_uring: the same file system, and /dev/fuse where the kernel does not offer it.
//!
//! A kernel that can do it has a switch for it, off by default, which is turned on for these tests and back. On a kernel that cannot, the
//! mount that falls back has to pass them.

use gfs_e2e::cluster::{binary, text, wait_until};
use gfs_e2e::work::record_lock;
use gfs_e2e::{Cluster, Options, suites};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// The kernel's switch as a test wants it, and as it was afterwards.
struct Switch(Option<String>);

impl Switch {
    fn set(to: &str) -> Self {
        let before = fs::read_to_string(SWITCH).ok();
        match &before {
            Some(_) => fs::write(SWITCH, to).expect("set the switch of FUSE over io_uring"),
            None => println!("this kernel has no FUSE over io_uring: the mount falls back to /dev/fuse"),
        }
        Self(before)
    }

    fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = fs::write(SWITCH, before.trim());
        }
    }
}

/// A cluster with a second mount over io_uring, where the kernel can.
fn over_rings() -> (Cluster, PathBuf) {
    let off = Switch::set("N");
    let options = Options { mount_options: "transport=uring".into(), ..Options::default() };
    let mut cluster = Cluster::start(options);
    drop(off);
    let switch = Switch::set("Y");
    let mount = cluster.mount_again();
    assert_eq!(rings_of(&cluster.mount()), 0);
    assert_eq!(rings_of(&mount) > 0, switch.is_there(), "{}", cluster.logs());
    (cluster, mount)
}

/// Threads of rings in the process that serves a mount.
fn rings_of(mount: &Path) -> usize {
    let shown = mount.to_str().unwrap();
    let serves = |pid: &str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        words.next().is_some_and(|name| name.ends_with("gfs-fuse")) && words.any(|word| word == shown)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let mut threads = 0;
    for pid in processes.filter(|pid| serves(pid)) {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            threads += usize::from(name.starts_with("gfs-ring-"));
        }
    }
    threads
}

#[test]
fn mount_without_rings_says_so_in_one_line_and_works() {
    let _switch = Switch::set("N");
    let cluster = Cluster::start(Options::default());
    let mount = cluster.scratch().join("mnt");
    fs::create_dir(&mount).unwrap();
    let mut child = Command::new(binary("gfs-fuse"))
        .args([&cluster.master(), mount.to_str().unwrap(), "-f", "-o", "transport=uring"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the mount answers", Duration::from_secs(30), || {
        fs::write(mount.join("file"), "by /dev/fuse").is_ok()
            && fs::read_to_string(cluster.mount().join("file")).is_ok_and(|text| text == "by /dev/fuse")
    });
    assert_eq!(rings_of(&mount), 0);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert_eq!(said.lines().filter(|line| line.contains("io_uring")).count(), 1, "{said}");
}

#[test]
fn what_is_written_by_one_transport_is_read_by_the_other() {
    let (cluster, rings) = over_rings();
    let device = cluster.mount();
    let bytes: Vec<u8> = (0..9 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (from, to) in [(&rings, &device), (&device, &rings)] {
        let name = from.file_name().unwrap();
        fs::create_dir(from.join(name)).unwrap();
        fs::write(from.join(name).join("large"), &bytes).unwrap();
        assert!(fs::read(to.join(name).join("large")).unwrap() == bytes, "a wrong byte");
        for index in 0..300 {
            fs::write(from.join(name).join(format!("{index} {}", "long".repeat(50))), [index as u8; 100]).unwrap();
        }
        let mut listed: Vec<_> = fs::read_dir(to.join(name)).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(listed.len(), 301);
        listed.retain(|entry| entry.metadata().unwrap().len() == 100);
        assert_eq!(listed.len(), 300);
        std::os::unix::fs::symlink("large", from.join(name).join("link")).unwrap();
        fs::rename(from.join(name).join("large"), from.join(name).join("larger")).unwrap();
        assert_eq!(fs::read_link(to.join(name).join("link")).unwrap(), Path::new("large"));
        let file = OpenOptions::new().write(true).open(to.join(name).join("larger")).unwrap();
        file.write_all_at(b"in place", 5_000_000).unwrap();
        file.set_len(5_000_100).unwrap();
        let read = fs::read(from.join(name).join("larger")).unwrap();
        assert!(read.len() == 5_000_100 && &read[5_000_000..5_000_008] == b"in place");
        fs::remove_dir_all(to.join(name)).unwrap();
        assert!(!from.join(name).exists());
    }
    let attribute = Command::new("setfattr").args(["-n", "user.note", "-v", "kept"]).arg(&rings).output().unwrap();
    assert!(attribute.status.success(), "{}", text(&attribute));
    let read = Command::new("getfattr").args(["-n", "user.note"]).arg(&device).output().unwrap();
    assert!(text(&read).contains("kept"), "{}", text(&read));
}

/// Waiters for one lock.
const WAITERS: usize = 150;

/// Threads of this process that are in a system call of this number.
fn calls_of(number: i64) -> usize {
    let number = number.to_string();
    let in_call = |task: &fs::DirEntry| {
        let call = fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
        call.split(' ').next() == Some(&number)
    };
    fs::read_dir("/proc/self/task").unwrap().flatten().filter(in_call).count()
}

/// Sets or gives up a lock of an open file description; waits for it.
fn lock(file: &File, kind: i32) -> std::io::Result<()> {
    record_lock(file, libc::F_OFD_SETLKW, kind)
}

#[test]
fn many_that_wait_for_a_lock_do_not_keep_out_who_gives_it_up() {
    let (_cluster, rings) = over_rings();
    let path = rings.join("locked");
    File::create(&path).unwrap().write_all(b"0").unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let first = open();
    lock(&first, libc::F_WRLCK).unwrap();
    // More than a ring has entries to begin with, all on one processor, which the lock is given up from as well.
    let run_here = || {
        let mut one = rustix::thread::CpuSet::new();
        one.set(0);
        rustix::thread::sched_setaffinity(None, &one).unwrap();
    };
    run_here();
    let threads: Vec<_> = (0..WAITERS)
        .map(|_| {
            let file = open();
            std::thread::spawn(move || {
                run_here();
                lock(&file, libc::F_WRLCK)?;
                let mut text = [0; 20];
                let length = file.read_at(&mut text, 0)?;
                let count: u32 = std::str::from_utf8(&text[..length]).unwrap().parse().unwrap();
                file.write_all_at((count + 1).to_string().as_bytes(), 0)?;
                lock(&file, libc::F_UNLCK)
            })
        })
        .collect();
    let waiting = || calls_of(libc::SYS_fcntl);
    wait_until("all wait", Duration::from_secs(60), || waiting() >= WAITERS);
    lock(&first, libc::F_UNLCK).unwrap();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), WAITERS.to_string());
}

#[test]
fn callers_are_let_go_when_a_mount_is_killed_or_detached() {
    let (cluster, rings) = over_rings();
    let path = rings.join("locked");
    let first = File::create(&path).unwrap();
    lock(&first, libc::F_WRLCK).unwrap();
    let wait_for_it = || {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        std::thread::spawn(move || lock(&file, libc::F_WRLCK))
    };
    let waiter = wait_for_it();
    wait_until("it waits", Duration::from_secs(30), || calls_of(libc::SYS_fcntl) == 1);
    // Detached, it is served as long as something is open there.
    assert!(Command::new("umount").arg("-l").arg(&rings).status().unwrap().success());
    lock(&first, libc::F_UNLCK).unwrap();
    waiter.join().unwrap().unwrap();
    drop(first);

    let mount = cluster.scratch().join("again");
    fs::create_dir(&mount).unwrap();
    let _switch = Switch::set("Y");
    let mut served = Command::new(binary("gfs-fuse"))
        .args([&cluster.master(), mount.to_str().unwrap(), "-f", "-o", "transport=uring"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let path = mount.join("locked");
    wait_until("the mount answers", Duration::from_secs(30), || path.exists());
    let (holder, file) =
        (File::options().write(true).open(&path).unwrap(), File::options().write(true).open(&path).unwrap());
    lock(&holder, libc::F_WRLCK).unwrap();
    let waiter = std::thread::spawn(move || lock(&file, libc::F_WRLCK));
    wait_until("it waits", Duration::from_secs(30), || calls_of(libc::SYS_fcntl) == 1);
    served.kill().unwrap();
    served.wait().unwrap();
    assert!(waiter.join().unwrap().is_err());
    drop(holder);
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
}

#[test]
fn public_suites_pass_by_rings() {
    let (cluster, rings) = over_rings();
    suites::pjdfstest(&rings, &cluster.scratch());
    suites::fsx(&rings, &cluster.scratch(), 10_000);
}
