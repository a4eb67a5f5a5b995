//! The log, the machine and the batcher together, on a real directory.

use super::log_store::{LogStore, LogStoreError};
use super::machine::Machine;
use super::raft::{CheckpointPolicy, RaftConsensus, StartError};
use super::types::{StorageError, StoredMembership, TypeConfig};
use super::{Consensus, ConsensusError};
use crate::checkpoint::{self, Frozen};
use crate::data_dir::{DataDir, FormatOptions};
use gfs_core::ids::{ClusterId, OperationId, ROOT, SessionId};
use gfs_core::meta::command::{Command, CommandReply};
use gfs_core::meta::request::{ClientCommand, Credentials, NodeKind, Reply, Request, Timestamp, XattrMode};
use gfs_core::meta::state::State;
use gfs_log::{LogError, LogOptions};
use openraft::testing::{StoreBuilder, Suite};
use std::path::Path;
use std::sync::Arc;

const FORMAT: FormatOptions = FormatOptions { chunk_size: 1 << 20, replicas: 3 };
const NEVER: CheckpointPolicy = CheckpointPolicy { log_bytes: u64::MAX, entries: u64::MAX, inodes_an_entry: 0 };

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { name: "log".into(), ..LogOptions::default() };
        let log = LogStore::open(&dir.path().join("log"), options).unwrap();
        let cluster = ClusterId(3);
        let state = State::format(cluster, 1 << 20, 3, 0o755, Timestamp(1));
        let start = Frozen { state, last: None, membership: StoredMembership::default(), clock: Timestamp(1) };
        let machine = Machine::new(dir.path().to_owned(), cluster, start, log.clone());
        Ok((dir, log, machine))
    }
}

#[test]
fn the_storage_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).unwrap();
}

async fn start(path: &Path, policy: CheckpointPolicy) -> RaftConsensus {
    try_start(path, policy).await.unwrap()
}

async fn try_start(path: &Path, policy: CheckpointPolicy) -> Result<RaftConsensus, StartError> {
    loop {
        let dir = DataDir::open(path, FORMAT, None).unwrap();
        match RaftConsensus::start(dir, policy).await {
            // The tasks of the raft before this one let go of the log a moment after its shutdown.
            Err(StartError::Log(LogStoreError::Log(LogError::Locked { .. }))) => tokio::task::yield_now().await,
            started => return started,
        }
    }
}

async fn open_session(raft: &RaftConsensus, nonce: u64) -> SessionId {
    let command = Command::OpenSession { nonce, description: "test".into() };
    match raft.propose(command).await.unwrap() {
        CommandReply::Session(session) => session,
        other => panic!("{other:?}"),
    }
}

fn create(session: SessionId, operation: u64) -> Command {
    Command::Client(ClientCommand {
        id: OperationId { session, operation },
        confirmed: 0,
        credentials: Credentials::default(),
        request: Request::Create {
            parent: ROOT,
            name: format!("file-{operation}").into_bytes(),
            kind: NodeKind::File,
            mode: 0o644,
            umask: 0,
            exclusive: true,
            hold: false,
        },
    })
}

async fn fill(raft: &Arc<RaftConsensus>, session: SessionId, range: std::ops::Range<u64>) {
    let mut tasks = tokio::task::JoinSet::new();
    for operation in range {
        let raft = raft.clone();
        tasks.spawn(async move { raft.propose(create(session, operation)).await.unwrap() });
    }
    while let Some(reply) = tasks.join_next().await {
        let reply = reply.unwrap();
        assert!(matches!(reply, CommandReply::Client(Reply::Entry { created: true, .. })), "{reply:?}");
    }
}

/// Stops and starts again: the state is as before.
async fn the_same_after_a_restart(raft: Arc<RaftConsensus>, dir: &Path) -> RaftConsensus {
    let hash = raft.machine().state().hash();
    raft.shutdown().await;
    drop(raft);
    let again = start(dir, NEVER).await;
    assert_eq!(again.machine().state().hash(), hash);
    again
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_gives_the_same_state_and_concurrent_commands_share_entries() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Arc::new(start(dir.path(), NEVER).await);
    let session = open_session(&raft, 1).await;
    let before = raft.metrics().log_index;
    fill(&raft, session, 1..401).await;
    let entries = raft.metrics().log_index - before;
    assert!(entries < 200, "400 concurrent commands took {entries} entries");
    let clock = raft.machine().clock();
    let again = the_same_after_a_restart(raft, dir.path()).await;
    assert!(again.machine().clock() >= clock);
    let replay = again.propose(create(session, 400)).await.unwrap();
    assert!(matches!(replay, CommandReply::Client(Reply::Entry { created: true, .. })), "{replay:?}");
    assert_eq!(again.machine().state().counts().namespace.files, 400);
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_from_checkpoints_gives_the_same_state_also_when_the_newest_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Arc::new(start(dir.path(), CheckpointPolicy { entries: 1, ..NEVER }).await);
    let session = open_session(&raft, 1).await;
    for round in 0..3 {
        fill(&raft, session, round * 50 + 1..round * 50 + 51).await;
        assert!(raft.checkpoint_due());
        raft.checkpoint().await.unwrap();
        assert!(!raft.checkpoint_due());
    }
    fill(&raft, session, 151..161).await;
    let hash = raft.machine().state().hash();
    assert!(raft.metrics().checkpoint_index > 0);
    raft.shutdown().await;
    drop(raft);
    let files = checkpoint::list(dir.path()).unwrap();
    assert_eq!(files.len(), 2);
    let again = start(dir.path(), NEVER).await;
    assert_eq!(again.machine().state().hash(), hash);
    again.shutdown().await;
    drop(again);
    let mut bytes = std::fs::read(&files[0].1).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&files[0].1, bytes).unwrap();
    let fallen_back = Arc::new(start(dir.path(), NEVER).await);
    assert_eq!(fallen_back.machine().state().hash(), hash);
    assert!(!files[0].1.exists());
    fill(&fallen_back, session, 161..171).await;
    fallen_back.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_good_checkpoint_the_start_stops_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let raft = start(dir.path(), NEVER).await;
    raft.shutdown().await;
    drop(raft);
    for (_, path) in checkpoint::list(dir.path()).unwrap() {
        std::fs::write(path, b"nothing").unwrap();
    }
    let error = try_start(dir.path(), NEVER).await.err().unwrap().to_string();
    assert!(error.contains("no usable checkpoint") && !error.contains('\n'), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fits_no_entry_is_refused_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let raft = start(dir.path(), NEVER).await;
    let command = Command::OpenSession { nonce: 1, description: "x".repeat(17 << 20) };
    let error = raft.propose(command).await.unwrap_err();
    assert!(matches!(error, ConsensusError::TooLarge { .. }));
    assert_ne!(open_session(&raft, 2).await, SessionId(0));
    raft.shutdown().await;
    let after = raft.propose(create(SessionId(1), 1)).await;
    assert_eq!(after, Err(ConsensusError::Stopped));
}

/// A command of so many bytes that changes nothing.
fn bulky(session: SessionId, operation: u64, bytes: usize) -> Command {
    let request =
        Request::SetXattr { inode: ROOT, name: b"user.x".to_vec(), value: vec![7; bytes], mode: XattrMode::Any };
    Command::Client(ClientCommand {
        id: OperationId { session, operation },
        confirmed: 0,
        credentials: Credentials::default(),
        request,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_clients_and_the_log_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Arc::new(start(dir.path(), NEVER).await);
    let session = open_session(&raft, 1).await;
    fill(&raft, session, 1..11).await;
    raft.log().take_disk_for_full(true);
    let mut operation = 11;
    let refused = loop {
        match raft.submit(bulky(session, operation, 60 << 10)).await {
            Ok(_) if operation < 2000 => operation += 1,
            other => break other,
        }
    };
    assert_eq!(refused, Err(ConsensusError::NoSpace));
    assert_eq!(raft.submit(bulky(session, operation + 1, 60 << 10)).await, Err(ConsensusError::NoSpace));
    assert!(!*raft.stopped().borrow() && raft.is_leader());
    // The master itself goes on for a while, and what gives something back.
    let second = open_session(&raft, 2).await;
    let unlink = Command::Client(ClientCommand {
        id: OperationId { session, operation: 3001 },
        confirmed: 0,
        credentials: Credentials::default(),
        request: Request::Unlink { parent: ROOT, name: b"file-1".to_vec() },
    });
    let removed = raft.submit(unlink).await;
    assert!(!matches!(removed, Err(_) | Ok(CommandReply::Client(Reply::Refused(_)))), "{removed:?}");
    // When that room is gone too, it is refused, and still nothing stops.
    let mut nonce = 3;
    let refused = loop {
        let command = Command::OpenSession { nonce, description: "x".repeat(1 << 20) };
        match raft.submit(command).await {
            Ok(_) if nonce < 100 => nonce += 1,
            other => break other,
        }
    };
    assert_eq!(refused, Err(ConsensusError::NoSpace));
    assert!(!*raft.stopped().borrow() && raft.is_leader());
    raft.log().take_disk_for_full(false);
    fill(&raft, second, 2000..2010).await;
    let again = the_same_after_a_restart(raft, dir.path()).await;
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_cannot_be_written_stops_nothing_and_is_made_later() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Arc::new(start(dir.path(), CheckpointPolicy { entries: 1, ..NEVER }).await);
    let session = open_session(&raft, 1).await;
    fill(&raft, session, 1..11).await;
    let place = dir.path().join(checkpoint::file_name(raft.machine().applied())).with_extension("tmp");
    std::fs::create_dir(&place).unwrap();
    for _ in 0..2 {
        let error = raft.checkpoint().await.unwrap_err();
        assert!(matches!(error, StartError::Checkpoint(_)), "{error}");
        assert!(raft.checkpoint_due() && !*raft.stopped().borrow());
    }
    std::fs::remove_dir(&place).unwrap();
    fill(&raft, session, 11..21).await;
    raft.checkpoint().await.unwrap();
    assert!(!raft.checkpoint_due());
    let again = the_same_after_a_restart(raft, dir.path()).await;
    again.shutdown().await;
}
