//! Small files that are read ahead: fewer waits, and never anything old.

use crate::support::{Cluster, call, until};
use bytes::Bytes;
use gfs_client::{Access, Client, InodeId, Pages, ROOT};

const CHUNK: u64 = 64 * 1024;
const FILES: u8 = 40;

/// A writer that has made small files, and another client that will read them.
async fn files(cluster: &Cluster) -> (Client, Client, Vec<InodeId>) {
    let (writer, reader) = (cluster.client().await, cluster.client().await);
    let mut made = Vec::new();
    for n in 0..FILES {
        let opened = writer.create_open(&call(), ROOT, &[b'f', n + 48], 0o644, 0, true, Access::Both).await.unwrap();
        opened.file.write(&call(), 0, vec![n; 1000].into(), false).await.unwrap();
        made.push(opened.attributes.inode);
    }
    (writer, reader, made)
}

async fn read(client: &Client, inode: InodeId) -> Bytes {
    let opened = client.open_cached(&call(), inode, Access::Read, Pages::IfAlone).await.unwrap();
    opened.file.read(&call(), 0, 5000).await.unwrap()
}

/// Reads the first six, and waits until others are read ahead.
async fn read_some(cluster: &Cluster, reader: &Client, made: &[InodeId]) {
    reader.read_directory(&call(), ROOT, 0, 1000).await.unwrap();
    for inode in &made[..6] {
        read(reader, *inode).await;
    }
    until("the next ones are read", || reads(cluster) > 8).await;
}

fn reads(cluster: &Cluster) -> usize {
    cluster.chunks.count("read")
}

#[tokio::test]
async fn files_that_are_read_in_the_order_of_a_listing_are_read_ahead() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (_writer, reader, made) = files(&cluster).await;
    let (entries, ..) = reader.read_directory(&call(), ROOT, 0, 1000).await.unwrap();
    let order: Vec<InodeId> = entries.into_iter().map(|entry| entry.attributes.inode).collect();
    assert_eq!(order.len(), made.len());
    for (at, inode) in order.iter().enumerate() {
        let n = made.iter().position(|one| one == inode).unwrap() as u8;
        assert_eq!(read(&reader, *inode).await, vec![n; 1000]);
        if at == 5 {
            until("the next ones are read", || reads(&cluster) > at + 2).await;
        }
    }
    // The first ones may be asked for while they are being read.
    assert!(reads(&cluster) < made.len() + 6, "{}", reads(&cluster));
}

#[tokio::test]
async fn what_another_client_has_changed_since_is_not_given_out() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (writer, reader, made) = files(&cluster).await;
    read_some(&cluster, &reader, &made).await;
    for inode in &made[6..] {
        let opened = writer.open(&call(), *inode, Access::Both).await.unwrap();
        opened.file.write(&call(), 0, vec![200; 1000].into(), false).await.unwrap();
        drop(opened);
        assert_eq!(read(&reader, *inode).await, vec![200; 1000]);
    }
}

#[tokio::test]
async fn what_this_client_has_changed_since_is_not_given_out() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (_writer, reader, made) = files(&cluster).await;
    read_some(&cluster, &reader, &made).await;
    for inode in &made[6..] {
        let opened = reader.open(&call(), *inode, Access::Both).await.unwrap();
        opened.file.write(&call(), 100, vec![200; 10].into(), false).await.unwrap();
        drop(opened);
        assert_eq!(read(&reader, *inode).await[100..110], [200; 10]);
    }
}
