//! Applying log entries: the only place from which the state changes.
//!
//! This room owns the order of things (known operation? waits? perform, remember) and the commands of sessions
//! and servers. What happens to chunks is in `write`, to names in `namespace`.
//!
//! Some refusals are not remembered, because the leader proposes the same operation again when it may succeed:
//! a lock that is held by another (`WouldBlock`), what has to wait for a cut ([`State::waits_for_shrink`]) and what concerns a directory
//! that another session holds ([`State::held_by_others`]), both answered `Stale`. Everything else is answered once and for all.

use super::command::{Command, CommandReply, Stamp};
use super::holds::MAX_HELD;
use super::namespace::{CreateArgs, RenameArgs};
use super::request::{Attributes, ClientCommand, Credentials, FileType, NodeKind, Refusal, Reply, Request};
use super::sessions::Known;
use super::state::State;
use crate::breaks::Break;
use crate::ids::SessionId;

/// Most inode numbers that are set apart at a time.
const MAX_INODES: u64 = 65_536;

/// Why a request is performed: who asks, for whom and when.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) session: SessionId,
    pub(crate) who: &'a Credentials,
    pub(crate) stamp: Stamp,
}

impl State {
    /// Performs one command of a log entry and answers it.
    pub fn apply(&mut self, stamp: Stamp, command: &Command) -> CommandReply {
        match command {
            Command::Client(command) => CommandReply::Client(self.apply_client(stamp, command)),
            Command::OpenSession { nonce, description } => {
                CommandReply::Session(self.sessions.open(*nonce, description, stamp.now))
            }
            Command::EndSession { session } => {
                self.end_session(*session);
                CommandReply::Done
            }
            Command::RegisterServer(identity) => {
                self.servers.register(identity).map_or_else(CommandReply::Refused, CommandReply::Server)
            }
            Command::SetServerIntent { server, intent } => done(self.servers.set_intent(*server, *intent)),
            Command::RemoveServer { server } => {
                let removed = self.servers.remove(*server);
                if removed.is_ok() {
                    self.tombstones.remove_server(*server);
                }
                done(removed)
            }
            Command::Reconfigure { handle, expected, next } => {
                CommandReply::Configuration(self.reconfigure(*handle, *expected, next))
            }
            Command::FinishShrink { inode, handle, epoch, stored } => {
                self.finish_shrink(*inode, *handle, *epoch, *stored);
                CommandReply::Done
            }
            Command::ReapOrphans { inodes } => {
                inodes.iter().for_each(|inode| self.reap(*inode));
                CommandReply::Done
            }
            Command::ForgetTombstones { done } => {
                for (handle, server) in done {
                    self.tombstones.remove(*server, *handle);
                }
                CommandReply::Done
            }
            Command::CondemnUnknown { replicas } => {
                self.condemn(replicas);
                CommandReply::Done
            }
            Command::SkipInodes { count } => {
                self.namespace.skip_inodes(*count);
                CommandReply::Done
            }
        }
    }

    fn apply_client(&mut self, stamp: Stamp, command: &ClientCommand) -> Reply {
        let ClientCommand { id, confirmed, credentials, request } = command;
        let known = self.sessions.known(*id);
        // A confirmation cannot cover the operation that carries it.
        self.sessions.confirm(id.session, (*confirmed).min(id.operation.saturating_sub(1)));
        match known {
            Known::NoSession => return Reply::Refused(Refusal::SessionExpired),
            Known::Answered(_) if self.breaks.is(Break::RepliesIgnored) => {}
            Known::Answered(reply) => return reply,
            Known::Forgotten => return Reply::Refused(Refusal::Stale),
            Known::New => {}
        }
        if self.waits_for_shrink(request) || !self.held_by_others(id.session, request).is_empty() {
            return Reply::Refused(Refusal::Stale);
        }
        let context = Context { session: id.session, who: credentials, stamp };
        let reply = self.perform(context, request).unwrap_or_else(Reply::Refused);
        if reply != Reply::Refused(Refusal::WouldBlock) {
            self.sessions.remember(*id, &reply);
        }
        reply
    }

    pub(super) fn perform(&mut self, context: Context<'_>, request: &Request) -> Result<Reply, Refusal> {
        let Context { who, stamp, .. } = context;
        let now = stamp.now;
        match request {
            Request::Create { parent, name, kind, mode, umask, exclusive, hold } => {
                let (parent, mode, umask, exclusive) = (*parent, *mode, *umask, *exclusive);
                let made =
                    self.namespace.create(who, CreateArgs { parent, name, kind, mode, umask, exclusive }, now)?;
                let directory = made.created && *kind == NodeKind::Directory;
                if *hold && directory && self.holds.held_by(context.session).count() < MAX_HELD {
                    self.holds.give(context.session, made.attributes.inode);
                }
                Ok(Reply::Entry { attributes: made.attributes, created: made.created })
            }
            Request::Link { inode, parent, name } => {
                let attributes = self.namespace.link(who, *inode, *parent, name, now)?;
                Ok(Reply::Entry { attributes, created: true })
            }
            Request::Unlink { parent, name } => self.namespace.unlink(who, *parent, name, now).map(|_| Reply::Done),
            Request::Rmdir { parent, name } => {
                let removed = self.namespace.rmdir(who, *parent, name, now)?;
                self.holds.end(removed.inode);
                Ok(Reply::Done)
            }
            Request::Rename { parent, name, new_parent, new_name, mode } => {
                let (parent, new_parent, mode) = (*parent, *new_parent, *mode);
                let both = RenameArgs { parent, name, new_parent, new_name, mode };
                let renamed = self.namespace.rename(who, both, now)?;
                // A file has its hold until it is freed.
                let is_file = |of: &Attributes| of.file_type == FileType::File;
                if let Some(replaced) = renamed.replaced
                    && !self.namespace.attributes(replaced.inode).as_ref().is_some_and(is_file)
                {
                    self.holds.end(replaced.inode);
                }
                Ok(Reply::Done)
            }
            Request::SetAttributes { inode, changes } => self.set_attributes(context, *inode, changes),
            Request::SetXattr { inode, name, value, mode } => {
                self.namespace.set_xattr(who, *inode, name, value, *mode, now).map(|_| Reply::Done)
            }
            Request::RemoveXattr { inode, name } => {
                self.namespace.remove_xattr(who, *inode, name, now).map(|_| Reply::Done)
            }
            Request::SetLock { .. } | Request::ReleaseLocks { .. } => self.lock(context, request),
            Request::AllocateChunks { replicas, placements } => self.allocate(context, *replicas, placements),
            Request::CommitWrite { inode, attach, used, min_size, clear_suid, space } => {
                let write = super::write::Write { inode: *inode, attach, used, min_size: *min_size, space: *space };
                self.commit_write(context, write, *clear_suid)
            }
            Request::Hold { inode } => self.hold(context.session, *inode),
            Request::Flush { files, steps, gives_back } => self.flush(context, files, steps, gives_back),
            Request::ReserveInodes { count } => {
                let count = u64::from(*count);
                if count > MAX_INODES {
                    Err(Refusal::Invalid)
                } else {
                    Ok(Reply::Inodes(self.namespace.reserve_inodes(count)))
                }
            }
            Request::CutTail { inode } => self.cut_tail(*inode).map(|()| Reply::Done),
            Request::TouchAccess { inodes } => {
                inodes.iter().for_each(|inode| self.namespace.touch_access(*inode, now));
                Ok(Reply::Done)
            }
            Request::Barrier { .. } => Ok(Reply::Done),
        }
    }

    /// Sets or releases locks: of the session that asks alone.
    fn lock(&mut self, context: Context<'_>, request: &Request) -> Result<Reply, Refusal> {
        match request {
            Request::SetLock { inode, lock } => {
                if lock.owner.session != context.session {
                    return Err(Refusal::Invalid);
                }
                if !self.namespace.contains(*inode) {
                    return Err(Refusal::Stale);
                }
                self.locks.set(*inode, lock)?;
            }
            Request::ReleaseLocks { inode, owner, family } => {
                if owner.session != context.session {
                    return Err(Refusal::Invalid);
                }
                self.locks.release_owner(*inode, *owner, *family);
            }
            _ => return Err(Refusal::Invalid),
        }
        Ok(Reply::Done)
    }

    /// Locks, reservations and replies go with the session.
    fn end_session(&mut self, session: SessionId) {
        self.locks.release_session(session);
        // Of what it held nobody else has seen how far it was written: the rest is cut off before anybody can.
        for inode in self.holds.drop_session(session) {
            // A directory has no tail.
            let _ = self.cut_tail(inode);
        }
        let reserved: Vec<_> = self.chunks.reserved_by(session).map(|info| info.handle).collect();
        for handle in reserved {
            self.bury(handle);
        }
        self.sessions.end(session);
    }
}

fn done(result: Result<(), super::command::CommandRefusal>) -> CommandReply {
    result.map_or_else(CommandReply::Refused, |()| CommandReply::Done)
}
