//! What the master orders: assignments, deletions, zeroed tails, leaving.

use super::lookup::{Found, Looked};
use super::{ProblemKind, Shared};
use crate::driver::{Driver, Job, Mutate, Waiter};
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, OperationId, SessionId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{Mutation, Outcome, Role, Status, WriteKind};
use gfs_proto::{convert, v1};
use std::sync::Arc;
use std::time::Duration;

/// Tries to zero a tail; the master repeats the order anyway.
const ZERO_TRIES: usize = 25;
/// After the first try, which usually comes while the new epoch still settles; doubled with each further one.
const ZERO_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between two tries.
const ZERO_PAUSE_MOST: Duration = Duration::from_millis(100);
/// How long a question about a chunk may take.
const ASK: Duration = Duration::from_secs(2);

/// A chunk's configuration as the master told it.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// Which chunk.
    pub handle: ChunkHandle,
    /// In force.
    pub configuration: Configuration,
    /// The file that it is attached to; 0 while it is only reserved.
    pub inode: InodeId,
    /// Its place there.
    pub index: u32,
    /// Replicas wanted; 0 when not said.
    pub goal: u32,
}

/// Takes orders of the master. Anything that waits is spawned.
pub fn carry_out(driver: &Arc<Driver>, order: v1::MasterOrder) {
    // An order arrives on the stream of the heartbeats: it is as new as the lease that it came with.
    let term = driver.shared.lease.term();
    assign(driver, Found { term, assignments: order.assign, gone: Vec::new() });
    driver.deletions.order(order.delete.into_iter().map(|delete| (ChunkHandle(delete.handle), Epoch(delete.epoch))));
    for leave in order.leave {
        self::leave(driver, ChunkHandle(leave.handle), Epoch(leave.epoch));
    }
    for zero in order.zero_tail {
        let driver = driver.clone();
        driver.clone().spawn(async move { zero_tail(&driver, zero).await });
    }
}

/// Gives configurations to the replicas, and makes those that are missing.
pub fn assign(driver: &Arc<Driver>, found: Found) {
    for assignment in found.assignments {
        driver.learn_addresses(assignment.servers.clone());
        match assigned(assignment) {
            Ok(assigned) => driver.learn(assigned, found.term),
            Err(error) => tracing::warn!(%error, "an assignment of the master cannot be understood"),
        }
    }
    for handle in found.gone {
        // Not in the table: it is served no more. Only a tombstone deletes it.
        if let Some(slot) = driver.slot(handle) {
            driver.push(&slot, Job::Gone);
        }
    }
}

fn assigned(from: v1::Assignment) -> Result<Assigned, convert::ConvertError> {
    let configuration = from.configuration.ok_or(convert::ConvertError::Missing("configuration"))?;
    Ok(Assigned {
        handle: ChunkHandle(from.handle),
        configuration: configuration.try_into()?,
        inode: InodeId(from.inode),
        index: from.index,
        goal: from.goal,
    })
}

/// Stops serving a replica and asks to be left out. Nothing here waits for the replica: its disk may hang.
fn leave(driver: &Arc<Driver>, handle: ChunkHandle, epoch: Epoch) {
    let Some(slot) = driver.slot(handle) else { return missing(driver, handle, epoch) };
    // A newer epoch than is known here: the replica may be waiting for its disk. Who has left one serves in no older one either.
    if slot.epoch() > epoch || slot.role() == Role::Outside || !slot.leave(epoch) {
        return;
    }
    driver.loans.take_back(&slot);
    driver.push_later(&slot, Job::Broken { kind: ProblemKind::Retired, detail: "asked to leave".into() });
    driver.ask_to_leave(slot, epoch);
}

/// Others wait for a replica that is not here: a loss of power has taken it while it was new. It is not made any more in this epoch, so
/// that the master can drop it without waiting for the lease to run out.
fn missing(driver: &Arc<Driver>, handle: ChunkHandle, epoch: Epoch) {
    let Some(slot) = driver.create(handle, InodeId(0), 0) else { return };
    slot.leave(epoch);
    report_missing(&driver.shared, handle);
}

/// Rule 13: zeroes what a shrunken file has lost, as a replicated write. Its identity is the epoch that the cut began, so that a
/// repeated order is answered and an older one does nothing, under whichever configuration it arrives. The master forgets the cut
/// when it hears that it is done, so it has to be on stable storage by then: after a power cut of all members nobody would do it again.
async fn zero_tail(driver: &Arc<Driver>, order: v1::ZeroTail) {
    let handle = ChunkHandle(order.handle);
    if !driver.zeroing.lock().insert((handle, order.epoch)) {
        return;
    }
    let mut pause = ZERO_PAUSE;
    for _ in 0..ZERO_TRIES {
        let outcome = try_zero(driver, handle, &order).await;
        match outcome.status {
            Status::Ok => {
                let v1::ZeroTail { handle, epoch, inode, .. } = order;
                let stored = outcome.stored.map(Into::into);
                driver.reports.shrunk(v1::ShrinkDone { handle, epoch, inode, stored });
                break;
            }
            Status::NoChunk | Status::NotPrimary | Status::NotMember | Status::Malformed => break,
            _ => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ZERO_PAUSE_MOST);
            }
        }
    }
    driver.zeroing.lock().remove(&(handle, order.epoch));
}

async fn try_zero(driver: &Arc<Driver>, handle: ChunkHandle, order: &v1::ZeroTail) -> Outcome {
    let known = driver.slot(handle).filter(|slot| slot.epoch().0 >= order.epoch && driver.is_in_force(slot));
    let slot = match known {
        Some(slot) => slot,
        None => match (driver.lookup.ask(handle, ASK).await, driver.slot(handle)) {
            (Looked::Known, Some(slot)) => slot,
            (Looked::Gone, _) | (Looked::Known, None) => return Outcome::of(Status::NoChunk),
            (Looked::Unanswered, _) => return Outcome::of(Status::Busy),
        },
    };
    let length = driver.chunk_size().saturating_sub(order.from);
    let (waiter, answer) = tokio::sync::oneshot::channel();
    let mutate = Mutate {
        epoch: None,
        operation: OperationId { session: SessionId(0), operation: order.cut.into() },
        confirmed: 0,
        mutation: Mutation::At { kind: WriteKind::Truncate, offset: order.from, length },
        payload: bytes::Bytes::new(),
        crc: 0,
        waiter: Waiter::Internal(waiter),
    };
    driver.push(&slot, Job::Mutate(mutate));
    let written = answered(answer).await;
    if written.status != Status::Ok {
        return written;
    }
    let (waiter, answer) = tokio::sync::oneshot::channel();
    driver.push(&slot, Job::Sync { epoch: slot.epoch(), waiter: Waiter::Internal(waiter) });
    let synced = answered(answer).await;
    if synced.status == Status::Ok { written } else { synced }
}

async fn answered(answer: tokio::sync::oneshot::Receiver<Outcome>) -> Outcome {
    match tokio::time::timeout(ASK, answer).await {
        Ok(Ok(outcome)) => outcome,
        _ => Outcome::of(Status::Busy),
    }
}

/// A replica that should be here and is not: it is lost, not empty.
pub fn report_missing(shared: &Shared, handle: ChunkHandle) {
    shared.report_problem(handle, ProblemKind::Lost, "the replica is not on this server");
}
