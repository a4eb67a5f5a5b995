//! Facts about the planners.

use super::*;
use crate::ids::InodeId;
use crate::meta::chunks::{ChunkInfo, is_valid};
use std::collections::BTreeSet;

const GIB: u64 = 1 << 30;

fn server(number: u16) -> ServerView {
    ServerView {
        server: ServerId(number),
        host: format!("h{number}"),
        total: 100 * GIB,
        free: 50 * GIB,
        reserve: GIB,
        online: true,
        ..ServerView::default()
    }
}

fn cluster(count: u16) -> Vec<ServerView> {
    (1..=count).map(server).collect()
}

fn chunk(handle: u64, members: &[u16], syncing: &[u16], goal: u8) -> ChunkInfo {
    let list = |numbers: &[u16]| numbers.iter().map(|number| ServerId(*number)).collect::<Vec<_>>();
    let configuration = Configuration {
        epoch: Epoch(5),
        primary: ServerId(members[0]),
        members: list(members),
        syncing: list(syncing),
    };
    ChunkInfo {
        handle: ChunkHandle(handle),
        inode: InodeId(9),
        index: 0,
        configuration,
        goal,
        reserved: None,
        cut: Epoch(0),
        stored: Default::default(),
    }
}

fn handles(actions: &[Action]) -> Vec<u64> {
    actions.iter().map(|action| action.handle.0).collect()
}

#[test]
fn the_chunk_in_most_danger_is_filled_first() {
    let mut servers = cluster(6);
    servers[4].online = false;
    let mut view = ClusterView::new(servers);
    let chunks =
        [chunk(1, &[1, 2], &[], 3), chunk(2, &[1, 3], &[], 3), chunk(3, &[1], &[], 3), chunk(4, &[2, 5], &[], 3)];
    let urgent = BTreeSet::from([ChunkHandle(2)]);
    let actions = recruit::recruit(&mut view, chunks, &urgent, &Limits::default(), 1);
    assert_eq!(handles(&actions), [3, 4, 2, 1]);
    assert_eq!(actions[0].next.syncing.len(), 2);
    assert!(actions.iter().all(|action| is_valid(&action.next) && action.expected == Epoch(5)));
    assert!(actions.iter().all(|action| !action.next.syncing.contains(&ServerId(5))));
}

#[test]
fn a_chunk_that_is_being_filled_is_left_alone_unless_the_recruit_is_gone() {
    let mut servers = cluster(4);
    let none = BTreeSet::new();
    let mut view = ClusterView::new(servers.clone());
    assert_eq!(recruit::recruit(&mut view, [chunk(1, &[1, 2], &[3], 3)], &none, &Limits::default(), 1), []);
    servers[2].online = false;
    let mut view = ClusterView::new(servers);
    let actions = recruit::recruit(&mut view, [chunk(1, &[1, 2], &[3], 3)], &none, &Limits::default(), 1);
    assert_eq!(actions[0].next.syncing, [ServerId(4)]);
}

#[test]
fn copies_are_bounded_by_tick_source_and_target() {
    let chunks = || (1..=50).map(|handle| chunk(handle, &[1, 2], &[], 3));
    let none = BTreeSet::new();
    let limits = Limits { actions: 5, incoming: 100, outgoing: 100 };
    assert_eq!(recruit::recruit(&mut ClusterView::new(cluster(4)), chunks(), &none, &limits, 1).len(), 5);
    let limits = Limits { actions: 100, incoming: 3, outgoing: 100 };
    assert_eq!(recruit::recruit(&mut ClusterView::new(cluster(4)), chunks(), &none, &limits, 1).len(), 6);
    let limits = Limits { actions: 100, incoming: 100, outgoing: 4 };
    let mut view = ClusterView::new(cluster(4));
    view.count_copies(&chunk(99, &[1], &[2], 2).configuration);
    assert_eq!(recruit::recruit(&mut view, chunks(), &none, &limits, 1).len(), 3);
}

#[test]
fn a_chunk_without_a_live_primary_is_left_to_failover() {
    let mut servers = cluster(4);
    servers[0].online = false;
    let mut view = ClusterView::new(servers);
    let actions = recruit::recruit(&mut view, [chunk(1, &[1, 2], &[], 3)], &BTreeSet::new(), &Limits::default(), 1);
    assert_eq!(actions, []);
}

#[test]
fn a_drain_recruits_first_and_drops_then() {
    let mut servers = cluster(4);
    servers[0].draining = true;
    let mut view = ClusterView::new(servers.clone());
    let first = surplus::trim(&mut view, [chunk(1, &[1, 2, 3], &[], 3)], &Limits::default(), 1);
    assert_eq!((first[0].reason, first[0].next.syncing.clone()), (Reason::Drain, vec![ServerId(4)]));
    assert_eq!(first[0].next.members.len(), 3);
    let mut view = ClusterView::new(servers);
    assert_eq!(surplus::trim(&mut view, [chunk(1, &[1, 2, 3], &[4], 3)], &Limits::default(), 1), []);
    let ready = configure::promoted(&first[0].next, &[ServerId(4)]);
    let info = ChunkInfo { configuration: ready, ..chunk(1, &[1, 2, 3], &[], 3) };
    assert_eq!(surplus::left_to_drain(&view, [info.clone()]), BTreeMap::from([(ServerId(1), 1)]));
    let then = surplus::trim(&mut view, [info], &Limits::default(), 1);
    assert_eq!(then[0].reason, Reason::Surplus);
    assert_eq!(then[0].next.members, [ServerId(2), ServerId(3), ServerId(4)]);
    assert_eq!(then[0].next.primary, ServerId(2));
}

#[test]
fn a_surplus_member_is_not_dropped_while_too_few_are_online() {
    let mut servers = cluster(4);
    servers[1].online = false;
    servers[2].online = false;
    let mut view = ClusterView::new(servers);
    assert_eq!(surplus::trim(&mut view, [chunk(1, &[1, 2, 3], &[], 2)], &Limits::default(), 1), []);
    let mut view = ClusterView::new(cluster(4));
    assert_eq!(surplus::trim(&mut view, [chunk(1, &[1, 2, 3], &[], 3)], &Limits::default(), 1), []);
    let actions = surplus::trim(&mut view, [chunk(1, &[1, 2, 3], &[], 2)], &Limits::default(), 1);
    assert_eq!(actions[0].next.members.len(), 2);
}

#[test]
fn a_move_goes_from_the_fullest_to_the_emptiest_and_ends() {
    let mut servers = cluster(4);
    servers[1].free = 10 * GIB;
    servers[3].free = 90 * GIB;
    let mut view = ClusterView::new(servers.clone());
    let chunks = [chunk(1, &[1, 2, 3], &[], 3), chunk(2, &[1, 2, 3], &[], 3)];
    let actions = rebalance::rebalance(&mut view, chunks, &Limits::default());
    assert_eq!(handles(&actions), [1]);
    assert_eq!(actions[0].next.syncing, [ServerId(4)]);
    let after = configure::promoted(&actions[0].next, &[ServerId(4)]);
    let info = ChunkInfo { configuration: after, ..chunk(1, &[1], &[], 3) };
    let trimmed = surplus::trim(&mut ClusterView::new(servers.clone()), [info], &Limits::default(), 1);
    assert_eq!(trimmed[0].next.members, [ServerId(1), ServerId(3), ServerId(4)]);
    let info = ChunkInfo { configuration: trimmed[0].next.clone(), ..chunk(1, &[1], &[], 3) };
    assert_eq!(rebalance::rebalance(&mut ClusterView::new(servers), [info], &Limits::default()), []);
}

#[test]
fn without_the_last_member_there_is_no_configuration() {
    let mut servers = cluster(3);
    servers[1].load = 9;
    let view = ClusterView::new(servers);
    let configuration = chunk(1, &[1, 2, 3], &[], 3).configuration;
    assert_eq!(configure::without(&configuration, &[ServerId(1)], &view).unwrap().primary, ServerId(3));
    let all = [ServerId(1), ServerId(2), ServerId(3)];
    assert_eq!(configure::without(&configuration, &all, &view), None);
    assert_eq!(configure::led_by(&configuration, ServerId(4)), None);
    assert_eq!(configure::led_by(&configuration, ServerId(2)).unwrap().primary, ServerId(2));
}
