//! What returned on one mount is seen by whatever starts later on the other: without waiting.

use gfs_e2e::cluster::wait_until;
use gfs_e2e::work::shell;
use gfs_e2e::{Cluster, Options};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn two() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(Options::default());
    let second = cluster.mount_again();
    let first = cluster.mount();
    (cluster, first, second)
}

#[test]
fn names_attributes_sizes_and_contents_agree_at_once() {
    let (_cluster, a, b) = two();
    for n in 0..50 {
        let (one, other) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let name = format!("f{}", n % 5);
        // Look first, so that the other side has something to cache: an absence, or old attributes.
        let before = fs::metadata(other.join(&name)).map(|m| m.len()).unwrap_or(0);
        let mut file = OpenOptions::new().create(true).append(true).open(one.join(&name)).unwrap();
        file.write_all(&[n as u8; 1000]).unwrap();
        assert_eq!(fs::metadata(other.join(&name)).unwrap().len(), before + 1000, "size after append {n}");
        let content = fs::read(other.join(&name)).unwrap();
        assert!(content[before as usize..].iter().all(|byte| *byte == n as u8), "content after append {n}");
        fs::set_permissions(one.join(&name), fs::Permissions::from_mode(0o600 + n % 8)).unwrap();
        assert_eq!(fs::metadata(other.join(&name)).unwrap().mode() & 0o777, 0o600 + n % 8);
        if n % 7 == 6 {
            fs::rename(one.join(&name), one.join("moved")).unwrap();
            assert!(!other.join(&name).exists(), "old name after rename {n}");
            assert!(other.join("moved").exists(), "new name after rename {n}");
            fs::remove_file(other.join("moved")).unwrap();
            assert!(!one.join("moved").exists(), "name after unlink {n}");
        }
    }
}

#[test]
fn an_open_file_shows_writes_and_truncations_of_the_other_mount() {
    let (_cluster, a, b) = two();
    fs::write(a.join("f"), vec![1; 10_000]).unwrap();
    let reader = File::open(b.join("f")).unwrap();
    let writer = OpenOptions::new().read(true).write(true).open(a.join("f")).unwrap();
    let mut buffer = vec![0; 20_000];
    for n in 2..40u8 {
        assert!(reader.read_at(&mut buffer, 0).unwrap() > 0);
        writer.write_all_at(&[n; 5000], 2500).unwrap();
        assert_eq!(reader.read_at(&mut buffer, 0).unwrap(), 10_000);
        assert!(buffer[2500..7500].iter().all(|byte| *byte == n), "round {n}");
        writer.set_len(u64::from(n) * 10).unwrap();
        assert_eq!(reader.read_at(&mut buffer, 0).unwrap(), usize::from(n) * 10);
        assert_eq!(reader.metadata().unwrap().len(), u64::from(n) * 10);
        writer.set_len(10_000).unwrap();
    }
}

#[test]
fn a_file_removed_on_one_mount_stays_readable_where_it_is_open() {
    let (_cluster, a, b) = two();
    fs::write(a.join("f"), b"still here").unwrap();
    let held = File::open(b.join("f")).unwrap();
    fs::remove_file(a.join("f")).unwrap();
    assert!(!b.join("f").exists());
    let mut buffer = [0; 10];
    held.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"still here");
}

#[test]
fn a_write_beside_a_truncation_comes_whole_before_or_after_it() {
    let (_cluster, a, b) = two();
    let writer = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(a.join("f")).unwrap();
    let cutter = OpenOptions::new().write(true).open(b.join("f")).unwrap();
    let (mut before, mut after) = (0, 0);
    for round in 0..150u64 {
        writer.set_len(0).unwrap();
        writer.write_all_at(&[1; 100], 0).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(round * 37 % 4000));
                writer.write_all_at(&[7; 3000], 100).unwrap();
            });
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(round * 53 % 4000));
                cutter.set_len(50).unwrap();
            });
        });
        let content = fs::read(b.join("f")).unwrap();
        assert_eq!(content[..50], [1; 50]);
        if content.len() == 50 {
            before += 1;
        } else {
            after += 1;
            assert_eq!(content.len(), 3100, "round {round}");
            assert!(content[50..100].iter().all(|byte| *byte == 0), "round {round}: old bytes came back");
            assert!(content[100..].iter().all(|byte| *byte == 7), "round {round}: zeros instead of what was written");
        }
    }
    println!("{before} writes came before the truncation, {after} after it");
    assert!(before > 0 && after > 0, "{before} writes came before the truncation, {after} after it");
}

/// Appends `count` records of `size` bytes, each full of one digit and ended by a newline.
fn appender(path: PathBuf, digit: char, size: usize, count: usize) -> Child {
    let script = format!(
        "import os\nfd = os.open({path:?}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)\n\
         for _ in range({count}):\n    assert os.write(fd, b'{digit}' * {} + b'\\n') == {size}\n",
        size - 1
    );
    Command::new("python3").arg("-c").arg(script).spawn().expect("python3")
}

#[test]
fn four_writers_append_whole_records_from_both_mounts() {
    let (_cluster, a, b) = two();
    let (size, count) = (1000, 150);
    let writers: Vec<_> = "abcd"
        .chars()
        .enumerate()
        .map(|(at, digit)| appender(if at % 2 == 0 { a.join("log") } else { b.join("log") }, digit, size, count))
        .collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    let content = fs::read(a.join("log")).unwrap();
    assert_eq!(content.len(), 4 * size * count);
    let mut counts = std::collections::BTreeMap::new();
    for record in content.chunks(size) {
        assert_eq!(record[size - 1], b'\n', "a record is torn");
        assert!(record[..size - 1].iter().all(|byte| *byte == record[0]), "two records are mixed");
        *counts.entry(record[0]).or_insert(0) += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [count; 4]);
    assert_eq!(fs::metadata(b.join("log")).unwrap().len(), content.len() as u64);
}

#[test]
fn appends_cross_a_chunk_border_whole() {
    let (_cluster, a, b) = two();
    let file = File::create(a.join("log")).unwrap();
    let start = 64 * (1 << 20) - 3_500;
    file.set_len(start).unwrap();
    let writers = [appender(a.join("log"), 'x', 1000, 8), appender(b.join("log"), 'y', 1000, 8)];
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    let content = fs::read(b.join("log")).unwrap();
    assert_eq!(content.len() as u64, start + 16_000);
    for record in content[start as usize..].chunks(1000) {
        assert!(record[..999].iter().all(|byte| *byte == record[0]) && record[999] == b'\n');
    }
}

/// A process that holds a lock until it is killed.
fn holder(path: PathBuf, call: &str) -> Child {
    let script = format!(
        "import fcntl, os, struct, sys, time\nf = open({path:?}, 'r+')\n{call}\nprint('held', flush=True)\ntime.sleep(600)\n"
    );
    let mut child = Command::new("python3").arg("-c").arg(script).stdout(Stdio::piped()).spawn().expect("python3");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert_eq!(line.trim(), "held");
    child
}

const FLOCK: &str = "fcntl.flock(f, fcntl.LOCK_EX)";
const POSIX: &str = "fcntl.lockf(f, fcntl.LOCK_EX, 10, 5)";
// F_OFD_SETLKW is 38: a lock of the open file, not of the process.
const OFD: &str = "fcntl.fcntl(f, 38, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 5, 10, 0))";

/// Whether a process is in fcntl(2) or flock(2).
fn is_locking(pid: u32) -> bool {
    let calls: [&str; 2] = if cfg!(target_arch = "aarch64") { ["25", "32"] } else { ["72", "73"] };
    let now = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    now.split_whitespace().next().is_some_and(|call| calls.contains(&call))
}

fn try_lock(path: &std::path::Path, call: &str) -> bool {
    let call = call.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB").replace("f, 38", "f, 37");
    let script = format!(
        "import fcntl, struct\nf = open({path:?}, 'r+')\ntry:\n    {call}\nexcept OSError as e:\n    assert e.errno in (11, 13), e\n    raise SystemExit(9)\n"
    );
    match Command::new("python3").arg("-c").arg(script).status().unwrap().code() {
        Some(0) => true,
        Some(9) => false,
        other => panic!("lock attempt ended with {other:?}"),
    }
}

#[test]
fn locks_exclude_each_other_across_mounts_and_end_with_their_holder() {
    let (_cluster, a, b) = two();
    fs::write(a.join("l"), vec![0; 100]).unwrap();
    for (held, conflicting, independent) in
        [(FLOCK, FLOCK, POSIX), (POSIX, POSIX, FLOCK), (OFD, POSIX, FLOCK), (POSIX, OFD, FLOCK)]
    {
        let mut child = holder(a.join("l"), held);
        assert!(!try_lock(&b.join("l"), conflicting), "{conflicting} was granted against {held}");
        assert!(!try_lock(&a.join("l"), conflicting), "{conflicting} was granted against {held} on the same mount");
        assert!(try_lock(&b.join("l"), independent), "{independent} was refused against {held}");
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until("the lock is released", Duration::from_secs(30), || try_lock(&b.join("l"), conflicting));
    }
}

#[test]
fn a_blocked_lock_is_granted_when_free_and_can_be_interrupted() {
    let (cluster, a, b) = two();
    fs::write(a.join("l"), vec![0; 100]).unwrap();
    for call in [FLOCK, POSIX] {
        let mut first = holder(a.join("l"), call);
        let path = b.join("l");
        let lock_then_touch = format!(
            "import fcntl\nf = open({path:?}, 'r+')\n{call}\nopen({:?}, 'w')\n",
            cluster.scratch().join("granted")
        );
        let mut waiter = Command::new("python3").arg("-c").arg(&lock_then_touch).spawn().unwrap();
        let mut interrupted = Command::new("python3").arg("-c").arg(&lock_then_touch).spawn().unwrap();
        wait_until("both wait for the lock", Duration::from_secs(30), || {
            [&waiter, &interrupted].into_iter().all(|child| is_locking(child.id()))
        });
        assert!(!cluster.scratch().join("granted").exists());
        interrupted.kill().unwrap();
        wait_until("a killed waiter ends", Duration::from_secs(30), || interrupted.try_wait().unwrap().is_some());
        assert!(waiter.try_wait().unwrap().is_none(), "the lock was given away while it is held");
        first.kill().unwrap();
        first.wait().unwrap();
        wait_until("the waiter gets the lock", Duration::from_secs(30), || waiter.try_wait().unwrap().is_some());
        assert!(cluster.scratch().join("granted").exists());
        fs::remove_file(cluster.scratch().join("granted")).unwrap();
    }
}

#[test]
fn a_deadlock_of_record_locks_is_detected_across_mounts() {
    let (_cluster, a, b) = two();
    fs::write(a.join("l"), vec![0; 100]).unwrap();
    let one = |path: PathBuf, first: u32, second: u32| {
        let script = format!(
            "import fcntl, sys, time\nf = open({path:?}, 'r+')\nfcntl.lockf(f, fcntl.LOCK_EX, 1, {first})\nprint('held', flush=True)\n\
             sys.stdin.readline()\ntry:\n    fcntl.lockf(f, fcntl.LOCK_EX, 1, {second})\nexcept OSError as e:\n    sys.exit(e.errno)\n"
        );
        Command::new("python3").arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut both = [one(a.join("l"), 0, 1), one(b.join("l"), 1, 0)];
    for child in &mut both {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    }
    for child in &mut both {
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }
    let mut codes: Vec<_> = both.iter_mut().map(|child| child.wait().unwrap().code()).collect();
    codes.sort();
    assert_eq!(codes, [Some(0), Some(35)], "one gets EDEADLK, the other the lock");
}

#[test]
fn both_mounts_create_in_one_directory_without_stalling() {
    let (_cluster, a, b) = two();
    fs::create_dir(a.join("d")).unwrap();
    let script = |side: &str| format!("for n in $(seq 200); do echo $n > d/{side}$n; done; ls d | wc -l >/dev/null");
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| shell(&a, &script("a")));
        scope.spawn(|| shell(&b, &script("b")));
    });
    println!("400 files from two mounts in {:?}", start.elapsed());
    assert_eq!(fs::read_dir(a.join("d")).unwrap().count(), 400);
    assert_eq!(fs::read_dir(b.join("d")).unwrap().count(), 400);
}

/// A small generator, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A file as it must be.
#[derive(Clone, Default)]
struct Expected {
    content: Vec<u8>,
    mode: u32,
}

fn agree(mounts: &[&PathBuf; 2], name: &str, expected: &Expected, step: u64) {
    for mount in mounts {
        let path = mount.join(name);
        let found = fs::metadata(&path).unwrap_or_else(|error| panic!("step {step}: {}: {error}", path.display()));
        assert_eq!(found.len(), expected.content.len() as u64, "step {step}: size of {}", path.display());
        assert_eq!(found.mode() & 0o777, expected.mode, "step {step}: mode of {}", path.display());
        assert!(fs::read(&path).unwrap() == expected.content, "step {step}: content of {}", path.display());
    }
}

#[test]
fn what_the_maker_of_a_file_does_by_itself_is_seen_by_the_other_mount() {
    let (_cluster, a, b) = two();
    let mounts = [&a, &b];
    let mut dice = Dice(7);
    let mut files: std::collections::BTreeMap<String, Expected> = std::collections::BTreeMap::new();
    for step in 0..600 {
        let mount = mounts[dice.roll(2) as usize];
        let mut bytes = vec![step as u8; dice.roll(9_000) as usize];
        let names: Vec<String> = files.keys().cloned().collect();
        if names.len() < 4 || (names.len() < 12 && dice.roll(3) == 0) {
            let name = format!("f{step}");
            let file = OpenOptions::new().create_new(true).write(true).open(mount.join(&name)).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
            let mut expected = Expected { content: bytes.clone(), mode: 0o640 };
            if dice.roll(2) == 0 {
                agree(&mounts, &name, &expected, step);
                // It is the other mount's business too now.
                file.write_all_at(&bytes, expected.content.len() as u64).unwrap();
                expected.content.append(&mut bytes);
            }
            if dice.roll(2) == 0 {
                drop(file);
                agree(&mounts, &name, &expected, step);
            } else {
                agree(&mounts, &name, &expected, step);
            }
            files.insert(name, expected);
            continue;
        }
        let name = names[dice.roll(names.len() as u64) as usize].clone();
        let path = mount.join(&name);
        let mut expected = files.remove(&name).unwrap();
        let mut now = name.clone();
        match dice.roll(6) {
            0 => {
                let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                file.write_all(&bytes).unwrap();
                expected.content.append(&mut bytes);
            }
            1 => {
                fs::write(&path, &bytes).unwrap();
                expected.content = bytes;
            }
            2 => {
                expected.mode = 0o600 | dice.roll(0o100) as u32;
                fs::set_permissions(&path, fs::Permissions::from_mode(expected.mode)).unwrap();
            }
            3 => {
                let size = dice.roll(12_000);
                OpenOptions::new().write(true).open(&path).unwrap().set_len(size).unwrap();
                expected.content.resize(size as usize, 0);
            }
            4 => {
                now = format!("r{step}");
                fs::rename(&path, mount.join(&now)).unwrap();
            }
            _ => {
                fs::remove_file(&path).unwrap();
                assert!(mounts.iter().all(|mount| !mount.join(&name).exists()), "step {step}: {name} is still there");
                continue;
            }
        }
        agree(&mounts, &now, &expected, step);
        files.insert(now, expected);
    }
}
