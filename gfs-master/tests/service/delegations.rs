//! Write delegations over the wire: what a holder does by itself is never missed by anybody else.

use crate::common::{Client, config, create, reply, start, within};
use gfs_core::ids::{InodeId, ROOT};
use gfs_core::meta::request::{AttributeChanges, FlushedFile, Query, Request};
use gfs_proto::v1::{self, client_message::Body as In, request::Kind, server_message::Body as Out};

/// Makes a file and asks for its delegation.
async fn make(client: &mut Client, name: &str) -> (InodeId, bool) {
    let mut mutation = client.mutation(create(name));
    if let Some(Kind::Create(create)) = mutation.request.as_mut().and_then(|request| request.kind.as_mut()) {
        (create.open, create.delegate) = (true, true);
    }
    let reply = reply(client.call(In::Mutation(mutation)).await);
    (InodeId(reply.attributes.expect("attributes").inode), reply.delegated)
}

fn flush(client: &mut Client, inode: InodeId, mode: u16) -> v1::Mutation {
    let changes = AttributeChanges { mode: Some(mode), ..AttributeChanges::default() };
    let file = FlushedFile { inode, changes, ..FlushedFile::default() };
    let mut mutation = client.mutation(Request::Flush { files: vec![file], steps: vec![], gives_back: vec![] });
    if let Some(Kind::Flush(flush)) = mutation.request.as_mut().and_then(|request| request.kind.as_mut()) {
        flush.files[0].ends = true;
    }
    mutation
}

/// Waits until a file is asked back. One that was before may be asked for again.
async fn recalled(client: &mut Client, inode: InodeId) {
    loop {
        match client.receive(0).await {
            Out::Recall(recall) if recall.inodes == [inode.0] => return,
            Out::Recall(_) => (),
            Out::Invalidate(order) => {
                client.send(In::Invalidated(v1::Invalidated { id: order.id })).await;
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn ask(client: &mut Client, query: Query) -> u64 {
    let request = v1::QueryRequest { credentials: Some(Default::default()), kind: Some((&query).into()) };
    client.send(In::Query(request)).await
}

fn mode(body: Out) -> u32 {
    match body {
        Out::Answer(answer) => answer.attributes.expect("attributes").mode,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_else_waits_for_what_the_holder_has_done() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut holder, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    for (round, query) in (0..).zip([
        Query::Lookup { parent: ROOT, name: b"f0".to_vec() },
        Query::ReadDirectory { inode: ROOT, cookie: 0, limit: 100 },
    ]) {
        let (inode, delegated) = make(&mut holder, &format!("f{round}")).await;
        assert!(delegated);
        assert_eq!(holder.query(Query::GetAttributes { inode }).await.attributes.unwrap().mode, 0o644, "its own");
        let asked = ask(&mut other, query).await;
        recalled(&mut holder, inode).await;
        let told = flush(&mut holder, inode, 0o600 + round);
        assert!(reply(holder.call(In::Mutation(told)).await).flushed);
        match other.receive(asked).await {
            Out::Answer(v1::QueryAnswer { attributes: Some(found), .. }) => assert_eq!(found.mode, 0o600),
            Out::Answer(listing) => {
                let found = listing.entries.iter().find(|entry| entry.name == "f1").unwrap();
                assert_eq!(found.attributes.as_ref().unwrap().mode, 0o601);
            }
            answer => panic!("{answer:?}"),
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_of_another_waits_too_and_a_repeated_flush_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut holder, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let (inode, _) = make(&mut holder, "f").await;
    let changes = AttributeChanges { uid: Some(7), ..AttributeChanges::default() };
    let chown = other.mutation(Request::SetAttributes { inode, changes });
    let asked = other.send(In::Mutation(chown)).await;
    recalled(&mut holder, inode).await;
    assert_eq!(server.leader.machine.state().attributes(inode).unwrap().uid, 0, "done before the holder had flushed");
    let told = flush(&mut holder, inode, 0o600);
    assert!(reply(holder.call(In::Mutation(told.clone())).await).flushed);
    let changed = reply(other.receive(asked).await).attributes.unwrap();
    assert_eq!((changed.uid, changed.mode), (7, 0o600));
    assert!(reply(holder.call(In::Mutation(told)).await).flushed);
    assert!(server.leader.delegations.is_empty());
    let (again, delegated) = make(&mut other, "g").await;
    assert!(delegated && again != inode);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_gone_delays_by_its_lease_and_can_tell_nothing_after() {
    let dir = tempfile::tempdir().unwrap();
    let config = gfs_master::config::MasterConfig { session_lease_ms: 1_000, ..config(dir.path()) };
    let server = gfs_master::server::Server::start(&config).await.unwrap();
    let mut holder = Client::open(&server, 1).await;
    let (inode, delegated) = make(&mut holder, "f").await;
    assert!(delegated);
    let mut other = Client::open(&server, 2).await;
    let asked = ask(&mut other, Query::GetAttributes { inode }).await;
    let beats = async {
        loop {
            other.send(In::KeepAlive(v1::KeepAlive {})).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            if server.leader.delegations.is_empty() {
                return;
            }
        }
    };
    within("the end of the holder", beats).await;
    assert_eq!(mode(other.receive(asked).await), 0o644);
    let claim = v1::OpenFile { inode: inode.0, access: 3, count: 1, delegated: true, ..v1::OpenFile::default() };
    let back = holder.resume(&server, vec![claim]).await;
    assert!(!back.welcome.resumed && server.leader.delegations.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_a_file_that_was_there_is_asked_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut holder, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let inode = InodeId(other.create("f").await.inode);
    let hold = holder.mutation(Request::Hold { inode });
    let held = reply(holder.call(In::Mutation(hold)).await);
    assert!(held.delegated && held.now_ns > 0);
    server.stop().await;
    let server = start(dir.path()).await;
    let mut other = other.resume(&server, Vec::new()).await;
    let asked = ask(&mut other, Query::GetAttributes { inode }).await;
    let mut holder = holder.resume(&server, Vec::new()).await;
    recalled(&mut holder, inode).await;
    let changes = AttributeChanges { mode: Some(0o640), ..AttributeChanges::default() };
    let file = FlushedFile { inode, changes, ..FlushedFile::default() };
    let told = holder.mutation(Request::Flush { files: vec![file], steps: vec![], gives_back: vec![inode] });
    assert!(reply(holder.call(In::Mutation(told)).await).flushed);
    assert_eq!(mode(other.receive(asked).await), 0o640);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_another_session_has_open_is_not_held() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut one, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let (inode, _) = make(&mut other, "f").await;
    let told = flush(&mut other, inode, 0o600);
    assert!(reply(other.call(In::Mutation(told)).await).flushed);
    let hold = one.mutation(Request::Hold { inode });
    assert_ne!(reply(one.call(In::Mutation(hold)).await).refusal, 0);
    assert!(server.leader.machine.state().holds().is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_young_files_wait_for_who_may_hold_them() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut holder, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let (inode, delegated) = make(&mut holder, "f").await;
    assert!(delegated);
    other.create("own").await;
    server.stop().await;
    let server = start(dir.path()).await;
    let mut other = other.resume(&server, Vec::new()).await;
    let (fresh, _) = make(&mut other, "made since").await;
    assert_eq!(other.query(Query::GetAttributes { inode: fresh }).await.refusal, 0);
    let asked = ask(&mut other, Query::GetAttributes { inode }).await;
    let claim = v1::OpenFile { inode: inode.0, access: 3, count: 1, delegated: true, ..v1::OpenFile::default() };
    let mut holder = holder.resume(&server, vec![claim]).await;
    recalled(&mut holder, inode).await;
    let told = flush(&mut holder, inode, 0o640);
    assert!(reply(holder.call(In::Mutation(told)).await).flushed);
    assert_eq!(mode(other.receive(asked).await), 0o640);
    server.stop().await;
}
