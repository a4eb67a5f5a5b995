//! Answers as replies of `fuser`.

use crate::errno::{Errno, Result};
use crate::fs::attributes;
use crate::ops::reply::{Answer, Entry, NodeAttributes, Passage, Reply};
use crate::transport::session::mismatch;
use fuser::{
    FileAttr, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use gfs_client::FileType;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};

/// Inode numbers are never reused, so every generation is the same.
const GENERATION: Generation = Generation(0);

/// A reply of `fuser`, of the kind that fits the request.
pub(super) enum Replies {
    Attr(ReplyAttr),
    Data(ReplyData),
    Directory(ReplyDirectory),
    DirectoryPlus(ReplyDirectoryPlus),
    Empty(ReplyEmpty),
    Entry(ReplyEntry),
    Lock(ReplyLock),
    Lseek(ReplyLseek),
    Statfs(ReplyStatfs),
    Write(ReplyWrite),
    Xattr(ReplyXattr),
    Open(ReplyOpen, Arc<OnceLock<FopenFlags>>),
    Create(ReplyCreate, Arc<OnceLock<FopenFlags>>),
}

impl Replies {
    fn error(self, errno: Errno) {
        let errno = fuser::Errno::from_i32(errno.0);
        match self {
            Self::Attr(reply) => reply.error(errno),
            Self::Data(reply) => reply.error(errno),
            Self::Directory(reply) => reply.error(errno),
            Self::DirectoryPlus(reply) => reply.error(errno),
            Self::Empty(reply) => reply.error(errno),
            Self::Entry(reply) => reply.error(errno),
            Self::Lock(reply) => reply.error(errno),
            Self::Lseek(reply) => reply.error(errno),
            Self::Statfs(reply) => reply.error(errno),
            Self::Write(reply) => reply.error(errno),
            Self::Xattr(reply) => reply.error(errno),
            Self::Open(reply, _) => reply.error(errno),
            Self::Create(reply, _) => reply.error(errno),
        }
    }
}

impl Reply for Replies {
    fn send(self: Box<Self>, answer: Result<Answer<'_>>) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(errno) => return self.error(errno),
        };
        match (*self, answer) {
            (Self::Empty(reply), Answer::Done) => reply.ok(),
            (Self::Entry(reply), Answer::Entry(Entry { attributes, ttl })) => {
                reply.entry(&ttl, &file_attr(&attributes), GENERATION);
            }
            (Self::Attr(reply), Answer::Attributes(attributes, ttl)) => reply.attr(&ttl, &file_attr(&attributes)),
            (Self::Open(reply, direct), Answer::Opened(handle, passage)) => {
                reply.opened(FileHandle(handle), flags_of(passage, &direct));
            }
            (Self::Open(reply, _), Answer::OpenedDirectory(handle)) => {
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            (Self::Create(reply, direct), Answer::Created(Entry { attributes, ttl }, handle)) => {
                let flags = flags_of(Passage::Direct, &direct);
                reply.created(&ttl, &file_attr(&attributes), GENERATION, FileHandle(handle), flags);
            }
            (Self::Data(reply), Answer::Data(bytes)) => reply.data(bytes),
            (Self::Write(reply), Answer::Written(count)) => reply.written(count),
            (Self::Xattr(reply), Answer::Length(length)) => reply.size(length),
            (Self::Xattr(reply), Answer::Data(value)) => reply.data(value),
            (Self::Statfs(reply), Answer::Usage(usage)) => reply.statfs(
                usage.blocks,
                usage.blocks_free,
                usage.blocks_free,
                usage.inodes,
                usage.inodes_free,
                attributes::BLOCK_SIZE,
                attributes::NAME_MAX,
                attributes::BLOCK_SIZE,
            ),
            (Self::Lock(reply), Answer::Lock(held)) => reply.locked(held.start, held.end, held.kind, held.pid),
            (Self::Lseek(reply), Answer::Offset(offset)) => reply.offset(offset),
            (Self::Directory(mut reply), Answer::Names(names)) => {
                for name in names {
                    let of = kind(name.kind);
                    if reply.add(INodeNo(name.inode), name.offset, of, OsStr::from_bytes(name.name)) {
                        break;
                    }
                }
                reply.ok();
            }
            (Self::DirectoryPlus(mut reply), Answer::NamesPlus(names)) => {
                for (name, Entry { attributes, ttl }) in names {
                    let attr = file_attr(&attributes);
                    if reply.add(attr.ino, name.offset, OsStr::from_bytes(name.name), &ttl, &attr, GENERATION) {
                        break;
                    }
                }
                reply.ok();
            }
            (reply, _) => reply.error(mismatch()),
        }
    }
}

fn flags_of(passage: Passage, direct: &OnceLock<FopenFlags>) -> FopenFlags {
    match passage {
        Passage::Direct => direct.get().copied().unwrap_or(FopenFlags::empty()),
        Passage::Pages(true) => FopenFlags::FOPEN_KEEP_CACHE,
        Passage::Pages(false) => FopenFlags::empty(),
    }
}

fn kind(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::Directory => fuser::FileType::Directory,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::File => fuser::FileType::RegularFile,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Socket => fuser::FileType::Socket,
    }
}

fn file_attr(of: &NodeAttributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(of.inode),
        size: of.size,
        blocks: of.blocks,
        atime: attributes::to_system_time(of.atime),
        mtime: attributes::to_system_time(of.mtime),
        ctime: attributes::to_system_time(of.ctime),
        crtime: attributes::to_system_time(of.btime),
        kind: kind(of.kind),
        perm: of.permissions,
        nlink: of.links,
        uid: of.uid,
        gid: of.gid,
        rdev: of.rdev,
        blksize: of.block_size,
        flags: 0,
    }
}
