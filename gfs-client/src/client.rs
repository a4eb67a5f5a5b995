//! The client: one session, its caches, the way to the chunk servers; and the two general calls.

use crate::data::DataPath;
use crate::delegations::Delegations;
use crate::directories::{Directories, KNOWN, own_grant};
use crate::error::ClientError;
use crate::files::{Ahead, FileStates, LostTails, SharedBehind};
use crate::grants::{Grant, Grants, Invalidator, Keys, Stamp, Ticket};
use crate::lessons::Lessons;
use crate::limit::{CallContext, CallLimit};
use crate::locations::{FileCache, Fresh, Locations, Window, windows_of};
use crate::locks::LockBook;
use crate::names::Entry;
use crate::near::Near;
use crate::reserve::{Allocator, Reserve};
use crate::session::{Arrival, Call, Concerned, Session, SessionOptions};
use crate::target::Target;
use gfs_core::ids::{ClusterId, InodeId, SessionId};
use gfs_core::meta::namespace::NAME_MAX;
use gfs_core::meta::request::{Answer, Attributes, Credentials, NodeKind, Query, Refusal, Reply, Request};
use gfs_net::{DataPool, PoolOptions};
use gfs_proto::convert::{answer_from_wire, refusal_from_code, reply_from_wire, servers_from_wire};
use gfs_proto::v1::{self, server_message::Body as Said};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Who this is, for people: host, process, mount point.
    pub description: String,
    /// How long a call may take unless its context says otherwise.
    pub call_limit: Duration,
    /// How long `Client::connect` tries.
    pub connect_limit: Duration,
    /// File bytes that may be on their way at the same time.
    pub bytes_in_flight: u64,
    /// Whether replicas on this machine are read in place.
    pub local: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            description: String::new(),
            call_limit: Duration::from_secs(60),
            connect_limit: Duration::from_secs(30),
            bytes_in_flight: 64 << 20,
            local: true,
        }
    }
}

/// Unit of the budget of bytes in flight.
const BUDGET_UNIT: u64 = 1024;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long it waits before that for what is still to be written.
const LAST_WRITES: Duration = Duration::from_secs(20);

/// A client of one cluster. Cheap to clone; the session ends with the last clone, or in good order by `close`.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: ClientOptions,
    pub(crate) masters: Vec<String>,
    pub(crate) session: Arc<Session>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) cache: Arc<FileCache>,
    pub(crate) locks: Arc<LockBook>,
    pub(crate) locations: Arc<Locations>,
    pub(crate) reserve: Reserve<Allocator>,
    pub(crate) data: DataPath,
    pub(crate) files: FileStates,
    pub(crate) ahead: Ahead,
    pub(crate) behind: Arc<SharedBehind>,
    pub(crate) delegations: Arc<Delegations>,
    pub(crate) directories: Arc<Directories>,
    pub(crate) lost_tails: Arc<LostTails>,
    pub(crate) chunk_size: u64,
    /// How long a session lives without a sign of its client.
    pub(crate) lease: Duration,
    cluster: ClusterId,
    budget: Arc<Semaphore>,
    budget_units: u32,
}

/// Answer to a mutation.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the master answered.
    pub reply: Reply,
    /// How long attributes in it may be cached.
    pub grant: Grant,
}

/// Answer to a query.
#[derive(Clone, Debug)]
pub struct Answered {
    /// What the master answered.
    pub answer: Answer,
    /// How long it may be cached.
    pub grant: Grant,
}

/// A future behind a pointer: whoever awaits it need not be compiled together with all that it does, as for a plain `async fn`.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Client {
    /// Connects to a cluster: returns when a master has opened a session. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Unavailable` after the connect limit, `WrongCluster`, `Version`.
    pub fn connect(target: Target, options: ClientOptions) -> Boxed<'static, Result<Self, ClientError>> {
        Box::pin(async move {
            let grants: Arc<Grants> = Arc::default();
            let delegations: Arc<Delegations> = Arc::default();
            let concerned = Concerned {
                files: Arc::new(FileCache::new(grants.liveness.clone())),
                grants,
                locks: Arc::default(),
                directories: Arc::new(Directories::new(delegations.vouched.clone())),
                delegations,
                lost_tails: Arc::default(),
            };
            let masters = target.masters.clone();
            let session_options = SessionOptions { masters: target.masters, description: options.description.clone() };
            let unavailable = |error: std::io::Error| ClientError::Unavailable {
                masters: masters.join(","),
                reason: error.to_string(),
            };
            let session = Arc::new(Session::start(session_options, concerned.clone()).map_err(unavailable)?);
            let welcome = session.ready(&CallLimit::within(options.connect_limit)).await?;
            if !welcome.chunk_size.is_power_of_two() || welcome.chunk_size > 1 << 40 {
                return Err(ClientError::malformed(format!("chunk size {}", welcome.chunk_size)));
            }
            let cluster: [u8; 16] =
                welcome.cluster.as_ref().try_into().map_err(|_| ClientError::malformed("cluster id"))?;
            let cluster = ClusterId(u128::from_be_bytes(cluster));
            let pool = DataPool::new(PoolOptions { cluster, ..PoolOptions::default() });
            let locations = Arc::new(Locations::new());
            let allocator = Allocator { session: session.clone(), locations: locations.clone() };
            let near = Near::new(options.local.then_some(cluster), locations.clone());
            tokio::spawn(crate::near::run(Arc::downgrade(&near)));
            let budget_units = (options.bytes_in_flight / BUDGET_UNIT).clamp(1, 1 << 24) as u32;
            let inner = Inner {
                masters,
                data: DataPath {
                    pool,
                    session: session.clone(),
                    locations: locations.clone(),
                    locks: concerned.locks.clone(),
                    near,
                },
                session,
                grants: concerned.grants,
                cache: concerned.files,
                locks: concerned.locks,
                locations,
                reserve: Reserve::new(Arc::new(allocator)),
                files: FileStates::default(),
                ahead: Ahead::default(),
                behind: Arc::default(),
                delegations: concerned.delegations.clone(),
                directories: concerned.directories.clone(),
                lost_tails: concerned.lost_tails.clone(),
                chunk_size: welcome.chunk_size,
                lease: Duration::from_millis(welcome.lease_ms.into()),
                cluster,
                budget: Arc::new(Semaphore::new(budget_units as usize)),
                budget_units,
                options,
            };
            let inner = Arc::new(inner);
            tokio::spawn(crate::flusher::run(Arc::downgrade(&inner), concerned.delegations, concerned.directories));
            Ok(Self { inner })
        })
    }

    /// Ends the session: locks and open files go. Calls under way fail with `Closed`.
    pub async fn close(&self) {
        let context = CallContext::new(Credentials::default(), CallLimit::within(FAREWELL));
        let patient = CallContext::new(Credentials::default(), CallLimit::within(LAST_WRITES));
        if let Err(error) = self.drain_all(&patient).await {
            tracing::error!(%error, "the last written bytes are lost");
        }
        if let Err(error) = self.give_back(self.inner.delegations.all(), &context).await {
            tracing::warn!(%error, "the last changes did not reach the master");
        }
        if let Err(error) = self.tell_names(&context).await {
            tracing::error!(%error, "the last changes of names are lost");
        }
        self.inner.session.close(FAREWELL).await;
    }

    /// Length of a chunk in bytes.
    pub fn chunk_size(&self) -> u64 {
        self.inner.chunk_size
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.inner.cluster
    }

    /// Why there is no connection to a master at this moment; `None` while there is one.
    pub fn disconnected(&self) -> Option<String> {
        self.inner.session.disconnected()
    }

    /// The session's number at this moment; it changes when a session is lost.
    pub fn session(&self) -> SessionId {
        SessionId(self.inner.session.id())
    }

    /// A context with the default limit.
    pub fn context(&self, credentials: Credentials) -> CallContext {
        CallContext::new(credentials, CallLimit::within(self.inner.options.call_limit))
    }

    /// Sets who drops what was cached elsewhere. Without one, invalidations are acknowledged at once.
    pub fn on_invalidate(&self, invalidator: Arc<dyn Invalidator>) {
        self.inner.session.on_invalidate(invalidator);
    }

    /// Passes an answer on to a cache: `hand_over` gets the time for which it may be cached, zero when it was invalidated since it was
    /// asked for. No invalidation is acknowledged while `hand_over` runs, so it must be short, and must not call `deliver` itself.
    pub fn deliver<R>(&self, ticket: &Ticket, hand_over: impl FnOnce(Duration) -> R) -> R {
        self.inner.grants.deliver(ticket, hand_over)
    }

    /// Makes a mutation, exactly once however often it has to be sent. A refusal is an answer.
    ///
    /// # Errors
    /// After `TimedOut` and `SessionLost` the outcome is unknown. A cancelled call that was already sent is waited for for up to a second;
    /// `Interrupted` after that leaves the outcome unknown too.
    pub async fn mutate(&self, context: &CallContext, mut request: Request) -> Result<Outcome, ClientError> {
        if let Some(outcome) = self.do_here(context, &request) {
            return Ok(outcome);
        }
        if let Some(outcome) = self.do_in_held(context, &request).await? {
            return Ok(outcome);
        }
        let (inodes, entries) = touched(&request);
        // Nothing of it becomes held meanwhile.
        let states = self.states_of(&inodes);
        let mut changing_files = Vec::with_capacity(states.len());
        for state in &states {
            changing_files.push(state.changing(context).await?);
        }
        let mut held = self.inner.delegations.among(&inodes, &entries);
        held.extend(self.held_under(&entries));
        let named: Vec<_> = held.iter().map(|held| held.inode()).collect();
        self.give_back(held, context).await?;
        self.give_back_concerned(context, &request, &inodes).await?;
        if let Request::Create { kind: NodeKind::Directory, hold, .. } = &mut request {
            *hold = true;
        }
        if let Request::SetAttributes { inode, changes } = &request
            && changes.size.is_some()
        {
            Box::pin(self.cut_lost_tail(*inode, context)).await?;
        }
        if matches!(request, Request::Rename { .. } | Request::Link { .. }) {
            // A file that is not whole must not take the place of one that is.
            named.iter().try_for_each(|inode| self.inner.files.take_failure(*inode))?;
        }
        let Inner { grants, cache, session, .. } = &*self.inner;
        let lessons = Lessons::of(&request, grants);
        if let Some(victim) = lessons.victim(&request, grants) {
            session.tell_opens(victim.as_ref().map(std::slice::from_ref));
        }
        let changing = grants.begin(&entries);
        let call = Call::Mutate { credentials: (&context.credentials).into(), request: (&request).into() };
        let arrived = session.call("mutation", call, &context.limit).await;
        let outcome = arrived.and_then(|(said, stamp)| {
            let Said::Reply(mut reply) = said else { return Err(ClientError::malformed("answer to a mutation")) };
            let after = After::take(&mut reply);
            let delegated = reply.delegated;
            Ok((reply_from_wire(reply)?, after, stamp, delegated))
        });
        if matches!(request, Request::Rename { .. } | Request::Rmdir { .. }) {
            grants.mark_moved();
            cache.drop_directories();
        }
        match outcome {
            Ok((reply, after, stamp, delegated)) => {
                let mut covered = Keys::default();
                if let Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. } = &reply {
                    covered = Keys { inodes: vec![attributes.inode], entry: entries.last().cloned(), listing: None };
                }
                let grant = Grant::new(stamp, after.grant_ms, covered);
                let pages_era = after.pages_era;
                let grant = self.conclude(grant, &inodes, &entries, after);
                drop(changing);
                lessons.learn(&request, &reply, grants, &grant);
                if let Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. } = &reply {
                    cache.concluded(grants, attributes, &grant, pages_era);
                    if delegated && let Some((parent, name)) = entries.last() {
                        self.inner.directories.given(attributes, (*parent, name));
                        self.refill_numbers();
                    }
                }
                Ok(Outcome { reply, grant })
            }
            Err(error) => {
                // What else it may have changed is not known.
                grants.mark_all();
                cache.clear();
                Err(error)
            }
        }
    }

    /// Does what needs no master: what concerns a file that this session holds.
    fn do_here(&self, context: &CallContext, request: &Request) -> Option<Outcome> {
        let delegations = &self.inner.delegations;
        let (attributes, grant) = match request {
            Request::SetAttributes { inode, changes } => {
                delegations.get(*inode)?.change(&context.credentials, changes)?
            }
            _ => return None,
        };
        Some(Outcome { reply: Reply::Attributes { attributes, pending_shrink: false }, grant })
    }

    /// An own mutation failed: it may have taken effect, or still do.
    pub(crate) fn in_doubt(&self, inodes: &[InodeId], entries: &[(InodeId, Vec<u8>)]) {
        self.inner.grants.mark(inodes, entries);
        self.inner.cache.drop_inodes(inodes);
    }

    /// An own mutation was answered: what was known of `inodes` is past, and the grant of its reply holds from here on. The directories
    /// whose names it changed are remembered as it left them: the kernel asks for them before its next step in there.
    pub(crate) fn conclude(
        &self,
        grant: Grant,
        inodes: &[InodeId],
        entries: &[(InodeId, Vec<u8>)],
        after: After,
    ) -> Grant {
        let Inner { cache, grants, .. } = &*self.inner;
        if after.changed_unknown {
            grants.mark_all();
            cache.clear();
        }
        let changed: Vec<InodeId> = after.changed.into_iter().map(InodeId).chain(inodes.iter().copied()).collect();
        let sent = grant.ticket.stamp(grant.duration).sent;
        let (grant, counted) = grants.conclude(grant, &changed, entries);
        cache.drop_inodes(&changed);
        let parents = after.parents.into_iter().filter_map(|of| Attributes::try_from(of).ok());
        for attributes in parents.filter(|of| counted.contains(&of.inode)) {
            cache.keep_directory(grants, attributes, &grant.ticket);
        }
        let stamp = Stamp { order: grant.ticket.order(), sent };
        self.take_shown(after.shown, stamp, |of| counted.contains(&of.inode).then(Vec::new));
        grant
    }

    /// As `mutate`, with a refusal as an error.
    pub(crate) async fn change(&self, context: &CallContext, request: Request) -> Result<Outcome, ClientError> {
        let outcome = self.mutate(context, request).await?;
        match outcome.reply {
            Reply::Refused(refusal) => Err(refusal.into()),
            _ => Ok(outcome),
        }
    }

    /// A mutation in wire form; refusals are errors.
    pub(crate) async fn mutate_wire(
        &self,
        operation: &'static str,
        context: &CallContext,
        request: v1::Request,
    ) -> Result<(v1::Reply, Stamp), ClientError> {
        let call = Call::Mutate { credentials: (&context.credentials).into(), request };
        Self::reply_of(self.inner.session.call(operation, call, &context.limit).await?)
    }

    pub(crate) fn reply_of((said, stamp): Arrival) -> Result<(v1::Reply, Stamp), ClientError> {
        let Said::Reply(reply) = said else { return Err(ClientError::malformed("answer to a mutation")) };
        refused(reply.refusal)?;
        Ok((reply, stamp))
    }

    /// Asks something. A refusal is an answer: an absence may be cached too.
    ///
    /// # Errors
    /// Any of the session.
    pub async fn query(&self, context: &CallContext, query: Query) -> Result<Answered, ClientError> {
        if let Some(answered) = self.known(context, &query) {
            return Ok(answered);
        }
        self.told_for(context, &query).await?;
        if let Query::Layout { inode, .. } | Query::GetAttributes { inode } = &query {
            self.settle(*inode, context).await?;
        }
        let wire = v1::QueryRequest { credentials: Some((&context.credentials).into()), kind: Some((&query).into()) };
        let (said, stamp) = self.inner.session.call("query", Call::Query(wire), &context.limit).await?;
        let Said::Answer(mut wire) = said else { return Err(ClientError::malformed("answer to a query")) };
        let (grant_ms, pages_era) = (wire.grant_ms, wire.pages_era);
        self.inner.locations.learn_servers(servers_from_wire(std::mem::take(&mut wire.servers))?);
        let mut answer = answer_from_wire(&query, wire)?;
        self.inner.delegations.show(&mut answer, stamp);
        match &mut answer {
            Answer::Attributes(attributes) => self.show_held(attributes),
            Answer::Directory { entries, .. } => {
                entries.iter_mut().for_each(|entry| self.show_held(&mut entry.attributes));
            }
            _ => (),
        }
        self.remember(&query, &answer, stamp, (grant_ms, pages_era));
        let grant = Grant::new(stamp, grant_ms, covered(&query, &answer));
        if let Query::Lookup { parent, name } = &query {
            self.learn_name(*parent, name, &answer, &grant);
        }
        Ok(Answered { answer, grant })
    }

    /// What is known without a question: what a name stands for, or that it is not there; how a file or a directory is; that a file has none
    /// of the extended attributes that the kernel asks for often.
    fn known(&self, context: &CallContext, query: &Query) -> Option<Answered> {
        if context.credentials.check {
            return None;
        }
        let Inner { grants, cache, directories, .. } = &*self.inner;
        let (refusal, grant) = match query {
            Query::Lookup { parent, name } if is_plain_name(name) => {
                return self.known_name((*parent, name.clone()));
            }
            Query::ReadLink { inode } => {
                let stamp = grants.stamp();
                let target = directories.target(*inode)?;
                let grant = own_grant(stamp, Keys { inodes: vec![*inode], ..Keys::default() });
                return Some(Answered { answer: Answer::Target(target), grant });
            }
            Query::GetAttributes { inode } => {
                let (attributes, grant) = self.known_attributes(*inode)?;
                return Some(Answered { answer: Answer::Attributes(attributes), grant });
            }
            // Files that are held have none.
            Query::GetXattr { inode, .. } if self.inner.delegations.get(*inode).is_some() => {
                (Refusal::NoData, Grant::new(grants.stamp(), 0, Keys::default()))
            }
            Query::GetXattr { inode, .. }
                if !directories.attributes(*inode).or_else(|| cache.attributes(*inode))?.has_xattrs =>
            {
                (Refusal::NoData, Grant::new(grants.stamp(), 0, Keys::default()))
            }
            _ => return None,
        };
        Some(Answered { answer: Answer::Refused(refusal), grant })
    }

    fn known_name(&self, entry: Entry) -> Option<Answered> {
        let Inner { grants, directories, .. } = &*self.inner;
        // Before it is looked, so that what is marked from here on ends the grant.
        let stamp = grants.stamp();
        let (target, expires) = match directories.look_up(entry.0, &entry.1) {
            Some(child) => (child.map(|child| child.inode), Instant::now() + KNOWN),
            None => grants.name(&entry)?,
        };
        let Some(inode) = target else {
            let keys = Keys { entry: Some(entry), ..Keys::default() };
            return Some(Answered {
                answer: Answer::Refused(Refusal::NotFound),
                grant: Grant::until(stamp, expires, keys),
            });
        };
        let (attributes, of_inode) = self.known_attributes(inode)?;
        let keys = Keys { inodes: vec![inode], entry: Some(entry), listing: None };
        let grant = Grant::until(stamp, expires.min(of_inode.ticket.expires()), keys);
        Some(Answered { answer: Answer::Attributes(attributes), grant })
    }

    fn known_attributes(&self, inode: InodeId) -> Option<(Attributes, Grant)> {
        let Inner { grants, cache, files, delegations, directories, .. } = &*self.inner;
        let stamp = grants.stamp();
        if let Some(held) = delegations.get(inode) {
            let (attributes, grant) = held.current()?;
            // Nobody above keeps them: when the file is given back there is nothing to be forgotten there.
            let keys = || Keys { inodes: vec![inode], ..Keys::default() };
            return Some((attributes, if held.is_lasting() { Grant::new(stamp, 0, keys()) } else { grant }));
        }
        if let Some(attributes) = directories.attributes(inode) {
            return Some((attributes, own_grant(stamp, Keys { inodes: vec![inode], ..Keys::default() })));
        }
        if directories.holds(inode) {
            // It is being given back: what was known before it was held is past.
            return None;
        }
        if let Some(known) = cache.directory(grants, inode) {
            return Some(known);
        }
        let (attributes, expires) = cache.exact(inode).filter(|_| !files.is_written(inode))?;
        Some((attributes, Grant::until(stamp, expires, Keys { inodes: vec![inode], ..Keys::default() })))
    }

    fn learn_name(&self, parent: InodeId, name: &[u8], answer: &Answer, grant: &Grant) {
        let target = match answer {
            Answer::Attributes(attributes) => Some(attributes.inode),
            Answer::Refused(Refusal::NotFound) => None,
            _ => return,
        };
        // The names of held directories are known otherwise.
        if is_plain_name(name) && !self.inner.directories.holds(parent) {
            self.inner.grants.learn((parent, name.to_vec()), target, grant);
        }
    }

    /// As `query`, with a refusal as an error.
    pub(crate) async fn ask(&self, context: &CallContext, query: Query) -> Result<(Answer, Grant), ClientError> {
        let Answered { answer, grant } = self.query(context, query).await?;
        match answer {
            Answer::Refused(refusal) => Err(refusal.into()),
            answer => Ok((answer, grant)),
        }
    }

    fn remember(&self, query: &Query, answer: &Answer, stamp: Stamp, (grant_ms, pages_era): (u32, u64)) {
        let Inner { cache, grants, locations, directories, .. } = &*self.inner;
        let pages_era = Some(pages_era);
        match (query, answer) {
            (Query::GetAttributes { .. } | Query::Lookup { .. }, Answer::Attributes(attributes)) => {
                cache.insert(grants, &Fresh { attributes, stamp, grant_ms, pages_era }, Vec::new());
            }
            (Query::ReadDirectory { inode, .. }, Answer::Directory { entries, .. }) => {
                let grant = Grant::new(stamp, grant_ms, covered(query, answer));
                self.inner.ahead.note_listing(entries);
                for entry in entries {
                    let fresh = Fresh { attributes: &entry.attributes, stamp, grant_ms, pages_era: None };
                    cache.insert(grants, &fresh, Vec::new());
                    if !directories.holds(*inode) {
                        grants.learn((*inode, entry.name.clone()), Some(entry.attributes.inode), &grant);
                    }
                }
            }
            (Query::Layout { first, count, .. }, Answer::Layout { attributes, chunks }) => {
                for chunk in chunks {
                    locations.learn_chunk(chunk.clone());
                }
                let windows: Vec<(u32, Window)> =
                    if first % crate::locations::WINDOW == 0 { windows_of(*first, *count, chunks) } else { Vec::new() };
                cache.insert(grants, &Fresh { attributes, stamp, grant_ms, pages_era }, windows);
            }
            _ => {}
        }
    }

    /// Takes what a write of this session made of a file. Without attributes, what was known is stale.
    pub(crate) fn note_commit(
        &self,
        inode: InodeId,
        reply: v1::Reply,
        stamp: Stamp,
        attached: &[(u32, gfs_core::ids::ChunkHandle)],
    ) {
        let Inner { cache, grants, .. } = &*self.inner;
        let (grant_ms, pages_era) = (reply.grant_ms, Some(reply.pages_era));
        match reply.attributes.map(Attributes::try_from) {
            Some(Ok(attributes)) if attributes.inode == inode => {
                let fresh = Fresh { attributes: &attributes, stamp, grant_ms, pages_era };
                cache.committed(grants, &fresh, attached);
            }
            _ => {
                grants.mark_commit(inode);
                cache.drop_inodes(&[inode]);
            }
        }
    }

    /// A part of the budget of bytes in flight; what is larger than all of it takes all of it.
    pub(crate) async fn budget(&self, bytes: u64, limit: &CallLimit) -> Result<OwnedSemaphorePermit, ClientError> {
        let units = bytes.div_ceil(BUDGET_UNIT).clamp(1, self.inner.budget_units.into()) as u32;
        let permit = limit.run("budget", self.inner.budget.clone().acquire_many_owned(units)).await?;
        permit.map_err(|_| ClientError::Closed)
    }
}

/// What a reply says beside its answer.
pub(crate) struct After {
    pub(crate) grant_ms: u32,
    pub(crate) pages_era: u64,
    parents: Vec<v1::Attributes>,
    shown: Vec<v1::ShownFile>,
    changed: Vec<u64>,
    changed_unknown: bool,
}

impl After {
    pub(crate) fn take(reply: &mut v1::Reply) -> Self {
        Self {
            grant_ms: reply.grant_ms,
            pages_era: reply.pages_era,
            parents: std::mem::take(&mut reply.parents),
            shown: std::mem::take(&mut reply.shown),
            changed: std::mem::take(&mut reply.changed),
            changed_unknown: reply.changed_unknown,
        }
    }
}

/// Names are looked up under a grant; `.` and `..` may change with a rename far away.
fn is_plain_name(name: &[u8]) -> bool {
    name.len() <= NAME_MAX && name != b"." && name != b".."
}

/// A refusal code as a result.
pub(crate) fn refused(code: u32) -> Result<(), ClientError> {
    match (code, refusal_from_code(code)) {
        (0, _) => Ok(()),
        (_, Some(refusal)) => Err(refusal.into()),
        (code, None) => Err(ClientError::malformed(format!("unknown refusal {code}"))),
    }
}

/// What the answer to a query covers.
fn covered(query: &Query, answer: &Answer) -> Keys {
    let mut keys = Keys::default();
    match query {
        Query::Lookup { parent, name } => keys.entry = Some((*parent, name.clone())),
        Query::GetAttributes { inode }
        | Query::ReadLink { inode }
        | Query::GetXattr { inode, .. }
        | Query::ListXattrs { inode }
        | Query::Layout { inode, .. }
        | Query::TestLock { inode, .. } => keys.inodes.push(*inode),
        Query::ReadDirectory { inode, .. } | Query::ListNames { inode, .. } => keys.listing = Some(*inode),
    }
    keys.inodes.extend(answer.shown().map(|attributes| attributes.inode));
    keys
}

/// What a mutation changes, as far as its words tell; the name that the reply is about comes last.
pub(crate) fn touched(request: &Request) -> (Vec<InodeId>, Vec<(InodeId, Vec<u8>)>) {
    match request {
        Request::Create { parent, name, .. } | Request::Unlink { parent, name } | Request::Rmdir { parent, name } => {
            (vec![*parent], vec![(*parent, name.clone())])
        }
        Request::Link { inode, parent, name } => (vec![*inode, *parent], vec![(*parent, name.clone())]),
        Request::Rename { parent, name, new_parent, new_name, .. } => {
            (vec![*parent, *new_parent], vec![(*parent, name.clone()), (*new_parent, new_name.clone())])
        }
        Request::SetAttributes { inode, .. }
        | Request::SetXattr { inode, .. }
        | Request::RemoveXattr { inode, .. }
        | Request::CommitWrite { inode, .. }
        | Request::CutTail { inode }
        | Request::Hold { inode } => (vec![*inode], vec![]),
        Request::TouchAccess { inodes } => (inodes.clone(), vec![]),
        Request::Flush { files, .. } => (files.iter().map(|file| file.inode).collect(), vec![]),
        Request::SetLock { .. }
        | Request::ReleaseLocks { .. }
        | Request::AllocateChunks { .. }
        | Request::ReserveInodes { .. }
        | Request::Barrier { .. } => (vec![], vec![]),
    }
}
