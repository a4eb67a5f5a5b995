//! Answers to mutations.

use super::{ConvertError, refusal_code, refusal_from_code};
use crate::v1;
use gfs_core::ids::{ChunkHandle, InodeId};
use gfs_core::meta::request::{ChunkLocation, Configuration, Refusal, Reply};

/// A reply for the wire; addresses and the grant are the service's to add.
pub fn reply_to_wire(reply: &Reply) -> v1::Reply {
    let empty = v1::Reply::default();
    match reply {
        Reply::Done => empty,
        Reply::Entry { attributes, created } => {
            v1::Reply { attributes: Some(attributes.into()), created: *created, ..empty }
        }
        Reply::Attributes { attributes, pending_shrink } => {
            v1::Reply { attributes: Some(attributes.into()), pending_shrink: *pending_shrink, ..empty }
        }
        Reply::Chunks(chunks) => {
            let location = |(handle, configuration): &(ChunkHandle, Configuration)| v1::ChunkLocation {
                index: 0,
                handle: handle.0,
                configuration: Some(configuration.into()),
                stored: None,
            };
            v1::Reply { chunks: chunks.iter().map(location).collect(), ..empty }
        }
        Reply::Flushed(refused) => {
            let one = |(at, refusal): &(u32, Refusal)| v1::RefusedFile { at: *at, refusal: refusal_code(*refusal) };
            v1::Reply { flushed: true, refused: refused.iter().map(one).collect(), ..empty }
        }
        Reply::Inodes(first) => v1::Reply { first_inode: first.0, ..empty },
        Reply::Refused(refusal) => v1::Reply { refusal: refusal_code(*refusal), ..empty },
    }
}

/// A reply from the wire. An attribute reply to a request that makes or finds a name comes back as `Entry`: use
/// `created`; other attribute replies look the same on the wire, so `Entry` stands for both and callers read `attributes`.
///
/// # Errors
/// When the message does not fit the contract.
pub fn reply_from_wire(reply: v1::Reply) -> Result<Reply, ConvertError> {
    if reply.refusal != 0 {
        let unknown = ConvertError::Value { what: "refusal", value: reply.refusal.into() };
        return Ok(Reply::Refused(refusal_from_code(reply.refusal).ok_or(unknown)?));
    }
    if reply.flushed {
        let one = |file: v1::RefusedFile| {
            let unknown = ConvertError::Value { what: "refusal", value: file.refusal.into() };
            Ok((file.at, refusal_from_code(file.refusal).ok_or(unknown)?))
        };
        return Ok(Reply::Flushed(reply.refused.into_iter().map(one).collect::<Result<_, ConvertError>>()?));
    }
    if reply.first_inode != 0 {
        return Ok(Reply::Inodes(InodeId(reply.first_inode)));
    }
    if !reply.chunks.is_empty() {
        let one = |c: v1::ChunkLocation| ChunkLocation::try_from(c).map(|c| (c.handle, c.configuration));
        return Ok(Reply::Chunks(reply.chunks.into_iter().map(one).collect::<Result<_, _>>()?));
    }
    Ok(match reply.attributes {
        None => Reply::Done,
        Some(attributes) if reply.pending_shrink => {
            Reply::Attributes { attributes: attributes.try_into()?, pending_shrink: true }
        }
        Some(attributes) => Reply::Entry { attributes: attributes.try_into()?, created: reply.created },
    })
}
