//! Faults: a hung server, a flipped bit, and histories of kills and hangs under load.

use crate::common::{Cluster, PATIENCE, eventually, pattern};
use gfs_proto::v1::data_reply::Status;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const H: u64 = 0x77;

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_secondary_delays_a_writer_less_than_three_seconds() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    cluster.write(H, 0, &pattern(1, 8192)).await;
    assert_eq!(cluster.read(3, H, 0, 8192).await, pattern(1, 8192));
    cluster.signal(3, Signal::STOP);
    let began = Instant::now();
    cluster.write(H, 0, &pattern(2, 8192)).await;
    let stall = began.elapsed();
    println!("a write waited {stall:?} for a hung secondary");
    assert!(stall < PATIENCE, "{stall:?}");
    assert_eq!(cluster.master.configuration(H).members, vec![1, 2]);
    cluster.signal(3, Signal::CONT);
    // It wakes up with an old configuration and a lease that is over: it must not serve what it has.
    for _ in 0..50 {
        assert!(cluster.read_once(3, H, 0, 8192).await.is_err());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_never_returned_and_the_replica_is_made_anew() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let data = pattern(3, 1 << 20);
    cluster.write(H, 0, &data).await;
    cluster.sync(H).await;
    let server = cluster.servers[1].take().expect("running");
    let code = tokio::task::spawn_blocking(move || server.stop()).await.expect("ended");
    assert_eq!(code, Some(0));
    let flipped = flip(cluster.dirs[1].path(), &data[40_960..41_024]);
    assert!(flipped > 0, "the bytes are not where they should be");
    cluster.start_server(2).await;
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        match cluster.read_once(2, H, 40_960, 4096).await {
            Err(Status::Corrupt) => break,
            Err(_) => assert!(tokio::time::Instant::now() < end, "no answer"),
            Ok(bytes) => panic!("damaged bytes were returned: {}", bytes == data[40_960..45_056]),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let master = cluster.master.clone();
    eventually("a report", || master.has_problem(2, H)).await;
    // The server says that it serves the replica no more: it may be dropped, and is recruited again.
    cluster.master.install(H, |known| known.members.retain(|member| *member != 2));
    cluster.master.install(H, |known| known.syncing = vec![2]);
    eventually("a promotion", || master.configuration(H).members == vec![1, 2, 3]).await;
    assert_eq!(cluster.read(2, H, 0, 1 << 20).await, data);
}

/// Flips a bit wherever `bytes` are in a chunk file.
fn flip(dir: &Path, bytes: &[u8]) -> usize {
    let mut flipped = 0;
    for path in files(&dir.join("chunks")) {
        let mut content = std::fs::read(&path).expect("read");
        let found: Vec<usize> =
            content.windows(bytes.len()).enumerate().filter(|(_, at)| *at == bytes).map(|(at, _)| at).collect();
        for at in &found {
            content[*at] ^= 1;
        }
        if !found.is_empty() {
            std::fs::write(&path, content).expect("written");
        }
        flipped += found.len();
    }
    flipped
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// What is acknowledged stays, whatever is killed or hangs, as long as one member is left.
async fn history(seed: u64, rounds: u32) {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let ended = Arc::new(AtomicBool::new(false));
    let (master, end) = (cluster.master.clone(), ended.clone());
    let mender = tokio::spawn(async move {
        while !end.load(Ordering::Relaxed) {
            master.mend(H);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut expected = vec![0_u8; 2 << 20];
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..rounds {
        // All three hold everything before the next fault, so that one of them may go at any time.
        let master = cluster.master.clone();
        eventually("three members", || master.configuration(H).members.len() == 3).await;
        let victim = 1 + random(3) as u32;
        let hang = random(3) == 0;
        let before = random(10);
        for step in 0..20 {
            if step == before {
                if hang { cluster.signal(victim, Signal::STOP) } else { cluster.kill(victim) }
            }
            let length = if random(4) == 0 { 1 + random(300_000) } else { 1 + random(9000) } as usize;
            let offset = random((expected.len() - length) as u64);
            let data = pattern(random(1 << 30), length);
            cluster.write(H, offset, &data).await;
            expected[offset as usize..][..length].copy_from_slice(&data);
            let primary = cluster.master.configuration(H).primary;
            if cluster.servers[primary as usize - 1].is_some()
                && let Ok(seen) = cluster.read_once(primary, H, offset, length as u32).await
            {
                assert_eq!(seen, data, "seed {seed}, round {round}, step {step}");
            }
        }
        if hang { cluster.signal(victim, Signal::CONT) } else { cluster.start_server(victim).await }
    }
    let master = cluster.master.clone();
    eventually("three members", || master.configuration(H).members.len() == 3).await;
    ended.store(true, Ordering::Relaxed);
    mender.await.expect("ended");
    for server in [1, 2, 3] {
        for part in 0..2 {
            let offset = part << 20;
            let seen = cluster.read(server, H, offset, 1 << 20).await;
            assert!(
                seen == expected[offset as usize..][..1 << 20],
                "seed {seed}: server {server}, part {part} differs"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_hangs_under_load_lose_nothing() {
    for seed in [11, 12] {
        history(seed, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_machine_rebooted_is_filled_before_it_serves() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let data = pattern(5, 500_000);
    cluster.write(H, 0, &data).await;
    cluster.cut_power(3);
    cluster.start_server(3).await;
    let master = cluster.master.clone();
    eventually("its leave", || master.configuration(H).members == vec![1, 2]).await;
    assert!(cluster.read_once(3, H, 0, 4096).await.is_err());
    cluster.master.install(H, |known| known.syncing = vec![3]);
    eventually("a promotion", || master.configuration(H).members == vec![1, 2, 3]).await;
    assert_eq!(cluster.read(3, H, 0, 500_000).await, data);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_synced_survives_the_power_loss_of_all_members() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let data = pattern(6, 500_000);
    cluster.write(H, 0, &data).await;
    cluster.sync(H).await;
    cluster.write(H, 0, b"not synced").await;
    for server in [1, 2, 3] {
        cluster.cut_power(server);
    }
    for server in [1, 2, 3] {
        cluster.start_server(server).await;
    }
    let master = cluster.master.clone();
    eventually("a sole survivor", || master.configuration(H).members.len() == 1).await;
    let survivor = cluster.master.configuration(H).primary;
    assert_eq!(cluster.read(survivor, H, 10, 400_000).await, data[10..400_010]);
    let others: Vec<u32> = [1, 2, 3].into_iter().filter(|server| *server != survivor).collect();
    cluster.master.install(H, |known| known.syncing = others);
    eventually("three members", || master.configuration(H).members.len() == 3).await;
    for server in [1, 2, 3] {
        assert_eq!(cluster.read(server, H, 10, 499_990).await, data[10..]);
    }
}
