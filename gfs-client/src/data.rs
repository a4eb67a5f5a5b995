//! Calls to chunk servers: which member to ask, what to do when it does not answer, until the limit.
//!
//! A mutation goes to the primary under one operation number over every configuration, so that it happens once. A read goes to any member,
//! and to the next at once when one fails or is slow. This room knows chunks, not files.

use crate::error::ClientError;
use crate::files::PIECE;
use crate::limit::{CallLimit, WaitsFor};
use crate::locations::{Locations, Peer};
use crate::locks::LockBook;
use crate::near::Near;
use crate::session::{Call, DataOperation, Session};
use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, ServerId};
use gfs_core::meta::request::{ChunkLocation, Configuration};
use gfs_net::{DataPool, NetError, crc32c};
use gfs_proto::convert::servers_from_wire;
use gfs_proto::v1::data_request::Op;
use gfs_proto::v1::{self, DataReply, DataRequest, data_reply::Status, server_message::Body as Said};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// A read that is not answered so long is asked of another member too.
const HEDGE: Duration = Duration::from_millis(120);
/// Limits of one attempt, first and longest; doubled each time.
const READ_TRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
const WRITE_TRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// Limit of hashing a whole chunk.
const DIGEST_TRY: Duration = Duration::from_secs(30);
/// Pauses between attempts, first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// How far a member is told to read ahead, at least, in bytes.
const AHEAD: u64 = 2 << 20;
/// Bytes of the smallest read that says so: for smaller ones the operating system there reads ahead enough.
const LEAST_AHEAD: u32 = 64 << 10;
/// A server that has not answered a write is asked so often whether it answers anything, and given so long each time.
const SILENCES: u32 = 3;
const SILENT: Duration = Duration::from_millis(250);
/// Rounds over all members that answered with damage, after which it is certain.
const DAMAGED_ROUNDS: u32 = 3;

/// A chunk, and the file that it is thought to be part of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) inode: InodeId,
    pub(crate) handle: ChunkHandle,
    /// The configuration's epoch as of the layout that the call is based on, when that matters.
    pub(crate) epoch: Option<Epoch>,
}

impl Piece {
    /// A chunk, whatever its epoch.
    pub(crate) fn new(inode: InodeId, handle: ChunkHandle) -> Self {
        Self { inode, handle, epoch: None }
    }
}

/// Why a chunk could not be read or changed.
#[derive(Debug)]
pub(crate) enum DataFailure {
    /// The chunk is no more: the layout has changed.
    Gone,
    /// A server is full.
    NoSpace,
    /// Anything else.
    Client(ClientError),
}

impl From<ClientError> for DataFailure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// Servers that did not do what they were asked for.
#[derive(Clone, Copy, Default)]
struct Doubted<'a> {
    suspects: &'a [ServerId],
    /// And answer nothing else either.
    silent: bool,
}

/// What a mutation of a chunk came to.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) reply: DataReply,
    /// The configuration is no more the one that the call was based on: the file may have been cut meanwhile.
    pub(crate) moved: bool,
}

impl Changed {
    /// The last cut of the chunk that it came after; 0 is none.
    pub(crate) fn cut(&self) -> Epoch {
        Epoch(self.reply.cut)
    }
}

impl Peer {
    /// Its answer about a chunk, as something to wait for.
    fn answers(&self, handle: ChunkHandle, operation: &'static str) -> WaitsFor {
        WaitsFor::Server { server: self.server, address: self.address.clone(), handle, operation }
    }
}

/// In whose name a chunk is changed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behalf {
    /// Of a call that waits, and began in this session: when that ends before the change was ordered, it happens in the next one, but not
    /// if a lock on the file was lost with it.
    Call(u64),
    /// Of a write that was answered in this session: in no other, where somebody else may have written since.
    Session(u64),
}

impl Behalf {
    /// The number of a mutation of a file, in the session of this moment. Locks are lost before another session numbers its first.
    fn operation(self, data: &DataPath, inode: InodeId) -> Result<DataOperation, ClientError> {
        let operation = data.session.data_operation();
        let allowed = match self {
            Self::Session(wanted) => wanted == operation.session(),
            Self::Call(begun) => begun == operation.session() || !data.locks.were_lost_since(inode, begun),
        };
        if allowed {
            return Ok(operation);
        }
        // With this it is told: not by the next call once more.
        let _ = data.locks.check(inode);
        Err(ClientError::SessionLost { inode: Some(inode) })
    }
}

/// The way to the chunk servers.
pub(crate) struct DataPath {
    pub(crate) pool: DataPool,
    pub(crate) session: Arc<Session>,
    pub(crate) locations: Arc<Locations>,
    pub(crate) locks: Arc<LockBook>,
    pub(crate) near: Arc<Near>,
}

/// What a member's answer means for a read.
enum Verdict {
    Bytes(Bytes),
    /// Ask another member.
    Other {
        reason: Arc<str>,
        damaged: bool,
    },
    /// The configuration is not the one in force.
    Stale(Option<Configuration>),
    /// It has no such chunk.
    Missing,
    Final(ClientError),
}

/// One of several futures of one task.
pub(crate) type Attempt<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The first of several futures to end, which is removed. New ones are begun in their order.
pub(crate) async fn first_of<T>(attempts: &mut Vec<Attempt<'_, T>>) -> T {
    std::future::poll_fn(|context| {
        for index in 0..attempts.len() {
            if let Poll::Ready(value) = attempts[index].as_mut().poll(context) {
                drop(attempts.remove(index));
                return Poll::Ready(value);
            }
        }
        Poll::Pending
    })
    .await
}

struct Backoff {
    next: Duration,
}

impl Backoff {
    fn new() -> Self {
        Self { next: PAUSE.0 }
    }

    async fn pause(&mut self, limit: &CallLimit, hint_ms: u32) -> Result<(), ClientError> {
        let length = if hint_ms > 0 { Duration::from_millis(hint_ms.into()).min(PAUSE.1) } else { self.next };
        self.next = (self.next * 2).min(PAUSE.1);
        limit.pause("chunk server", length).await
    }
}

impl DataPath {
    /// As `change`, of a range that is to read as zeros.
    pub(crate) async fn zero(
        &self,
        piece: Piece,
        zero: v1::Zero,
        behalf: Behalf,
        limit: &CallLimit,
    ) -> Result<(), DataFailure> {
        self.change(piece, Op::Zero(zero), Bytes::new(), Some(behalf), limit).await.map(drop)
    }

    /// In whose name a call that begins now changes chunks.
    pub(crate) fn call(&self) -> Behalf {
        Behalf::Call(self.session.data_session())
    }

    // --- where a chunk is

    /// Whether a server answers nothing at all, asked several times.
    async fn is_silent(&self, address: &str) -> bool {
        for _ in 0..SILENCES {
            if !self.pool.is_silent(address, SILENT).await {
                return false;
            }
        }
        true
    }

    /// Asks the master for the configuration in force; with `known`, waits there a short time for a newer one.
    async fn locate(
        &self,
        handle: ChunkHandle,
        known: u32,
        doubted: Doubted<'_>,
        limit: &CallLimit,
    ) -> Result<(), DataFailure> {
        let suspects: Vec<u32> = doubted.suspects.iter().map(|server| server.0.into()).collect();
        let silent = if doubted.silent { suspects.clone() } else { Vec::new() };
        let call = Call::Locate(v1::LocateRequest { handle: handle.0, known_epoch: known, suspects, silent });
        let (said, _) = self.session.call("locate", call, limit).await?;
        let Said::Locations(locations) = said else {
            return Err(ClientError::malformed("answer to a location question").into());
        };
        self.locations.learn_servers(servers_from_wire(locations.servers).map_err(ClientError::from)?);
        let Some(chunk) = locations.chunk.filter(|_| locations.refusal == 0) else {
            self.locations.forget(handle);
            return Err(DataFailure::Gone);
        };
        let chunk = ChunkLocation::try_from(chunk).map_err(ClientError::from)?;
        if chunk.handle != handle {
            return Err(ClientError::malformed("location of another chunk").into());
        }
        self.locations.learn_chunk(chunk);
        Ok(())
    }

    /// Asks for a configuration in which another than this primary leads; `unanswered` when that let a call run out of time. Meanwhile it is
    /// asked whether it answers anything: the master does not part from one that is alive because it is slow.
    async fn locate_another(
        &self,
        handle: ChunkHandle,
        known: Epoch,
        primary: &Peer,
        unanswered: bool,
        limit: &CallLimit,
    ) -> Result<(), DataFailure> {
        let doubted = Doubted { suspects: &[primary.server], silent: false };
        let silence = async {
            if !unanswered || !self.is_silent(&primary.address).await {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            located = self.locate(handle, known.0, doubted, limit) => located,
            () = silence => self.locate(handle, known.0, Doubted { silent: true, ..doubted }, limit).await,
        }
    }

    async fn configuration(&self, handle: ChunkHandle, limit: &CallLimit) -> Result<Configuration, DataFailure> {
        if let Some(known) = self.locations.configuration(handle)
            && known.members.iter().any(|server| self.locations.peer(*server).is_some())
        {
            return Ok(known);
        }
        self.locate(handle, 0, Doubted::default(), limit).await?;
        self.locations.configuration(handle).ok_or(DataFailure::Gone)
    }

    fn request(&self, piece: Piece, epoch: u32, deadline: Instant, op: Op) -> DataRequest {
        DataRequest {
            handle: piece.handle.0,
            epoch,
            inode: piece.inode.0,
            deadline_ms: deadline.saturating_duration_since(Instant::now()).as_millis().try_into().unwrap_or(u32::MAX),
            op: Some(op),
            ..DataRequest::default()
        }
    }

    // --- reading

    /// Reads a part of a chunk: exactly `length` bytes, which must not reach past the chunk's end. `in_a_row`: the bytes behind
    /// it will be read next.
    pub(crate) async fn read(
        &self,
        piece: Piece,
        offset: u64,
        length: u32,
        in_a_row: bool,
        limit: &CallLimit,
    ) -> Result<Bytes, DataFailure> {
        let range = (offset, length as usize);
        if let Some(bytes) = limit.run("read", self.near.read(piece, range, in_a_row)).await? {
            return Ok(bytes);
        }
        let members = self.locations.configuration(piece.handle).map_or(0, |known| known.members.len());
        let ahead = if in_a_row && length >= LEAST_AHEAD { ahead(members) } else { 0 };
        self.ask_members(piece, offset, Op::Read(v1::Read { offset, length, ahead }), limit, |reply, payload| {
            check_read(reply, payload, length)
        })
        .await
    }

    /// Finds the next data or hole from `offset` in a chunk.
    pub(crate) async fn seek(
        &self,
        piece: Piece,
        offset: u64,
        hole: bool,
        limit: &CallLimit,
    ) -> Result<u64, DataFailure> {
        let answer = self.ask_members(piece, offset, Op::Seek(v1::Seek { offset, hole }), limit, |reply, _| {
            Ok(Bytes::copy_from_slice(&reply.offset.to_be_bytes()))
        });
        let bytes: [u8; 8] = answer.await?.as_ref().try_into().unwrap_or([0xff; 8]);
        Ok(u64::from_be_bytes(bytes))
    }

    /// Has a member go on with a SHA-256 over a part of a chunk; answers where the hash stands then.
    pub(crate) async fn digest(
        &self,
        piece: Piece,
        offset: u64,
        length: u64,
        state: Bytes,
        limit: &CallLimit,
    ) -> Result<Bytes, DataFailure> {
        let op = Op::Digest(v1::Digest { offset, length, state, held: false });
        self.ask_members(piece, offset, op, limit, |reply, _| Ok(reply.digest.clone())).await
    }

    /// Has one certain member hash what it holds of the first `length` bytes of a chunk, once: the hash's state, and what was committed.
    pub(crate) async fn digest_at(
        &self,
        piece: Piece,
        (server, epoch): (ServerId, Epoch),
        length: u64,
        limit: &CallLimit,
    ) -> Result<DataReply, ClientError> {
        let deadline = limit.within_limit(DIGEST_TRY);
        let peer = self.locations.peer(server);
        let peer = peer.ok_or(ClientError::Io { handle: piece.handle, reason: "its address is not known".into() })?;
        let op = Op::Digest(v1::Digest { offset: 0, length, state: Bytes::new(), held: true });
        let request = self.request(piece, epoch.0, deadline, op);
        let called = self.pool.call(&peer.address, piece.handle.0, request, Bytes::new(), deadline);
        let _waits = limit.waits_for(peer.answers(piece.handle, "digest"));
        match limit.run("digest", called).await? {
            Ok((reply, _)) => Ok(reply),
            Err(error) => Err(ClientError::Io { handle: piece.handle, reason: error.to_string().into() }),
        }
    }

    async fn ask_members(
        &self,
        piece: Piece,
        offset: u64,
        op: Op,
        limit: &CallLimit,
        check: impl Fn(&DataReply, Bytes) -> Result<Bytes, &'static str> + Sync,
    ) -> Result<Bytes, DataFailure> {
        let (mut backoff, mut per_try, mut damaged_rounds) = (Backoff::new(), READ_TRY.0, 0);
        // Always the same member for the same bytes, so that it can read ahead; another client begins with another one.
        let turn = self.session.id().wrapping_add(piece.handle.0).wrapping_add(offset / PIECE);
        loop {
            let configuration = self.configuration(piece.handle, limit).await?;
            if piece.epoch.is_some_and(|known| known < configuration.epoch) {
                // The file may have been cut since its size was learned, and bytes of a write that is no part of it yet be there.
                return Err(DataFailure::Gone);
            }
            let round = self.read_round(piece, turn, &op, &configuration, (limit, limit.within_limit(per_try)), &check);
            match limit.run("read", round).await? {
                Round::Bytes(bytes) => return Ok(bytes),
                Round::Final(error) => return Err(error.into()),
                Round::Stale(known) => {
                    if !known.is_some_and(|known| self.locations.learn(piece.handle, known)) {
                        self.locate(piece.handle, 0, Doubted::default(), limit).await?;
                    }
                }
                Round::Failed { suspects, reason, all_damaged } => {
                    limit.failed(|| reason.clone());
                    damaged_rounds = if all_damaged { damaged_rounds + 1 } else { 0 };
                    if damaged_rounds >= DAMAGED_ROUNDS {
                        return Err(ClientError::Io { handle: piece.handle, reason }.into());
                    }
                    self.locate(piece.handle, 0, Doubted { suspects: &suspects, silent: false }, limit).await?;
                    per_try = (per_try * 2).min(READ_TRY.1);
                }
            }
            backoff.pause(limit, 0).await?;
        }
    }

    /// Asks one member after the other, the next one at once when one cannot, and beside it when it is slow.
    async fn read_round(
        &self,
        piece: Piece,
        turn: u64,
        op: &Op,
        configuration: &Configuration,
        limits: (&CallLimit, Instant),
        check: &(impl Fn(&DataReply, Bytes) -> Result<Bytes, &'static str> + Sync),
    ) -> Round {
        let mut waiting = self.locations.order(configuration, turn).into_iter();
        let mut running: Vec<Attempt<'_, (ServerId, Verdict)>> = Vec::new();
        let (mut suspects, mut reason, mut all_damaged) = (Vec::new(), Arc::from("no member has an address"), true);
        let (mut stale, mut missing, mut asked) = (None, false, ServerId(0));
        loop {
            if running.is_empty() {
                let Some(peer) = waiting.next() else { break };
                asked = peer.server;
                running.push(Box::pin(self.read_one(piece, op, configuration.epoch.0, peer, limits, turn, check)));
            }
            let first = tokio::select! {
                biased;
                first = first_of(&mut running) => first,
                () = tokio::time::sleep(HEDGE), if waiting.len() > 0 => {
                    // Until it answers, others are asked before it.
                    self.locations.suspect(asked);
                    if let Some(peer) = waiting.next() {
                        asked = peer.server;
                        running.push(Box::pin(self.read_one(piece, op, configuration.epoch.0, peer, limits, turn, check)));
                    }
                    continue;
                }
            };
            match first {
                (server, Verdict::Bytes(bytes)) => {
                    self.locations.trust(server);
                    return Round::Bytes(bytes);
                }
                (_, Verdict::Final(error)) => return Round::Final(error),
                (_, Verdict::Stale(known)) => stale = Some(known),
                (_, Verdict::Missing) => missing = true,
                (server, Verdict::Other { reason: why, damaged }) => {
                    self.locations.suspect(server);
                    suspects.push(server);
                    all_damaged &= damaged;
                    reason = why;
                }
            }
        }
        match stale {
            Some(known) => Round::Stale(known),
            None if missing => Round::Stale(None),
            None => Round::Failed { all_damaged: all_damaged && !suspects.is_empty(), suspects, reason },
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn read_one(
        &self,
        piece: Piece,
        op: &Op,
        epoch: u32,
        peer: Peer,
        (limit, deadline): (&CallLimit, Instant),
        lane: u64,
        check: &(impl Fn(&DataReply, Bytes) -> Result<Bytes, &'static str> + Sync),
    ) -> (ServerId, Verdict) {
        let request = self.request(piece, epoch, deadline, op.clone());
        let _waits = limit.waits_for(peer.answers(piece.handle, "read"));
        let answer = self.pool.call(&peer.address, lane, request, Bytes::new(), deadline).await;
        let verdict = match answer {
            Ok((reply, payload)) => read_verdict(&peer, reply, payload, check),
            Err(error) => Verdict::Other { reason: error.to_string().into(), damaged: false },
        };
        (peer.server, verdict)
    }

    // --- changing

    /// Carries a mutation to the chunk's primary, once; without a `behalf`, what may happen more than once. `NO_ROOM` is an answer, as
    /// `OK` is.
    pub(crate) async fn change(
        &self,
        piece: Piece,
        op: Op,
        payload: Bytes,
        behalf: Option<Behalf>,
        limit: &CallLimit,
    ) -> Result<Changed, DataFailure> {
        let mut operation = behalf.map(|behalf| behalf.operation(self, piece.inode)).transpose()?;
        let (mut backoff, mut per_try, mut first_epoch) = (Backoff::new(), WRITE_TRY.0, piece.epoch);
        loop {
            let configuration = self.configuration(piece.handle, limit).await?;
            let epoch = configuration.epoch;
            let moved = *first_epoch.get_or_insert(epoch) != epoch;
            let Some(primary) = self.locations.peer(configuration.primary) else {
                self.locate(piece.handle, 0, Doubted::default(), limit).await?;
                backoff.pause(limit, 0).await?;
                continue;
            };
            let deadline = limit.within_limit(per_try);
            let mut request = self.request(piece, epoch.0, deadline, op.clone());
            if let Some(operation) = &operation {
                request.session = operation.session();
                request.operation = operation.operation;
                request.confirmed = operation.confirmed();
            }
            let call = self.pool.call(&primary.address, piece.handle.0, request, payload.clone(), deadline);
            let waits = limit.waits_for(primary.answers(piece.handle, "write"));
            let answer = limit.run("write", call).await?;
            drop(waits);
            let unanswered = matches!(answer, Err(NetError::Deadline { .. }));
            match change_verdict(answer) {
                Next::Done(reply) => {
                    if let Some(stored) = reply.stored {
                        self.locations.count_seen(piece.handle, stored.into());
                    }
                    return Ok(Changed { reply, moved });
                }
                Next::NoSpace => return Err(DataFailure::NoSpace),
                Next::Final(error) => return Err(error.into()),
                Next::Again { hint_ms } => backoff.pause(limit, hint_ms).await?,
                Next::Fenced => {
                    limit.failed(|| "the session is over".into());
                    backoff.pause(limit, 0).await?;
                    operation = behalf.map(|behalf| behalf.operation(self, piece.inode)).transpose()?;
                }
                Next::Stale(known, servers) => {
                    self.locations.learn_servers(servers);
                    if !known.is_some_and(|known| self.locations.learn(piece.handle, known)) {
                        self.locate(piece.handle, 0, Doubted::default(), limit).await?;
                        backoff.pause(limit, 0).await?;
                    }
                }
                Next::Suspect(reason) => {
                    limit.failed(|| format!("chunk server {}: {reason}", primary.server).into());
                    tracing::debug!(handle = %piece.handle, primary = %primary.address, reason, "the primary does not serve");
                    limit.check("write")?;
                    self.locate_another(piece.handle, epoch, &primary, unanswered, limit).await?;
                    per_try = (per_try * 2).min(WRITE_TRY.1);
                    backoff.pause(limit, 0).await?;
                }
            }
        }
    }
}

enum Round {
    Bytes(Bytes),
    Stale(Option<Configuration>),
    Failed { suspects: Vec<ServerId>, reason: Arc<str>, all_damaged: bool },
    Final(ClientError),
}

/// What to do after an answer of a primary.
enum Next {
    Done(DataReply),
    NoSpace,
    Again {
        hint_ms: u32,
    },
    /// The session is over, and this was not and will not be done in it.
    Fenced,
    Stale(Option<Configuration>, Vec<gfs_core::meta::request::ServerAddress>),
    Suspect(String),
    Final(ClientError),
}

fn known_configuration(reply: &mut DataReply) -> Option<Configuration> {
    reply.configuration.take().and_then(|configuration| configuration.try_into().ok())
}

fn change_verdict(answer: Result<(DataReply, Bytes), NetError>) -> Next {
    let mut reply = match answer {
        Ok((reply, _)) => reply,
        Err(error @ NetError::TooLarge { .. }) => return Next::Final(ClientError::malformed(error.to_string())),
        Err(NetError::TooBusy { .. }) => return Next::Again { hint_ms: 0 },
        Err(error) => return Next::Suspect(error.to_string()),
    };
    match reply.status() {
        Status::Ok | Status::NoRoom => Next::Done(reply),
        Status::NoSpace => Next::NoSpace,
        Status::Fenced => Next::Fenced,
        Status::StaleEpoch | Status::NotPrimary | Status::NotMember | Status::NoChunk => {
            let servers = servers_from_wire(std::mem::take(&mut reply.servers)).unwrap_or_default();
            Next::Stale(known_configuration(&mut reply), servers)
        }
        Status::Busy | Status::TimedOut | Status::BadCrc | Status::OutOfOrder => {
            Next::Again { hint_ms: reply.retry_after_ms }
        }
        Status::NoLease | Status::Corrupt | Status::IoError => {
            Next::Suspect(format!("{:?} {}", reply.status(), reply.message))
        }
        Status::Malformed => Next::Final(ClientError::malformed(reply.message)),
        Status::WrongCluster => Next::Final(ClientError::WrongCluster),
    }
}

fn read_verdict(
    peer: &Peer,
    mut reply: DataReply,
    payload: Bytes,
    check: &impl Fn(&DataReply, Bytes) -> Result<Bytes, &'static str>,
) -> Verdict {
    let status = reply.status();
    match status {
        Status::Ok => match check(&reply, payload) {
            Ok(bytes) => Verdict::Bytes(bytes),
            Err(reason) => {
                tracing::warn!(server = %peer.server, reason, "damaged answer to a read");
                Verdict::Other { reason: reason.into(), damaged: true }
            }
        },
        Status::StaleEpoch | Status::NotMember | Status::NotPrimary => Verdict::Stale(known_configuration(&mut reply)),
        Status::NoChunk => Verdict::Missing,
        Status::Malformed => Verdict::Final(ClientError::malformed(reply.message)),
        Status::WrongCluster => Verdict::Final(ClientError::WrongCluster),
        Status::Corrupt | Status::IoError => {
            Verdict::Other { reason: format!("{status:?} {}", reply.message).into(), damaged: true }
        }
        Status::NoLease
        | Status::Busy
        | Status::NoSpace
        | Status::NoRoom
        | Status::TimedOut
        | Status::OutOfOrder
        | Status::BadCrc
        | Status::Fenced => Verdict::Other { reason: format!("{status:?}").into(), damaged: false },
    }
}

/// How far behind a piece its member is asked again when the pieces go to the members in turn, at least [`AHEAD`] bytes; 0 is not known.
fn ahead(members: usize) -> u32 {
    let round = members as u64 * PIECE;
    if round == 0 { 0 } else { u32::try_from(AHEAD.next_multiple_of(round)).unwrap_or(0) }
}

/// Verifies the checksums of a read. The payload is exactly what was asked, or it is damaged.
fn check_read(reply: &DataReply, payload: Bytes, length: u32) -> Result<Bytes, &'static str> {
    if payload.len() != length as usize {
        return Err("the answer has another length than was asked");
    }
    if reply.block_crcs.is_empty() {
        return if crc32c(&payload) == reply.crc { Ok(payload) } else { Err("checksum mismatch") };
    }
    let blocks = reply.block_crcs.len();
    if payload.is_empty() || !payload.len().is_multiple_of(blocks) {
        return Err("checksums do not fit the answer");
    }
    let size = payload.len() / blocks;
    let fits = payload.chunks(size).zip(&reply.block_crcs).all(|(block, crc)| crc32c(block) == *crc);
    if fits { Ok(payload) } else { Err("checksum mismatch") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_checked_whole_or_block_by_block() {
        let data = Bytes::from(vec![7u8; 8192]);
        let whole = DataReply { crc: crc32c(&data), ..DataReply::default() };
        assert_eq!(check_read(&whole, data.clone(), 8192).unwrap(), data);
        assert!(check_read(&DataReply { crc: whole.crc ^ 1, ..DataReply::default() }, data.clone(), 8192).is_err());
        assert!(check_read(&whole, data.slice(1..), 8192).is_err());
        let block = crc32c(&data[..4096]);
        let blocks = DataReply { block_crcs: vec![block, block], ..DataReply::default() };
        assert!(check_read(&blocks, data.clone(), 8192).is_ok());
        let damaged = DataReply { block_crcs: vec![block, block ^ 1], ..DataReply::default() };
        assert!(check_read(&damaged, data.clone(), 8192).is_err());
        let odd = DataReply { block_crcs: vec![block; 3], ..DataReply::default() };
        assert!(check_read(&odd, data, 8192).is_err());
    }

    #[test]
    fn a_member_reads_ahead_what_it_will_be_asked_itself() {
        for members in 1..=9 {
            let distance = u64::from(ahead(members));
            assert!(distance >= AHEAD);
            assert_eq!(distance / PIECE % members as u64, 0, "{members} members");
        }
        assert_eq!(ahead(0), 0);
    }

    #[tokio::test]
    async fn the_first_future_to_end_is_taken_out() {
        let mut attempts: Vec<Attempt<'_, u32>> = vec![Box::pin(std::future::pending()), Box::pin(async { 5 })];
        assert_eq!(first_of(&mut attempts).await, 5);
        assert_eq!(attempts.len(), 1);
    }
}
