//! Extended attributes: which names there are, who may use them, and how ACLs pass through them.

use super::acl::{self, Acl};
use super::inode::{ACCESS_ACL, DEFAULT_ACL, Inode, SET_GID, STICKY, XATTRS};
use super::names::Named;
use super::permission::{READ, WRITE, keeps_set_gid, owns, privileged};
use super::{NAME_MAX, Namespace, XATTR_MAX};
use crate::arena::Record;
use crate::arena::codec::{SliceReader, put_bytes};
use crate::ids::InodeId;
use crate::meta::request::{Credentials, FileType, Refusal, Timestamp, XattrMode};

/// An extended attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Xattr {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

impl Record for Xattr {
    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, &self.name);
        out.extend_from_slice(&self.value);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = SliceReader(bytes);
        let name = reader.bytes()?.to_vec();
        let fits = (1..=NAME_MAX).contains(&name.len()) && reader.0.len() <= XATTR_MAX;
        fits.then(|| Self { name, value: reader.0.to_vec() })
    }
}

impl Named for Xattr {
    fn name_of(bytes: &[u8]) -> Option<&[u8]> {
        SliceReader(bytes).bytes()
    }
}

/// The families of names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    User,
    Trusted,
    Security,
    AccessAcl,
    DefaultAcl,
}

fn family(name: &[u8]) -> Result<Family, Refusal> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(Refusal::XattrTooLarge);
    }
    if name.contains(&0) {
        return Err(Refusal::Invalid);
    }
    match name {
        acl::ACCESS => return Ok(Family::AccessAcl),
        acl::DEFAULT => return Ok(Family::DefaultAcl),
        _ => {}
    }
    let prefixes = [(&b"user."[..], Family::User), (b"trusted.", Family::Trusted), (b"security.", Family::Security)];
    for (prefix, family) in prefixes {
        match name.strip_prefix(prefix) {
            Some([]) => return Err(Refusal::Invalid),
            Some(_) => return Ok(family),
            None => {}
        }
    }
    Err(Refusal::NotSupported)
}

/// Attributes in the `user.` family hang on what has content of its own.
fn takes_user(inode: &Inode) -> bool {
    matches!(inode.file_type, FileType::File | FileType::Directory)
}

impl Namespace {
    /// setxattr(2). Setting an ACL sets the mode bits that it shows, or is a plain chmod when it says no more.
    pub fn set_xattr(
        &mut self,
        who: &Credentials,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let record = self.load(inode)?;
        let family = family(name)?;
        if value.len() > XATTR_MAX {
            return Err(Refusal::XattrTooLarge);
        }
        if matches!(family, Family::AccessAcl | Family::DefaultAcl) {
            return self.set_acl(who, inode, name, Acl::parse(value)?, now);
        }
        self.may_change(who, inode, &record, family)?;
        let present = self.xattrs.find(inode.0, name).is_some();
        match mode {
            XattrMode::Create if present => return Err(Refusal::Exists),
            XattrMode::Replace if !present => return Err(Refusal::NoData),
            _ => {}
        }
        if !present {
            self.check_room(inode, &record, name)?;
        }
        self.put_xattr(inode, name, value)?;
        self.edit(inode, |inode| {
            inode.flags |= XATTRS;
            inode.ctime = now;
        });
        Ok(())
    }

    /// removexattr(2). An ACL that is not there may be removed.
    pub fn remove_xattr(
        &mut self,
        who: &Credentials,
        inode: InodeId,
        name: &[u8],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let mut record = self.load(inode)?;
        let family = family(name)?;
        if matches!(family, Family::AccessAcl | Family::DefaultAcl) {
            return self.set_acl(who, inode, name, None, now);
        }
        self.may_change(who, inode, &record, family)?;
        let (cookie, _) = self.xattrs.find(inode.0, name).ok_or(Refusal::NoData)?;
        self.xattrs.table.remove((inode.0, cookie));
        self.refresh_flags(inode, &mut record);
        record.ctime = now;
        self.store(inode, &record);
        Ok(())
    }

    /// getxattr(2).
    pub fn get_xattr(&self, who: &Credentials, inode: InodeId, name: &[u8]) -> Result<Vec<u8>, Refusal> {
        let record = self.load(inode)?;
        match family(name)? {
            Family::User if !takes_user(&record) => return Err(Refusal::NoData),
            Family::User => self.permit(who, inode, &record, READ)?,
            Family::Trusted if !privileged(who) => return Err(Refusal::NoData),
            Family::AccessAcl | Family::DefaultAcl if record.file_type == FileType::Symlink => {
                return Err(Refusal::NotSupported);
            }
            Family::Trusted | Family::Security | Family::AccessAcl | Family::DefaultAcl => {}
        }
        let found = if record.flags == 0 { None } else { self.xattrs.find(inode.0, name) };
        found.map(|(_, xattr)| xattr.value).ok_or(Refusal::NoData)
    }

    /// listxattr(2): names in a fixed order, `trusted.` ones for the privileged only.
    pub fn list_xattrs(&self, who: &Credentials, inode: InodeId) -> Result<Vec<Vec<u8>>, Refusal> {
        let record = self.load(inode)?;
        if record.flags == 0 {
            return Ok(Vec::new());
        }
        let names = self.xattrs.table.range_of(inode.0, 0).map(|(_, xattr)| xattr.name);
        Ok(names.filter(|name| privileged(who) || !name.starts_with(b"trusted.")).collect())
    }

    fn may_change(&self, who: &Credentials, id: InodeId, inode: &Inode, family: Family) -> Result<(), Refusal> {
        match family {
            Family::User if !takes_user(inode) => Err(Refusal::NotPermitted),
            Family::User => {
                if inode.is_directory() && inode.mode & STICKY != 0 {
                    owns(who, inode)?;
                }
                self.permit(who, id, inode, WRITE)
            }
            Family::Trusted | Family::Security if !privileged(who) => Err(Refusal::NotPermitted),
            Family::Trusted | Family::Security | Family::AccessAcl | Family::DefaultAcl => Ok(()),
        }
    }

    /// The list of names must stay readable by one listxattr(2).
    fn check_room(&self, id: InodeId, inode: &Inode, name: &[u8]) -> Result<(), Refusal> {
        if inode.flags == 0 {
            return Ok(());
        }
        let used: usize = self.xattrs.table.range_of(id.0, 0).map(|(_, xattr)| xattr.name.len() + 1).sum();
        if used + name.len() < XATTR_MAX { Ok(()) } else { Err(Refusal::NoSpace) }
    }

    /// Stores an attribute, in its old place if it has one; flags are the caller's.
    pub(super) fn put_xattr(&mut self, id: InodeId, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let cookie = match self.xattrs.find(id.0, name) {
            Some((cookie, _)) => cookie,
            None => self.xattrs.vacancy(id.0, name)?,
        };
        self.xattrs.table.insert((id.0, cookie), &Xattr { name: name.to_vec(), value: value.to_vec() });
        Ok(())
    }

    /// Makes the flags say which attributes there are.
    pub(super) fn refresh_flags(&self, id: InodeId, inode: &mut Inode) {
        inode.flags &= !XATTRS;
        if !self.xattrs.is_empty(id.0) {
            inode.flags |= XATTRS;
        }
    }

    fn set_acl(
        &mut self,
        who: &Credentials,
        id: InodeId,
        name: &[u8],
        list: Option<Acl>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let mut inode = self.load(id)?;
        let access = name == acl::ACCESS;
        if inode.file_type == FileType::Symlink {
            return Err(Refusal::NotSupported);
        }
        if !access && !inode.is_directory() {
            return if list.is_some() { Err(Refusal::Access) } else { Ok(()) };
        }
        owns(who, &inode)?;
        let mut stored = list;
        if let Some(list) = stored.as_ref().filter(|_| access) {
            inode.mode = inode.mode & !0o777 | list.mode();
            if !keeps_set_gid(who, inode.gid) {
                inode.mode &= !SET_GID;
            }
            stored = stored.filter(|list| !list.is_minimal());
        }
        let flag = if access { ACCESS_ACL } else { DEFAULT_ACL };
        match stored {
            Some(list) => {
                self.put_xattr(id, name, &list.to_bytes())?;
                inode.flags |= flag;
            }
            None => {
                if let Some((cookie, _)) = self.xattrs.find(id.0, name) {
                    self.xattrs.table.remove((id.0, cookie));
                }
                inode.flags &= !flag;
            }
        }
        self.refresh_flags(id, &mut inode);
        inode.ctime = now;
        self.store(id, &inode);
        Ok(())
    }
}
