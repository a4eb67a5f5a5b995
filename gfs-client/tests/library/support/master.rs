//! A master: sessions, grants and invalidations over the real state machine.

use gfs_core::ids::{ChunkHandle, ClusterId, InodeId, OperationId, ServerId, SessionId};
use gfs_core::meta::command::{Command, CommandReply, Stamp};
use gfs_core::meta::grants::{Cached, GrantOptions, GrantTable, Touched};
use gfs_core::meta::request::{Answer, Attributes, Credentials, FileType, Query, Refusal, Reply, Request, Timestamp};
use gfs_core::meta::state::State;
use gfs_proto::convert::{answer_to_wire, client_command, refusal_code, reply_to_wire, servers_to_wire};
use gfs_proto::v1::{self, client_message::Body as Ask, failure::Code, metadata_server, server_message::Body as Said};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request as Incoming, Response, Status, Streaming};

pub const CLUSTER: ClusterId = ClusterId(77);

type Out = mpsc::Sender<Result<v1::ServerMessage, Status>>;

/// Faults to order.
#[derive(Default)]
pub struct Faults {
    /// So many mutations are applied, and then the stream breaks instead of answering.
    pub lose_replies: AtomicU32,
    /// Nothing is answered at all.
    pub mute: AtomicBool,
    /// What was passed over so.
    pub muted: AtomicU32,
    /// Flushes among them.
    pub muted_flushes: AtomicU32,
    /// Every hello is answered with this.
    pub refuse_hello: Mutex<Option<v1::Failure>>,
    /// So many calls are answered with UNAVAILABLE first.
    pub unavailable: AtomicU32,
}

type Zero = Box<dyn Fn(ChunkHandle, u64) + Send + Sync>;

pub struct Master {
    pub address: String,
    pub state: Mutex<State>,
    pub faults: Faults,
    /// Mutations that were applied for the first time.
    pub applied: Mutex<Vec<OperationId>>,
    pub invalidations_acknowledged: AtomicU64,
    pub hellos: Mutex<Vec<v1::Hello>>,
    pub soft_times: AtomicU32,
    /// Names and attributes that were asked for.
    pub questions: AtomicU32,
    /// Files that clients have said they open.
    pub opened: Mutex<Vec<v1::OpenFile>>,
    pub closes: Mutex<Vec<v1::CloseFile>>,
    pub lease_ms: AtomicU32,
    /// Whether makers of files get a write delegation. It is never asked back: for one client alone.
    pub delegates: AtomicBool,
    /// Files that sessions have made by themselves and have delegations of.
    made: Mutex<HashMap<InodeId, SessionId>>,
    /// Flushes that told of names, and how many steps there were in them.
    pub told: Mutex<Vec<usize>>,
    grants: Mutex<GrantTable>,
    streams: Mutex<HashMap<SessionId, Out>>,
    waiting_acks: Mutex<BTreeSet<u64>>,
    next_invalidation: AtomicU64,
    cancelled: Mutex<BTreeSet<(SessionId, u64)>>,
    zero: Mutex<Option<Zero>>,
    started: Instant,
}

impl Master {
    pub async fn start(chunk_size: u64) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let master = Arc::new(Self {
            address: listener.local_addr().unwrap().to_string(),
            state: Mutex::new(State::format(CLUSTER, chunk_size, 2, 0o755, now())),
            faults: Faults::default(),
            applied: Mutex::default(),
            invalidations_acknowledged: AtomicU64::new(0),
            hellos: Mutex::default(),
            soft_times: AtomicU32::new(0),
            questions: AtomicU32::new(0),
            opened: Mutex::default(),
            closes: Mutex::default(),
            lease_ms: AtomicU32::new(10_000),
            delegates: AtomicBool::new(false),
            made: Mutex::default(),
            told: Mutex::default(),
            grants: Mutex::new(GrantTable::new(GrantOptions { contended_ms: 50, ..GrantOptions::default() })),
            streams: Mutex::default(),
            waiting_acks: Mutex::default(),
            next_invalidation: AtomicU64::new(1),
            cancelled: Mutex::default(),
            zero: Mutex::default(),
            started: Instant::now(),
        });
        let service = metadata_server::MetadataServer::new(Service(master.clone()));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        master
    }

    /// Who zeroes the tail of a chunk that is cut.
    pub fn on_cut(&self, zero: impl Fn(ChunkHandle, u64) + Send + Sync + 'static) {
        *self.zero.lock() = Some(Box::new(zero));
    }

    pub fn apply(&self, command: &Command) -> CommandReply {
        self.state.lock().apply(Stamp { now: now(), seed: 0 }, command)
    }

    /// Breaks all streams.
    pub fn disconnect(&self) {
        self.streams.lock().clear();
    }

    /// Ends a session as its lease would.
    pub fn expire(&self, session: SessionId) {
        self.apply(&Command::EndSession { session });
        self.grants.lock().drop_session(session);
        self.made.lock().retain(|_, holder| *holder != session);
        self.streams.lock().remove(&session);
    }

    /// What others hold of these.
    fn held(&self, by: SessionId, inodes: &[InodeId]) -> Vec<(SessionId, InodeId)> {
        let (state, made) = (self.state.lock(), self.made.lock());
        let holder = |inode: &InodeId| state.holds().holder(*inode).or_else(|| made.get(inode).copied());
        let others = inodes.iter().filter_map(|inode| Some((holder(inode)?, *inode)));
        others.filter(|(holder, _)| *holder != by).collect()
    }

    /// Returns when nobody else holds any of these.
    async fn recall(&self, by: SessionId, inodes: impl Fn(&State) -> Vec<InodeId>) {
        loop {
            let inodes = inodes(&self.state.lock());
            let held = self.held(by, &inodes);
            if held.is_empty() {
                return;
            }
            for (holder, inode) in held {
                let out = self.streams.lock().get(&holder).cloned();
                let recall = Said::Recall(v1::Recall { inodes: vec![inode.0] });
                if let Some(out) = out {
                    let _ = out.send(Ok(v1::ServerMessage { tag: 0, body: Some(recall) })).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn note_flush(&self, session: SessionId, mutation: &v1::Mutation) {
        let Some(v1::Request { kind: Some(v1::request::Kind::Flush(flush)) }) = &mutation.request else { return };
        let mut made = self.made.lock();
        made.extend(flush.steps.iter().filter(|step| step.delegate).map(|step| (InodeId(step.inode), session)));
        if !flush.steps.is_empty() {
            self.told.lock().push(flush.steps.len());
        }
    }

    fn note_ends(&self, mutation: &v1::Mutation) {
        let Some(v1::Request { kind: Some(v1::request::Kind::Flush(flush)) }) = &mutation.request else { return };
        let mut made = self.made.lock();
        flush.files.iter().filter(|file| file.ends).for_each(|file| {
            made.remove(&InodeId(file.inode));
        });
    }

    /// Tells one session to drop what it caches.
    pub async fn invalidate(&self, session: SessionId, inodes: &[InodeId], entries: &[(InodeId, &[u8])]) -> u64 {
        let id = self.next_invalidation.fetch_add(1, Ordering::SeqCst);
        let message = v1::Invalidate {
            id,
            inodes: inodes.iter().map(|inode| inode.0).collect(),
            entries: entries
                .iter()
                .map(|(parent, name)| v1::EntryName { parent: parent.0, name: name.to_vec().into() })
                .collect(),
        };
        self.waiting_acks.lock().insert(id);
        let out = self.streams.lock().get(&session).cloned();
        if let Some(out) = out {
            let _ = out.send(Ok(v1::ServerMessage { tag: 0, body: Some(Said::Invalidate(message)) })).await;
        }
        id
    }

    pub fn acknowledged(&self, id: u64) -> bool {
        !self.waiting_acks.lock().contains(&id)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Stops granting what is touched and has all others drop it.
    async fn gate(&self, by: SessionId, touched: &Touched) {
        let conflicts = {
            let mut grants = self.grants.lock();
            grants.block(touched);
            grants.conflicts(touched, by, self.now_ms())
        };
        for conflict in conflicts {
            let entries: Vec<(InodeId, &[u8])> =
                conflict.entries.iter().map(|(inode, name)| (*inode, name.as_slice())).collect();
            let id = self.invalidate(conflict.session, &conflict.inodes, &entries).await;
            while !self.acknowledged(id) && self.grants.lock().stands_until(&conflict, self.now_ms()).is_some() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            self.grants.lock().acknowledged(&conflict);
        }
    }

    async fn mutate(&self, session: SessionId, mutation: v1::Mutation) -> (Reply, u32, Vec<v1::Attributes>) {
        let mut command = client_command(session, mutation).unwrap();
        if let Request::AllocateChunks { placements, .. } = &mut command.request {
            let state = self.state.lock();
            let servers: Vec<ServerId> = state.servers().iter().map(|record| record.server).take(2).collect();
            placements.iter_mut().for_each(|placement| *placement = servers.clone());
        }
        self.recall(session, |state| state.touched(&command.request).inodes).await;
        let touched = self.state.lock().touched(&command.request);
        self.gate(session, &touched).await;
        while self.state.lock().waits_for_shrink(&command.request) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let made_in = match &command.request {
            Request::Create { parent, .. } => Some(*parent),
            _ => None,
        };
        let id = command.id;
        let fresh = self.state.lock().replayed(id).is_none();
        let CommandReply::Client(reply) = self.apply(&Command::Client(command)) else { panic!("no client reply") };
        if fresh {
            self.applied.lock().push(id);
        }
        self.finish_cuts();
        self.grants.lock().unblock(&touched);
        let grant = match &reply {
            Reply::Entry { attributes, .. } | Reply::Attributes { attributes, .. } => {
                let mut items = vec![(attributes.inode, Cached::Attributes)];
                items.extend(made_in.iter().flat_map(|p| [(*p, Cached::Entries), (*p, Cached::Attributes)]));
                if made_in.is_some() && attributes.file_type == gfs_core::meta::request::FileType::Directory {
                    items.push((attributes.inode, Cached::Entries));
                }
                self.grants.lock().grant_all(session, &items, self.now_ms()).unwrap_or(0)
            }
            _ => 0,
        };
        let parent = made_in.filter(|_| grant > 0).and_then(|parent| self.state.lock().attributes(parent));
        (reply, grant, parent.iter().map(Into::into).collect())
    }

    fn finish_cuts(&self) {
        let cuts: Vec<_> = self.state.lock().shrinks().collect();
        for cut in cuts {
            if let Some(zero) = &*self.zero.lock() {
                zero(cut.handle, cut.from);
            }
            self.apply(&Command::FinishShrink { inode: cut.inode, handle: cut.handle, epoch: cut.epoch, stored: None });
        }
    }

    fn servers(&self, state: &State, chunks: &[gfs_core::meta::request::Configuration]) -> Vec<v1::Server> {
        servers_to_wire(&state.addresses(chunks.iter().flat_map(|c| c.members.iter().copied())))
    }

    fn query(&self, session: SessionId, request: v1::QueryRequest) -> v1::QueryAnswer {
        let credentials = request.credentials.unwrap_or_default().into();
        let query = Query::try_from(request.kind.unwrap()).unwrap();
        if matches!(query, Query::Lookup { .. } | Query::GetAttributes { .. }) {
            self.questions.fetch_add(1, Ordering::SeqCst);
        }
        let state = self.state.lock();
        let answer = state.query(&credentials, &query);
        let mut shown = match &query {
            Query::Lookup { parent, .. } => vec![(*parent, Cached::Entries)],
            Query::ReadDirectory { inode, .. } => vec![(*inode, Cached::Entries)],
            Query::GetAttributes { inode } | Query::Layout { inode, .. } => vec![(*inode, Cached::Attributes)],
            _ => Vec::new(),
        };
        if let (Query::Lookup { .. }, Answer::Attributes(attributes)) = (&query, &answer) {
            shown.push((attributes.inode, Cached::Attributes));
        }
        // While the state is locked no mutation can come between the answer and its grant.
        let granted = self.grants.lock().grant_all(session, &shown, self.now_ms());
        let grant_ms = if shown.is_empty() { 0 } else { granted.unwrap_or(0) };
        let mut wire = answer_to_wire(&answer);
        wire.grant_ms = grant_ms;
        let file = |of: &Attributes| of.file_type == FileType::File && grant_ms > 0;
        if matches!(&answer, Answer::Attributes(of) | Answer::Layout { attributes: of, .. } if file(of)) {
            // Nobody writes but those who make the files.
            wire.pages_era = 1;
        }
        if let Answer::Layout { chunks, .. } = &answer {
            let configurations: Vec<_> = chunks.iter().map(|chunk| chunk.configuration.clone()).collect();
            wire.servers = self.servers(&state, &configurations);
        }
        wire
    }

    fn open(&self, session: SessionId, open: v1::OpenFile) -> v1::OpenAnswer {
        let query = Query::Layout { inode: InodeId(open.inode), first: 0, count: 64 };
        let wire = self.query(session, v1::QueryRequest { credentials: None, kind: Some((&query).into()) });
        let v1::QueryAnswer { refusal, attributes, chunks, servers, grant_ms, .. } = wire;
        v1::OpenAnswer { refusal, attributes, chunks, servers, grant_ms, ..Default::default() }
    }

    /// The configuration in force; a suspected primary is replaced at once by another member.
    fn locate(&self, ask: v1::LocateRequest) -> v1::Locations {
        let handle = ChunkHandle(ask.handle);
        let Some(info) = self.state.lock().chunk(handle) else {
            return v1::Locations { refusal: refusal_code(Refusal::Stale), ..Default::default() };
        };
        let now = info.configuration;
        if ask.known_epoch == now.epoch.0 && ask.suspects.contains(&now.primary.0.into()) {
            let mut next = now.clone();
            next.primary = *now.members.iter().find(|member| **member != now.primary).unwrap();
            self.apply(&Command::Reconfigure { handle, expected: now.epoch, next });
        }
        let state = self.state.lock();
        let info = state.chunk(handle).unwrap();
        v1::Locations {
            refusal: 0,
            servers: self.servers(&state, std::slice::from_ref(&info.configuration)),
            chunk: Some((&info.location()).into()),
        }
    }

    async fn wait_lock(&self, session: SessionId, tag: u64, mutation: v1::Mutation) -> Reply {
        let command = client_command(session, mutation.clone()).unwrap();
        let Request::SetLock { inode, lock } = command.request else { panic!("not a lock") };
        loop {
            if self.cancelled.lock().remove(&(session, tag)) {
                return Reply::Refused(Refusal::Interrupted);
            }
            if self.state.lock().locks().conflicting(inode, &lock).is_none() {
                return self.mutate(session, mutation).await.0;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn greet(&self, hello: &v1::Hello, out: &Out) -> Result<(SessionId, v1::Welcome), v1::Failure> {
        self.hellos.lock().push(hello.clone());
        if let Some(failure) = self.faults.refuse_hello.lock().clone() {
            return Err(failure);
        }
        let resumed = hello.session != 0 && self.state.lock().sessions().contains(SessionId(hello.session));
        let session = if resumed {
            SessionId(hello.session)
        } else {
            let open = Command::OpenSession { nonce: hello.nonce, description: hello.description.clone() };
            let CommandReply::Session(session) = self.apply(&open) else { panic!("no session") };
            session
        };
        self.streams.lock().insert(session, out.clone());
        let lost = self.state.lock().sessions().unknown(SessionId(hello.session), &hello.answered);
        let welcome = v1::Welcome {
            session: session.0,
            cluster: CLUSTER.0.to_be_bytes().to_vec().into(),
            generation: 1,
            lease_ms: self.lease_ms.load(Ordering::SeqCst),
            chunk_size: self.state.lock().chunk_size(),
            replicas: 2,
            version: "test".into(),
            incarnation: 1,
            resumed,
            lost,
        };
        Ok((session, welcome))
    }

    async fn take(self: Arc<Self>, session: SessionId, tag: u64, ask: Ask, out: Out) {
        if self.faults.mute.load(Ordering::SeqCst) {
            self.faults.muted.fetch_add(1, Ordering::SeqCst);
            if let Ask::Mutation(v1::Mutation {
                request: Some(v1::Request { kind: Some(v1::request::Kind::Flush(_)) }),
                ..
            }) = &ask
            {
                self.faults.muted_flushes.fetch_add(1, Ordering::SeqCst);
            }
            return;
        }
        let unavailable = self
            .faults
            .unavailable
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        let said = match ask {
            _ if unavailable => Said::Failure(v1::Failure { code: Code::Unavailable.into(), ..Default::default() }),
            Ask::Mutation(mutation) => {
                let open = matches!(&mutation.request, Some(v1::Request { kind: Some(v1::request::Kind::Create(c)) }) if c.open);
                let hold = matches!(&mutation.request, Some(v1::Request { kind: Some(v1::request::Kind::Create(c)) }) if c.hold);
                let held = match &mutation.request {
                    Some(v1::Request { kind: Some(v1::request::Kind::Hold(inode)) }) => Some(InodeId(*inode)),
                    _ => None,
                };
                self.note_flush(session, &mutation);
                let flush = mutation.clone();
                let delegate = matches!(&mutation.request, Some(v1::Request { kind: Some(v1::request::Kind::Create(c)) }) if c.delegate);
                let (reply, grant_ms, parents) = self.mutate(session, mutation).await;
                self.note_ends(&flush);
                assert!(!open || !matches!(reply, Reply::Done));
                if self
                    .faults
                    .lose_replies
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok()
                {
                    self.streams.lock().remove(&session);
                    return;
                }
                let mut wire = reply_to_wire(&reply);
                wire.grant_ms = grant_ms;
                wire.parents = parents;
                let created = matches!(reply, Reply::Entry { created: true, .. });
                wire.delegated = delegate && created && self.delegates.load(Ordering::SeqCst);
                if let (true, Reply::Entry { attributes, .. }) = (hold, &reply) {
                    wire.delegated = self.state.lock().holds().holds(session, attributes.inode);
                }
                if let (Some(inode), Reply::Attributes { attributes, .. }) = (held, &reply) {
                    wire.delegated = self.state.lock().holds().holds(session, inode);
                    wire.now_ns = attributes.ctime.0 + 1;
                }
                if let Reply::Chunks(chunks) = &reply {
                    let configurations: Vec<_> =
                        chunks.iter().map(|(_, configuration)| configuration.clone()).collect();
                    wire.servers = self.servers(&self.state.lock(), &configurations);
                }
                Said::Reply(wire)
            }
            Ask::Query(query) => {
                let wanted = Query::try_from(query.kind.clone().unwrap()).unwrap();
                self.recall(session, |state| {
                    let mut inodes: Vec<InodeId> = State::consulted(&wanted).into_iter().collect();
                    match state.query(&Credentials::default(), &wanted) {
                        Answer::Attributes(of) | Answer::Layout { attributes: of, .. } => inodes.push(of.inode),
                        Answer::Directory { entries, .. } => {
                            inodes.extend(entries.iter().map(|of| of.attributes.inode))
                        }
                        _ => (),
                    }
                    inodes
                })
                .await;
                Said::Answer(self.query(session, query))
            }
            Ask::Open(open) => {
                self.opened.lock().push(open);
                if open.known {
                    return;
                }
                self.recall(session, |_| vec![InodeId(open.inode)]).await;
                Said::Open(self.open(session, open))
            }
            Ask::LockWait(wait) => {
                Said::Reply(reply_to_wire(&self.wait_lock(session, tag, wait.mutation.unwrap()).await))
            }
            Ask::SoftTimes(times) => {
                let touched = Touched { inodes: vec![InodeId(times.inode)], entries: Vec::new() };
                self.gate(session, &touched).await;
                self.grants.lock().unblock(&touched);
                let shown_ns = i64::from(self.soft_times.fetch_add(1, Ordering::SeqCst)) + 1;
                Said::Reply(v1::Reply { shown_ns, ..Default::default() })
            }
            Ask::Statfs(_) => {
                Said::Statfs(v1::StatFs { total: 1 << 40, free: 1 << 39, inodes: 1, inodes_free: 1, replicas: 2 })
            }
            Ask::Locate(locate) => Said::Locations(self.locate(locate)),
            Ask::Goodbye(_) => {
                self.apply(&Command::EndSession { session });
                Said::Reply(v1::Reply::default())
            }
            Ask::Cancel(cancel) => {
                self.cancelled.lock().insert((session, cancel.tag));
                return;
            }
            Ask::Invalidated(done) => {
                self.waiting_acks.lock().remove(&done.id);
                self.invalidations_acknowledged.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Ask::Close(close) => {
                self.closes.lock().push(close);
                return;
            }
            Ask::KeepAlive(_) | Ask::Hello(_) => return,
        };
        let _ = out.send(Ok(v1::ServerMessage { tag, body: Some(said) })).await;
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_nanos()).unwrap())
}

struct Service(Arc<Master>);

#[tonic::async_trait]
impl metadata_server::Metadata for Service {
    type SessionStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::ServerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Incoming<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (out, answers) = mpsc::channel(1024);
        tokio::spawn(serve(self.0.clone(), request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

async fn serve(master: Arc<Master>, mut incoming: Streaming<v1::ClientMessage>, out: Out) {
    let Ok(Some(v1::ClientMessage { body: Some(Ask::Hello(hello)), .. })) = incoming.message().await else { return };
    // The stream ends when the table of streams lets go of it.
    let weak = out.downgrade();
    let (session, body) = match master.greet(&hello, &out) {
        Ok((session, welcome)) => (session, Said::Welcome(welcome)),
        Err(failure) => {
            let _ = out.send(Ok(v1::ServerMessage { tag: 0, body: Some(Said::Failure(failure)) })).await;
            return;
        }
    };
    let _ = out.send(Ok(v1::ServerMessage { tag: 0, body: Some(body) })).await;
    drop(out);
    while let Ok(Some(message)) = incoming.message().await {
        let (Some(ask), Some(out)) = (message.body, weak.upgrade()) else { return };
        tokio::spawn(master.clone().take(session, message.tag, ask, out));
    }
}
