//! `Metadata.Session`: one stream for each client session.
//!
//! This room owns a connection: its first words, how many calls are under way, which call a cancellation means. What the
//! calls do is the leader's. Cancellations, acknowledgements and signs of life are never stuck behind calls.

use super::greeting::greet;
use super::{Answers, failure};
use crate::leader::mutate::{Answered, Waits};
use crate::leader::opens::Held;
use crate::leader::query::{ShownFile, Told};
use crate::leader::sessions::{Connection, Outgoing};
use crate::leader::{Leader, ServeError};
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, OperationId, ServerId, SessionId};
use gfs_core::meta::grants::{Cached, PASSED_ON_MS};
use gfs_core::meta::opens::OpenAccess;
use gfs_core::meta::request::{
    Answer, Attributes, ClientCommand, Configuration, Credentials, FileType, Query, Refusal, Reply, Request,
};
use gfs_proto::convert::{
    self, ConvertError, answer_to_wire, open_mode_from_wire, refusal_code, reply_to_wire, servers_to_wire,
};
use gfs_proto::v1::{self, client_message, failure::Code, server_message::Body};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request as Incoming, Response, Status, Streaming};

/// Calls under way in one session; the state keeps as many replies.
const CALLS: usize = 512;
/// Waits for locks under way in one session.
const LOCK_WAITS: usize = 256;
/// Answers that may wait to be sent.
const ANSWERS: usize = 1024;
/// A first message that does not come ends the stream.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// A client that does not read its answers for so long is cut off.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// Longest listing of one answer.
const MAX_ENTRIES: u32 = 4096;
/// Most chunks of one layout answer.
const MAX_LAYOUT: u32 = 4096;

/// The service.
pub struct MetadataService {
    leader: Arc<Leader>,
    stopping: watch::Receiver<bool>,
}

impl MetadataService {
    /// Serves until `stopping` turns true; then streams end after their calls.
    pub fn new(leader: Arc<Leader>, stopping: watch::Receiver<bool>) -> Self {
        Self { leader, stopping }
    }
}

#[tonic::async_trait]
impl v1::metadata_server::Metadata for MetadataService {
    type SessionStream = Answers<v1::ServerMessage>;

    async fn session(
        &self,
        request: Incoming<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outgoing, answers) = mpsc::channel(ANSWERS);
        tokio::spawn(serve(self.leader.clone(), request.into_inner(), outgoing, self.stopping.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

/// What all calls of one stream share.
struct Stream {
    leader: Arc<Leader>,
    session: SessionId,
    /// The number of this connection.
    connection: u64,
    outgoing: Outgoing,
    calls: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    waiting: Mutex<BTreeMap<u64, OperationId>>,
}

async fn serve(
    leader: Arc<Leader>,
    mut incoming: Streaming<v1::ClientMessage>,
    outgoing: Outgoing,
    stopping: watch::Receiver<bool>,
) {
    let first = tokio::time::timeout(HELLO_LIMIT, incoming.message()).await;
    let Ok(Ok(Some(v1::ClientMessage { tag, body: Some(client_message::Body::Hello(hello)) }))) = first else {
        let failure = fail(Code::Malformed, "the first message must be Hello");
        let _ = outgoing.try_send(Ok(v1::ServerMessage { tag: 0, body: Some(failure) }));
        return;
    };
    let (session, connection) = match greet(&leader, &hello, &outgoing, tag).await {
        Ok(greeted) => greeted,
        Err(failure) => {
            let _ = outgoing.try_send(Ok(v1::ServerMessage { tag, body: Some(Body::Failure(failure)) }));
            return;
        }
    };
    let number = connection.number;
    let stream = Arc::new(Stream {
        leader: leader.clone(),
        session,
        connection: number,
        outgoing,
        calls: Arc::new(Semaphore::new(CALLS)),
        waits: Arc::new(Semaphore::new(LOCK_WAITS)),
        waiting: Mutex::new(BTreeMap::new()),
    });
    read(&stream, incoming, connection, stopping).await;
    leader.sessions.disconnect(session, number, || leader.gate.disconnected(session));
    // What is under way is finished and answered if the client still reads.
    let calls = stream.calls.clone();
    let _ = tokio::time::timeout(SEND_LIMIT, calls.acquire_many(CALLS as u32)).await;
}

async fn read(
    stream: &Arc<Stream>,
    mut incoming: Streaming<v1::ClientMessage>,
    connection: Connection,
    stopping: watch::Receiver<bool>,
) {
    let stop = gfs_daemon::life::wait(stopping);
    let replaced = gfs_daemon::life::wait(connection.replaced);
    tokio::pin!(stop, replaced);
    loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            () = &mut replaced => return,
            () = &mut stop => {
                stream.send(0, fail(Code::Stopping, "the master is stopping")).await;
                return;
            }
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(session = %stream.session, %error, "a session's stream broke");
                return;
            }
        };
        if !stream.leader.sessions.heard(stream.session) {
            stream.send(message.tag, fail(Code::SessionExpired, "the session has ended")).await;
            return;
        }
        let Some(body) = message.body else {
            stream.send(message.tag, fail(Code::Malformed, "a message of a kind that is not known")).await;
            continue;
        };
        if stream.take(message.tag, body) {
            return;
        }
    }
}

/// A call that has to be answered, also when it ends by a panic.
struct Unanswered {
    stream: Arc<Stream>,
    tag: u64,
    answered: bool,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if !self.answered {
            self.stream.answer(self.tag, fail(Code::Unavailable, "the call ended unexpectedly"));
        }
    }
}

pub(super) fn failing(code: Code, message: &str) -> v1::Failure {
    v1::Failure { code: code.into(), message: message.into(), hint: String::new() }
}

fn fail(code: Code, message: &str) -> Body {
    Body::Failure(failing(code, message))
}

fn malformed(error: &ConvertError) -> Body {
    fail(Code::Malformed, &error.to_string())
}

fn refused(refusal: Refusal) -> Body {
    Body::Reply(reply_to_wire(&Reply::Refused(refusal)))
}

impl Stream {
    async fn send(&self, tag: u64, body: Body) {
        let message = Ok(v1::ServerMessage { tag, body: Some(body) });
        if tokio::time::timeout(SEND_LIMIT, self.outgoing.send(message)).await.is_err() {
            tracing::info!(session = %self.session, "a client does not read its answers");
        }
    }

    /// Answers at once where that is possible, else in a task that has a place among the calls.
    fn answer(self: &Arc<Self>, tag: u64, body: Body) {
        let message = Ok(v1::ServerMessage { tag, body: Some(body) });
        if let Err(mpsc::error::TrySendError::Full(message)) = self.outgoing.try_send(message) {
            let stream = self.clone();
            let Ok(permit) = self.calls.clone().try_acquire_owned() else {
                // Neither its answers nor its calls have room: the client asks again.
                return;
            };
            tokio::spawn(async move {
                let _permit = permit;
                let _ = tokio::time::timeout(SEND_LIMIT, stream.outgoing.send(message)).await;
            });
        }
    }

    /// Takes one message; true when it was the last.
    fn take(self: &Arc<Self>, tag: u64, body: client_message::Body) -> bool {
        use client_message::Body as In;
        match body {
            In::Hello(_) => self.answer(tag, fail(Code::Malformed, "Hello a second time")),
            In::KeepAlive(_) => (),
            In::Invalidated(done) => self.leader.gate.invalidated(self.session, done.id),
            In::Cancel(cancel) => self.cancel(cancel.tag),
            In::Close(file) => self.close(&file),
            In::Query(query) => self.query(tag, query),
            In::Open(file) => self.open(tag, file),
            In::Statfs(_) => self.answer(tag, self.statfs()),
            In::Mutation(mutation) => self.call(tag, async move |stream| stream.mutate(mutation).await),
            In::SoftTimes(times) => self.call(tag, async move |stream| stream.soft_times(&times).await),
            In::Locate(locate) => self.call(tag, async move |stream| stream.locate(&locate).await),
            In::LockWait(wait) => self.lock_wait(tag, wait),
            In::Goodbye(_) => {
                let stream = self.clone();
                tokio::spawn(async move { stream.goodbye(tag).await });
                return true;
            }
        }
        false
    }

    fn call<C, F>(self: &Arc<Self>, tag: u64, call: C)
    where
        C: FnOnce(Arc<Self>) -> F + Send + 'static,
        F: Future<Output = Body> + Send + 'static,
    {
        match self.calls.clone().try_acquire_owned() {
            Ok(permit) => self.spawn(tag, permit, call),
            Err(_) => self.answer(tag, fail(Code::Overloaded, "too many calls under way in this session")),
        }
    }

    fn spawn<C, F>(self: &Arc<Self>, tag: u64, permit: OwnedSemaphorePermit, call: C)
    where
        C: FnOnce(Arc<Self>) -> F + Send + 'static,
        F: Future<Output = Body> + Send + 'static,
    {
        let stream = self.clone();
        tokio::spawn(async move {
            let mut unanswered = Unanswered { stream: stream.clone(), tag, answered: false };
            let body = call(stream.clone()).await;
            unanswered.answered = true;
            stream.send(tag, body).await;
            drop(permit);
        });
    }

    async fn mutate(&self, mutation: v1::Mutation) -> Body {
        let asked = SoftPart::of(&mutation);
        let command = match convert::client_command(self.session, mutation) {
            Ok(command) => command,
            Err(error) => return malformed(&error),
        };
        let id = command.id;
        if let SoftPart::HoldFile(inode) = asked
            && (self.is_open_elsewhere(inode) || !self.leader.sessions.others_reclaimed(self.session))
        {
            // Whoever has it open too would ask for it back at once.
            return refused(Refusal::WouldBlock);
        }
        self.note(&command, &asked);
        if let SoftPart::Flush(flushed) = &asked {
            self.before_flush(&command.request, flushed).await;
        }
        let answered = match self.leader.mutate(command, Waits::No).await {
            Ok(answered) => answered,
            // Asked again it is still waited for.
            Err(error) => return Body::Failure(failure(&error)),
        };
        let mut delegated = false;
        let mut now = None;
        let mut shown = Vec::new();
        match (asked, &answered.reply) {
            (SoftPart::Open { delegate }, Reply::Entry { attributes, created }) => {
                if let Err(refusal) = self.leader.hold_made(id, attributes.inode) {
                    return refused(refusal);
                }
                if !created {
                    self.leader.end_grants_of_readers(self.session, attributes.inode).await;
                }
                delegated = delegate && *created && self.leader.delegate(self.session, attributes);
            }
            (SoftPart::Open { .. }, _) => self.leader.opens.lock().table.refused(id),
            (SoftPart::Flush(flushed), _) => {
                self.given_back(&flushed.files);
                self.leader.delegations.given_back();
                let ended = flushed.files.iter().filter(|file| file.ends).map(|file| file.inode);
                shown = self.leader.show_files(self.session, ended.chain(flushed.nodes));
            }
            (SoftPart::Hold, Reply::Entry { attributes, .. }) => {
                delegated = self.leader.machine.state().holds().holds(self.session, attributes.inode);
            }
            (SoftPart::HoldFile(inode), Reply::Attributes { .. }) => {
                // Who has opened it meanwhile may be writing.
                let held = self.leader.machine.state().holds().holds(self.session, inode);
                delegated = held && !self.is_open_elsewhere(inode);
                now = Some(self.leader.now());
            }
            (SoftPart::Touch(inodes), _) => shown = self.leader.show_files(self.session, inodes.into_iter()),
            (SoftPart::Move(directories), _) => {
                let changed = answered.changed.iter().flatten().copied();
                let moved = changed.filter(|inode| !directories.contains(inode));
                shown = self.leader.show_files(self.session, moved);
            }
            (SoftPart::Hold | SoftPart::HoldFile(_) | SoftPart::Nothing, _) => (),
        }
        let mut wire = self.reply(&answered, delegated, &shown);
        if let (Body::Reply(reply), Some(now)) = (&mut wire, now) {
            reply.now_ns = now.0;
        }
        wire
    }

    fn is_open_elsewhere(&self, inode: InodeId) -> bool {
        self.leader.opens.lock().table.holders(inode).any(|session| session != self.session)
    }

    /// What is remembered of a mutation before anything can come of it.
    fn note(&self, command: &ClientCommand, asked: &SoftPart) {
        let mut opens = self.leader.opens.lock();
        opens.table.confirmed(self.session, command.confirmed.min(command.id.operation.saturating_sub(1)));
        if matches!(asked, SoftPart::Open { .. }) {
            opens.table.expect(command.id, self.connection);
        }
    }

    /// What has to be known before anybody else can see what a flush makes or gives back: who has the files that it makes, and that its
    /// session may have passed on how the rest is.
    async fn before_flush(&self, request: &Request, flushed: &Flushed) {
        self.leader.delegations.made(self.session, flushed.made.iter().copied());
        let Request::Flush { gives_back, .. } = request else { return };
        // Of files nothing is passed on to be kept.
        let directories: Vec<InodeId> = {
            let state = self.leader.machine.state();
            let is_directory = |of: Attributes| of.file_type == FileType::Directory;
            gives_back.iter().copied().filter(|inode| state.attributes(*inode).is_some_and(is_directory)).collect()
        };
        let directories =
            directories.iter().flat_map(|inode| [(*inode, Cached::Entries), (*inode, Cached::Attributes)]);
        let items: Vec<_> = directories.chain(flushed.nodes.iter().map(|inode| (*inode, Cached::Attributes))).collect();
        if !items.is_empty() && self.leader.gate.grant(self.session, &items) == 0 {
            // There is no room to remember it: it is forgotten there after this.
            tokio::time::sleep(Duration::from_millis(PASSED_ON_MS)).await;
        }
    }

    /// Delegations that a flush gives back, and files that it closes.
    fn given_back(&self, files: &[GivenBack]) {
        for file in files {
            if file.ends {
                // Before anybody else may change it: the session may have passed on how it is.
                self.leader.gate.grant(self.session, &[(file.inode, Cached::Attributes)]);
                self.leader.delegations.end(self.session, file.inode);
            }
            if file.closes {
                self.leader.let_go(self.session, file.inode, OpenAccess::Both, 1);
            }
        }
    }

    fn reply(&self, answered: &Answered, delegated: bool, shown: &[ShownFile]) -> Body {
        let mut wire = reply_to_wire(&answered.reply);
        wire.delegated = delegated;
        (wire.grant_ms, wire.pages_era) = (answered.granted.ms, answered.granted.pages_era);
        wire.changed_unknown = answered.changed.is_none();
        wire.changed = answered.changed.iter().flatten().map(|inode| inode.0).collect();
        wire.shown = shown.iter().map(shown_to_wire).collect();
        wire.parents = answered.parents.iter().map(Into::into).collect();
        if let Reply::Chunks(chunks) = &answered.reply {
            let configurations = chunks.iter().map(|(_, configuration)| configuration);
            wire.servers = servers_to_wire(&self.leader.addresses(configurations));
        }
        Body::Reply(wire)
    }

    fn lock_wait(self: &Arc<Self>, tag: u64, wait: v1::LockWait) {
        let Some(mutation) = wait.mutation else {
            return self.answer(tag, fail(Code::Malformed, "a wait for no lock"));
        };
        let command = match convert::client_command(self.session, mutation) {
            Ok(command) if matches!(command.request, Request::SetLock { .. }) => command,
            Ok(_) => return self.answer(tag, fail(Code::Malformed, "only locks are waited for")),
            Err(error) => return self.answer(tag, malformed(&error)),
        };
        let Ok(permit) = self.waits.clone().try_acquire_owned() else {
            return self.answer(tag, fail(Code::Overloaded, "too many waits for locks in this session"));
        };
        self.waiting.lock().insert(tag, command.id);
        // Known before the call runs, so that a cancellation right behind it is not lost.
        let cancellable = self.leader.locks.cancellable(command.id);
        self.spawn(tag, permit, async move |stream: Arc<Self>| {
            let outcome = stream.leader.mutate(command, Waits::Yes).await;
            drop(cancellable);
            stream.waiting.lock().remove(&tag);
            match outcome {
                Ok(answered) => stream.reply(&answered, false, &[]),
                Err(error) => Body::Failure(failure(&error)),
            }
        });
    }

    fn cancel(&self, tag: u64) {
        let waiting = self.waiting.lock().get(&tag).copied();
        if let Some(id) = waiting {
            self.leader.locks.cancel(id);
        }
    }

    fn query(self: &Arc<Self>, tag: u64, wire: v1::QueryRequest) {
        let credentials: Credentials = wire.credentials.unwrap_or_default().into();
        let query = match wire.kind.map(Query::try_from) {
            Some(Ok(query)) => bounded(query),
            Some(Err(error)) => return self.answer(tag, malformed(&error)),
            None => return self.answer(tag, fail(Code::Malformed, "a query for nothing")),
        };
        let told = self.leader.query(self.session, &credentials, &query);
        if !told.held {
            return self.answer(tag, self.answered(told));
        }
        self.call(tag, async move |stream: Arc<Self>| match stream.settled(&credentials, &query).await {
            Ok(told) => stream.answered(told),
            Err(error) => Body::Failure(failure(&error)),
        });
    }

    /// The answer to a query once no other session knows better.
    async fn settled(&self, credentials: &Credentials, query: &Query) -> Result<Told, ServeError> {
        loop {
            let told = self.leader.query(self.session, credentials, query);
            if !told.held {
                return Ok(told);
            }
            self.leader.recall_shown(query, &told.answer, self.session).await?;
        }
    }

    fn answered(&self, Told { answer, granted, .. }: Told) -> Body {
        let mut wire = answer_to_wire(&answer);
        (wire.grant_ms, wire.pages_era) = (granted.ms, granted.pages_era);
        if let Answer::Layout { chunks, .. } = &answer {
            wire.servers = self.servers(chunks.iter().map(|chunk| &chunk.configuration));
        }
        Body::Answer(wire)
    }

    fn servers<'a>(&self, configurations: impl IntoIterator<Item = &'a Configuration>) -> Vec<v1::Server> {
        servers_to_wire(&self.leader.addresses(configurations))
    }

    /// Holds the file first and looks then, so that it cannot be reaped in between.
    fn open(self: &Arc<Self>, tag: u64, file: v1::OpenFile) {
        let mode = match open_mode_from_wire(file.access) {
            Ok(mode) => mode,
            Err(error) => return self.answer(tag, malformed(&error)),
        };
        let (inode, count) = (InodeId(file.inode), file.count.max(1));
        if file.known {
            // One too many only shows when it is removed while it is open.
            let _ = self.leader.hold_open(self.session, inode, mode, true, count);
            return;
        }
        let held = match self.leader.hold_open(self.session, inode, mode, file.pages_anyway, count) {
            Ok(held) => held,
            Err(refusal) => return self.answer(tag, Body::Open(refused_open(refusal))),
        };
        let query = Query::Layout { inode, first: 0, count: OPEN_LAYOUT };
        if !held.used_elsewhere {
            let told = self.leader.query(self.session, &Credentials::default(), &query);
            if !told.held {
                return self.answer(tag, self.opened(inode, held, count, told));
            }
        }
        self.call(tag, async move |stream: Arc<Self>| {
            if held.used_elsewhere {
                stream.leader.end_grants_of_readers(stream.session, inode).await;
            }
            match stream.settled(&Credentials::default(), &query).await {
                Ok(told) => stream.opened(inode, held, count, told),
                Err(error) => {
                    stream.leader.let_go(stream.session, inode, held.mode, count);
                    Body::Failure(failure(&error))
                }
            }
        });
    }

    fn opened(&self, inode: InodeId, held: Held, count: u32, Told { answer, granted, .. }: Told) -> Body {
        let refusal = match answer {
            Answer::Layout { attributes, chunks } => {
                return Body::Open(v1::OpenAnswer {
                    refusal: 0,
                    attributes: Some((&attributes).into()),
                    servers: self.servers(chunks.iter().map(|chunk| &chunk.configuration)),
                    chunks: chunks.iter().map(Into::into).collect(),
                    grant_ms: granted.ms,
                    pages: held.mode.pages,
                    pages_era: self.leader.pages_era.now(),
                    alone: granted.pages_era != 0,
                });
            }
            Answer::Refused(refusal) => refusal,
            _ => Refusal::Invalid,
        };
        self.leader.let_go(self.session, inode, held.mode, count);
        Body::Open(refused_open(refusal))
    }

    fn close(&self, file: &v1::CloseFile) {
        if let Ok(mode) = open_mode_from_wire(file.access) {
            self.leader.let_go(self.session, InodeId(file.inode), mode, file.count.max(1));
        }
    }

    async fn soft_times(&self, times: &v1::SoftTimes) -> Body {
        match self.leader.written_in_place(self.session, InodeId(times.inode), times.clear_suid).await {
            Ok((reply, shown)) => {
                let shown_ns = shown.map_or(0, |shown| shown.0);
                Body::Reply(v1::Reply { shown_ns, ..reply_to_wire(&reply) })
            }
            Err(error) => Body::Failure(failure(&error)),
        }
    }

    async fn locate(&self, ask: &v1::LocateRequest) -> Body {
        let servers = |list: &[u32]| -> Vec<ServerId> {
            list.iter().filter_map(|server| u16::try_from(*server).ok()).map(ServerId).collect()
        };
        let (suspects, silent) = (servers(&ask.suspects), servers(&ask.silent));
        match self.leader.locate(ChunkHandle(ask.handle), Epoch(ask.known_epoch), &suspects, &silent).await {
            Some(info) => Body::Locations(v1::Locations {
                refusal: 0,
                servers: self.servers([&info.configuration]),
                chunk: Some((&info.location()).into()),
            }),
            None => Body::Locations(v1::Locations { refusal: refusal_code(Refusal::Stale), ..Default::default() }),
        }
    }

    fn statfs(&self) -> Body {
        let space = self.leader.space();
        Body::Statfs(v1::StatFs {
            total: space.total,
            free: space.free,
            inodes: space.inodes,
            inodes_free: space.inodes_free,
            replicas: space.replicas.into(),
        })
    }

    async fn goodbye(&self, tag: u64) {
        let body = match self.leader.end_session(self.session).await {
            Ok(()) => Body::Reply(reply_to_wire(&Reply::Done)),
            Err(error) => Body::Failure(failure(&error)),
        };
        self.send(tag, body).await;
    }
}

/// Chunks that an open answers at once: small files need no second question.
const OPEN_LAYOUT: u32 = 64;

fn refused_open(refusal: Refusal) -> v1::OpenAnswer {
    v1::OpenAnswer { refusal: refusal_code(refusal), ..Default::default() }
}

/// What a mutation asks for beyond the committed state.
enum SoftPart {
    Nothing,
    /// To hold open what it makes.
    Open {
        delegate: bool,
    },
    /// To take back what it flushed.
    Flush(Flushed),
    /// To hold the directory that it makes.
    Hold,
    /// To hold a file.
    HoldFile(InodeId),
    /// To show what was read.
    Touch(Vec<InodeId>),
    /// To show what was moved between these directories: it is looked at next, under its new name.
    Move([InodeId; 2]),
}

#[derive(Default)]
struct Flushed {
    files: Vec<GivenBack>,
    /// Files that it makes with a delegation.
    made: Vec<InodeId>,
    /// What else it makes that is no directory.
    nodes: Vec<InodeId>,
}

struct GivenBack {
    inode: InodeId,
    ends: bool,
    closes: bool,
}

impl SoftPart {
    fn of(mutation: &v1::Mutation) -> Self {
        use v1::request::Kind;
        match mutation.request.as_ref().and_then(|request| request.kind.as_ref()) {
            Some(Kind::Create(create)) if create.open => Self::Open { delegate: create.delegate },
            Some(Kind::Create(create)) if create.hold => Self::Hold,
            Some(Kind::Hold(inode)) => Self::HoldFile(InodeId(*inode)),
            Some(Kind::Flush(flush)) => {
                let one = |file: &v1::FlushedFile| GivenBack {
                    inode: InodeId(file.inode),
                    ends: file.ends,
                    closes: file.closes,
                };
                let mut flushed = Flushed { files: flush.files.iter().map(one).collect(), ..Flushed::default() };
                for step in &flush.steps {
                    let made = match step.request.as_ref().and_then(|request| request.kind.as_ref()) {
                        Some(Kind::Create(create)) => create.kind.as_ref().map_or(0, |kind| kind.file_type),
                        _ => continue,
                    };
                    if made == FileType::File as u32 && step.delegate {
                        flushed.made.push(InodeId(step.inode));
                    } else if made != FileType::Directory as u32 {
                        flushed.nodes.push(InodeId(step.inode));
                    }
                }
                Self::Flush(flushed)
            }
            Some(Kind::TouchAccesses(touch)) => Self::Touch(touch.inodes.iter().copied().map(InodeId).collect()),
            Some(Kind::Rename(rename)) => Self::Move([rename.parent, rename.new_parent].map(InodeId)),
            _ => Self::Nothing,
        }
    }
}

fn shown_to_wire(file: &ShownFile) -> v1::ShownFile {
    let ShownFile { attributes, granted } = file;
    v1::ShownFile { attributes: Some(attributes.into()), grant_ms: granted.ms, pages_era: granted.pages_era }
}

fn bounded(query: Query) -> Query {
    match query {
        Query::ReadDirectory { inode, cookie, limit } => {
            Query::ReadDirectory { inode, cookie, limit: limit.clamp(1, MAX_ENTRIES) }
        }
        Query::ListNames { inode, cookie, limit } => {
            Query::ListNames { inode, cookie, limit: limit.clamp(1, MAX_ENTRIES) }
        }
        Query::Layout { inode, first, count } => Query::Layout { inode, first, count: count.min(MAX_LAYOUT) },
        other => other,
    }
}
