//! Answers as the kernel reads them. Pure.

use super::abi::{self, op};
use crate::errno::Result;
use crate::fs::attributes;
use crate::ops::reply::{Answer, Entry, ListedName, NodeAttributes, Passage};
use crate::transport::session::mismatch;
use gfs_client::{FileType, Timestamp};
use std::time::Duration;

/// What an answer has to fit to.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The request's.
    pub opcode: u32,
    /// Room for names and data, in bytes.
    pub room: usize,
    /// FOPEN_* of files that go past the page cache.
    pub direct: u32,
}

impl Shape {
    /// The shape of the answer to a request.
    pub fn of(opcode: u32, head: &[u8], direct: u32) -> Self {
        let size = |at: usize| head.get(at..at + 4).map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().unwrap()));
        let room = match opcode {
            op::READ | op::READDIR | op::READDIRPLUS => size(16),
            op::GETXATTR | op::LISTXATTR => size(0),
            op::READLINK => 4096,
            _ => 0,
        };
        Self { opcode, room: room as usize, direct }
    }
}

/// Where an answer is written to: a buffer of fixed length.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl<'a> Writer<'a> {
    /// Writes from the start of a buffer.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, length: 0 }
    }

    /// Bytes written.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Appends; false if there is no room, and then nothing is written.
    fn put(&mut self, bytes: &[u8]) -> bool {
        let end = self.length + bytes.len();
        let Some(place) = self.buffer.get_mut(self.length..end) else { return false };
        place.copy_from_slice(bytes);
        self.length = end;
        true
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_ne_bytes());
        self
    }

    fn zeros(&mut self, count: usize) -> &mut Self {
        self.put(&[0; 128][..count]);
        self
    }
}

/// Room for the largest answer that is not names or data.
pub const SMALL: usize = 320;

/// Writes an answer; `None` if it does not fit the request. Nothing is copied of `Answer::Data`, which is given back.
pub fn answer<'a>(shape: &Shape, answer: Answer<'a>, out: &mut Writer<'_>) -> Option<&'a [u8]> {
    let opcode = shape.opcode;
    match answer {
        Answer::Done => {}
        Answer::Entry(found) => entry(out, &found),
        Answer::Attributes(of, ttl) if opcode == op::STATX => statx(out, &of, ttl),
        Answer::Attributes(of, ttl) => {
            out.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0);
            attr(out, &of);
        }
        Answer::Opened(handle, passage) => {
            let flags = match passage {
                Passage::Direct => shape.direct,
                Passage::Pages(true) => abi::FOPEN_KEEP_CACHE,
                Passage::Pages(false) => 0,
            };
            out.u64(handle).u32(flags).u32(0);
        }
        Answer::OpenedDirectory(handle) => {
            out.u64(handle).u64(0);
        }
        Answer::Created(found, handle) => {
            entry(out, &found);
            out.u64(handle).u32(shape.direct).u32(0);
        }
        Answer::Data(bytes) => {
            let fits = bytes.len() <= shape.room || opcode == op::READLINK;
            return fits.then_some(bytes);
        }
        Answer::Written(count) => {
            out.u32(count).u32(0);
        }
        Answer::Length(length) => {
            out.u32(length).u32(0);
        }
        Answer::Usage(usage) => {
            out.u64(usage.blocks).u64(usage.blocks_free).u64(usage.blocks_free);
            out.u64(usage.inodes).u64(usage.inodes_free);
            out.u32(attributes::BLOCK_SIZE).u32(attributes::NAME_MAX).u32(attributes::BLOCK_SIZE);
            out.zeros(28);
        }
        Answer::Lock(held) => {
            out.u64(held.start).u64(held.end).u32(held.kind.cast_unsigned()).u32(held.pid);
        }
        Answer::Offset(offset) => {
            out.u64(offset.cast_unsigned());
        }
        Answer::Names(names) => {
            for name in names {
                if out.length() + dirent_length(&name) > shape.room {
                    break;
                }
                dirent(out, &name);
            }
        }
        Answer::NamesPlus(names) => {
            for (name, found) in names {
                if out.length() + ENTRY + dirent_length(&name) > shape.room {
                    break;
                }
                entry(out, &found);
                dirent(out, &name);
            }
        }
    }
    Some(&[])
}

/// The whole answer in a buffer, its length; the errno if there is one.
pub fn whole(shape: &Shape, result: Result<Answer<'_>>, buffer: &mut [u8]) -> Result<usize> {
    let mut out = Writer::new(buffer);
    let data = answer(shape, result?, &mut out).ok_or_else(mismatch)?;
    if out.put(data) { Ok(out.length()) } else { Err(mismatch()) }
}

/// Length of an entry.
const ENTRY: usize = 128;

fn time(out: &mut Writer<'_>, time: Timestamp) -> u32 {
    out.u64(time.0.div_euclid(1_000_000_000).cast_unsigned());
    time.0.rem_euclid(1_000_000_000) as u32
}

fn attr(out: &mut Writer<'_>, of: &NodeAttributes) {
    out.u64(of.inode).u64(of.size).u64(of.blocks);
    let nanoseconds = [of.atime, of.mtime, of.ctime].map(|at| time(out, at));
    for part in nanoseconds {
        out.u32(part);
    }
    out.u32(mode(of)).u32(of.links).u32(of.uid).u32(of.gid).u32(of.rdev).u32(of.block_size).u32(0);
}

fn mode(of: &NodeAttributes) -> u32 {
    kind(of.kind) | u32::from(of.permissions)
}

fn kind(kind: FileType) -> u32 {
    match kind {
        FileType::Fifo => libc::S_IFIFO,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::Directory => libc::S_IFDIR,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::File => libc::S_IFREG,
        FileType::Symlink => libc::S_IFLNK,
        FileType::Socket => libc::S_IFSOCK,
    }
}

fn entry(out: &mut Writer<'_>, Entry { attributes, ttl }: &Entry) {
    // Inode numbers are never reused, so every generation is 0.
    out.u64(attributes.inode).u64(0).u64(ttl.as_secs()).u64(ttl.as_secs());
    out.u32(ttl.subsec_nanos()).u32(ttl.subsec_nanos());
    attr(out, attributes);
}

fn statx(out: &mut Writer<'_>, of: &NodeAttributes, ttl: Duration) {
    out.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0).zeros(16);
    out.u32(abi::STATX_MASK).u32(of.block_size).u64(0).u32(of.links).u32(of.uid).u32(of.gid);
    // The upper half is a spare field.
    out.put(&(mode(of) as u16).to_ne_bytes());
    out.zeros(2).u64(of.inode).u64(of.size).u64(of.blocks).u64(0);
    for at in [of.atime, of.btime, of.ctime, of.mtime] {
        let nanoseconds = time(out, at);
        out.u32(nanoseconds).u32(0);
    }
    let device = u64::from(of.rdev);
    out.u32(libc::major(device)).u32(libc::minor(device)).u64(0).zeros(112);
}

fn dirent_length(name: &ListedName<'_>) -> usize {
    (24 + name.name.len()).next_multiple_of(8)
}

fn dirent(out: &mut Writer<'_>, name: &ListedName<'_>) {
    out.u64(name.inode).u64(name.offset).u32(name.name.len() as u32).u32(kind(name.kind) >> 12);
    out.put(name.name);
    out.zeros(dirent_length(name) - 24 - name.name.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::Errno;

    fn node() -> NodeAttributes {
        NodeAttributes {
            inode: 7,
            size: 100,
            blocks: 8,
            atime: Timestamp(-1),
            mtime: Timestamp(2_000_000_003),
            ctime: Timestamp(4),
            btime: Timestamp(5),
            kind: FileType::Directory,
            permissions: 0o755,
            links: 2,
            uid: 10,
            gid: 20,
            rdev: 0,
            block_size: 4096,
        }
    }

    fn shape(opcode: u32, room: usize) -> Shape {
        Shape { opcode, room, direct: 1 }
    }

    fn written(shape: &Shape, given: Answer<'_>) -> Vec<u8> {
        let mut buffer = vec![0xee; 4096];
        let length = whole(shape, Ok(given), &mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn lengths_are_those_of_the_kernel() {
        let found = Entry { attributes: node(), ttl: Duration::from_millis(1500) };
        assert_eq!(written(&shape(op::LOOKUP, 0), Answer::Entry(found)).len(), ENTRY);
        assert_eq!(written(&shape(op::GETATTR, 0), Answer::Attributes(node(), Duration::ZERO)).len(), 104);
        assert_eq!(written(&shape(op::STATX, 0), Answer::Attributes(node(), Duration::ZERO)).len(), 288);
        assert_eq!(written(&shape(op::CREATE, 0), Answer::Created(found, 3)).len(), ENTRY + 16);
        assert_eq!(written(&shape(op::OPEN, 0), Answer::Opened(3, Passage::Direct)).len(), 16);
        let usage = crate::fs::Usage { blocks: 1, blocks_free: 2, inodes: 3, inodes_free: 4 };
        assert_eq!(written(&shape(op::STATFS, 0), Answer::Usage(usage)).len(), 80);
        const { assert!(SMALL >= 288) };
    }

    #[test]
    fn times_before_1970_count_their_nanoseconds_upwards() {
        let bytes = written(&shape(op::GETATTR, 0), Answer::Attributes(node(), Duration::from_millis(1500)));
        assert_eq!((u64_at(&bytes, 0), u32_at(&bytes, 8)), (1, 500_000_000));
        assert_eq!((u64_at(&bytes, 40).cast_signed(), u32_at(&bytes, 64)), (-1, 999_999_999));
        assert_eq!((u64_at(&bytes, 48), u32_at(&bytes, 68)), (2, 3));
        assert_eq!(u32_at(&bytes, 76), libc::S_IFDIR | 0o755);
    }

    #[test]
    fn listing_ends_where_the_next_name_does_not_fit() {
        let names = [(1, "a"), (2, "longer name")];
        let listed = names.map(|(offset, name)| ListedName {
            inode: offset + 100,
            offset,
            kind: FileType::File,
            name: name.as_bytes(),
        });
        let all = |room| written(&shape(op::READDIR, room), Answer::Names(&mut listed.iter().copied()));
        assert_eq!((all(31).len(), all(32).len(), all(71).len(), all(72).len()), (0, 32, 32, 72));
        let bytes = all(72);
        assert_eq!((u64_at(&bytes, 32), u64_at(&bytes, 40), u32_at(&bytes, 48), u32_at(&bytes, 52)), (102, 2, 11, 8));
        assert_eq!(&bytes[56..67], b"longer name");
        let found = Entry { attributes: node(), ttl: Duration::ZERO };
        let plus = |room| {
            let mut names = listed.iter().map(|name| (*name, found));
            written(&shape(op::READDIRPLUS, room), Answer::NamesPlus(&mut names)).len()
        };
        assert_eq!((plus(159), plus(160), plus(328)), (0, 160, 328));
    }

    #[test]
    fn more_data_than_was_asked_for_is_an_error() {
        let mut buffer = [0; 16];
        assert_eq!(whole(&shape(op::READ, 4), Ok(Answer::Data(b"1234")), &mut buffer), Ok(4));
        assert_eq!(whole(&shape(op::READ, 3), Ok(Answer::Data(b"1234")), &mut buffer), Err(Errno(libc::EIO)));
        assert_eq!(whole(&shape(op::READ, 99), Ok(Answer::Data(&[0; 17])), &mut buffer), Err(Errno(libc::EIO)));
        assert_eq!(whole(&shape(op::READ, 9), Err(Errno(libc::ENOENT)), &mut buffer), Err(Errno(libc::ENOENT)));
    }

    #[test]
    fn room_is_read_from_the_request() {
        let mut head = vec![0; 40];
        head[16..20].copy_from_slice(&4096_u32.to_ne_bytes());
        assert_eq!(Shape::of(op::READ, &head, 0).room, 4096);
        assert_eq!(Shape::of(op::GETXATTR, &64_u64.to_ne_bytes(), 0).room, 64);
        assert_eq!(Shape::of(op::READ, &[], 0).room, 0);
    }
}
