//! Members that lost power, members that others cannot work with, and what writers leave behind: against a real master.

use crate::common::*;
use gfs_core::ids::{ChunkHandle, InodeId, ServerId, SessionId};
use gfs_core::meta::request::{Configuration, Request};
use gfs_master::config::MasterConfig;
use gfs_master::server::Server;
use gfs_proto::v1::{self, client_message::Body as In};
use std::path::Path;

const SIZE: u64 = 1_000;

/// A file of `SIZE` bytes in one chunk on three servers.
async fn file(server: &Server) -> (Vec<Chunkd>, Client, InodeId, ChunkHandle, Configuration) {
    let mut servers = Vec::new();
    for uuid in 1..=3 {
        servers.push(Chunkd::join(server, uuid, 1).await);
    }
    let mut client = Client::open(server, 1).await;
    let inode = InodeId(client.create("data").await.inode);
    let reply = client.mutate(Request::AllocateChunks { replicas: 0, placements: vec![Vec::new()] }).await;
    let handle = ChunkHandle(reply.chunks[0].handle);
    let (attach, used, space) = (vec![(0, handle)], Vec::new(), None);
    let commit = Request::CommitWrite { inode, attach, used, min_size: Some(SIZE), clear_suid: false, space };
    assert_eq!(client.mutate(commit).await.refusal, 0);
    (servers, client, inode, handle, now(server, handle))
}

fn now(server: &Server, handle: ChunkHandle) -> Configuration {
    server.leader.machine.state().chunk(handle).unwrap().configuration
}

/// A server comes back after it lost power, with this much flushed.
async fn back(server: &Server, id: ServerId, handle: ChunkHandle, flushed: u64) -> Chunkd {
    let held = v1::ReplicaSummary {
        handle: handle.0,
        epoch: 1,
        flushed,
        committed: flushed,
        prepared: flushed,
        length: SIZE,
        suspect: true,
    };
    Chunkd::join_holding(server, id.0 as u8, 2, vec![held]).await
}

async fn leaves(chunkd: &mut Chunkd, handle: ChunkHandle, epoch: u32) -> v1::ConfigurationsAnswer {
    let failed = vec![chunkd.server];
    chunkd.reconfigure(v1::ReconfigureRequest { handle: handle.0, epoch, failed, ..Default::default() }).await
}

/// The chunk's servers, each with a uuid that is its number.
async fn restarted(dir: &Path) -> (Server, ChunkHandle, Configuration) {
    let server = start(dir).await;
    let (_servers, _client, _, handle, configuration) = file(&server).await;
    server.stop().await;
    (start(dir).await, handle, configuration)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_lost_power_the_one_that_flushed_most_goes_on_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (server, handle, before) = restarted(dir.path()).await;
    let best = *before.members.iter().find(|id| **id != before.primary).unwrap();
    let mut leader = back(&server, before.primary, handle, 5).await;
    let early = leaves(&mut leader, handle, before.epoch.0).await;
    assert_eq!(early.refusal, 1, "it was not waited for the others");
    let mut others = Vec::new();
    for id in before.members.iter().filter(|id| **id != before.primary) {
        others.push(back(&server, *id, handle, if *id == best { 9 } else { 7 }).await);
    }
    let after = until("the best one leads", async || {
        leader.beat(Vec::new()).await;
        beat_all(&mut others.iter_mut().collect::<Vec<_>>()).await;
        leaves(&mut leader, handle, before.epoch.0).await;
        Some(now(&server, handle)).filter(|now| now.epoch > before.epoch)
    })
    .await;
    assert_eq!((after.primary, after.members), (best, vec![best]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_member_leads_whatever_those_that_lost_power_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (server, handle, before) = restarted(dir.path()).await;
    let sound = *before.members.iter().find(|id| **id != before.primary).unwrap();
    let mut others = Vec::new();
    for id in before.members.iter().filter(|id| **id != sound) {
        others.push(back(&server, *id, handle, 9).await);
    }
    others.push(Chunkd::join_with(&server, sound.0 as u8, 2, &[handle.0]).await);
    let at = others.iter().position(|chunkd| chunkd.server == u32::from(before.primary.0)).unwrap();
    let after = until("the sound one leads", async || {
        beat_all(&mut others.iter_mut().collect::<Vec<_>>()).await;
        leaves(&mut others[at], handle, before.epoch.0).await;
        Some(now(&server, handle)).filter(|now| now.epoch > before.epoch)
    })
    .await;
    assert_eq!((after.primary, after.members), (sound, vec![sound]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_away_is_waited_for_and_then_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (server, handle, before) = restarted(dir.path()).await;
    let begun = tokio::time::Instant::now();
    let mut present = Vec::new();
    for id in before.members.iter().take(2) {
        present.push(back(&server, *id, handle, u64::from(id.0)).await);
    }
    let after = until("the better of two leads", async || {
        beat_all(&mut present.iter_mut().collect::<Vec<_>>()).await;
        for chunkd in &mut present {
            leaves(chunkd, handle, before.epoch.0).await;
        }
        Some(now(&server, handle)).filter(|now| now.epoch > before.epoch)
    })
    .await;
    let patience = config(dir.path()).replace_after_ms;
    assert!(begun.elapsed().as_millis() >= u128::from(patience), "after {:?}", begun.elapsed());
    assert_eq!(after.members, vec![before.members[1]]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_its_primary_cannot_reach_is_asked_to_leave() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut servers, _client, _, handle, configuration) = file(&server).await;
    let victim = *configuration.members.iter().find(|id| **id != configuration.primary).unwrap();
    let ask = v1::ReconfigureRequest {
        handle: handle.0,
        epoch: configuration.epoch.0,
        failed: vec![u32::from(victim.0)],
        ..Default::default()
    };
    let asked = until("somebody is asked to leave", async || {
        let at = servers.iter().position(|chunkd| chunkd.server == u32::from(configuration.primary.0)).unwrap();
        assert_eq!(servers[at].reconfigure(ask.clone()).await.refusal, 1, "dropped under a lease");
        for chunkd in &mut servers {
            let orders = chunkd.beat(Vec::new()).await.1;
            if let Some(leave) = orders.iter().find_map(|order| order.leave.first().copied()) {
                return Some((chunkd.server, leave.handle));
            }
        }
        None
    })
    .await;
    assert_eq!(asked, (u32::from(victim.0), handle.0));
    assert!(server.leader.servers.view().iter().any(|server| server.server == victim && server.shunned));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_ended_session_may_have_written_beyond_the_end_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (_servers, mut client, inode, handle, _) = file(&server).await;
    let open = v1::OpenFile { inode: inode.0, access: 2, count: 1, ..v1::OpenFile::default() };
    assert!(matches!(client.call(In::Open(open)).await, v1::server_message::Body::Open(answer) if answer.refusal == 0));
    client.call(In::Goodbye(v1::Goodbye {})).await;
    let cut = until("a cut", async || server.leader.machine.state().shrink(inode)).await;
    assert_eq!((cut.handle, cut.from), (handle, SIZE));
    server.stop().await;
}

/// A session is lost with the master, and the servers come back: those that are `longer` have a byte more than the file.
async fn longer_files_are_cut(longer: impl Fn(ServerId, &Configuration) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (servers, client, inode, handle, configuration) = file(&server).await;
    let session = SessionId(client.session);
    drop((client, servers));
    server.stop().await;
    let server = Server::start(&MasterConfig { session_lease_ms: 1_000, ..config(dir.path()) }).await.unwrap();
    let mut servers = Vec::new();
    for id in &configuration.members {
        let length = SIZE + u64::from(longer(*id, &configuration));
        let held = v1::ReplicaSummary { handle: handle.0, epoch: 1, length, ..Default::default() };
        servers.push(Chunkd::join_holding(&server, id.0 as u8, 2, vec![held]).await);
    }
    let cut = until("a cut", async || {
        beat_all(&mut servers.iter_mut().collect::<Vec<_>>()).await;
        server.leader.machine.state().shrink(inode)
    })
    .await;
    assert_eq!((cut.handle, cut.from), (handle, SIZE));
    assert!(server.leader.machine.state().sessions().get(session).is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_session_files_that_are_longer_on_disk_are_cut() {
    longer_files_are_cut(|_, _| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_longer_on_one_disk_alone_is_cut_whoever_led_before() {
    longer_files_are_cut(|id, configuration| id != configuration.primary).await;
}
