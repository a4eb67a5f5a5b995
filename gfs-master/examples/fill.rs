//! Makes the directory of a master that knows very many files, in seconds: what `bench/names.sh` starts a master on.
//!
//!     fill DIR FILES [PER_DIRECTORY]
//!
//! Every file is made as a client makes it: the same commands are applied to the same state, and the checkpoint is the one that a master
//! writes. Only the log between them is left out. A file has one chunk with three replicas, on servers that do not exist. The files are
//! `/many/NNNNNNN/fNNNNNNN`, 1,000 in a directory.

use anyhow::{Context, Result, bail};
use gfs_core::ids::{ChunkHandle, InodeId, OperationId, ROOT, ServerId, SessionId};
use gfs_core::meta::command::{Command, CommandReply, ServerIdentity, Stamp};
use gfs_core::meta::request::{ClientCommand, Credentials, NodeKind, Reply, Request, Timestamp};
use gfs_core::meta::state::State;
use gfs_master::checkpoint::{self, Frozen};
use gfs_master::data_dir::{DataDir, FormatOptions};
use std::path::Path;
use std::time::{Instant, SystemTime};

const SERVERS: u64 = 3;
/// Chunks that a client asks for at a time.
const CHUNKS: usize = 64;

/// One session that does all the work.
struct Filler {
    state: State,
    stamp: Stamp,
    session: SessionId,
    operation: u64,
    servers: Vec<ServerId>,
    reserved: Vec<ChunkHandle>,
}

impl Filler {
    fn new(mut state: State, now: Timestamp) -> Result<Self> {
        let stamp = Stamp { now, seed: 0 };
        let mut servers = Vec::new();
        for number in 1..=SERVERS {
            let address = format!("192.0.2.{number}:7410");
            let identity = ServerIdentity { uuid: number.into(), host: address.clone(), address, ..Default::default() };
            match state.apply(stamp, &Command::RegisterServer(identity)) {
                CommandReply::Server(server) => servers.push(server),
                other => bail!("a server is not registered: {other:?}"),
            }
        }
        let open = Command::OpenSession { nonce: 1, description: "fill".into() };
        let CommandReply::Session(session) = state.apply(stamp, &open) else { bail!("no session") };
        Ok(Self { state, stamp, session, operation: 0, servers, reserved: Vec::new() })
    }

    fn ask(&mut self, request: Request) -> Result<Reply> {
        self.operation += 1;
        self.stamp.now.0 += 17_001;
        self.stamp.seed = self.stamp.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let id = OperationId { session: self.session, operation: self.operation };
        let command = ClientCommand { id, confirmed: self.operation - 1, credentials: Credentials::default(), request };
        match self.state.apply(self.stamp, &Command::Client(command)) {
            CommandReply::Client(Reply::Refused(refusal)) => bail!("refused: {refusal:?}"),
            CommandReply::Client(reply) => Ok(reply),
            other => bail!("a strange answer: {other:?}"),
        }
    }

    fn make(&mut self, parent: InodeId, name: String, kind: NodeKind, mode: u16) -> Result<InodeId> {
        let name = name.into_bytes();
        let request = Request::Create { parent, name, kind, mode, umask: 0o022, exclusive: true, hold: false };
        match self.ask(request)? {
            Reply::Entry { attributes, .. } => Ok(attributes.inode),
            other => bail!("not made: {other:?}"),
        }
    }

    fn chunk(&mut self) -> Result<ChunkHandle> {
        if self.reserved.is_empty() {
            let placements = vec![self.servers.clone(); CHUNKS];
            match self.ask(Request::AllocateChunks { replicas: SERVERS as u8, placements })? {
                Reply::Chunks(chunks) => self.reserved = chunks.into_iter().map(|(handle, _)| handle).rev().collect(),
                other => bail!("no chunks: {other:?}"),
            }
        }
        self.reserved.pop().context("no chunk")
    }

    fn file(&mut self, parent: InodeId, number: u64) -> Result<()> {
        let inode = self.make(parent, format!("f{number:07}"), NodeKind::File, 0o644)?;
        let attach = vec![(0, self.chunk()?)];
        let min_size = Some(4096);
        self.ask(Request::CommitWrite { inode, attach, used: Vec::new(), min_size, clear_suid: false, space: None })?;
        Ok(())
    }

    fn fill(&mut self, files: u64, each: u64) -> Result<()> {
        let many = self.make(ROOT, "many".into(), NodeKind::Directory, 0o755)?;
        for first in (0..files).step_by(each as usize) {
            let place = self.make(many, format!("{:07}", first / each), NodeKind::Directory, 0o755)?;
            for number in first..files.min(first + each) {
                self.file(place, number - first)?;
            }
        }
        self.state.apply(self.stamp, &Command::EndSession { session: self.session });
        Ok(())
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, numbers @ ..] = words.as_slice() else { bail!("usage: fill DIR FILES [PER_DIRECTORY]") };
    let number = |index: usize, default| numbers.get(index).map_or(Ok(default), |text| text.parse::<u64>());
    let (files, each) = (number(0, 1_000_000)?, number(1, 1_000)?.max(1));
    let format = FormatOptions { chunk_size: 64 << 20, replicas: SERVERS as u8 };
    let owned = DataDir::open(Path::new(dir), format, None)?;
    if !owned.is_fresh() {
        bail!("{dir} is the directory of a master already: choose a new one");
    }
    let frozen = checkpoint::newest(owned.path(), owned.cluster(), |_| true)?;
    let begun = Instant::now();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
    let mut filler = Filler::new(frozen.state, Timestamp(i64::try_from(now)?))?;
    filler.fill(files, each)?;
    let (filled, bytes) = (begun.elapsed(), filler.state.memory_bytes());
    let frozen = Frozen { clock: filler.stamp.now, state: filler.state, ..frozen };
    let path = checkpoint::write(owned.path(), owned.cluster(), &frozen)?;
    let length = std::fs::metadata(&path)?.len();
    println!(
        "{files} files: applied in {filled:.1?}, {:.0} ns each; tables {:.1} bytes a file; checkpoint {:.1}, written in {:.1?}",
        filled.as_nanos() as f64 / files as f64,
        bytes as f64 / files as f64,
        length as f64 / files as f64,
        begun.elapsed() - filled
    );
    Ok(())
}
