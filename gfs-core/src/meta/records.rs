//! How the small records of the state lie in tables and checkpoints.
//!
//! This room owns bytes: varints and lengths, no padding, one form for each value (docs/formats/checkpoint.md).
//! Decoding checks everything that an encoder guarantees and never panics.

use super::command::{ServerIdentity, ServerIntent};
use super::request::{
    Attributes, Configuration, FileType, Lock, LockFamily, LockMode, LockOwner, LockRange, Refusal, Reply, Timestamp,
};
use super::servers::ServerRecord;
use super::sessions::{Progress, SessionRecord};
use crate::arena::Record;
use crate::arena::codec::{SliceReader, put_bytes, put_signed, put_varint};
use crate::ids::{ChunkHandle, Epoch, InodeId, ServerId, SessionId};

/// A bare number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Number(pub(crate) u64);

/// The locks held on one file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Held(pub(crate) Vec<Lock>);

/// Runs a reader over all of `bytes`.
fn whole<T>(bytes: &[u8], read: impl FnOnce(&mut SliceReader<'_>) -> Option<T>) -> Option<T> {
    let mut reader = SliceReader(bytes);
    let value = read(&mut reader)?;
    reader.0.is_empty().then_some(value)
}

fn flag(reader: &mut SliceReader<'_>) -> Option<bool> {
    match reader.byte()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn text(reader: &mut SliceReader<'_>) -> Option<String> {
    String::from_utf8(reader.bytes()?.to_vec()).ok()
}

fn number16(reader: &mut SliceReader<'_>) -> Option<u16> {
    u16::try_from(reader.varint()?).ok()
}

impl Record for Number {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.0);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| Some(Self(reader.varint()?)))
    }
}

impl Record for ServerRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.server.0));
        out.extend_from_slice(&self.identity.uuid.to_le_bytes());
        for text in [&self.identity.address, &self.identity.http, &self.identity.zone, &self.identity.host] {
            put_bytes(out, text.as_bytes());
        }
        out.push(match self.intent {
            ServerIntent::Active => 0,
            ServerIntent::Draining => 1,
        });
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| {
            let server = ServerId(number16(reader)?);
            let uuid = u128::from_le_bytes(reader.take(16)?.try_into().ok()?);
            let (address, http) = (text(reader)?, text(reader)?);
            let (zone, host) = (text(reader)?, text(reader)?);
            let intent = if flag(reader)? { ServerIntent::Draining } else { ServerIntent::Active };
            Some(Self { server, identity: ServerIdentity { uuid, address, http, zone, host }, intent })
        })
    }
}

impl Record for SessionRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.session.0);
        out.extend_from_slice(&self.nonce.to_le_bytes());
        put_bytes(out, self.description.as_bytes());
        put_signed(out, self.opened.0);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| {
            Some(Self {
                session: SessionId(reader.varint()?),
                nonce: u64::from_le_bytes(reader.take(8)?.try_into().ok()?),
                description: text(reader)?,
                opened: Timestamp(reader.signed()?),
            })
        })
    }
}

impl Record for Progress {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.trimmed);
        put_varint(out, u64::from(self.replies));
        // Each range as its distance from the one before: neither distance nor length is 0.
        let mut last = self.trimmed;
        for (first, end) in &self.forgotten {
            put_varint(out, first - last);
            put_varint(out, end - first);
            last = *end;
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| {
            let mut progress = Self { trimmed: reader.varint()?, replies: reader.varint32()?, forgotten: Vec::new() };
            let mut last = progress.trimmed;
            while !reader.0.is_empty() {
                let gap = reader.varint().filter(|gap| *gap > 1)?;
                let first = last.checked_add(gap)?;
                let end = first.checked_add(reader.varint()?)?;
                progress.forgotten.push((first, end));
                last = end;
            }
            Some(progress)
        })
    }
}

impl Record for Held {
    fn encode(&self, out: &mut Vec<u8>) {
        for lock in &self.0 {
            let write = lock.mode == LockMode::Write;
            let record = lock.family == LockFamily::Record;
            out.push(u8::from(record) | u8::from(write) << 1);
            put_varint(out, lock.owner.session.0);
            put_varint(out, lock.owner.owner);
            put_varint(out, u64::from(lock.pid));
            put_varint(out, lock.range.start);
            // The usual end of a lock is the end of the file: as 0.
            put_varint(out, lock.range.end.wrapping_add(1));
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = SliceReader(bytes);
        let mut locks: Vec<Lock> = Vec::new();
        while !reader.0.is_empty() {
            let kind = reader.byte().filter(|kind| *kind < 4)?;
            let owner = LockOwner { session: SessionId(reader.varint()?), owner: reader.varint()? };
            let pid = reader.varint32()?;
            let range = LockRange { start: reader.varint()?, end: reader.varint()?.wrapping_sub(1) };
            let family = if kind & 1 != 0 { LockFamily::Record } else { LockFamily::Flock };
            let mode = if kind & 2 != 0 { LockMode::Write } else { LockMode::Read };
            if range.start > range.end {
                return None;
            }
            locks.push(Lock { family, owner, pid, mode, range });
        }
        let sorted = locks.windows(2).all(|pair| lock_key(&pair[0]) < lock_key(&pair[1]));
        (sorted && !locks.is_empty()).then_some(Self(locks))
    }
}

/// The order of locks on a file.
pub(crate) fn lock_key(lock: &Lock) -> (LockFamily, LockOwner, u64) {
    (lock.family, lock.owner, lock.range.start)
}

impl Record for Reply {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Done => out.push(0),
            Self::Entry { attributes, created } => {
                out.push(1);
                out.push(u8::from(*created));
                put_attributes(out, attributes);
            }
            Self::Attributes { attributes, pending_shrink } => {
                out.push(2);
                out.push(u8::from(*pending_shrink));
                put_attributes(out, attributes);
            }
            Self::Chunks(chunks) => {
                out.push(3);
                for (handle, configuration) in chunks {
                    out.extend_from_slice(&handle.0.to_le_bytes());
                    put_configuration(out, configuration);
                }
            }
            Self::Refused(refusal) => out.extend_from_slice(&[4, refusal_byte(*refusal)]),
            Self::Flushed(refused) => {
                out.push(5);
                for (at, refusal) in refused {
                    put_varint(out, u64::from(*at));
                    out.push(refusal_byte(*refusal));
                }
            }
            Self::Inodes(first) => {
                out.push(6);
                put_varint(out, first.0);
            }
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        whole(bytes, |reader| match reader.byte()? {
            0 => Some(Self::Done),
            1 => Some(Self::Entry { created: flag(reader)?, attributes: attributes(reader)? }),
            2 => Some(Self::Attributes { pending_shrink: flag(reader)?, attributes: attributes(reader)? }),
            3 => {
                let mut chunks = Vec::new();
                while !reader.0.is_empty() {
                    let handle = u64::from_le_bytes(reader.take(8)?.try_into().ok()?);
                    chunks.push((ChunkHandle(handle), configuration(reader)?));
                }
                Some(Self::Chunks(chunks))
            }
            4 => {
                let byte = reader.byte()?;
                let refusal = REFUSALS.get(usize::from(byte))?;
                Some(Self::Refused(*refusal))
            }
            5 => {
                let mut refused = Vec::new();
                while !reader.0.is_empty() {
                    let at = reader.varint32()?;
                    refused.push((at, *REFUSALS.get(usize::from(reader.byte()?))?));
                }
                Some(Self::Flushed(refused))
            }
            6 => Some(Self::Inodes(InodeId(reader.varint()?))),
            _ => None,
        })
    }
}

/// Appends a configuration: epoch, primary, members, syncing members.
pub(crate) fn put_configuration(out: &mut Vec<u8>, configuration: &Configuration) {
    put_varint(out, u64::from(configuration.epoch.0));
    put_varint(out, u64::from(configuration.primary.0));
    for servers in [&configuration.members, &configuration.syncing] {
        put_varint(out, servers.len() as u64);
        for server in servers {
            put_varint(out, u64::from(server.0));
        }
    }
}

/// Reads what `put_configuration` wrote; refuses one that is not [valid](super::chunks::is_valid).
pub(crate) fn configuration(reader: &mut SliceReader<'_>) -> Option<Configuration> {
    let epoch = Epoch(reader.varint32()?);
    let primary = ServerId(number16(reader)?);
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        for _ in 0..reader.varint()? {
            list.push(ServerId(number16(reader)?));
        }
    }
    let [members, syncing] = lists;
    let configuration = Configuration { epoch, primary, members, syncing };
    super::chunks::is_valid(&configuration).then_some(configuration)
}

fn put_attributes(out: &mut Vec<u8>, of: &Attributes) {
    out.push(of.file_type as u8);
    out.push(u8::from(of.has_acl) | u8::from(of.has_xattrs) << 1);
    out.push(of.replicas);
    out.extend_from_slice(&of.inode.0.to_le_bytes());
    for small in [u64::from(of.mode), u64::from(of.links), u64::from(of.uid), u64::from(of.gid), u64::from(of.rdev)] {
        put_varint(out, small);
    }
    put_varint(out, of.size);
    put_varint(out, of.allocated);
    for time in [of.atime, of.mtime, of.ctime, of.btime] {
        out.extend_from_slice(&time.0.to_le_bytes());
    }
}

fn attributes(reader: &mut SliceReader<'_>) -> Option<Attributes> {
    let file_type = file_type(reader.byte()?)?;
    let flags = reader.byte().filter(|flags| *flags < 4)?;
    let replicas = reader.byte()?;
    let inode = InodeId(u64::from_le_bytes(reader.take(8)?.try_into().ok()?));
    let mode = number16(reader)?;
    let (links, uid, gid) = (reader.varint32()?, reader.varint32()?, reader.varint32()?);
    let rdev = reader.varint32()?;
    let (size, allocated) = (reader.varint()?, reader.varint()?);
    let mut times = [Timestamp(0); 4];
    for time in &mut times {
        *time = Timestamp(i64::from_le_bytes(reader.take(8)?.try_into().ok()?));
    }
    let [atime, mtime, ctime, btime] = times;
    let (has_acl, has_xattrs) = (flags & 1 != 0, flags & 2 != 0);
    #[rustfmt::skip]
    let attributes = Attributes {
        inode, file_type, mode, links, uid, gid, rdev, size, allocated, atime, mtime, ctime, btime, replicas, has_acl,
        has_xattrs,
    };
    Some(attributes)
}

fn file_type(byte: u8) -> Option<FileType> {
    use FileType::{BlockDevice, CharDevice, Directory, Fifo, File, Socket, Symlink};
    [Fifo, CharDevice, Directory, BlockDevice, File, Symlink, Socket].into_iter().find(|kind| *kind as u8 == byte)
}

/// Refusals by their byte: append only.
const REFUSALS: [Refusal; 23] = [
    Refusal::NotFound,
    Refusal::Exists,
    Refusal::NotDirectory,
    Refusal::IsDirectory,
    Refusal::NotEmpty,
    Refusal::Access,
    Refusal::NotPermitted,
    Refusal::Invalid,
    Refusal::NameTooLong,
    Refusal::TooManyLinks,
    Refusal::TooLarge,
    Refusal::NoSpace,
    Refusal::Quota,
    Refusal::NoData,
    Refusal::XattrTooLarge,
    Refusal::NotSupported,
    Refusal::WouldBlock,
    Refusal::Deadlock,
    Refusal::NoLocks,
    Refusal::Interrupted,
    Refusal::Stale,
    Refusal::SessionExpired,
    Refusal::ReadOnly,
];

fn refusal_byte(refusal: Refusal) -> u8 {
    // Declared in the same order; a test compares each.
    refusal as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(record: &impl Record) -> Vec<u8> {
        let mut out = Vec::new();
        record.encode(&mut out);
        out
    }

    fn sample() -> Attributes {
        Attributes {
            inode: InodeId(0x0001_0000_0000_0007),
            file_type: FileType::File,
            mode: 0o644,
            links: 1,
            uid: 1000,
            gid: 100,
            rdev: 0,
            size: 300,
            allocated: 300,
            atime: Timestamp(1),
            mtime: Timestamp(-1),
            ctime: Timestamp(i64::MAX),
            btime: Timestamp(0),
            replicas: 3,
            has_acl: false,
            has_xattrs: true,
        }
    }

    #[test]
    fn each_refusal_has_its_own_byte() {
        for (byte, refusal) in REFUSALS.iter().enumerate() {
            assert_eq!(usize::from(refusal_byte(*refusal)), byte);
        }
        assert_eq!(Reply::decode(&[4, REFUSALS.len() as u8]), None);
    }

    #[test]
    fn replies_come_back_as_they_were() {
        let configuration = Configuration {
            epoch: Epoch(4),
            primary: ServerId(2),
            members: vec![ServerId(1), ServerId(2)],
            syncing: vec![],
        };
        for reply in [
            Reply::Done,
            Reply::Entry { attributes: sample(), created: true },
            Reply::Attributes { attributes: sample(), pending_shrink: true },
            Reply::Chunks(vec![(ChunkHandle(9), configuration)]),
            Reply::Refused(Refusal::ReadOnly),
            Reply::Flushed(vec![(3, Refusal::Stale)]),
            Reply::Inodes(InodeId(1 << 50)),
        ] {
            assert_eq!(Reply::decode(&bytes_of(&reply)), Some(reply));
        }
    }

    #[test]
    fn small_records_have_the_bytes_they_always_had() {
        let progress = Progress { trimmed: 5, replies: 2, forgotten: vec![(7, 7), (300, 301)] };
        assert_eq!(bytes_of(&progress), [5, 2, 2, 0, 0xa5, 2, 1]);
        assert_eq!(Progress::decode(&bytes_of(&progress)), Some(progress));
        let lock = Lock {
            family: LockFamily::Record,
            owner: LockOwner { session: SessionId(3), owner: 200 },
            pid: 9,
            mode: LockMode::Write,
            range: LockRange { start: 4, end: u64::MAX },
        };
        assert_eq!(bytes_of(&Held(vec![lock])), [3, 3, 0xc8, 1, 9, 4, 0]);
        assert_eq!(Held::decode(&[3, 3, 0xc8, 1, 9, 4, 0]), Some(Held(vec![lock])));
        assert_eq!(bytes_of(&Reply::Refused(Refusal::Stale)), [4, 20]);
    }

    proptest! {
        #[test]
        fn noise_decodes_to_its_own_bytes_or_not_at_all(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(reply) = Reply::decode(&bytes) {
                prop_assert_eq!(&bytes_of(&reply), &bytes);
            }
            if let Some(held) = Held::decode(&bytes) {
                prop_assert_eq!(&bytes_of(&held), &bytes);
            }
            if let Some(progress) = Progress::decode(&bytes) {
                prop_assert_eq!(&bytes_of(&progress), &bytes);
            }
            prop_assert!(ServerRecord::decode(&bytes).is_none_or(|record| bytes_of(&record) == bytes));
            prop_assert!(SessionRecord::decode(&bytes).is_none_or(|record| bytes_of(&record) == bytes));
        }
    }
}
