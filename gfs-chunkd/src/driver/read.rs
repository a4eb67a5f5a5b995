//! Reads: local where the local bytes are the latest, after a question to the primary where they may not be.

use super::slot::{Job, Slot};
use super::{Driver, digest, wire};
use crate::store::{BLOCK, StoreError};
use bytes::Bytes;
use gfs_core::ids::{Epoch, ServerId};
use gfs_core::replica::{Event, ReadPlan, Role, Status};
use gfs_net::Responder;
use gfs_proto::v1::{self, data_reply};
use std::sync::Arc;
use std::time::Duration;

/// How long a secondary waits for its primary's answer.
const QUERY: Duration = Duration::from_millis(800);

/// What a read asks for.
#[derive(Clone, Debug)]
pub enum ReadKind {
    /// Bytes.
    Bytes {
        /// First.
        offset: u64,
        /// How many.
        length: u32,
    },
    /// The next data or hole.
    Seek {
        /// From here.
        offset: u64,
        /// A hole rather than data.
        hole: bool,
    },
    /// Whole blocks with versions and checksums.
    Blocks {
        /// First block.
        first: u32,
        /// How many.
        count: u32,
    },
    /// A SHA-256 over bytes, without moving them.
    Digest {
        /// First.
        offset: u64,
        /// How many.
        length: u64,
        /// Where the hash stands; empty for a new one.
        state: Bytes,
        /// Only as far as the replica goes.
        held: bool,
    },
}

type Answer = Result<(v1::DataReply, Bytes), StoreError>;

impl Driver {
    /// Answers a read. What may wait is spawned.
    pub fn read(self: &Arc<Self>, slot: &Arc<Slot>, epoch: Epoch, kind: ReadKind, responder: Responder) {
        let (offset, length) = self.range(&kind);
        // The lock is held long only while a write is stored; a reader on a task's thread does not wait for that.
        let Some(state) = slot.state.try_lock() else {
            let (driver, slot) = (self.clone(), slot.clone());
            self.spawn_blocking(move || {
                let plan = slot.state.lock().replica.plan_read(epoch, offset, length);
                driver.planned(&slot, epoch, kind, plan, responder, true);
            });
            return;
        };
        let plan = state.replica.plan_read(epoch, offset, length);
        drop(state);
        self.planned(slot, epoch, kind, plan, responder, false);
    }

    /// Brings what the reader will ask next into the page cache. Only a hint: it is dropped when there are many.
    pub fn read_ahead(self: &Arc<Self>, slot: &Slot, read: v1::Read) {
        if read.ahead == 0 || slot.role() == Role::Outside {
            return;
        }
        let Ok(permit) = self.ahead.clone().try_acquire_owned() else { return };
        let (driver, handle) = (self.clone(), slot.handle);
        self.spawn_blocking(move || {
            driver.store.read_ahead(handle, read.offset.saturating_add(read.ahead.into()), read.length.into());
            drop(permit);
        });
    }

    fn range(&self, kind: &ReadKind) -> (u64, u64) {
        match *kind {
            ReadKind::Bytes { offset, length } => (offset, length.into()),
            ReadKind::Seek { offset, .. } => (offset, self.chunk_size()),
            ReadKind::Blocks { first, count } => (u64::from(first) * BLOCK, u64::from(count) * BLOCK),
            ReadKind::Digest { offset, length, .. } => (offset, length),
        }
    }

    fn planned(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        epoch: Epoch,
        kind: ReadKind,
        plan: ReadPlan,
        responder: Responder,
        blocking: bool,
    ) {
        match plan {
            ReadPlan::Local => self.read_here(slot, epoch, kind, responder, blocking),
            ReadPlan::AskPrimary(primary) => {
                let (driver, slot) = (self.clone(), slot.clone());
                self.spawn(async move { driver.read_after_query(slot, epoch, kind, primary, responder).await });
            }
            ReadPlan::Refuse(status) => self.refuse_read(slot, status, responder),
        }
    }

    /// What the primary has committed before it answered is in place here before the read; what comes later is not owed.
    async fn read_after_query(
        self: Arc<Self>,
        slot: Arc<Slot>,
        epoch: Epoch,
        kind: ReadKind,
        primary: ServerId,
        responder: Responder,
    ) {
        let outcome = match self.query_committed(&slot, primary, epoch, false, QUERY).await {
            Ok(outcome) if outcome.status == Status::Ok => outcome,
            Ok(outcome) => {
                tracing::debug!(handle = %slot.handle, status = ?outcome.status, "the primary does not answer a query");
                return self.refuse_read(&slot, Status::Busy, responder);
            }
            Err(error) => {
                tracing::debug!(handle = %slot.handle, %error, "the primary does not answer a query");
                return self.refuse_read(&slot, Status::Busy, responder);
            }
        };
        let (driver, committed) = (self.clone(), outcome.sequence);
        self.spawn_blocking(move || {
            driver.push_and_wait(&slot, Event::CommittedLearned { epoch, committed });
            let state = slot.state.lock();
            let here = state.replica.is_serving() && state.replica.epoch() == epoch;
            // Less than that is here only when the configuration changed meanwhile.
            let enough = state.replica.committed() >= committed;
            drop(state);
            if here && enough {
                driver.read_here(&slot, epoch, kind, responder, true);
            } else {
                driver.refuse_read(&slot, Status::Busy, responder);
            }
        });
    }

    /// Feeds an event at once, from a thread that may block. Its order among the queued ones does not matter.
    fn push_and_wait(self: &Arc<Self>, slot: &Arc<Slot>, event: Event) {
        let mut state = slot.state.lock();
        if !state.gone {
            self.loans.take_back(slot);
            self.feed(slot, &mut state, event);
            slot.publish(&state);
        }
    }

    fn read_here(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        epoch: Epoch,
        kind: ReadKind,
        responder: Responder,
        blocking: bool,
    ) {
        if !blocking {
            match self.read_cached(slot, &kind) {
                Some(answer) => return self.answer_read(slot, epoch, answer, responder),
                None => {
                    let (driver, slot) = (self.clone(), slot.clone());
                    self.spawn_blocking(move || driver.read_here(&slot, epoch, kind, responder, true));
                    return;
                }
            }
        }
        let answer = match kind {
            ReadKind::Bytes { offset, length } => self.store.read(slot.handle, offset, length.into()).map(bytes_reply),
            ReadKind::Seek { offset, hole } => self
                .store
                .seek(slot.handle, offset, hole)
                .map(|offset| (v1::DataReply { offset, ..wire::reply(Status::Ok) }, Bytes::new())),
            ReadKind::Blocks { first, count } => {
                self.store.fetch_blocks(slot.handle, first, count).map(|(blocks, data)| {
                    let blocks = blocks.iter().map(wire::block_to_wire).collect();
                    (v1::DataReply { blocks, ..wire::reply(Status::Ok) }, data)
                })
            }
            ReadKind::Digest { offset, length, state, held } => {
                digest::run(&self.store, slot.handle, (offset, length, held), &state).map(|reply| (reply, Bytes::new()))
            }
        };
        self.answer_read(slot, epoch, answer, responder);
    }

    /// The answer if it can be had without waiting for a disk.
    fn read_cached(&self, slot: &Slot, kind: &ReadKind) -> Option<Answer> {
        match *kind {
            ReadKind::Bytes { offset, length } => self
                .store
                .read_cached(slot.handle, offset, length.into())
                .transpose()
                .map(|found| found.map(bytes_reply)),
            ReadKind::Seek { .. } | ReadKind::Blocks { .. } | ReadKind::Digest { .. } => None,
        }
    }

    fn answer_read(self: &Arc<Self>, slot: &Arc<Slot>, epoch: Epoch, answer: Answer, responder: Responder) {
        // The lease may have ended, and the configuration changed, while the disk was read.
        if !self.is_in_force(slot) {
            return self.refuse_read(slot, Status::NoLease, responder);
        }
        if slot.epoch() != epoch {
            return self.refuse_read(slot, Status::StaleEpoch, responder);
        }
        match answer {
            Ok((reply, data)) => responder.send(reply, data),
            Err(error) => {
                let status = wire::store_status(&error);
                if let Some(kind) = self.broken_by(&error) {
                    self.push(slot, Job::Broken { kind, detail: error.to_string() });
                }
                responder.send(wire::refusal(wire::status_to_wire(status), error.to_string()), Bytes::new());
            }
        }
    }

    fn refuse_read(self: &Arc<Self>, slot: &Arc<Slot>, status: Status, responder: Responder) {
        if status == Status::Busy {
            self.ask_for_settle(slot);
        }
        let mut reply = wire::refusal(wire::status_to_wire(status), "");
        if status == Status::Busy {
            reply.retry_after_ms = 20;
        }
        if wire::tells_configuration(status)
            && let Some(state) = slot.state.try_lock()
            && let Some(known) = state.replica.configuration()
        {
            reply.configuration = Some(known.into());
            reply.servers = self.addresses_of(known);
        }
        responder.send(reply, Bytes::new());
    }
}

fn bytes_reply(found: crate::store::ReadOut) -> (v1::DataReply, Bytes) {
    let reply = v1::DataReply {
        status: data_reply::Status::Ok.into(),
        block_crcs: found.block_crcs,
        crc: found.crc,
        length: found.length,
        ..v1::DataReply::default()
    };
    (reply, found.data)
}
