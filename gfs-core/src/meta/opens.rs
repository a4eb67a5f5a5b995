//! Which sessions hold which files open: soft state of the leader, told again after a reconnect.
//!
//! This room owns the counts, and which creations are to hold open what they make. It decides nothing: the leader asks it before it
//! reaps an orphan. What a creation makes is known to the state at the moment of its being made; until the leader has told this
//! table, [`OpenTable::unmade`] says whom to ask the state for.

use crate::ids::{InodeId, OperationId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// Most creations of a session that are remembered: as many as answers are kept for it.
const MAX_MAKING: usize = super::sessions::MAX_REPLIES as usize;

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

/// How a file is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenMode {
    /// What for.
    pub access: OpenAccess,
    /// Whether what is read through it may stay in a page cache, for as long as it is open.
    pub pages: bool,
}

impl From<OpenAccess> for OpenMode {
    fn from(access: OpenAccess) -> Self {
        Self { access, pages: false }
    }
}

impl OpenMode {
    /// Whether it may write.
    pub fn writes(self) -> bool {
        self.access != OpenAccess::Read
    }
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
    /// How many of all these go through a page cache.
    pub pages: u32,
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
    /// Opens through a page cache.
    pages: u64,
    limit: usize,
    /// Creations that open what they make and are not confirmed: whether that is counted.
    making: BTreeMap<OperationId, bool>,
    /// The connection over which a session last said what it holds.
    connections: BTreeMap<SessionId, u64>,
}

impl OpenTable {
    /// An empty table in which a session may hold at most `limit` different files open.
    pub fn new(limit: usize) -> Self {
        Self {
            open: BTreeMap::new(),
            holders: BTreeSet::new(),
            files: BTreeMap::new(),
            pages: 0,
            limit,
            making: BTreeMap::new(),
            connections: BTreeMap::new(),
        }
    }

    /// Adds `count` opens.
    ///
    /// # Errors
    /// When the session holds `limit` other files open.
    pub fn open(
        &mut self,
        session: SessionId,
        inode: InodeId,
        mode: impl Into<OpenMode>,
        count: u32,
    ) -> Result<(), TooManyOpen> {
        if count == 0 {
            return Ok(());
        }
        let mode = mode.into();
        if !self.open.contains_key(&(session, inode)) {
            let files = self.files.entry(session).or_insert(0);
            if *files >= self.limit {
                return Err(TooManyOpen { session, limit: self.limit });
            }
            *files += 1;
            self.holders.insert((inode, session));
        }
        let counts = self.open.entry((session, inode)).or_default();
        let held = counts.of(mode.access);
        *held = held.saturating_add(count);
        if mode.pages {
            let more = count.min(u32::MAX - counts.pages);
            counts.pages += more;
            self.pages += u64::from(more);
        }
        Ok(())
    }

    /// Takes `count` opens away; answers whether nobody holds the file open any more. More closes than opens close.
    pub fn close(&mut self, session: SessionId, inode: InodeId, mode: impl Into<OpenMode>, count: u32) -> bool {
        let mode = mode.into();
        if let Some(counts) = self.open.get_mut(&(session, inode)) {
            let held = counts.of(mode.access);
            *held = held.saturating_sub(count);
            if mode.pages {
                let closed = counts.pages.min(count);
                counts.pages -= closed;
                self.pages -= u64::from(closed);
            }
            if counts.is_closed() {
                self.forget(session, inode);
            }
        }
        !self.is_open(inode)
    }

    /// A session is about to say over a new connection what it holds: only that counts from now on. Answers the files that nobody
    /// holds open meanwhile.
    pub fn begin(&mut self, session: SessionId, connection: u64) -> Vec<InodeId> {
        let freed = self.drop_session(session);
        self.connections.insert(session, connection);
        freed
    }

    /// An operation came over a connection that is to hold open what it makes, be it the first time or a repeat. One that comes late
    /// over an old connection is not to: the session has said since what it still waits for.
    pub fn expect(&mut self, id: OperationId, connection: u64) {
        if self.connections.get(&id.session) != Some(&connection) {
            return;
        }
        self.making.entry(id).or_insert(false);
        if self.making_of(id.session).count() > MAX_MAKING {
            // The state has forgotten its answer too.
            let oldest = self.making_of(id.session).next();
            if let Some(oldest) = oldest {
                self.making.remove(&oldest);
            }
        }
    }

    /// An operation has made, or found, a file, which is held open for reading and writing from now on: once, however often this is
    /// said, and not at all when its session does not wait for it any more. False then.
    ///
    /// # Errors
    /// When the session holds `limit` other files open; then it is not waited for any more.
    pub fn made(&mut self, id: OperationId, inode: InodeId) -> Result<bool, TooManyOpen> {
        let Some(counted) = self.making.get_mut(&id) else { return Ok(false) };
        if std::mem::replace(counted, true) {
            return Ok(true);
        }
        let opened = self.open(id.session, inode, OpenAccess::Both, 1);
        if opened.is_err() {
            self.making.remove(&id);
        }
        opened.map(|()| true)
    }

    /// An operation has made nothing and will not.
    pub fn refused(&mut self, id: OperationId) {
        if self.making.get(&id) == Some(&false) {
            self.making.remove(&id);
        }
    }

    /// A session has the answers to its operations up to this one, and does not repeat them.
    pub fn confirmed(&mut self, session: SessionId, operation: u64) {
        let done: Vec<OperationId> = self.making_of(session).take_while(|id| id.operation <= operation).collect();
        for id in done {
            self.making.remove(&id);
        }
    }

    /// Operations that may have made a file which is not counted yet.
    pub fn unmade(&self) -> impl Iterator<Item = OperationId> {
        self.making.iter().filter(|(_, counted)| !**counted).map(|(id, _)| *id)
    }

    fn making_of(&self, session: SessionId) -> impl Iterator<Item = OperationId> {
        let range = OperationId { session, operation: 0 }..=OperationId { session, operation: u64::MAX };
        self.making.range(range).map(|(id, _)| *id)
    }

    /// Forgets all that a session holds or is about to; answers the files that nobody holds open now.
    pub fn drop_session(&mut self, session: SessionId) -> Vec<InodeId> {
        self.confirmed(session, u64::MAX);
        self.connections.remove(&session);
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

    /// Who may have pages of a file in a cache, in order.
    pub fn page_users(&self, inode: InodeId) -> impl Iterator<Item = SessionId> {
        let pages =
            move |session: &SessionId| self.open.get(&(*session, inode)).is_some_and(|counts| counts.pages != 0);
        self.holders(inode).filter(pages)
    }

    /// Whether anybody may have pages of anything in a cache.
    pub fn has_pages(&self) -> bool {
        self.pages != 0
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
        let Some(counts) = self.open.remove(&(session, inode)) else { return };
        self.pages -= u64::from(counts.pages);
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
    fn pages_are_in_use_until_the_last_open_through_them_is_closed() {
        let mut table = OpenTable::new(10);
        let cached = OpenMode { access: OpenAccess::Read, pages: true };
        table.open(A, FILE, cached, 2).unwrap();
        table.open(A, FILE, OpenAccess::Read, 1).unwrap();
        table.open(B, FILE, OpenAccess::Both, 1).unwrap();
        assert_eq!(table.page_users(FILE).collect::<Vec<_>>(), vec![A]);
        assert!(table.has_pages());
        table.close(A, FILE, cached, 1);
        table.close(A, FILE, OpenAccess::Read, 1);
        assert_eq!(table.page_users(FILE).count(), 1);
        table.close(A, FILE, cached, 1);
        assert_eq!((table.page_users(FILE).count(), table.holders(FILE).count()), (0, 1));
        table.open(B, FILE, cached, 1).unwrap();
        table.drop_session(B);
        assert!(table.page_users(FILE).count() == 0 && !table.has_pages());
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

    fn operation(session: SessionId, operation: u64) -> OperationId {
        OperationId { session, operation }
    }

    fn both(table: &OpenTable, session: SessionId) -> u32 {
        table.files_of(session).map(|(_, counts)| counts.both).sum()
    }

    #[test]
    fn what_an_operation_makes_is_counted_once_however_often_it_is_answered() {
        let mut table = OpenTable::new(10);
        let (first, second) = (operation(A, 1), operation(A, 2));
        table.begin(A, 7);
        table.expect(first, 7);
        table.expect(second, 7);
        assert_eq!(table.unmade().collect::<Vec<_>>(), vec![first, second]);
        assert_eq!((table.made(first, FILE), table.made(first, FILE)), (Ok(true), Ok(true)));
        table.expect(first, 7);
        assert_eq!(table.made(first, FILE), Ok(true), "repeated");
        table.refused(first);
        table.refused(second);
        assert_eq!((both(&table, A), table.unmade().count()), (1, 0));
        table.close(A, FILE, OpenAccess::Both, 1);
        table.confirmed(A, 1);
        assert_eq!((table.made(first, FILE), both(&table, A)), (Ok(false), 0), "answered late to somebody who is gone");
    }

    #[test]
    fn what_a_session_does_not_wait_for_any_more_is_not_held() {
        let mut table = OpenTable::new(10);
        let (given_up, wanted) = (operation(A, 1), operation(A, 2));
        table.begin(A, 7);
        table.expect(given_up, 7);
        table.expect(wanted, 7);
        assert_eq!(table.made(wanted, FILE), Ok(true));
        assert_eq!(table.begin(A, 8), vec![FILE], "its answer may be lost");
        table.expect(wanted, 8);
        table.expect(given_up, 7);
        assert_eq!(table.made(given_up, InodeId(11)), Ok(false));
        assert_eq!((table.made(wanted, FILE), both(&table, A)), (Ok(true), 1));
        assert_eq!(table.drop_session(A), vec![FILE]);
        table.expect(wanted, 8);
        assert_eq!(table.made(wanted, FILE), Ok(false), "its session has ended");
    }

    #[test]
    fn creations_that_are_never_confirmed_are_bounded() {
        let mut table = OpenTable::new(1);
        table.begin(A, 1);
        (0..=MAX_MAKING as u64).for_each(|number| table.expect(operation(A, number), 1));
        assert_eq!((table.unmade().count(), table.unmade().next()), (MAX_MAKING, Some(operation(A, 1))));
        table.made(operation(A, 5), FILE).unwrap();
        assert!(table.made(operation(A, 6), InodeId(11)).is_err());
        assert_eq!(table.made(operation(A, 6), InodeId(11)), Ok(false));
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
