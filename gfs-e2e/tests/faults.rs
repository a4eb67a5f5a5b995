//! Daemons die; what was promised holds.

use gfs_e2e::cluster::wait_until;
use gfs_e2e::work::{assert_pattern, names, pattern, shell};
use gfs_e2e::{Cluster, Options};
use rustix::fs::Mode;
use rustix::process::Signal;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// Runs `work` over and over until `stop`; returns its longest single call.
fn longest_call(stop: &AtomicBool, mut work: impl FnMut(u64)) -> Duration {
    let mut longest = Duration::ZERO;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        work(round);
        longest = longest.max(start.elapsed());
        round += 1;
    }
    longest
}

/// P6 promises half a second for a read of data that nobody writes, and 3 s for a write; the figures are printed. A busy machine may
/// take longer, a mount that hangs takes far longer than this.
const READ_STALL: Duration = Duration::from_secs(5);
const WRITE_STALL: Duration = Duration::from_secs(12);

/// Reads one file and writes another while `fault` happens; every call must succeed. Returns the written file and
/// the longest call of each kind. The written file holds pattern 6 up to its length.
fn stalls_under_load(mount: &Path, fault: impl FnOnce()) -> (File, Duration, Duration) {
    std::fs::write(mount.join("read"), pattern(5, 0, 64 * MIB)).unwrap();
    let reader = File::open(mount.join("read")).unwrap();
    let mut options = OpenOptions::new();
    let writer = options.create(true).read(true).write(true).truncate(true).open(mount.join("write")).unwrap();
    let (stop, writes_done) = (AtomicBool::new(false), AtomicU64::new(0));
    let written = || writes_done.load(Ordering::Relaxed);
    let (read_stall, write_stall) = std::thread::scope(|scope| {
        let reads = scope.spawn(|| longest_call(&stop, |n| assert_pattern(&reader, 5, n * 7 % 63 * MIB as u64, MIB)));
        let writes = scope.spawn(|| {
            longest_call(&stop, |n| {
                let offset = n % 150 * MIB as u64;
                writer.write_all_at(&pattern(6, offset, MIB), offset).expect("write during a fault");
                writes_done.fetch_add(1, Ordering::Relaxed);
            })
        });
        wait_until("some data is written", Duration::from_secs(30), || written() > 20);
        fault();
        let after = written();
        wait_until("writes go on", Duration::from_secs(60), || written() > after + 60 || writes.is_finished());
        stop.store(true, Ordering::Relaxed);
        (reads.join().expect("reader"), writes.join().expect("writer"))
    });
    println!("longest stall: read {read_stall:?}, write {write_stall:?}");
    (writer, read_stall, write_stall)
}

fn assert_written(file: &File) {
    let length = file.metadata().unwrap().len();
    (0..length).step_by(MIB).for_each(|offset| assert_pattern(file, 6, offset, MIB));
}

fn wait_until_healthy(cluster: &Cluster) {
    wait_until("all chunks are back at their goal", Duration::from_secs(90), || {
        cluster.gfs_ok(&["status"]).lines().next().is_some_and(|line| line.trim() == "healthy")
    });
}

#[test]
fn a_killed_chunk_server_fails_no_call() {
    let cluster = Cluster::start(Options::default());
    let (file, read_stall, write_stall) = stalls_under_load(&cluster.mount(), || cluster.kill("chunkd-2"));
    assert!(read_stall < READ_STALL, "a read took {read_stall:?}");
    assert!(write_stall < WRITE_STALL, "a write took {write_stall:?}");
    assert_written(&file);
    // The server comes back and is filled up again; then another may die.
    cluster.up();
    wait_until_healthy(&cluster);
    cluster.kill("chunkd-1");
    assert_written(&file);
}

#[test]
fn a_stopped_chunk_server_fails_no_call() {
    let cluster = Cluster::start(Options::default());
    for round in 1..=3 {
        let name = format!("chunkd-{round}");
        let (file, read_stall, write_stall) =
            stalls_under_load(&cluster.mount(), || cluster.signal(&name, Signal::STOP));
        assert!(read_stall < READ_STALL, "round {round}: a read took {read_stall:?}");
        assert!(write_stall < WRITE_STALL, "round {round}: a write took {write_stall:?}");
        assert_written(&file);
        // It wakes up fenced: nothing that it says or holds may bring old bytes back.
        cluster.signal(&name, Signal::CONT);
        wait_until_healthy(&cluster);
        assert_written(&file);
    }
}

#[test]
fn times_of_a_write_in_place_that_were_shown_survive_the_kill_of_all_daemons() {
    let mut cluster = Cluster::start(Options::default());
    let (mount, second) = (cluster.mount(), cluster.mount_again());
    std::fs::write(mount.join("f"), [0; 4096]).unwrap();
    // Looked at by the other mount, the file is not its maker's any more: each write tells the master of its time.
    let mtime = |mount: &Path| std::fs::metadata(mount.join("f")).unwrap().modified().unwrap();
    let mut before = mtime(&second);
    let file = OpenOptions::new().write(true).open(mount.join("f")).unwrap();
    for round in 0..3 {
        file.write_all_at(b"x", round).unwrap();
        let shown = mtime(&second);
        assert!(shown > before, "round {round}");
        cluster.kill_daemons();
        cluster.up();
        assert_eq!((mtime(&mount), mtime(&second)), (shown, shown), "round {round}");
        before = shown;
    }
}

#[test]
fn what_was_synced_survives_the_kill_of_all_daemons() {
    let cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    let mut synced: Vec<(u64, u64)> = Vec::new();
    for round in 0..4u64 {
        let file =
            OpenOptions::new().create(true).read(true).write(true).truncate(false).open(mount.join("data")).unwrap();
        let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
        let new = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut done = Vec::new();
                for n in 0.. {
                    written.store(n, Ordering::Relaxed);
                    let block = (n * 37 + round * 11) % 2000;
                    let seed = round * 100_000 + n;
                    let wrote = file.write_all_at(&pattern(seed, block * 4096, 4096), block * 4096);
                    if wrote.and_then(|()| file.sync_data()).is_err() || stop.load(Ordering::Relaxed) {
                        // The last one is in doubt: either old or new.
                        done.push((block, seed, false));
                        return done;
                    }
                    done.push((block, seed, true));
                }
                done
            });
            let end = Instant::now() + Duration::from_secs(60);
            while written.load(Ordering::Relaxed) < 40 && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            cluster.kill_daemons();
            stop.store(true, Ordering::Relaxed);
            cluster.up();
            writer.join().expect("writer")
        });
        assert!(written.load(Ordering::Relaxed) >= 40, "too few blocks were synced");
        drop(file);
        let mut doubtful = None;
        for (block, seed, sure) in new {
            synced.retain(|(b, _)| *b != block || !sure);
            if sure {
                synced.push((block, seed));
            } else {
                doubtful = Some((block, seed));
            }
        }
        let file = File::open(mount.join("data")).unwrap();
        for (block, seed) in &synced {
            let mut found = vec![0; 4096];
            file.read_exact_at(&mut found, block * 4096).unwrap();
            let fresh = doubtful.filter(|(b, _)| b == block).is_some_and(|(b, s)| found == pattern(s, b * 4096, 4096));
            assert!(
                fresh || found == pattern(*seed, block * 4096, 4096),
                "round {round}: block {block} is neither old nor new"
            );
        }
        assert!(!synced.is_empty(), "nothing was synced before the kill");
        if let Some((block, seed)) = doubtful {
            let mut found = vec![0; 4096];
            if file.read_exact_at(&mut found, block * 4096).is_ok() && found == pattern(seed, block * 4096, 4096) {
                synced.retain(|(b, _)| *b != block);
                synced.push((block, seed));
            }
        }
    }
}

#[test]
fn small_files_that_were_just_written_survive_the_kill_of_all_daemons_but_the_mount() {
    let mut cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    let path = |round: u64, number: u64| format!("{round}-{number}");
    for round in 0..3 {
        for number in 0..60 {
            std::fs::write(mount.join(path(round, number)), pattern(number, round, 4000)).unwrap();
        }
        // Some of them are on their way to the replicas.
        cluster.kill_daemons();
        cluster.up();
    }
    let second = cluster.mount_again();
    for (round, number) in (0..3).flat_map(|round| (0..60).map(move |number| (round, number))) {
        let found = std::fs::read(second.join(path(round, number))).unwrap();
        assert!(found == pattern(number, round, 4000), "{}", path(round, number));
    }
}

#[test]
fn a_truncated_file_grows_again_after_the_kill_of_all_daemons() {
    let cluster = Cluster::start(Options::default());
    let path = cluster.mount().join("f");
    std::fs::write(&path, pattern(4, 0, MIB)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.set_len(5000).unwrap();
    cluster.kill_daemons();
    cluster.up();
    file.write_all_at(&pattern(4, 5000, 5000), 5000).unwrap();
    file.set_len(7000).unwrap();
    cluster.kill("chunkd-1");
    cluster.up();
    shell(&cluster.mount(), "printf appended >> f; sync f");
    assert_pattern(&file, 4, 0, 7000);
    assert_eq!(std::fs::read(&path).unwrap()[7000..], *b"appended");
}

#[test]
fn the_mount_survives_a_restart_of_the_master() {
    let cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    let file = OpenOptions::new().create(true).read(true).write(true).truncate(true).open(mount.join("open")).unwrap();
    file.write_all_at(&pattern(9, 0, MIB), 0).unwrap();
    std::fs::remove_file(mount.join("open")).unwrap();
    for _ in 0..3 {
        cluster.kill("master-1");
        cluster.up();
        shell(&mount, "mkdir -p d && touch d/f && ls -l d >/dev/null && mv d/f d/g && rm -r d");
        assert_pattern(&file, 9, 0, MIB);
    }
}

#[test]
fn a_call_during_an_outage_can_be_interrupted_and_unmounting_ends() {
    let cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    shell(&mount, "echo x > f");
    cluster.kill_daemons();
    let path = mount.display();
    let start = Instant::now();
    let script = format!(
        "code=0; timeout -s KILL 3 cat {path}/f || code=$?; test $code = 137; ! timeout -s INT 3 stat {path}/g"
    );
    shell(&cluster.scratch(), &script);
    assert!(start.elapsed() < Duration::from_secs(20), "an interrupted call took {:?}", start.elapsed());
    cluster.up();
    shell(&mount, "test \"$(cat f)\" = x");
}

#[test]
fn a_stopped_mount_delays_others_by_its_lease_and_learns_what_it_lost() {
    let mut cluster = Cluster::start(Options::default());
    let (a, b) = (cluster.mount(), cluster.mount_again());
    let synced = File::create(a.join("synced")).unwrap();
    synced.write_all_at(b"kept", 0).unwrap();
    synced.sync_all().unwrap();
    let lost = File::create(a.join("lost")).unwrap();
    lost.write_all_at(b"written", 0).unwrap();
    cluster.signal("mount-1", Signal::STOP);
    let begun = Instant::now();
    let seen = std::fs::read(b.join("lost")).unwrap();
    println!("a file of a stopped mount was read after {:.1} s", begun.elapsed().as_secs_f64());
    assert!(seen.is_empty() || seen == b"written", "{seen:?}");
    assert_eq!(std::fs::read(b.join("synced")).unwrap(), b"kept");
    std::fs::write(b.join("lost"), b"of the other mount").unwrap();
    cluster.signal("mount-1", Signal::CONT);
    // What the stopped mount had not told anybody of is gone, and it is told so, or it had been in time.
    let after = lost.write_at(b"again", 100);
    println!("the stopped mount writes: {after:?}");
    if seen.is_empty() {
        assert_eq!(after.unwrap_err().raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        assert_eq!(std::fs::read(b.join("lost")).unwrap(), b"of the other mount");
    }
    assert_eq!(std::fs::read(a.join("lost")).unwrap(), std::fs::read(b.join("lost")).unwrap());
}

/// Records of one byte each, so that every byte tells where it has to be.
fn record(number: usize) -> Vec<u8> {
    vec![number as u8 + 1; RECORD]
}

const RECORD: usize = 700;

#[test]
fn what_a_killed_mount_had_not_told_of_an_old_file_never_shows_and_others_go_on_within_its_lease() {
    let mut cluster = Cluster::start(Options::default());
    let (a, b) = (cluster.mount(), cluster.mount_again());
    std::fs::write(b.join("log"), record(0)).unwrap();
    let mut log = OpenOptions::new().append(true).open(a.join("log")).unwrap();
    for number in 1..40 {
        log.write_all(&record(number)).unwrap();
        if number == 20 {
            log.sync_all().unwrap();
        }
    }
    cluster.signal("mount-1", Signal::KILL);
    let begun = Instant::now();
    let mut other = OpenOptions::new().append(true).open(b.join("log")).unwrap();
    other.write_all(&record(100)).unwrap();
    let waited = begun.elapsed();
    println!("an old file that a killed mount was writing was appended to after {:.1} s", waited.as_secs_f64());
    assert!(waited < Duration::from_secs(15), "{waited:?}");
    // Grown, it shows zeros there and nothing of the dead.
    let size = other.metadata().unwrap().len() as usize;
    other.set_len((size + 100 * RECORD) as u64).unwrap();
    let content = std::fs::read(b.join("log")).unwrap();
    let kept = size / RECORD - 1;
    assert!(size.is_multiple_of(RECORD) && (21..=40).contains(&kept), "{size} bytes");
    let mut expected: Vec<u8> = (0..kept).chain([100]).flat_map(record).collect();
    expected.resize(size + 100 * RECORD, 0);
    assert!(content == expected, "after {kept} records");
    drop(log);
}

#[test]
fn stopped_mount_that_holds_a_directory_delays_others_by_its_lease_and_learns_what_it_lost() {
    let mut cluster = Cluster::start(Options::default());
    let (a, b) = (cluster.mount().join("d"), cluster.mount_again().join("d"));
    std::fs::create_dir(&a).unwrap();
    let directory = File::open(&a).unwrap();
    std::fs::create_dir(a.join("synced")).unwrap();
    directory.sync_all().unwrap();
    (0..50).for_each(|n| std::fs::create_dir(a.join(format!("late{n:02}"))).unwrap());
    cluster.signal("mount-1", Signal::STOP);
    let begun = Instant::now();
    let seen = names(&b);
    println!("a held directory of a stopped mount was listed after {:.1} s", begun.elapsed().as_secs_f64());
    assert!(seen.contains(&"synced".to_owned()), "{seen:?}");
    std::fs::create_dir(b.join("of the other")).unwrap();
    cluster.signal("mount-1", Signal::CONT);
    // What it had not told anybody of is gone, and it is told so once, or it had been in time.
    let synced = directory.sync_all();
    println!("the stopped mount had told {} of 51 names; it syncs: {synced:?}", seen.len());
    assert!(seen.len() == 51 || synced.is_err());
    std::fs::create_dir(a.join("again")).unwrap();
    assert_eq!(names(&a), names(&b));
    assert_eq!(names(&b).len(), seen.len() + 2);
    directory.sync_all().unwrap();
}

#[test]
fn names_in_a_held_directory_outlive_the_master_and_are_seen_by_others_after_it() {
    let mut cluster = Cluster::start(Options::default());
    let (a, b) = (cluster.mount().join("d"), cluster.mount_again().join("d"));
    std::fs::create_dir(&a).unwrap();
    // The name of the directory itself is the master's to say.
    let directory = File::open(&a).unwrap();
    for round in 0..3 {
        std::fs::write(a.join(format!("before{round}")), b"content").unwrap();
        cluster.kill("master-1");
        // Decided without it, while the session surely lives.
        let make = |n: u32| rustix::fs::mkdirat(&directory, format!("d{round}.{n}"), Mode::RWXU);
        (0..20).for_each(|n| make(n).unwrap());
        cluster.up();
        if round == 2 {
            assert_eq!(names(&b).len(), 3 * 21);
            assert_eq!(std::fs::read(b.join("before2")).unwrap(), b"content");
        }
        assert_eq!(names(&a).len(), (round + 1) * 21);
    }
}

#[test]
fn torture_is_clean_and_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("cluster");
    let mut command = std::process::Command::new(gfs_e2e::cluster::binary("gfs"));
    let output = command.args(["torture", "--minutes", "0.4", "--seed", "7", "--dir"]).arg(&dir).output().unwrap();
    let said = gfs_e2e::cluster::text(&output);
    println!("{said}");
    assert!(output.status.success(), "{said}");
    assert!(said.contains("clean: seed 7") && said.contains("killed"), "{said}");
    assert!(!dir.exists(), "it is taken away again");
}
