//! Facts about the chunk table.

use super::*;
use crate::ids::{BlockVersion, Sequence, ServerId};

const FILE: InodeId = InodeId(40);
const SESSION: SessionId = SessionId(3);

fn servers(numbers: &[u16]) -> Configuration {
    first_configuration(&numbers.iter().map(|number| ServerId(*number)).collect::<Vec<_>>()).unwrap()
}

fn filled(chunks: u32) -> ChunkTable {
    let mut table = ChunkTable::new(Generation(1));
    for index in 0..chunks {
        let handle = table.reserve(SESSION, servers(&[2, 1, 3]), 3);
        table.attach(SESSION, handle, (FILE, index), 3);
    }
    table
}

#[test]
fn a_chunk_is_found_by_handle_and_by_place_once_attached() {
    let mut table = ChunkTable::new(Generation(1));
    let handle = table.reserve(SESSION, servers(&[2, 1, 3]), 3);
    assert_eq!(table.get(handle).unwrap().reserved, Some(SESSION));
    assert_eq!(table.at(FILE, 7), None);
    table.attach(SESSION, handle, (FILE, 7), 2);
    let info = table.at(FILE, 7).unwrap();
    assert_eq!(table.get(handle), Some(info.clone()));
    assert_eq!((info.inode, info.index, info.goal, info.reserved), (FILE, 7, 2, None));
    assert_eq!(info.configuration.primary, ServerId(2));
    assert_eq!(info.configuration.members, [ServerId(1), ServerId(2), ServerId(3)]);
    assert_eq!(table.reserved_by(SESSION).count(), 0);
}

#[test]
fn handles_are_never_reused() {
    let mut table = ChunkTable::new(Generation(1));
    let first = table.reserve(SESSION, servers(&[1]), 1);
    table.remove(first).unwrap();
    let second = table.reserve(SESSION, servers(&[1]), 1);
    assert!(second > first);
    table.set_generation(Generation(2));
    let third = table.reserve(SESSION, servers(&[1]), 1);
    assert_eq!((third.generation(), third.counter()), (Generation(2), 1));
}

#[test]
fn chunks_that_differ_from_their_goal_are_listed() {
    let mut table = filled(3);
    let handles: Vec<_> = table.of_file(FILE, 0).map(|info| info.handle).collect();
    let mut short = servers(&[2, 1]);
    table.set_configuration(handles[1], &short);
    assert_eq!(table.under_goal(ChunkHandle(0)).map(|info| info.handle).collect::<Vec<_>>(), [handles[1]]);
    short.syncing = vec![ServerId(5)];
    table.set_configuration(handles[1], &short);
    assert_eq!((table.under_goal_count(), table.over_goal(ChunkHandle(0)).count()), (1, 0));
    table.set_goal(FILE, 2);
    assert_eq!(table.under_goal_count(), 0);
    assert_eq!(table.over_goal(ChunkHandle(0)).map(|info| info.handle).collect::<Vec<_>>(), handles);
    table.set_goal(FILE, 4);
    assert_eq!((table.under_goal_count(), table.over_goal(ChunkHandle(0)).count()), (3, 0));
    table.remove(handles[0]);
    assert_eq!(table.under_goal_count(), 2);
}

#[test]
fn an_attached_chunk_costs_less_than_fifty_bytes() {
    let mut table = ChunkTable::new(Generation(1));
    let count = 100_000;
    for number in 0..count {
        let handle = table.reserve(SESSION, servers(&[200, 100, 300]), 3);
        let inode = InodeId::new(Generation(1), 2 + number);
        table.attach(SESSION, handle, (inode, 0), 3);
        let at = BlockVersion { epoch: Epoch(1), sequence: Sequence(1_000) };
        table.set_stored(inode, 0, Stored { blocks: 16_384, at });
    }
    let each = table.memory_bytes() / count;
    assert!(each <= 50, "{each} bytes a chunk");
}

#[test]
fn a_table_rebuilt_from_its_parts_is_the_same() {
    let mut table = filled(5);
    table.reserve(SESSION, servers(&[1]), 3);
    let handle = table.at(FILE, 2).unwrap().handle;
    table.set_configuration(handle, &servers(&[3]));
    let (attached, reserved, generation, next) = table.parts();
    let again = ChunkTable::restore(attached.clone(), reserved.clone(), generation, next).unwrap();
    assert_eq!(
        again.iter_from(ChunkHandle(0)).collect::<Vec<_>>(),
        table.iter_from(ChunkHandle(0)).collect::<Vec<_>>()
    );
    assert_eq!(again.under_goal_count(), 1);
    assert_eq!(again.watermark(), table.watermark());
}

#[test]
fn parts_that_contradict_each_other_are_refused() {
    let table = filled(2);
    let (attached, reserved, generation, next) = table.parts();
    assert!(ChunkTable::restore(attached.clone(), reserved.clone(), generation, next - 1).is_none());
    let mut twice = attached.clone();
    twice.insert((99, 0), &attached.get((FILE.0, 0)).unwrap());
    assert!(ChunkTable::restore(twice, reserved.clone(), generation, next).is_none());
}

#[test]
fn a_configuration_with_a_primary_outside_its_members_is_invalid() {
    let good = servers(&[2, 1]);
    assert!(is_valid(&good));
    assert!(!is_valid(&Configuration { primary: ServerId(9), ..good.clone() }));
    assert!(!is_valid(&Configuration { syncing: vec![ServerId(1)], ..good.clone() }));
    assert!(!is_valid(&Configuration { members: vec![ServerId(2), ServerId(1)], ..good.clone() }));
    assert!(!is_valid(&Configuration { members: vec![], ..good }));
}
