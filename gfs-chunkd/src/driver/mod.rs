//! The driver: owns the replicas of this server and carries out what they want done.
//!
//! `gfs_core::replica` decides. This room finds a replica by its handle, feeds it what happens in order, and performs its
//! actions with the store and the connections to other servers. It never decides what is committed or who is a member.

mod digest;
mod jobs;
mod lanes;
mod loans;
mod peers;
mod perform;
mod read;
mod slot;
pub mod wire;

pub use loans::Loans;
pub use read::ReadKind;
pub use slot::{Job, MAX_JOBS, Mutate, Slot, State, Waiter};

use crate::background::deletions::Deletions;
use crate::control::lease::Term;
use crate::control::lookup::{Found, Looked, Lookup};
use crate::control::master::MasterClient;
use crate::control::orders::{self, Assigned};
use crate::control::report::Reports;
use crate::control::{ProblemKind, Shared};
use crate::store::{ChunkHeader, ReplicaState, Store, StoreError};
use gfs_core::ids::{ChunkHandle, InodeId, ServerId};
use gfs_core::meta::request::{Configuration, ServerAddress};
use gfs_core::replica::{Loaded, Replica, Role};
use gfs_net::DataPool;
use gfs_proto::v1;
use lanes::Lanes;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Handles in one question when everything is confirmed anew.
const CONFIRM_AT_A_TIME: usize = 1000;
/// How long such a question may take.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);
/// Reconfigurations that are asked for at a time.
const QUESTIONS: usize = 64;
/// Ranges that are read ahead of their readers at a time.
const AHEAD: usize = 16;
/// Chunks that this server may hold.
const MAX_SLOTS: usize = 4_000_000;

/// What a driver is made of.
pub struct Parts {
    /// This server's number.
    pub me: ServerId,
    /// This process.
    pub incarnation: u64,
    /// The disks.
    pub store: Arc<Store>,
    /// Connections to other servers.
    pub pool: DataPool,
    /// The master.
    pub master: MasterClient,
    /// Lease, load, problems.
    pub shared: Arc<Shared>,
    /// Replicas that clients of this machine have borrowed.
    pub loans: Arc<Loans>,
    /// Replicas that are filled at a time.
    pub parallel_fills: usize,
}

/// The replicas of this server.
pub struct Driver {
    /// This server's number.
    pub me: ServerId,
    /// This process.
    pub incarnation: u64,
    /// The disks.
    pub store: Arc<Store>,
    /// The master.
    pub master: MasterClient,
    /// Lease, load, problems.
    pub shared: Arc<Shared>,
    /// Questions about configurations.
    pub lookup: Lookup,
    /// What the master has yet to be told.
    pub reports: Reports,
    /// Tombstones that are not carried out yet.
    pub deletions: Deletions,
    /// Tails that are being zeroed: (chunk, epoch of the order).
    pub zeroing: Mutex<BTreeSet<(ChunkHandle, u32)>>,
    /// Replicas that clients of this machine have borrowed.
    pub loans: Arc<Loans>,
    pub(crate) pool: DataPool,
    pub(crate) fills: Semaphore,
    pub(crate) ahead: Arc<Semaphore>,
    questions: Semaphore,
    lanes: Arc<Lanes<Arc<Slot>>>,
    runtime: Handle,
    slots: RwLock<HashMap<ChunkHandle, Arc<Slot>>>,
    addresses: RwLock<HashMap<ServerId, Arc<str>>>,
}

impl Driver {
    /// A driver with the replicas that the store holds. Must be called within the runtime that it shall use.
    pub fn new(parts: Parts) -> Arc<Self> {
        let slots = parts.store.list().into_iter().map(|held| (held.handle, Arc::new(load(parts.me, held)))).collect();
        Arc::new(Self {
            me: parts.me,
            incarnation: parts.incarnation,
            store: parts.store,
            master: parts.master,
            shared: parts.shared,
            lookup: Lookup::default(),
            reports: Reports::default(),
            deletions: Deletions::default(),
            zeroing: Mutex::default(),
            loans: parts.loans,
            pool: parts.pool,
            fills: Semaphore::new(parts.parallel_fills.max(1)),
            ahead: Arc::new(Semaphore::new(AHEAD)),
            questions: Semaphore::new(QUESTIONS),
            lanes: Arc::default(),
            runtime: Handle::current(),
            slots: RwLock::new(slots),
            addresses: RwLock::default(),
        })
    }

    /// Bytes of a chunk.
    pub fn chunk_size(&self) -> u64 {
        self.store.chunk_size()
    }

    /// How many replicas there are.
    pub fn count(&self) -> usize {
        self.slots.read().len()
    }

    /// A replica.
    pub fn slot(&self, handle: ChunkHandle) -> Option<Arc<Slot>> {
        self.slots.read().get(&handle).cloned()
    }

    /// All replicas.
    pub(crate) fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.read().values().cloned().collect()
    }

    /// Runs something on the driver's runtime.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(work)
    }

    pub(crate) fn spawn_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn_blocking(work)
    }

    pub(crate) fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Where a server is reached, if that is known.
    pub fn address(&self, server: ServerId) -> Option<Arc<str>> {
        self.addresses.read().get(&server).cloned()
    }

    /// Takes addresses that the master or a peer told.
    pub fn learn_addresses(&self, servers: Vec<v1::Server>) {
        if servers.is_empty() {
            return;
        }
        let Ok(list) = gfs_proto::convert::servers_from_wire(servers) else { return };
        let known = self.addresses.read();
        let new: Vec<ServerAddress> =
            list.into_iter().filter(|told| known.get(&told.server) != Some(&told.address)).collect();
        drop(known);
        if !new.is_empty() {
            self.addresses.write().extend(new.into_iter().map(|told| (told.server, told.address)));
        }
    }

    /// Addresses of the servers of a configuration, as far as they are known.
    pub fn addresses_of(&self, configuration: &Configuration) -> Vec<v1::Server> {
        let known = self.addresses.read();
        let servers = configuration.members.iter().chain(&configuration.syncing);
        let list: Vec<ServerAddress> = servers
            .filter_map(|server| {
                known.get(server).map(|address| ServerAddress { server: *server, address: address.clone() })
            })
            .collect();
        wire::addresses_to_wire(&list)
    }

    /// Whether the master has confirmed the replica's configuration in the term of the lease that runs, and this server has not
    /// left it since.
    pub fn is_in_force(&self, slot: &Slot) -> bool {
        !slot.has_left() && slot.term().is_some_and(|term| self.shared.lease.still(term))
    }

    /// Takes a configuration that the master told in this term of the lease, and makes the replica if it has to be here.
    pub fn learn(self: &Arc<Self>, assigned: Assigned, term: Option<Term>) {
        let (handle, configuration) = (assigned.handle, &assigned.configuration);
        let slot = match self.slot(handle) {
            Some(slot) => slot,
            None => {
                let member = configuration.members.contains(&self.me);
                if member && assigned.inode != InodeId(0) {
                    // It is part of a file, so it was here once: an empty one must not take its place.
                    return orders::report_missing(&self.shared, handle);
                }
                if !member && !configuration.syncing.contains(&self.me) {
                    return;
                }
                match self.create(handle, assigned.inode, assigned.index) {
                    Some(slot) => slot,
                    None => return,
                }
            }
        };
        if slot.epoch() == configuration.epoch && term.is_some() && slot.term() == term {
            return;
        }
        self.push(&slot, Job::Assigned(assigned, term));
    }

    /// A slot for a new replica. It reaches the disk when the replica records its first configuration.
    pub(crate) fn create(&self, handle: ChunkHandle, inode: InodeId, index: u32) -> Option<Arc<Slot>> {
        let header = ChunkHeader { generation: handle.generation(), inode, index, ..ChunkHeader::default() };
        let mut slots = self.slots.write();
        if slots.len() >= MAX_SLOTS && !slots.contains_key(&handle) {
            return None;
        }
        let make = || Arc::new(Slot::new(handle, State::new(Replica::new(self.me, Loaded::default()), header, false)));
        Some(slots.entry(handle).or_insert_with(make).clone())
    }

    pub(crate) fn forget(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots.write();
        if slots.get(&slot.handle).is_some_and(|known| Arc::ptr_eq(known, slot)) {
            slots.remove(&slot.handle);
        }
    }

    /// All replicas, as the master is told. Called off the tasks' threads.
    pub async fn summaries(self: &Arc<Self>) -> Vec<v1::ReplicaSummary> {
        let driver = self.clone();
        let work = self.spawn_blocking(move || driver.all().iter().filter_map(|slot| driver.summary(slot)).collect());
        work.await.unwrap_or_default()
    }

    fn summary(&self, slot: &Slot) -> Option<v1::ReplicaSummary> {
        let state = slot.state.lock();
        if state.gone || !state.stored {
            return None;
        }
        let flushed = self.store.state(slot.handle).map_or(0, |held| held.flushed.0);
        Some(v1::ReplicaSummary {
            handle: slot.handle.0,
            epoch: state.replica.epoch().0,
            committed: state.replica.committed().0,
            prepared: state.replica.prepared().0,
            flushed,
            // Whoever goes on after the others commits what it has prepared.
            length: state.replica.length().max(state.replica.tail()),
            suspect: state.replica.is_suspect(),
        })
    }

    /// Asks the master about all replicas: after a registration any of them may have another configuration.
    pub async fn confirm_all(self: &Arc<Self>) {
        let handles: Vec<ChunkHandle> = self.slots.read().keys().copied().collect();
        for some in handles.chunks(CONFIRM_AT_A_TIME) {
            for handle in &some[1..] {
                self.lookup.note(*handle);
            }
            if self.lookup.ask(some[0], CONFIRM_LIMIT).await == Looked::Unanswered {
                tracing::debug!("the master has not confirmed the replicas yet");
            }
        }
    }

    /// Gives the master's answer to the replicas.
    pub fn found(self: &Arc<Self>, found: Found) {
        orders::assign(self, found);
    }

    /// An error of the store that a replica can't go on with.
    pub(crate) fn broken_by(&self, error: &StoreError) -> Option<ProblemKind> {
        match error {
            StoreError::Corrupt { .. } => Some(ProblemKind::Corrupt),
            StoreError::DiskFailed { .. } | StoreError::NoChunk { .. } => Some(ProblemKind::Lost),
            StoreError::Io { .. } | StoreError::Journal { .. } | StoreError::OutOfOrder { .. } => {
                Some(ProblemKind::Unserved)
            }
            _ => None,
        }
    }

    /// Replicas on disks that have failed stop to be served.
    pub fn take_failed(self: &Arc<Self>) {
        for handle in self.store.failed_chunks() {
            if !self.shared.has_problem(handle)
                && let Some(slot) = self.slot(handle)
                && slot.role() != Role::Outside
            {
                self.push(&slot, Job::Broken { kind: ProblemKind::Lost, detail: "its disk failed".into() });
            }
        }
    }
}

fn load(me: ServerId, held: ReplicaState) -> Slot {
    let loaded = Loaded {
        configuration: Some(held.configuration),
        committed: held.committed,
        prepared: held.prepared,
        length: held.length,
        operations: held.operations,
        suspect: held.suspect,
        filling: held.filling,
    };
    Slot::new(held.handle, State::new(Replica::new(me, loaded), held.header, true))
}
