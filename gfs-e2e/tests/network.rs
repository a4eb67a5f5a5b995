//! Cut cables: between any two hosts, or one host and all, both ways or one way. What was promised holds.
//!
//! Each test prints the longest stall beside what is promised (P6); what is asserted leaves room for a busy machine.

use gfs_e2e::Spread;
use gfs_e2e::cluster::{text, wait_until};
use gfs_e2e::load::{Load, Stalls};
use gfs_e2e::network::Network;
use gfs_e2e::spread::{CLIENTS, MASTER, SERVERS};
use gfs_e2e::work::{assert_pattern, names, pattern, shell};
use rustix::fs::FlockOperation::{LockExclusive, NonBlockingLockExclusive};
use rustix::fs::{Mode, flock, mkdirat};
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

/// What a mount holds: a directory that it has made, a file in it, and a file of another mount that it is writing.
struct Holding {
    directory: File,
    new: File,
    old: File,
}

/// Bytes of each of the two files that were synced.
const SYNCED: usize = 64 << 10;
/// Bytes of a write that is answered early.
const EARLY: usize = 4096;

impl Holding {
    /// All of it is synced.
    fn make(mount: &Path, old: &Path) -> Self {
        std::fs::create_dir(mount.join("d")).unwrap();
        let new = File::create(mount.join("d/new")).unwrap();
        new.write_all_at(&pattern(2, 0, SYNCED), 0).unwrap();
        new.sync_all().unwrap();
        let directory = File::open(mount.join("d")).unwrap();
        directory.sync_all().unwrap();
        // Held from the second write on.
        let old = OpenOptions::new().read(true).write(true).open(old).unwrap();
        (0..SYNCED).step_by(EARLY).for_each(|at| old.write_all_at(&pattern(3, at as u64, EARLY), at as u64).unwrap());
        old.sync_all().unwrap();
        Self { directory, new, old }
    }

    /// Changes all of it. Nobody but this mount needs to be asked for that.
    fn change(&self) {
        self.new.write_all_at(&pattern(4, 0, EARLY), 0).unwrap();
        self.new.write_all_at(&pattern(4, SYNCED as u64, EARLY), SYNCED as u64).unwrap();
        self.old.write_all_at(&pattern(4, 0, EARLY), 0).unwrap();
        self.old.write_all_at(&pattern(4, SYNCED as u64, EARLY), SYNCED as u64).unwrap();
        mkdirat(&self.directory, "late", Mode::RWXU).unwrap();
        mkdirat(&self.directory, "taken", Mode::RWXU).unwrap();
    }
}

#[test]
fn a_mount_that_is_cut_off_with_all_that_it_holds_delays_others_by_its_lease_and_writes_nothing_over_theirs() {
    let cluster = Spread::start();
    let [a, b] = CLIENTS.map(|host| cluster.mount(host));
    std::fs::write(b.join("old"), pattern(1, 0, SYNCED)).unwrap();
    let held = Holding::make(&a, &a.join("old"));
    cluster.network.isolate(CLIENTS[0]);
    held.change();

    // Others go on, with what was synced and nothing else.
    let cut = Instant::now();
    assert_eq!(names(&b.join("d")), ["new"]);
    println!("a directory of a mount that was cut off was listed after {:.1} s", cut.elapsed().as_secs_f64());
    assert!(std::fs::read(b.join("d/new")).unwrap() == pattern(2, 0, SYNCED), "the new file is not what was synced");
    assert!(std::fs::read(b.join("old")).unwrap() == pattern(3, 0, SYNCED), "the old file is not what was synced");
    let of_the_other = [b.join("d/new"), b.join("old")].map(|path| OpenOptions::new().write(true).open(path).unwrap());
    of_the_other.iter().for_each(|file| file.write_all_at(&pattern(5, 0, EARLY), 0).unwrap());
    std::fs::write(b.join("d/taken"), b"of the other mount").unwrap();
    println!("all that it held was changed after {:.1} s (promise 10)", cut.elapsed().as_secs_f64());
    assert!(cut.elapsed() < LEASE_AND_MORE, "others waited for {:?}", cut.elapsed());
    of_the_other.iter().for_each(|file| file.sync_all().unwrap());

    // It comes back: what it had changed is lost, it is told so once for each, and nothing lands.
    cluster.network.heal();
    is_io_error("a sync of a new file that was lost", held.new.sync_all());
    is_io_error("a sync of an old file that was lost", held.old.sync_all());
    is_io_error("a sync of a directory that was lost", held.directory.sync_all());
    wait_until("nothing is on its way any more", 3 * STALL, || on_their_way(&cluster, CLIENTS[0]) == 0);
    for mount in [&a, &b] {
        assert_eq!(names(&mount.join("d")), ["new", "taken"]);
        assert_eq!(std::fs::read(mount.join("d/taken")).unwrap(), b"of the other mount");
        for (name, seed) in [("d/new", 2), ("old", 3)] {
            let mut expected = pattern(seed, 0, SYNCED);
            expected[..EARLY].copy_from_slice(&pattern(5, 0, EARLY));
            assert!(std::fs::read(mount.join(name)).unwrap() == expected, "{name} in {}", mount.display());
        }
    }

    // It goes on, with what it has open too.
    held.new.write_all_at(b"again", 0).unwrap();
    held.old.write_all_at(b"again", 0).unwrap();
    mkdirat(&held.directory, "late", Mode::RWXU).unwrap();
    [&held.new, &held.old, &held.directory].into_iter().for_each(|file| file.sync_all().unwrap());
    assert_eq!(names(&b.join("d")), ["late", "new", "taken"]);
    assert!(["d/new", "old"].iter().all(|name| std::fs::read(b.join(name)).unwrap().starts_with(b"again")));
    cluster.wait_until_healthy();
    cluster.assert_copies_are_equal();
}
