//! Facts about files that a session holds.

use super::checkpoint::{bytes_of, state_of};
use super::*;
use crate::meta::request::{FlushedFile, Space};

fn hold(inode: InodeId) -> Request {
    Request::Hold { inode }
}

fn give_back(inode: InodeId, size: u64) -> Request {
    let file = FlushedFile { inode, min_size: Some(size), ..FlushedFile::default() };
    Request::Flush { files: vec![file], steps: vec![], gives_back: vec![inode] }
}

#[test]
fn what_others_do_to_a_held_file_waits_until_it_is_given_back() {
    let mut bench = Bench::new();
    let (holder, other) = (bench.session(), bench.session());
    let (inode, _) = bench.file(other, "f", CHUNK);
    let reply = bench.run(holder, hold(inode));
    assert_eq!(reply, Reply::Attributes { attributes: bench.attributes(inode), pending_shrink: false });
    let mtime = AttributeChanges { mode: Some(0o600), ..AttributeChanges::default() };
    let change = Request::SetAttributes { inode, changes: mtime };
    for request in [hold(inode), change.clone(), unlink("f"), commit(inode, vec![], vec![], Some(9)), resize(inode, 0)]
    {
        assert_eq!(bench.state.held_by_others(other, &request), [inode], "{request:?}");
        assert_eq!(bench.run(other, request), STALE);
    }
    assert!(bench.state.held_by_others(holder, &change).is_empty());
    assert_eq!(bench.run(holder, hold(inode)), reply, "asked for twice");
    assert_eq!(bench.run(holder, give_back(inode, CHUNK + 7)), Reply::Flushed(vec![]));
    assert_eq!(bench.attributes(inode).size, CHUNK + 7);
    assert!(matches!(bench.run(other, change), Reply::Attributes { .. }));
    assert!(bench.state.holds().is_empty());
}

#[test]
fn holds_of_files_are_part_of_a_checkpoint_and_go_with_the_file_and_with_the_session() {
    let mut bench = Bench::new();
    let holder = bench.session();
    let (kept, removed) = (bench.create(holder, "kept"), bench.create(holder, "removed"));
    for inode in [kept, removed] {
        assert!(matches!(bench.run(holder, hold(inode)), Reply::Attributes { .. }));
    }
    let again = state_of(&bytes_of(&bench.state), 100).unwrap();
    assert_eq!(again.holds().held_by(holder).collect::<Vec<_>>(), [kept, removed]);
    assert_eq!(bench.run(holder, unlink("removed")), Reply::Done);
    bench.apply(Command::ReapOrphans { inodes: vec![removed] });
    assert_eq!(bench.state.holds().held_by(holder).collect::<Vec<_>>(), [kept]);
    bench.apply(Command::EndSession { session: holder });
    assert!(bench.state.holds().is_empty());
}

#[test]
fn what_a_holder_that_is_gone_has_written_beyond_the_end_is_cut_off_with_its_session() {
    let mut bench = Bench::new();
    let (holder, other) = (bench.session(), bench.session());
    let (inode, handles) = bench.file(other, "f", CHUNK + 5);
    let (whole, _) = bench.file(other, "whole", CHUNK);
    for inode in [inode, whole] {
        assert!(matches!(bench.run(holder, hold(inode)), Reply::Attributes { .. }));
    }
    let epoch = bench.state.chunk(handles[1]).unwrap().configuration.epoch;
    bench.apply(Command::EndSession { session: holder });
    let shrink = bench.state.shrink(inode).unwrap();
    assert_eq!((shrink.index, shrink.from, shrink.handle), (1, 5, handles[1]));
    assert!(bench.state.chunk(handles[1]).unwrap().configuration.epoch > epoch);
    assert_eq!((bench.state.shrink(whole), bench.attributes(inode).size), (None, CHUNK + 5));
}

#[test]
fn a_flush_of_one_who_does_not_hold_the_file_is_refused() {
    let mut bench = Bench::new();
    let (holder, other) = (bench.session(), bench.session());
    let inode = bench.create(other, "f");
    assert!(matches!(bench.run(holder, hold(inode)), Reply::Attributes { .. }));
    assert_eq!(bench.run(other, give_back(inode, 9)), Reply::Flushed(vec![(0, Refusal::Stale)]));
    assert_eq!(bench.attributes(inode).size, 0);
    assert!(bench.state.holds().holds(holder, inode));
}

#[test]
fn a_file_with_something_on_it_that_the_master_alone_deals_with_is_not_held() {
    let mut bench = Bench::new();
    let session = bench.session();
    let refused = Reply::Refused(Refusal::Invalid);
    assert_eq!(bench.run(session, hold(ROOT)), refused, "a directory");
    assert_eq!(bench.run(session, hold(InodeId(u64::MAX))), STALE, "nothing");
    let (cut, _) = bench.file(session, "cut", 2 * CHUNK);
    bench.run(session, resize(cut, 5));
    assert_eq!(bench.run(session, hold(cut)), refused, "a pending cut");
    let promised = bench.create(session, "promised");
    let space = Some(Space { from: 0, to: 9, promised: true });
    let promise = Request::CommitWrite {
        inode: promised,
        attach: vec![],
        used: vec![],
        min_size: None,
        clear_suid: false,
        space,
    };
    assert!(matches!(bench.run(session, promise), Reply::Attributes { .. }));
    assert_eq!(bench.run(session, hold(promised)), refused, "promised space");
    let set_id = bench.create(session, "set-id");
    let changes = AttributeChanges { mode: Some(0o4755), ..AttributeChanges::default() };
    bench.run(session, Request::SetAttributes { inode: set_id, changes });
    assert_eq!(bench.run(session, hold(set_id)), refused, "set-id bits");
    let orphan = bench.create(session, "orphan");
    bench.run(session, unlink("orphan"));
    assert_eq!(bench.run(session, hold(orphan)), refused, "no name");
    assert!(bench.state.holds().is_empty());
}
