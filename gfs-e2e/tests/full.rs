//! Full and failing disks: of all chunk servers, of one directory of one, of the master. A full disk says ENOSPC, deleting still works,
//! and what was written stays.

use gfs_e2e::cluster::wait_until;
use gfs_e2e::small::{Sizes, SmallCluster};
use gfs_e2e::work::{assert_pattern, pattern};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// A call that takes longer hangs.
const STALL: Duration = Duration::from_secs(20);
/// How long space may take to come back.
const ROOM: Duration = Duration::from_secs(60);

fn free(mount: &Path) -> u64 {
    let stat = rustix::fs::statvfs(mount).unwrap();
    stat.f_bavail * stat.f_frsize
}

fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOSPC.raw_os_error())
}

/// Writes a file until the cluster is full. Returns how much was written and synced, and the longest call.
fn fill(path: &Path, seed: u64) -> (u64, Duration) {
    const PIECE: u64 = 256 << 10;
    let (file, mut synced, mut longest) = (create(path), 0, Duration::ZERO);
    for piece in 0..u64::MAX {
        let start = Instant::now();
        let written = file.write_all_at(&pattern(seed, piece * PIECE, PIECE as usize), piece * PIECE);
        longest = longest.max(start.elapsed());
        if let Err(error) = written {
            assert!(is_full(&error), "writer {seed}: {error} instead of ENOSPC");
            break;
        }
        if piece % 8 == 7 {
            file.sync_all().unwrap_or_else(|error| panic!("writer {seed}: sync of what was written: {error}"));
            synced = (piece + 1) * PIECE;
        }
    }
    let start = Instant::now();
    file.sync_all().unwrap_or_else(|error| panic!("writer {seed}: sync after ENOSPC: {error}"));
    (synced, longest.max(start.elapsed()))
}

#[test]
fn a_full_cluster_says_so_keeps_what_it_has_and_goes_on_when_files_are_deleted() {
    const WRITERS: u64 = 8;
    let cluster = SmallCluster::start(Sizes { master: 0, servers: &[&[512], &[512], &[512]] });
    let mount = cluster.mount();
    let path = |seed: u64| mount.join(format!("f{seed}"));
    let before = free(&mount);
    let started = Instant::now();
    let filled: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|seed| scope.spawn(move || fill(&path(seed), seed))).collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    let synced: u64 = filled.iter().map(|(synced, _)| synced).sum();
    let longest = filled.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    let secs = started.elapsed().as_secs_f64();
    println!("{} MiB until full in {secs:.1} s, longest call {:.2} s", synced / MIB, longest.as_secs_f64());
    assert!(longest < STALL, "a call took {longest:?}");
    assert!(synced > before / 2, "full after {synced} bytes although {before} were free");
    wait_until("df tells that it is full", ROOM, || free(&mount) < before / 10);
    println!("free as df tells: {} MiB before, {} MiB full", before / MIB, free(&mount) / MIB);
    assert!(cluster.gfs_ok(&["df"]).contains('%'));
    let all_right = |seeds: std::ops::Range<u64>| {
        for seed in seeds {
            assert_pattern(&File::open(path(seed)).unwrap(), seed, 0, filled[seed as usize].0 as usize);
        }
    };
    all_right(0..WRITERS);
    // Names need no chunk server.
    std::fs::rename(path(7), mount.join("renamed")).unwrap();
    std::fs::rename(mount.join("renamed"), path(7)).unwrap();
    let refused = std::fs::write(mount.join("one more"), pattern(50, 0, MIB as usize));
    assert!(is_full(&refused.expect_err("a write to a full cluster")));

    std::fs::remove_file(path(0)).unwrap();
    cluster.gfs_ok(&["rm", "/f1"]);
    let deleted = Instant::now();
    wait_until("there is room again", ROOM, || {
        std::fs::write(mount.join("after"), pattern(51, 0, MIB as usize)).is_ok()
    });
    println!("a write is taken {:.1} s after files were deleted", deleted.elapsed().as_secs_f64());
    wait_until("df tells of it", ROOM, || free(&mount) > (filled[0].0 + filled[1].0) / 2);
    std::fs::write(mount.join("more"), pattern(52, 0, (4 * MIB) as usize)).unwrap();
    assert_eq!(std::fs::read(mount.join("more")).unwrap(), pattern(52, 0, (4 * MIB) as usize));
    all_right(2..WRITERS);
    cluster.wait_until_healthy();
}

/// Writes files until `enough`; every call must succeed. Returns the files.
fn write_files(mount: &Path, first: u64, count: u64) -> Vec<(PathBuf, u64)> {
    let numbers = first..first + count;
    numbers
        .map(|number| {
            let path = mount.join(format!("file-{number}"));
            let file = create(&path);
            file.write_all_at(&pattern(number, 0, 2 * MIB as usize), 0).expect("write");
            file.sync_all().expect("sync");
            (path, number)
        })
        .collect()
}

fn all_read_back(files: &[(PathBuf, u64)]) {
    files.iter().for_each(|(path, number)| {
        assert_pattern(&File::open(path).unwrap(), *number, 0, 2 * MIB as usize);
    });
}

#[test]
fn a_full_or_failing_directory_of_a_server_is_no_fault_of_its_other_directory() {
    let cluster = SmallCluster::start(Sizes { master: 0, servers: &[&[400, 400], &[500], &[500], &[500]] });
    let mount = cluster.mount();
    let mut files = write_files(&mount, 0, 8);
    let growing = create(&mount.join("growing"));
    growing.write_all_at(&pattern(99, 0, MIB as usize), 0).unwrap();

    // A stranger fills one directory: new chunks go to the other, and what lies in the full one can be read.
    cluster.disk_of(0, 0).fill();
    let start = Instant::now();
    files.extend(write_files(&mount, 100, 8));
    println!("a full directory: 8 files written in {:.1} s", start.elapsed().as_secs_f64());
    // A chunk does not move while it is written: the one that the full directory leads cannot grow, and says so.
    let grown = growing.write_all_at(&pattern(99, MIB, MIB as usize), MIB);
    println!("a file that may lie in the full directory grows: {grown:?}");
    assert!(grown.as_ref().err().is_none_or(is_full), "{grown:?} instead of ENOSPC");
    growing.sync_all().unwrap();
    all_read_back(&files);
    assert_pattern(&growing, 99, 0, MIB as usize);
    cluster.disk_of(0, 0).make_room();
    cluster.wait_until_healthy();
    growing.write_all_at(&pattern(99, MIB, MIB as usize), MIB).unwrap();
    assert_pattern(&growing, 99, 0, 2 * MIB as usize);

    // The same directory fails: the server goes on with the other one, and all chunks get their three copies.
    cluster.disk_of(0, 0).fail();
    let start = Instant::now();
    files.extend(write_files(&mount, 200, 8));
    println!("a failed directory: 8 files written in {:.1} s", start.elapsed().as_secs_f64());
    all_read_back(&files);
    let mut said = String::new();
    wait_until("all chunks have their copies, and the failed disk is told", ROOM, || {
        said = cluster.gfs_ok(&["status"]);
        said.contains("failed") && !said.contains("below")
    });
    println!("{said}");
    all_read_back(&files);
}

#[test]
fn a_full_log_of_the_master_refuses_changes_and_goes_on_when_there_is_room() {
    let mut cluster = SmallCluster::start(Sizes { master: 256, servers: &[&[320], &[320], &[320]] });
    let mount = cluster.mount();
    let files = write_files(&mount, 0, 4);
    cluster.master_disk().fill();
    // 60 KiB of log each: what is left of the segment lasts for about a thousand.
    let value = pattern(7, 0, 60_000);
    let set = |number: u64| {
        let path = mount.join(format!("named-{number}"));
        File::create(&path).and_then(|_| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&path, "user.filler", &value, flags).map_err(io::Error::from)
        })
    };
    let (mut made, mut longest, mut refused) = (0, Duration::ZERO, None);
    while refused.is_none() && made < 5000 {
        let start = Instant::now();
        match set(made) {
            Ok(()) => made += 1,
            Err(error) => refused = Some(error),
        }
        longest = longest.max(start.elapsed());
    }
    println!("{made} names until the master's log was full, longest call {:.2} s", longest.as_secs_f64());
    let refused = refused.expect("a refusal of a master whose log is full");
    assert!(is_full(&refused), "{refused} instead of ENOSPC");
    assert!(longest < STALL, "a call took {longest:?}");
    assert!(cluster.master_runs(), "the master has ended");
    // Once more, and reads go on.
    let start = Instant::now();
    let refused = set(made).expect_err("a change while the log is full");
    assert!(is_full(&refused), "{refused} instead of ENOSPC");
    assert!(start.elapsed() < STALL, "a refusal took {:?}", start.elapsed());
    all_read_back(&files);
    let listed: Vec<_> = std::fs::read_dir(&mount).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!((0..made).all(|number| listed.contains(&format!("named-{number}").into())), "{listed:?}");

    cluster.master_disk().make_room();
    let room = Instant::now();
    wait_until("changes are taken again", ROOM, || set(made + 10).is_ok());
    println!("a change is taken {:.1} s after there was room", room.elapsed().as_secs_f64());
    cluster.restart_master();
    for number in 0..made {
        let mut found = vec![0; value.len()];
        let length = rustix::fs::getxattr(mount.join(format!("named-{number}")), "user.filler", &mut found).unwrap();
        assert!(found[..length] == value, "the attribute of {number}");
    }
    all_read_back(&files);
    cluster.wait_until_healthy();
}
