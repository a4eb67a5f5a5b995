//! Writes that are answered before the replicas have them.

use crate::files::{CHUNK, create, open, pattern, read_all, size};
use crate::support::chunks::Fault;
use crate::support::{Cluster, call, until};
use gfs_client::{Client, ClientError, OpenFile, Refusal};
use gfs_proto::v1::data_reply::Status;
use std::sync::atomic::Ordering;

/// A new file of which writes are answered early: not before it is known how much room there is.
async fn held(cluster: &Cluster, client: &Client, name: &str) -> OpenFile {
    cluster.master.delegates.store(true, Ordering::SeqCst);
    for attempt in 0..1_000 {
        let file = create(client, format!("{name} {attempt}").as_bytes()).await;
        let before = cluster.chunks.count("write");
        file.write_behind(&call(), 0, pattern(0, 10), false).await.unwrap();
        // There is one thread: nothing can be written between.
        if cluster.chunks.count("write") == before {
            return file;
        }
        file.close();
    }
    panic!("writes are never answered early");
}

/// The same, of a size from which on large writes have a budget of their own; all of it is told.
async fn large(cluster: &Cluster, client: &Client) -> (OpenFile, u64) {
    let (file, size) = (held(cluster, client, "f").await, 5 << 20);
    file.write(&call(), size - 10, pattern(size - 10, 10), false).await.unwrap();
    file.sync(&call(), false).await.unwrap();
    (file, size)
}

#[tokio::test]
async fn what_is_answered_early_is_shown_written_as_one_and_told() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = held(&cluster, &client, "f").await;
    let before = cluster.chunks.count("write");
    for piece in 1..100 {
        file.write_behind(&call(), piece * 10, pattern(piece * 10, 10), false).await.unwrap();
    }
    assert_eq!(size(&client, &file).await, 1_000);
    assert_eq!(file.read(&call(), 0, 2_000).await.unwrap(), pattern(0, 1_000));
    let writes = cluster.chunks.count("write") - before;
    assert!(writes < 50, "{writes} writes of pieces that follow each other");
    let told = || cluster.master.state.lock().attributes(file.inode()).map(|attributes| attributes.size);
    file.sync(&call(), false).await.unwrap();
    assert_eq!(told(), Some(1_000));
    // In another order, over what was written: the last one counts.
    for (offset, length) in [(500, 700), (0, 600), (100, 5)] {
        file.write_behind(&call(), offset, pattern(offset + 7, length), false).await.unwrap();
    }
    let mut expected = pattern(0, 1_200).to_vec();
    for (offset, length) in [(500, 700), (0, 600), (100, 5_u64)] {
        expected[offset as usize..(offset + length) as usize].copy_from_slice(&pattern(offset + 7, length));
    }
    file.close();
    client.sync_all(&call()).await.unwrap();
    assert_eq!(told(), Some(1_200));
    let again = open(&client, &file).await;
    assert_eq!(again.read(&call(), 0, 2_000).await.unwrap(), expected);
}

#[tokio::test]
async fn what_was_answered_early_and_failed_is_told_once() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let no_space = || (0..20).for_each(|_| cluster.chunks.fail(None, "write", Fault::Answer(Status::NoSpace)));
    let file = held(&cluster, &client, "f").await;
    no_space();
    assert!(matches!(file.sync(&call(), false).await, Err(ClientError::NoSpace)));
    cluster.chunks.forgive();
    file.sync(&call(), false).await.unwrap();
    file.write_behind(&call(), 0, pattern(0, 100), false).await.unwrap();
    assert_eq!(file.read(&call(), 0, 100).await.unwrap(), pattern(0, 100));
    let closed = held(&cluster, &client, "closed").await;
    no_space();
    closed.close();
    assert!(matches!(client.sync_all(&call()).await, Err(ClientError::NoSpace)));
    cluster.chunks.forgive();
    client.sync_all(&call()).await.unwrap();
}

#[tokio::test]
async fn large_writes_are_under_way_together_and_become_part_of_the_file_in_order() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let (file, start) = large(&cluster, &client).await;
    let told = || cluster.master.state.lock().attributes(file.inode()).map(|attributes| attributes.size);
    let (piece, count) = (64_u64 << 10, 40);
    let before = cluster.chunks.count("write");
    // The first one is not answered, and sent again a second later.
    cluster.chunks.fail(None, "write", Fault::Silent);
    for number in 0..count {
        let offset = start + number * piece;
        file.write_behind(&call(), offset, pattern(offset, piece), false).await.unwrap();
    }
    until("others are written", || cluster.chunks.count("write") >= before + 4).await;
    assert_eq!(told(), Some(start), "not before the first one");
    file.sync(&call(), false).await.unwrap();
    assert_eq!(told(), Some(start + count * piece));
    file.close();
    client.sync_all(&call()).await.unwrap();
    let other = cluster.client().await;
    let again = open(&other, &file).await;
    for number in 0..count {
        let offset = start + number * piece;
        assert_eq!(again.read(&call(), offset, piece).await.unwrap(), pattern(offset, piece), "{number}");
    }
}

#[tokio::test]
async fn after_a_large_write_that_failed_no_later_one_counts_until_that_was_told() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let (file, start) = large(&cluster, &client).await;
    let piece = 64_u64 << 10;
    (0..500).for_each(|_| cluster.chunks.fail(None, "write", Fault::Answer(Status::NoSpace)));
    let mut refused = 0;
    for number in 0..20 {
        let offset = start + number * piece;
        refused += u32::from(file.write_behind(&call(), offset, pattern(offset, piece), false).await.is_err());
    }
    let synced = file.sync(&call(), false).await;
    cluster.chunks.forgive();
    assert_eq!(refused + u32::from(synced.is_err()), 1, "told once: {synced:?}");
    for number in 0..20 {
        let offset = start + number * piece;
        file.write_behind(&call(), offset, pattern(offset + 9, piece), false).await.unwrap();
    }
    file.sync(&call(), false).await.unwrap();
    for number in 0..20 {
        let offset = start + number * piece;
        assert_eq!(file.read(&call(), offset, piece).await.unwrap(), pattern(offset + 9, piece), "{number}");
    }
}

#[tokio::test]
async fn what_was_answered_early_is_not_written_after_its_session() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let file = held(&cluster, &client, "f").await;
    // On its way when the session ends: it is sent again after that.
    let before = cluster.chunks.count("write");
    cluster.chunks.fail(None, "write", Fault::Silent);
    until("the first try", || cluster.chunks.is_obeyed()).await;
    let old = client.session();
    cluster.master.expire(old);
    until("a new session", || client.session() != old).await;
    assert!(matches!(file.sync(&call(), false).await, Err(ClientError::SessionLost { .. })));
    assert_eq!(cluster.chunks.count("write"), before, "written after its session");
    let again = open(&other, &file).await;
    again.write(&call(), 0, "another's".into(), false).await.unwrap();
    file.write(&call(), 9, " and its own".into(), false).await.unwrap();
    assert_eq!(again.read(&call(), 0, 100).await.unwrap(), "another's and its own");
}

#[tokio::test]
async fn records_in_a_file_of_its_own_are_answered_early_and_those_of_others_come_after_them() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let file = held(&cluster, &client, "log").await;
    let before = (cluster.chunks.count("append"), cluster.chunks.count("write"));
    for number in 0..200 {
        let landed = file.append(&call(), pattern(10 + number * 30, 30), false).await.unwrap();
        assert_eq!(landed, 10 + number * 30);
    }
    assert_eq!(size(&client, &file).await, 6_010);
    assert_eq!(read_all(&file).await, pattern(0, 6_010));
    assert_eq!(cluster.chunks.count("append"), before.0, "asked a primary where the file ends");
    assert!(cluster.chunks.count("write") - before.1 < 100, "records one by one");
    file.sync(&call(), false).await.unwrap();
    file.close();
    client.sync_all(&call()).await.unwrap();
    let again = open(&other, &file).await;
    assert_eq!(again.append(&call(), "more".into(), false).await.unwrap(), 6_010);
}

#[tokio::test]
async fn write_beyond_the_longest_file_is_refused_also_where_it_would_wait() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = held(&cluster, &client, "f").await;
    for offset in [i64::MAX as u64, u64::MAX - 2] {
        let refused = file.write_behind(&call(), offset, pattern(0, 10), false).await;
        assert!(matches!(refused, Err(ClientError::Refused(Refusal::TooLarge))), "{offset}: {refused:?}");
    }
    assert_eq!(size(&client, &file).await, 10);
}
