//! Taking over what holders of files and directories did by themselves.
//!
//! This room owns the order (steps, files, what is given back) and refuses whatever is not the session's to do: a step counts only in
//! directories that the session holds at that moment. What is done to one file is `write`'s, to one name the namespace's.

use super::apply::Context;
use super::command::Stamp;
use super::delegations::is_plain;
use super::holds::{MAX_CHUNKS, MAX_HELD};
use super::namespace::CreateArgs;
use super::request::{Credentials, FileType, FlushedFile, NameStep, NodeKind, Refusal, RenameMode, Reply, Request};
use super::state::State;
use crate::ids::{InodeId, SessionId};

/// Most files of one `Flush`, and most steps.
pub const MAX_FLUSHED: usize = 1_024;

impl State {
    /// Takes over what a holder did.
    pub(crate) fn flush(
        &mut self,
        context: Context<'_>,
        files: &[FlushedFile],
        steps: &[NameStep],
        gives_back: &[InodeId],
    ) -> Result<Reply, Refusal> {
        if files.len() > MAX_FLUSHED || steps.len() > MAX_FLUSHED {
            return Err(Refusal::Invalid);
        }
        let mut refused = Vec::new();
        for (at, step) in (files.len() as u32..).zip(steps) {
            refused.extend(self.take_step(context, step).err().map(|refusal| (at, refusal)));
        }
        for (at, file) in (0..).zip(files) {
            refused.extend(self.flush_file(context, file).err().map(|refusal| (at, refusal)));
        }
        for inode in gives_back {
            if self.holds.holds(context.session, *inode) {
                self.holds.end(*inode);
            }
        }
        Ok(Reply::Flushed(refused))
    }

    /// Gives a file to a session.
    pub(crate) fn hold(&mut self, session: SessionId, inode: InodeId) -> Result<Reply, Refusal> {
        let attributes = self.namespace.attributes(inode).ok_or(Refusal::Stale)?;
        let simple = is_plain(&attributes) && !self.is_orphan(inode) && self.shrinks.get(inode).is_none();
        // What it has of promised space is counted here.
        let promised = self.namespace.has_promise(inode);
        if !simple || promised || self.chunks.of_file(inode, MAX_CHUNKS).next().is_some() {
            return Err(Refusal::Invalid);
        }
        if !self.holds.holds(session, inode) && self.holds.held_by(session).count() >= MAX_HELD {
            return Err(Refusal::NoSpace);
        }
        self.holds.give(session, inode);
        Ok(Reply::Attributes { attributes, pending_shrink: false })
    }

    fn take_step(&mut self, context: Context<'_>, step: &NameStep) -> Result<(), Refusal> {
        let NameStep { at, uid, gid, inode, request } = step;
        if !self.is_holders(context, request) {
            return Err(Refusal::Stale);
        }
        // Permission was asked when it was done, and nothing happened later than now.
        let who = Credentials { uid: *uid, gid: *gid, ..Credentials::default() };
        let stamp = Stamp { now: (*at).min(context.stamp.now), ..context.stamp };
        match request {
            Request::Create { parent, name, kind, mode, umask, .. } => {
                let (parent, mode, umask) = (*parent, *mode, *umask);
                let args = CreateArgs { parent, name, kind, mode, umask, exclusive: true };
                self.namespace.create_reserved(*inode, &who, args, stamp.now)?;
                if *kind == NodeKind::Directory {
                    self.holds.give(context.session, *inode);
                }
                Ok(())
            }
            _ => self.perform(Context { who: &who, stamp, ..context }, request).map(drop),
        }
    }

    /// Whether a step is the session's to do by itself.
    fn is_holders(&self, context: Context<'_>, request: &Request) -> bool {
        let holds = |directory: &InodeId| self.holds.holds(context.session, *directory);
        match request {
            Request::Create { parent, .. } | Request::Unlink { parent, .. } | Request::Rmdir { parent, .. } => {
                holds(parent)
            }
            Request::Rename { parent, new_parent, mode, .. } => {
                *mode != RenameMode::Exchange && holds(parent) && holds(new_parent)
            }
            // A file has a delegation of its own, and nobody else knows of the rest.
            Request::SetAttributes { inode, changes } if changes.size.is_none() && changes.replicas.is_none() => {
                match self.namespace.attributes(*inode).map(|of| of.file_type) {
                    Some(FileType::Directory) => holds(inode),
                    Some(FileType::File) | None => false,
                    Some(_) => true,
                }
            }
            _ => false,
        }
    }
}
