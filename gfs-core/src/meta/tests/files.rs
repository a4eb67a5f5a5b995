//! Facts about writes, allocation, deletion, layouts and caches.

use super::*;
use crate::meta::locks::LockTable;
use crate::meta::request::{Lock, LockFamily, LockMode, LockOwner, LockRange};
use crate::meta::state::Touched;

#[test]
fn a_finished_write_attaches_its_chunk_and_moves_the_size_in_one_step() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", CHUNK + 100);
    let attributes = bench.attributes(inode);
    assert_eq!((attributes.size, attributes.allocated), (CHUNK + 100, 2 * CHUNK));
    assert_eq!(attributes.mtime, attributes.ctime);
    let Answer::Layout { chunks, .. } =
        bench.state.query(&Credentials::default(), &Query::Layout { inode, first: 1, count: 9 })
    else {
        panic!("no layout")
    };
    assert_eq!(chunks.len(), 1);
    assert_eq!((chunks[0].index, chunks[0].handle, chunks[0].configuration.primary), (1, handles[1], ServerId(2)));
    assert_eq!(bench.state.servers().replicas_on(ServerId(1)), 2);
    assert_eq!(bench.state.servers().replicas_on(ServerId(4)), 0);
}

#[test]
fn growth_makes_a_hole_that_is_not_counted() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, _) = bench.file(session, "f", 100);
    bench.run(session, resize(inode, 3 * CHUNK));
    assert_eq!(bench.attributes(inode).allocated, CHUNK);
    let far = bench.reserve(session);
    bench.run(session, commit(inode, vec![(7, far)], vec![], Some(7 * CHUNK + 10)));
    let attributes = bench.attributes(inode);
    assert_eq!((attributes.size, attributes.allocated), (7 * CHUNK + 10, 2 * CHUNK));
}

#[test]
fn a_commit_that_does_not_fit_is_stale_and_changes_nothing() {
    let mut bench = Bench::new();
    let (session, other) = (bench.session(), bench.session());
    let (inode, handles) = bench.file(session, "f", CHUNK);
    let (mine, theirs) = (bench.reserve(session), bench.reserve(other));
    let before = bench.attributes(inode);
    let size = Some(9 * CHUNK);
    for request in [
        commit(inode, vec![(1, theirs)], vec![], size),
        commit(inode, vec![(0, mine)], vec![], size),
        commit(inode, vec![(1, mine)], vec![(0, mine)], size),
        commit(inode, vec![(1, mine)], vec![(2, handles[0])], size),
        commit(inode, vec![(1, mine), (2, ChunkHandle(99))], vec![], size),
        commit(InodeId(999), vec![(1, mine)], vec![], size),
    ] {
        assert_eq!(bench.run(session, request.clone()), STALE, "{request:?}");
        assert_eq!(bench.attributes(inode), before);
        assert_eq!(bench.state.chunk(mine).unwrap().reserved, Some(session));
    }
    let twice = commit(inode, vec![(1, mine), (2, mine)], vec![], size);
    assert_eq!(bench.run(session, twice), Reply::Refused(Refusal::Invalid));
    let again = commit(inode, vec![(0, handles[0]), (1, mine)], vec![(1, mine)], size);
    assert!(matches!(bench.run(session, again), Reply::Attributes { .. }));
}

#[test]
fn a_size_past_the_last_chunk_index_is_too_large() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, _) = bench.file(session, "f", 10);
    let most = bench.state.max_size();
    assert_eq!(bench.run(session, resize(inode, most + 1)), Reply::Refused(Refusal::TooLarge));
    assert_eq!(bench.run(session, commit(inode, vec![], vec![], Some(most + 1))), Reply::Refused(Refusal::TooLarge));
    assert!(matches!(bench.run(session, resize(inode, most)), Reply::Attributes { .. }));
}

#[test]
fn an_unlinked_file_keeps_its_chunks_until_it_is_reaped() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", 2 * CHUNK);
    assert_eq!(bench.run(session, unlink("f")), Reply::Done);
    assert_eq!(bench.state.orphans().collect::<Vec<_>>(), [inode]);
    assert!(bench.state.chunk(handles[0]).is_some());
    assert_eq!(bench.tombstones(), []);
    let named = bench.create(session, "g");
    bench.apply(Command::ReapOrphans { inodes: vec![inode, named, InodeId(12345)] });
    assert_eq!(bench.state.orphans().count(), 0);
    assert!(bench.state.attributes(named).is_some());
    assert_eq!(bench.state.attributes(inode), None);
    assert_eq!(bench.state.chunks().len(), 0);
    assert_eq!(bench.tombstones().len(), 6);
    assert_eq!(bench.state.servers().replicas_on(ServerId(1)), 0);
    assert_eq!(bench.run(session, commit(inode, vec![], vec![], Some(1))), STALE);
}

#[test]
fn the_file_that_a_rename_replaces_becomes_an_orphan() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (old, _) = bench.file(session, "old", CHUNK);
    let (new, _) = bench.file(session, "new", CHUNK);
    let rename = Request::Rename {
        parent: ROOT,
        name: b"new".to_vec(),
        new_parent: ROOT,
        new_name: b"old".to_vec(),
        mode: Default::default(),
    };
    let touched = bench.state.touched(&rename);
    assert_eq!(touched.inodes, [ROOT, old, new]);
    assert_eq!(touched.entries, [(ROOT, b"new".to_vec()), (ROOT, b"old".to_vec())]);
    assert_eq!(bench.run(session, rename), Reply::Done);
    assert_eq!(bench.state.orphans().collect::<Vec<_>>(), [old]);
}

#[test]
fn a_mutation_touches_names_directories_and_what_they_name() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, _) = bench.file(session, "f", 10);
    let expected = Touched { inodes: vec![ROOT, inode], entries: vec![(ROOT, b"f".to_vec())] };
    assert_eq!(bench.state.touched(&unlink("f")), expected);
    assert_eq!(bench.state.touched(&create("g")).inodes, [ROOT]);
    assert_eq!(bench.state.touched(&resize(inode, 1)), Touched { inodes: vec![inode], entries: vec![] });
    assert!(bench.state.touched(&Request::Barrier { times: true }).is_empty());
    assert!(bench.state.touched(&Request::TouchAccess { inodes: vec![inode] }).is_empty());
}

#[test]
fn a_new_goal_reaches_the_chunks_of_the_file() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, _) = bench.file(session, "f", 2 * CHUNK);
    let goal = |replicas| Request::SetAttributes {
        inode,
        changes: AttributeChanges { replicas: Some(replicas), ..AttributeChanges::default() },
    };
    bench.run(session, goal(4));
    assert_eq!(bench.state.under_goal(ChunkHandle(0)).count(), 2);
    bench.run(session, goal(2));
    assert_eq!(bench.state.over_goal(ChunkHandle(0)).count(), 2);
    assert_eq!(bench.run(session, goal(0)), Reply::Refused(Refusal::Invalid));
    let far = bench.reserve(session);
    bench.run(session, commit(inode, vec![(5, far)], vec![], None));
    assert_eq!(bench.state.chunk(far).unwrap().goal, 2);
}

#[test]
fn locks_are_a_sessions_own_and_go_with_it() {
    let mut bench = Bench::new();
    let (session, other) = (bench.session(), bench.session());
    let (inode, _) = bench.file(session, "f", 10);
    let lock = |session| Lock {
        family: LockFamily::Record,
        owner: LockOwner { session, owner: 1 },
        pid: 5,
        mode: LockMode::Write,
        range: LockRange { start: 0, end: 9 },
    };
    let set = |session| Request::SetLock { inode, lock: lock(session) };
    assert_eq!(bench.run(session, set(session)), Reply::Done);
    assert_eq!(bench.run(session, set(other)), Reply::Refused(Refusal::Invalid));
    let id = OperationId { session: other, operation: 77 };
    assert_eq!(bench.run_as(id, 0, set(other)), Reply::Refused(Refusal::WouldBlock));
    assert_eq!(bench.state.replayed(id), None);
    let test = Query::TestLock { inode, lock: lock(other) };
    assert_eq!(bench.state.query(&Credentials::default(), &test), Answer::Lock(Some(lock(session))));
    bench.apply(Command::EndSession { session });
    assert_eq!(bench.run_as(id, 0, set(other)), Reply::Done);
    let held: &LockTable = bench.state.locks();
    assert_eq!(held.iter().collect::<Vec<_>>(), [(inode, lock(other))]);
    bench.run(other, unlink("f"));
    bench.apply(Command::ReapOrphans { inodes: vec![inode] });
    assert_eq!(bench.state.locks().files(), 0);
}
