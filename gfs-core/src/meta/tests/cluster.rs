//! Facts about servers, configurations, tombstones and reservations.

use super::*;
use crate::ids::{Epoch, Generation};
use crate::meta::command::{CommandRefusal, ServerIntent};
use crate::meta::request::Configuration;

fn configuration(primary: u16, members: &[u16], syncing: &[u16]) -> Configuration {
    let list = |numbers: &[u16]| numbers.iter().map(|number| ServerId(*number)).collect();
    Configuration { epoch: Epoch(0), primary: ServerId(primary), members: list(members), syncing: list(syncing) }
}

fn reconfigure(bench: &mut Bench, handle: ChunkHandle, expected: u32, next: Configuration) -> Configuration {
    match bench.apply(Command::Reconfigure { handle, expected: Epoch(expected), next }) {
        CommandReply::Configuration(Some(configuration)) => configuration,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_configuration_changes_only_from_the_expected_epoch() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (_, handles) = bench.file(session, "f", CHUNK);
    let next = reconfigure(&mut bench, handles[0], 1, configuration(3, &[1, 3], &[4]));
    assert_eq!(next, Configuration { epoch: Epoch(2), ..configuration(3, &[1, 3], &[4]) });
    let late = reconfigure(&mut bench, handles[0], 1, configuration(1, &[1], &[]));
    assert_eq!(late, next);
    let counts: Vec<u64> = (1..=4).map(|server| bench.state.servers().replicas_on(ServerId(server))).collect();
    assert_eq!(counts, [1, 0, 1, 1]);
    let gone = bench.apply(Command::Reconfigure { handle: ChunkHandle(5), expected: Epoch(1), next });
    assert_eq!(gone, CommandReply::Configuration(None));
}

#[test]
fn a_server_that_holds_nothing_cannot_become_a_member_at_once() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (_, handles) = bench.file(session, "f", CHUNK);
    for bad in [
        configuration(4, &[1, 4], &[]),
        configuration(4, &[4], &[]),
        configuration(9, &[1, 2], &[]),
        configuration(1, &[1], &[9]),
        configuration(1, &[], &[]),
        configuration(1, &[1, 2], &[2]),
    ] {
        assert_eq!(reconfigure(&mut bench, handles[0], 1, bad.clone()).epoch, Epoch(1), "{bad:?}");
    }
    reconfigure(&mut bench, handles[0], 1, configuration(1, &[1], &[4]));
    assert_eq!(reconfigure(&mut bench, handles[0], 2, configuration(4, &[4], &[])).epoch, Epoch(2));
    assert_eq!(reconfigure(&mut bench, handles[0], 2, configuration(4, &[1, 4], &[])).epoch, Epoch(3));
}

#[test]
fn a_dropped_replica_is_deleted_only_when_there_are_enough_without_it() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (_, handles) = bench.file(session, "f", CHUNK);
    let handle = handles[0];
    reconfigure(&mut bench, handle, 1, configuration(2, &[2, 3], &[]));
    assert_eq!(bench.tombstones(), []);
    bench.apply(Command::CondemnUnknown { replicas: vec![(handle, ServerId(1))] });
    assert_eq!(bench.tombstones(), []);
    reconfigure(&mut bench, handle, 2, configuration(2, &[2, 3], &[4]));
    reconfigure(&mut bench, handle, 3, configuration(2, &[2, 3, 4], &[]));
    bench.apply(Command::CondemnUnknown { replicas: vec![(handle, ServerId(1)), (handle, ServerId(2))] });
    assert_eq!(bench.tombstones(), [(1, handle)]);
    assert_eq!(bench.state.tombstone(ServerId(1), handle).unwrap().epoch, Epoch(4));
    reconfigure(&mut bench, handle, 4, configuration(2, &[2, 3, 4], &[1]));
    assert_eq!(bench.tombstones(), []);
    reconfigure(&mut bench, handle, 5, configuration(2, &[1, 2, 3, 4], &[]));
    reconfigure(&mut bench, handle, 6, configuration(2, &[1, 2, 3], &[]));
    assert_eq!(bench.tombstones(), [(4, handle)]);
}

#[test]
fn a_replica_that_was_condemned_long_ago_goes_with_its_chunk() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", CHUNK);
    let handle = handles[0];
    reconfigure(&mut bench, handle, 1, configuration(2, &[1, 2, 3], &[4]));
    reconfigure(&mut bench, handle, 2, configuration(2, &[1, 2, 3], &[]));
    assert_eq!(bench.state.tombstone(ServerId(4), handle).unwrap().epoch, Epoch(3));
    reconfigure(&mut bench, handle, 3, configuration(2, &[2, 3], &[]));
    bench.run(session, unlink("f"));
    bench.apply(Command::ReapOrphans { inodes: vec![inode] });
    assert_eq!(bench.state.tombstone(ServerId(4), handle).unwrap().epoch, Epoch(4));
}

#[test]
fn an_unknown_replica_is_condemned_only_if_this_generation_made_it() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, handles) = bench.file(session, "f", CHUNK);
    bench.run(session, unlink("f"));
    bench.apply(Command::ReapOrphans { inodes: vec![inode] });
    let done = (1..=3).map(|server| (handles[0], ServerId(server))).collect();
    bench.apply(Command::ForgetTombstones { done });
    assert_eq!(bench.tombstones(), []);
    let ahead = ChunkHandle::new(Generation(1), bench.state.chunks().watermark());
    let other = ChunkHandle::new(Generation(0), 1);
    let replicas = vec![
        (handles[0], ServerId(4)),
        (handles[0], ServerId(9)),
        (ahead, ServerId(4)),
        (other, ServerId(4)),
        (ChunkHandle::new(Generation(1), 0), ServerId(4)),
    ];
    bench.apply(Command::CondemnUnknown { replicas });
    assert_eq!(bench.tombstones(), [(4, handles[0])]);
    bench.state.raise_generation(Generation(2));
    bench.apply(Command::CondemnUnknown { replicas: vec![(handles[0], ServerId(3))] });
    assert_eq!(bench.tombstones(), [(4, handles[0])]);
}

#[test]
fn the_reservations_of_an_ended_session_are_buried() {
    let mut bench = Bench::new();
    let (session, other) = (bench.session(), bench.session());
    let handle = bench.reserve(session);
    let kept = bench.reserve(other);
    bench.apply(Command::EndSession { session });
    assert_eq!(bench.state.chunk(handle), None);
    assert_eq!(bench.tombstones(), [(1, handle), (2, handle), (3, handle)]);
    assert_eq!(bench.state.chunk(kept).unwrap().reserved, Some(other));
}

#[test]
fn reservations_are_bounded_and_need_a_server() {
    let mut bench = Bench::new();
    let session = bench.session();
    let allocate = |placements| Request::AllocateChunks { replicas: 0, placements };
    assert_eq!(bench.run(session, allocate(vec![])), Reply::Refused(Refusal::NoSpace));
    assert_eq!(bench.run(session, allocate(vec![vec![ServerId(9)]])), Reply::Refused(Refusal::NoSpace));
    let Reply::Chunks(chunks) = bench.run(session, allocate(vec![vec![ServerId(9), ServerId(4)]])) else { panic!() };
    assert_eq!(chunks[0].1.members, [ServerId(4)]);
    assert_eq!(bench.state.chunk(chunks[0].0).unwrap().goal, 3);
    let many = vec![vec![ServerId(1)]; crate::meta::write::MAX_RESERVED];
    assert_eq!(bench.run(session, allocate(many)), Reply::Refused(Refusal::NoSpace));
    assert_eq!(bench.state.chunks().reserved_count(), 1);
}

#[test]
fn a_server_leaves_with_its_tombstones_once_nothing_names_it() {
    let mut bench = Bench::new();
    let session = bench.session();
    let (inode, _) = bench.file(session, "f", CHUNK);
    let server = ServerId(1);
    let intent = ServerIntent::Draining;
    assert_eq!(bench.apply(Command::SetServerIntent { server, intent }), CommandReply::Done);
    let refused = CommandReply::Refused(CommandRefusal::ServerInUse);
    assert_eq!(bench.apply(Command::RemoveServer { server }), refused);
    bench.run(session, unlink("f"));
    bench.apply(Command::ReapOrphans { inodes: vec![inode] });
    assert_eq!(bench.tombstones().len(), 3);
    assert_eq!(bench.apply(Command::RemoveServer { server }), CommandReply::Done);
    assert_eq!(bench.tombstones().len(), 2);
    let refused = CommandReply::Refused(CommandRefusal::UnknownServer);
    assert_eq!(bench.apply(Command::RemoveServer { server }), refused);
}
