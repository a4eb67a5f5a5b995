//! Inputs that once found something, the examples, and what becomes of these when they are damaged.

use gfs_core::splitmix::SplitMix64;
use gfs_fuzz::{TARGETS, examples, feed};
use std::collections::BTreeSet;
use std::path::Path;

/// Damaged inputs made of each example.
const DAMAGED: u64 = 400;

#[test]
fn what_fuzzing_kept_finds_nothing() {
    for (name, target) in TARGETS {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files = std::fs::read_dir(&kept).unwrap_or_else(|error| panic!("{}: {error}", kept.display()));
        for file in files {
            let path = file.unwrap().path();
            println!("{}", path.display());
            target(&std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn every_target_has_an_example_and_none_finds_anything() {
    let mut fed = BTreeSet::new();
    for (name, bytes) in examples() {
        feed(name, &bytes);
        fed.insert(name);
    }
    let all: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(fed, all);
}

#[test]
fn damaged_examples_find_nothing() {
    for (number, (name, bytes)) in examples().into_iter().enumerate() {
        for seed in 0..if name == "log_segment" { DAMAGED / 10 } else { DAMAGED } {
            let mut random = SplitMix64::new(seed << 16 | number as u64);
            let damaged = damage(&bytes, &mut random);
            // Shown only when the test fails.
            println!("{name} {damaged:?}");
            feed(name, &damaged);
        }
    }
}

/// A few bytes changed, cut off, doubled or put in.
fn damage(bytes: &[u8], random: &mut SplitMix64) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len().max(1) as u64) as usize;
        match random.below(6) {
            0 | 1 if at < out.len() => out[at] = random.below(256) as u8,
            2 if at < out.len() => out[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize],
            3 => out.truncate(at),
            4 => {
                let end = (at + random.below(16) as usize).min(out.len());
                let part = out[at.min(end)..end].to_vec();
                out.splice(at.min(end)..at.min(end), part);
            }
            _ => out.insert(at.min(out.len()), random.below(256) as u8),
        }
    }
    out
}
