//! The state of a replica, its doors, and the questions that change nothing.

use super::operations::OperationTable;
use super::primary::Wanted;
use super::types::{
    Action, Event, Loaded, OperationRecord, Outcome, PreparedWrite, ReadPlan, Role, Status, Ticket, Token, WriteKind,
};
use crate::breaks::{Break, Broken};
use crate::ids::{Epoch, Sequence, ServerId};
use crate::meta::request::Configuration;
use std::collections::{BTreeMap, BTreeSet};

/// What a primary knows of another server of its configuration.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Peer {
    /// It answered the settle of this epoch.
    pub settled: bool,
    /// It holds everything up to here.
    pub acked: Sequence,
    /// A retry is on its way.
    pub retrying: bool,
}

/// A flush that clients wait for, at a primary.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Barrier {
    pub token: Token,
    /// Servers that have not said that theirs is done, this one included.
    pub missing: BTreeSet<ServerId>,
    /// What was committed when it was asked.
    pub committed: Sequence,
}

/// What waits for the local store or disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Storing {
    /// A client's write at the primary.
    Own { write: PreparedWrite, confirmed: u64, token: Token },
    /// A primary's prepare.
    Prepare { write: PreparedWrite, confirmed: u64, token: Option<Token> },
}

/// What a flush of this server is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum FlushFor {
    /// Barriers of this primary.
    Barriers,
    /// The primary of this server.
    Primary { token: Option<Token>, committed: Sequence },
}

/// One chunk on one server.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    pub(super) me: ServerId,
    pub(super) configuration: Option<Configuration>,
    pub(super) leased: bool,
    /// The master has confirmed the configuration in this term of the lease.
    pub(super) in_force: bool,
    pub(super) broken: bool,
    pub(super) suspect: bool,
    /// A fill has begun and not ended.
    pub(super) filling: bool,
    /// Members below which a primary refuses writes.
    pub(super) minimum: usize,
    pub(super) committed: Sequence,
    pub(super) length: u64,
    /// Prepared and not committed, without a gap above `committed`.
    pub(super) log: BTreeMap<Sequence, PreparedWrite>,
    pub(super) operations: OperationTable,
    /// This epoch's primary and this server agree; of a primary: everybody has settled.
    pub(super) settled: bool,
    pub(super) storing: Option<Storing>,
    pub(super) next_ticket: u64,
    pub(super) flushes: BTreeMap<Ticket, FlushFor>,

    // Of a primary.
    pub(super) peers: BTreeMap<ServerId, Peer>,
    pub(super) waiting: BTreeMap<Sequence, Vec<Token>>,
    pub(super) confirmations: BTreeMap<Sequence, u64>,
    pub(super) barriers: BTreeMap<Ticket, Barrier>,
    pub(super) failing: BTreeSet<ServerId>,
    /// Syncing servers that are full: they count like members from then on.
    pub(super) counting: BTreeSet<ServerId>,
    /// Of those, the ones whose copy is on stable storage.
    pub(super) durable: BTreeSet<ServerId>,
    /// Flushes that make a full syncing server's copy durable.
    pub(super) recruit_flushes: BTreeMap<Ticket, ServerId>,

    /// It was a member in the last configuration that named it: its committed blocks are whole.
    pub(super) whole: bool,
    /// This process has taken a whole copy since it last began to be filled.
    pub(super) refilled: bool,

    // Of a syncing server.
    pub(super) trusted: bool,
    pub(super) base: Sequence,

    pub(super) breaks: Broken,
}

impl Replica {
    /// A replica as the store found it when the server started. A new one is `Loaded::default()`.
    pub fn new(me: ServerId, loaded: Loaded) -> Self {
        let log: BTreeMap<_, _> = loaded.prepared.iter().map(|write| (write.sequence(), *write)).collect();
        let mut replica = Self {
            me,
            configuration: loaded.configuration,
            leased: false,
            in_force: false,
            broken: false,
            suspect: loaded.suspect,
            filling: loaded.filling,
            minimum: 1,
            committed: loaded.committed,
            length: loaded.length,
            log,
            operations: OperationTable::from_records(&loaded.operations),
            settled: false,
            storing: None,
            next_ticket: 1,
            flushes: BTreeMap::new(),
            peers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            confirmations: BTreeMap::new(),
            barriers: BTreeMap::new(),
            failing: BTreeSet::new(),
            counting: BTreeSet::new(),
            durable: BTreeSet::new(),
            recruit_flushes: BTreeMap::new(),
            whole: false,
            refilled: false,
            trusted: false,
            base: Sequence(0),
            breaks: Broken::default(),
        };
        replica.whole = matches!(replica.role(), Role::Primary | Role::Secondary);
        replica
    }

    /// Breaks a rule from now on, to show that somebody notices.
    pub fn break_rule(&mut self, breaks: Broken) {
        self.breaks = breaks;
    }

    /// Takes an event, returns what is to be done, in order.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Lease(held) => self.on_lease(held, &mut out),
            Event::Configuration(configuration) => self.learn(configuration, &mut out),
            Event::InForce(configuration) => self.on_in_force(configuration, &mut out),
            Event::Mutate { token, epoch, operation, confirmed, mutation, fenced } => {
                self.mutate(token, epoch, Wanted { operation, confirmed, mutation, fenced }, &mut out);
            }
            Event::Sync { token, epoch } => self.sync(token, epoch, &mut out),
            Event::Stored(result) => self.stored(result, &mut out),
            Event::Flushed { ticket, ok } => self.flushed(ticket, ok, &mut out),
            Event::Broken => self.on_broken(&mut out),
            Event::Peer { token, epoch, message } => self.on_message(token, epoch, message, &mut out),
            Event::Answer { from, epoch, answer } => self.on_answer(from, epoch, answer, &mut out),
            Event::Unreachable { server, epoch } => self.on_unreachable(server, epoch, &mut out),
            Event::Retry(server) => self.on_retry(server, &mut out),
            Event::CommittedQuery { token, epoch, unsettled } => {
                self.on_committed_query(token, epoch, unsettled, &mut out);
            }
            Event::CommittedLearned { epoch, committed } => {
                if epoch == self.epoch() && self.role() == Role::Secondary && self.settled {
                    self.commit_up_to(committed, &mut out);
                }
            }
            Event::Filled { server, epoch } => self.on_filled(server, epoch, &mut out),
        }
        out
    }

    /// The epoch of the newest configuration known here; 0 when none is.
    pub fn epoch(&self) -> Epoch {
        self.configuration.as_ref().map_or(Epoch(0), |configuration| configuration.epoch)
    }

    /// The newest configuration known here.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.configuration.as_ref()
    }

    /// What this server is in it.
    pub fn role(&self) -> Role {
        match &self.configuration {
            Some(known) if known.primary == self.me => Role::Primary,
            Some(known) if known.members.contains(&self.me) => Role::Secondary,
            Some(known) if known.syncing.contains(&self.me) => Role::Syncing,
            _ => Role::Outside,
        }
    }

    /// Everything up to here is committed and in place.
    pub fn committed(&self) -> Sequence {
        self.committed
    }

    /// Everything up to here is stored.
    pub fn prepared(&self) -> Sequence {
        self.log.last_key_value().map_or(self.committed, |(sequence, _)| *sequence)
    }

    /// Whether this epoch's servers agree; a replica that has not settled serves nothing.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Whether it may lack something after a power loss.
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Whether the local copy can't be used any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Length of the committed bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Where an append would land: the length once everything prepared has taken effect.
    pub fn tail(&self) -> u64 {
        self.log.values().fold(self.length, length_after)
    }

    /// The operation table, to give to a server that is being filled.
    pub fn operations(&self) -> Vec<OperationRecord> {
        self.operations.records().into_iter().filter(|record| record.sequence <= self.committed).collect()
    }

    /// A prepared write that has not taken effect.
    pub fn pending(&self, sequence: Sequence) -> Option<&PreparedWrite> {
        self.log.get(&sequence)
    }

    /// Sets how many members a primary must have to accept a write: min(2, replica goal).
    pub fn set_minimum(&mut self, members: usize) {
        self.minimum = members.max(1);
    }

    /// How a read of `[offset, offset + length)` is to be answered. The lease is to be checked again, by
    /// calling this again, after the bytes were read.
    pub fn plan_read(&self, epoch: Epoch, offset: u64, length: u64) -> ReadPlan {
        if let Some(status) = self.refuse_service(epoch) {
            return ReadPlan::Refuse(status);
        }
        match self.role() {
            Role::Primary => ReadPlan::Local,
            Role::Secondary if self.breaks.is(Break::ReadBesidePrepared) => ReadPlan::Local,
            Role::Secondary if !self.log.values().any(|write| write.overlaps(offset, length)) => ReadPlan::Local,
            Role::Secondary => ReadPlan::AskPrimary(self.primary()),
            Role::Syncing | Role::Outside => ReadPlan::Refuse(Status::NotMember),
        }
    }

    /// Why a client can't be served under `epoch`, if so. Order matters: what the sender can mend first.
    pub(super) fn refuse_service(&self, epoch: Epoch) -> Option<Status> {
        match self.role() {
            _ if self.is_foreign(epoch) => Some(Status::StaleEpoch),
            Role::Outside | Role::Syncing => Some(Status::NotMember),
            _ if self.broken => Some(Status::IoError),
            _ if !self.leased && !self.breaks.is(Break::ServedWithoutLease) => Some(Status::NoLease),
            _ if !self.settled && !self.breaks.is(Break::ServedUnsettled) => Some(Status::Busy),
            _ if !self.in_force && !self.breaks.is(Break::ServedWithoutLease) => Some(Status::Busy),
            _ => None,
        }
    }

    /// Whether a message or a request belongs to another configuration.
    pub(super) fn is_foreign(&self, epoch: Epoch) -> bool {
        epoch != self.epoch() && !self.breaks.is(Break::EpochUnchecked)
    }

    /// Whether the master has confirmed the configuration since the lease began; until then the driver
    /// asks it.
    pub fn is_in_force(&self) -> bool {
        self.in_force
    }

    /// Whether this server may serve clients in the epoch known to it.
    pub fn is_serving(&self) -> bool {
        self.refuse_service(self.epoch()).is_none()
    }

    /// The server that orders writes, as far as is known here.
    pub fn primary(&self) -> ServerId {
        self.configuration.as_ref().map_or(ServerId(0), |known| known.primary)
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    /// Lets prepared writes up to `upto` take effect, as far as they are here.
    pub(super) fn commit_up_to(&mut self, upto: Sequence, out: &mut Vec<Action>) {
        let upto = upto.min(self.prepared());
        if upto <= self.committed {
            return;
        }
        let rest = self.log.split_off(&upto.next());
        let done = std::mem::replace(&mut self.log, rest);
        self.length = done.values().fold(self.length, length_after);
        self.committed = upto;
        out.push(Action::Commit(upto));
    }

    /// Forgets prepared writes above `above`.
    pub(super) fn roll_back_above(&mut self, above: Sequence, out: &mut Vec<Action>) {
        if above >= self.prepared() {
            return;
        }
        self.log.split_off(&above.next());
        self.operations.roll_back(above);
        out.push(Action::RollBack(above));
    }

    /// Remembers a write that the local store holds.
    pub(super) fn append_to_log(&mut self, write: PreparedWrite, confirmed: u64) {
        self.operations.confirm(write.operation.session, confirmed);
        self.operations.insert(OperationRecord {
            operation: write.operation,
            sequence: write.sequence(),
            offset: write.offset,
        });
        self.log.insert(write.sequence(), write);
    }

    fn on_lease(&mut self, held: bool, out: &mut Vec<Action>) {
        self.leased = held;
        self.in_force &= held;
        if held {
            self.begin_settle_if_idle(out);
        }
    }

    fn on_in_force(&mut self, configuration: Configuration, out: &mut Vec<Action>) {
        let epoch = configuration.epoch;
        self.learn(configuration, out);
        self.in_force = self.leased && epoch == self.epoch();
        self.begin_settle_if_idle(out);
    }

    fn on_broken(&mut self, out: &mut Vec<Action>) {
        if self.broken {
            return;
        }
        self.broken = true;
        if self.role() == Role::Primary {
            self.release_waiting(Status::IoError, out);
            self.failing.insert(self.me);
            out.push(Action::AskMaster);
        }
    }

    /// Answers everything that waits here, because this server can't finish it.
    pub(super) fn release_waiting(&mut self, status: Status, out: &mut Vec<Action>) {
        let writes = std::mem::take(&mut self.waiting).into_values().flatten();
        let barriers = std::mem::take(&mut self.barriers).into_values().map(|barrier| barrier.token);
        for token in writes.chain(barriers) {
            out.push(Action::Reply { token, outcome: Outcome::of(status) });
        }
    }
}

/// The replica's length after a write has taken effect.
pub(super) fn length_after(length: u64, write: &PreparedWrite) -> u64 {
    match write.kind {
        WriteKind::Data => length.max(write.end()),
        WriteKind::Zero => length,
        WriteKind::Truncate => length.min(write.offset),
    }
}
