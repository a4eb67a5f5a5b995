//! Requests of the kernel as operations. Pure.

use super::abi::{self, op, set};
use crate::fs::{Caller, Changes, LockAsked, Write, attributes};
use crate::ops::request::{Asker, Made, Operation};
use bytes::Bytes;
use gfs_client::{LockFamily, NodeKind, SetTime, Timestamp};

/// The header of a request.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What.
    pub opcode: u32,
    /// Of which node.
    pub node: u64,
    /// By whom, under which number.
    pub asker: Asker,
}

/// Reads integers and names one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.take(8)?.try_into().ok()?))
    }

    /// The bytes before the next zero byte.
    fn name(&mut self) -> Option<&'a [u8]> {
        let length = self.0.iter().position(|byte| *byte == 0)?;
        let name = self.take(length)?;
        self.take(1)?;
        Some(name)
    }
}

/// The header; `None` if there is not all of it.
pub fn header(bytes: &[u8]) -> Option<Header> {
    let mut reader = Reader(bytes);
    let (_length, opcode, unique, node) = (reader.u32()?, reader.u32()?, reader.u64()?, reader.u64()?);
    let caller = Caller { uid: reader.u32()?, gid: reader.u32()?, tid: reader.u32()? };
    Some(Header { opcode, node, asker: Asker { caller, unique } })
}

/// What a request asks: `head` is the structure of the operation, `rest` names and data. `None` if it is cut short.
///
/// What we do not do is `Operation::Refuse`, also when the kernel is newer than this.
pub fn operation<'a>(header: &Header, head: &'a [u8], rest: &'a [u8]) -> Option<Operation<'a>> {
    let (mut head, mut rest) = (Reader(head), Reader(rest));
    Some(match header.opcode {
        op::LOOKUP => Operation::Lookup(rest.name()?),
        op::GETATTR | op::STATX => Operation::GetAttributes,
        op::SETATTR => Operation::SetAttributes(changes(&mut head)?),
        op::READLINK => Operation::ReadLink,
        op::SYMLINK => {
            let (name, target) = (rest.name()?, rest.name()?);
            Operation::Make(name, Made { kind: NodeKind::Symlink(target.to_vec()), mode: 0o777, umask: 0 })
        }
        op::MKNOD => {
            let (mode, rdev, umask) = (head.u32()?, head.u32()?, head.u32()?);
            match attributes::node_kind(mode, rdev) {
                Some(kind) => Operation::Make(rest.name()?, made(kind, mode, umask)),
                None => Operation::Refuse(libc::EINVAL),
            }
        }
        op::MKDIR => {
            let (mode, umask) = (head.u32()?, head.u32()?);
            Operation::Make(rest.name()?, made(NodeKind::Directory, mode, umask))
        }
        op::UNLINK => Operation::Unlink(rest.name()?),
        op::RMDIR => Operation::RemoveDirectory(rest.name()?),
        op::RENAME | op::RENAME2 => {
            let new_parent = head.u64()?;
            let flags = if header.opcode == op::RENAME2 { head.u32()? } else { 0 };
            Operation::Rename { name: rest.name()?, new_parent, new_name: rest.name()?, flags }
        }
        op::LINK => Operation::Link { inode: head.u64()?, name: rest.name()? },
        op::OPEN => Operation::Open(head.u32()? as i32),
        op::CREATE => {
            let (flags, mode, umask) = (head.u32()? as i32, head.u32()?, head.u32()?);
            let (mode, umask) = (attributes::permissions(mode), attributes::permissions(umask));
            Operation::Create { name: rest.name()?, mode, umask, flags }
        }
        op::READ => Operation::Read { handle: head.u64()?, offset: head.u64()?, size: head.u32()? },
        op::WRITE => write(head.0, rest.0)?,
        op::STATFS => Operation::Usage,
        op::FLUSH => Operation::Flush { handle: head.u64()?, owner: head.u64().and_then(|_| head.u64())? },
        op::RELEASE => {
            let (handle, _flags, release) = (head.u64()?, head.u32()?, head.u32()?);
            let owner = head.u64()?;
            Operation::Release { handle, owner: (release & abi::RELEASE_FLOCK_UNLOCK != 0).then_some(owner) }
        }
        op::FSYNC => Operation::Sync { handle: head.u64()?, data_only: head.u32()? & abi::FSYNC_DATA != 0 },
        op::OPENDIR => Operation::OpenDirectory,
        op::READDIR | op::READDIRPLUS => {
            let (handle, offset) = (head.u64()?, head.u64()?);
            Operation::ReadDirectory { handle, offset, plus: header.opcode == op::READDIRPLUS }
        }
        op::RELEASEDIR => Operation::ReleaseDirectory(head.u64()?),
        op::FSYNCDIR => Operation::SyncDirectory,
        op::SETXATTR => {
            let (length, flags) = (head.u32()?, head.u32()? as i32);
            Operation::SetXattr { name: rest.name()?, value: rest.take(length as usize)?, flags }
        }
        op::GETXATTR => Operation::GetXattr { name: rest.name()?, size: head.u32()? },
        op::LISTXATTR => Operation::ListXattrs(head.u32()?),
        op::REMOVEXATTR => Operation::RemoveXattr(rest.name()?),
        op::ACCESS => Operation::Access,
        op::GETLK => Operation::TestLock(lock(&mut head)?.0),
        op::SETLK | op::SETLKW => {
            let (asked, flags) = lock(&mut head)?;
            let flock = flags & abi::LK_FLOCK != 0;
            let family = Some(if flock { LockFamily::Flock } else { LockFamily::Record });
            Operation::SetLock { asked, wait: header.opcode == op::SETLKW, family }
        }
        op::BMAP => Operation::Refuse(libc::EINVAL),
        op::IOCTL => Operation::Refuse(libc::ENOTTY),
        op::FALLOCATE => {
            let (handle, offset, length) = (head.u64()?, head.u64()?, head.u64()?);
            Operation::Allocate { handle, offset, length, mode: head.u32()? as i32 }
        }
        op::LSEEK => {
            let (handle, offset) = (head.u64()?, head.u64()?.cast_signed());
            Operation::Seek { handle, offset, whence: head.u32()? as i32 }
        }
        op::COPY_FILE_RANGE => {
            let (from, _node) = ((head.u64()?, head.u64()?), head.u64()?);
            Operation::Copy { from, to: (head.u64()?, head.u64()?), length: head.u64()? }
        }
        // The kernel then does without: poll takes files for always ready.
        _ => Operation::Refuse(libc::ENOSYS),
    })
}

fn made(kind: NodeKind, mode: u32, umask: u32) -> Made {
    Made { kind, mode: attributes::permissions(mode), umask: attributes::permissions(umask) }
}

fn changes(head: &mut Reader<'_>) -> Option<Changes> {
    let valid = head.u32()?;
    head.take(12)?;
    let (size, _owner) = (head.u64()?, head.u64()?);
    let (atime, mtime, _ctime) = (head.u64()?.cast_signed(), head.u64()?.cast_signed(), head.u64()?);
    let (atime_ns, mtime_ns, _ctime_ns) = (head.u32()?, head.u32()?, head.u32()?);
    let (mode, _, uid, gid) = (head.u32()?, head.u32()?, head.u32()?, head.u32()?);
    let has = |bit: u32| valid & bit != 0;
    let time = |bit, now, seconds: i64, nanoseconds: u32| {
        let at = || {
            let whole = seconds.saturating_mul(1_000_000_000);
            SetTime::At(Timestamp(whole.saturating_add(i64::from(nanoseconds))))
        };
        has(bit).then(|| if has(now) { SetTime::Now } else { at() })
    };
    Some(Changes {
        mode: has(set::MODE).then(|| attributes::permissions(mode)),
        uid: has(set::UID).then_some(uid),
        gid: has(set::GID).then_some(gid),
        size: has(set::SIZE).then_some(size),
        atime: time(set::ATIME, set::ATIME_NOW, atime, atime_ns),
        mtime: time(set::MTIME, set::MTIME_NOW, mtime, mtime_ns),
    })
}

/// A write, whose bytes are copied: `head` and `rest` as of `operation`.
pub fn write(head: &[u8], rest: &[u8]) -> Option<Operation<'static>> {
    let (mut head, mut rest) = (Reader(head), Reader(rest));
    let (handle, offset, size, write_flags) = (head.u64()?, head.u64()?, head.u32()?, head.u32()?);
    let (_owner, flags) = (head.u64()?, head.u32()? as i32);
    let write = Write {
        offset,
        // The only copy: the buffer is used again for the next request.
        data: Bytes::copy_from_slice(rest.take(size as usize)?),
        flags,
        from_page_cache: write_flags & abi::WRITE_CACHE != 0,
        clear_set_id: write_flags & abi::WRITE_KILL_SUIDGID != 0,
    };
    Some(Operation::Write { handle, write })
}

fn lock(head: &mut Reader<'_>) -> Option<(LockAsked, u32)> {
    let (handle, owner, start, end) = (head.u64()?, head.u64()?, head.u64()?, head.u64()?);
    let (kind, pid, flags) = (head.u32()? as i32, head.u32()?, head.u32()?);
    Some((LockAsked { handle, owner, start, end, kind, pid }, flags))
}

/// What the kernel offers in INIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Its version.
    pub version: (u32, u32),
    /// Its read-ahead at most, in bytes.
    pub max_readahead: u32,
    /// What it can.
    pub flags: u64,
}

/// The body of INIT; `None` if it is cut short.
pub fn offer(body: &[u8]) -> Option<Offer> {
    let mut body = Reader(body);
    let (major, minor, max_readahead) = (body.u32()?, body.u32()?, body.u32()?);
    let (low, high) = (body.u32()?, body.u32().unwrap_or(0));
    let extended = u64::from(low) & abi::init::INIT_EXT != 0;
    let flags = u64::from(low) | if extended { u64::from(high) << 32 } else { 0 };
    Some(Offer { version: (major, minor), max_readahead, flags })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn ints(values: &[u64], width: impl Fn(usize) -> usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, value) in values.iter().enumerate() {
            match width(index) {
                4 => bytes.extend((*value as u32).to_ne_bytes()),
                _ => bytes.extend(value.to_ne_bytes()),
            }
        }
        bytes
    }

    fn asked(opcode: u32) -> Header {
        let caller = Caller { uid: 1, gid: 2, tid: 3 };
        Header { opcode, node: 5, asker: Asker { caller, unique: 9 } }
    }

    #[test]
    fn header_is_read_as_the_kernel_writes_it() {
        let bytes = ints(&[40, u64::from(op::UNLINK), 77, 5, 1000, 100, 4711, 0], |index| match index {
            2 | 3 => 8,
            _ => 4,
        });
        assert_eq!(bytes.len(), abi::IN_HEADER);
        let read = header(&bytes).unwrap();
        assert_eq!((read.opcode, read.node, read.asker.unique), (op::UNLINK, 5, 77));
        assert_eq!(read.asker.caller, Caller { uid: 1000, gid: 100, tid: 4711 });
        assert!(header(&bytes[..35]).is_none());
    }

    #[test]
    fn names_stand_one_after_the_other() {
        let head = ints(&[6, 1, 0], |index| if index == 0 { 8 } else { 4 });
        let renamed = operation(&asked(op::RENAME2), &head, b"old\0new name\0").unwrap();
        assert!(
            matches!(renamed, Operation::Rename { name: b"old", new_parent: 6, new_name: b"new name", flags: 1 }),
            "{renamed:?}"
        );
        assert!(operation(&asked(op::RENAME2), &head, b"old\0new").is_none(), "no end");
        let linked = operation(&asked(op::SYMLINK), b"", b"name\0to/here\0").unwrap();
        let Operation::Make(b"name", Made { kind: NodeKind::Symlink(target), .. }) = linked else {
            panic!("{linked:?}")
        };
        assert_eq!(target, b"to/here");
    }

    #[test]
    fn only_what_is_marked_is_changed() {
        let mut values = vec![u64::from(set::MODE | set::ATIME | set::MTIME | set::MTIME_NOW), 0, 0, 999, 0];
        // Half a second after the second before 1970.
        values.extend([(-1_i64).cast_unsigned(), 5, 0, 500_000_000, 0, 0, 0o100_640, 0, 7, 8, 0]);
        let head = ints(&values, |index| if (2..8).contains(&index) { 8 } else { 4 });
        assert_eq!(head.len(), abi::head_length(op::SETATTR));
        let Some(Operation::SetAttributes(changes)) = operation(&asked(op::SETATTR), &head, b"") else { panic!() };
        let want = Changes {
            mode: Some(0o640),
            atime: Some(SetTime::At(Timestamp(-500_000_000))),
            mtime: Some(SetTime::Now),
            ..Changes::default()
        };
        assert_eq!(changes, want);
    }

    #[test]
    fn write_that_is_shorter_than_it_says_is_refused() {
        let head = ints(&[3, 4096, 5, u64::from(abi::WRITE_KILL_SUIDGID), 0, 2, 0], |index| match index {
            2 | 3 | 5 | 6 => 4,
            _ => 8,
        });
        assert_eq!(head.len(), abi::head_length(op::WRITE));
        let Some(Operation::Write { handle: 3, write }) = operation(&asked(op::WRITE), &head, b"hello") else {
            panic!()
        };
        assert_eq!((write.offset, &write.data[..], write.flags), (4096, &b"hello"[..], 2));
        assert!(write.clear_set_id && !write.from_page_cache);
        assert!(operation(&asked(op::WRITE), &head, b"hell").is_none());
    }

    #[test]
    fn families_of_locks_are_told_apart() {
        for (flag, want) in [(0, LockFamily::Record), (1, LockFamily::Flock)] {
            let head = ints(&[3, 4, 10, 20, 1, 55, flag, 0], |index| if index < 4 { 8 } else { 4 });
            assert_eq!(head.len(), abi::head_length(op::SETLKW));
            let Some(Operation::SetLock { asked, wait: true, family }) = operation(&asked(op::SETLKW), &head, b"")
            else {
                panic!()
            };
            assert_eq!(asked, LockAsked { handle: 3, owner: 4, start: 10, end: 20, kind: 1, pid: 55 });
            assert_eq!(family, Some(want));
        }
    }

    #[test]
    fn no_request_of_any_length_is_too_short_to_be_refused() {
        for opcode in 0..64 {
            for length in 0..abi::head_length(opcode) {
                // Whatever it says: no panic.
                let _ = operation(&asked(opcode), &vec![0xff; length], &[]);
            }
        }
        assert!(matches!(operation(&asked(999), b"", b""), Some(Operation::Refuse(libc::ENOSYS))));
    }

    #[test]
    fn offer_of_an_old_kernel_has_no_upper_flags() {
        let old = ints(&[7, 35, 4096, 1, 0xff], |_| 4);
        assert_eq!(offer(&old), Some(Offer { version: (7, 35), max_readahead: 4096, flags: 1 }));
        let new = ints(&[7, 43, 4096, abi::init::INIT_EXT, 1 << 9], |_| 4);
        assert_eq!(offer(&new).unwrap().flags, abi::init::INIT_EXT | abi::init::OVER_IO_URING);
        assert!(offer(&new[..12]).is_none());
    }
}
