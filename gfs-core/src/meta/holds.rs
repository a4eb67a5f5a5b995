//! Which session holds which directories and files: committed, so that a restarted master knows whom to ask.
//!
//! Whoever makes a directory holds it: it alone sees and changes its names and its attributes, decides by itself what its own calls come to
//! ([`super::holder`]) and tells later (`Request::Flush`). Nobody else has ever looked in. Before anybody does the directory is asked back,
//! and once given back it is not held again. A file is held by whoever asks for it (`Request::Hold`), because it is writing there: it alone
//! changes it, as a new file under a write delegation ([`super::delegations`]), until it is asked back or the writer is done. This room owns the
//! table; who is asked, and for how long, is the leader's.

use super::records::Number;
use crate::arena::Table;
use crate::ids::{InodeId, SessionId};

/// Directories and files that a session may be given one by one. Directories that it makes within others that it holds are its own to bound.
pub const MAX_HELD: usize = 4_096;
/// A file with chunks from this place on is not held: its holder has to know all of them.
pub const MAX_CHUNKS: u32 = 2_048;

/// All held directories and files.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    /// (session, inode) -> nothing of interest: the order of a session's.
    by_session: Table<Number>,
    /// (inode, 0) -> session.
    holders: Table<Number>,
}

impl Holds {
    /// Who holds a directory or a file.
    pub fn holder(&self, inode: InodeId) -> Option<SessionId> {
        self.holders.get((inode.0, 0)).map(|session| SessionId(session.0))
    }

    /// Whether a session holds a directory or a file.
    pub fn holds(&self, session: SessionId, inode: InodeId) -> bool {
        self.holder(inode) == Some(session)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// How many directories and files are held.
    pub fn len(&self) -> u64 {
        self.holders.len()
    }

    /// What a session holds.
    pub fn held_by(&self, session: SessionId) -> impl Iterator<Item = InodeId> + '_ {
        self.by_session.range_of(session.0, 0).map(|(inode, _)| InodeId(inode))
    }

    pub(crate) fn give(&mut self, session: SessionId, inode: InodeId) {
        self.holders.insert((inode.0, 0), &Number(session.0));
        self.by_session.insert((session.0, inode.0), &Number(0));
    }

    /// Nobody holds it any more.
    pub(crate) fn end(&mut self, inode: InodeId) {
        if let Some(session) = self.holders.take((inode.0, 0)) {
            self.by_session.remove((session.0, inode.0));
        }
    }

    /// A session has ended; answers what it held.
    pub(crate) fn drop_session(&mut self, session: SessionId) -> Vec<InodeId> {
        let held: Vec<InodeId> = self.held_by(session).collect();
        held.iter().for_each(|inode| self.end(*inode));
        held
    }

    /// What a checkpoint holds.
    pub(crate) fn table(&self) -> &Table<Number> {
        &self.holders
    }

    pub(crate) fn restore(holders: Table<Number>) -> Self {
        let mut by_session = Table::new();
        for ((inode, _), session) in holders.range((0, 0)) {
            by_session.insert((session.0, inode), &Number(0));
        }
        Self { by_session, holders }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (InodeId, SessionId)> + '_ {
        self.holders.range((0, 0)).map(|((inode, _), session)| (InodeId(inode), SessionId(session.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_has_one_holder_until_it_is_given_back_or_the_session_ends() {
        let (a, b) = (SessionId(1), SessionId(2));
        let mut holds = Holds::default();
        holds.give(a, InodeId(5));
        holds.give(a, InodeId(6));
        holds.give(b, InodeId(7));
        assert!(holds.holds(a, InodeId(5)) && !holds.holds(b, InodeId(5)) && holds.holder(InodeId(8)).is_none());
        holds.end(InodeId(5));
        assert_eq!(holds.held_by(a).collect::<Vec<_>>(), [InodeId(6)]);
        let restored = Holds::restore(holds.table().clone());
        assert_eq!(restored.iter().collect::<Vec<_>>(), [(InodeId(6), a), (InodeId(7), b)]);
        holds.drop_session(a);
        assert_eq!((holds.len(), holds.holder(InodeId(6)), holds.holder(InodeId(7))), (1, None, Some(b)));
    }
}
