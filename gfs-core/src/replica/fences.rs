//! Which client sessions are over, as a chunk server knows it (design section 4, rule 15).

use crate::ids::SessionId;
use std::collections::BTreeSet;

/// The sessions whose mutations are taken. The master sends it whole whenever a session ends, and to every server before its
/// lease; numbers of sessions ascend and are never given twice, so one that began later is let in without being named.
///
/// A session has no fence only when it is named, or younger than the list: nothing has to be remembered of those that ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fences {
    next: SessionId,
    live: BTreeSet<SessionId>,
}

impl Fences {
    /// Sessions before `next` that are not in `live` are over.
    pub fn new(next: SessionId, live: impl IntoIterator<Item = SessionId>) -> Self {
        Self { next, live: live.into_iter().collect() }
    }

    /// Whether a session may change nothing any more. What the master itself orders has number 0.
    pub fn refuses(&self, session: SessionId) -> bool {
        session != SessionId(0) && session < self.next && !self.live.contains(&session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sessions_that_ended_are_refused() {
        let fences = Fences::new(SessionId(5), [SessionId(2), SessionId(4)]);
        let refused: Vec<u64> = (0..8).filter(|number| fences.refuses(SessionId(*number))).collect();
        assert_eq!(refused, [1, 3], "0 is the master's own, 5 and later are younger than the list");
        assert!(!Fences::default().refuses(SessionId(1)), "nothing is known yet");
    }
}
