//! Carries out what a replica wants done.

use super::jobs::answer;
use super::slot::{Job, Slot, State, Waiting};
use super::{Driver, wire};
use crate::control::ProblemKind;
use crate::store::StoreError;
use bytes::Bytes;
use gfs_core::ids::{BlockVersion, ServerId};
use gfs_core::meta::request::{Configuration, Stored};
use gfs_core::replica::{Action, Event, Outcome, PreparedWrite, Role, Status, Ticket, Token, WriteKind};
use std::sync::Arc;
use std::time::Duration;

/// Before something is tried again at a member.
const RETRY: Duration = Duration::from_millis(100);

impl Driver {
    /// Feeds an event and everything that follows from it.
    pub(super) fn feed(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, event: Event) {
        let actions = state.replica.handle(event);
        self.perform(slot, state, actions);
    }

    /// Performs actions in order; a store is answered before anything else happens.
    pub(super) fn perform(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, mut actions: Vec<Action>) {
        while !actions.is_empty() {
            let mut stored = None;
            for action in actions {
                if let Action::Store { write, confirmed } = action {
                    stored = Some(self.store_write(slot, state, &write, confirmed));
                } else {
                    self.act(slot, state, action);
                }
            }
            actions = match stored {
                Some(result) => state.replica.handle(Event::Stored(result)),
                None => Vec::new(),
            };
        }
    }

    fn act(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, action: Action) {
        let handle = slot.handle;
        let done = match action {
            Action::Persist(configuration) => self.persist(slot, state, &configuration),
            Action::Commit(upto) => {
                state.payloads = state.payloads.split_off(&upto.next());
                self.store.commit(handle, upto)
            }
            Action::RollBack(above) => {
                state.payloads.split_off(&above.next());
                self.store.rollback(handle, above)
            }
            Action::StartFill { base } => self.store.copy_start(handle, base),
            Action::Suspect(suspect) => self.store.set_suspect(handle, suspect),
            Action::Send { to, message } => return self.send(slot, state, to, &message),
            Action::Reply { token, outcome } => return self.reply(slot, state, token, outcome),
            Action::Flush(ticket) => return self.flush(slot, ticket),
            Action::AskMaster => return self.ask_master(slot, state),
            Action::RetryLater(server) => return self.retry_later(slot, server),
            Action::Fill { to, epoch, base, trusted } => {
                let fill = crate::background::fill::Fill { to, epoch, base, trusted };
                return crate::background::fill::start(self, slot, fill);
            }
            // Performed by the caller, which answers it.
            Action::Store { .. } => Ok(()),
        };
        if let Err(error) = done {
            self.store_failed(slot, state, &error);
        }
    }

    fn persist(&self, slot: &Slot, state: &mut State, configuration: &Configuration) -> Result<(), StoreError> {
        if state.stored {
            return self.store.set_configuration(slot.handle, configuration);
        }
        if state.replica.role() == Role::Outside {
            return Ok(());
        }
        self.store.create(slot.handle, &state.header, configuration)?;
        state.stored = true;
        Ok(())
    }

    /// Stores a write with the bytes of the request that is handled now.
    fn store_write(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut State,
        write: &PreparedWrite,
        confirmed: u64,
    ) -> Result<(), Status> {
        let (payload, crc) = state.payload.clone();
        let data: &[u8] = if write.kind == WriteKind::Data { &payload } else { &[] };
        let leads = state.replica.role() == Role::Primary;
        let orders = leads && write.kind == WriteKind::Data;
        let room = if orders { self.store.admit(slot.handle, data.len() as u64) } else { Ok(()) };
        match room.and_then(|()| self.store.prepare(slot.handle, write, data)) {
            Ok(()) => {
                if confirmed > 0
                    && let Err(error) = self.store.confirm_operations(slot.handle, write.operation.session, confirmed)
                {
                    // Harmless: the table is trimmed by a later write.
                    tracing::debug!(%error, handle = %slot.handle, "operations were not confirmed");
                }
                if orders {
                    state.payloads.insert(write.sequence(), (payload, crc));
                }
                Ok(())
            }
            Err(error) => {
                let status = wire::store_status(&error);
                // A full disk at the primary refuses the write and harms nothing; a member has to leave.
                let full = status == Status::NoSpace;
                if full && !leads {
                    self.shared.report_problem(slot.handle, ProblemKind::Retired, "no space on the disk");
                } else if !full {
                    self.report_broken(slot, &error);
                }
                Err(status)
            }
        }
    }

    fn report_broken(&self, slot: &Slot, error: &StoreError) {
        let kind = self.broken_by(error).unwrap_or(ProblemKind::Unserved);
        self.shared.report_problem(slot.handle, kind, &error.to_string());
    }

    /// The store could not do what the replica has decided: the replica can't go on.
    pub(super) fn store_failed(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, error: &StoreError) {
        tracing::warn!(%error, handle = %slot.handle, "a replica is out of service");
        let kind = self.broken_by(error).unwrap_or(ProblemKind::Unserved);
        if state.replica.is_broken() {
            return self.shared.report_problem(slot.handle, kind, &error.to_string());
        }
        self.broken(slot, state, kind, &error.to_string());
    }

    fn reply(&self, slot: &Slot, state: &mut State, token: Token, mut outcome: Outcome) {
        if let Some(Waiting { waiter, mutation, .. }) = state.waiters.remove(&token) {
            let state = &*state;
            if mutation && outcome.status == Status::Ok {
                outcome.stored = self.stored(slot, state);
            }
            answer(waiter, outcome, || wire::outcome_to_wire(&outcome, state, |known| self.addresses_of(known)));
        }
    }

    /// How much of the chunk is stored as of now. The answer to a mutation, which has taken effect, does not fail for the want of it.
    fn stored(&self, slot: &Slot, state: &State) -> Option<Stored> {
        match self.store.stored(slot.handle) {
            Ok((blocks, sequence)) => {
                let at = BlockVersion { epoch: state.replica.epoch(), sequence };
                Some(Stored { blocks, at })
            }
            Err(error) => {
                tracing::warn!(%error, handle = %slot.handle, "the stored blocks cannot be counted");
                None
            }
        }
    }

    fn flush(self: &Arc<Self>, slot: &Arc<Slot>, ticket: Ticket) {
        let (driver, slot) = (self.clone(), slot.clone());
        self.spawn_blocking(move || {
            let result = driver.store.sync(slot.handle);
            if let Err(error) = &result {
                tracing::warn!(%error, handle = %slot.handle, "a flush failed");
                driver.report_broken(&slot, error);
            }
            driver.push(&slot, Job::Event(Event::Flushed { ticket, ok: result.is_ok() }));
        });
    }

    fn retry_later(self: &Arc<Self>, slot: &Arc<Slot>, server: ServerId) {
        let (driver, slot) = (self.clone(), slot.clone());
        self.spawn(async move {
            tokio::time::sleep(RETRY).await;
            driver.push(&slot, Job::Event(Event::Retry(server)));
        });
    }

    /// Bytes of a prepared write, with their checksum.
    pub(super) fn payload_of(
        &self,
        slot: &Slot,
        state: &State,
        write: &PreparedWrite,
    ) -> Result<(Bytes, u32), StoreError> {
        if write.kind != WriteKind::Data {
            return Ok((Bytes::new(), 0));
        }
        if let Some(known) = state.payloads.get(&write.sequence()) {
            return Ok(known.clone());
        }
        let bytes = self.store.prepared_data(slot.handle, write.sequence())?;
        let crc = gfs_net::crc32c(&bytes);
        Ok((bytes, crc))
    }
}
