//! renameat2(2). The order of the checks is that of Linux (fs/namei.c, do_renameat2 and vfs_rename).

use super::create::refuse_dot;
use super::inode::Inode;
use super::names::Dentry;
use super::permission::{EXECUTE, WRITE};
use super::remove::Target;
use super::{Namespace, RenameArgs, Renamed, check_name};
use crate::ids::{InodeId, ROOT};
use crate::meta::request::{Credentials, Refusal, RenameMode, Timestamp};

/// Both ends, found.
struct Ends {
    old_directory: Inode,
    new_directory: Inode,
    source: Target,
    target: Option<Target>,
}

impl Namespace {
    /// Moves a name, replaces another by it, or swaps two, in one step.
    pub fn rename(&mut self, who: &Credentials, args: RenameArgs<'_>, now: Timestamp) -> Result<Renamed, Refusal> {
        let ends = self.find_ends(who, &args)?;
        let moved = ends.source.id;
        if ends.target.as_ref().is_some_and(|target| target.id == moved) {
            return Ok(Renamed { moved, replaced: None });
        }
        self.may_rename(who, &args, &ends)?;
        match (args.mode, ends.target) {
            (RenameMode::Exchange, Some(target)) => {
                self.exchange(&args, ends.source, target, now);
                Ok(Renamed { moved, replaced: None })
            }
            (_, target) => {
                let cookie = match &target {
                    Some(target) => target.cookie,
                    None => self.vacancy(who, args.new_parent, &ends.new_directory, args.new_name)?,
                };
                let replaced = self.replace(&args, &ends.source, target, cookie, now);
                Ok(Renamed { moved, replaced })
            }
        }
    }

    fn find_ends(&self, who: &Credentials, args: &RenameArgs<'_>) -> Result<Ends, Refusal> {
        let old_directory = self.load_directory(args.parent)?;
        self.permit(who, args.parent, &old_directory, EXECUTE)?;
        let new_directory = self.load_directory(args.new_parent)?;
        self.permit(who, args.new_parent, &new_directory, EXECUTE)?;
        check_name(args.name)?;
        refuse_dot(args.name, Refusal::Invalid)?;
        check_name(args.new_name)?;
        let exists = args.mode == RenameMode::NoReplace;
        refuse_dot(args.new_name, if exists { Refusal::Exists } else { Refusal::Invalid })?;
        let source = self.target(args.parent, args.name)?.ok_or(Refusal::NotFound)?;
        let target = self.target(args.new_parent, args.new_name)?;
        match (args.mode, &target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Refusal::Exists),
            (RenameMode::Exchange, None) => return Err(Refusal::NotFound),
            _ => {}
        }
        // Within one directory neither end can lie below the other.
        if args.parent != args.new_parent {
            if source.inode.is_directory() && self.is_within(args.new_parent, source.id) {
                return Err(Refusal::Invalid);
            }
            let above = target.as_ref().filter(|target| target.inode.is_directory());
            if above.is_some_and(|target| self.is_within(args.parent, target.id)) {
                let swap = args.mode == RenameMode::Exchange;
                return Err(if swap { Refusal::Invalid } else { Refusal::NotEmpty });
            }
        }
        Ok(Ends { old_directory, new_directory, source, target })
    }

    /// Whether `directory` is `ancestor` or lies below it. A removed directory lies below nothing any more.
    fn is_within(&self, directory: InodeId, ancestor: InodeId) -> bool {
        let mut at = directory;
        loop {
            if at == ancestor {
                return true;
            }
            match self.load(at) {
                Ok(inode) if at != ROOT && inode.links > 0 => at = inode.parent,
                _ => return false,
            }
        }
    }

    fn may_rename(&self, who: &Credentials, args: &RenameArgs<'_>, ends: &Ends) -> Result<(), Refusal> {
        let swap = args.mode == RenameMode::Exchange;
        let source = &ends.source;
        self.may_remove(who, args.parent, &ends.old_directory, &source.inode)?;
        match &ends.target {
            None => {
                if ends.new_directory.links == 0 {
                    return Err(Refusal::NotFound);
                }
                self.permit(who, args.new_parent, &ends.new_directory, WRITE | EXECUTE)?;
            }
            Some(target) => {
                self.may_remove(who, args.new_parent, &ends.new_directory, &target.inode)?;
                match (source.inode.is_directory(), target.inode.is_directory()) {
                    (true, false) if !swap => return Err(Refusal::NotDirectory),
                    (false, true) if !swap => return Err(Refusal::IsDirectory),
                    _ => {}
                }
            }
        }
        if args.parent != args.new_parent {
            // What moves to another directory has its `..` rewritten.
            if source.inode.is_directory() {
                self.permit(who, source.id, &source.inode, WRITE)?;
            }
            if let Some(target) = ends.target.as_ref().filter(|target| swap && target.inode.is_directory()) {
                self.permit(who, target.id, &target.inode, WRITE)?;
            }
        }
        match &ends.target {
            Some(target) if !swap && target.inode.entries > 0 => Err(Refusal::NotEmpty),
            _ => Ok(()),
        }
    }

    fn replace(
        &mut self,
        args: &RenameArgs<'_>,
        source: &Target,
        target: Option<Target>,
        cookie: u64,
        now: Timestamp,
    ) -> Option<super::Unlinked> {
        let directory = i32::from(source.inode.is_directory());
        let lost = target.as_ref().map_or(0, |target| i32::from(target.inode.is_directory()));
        self.dentries.table.remove((args.parent.0, source.cookie));
        let dentry = Dentry { inode: source.id, name: args.new_name.to_vec() };
        self.dentries.table.insert((args.new_parent.0, cookie), &dentry);
        self.touch_directory(args.parent, -1, -directory, now);
        self.touch_directory(args.new_parent, i64::from(target.is_none()), directory - lost, now);
        self.moved(source.id, args.new_parent, now);
        target.map(|target| self.drop_name(&target, now))
    }

    fn exchange(&mut self, args: &RenameArgs<'_>, source: Target, target: Target, now: Timestamp) {
        let dentry = |inode, name: &[u8]| Dentry { inode, name: name.to_vec() };
        self.dentries.table.insert((args.parent.0, source.cookie), &dentry(target.id, args.name));
        self.dentries.table.insert((args.new_parent.0, target.cookie), &dentry(source.id, args.new_name));
        let gain = i32::from(target.inode.is_directory()) - i32::from(source.inode.is_directory());
        self.touch_directory(args.parent, 0, gain, now);
        self.touch_directory(args.new_parent, 0, -gain, now);
        self.moved(source.id, args.new_parent, now);
        self.moved(target.id, args.parent, now);
    }

    fn moved(&mut self, id: InodeId, parent: InodeId, now: Timestamp) {
        self.edit(id, |inode| {
            inode.ctime = now;
            if inode.is_directory() {
                inode.parent = parent;
            }
        });
    }
}
