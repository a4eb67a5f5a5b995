//! Each safety rule is broken on purpose, and the simulation has to notice: an invariant that no break trips proves nothing.
//!
//! Rules of the core are broken in the core's own code, by a switch that only this build has. Duties of drivers are broken in the
//! drivers of the simulation. `cargo test -p gfs-sim --test breaks -- --nocapture` prints how many seeds each took.

use gfs_core::breaks::Break;
use gfs_sim::{Breach, Neglect, Options, run};

/// Seeds that are tried before a break counts as unnoticed.
const MOST: u64 = 6_000;

/// Seeds that it took, and what was noticed.
fn notice(name: &str, breach: Breach) -> Result<(u64, String), String> {
    for seed in 0..MOST {
        let found = std::panic::catch_unwind(|| run(seed, Options { breach, ..Options::of_seed(seed) }));
        let found = found.unwrap_or_else(|_| vec!["a panic".to_string()]);
        if let Some(first) = found.first() {
            assert_eq!(run(seed, Options::of_seed(seed)), Vec::<String>::new(), "seed {seed} fails without a break");
            return Ok((seed + 1, first.lines().next().unwrap_or_default().chars().take(110).collect()));
        }
    }
    Err(format!("{name} was not noticed in {MOST} seeds"))
}

fn all_noticed(breaches: impl IntoIterator<Item = (String, Breach)>) {
    let mut unnoticed = Vec::new();
    for (name, breach) in breaches {
        match notice(&name, breach) {
            Ok((seeds, what)) => println!("{name:28} {seeds:5} seeds: {what}"),
            Err(problem) => unnoticed.push(problem),
        }
    }
    assert!(unnoticed.is_empty(), "{}", unnoticed.join("\n"));
}

#[test]
fn every_broken_rule_of_replication_is_noticed() {
    let rules = [
        Break::EpochUnchecked,
        Break::ServedWithoutLease,
        Break::GapInPrepares,
        Break::RepeatApplied,
        Break::CommittedBeforeAll,
        Break::FlushFailureIgnored,
        Break::SyncOfPrimaryOnly,
        Break::ReadBesidePrepared,
        Break::PreparedServedAsCommitted,
        Break::TailNotSettled,
        Break::ServedUnsettled,
        Break::SuspectServes,
        Break::PromotedBeforeStable,
        Break::CopyOfAnotherMoment,
    ];
    all_noticed(rules.map(core));
}

#[test]
fn every_broken_rule_of_metadata_is_noticed() {
    let rules = [Break::CutForgotten, Break::GrowthBeforeCut, Break::RepliesIgnored];
    all_noticed(rules.map(core));
}

#[test]
fn every_neglected_duty_of_a_driver_is_noticed() {
    let duties = [
        Neglect::LeaseNotWaited,
        Neglect::ToldBeforeDurable,
        Neglect::CommittedInReverse,
        Neglect::SuspectPreferred,
        Neglect::IntentNotWritten,
        Neglect::CutNotRedone,
        Neglect::TombstoneOfAnyEpoch,
        Neglect::ChecksumUnchecked,
    ];
    all_noticed(duties.map(|duty| (format!("{duty:?}"), Breach::driver(duty))));
}

fn core(rule: Break) -> (String, Breach) {
    let breach = Breach::core(rule).unwrap_or_else(|| panic!("this build can't break rules: it lacks the feature"));
    (format!("{rule:?}"), breach)
}
