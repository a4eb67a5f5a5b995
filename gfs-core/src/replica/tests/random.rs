//! Random histories: any order of delivery, loss, late copies, crashes between any two actions, fencing and
//! reconfiguration. Afterwards everything heals and everything must be there.

use super::cluster::{Cluster, server};
use super::oracle::CELLS;
use crate::ids::ServerId;
use crate::replica::Role;

const SERVERS: u16 = 4;

fn any_server(cluster: &mut Cluster) -> ServerId {
    server(1 + cluster.pick.below(usize::from(SERVERS)) as u16)
}

fn step(cluster: &mut Cluster) {
    match cluster.pick.below(100) {
        0..30 => {
            if let Some(packet) = cluster.network.next(&mut cluster.pick) {
                if cluster.pick.chance(3) {
                    cluster.network.late.push(packet.clone());
                }
                cluster.deliver(packet);
            }
        }
        30..50 => {
            let count = cluster.network.replies.len();
            if count > 0 {
                let at = cluster.pick.below(count);
                let reply = cluster.network.replies.remove(at);
                cluster.deliver_reply(reply);
            }
        }
        50..62 => client(cluster),
        62..68 => {
            let count = cluster.network.requests.len();
            if count > 0 {
                let at = cluster.pick.below(count);
                let request = cluster.network.requests.remove(at);
                if cluster.pick.chance(10) {
                    cluster.network.requests.push(request.clone());
                }
                cluster.deliver_request(request);
            }
        }
        68..74 => {
            let id = any_server(cluster);
            cluster.read(id);
        }
        74..84 => {
            let id = any_server(cluster);
            cluster.timer(id);
            cluster.copy_step(id);
        }
        84..92 => {
            let id = any_server(cluster);
            cluster.tell(id);
        }
        92..95 => master(cluster),
        _ => fault(cluster),
    }
}

fn client(cluster: &mut Cluster) {
    let (primary, epoch) = (cluster.configuration.primary, cluster.configuration.epoch);
    let repeat = !cluster.oracle.outstanding.is_empty() && cluster.pick.chance(50);
    let operation = if repeat {
        let known: Vec<u64> = cluster.oracle.outstanding.keys().copied().collect();
        cluster.pick.one(&known)
    } else {
        let cell = (!cluster.pick.chance(15)).then(|| cluster.pick.below(CELLS));
        cluster.oracle.begin(cell)
    };
    if let Some(operation) = operation {
        cluster.request(operation, primary, epoch);
    }
    if cluster.pick.chance(10) {
        cluster.sync(primary);
    }
}

fn master(cluster: &mut Cluster) {
    let id = any_server(cluster);
    match cluster.pick.below(4) {
        0 | 1 => cluster.grant(cluster.configuration.primary),
        2 => fail_over(cluster),
        _ => recruit(cluster, id),
    }
}

fn fail_over(cluster: &mut Cluster) {
    if cluster.is_up(cluster.configuration.primary) && !cluster.pick.chance(20) {
        return;
    }
    let mut next = cluster.configuration.clone();
    next.members.retain(|member| *member != next.primary);
    let up: Vec<ServerId> = next.members.iter().copied().filter(|member| cluster.is_up(*member)).collect();
    if let Some(primary) = cluster.pick.one(&up) {
        next.primary = primary;
        cluster.install(next);
    }
}

fn recruit(cluster: &mut Cluster, id: ServerId) {
    let mut next = cluster.configuration.clone();
    let named = next.members.contains(&id) || next.syncing.contains(&id);
    if !named && cluster.is_up(id) && next.members.len() + next.syncing.len() < 3 {
        next.syncing.push(id);
        next.syncing.sort();
        cluster.install(next);
    }
}

fn fault(cluster: &mut Cluster) {
    let id = any_server(cluster);
    match cluster.pick.below(5) {
        0 => {
            let keys: Vec<_> = cluster.network.lanes.keys().copied().collect();
            if let Some(key) = cluster.pick.one(&keys) {
                for lost in cluster.network.break_lane(key) {
                    cluster.undelivered(&lost);
                }
            }
        }
        1 => {
            if !cluster.network.replies.is_empty() {
                let at = cluster.pick.below(cluster.network.replies.len());
                let lost = cluster.network.replies.remove(at);
                let event = crate::replica::Event::Unreachable { server: lost.from, epoch: lost.epoch };
                cluster.node(lost.to).timers.push(event);
            }
        }
        2 => {
            let count = cluster.network.late.len();
            if count > 0 {
                let at = cluster.pick.below(count);
                let packet = cluster.network.late.remove(at);
                cluster.deliver(packet);
            }
        }
        3 => {
            if cluster.pick.chance(30) {
                cluster.crash(id);
            }
        }
        _ => cluster.restart(id),
    }
}

/// Everything runs again and may talk; all operations end; three replicas are whole and the same.
fn heal(cluster: &mut Cluster) {
    cluster.crash_permille = 0;
    cluster.network.late.clear();
    for round in 0..200 {
        let ids: Vec<ServerId> = cluster.nodes.keys().copied().collect();
        for id in &ids {
            cluster.restart(*id);
            cluster.tell(*id);
            cluster.ask_for_settle(*id);
        }
        cluster.settle_down();
        for id in &ids {
            for _ in 0..cluster.nodes[id].timers.len() {
                cluster.timer(*id);
            }
        }
        cluster.settle_down();
        cluster.grant(cluster.configuration.primary);
        let operations: Vec<u64> = cluster.oracle.outstanding.keys().copied().collect();
        for operation in operations {
            cluster.request(operation, cluster.configuration.primary, cluster.configuration.epoch);
        }
        cluster.settle_down();
        let whole = cluster.configuration.members.len() == 3;
        if whole && cluster.oracle.outstanding.is_empty() && round > 3 {
            return;
        }
        if !whole && cluster.configuration.syncing.is_empty() {
            let id = any_server(cluster);
            recruit(cluster, id);
        }
    }
    let states: Vec<_> = cluster.nodes.iter().map(|(id, node)| (id, node.replica.as_ref())).collect();
    panic!("does not heal: {:?} outstanding {:?} {states:#?}", cluster.configuration, cluster.oracle.outstanding);
}

fn check(cluster: &mut Cluster) {
    let members = cluster.configuration.members.clone();
    let primary = cluster.configuration.primary;
    for id in 1..=SERVERS {
        cluster.tell(server(id));
    }
    cluster.settle_down();
    assert_eq!(cluster.replica(primary).role(), Role::Primary);
    for id in members {
        // A secondary may have yet to hear of the last commits.
        if !cluster.read(id) {
            cluster.settle_down();
            assert!(cluster.read(id), "server {id} does not serve");
        }
        let (disk, first) = (&cluster.nodes[&id].disk, &cluster.nodes[&primary].disk);
        assert_eq!(disk.content, first.content, "servers {id} and {primary} differ");
        assert_eq!(disk.length, first.length);
        assert_eq!(disk.versions, first.versions);
        cluster.oracle.check_appends(&disk.content, disk.length);
    }
}

fn history(seed: u64, steps: usize, crash_permille: u64) -> (usize, usize) {
    let mut cluster = Cluster::new(seed, SERVERS, 3);
    cluster.crash_permille = crash_permille;
    for id in 1..=SERVERS {
        cluster.tell(server(id));
    }
    for _ in 0..steps {
        step(&mut cluster);
    }
    heal(&mut cluster);
    check(&mut cluster);
    (cluster.oracle.acknowledged, cluster.copied)
}

fn run(seeds: std::ops::Range<u64>, steps: usize, crash_permille: u64) {
    let (mut acknowledged, mut copied) = (0, 0);
    for seed in seeds {
        let result = std::panic::catch_unwind(|| history(seed, steps, crash_permille));
        match result {
            Ok((writes, blocks)) => {
                acknowledged += writes;
                copied += blocks;
            }
            Err(cause) => {
                eprintln!("seed {seed}, {steps} steps, crash {crash_permille} per mille");
                std::panic::resume_unwind(cause);
            }
        }
    }
    assert!(acknowledged > 0 && copied > 0, "nothing was exercised: {acknowledged} writes, {copied} blocks");
}

#[test]
fn acknowledged_writes_survive_loss_and_reconfiguration() {
    run(0..2000, 600, 0);
}

#[test]
fn acknowledged_writes_survive_crashes_between_any_two_actions() {
    run(10_000..12_000, 800, 10);
}

#[test]
fn long_histories_stay_linearizable() {
    run(50_000..50_100, 8000, 1);
}
