//! The record of an inode and its bytes.

use super::promise::Promise;
use crate::arena::Record;
use crate::arena::codec::{SliceReader, put_signed, put_varint};
use crate::ids::InodeId;
use crate::meta::request::{Attributes, FileType, Timestamp};

/// It has an access ACL that says more than its mode.
pub const ACCESS_ACL: u8 = 1;
/// It has a default ACL.
pub const DEFAULT_ACL: u8 = 2;
/// It has extended attributes, ACLs included.
pub const XATTRS: u8 = 4;
/// In the bytes of a record: a promise follows.
const PROMISE: u8 = 8;
const FLAGS: u8 = ACCESS_ACL | DEFAULT_ACL | XATTRS;

/// Set-user-id.
pub const SET_UID: u16 = 0o4000;
/// Set-group-id.
pub const SET_GID: u16 = 0o2000;
/// Sticky.
pub const STICKY: u16 = 0o1000;
/// Execute for the group.
pub const GROUP_EXECUTE: u16 = 0o010;

/// A directory grows by blocks of this many bytes.
const DIRECTORY_BLOCK: u64 = 4096;
/// What a name is taken to need of them.
const DIRECTORY_ENTRY: u64 = 32;

/// An inode. Its number is the key of its table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    pub file_type: FileType,
    /// Low 12 bits.
    pub mode: u16,
    pub flags: u8,
    pub replicas: u8,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a file or of a link's target; 0 for others.
    pub size: u64,
    /// Bytes that the chunks of a file hold, in whole blocks.
    pub allocated: u64,
    /// Of a file.
    pub promise: Promise,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    /// Number of a device.
    pub rdev: u32,
    /// Of a directory: what its `..` is.
    pub parent: InodeId,
    /// Of a directory: how many names it has.
    pub entries: u64,
}

impl Inode {
    /// A fresh inode with one link, owned by root.
    pub fn new(file_type: FileType, mode: u16, now: Timestamp) -> Self {
        Self {
            file_type,
            mode,
            flags: 0,
            replicas: 0,
            links: 1,
            uid: 0,
            gid: 0,
            size: 0,
            allocated: 0,
            promise: Promise::default(),
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            rdev: 0,
            parent: InodeId(0),
            entries: 0,
        }
    }

    pub fn is_directory(&self) -> bool {
        self.file_type == FileType::Directory
    }

    /// What `stat` shows. A directory's size follows the number of its names.
    pub fn attributes(&self, inode: InodeId) -> Attributes {
        let blocks = directory_size(self.entries);
        let allocated = self.allocated.max(self.promise.bytes());
        let (size, allocated) = if self.is_directory() { (blocks, blocks) } else { (self.size, allocated) };
        Attributes {
            inode,
            file_type: self.file_type,
            mode: self.mode,
            links: self.links,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size,
            allocated,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            replicas: self.replicas,
            has_acl: self.flags & (ACCESS_ACL | DEFAULT_ACL) != 0,
            has_xattrs: self.flags != 0,
        }
    }

    /// Takes the set-id bits that content written by an unprivileged user must not keep: set-user-id, and
    /// set-group-id where it means execution.
    pub fn clear_set_id(&mut self) {
        self.mode &= !SET_UID;
        if self.mode & GROUP_EXECUTE != 0 {
            self.mode &= !SET_GID;
        }
    }
}

/// The size of a directory with so many names.
pub fn directory_size(entries: u64) -> u64 {
    let names = entries.saturating_mul(DIRECTORY_ENTRY).max(1);
    names.div_ceil(DIRECTORY_BLOCK).saturating_mul(DIRECTORY_BLOCK)
}

fn file_type(raw: u16) -> Option<FileType> {
    Some(match raw {
        1 => FileType::Fifo,
        2 => FileType::CharDevice,
        4 => FileType::Directory,
        6 => FileType::BlockDevice,
        8 => FileType::File,
        10 => FileType::Symlink,
        12 => FileType::Socket,
        _ => return None,
    })
}

/// Layout: flags; type and mode (u16, little endian); replicas; links, uid, gid (varints); btime (i64, little
/// endian), then ctime, mtime and atime, each as the signed varint of its difference to the one before; then by
/// type: file: size, allocated, and start and end of the promise if the flags (8) tell of one; link: size; directory: parent, entries; device: rdev (varints). The upper bits of
/// the flags are free for fields to come.
impl Record for Inode {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.flags | if self.promise.is_empty() { 0 } else { PROMISE });
        out.extend_from_slice(&((self.file_type as u16) << 12 | self.mode).to_le_bytes());
        out.push(self.replicas);
        for value in [self.links, self.uid, self.gid] {
            put_varint(out, u64::from(value));
        }
        out.extend_from_slice(&self.btime.0.to_le_bytes());
        let times = [self.btime, self.ctime, self.mtime, self.atime];
        for pair in times.windows(2) {
            put_signed(out, pair[1].0.wrapping_sub(pair[0].0));
        }
        match self.file_type {
            FileType::File => {
                put_varint(out, self.size);
                put_varint(out, self.allocated);
                if !self.promise.is_empty() {
                    put_varint(out, self.promise.start);
                    put_varint(out, self.promise.end);
                }
            }
            FileType::Symlink => put_varint(out, self.size),
            FileType::Directory => {
                put_varint(out, self.parent.0);
                put_varint(out, self.entries);
            }
            FileType::CharDevice | FileType::BlockDevice => put_varint(out, u64::from(self.rdev)),
            FileType::Fifo | FileType::Socket => {}
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = SliceReader(bytes);
        let flags = reader.byte()?;
        let raw = u16::from_le_bytes([reader.byte()?, reader.byte()?]);
        let mut inode = Self::new(file_type(raw >> 12)?, raw & 0o7777, Timestamp(0));
        inode.flags = flags & !PROMISE;
        inode.replicas = reader.byte()?;
        (inode.links, inode.uid, inode.gid) = (reader.varint32()?, reader.varint32()?, reader.varint32()?);
        let mut btime = [0; 8];
        btime.copy_from_slice(reader.take(8)?);
        let mut time = i64::from_le_bytes(btime);
        inode.btime = Timestamp(time);
        for field in [&mut inode.ctime, &mut inode.mtime, &mut inode.atime] {
            time = time.wrapping_add(reader.signed()?);
            *field = Timestamp(time);
        }
        match inode.file_type {
            FileType::File => {
                (inode.size, inode.allocated) = (reader.varint()?, reader.varint()?);
                if flags & PROMISE != 0 {
                    inode.promise = Promise { start: reader.varint()?, end: reader.varint()? };
                }
            }
            FileType::Symlink => inode.size = reader.varint()?,
            FileType::Directory => (inode.parent, inode.entries) = (InodeId(reader.varint()?), reader.varint()?),
            FileType::CharDevice | FileType::BlockDevice => inode.rdev = reader.varint32()?,
            FileType::Fifo | FileType::Socket => {}
        }
        let promised = if inode.promise.is_empty() { 0 } else { PROMISE };
        (reader.0.is_empty() && flags & !FLAGS == promised).then_some(inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_inode_comes_back_from_its_bytes() {
        for raw in [1, 2, 4, 6, 8, 10, 12] {
            let mut inode = Inode::new(file_type(raw).expect("a type"), 0o7421, Timestamp(i64::MIN));
            (inode.uid, inode.gid, inode.links) = (u32::MAX, 65_534, 70_000);
            (inode.ctime, inode.mtime, inode.atime) = (Timestamp(i64::MAX), Timestamp(-1), Timestamp(0));
            (inode.flags, inode.replicas) = (FLAGS, 255);
            match inode.file_type {
                FileType::File => {
                    (inode.size, inode.allocated) = (u64::MAX, 1 << 40);
                    inode.promise = Promise { start: 5, end: 1 << 41 };
                }
                FileType::Symlink => inode.size = 4095,
                FileType::Directory => (inode.parent, inode.entries) = (InodeId(u64::MAX), 1 << 33),
                FileType::CharDevice | FileType::BlockDevice => inode.rdev = u32::MAX,
                FileType::Fifo | FileType::Socket => {}
            }
            let mut bytes = Vec::new();
            inode.encode(&mut bytes);
            assert_eq!(Inode::decode(&bytes), Some(inode));
            for length in 0..bytes.len() {
                assert_eq!(Inode::decode(&bytes[..length]), None, "cut to {length}");
            }
            bytes.push(0);
            assert_eq!(Inode::decode(&bytes), None);
        }
    }

    #[test]
    fn the_bytes_of_a_fresh_file_are_golden() {
        let mut inode = Inode::new(FileType::File, 0o644, Timestamp(0x0102_0304_0506_0708));
        (inode.uid, inode.gid, inode.replicas) = (1000, 1000, 3);
        let mut bytes = Vec::new();
        inode.encode(&mut bytes);
        let golden = [0, 0xa4, 0x81, 3, 1, 0xe8, 7, 0xe8, 7, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0];
        assert_eq!(bytes, golden);
    }

    #[test]
    fn a_directory_grows_with_its_names() {
        let mut inode = Inode::new(FileType::Directory, 0o755, Timestamp(0));
        assert_eq!(inode.attributes(InodeId(1)).size, 4096);
        inode.entries = 129;
        assert_eq!(inode.attributes(InodeId(1)).size, 8192);
    }
}
