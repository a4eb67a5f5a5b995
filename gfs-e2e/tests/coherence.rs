//! Several mounts at once, each with several threads: what all of them saw can be put in one order that agrees with real time.
//!
//! `GFS_COHERENCE_ROUNDS` sets how many rounds each test has, `GFS_COHERENCE_STEPS` how much each thread does in one,
//! `GFS_COHERENCE_SEED` with which seed a test begins.

use gfs_e2e::coherence::{Checked, Run};
use gfs_e2e::{Cluster, Options};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")))
}

/// Seeds of the rounds of one test.
fn seeds(first: u64, rounds: u64) -> std::ops::Range<u64> {
    let first = setting("GFS_COHERENCE_SEED", first);
    first..first + setting("GFS_COHERENCE_ROUNDS", rounds)
}

fn start(mounts: usize) -> (Cluster, Run) {
    let mut cluster = Cluster::start(Options::default());
    let first = cluster.mount();
    let all = std::iter::once(first).chain((1..mounts).map(|_| cluster.mount_again())).collect();
    (cluster, Run::new(all, setting("GFS_COHERENCE_STEPS", 60)))
}

fn rounds(run: &Run, seeds: std::ops::Range<u64>) {
    let checked = seeds.map(|seed| run.round(seed)).fold(Checked::default(), Checked::and);
    println!("{checked}");
}

#[test]
fn what_two_mounts_see_has_one_order() {
    let (_cluster, run) = start(2);
    rounds(&run, seeds(1, 5));
}

#[test]
fn what_three_mounts_see_has_one_order() {
    let (_cluster, run) = start(3);
    rounds(&run, seeds(1_001, 3));
}

/// Kills daemons, one in each round, in the middle of its work, and brings them up again.
fn rounds_with_kills(mounts: usize, seeds: std::ops::Range<u64>, victims: &[&str]) {
    let (cluster, run) = start(mounts);
    let mut checked = Checked::default();
    for (seed, victim) in seeds.zip(victims.iter().cycle()) {
        checked = checked.and(run.round_during(seed, |progress| {
            progress.wait_for(30);
            cluster.kill(victim);
            cluster.up();
        }));
    }
    println!("{checked}");
}

#[test]
fn what_two_mounts_see_has_one_order_while_the_master_is_killed_and_comes_back() {
    rounds_with_kills(2, seeds(2_001, 2), &["master-1"]);
}

#[test]
fn what_three_mounts_see_has_one_order_while_chunk_servers_are_killed_and_come_back() {
    rounds_with_kills(3, seeds(3_001, 3), &["chunkd-1", "chunkd-2", "chunkd-3"]);
}
