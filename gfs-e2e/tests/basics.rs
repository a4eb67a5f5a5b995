//! A file goes in, comes out, and is still there after everything restarted.

use gfs_e2e::cluster::wait_until;
use gfs_e2e::work::{assert_pattern, pattern, shell};
use gfs_e2e::{Cluster, Options};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::Duration;

const MIB: usize = 1 << 20;

#[test]
fn copied_files_come_back_the_same_after_a_restart_of_everything() {
    let cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    let local = cluster.scratch().join("local");
    fs::write(&local, pattern(1, 0, 70 * MIB + 12_345)).unwrap();
    shell(
        &mount,
        &format!("cp {0} copy && cmp {0} copy && mkdir -p a/b && echo hello > a/b/c && cat a/b/c", local.display()),
    );
    shell(&mount, "ln -s a/b/c link && ln a/b/c hard && chmod 640 hard && touch -d @12345.678901234 hard");
    shell(&cluster.scratch(), "sync");

    assert!(cluster.gfs(&["down", "--dir", cluster.dir().to_str().unwrap()]).status.success());
    cluster.up();

    shell(&mount, &format!("cmp {} copy && test \"$(cat link)\" = hello", local.display()));
    let attributes = fs::metadata(mount.join("hard")).unwrap();
    assert_eq!((attributes.nlink(), attributes.mode() & 0o7777), (2, 0o640));
    assert_eq!((attributes.mtime(), attributes.mtime_nsec()), (12345, 678_901_234));
    shell(&mount, "rm -rf copy a link hard && test -z \"$(ls -A)\"");
}

#[test]
fn removed_files_leave_the_disks_of_the_chunk_servers() {
    let cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    for n in 0..20u64 {
        fs::write(mount.join(format!("f{n}")), pattern(n, 0, MIB)).unwrap();
    }
    let chunks = || {
        let status: serde_json::Value = serde_json::from_str(&cluster.gfs_ok(&["status", "--json"])).unwrap();
        let servers = status["servers"].as_array().unwrap().clone();
        servers.iter().map(|s| s["chunks"].as_u64().unwrap()).sum::<u64>()
    };
    wait_until("three replicas of every file are counted", Duration::from_secs(30), || chunks() >= 60);
    // What a mount keeps reserved for its next files is a pool of empty chunks: long files, but nothing is allocated in them.
    let used = || {
        let script =
            "find . -ignore_readdir_race -path '*chunkd*/chunks/*' -type f -printf '%k\\n' | awk '$1 > 1000' | wc -l";
        shell(&cluster.dir(), script).trim().parse::<u64>().unwrap()
    };
    wait_until("the bytes of all replicas are on the disks", Duration::from_secs(30), || used() >= 60);
    shell(&mount, "rm f*");
    wait_until("the chunk files are deleted", Duration::from_secs(60), || used() == 0);
}

#[test]
fn sparse_files_read_zeros_and_tell_their_holes() {
    let cluster = Cluster::start(Options::default());
    let path = cluster.mount().join("sparse");
    let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path).unwrap();
    let far = 200 * MIB as u64;
    file.write_all_at(&pattern(2, far, 4096), far).unwrap();
    file.write_all_at(&pattern(2, 64 * MIB as u64 - 100, 200), 64 * MIB as u64 - 100).unwrap();
    assert_eq!(file.metadata().unwrap().len(), far + 4096);
    assert_pattern(&file, 2, far, 4096);
    assert_pattern(&file, 2, 64 * MIB as u64 - 100, 200);
    let mut zeros = vec![1; MIB];
    file.read_exact_at(&mut zeros, 100 * MIB as u64).unwrap();
    assert!(zeros.iter().all(|b| *b == 0));
    assert!(file.metadata().unwrap().blocks() * 512 < 192 * MIB as u64);

    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(65 * MIB as u64)).unwrap();
    assert!(data <= far && data > 65 * MIB as u64, "{data}");
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
    assert!(hole < 64 * MIB as u64, "{hole}");
}

#[test]
fn what_a_file_occupies_follows_writes_holes_and_truncation() {
    let cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    let path = mount.join("blocks");
    let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path).unwrap();
    let kib = || fs::metadata(&path).unwrap().blocks() / 2;
    file.set_len(100 * MIB as u64).unwrap();
    assert_eq!(kib(), 0);
    file.write_all_at(b"x", 50 * MIB as u64).unwrap();
    assert_eq!(kib(), 4);
    for at in [10, 70] {
        file.write_all_at(&pattern(4, 0, MIB), (at * MIB) as u64).unwrap();
    }
    assert_eq!(kib(), 4 + 2048);
    file.write_all_at(&pattern(5, 0, MIB), 10 * MIB as u64).unwrap();
    assert_eq!(kib(), 4 + 2048);
    shell(&mount, &format!("fallocate -p -o {} -l {} blocks", 10 * MIB, MIB / 2));
    assert_eq!(kib(), 4 + 2048 - 512);
    assert_eq!(file.metadata().unwrap().len(), 100 * MIB as u64);
    file.set_len(70 * MIB as u64 + 4096).unwrap();
    assert_eq!(kib(), 4 + 512 + 4);
    shell(&mount, "cat blocks blocks > dense");
    assert_eq!(fs::metadata(mount.join("dense")).unwrap().blocks() / 2, 2 * (70 * 1024 + 4));
    shell(&mount, "fallocate -l 10M promised && test $(du -k promised | cut -f1) = 10240 && truncate -s 1M promised");
    shell(&mount, "test $(du -k promised | cut -f1) = 1024 && cp promised copy && cmp promised copy");
    shell(&mount, "fallocate -p -o 0 -l 512K promised && test $(du -k promised | cut -f1) = 512");
    drop(file);
    cluster.gfs_ok(&["down", "--dir", cluster.dir().to_str().unwrap()]);
    cluster.up();
    assert_eq!(kib(), 4 + 512 + 4);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"y", 20 * MIB as u64).unwrap();
    assert_eq!(kib(), 4 + 512 + 4 + 4);
}

#[test]
fn truncation_never_brings_old_bytes_back() {
    let cluster = Cluster::start(Options::default());
    let path = cluster.mount().join("t");
    fs::write(&path, vec![0xaa; 65 * MIB]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for (shrink, grow) in [(64 * MIB + 5, 65 * MIB), (10_001, 66 * MIB), (0, 5000)] {
        file.set_len(shrink as u64).unwrap();
        assert_eq!(file.metadata().unwrap().len(), shrink as u64);
        file.set_len(grow as u64).unwrap();
        let mut tail = vec![1; grow - shrink];
        file.read_exact_at(&mut tail, shrink as u64).unwrap();
        assert!(tail.iter().all(|b| *b == 0), "bytes past {shrink} came back");
    }
}

#[test]
fn a_program_that_runs_is_not_emptied() {
    let cluster = Cluster::start(Options::default());
    let program = cluster.mount().join("program");
    fs::copy("/bin/sleep", &program).unwrap();
    let size = fs::metadata(&program).unwrap().len();
    let mut running = Command::new(&program).arg("600").spawn().unwrap();
    // Reading and truncating is what the kernel does not refuse by itself before it asks the file system to open.
    let opened = rustix::fs::open(&program, OFlags::RDONLY | OFlags::TRUNC, Mode::empty());
    let state = running.try_wait();
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(opened.err(), Some(Errno::TXTBSY));
    assert_eq!(state.unwrap(), None, "the program died");
    assert_eq!(fs::metadata(&program).unwrap().len(), size);
    fs::write(&program, "").unwrap();
    assert_eq!(fs::metadata(&program).unwrap().len(), 0, "it can be emptied once it has ended");
}

#[test]
fn an_unlinked_file_lives_until_its_last_close() {
    let cluster = Cluster::start(Options::default());
    let path = cluster.mount().join("gone");
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).unwrap();
    file.write_all_at(&pattern(3, 0, MIB), 0).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    file.write_all_at(&pattern(3, MIB as u64, MIB), MIB as u64).unwrap();
    assert_pattern(&file, 3, 0, 2 * MIB);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let other = File::create(&path).unwrap();
    assert_eq!(other.metadata().unwrap().len(), 0);
}

#[test]
fn any_change_of_the_content_or_the_owner_takes_file_capabilities() {
    let mut cluster = Cluster::start(Options::default());
    let second = cluster.mount_again();
    let mount = cluster.mount();
    shell(&mount, "seq 100000 > program && chmod 777 program && setfattr -n user.kept -v value program");
    let other = second.join("program").display().to_string();
    let write = "dd of=program bs=8 count=1 conv=notrunc status=none <<< overwritten";
    let nobody = format!("setpriv --reuid 65534 --regid 65534 --clear-groups {write}");
    let changes = [
        write,
        nobody.as_str(),
        "echo more >> program",
        "truncate -s 4096 program",
        "truncate -s 4096 program",
        "fallocate -l 1M program",
        "fallocate -l 4096 program",
        "fallocate -p -o 0 -l 4096 program",
        "chown 1 program",
        "chgrp 1 program",
        // Within a write delegation: made here and not closed.
        "exec 9> made && setcap cap_net_raw+ep made && echo x >&9 && test -z \"$(getcap made)\"",
    ];
    for change in changes {
        // CAP_NET_RAW, permitted and effective, as setcap(8) writes it.
        shell(&mount, "setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 program");
        assert_ne!(shell(&second, &format!("getcap {other}")), "", "before {change}");
        shell(&mount, change);
        if change.contains("made") {
            continue;
        }
        for path in ["program", other.as_str()] {
            let left = shell(&mount, &format!("getfattr --absolute-names -m - {path}"));
            assert!(!left.contains("security.capability") && left.contains("user.kept"), "after {change}: {left}");
        }
    }
}

#[test]
fn a_directory_of_many_entries_lists_each_once_while_it_changes() {
    let cluster = Cluster::start(Options::default());
    let dir = cluster.mount().join("many");
    fs::create_dir(&dir).unwrap();
    for n in 0..3000 {
        File::create(dir.join(format!("keep-{n:05}"))).unwrap();
        if n % 3 == 0 {
            File::create(dir.join(format!("drop-{n:05}"))).unwrap();
        }
    }
    let mut kept = std::collections::BTreeMap::new();
    for (at, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if at % 10 == 0 {
            let _ = fs::remove_file(dir.join(format!("drop-{:05}", at / 10 * 3)));
            File::create(dir.join(format!("new-{at:05}"))).unwrap();
        }
        if name.starts_with("keep") {
            *kept.entry(name).or_insert(0) += 1;
        }
    }
    assert_eq!(kept.len(), 3000);
    assert!(kept.values().all(|count| *count == 1), "an entry was listed twice");
}
