//! What a session that ends may still do at chunk servers: nothing (design section 4, rule 15).
//!
//! This room owns the list of those that end. A session's end is committed, and somebody else let at what it held, only when every
//! chunk server has taken fences that leave it out, or has no lease; a server gets them before its next lease. So a write that was
//! sent before and arrives after is refused. Nothing here is remembered over a restart: a session whose end was committed is not in
//! the state any more, and one whose end was not goes on.

use super::Leader;
use gfs_core::ids::SessionId;
use gfs_proto::v1;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::time::Duration;

/// Between looks at the leases of servers that do not answer.
const LOOK: Duration = Duration::from_millis(50);

/// Sessions whose end is not committed yet.
#[derive(Debug, Default)]
pub struct SoftFences {
    inner: Mutex<Ending>,
}

#[derive(Debug, Default)]
struct Ending {
    raised: u64,
    sessions: BTreeSet<SessionId>,
}

impl SoftFences {
    /// The session changes nothing from now on, wherever the fences of this version are in place.
    fn raise(&self, session: SessionId) -> u64 {
        let mut inner = self.inner.lock();
        if inner.sessions.insert(session) {
            inner.raised += 1;
        }
        inner.version()
    }

    /// The session's end is committed: its fence is the state's from now on.
    pub(super) fn committed(&self, session: SessionId) {
        self.inner.lock().sessions.remove(&session);
    }
}

impl Ending {
    /// 0 is what a server has that has none.
    fn version(&self) -> u64 {
        self.raised + 1
    }
}

impl Leader {
    /// The fences in force for a server that has those of version `known`; `None` when these are they.
    pub fn newer_fences(&self, known: u64) -> Option<v1::Fences> {
        // The list before the state: what is in neither has ended.
        let (version, ending) = {
            let inner = self.fences.inner.lock();
            if inner.version() == known {
                return None;
            }
            (inner.version(), inner.sessions.clone())
        };
        let state = self.machine.state();
        let live = state.sessions().iter().map(|record| record.session).filter(|session| !ending.contains(session));
        Some(v1::Fences { version, next: state.sessions().next().0, live: live.map(|session| session.0).collect() })
    }

    /// Returns when no chunk server takes mutations of these sessions any more.
    pub async fn fence(&self, sessions: impl IntoIterator<Item = SessionId>) {
        let raised = sessions.into_iter().map(|session| self.fences.raise(session)).max();
        let (Some(version), Some(fences)) = (raised, self.newer_fences(0)) else { return };
        for server in self.servers.without_fences(version) {
            self.servers.order(server, v1::MasterOrder { fences: Some(fences.clone()), ..v1::MasterOrder::default() });
        }
        while !self.servers.without_fences(version).is_empty() {
            // An answer in between is found at the next look.
            let _ = tokio::time::timeout(LOOK, self.servers.fenced()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_that_ends_makes_newer_fences_once() {
        let fences = SoftFences::default();
        let first = fences.raise(SessionId(4));
        assert!(first > 1, "a server may have version 1 before");
        assert_eq!(fences.raise(SessionId(4)), first);
        assert!(fences.raise(SessionId(5)) > first);
        fences.committed(SessionId(4));
        assert!(fences.raise(SessionId(6)) > first + 1, "versions never go back");
    }
}
