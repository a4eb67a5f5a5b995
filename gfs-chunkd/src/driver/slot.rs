//! One replica with what the driver keeps beside it, and the queue of what happens to it.
//!
//! A replica has no task of its own: whoever finds its queue idle works it off, in place when the work is light and on a
//! blocking thread when it is not. So events never reach a replica concurrently, and arrive in order.

use crate::control::ProblemKind;
use crate::control::lease::Term;
use crate::control::orders::Assigned;
use crate::store::ChunkHeader;
use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, Epoch, OperationId, Sequence, ServerId};
use gfs_core::meta::request::Configuration;
use gfs_core::replica::{Event, Message, Mutation, Outcome, Replica, Role, Token};
use gfs_net::Responder;
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

/// Jobs that may wait for one replica; beyond it requests are answered BUSY.
pub const MAX_JOBS: usize = 2048;
/// A payload of so many bytes is not handled on a task's thread: storing it takes longer than a hand-over.
pub const LIGHT: usize = 64 * 1024;

/// Nobody waits longer for an outcome: the answer is then TIMED_OUT, and a repeat finds out what became of it.
pub const WAIT: Duration = Duration::from_secs(30);

/// Who waits for an outcome.
pub enum Waiter {
    /// A client or another chunk server.
    Remote(Responder),
    /// This process.
    Internal(oneshot::Sender<Outcome>),
}

/// What is known of a token.
pub struct Waiting {
    /// Who waits.
    pub waiter: Waiter,
    /// Until when at most.
    pub until: Instant,
    /// For a mutation, so that it is told how much of the chunk is stored then.
    pub mutation: bool,
}

/// A mutation as it waits for its replica.
pub struct Mutate {
    /// The sender's epoch; `None`: whichever is in force.
    pub epoch: Option<Epoch>,
    /// Its identity.
    pub operation: OperationId,
    /// Confirmed answers of the session.
    pub confirmed: u64,
    /// What.
    pub mutation: Mutation,
    /// Its bytes.
    pub payload: Bytes,
    /// Their checksum.
    pub crc: u32,
    /// Who waits.
    pub waiter: Waiter,
}

/// Something that happens to a replica.
#[allow(missing_docs)]
pub enum Job {
    /// An answer or a timer.
    Event(Event),
    /// The master told a configuration in this term of the lease.
    Assigned(Assigned, Option<Term>),
    /// A peer told a configuration.
    Told(Configuration),
    /// The master knows no such chunk.
    Gone,
    /// A client's or the master's mutation.
    Mutate(Mutate),
    /// fsync.
    Sync { epoch: Epoch, waiter: Waiter },
    /// A primary's message.
    Peer { epoch: Epoch, message: Message, configuration: Option<Configuration>, payload: Bytes, responder: Responder },
    /// What is committed?
    Query { epoch: Epoch, unsettled: Option<ServerId>, waiter: Waiter },
    /// A piece of a copy.
    Copy { epoch: Epoch, piece: v1::CopyBlocks, payload: Bytes, responder: Responder },
    /// The replica can't be served any more.
    Broken { kind: ProblemKind, detail: String },
    /// A tombstone, with its turn among those that are carried out now.
    Delete { epoch: Epoch, turn: OwnedSemaphorePermit },
}

impl Job {
    /// Whether what readers of the replica see stays as it is, whatever comes of the job.
    pub fn changes_nothing(&self) -> bool {
        matches!(self, Self::Sync { .. } | Self::Query { .. } | Self::Event(Event::Flushed { ok: true, .. }))
    }

    /// Whether it takes longer than a task may be held up.
    pub fn is_heavy(&self) -> bool {
        match self {
            Self::Mutate(mutate) => mutate.payload.len() >= LIGHT,
            Self::Peer { payload, .. } => payload.len() >= LIGHT,
            Self::Copy { .. } | Self::Delete { .. } | Self::Assigned(..) => true,
            _ => false,
        }
    }
}

#[derive(Default)]
pub struct Inbox {
    pub queue: VecDeque<Job>,
    pub running: bool,
}

/// What is kept beside a replica.
pub struct State {
    /// The replica.
    pub replica: Replica,
    /// The term of the lease that the replica knows of.
    pub term: Option<Term>,
    /// Who waits for which token.
    pub waiters: HashMap<Token, Waiting>,
    /// The last token given.
    pub last_token: u64,
    /// Bytes of this primary's uncommitted writes, with their checksums.
    pub payloads: BTreeMap<Sequence, (Bytes, u32)>,
    /// Bytes of the request that is handled now, with their checksum.
    pub payload: (Bytes, u32),
    /// It is in the store.
    pub stored: bool,
    /// It was deleted: nothing is done for it any more.
    pub gone: bool,
    /// For salvage.
    pub header: ChunkHeader,
    /// A task asks the master for a change.
    pub asking: bool,
    /// The epoch in which this server has asked to be left out.
    pub leaving: Option<Epoch>,
    /// When the primary was last asked for a settle.
    pub settle_asked: Option<Instant>,
}

impl State {
    /// A state around a replica.
    pub fn new(replica: Replica, header: ChunkHeader, stored: bool) -> Self {
        Self {
            replica,
            term: None,
            waiters: HashMap::new(),
            last_token: 0,
            payloads: BTreeMap::new(),
            payload: (Bytes::new(), 0),
            stored,
            gone: false,
            header,
            asking: false,
            leaving: None,
            settle_asked: None,
        }
    }

    /// A token for somebody who waits, at most until `WAIT` is over.
    pub fn token(&mut self, waiter: Waiter) -> Token {
        self.last_token += 1;
        let token = Token(self.last_token);
        let until = Instant::now() + WAIT;
        self.waiters.insert(token, Waiting { waiter, until, mutation: false });
        token
    }

    /// The same for somebody who waits for a mutation.
    pub fn mutation_token(&mut self, waiter: Waiter) -> Token {
        let token = self.token(waiter);
        self.waiters.entry(token).and_modify(|waiting| waiting.mutation = true);
        token
    }

    /// Takes those out who have waited too long.
    pub fn expired(&mut self, now: Instant) -> Vec<Waiter> {
        let late: Vec<Token> =
            self.waiters.iter().filter(|(_, waiting)| waiting.until <= now).map(|(token, _)| *token).collect();
        late.iter().filter_map(|token| self.waiters.remove(token)).map(|waiting| waiting.waiter).collect()
    }
}

/// One replica of this server.
pub struct Slot {
    /// The chunk.
    pub handle: ChunkHandle,
    pub(super) inbox: Mutex<Inbox>,
    pub(super) state: Mutex<State>,
    epoch: AtomicU32,
    /// The term in which the master confirmed the configuration; 0 is never.
    term: AtomicU64,
    role: AtomicU8,
    settled: AtomicBool,
    waiting: AtomicBool,
    /// The newest epoch in which this server has left; 0 is none.
    left: AtomicU32,
    /// Its loan, if one stands. Only for `super::loans`.
    pub(super) loan: Mutex<Option<gfs_local::Loan>>,
}

impl Slot {
    /// A slot around a state.
    pub fn new(handle: ChunkHandle, state: State) -> Self {
        let slot = Self {
            handle,
            inbox: Mutex::default(),
            state: Mutex::new(state),
            epoch: AtomicU32::new(0),
            term: AtomicU64::new(0),
            role: AtomicU8::new(0),
            settled: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            left: AtomicU32::new(0),
            loan: Mutex::new(None),
        };
        slot.publish(&slot.state.lock());
        slot
    }

    /// Shows what readers need to know without the lock.
    pub fn publish(&self, state: &State) {
        let term = state.term.filter(|_| state.replica.is_in_force()).map_or(0, |term| term.0);
        let role = match state.replica.role() {
            Role::Outside => 0,
            Role::Primary => 1,
            Role::Secondary => 2,
            Role::Syncing => 3,
        };
        self.term.store(term, Ordering::Release);
        self.epoch.store(state.replica.epoch().0, Ordering::Release);
        self.role.store(role, Ordering::Release);
        self.settled.store(state.replica.is_settled(), Ordering::Release);
        self.waiting.store(!state.waiters.is_empty(), Ordering::Release);
    }

    /// The newest epoch known.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Nothing is served in this epoch, or an older one, any more. Takes effect at once, also while the replica waits for its disk.
    /// False when that was so already.
    pub fn leave(&self, epoch: Epoch) -> bool {
        self.left.fetch_max(epoch.0, Ordering::SeqCst) < epoch.0
    }

    /// Whether this server has left in the epoch that it knows.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst) >= self.epoch.load(Ordering::Acquire).max(1)
    }

    /// The term in which the master confirmed the configuration.
    pub fn term(&self) -> Option<Term> {
        match self.term.load(Ordering::Acquire) {
            0 => None,
            term => Some(Term(term)),
        }
    }

    /// What this server is for the chunk.
    pub fn role(&self) -> Role {
        match self.role.load(Ordering::Acquire) {
            1 => Role::Primary,
            2 => Role::Secondary,
            3 => Role::Syncing,
            _ => Role::Outside,
        }
    }

    /// Whether somebody waits for an outcome.
    pub fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Whether the epoch's servers agree, as far as this one knows.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }
}

impl Slot {
    /// Looks at the state under its lock; for threads that may block.
    pub fn with_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock())
    }
}
