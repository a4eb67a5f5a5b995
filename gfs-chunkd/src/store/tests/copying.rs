//! Facts about filling a replica from another.

use super::*;

/// Copies all blocks of a chunk, in steps.
fn copy_all(from: &Store, to: &Store, chunk: ChunkHandle) {
    for first in (0..256).step_by(64) {
        let (infos, data) = from.fetch_blocks(chunk, first, 64).unwrap();
        to.copy_in(chunk, first, &infos, &data).unwrap();
    }
}

fn stores() -> (tempfile::TempDir, Store, tempfile::TempDir, Store) {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (open(a.path()), open(b.path()));
    (a, from, b, to)
}

#[test]
fn a_filled_replica_equals_its_source_with_writes_arriving_meanwhile() {
    let (_a, from, b, to) = stores();
    let chunk = create(&from, 1);
    put(&from, chunk, 0, &[1; 100_000]);
    put(&from, chunk, 300_000, &[2; 5000]);
    create(&to, 1);
    // It holds something old and wrong.
    put(&to, chunk, 0, &[9; 400_000]);
    prepare(&to, chunk, 500_000, &[9; 50_000]);
    to.copy_start(chunk, Sequence(2)).unwrap();
    let state = to.state(chunk).unwrap();
    assert_eq!((state.committed, state.prepared.len(), state.filling), (Sequence(2), 0, true));
    // A partial write arrives before its block does.
    for store in [&from, &to] {
        let meanwhile = write(3, WriteKind::Data, 50_000, 20_000);
        store.prepare(chunk, &meanwhile, &[3; 20_000]).unwrap();
        store.commit(chunk, Sequence(3)).unwrap();
    }
    copy_all(&from, &to, chunk);
    let late = write(4, WriteKind::Data, 50_100, 10);
    for store in [&from, &to] {
        store.prepare(chunk, &late, &[4; 10]).unwrap();
    }
    let source = from.state(chunk).unwrap();
    // The source tells of what is committed there; what is only prepared came as a write of its own.
    let committed: Vec<_> = source.operations.iter().filter(|record| record.sequence <= Sequence(3)).copied().collect();
    to.copy_finish(chunk, source.length, &committed).unwrap();
    for store in [&from, &to] {
        store.commit(chunk, Sequence(4)).unwrap();
    }
    let check = |to: &Store| {
        assert!(bytes(&from, chunk, 0, CHUNK) == bytes(to, chunk, 0, CHUNK));
        assert_eq!(from.blocks(chunk, 0, 256).unwrap(), to.blocks(chunk, 0, 256).unwrap());
        assert_eq!(from.stored(chunk).unwrap(), to.stored(chunk).unwrap());
        let (source, copy) = (from.state(chunk).unwrap(), to.state(chunk).unwrap());
        assert_eq!((copy.committed, copy.length, copy.filling), (source.committed, source.length, false));
        assert_eq!(copy.operations, source.operations);
    };
    check(&to);
    assert!(to.state(chunk).unwrap().flushed >= Sequence(3));
    drop(to);
    let to = open(b.path());
    check(&to);
    // What it held beyond the source's length never comes back.
    for store in [&from, &to] {
        put(store, chunk, 900_000, b"end");
    }
    check(&to);
}

#[test]
fn a_replica_that_is_killed_while_filled_still_says_so() {
    let (_a, from, b, to) = stores();
    let chunk = create(&from, 1);
    put(&from, chunk, 0, &[1; 100_000]);
    create(&to, 1);
    to.copy_start(chunk, Sequence(1)).unwrap();
    let (infos, data) = from.fetch_blocks(chunk, 0, 4).unwrap();
    to.copy_in(chunk, 0, &infos, &data).unwrap();
    drop(to);
    let to = open(b.path());
    assert!(to.state(chunk).unwrap().filling);
    to.copy_start(chunk, Sequence(1)).unwrap();
    copy_all(&from, &to, chunk);
    to.copy_finish(chunk, 100_000, &[]).unwrap();
    drop(to);
    let to = open(b.path());
    assert!(!to.state(chunk).unwrap().filling);
    assert_eq!(bytes(&to, chunk, 0, 100_000), vec![1; 100_000]);
}

#[test]
fn copied_bytes_that_do_not_match_are_refused_and_change_nothing() {
    let (_a, from, _b, to) = stores();
    let chunk = create(&from, 1);
    put(&from, chunk, 0, &[1; 8192]);
    create(&to, 1);
    let (infos, data) = from.fetch_blocks(chunk, 0, 2).unwrap();
    let mut damaged = data.to_vec();
    damaged[5000] ^= 1;
    let refused = to.copy_in(chunk, 0, &infos, &damaged);
    assert!(matches!(refused, Err(StoreError::BadPayload { block: 1, .. })));
    assert!(matches!(to.copy_in(chunk, 255, &infos, &data), Err(StoreError::Malformed { .. })));
    assert!(matches!(to.copy_in(chunk, 0, &infos, &data[1..]), Err(StoreError::Malformed { .. })));
    put(&to, chunk, 8192, b"x");
    assert_eq!(bytes(&to, chunk, 0, 8192), vec![0; 8192]);
}

#[test]
fn a_write_that_a_copied_block_contains_already_is_not_applied_again() {
    let (_a, from, _b, to) = stores();
    let chunk = create(&from, 1);
    create(&to, 1);
    let first = write(1, WriteKind::Data, 0, 100);
    let second = write(2, WriteKind::Data, 50, 100);
    for store in [&from, &to] {
        store.prepare(chunk, &first, &[1; 100]).unwrap();
        store.prepare(chunk, &second, &[2; 100]).unwrap();
    }
    from.commit(chunk, Sequence(2)).unwrap();
    let (infos, data) = from.fetch_blocks(chunk, 0, 1).unwrap();
    to.copy_in(chunk, 0, &infos, &data).unwrap();
    to.commit(chunk, Sequence(1)).unwrap();
    to.commit(chunk, Sequence(2)).unwrap();
    assert_eq!(bytes(&to, chunk, 0, 200), bytes(&from, chunk, 0, 200));
    assert_eq!(to.blocks(chunk, 0, 1).unwrap(), infos);
}
