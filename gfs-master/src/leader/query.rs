//! Queries: read the committed state, show uncommitted times, grant what may be cached.
//!
//! This room owns which grants go with which answer. It never waits.

use super::Leader;
use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::grants::Cached;
use gfs_core::meta::request::{Answer, Attributes, Credentials, FileType, Query, Refusal, Reply, Request};

impl Leader {
    /// Answers a query; the second part says for how many ms the answer may be cached.
    pub fn query(&self, session: SessionId, credentials: &Credentials, query: &Query) -> (Answer, u32) {
        let state = self.machine.state();
        let mut answer = state.query(credentials, query);
        // While the state is locked no mutation can come between the answer and its grant.
        let grant_ms = match grants_of(query, &answer) {
            Some(items) => self.grant(session, &items),
            None => 0,
        };
        drop(state);
        self.times.show_answer(&mut answer);
        (answer, grant_ms)
    }

    /// For how many ms the reply to a mutation may be cached, with the attributes of the directories whose names it changed. It may not
    /// be when somebody else came after it.
    pub fn grant_reply(&self, session: SessionId, request: &Request, reply: &Reply) -> (u32, Vec<Attributes>) {
        let (parents, name) = names_of(request);
        let state = self.machine.state();
        let ask = |query: &Query| match state.query(&Credentials::default(), query) {
            Answer::Attributes(now) => Some(now),
            _ => None,
        };
        let mut items = Vec::new();
        match reply {
            Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. } => {
                let now = match (parents.last(), name) {
                    (Some(parent), Some(name)) => ask(&Query::Lookup { parent: *parent, name: name.to_vec() }),
                    _ => ask(&Query::GetAttributes { inode: attributes.inode }),
                };
                if now.as_ref() != Some(attributes) {
                    return (0, Vec::new());
                }
                items.push((attributes.inode, Cached::Attributes));
                if name.is_some() && attributes.file_type == FileType::Directory {
                    // It is empty: its maker need not ask for absences.
                    items.push((attributes.inode, Cached::Entries));
                }
            }
            Reply::Done if !parents.is_empty() => (),
            Reply::Done | Reply::Chunks(_) | Reply::Flushed(_) | Reply::Refused(_) => return (0, Vec::new()),
        }
        let mut shown = Vec::with_capacity(parents.len());
        for parent in parents {
            items.extend([(parent, Cached::Entries), (parent, Cached::Attributes)]);
            shown.extend(ask(&Query::GetAttributes { inode: parent }));
        }
        let grant_ms = self.grant(session, &items);
        drop(state);
        shown.iter_mut().for_each(|attributes| self.times.show(attributes));
        (grant_ms, if grant_ms == 0 { Vec::new() } else { shown })
    }
}

/// The directories whose names a request changes, and the name that its reply is about.
fn names_of(request: &Request) -> (Vec<InodeId>, Option<&[u8]>) {
    match request {
        Request::Create { parent, name, .. } | Request::Link { parent, name, .. } => (vec![*parent], Some(name)),
        Request::Unlink { parent, .. } | Request::Rmdir { parent, .. } => (vec![*parent], None),
        Request::Rename { parent, new_parent, .. } if parent == new_parent => (vec![*parent], None),
        Request::Rename { parent, new_parent, .. } => (vec![*parent, *new_parent], None),
        _ => (Vec::new(), None),
    }
}

fn grants_of(query: &Query, answer: &Answer) -> Option<Vec<(InodeId, Cached)>> {
    let attributes = |inode: InodeId| Some(vec![(inode, Cached::Attributes)]);
    match (query, answer) {
        (Query::Lookup { parent, .. }, Answer::Attributes(Attributes { inode, .. })) => {
            Some(vec![(*parent, Cached::Entries), (*inode, Cached::Attributes)])
        }
        // An absence is cached as an entry of the directory.
        (Query::Lookup { parent, .. }, Answer::Refused(Refusal::NotFound)) => Some(vec![(*parent, Cached::Entries)]),
        (Query::GetAttributes { inode }, Answer::Attributes(_))
        | (Query::ReadLink { inode }, Answer::Target(_))
        | (Query::GetXattr { inode, .. }, Answer::Value(_) | Answer::Refused(Refusal::NoData))
        | (Query::ListXattrs { inode }, Answer::Names(_))
        | (Query::Layout { inode, .. }, Answer::Layout { .. }) => attributes(*inode),
        (Query::ReadDirectory { inode, .. }, Answer::Directory { entries, .. }) => {
            let mut items = vec![(*inode, Cached::Entries)];
            items.extend(entries.iter().map(|entry| (entry.attributes.inode, Cached::Attributes)));
            Some(items)
        }
        _ => None,
    }
}
