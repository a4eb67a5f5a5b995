//! Files that are made and opened in one step: held from the first moment, once, and for nobody who has gone away.

use crate::common::{Client, create, reply, start_without_grants, until};
use gfs_core::ids::{InodeId, OperationId, ROOT, SessionId};
use gfs_core::meta::request::{Refusal, Reply, Request};
use gfs_master::leader::mutate::Waits;
use gfs_master::server::Server;
use gfs_proto::PROTOCOL;
use gfs_proto::convert::{client_command, open_mode_from_wire, refusal_from_code};
use gfs_proto::v1::{self, client_message::Body as In, request::Kind};

fn create_open(client: &mut Client, name: &str) -> v1::Mutation {
    let mut mutation = client.mutation(create(name));
    if let Some(Kind::Create(create)) = mutation.request.as_mut().and_then(|request| request.kind.as_mut()) {
        create.open = true;
    }
    mutation
}

fn unlink(name: &str) -> Request {
    Request::Unlink { parent: ROOT, name: name.as_bytes().to_vec() }
}

fn exists(server: &Server, inode: InodeId) -> bool {
    server.leader.machine.state().attributes(inode).is_some()
}

fn held(server: &Server, client: &Client) -> u32 {
    let opens = server.leader.opens.lock();
    opens.table.files_of(SessionId(client.session)).map(|(_, counts)| counts.both).sum()
}

/// Unlinks, and waits until everything that could be freed then is freed.
async fn unlink_and_collect(server: &Server, other: &mut Client, name: &str) {
    assert_eq!(other.mutate(unlink(name)).await.refusal, 0);
    let sentinel = InodeId(other.create("sentinel").await.inode);
    assert_eq!(other.mutate(unlink("sentinel")).await.refusal, 0);
    until("a later orphan is freed", async || (!exists(server, sentinel)).then_some(())).await;
}

async fn close_and_collect(server: &Server, client: &mut Client, inode: InodeId) {
    client.send(In::Close(v1::CloseFile { inode: inode.0, access: 3, count: 1 })).await;
    until("the closed orphan is freed", async || (!exists(server, inode)).then_some(())).await;
    assert_eq!(held(server, client), 0);
}

async fn come_back(client: Client, server: &Server, creating: Vec<u64>) -> Client {
    let (session, operation) = (client.session, client.operation);
    drop(client);
    let hello = v1::Hello { protocol: PROTOCOL, session, nonce: 999, creating, ..Default::default() };
    let mut back = Client::hello(server, hello).await.unwrap_or_else(|failure| panic!("{failure:?}"));
    assert!(back.welcome.resumed);
    back.operation = operation;
    back
}

/// The file that a creation has made, once the state has it.
async fn made(server: &Server, client: &Client, operation: u64) -> InodeId {
    let id = OperationId { session: SessionId(client.session), operation };
    until("the file is made", async || match server.leader.machine.state().replayed(id) {
        Some(Reply::Entry { attributes, .. }) => Some(attributes.inode),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_and_opened_in_one_step_outlives_an_unlink_by_another_session() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_without_grants(dir.path()).await;
    let (mut maker, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    for round in 0..10 {
        let name = format!("f{round}");
        let mutation = create_open(&mut maker, &name);
        let tag = maker.send(In::Mutation(mutation.clone())).await;
        let inode = made(&server, &maker, mutation.operation).await;
        unlink_and_collect(&server, &mut other, &name).await;
        assert!(exists(&server, inode), "freed while open");
        assert!(reply(maker.receive(tag).await).created);
        assert!(reply(maker.call(In::Mutation(mutation)).await).created, "repeated");
        assert_eq!(held(&server, &maker), 1);
        close_and_collect(&server, &mut maker, inode).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_the_state_that_is_not_counted_yet_is_not_freed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_without_grants(dir.path()).await;
    let (mut maker, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    // A creation that has got as far as the state, and whose asker has not run since.
    let leader = &server.leader;
    let command = client_command(SessionId(maker.session), create_open(&mut maker, "f")).unwrap();
    let id = command.id;
    let connection = (1..100).find(|number| {
        let mut opens = leader.opens.lock();
        opens.table.expect(id, *number);
        opens.table.unmade().count() == 1
    });
    assert!(connection.is_some());
    let Reply::Entry { attributes, .. } = leader.mutate(command, Waits::No).await.unwrap().reply else { panic!() };
    unlink_and_collect(&server, &mut other, "f").await;
    assert!(exists(&server, attributes.inode));
    assert_eq!(leader.hold_made(id, attributes.inode), Ok(()));
    assert_eq!(held(&server, &maker), 1);
    close_and_collect(&server, &mut maker, attributes.inode).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_whose_answer_was_lost_holds_its_file_until_it_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start_without_grants(dir.path()).await;
    let (mut maker, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    for restarts in [false, true] {
        let name = format!("f{restarts}");
        let mutation = create_open(&mut maker, &name);
        maker.send(In::Mutation(mutation.clone())).await;
        let inode = made(&server, &maker, mutation.operation).await;
        if restarts {
            server.stop().await;
            server = start_without_grants(dir.path()).await;
            other = other.resume(&server, Vec::new()).await;
        }
        maker = come_back(maker, &server, vec![mutation.operation]).await;
        unlink_and_collect(&server, &mut other, &name).await;
        assert!(exists(&server, inode), "freed while its maker waits for the answer");
        assert!(reply(maker.call(In::Mutation(mutation)).await).created);
        assert_eq!(held(&server, &maker), 1);
        close_and_collect(&server, &mut maker, inode).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_was_given_up_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_without_grants(dir.path()).await;
    let (mut maker, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let mutation = create_open(&mut maker, "f");
    maker.send(In::Mutation(mutation.clone())).await;
    let inode = made(&server, &maker, mutation.operation).await;
    let mut maker = come_back(maker, &server, Vec::new()).await;
    assert_eq!(held(&server, &maker), 0);
    unlink_and_collect(&server, &mut other, "f").await;
    assert!(!exists(&server, inode));
    // Asked again all the same, it is told the truth.
    let late = reply(maker.call(In::Mutation(mutation)).await);
    assert_eq!(refusal_from_code(late.refusal), Some(Refusal::NotFound));
    assert_eq!(held(&server, &maker), 0);
    server.stop().await;
}

/// On one thread, so that what is freed by itself is not freed in between.
#[tokio::test]
async fn a_file_that_is_opened_while_it_is_freed_is_stale_and_its_name_may_stand_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let server = start_without_grants(dir.path()).await;
    let (mut maker, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let mutation = create_open(&mut maker, "f");
    let inode = InodeId(reply(maker.call(In::Mutation(mutation)).await).attributes.unwrap().inode);
    assert_eq!(other.mutate(unlink("f")).await.refusal, 0);
    let leader = &server.leader;
    let both = open_mode_from_wire(3).unwrap();
    leader.let_go(SessionId(maker.session), inode, both, 1);
    assert_eq!(leader.begin_reaping(10), [inode]);
    let opened = leader.hold_open(SessionId(other.session), inode, both, false, 1);
    assert_eq!(opened.map(|_| ()), Err(Refusal::Stale));
    leader.reaped(&[inode]);
    server.stop().await;
}
