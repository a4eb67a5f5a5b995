//! Tells the master what was done under write delegations: many files in one message, one message at a time.
//!
//! This room owns when and how; what is told is `delegations`'.

use crate::client::{Client, Inner};
use crate::delegations::{Delegations, Held, Report};
use crate::directories::{Directories, LOOK_FOR_IDLE, Taken};
use crate::error::ClientError;
use crate::grants::{Grant, Keys, Stamp};
use crate::limit::{CallContext, CallLimit};
use crate::session::Call;
use gfs_core::ids::InodeId;
use gfs_core::meta::request::{Credentials, FlushedFile, Refusal, Reply, Request};
use gfs_proto::convert::reply_from_wire;
use gfs_proto::v1::{self, request::Kind, server_message::Body as Said};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked for what is due while there are delegations.
const LOOK: Duration = Duration::from_millis(50);
/// A flush is asked until it is answered or its session is lost: nobody but the session can say what became of it.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Files that the master shows after a flush, and when it was asked.
type AfterFlush = (Vec<v1::ShownFile>, Stamp);
/// What a flush came to: what was not taken over, and what is shown.
type Flushed = (Vec<(u32, Refusal)>, AfterFlush);

/// Runs until the client is gone.
pub(crate) async fn run(
    client: std::sync::Weak<crate::client::Inner>,
    delegations: Arc<Delegations>,
    directories: Arc<Directories>,
) {
    while client.strong_count() > 0 {
        let work = delegations.work.notified();
        let due = delegations.next_due().into_iter().chain(directories.next_due()).min();
        let now = tokio::time::Instant::now();
        if due.is_some_and(|due| due <= now) {
            let Some(inner) = client.upgrade() else { return };
            Client { inner }.flush_delegations().await;
        } else if delegations.is_idle() && directories.is_idle() {
            work.await;
        } else {
            let latest = now + if delegations.is_idle() { LOOK_FOR_IDLE } else { LOOK };
            // Rung or not: it is looked again.
            let _ = tokio::time::timeout_at(due.map_or(latest, |due| due.min(latest)), work).await;
        }
    }
}

impl Client {
    /// Tells what is due.
    async fn flush_delegations(&self) {
        let Inner { delegations, directories, locations, session, .. } = &*self.inner;
        // Whoever is told of a file knows first that it is there, and who has it open.
        let taken = directories.take(|batch| {
            let about: Vec<InodeId> = batch.steps.iter().map(|step| step.inode).collect();
            session.tell_opens(Some(&about));
        });
        let (reports, unknown) = delegations.reports(locations, |inode| directories.covers(inode, &taken));
        if reports.is_empty() && unknown.is_empty() && taken.batch.is_empty() {
            directories.told(&taken);
            return;
        }
        let told = self.tell(&reports, &unknown, &taken).await;
        delegations.told_unknown();
        match told {
            Ok((refused, after)) => {
                self.conclude_steps(&taken, reports.len() + unknown.len(), &refused);
                self.conclude_flush(&reports, &refused, after);
            }
            Err(error) => {
                tracing::warn!(%error, files = reports.len(), "changes that were not told to the master are lost");
                reports.iter().for_each(|report| session.lose(&report.held));
                if directories.is_present(&taken) {
                    session.lose_directories();
                }
            }
        }
    }

    /// The master has taken these steps over but for those that it refused: then it knows otherwise how things are.
    fn conclude_steps(&self, taken: &Taken, files: usize, refused: &[(u32, Refusal)]) {
        let Inner { directories, grants, cache, session, .. } = &*self.inner;
        let first = refused.iter().find(|(at, _)| *at as usize >= files);
        if let Some((at, refusal)) = first {
            let step = taken.batch.steps.get(*at as usize - files);
            tracing::error!(?step, %refusal, "the master refuses what was done in a held directory");
            if directories.is_present(taken) {
                session.lose_directories();
            }
            grants.mark_all();
            cache.clear();
            return;
        }
        if !taken.batch.gives_back.is_empty() {
            grants.mark(&taken.batch.gives_back, &[]);
            cache.drop_inodes(&taken.batch.gives_back);
        }
        directories.told(taken);
    }

    async fn tell(
        &self,
        reports: &[Report],
        unknown: &BTreeSet<InodeId>,
        taken: &Taken,
    ) -> Result<Flushed, ClientError> {
        let mut files: Vec<FlushedFile> = reports.iter().map(|report| report.file.clone()).collect();
        files.extend(unknown.iter().map(|inode| FlushedFile { inode: *inode, ..FlushedFile::default() }));
        let steps = taken.batch.steps.clone();
        let lasting = reports.iter().filter(|report| report.ends && report.lasting).map(|report| report.file.inode);
        let gives_back = taken.batch.gives_back.iter().chain(unknown).copied().chain(lasting).collect();
        let mut request = v1::Request::from(&Request::Flush { files, steps, gives_back });
        if let Some(Kind::Flush(flush)) = &mut request.kind {
            for (at, file) in flush.files.iter_mut().enumerate() {
                file.ends = reports.get(at).is_none_or(|report| report.ends);
                file.closes = reports.get(at).is_some_and(|report| report.closes);
            }
            for step in &mut flush.steps {
                step.delegate = step.inode != 0 && self.inner.delegations.get(InodeId(step.inode)).is_some();
            }
        }
        let credentials = (&Credentials::default()).into();
        let limit = CallLimit::within(PATIENCE);
        let (said, stamp) = self.inner.session.call("flush", Call::Mutate { credentials, request }, &limit).await?;
        let Said::Reply(mut reply) = said else { return Err(ClientError::malformed("answer to a flush")) };
        let shown = std::mem::take(&mut reply.shown);
        match reply_from_wire(reply)? {
            Reply::Flushed(refused) => Ok((refused, (shown, stamp))),
            Reply::Refused(refusal) => Err(refusal.into()),
            _ => Err(ClientError::malformed("answer to a flush")),
        }
    }

    fn conclude_flush(&self, reports: &[Report], refused: &[(u32, Refusal)], (shown, stamp): AfterFlush) {
        let ended: Vec<InodeId> = reports.iter().filter(|report| report.ends).map(|of| of.file.inode).collect();
        // What was asked for before is not to be cached: it may show the file as the master knew it then.
        let Inner { grants, cache, .. } = &*self.inner;
        let (grant, counted) = grants.conclude(Grant::new(stamp, 0, Keys::default()), &ended, &[]);
        let order = grant.ticket.order();
        cache.drop_inodes(&ended);
        self.take_shown(shown, Stamp { order, ..stamp }, |of| {
            let report = reports.iter().find(|report| report.file.inode == of.inode);
            match report {
                Some(report) if counted.contains(&of.inode) => Some(self.whole(of, report.chunks.clone())),
                // Something else that was made.
                None => Some(Vec::new()),
                Some(_) => None,
            }
        });
        for (at, report) in (0..).zip(reports) {
            if report.closes && report.held.take_closed() {
                self.inner.session.closed_file(report.file.inode.0);
            }
            match refused.iter().find(|(refused, _)| *refused == at) {
                // One that has lost its last name and its last holder is gone, with all that was done to it.
                Some((_, Refusal::Stale)) if report.file.attach.is_empty() && !report.lasting => {
                    self.inner.delegations.told(report, order)
                }
                Some((_, refusal)) => {
                    tracing::warn!(inode = %report.file.inode, %refusal, "a written file was not taken over");
                    self.inner.session.lose(&report.held);
                }
                None => {
                    for used in &report.file.used {
                        self.inner.locations.count_told(used.handle, used.stored.unwrap_or_default());
                    }
                    self.inner.delegations.told(report, order);
                }
            }
        }
    }

    /// Returns when the master, and not this session, says how these files are.
    pub(crate) async fn give_back(&self, held: Vec<Arc<Held>>, context: &CallContext) -> Result<(), ClientError> {
        if held.is_empty() {
            return Ok(());
        }
        let ends: Vec<_> = held.iter().map(|held| held.wait_ended()).collect();
        self.inner.delegations.work.notify_one();
        for end in ends {
            context.limit.run("flush", end).await?;
        }
        Ok(())
    }

    /// As `give_back`, for one file if it is held.
    pub(crate) async fn settle(&self, inode: InodeId, context: &CallContext) -> Result<(), ClientError> {
        match self.inner.delegations.get(inode) {
            Some(held) => self.give_back(vec![held], context).await,
            None => Ok(()),
        }
    }

    /// Returns when the master knows all that was done to these files so far.
    pub(crate) async fn tell_all(&self, held: Vec<Arc<Held>>, context: &CallContext) -> Result<(), ClientError> {
        let told: Vec<_> = held.iter().map(|held| held.wait_told()).collect();
        if !told.is_empty() {
            self.inner.delegations.work.notify_one();
        }
        for told in told {
            context.limit.run("flush", told).await?;
        }
        Ok(())
    }
}
