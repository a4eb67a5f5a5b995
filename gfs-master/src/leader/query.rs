//! Queries: read the committed state, show uncommitted times, grant what may be cached.
//!
//! This room owns which grants go with which answer. It never waits.

use super::Leader;
use super::opens::Granted;
use gfs_core::ids::{InodeId, SessionId};
use gfs_core::meta::grants::Cached;
use gfs_core::meta::request::{Answer, Attributes, Credentials, FileType, Query, Refusal, Reply, Request};

/// An answer, and what may be done with it.
#[derive(Clone, Debug)]
pub struct Told {
    /// The answer.
    pub answer: Answer,
    /// Another session may know better: it is to give back what the answer is about first.
    pub held: bool,
    /// For how long.
    pub granted: Granted,
}

/// A file as it is now, and what may be done with it.
#[derive(Clone, Debug)]
pub struct ShownFile {
    /// Its attributes.
    pub attributes: Attributes,
    /// For how long.
    pub granted: Granted,
}

impl Leader {
    /// Answers a query.
    pub fn query(&self, session: SessionId, credentials: &Credentials, query: &Query) -> Told {
        let state = self.machine.state();
        let mut answer = state.query(credentials, query);
        // While the state is locked no mutation can come between the answer and its grant, and nothing that was given back be taken over.
        let held = self.is_held(&state, query, &answer, session);
        let granted = match grants_of(query, &answer).filter(|_| !held) {
            Some(items) => self.grant(&state, session, &items, file_of(&answer)),
            None => Granted::default(),
        };
        drop(state);
        self.times.show_answer(&mut answer);
        Told { answer, held, granted }
    }

    /// Shows files that a session has changed or read; those that are gone or held by another are left out.
    pub fn show_files(&self, session: SessionId, inodes: impl Iterator<Item = InodeId>) -> Vec<ShownFile> {
        let query = |inode| Query::GetAttributes { inode };
        let told = inodes.map(|inode| self.query(session, &Credentials::default(), &query(inode)));
        told.filter(|told| told.granted.ms > 0 && !told.held)
            .filter_map(|Told { answer, granted, .. }| match answer {
                Answer::Attributes(attributes) => Some(ShownFile { attributes, granted }),
                _ => None,
            })
            .collect()
    }

    /// For how long the reply to a mutation may be cached, with the attributes of the directories whose names it changed. It may not
    /// be when somebody else came after it.
    pub fn grant_reply(&self, session: SessionId, request: &Request, reply: &Reply) -> (Granted, Vec<Attributes>) {
        let none = (Granted::default(), Vec::new());
        let (parents, name) = names_of(request);
        let mut alone = None;
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
                    return none;
                }
                items.push((attributes.inode, Cached::Attributes));
                alone = (attributes.file_type == FileType::File).then_some(attributes.inode);
                if name.is_some() && attributes.file_type == FileType::Directory {
                    // It is empty: its maker need not ask for absences.
                    items.push((attributes.inode, Cached::Entries));
                }
            }
            Reply::Done if !parents.is_empty() => (),
            Reply::Done | Reply::Chunks(_) | Reply::Flushed(_) | Reply::Inodes(_) | Reply::Refused(_) => return none,
        }
        let mut shown = Vec::with_capacity(parents.len());
        for parent in parents {
            items.extend([(parent, Cached::Entries), (parent, Cached::Attributes)]);
            shown.extend(ask(&Query::GetAttributes { inode: parent }));
        }
        let granted = self.grant(&state, session, &items, alone);
        drop(state);
        shown.iter_mut().for_each(|attributes| self.times.show(attributes));
        (granted, if granted.ms == 0 { Vec::new() } else { shown })
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

/// The file that an answer is about.
fn file_of(answer: &Answer) -> Option<InodeId> {
    match answer {
        Answer::Attributes(attributes) | Answer::Layout { attributes, .. } => {
            (attributes.file_type == FileType::File).then_some(attributes.inode)
        }
        _ => None,
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
