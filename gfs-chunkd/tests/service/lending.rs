//! Replicas that are lent to clients of this machine: what is read in place is what is committed.

use crate::common::{CHUNK, Cluster, PATIENCE, eventually, pattern};
use gfs_core::ids::{ChunkHandle, ClusterId, ServerId};
use gfs_local::layout::Geometry;
use gfs_local::{LedgerView, LentReplica, Unread, ledger, words};
use gfs_proto::v1::{self, data_request::Op};
use rustix::process::Signal;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

const H: u64 = 0x5001;

/// Asks a server for a replica once.
fn try_borrow(cluster: &Cluster, server: u32, handle: u64) -> Option<LentReplica> {
    let address = words::address(ClusterId(cluster.master.cluster), ServerId(server as u16)).unwrap();
    // One that has just started may not listen yet.
    let mut stream = UnixStream::connect_addr(&address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&words::encode_ask(ChunkHandle(handle))).unwrap();
    let (answer, file) = words::receive_answer(&stream).unwrap();
    let terms = words::decode_answer(&answer).unwrap()?;
    let page = LedgerView::open(&ledger::path_of(terms.server), terms.incarnation).unwrap();
    let geometry = Geometry { chunk_size: terms.chunk_size };
    Some(LentReplica::new(file.unwrap().into(), geometry, terms.length, terms.loan, Arc::new(page)))
}

/// Asks until it is lent.
async fn borrow(cluster: &Cluster, server: u32, handle: u64) -> LentReplica {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(lent) = try_borrow(cluster, server, handle) {
            return lent;
        }
        assert!(Instant::now() < end, "server {server} does not lend");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// The chunk is no more, and a server is told to delete its replica.
fn remove(cluster: &Cluster, server: u32) {
    let epoch = cluster.master.configuration(H).epoch;
    cluster.master.remove(H);
    let delete = vec![v1::Delete { handle: H, epoch }];
    cluster.master.order(server, v1::MasterOrder { delete, ..v1::MasterOrder::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lent_replica_is_what_is_committed_and_a_write_ends_the_loan_before_it_is_answered() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let mut expected = pattern(1, 1 << 20);
    cluster.write(H, 0, &expected).await;
    for round in 0..20 {
        let mut lent = Vec::new();
        for server in [1, 2, 3] {
            let replica = borrow(&cluster, server, H).await;
            assert_eq!(replica.read(0, 1 << 20, true).unwrap(), expected, "round {round}, server {server}");
            assert_eq!(replica.read(4000, 5000, true).unwrap(), expected[4000..9000]);
            assert_eq!(replica.read(CHUNK - 10, 10, true).unwrap(), vec![0; 10]);
            lent.push(replica);
        }
        // Small ones wait in the journal before they are put in place.
        let (at, length) = ((round * 7001) as usize, 1 + 300 * round as usize);
        let change = pattern(round + 2, length);
        cluster.write(H, at as u64, &change).await;
        expected[at..at + length].copy_from_slice(&change);
        for replica in lent {
            assert!(!replica.stands(), "round {round}");
            assert!(matches!(replica.read(at as u64, length, true), Err(Unread::Over | Unread::Damaged(_))));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_zeros_and_truncations_end_loans_too() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    cluster.write(H, 0, &pattern(1, 100_000)).await;
    let zero = |truncate| Op::Zero(v1::Zero { offset: 50_000, length: 20_000, truncate });
    let append = Op::Append(v1::Append { min_offset: 0, limit: CHUNK, crc: gfs_net::crc32c(b"x") });
    for (op, payload) in [(append, &b"x"[..]), (zero(false), b""), (zero(true), b"")] {
        let replica = borrow(&cluster, 2, H).await;
        assert!(replica.stands());
        cluster.mutate(H, op, payload).await;
        assert!(!replica.stands());
    }
    assert_eq!(borrow(&cluster, 2, H).await.read(49_990, 1000, true).unwrap()[10..], [0; 990]);
}

#[tokio::test(flavor = "multi_thread")]
async fn loans_end_with_another_configuration_and_with_the_chunk() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    cluster.write(H, 0, &pattern(1, 100_000)).await;
    let dropped = borrow(&cluster, 3, H).await;
    cluster.master.install(H, |known| known.members = vec![1, 2]);
    cluster.write(H, 0, b"without the third").await;
    eventually("the end of the loan", || !dropped.stands()).await;
    assert!(try_borrow(&cluster, 3, H).is_none(), "not a member");
    let kept = borrow(&cluster, 1, H).await;
    remove(&cluster, 1);
    eventually("the end of the loan", || !kept.stands()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loans_do_not_outlive_the_lease_nor_the_process() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    cluster.write(H, 0, &pattern(1, 100_000)).await;
    // Stopped, nothing changes what the page says but the time.
    let stopped = borrow(&cluster, 2, H).await;
    cluster.signal(2, Signal::STOP);
    eventually("the end of the lease", || !stopped.stands()).await;
    cluster.signal(2, Signal::CONT);
    let master = cluster.master.clone();
    eventually("a lease", || master.is_leased(2)).await;
    assert!(borrow(&cluster, 2, H).await.stands());
    assert!(!stopped.stands(), "the next lease does not bring it back");
    // Killed and started again within its lease.
    let killed = borrow(&cluster, 3, H).await;
    cluster.kill(3);
    cluster.start_server(3).await;
    assert!(!killed.stands());
    assert_eq!(borrow(&cluster, 3, H).await.read(0, 100_000, true).unwrap(), pattern(1, 100_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_has_borrowed_is_not_used_for_another_chunk() {
    let mut cluster = Cluster::start(1).await;
    cluster.master.allocate(H, &[1]);
    cluster.write(H, 0, &pattern(1, 5000)).await;
    let replica = borrow(&cluster, 1, H).await;
    remove(&cluster, 1);
    let master = cluster.master.clone();
    eventually("the deletion", || master.deleted(1, H)).await;
    for other in 1..20 {
        cluster.master.allocate(H + other, &[1]);
        cluster.write(H + other, 0, &pattern(other + 1, 5000)).await;
        assert_eq!(borrow(&cluster, 1, H + other).await.read(0, 5000, true).unwrap(), pattern(other + 1, 5000));
    }
    assert!(matches!(replica.read(0, 5000, true), Err(Unread::Over | Unread::Damaged(_))));
}
