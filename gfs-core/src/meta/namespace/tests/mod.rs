//! Facts about the namespace, and a comparison with a plain model.

mod acls;
mod attributes;
mod checkpoint;
mod listing;
mod model;
mod names;
mod renames;
mod xattrs;

use super::*;
use crate::meta::request::{AttributeChanges, Credentials, NodeKind, RenameMode, XattrMode};

/// What a kernel mount says: nothing is checked.
pub fn kernel() -> Credentials {
    Credentials { uid: 0, gid: 0, groups: Vec::new(), check: false }
}

/// A user whose rights are checked.
pub fn user(uid: u32, gid: u32) -> Credentials {
    Credentials { uid, gid, groups: Vec::new(), check: true }
}

/// A namespace and a clock that moves with every call.
pub struct World {
    pub space: Namespace,
    clock: i64,
}

impl World {
    /// Only a root directory that everybody may write.
    pub fn new() -> Self {
        let root = RootOptions {
            generation: Generation(0),
            hash_key: 0x1234,
            mode: 0o777,
            uid: 0,
            gid: 0,
            replicas: 3,
            now: Timestamp(0),
        };
        Self { space: Namespace::new(root), clock: 0 }
    }

    pub fn tick(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp(self.clock)
    }

    pub fn now(&self) -> Timestamp {
        Timestamp(self.clock)
    }

    pub fn make(
        &mut self,
        who: &Credentials,
        parent: InodeId,
        name: &str,
        kind: &NodeKind,
        mode: u16,
    ) -> Result<Attributes, Refusal> {
        let now = self.tick();
        let args = CreateArgs { parent, name: name.as_bytes(), kind, mode, umask: 0o022, exclusive: true };
        self.space.create(who, args, now).map(|created| created.attributes)
    }

    pub fn file(&mut self, parent: InodeId, name: &str) -> InodeId {
        self.make(&kernel(), parent, name, &NodeKind::File, 0o666).expect("a new file").inode
    }

    pub fn directory(&mut self, parent: InodeId, name: &str) -> InodeId {
        self.make(&kernel(), parent, name, &NodeKind::Directory, 0o777).expect("a new directory").inode
    }

    pub fn owned(&mut self, parent: InodeId, name: &str, kind: &NodeKind, mode: u16, uid: u32, gid: u32) -> InodeId {
        let made = self.make(&kernel(), parent, name, kind, 0o777).expect("a new inode");
        let owner = AttributeChanges { uid: Some(uid), gid: Some(gid), mode: Some(mode), ..Default::default() };
        self.change(&kernel(), made.inode, owner).expect("the kernel may");
        made.inode
    }

    pub fn unlink(&mut self, who: &Credentials, parent: InodeId, name: &str) -> Result<Unlinked, Refusal> {
        let now = self.tick();
        self.space.unlink(who, parent, name.as_bytes(), now)
    }

    pub fn rmdir(&mut self, who: &Credentials, parent: InodeId, name: &str) -> Result<Unlinked, Refusal> {
        let now = self.tick();
        self.space.rmdir(who, parent, name.as_bytes(), now)
    }

    pub fn link(&mut self, who: &Credentials, inode: InodeId, parent: InodeId, name: &str) -> Result<u32, Refusal> {
        let now = self.tick();
        self.space.link(who, inode, parent, name.as_bytes(), now).map(|attributes| attributes.links)
    }

    pub fn rename(
        &mut self,
        who: &Credentials,
        (parent, name): (InodeId, &str),
        (new_parent, new_name): (InodeId, &str),
        mode: RenameMode,
    ) -> Result<Renamed, Refusal> {
        let now = self.tick();
        let (name, new_name) = (name.as_bytes(), new_name.as_bytes());
        self.space.rename(who, RenameArgs { parent, name, new_parent, new_name, mode }, now)
    }

    pub fn change(
        &mut self,
        who: &Credentials,
        inode: InodeId,
        changes: AttributeChanges,
    ) -> Result<Attributes, Refusal> {
        let now = self.tick();
        self.space.set_attributes(who, inode, &changes, now)
    }

    pub fn chmod(&mut self, who: &Credentials, inode: InodeId, mode: u16) -> Result<u16, Refusal> {
        let changes = AttributeChanges { mode: Some(mode), ..Default::default() };
        self.change(who, inode, changes).map(|attributes| attributes.mode)
    }

    pub fn set_xattr(&mut self, who: &Credentials, inode: InodeId, name: &str, value: &[u8]) -> Result<(), Refusal> {
        let now = self.tick();
        self.space.set_xattr(who, inode, name.as_bytes(), value, XattrMode::Any, now)
    }

    pub fn stat(&self, inode: InodeId) -> Attributes {
        self.space.attributes(inode).expect("the inode is there")
    }

    pub fn find(&self, parent: InodeId, name: &str) -> Option<InodeId> {
        self.space.peek(parent, name.as_bytes())
    }

    /// No table contradicts another.
    pub fn consistent(&self) {
        assert_eq!(self.space.verify(10), []);
    }
}
