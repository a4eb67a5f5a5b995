//! Chunk servers that keep their chunks in memory. All replicas of a chunk are one: what is tested is the client.

use super::master::{CLUSTER, Master};
use bytes::Bytes;
use gfs_core::ids::{ChunkHandle, ServerId, SessionId};
use gfs_core::meta::command::{Command, CommandReply, ServerIdentity};
use gfs_net::{DataHandler, Incoming, Responder, ServeLimits, crc32c};
use gfs_proto::v1::{DataReply, DataRequest, Stored, data_reply::Status, data_request::Op};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub const BLOCK: u64 = 4096;

#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// Highest end of what was written: where appends go.
    tail: u64,
    /// The last cut, by the epoch that it began.
    cut: u32,
    /// Blocks that hold bytes.
    blocks: BTreeSet<u64>,
    /// Mutations so far.
    sequence: u64,
    /// Answers by (session, operation).
    done: HashMap<(u64, u64), DataReply>,
}

/// What a server does with its next requests of a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Answers this without doing anything.
    Answer(Status),
    /// Does it, and answers TIMED_OUT.
    DoneButTimedOut,
    /// Does it, and answers when it is told to.
    DoneAndLate,
    /// Answers a read with a flipped bit.
    FlipBit,
    /// Never answers.
    Silent,
}

pub struct ChunkServers {
    master: Arc<Master>,
    chunks: Mutex<BTreeMap<ChunkHandle, Chunk>>,
    /// Faults of each server, first in, first out; `None` counts for all.
    faults: Mutex<Vec<(Option<ServerId>, &'static str, Fault)>>,
    /// Servers that never answer.
    pub dead: Mutex<HashSet<ServerId>>,
    /// Everything carried out: (server, kind).
    pub log: Mutex<Vec<(ServerId, &'static str)>>,
    pub servers: Mutex<Vec<ServerId>>,
    /// What was done and is to be answered late.
    late: Mutex<Vec<(Responder, DataReply)>>,
    _stop: watch::Sender<bool>,
}

impl ChunkServers {
    pub async fn start(master: &Arc<Master>, count: usize) -> Arc<Self> {
        let (stop, stopped) = watch::channel(false);
        let all = Arc::new(Self {
            master: master.clone(),
            chunks: Mutex::default(),
            faults: Mutex::default(),
            dead: Mutex::default(),
            log: Mutex::default(),
            servers: Mutex::default(),
            late: Mutex::default(),
            _stop: stop,
        });
        for number in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let identity = ServerIdentity {
                uuid: number as u128 + 1,
                address: listener.local_addr().unwrap().to_string(),
                host: format!("host-{number}"),
                ..ServerIdentity::default()
            };
            let CommandReply::Server(server) = master.apply(&Command::RegisterServer(identity)) else {
                panic!("no server")
            };
            all.servers.lock().push(server);
            let handler = Arc::new(Server { server, all: all.clone() });
            tokio::spawn(gfs_net::serve(listener, CLUSTER, handler, ServeLimits::default(), stopped.clone()));
        }
        let weak = Arc::downgrade(&all);
        master.on_cut(move |handle, from| {
            let Some(all) = weak.upgrade() else { return };
            let (info, chunk_size) = {
                let state = all.master.state.lock();
                (state.chunk(handle), state.chunk_size())
            };
            let mut chunks = all.chunks.lock();
            let chunk = chunks.entry(handle).or_default();
            chunk.bytes.resize(chunk_size as usize, 0);
            chunk.bytes[from as usize..].fill(0);
            chunk.tail = chunk.tail.min(from);
            chunk.cut = info.map_or(0, |info| info.cut.0);
        });
        all
    }

    /// Orders a fault for the next request of a kind, on one server or on any.
    pub fn fail(&self, server: Option<ServerId>, kind: &'static str, fault: Fault) {
        self.faults.lock().push((server, kind, fault));
    }

    /// Faults that are still to come.
    pub fn ordered(&self) -> usize {
        self.faults.lock().len()
    }

    /// Takes all orders back.
    pub fn forgive(&self) {
        self.faults.lock().clear();
    }

    /// How many answers are waiting.
    pub fn late(&self) -> usize {
        self.late.lock().len()
    }

    /// Gives the answers that were to be late.
    pub fn answer(&self) {
        self.late.lock().drain(..).for_each(|(responder, reply)| responder.send(reply, Bytes::new()));
    }

    /// Whether all orders were followed.
    pub fn is_obeyed(&self) -> bool {
        self.faults.lock().is_empty()
    }

    /// How often something was carried out.
    pub fn count(&self, kind: &str) -> usize {
        self.log.lock().iter().filter(|(_, k)| *k == kind).count()
    }

    /// Where appends to each chunk go.
    pub fn tails(&self) -> Vec<u64> {
        self.chunks.lock().values().map(|chunk| chunk.tail).collect()
    }

    fn fault(&self, server: ServerId, kind: &str) -> Option<Fault> {
        let mut faults = self.faults.lock();
        let at = faults.iter().position(|(s, k, _)| *k == kind && s.is_none_or(|s| s == server))?;
        Some(faults.remove(at).2)
    }

    fn perform(&self, request: &DataRequest, payload: Bytes, chunk_size: u64) -> (DataReply, Bytes) {
        let mut chunks = self.chunks.lock();
        let chunk = chunks.entry(ChunkHandle(request.handle)).or_default();
        chunk.bytes.resize(chunk_size as usize, 0);
        let id = (request.session, request.operation);
        if request.operation != 0
            && let Some(reply) = chunk.done.get(&id)
        {
            return (reply.clone(), Bytes::new());
        }
        let mut reply = DataReply::default();
        let mut out = Bytes::new();
        match request.op.clone().unwrap() {
            Op::Read(read) => {
                let end = (read.offset + u64::from(read.length)).min(chunk_size);
                out = Bytes::copy_from_slice(&chunk.bytes[read.offset as usize..end as usize]);
                reply.crc = crc32c(&out);
            }
            Op::Write(write) => put(chunk, write.offset, &payload, write.crc, &mut reply),
            Op::Append(append) => {
                let offset = chunk.tail.max(append.min_offset);
                if offset + payload.len() as u64 > append.limit {
                    return (DataReply { offset: chunk.tail, ..status(Status::NoRoom) }, out);
                }
                reply.offset = offset;
                put(chunk, offset, &payload, append.crc, &mut reply);
            }
            Op::Zero(zero) => {
                let end = (zero.offset + zero.length).min(chunk_size);
                chunk.bytes[zero.offset as usize..end as usize].fill(0);
                chunk
                    .blocks
                    .retain(|block| !(zero.offset..end).contains(&(block * BLOCK)) || (block + 1) * BLOCK > end);
                if zero.truncate {
                    chunk.tail = chunk.tail.min(zero.offset);
                }
            }
            Op::Seek(seek) => {
                let from = seek.offset as usize;
                let found = chunk.bytes[from..].iter().position(|byte| (*byte == 0) == seek.hole);
                reply.offset = found.map_or(chunk_size, |at| (from + at) as u64);
            }
            _ => {}
        }
        if request.operation != 0 {
            chunk.sequence += 1;
            let blocks = chunk.blocks.len() as u32;
            reply.stored = Some(Stored { blocks, epoch: request.epoch, sequence: chunk.sequence });
            chunk.done.insert(id, reply.clone());
        }
        (reply, out)
    }
}

fn put(chunk: &mut Chunk, offset: u64, payload: &[u8], crc: u32, reply: &mut DataReply) {
    assert_eq!(crc32c(payload), crc, "checksum of the payload");
    let end = offset as usize + payload.len();
    chunk.bytes[offset as usize..end].copy_from_slice(payload);
    chunk.tail = chunk.tail.max(end as u64);
    chunk.blocks.extend(offset / BLOCK..(end as u64).div_ceil(BLOCK));
    (reply.length, reply.cut) = (chunk.tail, chunk.cut);
}

fn status(status: Status) -> DataReply {
    DataReply { status: status.into(), ..DataReply::default() }
}

struct Server {
    server: ServerId,
    all: Arc<ChunkServers>,
}

impl DataHandler for Server {
    fn handle(&self, incoming: Incoming) {
        let Incoming { request, payload, responder, .. } = incoming;
        let (kind, to_primary) = match request.op.as_ref().unwrap() {
            Op::Read(_) => ("read", false),
            Op::Seek(_) => ("seek", false),
            Op::Write(_) => ("write", true),
            Op::Append(_) => ("append", true),
            Op::Zero(_) => ("zero", true),
            Op::Sync(_) => ("sync", true),
            _ => ("other", true),
        };
        if self.all.dead.lock().contains(&self.server) {
            std::mem::forget(responder);
            return;
        }
        let (known, chunk_size) = {
            let state = self.all.master.state.lock();
            (state.chunk(ChunkHandle(request.handle)), state.chunk_size())
        };
        let Some(info) = known else { return responder.send(status(Status::NoChunk), Bytes::new()) };
        let configuration = info.configuration;
        if configuration.epoch.0 != request.epoch || (to_primary && configuration.primary != self.server) {
            let told = DataReply { configuration: Some((&configuration).into()), ..status(Status::StaleEpoch) };
            return responder.send(told, Bytes::new());
        }
        let fault = self.all.fault(self.server, kind);
        match fault {
            Some(Fault::Answer(answer)) => return responder.send(status(answer), Bytes::new()),
            Some(Fault::Silent) => {
                std::mem::forget(responder);
                return;
            }
            Some(Fault::DoneButTimedOut | Fault::DoneAndLate | Fault::FlipBit) | None => {}
        }
        let is_open = self.all.master.state.lock().sessions().contains(SessionId(request.session));
        if request.session != 0 && !is_open {
            return responder.send(status(Status::Fenced), Bytes::new());
        }
        let (reply, mut out) = self.all.perform(&request, payload, chunk_size);
        self.all.log.lock().push((self.server, kind));
        match fault {
            Some(Fault::DoneButTimedOut) => return responder.send(status(Status::TimedOut), Bytes::new()),
            Some(Fault::DoneAndLate) => return self.all.late.lock().push((responder, reply)),
            Some(Fault::FlipBit) => {
                let mut damaged = out.to_vec();
                damaged[0] ^= 1;
                out = damaged.into();
            }
            _ => {}
        }
        responder.send(reply, out);
    }
}
