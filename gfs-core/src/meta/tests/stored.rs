//! Facts about how much of a file is stored.

use super::checkpoint::{bytes_of, state_of};
use super::*;
use crate::ids::{BlockVersion, Epoch, Sequence};
use crate::meta::request::{Space, Stored};

/// Chunks of several blocks.
const BIG: u64 = 16 * Stored::BLOCK;

fn bench() -> Bench {
    let mut bench = Bench::new();
    let state = State::format(ClusterId(7), BIG, 3, 0o755, Timestamp(1));
    let registered = std::mem::replace(&mut bench.state, state);
    for (stamp, command) in bench.log.clone() {
        bench.state.apply(stamp, &command);
    }
    assert_eq!(bench.state.servers().iter().count(), registered.servers().iter().count());
    bench
}

fn counted(blocks: u32, epoch: u32, sequence: u64) -> Option<Stored> {
    Some(Stored { blocks, at: BlockVersion { epoch: Epoch(epoch), sequence: Sequence(sequence) } })
}

/// A write to the chunk at index 0, after which its primary has counted.
fn wrote(inode: InodeId, handle: ChunkHandle, stored: Option<Stored>) -> Request {
    let used = vec![UsedChunk { index: 0, handle, cut: Epoch(u32::MAX), stored }];
    Request::CommitWrite { inode, attach: vec![], used, min_size: None, clear_suid: false, space: None }
}

/// A file of `size` bytes with one chunk in front, of which `stored` is told when it is attached.
fn sparse(bench: &mut Bench, session: SessionId, size: u64, stored: Option<Stored>) -> (InodeId, ChunkHandle) {
    let inode = bench.create(session, "f");
    let handle = bench.reserve(session);
    let Request::CommitWrite { used, .. } = wrote(inode, handle, stored) else { panic!() };
    let attach = vec![(0, handle)];
    let request = Request::CommitWrite { inode, attach, used, min_size: Some(size), clear_suid: false, space: None };
    assert!(matches!(bench.run(session, request), Reply::Attributes { .. }));
    (inode, handle)
}

fn blocks(bench: &Bench, inode: InodeId) -> u64 {
    bench.attributes(inode).allocated / Stored::BLOCK
}

#[test]
fn what_is_allocated_is_what_primaries_have_counted() {
    let mut bench = bench();
    let session = bench.session();
    let (inode, handle) = sparse(&mut bench, session, BIG, counted(1, 1, 1));
    assert_eq!(blocks(&bench, inode), 1);
    for (sequence, stored) in [(2, 7), (3, 16), (4, 5), (9, 0), (10, 3)] {
        bench.run(session, wrote(inode, handle, counted(stored, 1, sequence)));
        assert_eq!(blocks(&bench, inode), u64::from(stored));
    }
    bench.run(session, resize(inode, 9 * BIG));
    assert_eq!(blocks(&bench, inode), 3);
    let second = bench.reserve(session);
    bench.run(session, commit(inode, vec![(3, second)], vec![], None));
    assert_eq!(blocks(&bench, inode), 3 + 16, "of which nobody has counted anything");
    bench.run(session, resize(inode, BIG));
    assert_eq!(blocks(&bench, inode), 3);
    bench.run(session, resize(inode, 0));
    assert_eq!(blocks(&bench, inode), 0);
}

#[test]
fn of_two_counts_the_later_one_counts_in_whatever_order_they_come() {
    let mut bench = bench();
    let session = bench.session();
    let (inode, handle) = sparse(&mut bench, session, BIG, counted(4, 1, 10));
    let tell = |bench: &mut Bench, stored| {
        bench.run(session, wrote(inode, handle, stored));
        blocks(bench, inode)
    };
    assert_eq!(tell(&mut bench, counted(9, 1, 9)), 4, "before a hole was punched");
    assert_eq!(tell(&mut bench, counted(9, 1, 10)), 4, "the same moment");
    assert_eq!(tell(&mut bench, None), 4);
    assert_eq!(tell(&mut bench, counted(9, 2, 11)), 4, "of an epoch that there is not");
    let next = bench.state.chunk(handle).unwrap().configuration;
    bench.apply(Command::Reconfigure { handle, expected: Epoch(1), next });
    assert_eq!(tell(&mut bench, counted(9, 2, 3)), 9, "a new epoch that has lost something");
    assert_eq!(tell(&mut bench, counted(4, 1, 99)), 9);
    assert_eq!(tell(&mut bench, counted(500, 2, 4)), 16, "more than a chunk has");
}

#[test]
fn a_cut_bounds_the_count_and_its_zeroing_tells_the_new_one() {
    let mut bench = bench();
    let session = bench.session();
    let (inode, handle) = sparse(&mut bench, session, BIG, counted(12, 1, 10));
    bench.run(session, resize(inode, 5 * Stored::BLOCK + 1));
    assert_eq!(blocks(&bench, inode), 6);
    bench.run(session, wrote(inode, handle, counted(13, 1, 11)));
    assert_eq!(blocks(&bench, inode), 6, "it was counted before the cut");
    let finish = |stored| Command::FinishShrink { inode, handle, epoch: Epoch(2), stored };
    bench.apply(finish(counted(2, 2, 13)));
    assert_eq!(blocks(&bench, inode), 2);
    bench.run(session, wrote(inode, handle, counted(8, 2, 12)));
    assert_eq!(blocks(&bench, inode), 2, "it was counted before the zeroing");
    bench.run(session, resize(inode, 0));
    bench.apply(finish(counted(9, 2, 14)));
    assert_eq!(blocks(&bench, inode), 0);
}

#[test]
fn counts_survive_a_checkpoint_and_one_without_them_counts_all_below_the_size() {
    let mut bench = bench();
    let session = bench.session();
    let (inode, _) = sparse(&mut bench, session, BIG, counted(3, 1, 1 << 40));
    let again = state_of(&bytes_of(&bench.state), 64).unwrap();
    assert_eq!(again.hash(), bench.state.hash());
    assert_eq!(again.chunks().at(inode, 0).unwrap().stored, counted(3, 1, 1 << 40).unwrap());

    let old = bench.create(session, "old");
    let handle = bench.reserve(session);
    bench.run(session, commit(old, vec![(0, handle)], vec![], None));
    bench.run(session, resize(old, BIG - Stored::BLOCK));
    assert_eq!(blocks(&bench, old), 0);
    let mut bytes = bytes_of(&bench.state);
    // Version 1 ended before the section of held directories, which is empty.
    assert_eq!(bytes.split_off(bytes.len() - 3), [10, 0, 0]);
    bytes[8] = 1;
    let state = state_of(&bytes, 64).unwrap();
    assert_eq!(state.attributes(old).unwrap().allocated, BIG - Stored::BLOCK);
    assert_eq!(state.attributes(inode).unwrap().allocated, 3 * Stored::BLOCK);
}

#[test]
fn promised_space_counts_until_it_is_punched_or_cut_off() {
    let mut bench = bench();
    let session = bench.session();
    let (inode, handle) = sparse(&mut bench, session, BIG, counted(3, 1, 1));
    let note = |bench: &mut Bench, from, to, promised| {
        let space = Some(Space { from: from * Stored::BLOCK, to: to * Stored::BLOCK, promised });
        let request =
            Request::CommitWrite { inode, attach: vec![], used: vec![], min_size: None, clear_suid: false, space };
        bench.run(session, request);
        blocks(bench, inode)
    };
    assert_eq!(note(&mut bench, 0, 20, true), 20);
    bench.run(session, wrote(inode, handle, counted(5, 1, 2)));
    assert_eq!(blocks(&bench, inode), 20, "what was written lies in what was promised");
    let again = state_of(&bytes_of(&bench.state), 64).unwrap();
    assert_eq!((again.hash(), again.attributes(inode)), (bench.state.hash(), bench.state.attributes(inode)));
    assert_eq!(note(&mut bench, 18, 19, false), 18);
    bench.run(session, resize(inode, 2 * BIG));
    assert_eq!(blocks(&bench, inode), 18);
    bench.run(session, resize(inode, 7 * Stored::BLOCK));
    assert_eq!(blocks(&bench, inode), 7);
    assert_eq!(note(&mut bench, 0, 7, false), 5);
}
