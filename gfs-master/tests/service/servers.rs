//! Chunk servers against a real master: leases, configurations, repair, deletion, shrinks.

use crate::common::*;
use gfs_core::ids::{ChunkHandle, InodeId, ServerId, SessionId};
use gfs_core::meta::request::{AttributeChanges, Request};
use gfs_master::server::Server;
use gfs_proto::v1::{self, client_message::Body as In};

async fn three(server: &Server) -> [Chunkd; 3] {
    [Chunkd::join(server, 1, 1).await, Chunkd::join(server, 2, 1).await, Chunkd::join(server, 3, 1).await]
}

async fn allocate(client: &mut Client) -> v1::ChunkLocation {
    let reply = client.mutate(Request::AllocateChunks { replicas: 0, placements: vec![Vec::new()] }).await;
    assert_eq!(reply.refusal, 0);
    assert_eq!(reply.servers.len(), reply.chunks[0].configuration.as_ref().unwrap().members.len());
    reply.chunks[0].clone()
}

/// A file with one attached chunk.
async fn file(client: &mut Client) -> (InodeId, ChunkHandle, v1::Configuration) {
    let inode = InodeId(client.create("data").await.inode);
    let chunk = allocate(client).await;
    let handle = ChunkHandle(chunk.handle);
    let commit = Request::CommitWrite {
        inode,
        attach: vec![(0, handle)],
        used: Vec::new(),
        min_size: Some(1_000),
        clear_suid: false,
        space: None,
    };
    assert_eq!(client.mutate(commit).await.refusal, 0);
    (inode, handle, chunk.configuration.unwrap())
}

fn by_id(servers: &mut [Chunkd; 3], id: u32) -> &mut Chunkd {
    servers.iter_mut().find(|server| server.server == id).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_chunks_lie_on_all_servers_and_their_members_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let chunk = allocate(&mut client).await;
    assert_eq!(chunk.configuration.as_ref().unwrap().members, vec![1, 2, 3]);
    for chunkd in &mut servers {
        let told = chunkd.order("an assignment", |order| order.assign.first().cloned()).await;
        assert_eq!((told.handle, told.goal), (chunk.handle, 3));
        assert_eq!(told.configuration, chunk.configuration);
    }
    let ask = v1::ConfigurationsRequest { server: 1, handles: vec![chunk.handle, 77] };
    let answer = servers[0].cluster.configurations(ask).await.unwrap().into_inner();
    assert_eq!((answer.assignments.len(), answer.gone), (1, vec![77]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_and_a_foreign_server_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut first = Chunkd::join(&server, 1, 1).await;
    let twin = first.cluster.register(registration(1, 2)).await.unwrap_err();
    assert_eq!(twin.code(), tonic::Code::AlreadyExists);
    let foreign = v1::RegisterRequest { cluster: vec![9; 16].into(), ..registration(2, 1) };
    assert_eq!(first.cluster.register(foreign).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    assert_eq!(server.leader.machine.state().servers().len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_dropped_only_after_its_lease_and_refilled_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let (_, handle, configuration) = file(&mut client).await;
    let primary = configuration.primary;
    let victim = *configuration.members.iter().find(|member| **member != primary).unwrap();
    by_id(&mut servers, victim).beat(Vec::new()).await;
    let ask = v1::ReconfigureRequest {
        handle: handle.0,
        epoch: configuration.epoch,
        failed: vec![victim],
        ..Default::default()
    };
    let early = by_id(&mut servers, primary).reconfigure(ask.clone()).await;
    assert_eq!(early.refusal, 1, "dropped under a lease");
    let begun = tokio::time::Instant::now();
    let next = until("the member is dropped", async || {
        for id in configuration.members.iter().filter(|id| **id != victim) {
            by_id(&mut servers, *id).beat(Vec::new()).await;
        }
        let answer = by_id(&mut servers, primary).reconfigure(ask.clone()).await;
        (answer.refusal == 0).then(|| answer.assignments[0].configuration.clone().unwrap())
    })
    .await;
    assert!(begun.elapsed().as_millis() >= 1_000, "after {:?}", begun.elapsed());
    assert!(!next.members.contains(&victim) && next.members.len() == 2);
    assert_eq!(next.epoch, configuration.epoch + 1);
    // It comes back as a new process, and is filled again.
    let back = Chunkd::join(&server, victim as u8, 2).await;
    let at = servers.iter().position(|chunkd| chunkd.server == victim).unwrap();
    servers[at] = back;
    let syncing = until("the server is recruited", async || {
        for chunkd in &mut servers {
            chunkd.beat(Vec::new()).await;
        }
        let info = server.leader.machine.state().chunk(handle).unwrap();
        (info.configuration.syncing == vec![ServerId(victim as u16)]).then_some(info.configuration)
    })
    .await;
    let ready =
        v1::ReconfigureRequest { handle: handle.0, epoch: syncing.epoch.0, ready: vec![victim], ..Default::default() };
    let whole = by_id(&mut servers, primary).reconfigure(ready).await;
    assert_eq!(whole.assignments[0].configuration.as_ref().unwrap().members, vec![1, 2, 3]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_names_a_dead_primary_gets_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let (_, handle, configuration) = file(&mut client).await;
    let primary = configuration.primary;
    let located = until("another primary", async || {
        for chunkd in servers.iter_mut().filter(|chunkd| chunkd.server != primary) {
            chunkd.beat(Vec::new()).await;
        }
        let ask = v1::LocateRequest {
            handle: handle.0,
            known_epoch: configuration.epoch,
            suspects: vec![primary],
            ..Default::default()
        };
        let tag = client.send(In::Locate(ask)).await;
        let beating = async {
            loop {
                for chunkd in servers.iter_mut().filter(|chunkd| chunkd.server != primary) {
                    chunkd.beat(Vec::new()).await;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        let answer = tokio::select! {
            answer = client.receive(tag) => answer,
            () = beating => unreachable!(),
        };
        let v1::server_message::Body::Locations(locations) = answer else { panic!("{answer:?}") };
        let now = locations.chunk.unwrap().configuration.unwrap();
        (now.primary != primary).then_some(now)
    })
    .await;
    assert!(!located.members.contains(&primary));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_primary_is_asked_to_leave_when_it_answers_a_client_nothing_and_not_when_it_is_slow() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let (_, handle, configuration) = file(&mut client).await;
    let suspects = vec![configuration.primary];
    let slow = v1::LocateRequest { handle: handle.0, known_epoch: configuration.epoch, suspects, ..Default::default() };
    let mut asked = async |request: v1::LocateRequest| {
        beat_all(&mut servers.iter_mut().collect::<Vec<_>>()).await;
        let tag = client.send(In::Locate(request)).await;
        let (mut asked, mut beats) = (Vec::new(), tokio::time::interval(std::time::Duration::from_millis(50)));
        loop {
            tokio::select! {
                _ = client.receive(tag) => return asked,
                _ = beats.tick() => for chunkd in &mut servers {
                    let orders = chunkd.beat(Vec::new()).await.1;
                    let leave = orders.into_iter().flat_map(|order| order.leave);
                    asked.extend(leave.map(|leave| (chunkd.server, leave.handle)));
                },
            }
        }
    };
    assert_eq!(asked(slow.clone()).await, []);
    let silent = v1::LocateRequest { silent: slow.suspects.clone(), ..slow };
    assert_eq!(asked(silent).await, [(configuration.primary, handle.0)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shrink_is_answered_when_the_primary_has_zeroed_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let (inode, handle, configuration) = file(&mut client).await;
    let changes = AttributeChanges { size: Some(10), ..AttributeChanges::default() };
    let mutation = client.mutation(Request::SetAttributes { inode, changes });
    let tag = client.send(In::Mutation(mutation)).await;
    let primary = by_id(&mut servers, configuration.primary);
    let zero = primary.order("a zeroing", |order| order.zero_tail.first().copied()).await;
    assert_eq!((zero.handle, zero.from, zero.inode), (handle.0, 10, inode.0));
    assert_eq!(zero.epoch, configuration.epoch + 1);
    assert!(server.leader.machine.state().shrink(inode).is_some());
    let done = v1::ShrinkDone { handle: zero.handle, epoch: zero.epoch, inode: inode.0, stored: None };
    let piece = v1::ReplicaReport { shrunk: vec![done], ..primary.piece() };
    primary.tell(piece).await;
    let reply = reply(client.receive(tag).await);
    assert_eq!((reply.refusal, reply.pending_shrink, reply.attributes.unwrap().size), (0, false, 10));
    assert!(server.leader.machine.state().shrink(inode).is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pending_shrink_is_driven_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let (inode, handle, configuration) = file(&mut client).await;
    let changes = AttributeChanges { size: Some(10), ..AttributeChanges::default() };
    let mutation = client.mutation(Request::SetAttributes { inode, changes });
    client.send(In::Mutation(mutation)).await;
    until("the intent is committed", async || server.leader.machine.state().shrink(inode)).await;
    drop(servers);
    server.stop().await;
    let server = start(dir.path()).await;
    let mut servers = [
        Chunkd::join_with(&server, 1, 2, &[handle.0]).await,
        Chunkd::join_with(&server, 2, 2, &[handle.0]).await,
        Chunkd::join_with(&server, 3, 2, &[handle.0]).await,
    ];
    let primary = by_id(&mut servers, configuration.primary);
    let zero = primary.order("a zeroing", |order| order.zero_tail.first().copied()).await;
    assert_eq!(zero.inode, inode.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_a_deleted_file_are_deleted_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let (_, handle, _) = file(&mut client).await;
    let unlink = Request::Unlink { parent: gfs_core::ids::ROOT, name: b"data".to_vec() };
    assert_eq!(client.mutate(unlink).await.refusal, 0);
    for chunkd in &mut servers {
        let delete = chunkd.order("a deletion", |order| order.delete.first().copied()).await;
        assert_eq!(delete.handle, handle.0);
        let piece = v1::ReplicaReport { deleted: vec![handle.0], ..chunkd.piece() };
        chunkd.tell(piece).await;
    }
    assert_eq!(server.leader.machine.state().counts().tombstones, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_replica_is_dropped_and_a_stray_of_the_future_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let (_, handle, configuration) = file(&mut client).await;
    let victim = *configuration.members.iter().find(|member| **member != configuration.primary).unwrap();
    let problem = v1::ReplicaProblem { handle: handle.0, kind: 1, detail: "disk gone".into() };
    by_id(&mut servers, victim).beat(vec![problem]).await;
    until("the lost replica is dropped", async || {
        beat_all(&mut servers.iter_mut().collect::<Vec<_>>()).await;
        let info = server.leader.machine.state().chunk(handle).unwrap();
        (!info.configuration.members.contains(&ServerId(victim as u16))).then_some(())
    })
    .await;
    let future = v1::ReplicaSummary { handle: (1 << 48) | 500_000, epoch: 1, ..Default::default() };
    let answer = servers[0].report(vec![future]).await;
    assert_eq!(answer.unknown, vec![future.handle]);
    for _ in 0..20 {
        beat_all(&mut servers.iter_mut().collect::<Vec<_>>()).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(server.leader.machine.state().counts().tombstones, 0, "condemned what it never gave out");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_back_without_its_replica_is_dropped_and_the_last_copy_never_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let (_, handle, _) = file(&mut client).await;
    drop(servers);
    server.stop().await;
    let server = start(dir.path()).await;
    let mut whole = Chunkd::join_with(&server, 1, 2, &[handle.0]).await;
    let mut empty = [Chunkd::join(&server, 2, 2).await, Chunkd::join(&server, 3, 2).await];
    let members = until("the empty members are dropped", async || {
        whole.beat(Vec::new()).await;
        beat_all(&mut empty.iter_mut().collect::<Vec<_>>()).await;
        let now = server.leader.machine.state().chunk(handle).unwrap().configuration;
        (now.members == vec![ServerId(1)] && now.syncing.len() == 2).then_some(now)
    })
    .await;
    assert_eq!(members.primary, ServerId(1));
    let problem = v1::ReplicaProblem { handle: handle.0, kind: 2, detail: "bad block".into() };
    whole.beat(vec![problem]).await;
    for _ in 0..20 {
        whole.beat(Vec::new()).await;
        beat_all(&mut empty.iter_mut().collect::<Vec<_>>()).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(server.leader.machine.state().chunk(handle).unwrap().configuration.members, vec![ServerId(1)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_member_is_replaced_first_and_leaves_when_it_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    let (_, handle, configuration) = file(&mut client).await;
    let mut fourth = Chunkd::join(&server, 4, 1).await;
    let victim = *configuration.members.iter().find(|member| **member != configuration.primary).unwrap();
    let mut admin = v1::admin_client::AdminClient::new(channel(&server).await);
    admin.set_intent(v1::SetIntentRequest { server: victim, drain: true }).await.unwrap();
    let now = || server.leader.machine.state().chunk(handle).unwrap().configuration;
    let syncing = until("a replacement is recruited", async || {
        beat_all(&mut servers.iter_mut().collect::<Vec<_>>()).await;
        fourth.beat(Vec::new()).await;
        Some(now()).filter(|now| now.syncing == vec![ServerId(4)])
    })
    .await;
    let ask =
        |epoch, ready, failed| v1::ReconfigureRequest { handle: handle.0, epoch, ready, failed, ..Default::default() };
    by_id(&mut servers, configuration.primary).reconfigure(ask(syncing.epoch.0, vec![4], vec![])).await;
    assert_eq!(now().members.len(), 4);
    let leave = until("the member is asked to leave", async || {
        let mut asked = None;
        for chunkd in &mut servers {
            let orders = chunkd.beat(Vec::new()).await.1;
            let leave = orders.iter().find_map(|order| order.leave.first().copied());
            asked = asked.or(leave.filter(|_| chunkd.server == victim));
        }
        fourth.beat(Vec::new()).await;
        asked
    })
    .await;
    assert_eq!(leave.handle, handle.0);
    assert_eq!(now().members.len(), 4, "dropped without its agreement");
    let left = by_id(&mut servers, victim).reconfigure(ask(leave.epoch, vec![], vec![victim])).await;
    assert_eq!(left.refusal, 0);
    assert!(!now().members.contains(&ServerId(victim as u16)) && now().members.len() == 3);
    let state = server.leader.machine.state();
    assert!(state.tombstone(ServerId(victim as u16), handle).is_some());
    drop(state);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_tells_servers_and_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let _servers = three(&server).await;
    let mut client = Client::open(&server, 1).await;
    client.create("one").await;
    let mut admin = v1::admin_client::AdminClient::new(channel(&server).await);
    let status = admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.files, status.directories, status.chunk_size), (1, 1, CHUNK_SIZE));
    let states: Vec<&str> = status.servers.iter().map(|server| server.state.as_str()).collect();
    assert_eq!(states, vec!["online"; 3]);
    assert_eq!(status.sessions.len(), 1);
    assert!(status.sessions[0].connected && status.log_index > 0);
    admin.set_intent(v1::SetIntentRequest { server: 2, drain: true }).await.unwrap();
    let unknown = admin.set_intent(v1::SetIntentRequest { server: 9, drain: true }).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let refused = admin.remove_server(v1::RemoveServerRequest { server: 1 }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_when_every_chunk_server_refuses_its_writes() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut chunkd = Chunkd::join(&server, 1, 1).await;
    let (mut ends, stays) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let goodbye = ends.send(In::Goodbye(v1::Goodbye {})).await;
    let before = chunkd.fences.version;
    while chunkd.fences.version == before {
        within("fences", chunkd.next_order()).await.expect("the stream ended");
    }
    assert!(chunkd.fences.live.contains(&stays.session) && chunkd.fences.next > ends.session.max(stays.session));
    assert!(!chunkd.fences.live.contains(&ends.session));
    let is_open = || server.leader.machine.state().sessions().contains(SessionId(ends.session));
    assert!(is_open(), "ended before the chunk server has said that it refuses");
    chunkd.beat(Vec::new()).await;
    assert_eq!(reply(ends.receive(goodbye).await).refusal, 0);
    assert!(!server.leader.machine.state().sessions().contains(SessionId(ends.session)));
    // The next process on that server hears of it with its lease.
    let next = Chunkd::join(&server, 2, 1).await;
    assert!(!next.fences.live.contains(&ends.session) && next.fences.next > ends.session);
    server.stop().await;
}
