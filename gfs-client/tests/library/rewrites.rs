//! Files that were there before and are held while they are written: writes cost no question, and others see them as if they had.

use crate::support::{Cluster, call, until};
use bytes::Bytes;
use gfs_client::{ACCESS_BOTH, AttributeChanges, Client, InodeId, OpenFile, ROOT};
use std::sync::atomic::Ordering;

const CHUNK: u64 = 64 << 10;
const SIZE: usize = 3 * CHUNK as usize;

/// A file of several chunks, made by another client.
async fn file(maker: &Client, name: &[u8]) -> InodeId {
    let made = maker.create_open(&call(), ROOT, name, 0o644, 0, true, ACCESS_BOTH).await.unwrap().file;
    made.write(&call(), 0, Bytes::from(vec![1; SIZE]), false).await.unwrap();
    made.sync(&call(), false).await.unwrap();
    made.close();
    made.inode()
}

async fn open(client: &Client, inode: InodeId) -> OpenFile {
    client.open(&call(), inode, ACCESS_BOTH).await.unwrap().file
}

/// Opens a file and writes until that is answered early; what it holds then.
async fn held(cluster: &Cluster, client: &Client, inode: InodeId, size: usize) -> (OpenFile, Vec<u8>) {
    let file = open(client, inode).await;
    let mut expected = vec![1; size];
    for round in 0..1_000_u32 {
        let before = cluster.chunks.count("write");
        let at = (round as usize * 7_001) % (size - 10);
        file.write_behind(&call(), at as u64, Bytes::from(vec![round as u8; 10]), false).await.unwrap();
        expected[at..at + 10].fill(round as u8);
        // There is one thread: nothing can be written between.
        if cluster.chunks.count("write") == before {
            return (file, expected);
        }
        // It is asked how much room there is.
        tokio::task::yield_now().await;
    }
    panic!("writes are never answered early");
}

#[tokio::test]
async fn writes_here_and_there_cost_the_master_nothing_and_others_see_them() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let inode = file(&other, b"f").await;
    let (file, mut expected) = held(&cluster, &client, inode, SIZE).await;
    let soft = cluster.master.soft_times.load(Ordering::SeqCst);
    for round in 0..300_usize {
        let at = (round * 7_919) % (SIZE - 100);
        file.write_behind(&call(), at as u64, Bytes::from(vec![round as u8; 100]), false).await.unwrap();
        expected[at..at + 100].fill(round as u8);
        if round % 50 == 0 {
            assert_eq!(file.read(&call(), 0, SIZE as u64).await.unwrap(), expected, "{round}");
        }
    }
    assert_eq!(cluster.master.soft_times.load(Ordering::SeqCst), soft);
    let seen = open(&other, inode).await;
    assert_eq!(seen.read(&call(), 0, SIZE as u64).await.unwrap(), expected);
    // The holder goes on as everybody does, and grows the file.
    file.write_behind(&call(), SIZE as u64 - 5, Bytes::from(vec![9; 10]), false).await.unwrap();
    expected.resize(SIZE + 5, 0);
    expected[SIZE - 5..].fill(9);
    file.sync(&call(), false).await.unwrap();
    assert_eq!(seen.read(&call(), 0, 2 * SIZE as u64).await.unwrap(), expected);
}

#[tokio::test]
async fn who_reads_a_file_while_it_is_given_back_sees_what_was_written_before() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let inode = file(&client, b"f").await;
    // How the file was before is known when it is taken, under a grant: nobody else has looked at it.
    let (file, mut expected) = held(&cluster, &client, inode, SIZE).await;
    expected.extend([9; 100]);
    let before = cluster.chunks.count("write");
    file.write_behind(&call(), SIZE as u64, Bytes::from(vec![9; 100]), false).await.unwrap();
    assert_eq!(cluster.chunks.count("write"), before, "it was not answered early");
    let faults = &cluster.master.faults;
    faults.mute.store(true, Ordering::SeqCst);
    // An open has it given back.
    let opener = client.clone();
    let opening = tokio::spawn(async move { open(&opener, inode).await });
    until("the flush to arrive", || faults.muted_flushes.load(Ordering::SeqCst) > 0).await;
    let reader = file.clone();
    let reading = tokio::spawn(async move { reader.read(&call(), 0, 2 * SIZE as u64).await.unwrap() });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    faults.mute.store(false, Ordering::SeqCst);
    cluster.master.disconnect();
    assert!(reading.await.unwrap() == expected, "the file as it was before it was held");
    opening.await.unwrap();
}

#[tokio::test]
async fn what_its_own_client_does_to_a_held_file_by_its_name_comes_after_what_was_written() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    for (name, cut) in [(b"a", false), (b"b", true)] {
        let inode = file(&other, name).await;
        let (file, mut expected) = held(&cluster, &client, inode, SIZE).await;
        if cut {
            let changes = AttributeChanges { size: Some(CHUNK + 77), ..AttributeChanges::default() };
            client.set_attributes(&call(), inode, changes).await.unwrap();
            expected.truncate(CHUNK as usize + 77);
        } else {
            client.unlink(&call(), ROOT, name).await.unwrap();
        }
        assert_eq!(file.read(&call(), 0, SIZE as u64).await.unwrap(), expected);
        file.write_behind(&call(), 3, Bytes::from(vec![7; 5]), false).await.unwrap();
        expected[3..8].fill(7);
        assert_eq!(file.read(&call(), 0, SIZE as u64).await.unwrap(), expected);
        file.sync(&call(), false).await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_was_cut_before_grows_while_it_is_held() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let inode = file(&other, b"f").await;
    let changes = AttributeChanges { size: Some(CHUNK + 77), ..AttributeChanges::default() };
    other.set_attributes(&call(), inode, changes).await.unwrap();
    let (file, _) = held(&cluster, &client, inode, CHUNK as usize + 77).await;
    let before = cluster.chunks.count("append");
    for _ in 0..20 {
        file.append(&call(), Bytes::from(vec![5; 100]), false).await.unwrap();
    }
    assert_eq!(cluster.chunks.count("append"), before);
    let seen = open(&other, inode).await.read(&call(), CHUNK + 77, 10_000).await.unwrap();
    assert_eq!(seen, vec![5; 2_000]);
}

#[tokio::test]
async fn the_last_writer_gives_it_back() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let inode = file(&other, b"f").await;
    let (file, _) = held(&cluster, &client, inode, SIZE).await;
    assert!(!cluster.master.state.lock().holds().is_empty());
    file.close();
    until("it is given back", || cluster.master.state.lock().holds().is_empty()).await;
    let told = cluster.master.state.lock().attributes(inode).unwrap();
    assert!(told.mtime > told.btime);
}
