//! Mutations.

use super::chunks::{family_in, family_out, file_type, placement_from_wire, placement_to_wire};
use super::{ConvertError, narrow, need};
use crate::v1::{self, request::Kind};
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, OperationId, SessionId};
use gfs_core::meta::request as core;

/// The command that a client's mutation stands for.
///
/// # Errors
/// When the message does not fit the contract.
pub fn client_command(session: SessionId, mutation: v1::Mutation) -> Result<core::ClientCommand, ConvertError> {
    Ok(core::ClientCommand {
        id: OperationId { session, operation: mutation.operation },
        confirmed: mutation.confirmed,
        credentials: need("credentials", mutation.credentials)?.into(),
        request: need("request", mutation.request)?.try_into()?,
    })
}

/// A command as a mutation on the wire; the session is the stream's.
pub fn mutation_to_wire(command: &core::ClientCommand) -> v1::Mutation {
    v1::Mutation {
        operation: command.id.operation,
        confirmed: command.confirmed,
        credentials: Some((&command.credentials).into()),
        request: Some((&command.request).into()),
    }
}

fn kind_out(kind: &core::NodeKind) -> v1::NodeKind {
    use core::{FileType, NodeKind};
    let plain = |file_type: FileType| v1::NodeKind { file_type: file_type as u32, ..v1::NodeKind::default() };
    match kind {
        NodeKind::File => plain(FileType::File),
        NodeKind::Directory => plain(FileType::Directory),
        NodeKind::Fifo => plain(FileType::Fifo),
        NodeKind::Socket => plain(FileType::Socket),
        NodeKind::Symlink(target) => v1::NodeKind { target: target.clone().into(), ..plain(FileType::Symlink) },
        NodeKind::CharDevice(rdev) => v1::NodeKind { rdev: *rdev, ..plain(FileType::CharDevice) },
        NodeKind::BlockDevice(rdev) => v1::NodeKind { rdev: *rdev, ..plain(FileType::BlockDevice) },
    }
}

fn kind_in(kind: v1::NodeKind) -> Result<core::NodeKind, ConvertError> {
    use core::{FileType, NodeKind};
    Ok(match file_type(kind.file_type)? {
        FileType::File => NodeKind::File,
        FileType::Directory => NodeKind::Directory,
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
        FileType::Symlink => NodeKind::Symlink(kind.target.into()),
        FileType::CharDevice => NodeKind::CharDevice(kind.rdev),
        FileType::BlockDevice => NodeKind::BlockDevice(kind.rdev),
    })
}

fn time_out(time: core::SetTime) -> v1::SetTime {
    match time {
        core::SetTime::Now => v1::SetTime { now: true, at_ns: 0 },
        core::SetTime::At(at) => v1::SetTime { now: false, at_ns: at.0 },
    }
}

fn time_in(time: v1::SetTime) -> core::SetTime {
    if time.now { core::SetTime::Now } else { core::SetTime::At(core::Timestamp(time.at_ns)) }
}

fn changes_out(inode: InodeId, changes: &core::AttributeChanges) -> v1::SetAttributes {
    v1::SetAttributes {
        inode: inode.0,
        mode: changes.mode.map(Into::into),
        uid: changes.uid,
        gid: changes.gid,
        size: changes.size,
        atime: changes.atime.map(time_out),
        mtime: changes.mtime.map(time_out),
        ctime_ns: changes.ctime.map(|t| t.0),
        replicas: changes.replicas.map(Into::into),
        clear_suid: changes.clear_suid,
    }
}

fn changes_in(from: v1::SetAttributes) -> Result<core::AttributeChanges, ConvertError> {
    Ok(core::AttributeChanges {
        mode: from.mode.map(|mode| narrow("mode", mode)).transpose()?,
        uid: from.uid,
        gid: from.gid,
        size: from.size,
        atime: from.atime.map(time_in),
        mtime: from.mtime.map(time_in),
        ctime: from.ctime_ns.map(core::Timestamp),
        replicas: from.replicas.map(|n| narrow("replicas", n)).transpose()?,
        clear_suid: from.clear_suid,
    })
}

fn indexed_out(chunks: &[(u32, ChunkHandle)]) -> Vec<v1::IndexedChunk> {
    chunks
        .iter()
        .map(|(index, handle)| v1::IndexedChunk { index: *index, handle: handle.0, ..Default::default() })
        .collect()
}

fn indexed_in(chunks: Vec<v1::IndexedChunk>) -> Vec<(u32, ChunkHandle)> {
    chunks.into_iter().map(|c| (c.index, ChunkHandle(c.handle))).collect()
}

fn used_out(used: &core::UsedChunk) -> v1::IndexedChunk {
    let stored = used.stored.map(Into::into);
    v1::IndexedChunk { index: used.index, handle: used.handle.0, cut: used.cut.0, stored }
}

fn used_in(used: v1::IndexedChunk) -> core::UsedChunk {
    let stored = used.stored.map(Into::into);
    core::UsedChunk { index: used.index, handle: ChunkHandle(used.handle), cut: Epoch(used.cut), stored }
}

fn rename_mode_in(value: u32) -> Result<core::RenameMode, ConvertError> {
    match value {
        0 => Ok(core::RenameMode::Replace),
        1 => Ok(core::RenameMode::NoReplace),
        2 => Ok(core::RenameMode::Exchange),
        other => Err(ConvertError::Value { what: "rename mode", value: other.into() }),
    }
}

fn xattr_mode_in(value: u32) -> Result<core::XattrMode, ConvertError> {
    match value {
        0 => Ok(core::XattrMode::Any),
        1 => Ok(core::XattrMode::Create),
        2 => Ok(core::XattrMode::Replace),
        other => Err(ConvertError::Value { what: "xattr mode", value: other.into() }),
    }
}

impl From<&core::Request> for v1::Request {
    fn from(from: &core::Request) -> Self {
        Self { kind: Some(request_out(from)) }
    }
}

fn request_out(from: &core::Request) -> Kind {
    use core::Request;
    match from {
        Request::Create { parent, name, kind, mode, umask, exclusive, hold } => Kind::Create(v1::Create {
            parent: parent.0,
            name: name.clone().into(),
            kind: Some(kind_out(kind)),
            mode: (*mode).into(),
            umask: (*umask).into(),
            exclusive: *exclusive,
            open: false,
            delegate: false,
            hold: *hold,
        }),
        Request::Link { inode, parent, name } => {
            Kind::Link(v1::Link { inode: inode.0, parent: parent.0, name: name.clone().into() })
        }
        Request::Unlink { parent, name } => Kind::Unlink(v1::Unlink { parent: parent.0, name: name.clone().into() }),
        Request::Rmdir { parent, name } => Kind::Rmdir(v1::Unlink { parent: parent.0, name: name.clone().into() }),
        Request::Rename { parent, name, new_parent, new_name, mode } => Kind::Rename(v1::Rename {
            parent: parent.0,
            name: name.clone().into(),
            new_parent: new_parent.0,
            new_name: new_name.clone().into(),
            mode: match mode {
                core::RenameMode::Replace => 0,
                core::RenameMode::NoReplace => 1,
                core::RenameMode::Exchange => 2,
            },
        }),
        Request::SetAttributes { inode, changes } => Kind::SetAttributes(changes_out(*inode, changes)),
        Request::SetXattr { inode, name, value, mode } => Kind::SetXattr(v1::SetXattr {
            inode: inode.0,
            name: name.clone().into(),
            value: value.clone().into(),
            mode: match mode {
                core::XattrMode::Any => 0,
                core::XattrMode::Create => 1,
                core::XattrMode::Replace => 2,
            },
        }),
        Request::RemoveXattr { inode, name } => {
            Kind::RemoveXattr(v1::RemoveXattr { inode: inode.0, name: name.clone().into() })
        }
        Request::SetLock { inode, lock } => Kind::SetLock(v1::SetLock { inode: inode.0, lock: Some(lock.into()) }),
        Request::ReleaseLocks { inode, owner, family } => Kind::ReleaseLocks(v1::ReleaseLocks {
            inode: inode.0,
            session: owner.session.0,
            owner: owner.owner,
            family: family.map(family_out),
        }),
        Request::AllocateChunks { replicas, placements } => Kind::AllocateChunks(v1::AllocateChunks {
            count: placements.len() as u32,
            replicas: (*replicas).into(),
            placements: placement_to_wire(placements),
        }),
        Request::CommitWrite { inode, attach, used, min_size, clear_suid, space } => {
            Kind::CommitWrite(v1::CommitWrite {
                inode: inode.0,
                attach: indexed_out(attach),
                used: used.iter().map(used_out).collect(),
                min_size: *min_size,
                clear_suid: *clear_suid,
                space: space.as_ref().map(|space| v1::Space {
                    from: space.from,
                    to: space.to,
                    promised: space.promised,
                }),
            })
        }
        Request::Flush { files, steps, gives_back } => Kind::Flush(v1::FlushFiles {
            files: files.iter().map(flushed_out).collect(),
            steps: steps.iter().map(step_out).collect(),
            gives_back: gives_back.iter().map(|inode| inode.0).collect(),
        }),
        Request::ReserveInodes { count } => Kind::ReserveInodes(*count),
        Request::CutTail { inode } => Kind::CutTail(inode.0),
        Request::Hold { inode } => Kind::Hold(inode.0),
        Request::TouchAccess { inodes } => {
            Kind::TouchAccesses(v1::TouchAccess { inodes: inodes.iter().map(|inode| inode.0).collect() })
        }
        Request::Barrier { times } => Kind::Barrier(v1::Barrier { times: *times }),
    }
}

impl TryFrom<v1::Request> for core::Request {
    type Error = ConvertError;

    fn try_from(from: v1::Request) -> Result<Self, ConvertError> {
        request_in(need("request kind", from.kind)?)
    }
}

/// The most chunks that one `AllocateChunks` may ask for.
const MAX_ALLOCATION: u32 = 256;

// Not inlined: in `request_in`, optimized, rustc 1.95 loses the first eight bytes of the lock: its mode, family and pid
// (`every_command_survives_the_log` shows it in a release build).
#[inline(never)]
fn set_lock_in(from: v1::SetLock) -> Result<core::Request, ConvertError> {
    let lock = need("lock", from.lock)?.try_into()?;
    Ok(core::Request::SetLock { inode: InodeId(from.inode), lock })
}

fn request_in(from: Kind) -> Result<core::Request, ConvertError> {
    use core::Request;
    Ok(match from {
        Kind::Create(c) => Request::Create {
            parent: InodeId(c.parent),
            name: c.name.into(),
            kind: kind_in(need("node kind", c.kind)?)?,
            mode: narrow("mode", c.mode)?,
            umask: narrow("umask", c.umask)?,
            exclusive: c.exclusive,
            hold: c.hold,
        },
        Kind::Link(l) => Request::Link { inode: InodeId(l.inode), parent: InodeId(l.parent), name: l.name.into() },
        Kind::Unlink(u) => Request::Unlink { parent: InodeId(u.parent), name: u.name.into() },
        Kind::Rmdir(u) => Request::Rmdir { parent: InodeId(u.parent), name: u.name.into() },
        Kind::Rename(r) => Request::Rename {
            parent: InodeId(r.parent),
            name: r.name.into(),
            new_parent: InodeId(r.new_parent),
            new_name: r.new_name.into(),
            mode: rename_mode_in(r.mode)?,
        },
        Kind::SetAttributes(s) => Request::SetAttributes { inode: InodeId(s.inode), changes: changes_in(s)? },
        Kind::SetXattr(x) => Request::SetXattr {
            inode: InodeId(x.inode),
            name: x.name.into(),
            value: x.value.into(),
            mode: xattr_mode_in(x.mode)?,
        },
        Kind::RemoveXattr(x) => Request::RemoveXattr { inode: InodeId(x.inode), name: x.name.into() },
        Kind::SetLock(l) => set_lock_in(l)?,
        Kind::ReleaseLocks(r) => Request::ReleaseLocks {
            inode: InodeId(r.inode),
            owner: core::LockOwner { session: SessionId(r.session), owner: r.owner },
            family: r.family.map(family_in).transpose()?,
        },
        Kind::AllocateChunks(a) => allocate_in(a)?,
        Kind::CommitWrite(c) => Request::CommitWrite {
            inode: InodeId(c.inode),
            attach: indexed_in(c.attach),
            used: c.used.into_iter().map(used_in).collect(),
            min_size: c.min_size,
            clear_suid: c.clear_suid,
            space: c.space.map(|space| core::Space { from: space.from, to: space.to, promised: space.promised }),
        },
        Kind::Flush(f) => flush_in(f)?,
        Kind::ReserveInodes(count) => Request::ReserveInodes { count },
        Kind::CutTail(inode) => Request::CutTail { inode: InodeId(inode) },
        Kind::Hold(inode) => Request::Hold { inode: InodeId(inode) },
        Kind::TouchAccess(inode) => Request::TouchAccess { inodes: vec![InodeId(inode)] },
        Kind::TouchAccesses(touch) => Request::TouchAccess { inodes: touch.inodes.into_iter().map(InodeId).collect() },
        Kind::Barrier(b) => Request::Barrier { times: b.times },
    })
}

fn flushed_out(file: &core::FlushedFile) -> v1::FlushedFile {
    v1::FlushedFile {
        inode: file.inode.0,
        attach: indexed_out(&file.attach),
        used: file.used.iter().map(used_out).collect(),
        min_size: file.min_size,
        changes: Some(changes_out(file.inode, &file.changes)),
        ends: false,
        closes: false,
    }
}

#[inline(never)]
fn flush_in(from: v1::FlushFiles) -> Result<core::Request, ConvertError> {
    let file = |file: v1::FlushedFile| {
        Ok(core::FlushedFile {
            inode: InodeId(file.inode),
            attach: indexed_in(file.attach),
            used: file.used.into_iter().map(used_in).collect(),
            min_size: file.min_size,
            changes: changes_in(file.changes.unwrap_or_default())?,
        })
    };
    Ok(core::Request::Flush {
        files: from.files.into_iter().map(file).collect::<Result<_, ConvertError>>()?,
        steps: from.steps.into_iter().map(step_in).collect::<Result<_, ConvertError>>()?,
        gives_back: from.gives_back.into_iter().map(InodeId).collect(),
    })
}

fn step_out(step: &core::NameStep) -> v1::NameStep {
    v1::NameStep {
        at_ns: step.at.0,
        uid: step.uid,
        gid: step.gid,
        inode: step.inode.0,
        request: Some((&step.request).into()),
        delegate: false,
    }
}

fn step_in(from: v1::NameStep) -> Result<core::NameStep, ConvertError> {
    let kind = need("step", need("step", from.request)?.kind)?;
    if matches!(kind, Kind::Flush(_)) {
        // Steps have no steps: a message that nests without end is refused here.
        return Err(ConvertError::Missing("step"));
    }
    Ok(core::NameStep {
        at: core::Timestamp(from.at_ns),
        uid: from.uid,
        gid: from.gid,
        inode: InodeId(from.inode),
        request: request_in(kind)?,
    })
}

/// A client sends a count and no placements; they stay empty lists until the leader fills them in.
fn allocate_in(from: v1::AllocateChunks) -> Result<core::Request, ConvertError> {
    if from.count > MAX_ALLOCATION {
        return Err(ConvertError::Value { what: "chunk count", value: from.count.into() });
    }
    let mut placements = placement_from_wire(from.placements)?;
    placements.resize(from.count as usize, Vec::new());
    Ok(core::Request::AllocateChunks { replicas: narrow("replicas", from.replicas)?, placements })
}
