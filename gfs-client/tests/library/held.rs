//! Directories that a session holds: what it does there costs no question, and others see it as if it had.

use crate::support::{Cluster, call, until};
use gfs_client::{ACCESS_BOTH, ACCESS_READ, Client, ClientError, InodeId, Looked, NodeKind, ROOT, Refusal, RenameMode};
use std::sync::atomic::Ordering;

const CHUNK: u64 = 1 << 16;

async fn directory(client: &Client, parent: InodeId, name: &[u8]) -> InodeId {
    client.create(&call(), parent, name, NodeKind::Directory, 0o755, 0).await.unwrap().0.inode
}

async fn names(client: &Client, directory: InodeId) -> Vec<Vec<u8>> {
    let (entries, end, _) = client.read_directory(&call(), directory, 0, 1000).await.unwrap();
    assert!(end);
    let mut names: Vec<_> = entries.into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}

#[tokio::test]
async fn many_names_are_made_and_removed_in_few_messages() {
    let cluster = Cluster::start(1, CHUNK).await;
    let client = cluster.client().await;
    let d = directory(&client, ROOT, b"d").await;
    let before = cluster.master.questions.load(Ordering::SeqCst);
    for n in 0..200 {
        directory(&client, d, format!("d{n}").as_bytes()).await;
        let name = format!("f{n}");
        let made = client.create_open(&call(), d, name.as_bytes(), 0o644, 0, true, ACCESS_BOTH).await.unwrap();
        assert!(matches!(client.look_up(&call(), d, name.as_bytes()).await.unwrap(), Looked::Found(..)));
        drop(made);
    }
    for n in 0..200 {
        client.rmdir(&call(), d, format!("d{n}").as_bytes()).await.unwrap();
    }
    let twice = client.create(&call(), d, b"f7", NodeKind::Directory, 0o755, 0).await;
    assert!(matches!(twice, Err(ClientError::Refused(Refusal::Exists))), "{twice:?}");
    assert_eq!(cluster.master.questions.load(Ordering::SeqCst), before);
    client.sync_directory(&call(), d).await.unwrap();
    let told = cluster.master.told.lock().clone();
    assert_eq!(told.iter().sum::<usize>(), 600);
    assert!(told.len() < 200, "{told:?}");
    assert_eq!(names(&client, d).await.len(), 200);
}

#[tokio::test]
async fn another_session_sees_everything_that_was_answered_and_may_change_it() {
    let cluster = Cluster::start(1, CHUNK).await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let d = directory(&a, ROOT, b"d").await;
    let inner = directory(&a, d, b"inner").await;
    let file = a.create_open(&call(), inner, b"f", 0o644, 0, true, ACCESS_BOTH).await.unwrap();
    file.file.write(&call(), 0, vec![7; 100].into(), false).await.unwrap();
    a.create(&call(), inner, b"l", NodeKind::Symlink(b"target".to_vec()), 0o777, 0).await.unwrap();
    assert_eq!(names(&b, ROOT).await, [b"d".to_vec()]);
    assert_eq!(b.lookup(&call(), d, b"inner").await.unwrap().0.links, 2);
    assert_eq!(b.lookup(&call(), inner, b"f").await.unwrap().0.size, 100);
    let link = b.lookup(&call(), inner, b"l").await.unwrap().0;
    assert_eq!(b.read_link(&call(), link.inode).await.unwrap().0, b"target");
    b.rename(&call(), (inner, b"f"), (inner, b"g"), RenameMode::Replace).await.unwrap();
    assert!(matches!(a.look_up(&call(), inner, b"f").await.unwrap(), Looked::Absent(_)));
    assert_eq!(a.lookup(&call(), inner, b"g").await.unwrap().0.size, 100);
    a.unlink(&call(), inner, b"g").await.unwrap();
    assert!(matches!(b.look_up(&call(), inner, b"g").await.unwrap(), Looked::Absent(_)));
}

#[tokio::test]
async fn what_holds_something_is_not_removed_by_the_master_as_if_it_were_empty() {
    let cluster = Cluster::start(1, CHUNK).await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let d = directory(&a, ROOT, b"d").await;
    a.create(&call(), d, b"f", NodeKind::File, 0o644, 0).await.unwrap();
    for client in [&a, &b] {
        let removed = client.rmdir(&call(), ROOT, b"d").await;
        assert!(matches!(removed, Err(ClientError::Refused(Refusal::NotEmpty))), "{removed:?}");
    }
}

#[tokio::test]
async fn names_survive_a_reply_that_is_lost_and_a_break_of_the_connection() {
    let cluster = Cluster::start(1, CHUNK).await;
    let client = cluster.client().await;
    let d = directory(&client, ROOT, b"d").await;
    client.sync_directory(&call(), d).await.unwrap();
    let file = client.create_open(&call(), d, b"f", 0o644, 0, true, ACCESS_BOTH).await.unwrap();
    cluster.master.faults.lose_replies.store(1, Ordering::SeqCst);
    client.sync_directory(&call(), d).await.unwrap();
    file.file.write(&call(), 0, vec![1; 10].into(), false).await.unwrap();
    cluster.master.disconnect();
    directory(&client, d, b"e").await;
    client.sync_directory(&call(), d).await.unwrap();
    let other = cluster.client().await;
    assert_eq!(names(&other, d).await, [b"e".to_vec(), b"f".to_vec()]);
    assert_eq!(other.lookup(&call(), d, b"f").await.unwrap().0.size, 10);
    let opened = cluster.master.hellos.lock().last().map(|hello| hello.reclaim.clone()).unwrap();
    assert!(opened.is_empty(), "the other session has nothing open: {opened:?}");
}

#[tokio::test]
async fn names_that_a_lost_session_had_not_told_are_lost_and_the_next_sync_says_so() {
    let cluster = Cluster::start(1, CHUNK).await;
    let client = cluster.client().await;
    let d = directory(&client, ROOT, b"d").await;
    client.sync_directory(&call(), d).await.unwrap();
    cluster.master.faults.mute.store(true, Ordering::SeqCst);
    directory(&client, d, b"lost").await;
    let old = client.session();
    cluster.master.expire(old);
    cluster.master.faults.mute.store(false, Ordering::SeqCst);
    until("a new session", || client.session() != old).await;
    let synced = client.sync_directory(&call(), d).await;
    assert!(matches!(synced, Err(ClientError::SessionLost { .. })), "{synced:?}");
    client.sync_directory(&call(), d).await.unwrap();
    assert_eq!(names(&client, d).await, Vec::<Vec<u8>>::new());
    directory(&client, d, b"again").await;
    assert_eq!(names(&client, d).await, [b"again".to_vec()]);
}

#[tokio::test]
async fn file_that_is_open_when_its_last_name_goes_is_told_to_be_open_before() {
    let cluster = Cluster::start(1, CHUNK).await;
    let client = cluster.client().await;
    let d = directory(&client, ROOT, b"d").await;
    let made = client.create_open(&call(), d, b"f", 0o644, 0, true, ACCESS_BOTH).await.unwrap();
    let inode = made.attributes.inode;
    client.unlink(&call(), d, b"f").await.unwrap();
    assert_eq!(client.get_attributes(&call(), inode).await.unwrap().0.links, 0);
    let opened = cluster.master.opened.lock().clone();
    assert!(opened.iter().any(|open| open.inode == inode.0 && open.known), "{opened:?}");
    let again = client.open(&call(), inode, ACCESS_READ).await;
    assert!(again.is_ok(), "{again:?}");
}
