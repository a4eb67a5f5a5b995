//! What an own mutation teaches about names: what it has made stands where it was made, and what it has removed is gone.

use crate::grants::{Grant, Grants};
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{RenameMode, Reply, Request};

/// What was known of the names of a mutation before it went out.
#[derive(Default)]
pub(crate) struct Lessons {
    /// Of a rename: what the old name stood for, and the new one.
    moved: Option<(InodeId, Option<InodeId>)>,
}

impl Lessons {
    /// To be called before the mutation is begun.
    pub(crate) fn of(request: &Request, grants: &Grants) -> Self {
        let Request::Rename { parent, name, new_parent, new_name, mode } = request else { return Self::default() };
        let known = |parent: &InodeId, name: &[u8]| grants.name(&(*parent, name.to_vec())).map(|(target, _)| target);
        let moved = match (known(parent, name), known(new_parent, new_name)) {
            (Some(Some(from)), Some(to)) if *mode != RenameMode::Exchange => Some((from, to)),
            _ => None,
        };
        Self { moved }
    }

    /// The file whose name the mutation takes: `Some(None)` when it may be any.
    pub(crate) fn victim(&self, request: &Request, grants: &Grants) -> Option<Option<InodeId>> {
        match request {
            Request::Unlink { parent, name } => match grants.name(&(*parent, name.clone())) {
                Some((target, _)) => target.map(Some),
                None => Some(None),
            },
            Request::Rename { mode: RenameMode::Replace, .. } => match self.moved {
                Some((_, target)) => target.map(Some),
                None => Some(None),
            },
            _ => None,
        }
    }

    /// Takes the reply, whose grant holds for the names as they are now.
    pub(crate) fn learn(&self, request: &Request, reply: &Reply, grants: &Grants, grant: &Grant) {
        let learn = |parent: &InodeId, name: &[u8], target| grants.learn((*parent, name.to_vec()), target, grant);
        match (request, reply) {
            (
                Request::Create { parent, name, .. } | Request::Link { parent, name, .. },
                Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. },
            ) => learn(parent, name, Some(attributes.inode)),
            (Request::Unlink { parent, name } | Request::Rmdir { parent, name }, Reply::Done) => {
                learn(parent, name, None);
            }
            // Two names of one file both stay.
            (Request::Rename { parent, name, new_parent, new_name, .. }, Reply::Done) => {
                if let Some((from, _)) = self.moved.filter(|(from, to)| *to != Some(*from)) {
                    learn(parent, name, None);
                    learn(new_parent, new_name, Some(from));
                }
            }
            _ => {}
        }
    }
}
