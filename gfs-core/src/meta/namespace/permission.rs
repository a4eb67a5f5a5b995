//! Who may do what: mode bits, ACLs, ownership, sticky directories.
//!
//! All of it is asked only when `Credentials::check` is set; otherwise a kernel has decided already, with
//! capabilities that only it knows. User 0 passes as a process with all capabilities does.

use super::Namespace;
use super::acl::Acl;
use super::inode::{ACCESS_ACL, Inode, STICKY};
use crate::ids::InodeId;
use crate::meta::request::{Credentials, Refusal};

/// May read: the content, the names of a directory.
pub const READ: u8 = 4;
/// May write.
pub const WRITE: u8 = 2;
/// May execute, or look up in a directory.
pub const EXECUTE: u8 = 1;

/// Whether nothing is checked for this caller.
pub fn privileged(who: &Credentials) -> bool {
    !who.check || who.uid == 0
}

/// Whether the caller is in a group.
pub fn in_group(who: &Credentials, gid: u32) -> bool {
    who.gid == gid || who.groups.contains(&gid)
}

/// Whether the caller may leave or set the set-group-id bit of something of this group.
pub fn keeps_set_gid(who: &Credentials, gid: u32) -> bool {
    privileged(who) || in_group(who, gid)
}

/// What only the owner may do.
pub fn owns(who: &Credentials, inode: &Inode) -> Result<(), Refusal> {
    if privileged(who) || who.uid == inode.uid { Ok(()) } else { Err(Refusal::NotPermitted) }
}

/// In a sticky directory only the owner of a file or of the directory may take the file's name away.
pub fn not_sticky(who: &Credentials, directory: &Inode, victim: &Inode) -> Result<(), Refusal> {
    let free = directory.mode & STICKY == 0 || who.uid == victim.uid || who.uid == directory.uid;
    if free || privileged(who) { Ok(()) } else { Err(Refusal::NotPermitted) }
}

impl Namespace {
    /// Checks any of [`READ`], [`WRITE`], [`EXECUTE`], or-ed: `Access` when one is missing.
    pub fn access(&self, who: &Credentials, inode: InodeId, want: u8) -> Result<(), Refusal> {
        self.permit(who, inode, &self.load(inode)?, want)
    }

    pub(super) fn permit(&self, who: &Credentials, id: InodeId, inode: &Inode, want: u8) -> Result<(), Refusal> {
        if !who.check {
            return Ok(());
        }
        let granted = if who.uid == 0 {
            want & EXECUTE == 0 || inode.is_directory() || inode.mode & 0o111 != 0
        } else {
            self.grants(who, id, inode, want)
        };
        if granted { Ok(()) } else { Err(Refusal::Access) }
    }

    fn grants(&self, who: &Credentials, id: InodeId, inode: &Inode, want: u8) -> bool {
        if who.uid == inode.uid {
            return covers(inode.mode >> 6, want);
        }
        // An ACL whose mask allows nothing decides like the mode bits do (Linux, acl_permission_check).
        let listed = inode.flags & ACCESS_ACL != 0 && inode.mode & 0o070 != 0;
        if let Some(acl) = listed.then(|| self.access_acl(id)).flatten() {
            return acl.grants(who, inode.gid, want);
        }
        covers(if in_group(who, inode.gid) { inode.mode >> 3 } else { inode.mode }, want)
    }

    fn access_acl(&self, id: InodeId) -> Option<Acl> {
        let (_, found) = self.xattrs.find(id.0, super::acl::ACCESS)?;
        Acl::parse(&found.value).ok()?
    }
}

fn covers(bits: u16, want: u8) -> bool {
    u16::from(want) & !bits & 7 == 0
}
