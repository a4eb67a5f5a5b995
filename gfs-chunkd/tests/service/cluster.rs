//! Real chunk servers under a pretended master: writes, reads, kills, recovery.

use crate::common::{self, CHUNK, Chunkd, Cluster, SESSION, eventually, pattern};
use gfs_net::crc32c;
use gfs_proto::v1::{self, data_reply::Status, data_request::Op};
use std::time::Duration;

const H: u64 = 0x5001;

fn append(data: &[u8], min_offset: u64) -> Op {
    Op::Append(v1::Append { min_offset, limit: CHUNK, crc: crc32c(data) })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_at_every_member_and_nowhere_else() {
    let mut cluster = Cluster::start(4).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let large = pattern(1, 1 << 20);
    cluster.write(H, 0, &large).await;
    let small = pattern(2, 1000);
    cluster.write(H, 5000, &small).await;
    cluster.sync(H).await;
    let mut expected = large;
    expected[5000..6000].copy_from_slice(&small);
    for server in [1, 2, 3] {
        assert_eq!(cluster.read(server, H, 0, 1 << 20).await, expected);
        assert_eq!(cluster.read(server, H, 4999, 1002).await, expected[4999..6001]);
        assert_eq!(cluster.read(server, H, 2 << 20, 4096).await, vec![0; 4096]);
    }
    assert_eq!(cluster.read_with_lease(4, H, 0, 4096).await, Err(Status::NoChunk));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_lands_once_and_a_repeat_is_told_where() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let first = cluster.mutate(H, append(b"one", 0), b"one").await;
    let second = cluster.mutate(H, append(b"three", 0), b"three").await;
    assert_eq!((first.offset, second.offset), (0, 3));
    let again = cluster.mutate_as(H, 2, append(b"three", 0), b"three").await;
    assert_eq!((again.offset, again.sequence), (3, second.sequence));
    let full = cluster.mutate(H, append(b"x", CHUNK), b"x").await;
    assert_eq!((full.status(), full.offset), (Status::NoRoom, 8));
    assert_eq!(cluster.read(2, H, 0, 8).await, b"onethree"[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutation_is_told_how_much_of_the_chunk_is_stored() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let write = |offset, data: &[u8]| Op::Write(v1::Write { offset, crc: crc32c(data) });
    let stored = |reply: v1::DataReply| {
        let stored = reply.stored.expect("a count");
        (stored.blocks, stored.epoch, stored.sequence)
    };
    assert_eq!(stored(cluster.mutate(H, write(3_000_000, b"x"), b"x").await), (1, 1, 1));
    let large = pattern(1, 1 << 20);
    assert_eq!(stored(cluster.mutate(H, write(0, &large), &large).await), (257, 1, 2));
    assert_eq!(stored(cluster.mutate(H, write(5000, b"y"), b"y").await), (257, 1, 3));
    assert_eq!(stored(cluster.mutate(H, append(b"z", 4_000_000), b"z").await), (258, 1, 4));
    let punch = Op::Zero(v1::Zero { offset: 4096, length: 1 << 19, truncate: false });
    assert_eq!(stored(cluster.mutate(H, punch, b"").await), (130, 1, 5));
    cluster.kill(1);
    let master = cluster.master.clone();
    eventually("another primary", || master.fail_over(H)).await;
    let (blocks, epoch, sequence) = stored(cluster.mutate(H, write(4096, b"y"), b"y").await);
    assert_eq!((blocks, sequence), (131, 6), "the next primary counts the same");
    assert!(epoch > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_secondary_is_dropped_and_comes_back_by_recruitment() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let data = pattern(3, 600_000);
    cluster.write(H, 0, &data).await;
    cluster.kill(3);
    let more = pattern(4, 100_000);
    cluster.write(H, 50_000, &more).await;
    assert_eq!(cluster.master.configuration(H).members, vec![1, 2]);
    cluster.start_server(3).await;
    cluster.master.install(H, |known| known.syncing = vec![3]);
    let last = pattern(5, 70_000);
    cluster.write(H, 3_000_000, &last).await;
    let master = cluster.master.clone();
    eventually("a promotion", || master.configuration(H).members == vec![1, 2, 3]).await;
    let mut expected = data;
    expected[50_000..150_000].copy_from_slice(&more);
    assert_eq!(cluster.read(3, H, 0, 600_000).await, expected);
    assert_eq!(cluster.read(3, H, 3_000_000, 70_000).await, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_is_followed_by_a_member_that_has_everything() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    let data = pattern(6, 300_000);
    cluster.write(H, 0, &data).await;
    let placed = cluster.mutate(H, append(b"tail", 0), b"tail").await;
    let operation = cluster.operation;
    cluster.kill(1);
    let master = cluster.master.clone();
    eventually("a fail-over", || master.fail_over(H)).await;
    assert_eq!(cluster.master.configuration(H).primary, 2);
    let again = cluster.mutate_as(H, operation, append(b"tail", 0), b"tail").await;
    assert_eq!(again.offset, placed.offset);
    cluster.write(H, 1000, b"new").await;
    let mut expected = data;
    expected[1000..1003].copy_from_slice(b"new");
    for server in [2, 3] {
        assert_eq!(cluster.read(server, H, 0, 300_000).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_the_kill_of_every_server() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    cluster.write(H, 0, &pattern(7, 200_000)).await;
    cluster.write(H, 100, b"overwritten").await;
    cluster.master.attach(H, 77);
    for server in [1, 2, 3] {
        cluster.kill(server);
    }
    for server in [1, 2, 3] {
        cluster.start_server(server).await;
    }
    let mut expected = pattern(7, 200_000);
    expected[100..111].copy_from_slice(b"overwritten");
    for server in [1, 2, 3] {
        assert_eq!(cluster.read(server, H, 0, 200_000).await, expected);
    }
    cluster.write(H, 0, b"again").await;
    assert_eq!(cluster.read(2, H, 0, 5).await, b"again"[..]);
    let master = cluster.master.clone();
    eventually("a report", || master.reported(2, H).is_some_and(|held| held.epoch == 1 && !held.suspect)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_is_zeroed_on_all_members_and_a_tombstone_deletes() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    cluster.write(H, 0, &pattern(8, 100_000)).await;
    cluster.master.install(H, |_| {});
    let order = v1::ZeroTail { handle: H, epoch: 2, from: 5000, inode: 77, cut: 2 };
    cluster.master.order(1, v1::MasterOrder { zero_tail: vec![order], ..v1::MasterOrder::default() });
    let master = cluster.master.clone();
    eventually("the end of a shrink", || master.shrunk(H, 2)).await;
    let mut expected = pattern(8, 100_000);
    expected[5000..].fill(0);
    for server in [1, 2, 3] {
        assert_eq!(cluster.read(server, H, 0, 100_000).await, expected);
    }
    let placed = cluster.mutate(H, append(b"x", 0), b"x").await;
    assert_eq!(placed.offset, 5000);
    cluster.master.remove(H);
    for server in [1, 2, 3] {
        let delete = vec![v1::Delete { handle: H, epoch: 2 }];
        cluster.master.order(server, v1::MasterOrder { delete, ..v1::MasterOrder::default() });
        eventually("a deletion", || master.deleted(server, H)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_nothing_is_served() {
    let mut cluster = Cluster::start(1).await;
    cluster.master.allocate(H, &[1]);
    cluster.write(H, 0, b"alone").await;
    cluster.master.set_silent(true);
    let end = tokio::time::Instant::now() + common::PATIENCE;
    while cluster.read_once(1, H, 0, 5).await != Err(Status::NoLease) {
        assert!(tokio::time::Instant::now() < end, "still served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.master.set_silent(false);
    assert_eq!(cluster.read(1, H, 0, 5).await, b"alone"[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_does_not_wait_for_a_member_that_is_stopped() {
    let mut cluster = Cluster::start(3).await;
    cluster.master.allocate(H, &[1, 2, 3]);
    cluster.write(H, 0, b"to be flushed").await;
    cluster.signal(3, rustix::process::Signal::STOP);
    // Nothing else is sent to it.
    let answer = cluster.ask(1, common::sync(H, 1), bytes::Bytes::new());
    let master = cluster.master.clone();
    let left_out = eventually("the stopped member is left out", || !master.configuration(H).members.contains(&3));
    tokio::join!(answer, left_out);
    cluster.sync(H).await;
    cluster.signal(3, rustix::process::Signal::CONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_over_changes_nothing_and_hears_of_what_it_did() {
    let mut cluster = Cluster::start(1).await;
    cluster.master.allocate(H, &[1]);
    cluster.write(H, 0, b"before").await;
    let done = cluster.operation;
    let fences = v1::Fences { version: 7, next: SESSION + 2, live: vec![SESSION + 1] };
    cluster.master.order(1, v1::MasterOrder { fences: Some(fences), ..v1::MasterOrder::default() });
    let master = cluster.master.clone();
    eventually("the fences are taken", || master.fences(1) == 7).await;
    let write = |data: &[u8]| Op::Write(v1::Write { offset: 0, crc: crc32c(data) });
    let late = cluster.mutate_as(H, done + 1, write(b"after!"), b"after!").await;
    assert_eq!(late.status(), Status::Fenced);
    let repeated = cluster.mutate_as(H, done, write(b"before"), b"before").await;
    assert_eq!(repeated.status(), Status::Ok);
    assert_eq!(cluster.read(1, H, 0, 6).await, b"before"[..]);
    for other in [SESSION + 1, SESSION + 2] {
        let reply = cluster.mutate_in(other, H, 1, write(b"others"), b"others").await;
        assert_eq!(reply.status(), Status::Ok, "session {other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_directory_is_refused() {
    let cluster = Cluster::start(1).await;
    let dir = cluster.dirs[0].path().to_owned();
    let master = cluster.master.address.clone();
    let second = tokio::task::spawn_blocking(move || {
        std::process::Command::new(env!("CARGO_BIN_EXE_gfs-chunkd"))
            .args([
                "--listen",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--config",
                "/dev/null",
                "--master",
                &master,
                "--data",
            ])
            .arg(dir)
            .output()
            .expect("it runs")
    });
    let output = second.await.expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.lines().any(|line| line.starts_with("gfs-chunkd: ") && line.contains("in use")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_in_order_with_code_0() {
    let mut cluster = Cluster::start(1).await;
    cluster.master.allocate(H, &[1]);
    cluster.write(H, 0, b"kept").await;
    let server: Chunkd = cluster.servers[0].take().expect("running");
    let code = tokio::task::spawn_blocking(move || server.stop()).await.expect("ended");
    assert_eq!(code, Some(0));
    cluster.start_server(1).await;
    assert_eq!(cluster.read(1, H, 0, 4).await, b"kept"[..]);
}
