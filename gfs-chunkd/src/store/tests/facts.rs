//! Facts about preparing, committing, reading, syncing and deleting.

use super::*;
use crc_fast::crc32_iscsi;

const BIG: usize = 40 << 10;

#[test]
fn prepared_bytes_are_seen_only_after_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    for (offset, data) in [(0, vec![1u8; 100]), (8192, vec![2u8; BIG]), (50, vec![3u8; 5000])] {
        let before = bytes(&store, chunk, 0, CHUNK);
        let sequence = prepare(&store, chunk, offset, &data);
        assert_eq!(bytes(&store, chunk, 0, CHUNK), before);
        assert_eq!(store.prepared_data(chunk, sequence).unwrap(), data);
        store.commit(chunk, sequence).unwrap();
        let mut after = before;
        after[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
        assert_eq!(bytes(&store, chunk, 0, CHUNK), after);
    }
    assert_eq!(store.state(chunk).unwrap().length, 8192 + BIG as u64);
}

#[test]
fn a_landed_prepare_is_not_seen_when_an_earlier_write_moves_the_length_past_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    let far = prepare(&store, chunk, 500_000, b"far away");
    let landed = prepare(&store, chunk, 100_000, &[7; BIG]);
    store.commit(chunk, far).unwrap();
    assert_eq!(bytes(&store, chunk, 100_000, BIG as u64), vec![0; BIG]);
    store.commit(chunk, landed).unwrap();
    assert_eq!(bytes(&store, chunk, 100_000, BIG as u64), vec![7; BIG]);
}

#[test]
fn reads_carry_checksums_that_match_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 4000, &[9; 30_000]);
    let aligned = store.read(chunk, 4096, 3 * 4096).unwrap();
    let crcs: Vec<u32> = aligned.data.chunks(4096).map(crc32_iscsi).collect();
    assert_eq!(aligned.block_crcs, crcs);
    assert_eq!(aligned.length, 34_000);
    let odd = store.read(chunk, 3999, 7).unwrap();
    assert_eq!((&odd.data[..], odd.block_crcs.len()), (&[0, 9, 9, 9, 9, 9, 9][..], 0));
    assert_eq!(odd.crc, crc32_iscsi(&odd.data));
    let end = store.read(chunk, CHUNK - 10, 100).unwrap();
    assert_eq!(end.data, vec![0; 10]);
    let hole = store.read(chunk, 8 * 65536, 4096).unwrap();
    assert_eq!(hole.block_crcs, vec![crc32_iscsi(&[0; 4096])]);
    assert!(matches!(store.read(chunk, CHUNK + 1, 1), Err(StoreError::Malformed { .. })));
}

#[test]
fn cached_reads_answer_what_reads_answer() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[4; BIG]);
    put(&store, chunk, 100, &[5; 10]);
    for (offset, length) in [(0, 4096), (90, 30), (0, BIG as u64)] {
        if let Some(cached) = store.read_cached(chunk, offset, length).unwrap() {
            assert_eq!(cached, store.read(chunk, offset, length).unwrap());
        }
    }
}

#[test]
fn rolled_back_bytes_never_show_when_the_chunk_grows_over_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    let first = put(&store, chunk, 0, b"kept");
    prepare(&store, chunk, 4096, &[8; BIG]);
    prepare(&store, chunk, 4096, &[9; 10]);
    store.rollback(chunk, first).unwrap();
    assert_eq!(store.state(chunk).unwrap().prepared, vec![]);
    put(&store, chunk, 300_000, b"end");
    assert_eq!(bytes(&store, chunk, 4096, BIG as u64), vec![0; BIG]);
    drop(store);
    let store = open(dir.path());
    assert_eq!(bytes(&store, chunk, 4096, BIG as u64), vec![0; BIG]);
    assert_eq!(bytes(&store, chunk, 0, 4), b"kept");
}

#[test]
fn truncate_zeroes_to_the_end_and_nothing_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 100_000]);
    let cut = next(&store, chunk);
    store.prepare(chunk, &write(cut.0, WriteKind::Truncate, 5000, 0), &[]).unwrap();
    let later = prepare(&store, chunk, 200_000, &[2; BIG]);
    store.commit(chunk, cut).unwrap();
    assert_eq!(store.state(chunk).unwrap().length, 5000);
    store.commit(chunk, later).unwrap();
    assert_eq!(bytes(&store, chunk, 0, 5000), vec![1; 5000]);
    assert_eq!(bytes(&store, chunk, 5000, 195_000), vec![0; 195_000]);
    assert_eq!(bytes(&store, chunk, 200_000, BIG as u64), vec![2; BIG]);
}

#[test]
fn zero_keeps_the_length_and_names_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 20_000]);
    let zero = next(&store, chunk);
    store.prepare(chunk, &write(zero.0, WriteKind::Zero, 1000, 500_000), &[]).unwrap();
    store.commit(chunk, zero).unwrap();
    assert_eq!(store.state(chunk).unwrap().length, 20_000);
    assert_eq!(bytes(&store, chunk, 0, 1000), vec![1; 1000]);
    assert_eq!(bytes(&store, chunk, 1000, 100_000), vec![0; 100_000]);
    let infos = store.blocks(chunk, 0, 8).unwrap();
    assert!(infos[..5].iter().all(|info| info.version.sequence == zero), "{infos:?}");
    assert!(infos[5..].iter().all(|info| !info.is_written()));
}

#[test]
fn sequences_must_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    let gap = store.prepare(chunk, &write(2, WriteKind::Data, 0, 1), b"x");
    assert!(matches!(gap, Err(StoreError::OutOfOrder { expected: Sequence(1), got: Sequence(2), .. })));
    put(&store, chunk, 0, b"a");
    let again = store.prepare(chunk, &write(1, WriteKind::Data, 0, 1), b"x");
    assert!(matches!(again, Err(StoreError::OutOfOrder { expected: Sequence(2), .. })));
    assert!(matches!(store.commit(chunk, Sequence(2)), Err(StoreError::OutOfOrder { .. })));
    assert!(matches!(store.rollback(chunk, Sequence(0)), Err(StoreError::OutOfOrder { .. })));
    store.commit(chunk, Sequence(1)).unwrap();
    let beyond = store.prepare(chunk, &write(2, WriteKind::Data, CHUNK - 1, 2), b"xy");
    assert!(matches!(beyond, Err(StoreError::Malformed { .. })));
    let short = store.prepare(chunk, &write(2, WriteKind::Data, 0, 3), b"xy");
    assert!(matches!(short, Err(StoreError::Malformed { .. })));
}

#[test]
fn operations_are_remembered_over_a_kill_and_a_checkpoint_until_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    for n in 0..4 {
        put(&store, chunk, n * 10, b"0123456789");
    }
    prepare(&store, chunk, 900, b"x");
    store.rollback(chunk, Sequence(4)).unwrap();
    let operations = |store: &Store| -> Vec<(u64, u64)> {
        let state = store.state(chunk).unwrap();
        state.operations.iter().map(|r| (r.operation.operation, r.offset)).collect()
    };
    let all = vec![(1, 0), (2, 10), (3, 20), (4, 30)];
    assert_eq!(operations(&store), all);
    drop(store);
    let store = open(dir.path());
    assert_eq!(operations(&store), all);
    store.close().unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(operations(&store), all);
    store.confirm_operations(chunk, SessionId(5), 3).unwrap();
    assert_eq!(operations(&store), vec![(4, 30)]);
}

#[test]
fn seek_finds_data_and_holes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    assert_eq!(store.seek(chunk, 0, false).unwrap(), CHUNK);
    assert_eq!(store.seek(chunk, 10, true).unwrap(), 10);
    put(&store, chunk, 8192, &[1; 4096]);
    put(&store, chunk, 40_960, &[1; 100]);
    assert_eq!(store.seek(chunk, 0, false).unwrap(), 8192);
    assert_eq!(store.seek(chunk, 9000, false).unwrap(), 9000);
    assert_eq!(store.seek(chunk, 12_288, false).unwrap(), 40_960);
    assert_eq!(store.seek(chunk, 8192, true).unwrap(), 12_288);
    assert_eq!(store.seek(chunk, 40_970, true).unwrap(), 41_060);
    assert_eq!(store.seek(chunk, 41_060, false).unwrap(), CHUNK);
    let zero = next(&store, chunk);
    store.prepare(chunk, &write(zero.0, WriteKind::Zero, 8192, 4096), &[]).unwrap();
    store.commit(chunk, zero).unwrap();
    assert_eq!(store.seek(chunk, 0, false).unwrap(), 40_960);
}

#[test]
fn sync_says_what_is_flushed_and_it_is_known_after_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (a, b) = (create(&store, 1), create(&store, 2));
    put(&store, a, 0, &[1; BIG]);
    put(&store, a, 0, b"small");
    put(&store, b, 0, b"other");
    assert_eq!(store.state(a).unwrap().flushed, Sequence(0));
    let flushed: Vec<_> = store.sync_many(&[a, b]).into_iter().map(Result::unwrap).collect();
    assert_eq!(flushed, vec![Sequence(2), Sequence(1)]);
    assert_eq!(store.state(a).unwrap().flushed, Sequence(2));
    assert_eq!(store.sync(a).unwrap(), Sequence(2));
    put(&store, a, 10, b"not synced");
    drop(store);
    let store = open_with(StoreOptions { boot_id: Some("second boot".into()), ..options(dir.path()) });
    let state = store.state(a).unwrap();
    assert_eq!((state.flushed, state.suspect), (Sequence(2), true));
    assert_eq!(store.state(b).unwrap().flushed, Sequence(1));
}

#[test]
fn configurations_and_the_header_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    store.set_configuration(chunk, &configuration(4)).unwrap();
    drop(store);
    let state = open(dir.path()).list().remove(0);
    assert_eq!((state.handle, state.configuration, state.header), (chunk, configuration(4), header()));
}

#[test]
fn a_deleted_chunk_stays_deleted_and_its_handle_can_be_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    assert!(matches!(store.create(chunk, &header(), &configuration(1)), Err(StoreError::Exists { .. })));
    put(&store, chunk, 0, &[1; BIG]);
    put(&store, chunk, 0, b"journaled");
    store.delete(chunk).unwrap();
    assert!(matches!(store.read(chunk, 0, 1), Err(StoreError::NoChunk { .. })));
    assert!(!chunk_file(dir.path(), chunk).exists());
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.list(), vec![]);
    create(&store, 1);
    put(&store, chunk, 100_000, b"new");
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.state(chunk).unwrap().committed, Sequence(1));
    assert_eq!(bytes(&store, chunk, 0, BIG as u64), vec![0; BIG]);
    assert_eq!(bytes(&store, chunk, 100_000, 3), b"new");
}

#[test]
fn a_small_synced_write_of_a_new_chunk_survives_the_loss_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, b"small and synced");
    store.sync(chunk).unwrap();
    drop(store);
    // The file's name was not durable when the power went.
    std::fs::remove_file(chunk_file(dir.path(), chunk)).unwrap();
    let store = open_with(StoreOptions { boot_id: Some("second boot".into()), ..options(dir.path()) });
    assert_eq!(bytes(&store, chunk, 0, 16), b"small and synced");
    assert!(store.state(chunk).unwrap().suspect);
}

#[test]
fn a_prepare_that_was_interrupted_while_landing_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 4096]);
    let sequence = prepare(&store, chunk, 4096, &[2; BIG]);
    drop(store);
    // As if the last block had not been written before the kill.
    flip(&chunk_file(dir.path(), chunk), 4096 + BIG as u64 - 1, 2);
    let store = open(dir.path());
    let state = store.state(chunk).unwrap();
    assert_eq!((state.committed, state.prepared), (Sequence(1), vec![]));
    // The next write takes the same place in the history, and the hole below it is empty.
    let again = put(&store, chunk, 4096 + BIG as u64, &[3; 4096]);
    assert_eq!(again, sequence);
    drop(store);
    let store = open(dir.path());
    assert_eq!(bytes(&store, chunk, 4096, BIG as u64), vec![0; BIG]);
    assert_eq!(bytes(&store, chunk, 4096 + BIG as u64, 4096), vec![3; 4096]);
}

#[test]
fn committed_blocks_that_did_not_reach_their_place_are_put_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 64 << 10]);
    store.close().unwrap();
    put(&store, chunk, 100, &[2; 5000]);
    put(&store, chunk, 5050, &[3; 100]);
    drop(store);
    let store = open(dir.path());
    let mut expected = vec![1; 64 << 10];
    expected[100..5100].fill(2);
    expected[5050..5150].fill(3);
    assert_eq!(bytes(&store, chunk, 0, 64 << 10), expected);
    assert_eq!(store.blocks(chunk, 1, 1).unwrap()[0].version.sequence, Sequence(3));
}

#[test]
fn checkpoints_trim_the_journal_and_carry_prepared_writes_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (busy, waiting) = (create(&store, 1), create(&store, 2));
    prepare(&store, waiting, 10, b"prepared long ago");
    for n in 0..600u64 {
        put(&store, busy, n * 1000 % 500_000, &[n as u8; 12_000]);
        store.tick();
    }
    let journal = |dir: &Path| -> u64 {
        let files = std::fs::read_dir(dir.join("journal")).unwrap().map(|e| e.unwrap());
        files.filter(|e| e.path().extension().is_some_and(|x| x == "log")).map(|e| e.metadata().unwrap().len()).sum()
    };
    assert!(journal(dir.path()) <= 6 << 20, "{}", journal(dir.path()));
    let expected = bytes(&store, busy, 0, CHUNK);
    drop(store);
    let store = open(dir.path());
    assert_eq!(bytes(&store, busy, 0, CHUNK), expected);
    store.commit(waiting, Sequence(1)).unwrap();
    assert_eq!(bytes(&store, waiting, 10, 17), b"prepared long ago");
}

#[test]
fn threads_on_many_chunks_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunks: Vec<ChunkHandle> = (1..=6).map(|n| create(&store, n)).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = chunks
            .iter()
            .map(|chunk| {
                let store = &store;
                scope.spawn(move || {
                    for n in 0..60u64 {
                        put(store, *chunk, n * 3000, &vec![(n + chunk.0) as u8; 3000 + (n as usize % 3) * 20_000]);
                        if n % 10 == 0 {
                            store.sync(*chunk).unwrap();
                        }
                        assert_eq!(bytes(store, *chunk, n * 3000, 3000), vec![(n + chunk.0) as u8; 3000]);
                    }
                })
            })
            .collect();
        let ticker = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                store.tick();
                store.close().unwrap();
            }
        });
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, std::sync::atomic::Ordering::Release);
        ticker.join().unwrap();
        assert!(results.iter().all(Result::is_ok));
    });
    let before: Vec<Vec<u8>> = chunks.iter().map(|chunk| bytes(&store, *chunk, 0, CHUNK)).collect();
    drop(store);
    let store = open(dir.path());
    let after: Vec<Vec<u8>> = chunks.iter().map(|chunk| bytes(&store, *chunk, 0, CHUNK)).collect();
    assert!(before == after);
}

#[test]
fn bytes_written_after_a_truncation_are_not_zeroed_by_it_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 200_000]);
    let cut = next(&store, chunk);
    store.prepare(chunk, &write(cut.0, WriteKind::Truncate, 45_149, CHUNK - 45_149), &[]).unwrap();
    store.commit(chunk, cut).unwrap();
    put(&store, chunk, 65_536, &[2; BIG]);
    store.sync(chunk).unwrap();
    assert_eq!(bytes(&store, chunk, 65_536, BIG as u64), vec![2; BIG]);
    // The overlay has gone to its place by now, or goes at the latest when the store closes.
    store.close().unwrap();
    drop(store);
    assert_eq!(bytes(&open(dir.path()), chunk, 65_536, BIG as u64), vec![2; BIG]);
}

#[test]
fn a_hint_to_read_ahead_is_harmless_wherever_it_points() {
    let dir = scratch();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    put(&store, chunk, 0, &data);
    for (offset, length) in [(0, 4096), (100_000, 1 << 20), (200_000, 4096), (u64::MAX, u64::MAX), (0, 0)] {
        store.read_ahead(chunk, offset, length);
    }
    store.read_ahead(handle(2), 0, 4096);
    assert_eq!(bytes(&store, chunk, 0, 200_000), data);
}

#[test]
fn a_large_write_at_an_odd_place_is_whole_after_a_restart() {
    let dir = scratch();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    let data: Vec<u8> = (0..300_001u32).map(|n| (n % 253) as u8).collect();
    // Head and tail go through the page cache, the blocks between them do not; then an overwrite goes over all of them.
    put(&store, chunk, 5_003, &data);
    put(&store, chunk, 9_000, &[7; 100_000]);
    let mut expected = vec![0; 5_003];
    expected.extend_from_slice(&data);
    expected[9_000..109_000].fill(7);
    assert_eq!(bytes(&store, chunk, 0, 305_004), expected);
    store.sync(chunk).unwrap();
    drop(store);
    assert_eq!(bytes(&open(dir.path()), chunk, 0, 305_004), expected);
}

#[test]
fn stored_blocks_are_those_with_bytes_though_the_bytes_be_zeros() {
    let dir = scratch();
    let mut store = open(dir.path());
    let chunk = create(&store, 1);
    let zero = |store: &Store, kind, offset, length| {
        let sequence = next(store, chunk);
        store.prepare(chunk, &write(sequence.0, kind, offset, length), &[]).unwrap();
        store.commit(chunk, sequence).unwrap();
    };
    let stored = |store: &Store| store.stored(chunk).unwrap();
    assert_eq!(stored(&store), (0, Sequence(0)));
    put(&store, chunk, 500_000, b"x");
    put(&store, chunk, 4095, &[0; 2]);
    assert_eq!(stored(&store), (3, Sequence(2)));
    put(&store, chunk, 600_000, &[1; BIG]);
    assert_eq!(stored(&store).0, 3 + 11, "landed in place");
    zero(&store, WriteKind::Zero, 0, 8192);
    zero(&store, WriteKind::Zero, 600_000, 10_000);
    assert_eq!(stored(&store).0, 1 + 10, "two whole blocks, and one of three");
    zero(&store, WriteKind::Zero, 100, 200);
    put(&store, chunk, 4096, &[0; 4096]);
    assert_eq!(stored(&store).0, 12, "zeros in a hole leave it one, a write does not");
    drop(store);
    store = open(dir.path());
    assert_eq!(stored(&store), (12, Sequence(7)));
    zero(&store, WriteKind::Truncate, 500_001, 0);
    assert_eq!(stored(&store), (2, Sequence(8)));
}
