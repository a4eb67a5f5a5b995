//! Changing attributes: chmod, chown, utimensat, truncate, and what a write does to them.

use super::acl::{self, Acl};
use super::inode::{ACCESS_ACL, GROUP_EXECUTE, Inode, SET_GID, SET_UID};
use super::permission::{WRITE, in_group, keeps_set_gid, owns, privileged};
use super::{Namespace, SIZE_MAX};
use crate::ids::InodeId;
use crate::meta::request::{AttributeChanges, Attributes, Credentials, FileType, Refusal, SetTime, Space, Timestamp};

/// The attribute that holds file capabilities: lost when the content or the owner changes, whoever changes it.
const CAPABILITY: &[u8] = b"security.capability";

impl Namespace {
    /// Checks `changes` without doing them: permission, type, limits. Call it before chunks are cut for a size.
    pub fn check_attributes(
        &self,
        who: &Credentials,
        inode: InodeId,
        changes: &AttributeChanges,
    ) -> Result<(), Refusal> {
        let record = self.load(inode)?;
        if let Some(size) = changes.size {
            match record.file_type {
                FileType::File => {}
                FileType::Directory => return Err(Refusal::IsDirectory),
                _ => return Err(Refusal::Invalid),
            }
            if size > SIZE_MAX {
                return Err(Refusal::TooLarge);
            }
            self.permit(who, inode, &record, WRITE)?;
        }
        if changes.mode.is_some() && record.file_type == FileType::Symlink {
            return Err(Refusal::NotSupported);
        }
        if changes.replicas == Some(0) {
            return Err(Refusal::Invalid);
        }
        check_owner(who, &record, changes)?;
        self.check_times(who, inode, &record, changes)
    }

    /// Setting both times to the clock needs write permission; any other time needs ownership. A truncation
    /// brings its own permission.
    fn check_times(
        &self,
        who: &Credentials,
        id: InodeId,
        inode: &Inode,
        changes: &AttributeChanges,
    ) -> Result<(), Refusal> {
        match (changes.atime, changes.mtime) {
            (None, None) => Ok(()),
            (None, Some(SetTime::Now)) if changes.size.is_some() => Ok(()),
            (Some(SetTime::Now), Some(SetTime::Now)) => {
                owns(who, inode).or_else(|_| self.permit(who, id, inode, WRITE))
            }
            _ => owns(who, inode),
        }
    }

    /// Does all of `changes`, the size included; chunks and `allocated` are the caller's.
    pub fn set_attributes(
        &mut self,
        who: &Credentials,
        inode: InodeId,
        changes: &AttributeChanges,
        now: Timestamp,
    ) -> Result<Attributes, Refusal> {
        self.check_attributes(who, inode, changes)?;
        let before = self.load(inode)?;
        let mut record = before.clone();
        record.mode = new_mode(who, &before, changes);
        if changes.size.is_some() || kills_set_id(who, &before, changes) {
            self.drop_capability(inode, &mut record);
        }
        record.uid = changes.uid.unwrap_or(record.uid);
        record.gid = changes.gid.unwrap_or(record.gid);
        record.replicas = changes.replicas.unwrap_or(record.replicas);
        if let Some(size) = changes.size {
            self.resize(&mut record, size);
            if size <= before.size {
                record.promise = record.promise.cut(size);
            }
            record.mtime = now;
        }
        let time = |set| match set {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        record.atime = changes.atime.map_or(record.atime, time);
        record.mtime = changes.mtime.map_or(record.mtime, time);
        let asked = AttributeChanges { clear_suid: false, ..changes.clone() } != AttributeChanges::default();
        if asked || record != before {
            record.ctime = changes.ctime.unwrap_or(now);
        }
        if record.mode != before.mode && record.flags & ACCESS_ACL != 0 {
            self.acl_follows_mode(inode, record.mode);
        }
        self.store(inode, &record);
        Ok(record.attributes(inode))
    }

    fn acl_follows_mode(&mut self, id: InodeId, mode: u16) {
        let Some((cookie, mut found)) = self.xattrs.find(id.0, acl::ACCESS) else { return };
        if let Ok(Some(mut list)) = Acl::parse(&found.value) {
            list.set_mode(mode);
            found.value = list.to_bytes();
            self.xattrs.table.insert((id.0, cookie), &found);
        }
    }

    fn drop_capability(&mut self, id: InodeId, inode: &mut Inode) {
        if let Some(cookie) = self.capability(id, inode) {
            self.xattrs.table.remove((id.0, cookie));
            self.refresh_flags(id, inode);
        }
    }

    /// Where the file capabilities of an inode are. Costs nothing when it has no attributes at all.
    fn capability(&self, id: InodeId, inode: &Inode) -> Option<u64> {
        if inode.flags == 0 {
            return None;
        }
        self.xattrs.find(id.0, CAPABILITY).map(|(cookie, _)| cookie)
    }

    /// Whether a write to an inode takes file capabilities from it.
    pub fn has_capability(&self, inode: InodeId) -> bool {
        self.load(inode).is_ok_and(|record| self.capability(inode, &record).is_some())
    }

    /// A write took effect: the size becomes at least `min_size`, mtime and ctime are `now`, file capabilities go, and with
    /// `clear_suid` set-id bits too. `IsDirectory` or `Invalid` when it is not a regular file.
    pub fn commit_write(
        &mut self,
        inode: InodeId,
        min_size: Option<u64>,
        clear_suid: bool,
        now: Timestamp,
    ) -> Result<Attributes, Refusal> {
        let mut record = self.load_file(inode)?;
        let size = record.size.max(min_size.unwrap_or(0));
        if size > SIZE_MAX {
            return Err(Refusal::TooLarge);
        }
        self.resize(&mut record, size);
        if clear_suid {
            record.clear_set_id();
        }
        self.drop_capability(inode, &mut record);
        (record.mtime, record.ctime) = (now, now);
        self.store(inode, &record);
        Ok(record.attributes(inode))
    }

    /// Sets the size of a regular file, and no time.
    pub fn set_size(&mut self, inode: InodeId, size: u64) -> Result<(), Refusal> {
        let mut record = self.load_file(inode)?;
        if size > SIZE_MAX {
            return Err(Refusal::TooLarge);
        }
        self.resize(&mut record, size);
        self.store(inode, &record);
        Ok(())
    }

    /// How many bytes the chunks of a regular file hold, in whole blocks.
    pub fn allocated(&self, inode: InodeId) -> Result<u64, Refusal> {
        Ok(self.load_file(inode)?.allocated)
    }

    /// Whether space of a regular file is promised.
    pub fn has_promise(&self, inode: InodeId) -> bool {
        self.load_file(inode).is_ok_and(|record| !record.promise.is_empty())
    }

    /// Space of a regular file was promised or given back.
    pub fn note_space(&mut self, inode: InodeId, space: Space) -> Result<(), Refusal> {
        let mut record = self.load_file(inode)?;
        record.promise = record.promise.after(space);
        self.store(inode, &record);
        Ok(())
    }

    /// Sets how many bytes the chunks of a regular file hold, in whole blocks.
    pub fn set_allocated(&mut self, inode: InodeId, allocated: u64) -> Result<(), Refusal> {
        let mut record = self.load_file(inode)?;
        if record.allocated != allocated {
            record.allocated = allocated;
            self.store(inode, &record);
        }
        Ok(())
    }

    /// Moves atime up to `now` where relatime does; it never goes back.
    pub fn touch_access(&mut self, inode: InodeId, now: Timestamp) {
        let Ok(mut record) = self.load(inode) else { return };
        if record.atime < now && access_is_due(&record.attributes(inode), now) {
            record.atime = now;
            self.store(inode, &record);
        }
    }
}

/// After so long, in nanoseconds, a read moves the access time in any case.
const RELATIME_AGE: i64 = 24 * 3600 * 1_000_000_000;

/// Whether relatime, as mount(8) describes it, moves the access time at a read now.
pub fn access_is_due(attributes: &Attributes, now: Timestamp) -> bool {
    let Attributes { atime, mtime, ctime, .. } = attributes;
    atime <= mtime || atime <= ctime || now.0.saturating_sub(atime.0) >= RELATIME_AGE
}

fn check_owner(who: &Credentials, inode: &Inode, changes: &AttributeChanges) -> Result<(), Refusal> {
    if privileged(who) {
        return Ok(());
    }
    if changes.ctime.is_some() {
        return Err(Refusal::NotPermitted);
    }
    if changes.mode.is_some() || changes.replicas.is_some() {
        owns(who, inode)?;
    }
    let owner = who.uid == inode.uid;
    let uid = changes.uid.is_none_or(|uid| owner && uid == inode.uid);
    let gid = changes.gid.is_none_or(|gid| owner && (gid == inode.gid || in_group(who, gid)));
    if uid && gid { Ok(()) } else { Err(Refusal::NotPermitted) }
}

/// Whether set-id bits go: at a change of owner or group whoever asks, at a truncation by an unprivileged user, and when
/// the client says so. Directories keep theirs. File capabilities go with them, and at any truncation.
fn kills_set_id(who: &Credentials, inode: &Inode, changes: &AttributeChanges) -> bool {
    let chown = changes.uid.is_some() || changes.gid.is_some();
    let truncation = changes.size.is_some() && !privileged(who);
    !inode.is_directory() && (chown || truncation || changes.clear_suid)
}

fn new_mode(who: &Credentials, inode: &Inode, changes: &AttributeChanges) -> u16 {
    if let Some(mode) = changes.mode {
        let mode = mode & 0o7777;
        let keeps = keeps_set_gid(who, changes.gid.unwrap_or(inode.gid));
        return if keeps { mode } else { mode & !SET_GID };
    }
    if !kills_set_id(who, inode, changes) {
        return inode.mode;
    }
    let group = inode.mode & GROUP_EXECUTE != 0 || !keeps_set_gid(who, inode.gid);
    inode.mode & !(SET_UID | if group { SET_GID } else { 0 })
}
