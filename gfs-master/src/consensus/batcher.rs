//! Packs all commands that wait into one entry, so that they share one write and one fsync.
//!
//! This room owns the queue of commands and their stamps. While one entry is being written the next one fills up, so the
//! batch grows with the load and a lone command waits for nothing.

use super::ConsensusError;
use super::log_store::LogStore;
use super::machine::Machine;
use super::types::{Batch, Raft, Waiter};
use crate::data_dir;
use crate::random;
use gfs_core::meta::command::{Command, CommandReply, Entry, Stamp};
use gfs_core::meta::request::{FlushedFile, NameStep, NodeKind, Request, Timestamp};
use openraft::error::ClientWriteError;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Commands that may wait; more are refused as overload.
const WAITING: usize = 16 * 1024;
/// Commands in one entry.
const BATCH_COMMANDS: usize = 4096;
/// Bytes of one entry, about.
const BATCH_BYTES: usize = 4 << 20;
/// A larger command is refused.
const COMMAND_BYTES: usize = 16 << 20;
/// Room in the log that clients leave for the master itself, and for what gives something back: about 50 thousand small commands.
const CLIENTS_LEAVE: u64 = 8 << 20;
/// Room that all leave for what raft itself writes.
const ALL_LEAVE: u64 = 1 << 20;
/// Entries on their way at a time: one is written while the one before is applied and the next is encoded.
const IN_FLIGHT: usize = 2;

struct Waiting {
    command: Command,
    bytes: usize,
    waiter: Waiter,
}

/// The door for proposers; clones share the queue.
#[derive(Clone)]
pub struct Batcher {
    queue: mpsc::Sender<Waiting>,
}

impl Batcher {
    /// Starts the loop. It ends when all doors are dropped, or when the log fails, which sets `stopped`.
    pub fn start(raft: Raft, machine: Machine, log: LogStore, stopped: Arc<watch::Sender<bool>>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(raft, machine, log, waiting, stopped));
        Self { queue }
    }

    /// Hands a command over and waits for what it answered.
    pub async fn submit(&self, command: Command) -> Result<CommandReply, ConsensusError> {
        let bytes = weight(&command);
        if bytes > COMMAND_BYTES {
            return Err(ConsensusError::TooLarge { bytes });
        }
        let (waiter, answer) = oneshot::channel();
        self.queue.try_send(Waiting { command, bytes, waiter }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ConsensusError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ConsensusError::Stopped,
        })?;
        answer.await.unwrap_or(Err(ConsensusError::Stopped))
    }
}

async fn run(
    raft: Raft,
    machine: Machine,
    log: LogStore,
    mut queue: mpsc::Receiver<Waiting>,
    stopped: Arc<watch::Sender<bool>>,
) {
    let flights = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut mixer = random::sequence();
    let mut clock = machine.clock();
    let mut held = None;
    loop {
        let Ok(permit) = flights.clone().acquire_owned().await else { return };
        let Some(batch) = gather(&mut queue, &mut held).await else { return };
        let batch = with_room(&log, batch);
        if batch.is_empty() {
            continue;
        }
        clock = clock.max(machine.clock()).max(data_dir::now());
        let (commands, waiters) = batch.into_iter().map(|one| (one.command, one.waiter)).unzip();
        let stamp = Stamp { now: clock, seed: mixer.draw() };
        clock = Timestamp(clock.0 + 1);
        let batch = Batch::proposed(Entry { stamp, commands }, waiters, permit);
        match raft.client_write_ff(batch.clone()).await {
            Ok(result) => {
                tokio::spawn(async move {
                    if let Some(error) = failure(result.await) {
                        batch.fail(&error);
                    }
                });
            }
            Err(fatal) => {
                tracing::error!(error = %fatal, "the log has stopped");
                batch.fail(&ConsensusError::Stopped);
                stopped.send_replace(true);
                return;
            }
        }
    }
}

type WriteResult = openraft::raft::ClientWriteResult<super::types::TypeConfig>;

fn failure(result: Result<WriteResult, oneshot::error::RecvError>) -> Option<ConsensusError> {
    match result {
        // Applied, and answered by the machine.
        Ok(Ok(_)) => None,
        Ok(Err(ClientWriteError::ForwardToLeader(to))) => {
            Some(ConsensusError::NotLeader { hint: to.leader_node.map(|node| node.addr) })
        }
        Ok(Err(_)) | Err(_) => Some(ConsensusError::Stopped),
    }
}

/// Waits for a command and takes all that wait with it, up to the bounds. What does not fit is held for the next.
async fn gather(queue: &mut mpsc::Receiver<Waiting>, held: &mut Option<Waiting>) -> Option<Vec<Waiting>> {
    let first = match held.take() {
        Some(first) => first,
        None => queue.recv().await?,
    };
    let mut bytes = first.bytes;
    let mut batch = vec![first];
    while batch.len() < BATCH_COMMANDS {
        let Ok(next) = queue.try_recv() else { break };
        if bytes + next.bytes > BATCH_BYTES {
            *held = Some(next);
            break;
        }
        bytes += next.bytes;
        batch.push(next);
    }
    Some(batch)
}

/// What the log has room for. Raft takes a refusal of its log for the end of it, so nothing is handed over that might be refused: when the
/// disk is full, those who can do without are told so here.
fn with_room(log: &LogStore, batch: Vec<Waiting>) -> Vec<Waiting> {
    // An estimate, doubled.
    let bytes = |batch: &[Waiting]| 2 * batch.iter().map(|one| one.bytes as u64).sum::<u64>();
    if log.ensure_room(bytes(&batch) + CLIENTS_LEAVE).is_ok() {
        return batch;
    }
    let (batch, refused): (Vec<_>, Vec<_>) = batch.into_iter().partition(|one| may_take_the_last(&one.command));
    refuse(refused);
    match log.ensure_room(bytes(&batch) + ALL_LEAVE) {
        Ok(()) => batch,
        Err(error) => {
            tracing::warn!(%error, "the log has no room left, not even for what the master itself has to note");
            refuse(batch);
            Vec::new()
        }
    }
}

fn refuse(batch: Vec<Waiting>) {
    // Whoever waited may have gone.
    batch.into_iter().for_each(|one| drop(one.waiter.send(Err(ConsensusError::NoSpace))));
}

/// Whether a command may take the room that clients leave: what the master itself does, what gives something back, and what was answered
/// before.
fn may_take_the_last(command: &Command) -> bool {
    let Command::Client(client) = command else { return true };
    matches!(
        client.request,
        Request::Unlink { .. }
            | Request::Rmdir { .. }
            | Request::SetLock { .. }
            | Request::ReleaseLocks { .. }
            | Request::Flush { .. }
    )
}

/// Roughly how many bytes a command takes in the log.
fn weight(command: &Command) -> usize {
    64 + match command {
        Command::Client(client) => 4 * client.credentials.groups.len() + request_weight(&client.request),
        Command::OpenSession { description, .. } => description.len(),
        Command::RegisterServer(identity) => {
            identity.address.len() + identity.http.len() + identity.zone.len() + identity.host.len()
        }
        Command::ReapOrphans { inodes } => 10 * inodes.len(),
        Command::ForgetTombstones { done } => 14 * done.len(),
        Command::CondemnUnknown { replicas } => 14 * replicas.len(),
        _ => 0,
    }
}

fn request_weight(request: &Request) -> usize {
    match request {
        Request::Create { name, kind, .. } => {
            name.len() + if let NodeKind::Symlink(target) = kind { target.len() } else { 0 }
        }
        Request::Link { name, .. } | Request::Unlink { name, .. } | Request::Rmdir { name, .. } => name.len(),
        Request::Rename { name, new_name, .. } => name.len() + new_name.len(),
        Request::SetXattr { name, value, .. } => name.len() + value.len(),
        Request::RemoveXattr { name, .. } => name.len(),
        Request::AllocateChunks { placements, .. } => placements.iter().map(|list| 4 + 4 * list.len()).sum(),
        Request::CommitWrite { attach, used, .. } => 14 * attach.len() + 40 * used.len(),
        Request::Flush { files, steps, gives_back } => {
            let file = |file: &FlushedFile| 100 + 14 * file.attach.len() + 40 * file.used.len();
            let step = |step: &NameStep| 40 + request_weight(&step.request);
            files.iter().map(file).sum::<usize>() + steps.iter().map(step).sum::<usize>() + 10 * gives_back.len()
        }
        _ => 0,
    }
}
