//! File locks as the kernel sees them: which family a call means, and which owners to release when.
//!
//! This room owns the association of lock owners with open files. It never grants a lock: the master does.
//!
//! The transport drops the flag that tells flock(2) from fcntl(2), so the caller's system call is looked up while it is
//! blocked in it. Where that is forbidden (another user's process, Yama) the call counts as a record lock: then a
//! flock also conflicts with record locks, as on NFS, and nothing is ever granted twice.

use gfs_core::ids::InodeId;
use gfs_core::meta::request::{LockFamily, LockMode, LockRange};
use std::collections::{BTreeMap, BTreeSet};

/// Last byte of a lock that reaches the end of the file, as the kernel writes it.
const KERNEL_END: u64 = i64::MAX as u64;

/// What `/proc/TID/syscall` says about a caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallerCall {
    /// It waits in flock or fcntl.
    Locking(LockFamily),
    /// It is not yet asleep: look again.
    Running,
    /// Something else, or not readable.
    Unknown,
}

/// Reads the text of `/proc/TID/syscall`. Numbers of both the native and the 32-bit table.
pub fn parse_syscall(text: &str) -> CallerCall {
    let first = text.split_whitespace().next().unwrap_or_default();
    if first == "running" {
        return CallerCall::Running;
    }
    let Ok(number) = first.parse::<i64>() else { return CallerCall::Unknown };
    const FLOCK_32: i64 = 143;
    const FCNTL_32: [i64; 2] = [55, 221];
    if number == libc::SYS_flock || number == FLOCK_32 {
        CallerCall::Locking(LockFamily::Flock)
    } else if number == libc::SYS_fcntl || FCNTL_32.contains(&number) {
        CallerCall::Locking(LockFamily::Record)
    } else {
        CallerCall::Unknown
    }
}

/// The range in core terms; `None` when it is no range.
pub fn range_from_kernel(start: u64, end: u64) -> Option<LockRange> {
    let end = if end >= KERNEL_END { u64::MAX } else { end };
    (start <= end).then_some(LockRange { start, end })
}

/// The range as the kernel wants it.
pub fn range_to_kernel(range: LockRange) -> (u64, u64) {
    (range.start.min(KERNEL_END), range.end.min(KERNEL_END))
}

/// F_RDLCK, F_WRLCK or F_UNLCK.
pub fn mode_from_kernel(kind: i32) -> Option<LockMode> {
    match kind {
        libc::F_RDLCK => Some(LockMode::Read),
        libc::F_WRLCK => Some(LockMode::Write),
        libc::F_UNLCK => Some(LockMode::Unlock),
        _ => None,
    }
}

/// The kernel's word for a mode.
pub fn mode_to_kernel(mode: LockMode) -> i32 {
    match mode {
        LockMode::Read => libc::F_RDLCK,
        LockMode::Write => libc::F_WRLCK,
        LockMode::Unlock => libc::F_UNLCK,
    }
}

/// Which owners may hold locks through which open files. An entry may outlive its lock (an unlock of a range does not
/// tell whether another is left); it costs one superfluous release.
#[derive(Debug, Default)]
pub struct LockTable {
    owners: BTreeMap<(InodeId, u64), Held>,
}

#[derive(Debug, Default)]
struct Held {
    handles: BTreeSet<u64>,
    families: BTreeSet<LockFamily>,
}

impl LockTable {
    /// Notes that `owner` is about to take a lock through `handle`. Call it before asking the master: a lock whose answer
    /// is lost must be released too.
    pub fn note(&mut self, inode: InodeId, owner: u64, handle: u64, family: LockFamily) {
        let held = self.owners.entry((inode, owner)).or_default();
        held.handles.insert(handle);
        held.families.insert(family);
    }

    /// A descriptor was closed by the process that `owner` stands for: POSIX drops its record locks on the file, through
    /// whichever descriptor they were taken. True when there may be some to release.
    pub fn flushed(&mut self, inode: InodeId, owner: u64) -> bool {
        let Some(held) = self.owners.get_mut(&(inode, owner)) else { return false };
        let had_records = held.families.remove(&LockFamily::Record);
        if held.families.is_empty() {
            self.owners.remove(&(inode, owner));
        }
        had_records
    }

    /// An open file is gone: every owner still associated with it is an open-file-description or flock owner, for which
    /// the kernel sends no unlock. Answers whom to release.
    pub fn released(&mut self, inode: InodeId, handle: u64) -> Vec<u64> {
        let of_inode = (inode, 0)..=(inode, u64::MAX);
        let gone: Vec<u64> = self
            .owners
            .range(of_inode)
            .filter(|(_, held)| held.handles.contains(&handle))
            .map(|((_, owner), _)| *owner)
            .collect();
        for owner in &gone {
            self.owners.remove(&(inode, *owner));
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(9);
    const PROCESS: u64 = 0xaaaa;
    const DESCRIPTION: u64 = 0xbbbb;

    #[test]
    fn closing_any_descriptor_drops_the_record_locks_of_the_process() {
        let mut table = LockTable::default();
        table.note(FILE, PROCESS, 1, LockFamily::Record);
        assert!(table.flushed(FILE, PROCESS), "through another handle of the same file");
        assert!(!table.flushed(FILE, PROCESS));
        assert_eq!(table.released(FILE, 1), Vec::<u64>::new());
    }

    #[test]
    fn open_file_description_lock_lives_until_release() {
        let mut table = LockTable::default();
        table.note(FILE, DESCRIPTION, 1, LockFamily::Record);
        assert!(!table.flushed(FILE, PROCESS), "a flush carries the process, not the description");
        assert_eq!(table.released(FILE, 2), Vec::<u64>::new());
        assert_eq!(table.released(InodeId(8), 1), Vec::<u64>::new());
        assert_eq!(table.released(FILE, 1), vec![DESCRIPTION]);
        assert_eq!(table.released(FILE, 1), Vec::<u64>::new());
    }

    #[test]
    fn flock_survives_the_flush_of_an_owner_with_both_families() {
        let mut table = LockTable::default();
        table.note(FILE, DESCRIPTION, 1, LockFamily::Flock);
        table.note(FILE, DESCRIPTION, 1, LockFamily::Record);
        assert!(table.flushed(FILE, DESCRIPTION));
        assert!(!table.flushed(FILE, DESCRIPTION));
        assert_eq!(table.released(FILE, 1), vec![DESCRIPTION]);
    }

    #[test]
    fn lock_taken_after_the_flush_is_associated_anew() {
        let mut table = LockTable::default();
        table.note(FILE, PROCESS, 1, LockFamily::Record);
        assert!(table.flushed(FILE, PROCESS));
        table.note(FILE, PROCESS, 2, LockFamily::Record);
        assert_eq!(table.released(FILE, 1), Vec::<u64>::new(), "handle 1 has nothing to do with the new lock");
        assert!(table.flushed(FILE, PROCESS));
    }

    #[test]
    fn system_call_of_the_caller_tells_the_family() {
        let text = |number: i64| format!("{number} 0x3 0x2 0x0 0x0 0x0 0x0 0x7ffd 0x7f11\n");
        assert_eq!(parse_syscall(&text(libc::SYS_flock)), CallerCall::Locking(LockFamily::Flock));
        assert_eq!(parse_syscall(&text(libc::SYS_fcntl)), CallerCall::Locking(LockFamily::Record));
        assert_eq!(parse_syscall(&text(libc::SYS_read)), CallerCall::Unknown);
        assert_eq!(parse_syscall("running\n"), CallerCall::Running);
        assert_eq!(parse_syscall(""), CallerCall::Unknown);
    }

    #[test]
    fn range_to_the_end_of_file_is_unbounded_inside() {
        let whole = range_from_kernel(0, KERNEL_END).unwrap();
        assert_eq!(whole, LockRange { start: 0, end: u64::MAX });
        assert_eq!(range_to_kernel(whole), (0, KERNEL_END));
        assert_eq!(range_from_kernel(5, 9), Some(LockRange { start: 5, end: 9 }));
        assert_eq!(range_from_kernel(9, 5), None);
    }

    #[test]
    fn modes_translate_both_ways() {
        for mode in [LockMode::Read, LockMode::Write, LockMode::Unlock] {
            assert_eq!(mode_from_kernel(mode_to_kernel(mode)), Some(mode));
        }
        assert_eq!(mode_from_kernel(77), None);
    }
}
