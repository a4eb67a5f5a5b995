//! The calls that a holder decides: as the master would, in the same order of checks.

use super::{Child, Decision, Holder, Node, refused};
use crate::ids::InodeId;
use crate::meta::delegations::{SET_ID, set};
use crate::meta::namespace::{NAME_MAX, check_name, directory_size, is_dot, new_attributes};
use crate::meta::request::{
    AttributeChanges, Attributes, Credentials, FileType, NodeKind, Refusal, RenameMode, Reply, Request, SetTime,
    Timestamp,
};

impl Holder {
    /// Does a call by `who` at `now`, if it is about held directories alone. What is done is shown from then on, and is to be told.
    pub fn decide(&mut self, who: &Credentials, request: &Request, now: Timestamp) -> Decision {
        if who.check {
            return Decision::NotHere;
        }
        let decided = match request {
            Request::Create { parent, name, kind, mode, umask, exclusive, .. } => {
                self.create(who, (*parent, name), (kind, *mode, *umask), *exclusive, now)
            }
            Request::Unlink { parent, name } => self.remove(who, (*parent, name), false, now),
            Request::Rmdir { parent, name } => self.remove(who, (*parent, name), true, now),
            Request::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename(who, (*parent, name), (*new_parent, new_name), *mode, now)
            }
            Request::SetAttributes { inode, changes } => self.set_attributes(who, *inode, changes, now),
            _ => Ok(Decision::NotHere),
        };
        decided.unwrap_or_else(refused)
    }

    /// The time of a change of a directory: never before what is shown.
    fn time(&self, directory: InodeId, now: Timestamp) -> Timestamp {
        self.directories.get(&directory).map_or(now, |of| now.max(of.attributes.ctime))
    }

    fn create(
        &mut self,
        who: &Credentials,
        (parent, name): (InodeId, &[u8]),
        (kind, mode, umask): (&NodeKind, u16, u16),
        exclusive: bool,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let Some(directory) = self.held(parent) else { return Ok(Decision::NotHere) };
        // What a default ACL makes of the mode only the master knows.
        if directory.attributes.has_acl || is_dot(name) {
            return Ok(Decision::NotHere);
        }
        check_name(name)?;
        if let Some(child) = directory.names.get(name) {
            let opens = !exclusive && *kind == NodeKind::File && child.file_type == FileType::File;
            return if opens { Ok(Decision::NotHere) } else { Err(Refusal::Exists) };
        }
        let now = self.time(parent, now);
        let made = new_attributes(InodeId(0), who, (kind, mode, umask), &directory.attributes, now)?;
        let Some(inode) = self.number() else { return Ok(Decision::NoNumbers) };
        let made = Attributes { inode, ..made };
        let is_directory = made.file_type == FileType::Directory;
        match (&made.file_type, kind) {
            (FileType::Directory, _) => self.hold(&made),
            (FileType::File, _) => (),
            (_, kind) => {
                let target = if let NodeKind::Symlink(target) = kind { target.clone() } else { Vec::new() };
                self.nodes.insert(inode, Node { attributes: made.clone(), target });
            }
        }
        self.put(parent, name, Child { inode, file_type: made.file_type });
        self.changed(parent, i32::from(is_directory), now);
        let request = Request::Create {
            parent,
            name: name.to_vec(),
            kind: kind.clone(),
            mode,
            umask,
            exclusive: true,
            hold: is_directory,
        };
        self.remember((who.uid, who.gid), now, inode, request, &[parent, inode]);
        Ok(Decision::Done(Reply::Entry { attributes: made, created: true }))
    }

    fn remove(
        &mut self,
        who: &Credentials,
        (parent, name): (InodeId, &[u8]),
        directory: bool,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let Some(of) = self.held(parent) else { return Ok(Decision::NotHere) };
        if is_dot(name) || name.len() > NAME_MAX {
            return Ok(Decision::NotHere);
        }
        let child = *of.names.get(name).ok_or(Refusal::NotFound)?;
        match (directory, child.file_type == FileType::Directory) {
            (false, true) => return Err(Refusal::IsDirectory),
            (true, false) => return Err(Refusal::NotDirectory),
            _ => (),
        }
        if directory {
            let Some(removed) = self.held(child.inode) else { return Ok(Decision::NotHere) };
            if !removed.names.is_empty() {
                return Err(Refusal::NotEmpty);
            }
        }
        let now = self.time(parent, now);
        self.take_name(parent, name);
        self.drop_child(child);
        self.changed(parent, -i32::from(directory), now);
        let name = name.to_vec();
        let request = if directory { Request::Rmdir { parent, name } } else { Request::Unlink { parent, name } };
        self.remember((who.uid, who.gid), now, InodeId(0), request, &[parent, child.inode]);
        Ok(Decision::Done(Reply::Done))
    }

    fn rename(
        &mut self,
        who: &Credentials,
        (parent, name): (InodeId, &[u8]),
        (new_parent, new_name): (InodeId, &[u8]),
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let (Some(old), Some(new)) = (self.held(parent), self.held(new_parent)) else { return Ok(Decision::NotHere) };
        if mode == RenameMode::Exchange || is_dot(name) || is_dot(new_name) || name.len() > NAME_MAX {
            return Ok(Decision::NotHere);
        }
        check_name(new_name)?;
        let child = *old.names.get(name).ok_or(Refusal::NotFound)?;
        let target = new.names.get(new_name).copied();
        let is_directory = child.file_type == FileType::Directory;
        // Whether one lies within the other only the master knows.
        let moves_directory = is_directory || target.is_some_and(|target| target.file_type == FileType::Directory);
        if moves_directory && parent != new_parent || is_directory && self.held(child.inode).is_none() {
            return Ok(Decision::NotHere);
        }
        if let Some(target) = target {
            if mode == RenameMode::NoReplace {
                return Err(Refusal::Exists);
            }
            if target.inode == child.inode {
                return Ok(Decision::Done(Reply::Done));
            }
            match (is_directory, target.file_type == FileType::Directory) {
                (true, false) => return Err(Refusal::NotDirectory),
                (false, true) => return Err(Refusal::IsDirectory),
                (false, false) => (),
                (true, true) => match self.held(target.inode) {
                    None => return Ok(Decision::NotHere),
                    Some(of) if !of.names.is_empty() => return Err(Refusal::NotEmpty),
                    Some(_) => (),
                },
            }
        }
        let now = self.time(parent, now).max(self.time(new_parent, now)).max(self.time(child.inode, now));
        self.take_name(parent, name);
        self.take_name(new_parent, new_name);
        target.into_iter().for_each(|target| self.drop_child(target));
        self.put(new_parent, new_name, child);
        let lost = target.map_or(0, |target| i32::from(target.file_type == FileType::Directory));
        self.changed(parent, -i32::from(is_directory), now);
        self.changed(new_parent, i32::from(is_directory) - lost, now);
        if let Some(directory) = self.directories.get_mut(&child.inode) {
            directory.attributes.ctime = now;
        }
        if let Some(node) = self.nodes.get_mut(&child.inode) {
            node.attributes.ctime = now;
        }
        let about: Vec<InodeId> =
            [parent, new_parent, child.inode].into_iter().chain(target.map(|target| target.inode)).collect();
        let (name, new_name) = (name.to_vec(), new_name.to_vec());
        let request = Request::Rename { parent, name, new_parent, new_name, mode };
        self.remember((who.uid, who.gid), now, InodeId(0), request, &about);
        Ok(Decision::Done(Reply::Done))
    }

    fn set_attributes(
        &mut self,
        who: &Credentials,
        inode: InodeId,
        changes: &AttributeChanges,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let Some(before) = self.attributes(inode) else { return Ok(Decision::NotHere) };
        let AttributeChanges { mode, uid, gid, size, atime, mtime, ctime, replicas, clear_suid: _ } = changes;
        let is_directory = before.file_type == FileType::Directory;
        let others = size.is_some() || ctime.is_some() || replicas.is_some() || before.has_acl;
        let set_id = !is_directory && (before.mode | mode.unwrap_or(0)) & SET_ID != 0;
        if others || set_id {
            return Ok(Decision::NotHere);
        }
        if mode.is_some() && before.file_type == FileType::Symlink {
            return Err(Refusal::NotSupported);
        }
        if (mode, uid, gid, atime, mtime) == (&None, &None, &None, &None, &None) {
            return Ok(Decision::Done(Reply::Attributes { attributes: before, pending_shrink: false }));
        }
        let now = now.max(before.ctime);
        let mut after = before;
        set(&mut after, changes, now);
        // The master sets what is shown here, whatever its clock says then.
        let atime = atime.map(|_| SetTime::At(after.atime));
        let mtime = mtime.map(|_| SetTime::At(after.mtime));
        if let Some(directory) = self.directories.get_mut(&inode) {
            directory.attributes = after.clone();
            directory.used = now;
        } else if let Some(node) = self.nodes.get_mut(&inode) {
            node.attributes = after.clone();
        }
        let changes = AttributeChanges { atime, mtime, ctime: Some(now), clear_suid: false, ..changes.clone() };
        let request = Request::SetAttributes { inode, changes };
        self.remember((who.uid, who.gid), now, InodeId(0), request, &[inode]);
        Ok(Decision::Done(Reply::Attributes { attributes: after, pending_shrink: false }))
    }

    fn put(&mut self, parent: InodeId, name: &[u8], child: Child) {
        if let Some(directory) = self.directories.get_mut(&parent) {
            directory.names.insert(name.to_vec(), child);
            self.parents.insert(child.inode, parent);
            self.names += 1;
        }
    }

    fn take_name(&mut self, parent: InodeId, name: &[u8]) {
        if let Some(child) = self.directories.get_mut(&parent).and_then(|of| of.names.remove(name)) {
            self.parents.remove(&child.inode);
            self.names -= 1;
        }
    }

    /// It has lost its last name.
    fn drop_child(&mut self, child: Child) {
        self.nodes.remove(&child.inode);
        self.forget(child.inode);
    }

    /// The names of a directory changed.
    fn changed(&mut self, directory: InodeId, links: i32, now: Timestamp) {
        if let Some(of) = self.directories.get_mut(&directory) {
            let size = directory_size(of.names.len() as u64);
            let Attributes { mtime, ctime, size: shown, allocated, links: count, .. } = &mut of.attributes;
            (*mtime, *ctime, *shown, *allocated) = (now, now, size, size);
            *count = count.saturating_add_signed(links);
            of.used = now;
        }
    }
}
