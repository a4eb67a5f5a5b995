//! Client sessions and the answers that they have not yet confirmed: what makes a mutation happen once.
//!
//! This room owns sessions, their nonces and their replies. Leases and connections are soft state of the
//! leader; locks and reservations are other tables' and are ended with the session by `apply`.
//!
//! An operation is in one of three states: below `trimmed` or in `forgotten` it is done and its answer gone;
//! with a reply it is done; otherwise it is new. Operations come in any order and some wait long, so the gaps
//! between forgotten ones are remembered as ranges.

use super::records::Number;
use super::request::{Reply, Timestamp};
use crate::arena::Table;
use crate::ids::{OperationId, SessionId};

/// Most answers kept for one session; beyond it the oldest are forgotten.
pub const MAX_REPLIES: u32 = 1_024;
/// Most ranges of forgotten operations; beyond it the oldest gap is given up.
const MAX_RANGES: usize = 1_024;
/// Longest description kept, in characters.
const MAX_DESCRIPTION: usize = 200;

/// One open session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionRecord {
    /// Its number.
    pub session: SessionId,
    /// Of the attempt that opened it.
    pub nonce: u64,
    /// Who it is, for people.
    pub description: String,
    /// When it was opened.
    pub opened: Timestamp,
}

/// Which operations of a session are done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Progress {
    /// Operations up to here are done and confirmed, or given up.
    pub(crate) trimmed: u64,
    /// Answers kept.
    pub(crate) replies: u32,
    /// Done operations above `trimmed` whose answers were dropped: sorted, apart, both ends inclusive.
    pub(crate) forgotten: Vec<(u64, u64)>,
}

/// What is known of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Known {
    /// Never seen.
    New,
    /// Done, with this answer.
    Answered(Reply),
    /// Done, and the answer is gone.
    Forgotten,
    /// There is no such session.
    NoSession,
}

/// All open sessions.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    records: Table<SessionRecord>,
    progress: Table<Progress>,
    replies: Table<Reply>,
    by_nonce: Table<Number>,
    /// The last number given; numbers are not reused.
    last: SessionId,
}

/// What a checkpoint holds of the sessions.
pub(crate) struct SessionParts {
    pub(crate) records: Table<SessionRecord>,
    pub(crate) progress: Table<Progress>,
    pub(crate) replies: Table<Reply>,
    pub(crate) last: SessionId,
}

impl Sessions {
    /// Opens a session, or finds the one that the same attempt opened before.
    pub fn open(&mut self, nonce: u64, description: &str, now: Timestamp) -> SessionId {
        if let Some(session) = self.by_nonce.get((nonce, 0)) {
            return SessionId(session.0);
        }
        let session = SessionId(self.last.0 + 1);
        self.last = session;
        let description = description.chars().take(MAX_DESCRIPTION).collect();
        self.records.insert((session.0, 0), &SessionRecord { session, nonce, description, opened: now });
        self.progress.insert((session.0, 0), &Progress::default());
        self.by_nonce.insert((nonce, 0), &Number(session.0));
        session
    }

    /// Forgets a session and its answers; answers whether it was there.
    pub fn end(&mut self, session: SessionId) -> bool {
        let Some(record) = self.records.take((session.0, 0)) else { return false };
        self.by_nonce.remove((record.nonce, 0));
        self.progress.remove((session.0, 0));
        for operation in self.operations(session, u64::MAX, usize::MAX) {
            self.replies.remove((session.0, operation));
        }
        true
    }

    /// A session's record.
    pub fn get(&self, session: SessionId) -> Option<SessionRecord> {
        self.records.get((session.0, 0))
    }

    /// Whether a session is open.
    pub fn contains(&self, session: SessionId) -> bool {
        self.records.contains((session.0, 0))
    }

    /// All sessions in order of number.
    pub fn iter(&self) -> impl Iterator<Item = SessionRecord> {
        self.records.range((0, 0)).map(|(_, record)| record)
    }

    /// The number that the next one will have: all that were ever opened are below it.
    pub fn next(&self) -> SessionId {
        SessionId(self.last.0 + 1)
    }

    /// How many are open.
    pub fn len(&self) -> u64 {
        self.records.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What is known of an operation.
    pub fn known(&self, id: OperationId) -> Known {
        let Some(progress) = self.progress.get((id.session.0, 0)) else { return Known::NoSession };
        if let Some(reply) = self.replies.get((id.session.0, id.operation)) {
            return Known::Answered(reply);
        }
        if progress.is_done(id.operation) { Known::Forgotten } else { Known::New }
    }

    /// Those of its operations that were never seen.
    pub fn unknown(&self, session: SessionId, operations: &[u64]) -> Vec<u64> {
        let is_new = |operation: u64| self.known(OperationId { session, operation }) == Known::New;
        operations.iter().copied().filter(|operation| is_new(*operation)).collect()
    }

    /// The session has its answers up to `confirmed`: they go.
    pub fn confirm(&mut self, session: SessionId, confirmed: u64) {
        let Some(mut progress) = self.progress.get((session.0, 0)) else { return };
        if confirmed <= progress.trimmed {
            return;
        }
        let gone = self.operations(session, confirmed, usize::MAX);
        for operation in &gone {
            self.replies.remove((session.0, *operation));
        }
        progress.replies = progress.replies.saturating_sub(gone.len() as u32);
        progress.trim(confirmed);
        self.progress.insert((session.0, 0), &progress);
    }

    /// Keeps the answer to an operation that was new.
    pub fn remember(&mut self, id: OperationId, reply: &Reply) {
        let Some(mut progress) = self.progress.get((id.session.0, 0)) else { return };
        if self.replies.insert((id.session.0, id.operation), reply) {
            return;
        }
        progress.replies += 1;
        if progress.replies > MAX_REPLIES {
            for oldest in self.operations(id.session, u64::MAX, 1) {
                self.replies.remove((id.session.0, oldest));
                progress.replies -= 1;
                progress.forget(oldest);
            }
        }
        self.progress.insert((id.session.0, 0), &progress);
    }

    /// What a checkpoint holds.
    pub(crate) fn parts(&self) -> SessionParts {
        let Self { records, progress, replies, last, .. } = self.clone();
        SessionParts { records, progress, replies, last }
    }

    /// Rebuilds the table; `None` when its parts contradict each other.
    pub(crate) fn restore(parts: SessionParts) -> Option<Self> {
        let SessionParts { records, progress, replies, last } = parts;
        let mut sessions = Self { records, progress, replies, last, ..Self::default() };
        let all: Vec<SessionRecord> = sessions.iter().collect();
        let mut kept = 0;
        for record in &all {
            let progress = sessions.progress.get((record.session.0, 0))?;
            let operations = sessions.operations(record.session, u64::MAX, usize::MAX);
            let fits = operations.len() == progress.replies as usize
                && operations.iter().all(|operation| !progress.is_done(*operation));
            let taken = sessions.by_nonce.insert((record.nonce, 0), &Number(record.session.0));
            if taken || !fits || record.session > last {
                return None;
            }
            kept += u64::from(progress.replies);
        }
        let complete = kept == sessions.replies.len() && sessions.progress.len() == sessions.records.len();
        complete.then_some(sessions)
    }

    fn operations(&self, session: SessionId, upto: u64, most: usize) -> Vec<u64> {
        let all = self.replies.range_of(session.0, 0).map(|(operation, _)| operation);
        all.take_while(|operation| *operation <= upto).take(most).collect()
    }
}

impl Progress {
    fn is_done(&self, operation: u64) -> bool {
        let after = self.forgotten.partition_point(|range| range.0 <= operation);
        operation <= self.trimmed || (after > 0 && self.forgotten[after - 1].1 >= operation)
    }

    /// Raises `trimmed`, also over what joins it.
    fn trim(&mut self, upto: u64) {
        self.trimmed = self.trimmed.max(upto);
        let joined = self.forgotten.partition_point(|range| range.0 <= self.trimmed.saturating_add(1));
        if joined > 0 {
            self.trimmed = self.trimmed.max(self.forgotten[joined - 1].1);
            self.forgotten.drain(..joined);
        }
    }

    /// Adds a done operation to the forgotten ones.
    fn forget(&mut self, operation: u64) {
        let at = self.forgotten.partition_point(|range| range.1 < operation);
        let joins_before = at > 0 && self.forgotten[at - 1].1 + 1 == operation;
        let joins_after = self.forgotten.get(at).is_some_and(|range| range.0 == operation.saturating_add(1));
        match (joins_before, joins_after) {
            (true, true) => {
                self.forgotten[at - 1].1 = self.forgotten[at].1;
                self.forgotten.remove(at);
            }
            (true, false) => self.forgotten[at - 1].1 = operation,
            (false, true) => self.forgotten[at].0 = operation,
            (false, false) => self.forgotten.insert(at, (operation, operation)),
        }
        if self.forgotten.len() > MAX_RANGES {
            let first = self.forgotten[0].1;
            self.trim(first);
        }
        self.trim(self.trimmed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> (Sessions, SessionId) {
        let mut sessions = Sessions::default();
        let session = sessions.open(77, "test", Timestamp(1));
        (sessions, session)
    }

    fn id(session: SessionId, operation: u64) -> OperationId {
        OperationId { session, operation }
    }

    #[test]
    fn opening_twice_with_one_nonce_opens_once() {
        let (mut sessions, session) = opened();
        assert_eq!(sessions.open(77, "again", Timestamp(2)), session);
        assert_ne!(sessions.open(78, "other", Timestamp(2)), session);
        assert_eq!(sessions.len(), 2);
    }

    #[test]
    fn an_answer_is_kept_until_it_is_confirmed() {
        let (mut sessions, session) = opened();
        sessions.remember(id(session, 1), &Reply::Done);
        sessions.remember(id(session, 3), &Reply::Done);
        assert_eq!(sessions.known(id(session, 1)), Known::Answered(Reply::Done));
        assert_eq!(sessions.known(id(session, 2)), Known::New);
        sessions.confirm(session, 2);
        assert_eq!(sessions.known(id(session, 1)), Known::Forgotten);
        assert_eq!(sessions.known(id(session, 2)), Known::Forgotten);
        assert_eq!(sessions.known(id(session, 3)), Known::Answered(Reply::Done));
    }

    #[test]
    fn an_operation_that_waits_long_is_still_new_when_answers_around_it_are_forgotten() {
        let (mut sessions, session) = opened();
        for operation in (1..=5_000).filter(|operation| *operation != 5) {
            sessions.remember(id(session, operation), &Reply::Done);
        }
        let record = sessions.progress.get((session.0, 0)).unwrap();
        assert_eq!(record.replies, MAX_REPLIES);
        assert_eq!((record.trimmed, record.forgotten.clone()), (4, vec![(6, 5_000 - u64::from(MAX_REPLIES))]));
        assert_eq!(sessions.known(id(session, 5)), Known::New);
        assert_eq!(sessions.known(id(session, 6)), Known::Forgotten);
        sessions.confirm(session, 5_000);
        let record = sessions.progress.get((session.0, 0)).unwrap();
        assert_eq!((record.trimmed, record.forgotten.len(), record.replies), (5_000, 0, 0));
    }

    #[test]
    fn the_memory_of_gaps_is_bounded() {
        let (mut sessions, session) = opened();
        for operation in 1..=10_000 {
            sessions.remember(id(session, operation * 2), &Reply::Done);
        }
        let record = sessions.progress.get((session.0, 0)).unwrap();
        assert!(record.forgotten.len() <= MAX_RANGES);
        assert!(record.trimmed > 0);
        assert_eq!(sessions.known(id(session, 1)), Known::Forgotten);
        assert_eq!(sessions.known(id(session, 2)), Known::Forgotten);
    }

    #[test]
    fn an_ended_session_leaves_no_answer_behind() {
        let (mut sessions, session) = opened();
        let other = sessions.open(78, "other", Timestamp(1));
        sessions.remember(id(session, 1), &Reply::Done);
        sessions.remember(id(other, 1), &Reply::Done);
        assert!(sessions.end(session));
        assert!(!sessions.end(session));
        assert_eq!(sessions.known(id(session, 1)), Known::NoSession);
        assert_eq!(sessions.replies.len(), 1);
        assert_ne!(sessions.open(77, "new", Timestamp(3)), session);
    }
}
