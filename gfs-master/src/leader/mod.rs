//! The leader: everything that the master knows and does beyond the committed state.
//!
//! This room owns soft state (who is connected, who caches, who waits, who is alive) and the path of a mutation through
//! it. It decides nothing that is committed: `State::apply` does. It speaks in core types; `service` translates.

pub mod allocate;
pub mod clock;
pub mod commit_times;
pub mod complaints;
pub mod delegations;
pub mod fences;
pub mod gate;
pub mod locate;
pub mod lock_queue;
pub mod mutate;
pub mod opens;
pub mod query;
pub mod reconfigure;
pub mod servers;
pub mod sessions;
pub mod shrink;
pub mod tails;
pub mod times;

use crate::consensus::machine::Machine;
use crate::consensus::{Consensus, ConsensusError};
use crate::data_dir;
use crate::random;
use clock::Clock;
use delegations::Delegations;
use gate::Gate;
use gfs_core::ids::{ChunkHandle, ClusterId, OperationId, SessionId};
use gfs_core::meta::command::{Command, CommandReply};
use gfs_core::meta::grants::GrantOptions;
use gfs_core::meta::request::{
    ClientCommand, Configuration, Credentials, Refusal, Reply, Request, ServerAddress, Timestamp,
};
use gfs_core::plan::pace::Pace;
use lock_queue::LockQueues;
use opens::{Opens, PagesEra};
use parking_lot::Mutex;
use servers::{LeaseTimes, SoftServers};
use sessions::SoftSessions;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use times::Times;
use tokio::sync::{Notify, watch};

/// How the leader's own session calls itself.
const OWN_SESSION: &str = "(master)";

/// Times and bounds of the leader.
#[derive(Clone, Copy, Debug)]
pub struct LeaderOptions {
    /// A session ends when nothing is heard for so long.
    pub session_lease: Duration,
    /// Leases of chunk servers.
    pub servers: LeaseTimes,
    /// Cache grants.
    pub grants: GrantOptions,
    /// Nothing is deleted or re-replicated in the background for so long after a start, unless all servers reported.
    pub settle: Duration,
    /// Members on a server that is gone for so long are replaced elsewhere; and so long others are waited for when those who
    /// are here have lost power.
    pub replace_after: Duration,
    /// Files that one session may hold open.
    pub open_files: usize,
    /// Bounds of background copying.
    pub limits: gfs_core::plan::Limits,
}

/// Why a call was not served. A refusal by the state is not one: that is a reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServeError {
    /// The log.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
    /// No chunk server can do it now.
    #[error("{0}")]
    Unavailable(&'static str),
    /// The answer of the state does not fit the command: a mistake in this program.
    #[error("unexpected answer to a command")]
    Unexpected,
}

/// The session in which the leader itself commits.
struct OwnSession {
    session: SessionId,
    last: u64,
    /// Operations without an answer.
    open: BTreeSet<u64>,
}

/// See the module. One for each process, shared by all tasks.
pub struct Leader {
    /// The log.
    pub consensus: Arc<dyn Consensus>,
    /// The committed state.
    pub machine: Machine,
    /// Times and bounds.
    pub options: LeaderOptions,
    /// Time since the start in which the process ran.
    pub clock: Clock,
    /// Random number of this process.
    pub incarnation: u64,
    /// Connected sessions.
    pub sessions: SoftSessions,
    /// Sessions that are ended at the chunk servers.
    pub fences: fences::SoftFences,
    /// Cache grants.
    pub gate: Arc<Gate>,
    /// Write delegations.
    pub delegations: Delegations,
    /// Waits for locks.
    pub locks: LockQueues,
    /// Uncommitted times.
    pub times: Times,
    /// Chunk servers.
    pub servers: SoftServers,
    /// Files with bytes beyond their end.
    pub tails: tails::Tails,
    /// Members that others cannot work with.
    pub complaints: complaints::Complaints,
    /// Files held open.
    pub opens: Mutex<Opens>,
    /// Which pages of closed files still count.
    pub pages_era: PagesEra,
    /// Chunks that somebody waits for to be filled.
    pub urgent: Mutex<BTreeSet<ChunkHandle>>,
    /// How fast chunks come back to their goal.
    pub pace: Mutex<Pace>,
    /// Rings when a configuration changed or a shrink was done.
    pub changed: Notify,
    /// Rings when there is something for the background to do at once.
    pub work: Notify,
    in_flight: mutate::InFlight,
    stopping: watch::Sender<bool>,
    own: tokio::sync::Mutex<Option<OwnSession>>,
}

impl Leader {
    /// Takes over: expects the sessions and servers that the state knows.
    pub fn new(consensus: Arc<dyn Consensus>, machine: Machine, options: LeaderOptions) -> Arc<Self> {
        let clock = Clock::default();
        let sessions = SoftSessions::new(clock.clone(), options.session_lease);
        let servers = {
            let state = machine.state();
            for record in state.sessions().iter().filter(|record| record.description != OWN_SESSION) {
                sessions.expect(record.session, &record.description);
            }
            SoftServers::new(clock.clone(), options.servers, state.servers().iter().map(|record| record.server))
        };
        let gate = Gate::new(clock.clone(), options.grants, sessions.len() > 1);
        let delegations = Delegations::new(!sessions.is_empty(), machine.clock());
        let incarnation = random::bits64();
        Arc::new(Self {
            consensus,
            machine,
            options,
            clock,
            incarnation,
            pages_era: PagesEra::new(incarnation),
            sessions,
            fences: fences::SoftFences::default(),
            gate,
            delegations,
            locks: LockQueues::default(),
            times: Times::default(),
            servers,
            tails: tails::Tails::default(),
            complaints: complaints::Complaints::default(),
            opens: Mutex::new(Opens::new(options.open_files)),
            urgent: Mutex::new(BTreeSet::new()),
            pace: Mutex::default(),
            changed: Notify::new(),
            work: Notify::new(),
            in_flight: mutate::InFlight::default(),
            stopping: watch::channel(false).0,
            own: tokio::sync::Mutex::new(None),
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.machine.state().cluster()
    }

    /// The clock for stamps of soft state: never behind what is committed.
    pub fn now(&self) -> Timestamp {
        data_dir::now().max(self.machine.clock())
    }

    /// Whether the background may delete and re-replicate: all servers reported, or long enough after the start.
    pub fn is_settled(&self) -> bool {
        self.clock.now_ms() >= self.options.settle.as_millis() as u64 || self.servers.all_reported()
    }

    /// Gives up what is under way: whoever waits is told that the master stops.
    pub fn give_up(&self) {
        self.stopping.send_replace(true);
    }

    /// Opens a session.
    ///
    /// # Errors
    /// The log's.
    pub async fn open_session(&self, nonce: u64, description: &str) -> Result<SessionId, ServeError> {
        // Nobody else may call itself what the leader does.
        let description = if description == OWN_SESSION { "client" } else { description };
        let command = Command::OpenSession { nonce, description: description.to_owned() };
        match self.consensus.propose(command).await? {
            CommandReply::Session(session) => Ok(session),
            _ => Err(ServeError::Unexpected),
        }
    }

    /// Ends a session: what it holds is released.
    ///
    /// # Errors
    /// The log's.
    pub async fn end_session(self: &Arc<Self>, session: SessionId) -> Result<(), ServeError> {
        self.sessions.end(session);
        self.locks.cancel_session(session);
        self.fence([session]).await;
        self.end_pages_of_writer(session);
        self.flush_times(Duration::ZERO, Some(session)).await;
        self.cut_tails_of(session).await?;
        self.consensus.propose(Command::EndSession { session }).await?;
        // The files that it held.
        self.order_zeroing(None);
        self.fences.committed(session);
        self.gate.drop_session(session);
        self.delegations.drop_session(session);
        self.opens.lock().table.drop_session(session);
        self.sessions.remove(session);
        self.locks.wake_all();
        self.work.notify_one();
        Ok(())
    }

    /// Proposes on behalf of the leader itself, in a session of its own.
    ///
    /// # Errors
    /// The log's.
    pub async fn propose_own(&self, request: Request) -> Result<Reply, ServeError> {
        let (id, confirmed) = self.next_own().await?;
        let command = ClientCommand { id, confirmed, credentials: Credentials::default(), request };
        let answer = self.consensus.propose(Command::Client(command)).await;
        let ended = matches!(&answer, Ok(CommandReply::Client(Reply::Refused(Refusal::SessionExpired))));
        let mut own = self.own.lock().await;
        if let Some(current) = own.as_mut().filter(|current| current.session == id.session) {
            current.open.remove(&id.operation);
            if ended {
                *own = None;
            }
        }
        match answer? {
            CommandReply::Client(Reply::Refused(Refusal::SessionExpired)) => {
                Err(ServeError::Unavailable("the leader's own session has ended"))
            }
            CommandReply::Client(reply) => Ok(reply),
            _ => Err(ServeError::Unexpected),
        }
    }

    /// The next operation of the leader's own session, and up to where all before it are answered.
    async fn next_own(&self) -> Result<(OperationId, u64), ServeError> {
        let mut own = self.own.lock().await;
        if own.is_none() {
            *own = Some(OwnSession { session: self.open_own_session().await?, last: 0, open: BTreeSet::new() });
        }
        let Some(current) = own.as_mut() else { return Err(ServeError::Unexpected) };
        current.last += 1;
        current.open.insert(current.last);
        let confirmed = current.open.first().map_or(current.last, |first| first - 1);
        Ok((OperationId { session: current.session, operation: current.last }, confirmed))
    }

    async fn open_own_session(&self) -> Result<SessionId, ServeError> {
        let command = Command::OpenSession { nonce: self.incarnation, description: OWN_SESSION.into() };
        match self.consensus.propose(command).await? {
            CommandReply::Session(session) => Ok(session),
            _ => Err(ServeError::Unexpected),
        }
    }

    /// Ends the sessions that leaders before this one had for themselves.
    ///
    /// # Errors
    /// The log's.
    pub async fn end_former_own_sessions(&self) -> Result<(), ServeError> {
        let own = self.own.lock().await.as_ref().map(|own| own.session);
        let former: Vec<SessionId> = {
            let state = self.machine.state();
            let all = state.sessions().iter().filter(|record| record.description == OWN_SESSION);
            all.map(|record| record.session).filter(|session| own.is_none_or(|own| own != *session)).collect()
        };
        for session in former {
            self.consensus.propose(Command::EndSession { session }).await?;
        }
        Ok(())
    }

    /// Addresses of all servers that configurations name.
    pub fn addresses<'a>(&self, configurations: impl IntoIterator<Item = &'a Configuration>) -> Vec<ServerAddress> {
        let mut named = BTreeSet::new();
        for configuration in configurations {
            named.extend(configuration.members.iter().chain(&configuration.syncing).copied());
        }
        self.machine.state().addresses(named)
    }
}
