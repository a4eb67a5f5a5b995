//! Inodes: attributes, extended attributes, and how full the cluster is.

use super::access_time::{self, Begun};
use super::attributes::{self, BLOCK_SIZE};
use super::pages::Shown;
use super::{Call, Caller, Found, Fs, unexpected};
use crate::errno::{Errno, Result};
use gfs_client::{AttributeChanges, Attributes, FileType, Grant, InodeId, Refusal, Request, SetTime, XattrMode};
use gfs_core::meta::request::{Answer, Query, Reply};
use std::sync::Arc;
use std::time::SystemTime;

/// What `ls -l` asks of every file, until it hears that there is no such thing here.
const LABEL: &[u8] = b"security.selinux";
/// Access times told in one message.
const MAX_TOUCHES: usize = 1024;

/// What setattr changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// How full the cluster is, in blocks of `BLOCK_SIZE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub blocks_free: u64,
    /// Inodes that can be.
    pub inodes: u64,
    /// Inodes that can still be made.
    pub inodes_free: u64,
}

impl Fs {
    /// stat.
    ///
    /// # Errors
    /// ESTALE when the inode is gone.
    pub async fn get_attributes(&self, call: &Call, inode: InodeId) -> Result<Found> {
        let answered = self.client.query(&call.context, Query::GetAttributes { inode }).await?;
        match answered.answer {
            Answer::Attributes(attributes) => {
                // The kernel asks before it reads from its pages, and goes by what it is shown here.
                if self.pages.show(&attributes, !answered.grant.duration.is_zero()) == Shown::Hides {
                    self.drop_pages(inode).await;
                    self.pages.dropped(&attributes);
                }
                Ok(self.found(attributes, answered.grant))
            }
            Answer::Refused(refusal) => Err(refusal.into()),
            _ => Err(unexpected("getattr")),
        }
    }

    /// chmod, chown, truncate, utimensat.
    ///
    /// # Errors
    /// What the master says.
    pub async fn set_attributes(&self, call: &Call, inode: InodeId, changes: Changes) -> Result<Found> {
        if changes.atime.is_some() {
            // A touch that arrives after utimensat would undo it.
            self.access.take_back(inode, call.context.limit.deadline).await;
        }
        let clear_suid = self.clears_set_id(call, inode, &changes).await?;
        let changes = AttributeChanges {
            mode: changes.mode,
            uid: changes.uid,
            gid: changes.gid,
            size: changes.size,
            atime: changes.atime,
            mtime: changes.mtime,
            clear_suid,
            ..AttributeChanges::default()
        };
        let outcome = self.client.mutate(&call.context, Request::SetAttributes { inode, changes }).await?;
        self.access.changed(inode);
        match outcome.reply {
            Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. } => {
                Ok(self.found(attributes, outcome.grant))
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            Reply::Done | Reply::Chunks(_) | Reply::Flushed(_) | Reply::Inodes(_) => Err(unexpected("setattr")),
        }
    }

    /// Whether set-id bits go: with HANDLE_KILLPRIV_V2 that is for us to do. A change of owner takes them from any file
    /// that is no directory, whoever asks; a truncation when the caller lacks CAP_FSETID.
    async fn clears_set_id(&self, call: &Call, inode: InodeId, changes: &Changes) -> Result<bool> {
        if changes.uid.is_some() || changes.gid.is_some() {
            let before = self.get_attributes(call, inode).await?.attributes;
            return Ok(before.file_type != FileType::Directory && attributes::has_set_id(&before));
        }
        Ok(changes.size.is_some() && lacks_fsetid(call.caller))
    }

    /// Reads an extended attribute.
    ///
    /// # Errors
    /// ENODATA when it is not there; EOPNOTSUPP for a label that is not there.
    pub async fn get_xattr(&self, call: &Call, inode: InodeId, name: Vec<u8>) -> Result<Vec<u8>> {
        if name == super::blocked::ATTRIBUTE {
            return Ok(self.blocked_calls(call.caller));
        }
        let label = name == LABEL;
        match self.client.query(&call.context, Query::GetXattr { inode, name }).await?.answer {
            Answer::Value(value) => Ok(value),
            Answer::Refused(Refusal::NoData) if label => Err(Errno(libc::EOPNOTSUPP)),
            Answer::Refused(refusal) => Err(refusal.into()),
            _ => Err(unexpected("getxattr")),
        }
    }

    /// The names of all extended attributes, each with a zero byte after it.
    ///
    /// # Errors
    /// What the master says.
    pub async fn list_xattrs(&self, call: &Call, inode: InodeId) -> Result<Vec<u8>> {
        match self.client.query(&call.context, Query::ListXattrs { inode }).await?.answer {
            Answer::Names(names) => Ok(joined(&names)),
            Answer::Refused(refusal) => Err(refusal.into()),
            _ => Err(unexpected("listxattr")),
        }
    }

    /// Sets an extended attribute; `flags` as setxattr(2).
    ///
    /// # Errors
    /// EINVAL for unknown flags, and what the master says.
    pub async fn set_xattr(
        &self,
        call: &Call,
        inode: InodeId,
        name: Vec<u8>,
        value: Vec<u8>,
        flags: i32,
    ) -> Result<()> {
        let mode = xattr_mode(flags)?;
        self.access.changed(inode);
        self.done(call, Request::SetXattr { inode, name, value, mode }).await
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// ENODATA when it is not there.
    pub async fn remove_xattr(&self, call: &Call, inode: InodeId, name: Vec<u8>) -> Result<()> {
        self.access.changed(inode);
        self.done(call, Request::RemoveXattr { inode, name }).await
    }

    /// statfs, in bytes as files see them.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn usage(&self, call: &Call) -> Result<Usage> {
        let usage = self.client.statfs(&call.context).await?;
        Ok(Usage {
            blocks: usage.total / u64::from(BLOCK_SIZE),
            blocks_free: usage.free / u64::from(BLOCK_SIZE),
            inodes: usage.inodes,
            inodes_free: usage.inodes_free,
        })
    }

    /// Everything before is durable at a quorum of masters.
    ///
    /// # Errors
    /// When the cluster does not answer; EIO once after the only master lost power, and with it changes of this directory.
    pub async fn sync_directory(&self, call: &Call, inode: InodeId) -> Result<()> {
        Ok(self.client.sync_directory(&call.context, inode).await?)
    }

    /// Attributes as this mount shows them: with a touch that the master does not know of yet, and then only for once.
    pub(super) fn found(&self, mut attributes: Attributes, grant: Grant) -> Found {
        let touched = self.access.show(&mut attributes);
        let cacheable = self.fit_to_pages(&mut attributes, !grant.duration.is_zero());
        Found { attributes, grant: (cacheable && !touched).then_some(grant) }
    }

    /// A read of an inode succeeded: its access time may move, in the background. Registered before this returns, so that
    /// attributes asked afterwards show it.
    pub(super) fn note_access(&self, inode: InodeId) {
        if !self.options.moves_atime || !self.access.read(inode) {
            return;
        }
        match self.access.begin(inode, attributes::from_system_time(SystemTime::now())) {
            Begun::Joined => {}
            Begun::First => self.tell_accesses(),
            // One is under way, for an older state perhaps: the next read looks again.
            Begun::Not => self.access.changed(inode),
        }
    }

    /// Tells the master of all touches that have come together by then.
    fn tell_accesses(&self) {
        let (client, times) = (self.client.clone(), Arc::clone(&self.access));
        let context = self.context(self.options.call_timeout);
        self.runtime.spawn(async move {
            tokio::time::sleep(access_time::DELAY).await;
            let told = times.take();
            let now = attributes::from_system_time(SystemTime::now());
            for inodes in told.inodes.chunks(MAX_TOUCHES) {
                if let Err(error) = client.touch_access(&context, inodes, now).await {
                    tracing::debug!(files = inodes.len(), %error, "access times not moved");
                    inodes.iter().for_each(|inode| times.changed(*inode));
                }
            }
        });
    }
}

/// Whether a change by this caller takes set-id bits away. Without a look into the process its user id decides.
pub(super) fn lacks_fsetid(caller: Caller) -> bool {
    let seen = std::fs::read_to_string(format!("/proc/{}/status", caller.tid)).ok();
    let keeps = seen.as_deref().filter(|_| caller.tid != 0).and_then(attributes::keeps_set_id);
    !keeps.unwrap_or(caller.uid == 0)
}

fn xattr_mode(flags: i32) -> Result<XattrMode> {
    match flags {
        0 => Ok(XattrMode::Any),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno(libc::EINVAL)),
    }
}

fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
    for name in names {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ended_by_zero_bytes() {
        assert_eq!(joined(&[b"user.a".to_vec(), b"user.b".to_vec()]), b"user.a\0user.b\0");
        assert_eq!(joined(&[]), b"");
    }

    #[test]
    fn xattr_flags_have_one_meaning_each() {
        assert_eq!(xattr_mode(0), Ok(XattrMode::Any));
        assert_eq!(xattr_mode(libc::XATTR_CREATE), Ok(XattrMode::Create));
        assert_eq!(xattr_mode(libc::XATTR_REPLACE), Ok(XattrMode::Replace));
        assert_eq!(xattr_mode(libc::XATTR_CREATE | libc::XATTR_REPLACE), Err(Errno(libc::EINVAL)));
    }

    #[test]
    fn unseen_caller_is_judged_by_its_user() {
        assert!(lacks_fsetid(Caller { uid: 1000, gid: 0, tid: 0 }));
        assert!(!lacks_fsetid(Caller { uid: 0, gid: 0, tid: 0 }));
    }
}
