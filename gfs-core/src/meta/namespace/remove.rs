//! Taking names away: unlink, rmdir, and freeing what has none.

use super::create::refuse_dot;
use super::inode::Inode;
use super::permission::{EXECUTE, WRITE, not_sticky};
use super::{Namespace, Unlinked, check_name};
use crate::ids::InodeId;
use crate::meta::request::{Attributes, Credentials, FileType, Refusal, Timestamp};

/// A name that was found, and what it names.
pub(super) struct Target {
    pub cookie: u64,
    pub id: InodeId,
    pub inode: Inode,
}

impl Namespace {
    /// Removes a name of something that is not a directory. The last name gone, it is an orphan.
    pub fn unlink(
        &mut self,
        who: &Credentials,
        parent: InodeId,
        name: &[u8],
        now: Timestamp,
    ) -> Result<Unlinked, Refusal> {
        let directory = self.load_directory(parent)?;
        self.permit(who, parent, &directory, EXECUTE)?;
        check_name(name)?;
        refuse_dot(name, Refusal::IsDirectory)?;
        let victim = self.target(parent, name)?.ok_or(Refusal::NotFound)?;
        self.may_remove(who, parent, &directory, &victim.inode)?;
        if victim.inode.is_directory() {
            return Err(Refusal::IsDirectory);
        }
        self.dentries.table.remove((parent.0, victim.cookie));
        self.touch_directory(parent, -1, 0, now);
        Ok(self.drop_name(&victim, now))
    }

    /// Removes an empty directory. It is an orphan then, in which nothing can be made.
    pub fn rmdir(
        &mut self,
        who: &Credentials,
        parent: InodeId,
        name: &[u8],
        now: Timestamp,
    ) -> Result<Unlinked, Refusal> {
        let directory = self.load_directory(parent)?;
        self.permit(who, parent, &directory, EXECUTE)?;
        check_name(name)?;
        refuse_dot(name, if name == b"." { Refusal::Invalid } else { Refusal::NotEmpty })?;
        let victim = self.target(parent, name)?.ok_or(Refusal::NotFound)?;
        self.may_remove(who, parent, &directory, &victim.inode)?;
        if !victim.inode.is_directory() {
            return Err(Refusal::NotDirectory);
        }
        if victim.inode.entries > 0 {
            return Err(Refusal::NotEmpty);
        }
        self.dentries.table.remove((parent.0, victim.cookie));
        self.touch_directory(parent, -1, -1, now);
        Ok(self.drop_name(&victim, now))
    }

    /// What a name in a directory names; not `.` nor `..`.
    pub(super) fn target(&self, parent: InodeId, name: &[u8]) -> Result<Option<Target>, Refusal> {
        match self.dentries.find(parent.0, name) {
            None => Ok(None),
            Some((cookie, dentry)) => Ok(Some(Target { cookie, id: dentry.inode, inode: self.load(dentry.inode)? })),
        }
    }

    pub(super) fn may_remove(
        &self,
        who: &Credentials,
        parent: InodeId,
        directory: &Inode,
        victim: &Inode,
    ) -> Result<(), Refusal> {
        self.permit(who, parent, directory, WRITE | EXECUTE)?;
        not_sticky(who, directory, victim)
    }

    /// Counts one name less of an inode whose dentry is gone already.
    pub(super) fn drop_name(&mut self, victim: &Target, now: Timestamp) -> Unlinked {
        let mut inode = victim.inode.clone();
        inode.links = if inode.is_directory() { 0 } else { inode.links.saturating_sub(1) };
        inode.ctime = now;
        self.store(victim.id, &inode);
        let orphaned = inode.links == 0;
        if orphaned {
            self.orphans.insert((victim.id.0, 0), &());
        }
        Unlinked { inode: victim.id, file_type: inode.file_type, orphaned }
    }

    /// Frees an orphan with all that hangs on it, and answers its last attributes. `None` when it is not
    /// there or still has a name.
    pub fn reap(&mut self, inode: InodeId) -> Option<Attributes> {
        if !self.orphans.remove((inode.0, 0)) {
            return None;
        }
        let record = self.inodes.take((inode.0, 0))?;
        if record.flags != 0 {
            let cookies: Vec<u64> = self.xattrs.table.range_of(inode.0, 0).map(|(cookie, _)| cookie).collect();
            for cookie in cookies {
                self.xattrs.table.remove((inode.0, cookie));
            }
        }
        match record.file_type {
            FileType::File => {
                self.files -= 1;
                self.logical_bytes -= u128::from(record.size);
            }
            FileType::Directory => self.directories -= 1,
            FileType::Symlink => {
                self.targets.remove((inode.0, 0));
            }
            FileType::Fifo | FileType::Socket | FileType::CharDevice | FileType::BlockDevice => {}
        }
        Some(record.attributes(inode))
    }
}
