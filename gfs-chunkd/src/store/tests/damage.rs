//! Damage of anything on disk is found, and full or failing disks do no harm.

use super::*;
use proptest::prelude::*;

fn state_after_damage(dir: &Path, chunk: ChunkHandle) -> (Store, Option<ReplicaState>) {
    let store = open(dir);
    let state = store.list().into_iter().find(|state| state.handle == chunk);
    (store, state)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_anywhere_in_a_chunk_file_is_found_or_changes_nothing(
        area in 0u8..4,
        place in 0u64..1 << 40,
        bit in 0u8..8,
    ) {
        let dir = scratch();
        let store = open(dir.path());
        let chunk = create(&store, 1);
        put(&store, chunk, 0, &[1; 90_000]);
        put(&store, chunk, 1000, &[2; 9000]);
        store.close().unwrap();
        put(&store, chunk, 200_000, &[3; 20_000]);
        store.close().unwrap();
        let expected = bytes(&store, chunk, 0, CHUNK);
        let healthy = store.state(chunk).unwrap();
        let infos = store.blocks(chunk, 0, 256).unwrap();
        drop(store);
        // Data, header, slots, table.
        let (start, length) = match area {
            0 => (0, 220_000),
            1 => (CHUNK, 4096),
            2 => (CHUNK + 4096, 400),
            _ => (CHUNK + 4096 + (128 << 10), 56 * 16),
        };
        flip(&chunk_file(dir.path(), chunk), start + place % length, 1 << bit);
        let (store, state) = state_after_damage(dir.path(), chunk);
        let Some(state) = state else {
            let quarantined = store.quarantined();
            prop_assert_eq!(quarantined.len(), 1);
            prop_assert_eq!(quarantined[0].handle, Some(chunk));
            prop_assert!(quarantined[0].path.exists());
            return Ok(());
        };
        if state.suspect {
            return Ok(());
        }
        prop_assert_eq!(state, healthy);
        match store.read(chunk, 0, CHUNK) {
            Ok(read) => {
                prop_assert!(read.data == expected);
                prop_assert_eq!(store.blocks(chunk, 0, 256).unwrap(), infos);
            }
            Err(StoreError::Corrupt { handle, .. }) => prop_assert_eq!(handle, chunk),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_corrupt_block_is_named_and_its_neighbours_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 40_960]);
    flip(&chunk_file(dir.path(), chunk), 2 * 4096 + 7, 1);
    assert!(matches!(store.read(chunk, 0, 40_960), Err(StoreError::Corrupt { block: 2, .. })));
    assert_eq!(bytes(&store, chunk, 0, 8192), vec![1; 8192]);
    assert!(matches!(store.fetch_blocks(chunk, 2, 1), Err(StoreError::Corrupt { block: 2, .. })));
}

#[test]
fn a_partial_overwrite_of_a_corrupt_block_is_refused_and_a_whole_one_heals_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 40_960]);
    flip(&chunk_file(dir.path(), chunk), 4096 + 7, 1);
    let partial = prepare(&store, chunk, 5000, b"part");
    assert!(matches!(store.commit(chunk, partial), Err(StoreError::Corrupt { block: 1, .. })));
    assert_eq!(store.state(chunk).unwrap().committed, Sequence(1));
    store.rollback(chunk, Sequence(1)).unwrap();
    put(&store, chunk, 4096, &[5; 4096]);
    assert_eq!(bytes(&store, chunk, 4096, 4096), vec![5; 4096]);
}

#[test]
fn a_copied_block_repairs_a_corrupt_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 40_960]);
    let (infos, data) = store.fetch_blocks(chunk, 3, 2).unwrap();
    flip(&chunk_file(dir.path(), chunk), 3 * 4096, 0x80);
    assert!(store.read(chunk, 0, 40_960).is_err());
    store.copy_in(chunk, 3, &infos, &data).unwrap();
    assert_eq!(bytes(&store, chunk, 0, 40_960), vec![1; 40_960]);
}

#[test]
fn an_older_part_that_was_damaged_before_a_replay_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 40_960]);
    store.close().unwrap();
    put(&store, chunk, 4100, b"new bytes");
    drop(store);
    flip(&chunk_file(dir.path(), chunk), 4096, 1);
    let store = open(dir.path());
    assert!(matches!(store.read(chunk, 4096, 4096), Err(StoreError::Corrupt { block: 1, .. })));
    assert_eq!(bytes(&store, chunk, 0, 4096), vec![1; 4096]);
    // Any copy is newer than what is left of it.
    assert_eq!(store.blocks(chunk, 1, 1).unwrap()[0].version, BlockVersion::default());
}

#[test]
fn a_chunk_file_that_was_taken_away_is_reported_as_corrupt_and_the_disk_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(StoreOptions { open_files: 1, ..options(dir.path()) });
    let (lost, other) = (create(&store, 1), create(&store, 2));
    put(&store, lost, 0, b"x");
    put(&store, other, 0, b"y");
    store.close().unwrap();
    assert_eq!(bytes(&store, other, 0, 1), b"y");
    std::fs::remove_file(chunk_file(dir.path(), lost)).unwrap();
    assert!(matches!(store.read(lost, 0, 1), Err(StoreError::Corrupt { .. })));
    assert_eq!(bytes(&store, other, 0, 1), b"y");
}

#[test]
fn a_disk_that_is_nearly_full_admits_nothing_new_and_still_takes_what_others_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    assert!(store.admit(chunk, 100).is_ok());
    let free = store.usage()[0].free + (1 << 20);
    drop(store);
    // A third of the reserve is free beyond it.
    let store = open_with(StoreOptions { reserve: Some(free / 4 * 3), ..options(dir.path()) });
    assert!(matches!(store.admit(chunk, 100), Err(StoreError::NoSpace { .. })));
    assert_eq!(store.usage()[0].free, 0, "nobody is told of room that nobody gets");
    put(&store, chunk, 0, &[1; 100]);
}

#[test]
fn a_full_disk_refuses_writes_and_still_rolls_back_and_deletes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (a, b) = (create(&store, 1), create(&store, 2));
    put(&store, a, 0, &[1; 20_000]);
    let committed = prepare(&store, a, 0, &[2; 100]);
    prepare(&store, a, 0, &[3; 100]);
    drop(store);
    let store = open_with(StoreOptions { reserve: Some(u64::MAX), ..options(dir.path()) });
    let refused = store.prepare(a, &write(4, WriteKind::Data, 0, 1), b"x");
    assert!(matches!(refused, Err(StoreError::NoSpace { .. })));
    assert!(matches!(store.create(handle(3), &header(), &configuration(1)), Err(StoreError::NoSpace { .. })));
    assert_eq!(store.usage()[0].free, 0);
    store.commit(a, committed).unwrap();
    store.rollback(a, committed).unwrap();
    store.prepare(a, &write(3, WriteKind::Truncate, 10, 0), &[]).unwrap();
    store.commit(a, Sequence(3)).unwrap();
    store.sync(a).unwrap();
    store.delete(b).unwrap();
    store.close().unwrap();
    assert_eq!(bytes(&store, a, 0, 20), [vec![2; 10], vec![0; 10]].concat());
    assert_eq!(store.list().len(), 1);
    assert_eq!(store.usage()[0].failed, None);
}

#[test]
fn a_failed_fsync_takes_that_disk_alone_out_of_service() {
    let (good, bad) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dirs = vec![good.path().to_owned(), bad.path().to_owned()];
    let store = open_with(StoreOptions { dirs, ..options(good.path()) });
    let chunks: Vec<ChunkHandle> = (1..=8).map(|n| create(&store, n)).collect();
    let on_bad: Vec<ChunkHandle> =
        chunks.iter().copied().filter(|chunk| chunk_file(bad.path(), *chunk).exists()).collect();
    assert!(!on_bad.is_empty() && on_bad.len() < 8, "{on_bad:?}");
    for chunk in &chunks {
        put(&store, *chunk, 0, b"x");
    }
    let disk = store.disks.read().iter().find(|disk| disk.path == bad.path()).cloned().unwrap();
    disk.journal.fail_next_sync();
    assert!(matches!(store.sync(on_bad[0]), Err(StoreError::DiskFailed { .. })));
    assert_eq!(store.failed_chunks(), on_bad);
    for chunk in &chunks {
        match store.read(*chunk, 0, 1) {
            Ok(read) => assert_eq!((&read.data[..], on_bad.contains(chunk)), (&b"x"[..], false)),
            Err(error) => assert!(matches!(error, StoreError::DiskFailed { .. }) && on_bad.contains(chunk)),
        }
    }
    let made = create(&store, 20);
    assert!(chunk_file(good.path(), made).exists());
    assert_eq!(store.usage().iter().filter(|usage| usage.failed.is_some()).count(), 1);
    assert_eq!(store.list().len(), 8 - on_bad.len() + 1);
}

#[test]
fn what_lies_where_a_block_was_zeroed_is_no_damage() {
    let dir = scratch();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 12_288]);
    let zero = next(&store, chunk);
    store.prepare(chunk, &write(zero.0, WriteKind::Zero, 0, 8192), &[]).unwrap();
    store.commit(chunk, zero).unwrap();
    store.close().unwrap();
    flip(&chunk_file(dir.path(), chunk), 100, 1);
    flip(&chunk_file(dir.path(), chunk), 5000, 1);
    let mut expected = vec![0; 8192];
    assert_eq!(bytes(&store, chunk, 0, 8192), expected);
    put(&store, chunk, 4096, b"x");
    expected[4096] = b'x';
    assert_eq!(bytes(&store, chunk, 0, 8192), expected);
}
