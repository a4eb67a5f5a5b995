//! Power cuts: sectors that were not synced are kept or lost at random.

use super::model::{Step, mutation};
use super::outage::{Outage, after_power_cut};
use super::*;
use proptest::prelude::*;

#[test]
fn only_chunks_that_were_written_are_suspect_until_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (idle, busy) = (create(&store, 1), create(&store, 2));
    put(&store, idle, 0, b"x");
    put(&store, busy, 0, b"x");
    store.close().unwrap();
    put(&store, busy, 1, b"y");
    drop(store);
    let store = after_power_cut(dir.path());
    let suspect = |store: &Store| store.list().iter().map(|state| state.suspect).collect::<Vec<_>>();
    assert_eq!(suspect(&store), vec![false, true]);
    drop(store);
    let store = after_power_cut(dir.path());
    assert_eq!(suspect(&store), vec![false, true], "a kill must not make it trusted");
    store.set_suspect(busy, false).unwrap();
    drop(store);
    let store = after_power_cut(dir.path());
    assert_eq!(suspect(&store), vec![false, false]);
}

#[test]
fn that_a_replica_is_the_only_one_is_known_after_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    let alone = Configuration { members: vec![ServerId(1)], syncing: Vec::new(), ..configuration(7) };
    store.set_configuration(chunk, &alone).unwrap();
    drop(store);
    assert_eq!(after_power_cut(dir.path()).state(chunk).unwrap().configuration, alone);
}

#[test]
fn that_a_replica_lacks_something_is_known_after_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    store.set_suspect(chunk, true).unwrap();
    drop(store);
    assert!(after_power_cut(dir.path()).state(chunk).unwrap().suspect);
}

#[test]
fn a_resting_chunk_is_made_clean_by_tick() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(StoreOptions { linger: Duration::ZERO, ..options(dir.path()) });
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 50_000]);
    store.tick();
    assert_eq!(store.state(chunk).unwrap().flushed, Sequence(1));
    drop(store);
    let store = after_power_cut(dir.path());
    assert!(!store.state(chunk).unwrap().suspect);
    assert_eq!(bytes(&store, chunk, 0, 50_000), vec![1; 50_000]);
}

/// Cuts the power after some steps. Of the sectors of the chunk file's data, and of what comes behind the data, the newest
/// content is kept or the synced one.
fn cut_after(steps: &[Step], keep_data: bool, keep_table: bool) {
    for overlay in [0, 1 << 20] {
        let mut outage = Outage::new(overlay);
        steps.iter().for_each(|step| outage.run(step));
        let keep = |at| if at < CHUNK { keep_data } else { keep_table };
        outage.cut(&mut |at, count| if keep(at) { count - 1 } else { 0 }).unwrap();
    }
}

const fn data(offset: u64, length: u64, fill: u8) -> Step {
    Step::Write { offset, length, fill }
}

const COMMIT: Step = Step::Commit { count: 1 };
const TRUNCATE: Step = Step::Truncate { offset: 0 };
const BIG: u64 = 16 << 12;

#[test]
fn landed_bytes_without_their_entries_leave_a_truncated_block_zeros() {
    let steps = [data(0, BIG, 1), COMMIT, TRUNCATE, COMMIT, Step::Checkpoint, data(0, BIG, 2), COMMIT];
    cut_after(&steps, true, false);
    cut_after(&steps, false, true);
}

#[test]
fn a_part_written_over_lost_landed_bytes_is_lost_with_them() {
    let cut = [data(0, BIG, 1), COMMIT, TRUNCATE, Step::Checkpoint, COMMIT, data(0, 1, 2), COMMIT, data(8192, BIG, 3)];
    let steps = [&cut[..], &[COMMIT, data(8200, 10, 4), COMMIT]].concat();
    cut_after(&steps, true, false);
    cut_after(&steps, false, true);
    cut_after(&steps, false, false);
}

#[test]
fn bytes_that_landed_and_were_rolled_back_do_not_come_back() {
    let undone = [data(0, BIG, 1), Step::Checkpoint, Step::Rollback { count: 1 }];
    let small = [&undone[..], &[data(100, 10, 2), COMMIT]].concat();
    let large = [&undone[..], &[data(0, BIG, 3), COMMIT, data(100, 10, 2), COMMIT]].concat();
    for steps in [small, large] {
        cut_after(&steps, false, false);
        cut_after(&steps, true, false);
        cut_after(&steps, false, true);
        let synced = [&steps[..], &[Step::Sync, data(200, 10, 3), COMMIT]].concat();
        cut_after(&synced, false, false);
        cut_after(&synced, false, true);
    }
}

#[test]
fn synced_bytes_survive_an_overwrite_of_which_only_the_entries_were_kept() {
    let steps = [data(0, BIG, 1), COMMIT, Step::Checkpoint, data(100, 10, 2), COMMIT, data(4096, 4096, 3), COMMIT];
    cut_after(&steps, false, true);
    cut_after(&[&steps[..], &[Step::Sync]].concat(), false, true);
    cut_after(&steps, true, false);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every block holds what it held at some time since it was last synced, and nothing from before it was last zeroed;
    /// nothing is unreadable, and the replica says that it is suspect.
    #[test]
    fn a_power_cut_leaves_old_or_new_blocks_and_never_a_mixture(
        before in prop::collection::vec(mutation(), 1..25),
        after in prop::collection::vec(prop_oneof![20 => mutation(), 1 => Just(Step::Sync), 1 => Just(Step::Kill)], 1..25),
        seed in any::<u64>(),
        overlay in prop_oneof![Just(0u64), Just(20_000), Just(1 << 20)],
    ) {
        let mut outage = Outage::new(overlay);
        before.iter().for_each(|step| outage.run(step));
        outage.run(&Step::Checkpoint);
        after.iter().for_each(|step| outage.run(step));
        let mut random = seed | 1;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 20) as usize
        };
        // The sectors of a block share a fate often, or hardly any block would ever be whole.
        let mut shared = 0;
        let cut = outage.cut(&mut |at, count| {
            if at % BLOCK == 0 {
                shared = next();
            }
            let fate = if at < CHUNK && shared % 4 != 0 { shared / 4 } else { next() };
            match fate % 4 {
                0 => 0,
                1 => fate / 4 % count,
                _ => count - 1,
            }
        });
        prop_assert!(cut.is_ok(), "{}", cut.err().unwrap_or_default());
    }
}
