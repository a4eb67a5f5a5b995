//! Making inodes and names: create of every kind, link.

use super::acl::{self, Acl};
use super::inode::{ACCESS_ACL, DEFAULT_ACL, GROUP_EXECUTE, Inode, SET_GID, XATTRS};
use super::names::Dentry;
use super::permission::{EXECUTE, WRITE, keeps_set_gid, privileged};
use super::{CreateArgs, Created, LINK_MAX, Namespace, SYMLINK_MAX, check_name, is_dot};
use crate::ids::{InodeId, ROOT};
use crate::meta::request::{Attributes, Credentials, FileType, NodeKind, Refusal, Timestamp};

/// ACLs that something new inherits.
#[derive(Default)]
struct Inherited {
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Namespace {
    /// Makes an inode under a name, or answers the regular file that is there when `exclusive` is false and a
    /// file is asked for. A default ACL of the directory takes the place of the umask.
    pub fn create(&mut self, who: &Credentials, args: CreateArgs<'_>, now: Timestamp) -> Result<Created, Refusal> {
        let id = InodeId::new(self.generation, self.next);
        let made = self.create_as(id, who, args, now)?;
        self.next += u64::from(made.created);
        Ok(made)
    }

    /// As `create`, under a number that was reserved. `Stale` when it was not, or is in use.
    pub fn create_reserved(
        &mut self,
        id: InodeId,
        who: &Credentials,
        args: CreateArgs<'_>,
        now: Timestamp,
    ) -> Result<Created, Refusal> {
        let reserved = id.generation() == self.generation && (ROOT.0 + 1..self.next).contains(&id.counter());
        if reserved && !self.contains(id) { self.create_as(id, who, args, now) } else { Err(Refusal::Stale) }
    }

    fn create_as(
        &mut self,
        id: InodeId,
        who: &Credentials,
        args: CreateArgs<'_>,
        now: Timestamp,
    ) -> Result<Created, Refusal> {
        let directory = self.load_directory(args.parent)?;
        self.permit(who, args.parent, &directory, EXECUTE)?;
        check_name(args.name)?;
        if let Some(attributes) = self.existing(&args)? {
            return Ok(Created { attributes, created: false });
        }
        check_kind(who, args.kind)?;
        let cookie = self.vacancy(who, args.parent, &directory, args.name)?;
        let (inode, inherited) = self.shape(who, &args, &directory, now);
        self.store(id, &inode);
        for (name, list) in [(acl::ACCESS, inherited.access), (acl::DEFAULT, inherited.default)] {
            if let Some(list) = list {
                // A fresh inode has no attributes yet: there is always a place.
                self.put_xattr(id, name, &list.to_bytes())?;
            }
        }
        if let NodeKind::Symlink(target) = args.kind {
            self.targets.insert((id.0, 0), target);
        }
        self.files += u64::from(inode.file_type == FileType::File);
        self.directories += u64::from(inode.is_directory());
        self.dentries.table.insert((args.parent.0, cookie), &Dentry { inode: id, name: args.name.to_vec() });
        self.touch_directory(args.parent, 1, i32::from(inode.is_directory()), now);
        Ok(Created { attributes: inode.attributes(id), created: true })
    }

    /// The regular file that an open with O_CREAT finds; `Exists` when anything else is in the way.
    fn existing(&self, args: &CreateArgs<'_>) -> Result<Option<Attributes>, Refusal> {
        let Some(id) = self.peek(args.parent, args.name) else { return Ok(None) };
        let inode = self.load(id)?;
        let opens = !args.exclusive && *args.kind == NodeKind::File && inode.file_type == FileType::File;
        if opens { Ok(Some(inode.attributes(id))) } else { Err(Refusal::Exists) }
    }

    /// The place for a new name in a directory that the caller may change and that still has a name itself.
    pub(super) fn vacancy(
        &self,
        who: &Credentials,
        parent: InodeId,
        directory: &Inode,
        name: &[u8],
    ) -> Result<u64, Refusal> {
        if directory.links == 0 {
            return Err(Refusal::NotFound);
        }
        self.permit(who, parent, directory, WRITE | EXECUTE)?;
        self.dentries.vacancy(parent.0, name)
    }

    /// The new inode: group from a set-group-id directory, mode from umask or default ACL.
    fn shape(&self, who: &Credentials, args: &CreateArgs<'_>, directory: &Inode, now: Timestamp) -> (Inode, Inherited) {
        let parent = Parent { mode: directory.mode, gid: directory.gid, replicas: directory.replicas };
        let mut inode = without_umask(who, (args.kind, args.mode), parent, now);
        inode.parent = args.parent;
        let mut inherited = Inherited::default();
        if inode.file_type == FileType::Symlink {
            return (inode, inherited);
        }
        match self.default_acl(args.parent, directory) {
            None => inode.mode &= !(args.umask & 0o777),
            Some(default) => {
                let access = default.inherited(inode.mode);
                inode.mode = inode.mode & !0o777 | access.mode();
                inherited.access = Some(access).filter(|access| !access.is_minimal());
                inherited.default = Some(default).filter(|_| inode.is_directory());
            }
        }
        inode.flags |= if inherited.access.is_some() { ACCESS_ACL | XATTRS } else { 0 };
        inode.flags |= if inherited.default.is_some() { DEFAULT_ACL | XATTRS } else { 0 };
        (inode, inherited)
    }

    fn default_acl(&self, parent: InodeId, directory: &Inode) -> Option<Acl> {
        if directory.flags & DEFAULT_ACL == 0 {
            return None;
        }
        let (_, found) = self.xattrs.find(parent.0, acl::DEFAULT)?;
        Acl::parse(&found.value).ok()?
    }

    /// Adds a name to an inode that is not a directory and still has one.
    pub fn link(
        &mut self,
        who: &Credentials,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
        now: Timestamp,
    ) -> Result<Attributes, Refusal> {
        let directory = self.load_directory(parent)?;
        self.permit(who, parent, &directory, EXECUTE)?;
        check_name(name)?;
        let source = self.load(inode)?;
        if self.peek(parent, name).is_some() {
            return Err(Refusal::Exists);
        }
        let cookie = self.vacancy(who, parent, &directory, name)?;
        match source {
            _ if source.is_directory() => return Err(Refusal::NotPermitted),
            _ if source.links == 0 => return Err(Refusal::NotFound),
            _ if source.links >= LINK_MAX => return Err(Refusal::TooManyLinks),
            _ => {}
        }
        self.dentries.table.insert((parent.0, cookie), &Dentry { inode, name: name.to_vec() });
        self.touch_directory(parent, 1, 0, now);
        Ok(self.edit(inode, |inode| {
            inode.links += 1;
            inode.ctime = now;
        }))
    }
}

/// What something new takes over from its directory.
#[derive(Clone, Copy)]
struct Parent {
    mode: u16,
    gid: u32,
    replicas: u8,
}

/// Something new, but for what a umask or a default ACL takes from its mode.
fn without_umask(who: &Credentials, (kind, mode): (&NodeKind, u16), parent: Parent, now: Timestamp) -> Inode {
    let mut inode = Inode::new(kind_type(kind), mode & 0o7777, now);
    (inode.uid, inode.gid, inode.replicas) = (who.uid, who.gid, parent.replicas);
    match kind {
        NodeKind::Directory => {
            inode.links = 2;
            inode.mode &= 0o1777;
        }
        NodeKind::Symlink(target) => {
            inode.mode = 0o777;
            inode.size = target.len() as u64;
        }
        NodeKind::CharDevice(number) | NodeKind::BlockDevice(number) => inode.rdev = *number,
        NodeKind::File | NodeKind::Fifo | NodeKind::Socket => {}
    }
    if parent.mode & SET_GID != 0 {
        inode.gid = parent.gid;
        if inode.is_directory() {
            inode.mode |= SET_GID;
        } else if inode.mode & GROUP_EXECUTE != 0 && !keeps_set_gid(who, inode.gid) {
            inode.mode &= !SET_GID;
        }
    }
    inode
}

/// What `create` makes in a directory without a default ACL, its permission left aside.
///
/// # Errors
/// As `create`, for what is to be made.
pub fn new_attributes(
    inode: InodeId,
    who: &Credentials,
    (kind, mode, umask): (&NodeKind, u16, u16),
    directory: &Attributes,
    now: Timestamp,
) -> Result<Attributes, Refusal> {
    check_kind(who, kind)?;
    let parent = Parent { mode: directory.mode, gid: directory.gid, replicas: directory.replicas };
    let mut made = without_umask(who, (kind, mode), parent, now);
    if made.file_type != FileType::Symlink {
        made.mode &= !(umask & 0o777);
    }
    Ok(made.attributes(inode))
}

fn kind_type(kind: &NodeKind) -> FileType {
    match kind {
        NodeKind::File => FileType::File,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink(_) => FileType::Symlink,
        NodeKind::Fifo => FileType::Fifo,
        NodeKind::Socket => FileType::Socket,
        NodeKind::CharDevice(_) => FileType::CharDevice,
        NodeKind::BlockDevice(_) => FileType::BlockDevice,
    }
}

fn check_kind(who: &Credentials, kind: &NodeKind) -> Result<(), Refusal> {
    match kind {
        NodeKind::Symlink(target) if target.is_empty() => Err(Refusal::NotFound),
        NodeKind::Symlink(target) if target.len() > SYMLINK_MAX => Err(Refusal::NameTooLong),
        NodeKind::Symlink(target) if target.contains(&0) => Err(Refusal::Invalid),
        NodeKind::CharDevice(_) | NodeKind::BlockDevice(_) if !privileged(who) => Err(Refusal::NotPermitted),
        _ => Ok(()),
    }
}

/// `.` and `..` are always taken; used where a new name must not be one of them.
pub(super) fn refuse_dot(name: &[u8], refusal: Refusal) -> Result<(), Refusal> {
    if is_dot(name) { Err(refusal) } else { Ok(()) }
}
