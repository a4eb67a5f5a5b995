//! Filling a syncing server and making it a member; and what a primary wants of the master.

use super::machine::Replica;
use super::types::{Action, Message, OperationRecord, Role, SettledAs, Status, WantedChange};
use crate::breaks::Break;
use crate::ids::{Epoch, Sequence, ServerId};

impl Replica {
    pub(super) fn begin_fill(&mut self, server: ServerId, answer: SettledAs, out: &mut Vec<Action>) {
        out.push(Action::Fill { to: server, epoch: self.epoch(), base: answer.base, trusted: answer.trusted });
    }

    pub(super) fn on_filled(&mut self, server: ServerId, epoch: Epoch, out: &mut Vec<Action>) {
        let current = epoch == self.epoch() && self.role() == Role::Primary && self.is_syncing(server);
        if current && !self.failing.contains(&server) && self.peers.get(&server).is_some_and(|peer| peer.settled) {
            self.count(server, out);
        }
    }

    /// From now on the server counts like a member, for commits and flushes. What was copied and prepared
    /// before is flushed once more, so that no flush in between has passed it by.
    fn count(&mut self, server: ServerId, out: &mut Vec<Action>) {
        self.counting.insert(server);
        self.flush_recruit(server, out);
    }

    /// It begins to be filled again, in another process: what an earlier one held counts no more.
    pub(super) fn forget_recruit(&mut self, server: ServerId) {
        self.counting.remove(&server);
        self.durable.remove(&server);
        self.recruit_flushes.retain(|_, other| *other != server);
    }

    /// Has a counting server make its copy durable, once it is known to hold everything committed. What it has acknowledged may
    /// lag behind: a flush of less would leave out what a sync, that did not wait for this server, has promised.
    pub(super) fn flush_recruit(&mut self, server: ServerId, out: &mut Vec<Action>) {
        let asked = self.durable.contains(&server) || self.recruit_flushes.values().any(|other| *other == server);
        if asked || !self.counting.contains(&server) || self.prepared_of(server) < self.committed {
            return;
        }
        let ticket = self.ticket();
        self.recruit_flushes.insert(ticket, server);
        out.push(Action::Send { to: server, message: Message::Flush { ticket, committed: self.committed } });
    }

    pub(super) fn ask_if_ready(&mut self, server: ServerId, out: &mut Vec<Action>) {
        if self.is_ready(server) {
            out.push(Action::AskMaster);
        }
    }

    fn is_ready(&self, server: ServerId) -> bool {
        let stable = self.durable.contains(&server) || self.breaks.is(Break::PromotedBeforeStable);
        stable
            && self.counting.contains(&server)
            && !self.failing.contains(&server)
            && self.prepared_of(server) >= self.committed
    }

    /// The change of the configuration that this primary needs, if any. The driver asks the master for it,
    /// again and again, until a newer configuration is known or nothing is wanted any more.
    pub fn wanted_change(&self) -> Option<WantedChange> {
        if self.role() != Role::Primary {
            return None;
        }
        let failed: Vec<ServerId> = self.failing.iter().copied().collect();
        let ready: Vec<ServerId> = self.counting.iter().copied().filter(|server| self.is_ready(*server)).collect();
        if failed.is_empty() && ready.is_empty() {
            return None;
        }
        Some(WantedChange { epoch: self.epoch(), failed, ready })
    }

    /// Whether a piece of blocks as of `committed` may replace the local ones now; commits up to there
    /// first. The actions are to be carried out before the piece is applied.
    ///
    /// # Errors
    /// `OutOfOrder` when this server is before or past that point, and others when it is not being filled.
    pub fn accept_copy(&mut self, epoch: Epoch, committed: Sequence) -> Result<Vec<Action>, Status> {
        let mut out = Vec::new();
        match self.role() {
            _ if self.is_foreign(epoch) => return Err(Status::StaleEpoch),
            Role::Syncing => {}
            _ => return Err(Status::NotMember),
        }
        if self.broken {
            return Err(Status::IoError);
        }
        if !self.settled {
            return Err(Status::Busy);
        }
        let elsewhen = self.prepared() < committed || self.committed > committed;
        if elsewhen && !self.breaks.is(Break::CopyOfAnotherMoment) {
            return Err(Status::OutOfOrder);
        }
        self.commit_up_to(committed, &mut out);
        Ok(out)
    }

    /// The last piece has been applied: the replica has this length, and these operations besides those
    /// that are prepared here.
    pub fn finish_copy(&mut self, length: u64, operations: &[OperationRecord]) {
        self.refilled = true;
        self.filling = false;
        self.operations = self.operations.filled(self.committed, operations);
        self.length = length;
    }

    /// Whether a copy to `server` that began in `epoch` may go on, at this primary.
    pub fn is_filling(&self, server: ServerId, epoch: Epoch) -> bool {
        epoch == self.epoch()
            && self.role() == Role::Primary
            && self.is_syncing(server)
            && !self.failing.contains(&server)
            && self.peers.get(&server).is_some_and(|peer| peer.settled)
    }

    /// What a syncing server is behind by, for whoever watches: prepared here and not there.
    pub fn lag(&self, server: ServerId) -> u64 {
        let Sequence(mine) = self.prepared();
        mine.saturating_sub(self.prepared_of(server).0)
    }
}
