//! Configurations: what a server does when it learns one, and how a primary makes the others agree.

use super::machine::{Peer, Replica};
use super::types::{Action, Message, Outcome, Role, Status};
use crate::breaks::Break;
use crate::ids::{Sequence, ServerId};
use crate::meta::request::Configuration;
use std::collections::BTreeSet;

impl Replica {
    /// Takes a configuration in force. An older one, or the one that is known, changes nothing.
    pub(super) fn learn(&mut self, next: Configuration, out: &mut Vec<Action>) {
        if next.epoch <= self.epoch() {
            return;
        }
        let before = self.role();
        let alone = next.members == [self.me];
        self.configuration = Some(next.clone());
        let role = self.role();
        self.settled = false;
        self.in_force = false;
        let was_member = before == Role::Primary || before == Role::Secondary || before == Role::Outside;
        self.trusted = role == Role::Syncing && was_member && self.whole && !self.suspect && !self.broken;
        if role == Role::Syncing {
            // Being filled mends whatever was wrong with the bytes; a bad disk will say so again.
            self.broken = false;
            self.whole = false;
        } else if role != Role::Outside {
            self.whole = true;
        }
        // Alone: what is whole of it is worth more than nothing; a failed disk will say so again.
        self.broken &= !alone;
        self.base = self.committed;
        out.push(Action::Persist(next));
        if self.filling && !alone && matches!(role, Role::Primary | Role::Secondary) && !self.suspect {
            // Its primary meant the copy that an earlier process held: this one has begun to replace it.
            self.suspect = true;
            out.push(Action::Suspect(true));
        }
        let promoted = before == Role::Syncing && role == Role::Secondary && self.refilled;
        if self.suspect && (alone || promoted) {
            // Alone: the master found nobody who knows more. Promoted: it was filled since, by this very process: one that
            // lost power after it was promoted may learn of the promotion only now.
            self.suspect = false;
            out.push(Action::Suspect(false));
        }
        if role == Role::Primary {
            self.begin_settle(out);
        } else {
            self.stop_leading(out);
        }
    }

    fn stop_leading(&mut self, out: &mut Vec<Action>) {
        self.release_waiting(Status::NotPrimary, out);
        self.peers.clear();
        self.forget_recruits();
        self.failing.clear();
        self.confirmations.clear();
    }

    fn forget_recruits(&mut self) {
        self.counting.clear();
        self.durable.clear();
        self.recruit_flushes.clear();
    }

    /// A primary of this epoch that has not begun to settle does so now.
    pub(super) fn begin_settle_if_idle(&mut self, out: &mut Vec<Action>) {
        if self.role() == Role::Primary && !self.settled && self.peers.is_empty() {
            self.begin_settle(out);
        }
    }

    /// Asks every other server of the configuration to agree with this one's prefix.
    pub(super) fn begin_settle(&mut self, out: &mut Vec<Action>) {
        let Some(known) = self.configuration.clone() else {
            return;
        };
        self.forget_recruits();
        self.failing.clear();
        self.settled = false;
        let others: BTreeSet<ServerId> =
            known.members.iter().chain(&known.syncing).copied().filter(|server| *server != self.me).collect();
        self.peers = others.iter().map(|server| (*server, Peer::default())).collect();
        let lacking = self.suspect && !self.breaks.is(Break::SuspectServes);
        let unsafe_leader = self.broken || lacking;
        if unsafe_leader {
            // It may lack what another member holds: somebody else has to lead. The only member needs a new epoch too: what it
            // said before it lost something, of syncing servers that are whole, may still arrive at the master. Nobody is a
            // peer meanwhile, so that nothing is sent, settled or filled from here.
            self.peers.clear();
            self.release_waiting(if self.broken { Status::IoError } else { Status::Busy }, out);
            self.failing.insert(self.me);
            return out.push(Action::AskMaster);
        }
        for server in others {
            self.send_settle(server, out);
        }
        self.finish_settle(out);
    }

    pub(super) fn send_settle(&mut self, to: ServerId, out: &mut Vec<Action>) {
        let message = Message::Settle { committed: self.committed, prepared: self.prepared() };
        out.push(Action::Send { to, message });
    }

    pub(super) fn unsettle(&mut self, server: ServerId) {
        if let Some(peer) = self.peers.get_mut(&server) {
            peer.settled = false;
        }
    }

    pub(super) fn on_settled(&mut self, from: ServerId, outcome: Outcome, out: &mut Vec<Action>) {
        let answer = match (outcome.status, outcome.settled) {
            (Status::Ok, Some(answer)) => answer,
            (Status::Ok, None) => return self.fail(from, out),
            (status, _) => return self.settle_again(from, status, out),
        };
        let syncing = self.is_syncing(from);
        if answer.suspect && !syncing {
            return self.fail(from, out);
        }
        if answer.prepared > self.prepared() && !syncing {
            // It holds more of this epoch than its primary does: this primary lost something.
            self.failing.insert(self.me);
            return out.push(Action::AskMaster);
        }
        let prepared = self.prepared();
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        let again = std::mem::replace(&mut peer.settled, true);
        peer.acked = peer.acked.max(answer.prepared.min(prepared));
        let acked = peer.acked;
        if acked < self.committed {
            return self.fail(from, out);
        }
        if !(syncing && again) {
            self.failing.remove(&from);
        }
        // Nothing commits before everybody has settled, so the settle that this answers told all that is committed.
        let told = !self.settled && self.log.is_empty() && acked == self.committed;
        if !told {
            self.send_log(from, acked, out);
        }
        self.send_barriers(from, out);
        if syncing && !again {
            self.forget_recruit(from);
            self.begin_fill(from, answer, out);
        }
        self.finish_settle(out);
        self.advance(out);
    }

    fn settle_again(&mut self, from: ServerId, status: Status, out: &mut Vec<Action>) {
        match status {
            Status::Busy | Status::StaleEpoch | Status::TimedOut | Status::NoLease => self.retry_later(from, out),
            _ => self.fail(from, out),
        }
    }

    /// Serves once everybody has agreed.
    fn finish_settle(&mut self, out: &mut Vec<Action>) {
        if self.settled || self.peers.values().any(|peer| !peer.settled) {
            return;
        }
        self.settled = true;
        self.restart_barriers(out);
        self.advance(out);
    }

    /// Flushes that clients wait for go on with the servers that count now.
    fn restart_barriers(&mut self, out: &mut Vec<Action>) {
        let counted: BTreeSet<ServerId> = self.counted().collect();
        let mut done = Vec::new();
        for (ticket, barrier) in &mut self.barriers {
            let own = barrier.missing.contains(&self.me);
            barrier.missing = counted.clone();
            if own {
                barrier.missing.insert(self.me);
            }
            if barrier.missing.is_empty() {
                done.push(*ticket);
            }
        }
        for server in &counted {
            self.send_barriers(*server, out);
        }
        for ticket in done {
            self.barrier_done(ticket, self.me, out);
        }
    }

    pub(super) fn is_syncing(&self, server: ServerId) -> bool {
        self.configuration().is_some_and(|known| known.syncing.contains(&server))
    }

    pub(super) fn prepared_of(&self, server: ServerId) -> Sequence {
        self.peers.get(&server).map_or(Sequence(0), |peer| peer.acked)
    }
}
