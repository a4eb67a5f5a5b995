//! Chunks, configurations, servers, attributes, locks: the nouns that both directions share.

use super::{ConvertError, narrow, need};
use crate::v1;
use gfs_core::ids::{BlockVersion, ChunkHandle, Epoch, InodeId, Sequence, ServerId, SessionId};
use gfs_core::meta::request as core;

fn servers_in(what: &'static str, list: Vec<u32>) -> Result<Vec<ServerId>, ConvertError> {
    list.into_iter().map(|id| narrow(what, id).map(ServerId)).collect()
}

fn servers_out(list: &[ServerId]) -> Vec<u32> {
    list.iter().map(|id| id.0.into()).collect()
}

impl From<&core::Configuration> for v1::Configuration {
    fn from(from: &core::Configuration) -> Self {
        Self {
            epoch: from.epoch.0,
            primary: from.primary.0.into(),
            members: servers_out(&from.members),
            syncing: servers_out(&from.syncing),
        }
    }
}

impl TryFrom<v1::Configuration> for core::Configuration {
    type Error = ConvertError;

    fn try_from(from: v1::Configuration) -> Result<Self, ConvertError> {
        Ok(Self {
            epoch: Epoch(from.epoch),
            primary: ServerId(narrow("primary", from.primary)?),
            members: servers_in("members", from.members)?,
            syncing: servers_in("syncing", from.syncing)?,
        })
    }
}

impl From<&core::ChunkLocation> for v1::ChunkLocation {
    fn from(from: &core::ChunkLocation) -> Self {
        Self {
            index: from.index,
            handle: from.handle.0,
            configuration: Some((&from.configuration).into()),
            stored: Some(from.stored.into()),
        }
    }
}

impl TryFrom<v1::ChunkLocation> for core::ChunkLocation {
    type Error = ConvertError;

    fn try_from(from: v1::ChunkLocation) -> Result<Self, ConvertError> {
        Ok(Self {
            index: from.index,
            handle: ChunkHandle(from.handle),
            configuration: need("configuration", from.configuration)?.try_into()?,
            stored: from.stored.map(Into::into).unwrap_or_default(),
        })
    }
}

impl From<core::Stored> for v1::Stored {
    fn from(from: core::Stored) -> Self {
        Self { blocks: from.blocks, epoch: from.at.epoch.0, sequence: from.at.sequence.0 }
    }
}

impl From<v1::Stored> for core::Stored {
    fn from(from: v1::Stored) -> Self {
        let at = BlockVersion { epoch: Epoch(from.epoch), sequence: Sequence(from.sequence) };
        Self { blocks: from.blocks, at }
    }
}

/// Addresses for the wire.
pub fn servers_to_wire(servers: &[core::ServerAddress]) -> Vec<v1::Server> {
    servers.iter().map(|s| v1::Server { server: s.server.0.into(), address: s.address.to_string() }).collect()
}

/// Addresses from the wire.
///
/// # Errors
/// `ConvertError::Value` for a server number out of range.
pub fn servers_from_wire(servers: Vec<v1::Server>) -> Result<Vec<core::ServerAddress>, ConvertError> {
    let one = |s: v1::Server| {
        Ok(core::ServerAddress { server: ServerId(narrow("server", s.server)?), address: s.address.into() })
    };
    servers.into_iter().map(one).collect()
}

/// Chosen servers of new chunks for the wire.
pub fn placement_to_wire(placements: &[Vec<ServerId>]) -> Vec<v1::Placement> {
    placements.iter().map(|list| v1::Placement { servers: servers_out(list) }).collect()
}

pub(crate) fn placement_from_wire(placements: Vec<v1::Placement>) -> Result<Vec<Vec<ServerId>>, ConvertError> {
    placements.into_iter().map(|p| servers_in("placement", p.servers)).collect()
}

pub(crate) fn file_type(value: u32) -> Result<core::FileType, ConvertError> {
    use core::FileType::{BlockDevice, CharDevice, Directory, Fifo, File, Socket, Symlink};
    [Fifo, CharDevice, Directory, BlockDevice, File, Symlink, Socket]
        .into_iter()
        .find(|kind| *kind as u32 == value)
        .ok_or(ConvertError::Value { what: "file type", value: value.into() })
}

impl From<&core::Attributes> for v1::Attributes {
    fn from(from: &core::Attributes) -> Self {
        Self {
            inode: from.inode.0,
            file_type: from.file_type as u32,
            mode: from.mode.into(),
            links: from.links,
            uid: from.uid,
            gid: from.gid,
            rdev: from.rdev,
            size: from.size,
            allocated: from.allocated,
            atime_ns: from.atime.0,
            mtime_ns: from.mtime.0,
            ctime_ns: from.ctime.0,
            btime_ns: from.btime.0,
            replicas: from.replicas.into(),
            has_acl: from.has_acl,
            has_xattrs: from.has_xattrs,
        }
    }
}

impl TryFrom<v1::Attributes> for core::Attributes {
    type Error = ConvertError;

    fn try_from(from: v1::Attributes) -> Result<Self, ConvertError> {
        Ok(Self {
            inode: InodeId(from.inode),
            file_type: file_type(from.file_type)?,
            mode: narrow("mode", from.mode)?,
            links: from.links,
            uid: from.uid,
            gid: from.gid,
            rdev: from.rdev,
            size: from.size,
            allocated: from.allocated,
            atime: core::Timestamp(from.atime_ns),
            mtime: core::Timestamp(from.mtime_ns),
            ctime: core::Timestamp(from.ctime_ns),
            btime: core::Timestamp(from.btime_ns),
            replicas: narrow("replicas", from.replicas)?,
            has_acl: from.has_acl,
            has_xattrs: from.has_xattrs,
        })
    }
}

pub(crate) fn family_out(family: core::LockFamily) -> u32 {
    match family {
        core::LockFamily::Flock => 0,
        core::LockFamily::Record => 1,
    }
}

pub(crate) fn family_in(value: u32) -> Result<core::LockFamily, ConvertError> {
    match value {
        0 => Ok(core::LockFamily::Flock),
        1 => Ok(core::LockFamily::Record),
        other => Err(ConvertError::Value { what: "lock family", value: other.into() }),
    }
}

impl From<&core::Lock> for v1::Lock {
    fn from(from: &core::Lock) -> Self {
        Self {
            family: family_out(from.family),
            session: from.owner.session.0,
            owner: from.owner.owner,
            pid: from.pid,
            mode: match from.mode {
                core::LockMode::Read => 0,
                core::LockMode::Write => 1,
                core::LockMode::Unlock => 2,
            },
            start: from.range.start,
            end: from.range.end,
        }
    }
}

impl TryFrom<v1::Lock> for core::Lock {
    type Error = ConvertError;

    fn try_from(from: v1::Lock) -> Result<Self, ConvertError> {
        Ok(Self {
            family: family_in(from.family)?,
            owner: core::LockOwner { session: SessionId(from.session), owner: from.owner },
            pid: from.pid,
            mode: match from.mode {
                0 => core::LockMode::Read,
                1 => core::LockMode::Write,
                2 => core::LockMode::Unlock,
                other => return Err(ConvertError::Value { what: "lock mode", value: other.into() }),
            },
            range: core::LockRange { start: from.start, end: from.end },
        })
    }
}

impl From<&core::Credentials> for v1::Credentials {
    fn from(from: &core::Credentials) -> Self {
        Self { uid: from.uid, gid: from.gid, groups: from.groups.clone(), check: from.check }
    }
}

impl From<v1::Credentials> for core::Credentials {
    fn from(from: v1::Credentials) -> Self {
        Self { uid: from.uid, gid: from.gid, groups: from.groups, check: from.check }
    }
}

impl From<&core::DirectoryEntry> for v1::DirectoryEntry {
    fn from(from: &core::DirectoryEntry) -> Self {
        Self { cookie: from.cookie, name: from.name.clone().into(), attributes: Some((&from.attributes).into()) }
    }
}

impl TryFrom<v1::DirectoryEntry> for core::DirectoryEntry {
    type Error = ConvertError;

    fn try_from(from: v1::DirectoryEntry) -> Result<Self, ConvertError> {
        let attributes = need("attributes", from.attributes)?.try_into()?;
        Ok(Self { cookie: from.cookie, name: from.name.into(), attributes })
    }
}
