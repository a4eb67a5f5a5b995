//! Which sessions hold which files open: soft state of the leader, told again after a reconnect.
//!
//! This room owns the counts. It decides nothing: the leader asks it before it reaps an orphan.

use crate::ids::{InodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// What a file is open for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenAccess {
    /// O_RDONLY.
    Read,
    /// O_WRONLY.
    Write,
    /// O_RDWR.
    Both,
}

/// How often one session holds one file open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenCounts {
    /// For reading only.
    pub read: u32,
    /// For writing only.
    pub write: u32,
    /// For both.
    pub both: u32,
}

impl OpenCounts {
    fn of(&mut self, access: OpenAccess) -> &mut u32 {
        match access {
            OpenAccess::Read => &mut self.read,
            OpenAccess::Write => &mut self.write,
            OpenAccess::Both => &mut self.both,
        }
    }

    fn is_closed(&self) -> bool {
        self.read == 0 && self.write == 0 && self.both == 0
    }

    /// Whether any of the opens may write.
    pub fn writes(&self) -> bool {
        self.write != 0 || self.both != 0
    }
}

/// A session holds too many different files open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("session {session} holds {limit} files open, the most allowed")]
pub struct TooManyOpen {
    /// Whose.
    pub session: SessionId,
    /// The bound.
    pub limit: usize,
}

/// All open files.
#[derive(Clone, Debug)]
pub struct OpenTable {
    open: BTreeMap<(SessionId, InodeId), OpenCounts>,
    holders: BTreeSet<(InodeId, SessionId)>,
    files: BTreeMap<SessionId, usize>,
    limit: usize,
}

impl OpenTable {
    /// An empty table in which a session may hold at most `limit` different files open.
    pub fn new(limit: usize) -> Self {
        Self { open: BTreeMap::new(), holders: BTreeSet::new(), files: BTreeMap::new(), limit }
    }

    /// Adds `count` opens.
    ///
    /// # Errors
    /// When the session holds `limit` other files open.
    pub fn open(
        &mut self,
        session: SessionId,
        inode: InodeId,
        access: OpenAccess,
        count: u32,
    ) -> Result<(), TooManyOpen> {
        if count == 0 {
            return Ok(());
        }
        if !self.open.contains_key(&(session, inode)) {
            let files = self.files.entry(session).or_insert(0);
            if *files >= self.limit {
                return Err(TooManyOpen { session, limit: self.limit });
            }
            *files += 1;
            self.holders.insert((inode, session));
        }
        let held = self.open.entry((session, inode)).or_default().of(access);
        *held = held.saturating_add(count);
        Ok(())
    }

    /// Takes `count` opens away; answers whether nobody holds the file open any more. More closes than opens close.
    pub fn close(&mut self, session: SessionId, inode: InodeId, access: OpenAccess, count: u32) -> bool {
        if let Some(counts) = self.open.get_mut(&(session, inode)) {
            let held = counts.of(access);
            *held = held.saturating_sub(count);
            if counts.is_closed() {
                self.forget(session, inode);
            }
        }
        !self.is_open(inode)
    }

    /// Forgets all that a session holds; answers the files that nobody holds open now.
    pub fn drop_session(&mut self, session: SessionId) -> Vec<InodeId> {
        let inodes: Vec<InodeId> = self.files_of(session).map(|(inode, _)| inode).collect();
        for inode in &inodes {
            self.forget(session, *inode);
        }
        inodes.into_iter().filter(|inode| !self.is_open(*inode)).collect()
    }

    /// Who holds a file open, in order.
    pub fn holders(&self, inode: InodeId) -> impl Iterator<Item = SessionId> {
        self.holders.range((inode, SessionId(0))..=(inode, SessionId(u64::MAX))).map(|(_, session)| *session)
    }

    /// Whether anybody holds a file open.
    pub fn is_open(&self, inode: InodeId) -> bool {
        self.holders(inode).next().is_some()
    }

    /// Who holds a file open for writing, in order.
    pub fn writers(&self, inode: InodeId) -> impl Iterator<Item = SessionId> {
        let writes = move |session: &SessionId| self.open.get(&(*session, inode)).is_some_and(OpenCounts::writes);
        self.holders(inode).filter(writes)
    }

    /// What a session holds open, in order of inode.
    pub fn files_of(&self, session: SessionId) -> impl Iterator<Item = (InodeId, OpenCounts)> {
        let range = (session, InodeId(0))..=(session, InodeId(u64::MAX));
        self.open.range(range).map(|((_, inode), counts)| (*inode, *counts))
    }

    /// How many different files a session holds open.
    pub fn count(&self, session: SessionId) -> usize {
        self.files.get(&session).copied().unwrap_or(0)
    }

    fn forget(&mut self, session: SessionId, inode: InodeId) {
        if self.open.remove(&(session, inode)).is_none() {
            return;
        }
        self.holders.remove(&(inode, session));
        if let Some(files) = self.files.get_mut(&session) {
            *files -= 1;
            if *files == 0 {
                self.files.remove(&session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(10);

    #[test]
    fn a_file_is_open_until_the_last_holder_closes_it() {
        let mut table = OpenTable::new(10);
        table.open(A, FILE, OpenAccess::Read, 2).unwrap();
        table.open(B, FILE, OpenAccess::Both, 1).unwrap();
        assert_eq!(table.holders(FILE).collect::<Vec<_>>(), vec![A, B]);
        assert_eq!(table.writers(FILE).collect::<Vec<_>>(), vec![B]);
        assert!(!table.close(A, FILE, OpenAccess::Read, 1));
        assert!(!table.close(B, FILE, OpenAccess::Both, 1));
        assert_eq!(table.holders(FILE).collect::<Vec<_>>(), vec![A]);
        assert!(table.close(A, FILE, OpenAccess::Read, 1));
        assert_eq!(table.count(A), 0);
    }

    #[test]
    fn a_session_that_ends_frees_what_nobody_else_holds() {
        let mut table = OpenTable::new(10);
        table.open(A, FILE, OpenAccess::Write, 1).unwrap();
        table.open(A, InodeId(11), OpenAccess::Read, 1).unwrap();
        table.open(B, InodeId(11), OpenAccess::Read, 1).unwrap();
        assert_eq!(table.drop_session(A), vec![FILE]);
        assert!(table.is_open(InodeId(11)));
        assert_eq!(table.files_of(A).count(), 0);
    }

    #[test]
    fn the_number_of_files_of_a_session_is_bounded() {
        let mut table = OpenTable::new(1);
        table.open(A, FILE, OpenAccess::Read, 1).unwrap();
        table.open(A, FILE, OpenAccess::Write, 1).unwrap();
        assert_eq!(table.open(A, InodeId(11), OpenAccess::Read, 1), Err(TooManyOpen { session: A, limit: 1 }));
        table.close(A, FILE, OpenAccess::Read, 9);
        table.close(A, FILE, OpenAccess::Write, 1);
        table.open(A, InodeId(11), OpenAccess::Read, 1).unwrap();
        assert_eq!(table.count(A), 1);
    }
}
