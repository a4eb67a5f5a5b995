//! `DataHandler`: from a frame to a job of a replica.
//!
//! This room checks form, finds the replica, and has the master asked about a chunk that is unknown, or known older, or not
//! confirmed in this term of the lease. It decides nothing about bytes.

use crate::control::lookup::Looked;
use crate::control::orders;
use crate::driver::{Driver, Job, Mutate, ReadKind, Slot, Waiter, wire};
use crate::store::BLOCK;
use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, Epoch, InodeId, OperationId, ServerId, SessionId};
use gfs_core::replica::{Mutation, Role, Status, WriteKind};
use gfs_net::{DataHandler, Incoming, MAX_PAYLOAD};
use gfs_proto::v1::{self, data_reply, data_request::Op};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a request waits for the master at most.
const ASK: Duration = Duration::from_secs(2);
/// The same when the sender names no limit of its own.
const NO_DEADLINE: u32 = 0;
/// Blocks in one list: their versions must fit a header.
const MAX_LISTED: u32 = 8192;

/// Answers requests of clients and of other chunk servers.
pub struct DataService {
    driver: Arc<Driver>,
}

impl DataService {
    /// A service over the driver's replicas.
    pub fn new(driver: Arc<Driver>) -> Self {
        Self { driver }
    }
}

impl DataHandler for DataService {
    fn handle(&self, incoming: Incoming) {
        let driver = &self.driver;
        driver.shared.requests.fetch_add(1, Ordering::Relaxed);
        match kind(&incoming.request) {
            Some(Kind::Peer) => from_primary(driver, incoming),
            Some(Kind::Client) => from_client(driver, incoming),
            None => refuse(incoming, data_reply::Status::Malformed, "the request names no operation"),
        }
    }
}

enum Kind {
    Client,
    Peer,
}

fn kind(request: &v1::DataRequest) -> Option<Kind> {
    match request.op.as_ref()? {
        Op::Read(_)
        | Op::Write(_)
        | Op::Append(_)
        | Op::Zero(_)
        | Op::Sync(_)
        | Op::Seek(_)
        | Op::Digest(_)
        | Op::FetchBlocks(_) => Some(Kind::Client),
        Op::Prepare(_)
        | Op::Committed(_)
        | Op::Flush(_)
        | Op::Settle(_)
        | Op::CommittedQuery(_)
        | Op::CopyBlocks(_)
        | Op::ListBlocks(_) => Some(Kind::Peer),
    }
}

fn refuse(incoming: Incoming, status: data_reply::Status, message: &str) {
    incoming.responder.send(wire::refusal(status, message), Bytes::new());
}

/// Messages of a primary keep their order: they go to the replica's queue at once.
fn from_primary(driver: &Arc<Driver>, incoming: Incoming) {
    let handle = ChunkHandle(incoming.request.handle);
    if let Some(Op::Settle(settle)) = &incoming.request.op {
        driver.learn_addresses(settle.servers.clone());
    }
    let slot = match driver.slot(handle) {
        Some(slot) => slot,
        None => match created_by_settle(driver, &incoming.request) {
            Some(slot) => slot,
            None => return refuse(incoming, data_reply::Status::NoChunk, "no such chunk here"),
        },
    };
    let epoch = Epoch(incoming.request.epoch);
    let Incoming { request, payload, responder, peer } = incoming;
    match request.op {
        Some(Op::CommittedQuery(query)) => {
            let unsettled = query.unsettled.then(|| u16::try_from(query.server).ok()).flatten().map(ServerId);
            driver.push(&slot, Job::Query { epoch, unsettled, waiter: Waiter::Remote(responder) });
        }
        Some(Op::CopyBlocks(piece)) => driver.push(&slot, Job::Copy { epoch, piece, payload, responder }),
        Some(Op::ListBlocks(list)) => list_blocks(driver, slot, epoch, list, responder),
        _ => match wire::message_from_wire(&request) {
            Ok(Some((message, configuration))) => {
                if let Some(Op::Prepare(prepare)) = &request.op
                    && let Some(status) = wrong_payload(prepare, &payload)
                {
                    return responder.send(wire::refusal(status, "payload and header do not fit"), Bytes::new());
                }
                driver.push(&slot, Job::Peer { epoch, message, configuration, payload, responder });
            }
            Ok(None) | Err(_) => {
                tracing::warn!(%peer, %handle, "a message that can't be understood");
                responder.send(wire::refusal(data_reply::Status::Malformed, ""), Bytes::new());
            }
        },
    }
}

fn wrong_payload(prepare: &v1::Prepare, payload: &Bytes) -> Option<data_reply::Status> {
    let data = prepare.kind == WriteKind::Data as u32;
    let expected = if data { prepare.length } else { 0 };
    if payload.len() as u64 != expected {
        return Some(data_reply::Status::Malformed);
    }
    (data && !wire::is_whole(payload, prepare.crc)).then_some(data_reply::Status::BadCrc)
}

/// The primary of a new chunk may know of it before this server does.
fn created_by_settle(driver: &Arc<Driver>, request: &v1::DataRequest) -> Option<Arc<Slot>> {
    let Some(Op::Settle(settle)) = &request.op else { return None };
    let configuration = wire::told_configuration(settle.configuration.clone())?;
    let named = configuration.members.contains(&driver.me) || configuration.syncing.contains(&driver.me);
    // With something committed a member that has nothing is lost, not new; the replica would find that out as well.
    let fresh = settle.committed == 0 || configuration.syncing.contains(&driver.me);
    if !named {
        return None;
    }
    if !fresh {
        orders::report_missing(&driver.shared, ChunkHandle(request.handle));
        return None;
    }
    driver.create(ChunkHandle(request.handle), InodeId(request.inode), settle.index)
}

fn list_blocks(
    driver: &Arc<Driver>,
    slot: Arc<Slot>,
    epoch: Epoch,
    list: v1::ListBlocks,
    responder: gfs_net::Responder,
) {
    if list.count > MAX_LISTED {
        return responder.send(wire::refusal(data_reply::Status::Malformed, "too many blocks"), Bytes::new());
    }
    if slot.epoch() != epoch || slot.role() == Role::Outside {
        return responder.send(wire::reply(Status::StaleEpoch), Bytes::new());
    }
    let taken = driver.clone();
    driver.spawn_blocking(move || {
        let reply = match taken.store.blocks(slot.handle, list.first, list.count) {
            Ok(blocks) => {
                let blocks = blocks.iter().map(wire::block_to_wire).collect();
                v1::DataReply { blocks, ..wire::reply(Status::Ok) }
            }
            Err(error) => wire::refusal(wire::status_to_wire(wire::store_status(&error)), error.to_string()),
        };
        responder.send(reply, Bytes::new());
    });
}

fn from_client(driver: &Arc<Driver>, incoming: Incoming) {
    if let Some((status, message)) = wrong_form(driver, &incoming) {
        return refuse(incoming, status, message);
    }
    let handle = ChunkHandle(incoming.request.handle);
    let epoch = Epoch(incoming.request.epoch);
    if let Some(slot) = driver.slot(handle)
        && slot.epoch() >= epoch
        && driver.is_in_force(&slot)
    {
        return admit(driver, &slot, incoming);
    }
    if driver.shared.lease.term().is_none() {
        return refuse(incoming, data_reply::Status::NoLease, "this chunk server has no lease now");
    }
    let taken = driver.clone();
    driver.spawn(async move { ask_then_admit(&taken, handle, incoming).await });
}

async fn ask_then_admit(driver: &Arc<Driver>, handle: ChunkHandle, incoming: Incoming) {
    let limit = match incoming.request.deadline_ms {
        NO_DEADLINE => ASK,
        given => ASK.min(Duration::from_millis(given.into())),
    };
    match (driver.lookup.ask(handle, limit).await, driver.slot(handle)) {
        (Looked::Known, Some(slot)) => {
            // The answer is in the replica's queue; the request follows it there.
            wait_for_force(driver, &slot, Epoch(incoming.request.epoch), limit).await;
            admit(driver, &slot, incoming);
        }
        (Looked::Gone, _) | (Looked::Known, None) => {
            refuse(incoming, data_reply::Status::NoChunk, "no such chunk here");
        }
        (Looked::Unanswered, _) => refuse(incoming, data_reply::Status::Busy, "the master does not answer"),
    }
}

/// Reads look at the replica directly, so the job that confirms it has to be done first.
async fn wait_for_force(driver: &Arc<Driver>, slot: &Arc<Slot>, epoch: Epoch, limit: Duration) {
    let end = tokio::time::Instant::now() + limit;
    let mut pause = Duration::from_micros(200);
    let ready = || driver.is_in_force(slot) && slot.epoch() >= epoch;
    let leased = || driver.shared.lease.term().is_some();
    while !ready() && tokio::time::Instant::now() < end && leased() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(10));
        if slot.role() == Role::Outside && slot.epoch().0 > 0 {
            return;
        }
    }
}

/// What can be seen to be wrong before the replica is asked.
fn wrong_form(driver: &Driver, incoming: &Incoming) -> Option<(data_reply::Status, &'static str)> {
    use data_reply::Status::{BadCrc, Malformed};
    let (request, payload) = (&incoming.request, &incoming.payload);
    let fits = |offset: u64, length: u64| offset.checked_add(length).is_some_and(|end| end <= driver.chunk_size());
    let length = payload.len() as u64;
    let mutates = matches!(request.op, Some(Op::Write(_) | Op::Append(_) | Op::Zero(_)));
    if mutates && (request.session == 0 || request.operation == 0) {
        return Some((Malformed, "a mutation needs a session and an operation"));
    }
    match request.op.as_ref()? {
        Op::Write(write) if length == 0 || !fits(write.offset, length) => {
            Some((Malformed, "the write is empty or does not fit the chunk"))
        }
        Op::Append(_) if length == 0 => Some((Malformed, "an empty append")),
        Op::Append(append) if append.limit > driver.chunk_size() => Some((Malformed, "limit beyond the chunk")),
        Op::Write(v1::Write { crc, .. }) | Op::Append(v1::Append { crc, .. }) if !wire::is_whole(payload, *crc) => {
            Some((BadCrc, "the payload was damaged on the way"))
        }
        Op::Digest(digest) if !fits(digest.offset, digest.length) => {
            Some((Malformed, "the range does not fit the chunk"))
        }
        Op::Zero(zero) if !fits(zero.offset, zero.length) => Some((Malformed, "the range does not fit the chunk")),
        Op::Read(read) if read.length as usize > MAX_PAYLOAD => Some((Malformed, "a read of too many bytes")),
        Op::FetchBlocks(fetch) if u64::from(fetch.count) * BLOCK > MAX_PAYLOAD as u64 => {
            Some((Malformed, "too many blocks"))
        }
        _ => None,
    }
}

/// Gives the request to the replica.
fn admit(driver: &Arc<Driver>, slot: &Arc<Slot>, incoming: Incoming) {
    let Incoming { request, payload, responder, .. } = incoming;
    let epoch = Epoch(request.epoch);
    let length = payload.len() as u64;
    let (mutation, crc) = match request.op {
        Some(Op::Read(read)) => {
            let kind = ReadKind::Bytes { offset: read.offset, length: read.length };
            driver.read(slot, epoch, kind, responder);
            return driver.read_ahead(slot, read);
        }
        Some(Op::Seek(seek)) => {
            let kind = ReadKind::Seek { offset: seek.offset, hole: seek.hole };
            return driver.read(slot, epoch, kind, responder);
        }
        Some(Op::Digest(digest)) => {
            let kind = ReadKind::Digest {
                offset: digest.offset,
                length: digest.length,
                state: digest.state,
                held: digest.held,
            };
            return driver.read(slot, epoch, kind, responder);
        }
        Some(Op::FetchBlocks(fetch)) => {
            let kind = ReadKind::Blocks { first: fetch.first, count: fetch.count };
            return driver.read(slot, epoch, kind, responder);
        }
        Some(Op::Sync(_)) => {
            return driver.push(slot, Job::Sync { epoch, waiter: Waiter::Remote(responder) });
        }
        Some(Op::Write(write)) => (Mutation::At { kind: WriteKind::Data, offset: write.offset, length }, write.crc),
        Some(Op::Append(append)) => {
            let limit = if append.limit == 0 { driver.chunk_size() } else { append.limit };
            (Mutation::Append { min_offset: append.min_offset, limit, length }, append.crc)
        }
        Some(Op::Zero(zero)) => {
            let kind = if zero.truncate { WriteKind::Truncate } else { WriteKind::Zero };
            (Mutation::At { kind, offset: zero.offset, length: zero.length }, 0)
        }
        _ => return responder.send(wire::reply(Status::Malformed), Bytes::new()),
    };
    let operation = OperationId { session: SessionId(request.session), operation: request.operation };
    let waiter = Waiter::Remote(responder);
    let payload =
        if crc == 0 && !matches!(mutation, Mutation::Append { .. } | Mutation::At { kind: WriteKind::Data, .. }) {
            Bytes::new()
        } else {
            payload
        };
    let confirmed = request.confirmed;
    driver.push(slot, Job::Mutate(Mutate { epoch: Some(epoch), operation, confirmed, mutation, payload, crc, waiter }));
}
