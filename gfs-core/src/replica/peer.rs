//! What a server does with its primary's messages.

use super::machine::{FlushFor, Replica, Storing};
use super::types::{Action, Event, Message, Outcome, PreparedWrite, Role, SettledAs, Status, Token};
use crate::breaks::Break;
use crate::ids::{Epoch, Sequence};

impl Replica {
    pub(super) fn on_message(&mut self, token: Option<Token>, epoch: Epoch, message: Message, out: &mut Vec<Action>) {
        if let Some(status) = self.refuse_message(epoch, &message) {
            return answer(token, Outcome::at(status, self.prepared()), out);
        }
        match message {
            Message::Settle { committed, prepared } => self.on_settle(token, committed, prepared, out),
            Message::Prepare { write, confirmed, committed } => {
                self.on_prepare(token, write, confirmed, committed, out);
            }
            Message::Committed(sequence) => {
                self.commit_up_to(sequence, out);
                answer(token, Outcome::at(Status::Ok, self.committed), out);
            }
            Message::Flush { committed, .. } => self.on_flush(token, committed, out),
        }
    }

    fn refuse_message(&self, epoch: Epoch, message: &Message) -> Option<Status> {
        match self.role() {
            _ if self.is_foreign(epoch) => Some(Status::StaleEpoch),
            Role::Outside => Some(Status::NotMember),
            Role::Primary => Some(Status::Malformed),
            _ if self.broken => Some(Status::IoError),
            _ if !self.settled && !matches!(message, Message::Settle { .. }) => Some(Status::Busy),
            _ => None,
        }
    }

    /// Agrees with the primary's prefix. Only writes of older epochs are forgotten: the primary of this one
    /// stored each of its writes before it sent it, so it can't lack one that is here.
    fn on_settle(&mut self, token: Option<Token>, committed: Sequence, prepared: Sequence, out: &mut Vec<Action>) {
        let syncing = self.role() == Role::Syncing;
        if syncing && !self.settled {
            self.start_fill(committed, out);
        } else if !syncing {
            let epoch = self.epoch();
            let keep = self
                .log
                .values()
                .take_while(|write| write.sequence() <= prepared || write.version.epoch == epoch)
                .last()
                .map_or(self.committed, PreparedWrite::sequence);
            if !self.breaks.is(Break::TailNotSettled) {
                self.roll_back_above(keep, out);
            }
        }
        // Everything committed was prepared here once, so a member that lacks some of it has lost something.
        let lacking = self.prepared() < committed;
        if lacking && !syncing && !self.suspect {
            self.suspect = true;
            // What is here may be a new file in place of a lost one: the next process must not take it for whole.
            out.push(Action::Suspect(true));
        }
        let suspect = self.suspect && !syncing && !self.breaks.is(Break::SuspectServes);
        self.settled = !suspect;
        if self.settled {
            self.commit_up_to(committed, out);
        }
        let told = if self.breaks.is(Break::TailNotSettled) { self.prepared().min(prepared) } else { self.prepared() };
        let settled = SettledAs { prepared: told, suspect, trusted: syncing && self.trusted, base: self.base };
        let outcome = Outcome { settled: Some(settled), ..Outcome::at(Status::Ok, self.prepared()) };
        answer(token, outcome, out);
    }

    /// A syncing server begins anew: what it had prepared is forgotten, and writes above `base` will come.
    fn start_fill(&mut self, base: Sequence, out: &mut Vec<Action>) {
        self.refilled = false;
        self.filling = true;
        self.log.clear();
        // What it held beyond the primary's history is not part of it, after a power loss of all members.
        self.operations.roll_back(self.committed.min(base));
        self.trusted &= self.committed <= base;
        self.committed = base;
        self.base = base;
        out.push(Action::StartFill { base });
    }

    fn on_prepare(
        &mut self,
        token: Option<Token>,
        write: PreparedWrite,
        confirmed: u64,
        committed: Sequence,
        out: &mut Vec<Action>,
    ) {
        let prepared = self.prepared();
        if write.sequence() <= prepared {
            let other = self.log.get(&write.sequence()).is_some_and(|mine| mine.version != write.version);
            let other = other && !self.breaks.is(Break::TailNotSettled);
            let status = if other { Status::OutOfOrder } else { Status::Ok };
            self.commit_up_to(committed, out);
            return answer(token, Outcome::at(status, prepared), out);
        }
        if write.sequence() != prepared.next() && !self.breaks.is(Break::GapInPrepares) {
            return answer(token, Outcome::at(Status::OutOfOrder, prepared), out);
        }
        self.commit_up_to(committed, out);
        self.storing = Some(Storing::Prepare { write, confirmed, token });
        out.push(Action::Store { write, confirmed });
    }

    pub(super) fn stored_prepare(
        &mut self,
        write: PreparedWrite,
        confirmed: u64,
        token: Option<Token>,
        result: Result<(), Status>,
        out: &mut Vec<Action>,
    ) {
        match result {
            Ok(()) => {
                self.append_to_log(write, confirmed);
                if self.breaks.is(Break::PreparedServedAsCommitted) && self.role() == Role::Secondary {
                    self.commit_up_to(self.prepared(), out);
                }
                answer(token, Outcome::at(Status::Ok, self.prepared()), out);
            }
            Err(status) => {
                answer(token, Outcome::at(status, self.prepared()), out);
                if status != Status::Busy {
                    // A full disk too: the primary goes on without this server, which agrees to leave.
                    out.extend(self.handle(Event::Broken));
                }
            }
        }
    }

    fn on_flush(&mut self, token: Option<Token>, committed: Sequence, out: &mut Vec<Action>) {
        if self.prepared() < committed {
            return answer(token, Outcome::at(Status::OutOfOrder, self.prepared()), out);
        }
        self.commit_up_to(committed, out);
        let ticket = self.ticket();
        self.flushes.insert(ticket, FlushFor::Primary { token, committed });
        out.push(Action::Flush(ticket));
    }
}

fn answer(token: Option<Token>, outcome: Outcome, out: &mut Vec<Action>) {
    if let Some(token) = token {
        out.push(Action::Reply { token, outcome });
    }
}
