//! Files against a master with the real state machine and chunk servers in memory.

use crate::support::chunks::{BLOCK, Fault};
use crate::support::{Cluster, call, until};
use bytes::Bytes;
use gfs_client::{Access, AttributeChanges, Client, ClientError, OpenFile, ROOT, Refusal, Zeroing};
use gfs_core::ids::{ServerId, SessionId};
use gfs_core::meta::request::{Lock, LockFamily, LockMode, LockOwner, LockRange};
use gfs_proto::v1::data_reply::Status;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

pub const CHUNK: u64 = 64 * 1024;

pub async fn create(client: &Client, name: &[u8]) -> OpenFile {
    client.create_open(&call(), ROOT, name, 0o644, 0, true, Access::Both).await.unwrap().file
}

pub async fn open(client: &Client, file: &OpenFile) -> OpenFile {
    client.open(&call(), file.inode(), Access::Both).await.unwrap().file
}

pub async fn size(client: &Client, file: &OpenFile) -> u64 {
    client.get_attributes(&call(), file.inode()).await.unwrap().0.size
}

/// Bytes that tell where they are.
pub fn pattern(from: u64, length: u64) -> Bytes {
    (from..from + length).map(|at| (at % 251) as u8 | 1).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn what_one_client_wrote_another_reads_over_borders_and_holes() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let file = create(&one, b"f").await;
    let other = open(&two, &file).await;
    assert!(other.read(&call(), 0, 100).await.unwrap().is_empty());
    // From the middle of chunk 1 to the middle of chunk 4; chunk 0 stays a hole.
    let (start, length) = (CHUNK + CHUNK / 2, 3 * CHUNK);
    file.write(&call(), start, pattern(start, length), false).await.unwrap();
    let all = other.read(&call(), 0, u64::from(u32::MAX)).await.unwrap();
    assert_eq!(all.len() as u64, start + length);
    assert!(all[..start as usize].iter().all(|byte| *byte == 0));
    assert_eq!(all[start as usize..], pattern(start, length)[..]);
    assert_eq!(other.read(&call(), start + length - 5, 100).await.unwrap(), pattern(start + length - 5, 5));
    assert!(other.read(&call(), start + length, 1).await.unwrap().is_empty());
    assert_eq!(size(&two, &other).await, start + length);
}

#[tokio::test]
async fn an_overwrite_is_seen_at_once_and_moves_only_times() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let file = create(&one, b"f").await;
    file.write(&call(), 0, pattern(0, 1000), false).await.unwrap();
    let other = open(&two, &file).await;
    let applied = cluster.master.applied.lock().len();
    for round in 0..20u8 {
        let (writer, reader) = if round % 2 == 0 { (&file, &other) } else { (&other, &file) };
        writer.write(&call(), 100, vec![round + 1; 300].into(), false).await.unwrap();
        assert_eq!(reader.read(&call(), 100, 300).await.unwrap(), vec![round + 1; 300]);
    }
    assert_eq!(cluster.master.applied.lock().len(), applied);
    assert_eq!(cluster.master.soft_times.load(Ordering::SeqCst), 20);
    assert_eq!(size(&one, &file).await, 1000);
}

#[tokio::test]
async fn sequential_writes_ask_the_master_for_nothing_but_their_commits() {
    let cluster = Cluster::start(2, 1 << 20).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    for at in 0..50 {
        file.write(&call(), at * 1000, pattern(at * 1000, 1000), false).await.unwrap();
    }
    // Create, one reservation or two, and a commit each.
    let applied = cluster.master.applied.lock().len();
    assert!((52..=53).contains(&applied), "{applied}");
    assert_eq!(file.read(&call(), 0, 1 << 20).await.unwrap(), pattern(0, 50_000));
}

#[tokio::test]
async fn parallel_writes_to_new_chunks_share_them() {
    let cluster = Cluster::start(2, 1 << 20).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    let mut writes = tokio::task::JoinSet::new();
    for part in 0..32u64 {
        let file = file.clone();
        writes.spawn(async move { file.write(&call(), part * 100_000, pattern(part * 100_000, 100_000), false).await });
    }
    while let Some(done) = writes.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(file.read(&call(), 0, 10_000_000).await.unwrap(), pattern(0, 3_200_000));
    let attached = cluster.master.state.lock().chunks().of_file(file.inode(), 0).count();
    assert_eq!(attached, 4);
    // Nothing was written twice: all writes to one new chunk went to the same one.
    assert_eq!(cluster.chunks.count("write"), 32 + 3);
}

#[tokio::test]
async fn a_damaged_answer_or_a_failing_disk_is_passed_over() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    file.write(&call(), 0, pattern(0, 5000), false).await.unwrap();
    for fault in
        [Fault::FlipBit, Fault::Answer(Status::Corrupt), Fault::Answer(Status::IoError), Fault::Answer(Status::NoLease)]
    {
        cluster.chunks.fail(None, "read", fault);
        assert_eq!(file.read(&call(), 0, 5000).await.unwrap(), pattern(0, 5000), "{fault:?}");
    }
}

#[tokio::test]
async fn a_silent_server_delays_a_read_only_by_the_hedge() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    file.write(&call(), 0, pattern(0, 5000), false).await.unwrap();
    let silent = cluster.chunks.servers.lock()[0];
    cluster.chunks.dead.lock().insert(silent);
    let started = std::time::Instant::now();
    for _ in 0..24 {
        assert_eq!(file.read(&call(), 0, 5000).await.unwrap(), pattern(0, 5000));
    }
    // Waiting for the server itself would take 2 s for each read that starts there: half of them.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[tokio::test]
async fn bytes_that_no_replica_has_whole_are_an_error_in_the_end() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    file.write(&call(), 0, pattern(0, 5000), false).await.unwrap();
    for _ in 0..6 {
        cluster.chunks.fail(None, "read", Fault::Answer(Status::Corrupt));
    }
    assert!(matches!(file.read(&call(), 0, 5000).await, Err(ClientError::Io { .. })));
    assert_eq!(file.read(&call(), 0, 5000).await.unwrap(), pattern(0, 5000));
}

#[tokio::test]
async fn a_write_whose_answer_is_unknown_is_repeated_and_applied_once() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    cluster.chunks.fail(None, "append", Fault::DoneButTimedOut);
    file.append(&call(), "one ".into(), false).await.unwrap();
    cluster.chunks.fail(None, "append", Fault::DoneButTimedOut);
    file.append(&call(), "two".into(), false).await.unwrap();
    assert_eq!(file.read(&call(), 0, 100).await.unwrap(), "one two");
}

#[tokio::test]
async fn a_primary_that_fails_is_replaced_under_the_write() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    file.write(&call(), 0, pattern(0, 1000), false).await.unwrap();
    let primary = primary(&cluster, &file);
    cluster.chunks.dead.lock().insert(primary);
    file.write(&call(), 500, vec![9; 100].into(), false).await.unwrap();
    assert_ne!(self::primary(&cluster, &file), primary);
    cluster.chunks.fail(None, "write", Fault::Answer(Status::Busy));
    file.write(&call(), 1000, vec![8; 100].into(), false).await.unwrap();
    assert_eq!(file.read(&call(), 500, 100).await.unwrap(), vec![9; 100]);
    assert_eq!(file.read(&call(), 1000, 1000).await.unwrap(), vec![8; 100]);
}

#[tokio::test]
async fn what_a_lost_session_had_on_its_way_is_not_sent_again_over_what_others_wrote() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (one, other) = (cluster.client().await, cluster.client().await);
    let file = create(&one, b"f").await;
    let theirs = open(&other, &file).await;
    theirs.write(&call(), 0, pattern(0, 1000), false).await.unwrap();
    let owner = LockOwner { session: Default::default(), owner: 7 };
    let range = LockRange { start: 0, end: u64::MAX };
    let lock = Lock { family: LockFamily::Flock, owner, pid: 1, mode: LockMode::Write, range };
    one.set_lock(&call(), file.inode(), lock, false).await.unwrap();
    for kind in ["write", "append", "zero"] {
        cluster.chunks.fail(None, kind, Fault::Silent);
        let under_way = tokio::spawn({
            let file = open(&one, &file).await;
            async move {
                match kind {
                    "write" => file.write(&call(), 0, vec![7; 1000].into(), false).await,
                    "append" => file.append(&call(), vec![7; 1000].into(), false).await.map(drop),
                    _ => file.zero_range(&call(), 0, 1000, Zeroing::Keep).await,
                }
            }
        });
        until("the request to get lost", || cluster.chunks.is_obeyed()).await;
        cluster.master.expire(one.session());
        theirs.write(&call(), 0, pattern(5, 1000), false).await.unwrap();
        let ended = under_way.await.unwrap();
        assert!(matches!(ended, Err(ClientError::SessionLost { .. })), "{kind}: {ended:?}");
        assert_eq!(theirs.read(&call(), 0, 5000).await.unwrap(), pattern(5, 1000), "{kind}");
        one.set_lock(&call(), file.inode(), lock, false).await.unwrap();
    }
}

fn primary(cluster: &Cluster, file: &OpenFile) -> ServerId {
    cluster.master.state.lock().chunks().at(file.inode(), 0).unwrap().configuration.primary
}

#[tokio::test]
async fn a_truncation_by_another_client_is_seen_and_writes_after_it_land() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let file = create(&one, b"f").await;
    file.write(&call(), 0, pattern(0, 3 * CHUNK), false).await.unwrap();
    let other = open(&two, &file).await;
    assert_eq!(other.read(&call(), 0, 10 * CHUNK).await.unwrap().len() as u64, 3 * CHUNK);
    let cut = |size| AttributeChanges { size: Some(size), ..AttributeChanges::default() };
    one.set_attributes(&call(), file.inode(), cut(100)).await.unwrap();
    assert_eq!(other.read(&call(), 0, 10 * CHUNK).await.unwrap(), pattern(0, 100));
    other.write(&call(), 2 * CHUNK, "far".into(), false).await.unwrap();
    let all = file.read(&call(), 0, 10 * CHUNK).await.unwrap();
    assert_eq!(all.len() as u64, 2 * CHUNK + 3);
    assert!(all[100..2 * CHUNK as usize].iter().all(|byte| *byte == 0));
    one.set_attributes(&call(), file.inode(), cut(0)).await.unwrap();
    other.write(&call(), 0, "new".into(), false).await.unwrap();
    assert_eq!(file.read(&call(), 0, 100).await.unwrap(), "new");
}

#[tokio::test]
async fn a_write_under_which_the_file_is_cut_leaves_nothing_hidden_beyond_its_end() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let file = create(&one, b"f").await;
    file.write(&call(), 0, pattern(0, 100), false).await.unwrap();
    (0..10_000).for_each(|_| cluster.chunks.fail(None, "write", Fault::Answer(Status::Busy)));
    let writing = tokio::spawn({
        let file = file.clone();
        async move { file.write(&call(), 80, vec![7; 10].into(), false).await }
    });
    until("an attempt", || cluster.chunks.ordered() < 10_000).await;
    let cut = AttributeChanges { size: Some(50), ..AttributeChanges::default() };
    two.set_attributes(&call(), file.inode(), cut).await.unwrap();
    cluster.chunks.forgive();
    writing.await.unwrap().unwrap();
    // The bytes landed after the cut, so they count: the file reaches over them.
    let all = file.read(&call(), 0, 1000).await.unwrap();
    assert_eq!(all.len(), 90);
    assert_eq!((&all[..50], &all[50..80], &all[80..]), (&pattern(0, 50)[..], &[0; 30][..], &[7; 10][..]));
}

#[tokio::test]
async fn a_write_that_a_cut_has_zeroed_before_its_size_was_told_is_done_again() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    for kind in ["write", "append"] {
        let file = create(&one, kind.as_bytes()).await;
        file.write(&call(), 0, pattern(0, 100), false).await.unwrap();
        // It lands, and its answer arrives only after the cut.
        cluster.chunks.fail(None, kind, Fault::DoneButTimedOut);
        (0..10_000).for_each(|_| cluster.chunks.fail(None, kind, Fault::Answer(Status::Busy)));
        let writing = tokio::spawn({
            let file = file.clone();
            async move {
                match kind {
                    "write" => file.write(&call(), 100, vec![7; 10].into(), false).await.map(|()| 100),
                    _ => file.append(&call(), vec![7; 10].into(), false).await,
                }
            }
        });
        until("an attempt after it landed", || cluster.chunks.ordered() < 10_000).await;
        let cut = AttributeChanges { size: Some(50), ..AttributeChanges::default() };
        two.set_attributes(&call(), file.inode(), cut).await.unwrap();
        cluster.chunks.forgive();
        let at = writing.await.unwrap().unwrap() as usize;
        let all = file.read(&call(), 0, 1000).await.unwrap();
        assert_eq!((at, all.len()), if kind == "write" { (100, 110) } else { (50, 60) }, "{kind}");
        assert_eq!(all[..50], pattern(0, 50));
        assert!(all[50..at].iter().all(|byte| *byte == 0));
        assert_eq!(all[at..], [7; 10], "{kind}");
    }
}

#[tokio::test]
async fn a_write_in_place_that_was_seen_before_a_cut_is_not_done_again_after_it() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    for left in [0, 50] {
        let file = create(&one, format!("left {left}").as_bytes()).await;
        let size = |size| AttributeChanges { size: Some(size), ..AttributeChanges::default() };
        file.write(&call(), 0, pattern(0, 100), false).await.unwrap();
        one.set_attributes(&call(), file.inode(), size(3 * BLOCK)).await.unwrap();
        let other = open(&two, &file).await;
        // It fills a hole, of which the master is told after the answer.
        cluster.chunks.fail(None, "write", Fault::DoneAndLate);
        let writing = tokio::spawn({
            let file = file.clone();
            async move { file.write(&call(), 2 * BLOCK, vec![7; 10].into(), false).await }
        });
        until("it is done", || cluster.chunks.late() > 0).await;
        assert_eq!(other.read(&call(), 2 * BLOCK, 10).await.unwrap(), vec![7; 10]);
        two.set_attributes(&call(), file.inode(), size(left)).await.unwrap();
        cluster.chunks.answer();
        writing.await.unwrap().unwrap();
        for file in [&file, &other] {
            let found = file.read(&call(), 0, CHUNK).await.unwrap();
            assert!(found == pattern(0, left), "{} bytes after a cut to {left}", found.len());
        }
    }
}

#[tokio::test]
async fn sync_reaches_each_written_chunk_once_and_what_failed_again() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    file.write(&call(), 0, pattern(0, 3 * CHUNK), false).await.unwrap();
    file.sync(&call(), false).await.unwrap();
    assert_eq!(cluster.chunks.count("sync"), 3);
    file.sync(&call(), false).await.unwrap();
    assert_eq!(cluster.chunks.count("sync"), 3);
    // Written over one handle, synced over another, after the first was closed.
    let second = open(&client, &file).await;
    file.write(&call(), 0, "x".into(), false).await.unwrap();
    file.close();
    cluster.chunks.fail(None, "sync", Fault::Answer(Status::NoSpace));
    assert!(matches!(second.sync(&call(), true).await, Err(ClientError::NoSpace)));
    second.sync(&call(), true).await.unwrap();
    assert_eq!(cluster.chunks.count("sync"), 4);
}

#[tokio::test]
async fn sync_all_reaches_files_that_are_closed() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    for name in [b"a", b"b", b"c"] {
        create(&client, name).await.write(&call(), 0, "data".into(), false).await.unwrap();
    }
    client.sync_all(&call()).await.unwrap();
    assert_eq!(cluster.chunks.count("sync"), 3);
    client.sync_all(&call()).await.unwrap();
    assert_eq!(cluster.chunks.count("sync"), 3);
}

#[tokio::test]
async fn holes_and_data_are_found_and_ranges_zeroed() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    assert_eq!(file.seek(&call(), 0, false).await.unwrap(), None);
    file.write(&call(), 2 * CHUNK, pattern(0, CHUNK), false).await.unwrap();
    file.allocate(&call(), 0, 5 * CHUNK, false).await.unwrap();
    assert_eq!(size(&client, &file).await, 5 * CHUNK);
    assert_eq!(file.seek(&call(), 10, false).await.unwrap(), Some(2 * CHUNK));
    assert_eq!(file.seek(&call(), 10, true).await.unwrap(), Some(10));
    assert_eq!(file.seek(&call(), 2 * CHUNK + 7, true).await.unwrap(), Some(3 * CHUNK));
    assert_eq!(file.seek(&call(), 3 * CHUNK, false).await.unwrap(), None);
    assert_eq!(file.seek(&call(), 5 * CHUNK, true).await.unwrap(), None);
    file.zero_range(&call(), 2 * CHUNK + 100, 6 * CHUNK, Zeroing::Punch).await.unwrap();
    assert_eq!(size(&client, &file).await, 5 * CHUNK);
    let part = file.read(&call(), 2 * CHUNK, 200).await.unwrap();
    assert_eq!((&part[..100], &part[100..]), (&pattern(0, 100)[..], &[0; 100][..]));
    file.zero_range(&call(), 5 * CHUNK, 10, Zeroing::Grow).await.unwrap();
    assert_eq!(size(&client, &file).await, 5 * CHUNK + 10);
}

#[tokio::test]
async fn filled_and_punched_holes_are_told_at_once_and_overwrites_are_not() {
    let cluster = Cluster::start(2, CHUNK).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let blocks = async |client: &Client, file: &OpenFile| {
        client.get_attributes(&call(), file.inode()).await.unwrap().0.allocated / 4096
    };
    let file = create(&one, b"f").await;
    file.write(&call(), 2 * CHUNK - 1, pattern(0, 2), false).await.unwrap();
    assert_eq!(blocks(&two, &file).await, 2);
    let other = open(&two, &file).await;
    let applied = || cluster.master.applied.lock().len();
    for (writer, at, length, more) in [(&other, 2 * CHUNK - 1, 1, 0), (&other, CHUNK, 8192, 1), (&file, CHUNK, 100, 0)]
    {
        let before = applied();
        writer.write(&call(), at, pattern(at, length), false).await.unwrap();
        assert_eq!(applied() - before, more, "{length} bytes at {at}");
    }
    assert_eq!((blocks(&one, &file).await, blocks(&two, &file).await), (4, 4));
    file.zero_range(&call(), CHUNK, 5000, Zeroing::Punch).await.unwrap();
    assert_eq!((blocks(&one, &file).await, blocks(&two, &file).await), (3, 3));
    file.append(&call(), pattern(0, 4096), false).await.unwrap();
    assert_eq!(blocks(&two, &file).await, 4, "the last block and another");
    other.allocate(&call(), 0, 10 * 4096, true).await.unwrap();
    assert_eq!(blocks(&one, &file).await, 10, "promised to a file that holds less");
    other.zero_range(&call(), 0, 4096, Zeroing::Punch).await.unwrap();
    assert_eq!(blocks(&one, &file).await, 9);
}

#[tokio::test]
async fn a_full_server_is_passed_over_for_new_chunks_and_told_for_old_ones() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    cluster.chunks.fail(None, "write", Fault::Answer(Status::NoSpace));
    file.write(&call(), 0, "one".into(), false).await.unwrap();
    cluster.chunks.fail(None, "write", Fault::Answer(Status::NoSpace));
    assert!(matches!(file.write(&call(), 0, "two".into(), false).await, Err(ClientError::NoSpace)));
    assert_eq!(file.read(&call(), 0, 10).await.unwrap(), "one");
}

#[tokio::test]
async fn offsets_that_no_file_can_have_are_refused() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    for offset in [u64::MAX - 1, i64::MAX as u64, CHUNK * (1 << 33)] {
        let written = file.write(&call(), offset, "x".into(), false).await;
        assert!(matches!(written, Err(ClientError::Refused(Refusal::TooLarge))), "{offset}");
        assert!(file.read(&call(), offset, 10).await.unwrap().is_empty());
    }
}

/// A record that can be checked: its writer, number and length, and bytes that follow from them.
fn record(writer: u8, number: u16, length: usize) -> Bytes {
    let mut bytes = vec![0xee, writer];
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    bytes.resize(length, writer ^ (number as u8) | 1);
    bytes.into()
}

fn check_records(all: &[u8]) -> BTreeMap<u8, Vec<u16>> {
    let (mut at, mut found) = (0, BTreeMap::<u8, Vec<u16>>::new());
    while at < all.len() {
        assert_eq!(all[at], 0xee, "no record at {at} of {}", all.len());
        let (writer, number) = (all[at + 1], u16::from_be_bytes([all[at + 2], all[at + 3]]));
        let length = u32::from_be_bytes(all[at + 4..at + 8].try_into().unwrap()) as usize;
        assert_eq!(all[at..at + length], record(writer, number, length)[..], "record {number} of {writer} at {at}");
        found.entry(writer).or_default().push(number);
        at += length;
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_writers_on_two_clients_append_whole_records_over_chunk_borders() {
    const RECORDS: u16 = 120;
    let cluster = Cluster::start(2, 16 * 1024).await;
    let (one, two) = (cluster.client().await, cluster.client().await);
    let file = create(&one, b"log").await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4u8 {
        let file = open(if writer % 2 == 0 { &one } else { &two }, &file).await;
        writers.spawn(async move {
            for number in 0..RECORDS {
                let length = 8 + (usize::from(number) * 131 + usize::from(writer) * 977) % 5000;
                file.append(&call(), record(writer, number, length), false).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let all = read_all(&open(&two, &file).await).await;
    let found = check_records(&all);
    for writer in 0..4 {
        assert_eq!(found[&writer], (0..RECORDS).collect::<Vec<_>>(), "records of {writer}, each once and in order");
    }
    assert!(all.len() > 10 * 16 * 1024, "{}", all.len());
}

pub async fn read_all(file: &OpenFile) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let part = file.read(&call(), all.len() as u64, 1 << 20).await.unwrap();
        if part.is_empty() {
            return all;
        }
        all.extend_from_slice(&part);
    }
}

#[tokio::test]
async fn an_append_tells_where_it_landed_and_starts_behind_a_hole() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    assert_eq!(file.append(&call(), "abc".into(), false).await.unwrap(), 0);
    let grown = AttributeChanges { size: Some(2 * CHUNK - 1), ..AttributeChanges::default() };
    client.set_attributes(&call(), file.inode(), grown).await.unwrap();
    assert_eq!(file.append(&call(), "xyz".into(), false).await.unwrap(), 2 * CHUNK - 1);
    assert_eq!(file.read(&call(), 2 * CHUNK - 2, 10).await.unwrap(), b"\0xyz"[..]);
    // Exactly to a border, and on from there.
    let rest = CHUNK - 2;
    assert_eq!(file.append(&call(), pattern(0, rest), false).await.unwrap(), 2 * CHUNK + 2);
    assert_eq!(file.append(&call(), "next".into(), false).await.unwrap(), 3 * CHUNK);
    assert_eq!(size(&client, &file).await, 3 * CHUNK + 4);
}

#[tokio::test]
async fn a_crossing_that_a_client_left_behind_is_taken_over() {
    let cluster = Cluster::start(2, CHUNK).await;
    cluster.master.lease_ms.store(400, Ordering::SeqCst);
    let (dead, alive) = (cluster.client().await, cluster.client().await);
    let file = create(&dead, b"f").await;
    let head = CHUNK - 100;
    file.append(&call(), pattern(0, head), false).await.unwrap();
    let other = open(&alive, &file).await;
    // The first part of its record fills the tail; the second never arrives, and neither does its farewell.
    cluster.chunks.fail(None, "write", Fault::Silent);
    let crossing = tokio::spawn({
        let file = file.clone();
        async move { file.append(&call(), vec![0xaa; 300].into(), false).await }
    });
    until("the claim of the tail", || cluster.chunks.count("append") >= 1 && tail_is_full(&cluster)).await;
    // Closed first, so that it cannot give its claim back.
    cluster.master.expire(dead.session());
    dead.close().await;
    crossing.abort();
    assert_eq!(size(&alive, &other).await, head);
    let started = std::time::Instant::now();
    assert_eq!(other.append(&call(), vec![0xbb; 250].into(), false).await.unwrap(), head);
    assert!(
        started.elapsed().as_millis() >= 440,
        "nobody may take over before the lease is over: {:?}",
        started.elapsed()
    );
    let all = read_all(&other).await;
    assert_eq!(all.len() as u64, head + 250);
    assert_eq!(all[head as usize..], [0xbb; 250]);
    for _ in 0..3 {
        other.append(&call(), pattern(0, CHUNK / 2), false).await.unwrap();
    }
    assert_eq!(size(&alive, &other).await, head + 250 + 3 * (CHUNK / 2));
    let end = read_all(&other).await;
    assert_eq!(end[(head + 250) as usize..(head + 250 + CHUNK / 2) as usize], pattern(0, CHUNK / 2)[..]);
}

fn tail_is_full(cluster: &Cluster) -> bool {
    cluster.chunks.tails().contains(&CHUNK)
}

#[tokio::test]
async fn a_crossing_that_is_called_off_gives_the_tail_back() {
    let cluster = Cluster::start(2, CHUNK).await;
    cluster.master.lease_ms.store(60_000, Ordering::SeqCst);
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    let head = CHUNK - 100;
    file.append(&call(), pattern(0, head), false).await.unwrap();
    cluster.chunks.fail(None, "write", Fault::Silent);
    let crossing = tokio::spawn({
        let file = file.clone();
        async move { file.append(&call(), vec![0xaa; 300].into(), false).await }
    });
    until("the claim of the tail", || tail_is_full(&cluster)).await;
    crossing.abort();
    assert!(crossing.await.unwrap_err().is_cancelled());
    let started = std::time::Instant::now();
    assert_eq!(file.append(&call(), vec![0xbb; 250].into(), false).await.unwrap(), head);
    assert!(started.elapsed().as_secs() < 30, "it waited for the end of a lease: {:?}", started.elapsed());
    assert_eq!(read_all(&file).await[head as usize..], [0xbb; 250]);
}

#[tokio::test]
async fn a_write_under_way_when_its_session_ends_happens_in_the_next_one() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    file.write(&call(), 0, pattern(0, 5000), false).await.unwrap();
    let old = client.session();
    cluster.master.expire(old);
    file.write(&call(), 100, pattern(7, 50), false).await.unwrap();
    assert_ne!(client.session(), old);
    assert_eq!(file.read(&call(), 100, 50).await.unwrap(), pattern(7, 50));
}

#[tokio::test]
async fn a_write_under_a_lock_that_its_session_lost_does_not_happen() {
    let cluster = Cluster::start(2, CHUNK).await;
    let client = cluster.client().await;
    let file = create(&client, b"f").await;
    file.write(&call(), 0, pattern(0, 5000), false).await.unwrap();
    let owner = LockOwner { session: SessionId(0), owner: 7 };
    let range = LockRange { start: 0, end: u64::MAX };
    let lock = Lock { family: LockFamily::Flock, owner, pid: 1, mode: LockMode::Write, range };
    client.set_lock(&call(), file.inode(), lock, false).await.unwrap();
    let writes = cluster.chunks.count("write");
    // Both are on their way when the session ends.
    cluster.chunks.fail(None, "write", Fault::Silent);
    cluster.chunks.fail(None, "write", Fault::Silent);
    let under_way = [0, 200].map(|offset| {
        let file = file.clone();
        tokio::spawn(async move { file.write(&call(), offset, pattern(7, 50), false).await })
    });
    until("both are sent", || cluster.chunks.is_obeyed()).await;
    cluster.master.expire(client.session());
    for write in under_way {
        assert!(matches!(write.await.unwrap(), Err(ClientError::SessionLost { .. })));
    }
    assert_eq!(cluster.chunks.count("write"), writes);
    // Both have told of it.
    file.write(&call(), 0, pattern(1, 50), false).await.unwrap();
}
