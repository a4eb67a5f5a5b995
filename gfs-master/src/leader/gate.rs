//! The gate in front of every mutation: nobody else may still cache what it makes stale.
//!
//! This room owns the table of grants and the acknowledgements that are awaited. It never looks at the state: what a
//! request touches is the core's to say. Lock order: the state's lock before the table's.

use super::clock::Clock;
use super::sessions::SoftSessions;
use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::grants::{Cached, Conflict, GrantOptions, GrantTable, Touched};
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;

/// All grants, and who is asked to give one back.
pub struct Gate {
    clock: Clock,
    table: Mutex<GrantTable>,
    asked: Mutex<BTreeMap<(SessionId, u64), oneshot::Sender<()>>>,
    next: AtomicU64,
    /// Grants of the process before this one may be in force until then; nobody knows which.
    unknown_until_ms: u64,
}

/// Keeps what a mutation touches from being granted anew. Drop it when the mutation is applied or given up.
pub struct Held {
    gate: Arc<Gate>,
    touched: Touched,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gate.table.lock().unblock(&self.touched);
    }
}

impl Gate {
    /// An empty table. `others` says that sessions were logged when this process started: what they may still cache is
    /// not known until one grant time is over.
    pub fn new(clock: Clock, options: GrantOptions, others: bool) -> Arc<Self> {
        let unknown_until_ms = if others { clock.now_ms() + u64::from(options.grant_ms) } else { 0 };
        Arc::new(Self {
            clock,
            table: Mutex::new(GrantTable::new(options)),
            asked: Mutex::new(BTreeMap::new()),
            next: AtomicU64::new(1),
            unknown_until_ms,
        })
    }

    /// Grants what one answer shows, for so many ms; 0 when it may not be cached. Call it while the state is locked for
    /// reading: a mutation that is applied later then finds the grant.
    pub fn grant(&self, session: SessionId, items: &[(InodeId, Cached)]) -> u32 {
        self.table.lock().grant_all(session, items, self.clock.now_ms()).unwrap_or(0)
    }

    /// Whether another session than `by` may cache the attributes of an inode.
    pub fn is_shared(&self, inode: InodeId, by: SessionId) -> bool {
        self.table.lock().is_shared(inode, by, self.clock.now_ms())
    }

    /// Waits until no other session than `by` caches what is `touched`: all have said so, or their grants are over. That
    /// takes at most one grant time.
    pub async fn clear(self: &Arc<Self>, sessions: &SoftSessions, touched: Touched, by: SessionId) -> Option<Held> {
        if touched.is_empty() {
            return None;
        }
        if self.clock.now_ms() < self.unknown_until_ms {
            tokio::time::sleep_until(self.clock.instant(self.unknown_until_ms)).await;
        }
        Some(self.withdraw(sessions, touched, by).await)
    }

    /// As `clear`, of what this process has granted.
    pub async fn withdraw(self: &Arc<Self>, sessions: &SoftSessions, touched: Touched, by: SessionId) -> Held {
        self.table.lock().block(&touched);
        let held = Held { gate: self.clone(), touched };
        let conflicts = self.table.lock().conflicts(&held.touched, by, self.clock.now_ms());
        let asked: Vec<_> = conflicts.into_iter().map(|conflict| self.ask(sessions, conflict)).collect();
        for (id, conflict, answer) in asked {
            let until = self.clock.instant(conflict.until_ms);
            match tokio::time::timeout_at(until, answer).await {
                Ok(Ok(())) => self.table.lock().acknowledged(&conflict),
                // The session has ended: nobody caches there any more.
                Ok(Err(_)) => (),
                Err(_) => {
                    self.asked.lock().remove(&(conflict.session, id));
                    tracing::debug!(session = %conflict.session, "a grant ran out without an answer");
                }
            }
        }
        held
    }

    fn ask(&self, sessions: &SoftSessions, conflict: Conflict) -> (u64, Conflict, oneshot::Receiver<()>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        self.asked.lock().insert((conflict.session, id), answered);
        let entry = |(parent, name): &(InodeId, Vec<u8>)| v1::EntryName { parent: parent.0, name: name.clone().into() };
        let invalidate = v1::Invalidate {
            id,
            inodes: conflict.inodes.iter().map(|inode| inode.0).collect(),
            entries: conflict.entries.iter().map(entry).collect(),
        };
        // One that cannot be told, or is too busy to be, keeps its grant until it runs out.
        sessions.tell(conflict.session, v1::server_message::Body::Invalidate(invalidate));
        (id, conflict, answer)
    }

    /// A session says that it has dropped what invalidation `id` named.
    pub fn invalidated(&self, session: SessionId, id: u64) {
        if let Some(waiting) = self.asked.lock().remove(&(session, id)) {
            // Whoever asked may have stopped waiting.
            let _ = waiting.send(());
        }
    }

    /// A session has ended and caches nothing.
    pub fn drop_session(&self, session: SessionId) {
        self.table.lock().drop_session(session);
        self.asked.lock().retain(|(asked, _), _| *asked != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::mpsc;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(9);

    fn setup(others: bool) -> (Arc<Gate>, SoftSessions, mpsc::Receiver<Result<v1::ServerMessage, tonic::Status>>) {
        let clock = Clock::default();
        let sessions = SoftSessions::new(clock.clone(), Duration::from_secs(10));
        let (sender, receiver) = mpsc::channel(4);
        sessions.connect(B, "b", sender);
        (Gate::new(clock, GrantOptions::default(), others), sessions, receiver)
    }

    fn touched() -> Touched {
        Touched { inodes: vec![FILE], entries: Vec::new() }
    }

    #[tokio::test]
    async fn a_mutation_waits_for_the_answer_of_the_holder_only() {
        let (gate, sessions, mut receiver) = setup(false);
        assert_eq!(gate.grant(B, &[(FILE, Cached::Attributes)]), 1_000);
        let waiting = {
            let (gate, sessions) = (gate.clone(), sessions.clone());
            tokio::spawn(async move { gate.clear(&sessions, touched(), A).await })
        };
        let Some(v1::server_message::Body::Invalidate(asked)) = receiver.recv().await.unwrap().unwrap().body else {
            panic!("no invalidation");
        };
        assert_eq!(asked.inodes, vec![FILE.0]);
        assert!(!waiting.is_finished());
        assert_eq!(gate.grant(A, &[(FILE, Cached::Attributes)]), 0, "granted while a mutation is under way");
        gate.invalidated(A, asked.id);
        assert!(!waiting.is_finished(), "somebody else's answer was taken");
        gate.invalidated(B, asked.id);
        let held = waiting.await.unwrap();
        assert!(held.is_some());
        drop(gate.clear(&sessions, touched(), A).await);
        assert!(receiver.try_recv().is_err(), "asked again for what was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_holder_delays_by_one_grant_time() {
        let (gate, sessions, _receiver) = setup(false);
        gate.grant(B, &[(FILE, Cached::Attributes)]);
        let begun = tokio::time::Instant::now();
        assert!(gate.clear(&sessions, touched(), A).await.is_some());
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(900) && waited <= Duration::from_millis(1_100), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_restart_with_other_sessions_the_first_mutation_waits() {
        let (gate, sessions, _receiver) = setup(true);
        let begun = tokio::time::Instant::now();
        drop(gate.clear(&sessions, touched(), A).await);
        assert!(begun.elapsed() >= Duration::from_millis(900));
        assert!(gate.clear(&sessions, Touched::default(), A).await.is_none());
    }

    #[tokio::test]
    async fn the_end_of_a_session_frees_who_waits_for_it() {
        let (gate, sessions, mut receiver) = setup(false);
        gate.grant(B, &[(FILE, Cached::Attributes)]);
        let waiting = {
            let (gate, sessions) = (gate.clone(), sessions.clone());
            tokio::spawn(async move { gate.clear(&sessions, touched(), A).await })
        };
        receiver.recv().await.unwrap().unwrap();
        gate.drop_session(B);
        assert!(waiting.await.unwrap().is_some());
    }
}
