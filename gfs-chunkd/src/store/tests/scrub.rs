//! Scrubbing finds what lies damaged on the disk, and nothing else.

use super::*;
use std::os::unix::fs::FileExt;

const BLOCKS: u32 = (CHUNK / BLOCK) as u32;

/// A store in which everything rests at once, on a real file system, since the point is to go past the page cache.
fn resting() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(StoreOptions { linger: Duration::ZERO, ..options(dir.path()) });
    (dir, store)
}

#[test]
fn every_flipped_bit_of_stored_data_is_found_and_holes_are_not_read() {
    let (dir, store) = resting();
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 90_000]);
    put(&store, chunk, 400_000, &[2; 5_000]);
    store.tick();
    assert_eq!(store.scrub(chunk, 0, BLOCKS).unwrap(), 22 * BLOCK + 2 * BLOCK);
    for offset in [0, 4_095, 89_999, 401_000] {
        flip(&chunk_file(dir.path(), chunk), offset, 0x10);
        let block = (offset / BLOCK) as u32;
        assert!(matches!(store.scrub(chunk, 0, BLOCKS), Err(StoreError::Corrupt { .. })), "{offset}");
        assert!(matches!(store.scrub(chunk, block, 1), Err(StoreError::Corrupt { .. })), "{offset}");
        flip(&chunk_file(dir.path(), chunk), offset, 0x10);
    }
    // Nobody reads what lies in a hole.
    flip(&chunk_file(dir.path(), chunk), 200_000, 0x10);
    assert_eq!(store.scrub(chunk, 0, BLOCKS).unwrap(), 24 * BLOCK);
}

#[test]
fn a_damaged_entry_of_the_block_table_is_found() {
    let (dir, store) = resting();
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 90_000]);
    store.tick();
    flip(&chunk_file(dir.path(), chunk), CHUNK + 4096 + (128 << 10) + 5 * 16, 1);
    assert!(matches!(store.scrub(chunk, 0, BLOCKS), Err(StoreError::Corrupt { .. })));
    assert_eq!(store.scrub(chunk, 6, 8).unwrap(), 8 * BLOCK);
}

#[test]
fn what_is_written_just_now_is_left_alone_and_a_replica_that_is_gone_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 90_000]);
    assert_eq!(store.scrub(chunk, 0, BLOCKS).unwrap(), 0);
    assert!(matches!(store.scrub(chunk, 0, BLOCKS + 1), Err(StoreError::Malformed { .. })));
    store.delete(chunk).unwrap();
    assert!(matches!(store.scrub(chunk, 0, BLOCKS), Err(StoreError::NoChunk { .. })));
}

#[test]
fn damage_below_the_page_cache_is_found_though_readers_do_not_see_it() {
    let (dir, store) = resting();
    let chunk = create(&store, 1);
    put(&store, chunk, 0, &[1; 8_192]);
    store.tick();
    assert_eq!(bytes(&store, chunk, 0, 8_192), [1; 8_192], "now it is in the page cache");
    let path = chunk_file(dir.path(), chunk);
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::DIRECT;
    let Ok(direct) = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()) else { return };
    let memory = vec![7_u8; 2 * BLOCK as usize];
    let at = memory.as_ptr().align_offset(BLOCK as usize);
    std::fs::File::from(direct).write_all_at(&memory[at..at + BLOCK as usize], BLOCK).unwrap();
    assert!(matches!(store.scrub(chunk, 0, BLOCKS), Err(StoreError::Corrupt { .. })));
}
