//! The calls of a session that wait for an answer: which to send, which to send again, which to fail.
//!
//! This room decides, under one lock and without waiting; `driver` carries messages. A mutation keeps its operation number over every
//! connection, so that a repeat is answered and not applied again.

use super::recent::Recent;
use super::shown::Shown;
use super::window::ConfirmWindow;
use crate::error::ClientError;
use crate::grants::{Grants, Stamp};
use crate::locations::FileCache;
use gfs_core::ids::InodeId;
use gfs_core::meta::opens::OpenMode;
use gfs_core::meta::request::Refusal;
use gfs_proto::convert::{open_mode_from_wire, open_mode_to_wire, refusal_code};
use gfs_proto::v1::{self, client_message::Body as Ask, request::Kind, server_message::Body as Said};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

/// What can be asked of the master within a session.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// A mutation.
    Mutate { credentials: v1::Credentials, request: v1::Request },
    /// A `SetLock` that may wait.
    WaitLock { credentials: v1::Credentials, request: v1::Request },
    /// A query.
    Query(v1::QueryRequest),
    /// Holds a file open.
    Open(v1::OpenFile),
    /// Times of a write that changed nothing else.
    SoftTimes(v1::SoftTimes),
    /// Space.
    StatFs,
    /// Where a chunk is.
    Locate(v1::LocateRequest),
}

impl Call {
    fn request(&self) -> Option<&v1::Request> {
        match self {
            Self::Mutate { request, .. } | Self::WaitLock { request, .. } => Some(request),
            _ => None,
        }
    }

    /// Whether others may wait for it.
    pub(super) fn is_flush(&self) -> bool {
        matches!(self.request(), Some(v1::Request { kind: Some(Kind::Flush(_)) }))
    }

    fn request_mut(&mut self) -> Option<&mut v1::Request> {
        match self {
            Self::Mutate { request, .. } | Self::WaitLock { request, .. } => Some(request),
            _ => None,
        }
    }
}

/// An answer and when its question was sent.
pub(crate) type Arrival = (Said, Stamp);

struct Pending {
    call: Call,
    /// 0 for what is not a mutation.
    operation: u64,
    /// When it was sent over the present connection.
    stamp: Option<Stamp>,
    /// Whether any connection ever carried it.
    ever_sent: bool,
    /// Nobody waits for the answer any more.
    abandoned: bool,
    /// The master was told to hold what it makes.
    promised: bool,
    /// Of an abandoned mutation.
    doubt: Option<Doubt>,
    answer: oneshot::Sender<Result<Arrival, ClientError>>,
    _permit: OwnedSemaphorePermit,
}

/// A mutation that nobody waits for any more may still be carried out: nothing is known until that is over, and nothing from before then.
struct Doubt {
    grants: Arc<Grants>,
    files: Arc<FileCache>,
}

impl Doubt {
    fn new(grants: &Arc<Grants>, files: &Arc<FileCache>) -> Self {
        grants.liveness.doubt();
        Self { grants: grants.clone(), files: files.clone() }
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        self.grants.mark_all();
        self.files.clear();
        self.grants.liveness.end_doubt();
    }
}

/// What a message from the master means for the connection.
#[derive(Debug)]
pub(super) enum Step {
    /// Go on.
    Continue,
    /// Send this call again after a while.
    Later(u64),
    /// This master cannot serve: try the hinted one, or another.
    Elsewhere(Option<String>),
    /// The session has ended on the master's side.
    Lost,
    /// No retry can help.
    Final(ClientError),
}

/// Files held open that the master is not told of.
const MAX_UNTOLD: usize = 4096;
/// The tag of the probe; calls count from 1.
pub(super) const PROBE_TAG: u64 = u64::MAX;

pub(super) struct Table {
    grants: Arc<Grants>,
    files: Arc<FileCache>,
    pub(super) session: u64,
    window: ConfirmWindow,
    next_tag: u64,
    pending: BTreeMap<u64, Pending>,
    out: Option<mpsc::Sender<v1::ClientMessage>>,
    /// Counts connections; names the present one in acknowledgements.
    pub(super) connection: u64,
    /// Files held open, by (inode, access as it is counted).
    opens: BTreeMap<(u64, u32), u32>,
    /// Those of them that the master has not been told of.
    untold: BTreeMap<(u64, u32), u32>,
    shown: Shown,
    recent: Recent,
    /// The present session has ended on the master's side.
    expired: bool,
    handshaking: bool,
    late_closes: Vec<v1::CloseFile>,
    failed: Option<ClientError>,
    /// When the present connection last said anything.
    heard: Instant,
    probed: Option<Instant>,
    /// When the master was last asked for a sign of life, unless it has given one since.
    asked: Option<Instant>,
}

impl Table {
    pub(super) fn new(grants: Arc<Grants>, files: Arc<FileCache>) -> Self {
        Self {
            grants,
            files,
            session: 0,
            window: ConfirmWindow::default(),
            next_tag: 0,
            pending: BTreeMap::new(),
            out: None,
            connection: 0,
            opens: BTreeMap::new(),
            untold: BTreeMap::new(),
            shown: Shown::default(),
            recent: Recent::default(),
            expired: false,
            handshaking: false,
            late_closes: Vec::new(),
            failed: None,
            heard: Instant::now(),
            probed: None,
            asked: None,
        }
    }

    /// Takes a call; it is sent at once when there is a connection.
    pub(super) fn submit(
        &mut self,
        mut call: Call,
        permit: OwnedSemaphorePermit,
    ) -> Result<(u64, oneshot::Receiver<Result<Arrival, ClientError>>), ClientError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let session = self.session;
        call.request_mut().into_iter().for_each(|request| own_locks(request, session));
        let operation = if call.request().is_some() { self.window.begin() } else { 0 };
        let (answer, receiver) = oneshot::channel();
        self.next_tag += 1;
        let tag = self.next_tag;
        let pending = Pending {
            call,
            operation,
            stamp: None,
            ever_sent: false,
            abandoned: false,
            promised: false,
            doubt: None,
            answer,
            _permit: permit,
        };
        self.pending.insert(tag, pending);
        self.transmit(tag);
        Ok((tag, receiver))
    }

    /// Sends a waiting call over the present connection, if there is one.
    pub(super) fn transmit(&mut self, tag: u64) {
        let confirmed = self.window.confirmed();
        let Some(pending) = self.pending.get_mut(&tag) else { return };
        let Some(out) = &self.out else { return };
        let message = v1::ClientMessage { tag, body: Some(body_of(pending, confirmed)) };
        pending.stamp = Some(self.grants.stamp());
        match out.try_send(message) {
            Ok(()) => pending.ever_sent = true,
            Err(_) => self.disconnect(),
        }
    }

    /// Sends what needs no answer; dropped without a connection, and a full queue ends the connection.
    pub(super) fn tell(&mut self, body: Ask) {
        self.tell_tagged(0, body);
    }

    /// As `tell`, with a tag by which an answer is known.
    pub(super) fn tell_tagged(&mut self, tag: u64, body: Ask) {
        if self.out.as_ref().is_some_and(|out| out.try_send(v1::ClientMessage { tag, body: Some(body) }).is_err()) {
            self.disconnect();
        }
    }

    /// Gives up a call that was not sent yet. True when it never will be.
    pub(super) fn withdraw(&mut self, tag: u64) -> bool {
        if self.pending.get(&tag).is_none_or(|pending| pending.ever_sent) {
            return false;
        }
        self.forget(tag);
        true
    }

    /// The caller waits no longer: an answer is still taken for its number, and undone where it holds something.
    pub(super) fn abandon(&mut self, tag: u64) {
        if self.withdraw(tag) {
            return;
        }
        if let Some(pending) = self.pending.get_mut(&tag) {
            pending.abandoned = true;
            pending.doubt = pending.call.request().map(|_| Doubt::new(&self.grants, &self.files));
        }
    }

    /// Asks the master to end a lock wait.
    pub(super) fn cancel_wait(&mut self, tag: u64) {
        self.tell(Ask::Cancel(v1::CancelWait { tag }));
    }

    fn forget(&mut self, tag: u64) -> Option<Pending> {
        let pending = self.pending.remove(&tag)?;
        self.window.end(pending.operation);
        Some(pending)
    }

    /// The master knows the session no more: the next hello asks for a new one.
    pub(super) fn expire(&mut self) {
        self.expired |= self.session != 0;
    }

    /// What to say first on a new connection.
    pub(super) fn hello(
        &mut self,
        description: &str,
        nonce: u64,
        cluster: &[u8],
        mut delegated: BTreeSet<u64>,
    ) -> v1::Hello {
        self.handshaking = true;
        self.late_closes.clear();
        // All are told now.
        self.untold.clear();
        let open = |((inode, access), count): (&(u64, u32), &u32)| v1::OpenFile {
            inode: *inode,
            access: *access,
            count: *count,
            delegated: delegated.remove(inode),
            ..v1::OpenFile::default()
        };
        let creating = if self.expired { Vec::new() } else { self.creating() };
        let mut reclaim: Vec<v1::OpenFile> = self.opens.iter().map(open).collect();
        // Held without being open: the close is on its way.
        reclaim.extend(delegated.into_iter().map(|inode| v1::OpenFile {
            inode,
            delegated: true,
            ..v1::OpenFile::default()
        }));
        v1::Hello {
            protocol: gfs_proto::PROTOCOL,
            session: if self.expired { 0 } else { self.session },
            nonce,
            description: description.to_owned(),
            cluster: cluster.to_vec().into(),
            reclaim,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            creating,
            times: self.shown.recent(),
            answered: if self.expired { Vec::new() } else { self.recent.operations() },
        }
    }

    /// Operations that may have made and opened a file by now, and whose answers are still waited for.
    fn creating(&mut self) -> Vec<u64> {
        let mut operations = Vec::new();
        for pending in self.pending.values_mut() {
            let kind = pending.call.request().and_then(|request| request.kind.as_ref());
            let opens = matches!(kind, Some(Kind::Create(create)) if create.open);
            pending.promised = opens && pending.ever_sent && !pending.abandoned;
            operations.extend(pending.promised.then_some(pending.operation));
        }
        operations
    }

    /// The master welcomed us: everything that waits is sent again over this connection. Returns whether the old session,
    /// if there was one, is lost.
    pub(super) fn attach(&mut self, out: mpsc::Sender<v1::ClientMessage>, session: u64, resumed: bool) -> bool {
        let lost = self.session != 0 && (self.expired || !resumed || session != self.session);
        self.expired = false;
        if lost || self.session == 0 {
            self.begin_session(session);
        }
        self.connection += 1;
        self.handshaking = false;
        self.heard = Instant::now();
        self.probed = None;
        self.asked = None;
        self.out = Some(out);
        // What was opened since the hello, before anything that makes it or takes its name.
        self.tell_opens(None);
        for close in std::mem::take(&mut self.late_closes) {
            self.tell(Ask::Close(close));
        }
        let tags: Vec<u64> = self.pending.keys().copied().collect();
        for tag in tags {
            // What the master holds for us has to be answered, and given back then.
            if self.pending.get(&tag).is_some_and(|p| p.abandoned && !p.promised) {
                self.forget(tag);
            } else {
                self.transmit(tag);
            }
        }
        lost
    }

    /// What those operations were about that were answered, and that the master does not know.
    pub(super) fn lost(&mut self, welcome: &v1::Welcome) -> BTreeSet<InodeId> {
        self.recent.take_lost(&welcome.lost)
    }

    /// Under a new session, operations count anew. A mutation that the old one may have carried out, and that cannot be repeated without
    /// showing, has an unknown outcome and fails.
    fn begin_session(&mut self, session: u64) {
        self.session = session;
        self.window = ConfirmWindow::default();
        self.recent.clear();
        let tags: Vec<u64> = self.pending.keys().copied().collect();
        for tag in tags {
            let Some(pending) = self.pending.get_mut(&tag) else { continue };
            let Some(request) = pending.call.request_mut() else { continue };
            if pending.abandoned || (pending.ever_sent && !repeatable(request)) {
                if let Some(pending) = self.pending.remove(&tag) {
                    let _ = pending.answer.send(Err(ClientError::SessionLost { inode: None }));
                }
                continue;
            }
            own_locks(request, session);
            pending.operation = self.window.begin();
        }
    }

    /// The connection is gone; calls wait for the next one.
    pub(super) fn disconnect(&mut self) {
        self.out = None;
        for pending in self.pending.values_mut() {
            pending.stamp = None;
        }
    }

    pub(super) fn connected(&self) -> bool {
        self.out.is_some()
    }

    /// Fails every call, now and from now on.
    pub(super) fn fail(&mut self, error: &ClientError) {
        self.failed = Some(error.clone());
        self.out = None;
        for (_, pending) in std::mem::take(&mut self.pending) {
            let _ = pending.answer.send(Err(error.clone()));
        }
    }

    /// The master said something about a call.
    pub(super) fn arrive(&mut self, tag: u64, said: Said) -> Step {
        self.heard = Instant::now();
        self.probed = None;
        if let Said::Failure(failure) = &said {
            return self.failure(tag, failure);
        }
        if let Said::Reply(reply) = &said
            && reply.refusal == refusal_code(Refusal::SessionExpired)
        {
            return Step::Lost;
        }
        // An answer to a call that was given up, or the probe's.
        let Some(pending) = self.forget(tag) else { return Step::Continue };
        self.note_open(&pending.call, &said);
        if let (Call::SoftTimes(times), Said::Reply(v1::Reply { shown_ns: shown @ 1.., .. })) = (&pending.call, &said) {
            self.shown.note(times, *shown);
        }
        if let (Some(request), Said::Reply(reply)) = (pending.call.request(), &said) {
            self.recent.note(pending.operation, request, reply);
        }
        let stamp = pending.stamp.unwrap_or_else(|| self.grants.stamp());
        let call = pending.call;
        if let Err(Ok((said, _))) = pending.answer.send(Ok((said, stamp))) {
            self.undo(call, &said);
        }
        Step::Continue
    }

    fn failure(&mut self, tag: u64, failure: &v1::Failure) -> Step {
        use v1::failure::Code;
        match failure.code() {
            Code::NotLeader => Step::Elsewhere((!failure.hint.is_empty()).then(|| failure.hint.clone())),
            Code::Starting | Code::Stopping => Step::Elsewhere(None),
            Code::SessionExpired => Step::Lost,
            Code::Protocol => Step::Final(ClientError::Version(failure.message.clone())),
            Code::WrongCluster => Step::Final(ClientError::WrongCluster),
            Code::Overloaded | Code::Unavailable | Code::Unspecified => Step::Later(tag),
            Code::Malformed => {
                if let Some(pending) = self.forget(tag) {
                    let _ = pending.answer.send(Err(ClientError::malformed(failure.message.as_str())));
                }
                Step::Continue
            }
        }
    }

    /// Holds a file open that the master need not be told of yet: whoever might free it asks first, and it is told then. False when there
    /// are too many.
    pub(super) fn open_untold(&mut self, inode: u64, access: u32) -> bool {
        let key = (inode, access);
        if self.untold.len() >= MAX_UNTOLD && !self.untold.contains_key(&key) {
            return false;
        }
        self.open_made(inode, access);
        true
    }

    /// As `open_untold`, of a file that this session has just made by itself: those are told with their making.
    pub(super) fn open_made(&mut self, inode: u64, access: u32) {
        *self.opens.entry((inode, access)).or_insert(0) += 1;
        *self.untold.entry((inode, access)).or_insert(0) += 1;
    }

    /// Tells the master of these files, or of all, as far as they are open and it does not know.
    pub(super) fn tell_opens(&mut self, inodes: Option<&[InodeId]>) {
        if self.out.is_none() {
            // They are told when there is a connection again.
            return;
        }
        let keys: Vec<(u64, u32)> = match inodes {
            None => self.untold.keys().copied().collect(),
            Some(inodes) => {
                let of = |inode: &InodeId| (inode.0, 0)..=(inode.0, u32::MAX);
                inodes.iter().flat_map(|inode| self.untold.range(of(inode)).map(|(key, _)| *key)).collect()
            }
        };
        for (inode, access) in keys {
            let count = self.untold.remove(&(inode, access)).unwrap_or(0);
            self.tell(Ask::Open(v1::OpenFile { inode, access, count, known: true, ..v1::OpenFile::default() }));
        }
    }

    fn note_open(&mut self, call: &Call, said: &Said) {
        if let Some(key) = opened(call, said) {
            *self.opens.entry(key).or_insert(0) += 1;
        }
    }

    /// Gives back what an answer holds that nobody waits for.
    fn undo(&mut self, call: Call, said: &Said) {
        if let Some((inode, access)) = opened(&call, said) {
            self.close(inode, access);
        }
        // A lock that nobody knows of must not stay. The release is a mutation of its own; nobody waits for it either, and a
        // session that ends releases everything anyway.
        let (Call::Mutate { credentials, mut request } | Call::WaitLock { credentials, mut request }) = call else {
            return;
        };
        let held = matches!(said, Said::Reply(reply) if reply.refusal == 0);
        if let Some(Kind::SetLock(set)) = &mut request.kind
            && let Some(lock) = set.lock.as_mut().filter(|lock| held && lock.mode != UNLOCK)
        {
            lock.mode = UNLOCK;
            let operation = self.window.begin();
            let confirmed = self.window.confirmed();
            let mutation =
                v1::Mutation { operation, confirmed, credentials: Some(credentials), request: Some(request) };
            self.tell(Ask::Mutation(mutation));
            self.window.end(operation);
        }
    }

    /// A file handle was closed, and the master knows. Returns whether it was held.
    pub(super) fn closed(&mut self, inode: u64, access: u32) -> bool {
        take_one(&mut self.opens, (inode, access))
    }

    /// A file handle was closed.
    pub(super) fn close(&mut self, inode: u64, access: u32) {
        if !self.closed(inode, access) || take_one(&mut self.untold, (inode, access)) {
            return;
        }
        let close = v1::CloseFile { inode, access, count: 1 };
        if self.handshaking {
            self.late_closes.push(close);
        } else {
            self.tell(Ask::Close(close));
        }
    }

    /// Whether the connection must be given up: calls wait, and neither they nor a probe were answered in time. Sends the probe.
    pub(super) fn stalled(&mut self, quiet: Duration, patience: Duration) -> bool {
        let waits = |pending: &Pending| pending.stamp.is_some_and(|stamp| stamp.sent.elapsed() > quiet);
        if self.heard.elapsed() < quiet || !self.pending.values().any(waits) {
            return false;
        }
        match self.probed {
            Some(at) => at.elapsed() > patience,
            None => {
                self.probed = Some(Instant::now());
                let probe = v1::ClientMessage { tag: PROBE_TAG, body: Some(Ask::Statfs(v1::StatFsRequest {})) };
                self.out.as_ref().is_some_and(|out| out.try_send(probe).is_err())
            }
        }
    }

    /// Asks for a sign of life.
    pub(super) fn ask_sign(&mut self) {
        self.asked.get_or_insert_with(Instant::now);
        self.tell_tagged(PROBE_TAG, Ask::Statfs(v1::StatFsRequest {}));
    }

    /// When what is answered under this tag was sent.
    pub(super) fn sent(&mut self, tag: u64) -> Option<Instant> {
        if tag == PROBE_TAG { self.asked.take() } else { Some(self.pending.get(&tag)?.stamp?.sent) }
    }

    /// Notes that the master is alive.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
        self.probed = None;
    }
}

/// Takes one handle off a count of open files. Returns whether there was one.
fn take_one(counts: &mut BTreeMap<(u64, u32), u32>, key: (u64, u32)) -> bool {
    let Some(count) = counts.get_mut(&key) else { return false };
    *count -= 1;
    if *count == 0 {
        counts.remove(&key);
    }
    true
}

/// Wire value of a lock mode.
const UNLOCK: u32 = 2;

/// Sets the session in the locks of a request: it is only known here.
fn own_locks(request: &mut v1::Request, session: u64) {
    match &mut request.kind {
        Some(Kind::SetLock(set)) => set.lock.iter_mut().for_each(|lock| lock.session = session),
        Some(Kind::ReleaseLocks(release)) => release.session = session,
        _ => {}
    }
}

/// Whether a request may be applied a second time under another session without anybody noticing.
fn repeatable(request: &v1::Request) -> bool {
    match &request.kind {
        Some(Kind::Create(create)) => !create.exclusive,
        Some(Kind::SetXattr(set)) => set.mode == 0,
        Some(
            Kind::Link(_) | Kind::Unlink(_) | Kind::Rmdir(_) | Kind::Rename(_) | Kind::RemoveXattr(_) | Kind::Flush(_),
        )
        | None => false,
        Some(
            Kind::SetAttributes(_)
            | Kind::SetLock(_)
            | Kind::ReleaseLocks(_)
            | Kind::AllocateChunks(_)
            | Kind::CommitWrite(_)
            | Kind::TouchAccess(_)
            | Kind::TouchAccesses(_)
            | Kind::ReserveInodes(_)
            | Kind::CutTail(_)
            | Kind::Hold(_)
            | Kind::Barrier(_),
        ) => true,
    }
}

/// The open file that an answer stands for: (inode, access as it is counted).
fn opened(call: &Call, said: &Said) -> Option<(u64, u32)> {
    match (call, said) {
        (Call::Open(open), Said::Open(answer)) if answer.refusal == 0 => {
            let asked = open_mode_from_wire(open.access).ok()?;
            Some((open.inode, open_mode_to_wire(OpenMode { pages: asked.pages && answer.pages, ..asked })))
        }
        (Call::Mutate { request, .. }, Said::Reply(reply)) if reply.refusal == 0 => match &request.kind {
            Some(Kind::Create(create)) if create.open => {
                reply.attributes.as_ref().map(|a| (a.inode, super::CREATE_ACCESS))
            }
            _ => None,
        },
        _ => None,
    }
}

fn body_of(pending: &Pending, confirmed: u64) -> Ask {
    let mutation = |credentials: &v1::Credentials, request: &v1::Request| v1::Mutation {
        operation: pending.operation,
        confirmed,
        credentials: Some(credentials.clone()),
        request: Some(request.clone()),
    };
    match &pending.call {
        Call::Mutate { credentials, request } => Ask::Mutation(mutation(credentials, request)),
        Call::WaitLock { credentials, request } => {
            Ask::LockWait(v1::LockWait { mutation: Some(mutation(credentials, request)) })
        }
        Call::Query(query) => Ask::Query(query.clone()),
        Call::Open(open) => Ask::Open(*open),
        Call::SoftTimes(times) => Ask::SoftTimes(*times),
        Call::StatFs => Ask::Statfs(v1::StatFsRequest {}),
        Call::Locate(locate) => Ask::Locate(locate.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_after_the_hello_is_told_with_the_connection() {
        let mut table = Table::new(Arc::default(), Arc::new(FileCache::new(Arc::default())));
        table.open_made(6, 3);
        let hello = table.hello("", 1, &[], BTreeSet::new());
        assert_eq!(hello.reclaim.iter().map(|open| open.inode).collect::<Vec<_>>(), [6]);
        table.open_made(7, 3);
        table.tell_opens(Some(&[InodeId(7)]));
        let (out, mut queue) = mpsc::channel(8);
        table.attach(out, 5, false);
        let told = queue.try_recv().map(|message| message.body);
        assert!(matches!(told, Ok(Some(Ask::Open(v1::OpenFile { inode: 7, known: true, count: 1, .. })))), "{told:?}");
        assert!(queue.try_recv().is_err());
    }
}
