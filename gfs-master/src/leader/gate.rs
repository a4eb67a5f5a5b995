//! The gate in front of every mutation: nobody else may still cache what it makes stale.
//!
//! This room owns the table of grants and the acknowledgements that are awaited. It never looks at the state: what a
//! request touches is the core's to say. Lock order: the state's lock before the table's.

use super::clock::Clock;
use super::sessions::SoftSessions;
use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::grants::{Cached, Conflict, GrantOptions, GrantTable, PASSED_ON_MS, SILENCE_MS, Touched};
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// All grants, and who is asked to give one back.
pub struct Gate {
    clock: Clock,
    table: Mutex<GrantTable>,
    asked: Mutex<Asked>,
    next: AtomicU64,
    /// Grants of the process before this one may be in force for a while; nobody knows which.
    unknown: bool,
}

/// Who was asked to give up grants.
#[derive(Default)]
struct Asked {
    waiting: BTreeMap<(SessionId, u64), oneshot::Sender<()>>,
    /// Not waited for any more, and not answered yet. Until then the session may have files open that it has not told of.
    owed: BTreeSet<(SessionId, u64)>,
}

/// How often a wait for a holder looks whether its grants still stand.
const LOOK: Duration = Duration::from_millis(50);

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
    /// not known until they have come back, or have been silent for so long that they cache nothing.
    pub fn new(clock: Clock, options: GrantOptions, others: bool) -> Arc<Self> {
        Arc::new(Self {
            clock,
            table: Mutex::new(GrantTable::new(options)),
            asked: Mutex::default(),
            next: AtomicU64::new(1),
            unknown: others,
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
    /// takes at most as long as a session may be silent.
    pub async fn clear(self: &Arc<Self>, sessions: &SoftSessions, touched: Touched, by: SessionId) -> Option<Held> {
        if touched.is_empty() {
            return None;
        }
        while self.is_unknown(sessions, by) {
            tokio::time::sleep(LOOK).await;
        }
        Some(self.withdraw(sessions, touched, by).await)
    }

    /// Whether other sessions than `by` may cache what an earlier process has granted. Those that have come back do not, but for what they
    /// had passed on.
    fn is_unknown(&self, sessions: &SoftSessions, by: SessionId) -> bool {
        let now = self.clock.now_ms();
        self.unknown && now < SILENCE_MS && (now < PASSED_ON_MS || !sessions.others_reclaimed(by))
    }

    /// As `clear`, of what this process has granted.
    pub async fn withdraw(self: &Arc<Self>, sessions: &SoftSessions, touched: Touched, by: SessionId) -> Held {
        self.table.lock().block(&touched);
        let held = Held { gate: self.clone(), touched };
        let conflicts = self.table.lock().conflicts(&held.touched, by, self.clock.now_ms());
        let asked: Vec<_> = conflicts.into_iter().map(|conflict| self.ask(sessions, conflict)).collect();
        for (id, conflict, answer) in asked {
            if !self.given_up(sessions, &conflict, answer).await {
                tracing::debug!(session = %conflict.session, "a grant ran out without an answer");
                let key = (conflict.session, id);
                let mut asked = self.asked.lock();
                if asked.waiting.remove(&key).is_some() {
                    asked.owed.insert(key);
                }
            }
        }
        held
    }

    /// Waits until a holder has given up its grants, or has ended; false when they ran out otherwise.
    async fn given_up(&self, sessions: &SoftSessions, conflict: &Conflict, mut answer: oneshot::Receiver<()>) -> bool {
        loop {
            let now = self.clock.now_ms();
            let stands = self.table.lock().stands_until(conflict, now);
            let talks = sessions.heard_ms(conflict.session).map(|heard| heard + SILENCE_MS);
            let Some(until) = stands.zip(talks).map(|(stands, talks)| stands.min(talks)).filter(|until| *until > now)
            else {
                return false;
            };
            let look = self.clock.instant(until).min(tokio::time::Instant::now() + LOOK);
            match tokio::time::timeout_at(look, &mut answer).await {
                Ok(Ok(())) => {
                    self.table.lock().acknowledged(conflict);
                    return true;
                }
                // The session has ended: nobody caches there any more.
                Ok(Err(_)) => return true,
                Err(_) => (),
            }
        }
    }

    fn ask(&self, sessions: &SoftSessions, conflict: Conflict) -> (u64, Conflict, oneshot::Receiver<()>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        self.asked.lock().waiting.insert((conflict.session, id), answered);
        let entry = |(parent, name): &(InodeId, Vec<u8>)| v1::EntryName { parent: parent.0, name: name.clone().into() };
        let invalidate = v1::Invalidate {
            id,
            inodes: conflict.inodes.iter().map(|inode| inode.0).collect(),
            entries: conflict.entries.iter().map(entry).collect(),
        };
        sessions.must_tell(conflict.session, v1::server_message::Body::Invalidate(invalidate));
        (id, conflict, answer)
    }

    /// A session says that it has dropped what invalidation `id` named, and has told before which files it has open.
    pub fn invalidated(&self, session: SessionId, id: u64) {
        let mut asked = self.asked.lock();
        match asked.waiting.remove(&(session, id)) {
            // Whoever asked may have stopped waiting.
            Some(waiting) => drop(waiting.send(())),
            None => drop(asked.owed.remove(&(session, id))),
        }
    }

    /// Whether a session may have files open that it has not told of: nothing may be freed for want of users.
    pub fn is_owed(&self) -> bool {
        !self.asked.lock().owed.is_empty()
    }

    /// A session's connection has ended, and with it the use of all grants that it has now, but for what it has passed on.
    pub fn disconnected(&self, session: SessionId) {
        self.table.lock().cut(session, self.clock.now_ms() + PASSED_ON_MS);
    }

    /// A session has come back over a new connection, and has told all that it has open.
    pub fn returned(&self, session: SessionId) {
        self.asked.lock().owed.retain(|(asked, _)| *asked != session);
    }

    /// A session has ended and caches nothing.
    pub fn drop_session(&self, session: SessionId) {
        self.table.lock().drop_session(session);
        let mut asked = self.asked.lock();
        asked.waiting.retain(|(asked, _), _| *asked != session);
        asked.owed.retain(|(asked, _)| *asked != session);
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
        let connection = sessions.connect(B, "b").unwrap();
        sessions.welcomed(B, connection.number, sender);
        (Gate::new(clock, GrantOptions::default(), others), sessions, receiver)
    }

    fn touched() -> Touched {
        Touched { inodes: vec![FILE], entries: Vec::new() }
    }

    #[tokio::test]
    async fn a_mutation_waits_for_the_answer_of_the_holder_only() {
        let (gate, sessions, mut receiver) = setup(false);
        assert_eq!(gate.grant(B, &[(FILE, Cached::Attributes)]), 60_000);
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
    async fn a_silent_holder_delays_for_as_long_as_it_may_be_silent_and_owes_an_answer() {
        let (gate, sessions, _receiver) = setup(false);
        gate.grant(B, &[(FILE, Cached::Attributes)]);
        let begun = tokio::time::Instant::now();
        assert!(gate.clear(&sessions, touched(), A).await.is_some());
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(1_900) && waited <= Duration::from_millis(2_100), "{waited:?}");
        assert!(gate.is_owed());
        gate.invalidated(B, 7);
        assert!(gate.is_owed(), "an answer to another question");
        gate.invalidated(B, 1);
        assert!(!gate.is_owed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_talks_and_does_not_answer_is_waited_for() {
        let (gate, sessions, _receiver) = setup(false);
        gate.grant(B, &[(FILE, Cached::Attributes)]);
        let waiting = {
            let (gate, sessions) = (gate.clone(), sessions.clone());
            tokio::spawn(async move { gate.clear(&sessions, touched(), A).await })
        };
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            assert!(sessions.heard(B) && !waiting.is_finished());
        }
        gate.invalidated(B, 1);
        assert!(waiting.await.unwrap().is_some() && !gate.is_owed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_whose_connection_ends_delays_for_what_it_has_passed_on() {
        let (gate, sessions, _receiver) = setup(false);
        gate.grant(B, &[(FILE, Cached::Attributes)]);
        let begun = tokio::time::Instant::now();
        sessions.disconnect(B, 1, || gate.disconnected(B));
        assert!(gate.clear(&sessions, touched(), A).await.is_some());
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(900) && waited <= Duration::from_millis(1_100), "{waited:?}");
        assert!(gate.is_owed());
        gate.returned(B);
        assert!(!gate.is_owed());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_restart_the_first_mutation_waits_for_others_to_come_back_or_be_silent() {
        for (comes_back, most) in [(true, 1_100), (false, 2_100)] {
            let (gate, sessions, _receiver) = setup(true);
            sessions.expect(SessionId(3), "another");
            if comes_back {
                sessions.reclaimed(SessionId(3));
            }
            let begun = tokio::time::Instant::now();
            drop(gate.clear(&sessions, touched(), A).await);
            let waited = begun.elapsed().as_millis();
            assert!(waited >= most - 200 && waited <= most, "{waited}");
            assert!(gate.clear(&sessions, Touched::default(), A).await.is_none());
        }
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
