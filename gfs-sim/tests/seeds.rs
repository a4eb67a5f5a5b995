//! Some thousand short seeds, and those that once failed. `GFS_SIM_SEEDS=N` runs more, `GFS_SIM_SEED=S` runs one.

use gfs_sim::{Options, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn check(seed: u64) {
    let found = run(seed, Options::of_seed(seed));
    assert!(found.is_empty(), "seed {seed}: run it alone with GFS_SIM_SEED={seed}\n{}", found.join("\n"));
}

#[test]
fn no_invariant_is_violated() {
    if let Some(seed) = number("GFS_SIM_SEED") {
        return check(seed);
    }
    let first = number("GFS_SIM_FIRST").unwrap_or(0);
    for seed in first..first + number("GFS_SIM_SEEDS").unwrap_or(300) {
        check(seed);
    }
}

#[test]
fn seeds_that_once_failed_pass() {
    let list = include_str!("../seeds/failed.txt");
    for line in list.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let seed = line.split_whitespace().next().unwrap_or_default();
        check(seed.parse().unwrap_or_else(|_| panic!("seeds/failed.txt: {line:?} does not begin with a number")));
    }
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in 1000..1008 {
        assert_eq!(run(seed, Options::of_seed(seed)), run(seed, Options::of_seed(seed)));
    }
}
