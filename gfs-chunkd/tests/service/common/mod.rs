//! A pretended master, real chunk servers, and a small client: what the tests of whole processes share.

pub mod master;

use bytes::Bytes;
use gfs_core::ids::ClusterId;
use gfs_net::{DataPool, PoolOptions, crc32c};
use gfs_proto::v1::{self, data_reply::Status, data_request::Op};
use master::FakeMaster;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

/// Chunk size of the tests' cluster.
pub const CHUNK: u64 = 4 << 20;
/// Everything has to happen within this.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A chunk server process; killed when dropped.
pub struct Chunkd {
    child: Child,
    pub address: String,
}

impl Chunkd {
    pub fn start(data: &Path, master: &str, boot_id: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gfs-chunkd"))
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "warn"])
            .args(["--master", master, "--config", "/dev/null", "--data"])
            .arg(data)
            .env("GFS_CHUNKD_BOOT_ID", boot_id)
            .stdout(Stdio::piped())
            .spawn()
            .expect("gfs-chunkd starts");
        let stdout = child.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let (name, address, _) = gfs_daemon::life::parse_ready(&line).unwrap_or_else(|| panic!("not READY: {line:?}"));
        assert_eq!(name, "gfs-chunkd");
        Self { child, address }
    }

    /// SIGKILL, as a crash of the process would.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).expect("signalled");
        if signal == rustix::process::Signal::STOP {
            self.wait_until_stopped();
        }
    }

    /// A stop signal reaches the threads of a process one by one: until the last, some still answer.
    fn wait_until_stopped(&self) {
        let tasks = format!("/proc/{}/task", self.child.id());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let running = std::fs::read_dir(&tasks).expect("a process").flatten().any(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T')
            });
            if !running {
                return;
            }
            assert!(std::time::Instant::now() < end, "the process does not stop");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// SIGTERM; the exit code.
    pub fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        self.child.wait().expect("ended").code()
    }
}

impl Drop for Chunkd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The client that mutates.
pub const SESSION: u64 = 9;

/// A client's request to bring a chunk to stable storage.
pub fn sync(handle: u64, epoch: u32) -> v1::DataRequest {
    v1::DataRequest { handle, epoch, op: Some(Op::Sync(v1::Sync {})), ..v1::DataRequest::default() }
}

/// A master and chunk servers 1..=n.
pub struct Cluster {
    pub master: FakeMaster,
    pub servers: Vec<Option<Chunkd>>,
    pub dirs: Vec<TempDir>,
    pub pool: DataPool,
    pub operation: u64,
    pub boots: Vec<u32>,
}

impl Cluster {
    pub async fn start(count: usize) -> Self {
        let master = FakeMaster::start().await;
        let pool = DataPool::new(PoolOptions { cluster: ClusterId(master.cluster), ..PoolOptions::default() });
        let mut cluster =
            Self { master, servers: Vec::new(), dirs: Vec::new(), pool, operation: 0, boots: vec![1; count] };
        for _ in 0..count {
            cluster.dirs.push(tempfile::tempdir().expect("a directory"));
            cluster.servers.push(None);
        }
        for number in 1..=count as u32 {
            cluster.start_server(number).await;
        }
        cluster
    }

    /// Starts a server; numbers are given in the order of the first start.
    pub async fn start_server(&mut self, number: u32) {
        let dir = self.dirs[number as usize - 1].path().to_owned();
        let master = self.master.address.clone();
        let boot = format!("boot-{}", self.boots[number as usize - 1]);
        let started = tokio::task::spawn_blocking(move || Chunkd::start(&dir, &master, &boot)).await.expect("started");
        self.servers[number as usize - 1] = Some(started);
        let master = self.master.clone();
        eventually("a lease", || master.is_leased(number)).await;
    }

    pub fn kill(&mut self, number: u32) {
        self.servers[number as usize - 1].take().expect("running").kill();
    }

    /// The machine reboots: what was not on stable storage may be gone.
    pub fn cut_power(&mut self, number: u32) {
        self.kill(number);
        self.boots[number as usize - 1] += 1;
    }

    pub fn signal(&self, number: u32, signal: rustix::process::Signal) {
        self.servers[number as usize - 1].as_ref().expect("running").signal(signal);
    }

    pub fn address(&self, number: u32) -> String {
        self.servers[number as usize - 1].as_ref().expect("running").address.clone()
    }

    /// One request to one server.
    pub async fn ask(&self, number: u32, request: v1::DataRequest, payload: Bytes) -> Option<(v1::DataReply, Bytes)> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let lane = request.handle;
        self.pool.call(&self.address(number), lane, request, payload, deadline).await.ok()
    }

    /// A mutation, repeated under the same identity at whoever is primary until it is done.
    pub async fn mutate(&mut self, handle: u64, op: Op, payload: &[u8]) -> v1::DataReply {
        self.operation += 1;
        self.mutate_as(handle, self.operation, op, payload).await
    }

    pub async fn mutate_as(&self, handle: u64, operation: u64, op: Op, payload: &[u8]) -> v1::DataReply {
        self.mutate_in(SESSION, handle, operation, op, payload).await
    }

    pub async fn mutate_in(&self, session: u64, handle: u64, operation: u64, op: Op, payload: &[u8]) -> v1::DataReply {
        let end = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < end {
            let known = self.master.configuration(handle);
            let request = v1::DataRequest {
                handle,
                epoch: known.epoch,
                session,
                operation,
                op: Some(op.clone()),
                ..v1::DataRequest::default()
            };
            if self.servers[known.primary as usize - 1].is_some() {
                let answer = self.ask(known.primary, request, Bytes::copy_from_slice(payload)).await;
                last = answer.map(|(reply, _)| reply);
                if let Some(reply) = &last
                    && matches!(reply.status(), Status::Ok | Status::NoRoom | Status::NoSpace | Status::Fenced)
                {
                    return reply.clone();
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("operation {operation} on chunk {handle} is not done: {last:?}");
    }

    pub async fn write(&mut self, handle: u64, offset: u64, data: &[u8]) {
        let reply = self.mutate(handle, Op::Write(v1::Write { offset, crc: crc32c(data) }), data).await;
        assert_eq!(reply.status(), Status::Ok);
    }

    pub async fn sync(&mut self, handle: u64) {
        let reply = self.mutate(handle, Op::Sync(v1::Sync {}), &[]).await;
        assert_eq!(reply.status(), Status::Ok);
    }

    /// One try to read at one server.
    pub async fn read_once(&self, number: u32, handle: u64, offset: u64, length: u32) -> Result<Bytes, Status> {
        let epoch = self.master.configuration(handle).epoch;
        let op = Some(Op::Read(v1::Read { offset, length, ahead: 0 }));
        let request = v1::DataRequest { handle, epoch, op, ..v1::DataRequest::default() };
        let Some((reply, data)) = self.ask(number, request, Bytes::new()).await else {
            return Err(Status::TimedOut);
        };
        if reply.status() != Status::Ok {
            return Err(reply.status());
        }
        assert_eq!(data.len(), length as usize);
        if reply.block_crcs.is_empty() {
            assert_eq!(reply.crc, crc32c(&data));
        } else {
            let sums: Vec<u32> = data.chunks(4096).map(crc32c).collect();
            assert_eq!(reply.block_crcs, sums);
        }
        Ok(data)
    }

    /// The answer of a server that has its lease: the master's grant may still be on its way to a server that has just started.
    pub async fn read_with_lease(&self, number: u32, handle: u64, offset: u64, length: u32) -> Result<Bytes, Status> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.read_once(number, handle, offset, length).await {
                Err(Status::NoLease | Status::TimedOut) if Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                answer => return answer,
            }
        }
    }

    /// Reads at one server until it serves.
    pub async fn read(&self, number: u32, handle: u64, offset: u64, length: u32) -> Bytes {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.read_once(number, handle, offset, length).await {
                Ok(data) => return data,
                Err(status) if Instant::now() > end => panic!("server {number} does not read: {status:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Waits for a condition.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Bytes that tell their place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        out.extend_from_slice(&next());
    }
    out.truncate(length);
    out
}
