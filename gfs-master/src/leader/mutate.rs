//! The path of a mutation: known already? under way? then gate, log, and what follows from it.
//!
//! This room owns the order of these steps. The steps themselves are the other rooms' of the leader.

use super::opens::Granted;
use super::times::Hold;
use super::{Leader, ServeError};
use crate::consensus::ConsensusError;
use gfs_core::ids::{InodeId, OperationId};
use gfs_core::meta::command::{Command, CommandReply};
use gfs_core::meta::request::{Attributes, ClientCommand, Lock, LockMode, Refusal, Reply, Request};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// What a mutation came to.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The reply.
    pub reply: Reply,
    /// For how long it may be cached.
    pub granted: Granted,
    /// Whose attributes it has changed, if that is known.
    pub changed: Option<Vec<InodeId>>,
    /// The directories whose names changed, as they are now.
    pub parents: Vec<Attributes>,
}

/// A mutation that was carried out, now or before.
struct Done {
    request: Request,
    reply: Reply,
    /// Whose attributes it may have changed, if it was carried out now.
    changed: Option<Vec<InodeId>>,
}

impl Done {
    fn refused(command: ClientCommand, refusal: Refusal) -> Self {
        Self { request: command.request, reply: Reply::Refused(refusal), changed: Some(Vec::new()) }
    }
}

/// A mutation that was answered, or could not be.
pub type Outcome = Result<Answered, ServeError>;

/// Mutations under way, by their number, each with those who asked for it again.
#[derive(Default)]
pub struct InFlight(Mutex<BTreeMap<OperationId, Vec<oneshot::Sender<Outcome>>>>);

/// Whether a call waits for a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waits {
    /// A conflict is refused.
    No,
    /// Until it is held or the call is cancelled.
    Yes,
}

impl Leader {
    /// Carries out a client's mutation once, however often it is asked; every asker gets the first answer. To be called on a task that
    /// goes on when its asker goes away.
    ///
    /// # Errors
    /// When it could not be served; asked again under the same number it is tried again.
    pub async fn mutate(self: &Arc<Self>, command: ClientCommand, waits: Waits) -> Outcome {
        let id = command.id;
        let running = match self.in_flight.0.lock().entry(id) {
            Entry::Occupied(mut running) => {
                let (asked, answer) = oneshot::channel();
                running.get_mut().push(asked);
                Some(answer)
            }
            Entry::Vacant(entry) => {
                entry.insert(Vec::new());
                None
            }
        };
        if let Some(answer) = running {
            return answer.await.unwrap_or(Err(ServeError::Unexpected));
        }
        let mut running = UnderWay { in_flight: Some(&self.in_flight), id };
        let outcome = tokio::select! {
            outcome = self.carry_out(command, waits) => outcome,
            () = gfs_daemon::life::wait(self.stopping.subscribe()) => {
                Err(ServeError::Consensus(ConsensusError::Stopped))
            }
        };
        for asked in running.end() {
            // Whoever asked again may have gone.
            let _ = asked.send(outcome.clone());
        }
        outcome
    }

    async fn carry_out(self: &Arc<Self>, command: ClientCommand, waits: Waits) -> Outcome {
        let replayed = self.machine.state().replayed(command.id);
        let id = command.id;
        let done = match replayed {
            Some(reply) => Done { request: command.request, reply, changed: None },
            None => self.first_time(command, waits).await?,
        };
        self.follow_up(id, done).await
    }

    async fn first_time(self: &Arc<Self>, mut command: ClientCommand, waits: Waits) -> Result<Done, ServeError> {
        let session = command.id.session;
        match &mut command.request {
            Request::SetLock { inode, lock } => {
                lock.owner.session = session;
                let (inode, lock) = (*inode, *lock);
                if lock.mode != LockMode::Unlock {
                    return self.acquire(command, inode, lock, waits).await;
                }
            }
            Request::ReleaseLocks { owner, .. } => owner.session = session,
            Request::AllocateChunks { .. } => {
                if let Some(refusal) = self.place(&mut command.request)? {
                    return Ok(Done::refused(command, refusal));
                }
            }
            Request::Barrier { times } => {
                if *times {
                    self.flush_times(Duration::ZERO, Some(session)).await;
                }
                self.consensus.durable().await?;
                return Ok(Done { request: command.request, reply: Reply::Done, changed: Some(Vec::new()) });
            }
            _ => (),
        }
        self.commit(command).await
    }

    /// Through the gate into the log. What has to wait for a cut of the file, or for directories that others hold, waits for it.
    async fn commit(self: &Arc<Self>, mut command: ClientCommand) -> Result<Done, ServeError> {
        loop {
            let session = command.id.session;
            let held = self.machine.state().held_by_others(session, &command.request);
            if !held.is_empty() {
                // What they give back may name more.
                self.recall(&held, session).await?;
                continue;
            }
            let waits = self.machine.state().waits_for_shrink(&command.request);
            if waits && let Some(inode) = inode_of(&command.request) {
                self.wait_for_shrink(inode).await?;
            }
            let (reply, changed) = self.commit_once(&mut command).await?;
            let again = reply == Reply::Refused(Refusal::Stale) && {
                let state = self.machine.state();
                state.waits_for_shrink(&command.request) || !state.held_by_others(session, &command.request).is_empty()
            };
            if !again {
                return Ok(Done { request: command.request, reply, changed: Some(changed) });
            }
        }
    }

    /// Answers too whose attributes it may have changed.
    async fn commit_once(self: &Arc<Self>, command: &mut ClientCommand) -> Result<(Reply, Vec<InodeId>), ServeError> {
        let session = command.id.session;
        let touched = self.machine.state().touched(&command.request);
        let inodes = touched.inodes.clone();
        let held = self.gate.clear(&self.sessions, touched, session).await;
        // Nothing of it is delegated anew while it is held.
        self.recall(&inodes, session).await?;
        if !sets_mtime(&command.request) {
            self.settle_times(&inodes).await;
        }
        let hold = self.hold_times(&mut command.request).await;
        let received = self.now();
        let proposal = Command::Client(command.clone());
        let outcome = if outlives_power_cuts(&command.request) {
            self.consensus.propose(proposal).await
        } else {
            self.consensus.submit(proposal).await
        };
        if outcome == Err(ConsensusError::NoSpace) && can_be_refused(&command.request) {
            return Ok((Reply::Refused(Refusal::NoSpace), Vec::new()));
        }
        let reply = match outcome? {
            CommandReply::Client(reply) => reply,
            _ => return Err(ServeError::Unexpected),
        };
        if let Some(hold) = hold
            && !matches!(reply, Reply::Refused(_))
            && sets_mtime(&command.request)
        {
            hold.superseded(received);
        }
        drop(held);
        Ok((reply, inodes))
    }

    async fn hold_times(&self, request: &mut Request) -> Option<Hold> {
        let (inode, clear_suid) = match request {
            Request::SetAttributes { inode, changes } => (*inode, &mut changes.clear_suid),
            Request::CommitWrite { inode, clear_suid, .. } => (*inode, clear_suid),
            _ => return None,
        };
        let hold = self.times.hold(inode).await?;
        // A chmod after the write may set the bits again; what came before it is done first, in the same record.
        *clear_suid |= self.times.clears_suid(inode);
        Some(hold)
    }

    /// Takes a lock that looks free, or queues up for it.
    async fn acquire(
        self: &Arc<Self>,
        command: ClientCommand,
        inode: InodeId,
        lock: Lock,
        waits: Waits,
    ) -> Result<Done, ServeError> {
        let call = self.locks.cancellable(command.id);
        loop {
            let turn = self.locks.acquire(inode).await;
            let waiter = {
                let state = self.machine.state();
                if waits == Waits::No || state.locks().conflicting(inode, &lock).is_none() {
                    None
                } else {
                    match self.locks.wait(state.locks(), inode, lock) {
                        Some(waiter) => Some(waiter),
                        None => return Ok(Done::refused(command, Refusal::Deadlock)),
                    }
                }
            };
            let Some(waiter) = waiter else {
                let committed = self.commit(command.clone()).await;
                drop(turn);
                match committed {
                    Ok(Done { reply: Reply::Refused(Refusal::WouldBlock), .. }) if waits == Waits::Yes => continue,
                    committed => return committed,
                }
            };
            drop(turn);
            tokio::select! {
                () = waiter.woken() => (),
                () = call.cancelled() => return Ok(Done::refused(command, Refusal::Interrupted)),
            }
        }
    }

    async fn follow_up(self: &Arc<Self>, id: OperationId, done: Done) -> Outcome {
        let Done { request, mut reply, changed } = done;
        match &request {
            Request::SetLock { inode, .. } | Request::ReleaseLocks { inode, .. } => self.locks.wake(*inode),
            Request::Unlink { .. } | Request::Rename { .. } | Request::Rmdir { .. } => self.work.notify_one(),
            _ => (),
        }
        if let Reply::Chunks(chunks) = &reply {
            self.announce(chunks.iter().map(|(handle, _)| *handle));
        }
        if let Reply::Attributes { attributes, pending_shrink } = &mut reply
            && *pending_shrink
        {
            self.wait_for_shrink(attributes.inode).await?;
            *pending_shrink = false;
            // How much the zeroing has left is known only now.
            if let Some(now) = self.machine.state().attributes(attributes.inode) {
                attributes.allocated = now.allocated;
            }
        }
        let (granted, parents) = self.grant_reply(id.session, &request, &reply);
        self.times.show_reply(&mut reply);
        Ok(Answered { reply, granted, changed, parents })
    }
}

fn inode_of(request: &Request) -> Option<InodeId> {
    match request {
        Request::SetAttributes { inode, .. } | Request::CommitWrite { inode, .. } => Some(*inode),
        _ => None,
    }
}

/// Whether a mutation is answered only when it is on stable storage: what somebody outside the masters relies on at once.
/// Names, attributes and sizes are, as in any file system, safe from a power cut after fsync.
fn outlives_power_cuts(request: &Request) -> bool {
    // Numbers, chunks and files must not be given twice.
    matches!(
        request,
        Request::SetLock { .. }
            | Request::ReleaseLocks { .. }
            | Request::AllocateChunks { .. }
            | Request::ReserveInodes { .. }
            | Request::Hold { .. }
    )
}

/// Whether somebody waits who can be told that there is no room. What a client has answered for itself before must not be lost by that, and
/// a lock that is given back must not stay: these are asked again until there is room.
fn can_be_refused(request: &Request) -> bool {
    !matches!(request, Request::Flush { .. } | Request::ReleaseLocks { .. })
}

fn sets_mtime(request: &Request) -> bool {
    match request {
        Request::SetAttributes { changes, .. } => changes.mtime.is_some() || changes.size.is_some(),
        Request::CommitWrite { .. } => true,
        _ => false,
    }
}

/// The place of a mutation among those under way, given back however it ends.
struct UnderWay<'a> {
    in_flight: Option<&'a InFlight>,
    id: OperationId,
}

impl UnderWay<'_> {
    /// Gives the place back, once; answers who asked again meanwhile.
    fn end(&mut self) -> Vec<oneshot::Sender<Outcome>> {
        self.in_flight.take().and_then(|running| running.0.lock().remove(&self.id)).unwrap_or_default()
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
