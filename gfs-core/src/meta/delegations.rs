//! Write delegations: which session may change a file by itself and tell the master later, and what it may so change.
//!
//! The table is soft state of the leader, told again after a restart (`Hello.reclaim`). A delegation is given with the creation of a file
//! and lasts until the holder gives it back, asked or not, or its session ends. While it lasts nobody else is shown the file's attributes
//! and nobody else changes them: whoever wants to waits for its end. This room never waits and never reads a clock.

use super::request::{AttributeChanges, Attributes, Credentials, FileType, SetTime, Timestamp};
use crate::ids::{InodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// Set-id bits: a change of owner or a write may take them away, which the master decides.
pub(super) const SET_ID: u16 = 0o6000;

/// Who holds what.
#[derive(Clone, Debug, Default)]
pub struct DelegationTable {
    holders: BTreeMap<InodeId, SessionId>,
    by_session: BTreeSet<(SessionId, InodeId)>,
    limit: usize,
}

impl DelegationTable {
    /// An empty table for at most `limit` delegations.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Gives a file to a session; false when another has it or the table is full.
    pub fn give(&mut self, session: SessionId, inode: InodeId) -> bool {
        match self.holders.get(&inode) {
            Some(holder) => *holder == session,
            None if self.holders.len() >= self.limit => false,
            None => {
                self.holders.insert(inode, session);
                self.by_session.insert((session, inode));
                true
            }
        }
    }

    /// A session has made a file by itself, in a directory that it holds: nobody else can have it.
    pub fn give_made(&mut self, session: SessionId, inode: InodeId) {
        self.holders.insert(inode, session);
        self.by_session.insert((session, inode));
    }

    /// Whether a session holds a file.
    pub fn holds(&self, session: SessionId, inode: InodeId) -> bool {
        self.holders.get(&inode) == Some(&session)
    }

    /// A session gives a file back.
    pub fn end(&mut self, session: SessionId, inode: InodeId) {
        if self.by_session.remove(&(session, inode)) {
            self.holders.remove(&inode);
        }
    }

    /// A session has ended.
    pub fn drop_session(&mut self, session: SessionId) {
        for inode in self.held_by(session) {
            self.end(session, inode);
        }
    }

    /// All that a session holds, in order.
    pub fn held_by(&self, session: SessionId) -> Vec<InodeId> {
        let range = (session, InodeId(0))..=(session, InodeId(u64::MAX));
        self.by_session.range(range).map(|(_, inode)| *inode).collect()
    }

    /// What sessions other than `by` hold of these files, by session.
    pub fn conflicts(
        &self,
        inodes: impl IntoIterator<Item = InodeId>,
        by: SessionId,
    ) -> BTreeMap<SessionId, Vec<InodeId>> {
        let mut found: BTreeMap<SessionId, Vec<InodeId>> = BTreeMap::new();
        if self.holders.is_empty() {
            return found;
        }
        for inode in inodes {
            if let Some(holder) = self.holders.get(&inode).filter(|holder| **holder != by) {
                found.entry(*holder).or_default().push(inode);
            }
        }
        found
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.holders.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }
}

/// Whether the holder may deal with this file by itself at all: nothing hangs on it that only the master knows.
pub fn is_plain(attributes: &Attributes) -> bool {
    attributes.file_type == FileType::File
        && attributes.mode & SET_ID == 0
        && !attributes.has_acl
        && !attributes.has_xattrs
}

/// Does at the holder what `SetAttributes` would do at the master; false, and nothing is changed, when that is the master's to do.
pub fn change(attributes: &mut Attributes, who: &Credentials, changes: &AttributeChanges, now: Timestamp) -> bool {
    let AttributeChanges { mode, uid, gid, size, atime, mtime, ctime, replicas, clear_suid: _ } = changes;
    let others = size.is_some() || ctime.is_some() || replicas.is_some();
    if who.check || others || mode.is_some_and(|mode| mode & SET_ID != 0) || !is_plain(attributes) {
        return false;
    }
    if (mode, uid, gid, atime, mtime) == (&None, &None, &None, &None, &None) {
        return true;
    }
    set(attributes, changes, now);
    true
}

/// Sets mode, owner, group and times as `changes` say, and the change time.
pub(super) fn set(attributes: &mut Attributes, changes: &AttributeChanges, now: Timestamp) {
    let AttributeChanges { mode, uid, gid, atime, mtime, .. } = changes;
    let time = |set: SetTime| match set {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    attributes.mode = mode.map_or(attributes.mode, |mode| mode & 0o7777);
    attributes.uid = uid.unwrap_or(attributes.uid);
    attributes.gid = gid.unwrap_or(attributes.gid);
    attributes.atime = atime.map_or(attributes.atime, time);
    attributes.mtime = mtime.map_or(attributes.mtime, time);
    attributes.ctime = now;
}

/// Does at the holder what `CommitWrite` would do at the master to size and times.
pub fn write(attributes: &mut Attributes, min_size: Option<u64>, now: Timestamp) {
    attributes.size = attributes.size.max(min_size.unwrap_or(0));
    (attributes.mtime, attributes.ctime) = (now, now);
}

/// The changes that make the master's attributes those of the holder.
pub fn difference(before: &Attributes, after: &Attributes) -> AttributeChanges {
    fn new<T: PartialEq + Copy>(before: T, after: T) -> Option<T> {
        (before != after).then_some(after)
    }
    AttributeChanges {
        mode: new(before.mode, after.mode),
        uid: new(before.uid, after.uid),
        gid: new(before.gid, after.gid),
        atime: new(before.atime, after.atime).map(SetTime::At),
        // A commit of chunks sets them, so they are always told.
        mtime: Some(SetTime::At(after.mtime)),
        ctime: Some(after.ctime),
        ..AttributeChanges::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ROOT;
    use crate::meta::request::{FlushedFile, NodeKind, Reply, Request};
    use crate::meta::tests::master::Master;
    use proptest::prelude::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    #[test]
    fn a_file_has_one_holder_until_it_is_given_back_or_the_session_ends() {
        let mut table = DelegationTable::new(2);
        assert!(table.give(A, InodeId(5)) && table.give(A, InodeId(6)));
        assert!(!table.give(B, InodeId(5)), "given twice");
        assert!(!table.give(B, InodeId(7)), "given beyond the limit");
        let asked = [InodeId(4), InodeId(5), InodeId(6)];
        assert_eq!(table.conflicts(asked, A), BTreeMap::new());
        assert_eq!(table.conflicts(asked, B), BTreeMap::from([(A, vec![InodeId(5), InodeId(6)])]));
        table.end(B, InodeId(5));
        assert!(table.holds(A, InodeId(5)), "given back by somebody else");
        table.end(A, InodeId(5));
        assert!(table.give(B, InodeId(5)));
        table.drop_session(A);
        assert_eq!((table.held_by(A), table.held_by(B)), (vec![], vec![InodeId(5)]));
    }

    impl Master {
        fn create(&mut self) -> Attributes {
            let made = self.ask(
                10,
                Request::Create {
                    parent: ROOT,
                    name: b"file".to_vec(),
                    kind: NodeKind::File,
                    mode: 0o600,
                    umask: 0,
                    exclusive: true,
                    hold: false,
                },
            );
            let Reply::Entry { attributes, .. } = made else { panic!("{made:?}") };
            attributes
        }
    }

    fn time() -> impl Strategy<Value = Option<SetTime>> {
        prop_oneof![Just(None), Just(Some(SetTime::Now)), any::<i64>().prop_map(|at| Some(SetTime::At(Timestamp(at))))]
    }

    fn changes() -> impl Strategy<Value = AttributeChanges> {
        let id = || prop::option::of(0..9_u32);
        (prop::option::of(0..0o10000_u16), id(), id(), time(), time(), any::<bool>()).prop_map(
            |(mode, uid, gid, atime, mtime, clear_suid)| AttributeChanges {
                mode,
                uid,
                gid,
                atime,
                mtime,
                clear_suid,
                ..AttributeChanges::default()
            },
        )
    }

    proptest! {
        /// What the holder did and then flushed leaves what the master would have made of the same calls.
        #[test]
        fn a_holder_decides_as_the_master_would(steps in prop::collection::vec((changes(), prop::option::of(0..9_999_u64)), 1..8)) {
            let who = Credentials { uid: 7, gid: 7, groups: vec![], check: false };
            let (mut asked, mut told) = (Master::new(who.clone()), Master::new(who.clone()));
            let before = asked.create();
            prop_assert_eq!(&before, &told.create());
            let inode = before.inode;
            let mut held = before.clone();
            for (now, (changes, size)) in (20..).zip(steps) {
                if change(&mut held, &who, &changes, Timestamp(now)) {
                    asked.ask(now, Request::SetAttributes { inode, changes });
                }
                if let Some(size) = size {
                    write(&mut held, Some(size), Timestamp(now));
                    let (attach, used, space) = (vec![], vec![], None);
                    asked.ask(now, Request::CommitWrite { inode, attach, used, min_size: Some(size), clear_suid: false, space });
                }
                let shown = asked.state.attributes(inode);
                prop_assert_eq!(shown.as_ref(), Some(&held));
            }
            let min_size = (held.size > before.size).then_some(held.size);
            let file = FlushedFile { inode, min_size, changes: difference(&before, &held), ..FlushedFile::default() };
            let gone = FlushedFile { inode: InodeId(u64::MAX), ..FlushedFile::default() };
            let flushed = told.ask(1_000, Request::Flush { files: vec![gone, file], steps: vec![], gives_back: vec![] });
            prop_assert_eq!(flushed, Reply::Flushed(vec![(0, crate::meta::request::Refusal::Stale)]));
            prop_assert_eq!(told.state.attributes(inode), Some(held));
        }
    }
}
