//! Write delegations of files and held directories: given with a creation, taken back before anybody else sees or changes them.
//!
//! This room owns who is asked, how often and for how long. Which session holds which file is the core's table, and which directory is
//! committed (`gfs_core::meta::holds`); what a flush does is the state's. Lock order: the state's lock, the gate's, the table's.

use super::{Leader, ServeError};
use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::delegations::{DelegationTable, is_plain};
use gfs_core::meta::grants::Cached;
use gfs_core::meta::request::{Answer, Attributes, FileType, Query, Timestamp};
use gfs_core::meta::state::State;
use gfs_proto::v1::{self, server_message::Body};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Delegations at a time; beyond it files are made without.
const MAX_DELEGATIONS: usize = 262_144;
/// A holder that has not given back is asked again: the first time it may not have known yet that it holds.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// A client gives a delegation back after so long by itself (`gfs-client` keeps well below it). After a restart, younger files may be in
/// the hands of a session that has not come back yet.
const LONGEST: Duration = Duration::from_secs(60);

/// Who holds what, and the bell for when that ends.
pub struct Delegations {
    table: Mutex<DelegationTable>,
    ended: Notify,
    /// Files made in this time may have holders that this process does not know.
    unknown: Option<RangeInclusive<Timestamp>>,
}

impl Delegations {
    /// None are known. `others` says that sessions were logged when this process started; `last` is the log's time then.
    pub fn new(others: bool, last: Timestamp) -> Self {
        let since = Timestamp(last.0.saturating_sub(LONGEST.as_nanos() as i64));
        Self {
            table: Mutex::new(DelegationTable::new(MAX_DELEGATIONS)),
            ended: Notify::new(),
            unknown: others.then_some(since..=last),
        }
    }

    /// What a session says it holds after a reconnect. What it does not name it does not hold. `accept` what this process does not know:
    /// it is younger than the session's last word.
    pub fn reclaim(&self, session: SessionId, named: &[InodeId], accept: bool) {
        let mut table = self.table.lock();
        for inode in table.held_by(session) {
            if !named.contains(&inode) {
                table.end(session, inode);
            }
        }
        for inode in named.iter().filter(|_| accept) {
            table.give(session, *inode);
        }
        drop(table);
        self.ended.notify_waiters();
    }

    /// A session says that it has made files by itself, and has their delegations: before that can be seen by anybody.
    pub fn made(&self, session: SessionId, inodes: impl Iterator<Item = InodeId>) {
        let mut table = self.table.lock();
        inodes.for_each(|inode| table.give_made(session, inode));
    }

    /// Directories were given back.
    pub fn given_back(&self) {
        self.ended.notify_waiters();
    }

    /// What a session holds.
    pub fn held_by(&self, session: SessionId) -> Vec<InodeId> {
        self.table.lock().held_by(session)
    }

    /// A session gives a file back.
    pub fn end(&self, session: SessionId, inode: InodeId) {
        self.table.lock().end(session, inode);
        self.ended.notify_waiters();
    }

    /// A session has ended.
    pub fn drop_session(&self, session: SessionId) {
        self.table.lock().drop_session(session);
        self.ended.notify_waiters();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Leader {
    /// Gives the maker of a file its delegation, if the file is still as it was made and nobody else has a hand on it.
    pub fn delegate(&self, session: SessionId, made: &Attributes) -> bool {
        let inode = made.inode;
        let state = self.machine.state();
        // A mutation that is under way is seen by the gate, one that is done by its effect, and one that comes later finds the delegation.
        let untouched = is_plain(made)
            && state.attributes(inode).as_ref() == Some(made)
            && self.grant(&state, session, &[(inode, Cached::Attributes)], None).ms > 0;
        if !untouched || !self.delegations.table.lock().give(session, inode) {
            return false;
        }
        // Somebody who asked just before may cache it, and somebody who asks now finds the delegation.
        if self.gate.is_shared(inode, session) {
            self.delegations.end(session, inode);
            return false;
        }
        true
    }

    /// Whether another session than `by` may know better than the state what this answer says.
    pub(super) fn is_held(&self, state: &State, query: &Query, answer: &Answer, by: SessionId) -> bool {
        let inodes = || answer.shown().map(|attributes| attributes.inode);
        let holds = state.holds();
        let others = |inode: InodeId| holds.holder(inode).is_some_and(|holder| holder != by);
        !self.delegations.table.lock().conflicts(inodes(), by).is_empty()
            || (!holds.is_empty() && inodes().chain(State::consulted(query)).any(others))
            || answer.shown().any(|attributes| self.may_be_held_unknown(attributes, by))
    }

    fn may_be_held_unknown(&self, attributes: &Attributes, by: SessionId) -> bool {
        attributes.file_type == FileType::File
            && self.delegations.unknown.as_ref().is_some_and(|time| time.contains(&attributes.btime))
            && !self.sessions.others_reclaimed(by)
    }

    /// Returns when nobody but `by` holds anything that an answer shows or tells of.
    ///
    /// # Errors
    /// The log's, when a holder that does not give back was to be ended.
    pub async fn recall_shown(
        self: &Arc<Self>,
        query: &Query,
        answer: &Answer,
        by: SessionId,
    ) -> Result<(), ServeError> {
        let inodes = answer.shown().map(|attributes| attributes.inode);
        let inodes: Vec<InodeId> = inodes.chain(State::consulted(query)).collect();
        self.recall(&inodes, by).await
    }

    /// What other sessions than `by` hold of these files and directories, by session.
    fn conflicts(&self, inodes: &[InodeId], by: SessionId) -> BTreeMap<SessionId, Vec<InodeId>> {
        let mut found = self.delegations.table.lock().conflicts(inodes.iter().copied(), by);
        let state = self.machine.state();
        if !state.holds().is_empty() {
            for inode in inodes {
                if let Some(holder) = state.holds().holder(*inode).filter(|holder| *holder != by) {
                    found.entry(holder).or_default().push(*inode);
                }
            }
        }
        found
    }

    /// Returns when no other session than `by` holds any of these files and directories. One that does not give back within a lease is
    /// ended.
    ///
    /// # Errors
    /// The log's, when that could not be committed.
    pub async fn recall(self: &Arc<Self>, inodes: &[InodeId], by: SessionId) -> Result<(), ServeError> {
        if self.delegations.is_empty() && self.delegations.unknown.is_none() && self.machine.state().holds().is_empty()
        {
            return Ok(());
        }
        let until = Instant::now() + self.options.session_lease;
        loop {
            let ended = self.delegations.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let conflicts = self.conflicts(inodes, by);
            let unknown = conflicts.is_empty() && self.any_unknown(inodes, by);
            if conflicts.is_empty() && !unknown {
                return Ok(());
            }
            if Instant::now() >= until && !unknown {
                for session in conflicts.keys() {
                    tracing::warn!(%session, "a session does not give back what it holds, and is ended");
                    self.end_session(*session).await?;
                }
                continue;
            }
            for (session, held) in conflicts {
                let inodes = held.iter().map(|inode| inode.0).collect();
                self.sessions.tell(session, Body::Recall(v1::Recall { inodes }));
            }
            // Sessions that have not come back end by their lease.
            let _ = tokio::time::timeout(ASK_AGAIN, ended).await;
        }
    }

    fn any_unknown(&self, inodes: &[InodeId], by: SessionId) -> bool {
        if self.delegations.unknown.is_none() || self.sessions.others_reclaimed(by) {
            return false;
        }
        let state = self.machine.state();
        let mut known = inodes.iter().filter_map(|inode| state.attributes(*inode));
        known.any(|attributes| self.may_be_held_unknown(&attributes, by))
    }
}
