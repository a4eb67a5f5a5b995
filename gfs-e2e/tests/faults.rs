//! Daemons die; what was promised holds.

use gfs_e2e::cluster::wait_until;
use gfs_e2e::work::{assert_pattern, pattern, shell};
use gfs_e2e::{Cluster, Options};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
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

#[test]
fn a_killed_chunk_server_fails_no_call() {
    let cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    std::fs::write(mount.join("read"), pattern(5, 0, 64 * MIB)).unwrap();
    let reader = File::open(mount.join("read")).unwrap();
    let writer = OpenOptions::new().create(true).read(true).write(true).truncate(true).open(mount.join("write")).unwrap();
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let (read_stall, write_stall) = std::thread::scope(|scope| {
        let reads = scope.spawn(|| longest_call(&stop, |n| assert_pattern(&reader, 5, n * 7 % 63 * MIB as u64, MIB)));
        let writes = scope.spawn(|| {
            longest_call(&stop, |n| {
                let offset = n % 300 * MIB as u64;
                writer.write_all_at(&pattern(6, offset, MIB), offset).expect("write during a fault");
                written.fetch_max(offset + MIB as u64, Ordering::Relaxed);
            })
        });
        wait_until("some data is written", Duration::from_secs(30), || written.load(Ordering::Relaxed) > 20 << 20);
        cluster.kill("chunkd-2");
        let after_kill = written.load(Ordering::Relaxed);
        wait_until("writes go on", Duration::from_secs(60), || {
            let now = written.load(Ordering::Relaxed);
            now > after_kill + (40 << 20) || now >= 300 << 20
        });
        stop.store(true, Ordering::Relaxed);
        (reads.join().expect("reader"), writes.join().expect("writer"))
    });
    println!("longest stall: read {read_stall:?}, write {write_stall:?}");
    let length = writer.metadata().unwrap().len();
    for offset in (0..length).step_by(MIB) {
        assert_pattern(&writer, 6, offset, MIB);
    }
    // The server comes back and is filled up again; then another may die.
    cluster.up();
    wait_until("all chunks are back at their goal", Duration::from_secs(90), || {
        cluster.gfs_ok(&["status"]).to_lowercase().contains("healthy")
    });
    cluster.kill("chunkd-1");
    for offset in (0..length).step_by(MIB) {
        assert_pattern(&writer, 6, offset, MIB);
    }
}

#[test]
fn what_was_synced_survives_the_kill_of_all_daemons() {
    let cluster = Cluster::start(Options::default());
    let mount = cluster.mount();
    let mut synced: Vec<(u64, u64)> = Vec::new();
    for round in 0..4u64 {
        let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(mount.join("data")).unwrap();
        let stop = AtomicBool::new(false);
        let new = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut done = Vec::new();
                for n in 0.. {
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
            std::thread::sleep(Duration::from_millis(700));
            cluster.kill_daemons();
            stop.store(true, Ordering::Relaxed);
            cluster.up();
            writer.join().expect("writer")
        });
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
            assert!(fresh || found == pattern(*seed, block * 4096, 4096), "round {round}: block {block} is neither old nor new");
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
    let script = format!("timeout -s KILL 3 cat {path}/f; test $? = 137; timeout -s INT 3 stat {path}/g; test $? != 0");
    shell(&cluster.scratch(), &script);
    assert!(start.elapsed() < Duration::from_secs(20), "an interrupted call took {:?}", start.elapsed());
    cluster.up();
    shell(&mount, "test \"$(cat f)\" = x");
}
