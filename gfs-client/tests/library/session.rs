//! The session against a master with the real state machine: once and only once, over broken streams, lost sessions and other masters.

use crate::support::master::Master;
use crate::support::{Cluster, PATIENCE, call, cancellable, until};
use gfs_client::{
    ACCESS_READ, AttributeChanges, CallContext, CallLimit, CancelToken, Client, ClientError, ClientOptions,
    Credentials, InodeId, Invalidator, Lock, LockFamily, LockMode, LockOwner, LockRange, Looked, NodeKind, ROOT,
    Refusal, RenameMode, Target, path,
};
use gfs_proto::v1::{self, failure::Code};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

const CHUNK: u64 = 64 * 1024;

async fn make(client: &Client, name: &[u8]) -> Result<InodeId, ClientError> {
    Ok(client.create(&call(), ROOT, name, NodeKind::File, 0o644, 0).await?.0.inode)
}

fn lock(mode: LockMode) -> Lock {
    let owner = LockOwner { session: Default::default(), owner: 7 };
    Lock { family: LockFamily::Flock, owner, pid: 1, mode, range: LockRange { start: 0, end: u64::MAX } }
}

#[tokio::test]
async fn a_mutation_whose_answer_was_lost_happens_once_and_is_answered() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    cluster.master.faults.lose_replies.store(3, Ordering::SeqCst);
    // Not idempotent: applied again, it would be refused with `Exists`.
    make(&client, b"a").await.unwrap();
    make(&client, b"b").await.unwrap();
    client.rename(&call(), (ROOT, b"a"), (ROOT, b"c"), gfs_client::RenameMode::NoReplace).await.unwrap();
    assert_eq!(cluster.master.applied.lock().len(), 3);
    assert_eq!(cluster.master.faults.lose_replies.load(Ordering::SeqCst), 0);
    let names: Vec<_> = path::list(&client, &call(), ROOT).await.unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&b"b".to_vec()) && names.contains(&b"c".to_vec()));
}

#[tokio::test]
async fn many_calls_in_flight_survive_streams_that_break_under_them() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    let mut running = tokio::task::JoinSet::new();
    for number in 0..300 {
        let client = client.clone();
        running.spawn(async move { make(&client, format!("file-{number}").as_bytes()).await });
    }
    for _ in 0..5 {
        let before = cluster.master.applied.lock().len();
        cluster.master.disconnect();
        until("progress", || cluster.master.applied.lock().len() >= (before + 20).min(300)).await;
    }
    while let Some(done) = running.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(path::list(&client, &call(), ROOT).await.unwrap().len(), 300);
    let mut applied: Vec<_> = cluster.master.applied.lock().clone();
    applied.sort_unstable();
    applied.dedup();
    assert_eq!(applied.len(), 300);
}

#[tokio::test]
async fn confirmed_answers_are_told_to_the_master() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    for number in 0..50 {
        make(&client, format!("{number}").as_bytes()).await.unwrap();
    }
    let state = cluster.master.state.lock();
    let id = |operation| gfs_core::ids::OperationId { session: client.session(), operation };
    let kept: Vec<u64> = (1..=50).filter(|operation| state.replayed(id(*operation)).is_some()).collect();
    assert_eq!(kept.last(), Some(&50));
    assert!(kept.len() <= 2, "{kept:?}");
}

#[tokio::test]
async fn open_files_are_told_again_after_a_reconnect_and_closed_ones_are_not() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    let (kept, dropped) = (make(&client, b"kept").await.unwrap(), make(&client, b"dropped").await.unwrap());
    let file = client.open(&call(), kept, gfs_client::Access::Read).await.unwrap().file;
    client.open(&call(), dropped, gfs_client::Access::Both).await.unwrap().file.close();
    until("the close", || !cluster.master.closes.lock().is_empty()).await;
    cluster.master.disconnect();
    until("a second hello", || cluster.master.hellos.lock().len() >= 2).await;
    let hello = cluster.master.hellos.lock().last().cloned().unwrap();
    assert_eq!(hello.reclaim, [v1::OpenFile { inode: kept.0, access: 1, count: 1, ..v1::OpenFile::default() }]);
    assert_eq!(hello.session, client.session().0);
    drop(file);
    until("the second close", || cluster.master.closes.lock().len() == 2).await;
}

#[tokio::test]
async fn a_creation_whose_answer_was_lost_is_named_until_it_is_answered() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    cluster.master.faults.lose_replies.store(1, Ordering::SeqCst);
    let file = client.create_open(&call(), ROOT, b"f", 0o644, 0, true, gfs_client::Access::Both).await.unwrap().file;
    let hellos = || cluster.master.hellos.lock().clone();
    let operation = cluster.master.applied.lock()[0].operation;
    assert_eq!((hellos()[1].creating.as_slice(), hellos()[1].reclaim.as_slice()), (&[operation][..], &[][..]));
    cluster.master.disconnect();
    until("a third hello", || hellos().len() >= 3).await;
    let open = v1::OpenFile { inode: file.inode().0, access: 3, count: 1, ..v1::OpenFile::default() };
    assert_eq!((hellos()[2].creating.as_slice(), hellos()[2].reclaim.as_slice()), (&[][..], &[open][..]));
}

#[tokio::test]
async fn times_of_writes_in_place_are_told_again_after_a_reconnect() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = client.create_open(&call(), ROOT, b"f", 0o644, 0, true, gfs_client::Access::Both).await.unwrap().file;
    file.write(&call(), 0, "first".into(), false).await.unwrap();
    assert_eq!(cluster.master.hellos.lock()[0].times, []);
    for _ in 0..2 {
        file.write(&call(), 0, "again".into(), false).await.unwrap();
    }
    assert_eq!(cluster.master.soft_times.load(Ordering::SeqCst), 2);
    cluster.master.disconnect();
    until("a second hello", || cluster.master.hellos.lock().len() >= 2).await;
    let told = cluster.master.hellos.lock()[1].times.clone();
    assert_eq!(told, [v1::ShownTimes { inode: file.inode().0, time_ns: 2, cleared_ns: 0 }]);
}

#[tokio::test]
async fn a_lost_session_is_replaced_and_lost_locks_are_told_once() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let opened = client.create_open(&call(), ROOT, b"f", 0o644, 0, true, gfs_client::Access::Both).await.unwrap();
    let file = opened.file;
    file.write(&call(), 0, "before".into(), false).await.unwrap();
    client.set_lock(&call(), file.inode(), lock(LockMode::Write), false).await.unwrap();
    let old = client.session();
    cluster.master.expire(old);
    until("a new session", || client.session() != old).await;
    assert!(
        matches!(file.read(&call(), 0, 10).await, Err(ClientError::SessionLost { inode: Some(inode) }) if inode == file.inode())
    );
    assert_eq!(file.read(&call(), 0, 10).await.unwrap(), "before");
    file.write(&call(), 6, " and after".into(), false).await.unwrap();
    assert_eq!(file.read(&call(), 0, 100).await.unwrap(), "before and after");
    let reclaim = cluster.master.hellos.lock().last().unwrap().reclaim.clone();
    assert_eq!(reclaim, [v1::OpenFile { inode: file.inode().0, access: 3, count: 1, ..v1::OpenFile::default() }]);
}

#[tokio::test]
async fn a_sync_does_not_vouch_for_what_a_master_lost_after_it_had_answered() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let opened = client.create_open(&call(), ROOT, b"f", 0o644, 0, true, gfs_client::Access::Both).await.unwrap();
    make(&client, b"kept").await.unwrap();
    client.sync_directory(&call(), ROOT).await.unwrap();
    let on_disk = cluster.master.state.lock().clone();
    make(&client, b"lost").await.unwrap();
    opened.file.write(&call(), 0, "longer".into(), false).await.unwrap();
    // Its power is cut before the last of its log is on stable storage.
    *cluster.master.state.lock() = on_disk;
    cluster.master.disconnect();
    assert!(matches!(client.sync_directory(&call(), ROOT).await, Err(ClientError::SessionLost { inode: Some(ROOT) })));
    assert!(matches!(opened.file.sync(&call(), false).await, Err(ClientError::SessionLost { .. })));
    client.sync_directory(&call(), ROOT).await.unwrap();
    opened.file.sync(&call(), false).await.unwrap();
}

#[tokio::test]
async fn what_a_master_lost_of_a_file_does_not_come_back_with_the_next_growth() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let file = client.create_open(&call(), ROOT, b"f", 0o644, 0, true, gfs_client::Access::Both).await.unwrap().file;
    file.append(&call(), "kept".into(), false).await.unwrap();
    file.sync(&call(), false).await.unwrap();
    // Held by nobody: the master hears of each append.
    let shown = other.get_attributes(&call(), file.inode()).await.unwrap().0;
    assert_eq!(shown.size, 4);
    let on_disk = cluster.master.state.lock().clone();
    file.append(&call(), "and lost".into(), false).await.unwrap();
    *cluster.master.state.lock() = on_disk;
    cluster.master.disconnect();
    let told = async { file.append(&call(), "never".into(), false).await };
    assert!(matches!(told.await, Err(ClientError::SessionLost { .. })));
    assert_eq!(file.append(&call(), "new".into(), false).await.unwrap(), 4);
    assert_eq!(file.read(&call(), 0, 100).await.unwrap(), "keptnew");
}

#[tokio::test]
async fn a_mutation_with_an_unknown_outcome_fails_with_the_session_and_others_go_on() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    let inode = make(&client, b"f").await.unwrap();
    cluster.master.faults.mute.store(true, Ordering::SeqCst);
    let unlink = tokio::spawn({
        let client = client.clone();
        async move { client.unlink(&call(), ROOT, b"f").await }
    });
    let stat = tokio::spawn({
        let client = client.clone();
        async move { client.get_attributes(&call(), inode).await }
    });
    until("both calls to arrive", || cluster.master.faults.muted.load(Ordering::SeqCst) >= 2).await;
    let old = client.session();
    cluster.master.faults.mute.store(false, Ordering::SeqCst);
    cluster.master.expire(old);
    assert!(matches!(unlink.await.unwrap(), Err(ClientError::SessionLost { inode: None })));
    assert_eq!(stat.await.unwrap().unwrap().0.inode, inode);
}

#[tokio::test]
async fn a_hint_leads_to_the_leader() {
    let follower = Master::start(CHUNK).await;
    let leader = Cluster::start(0, CHUNK).await;
    let hint =
        v1::Failure { code: Code::NotLeader.into(), message: String::new(), hint: leader.master.address.clone() };
    *follower.faults.refuse_hello.lock() = Some(hint);
    let target = Target { masters: vec![follower.address.clone()] };
    let client = Client::connect(target, ClientOptions::default()).await.unwrap();
    make(&client, b"f").await.unwrap();
    assert_eq!(leader.master.applied.lock().len(), 1);
}

#[tokio::test]
async fn a_master_that_starts_is_waited_for_and_one_that_is_not_there_is_named() {
    let cluster = Cluster::start(0, CHUNK).await;
    let starting = v1::Failure { code: Code::Starting.into(), message: "recovering".into(), hint: String::new() };
    *cluster.master.faults.refuse_hello.lock() = Some(starting);
    let connecting = tokio::spawn(Client::connect(cluster.target(), ClientOptions::default()));
    until("two attempts", || cluster.master.hellos.lock().len() >= 2).await;
    *cluster.master.faults.refuse_hello.lock() = None;
    connecting.await.unwrap().unwrap();

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let options = ClientOptions { connect_limit: Duration::from_millis(300), ..ClientOptions::default() };
    let failed = Client::connect(Target { masters: vec![nobody.clone()] }, options).await;
    assert!(
        matches!(failed, Err(ClientError::Unavailable { masters, reason }) if masters == nobody && reason.contains(&nobody))
    );
}

#[tokio::test]
async fn versions_that_do_not_fit_are_final() {
    let cluster = Cluster::start(0, CHUNK).await;
    let failure = v1::Failure { code: Code::Protocol.into(), message: "this is version 9".into(), hint: String::new() };
    *cluster.master.faults.refuse_hello.lock() = Some(failure);
    let failed = Client::connect(cluster.target(), ClientOptions::default()).await;
    assert!(matches!(failed, Err(ClientError::Version(message)) if message == "this is version 9"));
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_the_session_goes_on() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    cluster.master.faults.mute.store(true, Ordering::SeqCst);
    let short = CallContext::new(Credentials::default(), CallLimit::within(Duration::from_millis(50)));
    assert!(matches!(client.get_attributes(&short, ROOT).await, Err(ClientError::TimedOut { .. })));
    cluster.master.faults.mute.store(false, Ordering::SeqCst);
    assert_eq!(client.get_attributes(&call(), ROOT).await.unwrap().0.inode, ROOT);
}

#[tokio::test]
async fn a_call_that_cannot_be_served_now_is_made_again() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    cluster.master.faults.unavailable.store(2, Ordering::SeqCst);
    make(&client, b"f").await.unwrap();
    assert_eq!(cluster.master.applied.lock().len(), 1);
}

#[tokio::test]
async fn a_cancelled_lock_wait_is_interrupted_and_does_not_hold_the_lock() {
    let cluster = Cluster::start(0, CHUNK).await;
    let (holder, waiter) = (cluster.client().await, cluster.client().await);
    let inode = make(&holder, b"f").await.unwrap();
    holder.set_lock(&call(), inode, lock(LockMode::Write), false).await.unwrap();
    let refused = waiter.set_lock(&call(), inode, lock(LockMode::Write), false).await;
    assert!(matches!(refused, Err(ClientError::Refused(Refusal::WouldBlock))));

    let cancel = CancelToken::new();
    let context = cancellable(&cancel);
    let waiting = tokio::spawn({
        let waiter = waiter.clone();
        async move { waiter.set_lock(&context, inode, lock(LockMode::Write), true).await }
    });
    tokio::task::yield_now().await;
    cancel.cancel();
    let ended = waiting.await.unwrap();
    assert!(matches!(ended, Err(ClientError::Interrupted | ClientError::Refused(Refusal::Interrupted))), "{ended:?}");

    let waiting = tokio::spawn({
        let waiter = waiter.clone();
        async move { waiter.set_lock(&call(), inode, lock(LockMode::Write), true).await }
    });
    holder.set_lock(&call(), inode, lock(LockMode::Unlock), false).await.unwrap();
    waiting.await.unwrap().unwrap();
    let held = cluster.master.state.lock().locks().on(inode);
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].owner.session, waiter.session());
}

type Told = (Vec<InodeId>, Vec<(InodeId, Vec<u8>)>);

struct Recorder(mpsc::Sender<Told>);

impl Invalidator for Recorder {
    fn invalidate(&self, inodes: &[InodeId], entries: &[(InodeId, Vec<u8>)]) {
        let _ = self.0.send((inodes.to_vec(), entries.to_vec()));
    }
}

#[tokio::test]
async fn an_invalidation_ends_grants_reaches_the_invalidator_and_is_acknowledged() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    let inode = make(&client, b"f").await.unwrap();
    let (told, log) = mpsc::channel();
    client.on_invalidate(Arc::new(Recorder(told)));
    let (_, kept) = client.get_attributes(&call(), inode).await.unwrap();
    let (_, other) = client.get_attributes(&call(), ROOT).await.unwrap();
    assert!(client.deliver(&kept.ticket, |ttl| ttl > Duration::ZERO));
    let id = cluster.master.invalidate(client.session(), &[inode], &[(ROOT, b"x")]).await;
    until("the acknowledgement", || cluster.master.acknowledged(id)).await;
    assert_eq!(log.recv_timeout(PATIENCE).unwrap(), (vec![inode], vec![(ROOT, b"x".to_vec())]));
    assert_eq!(client.deliver(&kept.ticket, |ttl| ttl), Duration::ZERO);
    assert!(client.deliver(&other.ticket, |ttl| ttl > Duration::ZERO));
}

#[tokio::test]
async fn an_absence_is_granted_and_ends_when_another_session_makes_the_name() {
    let cluster = Cluster::start(0, CHUNK).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let Looked::Absent(grant) = one.look_up(&call(), ROOT, b"f").await.unwrap() else { panic!("there is no f yet") };
    assert!(one.deliver(&grant.ticket, |ttl| ttl > Duration::ZERO));
    make(&two, b"f").await.unwrap();
    assert_eq!(one.deliver(&grant.ticket, |ttl| ttl), Duration::ZERO);
    assert!(matches!(one.look_up(&call(), ROOT, b"f").await.unwrap(), Looked::Found(..)));
}

#[tokio::test]
async fn names_of_a_directory_of_its_own_are_absent_without_a_question_until_somebody_else_comes_in() {
    let cluster = Cluster::start(1, CHUNK).await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let context = call();
    let (made, _) = a.create(&context, ROOT, b"d", NodeKind::Directory, 0o755, 0).await.unwrap();
    let absent = async |client: &Client, name: &[u8]| {
        matches!(client.look_up(&context, made.inode, name).await.unwrap(), Looked::Absent(_))
    };
    let asked = || cluster.master.questions.load(Ordering::SeqCst);
    let before = asked();
    assert!(absent(&a, b"x").await && absent(&a, b"y").await);
    assert_eq!(asked(), before, "asked though nobody can be there");
    a.create(&context, made.inode, b"x", NodeKind::File, 0o644, 0).await.unwrap();
    assert!(!absent(&a, b"x").await, "its own file is not found");
    b.create(&context, made.inode, b"y", NodeKind::File, 0o644, 0).await.unwrap();
    assert!(!absent(&a, b"y").await, "the file of another session is not found");
    a.unlink(&context, made.inode, b"y").await.unwrap();
    assert!(absent(&a, b"y").await && absent(&b, b"y").await);
}

#[tokio::test]
async fn a_directory_is_known_as_its_own_change_left_it_until_somebody_else_changes_it() {
    let cluster = Cluster::start(1, CHUNK).await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let context = call();
    let (d, _) = a.create(&context, ROOT, b"d", NodeKind::Directory, 0o755, 0).await.unwrap();
    let links = async |client: &Client| client.get_attributes(&context, d.inode).await.unwrap().0.links;
    a.create(&context, d.inode, b"one", NodeKind::Directory, 0o755, 0).await.unwrap();
    let before = cluster.master.questions.load(Ordering::SeqCst);
    assert_eq!(links(&a).await, 3);
    assert_eq!(cluster.master.questions.load(Ordering::SeqCst), before, "asked for what it did itself");
    b.create(&context, d.inode, b"two", NodeKind::Directory, 0o755, 0).await.unwrap();
    assert_eq!((links(&a).await, links(&b).await), (4, 4));
    a.create(&context, d.inode, b"three", NodeKind::Directory, 0o755, 0).await.unwrap();
    let changed = AttributeChanges { mode: Some(0o700), ..AttributeChanges::default() };
    a.set_attributes(&context, d.inode, changed).await.unwrap();
    let (seen, _) = a.get_attributes(&context, d.inode).await.unwrap();
    assert_eq!((seen.mode & 0o7777, seen.links), (0o700, 5));
    a.rename(&context, (ROOT, b"d"), (ROOT, b"e"), RenameMode::Replace).await.unwrap();
    let renamed = a.get_attributes(&context, d.inode).await.unwrap().0;
    assert!(renamed.ctime > seen.ctime, "its move changed the time of its attributes");
}

#[tokio::test]
async fn a_closed_client_ends_its_session_and_refuses_calls() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    let session = client.session();
    client.close().await;
    assert!(!cluster.master.state.lock().sessions().contains(session));
    assert!(matches!(client.get_attributes(&call(), ROOT).await, Err(ClientError::Closed)));
}

#[tokio::test]
async fn paths_are_walked_made_and_removed_and_loops_of_links_end() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    let deep = path::make_directories(&client, &call(), "/a/b/c", 0o755, 0).await.unwrap();
    assert_eq!(path::make_directories(&client, &call(), "/a/b/c/", 0o755, 0).await.unwrap().inode, deep.inode);
    client.create(&call(), deep.inode, b"file", NodeKind::File, 0o644, 0).await.unwrap();
    client.create(&call(), ROOT, b"link", NodeKind::Symlink(b"/a/./b/../b".to_vec()), 0o777, 0).await.unwrap();
    client.create(&call(), ROOT, b"loop", NodeKind::Symlink(b"loop".to_vec()), 0o777, 0).await.unwrap();
    assert_eq!(path::resolve(&client, &call(), "/link/c").await.unwrap().inode, deep.inode);
    assert!(matches!(path::resolve(&client, &call(), "/loop").await, Err(ClientError::TooManyLinks)));
    assert_eq!(path::resolve_link(&client, &call(), "/loop").await.unwrap().size, 4);
    assert!(matches!(path::resolve(&client, &call(), "/a/none").await, Err(ClientError::Refused(Refusal::NotFound))));
    assert!(matches!(
        path::resolve(&client, &call(), "/a/b/c/file/x").await,
        Err(ClientError::Refused(Refusal::NotDirectory))
    ));
    let top = path::resolve(&client, &call(), "/a").await.unwrap();
    let mut seen = Vec::new();
    path::walk(&client, &call(), top.inode, |path, _| {
        seen.push(String::from_utf8_lossy(path).into_owned());
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(seen, ["b", "b/c", "b/c/file"]);
    path::remove_tree(&client, &call(), ROOT, b"a").await.unwrap();
    assert!(matches!(path::resolve(&client, &call(), "/a").await, Err(ClientError::Refused(Refusal::NotFound))));
}

#[tokio::test]
async fn file_is_opened_without_a_question_and_the_master_is_told_before_somebody_takes_it() {
    let cluster = Cluster::start(1, CHUNK).await;
    let (maker, client) = (cluster.client().await, cluster.client().await);
    let inode = make(&maker, b"f").await.unwrap();
    client.look_up(&call(), ROOT, b"f").await.unwrap();
    let told = || cluster.master.opened.lock().iter().filter(|open| open.inode == inode.0).count();
    let before = told();
    let file = client.open(&call(), inode, ACCESS_READ).await.unwrap().file;
    assert_eq!(told(), before, "asked though nobody else writes it");
    client.open(&call(), inode, ACCESS_READ).await.unwrap().file.close();
    let id = cluster.master.invalidate(client.session(), &[inode], &[]).await;
    until("the acknowledgement", || cluster.master.acknowledged(id)).await;
    assert_eq!(told(), before + 1, "acknowledged before it was told");
    let counted = cluster.master.opened.lock().last().map(|open| open.count);
    assert_eq!(counted, Some(1), "the closed one too");
    drop(file);
    until("the close", || !cluster.master.closes.lock().is_empty()).await;
    // An own unlink is no different.
    client.get_attributes(&call(), inode).await.unwrap();
    let file = client.open(&call(), inode, ACCESS_READ).await.unwrap().file;
    assert_eq!(told(), before + 1);
    client.unlink(&call(), ROOT, b"f").await.unwrap();
    assert_eq!(told(), before + 2);
    drop(file);
}

#[tokio::test]
async fn names_and_attributes_are_known_until_somebody_else_comes_in_or_the_connection_ends() {
    let cluster = Cluster::start(0, CHUNK).await;
    let client = cluster.client().await;
    let inode = make(&client, b"f").await.unwrap();
    let found = async || match client.look_up(&call(), ROOT, b"f").await.unwrap() {
        Looked::Found(attributes, _) => Some(attributes.inode),
        Looked::Absent(_) => None,
    };
    let asked = || cluster.master.questions.load(Ordering::SeqCst);
    assert_eq!(found().await, Some(inode));
    let before = asked();
    assert_eq!(found().await, Some(inode));
    assert_eq!(asked(), before);
    let id = cluster.master.invalidate(client.session(), &[], &[(ROOT, b"f")]).await;
    until("the acknowledgement", || cluster.master.acknowledged(id)).await;
    assert_eq!((found().await, asked()), (Some(inode), before + 1));
    client.unlink(&call(), ROOT, b"f").await.unwrap();
    assert_eq!(found().await, None);
    let before = asked();
    assert_eq!((found().await, asked()), (None, before));
    cluster.master.disconnect();
    until("a new connection", || cluster.master.hellos.lock().len() > 1).await;
    assert_eq!((found().await, asked()), (None, before + 1));
}
