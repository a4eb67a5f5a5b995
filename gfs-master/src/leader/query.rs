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
            Some(items) => self.gate.grant(session, &items),
            None => 0,
        };
        drop(state);
        self.times.show_answer(&mut answer);
        (answer, grant_ms)
    }

    /// For how many ms the reply to a mutation may be cached. It may not when somebody else came after it.
    pub fn grant_reply(&self, session: SessionId, request: &Request, reply: &Reply) -> u32 {
        let (named, attributes) = match (request, reply) {
            (
                Request::Create { parent, name, .. } | Request::Link { parent, name, .. },
                Reply::Entry { attributes, .. },
            ) => (Some((*parent, name)), attributes),
            (_, Reply::Attributes { attributes, .. }) => (None, attributes),
            _ => return 0,
        };
        let state = self.machine.state();
        let ask = |query: &Query| match state.query(&Credentials::default(), query) {
            Answer::Attributes(now) => Some(now),
            _ => None,
        };
        let (now, items) = match named {
            Some((parent, name)) => {
                let now = ask(&Query::Lookup { parent, name: name.clone() });
                let mut items = vec![(parent, Cached::Entries), (attributes.inode, Cached::Attributes)];
                if attributes.file_type == FileType::Directory {
                    // It is empty: its maker need not ask for absences.
                    items.push((attributes.inode, Cached::Entries));
                }
                (now, items)
            }
            None => {
                let now = ask(&Query::GetAttributes { inode: attributes.inode });
                (now, vec![(attributes.inode, Cached::Attributes)])
            }
        };
        if now.as_ref() == Some(attributes) { self.gate.grant(session, &items) } else { 0 }
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
