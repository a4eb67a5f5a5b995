//! Messages to other servers and their answers; questions to the master that a replica needs answered.

use super::slot::{Job, Slot, State};
use super::{Driver, wire};
use crate::control::lookup::Found;
use crate::control::master::MasterError;
use bytes::Bytes;
use gfs_core::ids::{Epoch, ServerId};
use gfs_core::replica::{Answer, Event, Message, Outcome, Role, Ticket, WantedChange};
use gfs_net::NetError;
use gfs_proto::v1::{self, data_request::Op};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A member that has not answered a settle or a prepare by then is taken for failed.
const ANSWER: Duration = Duration::from_secs(1);
/// The same for bringing a replica to stable storage.
const FLUSH: Duration = Duration::from_secs(30);
/// A member that takes so long for it is asked whether it is there at all.
const STILL_THERE: Duration = Duration::from_millis(300);
/// A member that does not even answer a question about nothing within this time is silent.
const SILENT: Duration = Duration::from_millis(250);
/// Between two questions to the master for the same change.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// After so many tries the pause is `ASK_SELDOM`: a lease is over long before.
const ASK_OFTEN: u32 = 50;
/// Between two later questions.
const ASK_SELDOM: Duration = Duration::from_secs(1);
/// Between two requests for a settle.
const SETTLE_AGAIN: Duration = Duration::from_millis(100);

/// Which message an answer belongs to.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Settle,
    Prepare,
    Notice,
    Flush(Ticket),
}

impl Driver {
    /// Sends a message of this primary. Messages about one chunk to one server keep their order: they share a lane, and this
    /// is called under the replica's lock.
    pub(super) fn send(self: &Arc<Self>, slot: &Arc<Slot>, state: &State, to: ServerId, message: &Message) {
        let Some(configuration) = state.replica.configuration() else { return };
        let epoch = configuration.epoch;
        let asked = match message {
            Message::Settle { .. } => Asked::Settle,
            Message::Prepare { .. } => Asked::Prepare,
            Message::Committed(_) => Asked::Notice,
            Message::Flush { ticket, .. } => Asked::Flush(*ticket),
        };
        let Some(address) = self.address(to) else {
            self.lookup.note(slot.handle);
            return self.unreachable(slot, to, epoch, asked);
        };
        let (payload, crc) = match message {
            Message::Prepare { write, .. } => match self.payload_of(slot, state, write) {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, handle = %slot.handle, "a prepared write can't be sent again");
                    let kind = self.broken_by(&error).unwrap_or(crate::control::ProblemKind::Unserved);
                    return self.push_later(slot, Job::Broken { kind, detail: error.to_string() });
                }
            },
            _ => (Bytes::new(), 0),
        };
        let servers = if matches!(asked, Asked::Settle) { self.addresses_of(configuration) } else { Vec::new() };
        let (inode, index) = (state.header.inode.0, state.header.index);
        let out = wire::Outgoing { handle: slot.handle, configuration, servers, inode, index, crc };
        let request = wire::message_to_wire(message, out);
        let limit = if matches!(asked, Asked::Flush(_)) { FLUSH } else { ANSWER };
        let guard = self.enter();
        if matches!(asked, Asked::Notice) {
            // A later message says it again, should it get lost.
            return self.pool.notify(&address, slot.handle.0, request);
        }
        let call = self.pool.start(&address, slot.handle.0, request, payload, Instant::now() + limit);
        drop(guard);
        let (driver, slot) = (self.clone(), slot.clone());
        self.spawn(async move {
            let answer = match asked {
                Asked::Flush(_) => driver.while_there(&slot, to, epoch, call).await,
                Asked::Settle | Asked::Prepare | Asked::Notice => call.await,
            };
            match answer {
                Ok((reply, _)) => driver.answered(&slot, to, epoch, asked, reply),
                Err(error) => driver.unanswered(&slot, to, epoch, asked, &error),
            }
        });
    }

    /// The answer of a member to what may take it long; an error when it does not even say meanwhile that it is there.
    async fn while_there<T>(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        member: ServerId,
        epoch: Epoch,
        call: impl Future<Output = Result<T, NetError>>,
    ) -> Result<T, NetError> {
        let mut call = std::pin::pin!(call);
        loop {
            let is_there = async {
                tokio::time::sleep(STILL_THERE).await;
                self.query_committed(slot, member, epoch, false, ANSWER).await
            };
            tokio::select! {
                answer = &mut call => return answer,
                there = is_there => match there {
                    Ok(_) | Err(NetError::TooBusy { .. }) => {}
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Queues a job from under the replica's own lock.
    pub(crate) fn push_later(self: &Arc<Self>, slot: &Arc<Slot>, job: Job) {
        let (driver, slot) = (self.clone(), slot.clone());
        self.spawn(async move { driver.push(&slot, job) });
    }

    fn answered(self: &Arc<Self>, slot: &Arc<Slot>, from: ServerId, epoch: Epoch, asked: Asked, reply: v1::DataReply) {
        let outcome = wire::outcome_from_wire(&reply);
        self.learn_addresses(reply.servers);
        if let Some(told) = wire::told_configuration(reply.configuration)
            && told.epoch > slot.epoch()
        {
            self.lookup.note(slot.handle);
            self.push(slot, Job::Told(told));
        }
        let answer = match asked {
            Asked::Notice => return,
            Asked::Settle => Answer::Settle(outcome),
            Asked::Prepare => Answer::Prepare(outcome),
            Asked::Flush(ticket) => Answer::Flush(ticket, outcome),
        };
        self.push(slot, Job::Event(Event::Answer { from, epoch, answer }));
    }

    fn unanswered(self: &Arc<Self>, slot: &Arc<Slot>, to: ServerId, epoch: Epoch, asked: Asked, error: &NetError) {
        tracing::debug!(%error, handle = %slot.handle, server = %to, "a member did not answer");
        self.unreachable(slot, to, epoch, asked);
    }

    fn unreachable(self: &Arc<Self>, slot: &Arc<Slot>, server: ServerId, epoch: Epoch, asked: Asked) {
        if !matches!(asked, Asked::Notice) {
            self.push_later(slot, Job::Event(Event::Unreachable { server, epoch }));
        }
    }

    /// Asks the master for the change that this primary wants, until it is made or not wanted any more.
    pub(super) fn ask_master(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) {
        if std::mem::replace(&mut state.asking, true) {
            return;
        }
        let (driver, slot) = (self.clone(), slot.clone());
        self.spawn(async move {
            let (mut tries, mut silent) = (0_u32, Vec::new());
            while let Some(wanted) = driver.wanted(&slot).await {
                let changed = driver.ask_for(&slot, &wanted, &silent).await;
                tries += 1;
                let pause = tokio::time::sleep(if tries < ASK_OFTEN { ASK_AGAIN } else { ASK_SELDOM });
                let doubted: &[ServerId] = if changed { &[] } else { &wanted.failed };
                ((), silent) = tokio::join!(pause, driver.silent_of(doubted));
            }
        });
    }

    /// What the replica wants of the master; with nothing the asking ends.
    async fn wanted(self: &Arc<Self>, slot: &Arc<Slot>) -> Option<WantedChange> {
        let taken = slot.clone();
        let look = self.spawn_blocking(move || {
            let mut state = taken.state.lock();
            let wanted = if state.gone { None } else { state.replica.wanted_change() };
            state.asking = wanted.is_some();
            wanted
        });
        look.await.ok().flatten()
    }

    /// Which of some members answer nothing at all.
    async fn silent_of(&self, members: &[ServerId]) -> Vec<ServerId> {
        let mut questions = JoinSet::new();
        for (server, address) in members.iter().filter_map(|server| Some((*server, self.address(*server)?))) {
            let pool = self.pool.clone();
            questions.spawn(async move { pool.is_silent(&address, SILENT).await.then_some(server) });
        }
        questions.join_all().await.into_iter().flatten().collect()
    }

    /// True when the configuration that was asked for, or a newer one, is in force. `silent` are those of the failed that answer nothing.
    async fn ask_for(self: &Arc<Self>, slot: &Arc<Slot>, wanted: &WantedChange, silent: &[ServerId]) -> bool {
        let Ok(_permit) = self.questions.acquire().await else { return false };
        let term = self.shared.lease.term();
        match self.master.reconfigure(self.me, self.incarnation, slot.handle, wanted, silent).await {
            Ok(answer) => {
                let changed = answer.refusal == 0;
                let gone = answer.gone.into_iter().map(gfs_core::ids::ChunkHandle).collect();
                self.found(Found { term, assignments: answer.assignments, gone });
                changed
            }
            Err(error @ MasterError::Refused { .. }) => {
                tracing::warn!(%error, handle = %slot.handle, "the master refuses a reconfiguration");
                false
            }
            Err(error) => {
                tracing::debug!(%error, handle = %slot.handle, "a reconfiguration could not be asked");
                false
            }
        }
    }

    /// Asks to be left out of a configuration in which this server serves no more.
    pub fn ask_to_leave(self: &Arc<Self>, slot: Arc<Slot>, epoch: Epoch) {
        let driver = self.clone();
        self.spawn(async move {
            let wanted = WantedChange { epoch, failed: vec![driver.me], ready: Vec::new() };
            let mut tries = 0_u32;
            while slot.epoch() <= epoch && slot.role() != Role::Outside && !driver.ask_for(&slot, &wanted, &[]).await {
                tries += 1;
                tokio::time::sleep(if tries < ASK_OFTEN { ASK_AGAIN } else { ASK_SELDOM }).await;
            }
        });
    }

    /// A secondary that has not settled since it started makes itself known to the primary.
    pub fn ask_for_settle(self: &Arc<Self>, slot: &Arc<Slot>) {
        let Some(mut state) = slot.state.try_lock() else { return };
        let now = Instant::now();
        let recent = state.settle_asked.is_some_and(|at| now.duration_since(at) < SETTLE_AGAIN);
        let waits = !state.replica.is_settled() && matches!(state.replica.role(), Role::Secondary | Role::Syncing);
        if recent || !waits {
            return;
        }
        state.settle_asked = Some(now);
        let (primary, epoch) = (state.replica.primary(), state.replica.epoch());
        drop(state);
        let (driver, slot) = (self.clone(), slot.clone());
        self.spawn(async move {
            if let Err(error) = driver.query_committed(&slot, primary, epoch, true, ANSWER).await {
                tracing::debug!(%error, handle = %slot.handle, "the primary could not be asked to settle");
            }
        });
    }

    /// Asks the primary what is committed; another member only says that it is none.
    pub(super) async fn query_committed(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        primary: ServerId,
        epoch: Epoch,
        unsettled: bool,
        limit: Duration,
    ) -> Result<Outcome, NetError> {
        let Some(address) = self.address(primary) else {
            self.lookup.note(slot.handle);
            let reason = "the address of the primary is not known".into();
            return Err(NetError::Address { address: format!("server {primary}").into(), reason });
        };
        let query = v1::CommittedQuery { server: self.me.0.into(), unsettled };
        let request = v1::DataRequest {
            handle: slot.handle.0,
            epoch: epoch.0,
            op: Some(Op::CommittedQuery(query)),
            ..v1::DataRequest::default()
        };
        let call = self.pool.start(&address, slot.handle.0, request, Bytes::new(), Instant::now() + limit);
        let (reply, _) = call.await?;
        let outcome = wire::outcome_from_wire(&reply);
        if let Some(told) = wire::told_configuration(reply.configuration)
            && told.epoch > slot.epoch()
        {
            self.lookup.note(slot.handle);
            self.push(slot, Job::Told(told));
        }
        Ok(outcome)
    }
}
