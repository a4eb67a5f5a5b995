//! Queries and their answers.

use super::chunks::file_type;
use super::{ConvertError, need, refusal_code, refusal_from_code};
use crate::v1::{self, query_request::Kind};
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Answer, ListedName, Query};

impl From<&Query> for Kind {
    fn from(from: &Query) -> Self {
        match from {
            Query::Lookup { parent, name } => Kind::Lookup(v1::Lookup { parent: parent.0, name: name.clone().into() }),
            Query::GetAttributes { inode } => Kind::GetAttributes(inode.0),
            Query::ReadLink { inode } => Kind::ReadLink(inode.0),
            Query::ReadDirectory { inode, cookie, limit } => {
                Kind::ReadDirectory(v1::ReadDirectory { inode: inode.0, cookie: *cookie, limit: *limit })
            }
            Query::ListNames { inode, cookie, limit } => {
                Kind::ListNames(v1::ReadDirectory { inode: inode.0, cookie: *cookie, limit: *limit })
            }
            Query::GetXattr { inode, name } => {
                Kind::GetXattr(v1::GetXattr { inode: inode.0, name: name.clone().into() })
            }
            Query::ListXattrs { inode } => Kind::ListXattrs(inode.0),
            Query::Layout { inode, first, count } => {
                Kind::Layout(v1::LayoutRequest { inode: inode.0, first: *first, count: *count })
            }
            Query::TestLock { inode, lock } => Kind::TestLock(v1::SetLock { inode: inode.0, lock: Some(lock.into()) }),
        }
    }
}

impl TryFrom<Kind> for Query {
    type Error = ConvertError;

    fn try_from(from: Kind) -> Result<Self, ConvertError> {
        Ok(match from {
            Kind::Lookup(l) => Query::Lookup { parent: InodeId(l.parent), name: l.name.into() },
            Kind::GetAttributes(inode) => Query::GetAttributes { inode: InodeId(inode) },
            Kind::ReadLink(inode) => Query::ReadLink { inode: InodeId(inode) },
            Kind::ReadDirectory(r) => {
                Query::ReadDirectory { inode: InodeId(r.inode), cookie: r.cookie, limit: r.limit }
            }
            Kind::ListNames(r) => Query::ListNames { inode: InodeId(r.inode), cookie: r.cookie, limit: r.limit },
            Kind::GetXattr(x) => Query::GetXattr { inode: InodeId(x.inode), name: x.name.into() },
            Kind::ListXattrs(inode) => Query::ListXattrs { inode: InodeId(inode) },
            Kind::Layout(l) => Query::Layout { inode: InodeId(l.inode), first: l.first, count: l.count },
            Kind::TestLock(l) => Query::TestLock { inode: InodeId(l.inode), lock: need("lock", l.lock)?.try_into()? },
        })
    }
}

/// An answer for the wire; addresses and the grant are the service's to add.
pub fn answer_to_wire(answer: &Answer) -> v1::QueryAnswer {
    let empty = v1::QueryAnswer::default();
    match answer {
        Answer::Attributes(attributes) => v1::QueryAnswer { attributes: Some(attributes.into()), ..empty },
        Answer::Target(value) | Answer::Value(value) => v1::QueryAnswer { value: value.clone().into(), ..empty },
        Answer::Directory { entries, end } => {
            v1::QueryAnswer { entries: entries.iter().map(Into::into).collect(), end: *end, ..empty }
        }
        Answer::Listing { entries, end } => {
            v1::QueryAnswer { listed: entries.iter().map(listed_out).collect(), end: *end, ..empty }
        }
        Answer::Names(names) => v1::QueryAnswer { names: names.iter().map(|n| n.clone().into()).collect(), ..empty },
        Answer::Layout { attributes, chunks } => v1::QueryAnswer {
            attributes: Some(attributes.into()),
            chunks: chunks.iter().map(Into::into).collect(),
            ..empty
        },
        Answer::Lock(lock) => v1::QueryAnswer { lock: lock.as_ref().map(Into::into), ..empty },
        Answer::Refused(refusal) => v1::QueryAnswer { refusal: refusal_code(*refusal), ..empty },
    }
}

fn listed_out(entry: &ListedName) -> v1::ListedName {
    let ListedName { cookie, name, inode, file_type } = entry;
    v1::ListedName { cookie: *cookie, name: name.clone().into(), inode: inode.0, file_type: *file_type as u32 }
}

fn listed_in(entry: v1::ListedName) -> Result<ListedName, ConvertError> {
    let v1::ListedName { cookie, name, inode, file_type: of } = entry;
    Ok(ListedName { cookie, name: name.into(), inode: InodeId(inode), file_type: file_type(of)? })
}

/// The answer to `query` from the wire.
///
/// # Errors
/// When the message does not fit the contract or the question.
pub fn answer_from_wire(query: &Query, answer: v1::QueryAnswer) -> Result<Answer, ConvertError> {
    if answer.refusal != 0 {
        let unknown = ConvertError::Value { what: "refusal", value: answer.refusal.into() };
        return Ok(Answer::Refused(refusal_from_code(answer.refusal).ok_or(unknown)?));
    }
    Ok(match query {
        Query::Lookup { .. } | Query::GetAttributes { .. } => {
            Answer::Attributes(need("attributes", answer.attributes)?.try_into()?)
        }
        Query::ReadLink { .. } => Answer::Target(answer.value.into()),
        Query::ReadDirectory { .. } => Answer::Directory {
            entries: answer.entries.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            end: answer.end,
        },
        Query::ListNames { .. } => Answer::Listing {
            entries: answer.listed.into_iter().map(listed_in).collect::<Result<_, _>>()?,
            end: answer.end,
        },
        Query::GetXattr { .. } => Answer::Value(answer.value.into()),
        Query::ListXattrs { .. } => Answer::Names(answer.names.into_iter().map(Into::into).collect()),
        Query::Layout { .. } => Answer::Layout {
            attributes: need("attributes", answer.attributes)?.try_into()?,
            chunks: answer.chunks.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        },
        Query::TestLock { .. } => Answer::Lock(answer.lock.map(TryInto::try_into).transpose()?),
    })
}
