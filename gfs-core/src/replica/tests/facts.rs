//! Single facts of the protocol, asserted on states and on exact actions.

use super::cluster::{Cluster, server};
use super::network::{Body, Wants};
use crate::ids::{BlockVersion, Epoch, OperationId, Sequence, SessionId};
use crate::meta::request::Configuration;
use crate::replica::{
    Action, Answer, Event, Loaded, Message, Mutation, OperationRecord, Outcome, PreparedWrite, ReadPlan, Replica, Role,
    SettledAs, Status, Ticket, Token, WantedChange, WriteKind,
};

fn configuration(epoch: u32, primary: u16, members: &[u16], syncing: &[u16]) -> Configuration {
    Configuration {
        epoch: Epoch(epoch),
        primary: server(primary),
        members: members.iter().copied().map(server).collect(),
        syncing: syncing.iter().copied().map(server).collect(),
    }
}

fn write(epoch: u32, sequence: u64, offset: u64) -> PreparedWrite {
    PreparedWrite {
        version: BlockVersion { epoch: Epoch(epoch), sequence: Sequence(sequence) },
        operation: OperationId { session: SessionId(9), operation: sequence },
        kind: WriteKind::Data,
        offset,
        length: 4,
        append: false,
    }
}

fn ready() -> Cluster {
    let mut cluster = Cluster::new(7, 4, 3);
    for id in 1..=4 {
        cluster.tell(server(id));
    }
    cluster.settle_down();
    cluster
}

fn mutate(replica: &mut Replica, token: u64, operation: u64, mutation: Mutation) -> Vec<Action> {
    mutate_as(replica, token, operation, mutation, false)
}

fn mutate_as(replica: &mut Replica, token: u64, operation: u64, mutation: Mutation, fenced: bool) -> Vec<Action> {
    let operation = OperationId { session: SessionId(9), operation };
    let epoch = replica.epoch();
    replica.handle(Event::Mutate { token: Token(token), epoch, operation, confirmed: 0, mutation, fenced })
}

#[test]
fn a_session_that_is_over_hears_of_what_it_did_and_does_no_more() {
    let mut replica = alone();
    let write = || Mutation::At { kind: WriteKind::Data, offset: 0, length: 4096 };
    assert!(
        matches!(mutate_as(&mut replica, 1, 1, write(), true)[..], [Action::Reply { token: Token(1), outcome }] if outcome.status == Status::Fenced)
    );
    assert!(matches!(mutate_as(&mut replica, 2, 2, write(), false)[..], [Action::Store { .. }]));
    replica.handle(Event::Stored(Ok(())));
    let again = mutate_as(&mut replica, 3, 2, write(), true);
    assert!(
        matches!(again[..], [Action::Reply { token: Token(3), outcome }] if outcome.status == Status::Ok),
        "{again:?}"
    );
}

fn alone() -> Replica {
    let mut replica = Replica::new(server(1), Loaded::default());
    replica.handle(Event::Lease(true));
    replica.handle(Event::InForce(configuration(1, 1, &[1], &[])));
    replica
}

#[test]
fn a_write_is_acknowledged_only_when_all_members_hold_it() {
    let mut cluster = ready();
    let operation = cluster.write(3);
    let request = cluster.network.requests.remove(0);
    cluster.deliver_request(request);
    let packet = cluster.network.lanes.get_mut(&(server(1), server(2))).and_then(|lane| lane.pop_front());
    cluster.deliver(packet.expect("a prepare for server 2"));
    let reply = cluster.network.replies.remove(0);
    cluster.deliver_reply(reply);
    assert!(cluster.oracle.outstanding.contains_key(&operation));
    assert_eq!(cluster.replica(server(1)).committed(), Sequence(0));
    cluster.settle_down();
    assert!(cluster.oracle.outstanding.is_empty());
    for id in 1..=3 {
        assert_eq!(cluster.replica(server(id)).committed(), Sequence(1));
    }
    assert_eq!(cluster.nodes[&server(4)].disk.committed, Sequence(0));
}

#[test]
fn a_prepared_write_is_not_read_and_makes_a_secondary_ask_the_primary() {
    let mut cluster = ready();
    cluster.write(0);
    let request = cluster.network.requests.remove(0);
    cluster.deliver_request(request);
    let packet = cluster.network.lanes.get_mut(&(server(1), server(2))).and_then(|lane| lane.pop_front());
    cluster.deliver(packet.expect("a prepare for server 2"));
    let secondary = cluster.replica(server(2));
    assert_eq!(secondary.plan_read(Epoch(1), 0, 8), ReadPlan::AskPrimary(server(1)));
    assert_eq!(secondary.plan_read(Epoch(1), 8, 8), ReadPlan::Local);
    assert_eq!(cluster.replica(server(1)).plan_read(Epoch(1), 0, 8), ReadPlan::Local);
    assert_eq!(secondary.plan_read(Epoch(2), 8, 8), ReadPlan::Refuse(Status::StaleEpoch));
    assert_eq!(cluster.replica(server(4)).plan_read(Epoch(1), 8, 8), ReadPlan::Refuse(Status::NotMember));
}

#[test]
fn nothing_is_served_without_a_lease_or_before_the_master_confirms() {
    let mut replica = alone();
    assert_eq!(replica.plan_read(Epoch(1), 0, 1), ReadPlan::Local);
    replica.handle(Event::Lease(false));
    assert_eq!(replica.plan_read(Epoch(1), 0, 1), ReadPlan::Refuse(Status::NoLease));
    replica.handle(Event::Lease(true));
    assert_eq!(replica.plan_read(Epoch(1), 0, 1), ReadPlan::Refuse(Status::Busy));
    replica.handle(Event::InForce(configuration(1, 1, &[1], &[])));
    assert_eq!(replica.plan_read(Epoch(1), 0, 1), ReadPlan::Local);
}

#[test]
fn a_repeat_is_answered_with_the_first_place_and_not_applied() {
    let mut replica = alone();
    let append = Mutation::Append { min_offset: 0, limit: 100, length: 10 };
    for operation in 1..=2 {
        let actions = mutate(&mut replica, operation, operation, append);
        assert!(matches!(actions[..], [Action::Store { .. }]));
        replica.handle(Event::Stored(Ok(())));
    }
    let outcome = Outcome { offset: 0, ..Outcome::at(Status::Ok, Sequence(1)) };
    assert_eq!(mutate(&mut replica, 3, 1, append), vec![Action::Reply { token: Token(3), outcome }]);
    assert_eq!(replica.tail(), 20);
}

#[test]
fn an_append_that_does_not_fit_is_refused_with_the_tail() {
    let mut replica = alone();
    mutate(&mut replica, 1, 1, Mutation::At { kind: WriteKind::Data, offset: 0, length: 95 });
    replica.handle(Event::Stored(Ok(())));
    let actions = mutate(&mut replica, 2, 2, Mutation::Append { min_offset: 0, limit: 100, length: 10 });
    let outcome = Outcome { offset: 95, ..Outcome::of(Status::NoRoom) };
    assert_eq!(actions, vec![Action::Reply { token: Token(2), outcome }]);
    let actions = mutate(&mut replica, 3, 3, Mutation::At { kind: WriteKind::Truncate, offset: 90, length: 10 });
    assert!(matches!(actions[..], [Action::Store { .. }]));
    replica.handle(Event::Stored(Ok(())));
    assert_eq!((replica.length(), replica.tail()), (90, 90));
}

#[test]
fn a_full_disk_at_the_primary_refuses_the_write_and_leaves_no_gap() {
    let mut replica = alone();
    let data = Mutation::At { kind: WriteKind::Data, offset: 0, length: 4 };
    mutate(&mut replica, 1, 1, data);
    let actions = replica.handle(Event::Stored(Err(Status::NoSpace)));
    assert_eq!(actions, vec![Action::Reply { token: Token(1), outcome: Outcome::of(Status::NoSpace) }]);
    assert!(!replica.is_broken());
    let actions = mutate(&mut replica, 2, 1, data);
    assert!(matches!(actions[..], [Action::Store { write, .. }] if write.sequence() == Sequence(1)));
}

#[test]
fn a_settle_rolls_back_older_epochs_only() {
    let loaded = Loaded {
        configuration: Some(configuration(1, 1, &[1, 2, 3], &[])),
        committed: Sequence(1),
        prepared: vec![write(1, 2, 0), write(1, 3, 8)],
        ..Loaded::default()
    };
    let mut replica = Replica::new(server(2), loaded);
    replica.handle(Event::Lease(true));
    replica.handle(Event::Configuration(configuration(2, 3, &[2, 3], &[])));
    let settle = Message::Settle { committed: Sequence(1), prepared: Sequence(2) };
    let event = Event::Peer { token: Some(Token(1)), epoch: Epoch(2), message: settle };
    let actions = replica.handle(event.clone());
    assert_eq!(actions[0], Action::RollBack(Sequence(2)));
    let prepare = Message::Prepare { write: write(2, 3, 16), confirmed: 0, committed: Sequence(1) };
    replica.handle(Event::Peer { token: None, epoch: Epoch(2), message: prepare });
    replica.handle(Event::Stored(Ok(())));
    // The same settle once more, late: what this epoch ordered stays.
    let actions = replica.handle(event);
    assert!(matches!(actions[..], [Action::Reply { .. }]));
    assert_eq!(replica.prepared(), Sequence(3));
}

#[test]
fn a_prepare_after_a_gap_is_refused() {
    let mut cluster = ready();
    let epoch = Epoch(1);
    let message = Message::Prepare { write: write(1, 2, 0), confirmed: 0, committed: Sequence(0) };
    let replica = cluster.node(server(2)).replica.as_mut().expect("running");
    let actions = replica.handle(Event::Peer { token: Some(Token(77)), epoch, message });
    let outcome = Outcome::at(Status::OutOfOrder, Sequence(0));
    assert_eq!(actions, vec![Action::Reply { token: Token(77), outcome }]);
}

#[test]
fn a_dead_member_is_left_out_and_the_write_goes_on() {
    let mut cluster = ready();
    cluster.crash(server(3));
    cluster.write(1);
    cluster.settle_down();
    assert_eq!(cluster.oracle.outstanding.len(), 1);
    while !cluster.nodes[&server(1)].timers.is_empty() {
        cluster.timer(server(1));
        if cluster.replica(server(1)).wanted_change().is_some() {
            break;
        }
    }
    let wanted = WantedChange { epoch: Epoch(1), failed: vec![server(3)], ready: Vec::new() };
    assert_eq!(cluster.replica(server(1)).wanted_change(), Some(wanted));
    cluster.grant(server(1));
    cluster.settle_down();
    assert!(cluster.oracle.outstanding.is_empty());
    assert_eq!(cluster.configuration.members, vec![server(1), server(2)]);
}

#[test]
fn a_member_that_comes_back_in_time_is_kept() {
    let mut cluster = ready();
    cluster.crash(server(3));
    cluster.write(1);
    cluster.settle_down();
    cluster.restart(server(3));
    for _ in 0..20 {
        cluster.timer(server(1));
        cluster.settle_down();
    }
    assert!(cluster.oracle.outstanding.is_empty());
    assert_eq!(cluster.replica(server(1)).wanted_change(), None);
    assert_eq!(cluster.replica(server(3)).committed(), Sequence(1));
}

#[test]
fn a_recruit_is_filled_and_promoted_once_durable() {
    let mut cluster = ready();
    for cell in 0..8 {
        cluster.write(cell);
        cluster.settle_down();
    }
    let mut next = configuration(0, 1, &[1, 2, 3], &[4]);
    next.epoch = Epoch(0);
    cluster.install(next);
    cluster.tell(server(1));
    cluster.write(9);
    cluster.settle_down();
    let wanted = WantedChange { epoch: Epoch(2), failed: Vec::new(), ready: vec![server(4)] };
    assert_eq!(cluster.replica(server(4)).role(), Role::Syncing);
    assert_eq!(cluster.replica(server(1)).wanted_change(), Some(wanted));
    cluster.grant(server(1));
    cluster.settle_down();
    cluster.tell(server(4));
    assert_eq!(cluster.replica(server(4)).role(), Role::Secondary);
    assert_eq!(cluster.nodes[&server(4)].disk.content, cluster.nodes[&server(1)].disk.content);
    let unconfirmed = OperationId { session: SessionId(9), operation: 9 };
    let theirs = cluster.nodes[&server(4)].disk.operations.get(&unconfirmed);
    assert!(theirs.is_some());
    assert_eq!(theirs, cluster.nodes[&server(1)].disk.operations.get(&unconfirmed));
}

#[test]
fn a_returning_member_gets_only_the_blocks_that_changed() {
    let mut cluster = ready();
    for cell in 0..8 {
        cluster.write(cell);
        cluster.settle_down();
    }
    cluster.install(configuration(0, 1, &[1, 2], &[]));
    cluster.tell(server(1));
    cluster.settle_down();
    cluster.write(0);
    cluster.settle_down();
    cluster.install(configuration(0, 1, &[1, 2], &[3]));
    cluster.tell(server(1));
    cluster.settle_down();
    cluster.grant(server(1));
    cluster.settle_down();
    assert_eq!(cluster.configuration.members.len(), 3);
    assert_eq!(cluster.nodes[&server(3)].disk.content, cluster.nodes[&server(1)].disk.content);
    assert!(cluster.copied <= 6, "{} blocks were copied", cluster.copied);
}

#[test]
fn a_sync_waits_for_every_member() {
    let mut cluster = ready();
    cluster.write(0);
    cluster.settle_down();
    cluster.sync(server(1));
    assert!(cluster.flush_ticket(server(1)).is_some());
    cluster.timer(server(1));
    assert_eq!(cluster.oracle.synced, Sequence(0));
    let flushes = |cluster: &Cluster, to: u16| {
        let lane = &cluster.network.lanes[&(server(1), server(to))];
        lane.iter().filter(|packet| matches!(packet.wants, Wants::Flush(_))).count()
    };
    assert_eq!((flushes(&cluster, 2), flushes(&cluster, 3)), (1, 1));
    cluster.settle_down();
    assert_eq!(cluster.oracle.synced, Sequence(1));
}

#[test]
fn a_suspect_primary_hands_over_and_a_sole_survivor_serves() {
    let loaded = Loaded { configuration: Some(configuration(3, 1, &[1, 2], &[])), suspect: true, ..Loaded::default() };
    let mut replica = Replica::new(server(1), loaded);
    let actions = replica.handle(Event::Lease(true));
    assert_eq!(actions, vec![Action::AskMaster]);
    let wanted = WantedChange { epoch: Epoch(3), failed: vec![server(1)], ready: Vec::new() };
    assert_eq!(replica.wanted_change(), Some(wanted));
    let actions = replica.handle(Event::InForce(configuration(4, 1, &[1], &[])));
    assert!(actions.contains(&Action::Suspect(false)));
    assert!(replica.is_serving());
}

#[test]
fn a_member_that_lacks_what_was_committed_notes_it_for_its_next_process() {
    let loaded = Loaded { configuration: Some(configuration(3, 1, &[1, 2], &[])), ..Loaded::default() };
    let mut replica = Replica::new(server(2), loaded);
    replica.handle(Event::Lease(true));
    let settle = Message::Settle { committed: Sequence(1), prepared: Sequence(1) };
    let told = |token| Event::Peer { token: Some(Token(token)), epoch: Epoch(3), message: settle.clone() };
    assert!(replica.handle(told(1)).contains(&Action::Suspect(true)));
    assert!(replica.is_suspect());
    assert!(!replica.handle(told(2)).contains(&Action::Suspect(true)), "it was noted before");
}

#[test]
fn a_settle_tells_what_is_committed_and_no_notice_repeats_it() {
    let mut replica = Replica::new(server(1), Loaded::default());
    replica.handle(Event::Lease(true));
    replica.handle(Event::InForce(configuration(1, 1, &[1, 2], &[])));
    let settled = SettledAs { prepared: Sequence(0), suspect: false, trusted: false, base: Sequence(0) };
    let outcome = Outcome { settled: Some(settled), ..Outcome::at(Status::Ok, Sequence(0)) };
    let answer = Event::Answer { from: server(2), epoch: Epoch(1), answer: Answer::Settle(outcome) };
    let actions = replica.handle(answer.clone());
    assert!(replica.is_serving());
    assert!(actions.iter().all(|action| !matches!(action, Action::Send { .. })), "{actions:?}");
    // A member that is asked again may have missed what was committed since.
    let repeated = replica.handle(answer);
    assert!(repeated.contains(&Action::Send { to: server(2), message: Message::Committed(Sequence(0)) }));
}

#[test]
fn the_only_member_serves_after_a_power_loss_in_a_new_epoch() {
    let loaded = Loaded { configuration: Some(configuration(3, 1, &[1], &[2])), suspect: true, ..Loaded::default() };
    let mut replica = Replica::new(server(1), loaded);
    replica.handle(Event::Lease(true));
    let actions = replica.handle(Event::InForce(configuration(3, 1, &[1], &[2])));
    assert!(actions.iter().all(|action| !matches!(action, Action::Send { .. })), "it filled another in the old epoch");
    assert!(!replica.is_serving());
    assert_eq!(replica.wanted_change().unwrap().failed, vec![server(1)]);
    replica.handle(Event::InForce(configuration(4, 1, &[1], &[])));
    assert!(replica.is_serving());
}

#[test]
fn one_that_is_promoted_in_the_middle_of_being_filled_is_suspect() {
    let filled = || {
        let loaded = Loaded { configuration: Some(configuration(3, 1, &[1], &[2])), ..Loaded::default() };
        let mut replica = Replica::new(server(2), loaded);
        let message = Message::Settle { committed: Sequence(4), prepared: Sequence(4) };
        let actions = replica.handle(Event::Peer { token: Some(Token(1)), epoch: Epoch(3), message });
        assert!(actions.contains(&Action::StartFill { base: Sequence(4) }));
        replica
    };
    let mut half = filled();
    let actions = half.handle(Event::Configuration(configuration(4, 1, &[1, 2], &[])));
    assert!(actions.contains(&Action::Suspect(true)));
    let mut whole = filled();
    whole.finish_copy(9, &[]);
    whole.handle(Event::Configuration(configuration(4, 1, &[1, 2], &[])));
    assert!(!whole.is_suspect());
}

#[test]
fn a_new_primary_finishes_what_the_old_one_left_prepared_everywhere() {
    let mut cluster = ready();
    let operation = cluster.write(5);
    let mutation = cluster.mutation(operation);
    let request = cluster.network.requests.remove(0);
    cluster.deliver_request(request);
    for to in [2, 3] {
        let packet = cluster.network.lanes.get_mut(&(server(1), server(to))).and_then(|lane| lane.pop_front());
        let packet = packet.expect("a prepare");
        assert!(matches!(&packet.body, Body::Message { message: Message::Prepare { .. }, .. }));
        cluster.deliver(packet);
    }
    cluster.crash(server(1));
    cluster.install(configuration(0, 2, &[2, 3], &[]));
    cluster.tell(server(2));
    cluster.settle_down();
    assert_eq!(cluster.replica(server(2)).committed(), Sequence(1));
    let replica = cluster.node(server(2)).replica.as_mut().expect("running");
    let actions = mutate(replica, 500, operation, mutation);
    let outcome = Outcome { offset: 20, ..Outcome::at(Status::Ok, Sequence(1)) };
    assert_eq!(actions, vec![Action::Reply { token: Token(500), outcome }]);
}

fn answer(from: u16, epoch: u32, prepared: u64, base: u64) -> Event {
    let settled = SettledAs { prepared: Sequence(prepared), base: Sequence(base), ..SettledAs::default() };
    let outcome = Outcome { settled: Some(settled), ..Outcome::at(Status::Ok, Sequence(prepared)) };
    Event::Answer { from: server(from), epoch: Epoch(epoch), answer: Answer::Settle(outcome) }
}

fn acked(from: u16, epoch: u32, sequence: u64) -> Event {
    let answer = Answer::Prepare(Outcome::at(Status::Ok, Sequence(sequence)));
    Event::Answer { from: server(from), epoch: Epoch(epoch), answer }
}

#[test]
fn a_primary_commits_and_serves_nothing_until_everybody_has_settled() {
    let loaded = Loaded {
        configuration: Some(configuration(1, 1, &[1, 2, 3], &[])),
        prepared: vec![write(1, 1, 0)],
        ..Loaded::default()
    };
    let mut replica = Replica::new(server(1), loaded);
    replica.handle(Event::Lease(true));
    replica.handle(Event::InForce(configuration(2, 1, &[1, 2], &[4])));
    replica.handle(answer(2, 2, 0, 0));
    replica.handle(acked(2, 2, 1));
    assert_eq!(replica.committed(), Sequence(0));
    assert_eq!(replica.plan_read(Epoch(2), 0, 4), ReadPlan::Refuse(Status::Busy));
    let actions = replica.handle(answer(4, 2, 0, 0));
    assert!(actions.contains(&Action::Commit(Sequence(1))));
    assert_eq!(replica.plan_read(Epoch(2), 0, 4), ReadPlan::Local);
}

#[test]
fn a_full_recruit_counts_for_commits_and_syncs_before_it_is_a_member() {
    let mut replica = Replica::new(server(1), Loaded::default());
    replica.handle(Event::Lease(true));
    replica.handle(Event::InForce(configuration(1, 1, &[1, 2], &[4])));
    replica.handle(answer(2, 1, 0, 0));
    replica.handle(answer(4, 1, 0, 0));
    mutate(&mut replica, 1, 1, Mutation::At { kind: WriteKind::Data, offset: 0, length: 4 });
    replica.handle(Event::Stored(Ok(())));
    replica.handle(acked(2, 1, 1));
    assert_eq!(replica.committed(), Sequence(1), "a syncing server counts for nothing");
    let actions = replica.handle(Event::Filled { server: server(4), epoch: Epoch(1) });
    assert_eq!(actions, vec![], "it may still lack a committed write");
    mutate(&mut replica, 2, 2, Mutation::At { kind: WriteKind::Data, offset: 4, length: 4 });
    replica.handle(Event::Stored(Ok(())));
    replica.handle(acked(2, 1, 2));
    assert_eq!(replica.committed(), Sequence(1), "the full recruit counts");
    let actions = replica.handle(Event::Sync { token: Token(3), epoch: Epoch(1) });
    let to_recruit =
        |action: &Action| matches!(action, Action::Send { to, message: Message::Flush { .. } } if *to == server(4));
    assert!(actions.iter().any(to_recruit), "a sync covers it: {actions:?}");
    let actions = replica.handle(acked(4, 1, 2));
    assert_eq!(replica.committed(), Sequence(2));
    let flush = Message::Flush { ticket: Ticket(2), committed: Sequence(2) };
    assert!(actions.contains(&Action::Send { to: server(4), message: flush }), "{actions:?}");
    assert_eq!(replica.wanted_change(), None, "its copy is not on stable storage");
    let flushed = Answer::Flush(Ticket(2), Outcome::at(Status::Ok, Sequence(2)));
    replica.handle(Event::Answer { from: server(4), epoch: Epoch(1), answer: flushed });
    let wanted = WantedChange { epoch: Epoch(1), failed: Vec::new(), ready: vec![server(4)] };
    assert_eq!(replica.wanted_change(), Some(wanted));
}

#[test]
fn a_member_that_lacks_what_is_committed_does_not_settle() {
    let mut replica = Replica::new(server(2), Loaded::default());
    replica.handle(Event::Lease(true));
    replica.handle(Event::InForce(configuration(1, 1, &[1, 2], &[])));
    let message = Message::Settle { committed: Sequence(5), prepared: Sequence(6) };
    let actions = replica.handle(Event::Peer { token: Some(Token(1)), epoch: Epoch(1), message });
    let told = actions.iter().find_map(|action| match action {
        Action::Reply { outcome, .. } => outcome.settled,
        _ => None,
    });
    assert!(told.is_some_and(|settled| settled.suspect));
    assert_eq!(replica.plan_read(Epoch(1), 0, 4), ReadPlan::Refuse(Status::Busy));
}

#[test]
fn the_copy_of_a_recruit_is_flushed_with_all_that_was_committed_when_it_began_to_count() {
    let mut primary = Replica::new(server(1), Loaded::default());
    primary.handle(Event::Lease(true));
    primary.handle(Event::InForce(configuration(2, 1, &[1, 2], &[3])));
    let settled = |suspect| Some(SettledAs { suspect, ..SettledAs::default() });
    for from in [2, 3] {
        let outcome = Outcome { settled: settled(false), ..Outcome::at(Status::Ok, Sequence(0)) };
        primary.handle(Event::Answer { from: server(from), epoch: Epoch(2), answer: Answer::Settle(outcome) });
    }
    mutate(&mut primary, 1, 1, Mutation::At { kind: WriteKind::Data, offset: 0, length: 4 });
    primary.handle(Event::Stored(Ok(())));
    let prepared = |replica: &mut Replica, from| {
        let answer = Answer::Prepare(Outcome::at(Status::Ok, Sequence(1)));
        replica.handle(Event::Answer { from: server(from), epoch: Epoch(2), answer })
    };
    prepared(&mut primary, 2);
    assert_eq!(primary.committed(), Sequence(1));
    // A sync that is answered now promises the write; server 3 does not count yet, and may not have it.
    assert_eq!(primary.handle(Event::Filled { server: server(3), epoch: Epoch(2) }), []);
    let flush = Message::Flush { ticket: Ticket(1), committed: Sequence(1) };
    assert_eq!(prepared(&mut primary, 3), [Action::Send { to: server(3), message: flush }]);
    assert_eq!(primary.wanted_change(), None);
    let answer = Answer::Flush(Ticket(1), Outcome::at(Status::Ok, Sequence(1)));
    primary.handle(Event::Answer { from: server(3), epoch: Epoch(2), answer });
    assert_eq!(primary.wanted_change().map(|change| change.ready), Some(vec![server(3)]));
}

#[test]
fn a_server_that_is_filled_from_an_earlier_moment_forgets_operations_that_are_not_in_that_history() {
    let record = |operation, sequence| OperationRecord {
        operation: OperationId { session: SessionId(9), operation },
        sequence: Sequence(sequence),
        offset: 0,
    };
    // All lost power, and the one that went on had flushed less than this one.
    let loaded = Loaded {
        configuration: Some(configuration(1, 2, &[1, 2], &[])),
        committed: Sequence(3),
        operations: vec![record(1, 1), record(3, 3)],
        ..Loaded::default()
    };
    let mut replica = Replica::new(server(1), loaded);
    replica.handle(Event::Lease(true));
    replica.handle(Event::InForce(configuration(3, 2, &[2], &[1])));
    let settle = Message::Settle { committed: Sequence(1), prepared: Sequence(1) };
    replica.handle(Event::Peer { token: None, epoch: Epoch(3), message: settle });
    assert_eq!(replica.accept_copy(Epoch(3), Sequence(1)), Ok(vec![]));
    replica.finish_copy(4, &[record(1, 1)]);
    replica.handle(Event::InForce(configuration(4, 1, &[1, 2], &[])));
    replica.handle(answer(2, 4, 1, 1));
    let actions = mutate(&mut replica, 5, 3, Mutation::At { kind: WriteKind::Data, offset: 0, length: 4 });
    assert!(matches!(actions.as_slice(), [Action::Store { .. }]), "it waits for a write that nobody has: {actions:?}");
}
