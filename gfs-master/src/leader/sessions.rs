//! Connections and leases of client sessions: the soft half of a session.
//!
//! This room owns who is connected, when it was last heard, and who has said again what it holds. That a session exists
//! is committed state, and is not decided here.

use super::clock::Clock;
use gfs_core::ids::SessionId;
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Where messages to a session go.
pub type Outgoing = mpsc::Sender<Result<v1::ServerMessage, tonic::Status>>;

struct Soft {
    description: String,
    outgoing: Option<Outgoing>,
    connection: u64,
    /// Turns true when a newer connection took over, or the session ended.
    replaced: watch::Sender<bool>,
    heard_ms: u64,
    /// Has said what it holds open since this process started.
    reclaimed: bool,
    /// Its end is being committed: it cannot come back.
    ending: bool,
}

/// The connection of a session, as its stream sees it.
pub struct Connection {
    /// Which one, of this process.
    pub number: u64,
    /// Turns true when the stream should end.
    pub replaced: watch::Receiver<bool>,
}

/// All sessions; clones share them.
#[derive(Clone)]
pub struct SoftSessions {
    clock: Clock,
    lease_ms: u64,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    sessions: BTreeMap<SessionId, Soft>,
    next: u64,
}

/// A session as shown to an operator.
pub struct SessionView {
    /// Which.
    pub session: SessionId,
    /// Who.
    pub description: String,
    /// Whether its stream is there.
    pub connected: bool,
}

impl SoftSessions {
    /// Nobody.
    pub fn new(clock: Clock, lease: Duration) -> Self {
        Self { clock, lease_ms: lease.as_millis() as u64, inner: Arc::default() }
    }

    /// Sessions that the state knew when this process started: each has one lease to come back.
    pub fn expect(&self, session: SessionId, description: &str) {
        let soft = self.soft(description, false);
        self.inner.lock().sessions.insert(session, soft);
    }

    fn soft(&self, description: &str, reclaimed: bool) -> Soft {
        Soft {
            description: description.to_owned(),
            outgoing: None,
            connection: 0,
            replaced: watch::channel(false).0,
            heard_ms: self.clock.now_ms(),
            reclaimed,
            ending: false,
        }
    }

    /// A stream for a session. One that was there is told to end. `None` when the session is ending. Nothing is told over it before
    /// `welcomed`.
    pub fn connect(&self, session: SessionId, description: &str) -> Option<Connection> {
        let fresh = self.soft(description, true);
        let mut inner = self.inner.lock();
        inner.next += 1;
        let number = inner.next;
        let soft = inner.sessions.entry(session).or_insert(fresh);
        if soft.ending {
            return None;
        }
        soft.replaced.send_replace(true);
        soft.replaced = watch::channel(false).0;
        soft.outgoing = None;
        soft.connection = number;
        soft.heard_ms = self.clock.now_ms();
        Some(Connection { number, replaced: soft.replaced.subscribe() })
    }

    /// The first word was said over a stream; from now on it carries what the session is told.
    pub fn welcomed(&self, session: SessionId, connection: u64, outgoing: Outgoing) {
        if let Some(soft) = self.inner.lock().sessions.get_mut(&session)
            && soft.connection == connection
        {
            soft.outgoing = Some(outgoing);
        }
    }

    /// What it held before is told again.
    pub fn reclaimed(&self, session: SessionId) {
        if let Some(soft) = self.inner.lock().sessions.get_mut(&session) {
            soft.reclaimed = true;
        }
    }

    /// A stream has ended; the lease runs on. `then` is called if no other has taken its place, and none does before it returns.
    pub fn disconnect(&self, session: SessionId, connection: u64, then: impl FnOnce()) {
        if let Some(soft) = self.inner.lock().sessions.get_mut(&session)
            && soft.connection == connection
        {
            soft.outgoing = None;
            then();
        }
    }

    /// A message came: the lease begins anew. False when the session is over.
    pub fn heard(&self, session: SessionId) -> bool {
        let now = self.clock.now_ms();
        match self.inner.lock().sessions.get_mut(&session) {
            Some(soft) if !soft.ending => {
                soft.heard_ms = now;
                true
            }
            _ => false,
        }
    }

    /// Sends without waiting; false when it is not connected or does not read.
    pub fn tell(&self, session: SessionId, body: v1::server_message::Body) -> bool {
        let outgoing = self.inner.lock().sessions.get(&session).and_then(|soft| soft.outgoing.clone());
        outgoing.is_some_and(|out| out.try_send(Ok(v1::ServerMessage { tag: 0, body: Some(body) })).is_ok())
    }

    /// As `tell`, what the session must not miss: one that is connected and does not read loses its connection. One that is not has
    /// dropped what it had.
    pub fn must_tell(&self, session: SessionId, body: v1::server_message::Body) {
        let inner = self.inner.lock();
        let Some(soft) = inner.sessions.get(&session) else { return };
        let message = Ok(v1::ServerMessage { tag: 0, body: Some(body) });
        if soft.outgoing.as_ref().is_some_and(|out| out.try_send(message).is_err()) {
            soft.replaced.send_replace(true);
        }
    }

    /// When a session was last heard, in ms of the clock; `None` for one that is not there any more.
    pub fn heard_ms(&self, session: SessionId) -> Option<u64> {
        self.inner.lock().sessions.get(&session).map(|soft| soft.heard_ms)
    }

    /// Sessions whose lease is over. From now on they cannot come back; the caller commits their end.
    pub fn take_expired(&self) -> Vec<SessionId> {
        let now = self.clock.now_ms();
        let mut inner = self.inner.lock();
        let over = inner.sessions.iter_mut().filter(|(_, soft)| soft.heard_ms + self.lease_ms <= now);
        over.map(|(session, soft)| {
            soft.ending = true;
            soft.replaced.send_replace(true);
            *session
        })
        .collect()
    }

    /// The session says goodbye: it cannot come back.
    pub fn end(&self, session: SessionId) {
        if let Some(soft) = self.inner.lock().sessions.get_mut(&session) {
            soft.ending = true;
        }
    }

    /// Its end is committed.
    pub fn remove(&self, session: SessionId) {
        if let Some(soft) = self.inner.lock().sessions.remove(&session) {
            soft.replaced.send_replace(true);
        }
    }

    /// Whether every session that was there at the start has reclaimed or ended.
    pub fn all_reclaimed(&self) -> bool {
        self.inner.lock().sessions.values().all(|soft| soft.reclaimed)
    }

    /// Whether every session but `by` that was there at the start has reclaimed or ended.
    pub fn others_reclaimed(&self, by: SessionId) -> bool {
        self.inner.lock().sessions.iter().all(|(session, soft)| soft.reclaimed || *session == by)
    }

    /// Whether a session has said in this process what it holds.
    pub fn has_reclaimed(&self, session: SessionId) -> bool {
        self.inner.lock().sessions.get(&session).is_some_and(|soft| soft.reclaimed)
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.inner.lock().sessions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, to show.
    pub fn view(&self) -> Vec<SessionView> {
        let inner = self.inner.lock();
        let view = |(session, soft): (&SessionId, &Soft)| SessionView {
            session: *session,
            description: soft.description.clone(),
            connected: soft.outgoing.is_some(),
        };
        inner.sessions.iter().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);

    fn connect(sessions: &SoftSessions, outgoing: &Outgoing) -> Connection {
        let connection = sessions.connect(A, "a").unwrap();
        sessions.welcomed(A, connection.number, outgoing.clone());
        connection
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_renewed_by_messages_and_an_expired_session_cannot_come_back() {
        let sessions = SoftSessions::new(Clock::default(), Duration::from_secs(10));
        let (outgoing, _incoming) = mpsc::channel(1);
        let first = connect(&sessions, &outgoing);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(sessions.heard(A));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(sessions.take_expired(), vec![]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(sessions.take_expired(), vec![A]);
        assert!(!sessions.heard(A));
        assert!(*first.replaced.borrow());
        assert!(sessions.connect(A, "a").is_none());
        sessions.remove(A);
        assert!(sessions.is_empty());
    }

    #[tokio::test]
    async fn a_new_stream_replaces_the_old_one() {
        let sessions = SoftSessions::new(Clock::default(), Duration::from_secs(10));
        let (outgoing, mut incoming) = mpsc::channel(1);
        let first = connect(&sessions, &outgoing);
        let second = connect(&sessions, &outgoing);
        assert!(*first.replaced.borrow() && !*second.replaced.borrow());
        sessions.disconnect(A, first.number, || panic!("an older stream"));
        let body = || v1::server_message::Body::Invalidate(v1::Invalidate::default());
        assert!(sessions.tell(A, body()));
        assert!(!sessions.tell(A, body()), "a full queue took a message");
        assert!(incoming.recv().await.is_some());
        sessions.disconnect(A, second.number, || ());
        assert!(!sessions.tell(A, body()));
    }

    #[tokio::test]
    async fn expected_sessions_count_until_they_reclaim() {
        let sessions = SoftSessions::new(Clock::default(), Duration::from_secs(10));
        sessions.expect(A, "a");
        assert!(!sessions.all_reclaimed());
        let (outgoing, _incoming) = mpsc::channel(1);
        connect(&sessions, &outgoing);
        assert!(!sessions.all_reclaimed());
        sessions.reclaimed(A);
        assert!(sessions.all_reclaimed());
    }
}
