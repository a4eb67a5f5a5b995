//! Chunk servers as the leader sees them now: leases, liveness, disks, what they reported.
//!
//! This room owns the soft half of a server. Which servers exist is committed state. It grants leases; it never decides
//! about a chunk.

use super::clock::Clock;
use gfs_core::ids::{ChunkHandle, Epoch, ServerId};
use gfs_core::meta::state::State;
use gfs_core::plan::succession::{Claim, Standing};
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, watch};

/// Where orders to a server go.
pub type Orders = mpsc::Sender<Result<v1::MasterOrder, tonic::Status>>;

/// Replicas that a server holds and no configuration names, at most remembered for one server.
const MAX_STRAYS: usize = 1 << 20;
/// Replicas that a server cannot serve, at most remembered for one server.
const MAX_PROBLEMS: usize = 1 << 20;
/// Replicas of a server that lost power, at most remembered for it; more than a chunk server may hold.
const MAX_CLAIMS: usize = 1 << 22;

/// Answers to heartbeats that a server that hears us may lack: it is asked again before they have arrived.
const MAX_UNANSWERED: u32 = 2;

/// What is wrong with a replica. The later takes the place of the earlier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Problem {
    /// Some blocks do not match their checksums; the rest may go on to be served.
    Damaged,
    /// It takes no more writes.
    Retired,
    /// It is not served.
    Stopped,
}

impl Problem {
    /// Of `ReplicaProblem.kind`.
    fn of_kind(kind: u32) -> Self {
        match kind {
            2 => Self::Damaged,
            4 => Self::Retired,
            _ => Self::Stopped,
        }
    }
}

/// Times of membership leases.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// Membership lease T.
    pub lease_ms: u64,
    /// Between heartbeats.
    pub heartbeat_ms: u64,
    /// Without a heartbeat for so long a server is suspect.
    pub suspicion_ms: u64,
}

/// How alive a server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    /// Heard within the suspicion time.
    Online,
    /// Silent, but its lease may still hold.
    Suspect,
    /// Its lease is surely over.
    Offline,
}

#[derive(Default)]
struct Soft {
    incarnation: u64,
    registered: bool,
    orders: Option<Orders>,
    connection: u64,
    replaced: Option<watch::Sender<bool>>,
    heard_ms: Option<u64>,
    lease_until_ms: u64,
    disks: Vec<v1::DiskUsage>,
    load: u32,
    version: String,
    reported: bool,
    /// The state when it registered: what it must have is judged by that.
    baseline: Option<State>,
    strays: BTreeMap<ChunkHandle, Epoch>,
    /// Replicas that are not sound there.
    problems: BTreeMap<ChunkHandle, Problem>,
    /// Replicas that may lack something since it lost power, and what they hold.
    claims: BTreeMap<ChunkHandle, Claim>,
    registered_ms: u64,
    /// Until then it gets no new replicas.
    shunned_until_ms: u64,
    /// Version of the fences that it has taken.
    fences: u64,
}

/// A server's soft state at one moment.
#[derive(Clone, Debug)]
pub struct ServerNow {
    /// Which.
    pub server: ServerId,
    /// How alive.
    pub liveness: Liveness,
    /// When its lease is surely over, in ms of the leader's clock.
    pub lease_until_ms: u64,
    /// Bytes of its disks.
    pub total: u64,
    /// Bytes free on them.
    pub free: u64,
    /// Replicas on them.
    pub chunks: u64,
    /// Requests in flight.
    pub load: u32,
    /// Milliseconds since it was heard.
    pub silent_ms: Option<u64>,
    /// Its disks.
    pub disks: Vec<v1::DiskUsage>,
    /// Its program.
    pub version: String,
    /// It gets no new replicas for now.
    pub shunned: bool,
}

/// Why a server is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdmitError {
    /// Another process uses the same identity.
    #[error(
        "another process with this chunk server's identity is online (incarnation {incarnation}): was its directory copied?"
    )]
    Twin {
        /// Of the one that is online.
        incarnation: u64,
    },
    /// It has not registered with this master process, or another process did after it.
    #[error("not registered with this master: register again")]
    Unknown,
}

/// The stream of a server.
pub struct Attendance {
    /// Which one, of this process.
    pub connection: u64,
    /// Turns true when another stream took over.
    pub replaced: watch::Receiver<bool>,
}

/// All servers; clones share them.
#[derive(Clone)]
pub struct SoftServers {
    clock: Clock,
    times: LeaseTimes,
    inner: Arc<Mutex<Inner>>,
    fenced: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    servers: BTreeMap<ServerId, Soft>,
    connections: u64,
}

impl SoftServers {
    /// The servers known to the state at the start. A process before this one may have given each of them a lease just
    /// now, so none is over before one lease time.
    pub fn new(clock: Clock, times: LeaseTimes, known: impl IntoIterator<Item = ServerId>) -> Self {
        let lease_until_ms = clock.now_ms() + times.lease_ms;
        let soft = |server| (server, Soft { lease_until_ms, ..Soft::default() });
        let servers = known.into_iter().map(soft).collect();
        Self { clock, times, inner: Arc::new(Mutex::new(Inner { servers, connections: 0 })), fenced: Arc::default() }
    }

    /// The times in force.
    pub fn times(&self) -> LeaseTimes {
        self.times
    }

    /// Refuses a second live process with the identity of `server`.
    ///
    /// # Errors
    /// `Twin`.
    pub fn admit(&self, server: ServerId, incarnation: u64) -> Result<(), AdmitError> {
        let now = self.clock.now_ms();
        let inner = self.inner.lock();
        match inner.servers.get(&server) {
            Some(soft)
                if soft.registered
                    && soft.incarnation != incarnation
                    && soft.orders.is_some()
                    && soft.lease_until_ms > now =>
            {
                Err(AdmitError::Twin { incarnation: soft.incarnation })
            }
            _ => Ok(()),
        }
    }

    /// A process registered as `server`. What an earlier one reported is forgotten. Its lease is left to run out: the
    /// new process has none until its first heartbeat.
    pub fn register(&self, server: ServerId, incarnation: u64, version: &str, baseline: Option<State>) {
        let mut inner = self.inner.lock();
        let soft = inner.servers.entry(server).or_default();
        if let Some(replaced) = soft.replaced.take() {
            replaced.send_replace(true);
        }
        *soft = Soft {
            incarnation,
            registered: true,
            lease_until_ms: soft.lease_until_ms,
            registered_ms: self.clock.now_ms(),
            shunned_until_ms: soft.shunned_until_ms,
            version: version.to_owned(),
            baseline,
            ..Soft::default()
        };
    }

    /// A stream of heartbeats begins.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn attend(&self, server: ServerId, incarnation: u64, orders: Orders) -> Result<Attendance, AdmitError> {
        let mut inner = self.inner.lock();
        inner.connections += 1;
        let connection = inner.connections;
        let soft = registered(&mut inner, server, incarnation)?;
        let (replaced, watching) = watch::channel(false);
        if let Some(old) = soft.replaced.replace(replaced) {
            old.send_replace(true);
        }
        soft.orders = Some(orders);
        soft.connection = connection;
        Ok(Attendance { connection, replaced: watching })
    }

    /// The stream ended. The lease runs on.
    pub fn leave(&self, server: ServerId, connection: u64) {
        if let Some(soft) = self.inner.lock().servers.get_mut(&server)
            && soft.connection == connection
        {
            soft.orders = None;
        }
    }

    /// A heartbeat came; answers whether it renews the lease. The holder counts from when it sent it, which is before
    /// now, so at the end of what is noted here its lease is surely over. Of one that does not hear us only what it says is taken: it
    /// has fenced itself, and others wait for the end of its lease.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn heartbeat(&self, beat: &v1::Heartbeat, server: ServerId, leads: bool) -> Result<bool, AdmitError> {
        let now = self.clock.now_ms();
        let mut inner = self.inner.lock();
        let soft = registered(&mut inner, server, beat.incarnation)?;
        let hears_us = beat.unanswered <= MAX_UNANSWERED;
        if hears_us {
            soft.heard_ms = Some(now);
        }
        soft.load = beat.load;
        if std::mem::replace(&mut soft.fences, beat.fences) != beat.fences {
            self.fenced.notify_waiters();
        }
        if !beat.disks.is_empty() {
            soft.disks.clone_from(&beat.disks);
        }
        let room = MAX_PROBLEMS.saturating_sub(soft.problems.len());
        for problem in beat.problems.iter().take(room) {
            let what = Problem::of_kind(problem.kind);
            let known = soft.problems.entry(ChunkHandle(problem.handle)).or_insert(what);
            *known = what.max(*known);
        }
        let renews = leads && hears_us;
        if renews {
            soft.lease_until_ms = now + self.times.lease_ms;
        }
        Ok(renews)
    }

    /// Whether the sender is who registered.
    pub fn is_registered(&self, server: ServerId, incarnation: u64) -> bool {
        registered(&mut self.inner.lock(), server, incarnation).is_ok()
    }

    /// Sends an order without waiting; false when the server is not there or does not read.
    pub fn order(&self, server: ServerId, order: v1::MasterOrder) -> bool {
        let orders = self.inner.lock().servers.get(&server).and_then(|soft| soft.orders.clone());
        orders.is_some_and(|orders| orders.try_send(Ok(order)).is_ok())
    }

    /// Servers that may take mutations and have older fences than these.
    pub fn without_fences(&self, version: u64) -> Vec<ServerId> {
        let now = self.clock.now_ms();
        let inner = self.inner.lock();
        let without = inner.servers.iter().filter(|(_, soft)| soft.fences < version && soft.lease_until_ms > now);
        without.map(|(server, _)| *server).collect()
    }

    /// Returns when a server has taken other fences.
    pub async fn fenced(&self) {
        self.fenced.notified().await;
    }

    /// How alive a server is.
    pub fn liveness(&self, server: ServerId) -> Liveness {
        let now = self.clock.now_ms();
        self.inner.lock().servers.get(&server).map_or(Liveness::Offline, |soft| liveness(soft, now, self.times))
    }

    /// Whether the lease of a server is surely over.
    pub fn lease_over(&self, server: ServerId) -> bool {
        self.lease_until(server) <= self.clock.now_ms()
    }

    /// When the lease of a server is surely over.
    pub fn lease_until(&self, server: ServerId) -> u64 {
        self.inner.lock().servers.get(&server).map_or(0, |soft| soft.lease_until_ms)
    }

    /// A replica that no configuration names.
    pub fn stray(&self, server: ServerId, handle: ChunkHandle, epoch: Epoch) {
        if let Some(soft) = self.inner.lock().servers.get_mut(&server)
            && soft.strays.len() < MAX_STRAYS
        {
            soft.strays.insert(handle, epoch);
        }
    }

    /// Up to `limit` strays, which are forgotten here: (chunk, server, epoch).
    pub fn take_strays(&self, limit: usize) -> Vec<(ChunkHandle, ServerId, Epoch)> {
        let mut inner = self.inner.lock();
        let mut taken = Vec::new();
        for (server, soft) in &mut inner.servers {
            while taken.len() < limit {
                let Some((handle, epoch)) = soft.strays.pop_first() else { break };
                taken.push((handle, *server, epoch));
            }
        }
        taken
    }

    /// Whether a server agrees that its replica of a chunk is left out: it takes no more writes.
    pub fn agrees_to_leave(&self, server: ServerId, handle: ChunkHandle) -> bool {
        let inner = self.inner.lock();
        let problem = inner.servers.get(&server).and_then(|soft| soft.problems.get(&handle));
        problem.is_some_and(|problem| *problem >= Problem::Retired)
    }

    /// Whether a server's replica of a chunk is not sound.
    pub fn has_problem(&self, server: ServerId, handle: ChunkHandle) -> bool {
        self.inner.lock().servers.get(&server).is_some_and(|soft| soft.problems.contains_key(&handle))
    }

    /// A replica may lack something since its server lost power.
    pub fn claim(&self, server: ServerId, handle: ChunkHandle, claim: Claim) {
        if let Some(soft) = self.inner.lock().servers.get_mut(&server)
            && soft.claims.len() < MAX_CLAIMS
        {
            soft.claims.insert(handle, claim);
        }
    }

    /// A replica that lacked something is whole again, or is none any more.
    pub fn forget_claim(&self, server: ServerId, handle: ChunkHandle) {
        if let Some(soft) = self.inner.lock().servers.get_mut(&server) {
            soft.claims.remove(&handle);
        }
    }

    /// How a member of a chunk stands.
    pub fn standing(&self, server: ServerId, handle: ChunkHandle) -> Standing {
        let now = self.clock.now_ms();
        let inner = self.inner.lock();
        let Some(soft) = inner.servers.get(&server) else { return Standing::Unknown };
        let here = soft.reported && liveness(soft, now, self.times) == Liveness::Online;
        match (soft.problems.get(&handle), soft.claims.get(&handle)) {
            (Some(Problem::Stopped), _) => Standing::Gone,
            _ if !here => Standing::Unknown,
            (_, Some(claim)) => Standing::Suspect(*claim),
            (Some(Problem::Retired), None) => Standing::Retired,
            (Some(Problem::Damaged), None) => Standing::Damaged,
            (None, None) => Standing::Sound,
        }
    }

    /// Whether a server has been registered for so long.
    pub fn registered_for(&self, server: ServerId, ms: u64) -> bool {
        let now = self.clock.now_ms();
        let inner = self.inner.lock();
        let since = inner.servers.get(&server).filter(|soft| soft.registered).map(|soft| soft.registered_ms);
        since.is_some_and(|since| since.saturating_add(ms) <= now)
    }

    /// A server gets no new replicas for so long.
    pub fn shun(&self, server: ServerId, ms: u64) {
        let until = self.clock.now_ms() + ms;
        if let Some(soft) = self.inner.lock().servers.get_mut(&server) {
            soft.shunned_until_ms = until;
        }
    }

    /// Replicas that are not served where they are: (chunk, server).
    pub fn problems(&self) -> Vec<(ChunkHandle, ServerId)> {
        let inner = self.inner.lock();
        let of = |(server, soft): (&ServerId, &Soft)| {
            let server = *server;
            soft.problems.keys().map(move |handle| (*handle, server)).collect::<Vec<_>>()
        };
        inner.servers.iter().flat_map(of).collect()
    }

    /// A problem is dealt with.
    pub fn forget_problem(&self, server: ServerId, handle: ChunkHandle) {
        if let Some(soft) = self.inner.lock().servers.get_mut(&server) {
            soft.problems.remove(&handle);
        }
    }

    /// The state as of a registration, until a full report has been compared with it.
    pub fn baseline(&self, server: ServerId, incarnation: u64) -> Option<State> {
        registered(&mut self.inner.lock(), server, incarnation).ok()?.baseline.clone()
    }

    /// A full report has ended, and is compared with what the server must have.
    pub fn reported(&self, server: ServerId, incarnation: u64) {
        if let Ok(soft) = registered(&mut self.inner.lock(), server, incarnation) {
            soft.reported = true;
            soft.baseline = None;
        }
    }

    /// A server does not have a replica that it must have.
    pub fn problem(&self, server: ServerId, handle: ChunkHandle) {
        if let Some(soft) = self.inner.lock().servers.get_mut(&server)
            && soft.problems.len() < MAX_PROBLEMS
        {
            soft.problems.insert(handle, Problem::Stopped);
        }
    }

    /// Whether every known server has reported.
    pub fn all_reported(&self) -> bool {
        self.inner.lock().servers.values().all(|soft| soft.reported)
    }

    /// Forgets a server that was removed.
    pub fn remove(&self, server: ServerId) {
        if let Some(soft) = self.inner.lock().servers.remove(&server)
            && let Some(replaced) = soft.replaced
        {
            replaced.send_replace(true);
        }
    }

    /// All servers as they are now.
    pub fn view(&self) -> Vec<ServerNow> {
        let now = self.clock.now_ms();
        let inner = self.inner.lock();
        inner.servers.iter().map(|(server, soft)| view(*server, soft, now, self.times)).collect()
    }
}

fn registered(inner: &mut Inner, server: ServerId, incarnation: u64) -> Result<&mut Soft, AdmitError> {
    let soft = inner.servers.get_mut(&server).filter(|soft| soft.registered && soft.incarnation == incarnation);
    soft.ok_or(AdmitError::Unknown)
}

fn liveness(soft: &Soft, now: u64, times: LeaseTimes) -> Liveness {
    match soft.heard_ms {
        Some(heard) if heard + times.suspicion_ms > now && soft.orders.is_some() => Liveness::Online,
        _ if soft.lease_until_ms > now => Liveness::Suspect,
        _ => Liveness::Offline,
    }
}

fn view(server: ServerId, soft: &Soft, now: u64, times: LeaseTimes) -> ServerNow {
    let working = || soft.disks.iter().filter(|disk| !disk.failed);
    ServerNow {
        server,
        liveness: liveness(soft, now, times),
        lease_until_ms: soft.lease_until_ms,
        total: working().fold(0, |sum, disk| sum.saturating_add(disk.total)),
        free: working().fold(0, |sum, disk| sum.saturating_add(disk.free)),
        chunks: soft.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.chunks)),
        load: soft.load,
        silent_ms: soft.heard_ms.map(|heard| now.saturating_sub(heard)),
        disks: soft.disks.clone(),
        version: soft.version.clone(),
        shunned: soft.shunned_until_ms > now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ONE: ServerId = ServerId(1);
    const TIMES: LeaseTimes = LeaseTimes { lease_ms: 1_600, heartbeat_ms: 200, suspicion_ms: 400 };

    fn beat(incarnation: u64) -> v1::Heartbeat {
        v1::Heartbeat { server: 1, incarnation, ..v1::Heartbeat::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_lasts_from_the_last_answered_heartbeat() {
        let servers = SoftServers::new(Clock::default(), TIMES, []);
        servers.register(ONE, 7, "v", None);
        assert_eq!(servers.heartbeat(&beat(8), ONE, true), Err(AdmitError::Unknown));
        let (orders, _kept) = mpsc::channel(1);
        servers.attend(ONE, 7, orders).unwrap();
        assert_eq!(servers.heartbeat(&beat(7), ONE, true), Ok(true));
        assert_eq!(servers.liveness(ONE), Liveness::Online);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(servers.liveness(ONE), Liveness::Suspect);
        assert_eq!(servers.heartbeat(&beat(7), ONE, false), Ok(false), "one that does not lead gave a lease");
        tokio::time::advance(Duration::from_millis(1_099)).await;
        assert!(!servers.lease_over(ONE));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(servers.lease_over(ONE));
    }

    #[tokio::test(start_paused = true)]
    async fn who_speaks_and_does_not_hear_gets_no_lease() {
        let servers = SoftServers::new(Clock::default(), TIMES, []);
        servers.register(ONE, 7, "v", None);
        let (orders, _kept) = mpsc::channel(1);
        servers.attend(ONE, 7, orders).unwrap();
        let unanswered = |unanswered: u32| v1::Heartbeat { unanswered, ..beat(7) };
        assert_eq!(servers.heartbeat(&unanswered(MAX_UNANSWERED), ONE, true), Ok(true));
        tokio::time::advance(Duration::from_millis(1_600)).await;
        assert_eq!(servers.heartbeat(&unanswered(MAX_UNANSWERED + 1), ONE, true), Ok(false));
        assert!(servers.lease_over(ONE));
        assert_eq!(servers.liveness(ONE), Liveness::Offline);
        assert_eq!(servers.heartbeat(&unanswered(0), ONE, true), Ok(true));
        assert_eq!(servers.liveness(ONE), Liveness::Online);
    }

    #[tokio::test(start_paused = true)]
    async fn a_twin_is_refused_while_the_first_is_there() {
        let servers = SoftServers::new(Clock::default(), TIMES, []);
        servers.register(ONE, 7, "v", None);
        let (orders, _kept) = mpsc::channel(1);
        let attendance = servers.attend(ONE, 7, orders).unwrap();
        servers.heartbeat(&beat(7), ONE, true).unwrap();
        assert_eq!(servers.admit(ONE, 8), Err(AdmitError::Twin { incarnation: 7 }));
        assert_eq!(servers.admit(ONE, 7), Ok(()));
        servers.leave(ONE, attendance.connection);
        assert_eq!(servers.admit(ONE, 8), Ok(()));
        servers.register(ONE, 8, "v", None);
        assert!(*attendance.replaced.borrow());
        assert!(!servers.lease_over(ONE), "a new process does not end the lease of the old one");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_restart_no_lease_is_over_before_one_lease_time() {
        let servers = SoftServers::new(Clock::default(), TIMES, [ONE]);
        assert_eq!(servers.liveness(ONE), Liveness::Suspect);
        assert!(!servers.all_reported());
        tokio::time::advance(Duration::from_millis(1_600)).await;
        assert_eq!(servers.liveness(ONE), Liveness::Offline);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_fenced_when_it_says_so_or_has_no_lease() {
        let servers = SoftServers::new(Clock::default(), TIMES, [ONE]);
        assert_eq!(servers.without_fences(2), vec![ONE], "a master before this one may have given it a lease");
        servers.register(ONE, 7, "v", None);
        assert_eq!(servers.heartbeat(&v1::Heartbeat { fences: 1, ..beat(7) }, ONE, true), Ok(true));
        assert_eq!(servers.without_fences(2), vec![ONE]);
        assert_eq!(servers.heartbeat(&v1::Heartbeat { fences: 2, ..beat(7) }, ONE, true), Ok(true));
        assert_eq!(servers.without_fences(2), vec![]);
        servers.register(ONE, 8, "v", None);
        assert_eq!(servers.without_fences(2), vec![ONE], "the process before it took them");
        tokio::time::advance(Duration::from_millis(1_600)).await;
        assert_eq!(servers.without_fences(2), vec![]);
    }

    #[tokio::test]
    async fn strays_are_handed_out_once() {
        let servers = SoftServers::new(Clock::default(), TIMES, [ONE]);
        servers.stray(ONE, ChunkHandle(4), Epoch(2));
        assert_eq!(servers.take_strays(10), vec![(ChunkHandle(4), ONE, Epoch(2))]);
        assert_eq!(servers.take_strays(10), vec![]);
    }
}
