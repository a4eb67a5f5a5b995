//! Cut cables: between any two hosts, or one host and all, both ways or one way. What was promised holds.
//!
//! Each test prints the longest stall beside what is promised (P6); what is asserted leaves room for a busy machine.

use gfs_e2e::Spread;
use gfs_e2e::cluster::{text, wait_until};
use gfs_e2e::load::{Load, Stalls};
use gfs_e2e::network::Network;
use gfs_e2e::spread::{CLIENTS, MASTER, SERVERS};
use gfs_e2e::work::{assert_pattern, pattern, shell};
use rustix::fs::FlockOperation::{LockExclusive, NonBlockingLockExclusive};
use rustix::fs::flock;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A call that takes longer hangs, whatever the machine is busy with.
const STALL: Duration = Duration::from_secs(10);
/// Longer than the lease of a chunk server (1.6 s), and than others wait for a member that they cannot reach (2.3 s).
const CUT: Duration = Duration::from_secs(4);
/// Longer than a write may wait for it that a member which others cannot reach is asked to leave.
const LONG_CUT: Duration = Duration::from_secs(8);
/// Half of the lease of a session.
const SHORT_FOR_A_SESSION: Duration = Duration::from_secs(5);
/// How long others may have to wait for a session whose lease of 10 s ends.
const LEASE_AND_MORE: Duration = Duration::from_secs(20);

fn mounts(cluster: &Spread) -> Vec<PathBuf> {
    CLIENTS.iter().map(|host| cluster.mount(host)).collect()
}

/// Cuts for a while under load, heals, waits until every chunk has its copies again and compares them.
fn cut_under_load(
    cluster: &Spread,
    load: &Load,
    (what, length, stall): (&str, Duration, Duration),
    cut: impl FnOnce(&Network),
) -> Stalls {
    let stalls = load.during(|| {
        cut(&cluster.network);
        std::thread::sleep(length);
        cluster.network.heal();
    });
    println!("{what} for {} s: {stalls}", length.as_secs());
    let healed = Instant::now();
    cluster.wait_until_healthy();
    println!("    healthy again after another {:.1} s", healed.elapsed().as_secs_f64());
    assert!(stalls.longest() < stall, "{what}: {stalls:?}");
    cluster.assert_copies_are_equal();
    stalls
}

#[test]
fn a_chunk_server_that_is_cut_from_all_both_ways_or_one_way_fails_no_call() {
    let cluster = Spread::start();
    let load = Load::new(&mounts(&cluster));
    let [first, second, third] = SERVERS;
    cut_under_load(&cluster, &load, ("a chunk server cut from all", CUT, STALL), |network| network.isolate(first));
    cut_under_load(&cluster, &load, ("a chunk server that hears nobody", CUT, STALL), |network| network.deafen(second));
    cut_under_load(&cluster, &load, ("a chunk server that nobody hears", CUT, STALL), |network| network.mute(third));
}

#[test]
fn chunk_servers_that_are_cut_from_each_other_or_from_one_client_fail_no_call() {
    let cluster = Spread::start();
    let load = Load::new(&mounts(&cluster));
    let what = ("two chunk servers cut from each other", LONG_CUT, STALL);
    cut_under_load(&cluster, &load, what, |network| network.cut(SERVERS[0], SERVERS[1]));
    let what = ("a client cut from one chunk server", LONG_CUT, STALL);
    cut_under_load(&cluster, &load, what, |network| network.cut(CLIENTS[0], SERVERS[1]));
}

#[test]
fn a_master_that_is_cut_from_all_chunk_servers_for_longer_than_their_lease_fails_no_call() {
    let cluster = Spread::start();
    let load = Load::new(&mounts(&cluster));
    let what = ("the master cut from all chunk servers", CUT, CUT + STALL);
    cut_under_load(&cluster, &load, what, |network| SERVERS.iter().for_each(|server| network.cut(MASTER, server)));
}

/// Makes a file, and locks it over one mount.
fn locked(dir: &Path, name: &str) -> File {
    std::fs::write(dir.join(name), pattern(1, 0, LOCKED)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(dir.join(name)).unwrap();
    file.sync_all().unwrap();
    flock(&file, NonBlockingLockExclusive).unwrap();
    file
}

const LOCKED: usize = 1 << 20;

/// A file that only its open descriptor knows.
fn unlinked(dir: &Path) -> File {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(true).read(true).write(true).open(dir.join("unlinked")).unwrap();
    file.write_all_at(&pattern(2, 0, 100_000), 0).unwrap();
    file.sync_all().unwrap();
    std::fs::remove_file(dir.join("unlinked")).unwrap();
    file
}

#[test]
fn a_client_that_is_cut_from_the_master_for_less_than_its_lease_keeps_locks_and_open_files() {
    let cluster = Spread::start();
    let [a, b] = CLIENTS.map(|host| cluster.mount(host));
    let load = Load::new(std::slice::from_ref(&a));
    let (held, gone) = (locked(&a, "locked"), unlinked(&a));
    let other = File::open(b.join("locked")).unwrap();
    let is_held = || assert_eq!(flock(&other, NonBlockingLockExclusive), Err(Errno::AGAIN), "the lock was lost");
    let stalls = load.during(|| {
        cluster.network.cut(CLIENTS[0], MASTER);
        std::thread::sleep(SHORT_FOR_A_SESSION);
        is_held();
        cluster.network.heal();
    });
    println!("a client cut from the master for {} s: {stalls}", SHORT_FOR_A_SESSION.as_secs());
    assert!(stalls.longest() < SHORT_FOR_A_SESSION + STALL, "{stalls:?}");
    is_held();
    assert_pattern(&gone, 2, 0, 100_000);
    held.write_all_at(b"still mine", 0).unwrap();
    held.sync_all().unwrap();
    drop(held);
    wait_until("the lock is free", STALL, || flock(&other, NonBlockingLockExclusive).is_ok());
}

/// Waits for a lock that a mount holds which is cut off; prints how long that took.
fn lock_of_a_lost_mount(file: &File) {
    let start = Instant::now();
    flock(file, LockExclusive).unwrap();
    println!("the lock of a mount that was cut off: after {:.1} s (promise 10)", start.elapsed().as_secs_f64());
    assert!(start.elapsed() < LEASE_AND_MORE, "a lock of a lost mount took {:?}", start.elapsed());
}

fn is_io_error<T: std::fmt::Debug>(what: &str, result: io::Result<T>) {
    let error = result.expect_err(what);
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "{what}: {error}");
}

#[test]
fn a_client_that_is_cut_off_for_longer_than_its_lease_learns_what_it_lost_and_works_again() {
    let cluster = Spread::start();
    let [a, b] = CLIENTS.map(|host| cluster.mount(host));
    let (held, gone) = (locked(&a, "locked"), unlinked(&a));
    let unsynced = File::create(a.join("unsynced")).unwrap();
    let kept = File::create(a.join("kept")).unwrap();
    kept.write_all_at(&pattern(3, 0, 5000), 0).unwrap();
    kept.sync_all().unwrap();
    let other = OpenOptions::new().read(true).write(true).open(b.join("locked")).unwrap();
    unsynced.write_all_at(&pattern(4, 0, 5000), 0).unwrap();
    cluster.network.isolate(CLIENTS[0]);

    lock_of_a_lost_mount(&other);
    other.write_all_at(&pattern(5, 0, LOCKED), 0).unwrap();
    other.sync_all().unwrap();
    std::fs::write(b.join("unsynced"), b"of the other mount").unwrap();
    assert_eq!(std::fs::read(b.join("kept")).unwrap(), pattern(3, 0, 5000), "what was synced is there");

    cluster.network.heal();
    let healed = Instant::now();
    shell(&a, "mkdir again && echo x > again/f && cat again/f");
    println!("a mount that was cut off works {:.1} s after the cut was healed", healed.elapsed().as_secs_f64());
    assert!(healed.elapsed() < STALL, "a mount took {:?} to work again", healed.elapsed());
    // Told once for each file, and nothing of it lands.
    is_io_error("a write under a lock that was lost", held.write_all_at(b"mine?", 0));
    is_io_error("a sync of what was lost", unsynced.sync_all());
    assert_pattern(&other, 5, 0, LOCKED);
    assert_eq!(std::fs::read(b.join("unsynced")).unwrap(), b"of the other mount");
    // The last name is gone, and so was the session that held it open: an error, not other bytes.
    let mut found = vec![0; 100_000];
    let read = gone.read_exact_at(&mut found, 0);
    println!("an unlinked file of the mount that was cut off: {read:?}");
    assert!(read.is_err() || found == pattern(2, 0, 100_000));
    // Now it knows: both go on together, the lock is the other's.
    assert_eq!(flock(&held, NonBlockingLockExclusive), Err(Errno::AGAIN));
    held.write_all_at(b"known", 0).unwrap();
    let mut start = [0; 5];
    other.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"known");
    cluster.wait_until_healthy();
    cluster.assert_copies_are_equal();
}

/// Bytes that the kernel of a client still has to bring to chunk servers or the master.
fn on_their_way(cluster: &Spread, host: &str) -> u64 {
    let output = cluster.network.command(host, "ss").args(["-Htn"]).output().expect("run ss");
    assert!(output.status.success(), "ss: {}", text(&output));
    let queued = |line: &str| line.split_whitespace().nth(2).and_then(|bytes| bytes.parse::<u64>().ok());
    text(&output).lines().filter_map(queued).sum()
}

/// Writes on and on, and returns the first error.
fn write_until_refused(file: &File) -> io::Error {
    let begun = Instant::now();
    for round in (0..).take_while(|_| begun.elapsed() < 6 * STALL) {
        let offset = round % 4 * (LOCKED as u64 / 4);
        if let Err(error) = file.write_all_at(&pattern(6, offset, LOCKED / 4), offset) {
            return error;
        }
    }
    panic!("no write failed of a session that was lost")
}

#[test]
fn nothing_that_a_client_sent_before_it_was_cut_off_lands_over_what_another_wrote_since() {
    const FILES: usize = 4;
    let cluster = Spread::start();
    let [a, b] = CLIENTS.map(|host| cluster.mount(host));
    let names: Vec<_> = (0..FILES).map(|number| format!("locked-{number}")).collect();
    let held: Vec<_> = names.iter().map(|name| locked(&a, name)).collect();
    let others: Vec<_> =
        names.iter().map(|name| OpenOptions::new().read(true).write(true).open(b.join(name)).unwrap()).collect();
    std::thread::scope(|scope| {
        // The bytes of some writes are on their way when the cable is cut.
        cluster.network.slow(CLIENTS[0], 40);
        let writers: Vec<_> = held.iter().map(|file| scope.spawn(|| write_until_refused(file))).collect();
        wait_until("all write", STALL, || held.iter().all(|file| holds(file, 6, LOCKED)));
        cluster.network.isolate(CLIENTS[0]);
        println!("{} bytes are on their way when the cable is cut", on_their_way(&cluster, CLIENTS[0]));
        for (number, other) in others.iter().enumerate() {
            lock_of_a_lost_mount(other);
            other.write_all_at(&pattern(10 + number as u64, 0, LOCKED), 0).unwrap();
            other.sync_all().unwrap();
        }
        println!("{} bytes are on their way when it is whole again", on_their_way(&cluster, CLIENTS[0]));
        cluster.network.heal();
        for writer in writers {
            is_io_error("a write that was under way", Err::<(), _>(writer.join().expect("a writer")));
        }
    });
    // The kernel goes on sending what it has, at longer and longer intervals.
    wait_until("nothing is on its way any more", 3 * STALL, || on_their_way(&cluster, CLIENTS[0]) == 0);
    cluster.wait_until_healthy();
    for (number, other) in others.iter().enumerate() {
        assert_pattern(other, 10 + number as u64, 0, LOCKED);
    }
}

fn holds(file: &File, seed: u64, length: usize) -> bool {
    let mut found = vec![0; length];
    file.read_exact_at(&mut found, 0).is_ok() && found == pattern(seed, 0, length)
}
