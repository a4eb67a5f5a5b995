//! Facts about truncation (rule 13).

use super::*;
use crate::ids::Epoch;
use crate::meta::request::Configuration;

#[test]
fn a_cut_buries_chunks_beyond_it_and_raises_the_epoch_of_the_one_it_cuts() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", 3 * CHUNK);
    let reply = bench.run(session, resize(inode, CHUNK + 7));
    let Reply::Attributes { attributes, pending_shrink: true } = reply else { panic!("{reply:?}") };
    assert_eq!((attributes.size, attributes.allocated), (CHUNK + 7, 2 * CHUNK));
    let shrink = bench.state.shrink(inode).unwrap();
    assert_eq!((shrink.handle, shrink.index, shrink.from, shrink.epoch), (handles[1], 1, 7, Epoch(2)));
    assert_eq!(bench.state.chunk(handles[1]).unwrap().configuration.epoch, Epoch(2));
    assert_eq!(bench.state.chunk(handles[0]).unwrap().configuration.epoch, Epoch(1));
    assert_eq!(bench.state.chunk(handles[2]), None);
    assert_eq!(bench.tombstones(), [(1, handles[2]), (2, handles[2]), (3, handles[2])]);
}

#[test]
fn a_cut_at_a_border_or_in_a_hole_leaves_nothing_to_zero() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, _) = bench.file(session, "f", 2 * CHUNK);
    let reply = bench.run(session, resize(inode, CHUNK));
    assert!(matches!(reply, Reply::Attributes { pending_shrink: false, .. }), "{reply:?}");
    bench.run(session, resize(inode, 9 * CHUNK));
    let reply = bench.run(session, resize(inode, 5 * CHUNK + 5));
    assert!(matches!(reply, Reply::Attributes { pending_shrink: false, .. }), "{reply:?}");
    assert_eq!(bench.state.shrinks().count(), 0);
}

#[test]
fn growth_waits_for_the_cut_and_may_then_be_proposed_again() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", 2 * CHUNK);
    bench.run(session, resize(inode, 100));
    let spare = bench.reserve(session);
    let id = |operation| OperationId { session, operation };
    let requests = [
        (id(101), resize(inode, 200)),
        (id(102), commit_after(Epoch(2), inode, vec![], vec![(0, handles[0])], Some(101))),
        (id(103), commit(inode, vec![(4, spare)], vec![], None)),
    ];
    for (id, request) in &requests {
        assert!(bench.state.waits_for_shrink(request), "{request:?}");
        let before = bench.state.hash();
        assert_eq!(bench.run_as(*id, 0, request.clone()), STALE);
        assert_eq!(bench.state.replayed(*id), None);
        assert_eq!(bench.state.hash(), before);
    }
    let inside = commit(inode, vec![], vec![(0, handles[0])], None);
    assert!(matches!(bench.run(session, inside), Reply::Attributes { .. }));
    let epoch = bench.state.shrink(inode).unwrap().epoch;
    bench.apply(Command::FinishShrink { inode, handle: handles[0], epoch, stored: None });
    for (id, request) in requests {
        assert!(matches!(bench.run_as(id, 0, request), Reply::Attributes { .. }));
    }
    assert_eq!(bench.attributes(inode).size, 200);
}

#[test]
fn growth_over_what_a_cut_has_zeroed_is_stale() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", CHUNK);
    let all = |cut, size| commit_after(cut, inode, vec![], vec![(0, handles[0])], Some(size));
    let cut = |bench: &mut Bench, size| {
        bench.run(session, resize(inode, size));
        let epoch = bench.state.shrink(inode).unwrap().epoch;
        bench.apply(Command::FinishShrink { inode, handle: handles[0], epoch, stored: None });
        epoch
    };
    let first = cut(&mut bench, 500);
    assert_eq!(bench.run(session, all(Epoch(0), 600)), STALE);
    assert_eq!(bench.run(session, commit(inode, vec![(0, handles[0])], vec![], Some(600))), STALE);
    assert_eq!(bench.attributes(inode).size, 500);
    // What names no size took the file to be as long before the cut, and is done.
    let inside = commit_after(Epoch(0), inode, vec![], vec![(0, handles[0])], None);
    assert!(matches!(bench.run(session, inside), Reply::Attributes { .. }));
    // New members change nothing about what was written.
    let known = bench.state.chunk(handles[0]).unwrap().configuration;
    let next = Configuration { members: known.members[..2].to_vec(), ..known.clone() };
    bench.apply(Command::Reconfigure { handle: handles[0], expected: known.epoch, next });
    assert_eq!(bench.state.chunk(handles[0]).unwrap().configuration.epoch, first.next());
    assert!(matches!(bench.run(session, all(first, 600)), Reply::Attributes { .. }));
    let second = cut(&mut bench, 400);
    assert_eq!(bench.run(session, all(first, 700)), STALE);
    assert!(matches!(bench.run(session, all(second, 700)), Reply::Attributes { .. }));
    assert_eq!(bench.attributes(inode).size, 700);
}

#[test]
fn a_write_that_a_cut_has_zeroed_is_stale_although_another_has_grown_the_file_since() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", CHUNK);
    let all = |cut, size| commit_after(cut, inode, vec![], vec![(0, handles[0])], Some(size));
    bench.run(session, resize(inode, 500));
    let cut = bench.state.shrink(inode).unwrap().epoch;
    // Two writes wait for the cut. One reached the chunk before its tail was zeroed, the other after it.
    assert!(bench.state.waits_for_shrink(&all(Epoch(0), 600)) && bench.state.waits_for_shrink(&all(cut, 700)));
    bench.apply(Command::FinishShrink { inode, handle: handles[0], epoch: cut, stored: None });
    assert!(matches!(bench.run(session, all(cut, 700)), Reply::Attributes { .. }));
    assert_eq!(bench.run(session, all(Epoch(0), 600)), STALE);
}

#[test]
fn an_older_zeroing_does_not_finish_a_later_cut() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", CHUNK);
    bench.run(session, resize(inode, 500));
    let first = bench.state.shrink(inode).unwrap();
    bench.run(session, resize(inode, 300));
    let second = bench.state.shrink(inode).unwrap();
    assert_eq!((second.from, second.epoch), (300, first.epoch.next()));
    bench.apply(Command::FinishShrink { inode, handle: handles[0], epoch: first.epoch, stored: None });
    assert_eq!(bench.state.shrink(inode), Some(second));
    let same = bench.run(session, resize(inode, 300));
    assert!(matches!(same, Reply::Attributes { pending_shrink: true, .. }));
    bench.apply(Command::FinishShrink { inode, handle: handles[0], epoch: second.epoch.next(), stored: None });
    assert_eq!(bench.state.shrink(inode), None);
}

#[test]
fn a_cut_to_nothing_takes_the_pending_one_with_it() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", 2 * CHUNK);
    bench.run(session, resize(inode, CHUNK + 1));
    let reply = bench.run(session, resize(inode, 0));
    assert!(matches!(reply, Reply::Attributes { pending_shrink: false, .. }), "{reply:?}");
    assert_eq!((bench.state.shrinks().count(), bench.state.chunks().len()), (0, 0));
    assert_eq!(bench.attributes(inode).allocated, 0);
    let cut = bench.state.tombstone(ServerId(1), handles[1]).unwrap();
    assert_eq!(cut.epoch, Epoch(2));
}

#[test]
fn truncation_frees_chunks_that_were_allocated_beyond_the_size() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", CHUNK);
    let beyond = bench.reserve(session);
    bench.run(session, commit(inode, vec![(3, beyond)], vec![], None));
    assert_eq!(bench.attributes(inode).allocated, CHUNK);
    bench.run(session, resize(inode, CHUNK));
    assert_eq!(bench.state.chunk(beyond), None);
    assert!(bench.state.chunk(handles[0]).is_some());
    assert_eq!(bench.attributes(inode).allocated, CHUNK);
}

#[test]
fn what_lies_beyond_the_end_is_cut_off_and_a_growth_that_came_before_is_stale() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "a", 100);
    // An unfinished append has attached a chunk behind the end.
    let beyond = bench.reserve(session);
    bench.run(session, commit(inode, vec![(1, beyond)], vec![], None));
    let before = bench.attributes(inode);
    assert_eq!(bench.run(session, Request::CutTail { inode }), Reply::Done);
    let shrink = bench.state.shrink(inode).unwrap();
    assert_eq!((shrink.handle, shrink.index, shrink.from, shrink.epoch), (handles[0], 0, 100, Epoch(2)));
    assert_eq!(bench.tombstones(), vec![(1, beyond), (2, beyond), (3, beyond)]);
    let after = bench.attributes(inode);
    assert_eq!((after.size, after.mtime, after.ctime), (before.size, before.mtime, before.ctime));
    bench.apply(Command::FinishShrink { inode, handle: handles[0], epoch: Epoch(2), stored: None });
    let grow = |cut| commit_after(cut, inode, vec![], vec![(0, handles[0])], Some(300));
    assert_eq!(bench.run(session, grow(Epoch(0))), STALE);
    assert!(matches!(bench.run(session, grow(Epoch(2))), Reply::Attributes { .. }));
}

#[test]
fn a_file_that_ends_with_its_chunk_has_no_tail_to_cut() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, _) = bench.file(session, "a", CHUNK);
    assert_eq!(bench.run(session, Request::CutTail { inode }), Reply::Done);
    assert_eq!((bench.state.shrinks().count(), bench.tombstones()), (0, vec![]));
    assert_eq!(bench.run(session, Request::CutTail { inode: ROOT }), Reply::Refused(Refusal::Invalid));
}
