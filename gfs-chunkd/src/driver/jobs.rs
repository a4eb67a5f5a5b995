//! The queue of a replica: who works it off, and what each job means.

use super::lanes::{Progress, STUCK, Start};
use super::slot::{Job, MAX_JOBS, Mutate, Slot, State, Waiter};
use super::{Driver, wire};
use crate::control::ProblemKind;
use crate::control::lease::Term;
use crate::control::orders::Assigned;
use crate::store::{BlockInfo, StoreError};
use bytes::Bytes;
use gfs_core::ids::Epoch;
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{Event, Message, OperationRecord, Outcome, Role, Status};
use gfs_net::Responder;
use gfs_proto::v1;
use std::sync::Arc;

impl Driver {
    /// Queues a job. Light ones are done before this returns when the replica is idle; a full queue answers BUSY.
    pub fn push(self: &Arc<Self>, slot: &Arc<Slot>, job: Job) {
        let mut inbox = slot.inbox.lock();
        let refusable = !matches!(job, Job::Event(_) | Job::Assigned(..) | Job::Told(_) | Job::Broken { .. });
        if refusable && inbox.queue.len() >= MAX_JOBS {
            drop(inbox);
            return self.refuse(job, Status::Busy);
        }
        inbox.queue.push_back(job);
        let begin = !std::mem::replace(&mut inbox.running, true);
        drop(inbox);
        if begin {
            self.work(slot, false);
        }
    }

    /// Works the queue off. On a task's thread it stops at the first heavy job and goes on on a blocking one.
    fn work(self: &Arc<Self>, slot: &Arc<Slot>, blocking: bool) {
        loop {
            let mut inbox = slot.inbox.lock();
            let Some(next) = inbox.queue.front() else {
                inbox.running = false;
                return;
            };
            // A state that somebody reads under its lock is not waited for here.
            let wait = next.is_heavy() || slot.state.is_locked();
            if wait && !blocking {
                let many = matches!(next, Job::Assigned(..));
                drop(inbox);
                if many {
                    return self.submit(slot);
                }
                let (driver, slot) = (self.clone(), slot.clone());
                self.spawn_blocking(move || driver.work(&slot, true));
                return;
            }
            let job = inbox.queue.pop_front();
            drop(inbox);
            if let Some(job) = job {
                self.process(slot, job);
            }
        }
    }

    /// Lets a replica wait for one of the few threads that take assignments on.
    fn submit(self: &Arc<Self>, slot: &Arc<Slot>) {
        match self.lanes.submit(slot.clone()) {
            Start::Thread => self.start_lane(),
            Start::Watch => {
                let driver = self.clone();
                self.spawn(async move {
                    loop {
                        tokio::time::sleep(STUCK).await;
                        match driver.lanes.look() {
                            Progress::Idle => return,
                            Progress::Moving => {}
                            Progress::Stuck => driver.start_lane(),
                        }
                    }
                });
            }
            Start::Nothing => {}
        }
    }

    fn start_lane(self: &Arc<Self>) {
        let driver = self.clone();
        let mut lane = self.lanes.enter();
        self.spawn_blocking(move || {
            while let Some(slot) = lane.take() {
                driver.work(&slot, true);
            }
        });
    }

    fn process(self: &Arc<Self>, slot: &Arc<Slot>, job: Job) {
        let mut state = slot.state.lock();
        if state.gone {
            drop(state);
            return self.refuse(job, Status::NoChunk);
        }
        if !job.changes_nothing() {
            self.loans.take_back(slot);
        }
        self.refresh_lease(slot, &mut state);
        match job {
            Job::Event(event) => self.feed(slot, &mut state, event),
            Job::Assigned(assigned, term) => self.assigned(slot, &mut state, assigned, term),
            Job::Told(configuration) => self.feed(slot, &mut state, Event::Configuration(configuration)),
            Job::Gone => self.gone(slot, &mut state),
            Job::Mutate(mutate) => self.mutate(slot, &mut state, mutate),
            Job::Sync { epoch, waiter } => {
                let token = state.token(waiter);
                self.feed(slot, &mut state, Event::Sync { token, epoch });
            }
            Job::Peer { epoch, message, configuration, payload, responder } => {
                self.peer(slot, &mut state, epoch, message, configuration, payload, responder);
            }
            Job::Query { epoch, unsettled, waiter } => {
                let token = state.token(waiter);
                self.feed(slot, &mut state, Event::CommittedQuery { token, epoch, unsettled });
            }
            Job::Copy { epoch, piece, payload, responder } => {
                self.copy(slot, &mut state, epoch, piece, &payload, responder);
            }
            Job::Broken { kind, detail } => self.broken(slot, &mut state, kind, &detail),
            Job::Delete { epoch, turn: _turn } => self.deleted(slot, &mut state, epoch),
        }
        slot.publish(&state);
        self.leave_if_suspect(slot, &mut state);
    }

    /// A member that may lack something after a power loss serves nothing in this epoch: it asks to be left out, and is
    /// filled when it is recruited again. The last of several such members stays, and serves what it has.
    fn leave_if_suspect(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) {
        let epoch = state.replica.epoch();
        let member = state.replica.is_suspect() && state.replica.role() == Role::Secondary;
        if member && state.leaving != Some(epoch) {
            state.leaving = Some(epoch);
            self.ask_to_leave(slot.clone(), epoch);
        }
    }

    /// Tells the replica of the lease as it is now. A gap, even one that nobody saw, is a loss in between.
    fn refresh_lease(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) {
        let term = self.shared.lease.term();
        if term == state.term {
            return;
        }
        if state.term.is_some() {
            self.feed(slot, state, Event::Lease(false));
        }
        state.term = term;
        if term.is_some() {
            self.feed(slot, state, Event::Lease(true));
        }
    }

    fn assigned(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, assigned: Assigned, term: Option<Term>) {
        state.replica.set_minimum(usize::from(assigned.goal >= 2) + 1);
        if assigned.inode.0 != 0 {
            (state.header.inode, state.header.index) = (assigned.inode, assigned.index);
        }
        let configuration = assigned.configuration;
        // An answer to a question of an earlier term says nothing about this one.
        let event = match term {
            Some(term) if state.term == Some(term) => Event::InForce(configuration),
            _ => Event::Configuration(configuration),
        };
        self.feed(slot, state, event);
        if matches!(state.replica.role(), Role::Outside | Role::Syncing) {
            self.shared.solve_problem(slot.handle);
        }
        if state.replica.role() == Role::Outside && !state.stored {
            state.gone = true;
            self.forget(slot);
        }
    }

    /// The master knows no such chunk: nothing is served until a configuration says otherwise.
    fn gone(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) {
        self.feed(slot, state, Event::Lease(false));
        // The term stays unknown to the replica, so that only a new confirmation makes it serve.
        state.term = None;
        if !state.stored {
            state.gone = true;
            self.forget(slot);
        }
    }

    fn mutate(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, job: Mutate) {
        let token = state.mutation_token(job.waiter);
        state.payload = (job.payload, job.crc);
        let epoch = job.epoch.unwrap_or_else(|| state.replica.epoch());
        let (operation, confirmed, mutation) = (job.operation, job.confirmed, job.mutation);
        // Held while it is ordered: once newer fences are in place, nothing passes that was let through by older ones.
        let fences = self.shared.fences.read();
        let fenced = fences.refuses(operation.session);
        let actions = state.replica.handle(Event::Mutate { token, epoch, operation, confirmed, mutation, fenced });
        drop(fences);
        self.perform(slot, state, actions);
        state.payload = (Bytes::new(), 0);
    }

    #[allow(clippy::too_many_arguments)]
    fn peer(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut State,
        epoch: Epoch,
        message: Message,
        configuration: Option<Configuration>,
        payload: Bytes,
        responder: Responder,
    ) {
        if let Some(configuration) = configuration.filter(|told| told.epoch > state.replica.epoch()) {
            self.feed(slot, state, Event::Configuration(configuration));
            self.lookup.note(slot.handle);
        }
        let token = state.token(Waiter::Remote(responder));
        state.payload = (payload, 0);
        self.feed(slot, state, Event::Peer { token: Some(token), epoch, message });
        state.payload = (Bytes::new(), 0);
    }

    fn copy(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut State,
        epoch: Epoch,
        piece: v1::CopyBlocks,
        payload: &Bytes,
        responder: Responder,
    ) {
        let status = match state.replica.accept_copy(epoch, gfs_core::ids::Sequence(piece.committed)) {
            Ok(actions) => {
                self.perform(slot, state, actions);
                match self.copy_in(slot, state, &piece, payload) {
                    Ok(()) => Status::Ok,
                    Err(error) => {
                        let status = wire::store_status(&error);
                        self.store_failed(slot, state, &error);
                        status
                    }
                }
            }
            Err(status) => status,
        };
        responder.send(wire::reply(status), Bytes::new());
    }

    fn copy_in(
        &self,
        slot: &Slot,
        state: &mut State,
        piece: &v1::CopyBlocks,
        payload: &Bytes,
    ) -> Result<(), StoreError> {
        if !piece.blocks.is_empty() {
            let blocks: Vec<BlockInfo> = piece.blocks.iter().map(wire::block_from_wire).collect();
            self.store.copy_in(slot.handle, piece.first, &blocks, payload)?;
        }
        if piece.last {
            let operations: Vec<OperationRecord> = piece.operations.iter().map(wire::operation_from_wire).collect();
            self.store.copy_finish(slot.handle, piece.length, &operations)?;
            state.replica.finish_copy(piece.length, &operations);
        }
        Ok(())
    }

    /// The replica can't be served. It says so to the master, which takes that for its consent to be dropped.
    pub(super) fn broken(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, kind: ProblemKind, detail: &str) {
        let others = state.replica.configuration().is_some_and(|known| known.members.len() > 1);
        if !others && kind == ProblemKind::Corrupt {
            // The last copy: what is whole of it is worth more than nothing.
            return self.shared.report_problem(slot.handle, kind, detail);
        }
        let was = state.replica.is_broken();
        self.feed(slot, state, Event::Broken);
        slot.publish(state);
        if !was || !self.shared.has_problem(slot.handle) {
            self.shared.report_problem(slot.handle, kind, detail);
        }
    }

    fn deleted(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, epoch: Epoch) {
        if state.replica.epoch() > epoch {
            let known = state.replica.epoch();
            tracing::warn!(handle = %slot.handle, %epoch, %known, "a tombstone is older than the replica: it is kept");
            return;
        }
        match self.store.delete(slot.handle) {
            Ok(()) | Err(StoreError::NoChunk { .. }) => {
                state.gone = true;
                self.feed(slot, state, Event::Lease(false));
                for (_, waiting) in state.waiters.drain() {
                    answer(waiting.waiter, Outcome::of(Status::NoChunk), v1::DataReply::default);
                }
                self.forget(slot);
                self.shared.solve_problem(slot.handle);
                self.reports.deleted(slot.handle);
            }
            Err(error) => tracing::warn!(%error, handle = %slot.handle, "a replica could not be deleted"),
        }
    }

    /// Answers those who have waited too long; called now and then from a thread that may block.
    pub fn expire(self: &Arc<Self>) {
        let now = tokio::time::Instant::now();
        for slot in self.all().into_iter().filter(|slot| slot.has_waiters()) {
            let late = slot.state.lock().expired(now);
            for waiter in late {
                answer(waiter, Outcome::of(Status::TimedOut), v1::DataReply::default);
            }
        }
    }

    /// Answers whoever waits for a job that is not done.
    fn refuse(&self, job: Job, status: Status) {
        let reply = || wire::reply(status);
        match job {
            Job::Mutate(mutate) => answer(mutate.waiter, Outcome::of(status), reply),
            Job::Sync { waiter, .. } | Job::Query { waiter, .. } => answer(waiter, Outcome::of(status), reply),
            Job::Peer { responder, .. } | Job::Copy { responder, .. } => responder.send(reply(), Bytes::new()),
            Job::Delete { .. } | Job::Event(_) | Job::Assigned(..) | Job::Told(_) | Job::Gone | Job::Broken { .. } => {}
        }
    }
}

/// Answers one who waits.
pub(super) fn answer(waiter: Waiter, outcome: Outcome, reply: impl FnOnce() -> v1::DataReply) {
    match waiter {
        Waiter::Remote(responder) => {
            let mut reply = reply();
            reply.status = wire::status_to_wire(outcome.status).into();
            responder.send(reply, Bytes::new());
        }
        Waiter::Internal(sender) => {
            // Whoever gave up waiting needs no answer.
            let _ = sender.send(outcome);
        }
    }
}
