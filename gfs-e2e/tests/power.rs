//! The power goes: what was synced is there, whole, and nothing else is but what was there before or was written since.
//!
//! `GFS_POWER_ROUNDS` sets how often each test cuts the power, `GFS_POWER_SEED` with which seed it begins.

use gfs_e2e::cluster::{text, wait_until};
use gfs_e2e::record::{Believe, Load, all_kinds, under_load};
use gfs_e2e::{Cluster, Options};
use rustix::io::Errno;
use std::io::ErrorKind;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Far more than it takes: those who lost power wait half a minute for each other at most.
const LIMIT: Duration = Duration::from_secs(150);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")))
}

/// Seeds of the rounds of one test.
fn seeds(rounds: u64) -> std::ops::Range<u64> {
    let first = setting("GFS_POWER_SEED", 1);
    first..first + setting("GFS_POWER_ROUNDS", rounds)
}

/// A cluster whose power can be cut, with a few loads that have their files on its mount.
fn start(believe: Believe) -> (Cluster, Vec<Box<dyn Load>>) {
    let cluster = Cluster::start(Options {
        power: true,
        chunk_size: Some(MIB),
        // So that checkpoints are made in every round.
        settings: vec![("GFS_MASTER_CHECKPOINT_ENTRIES", "300".into())],
        ..Options::default()
    });
    let loads = all_kinds(&cluster.mount(), believe);
    (cluster, loads)
}

fn settle(loads: &mut [Box<dyn Load>]) {
    for load in loads {
        // A master that lost power may have lost what it had answered: each file and directory tells of that once.
        wait_until("all that is there can be read and synced", LIMIT, || load.settle().is_ok());
    }
}

fn all_succeeded(results: Vec<std::io::Result<()>>) {
    results.into_iter().for_each(|result| result.expect("no call fails"));
}

fn wait_until_healthy(cluster: &Cluster) {
    let mut said = String::new();
    wait_until("all chunks are back at their goal", LIMIT, || {
        let output = cluster.gfs(&["status"]);
        if text(&output) != said {
            said = text(&output);
            println!("  {}", said.lines().next().unwrap_or_default());
        }
        output.status.success() && said.lines().next().is_some_and(|line| line.trim() == "healthy")
    });
}

/// All copies are there, and they are equal.
fn assert_sound(cluster: &Cluster) {
    wait_until_healthy(cluster);
    wait_until("fsck is clean", LIMIT, || {
        let output = cluster.gfs(&["fsck", "--deep"]);
        assert_ne!(output.status.code(), Some(4), "{}", text(&output));
        output.status.code() == Some(0)
    });
}

#[test]
fn what_was_synced_survives_a_power_cut_of_everything() {
    let (cluster, mut loads) = start(Believe::Directories);
    for seed in seeds(3) {
        let begun = Instant::now();
        // That calls fail when their mount dies is as it should be.
        let ended = under_load(&mut loads, seed, |steps| {
            steps.wait_for(25);
            cluster.cut_all_power(seed);
        });
        assert!(ended.iter().all(Result::is_err), "seed {seed}: the mount is dead: {ended:?}");
        let cut = Instant::now();
        cluster.up();
        let up = Instant::now();
        println!("seed {seed}: load {:.1?}, up again after {:.1?}", cut - begun, up - cut);
        settle(&mut loads);
        assert_sound(&cluster);
        println!("seed {seed}: right and sound after {:.1?}", up.elapsed());
    }
}

#[test]
fn a_power_cut_of_one_chunk_server_fails_no_call_and_it_is_healed() {
    let (cluster, mut loads) = start(Believe::Directories);
    for seed in seeds(1) {
        let victim = format!("chunkd-{}", seed % 3 + 1);
        let results = under_load(&mut loads, seed, |steps| {
            steps.wait_for(20);
            cluster.cut_power(&[&victim], seed);
            steps.wait_for(10);
            cluster.up();
            steps.wait_for(10);
        });
        all_succeeded(results);
        loads.iter_mut().for_each(|load| load.nothing_is_lost());
        settle(&mut loads);
        assert_sound(&cluster);
        // What is read now comes from the one that was healed.
        let others: Vec<_> = (1..=3).map(|n| format!("chunkd-{n}")).filter(|name| *name != victim).collect();
        others.iter().for_each(|name| cluster.kill(name));
        loads.iter().for_each(|load| load.check().expect("read what is there"));
        // And the others lose what they had not on stable storage.
        cluster.cut_power(&[&others[0], &others[1]], seed + 1000);
        cluster.up();
        settle(&mut loads);
        assert_sound(&cluster);
    }
}

#[test]
fn a_power_cut_of_the_master_loses_nothing_that_was_synced() {
    let (cluster, mut loads) = start(Believe::Files);
    for seed in seeds(2) {
        let results = under_load(&mut loads, seed, |steps| {
            steps.wait_for(25);
            cluster.cut_power(&["master-1"], seed);
            cluster.up();
            steps.wait_for(10);
        });
        // The mount lives, and tells whoever had made a file in the last milliseconds that it is no more.
        for error in results.into_iter().filter_map(Result::err) {
            println!("seed {seed}: {error}");
            let lost = [Errno::IO, Errno::STALE, Errno::NOENT].map(|errno| Some(errno.raw_os_error()));
            let told = lost.contains(&error.raw_os_error()) || error.kind() == ErrorKind::StaleNetworkFileHandle;
            assert!(told, "seed {seed}: {error}");
        }
        settle(&mut loads);
        assert_sound(&cluster);
    }
}

/// A `gfs up` that is under way.
struct GoingUp(Child);

impl GoingUp {
    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("its state").is_some()
    }
}

impl Drop for GoingUp {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_second_power_cut_during_the_recovery_from_a_first_loses_nothing_either() {
    let (cluster, mut loads) = start(Believe::Directories);
    for seed in seeds(2) {
        under_load(&mut loads, seed, |steps| {
            steps.wait_for(25);
            cluster.cut_all_power(seed);
        });
        // Again and again, each time further into the recovery; at last when it serves writes and fills replicas.
        for again in 1..=3 {
            let machine = format!("chunkd-{}", (seed + again) % 3 + 1);
            let until =
                cluster.machines().changes(&machine) + if again == 3 { u64::MAX / 2 } else { again * again * 20 };
            let mut up = GoingUp(cluster.up_command().stdout(Stdio::null()).spawn().expect("run gfs up"));
            wait_until("the recovery is under way", LIMIT, || {
                cluster.machines().changes(&machine) >= until || up.has_ended()
            });
            println!("seed {seed}: cut number {} {}", again + 1, if up.has_ended() { "after" } else { "during" });
            drop(up);
            cluster.cut_all_power(seed * 10_000 + again);
        }
        cluster.up();
        settle(&mut loads);
        assert_sound(&cluster);
    }
}
