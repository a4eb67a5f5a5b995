//! Calls that are done here because this session holds the directories that they are about, and what has to come first when they are not.

use super::Decided;
use crate::calls::Opened;
use crate::client::{Client, Inner, Outcome, touched};
use crate::error::ClientError;
use crate::files::{Access, OpenFile};
use crate::grants::{Grant, Keys, Stamp};
use crate::limit::CallContext;
use gfs_core::ids::InodeId;
use gfs_core::meta::holder::Decision;
use gfs_core::meta::request::{Attributes, Credentials, NodeKind, Query, Reply, Request};
use gfs_proto::v1::{self, request::Kind};
use std::time::Duration;
use tokio::time::Instant;

/// What is known because it is held counts for so long when it is passed on; a mark ends it before.
pub(crate) const KNOWN: Duration = Duration::from_secs(60);
/// How long numbers are asked for in the background.
const REFILL_LIMIT: Duration = Duration::from_secs(60);

/// A grant of what this session knows because it holds it.
pub(crate) fn own_grant(stamp: Stamp, keys: Keys) -> Grant {
    Grant::until(stamp, Instant::now() + KNOWN, keys)
}

impl Client {
    /// Does a mutation of names, if it is about held directories alone.
    pub(crate) async fn do_in_held(
        &self,
        context: &CallContext,
        request: &Request,
    ) -> Result<Option<Outcome>, ClientError> {
        let Inner { directories, grants, cache, session, .. } = &*self.inner;
        if directories.is_idle() {
            return Ok(None);
        }
        let entries = match request {
            Request::Create { .. } | Request::SetAttributes { .. } => Vec::new(),
            Request::Unlink { .. } | Request::Rmdir { .. } | Request::Rename { .. } => touched(request).1,
            _ => return Ok(None),
        };
        // A file that is not whole keeps its name, and leaves those of others alone, until it is.
        let victims = directories.named(&entries);
        self.settle_named(&victims, request, context).await?;
        let stamp = grants.stamp();
        let decided = self.decide(context, request, |_| session.tell_opens(Some(&victims))).await?;
        let Some(Decided { decision: Decision::Done(reply), at, .. }) = decided else { return Ok(None) };
        if matches!(reply, Reply::Refused(_)) {
            return Ok(Some(Outcome { reply, grant: own_grant(stamp, Keys::default()) }));
        }
        let (mut changed, entries) = touched(request);
        if reply == Reply::Done {
            let moved = match request {
                Request::Rename { .. } => victims.first().copied().zip(at),
                _ => None,
            };
            let gone = &victims[usize::from(moved.is_some()).min(victims.len())..];
            changed.extend_from_slice(gone);
            cache.drop_inodes(gone);
            if let Some((moved, at)) = moved {
                cache.moved(moved, at);
            }
        }
        let keys = match (request, &reply) {
            (Request::Create { parent, name, .. }, Reply::Entry { attributes, .. }) => {
                Keys { inodes: vec![attributes.inode], entry: Some((*parent, name.clone())), listing: None }
            }
            (_, Reply::Attributes { attributes, .. }) => Keys { inodes: vec![attributes.inode], ..Keys::default() },
            _ => Keys::default(),
        };
        // What was asked for before shows it as it was then.
        let (grant, _) = grants.conclude(own_grant(stamp, keys), &changed, &entries);
        Ok(Some(Outcome { reply, grant }))
    }

    async fn settle_named(
        &self,
        victims: &[InodeId],
        request: &Request,
        context: &CallContext,
    ) -> Result<(), ClientError> {
        let held: Vec<_> = victims.iter().filter_map(|inode| self.inner.delegations.get(*inode)).collect();
        if held.is_empty() {
            return Ok(());
        }
        self.give_back(held, context).await?;
        if matches!(request, Request::Rename { .. }) {
            victims.iter().try_for_each(|inode| self.inner.files.take_failure(*inode))?;
        }
        Ok(())
    }

    /// Asks the holder, once there is room for another step and numbers for what is made. `then` is called in the same moment.
    async fn decide(
        &self,
        context: &CallContext,
        request: &Request,
        then: impl Fn(&Decision),
    ) -> Result<Option<Decided>, ClientError> {
        let Inner { directories, delegations, .. } = &*self.inner;
        loop {
            if directories.is_full() {
                self.tell_names(context).await?;
            }
            let Some(decided) = directories.decide(&context.credentials, request, &then) else {
                return Ok(None);
            };
            if decided.ring {
                delegations.work.notify_one();
            }
            if decided.low {
                self.refill_numbers();
            }
            if decided.decision != Decision::NoNumbers {
                return Ok(Some(decided));
            }
            context.limit.run("reserve", directories.wait_refill()).await?;
        }
    }

    /// Sets the access time of a held directory; false when that is the master's to do.
    pub(crate) fn touch_held(&self, inode: InodeId) -> bool {
        let touched = self.inner.directories.touch_access(inode);
        if touched == Some(true) {
            self.inner.delegations.work.notify_one();
        }
        touched.is_some()
    }

    /// Has inode numbers set apart, when there are few.
    pub(crate) fn refill_numbers(&self) {
        let directories = &self.inner.directories;
        let Some(count) = directories.begin_refill() else { return };
        let client = self.clone();
        tokio::spawn(async move {
            let context = CallContext::new(Credentials::default(), crate::limit::CallLimit::within(REFILL_LIMIT));
            let request = v1::Request { kind: Some(Kind::ReserveInodes(count)) };
            let came = client.mutate_wire("reserve", &context, request).await;
            if let Err(error) = &came {
                tracing::debug!(%error, "no inode numbers");
            }
            let first = came.ok().map(|(reply, _)| InodeId(reply.first_inode)).filter(|first| first.0 != 0);
            client.inner.directories.end_refill(first);
        });
    }

    /// Makes and opens a file in a held directory.
    pub(crate) async fn create_in_held(
        &self,
        context: &CallContext,
        request: &Request,
        access: Access,
    ) -> Result<Option<Opened>, ClientError> {
        let Request::Create { parent, name, kind: NodeKind::File, .. } = request else { return Ok(None) };
        let Inner { directories, delegations, grants, session, .. } = &*self.inner;
        if directories.is_idle() {
            return Ok(None);
        }
        let entry = (*parent, name.clone());
        let stamp = grants.stamp();
        let own = |inode| Keys { inodes: vec![inode], ..Keys::default() };
        let hold = |decision: &Decision| {
            if let Decision::Done(Reply::Entry { attributes, .. }) = decision {
                session.open_made(attributes.inode);
                delegations.made(attributes, entry.clone(), own_grant(stamp, own(attributes.inode)));
            }
        };
        let decided = self.decide(context, request, hold).await?;
        match decided.map(|decided| decided.decision) {
            Some(Decision::Done(Reply::Entry { attributes, .. })) => {
                let file = OpenFile::new(self.clone(), attributes.inode, Access::Both).limited(access);
                let keys = Keys { entry: Some(entry.clone()), ..own(attributes.inode) };
                let grant = grants.conclude(own_grant(stamp, keys), &[*parent], std::slice::from_ref(&entry)).0;
                Ok(Some(Opened { attributes, grant, created: true, pages: None, file }))
            }
            Some(Decision::Done(Reply::Refused(refusal))) => Err(refusal.into()),
            _ => Ok(None),
        }
    }

    /// Before the master does a mutation: it has to have the directories that this is about, and to know what was done to the rest.
    pub(crate) async fn give_back_concerned(
        &self,
        context: &CallContext,
        request: &Request,
        inodes: &[InodeId],
    ) -> Result<(), ClientError> {
        let directories = &self.inner.directories;
        if directories.is_idle() {
            return Ok(());
        }
        let concerned = directories.concerned(request);
        if !concerned.is_empty() {
            for inode in &concerned {
                directories.begin_end(*inode);
            }
            self.inner.delegations.work.notify_one();
            context.limit.run("flush", directories.wait_ended(&concerned)).await?;
        }
        self.told(context, inodes).await
    }

    /// Returns when the master knows everything that was done to these so far.
    pub(crate) async fn told(&self, context: &CallContext, inodes: &[InodeId]) -> Result<(), ClientError> {
        if self.inner.directories.is_told(inodes) { Ok(()) } else { self.tell_names(context).await }
    }

    /// Whether this session decides about the names of a directory, and knows all of them.
    pub fn holds_directory(&self, inode: InodeId) -> bool {
        self.inner.directories.holds(inode)
    }

    /// Returns when the master knows everything that was done in held directories so far.
    pub(crate) async fn tell_names(&self, context: &CallContext) -> Result<(), ClientError> {
        let Some(told) = self.inner.directories.wait_told() else { return Ok(()) };
        self.inner.delegations.work.notify_one();
        context.limit.run("flush", told).await
    }

    /// Returns when the master can answer a query as well as this session could.
    pub(crate) async fn told_for(&self, context: &CallContext, query: &Query) -> Result<(), ClientError> {
        match query {
            _ if self.inner.directories.is_idle() => Ok(()),
            // Whatever is in it is shown too.
            Query::ReadDirectory { .. } | Query::ListNames { .. } => self.tell_names(context).await,
            Query::Lookup { parent, name } => {
                let child = self.inner.directories.named(&[(*parent, name.clone())]);
                self.told(context, &[&[*parent][..], &child].concat()).await
            }
            Query::GetAttributes { inode }
            | Query::ReadLink { inode }
            | Query::GetXattr { inode, .. }
            | Query::ListXattrs { inode }
            | Query::Layout { inode, .. }
            | Query::TestLock { inode, .. } => self.told(context, &[*inode]).await,
        }
    }

    /// Shows held directories in a listing as they are here.
    pub(crate) fn show_held(&self, attributes: &mut Attributes) {
        if let Some(known) = self.inner.directories.attributes(attributes.inode) {
            *attributes = known;
        }
    }
}
