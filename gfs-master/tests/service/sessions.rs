//! Client sessions against a real master: caching, retries, locks, times, leases, restarts.

use crate::common::*;
use gfs_core::ids::{InodeId, ROOT, SessionId};
use gfs_core::meta::grants::Cached;
use gfs_core::meta::request::{
    AttributeChanges, Lock, LockFamily, LockMode, LockOwner, LockRange, Query, Refusal, Request, SetTime, Timestamp,
    XattrMode,
};
use gfs_master::server::Server;
use gfs_proto::PROTOCOL;
use gfs_proto::convert::refusal_from_code;
use gfs_proto::v1::{self, client_message::Body as In, failure::Code, server_message::Body as Out};

fn lookup(name: &str) -> Query {
    Query::Lookup { parent: ROOT, name: name.as_bytes().to_vec() }
}

fn lock(client: &Client, owner: u64, mode: LockMode, at: u64) -> Lock {
    Lock {
        family: LockFamily::Record,
        owner: LockOwner { session: SessionId(client.session), owner },
        pid: 1,
        mode,
        range: LockRange { start: at, end: at },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_session_caches_is_invalidated_before_a_mutation_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut a, mut b) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let made = a.create("x").await;
    let seen = b.query(lookup("x")).await;
    assert_eq!((seen.attributes.unwrap().inode, seen.grant_ms), (made.inode, 60_000));
    let changes = AttributeChanges { mode: Some(0o600), ..AttributeChanges::default() };
    let request = Request::SetAttributes { inode: InodeId(made.inode), changes };
    let mutation = a.mutation(request);
    let tag = a.send(In::Mutation(mutation)).await;
    let asked = b.invalidation(false).await;
    assert_eq!(asked.inodes, vec![made.inode]);
    assert_eq!(b.query(lookup("x")).await.attributes.unwrap().mode, 0o644, "applied before the answer");
    b.send(In::Invalidated(v1::Invalidated { id: asked.id })).await;
    let reply = reply(a.receive(tag).await);
    assert_eq!(reply.attributes.unwrap().mode, 0o600);
    let after = b.query(lookup("x")).await;
    assert_eq!((after.attributes.unwrap().mode, after.grant_ms), (0o600, 0), "granted while contended");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absence_is_granted_and_a_creation_invalidates_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut a, mut b) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let absent = b.query(lookup("later")).await;
    assert_eq!(refusal_from_code(absent.refusal), Some(Refusal::NotFound));
    assert_eq!(absent.grant_ms, 60_000);
    let mutation = a.mutation(create("later"));
    let tag = a.send(In::Mutation(mutation)).await;
    let asked = b.invalidation(true).await;
    assert!(asked.entries.iter().any(|entry| entry.parent == ROOT.0 && &entry.name[..] == b"later"), "{asked:?}");
    assert!(reply(a.receive(tag).await).created);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_gets_the_first_answer_also_after_a_reconnect_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut client = Client::open(&server, 1).await;
    let first = client.mutate(create("once")).await;
    let again = client.numbered(1, create("once"));
    assert_eq!(reply(client.call(In::Mutation(again)).await).attributes, first.attributes);
    let mut client = client.resume(&server, Vec::new()).await;
    assert!(client.welcome.resumed);
    let again = client.numbered(1, create("once"));
    assert!(reply(client.call(In::Mutation(again)).await).created);
    server.stop().await;
    let server = start(dir.path()).await;
    let mut client = client.resume(&server, Vec::new()).await;
    assert!(client.welcome.resumed);
    let again = client.numbered(1, create("once"));
    assert!(reply(client.call(In::Mutation(again)).await).created);
    assert_eq!(server.leader.machine.state().counts().namespace.files, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_waited_for_until_its_release_and_a_wait_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut a, mut b) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let inode = InodeId(a.create("locked").await.inode);
    let held = lock(&a, 7, LockMode::Write, 0);
    assert_eq!(a.mutate(Request::SetLock { inode, lock: held }).await.refusal, 0);
    let wanted = Request::SetLock { inode, lock: lock(&b, 7, LockMode::Write, 0) };
    let refused = b.mutate(wanted.clone()).await;
    assert_eq!(refusal_from_code(refused.refusal), Some(Refusal::WouldBlock));
    let mutation = b.mutation(wanted.clone());
    let first = b.send(In::LockWait(v1::LockWait { mutation: Some(mutation) })).await;
    b.send(In::Cancel(v1::CancelWait { tag: first })).await;
    let cancelled = reply(b.receive(first).await);
    assert_eq!(refusal_from_code(cancelled.refusal), Some(Refusal::Interrupted));
    let mutation = b.mutation(wanted);
    let second = b.send(In::LockWait(v1::LockWait { mutation: Some(mutation) })).await;
    let release = Request::SetLock { inode, lock: lock(&a, 7, LockMode::Unlock, 0) };
    assert_eq!(a.mutate(release).await.refusal, 0);
    assert_eq!(reply(b.receive(second).await).refusal, 0);
    let tested = a.query(Query::TestLock { inode, lock: lock(&a, 7, LockMode::Read, 0) }).await;
    assert_eq!(tested.lock.unwrap().session, b.session);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_is_refused_and_the_end_of_a_session_frees_its_locks() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut a, mut b) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let inode = InodeId(a.create("locked").await.inode);
    let (own_a, own_b) = (lock(&a, 1, LockMode::Write, 1), lock(&b, 1, LockMode::Write, 2));
    assert_eq!(a.mutate(Request::SetLock { inode, lock: own_a }).await.refusal, 0);
    assert_eq!(b.mutate(Request::SetLock { inode, lock: own_b }).await.refusal, 0);
    let lock_b = lock(&a, 1, LockMode::Write, 2);
    let mutation = a.mutation(Request::SetLock { inode, lock: lock_b });
    let waiting = a.send(In::LockWait(v1::LockWait { mutation: Some(mutation) })).await;
    until("the wait begins", async || {
        let lock = lock(&b, 1, LockMode::Write, 1);
        let mutation = b.mutation(Request::SetLock { inode, lock });
        let tag = b.send(In::LockWait(v1::LockWait { mutation: Some(mutation) })).await;
        b.send(In::Cancel(v1::CancelWait { tag })).await;
        let refusal = refusal_from_code(reply(b.receive(tag).await).refusal);
        (refusal == Some(Refusal::Deadlock)).then_some(())
    })
    .await;
    assert_eq!(reply(b.call(In::Goodbye(v1::Goodbye {})).await).refusal, 0);
    assert_eq!(reply(a.receive(waiting).await).refusal, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_a_write_are_shown_at_once_and_committed_with_a_barrier() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut client = Client::open(&server, 1).await;
    let made = client.create("t").await;
    let inode = InodeId(made.inode);
    let body = client.call(In::SoftTimes(v1::SoftTimes { inode: inode.0, clear_suid: false })).await;
    assert_eq!(reply(body).refusal, 0);
    let shown = client.query(Query::GetAttributes { inode }).await.attributes.unwrap();
    assert!(shown.mtime_ns > made.mtime_ns);
    assert_eq!(client.mutate(Request::Barrier { times: true }).await.refusal, 0);
    let committed = server.leader.machine.state().attributes(inode).unwrap();
    assert_eq!((committed.mtime.0, committed.ctime.0), (shown.mtime_ns, shown.mtime_ns));
    assert!(server.leader.times.is_empty());
    let explicit = AttributeChanges { mtime: Some(SetTime::At(Timestamp(5))), ..AttributeChanges::default() };
    client.call(In::SoftTimes(v1::SoftTimes { inode: inode.0, clear_suid: false })).await;
    client.mutate(Request::SetAttributes { inode, changes: explicit }).await;
    let set = client.query(Query::GetAttributes { inode }).await.attributes.unwrap();
    assert_eq!(set.mtime_ns, 5, "an older write's time came back");
    server.stop().await;
}

async fn write_in_place(client: &mut Client, inode: InodeId, clear_suid: bool) -> i64 {
    let body = client.call(In::SoftTimes(v1::SoftTimes { inode: inode.0, clear_suid })).await;
    let answer = reply(body);
    assert_eq!(answer.refusal, 0);
    answer.shown_ns
}

async fn stat(client: &mut Client, inode: InodeId) -> v1::Attributes {
    client.query(Query::GetAttributes { inode }).await.attributes.unwrap()
}

async fn come_back(client: Client, server: &Server, times: Vec<v1::ShownTimes>) -> Client {
    let (session, operation) = (client.session, client.operation);
    drop(client);
    let hello = v1::Hello { protocol: PROTOCOL, session, nonce: 999, times, ..Default::default() };
    let mut back = Client::hello(server, hello).await.unwrap_or_else(|failure| panic!("{failure:?}"));
    assert!(back.welcome.resumed);
    back.operation = operation;
    back
}

/// What was shown before a restart is shown after it; what was changed since stays as it was changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_a_write_outlive_a_restart_of_the_master_unless_something_later_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut client = Client::open(&server, 1).await;
    let mut files = Vec::new();
    for name in ["plain", "chmod", "touch", "write", "link"] {
        files.push(InodeId(client.create(name).await.inode));
    }
    let [plain, chmod, touch, write, link] = files[..] else { panic!("five files") };
    let change = |inode, changes| Request::SetAttributes { inode, changes };
    let mode = |mode| AttributeChanges { mode: Some(mode), ..AttributeChanges::default() };
    client.mutate(change(plain, mode(0o4755))).await;
    let mut shown = Vec::new();
    for inode in &files {
        let time_ns = write_in_place(&mut client, *inode, true).await;
        assert_eq!(stat(&mut client, *inode).await.mtime_ns, time_ns);
        shown.push(v1::ShownTimes { inode: inode.0, time_ns, cleared_ns: time_ns });
    }
    client.mutate(change(chmod, mode(0o4700))).await;
    let past = AttributeChanges { mtime: Some(SetTime::At(Timestamp(5))), ..AttributeChanges::default() };
    client.mutate(change(touch, past)).await;
    let commit = Request::CommitWrite {
        inode: write,
        attach: vec![],
        used: vec![],
        min_size: Some(9),
        clear_suid: false,
        space: None,
    };
    let written = client.mutate(commit).await.attributes.unwrap().mtime_ns;
    assert_eq!(client.mutate(Request::Link { inode: link, parent: ROOT, name: b"second".to_vec() }).await.refusal, 0);
    assert_eq!(server.leader.times.len(), 1, "every change commits the times that are shown first");
    server.stop().await;

    let server = start(dir.path()).await;
    assert!(server.leader.machine.state().attributes(plain).unwrap().mtime.0 < shown[0].time_ns, "committed");
    let mut client = come_back(client, &server, shown.clone()).await;
    let times = [shown[0].time_ns, shown[1].time_ns, 5, written, shown[4].time_ns];
    for (inode, mtime_ns) in files.iter().zip(times) {
        assert_eq!(stat(&mut client, *inode).await.mtime_ns, mtime_ns, "{inode}");
    }
    assert_eq!(stat(&mut client, plain).await.mode, 0o755);
    assert_eq!(stat(&mut client, chmod).await.mode, 0o4700, "set since");
    assert_eq!(client.mutate(Request::Barrier { times: true }).await.refusal, 0);
    let committed = server.leader.machine.state().attributes(plain).unwrap();
    assert_eq!((committed.mtime.0, committed.mode), (shown[0].time_ns, 0o755));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asked_before_a_time_was_shown_again_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut writer, other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let inode = InodeId(writer.create("f").await.inode);
    let time_ns = write_in_place(&mut writer, inode, false).await;
    server.stop().await;
    let server = start(dir.path()).await;
    let mut other = other.resume(&server, Vec::new()).await;
    // As an answer about an old file would have it: young ones are not shown before all have come back.
    let cached = [(inode, Cached::Attributes)];
    assert!(server.leader.gate.grant(SessionId(other.session), &cached) > 0);
    // A client cannot make up a time to come.
    let shown = v1::ShownTimes { inode: inode.0, time_ns: i64::MAX, cleared_ns: 0 };
    let _writer = come_back(writer, &server, vec![shown]).await;
    assert_eq!(other.invalidation(true).await.inodes, vec![inode.0]);
    let seen = stat(&mut other, inode).await.mtime_ns;
    assert!((time_ns..server.leader.now().0).contains(&seen), "{seen}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_capabilities_are_gone_when_a_write_in_place_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (mut client, mut other) = (Client::open(&server, 1).await, Client::open(&server, 2).await);
    let made = client.create("program").await;
    let inode = InodeId(made.inode);
    let name = b"security.capability".to_vec();
    let in_place = In::SoftTimes(v1::SoftTimes { inode: inode.0, clear_suid: false });
    client.call(in_place.clone()).await;
    let set = Request::SetXattr { inode, name: name.clone(), value: b"v2".to_vec(), mode: XattrMode::Any };
    assert_eq!(client.mutate(set).await.refusal, 0);
    assert_eq!(&other.query(Query::GetXattr { inode, name: name.clone() }).await.value[..], b"v2");
    let tag = client.send(in_place.clone()).await;
    other.invalidation(true).await;
    assert_eq!(reply(client.receive(tag).await).refusal, 0);
    let asked = other.query(Query::GetXattr { inode, name }).await;
    assert_eq!(refusal_from_code(asked.refusal), Some(Refusal::NoData));
    let committed = server.leader.machine.state().attributes(inode).unwrap();
    assert!(committed.mtime.0 > made.mtime_ns && !committed.has_xattrs, "{committed:?}");
    assert!(server.leader.times.is_empty(), "times of before are covered");
    client.call(in_place).await;
    assert_eq!(server.leader.times.len(), 1, "a file without capabilities costs no commit");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_file_outlives_its_name_until_the_last_close() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut client = Client::open(&server, 1).await;
    let inode = client.create("gone").await.inode;
    let open = v1::OpenFile { inode, access: 3, count: 1, ..v1::OpenFile::default() };
    assert!(matches!(client.call(In::Open(open)).await, Out::Open(answer) if answer.refusal == 0));
    client.mutate(Request::Unlink { parent: ROOT, name: b"gone".to_vec() }).await;
    let other = Client::open(&server, 2).await;
    server.stop().await;
    // The state knows the session, so the orphan waits for what it says it holds.
    let server = start(dir.path()).await;
    let mut other = other.resume(&server, Vec::new()).await;
    let sentinel = InodeId(other.create("sentinel").await.inode);
    other.mutate(Request::Unlink { parent: ROOT, name: b"sentinel".to_vec() }).await;
    let mut client = client.resume(&server, vec![open]).await;
    until("an orphan that nobody holds is freed", async || {
        let gone = server.leader.machine.state().attributes(sentinel).is_none();
        gone.then_some(())
    })
    .await;
    let attributes = client.query(Query::GetAttributes { inode: InodeId(inode) }).await;
    assert_eq!(attributes.attributes.unwrap().links, 0);
    client.send(In::Close(v1::CloseFile { inode, access: 3, count: 1 })).await;
    until("the orphan is freed", async || {
        let gone = server.leader.machine.state().attributes(InodeId(inode)).is_none();
        gone.then_some(())
    })
    .await;
    let Out::Open(answer) = client.call(In::Open(open)).await else { panic!("no answer") };
    assert_ne!(answer.refusal, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_session_ends_and_frees_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let config = gfs_master::config::MasterConfig { session_lease_ms: 1_000, ..config(dir.path()) };
    let server = gfs_master::server::Server::start(&config).await.unwrap();
    let mut silent = Client::open(&server, 1).await;
    let inode = InodeId(silent.create("held").await.inode);
    let held = lock(&silent, 1, LockMode::Write, 0);
    silent.mutate(Request::SetLock { inode, lock: held }).await;
    until("the session ends", async || {
        let ended = server.leader.machine.state().sessions().get(SessionId(silent.session)).is_none();
        ended.then_some(())
    })
    .await;
    assert_eq!(server.leader.machine.state().locks().iter().count(), 0);
    let session = silent.session;
    let fresh = silent.resume(&server, Vec::new()).await;
    assert!(!fresh.welcome.resumed);
    assert_ne!(fresh.session, session);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_first_words_and_garbage_on_the_port_do_no_harm() {
    use tokio::io::AsyncWriteExt;
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let hello = v1::Hello { protocol: 99, ..Default::default() };
    let refused = Client::hello(&server, hello).await.err().unwrap();
    assert_eq!(refused.code(), Code::Protocol);
    let hello = v1::Hello { protocol: gfs_proto::PROTOCOL, cluster: vec![7; 16].into(), ..Default::default() };
    assert_eq!(Client::hello(&server, hello).await.err().unwrap().code(), Code::WrongCluster);
    for garbage in
        [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff"]
    {
        let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        // The server may close before everything is written.
        let _ = stream.write_all(garbage).await;
    }
    let mut client = Client::open(&server, 1).await;
    let nothing = v1::Mutation { operation: 1, ..Default::default() };
    assert!(
        matches!(client.call(In::Mutation(nothing)).await, Out::Failure(failure) if failure.code() == Code::Malformed)
    );
    assert!(client.create("still works").await.inode > 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statfs_without_servers_and_allocation_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut client = Client::open(&server, 1).await;
    let Out::Statfs(space) = client.call(In::Statfs(v1::StatFsRequest {})).await else { panic!("no answer") };
    assert_eq!((space.total, space.free, space.replicas), (0, 0, 3));
    let mutation = client.mutation(Request::AllocateChunks { replicas: 0, placements: vec![Vec::new()] });
    let Out::Failure(failure) = client.call(In::Mutation(mutation)).await else { panic!("allocated on nothing") };
    assert_eq!(failure.code(), Code::Unavailable);
    server.stop().await;
}
