//! The primary's side of a write: order, store, send, count, commit, answer; and the barrier of fsync.

use super::machine::{Barrier, FlushFor, Replica, Storing};
use super::operations::Seen;
use super::types::{Action, Answer, Message, Mutation, Outcome, PreparedWrite, Role, Status, Ticket, Token, WriteKind};
use crate::breaks::Break;
use crate::ids::{BlockVersion, Epoch, OperationId, Sequence, ServerId};
use std::collections::BTreeSet;

/// A mutation as it is asked for.
pub(super) struct Wanted {
    pub(super) operation: OperationId,
    pub(super) confirmed: u64,
    pub(super) mutation: Mutation,
    pub(super) fenced: bool,
}

impl Replica {
    pub(super) fn mutate(
        &mut self,
        token: Token,
        epoch: Epoch,
        Wanted { operation, confirmed, mutation, fenced }: Wanted,
        out: &mut Vec<Action>,
    ) {
        let reply = |status| Action::Reply { token, outcome: Outcome::of(status) };
        if let Some(status) = self.refuse_order(epoch) {
            return out.push(reply(status));
        }
        let seen = if self.breaks.is(Break::RepeatApplied) { Seen::New } else { self.operations.seen(operation) };
        match seen {
            Seen::Known(record) if record.sequence <= self.committed => {
                let cut = self.operations.cut_before(record.sequence);
                let outcome = Outcome { offset: record.offset, cut, ..Outcome::at(Status::Ok, record.sequence) };
                return out.push(Action::Reply { token, outcome });
            }
            Seen::Known(record) => return self.waiting.entry(record.sequence).or_default().push(token),
            Seen::Confirmed => return out.push(reply(Status::Malformed)),
            Seen::New if fenced => return out.push(reply(Status::Fenced)),
            Seen::New => {}
        }
        let members = self.configuration().map_or(0, |known| known.members.len());
        let recruiting = self.configuration().is_some_and(|known| !known.syncing.is_empty());
        if members < self.minimum || (members == 1 && recruiting) {
            return out.push(reply(Status::Busy));
        }
        let (kind, offset, length, append) = match mutation {
            Mutation::At { kind, offset, length } => (kind, offset, length, false),
            Mutation::Append { min_offset, limit, length } => {
                let offset = self.tail().max(min_offset);
                if offset.checked_add(length).is_none_or(|end| end > limit) {
                    let outcome = Outcome { offset: self.tail(), ..Outcome::of(Status::NoRoom) };
                    return out.push(Action::Reply { token, outcome });
                }
                (WriteKind::Data, offset, length, true)
            }
        };
        if offset.checked_add(length).is_none() {
            return out.push(reply(Status::Malformed));
        }
        let version = BlockVersion { epoch: self.epoch(), sequence: self.prepared().next() };
        let write = PreparedWrite { version, operation, kind, offset, length, append };
        self.storing = Some(Storing::Own { write, confirmed, token });
        out.push(Action::Store { write, confirmed });
    }

    /// Why a mutation or a flush can't be ordered here, if so.
    fn refuse_order(&self, epoch: Epoch) -> Option<Status> {
        match self.role() {
            _ if self.is_foreign(epoch) => Some(Status::StaleEpoch),
            Role::Outside => Some(Status::NotMember),
            Role::Secondary | Role::Syncing => Some(Status::NotPrimary),
            Role::Primary => self.refuse_service(epoch),
        }
    }

    pub(super) fn stored(&mut self, result: Result<(), Status>, out: &mut Vec<Action>) {
        match self.storing.take() {
            Some(Storing::Own { write, confirmed, token }) => match result {
                Ok(()) => self.send_own(write, confirmed, token, out),
                Err(status) => {
                    out.push(Action::Reply { token, outcome: Outcome::of(status) });
                    if status != Status::NoSpace && status != Status::Busy {
                        self.handle_broken(out);
                    }
                }
            },
            Some(Storing::Prepare { write, confirmed, token }) => {
                self.stored_prepare(write, confirmed, token, result, out);
            }
            None => {}
        }
    }

    pub(super) fn handle_broken(&mut self, out: &mut Vec<Action>) {
        out.extend(self.handle(super::types::Event::Broken));
    }

    fn send_own(&mut self, write: PreparedWrite, confirmed: u64, token: Token, out: &mut Vec<Action>) {
        self.append_to_log(write, confirmed);
        self.waiting.entry(write.sequence()).or_default().push(token);
        self.confirmations.insert(write.sequence(), confirmed);
        let committed = self.committed;
        for to in self.peers.keys() {
            out.push(Action::Send { to: *to, message: Message::Prepare { write, confirmed, committed } });
        }
        self.advance(out);
    }

    /// Commits what every counting server holds, answers, and tells the others.
    pub(super) fn advance(&mut self, out: &mut Vec<Action>) {
        if self.role() != Role::Primary || !self.settled || self.broken {
            return;
        }
        let before = self.committed;
        let held = self.counted().map(|server| self.peers.get(&server).map_or(Sequence(0), |peer| peer.acked));
        let slowest = if self.breaks.is(Break::CommittedBeforeAll) { held.max() } else { held.min() };
        let upto = slowest.unwrap_or_else(|| self.prepared());
        self.commit_up_to(upto, out);
        if self.committed == before {
            return;
        }
        let rest = self.waiting.split_off(&self.committed.next());
        for (sequence, tokens) in std::mem::replace(&mut self.waiting, rest) {
            self.answer_committed(sequence, tokens, out);
        }
        self.confirmations = self.confirmations.split_off(&self.committed.next());
        if self.log.is_empty() {
            let message = Message::Committed(self.committed);
            out.extend(self.peers.keys().map(|to| Action::Send { to: *to, message: message.clone() }));
        }
    }

    /// The other servers that must hold a write before it commits.
    pub(super) fn counted(&self) -> impl Iterator<Item = ServerId> {
        let members = self.configuration().into_iter().flat_map(|known| known.members.iter());
        members.chain(self.counting.iter()).copied().filter(|server| *server != self.me)
    }

    fn answer_committed(&self, sequence: Sequence, tokens: Vec<Token>, out: &mut Vec<Action>) {
        let offset = self.operations.offset_of(sequence);
        let cut = self.operations.cut_before(sequence);
        for token in tokens {
            let outcome = Outcome { offset, cut, ..Outcome::at(Status::Ok, sequence) };
            out.push(Action::Reply { token, outcome });
        }
    }

    pub(super) fn on_answer(&mut self, from: ServerId, epoch: Epoch, answer: Answer, out: &mut Vec<Action>) {
        if self.is_foreign(epoch) || self.role() != Role::Primary || !self.peers.contains_key(&from) {
            return;
        }
        match answer {
            Answer::Settle(outcome) => self.on_settled(from, outcome, out),
            Answer::Prepare(outcome) => self.on_prepared(from, outcome, out),
            Answer::Flush(ticket, outcome) => self.on_flushed_at(from, ticket, outcome, out),
        }
    }

    fn on_prepared(&mut self, from: ServerId, outcome: Outcome, out: &mut Vec<Action>) {
        match outcome.status {
            Status::Ok => {
                let (prepared, syncing) = (self.prepared(), self.is_syncing(from));
                if let Some(peer) = self.peers.get_mut(&from) {
                    let acked = outcome.sequence.min(prepared);
                    if acked > peer.acked {
                        peer.acked = acked;
                        if !syncing {
                            // It is back in time. A copy that failed is not mended by that.
                            self.failing.remove(&from);
                        }
                    }
                }
                self.advance(out);
                self.flush_recruit(from, out);
                self.ask_if_ready(from, out);
            }
            status => self.on_peer_trouble(from, status, out),
        }
    }

    /// A server did not take a message: try again, or go on without it.
    pub(super) fn on_peer_trouble(&mut self, from: ServerId, status: Status, out: &mut Vec<Action>) {
        match status {
            Status::Ok => {}
            // The driver has fed the newer configuration; an older one there is mended by a settle.
            Status::StaleEpoch | Status::Busy | Status::OutOfOrder | Status::TimedOut | Status::NoLease => {
                if self.is_syncing(from) && self.settled && status != Status::StaleEpoch {
                    // A syncing server that lost its place is filled from the start by a new recruitment.
                    return self.fail(from, out);
                }
                if status == Status::Busy {
                    self.unsettle(from);
                }
                self.retry_later(from, out);
            }
            _ => self.fail(from, out),
        }
    }

    pub(super) fn fail(&mut self, server: ServerId, out: &mut Vec<Action>) {
        if self.failing.insert(server) {
            out.push(Action::AskMaster);
        }
    }

    pub(super) fn retry_later(&mut self, server: ServerId, out: &mut Vec<Action>) {
        if let Some(peer) = self.peers.get_mut(&server)
            && !peer.retrying
        {
            peer.retrying = true;
            out.push(Action::RetryLater(server));
        }
    }

    pub(super) fn on_unreachable(&mut self, server: ServerId, epoch: Epoch, out: &mut Vec<Action>) {
        if epoch != self.epoch() || self.role() != Role::Primary || !self.peers.contains_key(&server) {
            return;
        }
        self.fail(server, out);
        self.retry_later(server, out);
    }

    pub(super) fn on_retry(&mut self, server: ServerId, out: &mut Vec<Action>) {
        let failing = self.failing.contains(&server);
        let Some(peer) = self.peers.get_mut(&server) else {
            return;
        };
        peer.retrying = false;
        let settled = peer.settled;
        if settled && failing && self.is_syncing(server) {
            // It may have lost its place: only a new recruitment mends that.
            return;
        }
        if !settled || failing {
            // A repeated settle does no harm, and its answer tells that the member is back.
            return self.send_settle(server, out);
        }
        let Some(peer) = self.peers.get(&server) else {
            return;
        };
        let after = peer.acked;
        self.send_log(server, after, out);
        self.send_barriers(server, out);
    }

    /// Sends everything uncommitted after `after` again.
    pub(super) fn send_log(&mut self, to: ServerId, after: Sequence, out: &mut Vec<Action>) {
        if after < self.committed {
            // What it lacks has taken effect here and can't be sent as a write any more.
            return self.fail(to, out);
        }
        for (sequence, write) in self.log.range(after.next()..) {
            let confirmed = self.confirmations.get(sequence).copied().unwrap_or(0);
            let message = Message::Prepare { write: *write, confirmed, committed: self.committed };
            out.push(Action::Send { to, message });
        }
        if self.log.is_empty() {
            out.push(Action::Send { to, message: Message::Committed(self.committed) });
        }
    }

    pub(super) fn on_committed_query(
        &mut self,
        token: Token,
        epoch: Epoch,
        unsettled: Option<ServerId>,
        out: &mut Vec<Action>,
    ) {
        if let Some(server) = unsettled
            && epoch == self.epoch()
            && self.role() == Role::Primary
        {
            self.unsettle(server);
            self.begin_settle_if_idle(out);
            self.retry_later(server, out);
        }
        let outcome = match self.refuse_order(epoch) {
            Some(status) => Outcome::of(status),
            None => Outcome::at(Status::Ok, self.committed),
        };
        out.push(Action::Reply { token, outcome });
    }

    pub(super) fn sync(&mut self, token: Token, epoch: Epoch, out: &mut Vec<Action>) {
        if let Some(status) = self.refuse_order(epoch) {
            return out.push(Action::Reply { token, outcome: Outcome::of(status) });
        }
        let ticket = self.ticket();
        let mut missing: BTreeSet<ServerId> = self.counted().collect();
        if self.breaks.is(Break::SyncOfPrimaryOnly) {
            missing.clear();
        }
        for to in &missing {
            let message = Message::Flush { ticket, committed: self.committed };
            out.push(Action::Send { to: *to, message });
        }
        missing.insert(self.me);
        self.barriers.insert(ticket, Barrier { token, missing, committed: self.committed });
        self.flushes.insert(ticket, FlushFor::Barriers);
        out.push(Action::Flush(ticket));
    }

    /// Sends the flushes that a server has not answered again.
    pub(super) fn send_barriers(&mut self, to: ServerId, out: &mut Vec<Action>) {
        for (ticket, barrier) in &self.barriers {
            if barrier.missing.contains(&to) {
                let message = Message::Flush { ticket: *ticket, committed: barrier.committed };
                out.push(Action::Send { to, message });
            }
        }
        for (ticket, server) in &self.recruit_flushes {
            if *server == to {
                let message = Message::Flush { ticket: *ticket, committed: self.committed };
                out.push(Action::Send { to, message });
            }
        }
    }

    pub(super) fn flushed(&mut self, ticket: Ticket, ok: bool, out: &mut Vec<Action>) {
        let ok = ok || self.breaks.is(Break::FlushFailureIgnored);
        match self.flushes.remove(&ticket) {
            Some(FlushFor::Barriers) if ok => self.barrier_done(ticket, self.me, out),
            Some(FlushFor::Primary { token, committed }) => {
                let status = if ok { Status::Ok } else { Status::IoError };
                if let Some(token) = token {
                    out.push(Action::Reply { token, outcome: Outcome::at(status, committed) });
                }
                if !ok {
                    self.handle_broken(out);
                }
            }
            Some(FlushFor::Barriers) => self.handle_broken(out),
            None => {}
        }
    }

    fn on_flushed_at(&mut self, from: ServerId, ticket: Ticket, outcome: Outcome, out: &mut Vec<Action>) {
        if outcome.status != Status::Ok {
            return self.on_peer_trouble(from, outcome.status, out);
        }
        if self.failing.contains(&from) {
            self.retry_later(from, out);
        }
        if self.recruit_flushes.get(&ticket) == Some(&from) {
            self.recruit_flushes.remove(&ticket);
            self.durable.insert(from);
            return self.ask_if_ready(from, out);
        }
        self.barrier_done(ticket, from, out);
    }

    pub(super) fn barrier_done(&mut self, ticket: Ticket, server: ServerId, out: &mut Vec<Action>) {
        let Some(barrier) = self.barriers.get_mut(&ticket) else {
            return;
        };
        barrier.missing.remove(&server);
        if barrier.missing.is_empty() {
            let outcome = Outcome::at(Status::Ok, barrier.committed);
            out.push(Action::Reply { token: barrier.token, outcome });
            self.barriers.remove(&ticket);
        }
    }
}
